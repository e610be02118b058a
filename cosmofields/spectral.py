"""Spectra of periodic fields: power, ratios of two spectra, multipoles about a line of sight.

They need the whole periodic box, and are eager: a lazy field is computed once, in one task or,
where that does not fit, by strips of its modes, of which only the sums come back.  Sums run in
float64, in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .conventions import (
    AXES,
    CosmofieldsError,
    DimensionError,
    Grid,
    attribute,
    box_facts,
    canonical,
    check_los,
    check_same_grid,
    periodic_grid,
)
from .fourier import sum_modes
from .kernels import cells

if TYPE_CHECKING:
    from .kernels.spectra import ModeSums, PoleSums

# Coefficients of 1, mu^2, mu^4 in the Legendre polynomials.
_LEGENDRE = {0: (1.0, 0.0, 0.0), 2: (-1 / 2, 3 / 2, 0.0), 4: (3 / 8, -30 / 8, 35 / 8)}


def power_spectrum(
    field: xr.DataArray, other: xr.DataArray | None = None, *, edges: ArrayLike | None = None
) -> xr.Dataset:
    """Power spectrum of a field, or cross spectrum of two: P(k) = V <Re f(k) g*(k)> / N^2.

    Here f(k) = sum_x f(x) exp(-i k.x) over the N cells of the volume V, so that white noise of
    variance s^2 has P = s^2 V / N.  Of vectors, the components' spectra are summed.

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        Whole periodic box.
    other : DataArray, optional
        Second field on the same grid, both scalars or both vectors; default ``field`` itself.
    edges : array, optional
        Increasing edges of the bins in h/Mpc; bin i holds edges[i] <= k < edges[i + 1].  Default:
        bins one fundamental mode 2 pi / max(L) wide, centred on its multiples, from the first to
        the Nyquist frequency of the coarsest axis.

    Returns
    -------
    Dataset, dim k
        ``power`` in (units of the fields)^2 (Mpc/h)^3, the number of ``modes`` and their mean
        wavenumber ``k_mean`` in h/Mpc; coordinates ``k`` (centres) and ``k_bounds`` (edges).  A bin
        without modes holds NaN.  The mode k = 0 is left out, so the fields' means do not matter.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError
        If the fields do not fit, or the edges are no edges or hold no mode.
    CosmofieldsError
        If a field holds NaN or infinity.

    Notes
    -----
    Eager.  Neither the window of the mass assignment nor shot noise
    is taken out.

    Examples
    --------
    >>> import numpy as np
    >>> from cosmofields.conventions import label, make_grid
    >>> noise = np.random.default_rng(0).standard_normal((16, 16, 16))
    >>> field = label("density", noise, make_grid(16, [160.0] * 3), {"box_size": 160.0})
    >>> spectrum = power_spectrum(field)
    >>> float(spectrum.power.weighted(spectrum.modes).mean())  # s^2 V / N = 1000
    1005.
    """
    first, second = pair(field, field if other is None else other)
    grid = periodic_grid(first, what="power_spectrum")
    sums, coords = _mode_sums(first, first if other is None else second, grid, edges)
    what = "power spectrum" if other is None else "cross spectrum"
    names = first.name if other is None else f"{first.name} and {second.name}"
    power = _spectrum(_per_mode(sums.cross, sums, grid), f"{what} of {names}", (first, second))
    return xr.Dataset(
        {"power": power, **_mode_counts(sums)}, coords=coords, attrs=_facts(first, grid)
    )


def multipoles(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    ells: Sequence[int] = (0, 2, 4),
    edges: ArrayLike | None = None,
    los: str | None = None,
) -> xr.Dataset:
    """Multipoles of the power about a line of sight: P_l(k) = (2 l + 1) V <L_l(mu) Re f g*> / N^2.

    Plane-parallel, mu = k_los / k, L_l the Legendre polynomial; P_0 is :func:`power_spectrum`.
    Over the modes of a bin the L_l are not quite orthogonal: where there are few, one multipole
    shows in another.

    Parameters
    ----------
    field, other, edges
        As in :func:`power_spectrum`.
    ells : sequence of int
        Of 0, 2 and 4.
    los : {"x", "y", "z"}, optional
        Default: that of the field's attributes.

    Returns
    -------
    Dataset, dims ell, k
        ``power`` (ell, k) in (units of the fields)^2 (Mpc/h)^3; ``modes``, ``k_mean``, ``k`` and
        ``k_bounds`` as in :func:`power_spectrum`.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`power_spectrum`; or if ``ells`` or ``los`` are others than those named.
    MissingAttributeError
        If neither ``los`` nor the attributes name a line of sight.

    Notes
    -----
    Eager.  Neither the window of the mass assignment nor shot noise is taken out.

    References
    ----------
    Kaiser 1987, MNRAS 227, 1; Hamilton 1998, in The Evolving Universe, 185.
    """
    first, second = pair(field, field if other is None else other)
    grid = periodic_grid(first, what="multipoles")
    axis = AXES.index(check_los(attribute(first, "los") if los is None else los))
    wanted = [int(ell) if ell in _LEGENDRE else None for ell in ells]
    if None in wanted or not wanted or len(set(wanted)) < len(wanted):
        raise DimensionError(f"ells={ells!r}; expected some of 0, 2 and 4, each once")
    from .kernels.spectra import bin_poles, pole_sums

    kernel = partial(bin_poles, los=axis)
    total, coords = _binned(first, first if other is None else second, grid, edges, kernel)
    sums = pole_sums(total)
    poles = [
        (2 * ell + 1) * _per_mode(sums.moments @ np.array(_LEGENDRE[ell]), sums, grid)
        for ell in wanted
        if ell is not None
    ]
    what = "power spectrum" if other is None else "cross spectrum"
    names = first.name if other is None else f"{first.name} and {second.name}"
    title = f"multipoles of the {what} of {names}"
    coords["ell"] = ("ell", wanted, {"units": "1", "long_name": "multipole"})
    label = _spectrum(np.stack(poles), title, (first, second))
    return xr.Dataset(
        {"power": label, **_mode_counts(sums)},
        coords=coords,
        attrs={**_facts(first, grid), "los": AXES[axis]},
    )


def spectra(
    predicted: xr.DataArray, true: xr.DataArray, *, edges: ArrayLike | None = None
) -> xr.Dataset:
    """Spectra of a predicted and a true field, and the ratios that compare them.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        Whole periodic boxes on the same grid.
    edges : array, optional
        As in :func:`power_spectrum`.

    Returns
    -------
    Dataset, dim k
        ``power_predicted``, ``power_true`` and ``power_cross`` in (units)^2 (Mpc/h)^3, and

        - ``relative_deviation`` R = P_predicted / P_true - 1
        - ``correlation`` r = P_cross / sqrt(P_predicted P_true)
        - ``transfer`` T = P_cross / P_true

        with ``modes``, ``k_mean``, ``k`` and ``k_bounds`` as in :func:`power_spectrum`.  A ratio
        without a positive denominator is NaN.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`power_spectrum`.

    Notes
    -----
    Eager.  The window that both fields were painted with drops out of R, r and T.
    """
    predicted, true = pair(predicted, true)
    grid = periodic_grid(true, what="spectra")
    sums, coords = _mode_sums(predicted, true, grid, edges)
    p, t, cross = (_per_mode(total, sums, grid) for total in (sums.first, sums.second, sums.cross))
    name, units = true.name, (true, true)
    return xr.Dataset(
        {
            "power_predicted": _spectrum(p, f"power spectrum of the predicted {name}", units),
            "power_true": _spectrum(t, f"power spectrum of the true {name}", units),
            "power_cross": _spectrum(cross, f"cross spectrum of predicted and true {name}", units),
            "relative_deviation": _spectrum(cells.ratio(p, t) - 1, "R = P_predicted / P_true - 1"),
            "correlation": _spectrum(
                cells.ratio(cross, np.sqrt(p * t)), "r = P_cross / sqrt(P_predicted P_true)"
            ),
            "transfer": _spectrum(cells.ratio(cross, t), "T = P_cross / P_true"),
            **_mode_counts(sums),
        },
        coords=coords,
        attrs=_facts(true, grid),
    )


def _field(field: xr.DataArray) -> xr.DataArray:
    extra = [str(dim) for dim in field.dims if dim not in ("component", *AXES)]
    if extra:
        raise DimensionError(
            f"`{field.name or 'field'}` has dims {field.dims}; expected (x, y, z) or "
            f"(component, x, y, z): take .isel({extra[0]}=...) or .sum({extra[0]!r}) first"
        )
    return canonical(field, *(["component"] if "component" in field.dims else []))


def pair(first: xr.DataArray, second: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Two scalar or two vector fields on one grid, in canonical order.

    Raises
    ------
    DimensionError, GridMismatchError
        If they are not.
    """
    first, second = _field(first), _field(second)
    check_same_grid(first, second)
    if first.shape != second.shape:
        raise DimensionError(
            f"The fields have dims {dict(first.sizes)} and {dict(second.sizes)}; expected two "
            "scalars or two vectors. Take magnitude(...) or .sel(component=...) of the vector."
        )
    return first, second


