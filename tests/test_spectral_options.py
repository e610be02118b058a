"""The window taken out, shot noise, tapered boxes; abacusutils on a painted catalogue."""

import dask
import numpy as np
import pytest
import xarray as xr

from cosmofields.catalog import from_arrays, select
from cosmofields.conventions import (
    AXES,
    COMPONENTS,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    NotPeriodicError,
    make_grid,
)
from cosmofields.linear import halo_overdensity
from cosmofields.painting import paint
from cosmofields.spectral import multipoles, power_spectrum, spectra, wedges
from cosmofields.store import open_store, write_store

ELLS = (0, 2, 4)
LENGTHS = (90.0, 60.0, 75.0)
COSMOLOGY = {"Omega_m": 0.3, "h": 0.7}
# Pencils of a few planes.
SMALL = {"cosmofields.memory": 10_000}


def field(data, box=100.0, **attrs):
    """Label an array: scalar (x, y, z) or vector (component, x, y, z)."""
    data = np.asarray(data, dtype=np.float32)
    grid = make_grid(data.shape[-3:], np.broadcast_to(box, 3))
    dims = ("component", *AXES)[-data.ndim :]
    coords = dict(grid.coords()) | ({"component": COMPONENTS} if data.ndim == 4 else {})
    attrs = {"box_size": box if np.isscalar(box) else list(box), "los": "z", **attrs}
    return xr.DataArray(data, dims=dims, coords=coords, name="density", attrs=attrs)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def cut(parent, n):
    """All cubes of ``n`` cells a side, as boxes that are not periodic."""
    side = n * 100.0 / parent.sizes["x"]
    for i, j, k in np.ndindex(*(size // n for size in parent.shape)):
        box = {axis: slice(n * at, n * (at + 1)) for axis, at in zip(AXES, (i, j, k), strict=True)}
        yield parent.isel(box).assign_attrs(box_size=side, periodic=False)


# --- window ---


def through_window(values, window):
    """A field as cloud-in-cell would have it, and (``"cic-aliased"``) white noise."""
    modes = np.fft.fftn(values)
    for axis, n in enumerate(values.shape):
        phase = np.pi * np.fft.fftfreq(n)
        if window == "cic":
            along = np.where(phase == 0, 1, np.sin(phase) / np.where(phase == 0, 1, phase)) ** 2
        else:
            along = np.sqrt(1 - 2 / 3 * np.sin(phase) ** 2)
        modes *= along.reshape([-1 if i == axis else 1 for i in range(3)])
    return np.fft.ifftn(modes).real


@pytest.mark.parametrize("window", ["cic", "cic-aliased"])
@pytest.mark.parametrize("shape", [(12, 10, 9), (7, 8, 12)])
def test_window_is_taken_out_of_every_mode(window, shape):
    raw = [noise(*shape, seed=seed) for seed in (0, 1)]
    a, b = (field(values, LENGTHS) for values in raw)
    p, t = (field(through_window(values, window), LENGTHS) for values in raw)
    edges = np.linspace(0.05, 0.5, 6)
    near = {"rtol": 1e-5, "atol": 1e-5 * float(power_spectrum(a).power.max())}
    for statistic in (power_spectrum, multipoles, wedges):
        expected, got = statistic(a, b, edges=edges), statistic(p, t, edges=edges, window=window)
        xr.testing.assert_allclose(got.power, expected.power, **near)
        for name in set(expected) - {"power"}:
            xr.testing.assert_identical(got[name], expected[name])
        assert (got.attrs["window"], "window" in expected.attrs) == (window, False)
    expected = spectra(a, b, edges=edges, ells=ELLS)
    got = spectra(p, t, edges=edges, ells=ELLS, window=window)
    for name in expected:
        if name.startswith(("power", "multipoles")):
            xr.testing.assert_allclose(got[name], expected[name], **near)


def test_aliased_window_flattens_the_power_of_points():
    n, count, box = 24, 40_000, 100.0
    position = np.random.default_rng(3).uniform(0, box, (count, 3))
    catalog = from_arrays(position, 0 * position, box_size=box, redshift=0.0, cosmology=COSMOLOGY)
    delta = halo_overdensity(paint(catalog, n, weighting="number"))
    assert float(delta.shot_noise) == pytest.approx(box**3 / count)
    got = power_spectrum(delta, window="cic-aliased")
    pull = (got.power / got.shot_noise - 1) * np.sqrt(got.modes / 2)
    assert abs(pull).max() < 4
    bare = power_spectrum(delta)
    assert bare.power[-1] < 0.5 * bare.shot_noise


@pytest.mark.parametrize("window", ["tsc", "CIC", 2, True])
def test_other_windows(window):
    with pytest.raises(CosmofieldsError, match="expected None, 'cic' or 'cic-aliased'"):
        power_spectrum(field(noise(8, 8, 8)), window=window)


# --- shot noise ---


def test_shot_noise_of_all_halos_and_of_one_bin(tracers, observed):
    mass = tracers["mass"].values.astype(np.float64)
    delta = halo_overdensity(observed)
    assert delta.shot_noise.shape == ()
    assert float(delta.shot_noise) == pytest.approx(100.0**3 * (mass**2).sum() / mass.sum() ** 2)
    for statistic in (power_spectrum, multipoles, wedges):
        found = statistic(delta)["shot_noise"]
        assert float(found) == pytest.approx(float(delta.shot_noise))
        assert found.attrs["units"] == "(Mpc/h)^3"
        assert "shot_noise" not in statistic(delta, delta.drop_vars("shot_noise"))
        assert "shot_noise" not in statistic(delta.drop_vars("shot_noise"))
    # The field of a bin is its share of 1 + delta, and so is its noise.
    bins = [power_spectrum(observed.halo_density.isel(mass_bin=i)).shot_noise for i in range(4)]
    assert sum(map(float, bins)) == pytest.approx(float(delta.shot_noise))
    lazy = halo_overdensity(observed.chunk())
    assert float(power_spectrum(lazy).shot_noise) == pytest.approx(float(delta.shot_noise))


def test_shot_noise_follows_what_is_done_to_a_field(cosmology):
    """The measured power of points over the noise that is stated: of three bins of other masses."""
    rng = np.random.default_rng(0)
    box, n = 100.0, 8000
    position, mass = rng.uniform(0, box, (n, 3)), 1e12 * rng.uniform(1, 30, n)
    catalog = from_arrays(
        position, 0 * position, mass, box_size=box, redshift=0.0, cosmology=cosmology
    )
    bins = paint(select(catalog, [2e-3, 5e-3, 8e-3]), 24)
    one, delta = bins.halo_density.isel(mass_bin=2), halo_overdensity(bins)
    rare = halo_overdensity(bins.isel(mass_bin=[0, 1]))
    assert float(one.share) < 0.2
    assert float(rare.mean()) == pytest.approx(0, abs=1e-5)
    changed = {
        "bin": one,
        "twice": 2 * one,
        "over share": one / one.share,
        "over mean": one / one.mean(),
        "contrast": one / one.mean() - 1,
        "chunks": (one / one.mean() - 1).chunk(x=5),
        "delta": delta,
        "density": delta + 1,
        "two bins": rare,
    }
    for name, given in changed.items():
        found = power_spectrum(given, window="cic-aliased")
        ratio = float(found.power.weighted(found.modes).mean() / found.shot_noise)
        assert ratio == pytest.approx(1, abs=4 * float(2 / found.modes.sum()) ** 0.5), name
        contrast = "of a contrast" in found.shot_noise.attrs["long_name"]
        assert contrast is (name in ("contrast", "chunks", "delta", "two bins")), name
    for given in (bins.halo_density.sum("mass_bin"), one * field(noise(3, 24, 24, 24))):
        assert "shot_noise" not in power_spectrum(given.assign_attrs(box_size=box))


def test_shot_noise_in_one_compute_also_out_of_core(observed, count_computes):
    one = observed.halo_density.isel(mass_bin=1)
    expected = power_spectrum(3 * one).shot_noise
    with dask.config.set(SMALL), count_computes() as computes:
        got = power_spectrum((3 * one).chunk({"x": 5, "y": 7})).shot_noise
    assert computes.total == 1
    xr.testing.assert_allclose(got, expected, rtol=1e-5)


def test_shot_noise_of_a_part_of_a_box(observed):
    delta = halo_overdensity(observed)
    half = {"box_size": [50.0, 100.0, 100.0], "periodic": False}
    part = delta.isel(x=slice(8)).assign_attrs(half)
    assert abs(float(part.mean())) > 1e-3
    found = power_spectrum(part, taper=0.35).shot_noise
    assert float(found) == pytest.approx(float(delta.shot_noise))
    part = observed.halo_density.isel(mass_bin=0, x=slice(8)).assign_attrs(half)
    assert "shot_noise" not in power_spectrum(part, taper=0.35)


def test_halo_overdensity_without_the_noise_of_its_bins(observed):
    bare = observed.assign(halo_density=observed.halo_density.drop_vars("shot_noise"))
    bare = bare.drop_vars("shot_noise", errors="ignore")
    assert "shot_noise" not in halo_overdensity(bare).coords
    np.testing.assert_array_equal(halo_overdensity(bare), halo_overdensity(observed))


# --- taper ---


@pytest.mark.parametrize(("steepness", "near", "leak"), [(4, 0.06, 1.4), (6, 0.35, 20)])
def test_steep_spectrum_of_sub_boxes_comes_back(steepness, near, leak):
    """As of a velocity: it leaks from the faces of boxes cut out of a periodic one."""
    n, fundamental = 96, 2 * np.pi / 100
    k = fundamental * np.fft.fftfreq(n, 1 / n)
    k = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    modes = np.fft.fftn(noise(n, n, n)) / np.sqrt(1 + (k / 0.1) ** steepness)
    parent = field(np.fft.ifftn(modes).real)
    edges = 3 * fundamental * np.arange(5.5, 17)  # from the sixth mode of a part
    truth = power_spectrum(parent, edges=edges).power
    expected = (100.0 / n) ** 3 / (1 + (truth.k / 0.1) ** steepness)
    assert abs(truth / expected - 1).max() < 0.25
    boxes = list(cut(parent, 32))
    tapered = sum(power_spectrum(box, edges=edges, taper=0.5).power for box in boxes) / len(boxes)
    bare = sum(power_spectrum(box.assign_attrs(periodic=True), edges=edges).power for box in boxes)
    assert abs(tapered / truth - 1).max() < near
    assert (bare / len(boxes) / truth).min() > leak


@pytest.mark.parametrize(("taper", "share"), [(0.2, 0.72), (0.5, 0.41)])
def test_tapered_noise_keeps_its_power_and_varies_as_documented(taper, share):
    wide = 2 * np.pi / 100 * np.array([2.5, 20])  # to the last mode
    draws = noise(600, 16, 16, 16)
    runs = xr.concat([power_spectrum(field(x), edges=wide, taper=taper) for x in draws], "run")
    relative = runs.power / (100.0 / 16) ** 3
    assert float(relative.mean()) == pytest.approx(1, abs=0.005)
    spread = float(relative.var()) * int(runs.modes[0, 0]) / 2
    assert spread == pytest.approx(1 / share, rel=0.12)


def test_mean_under_the_taper_does_not_leak():
    a = field(noise(12, 10, 9), LENGTHS, periodic=False)
    expected = power_spectrum(a, taper=0.3)
    xr.testing.assert_allclose(power_spectrum(a + 300, taper=0.3), expected, rtol=1e-3)
    flat = power_spectrum(a * 0 + 300, taper=0.3)
    assert (flat.power < 1e-9 * expected.power).all()


@pytest.mark.parametrize("chunks", [{"x": 5, "y": -1, "z": 7}, {"x": 3, "y": 4, "z": -1}])
@pytest.mark.parametrize("vector", [False, True])
def test_taper_is_the_same_from_chunks(chunks, vector, count_computes):
    shape = (3, 12, 10, 9) if vector else (12, 10, 9)
    p, t = (field(5 + noise(*shape, seed=seed), LENGTHS, periodic=False) for seed in (1, 2))
    options = {"ells": ELLS, "taper": 0.4, "window": "cic"}
    expected = spectra(p, t, **options)
    assert (abs(expected.correlation) < 0.9).all()
    with count_computes() as computes:
        got = spectra(p.chunk(chunks), t.chunk(chunks), **options)
    assert computes.total == 1
    xr.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * float(expected.power_true[0]))
    with dask.config.set(SMALL), count_computes() as computes:
        got = spectra(p.chunk(chunks), t, **options)
    assert computes.total == 2  # the means, then the modes
    xr.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * float(expected.power_true[0]))


