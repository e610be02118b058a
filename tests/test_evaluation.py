"""Scores, spectra and tables of a pair of Datasets."""

import io
import json

import dask
import numpy as np
import pytest
import xarray as xr

from cosmofields import spectral
from cosmofields import statistics as st
from cosmofields.conventions import (
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    NotPeriodicError,
    label,
    make_grid,
)
from cosmofields.derivatives import divergence
from cosmofields.evaluation import evaluate, format_table, scores_table

BOX = 120.0


def universe(seed=0, n=12, fields=("density", "velocity", "momentum"), **facts):
    rng = np.random.default_rng(seed)
    density = np.exp(rng.standard_normal((n,) * 3)).astype(np.float32)
    velocity = (200 * rng.standard_normal((3, n, n, n))).astype(np.float32)
    data = {"density": density, "velocity": velocity, "momentum": density * velocity}
    attrs = {
        "box_size": BOX,
        "redshift": 0.59,
        "cosmology": {"Omega_m": 0.268, "h": 0.71},
        "los": "z",
        "space": "real",
        "periodic": True,
        **facts,
    }
    grid = make_grid(n, [BOX] * 3)
    return xr.Dataset({name: label(name, data[name], grid, attrs) for name in fields}, attrs=attrs)


@pytest.fixture(scope="module")
def true():
    return universe()


@pytest.fixture(scope="module")
def predicted(true):
    with xr.set_options(keep_attrs=True):
        return 0.8 * true + 0.2 * universe(seed=1)


@pytest.fixture(scope="module")
def result(predicted, true):
    return evaluate(predicted, true)


def test_labels(result):
    made = ["", "_magnitude", "_divergence", "_curl"]
    fields = ["density", *(name + what for name in ("velocity", "momentum") for what in made)]
    assert result.field.values.tolist() == fields
    assert result.vector.values.tolist() == ["velocity", "momentum"]
    assert result.vector_field.values.tolist() == [
        name for name in fields if name in ("velocity", "momentum") or "curl" in name
    ]
    assert result.scalar.values.tolist() == [
        name for name in fields if name not in result.vector_field.values
    ]
    assert result.component.values.tolist() == ["x", "y", "z"]
    assert result.ell.values.tolist() == [0, 2, 4]
    per_length = "km/s/(Mpc/h)"
    of_vector = ["km/s", "km/s", per_length, per_length]
    assert result.units.values.tolist() == ["1", *of_vector, *of_vector]
    assert result.attrs["box_size"] == BOX
    assert result.attrs["redshift"] == 0.59
    assert result.attrs["n_grid"] == [12, 12, 12]
    assert result.attrs["cell_size"] == [10.0, 10.0, 10.0]
    assert all("long_name" in value.attrs for value in result.data_vars.values())
    assert result.attrs["los"] == "z"
    assert result.attrs["periodic"] == 1
    assert result.nbytes < 2_000_000


def test_scores_are_those_of_the_statistics(result, predicted, true):
    p, t = predicted.velocity, true.velocity
    v = result.sel(field="velocity", vector="velocity")
    each = st.correlation_coefficient(p, t)
    np.testing.assert_allclose(v.component_correlation, each)
    np.testing.assert_allclose(v.component_rms_error, st.rms_error(p, t))
    np.testing.assert_allclose(v.component_slope, st.slope(p, t))
    assert float(v.correlation_coefficient) == pytest.approx(float(each.mean()))
    error = np.sqrt(((p - t).astype(float) ** 2).mean())
    assert float(v.rms_error) == pytest.approx(float(error))
    centred = [(a - a.mean(("x", "y", "z"))).astype(float) for a in (p, t)]
    pooled = float((centred[0] * centred[1]).sum() / (centred[0] ** 2).sum())
    assert float(v.slope) == pytest.approx(pooled)
    sizes = st.magnitude(p), st.magnitude(t)
    assert float(v.magnitude_correlation) == pytest.approx(
        float(st.correlation_coefficient(*sizes))
    )
    assert float(v.mean_predicted) == pytest.approx(float(sizes[0].mean()), rel=1e-5)
    assert float(v.std_true) == pytest.approx(float(sizes[1].std()), rel=1e-5)
    angle = st.misalignment(p, t)
    assert float(v.misalignment_mean) == pytest.approx(float(angle.mean()), rel=1e-4)
    assert float(v.misalignment_std) == pytest.approx(float(angle.std()), rel=1e-4)
    assert int(v.undirected_cells) == 0
    d = result.sel(field="density")
    assert float(d.correlation_coefficient) == pytest.approx(
        float(st.correlation_coefficient(predicted.density, true.density))
    )
    assert float(d.mean_true) == pytest.approx(float(true.density.mean()), rel=1e-5)


def test_spectra_are_those_of_the_statistics(result, predicted, true):
    theta = divergence(predicted.velocity), divergence(true.velocity)
    for name, pair in {
        "density": (predicted.density, true.density),
        "momentum": (predicted.momentum, true.momentum),
        "velocity_divergence": theta,
    }.items():
        expected = spectral.spectra(*pair)
        for key in expected.data_vars:
            got = result[key].sel(field=name) if "field" in result[key].dims else result[key]
            np.testing.assert_allclose(got, expected[key], rtol=1e-12)
    np.testing.assert_array_equal(result.k_bounds, expected.k_bounds)


def test_a_perfect_prediction(true):
    same = evaluate(true, true)
    np.testing.assert_allclose(same.correlation_coefficient, 1)
    np.testing.assert_allclose(same.slope, 1)
    np.testing.assert_array_equal(same.rms_error, 0)
    np.testing.assert_allclose(same.misalignment_mean, 0, atol=1e-12)
    np.testing.assert_array_equal(same.relative_deviation, 0)


