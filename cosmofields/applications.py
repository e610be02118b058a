"""What the fields are for: kinetic Sunyaev-Zel'dovich effect, cosmic web, galaxies' velocities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from .catalog import row_dim
from .conventions import (
    AXES,
    FIELDS,
    CosmofieldsError,
    Grid,
    MissingVariableError,
    attribute,
    box_facts,
    canonical,
    check_los,
    check_units,
    listing,
    periodic_grid,
    variable,
)
from .cosmology import cosmology_of, redshift_of
from .fourier import through_modes
from .sampling import sample, to_real_space
from .spectral import not_finite

T_CMB = 2.7255e6  # microkelvin (Fixsen 2009)
LIGHT = 299_792.458  # km/s
THOMSON = 6.6524587e-29  # m^2
MEGAPARSEC = 3.0856776e22  # m
# Electrons in m^-3 of fully ionised hydrogen and helium, Y = 0.24, per Omega_b h^2: critical
# density 1.87834e-26 h^2 kg/m^3 over m_p = 1.67262e-27 kg, times 1 - Y / 2.
ELECTRONS = 1.87834e-26 / 1.67262e-27 * (1 - 0.24 / 2)

WEB = ("void", "sheet", "filament", "knot")


def kinetic_sz(
    momentum: xr.DataArray | xr.Dataset,
    *,
    los: str | None = None,
    weight: Callable[[Any], Any] | None = None,
) -> xr.DataArray:
    """Map of the kinetic Sunyaev-Zel'dovich effect of a box, if gas follows matter.

    dT = -T_CMB sigma_T n_e (1 + z)^2 / c  sum over chi of w(chi) q_los(chi) d chi, with the
    momentum q = (1 + delta) v, the mean density n_e of electrons today, all of hydrogen and helium
    (Y = 0.24) ionised, and comoving chi (Sunyaev & Zel'dovich 1980; optically thin).

    Parameters
    ----------
    momentum : DataArray, dims (component, x, y, z); or Dataset with a ``momentum``
        In km/s, with redshift and a cosmology that has Omega_b and h.
    los : {"x", "y", "z"}, optional
        Line of sight, the observer at its lower end; default: that of the field.
    weight : callable, optional
        ``weight(chi)`` of the distance in Mpc/h from the near face: a visibility, a window of
        redshifts, the mask of a survey.  Default: 1.

    Returns
    -------
    DataArray, the two dims across the line of sight
        ``ksz`` in microkelvin, negative where matter recedes; lazy if ``momentum`` is.

    Raises
    ------
    MissingAttributeError, MissingVariableError, DimensionError, NotPeriodicError
        If there is no momentum in km/s over the whole periodic box, with its facts.
    CosmofieldsError
        If ``weight`` gives no number.
    """
    field = _field(momentum, "momentum")
    grid = periodic_grid(field, what="kinetic_sz")
    along = check_los(attribute(field, "los") if los is None else los)
    axis = AXES.index(along)
    cosmology, z = cosmology_of(field), redshift_of(field)
    if cosmology.Omega_b is None:
        cosmology.require_power()
    electrons = ELECTRONS * float(cosmology.Omega_b or 0.0) * cosmology.h**2
    optical_depth = THOMSON * electrons * (1 + z) ** 2 * MEGAPARSEC / cosmology.h  # per Mpc/h
    step = grid.cell_size[axis]
    chi = np.arange(grid.shape[axis]) * step
    weights = np.ones_like(chi) if weight is None else np.broadcast_to(weight(chi), chi.shape)
    if not np.isfinite(weights).all():
        bad = chi[~np.isfinite(weights)]
        raise CosmofieldsError(
            f"weight(chi) is not finite at chi = {bad[0]:g} Mpc/h; expected a number for each "
            f"distance from {chi[0]:g} to {chi[-1]:g} Mpc/h"
        )
    factor = xr.DataArray(
        (-T_CMB * optical_depth * step / LIGHT * weights).astype(np.float32), dims=along
    )
    summed = (field.isel(component=axis, drop=True) * factor).sum(along)
    return summed.rename("ksz").assign_attrs(
        {
            **box_facts(field),
            "los": along,
            "units": "microkelvin",
            "long_name": "temperature of the kinetic Sunyaev-Zel'dovich effect",
        }
    )


def t_web(
    density: xr.DataArray | xr.Dataset, *, smoothing: float = 2.0, threshold: float = 0.2
) -> xr.Dataset:
    """Cosmic web by the tidal tensor (Hahn et al. 2007; Forero-Romero et al. 2009).

    T_ij = d_i d_j phi with laplace phi = delta: a cell with 0, 1, 2, 3 eigenvalues above the
    threshold belongs to a void, a sheet, a filament, a knot.

    Parameters
    ----------
    density : DataArray, dims (x, y, z); or Dataset with a ``density``
        1 + delta over the whole periodic box.
    smoothing : float
        R of a Gaussian exp(-k^2 R^2 / 2), in Mpc/h; 0: none.
    threshold : float
        0.2 is that of Forero-Romero et al., 0 that of Hahn et al.

    Returns
    -------
    Dataset
        ``web`` (x, y, z), int8: 0 void, 1 sheet, 2 filament, 3 knot; ``eigenvalue`` (order, x,
        y, z), descending, float32, whose sum is the smoothed delta.  Lazy if ``density`` is.

    Raises
    ------
    MissingAttributeError, MissingVariableError, DimensionError, NotPeriodicError
    CosmofieldsError
        If ``smoothing`` is negative.
    """
    from .kernels import web

    field = _field(density, "density")
    return _web([field.data], field, web.tidal, smoothing, threshold, "T-web", 1.0)


def v_web(
    velocity: xr.DataArray | xr.Dataset, *, smoothing: float = 2.0, threshold: float = 0.44
) -> xr.Dataset:
    """Cosmic web by the velocity shear (Hoffman et al. 2012).

    Sigma_ij = -(d_i v_j + d_j v_i) / (2 a H): a cell with 0, 1, 2, 3 eigenvalues above the
    threshold belongs to a void, a sheet, a filament, a knot.  In linear theory it is f T_ij of
    :func:`t_web`.

    Parameters
    ----------
    velocity : DataArray, dims (component, x, y, z); or Dataset with a ``velocity``
        km/s over the whole periodic box, with redshift and cosmology.
    smoothing : float
        As of :func:`t_web`.
    threshold : float
        0.44 is that of Hoffman et al., who found it at z = 0.

    Returns
    -------
    Dataset
        As of :func:`t_web`; the sum of the eigenvalues is -div v / (a H), smoothed.

    Raises
    ------
    MissingAttributeError, MissingVariableError, DimensionError, NotPeriodicError
    CosmofieldsError
        If ``smoothing`` is negative.
    """
    from .kernels import web

    field = _field(velocity, "velocity")
    rate = float(cosmology_of(field).aH(redshift_of(field)))
    return _web(list(field.data), field, web.shear, smoothing, threshold, "V-web", -1 / rate)


def _field(obj: xr.DataArray | xr.Dataset, name: str) -> xr.DataArray:
    """A registered field, by itself or in a Dataset, in the order of its dims and in its units."""
    field = variable(obj, name) if isinstance(obj, xr.Dataset) else obj
    field = canonical(field, *FIELDS[name].dims[:-3])
    check_units(field, name)
    return field


def _web(
    parts: list[Any],
    field: xr.DataArray,
    kernel: Any,
    smoothing: float,
    threshold: float,
    name: str,
    unit: float,
) -> xr.Dataset:
    """Eigenvalues and web of the tensor that a kernel makes of a field's modes."""
    from .kernels import web

    if not smoothing >= 0:
        raise CosmofieldsError(f"smoothing={smoothing}; expected a radius in Mpc/h, or 0")
    grid: Grid = periodic_grid(field, what=name)
    outputs = [partial(kernel, pair=pair, radius=smoothing) for pair in web.PAIRS]
    tensor = through_modes(parts, grid, outputs, what=name)
    solve = partial(_eigenvalues, unit=unit, name=str(field.name))
    if isinstance(tensor, da.Array):
        whole = tensor.rechunk({0: -1})
        values: Any = whole.map_blocks(solve, chunks=((3,), *whole.chunks[1:]), dtype=np.float32)
    else:
        values = solve(tensor)
    attrs = {"units": "1", "long_name": f"eigenvalue of the {name}", "smoothing": smoothing}
    found = xr.Dataset(
        {
            "web": (AXES, (values > np.float32(threshold)).sum(axis=0).astype(np.int8)),
            "eigenvalue": (("order", *AXES), values, attrs),
        },
        coords={**grid.coords(), "order": [1, 2, 3]},
        attrs=box_facts(field),
    )
    found["web"].attrs = {
        "long_name": f"cosmic web, {name}",
        "flag_values": list(range(len(WEB))),
        "flag_meanings": " ".join(WEB),
        "threshold": threshold,
        "smoothing": smoothing,
    }
    return found


def _eigenvalues(tensor: Any, unit: float, name: str) -> Any:
    from .kernels.web import eigenvalues

    # One NaN is in every cell of what went through the modes.
    if not np.isfinite(tensor.ravel()[:1]).all():
        raise not_finite(xr.DataArray(name=name))
    return eigenvalues(np.ascontiguousarray(tensor * np.float32(unit)))


def velocities_at(catalog: xr.Dataset, fields: xr.Dataset) -> xr.Dataset:
    """Velocity of matter at the places of galaxies or halos, and how wrong it may be.

    Parameters
    ----------
    catalog : Dataset
        With ``position``; in redshift space, the positions are moved back first
        (:func:`~cosmofields.to_real_space`).
    fields : Dataset
        ``velocity`` and ``velocity_error`` in km/s, of ``predict(uncertainty=True)``.

    Returns
    -------
    Dataset, dims (halo, component)
        ``position`` in real space; ``velocity`` of the matter there; ``velocity_error``, the
        standard deviation of its error, by what the model's card has measured on boxes of known
        truth.  A galaxy moves about the matter of its cell besides.  Lazy if an input is.

    Raises
    ------
    MissingVariableError, GridMismatchError, CatalogError, MissingAttributeError
    """
    lacking = [name for name in ("velocity", "velocity_error") if name not in fields]
    if lacking:
        raise MissingVariableError(
            f"No {listing(f'`{name}`' for name in lacking)} among the fields; expected what "
            "observed.recon.predict(uncertainty=True) gives"
        )
    if attribute(catalog, "space") == "redshift":
        catalog = to_real_space(catalog, fields["velocity"])
    dim = row_dim(catalog)
    found = catalog[["position"]].assign(
        {name: sample(fields[name], catalog) for name in ("velocity", "velocity_error")}
    )
    return found.transpose(dim, "component")
