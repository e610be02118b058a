"""A model from boxes: what may be trained on, the steps up to the fit, and the card."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..conventions import AXES, CosmofieldsError, ModelMismatchError, listing, periodic_grid
from ..inference import Loaded, linear_options, track
from ..readers import open_box
from ..samples import cache_box, file_digest, power_ratio_bias, prepare_box
from ..store import open_store, place_of, refusals
from ..unet import (
    cited,
    load_model,
    model_folder,
    replace_file,
    save_model,
    start_from,
    weights_digest,
)
from .config import TrainingConfig, command
from .data import VALIDATION_CROPS, loaders
from .fit import Fit, lightning, run_fit


def train(
    config: TrainingConfig,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    out: str | Path,
    *,
    density_model: str | Path = "default",
    start: str | Path | None = None,
    workers: int = 0,
    devices: int = 1,
    prepared: str | Path | None = None,
    extra: Sequence[Any] = (),
    progress: bool = True,
) -> Path:
    """Train one model on simulated boxes; run the same call again to resume.

    Parameters
    ----------
    config : TrainingConfig
    boxes, validation : paths of HDF5 boxes or Zarr stores
        As :func:`~cosmofields.readers.open_box` reads them.  Training boxes are observed along all
        three axes, validation boxes along z.  The weights kept are those of the epoch with the
        least validation loss.
    out : directory
        Gets the prepared boxes, the checkpoint, the learning curve (``TARGET-log/``; also for
        TensorBoard, if that is installed), and the model: ``TARGET.safetensors`` and
        ``TARGET.json``.
    density_model : name or path
        One that ships (``cosmofields models``), or a directory, with the models of the earlier
        steps, whose predictions this one will see: the density for a velocity; both for the
        momentum of ``residual``.
    start : path or name of a model, optional
        With the weights of which the fit begins, instead of random ones: to train a model further,
        or for other halos.  Where that model saw other mass bins, each bin here starts with the
        mean of their weights.
    workers : int
        Processes that make crops.  One thread always does, ahead of the step; on a GPU whose steps
        are shorter than it takes to make a crop, processes help.  They change no number.
    devices : int
        GPUs, or processes of the CPU, that share each batch: a divisor of the batch size.  Called
        from a script, it needs ``if __name__ == "__main__":``, for the processes are spawned.
    prepared : directory, optional
        Of the prepared boxes, for several runs to share; default: ``out/boxes``.
    extra : sequence of Lightning callbacks
        That follow the fit too, e.g. to stop it.
    progress : bool
        Say what is being done: a line an epoch.

    Returns
    -------
    Path
        The model's card.

    Raises
    ------
    CosmofieldsError
        Before anything is written: for a configuration that cannot work, boxes that differ in
        kind, a box that serves both purposes or has another role, or an ``out`` that holds another
        run.
    StoreError
        If the disk is full, or refuses what is written; what was done is kept.
    """
    out = Path(out)
    config = replace(config, precision=_precision(config, out))
    # Before the network is made: its first weights are drawn here.
    lightning.seed_everything(config.seed, verbose=False)
    fit = Fit(config)
    trained_for = check_run(fit, boxes, validation)
    earlier = _earlier(fit, density_model)
    elsewhere = bool(earlier) and model_folder(density_model).resolve() != out.resolve()
    lineage: dict[str, Any] = {}
    if start is not None:
        other, its_card = load_model(config.target, start)
        start_from(fit.model, other)
        lineage["start"] = {"weights": weights_digest(other), **its_card.get("training", {})}
    if devices < 1 or config.batch_size % devices or VALIDATION_CROPS % devices:
        raise CosmofieldsError(
            f"devices={devices}; expected a divisor of batch_size={config.batch_size}, and of "
            f"{VALIDATION_CROPS}, the crops of validation"
        )
    wanted = [(path, los) for path in boxes for los in AXES] + [(path, "z") for path in validation]
    with refusals(place_of(out)):
        _remember(fit, boxes, validation, out, start)
        stores = [
            prepare_box(
                path,
                prepared or out / "boxes",
                los=los,
                number_density=config.number_density,
                weighting=config.weighting,
            )
            for path, los in track(wanted, progress, "observing the boxes")
        ]
        n_train = len(boxes) * len(AXES)
        observed = [open_store(path, "/")["halo_density"].attrs for path in stores[:n_train]]
        bias = {
            key: np.mean([attrs["linear_bias"][key] for attrs in observed], axis=0).tolist()
            for key in observed[0]["linear_bias"]
        }
        if linear_options(fit.model.inputs, bias).get("method") == "paper":
            bias["power_ratio"] = [power_ratio_bias(stores[:n_train])]
        trained_for |= {key: observed[0][key] for key in ("number_density", "weighting", "space")}
        files = [
            cache_box(
                path,
                config.target,
                inputs=fit.model.inputs,
                earlier=earlier,
                bias=bias,
            )
            for path in track(stores, progress, "loading the boxes")
        ]
        data = loaders(config, files[:n_train], files[n_train:], workers, devices)
        score, seconds = run_fit(fit, data, out, progress, extra, devices)
        card = {
            "target": config.target,
            "architecture": {"name": config.architecture, "options": fit.model.options},
            "inputs": list(fit.model.inputs),
            "parameters": sum(p.numel() for p in fit.model.parameters()),
            "trained_for": trained_for,
            "linear_bias": bias,
            "training": {
                "command": command(
                    config, boxes, validation, start, density_model if elsewhere else None
                ),
                "config": asdict(config),
                "boxes": [Path(path).name for path in boxes],
                "lines_of_sight": list(AXES),
                "validation": [Path(path).name for path in validation],
                "validation_loss": score,
                "seconds": round(seconds),
                "machine": _machine(devices),
                **lineage,
                **{f"{target}_model": cited(card) for target, (_, card) in earlier.items()},
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "pytorch_lightning": lightning.__version__,
                },
            },
            "scores": {},
        }
        return save_model(fit.model, card, out)


def _precision(config: TrainingConfig, out: Path) -> str:
    """What ``"auto"`` means here; a run that is resumed keeps what it began with."""
    if config.precision != "auto":
        return config.precision
    with suppress(FileNotFoundError):
        begun = json.loads((out / f"{config.target}-run.json").read_text())
        return str(begun["config"]["precision"])
    return faster_precision()


def faster_precision() -> str:
    """Of Lightning's Trainer, on this machine.

    Processors without AMX multiply bfloat16 no faster than float32, and convert it besides: a step
    of the default density network takes 1.23 s instead of 0.83.  Older GPUs emulate it.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def _machine(devices: int) -> str:
    """What the fit ran on, in words."""
    if torch.cuda.is_available():
        return f"{devices} x {torch.cuda.get_device_name()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{torch.get_num_threads()} threads of {next(names, platform.machine())}"


