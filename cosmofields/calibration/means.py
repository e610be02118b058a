"""The mean of the true density where a density is predicted: the prediction, recalibrated."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from ..conventions import CosmofieldsError
from ..stages import digest
from .tables import Array, Card, Table, rounded, row_of

# Edges of the bins of a density, three an octave, and the fewest cells that make one a node.
DENSITY_EDGES = 2.0 ** (np.arange(-18, 28) / 3)
FEWEST = 500
# Least d log(mean) / d log(prediction): the table can be undone, and its rounding stays small.
LEAST_SLOPE = 0.05


def mean_table(card: Card, *, symmetries: int = 1) -> Table | None:
    """Ratio of the mean true density to the predicted one, over the latter.

    Parameters
    ----------
    card : dict
        Of the density model.
    symmetries : int
        Over which the prediction was averaged.

    Returns
    -------
    Table or None
        None if the card has none: the model was not calibrated, or its mean needed nothing.
    """
    found = card.get("calibration", {})
    if "mean" not in found:
        return None
    table, measured = found["mean"], found["symmetries"]
    rows = np.log(table["ratio"]).tolist()
    # Between the rows each mixture of them is monotone; beyond the last it need not be.
    inside = min(max(symmetries, measured[0]), measured[-1])
    return Table(np.log(table["density"]), row_of(rows, measured, inside))


def mean_name(card: Card) -> str:
    """Name of a card's table of the mean: the model's, and what tells one table from another."""
    return f"{card['name']} {_mean_digest(card)}"


def _mean_digest(card: Card) -> str:
    # A model may get its table anew, and its directory another name.
    table = card["calibration"]["mean"]
    return digest(json.dumps([table["density"], table["ratio"]]).encode())


def undoing(table: Table) -> Table:
    """The table, over the recalibrated density, of the ratio of the network's own to it."""
    return Table(table.nodes + table.values, -table.values)


def recalibrate(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """The mean of the true density where a network predicts this one.

    A network falls short of that in clusters, which are few.  The factor is a table over the
    prediction, monotone, and scaled so that the mean density of the validation boxes is the true
    one.

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        As the network has it.
    card : dict
        Of the density model; without such a table the density is returned as it is.
    symmetries : int
        Over which ``density`` was averaged.

    Returns
    -------
    DataArray, dims (x, y, z)
        ``density`` with the attribute ``recalibrated``, the :func:`mean_name`.  Lazy if ``density``
        is.
    """
    table = mean_table(card, symmetries=symmetries)
    if table is None:
        return density
    data = density.data * table(density.data)
    return density.copy(data=data).assign_attrs(recalibrated=mean_name(card))


def network_density(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """What :func:`recalibrate` was given: the density that the networks of later steps know.

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        If it does not say that it was recalibrated by this table, it is returned as it is.
    card, symmetries
        As in :func:`recalibrate`.
    """
    table = mean_table(card, symmetries=symmetries)
    made_by = density.attrs.get("recalibrated", "").rpartition(" ")[2]
    if table is None or made_by != _mean_digest(card):
        return density
    made = density.copy(data=density.data * undoing(table)(density.data))
    del made.attrs["recalibrated"]
    return made


class MeanMeasurement:
    """Sums over boxes of the true density by the predicted one, one row a number of symmetries."""

    def __init__(self) -> None:
        self.sums: dict[int, Array] = {}

    def add(self, n: int, predicted: NDArray[np.float32], true: NDArray[np.float32]) -> None:
        """Add a box that was averaged over ``n`` symmetries."""
        at = np.digitize(predicted.ravel(), DENSITY_EDGES)
        bins = len(DENSITY_EDGES) + 1
        weights = (None, predicted.ravel(), true.ravel())
        sums = np.stack([np.bincount(at, one, bins) for one in weights])
        self.sums[n] = np.asarray(self.sums.get(n, 0.0) + sums, np.float64)

    def table(self) -> dict[str, Any]:
        """Nodes in the density, and the ratio at each by row, as a card holds them.

        Raises
        ------
        CosmofieldsError
            If no bin has cells enough to be a node.
        """
        counts = np.min([sums[0] for sums in self.sums.values()], axis=0)
        counts[[0, -1]] = 0  # beyond the edges
        there = counts >= FEWEST
        if not there.any():
            raise CosmofieldsError(
                f"No bin of the predicted density, three an octave, has {FEWEST} cells: larger "
                "boxes are needed for a calibration, or a better model"
            )
        # The few cells beyond the outer nodes count with those: the ratio there holds for them too.
        first, last = np.flatnonzero(there)[[0, -1]]
        groups = np.clip(np.arange(len(there)), first, last)
        pooled = [
            np.asarray([np.bincount(groups, one, len(there))[there] for one in sums], np.float64)
            for sums in self.sums.values()
        ]
        means = [sums[1] / sums[0] for sums in pooled]
        nodes = np.asarray(np.exp(np.log(means).mean(axis=0)), np.float64)
        rows = [rounded(self._ratio(sums, nodes)) for sums in pooled]
        return {"density": rounded(nodes), "ratio": rows}

    @staticmethod
    def _ratio(sums: Array, nodes: Array) -> Array:
        count, predicted, true = sums
        log_node = np.log(nodes)
        # Monotone by as much as the table must be to be undone.
        steep = log_node + np.log(true / predicted) - LEAST_SLOPE * log_node
        monotone = isotonic_regression(steep, weights=count).x + LEAST_SLOPE * log_node
        return np.asarray(np.exp(monotone - log_node), np.float64)
