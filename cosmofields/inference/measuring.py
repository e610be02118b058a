"""Calibration: a model run where the truth is known, and what that says of it put into its card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import calibration
from ..calibration import Measurement
from ..catalog import select, to_redshift_space
from ..conventions import AXES, CosmofieldsError, check_filled, listing
from ..painting import paint
from ..readers import open_box
from ..unet import load_model, model_folder
from .fields import predict
from .running import track


def calibrate(
    model: str | Path,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    *,
    symmetries: Sequence[int] = (1, 8),
    los: str = "z",
    device: str = "auto",
    precision: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a model's power and errors where the truth is known, and put them into its cards.

    Parameters
    ----------
    model : path or ``"default"``
        Directory of a saved model; ``density.json`` and ``velocity.json`` in it are written anew.
    boxes : paths of HDF5 boxes
        Tables of powers and errors are pooled over these; see :mod:`~cosmofields.calibration`.
    validation : paths of HDF5 boxes
        The errors are scaled so that here 68 % of the cells lie within one of them: they are
        smaller in boxes that the model was trained on.
    symmetries : sequence of int
        One or two numbers of symmetries to run and measure; see :func:`predict`.
    los : {"x", "y", "z"}
        Along which the boxes are observed.
    device, precision, progress
        As in :func:`predict`.

    Returns
    -------
    dict
        What the cards hold now under ``calibration``, by target.

    Raises
    ------
    CosmofieldsError
        If a box calls itself a test box, or there is none; before any network runs.

    Notes
    -----
    Boxes are in memory one at a time.
    """
    measured = sorted(dict.fromkeys(symmetries))
    _check(boxes, validation, measured)
    cards = {target: load_model(target, model)[1] for target in ("density", "velocity")}

    def run(path: str | Path, what: str) -> tuple[dict[int, xr.Dataset], xr.Dataset]:
        observed, true = _observed(path, cards["density"]["trained_for"], los)
        made = {}
        for n in track(measured, progress, f"{what} {Path(path).name}"):
            made[n] = predict(observed, model, symmetries=n, device=device, precision=precision)
        return made, true

    sums = Measurement(measured)
    for path in boxes:
        made, true = run(path, "measuring")
        for n, fields in made.items():
            sums.add(n, fields, true)
    for card, found in zip(cards.values(), sums.tables(), strict=True):
        command = _command(model, boxes, validation, measured, los)
        card["calibration"] = {
            "command": command,
            "boxes": [Path(path).name for path in boxes],
            "validation": [Path(path).name for path in validation],
            "line_of_sight": los,
            "symmetries": measured,
            "units": calibration.UNITS,
            **found,
        }
    factors = []
    for path in validation:
        made, true = run(path, "scaling to")
        factors.append([_factors(fields, true, cards, n) for n, fields in made.items()])
    for i in range(len(measured)):
        for kind in ("density", "across", "along"):
            factor = float(np.mean([box[i][kind] for box in factors]))
            calibration.rescale(cards, kind, i, factor)
    for target, card in cards.items():
        _write(model_folder(model) / f"{target}.json", card)
    return {target: card["calibration"] for target, card in cards.items()}


def _check(
    boxes: Sequence[str | Path], validation: Sequence[str | Path], symmetries: Sequence[int]
) -> None:
    if not boxes or not validation:
        raise CosmofieldsError("Name at least one box to measure, and one to validate on")
    if not 1 <= len(symmetries) <= 2:
        raise CosmofieldsError(f"symmetries={listing(symmetries)}; expected one or two numbers")
    for path in (*boxes, *validation):
        if open_box(path)[0].attrs["source"].get("role") == "test":
            raise CosmofieldsError(f"{str(path)!r} calls itself a test box: it may choose nothing")


def _observed(path: str | Path, wanted: dict[str, Any], los: str) -> tuple[xr.Dataset, xr.Dataset]:
    """Halo fields as a model takes them, and the true fields, both in memory."""
    halos, true = open_box(path)
    true = true.load()
    check_filled(true["density"], repr(str(path)))
    chosen = to_redshift_space(select(halos, wanted["number_density"]), los)
    n_grid = [true.sizes[axis] for axis in AXES]
    return paint(chosen, n_grid, weighting=wanted["weighting"]), true


def _factors(
    fields: xr.Dataset, true: xr.Dataset, cards: dict[str, Any], n: int
) -> dict[str, float]:
    """By what each kind of error is to be multiplied for 68 % of the cells to lie within it."""
    density, velocity = fields["density"], fields["velocity"]
    s = calibration.log_error(density, cards["density"], symmetries=n)
    found = {
        "density": calibration.lognormal_factor(np.log(true["density"].values / density.values), s)
    }
    error = calibration.velocity_error(density, cards["velocity"], symmetries=n)
    ratio = abs(velocity - true["velocity"]).values / error.values
    kinds = np.array(calibration.parts(fields.attrs["los"]))
    for kind in ("across", "along"):
        found[kind] = float(np.quantile(ratio[kinds == kind], calibration.SHARE))
    return found


def _write(path: Path, card: dict[str, Any]) -> None:
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(card, indent=2) + "\n")
    part.replace(path)


def _command(
    model: str | Path,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    symmetries: Sequence[int],
    los: str,
) -> str:
    """What to type to calibrate the same model again."""
    parts = [
        f"cosmofields calibrate --model {model}",
        f"--boxes {' '.join(Path(path).name for path in boxes)}",
        f"--validation {' '.join(Path(path).name for path in validation)}",
        f"--symmetries {' '.join(map(str, symmetries))} --los {los}",
    ]
    return " ".join(parts)
