"""Whether tracers move as a field says: made-up flows, and the sample box with its halos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.consistency import VelocityWarning, compare_velocities
from cosmofields.conventions import (
    CatalogError,
    CosmofieldsError,
    GridMismatchError,
    MissingVariableError,
)

BOX = Path(os.environ.get("COSMOFIELDS_BOXES", "nowhere")) / "box_104.h5"
SIDE, N, ROWS, NOISE = 240.0, 48, 20_000, 80.0


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
        (lambda v: v * [1, 1, 0.8], r"they are slow: were the positions shifted twice\?"),
        (lambda v: v * [1, 1, 1.1], r"they are fast: .* are in real space\? Then no los"),
    ],
)
def test_what_is_wrong_is_named(
    change: Any, said: str, movers: xr.Dataset, flow: xr.DataArray
) -> None:
    wrong = with_velocity(cf.to_redshift_space(movers, "z"), change)
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
    with pytest.raises(GridMismatchError, match=r"240\.0 against 100\.0"):
        compare_velocities(movers, other)
    with pytest.raises(CatalogError, match=r"at redshift 0\.59, the velocity at 0\.5"):
        compare_velocities(movers, flow.assign_attrs(redshift=0.5))
    with pytest.raises(CatalogError, match="positions lie outside the box"):
        compare_velocities(movers.assign(position=movers["position"] * 2), flow)
    with pytest.raises(CatalogError, match="`velocity` holds 1 NaN or infinite"):
        compare_velocities(with_velocity(movers, lambda v: np.where(v == v[5, 0], np.nan, v)), flow)
    with pytest.raises(CatalogError, match="`velocity of the field` holds .* NaN"):
        compare_velocities(movers, flow.where(flow > -100))
    with pytest.raises(CatalogError, match="stand still along an axis"):
        compare_velocities(movers, flow * [[[[1]]], [[[0]]], [[[1]]]])
    with pytest.raises(CosmofieldsError, match="m/s"):
        compare_velocities(
            movers.assign(velocity=movers["velocity"].assign_attrs(units="m/s")), flow
        )


@pytest.fixture(scope="module")
def sample() -> xr.Dataset:
    return cf.tutorial.open_dataset()[0].recon.select()


def test_the_halos_of_the_sample(sample: xr.Dataset) -> None:
    """Predicted from positions and masses; what is compared across the line of sight is new."""
    tracers = sample.recon.to_redshift_space("z")
    velocity = tracers.recon.paint(n_grid=round(sample.box_size / 2.34375)).recon.predict_velocity()
    found = compare_velocities(tracers, velocity)
    assert (found["correlation_coefficient"] > 0.8).all()


def test_linear_theory_is_slower_and_that_is_known(sample: xr.Dataset) -> None:
    observed = sample.recon.to_redshift_space("z").recon.paint(n_grid=32)
    found = compare_velocities(sample, observed.recon.linear_theory())
    assert (found["slope"] < 0.9).any()


@pytest.mark.skipif(not BOX.is_file(), reason="COSMOFIELDS_BOXES names no folder with box_104.h5")
def test_spaces_that_were_mistaken() -> None:
    """Halos of a validation box, shifted once, twice, and never but said to be."""
    halos = cf.open_box(BOX)[0].recon.select()
    once = halos.recon.to_redshift_space("z")
    twice = once.assign_attrs(space="real").recon.to_redshift_space("z")
    never = halos.assign_attrs(space="redshift", los="z")
    for tracers, said in ((once, None), (twice, "shifted twice"), (never, "are in real space")):
        velocity = tracers.recon.paint(n_grid=128).recon.predict_velocity()
        if said is None:
            compare_velocities(tracers, velocity)
        else:
            with pytest.warns(VelocityWarning, match=said):
                compare_velocities(tracers, velocity)
