"""The saved model: weights and a card."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ..conventions import ModelMismatchError, StoreError, listing, too_nested
from ..zoo import TARGETS, model_folder, name_of
from .models import FieldModel, build
from .starting import state_digest, weights_digest

CARD_VERSION = 1
# Of what a stranger sends: bytes of a card, lists and dicts within one another in it, and numbers
# of a model (80 times those that ship).
CARD_BYTES, NESTING, PARAMETERS = 2**26, 64, 2**27

Card = dict[str, Any]


def cited(card: Mapping[str, Any]) -> str:
    """A model for a history: its name, and which weights."""
    return f"{card['name']} (weights {card['weights_digest']})"


def save_model(model: FieldModel, card: Card, directory: str | Path) -> Path:
    """Write ``TARGET.safetensors`` and ``TARGET.json`` into ``directory``; return the card's path.

    Weights are kept in half precision (their rounding, 5e-4, is far below their own uncertainty),
    running averages of the batch norm in single.  The card gets their digest, since no two files
    are replaced at once: a pair of which only one was is refused by :func:`load_model`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (value.half() if name in parameters else value).contiguous()
        for name, value in model.state_dict().items()
    }
    whole = {"card_version": CARD_VERSION, **card, "weights_digest": state_digest(tensors)}
    files = {"safetensors": save_safetensors(tensors), "json": _text(whole)}
    for suffix, content in files.items():
        replace_file(directory / f"{model.target}.{suffix}", content)
    return directory / f"{model.target}.json"


def load_cards(source: str | Path = "default") -> dict[str, Card]:
    """Cards of the models in a directory, or of one of the zoo, by target; no weights are read.

    Each has its ``name``, such as "default density".

    Raises
    ------
    StoreError
        If there is no such directory, or no card in it, or one that cannot be read.
    """
    folder = model_folder(source)
    cards = {}
    for target in TARGETS:
        path = folder / f"{target}.json"
        if path.is_file():
            cards[target] = _read_card(target, folder, source)
    if not cards:
        raise StoreError(f"No model in {os.fspath(source)!r}: expected density.json there")
    return cards


def write_card(card: Card, source: str | Path) -> Path:
    """Put a card in the place of that of the same target, whole or not at all."""
    path = model_folder(source) / f"{card['target']}.json"
    replace_file(path, _text(card))
    return path


