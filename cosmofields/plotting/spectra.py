"""Spectra: power with the ratios that compare it, and its multipoles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..conventions import DimensionError, MissingVariableError, listing
from . import style
from .poles import draw_poles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COMPARED = ("power_predicted", "power_true", "relative_deviation", "correlation", "k_mean")
_ROUNDING = 1e-8  # of power: 1e-4 of an amplitude, which single precision still tells from 0
Groups = Mapping[str, Mapping[str, xr.Dataset]]


def plot_spectra(
    results: style.Results | Groups,
    field: str | Sequence[str] = "velocity",
    *,
    others: Mapping[str, xr.Dataset] | None = None,
    band: float = 0.1,
) -> Figure:
    """Power spectra of the truth and of reconstructions, with R(k) and r(k) below.

    Parameters
    ----------
    results : Dataset, mapping of label to Dataset, or mapping of title to such a mapping
        What :func:`~cosmofields.evaluation.evaluate` returned for each, against one truth, or
        :func:`~cosmofields.boxes.combine`.  Of a mapping of mappings, such as
        ``{"weighted by mass": {"network": ...}, "by number": {"network": ...}}``, each title gets
        its own columns.
    field : str or sequence of str
        Entries of the coordinate ``field``: "density", "velocity", "velocity_divergence", ...
        Of several each gets its own column.
    others : mapping of label to Dataset, optional
        Further spectra to draw with the power, what
        :func:`~cosmofields.spectral.power_spectrum` returned, such as that of the halos in
        redshift space.  Drawn in the columns of fields of the same units, as measured: a thin line
        marks the shot noise where the Dataset has it.
    band : float
        Half-width of the shaded strip around R = 0.

    Returns
    -------
    matplotlib.figure.Figure
        In each column three panels that share k: P(k), R(k) = P_pred / P_true - 1, clipped at
        0.5, and r(k).  Where the results hold a spread (of combined boxes), shades of one and two
        standard deviations are around the lines of the predictions.  A prediction whose power is
        rounding next to the truth's (:func:`only_rounding`), such as the curl of a gradient, has
        no line in that column.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError
        If there is no result, or one without that field.
    GridMismatchError
        If the results of a column were scored against different truths or in different bins.
    DimensionError
        If one of ``others`` has the units of no column.

    Notes
    -----
    The points lie at the mean wavenumber of the modes in each bin.
    """
    columns = [
        (title, {label: style.entry(r, label, name, *_COMPARED) for label, r in group.items()})
        for title, group in _groups(results).items()
        for name in style.as_list(field)
    ]
    for _, rows in columns:
        style.check_same_truth(rows, "k_mean", "power_true")
    others = dict(others or {})
    _check_units(others, [next(iter(rows.values())) for _, rows in columns])
    labels = dict.fromkeys(label for _, rows in columns for label in rows)
    styles = style.line_styles([*labels, *others])
    width = min(style.COLUMN if len(columns) == 1 else 2.6 * len(columns), style.PAGE)
    height = 4.3 if len(columns) == 1 else 3.9
    with style.figure((width, height)) as figure:
        axes = figure.subplots(
            3, len(columns), sharex="col", squeeze=False, height_ratios=(2.2, 1, 1)
        )
        for i, (title, rows) in enumerate(columns):
            _column(list(axes[:, i]), rows, others, styles, band)
            if title:
                axes[0, i].set_title(title)
            if i:
                axes[1, i].set_ylabel("")
                axes[2, i].set_ylabel("")
        lowest = min(ax.get_ylim()[0] for ax in axes[2])
        for ax in axes[2]:
            ax.set_ylim(lowest, 1 + 0.05 * (1 - lowest))
        # Of what any column shows, since the columns need not show the same.
        keys = {line.get_label(): line for ax in axes[0] for line in ax.lines}
        style.legend_above(figure, list(keys.values()))
        figure.align_ylabels(axes)
    return figure


def plot_multipoles(
    results: style.Results,
    field: str = "density",
    *,
    ells: Sequence[int] | None = None,
    truth: str | None = None,
    others: style.Results | None = None,
) -> Figure:
    """Multipoles of the power spectrum about the line of sight: k P_l(k).

    Parameters
    ----------
    results : Dataset or mapping of label to Dataset
        What :func:`~cosmofields.evaluation.evaluate`, :func:`~cosmofields.boxes.combine`,
        :func:`~cosmofields.spectral.multipoles` or :func:`~cosmofields.two_point.clustering`
        returned; of the last each sample is drawn, under its own label.
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
        deviations around a prediction where there is a spread.  A thin line in the panel of l = 0
        marks the shot noise where the Dataset has it; nothing is subtracted.  Where the peaks of
        two curves differ by more than a factor of four, the axis is linear about 0 and logarithmic
        beyond (asinh).

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError, DimensionError
        If there is no result, or one lacks the field or a multipole.
    GridMismatchError
        If results were scored against different truths or in different bins.
    """
    return draw_poles("power", results, field, ells, others, truth)


def only_rounding(row: xr.Dataset) -> bool:
    """Whether the predicted power of one field is nowhere 1e-8 of the peak of the truth's.

    So small is the curl of a velocity that is a gradient, as in linear theory: what floating point
    leaves of zero.  Power that is undefined or zero throughout is so too.
    """
    peak = float(row["power_true"].max())
    return peak > 0 and not bool((row["power_predicted"] > _ROUNDING * peak).any())


def _groups(results: style.Results | Groups) -> dict[str, dict[str, xr.Dataset]]:
    """Results by label by title of a column; without a title, under an empty one."""
    if isinstance(results, xr.Dataset):
        return {"": style.labelled(results)}
    flat = {label: r for label, r in results.items() if isinstance(r, xr.Dataset)}
    groups = {title: g for title, g in results.items() if not isinstance(g, xr.Dataset)}
    if flat and groups:
        raise MissingVariableError(
            f"{listing(flat)} are Datasets and {listing(groups)} are not; expected "
            "{'label': evaluate(...), ...} or {'title': {'label': evaluate(...), ...}, ...}"
        )
    if not groups:
        return {"": style.labelled(flat)}
    return {title: style.labelled(group) for title, group in groups.items()}


def _check_units(others: Mapping[str, xr.Dataset], rows: Sequence[xr.Dataset]) -> None:
    for label, other in others.items():
        absent = [name for name in ("power", "k_mean") if name not in other]
        if absent or other["power"].ndim != 1:
            raise MissingVariableError(
                f"No `{listing(absent) or 'power'}` (k) in {label!r}; expected what "
                "power_spectrum(field) returns"
            )
        if not any(_same_units(other, row) for row in rows):
            units = listing({row["units"].item() for row in rows})
            raise DimensionError(
                f"The power of {label!r} is in {other['power'].attrs['units']}, that of no field "
                f"drawn; expected the spectrum of a field in {units}"
            )


def _same_units(other: xr.Dataset, row: xr.Dataset) -> bool:
    units = str(row["units"].item())
    square = "(Mpc/h)^3" if units == "1" else f"({units})^2 (Mpc/h)^3"
    return bool(other["power"].attrs.get("units", square) == square)


def _column(
    axes: Sequence[Axes],
    rows: Mapping[str, xr.Dataset],
    others: Mapping[str, xr.Dataset],
    styles: Mapping[str, dict[str, Any]],
    strip: float,
) -> None:
    power, deviation, correlation = axes
    first = next(iter(rows.values()))
    k = first["k_mean"]
    power.set_yscale("log")
    power.plot(k, first["power_true"], **style.TRUTH, label="truth")
    there = {label: row for label, row in rows.items() if not only_rounding(row)}
    for label, row in there.items():
        for ax, name in (
            (power, "power_predicted"),
            (deviation, "relative_deviation"),
            (correlation, "correlation"),
        ):
            ax.plot(k, row[name], **styles[label], label=label)
            if f"{name}_spread" in row:
                style.band(ax, k, row[name], row[f"{name}_spread"], styles[label]["color"])
    top = float(first["power_true"].max())
    for label, other in others.items():
        if _same_units(other, first):
            top = max(top, float(other["power"].max()))
            power.plot(other["k_mean"], other["power"], **styles[label], label=label)
            if "shot_noise" in other:
                noise = float(other["shot_noise"])
                look = {"color": styles[label]["color"], "linewidth": 0.6}
                power.axhline(noise, **look, label="shot noise")
    truth = first["power_true"].where(first["power_true"] > 0)
    units = str(first["units"].item())
    symbol = style.index(str(first["field"].item()))
    power.set(
        ylim=(float(truth.min()) / 10, top * 4),
        ylabel=f"$P_{{{symbol}}}(k)$ [{style.power_units(units)}]",
    )
    deviation.axhspan(-strip, strip, color="0.9", zorder=0, linewidth=0)
    deviation.axhline(0, color="black", linewidth=0.7)
    deviation.set(ylim=(-0.5, 0.5), ylabel="relative\ndeviation $R(k)$")
    correlation.axhline(1, color="black", linewidth=0.7)
    lowest = min((float(row["correlation"].min()) for row in there.values()), default=0.0)
    correlation.set(ylim=(max(lowest - 0.05, -1.05), 1.05), ylabel="correlation\n$r(k)$")
    style.log_k_axis(correlation)
    correlation.set_xlim(float(k.min()), float(k.max()))
