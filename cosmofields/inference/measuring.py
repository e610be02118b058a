"""Calibration: a model run where the truth is known, and what that says of it put into its card."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import calibration
from ..calibration import MeanMeasurement, Measurement
from ..catalog import select, to_redshift_space
from ..conventions import AXES, CosmofieldsError, check_filled, listing
from ..lazy import log
from ..painting import paint
from ..readers import open_box
from ..statistics import rms_error, slope
from ..unet import load_cards, load_model, write_card
from ..zoo import as_typed, model_folder, ships
from .fields import Loaded, steps, targets_of, together
from .inputs import check_box
from .running import track

KINDS = ("density", "across", "along")


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
    model : path
        Directory of a saved model; the cards in it get the calibration.  Their scores go, which
        were of the model without it.  A model that ships is left alone: copy its directory.
    boxes : paths of HDF5 boxes or Zarr stores
        Tables of powers, errors and means are pooled over these; see
        :mod:`~cosmofields.calibration`.
    validation : paths of HDF5 boxes or Zarr stores
        The errors are scaled so that 68 % of the cells of all of these lie within one of them, or
        of ``boxes`` and these if that makes them larger: a few boxes may be quiet.  The density is
        recalibrated only if that lowers its error here.  What each box would say alone is kept
        beside, under ``by_box``.
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
        If a box calls itself a test box, one of validation a training box, two of validation have
        one name, or there is none, or the model is one that ships; before any network runs.
    ModelMismatchError
        If a box is not of the kind that the model was trained for.

    Notes
    -----
    Boxes are in memory one at a time; what networks made of them waits in a temporary directory.
    """
    if ships(model):
        raise CosmofieldsError(
            f"The model {model!r} ships with cosmofields, and its cards stay as they are. Copy it "
            f"and calibrate that: cp -r '{model_folder(model)}' mine, then --model ./mine"
        )
    measured = sorted(dict.fromkeys(symmetries))
    _check(boxes, validation, measured)
    loaded = {target: load_model(target, model) for target in targets_of(model)}
    cards = {target: card for target, (_, card) in loaded.items()}
    command = _command(model, boxes, validation, measured, los)
    for card in cards.values():
        card["calibration"] = {
            "command": command,
            "boxes": [Path(path).name for path in boxes],
            "validation": [Path(path).name for path in validation],
            "line_of_sight": los,
            "symmetries": measured,
            "units": calibration.UNITS,
        }
    options = {"device": device, "precision": precision, "tile": None, "progress": False}
    with tempfile.TemporaryDirectory(prefix="cosmofields-") as folder:
        pairs = _Pairs(loaded, cards, Path(folder), los, measured, options)
        every = list(dict.fromkeys(map(str, (*boxes, *validation))))
        for path in track(every, progress, "networks"):
            pairs.run(path)
        _find_mean(pairs, boxes, validation)
        sums = Measurement(measured)
        for path in track(boxes, progress, "powers and errors"):
            for n, fields, true in pairs.of(path):
                sums.add(n, fields, true)
        own = "momentum" if "momentum" in cards else "velocity"
        for target, tables in sums.tables(momentum=own).items():
            cards[target]["calibration"] |= tables
        _find_factors(pairs, boxes, validation)
        _say_by_box(pairs, validation)
    tables = {target: card["calibration"] for target, card in cards.items()}
    # Into what the cards hold by now.
    for target, card in load_cards(model).items():
        if target in tables:
            write_card({**card, "calibration": tables[target], "scores": {}}, model)
    return tables


