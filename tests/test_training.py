"""Fits: configuration, what is refused, killed and resumed, early settling, loading ahead."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
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
from cosmofields.inference import predict, predict_momentum
from cosmofields.plotting import open_curves, plot_training
from cosmofields.readers import open_box
from cosmofields.samples import BoxSamples
from cosmofields.store import open_store, write_store
from cosmofields.training import EpochSampler, Loader, TrainingConfig, loaders, train
from cosmofields.unet import build, cited, load_model


def config(target: str, **changes: Any) -> TrainingConfig:
    settings = {
        "options": {"widths": [4, 4, 4]},
        "steps": 10,
        "settle_steps": 5,
        "steps_per_epoch": 5,
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
    path = tmp_path_factory.mktemp("validation") / "other.h5"
    return make_box(path, seed=2, role="validation")


def as_store(box: Path, path: Path) -> Path:
    """A box as `simulate` writes it."""
    halos, true = open_box(box)
    write_store(xr.DataTree.from_dict({"halos": halos, "true": true}), path)
    return path


# Lightning's own: of torch's pytree, of an advertisement.
QUIET = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",
    "ignore:.*litlogger.*",
)


@QUIET
def test_train_both_steps_and_use_them(
    box_file: Path, validation_file: Path, tmp_path: Path
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
        assert card["training"]["seconds"] >= 0
        assert "threads of" in card["training"]["machine"] or torch.cuda.is_available()
        curve = next((out / f"{target}-log").rglob("metrics.csv")).read_text()
        assert "val_loss" in curve
    figure = plot_training(out)
    assert [ax.get_title() for ax in figure.axes] == ["density", "velocity"]
    store = next((out / "boxes").glob(f"{box_file.stem}-x-*.zarr"))
    observed = open_store(store)[["halo_density"]]
    fields = predict(observed.load(), out)
    assert np.isfinite(fields["velocity"]).all()


@pytest.mark.slow
@QUIET
def test_momentum_sees_what_the_earlier_steps_predict(
    box_file: Path, validation_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    changes = {"steps": 2, "settle_steps": 2, "steps_per_epoch": 2, "weighting": "number"}
    for target in ("density", "velocity", "momentum"):
        path = train(
            config(target, **changes),
            [box_file],
            [validation_file],
            out,
            density_model=out,
            progress=False,
        )
    card = json.loads(path.read_text())
    assert card["inputs"] == ["halo_density", "density", "velocity"]
    assert card["trained_for"]["weighting"] == "number"
    assert card["training"]["velocity_model"] == cited(load_model("velocity", out)[1])
    store = next((out / "boxes").glob(f"{box_file.stem}-y-*.zarr"))
    ds = open_store(store).load()
    fields = predict(ds[["halo_density"]], out, precision="float32")
    inputs, truth = (np.load(file) for file in sorted(store.parent.glob(f"{store.stem}-momentum*")))
    # The line of sight is turned last: y, so z, x, y.
    density = fields["density"].values.transpose(2, 0, 1)
    np.testing.assert_allclose(inputs[4], density, rtol=1e-4)
    velocity = fields["velocity"].values[[2, 0, 1]].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(inputs[5:], velocity, atol=0.05)
    true = (ds["velocity"] * ds["density"]).values[[2, 0, 1]].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(truth, true, rtol=1e-5)
    # In use it sees the same, eagerly and lazily.
    observed = ds[["halo_density"]]
    momentum = predict_momentum(observed, out, precision="float32")
    with torch.no_grad():
        seen = load_model("momentum", out)[0](torch.from_numpy(inputs)[None])[0].numpy()
    np.testing.assert_allclose(
        momentum.values[[2, 0, 1]].transpose(0, 3, 1, 2)[:, 12:20, 12:20, 12:20],
        seen[:, 12:20, 12:20, 12:20],
        atol=0.1,
    )
    lazy = predict_momentum(observed.chunk({"x": 16}), out, precision="float32")
    assert lazy.chunks
    np.testing.assert_allclose(lazy, momentum, atol=0.05)
    assert momentum.attrs["units"] == "km/s"
    # Earlier models that saw other halos are refused.
    with pytest.raises(CosmofieldsError, match="train a density model on the same halos first"):
        train(
            config("momentum", steps=2),
            [box_file],
            [validation_file],
            tmp_path / "other",
            density_model=out,
            progress=False,
        )


@QUIET
@pytest.mark.parametrize("at", [8, 13], ids=["in the main phase", "while settling"])
def test_killed_training_resumes_as_if_undisturbed(
    at: int,
    box_file: Path,
    validation_file: Path,
    tmp_path: Path,
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
    box_file: Path, validation_file: Path, tmp_path: Path
) -> None:
    train(config("density"), [box_file], [validation_file], tmp_path, progress=False)
    with pytest.raises(CosmofieldsError, match="another configuration or of other boxes"):
        train(config("density", seed=1), [box_file], [validation_file], tmp_path, progress=False)


@QUIET
def test_auto_is_the_faster_precision_where_the_fit_began(
    box_file: Path, validation_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = config("density", steps=1, settle_steps=0, steps_per_epoch=1, precision="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def precision(out: str, *, amx: bool) -> str:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        card = train(short, [box_file], [validation_file], tmp_path / out, progress=False)
        return json.loads(card.read_text())["training"]["config"]["precision"]

    assert precision("without", amx=False) == "32-true"
    assert precision("without", amx=True) == "32-true"  # resumed on another machine
    assert precision("with", amx=True) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert training.faster_precision() == expected


def test_a_box_cannot_serve_as_both(box_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(box_file.read_bytes())
    with h5py.File(copy, "a") as file:
        del file.attrs["role"]
    with pytest.raises(CosmofieldsError, match="are one box, by code, seed and size"):
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
        ({"patience": -1}, "patience=-1"),
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
    assert "density.safetensors and density.json" in refused([box_file], "velocity")
    other = make_box(tmp_path / "coarse.h5", n_grid=16)
    assert "differ in kind" in refused([box_file, other])
    test_box = make_box(tmp_path / "test.h5", seed=9, role="test")
    assert "calls itself a test box" in refused([test_box])
    store = as_store(test_box, tmp_path / "test.zarr")
    assert "calls itself a test box" in refused([store])
    assert "was given for training" in refused([make_box(tmp_path / "v.h5", role="validation")])
    with pytest.raises(CosmofieldsError, match="calls itself a test box"):
        train(config("density"), [box_file], [store], out, progress=False)
    with pytest.raises(CosmofieldsError, match="a training box; it was given for validation"):
        train(config("density"), [box_file], [make_box(tmp_path / "t.h5", seed=3)], out)


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


@QUIET
def test_stores_train_as_their_files_do(
    box_file: Path, validation_file: Path, tmp_path: Path
) -> None:
    losses = []
    for boxes in (
        (box_file, validation_file),
        (as_store(box_file, tmp_path / "a.zarr"), as_store(validation_file, tmp_path / "b.zarr")),
    ):
        out = tmp_path / f"out-{boxes[0].suffix[1:]}"
        path = train(config("density", steps=5), boxes[:1], boxes[1:], out, progress=False)
        losses.append(json.loads(path.read_text())["training"]["validation_loss"])
    assert losses[0] == losses[1]


@QUIET
def test_main_phase_ends_when_the_loss_no_longer_falls(
    box_file: Path, validation_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate of nothing: the loss stays what it was, so two epochs show that it does.
    settings = config("density", steps=100, patience=2, learning_rate=1e-30)
    train(settings, [box_file], [validation_file], tmp_path)
    curves = open_curves(tmp_path)
    assert curves.sizes["epoch"] == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if "epoch" in line]
    assert len(lines) == 4
    assert "density: epoch 1 of 21, loss" in lines[0]
    assert "density: epoch 4 of 4, settling, loss" in lines[3]
    for line in lines:
        assert re.search(r"loss [\d.]+, validation [\d.]+", line)
        assert re.search(r" s a step, \d+% of it loading, .* left$", line)


@QUIET
def test_early_settling_resumes(
    box_file: Path, validation_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Any) -> None:
        if self.current_epoch >= self.settle_from:
            raise MemoryError("killed")

    settings = config("density", steps=100, patience=2, learning_rate=1e-30)
    with monkeypatch.context() as patch:
        patch.setattr(training.Fit, "on_train_epoch_start", dies)
        with pytest.raises(MemoryError):
            train(settings, [box_file], [validation_file], tmp_path, progress=False)
    train(settings, [box_file], [validation_file], tmp_path, progress=False)
    assert open_curves(tmp_path).sizes["epoch"] == 4


def test_checkpoint_survives_a_kill_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    training.AtomicCheckpoint().save_checkpoint({"epoch": 1}, path)

    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            training.AtomicCheckpoint().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1}
    training.AtomicCheckpoint().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 2}


class Slow(torch.utils.data.Dataset):
    """Samples that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitem__(self, which: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.seconds)
        return torch.tensor(which), torch.tensor(which)


