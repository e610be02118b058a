"""Linear theory: bias, density, velocity and momentum from halos, as the paper has it and filtered.

The velocity follows from a linear overdensity by continuity, v(k) = a f H (i k / k^2) delta(k) with
delta(k) = sum delta(x) exp(-i k.x); the two methods differ in how they get that overdensity:

``"paper"``
    delta = delta_s / b (eqs. 2 and 3 of Xiao et al. 2024), with b from the power ratio of eq. 4.
``"wiener"``
    Each mass bin is a tracer delta_i = (b_i + f mu^2) delta + noise of power N_i (Kaiser 1987), and
    delta = P sum_i (a_i delta_i / N_i) / (1 + P sum_i a_i^2 / N_i), a_i = b_i + f mu^2, P the
    linear power spectrum: the estimate of least variance.  With one bias, all bins are one tracer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .conventions import (
    AXES,
    CosmofieldsError,
    MissingAttributeError,
    MissingVariableError,
    attribute,
    box_facts,
    canonical,
    check_los,
    check_same_grid,
    derived,
    label,
    periodic_grid,
    variable,
)
from .cosmology import Cosmology, cosmology_of, redshift_of
from .fourier import through_modes
from .lazy import chunk_shape, whole_box
from .spectral import power_spectrum

METHODS = ("wiener", "paper")
_PAINT = "Paint a catalogue first: halos.recon.paint(n_grid=128)."


def halo_overdensity(observed: xr.Dataset) -> xr.DataArray:
    """Overdensity of the halos of all bins together.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density`` (mass_bin, x, y, z).

    Returns
    -------
    DataArray, dims (x, y, z)
        delta_s = sum of ``halo_density`` over ``mass_bin``, over the sum S of the bins' shares s_i
        (1, unless some bins were taken out), minus 1.  Its coordinate ``shot_noise``,
        sum_i s_i^2 N_i / S^2 with the noises N_i, in (Mpc/h)^3, is there if the bins have theirs.
    """
    halos = variable(observed, "halo_density", hint=_PAINT)
    summed = halos.sum("mass_bin", keep_attrs=True)
    if "share" in halos.coords:
        whole = halos["share"].sum("mass_bin")
        summed = summed / whole.astype(np.float32)
    delta = summed - np.float32(1)
    if {"share", "shot_noise"} <= set(halos.coords):
        noise = (halos["share"] ** 2 * halos["shot_noise"]).sum("mass_bin") / whole**2
        attrs = {"units": "(Mpc/h)^3", "long_name": "shot noise of all mass bins"}
        delta = delta.assign_coords(shot_noise=((), noise.data, attrs))
    return delta.rename("overdensity").assign_attrs(
        {**halos.attrs, "units": "1", "long_name": "halo overdensity of all mass bins"}
    )


def linear_bias(
    observed: xr.Dataset, density: xr.DataArray | None = None, *, k_max: float = 0.3
) -> float:
    """Linear bias by eq. 4 of the paper: b^2 = mean over k < k_max of P_halo(k) / P_matter(k).

    It is an amplitude ratio: in redshift space it holds the Kaiser boost, and shot noise as well.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``.
    density : DataArray, dims (x, y, z), optional
        True matter density; default: the linear theory spectrum of the attributes' cosmology.
    k_max : float
        h/Mpc.

    Returns
    -------
    float

    Raises
    ------
    CosmofieldsError
        If no mode of the box lies below ``k_max``; and as :func:`power_spectrum`.
    MissingAttributeError
        If the cosmology lacks what the theory spectrum needs.

    Notes
    -----
    Eager.
    """
    delta = halo_overdensity(observed)
    if density is None:
        cosmology, z = cosmology_of(delta), redshift_of(delta)
        cosmology.require_power()
    else:
        check_same_grid(delta, density)
    halo = power_spectrum(delta)
    below = _modes_below(halo, k_max) > 0
    if density is None:
        matter = cosmology.linear_power(halo["k_mean"].values, z)
    else:
        matter = power_spectrum(density)["power"].values
    return float(np.sqrt(np.mean((halo["power"].values / matter)[below])))


def large_scale_bias(
    halos: xr.Dataset, density: xr.DataArray, *, k_max: float = 0.15
) -> NDArray[np.float64]:
    """Bias of each mass bin in the limit of long waves, from its cross power with matter.

    P_im / P_mm = b_i + c_i k^2 over k < k_max by least squares, each bin of k weighted by modes
    times P_mm, the inverse variance under shot noise; b_i is returned.  Without the second term the
    bias of the most massive halos (a cumulative 1e-4 (h/Mpc)^3 at z = 0.6) comes out 4 % high, for
    it grows by a tenth up to k = 0.1 h/Mpc, and the linear velocity's longest waves as much low.

    Parameters
    ----------
    halos : Dataset
        With ``halo_density`` painted in real space.
    density : DataArray, dims (x, y, z)
        True matter density on the same grid.
    k_max : float
        h/Mpc.

    Returns
    -------
    array, (mass_bin,)

    Raises
    ------
    CosmofieldsError
        If the halos are in redshift space, or no mode of the box lies below ``k_max``; and as
        :func:`power_spectrum`.

    Notes
    -----
    Eager.  With fewer than four bins of k below ``k_max`` the bias is taken as constant.
    """
    field = variable(halos, "halo_density", hint=_PAINT)
    if attribute(field, "space") != "real":
        raise CosmofieldsError(
            "large_scale_bias needs halos in real space: paint them before to_redshift_space"
        )
    matter = power_spectrum(density)
    modes = _modes_below(matter, k_max)
    below = modes > 0
    k, power = matter["k_mean"].values[below], matter["power"].values[below]
    shares, _ = tracers(field)
    cross = [
        power_spectrum(field.isel(mass_bin=i), density)["power"].values[below] / share
        for i, share in enumerate(shares.values)
    ]
    ratio, weights = np.array(cross) / power, np.sqrt(modes[below] * power)
    fit = np.polynomial.polynomial.polyfit(k**2, ratio.T, int(len(k) > 3), w=weights)
    return np.asarray(fit[0], np.float64)


def redshift_space_bias(observed: xr.Dataset, *, k_max: float = 0.1) -> NDArray[np.float64]:
    """Bias of each mass bin without any truth, from its power against linear theory.

    Solves P_i - N_i = (b^2 + 2 f b / 3 + f^2 / 5) P_linear (Kaiser 1987; f = 0 in real space) over
    k < k_max.  Noisier than :func:`large_scale_bias`, which the shipped models carry.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``, and Omega_b, n_s, sigma8 in its cosmology.
    k_max : float
        h/Mpc.

    Returns
    -------
    array, (mass_bin,)

    Raises
    ------
    CosmofieldsError
        If no mode of the box lies below ``k_max``; and as :func:`power_spectrum`.
    MissingAttributeError
        If the cosmology lacks what the theory spectrum needs.

    Notes
    -----
    Eager.
    """
    field = variable(observed, "halo_density", hint=_PAINT)
    z = redshift_of(field)
    cosmology = cosmology_of(field)
    cosmology.require_power()
    f = _growth_rate(field)
    ratios = []
    share, noise = (coord.values for coord in tracers(field))
    for i in range(len(share)):
        spectrum = power_spectrum(field.isel(mass_bin=i))
        weight = _modes_below(spectrum, k_max)
        signal = spectrum["power"].values / share[i] ** 2 - noise[i]
        theory = cosmology.linear_power(spectrum["k_mean"].values, z)
        ratios.append(np.nansum(signal * weight) / np.nansum(theory * weight))
    boost = np.maximum(np.array(ratios), f**2 / 5 + 1e-3)
    return -f / 3 + np.sqrt((f / 3) ** 2 - f**2 / 5 + boost)


def _modes_below(spectrum: xr.Dataset, k_max: float) -> NDArray[np.int64]:
    """Number of modes of each bin below ``k_max``, 0 above; an error if there is none at all."""
    modes = np.where(spectrum["k"] < k_max, spectrum["modes"], 0)
    if not modes.any():
        raise CosmofieldsError(
            f"k_max={k_max:g} h/Mpc: the box has no mode below it (its bins start at "
            f"{float(spectrum['k'][0]):.3g}); give a larger k_max, or the bias itself"
        )
    return modes


def tracers(field: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Share of the weight and shot noise of each mass bin."""
    for name in ("share", "shot_noise"):
        if name not in field.coords:
            raise MissingVariableError(f"`halo_density` lacks the coordinate `{name}`. {_PAINT}")
    return field["share"], field["shot_noise"]


