"""Which halos of a catalogue, in which mass bins, and where they are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..conventions import (
    AXES,
    CatalogError,
    MissingVariableError,
    box_lengths,
    check_los,
    is_lazy,
    listing,
    step,
)
from ..cosmology import cosmology_of, redshift_of
from ..lazy import log
from ..zoo import TOLERANCE, advice
from .making import check_masses, check_positions, row_dim, velocity_of, wrap

# The paper's four mass bins, by cumulative number density in (h/Mpc)^3.
NUMBER_DENSITY = (1e-4, 1e-3, 2e-3, 3e-3)
# Mpc/h: the side below which a box holds hardly any halo.
SMALLEST = 5.0


def select(
    halos: xr.Dataset,
    number_density: Sequence[float] = NUMBER_DENSITY,
    *,
    seed: int = 0,
) -> xr.Dataset:
    """The most massive halos, cut and binned by cumulative number density.

    Masses come in steps of the particle mass and files are ordered in space, so halos of equal mass
    are ranked at random: a plain cut would tilt the density across the box.

    Parameters
    ----------
    halos : Dataset
        Catalogue with ``mass``.  For a single bin it may lack masses: then that many of its halos
        are chosen at random, which stand for the heaviest if the catalogue is of these alone.
    number_density : sequence of float
        Cumulative number densities in (h/Mpc)^3, rising; bin i holds the halos between the
        (i-1)-th and the i-th, the heaviest first.  Default: the paper's four bins.
    seed : int
        Of the random ranking of equal masses.

    Returns
    -------
    Dataset
        The selected halos, heaviest first, with ``mass_bin`` (halo): 0 is the heaviest bin.

    Raises
    ------
    CatalogError
        If the catalogue has too few halos, a bin would be empty, masses are no masses in Msun/h, or
        the seed is no whole number.
    MissingVariableError, MissingAttributeError
        If there are no masses for several bins, or no box size.
    """
    dim = row_dim(halos)
    has_mass = "mass" in halos
    if not (isinstance(seed, int | np.integer) and seed >= 0):
        raise CatalogError(
            f"seed={seed!r}; expected a whole number, at least 0, so that the selection can be "
            "repeated"
        )
    edges = np.asarray(number_density, dtype=float)
    rising = edges.ndim == 1 and edges.size > 0 and (np.diff(edges, prepend=0.0) > 0).all()
    if not (rising and np.isfinite(edges[-1])):
        raise CatalogError(
            f"number_density={number_density!r}; expected rising cumulative densities in "
            f"(h/Mpc)^3, e.g. {list(NUMBER_DENSITY)}"
        )
    volume = float(np.prod(box_lengths(halos)))
    ranks = np.rint(edges * volume).astype(int)
    n = halos.sizes[dim]
    if edges.size > 1 and not has_mass:
        raise MissingVariableError(
            f"No `mass` in this catalogue; halos are ranked by it into {edges.size} bins (one bin "
            f"needs none). {advice(n / volume, masses=False)}"
        )
    if ranks[-1] > n:
        # Rounded down, that no halo more is asked for.
        whole = math.floor(n / volume * 1e6) / 1e6
        nearly = whole >= (1 - TOLERANCE) * edges[-1] and whole > np.append(0, edges)[-2]
        fewer = [*edges[:-1].tolist(), whole]
        raise CatalogError(
            f"number_density={edges[-1]:g} (h/Mpc)^3 needs {ranks[-1]} halos in {volume:g} "
            f"(Mpc/h)^3; the catalogue has {n}, that is {n / volume:.3g} (h/Mpc)^3 if box_size is "
            "in Mpc/h. "
            + (
                f"Nearly enough: select(number_density={fewer}) is within the {TOLERANCE:.0%} that "
                f"models allow (in the shell: --number-density {' '.join(map(str, fewer))})"
                if nearly
                else advice(n / volume, masses=has_mass)
            )
        )
    counts = np.diff(ranks, prepend=0)
    if (counts == 0).any():
        raise CatalogError(
            f"Mass bin {int(np.argmin(counts))} is empty: number_density={listing(edges)} times "
            f"the volume {volume:g} (Mpc/h)^3 gives {listing(counts)} halos a bin. "
            + (
                "No box in Mpc/h is so small: of Gpc/h, multiply positions and box_size by 1000"
                if volume < SMALLEST**3
                else "A larger box is needed, or fewer bins"
            )
        )
    if not has_mass and n > (1 + TOLERANCE) * ranks[-1]:
        log.warning(
            "select: %d of %d halos, at random, for there are no masses to rank them by: the "
            "catalogue has %.3g (h/Mpc)^3, and %g were asked for. A random choice is less biased "
            "than the heaviest halos, of which a model learns: where something stands for mass, "
            "cut the catalogue by it, or give it as `mass`",
            ranks[-1],
            n,
            n / volume,
            edges[-1],
        )
    order = np.random.default_rng(seed).permutation(n)
    if has_mass:
        mass = halos["mass"].values
        check_masses(mass)
        order = order[np.argsort(-mass[order], kind="stable")]
    order = order[: ranks[-1]]
    chosen = halos.isel({dim: order})
    chosen["mass_bin"] = (
        dim,
        np.repeat(np.arange(len(counts), dtype=np.int8), counts),
        {"long_name": "mass bin, 0 the heaviest"},
    )
    how = "" if has_mass else ", at random"
    return chosen.assign_attrs(
        number_density=[float(edge) for edge in edges],
        selection_seed=int(seed),
        history=step(halos, f"select: {ranks[-1]} of {n} halos{how}")["history"],
    )


def to_redshift_space(catalog: xr.Dataset, los: str = "z") -> xr.Dataset:
    """Shift positions along ``los`` by their peculiar velocity: s = r + v_los / (a H).

    Parameters
    ----------
    catalog : Dataset
        In real space, with ``position`` in comoving Mpc/h and ``velocity`` in km/s.
    los : {"x", "y", "z"}
        Line of sight, one for the whole box (plane-parallel).

    Returns
    -------
    Dataset
        With ``position`` wrapped into the box and attributes ``space="redshift"``, ``los``; lazy if
        ``catalog`` is.

    Raises
    ------
    CatalogError
        If the catalogue is in redshift space already, or positions lie outside the box (of a lazy
        catalogue, when they are computed).
    MissingVariableError, MissingAttributeError
        If velocities, box size, redshift or cosmology are missing.
    """
    dim = row_dim(catalog)
    axis = AXES.index(check_los(los))
    if catalog.attrs.get("space") == "redshift":
        raise CatalogError(
            f"The catalogue is in redshift space already (los={catalog.attrs.get('los')!r}): "
            "leave to_redshift_space out"
        )
    lengths = box_lengths(catalog)
    rate = float(cosmology_of(catalog).aH(redshift_of(catalog)))
    velocity = velocity_of(catalog, "to_redshift_space")
    position = catalog["position"].transpose(dim, "component")
    data, speed = position.data, velocity.data[:, axis]
    if is_lazy(position, velocity):
        data = da.asarray(data).rechunk({1: -1})
        speed = da.asarray(speed).rechunk({0: data.chunks[0]})[:, None]
        shifted = da.map_blocks(
            _shift, data, speed, axis, rate, lengths, dtype=np.float32, meta=data._meta
        )
    else:
        shifted = _shift(data, speed[:, None], axis, rate, lengths)
    moved = catalog.assign(position=position.copy(data=shifted))
    return moved.assign_attrs(
        {**step(catalog, f"to_redshift_space: los={los}"), "space": "redshift", "los": los}
    )


def _shift(
    position: NDArray[Any], speed: NDArray[Any], axis: int, rate: float, lengths: Sequence[float]
) -> NDArray[np.float32]:
    # Wrapping would hide positions that never belonged to this box.
    check_positions(position, lengths)
    shifted = position.astype(np.float64)
    shifted[:, axis] += speed[:, 0] / rate
    return wrap(shifted, lengths)
