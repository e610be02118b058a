"""What a study has found: the table, the best configuration, Optuna's figures."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..conventions import require_extra
from ..training import KEYS
from ..unet import replace_file
from .settings import Job, optuna
from .study import Study, begun

TABLE, BEST, FIGURES = "trials.csv", "best.toml", "figures"
_SETTINGS = ("learning_rate", "dropout", "boxes", "widths", "batch_size")


def table_of(study: Any) -> xr.Dataset:
    """Every trial that has begun, see :func:`~cosmofields.tuning.open_trials`."""
    run = study.user_attrs["run"]
    names = [name for name in _SETTINGS if name in run["space"]]
    rows = []
    for trial in begun(study):
        losses = trial.user_attrs.get("losses", [])
        complete = trial.state == optuna.trial.TrialState.COMPLETE
        last = trial.last_step
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "loss": trial.value if complete else math.nan,
                "loss_spread": np.std(losses, ddof=1) if len(losses) > 1 else math.nan,
                "fits": len(losses),
                **{name: trial.params[name] for name in names},
                "epochs": last or 0,
                "last_loss": math.nan if last is None else trial.intermediate_values[last],
                "seconds": trial.user_attrs.get("seconds", 0.0),
                "reason": trial.user_attrs.get("reason", ""),
            }
        )
    kinds = {"state": object, "widths": object, "reason": object}
    columns = {
        name: ("trial", np.array([row[name] for row in rows], kinds.get(name)))
        for name in (rows[0] if rows else ("trial",))
    }
    config = run["config"]
    attrs = {"target": config["target"], "architecture": config["architecture"]}
    return xr.Dataset(columns, attrs=attrs).set_coords("trial")


def write_table(table: xr.Dataset, path: Path) -> None:
    """Write the table as CSV, in one piece."""
    columns = {name: table[name].values.tolist() for name in table.variables}
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(columns)
    lines.writerows(zip(*columns.values(), strict=True))
    replace_file(path, text.getvalue().encode())


def _best(table: xr.Dataset) -> int:
    """Row of least loss, of the finite ones."""
    return int(np.nanargmin(table["loss"].values))


def write_best(job: Job, table: xr.Dataset, study: Study, path: Path) -> None:
    """Write the settings of least loss as a configuration that ``cosmofields train`` takes."""
    if not np.isfinite(table["loss"]).any():
        return
    row = table.isel(trial=_best(table))
    number = int(row["trial"].values)
    settings = study.settings(number)
    config = job.fit_config(settings)
    given = {
        **asdict(config),
        **config.options,
        "boxes": job.boxes[: settings["boxes"]],
        "validation": job.validation,
    }
    if config.target != "density":  # which sees no other model
        given["density_model"] = job.density_model
    lines = [
        f"# Trial {number}: validation loss {float(row['loss']):.6g} after {config.steps} steps."
    ]
    lines.append("# A fit for use takes more steps, and with them a longer average (ema_decay).")
    for section, keys in KEYS.items():
        lines += ["", f"[{section}]"] if section else []
        lines += [f"{key} = {json.dumps(given[key])}" for key in keys if key in given]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def draw(study: Study, folder: Path) -> None:
    """Draw Optuna's figures, as PNG and PDF: curves, and of what is complete the others."""
    plt = require_extra("matplotlib.pyplot", "plot", "Tuning")
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    plots, trials = optuna.visualization.matplotlib, study.study
    complete = trials.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    free = [name for name, each in study.found.items() if not each.single()]
    named = {"target_name": "validation loss"}
    figures: dict[str, Callable[[], Any]] = {
        "curves": lambda: plots.plot_intermediate_values(trials)
    }
    if complete:
        figures["history"] = lambda: plots.plot_optimization_history(trials, **named)
        figures["slice"] = lambda: plots.plot_slice(trials, free, **named)
    if len(complete) > 1:
        judge = optuna.importance.PedAnovaImportanceEvaluator()
        figures["importance"] = lambda: plots.plot_param_importances(
            trials, evaluator=judge, params=free, **named
        )
    folder.mkdir(exist_ok=True)
    for name, make in figures.items():
        # Optuna sets a style for good, and warns of its own interface.
        with plt.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            axes = np.ravel(make())
            for each in axes:
                if each.get_xscale() == "log":  # Optuna's labels run into one another
                    each.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                    each.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                    each.xaxis.set_minor_formatter(NullFormatter())
            if name == "slice":
                axes[-1].tick_params(axis="x", labelrotation=30)
            if name == "curves":
                axes[0].set(title="", xlabel="epoch", ylabel="validation loss")
            figure = axes[0].figure
            for suffix in ("png", "pdf"):
                figure.savefig(folder / f"{name}.{suffix}", bbox_inches="tight", dpi=150)
            plt.close(figure)


def line(table: xr.Dataset, number: int, trials: int) -> str:
    """How a trial ended, and which is best."""
    row = {name: table[name].sel(trial=number).item() for name in table.variables}
    how = f"pruned, {row['reason']}" if row["reason"] else f"loss {row['loss']:.4g}"
    if math.isfinite(row["loss_spread"]) and not row["reason"]:
        how += f" +- {row['loss_spread']:.2g}"
    values = [
        f"{name.replace('_', ' ')} {row[name]:.3g}"
        if isinstance(row[name], float)
        else f"{name.replace('_', ' ')} {row[name]}"
        for name in _SETTINGS
        if name in row
    ]
    ended = int((table["state"] != "running").sum())
    text = (
        f"trial {number} ({ended} of {trials}): {how}; {', '.join(values)}; {row['seconds']:.0f} s"
    )
    if np.isfinite(table["loss"]).any():
        best = table.isel(trial=_best(table))
        text += f"; best {float(best['loss']):.4g} (trial {int(best['trial'].values)})"
    return text
