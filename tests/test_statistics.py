"""Cell statistics against closed forms and brute force."""

from itertools import pairwise

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis.strategies import booleans, floats, integers, sampled_from, sets

from cosmofields import statistics as st
from cosmofields.conventions import (
    AXES,
    COMPONENTS,
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    make_grid,
)
from cosmofields.kernels.moments import moments


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


# --- over cells ---


def test_scores_by_hand():
    t = velocity()
    p = 0.5 * t + velocity(seed=1) + 10
    scores = st.cell_statistics(p, t)
    assert scores.sizes == {"component": 3}
    assert scores["cells"].item() == 16**3
    assert scores["cells"].dtype == np.int64
    scores = scores.drop_vars("cells")
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


@pytest.mark.parametrize("threads", [1, 3, 50])
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f4", "f8"), ("f2", ">f4")])
def test_moments_of_any_slabs_and_types(threads, dtypes):
    a, b = ((7 * noise((3, 5, 6, 7), i) + 4).astype(dtype) for i, dtype in enumerate(dtypes))
    a.flags.writeable = False
    got = moments(a, b.transpose(0, 3, 2, 1).copy().transpose(0, 3, 2, 1), threads)
    a, b = (part.reshape(3, -1).astype(float) for part in (a, b))
    for i, row in enumerate(got):
        cov = np.cov(a[i], b[i], bias=True)
        error = ((a[i] - b[i]) ** 2).mean()
        expected = [210, a[i].mean(), b[i].mean(), cov[0, 0], cov[1, 1], cov[0, 1], error]
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_lazy_scores_block_by_block_in_one_compute(count_computes):
    p, t = velocity(), velocity(seed=1)
    lazy = p.chunk({"component": 2, "x": 5, "y": 16, "z": 7}), t.chunk({"x": 3})
    with count_computes() as computes:
        got = st.cell_statistics(*lazy)
    assert computes.total == 1
    xr.testing.assert_allclose(got, st.cell_statistics(p, t), rtol=1e-10)
    one = [part.isel(component=0, drop=True) for part in lazy]
    expected = got.isel(component=0, drop=True)
    xr.testing.assert_allclose(st.cell_statistics(*one), expected, rtol=1e-10)


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


# --- of several boxes together ---


def parts_of(p, t, cuts):
    """The statistics of slabs along x, on a dim `realization`."""
    bounds = [0, *cuts, p.sizes["x"]]
    slabs = [slice(*pair) for pair in pairwise(bounds)]
    results = [st.cell_statistics(p.isel(x=x), t.isel(x=x)) for x in slabs]
    return xr.concat(results, "realization")


