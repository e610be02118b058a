"""Two writers, kills, full disks: the old store, or one that says that it is not whole."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore

import cosmofields as cf
from cosmofields import stages
from cosmofields.conventions import StoreError
from cosmofields.store import describe, locks, place_of, root_attrs, writing
from cosmofields.store.places import objects

PLACES = ["box.zarr", "box.zarr.zip", "box.icechunk"]


def box(value: float, n: int = 64, block: Any = None) -> xr.Dataset:
    """A field of that value and noise, lazy, in chunks of half its side."""
    noise = np.random.default_rng(int(value)).normal(size=(n,) * 3).astype(np.float32)
    data = da.from_array(noise + np.float32(value), chunks=n // 2)
    if block is not None:
        data = data.map_blocks(block, dtype=np.float32, meta=np.empty((0,) * 3, np.float32))
    return xr.Dataset({"density": (("x", "y", "z"), data)}, attrs={"box_size": 100.0})


def holds(path: Any, value: float, n: int = 64, **options: Any) -> bool:
    found = cf.open_store(path, **options)["density"].values
    return bool(np.array_equal(found, box(value, n)["density"].values))


# --- two writers ---


class Slow:
    """A block that waits, so that a write is under way."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, block: Any) -> Any:
        self.begun.set()
        assert self.go_on.wait(60)
        return block


@pytest.mark.parametrize("name", [*PLACES, "s3://bucket/two/box.zarr", "s3://bucket/two.icechunk"])
def test_the_second_writer_is_refused(tmp_path: Path, s3: dict[str, Any], name: str) -> None:
    remote = "://" in name
    path: Any = name if remote else tmp_path / name
    options = {"storage_options": s3} if remote else {}
    slow = Slow()
    with ThreadPoolExecutor() as elsewhere:
        first = elsewhere.submit(cf.write_store, box(1, block=slow), path, **options)
        assert slow.begun.wait(60)
        with pytest.raises(StoreError, match="Another call is writing"):
            cf.write_store(box(2), path, overwrite=True, **options)
        slow.go_on.set()
        first.result()
    assert holds(path, 1, **options)


def test_who_writes_to_an_object_store_is_said(s3: dict[str, Any]) -> None:
    import obstore

    place = place_of("s3://bucket/locks/box.zarr", s3)
    beside = objects(place, "s3://bucket/locks")
    with locks.alone(place):
        said = json.loads(bytes(obstore.get(beside, ".box.zarr.lock").bytes()))
        assert said["process"] == os.getpid()
        with pytest.raises(StoreError, match=rf"process {os.getpid()}.* lapses after 5 minutes"):
            with locks.alone(place):
                pass
    with pytest.raises(FileNotFoundError):
        obstore.head(beside, ".box.zarr.lock")


