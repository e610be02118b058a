"""The long version: ``python -m tests.faults --kills 100``."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from .driver import Bench, Tally, full_disks, kills, worker_kills
from .jobs import JOBS


def main() -> int:
    """Run the faults that are asked for; the exit status says whether all went well."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs of the jobs")
    parser.add_argument("--workers", type=int, default=20, help="workers of a cluster to kill")
    parser.add_argument("--full-disks", type=int, default=5, help="needs the right to mount")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=[*JOBS], help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the tally")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    found: dict[str, Tally] = {}

    def save() -> None:
        """After each fault, so that a run that is stopped has said what it saw."""
        tally = {kind: one.as_dict() for kind, one in found.items()}
        if args.out:
            args.out.write_text(json.dumps(tally, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), found, save)
        if args.kills or args.full_disks:
            for job in args.jobs:
                bench.undisturbed(job)
        kills(bench, args.jobs, args.kills, rng)
        full_disks(bench, args.jobs, args.full_disks, rng)
        # Last: a client's threads would not survive a fork.
        if args.workers:
            worker_kills(bench, args.workers, rng)
    save()
    print(json.dumps({kind: one.as_dict() for kind, one in found.items()}, indent=2))
    return int(any(one.wrong for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