def _earlier(fit: Fit, directory: str | Path) -> dict[str, Loaded]:
    """Models that predict inputs of this one; they must have seen the same halos."""
    targets: list[str] = [name for name in ("density", "velocity") if name in fit.model.inputs]
    loaded = {target: load_model(target, directory) for target in targets}
    wanted = {
        "number_density": list(fit.config.number_density),
        "weighting": fit.config.weighting,
    }
    for target, (_, card) in loaded.items():
        saw = {key: card["trained_for"][key] for key in wanted}
        if saw != wanted:
            raise ModelMismatchError(
                f"The {target} model in {str(directory)!r} was trained on {saw}, and this one is "
                f"to be on {wanted}: train a {target} model on the same halos first"
            )
    return loaded


def check_run(
    fit: Fit, boxes: Sequence[str | Path], validation: Sequence[str | Path]
) -> dict[str, Any]:
    """Refuse what cannot be trained; return what the boxes have in common."""
    config, coarsest = fit.config, fit.model.coarsest
    if config.crop % coarsest or config.crop <= 2 * config.margin or config.margin < 0:
        raise CosmofieldsError(
            f"crop={config.crop}, margin={config.margin}; expected a crop that is a multiple of "
            f"{coarsest} cells, the network's coarsest, and more than twice the margin"
        )
    least = {
        "steps": 1,
        "settle_steps": 0,
        "steps_per_epoch": 1,
        "batch_size": 1,
        "patience": 0,
    }
    given = {key: getattr(config, key) for key in least}
    if wrong := [f"{key}={value}" for key, value in given.items() if value < least[key]]:
        expected = listing(f"{key} >= {value}" for key, value in least.items())
        raise CosmofieldsError(f"{listing(wrong)}; expected {expected}")
    if not boxes or not validation:
        raise CosmofieldsError("Name at least one box to train on, and one to validate on")
    facts: dict[str, dict[str, Any]] = {}
    seeds: dict[tuple[Any, ...], tuple[str, str]] = {}
    uses = [(path, "training") for path in boxes] + [(path, "validation") for path in validation]
    for path, use in uses:
        halos, true = open_box(path)
        source = halos.attrs["source"]
        role = source.get("role")
        if role == "test":
            raise CosmofieldsError(f"{str(path)!r} calls itself a test box: it may choose nothing")
        if role not in (None, use):
            raise CosmofieldsError(
                f"{str(path)!r} calls itself a {role} box; it was given for {use}"
            )
        facts[str(path)] = {
            "cell_size": round(max(periodic_grid(true).cell_size), 6),
            "redshift": halos.attrs["redshift"],
            "cosmology": halos.attrs["cosmology"],
        }
        if "seed" in source:
            # One realization, though its files may differ.
            made = (source.get("code"), source["seed"], str(halos.attrs["box_size"]))
            other, other_use = seeds.setdefault(made, (str(path), use))
            if other_use != use:
                raise CosmofieldsError(
                    f"{other!r} and {str(path)!r} are one box, by code, seed and size "
                    f"({listing(map(str, made))}): it serves as both"
                )
    if {file_digest(path) for path in boxes} & {file_digest(path) for path in validation}:
        raise CosmofieldsError(
            f"boxes={listing(boxes)}, validation={listing(validation)}: one file serves as both"
        )
    first, *others = facts.values()
    if any(other != first for other in others):
        raise CosmofieldsError(f"The boxes differ in kind: {facts}; expected one kind in all")
    return first


def _remember(
    fit: Fit,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    out: Path,
    start: str | Path | None,
) -> None:
    """Keep in ``out`` what this run is, or check that it is the run to resume."""
    config = fit.config
    path = out / f"{config.target}-run.json"
    run = {
        "config": asdict(config),
        "boxes": [file_digest(box) for box in boxes],
        "validation": [file_digest(box) for box in validation],
        "start": None if start is None else weights_digest(fit.model),
    }
    text = json.dumps(run, indent=2)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        replace_file(path, f"{text}\n".encode())
    elif json.loads(path.read_text()) != json.loads(text):
        raise CosmofieldsError(
            f"{str(out)!r} holds a {config.target} run of another configuration or of other boxes "
            f"({path.name}): give the same ones to resume it, or another --out"
        )
