"""Fourier modes of fields in memory, and what is done to them strip by strip.

A strip is what one task holds of the half-space of ``scipy.fft.rfftn``: all of kx and kz, some
rows of ky.  A kernel sees its modes and their :class:`Waves`, so that the same one serves the whole
box in memory and a pencil out of core.

Fresh memory is dear, and so is a pass over it.  The transforms in memory therefore work in place,
on planes and strips as large as a cache: a strip is transformed along x and handed to its kernel
while it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from ..conventions import Grid

Modes = NDArray[np.complex64]
_Axes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
_T = TypeVar("_T")

# Bytes that a thread works on at a time: a part of a processor's cache.
_CACHED = 2**22

# P(k) is read from a table over k^2, linear between 4096 nodes an octave: float32 holds octave and
# node in its upper bits.  It spans CAMB's range, 1e-4 < k < 25 h/Mpc.
_SHIFT = 11
_FIRST, _LAST = (int(np.float32(2.0**power).view(np.int32)) >> _SHIFT for power in (-27, 10))
TABLE_SIZE = _LAST - _FIRST + 1


class Waves(NamedTuple):
    """Components of k in h/Mpc along each axis of a strip.

    ``odd`` is the same with zeros at the Nyquist frequency of even axes, where the odd derivative
    of a real field vanishes.
    """

    k: _Axes
    odd: _Axes

    def squares(self) -> _Axes:
        """k^2 along each axis."""
        return self.k[0] ** 2, self.k[1] ** 2, self.k[2] ** 2


def waves(shape: Sequence[int], lengths: Sequence[float], rows: slice = slice(None)) -> Waves:
    """Waves of the strip that holds the ``rows`` of ky."""
    even: list[NDArray[np.float64]] = []
    odd: list[NDArray[np.float64]] = []
    for axis, (n, length) in enumerate(zip(shape, lengths, strict=True)):
        freq = np.fft.rfftfreq if axis == 2 else np.fft.fftfreq
        k = np.asarray(2 * np.pi * freq(n, length / n), np.float64)
        smooth = k.copy()
        if n % 2 == 0:
            smooth[n // 2] = 0.0
        cut = rows if axis == 1 else slice(None)
        even.append(k[cut])
        odd.append(smooth[cut])
    return Waves((even[0], even[1], even[2]), (odd[0], odd[1], odd[2]))


# --- the window of the mass assignment ---


def unwindow(w: Waves, cell_size: Sequence[float], window: str | None) -> _Axes:
    """Factors along the axes of a strip, whose product takes the window out of a power.

    Parameters
    ----------
    w : Waves
    cell_size : sides (x, y, z) H in Mpc/h
    window : {"cic", "cic-aliased"} or None
        ``"cic"``: prod sinc^-4(k_i H_i / 2), sinc x = sin x / x, the cloud in cell of both fields
        (Hockney & Eastwood 1981).  ``"cic-aliased"``: prod 1 / (1 - 2/3 sin^2(k_i H_i / 2)), that
        with the sum over its aliases for white noise (Jing 2005, ApJ 620, 559, eq. 20).  None: 1.

    Returns
    -------
    three arrays, float64
    """
    x, y, z = (_unwindow(k * side / 2, window) for k, side in zip(w.k, cell_size, strict=True))
    return x, y, z


def _unwindow(phase: NDArray[np.float64], window: str | None) -> NDArray[np.float64]:
    if window is None:
        return np.ones_like(phase)
    if window == "cic":
        return np.sinc(phase / np.pi) ** -4
    return 1 / (1 - 2 / 3 * np.sin(phase) ** 2)


# --- in memory ---


class Planes(Protocol):
    """A real field in memory, or an object that makes x-planes of one as they are asked for."""

    def __getitem__(self, planes: slice, /) -> NDArray[np.floating]:
        """Planes (x, y, z)."""


def forward(
    fields: Sequence[Planes],
    grid: Grid,
    finish: Callable[[Sequence[Modes], Waves], _T],
    n_threads: int,
) -> tuple[list[Modes], list[_T]]:
    """Modes of real fields, and what ``finish`` returned of each strip of them.

    Parameters
    ----------
    fields : sequence of arrays (x, y, z), or other :class:`Planes`
    grid : Grid
    finish : callable
        ``finish(strips, waves)`` may write to the strips.
    n_threads : int

    Returns
    -------
    list of arrays, (x, y, z // 2 + 1), complex64
    list
        In the order of the strips, which does not depend on ``n_threads``.
    """
    nx, ny, nz = grid.shape
    modes = [np.empty((nx, ny, nz // 2 + 1), np.complex64) for _ in fields]
    for field, whole in zip(fields, modes, strict=True):

        def planes(x: slice, field: Planes = field, whole: Modes = whole) -> None:
            whole[x] = rfft_planes(field[x])

        _each(planes, nx, whole[0].nbytes, n_threads)

    def strip(rows: slice) -> _T:
        strips = [_in_place(scipy.fft.fft, whole[:, rows]) for whole in modes]
        return finish(strips, waves(grid.shape, grid.lengths, rows))

    return modes, _each(strip, ny, modes[0][:, 0].nbytes, n_threads)


def backward(
    modes: Sequence[Modes],
    grid: Grid,
    outputs: Sequence[Callable[..., None] | None],
    n_threads: int,
) -> NDArray[np.float32]:
    """Real fields of the modes that ``outputs`` make of ``modes``.

    Parameters
    ----------
    modes : sequence of arrays (x, y, z // 2 + 1), complex64
        The last one is overwritten.
    grid : Grid
    outputs : sequence of callables, or None
        ``output(strips, out, waves)`` writes to ``out`` alone, mode by mode: for the last output
        that is ``strips[-1]``.  None stands for ``strips[-1]`` as they are, and comes last.
    n_threads : int

    Returns
    -------
    array, (output, x, y, z), float32
    """
    last = len(outputs) - 1
    size, half = int(np.prod(grid.shape)), modes[-1].size
    # The modes of the earlier fields lie where the last one will.
    memory = np.empty(last * size + (2 * half if last else size), np.float32)
    fields = memory[: len(outputs) * size].reshape(-1, *grid.shape)
    for i, output in enumerate(outputs):
        work, field = modes[-1], fields[i]
        if i < last:
            work = memory[last * size :].view(np.complex64).reshape(work.shape)

        def strip(rows: slice, work: Modes = work, output: Any = output) -> None:
            if output is not None:
                window = waves(grid.shape, grid.lengths, rows)
                output([whole[:, rows] for whole in modes], work[:, rows], window)
            _in_place(scipy.fft.ifft, work[:, rows])

        def planes(x: slice, work: Modes = work, field: NDArray[np.float32] = field) -> None:
            field[x] = irfft_planes(work[x], grid.shape[2], overwrite=True)

        _each(strip, grid.shape[1], work[:, 0].nbytes, n_threads)
        _each(planes, grid.shape[0], work[0].nbytes, n_threads)
    return fields


def rfft_planes(planes: NDArray[np.floating]) -> Modes:
    """Transform x-planes along y and z."""
    return scipy.fft.rfft2(np.ascontiguousarray(planes, dtype=np.float32), axes=(1, 2))


def irfft_planes(modes: Modes, nz: int, *, overwrite: bool = False) -> NDArray[np.float32]:
    """Transform planes of modes back along y and z; ``overwrite`` lets it write to ``modes``."""
    turned = scipy.fft.ifft(modes, axis=1, overwrite_x=overwrite)
    return scipy.fft.irfft(turned, nz, axis=2)


def _in_place(transform: Callable[..., Any], strip: Modes) -> Modes:
    """Transform along x where the strip lies."""
    done = transform(strip, axis=0, overwrite_x=True)
    if not np.may_share_memory(done, strip):  # which scipy may do, and does not promise
        strip[...] = done
    return strip


def _each(task: Callable[[slice], _T], n: int, nbytes: int, n_threads: int) -> list[_T]:
    """Run ``task`` over slices of range(n), of which one element takes ``nbytes``."""
    width = max(1, _CACHED // nbytes)
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(task, (slice(i, min(i + width, n)) for i in range(0, n, width))))


# --- kernels ---


def derivative(modes: Sequence[Modes], out: Modes, w: Waves, *, axis: int) -> None:
    """Write i k_axis f into ``out``."""
    _times_ik(modes[0], out, *_along(w, axis), False)


def divergence(modes: Sequence[Modes], w: Waves) -> None:
    """Write i k.v over v_x."""
    for axis, component in enumerate(modes):
        _times_ik(component, modes[0], *_along(w, axis), axis > 0)


def curl(modes: Sequence[Modes], out: Modes, w: Waves, *, axis: int) -> None:
    """Write component ``axis`` of i k x v into ``out``."""
    after, before = (axis + 1) % 3, (axis + 2) % 3
    _times_ik(modes[before], out, *_along(w, after), False)
    _times_ik(modes[after], out, *_along(w, before, -1.0), True)


def flow(modes: Sequence[Modes], out: Modes, w: Waves, *, axis: int, rate: float) -> None:
    """Write rate (i k_axis / k^2) f into ``out``, 0 at k = 0."""
    _flow(modes[0], out, *_along(w, axis), *w.squares(), rate)


def wiener(
    modes: Sequence[Modes],
    w: Waves,
    noise: NDArray[np.float64],
    table: NDArray[np.float32],
    *,
    los: int,
    f: float,
    mean: float,
) -> None:
    """Write P (A + f mu^2 B) / (1 + P (n_0 + n_1 mu^2 + n_2 mu^4)) over A; ``mean`` at k = 0.

    Parameters
    ----------
    modes : A, or A and B
        Of one strip.
    w : Waves
    noise : array, (3,)
        n_0, n_1, n_2 in (h/Mpc)^3.
    table : array
        P from :func:`power_table`.
    los : int
        Axis of mu = k_los / k.
    f : float
        Growth rate; 0 where there is no B.
    mean : float
    """
    _wiener(modes[0], modes[-1], *w.squares(), los, f, noise, table, mean)


def interlace(modes: Sequence[Modes], w: Waves, *, cell_size: Sequence[float]) -> None:
    """Write (d_1 + d_2 exp(i k.H / 2)) / 2 over d_1 (Sefusatti et al. 2016, sec. 3).

    Where a component of k is at its Nyquist frequency, exp(i k.H / 2) depends on the sign of what
    has none, and no real field has the mode that it would make: d_1 stays as it is there.

    Parameters
    ----------
    modes : d_1 and d_2, of particles where they are and half a cell H on along each axis
    w : Waves
    cell_size : sides (x, y, z) of H in Mpc/h
    """
    phases = []
    for k, odd, side in zip(w.k, w.odd, cell_size, strict=True):
        phases.append(np.where(k == odd, np.exp(0.5j * side * k), 0))
    _interlace(modes[0], modes[1], *phases)


def scale(modes: Sequence[Modes], w: Waves, table: NDArray[np.float32]) -> None:
    """Write g(k) f over f, which keeps its mean; ``table`` of g from :func:`power_table`."""
    _scale(modes[0], *w.squares(), table)


def power_table(power: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float32]:
    """Table (TABLE_SIZE,) of ``power(k)`` for :func:`wiener` and the like, within 5e-6 of it."""
    nodes = (np.arange(_FIRST, _LAST + 1, dtype=np.int32) << _SHIFT).view(np.float32)
    return power(np.sqrt(nodes.astype(np.float64))).astype(np.float32)


def _along(w: Waves, axis: int, sign: float = 1.0) -> _Axes:
    """Three arrays that add up to k_axis."""
    x, y, z = (sign * k if i == axis else np.zeros_like(k) for i, k in enumerate(w.odd))
    return x, y, z


# One compiled version for strips of a larger array and for arrays of their own, which numba's
# dispatcher would tell apart.
_M, _K, _C = "complex64[:, :, :]", "float64[:]", "complex128[:]"


@njit(f"void({_M}, {_M}, {_K}, {_K}, {_K}, b1)", nogil=True, cache=True)
def _times_ik(f, out, kx, ky, kz, add):  # type: ignore[no-untyped-def]
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row = kx[i] + ky[j]
            for m in range(f.shape[2]):
                k = np.float32(row + kz[m])
                value = np.complex64(complex(-k * f[i, j, m].imag, k * f[i, j, m].real))
                if add:
                    value += out[i, j, m]
                out[i, j, m] = value


@njit(f"void({_M}, {_M}, {_K}, {_K}, {_K}, {_K}, {_K}, {_K}, f8)", nogil=True, cache=True)
def _flow(f, out, px, py, pz, kx2, ky2, kz2, rate):  # type: ignore[no-untyped-def]
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            along = px[i] + py[j]
            row2 = kx2[i] + ky2[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                scale = np.float32(rate * (along + pz[m]) / k2) if k2 > 0 else np.float32(0)
                out[i, j, m] = complex(-scale * f[i, j, m].imag, scale * f[i, j, m].real)


@njit(f"void({_M}, {_M}, {_C}, {_C}, {_C})", nogil=True, cache=True)
def _interlace(a, b, px, py, pz):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            row = px[i] * py[j]
            for m in range(a.shape[2]):
                phase = row * pz[m]
                if phase != 0:
                    a[i, j, m] = np.complex64((a[i, j, m] + phase * b[i, j, m]) / 2)


@njit(nogil=True, cache=True)
def _power(k2, table):  # type: ignore[no-untyped-def]
    bits = np.float32(k2).view(np.int32)
    node = (bits >> _SHIFT) - _FIRST
    if node < 0:
        return np.float64(table[0])
    if node >= table.size - 1:
        return np.float64(table[table.size - 1])
    part = (bits & ((1 << _SHIFT) - 1)) * 2.0**-_SHIFT
    return table[node] + part * (table[node + 1] - table[node])


@njit(f"void({_M}, {_M}, {_K}, {_K}, {_K}, i8, f8, {_K}, float32[:], f8)", nogil=True, cache=True)
def _wiener(a, b, kx2, ky2, kz2, los, f, noise, table, mean):  # type: ignore[no-untyped-def]
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            row2 = kx2[i] + ky2[j]
            for m in range(a.shape[2]):
                k2 = row2 + kz2[m]
                if k2 == 0:
                    a[i, j, m] = mean
                    continue
                mu2 = (kx2[i] if los == 0 else ky2[j] if los == 1 else kz2[m]) / k2
                p = _power(k2, table)
                top = p / (1 + p * (noise[0] + mu2 * (noise[1] + mu2 * noise[2])))
                tilt = f * mu2
                a[i, j, m] = complex(
                    top * (a[i, j, m].real + tilt * b[i, j, m].real),
                    top * (a[i, j, m].imag + tilt * b[i, j, m].imag),
                )


@njit(f"void({_M}, {_K}, {_K}, {_K}, float32[:])", nogil=True, cache=True)
def _scale(f, kx2, ky2, kz2, table):  # type: ignore[no-untyped-def]
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                if k2 > 0:
                    f[i, j, m] *= np.float32(_power(k2, table))
