"""The fit of one model: configuration, data, schedule, moving average, checkpoints, card.

Needs the extra ``train`` (PyTorch Lightning).
"""

from .config import KEYS, TrainingConfig, TrainingRun, read_run
from .data import EpochSampler, Loader, loaders
from .fit import AtomicCheckpoint, Fit, run_fit
from .run import check_run, faster_precision, train

__all__ = [
    "KEYS",
    "AtomicCheckpoint",
    "EpochSampler",
    "Fit",
    "Loader",
    "TrainingConfig",
    "TrainingRun",
    "check_run",
    "faster_precision",
    "loaders",
    "read_run",
    "run_fit",
    "train",
]
