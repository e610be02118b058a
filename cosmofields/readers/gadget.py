"""HDF5 of Gadget and its kin: snapshots of Gadget-2 to 4, AREPO and SWIFT; FoF and SUBFIND groups.

Gadget's units are declared in the header, in `Parameters` or nowhere, and always contain h.  Its
velocities are a trap each: particles u = v / sqrt(a), groups a^2 dx/dt = a v, subhalos v.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from ..catalog import UnitsWarning
from ..conventions import CatalogError, MissingVariableError, StoreError, listing, parse_box_size
from ..cosmology import as_cosmology
from .dialect import MPC, MSUN, Ask, View, count, little_h, merged, near, number, scale_factor
from .parts import Table

MATTER = 27.75  # 1e10 Msun/h in a (Mpc/h)^3 of critical density
# A box of more is in kpc/h: as Mpc/h it would be wider than the observable universe.
SURELY_KPC = 20_000.0


def is_snapshot(table: Table) -> bool:
    """Whether a file is a snapshot of Gadget or AREPO."""
    header = table.attrs.get("Header", {})
    return "NumPart_ThisFile" in header and "BoxSize" in header


def is_swift(table: Table) -> bool:
    """Whether a file is a snapshot of SWIFT."""
    return is_snapshot(table) and any(
        "Unit length in cgs (U_L)" in table.attrs.get(name, {})
        for name in ("Units", "InternalCodeUnits")
    )


def is_groups(table: Table) -> bool:
    """Whether a file is a catalogue of FoF groups, with subhalos or without."""
    return "Ngroups_ThisFile" in table.attrs.get("Header", {})


def snapshot(table: Table, ask: Ask) -> View:
    """Particles of one type, by default of dark matter."""
    header, facts = _header(table, ask, "NumPart_ThisFile")
    kind, index = _particle_type(table, ask, header)
    masses = header.get("MassTable", [0.0] * 6)
    fixed = float(masses[index]) if index < len(masses) else 0.0
    totals = _totals(header, table.path)
    here = {key.rpartition("/")[2] for key in table.parts if key.startswith(f"{kind}/")}
    names = {"position": "Coordinates", "velocity": "Velocities"}
    if "Masses" in here and not fixed:
        names["mass"] = "Masses"
    source: dict[str, Any] = {}
    length, mass = _units(table, header, ask)
    weight = sum(m * n for m, n in zip(masses, totals, strict=False))
    if length is None:
        box = number(header, "BoxSize", table.path)
        length = _length_by_density(box, weight * (mass or 1e10) / 1e10, facts, table.path)
        source["assumed"] = f"positions in {'kpc/h' if length == 1e-3 else 'Mpc/h'}"
    mass = mass or 1e10
    if fixed:
        source["particle_mass"] = fixed * mass
    _box(header, facts, ask, length, table.path)
    _doubt_density(weight * mass / 1e10, facts)
    a = scale_factor(facts, table.path)
    return View(
        facts,
        f"{kind}/",
        names,
        {
            "position": (length, _length_name(length)),
            "velocity": (math.sqrt(a), "km sqrt(a)/s"),
            "mass": (mass, _mass_name(mass)),
        },
        dim="particle",
        files=count(header, "NumFilesPerSnapshot", table.path)
        if "NumFilesPerSnapshot" in header
        else None,
        rows=_nth(header, "NumPart_ThisFile", index, table.path),
        source=source | {"particle_type": kind},
    )


def swift(table: Table, ask: Ask) -> View:
    """Particles of one type of SWIFT, whose units know no h."""
    path = table.path
    header = table.attrs["Header"]
    kind, index = _particle_type(table, ask, header)
    units = table.attrs.get("Units") or table.attrs.get("InternalCodeUnits", {})
    cm = number(units, "Unit length in cgs (U_L)", path)
    gram = number(units, "Unit mass in cgs (U_M)", path)
    second = number(units, "Unit time in cgs (U_t)", path)
    if min(cm, gram, second) <= 0:
        raise StoreError(f"{path!r}: units of {cm:g} cm, {gram:g} g and {second:g} s")
    said = table.attrs.get("Cosmology", {})
    facts = merged(ask)
    if facts["redshift"] is None and "Redshift" in header:
        facts["redshift"] = _redshift(header, path)
    elif facts["redshift"] is None and "Scale-factor" in header:  # initial conditions
        facts["redshift"] = round(1 / number(header, "Scale-factor", path) - 1, 9)
    if facts["cosmology"] is None and {"Omega_m", "h"} <= said.keys():
        facts["cosmology"] = {
            key: number(said, key, path) for key in ("Omega_m", "Omega_b", "h")
            if key in said and number(said, key, path) > 0
        }  # fmt: skip
    h, a = little_h(facts, path), scale_factor(facts, path)
    length = near(cm / MPC, 1.0, 1e-3) * h
    mass = near(gram / MSUN, 1e10, 1.0) * h
    speed = near(cm / second / 1e5, 1.0)
    _box(header, facts, ask, length, path)
    # A column may be stored as comoving or as physical, and says so.
    length *= _to_physical(table, f"{kind}/Coordinates", a, 1.0) / a
    speed *= _to_physical(table, f"{kind}/Velocities", a, 0.0)
    return View(
        facts,
        f"{kind}/",
        {"position": "Coordinates", "velocity": "Velocities", "mass": "Masses"},
        {
            "position": (length, f"{cm / MPC:.6g} Mpc without h"),
            "velocity": (speed, f"{cm / second / 1e5:.6g} km/s"),
            "mass": (mass, f"{gram / MSUN:.6g} Msun without h"),
        },
        dim="particle",
        # A virtual file stands for all others, and counts the particles of all.
        files=1 if _is_virtual(header) else count(header, "NumFilesPerSnapshot", path),
        rows=_nth(header, "NumPart_ThisFile", index, path),
        source={"particle_type": kind},
    )


def groups(table: Table, ask: Ask) -> View:
    """FoF groups, or with ``group="Subhalo"`` the subhalos of SUBFIND."""
    path = table.path
    header, facts = _header(table, ask, "Ngroups_ThisFile")
    wanted = (ask.group or "Group").strip("/")
    if wanted not in ("Group", "Subhalo"):
        raise MissingVariableError(f"group={ask.group!r} in {path!r}; expected Group or Subhalo")
    length, mass = _units(table, header, ask)
    source: dict[str, Any] = {}
    if length is None:
        length = _length_by_density(number(header, "BoxSize", path), 0.0, facts, path)
        source["assumed"] = f"positions in {_length_name(length)}"
    mass = mass or 1e10
    _box(header, facts, ask, length, path)
    a = scale_factor(facts, path)
    speed = (1 / a, "km/s/a") if wanted == "Group" else (1.0, "km/s")
    key = next(
        (k for k in ("Nsubhalos_ThisFile", "Nsubgroups_ThisFile") if k in header),
        "Nsubhalos_ThisFile",
    )
    rows = count(header, "Ngroups_ThisFile" if wanted == "Group" else key, path)
    return View(
        facts,
        f"{wanted}/",
        {name: f"{wanted}{last}" for name, last in
         {"position": "Pos", "velocity": "Vel", "mass": "Mass"}.items()},
        {
            "position": (length, _length_name(length)),
            "velocity": speed,
            "mass": (mass, _mass_name(mass)),
        },
        files=count(header, "NumFiles", path) if "NumFiles" in header else None,
        rows=rows,
        source=source,
    )  # fmt: skip


def _to_physical(table: Table, name: str, a: float, power: float) -> float:
    """The factor by which a column of SWIFT becomes physical, a to the ``power`` by default.

    From the conversion factors beside it: the exponent that stands there too is wrong in files
    that swiftsimio wrote.
    """
    attrs = table.attrs.get(name, {})
    start = "Conversion factor to "
    plain = start + "CGS (not including cosmological corrections)"
    full = start + "physical CGS (including cosmological corrections)"
    if plain not in attrs or full not in attrs:
        return a ** float(attrs.get("a-scale exponent", power))
    ratio = number(attrs, full, table.path) / (number(attrs, plain, table.path) or math.nan)
    if not 0 < ratio < 1e6:
        raise StoreError(f"{table.path!r}: {name} becomes physical by a factor of {ratio:g}")
    return ratio


def _header(table: Table, ask: Ask, key: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The header, and the facts in it but for the box size, whose unit is yet to be known."""
    header = table.attrs.get("Header", {})
    if key not in header:
        raise StoreError(f"{table.path!r} has no Header with {key}: another format, or damaged")
    facts = merged(ask)
    if facts["redshift"] is None and "Redshift" in header:
        facts["redshift"] = _redshift(header, table.path)
    said = {**table.attrs.get("Parameters", {}), **header}
    if facts["cosmology"] is None and {"Omega0", "HubbleParam"} <= said.keys():
        baryons = number(said, "OmegaBaryon", table.path) if "OmegaBaryon" in said else 0.0
        facts["cosmology"] = {
            "Omega_m": number(said, "Omega0", table.path),
            "h": number(said, "HubbleParam", table.path),
            # Runs of dark matter alone say 0.
            **({"Omega_b": baryons} if baryons > 0 else {}),
        }
    return header, facts


