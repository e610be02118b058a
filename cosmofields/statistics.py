"""How alike two fields are: power spectra, correlations, errors, angles, joint distributions.

Spectra need the whole periodic box; statistics over cells also take a part of one.  Sums run in
float64.  All but :func:`magnitude` and :func:`misalignment` are eager.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import ArrayLike, NDArray

from .conventions import (
    AXES,
    CosmofieldsError,
    DimensionError,
    Grid,
    box_facts,
    canonical,
    check_same_grid,
    is_lazy,
    periodic_grid,
)
from .fourier import rfftn
from .kernels import cells
from .lazy import n_threads

if TYPE_CHECKING:
    from .kernels.spectra import ModeSums

# Cells of one block of a reduction over a numpy array: 16 MB as float64.
_BLOCK = 2**21


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
    Eager: a lazy field is computed, once.  Neither the window of the mass assignment nor shot noise
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
    first, second = _pair(field, field if other is None else other)
    grid = periodic_grid(first, what="power_spectrum")
    sums, coords = _binned(first, first if other is None else second, grid, edges)
    what = "power spectrum" if other is None else "cross spectrum"
    names = first.name if other is None else f"{first.name} and {second.name}"
    power = _spectrum(_per_mode(sums.cross, sums, grid), f"{what} of {names}", (first, second))
    return xr.Dataset(
        {"power": power, **_mode_counts(sums)}, coords=coords, attrs=_facts(first, grid)
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
    predicted, true = _pair(predicted, true)
    grid = periodic_grid(true, what="spectra")
    sums, coords = _binned(predicted, true, grid, edges)
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


def cell_statistics(predicted: xr.DataArray, true: xr.DataArray) -> xr.Dataset:
    """Moments over the cells of two fields, and the scores that follow from them.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    Dataset, no dims or (component,)
        ``mean_predicted``, ``std_predicted``, ``mean_true`` and ``std_true`` in the fields' units,
        and what :func:`correlation_coefficient`, :func:`rms_error` and :func:`slope` return, under
        these names.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit.
    CosmofieldsError
        If a field holds NaN or infinity.

    Notes
    -----
    Eager, block by block: neither field is ever in float64 as a whole.
    """
    predicted, true = _pair(predicted, true)
    p, t = _blocks(predicted), _blocks(true)
    # Moments about the value of one cell keep their digits when the mean is large.
    p0, t0 = p[..., :1, :1, :1], t[..., :1, :1, :1]
    dp, dt = p - p0, t - t0
    parts = (p0, t0, dp, dt, dp * dp, dt * dt, dp * dt, (p - t) ** 2)
    scheduler = {} if is_lazy(predicted, true) else {"scheduler": "threads"}
    means = compute(*(part.mean(axis=(-3, -2, -1)) for part in parts), **scheduler)
    if not all(np.isfinite(mean).all() for mean in means):
        raise _not_finite(predicted, true)
    p0, t0, dp, dt, dpp, dtt, dpt, error = means
    var_p, var_t = (np.maximum(square - mean**2, 0) for square, mean in ((dpp, dp), (dtt, dt)))
    covariance = dpt - dp * dt
    units = {"units": true.attrs.get("units", "1")}
    values: dict[str, tuple[Any, dict[str, str]]] = {
        "correlation_coefficient": (
            cells.ratio(covariance, np.sqrt(var_p * var_t)),
            {"units": "1"},
        ),
        "rms_error": (np.sqrt(error), units),
        "slope": (cells.ratio(covariance, var_p), {"units": "1"}),
        "mean_predicted": (p0 + dp, units),
        "std_predicted": (np.sqrt(var_p), units),
        "mean_true": (t0 + dt, units),
        "std_true": (np.sqrt(var_t), units),
    }
    dims = true.dims[:-3]
    return xr.Dataset(
        {name: (dims, value, attrs) for name, (value, attrs) in values.items()},
        coords={dim: true.coords[dim] for dim in dims if dim in true.coords},
        attrs=box_facts(true),
    )


def correlation_coefficient(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """Pearson correlation over cells: C_r = cov(p, t) / (std(p) std(t)).

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, no dims or (component,)
        NaN where a field is constant.

    Raises
    ------
    DimensionError, GridMismatchError, CosmofieldsError
        As :func:`cell_statistics`.

    Notes
    -----
    The value depends on the cell size and on any smoothing: quote them with C_r.
    """
    return cell_statistics(predicted, true)["correlation_coefficient"]


def rms_error(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """Root mean square of predicted - true over cells.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, no dims or (component,)
        In the fields' units.

    Raises
    ------
    DimensionError, GridMismatchError, CosmofieldsError
        As :func:`cell_statistics`.
    """
    return cell_statistics(predicted, true)["rms_error"]


def slope(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """Slope of the least-squares line of true on predicted: cov(p, t) / var(p).

    An estimate of the posterior mean has 1; a prediction that swings too far has less.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, no dims or (component,)
        NaN where the prediction is constant.

    Raises
    ------
    DimensionError, GridMismatchError, CosmofieldsError
        As :func:`cell_statistics`.
    """
    return cell_statistics(predicted, true)["slope"]


def magnitude(vector: xr.DataArray) -> xr.DataArray:
    """Length |v| of a vector in each cell.

    Parameters
    ----------
    vector : DataArray, dims (component, x, y, z)

    Returns
    -------
    DataArray, dims (x, y, z)
        In the vector's units; lazy for a lazy input.

    Raises
    ------
    DimensionError
        If ``vector`` has other dims.
    """
    vector = canonical(vector, "component")
    result = _per_cell(cells.length, vector)
    result.name = f"{vector.name or 'vector'}_magnitude"
    return result.assign_attrs(
        box_facts(vector),
        units=vector.attrs.get("units", "1"),
        long_name=f"magnitude of {vector.attrs.get('long_name', vector.name or 'vector')}",
    )


def misalignment(predicted: xr.DataArray, true: xr.DataArray) -> xr.DataArray:
    """1 - cos phi in each cell, phi the angle between the predicted and the true vector.

    Parameters
    ----------
    predicted, true : DataArray, dims (component, x, y, z)
        On the same grid.

    Returns
    -------
    DataArray, dims (x, y, z)
        From 0 (parallel) to 2 (opposite); NaN where either vector is zero, which ``.mean()`` and
        ``.std()`` leave out.  Lazy for a lazy input.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit.
    """
    predicted, true = canonical(predicted, "component"), canonical(true, "component")
    check_same_grid(predicted, true)
    result = _per_cell(cells.one_minus_cosine, predicted, true)
    result.name = "misalignment"
    return result.assign_attrs(
        box_facts(true), units="1", long_name=f"1 - cos phi of {true.name or 'the vectors'}"
    )


def joint_distribution(
    predicted: xr.DataArray, true: xr.DataArray, *, limits: tuple[float, float], bins: int = 100
) -> xr.DataArray:
    """Number of cells with a given true and predicted value of a scalar field.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z)
        On the same grid.
    limits : (float, float)
        Range of the bins, for both fields, in their units.
    bins : int
        Number of equal bins over that range.

    Returns
    -------
    DataArray, dims (predicted, true)
        Counts; coordinates are the centres of the bins.  ``attrs["outside"]`` counts the cells left
        out, NaN among them.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit, or the limits are no range.
    """
    predicted, true = canonical(predicted), canonical(true)
    check_same_grid(predicted, true)
    low, high = (float(limit) for limit in limits)
    if not (np.isfinite([low, high]).all() and low < high and bins >= 1):
        raise DimensionError(f"limits={limits}, bins={bins}; expected low < high and bins >= 1")
    p, t = (np.asarray(values) for values in compute(predicted.data, true.data))
    counts = cells.joint_counts(p, t, low, high, bins)
    attrs = {key: true.attrs[key] for key in ("units", "long_name") if key in true.attrs}
    centres = low + (np.arange(bins) + 0.5) * ((high - low) / bins)
    return xr.DataArray(
        counts,
        dims=("predicted", "true"),
        coords={dim: (dim, centres, attrs) for dim in ("predicted", "true")},
        name="cells",
        attrs={**box_facts(true), "units": "1", "outside": int(p.size - counts.sum())},
    )


def _field(field: xr.DataArray) -> xr.DataArray:
    extra = [str(dim) for dim in field.dims if dim not in ("component", *AXES)]
    if extra:
        raise DimensionError(
            f"`{field.name or 'field'}` has dims {field.dims}; expected (x, y, z) or "
            f"(component, x, y, z): take .isel({extra[0]}=...) or .sum({extra[0]!r}) first"
        )
    return canonical(field, *(["component"] if "component" in field.dims else []))


def _pair(first: xr.DataArray, second: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    first, second = _field(first), _field(second)
    check_same_grid(first, second)
    if first.shape != second.shape:
        raise DimensionError(
            f"The fields have dims {dict(first.sizes)} and {dict(second.sizes)}; expected two "
            "scalars or two vectors. Take magnitude(...) or .sel(component=...) of the vector."
        )
    return first, second


def _binned(
    first: xr.DataArray, second: xr.DataArray, grid: Grid, edges: ArrayLike | None
) -> tuple[ModeSums, dict[Hashable, Any]]:
    """Sums over the modes of each bin, over components, and the coordinates of the bins."""
    from .kernels.spectra import ModeSums, bin_modes, check_edges, default_edges

    k_edges = default_edges(grid.shape, grid.lengths) if edges is None else check_edges(edges)
    # Together and whole: the components of a lazy vector mostly share their work.
    f, g = (np.asarray(data).reshape(-1, *grid.shape) for data in compute(first.data, second.data))
    parts = []
    for f_part, g_part in zip(f, g, strict=True):
        f_modes = rfftn(f_part)
        g_modes = f_modes if first is second else rfftn(g_part)
        parts.append(bin_modes(f_modes, g_modes, grid.shape, grid.lengths, k_edges, n_threads()))
    total = ModeSums(*parts[0][:2], *np.sum([part[2:] for part in parts], axis=0))
    if not total.modes.any():
        nyquist = max(np.pi / cell for cell in grid.cell_size)
        raise DimensionError(
            f"edges from {k_edges[0]:g} to {k_edges[-1]:g} h/Mpc hold no mode of this box; its "
            f"modes run from {2 * np.pi / max(grid.lengths):g} to about {nyquist:g} h/Mpc"
        )
    if not (np.isfinite(total.first).all() and np.isfinite(total.second).all()):
        raise _not_finite(first, second)
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


def _per_mode(total: NDArray[np.float64], sums: ModeSums, grid: Grid) -> NDArray[np.float64]:
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
    return xr.Variable("k", values, {"units": text, "long_name": long_name})


def _mode_counts(sums: ModeSums) -> dict[str, xr.Variable]:
    k_mean = cells.ratio(sums.k, sums.modes)
    return {
        "modes": xr.Variable("k", sums.modes, {"units": "1", "long_name": "modes in the bin"}),
        "k_mean": xr.Variable("k", k_mean, {"units": "h/Mpc", "long_name": "mean wavenumber"}),
    }


def _facts(field: xr.DataArray, grid: Grid) -> dict[str, Any]:
    return {**box_facts(field), "n_grid": list(grid.shape)}


def _blocks(field: xr.DataArray) -> da.Array:
    """Field as a float64 dask array; a numpy field in slabs along x, without a copy."""
    if isinstance(field.data, da.Array):
        return field.data.astype(np.float64)
    planes = max(1, _BLOCK // (field.sizes["y"] * field.sizes["z"]))
    chunks = (*(1 for _ in field.dims[:-3]), planes, -1, -1)
    return da.from_array(field.values, chunks=chunks, name=False).astype(np.float64)


def _per_cell(kernel: Any, *vectors: xr.DataArray) -> xr.DataArray:
    """Apply a kernel that turns (x, y, z, component) into (x, y, z)."""
    if is_lazy(*vectors):
        vectors = tuple(vector.chunk({"component": -1}) for vector in vectors)
    return xr.apply_ufunc(
        kernel,
        *vectors,
        input_core_dims=[["component"]] * len(vectors),
        join="override",
        dask="parallelized",
        output_dtypes=[np.float32],
    )


def _not_finite(*fields: xr.DataArray) -> CosmofieldsError:
    names = " and ".join(dict.fromkeys(f"`{field.name or 'field'}`" for field in fields))
    return CosmofieldsError(
        f"{names}: NaN or infinity in at least one cell; expected finite numbers everywhere. "
        "Unwritten tiles of a store read as NaN (is it complete?); a velocity is undefined in an "
        "empty cell: fill it, e.g. field.fillna(0)."
    )
