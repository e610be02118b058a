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
    derived,
    label,
    listing,
    periodic_grid,
    variable,
)
from ..cosmology import cosmology_of
from ..linear import as_dataset
from ..unet import FieldModel, cited, load_cards, load_model, model_folder
from .inputs import check_box, linear_inputs, linear_options, model_inputs, same_theory
from .running import run_in_box

Loaded = tuple[FieldModel, dict[str, Any]]


def _load(
    observed: xr.Dataset,
    model: str | Path,
    targets: Sequence[str],
    allow_mismatch: bool,
    *,
    restore_power: bool = False,
    uncertainty: bool = False,
) -> dict[str, Loaded]:
    """The models and their cards, by target; all that may be missing is said before any runs."""
    loaded = {target: load_model(target, model) for target in targets}
    cards = {target: card for target, (_, card) in loaded.items()}
    check_calibrated(cards, restore_power=restore_power, uncertainty=uncertainty)
    for network, card in loaded.values():
        if not allow_mismatch:
            check_box(observed, card, network.coarsest)
    theory = {name for network, _ in loaded.values() for name in network.inputs}
    if theory & {"linear_velocity"} - set(observed):
        cosmology_of(observed).require_power()
    return loaded


def targets_of(model: str | Path) -> list[str]:
    """What a model has networks for: density and velocity always, and perhaps momentum."""
    own = (model_folder(model) / "momentum.json").is_file()
    return ["density", "velocity", *(["momentum"] if own else [])]


def check_calibrated(cards: Mapping[str, Card], *, restore_power: bool, uncertainty: bool) -> None:
    """Raise unless the cards hold what is asked for."""
    for target, card in cards.items():
        if restore_power or (uncertainty and target != "momentum"):
            calibration.calibration(card)


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
    named = label(model.target, data if len(data) == 3 else data[0], grid, facts)
    return named.assign_attrs(
        model=card["name"],
        weights_digest=card["weights_digest"],
        precision=precision,
        symmetries=options["symmetries"],
    )


def steps(
    loaded: Mapping[str, Loaded],
    observed: xr.Dataset,
    options: dict[str, Any],
    known: Mapping[str, xr.DataArray] | None = None,
) -> dict[str, xr.DataArray]:
    """What the networks make of a box, each in turn of what those before it made, as it is.

    ``known``: fields that are there instead of a network's.
    """
    made: dict[str, xr.DataArray] = {}
    theory: list[tuple[dict[str, Any], dict[str, xr.DataArray]]] = []
    for target, (network, card) in loaded.items():
        mine = linear_options(network.inputs, card["linear_bias"])
        # Of the same halos two networks see the same linear theory: it is made once.
        shared = next((fields for its, fields in theory if same_theory(its, mine)), None)
        if shared is None:
            wanted = {*network.inputs} - {*observed}
            shared = linear_inputs(observed, wanted, card["linear_bias"])
            theory.append((mine, shared))
        fields = {**(known or {}), **made, **shared}
        made[target] = _predict((network, card), observed, fields, options)
    return made


