"""The record as tables in docs/performance.md and as the plot docs/scaling.png."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .harness import HERE, SPEEDUP
from .suite import BENCHMARKS

DOCS = HERE.parent / "docs"
PAGE, PLOT = DOCS / "performance.md", DOCS / "scaling.png"
BEGIN = "<!-- written by `python -m benchmarks --table`; do not edit -->"
END = "<!-- end of what is written -->"
SCALING = f"""![Time over box size; speed-up and efficiency of two workers]({PLOT.name})

Two workers on one machine share its memory and a cache: what these bound does not reach 2."""
MARK = {True: "yes", False: "**no**", None: ""}
HEADER = (
    "| what | ours, s | peer | its time, s | ratio | target | holds | peak, GB |",
    "|---|---:|---|---:|---:|---|---|---:|",
)


def render(record: Mapping[str, Any]) -> str:
    """The tables, and what they were measured on."""
    machine, versions = record["machine"], record["versions"]
    rows = record["results"]
    libraries = ", ".join(f"{k} {v or '(not installed)'}" for k, v in versions.items())
    dates = sorted({row["date"][:10] for row in rows})
    commits = list(dict.fromkeys(row["commit"] or "unknown" for row in rows))
    judged = [row for row in rows if row["holds"] is not None]
    held = sum(row["holds"] for row in judged)
    lines = [
        f"Machine: {machine['cpu']}; {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}.",
        f"Versions: {libraries}.",
        f"Measured: {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}; commit "
        f"{', '.join(commits)} (+: with changes).",
        f"Targets reached: {held} of {len(judged)}.",
        "",
    ]
    for benchmark, spec in BENCHMARKS.items():
        mine = [row for row in rows if row["benchmark"] == benchmark]
        if mine:
            lines += [f"`{benchmark}` ({spec})", "", *HEADER, *map(_line, mine), ""]
    if any(row["benchmark"].startswith("scaling") for row in rows):
        lines += [SCALING, ""]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    ratio = ""
    if row["ratio"] is not None:
        sense = "its / ours" if row["ratio_is"] == SPEEDUP else "ours / its"
        ratio = f"{row['ratio']:.2f} ({sense})"
    peer = row["peer"] + (f" ({row['note']})" if row["note"] else "")
    if row["reason"]:
        peer += f": no time, {row['reason']}"
    difference = row["more"].get("difference")
    if difference is not None:
        peer += f" [differ by {difference:.1g}]"
    targets = [row["target"]]
    if row["peak_target_gb"]:
        targets.append(f"peak < {row['peak_target_gb']:g} GB")
    cells = [
        row["name"],
        _seconds(row["ours_s"], row["ours_range"]),
        peer,
        _seconds(row["peer_s"], row["peer_range"]),
        ratio,
        ", ".join(filter(None, targets)),
        MARK[row["holds"]],
        "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}",
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _seconds(median: float | None, limits: list[float] | None) -> str:
    if median is None:
        return ""
    text = f"{median:.3g}"
    return text if limits is None else f"{text} ({limits[0]:.2g}-{limits[1]:.2g})"


def replaced(page: str, record: Mapping[str, Any]) -> str:
    """The page with the tables of ``record`` between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"no '{BEGIN}' and '{END}' in {PAGE}")
    return f"{head}{BEGIN}\n\n{render(record)}\n{END}{tail}"


def renew(path: Path) -> None:
    """Write the tables into the page, and the plot beside it."""
    record = json.loads(path.read_text())
    PAGE.write_text(replaced(PAGE.read_text(), record))
    rows = [row for row in record["results"] if row["benchmark"].startswith("scaling")]
    if rows:
        plot(rows, PLOT)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time over cells on one and two workers; speed-up at fixed size, efficiency at twice it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    stages = list(dict.fromkeys(row["more"]["stage"] for row in rows))
    fig, (size, speed) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, stage in enumerate(stages):
        mine = [row for row in rows if row["more"]["stage"] == stage]
        strong, weak = mine[:-1], mine[-1]
        cells = [row["more"]["cells"] for row in strong]
        colour = f"C{i}"
        for column, style, workers in (("peer_s", "o--", 1), ("ours_s", "s-", 2)):
            label = f"{stage}, {workers} worker{'s'[: workers - 1]}"
            size.loglog(cells, [row[column] for row in strong], style, color=colour, label=label)
        x = [i + 0.8 * (j + 0.5) / len(mine) - 0.4 for j in range(len(mine))]
        heights = [row["ratio"] for row in strong] + [2 * weak["ratio"]]
        bars = speed.bar(x, heights, 0.75 / len(mine), color=colour)
        bars[-1].set(facecolor="none", edgecolor=colour, hatch="///")
        names = [f"{round(n ** (1 / 3))}³" for n in cells]
        for at, height, name in zip(x, heights, [*names, "weak"], strict=True):
            speed.text(at, height + 0.03, name, ha="center", fontsize=6)
    size.set(xlabel="cells", ylabel="seconds", title="Zarr to Zarr, one thread a worker")
    size.legend(fontsize=7)
    speed.axhline(2, color="grey", lw=0.8, ls=":")
    speed.set_xticks(range(len(stages)), stages, fontsize=8)
    speed.set(
        ylim=(0, 2.4), ylabel="speed-up of two workers", title="strong (filled), weak (hatched)"
    )
    fig.savefig(path, dpi=110)
    plt.close(fig)
