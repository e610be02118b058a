"""A short run of tests/fuzz, see there; what a long one found, and what its oracle must see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from cosmofields.conventions import StoreError
from cosmofields.readers import open_catalog
from tests.format_files import FACTS

pytest.importorskip("astropy")
pytest.importorskip("pyarrow")
pytest.importorskip("icechunk")
FOUND = Path(__file__).parent / "data" / "fuzz"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: it forks, which one with threads must not.
    command = [sys.executable, *arguments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hypothesis", "atheris"])
def test_nothing_is_trusted(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    out = tmp_path / "tally.json"
    options = ["--engine", engine, "--cases", "60", "--out", str(out)]
    done = run("-m", "tests.fuzz", *options, "--findings", str(tmp_path / "found"))
    assert done.returncode == 0, done.stderr[-5000:] + done.stdout
    tallies = json.loads(out.read_text())["tallies"]
    before = tallies.pop("found before")
    assert before["cases"] == len(list(FOUND.glob("*.json"))) >= 20
    assert len(tallies) == 3
    for tally in tallies.values():
        assert tally["cases"] >= 20
        assert tally["unmade"] < 5
    for what in ("refused", "opened"):  # what always ends in one of them would test nothing
        assert sum(tally[what] for tally in tallies.values()) >= 10


ORACLE = """
import os, pickle, signal, sys
from pathlib import Path
import numpy as np
import cosmofields.readers, cosmofields.unet
from tests.fuzz.bench import Bench
from tests.fuzz.cases import Case
from tests.fuzz.containers import Evil

def raises(*a, **k): raise KeyError("deep")
def unpickles(*a, **k): pickle.loads(pickle.dumps(Evil()))
def looks_elsewhere(*a, **k): open("/etc/passwd").close()
def takes_memory(*a, **k): np.ones(2**27 + 2**25)
def takes_time(*a, **k):
    while True: pass
def crashes(*a, **k): os.kill(os.getpid(), signal.SIGSEGV)

folder = Path(sys.argv[1])
bench = Bench(folder, folder, print)
case = Case("readers", "csv", {"a.csv": b"x"}, "a.csv")
import cosmofields as cf, tests.fuzz.bench
for harm in (raises, unpickles, looks_elsewhere, takes_memory, takes_time, crashes):
    cf.open_catalog = harm
    tests.fuzz.bench.SECONDS = 0.2 if harm is takes_time else 10
    print("came of it:", bench.replay(case).what)
"""


def test_what_the_oracle_sees(tmp_path: Path) -> None:
    done = run("-c", ORACLE, str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("came of it: ")]
    assert [line.removeprefix("came of it: ").split(" in ")[0] for line in lines] == [
        "foreign: KeyError",
        "ran code",
        "elsewhere",
        "memory",
        "hang",
        "died: SIGSEGV",
    ]


def test_a_virtual_file_of_plain_ones_beside_it(tmp_path: Path) -> None:
    """As SWIFT writes it; what it may not be made of is among the cases that found something."""
    for i in range(2):
        with h5py.File(tmp_path / f"part.{i}.h5", "w") as file:
            file["position"] = np.full((5, 3), 10.0 * (i + 1))
    layout = h5py.VirtualLayout((10, 3), "f8")
    for i in range(2):
        layout[5 * i : 5 * i + 5] = h5py.VirtualSource(f"part.{i}.h5", "position", (5, 3))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("position", layout)
    options = {**FACTS, "los": "z"}
    catalog = open_catalog(tmp_path / "all.h5", **options).compute()
    np.testing.assert_array_equal(catalog["position"][:, 0], [10.0] * 5 + [20.0] * 5)
    (tmp_path / "part.1.h5").unlink()
    with pytest.raises(StoreError, match=r"takes its values from 'part\.1\.h5', which is no other"):
        open_catalog(tmp_path / "all.h5", **options)