def test_taper_of_equal_fields_and_of_components():
    v = field(noise(3, 12, 10, 9), LENGTHS, periodic=False)
    np.testing.assert_allclose(spectra(2 * v, v, taper=0.2).correlation, 1, rtol=1e-6)
    total = sum(power_spectrum(v.sel(component=c, drop=True), taper=0.2).power for c in "xyz")
    got = power_spectrum(v, taper=0.2)
    xr.testing.assert_allclose(got.power, total, rtol=1e-10)
    assert got.attrs["taper"] == 0.2
    assert got.attrs["periodic"] == 0


def test_boxes_that_are_not_periodic_are_told_of_the_taper():
    a = field(noise(8, 8, 8), periodic=False)
    for call in (power_spectrum, multipoles, wedges, lambda f: spectra(f, f)):
        with pytest.raises(NotPeriodicError, match=r"attrs\['periodic'\] is False.*taper=0\.35"):
            call(a)
    with pytest.raises(NotPeriodicError, match="8 nodes spanning 100"):
        power_spectrum(a.assign_attrs(box_size=200.0), taper=0.2)


@pytest.mark.parametrize("taper", [0, -0.1, 1.5, np.nan, True, "0.2"])
def test_tapers_that_are_none(taper):
    with pytest.raises(CosmofieldsError, match="expected a fraction above 0, up to 1, e.g. 0.35"):
        power_spectrum(field(noise(8, 8, 8)), taper=taper)


