"""Text: comma- or space-separated columns, and the lists of Rockstar and Consistent Trees.

The one thing read when a text is opened is where its lines begin, so that a task can read its own.
A text in gzip has no places to begin at: each task unpacks what comes before its rows and drops it.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..conventions import StoreError
from .dialect import Ask, View, merged
from .parts import Part, Table

STRIDE = 2**14  # lines from one known beginning to the next
BLOCK = 2**24  # bytes read at once
LONGEST, COMMENTS = 2**16, 10_000  # bytes of a line; lines before the table
HEAD = 2**24  # bytes before the table
TASK = 2**28  # bytes of text that a task should parse, at most
GZIP = b"\x1f\x8b"
UNPACKED = 2**30  # bytes that a text in gzip may become


def open_text(path: str) -> BinaryIO:
    """The bytes of a text, unpacked if they are in gzip."""
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def _size(path: str) -> int:
    """Bytes of a text, which of one in gzip are counted as it is unpacked."""
    with open_text(path) as file:
        if not isinstance(file, gzip.GzipFile):
            return Path(path).stat().st_size
        size = 0
        while block := file.read(BLOCK):
            size += len(block)
            if size > UNPACKED:
                raise StoreError(
                    f"{path!r} unpacks to more than {UNPACKED >> 30} GB, too much to be unpacked "
                    f"for each part that is read: gunzip -k {path!r}"
                )
        return size


def unpacked(head: bytes) -> bytes:
    """The first bytes of what a file holds, which may be in gzip; none if they are damaged."""
    if not head.startswith(GZIP):
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 4096)
    except zlib.error:
        return b""


def looks_like_text(head: bytes) -> bool:
    """Whether the first bytes can be those of a table of numbers with names above them."""
    line = head.split(b"\n")[0]
    return bool(line.strip()) and bool(re.fullmatch(rb"[\x09\x0d\x20-\x7e]+", line))


def scan_text(path: str) -> Table:
    """Columns of a text file, of as many rows as it has lines after its head."""
    head, names, separator, start = _head(path)
    n_lines, begins = _index(path, start)
    if not names:
        raise StoreError(f"{path!r} has no line that names its columns")
    per_line = max((begins[-1] - start) / max(n_lines, 1), 1)
    # A chunk is a whole number of strides, and no more than a task should parse.
    chunk = STRIDE * max(int(TASK / per_line / STRIDE), 1)
    where = (begins, separator, len(names))
    parts = {
        name: Part(
            path, name, (n_lines,), np.dtype(np.float64), min(chunk, max(n_lines, 1)), read_text,
            (i, *where),
        )
        for i, name in enumerate(names)
    }  # fmt: skip
    return Table(path, {"": {"head": head}}, parts)


def _head(path: str) -> tuple[list[str], list[str], str, int]:
    """Comment lines, names of the columns, what separates them, and where the rows begin."""
    comments: list[str] = []
    start = 0
    with open_text(path) as file:
        while True:
            line = file.readline(LONGEST)
            if len(line) == LONGEST:
                raise StoreError(f"{path!r}: a line of over {LONGEST} bytes is no row of a table")
            text = line.decode("ascii", errors="replace").strip()
            if line and (text.startswith("#") or not text):
                comments.append(text.lstrip("#").strip())
                start = file.tell()
                if len(comments) > COMMENTS or start > HEAD:
                    raise StoreError(
                        f"{path!r} begins with over {COMMENTS} lines, or {HEAD} bytes, of comments"
                    )
                continue
            break
    if not line:
        raise StoreError(f"{path!r} holds no rows")
    separator = next((s for s in (",", ";", "\t") if s in text), " ")
    fields = _split(text, separator)
    if not all(_is_number(field) for field in fields):
        start += len(line)
        return comments, [name.strip().strip('"') for name in fields], separator, start
    # No line of names: the comment that has as many words as a row has fields, the first for
    # Rockstar; the last, next to the rows, for numpy.savetxt.
    for comment in comments:
        for by in (separator, ","):
            if len(words := _split(comment, by)) == len(fields) and not _is_number(words[0]):
                return comments, words, separator, start
    return comments, [f"column{i}" for i in range(len(fields))], separator, start


def _split(line: str, separator: str) -> list[str]:
    return line.split() if separator == " " else [field.strip() for field in line.split(separator)]


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _index(path: str, start: int) -> tuple[int, tuple[int, ...]]:
    """Number of lines from byte ``start`` on; where every ``STRIDE``-th begins, and all end."""
    size = _size(path)
    with open_text(path) as file:
        file.seek(max(start, size - LONGEST))
        tail = file.read(LONGEST)
        stop = size - len(tail) + len(tail.rstrip())  # blank lines at the end are none
        if stop <= start:
            raise StoreError(f"{path!r} holds no rows")
        begins = [start]
        n_lines, at = 1, start
        file.seek(start)
        while at < stop:
            block = file.read(min(BLOCK, stop - at))
            if not block:
                raise StoreError(f"{path!r} is being changed")
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
            if not len(ends) and len(block) == BLOCK:
                raise StoreError(f"{path!r}: {BLOCK} bytes without the end of a line")
            # After the k-th end of this block begins line n_lines + k, counted from 0.
            begins.extend((ends[-n_lines % STRIDE :: STRIDE] + at + 1).tolist())
            n_lines += len(ends)
            at += len(block)
    return n_lines, (*begins, stop)


def read_text(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of one column; the lines of other rows are skipped by their place."""
    import pandas as pd

    column, begins, separator, n_fields = part.where
    low, high = rows.start, rows.stop
    first, last = low // STRIDE, -(-high // STRIDE)
    if first >= last:
        return np.empty(0)
    with open_text(part.path) as file:
        file.seek(begins[first])
        data = file.read(begins[last] - begins[first])
    table = pd.read_csv(
        io.BytesIO(data),
        header=None,
        names=list(range(n_fields)),
        usecols=[column],
        sep=r"\s+" if separator == " " else separator,
        skiprows=low - first * STRIDE,
        nrows=high - low,
        skip_blank_lines=False,
        dtype=np.float64,
        engine="c",
        index_col=False,
    )
    values = table[column].to_numpy()
    if len(values) != high - low:
        raise StoreError(f"{len(values)} rows where {high - low} lines are")
    return values


