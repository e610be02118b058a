"""Correlation functions: multipoles, and contours across and along the line of sight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..conventions import DimensionError
from . import style
from .poles import Statistic, curve_styles, draw_poles, read_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLANE = Statistic("xi_2d", "xi_2d", ("r_perp", "r_par"), "correlations(field)")
_LIGHT, _DARK = 0.88, 0.58  # grey of the outermost and of the innermost of the truth's levels


def plot_correlation(
    results: style.Results,
    field: str = "density",
    *,
    ells: Sequence[int] | None = None,
    truth: str | None = None,
    others: style.Results | None = None,
) -> Figure:
    """Multipoles of the correlation function about the line of sight: r^2 xi_l(r).

    Parameters
    ----------
    results : Dataset or mapping of label to Dataset
        What :func:`~cosmofields.evaluation.evaluate`, :func:`~cosmofields.boxes.combine`,
        :func:`~cosmofields.correlation.correlations` or
        :func:`~cosmofields.two_point.clustering` returned; of the last each sample is drawn,
        under its own label.
    field : str
        Entry of the coordinate ``field`` of what ``evaluate`` returned.
    ells : sequence of int, optional
        Default: all that the first result has.
    truth : str, optional
        Label of the curve drawn in black; default: the truth of ``evaluate``, else the last of
        several samples.
    others : Dataset or mapping of label to Dataset, optional
        Drawn after ``results``, such as the halos in redshift space.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each l: the truth of ``evaluate`` in black, with shades of one and two standard
        deviations around a prediction where there is a spread.  Where the peaks of two curves
        differ by more than a factor of four, the axis is linear about 0 and logarithmic beyond
        (asinh).

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError, DimensionError
        If there is no result, or one lacks the field or a multipole.
    GridMismatchError
        If results were scored against different truths or in different bins.
    """
    return draw_poles("xi", results, field, ells, others, truth)


def plot_correlation_2d(
    results: style.Results,
    field: str = "density",
    *,
    levels: Sequence[float] = (0.02, 0.06, 0.12),
    truth: str | None = None,
    others: style.Results | None = None,
) -> Figure:
    """Contours of the correlation function xi(r_perp, r_par), mirrored to four quadrants.

    Parameters
    ----------
    results : Dataset or mapping of label to Dataset
        What :func:`~cosmofields.two_point.clustering`,
        :func:`~cosmofields.evaluation.evaluate`, :func:`~cosmofields.boxes.combine` or
        :func:`~cosmofields.correlation.correlations` returned; of the first each sample is drawn,
        under its own label.
    field : str
        Entry of the coordinate ``field`` of what ``evaluate`` returned.
    levels : sequence of float
        Values of xi to draw contours at, in the units of xi.
    truth : str, optional
        Label of the curve that is filled with grey; default: the truth of ``evaluate``, else the
        last of several samples.
    others : Dataset or mapping of label to Dataset, optional
        Drawn after ``results``.

    Returns
    -------
    matplotlib.figure.Figure
        One panel with both axes in Mpc/h, to the same scale; the levels are written on the
        truth, or on the first curve where there is none.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError, DimensionError
        If there is no result, one lacks the field, or no curve is called ``truth``.
    GridMismatchError
        If results were scored against different truths or in different bins.

    Notes
    -----
    xi is even in r_par and depends on the length of r_perp alone: the quadrants hold one and the
    same measurement.
    """
    curves, _ = read_curves(_PLANE, results, field, others, truth)
    ordered = np.unique(np.asarray(levels, dtype=np.float64))
    highest = max(float(curve.values.max()) for curve in curves)
    if not (ordered.size and ordered[0] < highest):
        raise DimensionError(
            f"levels={list(levels)}; expected values that xi has, which reaches {highest:.3g}"
        )
    curves = sorted(curves, key=lambda curve: not curve.is_truth)  # beneath the lines
    styles = curve_styles(curves)
    with style.figure((style.COLUMN, style.COLUMN - 0.1)) as figure:
        lines, patches = style.matplotlib("lines"), style.matplotlib("patches")
        ax = figure.subplots()
        handles = []
        for curve in curves:
            across, along, xi = _quadrants(curve.values)
            # Of a level that it does not reach a curve has no contour.
            reached = ordered[(ordered > np.nanmin(xi)) & (ordered < np.nanmax(xi))]
            line = styles[curve.label]
            if curve.is_truth:
                line = {"color": "0.35", "linestyle": "-", "linewidth": 0.5}
                if reached.size:
                    shades = [f"{grey:.3f}" for grey in np.linspace(_LIGHT, _DARK, reached.size)]
                    ax.contourf(across, along, xi.T, [*reached, np.inf], colors=shades)
                key = patches.Patch(
                    facecolor=f"{(_LIGHT + _DARK) / 2}", edgecolor="0.35", label=curve.label
                )
            else:
                key = lines.Line2D([], [], **line, label=curve.label)
            handles.append(key)
            if reached.size:
                dashes = {"colors": line["color"], "linestyles": [line["linestyle"]]}
                width = line.get("linewidth", 1.2)
                drawn = ax.contour(across, along, xi.T, reached, linewidths=width, **dashes)
                if curve is curves[0]:
                    ax.clabel(drawn, fmt="%g", inline=False, fontsize=6, colors="black")
        reach = _reach([curve.values for curve in curves], ordered[0])
        ax.set(
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            aspect="equal",
            xlabel=rf"$r_\perp$ [{style.LENGTH}]",
            ylabel=rf"$r_\parallel$ [{style.LENGTH}]",
        )
        style.legend_above(figure, handles)
    return figure


def _quadrants(
    xi: xr.DataArray,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates and values (r_perp, r_par) over positive and negative separations."""
    axes = [np.concatenate([-xi[dim].values[::-1], xi[dim].values]) for dim in _PLANE.dims]
    values = xi.values
    values = np.concatenate([values[::-1], values], axis=0)
    return axes[0], axes[1], np.concatenate([values[:, ::-1], values], axis=1)


def _reach(planes: Sequence[xr.DataArray], level: float) -> float:
    """Separation that shows the outermost contours and a margin, where the planes go so far."""
    ends = [min(float(xi[dim].max()) for dim in _PLANE.dims) for xi in planes]
    inside = [
        float(xi[dim].where((xi >= level).any(set(_PLANE.dims) - {dim})).max())
        for xi in planes
        for dim in _PLANE.dims
    ]
    far = 1.25 * np.nanmax(inside) if np.isfinite(inside).any() else np.inf
    return min(far, *ends)
