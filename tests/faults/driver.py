"""Faults, and what is asked of what they leave."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmofields.conventions import CosmofieldsError

from .jobs import JOBS, load_all, make_inputs, result

# Of one process, whatever a fault did to the one before it.
HANGS = 300.0


@dataclass
class Tally:
    """What came of the faults of one kind."""

    faults: int = 0
    twice: int = 0  # killed again while it resumed
    too_late: int = 0  # the job had ended before its fault
    whole: int = 0  # the result was there, and right
    refused: int = 0  # nothing posed as whole
    resumed: int = 0  # nothing did, and the same call ended with the right bits
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "seconds": round(self.seconds)}


class Bench:
    """Inputs, the undisturbed results, and room for one job at a time."""

    def __init__(self, folder: Path, tallies: dict[str, Tally], save: Callable[[], None]) -> None:
        self.folder = folder
        self.inputs = folder / "inputs"
        self.tallies = tallies
        self.save = save
        load_all()
        make_inputs_in_a_child(self.inputs)
        self.reference: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def say(self, what: str) -> None:
        """Tell whoever waits."""
        print(what, file=sys.stderr, flush=True)

    @contextmanager
    def fault(self, kind: str) -> Iterator[tuple[Path, Tally]]:
        """Room for a fault, and its tally; the time of all that is done about it is counted."""
        tally = self.tallies.setdefault(kind, Tally())
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            yield Path(place), tally
        tally.faults += 1
        tally.seconds += time.perf_counter() - started
        self.save()

    def undisturbed(self, job: str) -> None:
        """Run a job twice: what it makes, that it makes it again, and how long it takes."""
        found = []
        for name in ("once", "again"):
            out = self.folder / f"{job}-{name}"
            out.mkdir()
            started = time.perf_counter()
            status = self.run(job, out)
            self.seconds[job] = time.perf_counter() - started
            assert status == 0, f"{job}, undisturbed: exit status {status}"
            found.append(self.look(job, out))
            shutil.rmtree(out)
        first, second = found
        assert first is not None, f"{job} leaves nothing"
        assert not first.startswith("Broken"), first
        assert first == second, f"{job} is not reproducible"
        self.reference[job] = first
        self.say(f"{job}: {self.seconds[job]:.2f} s undisturbed")

    def run(self, job: str, out: Path, kill_after: float | None = None) -> int:
        """Exit status of a job in a child, which is killed after some seconds."""
        child = fork(lambda: JOBS[job](self.inputs, out))
        deadline = time.monotonic() + (HANGS if kill_after is None else kill_after)
        while time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def look(self, job: str, out: Path) -> str | None:
        """What poses as the whole result; in a child, for the threads that read would not survive
        the next fork."""
        into, out_of = os.pipe()

        def tell() -> None:
            try:
                found = repr(result(job, out))
            except BaseException:
                found = f"Broken({traceback.format_exc()!r})"
            with os.fdopen(out_of, "w") as pipe:
                pipe.write(found)

        child = fork(tell)
        os.close(out_of)
        with os.fdopen(into) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return None if text == "None" else text

    def judge(self, job: str, out: Path, tally: Tally, what: str) -> None:
        """Look at what a fault left; then make the same call again."""
        left = self.look(job, out)
        if left == self.reference[job]:
            tally.whole += 1
            return
        if left is None:
            tally.refused += 1
        else:
            self.wrong(tally, f"{what}: poses as whole: {left}")
        status = self.run(job, out)
        found = self.look(job, out)
        if status == 0 and found == self.reference[job]:
            tally.resumed += 1
        else:
            self.wrong(tally, f"{what}: not resumed, exit status {status}, {found}")

    def wrong(self, tally: Tally, what: str) -> None:
        """Count what must not be."""
        tally.wrong.append(what)
        self.say(f"WRONG: {what}")


def make_inputs_in_a_child(folder: Path) -> None:
    """Threads that a job starts here would not survive the forks that follow."""
    child = fork(lambda: make_inputs(folder))
    assert os.waitpid(child, 0)[1] == 0


def fork(work: Callable[[], None]) -> int:
    """Process number of a child that does some work, with all that is imported here."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        # A child whose driver is gone goes too.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        work()
        status = 0
    except BaseException as error:
        ours = isinstance(error, CosmofieldsError)
        status = 2 if ours else 1
        sys.stderr.write(f"  {error}\n" if ours else traceback.format_exc())
    finally:
        os._exit(status)


