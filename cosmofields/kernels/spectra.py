"""Sums of Fourier modes in bins of |k|, over the half-space of ``scipy.fft.rfftn``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..conventions import DimensionError

_PLANES = 8  # x-planes per task: small enough to balance, large enough to hide the call
# A mode on an edge belongs to the bin above, whichever way its k^2 was rounded.
_EDGE_SLACK = 1e-10


class ModeSums(NamedTuple):
    """Sums over the modes of each bin, of the whole of k-space."""

    modes: NDArray[np.int64]
    k: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    cross: NDArray[np.float64]


def bin_modes(
    first: NDArray[np.complexfloating],
    second: NDArray[np.complexfloating],
    shape: Sequence[int],
    lengths: Sequence[float],
    edges: NDArray[np.float64],
    workers: int = 1,
) -> ModeSums:
    """Sum |f|^2, |g|^2 and Re(f g*) over the modes with ``edges[i] <= |k| < edges[i + 1]``.

    Every mode of the full k-space counts once: of the half-space, the planes kz = 0 and (for an
    even number of cells) kz = Nyquist weigh 1 and the others 2.  The mode k = 0 is left out.
    Each x-plane has its own float64 sums, added in fixed order, so that the result does not
    depend on ``workers``.

    Parameters
    ----------
    first, second : complex arrays, shape (nx, ny, nz // 2 + 1)
        Modes f and g; the same array twice for an auto spectrum.
    shape : (nx, ny, nz)
        Of the real field.
    lengths : (Lx, Ly, Lz)
        Sides of the box; k is in radians over their unit.
    edges : array
        Increasing edges of the bins.
    workers : int
        Threads.

    Returns
    -------
    ModeSums
    """
    nx, ny, nz = shape
    kx, ky = (
        2 * np.pi * np.fft.fftfreq(n, length / n)
        for n, length in zip((nx, ny), lengths[:2], strict=True)
    )
    kz = 2 * np.pi * np.fft.rfftfreq(nz, lengths[2] / nz)
    weight = np.full(kz.size, 2.0)
    weight[0] = 1.0
    if nz % 2 == 0:
        weight[-1] = 1.0
    edges2 = np.asarray(edges, dtype=np.float64) ** 2 * (1 - _EDGE_SLACK)
    sums = np.zeros((nx, edges2.size - 1, 5))

    def task(start: int) -> None:
        stop = min(start + _PLANES, nx)
        _bin_planes(first, second, kx**2, ky**2, kz**2, weight, edges2, start, stop, sums)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(task, range(0, nx, _PLANES)))
    modes, k, *powers = sums.sum(axis=0).T
    return ModeSums(np.rint(modes).astype(np.int64), k, *powers)


def default_edges(shape: Sequence[int], lengths: Sequence[float]) -> NDArray[np.float64]:
    """Bins one fundamental mode wide, centred on its multiples, up to the lowest Nyquist."""
    fundamental = 2 * np.pi / max(lengths)
    nyquist = min(np.pi * n / length for n, length in zip(shape, lengths, strict=True))
    n_bins = max(int(nyquist / fundamental * (1 + 1e-9)), 1)
    return fundamental * (np.arange(n_bins + 1, dtype=np.float64) + 0.5)


def check_edges(edges: ArrayLike) -> NDArray[np.float64]:
    """Return ``edges`` as an array if they can be edges of bins in |k|."""
    array = np.asarray(edges, dtype=np.float64)
    if not (
        array.ndim == 1
        and array.size > 1
        and np.isfinite(array).all()
        and array[0] >= 0
        and (np.diff(array) > 0).all()
    ):
        raise DimensionError(
            f"edges={edges!r}; expected increasing wavenumbers in h/Mpc, two or more, from 0 up, "
            "e.g. np.arange(0.02, 0.5, 0.02)"
        )
    return array


# Threads come from the caller: a parallel=True kernel compiles for seconds, and numba's own pool
# may not be entered from two Dask threads at once.
@njit(nogil=True, cache=True)
def _bin_planes(first, second, kx2, ky2, kz2, weight, edges2, start, stop, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    for i in range(start, stop):
        for j in range(first.shape[1]):
            row2 = kx2[i] + ky2[j]
            at = 0
            for m in range(first.shape[2]):
                k2 = row2 + kz2[m]
                if k2 >= edges2[last]:
                    break
                if k2 < edges2[0] or k2 == 0:
                    continue
                while k2 >= edges2[at + 1]:
                    at += 1
                w = weight[m]
                f = first[i, j, m]
                g = second[i, j, m]
                f_re, f_im = np.float64(f.real), np.float64(f.imag)
                g_re, g_im = np.float64(g.real), np.float64(g.imag)
                sums[i, at, 0] += w
                sums[i, at, 1] += w * np.sqrt(k2)
                sums[i, at, 2] += w * (f_re * f_re + f_im * f_im)
                sums[i, at, 3] += w * (g_re * g_re + g_im * g_im)
                sums[i, at, 4] += w * (f_re * g_re + f_im * g_im)
