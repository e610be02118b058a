"""Halo catalogues: making and checking one, selection by number density, mass bins, redshift space.

A catalogue is a Dataset of ``position(halo, component)`` in Mpc/h, ``velocity(halo, component)`` in
km/s (peculiar) and ``mass(halo)`` in Msun/h, with the box facts in its attributes.  A lazy
catalogue stays lazy, but for its masses, by which halos are ranked.
"""

from .making import (
    as_catalog,
    catalog_facts,
    check_catalog,
    check_columns,
    check_finite,
    check_masses,
    check_positions,
    from_arrays,
    from_grid,
    row_dim,
    velocity_of,
    wrap,
)
from .plausible import UnitsWarning, check_box, check_velocities, doubts
from .selecting import NUMBER_DENSITY, select, to_redshift_space

__all__ = [
    "NUMBER_DENSITY",
    "UnitsWarning",
    "as_catalog",
    "catalog_facts",
    "check_box",
    "check_catalog",
    "check_columns",
    "check_finite",
    "check_masses",
    "check_positions",
    "check_velocities",
    "doubts",
    "from_arrays",
    "from_grid",
    "row_dim",
    "select",
    "to_redshift_space",
    "velocity_of",
    "wrap",
]
