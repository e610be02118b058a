"""From catalogues to fields: cloud-in-cell halo densities; density and momentum of matter.

Particles in memory are painted at once.  Those of a lazy catalogue are painted chunk by chunk, out
of core, in one pass over them: each chunk is sorted by place, and added to the mesh in the order of
the chunks.  Two plans: several workers each hold a whole mesh, of which the sum is taken
(replicated); or slabs of one mesh are spread over workers, and particles move there (exchanged).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask._task_spec import GraphNode, Task, TaskRef, convert_legacy_graph
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_bytes
from numpy.typing import NDArray

from ..catalog import check_catalog, check_finite, check_masses, check_positions, velocity_of
from ..conventions import (
    CatalogError,
    Grid,
    MissingVariableError,
    box_facts,
    box_lengths,
    derived,
    is_lazy,
    label,
    make_grid,
)
from ..lazy import CHUNK, chunk_shape, fits, log, machine, n_threads
from .interlacing import combined

if TYPE_CHECKING:
    from ..kernels.mesh import Sorted, Tiling
    from ..kernels.slabs import Slab

WEIGHTINGS = ("mass", "bin", "number")
# Rows that one task sorts, if chunks are smaller: fewer would not amortise a pass over the mesh.
ROWS = 2**21
# Slabs for each thread, so that none waits for the fullest.
SLABS = 2


def paint(
    halos: xr.Dataset,
    n_grid: int | Sequence[int] = 128,
    *,
    weighting: str = "mass",
    interlaced: bool = False,
) -> xr.Dataset:
    """Cloud-in-cell density of the halos of each mass bin.

    Parameters
    ----------
    halos : Dataset
        Catalogue from :func:`~cosmofields.catalog.select` (without mass bins, all halos are one
        bin), in real or redshift space.
    n_grid : int or three
        Cells per axis (``Nmesh`` in nbodykit, ``grid`` in Pylians).
    weighting : {"mass", "bin", "number"}
        What a halo counts: its mass; the mean mass of its bin (the paper's "with M_halo
        weighting": each interval weighs in proportion to its mass); or 1.
    interlaced : bool
        Combine two meshes, half a cell apart, whose odd aliases cancel (Sefusatti et al. 2016,
        MNRAS 460, 3624): for spectra up to Nyquist.  A mode with a component at its Nyquist
        frequency is that of the first mesh, since a real field cannot hold it shifted.

    Returns
    -------
    Dataset
        ``halo_density`` (mass_bin, x, y, z), in units of the mean density of all bins together:
        its sum over ``mass_bin`` is 1 + delta_s.  Coordinates of ``mass_bin``: ``share`` of the
        total weight, ``shot_noise`` V sum w^2 / (sum w)^2 in (Mpc/h)^3.  Lazy if ``halos`` is.
        If ``interlaced``, so says an attribute, and cells beside a lone halo may be negative.

    Raises
    ------
    CatalogError, MissingAttributeError, MissingVariableError, NotPeriodicError
        For something that is no catalogue, positions that are NaN or outside the box, an empty
        mass bin, or no masses in Msun/h to weigh by.

    Notes
    -----
    Masses and mass bins are read at once, for the coordinates; lazy positions are not, and are
    checked when the fields are computed.  For an interlaced field they are read twice.
    """
    dim = check_catalog(halos)
    if weighting not in WEIGHTINGS:
        raise CatalogError(f"weighting={weighting!r}; expected 'mass', 'bin' or 'number'")
    if weighting != "number" and "mass" not in halos:
        raise MissingVariableError(
            f"{weighting=} needs `mass` in the catalogue; or paint(..., weighting='number')"
        )
    grid = make_grid(n_grid, box_lengths(halos))
    n = halos.sizes[dim]
    weight = halos["mass"].values.astype(np.float64) if weighting != "number" else np.ones(n)
    if weighting != "number":
        check_masses(weight)
    binned = "mass_bin" in halos
    bins = halos["mass_bin"].values if binned else np.zeros(n, np.int8)
    edges = halos.attrs.get("number_density", ()) if binned else ()
    n_bins = max(len(edges), int(bins.max()) + 1)
    sums = np.bincount(bins, weight, n_bins)
    if (sums == 0).any():
        empty = f"Mass bin {int(np.argmin(sums))} of {n_bins} is empty"
        raise CatalogError(f"{empty}; expected halos in each: halos.recon.select(...) again")

    position = halos["position"].transpose(dim, "component").data
    factor = np.prod(grid.shape) / sums.sum()
    columns = {"weight": np.full_like(position[:, 0], factor, dtype=np.float32)}
    if weighting == "mass":
        columns["weight"] = (halos["mass"].data.astype(np.float64) * factor).astype(np.float32)
    if binned:
        columns["bins"] = halos["mass_bin"].data.astype(np.int16)
    lazy = is_lazy(halos)
    painted = partial(_bins, grid=grid, columns=columns, n_bins=n_bins, lazy=lazy)
    data = combined(painted, position, grid) if interlaced else painted(position)
    if weighting == "bin":  # painted as 1 each, for halos of a bin weigh the same
        means = sums / np.maximum(np.bincount(bins, minlength=n_bins), 1)
        weight, data = means[bins], data * means.astype(np.float32).reshape(-1, 1, 1, 1)
    if lazy:
        data = data.rechunk(chunk_shape(data.shape))
    share = sums / sums.sum()
    noise = grid.volume * np.bincount(bins, weight**2, n_bins) / sums**2
    attrs = {
        **box_facts(halos),
        "weighting": weighting,
        "resampler": "cic",
        **({"interlaced": True} if interlaced else {}),
        **({"number_density": edges} if len(edges) else {}),
    }
    field = label("halo_density", data, grid, attrs)
    per_length = {"units": "(Mpc/h)^3", "long_name": "shot noise of the bin"}
    field = field.assign_coords(
        share=("mass_bin", share, {"units": "1", "long_name": "share of the total weight"}),
        shot_noise=("mass_bin", noise, per_length),
    )
    what = f"paint: n_grid={n_grid}, weighting={weighting}{', interlaced' * interlaced}"
    return derived({"halo_density": field}, halos, what)


def _bins(position: Any, *, lazy: bool, **kwargs: Any) -> Any:
    """Sums of the weights in the cells of each bin."""
    if lazy:
        return _lazy_sums(position, what="paint", **kwargs)[0]
    return _cic(position, **kwargs)[:, 0]


def paint_matter(particles: xr.Dataset, n_grid: int | Sequence[int] = 128) -> xr.Dataset:
    """Cloud-in-cell density, momentum and velocity of matter, from its particles.

    Parameters
    ----------
    particles : Dataset
        Catalogue of positions, peculiar velocities and (if they differ) masses.
    n_grid : int or three
        Cells per axis.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``momentum`` = sum m v / mean density = (1 + delta) v, and
        ``velocity`` = momentum / density, float32.  A velocity is undefined in a cell that no
        particle touches: it takes that of the nearest node that holds mass, within 8 cells (of the
        longest side), and 0 beyond; ``velocity.attrs["empty_cells"]`` counts such cells (not for
        lazy input).  Lazy, in one pass over the particles, if ``particles`` is.

    Raises
    ------
    CatalogError, MissingAttributeError, MissingVariableError, NotPeriodicError
        If ``particles`` is no catalogue, has no velocities, or holds values that are NaN or
        impossible (of lazy input, when the fields are computed).
    """
    dim = check_catalog(particles)
    velocity = velocity_of(particles, "paint_matter")
    grid = make_grid(n_grid, box_lengths(particles))
    position = particles["position"].transpose(dim, "component").data
    columns = {"vector": velocity.data}
    if "mass" in particles:
        columns["weight"] = particles["mass"].data
    painted = _lazy_matter if is_lazy(particles) else _matter
    density, momentum, speed = painted(position, columns, grid)
    counted = {} if is_lazy(particles) else {"empty_cells": int((density == 0).sum())}
    facts = {**box_facts(particles), "resampler": "cic"}
    fields = {
        "density": label("density", density, grid, facts),
        "velocity": label("velocity", speed, grid, facts, **counted),
        "momentum": label("momentum", momentum, grid, facts),
    }
    return derived(fields, particles, f"paint_matter: n_grid={n_grid}")


# --- in memory ---


def _cic(
    position: NDArray[np.floating], grid: Grid, columns: dict[str, Any], n_bins: int = 1
) -> NDArray[np.float32]:
    from ..kernels.mesh import cic

    _check_columns(columns)
    try:
        return cic(
            position, grid.shape, grid.lengths, **columns, n_bins=n_bins, n_threads=n_threads()
        )
    except CatalogError:
        check_positions(position, grid.lengths)
        raise


def _check_columns(columns: dict[str, NDArray[Any]]) -> None:
    """Check velocities, and masses beside them: the checks that say what is wrong are slow."""
    vector, weight = columns.get("vector"), columns.get("weight")
    if vector is None or not len(vector):
        return
    if not np.isfinite(vector.sum()):
        check_finite("velocity", vector)
    if weight is not None:
        mean = weight.mean(dtype=np.float64)
        if not (weight.min() > 0 and 1e6 < mean < np.inf):
            check_masses(weight)


def _matter(position: Any, columns: dict[str, Any], grid: Grid) -> tuple[Any, Any, Any]:
    mesh = _cic(position, grid, columns)[0]
    mass = columns.get("weight")
    total = len(position) if mass is None else mass.sum(dtype=np.float64)
    speed = _velocity(mesh, grid, n_threads())
    np.multiply(mesh, np.prod(grid.shape) / total, out=mesh, casting="same_kind")
    return mesh[0], mesh[1:], speed


def _velocity(
    mesh: NDArray[np.float32], grid: Grid, threads: int = 1, margin: int = 0
) -> NDArray[np.float32]:
    from ..kernels.mesh import velocity

    return velocity(mesh, grid.cell_size, reach=_reach(grid), margin=margin, n_threads=threads)


def _blocks(nx: int) -> tuple[int, ...]:
    """Planes of each block of a lazy mesh: about `CHUNK`, and none much thinner."""
    return tuple(len(part) for part in np.array_split(np.arange(nx), -(-nx // CHUNK)))


def _reach(grid: Grid) -> int:
    """Planes that a cell without mass may look beyond its block, the same in memory and out."""
    from ..kernels.mesh import reach_of

    blocks = _blocks(grid.shape[0])
    return min(int(reach_of(grid.cell_size)[0]), min(blocks) if len(blocks) > 1 else blocks[0] // 2)


# --- out of core ---


def _lazy_matter(position: Any, columns: dict[str, Any], grid: Grid) -> tuple[Any, Any, Any]:
    sums, total = _lazy_sums(position, grid, columns, what="paint_matter")
    cells = int(np.prod(grid.shape))
    scaled = da.map_blocks(_over_mean, sums, total, cells=cells, dtype=np.float32)
    reach = _reach(grid)
    # In one block, the mesh is periodic as it stands.
    margin = reach if len(sums.chunks[1]) > 1 else 0
    wide = da.overlap.overlap(
        sums, depth={1: margin}, boundary={1: "periodic"}, allow_rechunk=False
    )
    speed = wide.map_blocks(
        _velocity,
        grid=grid,
        margin=margin,
        dtype=np.float32,
        chunks=((3,), *sums.chunks[1:]),
        meta=np.empty((0,) * 4, np.float32),
    )
    chunks = chunk_shape((3, *grid.shape))
    return (
        scaled[0].rechunk(chunks[1:]),
        scaled[1:].rechunk(chunks),
        speed.rechunk(chunks),
    )


def _over_mean(
    sums: NDArray[np.float32], total: NDArray[np.float64], cells: int
) -> NDArray[np.float32]:
    return np.multiply(sums, cells / total, out=np.empty_like(sums), casting="same_kind")


class _Readers(NamedTuple):
    """Tasks that read chunks, the names of each chunk's columns, and what it starts from."""

    graph: dict[Any, Any]
    names: list[list[Any]]
    leaves: list[list[Any]]


class _Plan(NamedTuple):
    """Which chunks are summed into one mesh, and the stripes of its slabs."""

    groups: list[list[int]]
    slabs: list[tuple[int, int]]
    threads: int | None  # in a task; None: those of a worker
    ahead: int  # chunks of a group that may be held at a time


def _plan(n_chunks: int, n_stripes: int, mesh_bytes: int, what: str) -> _Plan:
    found = machine()
    chunks = np.arange(n_chunks)
    if n_chunks == 1 or (found.workers > 1 and fits(2 * mesh_bytes, f"{what}: a mesh a worker")):
        groups = [list(map(int, g)) for g in np.array_split(chunks, min(found.workers, n_chunks))]
        log.info("%s: replicated, %d meshes of %s", what, len(groups), format_bytes(mesh_bytes))
        return _Plan(groups, [(0, n_stripes)], None, found.threads + 1)
    wanted = max(SLABS * found.workers * found.threads, -(-8 * mesh_bytes // found.memory))
    parts = np.array_split(np.arange(n_stripes), min(wanted, n_stripes))
    slabs = [(int(part[0]), int(part[-1]) + 1) for part in parts]
    log.info(
        "%s: particles exchanged, %d slabs of a mesh of %s",
        what,
        len(slabs),
        format_bytes(mesh_bytes),
    )
    return _Plan([list(map(int, chunks))], slabs, 1, found.workers * found.threads + 1)


def _lazy_sums(
    position: Any, grid: Grid, columns: dict[str, Any], *, n_bins: int = 1, what: str
) -> tuple[da.Array, da.Array]:
    """Lazy sums (bin and field, x, y, z), in blocks of whole planes, and the sum of the weights."""
    from ..kernels.mesh import Sorted, sum_type, tiling
    from ..kernels.slabs import assemble, planes_of, shared

    position = da.asarray(position)
    rows = _merged(position.chunks[0])
    sources = [position.rechunk((rows, -1))]
    sources += [da.asarray(c).rechunk((rows, -1)[: c.ndim]) for c in columns.values()]
    leading = (n_bins, 4 if "vector" in columns else 1)
    tiles = tiling(grid.shape, grid.lengths, n_fields=leading[1], n_bins=n_bins)
    dtype = np.dtype(sum_type(len(position), grid.shape))
    mesh_bytes = dtype.itemsize * int(np.prod(leading)) * int(np.prod(grid.shape))
    plan = _plan(len(rows), tiles.n_stripes, mesh_bytes, what)

    token = tokenize(sources, tuple(columns), grid, n_bins, plan)
    key = f"paint-{token}"
    readers = _readers(sources, len(rows), key)
    graph = readers.graph
    place = partial(
        _sorted, tiles=tiles, names=tuple(columns), lengths=grid.lengths, threads=plan.threads
    )
    for j, names in enumerate(readers.names):
        graph[f"sort-{key}", j] = (place, *names)
        graph[f"weight-{key}", j] = (_weight, (f"sort-{key}", j))
    for g, group in enumerate(plan.groups):
        for s, slab in enumerate(plan.slabs):
            add = partial(_accumulate, tiles=tiles, stripes=slab, leading=leading, dtype=dtype)
            done: Any = None
            for step, j in enumerate(group):
                graph[f"part-{key}", j, s] = (Sorted.stripes, (f"sort-{key}", j), *slab)
                task = partial(add, step=step, threads=plan.threads)
                graph[f"sum-{key}", g, s, step] = (task, done, (f"part-{key}", j, s))
                done = (f"sum-{key}", g, s, step)
        # Readers outrun the painting of a crowded slab: each waits for the chunks well before it.
        for step, j in enumerate(group[plan.ahead :]):
            ticks = [(f"tick-{key}", g, s, step) for s in range(len(plan.slabs))]
            graph.update({tick: (_nothing, (f"sum-{key}", *tick[1:])) for tick in ticks})
            graph[f"gate-{key}", g, step] = (_nothing, ticks)
            for leaf in readers.leaves[j]:
                graph[leaf] = Task(leaf, _after, graph[leaf], TaskRef((f"gate-{key}", g, step)))
    blocks = _blocks(grid.shape[0])
    low = 0
    for b, n in enumerate(blocks):
        terms: list[Any] = []
        for g, group in enumerate(plan.groups):
            pieces, places = [], []
            for s, slab in enumerate(plan.slabs):
                last = (f"sum-{key}", g, s, len(group) - 1)
                for i, (planes, to) in enumerate(shared(tiles, slab, low, low + n)):
                    pieces.append((f"piece-{key}", g, s, b, i))
                    places.append(to)
                    graph[pieces[-1]] = (partial(planes_of, planes=planes), last)
            whole = partial(assemble, places=places, shape=(*leading, n, *grid.shape[1:]))
            graph[f"block-{key}", g, b] = (whole, pieces)
            terms.append((f"block-{key}", g, b))
        while len(terms) > 1:
            pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
            terms = [(f"tree-{key}", b, len(pairs), i) for i in range(len(pairs))]
            graph.update({name: (_total, pair) for name, pair in zip(terms, pairs, strict=True)})
        graph[key, 0, b, 0, 0] = (_flat, terms[0])
        low += n
    weights = [(f"weight-{key}", j) for j in range(len(rows))]
    total = f"total-{key}"
    layers = HighLevelGraph(
        {key: graph, total: {(total, 0, 0, 0, 0): (_whole, weights)}}, {key: set(), total: {key}}
    )
    shape = ((int(np.prod(leading)),), blocks, *((n,) for n in grid.shape[1:]))
    sums = da.Array(layers, key, shape, dtype=np.float32)
    return sums, da.Array(layers, total, ((1,),) * 4, dtype=np.float64)


def _merged(rows: Sequence[int]) -> tuple[int, ...]:
    """Chunks of rows, neighbours joined up to `ROWS`."""
    out = [0]
    for n in rows:
        if out[-1] and out[-1] + n > ROWS:
            out.append(0)
        out[-1] += n
    return tuple(out)


def _readers(sources: Sequence[da.Array], n_chunks: int, key: str) -> _Readers:
    """Optimised tasks of the sources' chunks, those of one chunk alone under names of their own."""
    raw: dict[Any, Any] = {}
    # As given, too: optimised graphs lack what is in the memory of a cluster.
    for source in (*sources, *dask.optimize(*sources)):
        raw.update(source.__dask_graph__())
    tasks = {**raw, **convert_legacy_graph(raw)}
    owners: dict[Any, set[int]] = {}
    for j in range(n_chunks):
        todo = [(c.name, j, 0)[: 1 + c.ndim] for c in sources]
        while todo:
            name = todo.pop()
            owner = owners.setdefault(name, set())
            if j not in owner:
                owner.add(j)
                todo.extend(tasks[name].dependencies if isinstance(tasks[name], GraphNode) else ())
    own = {
        name: (f"read-{key}", i)
        for i, name in enumerate(owners)
        if len(owners[name]) == 1 and isinstance(tasks[name], GraphNode)
    }
    graph: dict[Any, Any] = {name: raw[name] for name in owners if name not in own}
    leaves: list[list[Any]] = [[] for _ in range(n_chunks)]
    for name, new in own.items():
        graph[new] = tasks[name].substitute(own, key=new)
        if isinstance(tasks[name], Task) and not own.keys() & tasks[name].dependencies:
            leaves[min(owners[name])].append(new)
    names = [
        [own.get(name, name) for name in ((c.name, j, 0)[: 1 + c.ndim] for c in sources)]
        for j in range(n_chunks)
    ]
    return _Readers(graph, names, leaves)


def _sorted(
    position: NDArray[np.floating],
    *columns: NDArray[Any],
    names: Sequence[str],
    tiles: Tiling,
    lengths: Sequence[float],
    threads: int | None,
) -> Sorted:
    from ..kernels.mesh import sort, threaded

    named = dict(zip(names, columns, strict=True))
    _check_columns(named)
    try:
        with threaded(threads or n_threads(), len(position)) as (n, run):
            return sort(tiles, position, **named, n_threads=n, run=run)
    except CatalogError:
        check_positions(position, lengths)
        raise


def _accumulate(*args: Any, threads: int | None, **kwargs: Any) -> Slab:
    from ..kernels.slabs import accumulate

    return accumulate(*args, n_threads=threads or n_threads(), **kwargs)


def _weight(particles: Sorted) -> float:
    if not particles.weighted:
        return float(len(particles.rows))
    return float(particles.rows[:, 3].sum(dtype=np.float64))


def _whole(weights: list[float]) -> NDArray[np.float64]:
    return np.full((1, 1, 1, 1), sum(weights))


def _nothing(what: Any) -> None:
    """Stand for ``what`` as something to wait for."""


def _after(value: Any, gate: None) -> Any:
    return value


def _total(terms: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _flat(block: NDArray[np.floating]) -> NDArray[np.float32]:
    return block.reshape(-1, *block.shape[2:]).astype(np.float32, copy=False)
