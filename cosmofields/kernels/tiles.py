"""Tiles of a periodic box: where they lie, and their surroundings gathered across the boundary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

Window = tuple[slice, slice, slice]


def plan(shape: Sequence[int], tile: int, multiple: int) -> list[list[tuple[int, int]]]:
    """Bounds (start, stop) of the tiles along each of three axes.

    Parameters
    ----------
    shape : cells (x, y, z), each a multiple of ``multiple``
    tile : int
        Most cells a side.
    multiple : int
        What every bound is a multiple of: a network with strides is shift-equivariant by no less.
    """
    side = max(multiple, tile // multiple * multiple)
    return [[(lo, min(lo + side, n)) for lo in range(0, n, side)] for n in shape]


def windows(bounds: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Window]:
    """Every tile as three slices, the last axis fastest."""
    for x, y, z in product(*bounds):
        yield slice(*x), slice(*y), slice(*z)


def gather(array: Any, window: Window, halo: int) -> Any:
    """Window of the last three axes with ``halo`` cells around it, taken from across the boundary.

    Works on numpy and dask arrays alike (a dask one stays lazy), and for a halo wider than the box.
    """
    for axis, part in enumerate(window, start=array.ndim - 3):
        array = _wrapped(array, part.start - halo, part.stop + halo, axis)
    return array


def _wrapped(array: Any, start: int, stop: int, axis: int) -> Any:
    n = array.shape[axis]
    pieces = []
    while start < stop:
        low = start % n
        high = min(n, low + stop - start)
        pieces.append(array[(slice(None),) * axis + (slice(low, high),)])
        start += high - low
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)
