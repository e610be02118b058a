"""Every result goes into NetCDF and Zarr and comes back, whatever its fields say of themselves."""

import io

import numpy as np
import pytest
import xarray as xr

from cosmofields.conventions import label, make_grid, result_facts
from cosmofields.correlation import (
    correlation_2d,
    correlation_function,
    correlation_multipoles,
    correlations,
)
from cosmofields.evaluation import evaluate
from cosmofields.spectral import multipoles, power_spectrum, spectra, wedges
from cosmofields.statistics import cell_statistics, histogram, joint_distribution
from cosmofields.store import open_store, write_store

LENGTHS = (120.0, 100.0, 80.0)
TAPER = 0.35
VALUES = [-500.0, 0.0, 1.0, 500.0]
STATISTICS = {
    "power_spectrum": lambda p, t: power_spectrum(p.density),
    "cross power": lambda p, t: power_spectrum(p.density, t.density, window="cic"),
    "tapered power": lambda p, t: power_spectrum(
        p.velocity.assign_attrs(periodic=False), taper=np.float64(TAPER)
    ),
    "multipoles": lambda p, t: multipoles(p.velocity),
    "wedges": lambda p, t: wedges(p.density),
    "spectra": lambda p, t: spectra(p.velocity, t.velocity, ells=(0, 2)),
    "correlation_function": lambda p, t: correlation_function(p.density),
    "correlation_multipoles": lambda p, t: correlation_multipoles(p.density),
    "correlation_2d": lambda p, t: correlation_2d(p.density),
    "correlations": lambda p, t: correlations(p.velocity, t.velocity, window="cic"),
    "cell_statistics": lambda p, t: cell_statistics(p.velocity, t.velocity),
    "histogram": lambda p, t: histogram(p.velocity, edges=VALUES).to_dataset(),
    "joint_distribution": lambda p, t: joint_distribution(
        p.density, t.density, edges=VALUES
    ).to_dataset(),
    "evaluate": evaluate,
    "tapered evaluate": lambda p, t: evaluate(p, t, taper=TAPER),
}


@pytest.fixture(scope="module")
def pair(cosmology):
    """Two Datasets that say all that one can say of a box, in the types of what made them."""
    grid = make_grid((12, 10, 8), LENGTHS)
    facts = {
        "box_size": np.array(LENGTHS),
        "redshift": np.float32(0.5),
        "los": "z",
        "space": "redshift",
        "periodic": True,
        "cosmology": cosmology,
    }

    def fields(seed):
        rng = np.random.default_rng(seed)
        density = np.exp(rng.standard_normal(grid.shape)).astype(np.float32)
        velocity = (300 * rng.standard_normal((3, *grid.shape))).astype(np.float32)
        made = {"density": density, "velocity": velocity}
        return xr.Dataset(
            {name: label(name, data, grid, facts) for name, data in made.items()}, attrs=facts
        )

    return fields(0), fields(1)


@pytest.mark.parametrize("name", STATISTICS)
def test_results_come_back_from_netcdf_and_zarr(name, pair, tmp_path):
    pytest.importorskip("h5netcdf")
    result = STATISTICS[name](*pair)
    said = result.attrs or result["cells"].attrs  # of counts, which are a DataArray
    assert {"box_size", "periodic", "redshift", "los"} <= set(said)
    with xr.open_dataset(
        io.BytesIO(bytes(result.to_netcdf(engine="h5netcdf"))), engine="h5netcdf"
    ) as found:
        xr.testing.assert_identical(found.load(), result)
    result.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "plain.zarr", consolidated=False) as found:
        xr.testing.assert_identical(found.load(), result)
    write_store(result, tmp_path / "result.zarr")
    with open_store(tmp_path / "result.zarr") as found:
        assert {key: found.attrs[key] for key in result.attrs} == result.attrs


def test_facts_of_a_result(pair):
    predicted, true = (ds.density for ds in pair)
    facts = result_facts(predicted)
    assert facts == {
        "box_size": [120.0, 100.0, 80.0],
        "redshift": 0.5,
        "los": "z",
        "space": "redshift",
        "periodic": 1,
    }
    assert [type(facts[key]) for key in ("box_size", "redshift", "periodic")] == [list, float, int]
    assert result_facts(predicted.assign_attrs(periodic=False))["periodic"] == 0
    # The first that says it; what is None is not said.
    assert result_facts(predicted.assign_attrs(los=None), true.assign_attrs(los="x"))["los"] == "x"
    assert result_facts(predicted, true.assign_attrs(los="x"))["los"] == "z"
    assert result_facts(predicted.drop_attrs()) == {}
