"""How alike two fields are, cell by cell: correlations, errors, angles, distributions.

The whole box or a part of one will do.  Sums run in float64.  All but :func:`magnitude` and
:func:`misalignment` are eager.

What is measured on several boxes adds up to what is measured on all of them together: counts in
the same bins by their sum, :func:`cell_statistics` by :func:`pool`, the mean and scatter of any
other quantity by :func:`pool_moments`.
"""

from .counts import histogram, joint_distribution
from .pooling import pool, pool_moments
from .scores import (
    cell_statistics,
    correlation_coefficient,
    magnitude,
    misalignment,
    rms_error,
    slope,
)

__all__ = [
    "cell_statistics",
    "correlation_coefficient",
    "histogram",
    "joint_distribution",
    "magnitude",
    "misalignment",
    "pool",
    "pool_moments",
    "rms_error",
    "slope",
]