@given(
    cuts=sets(integers(1, 11), max_size=5).map(sorted),
    offset=floats(-3e4, 3e4),
    scale=sampled_from([1e-3, 1.0, 1e3]),
    is_vector=booleans(),
)
def test_pooled_parts_are_the_whole(cuts, offset, scale, is_vector):
    shape = (3, 12, 4, 5) if is_vector else (12, 4, 5)
    t = field(scale * (noise(shape) + offset))
    t[{"x": slice(6)}] += scale  # a trend over the parts
    p = 0.6 * t + field(scale * noise(shape, 1))
    pooled, whole = st.pool(parts_of(p, t, cuts)), st.cell_statistics(p, t)
    assert set(pooled) == set(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(pooled[name], value, rtol=1e-10, err_msg=name)
        assert pooled[name].attrs == value.attrs
        assert pooled[name].dims == value.dims
    assert pooled["cells"].dtype == np.int64


def test_pooled_results_of_a_store(tmp_path):
    """Numbers that are still on the disk, and coordinates of the boxes."""
    results = parts_of(velocity(), velocity(seed=1), [5, 6])
    results = results.assign_coords(origin=("realization", [0.0, 5.0, 6.0]))
    results.to_zarr(tmp_path / "results.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "results.zarr", consolidated=False) as stored:
        pooled = st.pool(stored)
    assert set(pooled.coords) == {"component"}
    xr.testing.assert_identical(pooled, st.pool(results))


def test_pooled_constants():
    """A field that is constant in a part, in each part, or everywhere."""
    t = field(noise((12, 4, 5)))
    p = t * 1
    p[:4] = 0.1
    pooled, whole = st.pool(parts_of(p, t, [4, 7])), st.cell_statistics(p, t)
    xr.testing.assert_allclose(pooled, whole, rtol=1e-10)
    p[4:] = 0.7
    pooled, whole = st.pool(parts_of(p, t, [4])), st.cell_statistics(p, t)
    xr.testing.assert_allclose(pooled, whole, rtol=1e-10)
    assert float(pooled["std_predicted"]) == pytest.approx(0.6 * np.sqrt(2 / 9), rel=1e-6)
    p[:] = 0.1
    for cuts in ([4, 7], [1, 2, 3]):
        pooled, whole = st.pool(parts_of(p, t, cuts)), st.cell_statistics(p, t)
        xr.testing.assert_allclose(pooled, whole, rtol=1e-10)
        assert float(pooled["std_predicted"]) == 0
        assert np.isnan(pooled["correlation_coefficient"])
        assert np.isnan(pooled["slope"])


def test_pooled_misalignment_and_parts_without_cells():
    """Weighted by the cells that have an angle; a part without any counts for nothing."""
    v, w = velocity(), velocity(seed=1)
    v[:, :8, :, :3] = 0
    v[:, 8:12] = 0
    angle = st.misalignment(v, w)
    slabs = [angle.isel(x=slice(start, start + 4)).values for start in range(0, 16, 4)]
    counts = xr.DataArray([np.isfinite(slab).sum() for slab in slabs], dims="box")
    assert counts[2] == 0
    assert counts[0] < counts[3]
    real = [slab[np.isfinite(slab)].astype(float) for slab in slabs]
    mean, std = (
        xr.DataArray([np.nan if not s.size else getattr(s, f)() for s in real], dims="box")
        for f in ("mean", "std")
    )
    mean = mean.assign_coords(box=[4, 5, 6, 7], origin=("box", [0.0, 4.0, 8.0, 12.0]))
    pooled = st.pool_moments(counts, mean, std, "box")
    together = np.concatenate(real)
    np.testing.assert_allclose(pooled, [together.mean(), together.std()], rtol=1e-12)
    assert not pooled[0].coords
    nothing = st.pool_moments(counts * 0, mean, std, "box")
    assert np.isnan(nothing).all()


def test_a_nan_in_a_part_with_cells_is_not_hidden():
    results = parts_of(velocity(), velocity(seed=1), [5])
    results["mean_true"][0, 1] = np.nan
    pooled = st.pool(results)
    assert np.isnan(pooled["std_true"]).values.tolist() == [False, True, False]
    assert np.isfinite(pooled["std_predicted"]).all()


def test_what_cannot_be_pooled():
    results = parts_of(velocity(), velocity(seed=1), [5])
    with pytest.raises(MissingVariableError, match="no cells, rms_error in this Dataset"):
        st.pool(results.drop_vars(["cells", "rms_error"]))
    with pytest.raises(DimensionError, match=r"dim='box'; expected a dim of the counts"):
        st.pool(results, "box")


# --- laziness, inputs, errors ---


def test_lazy_inputs_give_the_same_numbers():
    p, t = velocity(), velocity(seed=1)
    chunks = {"component": 1, "x": 5, "y": 16, "z": 7}
    lazy_p, lazy_t = p.chunk(chunks), t.chunk(chunks)
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
    st.cell_statistics(p, t)
    st.misalignment(p, t)
    st.magnitude(p)
    for before, after in zip(kept, (p, t), strict=True):
        xr.testing.assert_identical(before, after)


def test_fields_that_do_not_fit_are_refused():
    a, v = field(noise((8,) * 3)), velocity(8)
    with pytest.raises(GridMismatchError, match="8 against 10 cells"):
        st.rms_error(a, field(noise((10,) * 3)))
    with pytest.raises(DimensionError, match="two scalars or two vectors"):
        st.cell_statistics(a, v)
    with pytest.raises(DimensionError, match="expected"):
        st.magnitude(a)
    # Statistics over cells take a part of the box.
    assert np.isfinite(st.correlation_coefficient(a.isel(x=slice(4)), a.isel(x=slice(4))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(bad):
    a = field(noise((8,) * 3))
    broken = a.copy(deep=True)
    broken[3, 2, 1] = bad
    with pytest.raises(CosmofieldsError, match="NaN or infinity"):
        st.rms_error(broken, a)
