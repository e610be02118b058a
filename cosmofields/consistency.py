"""Whether a catalogue moves as the field that was made of it says: the test that real data have.

The networks see positions and masses.  Across the line of sight the tracers' own velocities are not
among what they see, so that these and the field agree only if positions, columns, units, box,
redshift and cosmology are what they were said to be.
"""

from __future__ import annotations

import warnings
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .catalog import check_finite, check_positions, row_dim, velocity_of
from .conventions import (
    AXES,
    CatalogError,
    Grid,
    attribute,
    canonical,
    check_units,
    variable,
)
from .cosmology import cosmology_of, redshift_of
from .sampling import common_box, common_redshift, first_node

ROWS = 50_000  # more tell nothing more
FEWEST = 1000  # fewer say little
# In boxes 104 and 301 to 304 (300 Mpc/h), which no model was trained on, slopes lie between 0.97
# and 1.06, for all models that ship and two lines of sight.  In boxes of 75 Mpc/h, of a few waves,
# they lie between 0.88 and 1.22: the window widens below WIDE, as the inverse of the side.
SLOPES = -0.1, 0.15
WIDE = 200.0  # Mpc/h
# Between the slope along the line of sight and the mean of those across: 0.93 to 1.0 there.  Of
# tracers shifted twice 0.76 to 0.86, of tracers said to be shifted that were not 1.01 to 1.15.
LOS = 0.9, 1.03


class VelocityWarning(UserWarning):
    """The velocities of a catalogue are not those of the field that was made of it."""


