"""Linear theory: velocities of plane waves, the filter against its own theory, biases."""

import os
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.catalog import select, to_redshift_space
from cosmofields.conventions import (
    AXES,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    MissingAttributeError,
    MissingVariableError,
    NotPeriodicError,
    label,
    make_grid,
    periodic_grid,
)
from cosmofields.cosmology import cosmology_of
from cosmofields.derivatives import curl, divergence
from cosmofields.linear import (
    halo_overdensity,
    large_scale_bias,
    linear_bias,
    linear_density,
    linear_theory,
    linear_velocity,
    potential_flow,
    redshift_space_bias,
)
from cosmofields.painting import paint
from cosmofields.readers import open_box
from cosmofields.spectral import power_spectrum, spectra
from cosmofields.statistics import cell_statistics

F = (0.268 * 1.59**3 / (0.268 * 1.59**3 + 0.732)) ** 0.55
RATE = 100 * np.sqrt(0.268 * 1.59**3 + 0.732) / 1.59 * F  # a H f in km/s/(Mpc/h)


@pytest.fixture(scope="module")
def facts(cosmology):
    return {
        "redshift": 0.59,
        "cosmology": dict(cosmology),
        "space": "real",
        "periodic": True,
    }


def full_k(shape, lengths):
    parts = [2 * np.pi * np.fft.fftfreq(n, s / n) for n, s in zip(shape, lengths, strict=True)]
    return np.stack(np.meshgrid(*parts, indexing="ij"))


def matter(delta, lengths, facts):
    grid = make_grid(delta.shape, lengths)
    data = (1 + delta).astype(np.float32)
    return label("density", data, grid, {**facts, "box_size": list(lengths)})


def halos_of(tracers, lengths, facts, *, noise, share=None):
    """Observed Dataset whose bins have the overdensities ``tracers``."""
    share = np.full(len(tracers), 1 / len(tracers)) if share is None else np.asarray(share)
    grid = make_grid(tracers[0].shape, lengths)
    attrs = {**facts, "box_size": list(lengths)}
    data = np.stack([s * (1 + t) for s, t in zip(share, tracers, strict=True)])
    field = label("halo_density", data.astype(np.float32), grid, attrs).assign_coords(
        share=("mass_bin", share), shot_noise=("mass_bin", np.broadcast_to(noise, len(share)))
    )
    return field.to_dataset().assign_attrs(attrs)


# --- the velocity of a density ---


@pytest.mark.parametrize("wave", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, -2, 0), (2, -1, 3)])
def test_velocity_of_a_plane_wave(wave, facts):
    shape, lengths = (12, 9, 10), (90.0, 70.0, 50.0)
    k = 2 * np.pi * np.array(wave) / lengths
    phase = sum(
        ki * np.arange(n).reshape(np.roll((-1, 1, 1), axis)) * side / n
        for axis, (ki, n, side) in enumerate(zip(k, shape, lengths, strict=True))
    )
    v = potential_flow(matter(0.4 * np.cos(phase), lengths, facts))
    # Of delta = A cos(k.x), a H f (i k / k^2) delta(k) makes -a H f A sin(k.x) k / k^2.
    expected = -RATE * 0.4 * np.sin(phase) * (k / (k @ k))[:, None, None, None]
    np.testing.assert_allclose(v, expected, atol=1e-5 * abs(expected).max())
    assert v.dims == ("component", *AXES)
    assert v.attrs["units"] == "km/s"


