"""Whether tracers move as a field says: made-up flows, and the sample box with its halos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.consistency import VelocityWarning, compare_velocities
from cosmofields.conventions import CatalogError, GridMismatchError, MissingVariableError

SIDE, N, ROWS, NOISE = 120.0, 48, 20_000, 80.0


@pytest.fixture(scope="module")
def facts(cosmology: dict[str, float]) -> dict[str, Any]:
    return {"box_size": SIDE, "redshift": 0.59, "cosmology": dict(cosmology)}


@pytest.fixture(scope="module")
def flow(facts: dict[str, Any]) -> xr.DataArray:
    """Waves of another length and direction in each component, of 200 km/s."""
    x = np.stack(np.meshgrid(*[np.arange(N) * SIDE / N] * 3, indexing="ij"))
    data = np.stack([_wave(x, i) for i in range(3)])
    return cf.from_grid(data.astype(np.float32), name="velocity", **facts, los="z")


def _wave(x: Any, i: int) -> Any:
    return 200 * np.sqrt(2) * np.sin(2 * np.pi * (x[i] + (i + 1) * x[i - 1]) / SIDE)


@pytest.fixture(scope="module")
def movers(facts: dict[str, Any]) -> xr.Dataset:
    """Tracers that move with the waves, and about them."""
    rng = np.random.default_rng(5)
    position = rng.uniform(0, SIDE, (ROWS, 3))
    velocity = np.stack([_wave(position.T, i) for i in range(3)], axis=1)
    velocity += rng.normal(0, NOISE, velocity.shape)
    return cf.from_arrays(position, velocity, np.full(ROWS, 1e12), **facts)


def with_velocity(catalog: xr.Dataset, change: Any) -> xr.Dataset:
    return catalog.assign(velocity=catalog["velocity"].copy(data=change(catalog.velocity.values)))


def test_tracers_of_a_flow(movers: xr.Dataset, flow: xr.DataArray) -> None:
    found = movers.recon.compare_velocities(flow)
    np.testing.assert_allclose(found["slope"], 1, atol=0.02)
    # Of 200 km/s of which all is known, and noise.
    r = 200 / np.hypot(200, NOISE)
    np.testing.assert_allclose(found["correlation_coefficient"], r, atol=0.01)
    # And up to half a cell to the next node.
    assert (found["rms_difference"] > NOISE).all()
    assert (found["rms_difference"] < 1.3 * NOISE).all()
    assert found.attrs["rows"] == ROWS
    lazy = compare_velocities(movers.chunk({"halo": 3000}), flow.chunk(x=16, y=24))
    xr.testing.assert_identical(lazy, found)
    xr.testing.assert_identical(compare_velocities(movers, flow.to_dataset()), found)


@pytest.mark.parametrize("los", ["x", "z"])
def test_in_redshift_space_they_are_taken_back_by_their_own_velocities(
    los: str, movers: xr.Dataset, flow: xr.DataArray
) -> None:
    found = compare_velocities(movers, flow)
    shifted = compare_velocities(cf.to_redshift_space(movers, los), flow)
    xr.testing.assert_allclose(shifted, found, atol=0.02)  # nodes, where rounding decides


def test_a_field_that_was_rolled(movers: xr.Dataset, flow: xr.DataArray) -> None:
    found = compare_velocities(movers, flow)
    xr.testing.assert_allclose(compare_velocities(movers, flow.roll(y=7, roll_coords=True)), found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v[:, [0, 1, 1]], "along z goes with the field along y: are the columns"),
        (lambda v: v[:, [2, 1, 0]], "along x goes with the field along z: are the columns"),
        (lambda v: v * 0.8, r"move 0\.\d+, 0\.\d+, 0\.\d+ times as fast.*km sqrt\(a\)/s"),
        (lambda v: v * 1.26, r"Are box_size \(in Mpc/h\) and redshift right"),
        (lambda v: -v, r"Are box_size, units and the columns"),
        (lambda v: v * [1, 1, 0.7], r"los='z' and no to_redshift_space.*or never"),
    ],
)
def test_what_is_wrong_is_named(
    change: Any, said: str, movers: xr.Dataset, flow: xr.DataArray
) -> None:
    wrong = with_velocity(movers, change).assign_attrs(los="z")
    with pytest.warns(VelocityWarning, match=said):
        compare_velocities(wrong, flow)


def test_refusals(movers: xr.Dataset, flow: xr.DataArray, facts: dict[str, Any]) -> None:
    with pytest.raises(CatalogError, match="999 tracers say too little.*at least 1000"):
        compare_velocities(movers.isel(halo=slice(999)), flow)
    with pytest.raises(MissingVariableError, match="compare_velocities needs it, in km/s"):
        compare_velocities(movers.drop_vars("velocity"), flow)
    with pytest.raises(MissingVariableError, match="velocity"):
        compare_velocities(movers, flow.rename("density").to_dataset())
    other = cf.from_grid(flow.values, name="velocity", **{**facts, "box_size": 100.0}, los="z")
    with pytest.raises(GridMismatchError, match=r"120\.0 against 100\.0"):
        compare_velocities(movers, other)


@pytest.fixture(scope="module")
def sample() -> xr.Dataset:
    return cf.tutorial.open_dataset()[0].recon.select()


@pytest.mark.filterwarnings("error::cosmofields.consistency.VelocityWarning")
def test_the_halos_of_the_sample(sample: xr.Dataset) -> None:
    """Predicted from positions and masses; what is compared across the line of sight is new."""
    tracers = sample.recon.to_redshift_space("z")
    velocity = tracers.recon.paint(n_grid=round(sample.box_size / 2.34375)).recon.predict_velocity()
    found = compare_velocities(tracers, velocity)
    assert (found["correlation_coefficient"] > 0.8).all()
    # Already shifted, and shifted again.
    again = tracers.assign_attrs(space="real").recon.to_redshift_space("z")
    wrong = again.recon.paint(n_grid=velocity.sizes["x"]).recon.predict_velocity()
    assert compare_velocities_quietly(again, wrong)["slope"][2] < found["slope"][2] - 0.1


def compare_velocities_quietly(*args: Any) -> xr.Dataset:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelocityWarning)
        return compare_velocities(*args)
