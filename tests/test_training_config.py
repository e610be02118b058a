"""Configuration files, and the options that overrule them."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cosmofields.catalog import NUMBER_DENSITY
from cosmofields.cli import TARGETS, _parser, main, run_of
from cosmofields.conventions import CosmofieldsError, StoreError
from cosmofields.training import KEYS, Fit, TrainingConfig, TrainingRun, read_run
from cosmofields.training.config import command
from cosmofields.unet import MODELS, model_folder, zoo

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
BOXES = """
[data]
boxes = ["a.h5"]
validation = ["b.zarr"]
"""


def run(text: str, folder: Path, *options: str) -> TrainingRun:
    """What `cosmofields train FILE OPTIONS` would train."""
    file = folder / "fit.toml"
    file.write_text(text)
    return run_of(_parser().parse_args(["train", str(file), *options]))


def test_file_and_options_say_the_same(tmp_path: Path) -> None:
    text = """
target = "velocity"
[data]
boxes = ["a.h5", "c.h5"]
validation = ["b.zarr"]
out = "here"
density_model = "there"
start = "before"
workers = 2
devices = 4
[observation]
number_density = [1e-3]
weighting = "number"
[model]
architecture = "paper"
widths = [8, 16, 32]
dropout = 0.2
[training]
steps = 10
settle_steps = 20
steps_per_epoch = 5
patience = 3
batch_size = 4
crop = 32
margin = 4
learning_rate = 1e-3
ema_decay = 0.99
precision = "32-true"
seed = 7
"""
    from_file = run(text, tmp_path)
    options = (
        "velocity --boxes a.h5 c.h5 --validation b.zarr --out here --density-model there "
        "--start before --workers 2 --devices 4 --number-density 0.001 --weighting number "
        "--architecture paper "
        "--widths 8 16 32 --dropout 0.2 --steps 10 --settle-steps 20 --steps-per-epoch 5 "
        "--patience 3 --batch-size 4 --crop 32 --margin 4 --learning-rate 0.001 "
        "--ema-decay 0.99 --precision 32-true --seed 7"
    ).split()
    assert run_of(_parser().parse_args(["train", *options])) == from_file
    assert from_file.config == TrainingConfig(
        "velocity",
        "paper",
        options={"widths": [8, 16, 32], "dropout": 0.2},
        number_density=(1e-3,),
        weighting="number",
        steps=10,
        settle_steps=20,
        steps_per_epoch=5,
        patience=3,
        batch_size=4,
        crop=32,
        margin=4,
        learning_rate=1e-3,
        ema_decay=0.99,
        precision="32-true",
        seed=7,
    )
    assert from_file == TrainingRun(
        from_file.config,
        ("a.h5", "c.h5"),
        ("b.zarr",),
        "here",
        density_model="there",
        start="before",
        workers=2,
        devices=4,
    )
    # The card's command leads back to the configuration.
    words = shlex.split(command(from_file.config, ["x/a.h5", "c.h5"], ["b.zarr"]))
    again = run_of(_parser().parse_args(words[1:]))
    assert again.config == from_file.config
    assert (again.boxes, again.validation) == (("a.h5", "c.h5"), ("b.zarr",))
    words = shlex.split(command(from_file.config, ["a.h5"], ["b.zarr"], "models/first"))
    assert run_of(_parser().parse_args(words[1:])).start == "first"


def test_a_directory_called_like_a_model_that_ships(
    box_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.h5", "b.h5"):
        shutil.copy(box_file, tmp_path / name)
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    seen = []

    def train(*args: object, density_model: str | Path, **kwargs: object) -> Path:
        seen.append(model_folder(density_model))
        return Path()

    monkeypatch.setattr("cosmofields.training.train", train)
    words = ["train", "velocity", "--boxes", "a.h5", "--validation", "b.h5", "--out", "default"]
    assert main(words) == 0
    assert main([*words, "--density-model", "default"]) == 0
    # What was just trained there; what ships, asked for by name.
    assert seen == [Path("default"), zoo()["default"]]
    # A command tells them apart.
    for source in ("default", "other/default", Path("default"), "first"):
        made = command(TrainingConfig("velocity"), ["a.h5"], ["b.h5"], source, source)
        run = run_of(_parser().parse_args(shlex.split(made)[1:]))
        wanted = "./default" if source in ("other/default", Path("default")) else source
        assert (run.start, run.density_model) == (wanted, wanted)


def test_every_key_is_an_option() -> None:
    args = vars(_parser().parse_args(["train", "density"]))
    keys = {key for section in KEYS.values() for key in section}
    assert keys <= set(args)
    assert all(args[key] is None for key in keys), "a default here would overrule the file"
    assert {target for _, target in MODELS} == set(TARGETS)


def test_options_overrule_the_file(tmp_path: Path) -> None:
    text = 'target = "density"' + BOXES + "[training]\nsteps = 10\nseed = 1"
    found = run(text, tmp_path, "--steps", "20", "--target", "momentum", "--boxes", "d.h5")
    assert found.config == TrainingConfig("momentum", steps=20, seed=1)
    assert found.boxes == ("d.h5",)
    assert found.validation == ("b.zarr",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trainig]\nsteps = 1", r"no section \[trainig\]; there are .*\[training\]"),
        ("[training]\nstep = 1", "no key 'step'; there are steps, settle_steps, .*seed"),
        ("steps = 1", r"before any section: no key 'steps' \(it belongs into \[training\]\)"),
        ("[model]\nseed = 1", r"\[model\] of fit.toml: no key 'seed' .* \[training\]"),
        ("model = 1", r"\[model\] is a section"),
        ("[training]\nsteps = 1.5", "steps = 1.5; expected a whole number"),
        ("[training]\nsteps = true", "steps = True; expected a whole number"),
        ("[training]\nprecision = 32", "precision = 32; expected text"),
        ("[model]\nwidths = 16", "widths = 16; expected a list"),
        ("[model]\nwidths = [16, 'x']", "an element of widths = 'x'; expected a whole number"),
    ],
)
def test_what_is_no_configuration(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CosmofieldsError, match=message):
        run('target = "density"\n' + text, tmp_path)


def test_what_is_lacking(tmp_path: Path) -> None:
    with pytest.raises(CosmofieldsError, match="No `target`, `boxes`, `validation`: what to train"):
        run("", tmp_path)
    with pytest.raises(StoreError, match="No configuration 'nowhere.toml'"):
        read_run("nowhere.toml")
    with pytest.raises(StoreError, match="is no TOML file: .*line 1"):
        run("target: density", tmp_path)
    with pytest.raises(CosmofieldsError, match="No option 'depth'; there are"):
        read_run(depth=3)


def test_patterns_are_expanded(tmp_path: Path) -> None:
    for name in ("b.zarr", "a.zarr"):
        (tmp_path / name).mkdir()
    text = f'target = "density"\n[data]\nboxes = ["{tmp_path}/*.zarr"]\nvalidation = ["c.h5"]'
    assert run(text, tmp_path).boxes == (f"{tmp_path}/a.zarr", f"{tmp_path}/b.zarr")
    with pytest.raises(StoreError, match="No box matches"):
        run(text.replace("*", "?.no"), tmp_path)


def test_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "no.toml"]) == 2
    assert "No configuration 'no.toml'" in capsys.readouterr().err


def test_examples_are_what_the_defaults_are() -> None:
    density, velocity = (read_run(EXAMPLES / f"{name}.toml") for name in ("density", "velocity"))
    assert density.config == TrainingConfig("density", options=density.config.options)
    assert Fit(density.config).model.options == Fit(TrainingConfig("density")).model.options
    assert velocity.config == replace(
        density.config, target="velocity", steps=3500, options=velocity.config.options
    )
    assert density.out == velocity.out


@pytest.mark.parametrize("target", TARGETS)
def test_paper_example_trains_every_target(target: str) -> None:
    found = read_run(EXAMPLES / "paper.toml", target=target)
    assert found.config.architecture == "paper"
    assert found.config.number_density == NUMBER_DENSITY
    model = Fit(found.config).model
    assert model.n_in == (4 if target == "density" else 8)
