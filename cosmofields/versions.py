"""What an issue should say of the installation."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TextIO


def show_versions(file: TextIO | None = None) -> None:
    """Print the versions of cosmofields, of Python and of all that it can use, for an issue.

    Parameters
    ----------
    file : text file, optional
        Default: standard output.
    """
    system = f"{platform.system()} {platform.release()} ({platform.machine()})"
    lines = [
        f"cosmofields {version('cosmofields')}",
        f"Python {platform.python_version()} on {system}, {os.cpu_count()} cores",
    ]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in requires("cosmofields") or []}
    for name in sorted(names - {"cosmofields"}):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "-"
        lines.append(f"  {name:<28} {found}")
    (file or sys.stdout).write("\n".join(lines) + "\n")
