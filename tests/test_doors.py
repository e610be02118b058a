"""What a user's own data meets: other boxes, other units, bare arrays, catalogues for fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.conventions import (
    AXES,
    DimensionError,
    GridMismatchError,
    MissingAttributeError,
    MissingVariableError,
    label,
    make_grid,
)
from cosmofields.reporting.inputs import gather

N, SIDE = 12, 120.0


def universe(noise: int, **source: Any) -> xr.Dataset:
    rng = np.random.default_rng(noise)
    facts = {"box_size": SIDE, "redshift": 0.59}
    grid = make_grid(N, [SIDE] * 3)
    density = np.exp(rng.standard_normal((N,) * 3)).astype(np.float32)
    velocity = (200 * rng.standard_normal((3, N, N, N))).astype(np.float32)
    fields = {
        "density": label("density", density, grid, facts),
        "velocity": label("velocity", velocity, grid, facts),
    }
    return xr.Dataset(fields, attrs={**facts, **({"source": source} if source else {})})


# --- one universe ---


def test_other_seeds_are_refused() -> None:
    predicted, true = universe(1, seed=105, file="b.h5"), universe(2, seed=104, file="a.h5")
    with pytest.raises(GridMismatchError, match=r"b.h5, seed 105.*a.h5, seed 104.*attrs"):
        cf.evaluate(predicted, true)
    with pytest.raises(GridMismatchError, match="another universe"):
        cf.evaluate_sub_boxes(predicted, true, 60)
    del predicted.attrs["source"]
    assert "density" in cf.evaluate(predicted, true).field  # the way that the message names


def test_other_files_are_refused_where_no_seed_tells() -> None:
    predicted, true = universe(1, file="b.h5"), universe(2, file="a.h5", seed=1)
    with pytest.raises(GridMismatchError, match=r"file b.h5.*file a.h5, seed 1"):
        cf.evaluate(predicted, true)
    # Halos and particles of one simulation are two files.
    true = true.assign_attrs(history="... open_catalog: 10 rows of a.h5")
    assert "density" in cf.evaluate(predicted, true).field


def test_source_of_the_fields_counts() -> None:
    predicted, true = universe(1), universe(2)
    predicted["velocity"].attrs["source"] = {"seed": 1}
    assert "velocity" in cf.evaluate(predicted, true).field  # one side is silent
    true["density"].attrs["source"] = {"seed": 2}
    with pytest.raises(GridMismatchError, match=r"seed 1\).*seed 2\)"):
        cf.evaluate(predicted, true)


@pytest.mark.parametrize("other", [{"seed": 7, "file": "copy.h5"}, {"code": "mine"}])
def test_same_universe_passes(other: dict[str, Any]) -> None:
    assert "velocity" in cf.evaluate(universe(1, **other), universe(2, seed=7, file="a.h5")).field


def test_reconstructions_keep_the_source(box_file: Path) -> None:
    halos, true = cf.open_box(box_file)
    observed = cf.paint(cf.to_redshift_space(cf.select(halos), "z"), true.sizes["x"])
    linear = cf.linear_theory(observed, bias=1.5)
    assert linear.attrs["source"] == halos.attrs["source"]
    with pytest.raises(GridMismatchError, match=r"box_1.h5, seed 1\).*seed 2\)"):
        cf.evaluate(linear, true.assign_attrs(source={"seed": 2}))


# --- units ---


def test_other_units_are_refused() -> None:
    true = universe(1)
    wrong = true.assign(velocity=(true.velocity * 1000).assign_attrs(units="m/s"))
    wanted = r"`velocity` has units 'm/s'; expected km/s: multiply by 1e-3 and set attrs\['units'\]"
    for first, second in ((wrong, true), (true, wrong)):
        with pytest.raises(DimensionError, match=wanted):
            cf.evaluate(first, second)
    percent = true.assign(density=true.density.assign_attrs(units="percent"))
    with pytest.raises(DimensionError, match=r"`density` has units 'percent'; expected 1"):
        cf.evaluate(true, percent)


@pytest.mark.parametrize("units", ["km s-1", "km / s", None])
def test_other_spellings_pass(units: str | None) -> None:
    true = universe(1)
    if units is None:
        del true["velocity"].attrs["units"]
    else:
        true["velocity"].attrs["units"] = units
    assert "velocity" in cf.evaluate(true, universe(2)).field


@pytest.fixture
def observed_halos(halos: xr.Dataset) -> xr.Dataset:
    return cf.to_redshift_space(halos, "z")


def grid_velocity(halos: xr.Dataset, **attrs: Any) -> xr.DataArray:
    """A uniform flow of 100 km/s along z."""
    data = np.zeros((3, 8, 8, 8), np.float32)
    data[2] = 100
    facts = {key: halos.attrs[key] for key in ("box_size", "redshift", "cosmology")}
    return label("velocity", data, make_grid(8, [halos.attrs["box_size"]] * 3), facts, **attrs)


def test_tracers_want_a_velocity_in_its_units(observed_halos: xr.Dataset) -> None:
    wrong = grid_velocity(observed_halos, units="m/s")
    for given in (wrong, wrong.to_dataset()):
        with pytest.raises(DimensionError, match="multiply by 1e-3"):
            cf.to_real_space(observed_halos, given)
    with pytest.raises(DimensionError, match="multiply by 1e-3"):
        cf.sample(wrong, observed_halos)
    assert cf.sample(wrong.rename("mine"), observed_halos).attrs["units"] == "m/s"
    with pytest.raises(DimensionError, match=r"`momentum` was given: take ds\['velocity'\]"):
        cf.to_real_space(observed_halos, grid_velocity(observed_halos).rename("momentum"))


def test_to_real_space_takes_the_velocity_of_a_dataset(observed_halos: xr.Dataset) -> None:
    velocity = grid_velocity(observed_halos)
    ds = xr.Dataset({"density": velocity[2] * 0 + 1, "velocity": velocity})
    ds.attrs = velocity.attrs
    moved = cf.to_real_space(observed_halos, ds)
    np.testing.assert_array_equal(
        moved.position, cf.to_real_space(observed_halos, velocity).position
    )
    with pytest.raises(MissingVariableError, match=r"No `velocity`.*it holds density"):
        cf.to_real_space(observed_halos, ds.drop_vars("velocity"))


# --- bare arrays ---


def test_bare_arrays_are_told_how(observed_halos: xr.Dataset) -> None:
    array = np.zeros((8, 8, 8))
    calls = [cf.power_spectrum, cf.multipoles, cf.wedges, cf.correlation_function, cf.correlations]
    for function in calls:
        with pytest.raises(DimensionError, match=r"a ndarray was given.*from_grid\(array"):
            function(array)
    with pytest.raises(DimensionError, match="from_grid"):
        cf.spectra(array, array)
    with pytest.raises(DimensionError, match="from_grid"):
        cf.sample(array, observed_halos)
    with pytest.raises(DimensionError, match="from_grid"):
        cf.to_real_space(observed_halos, array)
    with pytest.raises(DimensionError, match=r"ds\['density'\]"):
        cf.power_spectrum(universe(1))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("name", "shape"), [("density", (4, 5, 6)), ("velocity", (3, 4, 5, 6))])
def test_from_grid_is_a_field_of_the_package(
    cosmology: dict[str, float], name: str, shape: tuple[int, ...], *, lazy: bool
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    given = da.from_array(array, chunks=2) if lazy else array
    sides = [40.0, 50.0, 60.0]
    field = cf.from_grid(
        given, name=name, box_size=sides, redshift=0.5, cosmology=cosmology, los="x"
    )
    facts = {"box_size": sides, "redshift": 0.5, "cosmology": cosmology, "los": "x"}
    wanted = label(name, array, make_grid(shape[-3:], sides), {**facts, "periodic": True})
    assert field.data is given or not lazy
    assert (field.chunks is not None) == lazy
    xr.testing.assert_identical(field.compute(), wanted)


def test_from_grid_of_a_name_of_ones_own() -> None:
    x = np.arange(16) * 10.0
    wave = np.cos(2 * np.pi * x / 160)[:, None, None] + np.zeros((16, 16, 16))
    field = cf.from_grid(wave, name="delta", box_size=160, units="K")
    assert field.dims == AXES
    assert field.attrs["box_size"] == 160.0
    power = cf.power_spectrum(field)
    # <f^2> = 1/2 = sum over modes of P / V, all of it at one fundamental mode.
    total = float((power.power * power.modes).sum()) / 160.0**3
    assert total == pytest.approx(0.5, rel=1e-5)
    assert "K" in power.power.attrs["units"]
    vector = cf.from_grid(np.stack([wave] * 3), name="flow", box_size=160)
    assert float(abs(cf.divergence(vector)).max()) == pytest.approx(2 * np.pi / 160, rel=1e-4)


def test_from_grid_refuses() -> None:
    array = np.zeros((4, 4, 4))
    for given, name in (
        (array, "velocity"),
        (np.zeros((2, 4, 4, 4)), "flow"),
        (np.zeros((4, 4)), "delta"),
        (array.astype(complex), "delta"),
    ):
        with pytest.raises(DimensionError, match=rf"`{name}`: an array of .*expected real numbers"):
            cf.from_grid(given, name=name, box_size=1)
    with pytest.raises(DimensionError, match=r"pass \.data"):
        cf.from_grid(xr.DataArray(array), name="delta", box_size=1)
    with pytest.raises(DimensionError, match="multiply by 1e-3"):
        cf.from_grid(np.zeros((3, 4, 4, 4)), name="velocity", box_size=1, units="m/s")
    with pytest.raises(MissingAttributeError, match="box_size=-1"):
        cf.from_grid(array, name="delta", box_size=-1)


# --- one clear error ---


def test_advice_names_the_array() -> None:
    field = universe(1).velocity
    with pytest.raises(DimensionError, match=r"to_dataset\(name='velocity'\)"):
        cf.evaluate(field, field)
    with pytest.raises(DimensionError, match=r"to_dataset\(name='density'\)"):
        cf.evaluate(field[0].rename(None), field)


def test_parts_larger_than_the_box() -> None:
    for size in (500, 333.3, (60, 60, 121)):
        with pytest.raises(DimensionError, match=r"is more than the box has.*at most 120"):
            cf.sub_boxes(universe(1), size)


def test_table_of_one_result() -> None:
    result = cf.evaluate(universe(1), universe(2))
    with pytest.raises(DimensionError, match=r"scores_table\(\{'network': result\}\)"):
        cf.scores_table(result)
    with pytest.raises(DimensionError, match="'a' is not what evaluate returned"):
        cf.scores_table({"a": universe(1)})
    assert set(cf.scores_table({"a": result})) == {"a"}


def test_catalogue_in_place_of_fields(halos: xr.Dataset, tmp_path: Path) -> None:
    groups = {"halos": halos, "reconstructed": universe(1), "true": universe(2)}
    cf.write_store(xr.DataTree.from_dict(groups), tmp_path / "demo.zarr")
    with pytest.raises(
        MissingVariableError, match=r"demo.zarr/halos' is a catalogue.*demo.zarr/reconstructed'"
    ):
        gather(tmp_path / "demo.zarr" / "halos", tmp_path / "demo.zarr")
