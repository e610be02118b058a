"""``python -m benchmarks [NAME ...] [--quick] [--write] [--table]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import table
from .harness import LATEST, fresh, save, say, show
from .suite import BENCHMARKS, DEFAULT, run


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if a target is missed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)}; default: {', '.join(DEFAULT)}",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the harness work?")
    parser.add_argument("--write", type=Path, help=f"record; default {LATEST.name}, none if quick")
    parser.add_argument("--table", action="store_true", help="only renew the docs from the record")
    options = parser.parse_args(arguments)
    if options.table:
        table.renew(options.write or LATEST)
        return 0
    names = options.names or list(DEFAULT)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    path = options.write or (None if options.quick else LATEST)
    missed = False
    for name in names:
        say(f"{name}: {BENCHMARKS[name]}")
        start = time.perf_counter()
        rows = fresh(run, name, options.quick)
        for row in rows:
            say("  " + show(row))
        missed |= any(row.holds is False for row in rows)
        say(f"  ({time.perf_counter() - start:.0f} s)")
        if path is not None:
            save(path, {name: rows})  # at once: a later benchmark may be interrupted
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
