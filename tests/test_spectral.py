"""Spectra against closed forms, brute force, other codes, and out of core against in memory."""

import numpy as np
import pytest
import xarray as xr

from cosmofields.conventions import (
    AXES,
    COMPONENTS,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    NotPeriodicError,
    make_grid,
)
from cosmofields.derivatives import curl, divergence, gradient
from cosmofields.spectral import multipoles, power_spectrum, spectra

SHAPES = [(8, 8, 8), (7, 9, 5), (6, 8, 9), (9, 6, 8)]


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


# --- power ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [(100.0, 100.0, 100.0), (50.0, 120.0, 80.0)])
def test_half_space_counts_every_mode_once(shape, lengths):
    a, b = field(noise(shape), lengths), field(noise(shape, 1), lengths)
    edges = np.linspace(0.01, 0.8, 14)
    result = power_spectrum(a, b, edges=edges)
    f, g = (np.fft.fftn(part.values.astype(np.float64)) for part in (a, b))
    k = full_k(shape, lengths)
    product = (f * g.conj()).real * np.prod(lengths) / np.prod(shape) ** 2
    for i in range(edges.size - 1):
        inside = (k >= edges[i]) & (k < edges[i + 1])
        assert result.modes[i] == inside.sum()
        if inside.any():
            np.testing.assert_allclose(result.power[i], product[inside].mean(), rtol=2e-4, atol=0.1)
            np.testing.assert_allclose(result.k_mean[i], k[inside].mean(), rtol=1e-12)
        else:
            assert np.isnan(result.power[i])
            assert np.isnan(result.k_mean[i])


@pytest.mark.parametrize("shape", SHAPES)
def test_all_modes_but_the_mean_and_their_variance(shape):
    a = field(noise(shape) + 5)
    result = power_spectrum(a, edges=[0.0, 100.0])
    assert result.modes.item() == np.prod(shape) - 1
    parseval = result.power.item() * result.modes.item() / 100.0**3
    assert parseval == pytest.approx(a.values.var(dtype=np.float64), rel=1e-5)


def test_white_noise():
    n, box, sigma = 32, 200.0, 3.0
    result = power_spectrum(field(sigma * noise((n, n, n)), box))
    pull = (result.power / (sigma**2 * (box / n) ** 3) - 1) * np.sqrt(result.modes / 2)
    assert abs(pull).max() < 4
    assert 0.5 < float((pull**2).mean()) < 2


def test_plane_wave_lands_in_its_bin():
    n, box, amplitude = 16, 100.0, 0.7
    x = np.arange(n) / n
    wave = amplitude * np.cos(2 * np.pi * (2 * x[:, None, None] + x[None, :, None] + 2 * x))
    result = power_spectrum(field(1 + wave, box))
    power = (result.power * result.modes).values
    # Two modes of amplitude a / 2 each: |f_k|^2 / N^2 = a^2 / 4.
    assert power[2] == pytest.approx(2 * box**3 * amplitude**2 / 4, rel=1e-5)
    assert np.delete(power, 2).max() < 1e-5 * power[2]
    assert float(result.k[2]) == pytest.approx(3 * 2 * np.pi / box)


def test_default_bins():
    result = power_spectrum(field(noise((8, 16, 8)), (100.0, 400.0, 100.0)))
    fundamental = 2 * np.pi / 400
    np.testing.assert_allclose(result.k, fundamental * np.arange(1, 9))  # to pi 16 / 400
    np.testing.assert_allclose(result.k_bounds[:, 0], result.k - fundamental / 2)
    np.testing.assert_allclose(result.k_bounds[1:, 0], result.k_bounds[:-1, 1])
    assert power_spectrum(field(noise((7, 7, 7)))).sizes["k"] == 3
    assert result.attrs["n_grid"] == [8, 16, 8]


def test_mode_on_an_edge_goes_up_whatever_its_direction():
    fundamental = 2 * np.pi / 70.0
    result = power_spectrum(field(noise((10, 10, 10)), 70.0), edges=fundamental * np.arange(1, 6))
    n2 = (full_k((10,) * 3, (70.0,) * 3) / fundamental) ** 2
    n2 = np.rint(n2).astype(int)
    expected = [((n2 >= i**2) & (n2 < (i + 1) ** 2)).sum() for i in range(1, 5)]
    np.testing.assert_array_equal(result.modes, expected)


