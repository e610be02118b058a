"""A saved model over a box: lazily, tile by tile with overlapping halos, on CPU or GPU."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from numpy.typing import NDArray

from . import engine
from .conventions import (
    AXES,
    FIELDS,
    DimensionError,
    ModelMismatchError,
    attribute,
    box_facts,
    check_los,
    check_same_grid,
    label,
    listing,
    periodic_grid,
    variable,
)
from .cosmology import as_cosmology, cosmology_of, redshift_of
from .kernels import tiles
from .lazy import chunk_shape, machine
from .linear import as_dataset, linear_velocity
from .unet import FieldModel, load_model

Bias = float | Sequence[float]
# Beyond these relative differences a box is not what the model was trained for.
TOLERANCE = 0.02
REDSHIFT_TOLERANCE = 0.05
log = logging.getLogger("cosmofields")


def axes_to_los_last(los: str) -> tuple[int, int, int]:
    """Cyclic order of the axes that puts ``los`` last: a rotation, so that vectors stay vectors."""
    last = AXES.index(check_los(los))
    return (last + 1) % 3, (last + 2) % 3, last


def turn(array: Any, order: Sequence[int], vector_channels: int) -> Any:
    """Reorder the axes of (channel, x, y, z), and the components among its last channels."""
    turned = array.transpose(0, *(1 + axis for axis in order))
    if not vector_channels:
        return turned
    first = turned.shape[0] - 3
    return turned[[*range(first), *(first + axis for axis in order)]]


def vector_channels(target: str) -> int:
    """How many of a model's last channels, in and out, are components that turn with the axes."""
    return 3 if FIELDS[target].is_vector else 0


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
    vector = vector_channels(model.target)
    return turn(apply_model(model, turn(inputs, order, vector), **options), back, vector)


def model_inputs(
    observed: xr.Dataset, target: str, *, density: xr.DataArray | None, bias: Bias | None
) -> Any:
    """Input channels (channel, x, y, z) of a model, in the axes of the box.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``.
    target : {"density", "velocity"}
    density : DataArray, dims (x, y, z)
        The density that a velocity model sees; not used for a density model.
    bias : float or one a mass bin
        Of the filter of the linear velocity that a velocity model sees.

    Returns
    -------
    numpy or dask array, as ``observed`` is
    """
    halos = variable(observed, "halo_density")
    if target == "density":
        return halos.data
    assert density is not None
    if "linear_velocity" in observed:
        linear = observed["linear_velocity"].transpose("component", *AXES)
    else:
        linear = linear_velocity(observed, bias=bias)
    check_same_grid(halos, density, linear)
    return np.concatenate([halos.data, density.data[None], linear.data])


def check_box(observed: xr.Dataset, card: dict[str, Any], multiple: int = 4) -> None:
    """Refuse a box unlike those that the model was trained on.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``.
    card : dict
        Of the model.
    multiple : int
        Cells of the network's coarsest level, for the advice on ``n_grid``.

    Raises
    ------
    ModelMismatchError
        Naming every difference, and how to overrule it.
    """
    halos = variable(observed, "halo_density", hint="Paint a catalogue: halos.recon.paint().")
    wanted = card["trained_for"]
    grid = periodic_grid(halos, what="reconstruction")
    wrong = []
    cells = grid.cell_size
    if not np.allclose(cells, wanted["cell_size"], rtol=TOLERANCE):
        nearest = [
            multiple * max(1, round(side / wanted["cell_size"] / multiple)) for side in grid.lengths
        ]
        given, right = (
            listing(dict.fromkeys(f"{number:.4g}" for number in numbers))
            for numbers in (cells, nearest)
        )
        wrong.append(
            f"cell size {given} Mpc/h, trained for {wanted['cell_size']:.4g} "
            f"(nearest: paint with n_grid = {right})"
        )
    density = list(halos.attrs.get("number_density") or [])
    if len(density) != len(wanted["number_density"]) or not np.allclose(
        density, wanted["number_density"], rtol=TOLERANCE
    ):
        wrong.append(
            f"cumulative number densities of the mass bins {density} (h/Mpc)^3, trained for "
            f"{wanted['number_density']} (use select(number_density=...) with these)"
        )
    z = redshift_of(halos)
    if abs(z - wanted["redshift"]) > REDSHIFT_TOLERANCE:
        wrong.append(f"redshift {z:g}, trained for {wanted['redshift']:g}")
    cosmology, trained = cosmology_of(halos), as_cosmology(wanted["cosmology"])
    for name in ("f", "aH"):
        here, there = (float(getattr(c, name)(z)) for c in (cosmology, trained))
        if abs(here / there - 1) > 2 * TOLERANCE:
            wrong.append(
                f"{name} = {here:.3g} at this redshift, {there:.3g} in the model's universe"
            )
    advice = {
        "weighting": f"paint(weighting={wanted['weighting']!r})",
        "space": "to_redshift_space() before paint(), or from_arrays(..., los='z')",
    }
    for key, how in advice.items():
        value = halos.attrs.get(key)
        if value != wanted[key]:
            wrong.append(f"{key} {value!r}, trained for {wanted[key]!r} ({how})")
    if wrong:
        raise ModelMismatchError(
            f"The model {card['name']!r} was not trained for this box: {'; '.join(wrong)}. "
            "To use it all the same: allow_mismatch=True"
        )


