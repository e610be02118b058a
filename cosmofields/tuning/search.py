"""A study from boxes to its table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import xarray as xr
from rich.console import Console

from ..conventions import AXES, CosmofieldsError, require_extra
from ..inference import track
from ..lazy import machine
from ..samples import prepare_box
from ..stages import alone
from ..training import TrainingConfig
from ..unet import model_folder, zoo
from .fits import run_here, run_on_workers
from .results import BEST, FIGURES, TABLE, draw, line, table_of, write_best, write_table
from .settings import BOXES, Job, Space
from .study import Study, load, quiet


def tune(
    config: TrainingConfig,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    out: str | Path,
    *,
    trials: int = 20,
    repeats: int = 5,
    space: Space | None = None,
    density_model: str | Path = "default",
    progress: bool = True,
) -> xr.Dataset:
    """Search for the settings of least validation loss; run the same call again to go on.

    The tree-structured Parzen estimator proposes settings, after those of ``config`` itself.
    Each sees the same number of crops, whatever its batch size and boxes, and is judged by the
    same validation crops.  Its first fit is pruned if, past half of the main phase, the loss is
    above the median of the finished trials after as many epochs.  What is left is fitted
    ``repeats`` times, with other seeds, and the mean counts.

    With a ``distributed.Client`` each of its workers runs one trial at a time; otherwise they run
    here, one after the other.

    Parameters
    ----------
    config : TrainingConfig
        Target, architecture, and all that is not searched.  The crops that each fit sees are its
        ``steps * batch_size``.
    boxes, validation, density_model
        As :func:`~cosmofields.training.train` takes them; every worker must see these paths.
    out : directory
        Gets ``study.log`` (Optuna's journal), ``boxes/``, ``fits/TRIAL/seed-SEED/`` (each as
        ``train`` leaves it, without checkpoints), ``trials.csv``, ``figures/``, and
        ``best.toml``, a configuration for ``cosmofields train``.
    trials : int
        Settings in all, those of earlier calls included.  What is finished is not repeated; what
        was killed goes on from its last epoch.
    repeats : int
        Fits of a setting that is not pruned; the paper has at least five.
    space : Space, optional
    progress : bool
        Say how each trial ended.

    Returns
    -------
    Dataset, dim trial
        See :func:`open_trials`.

    Raises
    ------
    MissingExtraError
        Without Optuna, Lightning or Matplotlib.
    StoreError
        If another call holds ``out``, or its journal cannot be read.
    CosmofieldsError
        Before anything is written: for settings or boxes that cannot work, a box that calls
        itself a test box, or an ``out`` that holds another study.  Later, for a trial that takes
        its worker with it again and again.
    """
    require_extra("matplotlib", "plot", "Tuning")
    if trials < 1 or repeats < 1:
        raise CosmofieldsError(f"trials={trials}, repeats={repeats}; expected at least 1 of each")
    job = Job(
        config,
        tuple(os.path.abspath(path) for path in boxes),
        tuple(os.path.abspath(path) for path in validation),
        Path(out).absolute(),
        repeats,
        # A name stays one: best.toml is for other machines as well.
        str(density_model)
        if density_model in zoo()
        else os.path.abspath(model_folder(density_model)),
    )
    found = job.check(space or Space())
    with alone(job.out), quiet():
        study = Study(job, found)
        job = study.job
        stores = [(path, los) for path in job.boxes for los in AXES]
        stores += [(path, "z") for path in job.validation]
        # Here, for two workers must not write one store.
        for path, los in track(stores, progress, "observing the boxes"):
            prepare_box(
                path,
                job.out / BOXES,
                los=los,
                number_density=config.number_density,
                weighting=config.weighting,
            )
        console = Console(stderr=True, quiet=not progress)
        ended = (run_on_workers if machine().remote else run_here)(study, study.wanted(trials))
        for number, outcome in ended:
            study.tell(number, outcome)
            table = _write(job, study)
            console.print(line(table, number, trials), highlight=False, soft_wrap=True)
        draw(study, job.out / FIGURES)
        # Once more: the last trial may be of a call that was killed before it wrote.
        return _write(job, study)


def _write(job: Job, study: Study) -> xr.Dataset:
    """Write what was found so far."""
    table = table_of(study.study)
    write_table(table, job.out / TABLE)
    write_best(job, table, study, job.out / BEST)
    return table


def open_trials(out: str | Path) -> xr.Dataset:
    """What a study has found so far, also while it runs.

    Parameters
    ----------
    out : directory
        Of :func:`tune`.

    Returns
    -------
    Dataset, dim trial
        ``state`` (``complete``, ``pruned``, ``running``), ``loss`` (mean over the fits of a
        complete one, else NaN), ``loss_spread`` (their standard deviation; NaN of one), ``fits``,
        the settings, ``epochs`` and ``last_loss`` (of the first fit: how far it has come, and its
        validation loss there), ``seconds`` of training, ``reason`` of pruning.

    Raises
    ------
    StoreError
        If there is no study, or its journal cannot be read.
    """
    with quiet():
        return table_of(load(Path(out)))
