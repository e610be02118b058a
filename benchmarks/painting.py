"""Cloud-in-cell painting against Pylians, abacusutils and the memory's bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cosmofields.catalog import from_arrays
from cosmofields.kernels.mesh import cic
from cosmofields.lazy import n_threads
from cosmofields.painting import paint

from .data import FACTS, shuffled, zeldovich
from .harness import COST, Row, alternate, call, compare, peer, say

SIDE = 1000.0


@njit(nogil=True)
def _triad(a, b, c):  # type: ignore[no-untyped-def]
    for i in range(a.size):
        a[i] = b[i] + np.float32(3) * c[i]


def bandwidth() -> float:
    """Bytes a second of a = b + s c over arrays far larger than the caches, on all threads."""
    a, b, c = (np.ones(2**26, np.float32) for _ in range(3))
    threads = n_threads()
    parts = [slice(i * a.size // threads, (i + 1) * a.size // threads) for i in range(threads)]

    def run() -> None:
        list(pool.map(lambda part: _triad(a[part], b[part], c[part]), parts))

    with ThreadPoolExecutor(threads) as pool:
        run()
        times = alternate({"triad": run}, 7)["triad"]
    return 3 * a.nbytes / statistics.median(times)


def _ours(position: NDArray[np.float32], n: int) -> Callable[[], Any]:
    return lambda: cic(position, (n,) * 3, (SIDE,) * 3, n_threads=n_threads())[0, 0]


def _peers(position: NDArray[np.float32], n: int) -> dict[str, Any]:
    mas = peer("MAS_library")
    abacus_cic = peer("abacusnbody.analysis.cic")
    abacus_tsc = peer("abacusnbody.analysis.tsc")

    def onto_zeros(paint_onto: Callable[[NDArray[np.float32]], Any]) -> NDArray[np.float32]:
        grid = np.zeros((n,) * 3, np.float32)
        paint_onto(grid)
        return grid

    return {
        "Pylians MA": call(
            mas,
            lambda m: onto_zeros(lambda g: m.MA(position, g, SIDE, MAS="CIC", verbose=False)),
        ),
        "Pylians CICc3D, 2 threads": call(
            mas, lambda m: onto_zeros(lambda g: m.CICc3D(position, g, SIDE, n_threads()))
        ),
        "abacusutils cic_serial": call(
            abacus_cic, lambda m: onto_zeros(lambda g: m.cic_serial(position, g, SIDE))
        ),
        "abacusutils tsc_parallel (27 cells, not 8)": call(
            abacus_tsc,
            lambda m: m.tsc_parallel(
                position, n, SIDE, nthread=n_threads(), npartition=n // 4, wrap=False
            ),
        ),
    }


def cic_speed(quick: bool) -> list[Row]:
    """10^7 clustered particles onto 256^3 and 512^3 cells, shuffled and in lattice order."""
    side = 32 if quick else 216
    meshes = (32,) if quick else (256, 512)
    triad = bandwidth()
    say(f"  triad: {triad / 1e9:.1f} GB/s")
    lattice = zeldovich(side, SIDE)
    rows = []
    for order, position in (("shuffled", shuffled(lattice)), ("lattice order", lattice)):
        goal = ">= 1.7" if order == "shuffled" else ">= 1.0"
        for n in meshes:
            found = compare(
                f"CIC {n}^3, {order}",
                _ours(position, n),
                _peers(position, n),
                target=goal,
                differ=lambda ours, theirs: abs(ours - theirs).max() / ours.std(),
                notes={"abacusutils tsc_parallel (27 cells, not 8)": "smoother kernel"},
            )
            rows += found
            rows.append(_of_bandwidth(found[0], len(position), n, triad))
        rows += _labelled(position, meshes[0], order)
    return rows


def _of_bandwidth(row: Row, n_particles: int, n: int, triad: float) -> Row:
    """The same time against every particle read once, and the mesh read and written once."""
    n_bytes = 12 * n_particles + 2 * 4 * n**3
    return Row(
        row.name,
        row.ours_s,
        f"memory bandwidth: {n_bytes / 1e9:.2f} GB at {triad / 1e9:.1f} GB/s",
        n_bytes / triad,
        ours_range=row.ours_range,
        rounds=row.rounds,
        note="a ratio of 1 is the limit",
        more={"triad_gb_per_s": triad / 1e9},
    )


def _labelled(position: NDArray[np.float32], n: int, order: str) -> list[Row]:
    """What ``paint`` adds to its kernel: checks, labels, attributes."""
    keep = {key: FACTS[key] for key in ("redshift", "cosmology")}
    halos = from_arrays(position, box_size=SIDE, los="z", **keep)
    return compare(
        f"paint() {n}^3, {order}",
        lambda: paint(halos, n, weighting="number"),
        {"its kernel alone": _ours(position, n)},
        ratio_is=COST,
    )


def cic_scale(quick: bool) -> list[Row]:
    """Time a particle, from 10^6 to 10^8 shuffled particles on 256^3 cells."""
    sides = (16, 32) if quick else (100, 216, 464)
    n = 32 if quick else 256
    rows: list[Row] = []
    middle = 216 if 216 in sides else sides[0]
    cost = {}
    for side in sides:
        position = shuffled(zeldovich(side, SIDE))
        ours = _ours(position, n)
        ours()
        cost[side] = alternate({"ours": ours})["ours"]
        del position, ours
    base = statistics.median(cost[middle]) / middle**3
    for side in sides:
        seconds = statistics.median(cost[side])
        rows.append(
            Row(
                f"CIC {n}^3, {side**3:.2g} particles",
                seconds,
                f"as many at the cost of {middle**3:.2g}",
                base * side**3,
                ratio_is=COST,
                ours_range=[min(cost[side]), max(cost[side])],
                rounds=len(cost[side]),
                more={"ns_per_particle": 1e9 * seconds / side**3},
            )
        )
    return rows
