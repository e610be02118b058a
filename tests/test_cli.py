"""The command line as such: usage of the verb at hand, and what is said before torch is there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import cosmofields as cf
from cosmofields import cli
from cosmofields.cli import main
from cosmofields.conventions import CosmofieldsError

PROGRAM = """
import sys
from cosmofields.cli import main
for line in sys.stdin:
    assert main(line.split()) == 2, line
    slow = {"torch", "lightning", "numba", "optuna", "matplotlib"} & {*sys.modules}
    assert not slow, (line, slow)
"""


def test_a_typo_says_what_was_meant_and_not_the_whole_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", "halos.h5", "--out", "a.zarr", "--symetries", "8", "--zzz"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "cosmofields predict: unrecognized arguments: --symetries 8 --zzz "
        "(did you mean --symmetries?)",
        "Example: cosmofields predict halos.h5 --out fields.zarr",
        "All options: cosmofields predict --help",
    ]
    for words, line in {
        "predikt a.csv": "argument VERB: invalid choice: 'predikt' (did you mean predict?); "
        "expected one of demo, predict, ",
        "--zzz models": "unrecognized arguments: --zzz",
        "predict a.csv --out b --los w": "argument --los: invalid choice: 'w'; expected "
        "one of x, y, z",
        "predict a.csv --out b --box-size x": "argument --box-size: invalid float value: 'x'",
        "predict": "the following arguments are required: CATALOG, --out",
    }.items():
        with pytest.raises(SystemExit) as left:
            main(words.split())
        assert left.value.code == 2
        said, *rest = capsys.readouterr().err.splitlines()
        assert said.partition(": ")[2].startswith(line)
        assert rest[-1].startswith("All options: cosmofields")
    assert main([]) == 2
    assert "reconstruct a catalogue into a store" in capsys.readouterr().err


def test_files_that_are_not_there_are_named_without_delay(tmp_path: Path) -> None:
    """The libraries that take seconds to import have not been, when the error is there."""
    lines = [
        "predict nothere.h5 --out a.zarr",
        "predict nothere.h5 --out a.zarr --model nowhere",
        "demo --box nothere.h5",
        "demo --model nowhere",
        "calibrate --model . --boxes nothere.h5 --validation nothere.h5",
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


def test_calibrate_refuses_what_ships_before_it_opens_a_box(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--boxes", "nothere.h5", "--validation", "nothere.h5"]
    assert main(["calibrate", "--model", "default", *words]) == 2
    assert "The model 'default' ships with cosmofields" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate", *words])
    assert "the following arguments are required: --model" in capsys.readouterr().err


# --- exit codes ---


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `cosmofields models` fail."""

    def fail() -> None:
        raise error

    monkeypatch.setattr("cosmofields.scoring.models", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CosmofieldsError("No such thing"), 2, "cosmofields models: No such thing"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a"),
            2,
            "cosmofields models: [Errno 13] Permission denied: '/a'",
        ),
        (
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            2,
            "cosmofields models: [Errno 32] Broken pipe",
        ),
        (KeyboardInterrupt(), 130, "cosmofields models: interrupted; nothing of it is kept"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(error, monkeypatch)
    assert main(["models"]) == code
    shown = capsys.readouterr()
    assert shown.err.strip() == said
    assert shown.out == ""


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_sigterm_is_an_interrupt_and_what_it_did_before_comes_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("cosmofields.scoring.models", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["models"]) == 143
    assert "cosmofields models: terminated;" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_drops_comes_again(
    sent: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a Ctrl-C during a finalizer Python says that it is ignored, and goes on."""

    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), sent)
            time.sleep(0.01)  # here the signal is seen

    def job() -> None:
        last = Last()
        del last
        time.sleep(30)

    before = sys.unraisablehook
    monkeypatch.setattr("cosmofields.scoring.models", job)
    began = time.monotonic()
    assert main(["models"]) == 128 + sent
    assert time.monotonic() - began < 10
    assert "cosmofields models: " in capsys.readouterr().err
    assert sys.unraisablehook is before


@pytest.mark.parametrize("verb", ["predict", "simulate", "train", "tune"])
def test_what_goes_on_says_with_which_command(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a place"
    words = {
        "predict": [verb, "halos.h5", "--out", str(out)],
        "simulate": [verb, str(out), "--seed", "1"],
        "train": [verb, "density", "--boxes", "a", "--validation", "b", "--out", str(out)],
        "tune": [verb, "density", "--boxes", "a", "--validation", "b", "--out", str(out)],
    }[verb]

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    room = {"predict": cli.fields, "simulate": cli.learning}.get(verb, cli.learning)
    monkeypatch.setattr(room, f"_{verb}", interrupted)
    again = f"\n  cosmofields {verb} "
    assert main(words) == 130
    assert f"nothing was done yet. To begin again:{again}" in capsys.readouterr().err
    out.mkdir()
    assert main(words) == 130
    said = capsys.readouterr().err
    assert f"what was done is kept in {out}. To go on:{again}" in said
    assert f"'{out}'" in said  # quoted for the shell


def test_a_reader_that_leaves_is_no_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cosmofields", "versions", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_pipe_that_breaks_elsewhere_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker's, or a connection's: standard output is whole."""
    raising(BrokenPipeError(errno.EPIPE, "Broken pipe"), monkeypatch)
    assert main(["models"]) == 2
    assert capfd.readouterr().err == "cosmofields models: [Errno 32] Broken pipe\n"


def test_warnings_are_in_the_words_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def warn() -> list[Any]:
        said.append(warnings.formatwarning("odd", UserWarning, "a.py", 1))
        return []

    monkeypatch.setattr("cosmofields.scoring.models", warn)
    before = warnings.formatwarning
    main(["models", "--json"])
    assert said == ["cosmofields models: warning: odd\n"]
    assert warnings.formatwarning is before


# --- JSON ---


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The one JSON document on standard output."""
    assert main([*words, "--json"]) == code

    def no_number(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return json.loads(capsys.readouterr().out, parse_constant=no_number)


@pytest.fixture
def store(observed: xr.Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "a.zarr"
    linear = observed.recon.linear_theory(bias=1.5)
    linear["density"].attrs["threshold"] = float("nan")
    tree = xr.DataTree.from_dict({"observed": observed, "linear": linear})
    cf.write_store(tree, path, title="a box")
    return path


def test_info_of_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "info", str(store))
    assert found["state"] == "whole"
    assert found["attributes"]["title"] == "a box"
    assert set(found["groups"]) == {"/observed", "/linear"}
    group = found["groups"]["/linear"]
    assert group["box_size"] == 100.0
    assert group["cosmology"]["Omega_m"] == 0.268
    assert group["variables"]["velocity"] == {
        "dims": {"component": 3, "x": 16, "y": 16, "z": 16},
        "dtype": "float32",
        "units": "km/s",
        "chunks": [1, 16, 16, 16],
        "shards": None,
    }
    files = sum(path.stat().st_size for path in store.rglob("c/**/*") if path.is_file())
    assert 0 < found["stored_bytes"] <= 2 * files


def test_info_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "info", "sparse")
    assert found["model"] == "sparse"
    assert found["trained_for"]["weighting"] == "mass"
    assert set(found["cards"]) >= {"density", "velocity"}
    assert "scores" not in found["cards"]["density"]
    listed = answer(capsys, "models")
    assert [model["name"] for model in listed] == ["default", "no-mass", "sparse"]
    box, scores = next(iter(found["scores"].items()))
    (row,) = [model for model in listed if model["name"] == "sparse"]
    mine = scores["network"]["velocity"]["correlation"]
    assert row["scores"][box]["velocity_correlation"] == mine


def test_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "verify", str(store)) == {
        "store": str(store),
        "sound": True,
        "damages": [],
    }
    chunk = store / "linear" / "density" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-8] + b"12345678")
    found = answer(capsys, "verify", str(store), code=1)
    assert not found["sound"]
    (damage,) = found["damages"]
    assert damage["chunk"] == "linear/density/c/0/0/0"
    assert "bits have changed" in damage["what"]


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "versions")
    assert found["xarray"] == xr.__version__
    assert found["cosmofields"] == cf.__version__
    assert main(["versions"]) == 0
    assert f"xarray {xr.__version__}" in " ".join(capsys.readouterr().out.split())


def test_an_error_leaves_standard_output_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nowhere.zarr", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "No store 'nowhere.zarr'" in shown.err


# --- completion ---

TRY = """
source "$1"; shift
complete_function=$(complete -p cosmofields | sed 's/.* -F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$complete_function cosmofields "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
MODELS = ["default", "no-mass", "sparse"]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh", "fish"):
        with (folder / shell).open("w") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            assert main(["completion", shell]) == 0
    (files := folder / "files").mkdir()
    for name in ("a.h5", "b.csv.gz", "c.py", "e.toml", "snapshot_000.0"):
        (files / name).touch()
    (files / "g.zarr").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("pre", {"predict"}),
        ("predict a.h5 --sy", {"--symmetries"}),
        ("predict a.h5 --model ", {*MODELS, "g.zarr"}),
        ("predict a.h5 --model no", {"no-mass"}),
        ("predict a.h5 --los ", {"x", "y", "z"}),
        ("predict a.h5 --format roc", {"rockstar"}),
        ("predict ", {"a.h5", "b.csv.gz", "c.py", "e.toml", "g.zarr", "snapshot_000.0"}),
        ("info ", {*MODELS, "g.zarr"}),
        ("verify ", {"g.zarr"}),
        ("train ", {"density", "velocity", "momentum", "e.toml", "g.zarr"}),
        ("train density --boxes ", {"a.h5", "g.zarr"}),
        ("completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes(line: str, wanted: set[str], scripts: Path) -> None:
    words = ["cosmofields", *line.split(" ")]
    done = subprocess.run(
        ["bash", "-c", TRY, "bash", scripts / "bash", *words],
        cwd=scripts / "files",
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_sound(shell: str, scripts: Path) -> None:
    text = (scripts / shell).read_text()
    assert all(name in text for name in (*MODELS, "--symmetries", "*.zarr", "gadget"))
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", scripts / shell], check=True)
    if shell == "fish":
        ask = f"source {scripts / shell}; complete -C 'cosmofields predict a.h5 --model '"
        done = subprocess.run(["fish", "-c", ask], capture_output=True, text=True, check=True)
        assert [line.split("\t")[0] for line in done.stdout.splitlines()][:3] == MODELS


def test_completion_without_its_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'cosmofields[shell]'" in capsys.readouterr().err
