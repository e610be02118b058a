"""Where a store lies: a folder, a zip file, an object store, a web server, an Icechunk repository.

The path says which: ``box.zarr``, ``box.zarr.zip``, ``s3://bucket/box.zarr``,
``https://host/box.zarr``, ``box.icechunk``; after an ``@``, a version of a repository.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import re
import sys
import weakref
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore, ZipStore

from ..conventions import CosmofieldsError, StoreError, require_extra
from .files import check_repository

Kind = Literal["folder", "zip", "icechunk", "objects", "web", "fsspec"]

_OBJECTS = ("s3", "gs", "az")
_WEB = ("http", "https")
# The words of s3fs, so that one dict serves cosmofields and plain xarray.
_WORDS = {
    "endpoint_url": "endpoint",
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
}
# A server that is not there is said to be so, and not after three minutes.
_RETRY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


@dataclass(frozen=True)
class Place:
    """A path, taken apart."""

    name: str
    """As it was given, for messages."""
    kind: Kind
    root: str
    """Absolute path, or URL, without a version."""
    version: str | None = None
    """Tag, branch or snapshot of a repository."""
    options: str = "{}"
    """Storage options, as JSON."""

    def __str__(self) -> str:
        return self.name

    @property
    def local(self) -> Path | None:
        """The path of what lies on this machine."""
        return None if "://" in self.root else Path(self.root)

    def given(self) -> dict[str, Any]:
        """The storage options."""
        return dict(json.loads(self.options))


StorePath = str | os.PathLike[str] | Place


def place_of(path: StorePath, storage_options: Mapping[str, Any] | None = None) -> Place:
    """Take a path apart.

    Parameters
    ----------
    path : path, URL or Place
    storage_options : dict, optional
        How to reach an object store or a web server; see :func:`~cosmofields.open_store`.

    Raises
    ------
    StoreError
        If there is nothing such as that URL, or an option is not plain.
    """
    if isinstance(path, Place):
        return path
    name = os.fspath(path)
    root = name.removeprefix("file://").rstrip("/") or name
    version = None
    if found := re.fullmatch(r"(.+\.icechunk)@([^/]+)", root):
        root, version = found.groups()
    scheme = root.partition("://")[0] if "://" in root else ""
    try:
        options = json.dumps(dict(storage_options or {}), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"storage_options={storage_options!r}: {error}; expected text, numbers and booleans, "
            "such as {'anon': True}"
        ) from error
    if not scheme and options != "{}":
        raise StoreError(f"storage_options are for URLs; {name!r} is a path on this machine")
    if "\0" in root:
        raise StoreError(f"{name!r} is no path: it holds a NUL")
    if not scheme:
        root = os.path.realpath(root)
    kind: Kind = "folder" if not scheme else "fsspec"
    if scheme in _OBJECTS:
        kind = "objects"
    elif scheme in _WEB:
        kind = "web"
    if root.endswith(".icechunk") and kind in ("folder", "objects"):
        kind = "icechunk"
    elif root.endswith(".zip") and kind in ("folder", "objects", "web") and not Path(root).is_dir():
        kind = "zip"
    return Place(name, kind, root, version, options)


def options_for(path: StorePath, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The storage options, where a path is one that takes them: for a call of several paths."""
    scheme, url, _ = str(path).partition("://")
    return options if url and scheme not in (*_WEB, "file") else None


def beside(place: Place, name: str) -> Place:
    """A folder of that name in the folder where a local store lies."""
    return replace(place, kind="folder", root=str(Path(place.root).with_name(name)))


def reach(place: Place, *, write: bool = False) -> Store:
    """The Zarr store at a place.

    Raises
    ------
    StoreError
        If it cannot be reached, or not written.
    MissingExtraError
        If a library of the extra `share` is missing.
    """
    if write:
        check_writable(place)
    try:
        match place.kind:
            case "folder":
                return LocalStore(place.root, read_only=not write)
            case "zip":
                return _LocalZip(place.root, mode="r") if place.local else _RemoteZip(place)
            case "icechunk":
                return session(place, write=write).store
            case "fsspec":
                options = place.given() or None
                return FsspecStore.from_url(place.root, options, read_only=not write)
            case _:
                return ObjectStore(objects(place), read_only=not write)
    except CosmofieldsError:
        raise
    except failures(TypeError, ValueError) as error:
        raise StoreError(f"'{place}' cannot be reached: {brief(error)}") from error


def check_writable(place: Place) -> None:
    """Refuse to write where that cannot be done."""
    if place.kind == "web":
        raise StoreError(
            f"'{place}' is on a web server, which is for reading. Write the store to a folder and "
            "put that on the server, or write to s3://"
        )
    if place.kind == "zip" and not place.local:
        raise StoreError(f"'{place}': a zip file is written on this machine, and then copied there")
    if place.version is not None:
        raise StoreError(
            f"'{place}' is one version of a repository, and stays as it is. Write to it without "
            f"'@{place.version}': that makes the next version"
        )


def objects(place: Place, url: str | None = None) -> Any:
    """The obstore store at a place, or at another URL with its options."""
    return _objects(url or place.root, place.options)


