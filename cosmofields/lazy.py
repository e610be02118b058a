"""One way to keep whole-box kernels lazy: numpy in, numpy out; dask in, one deferred task out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np

# A chunk of 64^3 float32 cells is 1 MB, and a whole number of the networks' coarsest cells.
CHUNK = 64


def chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Chunks of a field: at most 64 cells along the last three axes, one entry along others."""
    lead = len(shape) - 3
    return tuple(1 if i < lead else min(CHUNK, n) for i, n in enumerate(shape))


def whole_box(
    kernel: Callable[..., np.ndarray],
    *arrays: Any,
    shape: Sequence[int],
    dtype: Any = np.float32,
) -> Any:
    """Call ``kernel(*arrays)``, which needs whole arrays, now or (for a dask input) later.

    Parameters
    ----------
    kernel : callable
        Takes numpy arrays, returns one of ``shape`` and ``dtype``.
    *arrays : numpy or dask arrays
    shape, dtype
        Of the result; a lazy one is rechunked to :func:`chunk_shape`.

    Returns
    -------
    numpy.ndarray or dask.array.Array
    """
    if not any(isinstance(array, da.Array) for array in arrays):
        return kernel(*map(np.asarray, arrays))
    task = dask.delayed(kernel, pure=True)(*arrays)
    return da.from_delayed(task, tuple(shape), dtype=dtype).rechunk(chunk_shape(shape))
