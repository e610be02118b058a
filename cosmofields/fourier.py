"""Fourier transforms and derivatives of periodic fields.

Convention: delta(k) = sum_x delta(x) exp(-i k.x), k in h/Mpc with the 2 pi in it.  The array
functions work on the half-space of ``scipy.fft.rfftn`` in single precision; the labelled ones
(:func:`gradient`, :func:`divergence`, :func:`curl`) take and return xarray fields.
An odd derivative at an axis' Nyquist frequency is zero, as the derivative of a real field must be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
import xarray as xr
from numpy.typing import NDArray

from .conventions import COMPONENTS, Grid, box_facts, canonical, periodic_grid
from .lazy import n_threads, whole_box

Wavevector = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def rfftn(field: NDArray[np.floating]) -> NDArray[np.complex64]:
    """Forward transform over the last three axes, single precision."""
    array = np.ascontiguousarray(field, dtype=np.float32)
    return scipy.fft.rfftn(array, axes=(-3, -2, -1), workers=n_threads())


def irfftn(modes: NDArray[np.complexfloating], shape: Sequence[int]) -> NDArray[np.float32]:
    """Inverse transform over the last three axes to a real field of ``shape`` (x, y, z).

    Overwrites ``modes``.
    """
    return scipy.fft.irfftn(
        modes, s=tuple(shape), axes=(-3, -2, -1), workers=n_threads(), overwrite_x=True
    )


def wavevector(grid: Grid, *, odd: bool = False) -> Wavevector:
    """Components of k in h/Mpc on the rfft half-space, shaped to broadcast.

    Parameters
    ----------
    grid : Grid
    odd : bool
        Zero the Nyquist frequency of even axes: for odd derivatives.
    """
    parts = []
    for axis, (n, length) in enumerate(zip(grid.shape, grid.lengths, strict=True)):
        freq = scipy.fft.rfftfreq if axis == 2 else scipy.fft.fftfreq
        k = 2 * np.pi * freq(n, length / n)
        if odd and n % 2 == 0:
            k[n // 2] = 0.0
        shape = [1, 1, 1]
        shape[axis] = -1
        parts.append(k.astype(np.float32).reshape(shape))
    return parts[0], parts[1], parts[2]


def k_squared(k: Wavevector) -> NDArray[np.float32]:
    """|k|^2 with 1 in place of 0, so that dividing by it is safe; treat k = 0 apart."""
    k2 = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    return np.where(k2 > 0, k2, np.float32(1))


def gradient(field: xr.DataArray) -> xr.DataArray:
    """Spectral gradient of a scalar field: modes i k f(k).

    Parameters
    ----------
    field : DataArray, dims (x, y, z)
        Whole periodic box.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        Units of ``field`` per Mpc/h.
    """
    field = canonical(field)
    grid = periodic_grid(field, what="gradient")

    def kernel(f: NDArray[np.float32]) -> NDArray[np.float32]:
        modes = rfftn(f)
        return np.stack([irfftn(1j * k * modes, grid.shape) for k in wavevector(grid, odd=True)])

    data = whole_box(kernel, field.data, shape=(3, *grid.shape))
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
        Units of ``vector`` per Mpc/h; for a velocity km/s/(Mpc/h).
    """
    vector = canonical(vector, "component")
    grid = periodic_grid(vector, what="divergence")

    def kernel(v: NDArray[np.float32]) -> NDArray[np.float32]:
        kx, ky, kz = wavevector(grid, odd=True)
        modes = kx * rfftn(v[0])
        modes += ky * rfftn(v[1])
        modes += kz * rfftn(v[2])
        modes *= np.complex64(1j)
        return irfftn(modes, grid.shape)

    data = whole_box(kernel, vector.data, shape=grid.shape)
    return _derived(vector, data, grid, "divergence")


def curl(vector: xr.DataArray) -> xr.DataArray:
    """Spectral curl: modes i k x v(k).

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)
        Whole periodic box.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        Units of ``vector`` per Mpc/h.
    """
    vector = canonical(vector, "component")
    grid = periodic_grid(vector, what="curl")

    def kernel(v: NDArray[np.float32]) -> NDArray[np.float32]:
        k = wavevector(grid, odd=True)
        modes = [rfftn(part) for part in v]
        return np.stack(
            [
                irfftn(1j * (k[a] * modes[b] - k[b] * modes[a]), grid.shape)
                for a, b in ((1, 2), (2, 0), (0, 1))
            ]
        )

    data = whole_box(kernel, vector.data, shape=(3, *grid.shape))
    return _derived(vector, data, grid, "curl")


def _per_length(field: xr.DataArray) -> str:
    units = field.attrs.get("units", "1")
    return "h/Mpc" if units == "1" else f"{units}/(Mpc/h)"


def _derived(source: xr.DataArray, data: object, grid: Grid, what: str) -> xr.DataArray:
    dims = ("x", "y", "z") if what == "divergence" else ("component", "x", "y", "z")
    coords = {**grid.coords(), "component": ("component", COMPONENTS)}
    return xr.DataArray(
        data,
        dims=dims,
        coords={name: coords[name] for name in dims},
        name=what,
        attrs={
            **box_facts(source),
            "units": _per_length(source),
            "long_name": f"{what} of {source.attrs.get('long_name', source.name or 'field')}",
        },
    )
