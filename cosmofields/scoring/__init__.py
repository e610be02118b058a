"""Scores of a saved model over boxes with known truth, as its cards keep them and the docs show.

A score is always of the mean fields, but for the power-restored spectra, which are of the
power-restored ones (:mod:`cosmofields.calibration`).  Linear theory from the same halos is scored
beside the networks: Wiener-filtered by mass bin, and as eq. 2 of Xiao et al. 2024 has it.
"""

from .cards import describe_model, gather, headlines, model_facts, models
from .measuring import measure, score
from .rows import EQ2, FILTERED, K_EDGES, NETWORK, ROWS, Row

__all__ = [
    "EQ2",
    "FILTERED",
    "K_EDGES",
    "NETWORK",
    "ROWS",
    "Row",
    "describe_model",
    "gather",
    "headlines",
    "measure",
    "model_facts",
    "models",
    "score",
]
