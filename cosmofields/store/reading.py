"""Stores opened: looked at, refused or made into a Dataset or a DataTree."""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, ObjectStore, ZipStore

from ..conventions import FORMAT_VERSION, CosmofieldsError, StoreError, listing
from .decoding import decoding
from .files import CHUNK_BYTES
from .opened import Opened, above, sizes_of
from .places import Place, StorePath, brief, failures, place_of, reach
from .vetting import Documents, digest, documents, read_json

Chunks = Mapping[str, int] | Literal["auto"] | None

_AS_STORED: Mapping[str, int] = {}
LEDGER = "ledger"  # group of a store that is filled in stages, until it is whole
OF_THE_STORE = ("complete", "README")  # attributes that what is made from a store does not have
_CHUNK = re.compile(r"(?:c[/.]?)?((?:\d{1,15}[/.])*\d{1,15})?")
_TEXT = 2**27  # bytes of a chunk of text, decoded


@overload
def open_store(
    path: StorePath,
    group: str,
    *,
    chunks: Chunks = ...,
    storage_options: Mapping[str, Any] | None = ...,
) -> xr.Dataset: ...


@overload
def open_store(
    path: StorePath,
    group: None = None,
    *,
    chunks: Chunks = ...,
    storage_options: Mapping[str, Any] | None = ...,
) -> xr.Dataset | xr.DataTree: ...


