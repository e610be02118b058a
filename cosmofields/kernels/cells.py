"""Statistics of fields cell by cell: ratios, lengths and angles, joint counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Quotient, NaN where the denominator is not positive."""
    positive = np.asarray(denominator) > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)


def length(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """Length of a vector whose components are the last axis."""
    square = np.zeros(vector.shape[:-1], dtype=np.float32)
    for i in range(vector.shape[-1]):
        square += vector[..., i] ** 2
    return np.sqrt(square, out=square)


def one_minus_cosine(
    first: NDArray[np.floating], second: NDArray[np.floating]
) -> NDArray[np.float32]:
    """1 - cos of the angle between vectors (last axis: components); NaN where one is zero."""
    # Half of |a/|a| - b/|b||^2 keeps its digits for small angles, where 1 - cos cancels.
    lengths = length(first), length(second)
    for norm in lengths:
        norm[norm == 0] = np.nan
    result = np.zeros(first.shape[:-1], dtype=np.float32)
    for i in range(first.shape[-1]):
        result += (first[..., i] / lengths[0] - second[..., i] / lengths[1]) ** 2
    result *= np.float32(0.5)
    return result


def joint_counts(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    low: float,
    high: float,
    bins: int,
) -> NDArray[np.int64]:
    """Cells in equal bins of (first, second) over [low, high), plane by plane; NaN is outside."""

    def bin_of(values: NDArray[Any]) -> NDArray[np.int64]:
        return np.minimum(((values - low) * (bins / (high - low))).astype(np.int64), bins - 1)

    counts = np.zeros(bins * bins, dtype=np.int64)
    for a, b in zip(first, second, strict=True):
        inside = (a >= low) & (a < high) & (b >= low) & (b < high)
        flat = bin_of(a[inside]) * bins + bin_of(b[inside])
        counts += np.bincount(flat, minlength=bins * bins)
    return counts.reshape(bins, bins)
