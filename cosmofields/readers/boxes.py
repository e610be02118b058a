"""Simulated boxes: halos, and the true fields of their matter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..catalog import from_arrays
from ..conventions import StoreError, box_facts, box_lengths, label, listing, make_grid, step
from ..lazy import CHUNK
from ..store import open_store
from .dialect import PARAMETERS
from .formats import provenance, recognise
from .hdf5 import is_zarr, read_hdf5, scan_hdf5
from .parts import Part, read_part

_FIELDS_OF = (
    "The fields behind a catalogue: cosmofields predict {!r} --out fields.zarr; in Python "
    "cf.open_catalog"
)


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
    if "://" in os.fspath(path):
        raise StoreError(
            f"'{path}': boxes are read from this machine, since they are read many times. Copy it: "
            "write_store(open_store(url), 'box.zarr')"
        )
    path = Path(path)
    if path.exists() and is_zarr(str(path)):
        return _open_box_store(path)
    if not path.is_file():
        raise StoreError(
            f"No file {str(path)!r}; expected an HDF5 box such as box_101.h5, or a store of "
            "`cosmofields simulate`"
        )
    kind = recognise(str(path))
    if kind not in (None, "hdf5"):
        raise StoreError(
            f"{str(path)!r} is no simulated box, but of the format {kind}. "
            f"{_FIELDS_OF.format(str(path))}"
        )
    # As a catalogue: nothing that lies in other files, and no more than the file can hold.
    table = scan_hdf5(str(path))
    attrs = dict(table.attrs[""])
    wanted = [f"halos/{name}" for name in ("Position", "Velocity", "Mass")]
    wanted += ["fields/density", "fields/momentum"]
    keys = ["box_size", "redshift", "Omega_m", "h"]
    lacking = [name for name in wanted if name not in table.parts]
    lacking += [f"attribute {key}" for key in keys if key not in attrs]
    if lacking:
        hint = f". {_FIELDS_OF.format(str(path))}" if {*wanted[3:]} <= {*lacking} else ""
        raise StoreError(f"{str(path)!r} is no simulated box: it lacks {listing(lacking)}{hint}")
    density, momentum = (table.parts[name] for name in wanted[3:])
    shape = density.shape
    if len(shape) != 3 or momentum.shape != (3, *shape):
        raise StoreError(
            f"{str(path)!r}: fields/density has shape {shape} and fields/momentum "
            f"{momentum.shape}; expected (x, y, z) and (3, x, y, z)"
        )
    if any(part.dtype.kind not in "iuf" for part in (density, momentum)):
        raise StoreError(f"{str(path)!r}: its fields are {density.dtype} and {momentum.dtype}")
    columns = [read_part(table.parts[name], slice(None)) for name in wanted[:3]]
    halos = from_arrays(
        *columns,
        box_size=attrs["box_size"],
        redshift=attrs["redshift"],
        cosmology={key: attrs[key] for key in PARAMETERS if key in attrs},
    )
    source = {**provenance(attrs), "file": path.name}
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
    halos = halos.load()
    # Whoever wrote the store: what it says passes as arrays of the caller's own would.
    facts: dict[str, Any] = {
        key: halos.attrs.get(key) for key in ("box_size", "redshift", "cosmology")
    }
    from_arrays(*(halos[name].values for name in columns), **facts)
    if box_lengths(true) != box_lengths(halos):
        raise StoreError(
            f"'{path}': the halos are in a box of {facts['box_size']} Mpc/h, the true fields in "
            f"one of {true.attrs['box_size']}"
        )
    said = halos.attrs.get("source")
    source = {**(said if isinstance(said, Mapping) else {}), "file": path.name}
    halos = halos.assign_attrs({**step(halos, f"open_box: {path.name}"), "source": source})
    return halos, true


def _true_fields(path: Path, shape: tuple[int, int, int], halos: xr.Dataset) -> xr.Dataset:
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
    part = Part(path, dataset, (), np.dtype(np.float32), 1, read_hdf5)
    return read_part(part, window).astype(np.float32)
