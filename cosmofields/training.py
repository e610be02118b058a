"""The fit of one model: schedule, moving average, checkpoints, card (PyTorch Lightning).

Needs the extra ``train``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .conventions import AXES, CosmofieldsError, listing, periodic_grid, require_extra
from .inference import track, vector_channels
from .readers import open_box
from .samples import Arrays, BoxSamples, file_digest, load_box, prepare_box
from .store import open_store
from .unet import build, load_model, save_model

# Registers nothing and is needed by every function below: say so at the door.
lightning: Any = require_extra("pytorch_lightning", "train", "Training")
callbacks: Any = require_extra("pytorch_lightning.callbacks", "train", "Training")
loggers: Any = require_extra("pytorch_lightning.loggers", "train", "Training")

STEPS_PER_EPOCH = 100


@dataclass(frozen=True)
class TrainingConfig:
    """What one fit does; kept in the model's card.

    Parameters
    ----------
    target : {"density", "velocity"}
    architecture : {"residual", "paper"}
    options : dict
        Passed to the network, e.g. ``{"widths": [16, 64, 128]}``.
    steps : int
        Optimiser steps of the main phase, rounded up to whole epochs of 100.
    settle_steps : int
        Steps after it with the batch norm's averages held fixed.  Until then each crop is
        normalised by its own statistics, and a model in use is not: without settling, the mean
        density came out 4 % low.
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
        Of Lightning's Trainer: ``"bf16-mixed"`` or ``"32-true"``.
    seed : int
    """

    target: str
    architecture: str = "residual"
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 3000
    settle_steps: int = 600
    batch_size: int = 1
    crop: int = 64
    margin: int = 6
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    precision: str = "bf16-mixed"
    seed: int = 0

    @property
    def epochs(self) -> tuple[int, int]:
        """Number of epochs of the main phase, and in all."""
        main = -(-self.steps // STEPS_PER_EPOCH)
        return main, main + -(-self.settle_steps // STEPS_PER_EPOCH)


class Fit(lightning.LightningModule):
    """Lightning module of one fit: loss, optimiser, schedule."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build(config.architecture, config.target, **config.options)

    def on_train_epoch_start(self) -> None:
        """Hold the batch norm's averages fixed while the model settles."""
        if self.current_epoch >= self.config.epochs[0]:
            for module in self.model.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.eval()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Loss of one batch."""
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """Log the loss of one validation crop."""
        self.log("val_loss", self._loss(batch), prog_bar=True)

    def _loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, truth = batch
        return self.model.loss(
            x.contiguous(memory_format=torch.channels_last_3d), truth, self.config.margin
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW under a cosine schedule with warm-up, by step."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.config.learning_rate, weight_decay=1e-4
        )
        main, total = (epochs * STEPS_PER_EPOCH for epochs in self.config.epochs)
        warm = max(1, main // 20)

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            peak, start, stop = (1.0, warm, main) if step < main else (0.2, main, total)
            done = (step - start) / max(1, stop - start)
            return peak * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class BoxData(lightning.LightningDataModule):
    """Crops of the training boxes, new ones each epoch, and fixed crops of the validation boxes."""

    def __init__(
        self, config: TrainingConfig, train: Sequence[Arrays], validation: Sequence[Arrays]
    ) -> None:
        super().__init__()
        self.config = config
        self.boxes = train
        self.validation_boxes = validation

    def _loader(self, boxes: Sequence[Arrays], length: int, seed: int, epoch: int) -> Any:
        samples = BoxSamples(
            boxes,
            vector_inputs=vector_channels(self.config.target),
            crop=self.config.crop,
            length=length,
            seed=seed,
            epoch=epoch,
        )
        return torch.utils.data.DataLoader(samples, batch_size=self.config.batch_size)

    def train_dataloader(self) -> Any:
        """Crops of the current epoch."""
        length = STEPS_PER_EPOCH * self.config.batch_size
        return self._loader(self.boxes, length, self.config.seed, 1 + self.trainer.current_epoch)

    def val_dataloader(self) -> Any:
        """The same 16 crops each time, whatever the seed: losses of several runs compare."""
        return self._loader(self.validation_boxes, 16, 0, 0)


def train(
    config: TrainingConfig,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    out: str | Path,
    *,
    density_model: str | Path = "default",
    prepared: str | Path | None = None,
    extra: Sequence[Any] = (),
    progress: bool = True,
) -> Path:
    """Train one model on simulated boxes; run the same call again to resume.

    Parameters
    ----------
    config : TrainingConfig
    boxes, validation : paths of HDF5 boxes
        Training boxes are observed along all three axes, validation boxes along z.  The weights
        kept are those of the epoch with the least validation loss.
    out : directory
        Gets the prepared boxes, checkpoints, the learning curve (``TARGET-log/``), and the model:
        ``TARGET.safetensors`` and ``TARGET.json``.
    density_model : path or ``"default"``
        For a velocity model: the density model whose predictions it will see.
    prepared : directory, optional
        Where the prepared boxes are kept, for several runs to share; default: ``out/boxes``.
    extra : sequence of Lightning callbacks
        That take part in the fit, e.g. to stop it.
    progress : bool
        Show Lightning's bar.

    Returns
    -------
    Path
        The model's card.

    Raises
    ------
    CosmofieldsError
        Before anything is written: for a configuration that cannot work, boxes that differ in
        kind, a box that serves both purposes or calls itself a test box, or an ``out`` that holds
        another run.
    """
    out = Path(out)
    # Before the network is made: its first weights are drawn here.
    lightning.seed_everything(config.seed, verbose=False)
    fit = Fit(config)
    trained_for = _check(fit, boxes, validation)
    first, first_card = None, None
    if config.target == "velocity":
        first, first_card = load_model("density", density_model)
    _remember(config, boxes, validation, out)

    wanted = [(path, los) for path in boxes for los in AXES] + [(path, "z") for path in validation]
    stores = [
        prepare_box(path, prepared or out / "boxes", los=los)
        for path, los in track(wanted, progress, "observing the boxes")
    ]
    n_train = len(boxes) * len(AXES)
    observed = [open_store(path, "/")["halo_density"].attrs for path in stores[:n_train]]
    bias = {
        key: np.mean([attrs["linear_bias"][key] for attrs in observed], axis=0).tolist()
        for key in observed[0]["linear_bias"]
    }
    trained_for |= {key: observed[0][key] for key in ("number_density", "weighting", "space")}
    arrays = [
        load_box(path, config.target, density_model=first, bias=bias["mass_bins"])
        for path in track(stores, progress, "loading the boxes")
    ]
    data = BoxData(config, arrays[:n_train], arrays[n_train:])
    score = _fit(fit, data, out, progress, extra)
    card = {
        "name": f"{config.architecture}-{config.target}",
        "target": config.target,
        "architecture": {"name": config.architecture, "options": fit.model.options},
        "inputs": list(fit.model.inputs),
        "parameters": sum(p.numel() for p in fit.model.parameters()),
        "trained_for": trained_for,
        "linear_bias": bias,
        "training": {
            "command": _command(config, boxes, validation),
            "config": asdict(config),
            "boxes": [Path(path).name for path in boxes],
            "lines_of_sight": list(AXES),
            "validation": [Path(path).name for path in validation],
            "validation_loss": score,
            "density_model": first_card["name"] if first_card else None,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "pytorch_lightning": lightning.__version__,
            },
        },
        "scores": {},
    }
    return save_model(fit.model, card, out)


def _fit(fit: Fit, data: BoxData, out: Path, progress: bool, extra: Sequence[Any]) -> float:
    """Fit, or go on with a fit; leave the best averaged weights in ``fit``; return their loss."""
    config = fit.config
    folder = out / f"{config.target}-checkpoints"
    best = callbacks.ModelCheckpoint(
        folder, filename="best-{epoch}", monitor="val_loss", save_last=True
    )
    trainer = lightning.Trainer(
        max_epochs=config.epochs[1],
        devices=1,
        precision=config.precision,
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=STEPS_PER_EPOCH,
        logger=loggers.CSVLogger(out, name=f"{config.target}-log"),
        callbacks=[callbacks.EMAWeightAveraging(decay=config.ema_decay), best, *extra],
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    fit.to(memory_format=torch.channels_last_3d)
    trainer.fit(fit, data, ckpt_path=str(last) if last.exists() else None)
    score = float(best.best_model_score if best.best_model_score is not None else np.nan)
    if not np.isfinite(score):
        raise CosmofieldsError(
            f"The {config.target} fit gave no finite validation loss, and no model was saved; "
            f"its curve is in {str(out / f'{config.target}-log')!r}. Try a lower learning rate."
        )
    # By name, for the folder may have moved since.  The callback keeps the moving average of the
    # weights under "state_dict".
    checkpoint = torch.load(folder / Path(best.best_model_path).name, weights_only=True)
    fit.load_state_dict(checkpoint["state_dict"])
    return score


def _check(
    fit: Fit, boxes: Sequence[str | Path], validation: Sequence[str | Path]
) -> dict[str, Any]:
    """Refuse what cannot be trained; return what the boxes have in common."""
    config, coarsest = fit.config, fit.model.coarsest
    if config.crop % coarsest or config.crop <= 2 * config.margin or config.margin < 0:
        raise CosmofieldsError(
            f"crop={config.crop}, margin={config.margin}; expected a crop that is a multiple of "
            f"{coarsest} cells, the network's coarsest, and more than twice the margin"
        )
    if config.steps < 1 or config.settle_steps < 0 or config.batch_size < 1:
        raise CosmofieldsError(
            f"steps={config.steps}, settle_steps={config.settle_steps}, "
            f"batch_size={config.batch_size}; expected at least 1, 0 and 1"
        )
    if not boxes or not validation:
        raise CosmofieldsError("Name at least one box to train on, and one to validate on")
    facts: dict[str, dict[str, Any]] = {}
    for path in (*boxes, *validation):
        halos, true = open_box(path)
        if halos.attrs["source"].get("role") == "test":
            raise CosmofieldsError(f"{str(path)!r} calls itself a test box: it may choose nothing")
        facts[str(path)] = {
            "cell_size": round(max(periodic_grid(true).cell_size), 4),
            "redshift": halos.attrs["redshift"],
            "cosmology": halos.attrs["cosmology"],
        }
    if {file_digest(path) for path in boxes} & {file_digest(path) for path in validation}:
        raise CosmofieldsError(
            f"boxes={listing(boxes)}, validation={listing(validation)}: one file serves as both"
        )
    first, *others = facts.values()
    if any(other != first for other in others):
        raise CosmofieldsError(f"The boxes differ in kind: {facts}; expected one kind in all")
    return first


def _command(
    config: TrainingConfig, boxes: Sequence[str | Path], validation: Sequence[str | Path]
) -> str:
    """What to type to train the same model again."""
    widths = config.options.get("widths", [])
    parts = [
        f"cosmofields train {config.target}",
        f"--boxes {' '.join(Path(path).name for path in boxes)}",
        f"--validation {' '.join(Path(path).name for path in validation)}",
        f"--architecture {config.architecture}",
        *([f"--widths {' '.join(map(str, widths))}"] if widths else []),
        f"--steps {config.steps} --settle-steps {config.settle_steps}",
        f"--batch-size {config.batch_size} --crop {config.crop} --margin {config.margin}",
        f"--ema-decay {config.ema_decay:g}",
        f"--learning-rate {config.learning_rate:g} --precision {config.precision}",
        f"--seed {config.seed}",
    ]
    return " ".join(parts)


def _remember(
    config: TrainingConfig,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    out: Path,
) -> None:
    """Keep in ``out`` what this run is, or check that it is the run to resume."""
    path = out / f"{config.target}-run.json"
    run = {
        "config": asdict(config),
        "boxes": [file_digest(box) for box in boxes],
        "validation": [file_digest(box) for box in validation],
    }
    text = json.dumps(run, indent=2)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    elif json.loads(path.read_text()) != json.loads(text):
        raise CosmofieldsError(
            f"{str(out)!r} holds a {config.target} run of another configuration or of other boxes "
            f"({path.name}): give the same ones to resume it, or another --out"
        )
