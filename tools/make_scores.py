"""Write the tables of docs/scores.md and README.md from the cards of what ships, and docs/data.

    cosmofields score --model NAME --write --boxes box_104.h5 box_105.h5
    cosmofields score --model runs/paper --boxes box_104.h5 --out docs/data/paper.json
    python tools/make_scores.py

The first puts scores into cards, the second into a file, for a model that does not ship.
tests/test_zoo.py says when the page is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from cosmofields.scoring import EQ2, FILTERED, NETWORK, ROWS, Row, gather
from cosmofields.unet import zoo

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "scores.md"
README = DOCS.parent / "README.md"

# Of Xiao et al. 2024, at other cells, halos and boxes than ours.
PAPER = {
    "velocity: C_r, mean of components": "about 0.9",
    "velocity: C_r of the magnitude": "about 0.9",
    "velocity: 1 - cos phi, mean": "0.01, one slice",
    "velocity: 1 - cos phi, scatter": "0.06, one slice",
    "velocity: largest abs R, k of 0.03 to 0.3, mean": "0.07 to 0.13",
    "div v: C_r per cell": "about 0.9",
    "div v: largest abs R, k of 0.05 to 0.3, mean": "0.1",
    "density: C_r per cell": "about 0.9",
    "density: largest abs R, k < 0.3, mean": "0.13",
    "momentum: C_r per cell": "about 0.9",
    "momentum: largest abs R, k of 0.03 to 0.3, mean": "0.07 to 0.13",
}
# Least and largest value that is good enough.
GOALS = {
    "velocity: C_r, mean of components": (0.982, inf),
    "velocity: rms error of a component, km/s": (-inf, 48.0),
    "velocity: slope of true on predicted": (0.99, 1.01),
    "velocity: C_r of the magnitude": (0.965, inf),
    "velocity: 1 - cos phi, mean": (-inf, 0.025),
    "velocity: r(k = 0.1)": (0.99, inf),
    "velocity: r(k = 0.3)": (0.95, inf),
    "velocity: T(k) of the three longest waves": (0.97, 1.03),
    "velocity: largest abs R, k of 0.03 to 0.3, restored": (-inf, 0.03),
    "velocity: cells within 68 % errors": (0.66, 0.70),
    "div v: C_r per cell": (0.84, inf),
    "div v: largest abs R, k of 0.05 to 0.3, restored": (-inf, 0.03),
    "density: C_r per cell": (0.75, inf),
    "density: C_r, smoothed by 5 Mpc/h": (0.97, inf),
    "density: slope of true on predicted": (0.99, 1.01),
    "density: r(k = 0.1)": (0.985, inf),
    "density: r(k = 0.3)": (0.93, inf),
    "density: largest abs R, k < 0.3, restored": (-inf, 0.05),
    "density: cells within 68 % errors": (0.66, 0.70),
    "momentum: C_r per cell": (0.75, inf),
    "momentum: C_r, smoothed by 5 Mpc/h": (0.98, inf),
    "momentum: slope of true on predicted": (0.99, 1.01),
    "momentum: largest abs R, k of 0.03 to 0.3, restored": (-inf, 0.03),
}
BEGIN = "<!-- written by `python tools/make_scores.py`; do not edit -->"
END = "<!-- end of what is written -->"
HEADLINES = {
    "velocity: C_r, mean of components",
    "velocity: rms error of a component, km/s",
    "velocity: slope of true on predicted",
    "velocity: 1 - cos phi, mean",
    "density: C_r per cell",
    "density: C_r, smoothed by 5 Mpc/h",
    "momentum: C_r, smoothed by 5 Mpc/h",
}


def render(models: Sequence[dict[str, Any]]) -> str:
    """Tables of what :func:`cosmofields.scoring.score` returned for each model."""
    names = list(dict.fromkeys(box for model in models for box in model["boxes"]))
    return "\n".join([*(_section(box, models) for box in names), _commands(models)])


def _section(box: str, models: Sequence[dict[str, Any]]) -> str:
    there = [model for model in models if box in model["boxes"]]
    facts = there[0]["boxes"][box]
    k = facts[NETWORK]["velocity"]["transfer_k"]
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    lengths = " x ".join(f"{side:g}" for side in _sides(facts["box_size"]))
    lines = [
        f"## {box}\n",
        f"{lengths} Mpc/h{seed}; role: {facts.get('role', 'not stated')}. "
        f"The longest waves: k = {_numbers(k)} h/Mpc.\n",
    ]
    # Linear theory depends on the halos alone: once for each kind of them.
    kinds: dict[str, list[dict[str, Any]]] = {}
    for model in there:
        kinds.setdefault(_halos(model), []).append(model)
    first, *others = kinds.values()
    linear = {"eq. 2": EQ2, "Wiener filter": FILTERED}
    columns = {label: first[0]["boxes"][box][key] for label, key in linear.items()}
    columns |= {f"`{model['model']}`": model["boxes"][box][NETWORK] for model in there}
    lines.append(_table(columns, goals=True))
    for kind in others:
        name = kind[0]["model"]
        columns = {
            label: kind[0]["boxes"][box][key]
            for label, key in (*linear.items(), (f"`{name}`", NETWORK))
        }
        lines += [f"\nWith linear theory from the halos of `{name}` ({_halos(kind[0])}):\n"]
        lines.append(_table(columns))
    return "\n".join(lines)


def _table(columns: dict[str, dict[str, Any]], goals: bool = False) -> str:
    beside = ["paper", "goal"] if goals else []
    lines = [
        f"| | {' | '.join([*beside, *columns])} |",
        "|---|" + "---|" * (len(beside) + len(columns)),
    ]
    for row in ROWS:
        texts = [PAPER.get(row.label, "-"), _goal(row)] if goals else []
        for column in columns.values():
            values = row.of(column)
            low, high = GOALS.get(row.label, (inf, -inf))
            reached = goals and bool(values) and all(low <= value <= high for value in values)
            text = _numbers(values) or "-"
            texts.append(f"**{text}**" if reached else text)
        lines.append(f"| {row.label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _goal(row: Row) -> str:
    low, high = GOALS.get(row.label, (None, None))
    if low is None or high is None:
        return "-"
    if high == inf:
        return f"at least {low:g}"
    return f"at most {high:g}" if low == -inf else f"{low:g} to {high:g}"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{v:.0f}" if abs(v) >= 1000 else f"{v:.4g}" for v in values)


def _sides(box_size: float | Sequence[float]) -> list[float]:
    sides = list(box_size) if isinstance(box_size, Sequence) else [box_size] * 3
    return sides[:1] if len(set(sides)) == 1 else sides


def _halos(model: dict[str, Any]) -> str:
    wanted = model["trained_for"]
    densities = ", ".join(f"{n:g}" for n in wanted["number_density"])
    return f"{densities} (h/Mpc)^3, weighted by {wanted['weighting']}"


def _commands(models: Sequence[dict[str, Any]]) -> str:
    lines = ["## How they were made\n"]
    lines.append("| model | box | halos | symmetries | precision | date | command |")
    lines.append("|---|---|---|---|---|---|---|")
    for model in models:
        for name, facts in model["boxes"].items():
            shown = [facts[key] for key in ("halos", "symmetries", "precision", "date")]
            texts = [f"`{model['model']}`", name, *map(str, shown), f"`{facts['command']}`"]
            lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def scored() -> list[dict[str, Any]]:
    """Of the models that ship, and then of the others."""
    others = (json.loads(path.read_text()) for path in sorted((DOCS / "data").glob("*.json")))
    return [*map(gather, zoo()), *others]


def replaced(page: str) -> str:
    """The page with what is written below its mark."""
    head, found, _ = page.partition(BEGIN)
    if not found:
        raise ValueError(f"no '{BEGIN}' in {PAGE}")
    return f"{head}{BEGIN}\n\n{render(scored())}"


def headlines(models: Sequence[dict[str, Any]]) -> str:
    """For the front page: what ships, on the test boxes, beside linear theory from all masses."""
    tests = {
        box: facts["box_size"]
        for model in models
        for box, facts in model["boxes"].items()
        if facts.get("role") == "test"
    }
    lines = []
    for box, box_size in tests.items():
        there = [model for model in models if box in model["boxes"]]
        linear = there[0]["boxes"][box]
        columns = {"eq. 2 of the paper": linear[EQ2], "Wiener filter by mass bin": linear[FILTERED]}
        columns |= {f"`{model['model']}`": model["boxes"][box][NETWORK] for model in there}
        side = ", ".join(f"{length:g}" for length in _sides(box_size))
        lines += [
            f"| {box}, {side} Mpc/h | {' | '.join(columns)} |",
            "|---" * (1 + len(columns)) + "|",
        ]
        for row in ROWS:
            if row.label in HEADLINES:
                texts = [_numbers(row.of(column)) or "-" for column in columns.values()]
                lines.append(f"| {row.label} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def with_headlines(readme: str) -> str:
    """The README with its table of scores."""
    head, found, rest = readme.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"no '{BEGIN}' and '{END}' in {README}")
    return f"{head}{BEGIN}\n\n{headlines([*map(gather, zoo())])}{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
    README.write_text(with_headlines(README.read_text()))
