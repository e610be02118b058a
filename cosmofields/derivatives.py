"""Derivatives of periodic fields, and the two parts of a vector that they tell apart.

``method`` says which derivative:

``"spectral"``
    i k f(k): exact for every wave that the grid holds but those at an axis' Nyquist frequency,
    whose odd derivative is zero.  In memory or out of core, as any transform.
``"finite"``
    (f(x + H) - f(x - H)) / 2 H, H the cell: in modes i q f(k) with q = sin(k H) / H, which falls
    short of k by a share of (k H)^2 / 6.  It looks no further than the next cells, so that a jump,
    an empty cell or a seam stays where it is.  Chunk by chunk.

Both need the whole periodic box: of a part of one, take the derivative first and cut it then.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from .conventions import COMPONENTS, CosmofieldsError, Grid, box_facts, canonical, periodic_grid
from .fourier import through_modes, title

_VECTOR = ("component", "x", "y", "z")


def gradient(field: xr.DataArray, *, method: str = "spectral") -> xr.DataArray:
    """Gradient of a scalar field.

    Parameters
    ----------
    field : DataArray, dims (x, y, z)
        Whole periodic box.
    method : {"spectral", "finite"}
        i k f(k), or central differences; see :mod:`cosmofields.derivatives`.

    Returns
    -------
    DataArray, dims (component, x, y, z), float32
        Units of ``field`` per Mpc/h; lazy for a lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError
        If ``field`` is no whole periodic box.
    CosmofieldsError
        If there is no such method.
    """
    from .kernels import modes

    field = canonical(field)
    grid = _grid(field, method, "gradient")
    if method == "finite":
        data = _stack([_difference(field.data, axis, grid) for axis in range(3)])
    else:
        outputs = [partial(modes.derivative, axis=axis) for axis in range(3)]
        data = through_modes([field.data], grid, outputs, what="gradient")
    return _derivative(field, data, grid, "gradient")


def divergence(vector: xr.DataArray, *, method: str = "spectral") -> xr.DataArray:
    """Divergence of a vector field.

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.
    method : {"spectral", "finite"}
        i k.v(k), or central differences; see :mod:`cosmofields.derivatives`.

    Returns
    -------
    DataArray, dims (x, y, z), float32
        Units of ``vector`` per Mpc/h, for a velocity km/s/(Mpc/h); lazy for a lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError, CosmofieldsError
        As :func:`gradient`.
    """
    from .kernels import modes

    vector = canonical(vector, "component")
    grid = _grid(vector, method, "divergence")
    if method == "finite":
        data = _difference(vector.data[0], 0, grid)
        for axis in (1, 2):
            data = data + _difference(vector.data[axis], axis, grid)
    else:
        parts = list(vector.data)
        data = through_modes(parts, grid, [None], what="divergence", combine=modes.divergence)[0]
    return _derivative(vector, data, grid, "divergence")


def curl(vector: xr.DataArray, *, method: str = "spectral") -> xr.DataArray:
    """Curl of a vector field.

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.
    method : {"spectral", "finite"}
        i k x v(k), or central differences; see :mod:`cosmofields.derivatives`.

    Returns
    -------
    DataArray, dims (component, x, y, z), float32
        Units of ``vector`` per Mpc/h; lazy for a lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError, CosmofieldsError
        As :func:`gradient`.
    """
    from .kernels import modes

    vector = canonical(vector, "component")
    grid = _grid(vector, method, "curl")
    if method == "finite":
        v = vector.data
        data = _stack(
            [
                _difference(v[before], after, grid) - _difference(v[after], before, grid)
                for after, before in ((1, 2), (2, 0), (0, 1))
            ]
        )
    else:
        outputs = [partial(modes.curl, axis=axis) for axis in range(3)]
        data = through_modes(list(vector.data), grid, outputs, what="curl")
    return _derivative(vector, data, grid, "curl")


def helmholtz(vector: xr.DataArray, *, method: str = "spectral") -> xr.Dataset:
    """Split a vector field into a part without curl and one without divergence.

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.
    method : {"spectral", "finite"}
        The derivative that finds no curl in the one and no divergence in the other.

    Returns
    -------
    Dataset
        ``longitudinal`` and ``transverse``, like ``vector`` in dims and units, float32; lazy for a
        lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError, CosmofieldsError
        As :func:`gradient`.

    Notes
    -----
    v_L(k) = q (q.v) / q^2 and v_T = v - v_L, with the q of the derivative: k, where it is zero at
    an axis' Nyquist frequency, or sin(k H) / H.  What no derivative sees (q = 0: the mean, and
    waves at Nyquist along all axes that they vary along) has no potential and is transverse.  The
    parts are orthogonal: P_v = P_L + P_T, and with spectral derivatives P_theta = k^2 P_L and
    P_omega = k^2 P_T away from Nyquist, theta = div v, omega = curl v.
    """
    vector = canonical(vector, "component")
    first = longitudinal(vector, method=method)
    return xr.Dataset(
        {"longitudinal": first, "transverse": _rest(vector, first)}, attrs=box_facts(vector)
    )


def longitudinal(vector: xr.DataArray, *, method: str = "spectral") -> xr.DataArray:
    """The part of a vector field that has no curl: the gradient of a potential.

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.
    method : {"spectral", "finite"}
        As for :func:`helmholtz`.

    Returns
    -------
    DataArray, dims (component, x, y, z), float32
        In the units of ``vector``; its mean is 0.  Lazy for a lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError, CosmofieldsError
        As :func:`gradient`.
    """
    from .kernels import derivatives as kernels

    vector = canonical(vector, "component")
    grid = _grid(vector, method, "helmholtz")
    cells = grid.cell_size if method == "finite" else None
    outputs = [partial(kernels.longitudinal, axis=axis, cells=cells) for axis in range(3)]
    combine = partial(kernels.source, cells=cells)
    data = through_modes(list(vector.data), grid, outputs, what="helmholtz", combine=combine)
    return _part(vector, data, grid, "longitudinal")


def transverse(vector: xr.DataArray, *, method: str = "spectral") -> xr.DataArray:
    """The part of a vector field that has no divergence, with the mean.

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.
    method : {"spectral", "finite"}
        As for :func:`helmholtz`.

    Returns
    -------
    DataArray, dims (component, x, y, z), float32
        ``vector`` less its :func:`longitudinal` part, in its units; lazy for a lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError, CosmofieldsError
        As :func:`gradient`.
    """
    vector = canonical(vector, "component")
    return _rest(vector, longitudinal(vector, method=method))


def _rest(vector: xr.DataArray, first: xr.DataArray) -> xr.DataArray:
    whole: Any = vector.data
    if isinstance(whole, da.Array):
        whole = whole.rechunk(first.data.chunks)
    # In real space, so that the parts add up to the whole whatever the transforms have rounded.
    data = (whole - first.data).astype(np.float32, copy=False)
    return _part(vector, data, periodic_grid(vector), "transverse")


def _grid(field: xr.DataArray, method: str, what: str) -> Grid:
    if method not in ("spectral", "finite"):
        raise CosmofieldsError(f"method={method!r}; expected 'spectral' or 'finite'")
    return periodic_grid(field, what=what)


def _difference(field: Any, axis: int, grid: Grid) -> Any:
    """Central difference along an axis; of a lazy field chunk by chunk."""
    from .kernels.derivatives import central_difference, inner_difference

    cell = grid.cell_size[axis]
    if not isinstance(field, da.Array):
        return central_difference(field, axis, cell)
    padded = da.overlap.overlap(field, {axis: 1}, {axis: "periodic"})
    meta = np.empty((0, 0, 0), np.float32)
    return padded.map_blocks(
        partial(inner_difference, axis=axis, cell=cell), chunks=field.chunks, meta=meta
    )


def _stack(parts: list[Any]) -> Any:
    return da.stack(parts) if isinstance(parts[0], da.Array) else np.stack(parts)


def _derivative(source: xr.DataArray, data: Any, grid: Grid, what: str) -> xr.DataArray:
    units = source.attrs.get("units", "1")
    units = "h/Mpc" if units == "1" else f"{units}/(Mpc/h)"
    return _labelled(source, data, grid, what, units, f"{what} of {title(source)}")


def _part(vector: xr.DataArray, data: Any, grid: Grid, what: str) -> xr.DataArray:
    units = vector.attrs.get("units", "1")
    return _labelled(vector, data, grid, what, units, f"{what} part of {title(vector)}")


def _labelled(
    source: xr.DataArray, data: Any, grid: Grid, name: str, units: str, long_name: str
) -> xr.DataArray:
    coords = {**grid.coords(), "component": ("component", COMPONENTS)}
    dims = _VECTOR[-data.ndim :]
    return xr.DataArray(
        data,
        dims=dims,
        coords={dim: coords[dim] for dim in dims},
        name=name,
        attrs={**box_facts(source), "units": units, "long_name": long_name},
    )
