"""Spectra and cell statistics against closed forms, brute force and an independent code."""

import dask
import numpy as np
import pytest
import xarray as xr

from cosmofields import statistics as st
from cosmofields.conventions import (
    AXES,
    COMPONENTS,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    NotPeriodicError,
    make_grid,
)
from cosmofields.fourier import divergence, gradient
from cosmofields.kernels.spectra import bin_modes

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


# --- spectra ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [(100.0, 100.0, 100.0), (50.0, 120.0, 80.0)])
def test_half_space_counts_every_mode_once(shape, lengths):
    a, b = field(noise(shape), lengths), field(noise(shape, 1), lengths)
    edges = np.linspace(0.01, 0.8, 14)
    result = st.power_spectrum(a, b, edges=edges)
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
    result = st.power_spectrum(a, edges=[0.0, 100.0])
    assert result.modes.item() == np.prod(shape) - 1
    parseval = result.power.item() * result.modes.item() / 100.0**3
    assert parseval == pytest.approx(a.values.var(dtype=np.float64), rel=1e-5)


def test_white_noise():
    n, box, sigma = 32, 200.0, 3.0
    result = st.power_spectrum(field(sigma * noise((n, n, n)), box))
    pull = (result.power / (sigma**2 * (box / n) ** 3) - 1) * np.sqrt(result.modes / 2)
    assert abs(pull).max() < 4
    assert 0.5 < float((pull**2).mean()) < 2


def test_plane_wave_lands_in_its_bin():
    n, box, amplitude = 16, 100.0, 0.7
    x = np.arange(n) / n
    wave = amplitude * np.cos(2 * np.pi * (2 * x[:, None, None] + x[None, :, None] + 2 * x))
    result = st.power_spectrum(field(1 + wave, box))
    power = (result.power * result.modes).values
    # Two modes of amplitude a / 2 each: |f_k|^2 / N^2 = a^2 / 4.
    assert power[2] == pytest.approx(2 * box**3 * amplitude**2 / 4, rel=1e-5)
    assert np.delete(power, 2).max() < 1e-5 * power[2]
    assert float(result.k[2]) == pytest.approx(3 * 2 * np.pi / box)


def test_default_bins():
    result = st.power_spectrum(field(noise((8, 16, 8)), (100.0, 400.0, 100.0)))
    fundamental = 2 * np.pi / 400
    np.testing.assert_allclose(result.k, fundamental * np.arange(1, 9))  # to pi 16 / 400
    np.testing.assert_allclose(result.k_bounds[:, 0], result.k - fundamental / 2)
    np.testing.assert_allclose(result.k_bounds[1:, 0], result.k_bounds[:-1, 1])
    assert st.power_spectrum(field(noise((7, 7, 7)))).sizes["k"] == 3
    assert result.attrs["n_grid"] == [8, 16, 8]


def test_mode_on_an_edge_goes_up_whatever_its_direction():
    fundamental = 2 * np.pi / 70.0
    result = st.power_spectrum(
        field(noise((10, 10, 10)), 70.0), edges=fundamental * np.arange(1, 6)
    )
    n2 = (full_k((10,) * 3, (70.0,) * 3) / fundamental) ** 2
    n2 = np.rint(n2).astype(int)
    expected = [((n2 >= i**2) & (n2 < (i + 1) ** 2)).sum() for i in range(1, 5)]
    np.testing.assert_array_equal(result.modes, expected)


def test_vector_power_is_the_sum_over_components():
    v, w = velocity(), velocity(seed=5)
    total = sum(
        st.power_spectrum(v.sel(component=c, drop=True), w.sel(component=c, drop=True)).power
        for c in "xyz"
    )
    result = st.power_spectrum(v, w)
    xr.testing.assert_allclose(result.power, total, rtol=1e-10)
    assert result.power.attrs["units"] == "(km/s)^2 (Mpc/h)^3"
    assert st.power_spectrum(v).modes.equals(result.modes)


def test_units():
    a, theta = field(noise((8,) * 3)), field(noise((8,) * 3), units="km/s/(Mpc/h)")
    assert st.power_spectrum(a).power.attrs["units"] == "(Mpc/h)^3"
    assert st.power_spectrum(a, theta).power.attrs["units"] == "(km/s/(Mpc/h)) (Mpc/h)^3"


