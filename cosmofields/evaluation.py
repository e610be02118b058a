"""A reconstruction against the truth: every statistic of a pair of Datasets, and their table.

:func:`evaluate` compares two Datasets; :func:`scores_table` and :func:`format_table` set several
results side by side, as numbers and as text.  The figures are in :mod:`cosmofields.plotting`; the
parts of a larger box are scored by :mod:`cosmofields.boxes`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from .comparison import (
    ANGLES,
    ELLS,
    MOMENTS,
    SIZES,
    Measure,
    Row,
    check_datasets,
    compare,
    fact,
    pair_makers,
    shared_fields,
    shared_los,
    spacing,
    value_edges,
)
from .conventions import (
    COMPONENTS,
    CONVENTIONS,
    DimensionError,
    NotPeriodicError,
    grid_of,
    listing,
    result_facts,
)

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
_MODES, _POLES = ("field", "k"), ("field", "ell", "k")
_LAGS, _PLANE = ("field", "ell", "r"), ("field", "r_perp", "r_par")
_BINS, _JOINT = ("field", "value_bin"), ("scalar", "value_bin", "value_bin_true")
_RELATION = ("scalar", "value_bin", "density_bin")
# Every variable that has a row for each field, in the order in which a result shows them.
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "cells": (_ALL, "cells compared", "1"),
    **_SCORES,
    "component_moments": (
        ("vector_field", "component", "moment"),
        "moments and scores of each component, by which boxes are pooled",
        _OWN,
    ),
    "power_predicted": (_MODES, "power spectrum of the prediction", _SQUARED),
    "power_true": (_MODES, "power spectrum of the truth", _SQUARED),
    "power_cross": (_MODES, "cross spectrum of prediction and truth", _SQUARED),
    "relative_deviation": (_MODES, "R = P_predicted / P_true - 1", "1"),
    "correlation": (_MODES, "r = P_cross / sqrt(P_predicted P_true)", "1"),
    "transfer": (_MODES, "T = P_cross / P_true", "1"),
    "multipoles_predicted": (_POLES, "multipoles of the prediction's power", _SQUARED),
    "multipoles_true": (_POLES, "multipoles of the truth's power", _SQUARED),
    "xi_predicted": (_LAGS, "correlation function of the prediction", f"square of {_OWN}"),
    "xi_true": (_LAGS, "correlation function of the truth", f"square of {_OWN}"),
    "xi_2d_predicted": (_PLANE, "xi(r_perp, r_par) of the prediction", f"square of {_OWN}"),
    "xi_2d_true": (_PLANE, "xi(r_perp, r_par) of the truth", f"square of {_OWN}"),
    "histogram_predicted": (_BINS, "cells with a predicted value; vector: all components", "1"),
    "histogram_true": (_BINS, "cells with a true value; vector: all components", "1"),
    "outside_predicted": (_ALL, "predicted values outside the bins", "1"),
    "outside_true": (_ALL, "true values outside the bins", "1"),
    "misalignment_histogram": (("vector", "angle"), "cells with an angle 1 - cos phi", "1"),
    "joint": (_JOINT, "cells with a predicted and a true value", "1"),
    "density_relation_predicted": (_RELATION, "cells with a value and density, predicted", "1"),
    "density_relation_true": (_RELATION, "cells with a value and density, true", "1"),
}

Table = dict[str, dict[str, dict[str, Any]]]


def evaluate(
    predicted: xr.Dataset,
    true: xr.Dataset,
    *,
    edges: ArrayLike | None = None,
    separations: ArrayLike | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    taper: float | None = None,
) -> xr.Dataset:
    """Measure predicted fields against the true ones: every score, spectrum and distribution.

    Every field of ``density``, ``velocity`` and ``momentum`` that both Datasets hold is compared;
    for a vector so are its magnitude, divergence and curl.  A momentum that a Dataset does not
    hold is density times velocity.

    Parameters
    ----------
    predicted, true : Dataset
        Two versions of one universe on the same grid, under the same variable names.
    edges : array, optional
        Edges of the k bins in h/Mpc; see :func:`~cosmofields.spectral.power_spectrum`.
    separations : array, optional
        Edges of the r bins in Mpc/h; see :func:`~cosmofields.correlation.correlation_function`.
    limits : mapping of field to (low, high), optional
        Limits of the 100 bins of a field's values, e.g. ``{"velocity_magnitude": (0, 1500)}``.
        By default they are fixed, so that counts of several boxes add up.
    taper : float, optional
        Share of each axis over which the fields fade for the spectra, such as 0.35; see
        :mod:`cosmofields.spectral`.  A result with it has no correlation functions, and of a box
        that is not periodic (``attrs["periodic"]`` False) no derivatives either;
        :func:`~cosmofields.boxes.evaluate_sub_boxes` has those.

    Returns
    -------
    Dataset
        ``field`` runs over what was compared: ``density``, ``velocity``, ``velocity_magnitude``,
        ``velocity_divergence``, ``velocity_curl`` and the same of ``momentum``, with their
        ``units``; ``vector`` over velocity and momentum, ``vector_field`` over all vectors,
        ``scalar`` over all scalars.  Fits into Zarr and NetCDF.  Variables:

        - (field): ``cells``, ``correlation_coefficient`` (vector: mean of the components),
          ``rms_error`` (vector: sqrt of the mean square over components), ``slope`` of true on
          predicted (vector: all components together), ``mean_predicted``, ``std_predicted``,
          ``mean_true``, ``std_true`` (vector: of its magnitude);
        - (vector, component): ``component_correlation``, ``component_rms_error``,
          ``component_slope``; (vector_field, component, moment): ``component_moments``, the scores
          and moments of every component;
        - (vector): ``magnitude_correlation``, ``misalignment_mean`` and ``misalignment_std`` of
          1 - cos phi, and ``undirected_cells``, the number of cells left out of these two because
          a vector is zero there; (vector, angle): ``misalignment_histogram``, cells;
        - (field, k): ``power_predicted``, ``power_true``, ``power_cross``,
          ``relative_deviation`` R, ``correlation`` r and ``transfer`` T of
          :func:`~cosmofields.spectral.spectra`; (k): ``modes``, ``k_mean``;
        - (field, ell, k): ``multipoles_predicted``, ``multipoles_true``, l = 0, 2, 4;
        - (field, ell, r): ``xi_predicted``, ``xi_true``; (r): ``pairs``, ``r_mean``;
          (field, r_perp, r_par): ``xi_2d_predicted``, ``xi_2d_true``; see
          :func:`~cosmofields.correlation.correlations`;
        - (field, value_bin): ``histogram_predicted``, ``histogram_true``, counts of cells, of a
          vector those of all components together; (field): ``outside_predicted``,
          ``outside_true``, what lies in no bin; edges are ``value_bounds``, spaced as
          ``value_spacing`` says;
        - (scalar, value_bin, value_bin_true): ``joint``, cells with that predicted and true value;
        - (scalar, value_bin, density_bin): ``density_relation_predicted`` and
          ``density_relation_true``, cells with that value and density, both predicted or both
          true; the density's bins are its ``value_bounds``.

        What belongs to fields that were not compared is absent.  The line of sight is that of
        either Dataset's ``attrs["los"]``, or of its fields'; without one there are no multipoles,
        no xi(r_perp, r_par) and only l = 0 of xi.  ``attrs`` say what was measured on what:
        ``box_size``, ``periodic`` (0 or 1), ``redshift``, ``los``, ``taper``, ``n_grid``,
        ``cell_size``.

    Raises
    ------
    MissingVariableError
        If the Datasets have no field in common.
    NotPeriodicError
        If a box is not periodic, and no ``taper`` is given.
    GridMismatchError, DimensionError
        If the grids, redshifts or lines of sight differ, or the simulations of which both
        ``attrs["source"]`` tell; a field does not span its box, or has other units than it should;
        edges, limits or the taper are none, or what is given is no Dataset.
    CosmofieldsError
        If a field holds NaN or infinity.

    Notes
    -----
    Eager.  The fields are computed once, together, and held whole where they fit in memory.  Where
    they do not, each statistic streams what it reads, and computes it anew: with fields that take
    long to compute, store the Dataset first.  Scores over cells depend on the cell size.

    Examples
    --------
    The largest deviation of the velocity's power over a range of scales::

        result = evaluate(reconstructed, truth)
        abs(result.relative_deviation.sel(field="velocity", k=slice(0.05, 0.2))).max()

    How the true divergence is distributed where the prediction is in bin 50::

        result.joint.sel(scalar="velocity_divergence", value_bin=50)
    """
    values = value_edges(limits)
    check_datasets(predicted, true)
    for ds in (predicted, true):
        if taper is None and fact(ds, "periodic") in (False, 0):
            raise NotPeriodicError(
                "evaluate needs a periodic box; attrs['periodic'] is False here. Pass taper=0.35 "
                "for a part of a box, or evaluate_sub_boxes(predicted, true, size) the whole"
            )
    how = Measure(edges, separations, values, shared_los(predicted, true), taper)
    fields = shared_fields(predicted, true)
    rows: dict[str, Row] = {}
    units: dict[str, str] = {}
    for make in pair_makers(fields):
        p, t = make()
        name = str(t.name)
        rows[name], shared = compare(p, t, fields.get("density"), how)
        units[name] = str(t.attrs["units"])
    result = assemble(rows, shared, units, how)
    found = facts(predicted, true, next(iter(fields.values()))[1], list(fields), taper)
    return result.assign_attrs(found)


def facts(
    predicted: xr.Dataset,
    true: xr.Dataset,
    field: xr.DataArray,
    names: list[str],
    taper: float | None = None,
) -> dict[str, Any]:
    """Attributes of a result: what was compared on what."""
    stated = [
        xr.Dataset(attrs={key: fact(ds, key) for key in ("redshift", "los")})
        for ds in (true, predicted)
    ]
    grid = grid_of(field, what="evaluate")
    kept = result_facts(*stated, field)
    return {
        "title": f"prediction against truth: {listing(names)}",
        **{key: kept[key] for key in ("redshift", "los") if key in kept},
        "box_size": kept["box_size"],
        "periodic": kept.get("periodic", 1),
        **({} if taper is None else {"taper": float(taper)}),
        "n_grid": list(grid.shape),
        "cell_size": list(grid.cell_size),
        "Conventions": CONVENTIONS,
    }


def assemble(
    rows: Mapping[str, Row],
    shared: Mapping[Hashable, xr.Variable],
    units: Mapping[str, str],
    how: Measure,
) -> xr.Dataset:
    """One Dataset of the rows of all fields, with the bins that they share."""
    groups = {
        "field": list(rows),
        "vector": [name for name, row in rows.items() if "misalignment_mean" in row],
        "vector_field": [name for name, row in rows.items() if "component_moments" in row],
        "scalar": [name for name, row in rows.items() if "joint" in row],
    }
    rows = dict(rows)
    for name in groups["vector"]:
        size = rows[f"{name}_magnitude"]
        lengths = {key: size[key] for key in SIZES}
        lengths["magnitude_correlation"] = size["correlation_coefficient"]
        rows[name] = rows[name] | lengths
    # Object strings, since fixed-width ones have no stable form in Zarr v3.
    coords: dict[Hashable, Any] = {
        group: (group, np.array(names, dtype=object)) for group, names in groups.items() if names
    }
    coords["units"] = ("field", np.array(list(units.values()), dtype=object))
    edges = np.stack([how.values[name] for name in rows])
    coords["value_bounds"] = (
        ("field", "value_bin", "bound"),
        np.stack([edges[:, :-1], edges[:, 1:]], axis=-1),
        {"units": _OWN, "long_name": "edges of the bins of values"},
    )
    coords["value_spacing"] = ("field", np.array([spacing(name) for name in rows], dtype=object))
    n_values = edges.shape[1] - 1
    coords["value_bin"] = np.arange(n_values)
    if groups["scalar"]:
        coords["value_bin_true"] = np.arange(n_values)
    if any("density_relation_true" in row for row in rows.values()):
        coords["density_bin"] = np.arange(n_values)
    if groups["vector_field"]:
        coords["component"] = COMPONENTS
        coords["moment"] = np.array(MOMENTS, dtype=object)
        coords["angle"] = (
            "angle",
            (ANGLES[:-1] + ANGLES[1:]) / 2,
            {"units": "1", "long_name": "1 - cos phi", "bounds": "angle_bounds"},
        )
        coords["angle_bounds"] = (("angle", "bound"), np.stack([ANGLES[:-1], ANGLES[1:]], axis=1))
    first = next(iter(rows.values()))
    if how.los is not None:
        coords["ell"] = list(ELLS)
    elif "xi_true" in first:
        coords["ell"] = [0]
    counts = ("modes", "k_mean", "pairs", "r_mean")
    coords |= {key: value for key, value in shared.items() if key not in counts}
    variables: dict[str, Any] = {}
    for key, (dims, long_name, unit) in VARIABLES.items():
        values = [row[key] for row in rows.values() if key in row]
        if values:
            variables[key] = (dims, np.stack(values), {"long_name": long_name, "units": unit})
    variables |= {key: shared[key] for key in counts if key in shared}
    return xr.Dataset(variables, coords)


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
        over "x", "y", "z"; under ``units`` the field's units.  What is rounding next to the
        truth, such as the curl of a gradient, is no number: see :func:`without_rounding`.

    Raises
    ------
    DimensionError
        If ``results`` is no mapping of labels to results.
    """
    # A Dataset is a mapping too, of its variables.
    if isinstance(results, xr.Dataset) or not isinstance(results, Mapping):
        raise DimensionError(
            f"scores_table takes results by label, and a {type(results).__name__} was given: "
            "scores_table({'network': result})"
        )
    for name, result in results.items():
        if not (isinstance(result, xr.Dataset) and "field" in result.dims):
            raise DimensionError(
                f"{name!r} is not what evaluate returned: scores_table({{{name!r}: "
                "evaluate(predicted, true)})"
            )
    return {label: _scores_of(result) for label, result in results.items()}


