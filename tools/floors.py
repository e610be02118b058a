"""Print pip constraints that pin every dependency of pyproject.toml to its floor.

    python tools/floors.py > floors.txt
    python tools/floors.py torch==2.13.0 > floors.txt  # but torch

`make test-min` installs with them and runs tests: a floor that no longer works is found there.
Dependencies of dependencies are left to pip, which takes the newest that fit.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# What runs the tests and checks the sources; what it reads and computes with are the others.
TOOLS = {"test", "docs", "notebooks", "bench", "fuzz", "dev"}


def floors(instead: list[str], pyproject: Path = PYPROJECT) -> list[str]:
    """Lines ``name==floor``, sorted, with those of ``instead`` in their place."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [
        line for name in sorted(extras.keys() - TOOLS) for line in extras[name]
    ]
    found = {}
    for line in lines:
        if line.startswith(project["name"]):
            continue
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line)
        if match is None:
            raise SystemExit(f"{pyproject}: {line!r} has no floor; expected such as 'numpy>=2.2'")
        name, floor = match.groups()
        if found.setdefault(name, floor) != floor:
            raise SystemExit(f"{pyproject}: {name} has two floors, {found[name]} and {floor}")
    for line in instead:
        name, _, pin = line.partition("==")
        if name not in found or not pin:
            raise SystemExit(
                f"{line!r}: expected NAME==VERSION of a dependency, like torch==2.13.0"
            )
        found[name] = pin
    return sorted(f"{name}=={version}" for name, version in found.items())


if __name__ == "__main__":
    sys.stdout.write("\n".join(floors(sys.argv[1:])) + "\n")