def compare_velocities(catalog: xr.Dataset, fields: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """Compare the velocities of tracers with those of a field where they are.

    Parameters
    ----------
    catalog : Dataset
        With ``position`` and ``velocity`` in km/s.  In redshift space, it is taken back by its own
        velocities first.
    fields : Dataset with a ``velocity``, or that DataArray, dims (component, x, y, z)
        km/s over the same periodic box; lazy or not.

    Returns
    -------
    Dataset, dims (component)
        ``slope``, <v_own v> / <v^2> with v the field at the node next to a tracer: near 1.
        ``correlation_coefficient`` of the two: 0.87 to 0.96 for halos in boxes of 300 Mpc/h, less
        in small boxes and for galaxies, which move about the matter around them; their slope stays.
        ``rms_difference`` in km/s: of that motion, and of the errors of the field.
        ``attrs["rows"]``: how many tracers, every n-th so that they are 50,000 at most.

    Raises
    ------
    MissingVariableError, MissingAttributeError, GridMismatchError, NotPeriodicError
        If there are no velocities or positions, or the boxes differ.
    CatalogError
        If there are fewer than 1000 tracers, they stand still or outside the box, they are at
        another redshift, or values are NaN or infinite, those of the field too.

    Warns
    -----
    VelocityWarning
        If a slope is not in 0.9 to 1.15, in boxes of 200 Mpc/h and more (halos of boxes with known
        truth: 0.97 to 1.06), or that along the line of sight is not like the others; the text says
        what that looks like: columns in another order, positions that were shifted twice or never,
        velocities in another unit.  Not of fields of linear theory, whose slopes are lower.

    Notes
    -----
    Eager: of lazy input the rows that are compared are computed, and the nodes next to them, each
    in one compute.
    """
    field = variable(fields, "velocity") if isinstance(fields, xr.Dataset) else fields
    field = canonical(field, "component")
    check_units(field, "velocity")
    grid = common_box(field, catalog, "compare_velocities")
    common_redshift(field, catalog)
    position, own = _tracers(catalog, grid)
    shape, sides = np.array(grid.shape), np.array(grid.lengths)
    at = np.rint((position - first_node(grid)) * shape / sides).astype(np.int64) % shape
    there = _at(field, at)
    check_finite("velocity of the field", there)
    moments = own.T @ there / len(own)
    squares = (there**2).mean(axis=0)
    if not ((own**2).mean(axis=0).all() and squares.all()):
        raise CatalogError("The tracers or the field stand still along an axis: all velocities 0")
    slopes = np.diag(moments) / squares
    correlation = np.corrcoef(own.T, there.T)[:3, 3:]
    found = xr.Dataset(
        {
            "slope": ("component", slopes, {"units": "1"}),
            "correlation_coefficient": ("component", np.diag(correlation), {"units": "1"}),
            "rms_difference": (
                "component",
                np.sqrt(((own - there) ** 2).mean(axis=0)),
                {"units": "km/s"},
            ),
        },
        coords={"component": list(AXES)},
        attrs={"rows": len(own)},
    )
    los = catalog.attrs.get("los") if attribute(catalog, "space") == "redshift" else None
    doubt = _doubt(slopes, correlation, los, min(grid.lengths))
    if doubt and "method" not in field.attrs:
        warnings.warn(doubt, VelocityWarning, stacklevel=2)
    return found


def _tracers(catalog: xr.Dataset, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions in real space and velocities of some rows."""
    dim = row_dim(catalog)
    rows = catalog.sizes[dim]
    if rows < FEWEST:
        raise CatalogError(
            f"{rows} tracers say too little of a velocity field; expected at least {FEWEST}"
        )
    velocity_of(catalog, "compare_velocities")
    check_units(catalog["velocity"], "velocity")
    some = catalog[["position", "velocity"]].isel({dim: slice(None, None, -(-rows // ROWS))})
    some = some.compute().transpose(dim, "component")
    position, own = (some[name].values.astype(np.float64) for name in ("position", "velocity"))
    check_positions(position, grid.lengths)
    check_finite("velocity", own)
    if attribute(catalog, "space") == "redshift":
        axis = AXES.index(attribute(catalog, "los"))
        position[:, axis] -= own[:, axis] / float(cosmology_of(catalog).aH(redshift_of(catalog)))
    return position, own


def _at(field: xr.DataArray, at: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values at nodes (rows, 3); of a lazy field in one compute, chunk by chunk."""
    where = tuple(at.T)
    parts: list[Any] = [
        part.vindex[where] if isinstance(part, da.Array) else part[where] for part in field.data
    ]
    return np.stack(dask.compute(*parts), axis=1).astype(np.float64)


def _doubt(
    slopes: NDArray[np.float64], correlation: NDArray[np.float64], los: str | None, side: float
) -> str | None:
    """What the slopes look like, if not like those of the halos of the field."""
    widening = max(1.0, WIDE / side)
    low, high = (1 + widening * part for part in SLOPES)
    wrong = [axis for axis, value in zip(AXES, slopes, strict=True) if not low < value < high]
    said = ", ".join(f"{value:.2f}" for value in slopes)
    what = (
        f"The tracers move {said} times as fast along x, y, z as the field says; expected "
        f"{low:.3g} to {high:.3g}."
    )
    best = correlation.argmax(axis=1)
    for i, axis in enumerate(AXES):
        if axis in wrong and best[i] != i and correlation[i, best[i]] > 0.5:
            return (
                f"{what} What they were said to move along {axis} goes with the field along "
                f"{AXES[best[i]]}: are the columns of velocity or position in another order?"
            )
    if los is not None and side >= WIDE:
        along = AXES.index(los)
        ratio = slopes[along] / np.delete(slopes, along).mean()
        if 0.5 < ratio < LOS[0]:
            return (
                f"{what} Along the line of sight they are slow: were the positions shifted twice? "
                f"If they were in redshift space already: los={los!r} and no to_redshift_space; in "
                f"the shell --redshift-space --los {los}"
            )
        if LOS[1] < ratio < 1.5:
            return (
                f"{what} Along the line of sight they are fast: were the positions said to be in "
                "redshift space, and are in real space? Then no los, and to_redshift_space; in the "
                "shell no --redshift-space"
            )
    if not wrong:
        return None
    if min(slopes) > 0.3 and max(slopes) < 1.5 * min(slopes):
        return (
            f"{what} Are box_size (in Mpc/h) and redshift right, and the velocities peculiar, in "
            "km/s (Gadget's are not: units={'velocity': 'km sqrt(a)/s'})?"
        )
    return f"{what} Are box_size, units and the columns of position and velocity right?"