def format_table(table: Table) -> str:
    """Text of a :func:`scores_table` for a terminal: a row for each score, a column for each label.

    The magnitude of a vector is in the rows of the vector.

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
    names = dict.fromkeys(name for scores in table.values() for name in scores)
    for field in names:
        if field.removesuffix("_magnitude") in names.keys() - {field}:
            continue
        columns = [scores.get(field, {}) for scores in table.values()]
        units = next(column["units"] for column in columns if column)
        lines += [[], [field.replace("_", " ") + ("" if units == "1" else f" [{units}]")]]
        vector = field.endswith("_curl") or any("misalignment_mean" in c for c in columns)
        size = f"|{'curl' if field.endswith('_curl') else field[0]}| " if vector else ""
        for title, key, text in _ROWS:
            found = [_find(column, key) for column in columns]
            if any(value is not None for value in found):
                cells = ["-" if value is None else text(*value) for value in found]
                lines.append([title.format(size), *cells])
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


def without_rounding(result: xr.Dataset) -> xr.Dataset:
    """Scores without the digits that floating point leaves of zero.

    A prediction whose variance is below 1e-8 of the truth's has scatter 0, and neither a
    correlation nor a slope (NaN).  A mean below 1e-6 of the true scatter, or 1e-4 where the
    prediction has no scatter, is 0.
    """
    scale = result["std_true"]
    empty = result["std_predicted"] < 1e-4 * scale
    new = {name: result[name].where(~empty) for name in ("correlation_coefficient", "slope")}
    new["std_predicted"] = result["std_predicted"].where(~empty, 0.0)
    for name in ("mean_predicted", "mean_true"):
        small = abs(result[name]) < xr.where(empty, 1e-4, 1e-6) * scale
        new[name] = result[name].where(~small, 0.0)
    return result.assign(new)


def _scores_of(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    def plain(value: xr.DataArray) -> Any:
        if value.ndim:
            return {str(c): plain(value.sel(component=c)) for c in value.component.values}
        number = float(value)
        return number if np.isfinite(number) else None

    result = without_rounding(result)
    table: dict[str, dict[str, Any]] = {}
    for key, (dims, _, _) in _SCORES.items():
        for name in result[dims[0]].values if key in result else ():
            units = str(result["units"].sel(field=name).item())
            scores = table.setdefault(str(name), {"units": units})
            scores[key] = plain(result[key].sel({dims[0]: name}))
    return table
