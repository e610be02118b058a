"""What the figures share: style, symbols and units, and how they read their input.

matplotlib is imported inside the functions, and settings hold inside :func:`figure` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..conventions import (
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    listing,
    require_extra,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = xr.Dataset | Mapping[str, xr.Dataset]

# Widths of one and of two columns of a journal, in inches: figures are used at this size.
COLUMN, PAGE = 3.4, 7.1
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.3,
    "figure.dpi": 200,
}
# Okabe & Ito (2008), distinct for colour-blind readers, and dashes for print without colour.
_LINES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#E69F00", (0, (5, 1))),
    ("#56B4E9", (0, (1, 1))),
)
TRUTH: dict[str, Any] = {"color": "black", "linestyle": "-", "linewidth": 2.0}
GREY = "0.8"

SYMBOLS = {
    "density": r"1+\delta",
    "velocity": r"v_i",
    "velocity_magnitude": r"|\mathbf{v}|",
    "velocity_divergence": r"\nabla\cdot\mathbf{v}",
    "velocity_curl": r"(\nabla\times\mathbf{v})_i",
    "momentum": r"m_i",
    "momentum_magnitude": r"|\mathbf{m}|",
    "momentum_divergence": r"\nabla\cdot\mathbf{m}",
    "momentum_curl": r"(\nabla\times\mathbf{m})_i",
}
# As an index, where a vector stands for the sum over its components.
INDICES = {
    "density": r"\delta",
    "velocity": r"\mathbf{v}",
    "velocity_curl": r"\nabla\times\mathbf{v}",
    "momentum": r"\mathbf{m}",
    "momentum_curl": r"\nabla\times\mathbf{m}",
}
LENGTH = r"$h^{-1}$ Mpc"
WAVENUMBER = r"$k$ [$h$ Mpc$^{-1}$]"
_UNITS = {"1": "", "km/s": "km/s", "km/s/(Mpc/h)": r"km/s/($h^{-1}$ Mpc)"}
_POWER_UNITS = {
    "1": r"($h^{-1}$ Mpc)$^3$",
    "km/s": r"(km/s)$^2$ ($h^{-1}$ Mpc)$^3$",
    "km/s/(Mpc/h)": r"(km/s)$^2$ $h^{-1}$ Mpc",
}


# --- input ---


def labelled(results: Results) -> dict[str, xr.Dataset]:
    """Results by label; one alone is called "prediction"."""
    named = {"prediction": results} if isinstance(results, xr.Dataset) else dict(results)
    if not named:
        raise MissingVariableError("No result to plot; expected {'label': evaluate(...), ...}")
    for label, result in named.items():
        if "realization" in result.dims:
            raise DimensionError(
                f"The result {label!r} holds {result.sizes['realization']} realizations; expected "
                "one of them, or all together: cosmofields.boxes.combine(result)"
            )
    return named


def entry(
    result: xr.Dataset, label: str, field: str, *needed: str, dim: str = "field"
) -> xr.Dataset:
    """The part of a result about one field, if it has what is ``needed``.

    Raises
    ------
    MissingVariableError
        If the result lacks the field or a variable.
    """
    there = [str(name) for name in result[dim].values] if dim in result.coords else []
    absent = [name for name in needed if name not in result]
    if field not in there or absent:
        what = f"`{listing(absent)}`" if absent and field in there else repr(field)
        raise MissingVariableError(
            f"No {what} in the result {label!r} (it has {listing(there) or 'no field'}); "
            "expected what evaluate(predicted, true) returns"
        )
    return result.sel({d: field for d in ("field", dim) if d in result.dims})


def check_same_truth(rows: Mapping[str, xr.Dataset], *names: str) -> None:
    """Raise :class:`GridMismatchError` unless all rows hold the same values of ``names``."""
    label, first = next(iter(rows.items()))
    for other, row in rows.items():
        for name in names:
            mine, its = first[name], row[name]
            if mine.shape != its.shape or not np.allclose(
                mine, its, rtol=1e-3, atol=1e-6 * float(abs(mine).max()), equal_nan=True
            ):
                raise GridMismatchError(
                    f"{other!r} was scored against another truth, or in other bins, than "
                    f"{label!r}; expected results of one truth with the same edges"
                )


def scalar_fields(results: Mapping[str, xr.Dataset], fields: Sequence[str] | None) -> list[str]:
    """The scalar fields asked for; by default all that every result has."""
    if fields is None:
        names = [
            list(map(str, result["scalar"].values)) if "scalar" in result.coords else []
            for result in results.values()
        ]
        fields = [name for name in names[0] if all(name in others for others in names)]
    if not fields:
        raise MissingVariableError(
            "No scalar field that all results have; expected what evaluate(predicted, true) "
            "returns, of fields that were all compared"
        )
    return as_list(fields)


def as_list(fields: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [fields] if isinstance(fields, str) else list(fields)


def edges_of(row: xr.Dataset, name: str = "value_bounds") -> NDArray[np.float64]:
    """Edges of bins that touch, from their bounds (bin, bound)."""
    bounds = row[name].transpose(..., "bound").values.astype(np.float64)
    return np.append(bounds[:, 0], bounds[-1, 1])


def inner_range(
    counts: Sequence[NDArray[Any]], edges: NDArray[np.float64], tail: float
) -> tuple[float, float]:
    """Edges between which every histogram lies, but for a fraction ``tail`` at either end.

    Bins that begin at 0, those of magnitudes, are shown from there.
    """
    lows, highs = [float(edges[-1])], [float(edges[0])]
    for values in counts:
        if values.sum() > 0:
            share = np.cumsum(values) / values.sum()
            lows.append(float(edges[np.searchsorted(share, tail, side="right")]))
            highs.append(float(edges[int(np.searchsorted(share, 1 - tail)) + 1]))
    low, high = min(lows) if edges[0] else 0.0, max(highs)
    return (low, high) if low < high else (float(edges[0]), float(edges[-1]))


@dataclass(frozen=True)
class Spacing:
    """How the edges of bins lie: equal steps of x, of log x, or of asinh(x / turn).

    An axis to that scale shows the bins, and so the cells per bin, with one and the same width.
    """

    kind: str
    turn: float = 1.0

    @classmethod
    def of(cls, edges: NDArray[np.float64]) -> Spacing:
        """Spacing of ``edges``; linear if it is none of the three."""
        below, at, above = edges[:-2], edges[1:-1], edges[2:]
        # sinh(a + h) + sinh(a - h) = 2 sinh(a) cosh(h), and the same of exp.
        far = int(np.argmax(abs(at)))
        growth = (above[far] + below[far]) / (2 * at[far])
        if not growth > 1 + 1e-6:
            return cls("linear")
        near = int(np.argmin(abs(at)))
        half = (above[near] - below[near]) / (2 * np.sqrt(growth**2 - 1))
        turn = np.sqrt(max(half**2 - at[near] ** 2, 0.0))
        found = cls("log") if turn < 1e-3 * abs(at[near]) else cls("asinh", float(turn))
        steps = np.diff(found.equal(edges))
        return found if np.allclose(steps, steps[0], rtol=1e-3) else cls("linear")

    def equal(self, values: Any) -> Any:
        """Values on the scale on which the steps are equal."""
        if self.kind == "linear":
            return np.asarray(values, dtype=np.float64)
        return np.log(values) if self.kind == "log" else np.arcsinh(values / self.turn)

    def centres(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Middles of the bins on that scale."""
        equal = self.equal(edges)
        middle = (equal[:-1] + equal[1:]) / 2
        if self.kind == "linear":
            return middle
        return np.exp(middle) if self.kind == "log" else self.turn * np.sinh(middle)

    def ticks(self, low: float, high: float) -> list[float]:
        """Round values from ``low`` to ``high``, none close to another on that scale."""
        least = self.turn / 2 if self.kind == "asinh" else 1e-6
        powers = [m * 10.0**e for e in range(-6, 8) for m in (1, 3)]
        sizes = [size for size in powers if size >= least]
        wanted = [*sizes, *(-size for size in sizes)] if self.kind == "asinh" else sizes
        span = self.equal(high) - self.equal(low)
        ticks = [0.0] if self.kind == "asinh" and low <= 0 <= high else []
        # Powers of ten before what lies between them.
        for value in sorted(wanted, key=lambda v: (f"{abs(v):.0e}"[0] != "1", abs(v))):
            gaps = [abs(self.equal(value) - self.equal(tick)) for tick in ticks]
            if low <= value <= high and min(gaps, default=np.inf) > 0.2 * span:
                ticks.append(value)
        return sorted(ticks)


