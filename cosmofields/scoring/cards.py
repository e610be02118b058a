"""What the cards of models say: their scores, and what each that ships is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..conventions import listing
from ..inference.inputs import REDSHIFT_TOLERANCE
from ..unet import Card, load_cards, model_folder, write_card
from ..zoo import TOLERANCE, name_of, purpose, zoo
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
        ``name``, to be given as ``model=``; ``purpose``, the catalogues that it is for;
        ``targets``; ``number_density`` (of the mass bins, cumulative, (h/Mpc)^3), ``weighting``,
        ``redshift`` and ``cell_size`` (Mpc/h) that it was trained for; ``megabytes``; ``scores`` by
        box: ``role``, ``density_correlation``, ``velocity_correlation``, ``velocity_rms_error``
        (km/s).  See :func:`score`.

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
                "purpose": purpose(wanted),
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


def headlines(boxes: Mapping[str, Scores]) -> list[str]:
    """A line for each box, of its scores as :func:`models` has them."""
    texts = {
        "density_correlation": "C_r of the density {:.3f}",
        "velocity_correlation": "of the velocity {:.3f}",
        "velocity_rms_error": "whose rms error is {:.1f} km/s",
    }
    lines = []
    for box, found in boxes.items():
        known = [text.format(found[key]) for key, text in texts.items() if found.get(key)]
        lines.append(f"{box} ({found['role'] or 'no role'}): {listing(known)}")
    return lines


def describe_model(model: str | Path) -> str:
    """Text that says what the cards of a model hold.

    Parameters
    ----------
    model : name of a model that ships, or path of a directory

    Returns
    -------
    str
        What it is for and where it holds, its scores; by target the network, the data, command,
        time and machine of its training, its calibration.

    Raises
    ------
    StoreError
        If there is no such model, or a card cannot be read.
    """
    found, cards = gather(model), load_cards(model)
    wanted = found["trained_for"]
    cosmology = listing(f"{key} {value:g}" for key, value in wanted["cosmology"].items())
    densities = listing(f"{n:g}" for n in wanted["number_density"])
    scores = headlines({box: _headlines(scores) for box, scores in found["boxes"].items()})
    lines = [
        f"{found['model']}: a model of {listing(cards)}, in {model_folder(model)}",
        *_row("for", purpose(wanted)),
        *_row("halos", f"{densities} (h/Mpc)^3, cumulative, in {wanted['space']} space"),
        *_row("", f"within {TOLERANCE:.0%}; weighted by {wanted['weighting']}"),
        *_row("cells", f"{wanted['cell_size']:.4g} Mpc/h, within {TOLERANCE:.0%}"),
        *_row("redshift", f"{wanted['redshift']:g}, within {REDSHIFT_TOLERANCE:g}"),
        *_row("cosmology", f"{cosmology}; f and a H there within {2 * TOLERANCE:.0%}"),
        *_row("scores", *(scores or ["none: `cosmofields score` makes them"])),
    ]
    for target, card in cards.items():
        lines += ["", target, *_network(card)]
    return "\n".join(lines) + "\n"


def model_facts(model: str | Path) -> dict[str, Any]:
    """What the cards of a model hold, for a program.

    Parameters
    ----------
    model : name of a model that ships, or path of a directory

    Returns
    -------
    dict
        ``model``, ``folder``, ``purpose``, ``trained_for``; ``scores`` by box, as :func:`score`
        returned them; ``cards`` by target, without their scores.

    Raises
    ------
    StoreError
        If there is no such model, or a card cannot be read.
    """
    found = gather(model)
    return {
        "model": found["model"],
        "folder": str(model_folder(model)),
        "purpose": purpose(found["trained_for"]),
        "trained_for": found["trained_for"],
        "scores": found["boxes"],
        "cards": {
            target: {key: value for key, value in card.items() if key != "scores"}
            for target, card in load_cards(model).items()
        },
    }


def _network(card: Card) -> list[str]:
    """What a card says of one network; cards of before may lack some of it."""
    made, known = card["architecture"], card.get("training", {})
    size = f", {card['parameters']} parameters" if "parameters" in card else ""
    sees = f", sees {listing(card['inputs'])}" if "inputs" in card else ""
    took = [f"{known['seconds']} s"] if "seconds" in known else []
    took += [f"on {known['machine']}"] if "machine" in known else []
    lines = _row("network", f"{made['name']}{size}{sees}")
    if "boxes" in known:
        along = listing(known["lines_of_sight"])
        lines += _row("trained on", f"{listing(known['boxes'])}, seen along {along}")
        lines += _row("chosen by", listing(known["validation"]))
    lines += _row("time", " ".join(took) or "not recorded")
    lines += _row("by command", known.get("command", "not recorded"))
    if "calibration" in card:
        measured = card["calibration"]
        boxes = f"{listing(measured['boxes'])}, errors scaled by {listing(measured['validation'])}"
        lines += _row("calibrated on", boxes)
        lines += _row("by command", measured["command"])
    else:
        lines += _row("calibrated on", "nothing: no restored power, and no errors")
    return lines


def _row(key: str, *texts: str) -> list[str]:
    return [f"  {key if i == 0 else '':<16}{text}" for i, text in enumerate(texts)]