def apply_model(
    model: FieldModel,
    inputs: Any,
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
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
    )
    log.info("%s network: %s", model.target, plan)
    if not lazily:
        out = np.empty((model.n_out, *plan.shape), np.float32)
        for window in track(plan.windows, progress, f"{model.target} network"):
            # Unnamed, so that the last tile's input is gone when the next is gathered.
            out[(slice(None), *window)] = engine.run_tile(
                model, tiles.gather(inputs, window, plan.halo), plan.halo, where, plan.precision
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
    """The items, with a bar on the terminal if ``progress`` asks for one."""
    if not progress:
        return items
    from rich.progress import track as bar

    return bar(items, description=what)


Loaded = tuple[FieldModel, dict[str, Any]]


def _load(
    observed: xr.Dataset, model: str | Path, targets: Sequence[str], allow_mismatch: bool
) -> dict[str, Loaded]:
    """The models and their cards, by target; all that may be missing is said before any runs."""
    loaded = {target: load_model(target, model) for target in targets}
    for network, card in loaded.values():
        if not allow_mismatch:
            check_box(observed, card, network.coarsest)
    if "velocity" in targets and "linear_velocity" not in observed:
        cosmology_of(observed).require_power()
    return loaded


def _predict(
    loaded: Loaded, observed: xr.Dataset, density: xr.DataArray | None, options: dict[str, Any]
) -> xr.DataArray:
    """Assemble the inputs, run, label."""
    model, card = loaded
    bias = card["linear_bias"].get("mass_bins")
    inputs = model_inputs(observed, model.target, density=density, bias=bias)
    precision = engine.resolve_precision(options["precision"], options["device"], model)
    options = {**options, "precision": precision}
    data = run_in_box(model, inputs, attribute(observed, "los"), **options)
    grid = periodic_grid(observed, what="reconstruction")
    facts = {**box_facts(observed), "space": "real"}
    named = label(model.target, data[0] if model.target == "density" else data, grid, facts)
    return named.assign_attrs(model=card["name"], precision=precision)


def predict_density(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter density from the halos of a redshift-space box (step one).

    Parameters
    ----------
    observed : Dataset
        With ``halo_density`` (mass_bin, x, y, z): the whole periodic box in redshift space.
    model : path or ``"default"``
        Directory of a saved model.
    tile : int, optional
        Most cells a side of a tile; default: by memory, see :func:`apply_model`.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "float32", "bfloat16"}
        Of the network's arithmetic; ``"auto"``: bfloat16 where the processor has it, which here
        changes no score (``docs/models.md``).  The result's attribute ``precision`` says which.
    allow_mismatch : bool
        Run on a box whose cell size, tracers or redshift the model was not trained for.
    progress : bool
        Show a bar.

    Returns
    -------
    DataArray, dims (x, y, z)
        ``density`` = 1 + delta, positive; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    loaded = _load(observed, model, ["density"], allow_mismatch)
    options = {"tile": tile, "device": device, "precision": precision, "progress": progress}
    return _predict(loaded["density"], observed, None, options)


def predict_velocity(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter velocity from the halos of a redshift-space box (step two).

    Its further inputs are made on the way: the density by :func:`predict_density` unless
    ``observed`` holds ``density``, and the filtered linear velocity with the bias that the model
    carries unless it holds ``linear_velocity``.

    Parameters
    ----------
    observed, model, tile, device, precision, allow_mismatch, progress
        As in :func:`predict_density`.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``velocity`` in km/s; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    targets = ["velocity"] if "density" in observed else ["density", "velocity"]
    loaded = _load(observed, model, targets, allow_mismatch)
    options = {"tile": tile, "device": device, "precision": precision, "progress": progress}
    if "density" in observed:
        density = variable(observed, "density")
    else:
        density = _predict(loaded["density"], observed, None, options)
    return _predict(loaded["velocity"], observed, density, options)


def predict(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Real-space matter density, velocity and momentum from a redshift-space box.

    Parameters
    ----------
    observed, model, tile, device, precision, allow_mismatch, progress
        As in :func:`predict_density`.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``velocity`` in km/s, ``momentum`` = density x velocity in km/s;
        lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    loaded = _load(observed, model, ["density", "velocity"], allow_mismatch)
    options = {"tile": tile, "device": device, "precision": precision, "progress": progress}
    density = _predict(loaded["density"], observed, None, options)
    velocity = _predict(loaded["velocity"], observed, density, options)
    what = f"predict: model={velocity.attrs['model']}"
    return as_dataset(density, velocity, observed, what)
