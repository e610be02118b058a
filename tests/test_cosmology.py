"""Background, growth and linear power against astropy, an ODE, colossus and closed forms."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from cosmofields.conventions import MissingAttributeError
from cosmofields.cosmology import (
    Cosmology,
    as_cosmology,
    cosmology_of,
    parse_redshift,
    redshift_of,
)

REDSHIFTS = [0.0, 0.3, 0.59, 1.0, 3.0, 9.0]


@pytest.fixture(scope="module")
def universe(cosmology):
    return Cosmology(**cosmology)


# --- background and growth ---


def test_the_papers_redshift(universe):
    assert universe.E(0.59) == pytest.approx(1.345, abs=5e-4)
    assert universe.aH(0.59) == pytest.approx(84.6, abs=0.05)
    assert universe.f(0.59) == pytest.approx(0.752, abs=5e-4)
    assert universe.D(0.59) == pytest.approx(0.750, abs=1e-3)


def test_background_against_astropy(universe):
    astropy = pytest.importorskip("astropy.cosmology")
    other = astropy.FlatLambdaCDM(H0=71, Om0=0.268, Tcmb0=0)
    z = np.array(REDSHIFTS)
    np.testing.assert_allclose(universe.E(z), other.efunc(z), rtol=1e-12)
    # a H per Mpc/h: H0 = 71 km/s/Mpc is 100 km/s/(Mpc/h).
    np.testing.assert_allclose(universe.aH(z), other.H(z).value / (1 + z) / other.h, rtol=1e-12)
    np.testing.assert_allclose(universe.f(z), other.Om(z) ** 0.55, rtol=1e-12)


@pytest.fixture(scope="module")
def ode(universe):
    """Growth by integrating delta'' in ln a: no formula in common with the package."""
    from scipy.integrate import solve_ivp

    def slope(ln_a, y):
        omega = universe.Omega_m * np.exp(-3 * ln_a)
        e2 = omega + 1 - universe.Omega_m
        dln_e = -1.5 * omega / e2
        return [y[1], -(2 + dln_e) * y[1] + 1.5 * omega / e2 * y[0]]

    start = np.log(1e-4)
    return solve_ivp(slope, (start, 0), [1e-4, 1e-4], rtol=1e-9, atol=1e-14, dense_output=True).sol


@pytest.mark.parametrize("z", REDSHIFTS)
def test_growth_against_the_differential_equation(universe, ode, z):
    growth, slope = ode(-np.log(1 + z))
    today, _ = ode(0.0)
    assert universe.D(z) == pytest.approx(growth / today, rel=1e-6)
    # Omega_m(z)^0.55 is a fit, and what the paper uses: 0.75 % off today, less before.
    assert universe.f(z) == pytest.approx(slope / growth, rel=8e-3 if z < 0.5 else 1e-3)


def test_einstein_de_sitter():
    eds = Cosmology(Omega_m=1.0, h=0.7)
    assert eds.D(1.0) == pytest.approx(0.5)
    assert eds.f(3.0) == pytest.approx(1.0)
    assert eds.aH(3.0) == pytest.approx(100 * 2)


# --- linear power ---


def top_hat_variance(universe, z, radius=8.0):
    k = np.geomspace(1e-4, 20, 4000)
    x = k * radius
    window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
    return np.trapezoid(universe.linear_power(k, z) * (window * k) ** 2 * k, np.log(k)) / (
        2 * np.pi**2
    )


def test_sigma8_is_recovered(universe):
    assert np.sqrt(top_hat_variance(universe, 0.0)) == pytest.approx(0.83, rel=1e-3)


def test_power_grows_with_the_growth_factor(universe):
    k = np.array([0.01, 0.03, 0.1])
    ratio = universe.linear_power(k, 0.59) / universe.linear_power(k, 0.0)
    np.testing.assert_allclose(ratio, universe.D(0.59) ** 2, rtol=1.5e-3)


def test_power_against_eisenstein_and_hu(universe, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # colossus keeps a cache there
    module = pytest.importorskip("colossus.cosmology.cosmology")
    other = module.Cosmology(
        name="paper",
        flat=True,
        H0=71.0,
        Om0=0.268,
        Ob0=0.0445,
        sigma8=0.83,
        ns=0.968,
        relspecies=False,
        persistence="",
    )
    k = np.geomspace(5e-3, 5, 60)
    expected = other.matterPowerSpectrum(k, z=0.59, model="eisenstein98")
    np.testing.assert_allclose(universe.linear_power(k, 0.59), expected, rtol=0.06)


def test_power_of_odd_wavenumbers(universe):
    power = universe.linear_power([[0.0, -1.0], [0.1, np.inf]], 0.59)
    assert power.shape == (2, 2)
    assert (power[0] == 0).all()
    assert (power[1] > 0).all()
    assert np.isfinite(power).all()
    assert universe.linear_power(0.1, 0.59) == power[1, 0]
    # The turnover, and the slopes on both sides of it.
    k = np.geomspace(2e-4, 20, 100)
    slope = np.gradient(np.log(universe.linear_power(k, 0.59)), np.log(k))
    assert slope[1] == pytest.approx(0.968, abs=0.02)
    assert -3 < slope[-1] < -2.3
    assert 0.01 < k[np.argmin(abs(slope))] < 0.03


@pytest.mark.parametrize("gone", ["Omega_b", "n_s", "sigma8"])
def test_power_needs_all_parameters(cosmology, gone):
    partial = {**cosmology, gone: None}
    assert as_cosmology(partial).aH(0.59) > 0
    with pytest.raises(MissingAttributeError, match=f"linear power spectrum needs {gone} in"):
        as_cosmology(partial).linear_power(0.1, 0.0)
    with pytest.raises(MissingAttributeError, match=f"needs {gone} in the cosmology"):
        as_cosmology(partial).require_power()


def test_power_parameters(universe):
    assert universe.require_power() == (0.0445, 0.968, 0.83)
    with pytest.raises(MissingAttributeError, match="needs Omega_b, n_s, sigma8 in"):
        Cosmology(Omega_m=0.3, h=0.7).require_power()


# --- what a cosmology can be made from ---


def test_from_mapping(cosmology):
    universe = as_cosmology({**cosmology, "w0": -1, "note": "ignored"})
    assert universe == Cosmology(**cosmology)
    assert universe.to_dict() == cosmology
    assert as_cosmology(universe) is universe
    assert Cosmology(Omega_m=0.3, h=0.7).to_dict() == {"Omega_m": 0.3, "h": 0.7}
    assert as_cosmology({"Omega_m": np.float32(0.25), "h": "0.7"}).h == 0.7


def test_from_astropy():
    astropy = pytest.importorskip("astropy.cosmology")
    plain = as_cosmology(astropy.FlatLambdaCDM(H0=71, Om0=0.268))
    assert plain == Cosmology(Omega_m=0.268, h=0.71)
    full = as_cosmology(
        astropy.FlatLambdaCDM(H0=71, Om0=0.268, Ob0=0.0445, meta={"n": 0.968, "sigma8": 0.83})
    )
    assert (full.Omega_b, full.n_s, full.sigma8) == (0.0445, 0.968, 0.83)
    assert as_cosmology(astropy.Planck18).sigma8 == pytest.approx(0.81, abs=0.01)
    for other in (
        astropy.LambdaCDM(H0=70, Om0=0.3, Ode0=0.5),
        astropy.FlatwCDM(H0=70, Om0=0.3, w0=-0.9),
        astropy.Flatw0waCDM(H0=70, Om0=0.3, w0=-1, wa=0.1),
    ):
        with pytest.raises(MissingAttributeError, match="is not flat LCDM"):
            as_cosmology(other)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "lacks Omega_m, h"),
        ({"Omega_m": 0.3, "H0": 70}, r"lacks h \(it has Omega_m, H0\)"),
        ({"Omega_m": None, "h": 0.7}, "lacks Omega_m"),
        ({"Omega_m": "much", "h": 0.7}, "Omega_m='much'; expected a number"),
        ({"Omega_m": [0.3, 0.4], "h": 0.7}, "expected a number"),
        ({"Omega_m": np.nan, "h": 0.7}, "expected 0 < Omega_m <= 1"),
        ({"Omega_m": 30, "h": 0.7}, "expected 0 < Omega_m <= 1"),
        ({"Omega_m": 0.3, "h": 70}, r"about 0.7 \(not H0 itself\)"),
        ({"Omega_m": 0.3, "h": 0.7, "Omega_b": 0.5}, "expected 0 < Omega_b < Omega_m"),
        ({"Omega_m": 0.3, "h": 0.7, "sigma8": -1}, "sigma8=-1.0; expected about 0.8"),
        ({"Omega_m": 0.3, "h": 0.7, "n_s": np.nan}, "n_s=nan; expected about 0.96"),
        ({"Omega_m": 0.3, "h": 0.7, "w0": -0.9}, "only flat LCDM"),
        ({"Omega_m": 0.3, "h": 0.7, "wa": 0.1}, "only flat LCDM"),
        ({"Omega_m": 0.3, "h": 0.7, "Omega_k": 0.1}, "only flat LCDM"),
        (None, "expected a dict such as"),
        ("Planck18", "expected a dict such as"),
        (0.3, "expected a dict such as"),
    ],
)
def test_what_is_no_cosmology(value, message):
    with pytest.raises(MissingAttributeError, match=message):
        as_cosmology(value)


def test_parameters_must_be_numbers():
    with pytest.raises(MissingAttributeError, match="Omega_m='0.3'; expected a number"):
        Cosmology(Omega_m="0.3", h=0.7)


@pytest.mark.parametrize("value", [None, "far", np.nan, np.inf, -1, [0.5, 0.6]])
def test_what_is_no_redshift(value):
    with pytest.raises(MissingAttributeError, match="expected a number above -1, e.g. 0.59"):
        parse_redshift(value)


def test_of_an_object(cosmology):
    ds = xr.Dataset(attrs={"cosmology": cosmology, "redshift": 0.59})
    assert cosmology_of(ds) == Cosmology(**cosmology)
    assert redshift_of(ds) == 0.59
    with pytest.raises(MissingAttributeError, match="No `cosmology` on this DataArray"):
        cosmology_of(xr.DataArray(0))
    with pytest.raises(MissingAttributeError, match="No `redshift` on this Dataset"):
        redshift_of(xr.Dataset())


def test_threads_take_turns_in_camb():
    # In a process of its own, which two threads in CAMB at once would end.
    code = (
        "from concurrent.futures import ThreadPoolExecutor; import cosmofields as cf;"
        "one = cf.Cosmology(Omega_m=0.3, h=0.7, Omega_b=0.05, n_s=0.96, sigma8=0.8);"
        "power = lambda z: float(one.linear_power(0.1, z));"
        "made = ThreadPoolExecutor(4).map(power, (0.1, 0.2, 0.3, 0.4));"
        "print(len(set(made)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"
