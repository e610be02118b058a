"""Scores of a saved model over boxes with known truth, as its cards keep them and the docs show.

A score is always of the mean fields, but for the power-restored spectra, which are of the
power-restored ones (:mod:`cosmofields.calibration`).  Linear theory from the same halos is scored
beside the networks: Wiener-filtered by mass bin, and as eq. 2 of Xiao et al. 2024 has it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from . import calibration
from .comparison import MOMENTS, combined_scores
from .conventions import AXES, CosmofieldsError, listing, periodic_grid
from .derivatives import divergence
from .inference import observe, predict
from .linear import linear_bias, linear_theory
from .readers import open_box
from .spectral import spectra
from .statistics import cell_statistics, magnitude, misalignment
from .unet import Card, load_cards, write_card
from .zoo import as_typed, zoo

Scores = dict[str, Any]

# Edges in h/Mpc of the bins of R(k).
K_EDGES = (0.0, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3)
# h/Mpc at which r(k) is quoted, and how many of the longest waves T(k) is.
K_CORRELATION = (0.1, 0.3)
N_LONGEST = 3
# Mpc/h, of the Gaussian of the scores after smoothing.
SMOOTHING = 5.0
SIGMAS = {"coverage_68": 1.0, "coverage_95": 1.96}
NETWORK, FILTERED, EQ2 = "network", "filtered", "eq2"
_HEADLINES = (("density", "correlation"), ("velocity", "correlation"), ("velocity", "rms_error"))


@dataclass(frozen=True)
class Row:
    """A row of a table of scores: where its numbers are among those of a column.

    Attributes
    ----------
    label : str
    field, key : str
    at : int or (low, high), optional
        Of the numbers under ``key``, the one with this index; or the largest absolute one of the
        bins of ``K_EDGES`` between ``low`` and ``high``.  Default: all.
    """

    label: str
    field: str
    key: str
    at: int | tuple[float, float] | None = None

    def of(self, column: Mapping[str, Scores]) -> list[float]:
        """The numbers of this row, in the scores of one prediction by field; none if it has none.

        They are one, but for the transfer at the longest waves.
        """
        value = column.get(self.field, {}).get(self.key)
        if value is None:
            return []
        if isinstance(self.at, tuple):
            low, high = self.at
            bins = zip(K_EDGES[:-1], K_EDGES[1:], value, strict=True)
            inside = [abs(v) for a, b, v in bins if a >= low and b <= high and v is not None]
            return [max(inside)] if inside else []
        values = value if isinstance(value, list) else [value]
        return [v for v in (values if self.at is None else [values[self.at]]) if v is not None]


def _deviation_rows(label: str, field: str, *ranges: tuple[float, float]) -> list[Row]:
    texts = [f"k < {high:g}" if low == 0 else f"k of {low:g} to {high:g}" for low, high in ranges]
    return [
        Row(f"{label}: largest abs R, {text}{which}", field, key, between)
        for text, between in zip(texts, ranges, strict=True)
        for which, key in (
            (", restored", "restored_relative_deviation"),
            (", mean", "relative_deviation"),
        )
    ]


ROWS = (
    Row("velocity: C_r, mean of components", "velocity", "correlation"),
    Row("velocity: rms error of a component, km/s", "velocity", "rms_error"),
    Row("velocity: slope of true on predicted", "velocity", "slope"),
    Row("velocity: C_r of the magnitude", "velocity", "magnitude_correlation"),
    Row("velocity: 1 - cos phi, mean", "velocity", "misalignment_mean"),
    Row("velocity: 1 - cos phi, scatter", "velocity", "misalignment_std"),
    Row("velocity: r(k = 0.1)", "velocity", "spectral_correlation", 0),
    Row("velocity: r(k = 0.3)", "velocity", "spectral_correlation", 1),
    Row("velocity: T(k) of the three longest waves", "velocity", "transfer"),
    *_deviation_rows("velocity", "velocity", (0.03, 0.3)),
    Row("velocity: cells within 68 % errors", "velocity", "coverage_68"),
    Row("velocity: cells within 95 % errors", "velocity", "coverage_95"),
    Row("div v: C_r per cell", "velocity_divergence", "correlation"),
    *_deviation_rows("div v", "velocity_divergence", (0.05, 0.3)),
    Row("density: C_r per cell", "density", "correlation"),
    Row("density: C_r, smoothed by 5 Mpc/h", "density", "correlation_smoothed"),
    Row("density: rms error", "density", "rms_error"),
    Row("density: slope of true on predicted", "density", "slope"),
    Row("density: r(k = 0.1)", "density", "spectral_correlation", 0),
    Row("density: r(k = 0.3)", "density", "spectral_correlation", 1),
    *_deviation_rows("density", "density", (0.0, 0.3), (0.03, 0.3)),
    Row("density: cells within 68 % errors", "density", "coverage_68"),
    Row("density: cells within 95 % errors", "density", "coverage_95"),
    Row("momentum: C_r per cell", "momentum", "correlation"),
    Row("momentum: C_r, smoothed by 5 Mpc/h", "momentum", "correlation_smoothed"),
    Row("momentum: rms error, km/s", "momentum", "rms_error"),
    Row("momentum: slope of true on predicted", "momentum", "slope"),
    *_deviation_rows("momentum", "momentum", (0.03, 0.3)),
)


def score(
    model: str | Path,
    boxes: Sequence[str | Path],
    *,
    los: str = "z",
    symmetries: int = 1,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = False,
    write: bool = True,
) -> Scores:
    """Score a saved model on boxes with known truth, and put the scores into its cards.

    Parameters
    ----------
    model : name of a model that ships, or path of a directory
    boxes : paths of HDF5 boxes or stores
        As :func:`~cosmofields.readers.open_box` reads them.
    los : {"x", "y", "z"}
        Along which the boxes are observed.
    symmetries, device, precision, progress
        As in :func:`~cosmofields.predict`.
    write : bool
        Put the scores into the cards of the model, under ``scores`` by the name of the box, as soon
        as a box is done; what they held of that box is replaced.

    Returns
    -------
    dict
        ``model``, its name; ``trained_for``, of its cards; and ``boxes``, by name: facts of the box
        (``role``, ``seed``, ``box_size``, ``cell_size``, ``line_of_sight``, ``halos``) and of the
        run (``symmetries``, ``precision``, ``date``, ``command``, ``versions``), and by column
        (``network``; ``filtered``, linear theory with the Wiener filter by mass bin; ``eq2``) and
        field (``density``, ``velocity``, ``velocity_divergence``, ``momentum``):

        - ``correlation``, ``rms_error``, ``slope`` per cell, as of
          :func:`~cosmofields.evaluate`; ``correlation_smoothed``, after a Gaussian of 5 Mpc/h;
          ``magnitude_correlation``, ``misalignment_mean`` and ``misalignment_std``;
        - ``spectral_correlation``, r(k) at k = 0.1 and 0.3 h/Mpc: of the bin that holds k, one
          fundamental mode wide, null beyond the modes of the box; ``transfer``, T(k) =
          P_predicted,true / P_true in the three longest such bins, at ``transfer_k``;
        - ``relative_deviation``, R(k) in the bins of ``k_edges``, and the same of the
          power-restored field, ``restored_relative_deviation``; null where a bin has no mode;
        - ``coverage_68``, ``coverage_95``, the share of cells within the predicted errors.

        What a model cannot have (restored and errors without a calibration) is absent.

    Raises
    ------
    CosmofieldsError
        If no box is named, or two of one name, or a cell of a box holds no matter.
    StoreError, ModelMismatchError
        If there is no such model or box, or the box is not of the kind that it was trained for.

    Notes
    -----
    Boxes are in memory one at a time.  Eq. 2 has the bias that the cards hold for it, or else that
    of eq. 4 measured on the box itself, which flatters it.
    """
    cards = load_cards(model)
    names = [Path(path).name for path in boxes]
    if not names or len(set(names)) < len(names):
        raise CosmofieldsError(
            f"boxes={listing(names) or 'none'}; expected at least one, each of another name"
        )
    for path in boxes:
        open_box(path)
    options: dict[str, Any] = {"symmetries": symmetries, "device": device, "precision": precision}
    command = (
        f"cosmofields score --model {as_typed(model)} --boxes {' '.join(names)} "
        f"--los {los} --symmetries {symmetries}"
    )
    found = {}
    for name, path in zip(names, boxes, strict=True):
        found[name] = {
            **_score_box(path, model, cards, los, progress, options),
            "date": datetime.now(UTC).date().isoformat(),
            "command": command,
            "versions": _versions(),
        }
        if write:
            _write(model, name, found[name])
    return {"model": _name(model), "trained_for": cards["density"]["trained_for"], "boxes": found}


def _score_box(
    path: str | Path,
    model: str | Path,
    cards: Mapping[str, Card],
    los: str,
    progress: bool,
    options: Mapping[str, Any],
) -> Scores:
    """Facts of a box, and the scores of the networks and of linear theory on it."""
    tracers, observed, true = observe(path, cards["density"]["trained_for"], los)
    true = true.load()
    calibrated = all("calibration" in cards.get(key, {}) for key in ("density", "velocity"))
    fields = predict(observed, model, uncertainty=calibrated, progress=progress, **options)
    symmetries, precision = options["symmetries"], fields["velocity"].attrs["precision"]
    columns = {NETWORK: measure(fields, true, cards, symmetries=symmetries)}
    # Of a large box, each version is let go before the next is made.
    del fields
    for column in (FILTERED, EQ2):
        columns[column] = measure(_linear(column, observed, true, cards), true)
    source = tracers.attrs.get("source", {})
    return {
        **{key: source[key] for key in ("role", "seed") if key in source},
        "box_size": tracers.attrs["box_size"],
        "cell_size": max(periodic_grid(true).cell_size),
        "line_of_sight": los,
        "halos": tracers.sizes["halo"],
        "symmetries": symmetries,
        "precision": precision,
        "k_edges": list(K_EDGES),
        **columns,
    }


def measure(
    predicted: xr.Dataset,
    true: xr.Dataset,
    cards: Mapping[str, Card] | None = None,
    *,
    symmetries: int = 1,
) -> dict[str, Scores]:
    """Scores of one prediction, by field; what they are is said at :func:`score`.

    Parameters
    ----------
    predicted, true : Dataset
        ``density``, ``velocity`` and ``momentum`` on one grid, in memory; ``predicted`` perhaps
        with ``density_error`` and ``velocity_error``.
    cards : mapping of target to dict, optional
        Of the model: what is calibrated there is restored and scored too.
    symmetries : int
        Over which ``predicted`` was averaged.
    """
    cards = dict(cards or {})
    # The product of density and velocity is restored by the velocity's card.
    cards.setdefault("momentum", cards.get("velocity", {}))
    found: dict[str, Scores] = {}
    for name in ("density", "velocity", "momentum"):
        p, t = predicted[name], true[name]
        restored = None
        if "calibration" in cards.get(name, {}):
            restored = calibration.restore(p, cards[name], symmetries=symmetries)
        scores = {**_cells(p, t), **_deviations(p, t, restored)}
        if name == "velocity":
            scores |= _directions(p, t)
        else:
            smooth = [_smoothed(field) for field in (p, t)]
            scores["correlation_smoothed"] = _cells(*smooth)["correlation"]
        if name != "momentum":
            scores |= _modes(p, t)
        if f"{name}_error" in predicted:
            scores |= _coverage(p, t, predicted[f"{name}_error"])
        found[name] = scores
        if name == "velocity":
            p, t = (divergence(field).rename("velocity_divergence") for field in (p, t))
            if restored is not None:
                restored = divergence(restored).rename("velocity_divergence")
            found["velocity_divergence"] = {**_cells(p, t), **_deviations(p, t, restored)}
    return found


def _linear(
    column: str, observed: xr.Dataset, true: xr.Dataset, cards: Mapping[str, Card]
) -> xr.Dataset:
    """Linear theory from the halos that the model sees."""
    bias = cards["velocity"]["linear_bias"]
    if column == FILTERED:
        return linear_theory(observed, bias=bias["mass_bins"])
    of_eq4 = bias.get("power_ratio") or linear_bias(observed, true["density"])
    return linear_theory(observed, method="paper", bias=of_eq4)


def _cells(predicted: xr.DataArray, true: xr.DataArray) -> Scores:
    found = cell_statistics(predicted, true)
    parts = {key: found[key].values for key in MOMENTS}
    if "component" in true.dims:
        parts |= combined_scores(parts)
    return {
        "correlation": _rounded(parts["correlation_coefficient"]),
        "rms_error": _rounded(parts["rms_error"]),
        "slope": _rounded(parts["slope"]),
    }


def _smoothed(field: xr.DataArray) -> xr.DataArray:
    parts = field.transpose(..., *AXES)
    if parts.ndim == 3:
        return parts.copy(data=calibration.environment(parts, SMOOTHING))
    return parts.copy(data=np.stack([calibration.environment(p, SMOOTHING) for p in parts]))


def _directions(predicted: xr.DataArray, true: xr.DataArray) -> Scores:
    sizes = cell_statistics(magnitude(predicted), magnitude(true))
    angle = misalignment(predicted, true).astype(np.float64)
    return {
        "magnitude_correlation": _rounded(sizes["correlation_coefficient"]),
        "misalignment_mean": _rounded(angle.mean()),
        "misalignment_std": _rounded(angle.std()),
    }


def _modes(predicted: xr.DataArray, true: xr.DataArray) -> Scores:
    """r(k) and T(k) in bins one fundamental mode wide."""
    found = spectra(predicted, true)
    low, high = found["k_bounds"].values.T
    r = [found["correlation"].values[(low <= k) & (k < high)] for k in K_CORRELATION]
    longest = found.isel(k=slice(N_LONGEST))
    return {
        "spectral_correlation": [_rounded(one[0]) if one.size else None for one in r],
        "transfer": _all_rounded(longest["transfer"]),
        "transfer_k": _all_rounded(longest["k_mean"]),
    }


def _deviations(
    predicted: xr.DataArray, true: xr.DataArray, restored: xr.DataArray | None
) -> Scores:
    scores = {"relative_deviation": _deviation(predicted, true)}
    if restored is not None:
        scores["restored_relative_deviation"] = _deviation(restored, true)
    return scores


def _deviation(field: xr.DataArray, true: xr.DataArray) -> list[float | None]:
    return _all_rounded(spectra(field, true, edges=K_EDGES)["relative_deviation"])


def _coverage(field: xr.DataArray, true: xr.DataArray, error: xr.DataArray) -> Scores:
    scores = {}
    for name, sigmas in SIGMAS.items():
        low, high = calibration.interval(field, error, sigmas)
        scores[name] = _rounded(((true >= low) & (true <= high)).mean())
    return scores


def _rounded(value: Any) -> float | None:
    """As JSON has it: a bin without modes, or the slope of a constant, is null."""
    return float(f"{float(value):.5g}") if np.isfinite(value) else None


def _all_rounded(values: Any) -> list[float | None]:
    return [_rounded(value) for value in np.asarray(values, np.float64)]


# --- the cards ---


def _versions() -> dict[str, str]:
    names = ("cosmofields", "numpy", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _name(model: str | Path) -> str:
    return model if model in zoo() else Path(model).resolve().name


def _write(model: str | Path, box: str, scores: Scores) -> None:
    """Each card gets the fields of its target, whatever else it has come to hold meanwhile."""
    cards = load_cards(model)
    fields = {"density": ["density"], "velocity": ["velocity", "velocity_divergence"]}
    fields.setdefault("momentum" if "momentum" in cards else "velocity", []).append("momentum")
    for target, card in cards.items():
        mine = {
            column: {name: scores[column][name] for name in fields[target]}
            for column in (NETWORK, FILTERED, EQ2)
        }
        card.setdefault("scores", {})[box] = {**scores, **mine}
        write_card(card, model)


def gather(model: str | Path) -> Scores:
    """What :func:`score` has put into the cards of a model, as it returned it."""
    cards = load_cards(model)
    boxes: dict[str, Scores] = {}
    for card in cards.values():
        for name, scores in card.get("scores", {}).items():
            box = boxes.setdefault(name, {})
            for key, value in scores.items():
                box[key] = {**box.get(key, {}), **value} if isinstance(value, dict) else value
    trained_for = next(iter(cards.values()))["trained_for"]
    return {"model": _name(model), "trained_for": trained_for, "boxes": boxes}


def models() -> list[dict[str, Any]]:
    """The models that ship: what each is for, its size, and what its cards say that it scores.

    Returns
    -------
    list of dict
        ``name``, to be given as ``model=``; ``targets``; ``number_density`` (of the mass bins,
        cumulative, (h/Mpc)^3), ``weighting``, ``redshift`` and ``cell_size`` (Mpc/h) that it was
        trained for; ``megabytes``; ``scores`` by box: ``role``, ``density_correlation``,
        ``velocity_correlation``, ``velocity_rms_error`` (km/s).  See :func:`score`.

    Examples
    --------
    >>> import cosmofields as cf
    >>> cf.models()[0]["name"]
    'default'
    """
    rows = []
    for name, folder in zoo().items():
        found = gather(name)
        wanted = found["trained_for"]
        rows.append(
            {
                "name": name,
                "targets": list(load_cards(name)),
                **{key: wanted[key] for key in ("number_density", "weighting", "redshift")},
                "cell_size": wanted["cell_size"],
                "megabytes": round(sum(p.stat().st_size for p in folder.iterdir()) / 1e6, 1),
                "scores": {box: _headlines(scores) for box, scores in found["boxes"].items()},
            }
        )
    return rows


def _headlines(scores: Scores) -> Scores:
    network = scores[NETWORK]
    found = {f"{name}_{key}": network[name][key] for name, key in _HEADLINES if name in network}
    return {"role": scores.get("role"), **found}