def test_cross_spectrum_is_symmetric_and_bounded():
    a = field(noise((16,) * 3))
    b = field(a.values + noise((16,) * 3, 1))
    xr.testing.assert_allclose(st.power_spectrum(a, b).power, st.power_spectrum(b, a).power)
    xr.testing.assert_equal(st.power_spectrum(a, a).power, st.power_spectrum(a).power)
    assert abs(st.spectra(a, b).correlation).max() <= 1


def test_divergence_of_a_gradient_has_k2_times_the_power():
    n, box = 16, 100.0
    modes = np.fft.rfftn(noise((n,) * 3))
    index = [np.fft.fftfreq(n, 1 / n)] * 2 + [np.fft.rfftfreq(n, 1 / n)]
    n2 = sum(part**2 for part in np.meshgrid(*index, indexing="ij"))
    modes[np.rint(n2) != 14] = 0  # one shell, so that k^2 is one number
    v = gradient(field(np.fft.irfftn(modes, s=(n,) * 3, axes=(0, 1, 2)), box))
    one_bin = 2 * np.pi / box * np.array([3.5, 4.0])
    p_v = st.power_spectrum(v, edges=one_bin).power.item()
    p_theta = st.power_spectrum(divergence(v), edges=one_bin).power.item()
    assert p_theta == pytest.approx(14 * (2 * np.pi / box) ** 2 * p_v, rel=1e-4)


@pytest.mark.parametrize("order", [("z", "x", "y"), ("y", "x", "z")])
def test_power_does_not_depend_on_origin_or_axes(order):
    a = field(noise((12, 12, 12)))
    expected = st.power_spectrum(a).power
    shift = {"x": 3, "y": 5, "z": 1}
    rolled = st.power_spectrum(a.roll(shift)).power
    xr.testing.assert_allclose(rolled, expected, rtol=1e-5)
    xr.testing.assert_allclose(
        st.power_spectrum(a.roll(shift, roll_coords=True)).power, expected, rtol=1e-5
    )
    turned = field(a.transpose(*order).values)
    xr.testing.assert_allclose(st.power_spectrum(turned).power, expected, rtol=1e-5)
    # Only the labels say which axis is which.
    xr.testing.assert_allclose(st.power_spectrum(a.transpose(*order)).power, expected, rtol=1e-12)


def test_sums_do_not_depend_on_the_number_of_threads():
    modes = np.fft.rfftn(noise((20, 12, 16))).astype(np.complex64)
    edges = np.linspace(0.1, 1, 6)
    one, four = (
        bin_modes(modes, modes, (20, 12, 16), (100.0,) * 3, edges, workers) for workers in (1, 4)
    )
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("vector", [False, True])
def test_spectra_of_equal_and_scaled_fields(vector):
    t = velocity() if vector else field(noise((16,) * 3))
    same = st.spectra(t, t)
    np.testing.assert_array_equal(same.relative_deviation, 0)
    np.testing.assert_allclose(same.correlation, 1, rtol=1e-12)
    double = st.spectra(2 * t, t)
    np.testing.assert_allclose(double.relative_deviation, 3, rtol=1e-6)
    np.testing.assert_allclose(double.correlation, 1, rtol=1e-6)
    np.testing.assert_allclose(double.transfer, 2, rtol=1e-6)
    np.testing.assert_allclose(st.spectra(-t, t).correlation, -1, rtol=1e-6)
    xr.testing.assert_allclose(double.power_true, st.power_spectrum(t).power.rename("power_true"))


def test_spectra_of_nothing_are_undefined_not_a_warning():
    t = field(noise((8,) * 3))
    result = st.spectra(t * 0, t)
    assert (result.relative_deviation == -1).all()
    assert result.correlation.isnull().all()


