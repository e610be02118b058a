"""A periodic mesh read at positions, and tracers moved back along a line of sight by it, in numba.

Trilinear interpolation is the transpose of cloud-in-cell painting (:mod:`.mesh`): sums of a painted
weight times a field, over cells, equal sums of the weight times what is read, over particles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .mesh import _cell, _type_of, threaded

# Standard deviations beyond which a tracer cannot come from a place.
TAIL = 6.0


def read(
    position: NDArray[np.floating],
    mesh: NDArray[np.floating],
    lengths: Sequence[float],
    *,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    n_threads: int = 1,
) -> NDArray[np.floating]:
    """Trilinear interpolation of a periodic mesh.

    Parameters
    ----------
    position : array, (n, 3)
        Mpc/h, in [0, L].
    mesh : array, (field, x, y, z)
    lengths : sides (x, y, z) in Mpc/h
    origin : coordinates (x, y, z) in Mpc/h
        Of the first node, in [0, L): not 0 for a mesh that has been rolled.
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    array, (n, field)
        float32, or float64 for such a mesh; weights and sums are float64.
    """
    mesh = np.asarray(mesh, _type_of(mesh))
    out = np.empty((len(position), len(mesh)), mesh.dtype)
    scale, start = _scale(mesh.shape[1:], lengths), tuple(map(float, origin))
    with threaded(n_threads, len(position)) as (n_parts, run):
        parts = _parts(len(position), n_parts)
        list(run(lambda part: _read(position[part], mesh, scale, start, out[part]), parts))
    return out


def shifts(
    position: NDArray[np.floating],
    speed: NDArray[np.floating],
    lengths: Sequence[float],
    *,
    axis: int,
    rate: float,
    dispersion: float,
    fastest: float,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    n_threads: int = 1,
) -> tuple[NDArray[np.float64], int]:
    """Mean shift along ``axis`` of the tracers that stand at a place, by where they may come from.

    A tracer from r stands at s = r + (v(r) + e) / rate, with v read from the mesh as by
    :func:`read` and e Gaussian.  With g(r) = r + v(r) / rate - s and S = dispersion / rate, the
    mean of r is that under the weight exp(-g^2 / (2 S^2)); for S = 0, the mean of the roots of g,
    each under the weight 1 / |dg/dr|.  Along a line v is linear between nodes, so that the weight
    is integrated exactly, cell by cell: no iteration, and no tracer for which it fails.

    Parameters
    ----------
    position : array, (n, 3)
        s in Mpc/h, in [0, L].
    speed : array, (x, y, z)
        v along ``axis`` in km/s.
    lengths, origin, n_threads
        As in :func:`read`.
    axis : int
    rate : float
        a H in km/s/(Mpc/h).
    dispersion : float
        Of e, in km/s.
    fastest : float
        Largest speed, either way, of any node.

    Returns
    -------
    array, (n,), float64
        s minus the mean of r, in Mpc/h.
    int
        Number of tracers for which g has several roots: v(r) folds the line of sight.
    """
    speed = np.asarray(speed, _type_of(speed))
    out = np.empty(len(position))
    axes = (axis + 1) % 3, (axis + 2) % 3, axis
    scale, start = _scale(speed.shape, lengths), tuple(map(float, origin))
    lines = speed.transpose(axes)
    per_cell = rate / scale[axis]
    size, reach = dispersion / per_cell, fastest / per_cell
    with threaded(n_threads, len(position)) as (n_parts, run):
        parts = _parts(len(position), n_parts)

        def solve(part: slice) -> int:
            rows = position[part]
            return _shifts(rows, lines, scale, start, axes, 1 / per_cell, size, reach, out[part])

        folded = sum(run(solve, parts))
    return out, int(folded)


def _scale(shape: Sequence[int], lengths: Sequence[float]) -> tuple[float, ...]:
    return tuple(n / float(length) for n, length in zip(shape, lengths, strict=True))


def _parts(n: int, n_parts: int) -> list[slice]:
    return [slice(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]


@njit(nogil=True, cache=True, inline="always")
def _pair(f, n):  # type: ignore[no-untyped-def]
    """Nodes below and above a coordinate in cells, and the weights of the two."""
    i, d = _cell(f, n)
    below = np.intp(i)
    return below, (below + 1) % n, 1 - d, d


@njit(nogil=True, cache=True, inline="always")
def _between(mesh, i, i1, x0, x1, j, j1, y0, y1, k):  # type: ignore[no-untyped-def]
    near = x0 * y0 * mesh[i, j, k] + x0 * y1 * mesh[i, j1, k]
    return near + x1 * y0 * mesh[i1, j, k] + x1 * y1 * mesh[i1, j1, k]


@njit(nogil=True, cache=True)
def _read(position, mesh, scale, origin, out):  # type: ignore[no-untyped-def]
    n_fields, nx, ny, nz = mesh.shape
    # float64, as in painting: the product in float32 misplaces by up to 5e-4 of a cell.
    for p in range(len(position)):
        i, i1, x0, x1 = _pair((position[p, 0] - origin[0]) * scale[0], nx)
        j, j1, y0, y1 = _pair((position[p, 1] - origin[1]) * scale[1], ny)
        k, k1, z0, z1 = _pair((position[p, 2] - origin[2]) * scale[2], nz)
        for c in range(n_fields):
            low = _between(mesh[c], i, i1, x0, x1, j, j1, y0, y1, k)
            high = _between(mesh[c], i, i1, x0, x1, j, j1, y0, y1, k1)
            out[p, c] = z0 * low + z1 * high


@njit(nogil=True, cache=True, inline="always")
def _weigh(g, h, size):  # type: ignore[no-untyped-def]
    """Integrals over t in [0, 1] of w and t w; w = exp(-(g + (h - g) t)^2 / 2 size^2) / size."""
    if size == 0:
        # The limit, but for a factor that is the same everywhere.
        if (g < 0) == (h < 0):
            return 0.0, 0.0
        total = 1 / abs(h - g)
        return total, total * g / (g - h)
    g, h = g / size, h / size
    if min(g, h) > TAIL or max(g, h) < -TAIL:
        return 0.0, 0.0
    d = h - g
    low, high = math.exp(-g * g / 2), math.exp(-h * h / 2)
    if abs(d) < 0.1:
        # The exact result would lose its digits; Simpson's is right to 1e-7 here.
        middle = 4 * math.exp(-((g + h) ** 2) / 8)
        return (low + middle + high) / (6 * size), (middle / 2 + high) / (6 * size)
    area = math.sqrt(math.pi / 2) * (math.erf(h / math.sqrt(2)) - math.erf(g / math.sqrt(2)))
    return area / (d * size), (low - high - g * area) / (d * d * size)


@njit(nogil=True, cache=True)
def _shifts(  # type: ignore[no-untyped-def]
    position, lines, scale, origin, axes, cells, size, reach, out
):
    """Shifts along the last axis of ``lines``, of which ``axes`` says what it is in the box.

    ``cells`` turns km/s into cells; ``size`` and ``reach`` are the dispersion and the fastest.
    """
    a, b, c = axes
    na, nb, nc = lines.shape
    beyond = reach + TAIL * size
    n_nodes = int(np.ceil(2 * beyond)) + 4
    folded = 0
    for p in range(len(position)):
        i, i1, x0, x1 = _pair((position[p, a] - origin[a]) * scale[a], na)
        j, j1, y0, y1 = _pair((position[p, b] - origin[b]) * scale[b], nb)
        s = (position[p, c] - origin[c]) * scale[c]
        # Nodes from before s - beyond, where g < 0, to after s + beyond, where g > 0.
        first = int(np.floor(s - beyond)) - 1
        total = moment = before = 0.0
        roots = 0
        for q in range(n_nodes):
            v = _between(lines, i, i1, x0, x1, j, j1, y0, y1, (first + q) % nc)
            g = first + q - s + v * cells
            if q > 0:
                weight, along = _weigh(before, g, size)
                total += weight
                moment += weight * (q - 1) + along
                roots += (before < 0) != (g < 0)
            before = g
        out[p] = (s - first - moment / total) / scale[c]
        folded += roots > 1
    return folded
