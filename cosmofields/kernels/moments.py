"""Moments of two fields and angles between two vectors, in one pass over their cells."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

# Columns of moments: cells, means and variances of both, covariance, mean square difference.
N_MOMENTS = 7


def moments(
    first: NDArray[np.generic], second: NDArray[np.generic], n_threads: int = 1
) -> NDArray[np.float64]:
    """Moments over the cells of two fields.

    Parameters
    ----------
    first, second : arrays (..., x, y, z)
        Of one shape.
    n_threads : int

    Returns
    -------
    array, (..., 7)
        Number of cells, means, variances, covariance and mean of (first - second)^2.
    """
    wanted = np.result_type(first, second)
    dtype = wanted if wanted in (np.float32, np.float64) else np.float64
    lead, nx = first.shape[:-3], first.shape[-3]
    width = max(-(-nx // n_threads), 1)
    slabs = [(at, i) for at in np.ndindex(lead) for i in range(0, nx, width)]

    def of_slab(slab: tuple[tuple[int, ...], int]) -> NDArray[np.float64]:
        at, i = slab
        a, b = (field[at][i : i + width].astype(dtype, copy=False) for field in (first, second))
        # About one cell, moments keep their digits when the mean is large.
        about = np.array([a[0, 0, 0], b[0, 0, 0]], dtype=np.float64)
        sums = np.zeros(N_MOMENTS - 1)
        _sums(a, b, about, sums)
        means, squares, (product, error) = np.split(sums / a.size, (2, 4))
        with np.errstate(invalid="ignore"):  # of infinity: the caller's to tell
            variances = np.maximum(squares - means**2, 0)
            covariance = product - means[0] * means[1]
        return np.array([a.size, *(about + means), *variances, covariance, error])

    with ThreadPoolExecutor(n_threads) as pool:
        parts = np.array(list(pool.map(of_slab, slabs)))
    return merge(parts.reshape(*lead, -1, N_MOMENTS))


def merge(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moments (..., 7) of all parts (..., part, 7) together."""
    counts, means = parts[..., 0], parts[..., 1:3]
    weight = (counts / counts.sum(axis=-1, keepdims=True))[..., np.newaxis]
    # About the mean of one part, so that a constant stays one.
    about = means[..., :1, :]
    with np.errstate(invalid="ignore"):
        mean = about + (weight * (means - about)).sum(axis=-2, keepdims=True)
        shift = means - mean
        inner = parts[..., 3:].copy()
        inner[..., :2] += shift**2
        inner[..., 2] += shift[..., 0] * shift[..., 1]
        inner = (weight * inner).sum(axis=-2)
    return np.concatenate([counts.sum(axis=-1)[..., np.newaxis], mean[..., 0, :], inner], axis=-1)


def one_minus_cosine(
    first: NDArray[np.generic], second: NDArray[np.generic]
) -> NDArray[np.float32]:
    """1 - cos of the angle between vectors (x, y, z, component); NaN where one is zero."""
    out = np.empty(first.shape[:-1], dtype=np.float32)
    wanted = np.result_type(first, second)
    dtype = wanted if wanted in (np.float32, np.float64) else np.float64
    _one_minus_cosine(first.astype(dtype, copy=False), second.astype(dtype, copy=False), out)
    return out


# Arrays of another process may be read-only.
_REALS = (types.float32, types.float64)
_FIELDS = [types.Array(real, 3, "A", readonly=True) for real in _REALS]
_VECTORS = [types.Array(real, 4, "A", readonly=True) for real in _REALS]
_SUMS = types.float64[::1]


@njit([types.void(f, f, _SUMS, _SUMS) for f in _FIELDS], nogil=True, cache=True)
def _sums(first, second, about, sums):  # type: ignore[no-untyped-def]
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            # Row by row: short sums lose fewer digits.
            s0 = s1 = s00 = s11 = s01 = error = 0.0
            for m in range(first.shape[2]):
                a, b = np.float64(first[i, j, m]), np.float64(second[i, j, m])
                error += (a - b) * (a - b)
                a -= about[0]
                b -= about[1]
                s0 += a
                s1 += b
                s00 += a * a
                s11 += b * b
                s01 += a * b
            sums[0] += s0
            sums[1] += s1
            sums[2] += s00
            sums[3] += s11
            sums[4] += s01
            sums[5] += error


@njit([types.void(v, v, types.float32[:, :, ::1]) for v in _VECTORS], nogil=True, cache=True)
def _one_minus_cosine(first, second, out):  # type: ignore[no-untyped-def]
    n_parts = first.shape[3]
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for m in range(out.shape[2]):
                square_a = square_b = 0.0
                for c in range(n_parts):
                    a, b = np.float64(first[i, j, m, c]), np.float64(second[i, j, m, c])
                    square_a += a * a
                    square_b += b * b
                if square_a == 0 or square_b == 0:
                    out[i, j, m] = np.nan
                    continue
                # Half of |a/|a| - b/|b||^2 keeps its digits for small angles, where 1 - cos
                # cancels.
                scale_a, scale_b = 1 / np.sqrt(square_a), 1 / np.sqrt(square_b)
                total = 0.0
                for c in range(n_parts):
                    part = scale_a * first[i, j, m, c] - scale_b * second[i, j, m, c]
                    total += part * part
                out[i, j, m] = 0.5 * total
