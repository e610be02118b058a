"""Fields read at positions, tracers moved back: plain numpy, scipy and quadrature beside them."""

import logging

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import RegularGridInterpolator

from cosmofields.catalog import from_arrays, to_redshift_space
from cosmofields.conventions import (
    AXES,
    CatalogError,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    MissingAttributeError,
    NotPeriodicError,
    label,
    make_grid,
)
from cosmofields.cosmology import as_cosmology
from cosmofields.kernels import readout
from cosmofields.kernels.mesh import FEW
from cosmofields.sampling import DISPERSION, sample, to_real_space

LENGTHS = (60.0, 90.0, 120.0)
SHAPE = (12, 10, 16)
Z = 0.59


@pytest.fixture(scope="module")
def facts(cosmology):
    return {
        "box_size": list(LENGTHS),
        "redshift": Z,
        "cosmology": dict(cosmology),
        "space": "real",
        "periodic": True,
    }


@pytest.fixture(scope="module")
def rate(cosmology):
    return float(as_cosmology(cosmology).aH(Z))


def catalog_of(position, cosmology, velocity=None, los=None, **options):
    velocity = np.zeros_like(position) if velocity is None else velocity
    return from_arrays(
        position,
        velocity,
        box_size=LENGTHS,
        redshift=Z,
        cosmology=dict(cosmology),
        los=los,
        **options,
    )


@pytest.fixture(scope="module")
def tracers(cosmology):
    position = np.random.default_rng(3).uniform(0, LENGTHS, (500, 3))
    # The corners of the box, where interpolation must be periodic.
    position[:2] = [[0, 0, 0], np.nextafter(np.float32(LENGTHS), np.float32(0))]
    return catalog_of(position, cosmology)


@pytest.fixture(scope="module")
def noise(facts):
    """Velocities without any order: 300 km/s in each component of each cell."""
    data = 300 * np.random.default_rng(4).standard_normal((3, *SHAPE)).astype(np.float32)
    return label("velocity", data, make_grid(SHAPE, LENGTHS), facts)


@pytest.fixture(scope="module")
def waves(facts):
    """A velocity of long waves, whose lines of sight nowhere fold: |dv/dr| < 0.7 a H."""
    grid = make_grid(SHAPE, LENGTHS)
    x, y, z = (2 * np.pi * np.arange(n) / n for n in grid.shape)
    x, y, z = x[:, None, None], y[:, None], z
    speed = [
        400 * np.sin(x + y) + 0 * z,
        400 * np.cos(y - z) + 300 * np.sin(x),
        500 * np.sin(z + 2 * x) + 200 * np.cos(z - y),
    ]
    return label("velocity", np.stack(speed).astype(np.float32), grid, facts)


def displaced(catalog, field, los, *, extra=0.0):
    """The catalogue with the velocities of `field` at its tracers, and in redshift space."""
    velocity = sample(field, catalog) + extra
    moving = catalog.assign(velocity=velocity.transpose(*catalog["position"].dims))
    return to_redshift_space(moving, los)


def offset(first, second, axis):
    """Periodic difference of two catalogues along one axis."""
    difference = np.subtract(first["position"].values, second["position"].values, dtype=float)
    others = np.delete(difference, axis, axis=1)
    assert (others == 0).all(), "moved across the line of sight"
    half = LENGTHS[axis] / 2
    return (difference[:, axis] + half) % LENGTHS[axis] - half


# --- sample ---


def test_sample_is_trilinear(noise, tracers):
    values = sample(noise, tracers)
    assert values.dims == ("halo", "component")
    assert values.dtype == np.float32
    nodes = [np.arange(n + 1) * length / n for n, length in zip(SHAPE, LENGTHS, strict=True)]
    wrapped = np.pad(noise.values.astype(float), [(0, 0)] + [(0, 1)] * 3, mode="wrap")
    position = tracers["position"].values.astype(float)
    for i in range(3):
        expected = RegularGridInterpolator(nodes, wrapped[i])(position)
        np.testing.assert_allclose(values[:, i], expected, atol=1e-4)


def test_sample_is_the_transpose_of_painting(noise, tracers, plain_cic):
    weight = np.random.default_rng(5).uniform(1, 2, tracers.sizes["halo"])
    field = noise.sel(component="x", drop=True).astype(np.float64)
    painted = plain_cic(tracers["position"].values, weight, SHAPE, LENGTHS)
    read = sample(field, tracers)
    assert read.dtype == np.float64
    np.testing.assert_allclose((weight * read).sum(), (painted * field).sum(), rtol=1e-12)