def _growth_rate(field: xr.DataArray) -> float:
    """Growth rate of the box; 0 in real space, where no Kaiser factor has to be undone."""
    space = attribute(field, "space")
    if space not in ("real", "redshift"):
        raise MissingAttributeError(f"space={space!r}; expected 'real' or 'redshift'")
    if space == "real":
        return 0.0
    return float(cosmology_of(field).f(redshift_of(field)))


def linear_density(
    observed: xr.Dataset, *, method: str = "wiener", bias: float | Sequence[float] | None = None
) -> xr.DataArray:
    """Linear matter density from halos.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``: the whole periodic box, with redshift, cosmology, space and los.
    method : {"wiener", "paper"}
        See the module's docstring.
    bias : float or one a mass bin, optional
        Default: :func:`linear_bias` against the theory spectrum for ``"paper"``,
        :func:`redshift_space_bias` for ``"wiener"``.

    Returns
    -------
    DataArray, dims (x, y, z)
        1 + delta (which a linear field can take below zero); ``attrs["bias"]`` says which bias.

    Raises
    ------
    MissingVariableError, MissingAttributeError, NotPeriodicError
    CosmofieldsError
        For an unknown method, or a bias that is not positive or not one a bin.

    Notes
    -----
    Lazy for a lazy input, but for the default of ``bias``: that is measured at once.
    """
    (density,) = _linear(observed, method, bias, "density")
    return density


