"""A thousand million particles from disk to fields, within a budget."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from cosmofields.catalog import from_arrays
from cosmofields.kernels.mesh import cic
from cosmofields.lazy import n_threads
from cosmofields.painting import paint_matter

from .data import FACTS, shuffled, zeldovich
from .harness import COST, Row, peak_of, say

SIDE = 2000.0
ROWS = 2**22
BUDGET = "4 GB"


def _block(n: int) -> NDArray[np.float32]:
    """Positions of ``n``^3 particles in half the side of the box, in no order."""
    return shuffled(zeldovich(n, SIDE / 2))


def _write(folder: str, n: int) -> None:
    """The block in each octant; velocities are positions in another order, in km/s."""
    block = _block(n)
    arrays = {}
    for name in ("position", "velocity"):
        arrays[name] = zarr.create_array(
            str(Path(folder, f"{name}.zarr")),
            shape=(8 * n**3, 3),
            chunks=(min(ROWS, n**3), 3),
            dtype=np.float32,
            compressors=None,
        )
    for octant in range(8):
        corner = np.array(np.unravel_index(octant, (2, 2, 2)), np.float32) * (SIDE / 2)
        rows = slice(octant * n**3, (octant + 1) * n**3)
        arrays["position"][rows] = block + corner.astype(np.float32)
        arrays["velocity"][rows] = block[::-1] - np.float32(SIDE / 4)


def _paint(folder: str, n_grid: int) -> None:
    """Density and momentum, written to a store."""
    few = np.zeros((2, 3), np.float32)
    keep = {key: FACTS[key] for key in ("redshift", "cosmology")}
    plain = from_arrays(few, few, box_size=SIDE, **keep, dim="particle")
    particles = xr.Dataset(
        {
            name: (var.dims, da.from_zarr(str(Path(folder, f"{name}.zarr"))), var.attrs)
            for name, var in plain.data_vars.items()
        },
        coords={"component": plain["component"]},
        attrs=plain.attrs,
    )
    with dask.config.set({"cosmofields.memory": BUDGET}):
        fields = paint_matter(particles, n_grid)[["density", "momentum"]]
        fields.attrs = {}
        for name in fields:
            fields[name].attrs = {}
        fields.to_zarr(str(Path(folder, "fields.zarr")), mode="w", consolidated=False)


def _read(folder: str) -> None:
    for name in ("position", "velocity"):
        array = zarr.open_array(str(Path(folder, f"{name}.zarr")), mode="r")
        for start in range(0, array.shape[0], ROWS):
            array[start : start + ROWS]


def _kernel(n: int, n_grid: int) -> float:
    """An eighth of the particles, in memory already: number and momentum."""
    block = _block(n)
    start = time.perf_counter()
    cic(block, (n_grid,) * 3, (SIDE / 2,) * 3, vector=block, n_threads=n_threads())
    return time.perf_counter() - start


def thousand_million(quick: bool) -> list[Row]:
    """Number and momentum of 10^9 particles on 512^3 cells, against reading and the kernel."""
    n, n_grid = (16, 32) if quick else (500, 512)
    count = 8 * n**3
    with tempfile.TemporaryDirectory() as folder:
        peak_of(_write, folder, n)
        say(f"  {count:.3g} particles written")
        _, seconds, peak = peak_of(_paint, folder, n_grid)
        _, reading, _ = peak_of(_read, folder)
    kernel, _, _ = peak_of(_kernel, n, n_grid)
    more = {"particles": count, "gb_read": 24e-9 * count, "million_per_s": 1e-6 * count / seconds}
    rate = f"{more['gb_read']:.1f} GB at {more['gb_read'] / reading:.2f} GB/s"
    name = f"number and momentum of {count:.2g} particles, {n_grid}^3"
    shared = {"ratio_is": COST, "rounds": 1, "more": more}
    return [
        Row(
            name,
            seconds,
            f"reading them: {rate}",
            reading,
            peak_gb=peak,
            peak_target_gb=6.0,
            **shared,
        ),
        Row(name, seconds, "the kernel alone, in memory", 8 * kernel, **shared),
    ]
