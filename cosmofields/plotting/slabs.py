"""A slab of one field, in the colours that suit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..conventions import AXES, FIELDS, DimensionError, check_field, check_los, listing
from . import slices, style

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# A single map is for a screen; print has vectors.
_DPI = 130
# What a cell may be, from empty to dense: void, sheet, filament, knot.
_CLASSES = ("#f7f7f7", "#a6cee3", "#1f78b4", "#b2182b", "#e69f00", "#009e73")


@dataclass(frozen=True)
class Colors:
    """Scale and map of the colours, the ticks of their bar and the names of these, if any."""

    norm: Normalize
    cmap: Any
    ticks: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


def plot_slab(
    field: xr.DataArray,
    *,
    show: str | None = None,
    axis: str | None = None,
    position: float | None = None,
    thickness: float = 10.0,
    arrows: bool = True,
) -> Figure:
    """A slab of one field, averaged over its thickness.

    Parameters
    ----------
    field : DataArray, dims (x, y, z) and at most one more
        With coordinates in Mpc/h.
    show : str, optional
        Which part of the further dim: of a vector ``"magnitude"`` (default), that of each cell
        before the average, or a component; of
        halos ``"all"``, the sum over their mass bins (default); else a label of the dim, as text
        (default: the first).
    axis : {"x", "y", "z"}, optional
        Axis that the slab is cut across.  Default: perpendicular to the line of sight
        (``attrs["los"]``), which then runs upwards.
    position, thickness : float
        Centre (default: of the box) and thickness of the slab in Mpc/h; both snap to whole cells,
        and the title says to which.  Of classes, such as the cosmic web, the cells at
        ``position`` alone are shown.
    arrows : bool
        Whether to draw the mean vector in the plane over a vector's magnitude.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    DimensionError
        If the field has other dims, no part called ``show``, or the slab lies outside.

    Notes
    -----
    Eager for the cells of the slab alone, and for the component that is shown.
    """
    return draw_slab(field, show, axis, position, thickness, arrows)[0]


def parts_of(field: xr.DataArray) -> tuple[str, ...]:
    """What ``show`` may be, the default first; of a scalar nothing.

    Raises
    ------
    DimensionError
        If the field does not have the dims x, y, z and at most one more.
    """
    check_field(field, "plot_slab")
    extra = [str(dim) for dim in field.dims if dim not in AXES]
    if len(extra) > 1 or len(extra) + 3 != field.ndim:
        raise DimensionError(
            f"`{field.name}` has dims {field.dims}; expected {AXES} and at most one more"
        )
    if not extra:
        return ()
    labels = tuple(str(label) for label in field[extra[0]].values)
    whole = {"component": ("magnitude",), "mass_bin": ("all",)}
    return (*whole.get(extra[0], ()), *labels)


def default_axis(field: xr.DataArray) -> str:
    """Axis across which a field is cut unless another is asked for."""
    los = check_los(field.attrs.get("los") or "z")
    return [name for name in AXES if name != los][-1]


def draw_slab(
    field: xr.DataArray,
    show: str | None,
    axis: str | None,
    position: float | None,
    thickness: float,
    arrows: bool,
    colors: Colors | None = None,
) -> tuple[Figure, Colors]:
    """Figure of a slab, and its colours, with which others may be drawn; see :func:`plot_slab`."""
    parts = parts_of(field)
    show = show or (parts[0] if parts else None)
    if show is not None and show not in parts:
        raise DimensionError(
            f"show={show!r}; expected one of {listing(parts) or 'none: the field is a scalar'}"
        )
    axis = default_axis(field) if axis is None else check_los(axis)
    los = check_los(field.attrs.get("los") or "z")
    is_classes = "flag_meanings" in field.attrs
    cut, bounds = slices.cut_slab(
        _part(field, show), axis, position, 0.0 if is_classes else thickness
    )
    mean = slices.as_scalar(cut).mean(axis, dtype=None if is_classes else np.float32)
    if colors is None:
        colors = _classes(field) if is_classes else _colors(mean, field, show)
    across, up = slices.in_plane(axis, los)
    width = 1.15 * style.COLUMN
    with style.figure((width, 1.12 * width)) as figure:
        figure.set_dpi(_DPI)
        ax = figure.subplots()
        image = slices.draw_image(ax, mean.transpose(up, across), colors.norm, colors.cmap)
        ax.set(xlabel=slices.axis_label(across, los), ylabel=slices.axis_label(up, los))
        ax.locator_params(nbins=5)
        ax.tick_params(direction="out", top=False, right=False)
        # On the left: the key of the arrows stands on the right.
        ax.set_title(rf"${bounds[0]:.1f} < {axis} < {bounds[1]:.1f}$ {style.LENGTH}", loc="left")
        # A standard deviation points nowhere.
        directed = "component" in cut.dims and not str(field.name).endswith("_error")
        if arrows and directed:
            longest = float(mean.quantile(0.98)) or 1.0
            quiver = slices.draw_arrows(ax, cut.mean(axis), across, up, longest)
            size = float(f"{longest / 2:.0e}")
            units = str(field.attrs.get("units", ""))
            ax.quiverkey(quiver, 0.9, 1.035, size, f"{size:g} {units}", labelpos="W", color="black")
        _bar(figure, image, ax, _label(field, show), colors)
    return figure, colors


def _part(field: xr.DataArray, show: str | None) -> xr.DataArray:
    """What is to be shown of a field, the components of a vector if its length is."""
    extra = [dim for dim in field.dims if dim not in AXES]
    if show is None or show == "magnitude":
        return field
    if show == "all":
        return field.sum("mass_bin", keep_attrs=True)
    at = [str(label) for label in field[extra[0]].values].index(show)
    return field.isel({extra[0]: at}, drop=True)


def _colors(mean: xr.DataArray, field: xr.DataArray, show: str | None) -> Colors:
    """Of a registered field those of the other figures; else by whether there are two signs."""
    colors = style.matplotlib("colors")
    name = str(field.name)
    if name == "halo_density":
        return Colors(*slices.halo_colors(mean), slices.HALO_TICKS)
    known = name in FIELDS and not name.endswith("_error")
    if (known and show in (None, "magnitude")) or name.endswith("_divergence"):
        norm, cmap, ticks = slices.field_colors(mean, name)
        return Colors(norm, cmap, tuple(ticks))
    if name == "momentum":
        norm, cmap, ticks = slices.field_colors(mean, "momentum_divergence")
        return Colors(norm, cmap, tuple(ticks))
    low, high = (float(mean.quantile(share)) for share in (0.002, 0.998))
    if low < 0 < high:
        top = max(-low, high)
        return Colors(colors.Normalize(-top, top), "RdBu_r")
    return Colors(colors.Normalize(low, high if high > low else low + 1), "viridis")


def _classes(field: xr.DataArray) -> Colors:
    """A colour for each class, by CF's ``flag_values`` and ``flag_meanings``."""
    colors = style.matplotlib("colors")
    names = tuple(str(field.attrs["flag_meanings"]).split())
    values = np.atleast_1d(field.attrs["flag_values"]).astype(float)
    edges = np.append(values - 0.5, values[-1] + 0.5)
    cmap = colors.ListedColormap([_CLASSES[i % len(_CLASSES)] for i in range(len(values))])
    return Colors(colors.BoundaryNorm(edges, len(values)), cmap, tuple(values), names)


def _label(field: xr.DataArray, show: str | None) -> str:
    """Symbol of a registered field, or the name of another, and its units."""
    name, units = str(field.name), str(field.attrs.get("units", "1"))
    vectors = {"velocity": "v", "momentum": "m"}
    if name == "halo_density":
        text = r"$1+\delta_s$" if show == "all" else rf"$1+\delta_s$, mass bin {show}"
    elif name in vectors:
        symbol = style.SYMBOLS[f"{name}_magnitude"] if show == "magnitude" else None
        text = f"${symbol or f'{vectors[name]}_{show}'}$"
    elif name in style.SYMBOLS:
        text = f"${style.SYMBOLS[name]}$"
    else:
        text = str(field.attrs.get("long_name", name)) + (f", {show}" if show else "")
    return style.with_units(text, units)


def _bar(figure: Figure, image: Any, ax: Any, label: str, colors: Colors) -> None:
    if not colors.names:
        slices.draw_colorbar(figure, image, [ax], label, colors.ticks)
        return
    bar = figure.colorbar(image, ax=ax, orientation="horizontal", label=label, aspect=15)
    bar.set_ticks(list(colors.ticks), labels=list(colors.names))
    bar.minorticks_off()
