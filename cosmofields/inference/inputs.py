"""What a model sees of a box, and whether the box is one that it knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..conventions import (
    AXES,
    Grid,
    ModelMismatchError,
    check_same_grid,
    listing,
    periodic_grid,
    variable,
)
from ..cosmology import as_cosmology, cosmology_of, redshift_of
from ..linear import linear_theory, linear_velocity
from ..unet import load_cards, zoo
from ..zoo import TOLERANCE

Bias = float | Sequence[float]
# Linear fields that models see: the method of linear theory that makes each, and the entry of a
# card's `linear_bias` that it takes.
LINEAR = {
    "linear_velocity": ("wiener", "mass_bins"),
    "unfiltered_velocity": ("paper", "power_ratio"),
    "unfiltered_momentum": ("paper", "power_ratio"),
}
# Beyond this difference, as beyond TOLERANCE, a box is not what the model was trained for.
REDSHIFT_TOLERANCE = 0.05


def model_inputs(
    observed: xr.Dataset,
    names: Sequence[str],
    *,
    fields: Mapping[str, xr.DataArray] | None = None,
    bias: Mapping[str, Bias] | None = None,
) -> Any:
    """Input channels (channel, x, y, z) of a model, in the axes of the box.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``, and perhaps a ``linear_velocity`` that is made otherwise (the
        unfiltered fields of the paper, its eqs. 2 and 3, are always made of the halos).
    names : sequence of str
        The model's ``inputs``.
    fields : mapping of name to DataArray
        What is known: a ``density``, a ``velocity`` that earlier steps predicted, a linear field.
    bias : mapping
        The ``linear_bias`` of the model's card, for a linear field among the inputs: one a mass
        bin under ``mass_bins``, that of eq. 4 under ``power_ratio``.  What is not there is measured
        on the box, see :func:`~cosmofields.linear.linear_density`.

    Returns
    -------
    numpy or dask array, as ``observed`` is
    """
    known = {"halo_density": variable(observed, "halo_density"), **(fields or {})}
    if "linear_velocity" in names and "linear_velocity" in observed:
        known["linear_velocity"] = observed["linear_velocity"]
    known |= linear_inputs(observed, {*names} - {*known}, bias or {})
    arrays = [known[name].transpose(..., *AXES) for name in names]
    check_same_grid(*arrays)
    channels = [array.data if array.ndim == 4 else array.data[None] for array in arrays]
    return np.concatenate(channels) if len(channels) > 1 else channels[0]


def linear_inputs(
    observed: xr.Dataset, names: Iterable[str], bias: Mapping[str, Bias]
) -> dict[str, xr.DataArray]:
    """Those of the named fields that are linear theory's, made of the halos."""
    made = {}
    for name in LINEAR.keys() & {*names}:
        options = linear_options([name], bias)
        if name == "unfiltered_momentum":
            made[name] = linear_theory(observed, **options)["momentum"]
        else:
            made[name] = linear_velocity(observed, **options)
    return made


def linear_options(names: Sequence[str], bias: Mapping[str, Bias]) -> dict[str, Any]:
    """Options of :func:`~cosmofields.linear_theory` for the linear field among a model's inputs.

    Parameters
    ----------
    names : sequence of str
        The model's ``inputs``.
    bias : mapping
        The ``linear_bias`` of its card.

    Returns
    -------
    dict
        ``method`` and ``bias`` (None: to be measured); empty if the model sees no linear field.
    """
    for name in names:
        if name in LINEAR:
            method, entry = LINEAR[name]
            return {"method": method, "bias": bias.get(entry)}
    return {}


