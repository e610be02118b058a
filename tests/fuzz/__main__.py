"""The long run: ``python -m tests.fuzz --cases 100000 --engine both --target all``."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

TARGETS = ("readers", "stores", "models")
FOUND_BEFORE = Path(__file__).parents[1] / "data" / "fuzz"
ROUND = 500  # cases of a target by an engine, before the next has its turn


def main() -> int:
    """Run the cases that are asked for; the exit status says whether all went well."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="in all")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no round begins")
    parser.add_argument("--engine", choices=["hypothesis", "atheris", "both"], default="hypothesis")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the tally")
    parser.add_argument("--findings", type=Path, help="folder for the cases that found something")
    parser.add_argument("--replay", type=Path, help="a case that was kept, or a folder of them")
    parser.add_argument("--simpler", action="store_true", help="of a replay: write it smaller")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    engines = ["hypothesis", "atheris"] if args.engine == "both" else [args.engine]
    if "atheris" in engines and not args.replay:
        import atheris  # before cosmofields, whose code it is to watch

        with atheris.instrument_imports(include=["cosmofields"], enable_loader_override=False):
            import cosmofields.readers
            import cosmofields.store
            import cosmofields.unet  # noqa: F401
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=room) as name:
        return _replay(args, Path(name)) if args.replay else _run(args, engines, Path(name))


def _whole(scratch: Path, targets: list[str]) -> dict[str, Any]:
    """The whole cases, made in a child: the threads that write would not survive a fork."""
    from .bench import fork

    path = scratch / "whole.pickle"

    def make() -> None:
        from .corpus import corpus

        path.write_bytes(pickle.dumps({target: corpus(target) for target in targets}))

    if os.waitpid(fork(make, scratch / "corpus.log"), 0)[1]:
        raise RuntimeError((scratch / "corpus.log").read_text())
    return pickle.loads(path.read_bytes())


def _run(args: argparse.Namespace, engines: list[str], scratch: Path) -> int:
    from .bench import Bench, Tally
    from .engines import ENGINES

    targets = [*TARGETS] if args.target == "all" else [args.target]
    findings = args.findings or scratch / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    whole = _whole(scratch, targets)
    bench = Bench(scratch, findings, say)
    tallies: dict[str, Tally] = {}
    for target in targets:
        _check_whole(bench, whole[target])
        tallies["found before"] = tallies.get("found before", Tally())
        kept = [case for case in found_before() if case.target == target]
        bench.run(tallies["found before"], lambda worker, kept=kept: judge_all(worker, kept))
    each = -(-args.cases // len(targets) // len(engines))
    begun, seed, text = time.monotonic(), args.seed, ""
    # By turns, so that a run that is stopped has done some of all.
    while time.monotonic() - begun < 60 * args.minutes:
        for target, engine in itertools.product(targets, engines):
            tally = tallies.setdefault(f"{target}, {engine}", Tally())
            n = min(each - tally.cases, ROUND)
            if n > 0:
                ENGINES[engine](bench, whole[target], n, seed, tally)
            text = json.dumps(_told(args, tallies), indent=2)
            if args.out:
                args.out.write_text(text + "\n")
        seed += ROUND
        done = [tally.cases for name, tally in tallies.items() if name != "found before"]
        if min(done) >= each:
            break
    print(text)
    return int(any(tally.found for tally in tallies.values()))


def found_before() -> list[Any]:
    """Cases that found something once."""
    from .cases import load

    return [load(path.read_text()) for path in sorted(FOUND_BEFORE.glob("*.json"))]


def judge_all(worker: Any, cases: list[Any]) -> None:
    """Judge cases one after the other."""
    for case in cases:
        worker.judge(case)


def _check_whole(bench: Any, whole: list[Any]) -> None:
    """See that each opens as it is: else nothing made of it would be worth a run."""
    from .bench import Tally

    tally = Tally()
    bench.run(tally, lambda worker: judge_all(worker, whole))
    if tally.opened != len(whole):
        raise AssertionError(f"of {len(whole)} whole cases: {tally}")


def _told(args: argparse.Namespace, tallies: dict[str, Any]) -> dict[str, Any]:
    names = ("hypothesis", "atheris", "h5py", "zarr", "numpy", "pyarrow", "astropy")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except ImportError:
            continue
    return {
        "command": " ".join(["python -m tests.fuzz", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "versions": versions,
        "cases": sum(tally.cases for tally in tallies.values()),
        "found": sum(sum(tally.found.values()) for tally in tallies.values()),
        "tallies": {name: tally.as_dict() for name, tally in tallies.items()},
    }


def _replay(args: argparse.Namespace, scratch: Path) -> int:
    from .bench import Bench, simpler
    from .cases import load

    paths = sorted(args.replay.glob("*.json")) if args.replay.is_dir() else [args.replay]
    cases = {path: load(path.read_text()) for path in paths}
    whole = (
        _whole(scratch, sorted({case.target for case in cases.values()})) if args.simpler else {}
    )
    bench = Bench(scratch, scratch, say)
    found = 0
    for path, case in cases.items():
        verdict = bench.replay(case)
        found += verdict.found
        print(f"{path.name}: {verdict.what} ({verdict.seconds:.2f} s, {verdict.growth >> 20} MB)")
        print(f"    {verdict.detail[-1500:]}")
        if args.simpler and verdict.found:
            small = simpler(bench, case, whole[case.target])
            path.write_text(small.dump(verdict._asdict()))
    return int(found > 0)


def say(line: str) -> None:
    """Say something on standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
