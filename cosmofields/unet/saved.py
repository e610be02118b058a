"""The saved model: weights and a card."""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ..conventions import ModelMismatchError, StoreError
from .models import FieldModel, build

CARD_VERSION = 1


def save_model(model: FieldModel, card: dict[str, Any], directory: str | Path) -> Path:
    """Write ``TARGET.safetensors`` and ``TARGET.json`` into ``directory``; return the card's path.

    Weights are kept in half precision (their rounding, 5e-4, is far below their own uncertainty),
    running averages of the batch norm in single.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (value.half() if name in parameters else value).contiguous()
        for name, value in model.state_dict().items()
    }
    text = json.dumps({"card_version": CARD_VERSION, **card}, indent=2) + "\n"
    files = {"safetensors": save_safetensors(tensors), "json": text.encode()}
    for suffix, content in files.items():
        # Beside, then renamed: a model that is there is never half of one.
        part = directory / f"{model.target}.{suffix}.part"
        part.write_bytes(content)
        part.replace(directory / f"{model.target}.{suffix}")
    return directory / f"{model.target}.json"


def load_model(target: str, source: str | Path = "default") -> tuple[FieldModel, dict[str, Any]]:
    """Load a saved model.  Reads numbers and JSON only: no code of its sender runs.

    Parameters
    ----------
    target : {"density", "velocity", "momentum"}
    source : path of a directory, or ``"default"``
        Where ``TARGET.safetensors`` and ``TARGET.json`` lie; the default ones ship in the package.

    Returns
    -------
    model : FieldModel
        In evaluation mode, float32, on the CPU.
    card : dict

    Raises
    ------
    StoreError
        If a file is missing, truncated, or of another format.
    ModelMismatchError
        If the weights do not fit the architecture that the card names.
    """
    folder: Traversable | Path
    if source == "default":
        folder = resources.files("cosmofields") / "data" / "models"
    else:
        folder = Path(source)
    try:
        card = json.loads((folder / f"{target}.json").read_text())
        tensors = load_safetensors((folder / f"{target}.safetensors").read_bytes())
        version = card["card_version"]
        name, options = card["architecture"]["name"], dict(card["architecture"]["options"])
        lacking = {"name", "trained_for", "linear_bias"} - set(card)
    except FileNotFoundError as error:
        raise StoreError(
            f"No {target} model in {str(source)!r}: expected {target}.safetensors and {target}.json"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(
            f"The {target} model in {str(source)!r} cannot be read: {error!r}"
        ) from error
    if version != CARD_VERSION:
        raise StoreError(
            f"The {target} model in {str(source)!r} has card version {version}; "
            f"this cosmofields reads {CARD_VERSION}"
        )
    if lacking:
        raise StoreError(
            f"The card of the {target} model in {str(source)!r} lacks {sorted(lacking)}"
        )
    model = build(name, target, **options)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelMismatchError(
            f"The weights in {str(source)!r} do not fit {name!r} with {options}: {error}"
        ) from error
    return model.float().eval(), card
