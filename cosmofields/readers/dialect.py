"""What a format says of its columns, and what the caller asks of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..catalog import catalog_facts
from ..conventions import CatalogError, MissingAttributeError, StoreError, listing

PARAMETERS = ("Omega_m", "Omega_b", "h", "n_s", "sigma8")
# cm in a Mpc, g in a solar mass: to tell units apart, of which each code has its own last digits.
MPC, MSUN = 3.0857e24, 1.989e33

Names = str | Sequence[str] | None
Facts = Mapping[str, Any]


class Ask(NamedTuple):
    """What the caller of ``open_catalog`` says; facts that are given overrule those of a file."""

    names: Mapping[str, Names]
    group: str | None
    given: Facts
    units: Mapping[str, str]
    origin: float | Sequence[float] | None
    storage: Mapping[str, Any] | None = None  # options of an object store


class View(NamedTuple):
    """A table seen as a catalogue: which parts are its columns, and in which units they are."""

    facts: dict[str, Any]
    base: str = ""  # group of the columns
    # Names of the columns below `base`; None: found by their usual names.
    names: Mapping[str, Names] | None = None
    # Unit of each column, or factor and what is said of it.
    units: Mapping[str, str | tuple[float, str]] = {}
    centred: bool = False  # positions in [-L/2, L/2)
    dim: str = "halo"
    files: int | None = None
    rows: int | None = None  # that the header declares
    source: Mapping[str, Any] = {}


def merged(ask: Ask, **facts: Any) -> dict[str, Any]:
    """Facts of a header, overruled by those that were given."""
    return (
        {"box_size": None, "redshift": None, "cosmology": None, "los": None} | facts | {**ask.given}
    )


def scale_factor(facts: Facts, path: str) -> float:
    """1 / (1 + z), which the units of a column need."""
    if facts.get("redshift") is None:
        raise MissingAttributeError(
            f"No `redshift` in {path!r}, which its units need. Pass open_catalog(..., "
            "redshift=0.59)"
        )
    # Checked here, for what a header says and what was given alike.
    checked = catalog_facts(1.0, facts["redshift"], {"Omega_m": 0.3, "h": 0.7}, None)
    return 1 / (1 + float(checked["redshift"]))


def little_h(facts: Facts, path: str) -> float:
    """Hubble constant over 100 km/s/Mpc, which the units of a column need."""
    if facts.get("cosmology") is None:
        raise MissingAttributeError(
            f"No `cosmology` in {path!r}, whose h its units need. Pass open_catalog(..., "
            "cosmology={'Omega_m': 0.268, 'Omega_b': 0.0445, 'h': 0.71, ...})"
        )
    return float(catalog_facts(1.0, 0.0, facts["cosmology"], None)["cosmology"]["h"])


def conversion(column: str, unit: str, facts: Facts, path: str) -> tuple[float, bool]:
    """Factor of a unit to that of a catalogue, and whether it is a logarithm.

    Raises
    ------
    CatalogError
        If the unit is unknown.
    """
    a = (lambda: scale_factor(facts, path)) if column == "velocity" else None
    h = (lambda: little_h(facts, path)) if column != "velocity" else None
    known: dict[str, dict[str, Any]] = {
        "position": {
            "Mpc/h": 1.0, "kpc/h": 1e-3, "Gpc/h": 1e3, "Mpc": h,
            "kpc": h and (lambda: 1e-3 * h()), "box": lambda: _side(facts, path),
        },
        "velocity": {
            "km/s": 1.0, "m/s": 1e-3, "c": 299792.458,
            "km sqrt(a)/s": a and (lambda: math.sqrt(a())), "km/s/a": a and (lambda: 1 / a()),
        },
        "mass": {
            "Msun/h": 1.0, "1e10 Msun/h": 1e10, "Msun": h,
            "1e10 Msun": h and (lambda: 1e10 * h()),
        },
    }  # fmt: skip
    if column == "mass" and unit.startswith("log10(") and unit.endswith(")"):
        unit = f"log10 {unit[6:-1]}"
    log = column == "mass" and unit.startswith("log10 ")
    factor = known[column].get(unit.removeprefix("log10 ") if log else unit)
    if factor is None:
        names = [*known[column], *(["log10 Msun/h", "log10 Msun"] if column == "mass" else [])]
        raise CatalogError(f"units={{{column!r}: {unit!r}}}; expected one of {listing(names)}")
    return float(factor() if callable(factor) else factor), log


def _side(facts: Facts, path: str) -> float:
    try:
        return float(facts["box_size"])
    except TypeError:
        raise MissingAttributeError(
            f"Positions in units of the box need one side of the box, and {path!r} says "
            f"{facts['box_size']!r}: pass box_size=300.0"
        ) from None


def number(attrs: Mapping[str, Any], key: str, path: str) -> float:
    """A number of a header.

    Raises
    ------
    StoreError
        If it is missing, or none.
    """
    try:
        value = attrs[key]
        value = float(value[0] if isinstance(value, list) else value)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise StoreError(
            f"{path!r}: the header says {key}={attrs.get(key)!r}; expected a number"
        ) from None
    if not math.isfinite(value):
        raise StoreError(f"{path!r}: the header says {key}={value}; expected a number")
    return value


def count(attrs: Mapping[str, Any], key: str, path: str) -> int:
    """A number of things of a header."""
    value = number(attrs, key, path)
    if value < 0 or value != int(value):
        raise StoreError(f"{path!r}: the header says {key}={value:g}; expected how many")
    return int(value)


def near(value: float, *others: float) -> float:
    """``value``, or that of the others which it is but for rounding."""
    return next((other for other in others if math.isclose(value, other, rel_tol=2e-3)), value)
