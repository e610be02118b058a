"""Transforms in memory and out of core against plain ``scipy.fft``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import dask
import scipy.fft
import xarray as xr
import zarr

from cosmofields.fourier import transform
from cosmofields.lazy import n_threads
from cosmofields.linear import potential_flow

from .clusters import cluster
from .data import density
from .harness import COST, Row, compare, peak_of, say

NAME = "density"
RAW = {"compressors": None}
WORKERS = 2


# --- in memory ---


def linear_velocity(quick: bool) -> list[Row]:
    """Three components from a density of 512^3 cells, against one rfftn and three irfftn."""
    n = 32 if quick else 512
    field = density(n)

    def transforms() -> Any:
        modes = scipy.fft.rfftn(field.values, workers=n_threads())
        return [scipy.fft.irfftn(modes, s=field.shape, workers=n_threads()) for _ in range(3)]

    return compare(
        f"linear velocity {n}^3",
        lambda: potential_flow(field),
        {"its four FFTs by scipy": transforms},
        target="<= 1.3",
    )


# --- Zarr to Zarr ---


def _write(field: xr.DataArray, path: str) -> None:
    encoding: dict[str, Any] = {**RAW, "chunks": (64,) * 3 if field.shape[0] >= 64 else None}
    ds = field.to_dataset(name=NAME)
    ds.attrs = {}
    ds.to_zarr(path, encoding={NAME: encoding}, consolidated=False, mode="w")


def _in_memory(source: str, target: str, rows: int) -> None:
    """Read, transform, write: what one does without us."""
    field = zarr.open_array(source, path=NAME, mode="r")[:]
    modes = scipy.fft.rfftn(field, workers=n_threads())
    chunks = (modes.shape[0], rows, modes.shape[2])
    group = zarr.open_group(target, mode="w")
    out = group.create_array(NAME, shape=modes.shape, chunks=chunks, dtype=modes.dtype, **RAW)
    out[:] = modes


def _out_of_core(source: str, target: str, budget: int | None) -> None:
    """The same by ``transform`` of a lazy field, under a budget that does not hold it."""
    with dask.config.set({"cosmofields.memory": budget} if budget else {}):
        field = xr.open_zarr(source, consolidated=False, chunks={})[NAME]
        modes = transform(field).to_dataset(name=NAME)
        modes.to_zarr(target, encoding={NAME: RAW}, consolidated=False, mode="w")


def _on_threads(source: str, target: str, budget: int | None) -> None:
    with dask.config.set(scheduler="threads"):
        _out_of_core(source, target, budget)


def _on_cluster(source: str, target: str, budget: int | None, memory: str) -> None:
    with cluster(WORKERS, memory):
        _out_of_core(source, target, budget)


def _difference(first: str, second: str) -> float:
    """Largest difference of two arrays of modes in units of the largest mode."""
    a, b = (zarr.open_array(path, path=NAME, mode="r") for path in (first, second))
    worst = scale = 0.0
    for j in range(0, a.shape[1], 64):
        part = a[:, j : j + 64]
        worst = max(worst, float(abs(part - b[:, j : j + 64]).max()))
        part[0, 0, 0] *= j > 0  # the mean drowns the rest
        scale = max(scale, float(abs(part).max()))
    return worst / scale


def out_of_core(quick: bool) -> list[Row]:
    """Transform 512^3 cells from Zarr to Zarr on threads and on two workers."""
    n = 32 if quick else 512
    budget = int(1.8 * 4 * n**3)
    rows = min(n, 64)
    with tempfile.TemporaryDirectory() as folder:
        source, plain, threads, workers = (
            str(Path(folder, f"{name}.zarr")) for name in ("field", "plain", "threads", "workers")
        )
        _write(density(n), source)
        with cluster(WORKERS, "2 GB"):
            found = compare(
                f"FFT {n}^3 Zarr to Zarr, threads",
                lambda: _on_threads(source, threads, budget),
                {"read, scipy.fft, write": lambda: _in_memory(source, plain, rows)},
                target="<= 1.2",
            )
            found += compare(
                f"FFT {n}^3 Zarr to Zarr, {WORKERS} workers",
                lambda: _out_of_core(source, workers, budget),
                {"read, scipy.fft, write": lambda: _in_memory(source, plain, rows)},
                target="<= 2.0",
                notes={"read, scipy.fft, write": "the cluster is up already"},
            )
        for row, path in zip(found, (threads, workers), strict=True):
            row.more["difference"] = _difference(plain, path)
            row.peak_target_gb = 2.0
        found[0].peak_gb = peak_of(_on_threads, source, threads, budget)[2]
        found[1].peak_gb = peak_of(_on_cluster, source, workers, budget, "2 GB")[2]
        peak = peak_of(_in_memory, source, plain, rows)[2]
        say(f"  in memory: peak {peak:.2f} GB")
    return found


def large(quick: bool) -> list[Row]:
    """Transform 1024^3 cells from Zarr to Zarr on two workers of 3 GB, checked against scipy."""
    n = 64 if quick else 1024
    with tempfile.TemporaryDirectory() as folder:
        source, plain, target = (
            str(Path(folder, f"{name}.zarr")) for name in ("field", "plain", "out")
        )
        _write(density(n), source)
        budget = 4 * n**3 if quick else None
        _, seconds, peak = peak_of(_on_cluster, source, target, budget, "3 GB")
        _, in_memory, _ = peak_of(_in_memory, source, plain, 64)
        difference = _difference(plain, target)
    return [
        Row(
            f"FFT {n}^3 Zarr to Zarr, {WORKERS} workers of 3 GB",
            seconds,
            "read, scipy.fft, write",
            in_memory,
            ratio_is=COST,
            rounds=1,
            peak_gb=peak,
            peak_target_gb=6.0,
            note="one run, start of the cluster included",
            more={"difference": difference},
        )
    ]
