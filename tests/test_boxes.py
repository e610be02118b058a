"""Sub-boxes: how they are cut, scored and brought together."""

import logging

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from cosmofields.boxes import combine, evaluate_sub_boxes, sub_boxes
from cosmofields.conventions import (
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    NotPeriodicError,
    label,
    make_grid,
)
from cosmofields.derivatives import curl, divergence
from cosmofields.evaluation import evaluate
from cosmofields.statistics import cell_statistics
from cosmofields.store import open_store, write_store

BOX = 160.0


def universe(seed=0, shape=(16, 16, 16), lengths=(BOX,) * 3, fields=("density", "velocity")):
    rng = np.random.default_rng(seed)
    attrs = {"box_size": list(lengths), "redshift": 0.59, "los": "z", "periodic": True}
    data = {
        "density": np.exp(rng.standard_normal(shape)).astype(np.float32),
        "velocity": (200 * rng.standard_normal((3, *shape)) + 50).astype(np.float32),
    }
    grid = make_grid(shape, lengths)
    return xr.Dataset({name: label(name, data[name], grid, attrs) for name in fields}, attrs=attrs)


@pytest.fixture(scope="module")
def true():
    return universe()


@pytest.fixture(scope="module")
def predicted(true):
    with xr.set_options(keep_attrs=True):
        return 0.7 * true + 0.3 * universe(seed=1)


@pytest.fixture(scope="module")
def whole(predicted, true):
    return evaluate(predicted, true)


@pytest.fixture(scope="module")
def parts(predicted, true):
    """Two by two by one parts that fill the box."""
    return evaluate_sub_boxes(predicted, true, [80, 80, 160])


@pytest.fixture(scope="module")
def papers():
    """The paper's geometry in cells of 75 Mpc/h."""
    return universe(shape=(16, 16, 8), lengths=(1200.0, 1200.0, 600.0), fields=["density"])


# --- cutting ---


def test_the_papers_parts(papers):
    cut = sub_boxes(papers, 600, stride=150)
    assert len(cut) == 25
    origins = [part.attrs["origin"] for part in cut]
    at = [0.0, 150.0, 300.0, 450.0, 600.0]
    assert origins == [[x, y, 0.0] for x in at for y in at]
    for part in cut:
        assert part.attrs["box_size"] == [600.0] * 3
        assert part.attrs["periodic"] is False
        assert part.density.attrs["box_size"] == [600.0] * 3
        assert part.sizes == {"x": 8, "y": 8, "z": 8}
        assert part.x[0] == part.attrs["origin"][0]
        xr.testing.assert_equal(part.density, papers.density.sel(x=part.x, y=part.y, z=part.z))


def test_parts_side_by_side_hold_every_cell_once(true):
    seen = xr.zeros_like(true.density)
    cut = sub_boxes(seen, [40, 80, 20])
    assert len(cut) == 4 * 2 * 8
    for part in cut:
        part += 1  # parts are views
    np.testing.assert_array_equal(seen, 1)


def test_what_is_left_over_is_in_no_part(true):
    assert [part.attrs["origin"][0] for part in sub_boxes(true, [60, 160, 160])] == [0, 60]


def test_lazy_fields_stay_lazy(true, no_computes):
    with no_computes():
        cut = sub_boxes(true.chunk({"x": 8}), 80)
    assert all(isinstance(part.velocity.data, da.Array) for part in cut)
    upper = slice(8, 16)
    xr.testing.assert_equal(cut[-1].compute(), true.isel(x=upper, y=upper, z=upper))


def test_parts_of_parts(true):
    inner = sub_boxes(sub_boxes(true, 80)[-1], 40)[-1]
    assert inner.attrs["origin"] == [120.0] * 3
    assert inner.attrs["box_size"] == [40.0] * 3


def test_the_parent_stays_as_it_was(true):
    before = true.copy(deep=True)
    sub_boxes(true, 80)
    xr.testing.assert_identical(before, true)