def is_rockstar(table: Table) -> bool:
    """Whether a text is a list of Rockstar or of Consistent Trees."""
    head = "\n".join(table.attrs[""]["head"][:40])
    return "Rockstar" in head or "Consistent Trees" in head or "FOF linking length" in head


def rockstar(table: Table, ask: Ask) -> View:
    """Halos and subhalos of a list: Mpc/h comoving, km/s peculiar, Msun/h, as its head says."""
    head = table.attrs[""]["head"]
    text = "\n".join(head)
    names = {_bare(name): name for name in table.parts}
    facts = merged(ask)
    a = _after(r"(?:^|\n)\s*a\s*=\s*", text)
    if facts["redshift"] is None:
        if a is None and "scale" in names:  # a column of its own in trees
            a = float(read_text(table.parts[names["scale"]], slice(0, 1))[0])
        if a is not None and not 0 < a <= 1.001:
            raise StoreError(f"{table.path!r}: a scale factor of {a:g}")
        facts["redshift"] = None if a is None else max(round(1 / a - 1, 9), 0.0)
    if facts["box_size"] is None:
        facts["box_size"] = _after(r"[Bb]ox size\s*[:=]\s*", text) or None
    matter, h = _after(r"\bOm(?:ega_M)?\s*=\s*", text), _after(r"\bh0?\s*=\s*", text)
    if facts["cosmology"] is None and matter and h:
        facts["cosmology"] = {"Omega_m": matter, "h": h}
    wanted = {"position": ("x", "y", "z"), "velocity": ("vx", "vy", "vz")}
    columns: dict[str, Any] = {
        key: tuple(names.get(axis, axis) for axis in axes) for key, axes in wanted.items()
    }
    columns["mass"] = next((names[key] for key in ("mvir", "m200b", "m200c") if key in names), None)
    asked = {
        key: names.get(name.lower(), name) if isinstance(name, str) else name
        for key, name in ask.names.items()
    }
    return View(facts, names=columns | {k: v for k, v in asked.items() if v is not None})


def _bare(name: str) -> str:
    """``mvir`` of ``Mvir`` and of ``mvir(10)``, as Consistent Trees numbers its columns."""
    return re.sub(r"\(\d+\)$", "", name).lower()


def _after(pattern: str, text: str) -> float | None:
    found = re.search(pattern + r"([0-9.eE+-]+)", text)
    try:
        return float(found.group(1)) if found else None
    except ValueError:
        return None