@pytest.mark.parametrize("ells", [2, "02", (), (0, 3), (0, 0)])
def test_other_ells(ells):
    with pytest.raises(DimensionError, match=r"expected some of 0, 2 and 4, each once"):
        multipoles(field(noise(8, 8, 8)), ells=ells)


def test_edges_and_fields_that_are_no_numbers():
    a = field(noise(8, 8, 8))
    with pytest.raises(DimensionError, match="edges='abc'; expected increasing wavenumbers"):
        power_spectrum(a, edges="abc")
    with pytest.raises(DimensionError, match="mu_edges='abc'; expected increasing values"):
        wedges(a, mu_edges="abc")
    for given in (a + 0j, a.astype(object)):
        with pytest.raises(DimensionError, match="`density` holds .*; expected real numbers"):
            power_spectrum(given)


def test_two_lines_of_sight_are_a_question():
    a, b = (field(noise(8, 8, 8, seed=seed), los=los) for seed, los in enumerate("xz"))
    for statistic in (multipoles, wedges, lambda a, b, **o: spectra(a, b, ells=ELLS, **o)):
        with pytest.raises(GridMismatchError, match=r"lines of sight, .* and .*: los='"):
            statistic(a, b)
        expected = statistic(a.assign_attrs(los="y"), b.assign_attrs(los="y"))
        xr.testing.assert_identical(statistic(a, b, los="y"), expected)
        bare = a.drop_attrs().assign_attrs(box_size=100.0)
        assert statistic(bare, b).attrs["los"] == "z"
    power_spectrum(a, b)
    spectra(a, b)


