"""Stores written: the stamp first, then chunks, and last the word that it is whole."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dask
import xarray as xr
import zarr
from dask.diagnostics.progress import ProgressBar
from zarr.abc.store import Store
from zarr.core.sync import sync

from ..conventions import CONVENTIONS, FORMAT_VERSION, StoreError, listing, step
from ..encoding import encode
from .locks import alone_within, check_alone
from .places import Place, StorePath, beside, check_writable, place_of, reach, session
from .reading import root_attrs
from .vetting import digest, documents

# A file that is not finished, as zarr's local store names it.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")

# What Icechunk puts into a folder, of its formats 1 and 2.
_REPOSITORY = {
    *("chunks", "manifests", "refs", "snapshots", "transactions"),
    *("config.yaml", "overwritten", "repo"),
}

README = """\
Zarr store of format 3, made by cosmofields. To read it, no more than xarray and zarr is needed:
    import xarray as xr
    tree = xr.open_datatree("PATH", engine="zarr", chunks={})
For a .zip file, put zarr.storage.ZipStore("PATH", mode="r") in the place of "PATH"; for a URL of an
object store, storage_options={"anon": True} behind it. Each variable says its units and dims; the
attributes of its group say the box (Mpc/h), the redshift and the cosmology. `complete` is true if
the store is whole. Chunks end in their CRC-32C: a damaged one is an error when it is read, and
`cosmofields verify PATH` reads them all.
"""


def write_store(
    obj: xr.Dataset | xr.DataTree,
    path: StorePath,
    *,
    overwrite: bool = False,
    title: str | None = None,
    authors: str | Sequence[str] | None = None,
    license: str | None = None,
    citation: str | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
    level: int = 3,
    storage_options: Mapping[str, Any] | None = None,
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
        Where to write: a folder, ``box.zarr.zip``, ``s3://bucket/box.zarr``, ``box.icechunk``; see
        :func:`open_store`.  A store that was not finished is started over.
    overwrite : bool
        Replace a whole store at ``path``.  The old one stays until the new one is whole; in a
        repository it stays as an earlier version.  An object store cannot do so, and refuses.
        What is no cosmofields store is never touched.
    title : str, optional
        For people; by default the title that ``obj`` has, or the names of its variables.
    authors : str or sequence of str, optional
        Who made it.
    license : str, optional
        What others may do with it, e.g. ``"CC-BY-4.0"``.
    citation : str, optional
        What to cite: a reference, a DOI.
    inputs : sequence of paths, optional
        Files from which ``obj`` was made: their names and SHA-256 are kept.  Of a store that is a
        folder, that of its metadata.
    level : int
        Compression level, 1 to 9.
    storage_options : dict, optional
        Of an object store; see :func:`open_store`.
    progress : bool
        Show a progress bar on standard error.

    Raises
    ------
    StoreError
        If the path is taken, or another call writes it, or the disk is full or read-only, or
        ``obj`` holds nothing, or an attribute that JSON cannot hold.

    See Also
    --------
    open_store, verify
    """
    tree = _as_tree(obj)
    facts = {
        "title": title,
        "authors": [authors] if isinstance(authors, str) else authors and [*authors],
        "license": license,
        "citation": citation,
    }
    tree.attrs.update({key: value for key, value in facts.items() if value})
    plain, encoding = encode(tree, level)
    place = place_of(path, storage_options)
    check_writable(place)
    attrs = {**stamp(plain, place, title), "complete": False}
    if inputs:
        attrs["cosmofields"]["inputs"] = {Path(name).name: _sha256(name) for name in inputs}
    with alone_within(place):
        if place.kind == "icechunk":
            _commit(plain, place, encoding, attrs, overwrite=overwrite, progress=progress)
            return
        target, replaces = _claim(place, overwrite)
        pending = begin(plain, target, encoding, attrs)
        with ProgressBar(out=sys.stderr) if progress else nullcontext():
            pending.compute()
        check_alone(place)
        finish(target)
        if place.kind == "zip":
            _pack(Path(target.root), Path(place.root))
        elif replaces and place.local:
            _replace(Path(target.root), place.local)


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
    made = tree.attrs.get("cosmofields")
    made = dict(made) if isinstance(made, Mapping) else {}
    made.pop("metadata_sha256", None)  # of the store that it was read from
    return {
        **step(tree.to_dataset(), f"write_store: {Path(os.fspath(place_of(path).root)).name}"),
        "Conventions": CONVENTIONS,
        "title": title or tree.attrs.get("title") or f"cosmofields: {listing(names)}",
        "README": README,
        "cosmofields": {
            **made,
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


def _sha256(path: str | os.PathLike[str]) -> str:
    file = Path(path) / "zarr.json" if Path(path).is_dir() else Path(path)
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"inputs: '{path}' cannot be read ({error.strerror})") from error


def begin(
    plain: xr.DataTree,
    target: StorePath | Store,
    encoding: Mapping[str, Any],
    attrs: dict[str, Any],
    *,
    overwrite: bool = False,
) -> Any:
    """Write metadata and what is not lazy; return the delayed writing of the rest."""
    store = target if isinstance(target, Store) else reach(place_of(target), write=True)
    # The stamp is there before anything else: what is interrupted can be told from what is whole.
    zarr.create_group(store, attributes=attrs, zarr_format=3, overwrite=overwrite)
    plain.attrs.update(attrs)
    return plain.to_zarr(
        store,
        mode="a",
        encoding=encoding,
        consolidated=False,
        write_inherited_coords=True,
        compute=False,
        zarr_format=3,
        # A chunk that is not there is then one that was lost, whatever it held.
        write_empty_chunks=True,
    )


def finish(target: StorePath | Store) -> None:
    """Consolidate the metadata, and then say in one write that the store is whole."""
    place = Place(str(target), "fsspec", "") if isinstance(target, Store) else place_of(target)
    store = target if isinstance(target, Store) else reach(place, write=True)
    if store.supports_consolidated_metadata:  # Icechunk has its own way to read them at once
        with warnings.catch_warnings():
            # Without consolidated metadata it is the plain open that warns, every time.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(store, zarr_format=3)
    root = zarr.open_group(store, mode="r+", zarr_format=3)
    made: dict[str, Any] = dict(root.attrs["cosmofields"])  # type: ignore[arg-type]
    made["metadata_sha256"] = digest(documents(store, place)[2])
    root.update_attributes({"complete": True, "cosmofields": made})


# --- what is there already ---


def _claim(place: Place, overwrite: bool) -> tuple[Place, bool]:
    """Where to write, and whether the result then replaces what is at the place."""
    local = place.local
    attrs = root_attrs(place)
    if local and not local.exists():
        _bring_back(local)
        attrs = root_attrs(place)
    if attrs is None and is_free(place):
        if local and local.exists():
            sweep(local)
        return (_fresh(place) if place.kind == "zip" else place), False
    if attrs is None or "cosmofields" not in attrs:
        raise StoreError(
            f"'{place}' is taken by something that is no cosmofields store, so it is left alone. "
            "Choose another path, or remove it yourself"
        )
    made = attrs["cosmofields"]
    if attrs.get("complete") is not True and place.kind != "zip":
        if isinstance(made, Mapping) and "plan" in made:
            raise StoreError(
                f"'{place}' holds a reconstruction that is not finished. Make the call that began "
                "it again, choose another path, or remove it yourself"
            )
        clear(place)
        return place, False
    if not local:
        raise StoreError(
            f"'{place}' is taken, and an object store cannot replace a store in one step. Remove "
            "it first, choose another path, or write to a repository (NAME.icechunk), which keeps "
            "every version"
        )
    if not overwrite:
        raise StoreError(
            f"The store '{place}' exists. Pass overwrite=True to replace it, or choose another path"
        )
    # The new data may be read, lazily, from the store that it replaces.
    return _fresh(place), True


def is_free(place: Place) -> bool:
    """Whether there is nothing at all at a place, or what a call left that died at once."""
    if place.local:
        there = place.local
        return not there.exists() or (there.is_dir() and not any(map(_is_content, there.iterdir())))
    return sync(reach(place).is_empty(""))


def _is_content(path: Path) -> bool:
    return not _PARTIAL.search(path.name)


def clear(place: Place) -> None:
    """Remove a store, its stamp last: what a call that is killed leaves is known as one."""
    if place.local:
        for path in place.local.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "zarr.json":
                path.unlink()
        shutil.rmtree(place.local)
        return
    store = reach(place, write=True)
    for name in sync(_names(store)):
        if name != "zarr.json":
            sync(store.delete_dir(name))
    sync(store.delete_dir(""))


async def _names(store: Store) -> list[str]:
    return [name.rstrip("/") async for name in store.list_dir("")]


def sweep(folder: Path) -> None:
    """Remove the files that a process that was killed had begun."""
    for path in folder.rglob("*.partial"):
        if _PARTIAL.search(path.name):
            path.unlink(missing_ok=True)


def _fresh(place: Place) -> Place:
    """An empty folder beside a store, for the one that will replace it."""
    new = beside(place, f".{Path(place.root).name}.new")
    there = Path(new.root)
    if there.exists():
        if "cosmofields" not in (root_attrs(new) or {}) and not is_free(new):
            raise StoreError(f"'{there}' is in the way of the new store. Remove it yourself")
        clear(new)
    return new


def _bring_back(path: Path) -> None:
    """Put the old store back, if a call was killed between the two steps of replacing it."""
    aside = path.with_name(f".{path.name}.old")
    if aside.exists() and "cosmofields" in (root_attrs(aside) or {}):
        aside.rename(path)


def _replace(new: Path, old: Path) -> None:
    """Put the new store in the place of the old one, in one step where the system has one."""
    if _exchange(new, old):
        clear(place_of(new))
        return
    aside = old.with_name(f".{old.name}.old")
    if aside.exists():  # a run was killed below, with the store that replaced it in place
        shutil.rmtree(aside)
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders; False if this system, or this file system, cannot in one step."""
    if os.name != "posix":
        return False
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if swap(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _pack(folder: Path, path: Path) -> None:
    """Make a zip file of a whole store; it comes to its place when it is whole itself."""
    part = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as packed:
        # The metadata first: a reader on a server finds them together.
        for file in sorted(folder.rglob("*"), key=lambda file: (file.name != "zarr.json", file)):
            if file.is_file():
                packed.write(file, file.relative_to(folder).as_posix())
    part.replace(path)
    shutil.rmtree(folder)


def _commit(
    plain: xr.DataTree,
    place: Place,
    encoding: Mapping[str, Any],
    attrs: dict[str, Any],
    *,
    overwrite: bool,
    progress: bool,
) -> None:
    """Write the next version of a repository, which is there for others once it is whole."""
    there = root_attrs(place)
    foreign = there is not None and "cosmofields" not in there
    if place.local and place.local.is_dir():
        foreign = foreign or not {path.name for path in place.local.iterdir()} <= _REPOSITORY
    elif place.local and place.local.exists():
        foreign = True
    if foreign:
        raise StoreError(
            f"'{place}' is taken by something that is no cosmofields store, so it is left alone. "
            "Choose another path, or remove it yourself"
        )
    if there is not None and not overwrite:
        raise StoreError(
            f"The repository '{place}' holds a store. Pass overwrite=True to add a version with "
            "the new one, or choose another path"
        )
    opened = session(place, write=True)
    pending = begin(plain, opened.store, encoding, attrs, overwrite=True)
    # What is written belongs to the session of this process, and not to workers elsewhere.
    with dask.config.set(scheduler="threads"):
        with ProgressBar(out=sys.stderr) if progress else nullcontext():
            pending.compute()
    finish(opened.store)
    check_alone(place)
    opened.commit(f"write_store: {attrs['title']}")
