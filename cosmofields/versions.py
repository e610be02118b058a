"""What an issue should say of the installation."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TextIO


def found_versions() -> dict[str, str | None]:
    """Versions by name: of cosmofields, Python, the system, and of all that it can use.

    Returns
    -------
    dict of str to str or None
        None for what is not installed.
    """
    found: dict[str, str | None] = {
        "cosmofields": version("cosmofields"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
    }
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in requires("cosmofields") or []}
    for name in sorted(names - {"cosmofields"}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def show_versions(file: TextIO | None = None) -> None:
    """Print the versions of cosmofields, of Python and of all that it can use, for an issue.

    Parameters
    ----------
    file : text file, optional
        Default: standard output.
    """
    found = found_versions()
    lines = [
        f"cosmofields {found.pop('cosmofields')}",
        f"Python {found.pop('python')} on {found.pop('system')}, {os.cpu_count()} cores",
        *(f"  {name:<28} {at or '-'}" for name, at in found.items()),
    ]
    (file or sys.stdout).write("\n".join(lines) + "\n")