def test_a_large_mean_costs_what_is_documented():
    values = noise(32, 32, 32)
    expected = power_spectrum(field(values)).power
    for mean, error in ((100, 3e-5), (1e4, 0.01)):
        got = power_spectrum(field(values).astype(float) * 0 + values + mean).power
        assert abs(got / expected - 1).max() < error


def test_fields_without_a_name_have_a_title():
    bare = field(noise(8, 8, 8)).rename(None)
    for result in (power_spectrum(bare), power_spectrum(bare, bare), spectra(bare, bare)):
        titles = [value.attrs["long_name"] for value in result.values()]
        assert not [title for title in titles if "None" in title]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_under_a_taper(bad):
    broken = field(noise(8, 8, 8), periodic=False)
    broken[3, 2, 1] = bad
    for given in (broken, broken.chunk({"x": 3})):
        with pytest.raises(CosmofieldsError, match="NaN or infinity"):
            power_spectrum(given, taper=0.2)


# --- kept ---


@pytest.mark.parametrize("statistic", [power_spectrum, wedges, lambda f: spectra(f, f, ells=ELLS)])
def test_results_come_back_from_a_store(observed, statistic, tmp_path):
    delta = halo_overdensity(observed)
    result = statistic(delta)
    if statistic is wedges:
        result = wedges(delta, window="cic", taper=0.3)
    write_store(result, tmp_path / "spectra.zarr")
    with open_store(tmp_path / "spectra.zarr") as found:
        for name, variable in result.variables.items():
            assert found[name].dtype == variable.dtype
            xr.testing.assert_identical(found[name].variable.load(), variable)
        assert {key: found.attrs[key] for key in result.attrs} == result.attrs


