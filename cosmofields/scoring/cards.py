"""What the cards of models say: their scores, and what each that ships is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..unet import load_cards, write_card
from ..zoo import name_of, zoo
from .rows import EQ2, FILTERED, NETWORK, Scores

_HEADLINES = (("density", "correlation"), ("velocity", "correlation"), ("velocity", "rms_error"))


def write_scores(model: str | Path, box: str, scores: Scores) -> None:
    """Each card gets the fields of its target, whatever else it has come to hold meanwhile."""
    cards = load_cards(model)
    fields = {"density": ["density"], "velocity": ["velocity", "velocity_divergence"]}
    fields.setdefault("momentum" if "momentum" in cards else "velocity", []).append("momentum")
    for target, card in cards.items():
        mine = {
            column: {name: scores[column][name] for name in fields[target]}
            for column in (NETWORK, FILTERED, EQ2)
        }
        card.setdefault("scores", {})[box] = {**scores, **mine}
        write_card(card, model)


def gather(model: str | Path) -> Scores:
    """What :func:`score` has put into the cards of a model, as it returned it."""
    cards = load_cards(model)
    boxes: dict[str, Scores] = {}
    for card in cards.values():
        for name, scores in card.get("scores", {}).items():
            box = boxes.setdefault(name, {})
            for key, value in scores.items():
                box[key] = {**box.get(key, {}), **value} if isinstance(value, dict) else value
    trained_for = next(iter(cards.values()))["trained_for"]
    return {"model": name_of(model), "trained_for": trained_for, "boxes": boxes}


def models() -> list[dict[str, Any]]:
    """The models that ship: what each is for, its size, and what its cards say that it scores.

    Returns
    -------
    list of dict
        ``name``, to be given as ``model=``; ``targets``; ``number_density`` (of the mass bins,
        cumulative, (h/Mpc)^3), ``weighting``, ``redshift`` and ``cell_size`` (Mpc/h) that it was
        trained for; ``megabytes``; ``scores`` by box: ``role``, ``density_correlation``,
        ``velocity_correlation``, ``velocity_rms_error`` (km/s).  See :func:`score`.

    Examples
    --------
    >>> import cosmofields as cf
    >>> cf.models()[0]["name"]
    'default'
    """
    rows = []
    for name, folder in zoo().items():
        found = gather(name)
        wanted = found["trained_for"]
        rows.append(
            {
                "name": name,
                "targets": list(load_cards(name)),
                **{key: wanted[key] for key in ("number_density", "weighting", "redshift")},
                "cell_size": wanted["cell_size"],
                "megabytes": round(sum(p.stat().st_size for p in folder.iterdir()) / 1e6, 1),
                "scores": {box: _headlines(scores) for box, scores in found["boxes"].items()},
            }
        )
    return rows


def _headlines(scores: Scores) -> Scores:
    network = scores[NETWORK]
    found = {f"{name}_{key}": network[name][key] for name, key in _HEADLINES if name in network}
    return {"role": scores.get("role"), **found}
