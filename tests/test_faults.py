"""A short run of the faults of tests/faults: see there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    # In a process of its own: it forks, which one with threads must not.
    out = tmp_path / "tally.json"
    command = [sys.executable, "-m", "tests.faults", "--kills", "6", "--workers", "0"]
    done = subprocess.run(
        [*command, "--full-disks", "0", "--out", str(out)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    for tally in json.loads(out.read_text()).values():
        assert tally["faults"] >= 2
        assert tally["whole"] + tally["resumed"] == 2
