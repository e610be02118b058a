"""What is compared with what: versions of a universe by the names of their stores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from ..catalog import NUMBER_DENSITY, select, to_redshift_space
from ..comparison import COMPARED
from ..conventions import (
    AXES,
    CatalogError,
    MissingVariableError,
    StoreError,
    check_same_grid,
    listing,
)
from ..readers import open_box
from ..store import Place, open_store, options_for, place_of, root_attrs

PREDICTED, TRUE = "reconstructed", "true"


@dataclass
class Source:
    """One version of a universe, and those that lie beside it."""

    text: str
    group: str
    version: xr.Dataset
    beside: Mapping[str, xr.Dataset] = field(default_factory=dict)


def open_source(
    place: str | Path, default: str, storage_options: Mapping[str, Any] | None = None
) -> Source:
    """Open ``STORE``, ``STORE/GROUP`` or an HDF5 box.

    Parameters
    ----------
    place : path or URL
        A Zarr store, wherever :func:`~cosmofields.open_store` opens one; a group inside it; or a
        file that :func:`~cosmofields.readers.open_box` reads, of which this is the true fields.
    default : str
        The group to take of a whole store that has groups.
    storage_options : dict, optional
        Of URLs; see :func:`~cosmofields.open_store`.

    Raises
    ------
    StoreError
        If there is no such store, group or box; the message lists the groups that there are.
    """
    options = options_for(place, storage_options)
    if place_of(place, options).kind == "folder" and Path(place).is_file():
        halos, true = open_box(place)
        return Source(str(place), "", true, {"box": halos})
    root, group = _split(str(place), options)
    # Or its message, of what is not there or is no store.
    opened = open_store(root, storage_options=options)
    if isinstance(opened, xr.Dataset):
        if group:
            raise StoreError(f"No group {group!r} in the store '{root}': it has no groups")
        return Source(str(place), "", opened)
    group = group or default
    groups = {name: node.to_dataset() for name, node in opened.subtree_with_keys}
    groups = {name: ds for name, ds in groups.items() if name != "." and ds.variables}
    if group not in groups:
        raise StoreError(
            f"No group {group!r} in the store '{root}'; it has {listing(groups)}. "
            f"Name one: '{root}/GROUP'"
        )
    beside = {name: ds for name, ds in groups.items() if name != group}
    return Source(f"{root}/{group}", group, groups[group], beside)


def _split(place: str, options: Mapping[str, Any] | None) -> tuple[str, str]:
    """A store, and the group that a place is in it.

    The store is the outermost Zarr group of those above one another that hold the place.
    """
    scheme, url, rest = place.rpartition("://")
    start, rest = (scheme + url, rest) if url else ("", os.path.abspath(rest))
    parts = rest.rstrip("/").split("/")
    found = None
    for n in range(len(parts), 0, -1):
        above = start + "/".join(parts[:n])
        if above and _is_group(place_of(above, options)):
            found = n
        elif found is not None:
            break
    found = found or len(parts)
    return start + "/".join(parts[:found]), "/".join(parts[found:])


def _is_group(place: Place) -> bool:
    try:
        return root_attrs(place) is not None
    except StoreError:  # a server may have a page that says so for what it does not have
        return False


def gather(
    predicted: str | Path,
    true: str | Path,
    *,
    label: str | None = None,
    linear: str | Path | None = None,
    observed: str | Path | None = None,
    halos: str | Path | None = None,
    halos_true: str | Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of :func:`cosmofields.reporting.report` from names of stores.

    Parameters
    ----------
    predicted, true : path or URL
        See :func:`open_source`; a whole store gives its groups ``reconstructed`` and ``true``.
    label : str, optional
        Name of the prediction in tables and figures; by default that of its group.
    linear, observed, halos, halos_true : path or URL, optional
        More versions; by default the groups of these names beside the prediction, else beside the
        truth.  The halos of an HDF5 box are selected as those that were observed, and taken to
        redshift space.
    storage_options : dict, optional
        Of those that are URLs; see :func:`~cosmofields.open_store`.

    Raises
    ------
    StoreError
        As :func:`open_source`.
    MissingVariableError, GridMismatchError
        If the two have no field in common, or other grids.
    """
    chosen = open_source(predicted, PREDICTED, storage_options)
    truth = open_source(true, TRUE, storage_options)
    _check_comparable(chosen, truth)
    more: dict[str, xr.Dataset] = {}
    given = {"linear": linear, "observed": observed, "halos": halos, "halos_true": halos_true}
    for name, place in given.items():
        if place is not None:
            more[name] = open_source(place, name, storage_options).version
        else:
            found = [source.beside[name] for source in (chosen, truth) if name in source.beside]
            more.update({name: found[0]} if found else {})
    if "halos" not in more and "box" in truth.beside:
        los = chosen.version.attrs.get("los", "z")
        more.update(_halos_of_box(truth.beside["box"], los, more.get("observed")))
    # A catalogue of this name may be anything; what is asked for by name is checked further on.
    if halos is None and "halos" in more and more["halos"].attrs.get("space") != "redshift":
        del more["halos"]
    return {
        "predicted": {label or chosen.group or "prediction": chosen.version},
        "true": truth.version,
        **more,
    }


def _check_comparable(chosen: Source, truth: Source) -> None:
    for source in (chosen, truth):
        # A catalogue has a velocity too, but each halo's.
        fitting = [
            name
            for name, ds in source.beside.items()
            if "position" not in ds and any(key in ds for key in COMPARED)
        ]
        if "position" in source.version:
            root = source.text.removesuffix(f"/{source.group}")
            usual = [name for name in (PREDICTED, TRUE) if name in fitting] or fitting
            hint = f" Name one of fields, such as '{root}/{usual[0]}'" if usual else ""
            raise MissingVariableError(
                f"'{source.text}' is a catalogue, of {listing(source.version.data_vars)}; expected "
                f"fields, some of {listing(COMPARED)}.{hint}"
            )
        if not any(name in source.version for name in COMPARED):
            hint = f" Groups that do: {listing(fitting)}" if fitting else ""
            raise MissingVariableError(
                f"'{source.text}' holds {listing(source.version.data_vars)}, and none of "
                f"{listing(COMPARED)}.{hint}"
            )
    if not any(name in chosen.version and name in truth.version for name in COMPARED):
        raise MissingVariableError(
            f"Nothing to compare: '{chosen.text}' holds {listing(chosen.version.data_vars)}, "
            f"'{truth.text}' {listing(truth.version.data_vars)}; expected one of "
            f"{listing(COMPARED)} in both"
        )
    check_same_grid(chosen.version, truth.version)


def _halos_of_box(
    halos: xr.Dataset, los: str, observed: xr.Dataset | None
) -> dict[str, xr.Dataset]:
    """Tracers of a simulated box in redshift and in real space, if it has enough.

    Those that were observed; the paper's four bins where that is not on record.
    """
    seen = {} if observed is None or "halo_density" not in observed else observed.halo_density.attrs
    try:
        tracers = select(halos, seen.get("number_density", NUMBER_DENSITY))
    except (CatalogError, MissingVariableError):
        return {}
    axis = los if los in AXES else "z"
    return {"halos": to_redshift_space(tracers, axis), "halos_true": tracers}
