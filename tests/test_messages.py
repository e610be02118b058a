"""What a newcomer meets: each message says what was given, what was expected, what to type."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.catalog import UnitsWarning
from cosmofields.cli import main
from cosmofields.conventions import CosmofieldsError

COSMOLOGY = {"Omega_m": 0.268, "Omega_b": 0.0445, "h": 0.71, "n_s": 0.968, "sigma8": 0.83}
BOX: dict[str, Any] = {"box_size": 100.0, "redshift": 0.59, "cosmology": COSMOLOGY}
OPTIONS = (
    "--box-size 100 --redshift 0.59 "
    "--cosmology Omega_m=0.268,Omega_b=0.0445,h=0.71,n_s=0.968,sigma8=0.83"
).split()


@pytest.fixture
def columns(halos: xr.Dataset) -> tuple[Any, Any, Any]:
    return tuple(halos[name].values for name in ("position", "velocity", "mass"))


@pytest.fixture
def csv(columns: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a table of the halos after a change: ``csv(lambda t: t.drop(columns="mass"))``."""
    monkeypatch.chdir(tmp_path)
    position, velocity, mass = columns
    table = pd.DataFrame(
        np.hstack([position, velocity, mass[:, None]]), columns="x y z vx vy vz mass".split()
    )

    def write(change: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table) -> str:
        change(table.copy()).to_csv("halos.csv", index=False)
        return "halos.csv"

    return write


def says(*parts: str) -> Any:
    """Expect an error of ours that says each of these, in this order."""
    return pytest.raises(CosmofieldsError, match="(?s)" + ".*".join(map(re.escape, parts)))


# --- arrays ---


def test_arrays(columns: tuple[Any, Any, Any]) -> None:
    position, velocity, mass = columns
    with says("shape (3, 5000)", "expected (n, 3)", "position.T"):
        cf.from_arrays(position.T, velocity, mass, **BOX)
    with says("shape (5000,)", "expected (n, 3)", "np.stack([x, y, z], axis=1)"):
        cf.from_arrays(position[:, 0], velocity, mass, **BOX)
    with says("position='halos.h5'", "expected an array (n, 3)", "open_catalog('halos.h5'"):
        cf.from_arrays("halos.h5", **BOX)
    with says("looks like log10", "expected Msun/h", "10**mass", "--units 'mass=log10 Msun/h'"):
        cf.from_arrays(position, velocity, np.log10(mass), **BOX)
    with says("looks like units of 1e10", "1e10 * mass", "--units 'mass=1e10 Msun/h'"):
        cf.from_arrays(position, velocity, mass / 1e10, **BOX)
    with says("outside the box", "right ascension, declination and redshift: convert them"):
        sky = position * [3.59, 1.78, 0] + [0, -89, 0.59]
        cf.from_arrays(sky, velocity, mass, **BOX)
    with says("has 'Omega_B'; did you mean 'Omega_b'?"):
        cf.from_arrays(
            position, velocity, mass, **BOX | {"cosmology": {**COSMOLOGY, "Omega_B": 0.05}}
        )
    with says("h=0.71 and H0=60, which is not 100 h"):
        cf.from_arrays(position, velocity, mass, **BOX | {"cosmology": {**COSMOLOGY, "H0": 60}})
    with says("outside the box", "0 to 100 Mpc/h", "centred on 0", "--origin -50"):
        cf.from_arrays(position - 50, velocity, mass, **BOX)
    with says("outside the box", "in kpc/h", "--units position=kpc/h"):
        cf.from_arrays(position * 1000, velocity, mass, **BOX)
    with says("redshift=-1", "expected a number above -1, e.g. 0.59"):
        cf.from_arrays(position, velocity, mass, **{**BOX, "redshift": -1})


def test_another_thing_than_a_catalogue(columns: tuple[Any, Any, Any]) -> None:
    position = columns[0]
    for call in (cf.select, cf.to_redshift_space, cf.paint):
        with says("A catalogue is a Dataset", "ndarray was given", "from_arrays(", "open_catalog("):
            call(position)
    with says("A ndarray was given", "expected paths", "from_arrays("):
        cf.open_catalog(position, **BOX)


def test_twice_in_redshift_space(tracers: xr.Dataset) -> None:
    with says("in redshift space already (los='z')", "leave to_redshift_space out"):
        cf.to_redshift_space(tracers, "z")