def open_store(
    path: StorePath,
    group: str | None = None,
    *,
    chunks: Chunks = _AS_STORED,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.Dataset | xr.DataTree:
    """Open a store lazily, wherever it lies; metadata are read, and coordinates, and no field.

    Parameters
    ----------
    path : path or URL
        A folder ``box.zarr``; a file ``box.zarr.zip``; ``s3://bucket/box.zarr`` (``gs://``,
        ``az://``); ``https://host/box.zarr``; an Icechunk repository ``box.icechunk``, in a folder
        or at ``s3://``, or a version of it by tag, branch or snapshot: ``box.icechunk@v1``.  A zip
        file may lie on a server as well.
    group : str, optional
        Open this group alone, e.g. ``"true"``, as a Dataset.
    chunks : dict, "auto" or None
        Dask chunks; by default those of the store.  None opens without dask.
    storage_options : dict, optional
        Of an object store: ``anon=True`` for a public bucket, ``endpoint_url``, ``region``,
        ``key``, ``secret``, ``token``, and what else obstore (``box.icechunk``: Icechunk) takes.
        Default: the environment, ``AWS_ACCESS_KEY_ID`` and the like.

    Returns
    -------
    Dataset or DataTree
        A DataTree if the store has groups and none was asked for.  Attributes as they were
        written, with the store's provenance (``title``, ``history``, ``cosmofields``).

    Raises
    ------
    StoreError
        If there is no such path or group, if it is no Zarr store, was written by a newer format, is
        not whole, or is one that would run code, fill memory or lead out of its place.  When it is
        computed, if a chunk is lost or damaged.
    MissingExtraError
        If a URL or repository needs the extra `share`.

    See Also
    --------
    verify : reads every chunk, and names those that are damaged or lost.
    """
    found = look(place_of(path, storage_options))
    check_whole(found)
    tree = open_tree(found, chunks)
    if group is None:
        return tree if tree.children else tree.to_dataset()
    name = "/" + group.strip("/")
    if name not in tree.groups:
        raise StoreError(f"No group {group!r} in the store '{path}'; it has {listing(tree.groups)}")
    return tree[name].to_dataset()


@dataclass(frozen=True)
class Found:
    """A store that was looked at: nothing in it is asked for more than it says here."""

    place: Place
    store: Store
    root: zarr.Group
    zarr_format: Literal[2, 3]
    consolidated: bool
    documents: Documents
    arrays: dict[str, zarr.Array]

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root."""
        return dict(self.documents[""].get("attributes", {}))

    @property
    def made(self) -> dict[str, Any]:
        """Our stamp, empty on a store that others wrote."""
        return dict(self.attrs.get("cosmofields", {}))


def look(place: Place) -> Found:
    """Look at a store, whole or not.

    Raises
    ------
    StoreError
        As :func:`open_store`, but for a store that is not whole.
    """
    if place.local and not place.local.exists():
        hint = ""
        aside = place.local.with_name(f".{place.local.name}.old")
        if aside.exists():
            hint = f"; a call that was to replace it was stopped, and the old one is '{aside}'"
        raise StoreError(f"No store '{place}': there is nothing at that path{hint}")
    if place.kind == "folder" and place.local and place.local.is_file():
        raise StoreError(
            f"'{place}' is no Zarr store: it is a file. Expected a directory, or a .zip file, that "
            "write_store or xarray's to_zarr made; other files are for open_box or open_catalog"
        )
    if place.local and not (place.local.is_file() or place.local.is_dir()):
        raise StoreError(f"'{place}' is neither a file nor a folder")
    store = reach(place)
    try:
        with decoding():
            return _look(place, store)
    except CosmofieldsError:
        raise
    # A stranger's metadata can be wrong in as many ways as the libraries have errors.
    except Exception as error:
        raise StoreError(
            f"'{place}' cannot be opened as a Zarr store ({type(error).__name__}: {brief(error)})"
        ) from error


def _look(place: Place, store: Store) -> Found:
    zarr_format, consolidated, found = documents(store, place)
    attrs = found[""].get("attributes", {})
    made = attrs.get("cosmofields", {})
    if not isinstance(made, dict) or type(made.get("format_version", 1)) is not int:
        raise StoreError(
            f"'{place}': its attribute `cosmofields` is {str(made)[:100]!r}; expected a dict with "
            "the format_version"
        )
    if made.get("format_version", 1) > FORMAT_VERSION:
        raise StoreError(
            f"The store '{place}' has format version {made['format_version']}; this cosmofields "
            f"reads up to {FORMAT_VERSION}. Upgrade: pip install -U cosmofields"
        )
    # Only metadata are read of this one, to know what is asked for of the next.
    plain = Opened(store, place, {}, False, "")
    root = zarr.open_group(plain, mode="r", zarr_format=zarr_format, use_consolidated=consolidated)
    arrays = {
        name: member
        for name, member in root.members(max_depth=None)
        if isinstance(member, zarr.Array)
    }
    nbytes = {name: _chunk_bytes(array) for name, array in arrays.items()}
    for name, n in nbytes.items():
        if n > CHUNK_BYTES:
            raise StoreError(f"'{place}': a chunk of `{name}` has {n:.3g} bytes; at most 4 GB")
    chunks = {
        name: (math.prod(array.shards or array.chunks), nbytes[name])
        for name, array in arrays.items()
    }
    store = Opened(
        store, place, sizes_of(found, chunks), attrs.get("complete") is True, digest(found), nbytes
    )
    root = zarr.open_group(store, mode="r", zarr_format=zarr_format, use_consolidated=consolidated)
    arrays = {name: root[name] for name in arrays}  # type: ignore[misc]
    return Found(place, store, root, zarr_format, consolidated, found, arrays)


def _chunk_bytes(array: zarr.Array) -> int:
    if array.dtype.kind in "OT":
        return _TEXT
    return math.prod(array.shards or array.chunks) * array.dtype.itemsize


def open_tree(found: Found, chunks: Chunks) -> xr.DataTree:
    """The groups of a store as xarray has them."""
    try:
        with decoding():
            tree = xr.open_datatree(
                found.store,  # type: ignore[arg-type]
                engine="zarr",
                chunks=chunks,
                consolidated=found.consolidated,
                zarr_format=found.zarr_format,
            )
    except CosmofieldsError:
        raise
    except Exception as error:  # as above: of decoding attributes
        raise StoreError(
            f"'{found.place}' cannot be opened by xarray ({type(error).__name__}: {brief(error)})"
        ) from error
    for name in OF_THE_STORE:
        tree.attrs.pop(name, None)
    for node in tree.subtree:
        text = [name for name, coord in node.coords.items() if coord.dtype.kind == "T"]
        if text:
            own = node.to_dataset(inherit=False)
            node.dataset = own.assign_coords(
                {name: own.coords[name].astype(object) for name in text if name in own.coords}
            )
    return tree


def root_attrs(path: StorePath) -> dict[str, Any] | None:
    """Root attributes, whatever the rest is like, or None where there is no Zarr group."""
    place = place_of(path)
    if place.local and not place.local.exists():
        return None
    try:
        store = reach(place)
        for key in ("zarr.json", ".zgroup"):
            root = read_json(store, key, place)
            if root is not None and root.get("node_type", "group") == "group":
                attrs = root.get("attributes") or read_json(store, ".zattrs", place) or {}
                return attrs if isinstance(attrs, dict) else {}
    except failures():  # what cannot be read is no group that we know
        pass
    return None


# --- whole or not ---


def check_whole(found: Found) -> None:
    """Refuse a store of ours that does not say that it is whole."""
    state = state_of(found)
    if state.startswith("not whole"):
        raise StoreError(f"The store '{found.place}' is {state}. Run the call that wrote it again")


def state_of(found: Found) -> str:
    """Whether a store is whole, in words; one without our stamp cannot say.

    A store says so itself, in the one write that ends it, and then a chunk that is not there is
    an error when it is read: nothing is listed, which takes minutes of an object store.
    """
    if "cosmofields" not in found.attrs:
        return "unknown (not stamped by cosmofields)"
    if found.attrs.get("complete") is True:
        return "whole"
    there = stored(found)
    if there is None:
        return "not whole"
    fields = {name: array for name, array in found.arrays.items() if not in_ledger(name)}
    counts = {name: (there[name].n, chunks_of(array)) for name, array in fields.items()}
    progress = f"{sum(n for n, _ in counts.values())} of {sum(n for _, n in counts.values())}"
    lacking = listing(f"{name} {a} of {b}" for name, (a, b) in counts.items() if a < b)
    return f"not whole: written up to {progress} chunks" + (f" ({lacking})" if lacking else "")


def in_ledger(name: str) -> bool:
    """Whether an array counts the tasks of a store that is being filled."""
    return name.partition("/")[0] == LEDGER


def chunks_of(array: zarr.Array) -> int:
    """Number of files or objects of an array."""
    return math.prod(grid_of(array))


def grid_of(array: zarr.Array) -> tuple[int, ...]:
    """Number of files or objects along each axis."""
    pieces = array.shards or array.chunks
    return tuple(-(-n // piece) for n, piece in zip(array.shape, pieces, strict=True))


@dataclass
class Stored:
    """Chunks of an array that are there, and their bytes."""

    n: int = 0
    nbytes: int = 0
    beyond: int = 0
    """Chunks beyond the shape of the array."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Of the chunks, counted in C order."""


def stored(found: Found) -> dict[str, Stored] | None:
    """What there is of each array, in one listing; None where nothing can be listed."""
    keys = _keys(found)
    if keys is None:
        return None
    counts = {name: Stored() for name in found.arrays}
    grids = {name: grid_of(array) for name, array in found.arrays.items()}
    for key, nbytes in keys:
        name = next((up for up in above(key) if up in counts), None)
        # As Zarr's format 3 names a chunk, c/0/1, or format 2, 0.1; of a single value, c or 0.
        match = _CHUNK.fullmatch(key[len(name) + 1 :]) if name else None
        if name is None or match is None:
            continue
        at = [int(i) for i in re.split("[/.]", match[1])] if match[1] else []
        if any(i >= n for i, n in zip(at, grids[name], strict=False)):
            counts[name].beyond += 1
        else:
            counts[name].n += 1
            counts[name].nbytes += nbytes
            number = 0
            for i, n in zip(at, grids[name], strict=False):
                number = number * n + i
            counts[name].numbers.append(number)
    return counts


def _keys(found: Found) -> Iterator[tuple[str, int]] | None:
    """Keys of a store with their sizes."""
    assert isinstance(found.store, Opened)
    store = found.store._store
    if isinstance(store, LocalStore):
        return _files(store.root)
    if isinstance(store, ZipStore):
        return ((info.filename, info.file_size) for info in store._zf.infolist())
    if isinstance(store, ObjectStore) and found.place.kind == "objects":
        import obstore

        return (
            (item["path"], item["size"]) for batch in obstore.list(store.store) for item in batch
        )
    return None


def _files(root: Path) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(root):  # which follows no links
        for name in names:
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path.lstat().st_size
