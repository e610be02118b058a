"""The formats: how each is recognised by its contents, and how a file becomes columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..catalog import check_columns
from ..conventions import (
    CatalogError,
    CosmofieldsError,
    MissingVariableError,
    StoreError,
    listing,
    numbers,
    parse_box_size,
)
from . import asdf, bigfile, binary, gadget, records, tables, text
from .dialect import PARAMETERS, Ask, Names, View, conversion, merged
from .hdf5 import is_zarr, scan_hdf5, scan_zarr
from .parts import UNREADABLE, Column, File, Part, Table

# The last part of a dataset's path, in lower case, that says which column it is.
NAMES = {
    "position": ("position", "positions", "pos", "coordinates"),
    "velocity": ("velocity", "velocities", "vel"),
    "mass": ("mass", "masses", "mvir", "halo_mvir", "m200c", "m200b", "m200m", "mhalo"),
}
# Those of x, of y and of z are these and the letter.
TRIPLES = {
    "position": ("{}", "pos_{}", "position_{}", "halo_{}", "{}_pos", "pos{}", "{}pos"),
    "velocity": ("v{}", "vel_{}", "velocity_{}", "halo_v{}", "v_{}", "{}_vel", "vel{}", "{}vel"),
}
DEFAULT_UNITS = {"position": "Mpc/h", "velocity": "km/s", "mass": "Msun/h"}


class Format(NamedTuple):
    """A format: what reads its table, what is made of it, and whether a table is of it."""

    scan: Callable[[str], Table]
    view: Callable[[Table, Ask], View]
    suits: Callable[[Table], bool] | None = None  # of those that share a container


def table_view(table: Table, ask: Ask) -> View:
    """A table of somebody's own: columns by name, facts from attributes."""
    base = f"{ask.group.strip('/')}/" if ask.group else ""
    position = find(table, base, "position", ask.names["position"])[0]
    folder = position.name.rpartition("/")[0]
    while folder and folder not in table.attrs:  # fields of a compound dataset
        folder = folder.rpartition("/")[0]
    here = {**table.attrs.get("", {}), **table.attrs.get(folder, {})}
    here = {k: v for k, v in here.items() if isinstance(k, str)}
    los = here.get("los") if here.get("space") == "redshift" else None
    if None not in (los, ask.given.get("los")) and los != ask.given["los"]:
        raise CatalogError(
            f"los={ask.given['los']!r}, but {table.path!r} is in redshift space along {los}"
        )
    cosmology = here.get("cosmology") or {k: here[k] for k in PARAMETERS if k in here} or None
    facts = merged(
        ask,
        box_size=here.get("box_size"),
        redshift=here.get("redshift"),
        cosmology=cosmology,
        los=los,
    )
    return View(facts, base, source=provenance(here))


FORMATS: dict[str, Format] = {
    "swift": Format(scan_hdf5, gadget.swift, gadget.is_swift),
    "gadget": Format(scan_hdf5, gadget.snapshot, gadget.is_snapshot),
    "gadget_binary": Format(records.scan_records, gadget.snapshot),
    "subfind": Format(scan_hdf5, gadget.groups, gadget.is_groups),
    "pysco": Format(scan_hdf5, gadget.pysco, gadget.is_pysco),
    "hdf5": Format(scan_hdf5, table_view),
    "zarr": Format(scan_zarr, table_view),
    "bigfile": Format(bigfile.scan_bigfile, bigfile.blocks),
    "compaso": Format(asdf.scan_asdf, asdf.compaso),
    "group_tab": Format(binary.scan_group_tab, binary.group_tab),
    "rockstar": Format(text.scan_text, text.rockstar, text.is_rockstar),
    "csv": Format(text.scan_text, table_view),
    "fits": Format(tables.scan_fits, table_view),
    "parquet": Format(tables.scan_parquet, table_view),
    "npz": Format(tables.scan_npz, table_view),
}
# The first bytes of a file, and of which container they are.
MAGIC = {
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"#ASDF ": "compaso",
    b"SIMPLE  =": "fits",
    b"PAR1": "parquet",
    b"PK\x03\x04": "npz",
}
# Text in a file of such a name is a page that says why there is no file.
NO_TEXT = {".h5", ".hdf5", ".fits", ".parquet", ".npz", ".asdf", ".zarr"}