def test_the_lock_of_a_writer_that_died_lapses(
    s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    place = place_of("s3://bucket/lapsed/box.zarr", s3)
    beside = objects(place, "s3://bucket/lapsed")
    obstore.put(beside, ".box.zarr.lock", b"no JSON")
    with pytest.raises(StoreError, match="does not say whose"), locks.alone(place):
        pass
    monkeypatch.setattr(locks, "LAPSED", -1.0)
    with locks.alone(place):
        pass
    assert not list(obstore.list(beside))


def test_a_writer_that_was_away_too_long_does_not_end_the_store(
    s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    monkeypatch.setattr(locks, "RENEWED", 0.01)
    url = "s3://bucket/away/box.zarr"
    beside = objects(place_of(url, s3), "s3://bucket/away")

    def robbed(block: Any) -> Any:
        obstore.put(beside, ".box.zarr.lock", b"another's")
        time.sleep(0.3)
        return block

    with pytest.raises(StoreError, match="another one writes the store now"):
        cf.write_store(box(1, block=robbed), url, storage_options=s3)
    with pytest.raises(StoreError, match="not whole"):
        cf.open_store(url, storage_options=s3)
    assert bytes(obstore.get(beside, ".box.zarr.lock").bytes()) == b"another's"


def test_a_lock_that_was_taken_unnoticed_is_neither_held_nor_removed(s3: dict[str, Any]) -> None:
    """As of a process that was stopped: the thread that renews has not woken."""
    import obstore

    place = place_of("s3://bucket/stopped/box.zarr", s3)
    beside = objects(place, "s3://bucket/stopped")
    with locks.alone(place):
        locks.check_alone(place)
        obstore.put(beside, ".box.zarr.lock", b"another's")
        with pytest.raises(StoreError, match="another one writes the store now"):
            locks.check_alone(place)
    with pytest.raises(StoreError, match="does not say whose"), locks.alone(place):
        pass
    obstore.delete(beside, ".box.zarr.lock")
    with locks.alone(place):
        obstore.put(beside, ".box.zarr.lock", b"another's")
    assert bytes(obstore.get(beside, ".box.zarr.lock").bytes()) == b"another's"


def test_a_lapsed_lock_that_goes_meanwhile(
    s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    place = place_of("s3://bucket/meanwhile/box.zarr", s3)
    beside = objects(place, "s3://bucket/meanwhile")
    obstore.put(beside, ".box.zarr.lock", b"of one that died")
    monkeypatch.setattr(locks, "LAPSED", -1.0)
    put, gone = obstore.put, []

    def late(store: Any, key: str, *args: Any, mode: Any, **kwargs: Any) -> Any:
        if mode != "create" and not gone:
            gone.append(key)
            obstore.delete(store, key)
        return put(store, key, *args, mode=mode, **kwargs)

    monkeypatch.setattr(obstore, "put", late)
    with locks.alone(place):
        assert gone
    assert not list(obstore.list(beside))


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    path = tmp_path / "box.zarr"
    code = (
        "import sys, time; from cosmofields.store import alone\n"
        "with alone(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="Another call is writing"):
            cf.write_store(box(1), path)
        child.kill()
    cf.write_store(box(1), path)
    assert os.listdir(tmp_path) == ["box.zarr"]


# --- what was cut short ---


def test_an_object_store_that_is_not_whole(s3: dict[str, Any]) -> None:
    url = "s3://bucket/cut/box.zarr"

    def die(block: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cf.write_store(box(1, block=die), url, storage_options=s3)
    with pytest.raises(StoreError, match="not whole: written up to 0 of 1 chunks"):
        cf.open_store(url, storage_options=s3)
    with pytest.raises(StoreError, match="not whole"):
        cf.verify(url, storage_options=s3)
    cf.write_store(box(2), url, storage_options=s3)
    assert holds(url, 2, storage_options=s3)


def test_what_is_not_ours_in_a_bucket_is_left_alone(s3: dict[str, Any]) -> None:
    import obstore

    url = "s3://bucket/notes"
    bucket = objects(place_of(url, s3))
    obstore.put(bucket, "a.txt", b"precious")
    with pytest.raises(StoreError, match="left alone"):
        cf.write_store(box(1), url, overwrite=True, storage_options=s3)
    assert bytes(obstore.get(bucket, "a.txt").bytes()) == b"precious"


def test_without_a_step_that_swaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box.zarr"
    cf.write_store(box(1), path)
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    cf.write_store(box(2), path, overwrite=True)
    assert holds(path, 2)
    assert os.listdir(tmp_path) == ["box.zarr"]
    rename = Path.rename

    def dies(self: Path, to: Path) -> Path:
        if self.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            cf.write_store(box(3), path, overwrite=True)
    with pytest.raises(StoreError, match=r"the old one is '.*\.box\.zarr\.old'"):
        cf.open_store(path)
    with pytest.raises(StoreError, match="Pass overwrite=True"):
        cf.write_store(box(3), path)  # which has put it back
    assert holds(path, 2)
    cf.write_store(box(3), path, overwrite=True)
    assert holds(path, 3)


def test_the_system_swaps_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    if not writing._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system does not swap folders in one step")
    assert os.listdir(tmp_path / "a") == ["of-b"]
    with pytest.raises(OSError, match="No such file") as caught:
        writing._exchange(tmp_path / "a", tmp_path / "none")
    assert caught.value.errno == errno.ENOENT


def test_a_folder_in_which_nothing_was_finished_is_free(tmp_path: Path) -> None:
    path = tmp_path / "box.zarr"
    path.mkdir()
    (path / f"zarr.{'0' * 32}.partial").touch()
    cf.write_store(box(1), path)
    assert holds(path, 1)


KILLED = """
import sys
import numpy as np, dask.array as da, xarray as xr
from cosmofields.store import write_store
def box(value):
    noise = np.random.default_rng(value).normal(size=(64,) * 3).astype(np.float32)
    data = da.from_array(noise + np.float32(value), chunks=32)
    return xr.Dataset({"density": (("x", "y", "z"), data)}, attrs={"box_size": 100.0})
boxes = [box(0), box(1)]
print("begun", flush=True)
for n in range(10_000):
    for name in sys.argv[2:]:
        write_store(boxes[n % 2], f"{sys.argv[1]}/{name}", overwrite=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    pauses = random.Random(1)
    whole: set[str] = set()
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, tmp_path, *PLACES], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child, child.stdout:
            assert child.stdout.readline() == "begun\n"
            time.sleep(pauses.uniform(0, 1.5))
            child.send_signal(signal.SIGKILL)
        for name in PLACES:
            path = tmp_path / name
            if name in whole or (root_attrs(path) or {}).get("complete"):
                # The old one stays until the new one is whole.
                assert holds(path, 0) or holds(path, 1)
                whole.add(name)
            else:
                with pytest.raises(StoreError, match="not whole|No store|no Zarr store"):
                    cf.open_store(path)
    for name in PLACES:
        cf.write_store(box(2), tmp_path / name, overwrite=True)
        assert holds(tmp_path / name, 2)
        assert cf.verify(tmp_path / name) == []
    assert sorted(os.listdir(tmp_path)) == sorted(PLACES)


# --- disks ---


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``disk(megabytes)`` mounts a small disk."""
    mounted = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        size = f"size={megabytes}m"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", PLACES)
def test_a_full_disk(disk: Callable[..., Path], name: str) -> None:
    folder = disk(4)
    path = folder / name
    cf.write_store(box(0, n=32), path)
    with pytest.raises(StoreError, match=r"cannot be written: .*([Ss]pace|storage)"):
        cf.write_store(box(1, n=128), path, overwrite=True)
    assert holds(path, 0, n=32)
    assert cf.verify(path) == []
    cf.write_store(box(2, n=32), path, overwrite=True)
    assert holds(path, 2, n=32)


def test_a_full_disk_and_a_store_in_stages(disk: Callable[..., Path]) -> None:
    folder = disk(3)
    path = folder / "a.zarr"
    field = xr.DataArray(da.zeros((256, 64, 64), np.float32, chunks=64), dims=("x", "y", "z"))
    tree = xr.DataTree.from_dict({"made": xr.Dataset({"density": field})})
    plan = {"n": 1}
    stages.create(tree, path, plan=plan, stages={"paint": 4}, title="a test")
    (folder / "other").write_bytes(bytes(10**6))
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)

    def fill() -> None:
        with stages.alone(path):
            for task in stages.pending(path, "paint"):
                window = slice(64 * task, 64 * task + 64)
                stages.Target(path, "made/density")[window] = noise
                stages.tick(path, "paint", task)
            stages.close(path, {"made/density": "paint"})

    with pytest.raises(StoreError, match=r"cannot be written: .*space"):
        fill()
    assert 0 < len(stages.pending(path, "paint")) < 4
    with pytest.raises(StoreError, match="not whole"):
        cf.open_store(path)
    assert "stages        paint" in describe(path)
    subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True)
    fill()
    assert cf.verify(path) == []


@pytest.mark.parametrize("name", PLACES)
def test_a_disk_that_is_for_reading_only(disk: Callable[..., Path], name: str) -> None:
    folder = disk(9)
    cf.write_store(box(0, n=32), folder / name)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert holds(folder / name, 0, n=32)
    assert cf.verify(folder / name) == []
    for path in (folder / name, folder / f"new-{name}"):
        with pytest.raises(StoreError, match=r"cannot be written: .*[Rr]ead-only"):
            cf.write_store(box(1, n=32), path, overwrite=True)
    assert holds(folder / name, 0, n=32)


# --- stages elsewhere ---


def test_a_store_in_stages_in_a_bucket(s3: dict[str, Any], tmp_path: Path) -> None:
    url = place_of("s3://bucket/stages/a.zarr", s3)
    tree = xr.DataTree.from_dict({"made": box(0)})
    plan = {"n": 1}
    assert stages.state(url, plan) == "nothing"
    stages.create(tree, url, plan=plan, stages={"paint": 1}, title="a test")
    assert stages.state(url, plan) == "begun"
    with pytest.raises(StoreError, match="not finished"):
        cf.write_store(box(1), url)
    stages.run([stages.write(url, "made", box(7), ["density"])], progress=False)
    stages.tick(url, "paint", 0)
    assert stages.pending(url, "paint") == []
    stages.close(url, {"made/density": "paint"})
    assert stages.state(url, plan) == "whole"
    np.testing.assert_array_equal(cf.open_store(url)["made/density"], box(7)["density"])
    assert cf.verify(url) == []
    for name in ("a.zarr.zip", "a.icechunk"):
        with pytest.raises(StoreError, match="not filled in parts"):
            stages.state(tmp_path / name, plan)


def test_a_full_disk_of_which_numpy_does_not_say_so(disk: Callable[..., Path]) -> None:
    room = disk(1)
    with pytest.raises(StoreError, match="cannot be written"), locks.refusals(place_of(room)):
        with (room / "field.npy").open("wb") as file:
            np.save(file, np.zeros(2**18))
    # What is no matter of the disk stays what it is.
    with pytest.raises(FileNotFoundError), locks.refusals(place_of(room)):
        np.load(room / "none.npy")


@pytest.mark.parametrize("first", ["zarr.json", "made"])
def test_killed_while_what_was_begun_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whatever a call that starts over had removed when it died, it can be made again."""
    path = tmp_path / "a.zarr"
    tree = xr.DataTree.from_dict({"made": box(0), "more": box(1)})
    writing.begin(tree, path, {}, {**writing.stamp(tree, path, None), "complete": False})
    removed = []

    def dies(here: Any, *args: Any, **kwargs: Any) -> None:
        removed.append(here)
        if len(removed) == 2:
            raise KeyboardInterrupt
        rmtree(here, *args, **kwargs)

    rmtree, order = shutil.rmtree, Path.iterdir
    for call in (
        lambda: cf.write_store(box(2), path),
        lambda: stages.create(tree, path, plan={"n": 1}, stages={"paint": 1}, title="a test"),
    ):
        removed.clear()
        with monkeypatch.context() as patch:
            # Whichever of them the system names first.
            patch.setattr(
                Path, "iterdir", lambda self: sorted(order(self), key=lambda p: p.name != first)
            )
            patch.setattr(shutil, "rmtree", dies)
            with pytest.raises(KeyboardInterrupt):
                call()
        assert stages.state(path, {"n": 1}) == "nothing"
        (path / "more").mkdir(exist_ok=True)
    stages.create(tree, path, plan={"n": 1}, stages={"paint": 1}, title="a test")
    assert stages.state(path, {"n": 1}) == "begun"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), PermissionError(13, "denied"), TimeoutError()],
)
def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "box.zarr"
    cf.write_store(box(1), path)
    found = cf.open_store(path)
    get = LocalStore.get

    async def fails(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if "/c/" in key:
            raise error
        return await get(self, key, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "get", fails)
        with pytest.raises(StoreError, match="density/c/.* cannot be read"):
            found.compute()
        with pytest.raises(StoreError, match="cannot be read"):
            cf.verify(path)
        error = MemoryError()
        for call in (found.compute, lambda: cf.verify(path)):
            with pytest.raises(MemoryError):
                call()
    (path / "density/c/0/0/0").unlink()
    assert [str(damage) for damage in cf.verify(path)] == ["density, density/c/0/0/0: is lost"]
