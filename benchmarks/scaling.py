"""Weak and strong scaling over Dask workers, and over box size, from Zarr to Zarr."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dask
import dask.array as da
import numpy as np

from cosmofields.catalog import from_arrays
from cosmofields.conventions import label, make_grid
from cosmofields.inference import apply_model
from cosmofields.linear import potential_flow
from cosmofields.painting import paint
from cosmofields.unet import load_model

from .clusters import cluster
from .data import FACTS, halo_density, zeldovich
from .harness import Row, say

Shape = tuple[int, int, int]
CELL = 2.0  # Mpc/h
ROUNDS = 3
WORKERS = (1, 2)
# Bytes a process may fill: less than the larger boxes, and room for a network's smallest tile.
BUDGET, NETWORK_BUDGET = "300 MB", "600 MB"


def _store(array: np.ndarray, folder: Path) -> da.Array:
    """The array on disk, in the chunks of our stores."""
    lead = array.ndim - 3
    lazy = da.from_array(array, chunks=(*(-1,) * lead, *(64,) * 3))
    lazy.to_zarr(str(folder / "input.zarr"), overwrite=True)
    return da.from_zarr(str(folder / "input.zarr"))


def _painting(shape: Shape, folder: Path) -> da.Array:
    """One particle to eight cells."""
    n = shape[1]
    position = zeldovich(n // 2, n * CELL)
    copies = shape[0] // n
    steps = np.float32(n * CELL) * np.arange(copies, dtype=np.float32)
    position = np.concatenate([position + [step, 0, 0] for step in steps]).astype(np.float32)
    keep = {key: FACTS[key] for key in ("redshift", "cosmology")}
    sides = [m * CELL for m in shape]
    halos = from_arrays(position, box_size=sides, los="z", **keep)
    lazy = halos.assign(position=(halos["position"].dims, _rows(halos["position"].values, folder)))
    return paint(lazy, shape, weighting="number")["halo_density"].data


def _rows(array: np.ndarray, folder: Path) -> da.Array:
    lazy = da.from_array(array, chunks=(2**20, -1))
    lazy.to_zarr(str(folder / "input.zarr"), overwrite=True)
    return da.from_zarr(str(folder / "input.zarr"))


def _velocity(shape: Shape, folder: Path) -> da.Array:
    noise = np.random.default_rng(3).standard_normal(shape, np.float32)
    grid = make_grid(shape, [n * CELL for n in shape])
    facts = {**FACTS, "box_size": list(grid.lengths)}
    return potential_flow(label("density", _store(noise, folder), grid, facts)).data


def _network(shape: Shape, folder: Path) -> da.Array:
    model, _ = load_model("density")
    return apply_model(model, _store(halo_density(shape), folder))


def _seconds(graph: Callable[[Shape, Path], da.Array], shape: Shape, rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        result = graph(shape, Path(name))
        times = []
        for _ in range(1 + rounds):  # the first one compiles
            start = time.perf_counter()
            result.to_zarr(str(Path(name, "output.zarr")), overwrite=True)
            times.append(time.perf_counter() - start)
    return times[1:]


def _scaling(
    what: str,
    graph: Callable[[Shape, Path], da.Array],
    sizes: tuple[int, ...],
    quick: bool,
    budget: str = BUDGET,
) -> list[Row]:
    """Rows: each size on one and two workers; then twice the middle size on two."""
    sizes = (64,) if quick else sizes
    rounds = 1 if quick else ROUNDS
    middle = sizes[len(sizes) // 2]
    shapes: list[Shape] = [(n, n, n) for n in sizes]
    double: Shape = (2 * middle, middle, middle)
    times: dict[tuple[int, Shape], list[float]] = {}
    for workers in WORKERS:
        with dask.config.set({"cosmofields.memory": budget}), cluster(workers, "4 GB"):
            for shape in [*shapes, *([double] if workers > 1 else [])]:
                times[workers, shape] = _seconds(graph, shape, rounds)
                median = statistics.median(times[workers, shape])
                say(f"  {workers} workers, {shape}: {median:.2f} s")

    def row(name: str, mine: tuple[int, Shape], other: tuple[int, Shape], peer: str) -> Row:
        ours, theirs = times[mine], times[other]
        return Row(
            name,
            statistics.median(ours),
            peer,
            statistics.median(theirs),
            ours_range=[min(ours), max(ours)],
            peer_range=[min(theirs), max(theirs)],
            rounds=rounds,
            more={"stage": what, "cells": int(np.prod(mine[1])), "workers": mine[0]},
        )

    rows = [
        row(f"{what} {s[0]}^3, 2 workers", (2, s), (1, s), "1 worker; 2 is ideal") for s in shapes
    ]
    weak = row(
        f"{what} 2 x {middle}^3, 2 workers",
        (2, double),
        (1, (middle,) * 3),
        f"{middle}^3, 1 worker; 1 is ideal",
    )
    return [*rows, weak]


def painting(quick: bool) -> list[Row]:
    """One particle to eight cells, counted."""
    return _scaling("painting", _painting, (128, 256, 512), quick)


def velocity(quick: bool) -> list[Row]:
    """Linear velocity of a density, three components, by pencils."""
    return _scaling("linear velocity", _velocity, (128, 256, 512), quick)


def network(quick: bool) -> list[Row]:
    """The density network."""
    return _scaling("density network", _network, (64, 128, 192), quick, NETWORK_BUDGET)
