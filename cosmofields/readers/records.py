"""Gadget's binary snapshots, formats 1 and 2: blocks between the number of their bytes.

A block is its length as int32, its bytes, and its length again.  Format 2 puts a short block with a
name before each; in format 1 their order says which is which.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..conventions import StoreError
from .binary import read_array
from .parts import Part, Table

HEADER, LABEL, BLOCKS = 256, 8, 1000  # bytes; bytes; of a file, at most
TYPES = 6
FILES = 2**16  # of a snapshot, at most
# Particles of each type here, their masses, time, redshift, two flags, particles in all files, a
# flag, files, box, Omega_m, Omega_Lambda, h, two flags, high words of the particles in all files.
_FIELDS = struct.Struct("6i6d2d2i6I2i4d2i6I")
_NAMES = {"POS ": "Coordinates", "VEL ": "Velocities", "MASS": "Masses"}


class _Block(NamedTuple):
    """A block: its name, where its bytes begin, and how many it says that there are."""

    name: str
    begin: int
    size: int


def is_records(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a snapshot of format 1 or 2."""
    return _kind(head) is not None


def _kind(head: bytes) -> tuple[str, int] | None:
    """Byte order and format."""
    for order in "<>":
        size = struct.pack(f"{order}i", HEADER)
        if head[:4] == size and head[4 + HEADER :][:4] == size:
            return order, 1
        label = struct.pack(f"{order}i", LABEL)
        if head[:8] == label + b"HEAD" and head[12:20] == label + size:
            return order, 2
    return None


def scan_records(path: str) -> Table:
    """Columns of each type of particle, and the header as HDF5 snapshots have it."""
    held = Path(path).stat().st_size
    with open(path, "rb") as file:
        kind = _kind(file.read(4 + 2 * LABEL + HEADER + 8))
        if kind is None:
            raise StoreError(
                f"{path!r} is no snapshot of Gadget's format 1 or 2: it begins with no header of "
                f"{HEADER} bytes"
            )
        order, version = kind
        file.seek(4 if version == 1 else 4 + LABEL + 8)
        header = _header(path, order, file.read(HEADER))
        blocks = list(_blocks(path, file, order, version, header, held))
    parts: dict[str, Part] = {}
    for block in blocks:
        parts.update(_parts(path, order, block, header))
    return Table(path, {"Header": header}, parts)


def _header(path: str, order: str, raw: bytes) -> dict[str, Any]:
    values = struct.unpack(order + _FIELDS.format, raw[: struct.calcsize(order + _FIELDS.format)])
    counts = [*values[:6]]
    if min(counts) < 0 or not all(map(math.isfinite, values[6:14])):
        raise StoreError(f"{path!r}: the header says that there are {counts} particles: damaged")
    time, redshift, files, (side, matter, dark, _) = *values[12:14], values[23], values[24:28]
    # Without expansion no density is given; GADGET-4 has 64-bit counts in as many bytes.
    cosmological = bool(redshift or matter or dark)
    if not (0 < side < math.inf and 0 <= files <= FILES) or (
        cosmological and not (0 < matter <= 1 and abs(time * (1 + redshift) - 1) < 1e-3)
    ):
        raise StoreError(
            f"{path!r}: the header says BoxSize {side:.6g}, Omega0 {matter:.6g}, {files} files, "
            f"Time {time:.6g} and Redshift {redshift:.6g}, which no snapshot has: damaged, or with "
            "GADGET-4's own header. GADGET-4 writes this one with GADGET2_HEADER; better, have it "
            "write HDF5: SnapFormat 3"
        )
    return {
        "NumPart_ThisFile": counts,
        "MassTable": [*values[6:12]],
        "Time": values[12],
        "Redshift": values[13],
        "NumPart_Total": [*values[16:22]],
        "NumFilesPerSnapshot": max(values[23], 1),  # initial conditions say 0
        "BoxSize": values[24],
        "Omega0": values[25],
        "OmegaLambda": values[26],
        "HubbleParam": values[27],
        "NumPart_Total_HighWord": [*values[30:36]],
    }


def _weighed(header: dict[str, Any]) -> list[int]:
    """Particles of each type that have a mass each."""
    counts, masses = header["NumPart_ThisFile"], header["MassTable"]
    return [0 if mass else n for n, mass in zip(counts, masses, strict=True)]


def _rows(name: str, header: dict[str, Any]) -> list[int]:
    return _weighed(header) if name == "MASS" else header["NumPart_ThisFile"]


def _blocks(
    path: str, file: BinaryIO, order: str, version: int, header: dict[str, Any], held: int
) -> Iterator[_Block]:
    """The blocks after the header, one after the other."""
    names = ["POS ", "VEL ", "ID  ", *(["MASS"] if any(_weighed(header)) else [])]
    at = 8 + HEADER + (8 + LABEL if version == 2 else 0)
    for number in range(BLOCKS):
        if at >= held:
            return
        if version == 2:
            label = _at(path, file, at, 8 + LABEL)
            if label[:4] != struct.pack(f"{order}i", LABEL):
                raise StoreError(f"{path!r}: no name of a block at byte {at}: damaged")
            name = label[4:8].decode("ascii", errors="replace")
            at += 8 + LABEL
        else:
            name = names[number] if number < len(names) else f"number {number + 1}"
        length = _at(path, file, at, 4)
        at += 4
        for size in _sizes(name, struct.unpack(f"{order}I", length)[0], header, held - at):
            if _at(path, file, at + size, 4) == length:
                break
        else:
            raise StoreError(
                f"{path!r}: block {name.strip()!r}, which begins at byte {at}, does not end where "
                f"it says; the file ends at {held}: truncated or damaged"
            )
        yield _Block(name, at, size)
        at += size + 4
    raise StoreError(f"{path!r} has more than {BLOCKS} blocks")


def _sizes(name: str, said: int, header: dict[str, Any], room: int) -> Iterator[int]:
    """What the bytes of a block can be, which are said modulo 2^32: that of a column first."""
    numbers = sum(_rows(name, header)) * (1 if name == "MASS" else 3)
    columns = [4 * numbers, 8 * numbers] if name in _NAMES else []
    for size in (*columns, *range(said, room - 3, 2**32)):
        if size % 2**32 == said and size + 4 <= room:
            yield size


def _at(path: str, file: BinaryIO, offset: int, n: int) -> bytes:
    file.seek(offset)
    raw = file.read(n)
    if len(raw) < n:
        raise StoreError(f"{path!r} ends at byte {offset + len(raw)}, within a block: truncated")
    return raw


def _parts(
    path: str, order: str, block: _Block, header: dict[str, Any]
) -> Iterator[tuple[str, Part]]:
    """The rows of each type in a block that is a column."""
    if block.name not in _NAMES:
        return
    rows, width = _rows(block.name, header), 1 if block.name == "MASS" else 3
    numbers = sum(rows) * width
    if not numbers:
        return
    if block.size not in (4 * numbers, 8 * numbers):
        raise StoreError(
            f"{path!r}: block {block.name.strip()!r} has {block.size} bytes; expected "
            f"{4 * numbers}, of {sum(rows)} particles: damaged, or another order of blocks"
        )
    dtype = np.dtype(f"{order}f{block.size // numbers}")
    at = block.begin
    for index, n in enumerate(rows):
        if n:
            name = f"PartType{index}/{_NAMES[block.name]}"
            shape = (n,) if width == 1 else (n, width)
            yield name, Part(path, name, shape, dtype, 1, read_array, (at,))
        at += n * width * dtype.itemsize
