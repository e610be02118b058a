"""Slices of the halos, of the true field and of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..conventions import (
    AXES,
    FIELDS,
    DimensionError,
    box_facts,
    canonical,
    check_los,
    check_same_grid,
    listing,
    variable,
)
from ..derivatives import divergence
from ..statistics import magnitude
from . import style
from .histograms import draw_histogram, histogram_key, histogram_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.quiver import Quiver

_SHOWN = ("density", "velocity", "momentum", "velocity_divergence", "momentum_divergence")
HALO_TICKS = (0, 1, 3, 10, 30, 100)
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
    results: style.Results | None = None,
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
    field : {"velocity", "momentum", "density", "velocity_divergence", "momentum_divergence"}
        What to show; of a vector its magnitude.  A divergence that a Dataset does not hold is made
        of its vector, on the whole periodic box.
    axis : {"x", "y", "z"}, optional
        Axis that the slab is cut across.  Default: perpendicular to the line of sight
        (``attrs["los"]``), which then runs upwards.
    position, thickness : float
        Centre (default: of the box) and thickness of the slab in Mpc/h, over which all panels are
        averaged; both snap to whole cells, and the title says to which.
    arrows : bool
        Whether to draw the slab's mean vector in the plane over a vector field.
    results : mapping of label to Dataset, optional
        What :func:`~cosmofields.evaluation.evaluate` returned for the same reconstructions: adds
        the distributions over all cells of the box, as :func:`plot_histograms` draws them, to the
        right: of the values and, of a vector, of 1 - cos phi.

    Returns
    -------
    matplotlib.figure.Figure
        One row of panels; the titles give mean and scatter over the cells of the slab.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError, DimensionError, GridMismatchError
        If a Dataset lacks the field, the grids differ or the slab lies outside.

    Notes
    -----
    Eager for the cells of the slab alone; a divergence is made of the whole box.
    """
    if field not in _SHOWN:
        raise DimensionError(f"field={field!r}; expected one of {listing(_SHOWN)}")
    halos = variable(observed, "halo_density")
    fields = {"truth": _field(true, field)}
    fields.update({label: _field(ds, field) for label, ds in predicted.items()})
    check_same_grid(halos, *fields.values())
    beside = _beside(results, field)
    los = check_los(halos.attrs.get("los", "z"))
    axis = [name for name in AXES if name != los][-1] if axis is None else check_los(axis)
    cut, bounds = cut_slab(halos, axis, position, thickness)
    slabs = {name: cut_slab(whole, axis, position, thickness)[0] for name, whole in fields.items()}
    n_images = len(slabs) + 1
    # As wide as a page, unless the panels would grow out of proportion.
    side = min((style.PAGE - 0.5) / n_images, 2.3)
    height = side + 1.6
    with style.figure((side * n_images + 0.5, height + (1.7 if beside else 0))) as figure:
        style.spread_rows(figure, 0.08)  # between the words above the panels
        part: Any = figure
        if beside:
            parts: Any = figure.subfigures(2, 1, height_ratios=(height, 1.7))
            part, below = parts
            _histograms(below, beside)
        axes = part.subplots(1, n_images, sharex=True, sharey=True)
        _draw_halos(part, axes[0], cut.sum("mass_bin").mean(axis), halos, in_plane(axis, los))
        _draw_fields(part, axes[1:], slabs, field, axis, los, arrows, side)
        for ax in axes:
            ax.set_xlabel(axis_label(in_plane(axis, los)[0], los))
            ax.locator_params(nbins=4)
            ax.tick_params(direction="out", top=False, right=False)
        axes[0].set_ylabel(axis_label(in_plane(axis, los)[1], los))
        place = rf"${bounds[0]:.1f} < {axis} < {bounds[1]:.1f}$ {style.LENGTH}"
        words = "maps: mean over the slab; numbers: mean and scatter of its cells"
        part.suptitle(f"{place}; {words}", fontsize=8)
    return figure


