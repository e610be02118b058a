"""A model over a box: lazily, tile by tile with overlapping halos, on CPU or GPU."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from numpy.typing import NDArray

from .. import engine
from ..conventions import AXES, DimensionError, check_los
from ..kernels import tiles
from ..lazy import chunk_shape, machine
from ..stages import bars
from ..unet import FieldModel, vector_channels

log = logging.getLogger("cosmofields")


def axes_to_los_last(los: str) -> tuple[int, int, int]:
    """Cyclic order of the axes that puts ``los`` last: a rotation, so that vectors stay vectors."""
    last = AXES.index(check_los(los))
    return (last + 1) % 3, (last + 2) % 3, last


def turn(array: Any, order: Sequence[int], n_components: int) -> Any:
    """Reorder the axes of (channel, x, y, z), and the components among its last channels."""
    turned = array.transpose(0, *(1 + axis for axis in order))
    if not n_components:
        return turned
    first = turned.shape[0] - 3
    return turned[[*range(first), *(first + axis for axis in order)]]


def run_in_box(model: FieldModel, inputs: Any, los: str, **options: Any) -> Any:
    """:func:`apply_model` in the axes of the box: the line of sight is turned last, and back.

    Parameters
    ----------
    model : FieldModel
    inputs : array, (channel, x, y, z)
    los : {"x", "y", "z"}
    **options
        Of :func:`apply_model`.

    Returns
    -------
    array, (channel, x, y, z)
    """
    order = axes_to_los_last(los)
    back = [int(axis) for axis in np.argsort(order)]
    turned = turn(inputs, order, vector_channels(model.inputs))
    return turn(apply_model(model, turned, **options), back, vector_channels([model.target]))


def apply_model(
    model: FieldModel,
    inputs: Any,
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    symmetries: int = 1,
    progress: bool = False,
) -> Any:
    """Run a model over a periodic box, tile by tile.

    Tiles start at multiples of the network's coarsest stride and bring a halo as wide as its
    receptive field, so that the tiling changes the result by rounding only.

    Parameters
    ----------
    model : FieldModel
    inputs : array, (channel, x, y, z)
        Physical fields, the line of sight last.
    tile : int, optional
        Most cells a side of a tile, without its halo; default: the largest whose pass fits into
        the memory of :func:`~cosmofields.lazy.machine`.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "float32", "bfloat16"}
        See :func:`~cosmofields.engine.resolve_precision`.
    symmetries : {1, 2, 4, 8, 16}
        Passes a tile, each under another symmetry that keeps the line of sight; averaged.
    progress : bool
        Show a bar (for numpy input; a lazy result takes dask's own).

    Returns
    -------
    array, (channel, x, y, z)
        numpy for numpy, a lazy dask array for dask.
    """
    if inputs.shape[0] != model.n_in:
        raise DimensionError(
            f"{inputs.shape[0]} input channels; the {model.target} model takes {model.n_in} "
            f"({model.n_bins} mass bins)"
        )
    where = engine.resolve_device(device)
    lazily = isinstance(inputs, da.Array)
    plan = engine.plan(
        model,
        inputs.shape[1:],
        engine.memory_of(where),
        precision,
        device=device,
        # Every thread of a worker brings the chunks of its tile; then one pass runs at a time.
        waiting=machine().threads if lazily else 0,
        tile=tile,
        symmetries=symmetries,
    )
    log.info("%s network: %s", model.target, plan)
    if not lazily:
        out = np.empty((model.n_out, *plan.shape), np.float32)
        for window in track(plan.windows, progress, f"{model.target} network"):
            # Unnamed, so that the last tile's input is gone when the next is gathered.
            out[(slice(None), *window)] = engine.run_tile(
                model,
                tiles.gather(inputs, window, plan.halo),
                plan.halo,
                where,
                plan.precision,
                symmetries,
            )
        return out

    return _lazily(model, inputs, plan, where).rechunk(chunk_shape((model.n_out, *plan.shape)))


def _lazily(
    model: FieldModel, inputs: da.Array, plan: engine.TilePlan, device: torch.device
) -> da.Array:
    """One task a tile, and one that holds the model.

    The chunks of a tile and its halo reach the pass apart: put together before it, tiles that wait
    for their turn would be twice in memory.
    """
    kept = dask.delayed(model, traverse=False, pure=False)
    parts = [tiles.gather(inputs, window, plan.halo) for window in plan.windows]
    name = f"{model.target}-network-{uuid.uuid4().hex}"
    places = product([0], *(range(len(axis)) for axis in plan.bounds))
    tasks = {
        (name, *place): (
            _run_blocks,
            kept.key,
            part.__dask_keys__(),
            plan.halo,
            device,
            plan.precision,
            plan.symmetries,
        )
        for place, part in zip(places, parts, strict=True)
    }
    with engine.resources(device):
        layer = MaterializedLayer(tasks)
    graph = HighLevelGraph.from_collections(name, layer, [kept, *parts])
    sides = (tuple(hi - lo for lo, hi in axis) for axis in plan.bounds)
    return da.Array(graph, name, ((model.n_out,), *sides), dtype=np.float32)


def _run_blocks(model: FieldModel, pieces: Any, *how: Any) -> NDArray[np.float32]:
    with engine.ONE_PASS:
        return engine.run_tile(model, np.block(pieces), *how)


def track(items: Sequence[Any], progress: bool, what: str) -> Iterable[Any]:
    """The items, with a bar if ``progress`` asks for one."""
    if not progress:
        return items
    from rich.progress import track as bar

    return bar(items, description=what, console=bars())
