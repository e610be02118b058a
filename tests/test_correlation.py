"""Correlation functions against sums over all pairs of cells, closed forms and counts of pairs."""

import itertools

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.special import spherical_jn

from cosmofields import correlation, fourier
from cosmofields.catalog import from_arrays
from cosmofields.conventions import (
    AXES,
    COMPONENTS,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    MissingAttributeError,
    NotPeriodicError,
    make_grid,
)
from cosmofields.correlation import (
    correlation_2d,
    correlation_function,
    correlation_multipoles,
    correlations,
)
from cosmofields.linear import halo_overdensity
from cosmofields.painting import paint
from cosmofields.spectral import power_spectrum

distributed = pytest.importorskip("distributed")

BOXES = [
    ((6, 6, 6), (60.0, 60.0, 60.0)),
    ((7, 6, 5), (70.0, 66.0, 40.0)),
    ((5, 8, 7), (80.0, 64.0, 90.0)),
]
SMALL = {"cosmofields.memory": 20_000}  # strips and slabs of a few rows


def field(data, box=100.0, name="density", units="1", los="z"):
    """Label an array: scalar (x, y, z) or vector (component, x, y, z)."""
    data = np.asarray(data, dtype=np.float32)
    grid = make_grid(data.shape[-3:], np.broadcast_to(box, 3))
    dims = ("component", *AXES)[-data.ndim :]
    coords = dict(grid.coords()) | ({"component": COMPONENTS} if data.ndim == 4 else {})
    attrs = {"box_size": box if np.isscalar(box) else list(box), "units": units, "los": los}
    return xr.DataArray(data, dims=dims, coords=coords, name=name, attrs=attrs)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def offsets(shape, box):
    """Separation of each node from node 0, the shortest way: three arrays (x, y, z)."""
    axes = []
    for n, length in zip(shape, np.broadcast_to(box, 3), strict=True):
        index = np.arange(n)
        axes.append(np.where(index <= n // 2, index, index - n) * (length / n))
    return np.meshgrid(*axes, indexing="ij")


def lag_field(first, second):
    """<f(x) g(x + r)> - <f> <g> at each r, by as many sums as there are cells."""
    f, g = (
        part.values.astype(np.float64).reshape(-1, *part.shape[-3:]) for part in (first, second)
    )
    f, g = (part - part.mean(axis=(1, 2, 3), keepdims=True) for part in (f, g))
    lags = np.empty(f.shape[1:])
    for r in np.ndindex(lags.shape):
        shifted = np.roll(g, [-step for step in r], axis=(1, 2, 3))
        lags[r] = (f * shifted).sum(axis=0).mean()
    return lags


def shells_of(result, values, box, los=2):
    """Mean of ``values`` (x, y, z) times (2 l + 1) L_l(mu) over the nodes of each bin."""
    where = offsets(values.shape, box)
    r = np.sqrt(sum(part**2 for part in where))
    mu = where[los] / np.where(r > 0, r, 1)
    legendre = [np.polynomial.legendre.Legendre.basis(ell)(mu) for ell in (0, 2, 4)]
    for values_of_l in legendre[1:]:
        values_of_l[r == 0] = 0  # has no direction
    out = np.full((3, result.sizes["r"]), np.nan)
    for i, (low, high) in enumerate(result.r_bounds.values):
        inside = (r >= low - 1e-9) & (r < high - 1e-9)
        assert result.pairs[i] == inside.sum()
        for at, ell in enumerate((0, 2, 4)):
            out[at, i] = (2 * ell + 1) * (values * legendre[at])[inside].mean()
    return out


def plane_of(result, values, box, los=2):
    """Mean of ``values`` (x, y, z) over the nodes of each bin in (r_perp, |r_par|)."""
    where = offsets(values.shape, box)
    par = np.abs(where[los])
    perp = np.sqrt(sum(part**2 for axis, part in enumerate(where) if axis != los))
    bounds = result.r_perp_bounds.values, result.r_par_bounds.values
    out = np.full((len(bounds[0]), len(bounds[1])), np.nan)
    for i, j in np.ndindex(out.shape):
        (low, high), (near, far) = bounds[0][i], bounds[1][j]
        inside = (perp >= low - 1e-9) & (perp < high - 1e-9)
        inside &= (par >= near - 1e-9) & (par < far - 1e-9)
        if inside.any():
            out[i, j] = values[inside].mean()
    return out


# --- against all pairs of cells ---


@pytest.mark.parametrize("kind", ["auto", "cross", "vector", "vectors"])
@pytest.mark.parametrize("los", AXES)
@pytest.mark.parametrize(("shape", "box"), BOXES)
def test_all_pairs_of_cells(shape, box, los, kind):
    lead = (3,) if "vector" in kind else ()
    first = field(noise(*lead, *shape) + 3, box, los=los)
    second = first
    if kind in ("cross", "vectors"):
        # Shifted by a cell, so that xi(r) and xi(-r) differ.
        second = field(np.roll(first.values, 1, -1) + noise(*lead, *shape, seed=1), box, los=los)
    edges = np.linspace(0, min(box) / 2, 4)
    result = correlations(
        first, None if first is second else second, edges=edges, r_perp=edges, r_par=[0, 9, 20]
    )
    axis, lags = AXES.index(los), lag_field(first, second)
    scale = np.abs(lags).max()
    expected = shells_of(result, lags, box, axis)
    # A bin of r = 0 alone has no direction.
    np.testing.assert_allclose(result.xi, expected, rtol=0, atol=3e-7 * scale)
    np.testing.assert_allclose(
        result.xi_2d, plane_of(result, lags, box, axis), rtol=0, atol=3e-7 * scale
    )
    assert result.ell.values.tolist() == [0, 2, 4]


def test_each_function_is_a_part_of_the_whole():
    first, second = field(noise(12, 12, 12), los="x"), field(noise(12, 12, 12, seed=1), los="x")
    edges, r_perp, r_par = [0, 20, 30, 45], [5, 15, 30], [0, 10, 50]
    whole = correlations(first, second, edges=edges, r_perp=r_perp, r_par=r_par)
    poles = correlation_multipoles(first, second, edges=edges)
    xr.testing.assert_identical(poles.xi, whole.xi)
    assert poles.attrs == whole.attrs
    shells = correlation_function(first, second, edges=edges)
    xr.testing.assert_equal(shells.xi, whole.xi.sel(ell=0, drop=True))
    for name in ("pairs", "r_mean"):
        xr.testing.assert_identical(shells[name], whole[name])
    plane = correlation_2d(first, second, r_perp=r_perp, r_par=r_par)
    xr.testing.assert_identical(plane.xi, whole.xi_2d.rename("xi"))
    xr.testing.assert_identical(plane.pairs, whole.pairs_2d.rename("pairs"))
    chosen = correlation_multipoles(first, second, ells=[4, 0], edges=edges)
    xr.testing.assert_identical(chosen.xi, whole.xi.sel(ell=[4, 0]))
    # The line of sight is the field's, unless it is given.
    other = correlations(first, second, edges=edges, r_perp=r_perp, r_par=r_par, los="y")
    assert other.attrs["los"] == "y"
    xr.testing.assert_identical(other.xi.sel(ell=0), whole.xi.sel(ell=0))
    assert not np.allclose(other.xi.sel(ell=2), whole.xi.sel(ell=2))


def test_sum_of_the_power_over_waves():
    """xi at one separation = sum over k of P(k) cos(k.r) / V; at r = 0, the variance."""
    shape, box = (9, 8, 10), (90.0, 80.0, 120.0)
    first = field(noise(*shape) + 2, box)
    k = np.meshgrid(
        *[2 * np.pi * np.fft.fftfreq(n, side / n) for n, side in zip(shape, box, strict=True)],
        indexing="ij",
    )
    power = np.abs(np.fft.fftn(first.values.astype(np.float64))) ** 2 / np.prod(shape) ** 2
    power[0, 0, 0] = 0
    along = correlation_2d(first, r_perp=[0, 5], r_par=[0, 6, 18, 30, 42, 54])
    expected = [(power * np.cos(k[2] * r)).sum() for r in 12.0 * np.arange(5)]
    np.testing.assert_allclose(along.xi[0], expected, atol=1e-6)
    assert along.pairs.values.tolist() == [[1, 2, 2, 2, 2]]
    assert float(along.xi[0, 0]) == pytest.approx(first.values.var(dtype=np.float64), rel=1e-5)
    spectrum = power_spectrum(first, edges=[0, 10.0])
    total = (spectrum.power * spectrum.modes).item() / np.prod(box)
    assert float(along.xi[0, 0]) == pytest.approx(total, rel=1e-5)


# --- against closed forms ---


def test_plane_wave():
    n, box, amplitude, wave = 48, 96.0, 0.7, 3
    k = 2 * np.pi * wave / box
    x = np.arange(n) * (box / n)
    data = np.broadcast_to(amplitude * np.cos(k * x + 0.4), (n, n, n))
    result = correlations(
        field(data, box),
        edges=np.arange(16, 49, 4.0),
        r_perp=[1, 20, 48],
        r_par=np.arange(-1, 48, 2.0).clip(0),
    )
    half = amplitude**2 / 2
    for ring in result.xi_2d.values:
        np.testing.assert_allclose(ring, half * np.cos(k * x[: n // 2]), atol=1e-6)
    # cos(k r mu) = sum over l of (2 l + 1) i^l j_l(k r) L_l(mu); of a lattice, <xi L_l> in a shell
    # is good to a part in a hundred of the wave.
    r = np.sqrt(sum(part**2 for part in offsets((n, n, n), box)))
    for ell, sign in ((0, 1), (2, -1), (4, 1)):
        mean = shells_of(result, half * sign * spherical_jn(ell, k * r), box)[0]
        got = result.xi.sel(ell=ell) / (2 * ell + 1)
        np.testing.assert_allclose(got, mean, rtol=0, atol=0.01 * half)


@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_smoothed_noise(stretch):
    """White noise under a Gaussian of width R has xi = s^2 h^3 exp(-r^2 / 4 R^2) / (4 pi R^2)^1.5.

    Stretched along the line of sight, its contours are; 24 boxes, against their own scatter.
    """
    n, box, radius, los = 24, 72.0, 4.0, 1
    widths = np.array([radius, stretch * radius, radius])
    k = np.meshgrid(*[2 * np.pi * np.fft.fftfreq(n, box / n)] * 3, indexing="ij")
    kernel = np.exp(-sum((part * width) ** 2 for part, width in zip(k, widths, strict=True)) / 2)
    measured = []
    for seed in range(24):
        data = np.fft.ifftn(np.fft.fftn(noise(n, n, n, seed=seed)) * kernel).real
        measured.append(correlations(field(data, box, los="y")))
    result = xr.concat([part[["xi", "xi_2d"]] for part in measured], "box", join="exact")
    where = offsets((n, n, n), box)
    shape = np.exp(-sum((x / w) ** 2 for x, w in zip(where, widths, strict=True)) / 4)
    white = (box / n) ** 3
    # The mean of each box is taken out, and with it the wave k = 0.
    lags = white * shape / np.prod(np.sqrt(4 * np.pi) * widths) - white / box**3
    for name, expected in (
        ("xi", shells_of(measured[0], lags, box, los)),
        ("xi_2d", plane_of(measured[0], lags, box, los)),
    ):
        values = result[name]
        error = values.std("box", ddof=1) / np.sqrt(len(measured))
        pull = (values.mean("box") - expected) / error
        assert float((pull**2).mean()) < 2
        assert abs(pull).max() < 4
    quadrupole = result.xi.sel(ell=2).isel(r=1)
    if stretch > 1:
        assert quadrupole.mean() > 10 * quadrupole.std() / np.sqrt(len(measured))


# --- the window of the mass assignment ---


def cic_power(shape):
    factors = [np.sinc(np.fft.fftfreq(n)) ** 2 for n in shape]
    return factors[0][:, None, None] * factors[1][None, :, None] * factors[2]


def test_cic_window_drops_out_of_both_fields():
    shape, box = (9, 8, 10), (90.0, 80.0, 120.0)
    fields = [field(noise(*shape, seed=seed), box) for seed in (0, 1)]
    fields[1] = fields[1] + 0.5 * fields[0].values
    seen = [
        part.copy(data=np.fft.ifftn(np.fft.fftn(part.values) * cic_power(shape)).real)
        for part in fields
    ]
    edges = [0, 15, 30, 40]
    for pair in (slice(0, 1), slice(0, 2)):
        got = correlations(*seen[pair], edges=edges, window="cic")
        expected = correlations(*fields[pair], edges=edges)
        np.testing.assert_allclose(got.xi, expected.xi, rtol=0, atol=1e-5)
        np.testing.assert_allclose(got.xi_2d, expected.xi_2d, rtol=0, atol=1e-5)
        assert got.attrs["window"] == "cic"
        assert "window" not in expected.attrs


def test_shot_noise_sits_at_zero_and_cic_spreads_it():
    """Of n random points, xi = V_cell / (V / n) at r = 0 alone once the window is out."""
    n, cells, box = 40_000, 16, 100.0
    points = np.random.default_rng(0).uniform(0, box, (n, 3))
    first = counted(points, box, cells)
    shot = cells**3 / n
    options = {"r_perp": [0, 1], "r_par": [0, 1, 8, 15], "los": "z"}  # r = 0, one cell, two cells
    near = correlation_2d(first, **options).xi[0] / shot
    np.testing.assert_allclose(near, np.array([2 / 3, 1 / 6, 0]) * (2 / 3) ** 2, atol=0.05)
    near = correlation_2d(first, window="cic-aliased", **options).xi[0] / shot
    np.testing.assert_allclose(near, [1, 0, 0], atol=0.05)


# --- counts of pairs ---


def counted(points, box, cells):
    """Overdensity of points that count 1 each, painted by cloud in cell."""
    facts = {"Omega_m": 0.268, "h": 0.71}
    rest = np.zeros(points.shape), np.full(len(points), 1e13)
    catalog = from_arrays(points, *rest, box_size=box, redshift=0.59, cosmology=facts)
    return halo_overdensity(paint(catalog, cells, weighting="number"))


def test_counts_of_pairs():
    """DD / RR - 1 of the points themselves: the mesh adds less than the pairs' Poisson noise."""
    rng = np.random.default_rng(1)
    n, box, los = 5000, 100.0, 2
    centres = rng.uniform(0, box, (500, 3))
    # Clusters that are long along the line of sight, as fingers of god are.
    points = (centres[rng.integers(0, 500, n)] + rng.normal(0, [3, 3, 6], (n, 3))) % box
    cell = box / 64
    edges, r_perp = cell * np.arange(3.5, 20, 2), cell * np.arange(3.5, 15, 2)
    r_par = cell * np.array([0.0, 2.5, 5.5, 8.5, 11.5])
    result = correlations(
        counted(points, box, 64),
        edges=edges,
        r_perp=r_perp,
        r_par=r_par,
        los="z",
        window="cic-aliased",
    )
    tree = cKDTree(points, boxsize=box)
    first, second = tree.query_pairs(36.0, output_type="ndarray").T
    apart = np.abs(points[first] - points[second])
    apart = np.minimum(apart, box - apart)
    r = np.sqrt((apart**2).sum(axis=1))
    par, perp = apart[:, los], np.hypot(apart[:, 0], apart[:, 1])
    density = n * (n - 1) / 2 / box**3
    rr = density * 4 / 3 * np.pi * np.diff(edges**3)
    rr_2d = density * np.pi * np.outer(np.diff(r_perp**2), 2 * np.diff(r_par))
    counts = np.diff(tree.count_neighbors(tree, edges)) / 2
    measured = {"xi_2d": (np.histogram2d(perp, par, [r_perp, r_par])[0], 0.0, rr_2d)}
    for ell in (0, 2, 4):
        weight = (2 * ell + 1) * np.polynomial.legendre.Legendre.basis(ell)(par / r)
        total, square = (np.histogram(r, edges, weights=weight**power)[0] for power in (1, 2))
        measured[ell] = (total, np.sqrt(square), rr)
    np.testing.assert_array_equal(measured[0][0].round(), counts)
    for name, (total, error, expected) in measured.items():
        mesh = result.xi_2d if name == "xi_2d" else result.xi.sel(ell=name)
        error = np.sqrt(total) if name == "xi_2d" else error
        mean = 0 if name in (2, 4) else 1
        pull = (mesh.values - (total / expected - mean)) * expected / error
        # The same points, so no chance but that of the mesh is in it.
        assert (pull**2).mean() < 1
        assert abs(pull).max() < 3
        assert np.abs((total - mean * expected) / error).max() > 8  # there is a signal


# --- whatever way the field comes ---


@given(st.data())
def test_chunks_axis_order_and_memory_do_not_matter(data):
    shape, box = data.draw(st.sampled_from(BOXES))
    lead = data.draw(st.sampled_from([(), (3,)]))
    first, second = (field(noise(*lead, *shape, seed=seed), box) for seed in (0, 1))
    cross = data.draw(st.booleans())
    edges = {"edges": [0, 12, 20], "r_perp": [0, 9, 20], "r_par": [0, 20]}
    expected = correlations(first, second if cross else None, **edges)
    order = data.draw(st.permutations(first.dims))
    chunks = {axis: data.draw(st.integers(1, 8)) for axis in AXES}
    lazy = [part.transpose(*order).chunk(chunks) for part in (first, second)]
    budget = data.draw(st.sampled_from(["20 kB", "1 GB"]))
    with dask.config.set({"cosmofields.memory": budget}):
        got = correlations(lazy[0], lazy[1] if cross else None, **edges)
    assert got.attrs == expected.attrs
    for name in expected.data_vars:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-6 * len(first))


@given(st.tuples(*[st.integers(-20, 20)] * 3), st.floats(-5, 5), st.floats(0.1, 3))
def test_where_the_box_begins_its_mean_and_its_scale(shift, mean, scale):
    first = field(noise(8, 7, 6), (80, 77, 66))
    expected = correlations(first, edges=[5, 15, 30]).xi
    moved = scale * (first.roll(dict(zip(AXES, shift, strict=True))) + mean)
    got = correlations(moved.assign_attrs(first.attrs), edges=[5, 15, 30]).xi
    np.testing.assert_allclose(got, scale**2 * expected, rtol=0, atol=1e-5 * scale**2)


def test_exchange_of_the_fields():
    first, second = field(noise(8, 7, 6)), field(np.roll(noise(8, 7, 6), 1, 0))
    xr.testing.assert_allclose(
        correlations(first, second), correlations(second, first), rtol=1e-5, atol=1e-8
    )


def test_axes_are_alike():
    """The box turned on its side, line of sight and all."""
    shape, box = (12, 9, 10), (120.0, 81.0, 110.0)
    first = field(noise(*shape), box, los="x")
    turned = field(first.values.transpose(1, 2, 0), (81.0, 110.0, 120.0), los="z")
    options = {"edges": [0, 12, 24, 40], "r_perp": [0, 14, 40], "r_par": [0, 25, 60]}
    expected, got = correlations(first, **options), correlations(turned, **options)
    for name in expected.data_vars:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-7)


def test_threads_give_the_same_bits(monkeypatch):
    first = field(noise(40, 36, 30), los="y")
    results = []
    for n_threads in (1, 2, 5):
        for module in (correlation, fourier):
            monkeypatch.setattr(module, "n_threads", lambda n=n_threads: n)
        results.append(correlations(first))
    xr.testing.assert_identical(results[0], results[1])
    xr.testing.assert_identical(results[0], results[2])


def test_one_compute(count_computes):
    vector = field(noise(3, 16, 10, 70), (40, 25, 175)).chunk({"x": 5, "z": 30})
    expected = correlations(vector.compute())
    for budget in ("100 kB", "1 GB"):
        with dask.config.set({"cosmofields.memory": budget}), count_computes() as computes:
            got = correlations(vector)
        assert computes.total == 1
        xr.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_no_task_holds_the_box():
    """Every chunk on the way is a slab, a strip or a block; of the blocks, sums come back."""
    shape = (128, 80, 80)
    data = da.random.default_rng(0).normal(size=shape, chunks=16).astype(np.float32)
    lazy = field(np.zeros(shape), (128.0, 80.0, 80.0)).copy(data=data)
    largest, last = [], []

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            largest.append(getattr(result, "nbytes", 0))
            if "bin_lags" in str(key):
                last.append(result.nbytes)

    budget = {"cosmofields.memory": "2 MB", "scheduler": "synchronous"}
    with dask.config.set(budget), Watch():
        correlations(lazy)
    assert 0 < max(largest) <= data.nbytes / 3
    assert last
    assert max(last) < 10_000


def test_on_two_processes():
    vector = field(noise(3, 12, 70, 9), (120, 700, 90)).chunk({"y": 20})
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="2GB", dashboard_address=":0"
    )
    with cluster, distributed.Client(cluster), dask.config.set(SMALL):
        got = correlations(vector)
    xr.testing.assert_allclose(got, correlations(vector.compute()), rtol=1e-5, atol=1e-7)


def test_inputs_stay_as_they_are():
    first, second = field(noise(8, 7, 6)), field(noise(8, 7, 6, seed=1))
    before = first.copy(deep=True), second.copy(deep=True)
    correlations(first, second, window="cic")
    xr.testing.assert_identical(first, before[0])
    xr.testing.assert_identical(second, before[1])


# --- what comes out ---


def test_result_describes_itself(tmp_path):
    velocity = field(100 * noise(3, 8, 8, 8), name="velocity", units="km/s")
    result = correlations(velocity, window="cic")
    assert set(result.data_vars) == {"xi", "pairs", "r_mean", "xi_2d", "pairs_2d"}
    assert result.xi.dims == ("ell", "r")
    assert result.xi_2d.dims == ("r_perp", "r_par")
    assert result.xi.attrs == {
        "units": "(km/s)^2",
        "long_name": "correlation function of velocity",
    }
    for name in ("r", "r_perp", "r_par"):
        assert result[name].attrs["units"] == "Mpc/h"
        bounds = result[result[name].attrs["bounds"]]
        np.testing.assert_array_equal(bounds.mean("bound"), result[name])
    assert result.attrs["n_grid"] == [8, 8, 8]
    assert result.attrs["los"] == "z"
    result.to_zarr(tmp_path / "xi.zarr", zarr_format=3, consolidated=False)
    back = xr.open_zarr(tmp_path / "xi.zarr", consolidated=False).load()
    xr.testing.assert_identical(back, result)


def test_units_and_names():
    delta, theta = field(noise(8, 8, 8)), field(noise(8, 8, 8), name="theta", units="km/s/(Mpc/h)")
    assert correlation_function(delta).xi.attrs["units"] == "1"
    both = correlation_function(delta, theta).xi.attrs
    assert both["units"] == "(km/s/(Mpc/h))"
    assert both["long_name"] == "correlation function of density and theta"


def test_default_bins_leave_the_variance_out():
    result = correlations(field(noise(32, 32, 32), 80.0))
    cell = 80 / 32
    np.testing.assert_allclose(result.r, cell * np.array([1.5, 3.5, 5.5, 7.5, 9.5]))
    np.testing.assert_allclose(result.r_perp[:2], cell * np.array([1.5, 3.5]))
    np.testing.assert_allclose(result.r_par[:2], cell * np.array([0.75, 2.5]))
    assert result.pairs[0] == sum(
        0 < x * x + y * y + z * z < 6.25 for x, y, z in itertools.product(range(-3, 4), repeat=3)
    )
    assert np.isfinite(result.xi_2d).all()
    assert abs(result.xi).max() < 0.1 * 5  # of a variance of 1
    assert correlation_function(field(noise(6, 6, 6)), edges=[0, 1]).xi.item() == pytest.approx(
        noise(6, 6, 6).var(), rel=1e-5
    )


def test_empty_bin_is_nan():
    result = correlations(
        field(noise(8, 8, 8)), edges=[0, 20, 21, 22, 30], r_perp=[1, 2, 20], r_par=[0, 20]
    )
    assert np.isnan(result.xi.isel(r=1)).all()
    assert np.isnan(result.r_mean[1])
    assert result.pairs[1] == 0
    assert np.isnan(result.xi_2d[0]).all()
    assert result.pairs_2d[0, 0] == 0
    assert np.isfinite(result.xi.isel(r=[0, 3])).all()


# --- errors ---


def test_what_is_no_box_of_two_alike_fields():
    scalar, vector = field(noise(8, 8, 8)), field(noise(3, 8, 8, 8))
    with pytest.raises(DimensionError, match="two scalars or two vectors"):
        correlation_function(scalar, vector)
    with pytest.raises(GridMismatchError, match="8 against 6 cells along x"):
        correlation_function(scalar, field(noise(6, 8, 8)))
    with pytest.raises(NotPeriodicError, match="correlation_function needs the whole periodic box"):
        correlation_function(scalar.isel(x=slice(0, 5)))
    with pytest.raises(NotPeriodicError, match="correlations needs a periodic box"):
        correlations(scalar.assign_attrs(periodic=False))
    del scalar.attrs["los"]
    correlation_function(scalar)
    with pytest.raises(MissingAttributeError, match="No `los`"):
        correlation_2d(scalar)


def test_what_is_no_bin():
    first = field(noise(8, 6, 7), (100.0, 60.0, 90.0))
    with pytest.raises(DimensionError, match="edges up to 35 Mpc/h; expected at most 30, half of"):
        correlation_function(first, edges=[5, 35])
    with pytest.raises(DimensionError, match="r_perp up to 35 Mpc/h; expected at most 30"):
        correlation_2d(first, r_perp=[5, 35])
    with pytest.raises(DimensionError, match="r_par up to 50 Mpc/h; expected at most 45"):
        correlation_2d(first, r_par=[0, 50])
    correlation_2d(first, r_perp=[5, 45], r_par=[0, 30], los="y")
    with pytest.raises(DimensionError, match="edges=.*increasing separations"):
        correlations(first, edges=[5, 5])
    with pytest.raises(DimensionError, match="hold no separation .* 12.5 x 10 x 12.8571 Mpc/h"):
        correlation_function(first, edges=[1, 2])


def test_what_is_no_multipole_line_of_sight_or_window():
    first = field(noise(8, 8, 8))
    for ells in ([1], [0, 2, 3], [], [2, 2]):
        with pytest.raises(DimensionError, match="expected some of 0, 2 and 4, each once"):
            correlation_multipoles(first, ells=ells)
    with pytest.raises(DimensionError, match="los='r'"):
        correlation_2d(first, los="r")
    with pytest.raises(CosmofieldsError, match="window='tsc'; expected None, 'cic'"):
        correlation_function(first, window="tsc")


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_no_number(lazy):
    data = noise(8, 8, 8)
    data[1, 2, 3] = np.nan
    first = field(data).chunk() if lazy else field(data)
    with pytest.raises(CosmofieldsError, match="`density`: NaN or infinity"):
        correlation_function(first)


def test_a_flat_box_has_separations_along_its_short_side():
    values = np.random.default_rng(0).standard_normal((10, 10, 10))
    got = correlation_function(field(values, (1000.0, 1000.0, 10.0)))
    centred = values - values.mean()
    expected = [np.mean(centred * np.roll(centred, lag, axis=2)) for lag in (1, 2)]
    assert got.pairs.values.tolist() == [4]
    assert float(got.xi[0]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_box_of_two_cells_across_says_so():
    thin = field(np.random.default_rng(0).standard_normal((8, 8, 2)), (80.0, 80.0, 20.0))
    with pytest.raises(DimensionError, match="no separation .* shortest side is 20 Mpc/h"):
        correlation_function(thin)


def test_two_lines_of_sight_are_a_question():
    rng = np.random.default_rng(0)
    a, b = (field(rng.standard_normal((8, 8, 8)), los=los) for los in "xz")
    for statistic in (correlation_multipoles, correlation_2d, correlations):
        with pytest.raises(GridMismatchError, match="lines of sight, x and z.*: los='x'"):
            statistic(a, b)
        assert statistic(a, b, los="y").attrs["los"] == "y"
        assert statistic(a.assign_attrs(los=None), b).attrs["los"] == "z"
    correlation_function(a, b)


def test_ells_and_edges_that_are_none():
    a = field(np.random.default_rng(0).standard_normal((8, 8, 8)))
    with pytest.raises(DimensionError, match="ells=2; expected some of 0, 2 and 4"):
        correlation_multipoles(a, ells=2)
    with pytest.raises(DimensionError, match="edges='abc'; expected increasing separations"):
        correlation_function(a, edges="abc")
