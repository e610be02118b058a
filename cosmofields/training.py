"""Boxes to samples, augmentation, and the fit (PyTorch Lightning, extra ``train``).

A training box is a Zarr store of the observed halo density and the true fields, one for each line
of sight: the three axes of one simulation give three redshift-space skies of the same matter.
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
import xarray as xr
from numpy.typing import NDArray

from . import linear
from .catalog import NUMBER_DENSITY, open_box, select, to_redshift_space
from .conventions import AXES, CosmofieldsError, listing, require_extra
from .inference import apply_model, axes_to_los_last, model_inputs, turn
from .painting import paint
from .store import open_store, write_store
from .unet import FieldModel, build, load_model, save_model

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


def prepare_box(
    path: str | Path,
    folder: str | Path,
    *,
    los: str = "z",
    number_density: Sequence[float] = NUMBER_DENSITY,
    weighting: str = "mass",
    seed: int = 0,
) -> Path:
    """Observe a simulated box along one axis and keep it as a Zarr store.

    Parameters
    ----------
    path : path of an HDF5 box, see :func:`~cosmofields.catalog.open_box`
    folder : where ``NAME-los.zarr`` is written, unless it is there already
    los, number_density, weighting, seed
        Of the observation.

    Returns
    -------
    Path
        The store: ``halo_density``, and the true ``density`` and ``velocity``.
    """
    out = Path(folder) / f"{Path(path).stem}-{los}.zarr"
    if out.exists():
        open_store(out)
        return out
    halos, true = open_box(path)
    n_grid = [true.sizes[axis] for axis in AXES]
    chosen = select(halos, number_density, seed=seed)
    observed = paint(to_redshift_space(chosen, los), n_grid, weighting=weighting)
    # The bias of the linear filter comes from the same halos where they really are.
    bins = linear.large_scale_bias(paint(chosen, n_grid, weighting=weighting), true["density"])
    count = paint(chosen.drop_vars("mass_bin"), n_grid, weighting="number")
    all_halos = linear.large_scale_bias(count, true["density"])
    bias = {"mass_bins": bins.tolist(), "all_by_number": all_halos.tolist()}
    fields = {
        "halo_density": observed["halo_density"],
        "density": true["density"],
        "velocity": true["velocity"],
    }
    fields["halo_density"] = fields["halo_density"].assign_attrs(linear_bias=bias)
    write_store(xr.Dataset(fields, attrs=observed.attrs), out)
    return out


class BoxSamples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random periodic crops of boxes under the 16 symmetries that keep the line of sight.

    Sample ``i`` of epoch ``e`` depends on (seed, e, i) alone, so a resumed run sees what an
    undisturbed one would have seen.

    Parameters
    ----------
    boxes : sequence of (inputs, truth)
        Arrays (channel, x, y, z), the line of sight last.
    vector_inputs : int
        How many of the last input channels are components of a vector (0 or 3).
    """

    def __init__(
        self,
        boxes: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
        *,
        vector_inputs: int,
        crop: int,
        length: int,
        seed: int,
        epoch: int,
    ) -> None:
        self.boxes = boxes
        self.vector_inputs = vector_inputs
        self.crop = crop
        self.length = length
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and truth (channel, x, y, z) of sample ``i``."""
        rng = np.random.default_rng((self.seed, self.epoch, i))
        inputs, truth = self.boxes[int(rng.integers(len(self.boxes)))]
        origin = rng.integers(0, inputs.shape[1:])
        element = rng.integers(16)
        crops = (
            (periodic_crop(inputs, origin, self.crop), self.vector_inputs),
            (periodic_crop(truth, origin, self.crop), len(truth) if len(truth) == 3 else 0),
        )
        x, y = (torch.from_numpy(transform(array, int(element), n)) for array, n in crops)
        return x, y


def periodic_crop(
    array: NDArray[np.float32], origin: Sequence[int] | NDArray[np.integer], size: int
) -> NDArray[np.float32]:
    """Cube of ``size`` cells from a periodic array (channel, x, y, z)."""
    index = [(int(o) + np.arange(size)) % n for o, n in zip(origin, array.shape[1:], strict=True)]
    return array[:, index[0][:, None, None], index[1][:, None], index[2]]


def transform(
    array: NDArray[np.float32], element: int, vector_channels: int
) -> NDArray[np.float32]:
    """One of the 16 symmetries of the cube that keep the z axis, up to its sign.

    Parameters
    ----------
    array : array, (channel, x, y, z)
    element : int
        0 to 15; its bits say: flip x, flip y, flip z, then swap x and y.
    vector_channels : int
        0, or 3: the last three channels are components, which turn with the axes.

    Returns
    -------
    array
        A new, contiguous array.
    """
    flips = [axis for axis in range(3) if element >> axis & 1]
    swap = bool(element >> 3 & 1)
    out = np.flip(array, tuple(1 + axis for axis in flips))
    if swap:
        out = out.swapaxes(1, 2)
    out = np.array(out, order="C")
    if vector_channels:
        first = len(out) - 3
        for axis in flips:
            out[first + axis] *= -1
        if swap:
            out[[first, first + 1]] = out[[first + 1, first]]
    return out


def load_box(
    path: str | Path,
    target: str,
    *,
    density_model: FieldModel | None = None,
    bias: Sequence[float] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs and truth (channel, x, y, z) of a training box, the line of sight last.

    For the velocity, the density among the inputs is what ``density_model`` predicts, as it will
    be in use, and the linear velocity is filtered with ``bias``.
    """
    ds = open_store(path, "/").load()
    observed = ds[["halo_density"]]
    order = axes_to_los_last(ds.attrs["los"])
    density = None
    if density_model is not None:
        halos = turn(observed["halo_density"].values, order, 0)
        back = [int(axis) for axis in np.argsort(order)]
        predicted = turn(apply_model(density_model, halos), back, 0)[0]
        density = ds["density"].copy(data=predicted)
    inputs = model_inputs(observed, target, density=density, bias=bias)
    truth = ds[target].values if target == "velocity" else ds[target].values[None]
    vector = 3 if target == "velocity" else 0
    return (
        np.ascontiguousarray(turn(inputs, order, vector), np.float32),
        np.ascontiguousarray(turn(truth, order, vector), np.float32),
    )


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