def _linear(
    observed: xr.Dataset, method: str, bias: float | Sequence[float] | None, *wanted: str
) -> list[xr.DataArray]:
    """Linear ``"density"``, ``"velocity"`` or both, in this order, from modes made once."""
    field = variable(observed, "halo_density", hint=_PAINT)
    grid = periodic_grid(field, what="linear theory")
    if method not in METHODS:
        raise CosmofieldsError(f"method={method!r}; expected 'wiener' or 'paper'")
    if method == "wiener":
        # What the attributes lack is said here, before a bias is measured or a field computed.
        cosmology, z, f = cosmology_of(field), redshift_of(field), _growth_rate(field)
        cosmology.require_power()
        los = AXES.index(check_los(attribute(field, "los"))) if f else 2
    values = _biases(observed, method, bias)
    facts = {**box_facts(field), "method": method, "bias": values.tolist(), "space": "real"}
    if method == "paper":
        delta = field.data.sum(axis=0) - np.float32(1)
        data = (1 + delta / np.float32(values[0])).astype(np.float32)
        if isinstance(data, da.Array):
            data = data.rechunk(chunk_shape(grid.shape))
        density = label("density", data, grid, facts)
        return [density if name == "density" else potential_flow(density) for name in wanted]
    from .kernels import modes

    # Coordinates of a store are lazy too.
    share, noise = (coord.data for coord in tracers(field))
    terms = partial(_filter_terms, bias=values, f=f)
    weights = whole_box(terms, share, noise, shape=(5, field.sizes["mass_bin"]), dtype=np.float64)
    table: Any = partial(_power_table, cosmology, z)
    if isinstance(field.data, da.Array):
        table = da.from_delayed(dask.delayed(table, pure=True)(), (modes.TABLE_SIZE,), np.float32)
    else:
        table = table()
    flows = _flows(cosmology, z) if "velocity" in wanted else []
    data = through_modes(
        [_weighted_sum(field.data, weights[i]) for i in range(2 if f else 1)],
        grid,
        [*flows, *([None] if "density" in wanted else [])],
        what="linear theory",
        combine=partial(modes.wiener, los=los, f=f, mean=float(np.prod(grid.shape))),
        extras=[weights[2:].sum(axis=1), table],
    )
    parts = {"density": data[-1], "velocity": data[:3]}
    return [label(name, parts[name], grid, facts) for name in wanted]


def _biases(
    observed: xr.Dataset, method: str, bias: float | Sequence[float] | None
) -> NDArray[np.float64]:
    """Bias of all mass bins or of each, given or measured."""
    if bias is not None:
        values = np.atleast_1d(np.asarray(bias, dtype=float))
    elif method == "paper":
        values = np.array([linear_bias(observed)])
    else:
        values = redshift_space_bias(observed)
    n_bins = observed.sizes["mass_bin"]
    if values.shape not in ((1,), (n_bins,)) or (method == "paper" and len(values) > 1):
        raise CosmofieldsError(
            f"bias={bias!r} for method={method!r} and {n_bins} mass bins; expected one number"
            + (", or one a bin" if method == "wiener" else "")
        )
    if not (np.isfinite(values) & (values > 0)).all():
        raise CosmofieldsError(f"bias={values.tolist()}; expected positive numbers")
    return values


