"""Density, velocity and momentum of a box by a saved model, and how wrong they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from .. import calibration, engine
from ..calibration import Card
from ..conventions import (
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
RESTORED = ("density", "velocity", "momentum")


def _load(
    observed: xr.Dataset,
    model: str | Path,
    targets: Sequence[str],
    there: Mapping[str, Loaded],
    allow_mismatch: bool,
    restored: Sequence[str],
    uncertainty: bool,
) -> dict[str, Loaded]:
    """The models and their cards, by target; all that may be missing is said before any runs."""
    loaded = {target: there.get(target) or load_model(target, model) for target in targets}
    cards = {target: card for target, (_, card) in loaded.items()}
    check_calibrated(cards, restored=restored, uncertainty=uncertainty)
    for network, card in loaded.values():
        if not allow_mismatch:
            check_box(observed, card, network.coarsest)
    theory = {name for network, _ in loaded.values() for name in network.inputs}
    if theory & {"linear_velocity"} - set(observed):
        cosmology_of(observed).require_power()
    return loaded


def _make(
    observed: xr.Dataset,
    model: str | Path,
    targets: Sequence[str],
    *,
    allow_mismatch: bool,
    restored: Sequence[str] = (),
    uncertainty: bool = False,
    known: Mapping[str, xr.DataArray] | None = None,
    there: Mapping[str, Loaded] | None = None,
    **options: Any,
) -> tuple[dict[str, xr.DataArray], dict[str, Card]]:
    """What the networks of these targets make of a box, as it is, and their cards.

    ``restored``: fields whose power will be.  ``known``: as in :func:`steps`.  ``there``: networks
    that are loaded already.
    """
    loaded = _load(observed, model, targets, there or {}, allow_mismatch, restored, uncertainty)
    cards: dict[str, Card] = {target: card for target, (_, card) in loaded.items()}
    return steps(loaded, observed, options, known), cards


def targets_of(model: str | Path) -> list[str]:
    """What a model has networks for: density and velocity always, and perhaps momentum."""
    own = (model_folder(model) / "momentum.json").is_file()
    return ["density", "velocity", *(["momentum"] if own else [])]


def check_calibrated(
    cards: Mapping[str, Card], *, restored: Sequence[str] = (), uncertainty: bool = False
) -> None:
    """Raise unless the cards hold what it takes to restore these fields, and the errors."""
    for name in restored:
        calibration.restoration(name, cards[_restorer(name, cards)])
    if uncertainty:
        for target in ("density", "velocity"):
            calibration.calibration(cards[target])


def _restorer(name: str, cards: Mapping[str, Card]) -> str:
    """Whose card has the power of a field: the product's is in that of the velocity."""
    return name if name in cards else "velocity"


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
    made, cards = _make(
        observed,
        model,
        ["density"],
        restored=["density"] if restore_power else [],
        allow_mismatch=allow_mismatch,
        tile=tile,
        device=device,
        precision=precision,
        symmetries=symmetries,
        progress=progress,
    )
    density = calibration.recalibrate(made["density"], cards["density"], symmetries=symmetries)
    if restore_power:
        return calibration.restore(density, cards["density"], symmetries=symmetries)
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
    fields: dict[str, xr.DataArray] = {}
    if "density" in observed:
        density = variable(observed, "density")
        if "recalibrated" in density.attrs:
            # A model may have no density network: then this density is another's, and stays.
            card = load_cards(model).get("density", {})
            over = density.attrs.get("symmetries", symmetries)
            density = calibration.network_density(density, card, symmetries=over)
        fields["density"] = density
    made, cards = _make(
        observed,
        model,
        ["velocity"] if "density" in observed else ["density", "velocity"],
        restored=["velocity"] if restore_power else [],
        known=fields,
        allow_mismatch=allow_mismatch,
        tile=tile,
        device=device,
        precision=precision,
        symmetries=symmetries,
        progress=progress,
    )
    if restore_power:
        return calibration.restore(made["velocity"], cards["velocity"], symmetries=symmetries)
    return made["velocity"]


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
    there = {}
    if "momentum" in targets:
        there["momentum"] = load_model("momentum", model)
        sees = there["momentum"][0].inputs
        targets = [target for target in targets if target in (*sees, "momentum")]
    made, cards = _make(
        observed,
        model,
        targets,
        restored=["momentum"] if restore_power else [],
        there=there,
        allow_mismatch=allow_mismatch,
        tile=tile,
        device=device,
        precision=precision,
        symmetries=symmetries,
        progress=progress,
    )
    momentum = made["momentum"] if there else together(made, observed, cards)["momentum"]
    if restore_power:
        card = cards[_restorer("momentum", cards)]
        return calibration.restore(momentum, card, symmetries=symmetries)
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
        see :func:`~cosmofields.calibration.interval`.  Also with ``restore_power`` they are those
        of the mean fields: restored ones are further from the truth, by how much is not measured.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``velocity`` and ``momentum`` in km/s; the momentum as by
        :func:`predict_momentum`; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    made, cards = _make(
        observed,
        model,
        targets_of(model),
        restored=RESTORED if restore_power else (),
        uncertainty=uncertainty,
        allow_mismatch=allow_mismatch,
        tile=tile,
        device=device,
        precision=precision,
        symmetries=symmetries,
        progress=progress,
    )
    fields = together(made, observed, cards)
    beside = errors(fields["density"], cards, symmetries) if uncertainty else {}
    if restore_power:
        fields = restored(fields, cards, symmetries)
    return fields.assign(beside)


def restored(fields: xr.Dataset, cards: Mapping[str, Card], symmetries: int) -> xr.Dataset:
    """Density, velocity and momentum of a Dataset with their power restored."""
    return fields.assign(
        {
            name: calibration.restore(
                fields[name], cards[_restorer(name, cards)], symmetries=symmetries
            )
            for name in RESTORED
        }
    )


def errors(
    density: xr.DataArray, cards: Mapping[str, Card], symmetries: int
) -> dict[str, xr.DataArray]:
    """``density_error`` and ``velocity_error`` of what was predicted along with a density."""
    of_density = calibration.density_error(density, cards["density"], symmetries=symmetries)
    of_velocity = calibration.velocity_error(density, cards["velocity"], symmetries=symmetries)
    return {"density_error": of_density, "velocity_error": of_velocity}
