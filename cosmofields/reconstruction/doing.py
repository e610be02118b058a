"""The stages of a job, done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dask
import numpy as np
import xarray as xr
from rich.console import Console

from .. import engine, stages
from ..calibration import Table, undoing
from ..conventions import is_lazy
from ..inference import axes_to_los_last, turn
from ..inference.fields import RESTORED, errors, restored
from ..kernels import tiles
from ..lazy import log
from ..linear import linear_theory
from ..painting import paint
from ..store import StorePath
from ..unet import FieldModel, vector_channels
from .jobs import ERRORS, PLACES, Job, cut


@contextmanager
def timed(say: Console, what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    started = time.perf_counter()
    say.print(f"{what} ...", highlight=False)
    yield
    seconds = time.perf_counter() - started
    log.info("%s: %.1f s", what, seconds)
    say.print(f"{seconds:7.1f} s  {what}", highlight=False)


def do(job: Job, stage: str, observed: xr.Dataset, say: Console) -> None:
    """What is left of a stage."""
    left = stages.pending(job.store, stage)
    if not left:
        return
    done = job.counts[stage] - len(left)
    with timed(say, f"{stage}: {done} of {job.counts[stage]} tiles were there" if done else stage):
        # A log gets no bars.
        seen = say.is_terminal or say.is_jupyter
        _run(job, stage, left, observed, progress=not say.quiet and seen)


def _run(
    job: Job, stage: str, left: Sequence[int], observed: xr.Dataset, *, progress: bool
) -> None:
    if stage == "observed":
        painted = _painted(job, observed)
        if is_lazy(painted):
            write = stages.write(job.store, "observed", painted, ["halo_density"])
            stages.run([write], progress=progress)
        stages.tick(job.store, stage, 0)
    elif stage == "linear":
        halos = stages.open_group(job.store, "observed")
        linear = linear_theory(halos, **job.theory)
        write = [stages.write(job.store, "linear", linear, ["density", "velocity"])]
        if job.momentum_theory:
            linear = linear_theory(halos, **job.momentum_theory)
            write.append(stages.write(job.store, "linear", linear, ["momentum"]))
        stages.run(write, progress=progress)
        stages.tick(job.store, stage, 0)
    elif stage in ("errors", "restored"):
        fields = stages.open_group(job.store, "reconstructed")
        if stage == "errors":
            group, wanted = "reconstructed", [*ERRORS]
            made = xr.Dataset(errors(fields["density"], job.cards, job.symmetries))
        else:
            group, wanted = "restored", [*RESTORED]
            made = restored(fields, job.cards, job.symmetries)
        stages.run([stages.write(job.store, group, made, wanted)], progress=progress)
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
                    job.symmetries,
                    job.mean,
                    "momentum" not in job.models,
                )
                for i in left
            ]
            # Of passes that use all cores, one runs while the next waits.
            stages.run(tasks, progress=progress, at_once=2)


def _painted(job: Job, observed: xr.Dataset) -> xr.Dataset:
    """Halo fields, from the catalogue in the store if there is one."""
    try:
        halos = stages.open_group(job.store, "halos")
    except (FileNotFoundError, KeyError):
        return cut(observed)
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
    symmetries: int,
    mean: Table | None,
    with_product: bool,
) -> None:
    """Read a tile with its surroundings, run the network, write whole chunks, tick it off."""
    order = axes_to_los_last(los)
    shape = [window[axis].stop - window[axis].start + 2 * halo for axis in order]
    # Tiles that wait for their turn hold no memory.
    with engine.ONE_PASS:
        inputs = np.empty((model.n_in, *shape), np.float32)
        at = 0
        for name in model.inputs:
            part = tiles.gather(stages.read(store, PLACES[name]), window, halo)
            # The store holds the density recalibrated; networks know it as it came from one.
            if name == "density" and mean is not None:
                part *= undoing(mean)(part)
            vector = vector_channels([name])
            part = turn(part if part.ndim > 3 else part[None], order, vector)
            inputs[at : at + len(part)] = part
            at += len(part)
        del part
        result = engine.run_tile(model, inputs, halo, device, precision, symmetries)
        del inputs
    back = [int(axis) for axis in np.argsort(order)]
    if target == "density":
        result = turn(result, back, 0)[0]
        if mean is not None:
            result = result * mean(result)
        stages.Target(store, PLACES["density"])[window] = result
    else:
        place = (slice(None), *window)
        result = turn(result, back, 3)
        stages.Target(store, f"reconstructed/{target}")[place] = result
        if target == "velocity" and with_product:
            result *= stages.read(store, PLACES["density"])[window]
            stages.Target(store, "reconstructed/momentum")[place] = result
    stages.tick(store, target, task)
