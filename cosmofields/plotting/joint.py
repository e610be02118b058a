"""Joint distributions over the cells: predicted against true values, fields against the density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..conventions import MissingVariableError
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHARES = (0.68, 0.95)
_CONTOUR = "#D55E00"
_BLUES = ("#cfe1f2", "#93c4df", "#4a97c9")  # light to dark, so that they order in grey too


def plot_joint(results: style.Results, fields: Sequence[str] | None = None) -> Figure:
    """Joint distribution, over cells, of the predicted and the true value of scalar fields.

    Parameters
    ----------
    results : Dataset or mapping of label to Dataset
        What :func:`~cosmofields.evaluation.evaluate` returned for each, or
        :func:`~cosmofields.boxes.combine`; a row of panels for each.
    fields : sequence of str, optional
        Entries of the coordinate ``scalar``: "density", "velocity_magnitude", ... Default: all.

    Returns
    -------
    matplotlib.figure.Figure
        Cells on a logarithmic scale that all panels share, contours around the densest 68 and 95
        per cent of the cells, the line of equality, C_r and the rms error.  The axes leave out the
        outermost 0.05 per cent of the cells.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError
        If there is no result, or one lacks a field.

    Notes
    -----
    C_r and the rms error are those of all cells, outside the bins too, and of the values themselves
    where the axes are logarithmic.  The axes show the bins with one width: those of the density are
    logarithmic, those of the momentum turn so beyond 200 km/s.  The contours follow the counts
    per bin, smoothed by one bin.
    """
    named = style.labelled(results)
    names = style.scalar_fields(named, fields)
    needed = ("joint", "value_bounds", "correlation_coefficient", "rms_error")
    panels = [
        (label, style.entry(result, label, name, *needed, dim="scalar"))
        for label, result in named.items()
        for name in names
    ]
    rows, columns = style.panel_grid(len(named), len(names))
    top = max(float(row["joint"].max()) for _, row in panels)
    width = min(style.PAGE, 2.35 * columns + 0.5)
    side = (width - 0.5) / columns
    with style.figure((width, 0.95 * side * rows + 0.15), "compressed") as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        flat = np.ravel(axes)
        norm = style.matplotlib("colors").LogNorm(1, max(top, 2.0))
        for ax, (label, row) in zip(flat, panels, strict=False):
            mesh = _joint_panel(ax, row, norm)
            if len(named) > 1:
                ax.set_title(label)
        for ax in flat[len(panels) :]:
            ax.set_axis_off()
        figure.colorbar(mesh, ax=axes, label="cells per bin", aspect=12 * rows + 18, pad=0.02)
    return figure


def plot_density_relation(results: style.Results, fields: Sequence[str] | None = None) -> Figure:
    """Joint distribution, over cells, of the density and of another field: predicted and true.

    Parameters
    ----------
    results : Dataset or mapping of label to Dataset
        What :func:`~cosmofields.evaluation.evaluate` returned for each, or
        :func:`~cosmofields.boxes.combine`, of Datasets with a ``density``; a row for each.
    fields : sequence of str, optional
        Entries of the coordinate ``scalar``.  Default: all but the density.

    Returns
    -------
    matplotlib.figure.Figure
        In each panel the densest 68, 95 and 99.7 per cent of the cells: of the prediction (its
        field against its density) filled, of the truth as lines.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError
        If there is no result, or one lacks a field or the density.

    Notes
    -----
    The shares are of the cells inside the bins, by counts per bin smoothed by one bin; the axes
    show the bins with one width, as those of :func:`plot_joint`.
    """
    named = style.labelled(results)
    names = style.scalar_fields(named, fields)
    names = names if fields is not None else [name for name in names if name != "density"]
    if not names:
        raise MissingVariableError(
            "No scalar field beside the density; expected results of Datasets with a velocity"
        )
    needed = ("density_relation_predicted", "density_relation_true", "value_bounds")
    panels = []
    for label, result in named.items():
        density = style.entry(result, label, "density", *needed)
        for name in names:
            panels.append((label, density, style.entry(result, label, name, *needed, dim="scalar")))
    rows, columns = style.panel_grid(len(named), len(names))
    width = style.PAGE if columns > 2 else 2.6 * columns
    with style.figure((width, 0.85 * width / columns * rows + 0.35)) as figure:
        flat = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for ax, (label, density, row) in zip(flat, panels, strict=False):
            _relation_panel(ax, density, row)
            if len(named) > 1:
                ax.set_title(label)
        for ax in flat[len(panels) :]:
            ax.set_axis_off()
        patches, lines = style.matplotlib("patches"), style.matplotlib("lines")
        texts = ("predicted: 99.7 %", "95 %", "68 % of the cells")
        handles = [patches.Patch(color=c, label=t) for c, t in zip(_BLUES, texts, strict=True)]
        handles.append(lines.Line2D([], [], color="black", linewidth=0.9, label="truth"))
        style.legend_above(figure, handles)
    return figure


def _joint_panel(ax: Axes, row: xr.Dataset, norm: Any) -> Any:
    edges = style.edges_of(row)
    counts = row["joint"].transpose("value_bin", "value_bin_true").values.astype(np.float64)
    shown = np.where(counts > 0, counts, np.nan)
    mesh = ax.pcolormesh(edges, edges, shown, norm=norm, cmap="Blues", rasterized=True)
    _contours(ax, counts, edges, edges, _SHARES, colors=_CONTOUR, linewidths=0.9)
    limits = style.inner_range([counts.sum(0), counts.sum(1)], edges, 5e-4)
    style.value_axis(ax, "x", style.Spacing.of(edges), limits)
    style.value_axis(ax, "y", style.Spacing.of(edges), limits)
    ax.plot(limits, limits, color="black", linestyle="--", linewidth=0.8)
    ax.set(xlim=limits, ylim=limits, box_aspect=1)
    ax.set(xlabel=style.value_label(row, "true"), ylabel=style.value_label(row, "predicted"))
    error = style.with_units(f"{float(row['rms_error']):.3g}", str(row["units"].item()), plain=True)
    text = f"$C_r = {float(row['correlation_coefficient']):.3f}$\nrms error {error}"
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}
    # The corner that a prediction leaves empty.
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
    ax.text(0.97, 0.03, text, **place, fontsize=6.5, bbox=paper)
    return mesh


def _relation_panel(ax: Axes, density: xr.Dataset, row: xr.Dataset) -> None:
    x, y = style.edges_of(density), style.edges_of(row)
    order = ("value_bin", "density_bin")
    predicted, true = (
        row[f"density_relation_{of}"].transpose(*order).values.astype(np.float64)
        for of in ("predicted", "true")
    )
    shares = (*_SHARES, 0.997)
    _contours(ax, predicted, x, y, shares, filled=True, colors=_BLUES)
    _contours(ax, true, x, y, shares, colors="black", linewidths=0.9)
    style.value_axis(
        ax, "x", style.Spacing.of(x), style.inner_range([predicted.sum(0), true.sum(0)], x, 3e-4)
    )
    style.value_axis(
        ax, "y", style.Spacing.of(y), style.inner_range([predicted.sum(1), true.sum(1)], y, 3e-4)
    )
    ax.set(xlabel=style.value_label(density), ylabel=style.value_label(row))


def _contours(
    ax: Axes,
    counts: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    shares: Sequence[float],
    *,
    filled: bool = False,
    **options: Any,
) -> None:
    """Draw contours of ``counts`` (y, x) around the densest ``shares`` of the cells."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(counts, 1.0)
    if not smooth.max() > 0:
        raise MissingVariableError(
            "No cell lies inside the bins of this panel, so there is nothing to show; expected "
            "bins that hold the values: evaluate(..., limits=...)"
        )
    levels = np.unique([_level(smooth, share) for share in shares])
    centres = [style.Spacing.of(edges).centres(edges) for edges in (x, y)]
    if filled:
        ax.contourf(*centres, smooth, [*levels, smooth.max() * 1.01], **options)
    else:
        ax.contour(*centres, smooth, levels, **options)


def _level(counts: NDArray[np.float64], share: float) -> float:
    """Count above which the densest bins hold ``share`` of the cells."""
    ordered = np.sort(counts, axis=None)[::-1]
    return float(ordered[np.searchsorted(np.cumsum(ordered), share * ordered.sum())])