def test_errors_of_cutting(true):
    with pytest.raises(DimensionError, match=r"size=75 .* along x, .* 10 Mpc/h; the nearest is 80"):
        sub_boxes(true, 75)
    with pytest.raises(DimensionError, match="stride=3 .* the nearest is 10"):
        sub_boxes(true, 80, stride=3)
    with pytest.raises(DimensionError, match="more than the box has along y; expected at most 160"):
        sub_boxes(true, [80, 170, 80])
    with pytest.raises(DimensionError, match="one cell along x"):
        sub_boxes(true, 10)
    for bad in (-80, "large", [80, 80], np.nan):
        with pytest.raises(DimensionError, match="expected one positive length"):
            sub_boxes(true, bad)
    with pytest.raises(DimensionError, match="`y` jumps back"):
        sub_boxes(true.roll(y=3, roll_coords=True), 80)
    with pytest.raises(NotPeriodicError, match="8 nodes"):
        sub_boxes(true.isel(x=slice(8)), 80)


# --- scoring ---


def test_layout(parts, whole):
    assert parts.sizes["realization"] == 4
    assert all(value.dims[0] == "realization" for value in parts.data_vars.values())
    np.testing.assert_array_equal(parts.origin, [[0, 0, 0], [0, 80, 0], [80, 0, 0], [80, 80, 0]])
    assert parts.field.values.tolist() == whole.field.values.tolist()
    gone = whole.keys() - parts.keys()
    assert gone == {"xi_true", "xi_predicted", "xi_2d_true", "xi_2d_predicted", "pairs", "r_mean"}
    assert parts.attrs["box_size"] == [80.0, 80.0, 160.0]
    assert parts.attrs["n_grid"] == [8, 8, 16]
    assert parts.attrs["periodic"] == 0
    assert parts.attrs["taper"] == 0.35


def test_derivatives_are_those_of_the_parent(parts, predicted, true):
    window = {"x": slice(8, 16), "y": slice(0, 8)}
    one = parts.isel(realization=2)
    theta = [divergence(ds.velocity).isel(window) for ds in (predicted, true)]
    expected = cell_statistics(*theta)
    for key in ("correlation_coefficient", "rms_error", "mean_true", "std_predicted"):
        np.testing.assert_allclose(one[key].sel(field="velocity_divergence"), expected[key])
    omega = [curl(ds.velocity).isel(window) for ds in (predicted, true)]
    np.testing.assert_allclose(
        one.correlation_coefficient.sel(field="velocity_curl"),
        cell_statistics(*omega).correlation_coefficient.mean(),
    )


def test_a_part_is_scored_as_by_evaluate(parts, predicted, true):
    """But for the derivatives, which a part does not have."""
    cut = [sub_boxes(ds, [80, 80, 160])[1] for ds in (predicted, true)]
    alone = evaluate(*cut, taper=0.35)
    assert "velocity_curl" not in alone.field
    part = parts.isel(realization=1).drop_vars(["origin", "axis"])
    for key in alone.keys() & part.keys():
        dims = {"field": "field", "scalar": "scalar", "vector_field": "vector_field"}
        same = {dim: alone[dim] for dim in dims if dim in alone[key].dims}
        xr.testing.assert_allclose(part[key].sel(same), alone[key])


def test_lazy_parts_give_the_same(parts, predicted, true):
    lazy = evaluate_sub_boxes(predicted.chunk({"x": 5}), true.chunk({"y": 6}), [80, 80, 160])
    xr.testing.assert_allclose(lazy, parts)


def test_fields_that_do_not_fit_stay_lazy(monkeypatch, parts, predicted, true):
    monkeypatch.setattr("cosmofields.comparison.fits", lambda nbytes, what: False)
    names = ["density"]
    lazy = evaluate_sub_boxes(predicted[names].chunk({"x": 8}), true[names], [80, 80, 160])
    for key in lazy:
        same = {dim: names for dim in ("field", "scalar") if dim in lazy[key].dims}
        xr.testing.assert_allclose(lazy[key], parts[key].sel(same))


@pytest.fixture
def counted_velocity(predicted, true):
    """Two lazy Datasets of a velocity, and how many of its 2 x 24 blocks were read so far."""
    read = {"blocks": 0}

    def block(data):
        read["blocks"] += 1
        return data

    def lazy(field):
        chunks = da.from_array(field.values, chunks=(1, 8, 8, 8))
        return field.copy(data=chunks.map_blocks(block, meta=np.empty((0,) * 4, np.float32)))

    pair = [ds[["velocity"]].assign(velocity=lazy(ds["velocity"])) for ds in (predicted, true)]
    return *pair, read