def test_vector_power_is_the_sum_over_components():
    v, w = velocity(), velocity(seed=5)
    total = sum(
        power_spectrum(v.sel(component=c, drop=True), w.sel(component=c, drop=True)).power
        for c in "xyz"
    )
    result = power_spectrum(v, w)
    xr.testing.assert_allclose(result.power, total, rtol=1e-10)
    assert result.power.attrs["units"] == "(km/s)^2 (Mpc/h)^3"
    assert power_spectrum(v).modes.equals(result.modes)


def test_units():
    a, theta = field(noise((8,) * 3)), field(noise((8,) * 3), units="km/s/(Mpc/h)")
    assert power_spectrum(a).power.attrs["units"] == "(Mpc/h)^3"
    assert power_spectrum(a, theta).power.attrs["units"] == "(km/s/(Mpc/h)) (Mpc/h)^3"


def test_cross_spectrum_is_symmetric_and_bounded():
    a = field(noise((16,) * 3))
    b = field(a.values + noise((16,) * 3, 1))
    xr.testing.assert_allclose(power_spectrum(a, b).power, power_spectrum(b, a).power)
    xr.testing.assert_equal(power_spectrum(a, a).power, power_spectrum(a).power)
    assert abs(spectra(a, b).correlation).max() <= 1


def test_divergence_of_a_gradient_has_k2_times_the_power():
    n, box = 16, 100.0
    modes = np.fft.rfftn(noise((n,) * 3))
    index = [np.fft.fftfreq(n, 1 / n)] * 2 + [np.fft.rfftfreq(n, 1 / n)]
    n2 = sum(part**2 for part in np.meshgrid(*index, indexing="ij"))
    modes[np.rint(n2) != 14] = 0  # one shell, so that k^2 is one number
    v = gradient(field(np.fft.irfftn(modes, s=(n,) * 3, axes=(0, 1, 2)), box))
    one_bin = 2 * np.pi / box * np.array([3.5, 4.0])
    p_v = power_spectrum(v, edges=one_bin).power.item()
    p_theta = power_spectrum(divergence(v), edges=one_bin).power.item()
    assert p_theta == pytest.approx(14 * (2 * np.pi / box) ** 2 * p_v, rel=1e-4)


def test_curl_of_a_gradient_has_no_power():
    v = gradient(field(noise((15, 16, 12))))
    p_v, p_omega = power_spectrum(v), power_spectrum(curl(v))
    assert (p_omega.power < 1e-11 * p_v.k_mean**2 * p_v.power).all()


@pytest.mark.parametrize("order", [("z", "x", "y"), ("y", "x", "z")])
def test_power_does_not_depend_on_origin_or_axes(order):
    a = field(noise((12, 12, 12)))
    expected = power_spectrum(a).power
    shift = {"x": 3, "y": 5, "z": 1}
    rolled = power_spectrum(a.roll(shift)).power
    xr.testing.assert_allclose(rolled, expected, rtol=1e-5)
    xr.testing.assert_allclose(
        power_spectrum(a.roll(shift, roll_coords=True)).power, expected, rtol=1e-5
    )
    turned = field(a.transpose(*order).values)
    xr.testing.assert_allclose(power_spectrum(turned).power, expected, rtol=1e-5)
    # Only the labels say which axis is which.
    xr.testing.assert_allclose(power_spectrum(a.transpose(*order)).power, expected, rtol=1e-12)


def test_sums_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("cosmofields.kernels.modes._CACHED", 2**12)  # many strips
    a = field(noise((20, 12, 16)))
    results = []
    for threads in (1, 4):
        monkeypatch.setattr("cosmofields.fourier.n_threads", lambda threads=threads: threads)
        results.append(power_spectrum(a))
    xr.testing.assert_identical(*results)


