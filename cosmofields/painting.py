"""From catalogues to fields: cloud-in-cell halo densities; density and momentum of matter.

Particles in memory are painted at once.  Those of a lazy catalogue are painted chunk by chunk, out
of core, in one pass over them: each chunk is sorted by place, and added to the mesh in the order of
the chunks.  Two plans: several workers each hold a whole mesh, of which the sum is taken
(replicated); or slabs of one mesh are spread over threads or workers, and each particle moves to
where its slab lives (exchanged).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_bytes
from numpy.typing import NDArray

from .catalog import check_catalog, check_finite, check_masses, check_positions, velocity_of
from .conventions import (
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
from .lazy import CHUNK, chunk_shape, fits, log, machine, n_threads

if TYPE_CHECKING:
    from .kernels.mesh import Sorted, Tiling

WEIGHTINGS = ("mass", "number")
# Rows that one task sorts, if chunks are smaller: fewer would not amortise a pass over the mesh.
ROWS = 2**21
# Slabs for each thread, so that none waits for the fullest.
SLABS = 2


def paint(
    halos: xr.Dataset, n_grid: int | Sequence[int] = 128, *, weighting: str = "mass"
) -> xr.Dataset:
    """Cloud-in-cell density of the halos of each mass bin.

    Parameters
    ----------
    halos : Dataset
        Catalogue from :func:`~cosmofields.catalog.select` (without mass bins, all halos are one
        bin), in real or redshift space.
    n_grid : int or three
        Cells per axis (``Nmesh`` in nbodykit, ``grid`` in Pylians).
    weighting : {"mass", "number"}
        What a halo counts: its mass (the paper's "with M_halo weighting", so that a bin weighs in
        proportion to the mass in it), or 1.

    Returns
    -------
    Dataset
        ``halo_density`` (mass_bin, x, y, z), in units of the mean density of all bins together:
        its sum over ``mass_bin`` is 1 + delta_s.  Coordinates of ``mass_bin``: ``share`` of the
        total weight, ``shot_noise`` V sum w^2 / (sum w)^2 in (Mpc/h)^3.  Lazy if ``halos`` is.

    Raises
    ------
    CatalogError, MissingAttributeError, MissingVariableError, NotPeriodicError
        For something that is no catalogue, positions that are NaN or outside the box, an empty
        mass bin, or no masses in Msun/h to weigh by.

    Notes
    -----
    Masses and mass bins are read at once, for the coordinates; lazy positions are not, and are
    checked when the fields are computed.
    """
    dim = check_catalog(halos)
    if weighting not in WEIGHTINGS:
        raise CatalogError(f"weighting={weighting!r}; expected 'mass' or 'number'")
    if weighting == "mass" and "mass" not in halos:
        raise MissingVariableError(
            "weighting='mass' needs `mass` in the catalogue; or paint(..., weighting='number')"
        )
    grid = make_grid(n_grid, box_lengths(halos))
    n = halos.sizes[dim]
    weight = halos["mass"].values.astype(np.float64) if weighting == "mass" else np.ones(n)
    if weighting == "mass":
        check_masses(weight)
    binned = "mass_bin" in halos
    bins = halos["mass_bin"].values if binned else np.zeros(n, np.int8)
    edges = halos.attrs.get("number_density", ()) if binned else ()
    n_bins = max(len(edges), int(bins.max()) + 1)
    sums = np.bincount(bins, weight, n_bins)
    if (sums == 0).any():
        raise CatalogError(f"Mass bin {int(np.argmin(sums))} of {n_bins} is empty: select again")

    position = halos["position"].transpose(dim, "component").data
    factor = np.prod(grid.shape) / sums.sum()
    if weighting == "mass":
        columns = {"weight": (halos["mass"].data.astype(np.float64) * factor).astype(np.float32)}
    else:
        columns = {"weight": np.full_like(position[:, 0], factor, dtype=np.float32)}
    if binned:
        columns["bins"] = halos["mass_bin"].data.astype(np.int16)
    data: Any
    if is_lazy(halos):
        data = _lazy_sums(position, grid, columns, n_bins=n_bins, what="paint")
        data = data.rechunk(chunk_shape(data.shape))
    else:
        data = _cic(position, grid, columns, n_bins=n_bins)[:, 0]
    share = sums / sums.sum()
    noise = grid.volume * np.bincount(bins, weight**2, n_bins) / sums**2
    attrs = {
        **box_facts(halos),
        "weighting": weighting,
        "resampler": "cic",
        **({"number_density": edges} if len(edges) else {}),
    }
    field = label("halo_density", data, grid, attrs)
    per_length = {"units": "(Mpc/h)^3", "long_name": "shot noise of the bin"}
    field = field.assign_coords(
        share=("mass_bin", share, {"units": "1", "long_name": "share of the total weight"}),
        shot_noise=("mass_bin", noise, per_length),
    )
    what = f"paint: n_grid={n_grid}, weighting={weighting}"
    return derived({"halo_density": field}, halos, what)


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
    from .kernels.mesh import cic

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
    from .kernels.mesh import velocity

    return velocity(mesh, grid.cell_size, reach=_reach(grid), margin=margin, n_threads=threads)


def _blocks(nx: int) -> tuple[int, ...]:
    """Planes of each block of a lazy mesh: about `CHUNK`, and none much thinner."""
    return tuple(len(part) for part in np.array_split(np.arange(nx), -(-nx // CHUNK)))


def _reach(grid: Grid) -> int:
    """Planes that a cell without mass may look beyond its block, the same in memory and out."""
    from .kernels.mesh import reach_of

    blocks = _blocks(grid.shape[0])
    return min(int(reach_of(grid.cell_size)[0]), min(blocks) if len(blocks) > 1 else blocks[0] // 2)


# --- out of core ---


def _lazy_matter(position: Any, columns: dict[str, Any], grid: Grid) -> tuple[Any, Any, Any]:
    sums = _lazy_sums(position, grid, columns, what="paint_matter")
    total = columns["weight"].sum(dtype=np.float64) if "weight" in columns else len(position)
    if isinstance(total, da.Array):
        total = total.reshape(1, 1, 1, 1)
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


def _over_mean(sums: NDArray[np.float32], total: Any, cells: int) -> NDArray[np.float32]:
    factor = cells / np.float64(np.asarray(total).item())
    return np.multiply(sums, factor, out=np.empty_like(sums), casting="same_kind")


class _Plan(NamedTuple):
    """Which chunks are summed into one mesh, and the stripes of its slabs."""

    groups: list[list[int]]
    slabs: list[tuple[int, int]]
    threads: int | None  # in a task; None: those of a worker


def _plan(n_chunks: int, n_stripes: int, mesh_bytes: int, what: str) -> _Plan:
    found = machine()
    chunks = np.arange(n_chunks)
    if n_chunks == 1 or (found.workers > 1 and fits(2 * mesh_bytes, f"{what}: a mesh a worker")):
        groups = [list(map(int, g)) for g in np.array_split(chunks, min(found.workers, n_chunks))]
        log.info("%s: replicated, %d meshes of %s", what, len(groups), format_bytes(mesh_bytes))
        return _Plan(groups, [(0, n_stripes)], None)
    wanted = max(SLABS * found.workers * found.threads, -(-8 * mesh_bytes // found.memory))
    parts = np.array_split(np.arange(n_stripes), min(wanted, n_stripes))
    slabs = [(int(part[0]), int(part[-1]) + 1) for part in parts]
    log.info(
        "%s: particles exchanged, %d slabs of a mesh of %s",
        what,
        len(slabs),
        format_bytes(mesh_bytes),
    )
    return _Plan([list(map(int, chunks))], slabs, 1)


def _lazy_sums(
    position: Any, grid: Grid, columns: dict[str, Any], *, n_bins: int = 1, what: str
) -> da.Array:
    """Lazy sums (bin and field, x, y, z), in blocks of whole planes; a task for each step."""
    from .kernels.mesh import Sorted, sum_type, tiling

    position = da.asarray(position)
    rows = _merged(position.chunks[0])
    position = position.rechunk((rows, -1))
    columns = {
        name: da.asarray(column).rechunk((rows, -1)[: column.ndim])
        for name, column in columns.items()
    }
    n_fields = 4 if "vector" in columns else 1
    tiles = tiling(grid.shape, grid.lengths, n_fields=n_fields, n_bins=n_bins)
    dtype = np.dtype(sum_type(len(position), grid.shape))
    leading = (n_bins, n_fields)
    mesh_bytes = dtype.itemsize * n_bins * n_fields * int(np.prod(grid.shape))
    plan = _plan(len(rows), tiles.n_stripes, mesh_bytes, what)

    token = tokenize(position, columns, grid, n_bins, plan)
    key = f"paint-{token}"
    graph: dict[Any, Any] = {}
    sources: list[Any] = [position, *columns.values()]
    place = partial(
        _sorted, tiles=tiles, names=tuple(columns), lengths=grid.lengths, threads=plan.threads
    )
    for j in range(len(rows)):
        chunks = [(c.name, j, 0)[: 1 + c.ndim] for c in sources]
        graph[f"sort-{key}", j] = (place, *chunks)
    for g, group in enumerate(plan.groups):
        for s, slab in enumerate(plan.slabs):
            accumulate = partial(
                _accumulate,
                tiles=tiles,
                slab=slab,
                leading=leading,
                dtype=dtype,
                threads=plan.threads,
            )
            done: Any = None
            for step, j in enumerate(group):
                graph[f"part-{key}", j, s] = (Sorted.stripes, (f"sort-{key}", j), *slab)
                task = partial(accumulate, step=step)
                graph[f"sum-{key}", g, s, step] = (task, done, (f"part-{key}", j, s))
                done = (f"sum-{key}", g, s, step)
    blocks = _blocks(grid.shape[0])
    low = 0
    for b, n in enumerate(blocks):
        terms: list[Any] = []
        for g, group in enumerate(plan.groups):
            pieces, places = [], []
            for s, slab in enumerate(plan.slabs):
                last = (f"sum-{key}", g, s, len(group) - 1)
                for i, (planes, to) in enumerate(_shared(tiles, slab, low, low + n)):
                    pieces.append((f"piece-{key}", g, s, b, i))
                    places.append(to)
                    graph[pieces[-1]] = (partial(_planes, planes=planes), last)
            whole = partial(_assemble, places=places, shape=(*leading, n, *grid.shape[1:]))
            graph[f"block-{key}", g, b] = (whole, pieces)
            terms.append((f"block-{key}", g, b))
        while len(terms) > 1:
            pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
            terms = [(f"tree-{key}", b, len(pairs), i) for i in range(len(pairs))]
            graph.update({name: (_total, pair) for name, pair in zip(terms, pairs, strict=True)})
        graph[key, 0, b, 0, 0] = (_flat, terms[0])
        low += n
    layers = HighLevelGraph.from_collections(key, graph, sources)
    shape = ((n_bins * n_fields,), blocks, *((n,) for n in grid.shape[1:]))
    return da.Array(layers, key, shape, dtype=np.float32)


def _merged(rows: Sequence[int]) -> tuple[int, ...]:
    """Chunks of rows, neighbours joined up to `ROWS`."""
    out = [0]
    for n in rows:
        if out[-1] and out[-1] + n > ROWS:
            out.append(0)
        out[-1] += n
    return tuple(out)


def _shared(
    tiles: Tiling, slab: tuple[int, int], low: int, high: int
) -> Iterator[tuple[slice, int]]:
    """Planes of a slab that lie in the block from ``low`` to ``high``, and where in it."""
    first, last = tiles.planes(*slab)
    start, stop = max(first, low), min(last, high)
    if start < stop:
        yield slice(start - first, stop - first), start - low
    extra = last % tiles.shape[0]
    if last - first < tiles.shape[0] and low <= extra < high:
        yield slice(last - first, last - first + 1), extra - low


def _sorted(
    position: NDArray[np.floating],
    *columns: NDArray[Any],
    names: Sequence[str],
    tiles: Tiling,
    lengths: Sequence[float],
    threads: int | None,
) -> Sorted:
    from .kernels.mesh import sort, threaded

    named = dict(zip(names, columns, strict=True))
    _check_columns(named)
    try:
        with threaded(threads or n_threads(), len(position)) as (n, run):
            return sort(tiles, position, **named, n_threads=n, run=run)
    except CatalogError:
        check_positions(position, lengths)
        raise


class _Slab:
    """Sums of the first ``count`` chunks, added to in place: a copy for each would cost more.

    ``count`` guards the numbers: a task that is run again finds its chunk in the sums, or an error.
    """

    def __init__(self, sums: NDArray[np.floating], count: int = 0) -> None:
        self.sums = sums
        self.count = count
        self.lock = Lock()

    def __sizeof__(self) -> int:
        return self.sums.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, since what is sent or spilled must not change under way.
        with self.lock:
            return _Slab, (self.sums.copy(), self.count)


def _accumulate(
    slab_sums: _Slab | None,
    particles: Sorted,
    *,
    step: int,
    tiles: Tiling,
    slab: tuple[int, int],
    leading: tuple[int, int],
    dtype: np.dtype,
    threads: int | None,
) -> _Slab:
    """Add the particles of chunk ``step``, once, to the sums of those before it."""
    from .kernels.mesh import add, threaded

    if slab_sums is None:
        first, last = tiles.planes(*slab)
        n_planes = min(last - first + 1, tiles.shape[0])
        slab_sums = _Slab(np.zeros((*leading, n_planes, *tiles.shape[1:]), dtype))
    with slab_sums.lock:
        if slab_sums.count == step + 1:
            return slab_sums
        if slab_sums.count != step:
            raise RuntimeError(
                f"A slab holds {slab_sums.count} chunks where {step} were expected: a task was "
                "interrupted or its result reused; compute again"
            )
        if not slab_sums.sums.flags.writeable:
            slab_sums.sums = slab_sums.sums.copy()
        slab_sums.count = -1
        with threaded(threads or n_threads(), len(particles.rows)) as (_, run):
            add(tiles, particles, slab_sums.sums, first=slab[0], run=run)
        slab_sums.count = step + 1
    return slab_sums


def _planes(slab_sums: _Slab, planes: slice) -> NDArray[np.floating]:
    return slab_sums.sums[:, :, planes]


def _assemble(
    pieces: list[NDArray[np.floating]], places: list[int], shape: tuple[int, ...]
) -> NDArray[np.floating]:
    """Sum of slabs' planes, each from its place on."""
    if len(pieces) == 1 and pieces[0].shape == shape:
        return pieces[0]
    out = np.zeros(shape, pieces[0].dtype)
    for piece, place in zip(pieces, places, strict=True):
        out[:, :, place : place + piece.shape[2]] += piece
    return out


def _total(terms: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _flat(block: NDArray[np.floating]) -> NDArray[np.float32]:
    return block.reshape(-1, *block.shape[2:]).astype(np.float32, copy=False)
