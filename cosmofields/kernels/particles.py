"""Particles of a particle-mesh run: where they start, what pulls them, how they move.

Rows keep the order of the lattice: neighbours in memory stay neighbours in space, so that a mesh
is read from cache.  The mesh of a force is made where its modes lie, plane by plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from ..conventions import Grid
from .mesh import _cell
from .modes import Modes, Waves, _each, _in_place, _power, flow, waves

# Particles that one thread moves at a time.
_BATCH = 2**18


def lattice(n: int, lengths: Sequence[float]) -> NDArray[np.float32]:
    """Positions (particle, component) of n^3 particles at the nodes i L / n; z runs fastest."""
    position = np.empty((n, n, n, 3), np.float32)
    for axis, length in enumerate(lengths):
        nodes = (np.arange(n) * (length / n)).astype(np.float32)
        position[..., axis] = nodes.reshape([-1 if i == axis else 1 for i in range(3)])
    return position.reshape(-1, 3)


def white_noise(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Unit Gaussian noise (x, y, z); each plane from a stream of its own, on any machine alike."""
    noise = np.empty(tuple(shape), np.float32)
    for i, plane in enumerate(noise):
        np.random.default_rng([seed, i]).standard_normal(dtype=np.float32, out=plane)
    return noise


def colour(modes: Sequence[Modes], w: Waves, *, table: NDArray[np.float32], unit: float) -> None:
    """Multiply white noise by sqrt(unit P(k)), P from :func:`~.modes.power_table`; 0 at k = 0."""
    _colour(modes[0], *w.squares(), table, unit)


def shear(modes: Sequence[Modes], out: Modes, w: Waves, *, i: int, j: int) -> None:
    """Write (k_i k_j / k^2) f into ``out``: the second derivative of the potential of f."""
    # An odd derivative along each of two axes, or an even one along the same.
    k = w.k if i == j else w.odd
    factors = [np.ones_like(axis) for axis in w.k]
    for axis in (i, j):
        factors[axis] = factors[axis] * k[axis]
    _shear(modes[0], out, factors[0], factors[1], factors[2], *w.squares())


def force(modes: Sequence[Modes], out: Modes, w: Waves, *, axis: int, grid: Grid) -> None:
    """Write i D_axis / k^2 f, D the difference over four points: FastPM's force of f.

    D = (8 sin kH - sin 2kH) / 6H is k up to order (kH)^4, and falls to 0 at the Nyquist frequency,
    where the force of a mesh is not that of its particles.
    """
    cell = grid.cell_size[axis]
    phase = w.k[axis] * cell
    odd = list(w.odd)
    odd[axis] = (8 * np.sin(phase) - np.sin(2 * phase)) / (6 * cell)
    flow(modes, out, Waves(w.k, (odd[0], odd[1], odd[2])), axis=axis, rate=1.0)


def field_of(
    modes: Modes,
    grid: Grid,
    output: Callable[..., None],
    work: Modes,
    n_threads: int,
) -> NDArray[np.float32]:
    """Real field of what ``output(modes, out, waves)`` makes, in the memory of ``work``.

    Returns
    -------
    array, (x, y, z), float32
        A view: its planes lie apart, as those of the modes do.
    """
    nx, ny, nz = grid.shape

    def strip(rows: slice) -> None:
        output([modes[:, rows]], work[:, rows], waves(grid.shape, grid.lengths, rows))
        _in_place(scipy.fft.ifft, work[:, rows])

    field = work.view(np.float32).reshape(nx, -1)[:, : ny * nz].reshape(nx, ny, nz)

    def planes(x: slice) -> None:
        turned = scipy.fft.ifft(work[x], axis=1)
        field[x] = scipy.fft.irfft(turned, nz, axis=2)

    _each(strip, ny, work[:, 0].nbytes, n_threads)
    _each(planes, nx, work[0].nbytes, n_threads)
    return field


