"""Tables of a card: what all of calibration shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from ..conventions import AXES, ModelMismatchError

Array = NDArray[np.float64]
Card = Mapping[str, Any]


def calibration(card: Card) -> dict[str, Any]:
    """What the card of a model holds of its calibration.

    Raises
    ------
    ModelMismatchError
        If it was not calibrated.
    """
    if "calibration" not in card:
        raise ModelMismatchError(
            f"The model {card['name']!r} was not calibrated: cosmofields.calibrate(model, boxes, "
            "validation) measures what restore_power and uncertainty need (in the shell: "
            "cosmofields calibrate --model ... --boxes ... --validation ...)"
        )
    return cast("dict[str, Any]", card["calibration"])


def parts(los: str) -> list[str]:
    """Which table each component takes."""
    return ["along" if axis == los else "across" for axis in AXES]


def row_of(rows: Sequence[Sequence[float]], measured: Sequence[int], symmetries: int) -> Array:
    """The row of a number of symmetries, linear in its inverse."""
    values = np.asarray(rows, np.float64)
    if len(values) == 1:
        return cast(Array, values[0])
    first, last = 1 / measured[0], 1 / measured[-1]
    return cast(
        Array, values[0] + (values[-1] - values[0]) * (1 / symmetries - first) / (last - first)
    )


def rounded(values: Array) -> list[float]:
    """As a card holds them."""
    return [float(f"{value:.5g}") for value in values]


class Table(NamedTuple):
    """Logarithm of a quantity over that of the density: linear between nodes, constant beyond."""

    nodes: Array
    values: Array

    @classmethod
    def of(cls, nodes: Sequence[float] | Array, values: Array) -> Table:
        """The table of what is given as it is, not by its logarithm."""
        return cls(np.log(nodes), np.log(values))

    def __call__(self, density: Any) -> Any:
        """The quantity where the density is this, float32; as lazy as ``density``."""
        if isinstance(density, da.Array):
            lazily: Any = density.map_blocks  # dask's stubs know functions of a DataFrame only
            return lazily(self._look, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
        return self._look(density)

    def _look(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        # Rounding of a transform may leave an empty cell below 0, some networks do.
        at = np.log(np.maximum(block, np.float32(np.exp(self.nodes[0]))))
        return np.exp(np.interp(at, self.nodes, self.values)).astype(np.float32)
