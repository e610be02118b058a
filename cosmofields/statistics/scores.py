"""Scores of a predicted field against the true one, cell by cell, and its vectors' angles."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ..conventions import box_facts, canonical, check_same_grid, is_lazy, result_facts
from ..kernels import cells
from ..lazy import n_threads
from ..spectral import not_finite, pair
from .chunks import in_common_chunks

_NUMBER = {"units": "1"}


def cell_statistics(predicted: xr.DataArray, true: xr.DataArray) -> xr.Dataset:
    """Moments over the cells of two fields, and the scores that follow from them.

    With the deviations dp and dt of prediction p and truth t from their means: C_r = <dp dt> /
    (<dp^2> <dt^2>)^(1/2), rms_error = <(p - t)^2>^(1/2), slope = <dp dt> / <dp^2>, that of the
    line that fits the truth by the prediction.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    Dataset, no dims or (component,)
        ``mean_predicted``, ``std_predicted``, ``mean_true`` and ``std_true`` in the fields' units,
        what :func:`correlation_coefficient`, :func:`rms_error` and :func:`slope` return, under
        these names, and ``cells``, their number.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit.
    CosmofieldsError
        If a field holds NaN or infinity.

    Notes
    -----
    Eager, in one pass; chunk by chunk for a lazy field, in one compute.  Sums run in float64 about
    the value of one cell.
    """
    predicted, true = pair(predicted, true)
    found = _moments(predicted, true)
    if not np.isfinite(found).all():
        raise not_finite(predicted, true)
    _, mean_p, mean_t, var_p, var_t, covariance, error = np.moveaxis(found, -1, 0)
    units = {"units": true.attrs.get("units", "1")}
    values: dict[str, tuple[Any, dict[str, str]]] = {
        "correlation_coefficient": (cells.ratio(covariance, np.sqrt(var_p * var_t)), _NUMBER),
        "rms_error": (np.sqrt(error), units),
        "slope": (cells.ratio(covariance, var_p), _NUMBER),
        "mean_predicted": (mean_p, units),
        "std_predicted": (np.sqrt(var_p), units),
        "mean_true": (mean_t, units),
        "std_true": (np.sqrt(var_t), units),
    }
    dims = true.dims[:-3]
    result = xr.Dataset(
        {name: (dims, value, attrs) for name, (value, attrs) in values.items()},
        coords={dim: true.coords[dim] for dim in dims if dim in true.coords},
        attrs=result_facts(true, predicted),
    )
    return result.assign(cells=((), np.int64(np.prod(true.shape[-3:])), _NUMBER))


def correlation_coefficient(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """Pearson correlation over cells: C_r = cov(p, t) / (std(p) std(t)).

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, no dims or (component,)
        NaN where a field is constant.

    Raises
    ------
    DimensionError, GridMismatchError, CosmofieldsError
        As :func:`cell_statistics`.

    Notes
    -----
    The value depends on the cell size and on any smoothing: quote them with C_r.
    """
    return cell_statistics(predicted, true)["correlation_coefficient"]


def rms_error(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """Root mean square of predicted - true over cells.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, no dims or (component,)
        In the fields' units.

    Raises
    ------
    DimensionError, GridMismatchError, CosmofieldsError
        As :func:`cell_statistics`.
    """
    return cell_statistics(predicted, true)["rms_error"]


def slope(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """Slope of the least-squares line of true on predicted: cov(p, t) / var(p).

    An estimate of the posterior mean has 1; a prediction that swings too far has less.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, no dims or (component,)
        NaN where the prediction is constant.

    Raises
    ------
    DimensionError, GridMismatchError, CosmofieldsError
        As :func:`cell_statistics`.
    """
    return cell_statistics(predicted, true)["slope"]


def magnitude(vector: xr.DataArray) -> xr.DataArray:
    """Length of a vector in each cell, (v_x^2 + v_y^2 + v_z^2)^(1/2).

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)

    Returns
    -------
    DataArray, dims (x, y, z)
        In the vector's units; lazy for a lazy input.

    Raises
    ------
    DimensionError
        If ``vector`` has other dims.
    """
    vector = canonical(vector, "component")
    result = _per_cell(cells.length, vector)
    result.name = f"{vector.name or 'vector'}_magnitude"
    return result.assign_attrs(
        box_facts(vector),
        units=vector.attrs.get("units", "1"),
        long_name=f"magnitude of {vector.attrs.get('long_name', vector.name or 'vector')}",
    )


def misalignment(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """1 - cos phi in each cell, phi the angle between the predicted and the true vector.

    cos phi = p.t / (p.p t.t)^(1/2), with p the prediction and t the truth.

    Parameters
    ----------
    predicted, true : DataArray, dims (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, dims (x, y, z)
        From 0 (parallel) to 2 (opposite); NaN where either vector is zero, which ``.mean()`` and
        ``.std()`` leave out.  Lazy for a lazy input.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit.
    """
    from ..kernels.moments import one_minus_cosine

    predicted, true = canonical(predicted, "component"), canonical(true, "component")
    check_same_grid(predicted, true)
    result = _per_cell(one_minus_cosine, predicted, true)
    result.name = "misalignment"
    return result.assign_attrs(
        box_facts(true), units="1", long_name=f"1 - cos phi of {true.name or 'the vectors'}"
    )


def _moments(predicted: xr.DataArray, true: xr.DataArray) -> NDArray[np.float64]:
    """Moments (7) or (component, 7) of :mod:`cosmofields.kernels.moments`."""
    from ..kernels.moments import N_MOMENTS, merge, moments

    if not is_lazy(predicted, true):
        return moments(predicted.values, true.values, n_threads())
    data = in_common_chunks(predicted, true)
    *lead, nx, ny, nz = data[0].chunks
    blocks = da.map_blocks(
        _moments_of_block,
        *data,
        new_axis=data[0].ndim,
        chunks=(*lead, *((1,) * len(axis) for axis in (nx, ny, nz)), (N_MOMENTS,)),
        meta=np.empty((0,) * (data[0].ndim + 1), np.float64),
    )
    (parts,) = compute(blocks)
    return merge(parts.reshape(*parts.shape[:-4], -1, N_MOMENTS))


def _moments_of_block(
    first: NDArray[np.generic], second: NDArray[np.generic]
) -> NDArray[np.float64]:
    from ..kernels.moments import moments

    return moments(first, second)[..., np.newaxis, np.newaxis, np.newaxis, :]


def _per_cell(kernel: Any, *vectors: xr.DataArray) -> xr.DataArray:
    """Apply a kernel that turns (x, y, z, component) into (x, y, z)."""
    if is_lazy(*vectors):
        vectors = tuple(vector.chunk({"component": -1}) for vector in vectors)
    return xr.apply_ufunc(
        kernel,
        *vectors,
        input_core_dims=[["component"]] * len(vectors),
        join="override",
        dask="parallelized",
        output_dtypes=[np.float32],
    )
