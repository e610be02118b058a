"""Units at the door: what no box holds is refused, what is unlikely is warned of, with numbers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cosmofields.catalog import UnitsWarning, doubts, from_arrays
from cosmofields.catalog.plausible import expected_rms
from cosmofields.conventions import (
    CatalogError,
    MissingAttributeError,
    MissingVariableError,
    StoreError,
)
from cosmofields.readers import open_catalog
from tests.format_files import COSMOLOGY, FACTS, SIDE, A, Z, gadget2, gadget4, make_table, subfind


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return make_table()


def stored(folder: Path, table: dict[str, Any]) -> Path:
    """The columns as they are given, in an HDF5 table."""
    with h5py.File(folder / "a.h5", "w") as file:
        file.update(table)
    return folder / "a.h5"


# --- what is refused ---


@pytest.mark.parametrize(
    ("column", "factor", "message"),
    [
        ("position", 1e3, r"positions lie outside.*Are they in kpc/h.*units=\{'position': 'kpc/h'"),
        ("velocity", 1e3, r"rms of a component of `velocity` is 2\.\d+e\+05;.*look like m/s"),
        ("velocity", 1e5, "look like cm/s"),
        ("velocity", 1 / 299792.458, r"is 0\.0008\d+; expected.*look like units of c"),
        ("mass", 1e-10, "looks like units of 1e10 Msun/h"),
        ("mass", 1e10, r"The median of `mass` is .*e\+22, more than any halo holds"),
    ],
)
def test_surely_wrong(
    column: str, factor: float, message: str, table: dict[str, Any], tmp_path: Path
) -> None:
    wrong = {**table, column: table[column] * factor}
    ds = open_catalog(stored(tmp_path, wrong), **FACTS)
    with pytest.raises(CatalogError, match=message):
        ds[column].compute()
    with pytest.raises(CatalogError, match=message):
        from_arrays(**wrong, **FACTS)


def test_positions_about_zero_and_their_origin(table: dict[str, Any], tmp_path: Path) -> None:
    path = stored(tmp_path, {**table, "position": table["position"] - SIDE / 2})
    with pytest.raises(
        CatalogError, match=r"centred on 0.*origin=-150 \(Mpc/h; in the shell: --origin -150\)"
    ):
        open_catalog(path, **FACTS)["position"].compute()
    for origin in (-SIDE / 2, [-SIDE / 2] * 3):
        got = open_catalog(path, **FACTS, origin=origin)
        np.testing.assert_allclose(got["position"], table["position"], atol=2e-5)
        assert got.attrs["source"]["converted"] == {"position": "moved by 150, 150, 150 Mpc/h"}
    for origin in ("corner", [1, 2], np.nan):
        with pytest.raises(CatalogError, match="expected one number in Mpc/h, or three"):
            open_catalog(path, **FACTS, origin=origin)


def test_a_box_wider_than_the_universe(table: dict[str, Any], tmp_path: Path) -> None:
    facts = {**FACTS, "box_size": 25_000}
    message = r"box_size=25000 Mpc/h is wider.*box_size=25, and positions in kpc/h"
    with pytest.raises(CatalogError, match=message):
        open_catalog(stored(tmp_path, table), **facts)
    with pytest.raises(CatalogError, match=message):
        from_arrays(**table, **facts)


# --- what is warned of ---


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("velocity", lambda v: v / 100, r"is 2\.4\d+ km/s; peculiar velocities have 100 to 1000"),
        ("velocity", lambda v: v * 20, r"is 49\d\d km/s; peculiar"),
        (
            "velocity",
            lambda v: v * 0.5,
            r"linear theory expects about 2\d\d in this box at z = 0.5",
        ),
        ("mass", lambda m: m * 400, "masses add up to .* of all matter in the box"),
        ("position", lambda x: x / SIDE, r"reach up to .*units=\{'position': 'box'\}"),
        ("mass", lambda m: 1e10 * np.log10(m), r"masses lie between .*units=\{'mass': 'log10"),
        (
            "position",
            lambda x: x * [1, 0.6, 0] + [0, 0, 0.59],
            r"y spans .* of 300 Mpc/h, z spans 0.59 to 0.59 of 300 Mpc/h.*are they angles",
        ),
        ("position", lambda x: x * 0.6774, r"0\.677 of box_size=300, .* in Mpc and not in Mpc/h"),
        (
            "position",
            lambda x: x * 0.98,
            r"0\.98 of box_size=300, and the rest is empty.*span 29\d",
        ),
        (
            "position",
            lambda x: x * [1, 1, 0.98],
            r"z spans 0\.\d+ to 29\d.* of 300 Mpc/h. Is box_size",
        ),
    ],
)
def test_doubts(
    column: str, change: Any, message: str, table: dict[str, Any], tmp_path: Path
) -> None:
    ds = open_catalog(stored(tmp_path, {**table, column: change(table[column])}), **FACTS)
    with pytest.warns(UnitsWarning, match=rf"a\.h5': .*{message}"):
        ds[column].compute()


@pytest.mark.parametrize("rows", [1000, 100_000])
@pytest.mark.parametrize(
    "coarse",
    [
        lambda x: x,
        np.rint,
        lambda x: np.rint(x / 10) * 10,
        np.floor,
        lambda x: (np.floor(x / 2.5) + 0.5) * 2.5,
        lambda x: x**3 / SIDE**2,  # crowded at one face
    ],
)
def test_no_doubt_about_a_box_that_is_full(coarse: Any, rows: int) -> None:
    """Coordinates of few digits, in the middles of cells, few of them: what fills a box does."""
    x = np.random.default_rng(rows).uniform(0, SIDE, (rows, 3))
    facts = {"redshift": 0.5, "cosmology": FACTS["cosmology"]}
    assert doubts("position", coarse(x) % SIDE, [SIDE] * 3, facts, whole=True) is None


@pytest.mark.parametrize(
    ("redshift", "unit", "factor"), [(3.0, "km sqrt(a)/s", 2.0), (1.5, "km/s/a", 0.4)]
)
def test_velocities_of_gadget(redshift: float, unit: str, factor: float, tmp_path: Path) -> None:
    """Taken for peculiar ones they are told by linear theory, which says how to convert them."""
    facts = {"box_size": 500.0, "redshift": redshift, "cosmology": {**COSMOLOGY, "sigma8": 0.82}}
    rms = expected_rms(500.0, facts)
    rng = np.random.default_rng(3)
    table = {
        "position": rng.uniform(0, 500, (3000, 3)),
        "velocity": rng.normal(0, rms, (3000, 3)),
        "mass": np.full(3000, 1e13),
    }
    open_catalog(stored(tmp_path, table), **facts).compute()
    path = stored(tmp_path, {**table, "velocity": factor * table["velocity"]})
    with pytest.warns(UnitsWarning, match=re.escape(f"units={{'velocity': '{unit}'")):
        open_catalog(path, **facts).compute()
    got = open_catalog(path, **facts, units={"velocity": unit}).compute()
    np.testing.assert_allclose(got["velocity"], table["velocity"], rtol=1e-5)


def test_linear_theory_is_that_of_the_reference() -> None:
    """A wide box at z = 0.59 (science of the paper): 296 km/s; 0.883^2 of it in one of 300."""
    facts = {"redshift": 0.59, "cosmology": {"Omega_m": 0.268, "h": 0.71, "sigma8": 0.83}}
    assert expected_rms(4000, facts) == pytest.approx(296, rel=0.02)
    assert expected_rms(300, facts) / 296 == pytest.approx(0.883, rel=0.01)
    # And grows as a H f D does: towards today, but for the last expansion.
    later = {**facts, "redshift": 0.0}
    assert 1.0 < expected_rms(4000, later) / expected_rms(4000, facts) < 1.2


# --- what is no reason to worry ---


@pytest.mark.parametrize(
    "change",
    [
        {"velocity": np.zeros((3000, 3))},  # halos at rest
        {"mass": np.full(3000, 2e12)},
        {"position": np.full((3000, 3), SIDE)},
    ],
)
def test_no_false_alarm(change: dict[str, Any], table: dict[str, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "position" in change:  # all on one corner: odd, but a test of somebody's
            warnings.filterwarnings("ignore", "3000 positions reach up to", UnitsWarning)
            warnings.filterwarnings("ignore", ".*3000 positions reach", UnitsWarning)
        open_catalog(stored(tmp_path, {**table, **change}), **FACTS).compute()


def test_few_rows_say_nothing(tmp_path: Path) -> None:
    tiny = {
        "position": np.full((99, 3), 0.5),
        "velocity": np.full((99, 3), 1e-6),
        "mass": np.full(99, 1e16),
    }
    open_catalog(stored(tmp_path, tiny), **FACTS).compute()
    from_arrays(**tiny, **FACTS)


def test_small_boxes_have_small_velocities(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    table = {
        "position": rng.uniform(0, 25, (2000, 3)),
        "velocity": rng.normal(0, 60, (2000, 3)),
        "mass": np.full(2000, 1e10),
    }
    open_catalog(stored(tmp_path, table), **{**FACTS, "box_size": 25.0}).compute()


def test_chunks_may_be_regions(table: dict[str, Any], tmp_path: Path) -> None:
    """Files are ordered in space: a chunk of a corner is no sign of another unit."""
    order = np.lexsort(table["position"].T // 100)
    rows = {name: values[order] for name, values in table.items()}
    open_catalog(stored(tmp_path, rows), **FACTS, rows=1000).compute()


# --- units that are given ---


@pytest.mark.parametrize(
    ("column", "unit", "factor"),
    [
        ("position", "kpc/h", 1e3), ("position", "Gpc/h", 1e-3), ("position", "Mpc", 1 / 0.6774),
        ("position", "kpc", 1e3 / 0.6774), ("position", "box", 1 / SIDE),
        ("velocity", "m/s", 1e3), ("velocity", "c", 1 / 299792.458),
        ("velocity", "km sqrt(a)/s", A**-0.5), ("velocity", "km/s/a", A),
        ("mass", "1e10 Msun/h", 1e-10), ("mass", "Msun", 1 / 0.6774),
        ("mass", "1e10 Msun", 1e-10 / 0.6774), ("mass", "log10 Msun/h", None),
        ("mass", "log10 Msun", None),
    ],
)  # fmt: skip
def test_given_units(
    column: str, unit: str, factor: float | None, table: dict[str, Any], tmp_path: Path
) -> None:
    if factor is None:
        values = np.log10(table[column] / (0.6774 if unit == "log10 Msun" else 1))
    else:
        values = table[column] * factor
    path = stored(tmp_path, {**table, column: values})
    ds = open_catalog(path, **FACTS, units={column: unit})
    np.testing.assert_allclose(ds[column], table[column], rtol=1e-5, atol=2e-5)
    said = ds.attrs["source"]["converted"][column]
    assert said.startswith(f"10**({unit})" if factor is None else unit)


def test_units_that_are_none(table: dict[str, Any], tmp_path: Path) -> None:
    path = stored(tmp_path, table)
    with pytest.raises(
        CatalogError, match=r"units=\{'position': 'parsec'\}; expected one of Mpc/h"
    ):
        open_catalog(path, **FACTS, units={"position": "parsec"})
    with pytest.raises(CatalogError, match="'weight'.*; expected position, velocity or mass"):
        open_catalog(path, **FACTS, units={"weight": "kg"})
    with pytest.raises(CatalogError, match="expected one of km/s"):
        open_catalog(path, **FACTS, units={"velocity": "log10 km/s"})


def test_units_need_their_facts(table: dict[str, Any], tmp_path: Path) -> None:
    path = stored(tmp_path, table)
    for key, units in (
        ("redshift", {"velocity": "km/s/a"}),
        ("cosmology", {"mass": "Msun"}),
        ("box_size", {"position": "box"}),
    ):
        facts = {name: value for name, value in FACTS.items() if name != key}
        with pytest.raises(MissingAttributeError, match=key):
            open_catalog(path, **facts, units=units)


# --- what Gadget's headers leave open ---


def test_a_length_that_nothing_declares(table: dict[str, Any], tmp_path: Path) -> None:
    path, _ = subfind(tmp_path, table)
    for name in tmp_path.glob("*.hdf5"):
        with h5py.File(name, "r+") as file:
            file["Header"].attrs["BoxSize"] = 15_000.0
    with pytest.raises(CatalogError, match=r"BoxSize=15000 fits Mpc/h and kpc/h.*'kpc/h'"):
        open_catalog(path)
    ds = open_catalog(path, units={"position": "kpc/h"})
    assert ds.attrs["box_size"] == 15.0


def test_particles_heavier_than_the_box(table: dict[str, Any], tmp_path: Path) -> None:
    """Masses without h, as the one mass of all particles: 1 / h of the matter is there."""
    _, _ = gadget4(tmp_path, table)
    each = 27.75 * 0.3089 * SIDE**3 / 3000 / 0.6774
    for name in tmp_path.glob("*.hdf5"):
        with h5py.File(name, "r+") as file:
            file["Header"].attrs["MassTable"] = np.array([0.0, each])
    with pytest.warns(UnitsWarning, match=r"weigh 1\.48 times the matter.*without h, .* 1\.48"):
        ds = open_catalog(str(tmp_path / "*.hdf5"))
    assert ds.attrs["source"]["particle_mass"] == pytest.approx(each * 1e10)
    assert "mass" not in ds


def test_files_that_are_not_all_there(table: dict[str, Any], tmp_path: Path) -> None:
    subfind(tmp_path, table)
    with pytest.raises(StoreError, match=r"is one of 3 files.*1 are given.*tab_067\.\*\.hdf5'\)"):
        open_catalog(tmp_path / "fof_subhalo_tab_067.0.hdf5")
    (tmp_path / "fof_subhalo_tab_067.1.hdf5").unlink()
    with pytest.raises(StoreError, match="one of 3 files of a catalogue, and 2 are given"):
        open_catalog(tmp_path)


def test_subhalos_and_other_masses(table: dict[str, Any], tmp_path: Path) -> None:
    path, _ = subfind(tmp_path, table)
    ds = open_catalog(path, group="Subhalo")
    np.testing.assert_allclose(ds["velocity"], table["velocity"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ds["mass"], table["mass"] / 2, rtol=1e-6)
    ds = open_catalog(path, mass="Group_M_Crit200")
    np.testing.assert_allclose(ds["mass"], table["mass"] * 0.75, rtol=1e-6)
    with pytest.raises(MissingVariableError, match="expected Group or Subhalo"):
        open_catalog(path, group="Halo")


def test_another_redshift_than_the_headers(table: dict[str, Any], tmp_path: Path) -> None:
    """What is given counts, in the conversion too."""
    path, _ = subfind(tmp_path, table)
    got = open_catalog(path, redshift=1.0)
    assert Z != got.attrs["redshift"] == 1.0
    np.testing.assert_allclose(got["velocity"], table["velocity"] * A * 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("side", "unit"), [(300.0, "Mpc/h"), (15_000.0, "kpc/h")])
def test_a_length_that_the_matter_of_the_box_tells(
    side: float, unit: str, table: dict[str, Any], tmp_path: Path
) -> None:
    """Of Gadget-2, whose header has one mass for all particles, and no units."""
    factor = 1.0 if unit == "Mpc/h" else 1e-3
    path, _ = gadget2(tmp_path, {**table, "position": table["position"] * side / SIDE / 1e3})
    with h5py.File(path, "r+") as file:
        file["Header"].attrs["BoxSize"] = side
        each = 27.75 * 0.3089 * (side * factor) ** 3 / 3000
        file["Header"].attrs["MassTable"] = np.array([0, each, 0, 0, 0, 0])
    ds = open_catalog(path)
    assert ds.attrs["box_size"] == pytest.approx(side * factor)
    assert ds.attrs["source"]["assumed"] == f"positions in {unit}"
    expected = table["position"] * side * factor / SIDE
    np.testing.assert_allclose(ds["position"], expected, rtol=1e-5, atol=1e-4)
