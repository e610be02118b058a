"""What a model's errors are known to be: spectra that it makes too weak, and errors per cell.

Both are measured where the truth is known (:func:`~cosmofields.calibrate`) and kept in the model's
card under ``calibration``, for the numbers of symmetries that were run.  Averaging over n of them
takes a part 1 - 1/n from what a network gets wrong at random, so powers and variances are linear
in 1/n, by which they are found for other n.

Restoration
    A minimum-variance field has too little power where it is uncertain: ideally r^2 of the true
    one, r(k) their correlation.  The power-restored field is its modes times
    g(k) = sqrt(P_true / P_predicted); vectors have one g across and one along the line of sight.
    Where r < 1/2 a restored mode would be farther from the truth than none at all
    (2 - 2 r > 1): from there on g = 1.  Below the first node g stays what it is there.
Errors
    Velocity: Gaussian about the prediction, its standard deviation a table over the predicted
    density smoothed by a Gaussian, across and along the line of sight.
    Density: lognormal with the prediction as its mean; the scatter s of its logarithm is a table
    over the prediction, and the standard deviation is density sqrt(exp(s^2) - 1).
    Beyond the nodes of a table its last value holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .conventions import (
    AXES,
    FIELDS,
    Grid,
    ModelMismatchError,
    attribute,
    box_facts,
    canonical,
    label,
    periodic_grid,
)
from .fourier import through_modes
from .spectral import spectra

Array = NDArray[np.float64]
Card = Mapping[str, Any]

# Edges in h/Mpc of the bins of the spectra: wide where a box has few modes.
K_EDGES = (0.01, 0.06, 0.09, 0.13, 0.18, 0.24, 0.32, 0.42, 0.56, 0.75, 1.0, 1.34)
LEAST_CORRELATION = 0.5
# Mpc/h: of Gaussians of 1 to 3 cells of 2.34 Mpc/h, the one with the best likelihood.
SMOOTHING = 4.7
# Edges of the bins of a density, three an octave, and the fewest cells that make one a node.
DENSITY_EDGES = 2.0 ** (np.arange(-18, 28) / 3)
FEWEST = 500
SHARE = 0.6827
UNITS = {"k": "h/Mpc", "smoothing": "Mpc/h", "density": "1", "log_error": "1", "error": "km/s"}


def calibration(card: Card) -> dict[str, Any]:
    """What the card of a model holds of its calibration.

    Raises
    ------
    ModelMismatchError
        If it was not calibrated.
    """
    if "calibration" not in card:
        raise ModelMismatchError(
            f"The model {card['name']!r} was not calibrated: cosmofields.calibrate(model, boxes, "
            "validation) measures what restore_power and uncertainty need"
        )
    return cast("dict[str, Any]", card["calibration"])


def parts(los: str) -> list[str]:
    """Which table each component takes."""
    return ["along" if axis == los else "across" for axis in AXES]


def _at(rows: Sequence[Sequence[float]], measured: Sequence[int], symmetries: int) -> Array:
    """The row of a number of symmetries, linear in its inverse."""
    values = np.asarray(rows, np.float64)
    if len(values) == 1:
        return cast(Array, values[0])
    first, last = 1 / measured[0], 1 / measured[-1]
    return cast(
        Array, values[0] + (values[-1] - values[0]) * (1 / symmetries - first) / (last - first)
    )


# --- spectra ---


def gain(
    name: str, card: Card, *, part: str = "all", symmetries: int = 1
) -> Callable[[Array], Array]:
    """The factor g(k) that restores the power of a field.

    Parameters
    ----------
    name : {"density", "velocity", "momentum"}
    card : dict
        Of the model that holds it: the momentum's is the velocity's.
    part : {"all", "across", "along"}
        Of a vector, its components across or along the line of sight; a scalar is of one part.
    symmetries : int

    Returns
    -------
    callable
        g of an array of k in h/Mpc; between the nodes log g is linear in log k.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    found = calibration(card)
    table, measured = found["restoration"][name], found["symmetries"]
    ratio, r = (
        _at(table[key][part], measured, symmetries) for key in ("power_ratio", "correlation")
    )
    restored = np.minimum.accumulate(r >= LEAST_CORRELATION)
    log_gain = np.where(restored, -0.5 * np.log(np.maximum(ratio, 1e-3)), 0.0)
    log_k = np.log(table["k"])

    def of(k: Array) -> Array:
        return cast(Array, np.exp(np.interp(np.log(np.maximum(k, 1e-30)), log_k, log_gain)))

    return of


