"""Files of others: simulated boxes, and catalogues larger than memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.tokenize import tokenize
from numpy.typing import NDArray

from .catalog import (
    as_catalog,
    catalog_facts,
    check_columns,
    check_finite,
    check_masses,
    check_positions,
    from_arrays,
    wrap,
)
from .conventions import (
    CatalogError,
    MissingAttributeError,
    MissingVariableError,
    StoreError,
    box_facts,
    box_lengths,
    label,
    listing,
    make_grid,
    parse_box_size,
    step,
)
from .lazy import CHUNK
from .store import open_store

# What h5py raises for damaged files, according to the place of the damage.
_UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
PARAMETERS = ("Omega_m", "Omega_b", "h", "n_s", "sigma8")
# The last part of a dataset's path, in lower case, that says which column it is.
NAMES = {
    "position": {"position", "positions", "pos", "coordinates"},
    "velocity": {"velocity", "velocities", "vel"},
    "mass": {"mass", "masses"},
}
ROWS = 2**22  # of a chunk: 48 MB of positions in float32

Source = str | os.PathLike[str]


def open_catalog(
    source: Source | Sequence[Source],
    *,
    box_size: float | Sequence[float] | None = None,
    redshift: float | None = None,
    cosmology: Any = None,
    los: str | None = None,
    position: str | None = None,
    velocity: str | None = None,
    mass: str | None = None,
    group: str | None = None,
    dim: str = "halo",
    rows: int = ROWS,
) -> xr.Dataset:
    """Open a catalogue of halos or particles lazily: what is larger than memory stays on disk.

    Parameters
    ----------
    source : path, URL, pattern, or sequence of paths
        HDF5 files or Zarr stores, one or many: ``"halos.h5"``, ``"snapshot/part.*.h5"`` (sorted),
        ``["a.h5", "b.h5"]`` (in that order), ``"halos.zarr"``.
    box_size, redshift, cosmology
        As in :func:`~cosmofields.catalog.from_arrays`.  Default: the attributes box_size, redshift,
        Omega_m, h, Omega_b, n_s, sigma8 (or a dict ``cosmology``) of the file.
    los : {"x", "y", "z"}, optional
        The line of sight, if the positions are in redshift space already.
    position, velocity, mass : str, optional
        Datasets of each file, such as ``"PartType1/Coordinates"``: (n, 3) in Mpc/h, (n, 3) in km/s,
        (n,) in Msun/h.  Default: found by their usual names, if only one set of them is there.
    group : str, optional
        Group in which to look.
    dim : str
        Name of the row dim: ``"halo"``, or ``"particle"`` for matter.
    rows : int
        Rows of a chunk, at most; the result does not depend on it.

    Returns
    -------
    Dataset
        As :func:`~cosmofields.catalog.from_arrays` gives it, dask-backed.  Only metadata are read
        now; values are read and checked, chunk by chunk, when they are computed.

    Raises
    ------
    StoreError
        If a file is missing, damaged or no HDF5 file or Zarr store.
    MissingVariableError
        If there is no such column, or more than one set of them: the message lists the datasets.
    MissingAttributeError
        If box size, redshift or cosmology are neither given nor in the file, or files disagree.
    CatalogError
        If shapes or types are wrong; of positions outside the box, values that are NaN and masses
        not in Msun/h when they are computed.
    """
    if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1:
        raise CatalogError(f"rows={rows!r}; expected a whole number, such as {ROWS}")
    names = {"position": position, "velocity": velocity, "mass": mass}
    given = {"box_size": box_size, "redshift": redshift, "cosmology": cosmology, "los": los}
    files = [_scan(path, names, group, given) for path in _expand(source)]
    first = files[0]
    for file in files[1:]:
        for one, other in ((first.parts.keys(), file.parts.keys()), (first.facts, file.facts)):
            if one != other:
                raise StoreError(
                    f"{first.path!r} and {file.path!r} are no parts of one catalogue: {one} in the "
                    f"first, {other} in the second"
                )
    facts = _require_facts(first)
    if "velocity" not in first.parts and "los" not in facts:
        raise MissingVariableError(
            f"No `velocity` beside {first.parts['position'].name!r} in {first.path!r}: name it, "
            "velocity='...', in km/s; or los='x', 'y' or 'z' if the positions are in redshift "
            "space already (in the shell: --redshift-space --los x)"
        )
    chunks = _row_chunks(files, rows)
    lengths = parse_box_size(facts["box_size"])
    columns = {name: _column(name, files, chunks, lengths) for name in first.parts}
    label = first.path if len(files) == 1 else f"{len(files)} files, {first.path} the first"
    catalog = as_catalog(columns, dim, facts, f"open_catalog: {sum(chunks)} rows of {label}")
    return catalog.assign_attrs(source={**first.source, "file": Path(first.path).name})


class _Part(NamedTuple):
    """A dataset of one file."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int  # rows that are stored, and so read, together


