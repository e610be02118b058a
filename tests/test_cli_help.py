"""The command line teaches: its examples parse, its words are those of the functions."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cosmofields as cf
from cosmofields.accessor import DatasetRecon
from cosmofields.cli import _parser, main
from cosmofields.demo import demo
from cosmofields.training.config import KEYS

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
VERBS: dict[str, argparse.ArgumentParser] = next(
    action.choices
    for action in _parser()._actions
    if isinstance(action, argparse._SubParsersAction)
)
# The functions that a verb hands its options to.
FUNCTIONS: dict[str, list[Callable[..., Any]]] = {
    "demo": [demo],
    "predict": [cf.open_catalog, cf.to_redshift_space, cf.select, cf.reconstruct],
    "evaluate": [cf.report],
    "info": [],
    "verify": [cf.verify],
    "models": [cf.models],
    "score": [cf.score],
    "calibrate": [cf.calibrate],
    "simulate": [cf.simulate],
}
# What stands for something else there, or for nothing: where it runs, how it answers.
OTHERS = {
    "help": "",
    "json": "",
    "option": "storage_options",
    "redshift_space": "los of open_catalog, or to_redshift_space",
    "scheduler": "a distributed.Client",
    "workers": "its workers",
    "label": "a mapping by label, for predicted",
    "out": "the store, of reconstruct",
    "catalog": "path, of open_catalog",
    "store": "path, of verify and info",
    "trust_units": "a filter of UnitsWarning",
}


def options(verb: str) -> list[argparse.Action]:
    return [action for action in VERBS[verb]._actions if action.dest != "help"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for code in ("0  ", "1  ", "2  ", "130", "141"):
        assert re.search(rf"^  {code}", said, re.MULTILINE), code
    assert not [line for line in said.splitlines() if len(line) > 100]
    for action in options(verb):
        assert action.help, f"{verb} {action.dest} says nothing"
    found = re.search(r"^in Python:\n((?:  .*\n)+)", said, re.MULTILINE)
    assert verb == "completion" or found
    if found:
        resolve(textwrap.dedent(found[1]))


def resolve(code: str) -> None:
    """Find what the code names, after `import cosmofields` and no more; `predicted` is a field."""
    names: dict[str, Any] = {"cosmofields": cf, "predicted": None, "true": None}
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom():
                exec(ast.unparse(node), names)
            case ast.Attribute(value=ast.Name("cosmofields"), attr=name):
                # A submodule is an attribute too, once another test has imported it.
                assert name in cf.__all__
            case ast.Attribute(attr=name):
                assert name == "recon" or hasattr(DatasetRecon, name)
            case ast.Call(func=ast.Name(name)):
                assert callable(names.get(name)), name
            case ast.Name(name):
                assert name in names, name


@pytest.mark.parametrize("verb", VERBS)
def test_examples_parse(verb: str) -> None:
    epilog = VERBS[verb].epilog or ""
    text = re.split(r"^\w.*:$", epilog, flags=re.MULTILINE)[1].replace("\\\n", " ")
    examples = [line.strip() for line in text.splitlines() if line.strip()]
    assert examples
    assert any(example.startswith(f"cosmofields {verb}") for example in examples)
    for example in examples:
        words = shlex.split(re.split(r" [>#] ", example)[0])
        assert words[0] == "cosmofields"
        _parser().parse_args(words[1:])


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_words_are_those_of_the_functions(verb: str) -> None:
    known = {name for f in FUNCTIONS[verb] for name in inspect.signature(f).parameters}
    strange = {action.dest for action in options(verb)} - known - OTHERS.keys()
    assert not strange


def test_units_stand_beside_numbers_with_units() -> None:
    units = {
        "box_size": "Mpc/h",
        "origin": "Mpc/h",
        "sub_boxes": "Mpc/h",
        "stride": "Mpc/h",
        "number_density": "(h/Mpc)^3",
    }
    seen = set()
    for verb in VERBS:
        for action in options(verb):
            if action.dest in units:
                seen.add(action.dest)
                assert units[action.dest] in str(action.help), (verb, action.dest)
    assert seen == units.keys()


def test_training_options_are_in_their_table() -> None:
    keys = {key for section in KEYS.values() for key in section}
    fit = {action.dest for action in options("train")} - {"config"}
    assert fit == keys


@pytest.mark.skipif(not PAGE.is_file(), reason="the pages are in the repository only")
def test_the_page_has_every_verb_and_exit_code() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(VERBS)
    assert set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE)) == set("0 1 2 130 141 143".split())
    for verb in re.findall(r"^cosmofields (\w+)", text, re.MULTILINE):
        assert verb in VERBS


def test_help_loads_nothing_that_is_slow() -> None:
    code = (
        "import sys\n"
        "from cosmofields.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "except SystemExit: pass\n"
        "slow = 'torch numba scipy dask.array zarr h5py camb matplotlib rich shtab'.split()\n"
        "sys.exit(' '.join(name for name in slow if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
