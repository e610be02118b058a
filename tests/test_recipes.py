"""The recipes of the models that ship: every command is one that the command line takes."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from cosmofields.cli import _parser
from cosmofields.cli.learning import run_of
from cosmofields.training import TrainingConfig
from cosmofields.unet import load_cards, zoo

TOOLS = Path(__file__).parents[1] / "tools"


def commands(name, folder, script="train_model.sh"):
    """What the recipe would run, in a folder of empty boxes."""
    for box in ("a.h5", "b.h5", "c.h5", "d.h5"):
        (folder / box).touch()
    given = {"BOXES": "a.h5 b.h5", "VALIDATION": "c.h5", "TEST": "d.h5", "COSMOFIELDS": "echo RUN"}
    done = subprocess.run(
        ["bash", str(TOOLS / script), name],
        cwd=folder,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("RUN")]
    return lines, done


def fits(name, folder, monkeypatch):
    """Configurations of the fits of a recipe, in order."""
    first = folder / "models" / "default" / "first"
    first.mkdir(parents=True)
    for suffix in ("json", "safetensors"):
        (first / f"density.{suffix}").touch()
    if name != "default":  # which the others begin with
        (first.parent / "velocity.json").touch()
    lines, done = commands(name, folder)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)  # where the boxes are
    parsed = [_parser().parse_args(words) for words in lines]
    return [run_of(args).config for args in parsed if args.run.__name__ == "_train"]


def test_the_paper(tmp_path, monkeypatch):
    made = fits("paper", tmp_path, monkeypatch)
    assert [config.target for config in made] == ["density", "velocity", "momentum"]
    assert {config.architecture for config in made} == {"paper"}


@pytest.mark.parametrize("name", zoo())
def test_the_recipe_is_what_the_cards_say(name, tmp_path, monkeypatch):
    made = {config.target: config for config in fits(name, tmp_path, monkeypatch)}
    cards = load_cards(name)
    assert made.keys() == cards.keys()
    for target, card in cards.items():
        assert made[target] == TrainingConfig(**card["training"]["config"])


def test_no_recipe(tmp_path):
    _, done = commands("other", tmp_path)
    assert done.returncode == 2
    assert "default, no-mass, sparse, paper" in done.stderr


def test_side_by_side_is_on_the_same_data(tmp_path, monkeypatch):
    for model in ("paper-short", "residual-short"):
        first = tmp_path / "out/first" / model
        first.mkdir(parents=True)
        for suffix in ("json", "safetensors"):
            (first / f"density.{suffix}").touch()
    lines, done = commands("out", tmp_path, "side_by_side.sh")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    parsed = [_parser().parse_args(words) for words in lines]
    runs = [run_of(args) for args in parsed if args.run.__name__ == "_train"]
    assert sorted((run.config.architecture, run.config.target) for run in runs) == [
        (name, target)
        for name in ("paper", "residual")
        for target in ("density", "velocity", "velocity")
    ]
    assert {(run.boxes, run.validation) for run in runs} == {(("a.h5", "b.h5"), ("c.h5",))}
    scored = [args.boxes for args in parsed if args.verb == "score"]
    assert scored == [["c.h5", "d.h5"]] * 2
