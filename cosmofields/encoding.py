"""What goes to disk: the dtype, chunks, compression and attributes of each variable of a store."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from .conventions import AXES, StoreError
from .cosmology import as_cosmology
from .lazy import CHUNK

_ROWS = 2**18  # of a catalogue, per chunk: 1 MB a column


def encode(tree: xr.DataTree, level: int) -> tuple[xr.DataTree, dict[str, dict[Any, Any]]]:
    """Copy of ``tree`` that can be written as it is, and the encoding of every variable.

    Parameters
    ----------
    tree : DataTree
        Coordinates that a group inherits are written with it, so that each group stands alone.
    level : int
        Compression level, 1 to 9.

    Returns
    -------
    plain : DataTree
        Fields in float32, dask chunks that are whole chunks of the store, attributes that JSON can
        hold; groups without variables are left out.
    encoding : dict of dict
        Group path, then variable name, to the encoding that :meth:`xarray.DataTree.to_zarr` takes.

    Raises
    ------
    StoreError
        If there is no variable, or an attribute is of a kind that JSON cannot hold.
    """
    if not 1 <= level <= 9:
        raise StoreError(f"level={level}; expected 1 to 9")
    groups: dict[str, xr.Dataset] = {}
    encoding: dict[str, dict[Any, Any]] = {}
    for node in tree.subtree:
        ds = node.to_dataset()
        if not ds.variables and not node.is_root:
            continue
        variables = {name: _on_disk(name, ds) for name in ds.variables}
        groups[node.path] = xr.Dataset(
            {name: variables[name] for name in ds.data_vars},
            {name: variables[name] for name in ds.coords},
            json_attrs(ds.attrs, f"group {node.path}"),
        )
        encoding[node.path] = {
            name: _encoding(name, var, name in ds.coords, level) for name, var in variables.items()
        }
    if not any(encoding.values()):
        raise StoreError("There is nothing to write: no variable in any group")
    return xr.DataTree.from_dict(groups), encoding


def _on_disk(name: Hashable, ds: xr.Dataset) -> xr.Variable:
    """Variable of the dtype, the dask chunks and the attributes that go to disk."""
    var = ds.variables[name].copy(deep=False)
    # What another file used (chunks, shards, scale factors) does not fit this one.
    var.encoding = {}
    var.attrs = json_attrs(var.attrs, f"`{name}`")
    if name in ds.data_vars and _is_field(var) and var.dtype == np.float64:
        var = var.astype(np.float32)
    if var.dtype.kind == "U":
        var = var.astype(object)  # Zarr v3 has no fixed-length text yet
    if var.chunks is not None:
        # A task that writes whole chunks of the store races with no other.
        cut = {
            dim: size
            for dim, pieces, size in zip(var.dims, var.chunks, _chunk_shape(var), strict=True)
            if any(piece % size for piece in pieces[:-1])
        }
        var = var.chunk(cut) if cut else var
    return var


def _is_field(var: xr.Variable) -> bool:
    return set(AXES) <= set(var.dims)


def _chunk_shape(var: xr.Variable) -> tuple[int, ...]:
    if _is_field(var):
        size = {dim: CHUNK if dim in AXES else 1 for dim in var.dims}
    else:
        size = dict.fromkeys(var.dims, _ROWS)
    return tuple(max(1, min(n, size[dim])) for dim, n in var.sizes.items())


def _encoding(name: Hashable, var: xr.Variable, is_coord: bool, level: int) -> dict[str, Any]:
    # Halo counts are mostly exact zeros, and shuffling their bytes makes them larger.
    smooth = var.dtype.kind == "f" and name != "halo_density"
    squeeze: BloscCodec | ZstdCodec = (
        BloscCodec(cname="zstd", clevel=level, shuffle="shuffle")
        if smooth
        else ZstdCodec(level=level)
    )
    encoding: dict[str, Any] = {"compressors": (squeeze, Crc32cCodec())}
    if var.ndim:
        encoding["chunks"] = _chunk_shape(var)
    if is_coord:
        encoding["_FillValue"] = None
    return encoding


def json_attrs(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Attributes as JSON holds them, or :class:`StoreError` naming the one that it cannot."""
    plain = {}
    for key, value in attrs.items():
        if key == "cosmology" and value is not None and not isinstance(value, Mapping):
            value = as_cosmology(value).to_dict()
        plain[str(key)] = _json(value, f"attribute {key!r} of {where}")
    return plain


def _json(value: Any, where: str) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item, where) for item in value]
    raise StoreError(
        f"The {where} is a {type(value).__name__}; a store keeps text, numbers, booleans, None, "
        "lists and dicts. Convert it, or delete it from .attrs"
    )
