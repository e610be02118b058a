"""A saved model over a box: what it sees, how it runs, and the fields that come of it."""

from .fields import Loaded, predict, predict_density, predict_momentum, predict_velocity
from .inputs import Bias, check_box, linear_options, model_inputs, same_theory
from .measuring import calibrate, observe
from .running import apply_model, axes_to_los_last, run_in_box, track, turn

__all__ = [
    "Bias",
    "Loaded",
    "apply_model",
    "axes_to_los_last",
    "calibrate",
    "check_box",
    "linear_options",
    "model_inputs",
    "observe",
    "predict",
    "predict_density",
    "predict_momentum",
    "predict_velocity",
    "run_in_box",
    "same_theory",
    "track",
    "turn",
]
