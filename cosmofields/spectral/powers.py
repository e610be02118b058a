"""Power, multipoles, wedges and the comparison of two fields, as labelled results."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..conventions import AXES, Grid, result_facts
from ..kernels import cells
from .sums import bin_coords, check_ells, grid_for, los_axis, pair, power_sums

if TYPE_CHECKING:
    from ..kernels.spectra import Sums

# Coefficients of 1, mu^2, mu^4 in the Legendre polynomials.
_LEGENDRE = {0: (1.0, 0.0, 0.0), 2: (-1 / 2, 3 / 2, 0.0), 4: (3 / 8, -30 / 8, 35 / 8)}
# Means below which a field is a contrast: of a mass bin, whose mean is its share, and of any other.
_NO_MEAN = {True: 1e-4, False: 0.1}


def power_spectrum(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    edges: ArrayLike | None = None,
    window: str | None = None,
    taper: float | None = None,
) -> xr.Dataset:
    """Power spectrum of a field, or cross spectrum of two: P(k) = V <Re f(k) g*(k)> / N^2.

    Here f(k) = sum_x f(x) exp(-i k.x) over the N cells of the volume V, so that white noise of
    variance s^2 has P = s^2 V / N.  Of vectors, the components' spectra are summed.

    Parameters
    ----------
    field : DataArray, dims (x, y, z) or (component, x, y, z)
        Whole box, periodic if there is no ``taper``.
    other : DataArray, dims of ``field``, optional
        Second field on the same grid, both scalars or both vectors; default ``field`` itself.
    edges : array, optional
        Increasing edges of the bins in h/Mpc; bin i holds edges[i] <= k < edges[i + 1].  Default:
        bins one fundamental mode 2 pi / max(L) wide, centred on its multiples, from the first to
        the Nyquist frequency of the coarsest axis.
    window : {"cic", "cic-aliased"}, optional
        Of the mass assignment, to be taken out; see :mod:`cosmofields.spectral`.
    taper : float in (0, 1], optional
        Share of each axis over which a box that is not periodic fades; likewise.

    Returns
    -------
    Dataset, dim k
        ``power`` in (units of the fields)^2 (Mpc/h)^3, the number of ``modes`` and their mean
        wavenumber ``k_mean`` in h/Mpc; coordinates ``k`` (centres) and ``k_bounds`` (edges).  A bin
        without modes holds NaN.  ``shot_noise`` in (Mpc/h)^3 is there for an auto spectrum of a
        scalar field that carries it, see :mod:`cosmofields.spectral`.

    Raises
    ------
    DimensionError, GridMismatchError
        If the fields do not fit, or the edges are no edges or hold no mode, or for another
        ``taper``.
    NotPeriodicError
        If the box is not whole, or not periodic and there is no ``taper``.
    CosmofieldsError
        If a field holds NaN or infinity, or for another ``window``.

    Notes
    -----
    Eager.  Shot noise is not taken out.  The mode k = 0 is left out, and with it the mean.  What
    the mean costs is precision, for the transform is a single-precision one: white noise on a mean
    of 100 of its scatters is right to 3e-5, on one of 10^4 to 1 %.  Subtract such a mean first.

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
    from ..kernels.spectra import bin_modes

    first, second = pair(field, field if other is None else other)
    grid = grid_for(first, taper, "power_spectrum")
    fields = (first,) if other is None else (first, second)
    sums, coords, mean = power_sums(fields, grid, bin_modes, edges, window, taper)
    power = cells.ratio(sums.parts[2], sums.modes)
    return xr.Dataset(
        {
            "power": _power(power, "k", _title(fields), (first, second)),
            **_mode_counts(sums),
            **_shot_noise(fields, mean, taper),
        },
        coords=coords,
        attrs=_facts((first, second), grid, window, taper),
    )


