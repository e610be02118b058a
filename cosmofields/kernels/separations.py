"""Correlations by separation: modes whose inverse transform is xi(r), and sums of it in bins of r.

The lag field xi(r), r on the grid within half a side of 0, is even once it is averaged over +r and
-r, as the real part of the cross power is.  So its half z >= 0 holds all of it: separations count
twice there, but for those of the plane z = 0, which holds both r and -r.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..conventions import DimensionError, Grid, numbers
from .modes import Modes, Waves, unwindow

# A separation on an edge belongs to the bin above, whichever way its r^2 was rounded.
_EDGE_SLACK = 1e-10
# Planes of a partial sum: few enough for a cache, and the same for any number of threads.
_PLANES = 8


class Bins(NamedTuple):
    """Edges in Mpc/h of bins in |r| and in (r_perp, |r_par|); no edges, no bins."""

    r: NDArray[np.float64]
    perp: NDArray[np.float64]
    par: NDArray[np.float64]
    los: int

    @property
    def shells(self) -> int:
        """Number of bins in |r|."""
        return max(self.r.size - 1, 0)

    @property
    def plane(self) -> tuple[int, int]:
        """Number of bins in r_perp and r_par."""
        return max(self.perp.size - 1, 0), max(self.par.size - 1, 0)


class LagSums(NamedTuple):
    """Sums over the separations of each bin.

    ``poles`` holds xi L_l(mu), l = 0, 2, 4 along its first axis.
    """

    pairs: NDArray[np.int64]
    r: NDArray[np.float64]
    poles: NDArray[np.float64]
    pairs_2d: NDArray[np.int64]
    xi_2d: NDArray[np.float64]


# --- bins ---


def default_shells(grid: Grid) -> NDArray[np.float64]:
    """Edges in |r|: two cells wide, from half a cell to a third of the shortest side."""
    side = min(grid.lengths)
    cell = _cell(grid, side / 2)
    return _steps(cell, cell / 2, side / 3, side / 2)


def default_perp(grid: Grid, los: int) -> NDArray[np.float64]:
    """Edges in r_perp: two cells wide, from half a cell to 40 Mpc/h or half a side."""
    half = half_sides(grid, los)[0]
    cell = _cell(grid, half)
    return _steps(cell, cell / 2, min(40.0, half), half)


def default_par(grid: Grid, los: int) -> NDArray[np.float64]:
    """Edges in |r_par|: two cells wide, but the first 1.5, from 0 to 40 Mpc/h or half a side."""
    half = half_sides(grid, los)[1]
    cell = _cell(grid, half)
    return np.maximum(_steps(cell, -cell / 2, min(40.0, half), half), 0.0)


def half_sides(grid: Grid, los: int) -> tuple[float, float]:
    """Half of the shorter side across the line of sight, and half of that along it."""
    across = min(length for axis, length in enumerate(grid.lengths) if axis != los)
    return across / 2, grid.lengths[los] / 2


def _cell(grid: Grid, half: float) -> float:
    """Longest side of a cell; in a flat box, the longest that is shorter than half the box."""
    return max(
        (cell for cell in grid.cell_size if cell < half * (1 - 1e-9)),
        default=min(grid.cell_size),
    )


def _steps(cell: float, start: float, end: float, half: float) -> NDArray[np.float64]:
    # Edges at odd halves of a cell: no separation along an axis of a cubic grid lies on one.
    n_bins = max(int((end - start) / (2 * cell) + 1e-9), 1)
    edges = start + 2 * cell * np.arange(n_bins + 1, dtype=np.float64)
    return np.minimum(edges, half)


def check_separations(edges: ArrayLike, half: float, name: str) -> NDArray[np.float64]:
    """Return ``edges`` as an array if they can be edges of bins in separation, up to ``half``."""
    array = numbers(edges)
    if not (
        array.ndim == 1
        and array.size > 1
        and np.isfinite(array).all()
        and array[0] >= 0
        and (np.diff(array) > 0).all()
    ):
        raise DimensionError(
            f"{name}={edges!r}; expected increasing separations in Mpc/h, two or more, from 0 up, "
            f"e.g. np.arange(5, {half:g}, 5)"
        )
    if array[-1] > half * (1 + 1e-12):
        raise DimensionError(
            f"{name} up to {array[-1]:g} Mpc/h; expected at most {half:g}, half of the shortest "
            "side concerned: a periodic box holds no larger separations in all directions"
        )
    return array


# --- modes ---


def lag_power(
    modes: Sequence[Modes], w: Waves, *, parts: int, grid: Grid, window: str | None
) -> None:
    """Write sum Re(f g*) / N over the first modes, whose inverse transform is xi; 0 at k = 0.

    Parameters
    ----------
    modes : f_1 ... f_parts, or f_1 ... f_parts, g_1 ... g_parts
        Of one strip; overwritten.
    w : Waves
    parts : int
        Components, over which the product is summed.
    grid : Grid
    window : {None, "cic", "cic-aliased"}
        Of the mass assignment, which the power is divided by.
    """
    x, y, z = unwindow(w, grid.cell_size, window)
    x = x / float(np.prod(grid.shape))
    for i in range(parts):
        _add_product(modes[i], modes[len(modes) - parts + i], modes[0], x, y, z, i > 0)
    if w.k[1][0] == 0:
        modes[0][0, 0, 0] = 0


# --- lags ---


def bin_lags(
    lags: NDArray[np.float32],
    grid: Grid,
    bins: Bins,
    origin: tuple[int, int, int] = (0, 0, 0),
    n_threads: int = 1,
) -> NDArray[np.float64]:
    """Sum xi over the separations of each bin: lower <= r < upper.

    Parameters
    ----------
    lags : array (x, y, z)
        Block of the half z >= 0 of the lag field, whose first node is r = 0.
    grid : Grid
    bins : Bins
        Up to half a side.
    origin : tuple
        Indices of the block's first node.
    n_threads : int
        Whose number does not change a bit of the result.

    Returns
    -------
    array, 1-D
        For :func:`lag_sums`, once all blocks are added up.
    """
    x, y, z = (
        _distance(np.arange(first, first + n), cells, size)
        for first, n, cells, size in zip(
            origin, lags.shape, grid.shape, grid.cell_size, strict=True
        )
    )
    weight = np.where(z > 0, 2.0, 1.0)
    along = (x, y, z)[bins.los]
    par = np.searchsorted(bins.par * (1 - _EDGE_SLACK), along, side="right") - 1
    par[par >= bins.plane[1]] = -1
    square = [x**2, y**2, z**2]
    across = [part * (axis != bins.los) for axis, part in enumerate(square)]
    shell2, perp2 = (edges**2 * (1 - _EDGE_SLACK) for edges in (bins.r, bins.perp))

    def planes(first: int) -> NDArray[np.float64]:
        cut = slice(first, first + _PLANES)
        shells, plane = np.zeros((bins.shells, 5)), np.zeros((*bins.plane, 2))
        part = lags[cut]
        if shells.size:
            _bin_shells(
                part, square[0][cut], square[1], square[2], bins.los, weight, shell2, shells
            )
        if plane.size:
            index = par[cut] if bins.los == 0 else par
            _bin_plane(
                part, across[0][cut], across[1], across[2], index, bins.los, weight, perp2, plane
            )
        return np.concatenate([shells.ravel(), plane.ravel()])

    with ThreadPoolExecutor(n_threads) as pool:
        return np.sum(list(pool.map(planes, range(0, lags.shape[0], _PLANES))), axis=0)


def lag_sums(total: NDArray[np.float64], bins: Bins) -> LagSums:
    """Name the sums of :func:`bin_lags`."""
    shells = total[: bins.shells * 5].reshape(-1, 5)
    plane = total[bins.shells * 5 :].reshape(*bins.plane, 2)
    pairs, pairs_2d = (np.rint(part).astype(np.int64) for part in (shells[:, 0], plane[..., 0]))
    return LagSums(pairs, shells[:, 1], shells[:, 2:].T, pairs_2d, plane[..., 1])


def _distance(index: NDArray[np.int64], cells: int, size: float) -> NDArray[np.float64]:
    """Shortest way along one axis from node 0 to the nodes ``index``."""
    return np.minimum(index, cells - index) * size


_M, _K = "complex64[:, :, :]", "float64[:]"
_F = "float32[:, :, :]"


@njit(f"void({_M}, {_M}, {_M}, {_K}, {_K}, {_K}, b1)", nogil=True, cache=True)
def _add_product(f, g, out, x, y, z, add):  # type: ignore[no-untyped-def]
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row = x[i] * y[j]
            for m in range(f.shape[2]):
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                # Scaled before it is rounded: the product alone may exceed single precision.
                value = np.float32((f_re * g_re + f_im * g_im) * (row * z[m]))
                if add:
                    value += out[i, j, m].real
                out[i, j, m] = value


@njit(f"void({_F}, {_K}, {_K}, {_K}, i8, {_K}, {_K}, float64[:, :])", nogil=True, cache=True)
def _bin_shells(lags, x2, y2, z2, los, weight, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(lags.shape[0]):
        for j in range(lags.shape[1]):
            row2 = x2[i] + y2[j]
            for m in range(lags.shape[2]):
                r2 = row2 + z2[m]
                if r2 >= edges2[last]:
                    break
                if r2 < edges2[0]:
                    continue
                # From the bin of the separation before, which is never far.
                while r2 < edges2[at]:
                    at -= 1
                while r2 >= edges2[at + 1]:
                    at += 1
                value = weight[m] * lags[i, j, m]
                sums[at, 0] += weight[m]
                sums[at, 1] += weight[m] * np.sqrt(r2)
                sums[at, 2] += value
                if r2 == 0:
                    continue  # has no direction: counts as isotropic
                mu2 = (x2[i] if los == 0 else y2[j] if los == 1 else z2[m]) / r2
                sums[at, 3] += value * (1.5 * mu2 - 0.5)
                sums[at, 4] += value * ((4.375 * mu2 - 3.75) * mu2 + 0.375)


@njit(
    f"void({_F}, {_K}, {_K}, {_K}, i8[:], i8, {_K}, {_K}, float64[:, :, :])",
    nogil=True,
    cache=True,
)
def _bin_plane(lags, x2, y2, z2, par, los, weight, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(lags.shape[0]):
        for j in range(lags.shape[1]):
            row2 = x2[i] + y2[j]
            for m in range(lags.shape[2]):
                r2 = row2 + z2[m]
                if r2 >= edges2[last]:
                    break
                to = par[i if los == 0 else j if los == 1 else m]
                if r2 < edges2[0] or to < 0:
                    continue
                while r2 < edges2[at]:
                    at -= 1
                while r2 >= edges2[at + 1]:
                    at += 1
                sums[at, to, 0] += weight[m]
                sums[at, to, 1] += weight[m] * lags[i, j, m]