Arrays = Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]


class BoxData(lightning.LightningDataModule):
    """Crops of the training boxes, new ones each epoch, and fixed crops of the validation boxes."""

    def __init__(self, config: TrainingConfig, train: Arrays, validation: Arrays) -> None:
        super().__init__()
        self.config = config
        self.boxes = train
        self.validation_boxes = validation

    def _loader(self, boxes: Arrays, length: int, epoch: int) -> Any:
        samples = BoxSamples(
            boxes,
            vector_inputs=3 if self.config.target == "velocity" else 0,
            crop=self.config.crop,
            length=length,
            seed=self.config.seed,
            epoch=epoch,
        )
        return torch.utils.data.DataLoader(samples, batch_size=self.config.batch_size)

    def train_dataloader(self) -> Any:
        """Crops of the current epoch."""
        length = STEPS_PER_EPOCH * self.config.batch_size
        return self._loader(self.boxes, length, 1 + self.trainer.current_epoch)

    def val_dataloader(self) -> Any:
        """The same 16 crops each time."""
        return self._loader(self.validation_boxes, 16, 0)


def train(
    config: TrainingConfig,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    out: str | Path,
    *,
    density_model: str | Path = "default",
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
    progress : bool
        Show Lightning's bar.

    Returns
    -------
    Path
        The model's card.

    Raises
    ------
    CosmofieldsError
        If ``out`` holds a run of another configuration, or a box serves both purposes.
    """
    out = Path(out)
    both = {Path(p).resolve() for p in boxes} & {Path(p).resolve() for p in validation}
    if both or not boxes or not validation:
        raise CosmofieldsError(
            f"boxes={listing(boxes)}, validation={listing(validation)}: expected at least one of "
            "each, and none that serves as both"
        )
    _remember(config, out)
    train_stores = [prepare_box(path, out / "boxes", los=los) for path in boxes for los in AXES]
    validation_stores = [prepare_box(path, out / "boxes") for path in validation]
    facts = [open_store(path, "/")["halo_density"].attrs for path in train_stores]
    bias = {
        key: np.mean([attrs["linear_bias"][key] for attrs in facts], axis=0).tolist()
        for key in facts[0]["linear_bias"]
    }
    first: FieldModel | None = None
    first_card: dict[str, Any] | None = None
    if config.target == "velocity":
        first, first_card = load_model("density", density_model)

    def load(stores: Sequence[Path]) -> Arrays:
        return [
            load_box(path, config.target, density_model=first, bias=bias["mass_bins"])
            for path in stores
        ]

    lightning.seed_everything(config.seed, verbose=False)
    fit = Fit(config).to(memory_format=torch.channels_last_3d)
    data = BoxData(config, load(train_stores), load(validation_stores))
    best = callbacks.ModelCheckpoint(
        out / f"{config.target}-checkpoints",
        filename="best-{epoch}",
        monitor="val_loss",
        save_last=True,
    )
    trainer = lightning.Trainer(
        max_epochs=config.epochs[1],
        precision=config.precision,
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=STEPS_PER_EPOCH,
        logger=loggers.CSVLogger(out, name=f"{config.target}-log"),
        callbacks=[callbacks.EMAWeightAveraging(decay=config.ema_decay), best],
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    last = out / f"{config.target}-checkpoints" / "last.ckpt"
    trainer.fit(fit, data, ckpt_path=str(last) if last.exists() else None)
    # The callback stores the moving average of the weights under "state_dict".
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    fit.load_state_dict(state)
    attrs = facts[0]
    card = {
        "name": f"{config.architecture}-{config.target}",
        "target": config.target,
        "architecture": {"name": config.architecture, "options": fit.model.options},
        "inputs": list(fit.model.inputs),
        "parameters": sum(p.numel() for p in fit.model.parameters()),
        "trained_for": {
            "cell_size": attrs["box_size"] / len(data.boxes[0][0][0]),
            "number_density": attrs["number_density"],
            "weighting": attrs["weighting"],
            "space": "redshift",
            "redshift": attrs["redshift"],
            "cosmology": attrs["cosmology"],
        },
        "linear_bias": bias,
        "training": {
            "command": _command(config, boxes, validation),
            "config": asdict(config),
            "boxes": [Path(path).name for path in boxes],
            "lines_of_sight": list(AXES),
            "validation": [Path(path).name for path in validation],
            "validation_loss": float(best.best_model_score),
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
        f"--batch-size {config.batch_size} --crop {config.crop}",
        f"--learning-rate {config.learning_rate:g} --precision {config.precision}",
        f"--seed {config.seed}",
    ]
    return " ".join(parts)


def _remember(config: TrainingConfig, out: Path) -> None:
    """Keep the configuration in ``out``, or check that it is the one of the run to resume."""
    path = out / f"{config.target}-config.json"
    text = json.dumps(asdict(config), indent=2)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    elif json.loads(path.read_text()) != json.loads(text):
        raise CosmofieldsError(
            f"{str(out)!r} holds a {config.target} run of another configuration "
            f"({path.name}): give the same one to resume it, or another --out"
        )
