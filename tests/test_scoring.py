"""Scores of a model: by hand, of random models, in their cards, by the command, on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import xarray as xr

import cosmofields as cf
from cosmofields import scoring
from cosmofields.cli import main
from cosmofields.conventions import (
    CosmofieldsError,
    ModelMismatchError,
    StoreError,
    label,
    make_grid,
)
from cosmofields.scoring import EQ2, FILTERED, NETWORK, ROWS, Row, gather, measure, score
from cosmofields.unet import load_cards, model_folder, saved, zoo

ROOT = Path(__file__).parents[1]
GRID = make_grid(32, [150.0] * 3)
FACTS = {"box_size": 150.0, "redshift": 0.59, "los": "z"}
FIELDS = {"density", "velocity", "velocity_divergence", "momentum"}


# --- the numbers ---


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    """A prediction and its truth: smooth fields and noise, in known parts."""
    rng = np.random.default_rng(1)

    def smooth(cells: float) -> Any:
        return scipy.ndimage.gaussian_filter(rng.standard_normal((32, 32, 32)), cells, mode="wrap")

    def made(density: Any, velocity: Any) -> xr.Dataset:
        fields = {
            "density": density,
            "velocity": velocity,
            "momentum": density * velocity,
        }
        return xr.Dataset(
            {k: label(k, v.astype(np.float32), GRID, FACTS) for k, v in fields.items()}, attrs=FACTS
        )

    log, log_error = 3 * smooth(1), 0.3 * rng.standard_normal((32, 32, 32))
    velocity = 3000 * np.stack([smooth(1.5) for _ in "xyz"])
    error = 50 * rng.standard_normal(velocity.shape)
    predicted = made(np.exp(log), velocity)
    return predicted, made(np.exp(log + log_error), velocity + error)


@pytest.fixture(scope="module")
def scores(pair: tuple[xr.Dataset, xr.Dataset]) -> dict[str, Any]:
    return measure(*pair)


def test_scores_per_cell(pair: tuple[xr.Dataset, xr.Dataset], scores: dict[str, Any]) -> None:
    for name in ("density", "velocity", "momentum"):
        p, t = (ds[name].values.astype(np.float64).reshape(-1, 32**3) for ds in pair)
        expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, t, strict=True)])
        assert scores[name]["correlation"] == pytest.approx(expected, rel=1e-4)
        assert scores[name]["rms_error"] == pytest.approx(np.sqrt(np.mean((p - t) ** 2)), rel=1e-4)
        about = [x - x.mean(axis=1, keepdims=True) for x in (p, t)]
        slope = (about[0] * about[1]).sum() / (about[0] ** 2).sum()
        assert scores[name]["slope"] == pytest.approx(slope, rel=1e-4)


def test_scores_after_smoothing(pair: tuple[xr.Dataset, xr.Dataset], scores: Any) -> None:
    cells = 5.0 / GRID.cell_size[0]

    def smooth(field: Any) -> Any:
        return scipy.ndimage.gaussian_filter(
            field.astype(np.float64), cells, mode="wrap", truncate=8
        )

    p, t = (smooth(ds["density"].values) for ds in pair)
    expected = np.corrcoef(p.ravel(), t.ravel())[0, 1]
    assert scores["density"]["correlation_smoothed"] == pytest.approx(expected, abs=2e-4)
    parts = [[smooth(part) for part in ds["momentum"].values] for ds in pair]
    expected = np.mean(
        [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*parts, strict=True)]
    )
    assert scores["momentum"]["correlation_smoothed"] == pytest.approx(expected, abs=2e-4)
    assert "correlation_smoothed" not in scores["velocity"]


def test_directions(pair: tuple[xr.Dataset, xr.Dataset], scores: dict[str, Any]) -> None:
    p, t = (ds["velocity"].values.astype(np.float64) for ds in pair)
    sizes = [np.linalg.norm(v, axis=0) for v in (p, t)]
    angle = 1 - (p * t).sum(axis=0) / (sizes[0] * sizes[1])
    found = scores["velocity"]
    assert found["misalignment_mean"] == pytest.approx(angle.mean(), rel=1e-3)
    assert found["misalignment_std"] == pytest.approx(angle.std(), rel=1e-3)
    expected = np.corrcoef(*(size.ravel() for size in sizes))[0, 1]
    assert found["magnitude_correlation"] == pytest.approx(expected, rel=1e-4)


def test_spectra_by_hand(pair: tuple[xr.Dataset, xr.Dataset], scores: dict[str, Any]) -> None:
    """In bins counted mode by mode: r at 0.1 and 0.3, T at the longest waves, R in fixed bins."""
    first = 2 * np.pi / 150
    k = first * np.sqrt(sum(x**2 for x in np.meshgrid(*[np.fft.fftfreq(32, 1 / 32)] * 3)))
    p, t = (np.fft.fftn(ds["velocity"].values.astype(float), axes=(1, 2, 3)) for ds in pair)

    def powers(low: float, high: float) -> tuple[float, float, float]:
        inside = (k >= low) & (k < high) & (k > 0)
        pairs = ((p, p), (t, t), (p, t))
        return tuple((a[:, inside] * b[:, inside].conj()).real.sum() for a, b in pairs)

    found = scores["velocity"]
    for at, wanted in zip((0.1, 0.3), found["spectral_correlation"], strict=True):
        n = round(at / first)
        pp, tt, pt = powers((n - 0.5) * first, (n + 0.5) * first)
        assert wanted == pytest.approx(pt / np.sqrt(pp * tt), rel=1e-4)
    for n, wanted in enumerate(found["transfer"], start=1):
        _, tt, pt = powers((n - 0.5) * first, (n + 0.5) * first)
        assert wanted == pytest.approx(pt / tt, rel=1e-3)
    edges = (0.0, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3)
    for low, high, wanted in zip(edges[:-1], edges[1:], found["relative_deviation"], strict=True):
        pp, tt, _ = powers(low, high)
        # The longest wave of this box is 0.042.
        assert (wanted is None) == (tt == 0)
        if wanted is not None:
            assert wanted == pytest.approx(pp / tt - 1, abs=1e-4)


def test_no_r_where_the_box_has_no_modes(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    # The same fields in longer cells: their shortest waves are k = 0.23 h/Mpc.
    grid = make_grid(32, [32 * 24.0] * 3)
    stretched = [
        xr.Dataset(
            {k: label(k, v.values, grid, {**FACTS, "box_size": 768.0}) for k, v in ds.items()}
        )
        for ds in pair
    ]
    first, second = measure(*stretched)["velocity"]["spectral_correlation"]
    assert first is not None
    assert second is None


def test_divergence_is_that_of_the_velocity(pair: Any, scores: dict[str, Any]) -> None:
    p, t = (cf.divergence(ds["velocity"]) for ds in pair)
    found = scores["velocity_divergence"]
    expected = np.corrcoef(p.values.ravel(), t.values.ravel())[0, 1]
    assert found["correlation"] == pytest.approx(expected, rel=1e-4)
    assert found["relative_deviation"][3:] == pytest.approx(
        scores["velocity"]["relative_deviation"][3:], abs=0.3
    )


def test_coverage_is_that_of_the_errors_put_in(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    predicted, true = pair
    errors = {"velocity_error": xr.full_like(predicted["velocity"], 50.0)}
    # A lognormal of mean m exp(s^2 / 2) about the median m.
    mean = predicted["density"] * np.exp(0.3**2 / 2)
    errors["density_error"] = mean * np.sqrt(np.expm1(0.3**2))
    named = {key: value.rename(key) for key, value in errors.items()}
    found = measure(predicted.assign(density=mean.rename("density"), **named), true)
    for name in ("density", "velocity"):
        assert found[name]["coverage_68"] == pytest.approx(0.6827, abs=0.01)
        assert found[name]["coverage_95"] == pytest.approx(0.95, abs=0.005)
    assert "coverage_68" not in found["momentum"]


# --- a row of a table ---


def test_rows() -> None:
    column = {
        "velocity": {
            "correlation": 0.9,
            "spectral_correlation": [0.8, 0.7],
            "relative_deviation": [None, 0.5, -0.2, 0.1, 0.0, 0.0, 0.0, 0.3],
        }
    }
    assert Row("", "velocity", "correlation").of(column) == [0.9]
    assert Row("", "velocity", "spectral_correlation", 1).of(column) == [0.7]
    assert Row("", "velocity", "spectral_correlation").of(column) == [0.8, 0.7]
    for between, expected in (
        ((0.05, 0.25), [0.2]),
        ((0.0, 0.3), [0.5]),
        ((0.05, 0.3), [0.3]),
        ((0.0, 0.03), []),
    ):
        assert Row("", "velocity", "relative_deviation", between).of(column) == expected
    assert Row("", "density", "correlation").of(column) == []
    assert len({row.label for row in ROWS}) == len(ROWS)


# --- of a model ---


@pytest.fixture(scope="module")
def boxes(make_box: Callable[..., Path], tmp_path_factory: Any) -> list[Path]:
    folder = tmp_path_factory.mktemp("boxes")
    roles = {1: "training", 2: "validation"}
    return [make_box(folder / f"box_{n}.h5", seed=n, role=role) for n, role in roles.items()]


@pytest.fixture(scope="module")
def observed(boxes: list[Path]) -> xr.Dataset:
    halos, _ = cf.open_box(boxes[1])
    return halos.recon.select().recon.to_redshift_space("z").recon.paint(32)


@pytest.fixture
def models(make_models: Callable[..., Path], observed: xr.Dataset, tmp_path: Path) -> Path:
    """Random models, not calibrated."""
    return make_models(tmp_path / "random", observed)


def test_scores_go_into_the_cards_of_their_fields(
    models: Path, boxes: list[Path], observed: xr.Dataset
) -> None:
    found = score(models, boxes[1:], precision="float32")
    assert found["model"] == "random"
    box = found["boxes"]["box_2.h5"]
    assert (box["role"], box["seed"], box["line_of_sight"]) == ("validation", 2, "z")
    assert (box["box_size"], box["cell_size"]) == (75.0, pytest.approx(2.34375))
    assert (box["symmetries"], box["precision"]) == (1, "float32")
    assert box["halos"] == pytest.approx(3e-3 * 75**3, abs=1)
    assert box["command"] == (
        f"cosmofields score --model {models} --boxes box_2.h5 --los z --symmetries 1"
    )
    assert set(box["versions"]) == {"python", "cosmofields", "numpy", "torch"}
    cards = load_cards(models)
    for target, fields in (
        ("density", {"density"}),
        ("velocity", {"velocity", "velocity_divergence", "momentum"}),
    ):
        kept = cards[target]["scores"]["box_2.h5"]
        for column in (NETWORK, FILTERED, EQ2):
            assert set(kept[column]) == fields
    assert gather(models) == found
    # What the columns are of.
    true = cf.open_box(boxes[1])[1].load()
    fields = observed.recon.predict(models, precision="float32")
    bias = [3.0, 1.5, 1.2, 1.1]
    eq4 = cf.linear.linear_bias(observed, true["density"])
    for column, predicted in (
        (NETWORK, fields),
        (FILTERED, cf.linear_theory(observed, bias=bias)),
        (EQ2, cf.linear_theory(observed, method="paper", bias=eq4)),
    ):
        table = cf.scores_table({"it": predicted.recon.evaluate(true)})["it"]
        for name in FIELDS:
            for key, of in (("correlation", "correlation_coefficient"), ("slope", "slope")):
                assert box[column][name][key] == pytest.approx(table[name][of], rel=1e-3), name
    # Nothing is restored and no error known without a calibration.
    assert not [key for name in FIELDS for key in box[NETWORK][name] if "restored" in key]
    assert "coverage_68" not in box[NETWORK]["velocity"]


@pytest.mark.parametrize("architecture", ["residual", "paper"])
def test_momentum_by_a_network_of_its_own(
    architecture: str,
    models: Path,
    add_network: Callable[..., None],
    boxes: list[Path],
    observed: xr.Dataset,
) -> None:
    """Its scores are in its own card; of the paper's scheme, all steps are."""
    for target in {"residual": ["momentum"], "paper": ["density", "velocity", "momentum"]}[
        architecture
    ]:
        add_network(models, architecture, target)
    found = score(models, boxes[1:], precision="float32")
    kept = {target: card["scores"]["box_2.h5"] for target, card in load_cards(models).items()}
    assert set(kept["velocity"][NETWORK]) == {"velocity", "velocity_divergence"}
    assert set(kept["momentum"][NETWORK]) == {"momentum"}
    assert gather(models) == found
    true = cf.open_box(boxes[1])[1].load()
    momentum = cf.predict_momentum(observed, models, precision="float32")
    expected = float(
        cf.cell_statistics(momentum, true["momentum"])["correlation_coefficient"].mean()
    )
    network = found["boxes"]["box_2.h5"][NETWORK]
    assert network["momentum"]["correlation"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert np.isfinite([network[name]["correlation"] for name in FIELDS]).all()


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Boxes are not run; their names in the order in which they would have been."""
    done = []

    def empty(path: Path, *args: Any) -> dict[str, Any]:
        done.append(Path(path).name)
        columns = (NETWORK, FILTERED, EQ2)
        return {"role": "test", **{column: {name: {} for name in FIELDS} for column in columns}}

    monkeypatch.setattr("cosmofields.scoring.measuring._score_box", empty)
    return done


def test_cards_of_a_model_that_ships_are_left_alone_unless_asked_for(
    models: Path, boxes: list[Path], unmeasured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmofields.zoo.zoo", lambda: {"mine": models})
    found = score("mine", boxes)
    assert list(found["boxes"]) == unmeasured == ["box_1.h5", "box_2.h5"]
    assert gather("mine")["boxes"] == {}
    arguments = ["score", "--model", "mine", "--boxes", str(boxes[1])]
    assert main(arguments) == 0
    assert gather("mine")["boxes"] == {}
    assert main([*arguments, "--write"]) == 0
    assert list(gather("mine")["boxes"]) == ["box_2.h5"]
    score(str(models), boxes)  # its directory: of one's own, as far as that can be known
    assert list(gather("mine")["boxes"]) == ["box_2.h5", "box_1.h5"]


def test_a_kill_loses_one_box(
    models: Path,
    boxes: list[Path],
    unmeasured: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = scoring.measuring._score_box

    def killed(path: Path, *args: Any) -> Any:
        if path == boxes[1]:
            raise KeyboardInterrupt
        return empty(path, *args)

    monkeypatch.setattr("cosmofields.scoring.measuring._score_box", killed)
    out = tmp_path / "new" / "scores.json"
    with pytest.raises(KeyboardInterrupt):
        score(models, boxes, out=out)
    assert list(json.loads(out.read_text())["boxes"]) == ["box_1.h5"]
    assert gather(models)["boxes"] == {}
    with pytest.raises(KeyboardInterrupt):
        score(models, boxes)
    assert list(gather(models)["boxes"]) == ["box_1.h5"]


def test_scores_of_other_boxes_stay_and_cards_may_be_left_alone(
    models: Path, boxes: list[Path]
) -> None:
    score(models, boxes[:1])
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    found = score(models, boxes[1:], write=False, symmetries=2)
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before
    assert found["boxes"]["box_2.h5"]["symmetries"] == 2
    score(models, boxes[1:])
    assert list(gather(models)["boxes"]) == ["box_1.h5", "box_2.h5"]


def test_a_calibrated_model_is_restored_and_covered(
    models: Path, boxes: list[Path], observed: xr.Dataset
) -> None:
    cf.calibrate(models, boxes[:1], boxes[1:], symmetries=(1,), precision="float32")
    network = score(models, boxes[1:], precision="float32")["boxes"]["box_2.h5"][NETWORK]
    # The box that errors were scaled by.
    assert network["velocity"]["coverage_68"] == pytest.approx(0.6827, abs=0.005)
    true = cf.open_box(boxes[1])[1].load()
    restored = observed.recon.predict(models, precision="float32", restore_power=True)
    for name in ("density", "velocity", "momentum"):
        expected = cf.spectra(restored[name], true[name], edges=scoring.K_EDGES)
        np.testing.assert_allclose(
            np.array(network[name]["restored_relative_deviation"], float),
            expected["relative_deviation"],
            rtol=1e-3,
            atol=1e-4,
        )


def test_eq2_has_the_bias_of_the_card(models: Path, boxes: list[Path]) -> None:
    cards = load_cards(models)
    cards["velocity"]["linear_bias"]["power_ratio"] = 1e3
    saved.write_card(cards["velocity"], models)
    found = score(models, boxes[1:], write=False)["boxes"]["box_2.h5"]
    assert found[EQ2]["velocity"]["relative_deviation"][-1] == pytest.approx(-1, abs=0.01)


def test_what_cannot_be_scored(models: Path, boxes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CosmofieldsError, match="boxes=none; expected at least one"):
        score(models, [])
    with pytest.raises(CosmofieldsError, match="each of another name"):
        score(models, [boxes[0], boxes[0]])
    with pytest.raises(StoreError, match="No model 'unknown': expected one of those that ship"):
        score("unknown", boxes)
    with pytest.raises(StoreError, match="No file"):
        score(models, [*boxes, tmp_path / "nowhere.h5"])
    assert gather(models)["boxes"] == {}


def test_commands(
    models: Path, boxes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scores.json"
    assert main(["score", "--model", str(models), "--boxes", str(boxes[1]), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(row.label in text for row in ROWS)
    found = json.loads(out.read_text())
    assert set(found["boxes"]) == {"box_2.h5"}
    assert gather(models)["boxes"] == {}
    assert main(["score", "--model", str(models), "--boxes", str(boxes[1]), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["boxes"] == json.loads(json.dumps(found["boxes"]), parse_constant=lambda _: None)
    assert gather(models)["boxes"] != {}  # without --out they go to the cards of a directory
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert [line.split(":")[0] for line in text.splitlines() if line[0] != " "] == list(zoo())
    assert "no-mass: for catalogues without masses, at least 0.003 halos per (Mpc/h)^3" in text
    assert "sparse: for catalogues with masses, at least 0.001 halos per (Mpc/h)^3" in text


def test_info_of_a_model_is_its_cards_in_words(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "no-mass"]) == 0
    text = capsys.readouterr().out
    card = load_cards("no-mass")["velocity"]
    training, calibrated = card["training"], card["calibration"]
    for word in (
        "catalogues without masses, at least 0.003 halos",
        "2.344 Mpc/h, within 2%",
        "0.59, within 0.05",
        *(f"{name} ({box['role']})" for name, box in card["scores"].items()),
        f"{training['seconds']} s on {training['machine']}",
        training["command"],
        calibrated["command"],
        *calibrated["validation"],
    ):
        assert word in text
    # A directory of one's own, whose cards say less; and a store is still a store.
    assert main(["info", str(models)]) == 0
    text = capsys.readouterr().out
    assert f"random: a model of density, velocity, in {models}" in text
    assert "none: `cosmofields score` makes them" in text
    assert text.count("nothing: no restored power, and no errors") == 2
    monkeypatch.chdir(tmp_path)
    cf.write_store(cf.tutorial.open_dataset()[1].isel(x=slice(4)), "default")
    assert main(["info", "./default"]) == 0
    assert "Zarr v3 store" in capsys.readouterr().out


def test_a_name_and_a_path_of_the_same_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.rename(models.with_name("default"))
    monkeypatch.chdir(models.parent)
    assert model_folder("default") == zoo()["default"]
    assert model_folder("./default") == Path("default")
    assert model_folder(Path("default")) == Path("default")


def test_the_model_that_fits_is_named(
    models: Path, observed: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = load_cards(models)
    monkeypatch.setattr("cosmofields.inference.inputs.zoo", lambda: {"mine": models})
    monkeypatch.setattr("cosmofields.inference.inputs.load_cards", lambda name: cards)
    other = {**cards["density"], "name": "other"}
    other["trained_for"] = {**other["trained_for"], "number_density": [3e-3]}
    with pytest.raises(
        ModelMismatchError,
        match=r"\. One that ships fits it: model='mine' \(in the shell: --model mine\)\. To",
    ):
        cf.inference.check_box(observed, other)
    late = observed.assign_attrs(redshift=0.0)
    with pytest.raises(ModelMismatchError) as refused:
        cf.inference.check_box(late, other)
    assert "ships" not in str(refused.value)


def test_page_of_two_models(make_scores: SimpleNamespace, models: Path, boxes: list[Path]) -> None:
    one = score(models, boxes[:1], write=False)
    network = one["boxes"]["box_1.h5"][NETWORK]
    network["velocity"] |= {"correlation": 0.98201, "transfer": [0.98, 1.0, 1.04]}
    network["density"] |= {"correlation": 0.7499}
    other = json.loads(json.dumps(one))
    other["model"] = "sparse"
    other["trained_for"]["number_density"] = [1e-3]
    page = make_scores.render([one, other])
    lines = dict(
        reversed([line.strip("| ").split(" | ", 1) for line in page.splitlines() if " | " in line])
    )
    head, *_ = (line for line in page.splitlines() if line.startswith("| | paper"))
    assert head == "| | paper | goal | eq. 2 | Wiener filter | `random` | `sparse` |"
    goal, *columns = lines["velocity: C_r, mean of components"].split(" | ")[1:]
    assert goal == "at least 0.982"
    assert columns[2:] == ["**0.982**", "**0.982**"]
    assert lines["density: C_r per cell"].split(" | ")[0] == "about 0.9"
    assert lines["density: C_r per cell"].endswith("0.7499 | 0.7499")
    assert lines["velocity: T(k) of the three longest waves"].endswith("0.98, 1, 1.04")
    assert lines["velocity: cells within 68 % errors"].endswith("- | -")
    assert page.count("With linear theory from the halos of `sparse` (0.001 (h/Mpc)^3") == 1
    assert page.count(one["boxes"]["box_1.h5"]["command"]) == 2
