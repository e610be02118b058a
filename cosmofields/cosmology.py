"""Background, growth and linear power of a flat LCDM universe, from the attributes of an object.

Radiation is neglected after decoupling in the background (1e-4 at z < 1); the linear power
spectrum comes from CAMB, normalised to ``sigma8``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .conventions import MissingAttributeError, XObject, attribute

# CAMB keeps its state in Fortran modules: two threads in it at once end the process.
_CAMB = threading.Lock()


@dataclass(frozen=True)
class Cosmology:
    """Parameters of a flat LCDM universe.

    Parameters
    ----------
    Omega_m : float
        Matter density today over critical.
    h : float
        Hubble constant over 100 km/s/Mpc.
    Omega_b, n_s, sigma8 : float, optional
        Only the linear power spectrum needs them.
    """

    Omega_m: float
    h: float
    Omega_b: float | None = None
    n_s: float | None = None
    sigma8: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges once."""
        for key, value in asdict(self).items():
            if value is not None and not isinstance(value, Real):
                raise MissingAttributeError(f"{key}={value!r}; expected a number")
        if not 0 < self.Omega_m <= 1:
            raise MissingAttributeError(f"Omega_m={self.Omega_m!r}; expected 0 < Omega_m <= 1")
        if not 0.1 < self.h < 2:
            raise MissingAttributeError(
                f"h={self.h!r}; expected H0 / (100 km/s/Mpc), about 0.7 (not H0 itself)"
            )
        if self.Omega_b is not None and not 0 < self.Omega_b < self.Omega_m:
            raise MissingAttributeError(
                f"Omega_b={self.Omega_b!r}; expected 0 < Omega_b < Omega_m={self.Omega_m!r}"
            )
        if self.sigma8 is not None and not 0 < self.sigma8 < 10:
            raise MissingAttributeError(f"sigma8={self.sigma8!r}; expected about 0.8")
        if self.n_s is not None and not 0 < self.n_s < 2:
            raise MissingAttributeError(f"n_s={self.n_s!r}; expected about 0.96")

    def to_dict(self) -> dict[str, float]:
        """Parameters that are set, as JSON-able attributes."""
        return {key: float(value) for key, value in asdict(self).items() if value is not None}

    def E(self, z: ArrayLike) -> NDArray[np.float64]:
        """H(z) / H0 = sqrt(Omega_m (1+z)^3 + 1 - Omega_m)."""
        zp1 = 1 + np.asarray(z, dtype=float)
        return np.sqrt(self.Omega_m * zp1**3 + 1 - self.Omega_m)

    def aH(self, z: ArrayLike) -> NDArray[np.float64]:
        """Conformal Hubble rate a H in km/s/(Mpc/h): 100 E(z) / (1 + z)."""
        return 100 * self.E(z) / (1 + np.asarray(z, dtype=float))

    def f(self, z: ArrayLike) -> NDArray[np.float64]:
        """Growth rate d ln D / d ln a = Omega_m(z)^0.55 (Linder 2005)."""
        zp1 = 1 + np.asarray(z, dtype=float)
        return (self.Omega_m * zp1**3 / self.E(z) ** 2) ** 0.55

    def D(self, z: float) -> float:
        """Linear growth factor, 1 today: D ~ E(z) int_z^inf (1+z') / E(z')^3 dz' (Heath 1977)."""
        from scipy.integrate import quad

        def grow(at: float) -> float:
            # In u = 1 / (1 + z') the integrand (u E)^-3 is smooth down to u = 0.
            integral, _ = quad(lambda u: (u * self.E(1 / u - 1)) ** -3.0, 0, 1 / (1 + at))
            return float(self.E(at)) * integral

        return grow(z) / grow(0.0)

    def require_power(self) -> tuple[float, float, float]:
        """Omega_b, n_s and sigma8, which the linear power spectrum needs.

        Raises
        ------
        MissingAttributeError
            Naming those that are not set.
        """
        if self.Omega_b is None or self.n_s is None or self.sigma8 is None:
            missing = [key for key in ("Omega_b", "n_s", "sigma8") if getattr(self, key) is None]
            raise MissingAttributeError(
                f"The linear power spectrum needs {', '.join(missing)} in the cosmology; "
                "e.g. Omega_b=0.0445, n_s=0.968, sigma8=0.83"
            )
        return self.Omega_b, self.n_s, self.sigma8

    def linear_power(self, k: ArrayLike, z: float) -> NDArray[np.float64]:
        """Linear matter power spectrum at redshift ``z`` from CAMB.

        Parameters
        ----------
        k : array
            Wavenumber in h/Mpc; values at or below zero give zero power.
        z : float
            Redshift.

        Returns
        -------
        array
            P(k) in (Mpc/h)^3, convention <|delta(k)|^2> = V P(k).

        Raises
        ------
        MissingAttributeError
            As :meth:`require_power`.
        """
        with _CAMB:
            knots, log_power = _camb_table(self, float(z))
        k = np.asarray(k, dtype=float)
        inside = np.clip(k, np.exp(knots[0]), np.exp(knots[-1]))
        return np.where(k > 0, np.exp(np.interp(np.log(inside), knots, log_power)), 0.0)