def recognise(path: str) -> str | None:
    """Name of the container or format that a path holds, by its contents; None if of none."""
    try:
        if is_zarr(path):
            return "zarr"
        if Path(path).is_dir():
            return "bigfile" if bigfile.is_bigfile(path) else None
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise StoreError(f"{path!r} cannot be read: {error}") from error
    content = text.unpacked(head)
    for magic, name in MAGIC.items():
        if content.startswith(magic):
            return name if content is head else None
    if records.is_records(head):
        return "gadget_binary"
    if binary.is_group_tab(path):
        return "group_tab"
    if text.looks_like_text(content) and Path(path).suffix.lower() not in NO_TEXT:
        return "csv"
    import h5py

    return "hdf5" if h5py.is_hdf5(path) else None  # behind a block of the user's


def understand(path: str, format: str | None, ask: Ask) -> File:
    """Columns and facts of one file; of an empty part of a catalogue the facts alone."""
    kind = format or recognise(path)
    if kind is None and Path(path).is_file() and Path(path).suffix.lower() not in NO_TEXT:
        held = "is empty" if not Path(path).stat().st_size else "is of no format that is known here"
        if Path(path).suffix.lower() in (".gz", ".bz2", ".xz", ".zst"):
            held = "is packed, and not a text in gzip, which is read as it is: unpack it first"
        raise StoreError(
            f"{path!r} {held}; expected one of {listing(sorted(FORMATS))} (docs/formats.md), or a "
            "table with a line of names: CSV"
        )
    if kind is None:
        # Those of the usual formats say what is wrong with what bears their name.
        kind = "zarr" if Path(path).is_dir() else "hdf5"
    try:
        scan = FORMATS[kind].scan
        table = scan_zarr(path, ask.storage) if scan is scan_zarr else scan(path)
    except CosmofieldsError:
        raise
    except UNREADABLE as error:
        raise StoreError(f"{path!r} cannot be read as {kind}: {error}") from error
    if format is None:
        for name, other in FORMATS.items():
            if other.suits and other.scan is FORMATS[kind].scan and other.suits(table):
                kind = name
                break
    try:
        view = FORMATS[kind].view(table, ask)
    except CosmofieldsError:
        raise
    except UNREADABLE as error:
        raise StoreError(
            f"{path!r}: the header is damaged, or of another format: {error}"
        ) from error
    source = {**view.source, "format": kind}
    if view.rows == 0:
        return File(path, kind, {}, view.facts, source, view.dim, view.files)
    columns: dict[str, Column] = {}
    converted: dict[str, str] = {}
    for column in ("position", "velocity", "mass"):
        asked = ask.names[column]
        if asked is None and view.names is not None:
            asked = view.names.get(column)
            if asked is None:
                continue
        near = columns["position"].parts[0] if columns and view.names is None else None
        parts = find(table, view.base, column, asked, near)
        if parts:
            columns[column], said = _convert(column, parts, view, ask, path)
            converted.update(said)
    try:
        check_columns(columns)
    except CatalogError as error:
        raise CatalogError(f"{path!r}: {error}") from error
    rows = columns["position"].shape[0]
    if view.rows not in (None, rows):
        raise StoreError(
            f"{path!r}: the header declares {view.rows} rows, and {columns['position'].name} has "
            f"{rows}: truncated or damaged"
        )
    if converted:
        source["converted"] = converted
    return File(path, kind, columns, view.facts, source, view.dim, view.files)


def _convert(
    name: str, parts: tuple[Part, ...], view: View, ask: Ask, path: str
) -> tuple[Column, dict[str, str]]:
    """The column in the units of a catalogue, and what was done to it in words."""
    unit = ask.units.get(name, view.units.get(name, DEFAULT_UNITS[name]))
    if isinstance(unit, str):
        factor, log = conversion(name, unit, view.facts, path)
    else:
        (factor, unit), log = unit, False
    offset: tuple[float, ...] = ()
    times = f" times {factor:.6g}" if factor != 1 else ""
    said = [f"{f'10**({unit})' if log else unit}{times}"] if times or log else []
    if name == "position":
        origin: Any = ask.origin
        if origin is None and view.centred and view.facts["box_size"] is not None:
            origin = -np.asarray(parse_box_size(view.facts["box_size"])) / 2
        if origin is not None:
            corner = numbers(origin)
            if corner.shape not in ((), (3,)) or not np.isfinite(corner).all():
                raise CatalogError(f"origin={origin!r}; expected one number in Mpc/h, or three")
            offset = tuple(float(-x) for x in np.broadcast_to(corner, 3))
            said.append(f"moved by {listing(f'{x:.6g}' for x in offset)} Mpc/h")
    return Column(parts, factor, offset, log), {name: ", ".join(said)} if said else {}


