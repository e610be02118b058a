"""Cases by hypothesis, and by atheris, which sees what parts of the code a case reaches."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bench import Bench, Tally, Worker
from .cases import Case
from .draws import Atheris, Hypothesis
from .making import made

Engine = Callable[[Bench, list[Case], int, int, Tally], None]
_BATCH = {"hypothesis": 500, "atheris": 2000}


def by_hypothesis(bench: Bench, whole: list[Case], cases: int, seed: int, tally: Tally) -> None:
    """Cases of choices that hypothesis draws."""
    done = 0
    while done < cases:
        n = min(_BATCH["hypothesis"], cases - done)
        did = bench.run(tally, _drawn(whole, n, seed + done))
        done += max(did, 1)


def _drawn(whole: list[Case], n: int, seed: int) -> Callable[[Worker], None]:
    def batch(worker: Worker) -> None:
        import hypothesis
        from hypothesis import HealthCheck, Phase
        from hypothesis import strategies as st

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=n,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(st.data())
        def one(data: Any) -> None:
            worker.make_and_judge(lambda: made(whole, Hypothesis(data)))

        one()

    return batch


def by_atheris(bench: Bench, whole: list[Case], cases: int, seed: int, tally: Tally) -> None:
    """Cases of bytes that libFuzzer evolves: choices, or the content of one file as such."""
    target = whole[0].target
    kept = bench.scratch / f"corpus-{target}"
    kept.mkdir(exist_ok=True)
    rng = random.Random(seed)
    plain = [i for i, case in enumerate(whole) if min(map(len, _main(case).values())) < 5000]
    for i in plain:
        (kept / f"whole-{i}").write_bytes(b"\0" + bytes([i]) + next(iter(_main(whole[i]).values())))
    for i in range(60):
        (kept / f"choices-{i}").write_bytes(b"\1" + rng.randbytes(rng.randint(8, 120)))
    done = 0
    while done < cases:
        n = min(_BATCH["atheris"], cases - done)
        did = bench.run(tally, _evolved(whole, n, seed + done, kept))
        done += max(did, 1)


def _main(case: Case) -> dict[str, bytes]:
    """The file of a case whose bytes libFuzzer changes: the one that says what is what."""
    files = {name: content for name, content in case.files.items() if isinstance(content, bytes)}
    heads = ("zarr.json", ".zmetadata", ".json", "Header/attr-v2")
    for end in heads:
        for name in sorted(files, key=len):
            if name.endswith(end):
                return {name: files[name]}
    name = max(files, key=lambda name: (name.endswith(case.source), -len(name)))
    return {name: files[name]}


def _evolved(whole: list[Case], n: int, seed: int, kept: Path) -> Callable[[Worker], None]:
    def batch(worker: Worker) -> None:
        import atheris
        import psutil

        def one(data: bytes) -> None:
            if len(data) < 3:
                return
            if data[0] % 2:
                draws = Atheris(atheris.FuzzedDataProvider(data[1:]))
                worker.make_and_judge(lambda: made(whole, draws))
                return
            base = whole[data[1] % len(whole)]
            name = next(iter(_main(base)))
            files = {**base.files, name: data[2:]}
            worker.judge(Case(base.target, base.kind, files, base.source, base.options))

        megabytes = (psutil.Process().memory_info().rss >> 20) + 1024
        options = [f"-runs={n}", f"-seed={seed % 2**31 + 1}", "-timeout=10", "-max_len=6000"]
        options += [f"-rss_limit_mb={megabytes}", f"-artifact_prefix={kept.parent}/artifact-"]
        atheris.Setup([sys.argv[0], *options, str(kept)], one)
        try:
            atheris.Fuzz()
        except SystemExit as end:
            if end.code:
                os._exit(int(end.code))

    return batch


ENGINES: dict[str, Engine] = {"hypothesis": by_hypothesis, "atheris": by_atheris}