@lru_cache(maxsize=8)
def _camb_table(cosmology: Cosmology, z: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import camb

    h = cosmology.h
    omega_b, n_s, sigma8 = cosmology.require_power()
    params = camb.set_params(
        H0=100 * h,
        ombh2=omega_b * h**2,
        omch2=(cosmology.Omega_m - omega_b) * h**2,
        ns=n_s,
        As=2e-9,
        mnu=0.0,
        num_massive_neutrinos=0,
    )
    params.set_matter_power(redshifts=sorted({0.0, z}, reverse=True), kmax=30)
    results = camb.get_results(params)
    # The power is proportional to A_s, so one run fixes the normalisation.
    scale = (sigma8 / results.get_sigma8_0()) ** 2
    k, redshifts, table = results.get_matter_power_spectrum(minkh=1e-4, maxkh=25, npoints=800)
    row = int(np.argmin(np.abs(np.asarray(redshifts) - z)))
    return np.log(k), np.log(scale * table[row])


def as_cosmology(value: Any) -> Cosmology:
    """Cosmology from a :class:`Cosmology`, a mapping of parameters, or a flat astropy cosmology.

    Raises
    ------
    MissingAttributeError
        If Omega_m or h is missing or out of range, or the universe is not flat LCDM.
    """
    if isinstance(value, Cosmology):
        return value
    if isinstance(value, Mapping):
        lacking = [key for key in ("Omega_m", "h") if value.get(key) is None]
        if lacking:
            raise MissingAttributeError(
                f"The cosmology lacks {', '.join(lacking)} (it has {', '.join(map(str, value))}); "
                "e.g. {'Omega_m': 0.268, 'Omega_b': 0.0445, 'h': 0.71, 'n_s': 0.968, "
                "'sigma8': 0.83}"
            )
        known = ("Omega_m", "h", "Omega_b", "n_s", "sigma8")
        for key in value:
            meant = next((name for name in known if name.lower() == str(key).lower()), key)
            if meant != key:
                raise MissingAttributeError(f"The cosmology has {key!r}; did you mean {meant!r}?")
        h100 = 100 * _number("h", value["h"])
        if abs(_number("H0", value.get("H0", h100)) - h100) > 1e-2:
            raise MissingAttributeError(
                f"The cosmology has h={value['h']} and H0={value['H0']}, which is not 100 h: give h"
            )
        for key, flat in (("w0", -1.0), ("wa", 0.0), ("Omega_k", 0.0)):
            if abs(_number(key, value.get(key, flat)) - flat) > 1e-6:
                raise MissingAttributeError(
                    f"{key}={value[key]}: only flat LCDM ({key} = {flat:g}) is implemented"
                )
        given = {key: value[key] for key in known if value.get(key) is not None}
        return Cosmology(**{key: _number(key, number) for key, number in given.items()})
    if hasattr(value, "Om0") and hasattr(value, "h"):
        dark = getattr(value, "w0", -1.0), getattr(value, "wa", 0.0)
        if abs(getattr(value, "Ok0", 0.0)) > 1e-6 or dark != (-1.0, 0.0):
            raise MissingAttributeError(
                f"{value} is not flat LCDM, the only kind implemented; expected an astropy "
                "FlatLambdaCDM, or a dict such as {'Omega_m': 0.268, 'h': 0.71}"
            )
        meta = getattr(value, "meta", {}) or {}
        # astropy's Ob0 is 0 unless it is given.
        optional = {
            "Omega_b": value.Ob0 or None,
            "n_s": meta.get("n"),
            "sigma8": meta.get("sigma8"),
        }
        return Cosmology(
            Omega_m=float(value.Om0),
            h=float(value.h),
            **{key: float(number) for key, number in optional.items() if number is not None},
        )
    raise MissingAttributeError(
        f"cosmology={value!r}; expected a dict such as {{'Omega_m': 0.268, 'h': 0.71}}, "
        "a cosmofields.Cosmology, or an astropy FlatLambdaCDM"
    )


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MissingAttributeError(f"{key}={value!r}; expected a number") from None


def cosmology_of(obj: XObject) -> Cosmology:
    """Cosmology of an object, from ``attrs['cosmology']``."""
    return as_cosmology(attribute(obj, "cosmology"))


def parse_redshift(value: Any) -> float:
    """Redshift as a finite number above -1."""
    try:
        z = float(value)
    except (TypeError, ValueError):
        z = np.nan
    if not (np.isfinite(z) and z > -1):
        raise MissingAttributeError(f"redshift={value!r}; expected a number above -1, e.g. 0.59")
    return z


def redshift_of(obj: XObject) -> float:
    """Redshift of an object, from ``attrs['redshift']``."""
    return parse_redshift(attribute(obj, "redshift"))
