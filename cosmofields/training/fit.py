"""The fit: loss, optimiser, schedule, the callbacks, and checkpoints that a kill cannot spoil."""

from __future__ import annotations

import io
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..conventions import CosmofieldsError, require_extra
from ..unet import build, replace_file
from .config import TrainingConfig
from .data import Batch, Loader

# Registers nothing and is needed by everything below: say so at the door.
lightning: Any = require_extra("pytorch_lightning", "train", "Training")
callbacks: Any = require_extra("pytorch_lightning.callbacks", "train", "Training")
loggers: Any = require_extra("pytorch_lightning.loggers", "train", "Training")
plugins: Any = require_extra("pytorch_lightning.plugins.io", "train", "Training")


class Fit(lightning.LightningModule):
    """Lightning module of one fit: loss, optimiser, schedule.

    Attributes
    ----------
    settle_from : int
        Epoch from which the model settles: that of the configuration, or an earlier one if the
        main phase was cut short.
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.settle_from = config.epochs[0]
        n_bins = len(config.number_density)
        options = {"n_bins": n_bins, **config.options}
        self.model = build(config.architecture, config.target, **options)

    def on_train_epoch_start(self) -> None:
        """Hold the batch norm's averages fixed while the model settles."""
        if self.current_epoch >= self.settle_from:
            for module in self.model.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.eval()

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """Loss of one batch."""
        loss = self._loss(batch)
        size = len(batch[0])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Log the loss of the validation crops."""
        self.log("val_loss", self._loss(batch), batch_size=len(batch[0]), sync_dist=True)

    def _loss(self, batch: Batch) -> torch.Tensor:
        x, truth = batch
        return self.model.loss(
            x.contiguous(memory_format=torch.channels_last_3d), truth, self.config.margin
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW under a cosine schedule with warm-up, by step."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.config.learning_rate, weight_decay=1e-4
        )
        each = self.config.steps_per_epoch
        planned, settling = (epochs * each for epochs in self.config.epochs)
        warm = max(1, planned // 20)

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            main = self.settle_from * each
            if step < main:
                peak, start, length = 1.0, warm, planned - warm
            else:
                peak, start, length = 0.2, main, settling
            done = (step - start) / max(1, length)
            return peak * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where settling begins."""
        checkpoint["settle_from"] = self.settle_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with a main phase that was cut short."""
        self.end_main_phase(checkpoint["settle_from"])

    def end_main_phase(self, epoch: int) -> None:
        """Settle from ``epoch`` on."""
        self.settle_from = epoch
        self.trainer.fit_loop.max_epochs = epoch + self.config.epochs[1]


def _average(
    average: torch.Tensor, current: torch.Tensor, number: Any, *, decay: float
) -> torch.Tensor:
    # Lightning's own exponential average is of a local function, which no process can be sent.
    return decay * average + (1 - decay) * current


class EarlySettling(callbacks.EarlyStopping):
    """Ends the main phase when the validation loss has stopped falling; settling always runs."""

    def on_validation_end(self, trainer: Any, pl_module: Fit) -> None:
        """Count the epochs without a lower loss."""
        if trainer.current_epoch + 1 >= pl_module.settle_from:
            return
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop:
            pl_module.end_main_phase(trainer.current_epoch + 1)
            trainer.should_stop = pl_module.config.epochs[1] == 0


class Checkpoints(callbacks.Checkpoint):
    """Writes one checkpoint after each epoch; the averaged weights of the least loss are in it.

    With a file of their own, a kill between two writes could leave a checkpoint that names weights
    which are gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loss = np.inf
        self.epoch = -1
        self.weights: dict[str, torch.Tensor] | None = None
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Fit) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Fit) -> None:
        """Write; Lightning calls this after the other callbacks, and after validation."""
        self.seconds += time.perf_counter() - self.began
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Any, pl_module: Fit, checkpoint: dict[str, Any]) -> None:
        """Take the weights of this epoch if they are better; write the best."""
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch
            # The moving average, which its callback has put there.
            self.weights = {
                name: value.detach().cpu().clone()
                for name, value in checkpoint["state_dict"].items()
            }
        checkpoint["best"] = {
            "loss": self.loss,
            "epoch": self.epoch,
            "weights": self.weights,
            "seconds": self.seconds,
        }

    def on_load_checkpoint(self, trainer: Any, pl_module: Fit, checkpoint: dict[str, Any]) -> None:
        """Go on with the best so far."""
        best = checkpoint["best"]
        self.loss, self.epoch, self.weights = best["loss"], best["epoch"], best["weights"]
        self.seconds = best["seconds"]