class _File(NamedTuple):
    path: str
    parts: dict[str, _Part]
    facts: dict[str, Any]
    source: dict[str, Any]


def _expand(source: Source | Sequence[Source]) -> list[str]:
    if not isinstance(source, str | os.PathLike):
        paths = [os.fspath(path) for path in source]
    elif "://" in os.fspath(source) or Path(source).exists():
        paths = [os.fspath(source)]
    else:
        paths = sorted(glob.glob(os.fspath(source)))
    missing = [path for path in paths if "://" not in path and not Path(path).exists()]
    if missing or not paths:
        raise StoreError(
            f"No file {missing[0] if missing else source!r}; expected HDF5 files or Zarr stores, "
            "such as 'halos.h5', 'snapshot/part.*.h5' or 'halos.zarr'"
        )
    return paths


def _scan(
    path: str, names: Mapping[str, str | None], group: str | None, given: Mapping[str, Any]
) -> _File:
    """Columns and box facts of one file; those that were ``given`` overrule the file's."""
    attrs, parts = _scan_zarr(path) if _is_zarr(path) else _scan_hdf5(path)
    base = f"{group.strip('/')}/" if group else ""
    chosen = _choose(
        path,
        {name: part for name, part in parts.items() if name.startswith(base)},
        {key: name and base + name.strip("/") for key, name in names.items()},
    )
    try:
        check_columns(chosen)
    except CatalogError as error:
        raise CatalogError(f"{path!r}: {error}") from error
    folder = chosen["position"].name.rpartition("/")[0]
    here = {**attrs[""], **attrs.get(folder, {})}
    facts = {
        "box_size": here.get("box_size"),
        "redshift": here.get("redshift"),
        "cosmology": here.get("cosmology") or {k: here[k] for k in PARAMETERS if k in here} or None,
        "los": here.get("los") if here.get("space") == "redshift" else None,
    }
    if None not in (facts["los"], given["los"]) and facts["los"] != given["los"]:
        raise CatalogError(
            f"los={given['los']!r}, but {path!r} is in redshift space along {facts['los']}"
        )
    facts.update({key: value for key, value in given.items() if value is not None})
    return _File(path, chosen, facts, _provenance(here))


def _is_zarr(path: str) -> bool:
    return "://" in path or Path(path).is_dir()


def _scan_hdf5(path: str) -> tuple[dict[str, dict[str, Any]], dict[str, _Part]]:
    """Attributes of each group, and all datasets."""
    import h5py

    attrs, parts = {}, {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            chunk = item.chunks[0] if item.chunks else 1
            parts[name] = _Part(path, name, item.shape, item.dtype, chunk)
        else:
            attrs[name] = {key: _plain(value) for key, value in item.attrs.items()}

    try:
        with h5py.File(path, "r") as file:
            visit("", file)
            file.visititems(visit)
    except _UNREADABLE as error:
        raise StoreError(
            f"{path!r} cannot be read as HDF5 ({error}): truncated, or another format"
        ) from error
    return attrs, parts


def _scan_zarr(path: str) -> tuple[dict[str, dict[str, Any]], dict[str, _Part]]:
    try:
        root = zarr.open_group(path, mode="r")
        attrs, parts = {"": dict(root.attrs)}, {}
        for name, item in root.members(max_depth=None):
            if isinstance(item, zarr.Array):
                parts[name] = _Part(path, name, item.shape, item.dtype, *item.chunks[:1] or (1,))
            else:
                attrs[name] = dict(item.attrs)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path!r} is no Zarr store ({error}), and no HDF5 file") from error
    if "cosmofields" in attrs[""]:
        open_store(path, chunks=None)  # refuses one that is not whole
    return attrs, parts


def _choose(
    path: str, parts: Mapping[str, _Part], names: Mapping[str, str | None]
) -> dict[str, _Part]:
    """The parts that are the columns: by name, or the only ones with a usual name."""
    there = listing(f"{name} {part.shape}" for name, part in sorted(parts.items())) or "none at all"
    chosen: dict[str, _Part] = {}
    for column, name in names.items():
        if name is not None:
            found = [name] if name in parts else []
        else:
            found = [key for key in parts if key.rpartition("/")[2].lower() in NAMES[column]]
            if "position" in chosen:
                folder = chosen["position"].name.rpartition("/")[0]
                found = [key for key in found if key.rpartition("/")[0] == folder]
        if len(found) > 1 or (not found and (name is not None or column == "position")):
            what = f"{len(found)} datasets could be" if found else "No dataset that is"
            raise MissingVariableError(
                f"{what} `{column}`{f' ({name})' if name else ''} in {path!r}; it holds {there}. "
                f"Name it: open_catalog(..., {column}='...'), or its group: group='...'"
            )
        if found:
            chosen[column] = parts[found[0]]
    return chosen


