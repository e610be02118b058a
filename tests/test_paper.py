"""The paper's step two sees its eqs. 2 to 4, as they are: in training, in use, in a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

from cosmofields.inference import model_inputs, predict_momentum, predict_velocity
from cosmofields.linear import linear_velocity
from cosmofields.reconstruction import reconstruct
from cosmofields.samples import load_box, power_ratio_bias, prepare_box
from cosmofields.spectral import power_spectrum
from cosmofields.store import open_store
from cosmofields.training import TrainingConfig, train
from cosmofields.unet import build, load_model

F = (0.268 * 1.59**3 / (0.268 * 1.59**3 + 0.732)) ** 0.55
RATE = 100 * np.sqrt(0.268 * 1.59**3 + 0.732) / 1.59 * F  # a H f in km/s/(Mpc/h)

QUIET = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*litlogger.*")


def eqs_2_and_3(halos: xr.DataArray, beta: float) -> dict[str, NDArray[np.float64]]:
    """Velocity and momentum of all mass bins together, by numpy alone."""
    n, side = halos.sizes["x"], float(np.max(halos.attrs["box_size"]))
    delta = halos.values.sum(axis=0, dtype=np.float64) - 1
    axis = 2 * np.pi * np.fft.fftfreq(n, side / n)
    k = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = np.inf
    k[abs(k) > np.pi * n / side * (1 - 1e-9)] = 0  # an odd derivative has no Nyquist wave
    v = np.fft.ifftn(RATE * 1j * k / k2 * np.fft.fftn(delta) / beta, axes=(1, 2, 3)).real
    return {"velocity": v, "momentum": (1 + delta / beta) * v}


def eq_4(store: Path) -> float:
    """b^2 of one box, by numpy alone but for the bins of k."""
    ds = open_store(store).load()
    n, side = ds.sizes["x"], float(np.max(ds.attrs["box_size"]))
    axis = 2 * np.pi * np.fft.fftfreq(n, side / n)
    k = np.sqrt(sum(part**2 for part in np.meshgrid(axis, axis, axis, indexing="ij"))).ravel()
    edges = power_spectrum(ds["density"])["k_bounds"].values
    edges = np.append(edges[:, 0], edges[-1, 1])

    def power(field: NDArray[Any]) -> NDArray[np.float64]:
        modes = np.abs(np.fft.fftn(field.astype(np.float64))).ravel() ** 2
        return np.histogram(k[1:], edges, weights=modes[1:])[0]

    ratio = power(ds["halo_density"].values.sum(axis=0)) / power(ds["density"].values)
    return float(ratio[(edges[1:] + edges[:-1]) / 2 < 0.3].mean())


def close(got: Any, expected: NDArray[np.float64], rel: float = 1e-5) -> None:
    np.testing.assert_allclose(got, expected, atol=rel * abs(expected).max())


@pytest.mark.parametrize("target", ["velocity", "momentum"])
@pytest.mark.parametrize("lazily", [False, True], ids=["eager", "lazy"])
def test_inputs_are_eqs_2_and_3_by_hand(
    target: str, lazily: bool, observed: xr.Dataset, no_computes: Any
) -> None:
    names = build("paper", target, widths=[4, 4, 4]).inputs
    density = observed["halo_density"][0] + np.float32(0.5)
    # A filtered one that is there already is not the paper's.
    given = observed.assign(linear_velocity=linear_velocity(observed, bias=1.5))
    fields = {"density": density}
    bias = {"mass_bins": [3.0, 1.5, 1.2, 1.1], "power_ratio": [1.8]}
    if lazily:
        chunked = given.chunk(x=8, mass_bin=1)
        with no_computes():
            x = model_inputs(chunked, names, fields=fields, bias=bias)
        x = x.compute()
    else:
        x = model_inputs(given, names, fields=fields, bias=bias)
    assert x.shape == (8, 16, 16, 16)
    np.testing.assert_array_equal(x[:4], observed["halo_density"])
    np.testing.assert_array_equal(x[4], density)
    close(x[5:], eqs_2_and_3(observed["halo_density"], 1.8)[target])


@pytest.mark.parametrize("weighting", ["bin", "number"])
def test_beta_is_eq_4_of_the_training_boxes(
    weighting: str, box_file: Path, make_box: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_box(tmp_path / "other.h5", seed=5)
    stores = [
        prepare_box(path, tmp_path, los=los, weighting=weighting)
        for path, los in ((box_file, "x"), (box_file, "z"), (other, "y"))
    ]
    expected = np.mean([eq_4(store) for store in stores])
    assert power_ratio_bias(stores) == pytest.approx(np.sqrt(expected), rel=1e-5)


def test_linear_momentum_is_shortened_along_itself() -> None:
    model = build("paper", "momentum", n_bins=1, widths=[4, 4, 4])
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(0.5, 2, (1, 5, 4, 4, 4)).astype(np.float32))
    lengths = torch.tensor([0.0, 1e-3, 300.0, 5e6])  # the longest: eq. 3 in a cell of box 101
    direction = torch.nn.functional.normalize(x[:, 2:], dim=1)
    x[:, 2:] = direction * lengths
    seen = model.features(x)[:, 2:]
    # log(1 + |m| / 300 km/s), which for short ones is |m| / 300 km/s.
    expected = direction * torch.log1p(lengths / 300)
    torch.testing.assert_close(seen, expected, rtol=2e-3, atol=1e-9)
    assert torch.equal(seen[..., 0], torch.zeros_like(seen[..., 0]))
    # The other inputs are those of the velocity.
    same = build("paper", "velocity", n_bins=1, widths=[4, 4, 4]).features(x)
    assert torch.equal(model.features(x)[:, :2], same[:, :2])


@pytest.fixture(scope="module")
def trained(
    box_file: Path, make_box: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All three models of the paper, two steps each."""
    out = tmp_path_factory.mktemp("paper")
    validation = make_box(out / "validation.h5", seed=2, role="validation")
    for target in ("density", "velocity", "momentum"):
        config = TrainingConfig(
            target,
            architecture="paper",
            options={"widths": [4, 4, 4]},
            steps=2,
            settle_steps=0,
            steps_per_epoch=2,
            crop=16,
            margin=2,
            precision="32-true",
        )
        train(config, [box_file], [validation], out, density_model=out, progress=False)
    return out


