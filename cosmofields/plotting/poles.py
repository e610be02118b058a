"""Curves over k or r for each multipole, read from any Dataset that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..conventions import DimensionError, MissingVariableError, listing
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Statistic:
    """Where a statistic is found in a Dataset."""

    bare: str  # variable of a Dataset about one field, or about samples
    of_pair: str  # stem of the variables of evaluate, of the prediction and of the truth
    dims: tuple[str, ...]
    made_by: str


@dataclass(frozen=True)
class Curve:
    """A statistic of one field under its label."""

    label: str
    values: xr.DataArray
    x: xr.DataArray
    spread: xr.DataArray | None = None
    noise: float | None = None
    is_truth: bool = False


@dataclass(frozen=True)
class _Axes:
    """How the panels of a statistic over (ell, x) read."""

    statistic: Statistic
    x: str
    symbol: str
    factor: str
    exponent: int


_PANELS = {
    "power": _Axes(
        Statistic("power", "multipoles", ("ell", "k"), "multipoles(field)"), "k", "P", "k", 1
    ),
    "xi": _Axes(Statistic("xi", "xi", ("ell", "r"), "correlations(field)"), "r", r"\xi", "r^2", 2),
}
# Peaks of two curves whose ratio is larger do not show on one linear axis.
_UNLIKE = 4
# Of k P_l and of r^2 xi_l alike.
_POLE_UNITS = {
    "1": r"($h^{-1}$ Mpc)$^2$",
    "km/s": r"(km/s)$^2$ ($h^{-1}$ Mpc)$^2$",
    "km/s/(Mpc/h)": r"(km/s)$^2$",
}


def draw_poles(
    kind: str,
    results: style.Results,
    field: str,
    ells: Sequence[int] | None,
    others: style.Results | None,
    truth: str | None,
) -> Figure:
    """Panels of k P_l(k) or r^2 xi_l(r), one below another; see the callers."""
    panels = _PANELS[kind]
    curves, units = read_curves(panels.statistic, results, field, others, truth)
    there = [int(ell) for ell in curves[0].values["ell"].values]
    wanted = there if ells is None else [int(ell) for ell in ells]
    for curve in curves:
        absent = [ell for ell in wanted if ell not in curve.values["ell"].values]
        if absent or not wanted:
            raise DimensionError(
                f"{curve.label!r} has no l = {listing(absent)} (it has "
                f"{listing(curve.values['ell'].values)}); expected multipoles that all have"
            )
    styles = curve_styles(curves)
    with style.figure((style.COLUMN, 0.4 + 1.45 * len(wanted))) as figure:
        axes = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
        for ax, ell in zip(axes, wanted, strict=True):
            ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
            for curve in curves:
                _draw(ax, curve, ell, panels, styles[curve.label])
            _scale(ax)
            ax.set_ylabel(rf"${panels.factor}\,{panels.symbol}_{ell}({panels.x})$")
        # Once: beside each symbol the units of a vector are longer than its panel.
        figure.supylabel(f"[{_POLE_UNITS.get(units, units)}]", fontsize=8)
        if kind == "power":
            style.log_k_axis(axes[-1])
        else:
            axes[-1].set_xlabel(f"$r$ [{style.LENGTH}]")
        ends = [float(end) for c in curves for end in (c.x.min(), c.x.max())]
        axes[-1].set_xlim(min(ends), max(ends))
        handles, _ = axes[0].get_legend_handles_labels()
        if any(curve.noise is not None for curve in curves) and 0 in wanted:
            line2d = style.matplotlib("lines").Line2D
            handles.append(line2d([], [], color="0.3", linewidth=0.6, label="shot noise"))
        style.legend_above(figure, handles)
        figure.align_ylabels(axes)
    return figure


def read_curves(
    statistic: Statistic,
    results: style.Results,
    field: str,
    others: style.Results | None,
    truth: str | None,
) -> tuple[list[Curve], str]:
    """All curves of ``results`` and ``others``, and the units of the field that they are of.

    Raises
    ------
    MissingVariableError, GridMismatchError, DimensionError
        If a Dataset lacks the statistic, truths differ, or units or labels clash.
    """
    named = style.labelled(results)
    pairs = {label: ds for label, ds in named.items() if _is_pair(ds)}
    curves: list[Curve] = []
    units: dict[str, None] = {}
    if pairs:
        needed = [f"{statistic.of_pair}_{of}" for of in ("predicted", "true")]
        rows = {label: style.entry(ds, label, field, *needed) for label, ds in pairs.items()}
        style.check_same_truth(rows, needed[1])
        first = next(iter(rows.values()))
        curves.append(_curve(statistic, first, needed[1], "truth", is_truth=True))
        curves += [_curve(statistic, row, needed[0], label) for label, row in rows.items()]
        units = dict.fromkeys(str(row["units"].item()) for row in rows.values())
    bare = [(label, ds) for label, ds in named.items() if label not in pairs]
    for label, ds in (*bare, *(style.labelled(others).items() if others is not None else ())):
        if statistic.bare not in ds:
            raise MissingVariableError(
                f"No `{statistic.bare}` in {label!r} (it holds {listing(ds.data_vars)}); expected "
                f"what evaluate(predicted, true), clustering(catalogs) or {statistic.made_by} "
                "returns"
            )
        units[_field_units(ds[statistic.bare])] = None
        samples = list(map(str, ds["sample"].values)) if "sample" in ds.dims else [label]
        for sample in samples:
            part = ds.sel(sample=sample) if "sample" in ds.dims else ds
            curves.append(_curve(statistic, part, statistic.bare, sample))
        if truth is None and not pairs and len(samples) > 1:
            truth = samples[-1]
    labels = [curve.label for curve in curves]
    if len(units) > 1 or len(set(labels)) < len(labels):
        raise DimensionError(
            f"The curves {listing(labels)} are of fields in {listing(units)}; expected fields "
            "of the same units, each under its own label"
        )
    if truth is not None:
        if truth not in labels:
            raise DimensionError(f"truth={truth!r}; expected one of {listing(labels)}")
        curves = [replace(c, is_truth=c.label == truth) for c in curves]
    return curves, next(iter(units))


def curve_styles(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Style of each curve by its label: the truth black, the others in order."""
    styles = style.line_styles([curve.label for curve in curves if not curve.is_truth])
    return {c.label: style.TRUTH if c.is_truth else styles[c.label] for c in curves}