def test_only_common_fields_are_scored(predicted, true):
    only = evaluate(predicted[["density"]], true)
    assert only.field.values.tolist() == ["density"]
    assert "vector" not in only.dims
    assert "misalignment_mean" not in only
    velocity = evaluate(predicted, true[["velocity"]])
    assert velocity.field.values.tolist() == [
        "velocity",
        "velocity_magnitude",
        "velocity_divergence",
        "velocity_curl",
    ]
    assert "density_relation_true" not in velocity


def test_edges_are_passed_on(predicted, true):
    edges = [0.06, 0.12, 0.3]
    assert evaluate(predicted[["density"]], true, edges=edges).k.values.tolist() == [0.09, 0.21]


def test_zero_vectors_are_counted(predicted, true):
    holed = predicted[["velocity"]].copy(deep=True)
    holed.velocity[:, 0, 0, :3] = 0
    assert evaluate(holed, true).undirected_cells.item() == 3
    nothing = evaluate(holed * 0, true)
    assert np.isnan(nothing.misalignment_mean.item())
    assert np.isnan(nothing.slope.sel(field="velocity"))
    assert scores_table({"none": nothing})["none"]["velocity"]["slope"] is None


def test_lazy_fields_give_the_same_and_are_computed_once(predicted, true):
    velocity_alone = evaluate(predicted[["velocity"]], true)
    calls = []

    def count(block):
        calls.append(block.shape)
        return block

    lazy = predicted[["velocity"]].chunk({"component": 1})
    lazy["velocity"] = lazy.velocity.copy(
        data=lazy.velocity.data.map_blocks(count, meta=np.empty((0,) * 4, np.float32))
    )
    from_lazy = evaluate(lazy, true.chunk({"x": 5}))
    xr.testing.assert_allclose(from_lazy, velocity_alone)
    assert len(calls) == 3
    assert dask.is_dask_collection(lazy)


def test_inputs_stay_as_they_were(predicted, true):
    kept = predicted.copy(deep=True), true.copy(deep=True)
    evaluate(predicted, true)
    xr.testing.assert_identical(kept[0], predicted)
    xr.testing.assert_identical(kept[1], true)


def test_order_of_dims_does_not_matter(predicted, true, result):
    turned = predicted.transpose("z", "component", "x", "y")
    xr.testing.assert_allclose(evaluate(turned, true), result)


def test_round_trip_through_zarr(result):
    store = {}
    result.to_zarr(store, consolidated=False)
    back = xr.open_zarr(store, consolidated=False)
    xr.testing.assert_equal(back.load(), result)
    assert back.attrs == result.attrs
    assert back.rms_error.attrs == result.rms_error.attrs
    assert "k_bounds" in back.coords


def test_round_trip_through_netcdf(result):
    with xr.open_dataset(io.BytesIO(bytes(result.to_netcdf()))) as back:
        xr.testing.assert_equal(back.load(), result)
        assert back.attrs["title"] == result.attrs["title"]


def test_results_of_several_boxes_concatenate(predicted, true):
    results = [evaluate(universe(seed), true) for seed in (3, 4)]
    both = xr.concat(results, "box", join="exact", data_vars="all", coords="minimal",
                     compat="override")  # fmt: skip
    assert both.relative_deviation.mean("box").dims == ("field", "k")


def test_table_is_plain_json(result, true):
    table = scores_table({"network": result, "truth": evaluate(true, true)})
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    row = table["network"]["velocity"]
    assert row["units"] == "km/s"
    assert list(row["component_correlation"]) == ["x", "y", "z"]
    assert row["rms_error"] == float(result.rms_error.sel(field="velocity"))
    assert "misalignment_mean" not in table["network"]["density"]


def test_text_of_a_table(result, true):
    table = scores_table({"network": result, "density only": evaluate(true[["density"]], true)})
    text = format_table(table)
    assert text == format_table(json.loads(json.dumps(table)))
    lines = text.splitlines()
    assert lines[0].split() == ["network", "density", "only"]
    assert "velocity [km/s]" in lines
    assert sum(line.startswith("    of x") for line in lines) == 4  # C_r and rms, of v and m
    row = next(line for line in lines if line.startswith("  |v| true"))
    mean, std = (float(result[key].sel(field="velocity")) for key in ("mean_true", "std_true"))
    assert f"{mean:.0f} +- {std:.0f}" in row or f"{mean:.1f} +- {std:.1f}" in row
    assert row.endswith("-")  # the other reconstruction has no velocity
    assert len({len(line) for line in lines if line.startswith("  ")}) == 1
    assert text.isascii()
    assert not any(line.endswith(" ") for line in lines)


def test_errors(predicted, true):
    with pytest.raises(MissingVariableError, match="holds velocity, the truth density"):
        evaluate(true[["velocity"]], true[["density"]])
    with pytest.raises(GridMismatchError, match="12 against 8 cells"):
        evaluate(true, universe(n=8))
    with pytest.raises(GridMismatchError, match="redshift"):
        evaluate(true, universe(redshift=0.0))
    with pytest.raises(NotPeriodicError, match="evaluate needs the whole periodic box"):
        evaluate(true.isel(x=slice(6)), true.isel(x=slice(6)))
    with pytest.raises(DimensionError, match="`density` has dims"):
        evaluate(true.isel(x=0), true)
    broken = true[["density"]].copy(deep=True)
    broken.density[0, 0, 0] = np.nan
    with pytest.raises(CosmofieldsError, match="`density`: NaN"):
        evaluate(broken, true)