# --- words ---


def with_units(text: str, units: str, *, plain: bool = False) -> str:
    """Text with its units, in square brackets unless ``plain``."""
    shown = _UNITS.get(units, units)
    return f"{text} {shown if plain else f'[{shown}]'}" if shown else text


def value_label(row: xr.Dataset, prefix: str = "") -> str:
    """Label of an axis that runs over the values of the field of ``row``."""
    text = f"${SYMBOLS[str(row['field'].item())]}$"
    return with_units(f"{prefix} {text}".strip(), str(row["units"].item()))


def power_units(units: str) -> str:
    """Units of the power of a field in ``units``."""
    return _POWER_UNITS.get(units, f"({units})$^2$ ({LENGTH})$^3$")


def index(field: str) -> str:
    """Symbol of a field for use as an index."""
    return INDICES.get(field, SYMBOLS[field])


def rounded(mean: Any, std: Any) -> str:
    """Mean and scatter with the decimals that show three digits of the scatter."""
    mean, std = float(mean), float(std)
    digits = 0 if not std > 0 else int(np.clip(2 - np.floor(np.log10(std)), 0, 3))
    return rf"${round(mean, digits) + 0.0:.{digits}f}\pm{std:.{digits}f}$"


# --- drawing ---


def matplotlib(part: str = "") -> Any:
    """matplotlib, or a module of it; an error names the extra that brings it."""
    return require_extra(f"matplotlib.{part}" if part else "matplotlib", "plot", "Plotting")


