"""Numbers of cells in bins of one field or of two, whatever the edges.

A binary search for each cell waits for memory and for branches that no processor foresees.  The
upper half of a float32's bits (its sign, exponent and first 7 digits) says where to begin: a table
holds the lowest bin of each, and the bin is a step or two from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

_SHIFT, _KEYS = 16, 2**16
_Search = tuple[NDArray[np.int32], NDArray[np.float64], int, float]


def count_cells(
    fields: Sequence[NDArray[np.generic]],
    edges: Sequence[NDArray[np.float64]],
    n_threads: int = 1,
) -> NDArray[np.int64]:
    """Cells in each bin of one field, or in each pair of bins of two.

    Parameters
    ----------
    fields : one or two arrays (x, y, z) or (component, x, y, z)
        Of one shape; components count together.
    edges : as many arrays
        Increasing; a bin holds ``edges[i] <= value < edges[i + 1]``, the last one its upper edge
        too.
    n_threads : int

    Returns
    -------
    array, (bin,) or (bin, bin)
        NaN and what lies beyond the edges is not counted.
    """
    searches = [part for e in edges for part in _search(e)]
    wanted = np.result_type(*fields)
    dtype = wanted if wanted in (np.float32, np.float64) else np.float64
    kernel: Any = _count_one if len(fields) == 1 else _count_two

    def count(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.int64]:
        counts = np.zeros([e.size - 1 for e in edges], dtype=np.int64)
        kernel(*(part.astype(dtype, copy=False) for part in parts), *searches, counts)
        return counts

    boxes = zip(*fields, strict=True) if fields[0].ndim == 4 else [tuple(fields)]
    tasks = []
    for box in boxes:
        width = max(-(-len(box[0]) // n_threads), 1)
        tasks += [[field[i : i + width] for field in box] for i in range(0, len(box[0]), width)]
    with ThreadPoolExecutor(n_threads) as pool:
        return np.sum(list(pool.map(count, tasks)), axis=0)


def _search(edges: NDArray[np.float64]) -> _Search:
    """Table of the lowest bin of each key, and what else :func:`_bin` needs."""
    with np.errstate(over="ignore"):
        bits = (edges + 0.0).astype(np.float32).view(np.int32)
    # As _bin has it, where + 0.0 is for -0.0.  A value is larger than the edges of lower keys.
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> _SHIFT) + _KEYS // 2
    within = np.bincount(keys, minlength=_KEYS)
    low = np.maximum(np.cumsum(within) - within - 1, 0)
    step = 1 << int(within.max()).bit_length() >> 1
    inner = np.concatenate([edges[:-1], np.full(2 * step, np.inf)])
    return low.astype(np.int32), inner, step, float(edges[-1])


@njit(nogil=True, cache=True)
def _bin(value, low, inner, step, top):  # type: ignore[no-untyped-def]
    """Bin of a value, -1 outside; without a branch that a processor could not foresee."""
    if not (inner[0] <= value <= top):
        return -1
    bits = np.float32(value + 0.0).view(np.int32)
    at = low[((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> _SHIFT) + _KEYS // 2]
    while step:
        at += step * (value >= inner[at + step])
        step >>= 1
    return at


# Arrays of another process may be read-only.
_FIELDS = [types.Array(real, 3, "A", readonly=True) for real in (types.float32, types.float64)]
_SEARCH = (types.int32[::1], types.float64[::1], types.int64, types.float64)


@njit(
    [types.void(field, *_SEARCH, types.int64[::1]) for field in _FIELDS],
    nogil=True,
    cache=True,
)
def _count_one(field, low, inner, step, top, counts):  # type: ignore[no-untyped-def]
    for i in range(field.shape[0]):
        for j in range(field.shape[1]):
            for m in range(field.shape[2]):
                at = _bin(np.float64(field[i, j, m]), low, inner, step, top)
                if at >= 0:
                    counts[at] += 1


@njit(
    [types.void(field, field, *_SEARCH, *_SEARCH, types.int64[:, ::1]) for field in _FIELDS],
    nogil=True,
    cache=True,
)
def _count_two(  # type: ignore[no-untyped-def]
    first, second, low_1, inner_1, step_1, top_1, low_2, inner_2, step_2, top_2, counts
):
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            for m in range(first.shape[2]):
                at = _bin(np.float64(first[i, j, m]), low_1, inner_1, step_1, top_1)
                to = _bin(np.float64(second[i, j, m]), low_2, inner_2, step_2, top_2)
                if at >= 0 and to >= 0:
                    counts[at, to] += 1
