"""A catalogue from bare arrays, a field likewise; what is checked of their columns."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..conventions import (
    AXES,
    CATALOG_FIELDS,
    COMPONENTS,
    CONVENTIONS,
    FIELDS,
    CatalogError,
    DimensionError,
    MissingVariableError,
    box_lengths,
    check_los,
    check_periodic,
    check_units,
    listing,
    make_grid,
    parse_box_size,
    step,
)
from ..cosmology import as_cosmology, cosmology_of, parse_redshift, redshift_of
from .plausible import check_box, check_velocities


def from_arrays(
    position: ArrayLike,
    velocity: ArrayLike | None = None,
    mass: ArrayLike | None = None,
    *,
    box_size: float | Sequence[float] | None = None,
    redshift: float | None = None,
    cosmology: Any = None,
    los: str | None = None,
    dim: str = "halo",
) -> xr.Dataset:
    """Catalogue from bare arrays.

    Parameters
    ----------
    position : array, (n, 3)
        Comoving, Mpc/h, in [0, box_size]; a coordinate equal to box_size wraps to 0.
    velocity : array, (n, 3)
        Peculiar velocity in km/s (not sqrt(a), not comoving).  Optional if ``los`` is given.
    mass : array, (n,), optional
        Msun/h.  Halos need it (they are ranked by it); particles of equal mass do not.
    box_size : float or three
        Side of the periodic box in Mpc/h.  Required, as are the next two.
    redshift : float
    cosmology : dict, Cosmology or astropy cosmology
        At least Omega_m and h; Omega_b, n_s, sigma8 for the linear power spectrum.
    los : {"x", "y", "z"}, optional
        The line of sight, if the positions are in redshift space already.  Default: they are in
        real space, and :func:`to_redshift_space` is yours to call.
    dim : str
        Name of the row dim: ``"halo"``, or ``"particle"`` for matter.

    Returns
    -------
    Dataset
        ``position`` and ``velocity`` (dim, component), ``mass`` (dim), float32, numpy-backed;
        without those that were not given.

    Raises
    ------
    CatalogError
        For NaN or infinite values, positions outside the box, wrong shapes, velocities that are not
        in km/s, masses that are not in Msun/h, and arrays that carry a unit.
    MissingAttributeError
        If box size, redshift or cosmology is missing, or no such thing.
    MissingVariableError
        If velocities are missing and ``los`` does not say that they are not needed.
    """
    if isinstance(position, str | os.PathLike):
        raise CatalogError(
            f"position={os.fspath(position)!r}; expected an array (n, 3). A file is opened with "
            f"open_catalog({os.fspath(position)!r}, box_size=..., redshift=..., cosmology=...)"
        )
    _refuse_unit("box_size", box_size, "Mpc/h")
    facts = catalog_facts(box_size, redshift, cosmology, los)
    lengths = parse_box_size(box_size)
    check_box(lengths)
    if velocity is None and los is None:
        raise MissingVariableError(
            "No `velocity`: pass it in km/s, for to_redshift_space; or los='x', 'y' or 'z' if the "
            "positions are in redshift space already"
        )
    given = {"position": position, "velocity": velocity, "mass": mass}
    table = {}
    for name, column in given.items():
        if column is not None or name == "position":
            _refuse_unit(name, column, CATALOG_FIELDS[name].units)
            table[name] = np.asarray(column)
    check_columns(table)
    for name, values in table.items():
        check_finite(name, values)
    if mass is not None:
        check_masses(table["mass"])
    if velocity is not None:
        check_velocities(table["velocity"])
    check_positions(table["position"], lengths)
    table["position"] = wrap(table["position"], lengths)
    columns = {name: values.astype(np.float32) for name, values in table.items()}
    return as_catalog(columns, dim, facts, f"from_arrays: {len(table['position'])} rows")


def from_grid(
    array: Any,
    *,
    name: str,
    box_size: float | Sequence[float],
    redshift: float | None = None,
    cosmology: Any = None,
    los: str | None = None,
    units: str | None = None,
) -> xr.DataArray:
    """Labelled field from a bare array, as every function of fields takes it.

    Parameters
    ----------
    array : numpy or dask array, (nx, ny, nz) or (3, nx, ny, nz)
        Over the whole periodic box; node i of an axis sits at i L / N.
    name : str
        ``"density"`` (1 + delta), ``"velocity"`` (km/s), ``"momentum"`` (km/s), or one of your own.
    box_size : float or three
        Sides in Mpc/h.
    redshift, cosmology, los : optional
        As in :func:`from_arrays`; what uses one says so where it is missing.
    units : str, optional
        Of a name of your own; those of a registered field are fixed.

    Returns
    -------
    DataArray, dims (x, y, z) or (component, x, y, z)
        The array as it is, not copied, lazy if it is.

    Raises
    ------
    DimensionError
        If the shape is none of a field of that name, or values or units are others.
    MissingAttributeError
        If box size, redshift or cosmology are none.
    """
    if isinstance(array, xr.DataArray | xr.Dataset) or hasattr(array, "unit"):
        raise DimensionError(
            f"from_grid takes a bare array, and a {type(array).__name__} was given: pass .data, or "
            ".value in the units of the field"
        )
    data = array if isinstance(array, da.Array) else np.asarray(array)
    shape = tuple(data.shape)
    leading = FIELDS[name].dims[:-3] if name in FIELDS else ("component",)[: len(shape) - 3]
    fits = len(shape) == len(leading) + 3 and (leading != ("component",) or shape[0] == 3)
    if not fits or data.dtype.kind not in "iuf":
        expected = (*(3 if dim == "component" else dim for dim in leading), "nx", "ny", "nz")
        raise DimensionError(
            f"`{name}`: an array of {data.dtype}, shape {shape}; expected real numbers, shape "
            f"({listing(expected)})"
        )
    lengths = parse_box_size(box_size)
    facts: dict[str, Any] = {"box_size": lengths[0] if len(set(lengths)) == 1 else list(lengths)}
    if redshift is not None:
        facts["redshift"] = parse_redshift(redshift)
    if cosmology is not None:
        facts["cosmology"] = as_cosmology(cosmology).to_dict()
    if los is not None:
        facts["los"] = check_los(los)
    attrs = {"units": units} if units is not None else {}
    if name in FIELDS:
        attrs = {"units": FIELDS[name].units, "long_name": FIELDS[name].long_name} | attrs
    coords: dict[Hashable, Any] = {**make_grid(shape[-3:], lengths).coords()}
    if leading == ("component",):
        coords["component"] = ("component", COMPONENTS)
    field = xr.DataArray(data, coords, (*leading, *AXES), name, attrs | facts | {"periodic": True})
    if name in FIELDS:
        check_units(field, name)
    return field


def catalog_facts(box_size: Any, redshift: Any, cosmology: Any, los: str | None) -> dict[str, Any]:
    """Box facts of a new catalogue, checked; in redshift space if there is a line of sight."""
    lengths = parse_box_size(box_size)
    space = {"space": "real"} if los is None else {"space": "redshift", "los": check_los(los)}
    return {
        "box_size": lengths[0] if len(set(lengths)) == 1 else list(lengths),
        "redshift": parse_redshift(redshift),
        "cosmology": as_cosmology(cosmology).to_dict(),
        **space,
        "periodic": True,
    }


def check_columns(table: Mapping[str, Any]) -> None:
    """Raise :class:`CatalogError` unless the columns have equal rows of real numbers."""
    shape = table["position"].shape
    if len(shape) != 2 or shape[1] != 3:
        hint = ""
        if len(shape) == 2 and shape[0] == 3:
            hint = ": pass position.T"
        elif len(shape) == 1:
            hint = ": np.stack([x, y, z], axis=1), or of a file position=('x', 'y', 'z')"
        raise CatalogError(f"`position` has shape {shape}; expected (n, 3){hint}")
    n = shape[0]
    for name, values in table.items():
        expected = (n,) if name == "mass" else (n, 3)
        if values.shape != expected:
            raise CatalogError(f"`{name}` has shape {values.shape}; expected {expected}")
        if values.dtype.kind not in "iuf":
            raise CatalogError(f"`{name}` has dtype {values.dtype}; expected real numbers")


def as_catalog(
    columns: Mapping[str, Any], dim: str, facts: Mapping[str, Any], what: str
) -> xr.Dataset:
    """Dataset of checked float32 columns, numpy or dask, with their labels and box facts."""
    if not len(columns["position"]):
        raise CatalogError("The catalogue is empty: `position` has no rows")
    variables = {}
    for name, values in columns.items():
        spec = CATALOG_FIELDS[name]
        dims = tuple(dim if d == "halo" else d for d in spec.dims)
        variables[name] = (dims, values, {"units": spec.units, "long_name": spec.long_name})
    ds = xr.Dataset(
        variables,
        coords={"component": ("component", COMPONENTS)},
        attrs={"Conventions": CONVENTIONS, **facts},
    )
    return ds.assign_attrs(step(ds, what))


def _refuse_unit(name: str, value: object, units: str) -> None:
    unit = getattr(value, "unit", None)
    if unit is not None:
        raise CatalogError(
            f"`{name}` carries the unit {str(unit)!r}; expected bare numbers: convert to {units} "
            "and pass `.value`"
        )


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Raise :class:`CatalogError`, with their number, if the column ``name`` holds NaN or inf.

    What is beyond float32 is infinite in a catalogue.
    """
    finite = np.isfinite(values)
    if values.dtype.itemsize > 4:
        finite &= np.abs(values) <= np.finfo(np.float32).max
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise CatalogError(
            f"`{name}` holds {int(np.count_nonzero(~finite))} NaN or infinite values (the first in "
            f"row {row}); drop those rows first"
        )


