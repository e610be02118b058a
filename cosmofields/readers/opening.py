"""Catalogues of others, larger than memory: files are understood now and read when computed."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.tokenize import tokenize
from numpy.typing import NDArray

from ..catalog import (
    UnitsWarning,
    as_catalog,
    catalog_facts,
    check_box,
    check_finite,
    check_masses,
    check_positions,
    check_velocities,
    doubts,
    wrap,
)
from ..conventions import (
    CatalogError,
    MissingAttributeError,
    MissingVariableError,
    StoreError,
    listing,
    parse_box_size,
)
from .dialect import Ask
from .formats import FORMATS, recognise, understand
from .parts import Column, File, cut, read_column

ROWS = 2**22  # of a chunk: 48 MB of positions in float32
# A folder may hold copies of these, or other catalogues; other formats number the parts of one in
# their headers, and dask, Spark and pyarrow in the names of files.
PART = re.compile(r"part[-._]?\d+")
WHOLE = {"csv", "hdf5", "fits", "npz", "parquet"}
CHUNKS = 10**6  # of a catalogue, at most: more would fill the memory before anything is read

Source = str | os.PathLike[str]
Names = str | Sequence[str]


def open_catalog(
    source: Source | Sequence[Source],
    *,
    box_size: float | Sequence[float] | None = None,
    redshift: float | None = None,
    cosmology: Any = None,
    los: str | None = None,
    position: Names | None = None,
    velocity: Names | None = None,
    mass: str | None = None,
    group: str | None = None,
    units: Mapping[str, str] | None = None,
    origin: float | Sequence[float] | None = None,
    format: str | None = None,
    dim: str | None = None,
    rows: int = ROWS,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Open a catalogue of halos or particles lazily: what is larger than memory stays on disk.

    Parameters
    ----------
    source : path, URL, pattern, or sequence of paths
        Files of one catalogue, one or many: ``"halos.h5"``, ``"snapshot/part.*.h5"`` (sorted),
        ``["a.h5", "b.h5"]`` (in that order), ``"halos.zarr"``, or the folder of a snapshot.  The
        page on formats lists what is read: Gadget, AREPO, SWIFT, SUBFIND, Rockstar, AbacusSummit,
        Quijote, bigfile, PySCo; tables in HDF5, Zarr, FITS, Parquet, CSV and NPZ.
    box_size, redshift, cosmology
        As in :func:`~cosmofields.catalog.from_arrays`.  Default: those of the file's header; of a
        table the attributes box_size, redshift, Omega_m, h, Omega_b, n_s, sigma8 (or a dict
        ``cosmology``).
    los : {"x", "y", "z"}, optional
        The line of sight, if the positions are in redshift space already.
    position, velocity : str or three of them, optional
        Columns of each file: one of shape (n, 3), such as ``"PartType1/Coordinates"``, or those of
        x, y and z: ``("x", "y", "z")``.  Default: those of the format; of a table, found by their
        usual names, if only one set of them is there.
    mass : str, optional
        Likewise, of shape (n,).
    group : str, optional
        Group in which to look: ``"PartType0"``, ``"Subhalo"``, ``"LL-0.200"``.
    units : dict, optional
        What the columns hold, if not what the format says (of a table: Mpc/h comoving, km/s
        peculiar, Msun/h).  ``position``: "Mpc/h", "kpc/h", "Gpc/h", "Mpc", "kpc" (all comoving),
        "box"; ``velocity``: "km/s", "m/s", "c", "km sqrt(a)/s", "km/s/a"; ``mass``: "Msun/h",
        "1e10 Msun/h", "Msun", "1e10 Msun", "log10 Msun/h", "log10 Msun".
    origin : float or three, optional
        Coordinate of the corner of the box in Mpc/h, which becomes 0: -box_size / 2 where the box
        is centred on 0.
    format : str, optional
        One of the formats, by name, if the contents are not to decide.
    dim : str, optional
        Name of the row dim: ``"halo"``, or ``"particle"`` for matter.  Default: by the format.
    rows : int
        Rows of a chunk, at most; the result does not depend on it.
    storage_options : dict, optional
        Of an object store, for a URL; see :func:`~cosmofields.open_store`.

    Returns
    -------
    Dataset
        As :func:`~cosmofields.catalog.from_arrays` gives it, dask-backed.  Only metadata are read
        now (of a text file, where its lines begin); values are read and checked, chunk by chunk,
        when they are computed.  ``attrs["source"]`` says which format it was, and what was
        converted.

    Raises
    ------
    StoreError
        If a file is missing, damaged, of no known format, or not all files of a catalogue are
        given.
    MissingVariableError
        If there is no such column, or more than one set of them: the message lists the datasets.
    MissingAttributeError
        If box size, redshift or cosmology are neither given nor in the file, or files disagree.
    MissingExtraError
        If a library is missing that the format needs.
    CatalogError
        If shapes or types are wrong; of positions outside the box, values that are NaN, velocities
        not in km/s and masses not in Msun/h when they are computed.

    Warns
    -----
    UnitsWarning
        When values are computed that are unlikely in their units, with the numbers.
    """
    if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1:
        raise CatalogError(f"rows={rows!r}; expected a whole number, such as {ROWS}")
    if format is not None and format not in FORMATS:
        raise StoreError(f"format={format!r}; expected one of {listing(sorted(FORMATS))}")
    names = {"position": position, "velocity": velocity, "mass": mass}
    if units is not None and (not isinstance(units, Mapping) or units.keys() - names.keys()):
        raise CatalogError(
            f"units={units!r}; expected position, velocity or mass, and a unit: "
            "units={'position': 'kpc/h'}"
        )
    given = {"box_size": box_size, "redshift": redshift, "cosmology": cosmology, "los": los}
    given = {key: value for key, value in given.items() if value is not None}
    ask = Ask(names, group, given, units or {}, origin, storage_options)
    paths = _expand(source, format)
    try:
        files = [understand(path, format, ask) for path in paths]
        first = _check_together(files)
    except (StoreError, MissingVariableError) as error:
        if len(paths) == 1 or not _is_folder(source):
            raise
        raise type(error)(
            f"{error}. {os.fspath(source)!r} holds {len(paths)} files; to read some of them, name "
            f"them, such as {paths[0]!r}"
        ) from None
    numbered = all(PART.match(Path(path).name) for path in paths)
    if _is_folder(source) and len(files) > 1 and first.format in WHOLE and not numbered:
        raise StoreError(
            f"{os.fspath(source)!r} holds {len(files)} files of {first.format}, and nothing says "
            f"that they are parts of one catalogue; of copies each halo would count twice. Name "
            f"one, such as {paths[0]!r}; or of parts all: "
            f"'{Path(paths[0]).parent / '*'}{Path(paths[0]).suffix}'"
        )
    facts = _require_facts(first)
    parts = [file for file in files if file.n_rows]
    if not parts:
        raise CatalogError(f"The catalogue is empty: `position` has no rows in {first.path!r}")
    if "velocity" not in parts[0].columns and "los" not in facts:
        raise MissingVariableError(
            f"No `velocity` beside {parts[0].columns['position'].name!r} in {first.path!r}: name "
            "it, velocity='...', in km/s; or los='x', 'y' or 'z' if the positions are in redshift "
            "space already (in the shell: --redshift-space --los z)"
        )
    dim = dim or first.dim
    chunks = _row_chunks(parts, rows)
    columns = {name: _column(name, parts, chunks, facts, dim) for name in parts[0].columns}
    what = first.path if len(files) == 1 else f"{len(files)} files, {first.path} the first"
    catalog = as_catalog(columns, dim, facts, f"open_catalog: {sum(chunks)} rows of {what}")
    return catalog.assign_attrs(source={**first.source, "file": Path(first.path).name})


