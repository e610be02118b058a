"""Distributions over the cells: of values, and of the angle between predicted and true vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_VALUES: tuple[str, ...] = tuple(
    f"{stem}_{of}"
    for stem in ("histogram", "outside", "mean", "std")
    for of in ("predicted", "true")
)
_ANGLES: tuple[str, ...] = ("misalignment_histogram", "misalignment_mean", "misalignment_std")
_VECTORS = ("velocity", "momentum")
_FILL, _EDGE = "0.82", "0.5"


def plot_histograms(results: style.Results, fields: Sequence[str] | None = None) -> Figure:
    """Distribution over the cells of each field, predicted and true, and of 1 - cos phi.

    Parameters
    ----------
    results : Dataset or mapping of label to Dataset
        What :func:`~cosmofields.evaluation.evaluate` returned for each, against one truth; or
        :func:`~cosmofields.boxes.combine`.
    fields : sequence of str, optional
        Entries of the coordinate ``field``: of "velocity" and "momentum" the misalignment
        1 - cos phi of the predicted and the true vector is shown, of others the values.  Default:
        all scalars, and the misalignments; that of the momentum only where it is not the
        velocity's, as it is of m = (1 + delta) v.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each: cells per bin in per cent of all cells, those outside the bins included,
        on an axis that shows the bins with one width; each legend gives mean and scatter over all
        cells.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError
        If there is no result, or one lacks a field.
    GridMismatchError
        If the results were scored against different truths or in different bins.
    """
    named = style.labelled(results)
    names = _default(named) if fields is None else style.as_list(fields)
    panels = {name: histogram_rows(named, name) for name in names}
    columns = 2 if len(panels) == 4 else min(len(panels), 4)
    lines = -(-len(panels) // columns)
    spare = lines * columns - len(panels)
    size = (style.PAGE if columns > 2 else 2.4 * columns, 1.75 * lines)
    with style.figure(size) as figure:
        axes = np.ravel(figure.subplots(lines, columns, squeeze=False))
        for ax, (name, rows) in zip(axes, panels.items(), strict=False):
            draw_histogram(ax, rows, name)
        for ax in axes[::columns]:
            ax.set_ylabel("cells per bin [%]")
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        handles = histogram_key(list(named))
        if spare:
            axes[-1].legend(handles=handles, loc="center", fontsize=8)
        else:
            style.legend_above(figure, handles)
    return figure


def histogram_rows(named: Mapping[str, xr.Dataset], name: str) -> dict[str, xr.Dataset]:
    """The part of each result that a panel about ``name`` needs."""
    dim, needed = "field", _VALUES
    shared: tuple[str, ...] = ("value_bounds", "histogram_true")
    if _is_vector(named, name):
        dim, needed, shared = "vector", _ANGLES, ("angle_bounds",)
    rows = {
        label: style.entry(result, label, name, *needed, dim=dim) for label, result in named.items()
    }
    style.check_same_truth(rows, *shared)
    return rows


def draw_histogram(ax: Axes, rows: Mapping[str, xr.Dataset], name: str) -> None:
    """One panel: the values of a field, or the misalignment of a vector."""
    styles = style.line_styles(list(rows))
    first = next(iter(rows.values()))
    if "vector" in first.coords and "vector" not in first.dims:
        edges = style.edges_of(first, "angle_bounds")
        counts = [row["misalignment_histogram"].values for row in rows.values()]
        for (label, row), values in zip(rows.items(), counts, strict=True):
            text = style.rounded(row["misalignment_mean"], row["misalignment_std"])
            ax.stairs(_percent(values), edges, **styles[label], linewidth=1.3, label=text)
        top = style.inner_range(counts, edges, 1e-2)[1]
        inside = np.concatenate([_percent(values)[edges[1:] <= top] for values in counts])
        ax.set(yscale="log", xlim=(0, top))
        ax.set(
            ylim=(inside[inside > 0].min(initial=100) / 2, None),
            xlabel=rf"$1-\cos\varphi$ of ${style.index(name)}$",
        )
    else:
        edges = style.edges_of(first)
        truth = first["histogram_true"].values
        text = style.rounded(first["mean_true"], first["std_true"])
        share = _percent(truth, first["outside_true"])
        ax.stairs(share, edges, fill=True, facecolor=_FILL, edgecolor=_EDGE, label=text)
        for label, row in rows.items():
            text = style.rounded(row["mean_predicted"], row["std_predicted"])
            share = _percent(row["histogram_predicted"].values, row["outside_predicted"])
            ax.stairs(share, edges, **styles[label], linewidth=1.3, label=text)
        counts = [truth, *(row["histogram_predicted"].values for row in rows.values())]
        style.value_axis(ax, "x", style.Spacing.of(edges), style.inner_range(counts, edges, 2e-3))
        ax.set_xlabel(style.value_label(first))
        ax.set_ylim(0)
    legend = ax.legend(loc="upper right", handlelength=1.8, borderaxespad=0.3, fontsize=6.5)
    low, high = ax.get_ylim()
    # Room above the curves for the legend, which has a line for each of them.
    room = 0.06 + 0.13 * len(legend.get_texts())
    ax.set_ylim(top=high * (high / low) ** room if ax.get_yscale() == "log" else high / (1 - room))


def histogram_key(labels: Sequence[str]) -> list[Any]:
    """Handles that name the truth and each result."""
    lines, patches = style.matplotlib("lines"), style.matplotlib("patches")
    styles = style.line_styles(labels)
    truth = patches.Patch(facecolor=_FILL, edgecolor=_EDGE, label="truth")
    return [truth, *(lines.Line2D([], [], **styles[label], label=label) for label in labels)]


def _default(named: Mapping[str, xr.Dataset]) -> list[str]:
    """All scalars; the misalignment of a vector after the other panels about it."""
    scalars = style.scalar_fields(named, None)
    names: list[str] = []
    for family in dict.fromkeys(name.split("_")[0] for name in scalars):
        names += [name for name in scalars if name.split("_")[0] == family]
        names += [family] if _is_vector(named, family) else []
    return [name for name in names if name != "momentum" or not same_directions(named)]


def same_directions(named: Mapping[str, xr.Dataset]) -> bool:
    """Whether velocity and momentum point alike in every result: of (1 + delta) v they do."""
    if not all(_is_vector(named, name) for name in _VECTORS):
        return False
    # To the rounding of a product; cells at the edge of a bin may have changed sides.
    moments = [result[name] for result in named.values() for name in _ANGLES[1:]]
    return all(
        np.allclose(m.sel(vector="velocity"), m.sel(vector="momentum"), rtol=1e-4, atol=1e-7)
        for m in moments
    )


def _is_vector(named: Mapping[str, xr.Dataset], name: str) -> bool:
    return all("vector" in r.coords and name in r["vector"].values for r in named.values())


def _percent(counts: NDArray[Any], outside: Any = 0) -> NDArray[np.float64]:
    return counts * (100 / max(float(counts.sum() + outside), 1.0))
