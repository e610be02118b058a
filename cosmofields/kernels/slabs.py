"""Slabs of a mesh, painted chunk by chunk: sums in place that can tell what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import Sorted, Tiling, add, threaded


class Slab:
    """Sums of the first ``count`` chunks, added to in place: a copy for each would cost more.

    ``count`` guards the numbers: a task that is run again finds its chunk in the sums, or an error.
    """

    def __init__(self, sums: NDArray[np.floating], count: int = 0) -> None:
        self.sums = sums
        self.count = count
        self.lock = Lock()

    def __sizeof__(self) -> int:
        return self.sums.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, since what is sent or spilled must not change under way.
        with self.lock:
            return Slab, (self.sums.copy(), self.count)


def accumulate(
    slab: Slab | None,
    particles: Sorted,
    *,
    step: int,
    tiles: Tiling,
    stripes: tuple[int, int],
    leading: tuple[int, int],
    dtype: np.dtype,
    n_threads: int,
) -> Slab:
    """Add the particles of chunk ``step``, once, to the sums of those before it.

    Parameters
    ----------
    slab : Slab or None
        Changed in place; None before the first chunk.
    particles : Sorted
        Those of the stripes of the slab.
    step : int
    tiles : Tiling
    stripes : first, and one past the last
    leading : bins, fields
    dtype : of the sums
    n_threads : int

    Raises
    ------
    RuntimeError
        If the slab holds other chunks than those before ``step``, or part of one.
    """
    if slab is None:
        first, last = tiles.planes(*stripes)
        # One plane more, which belongs to the next slab.
        n_planes = min(last - first + 1, tiles.shape[0])
        slab = Slab(np.zeros((*leading, n_planes, *tiles.shape[1:]), dtype))
    with slab.lock:
        if slab.count == step + 1:
            return slab
        if slab.count != step:
            raise RuntimeError(
                f"A slab holds {slab.count} chunks where {step} were expected: a task was "
                "interrupted or its result reused; compute again"
            )
        if not slab.sums.flags.writeable:
            slab.sums = slab.sums.copy()
        slab.count = -1
        with threaded(n_threads, len(particles.rows)) as (_, run):
            add(tiles, particles, slab.sums, first=stripes[0], run=run)
        slab.count = step + 1
    return slab


def shared(
    tiles: Tiling, stripes: tuple[int, int], low: int, high: int
) -> Iterator[tuple[slice, int]]:
    """Planes of a slab that lie in the block from ``low`` to ``high``, and where in it."""
    first, last = tiles.planes(*stripes)
    start, stop = max(first, low), min(last, high)
    if start < stop:
        yield slice(start - first, stop - first), start - low
    extra = last % tiles.shape[0]
    if last - first < tiles.shape[0] and low <= extra < high:
        yield slice(last - first, last - first + 1), extra - low


def planes_of(slab: Slab, planes: slice) -> NDArray[np.floating]:
    """A view of some planes of a slab that is whole."""
    return slab.sums[:, :, planes]


def assemble(
    pieces: Sequence[NDArray[np.floating]], places: Sequence[int], shape: tuple[int, ...]
) -> NDArray[np.floating]:
    """Sum of planes of slabs, each from its place on."""
    if len(pieces) == 1 and pieces[0].shape == shape:
        return pieces[0]
    out = np.zeros(shape, pieces[0].dtype)
    for piece, place in zip(pieces, places, strict=True):
        out[:, :, place : place + piece.shape[2]] += piece
    return out
