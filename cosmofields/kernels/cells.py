"""Statistics of fields cell by cell: ratios, lengths and angles."""

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
    # Rounding would put opposite vectors beyond 2, out of the last bin.
    return np.minimum(result, np.float32(2), out=result)
