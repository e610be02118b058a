"""Workers in children, watched: a case that kills one, or never ends, is a finding too."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from .cases import Case
from .oracle import GROWTH, SECONDS, Verdict, judge, prepare

ASLEEP = 20.0  # seconds without any CPU time that a case asks for: it waits for what never comes
_SHARED = struct.Struct("<QdQ")  # cases begun; CPU time and memory when the last one was
_MORE = 6 * 2**30  # address space of a worker beyond what it has when it starts


@dataclass
class Tally:
    """What came of the cases of one target by one engine."""

    cases: int = 0
    unmade: int = 0  # of which a mutation failed, not counted among the cases
    refused: int = 0
    opened: int = 0
    found: Counter[str] = field(default_factory=Counter)
    most_seconds: float = 0.0
    most_growth: int = 0
    seconds: float = 0.0
    digests: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {**vars(self), "digests": len(self.digests), "found": dict(self.found.most_common())}
        told["distinct"] = told.pop("digests")
        told["most_growth"] = f"{self.most_growth / 2**20:.0f} MB"
        return told | {key: round(told[key], 2) for key in ("seconds", "most_seconds")}


class Bench:
    """Room for one worker at a time, and what the workers found."""

    def __init__(self, scratch: Path, findings: Path, say: Callable[[str], None]) -> None:
        self.scratch, self.findings, self.say = scratch, findings, say
        self.shared = mmap.mmap(-1, _SHARED.size)
        self.results = scratch / "results"
        self.worker = Worker(self)
        prepare(scratch)

    def run(self, tally: Tally, batch: Callable[[Worker], None]) -> int:
        """Run ``batch`` in a child until it ends or dies; the number of cases that it did."""
        self.results.write_bytes(b"")
        self.shared[:] = _SHARED.pack(0, 0.0, 0)
        started = time.monotonic()
        child = fork(lambda: self.worker.work(batch), self.scratch / "worker.log")
        why = self._watch(child)
        n = 0
        for line in self.results.read_text().splitlines():
            what, digest, seconds, growth = line.split("\t")
            if what == "unmade":
                tally.unmade += 1
                continue
            n += 1
            tally.digests.add(digest)
            self._count(tally, Verdict(what, "", float(seconds), int(growth)))
        if why:
            n += 1
            self._count(tally, Verdict(why))
            case = self._current()
            log = (self.scratch / "worker.log").read_text(errors="replace")[-2000:]
            if case is None:
                self.say(f"while case {n} of the child was made: {why}: {log[-300:]}")
            else:
                self.keep(case, Verdict(why, log))
        tally.cases += n
        tally.seconds += time.monotonic() - started
        return n

    def _count(self, tally: Tally, verdict: Verdict) -> None:
        if verdict.found:
            tally.found[verdict.what] += 1
        elif verdict.what == "refused":
            tally.refused += 1
        else:
            tally.opened += 1
        tally.most_seconds = max(tally.most_seconds, verdict.seconds)
        tally.most_growth = max(tally.most_growth, verdict.growth)

    def _watch(self, child: int) -> str:
        """Why a worker did not end well; empty if it did."""
        process = psutil.Process(child)
        used, moved = -1.0, time.monotonic()
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return "" if code == 0 else f"died: {_name(code)}"
            begun, cpu, rss = _SHARED.unpack(self.shared[:])
            if begun:
                times = process.cpu_times()
                # On a busy machine one that would run may wait long for its turn.
                if times.user + times.system > used or process.status() == psutil.STATUS_RUNNING:
                    used, moved = times.user + times.system, time.monotonic()
                why = ""
                if process.memory_info().rss - rss > 1.5 * GROWTH:
                    why = "memory"
                elif times.user + times.system - cpu > 2 * SECONDS:
                    why = "hang"
                elif time.monotonic() - moved > ASLEEP:
                    why = "hang, asleep"
                if why and _SHARED.unpack(self.shared[:])[0] == begun:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return why
            time.sleep(0.05)

    def _current(self) -> Case | None:
        """The case on which a worker died; None if it died while it made one."""
        path = self.scratch / "current"
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def keep(self, case: Case, verdict: Verdict) -> None:
        """Save a case, of each kind of finding the first few."""
        name = "".join(c if c.isalnum() else "-" for c in verdict.what)[:80]
        for i in range(3):
            path = self.findings / f"{case.target}--{case.kind}--{name}--{i}.json"
            if not path.exists():
                path.write_text(case.dump(verdict._asdict()))
                self.say(f"{case.target} {case.kind}: {verdict.what}: {verdict.detail[-300:]}")
                return

    def replay(self, case: Case) -> Verdict:
        """Judge a case in a child of its own."""
        out = self.scratch / "verdict.json"
        out.unlink(missing_ok=True)

        def batch(worker: Worker) -> None:
            out.write_text(json.dumps(worker.judge(case)))

        self.results.write_bytes(b"")
        self.shared[:] = _SHARED.pack(0, 0.0, 0)
        why = self._watch(fork(lambda: self.worker.work(batch), self.scratch / "worker.log"))
        return Verdict(why) if why else Verdict(*json.loads(out.read_text()))


class Worker:
    """In the child: judges cases, and leaves a trace of each before it begins."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.begun = 0

    def work(self, batch: Callable[[Worker], None]) -> None:
        """Run a batch of cases."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        virtual = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (virtual + _MORE, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable()  # to the log: the line that a library in C was called from
        batch(self)

    def make_and_judge(self, make: Callable[[], Case]) -> None:
        """Judge a case, if the library that its mutation needs goes along with it."""
        (self.bench.scratch / "current").unlink(missing_ok=True)
        try:
            case = make()
        except Exception as error:
            if type(error).__module__.startswith("hypothesis"):
                raise
            with self.bench.results.open("a") as file:
                file.write("unmade\t\t0\t0\n")
            return
        self.judge(case)

    def judge(self, case: Case) -> Verdict:
        """Judge one case."""
        folder = self.bench.scratch / "case"
        if folder.exists():
            shutil.rmtree(folder)
        (self.bench.scratch / "current").write_bytes(pickle.dumps(case))
        self.begun += 1
        info = psutil.Process()
        times = info.cpu_times()
        self.bench.shared[:] = _SHARED.pack(
            self.begun, times.user + times.system, info.memory_info().rss
        )
        verdict = judge(case, self.bench.scratch)
        with self.bench.results.open("a") as file:
            file.write(
                f"{verdict.what}\t{case.digest().hex()}\t{verdict.seconds:.3f}\t{verdict.growth}\n"
            )
        if verdict.found:
            self.bench.keep(case, verdict)
        return verdict


def simpler(bench: Bench, case: Case, whole: list[Case], budget: int = 150) -> Case:
    """A case with fewer changes of which the same comes."""
    wanted = bench.replay(case).what
    base = next((one for one in whole if one.kind == case.kind), None)
    if base is None or wanted in ("refused", "opened"):
        return case
    best = case
    for name in sorted({*case.files, *base.files}):
        mine, theirs = best.files.get(name), base.files.get(name)
        if mine == theirs or budget <= 0:
            continue
        files = dict(best.files)
        if theirs is None:
            del files[name]
        else:
            files[name] = theirs
        tried = Case(case.target, case.kind, files, case.source, case.options)
        budget -= 1
        if bench.replay(tried).what == wanted:
            best = tried
        elif isinstance(mine, bytes) and isinstance(theirs, bytes):
            best, budget = _fewer_bytes(bench, best, name, theirs, wanted, budget)
    return best


def _fewer_bytes(
    bench: Bench, case: Case, name: str, theirs: bytes, wanted: str, budget: int
) -> tuple[Case, int]:
    import difflib

    mine = case.files[name]
    assert isinstance(mine, bytes)
    if len(mine) + len(theirs) > 60_000:
        return case, budget
    codes = difflib.SequenceMatcher(None, theirs, mine, autojunk=False).get_opcodes()
    kept = [code for code in codes if code[0] != "equal"]
    for code in list(kept):
        if budget <= 0 or len(kept) == 1:
            break
        fewer = [one for one in kept if one is not code]
        content, at = b"", 0
        for _, i1, i2, j1, j2 in fewer:
            content += theirs[at:i1] + mine[j1:j2]
            at = i2
        content += theirs[at:]
        tried = Case(
            case.target, case.kind, {**case.files, name: content}, case.source, case.options
        )
        budget -= 1
        if bench.replay(tried).what == wanted:
            case, kept = tried, fewer
    return case, budget


def fork(call: Callable[[], None], log: Path) -> int:
    """A child that makes one call, and says to a file what it would say to a terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(to, 1)
        os.dup2(to, 2)
        call()
        status = 0
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
