"""Statistics of all cells of several boxes, from those of each."""

from __future__ import annotations

import xarray as xr
from dask.base import compute

from ..conventions import DimensionError, MissingVariableError, listing
from ..kernels.cells import ratio

# What :func:`pool` takes; a slope follows from it.
_POOLED = (
    "cells",
    "correlation_coefficient",
    "rms_error",
    "mean_predicted",
    "std_predicted",
    "mean_true",
    "std_true",
)


def pool(results: xr.Dataset, dim: str = "realization") -> xr.Dataset:
    """Cell statistics of several boxes, or parts of one, as if all cells had been measured at once.

    Parameters
    ----------
    results : Dataset
        What :func:`cell_statistics` returned for each, concatenated along ``dim``; other dims,
        of components or fields, stay.  Boxes without cells count for nothing.
    dim : str

    Returns
    -------
    Dataset, without ``dim``
        The variables of :func:`cell_statistics`; exact to rounding.

    Raises
    ------
    DimensionError
        If ``results`` have no ``dim``.
    MissingVariableError
        If a variable that it takes is not there.

    Notes
    -----
    With the weight w = cells / sum of cells of each box,

        mean = sum w mean_i,  var = sum w (var_i + (mean_i - mean)^2),
        cov = sum w (cov_i + (mean_p,i - mean_p) (mean_t,i - mean_t)),  mse = sum w mse_i,

    cov_i = C_r,i std_p,i std_t,i, which is 0 where a field is constant in a box and C_r,i is NaN.
    Over boxes that overlap, shared cells count as often as they are in one.
    """
    missing = [name for name in _POOLED if name not in results]
    if missing:
        raise MissingVariableError(
            f"pool: no {listing(missing)} in this Dataset; expected the variables of "
            "cell_statistics: xr.concat([cell_statistics(p, t) for p, t in boxes], "
            f"dim={dim!r})"
        )
    results = results[list(_POOLED)].compute()
    counts = results["cells"]
    mean_p, std_p = pool_moments(counts, results["mean_predicted"], results["std_predicted"], dim)
    mean_t, std_t = pool_moments(counts, results["mean_true"], results["std_true"], dim)
    spread = results["std_predicted"] * results["std_true"]
    covariance = (results["correlation_coefficient"] * spread).where(spread != 0, 0.0)
    shift = (results["mean_predicted"] - mean_p) * (results["mean_true"] - mean_t)
    covariance = _weighted(counts, covariance + shift, dim)
    squares = _weighted(counts, results["rms_error"] ** 2, dim)
    values = {
        "correlation_coefficient": covariance.copy(data=ratio(covariance, std_p * std_t)),
        "rms_error": squares**0.5,
        "slope": covariance.copy(data=ratio(covariance, std_p**2)),
        "mean_predicted": mean_p,
        "std_predicted": std_p,
        "mean_true": mean_t,
        "std_true": std_t,
        "cells": counts.sum(dim),
    }
    units = {name: results[name].attrs for name in _POOLED} | {"slope": {"units": "1"}}
    return xr.Dataset(
        {name: value.assign_attrs(units[name]) for name, value in values.items()},
        attrs=results.attrs,
    )


def pool_moments(
    counts: xr.DataArray, mean: xr.DataArray, std: xr.DataArray, dim: str = "realization"
) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and standard deviation of all values, from those of their parts; exact to rounding.

    Parameters
    ----------
    counts : DataArray
        Values in each part: for a field its cells, for a misalignment the cells that have one.
    mean, std : DataArray
        Of each part; where ``counts`` is 0 they may be NaN.
    dim : str
        Over parts.

    Returns
    -------
    DataArray, DataArray
        Mean and standard deviation without ``dim``; NaN where no part has values.

    Raises
    ------
    DimensionError
        If there is no ``dim``.
    """
    if dim not in counts.dims:
        raise DimensionError(
            f"dim={dim!r}; expected a dim of the counts, which have {counts.dims or 'none'}: "
            f"xr.concat(results, dim={dim!r})"
        )
    counts, mean, std = compute(counts, mean, std)
    # About the mean of one part, so that equal means stay what they are, and their scatter 0.
    own = [name for name, coord in mean.coords.items() if dim in coord.dims]
    about = mean.drop_vars(own).isel({dim: counts.argmax(dim)})
    pooled = about + _weighted(counts, mean - about, dim)
    variance = _weighted(counts, std**2 + (mean - pooled) ** 2, dim)
    return pooled, variance**0.5


def _weighted(counts: xr.DataArray, values: xr.DataArray, dim: str) -> xr.DataArray:
    """Mean of values over parts by their counts, where a part without any may be NaN."""
    total = counts.sum(dim)
    weight = counts / total.where(total > 0)
    return (weight * values.where(counts > 0, 0.0)).sum(dim, skipna=False)