def restore(field: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """A predicted field with the power of the true one, for spectra: its modes times g(k).

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        ``density``, ``velocity`` or ``momentum`` of the whole box.
    card : dict
        Of the model; of the velocity's for the momentum.
    symmetries : int
        Over which ``field`` was averaged.

    Returns
    -------
    DataArray
        Its mean is kept.  A density may fall below 0 in voids.  Lazy if ``field`` is.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    name = str(field.name)
    grid = periodic_grid(field, what="restore_power")
    field = canonical(field, *FIELDS[name].dims[:-3])
    if FIELDS[name].is_vector:
        of = {
            part: gain(name, card, part=part, symmetries=symmetries) for part in ("across", "along")
        }
        done = [
            _scaled(field.data[i], of[part], grid, f"restored {name}")
            for i, part in enumerate(parts(attribute(field, "los")))
        ]
        stack: Any = da.stack if isinstance(done[0], da.Array) else np.stack
        data = stack(done)
    else:
        data = _scaled(field.data, gain(name, card, symmetries=symmetries), grid, "restored")
    return field.copy(data=data).assign_attrs(estimator="power restored")


def _scaled(data: Any, of: Callable[[Array], Array], grid: Grid, what: str) -> Any:
    """A scalar field, its modes times a function of k; the mean is kept."""
    from .kernels.modes import power_table, scale

    table = power_table(of)
    return through_modes([data], grid, [None], what=what, combine=scale, extras=[table])[0]


# --- errors per cell ---


def environment(density: xr.DataArray, smoothing: float = SMOOTHING) -> Any:
    """Density (x, y, z) smoothed by a Gaussian of ``smoothing`` Mpc/h; a bare array."""
    grid = periodic_grid(density, what="uncertainty")
    return _scaled(
        density.data, lambda k: np.exp(-0.5 * (k * smoothing) ** 2), grid, "smoothed density"
    )


def _read(density: Any, nodes: Sequence[float], values: Array) -> Any:
    """Values of a table over density at each cell, both logarithmic; as lazy as ``density``."""
    log_nodes, log_values = np.log(nodes), np.log(values)

    def look(block: NDArray[np.float32]) -> NDArray[np.float32]:
        # Rounding of a transform may leave an empty cell below 0.
        at = np.log(np.maximum(block, np.float32(nodes[0])))
        return np.exp(np.interp(at, log_nodes, log_values)).astype(np.float32)

    if isinstance(density, da.Array):
        lazily: Any = density.map_blocks  # dask's stubs know functions of a DataFrame only
        return lazily(look, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    return look(density)


def density_error(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """Predicted standard deviation of the true density about the predicted one.

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        As predicted.
    card : dict
        Of the density model.
    symmetries : int
        Over which ``density`` was averaged.

    Returns
    -------
    DataArray, dims (x, y, z)
        ``density_error``; see :func:`interval` for what it means.  Lazy if ``density`` is.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    s = log_error(density, card, symmetries=symmetries)
    return _labelled("density_error", np.sqrt(np.expm1(s**2)) * density.data, density)


def log_error(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> Any:
    """The scatter s of the logarithm of the density in each cell; a bare array."""
    found = calibration(card)
    table = found["error"]
    rows = np.square(table["log_error"]).tolist()
    s = np.sqrt(_at(rows, found["symmetries"], symmetries))
    return _read(density.data, table["density"], s)


def velocity_error(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """Predicted standard deviation of the true velocity about the predicted one, by component.

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        As predicted.
    card : dict
        Of the velocity model.
    symmetries : int
        Over which the velocity was averaged.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``velocity_error`` in km/s.  Lazy if ``density`` is.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    found = calibration(card)
    table = found["error"]
    smooth = environment(density, table["smoothing"])
    by_part = {}
    for part in ("across", "along"):
        rows = np.square(table["error"][part]).tolist()
        values = np.sqrt(_at(rows, found["symmetries"], symmetries))
        by_part[part] = _read(smooth, table["density"], values)
    stack: Any = da.stack if isinstance(smooth, da.Array) else np.stack
    data = stack([by_part[part] for part in parts(attribute(density, "los"))])
    return _labelled("velocity_error", data, density)


def _labelled(name: str, data: Any, density: xr.DataArray) -> xr.DataArray:
    grid = periodic_grid(density, what="uncertainty")
    kept = {key: density.attrs[key] for key in ("model", "precision") if key in density.attrs}
    return label(name, data, grid, box_facts(density), **kept)


def interval(
    field: xr.DataArray, error: xr.DataArray, sigmas: float = 1.0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Limits between which the truth lies in 68 % of the cells, for one standard deviation.

    Parameters
    ----------
    field : DataArray
        ``density`` or ``velocity`` as predicted.
    error : DataArray
        ``density_error`` or ``velocity_error``.
    sigmas : float
        1 for 68.3 %, 1.96 for 95 %.

    Returns
    -------
    low, high : DataArray
        Of a velocity, field -+ sigmas error.  Of a density, the lognormal of that mean and standard
        deviation: m exp(-+ sigmas s) with s^2 = ln(1 + (error / field)^2), m = field exp(-s^2 / 2).
    """
    if error.name == "velocity_error":
        return field - sigmas * error, field + sigmas * error
    s2 = np.log1p((error / field) ** 2)
    median, width = field * np.exp(-s2 / 2), np.exp(sigmas * np.sqrt(s2))
    return median / width, median * width


# --- the fit ---


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
        los = attribute(predicted, "los")
        for name in ("density", "velocity", "momentum"):
            one, other = predicted[name], true[name]
            if not FIELDS[name].is_vector:
                self._power((name, "all", n), one, other)
                continue
            for i, part in enumerate(parts(los)):
                self._power((name, part, n), one.isel(component=i), other.isel(component=i))
        density = predicted["density"].values
        log_error = np.log(true["density"].values / density)
        self._square(("density", n), density, log_error)
        smooth = environment(predicted["density"])
        for i, part in enumerate(parts(los)):
            error = (predicted["velocity"][i] - true["velocity"][i]).values
            self._square((part, n), smooth, error)

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
            ratio[kind] = [_rounded(mine / true) for mine, true, _ in sums]
            correlation[kind] = [_rounded(both / (a * b) ** 0.5) for a, b, both in sums]
        k = _rounded(weighted[there] / modes[there])
        return {"k": k, "power_ratio": ratio, "correlation": correlation}

    def error(self, *which: str) -> tuple[list[float], dict[str, list[list[float]]]]:
        """Nodes in density, and the root mean square of the error at each, by kind and row."""
        keys = [(kind, n) for kind in which for n in self.symmetries]
        there = np.min([self.squares[key][0] for key in keys], axis=0) >= FEWEST
        nodes = np.sqrt(DENSITY_EDGES[1:] * DENSITY_EDGES[:-1])[there]
        rows: dict[str, list[list[float]]] = {kind: [] for kind in which}
        for kind, n in keys:
            count, total = self.squares[kind, n][:, there]
            rows[kind].append(_rounded(np.sqrt(total / count)))
        return _rounded(nodes), rows

    def tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the cards of the density and of the velocity model get."""
        nodes, rows = self.error("density")
        # The most likely s of a lognormal whose mean is the prediction: <log^2> = s^2 + s^4 / 4.
        log_error = [_rounded(np.sqrt(2 * (np.hypot(1, q) - 1))) for q in rows["density"]]
        of_density = {
            "restoration": {"density": self.restoration("density")},
            "error": {"density": nodes, "log_error": log_error},
        }
        nodes, rows = self.error("across", "along")
        of_velocity = {
            "restoration": {name: self.restoration(name) for name in ("velocity", "momentum")},
            "error": {"smoothing": SMOOTHING, "density": nodes, "error": rows},
        }
        return of_density, of_velocity


def rescale(cards: Mapping[str, Any], kind: str, row: int, factor: float) -> None:
    """Multiply the errors of a kind, at one number of symmetries, and say by what."""
    found = cards["density" if kind == "density" else "velocity"]["calibration"]
    table = found["error"]
    rows = table["log_error"] if kind == "density" else table["error"][kind]
    rows[row] = _rounded(factor * np.asarray(rows[row]))
    factors = found.setdefault("factors", {}).setdefault(kind, [])
    factors.append(float(f"{factor:.4g}"))


def lognormal_factor(log_ratio: Array, s: Array) -> float:
    """By what s is to be multiplied for 68 % to lie within one of it, of a lognormal of mean 1.

    Parameters
    ----------
    log_ratio, s : arrays
        ln(true / predicted) of each cell, and the s predicted for it.
    """

    def excess(factor: float) -> float:
        mine = factor * s
        return float((np.abs(log_ratio + mine**2 / 2) < mine).mean() - SHARE)

    # Wide lognormals have their median far below their mean: the share falls again beyond 1.3.
    low, high = 0.6, 1.3
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return (low + high) / 2


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