def multipoles(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    ells: Sequence[int] = (0, 2, 4),
    edges: ArrayLike | None = None,
    los: str | None = None,
    window: str | None = None,
    taper: float | None = None,
) -> xr.Dataset:
    """Multipoles of the power about a line of sight: P_l(k) = (2 l + 1) V <L_l(mu) Re f g*> / N^2.

    Plane-parallel, mu = k_los / k, L_l the Legendre polynomial; P_0 is :func:`power_spectrum`.
    Over the modes of a bin the L_l are not quite orthogonal: where there are few, one multipole
    shows in another.

    Parameters
    ----------
    field, other, edges, window, taper
        As in :func:`power_spectrum`.
    ells : sequence of int
        Of 0, 2 and 4.
    los : {"x", "y", "z"}, optional
        Default: that of the fields' attributes.

    Returns
    -------
    Dataset, dims ell, k
        ``power`` (ell, k) in (units of the fields)^2 (Mpc/h)^3; ``modes``, ``k_mean``, ``k``,
        ``k_bounds`` and ``shot_noise``, which is in ell = 0 alone, as in :func:`power_spectrum`.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`power_spectrum`; or if ``ells`` or ``los`` are others than those named,
        or the fields have different lines of sight.
    MissingAttributeError
        If neither ``los`` nor the attributes name a line of sight.

    Notes
    -----
    Eager.  Shot noise is not taken out.

    References
    ----------
    Kaiser 1987, MNRAS 227, 1; Hamilton 1998, in The Evolving Universe, 185.
    """
    from ..kernels.spectra import bin_poles

    first, second = pair(field, field if other is None else other)
    grid = grid_for(first, taper, "multipoles")
    axis = los_axis((first, second), los)
    wanted = check_ells(ells)
    fields = (first,) if other is None else (first, second)
    kernel = partial(bin_poles, los=axis)
    sums, coords, mean = power_sums(fields, grid, kernel, edges, window, taper)
    poles = _poles(sums.parts, sums, wanted)
    return xr.Dataset(
        {
            "power": _power(
                poles, ("ell", "k"), f"multipoles of the {_title(fields)}", (first, second)
            ),
            **_mode_counts(sums),
            **_shot_noise(fields, mean, taper),
        },
        coords={**coords, **_ell(wanted)},
        attrs={**_facts((first, second), grid, window, taper), "los": AXES[axis]},
    )


def wedges(
    field: xr.DataArray,
    other: xr.DataArray | None = None,
    *,
    mu_edges: ArrayLike = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    edges: ArrayLike | None = None,
    los: str | None = None,
    window: str | None = None,
    taper: float | None = None,
) -> xr.Dataset:
    """Power in bins of k and of the angle to a line of sight, P(k, mu), mu = abs(k_los) / k.

    Plane-parallel.  The mean over mu of all wedges, weighted by ``modes``, is
    :func:`power_spectrum`.

    Parameters
    ----------
    field, other, edges, window, taper
        As in :func:`power_spectrum`.
    mu_edges : array
        Increasing edges from 0 to 1; bin i holds mu_edges[i] <= mu < mu_edges[i + 1], and mu = 1
        belongs to a bin that ends there.
    los : {"x", "y", "z"}, optional
        Default: that of the fields' attributes.

    Returns
    -------
    Dataset, dims mu, k
        ``power`` (mu, k) in (units of the fields)^2 (Mpc/h)^3; ``modes``, ``k_mean`` and
        ``mu_mean``, each (mu, k): a bin of the first k may have no mode, and then holds NaN.
        Coordinates ``k``, ``k_bounds``, ``mu`` (centres), ``mu_bounds``; ``shot_noise``, the same
        in each wedge, as in :func:`power_spectrum`.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`power_spectrum`; or if ``mu_edges`` or ``los`` are none, or the fields
        have different lines of sight.
    MissingAttributeError
        If neither ``los`` nor the attributes name a line of sight.

    Notes
    -----
    Eager.  Shot noise is not taken out.
    """
    from ..kernels.spectra import bin_wedges, check_mu_edges

    first, second = pair(field, field if other is None else other)
    grid = grid_for(first, taper, "wedges")
    axis = los_axis((first, second), los)
    bounds = check_mu_edges(mu_edges)
    fields = (first,) if other is None else (first, second)
    kernel = partial(bin_wedges, los=axis, mu_edges=bounds)
    sums, coords, mean = power_sums(fields, grid, kernel, edges, window, taper, counts=3)
    dims = ("mu", "k")
    mu_mean, power = (cells.ratio(part, sums.modes) for part in sums.parts)
    return xr.Dataset(
        {
            "power": _power(power, dims, f"wedges of the {_title(fields)}", (first, second)),
            **_mode_counts(sums, dims),
            "mu_mean": (dims, mu_mean, {"units": "1", "long_name": "mean of |k_los| / k"}),
            **_shot_noise(fields, mean, taper),
        },
        coords={
            **coords,
            **bin_coords(
                "mu", bounds, {"units": "1", "long_name": "|k_los| / k, centre of the bin"}
            ),
        },
        attrs={**_facts((first, second), grid, window, taper), "los": AXES[axis]},
    )


