"""Networks at work: a model prepared once, one tile through it, and tiles planned by memory.

A UNet asked for n cells needs less and less of the halo towards its end.  With zero padding every
layer works on the whole halo; here each computes only the cells that later ones still need, so
that a tile of 192 cells costs 1.3 times its own work instead of 2.
"""

from ..kernels.tiles import TilePlan
from .networks import Padded, Valid, prepare
from .passes import (
    ONE_PASS,
    resolve_device,
    resolve_precision,
    resources,
    run_tile,
    seconds_per_cell,
)
from .plans import WORTH, memory_of, plan

__all__ = [
    "ONE_PASS",
    "WORTH",
    "Padded",
    "TilePlan",
    "Valid",
    "memory_of",
    "plan",
    "prepare",
    "resolve_device",
    "resolve_precision",
    "resources",
    "run_tile",
    "seconds_per_cell",
]
