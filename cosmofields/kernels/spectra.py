"""Sums of Fourier modes in bins of |k|, strip by strip of the half-space of ``scipy.fft.rfftn``.

Every mode of the full k-space counts once: of the half-space, the planes kz = 0 and (for an even
number of cells) kz = Nyquist weigh 1 and the others 2.  The mode k = 0 is left out.  What takes the
window of the mass assignment out of a power is a product of factors along the three axes, and is
applied mode by mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..conventions import DimensionError, numbers
from .modes import Modes, Waves, unwindow

# A mode on an edge belongs to the bin above, whichever way its k^2 was rounded.
_EDGE_SLACK = 1e-10
_Array = NDArray[np.float64]


class Bins(NamedTuple):
    """What a strip is summed by: edges in |k|, and the cells and the window of the real field."""

    edges: NDArray[np.float64]
    nz: int
    cell_size: tuple[float, float, float]
    window: str | None = None


class Sums(NamedTuple):
    """Sums over the modes of each bin, of the whole of k-space; bins of k along the last axis.

    ``parts`` are those of the powers, in the order of the kernel that made them.
    """

    modes: NDArray[np.int64]
    k: NDArray[np.float64]
    parts: NDArray[np.float64]


def bin_modes(modes: Sequence[Modes], w: Waves, *, bins: Bins) -> NDArray[np.float64]:
    """Sum |f|^2, |g|^2 and Re(f g*) over the modes with ``edges[i] <= |k| < edges[i + 1]``.

    Parameters
    ----------
    modes : f and g, or f alone for g = f
        Of one strip.
    w : Waves
    bins : Bins

    Returns
    -------
    array, (5, bin)
        Number of modes, sum of |k|, and the three sums: :class:`Sums`, once all strips are added.
    """
    sums = np.zeros((len(bins.edges) - 1, 5))
    _bin_strip(modes[0], modes[-1], *w.squares(), *_weights(w, bins), _edges2(bins.edges), sums)
    return sums.T


def bin_poles(modes: Sequence[Modes], w: Waves, *, bins: Bins, los: int) -> NDArray[np.float64]:
    """Sum Re(f g*) mu^(2 j), j = 0, 1, 2, over the modes of each bin; mu = k_los / k.

    Parameters
    ----------
    modes, w, bins
        As for :func:`bin_modes`.
    los : int
        Axis of the line of sight.

    Returns
    -------
    array, (5, bin)
        As of :func:`bin_modes`, with the three moments.
    """
    sums = np.zeros((len(bins.edges) - 1, 5))
    weights, edges2 = _weights(w, bins), _edges2(bins.edges)
    _bin_strip_poles(modes[0], modes[-1], *w.squares(), los, *weights, edges2, sums)
    return sums.T


def bin_pair_poles(
    modes: Sequence[Modes], w: Waves, *, bins: Bins, los: int
) -> NDArray[np.float64]:
    """Sum |f|^2, |g|^2 and Re(f g*), each times mu^(2 j), j = 0, 1, 2, over the modes of each bin.

    Parameters
    ----------
    modes, w, bins, los
        As for :func:`bin_poles`.

    Returns
    -------
    array, (11, bin)
        As of :func:`bin_modes`, with three moments of |f|^2, then of |g|^2, then of Re(f g*).
    """
    sums = np.zeros((len(bins.edges) - 1, 11))
    weights, edges2 = _weights(w, bins), _edges2(bins.edges)
    _bin_strip_pair(modes[0], modes[-1], *w.squares(), los, *weights, edges2, sums)
    return sums.T


def bin_wedges(
    modes: Sequence[Modes], w: Waves, *, bins: Bins, los: int, mu_edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum Re(f g*) over the modes of each bin of |k| and of |mu|; mu = k_los / k.

    Parameters
    ----------
    modes, w, bins, los
        As for :func:`bin_poles`.
    mu_edges : array
        Increasing edges; a bin holds its lower one, and the last bin mu = 1 too.

    Returns
    -------
    array, (4, mu bin, bin)
        Number of modes, sums of |k|, of |mu| and of Re(f g*).
    """
    sums = np.zeros((len(mu_edges) - 1, len(bins.edges) - 1, 4))
    mu_edges2 = _edges2(mu_edges)
    if mu_edges[-1] >= 1:
        mu_edges2[-1] = 2.0
    weights, edges2 = _weights(w, bins), _edges2(bins.edges)
    _bin_strip_wedges(modes[0], modes[-1], *w.squares(), los, *weights, edges2, mu_edges2, sums)
    return np.moveaxis(sums, -1, 0)


def sums_of(total: NDArray[np.float64]) -> Sums:
    """Name the rows that a kernel returned, once all strips are added."""
    return Sums(np.rint(total[0]).astype(np.int64), total[1], total[2:])