def _filter_terms(
    share: NDArray[np.float64], noise: NDArray[np.float64], *, bias: NDArray[np.float64], f: float
) -> NDArray[np.float64]:
    """What each mass bin adds to the filter, so that its modes need two transforms and no more.

    With a_i = b_i + f mu^2 the sum of a_i delta_i / N_i is A + f mu^2 B, of which A and B are sums
    in real space; that of a_i^2 / N_i is a polynomial in mu^2.

    Returns
    -------
    array, (5, mass_bin)
        Weights of the bins in A and in B, and their parts of the coefficients of 1, mu^2, mu^4.
    """
    if len(bias) == 1:
        # Bins that act as one tracer have the noise of the weighted sum, in equal parts.
        noise = np.full(share.shape, np.sum(share**2 * noise))
        parts = np.full(share.shape, 1 / len(share))
        share = np.ones(share.shape)
    else:
        parts = np.ones(share.shape)
    a, b = bias / noise, 1 / noise
    return np.stack([a / share, b / share, parts * bias * a, 2 * f * parts * a, f**2 * parts * b])


def _power_table(cosmology: Cosmology, redshift: float) -> NDArray[np.float32]:
    from .kernels.modes import power_table

    return power_table(partial(cosmology.linear_power, z=redshift))


def _weighted_sum(halos: Any, weights: Any) -> Any:
    """Sum over mass bins, lazily or as its planes are asked for."""
    if not isinstance(halos, da.Array):
        return _WeightedPlanes(np.asarray(halos), np.asarray(weights))
    # One task a block: the sum is as large as one bin, and the bins are let go.
    return da.blockwise(
        _weigh,
        "xyz",
        halos.rechunk({0: -1}),
        "bxyz",
        da.asarray(weights).rechunk(-1),
        "b",
        concatenate=True,
        meta=np.empty((0, 0, 0), np.float32),
    )


class _WeightedPlanes:
    def __init__(self, halos: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        self.halos, self.weights = halos, weights

    def __getitem__(self, planes: slice) -> NDArray[np.float32]:
        return _weigh(self.halos[:, planes], self.weights)


def _weigh(halos: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    total = np.zeros(halos.shape[1:], np.float32)
    for part, weight in zip(halos, weights.astype(np.float32), strict=True):
        total += weight * part
    return total


def potential_flow(density: xr.DataArray) -> xr.DataArray:
    """Velocity that continuity asks for in linear theory: v(k) = a f H (i k / k^2) delta(k).

    Parameters
    ----------
    density : DataArray, dims (x, y, z)
        1 + delta over the whole periodic box, with redshift and cosmology.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        km/s, curl-free and of zero mean.
    """
    density = canonical(density)
    grid = periodic_grid(density, what="potential_flow")
    flows = _flows(cosmology_of(density), redshift_of(density))
    data = through_modes([density.data], grid, flows, what="linear velocity")
    kept = {key: density.attrs[key] for key in ("method", "bias") if key in density.attrs}
    return label("velocity", data, grid, {**box_facts(density), **kept})


def _flows(cosmology: Cosmology, redshift: float) -> list[partial[None]]:
    from .kernels.modes import flow

    rate = float(cosmology.aH(redshift) * cosmology.f(redshift))
    return [partial(flow, axis=axis, rate=rate) for axis in range(3)]


def linear_velocity(
    observed: xr.Dataset, *, method: str = "wiener", bias: float | Sequence[float] | None = None
) -> xr.DataArray:
    """Linear velocity from halos, that of :func:`linear_density` by :func:`potential_flow`.

    Parameters
    ----------
    observed, method, bias
        As in :func:`linear_density`.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        km/s.
    """
    (velocity,) = _linear(observed, method, bias, "velocity")
    return velocity


def linear_theory(
    observed: xr.Dataset, *, method: str = "wiener", bias: float | Sequence[float] | None = None
) -> xr.Dataset:
    """Linear density, velocity and momentum m = (1 + delta) v from halos.

    Parameters
    ----------
    observed, method, bias
        As in :func:`linear_density`.

    Returns
    -------
    Dataset
        ``density``, ``velocity``, ``momentum``: the linear version of the box.
    """
    density, velocity = _linear(observed, method, bias, "density", "velocity")
    return as_dataset(density, velocity, observed, f"linear_theory: method={method}")


def as_dataset(
    density: xr.DataArray, velocity: xr.DataArray, observed: xr.Dataset, what: str
) -> xr.Dataset:
    """Real-space Dataset of density, velocity and their product, the momentum."""
    grid = periodic_grid(density, what=what)
    facts = {**box_facts(density), "space": "real"}
    momentum = label("momentum", (velocity * density).transpose(*velocity.dims).data, grid, facts)
    fields = {"density": density, "velocity": velocity, "momentum": momentum}
    return derived(fields, observed, what, **facts)
