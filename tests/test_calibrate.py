"""Calibrating a model: what its cards come to hold, and what predictions make of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields import calibration, engine
from cosmofields.conventions import (
    CosmofieldsError,
    ModelMismatchError,
)
from cosmofields.inference import run_in_box
from cosmofields.scoring import measure
from cosmofields.statistics import rms_error, slope
from cosmofields.unet import load_cards, load_model, write_card


@pytest.fixture(scope="module")
def boxes(make_box: Callable[..., Path], tmp_path_factory: Any) -> list[Path]:
    folder = tmp_path_factory.mktemp("boxes")
    roles = {1: "training", 2: "validation"}
    return [make_box(folder / f"box_{n}.h5", seed=n, role=role) for n, role in roles.items()]


def with_role(path: Path, folder: Path, role: str | None) -> Path:
    """A copy of a box that says another role, or none."""
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        del file.attrs["role"]
        if role:
            file.attrs["role"] = role
    return copy


def observed_of(path: Path) -> xr.Dataset:
    halos, _ = cf.open_box(path)
    return halos.recon.select().recon.to_redshift_space("z").recon.paint(32)


@pytest.fixture(scope="module")
def observed(boxes: list[Path]) -> xr.Dataset:
    return observed_of(boxes[1])


@pytest.fixture(scope="module")
def models(
    make_models: Callable[..., Path], boxes: list[Path], observed: xr.Dataset, tmp_path_factory: Any
) -> Path:
    """Random models, calibrated."""
    folder = make_models(tmp_path_factory.mktemp("models"), observed)
    cf.calibrate(folder, boxes[:1], boxes[1:], symmetries=(1, 2), precision="float32")
    return folder


def test_the_cards_say_what_was_measured(models: Path, boxes: list[Path]) -> None:
    for target in ("density", "velocity"):
        card = load_model(target, models)[1]["calibration"]
        assert card["command"] == (
            f"cosmofields calibrate --model {models} --boxes box_1.h5 --validation box_2.h5 "
            "--symmetries 1 2 --los z"
        )
        assert card["symmetries"] == [1, 2]
        assert card["units"]["k"] == "h/Mpc"
    assert set(card["restoration"]) == {"velocity", "momentum"}
    assert {kind: len(rows) for kind, rows in card["factors"].items()} == {"across": 2, "along": 2}


@pytest.mark.parametrize("n", [1, 2])
def test_validation_is_covered(models: Path, boxes: list[Path], observed: Any, n: int) -> None:
    true = cf.open_box(boxes[1])[1].load()
    fields = observed.recon.predict(models, precision="float32", uncertainty=True, symmetries=n)
    assert list(fields) == ["density", "velocity", "momentum", "density_error", "velocity_error"]
    low, high = calibration.interval(fields["velocity"], fields["velocity_error"])
    inside = ((true["velocity"] >= low) & (true["velocity"] <= high)).mean(("x", "y", "z"))
    assert float(inside[:2].mean()) == pytest.approx(0.6827, abs=0.005)
    assert float(inside[2]) == pytest.approx(0.6827, abs=0.005)


def test_predict_restores_each_field_on_its_own(models: Path, observed: xr.Dataset) -> None:
    options: dict[str, Any] = {"precision": "float32", "symmetries": 2}
    mean = observed.recon.predict(models, **options)
    restored = observed.recon.predict(models, restore_power=True, **options)
    for name, target in (
        ("density", "density"),
        ("velocity", "velocity"),
        ("momentum", "velocity"),
    ):
        card = load_model(target, models)[1]
        expected = calibration.restore(mean[name], card, symmetries=2)
        np.testing.assert_array_equal(restored[name], expected)
    for name in ("density", "velocity"):
        one = getattr(cf, f"predict_{name}")(observed, models, restore_power=True, **options)
        np.testing.assert_allclose(one, restored[name], rtol=1e-5, atol=1e-3)


def test_errors_are_of_the_mean_whatever_else_is_asked_for(
    models: Path, observed: xr.Dataset
) -> None:
    options: dict[str, Any] = {"precision": "float32"}
    both = cf.predict(observed, models, restore_power=True, uncertainty=True, **options)
    mean = cf.predict(observed, models, uncertainty=True, **options)
    restored = cf.predict(observed, models, restore_power=True, **options)
    assert list(both) == list(mean)
    for name in both:
        xr.testing.assert_identical(both[name], (restored if name in restored else mean)[name])
    for name in ("density", "velocity"):
        with pytest.raises(CosmofieldsError, match=f"`{name}_error` is about the mean field"):
            calibration.interval(both[name], both[f"{name}_error"])


def test_without_calibration_nothing_runs(
    make_models: Any, observed: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_tile", None)
    bare = make_models(tmp_path / "bare", observed)
    for options in ({"restore_power": True}, {"uncertainty": True}):
        with pytest.raises(ModelMismatchError, match=r"'bare density' was not calibrated: .*"):
            cf.predict(observed, bare, **options)
        with pytest.raises(ModelMismatchError, match="was not calibrated"):
            cf.reconstruct(observed, tmp_path / "a.zarr", model=bare, progress=False, **options)
    assert not (tmp_path / "a.zarr").exists()


def test_what_calibrates_nothing_is_refused(
    models: Path, boxes: list[Path], tmp_path: Path
) -> None:
    test = with_role(boxes[0], tmp_path, "test")
    before = (models / "density.json").read_text()
    for arguments, message in (
        (([test], boxes), "calls itself a test box"),
        ((boxes[:1], [test]), "calls itself a test box"),
        ((boxes[:1], boxes), "box_1.h5' calls itself a training box; it was given for validation"),
        (([], boxes), "at least one box to measure"),
        ((boxes[:1], [boxes[1], boxes[1]]), "expected each of another name"),
    ):
        with pytest.raises(CosmofieldsError, match=message):
            cf.calibrate(models, *arguments)
    with pytest.raises(CosmofieldsError, match="expected one or two numbers"):
        cf.calibrate(models, boxes[:1], boxes[1:], symmetries=(1, 2, 4))
    with pytest.raises(CosmofieldsError, match="ships with cosmofields.*cp -r '.*/default' mine"):
        cf.calibrate("default", boxes[:1], boxes[1:])
    assert (models / "density.json").read_text() == before


def test_a_box_of_another_kind_calibrates_nothing(
    make_models: Any, boxes: list[Path], observed: xr.Dataset, tmp_path: Path
) -> None:
    folder = make_models(tmp_path / "models", observed)
    cards = load_cards(folder)
    cards["velocity"]["trained_for"]["redshift"] = 3.0
    write_card(cards["velocity"], folder)
    with pytest.raises(ModelMismatchError, match="'models velocity' was not trained for this box"):
        cf.calibrate(folder, boxes[:1], boxes[1:])
    assert load_cards(folder) == cards


def test_the_cards_keep_all_but_scores_without_the_calibration(
    models: Path, boxes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(models, tmp_path / "models")
    before = load_cards(folder)
    write_card({**before["velocity"], "scores": {"box_2.h5": {}}}, folder)
    tables = calibration.Measurement.tables

    def meanwhile(self: Any, **kwargs: Any) -> Any:
        write_card({**before["density"], "note": "written while boxes were run"}, folder)
        return tables(self, **kwargs)

    monkeypatch.setattr(calibration.Measurement, "tables", meanwhile)
    found = cf.calibrate(folder, boxes[:1], boxes[1:], symmetries=(1,), precision="float32")
    after = load_cards(folder)
    assert after["density"]["note"] == "written while boxes were run"
    for target in ("density", "velocity"):
        assert after[target]["scores"] == {}
        assert after[target]["calibration"] == json.loads(json.dumps(found[target]))
        assert after[target]["architecture"] == before[target]["architecture"]


def test_reconstruct_keeps_both_estimators_and_the_errors(
    models: Path, observed: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"precision": "float32", "symmetries": 2}
    both = {"restore_power": True, "uncertainty": True}
    store = tmp_path / "a.zarr"
    arguments = {"model": models, "progress": False, **options, **both}
    tree = cf.reconstruct(observed, store, **arguments)
    fields = observed.recon.predict(models, uncertainty=True, **options)
    restored = observed.recon.predict(models, restore_power=True, **options)
    groups = ((tree["reconstructed"], fields), (tree["restored"], restored))
    for group, expected in groups:
        assert set(group.data_vars) == set(expected)
        for name, field in expected.items():
            scale = float(abs(field).max())
            np.testing.assert_allclose(group[name], field, atol=1e-5 * scale, err_msg=str(name))
            assert group[name].attrs["symmetries"] == 2
    # What decides the numbers is in the plan: without it this is another reconstruction.
    cf.reconstruct(observed, store, **arguments)
    for change in ({"symmetries": 1}, {"restore_power": False}, {"uncertainty": False}):
        with pytest.raises(CosmofieldsError, match=next(iter(change))):
            cf.reconstruct(observed, store, **{**arguments, **change})


def test_a_mean_that_needs_nothing_is_left_alone(
    make_models: Any, boxes: list[Path], observed: xr.Dataset, tmp_path: Path, monkeypatch: Any
) -> None:
    # A table that would make the prediction worse where the truth is known.
    worse = {"density": [0.99, 1.02], "ratio": [[0.2, 5.0]]}
    monkeypatch.setattr(calibration.MeanMeasurement, "table", lambda self: worse)
    folder = make_models(tmp_path / "models", observed)
    cf.calibrate(folder, boxes[:1], boxes[1:], symmetries=(1,), precision="float32")
    assert "mean" not in load_model("density", folder)[1]["calibration"]
    assert "recalibrated" not in cf.predict_density(observed, folder).attrs


def test_networks_see_the_density_as_it_came(
    models: Path, make_models: Any, observed: xr.Dataset, tmp_path: Path
) -> None:
    bare = make_models(tmp_path / "bare", observed)
    options: dict[str, Any] = {"precision": "float32"}
    one, other = observed.recon.predict(models, **options), observed.recon.predict(bare, **options)
    card = load_cards(models)["density"]
    assert one["density"].attrs["recalibrated"] == calibration.mean_name(card)
    assert float(abs(one["density"] / other["density"] - 1).max()) > 1e-3
    np.testing.assert_array_equal(one["velocity"], other["velocity"])
    # Also where the density is given.
    given = observed.assign(density=one["density"])
    velocity = cf.predict_velocity(given, models, **options)
    np.testing.assert_allclose(velocity, one["velocity"], atol=1e-2)
    np.testing.assert_allclose(
        one["momentum"], (one["density"] * one["velocity"]).transpose(*velocity.dims), rtol=1e-6
    )


def test_the_card_says_what_the_mean_buys(models: Path, boxes: list[Path], observed: Any) -> None:
    found = load_model("density", models)[1]["calibration"]["mean"]["validation"]
    true = cf.open_box(boxes[1])[1].load()["density"]
    density = cf.predict_density(observed, models, precision="float32")
    raw = calibration.network_density(density, load_model("density", models)[1])
    for when, field in (("before", raw), ("after", density)):
        assert found[when]["rms_error"][0] == pytest.approx(float(rms_error(field, true)), rel=1e-4)
        assert found[when]["slope"][0] == pytest.approx(float(slope(field, true)), rel=1e-3)
    assert np.all(np.less(found["after"]["rms_error"], found["before"]["rms_error"]))
    # Mass is conserved.
    assert float(density.mean()) == pytest.approx(float(true.mean()), rel=1e-4)


# --- several validation boxes ---


@pytest.mark.parametrize("role", ["validation", None])
def test_factors_are_of_the_cells_of_all_validation_boxes(
    models: Path, boxes: list[Path], tmp_path: Path, role: str | None
) -> None:
    folder = shutil.copytree(models, tmp_path / "models")
    validation = [with_role(boxes[0], tmp_path, role), boxes[1]]
    # Of the same boxes as all: then neither pool is larger.
    cf.calibrate(folder, validation, validation, symmetries=(1,), precision="float32")
    inside, n = 0.0, 0
    for path in boxes:
        true = cf.open_box(path)[1].load()
        fields = observed_of(path).recon.predict(folder, precision="float32", uncertainty=True)
        low, high = calibration.interval(fields["velocity"], fields["velocity_error"])
        inside += float(((true["velocity"] >= low) & (true["velocity"] <= high)).sum())
        n += low.size
    assert inside / n == pytest.approx(0.6827, abs=2e-3)
    found = load_model("velocity", folder)[1]["calibration"]
    by_box = found["by_box"]
    assert list(by_box) == ["box_1.h5", "box_2.h5"]
    for kind in ("across", "along"):
        alone = [box["factors"][kind][0] for box in by_box.values()]
        assert min(alone) <= found["factors"][kind][0] <= max(alone)
    # A field restored by its own box has its power.
    cf.calibrate(folder, boxes[:1], validation, symmetries=(1,), precision="float32")
    by_box = load_model("velocity", folder)[1]["calibration"]["by_box"]
    assert np.abs(by_box["box_1.h5"]["restored_deviation"]["velocity"][0][:2]).max() < 1e-3


# --- a network for the momentum ---


@pytest.fixture(scope="module")
def with_momentum(
    models: Path, add_network: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = shutil.copytree(models, tmp_path_factory.mktemp("with") / "models")
    add_network(folder, "residual", "momentum")
    return folder


def test_a_network_for_the_momentum_is_used(
    with_momentum: Path, models: Path, observed: xr.Dataset
) -> None:
    options: dict[str, Any] = {"precision": "float32", "symmetries": 2}
    fields = observed.recon.predict(with_momentum, **options)
    product = observed.recon.predict(models, **options)
    for name in ("density", "velocity"):
        np.testing.assert_array_equal(fields[name], product[name])
    assert fields["momentum"].attrs["model"] == "models momentum"
    of = models.name
    assert product["momentum"].attrs["model"] == f"{of} density x {of} velocity"
    assert "models momentum (weights" in fields.attrs["history"]
    # It sees the halos, the density as it came, and the velocity.
    network, _ = load_model("momentum", with_momentum)
    raw = calibration.network_density(
        fields["density"], load_model("density", models)[1], symmetries=2
    )
    seen = [observed["halo_density"], raw.expand_dims("channel"), fields["velocity"]]
    channels = np.concatenate([one.transpose(..., "x", "y", "z").values for one in seen])
    expected = run_in_box(network, channels, "z", **options)
    scale = float(np.std(expected))
    np.testing.assert_allclose(fields["momentum"], expected, atol=1e-4 * scale)
    for model, made in ((with_momentum, fields), (models, product)):
        alone = cf.predict_momentum(observed, model, **options)
        np.testing.assert_array_equal(alone, made["momentum"])
        assert alone.attrs["model"] == made["momentum"].attrs["model"]


def test_the_momentum_is_calibrated_in_its_own_card(
    with_momentum: Path,
    boxes: list[Path],
    observed: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ModelMismatchError, match="'models momentum' was not calibrated"):
        cf.predict(observed, with_momentum, restore_power=True)
    cf.predict(observed, with_momentum, uncertainty=True)  # of density and velocity alone
    folder = shutil.copytree(with_momentum, tmp_path / "models")
    cf.calibrate(folder, boxes[:1], boxes[1:], symmetries=(1,), precision="float32")
    cards = load_cards(folder)
    kept = {target: list(card["calibration"]["restoration"]) for target, card in cards.items()}
    assert kept == {name: [name] for name in ("density", "velocity", "momentum")}
    mean = observed.recon.predict(folder, precision="float32")
    restored = observed.recon.predict(folder, precision="float32", restore_power=True)
    expected = calibration.restore(mean["momentum"], cards["momentum"])
    np.testing.assert_array_equal(restored["momentum"], expected)
    alone = cf.predict_momentum(observed, folder, precision="float32", restore_power=True)
    np.testing.assert_array_equal(alone, expected)
    assert float(abs(expected - mean["momentum"]).max()) > 1
    # Without the network the momentum is the product, of which no power was measured.
    (folder / "momentum.json").unlink()
    said = "of 'models velocity' has the power of the velocity, and none of the momentum: .* put"
    options: dict[str, Any] = {"restore_power": True, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_tile", None)
        with pytest.raises(ModelMismatchError, match=said):
            cf.predict(observed, folder, **options)
        with pytest.raises(ModelMismatchError, match=said):
            cf.predict_momentum(observed, folder, **options)
        with pytest.raises(ModelMismatchError, match=said):
            cf.reconstruct(observed, tmp_path / "a.zarr", model=folder, **options)
    xr.testing.assert_identical(
        cf.predict_velocity(observed, folder, restore_power=True, precision="float32"),
        restored["velocity"],
    )
    assert "momentum" in cf.predict(observed, folder, uncertainty=True)
    card = load_cards(folder)["velocity"]
    with pytest.raises(ModelMismatchError, match=said):
        calibration.restore(mean["momentum"], card)
    # A score has no such number, as of a model that was not calibrated.
    true = cf.open_box(boxes[1])[1].load()
    found = measure(mean, true, load_cards(folder))
    assert "restored_relative_deviation" in found["velocity"]
    assert "restored_relative_deviation" not in found["momentum"]


def test_each_network_is_loaded_once(
    with_momentum: Path, observed: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def counted(target: str, model: Path) -> Any:
        loaded.append(target)
        return load_model(target, model)

    monkeypatch.setattr("cosmofields.inference.fields.load_model", counted)
    cf.predict_momentum(observed, with_momentum)
    assert sorted(loaded) == ["density", "momentum", "velocity"]


def test_a_momentum_lazily(
    with_momentum: Path, observed: xr.Dataset, count_computes: Callable[..., Any]
) -> None:
    chunked = observed.chunk(x=16, mass_bin=1)
    with count_computes() as computes:
        lazy = cf.predict(chunked, with_momentum, precision="float32")
        assert computes.total == 0
    eager = cf.predict(observed, with_momentum, precision="float32")
    for name, field in eager.items():
        assert lazy[name].chunks
        scale = float(field.std())
        np.testing.assert_allclose(lazy[name].compute(), field, atol=1e-4 * scale, err_msg=name)