def _mode_sums(
    first: xr.DataArray, second: xr.DataArray, grid: Grid, edges: ArrayLike | None
) -> tuple[ModeSums, dict[Hashable, Any]]:
    from .kernels.spectra import bin_modes, mode_sums

    total, coords = _binned(first, second, grid, edges, bin_modes)
    return mode_sums(total), coords


def _binned(
    first: xr.DataArray,
    second: xr.DataArray,
    grid: Grid,
    edges: ArrayLike | None,
    kernel: Callable[..., NDArray[np.float64]],
) -> tuple[NDArray[np.float64], dict[Hashable, Any]]:
    """Sums over the modes of each bin, over components, and the coordinates of the bins."""
    from .kernels.spectra import check_edges, default_edges

    k_edges = default_edges(grid.shape, grid.lengths) if edges is None else check_edges(edges)
    fields = (first,) if first is second else (first, second)
    data = [field.data.reshape(-1, *grid.shape) for field in fields]
    total = sum_modes(
        list(zip(*data, strict=True)),
        grid,
        partial(kernel, nz=grid.shape[2], edges=k_edges),
        what="power spectrum",
    )
    n_parts = len(data[0])
    total[:, :2] /= n_parts  # each component has counted the modes
    if not total[:, 0].any():
        nyquist = max(np.pi / cell for cell in grid.cell_size)
        raise DimensionError(
            f"edges from {k_edges[0]:g} to {k_edges[-1]:g} h/Mpc hold no mode of this box; its "
            f"modes run from {2 * np.pi / max(grid.lengths):g} to about {nyquist:g} h/Mpc"
        )
    if not np.isfinite(total).all():
        raise not_finite(first, second)
    coords: dict[Hashable, Any] = {
        "k": (
            "k",
            (k_edges[:-1] + k_edges[1:]) / 2,
            {"units": "h/Mpc", "long_name": "wavenumber, centre of the bin", "bounds": "k_bounds"},
        ),
        "k_bounds": (
            ("k", "bound"),
            np.stack([k_edges[:-1], k_edges[1:]], axis=1),
            {"units": "h/Mpc", "long_name": "edges of the bin: lower <= k < upper"},
        ),
    }
    return total, coords


