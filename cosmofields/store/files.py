"""Files of a stranger's store: where they lead, and how large they become unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..conventions import StoreError

METADATA = 2**26  # bytes of a file that is read as a whole
REPOSITORY, UNPACKED = 2**28, 2**29  # of one of a repository, and that it may become
CHUNK_BYTES = 2**32
_SPARED = 2**28  # bytes that a chunk may become unseen
_DEFLATED = 1032  # bytes that one of deflate becomes, at most
_ICECHUNK = b"ICE\xf0\x9f\xa7\x8aCHUNK"
_ZSTD, _SKIPPED, _BLOCK = 0xFD2FB528, 0x184D2A50, 2**17
_BLOCKS = 2**20  # in a frame: 128 GB
_PIECE = 2**16


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


def too_large(key: str, place: object, most: int = METADATA) -> StoreError:
    """The error for a file that no store needs."""
    return StoreError(f"'{place}': {key} is larger than {most >> 20} MB")


def becomes(content: memoryview, compressor: str, most: int) -> int:
    """Bytes that a compressed chunk becomes, as far as that matters to who takes ``most`` of them.

    Where the codec takes no more memory than the chunk says, that is what it says.  Others are
    unpacked up to there, in pieces that are dropped, if they can hold more than is spared easily.
    """
    if compressor == "blosc" and len(content) >= 16:
        return int.from_bytes(content[4:8], "little")
    if compressor == "lz4" and len(content) >= 4:
        return int.from_bytes(content[:4], "little")
    spared = max(most, _SPARED)
    if compressor == "zstd":
        frames = [*_frames(content, 0)]
        if len(frames) == 1 and frames[0][0] is not None:
            return frames[0][0]
        # Of more than one the codec learns too late that one was not true to what it said.  Blocks
        # need not be full: what can be four times as much is let be.
        bound = sum(bound for _, bound in frames)
        return bound if bound > max(4 * most, _SPARED) else 0
    opened = _STREAMS.get(compressor)
    if opened is None or (compressor in ("gzip", "zlib") and len(content) * _DEFLATED <= spared):
        return 0
    total = 0
    try:
        with opened(content) as stream:
            while total <= most and (piece := stream.read(_BLOCK)):
                total += len(piece)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return 0  # its codec says what is wrong
    return total


class _Zlib(io.RawIOBase):
    """What a zlib stream becomes, to be read in pieces."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at, self.unpacks = content, 0, zlib.decompressobj()

    def read(self, size: int = -1, /) -> bytes:
        while not self.unpacks.eof:
            piece: bytes | memoryview = self.unpacks.unconsumed_tail
            if not piece:
                piece = self.content[self.at : self.at + _PIECE]
                self.at += _PIECE
            found = self.unpacks.decompress(piece, size)
            if found or not piece:
                return found
        return b""


_STREAMS: dict[str, Callable[[memoryview], Any]] = {
    "gzip": lambda content: gzip.GzipFile(fileobj=io.BytesIO(content)),
    "zlib": _Zlib,
    "bz2": lambda content: bz2.BZ2File(io.BytesIO(content)),
    "lzma": lambda content: lzma.LZMAFile(io.BytesIO(content)),
}
COMPRESSORS = {"blosc", "zstd", "lz4", *_STREAMS}


def check_repository(root: Path, place: object) -> None:
    """See that Icechunk, which reads its metadata as whole files, can do so.

    Raises
    ------
    StoreError
        If there is a link to a folder, if a file leads elsewhere or is a pipe or a device, or if it
        is or becomes too large.
    """
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            found = [*entries]
        for entry in found:
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    _check_file(entry, root, place)
            except FileNotFoundError:  # another process is done with it
                continue


def _check_file(entry: os.DirEntry[str], root: Path, place: object) -> None:
    key = os.path.relpath(entry.path, root).replace(os.sep, "/")
    if not entry.is_file(follow_symlinks=False):
        inside(root, key, place)
        if entry.is_dir():
            raise StoreError(f"'{place}': {key} is a link to a folder, which no repository has")
    size = entry.stat().st_size
    if key.startswith("chunks/"):
        if size > CHUNK_BYTES:
            raise too_large(key, place, CHUNK_BYTES)
    elif size > REPOSITORY:
        raise too_large(key, place, REPOSITORY)
    elif size // 4 * _BLOCK > UNPACKED:  # a block has four bytes or more
        with (
            open(entry.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            packed = m[: len(_ICECHUNK)] == _ICECHUNK and m[38:39] == b"\1"
            most = sum(bound for _, bound in _frames(m, 39)) if packed else 0
        if most > UNPACKED:
            raise StoreError(f"'{place}': {key} unpacks to more than {UNPACKED >> 20} MB")


def _frames(content: memoryview | mmap.mmap, at: int) -> Iterator[tuple[int | None, int]]:
    """What each frame of zstd from ``at`` on says it becomes, if it says, and what it can become.

    That is a window, or 128 kB, for each of its blocks (RFC 8878).
    """
    while len(content) > at + 8:
        magic = int.from_bytes(content[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == _SKIPPED:
            at += 8 + int.from_bytes(content[at + 4 : at + 8], "little")
            continue
        if magic != _ZSTD:
            return
        flags = content[at + 4]
        single, checksum, dictionary = flags >> 5 & 1, flags >> 2 & 1, (0, 1, 2, 4)[flags & 3]
        n = (single, 2, 4, 8)[flags >> 6]
        most = _BLOCK
        if not single:
            exponent, mantissa = content[at + 5] >> 3, content[at + 5] & 7
            most = min(most, 2 ** (7 + exponent) * (8 + mantissa))
        at += 5 + (1 - single) + dictionary
        says = int.from_bytes(content[at : at + n], "little") + (256 if n == 2 else 0)
        at += n
        bound = 0
        for _ in range(_BLOCKS):
            if at + 3 > len(content):
                break
            block = int.from_bytes(content[at : at + 3], "little")
            kind, size = block >> 1 & 3, block >> 3
            at += 3 + (1 if kind == 1 else size)
            bound += most if kind == 2 else min(size, most)
            if block & 1:
                break
        else:  # of nothing, most of them: to count them all would take too long
            yield None, sys.maxsize
            return
        at += 4 * checksum
        yield (says if n else None), bound
