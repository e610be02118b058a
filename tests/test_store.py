import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from cosmofields.conventions import AXES, StoreError, label, make_grid
from cosmofields.cosmology import Cosmology
from cosmofields.store import describe, open_store, summarize_facts, write_store

N = 96  # one full and one partial chunk per axis
FACTS = {
    "box_size": 200.0,
    "redshift": 0.59,
    "cosmology": {"Omega_m": 0.268, "h": 0.71},
    "space": "real",
    "periodic": True,
}


def field(name, *lead, n=N, seed=0, lazy=False):
    shape = (*lead, n, n, n)
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if lazy:
        data = da.from_array(data, chunks=(*(1 for _ in lead), 64, 64, 64))
    return label(name, data, make_grid(n, [200.0] * 3), FACTS)


def universe(n=N, seed=0, lazy=False):
    return xr.Dataset(
        {
            "density": field("density", n=n, seed=seed, lazy=lazy),
            "velocity": field("velocity", 3, n=n, seed=seed + 1, lazy=lazy),
        },
        attrs={**FACTS, "nothing": None, "steps": [1, 2]},
    )


def halo_fields():
    ds = field("halo_density", 4, n=32).to_dataset()
    return ds.assign_attrs(FACTS, los="z").assign_coords(
        number_density=("mass_bin", [1e-4, 1e-3, 2e-3, 3e-3], {"units": "(h/Mpc)^3"}),
        mass_bin=[0, 1, 2, 3],
    )


