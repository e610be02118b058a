"""Cloud-in-cell mass assignment in numba: on all cores, without atomics, the same on any number.

Particles are ordered by tile (a counting sort), so that a tile's cells stay in cache, and stripes
of tiles along x are painted in two colours: stripes of one colour share no cell.  Plain threads
over ``nogil`` kernels, since numba's own pool may not be entered from two Dask threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..conventions import CatalogError

# With this many particles a cell, float32 sums begin to lose the seventh digit of the mass, and a
# float64 mesh is small beside the particles.
CROWDED = 4
# Planes of x, and rows of y, of a tile: with z in full its float32 cells fit into the L2 cache.
TILE_X, TILE_Y = 8, 16


@njit(nogil=True, cache=True)
def _tile_of(x: float, y: float, scale, shape, n_tiles):  # type: ignore[no-untyped-def]
    i = int(np.floor(x * scale[0])) % shape[0]
    j = int(np.floor(y * scale[1])) % shape[1]
    return (i * n_tiles[0] // shape[0]) * n_tiles[1] + j * n_tiles[1] // shape[1]


@njit(nogil=True, cache=True)
def _tile_order(position, scale, shape, n_tiles):  # type: ignore[no-untyped-def]
    """Stable counting sort: particle indices by tile, and where each tile starts."""
    starts = np.zeros(n_tiles[0] * n_tiles[1] + 1, np.int64)
    for p in range(position.shape[0]):
        starts[_tile_of(position[p, 0], position[p, 1], scale, shape, n_tiles) + 1] += 1
    starts = np.cumsum(starts)
    fill = starts.copy()
    order = np.empty(position.shape[0], np.int64)
    for p in range(position.shape[0]):
        t = _tile_of(position[p, 0], position[p, 1], scale, shape, n_tiles)
        order[fill[t]] = p
        fill[t] += 1
    return order, starts


@njit(nogil=True, cache=True)
def _cic(position, values, order, scale, mesh):  # type: ignore[no-untyped-def]
    """Add the particles ``order`` to ``mesh`` (field, x, y, z)."""
    n_fields, nx, ny, nz = mesh.shape
    for o in range(order.shape[0]):
        p = order[o]
        # float64 here: the product in float32 misplaces a particle by up to 5e-4 of a cell.
        x = position[p, 0] * scale[0]
        y = position[p, 1] * scale[1]
        z = position[p, 2] * scale[2]
        i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
        dx, dy, dz = x - i, y - j, z - k
        i %= nx
        j %= ny
        k %= nz
        i1 = i + 1 if i + 1 < nx else 0
        j1 = j + 1 if j + 1 < ny else 0
        k1 = k + 1 if k + 1 < nz else 0
        w00, w01 = (1 - dx) * (1 - dy), (1 - dx) * dy
        w10, w11 = dx * (1 - dy), dx * dy
        for c in range(n_fields):
            low = values[p, c] * (1 - dz)
            high = values[p, c] * dz
            mesh[c, i, j, k] += w00 * low
            mesh[c, i, j, k1] += w00 * high
            mesh[c, i, j1, k] += w01 * low
            mesh[c, i, j1, k1] += w01 * high
            mesh[c, i1, j, k] += w10 * low
            mesh[c, i1, j, k1] += w10 * high
            mesh[c, i1, j1, k] += w11 * low
            mesh[c, i1, j1, k1] += w11 * high


def cic(
    position: NDArray[np.floating],
    values: NDArray[np.floating],
    shape: Sequence[int],
    lengths: Sequence[float],
    *,
    n_threads: int,
) -> NDArray[np.float32]:
    """Cloud-in-cell sums of ``values`` on a periodic mesh whose node i sits at i L / N.

    Parameters
    ----------
    position : array, (n, 3)
        Mpc/h; taken modulo the box, so that L lands on 0.
    values : array, (n, field)
        What each particle carries, e.g. its mass and its mass times its velocity.
    shape : cells (x, y, z)
    lengths : sides (x, y, z) in Mpc/h
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    array, (field, x, y, z), float32
        Sums per cell; each particle adds its value in all (mass is conserved).

    Raises
    ------
    CatalogError
        If a position is NaN or infinite, and so in no cell.
    """
    bad = len(position) - np.count_nonzero(np.isfinite(position).all(axis=1))
    if bad:
        raise CatalogError(f"{bad} of {len(position)} positions are NaN or infinite; drop them")
    cells = np.asarray(shape, np.int64)
    crowded = len(position) > CROWDED * cells.prod()
    mesh = np.zeros((values.shape[1], *shape), np.float64 if crowded else np.float32)
    if not len(position):
        return mesh
    scale = cells / np.asarray(lengths, np.float64)
    # An even number of stripes, or the last would share plane 0 with the first of its colour.
    n_tiles = np.array([2 * max(1, cells[0] // (2 * TILE_X)), max(1, cells[1] // TILE_Y)])
    order, starts = _tile_order(position, scale, cells, n_tiles)

    def paint(stripe: int) -> None:
        first, last = starts[stripe * n_tiles[1]], starts[(stripe + 1) * n_tiles[1]]
        _cic(position, values, order[first:last], scale, mesh)

    with ThreadPoolExecutor(n_threads) as pool:
        for colour in (0, 1):
            list(pool.map(paint, range(colour, n_tiles[0], 2)))
    return mesh.astype(np.float32, copy=False)
