"""Training boxes: prepared stores, samples, the symmetries of augmentation."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from cosmofields.conventions import CosmofieldsError, StoreError
from cosmofields.linear import linear_theory
from cosmofields.readers import open_box
from cosmofields.samples import (
    ABANDONED,
    BoxSamples,
    cache_box,
    file_digest,
    load_box,
    periodic_crop,
    prepare_box,
    transform,
)
from cosmofields.simulation import simulate
from cosmofields.store import open_store, write_store
from cosmofields.training import Fit, TrainingConfig, check_run
from cosmofields.unet import build


def gradient(f: np.ndarray) -> np.ndarray:
    return np.stack([(np.roll(f, -1, a) - np.roll(f, 1, a)) / 2 for a in range(3)])


def test_symmetries_turn_vectors_with_the_axes() -> None:
    # The gradient of the transformed field is the transformed gradient: tells every sign and swap.
    f = np.random.default_rng(0).standard_normal((6, 6, 4)).astype(np.float32)
    both = np.concatenate([f[None], gradient(f)])
    seen = set()
    for element in range(16):
        moved = transform(both, element, 3)
        np.testing.assert_allclose(moved[1:], gradient(moved[0]), atol=1e-6)
        seen.add(moved[0].tobytes())
        assert moved.flags.c_contiguous
    assert len(seen) == 16


def test_symmetries_keep_the_line_of_sight() -> None:
    z = np.broadcast_to(np.arange(4.0, dtype=np.float32), (1, 4, 4, 4))
    for element in range(16):
        moved = transform(z, element, 0)
        assert (np.ptp(moved, axis=(0, 1, 2)) == 0).all()


def test_symmetry_leaves_its_input_alone() -> None:
    f = np.ones((3, 4, 4, 4), np.float32)
    transform(f, 15, 3)
    assert (f == 1).all()


def test_periodic_crop() -> None:
    n = 8
    x, y, z = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    array = (100 * x + 10 * y + z)[None].astype(np.float32)
    crop = periodic_crop(array, (6, 7, 3), 4)
    assert crop.shape == (1, 4, 4, 4)
    assert crop[0, 2, 1, 0] == 100 * 0 + 10 * 0 + 3
    for axis, size in enumerate((100, 10, 1)):
        steps = np.diff(crop[0], axis=axis)
        assert set(np.unique(steps)) <= {size, size - n * size}


def test_samples_depend_on_seed_epoch_and_index_alone() -> None:
    rng = np.random.default_rng(0)
    boxes = [
        (rng.random((8, 16, 16, 16), np.float32), rng.random((3, 16, 16, 16), np.float32))
        for _ in range(2)
    ]

    def sample(epoch: int, i: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        return BoxSamples(boxes, vector_inputs=3, crop=8, seed=seed)[epoch, i]

    x, y = sample(2, 0)
    assert x.shape == (8, 8, 8, 8)
    assert y.shape == (3, 8, 8, 8)
    assert torch.equal(sample(2, 0)[0], x)
    for other in (sample(2, 1), sample(2, 0, seed=2), sample(3, 0)):
        assert not torch.equal(other[0], x)


def test_prepared_box(box_file: Path, tmp_path: Path) -> None:
    path = prepare_box(box_file, tmp_path, los="y")
    ds = open_store(path)
    assert set(ds) == {"halo_density", "density", "velocity"}
    assert ds.attrs["los"] == "y"
    bias = ds["halo_density"].attrs["linear_bias"]
    assert len(bias["mass_bins"]) == 4
    assert len(bias["all_by_number"]) == 1
    stamp = (path / "zarr.json").stat().st_mtime_ns
    assert prepare_box(box_file, tmp_path, los="y") == path
    assert (path / "zarr.json").stat().st_mtime_ns == stamp
    # Another observation, or another file of the same name, is another store.
    assert prepare_box(box_file, tmp_path, los="y", weighting="number") != path


def test_preparing_resumes_after_a_kill(box_file: Path, tmp_path: Path) -> None:
    path = prepare_box(box_file, tmp_path)
    whole = open_store(path).load()
    root = path / "zarr.json"
    meta = json.loads(root.read_text())
    meta["attributes"]["complete"] = False
    root.write_text(json.dumps(meta))
    assert prepare_box(box_file, tmp_path) == path
    xr.testing.assert_equal(open_store(path).load(), whole)


def test_two_files_of_one_name_are_two_boxes(
    make_box: Callable[..., Path], box_file: Path, tmp_path: Path
) -> None:
    other = make_box(tmp_path / box_file.name, seed=5)
    assert prepare_box(box_file, tmp_path) != prepare_box(other, tmp_path)


def test_loaded_box_has_the_line_of_sight_last(box_file: Path, tmp_path: Path) -> None:
    density = build("residual", "density", widths=[4, 4, 4]).eval()
    bias = {"mass_bins": [2.0, 1.5, 1.2, 1.1]}
    earlier = {"density": (density, {"linear_bias": bias})}
    with h5py.File(box_file) as file:
        rho = file["fields/density"][:]
        momentum = file["fields/momentum"][:]
    for los, order in (("x", (1, 2, 0)), ("y", (2, 0, 1)), ("z", (0, 1, 2))):
        store = prepare_box(box_file, tmp_path, los=los)
        inputs, truth = load_box(store, "velocity", earlier=earlier, bias=bias)
        assert inputs.shape == (8, *rho.shape)
        expected = (momentum / rho)[list(order)].transpose(0, *(1 + axis for axis in order))
        np.testing.assert_allclose(truth, expected, rtol=1e-5, atol=1e-3)
        # Linear velocity among the inputs points where the true one does.
        for linear, true in zip(inputs[5:], truth, strict=True):
            assert np.corrcoef(linear.ravel(), true.ravel())[0, 1] > 0.2
        inputs, truth = load_box(store, "density", bias=bias)
        assert inputs.shape == (7, *rho.shape)
        np.testing.assert_allclose(truth[0], rho.transpose(order), rtol=1e-5)


@pytest.fixture
def store(box_file: Path, tmp_path: Path) -> Path:
    """The box as `simulate` writes it."""
    halos, true = open_box(box_file)
    path = tmp_path / f"{box_file.stem}.zarr"
    write_store(xr.DataTree.from_dict({"halos": halos, "true": true}), path)
    return path


def test_store_is_the_box_that_the_file_is(store: Path, box_file: Path) -> None:
    for read, expected in zip(open_box(store), open_box(box_file), strict=True):
        xr.testing.assert_allclose(read, expected)
        assert read.attrs["source"]["role"] == "training"
    halos, true = open_box(store)
    assert halos.chunks == {}
    assert true.chunks
    assert halos.attrs["source"]["file"] == store.name


def test_simulated_store_is_a_box(cosmology: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("kdcount")
    path = tmp_path / "box.zarr"
    simulate(
        path,
        seed=3,
        box_size=60.0,
        n_particles=24,
        n_grid=16,
        n_steps=4,
        redshift=0.59,
        cosmology=cosmology,
        role="test",
        progress=False,
    )
    halos, true = open_box(path)
    assert halos.attrs["source"]["role"] == "test"
    assert true["density"].shape == (16, 16, 16)
    config = TrainingConfig("density", crop=16, margin=2, options={"widths": [4, 4, 4]})
    with pytest.raises(CosmofieldsError, match="calls itself a test box"):
        check_run(Fit(config), [path], [path])


def test_store_without_its_groups_is_no_box(tmp_path: Path) -> None:
    write_store(xr.Dataset({"density": ("x", np.ones(4))}), tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="no simulated box: it lacks .*halos/position.*true/dens"):
        open_box(tmp_path / "a.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError):
        open_box(tmp_path / "folder")


def test_digest_of_a_store_is_of_its_numbers(store: Path, tmp_path: Path) -> None:
    digest = file_digest(store)
    root = store / "zarr.json"
    meta = json.loads(root.read_text())
    meta["attributes"]["history"] = "written on another day"
    root.write_text(json.dumps(meta))
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    assert file_digest(copy) == digest
    chunk = next(part for part in (copy / "true").rglob("*") if part.is_file() and part.name == "0")
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert file_digest(copy) != digest


def test_cached_box_is_the_loaded_one(
    box_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepare_box(box_file, tmp_path, number_density=[1e-3])
    bias = {"mass_bins": [2.0], "power_ratio": [1.5]}
    model = build("residual", "density", n_bins=1, widths=[4, 4, 4]).eval()
    earlier = {"density": (model, {"linear_bias": {}})}
    names = ("halo_density", "density", "unfiltered_momentum")
    parts: list[Path] = []

    def full(file: Any, array: Any) -> None:
        file.write(b"begun")
        parts.append(Path(file.name))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("numpy.save", full)
        with pytest.raises(StoreError, match="momentum-.*No space"):
            cache_box(path, "momentum", inputs=names, earlier=earlier, bias=bias)
    (begun,) = parts
    assert not begun.exists()
    # What killed runs left goes; what may be another's stays.
    old, young = begun.with_suffix(".0.part"), begun.with_suffix(".1.part")
    for left in (old, young):
        left.touch()
    os.utime(old, (0, time.time() - 2 * ABANDONED))
    files = cache_box(path, "momentum", inputs=names, earlier=earlier, bias=bias)
    inputs, truth = load_box(path, "momentum", inputs=names, earlier=earlier, bias=bias)
    assert inputs.shape[0] == 5
    for file, array in zip(files, (inputs, truth), strict=True):
        np.testing.assert_array_equal(np.load(file), array)
    assert not old.exists()
    assert young.exists()
    # Eq. 3: (1 + delta) v of linear theory.
    observed = open_store(path, "/").load()[["halo_density"]]
    theory = linear_theory(observed, method="paper", bias=[1.5])
    expected = (theory["density"] * theory["velocity"]).transpose("component", "x", "y", "z")
    np.testing.assert_allclose(inputs[2:], expected, rtol=1e-5, atol=1e-3)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("cosmofields.samples.load_box", never)
    assert cache_box(path, "momentum", inputs=names, earlier=earlier, bias=bias) == files
    # Another bias counts if it is the one that the inputs are made with.
    other = bias | {"mass_bins": [2.1]}
    assert cache_box(path, "momentum", inputs=names, earlier=earlier, bias=other) == files
    other = bias | {"power_ratio": [1.6]}
    with pytest.raises(AssertionError, match="made again"):
        cache_box(path, "momentum", inputs=names, earlier=earlier, bias=other)
    # Crops of mapped files are those of the arrays.
    both = [
        BoxSamples([box], vector_inputs=3, crop=8, seed=0)[1, 2] for box in (files, (inputs, truth))
    ]
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)
