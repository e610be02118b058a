"""Every format in its true layout comes back as the catalogue that was written."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr

from cosmofields.catalog import from_arrays
from cosmofields.conventions import StoreError
from cosmofields.readers import FORMATS, open_catalog
from tests.format_files import COSMOLOGY, FACTS, SIDE, WRITERS, make_table

pytest.importorskip("astropy")
pytest.importorskip("pyarrow")
PARTICLES = {"gadget4", "gadget2", "gadget-format1", "gadget-format2", "arepo", "swift", "pysco"}
# Particles that all weigh the same have no column of it.
EQUAL = {"gadget2", "gadget-format1", "pysco"}


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return make_table()


@pytest.fixture(scope="module")
def wanted(table: dict[str, Any]) -> xr.Dataset:
    return from_arrays(**table, **FACTS)


@pytest.fixture(scope="module")
def written(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Source and options of each format, written once."""
    made = {}

    def get(kind: str) -> tuple[Any, dict[str, Any]]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = WRITERS[kind][1](folder, table)
        return made[kind]

    return get


@pytest.mark.parametrize("rows", [700, 2**22])
@pytest.mark.parametrize("kind", WRITERS)
def test_reads_back_equal(
    kind: str, rows: int, written: Any, wanted: Any, no_computes: Any
) -> None:
    source, options = written(kind)
    with no_computes():
        ds = open_catalog(source, **options, rows=rows)
    assert all(isinstance(ds[name].data, da.Array) for name in ds)
    dim = "particle" if kind in PARTICLES else "halo"
    assert ds.sizes == {dim: 3000, "component": 3}
    assert max(ds.chunks[dim]) <= rows
    assert ds.attrs["source"]["format"] == WRITERS[kind][0]
    assert ds.attrs["box_size"] == pytest.approx(SIDE, rel=1e-5)
    assert ds.attrs["redshift"] == pytest.approx(0.5, abs=2e-6)
    for key, value in ds.attrs["cosmology"].items():
        assert value == pytest.approx(COSMOLOGY[key], rel=1e-6)
    assert {"Omega_m", "h"} <= ds.attrs["cosmology"].keys()
    columns = set(wanted) - ({"mass"} if kind in EQUAL else set())
    assert set(ds) == columns
    got = ds.compute()
    # Of the number of particles in a halo, half of one is lost; of SWIFT's Msun, four digits are.
    precise = {"compaso": 3e-3, "fastpm": 3e-3, "swift": 1e-3}.get(kind, 3e-7)
    for name in columns:
        values = got[name].values
        assert got[name].dtype == np.float32
        if name == "position":
            # On the edge, float32 may have wrapped.
            off = (values - wanted[name].values + SIDE / 2) % SIDE - SIDE / 2
            assert np.abs(off).max() < 1e-4
            assert values.min() >= 0
            assert values.max() < SIDE
        elif name == "velocity":
            np.testing.assert_allclose(values, wanted[name], rtol=2e-6, atol=1e-4)
        else:
            np.testing.assert_allclose(values, wanted[name], rtol=precise)


@pytest.mark.parametrize("kind", WRITERS)
def test_windows_and_tasks(kind: str, written: Any) -> None:
    """A part reads as the same part of the whole; what the tasks hold is no data."""
    source, options = written(kind)
    ds = open_catalog(source, **options, rows=451)
    dim = ds["position"].dims[0]
    whole = ds.compute()
    part = open_catalog(source, **options).isel({dim: slice(1307, 1904)}).compute()
    xr.testing.assert_equal(part, whole.isel({dim: slice(1307, 1904)}))
    assert len(pickle.dumps(dict(ds.__dask_graph__()))) < 60_000


@pytest.mark.parametrize("kind", WRITERS)
def test_format_can_be_said(kind: str, written: Any) -> None:
    source, options = written(kind)
    named = open_catalog(_files(source), **options, format=WRITERS[kind][0])
    assert named.attrs["source"]["format"] == WRITERS[kind][0]
    dim = named["position"].dims[0]
    assert named.sizes[dim] == 3000


def _files(source: Any) -> Any:
    """The files themselves, since a name of a format does not search a folder."""
    path = Path(source)
    if path.is_dir() and not (path / "Header").is_dir():
        return sorted(p for p in path.iterdir() if "ids" not in p.name and "crc" not in p.name)
    return source


def test_every_format_is_written_by_a_test() -> None:
    assert {kind for kind, _ in WRITERS.values()} | {"zarr"} == set(FORMATS)


def test_unknown_format(written: Any) -> None:
    source, options = written("csv")
    with pytest.raises(StoreError, match="format='ascii'; expected one of bigfile, compaso, csv"):
        open_catalog(source, **options, format="ascii")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gadget4", {"position": "kpc/h times 0.001", "velocity": "km sqrt(a)/s times 0.816497",
                     "mass": "1e10 Msun/h times 1e+10"}),
        ("subfind", {"position": "kpc/h times 0.001", "velocity": "km/s/a times 1.5",
                     "mass": "1e10 Msun/h times 1e+10"}),
        ("group_tab", {"position": "kpc/h times 0.001", "velocity": "km/s/a times 1.5",
                       "mass": "1e10 Msun/h times 1e+10"}),
        ("savetxt", {"position": "kpc/h times 0.001", "mass": "10**(log10 Msun/h)"}),
        ("compaso", {"position": "box times 300, moved by 150, 150, 150 Mpc/h",
                     "velocity": "velocities of a unit box times 31234.5",
                     "mass": "particles times 1e+10"}),
    ],
)  # fmt: skip
def test_what_was_converted_is_recorded(kind: str, said: dict[str, str], written: Any) -> None:
    source, options = written(kind)
    assert open_catalog(source, **options).attrs["source"]["converted"] == said


