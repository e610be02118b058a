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

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .conventions import (
    AXES,
    CosmofieldsError,
    Grid,
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
from .fourier import irfftn, k_squared, rfftn, wavevector
from .lazy import whole_box
from .statistics import power_spectrum

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
        delta_s = sum of ``halo_density`` over ``mass_bin``, minus 1.
    """
    halos = variable(observed, "halo_density", hint=_PAINT)
    delta = halos.sum("mass_bin", keep_attrs=True) - np.float32(1)
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
    halos: xr.Dataset, density: xr.DataArray, *, k_max: float = 0.1
) -> NDArray[np.float64]:
    """Bias of each mass bin from its cross power with matter on large scales.

    b_i = sum over k < k_max of P_im / sum of P_mm, weighted by modes; free of shot noise.

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
    Eager.
    """
    field = variable(halos, "halo_density", hint=_PAINT)
    if attribute(field, "space") != "real":
        raise CosmofieldsError(
            "large_scale_bias needs halos in real space: paint them before to_redshift_space"
        )
    matter = power_spectrum(density)
    weight = _modes_below(matter, k_max)

    def total(spectrum: xr.Dataset) -> float:
        return float(np.nansum(spectrum["power"].values * weight))

    shares, _ = _tracers(field)
    cross = [total(power_spectrum(field.isel(mass_bin=i), density)) for i in range(len(shares))]
    return np.array(cross) / shares.values / total(matter)


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
    share, noise = (coord.values for coord in _tracers(field))
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


def _tracers(field: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
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
    field = variable(observed, "halo_density", hint=_PAINT)
    grid = periodic_grid(field, what="linear theory")
    if method not in METHODS:
        raise CosmofieldsError(f"method={method!r}; expected 'wiener' or 'paper'")
    if method == "wiener":
        # What the attributes lack is said here, before a bias is measured or a field computed.
        cosmology, z, f = cosmology_of(field), redshift_of(field), _growth_rate(field)
        cosmology.require_power()
        los = AXES.index(check_los(attribute(field, "los"))) if f else 2
    if bias is not None:
        values = np.atleast_1d(np.asarray(bias, dtype=float))
    elif method == "paper":
        values = np.array([linear_bias(observed)])
    else:
        values = redshift_space_bias(observed)
    n_bins = field.sizes["mass_bin"]
    if values.shape not in ((1,), (n_bins,)) or (method == "paper" and len(values) > 1):
        raise CosmofieldsError(
            f"bias={bias!r} for method={method!r} and {n_bins} mass bins; expected one number"
            + (", or one a bin" if method == "wiener" else "")
        )
    if not (np.isfinite(values) & (values > 0)).all():
        raise CosmofieldsError(f"bias={values.tolist()}; expected positive numbers")
    kernel: Any
    arrays = [field.data]
    if method == "paper":
        kernel = partial(_scaled, bias=float(values[0]))
    else:
        # Coordinates of a store are lazy too.
        arrays += [coord.data for coord in _tracers(field)]
        kernel = partial(
            _wiener, bias=values, f=f, los=los, grid=grid, cosmology=cosmology, redshift=z
        )
    data = whole_box(kernel, *arrays, shape=grid.shape)
    attrs = {"method": method, "bias": values.tolist()}
    return label("density", data, grid, {**box_facts(field), **attrs, "space": "real"})


def _scaled(halos: NDArray[np.float32], bias: float) -> NDArray[np.float32]:
    delta = halos.sum(axis=0) - 1
    return (1 + delta / np.float32(bias)).astype(np.float32)


def _wiener(
    halos: NDArray[np.float32],
    share: NDArray[np.float64],
    noise: NDArray[np.float64],
    *,
    bias: NDArray[np.float64],
    f: float,
    los: int,
    grid: Grid,
    cosmology: Cosmology,
    redshift: float,
) -> NDArray[np.float32]:
    k = wavevector(grid)
    k2 = k_squared(k)
    power = cosmology.linear_power(np.sqrt(k2), redshift).astype(np.float32)
    mu2 = k[los] ** 2 / k2
    if len(bias) == 1:
        # Bins that act as one tracer have the noise of the weighted sum.
        halos = halos.sum(axis=0, keepdims=True)
        share, noise = np.ones(1), np.sum(share**2 * noise, keepdims=True)
    top = np.zeros(power.shape, np.complex64)
    bottom = np.ones(power.shape, np.float32)
    for tracer, b, s, n in zip(halos, bias, share, noise, strict=True):
        amplitude = np.float32(b) + np.float32(f) * mu2
        scaled = power * amplitude / np.float32(n)
        top += scaled * (rfftn(tracer) / np.float32(s))
        bottom += scaled * amplitude
    top /= bottom
    top[0, 0, 0] = 0
    return irfftn(top, grid.shape) + np.float32(1)


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
    z = redshift_of(density)
    cosmology = cosmology_of(density)
    rate = float(cosmology.aH(z) * cosmology.f(z))
    data = whole_box(partial(_flow, rate=rate, grid=grid), density.data, shape=(3, *grid.shape))
    kept = {key: density.attrs[key] for key in ("method", "bias") if key in density.attrs}
    return label("velocity", data, grid, {**box_facts(density), **kept})


def _flow(density: NDArray[np.float32], *, rate: float, grid: Grid) -> NDArray[np.float32]:
    modes = rfftn(density)
    modes *= np.complex64(1j * rate) / k_squared(wavevector(grid))
    out = np.empty((3, *grid.shape), np.float32)
    for i, k in enumerate(wavevector(grid, odd=True)):
        out[i] = irfftn(k * modes, grid.shape)
    return out


def linear_velocity(
    observed: xr.Dataset, *, method: str = "wiener", bias: float | Sequence[float] | None = None
) -> xr.DataArray:
    """Linear velocity from halos: :func:`potential_flow` of :func:`linear_density`.

    Parameters
    ----------
    observed, method, bias
        As in :func:`linear_density`.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        km/s.
    """
    return potential_flow(linear_density(observed, method=method, bias=bias))


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
    density = linear_density(observed, method=method, bias=bias)
    velocity = potential_flow(density)
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
