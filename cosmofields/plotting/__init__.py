"""Figures of a reconstruction: slices, spectra, joint distributions.  xarray in, Figure out.

The figures are made without ``pyplot``, so nothing stays open and no setting changes; keep one with
``figure.savefig("name.pdf")``.  In a notebook ``%matplotlib inline`` displays what is returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from dask.base import compute
from scipy.ndimage import gaussian_filter

from ..conventions import (
    AXES,
    FIELDS,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    check_los,
    check_same_grid,
    listing,
    require_extra,
    variable,
)
from ..statistics import cell_statistics, joint_distribution, magnitude

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.quiver import Quiver
    from numpy.typing import NDArray

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
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
_SYMBOLS = {
    "density": r"1+\delta",
    "velocity": r"|\mathbf{v}|",
    "momentum": r"|\mathbf{m}|",
}
_POWER_LABELS = {
    "density": (r"P_{\delta}", r"[($h^{-1}$ Mpc)$^3$]"),
    "velocity": (r"P_{v}", r"[(km/s)$^2$ ($h^{-1}$ Mpc)$^3$]"),
    "momentum": (r"P_{m}", r"[(km/s)$^2$ ($h^{-1}$ Mpc)$^3$]"),
    "velocity_divergence": (r"P_{\nabla\cdot v}", r"[(km/s)$^2$ $h^{-1}$ Mpc]"),
    "momentum_divergence": (r"P_{\nabla\cdot m}", r"[(km/s)$^2$ $h^{-1}$ Mpc]"),
}
_LENGTH = r"$h^{-1}$ Mpc"
_HALO_TICKS = (0, 1, 3, 10, 30, 100)
_DENSITY_TICKS = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def plot_slices(
    observed: xr.Dataset,
    true: xr.Dataset,
    predicted: Mapping[str, xr.Dataset],
    *,
    field: str = "velocity",
    axis: str | None = None,
    position: float | None = None,
    thickness: float = 10.0,
    arrows: bool = True,
) -> Figure:
    """A slab of the halos observed, of the true field, and of one or more predictions.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``; shown as 1 + delta_s, the sum over its mass bins.
    true : Dataset
        The truth on the same grid.
    predicted : mapping of label to Dataset
        Reconstructions on the same grid, e.g. ``{"linear theory": ..., "network": ...}``.
    field : {"velocity", "momentum", "density"}
        What to show; of a vector its magnitude.
    axis : {"x", "y", "z"}, optional
        Axis that the slab is cut across.  Default: perpendicular to the line of sight
        (``attrs["los"]``), which then runs upwards.
    position, thickness : float
        Centre (default: of the box) and thickness of the slab in Mpc/h, over which all panels are
        averaged; both snap to whole cells, and the title says to which.
    arrows : bool
        Whether to draw the slab's mean vector in the plane over a vector field.

    Returns
    -------
    matplotlib.figure.Figure
        One row of panels.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError, DimensionError, GridMismatchError
        If a Dataset lacks the field, the grids differ or the slab lies outside.

    Notes
    -----
    Eager for the cells of the slab alone.
    """
    if field not in _SYMBOLS:
        raise DimensionError(f"field={field!r}; expected one of {listing(_SYMBOLS)}")
    halos = variable(observed, "halo_density")
    fields = {"truth": variable(true, field)}
    fields.update({label: variable(ds, field) for label, ds in predicted.items()})
    check_same_grid(halos, *fields.values())
    los = check_los(halos.attrs.get("los", "z"))
    axis = [name for name in AXES if name != los][-1] if axis is None else check_los(axis)
    cut, bounds = _slab(halos, axis, position, thickness)
    delta = cut.sum("mass_bin").mean(axis)
    slabs = {name: _slab(whole, axis, position, thickness)[0] for name, whole in fields.items()}
    shown = {name: _scalar(slab).mean(axis) for name, slab in slabs.items()}
    across, up = _plane(axis, los)
    with _figure((2.3 * (len(shown) + 1), 3.6)) as figure:
        axes = figure.subplots(1, len(shown) + 1, sharex=True, sharey=True)
        image = _image(axes[0], delta.transpose(up, across), *_halo_colors(delta))
        _colorbar(figure, image, axes[:1], r"$1+\delta_s$", _HALO_TICKS)
        space = f", {halos.attrs['space']} space" if "space" in halos.attrs else ""
        axes[0].set_title(f"halos{space}\n")
        colors = _field_colors(shown["truth"], field)
        for ax, (name, mean) in zip(axes[1:], shown.items(), strict=True):
            image = _image(ax, mean.transpose(up, across), *colors)
            ax.set_title(f"{name}\n{_summary(_scalar(slabs[name]))}")
            if arrows and FIELDS[field].is_vector:
                top = image.get_clim()[1] or 1.0
                quiver = _arrows(ax, slabs[name].mean(axis), across, up, top)
        if arrows and FIELDS[field].is_vector:
            size = float(f"{top / 2:.0e}")
            text = f"{size:g} {FIELDS[field].units}"
            axes[-1].quiverkey(quiver, 0.8, -0.31, size, text, labelpos="S", color="black")
        units = "" if FIELDS[field].units == "1" else f" [{FIELDS[field].units}]"
        ticks = _DENSITY_TICKS if field == "density" else ()
        _colorbar(figure, image, axes[1:], f"${_SYMBOLS[field]}${units}", ticks)
        for ax in axes:
            ax.set_xlabel(_axis_label(across, los))
            ax.locator_params(nbins=4)
            ax.tick_params(direction="out", top=False, right=False)
        axes[0].set_ylabel(_axis_label(up, los))
        figure.suptitle(
            rf"${bounds[0]:.1f} < {axis} < {bounds[1]:.1f}$ {_LENGTH}, mean over the slab",
            fontsize=9,
        )
    return figure


def plot_spectra(
    results: Mapping[str, xr.Dataset], field: str = "velocity", *, band: float = 0.1
) -> Figure:
    """Power spectra of the truth and of reconstructions, with R(k) and r(k) below.

    Parameters
    ----------
    results : mapping of label to Dataset
        What :func:`~cosmofields.evaluation.evaluate` returned for each, against one truth.
    field : str
        An entry of the coordinate ``field``: "density", "velocity", "velocity_divergence", ...
    band : float
        Half-width of the shaded band around R = 0.

    Returns
    -------
    matplotlib.figure.Figure
        Three panels that share k: P(k), R(k) = P_pred / P_true - 1, clipped at 0.5, and r(k).

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError
        If there is no result, or one without that field.
    GridMismatchError
        If the results were scored against different truths or in different bins.
    """
    rows = {label: _result_of(result, field, label) for label, result in results.items()}
    if not rows:
        raise MissingVariableError("No result to plot; expected {'label': evaluate(...), ...}")
    first = next(iter(rows.values()))
    for label, row in rows.items():
        if row.sizes != first.sizes or not np.allclose(
            row["power_true"], first["power_true"], rtol=1e-3, equal_nan=True
        ):
            raise GridMismatchError(
                f"{label!r} was scored against another truth, or in other bins, than "
                f"{next(iter(rows))!r}; expected results of one truth with the same edges"
            )
    symbol, units = _POWER_LABELS[field]
    with _figure((4.2, 5.6), "constrained") as figure:
        axes = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
        power, deviation, correlation = axes
        k = first["k_mean"]
        power.plot(k, first["power_true"], color="black", linewidth=2, label="truth")
        for (label, row), (color, dash) in zip(rows.items(), _cycle(len(rows)), strict=True):
            style = {"color": color, "linestyle": dash, "label": label}
            power.plot(k, row["power_predicted"], **style)
            deviation.plot(k, row["relative_deviation"], **style)
            correlation.plot(k, row["correlation"], **style)
        power.set(xscale="log", yscale="log", ylabel=f"${symbol}(k)$ {units}")
        truth = first["power_true"].where(first["power_true"] > 0)
        power.set_ylim(float(truth.min()) / 30, float(truth.max()) * 5)
        power.set_xlim(float(k.min()), float(k.max()))
        power.legend(frameon=False)
        deviation.axhspan(-band, band, color="0.9", zorder=0, linewidth=0)
        deviation.axhline(0, color="black", linewidth=0.8)
        deviation.set(ylim=(-0.5, 0.5), ylabel="relative deviation\n$R(k)$")
        lowest = min(float(row["correlation"].min()) for row in rows.values())
        correlation.axhline(1, color="black", linewidth=0.8)
        correlation.set(
            ylim=(max(lowest - 0.05, -1.05), 1.05),
            ylabel="correlation\n$r(k)$",
            xlabel=r"$k$ [$h$ Mpc$^{-1}$]",
        )
        ticker = _matplotlib("ticker")
        correlation.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        correlation.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        correlation.xaxis.set_minor_formatter(ticker.NullFormatter())
        figure.align_ylabels(axes)
    return figure


def plot_joint(
    predicted: xr.Dataset,
    true: xr.Dataset,
    *,
    fields: Sequence[str] | None = None,
    bins: int = 100,
) -> Figure:
    """Joint distribution, over cells, of the predicted and the true value of each field.

    Parameters
    ----------
    predicted, true : Dataset
        Two versions of one universe on the same grid.
    fields : sequence of {"density", "velocity", "momentum"}, optional
        Default: those that both hold.  Of a vector the magnitude is shown, of the density
        log10(1 + delta) over the cells where both are positive.
    bins : int
        Bins along each axis.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each field: counts on a logarithmic scale, contours around the densest 68 and
        95 per cent of the cells, the line of equality, and C_r and rms error of what is shown.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError, DimensionError, GridMismatchError
        If there is no such field in both, or the grids differ.

    Notes
    -----
    Eager.
    """
    if fields is None:
        fields = [name for name in _SYMBOLS if name in predicted and name in true]
    unknown = [name for name in fields if name not in _SYMBOLS]
    if unknown or not fields:
        raise MissingVariableError(
            f"fields={list(fields)}; expected some of {listing(_SYMBOLS)}, in both Datasets"
        )
    with _figure((3.2 * len(fields), 2.8)) as figure:
        for ax, name in zip(np.ravel(figure.subplots(1, len(fields))), fields, strict=True):
            _joint_panel(figure, ax, variable(predicted, name), variable(true, name), bins)
    return figure


def _joint_panel(
    figure: Figure, ax: Axes, predicted: xr.DataArray, true: xr.DataArray, bins: int
) -> None:
    name = str(true.name)
    pair = compute(_scalar(predicted), _scalar(true))
    scores = cell_statistics(*pair)
    if name == "density":
        symbol, units = r"\log_{10}(1+\delta)", ""
        pair = tuple(np.log10(part.where(part > 0)) for part in pair)
    else:
        symbol, units = _SYMBOLS[name], " km/s"
    samples = np.concatenate([_sample(part) for part in pair])
    low, high = np.nanquantile(samples, (5e-4, 0.9995) if name == "density" else (0.0, 0.99))
    low = low if name == "density" else 0.0
    counts = joint_distribution(*pair, limits=(low, high), bins=bins)
    image = ax.imshow(
        counts.where(counts > 0).values,
        origin="lower",
        extent=(low, high, low, high),
        norm=_matplotlib("colors").LogNorm(),
        cmap="Blues",
        interpolation="nearest",
    )
    smooth = gaussian_filter(counts.values.astype(np.float64), 1.0)
    levels = np.unique([_level(smooth, share) for share in (0.95, 0.68)])
    centres = counts["true"].values
    ax.contour(centres, centres, smooth, levels, colors="#D55E00", linewidths=0.9)
    ax.plot((low, high), (low, high), color="black", linestyle="--", linewidth=0.9)
    figure.colorbar(image, ax=ax, label="cells")
    of = r"$1+\delta$: " if name == "density" else ""
    c_r, error = float(scores["correlation_coefficient"]), float(scores["rms_error"])
    ax.text(
        0.04,
        0.96,
        f"{of}$C_r = {c_r:.3f}$\nrms error {error:.3g}{units}",
        transform=ax.transAxes,
        verticalalignment="top",
        fontsize=8,
    )
    unit = f" [{units.strip()}]" if units else ""
    ax.set(xlabel=f"true ${symbol}${unit}", ylabel=f"predicted ${symbol}${unit}", aspect="equal")


def _matplotlib(part: str) -> Any:
    return require_extra(f"matplotlib.{part}", "plot", "Plotting")


@contextmanager
def _figure(size: tuple[float, float], layout: str = "compressed") -> Iterator[Figure]:
    with require_extra("matplotlib", "plot", "Plotting").rc_context(_STYLE):
        figure = _matplotlib("figure").Figure(figsize=size, layout=layout)
        yield figure
        # Ticks are made at the first drawing: let that be under this style, not the user's.
        figure.draw_without_rendering()


def _cycle(n: int) -> list[tuple[str, Any]]:
    return [_LINES[i % len(_LINES)] for i in range(n)]


def _plane(axis: str, los: str) -> tuple[str, str]:
    """Axes to the right and upwards of a cut across ``axis``: the line of sight upwards."""
    first, second = (name for name in AXES if name != axis)
    return (second, first) if first == los else (first, second)


def _axis_label(axis: str, los: str) -> str:
    return f"${axis}$ [{_LENGTH}]" + (", line of sight" if axis == los else "")


def _slab(
    field: xr.DataArray, axis: str, position: float | None, thickness: float
) -> tuple[xr.DataArray, tuple[float, float]]:
    """Cells of a slab across ``axis``, in memory and in order, and where it begins and ends."""
    nodes = field[axis].values
    low, high = float(nodes.min()), float(nodes.max())
    cell = (high - low) / max(nodes.size - 1, 1)
    centre = low + nodes.size // 2 * cell if position is None else float(position)
    if not low - cell / 2 <= centre <= high + cell / 2:
        raise DimensionError(
            f"position={position} lies outside; `{axis}` runs from {low:g} to {high:g} Mpc/h"
        )
    count = min(max(round(thickness / cell), 1), nodes.size)
    nearest = np.argsort(np.abs(nodes - centre), kind="stable")[:count]
    cut = field.isel({axis: np.sort(nearest)}).sortby(list(AXES)).compute()
    return cut, (float(cut[axis][0]) - cell / 2, float(cut[axis][-1]) + cell / 2)


def _scalar(field: xr.DataArray) -> xr.DataArray:
    return magnitude(field) if "component" in field.dims else field


def _summary(slab: xr.DataArray) -> str:
    mean, std = float(slab.mean(dtype=np.float64)), float(slab.std(dtype=np.float64))
    if slab.attrs["units"] == "1":
        return rf"${mean:.2f} \pm {std:.2f}$"
    return rf"${mean:.0f} \pm {std:.0f}$ {slab.attrs['units']}"


def _halo_colors(delta: xr.DataArray) -> tuple[Normalize, Any]:
    # Linear up to the mean density, for the empty cells; logarithmic above, for the clusters.
    top = max(float(delta.quantile(0.999)), 2.0)
    return _matplotlib("colors").SymLogNorm(linthresh=1.0, vmin=0.0, vmax=top), "magma"


def _field_colors(truth: xr.DataArray, field: str) -> tuple[Normalize, Any]:
    colors = _matplotlib("colors")
    if field != "density":
        # The momentum follows the density into a long tail.
        top = truth.quantile(0.998 if field == "velocity" else 0.98)
        return colors.Normalize(0.0, float(top)), "viridis"
    positive = truth.where(truth > 0)
    norm = colors.LogNorm(float(positive.quantile(0.005)), float(positive.quantile(0.998)))
    cmap = require_extra("matplotlib", "plot", "Plotting").colormaps["cividis"]
    return norm, cmap.with_extremes(bad=cmap(0.0))


def _image(ax: Axes, plane: xr.DataArray, norm: Normalize, cmap: Any) -> AxesImage:
    rows, columns = (plane[dim].values for dim in plane.dims)
    half = [(nodes[1] - nodes[0]) / 2 for nodes in (columns, rows)]
    return ax.imshow(
        plane.values,
        origin="lower",
        extent=(
            columns[0] - half[0],
            columns[-1] + half[0],
            rows[0] - half[1],
            rows[-1] + half[1],
        ),
        norm=norm,
        cmap=cmap,
        aspect="equal",
        interpolation="nearest",
    )


def _arrows(ax: Axes, vector: xr.DataArray, across: str, up: str, top: float) -> Quiver:
    """Draw the vector's part in the plane over an image that saturates at ``top``."""
    step = {dim: max(vector.sizes[dim] // 15, 1) for dim in (across, up)}
    coarse = vector.coarsen(step, boundary="trim").mean()
    spacing = float(coarse[across][1] - coarse[across][0])
    u, v = (coarse.sel(component=dim).transpose(up, across) for dim in (across, up))
    return ax.quiver(
        coarse[across].values,
        coarse[up].values,
        u.values,
        v.values,
        color="white",
        angles="xy",
        scale_units="xy",
        scale=top / (2 * spacing),
        pivot="middle",
        width=0.006,
        headwidth=3.5,
        headlength=4,
        headaxislength=3.5,
        minlength=0.3,
    )


def _colorbar(
    figure: Figure, image: AxesImage, axes: Any, label: str, ticks: Sequence[float] = ()
) -> None:
    bar = figure.colorbar(
        image,
        ax=list(axes),
        orientation="horizontal",
        label=label,
        extend="max",
        shrink=0.9 if len(axes) == 1 else 0.6,
        aspect=15 * (len(axes) if len(axes) < 3 else 2),
    )
    if ticks:
        low, high = image.get_clim()
        inside = [tick for tick in ticks if (low or 0.0) <= tick <= (high or np.inf)]
        bar.set_ticks(inside, labels=[f"{tick:g}" for tick in inside])
        bar.minorticks_off()


def _result_of(result: xr.Dataset, field: str, label: str) -> xr.Dataset:
    there = list(result["field"].values) if "field" in result.coords else []
    if field not in there:
        raise MissingVariableError(
            f"No spectra of {field!r} in the result {label!r} (it has {listing(there) or 'none'}); "
            "expected what evaluate(predicted, true) returns"
        )
    return result.sel(field=field)


def _sample(field: xr.DataArray) -> NDArray[np.floating]:
    flat = field.values.reshape(-1)
    return flat[:: max(flat.size // 10**6, 1)]


def _level(counts: NDArray[np.float64], share: float) -> float:
    """Count above which the densest bins hold ``share`` of the cells."""
    ordered = np.sort(counts, axis=None)[::-1]
    return float(ordered[np.searchsorted(np.cumsum(ordered), share * ordered.sum())])
