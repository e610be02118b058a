"""Whether a catalogue moves as the field that was made of it says: the test that real data have.

The networks see positions and masses.  Across the line of sight the tracers' own velocities are not
among what they see, so that these and the field agree only if positions, columns, units, box,
redshift and cosmology are what they were said to be.
"""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .catalog import row_dim, velocity_of
from .conventions import (
    AXES,
    CatalogError,
    attribute,
    canonical,
    check_units,
    variable,
)
from .cosmology import cosmology_of, redshift_of
from .sampling import common_box, first_node

ROWS = 50_000  # more tell nothing more
FEWEST = 1000  # fewer say little
# In boxes 104 and 301 to 303, which no model was trained on, slopes lie between 0.97 and 1.05, for
# all models that ship and two lines of sight.
SLOPES = 0.9, 1.15


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
        ``correlation_coefficient`` of the two: 0.9 to 0.96 for halos, less for galaxies, which move
        about the matter around them; their slope stays.  ``rms_difference`` in km/s: of that
        motion, and of the errors of the field.  ``attrs["rows"]``: how many tracers, at most
        50,000.

    Raises
    ------
    MissingVariableError, MissingAttributeError, GridMismatchError, CatalogError
        If there are no velocities or positions, the boxes differ, or fewer than 1000 tracers.

    Warns
    -----
    VelocityWarning
        If a slope is not in 0.9 to 1.15 (halos of boxes with known truth: 0.97 to 1.05); the
        text says what that looks like: columns in another order, positions in redshift space that
        were shifted again, velocities in another unit.
    """
    field = variable(fields, "velocity") if isinstance(fields, xr.Dataset) else fields
    field = canonical(field, "component")
    check_units(field, "velocity")
    grid = common_box(field, catalog, "compare_velocities")
    dim = row_dim(catalog)
    if catalog.sizes[dim] < FEWEST:
        raise CatalogError(
            f"{catalog.sizes[dim]} tracers say too little of a velocity field; expected at least "
            f"{FEWEST}"
        )
    some = catalog[["position", "velocity"]] if "velocity" in catalog else catalog
    some = some.isel({dim: slice(None, None, -(-catalog.sizes[dim] // ROWS))})
    own = np.asarray(velocity_of(some, "compare_velocities").values, np.float64)
    position = np.asarray(some["position"].transpose(dim, "component").values, np.float64)
    los = catalog.attrs.get("los")
    if attribute(catalog, "space") == "redshift":
        axis = AXES.index(attribute(catalog, "los"))
        position[:, axis] -= own[:, axis] / float(cosmology_of(catalog).aH(redshift_of(catalog)))
    shape, sides = np.array(grid.shape), np.array(grid.lengths)
    at = np.rint((position - first_node(grid)) * shape / sides).astype(np.int64) % shape
    there = np.stack([_at(part, at) for part in field.data], axis=1).astype(np.float64)
    moments = own.T @ there / len(own)
    slopes = np.diag(moments) / (there**2).mean(axis=0)
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
    doubt = _doubt(slopes, correlation, los)
    if doubt:
        warnings.warn(doubt, VelocityWarning, stacklevel=2)
    return found


def _at(part: NDArray[np.floating] | da.Array, at: NDArray[np.int64]) -> NDArray[np.floating]:
    """Values at nodes (rows, 3), chunk by chunk of a lazy field."""
    if isinstance(part, da.Array):
        return np.asarray(part.vindex[tuple(at.T)].compute())
    return part[tuple(at.T)]


def _doubt(
    slopes: NDArray[np.float64], correlation: NDArray[np.float64], los: str | None
) -> str | None:
    """What the slopes look like, if not like those of the halos of the field."""
    low, high = SLOPES
    wrong = [axis for axis, value in zip(AXES, slopes, strict=True) if not low < value < high]
    if not wrong:
        return None
    said = ", ".join(f"{value:.2f}" for value in slopes)
    what = (
        f"The tracers move {said} times as fast along x, y, z as the field says; expected "
        f"{low} to {high}."
    )
    best = correlation.argmax(axis=1)
    for i, axis in enumerate(AXES):
        if axis in wrong and best[i] != i and correlation[i, best[i]] > 0.5:
            return (
                f"{what} What they were said to move along {axis} goes with the field along "
                f"{AXES[best[i]]}: are the columns of velocity or position in another order?"
            )
    if wrong == [los]:
        return (
            f"{what} Along the line of sight alone: were the positions shifted twice (in redshift "
            f"space already: los={los!r} and no to_redshift_space; in the shell --redshift-space "
            f"--los {los}), or never (in real space: no los, and to_redshift_space)?"
        )
    if min(slopes) > 0.3 and max(slopes) < 1.5 * min(slopes):
        return (
            f"{what} Are box_size (in Mpc/h) and redshift right, and the velocities peculiar, in "
            "km/s (Gadget's are not: units={'velocity': 'km sqrt(a)/s'})?"
        )
    return f"{what} Are box_size, units and the columns of position and velocity right?"