def test_sample_at_nodes(noise, cosmology):
    nodes = np.stack(np.meshgrid(*(noise[axis] for axis in AXES), indexing="ij"), -1)
    values = sample(noise, catalog_of(nodes.reshape(-1, 3), cosmology))
    np.testing.assert_allclose(values.values.T.reshape(3, *SHAPE), noise, atol=2e-3)


def test_sample_of_a_rolled_field(noise, tracers):
    rolled = noise.roll(x=5, y=-3, z=1, roll_coords=True)
    np.testing.assert_allclose(sample(rolled, tracers), sample(noise, tracers), atol=1e-3)


def test_sample_labels(noise, tracers):
    values = sample(noise, tracers.assign_coords(halo=np.arange(500) * 2))
    assert values.name == "velocity"
    assert values.attrs == noise.attrs
    assert list(values["component"].values) == ["x", "y", "z"]
    assert (values["halo"] == np.arange(500) * 2).all()
    scalar = sample(noise.sel(component="y", drop=True), tracers)
    assert scalar.dims == ("halo",)
    assert "component" not in scalar.coords
    np.testing.assert_array_equal(scalar, values.sel(component="y"))


def test_sample_takes_other_rows_and_orders(noise, tracers):
    particles = tracers.rename(halo="particle").transpose("component", "particle")
    values = sample(noise.transpose("z", "component", "y", "x"), particles)
    assert values.dims == ("particle", "component")
    np.testing.assert_array_equal(values, sample(noise, tracers))


@pytest.mark.parametrize("lazy", ["both", "field", "catalog"])
def test_sample_stays_lazy(noise, tracers, no_computes, lazy):
    field = noise if lazy == "catalog" else noise.chunk(component=1, x=4, z=5)
    rows = tracers if lazy == "field" else tracers.chunk(halo=200, component=1)
    with no_computes():
        values = sample(field, rows)
        one = sample(field.sel(component="z"), rows)
    assert isinstance(values.data, da.Array)
    assert values.dtype == np.float32
    if lazy != "field":
        assert values.chunks == ((200, 200, 100), (3,))
    expected = sample(noise, tracers)
    xr.testing.assert_identical(values.compute(), expected)
    np.testing.assert_array_equal(one, expected.sel(component="z"))


def test_sample_of_many_is_the_same_on_any_threads(noise):
    position = np.random.default_rng(6).uniform(0, LENGTHS, (FEW + 100, 3))
    first, second = (readout.read(position, noise.values, LENGTHS, n_threads=n) for n in (1, 3))
    np.testing.assert_array_equal(first, second)


def test_sample_refuses(noise, tracers):
    with pytest.raises(GridMismatchError, match=r"different boxes: box_size 60.0 against"):
        sample(noise, tracers.assign_attrs(box_size=60.0))
    with pytest.raises(NotPeriodicError):
        sample(noise.isel(x=slice(6)), tracers)
    with pytest.raises(NotPeriodicError):
        sample(noise, tracers.assign_attrs(periodic=False))
    with pytest.raises(DimensionError, match="mass_bin"):
        sample(noise.rename(component="mass_bin"), tracers)
    outside = tracers.assign(position=tracers["position"] + 70)
    with pytest.raises(CatalogError, match="outside the box"):
        sample(noise, outside)
    lazy = sample(noise, outside.chunk())
    with pytest.raises(CatalogError, match="outside the box"):
        lazy.compute()


# --- to_real_space ---


@pytest.mark.parametrize("los", AXES)
def test_round_trip(waves, tracers, los):
    observed = displaced(tracers, waves, los)
    axis = AXES.index(los)
    assert np.abs(offset(observed, tracers, axis)).mean() > 2
    back = to_real_space(observed, waves, dispersion=0)
    assert back["position"].attrs["folded"] == 0
    # Positions are float32: 4e-6 Mpc/h, over the slope 1 + v'/(aH) > 0.3, twice.
    assert np.abs(offset(back, tracers, axis)).max() < 5e-5
    assert (back["position"] >= 0).all()
    assert (back["position"] < xr.DataArray(np.float32(LENGTHS), dims="component")).all()


def test_round_trip_of_smooth_flow_hardly_feels_the_dispersion(waves, tracers):
    # The mean differs from the solution by the curvature of v over S = 1 Mpc/h.
    back = to_real_space(displaced(tracers, waves, "z"), waves)
    assert np.sqrt((offset(back, tracers, 2) ** 2).mean()) < 0.1


