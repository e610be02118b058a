"""Derivatives of periodic fields and the parts of a vector: plane waves, identities, laziness."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosmofields.conventions import (
    AXES,
    CosmofieldsError,
    DimensionError,
    NotPeriodicError,
    label,
    make_grid,
)
from cosmofields.derivatives import (
    curl,
    divergence,
    gradient,
    helmholtz,
    longitudinal,
    transverse,
)
from cosmofields.spectral import power_spectrum

SHAPES = [(8, 8, 8), (9, 7, 5), (8, 5, 6), (2, 3, 4)]
LENGTHS = (90.0, 70.0, 50.0)
METHODS = ["spectral", "finite"]


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


def seen(k, shape, method):
    """The wavenumber (3, ...) by which a derivative multiplies a wave k."""
    cells = np.divide(LENGTHS, shape).reshape(3, *[1] * (np.ndim(k) - 1))
    return k if method == "spectral" else np.sin(k * cells) / cells


def full_k(shape, lengths=LENGTHS):
    parts = [2 * np.pi * np.fft.fftfreq(n, s / n) for n, s in zip(shape, lengths, strict=True)]
    return np.stack(np.meshgrid(*parts, indexing="ij"))


# --- plane waves ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wave", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, -1, 3), (-3, 2, -1)])
def test_gradient_of_a_plane_wave(wave, method):
    shape = (12, 9, 10)
    k = 2 * np.pi * np.array(wave) / LENGTHS
    phase = np.tensordot(k, nodes(shape), 1)
    result = gradient(scalar(np.sin(phase)), method=method)
    assert result.dims == ("component", "x", "y", "z")
    assert result.dtype == np.float32
    q = seen(k, shape, method)
    np.testing.assert_allclose(
        result, q[:, None, None, None] * np.cos(phase), atol=1e-5 * abs(k).max()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", range(3))
def test_divergence_and_curl_of_a_plane_wave(direction, method):
    shape = (12, 9, 10)
    k = 2 * np.pi * np.array((1, 2, -1)) / LENGTHS
    phase = np.tensordot(k, nodes(shape), 1)
    polarisation = np.eye(3)[direction]
    v = vector(polarisation[:, None, None, None] * np.sin(phase))
    q = seen(k, shape, method)
    theta, omega = divergence(v, method=method), curl(v, method=method)
    np.testing.assert_allclose(theta, q @ polarisation * np.cos(phase), atol=2e-6)
    expected = np.cross(q, polarisation)[:, None, None, None] * np.cos(phase)
    np.testing.assert_allclose(omega, expected, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", range(3))
def test_odd_derivative_at_nyquist_is_zero(axis, method):
    shape = [1, 1, 1]
    shape[axis] = 8
    alternating = np.broadcast_to((-1.0) ** np.arange(8).reshape(shape), (8, 8, 8))
    assert abs(gradient(scalar(alternating), method=method)).max() < 1e-6
    v = vector(np.stack([alternating] * 3))
    assert abs(divergence(v, method=method)).max() < 1e-6
    assert abs(curl(v, method=method)).max() < 1e-6


# --- finite differences ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.uint8])
def test_differences_of_the_next_cells(shape, dtype):
    v = (100 * abs(noise(3, *shape))).astype(dtype)

    def slope(component, axis):
        f = v[component].astype(np.float64)
        step = 2 * LENGTHS[axis] / shape[axis]
        return (np.roll(f, -1, axis) - np.roll(f, 1, axis)) / step

    tolerance = {"rtol": 1e-5, "atol": 1e-4}
    expected = [slope(0, axis) for axis in range(3)]
    np.testing.assert_allclose(gradient(scalar(v[0]), method="finite"), expected, **tolerance)
    expected = slope(0, 0) + slope(1, 1) + slope(2, 2)
    np.testing.assert_allclose(divergence(vector(v), method="finite"), expected, **tolerance)
    expected = [slope(2, 1) - slope(1, 2), slope(0, 2) - slope(2, 0), slope(1, 0) - slope(0, 1)]
    np.testing.assert_allclose(curl(vector(v), method="finite"), expected, **tolerance)


def test_differences_are_of_second_order():
    def error(n):
        x = nodes((n, n, n))[0] * (2 * np.pi / LENGTHS[0])
        exact = 2 * np.pi / LENGTHS[0] * np.cos(x) * np.exp(np.sin(x))
        return abs(gradient(scalar(np.exp(np.sin(x))), method="finite")[0] - exact).max()

    assert float(error(16) / error(32)) == pytest.approx(4, rel=0.1)


@settings(max_examples=8)
@example(chunks=(1, 9, 3), component=3, order=["y", "component", "x", "z"])
@given(
    chunks=st.tuples(*[st.integers(2, 9)] * 3),
    component=st.integers(1, 3),
    order=st.permutations(["component", *AXES]),
)
def test_differences_chunk_by_chunk(chunks, component, order):
    v = vector(noise(3, 8, 5, 6)).transpose(*order)
    lazy = v.chunk(dict(zip(AXES, chunks, strict=True)) | {"component": component})
    for operation in (divergence, curl):
        expected = operation(v, method="finite")
        got = operation(lazy, method="finite")
        assert isinstance(got.data, da.Array)
        assert got.chunksizes["x"] == lazy.chunksizes["x"]
        xr.testing.assert_identical(got.compute(), expected)
    one = v.isel(component=0, drop=True)
    got = gradient(lazy.isel(component=0, drop=True), method="finite")
    xr.testing.assert_identical(got.compute(), gradient(one, method="finite"))


def test_a_difference_needs_the_next_chunks_alone():
    """A cell of the result is made of its own chunk and a plane of each neighbour."""
    calls = []

    def block(block_info=None):
        calls.append(block_info[None]["chunk-location"])
        return noise(*(stop - start for start, stop in block_info[None]["array-location"]))

    data = da.map_blocks(block, chunks=((4,) * 5,) * 3, dtype=np.float32)
    calls.clear()
    slope = gradient(scalar(data), method="finite")
    assert not calls
    slope.isel(x=slice(0, 2), y=slice(9, 10), z=slice(9, 10)).compute()
    near = {(4, 2, 2), (0, 2, 2), (1, 2, 2), (0, 1, 2), (0, 3, 2), (0, 2, 1), (0, 2, 3)}
    assert set(calls) == near


# --- identities ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_curl_of_a_gradient_is_zero(shape, method):
    slope = gradient(scalar(noise(*shape)), method=method)
    assert abs(curl(slope, method=method)).max() < 1e-6 * abs(slope).max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_of_a_curl_is_zero(shape, method):
    swirl = curl(vector(noise(3, *shape)), method=method)
    assert abs(divergence(swirl, method=method)).max() < 1e-6 * max(abs(swirl).max(), 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_of_a_gradient_is_minus_k_squared(shape):
    field = without_nyquist(noise(*shape))
    k2 = (full_k(shape) ** 2).sum(axis=0)
    expected = np.fft.ifftn(-k2 * np.fft.fftn(field)).real
    np.testing.assert_allclose(
        divergence(gradient(scalar(field))), expected, atol=1e-6 * abs(expected).max()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_have_zero_mean(shape, method):
    for result in (
        gradient(scalar(noise(*shape) + 3), method=method),
        divergence(vector(noise(3, *shape) + 3), method=method),
        curl(vector(noise(3, *shape) + 3), method=method),
    ):
        np.testing.assert_allclose(result.mean(list(AXES)), 0, atol=1e-6)


VECTORS = [divergence, curl, longitudinal, transverse]


@given(shift=st.tuples(*[st.integers(-20, 20)] * 3))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operation", VECTORS)
def test_what_is_made_of_a_shifted_field_is_shifted(operation, method, shift):
    """Also when its coordinates are rolled with it."""
    v = vector(noise(3, 8, 5, 6))
    whole = operation(v, method=method)
    moved = operation(v.copy(data=np.roll(v, shift, axis=(1, 2, 3))), method=method)
    steps = dict(zip(AXES, shift, strict=True))
    np.testing.assert_allclose(moved, whole.roll(steps), atol=2e-6)
    rolled = operation(v.roll(steps, roll_coords=True), method=method)
    xr.testing.assert_allclose(rolled, whole.roll(steps, roll_coords=True), atol=2e-6)


@given(order=st.permutations(range(3)))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operation", VECTORS)
def test_axes_permuted_with_their_components(operation, method, order):
    v = noise(3, 8, 5, 6)
    lengths = [LENGTHS[axis] for axis in order]

    def turn(array):
        lead = array.ndim - 3
        out = array.transpose(*range(lead), *(lead + axis for axis in order))
        return out[list(order)] if lead else out

    expected = turn(operation(vector(v), method=method).values)
    # A curl is an axial vector: an odd permutation turns its sign.
    parity = np.linalg.det(np.eye(3)[list(order)]) if operation is curl else 1
    got = operation(vector(turn(v), lengths), method=method)
    np.testing.assert_allclose(got, parity * expected, atol=2e-6)


# --- the two parts of a vector ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_against_plain_numpy(shape, method):
    v = noise(3, *shape) + np.array([5, -2, 1]).reshape(3, 1, 1, 1)
    q = seen(full_k(shape), shape, method)
    for axis, n in enumerate(shape):
        if n % 2 == 0:
            np.moveaxis(q[axis], axis, 0)[n // 2] = 0
    modes = np.fft.fftn(v, axes=(1, 2, 3))
    q2 = (q**2).sum(axis=0)
    first = q * (q * modes).sum(axis=0) / np.where(q2 > 0, q2, 1)
    first = np.fft.ifftn(first, axes=(1, 2, 3)).real
    parts = helmholtz(vector(v), method=method)
    np.testing.assert_allclose(parts["longitudinal"], first, atol=3e-6)
    np.testing.assert_allclose(parts["transverse"], v - first, atol=3e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_has_no_curl_and_the_other_no_divergence(shape, method):
    """By our own derivatives, with all that lies at Nyquist."""
    v = vector(300 * noise(3, *shape))
    parts = helmholtz(v, method=method)
    # Of rounding alone: that of v times the largest wavenumber.
    rounding = 1e-6 * 300 * np.pi * max(np.divide(shape, LENGTHS))
    assert abs(curl(parts["longitudinal"], method=method)).max() < rounding
    assert abs(divergence(parts["transverse"], method=method)).max() < rounding
    for name, operation in (("longitudinal", divergence), ("transverse", curl)):
        kept = operation(parts[name], method=method)
        np.testing.assert_allclose(kept, operation(v, method=method), atol=rounding)
    np.testing.assert_allclose(
        parts["longitudinal"] + parts["transverse"], v, rtol=0, atol=1.2e-7 * float(abs(v).max())
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_projections(shape, method):
    v = vector(noise(3, *shape))
    parts = helmholtz(v, method=method)
    for name, operation, other in (
        ("longitudinal", longitudinal, transverse),
        ("transverse", transverse, longitudinal),
    ):
        part = parts[name]
        xr.testing.assert_identical(operation(v, method=method), part)
        np.testing.assert_allclose(operation(part, method=method), part, atol=2e-6)
        np.testing.assert_allclose(other(part, method=method), 0, atol=2e-6)
    # Orthogonal: over the box, and so (Parseval) over modes.
    first, second = (parts[name].values.astype(np.float64) for name in parts)
    total = (v.values.astype(np.float64) ** 2).sum()
    assert (first**2).sum() + (second**2).sum() == pytest.approx(total, rel=1e-6)
    assert abs((first * second).sum()) < 1e-6 * total


def test_spectra_of_the_parts():
    v = vector(300 * noise(3, 18, 14, 10))
    parts = helmholtz(v)
    power = {name: power_spectrum(part)["power"] for name, part in parts.items()}
    total = power_spectrum(v)["power"]
    xr.testing.assert_allclose(power["longitudinal"] + power["transverse"], total, rtol=1e-5)
    # Mode by mode, |div v|^2 = k^2 |v_L|^2 and |curl v|^2 = k^2 |v_T|^2; no Nyquist in odd grids.
    v = vector(noise(3, 9, 7, 5))
    parts = helmholtz(v)

    def square(field):
        modes = np.fft.fftn(field, axes=(-3, -2, -1))
        return (abs(modes.reshape(-1, 9, 7, 5)) ** 2).sum(axis=0)

    k2 = (full_k((9, 7, 5)) ** 2).sum(axis=0)
    for name, operation in (("longitudinal", divergence), ("transverse", curl)):
        got, expected = square(operation(v)), k2 * square(parts[name])
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6 * expected.max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gradient_is_longitudinal_and_a_curl_transverse(shape, method):
    flow = 300 * gradient(scalar(noise(*shape)), method=method)
    swirl = 300 * curl(vector(noise(3, *shape)), method=method)
    mean = xr.DataArray([100.0, -20.0, 5.0], dims="component")
    v = (flow + swirl + mean).assign_attrs(vector(noise(3, *shape)).attrs)
    parts = helmholtz(v, method=method)
    tolerance = {"rtol": 0, "atol": 1e-6 * float(abs(v).max())}
    np.testing.assert_allclose(parts["longitudinal"], flow, **tolerance)
    np.testing.assert_allclose(parts["transverse"], swirl + mean, **tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_and_what_alternates_are_transverse(method):
    sign = (-1.0) ** np.arange(8)
    alternating = 2 + sign[:, None, None] * np.ones((8, 5, 6))
    v = vector(np.stack([alternating, 3 * alternating, 0 * alternating]))
    parts = helmholtz(v, method=method)
    assert abs(parts["longitudinal"]).max() < 1e-6
    np.testing.assert_allclose(parts["transverse"], v, atol=1e-6)


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


def test_labels_of_the_parts():
    v = vector(noise(3, 4, 4, 4), redshift=0.59, note="not a fact of the box")
    parts = helmholtz(v)
    assert list(parts) == ["longitudinal", "transverse"]
    assert parts.attrs == {"box_size": list(LENGTHS), "redshift": 0.59}
    for name, part in parts.items():
        assert part.dims == v.dims
        assert part.dtype == np.float32
        assert part.attrs["units"] == "km/s"
        assert part.attrs["redshift"] == 0.59
        assert part.attrs["long_name"] == f"{name} part of peculiar velocity"
        assert part.attrs.keys().isdisjoint({"note"})
        xr.testing.assert_equal(part.coords.to_dataset(), v.coords.to_dataset())
    bare = v.rename(None).copy(data=v.values.astype(np.float64))
    for key in ("units", "long_name"):
        del bare.attrs[key]
    assert transverse(bare).attrs["long_name"] == "transverse part of field"
    assert transverse(bare).attrs["units"] == "1"
    assert transverse(bare).dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operation", [*VECTORS, helmholtz])
def test_any_order_of_dims_and_the_input_stays(operation, method):
    v = vector(noise(3, 8, 5, 6))
    before = v.copy(deep=True)
    turned = v.transpose("z", "x", "component", "y")
    xr.testing.assert_identical(operation(turned, method=method), operation(v, method=method))
    xr.testing.assert_identical(v, before)


# --- errors ---


def test_wrong_dims():
    with pytest.raises(DimensionError, match=r"`velocity` has dims .*expected \('x', 'y', 'z'\)"):
        gradient(vector(noise(3, 4, 4, 4)))
    for operation in (*VECTORS, helmholtz):
        with pytest.raises(DimensionError, match=r"`density` has dims .*expected \('component'"):
            operation(scalar(noise(4, 4, 4)))


@pytest.mark.parametrize("operation", [*VECTORS, gradient, helmholtz])
def test_what_is_refused(operation):
    v = vector(noise(3, 8, 5, 6))
    whole = v.isel(component=0, drop=True) if operation is gradient else v
    with pytest.raises(CosmofieldsError, match="method='cubic'; expected 'spectral' or 'finite'"):
        operation(whole, method="cubic")
    for method in METHODS:
        with pytest.raises(NotPeriodicError, match=r"needs a periodic box"):
            operation(whole.assign_attrs(periodic=False), method=method)
        with pytest.raises(NotPeriodicError, match="`x` has 4 nodes"):
            operation(whole.isel(x=slice(4)), method=method)


# --- laziness ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operation", [gradient, *VECTORS])
def test_lazy_in_lazy_out_with_one_compute(operation, method, count_computes, no_computes):
    eager = scalar(noise(8, 8, 8)) if operation is gradient else vector(noise(3, 8, 8, 8))
    lazy = eager.chunk({axis: 4 for axis in AXES})
    with no_computes():
        result = operation(lazy, method=method)
    assert isinstance(result.data, da.Array)
    assert result.dtype == np.float32
    with count_computes() as computes:
        computed = result.compute()
    assert computes.total == 1
    assert computed.dtype == np.float32
    expected = operation(eager, method=method)
    assert isinstance(expected.data, np.ndarray)
    xr.testing.assert_identical(computed, expected)


def test_both_parts_in_one_compute(count_computes, no_computes):
    v = vector(noise(3, 80, 8, 8))
    with no_computes():
        lazy = helmholtz(v.chunk({"x": 13, "component": 2}))
    assert lazy["longitudinal"].chunks == lazy["transverse"].chunks
    assert lazy["transverse"].chunks == ((1, 1, 1), (64, 16), (8,), (8,))
    with count_computes() as computes:
        got = lazy.compute()
    assert computes.total == 1
    xr.testing.assert_identical(got, helmholtz(v))


def test_lazy_derivative_has_chunks_of_a_store():
    lazy = scalar(da.zeros((80, 64, 8), chunks=32, dtype=np.float32))
    assert gradient(lazy).chunks == ((1, 1, 1), (64, 16), (64,), (8,))
