"""The fits of each trial: here, or on the workers of a Dask client."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ..conventions import CosmofieldsError, require_extra
from ..lazy import n_threads
from ..training import train
from .settings import BOXES, FITS, Job, optuna
from .study import Outcome, Study, load, quiet, trial_of

callbacks: Any = require_extra("pytorch_lightning.callbacks", "train", "Tuning")

# What took its worker with it as often as this would take the next one too.
DEATHS = 3


class Superseded(CosmofieldsError):
    """Another attempt at the same trial has begun, or its study is no longer held."""


class Watch(callbacks.Callback):
    """Reports the validation loss of each epoch, and stops a fit that is not worth going on."""

    def __init__(self, trial: Any, attempt: str, report: bool) -> None:
        self.trial = trial
        self.attempt = attempt
        self.report = report

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Report, and ask whether to go on."""
        trial = self.trial
        known = trial.study.trials[trial.number]
        if known.user_attrs.get("attempt") != self.attempt:
            raise Superseded(f"Trial {trial.number} goes on elsewhere, or its study was stopped")
        loss = float(trainer.callback_metrics["val_loss"])
        if not math.isfinite(loss):
            raise optuna.TrialPruned("diverged")
        if not self.report:
            return
        epoch = trainer.current_epoch + 1
        if epoch not in known.intermediate_values:  # a fit that resumed may be here once more
            trial.report(loss, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"above the median after epoch {epoch}")


def run(job: Job, number: int, attempt: str) -> Outcome:
    """Fit the settings of a trial, as often as it takes; in whichever process."""
    with quiet():
        study = load(job.out, job)
        trial = trial_of(study, number)
        losses, seconds = [], float(trial.user_attrs.get("seconds", 0))
        for repeat in range(job.repeats):
            config = job.fit_config(trial.params, repeat)
            folder = job.out / FITS / f"{number:04d}" / f"seed-{config.seed}"
            card = folder / f"{config.target}.json"
            if not card.exists():  # else a killed trial came as far
                start = time.monotonic()
                watch = Watch(trial, attempt, report=repeat == 0)
                try:
                    train(
                        config,
                        job.boxes[: trial.params["boxes"]],
                        job.validation,
                        folder,
                        density_model=job.density_model,
                        prepared=job.out / BOXES,
                        extra=[watch],
                        progress=False,
                    )
                except optuna.TrialPruned as pruned:
                    return Outcome(None, str(pruned))
                except torch.OutOfMemoryError:
                    return Outcome(None, "too large for the device")
                finally:
                    seconds += time.monotonic() - start
                    trial.set_user_attr("seconds", seconds)
                shutil.rmtree(folder / f"{config.target}-checkpoints")
            losses.append(float(json.loads(card.read_text())["training"]["validation_loss"]))
            trial.set_user_attr("losses", losses)
        return Outcome(float(np.mean(losses)))


def run_here(study: Study, wanted: Iterator[int]) -> Iterator[tuple[int, Outcome]]:
    """Run trials one after the other; yield each number and how it ended."""
    for number in wanted:
        yield number, run(study.job, number, study.begin(number))


def _on_worker(job: Job, number: int, attempt: str) -> Outcome:
    torch.set_num_threads(n_threads())
    return run(job, number, attempt)


def run_on_workers(study: Study, wanted: Iterator[int]) -> Iterator[tuple[int, Outcome]]:
    """Keep every worker of the client busy with one trial; yield each as it ends.

    A trial is pinned to its worker, for two in one process would share torch's random numbers.
    That of a worker that died goes to another.
    """
    import distributed

    client = distributed.default_client()
    running: dict[Any, tuple[int, str]] = {}
    again: deque[int] = deque()
    deaths: Counter[int] = Counter()
    more = True
    try:
        while more or again or running:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            for future, (number, address) in [*running.items()]:
                lost = future.status == "pending" and address not in workers
                if future.status == "pending" and not lost:
                    continue
                del running[future]
                if not lost:
                    try:
                        yield number, future.result()
                        continue
                    except distributed.KilledWorker:
                        pass
                future.cancel()
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    raise CosmofieldsError(
                        f"Trial {number} was lost with its worker {DEATHS} times: has a worker "
                        f"enough memory for {study.settings(number)}?"
                    )
                again.append(number)
            for address in set(workers) - {address for _, address in running.values()}:
                wish = again.popleft() if again else next(wanted, None)
                if wish is None:
                    more = False
                    break
                future = client.submit(
                    *(_on_worker, study.job, wish, study.begin(wish)),
                    workers=[address],
                    pure=False,
                )
                running[future] = wish, address
            if running:
                with suppress(TimeoutError):
                    distributed.wait([*running], timeout=2, return_when="FIRST_COMPLETED")
            elif more or again:
                time.sleep(1)  # for a worker to come
    finally:
        # A thread cannot be called back, but it looks at the end of each epoch.
        for number, _ in running.values():
            study.begin(number)
        client.cancel([*running])
