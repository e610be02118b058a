"""Predicted standard deviations of the truth about a prediction, cell by cell."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from ..conventions import CosmofieldsError, attribute, box_facts, label, periodic_grid
from .power import scaled
from .tables import Card, Table, calibration, parts, row_of

# Mpc/h: of Gaussians of 1 to 3 cells of 2.34 Mpc/h, the one with the best likelihood.
SMOOTHING = 4.7


def environment(density: xr.DataArray, smoothing: float = SMOOTHING) -> Any:
    """Density (x, y, z) smoothed by a Gaussian of ``smoothing`` Mpc/h; a bare array."""
    grid = periodic_grid(density, what="uncertainty")
    return scaled(
        density.data, lambda k: np.exp(-0.5 * (k * smoothing) ** 2), grid, "smoothed density"
    )


def density_error(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """Predicted standard deviation of the true density about the predicted one.

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        As predicted.
    card : dict
        Of the density model.
    symmetries : int
        Over which ``density`` was averaged.

    Returns
    -------
    DataArray, dims (x, y, z)
        ``density_error``; see :func:`interval` for what it means.  NaN where a network that may
        say so has no matter or less: no lognormal has that mean.  Lazy if ``density`` is.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    s = log_error(density, card, symmetries=symmetries)
    data = np.sqrt(np.expm1(s**2)) * _positive(density.data)
    return _labelled("density_error", data, density, card, symmetries)


def log_error(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> Any:
    """The scatter s of the logarithm of the density in each cell; a bare array."""
    found = calibration(card)
    table = found["error"]
    rows = np.square(table["log_error"]).tolist()
    s = np.sqrt(row_of(rows, found["symmetries"], symmetries))
    return Table.of(table["density"], s)(density.data)


def log_ratio(true: Any, predicted: Any) -> Any:
    """ln(true / predicted) of each cell; NaN where the prediction is not positive."""
    return np.log(true / _positive(predicted))


def _positive(density: Any) -> Any:
    return np.where(density > 0, density, np.float32(np.nan))


def velocity_error(density: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """Predicted standard deviation of the true velocity about the predicted one, by component.

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        As predicted.
    card : dict
        Of the velocity model.
    symmetries : int
        Over which the velocity was averaged.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``velocity_error`` in km/s.  Lazy if ``density`` is.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    found = calibration(card)
    table = found["error"]
    smooth = environment(density, table["smoothing"])
    by_part = {}
    for part in ("across", "along"):
        rows = np.square(table["error"][part]).tolist()
        values = np.sqrt(row_of(rows, found["symmetries"], symmetries))
        by_part[part] = Table.of(table["density"], values)(smooth)
    stack: Any = da.stack if isinstance(smooth, da.Array) else np.stack
    data = stack([by_part[part] for part in parts(attribute(density, "los"))])
    return _labelled("velocity_error", data, density, card, symmetries)


def _labelled(
    name: str, data: Any, density: xr.DataArray, card: Card, symmetries: int
) -> xr.DataArray:
    grid = periodic_grid(density, what="uncertainty")
    made = {"model": card["name"], "symmetries": symmetries}
    for key, source in (("weights_digest", card), ("precision", density.attrs)):
        if key in source:
            made[key] = source[key]
    return label(name, data, grid, box_facts(density), **made)


def interval(
    field: xr.DataArray, error: xr.DataArray, sigmas: float = 1.0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Limits between which the truth lies in 68 % of the cells, for one standard deviation.

    Parameters
    ----------
    field : DataArray
        ``density`` or ``velocity`` as predicted.
    error : DataArray
        ``density_error`` or ``velocity_error``.
    sigmas : float
        1 for 68.3 %, 1.96 for 95 %.

    Returns
    -------
    low, high : DataArray
        Of a velocity, field -+ sigmas error.  Of a density, the lognormal of that mean and standard
        deviation: m exp(-+ sigmas s) with s^2 = ln(1 + (error / field)^2), m = field exp(-s^2 / 2).

    Raises
    ------
    CosmofieldsError
        For a field whose power was restored: the errors are about the mean.
    """
    if "estimator" in field.attrs:
        raise CosmofieldsError(
            f"`{field.name}` has its power restored, and `{error.name}` is about the mean field: "
            "that of predict() without restore_power, or of the group `reconstructed` of a store"
        )
    if error.name == "velocity_error":
        return field - sigmas * error, field + sigmas * error
    s2 = np.log1p((error / field) ** 2)
    median, width = field * np.exp(-s2 / 2), np.exp(sigmas * np.sqrt(s2))
    return median / width, median * width