# --- abacusutils ---


@pytest.mark.slow  # abacusutils compiles
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.filterwarnings("ignore:Note that currently CIC pasting:UserWarning")
def test_painted_catalogue_agrees_with_abacusutils(halos, interlaced, compensated):
    abacus = pytest.importorskip("abacusnbody.analysis.power_spectrum")
    n, box = 24, 100.0
    # Off the lattice, for theirs closes bins above; below Nyquist, whose plane theirs counts twice.
    edges = 2 * np.pi / box * (np.arange(1, 13) - 0.013)
    mu_edges = np.array([0.0, 0.23, 0.47, 0.71, 1.0])
    theirs = abacus.calc_power(
        halos["position"].values,
        box,
        kbins=edges,
        mubins=mu_edges,
        poles=list(ELLS),
        paste="CIC",
        nmesh=n,
        compensated=compensated,
        interlaced=interlaced,
        nthread=1,
    )
    # Compensated, theirs has the aliases in the window where the mesh has them.
    window = ("cic" if interlaced else "cic-aliased") if compensated else None
    delta = halo_overdensity(paint(halos, n, weighting="number", interlaced=interlaced))
    options = {"los": "z", "edges": edges, "window": window}
    ours = wedges(delta, mu_edges=mu_edges, **options)
    np.testing.assert_array_equal(ours.modes.T, theirs["N_mode"])
    power = power_spectrum(delta, edges=edges, window=window).power
    there = (ours.modes > 0).values.T
    scale = np.broadcast_to(power.values[:, None], there.shape)[there]
    difference = (ours.power.values.T - theirs["power"])[there]
    assert abs(difference / scale).max() < 1e-4
    np.testing.assert_allclose(ours.k_mean.values.T[there], theirs["k_avg"][there], rtol=1e-5)
    poles = multipoles(delta, ells=ELLS, **options).power.values.T
    assert abs((poles - theirs["poles"]) / power.values[:, None]).max() < 1e-4
