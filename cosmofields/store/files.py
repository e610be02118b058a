"""Files of a stranger's store on this machine: where they lead, and how large they become."""

from __future__ import annotations

import os
from pathlib import Path

from ..conventions import StoreError

METADATA = 2**26  # bytes of a file that is read as a whole
UNPACKED = 2**29  # that it may become
_ICECHUNK, _ZSTD, _BLOCK = b"ICE\xf0\x9f\xa7\x8aCHUNK", b"\x28\xb5\x2f\xfd", 2**17


def inside(root: Path, key: str, place: object) -> Path:
    """The file of a key, which lies in the store: a link may not lead elsewhere."""
    path = root / key
    try:
        within = path.resolve().is_relative_to(root.resolve())
        # To open a pipe is to wait for who writes into it.
        odd = within and path.exists() and not (path.is_file() or path.is_dir())
    except (OSError, RuntimeError, ValueError):  # links in a circle; a name too long, or a NUL
        within = odd = False
    if not within:
        raise StoreError(f"'{place}': {key} leads out of the store, so it is not read")
    if odd:
        raise StoreError(f"'{place}': {key} is neither a file nor a folder, so it is not read")
    return path


def too_large(key: str, place: object) -> StoreError:
    """The error for a file of metadata that no store needs."""
    return StoreError(f"'{place}': {key} is larger than {METADATA >> 20} MB")


def frame(head: bytes) -> tuple[int, int]:
    """Bytes of the header of a zstd frame, and how many the frame says it becomes (RFC 8878).

    The latter is 0 if it does not say.
    """
    flags = head[4]
    single, dictionary = flags >> 5 & 1, (0, 1, 2, 4)[flags & 3]
    n = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + dictionary
    return at + n, int.from_bytes(head[at : at + n], "little") + (256 if n == 2 else 0)


def check_repository(root: Path, place: object) -> None:
    """See that Icechunk, which reads its metadata as whole files, can do so.

    Raises
    ------
    StoreError
        If a file leads elsewhere, is a pipe or a device, or is or becomes too large.
    """
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            found = [*entries]
        for entry in found:
            path = Path(entry.path)
            key = path.relative_to(root).as_posix()
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
                continue
            if not entry.is_file(follow_symlinks=False):
                inside(root, key, place)
            # Of a chunk no more is read than its manifest says.
            if key.startswith("chunks/") or not entry.is_file():
                continue
            if entry.stat().st_size > METADATA:
                raise too_large(key, place)
            if _most(path.read_bytes()) > UNPACKED:
                raise StoreError(f"'{place}': {key} unpacks to more than {UNPACKED >> 20} MB")


def _most(content: bytes) -> int:
    """The most bytes that a file of Icechunk can become: 39 of a header, then zstd (RFC 8878).

    It is packed as a stream, so that its frames do not say; but none of their blocks becomes more
    than 128 kB.
    """
    if not content.startswith(_ICECHUNK) or content[38:39] != b"\1":
        return 0
    at, total = 39, 0
    while content[at : at + 4] == _ZSTD and len(content) > at + 4:
        checksum = content[at + 4] >> 2 & 1
        at, last = at + frame(content[at : at + 5])[0], False
        while not last and at + 3 <= len(content):
            block = int.from_bytes(content[at : at + 3], "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            at += 3 + (1 if kind == 1 else size)
            total += _BLOCK if kind == 2 else min(size, _BLOCK)
        at += 4 * checksum
    return total
