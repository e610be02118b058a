"""Density, velocity and momentum of a box by a saved model, and how wrong they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from .. import calibration, engine
from ..calibration import Card
from ..conventions import (
    CosmofieldsError,
    attribute,
    box_facts,
    label,
    periodic_grid,
    variable,
)
from ..cosmology import cosmology_of
from ..linear import as_dataset
from ..unet import FieldModel, load_model
from .inputs import check_box, model_inputs
from .running import run_in_box

Loaded = tuple[FieldModel, dict[str, Any]]


def _load(
    observed: xr.Dataset,
    model: str | Path,
    targets: Sequence[str],
    allow_mismatch: bool,
    *,
    calibrated: bool = False,
) -> dict[str, Loaded]:
    """The models and their cards, by target; all that may be missing is said before any runs."""
    loaded = {target: load_model(target, model) for target in targets}
    if calibrated:
        for _, card in loaded.values():
            calibration.calibration(card)
    for network, card in loaded.values():
        if not allow_mismatch:
            check_box(observed, card, network.coarsest)
    theory = {name for network, _ in loaded.values() for name in network.inputs}
    if theory & {"linear_velocity"} - set(observed):
        cosmology_of(observed).require_power()
    return loaded


def _predict(
    loaded: Loaded,
    observed: xr.Dataset,
    fields: Mapping[str, xr.DataArray],
    options: dict[str, Any],
) -> xr.DataArray:
    """Assemble the inputs, of which ``fields`` were predicted before; run; label."""
    model, card = loaded
    inputs = model_inputs(observed, model.inputs, fields=fields, bias=card["linear_bias"])
    precision = engine.resolve_precision(options["precision"], options["device"], model)
    options = {**options, "precision": precision}
    data = run_in_box(model, inputs, attribute(observed, "los"), **options)
    grid = periodic_grid(observed, what="reconstruction")
    facts = {**box_facts(observed), "space": "real"}
    named = label(model.target, data if model.is_vector else data[0], grid, facts)
    return named.assign_attrs(
        model=card["name"], precision=precision, symmetries=options["symmetries"]
    )


def predict_density(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    symmetries: int = 1,
    restore_power: bool = False,
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter density from the halos of a redshift-space box (step one).

    Parameters
    ----------
    observed : Dataset
        With ``halo_density`` (mass_bin, x, y, z): the whole periodic box in redshift space.
    model : path or ``"default"``
        Directory of a saved model.
    tile : int, optional
        Most cells a side of a tile; default: by memory, see :func:`apply_model`.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "float32", "bfloat16"}
        Of the network's arithmetic; ``"auto"``: bfloat16 where the processor has it, which here
        changes no score (``docs/models.md``).  The result's attribute ``precision`` says which.
    symmetries : {1, 2, 4, 8, 16}
        Average over as many of the symmetries that keep the line of sight: as many times the
        work, for an error that is about 1 % (2) or 2 % (8) smaller (``docs/models.md``).
    restore_power : bool
        The second estimator, for spectra: the true field's power at each k, for a larger error per
        cell.  See :mod:`~cosmofields.calibration`.
    allow_mismatch : bool
        Run on a box whose cell size, tracers or redshift the model was not trained for.
    progress : bool
        Show a bar.

    Returns
    -------
    DataArray, dims (x, y, z)
        ``density`` = 1 + delta, positive; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    loaded = _load(observed, model, ["density"], allow_mismatch, calibrated=restore_power)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    density = _predict(loaded["density"], observed, {}, options)
    if restore_power:
        return calibration.restore(density, loaded["density"][1], symmetries=symmetries)
    return density


def predict_velocity(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    symmetries: int = 1,
    restore_power: bool = False,
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter velocity from the halos of a redshift-space box (step two).

    Its further inputs are made on the way: the density by :func:`predict_density` unless
    ``observed`` holds ``density``, and the filtered linear velocity with the bias that the model
    carries unless it holds ``linear_velocity``.

    Parameters
    ----------
    observed, model, tile, device, precision, symmetries, restore_power, allow_mismatch, progress
        As in :func:`predict_density`.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``velocity`` in km/s; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    targets = ["velocity"] if "density" in observed else ["density", "velocity"]
    loaded = _load(observed, model, targets, allow_mismatch, calibrated=restore_power)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    if "density" in observed:
        density = variable(observed, "density")
    else:
        density = _predict(loaded["density"], observed, {}, options)
    velocity = _predict(loaded["velocity"], observed, {"density": density}, options)
    if restore_power:
        return calibration.restore(velocity, loaded["velocity"][1], symmetries=symmetries)
    return velocity


def predict_momentum(
    observed: xr.Dataset,
    model: str | Path,
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    symmetries: int = 1,
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter momentum by a network of its own (step three).

    :func:`predict` has the product of density and velocity, which lacks the covariance of their
    errors.  No such model ships yet: train one, ``target = "momentum"``.

    Parameters
    ----------
    observed, tile, device, precision, symmetries, allow_mismatch, progress
        As in :func:`predict_density`.
    model : path
        Directory of a momentum model, and of the models of the steps before it.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``momentum`` in km/s; lazy if ``observed`` is.

    Raises
    ------
    StoreError
        If there is no such model.
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    network, _ = load_model("momentum", model)
    steps = [name for name in ("density", "velocity") if name in network.inputs]
    loaded = _load(observed, model, [*steps, "momentum"], allow_mismatch)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    fields: dict[str, xr.DataArray] = {}
    for step in steps:
        fields[step] = _predict(loaded[step], observed, fields, options)
    return _predict(loaded["momentum"], observed, fields, options)


def predict(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    symmetries: int = 1,
    restore_power: bool = False,
    uncertainty: bool = False,
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Real-space matter density, velocity and momentum from a redshift-space box.

    Parameters
    ----------
    observed, model, tile, device, precision, symmetries, restore_power, allow_mismatch, progress
        As in :func:`predict_density`.  With ``restore_power`` each field is restored on its own,
        so that the momentum is no longer the product of the others.
    uncertainty : bool
        Add the predicted standard deviations ``density_error`` and ``velocity_error`` of each cell;
        see :func:`~cosmofields.calibration.interval`.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``velocity`` in km/s, ``momentum`` = density x velocity in km/s;
        lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    CosmofieldsError
        For ``restore_power`` with ``uncertainty``, which is that of the mean.
    """
    if restore_power and uncertainty:
        raise CosmofieldsError(
            "restore_power=True with uncertainty=True; expected one of them: the errors are of the "
            "mean fields, and restored ones, for spectra, are further from the truth"
        )
    wanted = restore_power or uncertainty
    targets = ["density", "velocity"]
    loaded = _load(observed, model, targets, allow_mismatch, calibrated=wanted)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    density = _predict(loaded["density"], observed, {}, options)
    velocity = _predict(loaded["velocity"], observed, {"density": density}, options)
    what = f"predict: model={velocity.attrs['model']}"
    cards = {target: card for target, (_, card) in loaded.items()}
    fields = as_dataset(density, velocity, observed, what)
    if restore_power:
        return restored(fields, cards, symmetries)
    return fields.assign(errors(density, cards, symmetries)) if uncertainty else fields


def restored(fields: xr.Dataset, cards: Mapping[str, Card], symmetries: int) -> xr.Dataset:
    """Density, velocity and momentum of a Dataset with their power restored."""
    by = {"density": "density", "velocity": "velocity", "momentum": "velocity"}
    return fields.assign(
        {
            name: calibration.restore(fields[name], cards[target], symmetries=symmetries)
            for name, target in by.items()
        }
    )


def errors(
    density: xr.DataArray, cards: Mapping[str, Card], symmetries: int
) -> dict[str, xr.DataArray]:
    """``density_error`` and ``velocity_error`` of what was predicted along with a density."""
    of_density = calibration.density_error(density, cards["density"], symmetries=symmetries)
    of_velocity = calibration.velocity_error(density, cards["velocity"], symmetries=symmetries)
    return {"density_error": of_density, "velocity_error": of_velocity}
