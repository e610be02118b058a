"""Training boxes, samples, symmetries, and a fit that is killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from cosmofields import training
from cosmofields.catalog import NUMBER_DENSITY
from cosmofields.conventions import CosmofieldsError
from cosmofields.inference import predict
from cosmofields.samples import BoxSamples, load_box, periodic_crop, prepare_box, transform
from cosmofields.store import open_store
from cosmofields.training import TrainingConfig, train
from cosmofields.unet import build, load_model


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

    def sample(i: int, **changes: int) -> tuple[torch.Tensor, torch.Tensor]:
        settings = {"vector_inputs": 3, "crop": 8, "length": 4, "seed": 1, "epoch": 2, **changes}
        return BoxSamples(boxes, **settings)[i]

    x, y = sample(0)
    assert x.shape == (8, 8, 8, 8)
    assert y.shape == (3, 8, 8, 8)
    assert torch.equal(sample(0)[0], x)
    for other in (sample(1), sample(0, seed=2), sample(0, epoch=3)):
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
    bias = [2.0, 1.5, 1.2, 1.1]
    with h5py.File(box_file) as file:
        rho = file["fields/density"][:]
        momentum = file["fields/momentum"][:]
    for los, order in (("x", (1, 2, 0)), ("y", (2, 0, 1)), ("z", (0, 1, 2))):
        store = prepare_box(box_file, tmp_path, los=los)
        inputs, truth = load_box(store, "velocity", density_model=density, bias=bias)
        assert inputs.shape == (8, *rho.shape)
        expected = (momentum / rho)[list(order)].transpose(0, *(1 + axis for axis in order))
        np.testing.assert_allclose(truth, expected, rtol=1e-5, atol=1e-3)
        # Linear velocity among the inputs points where the true one does.
        for linear, true in zip(inputs[5:], truth, strict=True):
            assert np.corrcoef(linear.ravel(), true.ravel())[0, 1] > 0.2
        inputs, truth = load_box(store, "density")
        np.testing.assert_allclose(truth[0], rho.transpose(order), rtol=1e-5)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 5)


def config(target: str, **changes: Any) -> TrainingConfig:
    settings = {
        "options": {"widths": [4, 4, 4]},
        "steps": 10,
        "settle_steps": 5,
        "crop": 16,
        "margin": 2,
        "precision": "32-true",
        **changes,
    }
    return TrainingConfig(target, **settings)


@pytest.fixture(scope="module")
def validation_file(
    make_box: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_box(tmp_path_factory.mktemp("validation") / "other.h5", seed=2)


# Lightning's own: of few workers, of torch's pytree, of an advertisement, of a run that resumes.
QUIET = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*litlogger.*",
    "ignore:Checkpoint directory .* exists and is not empty",
)


@QUIET
def test_train_both_steps_and_use_them(
    box_file: Path, validation_file: Path, tmp_path: Path, short: None
) -> None:
    out = tmp_path / "models"
    for target in ("density", "velocity"):
        path = train(
            config(target), [box_file], [validation_file], out, density_model=out, progress=False
        )
        assert path == out / f"{target}.json"
        card = json.loads(path.read_text())
        assert card["training"]["boxes"] == [box_file.name]
        assert card["training"]["validation"] == ["other.h5"]
        assert card["trained_for"]["number_density"] == list(NUMBER_DENSITY)
        assert card["trained_for"]["redshift"] == 0.59
        assert np.isfinite(card["training"]["validation_loss"])
        curve = next((out / f"{target}-log").rglob("metrics.csv")).read_text()
        assert "val_loss" in curve
    store = next((out / "boxes").glob(f"{box_file.stem}-x-*.zarr"))
    observed = open_store(store)[["halo_density"]]
    fields = predict(observed.load(), out)
    assert np.isfinite(fields["velocity"]).all()


@QUIET
@pytest.mark.parametrize("at", [8, 13], ids=["in the main phase", "while settling"])
def test_killed_training_resumes_as_if_undisturbed(
    at: int,
    box_file: Path,
    validation_file: Path,
    tmp_path: Path,
    short: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(out: Path) -> dict[str, torch.Tensor]:
        train(config("density"), [box_file], [validation_file], out, progress=False)
        return load_model("density", out)[0].state_dict()

    undisturbed = run(tmp_path / "a")
    real = training.Fit.training_step
    calls = []

    def dies(self: Any, batch: Any, index: int) -> torch.Tensor:
        calls.append(index)
        if len(calls) == at:
            raise MemoryError("killed")
        return real(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(training.Fit, "training_step", dies)
        with pytest.raises(MemoryError):
            run(tmp_path / "b")
    assert not (tmp_path / "b" / "density.json").exists()
    resumed = run(tmp_path / "b")
    for name, value in undisturbed.items():
        assert torch.equal(resumed[name], value), name


@QUIET
def test_another_configuration_is_refused(
    box_file: Path, validation_file: Path, tmp_path: Path, short: None
) -> None:
    train(config("density"), [box_file], [validation_file], tmp_path, progress=False)
    with pytest.raises(CosmofieldsError, match="another configuration or of other boxes"):
        train(config("density", seed=1), [box_file], [validation_file], tmp_path, progress=False)


def test_a_box_cannot_serve_as_both(box_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(box_file.read_bytes())
    with pytest.raises(CosmofieldsError, match="one file serves as both"):
        train(config("density"), [box_file], [copy], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "speed"}, "No model"),
        ({"architecture": "resnet"}, "No model"),
        ({"options": {"depth": 3}}, "do not fit"),
        ({"architecture": "paper", "options": {"widths": [4, 4, 4, 4]}}, "do not fit"),
        ({"crop": 18}, "multiple of 4"),
        ({"crop": 16, "margin": 8}, "twice the margin"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_configuration_is_refused_at_the_door(
    changes: dict[str, Any],
    message: str,
    box_file: Path,
    validation_file: Path,
    tmp_path: Path,
) -> None:
    bad = replace(config("density"), **changes)
    with pytest.raises(CosmofieldsError, match=message):
        train(bad, [box_file], [validation_file], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_bad_boxes_are_refused_at_the_door(
    make_box: Callable[..., Path], box_file: Path, validation_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(boxes: list[Path], target: str = "density") -> str:
        with pytest.raises(CosmofieldsError) as caught:
            train(config(target), boxes, [validation_file], out, density_model=out, progress=False)
        assert not out.exists()
        return str(caught.value)

    assert "No file" in refused([tmp_path / "none.h5"])
    assert "at least one box" in refused([])
    assert "No density model" in refused([box_file], "velocity")
    other = make_box(tmp_path / "coarse.h5", n_grid=16)
    assert "differ in kind" in refused([box_file, other])
    test_box = make_box(tmp_path / "test.h5", seed=9)
    with h5py.File(test_box, "a") as file:
        file.attrs["role"] = "test"
    assert "calls itself a test box" in refused([test_box])


@pytest.mark.parametrize("architecture", ["residual", "paper"])
@pytest.mark.parametrize("target", ["density", "velocity"])
def test_losses_fall(architecture: str, target: str) -> None:
    # Overfit one crop: the loss, its gradient and the heads fit together.
    torch.manual_seed(0)
    steady = {"dropout": 0.0} if architecture == "paper" else {}
    model = build(architecture, target, n_bins=2, widths=[4, 8, 8], **steady)
    x = torch.rand(1, model.n_in, 16, 16, 16)
    truth = 1 + 3 * x[:, :1]
    if target == "velocity":
        smooth = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4, 4), size=16)
        truth = 300 * smooth
        x[:, -3:] = truth + 100
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = model.loss(x, truth, 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    thirds = [np.mean(losses[i : i + 10]) for i in (0, 10, 20)]
    assert all(later < earlier for earlier, later in pairwise(thirds))