def check_masses(mass: NDArray[Any], least: float = 1e6) -> None:
    """Raise :class:`CatalogError` unless all masses are finite, positive and plausibly Msun/h.

    Their median is at least ``least``, which a particle need not reach.
    """
    if not len(mass):  # a chunk may hold no rows
        return
    check_finite("mass", mass)
    none = mass < 1e-30  # in float32 there is little between that and 0
    if none.any():
        raise CatalogError(
            f"`mass` holds {int(none.sum())} values at or below zero; "
            "expected Msun/h (not its logarithm)"
        )
    median = float(np.median(mass))
    if median < least:
        # Masses of halos differ by much more than their logarithms do.
        logarithm = 7 < median < 17 and mass.max() < 3 * mass.min()
        unit, how = ("log10 Msun/h", "10**mass") if logarithm else ("1e10 Msun/h", "1e10 * mass")
        what = "log10 of the mass" if logarithm else "units of 1e10 Msun/h"
        raise CatalogError(
            f"The median of `mass` is {median:.4g}, which looks like {what}; expected Msun/h: "
            f"{how} (open_catalog takes units={{'mass': '{unit}'}}; in the shell: --units "
            f"'mass={unit}')"
        )
    if median > 1e17:
        raise CatalogError(
            f"The median of `mass` is {median:.4g}, more than any halo holds; expected Msun/h"
        )