def observe(
    path: str | Path, wanted: dict[str, Any], los: str
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """A simulated box as a model takes it.

    Parameters
    ----------
    path : path of an HDF5 box or a store
    wanted : dict
        ``trained_for`` of the model's card.
    los : {"x", "y", "z"}

    Returns
    -------
    tracers, observed, true : Dataset
        The halos in redshift space and their painted fields, in memory; the true fields, of which
        the density is.

    Raises
    ------
    CosmofieldsError
        If a cell of the box holds no matter, or it has too few halos.
    """
    halos, true = open_box(path)
    check_filled(true["density"].load(), repr(str(path)))
    tracers = to_redshift_space(select(halos, wanted["number_density"]), los)
    n_grid = [true.sizes[axis] for axis in AXES]
    return tracers, paint(tracers, n_grid, weighting=wanted["weighting"]), true


class _Pairs:
    """What the networks made of boxes with known truth, finished by the cards as they are now."""

    def __init__(
        self,
        loaded: dict[str, Loaded],
        cards: dict[str, Any],
        folder: Path,
        los: str,
        symmetries: Sequence[int],
        options: dict[str, Any],
    ) -> None:
        self.loaded = loaded
        self.cards = cards
        self.folder = folder
        self.los = los
        self.symmetries = symmetries
        self.options = options
        self.kept: dict[tuple[str, int], Path] = {}

    def run(self, path: str) -> None:
        """Run the networks over a box and keep what they make."""
        _, observed, _ = observe(path, self.cards["density"]["trained_for"], self.los)
        for network, card in self.loaded.values():
            check_box(observed, card, network.coarsest)
        for n in self.symmetries:
            made = steps(self.loaded, observed, {**self.options, "symmetries": n})
            file = self.folder / f"{len(self.kept)}.pickle"
            with file.open("wb") as handle:
                pickle.dump((made, observed.drop_vars(observed.data_vars)), handle)
            self.kept[path, n] = file

    def of(self, path: str | Path) -> Iterator[tuple[int, xr.Dataset, xr.Dataset]]:
        """Number of symmetries, fields and truth, for each number."""
        true = open_box(path)[1].load()
        for n in self.symmetries:
            with self.kept[str(path), n].open("rb") as handle:
                made, observed = pickle.load(handle)
            yield n, together(made, observed, self.cards), true


def _find_mean(
    pairs: _Pairs, boxes: Sequence[str | Path], validation: Sequence[str | Path]
) -> None:
    """Put the recalibration of the density into its card, if it lowers the error on validation."""
    sums = MeanMeasurement()
    for path in boxes:
        for n, fields, true in pairs.of(path):
            sums.add(n, fields["density"].values, true["density"].values)
    before = _density_scores(pairs, validation)
    found = pairs.cards["density"]["calibration"]
    found["mean"] = sums.table()
    # Mass is conserved: the table has the shape, and the mean is that of the validation boxes.
    mass = np.mean([_means(pairs, path) for path in validation], axis=0)
    for i, (mine, true) in enumerate(mass):
        scaled = np.multiply(found["mean"]["ratio"][i], true / mine)
        found["mean"]["ratio"][i] = calibration.rounded(scaled)
    after = _density_scores(pairs, validation)
    log.info("recalibration of the density: %s before, %s after", before, after)
    if np.all(np.less(after["rms_error"], before["rms_error"])):
        found["mean"] |= {"validation": {"before": before, "after": after}}
    else:
        del found["mean"]


def _means(pairs: _Pairs, path: str | Path) -> list[tuple[float, float]]:
    """Mean density predicted and true, by number of symmetries."""
    found = []
    for _, fields, true in pairs.of(path):
        mine, other = (ds["density"].mean(dtype=np.float64) for ds in (fields, true))
        found.append((float(mine), float(other)))
    return found


def _density_scores(pairs: _Pairs, validation: Sequence[str | Path]) -> dict[str, list[float]]:
    """Rms error and slope of the density by number of symmetries, means over boxes."""
    scores = [
        [
            (
                float(rms_error(fields["density"], true["density"])) ** 2,
                float(slope(fields["density"], true["density"])),
            )
            for _, fields, true in pairs.of(path)
        ]
        for path in validation
    ]
    squares, slopes = np.mean(scores, axis=0).T
    means = {"rms_error": np.sqrt(squares), "slope": slopes}
    return {name: calibration.rounded(values) for name, values in means.items()}


def _find_factors(
    pairs: _Pairs, boxes: Sequence[str | Path], validation: Sequence[str | Path]
) -> None:
    """Scale the errors so that 68 % of the cells of the validation boxes lie within them.

    Or of all boxes, if that makes them larger.  A network that knows its boxes by heart errs less
    on them, and then validation decides.  One that does not shows its errors there too, and more
    boxes scatter less.
    """
    ratios: dict[tuple[str, int], list[tuple[bool, Any]]] = {}
    by_box: dict[str, dict[str, list[float]]] = {}
    judges = [str(path) for path in validation]
    for path in dict.fromkeys((*judges, *map(str, boxes))):
        alone: dict[str, list[float]] = {kind: [] for kind in KINDS}
        if path in judges:
            by_box[Path(path).name] = alone
        for n, fields, true in pairs.of(path):
            for kind, ratio in _ratios(fields, true, pairs.cards, n).items():
                ratios.setdefault((kind, n), []).append((path in judges, ratio))
                alone[kind].append(float(f"{_factor(kind, ratio):.4g}"))
    for (kind, n), some in ratios.items():
        pools = [ratio for judge, ratio in some if judge], [ratio for _, ratio in some]
        factor = max(_factor(kind, np.concatenate(pool, axis=-1)) for pool in pools)
        calibration.rescale(pairs.cards, kind, pairs.symmetries.index(n), factor)
    for target, kinds in (("density", KINDS[:1]), ("velocity", KINDS[1:])):
        found = pairs.cards[target]["calibration"]
        found["by_box"] = {
            box: {"factors": {kind: alone[kind] for kind in kinds}} for box, alone in by_box.items()
        }


def _ratios(fields: xr.Dataset, true: xr.Dataset, cards: dict[str, Any], n: int) -> dict[str, Any]:
    """Errors of the cells, with what was predicted of them, by kind."""
    density, velocity = fields["density"], fields["velocity"]
    s = calibration.log_error(density, cards["density"], symmetries=n)
    log_ratio = calibration.log_ratio(true["density"].values, density.values)
    found = {"density": np.stack([log_ratio.ravel(), s.ravel()])}
    error = calibration.velocity_error(density, cards["velocity"], symmetries=n)
    ratio = abs(velocity - true["velocity"]).values / error.values
    kinds = np.array(calibration.parts(fields.attrs["los"]))
    return found | {kind: ratio[kinds == kind].ravel() for kind in ("across", "along")}


def _factor(kind: str, ratio: Any) -> float:
    if kind == "density":
        return calibration.lognormal_factor(*ratio)
    return float(np.quantile(ratio, calibration.SHARE))


def _say_by_box(pairs: _Pairs, validation: Sequence[str | Path]) -> None:
    """Put into the cards what the power of restored fields is like in each validation box."""
    for path in validation:
        sums = Measurement(pairs.symmetries)
        for n, fields, true in pairs.of(path):
            sums.add_powers(n, fields, true)
        for card in pairs.cards.values():
            found = card["calibration"]
            said = found.setdefault("by_box", {}).setdefault(Path(path).name, {})
            said["restored_deviation"] = {
                name: [sums.restored_deviation(name, card, n) for n in pairs.symmetries]
                for name in found["restoration"]
            }


def _check(
    boxes: Sequence[str | Path], validation: Sequence[str | Path], symmetries: Sequence[int]
) -> None:
    if not boxes or not validation:
        raise CosmofieldsError("Name at least one box to measure, and one to validate on")
    if not 1 <= len(symmetries) <= 2:
        raise CosmofieldsError(f"symmetries={listing(symmetries)}; expected one or two numbers")
    names = [Path(path).name for path in validation]
    if len(set(names)) < len(names):
        raise CosmofieldsError(f"validation={listing(names)}; expected each of another name")
    for path in (*boxes, *validation):
        role = open_box(path)[0].attrs["source"].get("role")
        if role == "test":
            raise CosmofieldsError(f"{str(path)!r} calls itself a test box: it may choose nothing")
        if role not in (None, "validation") and path in validation:
            raise CosmofieldsError(
                f"{str(path)!r} calls itself a {role} box; it was given for validation: errors "
                "are smaller in boxes that a model was trained on"
            )


def _command(
    model: str | Path,
    boxes: Sequence[str | Path],
    validation: Sequence[str | Path],
    symmetries: Sequence[int],
    los: str,
) -> str:
    """What to type to calibrate the same model again."""
    parts = [
        f"cosmofields calibrate --model {as_typed(model)}",
        f"--boxes {' '.join(Path(path).name for path in boxes)}",
        f"--validation {' '.join(Path(path).name for path in validation)}",
        f"--symmetries {' '.join(map(str, symmetries))} --los {los}",
    ]
    return " ".join(parts)
