"""A store wherever it lies: written here, read there by others, and checked."""

from __future__ import annotations

import functools
import gc
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.core.buffer import default_buffer_prototype

import cosmofields as cf
from cosmofields.cli import main
from cosmofields.conventions import StoreError, label, make_grid
from cosmofields.reporting.inputs import open_source
from cosmofields.store import describe, place_of
from cosmofields.store.places import reach

GRID = make_grid(32, (75.0,) * 3)
FACTS = {"box_size": 75.0, "redshift": 0.59, "cosmology": {"Omega_m": 0.3, "h": 0.7}}

# What a reader without us does, of each kind of place.
READERS = {
    "folder": "xr.open_datatree(sys.argv[1], engine='zarr', chunks={})",
    "web": "xr.open_datatree(sys.argv[1], engine='zarr', chunks={})",
    "zip": "xr.open_datatree(zarr.storage.ZipStore(sys.argv[1], mode='r'), engine='zarr')",
    "s3": "xr.open_datatree(zarr.storage.ObjectStore(obstore.store.from_url(sys.argv[1], "
    "config=options, client_options={'allow_http': True}), read_only=True), engine='zarr')",
    "icechunk": "xr.open_datatree(icechunk.Repository.open(icechunk.local_filesystem_storage("
    "sys.argv[1])).readonly_session('main').store, engine='zarr', consolidated=False)",
}
READER = """
import sys, json, warnings
sys.modules["cosmofields"] = None  # an import of it is an error
import numpy as np, xarray as xr, zarr
if sys.argv[2] == "s3":
    import obstore.store
if sys.argv[2] == "icechunk":
    import icechunk
options = json.loads(sys.argv[3])
tree = {}
velocity = tree["true/velocity"]
print(tree.attrs["complete"], velocity.attrs["units"], velocity.values.tobytes().hex()[:4000])
"""


def universe(seed: int = 0, lazy: bool = True) -> xr.DataTree:
    rng = np.random.default_rng(seed)
    fields = {
        name: label(name, rng.normal(size=(*lead, 32, 32, 32)).astype(np.float32), GRID, FACTS)
        for name, lead in (("density", ()), ("velocity", (3,)))
    }
    true = xr.Dataset(fields, attrs=FACTS)
    halos = xr.Dataset({"mass": ("halo", rng.uniform(size=50))}, attrs=FACTS)
    if lazy:
        true = true.chunk(component=1, x=16)
    return xr.DataTree.from_dict({"true": true, "halos": halos})


