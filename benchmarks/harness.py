"""What every benchmark shares: alternating timing, rows, peak memory, the record on disk."""

from __future__ import annotations

import datetime
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
LATEST = HERE / "latest.json"
ROUNDS = 5
SETTLE = 0.03  # s before each call: threads of the one before go to sleep
# Distributions whose versions a time depends on; peers are said to be absent if they are.
RECORDED = (
    "cosmofields numpy scipy numba torch xarray dask distributed zarr Pylians abacusutils monai"
).split()
# What `ratio` is, by the sense of the target.
SPEEDUP, COST = "peer_s / ours_s", "ours_s / peer_s"


@dataclass
class Row:
    """One comparison.  ``target`` is ">= x" of a speedup or "<= x" of a cost, or None."""

    name: str
    ours_s: float | None
    peer: str
    peer_s: float | None = None
    ratio_is: str = SPEEDUP
    target: str | None = None
    # (smallest, largest) time of each: how far the median can be believed.
    ours_range: list[float] | None = None
    peer_range: list[float] | None = None
    rounds: int = 0
    peak_gb: float | None = None  # resident in all processes
    peak_target_gb: float | None = None
    reason: str | None = None  # why there is no time of the peer
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """By ``ratio_is``; None without both times."""
        if self.ours_s is None or self.peer_s is None:
            return None
        speedup = self.peer_s / self.ours_s
        return speedup if self.ratio_is == SPEEDUP else 1 / speedup

    @property
    def holds(self) -> bool | None:
        """Whether every target is reached; None without one, or without what it is about."""
        verdicts: list[bool] = []
        if self.target is not None and self.ratio is not None:
            sense, bound = self.target.split()
            over = self.ratio - float(bound)
            verdicts.append(over >= 0 if sense == ">=" else over <= 0)
        if self.peak_target_gb is not None and self.peak_gb is not None:
            verdicts.append(self.peak_gb < self.peak_target_gb)
        return all(verdicts) if verdicts else None

    def record(self) -> dict[str, Any]:
        """As it goes into latest.json."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}


@dataclass
class Absent:
    """A peer that cannot be called here, and why."""

    reason: str


def peer(module: str) -> Any:
    """The module, or :class:`Absent` with the error that its import raised."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken build raises anything
        return Absent(f"{type(error).__name__}: {error}")


def call(module: Any, use: Callable[[Any], Any]) -> Any:
    """``lambda: use(module)``, or the :class:`Absent` that stands for the module."""
    return module if isinstance(module, Absent) else lambda: use(module)


