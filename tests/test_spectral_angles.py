"""What depends on the angle to a line of sight: multipoles, wedges, and those of a pair."""

import numpy as np
import pytest
import xarray as xr
from numpy.polynomial.legendre import Legendre

from cosmofields.conventions import (
    AXES,
    COMPONENTS,
    DimensionError,
    MissingAttributeError,
    make_grid,
)
from cosmofields.spectral import multipoles, power_spectrum, spectra, wedges

ELLS = (0, 2, 4)
LENGTHS = (50.0, 120.0, 80.0)


def field(data, box=100.0, name="density", units="1"):
    """Label an array: scalar (x, y, z) or vector (component, x, y, z)."""
    data = np.asarray(data, dtype=np.float32)
    grid = make_grid(data.shape[-3:], np.broadcast_to(box, 3))
    dims = ("component", *AXES)[-data.ndim :]
    coords = dict(grid.coords()) | ({"component": COMPONENTS} if data.ndim == 4 else {})
    attrs = {"box_size": box if np.isscalar(box) else list(box), "units": units}
    return xr.DataArray(data, dims=dims, coords=coords, name=name, attrs=attrs)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def velocity(n=16, seed=0, box=100.0):
    return field(100 * noise((3, n, n, n), seed), box, "velocity", "km/s")


def full_k(shape, lengths):
    k = [
        2 * np.pi * np.fft.fftfreq(n, length / n) for n, length in zip(shape, lengths, strict=True)
    ]
    return np.sqrt(sum(part**2 for part in np.meshgrid(*k, indexing="ij")))


def full_mu(shape, lengths, los):
    """|mu| of every mode, NaN at k = 0."""
    along = 2 * np.pi * np.fft.fftfreq(shape[los], lengths[los] / shape[los])
    k = full_k(shape, lengths)
    k[0, 0, 0] = np.nan
    return abs(along.reshape([-1 if axis == los else 1 for axis in range(3)])) / k


def product(a, b, lengths):
    """Power of every mode."""
    f, g = (np.fft.fftn(part.values.astype(np.float64)) for part in (a, b))
    return (f * g.conj()).real * np.prod(lengths) / f.size**2


# --- multipoles ---


@pytest.mark.parametrize("los", [0, 1, 2])
def test_multipoles_of_a_plane_wave(los):
    """All of P_l lies in one bin, and P_l / P_0 = (2 l + 1) L_l(mu)."""
    n, index = 12, np.array([1, 2, -2])
    node = np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"))
    wave = field(np.cos(2 * np.pi * np.tensordot(index, node, 1) + 0.3))
    got = multipoles(wave, los="xyz"[los]).power
    assert float(got.k[2]) == pytest.approx(3 * 2 * np.pi / 100)
    mu = index[los] / 3
    expected = [(2 * ell + 1) * Legendre.basis(ell)(mu) for ell in ELLS]
    np.testing.assert_allclose(got.isel(k=2) / got.sel(ell=0)[2], expected, atol=1e-5)
    assert abs(got.isel(k=[0, 1, 3, 4, 5])).max() < 1e-5 * got.sel(ell=0)[2]


@pytest.mark.parametrize("los", [0, 1, 2])
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 10, 9)])
def test_multipoles_by_direct_sums(shape, los):
    lengths = (50.0, 120.0, 80.0)
    a, b = field(noise(shape), lengths), field(noise(shape, 1), lengths)
    edges = np.linspace(0.05, 0.6, 5)
    got = multipoles(a, b, los="xyz"[los], edges=edges)
    f, g = (np.fft.fftn(part.values.astype(np.float64)) for part in (a, b))
    k = full_k(shape, lengths)
    along = 2 * np.pi * np.fft.fftfreq(shape[los], lengths[los] / shape[los])
    along = along.reshape([-1 if axis == los else 1 for axis in range(3)])
    product = (f * g.conj()).real * np.prod(lengths) / np.prod(shape) ** 2
    k[0, 0, 0] = np.inf
    mu = along / k
    for i in range(edges.size - 1):
        inside = (k >= edges[i]) & (k < edges[i + 1])
        assert got.modes[i] == inside.sum() > 0
        np.testing.assert_allclose(got.k_mean[i], k[inside].mean(), rtol=1e-12)
        scale = abs(product[inside]).mean()
        for ell in (0, 2, 4):
            legendre = np.polynomial.legendre.Legendre.basis(ell)(mu[inside])
            expected = (2 * ell + 1) * (product[inside] * legendre).mean()
            assert abs(got.power.sel(ell=ell)[i] - expected) < 1e-5 * scale


