"""What a fit does, and the file that says it."""

from __future__ import annotations

import glob
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..catalog import NUMBER_DENSITY
from ..conventions import CosmofieldsError, StoreError, listing
from ..zoo import as_typed, zoo


@dataclass(frozen=True)
class TrainingConfig:
    """What one fit does; kept in the model's card.

    Parameters
    ----------
    target : {"density", "velocity", "momentum"}
    architecture : {"residual", "paper"}
    options : dict
        Passed to the network, e.g. ``{"widths": [16, 64, 128]}``.
    number_density : sequence of float
        Cumulative number densities of the mass bins, (h/Mpc)^3.
    weighting : {"mass", "bin", "number"}
        What a halo counts, see :func:`~cosmofields.painting.paint`.
    steps : int
        Optimiser steps of the main phase, rounded up to whole epochs.
    settle_steps : int
        Steps after it with the batch norm's averages held fixed.  Until then each crop is
        normalised by its own statistics, and a model in use is not: without settling, the mean
        density came out 4 % low.
    steps_per_epoch : int
        Steps between two validations, after each of which the run can resume.
    patience : int
        Epochs without a lower validation loss after which the main phase ends and settling
        begins; 0: never, for a cosine schedule is made for its whole length.
    batch_size : int
        Crops a step.
    crop : int
        Cells a side of a crop; a multiple of the network's coarsest stride.
    margin : int
        Cells next to a crop's faces that do not enter the loss, since zero padding spoils them.
    learning_rate : float
        Peak of a cosine schedule with 5 % warm-up (AdamW); settling starts from a fifth of it.
    ema_decay : float
        Of the moving average of the weights, which is what gets saved.
    precision : str
        Of Lightning's Trainer: ``"bf16-mixed"``, ``"32-true"``, or ``"auto"``, the faster of them
        where the fit begins; the card says which.
    seed : int
    """

    target: str
    architecture: str = "residual"
    options: dict[str, Any] = field(default_factory=dict)
    number_density: tuple[float, ...] = NUMBER_DENSITY
    weighting: str = "mass"
    steps: int = 3000
    settle_steps: int = 600
    steps_per_epoch: int = 100
    patience: int = 0
    batch_size: int = 1
    crop: int = 64
    margin: int = 6
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        # As JSON and TOML have it, a list; two configurations compare as equal whatever it was.
        object.__setattr__(self, "number_density", tuple(map(float, self.number_density)))

    @property
    def epochs(self) -> tuple[int, int]:
        """Number of epochs of the main phase, and of settling."""
        return -(-self.steps // self.steps_per_epoch), -(-self.settle_steps // self.steps_per_epoch)


# Keys of the file by section, and what their values are; the first holds those before any section.
NUMBER = int | float
KEYS: dict[str, dict[str, Any]] = {
    "": {"target": str},
    "data": {
        "boxes": list,
        "validation": list,
        "out": str,
        "density_model": str,
        "start": str,
        "workers": int,
        "devices": int,
    },
    "observation": {"number_density": list, "weighting": str},
    "model": {"architecture": str, "widths": list, "dropout": NUMBER},
    "training": {
        "steps": int,
        "settle_steps": int,
        "steps_per_epoch": int,
        "patience": int,
        "batch_size": int,
        "crop": int,
        "margin": int,
        "learning_rate": NUMBER,
        "ema_decay": NUMBER,
        "precision": str,
        "seed": int,
    },
}
ELEMENTS = {"boxes": str, "validation": str, "number_density": NUMBER, "widths": int}
OPTIONS = ("widths", "dropout")


@dataclass(frozen=True)
class TrainingRun:
    """A fit with its data: the arguments of :func:`~cosmofields.training.train`.

    Parameters
    ----------
    config : TrainingConfig
    boxes, validation : sequence of str
        Paths of boxes.
    out : str
        Directory to write.
    density_model : str, optional
        Directory of the models that this one sees the predictions of; default: ``out``.
    start : str, optional
        Model whose weights the fit begins with; default: random ones.
    workers : int
        Processes that make crops, besides the thread that always does.
    devices : int
        That share each batch.
    """

    config: TrainingConfig
    boxes: tuple[str, ...]
    validation: tuple[str, ...]
    out: str = "models"
    density_model: str | None = None
    start: str | None = None
    workers: int = 0
    devices: int = 1


def read_run(path: str | Path | None = None, **overrides: Any) -> TrainingRun:
    """Configuration file and options, of which the options count.

    Parameters
    ----------
    path : path, optional
        TOML file with ``target`` and the sections ``[data]``, ``[observation]``, ``[model]`` and
        ``[training]``.  Paths of boxes may be patterns (``"boxes/*.zarr"``); paths are relative to
        the working directory, as on the command line.
    **overrides
        Any of their keys; None: not given.

    Returns
    -------
    TrainingRun

    Raises
    ------
    StoreError
        If there is no such file, a pattern matches nothing, or the file is no TOML.
    CosmofieldsError
        For a section or key that is not known (the message lists those that are), for a value of
        another type, and if target, boxes or validation are not given.
    """
    given = dict(_entries(Path(path))) if path is not None else {}
    flat = {key: kind for keys in KEYS.values() for key, kind in keys.items()}
    for key, value in overrides.items():
        if key not in flat:
            raise CosmofieldsError(f"No option {key!r}; there are {listing(flat)}")
        if value is not None:
            _check_type(key, value, flat[key], "the options")
            given[key] = value
    lacking = [key for key in ("target", "boxes", "validation") if not given.get(key)]
    if lacking:
        raise CosmofieldsError(
            f"No {listing(f'`{key}`' for key in lacking)}: what to train, on which boxes, and "
            "which to choose by? Put them into the file, or give them as options"
        )
    known = {entry.name for entry in fields(TrainingConfig)}
    options = {key: given[key] for key in OPTIONS if key in given}
    config = TrainingConfig(
        **{key: value for key, value in given.items() if key in known}, options=options
    )
    return TrainingRun(
        config,
        boxes=tuple(_expand(given["boxes"])),
        validation=tuple(_expand(given["validation"])),
        **{
            key: given[key]
            for key in ("out", "density_model", "start", "workers", "devices")
            if key in given
        },
    )


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file, its sections dissolved."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(
            f"No configuration {str(path)!r} ({error}); expected a TOML file, or density, "
            "velocity or momentum"
        ) from error
    except ValueError as error:
        raise StoreError(f"{str(path)!r} is no TOML file: {error}") from error
    for section in [key for key, value in table.items() if isinstance(value, Mapping)]:
        if section not in KEYS:
            sections = listing(f"[{name}]" for name in KEYS if name)
            raise CosmofieldsError(f"{path.name}: no section [{section}]; there are {sections}")
    for section, keys in KEYS.items():
        entries = table.get(section, {}) if section else table
        where = f"[{section}] of {path.name}" if section else f"{path.name}, before any section"
        if not isinstance(entries, Mapping):
            raise CosmofieldsError(f"{path.name}: [{section}] is a section, not a value")
        for key, value in entries.items():
            if not section and key in KEYS:
                continue
            if key not in keys:
                home = next((name for name, others in KEYS.items() if key in others), None)
                hint = f" (it belongs into [{home}])" if home else ""
                raise CosmofieldsError(f"{where}: no key {key!r}{hint}; there are {listing(keys)}")
            _check_type(key, value, keys[key], where)
            yield key, value


