"""The rows of a table of scores, and what its columns are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scores = dict[str, Any]

# Edges in h/Mpc of the bins of R(k).
K_EDGES = (0.0, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3)
NETWORK, FILTERED, EQ2 = "network", "filtered", "eq2"


@dataclass(frozen=True)
class Row:
    """A row of a table of scores: where its numbers are among those of a column.

    Attributes
    ----------
    label : str
    field, key : str
    at : int or (low, high), optional
        Of the numbers under ``key``, the one with this index; or the largest absolute one of the
        bins of ``K_EDGES`` between ``low`` and ``high``.  Default: all.
    """

    label: str
    field: str
    key: str
    at: int | tuple[float, float] | None = None

    def of(self, column: Mapping[str, Scores]) -> list[float]:
        """The numbers of this row, in the scores of one prediction by field; none if it has none.

        They are one, but for the transfer at the longest waves.
        """
        value = column.get(self.field, {}).get(self.key)
        if value is None:
            return []
        if isinstance(self.at, tuple):
            low, high = self.at
            bins = zip(K_EDGES[:-1], K_EDGES[1:], value, strict=True)
            inside = [abs(v) for a, b, v in bins if a >= low and b <= high and v is not None]
            return [max(inside)] if inside else []
        values = value if isinstance(value, list) else [value]
        return [v for v in (values if self.at is None else [values[self.at]]) if v is not None]


def _deviation_rows(label: str, field: str, *ranges: tuple[float, float]) -> list[Row]:
    texts = [f"k < {high:g}" if low == 0 else f"k of {low:g} to {high:g}" for low, high in ranges]
    return [
        Row(f"{label}: largest abs R, {text}{which}", field, key, between)
        for text, between in zip(texts, ranges, strict=True)
        for which, key in (
            (", restored", "restored_relative_deviation"),
            (", mean", "relative_deviation"),
        )
    ]


ROWS = (
    Row("velocity: C_r, mean of components", "velocity", "correlation"),
    Row("velocity: rms error of a component, km/s", "velocity", "rms_error"),
    Row("velocity: slope of true on predicted", "velocity", "slope"),
    Row("velocity: C_r of the magnitude", "velocity", "magnitude_correlation"),
    Row("velocity: 1 - cos phi, mean", "velocity", "misalignment_mean"),
    Row("velocity: 1 - cos phi, scatter", "velocity", "misalignment_std"),
    Row("velocity: r(k = 0.1)", "velocity", "spectral_correlation", 0),
    Row("velocity: r(k = 0.3)", "velocity", "spectral_correlation", 1),
    Row("velocity: T(k) of the three longest waves", "velocity", "transfer"),
    *_deviation_rows("velocity", "velocity", (0.03, 0.3)),
    Row("velocity: cells within 68 % errors", "velocity", "coverage_68"),
    Row("velocity: cells within 95 % errors", "velocity", "coverage_95"),
    Row("div v: C_r per cell", "velocity_divergence", "correlation"),
    *_deviation_rows("div v", "velocity_divergence", (0.05, 0.3)),
    Row("density: C_r per cell", "density", "correlation"),
    Row("density: C_r, smoothed by 5 Mpc/h", "density", "correlation_smoothed"),
    Row("density: rms error", "density", "rms_error"),
    Row("density: slope of true on predicted", "density", "slope"),
    Row("density: r(k = 0.1)", "density", "spectral_correlation", 0),
    Row("density: r(k = 0.3)", "density", "spectral_correlation", 1),
    *_deviation_rows("density", "density", (0.0, 0.3), (0.03, 0.3)),
    Row("density: cells within 68 % errors", "density", "coverage_68"),
    Row("density: cells within 95 % errors", "density", "coverage_95"),
    Row("momentum: C_r per cell", "momentum", "correlation"),
    Row("momentum: C_r, smoothed by 5 Mpc/h", "momentum", "correlation_smoothed"),
    Row("momentum: rms error, km/s", "momentum", "rms_error"),
    Row("momentum: slope of true on predicted", "momentum", "slope"),
    *_deviation_rows("momentum", "momentum", (0.03, 0.3)),
)