def test_nothing_converted_nothing_said(written: Any) -> None:
    source, options = written("csv")
    assert "converted" not in open_catalog(source, **options).attrs["source"]


def test_the_folder_of_a_redshift_of_abacus(written: Any, tmp_path: Path) -> None:
    source, _ = written("compaso")
    (tmp_path / "z0.500").mkdir()
    (tmp_path / "z0.500" / "halo_info").symlink_to(source)
    (tmp_path / "z0.500" / "halo_rv_A").mkdir()
    assert open_catalog(tmp_path / "z0.500").sizes["halo"] == 3000
    with pytest.raises(StoreError, match=r"is one of 2 files.*1 are given.*halo_info_\*\.asdf'\)"):
        open_catalog(source / "halo_info_000.asdf")


def test_a_folder_of_two_catalogues(written: Any, tmp_path: Path) -> None:
    for kind in ("csv", "npz"):
        path, _ = written(kind)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "snap.hdf5").write_bytes(written("gadget2")[0].read_bytes())
    with pytest.raises(StoreError, match="files of several formats, hdf5, npz: name the files"):
        open_catalog(tmp_path)


# --- the command line ---


def test_predict_opens_what_open_catalog_opens(
    written: Any, wanted: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cosmofields predict FILES`: what goes into the reconstruction, in redshift space."""
    from cosmofields.catalog import to_redshift_space
    from cosmofields.cli import main

    seen = []
    monkeypatch.setattr(
        "cosmofields.reconstruction.reconstruct", lambda halos, *_, **__: seen.append(halos)
    )
    out = ["--out", str(tmp_path / "out.zarr")]
    facts = ["--box-size", "300", "--redshift", "0.5"]
    facts += ["--cosmology", "Omega_m=0.3089,Omega_b=0.0486,h=0.6774"]
    mine = ["--position", "PX", "PY", "PZ", "--velocity", "VELX", "VELY", "VELZ", "--mass", "LOGM"]
    mine += ["--units", "position=kpc/h", "mass=log10 Msun/h"]
    shifted = to_redshift_space(wanted, "z")
    for kind, options in (
        ("subfind", []),
        ("rockstar", ["--format", "rockstar"]),
        ("savetxt", [*facts, *mine]),
        ("group_tab", facts),
    ):
        source, _ = written(kind)
        assert main(["predict", str(source), *options, *out]) == 0, kind
        got = seen.pop()["position"].values
        off = (got - shifted["position"].values + SIDE / 2) % SIDE - SIDE / 2
        assert np.abs(off).max() < 1e-3, kind


def test_words_of_the_command_line(written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from cosmofields.cli import main

    source, _ = written("csv")
    assert main(["predict", str(source), "--format", "ascii", "--out", "x.zarr"]) == 2
    assert "format='ascii'; expected one of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", str(source), "--units", "kpc", "--out", "x.zarr"])
    assert "expected COLUMN=UNIT, such as position=kpc/h" in capsys.readouterr().err


def test_blosc_as_quijote_has_it(table: dict[str, Any], tmp_path: Path) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values, chunks=True, **hdf5plugin.Blosc(cname="zstd"))
    got = open_catalog(tmp_path / "a.h5", **FACTS).compute()
    np.testing.assert_array_equal(got["mass"], table["mass"].astype(np.float32))


@pytest.mark.parametrize("name", ["c.zarr", "c.zarr.zip", "c.icechunk"])
def test_a_store_written_again_is_read_again(tmp_path: Path, name: str) -> None:
    """In the same process, with the same metadata, as another program writes it."""
    path = tmp_path / name

    def write(ds: xr.Dataset) -> None:
        if name.endswith(".zip"):
            ds.to_zarr(tmp_path / "folder", mode="w", consolidated=False)
            shutil.make_archive(str(path.with_suffix("")), "zip", tmp_path / "folder")
        elif name.endswith(".icechunk"):
            icechunk = pytest.importorskip("icechunk")
            icechunk.set_logs_filter("error")
            storage = icechunk.local_filesystem_storage(str(path))
            session = icechunk.Repository.open_or_create(storage).writable_session("main")
            ds.to_zarr(session.store, mode="w", consolidated=False)
            session.commit("written")
        else:
            ds.to_zarr(path, mode="w", consolidated=False)

    for value in (1.0, 2.0):
        rows = np.full((4, 3), value)
        write(
            xr.Dataset({"position": (("halo", "axis"), rows), "mass": ("halo", rows[:, 0] * 1e12)})
        )
        ds = open_catalog(path, **FACTS, los="z")
        for one in (ds, pickle.loads(pickle.dumps(ds))):
            np.testing.assert_array_equal(one["position"], rows)
