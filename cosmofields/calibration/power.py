"""Spectra that a model makes too weak, and the fields that have the power of the true ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import dask.array as da
import numpy as np
import xarray as xr

from ..conventions import (
    FIELDS,
    Grid,
    ModelMismatchError,
    attribute,
    canonical,
    listing,
    periodic_grid,
)
from ..fourier import through_modes
from .tables import Array, Card, calibration, parts, row_of

LEAST_CORRELATION = 0.5


def restoration(name: str, card: Card) -> dict[str, Any]:
    """What a card has measured of the power of a field.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated; or not this field, as of a product of density and velocity
        in the place of which there was a network for the momentum.
    """
    measured = calibration(card)["restoration"]
    if name not in measured:
        how = "its momentum was a network's then, momentum.json: put that back, or calibrate again"
        raise ModelMismatchError(
            f"The calibration of {card['name']!r} has the power of the {listing(measured)}, and "
            f"none of the {name}" + (f": {how}" if name == "momentum" else "")
        )
    return cast("dict[str, Any]", measured[name])


def gain(
    name: str, card: Card, *, part: str = "all", symmetries: int = 1
) -> Callable[[Array], Array]:
    """The factor g(k) that restores the power of a field.

    Parameters
    ----------
    name : {"density", "velocity", "momentum"}
    card : dict
        Of the model that holds it: of the momentum, its own network's if there is one, else the
        velocity's.
    part : {"all", "across", "along"}
        Of a vector, its components across or along the line of sight; a scalar is of one part.
    symmetries : int

    Returns
    -------
    callable
        g of an array of k in h/Mpc; between the nodes log g is linear in log k.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    table, measured = restoration(name, card), calibration(card)["symmetries"]
    ratio, r = (
        row_of(table[key][part], measured, symmetries) for key in ("power_ratio", "correlation")
    )
    restored = np.minimum.accumulate(r >= LEAST_CORRELATION)
    log_gain = np.where(restored, -0.5 * np.log(np.maximum(ratio, 1e-3)), 0.0)
    log_k = np.log(table["k"])

    def of(k: Array) -> Array:
        return cast(Array, np.exp(np.interp(np.log(np.maximum(k, 1e-30)), log_k, log_gain)))

    return of


def restore(field: xr.DataArray, card: Card, *, symmetries: int = 1) -> xr.DataArray:
    """A predicted field with the power of the true one, for spectra: its modes times g(k).

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        ``density``, ``velocity`` or ``momentum`` of the whole box.
    card : dict
        As in :func:`gain`.
    symmetries : int
        Over which ``field`` was averaged.

    Returns
    -------
    DataArray
        Its mean is kept.  A density may fall below 0 in voids.  Lazy if ``field`` is.

    Raises
    ------
    ModelMismatchError
        If the model was not calibrated.
    """
    name = str(field.name)
    grid = periodic_grid(field, what="restore_power")
    field = canonical(field, *FIELDS[name].dims[:-3])
    if FIELDS[name].is_vector:
        of = {
            part: gain(name, card, part=part, symmetries=symmetries) for part in ("across", "along")
        }
        done = [
            scaled(field.data[i], of[part], grid, f"restored {name}")
            for i, part in enumerate(parts(attribute(field, "los")))
        ]
        stack: Any = da.stack if isinstance(done[0], da.Array) else np.stack
        data = stack(done)
    else:
        data = scaled(field.data, gain(name, card, symmetries=symmetries), grid, "restored")
    return field.copy(data=data).assign_attrs(estimator="power restored")


def scaled(data: Any, of: Callable[[Array], Array], grid: Grid, what: str) -> Any:
    """A scalar field, its modes times a function of k; the mean is kept."""
    from ..kernels.modes import power_table, scale

    table = power_table(of)
    return through_modes([data], grid, [None], what=what, combine=scale, extras=[table])[0]