def test_loading_does_not_starve_the_step() -> None:
    # Sleeping takes no processor, so the times hold on a busy machine.
    loader = Loader(Slow(0.02), EpochSampler(20), batch_size=1)
    start = time.perf_counter()
    seen = []
    for batch, _ in loader:
        seen.append(batch[0].tolist())
        time.sleep(0.04)
    took = time.perf_counter() - start
    assert seen == [[1, i] for i in range(20)]
    # One after the other: 20 x 60 ms, of which 400 ms would be waiting; ahead, the first alone.
    assert loader.waited < 0.15
    assert took < 1.1


def test_loader_passes_errors_on_and_can_be_left() -> None:
    class Broken(Slow):
        def __getitem__(self, which: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            if which[1] == 3:
                raise ValueError("no such crop")
            return super().__getitem__(which)

    loader = Loader(Broken(0), EpochSampler(5), batch_size=1)
    with pytest.raises(ValueError, match="no such crop"):
        list(loader)
    before = threading.active_count()
    for _ in Loader(Slow(0), EpochSampler(5), batch_size=1):
        break
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.slow
def test_workers_make_the_same_crops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = []
    for name, channels in (("inputs", 4), ("truth", 1)):
        files.append(tmp_path / f"{name}.npy")
        np.save(files[-1], rng.random((channels, 16, 16, 16), np.float32))
    settings = config("density", steps_per_epoch=4, batch_size=2, crop=8)
    epochs = []
    for workers in (0, 2):
        loader, _ = loaders(settings, [tuple(files)], [tuple(files)], workers)
        epochs.append([])
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            epochs[-1] += list(loader)
    for one, other in zip(*epochs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_a_worker_receives_is_light(tmp_path: Path) -> None:
    file = tmp_path / "box.npy"
    np.save(file, np.ones((4, 32, 32, 32), np.float32))
    samples = BoxSamples([(file, file)], vector_inputs=0, crop=8, seed=0)
    samples[0, 0]
    assert len(pickle.dumps(samples)) < 1000
    code = (
        "import sys, cosmofields.samples; heavy = 'numba pytorch_lightning matplotlib camb optuna';"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_kill_9_and_resume(box_file: Path, validation_file: Path, tmp_path: Path) -> None:
    # The same command again after SIGKILL in the middle of an epoch: the same loss to the bit.
    settings = tmp_path / "fit.toml"
    settings.write_text(
        f"""
target = "density"
[data]
boxes = ["{box_file}"]
validation = ["{validation_file}"]
[model]
widths = [4, 4, 4]
[training]
steps = 120
settle_steps = 30
steps_per_epoch = 30
crop = 16
margin = 2
precision = "32-true"
"""
    )
    code = (
        "import sys; from cosmofields.training import read_run, train; run = read_run(sys.argv[1]);"
        "train(run.config, run.boxes, run.validation, sys.argv[2])"
    )

    def start(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(settings), str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )

    killed = start(tmp_path / "killed")
    assert killed.stderr is not None
    for line in killed.stderr:
        if "epoch 2 of 5" in line:
            break
    last = tmp_path / "killed" / "density-checkpoints" / "last.ckpt"
    while torch.load(last)["epoch"] < 1:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stderr.close()
    assert torch.load(last)["epoch"] < 4
    assert not (tmp_path / "killed" / "density.json").exists()
    losses, weights = [], []
    for name in ("killed", "undisturbed"):
        process = start(tmp_path / name)
        lines = process.communicate()[1].splitlines()
        assert process.returncode == 0, lines
        assert len([line for line in lines if "epoch" in line]) == (5 if name != "killed" else 3)
        card = json.loads((tmp_path / name / "density.json").read_text())
        losses.append(card["training"]["validation_loss"])
        weights.append((tmp_path / name / "density.safetensors").read_bytes())
    assert losses[0] == losses[1]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_share_a_batch(box_file: Path, validation_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(
        """
import sys
from cosmofields.training import TrainingConfig, train

if __name__ == "__main__":
    config = TrainingConfig("density", options={"widths": [4, 4, 4]}, steps=8, settle_steps=4,
        steps_per_epoch=4, batch_size=2, crop=16, margin=2, precision="32-true")
    *boxes, out = sys.argv[1:]
    for devices in (1, 2):
        train(config, boxes[:1], boxes[1:], f"{out}/{devices}", devices=devices)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script), str(box_file), str(validation_file), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("density: epoch")]
    assert len(lines) == 6, "one process says how far both are"
    one, two = (
        json.loads((tmp_path / f"{devices}" / "density.json").read_text())["training"]
        for devices in (1, 2)
    )
    # Alike, not equal: each process normalises its own crop.
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-2)


def test_devices_share_whole_batches(box_file: Path, validation_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CosmofieldsError, match="devices=2; expected a divisor of batch_size=1"):
        train(config("density"), [box_file], [validation_file], tmp_path / "out", devices=2)
    assert not (tmp_path / "out").exists()
