"""Counts of cells by value: against numpy's histograms, and of parts against the whole."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmofields.conventions import AXES, DimensionError, GridMismatchError, label, make_grid
from cosmofields.kernels.counts import count_cells
from cosmofields.statistics import histogram, joint_distribution, misalignment

LINEAR = np.linspace(-2, 2, 9)
LOGARITHMIC = np.geomspace(0.05, 20, 31)
ODD = np.array([-3.0, -1.1, -1e-6, 0.0, 2.5e-7, 0.4, 0.41, 7.0])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scalar(data, **attrs):
    facts = {"box_size": 30.0, "redshift": 0.5, **attrs}
    return label("density", data, make_grid(data.shape, (30.0,) * 3), facts)


def vector(data):
    return label("velocity", data, make_grid(data.shape[1:], (30.0,) * 3), {"box_size": 30.0})


# --- against numpy ---


@pytest.mark.parametrize("edges", [LINEAR, LOGARITHMIC, ODD, [0.0, 1.0]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4", np.int32])
def test_histogram_is_that_of_numpy(edges, dtype):
    data = (2 * noise(6, 7, 8)).astype(dtype)
    data[0, 0, :4] = edges[0], edges[-1], edges[1], 0
    counts = histogram(scalar(data), edges=edges)
    expected, _ = np.histogram(data.astype(np.float64), edges)
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.int64
    assert counts.attrs["outside"] == data.size - expected.sum()


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f4", "f8")])
def test_joint_distribution_is_that_of_numpy(dtypes):
    p, t = (noise(6, 7, 8, seed=i).astype(dtype) for i, dtype in enumerate(dtypes))
    counts = joint_distribution(scalar(p), scalar(t), edges=LINEAR, other_edges=ODD)
    expected, _, _ = np.histogram2d(p.ravel(), t.ravel(), bins=(LINEAR, ODD))
    np.testing.assert_array_equal(counts, expected)
    assert counts.attrs["outside"] == p.size - expected.sum()
    same = joint_distribution(scalar(p), scalar(t), edges=LINEAR)
    np.testing.assert_array_equal(same, np.histogram2d(p.ravel(), t.ravel(), bins=[LINEAR] * 2)[0])


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(
    values=arrays(np.float64, (3, 2, 4), elements=st.floats(width=64)),
    edges=st.lists(finite, min_size=2, max_size=40, unique=True).map(sorted),
    single=st.booleans(),
)
def test_any_value_and_any_edges(values, edges, single):
    """Beside, on and beyond the edges, however close these are; NaN, infinity, -0."""
    edges = np.array(edges)
    near = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf)])
    values = np.resize(np.concatenate([values.ravel(), near, [-0.0]]), (2, 8, 12))
    if single:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    expected, _ = np.histogram(values[np.isfinite(values)].astype(np.float64), edges)
    np.testing.assert_array_equal(count_cells([values], [edges]), expected)


def test_edges_closer_than_float32_tells():
    edges = 1e3 + np.arange(300) * 1e-6
    values = np.random.default_rng(0).uniform(1e3 - 1e-5, 1e3 + 4e-4, (10, 10, 10))
    expected, _ = np.histogram(values, edges)
    np.testing.assert_array_equal(count_cells([values], [edges]), expected)
    zeros = np.array([-0.0, 0.0] * 4).reshape(2, 2, 2)
    np.testing.assert_array_equal(count_cells([zeros], [np.array([-1.0, 0.0, 1.0])]), [0, 8])


def test_nan_and_what_lies_outside():
    p, t = noise(6, 6, 6), noise(6, 6, 6, seed=1)
    p[0, 0, 0], t[0, 0, 1], p[0, 0, 2], t[0, 0, 3] = np.nan, np.nan, np.inf, 100
    joint = joint_distribution(scalar(p), scalar(t), edges=[-10.0, 0.0, 10.0])
    assert joint.attrs["outside"] == 4
    assert int(joint.sum()) == 6**3 - 4
    assert histogram(scalar(p), edges=[-10.0, 10.0]).attrs["outside"] == 2


def test_components_count_together():
    v, w = noise(3, 5, 6, 7), noise(3, 5, 6, 7, seed=1)
    np.testing.assert_array_equal(
        histogram(vector(v), edges=LINEAR), np.histogram(v.astype(np.float64), LINEAR)[0]
    )
    joint = joint_distribution(vector(v), vector(w), edges=LINEAR)
    expected, _, _ = np.histogram2d(v.ravel(), w.ravel(), bins=[LINEAR] * 2)
    np.testing.assert_array_equal(joint, expected)


def test_opposite_vectors_are_in_the_last_bin():
    v = vector(noise(3, 12, 12, 12))
    counts = histogram(misalignment(-v, v), edges=np.linspace(0, 2, 21))
    assert counts.values.tolist() == [0] * 19 + [12**3]


# --- counts add up ---


@given(cuts=st.tuples(*[st.integers(1, 6)] * 3), axis=st.integers(0, 2))
def test_parts_add_up_to_the_whole(cuts, axis):
    p, t = scalar(noise(8, 7, 9)), scalar(noise(8, 7, 9, seed=1))
    whole = joint_distribution(p, t, edges=LINEAR)
    cut = {AXES[axis]: slice(cuts[axis])}, {AXES[axis]: slice(cuts[axis], None)}
    parts = [joint_distribution(p.isel(part), t.isel(part), edges=LINEAR) for part in cut]
    xr.testing.assert_equal(parts[0] + parts[1], whole)
    assert sum(part.attrs["outside"] for part in parts) == whole.attrs["outside"]
    lazy = p.chunk(dict(zip(AXES, cuts, strict=True)))
    xr.testing.assert_identical(joint_distribution(lazy, t, edges=LINEAR), whole)
    xr.testing.assert_identical(histogram(lazy, edges=ODD), histogram(p, edges=ODD))


@pytest.mark.parametrize("threads", [1, 2, 5, 40])
def test_any_number_of_threads(threads):
    data = noise(6, 5, 4), noise(6, 5, 4, seed=1)
    expected, _, _ = np.histogram2d(*(part.ravel() for part in data), bins=(LINEAR, ODD))
    np.testing.assert_array_equal(count_cells(data, [LINEAR, ODD], threads), expected)


def test_lazy_fields_in_one_compute_block_by_block(count_computes):
    """Neither field is put together, nor are the counts of all blocks kept."""
    v, w = noise(3, 16, 16, 16), noise(3, 16, 16, 16, seed=1)
    expected = joint_distribution(vector(v), vector(w), edges=LINEAR)
    lazy = vector(v).chunk({"component": 2, "x": 4, "y": 16, "z": 3})
    other = vector(w).chunk({"component": 1, "x": 5})
    with count_computes() as computes:
        got = joint_distribution(lazy, other, edges=LINEAR)
    assert computes.total == 1
    xr.testing.assert_identical(got, expected)
    largest = []

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            largest.append(getattr(result, "nbytes", 0))

    def block(block_info=None):
        return noise(*(stop - start for start, stop in block_info[None]["array-location"]))

    field = scalar(da.map_blocks(block, chunks=((8,) * 4,) * 3, dtype=np.float32))
    with Watch(), dask.config.set(scheduler="synchronous"):
        histogram(field, edges=LINEAR)
    assert 0 < max(largest) <= 8**3 * 4


def test_read_only_and_turned_arrays():
    """As another process or a memory map hands them over."""
    data = noise(5, 6, 7)
    expected = histogram(scalar(data), edges=LINEAR)
    data.flags.writeable = False
    xr.testing.assert_identical(histogram(scalar(data), edges=LINEAR), expected)
    xr.testing.assert_identical(
        histogram(scalar(data).transpose("z", "x", "y"), edges=LINEAR), expected
    )
    constant = scalar(np.broadcast_to(np.float32(1), (4, 4, 4)))
    assert int(histogram(constant, edges=LINEAR).max()) == 64


# --- labels ---


def test_labels(tmp_path):
    p = scalar(noise(5, 6, 7), note="not a fact of the box")
    speed = scalar(noise(5, 6, 7)).rename("speed").assign_attrs(units="km/s", long_name="a speed")
    result = joint_distribution(
        p, speed, edges=LOGARITHMIC, other_edges=LINEAR, dims=("density", "speed")
    )
    assert result.dims == ("density", "speed")
    assert result.name == "cells"
    assert result["speed"].attrs["units"] == result["speed_lower"].attrs["units"] == "km/s"
    assert result["speed"].attrs["long_name"] == "a speed"
    np.testing.assert_allclose(result["speed"], LINEAR[:-1] + 0.25)
    np.testing.assert_array_equal(result["density_lower"], LOGARITHMIC[:-1])
    np.testing.assert_array_equal(result["density_upper"], LOGARITHMIC[1:])
    assert "note" not in result.attrs
    assert result.attrs["redshift"] == 0.5
    assert result.attrs["long_name"] == "joint distribution of density, speed"
    one = histogram(p, edges=LOGARITHMIC)
    assert one.dims == ("value",)
    assert set(one.coords) == {"value", "value_lower", "value_upper"}
    assert one.attrs["long_name"] == "histogram of density"
    for ds in (result.to_dataset(), one.to_dataset()):
        ds.to_zarr(tmp_path / "counts.zarr", mode="w", consolidated=False)
        with xr.open_zarr(tmp_path / "counts.zarr", consolidated=False) as back:
            xr.testing.assert_identical(back.load(), ds)
        ds.to_netcdf(tmp_path / "counts.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "counts.nc", engine="h5netcdf") as back:
            assert back.load().equals(ds)


def test_fields_that_do_not_fit_and_edges_that_are_none():
    p = scalar(noise(4, 4, 4))
    for edges in ([1.0], [1.0, 1.0], [2.0, 1.0], [0.0, np.nan], [0.0, np.inf], [[0.0, 1.0]]):
        with pytest.raises(DimensionError, match="expected two or more increasing numbers"):
            histogram(p, edges=edges)
        with pytest.raises(DimensionError, match="^other_edges="):
            joint_distribution(p, p, edges=LINEAR, other_edges=edges)
    with pytest.raises(GridMismatchError, match="4 against 5 cells"):
        joint_distribution(p, scalar(noise(5, 4, 4)), edges=LINEAR)
    with pytest.raises(DimensionError, match="two scalars or two vectors"):
        joint_distribution(p, vector(noise(3, 4, 4, 4)), edges=LINEAR)
    with pytest.raises(DimensionError, match="expected"):
        histogram(p.expand_dims("mass_bin"), edges=LINEAR)


def test_dims_and_edges_that_are_none():
    a = scalar(noise(4, 4, 4))
    for dims in (("v", "v"), ("v",)):
        with pytest.raises(DimensionError, match="expected two different names"):
            joint_distribution(a, a, edges=[0, 1], dims=dims)
    with pytest.raises(DimensionError, match="edges='abc'; expected two or more increasing"):
        histogram(a, edges="abc")