def check_positions(position: NDArray[Any], lengths: Sequence[float]) -> None:
    """Raise :class:`CatalogError` unless all positions (n, 3) are finite and in [0, L]."""
    if not len(position):  # a chunk may hold no rows
        return
    check_finite("position", position)
    sides = np.asarray(lengths)
    # Of a value just below L what is written in six digits can be above, and moved by L / 2 it can
    # be below 0: a wrap, and no error.
    slack = 5e-6 * sides
    low, high = position.min(axis=0), position.max(axis=0)
    if (low >= -slack).all() and (high <= sides + slack).all():
        return
    outside = ((position < -slack) | (position > sides + slack)).any(axis=1)
    halves = [f"{-side / 2:g}" for side in dict.fromkeys(lengths)]
    half = halves[0] if len(halves) == 1 else f"[{listing(f'{-side / 2:g}' for side in lengths)}]"
    hint = (
        "They look centred on 0: add box_size / 2, as open_catalog does with "
        f"origin={half} (Mpc/h; in the shell: --origin {half.strip('[]').replace(',', '')})"
        if (low < -0.3 * sides).all() and (high < 0.6 * sides).all()
        else "Are they in kpc/h, or is box_size wrong? "
        "(open_catalog takes units={'position': 'kpc/h'}; in the shell: --units position=kpc/h)"
        if (high > 100 * sides).any()
        else "They look like right ascension, declination and redshift: convert them to comoving "
        "Mpc/h in a box that is wide enough."
        if len(position) >= 100 and (low[:2] >= [-180, -90]).all() and (high <= [360, 90, 20]).all()
        else "Are they in comoving Mpc/h, and box_size too? If some have left a periodic box: "
        "position % box_size"
    )
    expected = (
        f"0 to {sides[0]:g} Mpc/h along each axis"
        if (sides == sides[0]).all()
        else listing(
            f"0 to {side:g} Mpc/h along {axis}" for axis, side in zip(AXES, sides, strict=True)
        )
    )
    raise CatalogError(
        f"{int(outside.sum())} of {len(position)} positions lie outside the box: they span "
        f"{np.array2string(low, precision=4)} to {np.array2string(high, precision=4)} Mpc/h, "
        f"expected {expected}. {hint}"
    )


