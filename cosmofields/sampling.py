"""Fields at the places of a catalogue, and tracers moved back to real space by a velocity field.

A field is interpolated between its nodes, periodically: trilinear interpolation, the transpose of
cloud-in-cell painting.  A lazy catalogue is taken chunk by chunk; the field is then one whole
array, which every chunk reads.
"""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .catalog import check_positions, row_dim, wrap
from .conventions import (
    AXES,
    FIELDS,
    CatalogError,
    CosmofieldsError,
    DimensionError,
    Grid,
    GridMismatchError,
    attribute,
    box_lengths,
    canonical,
    check_field,
    check_los,
    check_periodic,
    check_units,
    periodic_grid,
    step,
    variable,
)
from .cosmology import cosmology_of, redshift_of
from .lazy import log, n_threads
from .spectral import not_finite

# km/s along the line of sight, of halos about the velocity that the default model predicts: 97 as
# measured on box_104, where with 90 the xi_2 of halos moved back comes nearest to the truth.
DISPERSION = 90.0


def sample(field: xr.DataArray, catalog: xr.Dataset) -> xr.DataArray:
    """Values of a field at the positions of a catalogue, by trilinear interpolation.

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        Whole periodic box; in any unit, unless it has the name of a registered field.
    catalog : Dataset
        With ``position`` in the same box.

    Returns
    -------
    DataArray, dims (halo) or (halo, component)
        With name, unit and attributes of ``field``; the row dim is that of the catalogue.  float32,
        or float64 for such a field.  Lazy if either input is.

    Raises
    ------
    GridMismatchError
        If the two live in boxes of different sizes.
    CatalogError
        If positions lie outside the box (of lazy input, when the values are computed).
    DimensionError, NotPeriodicError, MissingAttributeError, MissingVariableError
        If there is no catalogue, or no field over the whole periodic box.

    Notes
    -----
    The eight nodes around a position have the weights with which painting spreads a particle over
    them, so that sum_i w_i f(x_i) over tracers equals sum_x n(x) f(x) over cells, n being the sum
    of the painted w_i.  A field that was painted itself is thereby smoothed once more.
    """
    dim = row_dim(catalog)
    check_field(field, "sample")
    if field.name in FIELDS:
        check_units(field, str(field.name))
    field = canonical(field, *(["component"] if "component" in field.dims else []))
    grid = common_box(field, catalog, "sample")
    position = catalog["position"].transpose(dim, "component")
    mesh = field.data if field.ndim == 4 else field.data[None]
    data: Any
    if isinstance(position.data, da.Array) or isinstance(mesh, da.Array):
        rows = da.asarray(position.data).rechunk({1: -1})
        dtype = np.result_type(mesh.dtype, np.float32)
        data = da.map_blocks(
            _read,
            rows,
            _whole(mesh),
            grid,
            chunks=(rows.chunks[0], (len(mesh),)),
            meta=np.empty((0, 0), dtype),
        )
    else:
        data = _read(position.data, mesh, grid, threads=n_threads())
    coords = dict(position.isel(component=0, drop=True).coords)
    if field.ndim == 3:
        return xr.DataArray(data[:, 0], coords, (dim,), field.name, field.attrs)
    if "component" in field.coords:
        coords["component"] = field["component"].variable
    return xr.DataArray(data, coords, (dim, "component"), field.name, field.attrs)


def to_real_space(
    catalog: xr.Dataset, velocity: xr.DataArray | xr.Dataset, *, dispersion: float = DISPERSION
) -> xr.Dataset:
    """Move tracers back along the line of sight by a velocity field: r = s - v_los(r) / (a H).

    The velocity counts where a tracer comes from, which the equation gives implicitly, and not
    always uniquely: where matter falls together, tracers from many places stand at one.  There a
    small error of a velocity would throw a tracer across the whole infall.  So r is the mean over
    the line of sight, under the weight exp(-(r + v(r) / (a H) - s)^2 / (2 S^2)) of places from
    which a tracer comes to s if its own velocity scatters by S a H = ``dispersion`` about the
    field's; where the flow is smooth this is the solution of the equation.

    Parameters
    ----------
    catalog : Dataset
        In redshift space along ``attrs["los"]``.
    velocity : DataArray, dims (component, x, y, z); or Dataset with a ``velocity``
        Real-space peculiar velocity in km/s over the same box at the same redshift, e.g. of
        :func:`~cosmofields.inference.predict`.  Only the component along the line of sight is read.
    dispersion : float
        Of the tracers' velocities about the field, along the line of sight, in km/s.  Default: that
        of halos about the predictions of the shipped models.  0 solves the equation exactly (the
        mean of its solutions, each under the weight ``1 / |1 + v'(r) / (a H)|``).

    Returns
    -------
    Dataset
        With ``position`` wrapped into the box and ``attrs["space"] = "real"``; all else, the line
        of sight and the tracers' own velocities included, is kept.  Lazy if either input is.
        ``position.attrs["folded"]`` counts the tracers for which more than one r solves the
        equation (for lazy input the log says so when they are computed).

    Raises
    ------
    CatalogError
        If the catalogue is in real space already, its redshift is not that of the velocity, or
        positions lie outside the box (of lazy input, when they are computed).
    GridMismatchError
        If the two live in boxes of different sizes.
    CosmofieldsError
        If ``dispersion`` is negative, or the velocity holds NaN or infinity (of lazy input, when
        positions are computed).
    DimensionError, NotPeriodicError, MissingAttributeError, MissingVariableError
        If there is no catalogue, no line of sight, or no velocity in km/s over the whole periodic
        box.

    Notes
    -----
    Between nodes the interpolated velocity is linear along a line of sight, so that the weight is
    integrated exactly: nothing is iterated, and no tracer is left unsolved.
    """
    dim = row_dim(catalog)
    if attribute(catalog, "space") != "redshift":
        raise CatalogError(
            f"The catalogue is in {catalog.attrs['space']} space; expected redshift space, from "
            "to_redshift_space(los=...) or from_arrays(..., los=...)"
        )
    axis = AXES.index(check_los(attribute(catalog, "los")))
    if not 0 <= dispersion < np.inf:
        raise CosmofieldsError(
            f"dispersion={dispersion!r}; expected km/s, at least 0: that of the tracers' "
            "velocities about the field"
        )
    velocity = _velocity(velocity)
    grid = common_box(velocity, catalog, "to_real_space")
    here = common_redshift(velocity, catalog)
    position = catalog["position"].transpose(dim, "component")
    speed = velocity.data[axis]
    rate = float(cosmology_of(catalog).aH(here))
    options: dict[str, Any] = {"axis": axis, "rate": rate, "dispersion": float(dispersion)}
    data: Any
    counted = {}
    if isinstance(position.data, da.Array) or isinstance(speed, da.Array):
        rows = da.asarray(position.data).rechunk({1: -1})
        mesh = _whole(speed)
        fastest = dask.delayed(_fastest, pure=True)(mesh)
        meta = np.empty((0, 0), np.float32)
        data = da.map_blocks(_moved, rows, mesh, fastest, grid, **options, meta=meta)
    else:
        threads = n_threads()
        data, folded = _move(
            position.data, speed, _fastest(speed), grid, **options, threads=threads
        )
        counted["folded"] = folded
    attrs = {key: value for key, value in position.attrs.items() if key != "folded"} | counted
    moved = catalog.assign(position=(position.dims, data, attrs))
    what = f"to_real_space: los={AXES[axis]}, dispersion={dispersion:g} km/s"
    return moved.assign_attrs({**step(catalog, what), "space": "real"})


