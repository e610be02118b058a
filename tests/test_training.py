"""Fits: configuration, what is refused, killed and resumed, early settling, loading ahead."""

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

from cosmofields import training
from cosmofields.catalog import NUMBER_DENSITY
from cosmofields.conventions import CosmofieldsError
from cosmofields.inference import predict
from cosmofields.store import open_store
from cosmofields.training import TrainingConfig, train
from cosmofields.unet import build, load_model


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
