"""Sums of Fourier modes in bins of |k|, strip by strip of the half-space of ``scipy.fft.rfftn``.

Every mode of the full k-space counts once: of the half-space, the planes kz = 0 and (for an even
number of cells) kz = Nyquist weigh 1 and the others 2.  The mode k = 0 is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..conventions import DimensionError
from .modes import Modes, Waves

# A mode on an edge belongs to the bin above, whichever way its k^2 was rounded.
_EDGE_SLACK = 1e-10


class ModeSums(NamedTuple):
    """Sums over the modes of each bin, of the whole of k-space."""

    modes: NDArray[np.int64]
    k: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    cross: NDArray[np.float64]


class PoleSums(NamedTuple):
    """Sums over the modes of each bin of Re(f g*) mu^(2 j), j = 0, 1, 2 along the last axis."""

    modes: NDArray[np.int64]
    k: NDArray[np.float64]
    moments: NDArray[np.float64]


def bin_modes(
    modes: Sequence[Modes], w: Waves, *, nz: int, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum |f|^2, |g|^2 and Re(f g*) over the modes with ``edges[i] <= |k| < edges[i + 1]``.

    Parameters
    ----------
    modes : f and g, or f alone for g = f
        Of one strip.
    w : Waves
    nz : int
        Cells of the real field along z.
    edges : array
        Increasing edges of the bins.

    Returns
    -------
    array, (bin, 5)
        For :func:`mode_sums`, once all strips are added up.
    """
    sums = np.zeros((len(edges) - 1, 5))
    _bin_strip(modes[0], modes[-1], *w.squares(), _weight(nz), _edges2(edges), sums)
    return sums


def bin_poles(
    modes: Sequence[Modes], w: Waves, *, nz: int, edges: NDArray[np.float64], los: int
) -> NDArray[np.float64]:
    """Sum Re(f g*) mu^(2 j), j = 0, 1, 2, over the modes of each bin; mu = k_los / k.

    Parameters
    ----------
    modes, w, nz, edges
        As for :func:`bin_modes`.
    los : int
        Axis of the line of sight.

    Returns
    -------
    array, (bin, 5)
        For :func:`pole_sums`, once all strips are added up.
    """
    sums = np.zeros((len(edges) - 1, 5))
    _bin_strip_poles(modes[0], modes[-1], *w.squares(), los, _weight(nz), _edges2(edges), sums)
    return sums


def mode_sums(total: NDArray[np.float64]) -> ModeSums:
    """Name the columns of :func:`bin_modes`."""
    modes, k, first, second, cross = total.T
    return ModeSums(np.rint(modes).astype(np.int64), k, first, second, cross)


def pole_sums(total: NDArray[np.float64]) -> PoleSums:
    """Name the columns of :func:`bin_poles`."""
    return PoleSums(np.rint(total[:, 0]).astype(np.int64), total[:, 1], total[:, 2:])


def _weight(nz: int) -> NDArray[np.float64]:
    weight = np.full(nz // 2 + 1, 2.0)
    weight[0] = 1.0
    if nz % 2 == 0:
        weight[-1] = 1.0
    return weight


def _edges2(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(edges, dtype=np.float64) ** 2 * (1 - _EDGE_SLACK)


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


_M, _K = "complex64[:, :, :]", "float64[:]"


@njit(f"void({_M}, {_M}, {_K}, {_K}, {_K}, {_K}, {_K}, float64[:, :])", nogil=True, cache=True)
def _bin_strip(f, g, kx2, ky2, kz2, weight, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                if k2 >= edges2[last]:
                    break
                if k2 < edges2[0] or k2 == 0:
                    continue
                # From the bin of the mode before, which is never far.
                while k2 < edges2[at]:
                    at -= 1
                while k2 >= edges2[at + 1]:
                    at += 1
                w = weight[m]
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                sums[at, 0] += w
                sums[at, 1] += w * np.sqrt(k2)
                sums[at, 2] += w * (f_re * f_re + f_im * f_im)
                sums[at, 3] += w * (g_re * g_re + g_im * g_im)
                sums[at, 4] += w * (f_re * g_re + f_im * g_im)


@njit(f"void({_M}, {_M}, {_K}, {_K}, {_K}, i8, {_K}, {_K}, float64[:, :])", nogil=True, cache=True)
def _bin_strip_poles(f, g, kx2, ky2, kz2, los, weight, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                if k2 >= edges2[last]:
                    break
                if k2 < edges2[0] or k2 == 0:
                    continue
                while k2 < edges2[at]:
                    at -= 1
                while k2 >= edges2[at + 1]:
                    at += 1
                w = weight[m]
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                mu2 = (kx2[i] if los == 0 else ky2[j] if los == 1 else kz2[m]) / k2
                product = w * (f_re * g_re + f_im * g_im)
                sums[at, 0] += w
                sums[at, 1] += w * np.sqrt(k2)
                sums[at, 2] += product
                product *= mu2
                sums[at, 3] += product
                sums[at, 4] += product * mu2