def pull(
    force: NDArray[np.float32],
    position: NDArray[np.float32],
    momentum: NDArray[np.float32],
    lengths: Sequence[float],
    *,
    axis: int,
    factor: float,
    n_threads: int,
) -> None:
    """Add ``factor`` times the force at each position (cloud in cell) to a component."""
    scale = tuple(n / float(length) for n, length in zip(force.shape, lengths, strict=True))

    def part(rows: slice) -> None:
        _pull(force, position[rows], momentum[rows], scale, axis, factor)

    _batches(part, len(position), n_threads)


def move(
    position: NDArray[np.float32],
    momentum: NDArray[np.float32],
    lengths: Sequence[float],
    *,
    factor: float,
    n_threads: int,
) -> None:
    """Add ``factor`` times the momentum to each position, and wrap it into [0, L)."""
    sides = (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    def part(rows: slice) -> None:
        _move(position[rows], momentum[rows], sides, factor)

    _batches(part, len(position), n_threads)


def _batches(task: Callable[[slice], None], n: int, n_threads: int) -> None:
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(task, (slice(i, i + _BATCH) for i in range(0, n, _BATCH))))


_M, _K = "complex64[:, :, :]", "float64[:]"


@njit(f"void({_M}, {_K}, {_K}, {_K}, float32[:], f8)", nogil=True, cache=True)
def _colour(f, kx2, ky2, kz2, table, unit):  # type: ignore[no-untyped-def]
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                scale = np.float32(np.sqrt(unit * _power(k2, table))) if k2 > 0 else np.float32(0)
                f[i, j, m] = complex(scale * f[i, j, m].real, scale * f[i, j, m].imag)


@njit(f"void({_M}, {_M}, {_K}, {_K}, {_K}, {_K}, {_K}, {_K})", nogil=True, cache=True)
def _shear(f, out, px, py, pz, kx2, ky2, kz2):  # type: ignore[no-untyped-def]
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            along = px[i] * py[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                scale = np.float32(along * pz[m] / k2) if k2 > 0 else np.float32(0)
                out[i, j, m] = complex(scale * f[i, j, m].real, scale * f[i, j, m].imag)


@njit(nogil=True, cache=True)
def _pull(force, position, momentum, scale, axis, factor):  # type: ignore[no-untyped-def]
    nx, ny, nz = force.shape
    sx, sy, sz = scale
    none, next_ = np.uintp(0), np.uintp(1)
    last_x, last_y, last_z = np.uintp(nx - 1), np.uintp(ny - 1), np.uintp(nz - 1)
    one = np.float32(1)
    for p in range(position.shape[0]):
        i, dx = _cell(position[p, 0] * sx, nx)
        j, dy = _cell(position[p, 1] * sy, ny)
        k, dz = _cell(position[p, 2] * sz, nz)
        i1 = i + next_ if i < last_x else none
        j1 = j + next_ if j < last_y else none
        k1 = k + next_ if k < last_z else none
        x1, y1, z1 = np.float32(dx), np.float32(dy), np.float32(dz)
        x0, y0, z0 = one - x1, one - y1, one - z1
        value = x0 * (
            y0 * (z0 * force[i, j, k] + z1 * force[i, j, k1])
            + y1 * (z0 * force[i, j1, k] + z1 * force[i, j1, k1])
        ) + x1 * (
            y0 * (z0 * force[i1, j, k] + z1 * force[i1, j, k1])
            + y1 * (z0 * force[i1, j1, k] + z1 * force[i1, j1, k1])
        )
        momentum[p, axis] += np.float32(factor) * value


@njit(nogil=True, cache=True)
def _move(position, momentum, sides, factor):  # type: ignore[no-untyped-def]
    for p in range(position.shape[0]):
        for c in range(3):
            side = sides[c]
            x = position[p, c] + factor * momentum[p, c]
            x -= side * np.floor(x / side)
            y = np.float32(x)
            # What lies just below L may be rounded to it.
            position[p, c] = y if y < np.float32(side) else np.float32(0)
