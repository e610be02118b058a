"""From a catalogue to density, velocity and momentum, in stages, in one store that can be resumed.

============  ==================================================================================
``/halos``     the selected tracers as they were painted
``/observed``  ``halo_density``, painted out of core
``/linear``    ``density`` and ``velocity`` of the whole box: a tile lacks the waves that carry it
``/reconstructed``  ``density``, then ``velocity`` and ``momentum``, network tile by network tile
============  ==================================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy.fft
import xarray as xr
from rich.console import Console
from rich.table import Table
from zarr.storage import MemoryStore

from . import engine, stages
from .catalog import row_dim, select
from .conventions import (
    AXES,
    FIELDS,
    CatalogError,
    Grid,
    StoreError,
    attribute,
    box_facts,
    box_lengths,
    derived,
    is_lazy,
    label,
    periodic_grid,
    variable,
)
from .cosmology import cosmology_of
from .encoding import json_attrs
from .inference import axes_to_los_last, check_box, turn, vector_channels
from .kernels import tiles
from .lazy import CHUNK, chunk_shape, log, machine
from .linear import linear_theory, tracers
from .painting import paint
from .store import StorePath, open_store, side_text
from .unet import FieldModel, load_model

_COLUMNS = ("position", "mass", "mass_bin")
# Stage that writes each array.
WRITERS = {
    "observed/halo_density": "observed",
    "linear/density": "linear",
    "linear/velocity": "linear",
    "reconstructed/density": "density",
    "reconstructed/velocity": "velocity",
    "reconstructed/momentum": "velocity",
}


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
    What is done is on disk: a call that died, made again, goes on where it stopped.  With the same
    memory and the like workers its result has the bits of an undisturbed one; else it agrees to
    rounding.  A call whose result is whole only opens it.  One call at a time may write a store.

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
    # Workers may stand in another directory.
    store = os.fspath(store) if "://" in os.fspath(store) else os.path.abspath(store)
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
        with stages.alone(store):
            job = _job(observed, store, models, cards, device=device, precision=precision)
            plan = _plan(job, halos, observed)
            found = stages.state(store, plan)
            if found == "whole":
                say.print(f"{store} is whole already", markup=False, soft_wrap=True)
            else:
                if not say.quiet:
                    say.print(_description(job, found))
                if found == "nothing":
                    with _timed(say, "store: template, halos"):
                        template = _template(job, halos, observed)
                        stages.create(
                            template, store, plan=plan, stages=job.counts, title=job.title
                        )
                for stage in job.counts:
                    _do(job, stage, observed, say)
                stages.close(store, WRITERS)
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
        field = variable(source, "halo_density")
        tracers(field)
        return None, source[["halo_density"]].assign(halo_density=field.astype(np.float32))
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
    # Lazy, for its coordinates and checks: what is painted is read from the store.
    return halos, paint(halos.chunk({dim: -1}), n_grid, weighting=wanted["weighting"])


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
    device = str(engine.resolve_device(device))
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
    for target, one in plans.items():
        if one.nbytes > memory and target in tile:
            raise StoreError(
                f"'{store}' was begun with tiles of {' x '.join(map(str, one.tile))} cells of the "
                f"{target} network. They need {one.nbytes / 1e9:.1f} GB and {memory / 1e9:.1f} GB "
                "are allowed: give it more memory, or another store"
            )
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


def _plan(job: _Job, halos: xr.Dataset | None, observed: xr.Dataset) -> dict[str, Any]:
    """What decides the numbers, as JSON would give it back."""
    field = observed["halo_density"]
    found = stages.rows(halos, _COLUMNS) if halos is not None else stages.moments(field)
    plan = {
        **json_attrs(box_facts(observed), "tracers"),
        "n_grid": job.grid.shape,
        "weighting": field.attrs.get("weighting"),
        "tracers": stages.digest(*found),
        "models": {name: stages.digest(*_weights(model)) for name, model in job.models.items()},
        "linear_bias": job.bias,
        "tiles": {name: plan.tile for name, plan in job.plans.items()},
        "precision": job.precision,
    }
    return dict(json.loads(json.dumps(plan)))


def _weights(model: FieldModel) -> Iterator[bytes]:
    for name, tensor in model.state_dict().items():
        yield name.encode()
        yield tensor.cpu().numpy().tobytes()


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
    """Lazy ``halo_density`` by the chunks of a store; its coordinates, which are small, in memory.

    What is in memory goes into the template as it is.
    """
    halos = observed["halo_density"]
    coords = halos.coords.to_dataset().load().coords
    if is_lazy(halos):
        lazy = halos.variable.chunk(dict.fromkeys(AXES, CHUNK)).data
        halos = halos.copy(data=lazy)
    return observed.assign(halo_density=halos).assign_coords(coords)


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
    n_cells = float(np.prod(job.grid.shape))
    left = {
        stage: n if found == "nothing" else len(stages.pending(job.store, stage))
        for stage, n in job.counts.items()
    }
    transform, write = _probe()
    n_bins = job.models["density"].n_bins
    shared = where.workers * where.threads
    # Fields held at once: a mesh a bin; modes of two fields, and a real one on its way out.
    for stage, n_fields, seconds in (
        ("observed", n_bins, n_bins * write),
        ("linear", 5, 6 * transform + (4 + n_bins) * write),
    ):
        nbytes = 4 * n_fields * n_cells / where.workers
        spent = seconds * n_cells / shared if left[stage] else 0.0
        table.add_row(stage, "", "", "", f"{nbytes / 1e9:.1f} GB", _minutes(spent))
    for stage, plan in job.plans.items():
        pace = engine.seconds_per_cell(job.models[stage], job.device, job.precision)
        n = job.counts[stage]
        spent = pace * plan.cost * n_cells * left[stage] / n / where.workers
        table.add_row(
            stage,
            str(n) if left[stage] == n else f"{left[stage]} of {n}",
            " x ".join(map(str, plan.tile)),
            f"{plan.cost:.2f}",
            f"{plan.nbytes / 1e9:.1f} GB",
            _minutes(spent),
        )
    return table


def _probe() -> tuple[float, float]:
    """Seconds a cell, on one core, of a Fourier transform and of writing compressed float32."""
    block = np.random.default_rng(0).standard_normal((CHUNK,) * 3, np.float32)
    started = time.perf_counter()
    scipy.fft.irfftn(scipy.fft.rfftn(block))
    transformed = time.perf_counter()
    xr.Dataset({"block": (AXES, block)}).to_zarr(MemoryStore(), zarr_format=3, consolidated=False)
    written = time.perf_counter()
    return (transformed - started) / 2 / block.size, (written - transformed) / block.size


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


# --- doing it ---


@contextmanager
def _timed(say: Console, what: str) -> Iterator[None]:
    started = time.perf_counter()
    say.print(f"{what} ...", highlight=False)
    yield
    seconds = time.perf_counter() - started
    log.info("%s: %.1f s", what, seconds)
    say.print(f"{seconds:7.1f} s  {what}", highlight=False)


def _do(job: _Job, stage: str, observed: xr.Dataset, say: Console) -> None:
    """What is left of a stage."""
    left = stages.pending(job.store, stage)
    if not left:
        return
    done = job.counts[stage] - len(left)
    with _timed(say, f"{stage}: {done} of {job.counts[stage]} tiles were there" if done else stage):
        _run(job, stage, left, observed, progress=not say.quiet and say.is_terminal)


def _run(
    job: _Job, stage: str, left: Sequence[int], observed: xr.Dataset, *, progress: bool
) -> None:
    if stage == "observed":
        painted = _painted(job, observed)
        if is_lazy(painted):
            write = stages.write(job.store, "observed", painted, ["halo_density"])
            stages.run([write], progress=progress)
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
            # Of passes that use all cores, one runs while the next waits.
            stages.run(tasks, progress=progress, at_once=2)


def _painted(job: _Job, observed: xr.Dataset) -> xr.Dataset:
    """Halo fields, from the catalogue in the store if there is one."""
    try:
        halos = stages.open_group(job.store, "halos")
    except (FileNotFoundError, KeyError):
        return _cut(observed)
    weighting = observed["halo_density"].attrs["weighting"]
    return paint(halos, job.grid.shape, weighting=weighting)


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
    order = axes_to_los_last(los)
    names = ["observed/halo_density"]
    if target == "velocity":
        names += ["reconstructed/density", "linear/velocity"]
    shape = [window[axis].stop - window[axis].start + 2 * halo for axis in order]
    # Tiles that wait for their turn hold no memory.
    with engine.ONE_PASS:
        inputs = np.empty((model.n_in, *shape), np.float32)
        at = 0
        for name in names:
            part = tiles.gather(stages.read(store, name), window, halo)
            vector = vector_channels(name.split("/")[1])
            part = turn(part if part.ndim > 3 else part[None], order, vector)
            inputs[at : at + len(part)] = part
            at += len(part)
        del part
        # Of the velocity's inputs; the density's has none, and needs none.
        density = inputs[(slice(model.n_bins, model.n_bins + 1), *(slice(halo, -halo),) * 3)].copy()
        result = engine.run_tile(model, inputs, halo, device, precision)
        del inputs
    back = [int(axis) for axis in np.argsort(order)]
    if target == "density":
        stages.Target(store, "reconstructed/density")[window] = turn(result, back, 0)[0]
    else:
        place = (slice(None), *window)
        stages.Target(store, "reconstructed/velocity")[place] = turn(result, back, 3)
        result *= density
        stages.Target(store, "reconstructed/momentum")[place] = turn(result, back, 3)
    stages.tick(store, target, task)