def _expand(source: Source | Sequence[Source], format: str | None) -> list[str]:
    if not isinstance(source, str | os.PathLike):
        if not all(isinstance(path, str | os.PathLike) for path in source):
            raise StoreError(
                f"A {type(source).__name__} was given; expected paths of files. Arrays become a "
                "catalogue by from_arrays(position, velocity, mass, box_size=..., ...)"
            )
        paths = [os.fspath(path) for path in source]
    elif "://" in os.fspath(source) or Path(source).exists():
        paths = [os.fspath(source)]
    else:
        paths = sorted(glob.glob(os.fspath(source)))
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise StoreError(f"{twice!r} is given twice, and its rows would count twice")
    missing = [path for path in paths if "://" not in path and not Path(path).exists()]
    if missing or not paths:
        lost = missing[0] if missing else source
        raise StoreError(
            f"No file {lost!r}{_near(lost)}; expected HDF5 files or Zarr stores, such as "
            "'halos.h5', 'snapshot/part.*.h5' or 'halos.zarr', or another format of "
            "docs/formats.md"
        )
    for path in paths:
        if "://" not in path and not (Path(path).is_file() or Path(path).is_dir()):
            raise StoreError(f"{path!r} is neither a file nor a folder")  # a pipe, which would wait
    if len(paths) == 1 and format is None and "://" not in paths[0] and Path(paths[0]).is_dir():
        return _of_folder(paths[0])
    return paths


