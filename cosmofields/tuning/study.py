"""The study: what Optuna proposes and keeps, in a journal that several processes may use."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..conventions import CosmofieldsError, StoreError, listing
from ..samples import file_digest
from ..training import Fit, faster_precision
from ..unet import load_model, weights_digest
from .settings import Job, optuna

NAME, JOURNAL = "cosmofields", "study.log"
# Trials at random before TPE proposes, and finished ones before any is pruned.
STARTUP = 5


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: without a loss if it was pruned, for the reason given."""

    loss: float | None
    reason: str = ""


class Study:
    """The study in ``job.out``: proposes settings, and keeps how they did.

    Whoever makes one holds ``job.out`` alone: trials that seem to run are those of a killed call.

    Parameters
    ----------
    job : Job
    found : dict
        Distribution of each setting.

    Raises
    ------
    CosmofieldsError
        If ``job.out`` holds another study.
    StoreError
        If its journal cannot be read.
    """

    def __init__(self, job: Job, found: dict[str, Any]) -> None:
        run = {
            "config": asdict(job.config),
            "repeats": job.repeats,
            "space": {k: optuna.distributions.distribution_to_json(d) for k, d in found.items()},
            "boxes": [file_digest(path) for path in job.boxes],
            "validation": [file_digest(path) for path in job.validation],
        }
        for target in Fit(job.config).model.inputs:
            if target in ("density", "velocity"):
                run[f"{target}_model"] = weights_digest(load_model(target, job.density_model)[0])
        run = json.loads(json.dumps(run))
        self.job, self.found = job, found
        if (job.out / JOURNAL).exists():
            _mend(job.out / JOURNAL)
            self.study = load(job.out, job)
            known = self.study.user_attrs.get("run", run)
            differ = sorted(key for key in run if known.get(key) != run[key])
            if differ:
                raise CosmofieldsError(
                    f"{str(job.out)!r} holds a study of other {listing(differ)}: give the same to "
                    "go on with it, or another out"
                )
        else:
            job.out.mkdir(parents=True, exist_ok=True)
            self.study = optuna.create_study(study_name=NAME, storage=_storage(job.out))
        self.study.set_user_attr("run", run)
        if job.config.precision == "auto":  # one for all trials, wherever they run
            precision = self.study.user_attrs.get("precision") or faster_precision()
            self.study.set_user_attr("precision", precision)
            self.job = replace(job, config=replace(job.config, precision=precision))

    def wanted(self, trials: int) -> Iterator[int]:
        """Numbers of the trials to run: those that a killed call left, then new ones."""
        states = optuna.trial.TrialState
        for left in self.study.get_trials(states=(states.RUNNING,)):
            if set(left.params) == set(self.found):
                yield left.number
            else:  # killed before it had its settings
                self.study.tell(left.number, state=states.FAIL)
        while (done := len(begun(self.study))) < trials:
            number = len(self.study.trials)
            if done == 0:
                self.study.enqueue_trial(self._usual(), skip_if_exists=True)
            # By number and what is finished: a study that was killed proposes what it would have.
            seed = np.random.SeedSequence((self.job.config.seed, number)).generate_state(1)[0]
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP, seed=int(seed), constant_liar=True
            )
            yield self.study.ask(self.found).number

    def _usual(self) -> dict[str, Any]:
        """Settings of the configuration as it was given, as far as they are searched."""
        config = self.job.config
        options = Fit(config).model.options
        usual = {
            "learning_rate": config.learning_rate,
            "boxes": self.found["boxes"].high,
            "widths": "-".join(map(str, options["widths"])),
            "batch_size": config.batch_size,
            "dropout": options.get("dropout"),
        }
        within = {}
        for name, distribution in self.found.items():
            choices = getattr(distribution, "choices", None)
            value = usual[name]
            if value in choices if choices else distribution.low <= value <= distribution.high:
                within[name] = value
        return within

    def begin(self, number: int) -> str:
        """Take a trial; whoever is at it stops at the end of an epoch."""
        attempt = uuid.uuid4().hex
        trial_of(self.study, number).set_user_attr("attempt", attempt)
        return attempt

    def settings(self, number: int) -> dict[str, Any]:
        """Settings of a trial."""
        return dict(self.study.trials[number].params)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Keep how a trial ended."""
        states = optuna.trial.TrialState
        state = states.PRUNED if outcome.loss is None else states.COMPLETE
        trial_of(self.study, number).set_user_attr("reason", outcome.reason)
        self.study.tell(number, outcome.loss, state=state)


def _storage(out: Path) -> Any:
    journal = optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
    return optuna.storages.JournalStorage(journal)


def load(out: Path, job: Job | None = None) -> Any:
    """The study in a directory; ``job`` says how it prunes."""
    if not (out / JOURNAL).is_file():
        raise StoreError(f"No study in {str(out)!r}: expected its {JOURNAL}")
    pruner = None
    if job is not None:
        # Early losses say more about the learning rate's warm-up than about where a fit ends.
        half = job.config.epochs[0] // 2
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=half)
    try:
        return optuna.load_study(study_name=NAME, storage=_storage(out), pruner=pruner)
    except (ValueError, KeyError, AttributeError) as error:
        raise StoreError(f"{str(out / JOURNAL)!r} cannot be read: {error!r}") from error


def _mend(journal: Path) -> None:
    """Cut off a last line that was not written to its end: what follows it would be lost too."""
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("rb+") as file:
            file.truncate(whole)


def begun(study: Any) -> list[Any]:
    """Trials that run or have ended, by number."""
    states = optuna.trial.TrialState
    return study.get_trials(states=(states.COMPLETE, states.PRUNED, states.RUNNING))


def trial_of(study: Any, number: int) -> Any:
    """A trial that was asked for, by this process or another."""
    return optuna.trial.Trial(study, study.trials[number]._trial_id)


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says only what is wrong."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