@pytest.mark.slow  # abacusutils compiles
def test_power_agrees_with_abacusutils():
    abacus = pytest.importorskip("abacusnbody.analysis.power_spectrum")
    n, box = 24, 150.0
    a = field(noise((n,) * 3) + 1, box)
    ours = st.power_spectrum(a)
    edges = np.append(ours.k_bounds[:, 0], ours.k_bounds[-1, 1])
    modes = (np.fft.rfftn(a.values) / n**3).astype(np.complex64)
    theirs = abacus.calc_pk_from_deltak(modes, box, edges, np.array([0.0, 1.0]), nthread=1)
    below = slice(None, -1)  # theirs counts the plane kz = Nyquist, which starts here, twice
    np.testing.assert_array_equal(ours.modes[below], theirs["N_mode"][below])
    np.testing.assert_allclose(ours.power[below], theirs["power"][below], rtol=1e-4)
    np.testing.assert_allclose(ours.k_mean[below], theirs["k_avg"][below], rtol=1e-4)


# --- over cells ---


def test_scores_by_hand():
    t = velocity()
    p = 0.5 * t + velocity(seed=1) + 10
    scores = st.cell_statistics(p, t)
    assert scores.sizes == {"component": 3}
    for i, c in enumerate("xyz"):
        a, b = p.values[i].ravel().astype(float), t.values[i].ravel().astype(float)
        row = {name: value.sel(component=c).item() for name, value in scores.items()}
        assert row["correlation_coefficient"] == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert row["rms_error"] == pytest.approx(np.sqrt(((a - b) ** 2).mean()))
        assert row["slope"] == pytest.approx(np.polyfit(a, b, 1)[0])
        assert row["mean_predicted"] == pytest.approx(a.mean())
        assert row["std_true"] == pytest.approx(b.std())
    assert st.correlation_coefficient(p, t).equals(scores.correlation_coefficient)
    assert st.rms_error(p, t).equals(scores.rms_error)
    assert st.rms_error(p, t).attrs["units"] == "km/s"
    assert st.slope(p, t).equals(scores.slope)


def test_slope_is_one_for_a_posterior_mean():
    estimate = noise((24,) * 3)
    truth = estimate + 2 * noise((24,) * 3, 1)
    assert float(st.slope(field(estimate), field(truth))) == pytest.approx(1, abs=0.06)


def test_large_mean_costs_no_digits():
    a = field(noise((16,) * 3) + 3e4)
    assert float(st.correlation_coefficient(a, a)) == pytest.approx(1, abs=1e-12)
    constant = a * 0 + 0.1
    assert np.isnan(st.correlation_coefficient(constant, a))
    assert np.isnan(st.slope(constant, a))
    assert float(st.rms_error(a, a)) == 0


def test_magnitude_and_misalignment_of_turned_vectors():
    phi = 0.3
    t = velocity()
    x, y, z = t.values
    in_plane = t.copy(data=np.stack([0 * x, y, z]))
    turned = t.copy(
        data=2
        * np.stack([0 * x, np.cos(phi) * y - np.sin(phi) * z, np.sin(phi) * y + np.cos(phi) * z])
    )
    angle = st.misalignment(turned, in_plane)
    assert angle.dims == AXES
    np.testing.assert_allclose(angle, 1 - np.cos(phi), rtol=1e-4)
    np.testing.assert_allclose(st.misalignment(3 * t, t), 0, atol=1e-12)
    np.testing.assert_allclose(st.misalignment(-t, t), 2, rtol=1e-6)
    np.testing.assert_allclose(st.magnitude(t), np.sqrt(x**2 + y**2 + z**2), rtol=1e-6)
    assert st.magnitude(t).attrs["units"] == "km/s"
    assert st.magnitude(t).dtype == np.float32


def test_small_angles_keep_their_digits():
    t = velocity()
    ones = t * 0 + xr.DataArray([1.0, 0.0, 0.0], dims="component")
    tilted = ones + xr.DataArray([0.0, 1e-4, 0.0], dims="component")
    np.testing.assert_allclose(st.misalignment(tilted, ones), 0.5e-8, rtol=1e-3)


def test_zero_vector_has_no_direction():
    t = velocity()
    p = t.copy(deep=True)
    p[:, 0, 0, :2] = 0
    angle = st.misalignment(p, t)
    assert int(angle.isnull().sum()) == 2
    assert float(angle.mean()) == pytest.approx(0, abs=1e-10)