def last(array: NDArray[Any]) -> NDArray[Any]:
    """Components (x, y, z) of a box observed along y, turned until y is last."""
    return array[[2, 0, 1]].transpose(0, 3, 1, 2)


@pytest.mark.slow
@QUIET
def test_trained_on_what_is_seen_in_use(trained: Path, box_file: Path) -> None:
    cards = {
        target: json.loads((trained / f"{target}.json").read_text())
        for target in ("density", "velocity", "momentum")
    }
    assert "power_ratio" not in cards["density"]["linear_bias"]  # it sees no linear field
    boxes = sorted((trained / "boxes").glob(f"{box_file.stem}-?-*.zarr"))
    assert len(boxes) == 3
    beta = np.sqrt(np.mean([eq_4(store) for store in boxes]))
    store = next((trained / "boxes").glob(f"{box_file.stem}-y-*.zarr"))
    observed = open_store(store)[["halo_density"]].load()
    use = {"velocity": predict_velocity, "momentum": predict_momentum}
    for target, predict in use.items():
        card = cards[target]
        assert np.isfinite(card["training"]["validation_loss"])
        assert "--density-model" not in card["training"]["command"]  # that of the same directory
        assert card["inputs"] == ["halo_density", "density", f"unfiltered_{target}"]
        assert card["linear_bias"]["power_ratio"] == pytest.approx([beta], rel=1e-5)
        kept = next(store.parent.glob(f"{store.stem}-{target}-*.inputs.npy"))
        inputs = np.load(kept)
        close(inputs[5:], last(eqs_2_and_3(observed["halo_density"], beta)[target]))
        with torch.no_grad():
            seen = load_model(target, trained)[0](torch.from_numpy(inputs)[None])[0].numpy()
        # Halfway through the box, where no padding is felt, the network in use makes the same.
        made = last(predict(observed, trained, precision="float32").values)
        inner = (slice(None), *(slice(14, 18),) * 3)
        close(made[inner], seen[inner], rel=1e-4)


@pytest.mark.slow
@QUIET
def test_a_store_has_the_linear_theory_that_the_network_saw(trained: Path, box_file: Path) -> None:
    store = next((trained / "boxes").glob(f"{box_file.stem}-z-*.zarr"))
    observed = open_store(store)[["halo_density"]].load()
    only = {"model": trained, "precision": "float32"}
    tree = reconstruct(observed, trained / "made.zarr", progress=False, **only)
    for target, predict in (("velocity", predict_velocity), ("momentum", predict_momentum)):
        close(tree[f"reconstructed/{target}"].values, predict(observed, **only).values)
        card = json.loads((trained / f"{target}.json").read_text())
        beta = card["linear_bias"]["power_ratio"]
        linear = tree[f"linear/{target}"]
        assert (linear.attrs["method"], linear.attrs["bias"]) == ("paper", beta)
        close(linear.values, eqs_2_and_3(observed["halo_density"], *beta)[target])


@pytest.mark.slow
@QUIET
def test_other_steps_take_the_velocity_of_the_paper(trained: Path, box_file: Path) -> None:
    """A momentum model of `residual` after the paper's: its velocity is made with eq. 2."""
    store = next((trained / "boxes").glob(f"{box_file.stem}-x-*.zarr"))
    earlier = {target: load_model(target, trained) for target in ("density", "velocity")}
    inputs, _ = load_box(store, "momentum", earlier=earlier)
    observed = open_store(store)[["halo_density"]].load()
    velocity = predict_velocity(observed, trained).values
    # The line of sight is turned last: x, so y, z, x.
    close(inputs[5:], velocity[[1, 2, 0]].transpose(0, 2, 3, 1))
