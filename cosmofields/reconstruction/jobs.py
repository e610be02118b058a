"""What is to be done: the job, its plan in the store, the store's template, the plan for people."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import scipy.fft
import xarray as xr
from rich.table import Table
from zarr.storage import MemoryStore

from .. import calibration, engine, stages
from ..conventions import (
    AXES,
    FIELDS,
    Grid,
    ModelMismatchError,
    StoreError,
    attribute,
    box_facts,
    derived,
    is_lazy,
    label,
    listing,
    periodic_grid,
)
from ..encoding import json_attrs
from ..inference import linear_options, same_theory
from ..inference.fields import RESTORED
from ..lazy import CHUNK, chunk_shape, machine
from ..store import StorePath, side_text
from ..unet import FieldModel, cited, weights_digest

ERRORS = ("density_error", "velocity_error")
# Cells, once for each symmetry: fewer are done about as soon as probes, of seconds, say when.
WORTH_PROBING = 256**3
# Of a catalogue: what decides the numbers, and what is kept beside it.
DECIDING = ("position", "mass", "mass_bin")
COLUMNS = (*DECIDING, "velocity")
# Stage that writes each array.
WRITERS = {
    "observed/halo_density": "observed",
    "linear/density": "linear",
    "linear/velocity": "linear",
    "reconstructed/density": "density",
    "reconstructed/velocity": "velocity",
}
# Where what models see lies in the store.
PLACES = {
    "halo_density": "observed/halo_density",
    "density": "reconstructed/density",
    "velocity": "reconstructed/velocity",
    "linear_velocity": "linear/velocity",
    "unfiltered_velocity": "linear/velocity",
    "unfiltered_momentum": "linear/momentum",
}


@dataclass(frozen=True)
class Job:
    """What the stages share."""

    store: StorePath
    grid: Grid
    los: str
    theory: dict[str, Any]  # options of linear_theory, as density and velocity model saw it
    momentum_theory: dict[str, Any]  # the same of the momentum model, if it sees one
    models: dict[str, FieldModel]
    plans: dict[str, engine.TilePlan]
    device: str
    precision: str
    title: str
    cards: dict[str, dict[str, Any]]
    symmetries: int = 1
    restore_power: bool = False
    uncertainty: bool = False

    @property
    def mean(self) -> calibration.Table | None:
        """Recalibration of the density."""
        return calibration.mean_table(self.cards["density"], symmetries=self.symmetries)

    @property
    def counts(self) -> dict[str, int]:
        """Tasks of each stage."""
        networks = {name: len(plan.windows) for name, plan in self.plans.items()}
        counts = {"observed": 1, "linear": 1, **networks}
        if self.uncertainty:
            counts["errors"] = 1
        if self.restore_power:
            counts["restored"] = 1
        return counts

    @property
    def writers(self) -> dict[str, str]:
        """Stage that writes each array."""
        found = dict(WRITERS)
        found["reconstructed/momentum"] = "momentum" if "momentum" in self.models else "velocity"
        if self.momentum_theory:
            found["linear/momentum"] = "linear"
        if self.uncertainty:
            found |= {f"reconstructed/{name}": "errors" for name in ERRORS}
        if self.restore_power:
            found |= {f"restored/{name}": "restored" for name in RESTORED}
        return found


def make_job(
    observed: xr.Dataset,
    store: StorePath,
    models: dict[str, FieldModel],
    cards: dict[str, dict[str, Any]],
    *,
    device: str,
    precision: str,
    symmetries: int,
    restore_power: bool,
    uncertainty: bool,
) -> Job:
    """The job for a box, as it was begun in a store or as memory has it now."""
    grid = periodic_grid(observed, what="reconstruct")
    device = str(engine.resolve_device(device))
    # What was begun goes on as it began, also where there is less memory or another processor.
    begun = stages.plan_of(store) or {}
    if precision == "auto":
        precision = begun.get("precision", "auto")
    precision = engine.resolve_precision(precision, device, *models.values())
    memory = engine.memory_of(engine.resolve_device(device))
    options: dict[str, Any] = {"precision": precision, "device": device, "symmetries": symmetries}
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
    theory = {
        target: linear_options(model.inputs, cards[target]["linear_bias"])
        for target, model in models.items()
    }
    if "linear_velocity" in models["density"].inputs and not same_theory(
        theory["density"], theory["velocity"]
    ):
        raise ModelMismatchError(
            f"The density model saw linear theory with {theory['density']}, the velocity model "
            f"with {theory['velocity']}; a store holds one: train both on the same boxes"
        )
    return Job(
        store=store,
        grid=grid,
        los=attribute(observed, "los"),
        theory=theory["velocity"],
        momentum_theory=theory.get("momentum", {}),
        models=models,
        plans=plans,
        device=device,
        precision=precision,
        title=f"reconstruction by {listing(card['name'] for card in cards.values())}",
        cards=cards,
        symmetries=symmetries,
        restore_power=restore_power,
        uncertainty=uncertainty,
    )


def plan_of(job: Job, halos: xr.Dataset | None, observed: xr.Dataset) -> dict[str, Any]:
    """What decides the numbers, as JSON would give it back."""
    field = observed["halo_density"]
    found = stages.rows(halos, DECIDING) if halos is not None else stages.moments(field)
    plan = {
        **json_attrs(box_facts(observed), "tracers"),
        "n_grid": job.grid.shape,
        "weighting": field.attrs.get("weighting"),
        "tracers": stages.digest(*found),
        "models": {name: weights_digest(model) for name, model in job.models.items()},
        "linear_bias": job.theory["bias"],
        "tiles": {name: plan.tile for name, plan in job.plans.items()},
        "precision": job.precision,
    }
    # What is not asked for is not named, as in the stores of those who could not ask for it.
    asked = {key: getattr(job, key) for key in ("restore_power", "uncertainty")}
    plan |= {key: True for key, wanted in asked.items() if wanted}
    if job.symmetries > 1:
        plan["symmetries"] = job.symmetries
    if job.momentum_theory:
        plan["momentum_bias"] = job.momentum_theory["bias"]
    if (mean := job.mean) is not None:
        plan["recalibration"] = stages.digest(*(part.tobytes() for part in mean))
    if any(asked.values()):
        measured = [card.get("calibration") for card in job.cards.values()]
        plan["calibration"] = stages.digest(json.dumps(measured, sort_keys=True).encode())
    return dict(json.loads(json.dumps(plan)))


def template_of(job: Job, halos: xr.Dataset | None, observed: xr.Dataset) -> xr.DataTree:
    """The store as it will be, its fields lazy."""
    facts = {**box_facts(observed), "space": "real"}

    def empty(name: str, **attrs: Any) -> xr.DataArray:
        shape = (*(3 for _ in FIELDS[name].dims[:-3]), *job.grid.shape)
        zeros = da.zeros(shape, dtype=np.float32, chunks=chunk_shape(shape))
        return label(name, zeros, job.grid, facts, **attrs)

    linear = {name: empty(name, **job.theory) for name in ("density", "velocity")}
    if job.momentum_theory:
        linear["momentum"] = empty("momentum", **job.momentum_theory)
    made: dict[str, Any] = {"precision": job.precision, "symmetries": job.symmetries}
    by_name = {
        target: {"model": card["name"], "weights_digest": card["weights_digest"], **made}
        for target, card in job.cards.items()
    }
    factors = (by_name["density"], by_name["velocity"])
    product = {key: " x ".join(by[key] for by in factors) for key in ("model", "weights_digest")}
    by_name.setdefault("momentum", {**product, **made})
    errors = {name: empty(name, **by_name[name.removesuffix("_error")]) for name in ERRORS}
    if job.mean is not None:
        by_name["density"]["recalibrated"] = calibration.mean_name(job.cards["density"])
    fields = {name: empty(name, **attrs) for name, attrs in by_name.items()}
    if job.uncertainty:
        fields |= errors
    by = listing(map(cited, job.cards.values()))
    versions = {
        "linear": derived(linear, observed, "reconstruct: linear theory", space="real"),
        "reconstructed": derived(fields, observed, f"reconstruct: {by}", space="real"),
    }
    if job.restore_power:
        again = {
            name: empty(name, **by_name[name], estimator="power restored") for name in RESTORED
        }
        versions["restored"] = derived(again, observed, f"restored: {by}", space="real")
    if halos is not None:
        versions["halos"] = halos
    versions["observed"] = cut(observed)
    return xr.DataTree.from_dict(versions)


def cut(observed: xr.Dataset) -> xr.Dataset:
    """Lazy ``halo_density`` by the chunks of a store; its coordinates, which are small, in memory.

    What is in memory goes into the template as it is.
    """
    halos = observed["halo_density"]
    coords = halos.coords.to_dataset().load().coords
    if is_lazy(halos):
        lazy = halos.variable.chunk(dict.fromkeys(AXES, CHUNK)).data
        halos = halos.copy(data=lazy)
    return observed.assign(halo_density=halos).assign_coords(coords)


def description(job: Job, found: str) -> Table:
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
        f"at most {where.memory / 1e9:.3g} GB each, {job.precision}"
        + ("; going on with what is there" if found == "begun" else ""),
        title_justify="left",
    )
    n_cells = float(np.prod(job.grid.shape))
    timed = n_cells * job.symmetries >= WORTH_PROBING
    columns = ["stage", "tiles", "cells a side", "computed / kept", "memory"]
    columns += ["time, about"] if timed else []
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    left = {
        stage: n if found == "nothing" else len(stages.pending(job.store, stage))
        for stage, n in job.counts.items()
    }
    transform, write = _probe() if timed else (0.0, 0.0)
    n_bins = job.models["density"].n_bins
    shared = where.workers * where.threads
    # Fields held at once: a mesh a bin; modes of two fields, and a real one on its way out.
    for stage, n_fields, seconds in (
        ("observed", n_bins, n_bins * write),
        ("linear", 5, 6 * transform + (4 + n_bins) * write),
        ("errors", 3, 2 * transform + 4 * write),
        ("restored", 3, 14 * transform + 7 * write),
    ):
        if stage not in left:
            continue
        nbytes = 4 * n_fields * n_cells / where.workers
        spent = seconds * n_cells / shared if left[stage] else 0.0
        row = [stage, "", "", "", f"{nbytes / 1e9:.1f} GB", _minutes(spent)]
        table.add_row(*row[: len(columns)])
    for stage, plan in job.plans.items():
        pace = 0.0
        if timed and left[stage]:
            pace = engine.seconds_per_cell(job.models[stage], job.device, job.precision)
        n = job.counts[stage]
        spent = pace * plan.cost * n_cells * left[stage] / n / where.workers
        row = [
            stage,
            str(n) if left[stage] == n else f"{left[stage]} of {n}",
            " x ".join(map(str, plan.tile)),
            f"{plan.cost:.2f}",
            f"{plan.nbytes / 1e9:.1f} GB",
            _minutes(spent),
        ]
        table.add_row(*row[: len(columns)])
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