def load_model(target: str, source: str | Path = "default") -> tuple[FieldModel, Card]:
    """Load a saved model.  Reads numbers and JSON only: no code of its sender runs.

    Parameters
    ----------
    target : {"density", "velocity", "momentum"}
    source : name of a model that ships (:func:`~cosmofields.zoo.zoo`), or path of a directory
        Where ``TARGET.safetensors`` and ``TARGET.json`` lie.

    Returns
    -------
    model : FieldModel
        In evaluation mode, float32, on the CPU.
    card : dict
        With its ``name``, such as "default density" by that of its directory; and with
        ``weights_digest``, also where its file does not have it.

    Raises
    ------
    StoreError
        If a file is missing, truncated, or of another format; if the card is of other weights.
    ModelMismatchError
        If the weights do not fit the architecture that the card names, or the model was trained on
        other inputs than that architecture takes today.
    """
    folder = model_folder(source)
    card = _read_card(target, folder, source)
    name, options = card["architecture"]["name"], card["architecture"]["options"]
    # Without memory, until it is known that the weights fit.
    with torch.device("meta"):
        model = build(name, target, **options)
    n_numbers = sum(value.numel() for value in model.state_dict().values())
    if n_numbers > PARAMETERS:
        raise StoreError(
            f"The card of the {target} model in {os.fspath(source)!r} is of a network of "
            f"{n_numbers:.3g} numbers; at most {PARAMETERS:.3g} are loaded"
        )
    try:
        raw = _content(folder / f"{target}.safetensors", max(4 * n_numbers, 2**28))
        tensors = load_safetensors(raw)
    except FileNotFoundError as error:
        raise _missing(target, source) from error
    # The library checks little but the header.
    except (OSError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise _unreadable(target, source, error) from error
    if "inputs" in card and tuple(card["inputs"]) != model.inputs:
        raise ModelMismatchError(
            f"The {target} model in {os.fspath(source)!r} was trained on {listing(card['inputs'])} "
            f"as its inputs; {name!r} models of this cosmofields see {listing(model.inputs)}: "
            "train it again"
        )
    real = {key: value.is_floating_point() for key, value in model.state_dict().items()}
    try:
        odd = [k for k, value in tensors.items() if value.is_floating_point() != real.get(k, True)]
        if odd or any(value.is_complex() for value in tensors.values()):
            raise RuntimeError(f"{listing(odd)} are no numbers of their kind")
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelMismatchError(
            f"The weights in {os.fspath(source)!r} do not fit {name!r} with {options}: {error}"
        ) from error
    found = weights_digest(model)
    if card.setdefault("weights_digest", found) != found:
        raise StoreError(
            f"{target}.safetensors and {target}.json in {os.fspath(source)!r} are not of one model "
            f"(weights {found}, a card of {card['weights_digest']}): one of the two was replaced. "
            "Copy both from where they belong together, or train it again"
        )
    return model.float().eval(), card


def _read_card(target: str, folder: Path, source: str | Path) -> Card:
    try:
        card = json.loads(_content(folder / f"{target}.json", CARD_BYTES))
        version = card["card_version"]
        dict(card["architecture"]["options"], name=card["architecture"]["name"])
        lacking = {"trained_for", "linear_bias"} - set(card)
    except FileNotFoundError as error:
        raise _missing(target, source) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(target, source, error) from error
    if too_nested(card, NESTING):
        raise StoreError(
            f"The card of the {target} model in {os.fspath(source)!r} nests more than {NESTING} "
            "deep"
        )
    if version != CARD_VERSION:
        raise StoreError(
            f"The {target} model in {os.fspath(source)!r} has card version {version}; "
            f"this cosmofields reads {CARD_VERSION}"
        )
    if lacking:
        raise StoreError(
            f"The card of the {target} model in {os.fspath(source)!r} lacks {sorted(lacking)}"
        )
    kinds = {"architecture": dict, "trained_for": dict, "linear_bias": dict, "inputs": list}
    kinds |= {"calibration": dict, "weights_digest": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(card.get(key, kind()), kind)]
    if wrong or not isinstance(card["architecture"]["options"], dict):
        raise StoreError(
            f"The card of the {target} model in {os.fspath(source)!r} says something of another "
            f"kind than expected: {listing(wrong or ['architecture'])}"
        )
    return cast(Card, {**card, "name": f"{name_of(source)} {target}"})


def _content(path: Path, most: int) -> bytes:
    """A file of a stranger, unless it is longer than it can need to be."""
    if path.exists() and not path.is_file():  # a pipe, say, from which nothing comes
        raise OSError(f"{path.name} is no file")
    size = path.stat().st_size
    if size > most:
        raise OSError(f"{path.name} has {size} bytes; at most {most} are read")
    return path.read_bytes()


def _missing(target: str, source: str | Path) -> StoreError:
    return StoreError(
        f"No {target} model in {os.fspath(source)!r}: expected {target}.safetensors and "
        f"{target}.json"
    )


def _unreadable(target: str, source: str | Path, error: Exception) -> StoreError:
    return StoreError(f"The {target} model in {os.fspath(source)!r} cannot be read: {error!r}")


def _text(card: Card) -> bytes:
    # Without its name, which is that of where it lies: directories are copied, and renamed.
    kept = {key: value for key, value in card.items() if key != "name"}
    return (json.dumps(kept, indent=2) + "\n").encode()


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Give a file this content at once: what is there is never half of one.

    It is written beside under a name of its own, since others may be about the same, then renamed.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine leaves a file of the name, empty
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