def test_joint_distribution_counts_cells():
    p, t = field(noise((12,) * 3)), field(noise((12,) * 3, 1))
    p[0, 0, 0] = np.nan
    joint = st.joint_distribution(p, t, limits=(-2.0, 2.0), bins=8)
    edges = np.linspace(-2, 2, 9)
    a, b = (part.values.ravel()[1:] for part in (p, t))
    expected, _, _ = np.histogram2d(a, b, bins=(edges, edges))
    np.testing.assert_array_equal(joint, expected)
    assert joint.dims == ("predicted", "true")
    assert joint.attrs["outside"] == 12**3 - expected.sum()
    with pytest.raises(DimensionError, match="low < high"):
        st.joint_distribution(p, t, limits=(1.0, 1.0))


# --- laziness, inputs, errors ---


def test_lazy_inputs_give_the_same_numbers():
    p, t = velocity(), velocity(seed=1)
    chunks = {"component": 1, "x": 5, "y": 16, "z": 7}
    lazy_p, lazy_t = p.chunk(chunks), t.chunk(chunks)
    xr.testing.assert_allclose(st.spectra(lazy_p, lazy_t), st.spectra(p, t), rtol=1e-12)
    xr.testing.assert_allclose(st.cell_statistics(lazy_p, t), st.cell_statistics(p, t), rtol=1e-10)

    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        results = st.magnitude(lazy_p), st.misalignment(lazy_p, lazy_t)
    assert all(isinstance(result.data, dask.array.Array) for result in results)
    xr.testing.assert_allclose(results[0].compute(), st.magnitude(p))
    xr.testing.assert_allclose(results[1].compute(), st.misalignment(p, t))


def test_inputs_stay_as_they_were():
    p, t = velocity(), velocity(seed=1)
    kept = p.copy(deep=True), t.copy(deep=True)
    st.spectra(p, t)
    st.power_spectrum(p)
    st.cell_statistics(p, t)
    st.misalignment(p, t)
    st.magnitude(p)
    for before, after in zip(kept, (p, t), strict=True):
        xr.testing.assert_identical(before, after)


def test_fields_that_do_not_fit_are_refused():
    a, v = field(noise((8,) * 3)), velocity(8)
    with pytest.raises(GridMismatchError, match="8 against 10 cells"):
        st.spectra(a, field(noise((10,) * 3)))
    with pytest.raises(GridMismatchError, match="box_size"):
        st.power_spectrum(a, field(noise((8,) * 3), 50.0).assign_coords(a.coords))
    with pytest.raises(DimensionError, match="two scalars or two vectors"):
        st.spectra(a, v)
    with pytest.raises(DimensionError, match=r"\.sum\('mass_bin'\)"):
        st.power_spectrum(xr.concat([a, a], "mass_bin"))
    with pytest.raises(DimensionError, match="expected"):
        st.magnitude(a)
    with pytest.raises(NotPeriodicError, match="power_spectrum needs the whole periodic box"):
        st.power_spectrum(a.isel(x=slice(4)))
    # Statistics over cells take a part of the box.
    assert np.isfinite(st.correlation_coefficient(a.isel(x=slice(4)), a.isel(x=slice(4))))


@pytest.mark.parametrize("edges", [[0.1], [0.2, 0.1], [-1.0, 1.0], [0.1, np.nan], [[0.1, 0.2]]])
def test_bad_edges(edges):
    with pytest.raises(DimensionError, match="expected increasing wavenumbers"):
        st.power_spectrum(field(noise((8,) * 3)), edges=edges)


def test_edges_without_a_mode():
    with pytest.raises(DimensionError, match="hold no mode"):
        st.power_spectrum(field(noise((8,) * 3)), edges=[1e-4, 1e-3])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(bad):
    a = field(noise((8,) * 3))
    broken = a.copy(deep=True)
    broken[3, 2, 1] = bad
    for call in (st.power_spectrum, lambda f: st.spectra(a, f), lambda f: st.rms_error(f, a)):
        with pytest.raises(CosmofieldsError, match="NaN or infinity"):
            call(broken)