@pytest.mark.parametrize(("stride", "per_field"), [(80, 48), (40, 3 * 64 * 2)])
def test_what_needs_the_whole_box_is_made_once(
    counted_velocity, predicted, true, stride, per_field, tmp_path, caplog
):
    *lazy, read = counted_velocity
    expected = evaluate_sub_boxes(predicted[["velocity"]], true[["velocity"]], 80, stride=stride)
    # The parts fit, the box does not.
    room = {"cosmofields.memory": "200 kB", "temporary_directory": str(tmp_path)}
    with dask.config.set(room, scheduler="sync"), caplog.at_level(logging.INFO, "cosmofields"):
        found = evaluate_sub_boxes(*lazy, 80, stride=stride)
    # Once for the parts of the velocity, each of which reads the blocks that it touches; once for
    # each of magnitude, divergence and curl, however many parts there are.
    assert read["blocks"] == per_field + 3 * 48
    xr.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    said = [line for line in caplog.messages if "temporary store" in line]
    assert len(said) == 3
    assert all(str(tmp_path) in line for line in said)
    assert not list(tmp_path.iterdir())


def test_facts_may_be_on_the_fields(parts, predicted, true):
    bare = [ds.drop_attrs(deep=False) for ds in (predicted, true)]
    found = evaluate_sub_boxes(*bare, [80, 80, 160])
    xr.testing.assert_identical(found, parts)
    cut = [ds.assign(density=ds.density.assign_attrs(periodic=False)) for ds in bare]
    with pytest.raises(NotPeriodicError, match="evaluate_sub_boxes needs a periodic box"):
        evaluate_sub_boxes(*cut, 80)


def test_errors_of_scoring(predicted, true, no_computes):
    with no_computes(), pytest.raises(DimensionError, match="nearest is 80"):
        evaluate_sub_boxes(predicted.chunk(), true.chunk(), 77)
    with pytest.raises(DimensionError, match="a DataArray was given"):
        evaluate_sub_boxes(predicted.density, true.density, 80)
    half = sub_boxes(true, 80)[0]
    with pytest.raises(NotPeriodicError, match="evaluate_sub_boxes needs a periodic box"):
        evaluate_sub_boxes(half, half, 40)
    with pytest.raises(NotPeriodicError, match=r"taper=0\.35"):
        evaluate(half, half)


# --- bringing together ---


def test_parts_that_fill_the_box_pool_to_the_whole(parts, whole):
    pooled = combine(parts)
    counts = [
        "cells",
        "undirected_cells",
        "histogram_predicted",
        "histogram_true",
        "outside_predicted",
        "outside_true",
        "misalignment_histogram",
        "joint",
        "density_relation_predicted",
        "density_relation_true",
    ]
    for key in counts:
        np.testing.assert_array_equal(pooled[key], whole[key], err_msg=key)
        assert pooled[key].dtype == whole[key].dtype
    scores = [
        "correlation_coefficient",
        "rms_error",
        "slope",
        "mean_predicted",
        "std_predicted",
        "mean_true",
        "std_true",
        "component_correlation",
        "component_rms_error",
        "component_slope",
        "component_moments",
        "magnitude_correlation",
        "misalignment_mean",
        "misalignment_std",
    ]
    for key in scores:
        # Means over the box of a derivative are zero, but for rounding.
        np.testing.assert_allclose(pooled[key], whole[key], rtol=1e-6, atol=1e-6, err_msg=key)
    assert pooled.attrs["realizations"] == 4
    assert pooled.attrs["volume_factor"] == 1.0


def test_counts_add_up(parts):
    pooled = combine(parts)
    cells = pooled.cells
    parts_of = xr.where(pooled.field.isin(pooled.vector_field), 3, 1)
    for side in ("predicted", "true"):
        counted = pooled[f"histogram_{side}"].sum("value_bin") + pooled[f"outside_{side}"]
        np.testing.assert_array_equal(counted, cells * parts_of)
    angles = pooled.misalignment_histogram.sum("angle") + pooled.undirected_cells
    np.testing.assert_array_equal(angles, cells.sel(field=pooled.vector.values))


