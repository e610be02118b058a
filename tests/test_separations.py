"""Bins of separations and the sums in them, against plain loops over all nodes."""

import numpy as np
import pytest

from cosmofields.conventions import DimensionError, make_grid
from cosmofields.kernels.separations import (
    Bins,
    bin_lags,
    check_separations,
    default_par,
    default_perp,
    default_shells,
    half_sides,
    lag_sums,
)

GRIDS = [
    make_grid(8, (80.0, 80.0, 80.0)),
    make_grid((7, 9, 6), (70.0, 60.0, 90.0)),
    make_grid((6, 5, 9), (66.0, 70.0, 81.0)),
]
NONE = np.empty(0)


def even_lags(grid, seed=0):
    """Lag field xi(r) = xi(-r), as a correlation of real fields is."""
    lags = np.random.default_rng(seed).standard_normal(grid.shape)
    back = lags[np.ix_(*[-np.arange(n) % n for n in grid.shape])]
    return ((lags + back) / 2).astype(np.float32)


def offsets(grid):
    """Separation of each node from node 0, the shortest way: three arrays (x, y, z)."""
    axes = []
    for n, size in zip(grid.shape, grid.cell_size, strict=True):
        index = np.arange(n)
        axes.append(np.where(index <= n // 2, index, index - n) * size)
    return np.meshgrid(*axes, indexing="ij")


def half(lags):
    return lags[:, :, : lags.shape[2] // 2 + 1]


def bins_of(grid, los):
    across, along = half_sides(grid, los)
    return Bins(
        np.linspace(3.1, min(grid.lengths) / 2, 5),
        np.linspace(0, across, 4),
        np.array([0.0, 4.3, 17.2, along]),
        los,
    )


@pytest.mark.parametrize("los", [0, 1, 2])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_sums_against_all_nodes(grid, los):
    lags, bins = even_lags(grid), bins_of(grid, los)
    sums = lag_sums(bin_lags(half(lags), grid, bins), bins)
    where = offsets(grid)
    r = np.sqrt(sum(part**2 for part in where))
    par = np.abs(where[los])
    perp = np.sqrt(sum(part**2 for axis, part in enumerate(where) if axis != los))
    mu = par / np.where(r > 0, r, 1)
    assert sums.pairs.sum() > 100
    for i, (low, high) in enumerate(zip(bins.r[:-1], bins.r[1:], strict=True)):
        inside = (r >= low - 1e-6) & (r < high - 1e-6)
        assert sums.pairs[i] == inside.sum()
        np.testing.assert_allclose(sums.r[i], r[inside].sum(), rtol=1e-12)
        for at, ell in enumerate((0, 2, 4)):
            legendre = np.polynomial.legendre.Legendre.basis(ell)(mu[inside])
            expected = (lags[inside].astype(np.float64) * legendre).sum()
            np.testing.assert_allclose(sums.poles[at, i], expected, rtol=0, atol=1e-10)
    for i, (low, high) in enumerate(zip(bins.perp[:-1], bins.perp[1:], strict=True)):
        ring = (perp >= low - 1e-6) & (perp < high - 1e-6)
        for j, (near, far) in enumerate(zip(bins.par[:-1], bins.par[1:], strict=True)):
            inside = ring & (par >= near - 1e-6) & (par < far - 1e-6)
            assert sums.pairs_2d[i, j] == inside.sum()
            expected = lags[inside].astype(np.float64).sum()
            np.testing.assert_allclose(sums.xi_2d[i, j], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("los", [0, 1, 2])
def test_blocks_add_up(los):
    grid = make_grid((20, 9, 12), (200.0, 90.0, 150.0))
    lags, bins = half(even_lags(grid)), bins_of(grid, los)
    whole = bin_lags(lags, grid, bins)
    total = 0
    for x in (slice(0, 3), slice(3, 20)):
        for y in (slice(0, 5), slice(5, 9)):
            for z in (slice(0, 1), slice(1, 7)):
                origin = (x.start, y.start, z.start)
                total = total + bin_lags(lags[x, y, z], grid, bins, origin)
    np.testing.assert_allclose(total, whole, rtol=1e-12, atol=1e-12)


def test_threads_give_the_same_bits():
    grid = make_grid(40, (100.0,) * 3)
    lags, bins = half(even_lags(grid)), bins_of(grid, 1)
    one = bin_lags(lags, grid, bins)
    for n_threads in (2, 3, 7):
        np.testing.assert_array_equal(bin_lags(lags, grid, bins, n_threads=n_threads), one)


def test_bins_of_one_kind_alone():
    grid = GRIDS[1]
    lags, both = half(even_lags(grid)), bins_of(grid, 0)
    sums = lag_sums(bin_lags(lags, grid, both), both)
    shells = Bins(both.r, NONE, NONE, 0)
    plane = Bins(NONE, both.perp, both.par, 0)
    alone = lag_sums(bin_lags(lags, grid, shells), shells)
    np.testing.assert_array_equal(alone.poles, sums.poles)
    assert alone.xi_2d.size == 0
    alone = lag_sums(bin_lags(lags, grid, plane), plane)
    np.testing.assert_array_equal(alone.xi_2d, sums.xi_2d)
    assert alone.pairs.size == 0


def test_no_separation_is_isotropic():
    grid = GRIDS[0]
    bins = Bins(np.array([0.0, 5.0]), NONE, NONE, 2)
    lags = half(even_lags(grid))
    sums = lag_sums(bin_lags(lags, grid, bins), bins)
    np.testing.assert_array_equal(sums.poles[:, 0], [lags[0, 0, 0], 0, 0])
    assert sums.pairs.tolist() == [1]
    assert sums.r.tolist() == [0]


def test_separation_on_an_edge_goes_up_whatever_its_direction():
    # 0.7 is no binary fraction: r^2 along an axis and along a diagonal round differently.
    grid = make_grid(16, (16 * 0.7,) * 3)
    edges = 0.7 * np.arange(0, 9)
    across = Bins(edges, edges, edges, 2)
    sums = lag_sums(bin_lags(half(even_lags(grid)), grid, across), across)
    index = np.fft.fftfreq(16, 1 / 16).astype(int)
    x, y, z = np.meshgrid(index, index, index, indexing="ij")
    n2, perp2, par = x**2 + y**2 + z**2, x**2 + y**2, np.abs(z)
    for i in range(8):
        assert sums.pairs[i] == ((n2 >= i**2) & (n2 < (i + 1) ** 2)).sum()
        for j in range(8):
            inside = (perp2 >= i**2) & (perp2 < (i + 1) ** 2) & (par == j)
            assert sums.pairs_2d[i, j] == inside.sum()


@pytest.mark.parametrize("cells", [5, 8, 32, 33])
def test_default_bins_hold_all_directions_and_no_variance(cells):
    grid = make_grid(cells, (2.5 * cells,) * 3)
    shells, perp, par = default_shells(grid), default_perp(grid, 2), default_par(grid, 2)
    np.testing.assert_allclose(np.diff(shells), 5.0)
    np.testing.assert_allclose(np.diff(perp), 5.0)
    np.testing.assert_allclose(np.diff(par)[1:], 5.0)
    assert shells[0] == perp[0] == 1.25
    assert par[0] == 0
    for edges in (shells, perp, par):
        assert edges[-1] <= grid.lengths[0] / 2
        check_separations(edges, grid.lengths[0] / 2, "edges")
    if cells == 32:
        assert shells[-1] == pytest.approx(26.25)  # 80 / 3 at most
        assert perp[-1] == pytest.approx(36.25)  # 40 at most
        assert par[-1] == pytest.approx(38.75)


def test_default_bins_of_a_long_box():
    grid = make_grid((16, 16, 64), (60.0, 80.0, 400.0))
    assert half_sides(grid, 2) == (30.0, 200.0)
    assert half_sides(grid, 0) == (40.0, 30.0)
    cell = 400 / 64
    np.testing.assert_allclose(default_perp(grid, 2), cell * np.array([0.5, 2.5, 4.5]))
    np.testing.assert_allclose(default_par(grid, 2), cell * np.array([0, 1.5, 3.5, 5.5]))
    np.testing.assert_allclose(default_par(grid, 0), cell * np.array([0, 1.5, 3.5]))


def test_default_bins_of_a_flat_box():
    grid = make_grid(10, (1000.0, 1000.0, 10.0))
    np.testing.assert_allclose(default_shells(grid), [0.5, 2.5])
    np.testing.assert_allclose(default_perp(grid, 0), [0.5, 2.5, 4.5])
    np.testing.assert_allclose(default_par(grid, 2), [0, 1.5, 3.5])
    np.testing.assert_allclose(default_perp(grid, 2), [50, 250])


@pytest.mark.parametrize(
    "edges",
    ["abc", None, [5.0], [], [[0.0, 1.0]], [-1.0, 1.0], [3.0, 2.0], [1.0, 1.0], [0.0, np.nan], 4.0],
)
def test_edges_that_are_none(edges):
    with pytest.raises(DimensionError, match="r_perp=.*increasing separations in Mpc/h"):
        check_separations(edges, 50.0, "r_perp")


def test_edges_beyond_half_a_side():
    np.testing.assert_array_equal(check_separations([10, 50], 50.0, "edges"), [10.0, 50.0])
    with pytest.raises(DimensionError, match=r"edges up to 51 Mpc/h; expected at most 50, half"):
        check_separations([10, 51], 50.0, "edges")