def _is_folder(source: Source | Sequence[Source]) -> TypeGuard[Source]:
    return isinstance(source, str | os.PathLike) and Path(source).is_dir()


def _near(path: Source | Sequence[Source]) -> str:
    """What lies where a file does not, under a name like its own."""
    if not isinstance(path, str | os.PathLike):
        return ""
    folder, name = os.path.split(os.fspath(path))
    try:
        here = os.listdir(folder or ".")
    except OSError:
        return ""
    near = [os.path.join(folder, one) for one in get_close_matches(name, here, 1, 0.8)]
    return f" (did you mean {near[0]!r}?)" if near else ""


def _of_folder(folder: str) -> list[str]:
    """The folder itself if it is a store; else the files in it that are of one known format."""
    if recognise(folder):
        return [folder]
    if (Path(folder) / "halo_info").is_dir():  # a redshift of AbacusSummit
        folder = str(Path(folder) / "halo_info")
    inside = sorted(str(path) for path in Path(folder).iterdir() if path.is_file())
    kinds = {path: kind for path in inside if (kind := recognise(path))}
    # Beside the pieces of a catalogue there may lie a list of files, checksums or notes.
    found = {kind for kind in kinds.values() if kind != "csv"} or set(kinds.values())
    if len(found) != 1:
        raise StoreError(
            f"{folder!r} is no Zarr store, no bigfile, and holds "
            f"{f'files of several formats, {listing(sorted(found))}' if found else 'no catalogue'}"
            ": name the files, such as 'folder/part.*.h5'"
        )
    return [path for path, kind in kinds.items() if kind in found]


def _check_together(files: Sequence[File]) -> File:
    """The first file, if all are parts of one catalogue and none is missing."""
    first = files[0]
    filled = [file for file in files if file.columns] or [first]
    for file in files[1:]:
        pairs: list[tuple[Any, Any]] = [(first.facts, file.facts), (first.format, file.format)]
        if file.columns:
            pairs.insert(0, (filled[0].columns.keys(), file.columns.keys()))
        for one, other in pairs:
            if one != other:
                raise StoreError(
                    f"{first.path!r} and {file.path!r} are no parts of one catalogue: {one} in the "
                    f"first, {other} in the second"
                )
    if first.files is not None and len(files) != first.files:
        pattern = re.sub(r"(?<=[._])\d+(?=(\.[A-Za-z]\w*)?$)", "*", Path(first.path).name)
        raise StoreError(
            f"{first.path!r} is one of {first.files} files of a catalogue, and {len(files)} are "
            f"given: open_catalog('{Path(first.path).parent / pattern}')"
        )
    return first


