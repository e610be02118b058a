"""Scores of a saved model over boxes with known truth."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import calibration
from ..comparison import MOMENTS, combined_scores, misalignment_scores
from ..conventions import AXES, CosmofieldsError, listing, periodic_grid
from ..derivatives import divergence
from ..inference import observe, predict
from ..linear import linear_bias, linear_theory
from ..readers import open_box
from ..spectral import spectra
from ..statistics import cell_statistics, magnitude
from ..unet import Card, load_cards, replace_file
from ..zoo import as_typed, name_of, ships
from .cards import write_scores
from .rows import EQ2, FILTERED, K_EDGES, NETWORK, Scores

# h/Mpc at which r(k) is quoted, and how many of the longest waves T(k) is.
K_CORRELATION = (0.1, 0.3)
N_LONGEST = 3
# Mpc/h, of the Gaussian of the scores after smoothing.
SMOOTHING = 5.0
SIGMAS = {"coverage_68": 1.0, "coverage_95": 1.96}


def score(
    model: str | Path,
    boxes: Sequence[str | Path],
    *,
    los: str = "z",
    symmetries: int = 1,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = False,
    write: bool | None = None,
    out: str | Path | None = None,
) -> Scores:
    """Score a saved model on boxes with known truth.

    Parameters
    ----------
    model : name of a model that ships, or path of a directory
    boxes : paths of HDF5 boxes or stores
        As :func:`~cosmofields.readers.open_box` reads them.
    los : {"x", "y", "z"}
        Along which the boxes are observed.
    symmetries, device, precision, progress
        As in :func:`~cosmofields.predict`.
    write : bool, optional
        Put the scores into the cards of the model, under ``scores`` by the name of the box, as soon
        as a box is done; what they held of that box is replaced.  Default: into those of a
        directory, unless ``out`` is given; never into those of a model that ships.
    out : path, optional
        JSON file for what is returned, written anew as soon as a box is done.

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
    if write is None:
        write = out is None and not ships(model)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Scores] = {}
    scores = {
        "model": name_of(model),
        "trained_for": cards["density"]["trained_for"],
        "boxes": found,
    }
    for name, path in zip(names, boxes, strict=True):
        found[name] = {
            **_score_box(path, model, cards, los, progress, options),
            "date": datetime.now(UTC).date().isoformat(),
            "command": command,
            "versions": _versions(),
        }
        if write:
            write_scores(model, name, found[name])
        if out is not None:
            replace_file(Path(out), (json.dumps(scores, indent=2) + "\n").encode())
    return scores


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
        if name in cards.get(name, {}).get("calibration", {}).get("restoration", {}):
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
    angles = misalignment_scores(predicted, true)
    return {
        "magnitude_correlation": _rounded(sizes["correlation_coefficient"]),
        **{key: _rounded(angles[key]) for key in ("misalignment_mean", "misalignment_std")},
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


def _versions() -> dict[str, str]:
    names = ("cosmofields", "numpy", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