def _velocity(given: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Velocity field in km/s, by itself or of a Dataset."""
    if isinstance(given, xr.Dataset):
        if "velocity" in given:
            check_units(given["velocity"], "velocity")
        return variable(given, "velocity", hint="to_real_space needs it, in km/s")
    check_field(given, "to_real_space")
    if given.name in FIELDS and given.name != "velocity":
        raise DimensionError(
            f"to_real_space needs a velocity, and `{given.name}` was given: take ds['velocity'], "
            "or momentum / density"
        )
    check_units(given, "velocity")
    return canonical(given, "component")


def common_box(field: xr.DataArray, catalog: xr.Dataset, what: str) -> Grid:
    """Grid of a field that spans the periodic box of the catalogue."""
    grid = periodic_grid(field, what=what)
    check_periodic(catalog, what=what)
    if not np.allclose(grid.lengths, box_lengths(catalog), rtol=1e-6):
        raise GridMismatchError(
            f"The catalogue and `{field.name or 'field'}` live in different boxes: box_size "
            f"{catalog.attrs['box_size']} against {field.attrs['box_size']} Mpc/h"
        )
    return grid


def common_redshift(velocity: xr.DataArray, catalog: xr.Dataset) -> float:
    """Redshift of a velocity field and of the catalogue that it is read for."""
    here, there = redshift_of(catalog), redshift_of(velocity)
    if abs(here - there) > 1e-6:
        raise CatalogError(
            f"The catalogue is at redshift {here:g}, the velocity at {there:g}; expected the same"
        )
    return here


def _whole(mesh: Any) -> Any:
    """A mesh as one task, whatever its chunks."""
    return da.asarray(mesh).rechunk(-1).to_delayed().item()


def first_node(grid: Grid) -> list[float]:
    """Place of the first node, which is not 0 if the field has been rolled."""
    assert grid.nodes is not None
    return [float(x[0]) % length for x, length in zip(grid.nodes, grid.lengths, strict=True)]


def _read(
    position: NDArray[Any], mesh: NDArray[Any], grid: Grid, threads: int = 1
) -> NDArray[np.floating]:
    from .kernels.readout import read

    check_positions(position, grid.lengths)
    return read(position, mesh, grid.lengths, origin=first_node(grid), n_threads=threads)


def _fastest(speed: NDArray[np.floating]) -> float:
    """Largest size of a velocity component, which bounds how far a tracer can be shifted."""
    fastest = float(max(speed.max(), -speed.min()))
    if not np.isfinite(fastest):
        raise not_finite(xr.DataArray(name="velocity"))
    return fastest


def _moved(*args: Any, **options: Any) -> NDArray[np.float32]:
    position, folded = _move(*args, **options)
    log.info("to_real_space: %d of %d tracers have more than one solution", folded, len(position))
    return position


def _move(
    position: NDArray[Any],
    speed: NDArray[Any],
    fastest: float,
    grid: Grid,
    *,
    axis: int,
    rate: float,
    dispersion: float,
    threads: int = 1,
) -> tuple[NDArray[np.float32], int]:
    from .kernels.readout import shifts

    check_positions(position, grid.lengths)
    shift, folded = shifts(
        position,
        speed,
        grid.lengths,
        axis=axis,
        rate=rate,
        dispersion=dispersion,
        fastest=fastest,
        origin=first_node(grid),
        n_threads=threads,
    )
    moved = position.astype(np.float64)
    moved[:, axis] -= shift
    return wrap(moved, grid.lengths), folded