def _weights(w: Waves, bins: Bins) -> tuple[_Array, _Array, _Array, _Array]:
    """How often a mode counts along kz, and what its power weighs along each axis."""
    count = np.full(bins.nz // 2 + 1, 2.0)
    count[0] = 1.0
    if bins.nz % 2 == 0:
        count[-1] = 1.0
    x, y, z = unwindow(w, bins.cell_size, bins.window)
    return count, x, y, count * z


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
    array = numbers(edges)
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


def check_mu_edges(edges: ArrayLike) -> NDArray[np.float64]:
    """Return ``edges`` as an array if they can be edges of bins in |mu|."""
    array = numbers(edges)
    if not (
        array.ndim == 1
        and array.size > 1
        and (array >= 0).all()
        and (array <= 1).all()
        and (np.diff(array) > 0).all()
    ):
        raise DimensionError(
            f"mu_edges={edges!r}; expected increasing values of |mu|, two or more, from 0 to 1, "
            "e.g. np.linspace(0, 1, 6)"
        )
    return array


_M, _K = "complex64[:, :, :]", "float64[:]"
_ARGS = f"{_M}, {_M}, {_K}, {_K}, {_K}"
_WEIGHTS = f"{_K}, {_K}, {_K}, {_K}, {_K}"  # count, three axes of the power, edges


@njit(f"void({_ARGS}, {_WEIGHTS}, float64[:, :])", nogil=True, cache=True)
def _bin_strip(f, g, kx2, ky2, kz2, count, wx, wy, wz, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            row = wx[i] * wy[j]
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
                w = row * wz[m]
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                sums[at, 0] += count[m]
                sums[at, 1] += count[m] * np.sqrt(k2)
                sums[at, 2] += w * (f_re * f_re + f_im * f_im)
                sums[at, 3] += w * (g_re * g_re + g_im * g_im)
                sums[at, 4] += w * (f_re * g_re + f_im * g_im)


@njit(f"void({_ARGS}, i8, {_WEIGHTS}, float64[:, :])", nogil=True, cache=True)
def _bin_strip_poles(f, g, kx2, ky2, kz2, los, count, wx, wy, wz, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            row = wx[i] * wy[j]
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
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                mu2 = (kx2[i] if los == 0 else ky2[j] if los == 1 else kz2[m]) / k2
                product = row * wz[m] * (f_re * g_re + f_im * g_im)
                sums[at, 0] += count[m]
                sums[at, 1] += count[m] * np.sqrt(k2)
                sums[at, 2] += product
                product *= mu2
                sums[at, 3] += product
                sums[at, 4] += product * mu2


@njit(f"void({_ARGS}, i8, {_WEIGHTS}, float64[:, :])", nogil=True, cache=True)
def _bin_strip_pair(f, g, kx2, ky2, kz2, los, count, wx, wy, wz, edges2, sums):  # type: ignore[no-untyped-def]
    last = edges2.size - 1
    at = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            row = wx[i] * wy[j]
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
                w = row * wz[m]
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                mu2 = (kx2[i] if los == 0 else ky2[j] if los == 1 else kz2[m]) / k2
                sums[at, 0] += count[m]
                sums[at, 1] += count[m] * np.sqrt(k2)
                first = w * (f_re * f_re + f_im * f_im)
                second = w * (g_re * g_re + g_im * g_im)
                cross = w * (f_re * g_re + f_im * g_im)
                for power in range(3):
                    sums[at, 2 + power] += first
                    sums[at, 5 + power] += second
                    sums[at, 8 + power] += cross
                    first *= mu2
                    second *= mu2
                    cross *= mu2


@njit(f"void({_ARGS}, i8, {_WEIGHTS}, {_K}, float64[:, :, :])", nogil=True, cache=True)
def _bin_strip_wedges(f, g, kx2, ky2, kz2, los, count, wx, wy, wz, edges2, mu_edges2, sums):  # type: ignore[no-untyped-def]
    last, last_mu = edges2.size - 1, mu_edges2.size - 1
    at = at_mu = 0
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            row2 = kx2[i] + ky2[j]
            row = wx[i] * wy[j]
            for m in range(f.shape[2]):
                k2 = row2 + kz2[m]
                if k2 >= edges2[last]:
                    break
                if k2 < edges2[0] or k2 == 0:
                    continue
                mu2 = (kx2[i] if los == 0 else ky2[j] if los == 1 else kz2[m]) / k2
                if mu2 < mu_edges2[0] or mu2 >= mu_edges2[last_mu]:
                    continue
                while k2 < edges2[at]:
                    at -= 1
                while k2 >= edges2[at + 1]:
                    at += 1
                while mu2 < mu_edges2[at_mu]:
                    at_mu -= 1
                while mu2 >= mu_edges2[at_mu + 1]:
                    at_mu += 1
                f_re, f_im = np.float64(f[i, j, m].real), np.float64(f[i, j, m].imag)
                g_re, g_im = np.float64(g[i, j, m].real), np.float64(g[i, j, m].imag)
                sums[at_mu, at, 0] += count[m]
                sums[at_mu, at, 1] += count[m] * np.sqrt(k2)
                sums[at_mu, at, 2] += count[m] * np.sqrt(mu2)
                sums[at_mu, at, 3] += row * wz[m] * (f_re * g_re + f_im * g_im)