@pytest.mark.parametrize("dispersion", [0.0, 1e-3, 50.0, 400.0])
def test_uniform_flow_is_undone_exactly(facts, tracers, rate, dispersion):
    data = np.broadcast_to(np.float32([[[[-700.0]]]]), (3, *SHAPE))
    flow = label("velocity", data, make_grid(SHAPE, LENGTHS), facts)
    observed = tracers.assign_attrs(space="redshift", los="y")
    back = to_real_space(observed, flow, dispersion=dispersion)
    np.testing.assert_allclose(offset(back, tracers, 1), 700 / rate, atol=2e-5)


@pytest.mark.parametrize("los", AXES)
@pytest.mark.parametrize("dispersion", [0.0, 30.0, 200.0])
def test_mean_over_the_line_of_sight(noise, tracers, rate, los, dispersion):
    """Against a plain search for all roots, or a plain sum over a fine line."""
    axis = AXES.index(los)
    noise = noise.copy(data=4 * noise.values)  # so that lines of sight fold
    few = tracers.isel(halo=slice(60)).assign_attrs(space="redshift", los=los)
    back = to_real_space(few, noise, dispersion=dispersion)
    cell = LENGTHS[axis] / SHAPE[axis]
    reach = np.abs(noise.isel(component=axis)).max().item() / rate + 8 * dispersion / rate
    expected, folded = [], 0
    for place in few["position"].values.astype(float):
        first = np.floor((place[axis] - reach) / cell)
        last = np.ceil((place[axis] + reach) / cell)
        # Every node is on the line, so that between two points of it g is linear.
        line = np.linspace(first * cell, last * cell, int(last - first) * 2000 + 1)
        points = np.repeat(place[None], len(line), axis=0)
        points[:, axis] = line % LENGTHS[axis]
        v = readout.read(points, noise.values[[axis]].astype(float), LENGTHS)[:, 0]
        g = line + v / rate - place[axis]
        low = np.flatnonzero(np.signbit(g[:-1]) != np.signbit(g[1:]))
        folded += len(low) > 1
        if dispersion:
            weight = np.exp(-((g * rate / dispersion) ** 2) / 2)
            expected.append(np.average(line, weights=weight))
        else:
            step = g[low + 1] - g[low]
            roots = line[low] - g[low] / step * (line[1] - line[0])
            expected.append(np.average(roots, weights=1 / np.abs(step)))
    wanted = few["position"].values.astype(float)
    wanted[:, axis] = expected
    there = few.assign(position=(("halo", "component"), wanted))
    assert np.abs(offset(back, there, axis)).max() < 1e-3
    assert back["position"].attrs["folded"] == folded > 10


def test_right_dispersion_errs_least(noise, cosmology, rate):
    """Tracers spread evenly, whose velocities scatter about the field by 150 km/s."""
    rng = np.random.default_rng(7)
    position = rng.uniform(0, LENGTHS, (40_000, 3))
    real = catalog_of(position, cosmology)
    observed = displaced(real, noise, "z", extra=150 * rng.standard_normal(position.shape))
    errors = {}
    for dispersion in (0, 75, 150, 300):
        back = to_real_space(observed, noise, dispersion=dispersion)
        errors[dispersion] = offset(back, real, 2)
    rms = {key: np.sqrt((error**2).mean()) for key, error in errors.items()}
    assert rms[150] < 0.99 * min(rms[0], rms[75], rms[300])
    # Without bias: the mean error is 0 within its noise.
    assert abs(errors[150].mean()) < 4 * rms[150] / 200
    assert rms[150] < np.sqrt((offset(observed, real, 2) ** 2).mean())


@given(
    g=st.floats(-8, 8),
    step=st.one_of(st.floats(-9, 9), st.floats(-0.2, 0.2)),
    size=st.floats(0.05, 5),
)
def test_weight_between_nodes(g, step, size):
    """Moments of the Gaussian weight over a cell, by quadrature."""
    h = g + step

    def weight(t):
        return np.exp(-(((g + step * t) / size) ** 2) / 2) / size

    at = [g / (g - h)] if (g < 0) != (h < 0) else None
    total, along = readout._weigh.py_func(g, h, size)
    expected, _ = quad(weight, 0, 1, points=at)
    assert abs(total - expected) < 1e-6 * max(1, 1 / size)
    expected, _ = quad(lambda t: t * weight(t), 0, 1, points=at)
    assert abs(along - expected) < 1e-6 * max(1, 1 / size)


