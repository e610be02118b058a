"""Real signals to real jobs: what is done is kept, and the command that is printed goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

import cosmofields as cf

pytestmark = pytest.mark.slow

SECONDS = 300  # which no step takes


def program(command: str) -> list[str]:
    """A command as the shell of these tests starts it."""
    first, *words = shlex.split(command)
    assert first == "cosmofields"
    return [sys.executable, "-m", "cosmofields", *words]


def stopped(
    command: str, folder: Path, ready: Callable[[], bool], sent: signal.Signals
) -> tuple[int, str, float]:
    """Start a command, send a signal when it is ``ready``: exit code, standard error, seconds."""
    with (folder / "said").open("w+") as said:
        job = subprocess.Popen(
            program(command),
            cwd=folder,
            stderr=said,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # What a shell starts in the background ignores it, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            until = time.monotonic() + SECONDS
            while not ready():
                assert job.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
            job.send_signal(sent)
            began = time.monotonic()
            code = job.wait(SECONDS)
            return code, (folder / "said").read_text(), time.monotonic() - began
        finally:
            job.kill()


def goes_on(said: str, folder: Path) -> None:
    """Type what the message says."""
    message, _, command = said.rpartition("To go on:\n")
    assert "what was done is kept in " in message
    done = subprocess.run(program(command), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_predict_ends_on_sigterm(
    make_models: Callable[..., Path],
    tracers: xr.Dataset,
    tmp_path: Path,
) -> None:
    observed = cf.paint(tracers, 64)
    make_models(tmp_path / "model", observed)
    cf.write_store(tracers, tmp_path / "halos.zarr")
    command = "cosmofields predict halos.zarr --out a.zarr --n-grid 64 --model ./model"
    store = tmp_path / "a.zarr"
    halfway = store / "reconstructed" / "density" / "c"
    found, said, seconds = stopped(command, tmp_path, halfway.exists, signal.SIGTERM)
    assert found == 143, said
    assert "cosmofields predict: terminated; what was done is kept in a.zarr" in said
    assert "Traceback" not in said
    assert seconds < 60
    assert not xr.open_zarr(store, consolidated=False).attrs.get("complete")
    goes_on(said, tmp_path)
    assert cf.open_store(store)["reconstructed"]["velocity"].shape == (3, 64, 64, 64)


def test_train_ends_on_ctrl_c(
    box_file: Path,
    make_box: Callable[..., Path],
    tmp_path: Path,
) -> None:
    make_box(tmp_path / "v.h5", seed=2, role="validation")
    command = (
        f"cosmofields train density --boxes {box_file} --validation v.h5 --out mine "
        "--widths 4 8 8 --crop 32 --steps 6 --steps-per-epoch 2 --settle-steps 2"
    )
    checkpoint = tmp_path / "mine" / "density-checkpoints" / "last.ckpt"
    found, said, seconds = stopped(command, tmp_path, checkpoint.exists, signal.SIGINT)
    assert found == 130, said
    assert "cosmofields train: interrupted; what was done is kept in mine" in said
    assert "Traceback" not in said
    assert seconds < 60
    assert not (tmp_path / "mine" / "density.json").exists()
    goes_on(said, tmp_path)
    assert (tmp_path / "mine" / "density.json").is_file()