def _require_facts(file: File) -> dict[str, Any]:
    # Without numbers, which would be taken over with the rest.
    how = {
        "box_size": "box_size=... (the side of the periodic box in Mpc/h)",
        "redshift": "redshift=...",
        "cosmology": "cosmology={'Omega_m': ..., 'Omega_b': ..., 'h': ..., 'n_s': ..., "
        "'sigma8': ...}",
    }
    shell = {
        "box_size": "--box-size L",
        "redshift": "--redshift Z",
        "cosmology": "--cosmology Omega_m=...,Omega_b=...,h=...,n_s=...,sigma8=...",
    }
    lacking = [key for key in how if file.facts.get(key) is None]
    if lacking:
        raise MissingAttributeError(
            f"No {listing(f'`{key}`' for key in lacking)} in the attributes of {file.path!r}. "
            f"Pass those of your simulation: open_catalog(..., "
            f"{listing(how[key] for key in lacking)}); in the shell: "
            + " ".join(shell[key] for key in lacking)
        )
    facts = catalog_facts(**{key: file.facts.get(key) for key in (*how, "los")})
    check_box(parse_box_size(facts["box_size"]))
    return facts


def _row_chunks(files: Sequence[File], rows: int) -> tuple[int, ...]:
    """Chunks of at most ``rows`` that cut no chunk of a file, if its chunks are smaller."""
    total = sum(file.n_rows for file in files)
    if total > CHUNKS * rows:
        raise CatalogError(
            f"{files[0].path!r}: {total} rows would be {total // rows} chunks of {rows}; expected "
            f"at most {CHUNKS}: pass more rows, or the file is damaged"
        )
    chunks: list[int] = []
    for file in files:
        chunk = file.columns["position"].chunk
        width = max(rows // chunk, 1) * chunk if chunk <= rows else rows
        for start in range(0, file.n_rows, width):
            size = min(width, file.n_rows - start)
            if chunks and chunks[-1] + size <= rows:
                chunks[-1] += size
            else:
                chunks.append(size)
    return tuple(chunks)


def _column(
    name: str,
    files: Sequence[File],
    chunks: tuple[int, ...],
    facts: Mapping[str, Any],
    dim: str,
) -> da.Array:
    columns = [file.columns[name] for file in files]
    paths = [file.path for file in files if "://" not in file.path]
    stamps = [(stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, paths)]
    token = tokenize(name, columns, stamps, chunks, facts, dim)
    # One object that the tasks share: a snapshot may have a thousand files.
    shared = dask.delayed(columns, name=f"files-{token}", traverse=False)
    shape = columns[0].shape[1:]
    return da.map_blocks(
        _read_rows,
        columns=shared,
        column=name,
        facts={key: facts[key] for key in ("box_size", "redshift", "cosmology")},
        dim=dim,
        chunks=(chunks, *((n,) for n in shape)),
        dtype=np.float32,
        meta=np.empty((0,) * (1 + len(shape)), np.float32),
        name=f"open_catalog-{name}-{token}",
    )


def _read_rows(
    columns: Sequence[Column],
    column: str,
    facts: Mapping[str, Any],
    dim: str,
    block_info: Any = None,
) -> NDArray[np.float32]:
    low, high = block_info[None]["array-location"][0]
    whole = block_info[None]["num-chunks"][0] == 1
    paths = list(dict.fromkeys(part.parts[0].path for part, _ in cut(columns, low, high)))
    where = repr(paths[0]) if len(paths) == 1 else f"{len(paths)} files, {paths[0]!r} the first"
    where += "" if whole else f", rows {low} to {high - 1}"
    lengths = parse_box_size(facts["box_size"])
    values = np.concatenate([read_column(part, rows) for part, rows in cut(columns, low, high)])
    try:
        if column == "position":
            check_positions(values, lengths)
            values = wrap(values, lengths)
        elif column == "mass":
            check_masses(values, least=1e6 if dim == "halo" else 1.0)
        check_finite(column, values)
        if column == "velocity":
            check_velocities(values)
    except CatalogError as error:
        logarithm = any(part.log for part in columns) and not np.isfinite(values).all()
        hint = ". Are they logarithms, as `units` says?" if logarithm else ""
        raise CatalogError(f"{where}: {error}{hint}") from None
    doubt = doubts(column, values, lengths, facts, whole=whole)
    if doubt:
        warnings.warn(f"{where}: {doubt}", UnitsWarning, stacklevel=2)
    return values.astype(np.float32, copy=False)
