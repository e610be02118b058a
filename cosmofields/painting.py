"""From catalogues to fields: cloud-in-cell halo densities; density and momentum of matter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .catalog import check_catalog, check_finite, check_masses, check_positions, velocity_of
from .conventions import (
    CatalogError,
    Grid,
    MissingVariableError,
    box_facts,
    box_lengths,
    derived,
    label,
    make_grid,
)
from .lazy import n_threads, whole_box

WEIGHTINGS = ("mass", "number")


def paint(
    halos: xr.Dataset, n_grid: int | Sequence[int] = 128, *, weighting: str = "mass"
) -> xr.Dataset:
    """Cloud-in-cell density of the halos of each mass bin.

    Parameters
    ----------
    halos : Dataset
        Catalogue from :func:`~cosmofields.catalog.select` (without mass bins, all halos are one
        bin), in real or redshift space.
    n_grid : int or three
        Cells per axis (``Nmesh`` in nbodykit, ``grid`` in Pylians).
    weighting : {"mass", "number"}
        What a halo counts: its mass (the paper's "with M_halo weighting", so that a bin weighs in
        proportion to the mass in it), or 1.

    Returns
    -------
    Dataset
        ``halo_density`` (mass_bin, x, y, z), in units of the mean density of all bins together:
        its sum over ``mass_bin`` is 1 + delta_s.  Coordinates of ``mass_bin``: ``share`` of the
        total weight, ``shot_noise`` V sum w^2 / (sum w)^2 in (Mpc/h)^3.  Lazy if ``halos`` is.

    Raises
    ------
    CatalogError, MissingAttributeError, MissingVariableError, NotPeriodicError
        For something that is no catalogue, positions that are NaN or outside the box, an empty
        mass bin, or no masses in Msun/h to weigh by.

    Notes
    -----
    Masses and mass bins are read at once, for the coordinates; lazy positions are not, and are
    checked when the fields are computed.
    """
    dim = check_catalog(halos)
    if weighting not in WEIGHTINGS:
        raise CatalogError(f"weighting={weighting!r}; expected 'mass' or 'number'")
    if weighting == "mass" and "mass" not in halos:
        raise MissingVariableError(
            "weighting='mass' needs `mass` in the catalogue; or paint(..., weighting='number')"
        )
    grid = make_grid(n_grid, box_lengths(halos))
    n = halos.sizes[dim]
    weight = halos["mass"].values.astype(np.float64) if weighting == "mass" else np.ones(n)
    if weighting == "mass":
        check_masses(weight)
    binned = "mass_bin" in halos
    bins = halos["mass_bin"].values if binned else np.zeros(n, np.int8)
    edges = halos.attrs.get("number_density", ()) if binned else ()
    n_bins = max(len(edges), int(bins.max()) + 1)
    sums = np.bincount(bins, weight, n_bins)
    if (sums == 0).any():
        raise CatalogError(f"Mass bin {int(np.argmin(sums))} of {n_bins} is empty: select again")

    data = whole_box(
        partial(_halo_kernel, bins=bins, weight=weight, n_bins=n_bins, grid=grid),
        halos["position"].transpose(dim, "component").data,
        shape=(n_bins, *grid.shape),
    )
    share = sums / sums.sum()
    noise = grid.volume * np.bincount(bins, weight**2, n_bins) / sums**2
    attrs = {
        **box_facts(halos),
        "weighting": weighting,
        "resampler": "cic",
        **({"number_density": edges} if len(edges) else {}),
    }
    field = label("halo_density", data, grid, attrs)
    per_length = {"units": "(Mpc/h)^3", "long_name": "shot noise of the bin"}
    field = field.assign_coords(
        share=("mass_bin", share, {"units": "1", "long_name": "share of the total weight"}),
        shot_noise=("mass_bin", noise, per_length),
    )
    what = f"paint: n_grid={n_grid}, weighting={weighting}"
    return derived({"halo_density": field}, halos, what)


def _halo_kernel(
    position: NDArray[np.floating],
    bins: NDArray[np.integer],
    weight: NDArray[np.float64],
    n_bins: int,
    grid: Grid,
) -> NDArray[np.float32]:
    from .kernels.mesh import cic

    check_positions(position, grid.lengths)
    scaled = weight * (np.prod(grid.shape) / weight.sum())
    out = np.empty((n_bins, *grid.shape), np.float32)
    for i in range(n_bins):
        rows = bins == i
        out[i] = cic(
            position[rows],
            scaled[rows, None],
            grid.shape,
            grid.lengths,
            n_threads=n_threads(),
        )[0]
    return out


def paint_matter(particles: xr.Dataset, n_grid: int | Sequence[int] = 128) -> xr.Dataset:
    """Cloud-in-cell density, momentum and velocity of matter, from its particles.

    Parameters
    ----------
    particles : Dataset
        Catalogue of positions, peculiar velocities and (if they differ) masses.
    n_grid : int or three
        Cells per axis.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``momentum`` = sum m v / mean density = (1 + delta) v, and
        ``velocity`` = momentum / density, float32.  A velocity is undefined in a cell that no
        particle touches: it takes that of the nearest node that holds mass, and
        ``velocity.attrs["empty_cells"]`` counts such cells (not for lazy input).

    Raises
    ------
    CatalogError, MissingAttributeError, MissingVariableError, NotPeriodicError
        If ``particles`` is no catalogue, has no velocities, or holds values that are NaN or
        impossible (of lazy input, when the fields are computed).
    """
    dim = check_catalog(particles)
    velocity = velocity_of(particles, "paint_matter")
    grid = make_grid(n_grid, box_lengths(particles))
    mass = (particles["mass"].data,) if "mass" in particles else ()
    data = whole_box(
        partial(_matter_kernel, grid=grid),
        particles["position"].transpose(dim, "component").data,
        velocity.data,
        *mass,
        shape=(7, *grid.shape),
    )
    facts = {**box_facts(particles), "resampler": "cic"}
    counted = {"empty_cells": int((data[0] == 0).sum())} if isinstance(data, np.ndarray) else {}
    fields = {
        "density": label("density", data[0], grid, facts),
        "velocity": label("velocity", data[4:], grid, facts, **counted),
        "momentum": label("momentum", data[1:4], grid, facts),
    }
    return derived(fields, particles, f"paint_matter: n_grid={n_grid}")


def _matter_kernel(
    position: NDArray[np.floating],
    velocity: NDArray[np.floating],
    mass: NDArray[np.floating] | None = None,
    *,
    grid: Grid,
) -> NDArray[np.float32]:
    from .kernels.mesh import cic

    check_positions(position, grid.lengths)
    check_finite("velocity", velocity)
    if mass is not None:
        check_masses(mass)
    values = np.ones((len(position), 4), np.float32)
    values[:, 1:] = velocity
    if mass is not None:
        values *= mass[:, None] / np.mean(mass, dtype=np.float64)
    values *= np.prod(grid.shape) / len(position)
    out = np.empty((7, *grid.shape), np.float32)
    out[:4] = cic(position, values, grid.shape, grid.lengths, n_threads=n_threads())
    np.divide(out[1:4], out[0], out=out[4:], where=out[0] > 0)
    if (out[0] == 0).any():
        _fill_from_nearest(out[4:], out[0] > 0, grid)
    return out


def _fill_from_nearest(field: NDArray[np.float32], held: NDArray[np.bool_], grid: Grid) -> None:
    """Give the cells outside ``held`` the value of the nearest node inside it, periodically."""
    from scipy.spatial import cKDTree

    sources = np.argwhere(held)
    tree = cKDTree(sources * grid.cell_size, boxsize=grid.lengths)
    _, nearest = tree.query(np.argwhere(~held) * grid.cell_size)
    field[:, ~held] = field[(slice(None), *sources[nearest].T)]