@pytest.mark.parametrize("vector", [False, True])
def test_spectra_of_equal_and_scaled_fields(vector):
    t = velocity() if vector else field(noise((16,) * 3))
    same = spectra(t, t)
    np.testing.assert_array_equal(same.relative_deviation, 0)
    np.testing.assert_allclose(same.correlation, 1, rtol=1e-12)
    double = spectra(2 * t, t)
    np.testing.assert_allclose(double.relative_deviation, 3, rtol=1e-6)
    np.testing.assert_allclose(double.correlation, 1, rtol=1e-6)
    np.testing.assert_allclose(double.transfer, 2, rtol=1e-6)
    np.testing.assert_allclose(spectra(-t, t).correlation, -1, rtol=1e-6)
    xr.testing.assert_allclose(double.power_true, power_spectrum(t).power.rename("power_true"))


def test_spectra_of_nothing_are_undefined_not_a_warning():
    t = field(noise((8,) * 3))
    result = spectra(t * 0, t)
    assert (result.relative_deviation == -1).all()
    assert result.correlation.isnull().all()


@pytest.mark.slow  # abacusutils compiles
def test_power_agrees_with_abacusutils():
    abacus = pytest.importorskip("abacusnbody.analysis.power_spectrum")
    n, box = 24, 150.0
    a = field(noise((n,) * 3) + 1, box)
    ours = power_spectrum(a)
    edges = np.append(ours.k_bounds[:, 0], ours.k_bounds[-1, 1])
    modes = (np.fft.rfftn(a.values) / n**3).astype(np.complex64)
    theirs = abacus.calc_pk_from_deltak(modes, box, edges, np.array([0.0, 1.0]), nthread=1)
    below = slice(None, -1)  # theirs counts the plane kz = Nyquist, which starts here, twice
    np.testing.assert_array_equal(ours.modes[below], theirs["N_mode"][below])
    np.testing.assert_allclose(ours.power[below], theirs["power"][below], rtol=1e-4)
    np.testing.assert_allclose(ours.k_mean[below], theirs["k_avg"][below], rtol=1e-4)


# --- inputs, errors ---


def test_inputs_stay_as_they_were():
    p, t = velocity(), velocity(seed=1)
    kept = p.copy(deep=True), t.copy(deep=True)
    spectra(p, t)
    power_spectrum(p)
    multipoles(p, t, los="x")
    for before, after in zip(kept, (p, t), strict=True):
        xr.testing.assert_identical(before, after)


def test_fields_that_do_not_fit_are_refused():
    a, v = field(noise((8,) * 3)), velocity(8)
    with pytest.raises(GridMismatchError, match="8 against 10 cells"):
        spectra(a, field(noise((10,) * 3)))
    with pytest.raises(GridMismatchError, match="box_size"):
        power_spectrum(a, field(noise((8,) * 3), 50.0).assign_coords(a.coords))
    with pytest.raises(DimensionError, match="two scalars or two vectors"):
        spectra(a, v)
    with pytest.raises(DimensionError, match=r"\.sum\('mass_bin'\)"):
        power_spectrum(xr.concat([a, a], "mass_bin"))
    with pytest.raises(NotPeriodicError, match="power_spectrum needs the whole periodic box"):
        power_spectrum(a.isel(x=slice(4)))


@pytest.mark.parametrize("edges", [[0.1], [0.2, 0.1], [-1.0, 1.0], [0.1, np.nan], [[0.1, 0.2]]])
def test_bad_edges(edges):
    with pytest.raises(DimensionError, match="expected increasing wavenumbers"):
        power_spectrum(field(noise((8,) * 3)), edges=edges)


def test_edges_without_a_mode():
    with pytest.raises(DimensionError, match="hold no mode"):
        power_spectrum(field(noise((8,) * 3)), edges=[1e-4, 1e-3])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(bad):
    a = field(noise((8,) * 3))
    broken = a.copy(deep=True)
    broken[3, 2, 1] = bad
    for call in (power_spectrum, lambda f: spectra(a, f), lambda f: multipoles(f, los="z")):
        with pytest.raises(CosmofieldsError, match="NaN or infinity"):
            call(broken)