def alternate(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each contender, called in turn ``rounds`` times.

    Each round starts with the next of them, so that none always runs in another's wake.  Each has
    been called before, to compile.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            time.sleep(SETTLE)
            start = time.perf_counter()
            result = contenders[name]()
            times[name].append(time.perf_counter() - start)
            del result
    return times


def compare(
    name: str,
    ours: Callable[[], Any],
    peers: Mapping[str, Callable[[], Any] | Absent],
    *,
    target: str | Mapping[str, str] | None = None,
    ratio_is: str | None = None,
    rounds: int = ROUNDS,
    differ: Callable[[Any, Any], float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows of ours against each peer, all called in turn.

    Parameters
    ----------
    name : str
    ours : callable
    peers : dict
        Name of the peer to what it runs, or to :class:`Absent`.
    target : str or dict by peer, optional
        ``">= 1.7"``: a speedup over the peer; ``"<= 1.3"``: a cost in units of the peer's.
    ratio_is : str, optional
        Default: by the target; :data:`SPEEDUP` without one.
    rounds : int
    differ : callable, optional
        (our result, the peer's) -> how much they differ; recorded as ``more["difference"]``.
    notes : dict by peer
    """
    present = {who: run for who, run in peers.items() if not isinstance(run, Absent)}
    mine, difference = ours(), {}
    for who, run in present.items():
        theirs = run()
        if differ is not None:
            difference[who] = {"difference": float(differ(mine, theirs))}
        del theirs
    del mine
    times = alternate({"": ours, **present}, rounds)
    rows = []
    for who, run in peers.items():
        goal = target.get(who) if isinstance(target, Mapping) else target
        row = Row(
            name,
            statistics.median(times[""]),
            who,
            ratio_is=ratio_is or (COST if goal and goal.startswith("<=") else SPEEDUP),
            target=goal,
            ours_range=[min(times[""]), max(times[""])],
            rounds=rounds,
            note=(notes or {}).get(who, ""),
        )
        if isinstance(run, Absent):
            row.reason = run.reason
        else:
            row.peer_s = statistics.median(times[who])
            row.peer_range = [min(times[who]), max(times[who])]
            row.more = difference.get(who, {})
        rows.append(row)
    return rows


# --- memory ---


def _report(function: Callable[..., Any], args: tuple[Any, ...], pipe: Any) -> None:
    try:
        start = time.perf_counter()
        result = function(*args)
        pipe.send((result, time.perf_counter() - start, None))
    except BaseException as error:
        pipe.send((None, 0.0, repr(error)))
        raise


def peak_of(function: Callable[..., Any], *args: Any) -> tuple[Any, float, float]:
    """Run ``function(*args)`` in a fresh process.

    Returns
    -------
    result
    seconds : float
    peak : float
        GB (1e9 bytes) resident in that process and all below it at once, sampled every 20 ms;
        pages that they share count in each.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(function, args, send))
    process.start()
    send.close()
    root, peak = psutil.Process(process.pid), 0
    while not receive.poll(0.02) and process.is_alive():
        peak = max(peak, resident(root))
    try:
        result, seconds, error = receive.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} ended with {process.exitcode}") from None
    process.join()
    if error:
        raise RuntimeError(f"{function.__name__}: {error}")
    return result, seconds, peak / 1e9


def resident(root: psutil.Process) -> int:
    """Bytes resident in a process and all below it."""
    total = 0
    for process in [root, *_children(root)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def fresh(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a process of its own, so that no benchmark inherits another's heap."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


# --- the record ---


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        cpu += "".join(
            f", {flag}" for flag in ("avx512f", "avx512_bf16", "amx_tile") if flag in flags
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str | None]:
    """Of Python and of all that the times depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """Of the working tree, with "+" if files differ from it."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(HERE), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--", "../cosmofields", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def save(path: Path, measured: Mapping[str, Iterable[Row]]) -> dict[str, Any]:
    """Write the rows, by benchmark, to ``path``; what another run wrote of others stays.

    Only if machine and versions are the same: otherwise the record starts anew.
    """
    stamp = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": commit(),
    }
    record = {"machine": machine(), "versions": versions(), **stamp, "results": []}
    if path.exists():
        old = json.loads(path.read_text())
        if all(old[key] == record[key] for key in ("machine", "versions")):
            record["results"] = [r for r in old["results"] if r["benchmark"] not in measured]
    for benchmark, rows in measured.items():
        record["results"] += [{"benchmark": benchmark, **stamp, **row.record()} for row in rows]
    path.write_text(json.dumps(_rounded(record), indent=1) + "\n")
    return record


def _rounded(value: Any) -> Any:
    """Floats to five digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def say(text: str = "") -> None:
    """One line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(row: Row) -> str:
    """One line of text."""
    ours = "-" if row.ours_s is None else f"{row.ours_s:.3g} s"
    parts = [f"{row.name:34} {ours:>9}", row.peer]
    if row.ratio is not None:
        parts[1] += f": {row.peer_s:.3g} s, {row.ratio_is} = {row.ratio:.3g}"
    elif row.reason:
        parts[1] += f": no time, {row.reason}"
    if row.peak_gb is not None:
        parts.append(f"peak {row.peak_gb:.2f} GB")
    targets = [row.target, row.peak_target_gb and f"peak < {row.peak_target_gb:g} GB"]
    if any(targets):
        verdict = {True: "holds", False: "MISSED", None: "unknown"}[row.holds]
        parts.append(f"target {', '.join(filter(None, targets))}: {verdict}")
    return "   ".join(filter(None, parts))
