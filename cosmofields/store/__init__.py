"""Zarr v3 stores: write, open, describe.

Layout: a Dataset fills the root group; a DataTree (``/observed``, ``/linear``, ``/reconstructed``,
``/true``) one group per version of the universe.  Fields lie in chunks of at most 64 cells per
axis, one component or mass bin each.  The root's attributes say what the store is
(``cosmofields``) and whether it is whole (``complete``, stamped last).  Plain xarray opens it,
without a warning.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import xarray as xr
import zarr
from dask.diagnostics.progress import ProgressBar

from ..conventions import (
    AXES,
    CONVENTIONS,
    FORMAT_VERSION,
    CosmofieldsError,
    MissingAttributeError,
    StoreError,
    XObject,
    box_lengths,
    listing,
    periodic_grid,
    step,
)
from ..cosmology import as_cosmology
from ..encoding import encode

StorePath = str | os.PathLike[str]
Chunks = Mapping[str, int] | Literal["auto"] | None

_AS_STORED: Mapping[str, int] = {}


def write_store(
    obj: xr.Dataset | xr.DataTree,
    path: StorePath,
    *,
    overwrite: bool = False,
    title: str | None = None,
    level: int = 3,
    progress: bool = False,
) -> None:
    """Write a Dataset or DataTree to a Zarr v3 store.

    Dask-backed variables are computed chunk by chunk while they are written, and work that they
    share is done once.  Fields are kept as float32, compressed with zstd and checksummed, so that a
    flipped bit is an error and never a number.

    Parameters
    ----------
    obj : Dataset or DataTree
        A DataTree holds one version of the universe per group.  Attributes may hold text, numbers,
        booleans, None, lists and dicts.
    path : path or URL
        The directory to write.  A store that was not finished is started over.
    overwrite : bool
        Replace a whole store at ``path``.  The old one stays until the new one is whole.  A
        directory that is no cosmofields store is never touched.
    title : str, optional
        For people; by default the title that ``obj`` has, or the names of its variables.
    level : int
        Compression level, 1 to 9.
    progress : bool
        Show a progress bar on standard error.

    Raises
    ------
    StoreError
        If the path is taken, or ``obj`` holds nothing, or an attribute that JSON cannot hold.

    See Also
    --------
    open_store, describe
    """
    tree = _as_tree(obj)
    plain, encoding = encode(tree, level)
    target, final = _claim(path, overwrite)
    attrs = {**stamp(plain, path, title), "complete": False}
    pending = begin(plain, target, encoding, attrs)
    with ProgressBar(out=sys.stderr) if progress else nullcontext():
        pending.compute()
    finish(target)
    if final is not None:
        _replace(Path(target), final)


@overload
def open_store(path: StorePath, group: str, *, chunks: Chunks = ...) -> xr.Dataset: ...


@overload
def open_store(
    path: StorePath, group: None = None, *, chunks: Chunks = ...
) -> xr.Dataset | xr.DataTree: ...


def open_store(
    path: StorePath, group: str | None = None, *, chunks: Chunks = _AS_STORED
) -> xr.Dataset | xr.DataTree:
    """Open a store lazily.

    Parameters
    ----------
    path : path or URL
    group : str, optional
        Open this group alone, e.g. ``"true"``, as a Dataset.
    chunks : dict, "auto" or None
        Dask chunks; by default those of the store.  None opens without dask.

    Returns
    -------
    Dataset or DataTree
        A DataTree if the store has groups and none was asked for.  Attributes as they were
        written, with the store's provenance (``title``, ``history``, ``cosmofields``).

    Raises
    ------
    StoreError
        If there is no such path or group, if it is no Zarr store, was written by a newer format, or
        is not whole.  A damaged chunk raises ``ValueError`` (checksum) when it is computed.
    """
    root = _open_root(path)
    _check_version(root, path)
    _check_whole(root, path)
    tree = _open_tree(root, path, chunks)
    if group is None:
        return tree if tree.children else tree.to_dataset()
    name = "/" + group.strip("/")
    if name not in tree.groups:
        raise StoreError(f"No group {group!r} in the store '{path}'; it has {listing(tree.groups)}")
    return tree[name].to_dataset()


def describe(path: StorePath) -> str:
    """Text that says what a store holds, whole or not.

    Parameters
    ----------
    path : path or URL

    Returns
    -------
    str
        Per group the box facts and the variables (dims, dtype, units, chunks, sizes); whether the
        store is whole; where it came from.

    Raises
    ------
    StoreError
        As :func:`open_store`, but for a store that is not whole.
    """
    root = _open_root(path)
    _check_version(root, path)
    tree = _open_tree(root, path, None)
    arrays = dict(_arrays(root))
    stored = {name: array.nbytes_stored() for name, array in arrays.items()}
    made = _made(root)
    kind = f"cosmofields format {made['format_version']}" if made else "not written by cosmofields"
    lines = [
        f"{path}: Zarr v{root.metadata.zarr_format} store, {kind}",
        *_row("state", _state(root)),
        *_row("size", f"{_bytes(sum(stored.values()))} on disk"),
        *_row("title", tree.attrs.get("title")),
    ]
    for node in tree.subtree:
        ds = node.to_dataset()
        if not ds.variables:
            continue
        lines += ["", node.path]
        for key, value in summarize_facts(ds):
            lines += _row(key, value)
        for name in ds.data_vars:
            key = f"{node.path}/{name}".strip("/")
            lines += _row(str(name), _describe_array(ds[name], arrays[key], stored[key]))
        lines += _row("coordinates", listing(ds.coords))
        lines += _row("source", ds.attrs.get("source"))
        if not node.is_root:
            lines += _row("history", ds.attrs.get("history"))
    lines += ["", *_row("history", tree.attrs.get("history"))]
    lines += _row("written", {key: item for key, item in made.items() if key != "format_version"})
    return "\n".join(lines).rstrip() + "\n"


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


# --- writing ---


def _as_tree(obj: xr.Dataset | xr.DataTree) -> xr.DataTree:
    if isinstance(obj, xr.DataTree):
        return obj.copy()
    if isinstance(obj, xr.Dataset):
        return xr.DataTree(obj)
    hint = " Use da.to_dataset(name='density')." if isinstance(obj, xr.DataArray) else ""
    raise StoreError(f"A store holds a Dataset or a DataTree, not a {type(obj).__name__}.{hint}")


def stamp(tree: xr.DataTree, path: StorePath, title: str | None) -> dict[str, Any]:
    """Root attributes that say what a store is, when and by what it was written."""
    names = dict.fromkeys(str(name) for node in tree.subtree for name in node.data_vars)
    return {
        **step(tree.to_dataset(), f"write_store: {Path(path).name}"),
        "Conventions": CONVENTIONS,
        "title": title or tree.attrs.get("title") or f"cosmofields: {listing(names)}",
        "cosmofields": {
            **tree.attrs.get("cosmofields", {}),
            "format_version": FORMAT_VERSION,
            "package_version": _version("cosmofields"),
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "versions": {name: _version(name) for name in ("numpy", "dask", "xarray", "zarr")},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def begin(
    plain: xr.DataTree,
    target: str,
    encoding: Mapping[str, Any],
    attrs: dict[str, Any],
    *,
    overwrite: bool = False,
) -> Any:
    """Write metadata and what is not lazy; return the delayed writing of the rest."""
    # The stamp is on disk before anything else: what is interrupted can be told from what is whole.
    zarr.create_group(target, attributes=attrs, zarr_format=3, overwrite=overwrite)
    plain.attrs.update(attrs)
    return plain.to_zarr(
        target,
        mode="a",
        encoding=encoding,
        consolidated=False,
        write_inherited_coords=True,
        compute=False,
        zarr_format=3,
        # A chunk that is not there is then one that was lost, whatever it held.
        write_empty_chunks=True,
    )


def _claim(path: StorePath, overwrite: bool) -> tuple[str, Path | None]:
    """Where to write, and where to move the result if that is another place."""
    local = None if "://" in os.fspath(path) else Path(path).resolve()
    if local and (not local.exists() or (local.is_dir() and not any(local.iterdir()))):
        return str(local), None
    attrs = root_attrs(path)
    if local is None:
        if attrs is None:
            return os.fspath(path), None
        raise StoreError(f"'{path}' is taken. Remove it first, or choose another path")
    if attrs is None or "cosmofields" not in attrs:
        raise StoreError(
            f"'{path}' is taken by something that is no cosmofields store, so it is left alone. "
            "Choose another path, or remove it yourself"
        )
    if not attrs.get("complete"):
        if "plan" in attrs["cosmofields"]:
            raise StoreError(
                f"'{path}' holds a reconstruction that is not finished. Make the call that began "
                "it again, choose another path, or remove it yourself"
            )
        shutil.rmtree(local)
        return str(local), None
    if not overwrite:
        raise StoreError(
            f"The store '{path}' exists. Pass overwrite=True to replace it, or choose another path"
        )
    # The new data may be read, lazily, from the store that it replaces.
    beside = local.with_name(f".{local.name}.new")
    if beside.exists():
        if "cosmofields" not in (root_attrs(beside) or {}):
            raise StoreError(f"'{beside}' is in the way of the new store. Remove it yourself")
        shutil.rmtree(beside)
    return str(beside), local


def root_attrs(path: StorePath) -> dict[str, Any] | None:
    """Root attributes, or None where there is no Zarr group."""
    try:
        return dict(_open_root(path).attrs)
    except StoreError:
        return None


def _replace(new: Path, old: Path) -> None:
    aside = old.with_name(f".{old.name}.old")
    if aside.exists():  # a run was killed below, with the store that replaced it in place
        shutil.rmtree(aside)
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def finish(path: str) -> None:
    """Consolidate the metadata, and then say in one write that the store is whole."""
    with warnings.catch_warnings():
        # Without consolidated metadata it is the plain open that warns, every time.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        root = zarr.consolidate_metadata(path, zarr_format=3)
    root.update_attributes({"complete": True})


# --- reading ---


def _open_root(path: StorePath) -> zarr.Group:
    local = "://" not in os.fspath(path)
    if local and not Path(path).exists():
        raise StoreError(f"No store '{path}': there is nothing at that path")
    try:
        root = zarr.open_group(os.fspath(path), mode="r")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"'{path}' is no Zarr store ({error}). Expected a directory that write_store or "
            "xarray's to_zarr made; HDF5 boxes are opened with open_box"
        ) from error
    return root


def _check_version(root: zarr.Group, path: StorePath) -> None:
    found = _made(root).get("format_version", FORMAT_VERSION)
    if found > FORMAT_VERSION:
        raise StoreError(
            f"The store '{path}' has format version {found}; this cosmofields reads up to "
            f"{FORMAT_VERSION}. Upgrade: pip install -U cosmofields"
        )


def _made(root: zarr.Group) -> Mapping[str, Any]:
    """Our stamp, empty on a store that others wrote."""
    stamp: Any = root.attrs.get("cosmofields")
    return stamp if isinstance(stamp, Mapping) else {}


def _open_tree(root: zarr.Group, path: StorePath, chunks: Chunks) -> xr.DataTree:
    tree = xr.open_datatree(
        os.fspath(path),
        engine="zarr",
        chunks=chunks,
        consolidated=root.metadata.consolidated_metadata is not None,
    )
    # True of the store, and of nothing that is made from it.
    tree.attrs.pop("complete", None)
    for node in tree.subtree:
        text = [name for name, coord in node.coords.items() if coord.dtype.kind == "T"]
        if text:
            own = node.to_dataset(inherit=False)
            node.dataset = own.assign_coords(
                {name: own.coords[name].astype(object) for name in text if name in own.coords}
            )
    return tree


def _arrays(group: zarr.Group) -> Iterator[tuple[str, zarr.Array]]:
    for name, member in group.members(max_depth=None):
        if isinstance(member, zarr.Array):
            yield name, member


def _check_whole(root: zarr.Group, path: StorePath) -> None:
    state = _state(root)
    if state.startswith("not whole"):
        raise StoreError(f"The store '{path}' is {state}. Run the call that wrote it again")
    if state.startswith("damaged"):
        raise StoreError(f"The store '{path}' is {state}. Copy or write it again")


def _state(root: zarr.Group) -> str:
    """Whether a store is whole, in words; one without our stamp cannot say."""
    if "cosmofields" not in root.attrs:
        return "unknown (not stamped by cosmofields)"
    counts = {name: (array.nchunks_initialized, array.nchunks) for name, array in _arrays(root)}
    written = sum(n for n, _ in counts.values())
    progress = f"{written} of {sum(n for _, n in counts.values())} chunks"
    lacking = listing(f"{name} {a} of {b}" for name, (a, b) in counts.items() if a < b)
    if lacking:
        progress += f" ({lacking})"
    if not root.attrs.get("complete"):
        return f"not whole: written up to {progress}"
    return f"damaged: there are {progress}" if lacking else "whole"


# --- text ---


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


def _describe_array(da: xr.DataArray, array: zarr.Array, stored: int) -> str:
    dims = listing(f"{dim} {size}" for dim, size in da.sizes.items())
    chunks = " x ".join(map(str, array.chunks)) or "one value"
    units = f" {da.attrs['units']}" if "units" in da.attrs else ""
    return (
        f"({dims}) {array.dtype}{units}, chunks {chunks}, "
        f"{_bytes(array.nbytes)} ({_bytes(stored)} on disk)"
    )


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
