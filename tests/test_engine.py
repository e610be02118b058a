"""Networks at work: valid convolutions, precision, threads, and tiles planned by memory."""

from __future__ import annotations

import copy
import pickle
from itertools import product
from typing import Any

import dask
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cosmofields import engine, lazy
from cosmofields.conventions import CosmofieldsError, DimensionError
from cosmofields.kernels import tiles
from cosmofields.unet import FieldModel, build, load_model, vector_channels

GB = 10**9


def random_model(architecture: str, target: str, widths: tuple[int, ...] = (4, 6, 4)) -> FieldModel:
    """A model with random weights and batch norms that do something, in evaluation mode."""
    torch.manual_seed(2)
    model = build(architecture, target, n_bins=2, widths=list(widths))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.2)  # few dead channels
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval()


def fields(model: FieldModel, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.gamma(0.3, 2.0, (model.n_in, *shape)).astype(np.float32)
    if vector_channels(model.inputs):
        x[-3:] = 300 * rng.standard_normal((3, *shape))
    return x


def same_padded(model: FieldModel, inputs: NDArray[np.float32], halo: int) -> NDArray[np.float32]:
    """The model's own forward on the whole halo, in float32, cropped."""
    with torch.inference_mode():
        y = model(torch.from_numpy(inputs)[None])[0].numpy()
    return y[(slice(None), *(slice(halo, -halo),) * 3)]


@pytest.mark.parametrize(
    ("target", "widths", "halo", "slab"),
    [
        ("density", (4, 6, 4), 24, 1),
        ("velocity", (4, 6, 4), 24, 10**9),
        ("velocity", (4, 6), 8, 1),
        ("density", (4,), 2, 1),
        ("density", (2, 3, 2, 3), 48, 20_000),
    ],
)
def test_valid_convolutions_are_the_padded_ones_inside(
    target: str, widths: tuple[int, ...], halo: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.networks, "SLAB_BYTES", slab)
    model = random_model("residual", target, widths)
    inputs = fields(model, tuple(n + 2 * halo for n in (8, 16, 8)))
    got = engine.run_tile(model, inputs, halo, "cpu", "float32")
    expected = same_padded(model, inputs, halo)
    assert got.shape == expected.shape == (model.n_out, 8, 16, 8)
    if target == "density":  # what the network gives is its logarithm
        got, expected = np.log(got), np.log(expected)
    assert expected.std() > 0.01 * np.abs(expected).max()
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("target", ["density", "velocity"])
def test_halo_is_exactly_what_is_needed(target: str) -> None:
    # A change outside of the halo is not seen, one in its outermost layer is.
    model = random_model("residual", target)
    halo = engine.prepare(model, torch.device("cpu"), "float32").halo
    assert halo == 22
    wide = fields(model, (8 + 2 * halo + 2,) * 3)
    before = engine.run_tile(model, wide, halo + 1, "cpu", "float32")
    outside, edge = wide.copy(), wide.copy()
    outside[:, 0] += 100
    edge[:, 1] += 100
    assert np.array_equal(engine.run_tile(model, outside, halo + 1, "cpu", "float32"), before)
    assert not np.array_equal(engine.run_tile(model, edge, halo + 1, "cpu", "float32"), before)


def test_slabs_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("residual", "velocity")
    inputs = fields(model, (68, 60, 60))
    monkeypatch.setattr(engine.networks, "SLAB_BYTES", 10**9)
    whole = engine.run_tile(model, inputs, 22, "cpu", "float32")
    monkeypatch.setattr(engine.networks, "SLAB_BYTES", 1)
    slabs = engine.run_tile(model, inputs, 22, "cpu", "float32")
    assert np.abs(slabs - whole).max() < 1e-6 * np.abs(whole).max()


@pytest.mark.parametrize("target", ["density", "velocity"])
def test_shipped_models_in_bfloat16(target: str) -> None:
    # 13 convolutions in a row round their weights and what they return, each time by at most 2^-9
    # or 0.11 % rms; were all of it to add up, 2.9 %.  Less than 0.1 % would be no bfloat16.
    model, _ = load_model(target)
    inputs = fields(model, (60, 64, 60))
    exact = engine.run_tile(model, inputs, 22, "cpu", "float32")
    short = engine.run_tile(model, inputs, 22, "cpu", "bfloat16")
    if target == "density":
        made, error = np.log(exact), np.log(short / exact)
    else:
        inner = (slice(-3, None), *(slice(22, -22),) * 3)
        made, error = exact - inputs[inner], short - exact
    rms = np.sqrt(np.mean(error**2) / np.mean(made**2))
    assert 0.001 < rms < 0.029


def test_batch_is_its_tiles_one_by_one() -> None:
    model = random_model("residual", "velocity")
    inputs = np.stack([fields(model, (52, 56, 52), seed) for seed in (0, 1)])
    together = engine.run_tile(model, inputs, 22, "cpu", "float32")
    assert together.shape == (2, 3, 8, 12, 8)
    for one, y in zip(inputs, together, strict=True):
        alone = engine.run_tile(model, one, 22, "cpu", "float32")
        assert np.abs(y - alone).max() < 1e-6 * np.abs(alone).max()


def test_strided_read_only_and_double_inputs() -> None:
    model = random_model("residual", "density")
    inputs = fields(model, (52, 56, 60))
    expected = engine.run_tile(model, inputs, 22, "cpu", "float32")
    turned = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    fixed = inputs.copy()
    fixed.flags.writeable = False
    for same in (turned, fixed, inputs.astype(np.float64)):
        np.testing.assert_array_equal(engine.run_tile(model, same, 22, "cpu", "float32"), expected)


def test_nan_is_refused() -> None:
    model = random_model("residual", "density")
    for bad in (np.nan, np.inf):
        inputs = fields(model, (48, 48, 48))
        inputs[0, 3, 4, 5] = bad
        with pytest.raises(CosmofieldsError, match="NaN or infinite"):
            engine.run_tile(model, inputs, 22, "cpu", "float32")


# --- prepared once ---


def test_prepared_once_and_again_when_weights_change() -> None:
    model = random_model("residual", "density")
    cpu = torch.device("cpu")
    first = engine.prepare(model, cpu, "float32")
    assert engine.prepare(model, cpu, "float32") is first
    assert engine.prepare(model, cpu, "bfloat16") is not first
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = fields(model, (52, 52, 52))
    y = engine.run_tile(model, inputs, 22, "cpu", "float32")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        next(iter(model.parameters())).mul_(2)
    assert not np.array_equal(engine.run_tile(model, inputs, 22, "cpu", "float32"), y)


def test_copies_prepare_for_themselves() -> None:
    model = random_model("residual", "density")
    engine.prepare(model, torch.device("cpu"), "float32")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.prepared == {}
    assert model.prepared


def test_training_mode_is_left_alone() -> None:
    model = random_model("residual", "density").train()
    inputs = fields(model, (52, 52, 52))
    running = [buffer.clone() for buffer in model.buffers()]
    y = engine.run_tile(model, inputs, 22, "cpu", "float32")
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(running, model.buffers(), strict=True))
    np.testing.assert_array_equal(y, engine.run_tile(model.eval(), inputs, 22, "cpu", "float32"))


