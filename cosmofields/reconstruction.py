"""From a catalogue to density, velocity and momentum, in stages, in one store that can be resumed.

============  ==================================================================================
``/halos``     the selected tracers as they were painted
``/observed``  ``halo_density``, painted out of core
``/linear``    ``density`` and ``velocity`` of the whole box: a tile lacks the waves that carry it
``/reconstructed``  ``density``, then ``velocity`` and ``momentum``, network tile by network tile
============  ==================================================================================
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from . import engine, stages
from .catalog import row_dim, select
from .conventions import (
    AXES,
    FIELDS,
    CatalogError,
    Grid,
    attribute,
    box_facts,
    box_lengths,
    derived,
    label,
    periodic_grid,
)
from .cosmology import cosmology_of
from .inference import axes_to_los_last, check_box, turn, vector_channels
from .kernels import tiles
from .lazy import CHUNK, chunk_shape, log, machine
from .linear import linear_theory
from .painting import paint
from .store import StorePath, open_store, side_text
from .unet import FieldModel, load_model

# Rows of a catalogue that one painting task takes: 24 MB of positions and masses.
ROWS = 2**20
_COLUMNS = ("position", "mass", "mass_bin")


@dataclass(frozen=True)
class _Job:
    """What the stages share."""

    store: StorePath
    grid: Grid
    los: str
    bias: Sequence[float]
    models: dict[str, FieldModel]
    plans: dict[str, engine.TilePlan]
    device: str
    precision: str
    title: str

    @property
    def counts(self) -> dict[str, int]:
        """Tasks of each stage."""
        networks = {name: len(plan.windows) for name, plan in self.plans.items()}
        return {"observed": 1, "linear": 1, **networks}


def reconstruct(
    source: xr.Dataset,
    store: StorePath,
    *,
    n_grid: int | Sequence[int] | None = None,
    model: str | Path = "default",
    memory: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = True,
    console: Console | None = None,
) -> xr.DataTree:
    """Reconstruct density, velocity and momentum from tracers, into a store, in stages.

    The stages (paint, linear theory, density network, velocity network) run out of core on
    whatever scheduler Dask has: threads, or the workers of the current ``distributed.Client``.
    What is done is on disk: a call that died, made again, goes on where it stopped, and the result
    has the bits of an undisturbed one.  A call whose result is whole only opens it.

    Parameters
    ----------
    source : Dataset
        Catalogue in redshift space with ``mass``; without mass bins, those of the model are
        selected.  Or painted fields with ``halo_density``.
    store : path or URL
        Zarr store to write, or to go on with; workers must reach it.
    n_grid : int or three, optional
        Cells per axis; default: what comes nearest to the cell size of the model.
    model : path or ``"default"``
        Directory of saved models.
    memory : str or int, optional
        Bytes that one process may fill, e.g. ``"6 GB"``.  Default: half of what is free, or of a
        worker's limit.
    device, precision, allow_mismatch
        As in :func:`~cosmofields.predict`.
    progress : bool
        Print the plan, a bar for each stage and its time.
    console : rich.console.Console, optional
        Where to print; default standard error.

    Returns
    -------
    DataTree
        The store, opened lazily: groups ``halos`` (of a catalogue), ``observed``, ``linear``,
        ``reconstructed``.

    Raises
    ------
    StoreError
        If ``store`` holds something else, or the reconstruction of something else.
    CatalogError, ModelMismatchError, MissingVariableError, MissingAttributeError
        If the tracers are in real space, or do not suit the model; before anything is written.
    """
    say = console or Console(stderr=True, quiet=not progress)
    budget = {} if memory is None else {"cosmofields.memory": memory}
    with dask.config.set(budget):
        models, cards = {}, {}
        for target in ("density", "velocity"):
            models[target], cards[target] = load_model(target, model)
        halos, observed = _tracers(source, n_grid, cards["density"], models["density"])
        for target, network in models.items():
            if not allow_mismatch:
                check_box(observed, cards[target], network.coarsest)
        cosmology_of(observed).require_power()
        job = _job(observed, store, models, cards, device=device, precision=precision)
        plan = _plan(job, observed)
        found = stages.state(store, plan)
        if found == "whole":
            say.print(f"{store} is whole already")
            return _opened(store)
        say.print(_description(job, found))
        if found == "nothing":
            with _timed(say, "store: template, halos"):
                stages.create(
                    _template(job, halos, observed),
                    store,
                    plan=plan,
                    stages=job.counts,
                    title=job.title,
                )
        for stage in job.counts:
            left = stages.pending(store, stage)
            if left:
                done = job.counts[stage] - len(left)
                what = f"{stage}: {done} of {job.counts[stage]} tiles were there" if done else stage
                with _timed(say, what):
                    _run(job, stage, left, observed, progress=progress)
        stages.close(store)
    return _opened(store)


def _opened(store: StorePath) -> xr.DataTree:
    tree = open_store(store)
    assert isinstance(tree, xr.DataTree)
    return tree


# --- what is to be done ---


def _tracers(
    source: xr.Dataset, n_grid: int | Sequence[int] | None, card: dict[str, Any], model: FieldModel
) -> tuple[xr.Dataset | None, xr.Dataset]:
    """Selected catalogue (None for painted fields), and the lazy halo fields."""
    if "halo_density" in source:
        return None, source[["halo_density"]]
    dim = row_dim(source)
    if source.attrs.get("space") != "redshift":
        raise CatalogError(
            f"The catalogue has space={source.attrs.get('space')!r}; reconstruct needs tracers in "
            "redshift space: halos.recon.to_redshift_space(los='z') first, or from_arrays(..., "
            "los='z') for positions that are shifted already"
        )
    wanted = card["trained_for"]
    # Halos are few beside the cells, and ranked by mass they come from all over the file.
    halos = source[[name for name in _COLUMNS if name in source]].compute()
    if "mass_bin" not in halos:
        halos = select(halos, wanted["number_density"])
    if n_grid is None:
        n_grid = [
            model.coarsest * max(1, round(side / wanted["cell_size"] / model.coarsest))
            for side in box_lengths(source)
        ]
    return halos, paint(halos.chunk({dim: ROWS}), n_grid, weighting=wanted["weighting"])


def _job(
    observed: xr.Dataset,
    store: StorePath,
    models: dict[str, FieldModel],
    cards: dict[str, dict[str, Any]],
    *,
    device: str,
    precision: str,
) -> _Job:
    grid = periodic_grid(observed, what="reconstruct")
    # What was begun goes on as it began, also where there is less memory or another processor.
    begun = stages.plan_of(store) or {}
    if precision == "auto":
        precision = begun.get("precision", "auto")
    precision = engine.resolve_precision(precision, device, *models.values())
    memory = engine.memory_of(engine.resolve_device(device))
    options: dict[str, Any] = {"precision": precision, "device": device}
    tile = begun.get("tiles", {})
    plans = {
        target: engine.plan(model, grid.shape, memory, tile=tile.get(target), **options)
        for target, model in models.items()
    }
    return _Job(
        store=store,
        grid=grid,
        los=attribute(observed, "los"),
        bias=cards["velocity"]["linear_bias"]["mass_bins"],
        models=models,
        plans=plans,
        device=device,
        precision=precision,
        title=f"reconstruction by {cards['density']['name']} and {cards['velocity']['name']}",
    )


def _plan(job: _Job, observed: xr.Dataset) -> dict[str, Any]:
    """What decides the numbers, as JSON would give it back."""
    halos = observed["halo_density"]
    tracers = {name: np.asarray(halos[name]).tolist() for name in ("share", "shot_noise")}
    plan = {
        **box_facts(observed),
        "n_grid": job.grid.shape,
        "weighting": halos.attrs.get("weighting"),
        "tracers": _digest(json.dumps(tracers).encode()),
        "models": {name: _digest(*_weights(model)) for name, model in job.models.items()},
        "linear_bias": job.bias,
        "tiles": {name: plan.tile for name, plan in job.plans.items()},
        "precision": job.precision,
    }
    return dict(json.loads(json.dumps(plan)))


def _weights(model: FieldModel) -> Iterator[bytes]:
    for name, tensor in model.state_dict().items():
        yield name.encode()
        yield tensor.cpu().numpy().tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _template(job: _Job, halos: xr.Dataset | None, observed: xr.Dataset) -> xr.DataTree:
    """The store as it will be, its fields lazy."""
    facts = {**box_facts(observed), "space": "real"}

    def empty(name: str, **attrs: Any) -> xr.DataArray:
        shape = (*(3 for _ in FIELDS[name].dims[:-3]), *job.grid.shape)
        zeros = da.zeros(shape, dtype=np.float32, chunks=chunk_shape(shape))
        return label(name, zeros, job.grid, facts, **attrs)

    by_filter = {"method": "wiener", "bias": list(job.bias)}
    linear = {name: empty(name, **by_filter) for name in ("density", "velocity")}
    made = {"model": job.title.removeprefix("reconstruction by "), "precision": job.precision}
    fields = {name: empty(name, **made) for name in ("density", "velocity", "momentum")}
    versions = {
        "linear": derived(linear, observed, "reconstruct: linear theory", space="real"),
        "reconstructed": derived(fields, observed, f"reconstruct: {made['model']}", space="real"),
    }
    if halos is not None:
        versions["halos"] = halos
    versions["observed"] = _cut(observed)
    return xr.DataTree.from_dict(versions)


def _cut(observed: xr.Dataset) -> xr.Dataset:
    """With lazy ``halo_density`` and its coordinates, which are small, in memory."""
    halos = observed["halo_density"]
    lazy = halos.variable.chunk(dict.fromkeys(AXES, CHUNK)).data
    coords = halos.coords.to_dataset().load().coords
    return observed.assign(halo_density=halos.copy(data=lazy)).assign_coords(coords)


def _description(job: _Job, found: str) -> Table:
    """The plan for people: stages, tiles, memory, time."""
    where = machine()
    place = (
        f"{where.workers} workers of {where.threads} threads"
        if where.remote
        else f"{where.threads} threads"
    )
    cells = " x ".join(map(str, job.grid.shape))
    table = Table(
        title=f"{cells} cells of {side_text(job.grid.cell_size)} Mpc/h on {place}, "
        f"{where.memory / 1e9:.3g} GB each, {job.precision}"
        + ("; going on with what is there" if found == "begun" else ""),
        title_justify="left",
    )
    for column in ("stage", "tiles", "cells a side", "computed / kept", "memory", "time, about"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_row("observed", "", "", "", "", "")
    table.add_row("linear", "", "", "", "", "")
    for name, plan in job.plans.items():
        pace = engine.seconds_per_cell(job.models[name], job.device, job.precision)
        left = len(plan.windows) if found == "nothing" else len(stages.pending(job.store, name))
        share = left / len(plan.windows)
        seconds = pace * plan.cost * float(np.prod(job.grid.shape)) * share / where.workers
        table.add_row(
            name,
            f"{left} of {len(plan.windows)}" if share < 1 else str(left),
            " x ".join(map(str, plan.tile)),
            f"{plan.cost:.2f}",
            f"{plan.nbytes / 1e9:.1f} GB",
            f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s",
        )
    return table


# --- doing it ---


@contextmanager
def _timed(say: Console, what: str) -> Iterator[None]:
    started = time.perf_counter()
    say.print(f"{what} ...", highlight=False)
    yield
    seconds = time.perf_counter() - started
    log.info("%s: %.1f s", what, seconds)
    say.print(f"{seconds:7.1f} s  {what}", highlight=False)


def _run(
    job: _Job, stage: str, left: Sequence[int], observed: xr.Dataset, *, progress: bool
) -> None:
    if stage == "observed":
        stages.run([_painted(job, observed)], progress=progress)
        stages.tick(job.store, stage, 0)
    elif stage == "linear":
        halos = stages.open_group(job.store, "observed")
        linear = linear_theory(halos, bias=job.bias)
        names = ["density", "velocity"]
        stages.run([stages.write(job.store, "linear", linear, names)], progress=progress)
        stages.tick(job.store, stage, 0)
    else:
        # One node holds the model: a worker gets it once.
        model = dask.delayed(job.models[stage], traverse=False, pure=False)
        task = dask.delayed(_tile, pure=False)
        with engine.resources(job.device):
            tasks = [
                task(
                    job.store,
                    stage,
                    i,
                    model,
                    job.plans[stage].windows[i],
                    job.plans[stage].halo,
                    job.los,
                    job.device,
                    job.precision,
                )
                for i in left
            ]
            stages.run(tasks, progress=progress)


def _painted(job: _Job, observed: xr.Dataset) -> Any:
    """Delayed: paint, from the catalogue in the store if there is one, and write."""
    try:
        halos = stages.open_group(job.store, "halos")
    except (FileNotFoundError, KeyError):
        lazy = _cut(observed)
    else:
        weighting = observed["halo_density"].attrs["weighting"]
        lazy = paint(halos, job.grid.shape, weighting=weighting)
    return stages.write(job.store, "observed", lazy, ["halo_density"])


def _tile(
    store: StorePath,
    target: str,
    task: int,
    model: FieldModel,
    window: tiles.Window,
    halo: int,
    los: str,
    device: str,
    precision: str,
) -> None:
    """Read a tile with its surroundings, run the network, write whole chunks, tick it off."""

    def surroundings(name: str) -> NDArray[np.float32]:
        array = np.asarray(tiles.gather(stages.read(store, name), window, halo), np.float32)
        return array if array.ndim > 3 else array[None]

    names = ["observed/halo_density"]
    if target == "velocity":
        names += ["reconstructed/density", "linear/velocity"]
    order = axes_to_los_last(los)
    vector = vector_channels(target)
    # Tiles that wait for their turn hold no memory.
    with engine.ONE_PASS:
        inputs = np.concatenate([surroundings(name) for name in names])
        result = engine.run_tile(model, turn(inputs, order, vector), halo, device, precision)
    result = turn(result, [int(axis) for axis in np.argsort(order)], vector)
    if target == "density":
        stages.Target(store, "reconstructed/density")[window] = result[0]
    else:
        inner = (slice(halo, -halo),) * 3
        density = inputs[(model.n_bins, *inner)]
        stages.Target(store, "reconstructed/velocity")[(slice(None), *window)] = result
        stages.Target(store, "reconstructed/momentum")[(slice(None), *window)] = result * density
    stages.tick(store, target, task)
