"""Two meshes half a cell apart, combined into one whose odd aliases cancel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from ..conventions import Grid
from ..fourier import through_modes


def combined(paint: Callable[[Any], Any], position: Any, grid: Grid) -> Any:
    """Combine what ``paint`` makes of the positions, and of those half a cell on along each axis.

    Parameters
    ----------
    paint : callable
        Returns a mesh (bin, x, y, z) of its own, maybe lazy.
    position : numpy or dask array, (n, 3)
        Mpc/h.
    grid : Grid

    Returns
    -------
    array, (bin, x, y, z), float32
    """
    from ..kernels.modes import interlace

    # In this order: what is wrong with positions is said of those that were given.
    first = paint(position)
    lazy = isinstance(first, da.Array)
    step = partial(_half_a_cell_on, grid=grid)
    if lazy:
        second = paint(da.asarray(position).map_blocks(step, dtype=position.dtype))
    else:
        second = paint(step(position))
    combine = partial(interlace, cell_size=grid.cell_size)

    def one(i: int) -> Any:
        return through_modes([first[i], second[i]], grid, [None], what="paint", combine=combine)

    if lazy:
        return da.concatenate([one(i) for i in range(len(first))])
    for i in range(len(first)):
        first[i] = one(i)[0]
    return first


def _half_a_cell_on(position: NDArray[np.floating], *, grid: Grid) -> NDArray[np.floating]:
    lengths = np.array(grid.lengths)
    moved = position + np.array(grid.cell_size) / 2
    np.subtract(moved, lengths, out=moved, where=moved > lengths)
    return moved.astype(position.dtype, copy=False)
