"""Derivatives of periodic fields: plane waves, identities, laziness."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.conventions import (
    AXES,
    DimensionError,
    MissingAttributeError,
    label,
    make_grid,
)
from cosmofields.derivatives import curl, divergence, gradient
from cosmofields.fourier import inverse, transform
from cosmofields.kernels.modes import waves

SHAPES = [(8, 8, 8), (9, 7, 5), (8, 5, 6), (2, 3, 4)]
LENGTHS = (90.0, 70.0, 50.0)


def scalar(data, lengths=LENGTHS, **attrs):
    grid = make_grid(data.shape, lengths)
    return label("density", data, grid, {"box_size": list(lengths), **attrs})


def vector(data, lengths=LENGTHS, **attrs):
    grid = make_grid(data.shape[1:], lengths)
    return label("velocity", data, grid, {"box_size": list(lengths), **attrs})


def nodes(shape, lengths=LENGTHS):
    axes = [np.arange(n) * (side / n) for n, side in zip(shape, lengths, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def without_nyquist(field):
    """Field without the modes at the Nyquist frequency of an even axis."""
    modes = np.fft.fftn(field, axes=(-3, -2, -1))
    for axis in (-3, -2, -1):
        n = field.shape[axis]
        if n % 2 == 0:
            np.moveaxis(modes, axis, 0)[n // 2] = 0
    return np.fft.ifftn(modes, axes=(-3, -2, -1)).real.astype(np.float32)


def full_k(shape, lengths=LENGTHS):
    parts = [2 * np.pi * np.fft.fftfreq(n, s / n) for n, s in zip(shape, lengths, strict=True)]
    return np.stack(np.meshgrid(*parts, indexing="ij"))


# --- transforms ---


@pytest.mark.parametrize("shape", SHAPES)
def test_transforms(shape):
    field = scalar(noise(*shape), redshift=0.5)
    before = field.copy(deep=True)
    modes = transform(field)
    assert modes.dims == ("kx", "ky", "kz")
    assert modes.dtype == np.complex64
    expected = np.fft.rfftn(field.values.astype(np.float64))
    np.testing.assert_allclose(modes, expected, atol=1e-6 * abs(expected).max())
    kept = modes.copy(deep=True)
    back = inverse(modes)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, field, atol=2e-6)
    for name in ("units", "long_name", "box_size", "redshift"):
        assert back.attrs[name] == field.attrs[name]
    assert back.name == field.name
    xr.testing.assert_allclose(back.coords.to_dataset(), field.coords.to_dataset())
    xr.testing.assert_identical(field, before)
    xr.testing.assert_identical(modes, kept)
    xr.testing.assert_identical(inverse(modes.transpose("kz", "kx", "ky")), back)


@pytest.mark.parametrize("shape", SHAPES)
def test_wavenumbers(shape):
    half = full_k(shape)[..., : shape[2] // 2 + 1]
    modes = transform(scalar(noise(*shape)))
    for axis, name in enumerate(("kx", "ky", "kz")):
        k = modes[name].broadcast_like(modes).values
        # The Nyquist frequency has either sign.
        np.testing.assert_allclose(abs(k), abs(half[axis]), rtol=1e-12)
        assert modes[name].attrs["units"] == "h/Mpc"
        n = shape[axis]
        odd, even = (part[axis] for part in (waves(shape, LENGTHS).odd, waves(shape, LENGTHS).k))
        np.testing.assert_array_equal(even, modes[name])
        smooth = np.arange(len(even)) != (n // 2 if n % 2 == 0 else -1)
        np.testing.assert_array_equal(odd, np.where(smooth, even, 0))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_transform_of_other_types(dtype):
    field = (10 * noise(4, 4, 4)).astype(dtype)
    np.testing.assert_array_equal(
        transform(scalar(field)), transform(scalar(field.astype(np.float32)))
    )


def test_what_is_not_the_modes_of_a_field():
    modes = transform(scalar(noise(4, 5, 6)))
    with pytest.raises(DimensionError, match=r"expected \('kx', 'ky', 'kz'\): see transform"):
        inverse(scalar(noise(4, 4, 4)))
    with pytest.raises(DimensionError, match=r"expected \(4, 5, 4\), that of n_grid"):
        inverse(modes.isel(kx=slice(3)))
    for key in ("n_grid", "box_size"):
        with pytest.raises(MissingAttributeError, match=f"No `{key}`"):
            inverse(modes.assign_attrs({key: None}))


# --- plane waves ---


@pytest.mark.parametrize("wave", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, -1, 3), (-3, 2, -1)])
def test_gradient_of_a_plane_wave(wave):
    shape = (12, 9, 10)
    k = 2 * np.pi * np.array(wave) / LENGTHS
    phase = np.tensordot(k, nodes(shape), 1)
    result = gradient(scalar(np.sin(phase)))
    assert result.dims == ("component", "x", "y", "z")
    assert result.dtype == np.float32
    np.testing.assert_allclose(
        result, k[:, None, None, None] * np.cos(phase), atol=1e-5 * abs(k).max()
    )


@pytest.mark.parametrize("direction", range(3))
def test_divergence_and_curl_of_a_plane_wave(direction):
    shape = (12, 9, 10)
    k = 2 * np.pi * np.array((1, 2, -1)) / LENGTHS
    phase = np.tensordot(k, nodes(shape), 1)
    polarisation = np.eye(3)[direction]
    v = vector(polarisation[:, None, None, None] * np.sin(phase))
    np.testing.assert_allclose(divergence(v), k @ polarisation * np.cos(phase), atol=1e-5)
    expected = np.cross(k, polarisation)[:, None, None, None] * np.cos(phase)
    np.testing.assert_allclose(curl(v), expected, atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_odd_derivative_at_nyquist_is_zero(axis):
    shape = [1, 1, 1]
    shape[axis] = 8
    alternating = np.broadcast_to((-1.0) ** np.arange(8).reshape(shape), (8, 8, 8))
    assert abs(gradient(scalar(alternating))).max() < 1e-6
    v = vector(np.stack([alternating] * 3))
    assert abs(divergence(v)).max() < 1e-6
    assert abs(curl(v)).max() < 1e-6


# --- identities ---


@pytest.mark.parametrize("shape", SHAPES)
def test_curl_of_a_gradient_is_zero(shape):
    slope = gradient(scalar(noise(*shape)))
    assert abs(curl(slope)).max() < 1e-5 * abs(slope).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_of_a_curl_is_zero(shape):
    swirl = curl(vector(noise(3, *shape)))
    assert abs(divergence(swirl)).max() < 1e-5 * max(abs(swirl).max(), 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_of_a_gradient_is_minus_k_squared(shape):
    field = without_nyquist(noise(*shape))
    k2 = (full_k(shape) ** 2).sum(axis=0)
    expected = np.fft.ifftn(-k2 * np.fft.fftn(field)).real
    np.testing.assert_allclose(
        divergence(gradient(scalar(field))), expected, atol=1e-5 * abs(expected).max()
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_have_zero_mean(shape):
    for result in (
        gradient(scalar(noise(*shape) + 3)),
        divergence(vector(noise(3, *shape) + 3)),
        curl(vector(noise(3, *shape) + 3)),
    ):
        np.testing.assert_allclose(result.mean(list(AXES)), 0, atol=1e-6)


@given(shift=st.tuples(*[st.integers(-20, 20)] * 3))
def test_derivatives_of_a_shifted_field_are_shifted(shift):
    v = noise(3, 8, 5, 6)
    for operation, data, lead in ((divergence, v, 0), (curl, v, 1)):
        axes = [lead + axis for axis in range(3)]
        moved = operation(vector(np.roll(data, shift, axis=(1, 2, 3))))
        expected = np.roll(operation(vector(data)).values, shift, axis=axes)
        np.testing.assert_allclose(moved, expected, atol=2e-6)


@given(order=st.permutations(range(3)))
def test_axes_permuted_with_their_components(order):
    v = noise(3, 8, 5, 6)
    lengths = [LENGTHS[axis] for axis in order]

    def turn(array, lead):
        out = array.transpose(*range(lead), *(lead + axis for axis in order))
        return out[list(order)] if lead else out

    turned = vector(turn(v, 1), lengths)
    np.testing.assert_allclose(divergence(turned), turn(divergence(vector(v)).values, 0), atol=2e-6)
    # A curl is an axial vector: an odd permutation turns its sign.
    parity = np.linalg.det(np.eye(3)[list(order)])
    np.testing.assert_allclose(curl(turned), parity * turn(curl(vector(v)).values, 1), atol=2e-6)


# --- labels ---


def test_labels_and_units():
    facts = {"redshift": 0.59, "note": "not a fact of the box"}
    slope = gradient(scalar(noise(4, 4, 4), **facts))
    assert slope.name == "gradient"
    assert slope.attrs["units"] == "h/Mpc"
    assert slope.attrs["long_name"] == "gradient of matter density over its mean, 1 + delta"
    assert slope.attrs["redshift"] == 0.59
    assert "note" not in slope.attrs
    v = vector(noise(3, 4, 4, 4))
    theta = divergence(v)
    assert theta.attrs["units"] == "km/s/(Mpc/h)"
    assert theta.dims == AXES
    assert "component" not in theta.coords
    assert list(curl(v)["component"].values) == list(AXES)
    assert gradient(scalar(noise(4, 4, 4)).rename(None)).attrs["long_name"].startswith("gradient")
    bare = scalar(noise(4, 4, 4)).rename(None)
    del bare.attrs["long_name"]
    assert gradient(bare).attrs["long_name"] == "gradient of field"


def test_any_order_of_dims_and_the_input_stays():
    v = vector(noise(3, 8, 5, 6))
    before = v.copy(deep=True)
    turned = v.transpose("z", "x", "component", "y")
    xr.testing.assert_identical(divergence(turned), divergence(v))
    xr.testing.assert_identical(curl(turned), curl(v))
    assert curl(turned).dims == v.dims
    xr.testing.assert_identical(v, before)


def test_wrong_dims():
    with pytest.raises(DimensionError, match=r"`velocity` has dims .*expected \('x', 'y', 'z'\)"):
        gradient(vector(noise(3, 4, 4, 4)))
    for operation in (divergence, curl):
        with pytest.raises(DimensionError, match=r"`density` has dims .*expected \('component'"):
            operation(scalar(noise(4, 4, 4)))


# --- laziness ---


@pytest.mark.parametrize("operation", [gradient, divergence, curl])
def test_lazy_in_lazy_out_with_one_compute(operation, count_computes, no_computes):
    eager = scalar(noise(8, 8, 8)) if operation is gradient else vector(noise(3, 8, 8, 8))
    lazy = eager.chunk({axis: 4 for axis in AXES})
    with no_computes():
        result = operation(lazy)
    assert isinstance(result.data, da.Array)
    assert result.dtype == np.float32
    with count_computes() as computes:
        computed = result.compute()
    assert computes.total == 1
    assert computed.dtype == np.float32
    xr.testing.assert_identical(computed, operation(eager))


def test_lazy_derivative_has_chunks_of_a_store():
    lazy = scalar(da.zeros((80, 64, 8), chunks=32, dtype=np.float32))
    assert gradient(lazy).chunks == ((1, 1, 1), (64, 16), (64,), (8,))