def _redshift(header: Mapping[str, Any], path: str) -> float:
    redshift = number(header, "Redshift", path)
    return 0.0 if abs(redshift) < 1e-8 else redshift  # 1 / a - 1 is 4e-16 today


def _units(table: Table, header: Mapping[str, Any], ask: Ask) -> tuple[float | None, float | None]:
    """Mpc/h and Msun/h of a unit of length and of mass, where they are declared."""
    said = {**table.attrs.get("Parameters", {}), **table.attrs.get("Units", {}), **header}
    found: list[float | None] = []
    for key, one, known in (
        ("UnitLength_in_cm", MPC, (1.0, 1e-3)),
        ("UnitMass_in_g", MSUN, (1e10, 1.0)),
    ):
        value = number(said, key, table.path) if key in said else 0.0
        found.append(near(value / one, *known) if value > 0 else None)
    given = ask.units.get("position")
    if given in ("Mpc/h", "kpc/h"):
        found[0] = 1.0 if given == "Mpc/h" else 1e-3
    return found[0], found[1]


def _length_by_density(box: float, weight: float, facts: Mapping[str, Any], path: str) -> float:
    """Unit of length from the matter that a box holds, or from a side that fits one unit alone.

    Parameters
    ----------
    box : float
        Side in the unit that is sought.
    weight : float
        Of all particles, in 1e10 Msun/h; 0 if unknown.
    """
    if box > SURELY_KPC:
        return 1e-3
    if weight > 0 and facts["cosmology"] and box > 0:
        for unit in (1.0, 1e-3):
            share = weight / (MATTER * facts["cosmology"]["Omega_m"] * (box * unit) ** 3)
            if 0.01 < share < 3:
                return unit
    raise CatalogError(
        f"{path!r} does not say in which unit its lengths are, and BoxSize={box:g} fits Mpc/h and "
        "kpc/h. Say it: open_catalog(..., units={'position': 'kpc/h'})"
    )


