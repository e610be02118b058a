"""What a file holds: its parts, the columns made of them, and the window that a task reads."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..conventions import MissingExtraError, StoreError, require_extra

# What h5py, zarr, astropy, pyarrow, pandas and zipfile raise for damaged files, according to the
# place of the damage.
UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
# No column of real numbers shrinks by as much; what declares more was made to fill the memory.
RATIO = 2000


class Part(NamedTuple):
    """A dataset of one file, as it lies there."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int  # rows that are stored, and so read, together
    # Of this module or a neighbour, so that a task is a name and not code: (part, rows) -> array.
    read: Callable[[Part, slice], NDArray[Any]]
    where: tuple[Any, ...] = ()  # what `read` has to know besides


class Column(NamedTuple):
    """A column of a catalogue: one part, or three for x, y and z; and how it is converted."""

    parts: tuple[Part, ...]
    factor: float = 1.0
    offset: tuple[float, ...] = ()  # added after the factor, along each axis
    log: bool = False  # whether the part holds log10

    @property
    def name(self) -> str:
        """Names of the parts."""
        return ", ".join(part.name for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the column."""
        first = self.parts[0].shape
        return (*first, len(self.parts)) if len(self.parts) > 1 else first

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the part that is least like a number, for :func:`check_columns` to see."""
        kinds = [part.dtype for part in self.parts]
        return next((kind for kind in kinds if kind.kind not in "iuf"), kinds[0])

    @property
    def chunk(self) -> int:
        """Rows that are read together."""
        return max(part.chunk for part in self.parts)


class Table(NamedTuple):
    """Everything in one file: attributes of each group, and all datasets by their path."""

    path: str
    attrs: Mapping[str, Mapping[str, Any]]
    parts: Mapping[str, Part]


class File(NamedTuple):
    """One file, understood."""

    path: str
    format: str
    columns: dict[str, Column]
    facts: dict[str, Any]
    source: dict[str, Any]
    dim: str = "halo"
    files: int | None = None  # of which the catalogue consists, if the file says so

    @property
    def n_rows(self) -> int:
        """Rows of the catalogue that are in this file."""
        return self.columns["position"].shape[0] if self.columns else 0


def read_column(column: Column, rows: slice) -> NDArray[Any]:
    """Rows of a column in the units of a catalogue."""
    arrays = [read_part(part, rows) for part in column.parts]
    values = arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1)
    if column.log:
        values = 10.0 ** np.asarray(values, np.float64)
    if column.factor != 1 or column.offset:
        # In float64: a position times 1e-3 in float32 would lose its last bit.
        values = np.asarray(values, np.float64) * column.factor
        values += np.asarray(column.offset or 0.0)
    return values


def read_part(part: Part, rows: Any) -> NDArray[Any]:
    """Read a window; the file is open for that time alone, in whatever process this is."""
    try:
        return part.read(part, rows)
    except MissingExtraError:
        raise
    except Exception as error:  # each library and each compression has errors of its own
        raise StoreError(
            f"{part.path!r}: cannot read {part.name}{_which(rows)} ({error})"
        ) from error


def cut(columns: Sequence[Column], low: int, high: int) -> Iterator[tuple[Column, slice]]:
    """The columns, and the rows of each, that rows ``low`` to ``high`` of the whole lie in."""
    start = 0
    for column in columns:
        stop = start + column.shape[0]
        if start < high and low < stop:
            yield column, slice(max(low, start) - start, min(high, stop) - start)
        start = stop


def read_exactly(path: str, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Array that lies as such in a file, from byte ``offset`` on."""
    values = np.fromfile(path, dtype, int(np.prod(shape)), offset=offset)
    if values.size != np.prod(shape):
        raise StoreError(f"the file ends after {values.size} of {np.prod(shape)} numbers")
    return values.reshape(shape)


def check_declared(path: str, name: str, declared: int, held: int) -> None:
    """Raise :class:`StoreError` where more is declared than the bytes there can mean."""
    if declared < 0 or declared > RATIO * held + 2**20:
        raise StoreError(
            f"{path!r} declares {declared} bytes for {name}, of which it holds {held}: truncated "
            "or damaged"
        )


def plain(value: Any) -> Any:
    """An attribute as a Python number, string or list."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def io_extra(module: str, path: str) -> Any:
    """A library of the extra ``io``, which reading ``path`` needs."""
    return require_extra(module, "io", f"Reading {path!r}")


def _which(rows: Any) -> str:
    """Rows of a window in words."""
    whole = not isinstance(rows, slice) or rows.stop is None
    return "" if whole else f", rows {rows.start or 0} to {rows.stop - 1}"
