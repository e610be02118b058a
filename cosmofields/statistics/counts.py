"""Cells counted by the value of one field, or of two."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import ArrayLike, NDArray

from ..conventions import DimensionError, is_lazy, listing, numbers, result_facts
from ..lazy import n_threads
from ..spectral import pair
from .chunks import in_common_chunks


def histogram(field: xr.DataArray, *, edges: ArrayLike) -> xr.DataArray:
    """Number of cells in bins of a field's value.

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        Components count together.
    edges : array
        Increasing edges of the bins in the field's units, of any spacing; a bin holds its lower
        edge, the last one also its upper, as in ``numpy.histogram``.

    Returns
    -------
    DataArray, dim value, int64
        Counts; coordinates ``value``, the centres of the bins, and their edges ``value_lower`` and
        ``value_upper``.  ``attrs["outside"]`` counts the cells left out, NaN among them.

    Raises
    ------
    DimensionError
        If ``field`` has other dims, or ``edges`` are no edges.

    Notes
    -----
    Eager; chunk by chunk for a lazy field.  Counts of several boxes in the same bins add up.
    """
    field, _ = pair(field, field)
    return _counted((field,), (_check_edges(edges, "edges"),), ("value",), "histogram")


def joint_distribution(
    first: xr.DataArray,
    second: xr.DataArray,
    *,
    edges: ArrayLike,
    other_edges: ArrayLike | None = None,
    dims: tuple[str, str] = ("predicted", "true"),
) -> xr.DataArray:
    """Number of cells in bins of the values of two fields.

    Parameters
    ----------
    first, second : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid; components count together.
    edges, other_edges : array
        Of the bins of ``first`` and of ``second``, by default the same, as for :func:`histogram`.
    dims : (str, str)
        Names of the two dims of the result.

    Returns
    -------
    DataArray, dims ``dims``, int64
        Counts; coordinates are, for each dim, the centres of its bins and their edges
        ``<dim>_lower`` and ``<dim>_upper``.
        ``attrs["outside"]`` counts the cells left out, NaN among them.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit, the edges are no edges, or the dims are not two names.

    Notes
    -----
    Eager; chunk by chunk for a lazy field.  Counts of several boxes in the same bins add up.
    """
    first, second = pair(first, second)
    if len(dims) != 2 or len(set(dims)) != 2:
        raise DimensionError(f"dims={dims!r}; expected two different names")
    bins = (
        _check_edges(edges, "edges"),
        _check_edges(edges if other_edges is None else other_edges, "other_edges"),
    )
    return _counted((first, second), bins, dims, "joint distribution")


def _counted(
    fields: Sequence[xr.DataArray],
    edges: Sequence[NDArray[np.float64]],
    dims: Sequence[str],
    what: str,
) -> xr.DataArray:
    from ..kernels.counts import count_cells

    if is_lazy(*fields):
        counts = _count_chunks(fields, edges)
    else:
        counts = count_cells([field.values for field in fields], edges, n_threads())
    coords: dict[Hashable, Any] = {}
    for dim, field, bounds in zip(dims, fields, edges, strict=True):
        units = {"units": field.attrs.get("units", "1")}
        title = field.attrs.get("long_name", field.name or "field")
        centres = (bounds[:-1] + bounds[1:]) / 2
        coords[dim] = (dim, centres, {**units, "long_name": title})
        # Not one coordinate (dim, bound): a DataArray carries no dim but its own.
        coords[f"{dim}_lower"] = (dim, bounds[:-1], units)
        coords[f"{dim}_upper"] = (dim, bounds[1:], units)
    names = listing(dict.fromkeys(str(field.name or "field") for field in fields))
    return xr.DataArray(
        counts,
        dims=dims,
        coords=coords,
        name="cells",
        attrs={
            **result_facts(*reversed(fields)),
            "units": "1",
            "long_name": f"{what} of {names}",
            "outside": int(fields[0].size - counts.sum()),
        },
    )


def _count_chunks(
    fields: Sequence[xr.DataArray], edges: Sequence[NDArray[np.float64]]
) -> NDArray[np.int64]:
    data = in_common_chunks(*fields)
    chunks = data[0].chunks
    bins = [e.size - 1 for e in edges]
    counts = da.map_blocks(
        _count_block,
        *data,
        edges=edges,
        new_axis=[len(chunks) + i for i in range(len(bins))],
        chunks=(*((1,) * len(axis) for axis in chunks), *((n,) for n in bins)),
        meta=np.empty((0,) * (len(chunks) + len(bins)), np.int64),
    )
    (total,) = compute(counts.sum(axis=tuple(range(len(chunks)))))
    return np.asarray(total)


def _count_block(
    *blocks: NDArray[np.generic], edges: Sequence[NDArray[np.float64]]
) -> NDArray[np.int64]:
    from ..kernels.counts import count_cells

    return count_cells(blocks, edges)[(np.newaxis,) * blocks[0].ndim]


def _check_edges(edges: ArrayLike, name: str) -> NDArray[np.float64]:
    array = numbers(edges)
    rising = array.ndim == 1 and array.size > 1 and bool((np.diff(array) > 0).all())
    if not (rising and np.isfinite(array).all()):
        raise DimensionError(
            f"{name}={edges!r}; expected two or more increasing numbers in the field's units, e.g. "
            "np.linspace(0, 1000, 101), or np.geomspace(0.01, 100, 101) for a density"
        )
    return array