def _require_facts(file: _File) -> dict[str, Any]:
    how = {
        "box_size": "box_size=300.0 (the side of the periodic box in Mpc/h)",
        "redshift": "redshift=0.59",
        "cosmology": "cosmology={'Omega_m': 0.268, 'Omega_b': 0.0445, 'h': 0.71, 'n_s': 0.968, "
        "'sigma8': 0.83}",
    }
    lacking = [key for key in how if file.facts[key] is None]
    if lacking:
        raise MissingAttributeError(
            f"No {listing(f'`{key}`' for key in lacking)} in the attributes of {file.path!r}. "
            f"Pass open_catalog(..., {listing(how[key] for key in lacking)})"
        )
    return catalog_facts(**file.facts)


def _row_chunks(files: Sequence[_File], rows: int) -> tuple[int, ...]:
    """Chunks of at most ``rows`` that cut no chunk of a file, if its chunks are smaller."""
    chunks: list[int] = []
    for file in files:
        part = file.parts["position"]
        width = max(rows // part.chunk, 1) * part.chunk if part.chunk <= rows else rows
        for start in range(0, part.shape[0], width):
            size = min(width, part.shape[0] - start)
            if chunks and chunks[-1] + size <= rows:
                chunks[-1] += size
            else:
                chunks.append(size)
    return tuple(chunks) or (0,)


def _column(
    name: str, files: Sequence[_File], chunks: tuple[int, ...], lengths: tuple[float, ...]
) -> da.Array:
    parts = [file.parts[name] for file in files]
    stats = [os.stat(part.path) for part in parts if "://" not in part.path]
    stamps = [(stat.st_mtime_ns, stat.st_size) for stat in stats]
    token = tokenize(name, parts, stamps, chunks, lengths)
    # One object that the tasks share: a snapshot may have a thousand files.
    shared = dask.delayed(parts, name=f"files-{token}", traverse=False)
    shape = parts[0].shape[1:]
    return da.map_blocks(
        _read_rows,
        parts=shared,
        column=name,
        lengths=lengths,
        chunks=(chunks, *((n,) for n in shape)),
        dtype=np.float32,
        meta=np.empty((0,) * (1 + len(shape)), np.float32),
        name=f"open_catalog-{name}-{token}",
    )


def _read_rows(
    parts: Sequence[_Part],
    column: str,
    lengths: tuple[float, ...],
    block_info: Any = None,
) -> NDArray[np.float32]:
    low, high = block_info[None]["array-location"][0]
    values = np.concatenate([_read(part, window) for part, window in _cut(parts, low, high)])
    try:
        if column == "position":
            check_positions(values, lengths)
            return wrap(values, lengths)
        if column == "mass":
            check_masses(values)
        check_finite(column, values)
    except CatalogError as error:
        raise CatalogError(f"In rows {low} to {high - 1}: {error}") from error
    return values.astype(np.float32)


def _cut(parts: Sequence[_Part], low: int, high: int) -> Iterator[tuple[_Part, slice]]:
    """The parts, and the rows of each, that rows ``low`` to ``high`` of the whole lie in."""
    start = 0
    for part in parts:
        stop = start + part.shape[0]
        if start < high and low < stop:
            yield part, slice(max(low, start) - start, min(high, stop) - start)
        start = stop


def _read(part: _Part, window: Any) -> NDArray[Any]:
    """Read a window; the file is open for that time alone, in whatever process this is."""
    try:
        if _is_zarr(part.path):
            return np.asarray(zarr.open_group(part.path, mode="r")[part.name][window])
        import h5py

        with h5py.File(part.path, "r") as file:
            return file[part.name][window]
    except _UNREADABLE as error:
        raise StoreError(f"{part.path!r}: cannot read {part.name} {window} ({error})") from error


def open_box(path: str | Path) -> tuple[xr.Dataset, xr.Dataset]:
    """Open a simulated box: its halos, and the true matter fields.

    Parameters
    ----------
    path : path of an HDF5 file or a Zarr store
        HDF5 with ``halos/{Position,Velocity,Mass}``, ``fields/{density,momentum}`` and the
        attributes box_size, redshift, Omega_m, Omega_b, h, n_s, sigma8; or a store with the groups
        ``halos`` and ``true``, as :func:`~cosmofields.simulation.simulate` writes it.

    Returns
    -------
    halos : Dataset
        Catalogue in real space, in memory.
    true : Dataset
        ``density`` (x, y, z), ``velocity`` and ``momentum`` (component, x, y, z); dask-backed, read
        from the file when computed.  The velocity of a cell without mass is NaN (of a store: what
        the store holds).

    Raises
    ------
    StoreError
        If the path is no such file or store, or it is truncated or incomplete.
    """
    import h5py

    path = Path(path)
    if (path / "zarr.json").is_file():
        return _open_box_store(path)
    if not path.is_file():
        raise StoreError(
            f"No file {str(path)!r}; expected an HDF5 box such as box_101.h5, or a store of "
            "`cosmofields simulate`"
        )
    try:
        with h5py.File(path, "r") as file:
            wanted = [f"halos/{name}" for name in ("Position", "Velocity", "Mass")]
            wanted += ["fields/density", "fields/momentum"]
            keys = ["box_size", "redshift", "Omega_m", "h"]
            lacking = [name for name in wanted if not isinstance(file.get(name), h5py.Dataset)]
            lacking += [f"attribute {key}" for key in keys if key not in file.attrs]
            if lacking:
                raise StoreError(f"{str(path)!r} is no simulated box: it lacks {listing(lacking)}")
            attrs = {key: _plain(value) for key, value in file.attrs.items()}
            columns = [file[name][:] for name in wanted[:3]]
            shape = file["fields/density"].shape
            if len(shape) != 3 or file["fields/momentum"].shape != (3, *shape):
                raise StoreError(
                    f"{str(path)!r}: fields/density has shape {shape} and fields/momentum "
                    f"{file['fields/momentum'].shape}; expected (x, y, z) and (3, x, y, z)"
                )
    except StoreError:
        raise
    except _UNREADABLE as error:
        raise StoreError(
            f"{str(path)!r} cannot be read as HDF5 ({error}): truncated, or another format"
        ) from error

    halos = from_arrays(
        *columns,
        box_size=attrs["box_size"],
        redshift=attrs["redshift"],
        cosmology={key: attrs[key] for key in PARAMETERS if key in attrs},
    )
    source = {**_provenance(attrs), "file": path.name}
    halos = halos.assign_attrs({"source": source, **step(halos, f"open_box: {path.name}")})
    return halos, _true_fields(path, shape, halos)


def _open_box_store(path: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """As :func:`open_box`, of a Zarr store."""
    tree = open_store(path)
    columns, fields = ("position", "velocity", "mass"), ("density", "velocity", "momentum")
    wanted = [f"halos/{name}" for name in columns] + [f"true/{name}" for name in fields]
    tree = tree if isinstance(tree, xr.DataTree) else xr.DataTree(tree)
    there = {f"{node.path}/{name}".lstrip("/") for node in tree.subtree for name in node.data_vars}
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise StoreError(f"'{path}' is no simulated box: it lacks {listing(lacking)}")
    halos, true = tree["halos"].to_dataset(), tree["true"].to_dataset()
    source = {**halos.attrs.get("source", {}), "file": path.name}
    halos = halos.load().assign_attrs({**step(halos, f"open_box: {path.name}"), "source": source})
    return halos, true


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    return value.decode() if isinstance(value, bytes) else value


def _provenance(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: attrs[key] for key in ("code", "seed", "role", "particle_mass") if key in attrs}


def _true_fields(path: Path, shape: tuple[int, int, int], halos: xr.Dataset) -> xr.Dataset:
    import dask.array as da

    grid = make_grid(shape, box_lengths(halos))

    def read(name: str, full: tuple[int, ...]) -> da.Array:
        chunks = tuple(1 if len(full) > 3 and i == 0 else CHUNK for i in range(len(full)))
        return da.map_blocks(
            _read_block,
            chunks=da.core.normalize_chunks(chunks, full),
            dtype=np.float32,
            path=str(path),
            dataset=name,
            meta=np.empty((0,) * len(full), np.float32),
        )

    density = read("fields/density", shape)
    momentum = read("fields/momentum", (3, *shape))
    velocity = momentum / da.where(density > 0, density, np.float32(np.nan))
    fields = {"density": density, "velocity": velocity, "momentum": momentum}
    return xr.Dataset(
        {name: label(name, data, grid, box_facts(halos)) for name, data in fields.items()},
        attrs=halos.attrs,
    )


def _read_block(path: str, dataset: str, block_info: Any = None) -> NDArray[np.float32]:
    window = tuple(slice(lo, hi) for lo, hi in block_info[None]["array-location"])
    part = _Part(path, dataset, (), np.dtype(np.float32), 1)
    return _read(part, window).astype(np.float32)