def same_theory(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results of :func:`linear_options` make one field, but for rounding."""
    if one.get("method") != other.get("method"):
        return False
    mine, its = (np.atleast_1d(options.get("bias") or []) for options in (one, other))
    return mine.shape == its.shape and np.allclose(mine, its, rtol=1e-5)


def check_box(observed: xr.Dataset, card: dict[str, Any], multiple: int = 4) -> None:
    """Refuse a box unlike those that the model was trained on.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``.
    card : dict
        Of the model.
    multiple : int
        Cells of the network's coarsest level, for the advice on ``n_grid``.

    Raises
    ------
    ModelMismatchError
        Naming every difference, a model that ships and fits, and how to overrule it.
    """
    try:
        wrong = _differences(observed, card["trained_for"], multiple)
    except (KeyError, TypeError, AttributeError) as error:  # a card that somebody else wrote
        raise ModelMismatchError(
            f"The card of the model {card['name']!r} does not say what it was trained for "
            f"({error!r}); expected trained_for with cell_size, number_density, redshift, "
            "cosmology, weighting and space. To use it all the same: allow_mismatch=True"
        ) from error
    if not wrong:
        return
    others = {name: load_cards(name)["density"] for name in zoo()}
    fitting = [
        f"model={name!r} (in the shell: --model {name})"
        for name, other in others.items()
        if not _differences(observed, other["trained_for"], multiple)
    ]
    advice = f"One that ships fits it: {' or '.join(fitting)}. " if fitting else ""
    if not fitting and any(one.startswith(("redshift", "f =", "aH =")) for one in wrong):
        advice = "Linear theory holds for any redshift and cosmology: linear_theory(). "
    raise ModelMismatchError(
        f"The model {card['name']!r} was not trained for this box: {'; '.join(wrong)}. {advice}"
        "To use it all the same: allow_mismatch=True (in the shell: predict --allow-mismatch)"
    )


def _differences(observed: xr.Dataset, wanted: dict[str, Any], multiple: int) -> list[str]:
    """What a box has otherwise than those that a model was trained for, and how to change it."""
    halos = variable(observed, "halo_density", hint="Paint a catalogue: halos.recon.paint().")
    grid = periodic_grid(halos, what="reconstruction")
    wrong = []
    cells = grid.cell_size
    if not np.allclose(cells, wanted["cell_size"], rtol=TOLERANCE):
        given = listing(dict.fromkeys(f"{side:.4g}" for side in cells))
        wrong.append(
            f"cell size {given} Mpc/h, trained for {wanted['cell_size']:.4g} "
            f"({_other_cells(grid, wanted['cell_size'], multiple)})"
        )
    density = list(halos.attrs.get("number_density") or [])
    select = f"select(number_density={wanted['number_density']})"
    if not density:
        wrong.append(f"halos that were not selected (before paint(): {select})")
    elif len(density) != len(wanted["number_density"]) or not np.allclose(
        density, wanted["number_density"], rtol=TOLERANCE
    ):
        wrong.append(
            f"cumulative number densities of the mass bins {density} (h/Mpc)^3, trained for "
            f"{wanted['number_density']} ({select}; in the shell: --number-density "
            f"{' '.join(map(str, wanted['number_density']))})"
        )
    z = redshift_of(halos)
    if abs(z - wanted["redshift"]) > REDSHIFT_TOLERANCE:
        wrong.append(
            f"redshift {z:g}, trained for {wanted['redshift']:g} (within {REDSHIFT_TOLERANCE:g})"
        )
    cosmology, trained = cosmology_of(halos), as_cosmology(wanted["cosmology"])
    for name in ("f", "aH"):
        here, there = (float(getattr(c, name)(z)) for c in (cosmology, trained))
        if abs(here / there - 1) > 2 * TOLERANCE:
            wrong.append(
                f"{name} = {here:.3g} at this redshift, {there:.3g} in the model's universe"
            )
    advice = {
        "weighting": f"paint(weighting={wanted['weighting']!r})",
        "space": "to_redshift_space() before paint(), or from_arrays(..., los='z')",
    }
    for key, how in advice.items():
        value = halos.attrs.get(key)
        if value != wanted[key]:
            wrong.append(f"{key} {value!r}, trained for {wanted[key]!r} ({how})")
    return wrong


def _other_cells(grid: Grid, wanted: float, multiple: int) -> str:
    """How a box gets cells of the wanted size, in Mpc/h."""
    size = max(grid.cell_size)
    if not 1e-2 < size / wanted < 1e2:
        how = "divide" if size > wanted else "multiply"
        return f"lengths are in Mpc/h: if these are not, {how} positions and box_size"
    nearest = [multiple * max(1, round(side / wanted / multiple)) for side in grid.lengths]
    right = listing(dict.fromkeys(nearest))
    return f"nearest: paint with n_grid = {right}; in the shell: --n-grid {right.replace(',', '')}"
