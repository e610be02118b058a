"""From catalogues to fields: halo densities with their shares and noise, and matter."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.catalog import from_arrays, select
from cosmofields.conventions import (
    AXES,
    CatalogError,
    DimensionError,
    MissingAttributeError,
    MissingVariableError,
    NotPeriodicError,
    periodic_grid,
)
from cosmofields.painting import paint, paint_matter
from cosmofields.spectral import power_spectrum


@pytest.fixture(scope="module")
def particles(cosmology):
    """30 000 clustered particles of one mass that fill a box of unequal sides."""
    rng = np.random.default_rng(3)
    sides = np.array([100.0, 60.0, 80.0])
    position = (rng.uniform(0, sides, (30_000, 3)) + rng.normal(0, 4, (30_000, 3))) % sides
    velocity = rng.normal([100, -50, 0], 300, position.shape)
    return from_arrays(
        position,
        velocity,
        box_size=sides,
        redshift=0.59,
        cosmology=dict(cosmology),
        dim="particle",
    )


def random_halos(cosmology, n=20_000, seed=0):
    """Halos without any clustering, their masses in four decades."""
    rng = np.random.default_rng(seed)
    return from_arrays(
        rng.uniform(0, 200, (n, 3)),
        rng.normal(0, 300, (n, 3)),
        10 ** rng.uniform(12, 15, n),
        box_size=200.0,
        redshift=0.59,
        cosmology=dict(cosmology),
    )


# --- halos ---


@pytest.mark.parametrize("weighting", ["mass", "bin", "number"])
def test_halo_density_against_plain_numpy(tracers, plain_cic, weighting):
    field = paint(tracers, 16, weighting=weighting)["halo_density"]
    mass = tracers["mass"].values.astype(np.float64)
    weight = mass if weighting == "mass" else np.ones_like(mass)
    if weighting == "bin":
        for of in (tracers["mass_bin"].values == i for i in range(4)):
            weight[of] = mass[of].mean()
    for i in range(4):
        rows = (tracers["mass_bin"] == i).values
        expected = plain_cic(
            tracers["position"].values[rows], weight[rows], (16,) * 3, (100.0,) * 3
        ) / (weight.sum() / 16**3)
        np.testing.assert_allclose(field[i], expected, rtol=1e-5, atol=1e-5 * expected.max())


@pytest.mark.parametrize("weighting", ["mass", "bin", "number"])
@pytest.mark.parametrize("n_grid", [16, [12, 7, 2], (9, 9, 16)], ids=str)
def test_bins_sum_to_a_mean_of_one(tracers, weighting, n_grid):
    field = paint(tracers, n_grid, weighting=weighting)["halo_density"]
    total = field.sum("mass_bin").mean(dtype=np.float64)
    assert float(total) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(field.mean(list(AXES), dtype=np.float64), field["share"], rtol=1e-6)


def test_share_and_noise_of_a_bin(tracers):
    n = np.array([100, 900, 1000, 1000])
    number = paint(tracers, 8, weighting="number")["halo_density"]
    np.testing.assert_allclose(number["share"], n / 3000)
    np.testing.assert_allclose(number["shot_noise"], 100.0**3 / n)
    mass = tracers["mass"].values.astype(float)
    bins = tracers["mass_bin"].values
    weighted = paint(tracers, 8)["halo_density"]
    for i in range(4):
        m = mass[bins == i]
        assert float(weighted["share"][i]) == pytest.approx(m.sum() / mass.sum())
        # Never below that of equal weights: V / N (1 + variance of the weights).
        noise = 100.0**3 / n[i] * (1 + m.var() / m.mean() ** 2)
        assert float(weighted["shot_noise"][i]) == pytest.approx(noise, rel=1e-6)


@pytest.mark.parametrize("weighting", ["mass", "bin", "number"])
def test_shot_noise_is_the_power_of_a_random_catalogue(cosmology, weighting):
    """White noise of that power, but for the window of the painting."""
    halos = select(random_halos(cosmology), [1e-4, 5e-4, 2.5e-3])
    field = paint(halos, 32, weighting=weighting)["halo_density"]
    edges = [0.05, 0.15, 0.25]
    for i in range(3):
        delta = field[i] / field["share"][i] - 1
        spectrum = power_spectrum(delta.assign_attrs(field.attrs), edges=edges)
        # Cloud-in-cell window of shot noise with its aliases (Jing 2005): 1 - 2/3 sin^2.
        half_cell = spectrum["k_mean"] * 200 / 32 / 2
        expected = field["shot_noise"][i] * (1 - 2 / 3 * np.sin(half_cell / np.sqrt(3)) ** 2) ** 3
        error = np.sqrt(2 / spectrum["modes"])
        pull = (spectrum["power"] / expected - 1) / error
        assert (abs(pull) < 3).all(), pull.values


def test_without_mass_bins_all_halos_are_one_tracer(halos):
    ds = paint(halos, 8, weighting="number")
    assert ds["halo_density"].sizes == {"mass_bin": 1, "x": 8, "y": 8, "z": 8}
    assert ds["share"].item() == 1
    assert ds["shot_noise"].item() == pytest.approx(100.0**3 / 5000)
    assert "number_density" not in ds["halo_density"].attrs


def test_one_bin_is_the_sum_of_four(tracers):
    four = paint(tracers, 16)["halo_density"]
    one = paint(tracers.drop_vars("mass_bin"), 16)["halo_density"]
    np.testing.assert_allclose(four.sum("mass_bin"), one[0], rtol=1e-5, atol=1e-5)
    share, noise = four["share"].values, four["shot_noise"].values
    assert one["shot_noise"].item() == pytest.approx((share**2 * noise).sum())


def test_bins_of_ones_own(halos):
    mine = halos.assign(mass_bin=("halo", np.arange(5000) % 3))
    assert paint(mine, 8, weighting="number")["share"].values == pytest.approx(
        np.array([1667, 1667, 1666]) / 5000
    )


def test_labels_and_facts(tracers, observed):
    field = observed["halo_density"]
    assert field.dims == ("mass_bin", "x", "y", "z")
    assert field.dtype == np.float32
    for obj in (observed, field):
        assert obj.attrs["box_size"] == 100.0
        assert obj.attrs["space"] == "redshift"
        assert obj.attrs["los"] == "z"
        assert obj.attrs["number_density"] == [1e-4, 1e-3, 2e-3, 3e-3]
    assert field.attrs["weighting"] == "mass"
    assert field.attrs["resampler"] == "cic"
    assert observed.attrs["history"].startswith(tracers.attrs["history"])
    assert observed.attrs["history"].endswith("paint: n_grid=16, weighting=mass")
    assert observed.attrs["cosmofields"] == {"format_version": 1}
    assert periodic_grid(observed).shape == (16, 16, 16)


def test_the_input_stays_as_it_is(halos):
    tracers = select(halos)
    before = tracers.copy(deep=True)
    paint(tracers, 8)
    paint_matter(tracers, 8)
    xr.testing.assert_identical(tracers, before)


def test_what_cannot_be_painted(tracers, halos):
    with pytest.raises(
        CatalogError, match="weighting='volume'; expected 'mass', 'bin' or 'number'"
    ):
        paint(tracers, 8, weighting="volume")
    with pytest.raises(MissingVariableError, match="weighting='mass' needs `mass`.*'number'"):
        paint(tracers.drop_vars("mass"), 8)
    assert paint(tracers.drop_vars("mass"), 8, weighting="number")["share"].sizes["mass_bin"] == 4
    with pytest.raises(DimensionError, match="n_grid=1; expected a whole number of cells"):
        paint(tracers, 1)
    with pytest.raises(CatalogError, match="Mass bin 2 of 4 is empty; expected halos in each"):
        paint(tracers.isel(halo=(tracers["mass_bin"] != 2).values), 8)
    with pytest.raises(CatalogError, match="Mass bin 3 of 4 is empty"):
        paint(tracers.isel(halo=slice(1500)), 8)


@pytest.mark.parametrize("painter", [paint, paint_matter])
def test_what_is_no_catalogue(painter, halos, observed):
    for key in ("box_size", "redshift", "cosmology"):
        with pytest.raises(MissingAttributeError, match=f"No `{key}` on this Dataset"):
            painter(halos.assign_attrs({key: None}), 8)
    with pytest.raises(MissingAttributeError, match="cosmology=3"):
        painter(halos.assign_attrs(cosmology=3), 8)
    with pytest.raises(MissingVariableError, match="No `position` in this Dataset.*from_arrays"):
        painter(observed, 8)
    with pytest.raises(DimensionError, match="with three components"):
        painter(halos.isel(component=[0, 1]), 8)
    with pytest.raises(CatalogError, match="catalogue is empty"):
        painter(halos.isel(halo=[]), 8)
    with pytest.raises(NotPeriodicError, match=r"painting needs a periodic box"):
        painter(halos.assign_attrs(periodic=False), 8)


def broken(halos, name, *values):
    """`halos` that did not pass from_arrays: its first rows of a column as given."""
    ds = halos.copy(deep=True)
    ds[name][: len(values), ...] = np.reshape(values, (-1, *[1] * (ds[name].ndim - 1)))
    return ds


@pytest.mark.parametrize("painter", [paint, paint_matter])
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("position", [np.nan, np.inf], r"`position` holds 6 NaN or infinite values \(.* row 0\)"),
        ("position", [-50.0, 130.0, 50.0], r"2 of \d+ positions lie outside.*expected 0 to 100"),
        ("mass", [np.nan, 1e12, np.nan], "`mass` holds 2 NaN or infinite values"),
        ("mass", [0.0, -1e12, -1.0], "`mass` holds 3 values at or below zero"),
    ],
)
def test_what_did_not_pass_from_arrays(painter, tracers, name, values, message):
    """Counted over the whole catalogue, not bin by bin."""
    # Bins in turn, so that the broken rows are in different ones.
    mixed = tracers.assign(mass_bin=("halo", np.arange(3000) % 4))
    ds = broken(mixed, name, *values)
    with pytest.raises(CatalogError, match=message):
        painter(ds, 8)
    lazy = lazily(ds, "halo", but=("mass", "mass_bin"))
    with pytest.raises(CatalogError, match=message):
        painter(lazy, 8).compute()


def test_matter_needs_velocities(halos):
    with pytest.raises(MissingVariableError, match=r"No `velocity` in.*paint_matter needs it"):
        paint_matter(halos.drop_vars("velocity"), 8)
    assert "halo_density" in paint(halos.drop_vars("velocity"), 8)
    with pytest.raises(CatalogError, match="`velocity` holds 3 NaN or infinite values"):
        paint_matter(broken(halos, "velocity", np.nan), 8)


# --- matter ---


def test_matter_against_plain_numpy(particles, plain_cic):
    shape, sides = (11, 6, 8), (100.0, 60.0, 80.0)
    ds = paint_matter(particles, shape)
    position, velocity = particles["position"].values, particles["velocity"].values
    mean = len(position) / np.prod(shape)
    density = plain_cic(position, np.ones(len(position)), shape, sides) / mean
    momentum = np.stack([plain_cic(position, v, shape, sides) for v in velocity.T]) / mean
    np.testing.assert_allclose(ds["density"], density, rtol=1e-5)
    np.testing.assert_allclose(ds["momentum"], momentum, rtol=1e-5, atol=2e-3)
    np.testing.assert_allclose(ds["velocity"], momentum / density, rtol=1e-5, atol=5e-3)
    assert ds["velocity"].attrs["empty_cells"] == 0
    assert float(ds["density"].mean(dtype=np.float64)) == pytest.approx(1, abs=1e-6)


def test_matter_labels(particles):
    ds = paint_matter(particles, [10, 6, 8])
    assert ds["density"].dims == AXES
    assert ds["velocity"].dims == ds["momentum"].dims == ("component", *AXES)
    assert [ds[name].attrs["units"] for name in ds] == ["1", "km/s", "km/s"]
    assert all(ds[name].dtype == np.float32 for name in ds)
    assert ds.attrs["box_size"] == [100.0, 60.0, 80.0]
    assert ds["density"].attrs["space"] == "real"
    assert ds.attrs["history"].endswith("paint_matter: n_grid=[10, 6, 8]")


def test_momentum_is_density_times_velocity(particles):
    ds = paint_matter(particles, 8)
    product = ds["velocity"] * ds["density"]
    np.testing.assert_allclose(ds["momentum"], product, rtol=1e-5, atol=1e-3)


def test_mean_momentum_is_the_mean_velocity(particles):
    ds = paint_matter(particles, 8)
    np.testing.assert_allclose(
        ds["momentum"].mean(list(AXES), dtype=np.float64),
        particles["velocity"].mean("particle", dtype=np.float64),
        atol=1e-3,
    )


def test_a_uniform_flow_has_one_velocity(particles):
    flow = xr.zeros_like(particles["velocity"]) + np.float32([300, -200, 50])
    ds = paint_matter(particles.assign(velocity=flow), 9)
    for v, expected in zip(ds["velocity"], (300, -200, 50), strict=True):
        np.testing.assert_allclose(v, expected, rtol=1e-5)


def test_masses_weigh(particles, plain_cic):
    n = particles.sizes["particle"]
    mass = np.where(np.arange(n) % 2, 3e10, 1e10).astype(np.float32)
    ds = paint_matter(particles.assign(mass=("particle", mass)), 6)
    position = particles["position"].values
    expected = plain_cic(position, mass, (6,) * 3, (100.0, 60.0, 80.0))
    np.testing.assert_allclose(ds["density"], expected / expected.mean(), rtol=1e-5)
    vx = plain_cic(position, mass * particles["velocity"].values[:, 0], (6,) * 3, (100, 60, 80))
    np.testing.assert_allclose(ds["velocity"][0], vx / expected, rtol=1e-4, atol=1e-2)
    equal = paint_matter(particles.assign(mass=("particle", np.full(n, 6e10))), 6)
    np.testing.assert_allclose(equal["density"], paint_matter(particles, 6)["density"], rtol=1e-5)


def lonely(cosmology, position, velocity, **box):
    return from_arrays(
        position, velocity, **{"box_size": 80.0, "redshift": 0, "cosmology": cosmology, **box}
    )


def test_empty_cells_take_the_velocity_of_the_nearest(cosmology):
    # On nodes 1 and 6 of 8 along x: each fills one cell.
    two = lonely(cosmology, [[10, 20, 20], [60, 20, 20]], [[100, 0, 5], [-300, 0, 7]])
    ds = paint_matter(two, 8)
    assert ds["velocity"].attrs["empty_cells"] == 8**3 - 2
    assert np.count_nonzero(ds["density"]) == 2
    assert np.isfinite(ds["velocity"]).all()
    vx = ds["velocity"].sel(component="x")
    # Node 7 is nearer to 6; node 0 to 1; and so all over the plane, also across the boundary.
    np.testing.assert_array_equal(vx[[0, 1, 2, 3]], 100)
    np.testing.assert_array_equal(vx[[4, 5, 6, 7]], -300)
    assert (ds["momentum"].where(ds["density"] == 0, 0) == 0).all()


def test_the_nearest_is_nearest_across_the_boundary(cosmology):
    two = lonely(cosmology, [[0, 0, 0], [30, 0, 0]], [[100, 0, 0], [-300, 0, 0]])
    vx = paint_matter(two, 8)["velocity"][0]
    assert float(vx[7, 0, 0]) == 100
    assert float(vx[6, 0, 0]) == 100
    assert float(vx[5, 7, 7]) == -300


def test_the_nearest_is_measured_in_lengths_not_in_cells(cosmology):
    # Cells of 10 by 40 Mpc/h: one cell along y is farther than three along x.
    two = lonely(
        cosmology,
        [[40, 40, 0], [10, 80, 0]],
        [[1, 0, 0], [2, 0, 0]],
        box_size=[80.0, 320.0, 80.0],
    )
    vx = paint_matter(two, 8)["velocity"][0]
    assert float(vx[1, 1, 0]) == 1  # 30 Mpc/h along x, against 40 along y
    assert float(vx[0, 2, 0]) == 2


def test_no_warning_and_no_nan_with_few_particles(cosmology):
    rng = np.random.default_rng(0)
    few = lonely(cosmology, rng.uniform(0, 80, (20, 3)), rng.normal(0, 300, (20, 3)))
    ds = paint_matter(few, 16)
    held = ds["density"].values > 0
    assert ds["velocity"].attrs["empty_cells"] == (~held).sum() > 0
    assert np.isfinite(ds["velocity"]).all()
    # Every velocity is a mean of the particles', to the rounding of products, sums and ratio.
    assert ds["velocity"].max() <= few["velocity"].max() * (1 + 5e-7)


def test_a_velocity_reaches_eight_cells(cosmology):
    two = lonely(cosmology, [[0, 0, 0], [0, 0, 0]], [[100, 0, 0], [100, 0, 0]])
    vx = paint_matter(two, 32)["velocity"][0]
    distance = np.minimum(np.arange(32), 32 - np.arange(32)) ** 2
    near = distance[:, None, None] + distance[:, None] + distance <= 8**2
    np.testing.assert_array_equal(vx, np.where(near, 100, 0))


def test_of_equally_near_nodes_the_first_counts(cosmology):
    # Two nodes apart along x and along z.
    two = lonely(
        cosmology, [[20, 0, 0], [40, 0, 0], [40, 0, 20]], [[1, 0, 0], [2, 0, 0], [3, 0, 0]]
    )
    vx = paint_matter(two, 8)["velocity"][0]
    assert float(vx[3, 0, 0]) == 1
    assert float(vx[4, 0, 1]) == 2


# --- symmetries ---


@given(shift=st.tuples(*[st.integers(0, 12)] * 3))
def test_shifted_particles_give_a_shifted_field(particles, shift):
    part = particles.isel(particle=slice(2000))
    cells = np.array([10.0, 6.0, 8.0])
    position = (part["position"] + np.float32(np.array(shift) * cells)) % np.float32(cells * 10)
    moved = paint_matter(part.assign(position=position), 10)
    still = paint_matter(part, 10)
    roll = dict(zip(AXES, shift, strict=True))
    for name in ("density", "momentum"):
        np.testing.assert_allclose(moved[name], still[name].roll(roll), atol=0.03)


# --- laziness ---


def lazily(catalog, dim, *, but=()):
    return catalog.assign(
        {name: catalog[name].chunk({dim: 700}) for name in catalog.data_vars if name not in but}
    )


@pytest.mark.parametrize("weighting", ["mass", "bin", "number"])
def test_lazy_halos(tracers, weighting, count_computes, no_computes):
    lazy = lazily(tracers, "halo", but=("mass", "mass_bin"))
    with no_computes():
        ds = paint(lazy, 16, weighting=weighting)
    assert isinstance(ds["halo_density"].data, da.Array)
    assert ds["halo_density"].data.chunksize == (1, 16, 16, 16)
    with count_computes() as computes:
        computed = ds.compute()
    assert computes.total == 1
    eager = paint(tracers, 16, weighting=weighting)
    for obj in (computed, eager):
        del obj.attrs["history"]
    xr.testing.assert_identical(computed, eager)


def test_lazy_matter(particles, count_computes, no_computes):
    lazy = lazily(particles, "particle")
    with no_computes():
        ds = paint_matter(lazy, 8)
    assert all(isinstance(ds[name].data, da.Array) for name in ds)
    assert "empty_cells" not in ds["velocity"].attrs
    with count_computes() as computes:
        computed = ds.compute()
    assert computes.total == 1
    for name, eager in paint_matter(particles, 8).items():
        np.testing.assert_array_equal(computed[name], eager)


def test_any_order_of_dims(tracers):
    turned = tracers.transpose("component", "halo")
    np.testing.assert_array_equal(
        paint(turned, 8)["halo_density"], paint(tracers, 8)["halo_density"]
    )
    np.testing.assert_array_equal(
        paint_matter(turned, 8)["momentum"], paint_matter(tracers, 8)["momentum"]
    )