def _field(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Field of the whole box, its divergence where that is asked for and not there."""
    vector, _, what = name.partition("_")
    if not what:
        return variable(ds, name)
    if name in ds:
        return canonical(ds[name], name=name).assign_attrs(box_facts(ds))
    return divergence(variable(ds, vector, hint=f"`{name}` is made of it.")).rename(name)


def _beside(results: style.Results | None, field: str) -> dict[str, dict[str, xr.Dataset]]:
    """Rows of the results for each histogram beside the slices: the values, the directions."""
    if results is None:
        return {}
    is_vector = field in FIELDS and FIELDS[field].is_vector
    names = [f"{field}_magnitude", field] if is_vector else [field]
    named = style.labelled(results)
    return {name: histogram_rows(named, name) for name in names}


def _histograms(part: Any, beside: Mapping[str, Mapping[str, xr.Dataset]]) -> None:
    *axes, last = part.subplots(1, len(beside) + 1)
    for ax, (name, rows) in zip(axes, beside.items(), strict=True):
        draw_histogram(ax, rows, name)
        ax.set_ylabel("cells per bin [%]")
    labels = list(next(iter(beside.values())))
    last.set_axis_off()
    last.legend(handles=histogram_key(labels), loc="center left", title="the whole box")


def _draw_halos(
    part: Any, ax: Axes, delta: xr.DataArray, halos: xr.DataArray, plane: tuple[str, str]
) -> None:
    across, up = plane
    image = draw_image(ax, delta.transpose(up, across), *halo_colors(delta))
    draw_colorbar(part, image, [ax], r"$1+\delta_s$", HALO_TICKS)
    space = f", {halos.attrs['space']} space" if "space" in halos.attrs else ""
    ax.set_title(f"halos{space}\n")


def _draw_fields(
    part: Any,
    axes: Sequence[Axes],
    slabs: Mapping[str, xr.DataArray],
    field: str,
    axis: str,
    los: str,
    arrows: bool,
    side: float,
) -> None:
    """Panels of the truth and the predictions, to one scale of colours and arrows."""
    across, up = in_plane(axis, los)
    is_vector = "component" in slabs["truth"].dims
    shown = {name: as_scalar(cut).mean(axis) for name, cut in slabs.items()}
    norm, colors, ticks = field_colors(shown["truth"], field)
    longest = float(shown["truth"].quantile(0.98)) or 1.0
    for ax, (name, mean) in zip(axes, shown.items(), strict=True):
        image = draw_image(ax, mean.transpose(up, across), norm, colors)
        values = as_scalar(slabs[name])
        text = style.rounded(values.mean(dtype=np.float64), values.std(dtype=np.float64))
        ax.set_title(f"{name}\n{text}")
        if arrows and is_vector:
            quiver = draw_arrows(ax, slabs[name].mean(axis), across, up, longest)
    units = slabs["truth"].attrs["units"]
    symbol = style.SYMBOLS[f"{field}_magnitude" if is_vector else field]
    draw_colorbar(part, image, axes, style.with_units(f"${symbol}$", units), ticks)
    if arrows and is_vector:
        size = float(f"{longest / 2:.0e}")
        # As far below the panel as the colour bar, which leaves room on its right.
        at = (0.8, -0.6 / side)
        axes[-1].quiverkey(quiver, *at, size, f"{size:g} km/s", labelpos="S", color="black")


def in_plane(axis: str, los: str) -> tuple[str, str]:
    """Axes to the right and upwards of a cut across ``axis``: the line of sight upwards."""
    first, second = (name for name in AXES if name != axis)
    return (second, first) if first == los else (first, second)


def axis_label(axis: str, los: str) -> str:
    """Label of an axis of the box, which says so if it is the line of sight."""
    return f"${axis}$ [{style.LENGTH}]" + (", line of sight" if axis == los else "")


def cut_slab(
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


def as_scalar(field: xr.DataArray) -> xr.DataArray:
    """A scalar as it is, of a vector its magnitude."""
    return magnitude(field) if "component" in field.dims else field


def halo_colors(delta: xr.DataArray) -> tuple[Normalize, Any]:
    """Scale and map of the colours of a halo field."""
    # Linear up to the mean density, for the empty cells; logarithmic above, for the clusters.
    top = max(float(delta.quantile(0.999)), 2.0)
    return style.matplotlib("colors").SymLogNorm(linthresh=1.0, vmin=0.0, vmax=top), "magma"


def field_colors(truth: xr.DataArray, field: str) -> tuple[Normalize, Any, Sequence[float]]:
    """Scale and map of the colours, and the ticks of their bar where it does not find its own."""
    colors = style.matplotlib("colors")

    def share(of: xr.DataArray, part: float) -> float:
        return float(of.quantile(part)) or 1.0

    if field == "density":
        positive = truth.where(truth > 0)
        norm = colors.LogNorm(share(positive, 0.005), share(positive, 0.998))
        cmap = style.matplotlib().colormaps["cividis"]
        return norm, cmap.with_extremes(bad=cmap(0.0)), _DENSITY_TICKS
    if field == "velocity":
        return colors.Normalize(0.0, share(truth, 0.998)), "viridis", ()
    if field == "velocity_divergence":
        top = share(abs(truth), 0.99)
        return colors.Normalize(-top, top), "RdBu_r", ()
    # The momentum follows the density into long tails.
    if field == "momentum":
        top = share(truth, 0.998)
        return colors.LogNorm(max(share(truth, 0.02), 1e-3 * top), top), "viridis", ()
    turn, top = share(abs(truth), 0.5), share(abs(truth), 0.998)
    ticks = style.Spacing("asinh", turn).ticks(-top, top)
    return colors.AsinhNorm(turn, -top, top), "RdBu_r", ticks


def draw_image(ax: Axes, plane: xr.DataArray, norm: Normalize, cmap: Any) -> AxesImage:
    """Draw a plane (up, across) to the edges of its cells."""
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


def draw_arrows(ax: Axes, vector: xr.DataArray, across: str, up: str, top: float) -> Quiver:
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


def draw_colorbar(
    figure: Any, image: AxesImage, axes: Any, label: str, ticks: Sequence[float] = ()
) -> None:
    """Draw a bar of colours below panels."""
    low, high = (float(end) for end in image.get_clim())
    bar = figure.colorbar(
        image,
        ax=list(axes),
        orientation="horizontal",
        label=label,
        extend="both" if low < 0 else "max",
        shrink=0.9 if len(axes) == 1 else 0.6,
        aspect=15 * (len(axes) if len(axes) < 3 else 2),
    )
    if ticks:
        inside = [tick for tick in ticks if low <= tick <= high]
        bar.set_ticks(inside, labels=[style.plain(tick) for tick in inside])
        bar.minorticks_off()
