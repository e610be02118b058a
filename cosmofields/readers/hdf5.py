"""HDF5 files and Zarr stores as tables: every dataset with its path, none of its values."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conventions import StoreError
from ..store import check_whole, look, options_for, place_of
from .parts import UNREADABLE, Part, Table, check_declared, io_extra, plain

DEPTH, ITEMS = 8, 20_000  # a file of more groups than that is no catalogue


def is_zarr(path: str) -> bool:
    """Whether a path is read as a Zarr store."""
    names = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
    if "://" in path or any((Path(path) / name).is_file() for name in names):
        return True
    kind = place_of(path).kind
    if kind == "zip" and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as file:
                return any(name in file.NameToInfo for name in names)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise StoreError(
                f"{path!r} cannot be read as a zip file ({error}): truncated or damaged"
            ) from error
    return kind == "icechunk"


def scan_hdf5(path: str) -> Table:
    """Attributes of each group, and all datasets; fields of a compound one stand for themselves."""
    import h5py

    attrs: dict[str, dict[str, Any]] = {}
    parts: dict[str, Part] = {}
    try:
        held = Path(path).stat().st_size
        with h5py.File(path, "r") as file:
            # By hand and not by visititems, which a file can lead as deep as it likes.
            groups = [("", file)]
            while groups:
                base, group = groups.pop()
                attrs[base] = {key: plain(group.attrs[key]) for key in group.attrs}
                for key in group:
                    name = f"{base}/{key}".lstrip("/")
                    # What lies elsewhere is not read: a link may name any file of this machine.
                    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                        continue
                    item = group[key]
                    if isinstance(item, h5py.Dataset):
                        parts.update(_parts_of(path, name, item, held))
                        attrs[name] = {k: plain(item.attrs[k]) for k in item.attrs}
                    elif name.count("/") < DEPTH and isinstance(item, h5py.Group):
                        groups.append((name, item))
                    if len(attrs) > ITEMS:
                        raise StoreError(f"{path!r} holds more than {ITEMS} groups and datasets")
    except StoreError:
        raise
    except UNREADABLE as error:
        raise StoreError(
            f"{path!r} cannot be read as HDF5 ({error}): truncated, or another format"
        ) from error
    return Table(path, attrs, parts)


def _parts_of(path: str, name: str, item: Any, held: int) -> dict[str, Part]:
    try:
        dtype = item.dtype
    except TypeError:  # numpy has no integers of 6 bytes, as some codes use for IDs
        return {}
    if item.shape is None:  # a dataset without a dataspace
        return {}
    if item.external:
        raise StoreError(f"{path!r}: {name} takes its values from other files, which is refused")
    if item.is_virtual:
        _check_virtual(path, name, item)
    else:
        # Unwritten chunks are allowed, as long as a sparse dataset cannot fill the memory.
        check_declared(path, name, item.nbytes, held)
    chunk = item.chunks[0] if item.chunks else 1
    if dtype.names is None:
        return {name: Part(path, name, item.shape, dtype, chunk, read_hdf5)}
    return {
        f"{name}/{field}": Part(
            path, f"{name}/{field}", item.shape + dtype[field].shape, dtype[field].base, chunk,
            read_hdf5, (name, field),
        )
        for field in dtype.names
    }  # fmt: skip


def _check_virtual(path: str, name: str, item: Any) -> None:
    """See that a virtual dataset is made of plain ones, of files that lie beside its own.

    One that is made of itself, HDF5 follows until the process dies; a file that is missing, it
    takes for fill values.
    """
    import h5py

    folder = Path(path).resolve().parent
    for source in {(one.file_name, one.dset_name) for one in item.virtual_sources()}:
        where = (folder / source[0]).resolve()
        inside = where.is_relative_to(folder) and where != Path(path).resolve()
        if not inside or not where.is_file():
            raise StoreError(
                f"{path!r}: {name} takes its values from {source[0]!r}, which is no other file "
                "beside it"
            )
        with h5py.File(where, "r") as file:
            plain = file.get(source[1])
            if (
                not isinstance(plain, h5py.Dataset)
                or plain.is_virtual
                or plain.external
                or Path(plain.file.filename) != where
            ):
                raise StoreError(
                    f"{path!r}: {name} takes its values from {source[1]!r} in {source[0]!r}, which "
                    "holds no such values itself"
                )


def read_hdf5(part: Part, window: Any) -> NDArray[Any]:
    """Rows of a dataset, or of one field of it."""
    import h5py

    with h5py.File(part.path, "r") as file:
        name, field = part.where or (part.name, None)
        item = file[name]
        how = item.id.get_create_plist()
        codes = [how.get_filter(i)[0] for i in range(how.get_nfilters())]
        if not all(map(h5py.h5z.filter_avail, codes)):  # Blosc, say, which h5py learns from this
            io_extra("hdf5plugin", part.path)
        return np.asarray((item if field is None else item.fields(field))[window])


def scan_zarr(path: str, storage: Mapping[str, Any] | None = None) -> Table:
    """Attributes of each group, and all arrays."""
    found = look(place_of(path, options_for(path, storage)))
    check_whole(found)
    attrs = {name: node.get("attributes", {}) for name, node in found.documents.items()}
    parts = {}
    for name, item in found.arrays.items():
        chunk = item.chunks[0] if item.chunks else 1
        # The array as it is open, which can be sent: opened anew by its path, it may be another.
        parts[name] = Part(path, name, item.shape, item.dtype, chunk, read_zarr, (item,))
    return Table(path, attrs, parts)


def read_zarr(part: Part, window: Any) -> NDArray[Any]:
    """Rows of an array of a store."""
    return np.asarray(part.where[0][window])