def test_cosmologies() -> None:
    astropy = pytest.importorskip("astropy.cosmology")
    curved = astropy.LambdaCDM(H0=70, Om0=0.3, Ode0=0.8)
    with says("is not flat LCDM", "FlatLambdaCDM", "{'Omega_m': 0.268"):
        cf.from_arrays(np.zeros((1, 3)), los="z", **{**BOX, "cosmology": curved})


# --- files ---


def test_files(csv: Any, tmp_path: Path) -> None:
    path = csv()
    with says("No `box_size`, `redshift`", "box_size=...", "--box-size L --redshift Z"):
        cf.open_catalog(path)
    with says(
        "units='kpc/h'", "expected position, velocity or mass", "units={'position': 'kpc/h'}"
    ):
        cf.open_catalog(path, units="kpc/h", **BOX)
    with says("shape (5000,)", "expected (n, 3)", "position=('x', 'y', 'z')"):
        cf.open_catalog(path, position="x", **BOX)
    (tmp_path / "empty.csv").touch()
    with says("'empty.csv' is empty", "expected one of", "csv", "docs/formats.md"):
        cf.open_catalog("empty.csv", **BOX)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with says("'photo.png' is of no format that is known here", "expected one of", "hdf5"):
        cf.open_catalog("photo.png", **BOX)


