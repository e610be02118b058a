"""Bigfile, the folder of columns that FastPM, MP-Gadget and nbodykit write.

The format is three lines of text and raw numbers for each column.  Its library has no wheels (it
compiles against MPI-minded C), so it is read here; a folder that it wrote is among the tests.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conventions import MissingVariableError, StoreError
from .dialect import MPC, MSUN, Ask, View, merged, near, number
from .hdf5 import DEPTH, ITEMS
from .parts import UNREADABLE, Part, Table, plain, read_exactly

TEXT = 2**20  # bytes of a header or of attributes, at most
_DTYPE = re.compile(r"[<>=|]?[iufb][1248]")
_ATTRIBUTE = re.compile(r"(\S+) (\S*[a-zA-Z]\d+) (\d+) ([0-9A-Fa-f]*) #HUMANE \[.*\]")


def is_bigfile(folder: str) -> bool:
    """Whether a folder is a bigfile: one of its blocks has the header of one."""
    for pattern in ("header", "*/header", "*/*/header"):
        for path in sorted(Path(folder).glob(pattern))[:8]:
            if not path.is_file():  # a pipe, say, from which nothing comes
                continue
            with path.open("rb") as file:
                if file.read(7) == b"DTYPE: ":
                    return True
    return False


def scan_bigfile(path: str) -> Table:
    """All blocks of a bigfile, with their attributes."""
    attrs: dict[str, dict[str, Any]] = {}
    parts: dict[str, Part] = {}
    root = Path(path)
    try:
        for header in _headers(root):
            name = header.parent.relative_to(root).as_posix()
            attrs["" if name == "." else name] = _attributes(header.parent)
            part = _block(path, name, header)
            if part is not None:
                parts[name] = part
    except StoreError:
        raise
    except UNREADABLE as error:
        raise StoreError(f"{path!r} cannot be read as a bigfile: {error}") from error
    if not attrs:
        raise StoreError(f"{path!r} is no bigfile: no folder in it has a header")
    return Table(path, attrs, parts)


def _headers(root: Path) -> list[Path]:
    found = []
    folders = [root]
    while folders:
        folder = folders.pop()
        if (folder / "header").is_file():
            found.append(folder / "header")
        if len(folder.relative_to(root).parts) < DEPTH:
            # A link might lead anywhere.
            folders += sorted(d for d in folder.iterdir() if d.is_dir() and not d.is_symlink())
        if len(found) > ITEMS:
            raise StoreError(f"'{root}' holds more than {ITEMS} blocks")
    return sorted(found)


def _text(path: Path) -> str:
    if path.stat().st_size > TEXT:
        raise StoreError(f"'{path}' is too long to be the text that describes a block")
    return path.read_text(encoding="ascii", errors="replace")


def _block(path: str, name: str, header: Path) -> Part | None:
    """The column of a block; None of one that has attributes alone."""
    text = _text(header)
    found = re.match(r"\s*DTYPE:\s*(\S+)\s+NMEMB:\s*(\d+)\s+NFILE:\s*(\d+)\s*", text)
    if found is None:
        raise StoreError(f"'{header}' is no header of a block: {text[:40]!r}")
    width, n_files = int(found[2]), int(found[3])
    if not width or not n_files or not _DTYPE.fullmatch(found[1]):
        return None
    dtype = np.dtype(found[1])
    # Number of the piece, in hexadecimal, and its rows.
    pieces = re.findall(r"([0-9A-F]{6}):\s*(\d+)\s*:\s*\d+\s*:\s*\d+", text[found.end() :])
    if len(pieces) != n_files:
        raise StoreError(f"'{header}' declares {n_files} pieces and lists {len(pieces)}")
    ends = [0]
    for piece, rows in pieces:
        file = header.parent / piece
        size = file.stat().st_size if file.is_file() else -1
        if size != int(rows) * width * dtype.itemsize:
            raise StoreError(
                f"'{file}' has {size} bytes where {rows} rows of {width} {dtype} are declared: "
                "truncated or damaged"
            )
        ends.append(ends[-1] + int(rows))
    shape = (ends[-1],) if width == 1 else (ends[-1], width)
    where = (str(header.parent), tuple(piece for piece, _ in pieces), tuple(ends))
    return Part(path, name, shape, dtype, 1, read_bigfile, where)


def _attributes(folder: Path) -> dict[str, Any]:
    """``name dtype length hexadecimal #HUMANE [ text ]``, a line for each attribute."""
    attrs: dict[str, Any] = {}
    for name in ("attrs-v2", "attr-v2"):  # of the documentation, and of what it is
        if not (folder / name).is_file():
            continue
        for line in _text(folder / name).splitlines():
            found = _ATTRIBUTE.fullmatch(line)
            if found is None:
                raise StoreError(f"'{folder / name}' is cut off, or damaged, in {line[:40]!r}")
            key, kind, length, raw = found[1], found[2], int(found[3]), bytes.fromhex(found[4])
            if kind.lstrip("<>=|")[0] in "aS":
                text = raw.rstrip(b"\0").decode(errors="replace")
                attrs[key] = json.loads(text[7:]) if text.startswith("json://") else text
            elif _DTYPE.fullmatch(kind):
                attrs[key] = plain(np.frombuffer(raw, kind, length))
    return attrs