def same(path: Any, seed: int = 0, **options: Any) -> None:
    back = cf.open_store(path, **options)
    assert isinstance(back, xr.DataTree)
    for group, ds in universe(seed, lazy=False).children.items():
        xr.testing.assert_identical(back[group].to_dataset().load(), ds.to_dataset())


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain static server, as python -m http.server is, and one that knows ranges."""

    ranges = False

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not self.ranges or asked is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """``serve(folder)`` starts a web server there and gives its URL."""
    running = []

    def start(folder: Path, ranges: bool = False) -> str:
        handler = type("Handler", (Quiet,), {"ranges": ranges})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def read_without_us(kind: str, path: Any, options: dict[str, Any] | None = None) -> str:
    words = {"key": "access_key_id", "secret": "secret_access_key", "endpoint_url": "endpoint"}
    plain = {words.get(key, key): value for key, value in (options or {}).items()}
    code = READER.replace("tree = {}", f"tree = {READERS[kind]}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path), kind, json.dumps(plain)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]  # Icechunk may warn above


def expected_without_us() -> str:
    velocity = universe(lazy=False)["true/velocity"]
    return f"True km/s {velocity.values.tobytes().hex()[:4000]}"


# --- each kind of place ---


@pytest.mark.parametrize("name", ["box.zarr", "box.zarr.zip", "box.icechunk"])
def test_here(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    cf.write_store(universe(), path)
    same(path)
    assert cf.verify(path) == []
    assert os.listdir(tmp_path) == [name]  # and nothing beside it
    assert "whole" in describe(path)
    kind = {".zarr": "folder", ".zip": "zip", ".icechunk": "icechunk"}[path.suffix]
    assert read_without_us(kind, path) == expected_without_us()
    with pytest.raises(StoreError, match="Pass overwrite=True"):
        cf.write_store(universe(1), path)
    cf.write_store(universe(1), path, overwrite=True)
    same(path, 1)
    # What is read from it may replace it.
    cf.write_store(cf.open_store(path).map_over_datasets(lambda ds: ds), path, overwrite=True)
    same(path, 1)
    assert os.listdir(tmp_path) == [name]


def test_a_zip_file_is_closed_with_its_store(tmp_path: Path) -> None:
    cf.write_store(universe(), tmp_path / "box.zarr.zip")
    store = reach(place_of(tmp_path / "box.zarr.zip"))
    assert store._get("zarr.json", default_buffer_prototype()) is not None
    archive = store._zf
    assert archive.fp is not None
    del store
    gc.collect()
    assert archive.fp is None


def test_an_object_store(s3: dict[str, Any]) -> None:
    url = "s3://bucket/somewhere/box.zarr"
    cf.write_store(universe(), url, storage_options=s3)
    same(url, storage_options=s3)
    assert cf.verify(url, storage_options=s3) == []
    text = describe(url, storage_options=s3)
    assert "in an object store" in text
    assert re.search(r"393 kB \(\d+ kB stored\)", text)
    assert read_without_us("s3", url, s3) == expected_without_us()
    with pytest.raises(StoreError, match=r"cannot replace a store in one step.*icechunk"):
        cf.write_store(universe(1), url, overwrite=True, storage_options=s3)
    same(url, storage_options=s3)


def test_a_public_bucket_that_does_not_list(s3: dict[str, Any]) -> None:
    url = "s3://bucket/public/box.zarr"
    cf.write_store(universe(), url, storage_options=s3)
    anybody = {"endpoint_url": s3["endpoint_url"], "anon": True, "region": "us-east-1"}
    same(url, storage_options=anybody)
    private = "s3://bucket/private/box.zarr"
    cf.write_store(universe(), private, storage_options=s3)
    with pytest.raises(StoreError, match="privileges"):
        cf.open_store(private, storage_options=anybody)
    with pytest.raises(StoreError, match=r"cannot be written: .*privileges"):
        cf.write_store(universe(), "s3://bucket/public/new.zarr", storage_options=anybody)


def test_credentials_of_the_environment(
    s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("by-environment.zarr", "by-environment.icechunk"):
        cf.write_store(universe(), f"s3://bucket/{name}")
        same(f"s3://bucket/{name}")


def test_a_web_server(tmp_path: Path, serve: Callable[..., str]) -> None:
    cf.write_store(universe(), tmp_path / "box.zarr")
    url = f"{serve(tmp_path)}/box.zarr"
    same(url)
    assert cf.verify(url) == []
    assert "on a web server" in describe(url)
    assert read_without_us("web", url) == expected_without_us()
    with pytest.raises(StoreError, match="for reading"):
        cf.write_store(universe(), url)
    with pytest.raises(StoreError, match="no Zarr store"):
        cf.open_store(url.replace("box", "none"))


def test_a_zip_file_on_a_server(
    tmp_path: Path, serve: Callable[..., str], s3: dict[str, Any]
) -> None:
    import obstore
    from obstore.store import S3Store

    path = tmp_path / "box.zarr.zip"
    cf.write_store(universe(), path)
    same(f"{serve(tmp_path, ranges=True)}/box.zarr.zip")
    with pytest.raises(StoreError, match="Range"):
        cf.open_store(f"{serve(tmp_path)}/box.zarr.zip")
    bucket = S3Store(
        "bucket",
        config={"endpoint": s3["endpoint_url"], "access_key_id": "a", "secret_access_key": "b"},
        client_options={"allow_http": True},
    )
    obstore.put(bucket, "zips/box.zarr.zip", path.read_bytes())
    same("s3://bucket/zips/box.zarr.zip", storage_options=s3)
    with pytest.raises(StoreError, match="written on this machine"):
        cf.write_store(universe(), "s3://bucket/a.zarr.zip", storage_options=s3)


@pytest.mark.parametrize("where", ["here", "s3"])
def test_versions_of_a_repository(tmp_path: Path, s3: dict[str, Any], where: str) -> None:
    import icechunk

    from cosmofields.store.places import _storage, place_of

    path = str(tmp_path / "box.icechunk") if where == "here" else "s3://bucket/v/box.icechunk"
    options = {} if where == "here" else {"storage_options": s3}
    cf.write_store(universe(0), path, **options)
    repository = icechunk.Repository.open(
        _storage(icechunk, place_of(path, options.get("storage_options")))
    )
    first = repository.lookup_branch("main")
    repository.create_tag("v1", snapshot_id=first)
    with pytest.raises(StoreError, match="add a version"):
        cf.write_store(universe(1), path, **options)
    cf.write_store(universe(1), path, overwrite=True, **options)
    same(path, 1, **options)
    same(f"{path}@main", 1, **options)
    same(f"{path}@v1", 0, **options)
    same(f"{path}@{first}", 0, **options)
    assert cf.verify(f"{path}@v1", **options) == []
    with pytest.raises(StoreError, match=r"no version 'v2'; expected a tag \(v1\)"):
        cf.open_store(f"{path}@v2", **options)
    with pytest.raises(StoreError, match="stays as it is"):
        cf.write_store(universe(), f"{path}@v1", **options)


def test_a_repository_that_was_interrupted_holds_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "box.icechunk"
    cf.write_store(universe(0), path)

    def stop(block: Any) -> Any:
        raise KeyboardInterrupt

    broken = universe(1)["true"].to_dataset()
    broken["density"] = broken["density"].copy(
        data=broken["density"].data.map_blocks(stop, meta=np.empty((0,) * 3, np.float32))
    )
    with pytest.raises(KeyboardInterrupt):
        cf.write_store(broken, path, overwrite=True)
    same(path, 0)


def test_what_is_no_repository_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "box.icechunk"
    path.write_text("precious")
    with pytest.raises(StoreError, match="left alone"):
        cf.write_store(universe(), path, overwrite=True)
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("precious")
    with pytest.raises(StoreError, match="left alone"):
        cf.write_store(universe(), path, overwrite=True)
    assert (path / "notes.txt").read_text() == "precious"


def test_nothing_there(tmp_path: Path, s3: dict[str, Any]) -> None:
    for name in ("none.zarr", "none.zarr.zip", "none.icechunk"):
        with pytest.raises(StoreError, match="No store"):
            cf.open_store(tmp_path / name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match="no Zarr store"):
        cf.open_store("s3://bucket/none.zarr", storage_options=s3)
    with pytest.raises(StoreError, match="No store"):
        cf.open_store("s3://bucket/none.icechunk", storage_options=s3)
    for name in ("box.zarr", "box.icechunk"):
        with pytest.raises(StoreError, match="there is no bucket"):
            cf.write_store(universe(), f"s3://none/{name}", storage_options=s3)
    (tmp_path / "text.zarr.zip").write_text("not a zip file")
    with pytest.raises(StoreError, match="zip file"):
        cf.open_store(tmp_path / "text.zarr.zip")


def test_options_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="path on this machine"):
        cf.open_store(tmp_path / "a.zarr", storage_options={"anon": True})
    with pytest.raises(StoreError, match="expected text, numbers and booleans"):
        cf.open_store("s3://bucket/a.zarr", storage_options={"anon": object()})
    with pytest.raises(StoreError, match="colour"):
        cf.open_store("s3://bucket/a.zarr", storage_options={"colour": "red"})


def test_a_server_that_is_not_there() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9", "anon": True}
    with pytest.raises(StoreError, match="127.0.0.1:9"):
        cf.open_store("s3://bucket/a.zarr", storage_options=options)


@pytest.mark.parametrize("name", ["s3://bucket/a.zarr", "box.icechunk"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    for module in ("obstore.store", "icechunk"):
        monkeypatch.setitem(sys.modules, module, None)
    if "://" not in name:
        (tmp_path / name).mkdir()
        name = str(tmp_path / name)
    from cosmofields.store.places import _objects

    _objects.cache_clear()
    with pytest.raises(cf.CosmofieldsError, match=r"pip install 'cosmofields\[share\]'"):
        cf.open_store(name)


# --- who made it, and from what ---


def test_what_a_store_says_of_itself(tmp_path: Path) -> None:
    made_of = tmp_path / "box.h5"
    made_of.write_bytes(b"halos")
    path = tmp_path / "box.zarr"
    cf.write_store(
        universe(),
        path,
        title="A box",
        authors=["A. Author", "B. Author"],
        license="CC-BY-4.0",
        citation="doi:10.1234/abc",
        inputs=[made_of],
    )
    attrs = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attrs["authors"] == ["A. Author", "B. Author"]
    assert attrs["license"] == "CC-BY-4.0"
    assert attrs["citation"] == "doi:10.1234/abc"
    assert attrs["cosmofields"]["inputs"] == {"box.h5": hashlib.sha256(b"halos").hexdigest()}
    assert "xr.open_datatree" in attrs["README"]
    text = describe(path)
    for words in ("A. Author", "CC-BY-4.0", "doi:10.1234/abc", "A box"):
        assert words in text
    # A copy keeps them, and what is made from it has no README of a store.
    back = cf.open_store(path)
    assert "README" not in back.attrs
    cf.write_store(back, tmp_path / "copy.zarr.zip")
    assert cf.open_store(tmp_path / "copy.zarr.zip").attrs["license"] == "CC-BY-4.0"
    assert cf.verify(tmp_path / "copy.zarr.zip") == []
    with pytest.raises(StoreError, match=r"inputs: .*none.h5"):
        cf.write_store(universe(), tmp_path / "b.zarr", inputs=[tmp_path / "none.h5"])


# --- verify ---


def flip(raw: bytes, at: float = 0.5) -> bytes:
    out = bytearray(raw)
    out[int(at * (len(out) - 1))] ^= 4
    return bytes(out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cf.write_store(universe(), tmp_path / "box.zarr")
    return tmp_path / "box.zarr"


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_found_and_named(folder: Path, at: float) -> None:
    chunk = folder / "true/velocity/c/1/0/0/0"
    chunk.write_bytes(flip(chunk.read_bytes(), at))
    [damage] = cf.verify(folder)
    assert damage.array == "true/velocity"
    assert damage.chunk == "true/velocity/c/1/0/0/0"
    assert "bits have changed" in damage.what


@pytest.mark.parametrize("kind", ["lost", "short", "long", "empty"])
def test_a_chunk_that_is_lost_or_of_a_wrong_size(folder: Path, kind: str) -> None:
    chunk = folder / "halos/mass/c/0"
    raw = chunk.read_bytes()
    if kind == "lost":
        chunk.unlink()
    else:
        chunk.write_bytes({"short": raw[:-5], "long": raw + b"1", "empty": b""}[kind])
    [damage] = cf.verify(folder)
    assert damage.chunk == "halos/mass/c/0"
    assert ("is lost" in damage.what) == (kind == "lost")


def test_metadata_that_have_changed(folder: Path) -> None:
    for name in ("zarr.json", "true/zarr.json"):
        file = folder / name
        before = file.read_text()
        assert "75.0" in before
        file.write_text(before.replace("75.0", "76.0", 1))
        assert cf.verify(folder)[0].chunk == name
        file.write_text(before)
    (folder / "true/density/zarr.json").unlink()
    assert [str(damage) for damage in cf.verify(folder)] == [
        "true/density, true/density/zarr.json: is lost"
    ]


def test_chunks_beyond_the_shape(folder: Path) -> None:
    (folder / "halos/mass/c/7").write_bytes(b"more")
    [damage] = cf.verify(folder)
    assert "1 chunks lie beyond its shape" in str(damage)


def test_in_a_zip_file_and_a_bucket(tmp_path: Path, folder: Path, s3: dict[str, Any]) -> None:
    import obstore

    from cosmofields.store.places import objects, place_of

    name = "true/density/c/0/0/0"
    damaged = flip((folder / name).read_bytes())
    with zipfile.ZipFile(tmp_path / "bad.zarr.zip", "w") as packed:
        for file in sorted(folder.rglob("*")):
            key = file.relative_to(folder).as_posix()
            if file.is_file():
                packed.writestr(key, damaged if key == name else file.read_bytes())
    url = "s3://bucket/bad.zarr"
    cf.write_store(universe(), url, storage_options=s3)
    bucket = objects(place_of(url, s3))
    obstore.put(bucket, name, damaged)
    obstore.delete(bucket, "halos/mass/c/0")
    [damage] = cf.verify(tmp_path / "bad.zarr.zip")
    assert damage.chunk == name
    assert {damage.chunk for damage in cf.verify(url, storage_options=s3)} == {
        name,
        "halos/mass/c/0",
    }
    with pytest.raises(StoreError, match="lost a chunk: halos/mass/c/0"):
        cf.open_store(url, "halos", storage_options=s3).load()


def test_the_verbs(folder: Path, s3: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "sound" in capsys.readouterr().out
    chunk = folder / "true/velocity/c/2/0/0/0"
    chunk.write_bytes(flip(chunk.read_bytes()))
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "true/velocity/c/2/0/0/0" in out
    assert "1 damaged" in out
    url = "s3://bucket/verbs.zarr"
    cf.write_store(universe(), url, storage_options=s3)
    options = [f"--option={key}={value}" for key, value in s3.items()]
    assert main(["info", url, *options]) == 0
    assert "/true" in capsys.readouterr().out
    assert main(["verify", url, *options]) == 0
    assert main(["verify", str(folder.parent / "none.zarr")]) == 2
    with pytest.raises(SystemExit):
        main(["info", url, "--option", "anon"])


def test_progress_of_verify_goes_to_standard_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cf.verify(folder, progress=True)
    out, err = capsys.readouterr()
    assert "100% Completed" in err
    assert out == ""


# --- wherever a path is taken ---


def test_a_report_of_stores_elsewhere(
    tmp_path: Path, s3: dict[str, Any], serve: Callable[..., str]
) -> None:
    cf.write_store(universe(), "s3://bucket/report/box.zarr", storage_options=s3)
    cf.write_store(universe(), tmp_path / "box.zarr.zip")
    cf.write_store(universe(), tmp_path / "box.icechunk")
    cf.write_store(universe(), tmp_path / "served" / "box.zarr")
    web = serve(tmp_path / "served")
    expected = universe(lazy=False)["true"].to_dataset()
    for place in (
        "s3://bucket/report/box.zarr",
        "s3://bucket/report/box.zarr/true",
        f"{web}/box.zarr/true/",
        tmp_path / "box.zarr.zip",
        tmp_path / "box.zarr.zip" / "true",
        tmp_path / "box.icechunk" / "true",
        f"{tmp_path}/box.icechunk@main/true",
    ):
        found = open_source(place, "true", s3)
        xr.testing.assert_identical(found.version.load(), expected)
        assert list(found.beside) == ["halos"]
    with pytest.raises(StoreError, match=r"No group 'none' in the store 's3://bucket/report/box.z"):
        open_source("s3://bucket/report/box.zarr/none", "true", s3)
    with pytest.raises(StoreError, match="None of|No store|no Zarr store"):
        open_source("s3://bucket/nothing/at/all.zarr", "true", s3)


def test_a_catalogue_elsewhere(tmp_path: Path, s3: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    halos = cf.from_arrays(
        rng.uniform(0, 75, (50, 3)), rng.normal(0, 200, (50, 3)), np.full(50, 1e13), **FACTS
    )
    for path, options in (
        ("s3://bucket/halos.zarr", s3),
        (str(tmp_path / "halos.zarr.zip"), {}),
        (str(tmp_path / "halos.icechunk"), {}),
    ):
        cf.write_store(halos, path, storage_options=options or None)
        found = cf.open_catalog(path, storage_options=options)
        assert found.attrs["source"]["format"] == "zarr"
        for name in ("position", "velocity", "mass"):
            np.testing.assert_array_equal(found[name], halos[name])


def test_where_urls_are_not_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    halos = cf.from_arrays(rng.uniform(0, 75, (50, 3)), mass=np.full(50, 1e13), los="z", **FACTS)
    with pytest.raises(StoreError, match="storage_options are for URLs"):
        cf.reconstruct(halos, tmp_path / "a.zarr", storage_options={"anon": True})
    with pytest.raises(StoreError, match="simulated into a folder.*write_store"):
        cf.simulate("s3://bucket/box.zarr", seed=1)
    with pytest.raises(StoreError, match="read from this machine.*write_store"):
        cf.open_box("s3://bucket/box.zarr")
