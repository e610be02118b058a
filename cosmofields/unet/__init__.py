"""The networks, what goes into and comes out of them, and the saved model: weights and a card.

Two architectures: ``"paper"`` follows Xiao et al. 2024 (arXiv:2411.11280); ``"residual"``, the
default, learns what earlier steps miss.  Each has a density model (halos; those of ``"residual"``
with the linear velocity), a velocity model (halos, density and linear velocity) and a momentum
model (halos, density and another vector).  Models map physical fields to physical fields; every
scaling is inside, so training and inference cannot disagree about it.  The last spatial axis is the
line of sight.
"""

from ..zoo import TARGETS, model_folder, zoo
from .models import MODELS, RESIDUAL_SCALE, VELOCITY_SCALE, FieldModel, build, vector_channels
from .networks import DoubleConv, PaperUNet, ResidualUNet
from .saved import (
    Card,
    cited,
    load_cards,
    load_model,
    replace_file,
    save_model,
    write_card,
)
from .starting import start_from, weights_digest

__all__ = [
    "MODELS",
    "RESIDUAL_SCALE",
    "TARGETS",
    "VELOCITY_SCALE",
    "Card",
    "DoubleConv",
    "FieldModel",
    "PaperUNet",
    "ResidualUNet",
    "build",
    "cited",
    "load_cards",
    "load_model",
    "model_folder",
    "replace_file",
    "save_model",
    "start_from",
    "vector_channels",
    "weights_digest",
    "write_card",
    "zoo",
]