@pytest.mark.parametrize("axis", range(3))
def test_a_peak_attracts(axis, facts):
    r2 = sum(((np.arange(16) - 8) ** 2).reshape(np.roll((-1, 1, 1), i)) for i in range(3))
    v = potential_flow(matter(np.exp(-r2 / 4), (100.0,) * 3, facts))[axis]
    along = v.isel({AXES[i]: 8 for i in range(3) if i != axis}).values
    assert (along[4:8] > 50).all()
    assert (along[9:13] < -50).all()
    assert abs(along[8]) < 1e-2


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 7, 12), (2, 3, 4)])
def test_continuity(shape, facts):
    """div v = -a H f delta, without rotation and without a mean."""
    lengths = (90.0, 70.0, 50.0)
    modes = np.fft.fftn(np.random.default_rng(0).normal(size=shape))
    for axis, n in enumerate(shape):
        if n % 2 == 0:  # no odd derivative there
            np.moveaxis(modes, axis, 0)[n // 2] = 0
    modes[0, 0, 0] = 0
    delta = np.fft.ifftn(modes).real
    v = potential_flow(matter(delta, lengths, facts))
    theta = divergence(v)
    np.testing.assert_allclose(theta, -RATE * delta, atol=1e-5 * RATE * abs(delta).max())
    assert abs(curl(v)).max() < 1e-5 * abs(theta).max()
    np.testing.assert_allclose(v.mean(list(AXES)), 0, atol=1e-4)


def test_uniform_density_does_not_move(facts):
    assert abs(potential_flow(matter(np.full((8, 8, 8), 3.0), (100.0,) * 3, facts))).max() == 0


def test_flow_needs_facts(facts):
    density = matter(np.zeros((4, 4, 4)), (100.0,) * 3, facts)
    for key in ("redshift", "cosmology", "box_size"):
        with pytest.raises(MissingAttributeError, match=f"No `{key}` on this DataArray"):
            potential_flow(density.assign_attrs({key: None}))
    with pytest.raises(DimensionError):
        potential_flow(density.expand_dims("mass_bin"))


# --- the paper's eqs. 2 and 3 ---


def test_eqs_2_and_3_by_hand(observed):
    lin = linear_theory(observed, method="paper", bias=2.5)
    delta = observed["halo_density"].values.sum(axis=0, dtype=np.float64) - 1
    k = full_k((16,) * 3, (100.0,) * 3)
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = 1
    odd = np.where(abs(k) > k.max() * (1 + 1e-9), 0, k)  # fftfreq has the negative Nyquist
    v = np.fft.ifftn(RATE * 1j * odd / k2 * np.fft.fftn(delta) / 2.5, axes=(1, 2, 3)).real
    np.testing.assert_allclose(lin["velocity"], v, atol=1e-5 * abs(v).max())
    np.testing.assert_allclose(lin["density"], 1 + delta / 2.5, rtol=1e-5, atol=1e-5)
    m = (1 + delta / 2.5) * v
    np.testing.assert_allclose(lin["momentum"], m, atol=1e-5 * abs(m).max())


@pytest.mark.parametrize("method", ["paper", "wiener"])
def test_the_three_fields_belong_together(observed, method):
    lin = linear_theory(observed, method=method, bias=2.0)
    density = linear_density(observed, method=method, bias=2.0)
    xr.testing.assert_identical(lin["density"], density)
    flow = potential_flow(density)
    # Wiener's modes do not pass through real space on their way to the velocity.
    np.testing.assert_allclose(lin["velocity"], flow, atol=1e-6 * float(abs(flow).max()))
    assert lin["velocity"].attrs == flow.attrs
    xr.testing.assert_identical(lin["velocity"], linear_velocity(observed, method=method, bias=2.0))
    product = lin["velocity"] * lin["density"]
    np.testing.assert_array_equal(lin["momentum"], product)
    assert float(lin["density"].mean(dtype=np.float64)) == pytest.approx(1, abs=1e-6)


def test_labels(observed):
    lin = linear_theory(observed, bias=[1.5, 1.4, 1.3, 1.2])
    assert lin["momentum"].dims == lin["velocity"].dims == ("component", *AXES)
    assert all(lin[name].dtype == np.float32 for name in lin)
    assert lin["density"].attrs["method"] == "wiener"
    assert lin["velocity"].attrs["bias"] == [1.5, 1.4, 1.3, 1.2]
    for obj in (lin, lin["density"], lin["velocity"], lin["momentum"]):
        assert obj.attrs["space"] == "real"
        assert obj.attrs["box_size"] == 100.0
    assert lin.attrs["history"].endswith("linear_theory: method=wiener")
    assert observed.attrs["space"] == "redshift"


@pytest.mark.parametrize("method", ["paper", "wiener"])
def test_attributes_of_another_store_are_not_copied(observed, method):
    opened = observed.assign_attrs(
        title="halos of a box",
        complete=True,
        source={"seed": 1},
        cosmofields={"format_version": 1, "created": "2026-01-01"},
    )
    attrs = linear_theory(opened, method=method, bias=1.5).attrs
    assert set(attrs) == {
        *("Conventions", "box_size", "redshift", "cosmology", "los", "space", "periodic"),
        *("number_density", "selection_seed", "source", "history", "cosmofields"),
    }
    assert attrs["cosmofields"] == {"format_version": 1}
    assert attrs["history"].startswith(observed.attrs["history"])


@pytest.mark.parametrize("method", ["paper", "wiener"])
def test_facts_of_the_field_will_do(observed, method):
    bare = observed.drop_attrs(deep=False)
    assert not bare.attrs
    assert bare["halo_density"].attrs["redshift"] == 0.59
    lin = linear_theory(bare, method=method)
    for name, field in linear_theory(observed, method=method).items():
        np.testing.assert_array_equal(lin[name], field)
    assert lin.attrs["space"] == "real"
    assert lin.attrs["los"] == "z"
    np.testing.assert_array_equal(redshift_space_bias(bare), redshift_space_bias(observed))


@pytest.mark.parametrize("options", [{"bias": 1.5}, {}, {"method": "paper"}])
def test_power_parameters_are_asked_for_at_the_door(observed, options, no_computes):
    lazy = observed.chunk().assign_attrs(cosmology={"Omega_m": 0.268, "h": 0.71})
    with no_computes(), pytest.raises(MissingAttributeError, match="needs Omega_b, n_s, sigma8"):
        linear_theory(lazy, **options)
    linear_theory(lazy, method="paper", bias=1.5).compute()


def test_halo_overdensity(observed):
    delta = halo_overdensity(observed)
    expected = observed["halo_density"].values.sum(axis=0) - 1
    np.testing.assert_allclose(delta, expected, atol=1e-6)
    assert float(delta.mean(dtype=np.float64)) == pytest.approx(0, abs=1e-6)
    assert delta.dtype == np.float32
    assert delta.attrs["units"] == "1"
    assert delta.name == "overdensity"


# --- the filter ---


SHAPE, LENGTHS = (32, 32, 32), (250.0, 250.0, 250.0)


def gaussian(universe, seed=0, *, fixed=False):
    """Modes of a field of linear power, of random or of exact amplitude."""
    k = np.sqrt((full_k(SHAPE, LENGTHS) ** 2).sum(axis=0))
    modes = np.fft.fftn(np.random.default_rng(seed).normal(size=SHAPE))
    if fixed:
        modes *= np.sqrt(modes.size) / abs(modes)
    cell = np.prod(LENGTHS) / modes.size
    return modes * np.sqrt(universe.linear_power(k, 0.59) / cell)


def white(power, seed):
    cell = np.prod(LENGTHS) / np.prod(SHAPE)
    return np.random.default_rng(seed).normal(0, np.sqrt(power / cell), SHAPE)


def real(modes):
    return np.fft.ifftn(modes).real


def kaiser(los, bias):
    k = full_k(SHAPE, LENGTHS)
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = 1
    return bias + F * k["xyz".index(los)] ** 2 / k2


@pytest.fixture(scope="module")
def universe(facts):
    return cosmology_of(xr.Dataset(attrs=facts))


@pytest.mark.parametrize("noise", [300.0, 3000.0])
def test_filter_reaches_what_theory_promises(universe, facts, noise):
    """Correlation r = sqrt(b^2 P / (b^2 P + N)) with the truth, and a transfer of r^2."""
    modes = gaussian(universe)
    true = matter(real(modes), LENGTHS, facts)
    tracer = 1.8 * real(modes) + white(noise, 1)
    ds = halos_of([tracer], LENGTHS, facts, noise=noise)
    got = spectra(linear_density(ds, bias=1.8), true, edges=np.arange(0.03, 0.39, 0.06))
    signal = 1.8**2 * universe.linear_power(got["k_mean"], 0.59)
    r2 = signal / (signal + noise)
    error = 4 * np.sqrt((1 - r2) / got["modes"])
    assert (abs(got["correlation"] - np.sqrt(r2)) < error + 0.01).all()
    assert (abs(got["transfer"] - r2) < error + 0.01).all()


def test_filter_beats_every_rescaled_unfiltered_field(universe, facts):
    modes = gaussian(universe)
    true = potential_flow(matter(real(modes), LENGTHS, facts)).values
    tracer = real(modes * kaiser("z", 1.3)) + white(1500.0, 1)
    ds = halos_of([tracer], LENGTHS, {**facts, "space": "redshift", "los": "z"}, noise=1500.0)
    filtered = linear_velocity(ds, bias=1.3).values
    raw = linear_velocity(ds, method="paper", bias=1.0).values
    best = (raw * true).sum() / (raw * raw).sum()
    assert np.std(filtered - true) < 0.9 * np.std(best * raw - true)
    # What the filter gives is a posterior mean: nothing is gained by scaling it.
    slope = (filtered * true).sum() / (filtered * filtered).sum()
    assert slope == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("los", ["x", "y", "z"])
def test_kaiser_factor_is_undone(universe, facts, los):
    modes = gaussian(universe)
    tracer = real(modes * kaiser(los, 1.4))
    ds = halos_of([tracer], LENGTHS, {**facts, "space": "redshift", "los": los}, noise=1e-3)
    delta = real(modes) - real(modes).mean()
    got = linear_density(ds, bias=1.4) - 1
    np.testing.assert_allclose(got, delta, atol=1e-4 * delta.std())
    wrong = linear_density(ds.assign_attrs(los="y" if los == "x" else "x"), bias=1.4) - 1
    assert np.std(wrong - delta) > 0.05 * delta.std()


def test_no_kaiser_factor_in_real_space(universe, facts):
    modes = gaussian(universe)
    ds = halos_of([1.4 * real(modes)], LENGTHS, facts, noise=1e-3)
    delta = real(modes) - real(modes).mean()
    np.testing.assert_allclose(linear_density(ds, bias=1.4) - 1, delta, atol=1e-4 * delta.std())


def test_bins_are_combined_by_their_signal_to_noise(universe, facts):
    """Of two tracers, the pair does better than either and than their sum."""
    modes = gaussian(universe)
    delta = real(modes)
    tracers = [2.5 * delta + white(4000.0, 1), 1.2 * delta + white(600.0, 2)]
    noise = np.array([4000.0, 600.0])
    true = matter(delta, LENGTHS, facts)

    def rms(ds, bias):
        return float(np.std(linear_density(ds, bias=bias).values - true.values))

    share = [0.6, 0.4]
    both = halos_of(tracers, LENGTHS, facts, noise=noise, share=share)
    pair = rms(both, [2.5, 1.2])
    assert pair < rms(both, 0.6 * 2.5 + 0.4 * 1.2)
    for i, b in enumerate((2.5, 1.2)):
        assert pair < rms(halos_of(tracers[i : i + 1], LENGTHS, facts, noise=noise[i]), b)
    # Formula by hand.
    k = np.sqrt((full_k(SHAPE, LENGTHS) ** 2).sum(axis=0))
    p = universe.linear_power(k, 0.59)
    top = sum(b / n * np.fft.fftn(t) for b, n, t in zip((2.5, 1.2), noise, tracers, strict=True))
    top[0, 0, 0] = 0
    expected = real(p * top / (1 + p * (2.5**2 / 4000 + 1.2**2 / 600)))
    got = linear_density(both, bias=[2.5, 1.2]) - 1
    np.testing.assert_allclose(got, expected, atol=1e-4 * delta.std())


def test_identical_tracers_in_bins_are_one_tracer(halos):
    """A random split by number changes nothing: inverse noise weighs by number."""
    bins = np.random.default_rng(0).choice(4, 5000, p=[0.1, 0.2, 0.3, 0.4])
    shifted = to_redshift_space(halos, "x")
    one = paint(shifted, 16, weighting="number")
    four = paint(shifted.assign(mass_bin=("halo", bins)), 16, weighting="number")
    expected = linear_theory(one, bias=1.5)
    got = linear_theory(four, bias=[1.5] * 4)
    for name, field in expected.items():
        np.testing.assert_allclose(got[name], field, atol=1e-4 * float(abs(field).max()))


@pytest.mark.parametrize("weighting", ["mass", "number"])
def test_one_bias_makes_one_tracer_of_all_bins(tracers, weighting):
    four = paint(tracers, 16, weighting=weighting)
    one = paint(tracers.drop_vars("mass_bin"), 16, weighting=weighting)
    expected = linear_density(one, bias=[1.7])
    for bias in (1.7, [1.7], np.float32(1.7)):
        np.testing.assert_allclose(linear_density(four, bias=bias), expected, atol=1e-4)


@pytest.mark.parametrize(("los", "order"), [("x", [2, 0, 1]), ("y", [1, 2, 0])])
@pytest.mark.parametrize("method", ["paper", "wiener"])
def test_lines_of_sight_are_alike(halos, los, order, method):
    """Turn the universe with its line of sight, and the answer turns with it."""
    bias = 1.8 if method == "paper" else [2.0, 1.8, 1.5, 1.4]
    chosen = select(halos)
    turned = chosen.assign(
        {
            name: chosen[name].copy(data=chosen[name].values[:, order])
            for name in ("position", "velocity")
        }
    )
    assert order["xyz".index(los)] == 2  # z became the line of sight
    straight = linear_theory(paint(to_redshift_space(chosen, "z"), 16), method=method, bias=bias)
    other = linear_theory(paint(to_redshift_space(turned, los), 16), method=method, bias=bias)
    density = straight["density"].values.transpose(order)
    velocity = straight["velocity"].values[order].transpose(0, *(1 + i for i in order))
    np.testing.assert_allclose(other["density"], density, atol=2e-4)
    np.testing.assert_allclose(other["velocity"], velocity, atol=1e-4 * abs(velocity).max())


@given(shift=st.tuples(*[st.integers(-20, 20)] * 3))
def test_shifted_halos_give_a_shifted_velocity(observed, shift):
    roll = dict(zip(AXES, shift, strict=True))
    for method, bias in (("paper", 2.0), ("wiener", [2.0, 1.8, 1.5, 1.4])):
        still = linear_velocity(observed, method=method, bias=bias)
        moved = linear_velocity(observed.roll(roll), method=method, bias=bias)
        np.testing.assert_allclose(moved, still.roll(roll), atol=1e-4 * float(abs(still).max()))


def test_unequal_sides_and_odd_cells(halos):
    sides, n_grid = [100.0, 200.0, 100.0], [9, 20, 11]
    ds = paint(to_redshift_space(halos.assign_attrs(box_size=sides), "y"), n_grid)
    lin = linear_theory(ds, bias=1.5)
    assert periodic_grid(lin).shape == (9, 20, 11)
    assert all(np.isfinite(lin[name]).all() for name in lin)


# --- biases ---


def test_eq_4_of_a_scaled_field(universe, facts):
    delta = real(gaussian(universe))
    ds = halos_of([1.9 * delta], LENGTHS, facts, noise=1.0)
    density = matter(delta, LENGTHS, facts)
    assert linear_bias(ds, density) == pytest.approx(1.9, rel=1e-6)
    assert linear_bias(ds, density, k_max=0.1) == pytest.approx(1.9, rel=1e-6)


def test_eq_4_is_a_mean_over_bins_of_the_power_ratio(observed, universe):
    spectrum = power_spectrum(halo_overdensity(observed))
    below = spectrum.isel(k=spectrum["k"].values < 0.3)
    assert 0 < below.sizes["k"] < spectrum.sizes["k"]
    ratio = below["power"] / universe.linear_power(below["k_mean"], 0.59)
    assert linear_bias(observed) == pytest.approx(float(np.sqrt(ratio.mean())))


def test_eq_4_against_theory(universe, facts):
    ds = halos_of([1.9 * real(gaussian(universe, fixed=True))], LENGTHS, facts, noise=1.0)
    assert linear_bias(ds) == pytest.approx(1.9, rel=1e-2)


def test_large_scale_bias_of_scaled_fields(universe, facts):
    delta = real(gaussian(universe))
    density = matter(delta, LENGTHS, facts)
    bias = [2.6, 1.7, 1.3, 0.9]
    ds = halos_of([b * delta for b in bias], LENGTHS, facts, noise=1.0, share=[0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(large_scale_bias(ds, density), bias, rtol=1e-5)
    # Noise that has nothing to do with matter does not bias it.
    noisy = [b * delta + white(2000.0, 10 + i) for i, b in enumerate(bias)]
    ds = halos_of(noisy, LENGTHS, facts, noise=2000.0, share=[0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(large_scale_bias(ds, density), bias, atol=0.15)


def test_large_scale_bias_is_that_of_the_longest_waves(universe, facts):
    """Tracers whose bias grows as b + c k^2, as that of massive halos does."""
    modes = gaussian(universe)
    k2 = sum(k**2 for k in full_k(SHAPE, LENGTHS))
    tracers = [real(modes * (b + c * k2)) for b, c in ((3.0, 30.0), (1.5, -2.0))]
    ds = halos_of(tracers, LENGTHS, facts, noise=1.0, share=[0.4, 0.6])
    # |k| differs within a bin of k.
    bias = large_scale_bias(ds, matter(real(modes), LENGTHS, facts))
    np.testing.assert_allclose(bias, [3.0, 1.5], rtol=2e-3)


@pytest.mark.parametrize("los", [None, "x", "z"])
def test_redshift_space_bias(universe, facts, los):
    """b from P - N = (b^2 + 2 f b / 3 + f^2 / 5) P; f = 0 in real space."""
    bias = [2.2, 1.2]
    noise = [1000.0, 4000.0]
    modes = gaussian(universe, fixed=True)
    k = full_k(SHAPE, LENGTHS)
    # Noise of exact power a quarter turn out of phase, so that the two powers add exactly.
    turn = 1j * np.sign(k[0] + 1e-3 * k[1] + 1e-6 * k[2]) * modes / np.maximum(abs(modes), 1e-9)
    unit = np.prod(SHAPE) / np.sqrt(np.prod(LENGTHS))
    tracers = [
        real(modes * (kaiser(los, b) if los else b) + turn * unit * np.sqrt(n))
        for b, n in zip(bias, noise, strict=True)
    ]
    space = {"space": "redshift", "los": los} if los else {}
    ds = halos_of(tracers, LENGTHS, {**facts, **space}, noise=noise, share=[0.3, 0.7])
    # What is left is how evenly the few hundred modes below k = 0.1 sample mu and P.
    np.testing.assert_allclose(redshift_space_bias(ds), bias, rtol=0.015)


def test_redshift_space_bias_stays_positive_in_pure_noise(universe, facts):
    ds = halos_of(
        [white(500.0, 1)], LENGTHS, {**facts, "space": "redshift", "los": "z"}, noise=5000.0
    )
    (bias,) = redshift_space_bias(ds)
    assert 0 < bias < 0.1


def test_default_biases(observed):
    paper = linear_density(observed, method="paper")
    assert paper.attrs["bias"] == [linear_bias(observed)]
    wiener = linear_density(observed)
    np.testing.assert_array_equal(wiener.attrs["bias"], redshift_space_bias(observed))


# --- refusals ---


def test_no_mode_below_k_max(observed):
    density = matter(np.zeros((16,) * 3), (100.0,) * 3, observed.attrs)
    real_space = observed.assign_attrs(space="real")
    message = r"k_max=0.01 h/Mpc: the box has no mode below it \(its bins start at 0.0628\)"
    for measure in (
        lambda: linear_bias(observed, k_max=0.01),
        lambda: large_scale_bias(real_space, density, k_max=0.01),
        lambda: redshift_space_bias(observed, k_max=0.01),
    ):
        with pytest.raises(CosmofieldsError, match=message):
            measure()


def test_small_box_asks_for_a_bias(halos):
    small = halos.assign(position=halos["position"] % 50).assign_attrs(box_size=50.0)
    with pytest.raises(CosmofieldsError, match="or the bias itself"):
        linear_density(paint(to_redshift_space(small), 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "zeldovich"}, "method='zeldovich'; expected 'wiener' or 'paper'"),
        ({"bias": [1.0, 2.0]}, "4 mass bins; expected one number, or one a bin"),
        ({"bias": [[1.0] * 4]}, "expected one number, or one a bin"),
        ({"method": "paper", "bias": [1.0] * 4}, "4 mass bins; expected one number$"),
        ({"bias": 0.0}, r"bias=\[0.0\]; expected positive numbers"),
        ({"bias": [1.0, 1.0, -1.0, 1.0]}, "expected positive numbers"),
        ({"bias": np.nan}, "expected positive numbers"),
    ],
)
def test_options_that_do_not_fit(observed, options, message):
    with pytest.raises(CosmofieldsError, match=message):
        linear_density(observed, **options)


def test_what_is_missing(observed):
    with pytest.raises(MissingVariableError, match=r"No `halo_density`.*halos.recon.paint"):
        linear_density(observed.drop_vars("halo_density"), bias=1.0)
    for key in ("redshift", "cosmology", "los", "space", "box_size"):
        less = observed.copy()
        del less.attrs[key], less["halo_density"].attrs[key]
        with pytest.raises(MissingAttributeError, match=f"No `{key}`"):
            linear_density(less, bias=1.0)
    with pytest.raises(MissingAttributeError, match="space='Real'; expected 'real' or 'redshift'"):
        linear_density(observed.assign_attrs(space="Real"), bias=1.0)
    with pytest.raises(MissingVariableError, match="lacks the coordinate `share`"):
        linear_density(observed.drop_vars("share"), bias=1.0)
    with pytest.raises(MissingVariableError, match="lacks the coordinate `shot_noise`"):
        redshift_space_bias(observed.drop_vars("shot_noise"))
    # The paper's recipe needs neither noise nor a line of sight.
    less = observed.drop_vars(["share", "shot_noise"]).assign_attrs(los=None)
    del less["halo_density"].attrs["los"]
    linear_density(less, method="paper", bias=1.0)


def test_cut_and_mismatched_boxes(observed):
    with pytest.raises(NotPeriodicError, match="linear theory needs the whole periodic box"):
        linear_density(observed.isel(x=slice(8)), bias=1.0)
    with pytest.raises(NotPeriodicError, match="periodic"):
        linear_density(observed.assign_attrs(periodic=False), bias=1.0)
    density = matter(np.zeros((8,) * 3), (100.0,) * 3, observed.attrs)
    with pytest.raises(GridMismatchError):
        linear_bias(observed, density)
    with pytest.raises(GridMismatchError):
        large_scale_bias(observed.assign_attrs(space="real"), density)


def test_large_scale_bias_refuses_redshift_space(observed):
    density = matter(np.zeros((16,) * 3), (100.0,) * 3, observed.attrs)
    with pytest.raises(CosmofieldsError, match="real space: paint them before to_redshift_space"):
        large_scale_bias(observed, density)


def test_the_input_stays_as_it_is(observed):
    before = observed.copy(deep=True)
    linear_theory(observed)
    linear_theory(observed, method="paper")
    halo_overdensity(observed)
    xr.testing.assert_identical(observed, before)


# --- laziness ---


@pytest.mark.parametrize(("method", "bias"), [("paper", 2.0), ("wiener", [2.0, 1.8, 1.5, 1.4])])
def test_lazy_in_lazy_out_with_one_compute(observed, method, bias, count_computes, no_computes):
    lazy = observed.chunk({"mass_bin": 1, "x": 8, "y": 8, "z": 8})
    with no_computes():
        lin = linear_theory(lazy, method=method, bias=bias)
    assert all(isinstance(lin[name].data, da.Array) for name in lin)
    with count_computes() as computes:
        computed = lin.compute()
    assert computes.total == 1
    for name, field in linear_theory(observed, method=method, bias=bias).items():
        assert computed[name].dtype == np.float32
        np.testing.assert_allclose(computed[name], field, rtol=1e-5, atol=1e-4)


def test_overdensity_is_lazy(observed, no_computes):
    with no_computes():
        assert halo_overdensity(observed.chunk()).chunks


# --- a simulated box: what the README of the boxes says of it, which other codes measured ---


@pytest.fixture(scope="module")
def box_101():
    path = Path(os.environ.get("COSMOFIELDS_BOXES", "nowhere")) / "box_101.h5"
    if not path.exists():
        pytest.skip("COSMOFIELDS_BOXES names no directory of boxes")
    halos, true = open_box(path)
    return halos, true.load()


def test_large_scales_follow_linear_theory(box_101):
    _, true = box_101
    theta = divergence(true["velocity"])
    edges = [0.02, 0.045, 0.2, 0.3]
    cross = power_spectrum(theta, true["density"], edges=edges)["power"]
    ratio = -cross / (RATE * power_spectrum(true["density"], edges=edges)["power"])
    assert float(ratio[0]) == pytest.approx(0.99, abs=0.01)
    assert float(ratio[2]) == pytest.approx(0.77, abs=0.01)


def test_velocity_from_the_true_density(box_101):
    _, true = box_101
    scores = cell_statistics(potential_flow(true["density"]), true["velocity"])
    np.testing.assert_allclose(scores["correlation_coefficient"], [0.966, 0.961, 0.966], atol=2e-3)
    np.testing.assert_allclose(scores["rms_error"], [83, 84, 84], atol=1.5)


def test_eq_4(box_101):
    halos, true = box_101
    tracers = to_redshift_space(select(halos))
    for weighting, bias in (("number", 1.69), ("mass", 2.81)):
        observed = paint(tracers, 128, weighting=weighting)
        assert linear_bias(observed, true["density"]) == pytest.approx(bias, abs=0.02)


def test_linear_velocity(box_101):
    halos, true = box_101
    observed = paint(
        to_redshift_space(select(halos)).drop_vars("mass_bin"), 128, weighting="number"
    )
    eq2 = linear_velocity(observed, method="paper", bias=linear_bias(observed, true["density"]))
    scores = cell_statistics(eq2, true["velocity"])
    np.testing.assert_allclose(scores["correlation_coefficient"], [0.910, 0.907, 0.901], atol=3e-3)
    filtered = cell_statistics(linear_velocity(observed), true["velocity"])
    np.testing.assert_allclose(
        filtered["correlation_coefficient"], [0.958, 0.952, 0.936], atol=4e-3
    )
    # There the bias was assumed to be 1.32; here it is measured, and serves a little better.
    np.testing.assert_allclose(filtered["rms_error"], [86, 85, 106], atol=1.5)
    assert (filtered["rms_error"] < [89, 91, 109]).all()
