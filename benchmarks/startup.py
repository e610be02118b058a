"""Import time, each import in an interpreter of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys

from .harness import COST, Row, say


def _seconds(module: str) -> float:
    code = (
        "import time; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def imports(quick: bool) -> list[Row]:
    """``import cosmofields`` against ``import xarray``."""
    modules = ("cosmofields", "xarray")
    for module in modules:  # writes the bytecode, fills the page cache
        _seconds(module)
    rounds = 5 if quick else 11
    times = [[_seconds(module) for module in modules] for _ in range(rounds)]
    ours, theirs = (list(column) for column in zip(*times, strict=True))
    say(f"  {rounds} fresh interpreters each")
    return [
        Row(
            "import cosmofields",
            statistics.median(ours),
            "import xarray",
            statistics.median(theirs),
            ratio_is=COST,
            target="<= 1.5",
            ours_range=[min(ours), max(ours)],
            peer_range=[min(theirs), max(theirs)],
            rounds=rounds,
        )
    ]
