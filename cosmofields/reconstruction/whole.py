"""The whole way, from a catalogue to a store."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from rich.console import Console

from .. import stages
from ..catalog import UnitsWarning, doubts, row_dim, select
from ..consistency import FEWEST, compare_velocities
from ..conventions import CatalogError, box_lengths, variable
from ..cosmology import cosmology_of
from ..inference import check_box
from ..inference.fields import RESTORED, check_calibrated, targets_of
from ..linear import tracers
from ..painting import paint
from ..store import StorePath, open_store, place_of
from ..unet import FieldModel, load_model
from .doing import do, timed
from .jobs import COLUMNS, description, make_job, plan_of, template_of


def reconstruct(
    source: xr.Dataset,
    store: StorePath,
    *,
    n_grid: int | Sequence[int] | None = None,
    model: str | Path = "default",
    memory: str | int | None = None,
    device: str = "auto",
    precision: str = "auto",
    symmetries: int = 1,
    restore_power: bool = False,
    uncertainty: bool = False,
    allow_mismatch: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> xr.DataTree:
    """Reconstruct density, velocity and momentum from tracers, into a store, in stages.

    The stages (paint, linear theory, the networks one after the other) run out of core on
    whatever scheduler Dask has: threads, or the workers of the current ``distributed.Client``.
    What is done is on disk: a call that died, made again, goes on where it stopped.  With the same
    memory and the like workers its result has the bits of an undisturbed one; else it agrees to
    rounding.  A call whose result is whole only opens it.  One call at a time may write a store.

    Parameters
    ----------
    source : Dataset
        Catalogue in redshift space with ``mass`` (which a model of one bin by number does not
        need); without mass bins, those of the model are selected.  Or painted fields with
        ``halo_density``.
    store : path or URL
        Zarr store to write, or to go on with; workers must reach it.
    n_grid : int or three, optional
        Cells per axis; default: what comes nearest to the cell size of the model.
    model : name of a model that ships (:func:`~cosmofields.models`), or path
        Directory of saved models.
    memory : str or int, optional
        Bytes that one process may fill, e.g. ``"6 GB"``.  Default: half of what is free, or of a
        worker's limit.
    device, precision, symmetries, allow_mismatch
        As in :func:`~cosmofields.predict`.
    restore_power : bool
        Write the power-restored fields too, in a group of their own.
    uncertainty : bool
        Write the standard deviations of density and velocity too.
    storage_options : dict, optional
        Of an object store; see :func:`~cosmofields.open_store`.  They travel to the workers.
    progress : bool
        Print the plan, a bar for each stage and its time.
    console : rich.console.Console, optional
        Where to print; default standard error.

    Returns
    -------
    DataTree
        The store, opened lazily: groups ``halos`` (of a catalogue), ``observed``, ``linear``,
        ``reconstructed``, and ``restored`` if it was asked for.

    Raises
    ------
    StoreError
        If ``store`` holds something else, or the reconstruction of something else.
    CatalogError, ModelMismatchError, MissingVariableError, MissingAttributeError
        If the tracers are in real space, or do not suit the model; before anything is written.

    Warns
    -----
    UnitsWarning
        If the positions leave a part of the box empty.
    VelocityWarning
        If the tracers do not move as the field says: see :func:`~cosmofields.compare_velocities`.
    """
    say = console or Console(stderr=True, quiet=not progress)
    # Workers may stand in another directory.
    store = place_of(store, storage_options)
    budget = {} if memory is None else {"cosmofields.memory": memory}
    with dask.config.set(budget):
        models, cards = {}, {}
        for target in targets_of(model):
            models[target], cards[target] = load_model(target, model)
        check_calibrated(cards, restored=RESTORED if restore_power else (), uncertainty=uncertainty)
        halos, observed = _tracers(source, n_grid, cards["density"], models["density"])
        for target, network in models.items():
            if not allow_mismatch:
                check_box(observed, cards[target], network.coarsest)
        cosmology_of(observed).require_power()
        with stages.alone(store):
            job = make_job(
                observed,
                store,
                models,
                cards,
                device=device,
                precision=precision,
                symmetries=symmetries,
                restore_power=restore_power,
                uncertainty=uncertainty,
            )
            plan = plan_of(job, halos, observed)
            found = stages.state(store, plan)
            if found == "whole":
                say.print(f"{store} is whole already", markup=False, soft_wrap=True)
            else:
                if not say.quiet:
                    say.print(description(job, found))
                if found == "nothing":
                    with timed(say, "store: template, halos"):
                        template = template_of(job, halos, observed)
                        stages.create(
                            template, store, plan=plan, stages=job.counts, title=job.title
                        )
                for stage in job.counts:
                    do(job, stage, observed, say)
                stages.close(store, job.writers)
    tree = _opened(store)
    if found != "whole" and halos is not None and "velocity" in halos:
        _compare(halos, tree, say)
    return tree


def _compare(halos: xr.Dataset, tree: xr.DataTree, say: Console) -> None:
    """Say whether the tracers move as the field that was made of them."""
    moving = halos["velocity"].any(row_dim(halos)).all()
    if halos.sizes[row_dim(halos)] < FEWEST or not moving:
        return
    found = compare_velocities(halos, tree["reconstructed"].to_dataset())
    slope, r = (
        ", ".join(f"{value:.2f}" for value in found[name].values)
        for name in ("slope", "correlation_coefficient")
    )
    say.print(
        f"own velocities of the tracers, over those of the field: {slope} along x, y, z, where "
        f"1 is right (correlation {r})",
        highlight=False,
        soft_wrap=True,
    )


def _opened(store: StorePath) -> xr.DataTree:
    tree = open_store(store)
    assert isinstance(tree, xr.DataTree)
    return tree


def _tracers(
    source: xr.Dataset, n_grid: int | Sequence[int] | None, card: dict[str, Any], model: FieldModel
) -> tuple[xr.Dataset | None, xr.Dataset]:
    """Selected catalogue (None for painted fields), and the lazy halo fields."""
    if "halo_density" in source:
        field = variable(source, "halo_density")
        tracers(field)
        return None, source[["halo_density"]].assign(halo_density=field.astype(np.float32))
    dim = row_dim(source)
    if source.attrs.get("space") != "redshift":
        raise CatalogError(
            f"The catalogue has space={source.attrs.get('space')!r}; reconstruct needs tracers in "
            "redshift space: halos.recon.to_redshift_space(los='z') first, or from_arrays(..., "
            "los='z') for positions that are shifted already"
        )
    wanted = card["trained_for"]
    # Halos are few beside the cells, and ranked by mass they come from all over the file.
    halos = source[[name for name in COLUMNS if name in source]].compute()
    # Of all rows at once, which a chunk cannot tell; and of workers no warning comes back.
    position = halos["position"].transpose(dim, "component").values
    doubt = doubts("position", position, box_lengths(source), source.attrs, whole=True)
    if doubt:
        warnings.warn(doubt, UnitsWarning, stacklevel=3)
    if "mass_bin" not in halos:
        halos = select(halos, wanted["number_density"])
    if n_grid is None:
        n_grid = [
            model.coarsest * max(1, round(side / wanted["cell_size"] / model.coarsest))
            for side in box_lengths(source)
        ]
    # Lazy, for its coordinates and checks: what is painted is read from the store.
    return halos, paint(halos.chunk({dim: -1}), n_grid, weighting=wanted["weighting"])
