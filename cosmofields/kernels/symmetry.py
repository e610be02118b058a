"""The 16 symmetries of the grid that keep the line of sight, the last axis, up to its sign.

An element is a number from 0 to 15 whose bits say: flip x, flip y, flip z, then swap x and y.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Subgroups of 1, 2, 4, 8 and 16 elements are the first so many of these: an average over one of
# them has exactly its symmetry.  Inversion comes first: it leaves no axis as it is.
ORDER = (0, 7, 8, 15, 4, 3, 12, 11, 1, 6, 9, 14, 5, 2, 13, 10)
SIZES = (1, 2, 4, 8, 16)


def transform(array: NDArray[Any], element: int, vector_channels: int) -> NDArray[Any]:
    """Put a field through one of the symmetries.

    Parameters
    ----------
    array : array, (..., channel, x, y, z)
    element : int
        0 to 15.
    vector_channels : int
        0, or 3: the last three channels are components, which turn with the axes.

    Returns
    -------
    array
        A new, contiguous array.
    """
    flips = [axis for axis in range(3) if element >> axis & 1]
    swap = bool(element >> 3 & 1)
    out = np.flip(array, tuple(axis - 3 for axis in flips))
    if swap:
        out = out.swapaxes(-3, -2)
    out = np.array(out, order="C")
    if vector_channels:
        first = out.shape[-4] - 3
        for axis in flips:
            out[..., first + axis, :, :, :] *= -1
        if swap:
            out[..., [first, first + 1], :, :, :] = out[..., [first + 1, first], :, :, :]
    return out


def inverse(element: int) -> int:
    """The element that undoes another."""
    if element >> 3 & 1:  # it flips what x and y have become
        return element & 12 | (element & 1) << 1 | element >> 1 & 1
    return element
