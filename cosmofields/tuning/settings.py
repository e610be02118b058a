"""What is searched, and the configuration of each fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..conventions import CosmofieldsError, listing, require_extra
from ..training import Fit, TrainingConfig, check_run

# Nothing below works without it: say so at the door.
optuna: Any = require_extra("optuna", "tune", "Tuning")

# Directories and files of a study.
BOXES, FITS = "boxes", "fits"
WIDTHS = {
    "residual": ((8, 32, 64), (16, 64, 128), (24, 96, 192)),
    "paper": ((8, 16, 32), (16, 32, 64), (32, 64, 128)),
}


@dataclass(frozen=True)
class Space:
    """What is searched: the five settings that the paper tunes.

    Parameters
    ----------
    learning_rate : (low, high)
        Sampled in its logarithm.
    dropout : (low, high)
        Of the paper's architecture.  The residual one has none to tune: its error on training
        boxes is that on validation boxes, so dropout has nothing to cure.
    boxes : (low, high), optional
        Number of training boxes: of n, the first n.  Default: from one to all.
    widths : sequence of sequences of int, optional
        Channels of each level; default: :data:`WIDTHS` of the architecture.
    batch_size : sequence of int
    """

    learning_rate: tuple[float, float] = (3e-4, 1e-2)
    dropout: tuple[float, float] = (0.0, 0.5)
    boxes: tuple[int, int] | None = None
    widths: Sequence[Sequence[int]] | None = None
    batch_size: Sequence[int] = (1, 2, 4)

    def distributions(self, architecture: str, n_boxes: int) -> dict[str, Any]:
        """Optuna's distribution of each setting, by name.

        Raises
        ------
        CosmofieldsError
            For a range that holds nothing, or more boxes than there are.
        """
        rate, drop, batches = self.learning_rate, self.dropout, [*self.batch_size]
        low, high = self.boxes or (1, n_boxes)
        if not (0 < rate[0] <= rate[1] and 0 <= drop[0] <= drop[1] < 1):
            raise CosmofieldsError(
                f"learning_rate={rate}, dropout={drop}; expected (low, high) above 0, and from 0 "
                "to below 1"
            )
        if not 1 <= low <= high <= n_boxes:
            raise CosmofieldsError(
                f"boxes={(low, high)}; expected (low, high) from 1 to the {n_boxes} that are given"
            )
        if not batches or min(batches) < 1:
            raise CosmofieldsError(f"batch_size={batches}; expected numbers from 1 up")
        make = optuna.distributions
        widths = ["-".join(map(str, each)) for each in self.widths or WIDTHS[architecture]]
        found = {
            "learning_rate": make.FloatDistribution(*rate, log=True),
            "boxes": make.IntDistribution(low, high),
            "widths": make.CategoricalDistribution(widths),
            "batch_size": make.CategoricalDistribution(batches),
        }
        if architecture == "paper":
            found["dropout"] = make.FloatDistribution(*drop)
        return found


@dataclass(frozen=True)
class Job:
    """What the trials of a study have in common; travels to the workers."""

    config: TrainingConfig
    boxes: tuple[str, ...]
    validation: tuple[str, ...]
    out: Path
    repeats: int
    density_model: str

    def fit_config(self, settings: dict[str, Any], repeat: int = 0) -> TrainingConfig:
        """Configuration of one fit.

        With another batch size an epoch has fewer steps, and as many crops; so have the run, and
        the reach of the moving average (Busbridge et al. 2023, arXiv:2307.13813).
        """
        base, batch = self.config, settings["batch_size"]
        share = batch / base.batch_size
        options = {**base.options, "widths": [int(n) for n in settings["widths"].split("-")]}
        if "dropout" in settings:
            options["dropout"] = settings["dropout"]
        each = round(base.steps_per_epoch / share)
        main, settling = base.epochs
        return replace(
            base,
            options=options,
            learning_rate=settings["learning_rate"],
            batch_size=batch,
            steps=main * each,
            settle_steps=settling * each,
            steps_per_epoch=each,
            ema_decay=base.ema_decay**share,
            seed=base.seed + repeat,
        )

    def check(self, space: Space) -> dict[str, Any]:
        """Refuse what cannot be tuned; return the distribution of each setting."""
        config = self.config
        check_run(Fit(config), self.boxes, self.validation)
        found = space.distributions(config.architecture, len(self.boxes))
        crops, batches = config.steps_per_epoch * config.batch_size, found["batch_size"].choices
        if wrong := [batch for batch in batches if crops % batch]:
            raise CosmofieldsError(
                f"An epoch of {config.steps_per_epoch} steps of {config.batch_size} cannot be made "
                f"of batches of {listing(wrong)}, and every setting is to see as many crops: "
                "another batch_size, or steps_per_epoch"
            )
        settings = {name: each.low for name, each in found.items() if name == "dropout"}
        settings |= {"learning_rate": config.learning_rate, "batch_size": batches[0]}
        for widths in found["widths"].choices:
            coarsest = Fit(self.fit_config({**settings, "widths": widths})).model.coarsest
            if config.crop % coarsest:
                raise CosmofieldsError(
                    f"crop={config.crop}; with widths {widths}, expected a multiple of {coarsest}"
                )
        return found