def _is_pair(ds: xr.Dataset) -> bool:
    return "field" in ds.coords


def _curve(
    statistic: Statistic, ds: xr.Dataset, name: str, label: str, *, is_truth: bool = False
) -> Curve:
    mean = f"{statistic.dims[-1]}_mean"
    values = ds[name]
    if set(values.dims) != set(statistic.dims):
        raise DimensionError(
            f"`{name}` of {label!r} has the dims {values.dims}; expected {statistic.dims}"
        )
    return Curve(
        label,
        values.transpose(*statistic.dims),
        x=ds[mean] if mean in ds else ds[statistic.dims[-1]],
        spread=ds[f"{name}_spread"] if f"{name}_spread" in ds and not is_truth else None,
        noise=float(ds["shot_noise"]) if "shot_noise" in ds and name == "power" else None,
        is_truth=is_truth,
    )


def _draw(ax: Axes, curve: Curve, ell: int, panels: _Axes, line: Mapping[str, Any]) -> None:
    factor = curve.x**panels.exponent
    y = factor * curve.values.sel(ell=ell)
    ax.plot(curve.x, y, **line, label=curve.label)
    if curve.spread is not None:
        style.band(ax, curve.x, y, factor * curve.spread.sel(ell=ell), line["color"])
    if curve.noise is not None and ell == 0:
        ax.plot(curve.x, factor * curve.noise, color=line["color"], linewidth=0.6, label="_noise")


def _scale(ax: Axes) -> None:
    """Where one curve would flatten another: linear about 0, logarithmic beyond, in one curve."""
    curves = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    peaks = [np.nanmax(np.abs(np.asarray(line.get_ydata()))) for line in curves]
    peaks = [peak for peak in peaks if peak > 0]
    if peaks and max(peaks) > _UNLIKE * min(peaks):
        # Room below 0 only for what is there, since the margins of a linear axis are wide here.
        low, high = 1.2 * min(ax.dataLim.y0, 0.0), ax.get_ylim()[1]
        style.value_axis(ax, "y", style.Spacing("asinh", min(peaks) / 3), (low, high))


def _field_units(values: xr.DataArray) -> str:
    """Units of the field that a power spectrum or correlation function is of."""
    text = str(values.attrs.get("units", "1")).replace("(Mpc/h)^3", "").strip()
    return "1" if text in ("", "1") else text.removesuffix("^2").removeprefix("(").removesuffix(")")
