"""What the two accessors share: the box facts, the repr, and how a method finds its function."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property, wraps
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import xarray as xr

from ..conventions import AXES, Grid, grid_of, listing

if TYPE_CHECKING:
    from ..cosmology import Cosmology

_Method = TypeVar("_Method", bound=Callable[..., Any])


def forwards(room: str) -> Callable[[_Method], _Method]:
    """Make a method call the function of its own name in ``cosmofields.<room>``, object first.

    The method is written for its signature, which editors and ``help`` show; its body is never run.
    """

    def decorate(method: _Method) -> _Method:
        return cast(_Method, _Forwarding(method, room))

    return decorate


class _Forwarding:
    """A method with the docstring of its function, which is imported when the method is asked for.

    The class alone, and what lists its names, load nothing.
    """

    def __init__(self, method: Callable[..., Any], room: str) -> None:
        self.method = method
        self.room = room

    def __get__(self, obj: Any, owner: type) -> Any:
        return self.call if obj is None else self.call.__get__(obj, owner)

    @cached_property
    def call(self) -> Callable[..., Any]:
        name = self.method.__name__
        module = importlib.import_module(f"cosmofields.{self.room}")

        @wraps(self.method)
        def call(self: Recon, *args: Any, **options: Any) -> Any:
            return getattr(module, name)(self._obj, *args, **options)

        call.__doc__ = of_method(getattr(module, name))
        return call


def of_method(function: Callable[..., Any]) -> str:
    """Docstring of a function for the method that gives it its first argument."""
    doc = inspect.getdoc(function) or ""
    head, title, rest = doc.partition("\nParameters\n----------\n")
    entry, *lines = rest.splitlines()
    end = next((i for i, line in enumerate(lines) if line and line[0] != " "), len(lines))
    names, _, kind = entry.partition(" : ")
    first, _, further = names.partition(", ")
    # Of several arguments in one entry, the first alone goes.
    kept = [entry.replace(f"{first}, ", "", 1), *lines] if further else lines[end:]
    if len(kept) > 1 and kept[1].startswith("---"):
        title = ""  # the first section that is left begins there
    kind = f", {kind}" if kind else ""
    said = f"``{first}`` of :func:`cosmofields.{function.__name__}` is this object{kind}."
    return "\n".join([head, said, title.rstrip(), *kept])


class Recon:
    """What Dataset and DataArray share: the box facts and the repr."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def __getattr__(self, name: str) -> Any:
        # Python also comes here when what the class has raises AttributeError itself.
        if any(name in vars(kind) for kind in type(self).__mro__):
            return object.__getattribute__(self, name)
        # What the class has not. Copying asks for names of Python's own before there is an object.
        if not name.startswith("_"):
            raise AttributeError(_advice(self._obj, name))
        raise AttributeError(name)

    @property
    def grid(self) -> Grid:
        """Cells and side lengths of the box, or of a part of one; see :class:`conventions.Grid`."""
        return grid_of(self._obj)

    @property
    def cosmology(self) -> Cosmology:
        """Cosmology of the attributes."""
        from ..cosmology import cosmology_of

        return cosmology_of(self._obj)

    @property
    def redshift(self) -> float:
        """Redshift of the attributes."""
        from ..cosmology import redshift_of

        return redshift_of(self._obj)

    def _facts(self) -> list[tuple[str, str]]:
        from ..store import summarize_facts

        return summarize_facts(self._obj)

    def _halo_attrs(self) -> dict[str, Any]:
        """Attributes that may say how halos were cut into bins and weighted; none without halos."""
        raise NotImplementedError

    def _bins(self) -> list[tuple[str, str]]:
        attrs = self._halo_attrs()
        rows = []
        # NetCDF returns a list of numbers as an array, and a list of one as a number.
        edges = np.atleast_1d(attrs.get("number_density", ()))
        if edges.size:
            text = listing(f"{edge:g}" for edge in edges)
            rows.append(("mass bins", f"number_density {text} (h/Mpc)^3"))
        if attrs.get("weighting"):
            rows.append(("weighting", attrs["weighting"]))
        return rows

    def _found(self) -> list[str]:
        raise NotImplementedError

    def _next(self) -> list[str]:
        raise NotImplementedError

    def _models(self) -> list[str]:
        """Models that made the fields."""
        raise NotImplementedError

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            *self._facts(),
            *self._bins(),
            ("holds", ", ".join(self._found()) or "no field that is known here"),
        ]
        if models := self._models():
            rows.append(("made by", listing(dict.fromkeys(models))))
        return rows + [("next" if i == 0 else "", line) for i, line in enumerate(self._next())]

    def __repr__(self) -> str:
        body = "\n".join(f"  {key:<10} {text}" for key, text in self._rows())
        return f"<cosmofields .recon on a {type(self._obj).__name__}>\n{body}"

    def _repr_html_(self) -> str:
        # Jupyter's own styles: it looks right in light and dark themes.
        body = "".join(
            "<tr><th style='text-align:left;vertical-align:top;padding-right:1em'>"
            f"{escape(key)}</th>"
            f"<td style='text-align:left'>{_code(escape(text))}</td></tr>"
            for key, text in self._rows()
        )
        kind = type(self._obj).__name__
        return f"<div><strong>.recon</strong> on a {kind}<table>{body}</table></div>"


def _advice(obj: xr.Dataset | xr.DataArray, name: str) -> str:
    """What to type for a method that ``.recon`` of this kind of object has not."""
    from . import DataArrayRecon, DatasetRecon

    own, other = (DatasetRecon, DataArrayRecon)[:: 1 if isinstance(obj, xr.Dataset) else -1]
    kind = type(obj).__name__
    if name in dir(other):
        if other is DatasetRecon:
            return f"{name} is of a Dataset, and this is a {kind}: ds.recon.{name}(...)"
        fields = [str(key) for key, value in obj.data_vars.items() if set(AXES) <= {*value.dims}]
        some = fields[0] if fields else "density"
        return f"{name} is of a field, and this is a {kind}: ds[{some!r}].recon.{name}(...)"
    known = [each for each in dir(own) if not each.startswith("_")]
    near = get_close_matches(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listing(known)}"
    return f".recon of a {kind} has no {name!r}; {hint}"


def _code(text: str) -> str:
    """Calls at the beginning of a line as code."""
    return re.sub(r"^((?:\.\w+\(.*?\)(?:, )?)+)", r"<code>\1</code>", text)


def described(obj: xr.DataArray) -> str:
    """Name, dims and units of a variable."""
    units = obj.attrs.get("units", "1")
    return f"{obj.name} ({', '.join(map(str, obj.dims))}){'' if units == '1' else f' {units}'}"