def test_columns_that_are_not_there(csv: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv(lambda table: table.rename(columns={"x": "east", "y": "north", "z": "up"}))
    with says("No dataset that is `position`", "it holds east", "--position x y z"):
        cf.open_catalog(path, **BOX)
    theirs = csv(lambda table: table.rename(columns={c: f"{c.upper()}c" for c in table.columns}))
    with says("`position`", "position=('Xc', 'Yc', 'Zc') (in the shell: --position Xc Yc Zc)"):
        cf.open_catalog(theirs, **BOX)
    with says("`velocity` (V)", "('VXc', 'VYc', 'VZc') (in the shell: --velocity VXc VYc VZc)"):
        cf.open_catalog(theirs, position=("Xc", "Yc", "Zc"), velocity="V", **BOX)
    # What is the position is no velocity, however near its name.
    path = csv(lambda table: table.rename(columns={"vx": "u", "vy": "v", "vz": "w"}))
    with says("`velocity` ((", "Name it", "velocity=('vx', 'vy', 'vz')") as met:
        cf.open_catalog(path, velocity=("vx", "vy", "vz"), **BOX)
    assert "did you mean" not in str(met.value)
    path = csv(lambda table: table.assign(Ax=1.0, Ay=1.0, Az=1.0).rename(columns=str.upper))
    with says("`position` (pos)", "position=('x', 'y', 'z')"):
        cf.open_catalog(path, position="pos", **BOX)
    path = csv(lambda table: table.rename(columns={"x": "east", "y": "north", "z": "up"}))
    with says("No dataset that is `mass` (m200)", "it holds east", "(in the shell: --mass NAME)"):
        cf.open_catalog(path, position=("east", "north", "up"), mass="m200", **BOX)
    # As others list columns; what is refused next is the grid, so the columns are found.
    line = ["predict", path, *OPTIONS, "--position", "east,north,up", "--n-grid", "6"]
    assert main([*line, "--out", "fields.zarr"]) == 2
    assert "cell size 16.67 Mpc/h" in capsys.readouterr().err


def test_a_name_that_was_mistyped(csv: Any) -> None:
    csv()
    with says("No file 'halo.csv' (did you mean 'halos.csv'?); expected"):
        cf.open_catalog("halo.csv", **BOX)
    with says("No file 'survey/x*.h5'; expected"):
        cf.open_catalog("survey/x*.h5", **BOX)
    three = "(did you mean 'X' for 'x', 'Y' for 'y', 'Z' for 'z'?)"
    path = csv(lambda table: table.rename(columns={"x": "X", "y": "Y", "z": "Z", "mass": "logMh"}))
    with says("No dataset that is `position`", "it holds X", three):
        cf.open_catalog(path, position=("x", "y", "z"), **BOX)
    with says("No dataset that is `mass` (logm)", "(did you mean 'logMh' for 'logm'?). Name it"):
        cf.open_catalog(path, mass="logm", **BOX)


def test_a_folder_with_copies(csv: Any, tmp_path: Path) -> None:
    """They would be joined, each halo twice, if nobody asked."""
    folder = tmp_path / "mine"
    folder.mkdir()
    Path(csv()).rename(folder / "a.csv")
    once = cf.open_catalog(folder, **BOX)
    assert once.sizes["halo"] == 5000
    (folder / "b.csv").write_bytes((folder / "a.csv").read_bytes())
    with says("holds 2 files of csv", "would count twice", "mine/a.csv'; or of parts", "/*.csv'"):
        cf.open_catalog(folder, **BOX)
    assert cf.open_catalog(folder / "*.csv", **BOX).sizes["halo"] == 10_000
    (folder / "b.csv").write_text("started at noon\nended at one\n")
    with says("`position` in", "b.csv'", "holds 2 files; to read some", "mine/a.csv'"):
        cf.open_catalog(folder, **BOX)
    (folder / "b.csv").unlink()
    (folder / "a.csv").rename(folder / "part-00000.csv")
    (folder / "part-00001.csv").write_bytes((folder / "part-00000.csv").read_bytes())
    assert cf.open_catalog(folder, **BOX).sizes["halo"] == 10_000


def test_a_catalogue_where_a_simulated_box_is_expected(
    csv: Any, columns: tuple[Any, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv()
    with says(
        "is no simulated box, but of the format csv", "predict 'halos.csv' --out", "cf.open_c"
    ):
        cf.open_box(path)
    assert main(["evaluate", path, path, "--out", "report"]) == 2
    assert "cosmofields predict 'halos.csv' --out fields.zarr" in capsys.readouterr().err
    with h5py.File("halos.h5", "w") as file:
        file["halos/Position"] = columns[0]
    with says("it lacks halos/Velocity, ", "predict 'halos.h5' --out fields.zarr"):
        cf.open_box("halos.h5")


@pytest.mark.filterwarnings("ignore::cosmofields.consistency.VelocityWarning")  # made up
def test_doubts_end_a_run_of_the_shell(csv: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody looks at its warnings, and its result would be wrong."""
    line = ["predict", csv(), "--out", "fields.zarr", "--n-grid", "44"]
    wrong = [*OPTIONS, "--box-size", "103.125"]
    assert main([*line, *wrong]) == 2
    said = capsys.readouterr().err
    assert "0.97 of box_size=103.125, and the rest is empty" in said
    assert "If the numbers are right: --trust-units" in said
    assert not Path("fields.zarr").exists()
    # The second looks at all rows, shifted along z, whatever chunks they came in.
    with (
        pytest.warns(UnitsWarning, match="the rest is empty"),
        pytest.warns(UnitsWarning, match=r"^Of 5000 positions x spans .*, y spans .*Is box_size"),
    ):
        assert main([*line, *wrong, "--trust-units"]) == 0
    assert "own velocities of the tracers, over those of the field: " in capsys.readouterr().err


def test_logarithms_of_masses_as_one_writes_them(csv: Any) -> None:
    path = csv(lambda table: table.assign(mass=np.log10(table.mass)))
    masses = [
        cf.open_catalog(path, units={"mass": unit}, **BOX).mass.values
        for unit in ("log10 Msun/h", "log10(Msun/h)")
    ]
    np.testing.assert_array_equal(*masses)
    with says("units={'mass': 'log10(Msun/h'}; expected one of"):
        cf.open_catalog(path, units={"mass": "log10(Msun/h"}, **BOX)


def test_info_of_a_catalogue(csv: Any, box_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, kind in ((csv(), "csv"), (str(box_file), "hdf5")):
        assert main(["info", path]) == 2
        said = capsys.readouterr().err
        assert f"{path!r} is no store, and is read as {kind}." in said
        assert f"cosmofields predict {path} --out fields.zarr" in said


def test_a_group_that_is_not_there_lists_what_is(box_file: Path) -> None:
    with says("No dataset that is `position`", "halos/Position (", "group='...'"):
        cf.open_catalog(box_file, group="halo")


def test_text_among_numbers(csv: Any) -> None:
    path = csv(lambda table: table.astype({"mass": object}).replace({"mass": {table.mass[3]: "a"}}))
    with says("'halos.csv': cannot read mass, rows 0 to ", "could not convert"):
        cf.open_catalog(path, **BOX).recon.select()


# --- fields ---


def test_fields(observed: xr.Dataset) -> None:
    field = observed["halo_density"]
    with says("A ndarray was given", "expected a Dataset with `halo_density`", "paint()"):
        cf.linear_theory(field.values)
    with says("A DataArray was given", ".to_dataset(name='halo_density')"):
        cf.linear_theory(field)
    linear = observed.recon.linear_theory(bias=1.5)
    with says("`density` has dims", "expected ('component', 'x', 'y', 'z')", "ds['velocity']"):
        cf.divergence(linear["density"])
    with says("`velocity` has dims", "expected ('x', 'y', 'z')", ".sel(component='x')"):
        cf.gradient(linear["velocity"])
    with says("has dims ('dim_0', 'dim_1', 'dim_2')", "expected (x, y, z)", "from_grid("):
        cf.power_spectrum(xr.DataArray(np.zeros((8, 8, 8))))
    truth = linear.assign({name: linear[name].assign_attrs(method=None) for name in linear})
    with says("the truth, holds what a model", "swap them", "evaluate PREDICTED TRUE"):
        cf.evaluate(truth, linear)
    with says("a tuple was given", "return (halos, true), and this takes the second"):
        cf.evaluate(linear, (None, truth))
    with says("a str was given", "cf.open_store('a.zarr')", "cf.open_box('a.zarr')[1]"):
        cf.evaluate("a.zarr", truth)
    with says("divergence needs a periodic box", "is False here", "cut the result"):
        cf.divergence(linear["velocity"].assign_attrs(periodic=False))
    with says("weight(chi) is not finite at chi = 0 Mpc/h", "from 0 to 93.75 Mpc/h"):
        with np.errstate(divide="ignore"):
            cf.kinetic_sz(linear, los="z", weight=lambda chi: 1 / chi)


def test_methods_of_the_other_kind_and_typos(observed: xr.Dataset, tracers: xr.Dataset) -> None:
    linear = observed.recon.linear_theory(bias=1.5)
    for obj, name, parts in (
        (linear, "power_spectrum", ["is of a field", "Dataset", "ds['density'].recon.power"]),
        (linear["density"], "evaluate", ["is of a Dataset", "ds.recon.evaluate(...)"]),
        (tracers, "slect", ["has no 'slect'", "did you mean select?"]),
        (tracers, "zzz", ["has no 'zzz'", "there are", "to_redshift_space"]),
    ):
        with pytest.raises(AttributeError, match=".*".join(map(re.escape, parts))):
            getattr(obj.recon, name)
    assert not hasattr(tracers.recon, "_ipython_display_")
    assert repr(copy.copy(tracers.recon)) == repr(tracers.recon)
    assert repr(pickle.loads(pickle.dumps(tracers.recon))) == repr(tracers.recon)


# --- what is not installed ---


@pytest.mark.parametrize(
    ("library", "extra", "call"),
    [
        ("astropy", "io", lambda path: cf.open_catalog(path("a.fits", b"SIMPLE  ="), **BOX)),
        ("pyarrow", "io", lambda path: cf.open_catalog(path("a.parquet", b"PAR1"), **BOX)),
        ("obstore", "share", lambda path: cf.open_store("s3://bucket/a.zarr")),
        (
            "icechunk",
            "share",
            lambda path: cf.open_store(path("repo", b"").with_name("a.icechunk")),
        ),
        ("matplotlib", "plot", lambda path: cf.report(xr.Dataset(), xr.Dataset(), "out")),
        ("kdcount", "sim", lambda path: cf.simulate("a.zarr", seed=1)),
    ],
)
def test_extras(
    library: str,
    extra: str,
    call: Callable[[Any], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def path(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content + bytes(3000))
        return tmp_path / name

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.icechunk").mkdir()
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with says(library, f"pip install 'cosmofields[{extra}]'"):
        call(path)


# --- the shell ---


@pytest.mark.parametrize(
    ("change", "words", "parts"),
    [
        (None, [], ["No `box_size`", "--box-size L"]),
        ("mass", OPTIONS, ["No `mass`", "--model no-mass"]),
        ("vz", OPTIONS, ["No `velocity`", "--redshift-space --los z"]),
        (None, [*OPTIONS, "--model", "defualt"], ["No model 'defualt'", "default, no-mass"]),
        (None, [*OPTIONS, "--memory", "plenty"], ["memory='plenty'", "'6 GB'"]),
        (None, [*OPTIONS, "--units", "position=parsec"], ["'parsec'", "expected one of Mpc/h"]),
        (None, [*OPTIONS, "--redshift-space"], ["--redshift-space needs --los"]),
        (None, [*OPTIONS, "--n-grid", "16"], ["cell size 6.25 Mpc/h", "--n-grid 44"]),
    ],
)
@pytest.mark.filterwarnings("ignore::cosmofields.catalog.plausible.UnitsWarning")
def test_predict(
    change: str | None,
    words: list[str],
    parts: list[str],
    csv: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = csv(lambda table: table.drop(columns=change) if change else table)
    assert main(["predict", path, *words, "--out", "a.zarr"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cosmofields predict: ")
    assert re.search(".*".join(map(re.escape, parts)), said, re.DOTALL), said
    assert not Path("a.zarr").exists()
