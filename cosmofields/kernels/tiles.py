"""Tiles of a periodic box: where they lie, and their surroundings gathered across the boundary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Window = tuple[slice, slice, slice]
Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TilePlan:
    """Tiles of a box for one model.

    Attributes
    ----------
    shape : cells of the box
    bounds : (start, stop) of the tiles along each axis
    halo : int
        Cells that a tile needs around it.
    precision : {"float32", "bfloat16"}
    nbytes : int
        Peak memory of one pass, its input included.
    cost : float
        Work with the halos over work without, of a single pass.
    symmetries : int
        Passes a tile, which are averaged.
    """

    shape: tuple[int, int, int]
    bounds: tuple[Bounds, ...]
    halo: int
    precision: str
    nbytes: int
    cost: float
    symmetries: int = 1

    @property
    def windows(self) -> list[Window]:
        """Every tile, the last axis fastest."""
        return list(windows(self.bounds))

    @property
    def tile(self) -> tuple[int, ...]:
        """Most cells of a tile along each axis."""
        return tuple(max(hi - lo for lo, hi in axis) for axis in self.bounds)

    def __str__(self) -> str:
        sides = " x ".join(map(str, self.tile))
        return (
            f"{len(self.windows)} tiles of up to {sides} cells, {self.nbytes / 1e9:.2f} GB each, "
            f"{self.cost:.2f} x the work of one without halos, {self.precision}"
            + (f", under {self.symmetries} symmetries" if self.symmetries > 1 else "")
        )


def split(n: int, parts: int, multiple: int) -> Bounds:
    """Bounds (start, stop) of at most ``parts`` tiles of an axis, as even as they can be.

    Parameters
    ----------
    n : cells of the axis
    parts : int
        Tiles wanted; fewer if the axis holds fewer multiples.
    multiple : int
        What every inner bound is a multiple of: a network with strides is shift-equivariant by no
        less than its coarsest cell, and a store is written by whole chunks.
    """
    blocks = -(-n // multiple)
    parts = min(parts, blocks)
    edges = [min(n, blocks * i // parts * multiple) for i in range(parts + 1)]
    return tuple(zip(edges, edges[1:], strict=False))


def fewest(n: int, side: int, multiple: int) -> int:
    """Fewest tiles that :func:`split` must make of an axis for none to exceed ``side`` cells."""
    parts = -(-n // side)
    while max(hi - lo for lo, hi in split(n, parts, multiple)) > side:
        parts += 1
    return parts


def partitions(n: int, multiple: int) -> list[int]:
    """Numbers of tiles of an axis that differ in the size of the largest."""
    return sorted({fewest(n, side, multiple) for side in range(multiple, n + multiple, multiple)})


def windows(bounds: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Window]:
    """Every tile as three slices, the last axis fastest."""
    for x, y, z in product(*bounds):
        yield slice(*x), slice(*y), slice(*z)


def gather(array: Any, window: Window, halo: int) -> Any:
    """Window of the last three axes with ``halo`` cells around it, taken from across the boundary.

    Works on numpy and zarr arrays and on dask ones, which stay lazy; and for a halo wider than the
    box.
    """
    cuts = [
        _wrapped(part.start - halo, part.stop + halo, n)
        for part, n in zip(window, array.shape[-3:], strict=True)
    ]
    # Axis by axis, numpy's would be twice in memory, and of a store whole slabs would be read.
    if not hasattr(array, "dask"):
        shape = (part.stop - part.start + 2 * halo for part in window)
        out = np.empty((*array.shape[:-3], *shape), array.dtype)
        for pieces in product(*cuts):
            to, of = zip(*pieces, strict=True)
            out[(..., *to)] = array[(..., *of)]
        return out
    for axis, cut in enumerate(cuts, start=array.ndim - 3):
        parts = [array[(slice(None),) * axis + (of,)] for _, of in cut]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
    return array


def _wrapped(start: int, stop: int, n: int) -> list[tuple[slice, slice]]:
    """Where the pieces of a window of a periodic axis go, and come from."""
    pieces, at = [], start
    while at < stop:
        low = at % n
        step = min(n - low, stop - at)
        pieces.append((slice(at - start, at - start + step), slice(low, low + step)))
        at += step
    return pieces
