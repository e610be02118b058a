"""Clustering of several catalogues of one box, e.g. in redshift space, moved back and in truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from .catalog import check_catalog
from .conventions import (
    CONVENTIONS,
    CatalogError,
    GridMismatchError,
    MissingAttributeError,
    box_lengths,
    check_los,
    listing,
    make_grid,
)
from .correlation import correlations
from .cosmology import cosmology_of, redshift_of
from .lazy import fits
from .painting import paint
from .spectral import multipoles

# What a sample has of its own; the bins and what is in them are common to all.
_SAMPLE = ("power", "xi", "xi_2d")


def clustering(
    catalogs: Mapping[str, xr.Dataset],
    *,
    n_grid: int | Sequence[int] = 256,
    los: str | None = None,
    edges: ArrayLike | None = None,
    k_edges: ArrayLike | None = None,
    r_perp: ArrayLike | None = None,
    r_par: ArrayLike | None = None,
) -> xr.Dataset:
    """Multipoles of the power, and correlation functions, of several catalogues about one axis.

    Meant for the same tracers in redshift space, moved back by
    :func:`~cosmofields.sampling.to_real_space`, and in real space.  Each tracer counts 1, whatever
    its mass or mass bin, and the window of the mesh is taken out: for the power from an interlaced
    mesh with ``window="cic"``, for the correlation functions from a plain one with
    ``window="cic-aliased"``, which puts all shot noise back to r = 0.

    Parameters
    ----------
    catalogs : mapping of label to catalogue
        Of one periodic box at one time, e.g.
        ``{"redshift space": s, "moved back": r, "real space": true}``.
    n_grid : int or three
        Cells per axis of the mesh that the tracers are painted on.
    los : {"x", "y", "z"}, optional
        Line of sight, also for catalogues in real space.  Default: that of the catalogues which
        have one.
    edges, r_perp, r_par : arrays, optional
        Edges of the bins of separation in Mpc/h, as in
        :func:`~cosmofields.correlation.correlations`.
    k_edges : array, optional
        Edges of the bins of wavenumber in h/Mpc, as in :func:`~cosmofields.spectral.multipoles`.

    Returns
    -------
    Dataset, dim sample
        ``power`` (sample, ell, k) in (Mpc/h)^3, with its ``shot_noise`` (sample), which is not
        taken out; ``xi`` (sample, ell, r) and ``xi_2d`` (sample, r_perp, r_par); ``modes``,
        ``k_mean`` (k), ``pairs``, ``r_mean`` (r), ``pairs_2d`` (r_perp, r_par); the coordinate
        ``sample`` holds the labels, the others are those of the two functions above.

    Raises
    ------
    CatalogError
        If there is no catalogue, or they come without labels, or disagree about the line of sight
        or the cosmology.
    GridMismatchError
        If they live in boxes of different sizes, or at different redshifts.
    MissingAttributeError
        If neither ``los`` nor a catalogue names a line of sight.
    DimensionError, NotPeriodicError, CatalogError
        As :func:`~cosmofields.painting.paint`, :func:`~cosmofields.spectral.multipoles` and
        :func:`~cosmofields.correlation.correlations`.

    Notes
    -----
    Eager; one catalogue after the other, and one mesh at a time.

    Trust xi from about five cells up.  A bin has the separations of nodes, over which CIC spreads
    the tracers, and a steep xi is off by that: against counts of all pairs of 81,000 halos of one
    box, in redshift and real space (cells of 1.17 Mpc/h, default bins), xi_0 is 10 to 13 % low
    from 0.5 to 2.5 cells, 4 % from 2.5 to 4.5, 1.5 % from 4.5 to 6.5, and 0.8 % or less beyond;
    xi_2 is off by 0.17, 0.02, 0.007 and 0.004 or less, xi_4 by 2.6, 0.15, 0.02 and 0.009 or less.
    What is at fewer cells needs a finer mesh.  Points at random have no such bias.
    """
    listed = isinstance(catalogs, Mapping) and not isinstance(catalogs, xr.Dataset)
    if not (listed and catalogs and all(isinstance(c, xr.Dataset) for c in catalogs.values())):
        raise CatalogError(
            f"catalogs is a {type(catalogs).__name__}; expected labels and their catalogues: "
            "clustering({'redshift space': tracers, ...})"
        )
    for catalog in catalogs.values():
        check_catalog(catalog)
    _check_boxes(catalogs)
    axis = _common_los(catalogs, los)
    parts = []
    for catalog in catalogs.values():
        poles = multipoles(
            _density(catalog, n_grid, interlaced=True), edges=k_edges, los=axis, window="cic"
        )
        # Of an interlaced mesh the even aliases of the shot noise remain.  In the power they are
        # little below Nyquist; divided by the window near it they ring in xi up to five cells.
        pairs = correlations(
            _density(catalog, n_grid, interlaced=False),
            edges=edges,
            r_perp=r_perp,
            r_par=r_par,
            los=axis,
            window="cic-aliased",
        )
        poles["power"].attrs |= {"window": "cic", "interlaced": 1}
        for name in ("xi", "xi_2d"):
            pairs[name].attrs |= {"window": "cic-aliased", "interlaced": 0}
        parts.append(poles.merge(pairs, compat="identical", combine_attrs="override"))
    first = next(iter(catalogs.values()))
    return _joined(list(map(str, catalogs)), parts).assign_attrs(
        title=f"clustering of {listing(catalogs)}",
        box_size=first.attrs["box_size"],
        redshift=first.attrs["redshift"],
        los=axis,
        n_grid=list(make_grid(n_grid, box_lengths(first)).shape),
        Conventions=CONVENTIONS,
    )


def _check_boxes(catalogs: Mapping[str, xr.Dataset]) -> None:
    sizes = {name: box_lengths(catalog) for name, catalog in catalogs.items()}
    first = next(iter(sizes.values()))
    if not all(np.allclose(size, first, rtol=1e-6) for size in sizes.values()):
        listed = listing(f"{name}: {catalogs[name].attrs['box_size']}" for name in catalogs)
        raise GridMismatchError(f"The catalogues live in different boxes ({listed} Mpc/h)")
    redshifts = {name: redshift_of(catalog) for name, catalog in catalogs.items()}
    if np.ptp(list(redshifts.values())) > 1e-4:
        listed = listing(f"{name}: {z:g}" for name, z in redshifts.items())
        raise GridMismatchError(
            f"The catalogues are at different redshifts ({listed}); expected tracers of one box "
            "at one time"
        )
    cosmologies = {name: cosmology_of(catalog).to_dict() for name, catalog in catalogs.items()}
    for key in ("Omega_m", "h", "Omega_b", "n_s", "sigma8"):
        given = {name: known[key] for name, known in cosmologies.items() if key in known}
        if given and np.ptp(list(given.values())) > 1e-4:
            listed = listing(f"{name}: {value:g}" for name, value in given.items())
            raise CatalogError(
                f"The catalogues have different cosmologies ({key} of {listed}); expected tracers "
                "of one universe"
            )


def _common_los(catalogs: Mapping[str, xr.Dataset], los: str | None) -> str:
    if los is not None:
        return check_los(los)
    found = {name: cat.attrs["los"] for name, cat in catalogs.items() if cat.attrs.get("los")}
    if not found:
        raise MissingAttributeError(
            "No catalogue names a line of sight; say it: clustering(..., los='z')"
        )
    if len(set(found.values())) > 1:
        listed = listing(f"{name}: {axis}" for name, axis in found.items())
        raise CatalogError(
            f"The catalogues have different lines of sight ({listed}); "
            "to measure all about one: clustering(..., los='z')"
        )
    return check_los(next(iter(found.values())))


def _density(catalog: xr.Dataset, n_grid: int | Sequence[int], *, interlaced: bool) -> xr.DataArray:
    """All tracers as one bin, by number; in memory if it fits."""
    one_bin = catalog.drop_vars("mass_bin", errors="ignore")
    painted = paint(one_bin, n_grid, weighting="number", interlaced=interlaced)
    field = painted["halo_density"].isel(mass_bin=0)
    return field.compute() if fits(field.nbytes, "clustering") else field


def _joined(labels: Sequence[str], parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """One Dataset of the samples' results, which share all their bins."""
    own = [*_SAMPLE, "shot_noise"]
    stacked = {
        name: xr.Variable(
            ("sample", *parts[0][name].dims),
            np.stack([part[name].values for part in parts]),
            parts[0][name].attrs,
        )
        for name in own
    }
    named = xr.Variable("sample", np.array(labels, dtype=object), {"long_name": "catalogue"})
    return (
        parts[0].drop_vars(own).drop_attrs(deep=False).assign(stacked).assign_coords(sample=named)
    )
