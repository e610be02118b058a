"""The kinetic SZ effect, the cosmic web and velocities at galaxies, against analytic cases."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.applications import kinetic_sz, t_web, v_web, velocities_at
from cosmofields.conventions import CosmofieldsError, MissingVariableError
from cosmofields.kernels.web import eigenvalues

SIDE, N = 120.0, 24


@pytest.fixture(scope="module")
def facts(cosmology):
    return {"box_size": SIDE, "redshift": 0.59, "cosmology": dict(cosmology), "los": "z"}


@pytest.fixture(scope="module")
def x():
    """Coordinates (3, x, y, z) of the nodes."""
    return np.stack(np.meshgrid(*[np.arange(N) * SIDE / N] * 3, indexing="ij"))


# --- kinetic SZ ---


def test_uniform_flow(facts):
    """A box that moves away as a whole: dT / T = -tau v / c."""
    momentum = cf.from_grid(np.full((3, N, N, N), 300.0, np.float32), name="momentum", **facts)
    ksz = kinetic_sz(momentum)
    assert ksz.dims == ("x", "y")
    cosmology = facts["cosmology"]
    # In SI units, from the critical density of H0 = 100 h km/s/Mpc.
    h, metre = cosmology["h"], 3.0856776e22
    critical = 3 * (1e5 * h / metre) ** 2 / (8 * np.pi * 6.6743e-11)
    electrons = cosmology["Omega_b"] * critical / 1.67262192e-27 * 0.88 * 1.59**2
    tau = 6.6524587e-29 * electrons * SIDE / h * metre
    np.testing.assert_allclose(ksz, -2.7255e6 * tau * 300 / 299792.458, rtol=1e-3)
    assert ksz.attrs["units"] == "microkelvin"


def test_weights_and_line_of_sight(facts, x):
    q = np.stack([x[0], 2 * x[1], 3 * x[2]]).astype(np.float32)
    momentum = cf.from_grid(q, name="momentum", **facts)
    whole, near = (kinetic_sz(momentum, los="y", weight=w) for w in (None, lambda chi: chi < 60))
    assert whole.dims == ("x", "z")
    # 2 (0 + 5 + ... + 55) of 2 (0 + 5 + ... + 115).
    np.testing.assert_allclose(near / whole, 66 / 276, rtol=1e-5)
    with pytest.raises(CosmofieldsError, match="not finite"):
        kinetic_sz(momentum, weight=lambda chi: np.nan * chi)


# --- the web ---


def test_eigenvalues_are_those_of_lapack():
    rng = np.random.default_rng(0)
    tensor = rng.normal(size=(6, 5, 6, 7)).astype(np.float32)
    tensor[:, 0] = 0  # none
    tensor[:, 1] = np.array([1, 1, 1, 0, 0, 0])[:, None, None]  # three alike
    tensor[:, 2] = np.array([2, 1, 1, 0, 0, 0])[:, None, None]  # two alike
    xx, yy, zz, xy, xz, yz = tensor.astype(np.float64)
    whole = np.moveaxis(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]), (0, 1), (-2, -1))
    expected = np.moveaxis(np.linalg.eigvalsh(whole)[..., ::-1], -1, 0)
    np.testing.assert_allclose(eigenvalues(tensor), expected, atol=2e-6)


def test_a_plane_wave_is_made_of_sheets(facts, x):
    """delta = A cos(k x): one eigenvalue, delta itself, and two zeros."""
    k, a = 2 * np.pi * 2 / SIDE, 0.8
    density = cf.from_grid(1 + a * np.cos(k * x[0]), name="density", **facts)
    found = t_web(density, smoothing=4.0)
    smooth = a * np.cos(k * x[0]) * np.exp(-0.5 * (4 * k) ** 2)
    np.testing.assert_allclose(found["eigenvalue"].isel(order=0), smooth.clip(0), atol=1e-5)
    np.testing.assert_allclose(found["eigenvalue"].isel(order=2), smooth.clip(None, 0), atol=1e-5)
    np.testing.assert_array_equal(found["web"], smooth > 0.2)
    assert found["web"].attrs["flag_meanings"] == "void sheet filament knot"


def test_knots_and_voids(facts, x):
    """Three crossed waves: a knot where they are high, a void where they are low."""
    waves = np.cos(2 * np.pi * x / SIDE).sum(axis=0)
    found = t_web(cf.from_grid(1 + 0.3 * waves, name="density", **facts), smoothing=0)
    assert int(found["web"][0, 0, 0]) == 3
    assert int(found["web"][N // 2, N // 2, N // 2]) == 0
    assert set(np.unique(found["web"])) == {0, 1, 2, 3}


def test_the_two_webs_agree_in_linear_theory(facts, x):
    rng = np.random.default_rng(1)
    modes = np.fft.rfftn(rng.normal(size=(N,) * 3))
    k = np.stack(np.meshgrid(*[2 * np.pi * np.fft.fftfreq(N, SIDE / N)] * 3, indexing="ij"))
    k = k[..., : N // 2 + 1]
    modes[(np.abs(k) > 0.55).any(axis=0)] = 0  # nothing at Nyquist, 0.63
    delta = np.fft.irfftn(modes, s=(N,) * 3, axes=(0, 1, 2))
    density = cf.from_grid(1 + 0.2 * delta, name="density", **facts)
    from cosmofields.linear import potential_flow

    tidal = t_web(density, smoothing=3.0)["eigenvalue"]
    shear = v_web(potential_flow(density), smoothing=3.0)["eigenvalue"]
    growth = cf.Cosmology(**facts["cosmology"]).f(0.59)
    np.testing.assert_allclose(shear, float(growth) * tidal, atol=2e-5)


def test_lazy_in_lazy_out(facts, x, no_computes):
    eager = cf.from_grid(
        1 + 0.3 * np.cos(2 * np.pi * x / SIDE).sum(axis=0), name="density", **facts
    )
    chunks = dict.fromkeys("xyz", 12)
    momentum = cf.from_grid(np.stack([eager.data] * 3), name="momentum", **facts)
    with no_computes():
        lazy = t_web(eager.chunk(chunks))
        ksz = kinetic_sz(momentum.chunk(chunks))
    assert isinstance(lazy["web"].data, da.Array)
    assert isinstance(ksz.data, da.Array)
    xr.testing.assert_allclose(lazy.compute(), t_web(eager), atol=1e-6)
    xr.testing.assert_allclose(ksz.compute(), kinetic_sz(momentum), rtol=1e-5)


def test_refusals(facts, x):
    density = cf.from_grid(1 + 0 * x[0], name="density", **facts)
    with pytest.raises(CosmofieldsError, match="smoothing=-1; expected a radius"):
        t_web(density, smoothing=-1)
    with pytest.raises(CosmofieldsError, match="NaN or infinity"):
        t_web(density.where(density["x"] > 0))
    with pytest.raises(CosmofieldsError, match="momentum"):
        kinetic_sz(xr.Dataset({"density": density}))


# --- galaxies ---


def test_velocities_at_galaxies(facts, halos):
    rng = np.random.default_rng(3)
    data = rng.normal(0, 200, (3, 16, 16, 16))
    here = {**facts, "box_size": 100.0}
    fields = xr.Dataset(
        {
            name: cf.from_grid(array.astype(np.float32), name=name, **here)
            for name, array in (("velocity", data), ("velocity_error", 50 + 0 * data))
        }
    )
    found = velocities_at(halos, fields)
    xr.testing.assert_identical(found["velocity"], cf.sample(fields["velocity"], halos))
    np.testing.assert_allclose(found["velocity_error"], 50, rtol=1e-6)
    moved = velocities_at(cf.to_redshift_space(halos, "z"), fields)
    expected = cf.to_real_space(cf.to_redshift_space(halos, "z"), fields["velocity"])
    xr.testing.assert_identical(moved["position"], expected["position"])
    with pytest.raises(MissingVariableError, match=r"No `velocity_error`.*uncertainty=True"):
        velocities_at(halos, fields[["velocity"]])
