"""Cloud-in-cell mass assignment in numba: on all cores, without atomics, the same on any number.

Particles are copied, in batches, into the order of tiles (a stable counting sort) whose cells stay
in cache: painting is then bound by arithmetic, where particles in no order wait for memory.
Stripes of tiles along x are painted in two colours: stripes of one colour share no cell.  Plain
threads over ``nogil`` kernels, since numba's own pool may not be entered from two Dask threads at
once.  :func:`sort` and :func:`add` are the two halves, for particles that come piece by piece and
for slabs of a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..conventions import CatalogError

# Bytes of particles sorted at a time: some 10^7, which amortise a pass over the mesh.
SCRATCH = 2**28
# Below this many, threads cost more than they bring.
FEW = 2**15
# Planes of x of a tile, and the bytes of its cells: they stay in the L2 cache.
TILE_X, TILE_BYTES = 8, 2**19
# In float32 a value just below L can round up to L, which is a wrap and no error.
SLACK = 1e-6
# Up to this many particles a cell, clustered, float32 sums are right to 3e-6 in a cell and to 1e-7
# in the whole mass (measured: 2e-6, 3e-8). Beyond, a float64 mesh is small beside the particles.
CROWDED = 64
# Cells (of the longest side) within which a cell without weight is given a neighbour's vector.
REACH = 8


class Tiling(NamedTuple):
    """How a mesh is cut: stripe of each plane along x, and tile of each row along y."""

    scale: tuple[float, float, float]
    stripes: NDArray[np.int32]
    tiles: NDArray[np.int32]
    shape: tuple[int, int, int]
    n_bins: int

    @property
    def n_stripes(self) -> int:
        """Even, or the last would share plane 0 with the first of its colour."""
        return int(self.stripes[-1]) + 1

    def planes(self, first: int, last: int) -> tuple[int, int]:
        """First plane of the stripe ``first``, and of the stripe ``last``."""
        low, high = np.searchsorted(self.stripes, [first, last])
        return int(low), int(high)


class Sorted(NamedTuple):
    """Particles in the order of stripe, bin and tile.

    ``rows`` (n, column) hold position, weight if there are any, vector; those of tile t of bin b
    in stripe s begin at ``starts[s, b, t]``, and end where the next begin.
    """

    rows: NDArray[np.floating]
    starts: NDArray[np.int64]
    weighted: bool

    def stripes(self, first: int, last: int) -> Sorted:
        """A view of the particles of the stripes from ``first`` to before ``last``."""
        n_stripes = len(self.starts)
        begin = self.starts[first, 0, 0]
        end = self.starts[last, 0, 0] if last < n_stripes else len(self.rows)
        return Sorted(self.rows[begin:end], self.starts[first:last] - begin, self.weighted)


def tiling(
    shape: Sequence[int], lengths: Sequence[float], *, n_fields: int = 1, n_bins: int = 1
) -> Tiling:
    """Cut a mesh of ``shape`` over sides ``lengths`` into tiles that fit into the cache."""
    nx, ny, nz = map(int, shape)
    n_stripes = 2 * max(1, nx // (2 * TILE_X))
    rows = max(1, TILE_BYTES // (4 * n_fields * TILE_X * nz))
    n_tiles = max(1, ny // rows)
    return Tiling(
        (nx / float(lengths[0]), ny / float(lengths[1]), nz / float(lengths[2])),
        (np.arange(nx) * n_stripes // nx).astype(np.int32),
        (np.arange(ny) * n_tiles // ny).astype(np.int32),
        (nx, ny, nz),
        n_bins,
    )


def sort(
    tiles: Tiling,
    position: NDArray[np.floating],
    *,
    weight: NDArray[np.floating] | None = None,
    vector: NDArray[np.floating] | None = None,
    bins: NDArray[np.integer] | None = None,
    n_threads: int = 1,
    run: Callable[..., Iterable[Any]] = map,
    scratch: NDArray[np.uint8] | None = None,
) -> Sorted:
    """Copy particles into the order of the tiles; equal tiles keep the order of the input.

    Parameters
    ----------
    tiles : Tiling
    position, weight, vector, bins : arrays (n, 3), (n,), (n, component), (n,)
        As of :func:`cic`.
    n_threads, run : int, callable
        Ranges of particles to make, and the ``map`` over them.
    scratch : array of bytes, optional
        Memory to use, :func:`row_bytes` for each particle.

    Raises
    ------
    CatalogError
        If a position is NaN, infinite or outside the box.
    """
    n = len(position)
    dtype = _type_of(position)
    position = np.ascontiguousarray(position, dtype)
    weights = np.ascontiguousarray([] if weight is None else weight, dtype)
    vectors = np.ascontiguousarray(np.empty((0, 0)) if vector is None else vector, dtype)
    which = np.ascontiguousarray([] if bins is None else bins, np.int16)
    n_columns = 3 + (weight is not None) + vectors.shape[1]
    size = n * n_columns * position.itemsize
    memory = np.empty(size, np.uint8) if scratch is None else scratch[:size]
    rows = memory.view(dtype).reshape(n, n_columns)

    n_keys = tiles.n_stripes * tiles.n_bins * (int(tiles.tiles[-1]) + 1)
    key_type = np.uint16 if n_keys < 2**16 else np.uint32
    key = np.empty(n, key_type) if scratch is None else scratch[size:].view(key_type)[:n]
    fill = np.zeros((n_threads, n_keys), np.int64)
    ranges = [slice(n * i // n_threads, n * (i + 1) // n_threads) for i in range(n_threads)]

    def count(i: int) -> int:
        part = ranges[i]
        return _count(position[part], which[part], *tiles, key[part], fill[i])

    bad = sum(run(count, range(n_threads)))
    if bad:
        raise CatalogError(f"{bad} of {n} positions are NaN, infinite or outside the box")
    # Where the particles of each range begin in each tile: ranges in turn, so the sort is stable.
    ends = np.cumsum(fill.T).reshape(n_keys, n_threads).T
    fill = np.ascontiguousarray(ends - fill)
    starts = fill[0].reshape(tiles.n_stripes, tiles.n_bins, -1).copy()

    def scatter(i: int) -> None:
        part = ranges[i]
        _scatter(position[part], weights[part], vectors[part], key[part], fill[i], rows)

    list(run(scatter, range(n_threads)))
    return Sorted(rows, starts, weight is not None)


def add(
    tiles: Tiling,
    particles: Sorted,
    mesh: NDArray[np.floating],
    *,
    first: int = 0,
    run: Callable[..., Iterable[Any]] = map,
) -> None:
    """Add sorted ``particles`` to ``mesh``, in place.

    Parameters
    ----------
    tiles : Tiling
    particles : Sorted
        All, or those of consecutive stripes from ``first``.
    mesh : array, (bin, field, x, y, z)
        Field 0 takes the weights, the others weight times vector.  Its first plane is that of
        stripe ``first``; short of the whole mesh, it has one plane more than its stripes.
    first : int
        Stripe.
    run : callable
        ``map`` over stripes of one colour, which may run at the same time.
    """
    rows, starts, weighted = particles
    n_stripes = len(starts)
    flat = np.append(starts, len(rows))
    per_stripe = starts[0].size
    origin = tiles.planes(first, first)[0]
    vector = (4 if weighted else 3) if mesh.shape[1] > 1 else None

    def paint(stripe: int) -> None:
        begin = stripe * per_stripe
        bounds = flat[begin : begin + per_stripe + 1 : starts.shape[2]]
        for b in range(len(mesh)):
            part = rows[bounds[b] : bounds[b + 1]]
            if len(part):
                _add(part, weighted, vector, tiles.scale, tiles.shape, origin, mesh[b])

    for colour in (0, 1):
        list(run(paint, range(colour, n_stripes, 2)))


def cic(
    position: NDArray[np.floating],
    shape: Sequence[int],
    lengths: Sequence[float],
    *,
    weight: NDArray[np.floating] | None = None,
    vector: NDArray[np.floating] | None = None,
    bins: NDArray[np.integer] | None = None,
    n_bins: int = 1,
    n_threads: int,
) -> NDArray[np.float32]:
    """Cloud-in-cell sums on a periodic mesh whose node i sits at i L / N.

    Parameters
    ----------
    position : array, (n, 3)
        Mpc/h, in [0, L]; L is 0.
    shape : cells (x, y, z)
    lengths : sides (x, y, z) in Mpc/h
    weight : array, (n,), optional
        What each particle counts, e.g. its mass.  Default: 1.
    vector : array, (n, component), optional
        Painted times the weight, e.g. the velocity.
    bins : integer array, (n,), optional
        Each bin, 0 to ``n_bins`` - 1, has a mesh of its own.
    n_bins : int
    n_threads : int
        The result does not depend on it.

    Returns
    -------
    array, (bin, field, x, y, z), float32
        Sums per cell of the weight (field 0) and of weight times vector (fields 1 onwards); each
        particle adds its value in all (mass is conserved).

    Raises
    ------
    CatalogError
        If a position is NaN, infinite or outside the box.
    """
    n = len(position)
    n_fields = 1 + (0 if vector is None else vector.shape[1])
    tiles = tiling(shape, lengths, n_fields=n_fields, n_bins=n_bins)
    mesh = np.zeros((n_bins, n_fields, *tiles.shape), sum_type(n, shape))
    each = row_bytes(position, weight is not None, n_fields - 1)
    batch = max(1, SCRATCH // each)
    with threaded(n_threads, n) as (n_threads, run), _memory(min(n, batch) * each) as scratch:
        for i in range(0, n, batch):
            part = slice(i, i + batch)
            particles = sort(
                tiles,
                position[part],
                weight=None if weight is None else weight[part],
                vector=None if vector is None else vector[part],
                bins=None if bins is None else bins[part],
                n_threads=n_threads,
                run=run,
                scratch=scratch,
            )
            add(tiles, particles, mesh, run=run)
    return mesh.astype(np.float32, copy=False)


def row_bytes(position: NDArray[np.floating], weighted: bool, n_components: int) -> int:
    """Bytes that :func:`sort` needs for a particle: its columns, and the number of its tile."""
    return np.dtype(_type_of(position)).itemsize * (3 + weighted + n_components) + 4


def _type_of(position: NDArray[Any]) -> type[np.floating]:
    return np.float32 if np.can_cast(position.dtype, np.float32) else np.float64


# Of the last call, for the next: fresh memory can cost more than all the sorting in it, since a
# virtual machine gives back what is free.
_spare: list[NDArray[np.uint8]] = []


@contextmanager
def _memory(n_bytes: int) -> Iterator[NDArray[np.uint8]]:
    try:
        memory = _spare.pop()
    except IndexError:  # the first call, or another thread has it
        memory = np.empty(0, np.uint8)
    if len(memory) < n_bytes:
        # The old one first, or both would be held at once.
        del memory
        memory = np.empty(n_bytes, np.uint8)
    yield memory
    _spare[:] = [memory]


@contextmanager
def threaded(n_threads: int, n: int) -> Iterator[tuple[int, Callable[..., Iterable[Any]]]]:
    """Threads that ``n`` particles are worth, and the ``map`` that runs on them."""
    if n_threads == 1 or n < FEW:
        yield 1, map
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            yield n_threads, pool.map


def velocity(
    mesh: NDArray[np.floating],
    cell_size: Sequence[float],
    *,
    reach: int,
    margin: int = 0,
    n_threads: int = 1,
) -> NDArray[np.float32]:
    """Vector over weight in each cell; in one without weight, that of the nearest that has some.

    Parameters
    ----------
    mesh : array, (1 + component, x, y, z)
        Sums of weight and of weight times vector; periodic along y and z, and along x if ``margin``
        is 0.
    cell_size : sides (x, y, z)
    reach : int
        A cell may be given what lies this far along x, and within :func:`reach_of` at most; of
        equally near cells, the first along x, then y, then z, counts.  Beyond, the vector is 0.
    margin : int
        Planes at each end of ``mesh`` that are there to be reached only; 0, or ``reach``.

    Returns
    -------
    array, (component, x - 2 margin, y, z)
    """
    n_planes = mesh.shape[1] - 2 * margin
    out = np.empty((len(mesh) - 1, n_planes, *mesh.shape[2:]), np.float32)
    steps = _steps(cell_size, (reach, mesh.shape[2] // 2, mesh.shape[3] // 2))
    parts = np.array_split(np.arange(n_planes), n_threads)
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda i: _velocity(mesh, i, margin, steps, out), parts))
    return out


def reach_of(cell_size: Sequence[float]) -> NDArray[np.int64]:
    """Cells along each axis within which a cell without weight looks for one that has some."""
    return np.floor(REACH * max(cell_size) / np.asarray(cell_size) + 1e-9).astype(np.int64)


def _steps(cell_size: Sequence[float], most: Sequence[int]) -> NDArray[np.int64]:
    """Steps (x, y, z) within reach and at most ``most`` along each axis, the nearest first."""
    ranges = [np.arange(-n, n + 1) for n in np.minimum(reach_of(cell_size), most)]
    steps = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
    distance = np.linalg.norm(steps * (np.asarray(cell_size) / max(cell_size)), axis=1).round(9)
    near = distance <= REACH
    return steps[near][np.argsort(distance[near], kind="stable")]


def sum_type(n: int, shape: Sequence[int]) -> type[np.floating]:
    """Type of a mesh that sums ``n`` particles."""
    return np.float64 if n > CROWDED * np.prod(shape, dtype=np.float64) else np.float32


@njit(nogil=True, cache=True, inline="always")
def _cell(f, n):  # type: ignore[no-untyped-def]
    """Cell and place in it of a coordinate in cells, from just below 0 to just above n."""
    if f < 0:
        f += n
    # Also what was just below 0 and has been rounded.
    if f >= n:
        f -= n
    i = int(f)
    # Numba asks of each signed index whether it counts from the end.
    return np.uintp(i), f - i


@njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    position, bins, scale, stripes, tiles, shape, n_bins, key, counts
):
    """Tile of each particle, and particles of each tile; return how many lie nowhere."""
    nx, ny, nz = shape
    # float64: the product in float32 misplaces a particle by up to 5e-4 of a cell.
    sx, sy, sz = scale
    n_tiles = tiles[-1] + 1
    low, high = -SLACK, 1 + SLACK
    bad = 0
    for p in range(position.shape[0]):
        x = position[p, 0] * sx
        y = position[p, 1] * sy
        z = position[p, 2] * sz
        # Never true of NaN.
        inside = (x >= low * nx) & (y >= low * ny) & (z >= low * nz)
        inside &= (x <= high * nx) & (y <= high * ny) & (z <= high * nz)
        if inside:
            t = np.int64(stripes[_cell(x, nx)[0]])
            if n_bins > 1:
                t = t * n_bins + bins[p]
            t = t * n_tiles + tiles[_cell(y, ny)[0]]
            key[p] = t
            counts[np.uintp(t)] += 1
        else:
            bad += 1
    return bad


@njit(nogil=True, cache=True)
def _scatter(position, weight, vector, key, fill, rows):  # type: ignore[no-untyped-def]
    """Copy each particle to the next free row of its tile."""
    weighted = len(weight) > 0
    n_components = vector.shape[1]
    first = 4 if weighted else 3
    for p in range(position.shape[0]):
        t = np.uintp(key[p])
        o = np.uintp(fill[t])
        fill[t] = o + 1
        rows[o, 0] = position[p, 0]
        rows[o, 1] = position[p, 1]
        rows[o, 2] = position[p, 2]
        if weighted:
            rows[o, 3] = weight[p]
        for c in range(n_components):
            rows[o, first + c] = vector[p, c]


@njit(nogil=True, cache=True, inline="always")
def _spread(f, i, j, k, i1, j1, k1, w00, w01, w10, w11, low, high):  # type: ignore[no-untyped-def]
    f[i, j, k] += w00 * low
    f[i, j, k1] += w00 * high
    f[i, j1, k] += w01 * low
    f[i, j1, k1] += w01 * high
    f[i1, j, k] += w10 * low
    f[i1, j, k1] += w10 * high
    f[i1, j1, k] += w11 * low
    f[i1, j1, k1] += w11 * high


@njit(nogil=True, cache=True)
def _add(rows, weighted, vector, scale, shape, origin, mesh):  # type: ignore[no-untyped-def]
    """Add ``rows`` to ``mesh`` (field, x, y, z); the columns from ``vector``, or None."""
    n_fields, n_planes = mesh.shape[:2]
    nx, ny, nz = shape
    sx, sy, sz = scale
    real = mesh.dtype.type
    one = real(1)
    none, next_ = np.uintp(0), np.uintp(1)
    last_x, last_y, last_z = np.uintp(n_planes - 1), np.uintp(ny - 1), np.uintp(nz - 1)
    density = mesh[0]
    for p in range(rows.shape[0]):
        i, dx = _cell(rows[p, 0] * sx, nx)
        j, dy = _cell(rows[p, 1] * sy, ny)
        k, dz = _cell(rows[p, 2] * sz, nz)
        i -= np.uintp(origin)
        i1 = i + next_ if i < last_x else none
        j1 = j + next_ if j < last_y else none
        k1 = k + next_ if k < last_z else none
        x1, y1, z1 = real(dx), real(dy), real(dz)
        x0, y0, z0 = one - x1, one - y1, one - z1
        if weighted:
            x0 *= real(rows[p, 3])
            x1 *= real(rows[p, 3])
        w00, w01, w10, w11 = x0 * y0, x0 * y1, x1 * y0, x1 * y1
        _spread(density, i, j, k, i1, j1, k1, w00, w01, w10, w11, z0, z1)
        # Compiled apart for None: the loop alone costs a fifth.
        if vector is not None:
            for c in range(1, n_fields):
                v = real(rows[p, vector + c - 1])
                _spread(mesh[c], i, j, k, i1, j1, k1, w00, w01, w10, w11, z0 * v, z1 * v)


@njit(nogil=True, cache=True)
def _velocity(mesh, planes, margin, steps, out):  # type: ignore[no-untyped-def]
    _, nx, ny, nz = mesh.shape
    for i in planes:
        for j in range(ny):
            for k in range(nz):
                a, b, c = i + margin, j, k
                s = 1
                while mesh[0, a, b, c] <= 0 and s < len(steps):
                    a = (i + margin + steps[s, 0]) % nx
                    b = (j + steps[s, 1]) % ny
                    c = (k + steps[s, 2]) % nz
                    s += 1
                weight = mesh[0, a, b, c]
                for v in range(out.shape[0]):
                    out[v, i, j, k] = mesh[1 + v, a, b, c] / weight if weight > 0 else 0