def _doubt_density(weight: float, facts: Mapping[str, Any]) -> None:
    """Warn if the particles of one mass weigh more than the matter of the box."""
    if not facts["cosmology"]:
        return
    cosmology = as_cosmology(facts["cosmology"])
    volume = math.prod(parse_box_size(facts["box_size"]))
    share = weight / (MATTER * cosmology.Omega_m * volume)
    if share > 1.2:
        warnings.warn(
            # The same words for each file of a snapshot, so that they are said once.
            f"The particles of the snapshot weigh {share:.3g} times the matter of the box (without "
            f"h, it would be {1 / cosmology.h:.3g}). Are masses in Msun/h, and BoxSize in the unit "
            "of the header?",
            UnitsWarning,
            stacklevel=2,
        )


def _mass_name(unit: float) -> str:
    return {1.0: "Msun/h", 1e10: "1e10 Msun/h"}.get(unit, f"{unit:.6g} Msun/h")


def _length_name(unit: float) -> str:
    return {1.0: "Mpc/h", 1e-3: "kpc/h"}.get(unit, f"{unit:.6g} Mpc/h")


def _box(
    header: Mapping[str, Any], facts: dict[str, Any], ask: Ask, length: float, path: str
) -> None:
    if "box_size" in ask.given:
        return
    sides = header.get("BoxSize")
    if isinstance(sides, list) and len(sides) == 3:
        values = [number({"BoxSize": side}, "BoxSize", path) * length for side in sides]
        facts["box_size"] = values[0] if len(set(values)) == 1 else values
    else:
        facts["box_size"] = number(header, "BoxSize", path) * length


