"""Search for the settings of a fit: Optuna's TPE over the five that the paper tunes.

A study lives in one directory: Optuna's journal, the fits, a table, figures.  One call at a time
holds it, asks and tells; the fits run here, or on Dask's workers.  Needs the extras ``tune``,
``train`` and ``plot``.
"""

from .search import open_trials, tune
from .settings import WIDTHS, Space

__all__ = ["WIDTHS", "Space", "open_trials", "tune"]