@contextmanager
def figure(size: tuple[float, float], layout: str = "constrained") -> Iterator[Figure]:
    """A figure of ``size`` inches under the style of this package, and under no other."""
    with matplotlib().rc_context(_STYLE):
        made = matplotlib("figure").Figure(figsize=size, layout=layout)
        yield made
        # Ticks are made at the first drawing: let that be under this style, not the user's.
        made.draw_without_rendering()


def spread_rows(figure: Figure, inches: float) -> None:
    """Leave so much room above and below what a constrained layout arranges."""
    engine = figure.get_layout_engine()
    if isinstance(engine, matplotlib("layout_engine").ConstrainedLayoutEngine):
        engine.set(h_pad=inches)


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend above the panels, in as many columns as fit, which adds its own height."""
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        box = legend.get_window_extent()
        if columns == 1 or box.width < 0.97 * figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def line_styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each label, in order."""
    lines = {label: _LINES[i % len(_LINES)] for i, label in enumerate(labels)}
    return {label: {"color": c, "linestyle": dash} for label, (c, dash) in lines.items()}


def band(ax: Axes, x: Any, y: xr.DataArray, spread: xr.DataArray, color: str) -> None:
    """Shade one and two standard deviations about a line."""
    for width, alpha in ((2, 0.15), (1, 0.25)):
        low, high = y - width * spread, y + width * spread
        if ax.get_yscale() == "log":
            low = low.clip(min=1e-6 * float(y.max()))
        ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, zorder=1)


def log_k_axis(ax: Axes) -> None:
    """A logarithmic axis of wavenumbers with plain numbers."""
    ticker = matplotlib("ticker")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlabel(WAVENUMBER)


def value_axis(ax: Axes, which: str, spacing: Spacing, limits: tuple[float, float]) -> None:
    """Scale the axis "x" or "y" so that bins so spaced look equal, and mark round values."""
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    if spacing.kind == "linear":
        axis.set_major_locator(matplotlib("ticker").MaxNLocator(4))
    else:
        options = {"linear_width": spacing.turn} if spacing.kind == "asinh" else {}
        ax.set(
            **{f"{which}scale": matplotlib("scale").scale_factory(spacing.kind, axis, **options)}
        )
        ticks = spacing.ticks(*limits)
        axis.set_ticks(ticks, labels=[plain(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    ax.set(**{f"{which}lim": limits})


def plain(value: float) -> str:
    """A round number, as a power of ten where it is long."""
    if abs(value) < 1e4:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    digit, exponent = f"{value:.0e}".split("e")
    front = digit.replace("1", "") if digit.strip("-") == "1" else rf"{digit}\times"
    return rf"${front}10^{{{int(exponent)}}}$"


def panel_grid(n_rows: int, n_fields: int, most: int = 3) -> tuple[int, int]:
    """Rows and columns: a row for each of several results, or one result's panels wrapped."""
    if n_rows > 1:
        return n_rows, n_fields
    if n_fields == 4:
        return 2, 2
    return -(-n_fields // most), min(n_fields, most)