def _particle_type(table: Table, ask: Ask, header: Mapping[str, Any]) -> tuple[str, int]:
    """Group of the particles, and the number in its name."""
    there = sorted({key.split("/")[0] for key in table.parts if key.startswith("PartType")})
    named = ask.names["position"]
    kind = ask.group or (named.strip("/").split("/")[0] if isinstance(named, str) else "PartType1")
    kind = kind.strip("/") if kind.strip("/").startswith("PartType") else "PartType1"
    digits = kind.removeprefix("PartType")
    if not digits.isdigit():
        raise MissingVariableError(f"group={ask.group!r} in {table.path!r}; it has {there}")
    counts = header.get("NumPart_Total", header["NumPart_ThisFile"])
    if isinstance(counts, list) and int(digits) < len(counts) and counts[int(digits)] == 0:
        raise MissingVariableError(
            f"No particles of {kind} in {table.path!r}; it has {listing(there) or 'none'}: "
            "group='PartType0', say"
        )
    return kind, int(digits)


def _totals(header: Mapping[str, Any], path: str) -> list[float]:
    low = header.get("NumPart_Total", header["NumPart_ThisFile"])
    high = header.get("NumPart_Total_HighWord", 0)
    low = low if isinstance(low, list) else [low]
    high = high if isinstance(high, list) else [high] * len(low)
    try:
        return [int(n) + 2.0**32 * int(m) for n, m in zip(low, high, strict=False)]
    except (TypeError, ValueError):
        raise StoreError(f"{path!r}: the header says NumPart_Total={low!r}") from None


def _nth(header: Mapping[str, Any], key: str, index: int, path: str) -> int:
    values = header.get(key)
    values = values if isinstance(values, list) else [values]
    if index >= len(values):
        raise StoreError(f"{path!r}: the header says {key}={values!r}; expected one for each type")
    return count({key: values[index]}, key, path)


def _is_virtual(header: Mapping[str, Any]) -> bool:
    return bool(header.get("Virtual", 0))


def is_pysco(table: Table) -> bool:
    """Whether a file is a snapshot of PySCo."""
    return {"position", "velocity"} <= table.parts.keys() and {
        "boxlen", "aexp", "unit_l", "unit_t"
    } <= table.attrs[""].keys()  # fmt: skip


def pysco(table: Table, ask: Ask) -> View:
    """Particles of PySCo: positions in units of the box, velocities supercomoving."""
    path, header = table.path, table.attrs[""]
    facts = merged(ask)
    side, a = number(header, "boxlen", path), number(header, "aexp", path)
    speed = number(header, "unit_l", path) / (number(header, "unit_t", path) or math.nan)
    # unit_l is a boxlen 100 / H0 in km, unit_t is a^2 / H0.
    if not (0 < a <= 1.001 and math.isclose(speed, 100 * side / a, rel_tol=0.01)):
        raise StoreError(
            f"{path!r}: unit_l / unit_t is {speed:g} km/s; expected 100 boxlen / aexp, "
            f"{100 * side / (a or math.nan):g}"
        )
    facts["box_size"] = side if facts["box_size"] is None else facts["box_size"]
    if facts["redshift"] is None:
        facts["redshift"] = max(round(1 / a - 1, 9), 0.0)
    if facts["cosmology"] is None and {"Om_m", "H0"} <= header.keys():
        facts["cosmology"] = {
            "Omega_m": number(header, "Om_m", path),
            "h": number(header, "H0", path) / 100,
        }
    return View(
        facts,
        names={"position": "position", "velocity": "velocity"},
        units={"position": (side, "box"), "velocity": (speed, "supercomoving")},
        dim="particle",
    )