def spectra(
    predicted: xr.DataArray,
    true: xr.DataArray,
    *,
    edges: ArrayLike | None = None,
    ells: Sequence[int] = (),
    los: str | None = None,
    window: str | None = None,
    taper: float | None = None,
) -> xr.Dataset:
    """Spectra of a predicted and a true field, and the ratios that compare them.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
        Whole boxes on the same grid, periodic if there is no ``taper``.
    edges, window, taper
        As in :func:`power_spectrum`.
    ells : sequence of int
        Of 0, 2 and 4: multipoles to take in the same pass.
    los : {"x", "y", "z"}, optional
        For ``ells``; default: that of the fields' attributes.

    Returns
    -------
    Dataset, dim k
        ``power_predicted``, ``power_true`` and ``power_cross`` in (units)^2 (Mpc/h)^3, and

        - ``relative_deviation`` R = P_predicted / P_true - 1
        - ``correlation`` r = P_cross / sqrt(P_predicted P_true)
        - ``transfer`` T = P_cross / P_true

        with ``modes``, ``k_mean``, ``k`` and ``k_bounds`` as in :func:`power_spectrum`.  A ratio
        without a positive denominator is NaN.  With ``ells``, also ``multipoles_predicted``,
        ``multipoles_true`` and ``multipoles_cross`` (ell, k), as of :func:`multipoles`.

    Raises
    ------
    DimensionError, NotPeriodicError, GridMismatchError, CosmofieldsError
        As :func:`power_spectrum`, and with ``ells`` as :func:`multipoles`.
    MissingAttributeError
        If ``ells`` are asked for, and neither ``los`` nor the attributes name a line of sight.

    Notes
    -----
    Eager.  The window that both fields were painted with drops out of R, r and T but for its
    weighting of modes within a bin.
    """
    from ..kernels.spectra import bin_modes, bin_pair_poles

    predicted, true = pair(predicted, true)
    grid = grid_for(true, taper, "spectra")
    wanted = [] if isinstance(ells, Sequence) and not ells else check_ells(ells)
    kernel, facts = bin_modes, _facts((true, predicted), grid, window, taper)
    if wanted:
        axis = los_axis((true, predicted), los)
        kernel, facts["los"] = partial(bin_pair_poles, los=axis), AXES[axis]
    sums, coords, _ = power_sums((predicted, true), grid, kernel, edges, window, taper)
    moments = sums.parts.reshape(3, -1, sums.k.size)  # predicted, true, cross
    p, t, cross = (cells.ratio(part[0], sums.modes) for part in moments)
    name, units = true.name or "field", (true, true)
    titles = {
        "predicted": f"power spectrum of the predicted {name}",
        "true": f"power spectrum of the true {name}",
        "cross": f"cross spectrum of predicted and true {name}",
    }
    result = xr.Dataset(
        {
            **{
                f"power_{which}": _power(power, "k", titles[which], units)
                for which, power in zip(titles, (p, t, cross), strict=True)
            },
            "relative_deviation": _ratio(cells.ratio(p, t) - 1, "R = P_predicted / P_true - 1"),
            "correlation": _ratio(
                cells.ratio(cross, np.sqrt(p * t)), "r = P_cross / sqrt(P_predicted P_true)"
            ),
            "transfer": _ratio(cells.ratio(cross, t), "T = P_cross / P_true"),
            **_mode_counts(sums),
        },
        coords=coords,
        attrs=facts,
    )
    if not wanted:
        return result
    poles = {
        f"multipoles_{which}": _power(
            _poles(part, sums, wanted), ("ell", "k"), f"multipoles of the {titles[which]}", units
        )
        for which, part in zip(titles, moments, strict=True)
    }
    return result.assign(poles).assign_coords(_ell(wanted))


