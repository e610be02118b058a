"""One writer at a time, and what a disk or a server refuses said in one error.

On this machine the lock is the system's, which lets go of it when the process dies.  An object
store has none: there the lock is an object, made by a write that fails where there is one already,
and renewed every minute; one that was not renewed for five is that of a writer that died.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..conventions import StoreError
from ..lazy import log
from .places import Place, StorePath, brief, failures, objects, place_of

RENEWED, LAPSED = 60.0, 300.0  # seconds
TRIES = 5  # to take a lock that others take and let go of

# Locks of the calls that this one is within.
_HELD: ContextVar[dict[str, Any] | None] = ContextVar("held", default=None)

_REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


@contextmanager
def alone(path: StorePath) -> Iterator[None]:
    """Write to a store as the only one who does.

    Raises
    ------
    StoreError
        If another call writes the store, or the disk or the server refuses what is written.
    """
    place = place_of(path)
    with refusals(place), _lock(place) as lease:
        token = _HELD.set({**(_HELD.get() or {}), place.root: lease})
        try:
            yield
        finally:
            _HELD.reset(token)


@contextmanager
def alone_within(place: Place) -> Iterator[None]:
    """As :func:`alone`; a call within one that holds the lock, as of simulate, goes on with it."""
    with refusals(place) if place.root in (_HELD.get() or {}) else alone(place):
        yield


def check_alone(place: Place) -> None:
    """Refuse to end a store whose lock went to another while this process was stopped."""
    lease = (_HELD.get() or {}).get(place.root)
    if isinstance(lease, _Lease) and not lease.renew():
        raise StoreError(
            f"'{place}': this call did not answer for {LAPSED / 60:.0f} minutes, and another one "
            "writes the store now. Let that one end"
        )


@contextmanager
def refusals(place: Place) -> Iterator[None]:
    """Say in our error what a disk or a server refuses."""
    try:
        yield
    except StoreError:
        raise
    except failures() as error:
        if isinstance(error, OSError) and not _refused(error):
            raise
        raise StoreError(
            f"'{place}' cannot be written: {brief(error)}. What was whole there is whole still; "
            "when that is mended, make the call again"
        ) from error


def _refused(error: OSError) -> bool:
    if error.errno is not None:
        return error.errno in _REFUSALS
    # numpy.save knows how many bytes were written, and not why no more.
    return re.search("free space|requested and .* written", str(error)) is not None


def _lock(place: Place) -> Any:
    if place.local:
        return _file_lock(place.local)
    if place.root.partition("://")[0] in ("s3", "gs", "az"):
        return _object_lock(place)
    return _no_lock(place)


@contextmanager
def _no_lock(place: Place) -> Iterator[None]:
    log.info("%s: no lock there, so see to it that one call at a time writes it", place)
    yield


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """A lock beside a store on this machine, or on a shared file system that has locks."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    beside = path.with_name(f".{path.name}.lock")
    beside.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with beside.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"Another call is writing '{path}': wait for it, or stop it"
                ) from None
            except OSError:
                log.info("%s: this file system has no locks", beside)
                yield
                beside.unlink(missing_ok=True)
                return
            if not _same(lock.fileno(), beside):
                continue  # its holder removed it between our two steps
            yield
            # Before it is let go, and only when what it was for has ended well.
            beside.unlink(missing_ok=True)
            return


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


# --- object stores ---


class _Lease:
    """An object that says who writes, renewed by a thread while the call runs."""

    def __init__(self, store: Any, key: str, tag: Any) -> None:
        self.store, self.key, self.tag, self.lost = store, key, tag, False
        self._over, self._one = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def renew(self) -> bool:
        """Say again who writes, if that is still this call; whether it is."""
        import obstore
        from obstore.exceptions import NotFoundError, PreconditionError

        with self._one:
            if self.lost:
                return False
            try:
                self.tag = obstore.put(self.store, self.key, _who(), mode={"e_tag": self.tag})[
                    "e_tag"
                ]
            except (NotFoundError, PreconditionError, FileNotFoundError):
                self.lost = True
            return not self.lost

    def _keep(self) -> None:
        from obstore.exceptions import BaseError

        while not self._over.wait(RENEWED):
            try:
                if not self.renew():
                    return
            except BaseError as error:  # it may answer the next time
                log.warning("%s was not renewed: %s", self.key, brief(error))

    def release(self) -> None:
        import obstore

        self._over.set()
        self._thread.join()
        # obstore deletes on no condition; renewed just now, it is not another's to take.
        if self.renew():
            obstore.delete(self.store, self.key)


@contextmanager
def _object_lock(place: Place) -> Iterator[_Lease | None]:
    url, _, name = place.root.rpartition("/")
    store, key = objects(place, url), f".{name}.lock"
    tag = _take(place, store, key, url)
    if tag is None:
        with _no_lock(place):
            yield None
        return
    lease = _Lease(store, key, tag)
    try:
        yield lease
    finally:
        lease.release()


def _take(place: Place, store: Any, key: str, url: str) -> Any:
    """Tag of the object that is the lock, now ours; None where a server knows no conditions.

    Raises
    ------
    StoreError
        If it is another's, or there is no bucket.
    """
    import obstore
    from obstore.exceptions import (
        AlreadyExistsError,
        NotFoundError,
        NotSupportedError,
        PreconditionError,
    )

    refused = None
    for _ in range(TRIES):
        try:
            return obstore.put(store, key, _who(), mode="create")["e_tag"]
        except (NotSupportedError, NotImplementedError):
            return None
        except FileNotFoundError as error:
            raise StoreError(
                f"'{place}' cannot be written: there is no bucket such as it"
            ) from error
        except AlreadyExistsError:
            try:
                there = obstore.get(store, key)
            except (NotFoundError, FileNotFoundError):  # it was let go of meanwhile
                continue
        age = (datetime.now(UTC) - there.meta["last_modified"]).total_seconds()
        refused = StoreError(
            f"Another call is writing '{place}' ({_said(there.bytes().to_bytes())}, which last "
            f"said so {age:.0f} s ago): wait for it, or stop it. The lock of one that died lapses "
            f"after {LAPSED / 60:.0f} minutes; it is the object '{url}/{key}'"
        )
        if age < LAPSED:
            raise refused
        try:
            return obstore.put(store, key, _who(), mode={"e_tag": there.meta["e_tag"]})["e_tag"]
        except (PreconditionError, NotFoundError, FileNotFoundError):
            continue  # another took it, and is there now; or it went
    raise refused or StoreError(
        f"'{place}': its lock, the object '{url}/{key}', comes and goes: many calls want to write "
        "it. Make the call again"
    )


def _who() -> bytes:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name, as in some containers
        user = "somebody"
    return json.dumps({"by": f"{user}@{socket.gethostname()}", "process": os.getpid()}).encode()


def _said(raw: bytes) -> str:
    try:
        found = json.loads(raw)
        return f"{found['by']}, process {found['process']}"
    except (ValueError, KeyError, TypeError):
        return "it does not say whose"