def test_spectra_are_means_and_ratios_follow_from_them(parts):
    pooled = combine(parts)
    sides = ("predicted", "true", "cross")
    p, t, cross = (parts[f"power_{side}"].mean("realization") for side in sides)
    np.testing.assert_allclose(pooled.power_true, t)
    np.testing.assert_allclose(pooled.relative_deviation, p / t - 1)
    np.testing.assert_allclose(pooled.correlation, cross / np.sqrt(p * t))
    np.testing.assert_allclose(pooled.transfer, cross / t)
    np.testing.assert_allclose(pooled.multipoles_true.sel(ell=0), t)
    np.testing.assert_array_equal(pooled.modes, parts.modes.sum("realization"))
    for key in ("power_true", "relative_deviation", "multipoles_predicted"):
        each = parts[key].transpose("realization", ...).values
        np.testing.assert_allclose(
            pooled[f"{key}_spread"], each.std(axis=0, ddof=1), rtol=1e-12, err_msg=key
        )


def test_the_factor_of_the_paper(papers):
    pooled = combine(evaluate_sub_boxes(papers, papers, 600, stride=150))
    assert pooled.attrs["volume_factor"] == 0.4
    assert pooled.attrs["realizations"] == 25


def test_the_factor_is_that_of_the_volumes(true):
    density = true[["density"]]
    # Three parts of 80 along x, 40 apart, cover 160 of the 240 that they have together.
    three = evaluate_sub_boxes(density, density, [80, 160, 160], stride=[40, 160, 160])
    assert combine(three).attrs["volume_factor"] == pytest.approx(np.sqrt(160 / 240))
    # Parts at a distance, or of two universes, are independent.
    apart = evaluate_sub_boxes(density, density, [40, 160, 160], stride=[80, 160, 160])
    assert combine(apart).attrs["volume_factor"] == 1.0
    twice = combine([three, three])
    assert twice.attrs["volume_factor"] == pytest.approx(np.sqrt(160 / 240))
    assert twice.attrs["realizations"] == 6
    one = three.isel(realization=0)
    assert combine([one, one]).attrs["volume_factor"] == 1.0


def test_spread_of_independent_boxes_is_that_of_gaussian_modes():
    """A power over N modes of a Gaussian field scatters by sqrt(2 / N) of itself."""
    n, edges = 24, np.arange(0.06, 0.4, 0.04)
    several = [universe(seed, shape=(12,) * 3, fields=["density"]) for seed in range(n)]
    for seed, ds in enumerate(several):
        ds.density[:] = 1 + np.random.default_rng(seed).standard_normal(ds.density.shape)
    power = BOX**3 / 12**3  # of white noise
    pooled = combine([evaluate(ds, ds, edges=edges) for ds in several])
    assert pooled.attrs["volume_factor"] == 1.0
    modes = pooled.modes.values / n
    expected = np.sqrt(2 / modes) * power
    mean = pooled.power_true.sel(field="density").values
    assert (abs(mean - power) < 4 * expected / np.sqrt(n)).all()
    spread = pooled.power_true_spread.sel(field="density").values
    # Relative error of a standard deviation: sqrt((2 + excess) / 4 n), excess 12 / N of chi^2.
    error = np.sqrt((2 + 12 / modes) / (4 * n))
    assert (abs(spread / expected - 1) < 4 * error).all()
    weight = 1 / error**2
    together = np.average(spread / expected, weights=weight)
    assert abs(together - 1) < 3 / np.sqrt(weight.sum())


def test_whole_boxes_combine_with_their_correlations(whole, predicted, true):
    pooled = combine([whole, evaluate(true, predicted)])
    xi = (whole.xi_true + whole.xi_predicted) / 2
    np.testing.assert_allclose(pooled.xi_true, xi)
    assert pooled.xi_2d_true_spread.dims == ("field", "r_perp", "r_par")
    np.testing.assert_array_equal(pooled.pairs, 2 * whole.pairs)
    joined = xr.concat([whole, whole], "realization", data_vars="all", coords="minimal",
                       compat="override", join="exact")  # fmt: skip
    xr.testing.assert_allclose(combine(joined), combine([whole, whole]))