def test_keeps_the_rest(waves, tracers):
    observed = displaced(tracers, waves, "x")
    before = observed.copy(deep=True)
    back = to_real_space(observed, waves)
    xr.testing.assert_identical(observed, before)
    assert back.attrs["space"] == "real"
    assert back.attrs["los"] == "x"
    first, last = back.attrs["history"].splitlines()[-2:]
    assert first.endswith("to_redshift_space: los=x")
    assert last.endswith(f"to_real_space: los=x, dispersion={DISPERSION:g} km/s")
    xr.testing.assert_identical(back["velocity"], observed["velocity"])
    assert back["position"].dtype == np.float32
    exact = to_real_space(observed, waves, dispersion=0)
    assert np.abs(offset(to_redshift_space(exact, "x"), observed, 0)).max() < 5e-5


@pytest.mark.parametrize("lazy", ["both", "field", "catalog"])
def test_moving_stays_lazy(noise, tracers, no_computes, caplog, lazy):
    observed = displaced(tracers, noise, "z")
    expected = to_real_space(observed, noise)
    field = noise if lazy == "catalog" else noise.chunk(component=1, x=4, z=5)
    observed["position"].attrs["folded"] = 7  # of an earlier move: not of this one
    rows = observed if lazy == "field" else observed.chunk(halo=200)
    with no_computes():
        back = to_real_space(rows, field)
    assert isinstance(back["position"].data, da.Array)
    assert back["position"].attrs == tracers["position"].attrs
    with caplog.at_level(logging.INFO, "cosmofields"):
        position = back["position"].compute()
    np.testing.assert_array_equal(position, expected["position"])
    assert position.dtype == np.float32
    said = [r.args for r in caplog.records if "more than one solution" in r.getMessage()]
    assert np.sum(said, axis=0).tolist() == [expected["position"].attrs["folded"], 500]


def test_many_are_the_same_on_any_threads(noise, rate):
    position = np.random.default_rng(8).uniform(0, LENGTHS, (FEW + 100, 3))
    options = {"axis": 1, "rate": rate, "dispersion": 90.0, "fastest": 1500.0}
    speed = noise.values[1]
    first, second = (
        readout.shifts(position, speed, LENGTHS, **options, n_threads=n) for n in (1, 3)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1] > 0


def test_moving_by_a_rolled_field(noise, tracers):
    observed = displaced(tracers, noise, "z")
    rolled = noise.roll(x=5, y=-3, z=1, roll_coords=True)
    first, second = to_real_space(observed, rolled), to_real_space(observed, noise)
    assert np.abs(offset(first, second, 2)).max() < 1e-4


def test_only_the_component_along_the_line_of_sight_is_read(noise, tracers):
    observed = displaced(tracers, noise, "y")
    others = noise.where(noise["component"] == "y")
    xr.testing.assert_equal(to_real_space(observed, others), to_real_space(observed, noise))
    holes = noise.copy(data=np.where(noise > 900, np.nan, noise))
    with pytest.raises(CosmofieldsError, match="`velocity`: NaN"):
        to_real_space(observed, holes)
    lazy = to_real_space(observed, holes.chunk())
    with pytest.raises(CosmofieldsError, match="`velocity`: NaN"):
        lazy.compute()


def test_moving_refuses(noise, tracers):
    with pytest.raises(CatalogError, match="in real space"):
        to_real_space(tracers, noise)
    observed = to_redshift_space(tracers, "z")
    nameless = observed.copy()
    del nameless.attrs["los"]
    with pytest.raises(MissingAttributeError, match="los"):
        to_real_space(nameless, noise)
    with pytest.raises(CatalogError, match=r"redshift 0.59, the velocity at 0.6"):
        to_real_space(observed, noise.assign_attrs(redshift=0.6))
    with pytest.raises(GridMismatchError, match="different boxes"):
        to_real_space(observed.assign_attrs(box_size=60.0), noise)
    with pytest.raises(DimensionError, match="velocity"):
        to_real_space(observed, noise.isel(component=2))
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(CosmofieldsError, match=r"dispersion=.*expected km/s"):
            to_real_space(observed, noise, dispersion=wrong)
    outside = observed.assign(position=observed["position"] + 70)
    with pytest.raises(CatalogError, match="outside the box"):
        to_real_space(outside, noise)
