"""What a store holds, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ..conventions import (
    AXES,
    CosmofieldsError,
    MissingAttributeError,
    XObject,
    box_lengths,
    listing,
    periodic_grid,
)
from ..cosmology import as_cosmology
from .contents import tasks
from .places import StorePath, brief, place_of
from .reading import LEDGER, Found, Stored, look, open_tree, state_of, stored

_KINDS = {
    "zip": " in a zip file",
    "icechunk": " in an Icechunk repository",
    "objects": " in an object store",
    "web": " on a web server",
}


def describe(path: StorePath, *, storage_options: Mapping[str, Any] | None = None) -> str:
    """Text that says what a store holds, whole or not.

    Parameters
    ----------
    path : path or URL
    storage_options : dict, optional
        Of an object store; see :func:`open_store`.

    Returns
    -------
    str
        Per group the box facts and the variables (dims, dtype, units, chunks, sizes); whether the
        store is whole; where it came from, and what others may do with it.

    Raises
    ------
    StoreError
        As :func:`open_store`, but for a store that is not whole.
    """
    found = look(place_of(path, storage_options))
    tree = open_tree(found, None)
    there = stored(found)
    made = found.made
    version = made.get("format_version", "not said")
    kind = f"cosmofields format {version}" if made else "not written by cosmofields"
    size = "" if there is None else f"{_bytes(sum(item.nbytes for item in there.values()))} stored"
    lines = [
        f"{path}: Zarr v{found.zarr_format} store{_KINDS.get(found.place.kind, '')}, {kind}",
        *_row("state", state_of(found)),
        *_row("stages", _stages(found)),
        *_row("size", size),
        *(line for name in _FACTS for line in _row(name, tree.attrs.get(name))),
    ]
    for node in tree.subtree:
        ds = node.to_dataset()
        if not ds.variables or node.path.split("/")[1] == LEDGER:
            continue
        lines += ["", node.path]
        try:
            for key, value in summarize_facts(ds):
                lines += _row(key, value)
        # Attributes of a stranger may be of any kind; what can be said is said.
        except (CosmofieldsError, TypeError, ValueError, OverflowError) as error:
            lines += _row("box", f"not to be read: {brief(error)}")
        for name in ds.data_vars:
            key = f"{node.path}/{name}".strip("/")
            part = None if there is None else there[key]
            lines += _row(str(name), _describe_array(ds[name], found.arrays[key], part))
        lines += _row("coordinates", listing(ds.coords))
        lines += _row("source", ds.attrs.get("source"))
        if not node.is_root:
            lines += _row("history", ds.attrs.get("history"))
    lines += ["", *_row("history", tree.attrs.get("history"))]
    lines += _row("written", {key: item for key, item in made.items() if key != "format_version"})
    return "\n".join(lines).rstrip() + "\n"


_FACTS = ("title", "authors", "license", "citation")


def _stages(found: Found) -> str:
    """How far the stages of a store are that is being filled."""
    return listing(f"{name} {done} of {n}" for name, (done, n) in tasks(found).items())


def summarize_facts(obj: XObject) -> list[tuple[str, str]]:
    """Box facts of an object as (name, text) pairs, in the order in which to print them.

    Parameters
    ----------
    obj : Dataset or DataArray

    Returns
    -------
    list of (str, str)
        ``box``, ``redshift``, ``cosmology`` always ("not set" if absent); ``grid``, ``halos`` or
        ``particles``, ``space`` where they apply.
    """
    attrs = obj.attrs
    try:
        sides = box_lengths(obj)
    except MissingAttributeError:
        facts = [("box", "not set")]
        volume = np.nan
    else:
        periodic = {True: ", periodic", False: ", not periodic"}.get(bool(attrs.get("periodic")))
        facts = [("box", f"{side_text(sides)} Mpc/h{periodic if 'periodic' in attrs else ''}")]
        volume = float(np.prod(sides))
    if all(axis in obj.dims for axis in AXES):
        facts.append(("grid", _grid_text(obj)))
    for dim in ("halo", "particle"):
        if dim in obj.dims:
            density = "" if np.isnan(volume) else f", {obj.sizes[dim] / volume:.3g} (h/Mpc)^3"
            facts.append((f"{dim}s", f"{obj.sizes[dim]:,}{density}"))
    redshift, cosmology = attrs.get("redshift"), attrs.get("cosmology")
    if cosmology is not None and not isinstance(cosmology, Mapping):
        cosmology = as_cosmology(cosmology).to_dict()
    facts.append(("redshift", "not set" if redshift is None else _flat(redshift)))
    facts.append(("cosmology", "not set" if cosmology is None else _flat(cosmology)))
    if "space" in attrs:
        los = f", line of sight {attrs['los']}" if attrs.get("los") else ""
        facts.append(("space", f"{attrs['space']}{los}"))
    return facts


def _grid_text(obj: XObject) -> str:
    cells = " x ".join(str(obj.sizes[axis]) for axis in AXES)
    try:
        return f"{cells} cells of {side_text(periodic_grid(obj).cell_size)} Mpc/h"
    except CosmofieldsError:
        return f"{cells} cells, not the whole periodic box"


def side_text(sides: tuple[float, ...]) -> str:
    """Sides of a box or cell for people: one number for a cube."""
    text = [f"{side:.4g}" for side in sides]
    return " x ".join(text if len(set(text)) > 1 else text[:1])


def _describe_array(da: xr.DataArray, array: zarr.Array, there: Stored | None) -> str:
    dims = listing(f"{dim} {size}" for dim, size in da.sizes.items())
    chunks = " x ".join(map(str, array.chunks)) or "one value"
    if array.shards:
        chunks += f" in shards of {' x '.join(map(str, array.shards))}"
    units = f" {da.attrs['units']}" if "units" in da.attrs else ""
    size = "" if there is None else f" ({_bytes(there.nbytes)} stored)"
    return f"({dims}) {array.dtype}{units}, chunks {chunks}, {_bytes(array.nbytes)}{size}"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return listing(f"{key} {_flat(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(name: str, value: Any) -> list[str]:
    first, *rest = _flat(value).splitlines() if value else [""]
    return [f"  {name:<13} {first}", *(f"  {'':<13} {line}" for line in rest)] if first else []