def wrap(position: NDArray[np.floating], lengths: Sequence[float]) -> NDArray[np.float32]:
    """Positions modulo the box, in float32 and truly below L."""
    sides = np.asarray(lengths, np.float32)
    wrapped = np.mod(np.asarray(position, np.float64), lengths).astype(np.float32)
    # np.mod(-1e-9, L) rounds to L in float32.
    return np.where(wrapped >= sides, np.float32(0), wrapped)


def row_dim(catalog: xr.Dataset) -> str:
    """Row dim of a catalogue: ``"halo"``, or ``"particle"`` for matter."""
    if not isinstance(catalog, xr.Dataset):
        raise MissingVariableError(
            f"A catalogue is a Dataset, and a {type(catalog).__name__} was given; make one with "
            "from_arrays(position, velocity, mass, box_size=..., ...) or open_catalog(path)"
        )
    if "position" not in catalog:
        raise MissingVariableError(
            "No `position` in this Dataset, so it is no catalogue; "
            "make one with from_arrays(position, velocity, mass, box_size=..., ...)"
        )
    dims = [str(d) for d in catalog["position"].dims if d != "component"]
    if len(dims) != 1 or catalog.sizes.get("component") != 3:
        raise DimensionError(
            f"`position` has dims {catalog['position'].dims}; expected ('halo', 'component') "
            "with three components"
        )
    return dims[0]


def velocity_of(catalog: xr.Dataset, what: str) -> xr.DataArray:
    """Velocity of a catalogue, which ``what`` needs, as (row, component)."""
    if "velocity" not in catalog:
        raise MissingVariableError(
            f"No `velocity` in this catalogue; {what} needs it, in km/s: "
            "from_arrays(position, velocity, ...)"
        )
    return catalog["velocity"].transpose(row_dim(catalog), "component")


def check_catalog(catalog: xr.Dataset) -> str:
    """Check what painting relies on, but for the values of the columns; return the row dim.

    Raises
    ------
    CatalogError, MissingAttributeError, MissingVariableError, DimensionError, NotPeriodicError
    """
    dim = row_dim(catalog)
    if not catalog.sizes[dim]:
        raise CatalogError("The catalogue is empty: `position` has no rows")
    check_periodic(catalog, what="painting")
    box_lengths(catalog)
    redshift_of(catalog)
    cosmology_of(catalog)
    return dim