@functools.lru_cache(maxsize=64)
def _objects(url: str, options: str) -> Any:
    """One client, with its connections, for all tasks of a process."""
    obstore = require_extra("obstore.store", "share", f"{url.partition('://')[0]}://")
    given = json.loads(options)
    config = {_WORDS.get(key, key): value for key, value in given.items()}
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    plain = str(endpoint or url).startswith("http://")
    client: Any = {"allow_http": True} if plain else {}
    if url.startswith(tuple(f"{scheme}://" for scheme in _WEB)):
        if given:
            raise StoreError(f"storage_options are for object stores; {url!r} is a web address")
        return obstore.HTTPStore.from_url(url, client_options=client, retry_config=_RETRY)
    return obstore.from_url(url, config=config, client_options=client, retry_config=_RETRY)


def session(place: Place, *, write: bool = False) -> Any:
    """A session of an Icechunk repository: to be read at one version, or to be committed.

    Raises
    ------
    StoreError
        If there is no such repository (to be read), or no such version.
    """
    icechunk = require_extra("icechunk", "share", f"'{place}'")
    if "ICECHUNK_LOG" not in os.environ:
        # It warns of commits at once to a folder; `alone` lets one writer through.
        icechunk.set_logs_filter("error")
    there = place.local is None or place.local.is_dir()
    if place.local and there:
        check_repository(place.local, place)
    storage = _storage(icechunk, place) if there or write else None
    if storage is None or not icechunk.Repository.exists(storage):
        if write:
            return icechunk.Repository.create(storage).writable_session("main")
        raise StoreError(f"No store '{place}': there is no Icechunk repository at that path")
    repository = icechunk.Repository.open(storage)
    if write:
        return repository.writable_session("main")
    if place.version is None:
        return repository.readonly_session(branch="main")
    for how in ("tag", "branch", "snapshot_id"):
        try:
            return repository.readonly_session(**{how: place.version})
        except (icechunk.IcechunkError, ValueError):
            continue
    raise StoreError(
        f"'{place}' has no version {place.version!r}; expected a tag "
        f"({', '.join(sorted(repository.list_tags())) or 'there is none'}), a branch "
        f"({', '.join(sorted(repository.list_branches()))}) or the id of a snapshot"
    )


def _storage(icechunk: Any, place: Place) -> Any:
    if place.local:
        return icechunk.local_filesystem_storage(place.root)
    scheme, _, rest = place.root.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3":
        raise StoreError(f"'{place}': an Icechunk repository lies in a folder or at s3://")
    given = place.given()
    endpoint = given.pop("endpoint_url", None) or os.environ.get("AWS_ENDPOINT_URL")
    known = {
        "access_key_id": given.pop("key", None),
        "secret_access_key": given.pop("secret", None),
        "session_token": given.pop("token", None),
        "anonymous": given.pop("anon", None),
    }
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix,
        endpoint_url=endpoint,
        region=given.pop("region", None) or os.environ.get("AWS_REGION"),
        allow_http=str(endpoint or "").startswith("http://"),
        force_path_style=endpoint is not None,
        **{key: value for key, value in known.items() if value is not None},
        **given,
    )


class _LocalZip(ZipStore):
    """A zip file that is closed when its store goes.

    Left to the garbage collector, the file at times goes before the archive that would close it.
    """

    def _sync_open(self) -> None:
        super()._sync_open()
        weakref.finalize(self, self._zf.close)


class _RemoteZip(ZipStore):
    """A zip file on a server, read by ranges of bytes: only what is asked for travels."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.root, mode="r")
        self.place = place

    def _sync_open(self) -> None:
        import threading

        self._lock = threading.RLock()
        url, _, key = self.place.root.rpartition("/")
        ranges = _Ranges(objects(self.place, url), key)
        self._zf = zipfile.ZipFile(io.BufferedReader(ranges, 2**16))
        self._is_open = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RemoteZip) and self.place == other.place


class _Ranges(io.RawIOBase):
    """An object as a file to be read."""

    def __init__(self, store: Any, key: str) -> None:
        import obstore

        self.store, self.key, self.at = store, key, 0
        self.size = obstore.head(store, key)["size"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def readinto(self, buffer: Any, /) -> int:
        import obstore

        n = min(len(buffer), self.size - self.at)
        if n <= 0:
            return 0
        buffer[:n] = memoryview(obstore.get_range(self.store, self.key, start=self.at, length=n))
        self.at += n
        return n


# --- what goes wrong ---


def failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What the libraries beneath raise when a place does not answer, or refuses."""
    found: list[type[Exception]] = [OSError, zipfile.BadZipFile, *others]
    for module, names in (
        ("obstore.exceptions", ["BaseError"]),
        ("icechunk", ["IcechunkError", "ConflictError"]),
        ("aiohttp", ["ClientError"]),
    ):
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)


def unreachable(error: BaseException | None) -> bool:
    """Whether what failed is a disk, a server, or this process, and not what is stored there."""
    # Ours say what is stored; of what is packed wrongly, bz2 says so in an error of no number.
    if isinstance(error, StoreError | zipfile.BadZipFile | gzip.BadGzipFile):
        return False
    if type(error) is OSError and error.errno is None:
        return False
    return isinstance(error, (MemoryError, *failures()))


def brief(error: BaseException) -> str:
    """An error on one line: libraries in Rust print how they are built."""
    lines: Iterable[str] = (line.strip(" x|`->") for line in str(error).splitlines())
    first = next((line for line in lines if line), "")
    return f"{first or type(error).__name__}"[:300]