def read_bigfile(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of a block, from the pieces that they lie in."""
    folder, pieces, ends = part.where
    values = [np.empty((0, *part.shape[1:]), part.dtype)]
    row_bytes = part.dtype.itemsize * int(np.prod(part.shape[1:], dtype=int))
    for piece, low, high in zip(pieces, ends[:-1], ends[1:], strict=True):
        first, last = max(rows.start, low), min(rows.stop, high)
        if first < last:
            shape = (last - first, *part.shape[1:])
            file = str(Path(folder) / piece)
            values.append(read_exactly(file, (first - low) * row_bytes, part.dtype, shape))
    return np.concatenate(values)


def blocks(table: Table, ask: Ask) -> View:
    """Particles (``"1"``) or halos (``"LL-0.200"``) of FastPM, or what nbodykit saved."""
    path = table.path
    sets = sorted(
        key.rpartition("/")[0] for key in table.parts if key.rpartition("/")[2] == "Position"
    )
    group = ask.group.strip("/") if ask.group else None
    if group is None and ask.names["position"] is None:
        if len(sets) != 1:
            raise MissingVariableError(
                f"{len(sets)} sets of columns with a Position in {path!r}: {sets}. Name one: "
                "open_catalog(..., group='1')"
            )
        group = sets[0]
    base = f"{group}/" if group else ""
    header = {**table.attrs.get("", {}), **table.attrs.get("Header", {}),
              **table.attrs.get("header", {})}  # fmt: skip
    own = table.attrs.get(base[:-1], {}) if base else {}
    facts = merged(ask)
    length = near(number(header, "UnitLength_in_cm", path) / MPC, 1.0, 1e-3) if (
        "UnitLength_in_cm" in header) else 1.0  # fmt: skip
    mass = near(number(header, "UnitMass_in_g", path) / MSUN, 1e10, 1.0) if (
        "UnitMass_in_g" in header) else 1.0  # fmt: skip
    if facts["box_size"] is None and "BoxSize" in header:
        sides = header["BoxSize"]
        sides = sides if isinstance(sides, list) else [sides]
        scaled = [number({"BoxSize": side}, "BoxSize", path) * length for side in sides]
        facts["box_size"] = scaled[0] if len(set(scaled)) == 1 else scaled
    if facts["redshift"] is None:
        facts["redshift"] = _redshift(header, path)
    # FastPM's Omega0 is that of cold matter alone, OmegaM that of all.
    matter = next((key for key in ("OmegaM", "Omega0", "Om0", "Omega_m") if key in header), None)
    h = next((key for key in ("HubbleParam", "h") if key in header), None)
    if facts["cosmology"] is None and matter and h:
        facts["cosmology"] = {"Omega_m": number(header, matter, path), "h": number(header, h, path)}
    if header.get("UsePeculiarVelocity", 1) != 1 and "velocity" not in ask.units:
        raise StoreError(
            f"{path!r} has UsePeculiarVelocity={header['UsePeculiarVelocity']!r}: its velocities "
            "are no peculiar ones, and of which kind depends on the code. Say it: "
            "units={'velocity': 'km sqrt(a)/s'}"
        )
    names: dict[str, Any] = {"position": "Position", "velocity": "Velocity"}
    weight: tuple[float, str] = (mass, "Msun/h" if mass == 1 else f"{mass:.3g} Msun/h")
    source: dict[str, Any] = {}
    each = own.get("M0")  # of a particle, in the unit of mass
    if f"{base}Mass" in table.parts:
        names["mass"] = "Mass"
    elif each and f"{base}Length" in table.parts:
        names["mass"] = "Length"  # particles of a halo
        weight = (float(each) * mass, "particles")
    elif each:
        source["particle_mass"] = float(each) * mass
    names = {k: v for k, v in names.items() if f"{base}{v}" in table.parts or k == "position"}
    return View(
        facts,
        base,
        names,
        {
            "position": (length, "Mpc/h" if length == 1 else f"{length:.3g} Mpc/h"),
            "velocity": "km/s",
            "mass": weight,
        },
        dim="particle" if (group or "").isdigit() else "halo",
        source=source,
    )


def _redshift(header: dict[str, Any], path: str) -> float | None:
    for key in ("ScalingFactor", "Time"):
        if key in header:
            a = number(header, key, path)
            if not 0 < a <= 1.001:
                raise StoreError(f"{path!r}: the header says {key}={a:g}, a scale factor")
            return max(round(1 / a - 1, 9), 0.0)
    for key in ("redshift", "Redshift"):
        if key in header:
            return number(header, key, path)
    return None
