"""Fourier transforms of fields: against numpy, there and back, and their wavenumbers."""

import numpy as np
import pytest
import xarray as xr

from cosmofields.conventions import DimensionError, MissingAttributeError, label, make_grid
from cosmofields.fourier import inverse, transform
from cosmofields.kernels.modes import waves

SHAPES = [(8, 8, 8), (9, 7, 5), (8, 5, 6), (2, 3, 4)]
LENGTHS = (90.0, 70.0, 50.0)


def scalar(data, lengths=LENGTHS, **attrs):
    grid = make_grid(data.shape, lengths)
    return label("density", data, grid, {"box_size": list(lengths), **attrs})


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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
