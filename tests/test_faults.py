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
    asked = "--jobs paint train --kills 2 --workers 1 --full-disks 1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *asked.split(), "--out", str(out)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    tallies = json.loads(out.read_text())
    # A full disk too, where one may be mounted.
    assert {"kill -9, paint", "kill -9, train", "worker killed, predict"} <= tallies.keys()
    for tally in tallies.values():
        assert tally["faults"] == tally["whole"] + tally["resumed"] == 1