class Progress(callbacks.Callback):
    """A line an epoch: losses, seconds, the share of them spent waiting for crops, time left."""

    def __init__(self, loader: Loader, best: Checkpoints, quiet: bool) -> None:
        self.loader = loader
        self.best = best
        self.quiet = quiet
        self.first: tuple[int, float] | None = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Fit) -> None:
        """Start the clocks."""
        self.began = time.perf_counter()
        self.waited = self.loader.waited
        if self.first is None:
            self.first = trainer.current_epoch, self.began

    def on_validation_start(self, trainer: Any, pl_module: Fit) -> None:
        """Stop the clocks of training."""
        self.took = time.perf_counter() - self.began
        self.waited = self.loader.waited - self.waited

    def on_train_epoch_end(self, trainer: Any, pl_module: Fit) -> None:
        """Log the times, and say where the fit is."""
        steps = pl_module.config.steps_per_epoch
        pl_module.log("step_seconds", self.took / steps, batch_size=1, sync_dist=True)
        pl_module.log("loading_seconds", self.waited / steps, batch_size=1, sync_dist=True)
        done, total = trainer.current_epoch + 1, trainer.fit_loop.max_epochs
        assert self.first is not None
        epoch, began = self.first
        left = (time.perf_counter() - began) / (done - epoch) * (total - done)
        losses = {
            name: float(trainer.callback_metrics[name]) for name in ("train_loss", "val_loss")
        }
        if not trainer.is_global_zero:
            return
        Console(stderr=True, quiet=self.quiet).print(
            f"{pl_module.config.target}: epoch {done} of {total}"
            f"{', settling' if done > pl_module.settle_from else ''}, "
            f"loss {losses['train_loss']:.4g}, validation {losses['val_loss']:.4g}"
            f"{'' if losses['val_loss'] < self.best.loss else f' (least {self.best.loss:.4g})'}, "
            f"{self.took / steps:.3g} s a step, {self.waited / self.took:.0%} of it loading, "
            f"{_duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class AtomicCheckpoint(plugins.TorchCheckpointIO):
    """Writes beside the checkpoint, then renames: a kill leaves the old one or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``path`` in one piece."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # By way of memory: of a full disk torch says "unexpected pos", and not that it is full.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        replace_file(path, buffer.getbuffer())


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's account of devices, restarts and Slurm held back: the line an epoch says it."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (".*LeafSpec.* is deprecated", "The `srun` command is available"):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C as an interrupt: Lightning leaves the program, and ignores any that come after."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):
            raise left.__context__ from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def run_fit(
    fit: Fit,
    data: tuple[Loader, Loader],
    out: Path,
    progress: bool,
    extra: Sequence[Any] = (),
    devices: int = 1,
) -> tuple[float, float]:
    """Fit, or go on with a fit; leave the best averaged weights in ``fit``.

    Returns
    -------
    loss, seconds
        Of the best weights on the validation crops; of the epochs, those before a kill included.
    """
    config = fit.config
    last, logs = out / f"{config.target}-checkpoints" / "last.ckpt", f"{config.target}-log"
    for part in last.parent.glob("*.part"):
        part.unlink(missing_ok=True)  # of a call that was killed
    best = Checkpoints(last)
    followers: list[Any] = [
        callbacks.WeightAveraging(
            use_buffers=True, avg_fn=partial(_average, decay=config.ema_decay)
        ),
        best,
    ]
    if config.patience:
        followers.append(
            EarlySettling("val_loss", patience=config.patience, check_on_train_epoch_end=False)
        )
    followers.append(Progress(data[0], best, quiet=not progress))
    written = [loggers.CSVLogger(out, name=logs)]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        written.append(loggers.TensorBoardLogger(out, name=f"{config.target}-tensorboard"))
    fit.to(memory_format=torch.channels_last_3d)
    with _quiet():
        trainer = lightning.Trainer(
            max_epochs=sum(config.epochs),
            devices=devices,
            # Spawned, so that what comes before the fit is done once.
            strategy="ddp_spawn" if devices > 1 else "auto",
            precision=config.precision,
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            log_every_n_steps=config.steps_per_epoch,
            logger=written,
            callbacks=[*followers, *extra],
            plugins=[AtomicCheckpoint()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with _interrupts():
            trainer.fit(fit, *data, ckpt_path=str(last) if last.exists() else None)
    if devices > 1:
        # The processes that had them are gone.
        best.on_load_checkpoint(trainer, fit, torch.load(last, map_location="cpu"))
    if best.weights is None:
        raise CosmofieldsError(
            f"The {config.target} fit gave no finite validation loss, and no model was saved; "
            f"its curve is in {str(out / logs)!r}. Try a lower learning rate."
        )
    fit.load_state_dict(best.weights)
    return best.loss, best.seconds