def _per_mode(
    total: NDArray[np.float64], sums: ModeSums | PoleSums, grid: Grid
) -> NDArray[np.float64]:
    n_cells = float(np.prod(grid.shape))
    return cells.ratio(total * (grid.volume / n_cells**2), sums.modes)


def _spectrum(
    values: NDArray[np.float64], long_name: str, fields: tuple[xr.DataArray, ...] = ()
) -> xr.Variable:
    """Label a spectrum; ``fields`` are the two whose units a power has."""
    units = [field.attrs.get("units", "1") for field in fields]
    units = [f"({units[0]})^2"] if len(set(units)) == 1 else [f"({unit})" for unit in units]
    units = [unit for unit in units if unit not in ("(1)", "(1)^2")]
    text = " ".join([*units, "(Mpc/h)^3"]) if fields else "1"
    dims = ("ell", "k")[-values.ndim :]
    return xr.Variable(dims, values, {"units": text, "long_name": long_name})


def _mode_counts(sums: ModeSums | PoleSums) -> dict[str, xr.Variable]:
    k_mean = cells.ratio(sums.k, sums.modes)
    return {
        "modes": xr.Variable("k", sums.modes, {"units": "1", "long_name": "modes in the bin"}),
        "k_mean": xr.Variable("k", k_mean, {"units": "h/Mpc", "long_name": "mean wavenumber"}),
    }


def _facts(field: xr.DataArray, grid: Grid) -> dict[str, Any]:
    return {**box_facts(field), "n_grid": list(grid.shape)}


def not_finite(*fields: xr.DataArray) -> CosmofieldsError:
    """Error that says which fields hold NaN or infinity, and what to do."""
    names = " and ".join(dict.fromkeys(f"`{field.name or 'field'}`" for field in fields))
    return CosmofieldsError(
        f"{names}: NaN or infinity in at least one cell; expected finite numbers everywhere. "
        "Unwritten tiles of a store read as NaN (is it complete?); a velocity is undefined in an "
        "empty cell: fill it, e.g. field.fillna(0)."
    )