def together(
    made: Mapping[str, xr.DataArray], observed: xr.Dataset, cards: Mapping[str, Card]
) -> xr.Dataset:
    """Density, velocity and momentum as they are handed out, from what the networks made.

    The density is recalibrated, after the networks that see it; without a network for it the
    momentum is the product.
    """
    velocity = made["velocity"]
    symmetries = velocity.attrs["symmetries"]
    density = calibration.recalibrate(made["density"], cards["density"], symmetries=symmetries)
    what = f"predict: {listing(map(cited, cards.values()))}"
    if "momentum" in made:
        facts = {**box_facts(density), "space": "real"}
        return derived(
            {"density": density, "velocity": velocity, "momentum": made["momentum"]},
            observed,
            what,
            **facts,
        )
    fields = as_dataset(density, velocity, observed, what)
    fields["momentum"].attrs.update(
        {key: velocity.attrs[key] for key in ("precision", "symmetries")},
        **{
            key: f"{density.attrs[key]} x {velocity.attrs[key]}"
            for key in ("model", "weights_digest")
        },
    )
    return fields


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
    model : name of a model that ships (:func:`~cosmofields.models`), or path
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
        ``density`` = 1 + delta, positive; lazy if ``observed`` is.  Where the model's card has a
        table for it, the mean of the true density is made of what the network says, and the
        attribute ``recalibrated`` says so; see :mod:`~cosmofields.calibration`.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    loaded = _load(observed, model, ["density"], allow_mismatch, restore_power=restore_power)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    density, card = steps(loaded, observed, options)["density"], loaded["density"][1]
    density = calibration.recalibrate(density, card, symmetries=symmetries)
    if restore_power:
        return calibration.restore(density, card, symmetries=symmetries)
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

    Its further inputs are made on the way: the density by the network of step one unless
    ``observed`` holds ``density``, of which recalibration is taken back, and the filtered linear
    velocity with the bias that the model carries unless it holds ``linear_velocity``.

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
    loaded = _load(observed, model, targets, allow_mismatch, restore_power=restore_power)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    fields: dict[str, xr.DataArray] = {}
    if "density" in observed:
        density = variable(observed, "density")
        if "recalibrated" in density.attrs:
            # A model may have no density network: then this density is another's, and stays.
            card = load_cards(model).get("density", {})
            over = density.attrs.get("symmetries", symmetries)
            density = calibration.network_density(density, card, symmetries=over)
        fields["density"] = density
    velocity = steps(loaded, observed, options, fields)["velocity"]
    if restore_power:
        return calibration.restore(velocity, loaded["velocity"][1], symmetries=symmetries)
    return velocity


def predict_momentum(
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
    """Real-space matter momentum from the halos of a redshift-space box (step three).

    Of a network of its own, where the model has one; else the product of density and velocity,
    which lacks the covariance of their errors.  The attribute ``model`` says which.

    Parameters
    ----------
    observed, model, tile, device, precision, symmetries, restore_power, allow_mismatch, progress
        As in :func:`predict_density`.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``momentum`` in km/s; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    targets = targets_of(model)
    if "momentum" in targets:
        sees = load_model("momentum", model)[0].inputs
        targets = [target for target in targets if target in (*sees, "momentum")]
    loaded = _load(observed, model, targets, allow_mismatch, restore_power=restore_power)
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    made = steps(loaded, observed, options)
    cards = {target: card for target, (_, card) in loaded.items()}
    if "momentum" in made:
        momentum = made["momentum"]
    else:
        momentum = together(made, observed, cards)["momentum"]
    if restore_power:
        return calibration.restore(momentum, cards[targets[-1]], symmetries=symmetries)
    return momentum


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
        As in :func:`predict_density`.  With ``restore_power`` each field is restored on its own:
        then no momentum is the product of the others.
    uncertainty : bool
        Add the predicted standard deviations ``density_error`` and ``velocity_error`` of each cell;
        see :func:`~cosmofields.calibration.interval`.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``velocity`` and ``momentum`` in km/s; the momentum as by
        :func:`predict_momentum`; lazy if ``observed`` is.

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
    loaded = _load(
        observed,
        model,
        targets_of(model),
        allow_mismatch,
        restore_power=restore_power,
        uncertainty=uncertainty,
    )
    cards = {target: card for target, (_, card) in loaded.items()}
    options = {
        "tile": tile,
        "device": device,
        "precision": precision,
        "symmetries": symmetries,
        "progress": progress,
    }
    fields = together(steps(loaded, observed, options), observed, cards)
    if restore_power:
        return restored(fields, cards, symmetries)
    return fields.assign(errors(fields["density"], cards, symmetries)) if uncertainty else fields


def restored(fields: xr.Dataset, cards: Mapping[str, Card], symmetries: int) -> xr.Dataset:
    """Density, velocity and momentum of a Dataset with their power restored."""
    own = "momentum" if "momentum" in cards else "velocity"
    by = {"density": "density", "velocity": "velocity", "momentum": own}
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
