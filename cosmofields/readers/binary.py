"""Bare numbers: the ``group_tab`` of Gadget's friends-of-friends code, as Quijote has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..conventions import StoreError
from .dialect import Ask, View, merged, scale_factor
from .parts import Part, Table, read_exactly

# Ngroups, TotNgroups, Nids: int32; TotNids: int64; files: int32.  Then, one array after the other:
_HEADER = 24
_ARRAYS = {
    "GroupLen": ("i4", 1), "GroupOffset": ("i4", 1), "GroupMass": ("f4", 1), "GroupPos": ("f4", 3),
    "GroupVel": ("f4", 3), "GroupLenType": ("i4", 6), "GroupMassType": ("f4", 6),
}  # fmt: skip
_GROUP = 84  # bytes, and 4 each for a star-formation rate and a type


class _Head(NamedTuple):
    order: str
    n_groups: int
    total: int
    files: int


def _head(path: str) -> _Head | None:
    """The header, if the size of the file is that which it declares, in either byte order."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        raw = file.read(_HEADER)
    if len(raw) < _HEADER:
        return None
    for order in "<>":
        n, total, _ = (int(value) for value in np.frombuffer(raw[:12], f"{order}i4"))
        files = int(np.frombuffer(raw[20:], f"{order}i4")[0])
        sizes = {_HEADER + n * (_GROUP + extra) for extra in (0, 4, 8)}
        if 0 <= n <= total and 0 < files < 2**20 and size in sizes:
            return _Head(order, n, total, files)
    return None


def is_group_tab(path: str) -> bool:
    """Whether a file is a ``group_tab``; it has no magic, but a size that its header declares."""
    return _head(path) is not None


def scan_group_tab(path: str) -> Table:
    """The arrays of a ``group_tab``."""
    head = _head(path)
    if head is None:
        raise StoreError(
            f"{path!r} is no group_tab: its size is not what its header declares; truncated?"
        )
    parts, at = {}, _HEADER
    for name, (kind, width) in _ARRAYS.items():
        dtype = np.dtype(head.order + kind)
        shape = (head.n_groups,) if width == 1 else (head.n_groups, width)
        parts[name] = Part(path, name, shape, dtype, 1, read_array, (at,))
        at += head.n_groups * width * dtype.itemsize
    return Table(path, {"": {"files": head.files, "rows": head.n_groups}}, parts)


def read_array(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of an array that lies in a file as such."""
    width = int(np.prod(part.shape[1:], dtype=int))
    offset = part.where[0] + rows.start * width * part.dtype.itemsize
    shape = (rows.stop - rows.start, *part.shape[1:])
    return read_exactly(part.path, offset, part.dtype, shape)


def group_tab(table: Table, ask: Ask) -> View:
    """Groups in kpc/h and 1e10 Msun/h; the file says neither box nor redshift nor cosmology."""
    facts = merged(ask)
    a = scale_factor(facts, table.path)
    return View(
        facts,
        names={"position": "GroupPos", "velocity": "GroupVel", "mass": "GroupMass"},
        units={"position": "kpc/h", "velocity": (1 / a, "km/s/a"), "mass": "1e10 Msun/h"},
        files=table.attrs[""]["files"],
        rows=table.attrs[""]["rows"],
    )
