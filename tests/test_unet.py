"""Networks, model heads and saved models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosmofields.cli import _parser, run_of
from cosmofields.conventions import ModelMismatchError, StoreError
from cosmofields.training import TrainingConfig
from cosmofields.unet import (
    MODELS,
    RESIDUAL_SCALE,
    FieldModel,
    build,
    load_cards,
    load_model,
    replace_file,
    save_model,
    vector_channels,
    weights_digest,
    write_card,
    zoo,
)
from cosmofields.unet.models import PaperVector

KEYS = list(MODELS)
NARROW = {"n_bins": 2, "widths": [4, 4, 4]}


def narrow(architecture: str, target: str) -> FieldModel:
    """A small model with random weights everywhere, in evaluation mode."""
    torch.manual_seed(0)
    model = build(architecture, target, **NARROW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def card_of(model: FieldModel, architecture: str) -> dict[str, Any]:
    return {
        "architecture": {"name": architecture, "options": model.options},
        "trained_for": {},
        "linear_bias": {},
    }


def fields(model: FieldModel, n: int = 16) -> torch.Tensor:
    x = torch.rand(1, model.n_in, n, n, n)
    if vector_channels(model.inputs):
        x[:, -3:] = 300 * torch.randn(1, 3, n, n, n)
    return x


@pytest.mark.parametrize("key", KEYS)
def test_shapes_and_channels(key: tuple[str, str]) -> None:
    model = build(*key)
    assert model.n_in == {"paper": 4, "residual": 7}[key[0]] if key[1] == "density" else 8
    with torch.no_grad():
        out = model.eval()(fields(model))
    assert out.shape == (1, 1 if key[1] == "density" else 3, 16, 16, 16)
    assert out.dtype == torch.float32


def test_residual_models_start_from_the_mean_and_from_linear_theory() -> None:
    density, velocity = (build("residual", target).eval() for target in ("density", "velocity"))
    x = fields(velocity)
    with torch.no_grad():
        assert torch.equal(density(fields(density)), torch.ones(1, 1, 16, 16, 16))
        assert torch.equal(velocity(x), x[:, -3:])


def test_residual_momentum_starts_from_the_product() -> None:
    momentum = build("residual", "momentum").eval()
    x = fields(momentum)
    with torch.no_grad():
        torch.testing.assert_close(momentum(x), x[:, 4:5] * x[:, 5:])


def test_momentum_loss_is_least_at_the_mean() -> None:
    # Truths that scatter the more the denser the cell; the weights know the inputs alone.
    model = build("residual", "momentum", **NARROW).eval()
    rng = np.random.default_rng(0)
    x = torch.zeros(1, model.n_in, 8, 8, 8)
    x[:, 2] = torch.from_numpy(rng.choice([0.1, 5.0], (8, 8, 8)))
    density = x[:, 2:3]
    noise = torch.from_numpy(rng.gamma(0.5, 2.0, (1, 3, 8, 8, 8))).float()
    truth = RESIDUAL_SCALE * (1 + density) * noise
    bias = model.networks[0].final.bias
    # All cells share one number here: its best value is the mean of the noise, weighed as the loss
    # weighs it, (1 + density)^2 of the scale over 1 + density; there the loss has no slope.
    weight = (1 + density) / (1 + density).sum()
    bias.data = (weight * noise).sum(dim=(0, 2, 3, 4))
    model.loss(x, truth, 0).backward()
    assert float(bias.grad.abs().max()) < 1e-4


def test_density_is_positive() -> None:
    model = narrow("residual", "density")
    with torch.no_grad():
        assert (model(100 * fields(model)) > 0).all()


def test_poisson_deviance_is_least_at_the_mean() -> None:
    # One input, several truths: the best constant is their mean, as for the squared error.
    model = build("residual", "density", **NARROW).eval()
    x = torch.zeros(1, model.n_in, 8, 8, 8)
    truth = torch.from_numpy(np.random.default_rng(0).gamma(0.5, 2.0, (1, 1, 8, 8, 8))).float()
    truth[0, 0, 0, 0, 0] = 0.0
    bias = model.networks[0].final.bias

    def loss(rho: float) -> float:
        with torch.no_grad():
            bias.fill_(np.log(rho))
            return float(model.loss(x, truth, 0))

    mean = float(truth.mean())
    best = loss(mean)
    assert best < loss(1.02 * mean)
    assert best < loss(0.98 * mean)


def test_velocity_loss_leaves_the_margin_out() -> None:
    model = build("residual", "velocity").eval()
    x = fields(model)
    truth = x[:, -3:].clone()
    truth[..., :4, :, :] += 1e4
    with torch.no_grad():
        assert model.loss(x, truth, 4) == 0
        assert model.loss(x, truth, 3) > 0


@pytest.mark.parametrize("target", ["velocity", "momentum"])
def test_paper_loss_is_eq_6(target: str) -> None:
    model = narrow("paper", target)
    assert isinstance(model, PaperVector)
    x = fields(model)
    truth = model.scale * torch.randn(1, 3, 16, 16, 16)
    with torch.no_grad():
        speed, direction = model.magnitude_and_direction(x)
        loss = float(model.loss(x, truth, 0))
        product = model(x)
    v, t = speed[0, 0].double().numpy(), truth[0].double().numpy() / model.scale
    d = direction[0].double().numpy()
    np.testing.assert_allclose(np.sqrt((d**2).sum(0)), 1, rtol=1e-5)
    size = np.sqrt((t**2).sum(0))
    cosine = (d * t).sum(0) / size
    expected = np.mean(0.25 * (v - size) ** 2 + 0.75 * (1 - cosine))
    assert loss == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(product[0].numpy(), model.scale * v * d, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("key", [("residual", "density"), ("paper", "density")])
def test_receptive_radius(key: tuple[str, str]) -> None:
    # Wherever a cell sits in its coarse cell, its reach is at most the radius, and not far less.
    model = narrow(*key).double()
    n, radius = 64, model.receptive_radius
    base = torch.rand(1, model.n_in, n, n, n, dtype=torch.float64)
    reach = 0
    with torch.no_grad():
        before = model(base)
        for corner in range(model.coarsest):
            where = 28 + corner
            x = base.clone()
            x[:, :, where, where, where] += 10
            changed = np.argwhere((model(x) != before)[0, 0].numpy())
            reach = max(reach, int(np.abs(changed - where).max()))
    assert radius - model.coarsest < reach <= radius
    assert radius % model.coarsest == 0


@pytest.mark.parametrize("key", KEYS)
def test_saved_model_comes_back(key: tuple[str, str], tmp_path: Path) -> None:
    model = narrow(*key)
    save_model(model, card_of(model, key[0]), tmp_path)
    again, card_again = load_model(key[1], tmp_path)
    assert card_again["name"] == f"{tmp_path.name} {key[1]}"
    assert not again.training
    # Weights are kept in half precision, and nothing else is lost.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        x = fields(model)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    for parameter in again.parameters():
        assert parameter.dtype == torch.float32


def test_default_models_are_there_and_small() -> None:
    total = 0
    for target in ("density", "velocity"):
        model, card = load_model(target)
        assert card["target"] == model.target == target
        assert card["architecture"]["name"] == "residual"
        assert sum(p.numel() for p in model.parameters()) == card["parameters"]
        assert "box_105.h5" not in [*card["training"]["boxes"], *card["training"]["validation"]]
        command = card["training"]["command"].removeprefix("cosmofields ").split()
        assert run_of(_parser().parse_args(command)).config == TrainingConfig(
            **card["training"]["config"]
        )
        assert not set(card["training"]["boxes"]) & set(card["training"]["validation"])
        total += sum(p.nbytes // 2 for p in model.parameters())
    assert total < 10e6


def test_unknown_architecture_and_options() -> None:
    with pytest.raises(ModelMismatchError, match=r"No model \('resnet', 'density'\)"):
        build("resnet", "density")
    with pytest.raises(ModelMismatchError, match="do not fit ResidualDensity"):
        build("residual", "density", depth=3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = narrow("residual", "density")
    save_model(model, card_of(model, "residual"), tmp_path)
    return tmp_path


def test_a_model_is_called_like_its_directory(saved: Path, monkeypatch: Any) -> None:
    for model, name in (("sparse", "sparse density"), (zoo()["sparse"], "sparse density")):
        assert load_cards(model)["density"]["name"] == name
    other = saved.rename(saved.with_name("other"))
    # Also where the card has another name, as those of before.
    card = load_cards(other)["density"]
    (other / "density.json").write_text(json.dumps({**card, "name": "residual-density"}))
    monkeypatch.chdir(other)
    for path in (other, ".", Path("../other")):
        assert load_model("density", path)[1]["name"] == "other density"
    write_card({**load_cards(other)["density"], "target": "density"}, other)
    assert "name" not in json.loads((other / "density.json").read_text())


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a directory with density.safetensors and density.json"):
        load_model("density", tmp_path / "nowhere")


def test_truncated_weights(saved: Path) -> None:
    path = saved / "density.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="cannot be read"):
        load_model("density", saved)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"card_version": 1}'])
def test_broken_card(saved: Path, text: str) -> None:
    (saved / "density.json").write_text(text)
    with pytest.raises(StoreError, match="cannot be read"):
        load_model("density", saved)


def test_card_that_does_not_say_what_the_model_is_for(saved: Path) -> None:
    path = saved / "density.json"
    card = json.loads(path.read_text())
    del card["trained_for"]
    path.write_text(json.dumps(card))
    with pytest.raises(StoreError, match="lacks.*trained_for"):
        load_model("density", saved)


def test_card_of_a_newer_format(saved: Path) -> None:
    path = saved / "density.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "card_version": 99}))
    with pytest.raises(StoreError, match="card version 99"):
        load_model("density", saved)


def test_card_of_a_model_that_saw_other_inputs(tmp_path: Path) -> None:
    # As many channels, which hold another linear velocity.
    model = narrow("paper", "velocity")
    card = card_of(model, "paper")
    save_model(model, {**card, "inputs": [*model.inputs]}, tmp_path)
    load_model("velocity", tmp_path)
    save_model(model, {**card, "inputs": ["halo_density", "density", "linear_velocity"]}, tmp_path)
    with pytest.raises(ModelMismatchError) as refused:
        load_model("velocity", tmp_path)
    assert str(refused.value) == (
        f"The velocity model in '{tmp_path}' was trained on halo_density, density, linear_velocity "
        "as its inputs; 'paper' models of this cosmofields see halo_density, density, "
        "unfiltered_velocity: train it again"
    )


def test_a_pair_of_which_one_file_was_replaced(saved: Path, tmp_path: Path) -> None:
    # As a kill between the two leaves it.
    model = narrow("residual", "density")
    card = card_of(model, "residual")
    assert load_model("density", saved)[1]["weights_digest"] == weights_digest(
        load_model("density", saved)[0]
    )
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save_model(model, card, tmp_path / "other")
    for name in ("density.safetensors", "density.json"):
        mixed = tmp_path / f"mixed-{name}"
        mixed.mkdir()
        for mine in ("density.safetensors", "density.json"):
            shutil.copy(saved / mine, mixed)
        shutil.copy(tmp_path / "other" / name, mixed)
        with pytest.raises(StoreError, match=r"are not of one model \(weights \w{16}, a card of"):
            load_model("density", mixed)
    # A card of before says nothing of weights.
    path = mixed / "density.json"
    kept = json.loads(path.read_text())
    del kept["weights_digest"]
    path.write_text(json.dumps(kept))
    assert len(load_model("density", mixed)[1]["weights_digest"]) == 16


def test_processes_that_save_into_one_directory(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One is between writing and renaming while the other does both.
    path, rename = saved / "density.json", Path.replace
    outer = []

    def meanwhile(self: Path, target: Path) -> Path:
        if not outer:
            outer.append(self)
            replace_file(path, b"the other")
            assert path.read_bytes() == b"the other"
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    replace_file(path, b"one")
    assert path.read_bytes() == b"one"
    # What cannot be renamed is not left behind either.
    monkeypatch.setattr(Path, "replace", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_file(path, b"none")
    assert sorted(file.name for file in saved.iterdir()) == ["density.json", "density.safetensors"]


def test_weights_of_another_architecture(saved: Path, tmp_path: Path) -> None:
    card = json.loads((saved / "density.json").read_text())
    card["architecture"]["options"]["widths"] = [8, 8, 8]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(saved / "density.safetensors", other)
    (other / "density.json").write_text(json.dumps(card))
    with pytest.raises(ModelMismatchError, match="do not fit"):
        load_model("density", other)
