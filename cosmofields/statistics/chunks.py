"""Lazy fields in blocks that belong together."""

from __future__ import annotations

import dask.array as da
import xarray as xr

from ..conventions import is_lazy


def in_common_chunks(*fields: xr.DataArray) -> list[da.Array]:
    """Arrays of the fields in the chunks of the first lazy one; a numpy array is not copied."""
    chunks = next(field.data.chunks for field in fields if is_lazy(field))
    return [
        field.data.rechunk(chunks)
        if is_lazy(field)
        else da.from_array(field.values, chunks=chunks, name=False)
        for field in fields
    ]