def plain_python(code, *args):
    """Run ``code`` where a warning is an error and cosmofields is not there."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "true.zarr"
    write_store(universe(), path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy.zarr"))


# --- round trip ---


@pytest.mark.parametrize("lazy", [False, True])
def test_round_trip(tmp_path, lazy):
    ds = universe(lazy=lazy)
    write_store(ds, tmp_path / "a.zarr")
    back = open_store(tmp_path / "a.zarr")
    assert isinstance(back, xr.Dataset)
    assert back.velocity.chunks[0] == (1, 1, 1)
    assert back.velocity.chunks[1:] == ((64, 32),) * 3
    assert {key: back.attrs[key] for key in ds.attrs} == ds.attrs
    assert back["component"].dtype == object
    xr.testing.assert_identical(back.load().drop_attrs(deep=False), ds.drop_attrs(deep=False))


def test_round_trip_of_a_tree(tmp_path):
    groups = {
        "/observed": halo_fields(),
        "/linear": universe(32, seed=3),
        "/true": universe(32),
    }
    write_store(xr.DataTree.from_dict(groups), tmp_path / "a.zarr")
    back = open_store(tmp_path / "a.zarr")
    assert isinstance(back, xr.DataTree)
    assert set(back.children) == {"observed", "linear", "true"}
    for name, ds in groups.items():
        xr.testing.assert_identical(back[name].to_dataset().load(), ds)
        xr.testing.assert_identical(open_store(tmp_path / "a.zarr", name).load(), ds)


def test_groups_stand_alone_when_coordinates_are_inherited(tmp_path):
    root = universe(32)[["x", "y", "z"]]
    child = universe(32)[["density"]].drop_vars(["x", "y", "z"])
    write_store(xr.DataTree.from_dict({"/": root, "/true": child}), tmp_path / "a.zarr")
    alone = xr.open_zarr(tmp_path / "a.zarr", group="true")
    assert set(AXES) <= set(alone.coords)
    xr.testing.assert_equal(open_store(tmp_path / "a.zarr", "true").x, root.x)


def test_tables_and_results_keep_their_dtype_and_fields_become_float32(tmp_path):
    ds = universe(16).astype(np.float64)
    ds["position"] = (("halo", "component"), np.random.default_rng(0).uniform(0, 200, (50, 3)))
    ds["power"] = ("k", np.arange(5.0))
    ds["count"] = ("k", np.arange(5))
    write_store(ds, tmp_path / "a.zarr")
    back = open_store(tmp_path / "a.zarr").load()
    assert back.density.dtype == np.float32
    for name in ("position", "power", "count"):
        assert back[name].dtype == ds[name].dtype
        np.testing.assert_array_equal(back[name], ds[name])


def test_a_store_opened_by_plain_xarray_can_be_written_again(whole, tmp_path):
    with xr.open_zarr(whole) as ds:
        write_store(ds.chunk(x=40), tmp_path / "a.zarr")  # stale encoding, unaligned chunks
    xr.testing.assert_equal(open_store(tmp_path / "a.zarr").compute(), universe())


def test_inputs_are_left_alone(tmp_path):
    for obj in (universe(32, lazy=True), xr.DataTree.from_dict({"/true": universe(32, lazy=True)})):
        before = obj.copy(deep=True)
        write_store(obj, tmp_path / f"{type(obj).__name__}.zarr")
        xr.testing.assert_identical(obj, before)


def test_attributes_become_plain(tmp_path):
    ds = universe(8).assign_attrs(
        box_size=np.float32(200),
        cosmology=Cosmology(0.3, 0.7),
        source={"seed": np.int64(3), "steps": (1, 2), "ok": np.bool_(True)},
    )
    write_store(ds, tmp_path / "a.zarr")
    back = open_store(tmp_path / "a.zarr").attrs
    assert back["box_size"] == 200
    assert back["cosmology"] == {"Omega_m": 0.3, "h": 0.7}
    assert back["source"] == {"seed": 3, "steps": [1, 2], "ok": True}


def test_an_attribute_that_json_cannot_hold(tmp_path):
    ds = universe(8)
    ds.velocity.attrs["filter"] = np.sin
    with pytest.raises(StoreError, match=r"'filter' of `velocity` is a ufunc.*delete it"):
        write_store(ds, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (universe(8).density, "not a DataArray.*to_dataset"),
        (np.zeros(3), "not a ndarray"),
        (xr.Dataset(), "nothing to write"),
    ],
)
def test_what_a_store_cannot_hold(tmp_path, obj, message):
    with pytest.raises(StoreError, match=message):
        write_store(obj, tmp_path / "a.zarr")


# --- on disk ---


def test_provenance(tmp_path):
    ds = universe(8).assign_attrs(history="2020 born", cosmofields={"checkpoint": "abc"})
    write_store(ds, tmp_path / "a.zarr", title="a test")
    attrs = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["attributes"]
    assert attrs["complete"] is True
    assert attrs["title"] == "a test"
    assert attrs["history"].splitlines()[0] == "2020 born"
    assert "write_store: a.zarr" in attrs["history"].splitlines()[1]
    assert attrs["cosmofields"]["checkpoint"] == "abc"
    assert {"format_version", "package_version", "created"} <= attrs["cosmofields"].keys()
    opened = open_store(tmp_path / "a.zarr").attrs
    assert "complete" not in opened
    assert opened["title"] == "a test"


def test_codecs(tmp_path):
    ds = universe(80).merge(field("halo_density", 2, n=80))
    write_store(ds, tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    names = {}
    for name in ("density", "velocity", "halo_density", "x"):
        names[name] = [codec["name"] for codec in group[name].metadata.to_dict()["codecs"]]
        assert names[name][-1] == "crc32c"
    assert "blosc" in names["velocity"]
    assert names["halo_density"] == ["bytes", "zstd", "crc32c"]
    assert group["halo_density"].chunks == (1, 64, 64, 64)
    assert group["x"].chunks == (80,)


def test_plain_xarray_opens_without_a_warning(whole, tmp_path):
    tree = tmp_path / "tree.zarr"
    write_store(xr.DataTree.from_dict({"/observed": halo_fields(), "/true": universe(32)}), tree)
    done = plain_python(
        "import sys, xarray as xr\n"
        "assert xr.open_zarr(sys.argv[1]).load().sel(component='y').velocity.dims == tuple('xyz')\n"
        "xr.open_dataset(sys.argv[1]).load()\n"
        "xr.open_datatree(sys.argv[2], engine='zarr').load()\n"
        "xr.open_zarr(sys.argv[2], group='observed').load()\n"
        "assert 'cosmofields' not in sys.modules",
        whole,
        tree,
    )
    assert done.returncode == 0, done.stderr


# --- lazily ---


def test_opening_reads_no_chunk(copy):
    for chunk in (copy / "density/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"nonsense")
    ds = open_store(copy)
    assert ds.density.chunks
    assert open_store(copy, chunks={"x": -1}).density.chunks[0] == (N,)
    assert open_store(copy, chunks=None).density.chunks is None


def test_shared_work_is_done_once_even_across_groups(tmp_path):
    calls = []

    def block(x):
        calls.append(1)
        return x + np.float32(1)

    base = da.zeros((N, N, N), chunks=64, dtype=np.float32)
    density = da.map_blocks(block, base, meta=np.empty((0, 0, 0), np.float32))
    grid = make_grid(N, [200.0] * 3)
    one = label("density", density, grid, FACTS)
    groups = {"/linear": one.to_dataset(), "/true": (2 * one).to_dataset(name="density")}
    write_store(xr.DataTree.from_dict(groups), tmp_path / "a.zarr")
    assert len(calls) == 8
    assert open_store(tmp_path / "a.zarr", "true").density.min() == 2


def test_a_large_field_is_never_whole_in_memory(tmp_path):
    n = 256
    data = da.random.default_rng(0).random((n, n, n), dtype=np.float32, chunks=64)
    ds = label("density", data, make_grid(n, [200.0] * 3), FACTS).to_dataset()
    tracemalloc.start()
    try:
        write_store(ds, tmp_path / "a.zarr")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ds.nbytes / 2


def test_progress_goes_to_standard_error(tmp_path, capsys):
    write_store(universe(16, lazy=True), tmp_path / "a.zarr", progress=True)
    out, err = capsys.readouterr()
    assert "100% Completed" in err
    assert out == ""


# --- whole or not ---


class Stop(Exception):
    pass


def breaking(n_good=5):
    calls = []

    def block(x):
        calls.append(1)
        if len(calls) > n_good:
            raise Stop
        return x

    ds = universe(lazy=True)
    data = da.map_blocks(block, ds.velocity.data, meta=np.empty((0,) * 4, np.float32))
    return ds.assign(velocity=ds.velocity.copy(data=data))


def test_an_interrupted_write_is_refused_and_the_same_call_mends_it(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(Stop):
        write_store(breaking(), path)
    with pytest.raises(StoreError, match=r"not whole: written up to .* of 36 chunks .*again"):
        open_store(path)
    assert "not whole" in describe(path)
    write_store(universe(), path)
    xr.testing.assert_equal(open_store(path).compute(), universe())


def test_a_killed_write_is_refused(tmp_path):
    path = tmp_path / "a.zarr"
    code = """
