"""The command line as such: usage of the verb at hand, and what is said before torch is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cosmofields.cli import main

PROGRAM = """
import sys
from cosmofields.cli import main
for line in sys.stdin:
    assert main(line.split()) == 2, line
    slow = {"torch", "lightning", "numba", "optuna", "matplotlib"} & {*sys.modules}
    assert not slow, (line, slow)
"""


def test_a_typo_shows_the_usage_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", "halos.h5", "--out", "a.zarr", "--symetries", "8", "--zzz"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: cosmofields predict ")
    assert (
        "cosmofields predict: error: unrecognized arguments: --symetries 8 --zzz "
        "(did you mean --symmetries?)" in said
    )
    with pytest.raises(SystemExit):
        main(["--zzz", "models"])
    assert "usage: cosmofields [-h] [--version] VERB" in capsys.readouterr().err


def test_files_that_are_not_there_are_named_without_delay(tmp_path: Path) -> None:
    """The libraries that take seconds to import have not been, when the error is there."""
    lines = [
        "predict nothere.h5 --out a.zarr",
        "predict nothere.h5 --out a.zarr --model nowhere",
        "demo --box nothere.h5",
        "demo --model nowhere",
        "calibrate --boxes nothere.h5 --validation nothere.h5",
        "calibrate --model nowhere --boxes nothere.h5 --validation nothere.h5",
        "score --boxes nothere.h5",
        "train density --boxes nothere.h5 --validation nothere.h5",
        "tune density --boxes nothere.h5 --out study",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(lines),
        text=True,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(lines)
    for line, answer in zip(lines, said, strict=True):
        wrong = "nowhere" if "nowhere" in line else "nothere.h5"
        assert answer.startswith(f"cosmofields {line.split()[0]}: No ")
        assert wrong in answer
    assert list(tmp_path.iterdir()) == []
