"""A store that is filled in stages says what it is, what is left, and that it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from cosmofields import stages
from cosmofields.conventions import StoreError, label, make_grid
from cosmofields.store import describe, open_store, write_store

WRITERS = {"made/density": "paint"}
PLAN = {"n_grid": [70, 8, 8], "tile": 64, "models": {"density": "abc"}}
GRID = make_grid((70, 8, 8), (350.0, 40.0, 40.0))


def tree() -> xr.DataTree:
    density = label("density", da.zeros(GRID.shape, np.float32, chunks=64), GRID, {})
    halos = xr.Dataset({"mass": ("halo", np.arange(5.0, dtype=np.float32))})
    fields = xr.Dataset({"density": density}, attrs={"box_size": list(GRID.lengths)})
    return xr.DataTree.from_dict({"made": fields, "halos": halos})


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    path = tmp_path / "a.zarr"
    stages.create(tree(), path, plan=PLAN, stages={"paint": 1, "network": 3}, title="a test")
    return path


def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)


def fill(path: Path) -> None:
    for window in (slice(0, 64), slice(64, 70)):
        stages.Target(path, "made/density")[window] = values()[window]


def test_a_template_holds_what_is_not_lazy_and_no_field(begun: Path) -> None:
    assert stages.state(begun, PLAN) == "begun"
    np.testing.assert_array_equal(stages.open_group(begun, "halos").mass, np.arange(5))
    np.testing.assert_array_equal(stages.open_group(begun, "made").x, np.arange(70) * 5)
    assert stages.read(begun, "made/density").nchunks_initialized == 0
    with pytest.raises(StoreError, match="not whole"):
        open_store(begun)
    assert "not whole" in describe(begun)


def test_tasks_are_ticked_off_and_the_end_is_a_whole_store(begun: Path) -> None:
    assert stages.pending(begun, "network") == [0, 1, 2]
    stages.tick(begun, "network", 1)
    assert stages.pending(begun, "network") == [0, 2]
    assert stages.pending(begun, "paint") == [0]
    fill(begun)
    stages.close(begun, WRITERS)
    assert stages.state(begun, PLAN) == "whole"
    back = open_store(begun)
    np.testing.assert_array_equal(back["made/density"], values())
    assert set(back.children) == {"made", "halos"}
    assert stages.LEDGER not in zarr.open_group(str(begun), mode="r")


@pytest.mark.parametrize("step", ["create_group", "open_group", "finish"])
def test_nothing_is_redone_if_the_end_was_cut_short(
    step: str, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(begun)
    with monkeypatch.context() as patch:
        calls = []
        place = stages if step == "finish" else zarr
        real = getattr(place, step)

        def dies(*args: Any, **kwargs: Any) -> Any:
            calls.append(step)
            if step != "open_group" or len(calls) == 2:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        patch.setattr(place, step, dies)
        with pytest.raises(KeyboardInterrupt):
            stages.close(begun, WRITERS)
    if step == "create_group":  # and the ledger half removed
        (begun / stages.LEDGER / "paint" / "zarr.json").unlink()
        (begun / stages.LEDGER / "zarr.json").unlink()
    assert stages.state(begun, PLAN) == "begun"
    assert stages.pending(begun, "paint") == stages.pending(begun, "network") == []
    stages.close(begun, WRITERS)
    assert stages.state(begun, PLAN) == "whole"
    assert not (begun / stages.LEDGER).exists()
    np.testing.assert_array_equal(open_store(begun)["made/density"], values())


def test_a_chunk_that_is_gone_at_the_end_is_made_again(begun: Path) -> None:
    fill(begun)
    stages.tick(begun, "paint", 0)
    stages.tick(begun, "network", 1)
    (begun / "made" / "density" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="lost chunks of made/density: make the call again"):
        stages.close(begun, WRITERS)
    assert stages.pending(begun, "paint") == [0]
    assert stages.pending(begun, "network") == [0, 2]


def test_one_call_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with stages.alone(path):
        with pytest.raises(StoreError, match="Another call is writing"), stages.alone(path):
            pass
        write_store(tree(), path)  # a call within the call, as simulate makes
        other = tmp_path / "b.zarr"
        with stages.alone(other):
            pass
    with stages.alone(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [0, np.nan])
def test_every_chunk_is_written_so_that_a_lost_one_shows(begun: Path, value: float) -> None:
    target = stages.Target(begun, "made/density")
    target[:64] = np.full((64, 8, 8), value, np.float32)
    assert stages.read(begun, "made/density").nchunks_initialized == 1
    target[64:] = np.full((6, 8, 8), value, np.float32)
    stages.close(begun, WRITERS)
    (begun / "made" / "density" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="lost a chunk: made/density/c/0/0/0"):
        open_store(begun, "made").load()


def test_another_plan_is_refused_with_what_differs(begun: Path) -> None:
    other = {**PLAN, "tile": 32, "precision": "float32"}
    with pytest.raises(StoreError, match=r"tile is 64 there, 32 in this call, precision is None"):
        stages.state(begun, other)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    zarr.create_group(str(tmp_path / "other.zarr"))
    write_store(xr.Dataset({"a": ("i", [1.0])}), tmp_path / "ours.zarr")
    for name in ("notes", "file", "other.zarr", "ours.zarr"):
        with pytest.raises(StoreError, match="Choose another path"):
            stages.state(tmp_path / name, PLAN)
    assert stages.state(tmp_path / "none", PLAN) == "nothing"
    (tmp_path / "empty").mkdir()
    assert stages.state(tmp_path / "empty", PLAN) == "nothing"


def test_a_template_cut_short_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(xr.DataTree, "to_zarr", die)
        with pytest.raises(KeyboardInterrupt):
            stages.create(tree(), path, plan=PLAN, stages={"paint": 1}, title="a test")
    assert stages.state(path, PLAN) == "nothing"
    stages.create(tree(), path, plan=PLAN, stages={"paint": 1}, title="a test")
    assert stages.state(path, PLAN) == "begun"


def test_write_store_does_not_start_it_over(begun: Path) -> None:
    stages.tick(begun, "network", 1)
    with pytest.raises(StoreError, match="not finished"):
        write_store(xr.Dataset({"a": ("i", [1.0])}), begun, overwrite=True)
    assert stages.pending(begun, "network") == [0, 2]


def test_lazy_fields_are_written_by_whole_chunks(begun: Path) -> None:
    lazy = da.from_array(values(), chunks=(35, 3, 8))
    ds = xr.Dataset({"density": label("density", lazy, GRID, {})})
    stages.run([stages.write(begun, "made", ds, ["density"])], progress=False)
    np.testing.assert_array_equal(stages.open_group(begun, "made").density, values())
