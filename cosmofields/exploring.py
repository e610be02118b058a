"""A box sliced interactively in Jupyter: one slab is read and drawn at a time."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .conventions import AXES, MissingVariableError, listing, require_extra
from .plotting.slabs import Colors, default_axis, draw_slab, parts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Explorer:
    """Controls and the slab that they show; what :func:`explore` returns.

    Parameters
    ----------
    fields : mapping of name to DataArray
    position, thickness : float
        With which to begin, in Mpc/h; ``position=None`` is the middle of the box.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        What is shown, e.g. for ``figure.savefig("slab.pdf")``.
    controls : mapping of name to widget
        ``field``, ``show``, ``axis``, ``position``, ``thickness``, ``arrows``; setting the
        ``value`` of one is what a click does.
    widget : ipywidgets.Widget
        Controls above the slab.
    """

    figure: Figure

    def __init__(
        self, fields: dict[str, xr.DataArray], position: float | None, thickness: float
    ) -> None:
        widgets = _widgets()
        self._fields = fields
        self._busy = False  # while one control sets another
        # Colours mean the same while one moves through a field.
        self._colors: dict[tuple[Any, ...], Colors] = {}
        first = next(iter(fields.values()))
        axis = default_axis(first)
        narrow = {"continuous_update": False}
        self.controls = {
            "field": widgets.Dropdown(options=list(fields), description="field"),
            "show": widgets.Dropdown(description="show"),
            "axis": widgets.ToggleButtons(
                options=AXES, value=axis, description="across", style={"button_width": "3em"}
            ),
            "position": widgets.SelectionSlider(
                options=_nodes(first, axis), description="at [Mpc/h]", **narrow
            ),
            "thickness": widgets.FloatSlider(description="thickness", readout_format=".1f"),
            "arrows": widgets.Checkbox(value=True, description="arrows", indent=False),
        }
        self.controls["thickness"].continuous_update = False
        self._fit_to(first, thickness)
        self._go_to(position)
        self._image = widgets.Image(format="png")
        rows = [
            [self.controls[name] for name in names]
            for names in (("field", "show", "arrows"), ("axis", "position", "thickness"))
        ]
        self.widget = widgets.VBox([*map(widgets.HBox, rows), self._image])
        self._draw()
        self._follow("field", self._change_field)
        self._follow("axis", self._change_axis)
        for name in ("show", "position", "thickness", "arrows"):
            self._follow(name, self._draw)

    def _follow(self, name: str, then: Callable[[], None]) -> None:
        def changed(_: Any) -> None:
            if not self._busy:
                then()

        self.controls[name].observe(changed, names="value")

    def _change_field(self) -> None:
        self._busy = True
        try:
            self._fit_to(self._field, self.controls["thickness"].value)
        finally:
            self._busy = False
        self._draw()

    def _change_axis(self) -> None:
        self._busy = True
        try:
            at = self.controls["position"]
            at.options = _nodes(self._field, self.controls["axis"].value)
            self._go_to(None)
        finally:
            self._busy = False
        self._draw()

    def _fit_to(self, field: xr.DataArray, thickness: float) -> None:
        """Let the controls offer what a field has."""
        show, wide = self.controls["show"], self.controls["thickness"]
        parts = parts_of(field)
        kept = show.value if show.value in parts else (parts[0] if parts else None)
        show.options, show.value = parts, kept
        show.layout.display = "" if parts else "none"
        self.controls["arrows"].layout.display = "" if "component" in field.dims else "none"
        nodes = field[self.controls["axis"].value].values
        cell = float(abs(nodes[-1] - nodes[0])) / max(len(nodes) - 1, 1)
        wide.min, wide.step, wide.max = 0.0, cell, max(len(nodes) // 4, 1) * cell
        # Of classes there is no mean.
        wide.disabled = "flag_meanings" in field.attrs
        wide.value = thickness

    def _go_to(self, position: float | None) -> None:
        at = self.controls["position"]
        nodes = np.array([value for _, value in at.options])
        middle = nodes[len(nodes) // 2] if position is None else position
        at.value = float(nodes[np.argmin(abs(nodes - middle))])

    @property
    def _field(self) -> xr.DataArray:
        return self._fields[self.controls["field"].value]

    def _draw(self) -> None:
        chosen = {name: control.value for name, control in self.controls.items()}
        same = tuple(chosen[name] for name in ("field", "show", "thickness"))
        self.figure, self._colors[same] = draw_slab(
            self._field,
            chosen["show"],
            chosen["axis"],
            chosen["position"],
            chosen["thickness"],
            chosen["arrows"],
            self._colors.get(same),
        )
        page = BytesIO()
        self.figure.savefig(page, format="png", bbox_inches="tight")
        self._image.value = page.getvalue()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        # Where no kernel answers (a page on the web, a printed notebook) the slab is a picture.
        bundle: dict[str, Any] = self.widget._repr_mimebundle_(**options)
        picture = b64encode(self._image.value).decode()
        return {**bundle, "text/plain": repr(self), "image/png": picture}

    def __repr__(self) -> str:
        return f"<slabs of {listing(self._fields)}; in Jupyter with controls>"


def explore(
    fields: xr.Dataset | xr.DataArray, *, position: float | None = None, thickness: float = 10.0
) -> Explorer:
    """Slice the fields of a box interactively in Jupyter, without loading them.

    Parameters
    ----------
    fields : Dataset or DataArray
        Every variable on x, y, z with at most one more dim (component, mass bin) is offered.
    position : float, optional
        Mpc/h, where to begin along the axis that is cut; default: the middle of the box.
    thickness : float
        Mpc/h, over which the slab is averaged to begin with.

    Returns
    -------
    Explorer
        Shows itself as the last line of a cell; ``.figure`` is the slab that is shown.

    Raises
    ------
    MissingExtraError
        If ipywidgets or matplotlib is not installed.
    MissingVariableError
        If nothing is there that can be sliced.
    DimensionError
        If a DataArray has other dims.

    See Also
    --------
    cosmofields.plotting.plot_slab : the same figure without controls

    Notes
    -----
    Of a lazy field the chunks of the slab that is shown are computed, of one component if one is
    shown, and again when a control moves.  The scale of the colours is that of the first slab of a
    field, a component and a thickness, so that it stays while one moves through the box.
    """
    _widgets()
    if isinstance(fields, xr.DataArray):
        parts_of(fields)
        found = {str(fields.name or "field"): fields}
    else:
        found = {
            str(name): _with_los(fields, field)
            for name, field in fields.data_vars.items()
            if set(AXES) <= set(field.dims) and field.ndim < 5
        }
    if not found:
        raise MissingVariableError(
            f"Nothing to slice among {listing(fields.data_vars) or 'no variable at all'}; expected "
            "fields on x, y, z: paint a catalogue, or open a store of fields"
        )
    return Explorer(found, position, thickness)


def _with_los(fields: xr.Dataset, field: xr.DataArray) -> xr.DataArray:
    """The field, with the line of sight of its Dataset if it has none."""
    los = field.attrs.get("los") or fields.attrs.get("los")
    return field.assign_attrs(los=los) if los else field


def _nodes(field: xr.DataArray, axis: str) -> list[tuple[str, float]]:
    return [(f"{node:.1f}", float(node)) for node in np.sort(field[axis].values)]


def _widgets() -> Any:
    return require_extra("ipywidgets", "explore", "explore()")
