"""What a model's errors are known to be: a mean that is off, spectra too weak, errors per cell.

All are measured where the truth is known (:func:`~cosmofields.calibrate`) and kept in the model's
card under ``calibration``, for the numbers of symmetries that were run.  Averaging over n of them
takes a part 1 - 1/n from what a network gets wrong at random, so powers and variances are linear
in 1/n, by which they are found for other n.

Mean
    Where a density is predicted the true one has another mean, in clusters most of all.  The ratio
    is a monotone table over the prediction.  Networks of later steps know the density without it.
Restoration
    A minimum-variance field has too little power where it is uncertain: ideally r^2 of the true
    one, r(k) their correlation.  The power-restored field is its modes times
    g(k) = sqrt(P_true / P_predicted); vectors have one g across and one along the line of sight.
    Where r < 1/2 a restored mode would be farther from the truth than none at all
    (2 - 2 r > 1): from there on g = 1.  Below the first node g stays what it is there.
    That of the momentum is in the card of its network, else in the velocity's.
Errors
    Velocity: Gaussian about the prediction, its standard deviation a table over the predicted
    density smoothed by a Gaussian, across and along the line of sight.
    Density: lognormal with the prediction as its mean; the scatter s of its logarithm is a table
    over the prediction, and the standard deviation is density sqrt(exp(s^2) - 1).
    Beyond the nodes of a table its last value holds.
"""

from .errors import (
    SMOOTHING,
    density_error,
    environment,
    interval,
    log_error,
    log_ratio,
    velocity_error,
)
from .fitting import K_EDGES, SHARE, UNITS, Measurement, lognormal_factor, rescale
from .means import MeanMeasurement, mean_name, mean_table, network_density, recalibrate, undoing
from .power import gain, restoration, restore
from .tables import Card, Table, calibration, parts, rounded

__all__ = [
    "K_EDGES",
    "SHARE",
    "SMOOTHING",
    "UNITS",
    "Card",
    "MeanMeasurement",
    "Measurement",
    "Table",
    "calibration",
    "density_error",
    "environment",
    "gain",
    "interval",
    "log_error",
    "log_ratio",
    "lognormal_factor",
    "mean_name",
    "mean_table",
    "network_density",
    "parts",
    "recalibrate",
    "rescale",
    "restoration",
    "restore",
    "rounded",
    "undoing",
    "velocity_error",
]
