"""The fit: sums over boxes with known truth, and the tables that cards get of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..conventions import FIELDS, CosmofieldsError, attribute
from ..spectral import spectra
from .errors import SMOOTHING, environment, log_ratio
from .means import DENSITY_EDGES, FEWEST
from .power import gain
from .tables import Array, Card, parts, rounded

# Edges in h/Mpc of the bins of the spectra: wide where a box has few modes.
K_EDGES = (0.01, 0.06, 0.09, 0.13, 0.18, 0.24, 0.32, 0.42, 0.56, 0.75, 1.0, 1.34)
SHARE = 0.6827
UNITS = {"k": "h/Mpc", "smoothing": "Mpc/h", "density": "1", "log_error": "1", "error": "km/s"}


class Measurement:
    """Sums over boxes of what a calibration is made of, one row a number of symmetries."""

    def __init__(self, symmetries: Sequence[int]) -> None:
        self.symmetries = list(symmetries)
        self.powers: dict[tuple[str, str, int], Array] = {}
        self.squares: dict[tuple[str, int], Array] = {}

    def add(self, n: int, predicted: xr.Dataset, true: xr.Dataset) -> None:
        """Add a box.

        Parameters
        ----------
        n : int
            Symmetries over which it was averaged.
        predicted, true : Dataset
            With ``density``, ``velocity`` and ``momentum``.
        """
        self.add_powers(n, predicted, true)
        density = predicted["density"].values
        log_error = log_ratio(true["density"].values, density)
        self._square(("density", n), density, log_error)
        smooth = environment(predicted["density"])
        for i, part in enumerate(parts(attribute(predicted, "los"))):
            error = (predicted["velocity"][i] - true["velocity"][i]).values
            self._square((part, n), smooth, error)

    def add_powers(self, n: int, predicted: xr.Dataset, true: xr.Dataset) -> None:
        """Add the spectra of a box alone; arguments of :meth:`add`."""
        for name in ("density", "velocity", "momentum"):
            one, other = predicted[name], true[name]
            if not FIELDS[name].is_vector:
                self._power((name, "all", n), one, other)
                continue
            for i, part in enumerate(parts(attribute(predicted, "los"))):
                self._power((name, part, n), one.isel(component=i), other.isel(component=i))

    def _power(self, key: tuple[str, str, int], one: xr.DataArray, other: xr.DataArray) -> None:
        found = spectra(one, other, edges=K_EDGES)
        names = ("power_predicted", "power_true", "power_cross", "k_mean")
        sums = np.stack([(found[name] * found["modes"]).values for name in names])
        sums = np.vstack([sums, found["modes"].values])
        self.powers[key] = self.powers.get(key, 0.0) + np.nan_to_num(sums)

    def _square(self, key: tuple[str, int], density: Any, error: NDArray[np.float32]) -> None:
        at = np.digitize(density.ravel(), DENSITY_EDGES)
        n = len(DENSITY_EDGES) + 1
        weights = error.ravel().astype(np.float64) ** 2
        sums = np.stack([np.bincount(at, minlength=n), np.bincount(at, weights, n)])
        self.squares[key] = np.asarray(self.squares.get(key, 0.0) + sums[:, 1:-1], np.float64)

    def restoration(self, name: str) -> dict[str, Any]:
        """The table of a field, as a card holds it."""
        kinds = ("across", "along") if FIELDS[name].is_vector else ("all",)
        weighted, modes = self.powers[name, kinds[0], self.symmetries[0]][-2:]
        there = modes > 0
        ratio: dict[str, list[list[float]]] = {}
        correlation: dict[str, list[list[float]]] = {}
        for kind in kinds:
            sums = [self.powers[name, kind, n][:3, there] for n in self.symmetries]
            ratio[kind] = [rounded(mine / true) for mine, true, _ in sums]
            correlation[kind] = [rounded(both / (a * b) ** 0.5) for a, b, both in sums]
        k = rounded(weighted[there] / modes[there])
        return {"k": k, "power_ratio": ratio, "correlation": correlation}

    def restored_deviation(self, name: str, card: Card, n: int) -> list[float]:
        """R(k) = P / P_true - 1 of a field when it is restored by a card, in the bins of k."""
        mine = true = np.zeros(1)
        for kind in ("across", "along") if FIELDS[name].is_vector else ("all",):
            power, reference, _, weighted, modes = self.powers[name, kind, n]
            k = weighted / np.maximum(modes, 1)
            mine = mine + power * gain(name, card, part=kind, symmetries=n)(k) ** 2
            true = true + reference
        there = true > 0
        return [float(f"{value:.3g}") for value in mine[there] / true[there] - 1]

    def error(self, *which: str) -> tuple[list[float], dict[str, list[list[float]]]]:
        """Nodes in density, and the root mean square of the error at each, by kind and row."""
        keys = [(kind, n) for kind in which for n in self.symmetries]
        there = np.min([self.squares[key][0] for key in keys], axis=0) >= FEWEST
        nodes = np.sqrt(DENSITY_EDGES[1:] * DENSITY_EDGES[:-1])[there]
        rows: dict[str, list[list[float]]] = {kind: [] for kind in which}
        for kind, n in keys:
            count, total = self.squares[kind, n][:, there]
            rows[kind].append(rounded(np.sqrt(total / count)))
        return rounded(nodes), rows

    def tables(self, *, momentum: str = "velocity") -> dict[str, dict[str, Any]]:
        """What the cards get, by target.

        Parameters
        ----------
        momentum : {"velocity", "momentum"}
            The model in whose card the momentum's power stands: that of a network of its own, or
            the velocity's, whose product with the density it is.
        """
        nodes, rows = self.error("density")
        # The most likely s of a lognormal whose mean is the prediction: <log^2> = s^2 + s^4 / 4.
        log_error = [rounded(np.sqrt(2 * (np.hypot(1, q) - 1))) for q in rows["density"]]
        of_density = {
            "restoration": {"density": self.restoration("density")},
            "error": {"density": nodes, "log_error": log_error},
        }
        nodes, rows = self.error("across", "along")
        of_velocity = {
            "restoration": {"velocity": self.restoration("velocity")},
            "error": {"smoothing": SMOOTHING, "density": nodes, "error": rows},
        }
        tables: dict[str, dict[str, Any]] = {"density": of_density, "velocity": of_velocity}
        restoration = tables.setdefault(momentum, {}).setdefault("restoration", {})
        restoration["momentum"] = self.restoration("momentum")
        return tables


def rescale(cards: Mapping[str, Any], kind: str, row: int, factor: float) -> None:
    """Multiply the errors of a kind, at one number of symmetries, and say by what."""
    found = cards["density" if kind == "density" else "velocity"]["calibration"]
    table = found["error"]
    rows = table["log_error"] if kind == "density" else table["error"][kind]
    rows[row] = rounded(factor * np.asarray(rows[row]))
    factors = found.setdefault("factors", {}).setdefault(kind, [])
    factors.append(float(f"{factor:.4g}"))


def lognormal_factor(log_ratio: Array, s: Array) -> float:
    """By what s is to be multiplied for 68 % to lie within one of it, of a lognormal of mean 1.

    Parameters
    ----------
    log_ratio, s : arrays
        ln(true / predicted) of each cell, and the s predicted for it.

    Raises
    ------
    CosmofieldsError
        If no factor does that.
    """

    def excess(factor: float) -> float:
        mine = factor * s
        return float((np.abs(log_ratio + mine**2 / 2) < mine).mean() - SHARE)

    # Wide lognormals have their median far below their mean: the share rises, and falls again.
    # The first factor that will do is sought, step by step.
    steps = np.geomspace(1 / 8, 8, 43)
    high = next((factor for factor in steps if excess(factor) >= 0), None)
    if high is None:
        raise CosmofieldsError(
            f"No factor up to {steps[-1]:g} lets {SHARE:.0%} of the cells lie within the errors of "
            "the density: they are no lognormal's, the model is too far from the truth"
        )
    low = high * steps[0] / steps[1]
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return float((low + high) / 2)
