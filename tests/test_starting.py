"""Fits that begin with the weights of another model."""

from __future__ import annotations

import json

import pytest
import torch

from cosmofields.conventions import CosmofieldsError, ModelMismatchError
from cosmofields.training import TrainingConfig, train
from cosmofields.unet import build, load_model, start_from, weights_digest

# Lightning's own: of torch's pytree, of an advertisement.
QUIET = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*litlogger.*")


def model(target="velocity", n_bins=4, seed=0):
    torch.manual_seed(seed)
    made = build("residual", target, n_bins=n_bins, widths=(4, 8))
    # The last layer starts at zero, which would hide every difference.
    torch.nn.init.normal_(made.networks[0].final.weight)
    return made.eval()


def test_the_same_halos_give_the_same_model():
    other, here = model(seed=1), model(seed=2)
    assert weights_digest(here) != weights_digest(other)
    start_from(here, other)
    assert weights_digest(here) == weights_digest(other)


def test_other_mass_bins_start_with_the_mean_and_keep_the_linear_velocity():
    other, here = model(n_bins=4, seed=1), model(n_bins=1, seed=2)
    start_from(here, other)
    first = other.networks[0].encoder[0].first
    ours = here.networks[0].encoder[0].first
    torch.testing.assert_close(ours.weight[:, 0], first.weight[:, :4].mean(dim=1))
    torch.testing.assert_close(ours.weight[:, 1:], first.weight[:, 4:])
    # Without halos the two see the same.
    x = torch.cat([torch.zeros(1, 4, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)], dim=1)
    torch.testing.assert_close(here(x[:, 3:]), other(x))


def test_the_start_is_a_copy():
    other, here = model(seed=1), model(seed=2)
    start_from(here, other)
    before = weights_digest(other)
    with torch.no_grad():
        for parameter in here.parameters():
            parameter.add_(1)
    assert weights_digest(other) == before


def test_another_target_is_refused():
    with pytest.raises(ModelMismatchError, match="mass bins alone may differ"):
        start_from(model(), model("density"))


def test_other_widths_are_refused():
    other = build("residual", "velocity", n_bins=4, widths=(8, 8))
    with pytest.raises(ModelMismatchError, match=r"\[8, 8\].*\[4, 8\]"):
        start_from(model(), other)


def test_a_bypass_that_the_other_has_not_is_refused():
    # Four channels from one bin and a velocity; seven from four.
    one, four = (build("residual", "density", n_bins=n_bins, widths=(4, 4)) for n_bins in (1, 4))
    with pytest.raises(ModelMismatchError, match="do not fit"):
        start_from(one, four)


@QUIET
@pytest.mark.slow
def test_a_fit_begins_with_the_model_and_says_so(box_file, make_box, tmp_path):
    validation = [make_box(tmp_path / "other.h5", seed=2, role="validation")]
    settings = {
        "options": {"widths": [6, 6]},
        "settle_steps": 0,
        "steps_per_epoch": 2,
        "crop": 16,
        "margin": 2,
        "precision": "32-true",
    }
    first, second = tmp_path / "first", tmp_path / "second"
    config = TrainingConfig("density", steps=2, **settings)
    train(config, [box_file], validation, first, progress=False)
    further = TrainingConfig(
        "density", number_density=(3e-3,), learning_rate=1e-12, steps=2, seed=1, **settings
    )
    card = train(further, [box_file], validation, second, start=first, progress=False)
    said = json.loads(card.read_text())["training"]
    assert "--start first" in said["command"]
    assert said["start"]["config"]["number_density"] == list(config.number_density)
    old, new = (load_model("density", folder)[0] for folder in (first, second))
    torch.testing.assert_close(
        new.networks[0].final.weight, old.networks[0].final.weight, atol=1e-6, rtol=1e-3
    )
    assert new.n_bins == 1
    with pytest.raises(CosmofieldsError, match="another configuration"):
        train(further, [box_file], validation, second, progress=False)
