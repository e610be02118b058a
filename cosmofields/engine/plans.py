"""Tiles planned by memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from dask.utils import format_bytes

from .. import lazy
from ..conventions import CosmofieldsError, DimensionError, listing
from ..kernels import symmetry, tiles
from ..kernels.tiles import TilePlan
from ..unet import FieldModel
from .networks import cells, prepare
from .passes import resolve_device, resolve_precision

# Work that a plan of smaller passes may cost.
WORTH = 1.05
# What a first pass leaves behind: compiled kernels, the threads' own memory.
FIXED_BYTES = 300_000_000


def plan(
    model: FieldModel,
    shape: Sequence[int],
    memory: float,
    precision: str = "auto",
    *,
    device: str = "auto",
    align: int = lazy.CHUNK,
    waiting: int = 0,
    tile: int | Sequence[int] | None = None,
    symmetries: int = 1,
) -> TilePlan:
    """Tiles with the least work, to 5 %, whose passes fit into memory.

    Parameters
    ----------
    model : FieldModel
    shape : cells (x, y, z) of the periodic box, multiples of ``model.coarsest``
    memory : bytes that one process may fill
    precision : {"auto", "float32", "bfloat16"}
    device : {"auto", "cpu", "cuda"}
    align : int
        What tile bounds are multiples of: of a store's chunk, each chunk is of one tile.
    waiting : int
        Tiles whose chunks are in memory besides the input of the pass.
    tile : int or three, optional
        Most cells a side, in place of a choice by memory.  With :attr:`TilePlan.tile` of a plan
        it is the same plan again.
    symmetries : {1, 2, 4, 8, 16}
        Passes a tile, which are averaged; see :func:`run_tile`.

    Returns
    -------
    TilePlan

    Raises
    ------
    CosmofieldsError
        If not even the smallest tiles fit, with what they need; for other ``symmetries``.
    DimensionError
        If the network's levels do not divide the grid, or ``tile`` is below the coarsest cell.
    """
    if symmetries not in symmetry.SIZES:
        raise CosmofieldsError(f"symmetries={symmetries!r}; expected {listing(symmetry.SIZES)}")
    where = resolve_device(device)
    precision = resolve_precision(precision, where, model)
    prepared = prepare(model, where, precision)
    shape = (shape[0], shape[1], shape[2])
    coarsest = model.coarsest
    if any(n % coarsest for n in shape):
        near = listing(coarsest * max(1, round(n / coarsest)) for n in shape)
        raise DimensionError(
            f"A grid of {listing(shape)} cells; expected multiples of {coarsest}, the network's "
            f"coarsest cell: paint with n_grid = {near}"
        )
    sides = (tile,) * 3 if isinstance(tile, int) else tile
    if sides is not None and min(sides) < coarsest:
        raise DimensionError(f"tile={tile}; expected at least {coarsest} cells, e.g. 128")
    unit = math.lcm(align, coarsest)
    if sides is None:
        units = [min(unit, n) for n in shape]
        choices = [tiles.partitions(n, unit) for n, unit in zip(shape, units, strict=True)]
    else:
        units = [coarsest if side < unit else unit for side in sides]
        choices = [[tiles.fewest(*axis)] for axis in zip(shape, sides, units, strict=True)]

    def made(parts: Sequence[int]) -> TilePlan:
        bounds = tuple(tiles.split(*axis) for axis in zip(shape, parts, units, strict=True))
        largest = [max(hi - lo for lo, hi in axis) for axis in bounds]
        # Whole chunks are read for a halo, up to the whole axis.
        rim = 2 * align * -(-prepared.halo // align)
        chunks = np.prod([min(side + rim, n) for side, n in zip(largest, shape, strict=True)])
        own = cells(largest, 0, prepared.halo, (1, 1, 1))
        given = own + waiting * float(chunks)
        filled = prepared.nbytes(largest)
        if symmetries > 1:
            # Beside a tile, the same put through a symmetry; beside what it gives, their sum.
            turned = prepared.nbytes([largest[axis] for axis in (1, 0, 2)])
            filled = max(filled, turned) + int(8 * model.n_out * np.prod(largest))
            given += own
        nbytes = int(FIXED_BYTES + 4 * model.n_in * given + filled)
        cost = symmetries * prepared.work(shape, parts) / prepared.work(shape, (0, 0, 0))
        return TilePlan(shape, bounds, prepared.halo, precision, nbytes, cost, symmetries)

    plans = [made(parts) for parts in product(*choices)]
    allowed = plans if sides else [p for p in plans if p.nbytes <= memory]
    if not allowed:
        small = min(plans, key=lambda p: p.nbytes)
        raise CosmofieldsError(
            f"The {model.target} network needs {format_bytes(small.nbytes)} for its smallest tiles "
            f"({' x '.join(map(str, small.tile))} cells), and {format_bytes(int(memory))} are "
            "allowed: give it more (memory=, or cosmofields.memory in dask's configuration; in the "
            "shell: --memory)"
        )
    # Smaller passes leave room, and less to do again, for hardly more work.
    least = WORTH * min(p.cost for p in allowed)
    return min((p for p in allowed if p.cost <= least), key=lambda p: p.nbytes)


def memory_of(device: torch.device) -> int:
    """Bytes that passes on a device may fill."""
    allowed = lazy.machine().memory
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    return int(min(allowed, 0.8 * free))
