"""Cell by cell, in plain numpy: ratios and lengths."""

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