@pytest.mark.parametrize("los", ["x", "z"])
def test_multipoles_of_kaisers_field(los):
    """A linear field, (1 + b mu^2) delta, has the ratios of Kaiser (1987) at any k."""
    n, beta = 48, 0.6
    shape, lengths = (n,) * 3, (100.0,) * 3
    k = full_k(shape, lengths)
    k[0, 0, 0] = np.inf
    modes = np.fft.fftn(noise(shape))
    modes *= k**-0.8 / np.maximum(abs(modes), 1e-12)  # P ~ k^-1.6, without scatter
    flat = field(np.fft.ifftn(modes).real)
    mu2 = np.nan_to_num(full_mu(shape, lengths, AXES.index(los))) ** 2
    seen = field(np.fft.ifftn((1 + beta * mu2) * modes).real)
    edges = 2 * np.pi / 100.0 * np.array([12.0, 17.0, 23.0])
    p = power_spectrum(flat, edges=edges).power
    got = multipoles(seen, los=los, edges=edges).power
    expected = [1 + 2 * beta / 3 + beta**2 / 5, 4 * beta / 3 + 4 * beta**2 / 7, 8 * beta**2 / 35]
    # Ten thousand modes and more sample mu almost evenly.
    np.testing.assert_allclose((got / p).T, [expected] * 2, atol=0.005)
    for ell, value in zip((2, 4), expected[1:], strict=True):
        ratio = got.sel(ell=ell) / got.sel(ell=0)
        np.testing.assert_allclose(ratio, value / expected[0], atol=0.003)


def test_monopole_is_the_power_and_the_labels_say_so():
    v = velocity().assign_attrs(los="y")
    got = multipoles(v, ells=[0])
    power = power_spectrum(v)
    np.testing.assert_allclose(got.power.sel(ell=0), power.power, rtol=1e-12)
    assert got.power.dims == ("ell", "k")
    assert got.power.attrs["units"] == power.power.attrs["units"]
    assert got.attrs["los"] == "y"
    assert list(multipoles(v, ells=(4, 2), los="z").ell) == [4, 2]
    for name in ("modes", "k_mean", "k_bounds"):
        xr.testing.assert_equal(got[name], power[name])


def test_multipoles_that_are_none():
    a = field(noise((8,) * 3))
    for ells in ((1,), (0, 6), (), (2, 2)):
        with pytest.raises(DimensionError, match="expected some of 0, 2 and 4, each once"):
            multipoles(a, ells=ells, los="z")
    with pytest.raises(DimensionError, match="los='up'"):
        multipoles(a, los="up")
    with pytest.raises(MissingAttributeError, match="No `los`"):
        multipoles(a)


# --- wedges ---


@pytest.mark.parametrize("los", [0, 1, 2])
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 10, 9)])
def test_wedges_by_direct_sums(shape, los):
    a, b = field(noise(shape), LENGTHS), field(noise(shape, 1), LENGTHS)
    edges, mu_edges = np.linspace(0.05, 0.6, 5), np.array([0.0, 0.31, 0.62, 1.0])
    got = wedges(a, b, los="xyz"[los], edges=edges, mu_edges=mu_edges)
    power, k, mu = product(a, b, LENGTHS), full_k(shape, LENGTHS), full_mu(shape, LENGTHS, los)
    assert got.power.dims == ("mu", "k")
    for j in range(3):
        for i in range(4):
            inside = (k >= edges[i]) & (k < edges[i + 1]) & (mu >= mu_edges[j])
            inside &= mu < (mu_edges[j + 1] if j < 2 else 2)
            cell = got.isel(mu=j, k=i)
            assert cell.modes == inside.sum()
            if inside.any():
                scale = abs(power[inside]).mean()
                assert abs(cell.power - power[inside].mean()) < 1e-5 * scale
                np.testing.assert_allclose(cell.k_mean, k[inside].mean(), rtol=1e-12)
                np.testing.assert_allclose(cell.mu_mean, mu[inside].mean(), rtol=1e-12)
            else:
                assert np.isnan(cell.power)
                assert np.isnan(cell.mu_mean)


