"""Whether numbers can be what they are taken for: Mpc/h, km/s and Msun/h of a simulated box.

What no box can hold is an error; what is unlikely is a doubt, for a reader to warn of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conventions import AXES, CatalogError, listing
from ..cosmology import as_cosmology

# Fewer rows than this say nothing about the whole: an error, a doubt.
FEW, SOME = 100, 1000
# A slab without positions is no chance if it is so many times wider than the widest inside, and
# this part of a side, which is more than coordinates of few digits leave.
EMPTY, SLIT = 4.0, 2e-3
WIDEST = 2e4  # Mpc/h: the diameter of the observable universe
SLOWEST, FASTEST = 0.05, 2e4  # km/s, rms of a component
# Linear theory in a wide box at z = 0.59 (Omega_m = 0.268, sigma8 = 0.83), of a component: km/s,
# and the share of its variance that comes from waves longer than 2 pi / k, k in h/Mpc.
SIGMA_V, Z_V, SIGMA8_V, OMEGA_V = 296.0, 0.59, 0.83, 0.268
SHARES = {0.003: 0.0, 0.0105: 0.084, 0.0209: 0.22, 0.03: 0.32, 0.05: 0.48, 0.1: 0.69, 0.2: 0.85}
MATTER = 2.775e11  # Msun/h in a (Mpc/h)^3 of critical density


class UnitsWarning(UserWarning):
    """A catalogue holds numbers that are unlikely in the units that they are taken for."""


def check_box(lengths: Sequence[float]) -> None:
    """Raise :class:`CatalogError` if a box is wider than the universe."""
    if max(lengths) > WIDEST:
        raise CatalogError(
            f"box_size={max(lengths):g} Mpc/h is wider than the observable universe; if it is in "
            f"kpc/h, it is box_size={max(lengths) / 1e3:g}, and positions in kpc/h are divided by "
            "1000 too: open_catalog(..., units={'position': 'kpc/h'})"
        )


def check_velocities(velocity: NDArray[Any]) -> None:
    """Raise :class:`CatalogError` unless velocities (n, 3) can be km/s."""
    if len(velocity) < FEW:
        return
    rms = _rms(velocity)
    if SLOWEST < rms < FASTEST or rms == 0:
        return
    known = {"m/s": 1e3, "cm/s": 1e5} if rms > 1 else {"units of c": 1 / 299792.458}
    unit = next((f" They look like {name}." for name, n in known.items()
                 if 30 < rms / n < 3000), "")  # fmt: skip
    raise CatalogError(
        f"The rms of a component of `velocity` is {rms:.4g}; expected peculiar velocities in km/s, "
        f"of 100 to 1000.{unit}"
    )


def doubts(
    name: str,
    values: NDArray[Any],
    lengths: Sequence[float],
    facts: Mapping[str, Any],
    *,
    whole: bool,
) -> str | None:
    """What is unlikely about the values of a column, in numbers; None if nothing is.

    Parameters
    ----------
    name : {"position", "velocity", "mass"}
    values : array
        Rows that passed the checks, in the units of a catalogue.
    lengths : three floats
        Sides of the box in Mpc/h.
    facts : mapping
        ``redshift`` and ``cosmology``.
    whole : bool
        Whether these are all rows.
    """
    if len(values) < SOME:
        return None
    if name == "position":
        return _doubt_positions(values, np.asarray(lengths), whole)
    if name == "velocity":
        return _doubt_velocities(_rms(values), min(lengths), facts, whole)
    return _doubt_masses(values, float(np.prod(lengths)), facts, whole)


def _doubt_positions(position: NDArray[Any], sides: NDArray[np.float64], whole: bool) -> str | None:
    low, high = position.min(axis=0), position.max(axis=0)
    span = f"{len(position)} positions reach up to {np.array2string(high, precision=4)} Mpc/h only"
    box = f"box_size={float(sides.max()):g}"
    if (high <= 1.01).all() and (sides > 20).all():
        return f"{span}, of {box}. Are they in units of the box? units={{'position': 'box'}}"
    if not whole:
        return None
    empty = [
        _is_empty(np.sort(position[:, i]), side, low[i] + side - high[i])
        for i, side in enumerate(sides)
    ]
    if all(empty):
        ratio = float((high / sides).max())
        return (
            f"{span}, {ratio:.3g} of {box}, and the rest is empty. Is box_size right, is one of "
            "the two in Mpc and not in Mpc/h, or is this a part of the box? The positions span "
            f"{listing(f'{side:.6g}' for side in high - low)}"
        )
    short = [
        f"{axis} spans {low[i]:.4g} to {high[i]:.4g} of {side:g} Mpc/h"
        for i, (axis, side) in enumerate(zip(AXES, sides, strict=True))
        if empty[i]
    ]
    if short:
        return (
            f"Of {len(position)} positions {listing(short)}. Is box_size right, are they angles "
            "and a redshift, which are to be converted to comoving Mpc/h, or is this a part of the "
            "box?"
        )
    return None


def _is_empty(x: NDArray[Any], side: float, slab: float) -> bool:
    """Whether sorted coordinates leave a slab at the face of the box that cannot be chance.

    Chance makes slabs inside the box that are as wide, but not of a tenth of it.
    """
    return bool(slab > min(max(EMPTY * np.diff(x).max(), SLIT * side), side / 10))


def _doubt_velocities(rms: float, side: float, facts: Mapping[str, Any], whole: bool) -> str | None:
    what = f"The rms of a component of `velocity` is {rms:.4g} km/s"
    if rms == 0:
        return None
    if not 10 < rms < 3000:
        return f"{what}; peculiar velocities have 100 to 1000"
    if side < 200:  # a few waves carry the velocity of a small box
        return None
    expected = expected_rms(side, facts)
    low, high = (0.6, 1.7) if whole else (0.45, 2.2)  # a chunk may be a small region of the box
    if low < rms / expected < high:
        return None
    a = 1 / (1 + facts["redshift"])
    factors = {
        "km sqrt(a)/s": (math.sqrt(a), "Gadget's snapshots"),
        "km/s/a": (1 / a, "Gadget's groups"),
    }
    could = [
        f"times {factor:.3g} ({whose}: units={{'velocity': '{unit}'}}) they would have "
        f"{rms * factor:.4g}"
        for unit, (factor, whose) in factors.items()
        if low < rms * factor / expected < high
    ]
    return (
        f"{what}; linear theory expects about {expected:.3g} in this box at z = "
        f"{facts['redshift']:g}. Are they peculiar velocities? {'; '.join(could)}".rstrip()
    )


def _doubt_masses(
    mass: NDArray[Any], volume: float, facts: Mapping[str, Any], whole: bool
) -> str | None:
    matter = MATTER * as_cosmology(facts["cosmology"]).Omega_m * volume
    share = float(np.sum(mass, dtype=np.float64)) / matter
    low, high = float(mass.min()), float(mass.max())
    if whole and low < high < 3 * low:
        return (
            f"{len(mass)} masses lie between {low:.4g} and {high:.4g}; those of halos differ by "
            "more. Are they Msun/h, and not its logarithm (units={'mass': 'log10 Msun/h'})?"
        )
    if share < 1.2 and (share > 1e-5 or not whole):
        return None
    return (
        f"{len(mass)} masses add up to {share:.3g} of all matter in the box "
        f"(their median is {float(np.median(mass)):.3g}). Are they in Msun/h, and box_size in "
        "Mpc/h?"
    )


def expected_rms(side: float, facts: Mapping[str, Any]) -> float:
    """Velocity of linear theory in a box, rms of a component in km/s; good to about a fifth.

    Parameters
    ----------
    side : float
        Of the box, in Mpc/h; it holds no longer wave.
    facts : mapping
        ``redshift`` and ``cosmology``.
    """
    cosmology, z = as_cosmology(facts["cosmology"]), float(facts["redshift"])
    reference = as_cosmology({"Omega_m": OMEGA_V, "h": 0.71})

    def rate(of: Any, at: float) -> float:
        return float(of.aH(at) * of.f(at)) * of.D(at)

    growth = rate(cosmology, z) / rate(reference, Z_V)
    amplitude = (cosmology.sigma8 or 0.8) / SIGMA8_V
    k = np.log(2 * np.pi / side)
    lost = np.interp(k, np.log(list(SHARES)), list(SHARES.values()))
    return SIGMA_V * growth * amplitude * math.sqrt(1 - lost)


def _rms(velocity: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(velocity, dtype=np.float64))))
