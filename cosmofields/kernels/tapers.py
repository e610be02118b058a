"""A Tukey window along each axis, for the spectra of boxes that are not periodic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Taper(NamedTuple):
    """Weights along each axis; w(x, y, z) is their product."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    z: NDArray[np.float32]

    @property
    def total(self) -> float:
        """Sum of w over the cells."""
        return float(np.prod([part.sum(dtype=np.float64) for part in self]))

    @property
    def mean_square(self) -> float:
        """Mean of w^2 over the cells."""
        return float(np.prod([np.mean(part.astype(np.float64) ** 2) for part in self]))


def tukey(shape: Sequence[int], fraction: float) -> Taper:
    """Window that rises over ``fraction`` / 2 of each axis as half a cosine, and falls likewise.

    A cell i weighs what the window is at its middle, (i + 1/2) / N of the axis: none is lost, and
    the weights are the same from either end.
    """
    x, y, z = (_tukey(n, fraction) for n in shape)
    return Taper(x, y, z)


def _tukey(n: int, fraction: float) -> NDArray[np.float32]:
    middle = (np.arange(n) + 0.5) / n
    depth = np.minimum(np.minimum(middle, 1 - middle) / fraction, 0.5)  # 1/2 where w = 1
    return (0.5 - 0.5 * np.cos(2 * np.pi * depth)).astype(np.float32)


def weigh(
    field: NDArray[np.floating],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    z: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Sum of w f over a field or a block of it, (1, 1, 1)."""
    rows = np.array([plane.astype(np.float64) @ z @ y for plane in field], np.float64)
    return np.sum(rows * x).reshape(1, 1, 1)


def fade(
    field: NDArray[np.floating],
    mean: float,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    z: NDArray[np.float32],
) -> NDArray[np.floating]:
    """Return w (f - mean) of a field or a block of it."""
    with np.errstate(invalid="ignore"):  # infinity less infinity: the sums of the modes tell
        return (field - np.float32(mean)) * x[:, None, None] * (y[:, None] * z)


class Faded:
    """Planes of w (f - mean), made as they are asked for; mean = sum w f / sum w."""

    def __init__(self, field: NDArray[np.floating], taper: Taper) -> None:
        self.field, self.taper = field, taper
        self.mean = float(weigh(field, *taper).item() / taper.total)

    def __getitem__(self, planes: slice) -> NDArray[np.floating]:
        x, y, z = self.taper
        return fade(self.field[planes], self.mean, x[planes], y, z)