def test_wedges_of_a_plane_wave():
    n, index = 16, np.array([3, 0, 4])
    node = np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"))
    wave = field(np.cos(2 * np.pi * np.tensordot(index, node, 1)))
    for los, at in (("x", 3), ("y", 0), ("z", 4)):  # mu = 0.6 and 0.8 begin a bin
        power = wedges(wave, los=los).pipe(lambda ds: ds.power * ds.modes)
        assert power.isel(k=4).argmax("mu") == at
        assert power.sum() == pytest.approx(float(power.isel(k=4, mu=at)), rel=1e-5)


def test_wedges_sum_to_the_multipoles():
    a, b = field(noise((24,) * 3), LENGTHS), field(noise((24,) * 3, 1), LENGTHS)
    for los in "xyz":
        fine = wedges(a, b, los=los, mu_edges=np.linspace(0, 1, 801))
        poles = multipoles(a, b, los=los)
        np.testing.assert_array_equal(fine.modes.sum("mu"), poles.modes)
        scale = multipoles(a, los=los).power.sel(ell=0)
        for ell in ELLS:
            # The modes of so thin a wedge have all but one mu.
            weight = (2 * ell + 1) * Legendre.basis(ell)(fine.mu_mean) * fine.modes
            total = (weight * fine.power).sum("mu") / poles.modes
            tolerance = 1e-10 if ell == 0 else 2e-3
            assert (abs(total - poles.power.sel(ell=ell)) <= tolerance * scale).all()


def test_wedges_sum_over_components_and_name_their_bins():
    v = velocity().assign_attrs(los="y")
    got = wedges(v)
    parts = [wedges(v.sel(component=c, drop=True)) for c in "xyz"]
    xr.testing.assert_allclose(got.power, sum(part.power for part in parts), rtol=1e-10)
    for name in ("modes", "k_mean", "mu_mean"):
        xr.testing.assert_allclose(got[name], parts[0][name], rtol=1e-12)
    np.testing.assert_allclose(got.mu, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_array_equal(got.mu_bounds[:, 1], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert got.power.attrs["units"] == "(km/s)^2 (Mpc/h)^3"
    assert got.attrs["los"] == "y"


def test_wedge_alone_and_edges_that_are_none():
    a = field(noise((8,) * 3)).assign_attrs(los="z")
    every = wedges(a, mu_edges=[0, 0.5, 0.9, 1])
    alone = wedges(a, mu_edges=[0.5, 0.9])
    xr.testing.assert_identical(every.isel(mu=[1]).drop_attrs(), alone.drop_attrs())
    for bad in ([0.5], [0, 0.5, 0.4], [-0.1, 1], [0, 1.5], [0, np.nan], [[0, 1]]):
        with pytest.raises(DimensionError, match=r"mu_edges=.*np.linspace\(0, 1, 6\)"):
            wedges(a, mu_edges=bad)
    with pytest.raises(MissingAttributeError, match="No `los`"):
        wedges(field(noise((8,) * 3)))


# --- a pair, in one pass ---


@pytest.mark.parametrize("vector", [False, True])
def test_spectra_with_multipoles(vector):
    make = velocity if vector else lambda seed=0: field(noise((12, 10, 9), seed), LENGTHS)
    p, t = make(seed=1), make(seed=2).assign_attrs(los="y")
    got = spectra(p, t, ells=(4, 0, 2))
    plain = spectra(p, t)
    for name, variable in plain.data_vars.items():
        xr.testing.assert_allclose(got[name], variable, rtol=1e-12)
    assert list(got.ell) == [4, 0, 2]
    assert (got.attrs["los"], "los" in spectra(p, p).attrs) == ("y", False)
    pairs = {"predicted": (p, None), "true": (t, None), "cross": (p, t)}
    for name, (first, second) in pairs.items():
        poles = multipoles(first, second, los="y", ells=(4, 0, 2))
        scale = float(got.power_true.max())
        xr.testing.assert_allclose(got[f"multipoles_{name}"], poles.power, atol=1e-12 * scale)
        assert got[f"multipoles_{name}"].attrs["units"] == poles.power.attrs["units"]
        monopole = got[f"multipoles_{name}"].sel(ell=0)
        np.testing.assert_array_equal(monopole, got[f"power_{name}"])


def test_spectra_asked_for_multipoles_need_a_line_of_sight():
    a = field(noise((8,) * 3))
    with pytest.raises(MissingAttributeError, match="No `los`"):
        spectra(a, a, ells=[0])
    with pytest.raises(DimensionError, match="expected some of 0, 2 and 4"):
        spectra(a, a, ells=[3], los="z")