# --- what comes out ---


def _poles(moments: NDArray[np.float64], sums: Sums, ells: list[int]) -> NDArray[np.float64]:
    """Multipoles (ell, bin) of sums of a power times 1, mu^2 and mu^4."""
    legendre = np.array([(2 * ell + 1) * np.array(_LEGENDRE[ell]) for ell in ells])
    return cells.ratio(legendre @ moments, sums.modes)


def _title(fields: tuple[xr.DataArray, ...]) -> str:
    what = "power spectrum" if len(fields) == 1 else "cross spectrum"
    return f"{what} of {' and '.join(str(field.name or 'field') for field in fields)}"


def _power(
    values: NDArray[np.float64],
    dims: str | tuple[str, ...],
    long_name: str,
    fields: tuple[xr.DataArray, xr.DataArray],
) -> xr.Variable:
    units = [field.attrs.get("units", "1") for field in fields]
    units = [f"({units[0]})^2"] if len(set(units)) == 1 else [f"({unit})" for unit in units]
    units = [unit for unit in units if unit not in ("(1)", "(1)^2")]
    text = " ".join([*units, "(Mpc/h)^3"])
    return xr.Variable(dims, values, {"units": text, "long_name": long_name})


def _ratio(values: NDArray[np.float64], long_name: str) -> xr.Variable:
    return xr.Variable("k", values, {"units": "1", "long_name": long_name})


def _mode_counts(sums: Sums, dims: str | tuple[str, ...] = "k") -> dict[str, xr.Variable]:
    k_mean = cells.ratio(sums.k, sums.modes)
    return {
        "modes": xr.Variable(dims, sums.modes, {"units": "1", "long_name": "modes in the bin"}),
        "k_mean": xr.Variable(dims, k_mean, {"units": "h/Mpc", "long_name": "mean wavenumber"}),
    }


def _shot_noise(
    fields: tuple[xr.DataArray, ...], mean: float, taper: float | None
) -> dict[str, xr.Variable]:
    """That of an auto spectrum whose field carries the noise of itself over its mean."""
    field = fields[0]
    noise = field.coords.get("shot_noise")
    if len(fields) > 1 or "component" in field.dims or noise is None or noise.ndim:
        return {}
    is_bin = "share" in field.coords
    if taper is not None and is_bin:
        return {}  # the mean of a part of a box is not that which the noise was stated for
    title = "shot noise, not taken out of the power"
    scale = mean**2
    if taper is not None or abs(mean) < _NO_MEAN[is_bin]:
        scale, title = 1.0, f"{title}; of a contrast: as painted"
    attrs = {"units": "(Mpc/h)^3", "long_name": title}
    return {"shot_noise": xr.Variable((), float(noise) * scale, attrs)}


def _ell(ells: list[int]) -> dict[Hashable, Any]:
    return {"ell": ("ell", ells, {"units": "1", "long_name": "multipole"})}


def _facts(
    fields: tuple[xr.DataArray, xr.DataArray], grid: Grid, window: str | None, taper: float | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {**result_facts(*fields), "n_grid": list(grid.shape)}
    if window is not None:
        facts["window"] = window
    if taper is not None:
        facts["taper"] = float(taper)
    return facts