def find(
    table: Table, base: str, column: str, name: Names, near: Part | None = None
) -> tuple[Part, ...]:
    """The parts that are a column: by name, or the only ones with a usual name.

    Raises
    ------
    MissingVariableError
        If there is none and there must be, or more than one.
    """
    parts = {key: part for key, part in table.parts.items() if key.startswith(base)}
    found: list[tuple[Part, ...]]
    if name is not None:
        names = [name] if isinstance(name, str) else [*name]
        keys = [base + str(one).strip("/") for one in names]
        # The whole path, where the group is the format's and not the caller's.
        keys = [key if key in parts else key.removeprefix(base) for key in keys]
        if len(keys) not in (1, 3) or (column == "mass" and len(keys) != 1):
            raise CatalogError(f"{column}={name!r}; expected one name, or those of x, y and z")
        all_parts = table.parts
        if all(key in all_parts for key in keys):
            found = [tuple(all_parts[key] for key in keys)]
        else:
            found = []
        shapes = {part.shape for part in found[0]} if found else set()
        if len(shapes) > 1:
            raise CatalogError(f"{column}={name!r} in {table.path!r} have shapes {listing(shapes)}")
    else:
        found = _by_usual_names(parts, column)
        if near is not None:
            folder = near.name.rpartition("/")[0]
            found = [one for one in found if one[0].name.rpartition("/")[0] == folder]
    if len(found) > 1 or (not found and (name is not None or column == "position")):
        # Of a group that is not there, what there is elsewhere.
        there = parts or table.parts
        holds = listing(f"{key} {part.shape}" for key, part in sorted(there.items()))
        what = f"{len(found)} datasets could be" if found else "No dataset that is"
        others = {
            part.name
            for other in NAMES.keys() - {column}
            for one in _by_usual_names(there, other)
            for part in one
        }
        free = [key.removeprefix(base) for key, part in there.items() if part.name not in others]
        three = _three(column, free)
        raise MissingVariableError(
            f"{what} `{column}`{f' ({name})' if name else ''} in {table.path!r}; it holds "
            f"{holds or 'none at all'}{_meant(name, free)}. Name it: "
            f"open_catalog(..., {column}='...'), or its group: "
            f"group='...'{f'; or three: {column}={three}' if three else ''} "
            f"(in the shell: --{column} {' '.join(three) or 'NAME'})"
        )
    return found[0] if found else ()


def _three(column: str, there: Collection[str]) -> tuple[str, ...]:
    """Names of x, y and z: the only ones that look like it, else the usual; none of a mass."""
    usual = {"position": ("x", "y", "z"), "velocity": ("vx", "vy", "vz")}
    if column not in usual:
        return ()
    found = set()
    for key in there:
        for letters in ("xyz", "XYZ", "123"):
            head, x, tail = key.rpartition(letters[0])
            three = tuple(f"{head}{letter}{tail}" for letter in letters)
            # Columns of velocities say so; what says nothing is not offered for one.
            fits = ("v" in f"{head}{tail}".lower()) == (column == "velocity")
            if x and fits and all(one in there for one in three):
                found.add(three)
    return found.pop() if len(found) == 1 else usual[column]


def _meant(name: Names, there: Collection[str]) -> str:
    """The names that lie near to those asked for, whatever their case."""
    asked = [] if name is None else [name] if isinstance(name, str) else [str(one) for one in name]
    known = {key.lower(): key for key in there}
    near = {one: get_close_matches(one.lower(), known, 1, 0.7) for one in asked if one not in there}
    meant = listing(f"{known[match[0]]!r} for {one!r}" for one, match in near.items() if match)
    return f" (did you mean {meant}?)" if meant else ""


def _by_usual_names(parts: Mapping[str, Part], column: str) -> list[tuple[Part, ...]]:
    plain = {(key.rpartition("/")[0], key.rpartition("/")[2].lower()): key for key in parts}
    found: list[tuple[Part, ...]] = [
        (parts[key],) for (_, last), key in plain.items() if last in NAMES[column]
    ]
    if column == "mass" and len(found) > 1:
        # `mass` itself is the mass, whatever other definitions stand beside it.
        exact = [one for one in found if one[0].name.rpartition("/")[2].lower() == "mass"]
        return exact or found
    wide = [one for one in found if len(one[0].shape) != 1] if column != "mass" else found
    triples: list[tuple[Part, ...]] = []
    for folder in dict.fromkeys(folder for folder, _ in plain):
        for pattern in TRIPLES.get(column, ()):
            keys = [plain.get((folder, pattern.format(axis))) for axis in "xyz"]
            three = tuple(parts[key] for key in keys if key is not None)
            if len(three) == 3 and len({part.shape for part in three}) == 1:
                triples.append(three)
    return [*wide, *triples]


def provenance(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What the attributes of a file say about where it comes from."""
    return {key: attrs[key] for key in ("code", "seed", "role", "particle_mass") if key in attrs}