import os, sys, numpy as np, xarray as xr, dask.array as da
from cosmofields.store import write_store
meta = np.empty((0, 0, 0))
data = da.zeros((128, 64, 64), chunks=64).map_blocks(lambda x: os._exit(9), meta=meta)
write_store(xr.Dataset({"density": (("x", "y", "z"), data)}), sys.argv[1])
"""
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, check=False)
    assert done.returncode == 9
    with pytest.raises(StoreError, match="not whole: written up to 0 of 2 chunks"):
        open_store(path)


def test_a_lost_chunk_is_no_nan(copy):
    (copy / "velocity/c/1/0/0/0").unlink()
    ds = open_store(copy)
    ds.velocity[0].compute()
    with pytest.raises(StoreError, match="lost a chunk: velocity/c/1/0/0/0"):
        ds.velocity.compute()


@pytest.mark.parametrize(
    "name", ["velocity/c/1/0/0/0", "density/c/1/1/1", "x/c/0", "component/c/0"]
)
def test_a_flipped_bit_is_an_error(copy, name):
    chunk = copy / name
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 2] ^= 1
    chunk.write_bytes(raw)
    # What indexes a dim is read when the store is opened.
    with pytest.raises((ValueError, StoreError), match="checksum"):
        open_store(copy).load()


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_chunk_is_an_error(copy, keep):
    chunk = copy / "density/c/0/1/0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(StoreError, match="checksum"):
        open_store(copy).load()


# --- the wrong path ---


def test_no_such_path(tmp_path):
    with pytest.raises(StoreError, match="nothing at that path"):
        open_store(tmp_path / "nowhere.zarr")


@pytest.mark.parametrize("kind", ["file", "folder", "broken json"])
def test_a_path_that_is_no_store(tmp_path, kind):
    path = tmp_path / "a.zarr"
    if kind == "file":
        path.write_bytes(b"\x89HDF\r\n\x1a\n")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("precious")
    if kind == "broken json":
        (path / "zarr.json").write_text('{"zarr_format": 3,')
    for call in (open_store, describe):
        with pytest.raises(StoreError, match="is no Zarr store"):
            call(path)
    with pytest.raises(StoreError, match="left alone"):
        write_store(universe(8), path, overwrite=True)
    assert path.exists()


def test_a_store_of_others_opens_but_is_never_overwritten(tmp_path):
    path = tmp_path / "a.zarr"
    ds = universe(8).drop_vars("component")
    ds.to_zarr(path, consolidated=False)
    xr.testing.assert_equal(open_store(path).compute(), ds)
    assert "not written by cosmofields" in describe(path)
    with pytest.raises(StoreError, match="left alone"):
        write_store(universe(8), path, overwrite=True)


def test_a_newer_format(copy):
    group = zarr.open_group(copy, mode="r+")
    group.attrs["cosmofields"] = {**group.attrs["cosmofields"], "format_version": 99}
    for call in (open_store, describe):
        with pytest.raises(StoreError, match=r"format version 99.*up to 1.*pip install -U"):
            call(copy)


def test_a_group_that_is_not_there(tmp_path):
    write_store(xr.DataTree.from_dict({"/true": universe(8)}), tmp_path / "a.zarr")
    with pytest.raises(StoreError, match=r"No group 'linear'.*/true"):
        open_store(tmp_path / "a.zarr", "linear")


# --- overwriting ---


def content(path):
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def test_overwriting_must_be_asked_for(copy):
    before = content(copy)
    with pytest.raises(StoreError, match="exists. Pass overwrite=True"):
        write_store(universe(8), copy)
    assert content(copy) == before
    write_store(universe(8), copy, overwrite=True)
    assert open_store(copy).sizes["x"] == 8
    assert os.listdir(copy.parent) == [copy.name]


def test_a_store_can_be_overwritten_with_what_is_read_from_it(copy):
    write_store(open_store(copy) * 2, copy, overwrite=True)
    xr.testing.assert_equal(open_store(copy).compute(), universe() * 2)


def test_a_failed_overwrite_keeps_the_old_store(copy):
    before = content(copy)
    for _ in range(2):  # the second finds what the first left
        with pytest.raises(Stop):
            write_store(breaking(), copy, overwrite=True)
    assert content(copy) == before
    write_store(universe(8), copy, overwrite=True)
    assert os.listdir(copy.parent) == [copy.name]


def test_nothing_foreign_is_deleted_beside_the_store(copy):
    (copy.parent / ".copy.zarr.new").mkdir()
    (copy.parent / ".copy.zarr.new/notes.txt").write_text("precious")
    with pytest.raises(StoreError, match="in the way"):
        write_store(universe(8), copy, overwrite=True)


def test_a_link_to_a_store(copy):
    link = copy.parent / "link.zarr"
    link.symlink_to(copy)
    write_store(universe(8), link, overwrite=True)
    assert link.is_symlink()
    assert open_store(copy).sizes["x"] == 8


def test_an_impossible_compression_level(tmp_path):
    with pytest.raises(StoreError, match="level=10; expected 1 to 9"):
        write_store(universe(8), tmp_path / "a.zarr", level=10)


def test_an_url():
    url = "memory://test-store/a.zarr"
    write_store(universe(8), url)
    xr.testing.assert_equal(open_store(url).compute(), universe(8))
    with pytest.raises(StoreError, match="taken"):
        write_store(universe(8), url, overwrite=True)


# --- text ---


def test_describe(tmp_path):
    path = tmp_path / "a.zarr"
    write_store(xr.DataTree.from_dict({"/observed": halo_fields(), "/true": universe(32)}), path)
    text = describe(path)
    for words in (
        "Zarr v3 store, cosmofields format 1",
        "whole",
        "/observed",
        "200 Mpc/h, periodic",
        "32 x 32 x 32 cells of 6.25 Mpc/h",
        "Omega_m 0.268, h 0.71",
        "(component 3, x 32, y 32, z 32) float32 km/s, chunks 1 x 32 x 32 x 32, 393 kB",
        f"zarr {zarr.__version__}",
        "write_store: a.zarr",
    ):
        assert words in text


def test_facts():
    ds = halo_fields().assign_attrs(space="redshift")
    facts = dict(summarize_facts(ds))
    assert facts["space"] == "redshift, line of sight z"
    assert facts["redshift"] == "0.59"
    assert dict(summarize_facts(ds.halo_density))["box"] == "200 Mpc/h, periodic"
    assert dict(summarize_facts(ds.isel(x=slice(4))))["grid"].endswith("not the whole periodic box")
    table = xr.Dataset({"mass": ("halo", np.ones(8000))}, attrs={"box_size": [100, 200, 200]})
    facts = dict(summarize_facts(table))
    assert facts["box"] == "100 x 200 x 200 Mpc/h"
    assert facts["halos"] == "8,000, 0.002 (h/Mpc)^3"
    assert facts["redshift"] == facts["cosmology"] == "not set"
    assert dict(summarize_facts(xr.Dataset()))["box"] == "not set"
