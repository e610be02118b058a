"""The 16 symmetries that keep the line of sight: a group, and averages over its subgroups."""

from __future__ import annotations

from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from cosmofields import engine
from cosmofields.conventions import CosmofieldsError
from cosmofields.inference import apply_model
from cosmofields.kernels.symmetry import ORDER, SIZES, inverse, transform
from cosmofields.unet import FieldModel, build, vector_channels


def name_of(element: int) -> bytes:
    """What an element does to a field without symmetry of its own."""
    return transform(np.arange(8.0).reshape(1, 2, 2, 2), element, 0).tobytes()


NAMES = {name_of(element): element for element in range(16)}


def after(first: int, second: int) -> int:
    """The element that does the first, then the second."""
    field = np.arange(8.0).reshape(1, 2, 2, 2)
    return NAMES[transform(transform(field, first, 0), second, 0).tobytes()]


def test_they_are_a_group_and_the_first_of_them_are_its_subgroups() -> None:
    assert len(NAMES) == 16
    assert sorted(ORDER) == list(range(16))
    for size in SIZES:
        members = ORDER[:size]
        assert {after(a, b) for a, b in product(members, members)} == set(members)


@pytest.mark.parametrize("element", range(16))
def test_vectors_turn_with_the_axes(element: int) -> None:
    # Nodes about the middle of a cube: the position itself looks the same from everywhere.
    nodes = np.stack(np.meshgrid(*[np.arange(4.0) - 1.5] * 3, indexing="ij"))
    np.testing.assert_array_equal(transform(nodes, element, 3), nodes)
    # The last axis stays, up to its sign.
    moved = transform(nodes, element, 0)
    np.testing.assert_array_equal(np.abs(moved[2]), np.abs(nodes[2]))


@pytest.mark.parametrize("element", range(16))
@pytest.mark.parametrize("batch", [(), (2,)])
def test_inverse(element: int, batch: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random((*batch, 4, 3, 5, 2))
    before = x.copy()
    there = transform(x, element, 3)
    np.testing.assert_array_equal(transform(there, inverse(element), 3), x)
    np.testing.assert_array_equal(x, before)


# --- averages ---


def random_model(target: str) -> FieldModel:
    import torch

    torch.manual_seed(4)
    model = build("residual", target, n_bins=2, widths=[3, 4])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def fields(model: FieldModel, shape: tuple[int, ...]) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    x = rng.gamma(0.3, 2.0, (model.n_in, *shape)).astype(np.float32)
    if vector_channels(model.inputs):
        x[-3:] = 300 * rng.standard_normal((3, *shape))
    return x


@pytest.mark.parametrize("target", ["density", "velocity"])
@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_an_average_has_the_symmetry_of_its_subgroup(target: str, n: int) -> None:
    model = random_model(target)
    vector = 3 if target == "velocity" else 0  # of the result: the inputs end with one anyhow
    x = fields(model, (8, 12, 16))
    options: dict[str, Any] = {"precision": "float32", "symmetries": n}
    mean = apply_model(model, x, **options)
    for element in {ORDER[1], ORDER[n // 2]}:
        other = apply_model(model, transform(x, element, 3), **options)
        expected = transform(mean, element, vector)
        np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-5 * np.abs(mean).max())
    # Which one pass does not have.
    once = apply_model(model, x, precision="float32")
    turned = apply_model(model, transform(x, ORDER[n - 1], 3), precision="float32")
    away = np.abs(turned - transform(once, ORDER[n - 1], vector)).max()
    assert away > 1e-2 * np.abs(once - x[-3:] if vector else once).max()


def test_tiles_and_laziness_change_rounding_only() -> None:
    model = random_model("velocity")
    x = fields(model, (24, 16, 12))
    options: dict[str, Any] = {"precision": "float32", "symmetries": 4}
    whole = apply_model(model, x, tile=24, **options)
    tiled = apply_model(model, x, tile=8, **options)
    assert np.abs(tiled - whole).max() < 1e-5 * np.abs(whole).max()
    lazy = apply_model(model, da.from_array(x, chunks=(1, 8, 8, 8)), tile=8, **options)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), tiled)


def test_one_is_the_plain_pass_and_the_mean_is_the_mean() -> None:
    model = random_model("density")
    x = fields(model, (8, 8, 8))
    plain = [
        transform(
            apply_model(model, transform(x, element, 3), precision="float32"), inverse(element), 0
        )
        for element in ORDER
    ]
    for n in SIZES:
        mean = apply_model(model, x, precision="float32", symmetries=n)
        np.testing.assert_allclose(mean, np.mean(plain[:n], axis=0), rtol=1e-5)


def test_a_plan_knows_what_they_cost() -> None:
    model = random_model("velocity")
    one, four = (
        engine.plan(model, (128, 64, 64), 1e12, "float32", tile=64, symmetries=n) for n in (1, 4)
    )
    assert four.cost == pytest.approx(4 * one.cost)
    # Inputs put through a symmetry lie beside those of the tile, and sums beside results.
    assert four.nbytes - one.nbytes >= 4 * (model.n_in + model.n_out) * 64**3
    assert "under 4 symmetries" in str(four)
    with pytest.raises(CosmofieldsError, match="symmetries=3; expected 1, 2, 4, 8, 16"):
        engine.plan(model, (64, 64, 64), 1e12, symmetries=3)