# --- precision, device, threads ---


def test_auto_precision_follows_processor_and_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    residual, paper = (random_model(kind, "density") for kind in ("residual", "paper"))
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert engine.resolve_precision("auto", "cpu") == expected
        assert engine.resolve_precision("auto", "cpu", residual) == expected
        assert engine.resolve_precision("auto", "cpu", residual, paper) == "float32"
        assert engine.resolve_precision("float32", "cpu", residual) == "float32"
        assert engine.resolve_precision("bfloat16", "cpu", paper) == "bfloat16"
    with pytest.raises(CosmofieldsError, match="precision='half'; expected 'auto', 'float32'"):
        engine.resolve_precision("half", "cpu")


def test_a_pass_takes_the_threads_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("residual", "density")
    inputs = fields(model, (48, 48, 48))
    before = torch.get_num_threads()
    seen = []
    forward = engine.networks._double
    monkeypatch.setattr(
        engine.networks,
        "_double",
        lambda *a: (seen.append(torch.get_num_threads()), forward(*a))[1],
    )
    try:
        for n in (1, 2):
            monkeypatch.setattr(lazy, "n_threads", lambda n=n: n)
            engine.run_tile(model, inputs, 22, "cpu", "float32")
            assert set(seen) == {n}
            seen.clear()
    finally:
        torch.set_num_threads(before)


def test_gpu_tasks_say_so_where_workers_have_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    given: dict[str, Any] = {}

    class Client:
        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            return {"workers": {"one": {"resources": given}}}

    monkeypatch.setattr(distributed, "default_client", Client)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for resource, device, expected in [
        ({"GPU": 1}, "cuda", {"resources": {"GPU": 1}}),
        ({"GPU": 1}, "cpu", {}),
        ({}, "cuda", {}),
    ]:
        given.clear()
        given.update(resource)
        with engine.resources(device):
            assert dask.get_annotations() == expected


# --- plans ---

# The whole default model, whose memory and work the figures below are of.
SHIPPED = {target: load_model(target)[0] for target in ("density", "velocity")}


def test_work_is_that_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Count the multiplications of every convolution of a pass.
    model = random_model("residual", "velocity", (2, 3, 4))
    prepared = engine.prepare(model, torch.device("cpu"), "float32")
    counted = 0.0

    def counting(conv: Any) -> Any:
        def call(x: Any, weight: Any, *args: Any, **options: Any) -> Any:
            nonlocal counted
            y = conv(x, weight, *args, **options)
            cells = x if conv is torch.nn.functional.conv_transpose3d else y
            counted += weight.numel() * cells[0, 0].numel()
            return y

        return call

    for name in ("conv3d", "conv_transpose3d"):
        function = getattr(torch.nn.functional, name)
        monkeypatch.setattr(engine.networks.F, name, counting(function))
    engine.run_tile(model, fields(model, (76, 60, 52)), 22, "cpu", "float32")
    assert counted == pytest.approx(prepared.work((32, 16, 8), (1, 1, 1)), rel=0.02)


