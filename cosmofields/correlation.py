"""Two-point correlation functions of periodic fields: xi(r), multipoles, xi(r_perp, r_par).

They come from the mesh, by one inverse transform of the cross power and one pass over its lags,
not from counts of pairs.  They need the whole periodic box, and are eager: a lazy field is computed
once; where that does not fit in memory, block by block, of which only the sums come back.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .conventions import (
    AXES,
    DimensionError,
    Grid,
    periodic_grid,
    result_facts,
)
from .fourier import through_modes
from .kernels import cells
from .lazy import n_threads
from .spectral import ELLS, check_ells, check_window, los_axis, not_finite, pair

if TYPE_CHECKING:
    from .kernels.separations import Bins, LagSums


def correlation_function(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    edges: ArrayLike | None = None,
    window: str | None = None,
) -> xr.Dataset:
    """Correlation function of a field, or of two: xi(r) = <f(x) g(x + r)> - <f> <g>.

    The mean runs over the cells x of the periodic box and over all separations r of grid nodes
    whose length lies in a bin.  Of vectors, the components are summed: <f(x).g(x + r)>.

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        Whole periodic box.
    other : DataArray, dims of ``field``, optional
        Second field on the same grid, both scalars or both vectors; default ``field`` itself.
    edges : array, optional
        Increasing edges of the bins in Mpc/h, to half of the shortest side at most; bin i holds
        edges[i] <= r < edges[i + 1].  Default: bins two cells wide, from half a cell (without r =
        0, where xi is the variance) to a third of the shortest side; of the sides of a cell the
        longest counts, in a flat box the longest that is shorter than half the box.
    window : {"cic", "cic-aliased"}, optional
        Divide the power by the squared window of cloud-in-cell, W^2 = prod sinc^4(k_i H_i / 2), or
        by the sum of W^2 over the aliases, prod (1 - 2/3 sin^2(k_i H_i / 2)) (Jing 2005), H_i the
        cell; default: leave the field as it is painted.

    Returns
    -------
    Dataset, dim r
        ``xi`` in (units of the fields)^2, the number of separations of grid nodes (``pairs``) and
        their mean length ``r_mean`` in Mpc/h; coordinates ``r`` (centres) and ``r_bounds``.  A bin
        without separations holds NaN.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError
        If the fields do not fit, or the edges are no edges, reach beyond half of the shortest side
        or hold no separation.
    CosmofieldsError
        If a field holds NaN or infinity, or the window is none of those named.

    Notes
    -----
    Eager.  The mean being that of the box, xi averages to zero over all separations.

    Separations are those of grid nodes.  Edges midway between multiples of the cell, as the
    default ones are, give each bin the nodes that it covers; others move it by up to half a cell.

    Mass assignment spreads each object over the nodes around it: the shot noise of r = 0 leaks to
    separations below two cells, and xi is smoothed at a few cells.  ``window`` undoes the
    smoothing.  Points, such as halos, want ``"cic-aliased"``, which puts all shot noise back to
    r = 0.  ``"cic"`` suits a smooth field: it amplifies what noise and aliases there are near the
    Nyquist frequency, in the power up to 6 times on each axis, and rings at separations of a few
    cells where that matters; trust it beyond three cells, in bins two or more cells wide.

    Examples
    --------
    >>> import numpy as np
    >>> from cosmofields.conventions import label, make_grid
    >>> grid = make_grid(16, [160.0] * 3)
    >>> x = np.arange(16) * 10.0
    >>> wave = np.cos(2 * np.pi * x / 160)[:, None, None] + np.zeros((16, 16, 16))
    >>> result = correlation_function(label("density", wave, grid, {"box_size": 160.0}))
    >>> result.xi.values.round(2)  # cos(2 pi r_x / 160) / 2 over all directions
    array([0.45, 0.34])
    """
    first, second = pair(field, field if other is None else other)
    grid = periodic_grid(first, what="correlation_function")
    bins = _bins(grid, 2, edges, plane=False)
    sums = _lag_sums(first, first if other is None else second, grid, bins, window)
    xi = _correlation(_poles(sums, (0,))[0], ("r",), first, second)
    return _dataset({"xi": xi, **_shell_counts(sums)}, bins, (first, second), grid, window)


def correlation_multipoles(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    ells: Sequence[int] = (0, 2, 4),
    edges: ArrayLike | None = None,
    los: str | None = None,
    window: str | None = None,
) -> xr.Dataset:
    """Multipoles of the correlation function: xi_l(r) = (2 l + 1) <L_l(mu) xi(r)> over directions.

    Plane-parallel, mu = r_los / r, L_l the Legendre polynomial; xi_0 is
    :func:`correlation_function`.  Over the separations of a bin the L_l are not quite orthogonal:
    where there are few, one multipole shows in another.

    Parameters
    ----------
    field, other, edges, window
        As in :func:`correlation_function`.
    ells : sequence of int
        Of 0, 2 and 4.
    los : {"x", "y", "z"}, optional
        Default: that of the fields' attributes.

    Returns
    -------
    Dataset, dims ell, r
        ``xi`` (ell, r) in (units of the fields)^2; ``pairs``, ``r_mean``, ``r`` and ``r_bounds`` as
        in :func:`correlation_function`.  The separation r = 0 adds to l = 0 alone.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`correlation_function`; or if ``ells`` or ``los`` are others than those
        named, or the fields have different lines of sight.
    MissingAttributeError
        If neither ``los`` nor the attributes name a line of sight.

    Notes
    -----
    Eager.  What :func:`correlation_function` says of small separations holds here too.

    References
    ----------
    Hamilton 1992, ApJ 385, L5.
    """
    first, second = pair(field, field if other is None else other)
    grid = periodic_grid(first, what="correlation_multipoles")
    wanted, axis = check_ells(ells), los_axis((first, second), los)
    bins = _bins(grid, axis, edges, plane=False)
    sums = _lag_sums(first, first if other is None else second, grid, bins, window)
    xi = _correlation(_poles(sums, wanted), ("ell", "r"), first, second)
    result = _dataset({"xi": xi, **_shell_counts(sums)}, bins, (first, second), grid, window)
    return result.assign_coords(ell=_ell(wanted)).assign_attrs(los=AXES[axis])


def correlation_2d(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    r_perp: ArrayLike | None = None,
    r_par: ArrayLike | None = None,
    los: str | None = None,
    window: str | None = None,
) -> xr.Dataset:
    """Correlation function across and along the line of sight: xi(r_perp, r_par).

    Parameters
    ----------
    field, other, window
        As in :func:`correlation_function`.
    r_perp, r_par : array, optional
        Increasing edges of the bins in Mpc/h, lower <= r < upper; to half of the shorter side
        across, or of the side along the line of sight, at most.  Default: to 40 Mpc/h, or as far as
        the box allows, two cells wide; r_perp from half a cell (without r = 0), r_par from 0, where
        the first bin is 1.5 cells wide and holds 0 and one cell.
    los : {"x", "y", "z"}, optional
        Default: that of the fields' attributes.

    Returns
    -------
    Dataset, dims r_perp, r_par
        ``xi`` in (units of the fields)^2 and the number of separations of grid nodes (``pairs``),
        both signs of r_par together; coordinates ``r_perp`` and ``r_par`` (centres) and
        ``r_perp_bounds`` and ``r_par_bounds``.  A bin without separations holds NaN.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`correlation_function`; or if ``los`` is none of those named, or the
        fields have different lines of sight.
    MissingAttributeError
        If neither ``los`` nor the attributes name a line of sight.

    Notes
    -----
    Eager.  What :func:`correlation_function` says of small separations holds here too.
    """
    first, second = pair(field, field if other is None else other)
    grid = periodic_grid(first, what="correlation_2d")
    axis = los_axis((first, second), los)
    bins = _bins(grid, axis, None, r_perp, r_par, shells=False)
    sums = _lag_sums(first, first if other is None else second, grid, bins, window)
    variables = _plane_variables(sums, "", first, second)
    result = _dataset(variables, bins, (first, second), grid, window)
    return result.assign_attrs(los=AXES[axis])


def correlations(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    ells: Sequence[int] = (0, 2, 4),
    edges: ArrayLike | None = None,
    r_perp: ArrayLike | None = None,
    r_par: ArrayLike | None = None,
    los: str | None = None,
    window: str | None = None,
) -> xr.Dataset:
    """All correlation functions at once, by one inverse transform and one pass over the lags.

    Equations and conventions are those of :func:`correlation_multipoles`, xi_l(r), and of
    :func:`correlation_2d`, xi(r_perp, r_par), with separations in Mpc/h.

    Parameters
    ----------
    field, other, edges, window
        As in :func:`correlation_function`.
    ells, los
        As in :func:`correlation_multipoles`.
    r_perp, r_par
        As in :func:`correlation_2d`.

    Returns
    -------
    Dataset
        ``xi`` (ell, r), ``pairs`` (r) and ``r_mean`` (r) of :func:`correlation_multipoles`;
        ``xi_2d`` and ``pairs_2d`` (r_perp, r_par), the ``xi`` and ``pairs`` of
        :func:`correlation_2d`; their coordinates.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError, MissingAttributeError
        As :func:`correlation_multipoles` and :func:`correlation_2d`.

    Notes
    -----
    Eager.  What :func:`correlation_function` says of small separations holds here too.
    """
    first, second = pair(field, field if other is None else other)
    grid = periodic_grid(first, what="correlations")
    wanted, axis = check_ells(ells), los_axis((first, second), los)
    bins = _bins(grid, axis, edges, r_perp, r_par)
    sums = _lag_sums(first, first if other is None else second, grid, bins, window)
    variables = {
        "xi": _correlation(_poles(sums, wanted), ("ell", "r"), first, second),
        **_shell_counts(sums),
        **_plane_variables(sums, "_2d", first, second),
    }
    result = _dataset(variables, bins, (first, second), grid, window)
    return result.assign_coords(ell=_ell(wanted)).assign_attrs(los=AXES[axis])


def _lag_sums(
    first: xr.DataArray, second: xr.DataArray, grid: Grid, bins: Bins, window: str | None
) -> LagSums:
    """Sums over the separations of each bin, of all components."""
    from .kernels.separations import bin_lags, lag_power, lag_sums

    fields = (first,) if first is second else (first, second)
    data = [part for field in fields for part in field.data.reshape(-1, *grid.shape)]
    power = partial(
        lag_power, parts=len(data) // len(fields), grid=grid, window=check_window(window)
    )
    (lags,) = through_modes(data, grid, [None], what="correlation function", combine=power)
    half = lags[:, :, : grid.shape[2] // 2 + 1]
    if isinstance(half, da.Array):
        starts = [np.cumsum((0, *sizes[:-1])).tolist() for sizes in half.chunks]
        add = partial(dask.delayed(bin_lags, pure=True), grid=grid, bins=bins)
        blocks = zip(half.to_delayed().ravel(), itertools.product(*starts), strict=True)
        total = np.sum(
            dask.compute(*(add(block, origin=origin) for block, origin in blocks)), axis=0
        )
    else:
        total = bin_lags(half, grid, bins, n_threads=n_threads())
    if not np.isfinite(total).all():
        raise not_finite(first, second)
    sums = lag_sums(total, bins)
    if not (sums.pairs.any() or sums.pairs_2d.any()):
        raise DimensionError(
            "The edges hold no separation of two nodes of this grid, whose cells are "
            f"{' x '.join(f'{cell:g}' for cell in grid.cell_size)} Mpc/h and whose shortest side "
            f"is {min(grid.lengths):g} Mpc/h: give wider bins"
        )
    return sums


# --- bins ---


def _bins(
    grid: Grid,
    axis: int,
    edges: ArrayLike | None = None,
    r_perp: ArrayLike | None = None,
    r_par: ArrayLike | None = None,
    *,
    shells: bool = True,
    plane: bool = True,
) -> Bins:
    """Bins as given, or else the default ones, of the kinds that are wanted."""
    from .kernels import separations

    r = perp = par = np.empty(0)
    if shells:
        given = separations.default_shells(grid) if edges is None else edges
        r = separations.check_separations(given, min(grid.lengths) / 2, "edges")
    if plane:
        across, along = separations.half_sides(grid, axis)
        given = separations.default_perp(grid, axis) if r_perp is None else r_perp
        perp = separations.check_separations(given, across, "r_perp")
        given = separations.default_par(grid, axis) if r_par is None else r_par
        par = separations.check_separations(given, along, "r_par")
    return separations.Bins(r, perp, par, axis)


# --- labelled ---


def _poles(sums: LagSums, ells: Sequence[int]) -> NDArray[np.float64]:
    """(2 l + 1) <xi L_l> of each bin."""
    poles = [(2 * ell + 1) * cells.ratio(sums.poles[ELLS.index(ell)], sums.pairs) for ell in ells]
    return np.stack(poles)


def _correlation(
    values: NDArray[np.float64], dims: tuple[str, ...], first: xr.DataArray, second: xr.DataArray
) -> xr.Variable:
    units = [str(field.attrs.get("units", "1")) for field in (first, second)]
    if units[0] == units[1]:
        text = "1" if units[0] == "1" else f"({units[0]})^2"
    else:
        text = " ".join(f"({unit})" for unit in units if unit != "1")
    names = dict.fromkeys(str(field.name or "field") for field in (first, second))
    title = f"correlation function of {' and '.join(names)}"
    return xr.Variable(dims, values, {"units": text, "long_name": title})


def _pairs(values: NDArray[np.int64], dims: tuple[str, ...]) -> xr.Variable:
    title = "separations of grid nodes in the bin"
    return xr.Variable(dims, values, {"units": "1", "long_name": title})


def _shell_counts(sums: LagSums) -> dict[str, xr.Variable]:
    r_mean = cells.ratio(sums.r, sums.pairs)
    return {
        "pairs": _pairs(sums.pairs, ("r",)),
        "r_mean": xr.Variable("r", r_mean, {"units": "Mpc/h", "long_name": "mean separation"}),
    }


def _plane_variables(
    sums: LagSums, suffix: str, first: xr.DataArray, second: xr.DataArray
) -> dict[str, xr.Variable]:
    dims = ("r_perp", "r_par")
    xi = _correlation(cells.ratio(sums.xi_2d, sums.pairs_2d), dims, first, second)
    return {f"xi{suffix}": xi, f"pairs{suffix}": _pairs(sums.pairs_2d, dims)}


def _ell(ells: Sequence[int]) -> xr.Variable:
    return xr.Variable("ell", list(ells), {"units": "1", "long_name": "multipole"})


def _dataset(
    variables: dict[str, xr.Variable],
    bins: Bins,
    fields: tuple[xr.DataArray, xr.DataArray],
    grid: Grid,
    window: str | None,
) -> xr.Dataset:
    """Dataset of ``variables`` with the coordinates of its bins."""
    coords: dict[Hashable, Any] = {}
    for name, edges, what in (
        ("r", bins.r, "separation"),
        ("r_perp", bins.perp, "separation across the line of sight"),
        ("r_par", bins.par, "separation along the line of sight"),
    ):
        if edges.size:
            coords[name] = (
                name,
                (edges[:-1] + edges[1:]) / 2,
                {
                    "units": "Mpc/h",
                    "long_name": f"{what}, centre of the bin",
                    "bounds": f"{name}_bounds",
                },
            )
            coords[f"{name}_bounds"] = (
                (name, "bound"),
                np.stack([edges[:-1], edges[1:]], axis=1),
                # Without units: says CF, they are those of what they bound, and NetCDF drops them.
                {"long_name": "edges of the bin: lower <= r < upper"},
            )
    facts = {**result_facts(*fields), "n_grid": list(grid.shape)}
    return xr.Dataset(
        variables, coords=coords, attrs=facts | ({"window": window} if window else {})
    )
