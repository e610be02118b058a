"""The harness of the benchmarks, and the page that shows what it recorded."""

import importlib
import json
import time

import pytest

from benchmarks import harness, suite, table
from benchmarks.__main__ import main
from benchmarks.harness import COST, SPEEDUP, Absent, Row, compare


def test_every_benchmark_is_there():
    for spec in suite.BENCHMARKS.values():
        module, function = spec.split(".")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


def test_ratio_and_target():
    faster = Row("a", 2.0, "peer", 3.0, target=">= 1.5")
    assert faster.ratio == 1.5
    assert faster.holds is True
    dearer = Row("a", 3.0, "peer", 2.0, ratio_is=COST, target="<= 1.4")
    assert dearer.ratio == 1.5
    assert dearer.holds is False
    assert Row("a", 1.0, "peer", 1.0).holds is None
    fat = Row("a", 2.0, "peer", 3.0, target=">= 1.5", peak_gb=2.5, peak_target_gb=2.0)
    assert fat.holds is False


def test_contenders_take_turns():
    calls = []
    rows = compare(
        "letters",
        lambda: calls.append("o") or 1,
        {"first": lambda: calls.append("p") or 3, "gone": Absent("ImportError: no")},
        target={"first": "<= 9", "gone": ">= 2.0"},
        rounds=3,
        differ=lambda ours, theirs: theirs - ours,
    )
    assert "".join(calls) == "op" + "op" + "po" + "op"
    first, gone = rows
    assert (first.ratio_is, gone.ratio_is) == (COST, SPEEDUP)
    assert first.more == {"difference": 2.0}
    assert first.ours_range[0] <= first.ours_s <= first.ours_range[1]
    assert (gone.ours_s, gone.peer_s, gone.holds) == (first.ours_s, None, None)
    assert gone.reason == "ImportError: no"
    assert "no time, ImportError: no" in harness.show(gone)


def test_absent_peer():
    module = harness.peer("no_such_peer")
    assert isinstance(module, Absent)
    assert "ModuleNotFoundError" in module.reason
    assert harness.call(module, lambda m: m.run()) is module


def _hundred_megabytes():
    held = bytearray(b"x") * 100_000_000
    time.sleep(0.2)  # on a busy machine too there is a sample while it is held
    return len(held)


def test_peak_memory():
    size, seconds, peak = harness.peak_of(_hundred_megabytes)
    assert size == 100_000_000
    assert seconds > 0
    assert 0.1 < peak < 2


def test_error_in_the_fresh_process_is_told():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        harness.peak_of(divmod, 1, 0)


def test_command_line(tmp_path, capsys):
    path = tmp_path / "record.json"
    main(["velocity", "--quick", "--write", str(path)])
    record = json.loads(path.read_text())
    assert set(record) == {"machine", "versions", "date", "commit", "results"}
    (row,) = record["results"]
    assert row["benchmark"] == "velocity"
    assert row["target"] == "<= 1.3"
    assert row["ratio"] == pytest.approx(row["ours_s"] / row["peer_s"], rel=1e-4)
    assert row["holds"] is (row["ratio"] <= 1.3)
    assert row["rounds"] >= 5
    assert "linear velocity" in capsys.readouterr().out

    # Another benchmark's rows stay; the same one's are replaced.
    harness.save(path, {"import": [Row("i", 1.0, "peer", 1.0)]})
    harness.save(path, {"import": [Row("j", 1.0, "peer", 1.0)]})
    assert [row["name"] for row in json.loads(path.read_text())["results"]] == [row["name"], "j"]

    page = table.replaced(f"a {table.BEGIN} stale {table.END} z", json.loads(path.read_text()))
    assert page.startswith("a ")
    assert page.endswith(" z")
    assert "stale" not in page
    assert table.replaced(page, json.loads(path.read_text())) == page


def test_unknown_name(capsys):
    with pytest.raises(SystemExit):
        main(["no-such-benchmark"])
    assert "no benchmark no-such-benchmark" in capsys.readouterr().err


def test_page_shows_the_record():
    page = table.PAGE.read_text()
    assert table.replaced(page, json.loads(harness.LATEST.read_text())) == page