@given(
    blocks=st.tuples(*[st.integers(1, 8)] * 3),
    memory=st.floats(0.3, 30),
    precision=st.sampled_from(["float32", "bfloat16"]),
    waiting=st.integers(0, 2),
)
def test_plan_covers_fits_and_is_aligned(
    blocks: tuple[int, ...], memory: float, precision: str, waiting: int
) -> None:
    shape = tuple(64 * n for n in blocks)
    model = SHIPPED["velocity"]
    try:
        plan = engine.plan(model, shape, memory * GB, precision, waiting=waiting)
    except CosmofieldsError:
        return
    assert plan.nbytes <= memory * GB
    assert plan.cost >= 1
    for axis, n in zip(plan.bounds, shape, strict=True):
        edges = [lo for lo, _ in axis] + [axis[-1][1]]
        assert edges[0] == 0
        assert edges[-1] == n
        assert all(edge % 64 == 0 for edge in edges)
        sizes = {hi - lo for lo, hi in axis}
        assert max(sizes) - min(sizes) <= 64
    # More memory never costs more work than smaller passes are worth; the tile names its plan.
    more = engine.plan(model, shape, 2 * memory * GB, precision, waiting=waiting)
    assert more.cost <= engine.WORTH * plan.cost
    again = engine.plan(model, shape, 1, precision, waiting=waiting, tile=plan.tile)
    assert again == plan


@pytest.mark.parametrize("shape", [(100, 160, 36), (196, 64, 132)])
def test_plan_of_an_odd_box_is_found_again(shape: tuple[int, int, int]) -> None:
    model = SHIPPED["density"]
    for memory in (0.6, 0.7, 1.0, 9.0):
        plan = engine.plan(model, shape, memory * GB, "float32")
        assert engine.plan(model, shape, 1, "float32", tile=plan.tile) == plan


def test_plan_with_little_work_is_taken() -> None:
    model = SHIPPED["velocity"]
    shape = (256, 128, 192)
    best = engine.plan(model, shape, 1.2 * GB, "bfloat16")
    for parts in product((1, 2, 4), (1, 2), (1, 2, 3)):
        side = [-(-n // k // 64) * 64 for n, k in zip(shape, parts, strict=True)]
        other = engine.plan(model, shape, 1, "bfloat16", tile=side)
        assert other.nbytes > 1.2 * GB or engine.WORTH * other.cost >= best.cost


def test_large_box_within_6_gb() -> None:
    # 1200 Mpc/h: inference within 1.6 of what the network costs without any halo.
    for model, precision in product(SHIPPED.values(), ("bfloat16", "float32")):
        plan = engine.plan(model, (512, 512, 512), 6 * GB, precision)
        assert plan.nbytes <= 6 * GB
        assert plan.cost < 1.3


def test_tile_that_is_given() -> None:
    model = random_model("residual", "density")
    plan = engine.plan(model, (40, 32, 16), 1, "float32", tile=16)
    assert [len(axis) for axis in plan.bounds] == [3, 2, 1]
    assert max(plan.tile) <= 16
    assert engine.plan(model, (256, 64, 64), 1, "float32", tile=(128, 64, 64)).tile == (128, 64, 64)
    with pytest.raises(DimensionError, match="tile=3; expected at least 4"):
        engine.plan(model, (40, 32, 16), GB, "float32", tile=3)
    with pytest.raises(DimensionError, match="multiples of 4"):
        engine.plan(model, (42, 32, 16), GB, "float32")


def test_too_little_memory_is_said_with_what_is_needed() -> None:
    with pytest.raises(CosmofieldsError, match=r"needs .*MiB.*64 x 64 x 64.*1.00 MB|95"):
        engine.plan(SHIPPED["velocity"], (128, 128, 128), 1e6, "float32")


def test_non_cubic_and_uneven_tiles_make_the_whole() -> None:
    model = random_model("residual", "velocity")
    x = fields(model, (40, 20, 12))
    whole = engine.plan(model, x.shape[1:], 1, "float32", tile=40)
    cut = engine.plan(model, x.shape[1:], 1, "float32", tile=(16, 12, 12))
    assert len(whole.windows) == 1
    assert len({hi - lo for lo, hi in cut.bounds[0]}) > 1
    made = []
    for plan in (whole, cut):
        out = np.empty_like(x[-3:])
        for window in plan.windows:
            part = tiles.gather(x, window, plan.halo)
            out[(slice(None), *window)] = engine.run_tile(model, part, plan.halo, "cpu", "float32")
        made.append(out)
    assert np.abs(made[0] - made[1]).max() < 1e-6 * np.abs(made[0]).max()


def test_seconds_per_cell() -> None:
    model = random_model("residual", "density", (2, 2, 2))
    assert 0 < engine.seconds_per_cell(model, "cpu", "float32") < 1e-4