def test_one_box_has_no_spread(whole):
    alone = combine(whole)
    spreads = [key for key in alone if key.endswith("_spread")]
    xr.testing.assert_allclose(alone.drop_vars(spreads), whole)
    assert alone.power_true_spread.isnull().all()
    assert alone.attrs["realizations"] == 1


def test_errors_of_bringing_together(whole, parts, predicted, true):
    with pytest.raises(MissingVariableError, match="No result to combine"):
        combine([])
    with pytest.raises(GridMismatchError, match="differ in box_size, n_grid, periodic"):
        combine([whole, parts])
    density = predicted[["density"]], true[["density"]]
    with pytest.raises(GridMismatchError, match="differ in field"):
        combine([whole, evaluate(*density)])
    with pytest.raises(GridMismatchError, match="differ in k, k_bounds;"):
        combine([evaluate(*density), evaluate(*density, edges=[0.1, 0.2])])
    with pytest.raises(GridMismatchError, match="differ in value_bounds"):
        combine([evaluate(*density), evaluate(*density, limits={"density": (0.1, 10)})])


def test_boxes_of_another_kind_are_refused(parts, predicted, true):
    p, t = predicted[["density"]], true[["density"]]
    first = evaluate(p, t)
    late = evaluate(p.assign_attrs(redshift=0.0), t.assign_attrs(redshift=0.0))
    with pytest.raises(GridMismatchError, match=r"differ in redshift \(0.59 against 0.0\)"):
        combine([first, late])
    across = evaluate(p.assign_attrs(los="x"), t.assign_attrs(los="x"))
    with pytest.raises(GridMismatchError, match=r"differ in los \(z against x\)"):
        combine([first, across])
    narrow, wide = (evaluate_sub_boxes(p, t, 80, taper=taper) for taper in (0.2, 1))
    with pytest.raises(GridMismatchError, match=r"differ in taper \(0.2 against 1.0\)"):
        combine([narrow, wide])
    unknown = first.copy()
    del unknown.attrs["redshift"]
    assert combine([first, unknown]).attrs["realizations"] == 2


def test_a_cube_may_say_its_side_once_or_three_times(parts):
    cubes = parts.isel(realization=[0]).assign_attrs(box_size=[80.0, 80.0, 80.0])
    assert combine([cubes, cubes.assign_attrs(box_size=80)]).attrs["realizations"] == 2


def test_combined_results_are_not_combined_again(whole):
    twice = combine([whole, whole])
    match = r"combined one already, of 2 boxes; .* combine\(\[first, second"
    for results in (twice, [twice, whole], [whole, twice]):
        with pytest.raises(GridMismatchError, match=match):
            combine(results)
    forgotten = twice.drop_attrs(deep=False).assign_attrs(box_size=BOX)
    with pytest.raises(GridMismatchError, match="of several boxes"):
        combine([forgotten, whole])


def test_results_outlive_a_store(tmp_path, parts):
    for i, result in enumerate([parts, combine(parts)]):
        result.to_netcdf(tmp_path / f"{i}.nc")
        with xr.open_dataset(tmp_path / f"{i}.nc") as back:
            xr.testing.assert_identical(back.load(), result)
            for key, value in result.data_vars.items():
                assert back[key].dtype == value.dtype
        write_store(result, tmp_path / f"{i}.zarr")
        stored = open_store(tmp_path / f"{i}.zarr").load()
        xr.testing.assert_equal(stored, result)
        for key, value in result.variables.items():
            assert (stored[key].dtype, stored[key].attrs) == (value.dtype, value.attrs)
        assert {key: stored.attrs[key] for key in result.attrs} == result.attrs
    with xr.open_dataset(tmp_path / "0.nc") as back:
        xr.testing.assert_allclose(combine(back), combine(parts))
        assert combine([parts, back]).attrs["realizations"] == 8


def test_the_bar_is_optional(papers, capsys):
    evaluate_sub_boxes(papers, papers, 600, progress=True)
    assert "sub-boxes" in capsys.readouterr().err