def _check_type(key: str, value: Any, kind: Any, where: str) -> None:
    names = {str: "text", int: "a whole number", NUMBER: "a number", list: "a list"}
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CosmofieldsError(f"{where}: {key} = {value!r}; expected {names[kind]}")
    if kind is list:
        for element in value:
            _check_type(f"an element of {key}", element, ELEMENTS[key], where)


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    """Paths, each pattern replaced by what it matches."""
    for pattern in patterns:
        if not glob.has_magic(pattern):
            yield pattern
            continue
        found = sorted(glob.glob(pattern))
        if not found:
            raise StoreError(f"No box matches {pattern!r}")
        yield from found


def command(
    config: TrainingConfig,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    start: str | Path | None = None,
    density_model: str | Path | None = None,
) -> str:
    """What to type to train the same model again, file or no file."""
    given = {**asdict(config), **config.options}
    words = ["cosmofields", "train", config.target]
    for name, paths in (("--boxes", boxes), ("--validation", validation)):
        words += [name, *(Path(path).name for path in paths)]
    for option, source in (("--start", start), ("--density-model", density_model)):
        if source is not None:
            words += [option, as_typed(source if source in zoo() else Path(Path(source).name))]
    for section in ("observation", "model", "training"):
        for key in KEYS[section]:
            value = given.get(key)
            if value is not None:
                values = value if isinstance(value, list | tuple) else [value]
                words += [f"--{key.replace('_', '-')}", *map(_text, values)]
    return shlex.join(words)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
