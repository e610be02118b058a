"""Derivatives of periodic fields: gradient, divergence, curl."""

from __future__ import annotations

from functools import partial

import xarray as xr

from .conventions import COMPONENTS, Grid, box_facts, canonical, periodic_grid
from .fourier import through_modes, title


def gradient(field: xr.DataArray) -> xr.DataArray:
    """Spectral gradient of a scalar field: modes i k f(k).

    Parameters
    ----------
    field : DataArray, dims (x, y, z)
        Whole periodic box.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        Units of ``field`` per Mpc/h; lazy for a lazy input.
    """
    from .kernels.modes import derivative

    field = canonical(field)
    grid = periodic_grid(field, what="gradient")
    outputs = [partial(derivative, axis=axis) for axis in range(3)]
    data = through_modes([field.data], grid, outputs, what="gradient")
    return _derived(field, data, grid, "gradient")


def divergence(vector: xr.DataArray) -> xr.DataArray:
    """Spectral divergence: modes i k.v(k).

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.

    Returns
    -------
    DataArray, dims (x, y, z)
        Units of ``vector`` per Mpc/h, for a velocity km/s/(Mpc/h); lazy for a lazy input.
    """
    from .kernels import modes

    vector = canonical(vector, "component")
    grid = periodic_grid(vector, what="divergence")
    data = through_modes(
        list(vector.data), grid, [None], what="divergence", combine=modes.divergence
    )
    return _derived(vector, data[0], grid, "divergence")


def curl(vector: xr.DataArray) -> xr.DataArray:
    """Spectral curl: modes i k x v(k).

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        Units of ``vector`` per Mpc/h; lazy for a lazy input.
    """
    from .kernels import modes

    vector = canonical(vector, "component")
    grid = periodic_grid(vector, what="curl")
    outputs = [partial(modes.curl, axis=axis) for axis in range(3)]
    data = through_modes(list(vector.data), grid, outputs, what="curl")
    return _derived(vector, data, grid, "curl")


def _derived(source: xr.DataArray, data: object, grid: Grid, what: str) -> xr.DataArray:
    dims = ("x", "y", "z") if what == "divergence" else ("component", "x", "y", "z")
    coords = {**grid.coords(), "component": ("component", COMPONENTS)}
    units = source.attrs.get("units", "1")
    return xr.DataArray(
        data,
        dims=dims,
        coords={name: coords[name] for name in dims},
        name=what,
        attrs={
            **box_facts(source),
            "units": "h/Mpc" if units == "1" else f"{units}/(Mpc/h)",
            "long_name": f"{what} of {title(source)}",
        },
    )
