"""A reconstruction against the truth: scores and spectra of a pair of Datasets, and their table.

:func:`evaluate` compares two Datasets; :func:`scores_table` and :func:`format_table` set several
results side by side, as numbers and as text.  The figures are in :mod:`cosmofields.plotting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import ArrayLike

from . import spectral, statistics
from .conventions import (
    COMPONENTS,
    CONVENTIONS,
    FIELDS,
    GridMismatchError,
    MissingVariableError,
    check_same_grid,
    listing,
    periodic_grid,
    variable,
)
from .derivatives import divergence
from .kernels.cells import ratio

SCORED = ("density", "velocity", "momentum")

_ALL, _VECTOR, _PARTS = ("field",), ("vector",), ("vector", "component")
_OWN = "those of the coordinate `units`"
# Name of a score: dims, what it is, units.
_SCORES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "correlation_coefficient": (_ALL, "Pearson correlation; vector: mean of components", "1"),
    "rms_error": (_ALL, "rms of predicted - true; vector: over all components", _OWN),
    "slope": (_ALL, "least-squares slope of true on predicted", "1"),
    "mean_predicted": (_ALL, "mean of the prediction; vector: of its magnitude", _OWN),
    "std_predicted": (_ALL, "scatter of the prediction; vector: of its magnitude", _OWN),
    "mean_true": (_ALL, "mean of the truth; vector: of its magnitude", _OWN),
    "std_true": (_ALL, "scatter of the truth; vector: of its magnitude", _OWN),
    "component_correlation": (_PARTS, "Pearson correlation", "1"),
    "component_rms_error": (_PARTS, "rms of predicted - true", "km/s"),
    "component_slope": (_PARTS, "least-squares slope of true on predicted", "1"),
    "magnitude_correlation": (_VECTOR, "Pearson correlation of the magnitudes", "1"),
    "misalignment_mean": (_VECTOR, "mean of 1 - cos phi", "1"),
    "misalignment_std": (_VECTOR, "scatter of 1 - cos phi", "1"),
    "undirected_cells": (_VECTOR, "cells without a misalignment, where a vector is zero", "1"),
}
_SQUARED = "square of the coordinate `units`, times (Mpc/h)^3"
_SPECTRA = {
    "power_predicted": ("power spectrum of the prediction", _SQUARED),
    "power_true": ("power spectrum of the truth", _SQUARED),
    "power_cross": ("cross spectrum of prediction and truth", _SQUARED),
    "relative_deviation": ("R = P_predicted / P_true - 1", "1"),
    "correlation": ("r = P_cross / sqrt(P_predicted P_true)", "1"),
    "transfer": ("T = P_cross / P_true", "1"),
}

Table = dict[str, dict[str, dict[str, Any]]]


def evaluate(
    predicted: xr.Dataset, true: xr.Dataset, *, edges: ArrayLike | None = None
) -> xr.Dataset:
    """Score predicted fields against the true ones.

    Every field of ``density``, ``velocity`` and ``momentum`` that both Datasets hold is compared;
    for a vector so is its divergence.

    Parameters
    ----------
    predicted, true : Dataset
        Two versions of one universe on the same periodic grid, under the same variable names.
    edges : array, optional
        Edges of the k bins in h/Mpc; see :func:`~cosmofields.spectral.power_spectrum`.

    Returns
    -------
    Dataset, dims (field, vector, component, k)
        ``field`` runs over the scalars and vectors compared, with the divergences as
        ``velocity_divergence`` and ``momentum_divergence``; the coordinate ``units`` holds their
        units.  Fits into Zarr and NetCDF.  Variables:

        - (field): ``correlation_coefficient`` (vector: mean of the components), ``rms_error``
          (vector: sqrt of the mean square over components), ``slope`` of true on predicted
          (vector: all components together), ``mean_predicted``, ``std_predicted``, ``mean_true``,
          ``std_true`` (vector: of its magnitude);
        - (vector, component): ``component_correlation``, ``component_rms_error``,
          ``component_slope``;
        - (vector): ``magnitude_correlation``, ``misalignment_mean`` and ``misalignment_std`` of
          1 - cos phi, and ``undirected_cells``, the number of cells left out of these two because
          a vector is zero there;
        - (field, k): ``power_predicted``, ``power_true``, ``power_cross``,
          ``relative_deviation`` R, ``correlation`` r and ``transfer`` T of
          :func:`~cosmofields.spectral.spectra`;
        - (k): ``modes``, ``k_mean``.

        The variables of vectors are absent when no vector was compared.  ``attrs`` say what was
        scored on what: ``box_size``, ``redshift``, ``los``, ``n_grid``, ``cell_size``.

    Raises
    ------
    MissingVariableError
        If the Datasets have no field in common.
    GridMismatchError, NotPeriodicError, DimensionError
        If the grids or redshifts differ, or are not the whole box.
    CosmofieldsError
        If a field holds NaN or infinity.

    Notes
    -----
    Eager: each field is computed once and held whole; with one that takes long to compute, store
    the Dataset first.  Scores over cells depend on the cell size.

    Examples
    --------
    The largest deviation of the velocity's power over a range of scales::

        result = evaluate(reconstructed, truth)
        abs(result.relative_deviation.sel(field="velocity", k=slice(0.05, 0.2))).max()
    """
    names = [name for name in SCORED if name in predicted and name in true]
    if not names:
        raise MissingVariableError(
            f"No field to compare: the prediction holds {listing(predicted.data_vars) or 'nothing'}"
            f", the truth {listing(true.data_vars) or 'nothing'}; expected one of "
            f"{listing(SCORED)} in both"
        )
    z_predicted, z_true = predicted.attrs.get("redshift"), true.attrs.get("redshift")
    if z_predicted is not None and z_true is not None and abs(z_predicted - z_true) > 1e-4:
        raise GridMismatchError(
            f"The prediction is at redshift {z_predicted}, the truth at {z_true}; "
            "expected two versions of one universe at one time"
        )
    scores: dict[str, dict[str, Any]] = {}
    details: dict[str, dict[str, Any]] = {}
    spectra: dict[str, xr.Dataset] = {}
    units: dict[str, str] = {}

    def compare(p: xr.DataArray, t: xr.DataArray) -> None:
        name = str(t.name)
        if "component" in t.dims:
            scores[name], details[name] = _score_vector(p, t)
        else:
            scores[name] = _values(statistics.cell_statistics(p, t))
        spectra[name] = spectral.spectra(p, t, edges=edges)
        units[name] = t.attrs["units"]

    for name in names:
        pair = variable(predicted, name), variable(true, name)
        check_same_grid(*pair)
        grid = periodic_grid(pair[1], what="evaluate")
        p, t = compute(*pair)
        compare(p, t)
        if FIELDS[name].is_vector:
            compare(*(divergence(v).rename(f"{name}_divergence") for v in (p, t)))
    result = _assemble(scores, details, spectra, units)
    facts = {key: true.attrs[key] for key in ("box_size", "redshift", "los") if key in true.attrs}
    result.attrs = {
        "title": f"prediction against truth: {listing(names)}",
        **facts,
        "n_grid": list(grid.shape),
        "cell_size": list(grid.cell_size),
        "Conventions": CONVENTIONS,
    }
    return result


def scores_table(results: Mapping[str, xr.Dataset]) -> Table:
    """Scores of several reconstructions as plain nested dicts, ready for JSON.

    Parameters
    ----------
    results : mapping of label to Dataset
        What :func:`evaluate` returned for each, e.g. ``{"linear": ..., "network": ...}``.

    Returns
    -------
    dict
        ``table[label][field][score]``: a float (None where undefined); of a component score a dict
        over "x", "y", "z"; under ``units`` the field's units.
    """
    return {label: _scores_of(result) for label, result in results.items()}


def format_table(table: Table) -> str:
    """Text of a :func:`scores_table` for a terminal: a row for each score, a column for each label.

    Parameters
    ----------
    table : dict
        From :func:`scores_table`, also after a round trip through JSON.

    Returns
    -------
    str
        Aligned ASCII text without a final newline.
    """
    lines: list[list[str]] = [["", *table]]
    for field in dict.fromkeys(name for scores in table.values() for name in scores):
        columns = [scores.get(field, {}) for scores in table.values()]
        units = next(column["units"] for column in columns if column)
        lines += [[], [field.replace("_", " ") + ("" if units == "1" else f" [{units}]")]]
        vector = any("misalignment_mean" in column for column in columns)
        for title, key, text in _ROWS:
            found = [_find(column, key) for column in columns]
            if any(value is not None for value in found):
                cells = ["-" if value is None else text(*value) for value in found]
                lines.append([title.format(f"|{field[0]}| " if vector else ""), *cells])
    rows = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def _find(scores: Mapping[str, Any], key: str) -> tuple[float | None, ...] | None:
    """What a row shows of one reconstruction: a number, or a mean and its scatter."""
    name, _, component = key.partition(".")
    if name not in scores:
        return None
    if component:
        return (scores[name][component],)
    if "mean" in name:
        return scores[name], scores[name.replace("mean", "std")]
    return (scores[name],)


def _fixed(value: float | None, scale: float | None, digits: int) -> str:
    """``value`` with the decimals that show so many digits of ``scale``, three at the most."""
    if value is None or scale is None:
        return "-"
    size = abs(scale)
    decimals = min(max(0, digits - 1 - int(np.floor(np.log10(size)))), 3) if size > 0 else 3
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def _ratio_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _size_text(value: float | None) -> str:
    return _fixed(value, value, 4)


def _scatter_text(mean: float | None, std: float | None) -> str:
    return f"{_fixed(mean, std, 3)} +- {_fixed(std, std, 3)}"


_ROWS: list[tuple[str, str, Callable[..., str]]] = [
    ("  C_r", "correlation_coefficient", _ratio_text),
    *((f"    of {c}", f"component_correlation.{c}", _ratio_text) for c in COMPONENTS),
    ("    of {}", "magnitude_correlation", _ratio_text),
    ("  rms error", "rms_error", _size_text),
    *((f"    of {c}", f"component_rms_error.{c}", _size_text) for c in COMPONENTS),
    ("  slope", "slope", _ratio_text),
    ("  1 - cos phi", "misalignment_mean", _scatter_text),
    ("  {}predicted", "mean_predicted", _scatter_text),
    ("  {}true", "mean_true", _scatter_text),
]


def _scores_of(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    def plain(value: xr.DataArray) -> Any:
        if value.ndim:
            return {str(c): plain(value.sel(component=c)) for c in value.component.values}
        number = float(value)
        return number if np.isfinite(number) else None

    table: dict[str, dict[str, Any]] = {}
    for key, (dims, _, _) in _SCORES.items():
        for name in result[dims[0]].values if key in result else ():
            units = str(result["units"].sel(field=name).item())
            scores = table.setdefault(str(name), {"units": units})
            scores[key] = plain(result[key].sel({dims[0]: name}))
    return table


def _values(scores: xr.Dataset) -> dict[str, Any]:
    return {str(name): value.values for name, value in scores.data_vars.items()}


def _score_vector(
    predicted: xr.DataArray, true: xr.DataArray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of a vector as one field, and those that only a vector has."""
    parts = _values(statistics.cell_statistics(predicted, true))
    size = _values(
        statistics.cell_statistics(statistics.magnitude(predicted), statistics.magnitude(true))
    )
    angle = statistics.misalignment(predicted, true).values
    angle = angle[np.isfinite(angle)].astype(np.float64)
    variance = parts["std_predicted"] ** 2
    scores = {
        **size,
        "correlation_coefficient": parts["correlation_coefficient"].mean(),
        "rms_error": np.sqrt((parts["rms_error"] ** 2).mean()),
        "slope": ratio(np.nansum(parts["slope"] * variance), variance.sum()),
    }
    details = {
        "component_correlation": parts["correlation_coefficient"],
        "component_rms_error": parts["rms_error"],
        "component_slope": parts["slope"],
        "magnitude_correlation": size["correlation_coefficient"],
        "misalignment_mean": angle.mean() if angle.size else np.nan,
        "misalignment_std": angle.std() if angle.size else np.nan,
        "undirected_cells": true[0].size - angle.size,
    }
    return scores, details


def _assemble(
    scores: Mapping[str, Mapping[str, Any]],
    details: Mapping[str, Mapping[str, Any]],
    spectra: Mapping[str, xr.Dataset],
    units: Mapping[str, str],
) -> xr.Dataset:
    """One Dataset of the scores and spectra of each field and vector."""
    # Object strings, since fixed-width ones have no stable form in Zarr v3.
    bins = next(iter(spectra.values())).drop_vars(list(_SPECTRA))
    result = bins.assign_coords(
        field=np.array(list(units), dtype=object),
        units=("field", np.array(list(units.values()), dtype=object)),
    )
    if details:
        vectors = np.array(list(details), dtype=object)
        result = result.assign_coords(vector=vectors, component=COMPONENTS)
    for key, (dims, long_name, unit) in _SCORES.items():
        rows = scores if dims == _ALL else details
        if rows:
            values = np.stack([row[key] for row in rows.values()])
            result[key] = (dims, values, {"long_name": long_name, "units": unit})
    for key, (long_name, unit) in _SPECTRA.items():
        values = np.stack([spectrum[key].values for spectrum in spectra.values()])
        result[key] = (("field", "k"), values, {"long_name": long_name, "units": unit})
    return result