def kills(bench: Bench, jobs: Sequence[str], n: int, rng: random.Random) -> None:
    """SIGKILL at a random moment, now and then while the job resumes as well."""
    for i in range(n):
        job = jobs[i % len(jobs)]
        with bench.fault(f"kill -9, {job}") as (out, tally):
            what = f"{job}, {i}"
            for again in range(1 + (rng.random() < 0.3)):
                moment = rng.uniform(0.02, 1.0) * bench.seconds[job]
                what += f", killed after {moment:.3f} s"
                tally.twice += again
                tally.too_late += bench.run(job, out, kill_after=moment) == 0
            bench.judge(job, out, tally, what)
            bench.say(what)


def full_disks(bench: Bench, jobs: Sequence[str], n: int, rng: random.Random) -> None:
    """A file system that is too small, by chance in another place each time; then large enough."""
    try:
        with tempfile.TemporaryDirectory(dir=bench.folder) as place:
            mount(Path(place), 2**20)
            subprocess.run(["umount", "-l", place], check=True)
    except OSError as error:
        bench.say(f"{error}, so no disk is filled")
        return
    for i in range(n):
        job = jobs[i % len(jobs)]
        with bench.fault(f"full disk, {job}") as (out, tally):
            size = int(rng.uniform(0.1, 0.99) * bench_bytes(bench, job))
            mount(out, size)
            try:
                status = bench.run(job, out)
                tally.too_late += status == 0
                what = f"{job}, disk of {size} bytes, exit status {status}"
                bench.say(what)
                if status not in (0, 2):
                    bench.wrong(tally, f"{what}: no error of ours")
                subprocess.run(["mount", "-o", "remount,size=1G", out], check=True)
                bench.judge(job, out, tally, what)
            finally:
                subprocess.run(["umount", "-l", out], check=True)


def mount(place: Path, size: int) -> None:
    """Mount a small tmpfs, or raise OSError."""
    options = f"size={size}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"no tmpfs may be mounted here: {done.stderr.strip()}")


def bench_bytes(bench: Bench, job: str) -> int:
    """Bytes that an undisturbed job leaves."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as place:
        assert bench.run(job, Path(place)) == 0
        return sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())


def worker_kills(bench: Bench, n: int, rng: random.Random) -> None:
    """SIGKILL of a worker of a LocalCluster while it predicts."""
    import distributed

    job = "predict"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="3GB", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        reference = bench.folder / "on-workers"
        seconds = 0.0
        for _ in range(2):  # the first run imports and compiles
            shutil.rmtree(reference, ignore_errors=True)
            reference.mkdir()
            started = time.perf_counter()
            JOBS[job](bench.inputs, reference)
            seconds = time.perf_counter() - started
        right = result(job, reference)
        for i in range(n):
            with bench.fault(f"worker killed, {job}") as (out, tally):
                moment = rng.uniform(0.05, 0.9) * seconds
                timer = threading.Timer(moment, kill_a_worker, (cluster, rng))
                timer.start()
                what = f"worker killed after {moment:.2f} s ({i})"
                failed = False
                try:
                    JOBS[job](bench.inputs, out)
                    tally.too_late += timer.is_alive()
                except Exception as error:
                    failed = True
                    what += f": {error!r}"
                    tally.refused += 1
                    if result(job, out) is not None:
                        bench.wrong(tally, f"{what}: failed, and poses as whole")
                timer.join()
                # The scheduler has to miss the one that is gone first.
                time.sleep(1)
                client.wait_for_workers(2, timeout=HANGS)
                if failed:
                    JOBS[job](bench.inputs, out)
                if result(job, out) != right:
                    bench.wrong(tally, f"{what}: another result")
                elif failed:
                    tally.resumed += 1
                else:
                    tally.whole += 1
                bench.say(what)


def kill_a_worker(cluster: Any, rng: random.Random) -> None:
    """SIGKILL of one of the workers that are there."""
    pids = [nanny.pid for nanny in cluster.workers.values() if nanny.pid]
    os.kill(rng.choice(pids), signal.SIGKILL)
