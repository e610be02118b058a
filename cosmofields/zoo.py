"""The models that ship, by name, and which of them is for which catalogue; reads cards only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from .conventions import StoreError, listing

# Beyond this relative difference in its number densities, or its cells, a box is not what a model
# was trained for.
TOLERANCE = 0.02
# In the order in which they are made: each sees what those before it predict.
TARGETS = ("density", "velocity", "momentum")


def zoo() -> dict[str, Path]:
    """Names and directories of the models that ship, the default first."""
    root = Path(str(resources.files("cosmofields"))) / "data" / "models"
    names = sorted(card.parent.name for card in root.glob("*/density.json"))
    return {name: root / name for name in sorted(names, key=lambda name: name != "default")}


def ships(source: str | Path) -> bool:
    """Whether this is the name of a model that ships; ``"./name"`` or a ``Path`` is a directory."""
    return isinstance(source, str) and source in zoo()


def name_of(source: str | Path) -> str:
    """What a model is called: a name of the zoo, or that of its directory."""
    return str(source) if ships(source) else Path(source).resolve().name


def is_model(source: str | Path) -> bool:
    """Whether this names a model that ships, or a directory with cards."""
    return ships(source) or any((Path(source) / f"{name}.json").is_file() for name in TARGETS)


def model_folder(source: str | Path) -> Path:
    """Directory of a saved model.

    Parameters
    ----------
    source : name of a model of the zoo, or path of a directory
        A string that is both is the name; ``"./name"`` or a ``Path`` is the directory.

    Raises
    ------
    StoreError
        If it is neither.
    """
    if ships(source):
        return zoo()[str(source)]
    if not Path(source).is_dir():
        raise StoreError(
            f"No model {os.fspath(source)!r}: expected one of those that ship ({listing(zoo())}), "
            "or a directory with density.safetensors and density.json"
        )
    return Path(source)


def purpose(wanted: Mapping[str, Any]) -> str:
    """Which catalogues a model is for, by ``trained_for`` of its card."""
    densest = wanted["number_density"][-1]
    return (
        f"catalogues {'without' if _without_masses(wanted) else 'with'} masses, at least "
        f"{densest:g} halos per (Mpc/h)^3"
    )


def _without_masses(wanted: Mapping[str, Any]) -> bool:
    return len(wanted["number_density"]) == 1 and wanted["weighting"] == "number"


def as_typed(source: str | Path) -> str:
    """A model as a command has it: a directory called like a model that ships begins with ./."""
    text = os.fspath(source)
    return f"./{text}" if isinstance(source, Path) and text in zoo() else text


def advice(number_density: float, *, masses: bool) -> str:
    """Which model that ships is for a catalogue, and what to type for it.

    Parameters
    ----------
    number_density : float
        Of all its halos, in (h/Mpc)^3.
    masses : bool
        Whether it has them.

    Returns
    -------
    str
        A sentence or two: of the models for at most as many halos, that for the most.
    """
    wanted: dict[str, dict[str, Any]] = {
        name: json.loads((folder / "density.json").read_text())["trained_for"]
        for name, folder in zoo().items()
    }
    fitting = [
        name
        for name, how in wanted.items()
        if how["number_density"][-1] <= number_density and (masses or _without_masses(how))
    ]
    if not fitting:
        return (
            f"None of the models that ship ({listing(wanted)}) is for such a catalogue: train one "
            "(docs/training.md)"
        )
    name = max(fitting, key=lambda name: wanted[name]["number_density"][-1])
    how = wanted[name]
    return (
        f"A model that ships for such a catalogue: model={name!r}, with "
        f"select(number_density={how['number_density']}) and paint(weighting={how['weighting']!r}) "
        f"(in the shell: --model {name})"
    )
