"""Learning curves of a fit: read from what training logs, and drawn."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..conventions import CONVENTIONS, MissingVariableError, StoreError, listing
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSSES = {"train_loss": "loss of the training set", "val_loss": "loss of the validation set"}

_WITHIN = "version_*/metrics.csv"


def open_curves(path: str | Path) -> xr.Dataset:
    """Read the learning curves of one fit.

    Parameters
    ----------
    path : path
        The folder that training logged to (``OUT/TARGET-log``), or the ``OUT`` of a single fit, or
        one ``metrics.csv``.  A fit that was resumed has several files: of a loss that two of
        them hold for an epoch, the later counts.

    Returns
    -------
    Dataset, dim epoch
        ``train_loss`` and ``val_loss``, NaN in an epoch without one, and ``step``, the number of
        optimiser steps at the end of the epoch.

    Raises
    ------
    StoreError
        If there is no learning curve, or there are those of several fits.
    """
    files = _files(Path(path))
    epochs: dict[int, dict[str, float]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as text:
            for line in csv.DictReader(text):
                values = {key: _number(line.get(key)) for key in ("epoch", "step", *_LOSSES)}
                there = {key: value for key, value in values.items() if np.isfinite(value)}
                if {"epoch", "step"} <= set(there):
                    epochs.setdefault(int(there["epoch"]), {}).update(there)
    if not any(key in values for values in epochs.values() for key in _LOSSES):
        raise StoreError(f"{listing(map(str, files))}: no epoch with a loss in it")
    order = sorted(epochs)
    curves = {
        key: _curve([epochs[epoch].get(key, np.nan) for epoch in order], name)
        for key, name in _LOSSES.items()
    }
    steps = [int(epochs[epoch]["step"]) + 1 for epoch in order]
    return xr.Dataset(
        {**curves, "step": _curve(steps, "optimiser steps done")},
        coords={"epoch": _curve(order, "epoch, the first is 0")},
        attrs={"title": "learning curves of a fit", "Conventions": CONVENTIONS},
    )


def plot_training(curves: xr.Dataset | Mapping[str, xr.Dataset] | str | Path) -> Figure:
    """Loss of the training and of the validation set against the epoch.

    Parameters
    ----------
    curves : Dataset, mapping of title to Dataset, or path
        What :func:`open_curves` returned, for one or more fits; or the directory that one or more
        fits were written to, ``OUT``, with a panel for each.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each, with a dot at the least validation loss, whose weights training keeps;
        logarithmic where the loss falls by more than a factor of three.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    MissingVariableError
        If there are no curves.
    StoreError
        If there is no learning curve at the path.
    """
    if isinstance(curves, str | Path):
        logs = _logs(Path(curves))
        titles = [log.name.removesuffix("-log") for log in logs]
        named = {title: open_curves(log) for title, log in zip(titles, logs, strict=True)}
        if not named:
            named = {"": open_curves(curves)}
    else:
        named = {"": curves} if isinstance(curves, xr.Dataset) else dict(curves)
    for title, fit in named.items():
        absent = [name for name in _LOSSES if name not in fit]
        if absent:
            raise MissingVariableError(
                f"No `{listing(absent)}` in the curves {title!r}; expected what "
                "open_curves('OUT/density-log') returns"
            )
    if not named:
        raise MissingVariableError("No curves; expected {'density': open_curves(...), ...}")
    columns = min(len(named), 3)
    rows = -(-len(named) // columns)
    width = style.COLUMN if columns == 1 else min(2.5 * columns, style.PAGE)
    with style.figure((width, 2.2 * rows)) as figure:
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for ax, (title, fit) in zip(axes, named.items(), strict=False):
            _panel(ax, fit)
            ax.set_title(title)
        for ax in axes[len(named) :]:
            ax.set_axis_off()
        for ax in axes[::columns]:
            ax.set_ylabel("loss")
    return figure


def _files(path: Path) -> list[Path]:
    """The files of one fit, the oldest first."""
    if path.is_file():
        return [path]
    logs = _logs(path)
    if any(path.glob(_WITHIN)):
        logs = [path]
    if not logs and (path / "metrics.csv").is_file():
        return [path / "metrics.csv"]
    if len(logs) != 1:
        found = f"those of {listing(log.name for log in logs)}" if logs else "none"
        raise StoreError(
            f"{str(path)!r} holds {found}; expected the learning curve of one fit: "
            "the folder OUT/TARGET-log of `cosmofields train`, or its metrics.csv"
        )
    files = logs[0].glob(_WITHIN)
    return sorted(files, key=lambda file: int(file.parent.name.removeprefix("version_")))


def _logs(path: Path) -> list[Path]:
    """The folders of the fits that were written to a directory."""
    return sorted({file.parent.parent for file in path.glob(f"*-log/{_WITHIN}")})


def _number(text: str | None) -> float:
    """Number in a field of a table, NaN where it is empty or cut short by a kill."""
    try:
        return float(text or "nan")
    except ValueError:
        return np.nan


def _curve(values: list[int] | list[float], long_name: str) -> xr.Variable:
    return xr.Variable("epoch", np.array(values), {"units": "1", "long_name": long_name})


def _panel(ax: Axes, fit: xr.Dataset) -> None:
    styles = style.line_styles(list(_LOSSES))
    epoch = fit["epoch"]
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        # A line across the epochs without a value, of a validation that is not run in each.
        there = fit[name].notnull()
        ax.plot(epoch[there], fit[name][there], **styles[name], label=label)
    if fit["val_loss"].notnull().any():
        best = fit["val_loss"].argmin("epoch")
        color = styles["val_loss"]["color"]
        at = f"least, epoch {int(epoch[best])}"
        ax.plot(epoch[best], fit["val_loss"][best], "o", color=color, markersize=4, label=at)
    ticker = style.matplotlib("ticker")
    ax.set(xlabel="epoch")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    losses = np.concatenate([fit[name].values for name in _LOSSES])
    low, high = np.nanmin(losses), np.nanmax(losses)
    if low > 0 and high > 3 * low:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    ax.legend()
