"""Scores, spectra and tables of a pair of Datasets."""

import io
import json

import dask
import numpy as np
import pytest
import xarray as xr

from cosmofields import spectral
from cosmofields import statistics as st
from cosmofields.boxes import sub_boxes
from cosmofields.conventions import (
    CosmofieldsError,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    NotPeriodicError,
    label,
    make_grid,
)
from cosmofields.correlation import correlations
from cosmofields.derivatives import curl, divergence
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


def test_a_prediction_twice_too_large(true):
    with xr.set_options(keep_attrs=True):
        double = true.assign(velocity=2 * true.velocity, momentum=2 * true.momentum)
    scores = evaluate(double, true)
    other = scores.sel(field=[name for name in scores.field.values if name != "density"])
    np.testing.assert_allclose(other.relative_deviation, 3, rtol=1e-5)
    np.testing.assert_allclose(other.correlation, 1, rtol=1e-6)
    np.testing.assert_allclose(other.transfer, 2, rtol=1e-5)
    np.testing.assert_allclose(other.slope, 0.5, rtol=1e-6)
    np.testing.assert_allclose(other.correlation_coefficient, 1, rtol=1e-6)
    np.testing.assert_allclose(other.xi_predicted, 4 * other.xi_true, rtol=1e-4, atol=1)
    np.testing.assert_allclose(other.xi_2d_predicted, 4 * other.xi_2d_true, rtol=1e-4, atol=1)
    np.testing.assert_allclose(scores.misalignment_mean, 0, atol=1e-12)
    assert (scores.misalignment_histogram.isel(angle=0) == 12**3).all()
    np.testing.assert_array_equal(scores.component_slope, 0.5)


def test_values_are_counted_in_their_bins(result, predicted, true):
    sizes = [st.magnitude(ds.velocity).values for ds in (predicted, true)]
    of = result.sel(field="velocity_magnitude", scalar="velocity_magnitude")
    edges = [*of.value_bounds[:, 0].values, of.value_bounds[-1, 1].item()]
    assert edges[0] == 0
    np.testing.assert_array_equal(of.histogram_true, np.histogram(sizes[1], edges)[0])
    both = np.histogram2d(sizes[0].ravel(), sizes[1].ravel(), [edges, edges])[0]
    np.testing.assert_array_equal(of.joint, both)
    in_density = result.value_bounds.sel(field="density")
    bins = [*in_density[:, 0].values, in_density[-1, 1].item()]
    np.testing.assert_allclose(np.diff(np.log(bins)), np.log(1e5) / 100)
    for i, (side, ds) in enumerate({"predicted": predicted, "true": true}.items()):
        values = sizes[i].ravel(), ds.density.values.ravel()
        expected = np.histogram2d(*values, [edges, bins])[0]
        np.testing.assert_array_equal(of[f"density_relation_{side}"], expected)


def test_every_value_is_in_a_bin_or_outside(predicted, true):
    limits = {"density": (0.5, 2), "velocity": (-100, 200)}
    few = evaluate(predicted[["density", "velocity"]], true[["density", "velocity"]], limits=limits)
    parts = xr.where(few.field.isin(few.vector_field), 3, 1)
    for side in ("predicted", "true"):
        counted = few[f"histogram_{side}"].sum("value_bin") + few[f"outside_{side}"]
        np.testing.assert_array_equal(counted, few.cells * parts)
    assert (
        few.outside_true.sel(field="density") == ((true.density < 0.5) | (true.density > 2)).sum()
    )
    ends = few.value_bounds.sel(field="velocity")[[0, -1]]
    np.testing.assert_allclose(ends, [[-100, -97], [197, 200]])


def test_bins_of_the_momentum_resolve_both_the_many_and_the_few(result):
    assert result.value_spacing.sel(field="momentum_magnitude") == "asinh"
    widths = result.value_bounds.diff("bound").squeeze().sel(field="momentum_magnitude")
    assert widths[0] < 15
    assert widths[-1] > 1000
    np.testing.assert_allclose(result.value_bounds[:, 1:, 0], result.value_bounds[:, :-1, 1])


def test_counts_do_not_come_from_the_data(result, true):
    other = evaluate(universe(5), true)
    xr.testing.assert_equal(other.value_bounds, result.value_bounds)


def test_angles(result, predicted, true):
    angle = st.misalignment(predicted.velocity, true.velocity).values
    counts = np.histogram(angle, np.linspace(0, 2, 201))[0]
    np.testing.assert_array_equal(result.misalignment_histogram.sel(vector="velocity"), counts)
    opposite = evaluate(-true[["velocity"]].assign_attrs(true.attrs), true)
    assert opposite.misalignment_histogram.isel(angle=-1).item() == 12**3
    assert opposite.misalignment_mean.item() == pytest.approx(2)


def test_curl_is_scored(result, predicted, true):
    pair = curl(predicted.velocity), curl(true.velocity)
    of = result.sel(field="velocity_curl")
    each = st.cell_statistics(*pair)
    assert float(of.correlation_coefficient) == pytest.approx(
        float(each.correlation_coefficient.mean())
    )
    assert float(of.mean_true) == pytest.approx(float(st.magnitude(pair[1]).mean()), rel=1e-5)
    np.testing.assert_allclose(
        result.component_moments.sel(vector_field="velocity_curl", moment="std_predicted"),
        each.std_predicted,
    )


def test_multipoles_and_correlations_are_those_of_their_functions(result, predicted, true):
    poles = spectral.multipoles(predicted.velocity, los="z").power
    np.testing.assert_allclose(result.multipoles_predicted.sel(field="velocity"), poles)
    xi = correlations(true.momentum, los="z")
    of = result.sel(field="momentum")
    np.testing.assert_allclose(of.xi_true, xi.xi)
    np.testing.assert_allclose(of.xi_2d_true, xi.xi_2d)
    np.testing.assert_array_equal(result.pairs, xi.pairs)
    separations = [5.0, 15.0, 40.0]
    few = evaluate(predicted[["density"]], true, separations=separations)
    np.testing.assert_array_equal(few.r_bounds, [[5, 15], [15, 40]])


def test_without_a_line_of_sight(predicted, true):
    del_los = [ds[["density"]].copy() for ds in (predicted, true)]
    for ds in del_los:
        ds.attrs.pop("los")
        ds["density"].attrs.pop("los", None)
    blind = evaluate(*del_los)
    assert blind.ell.values.tolist() == [0]
    assert not {"multipoles_true", "xi_2d_true"} & set(blind)
    assert "los" not in blind.attrs
    with_los = evaluate(predicted[["density"]], del_los[1])
    assert with_los.attrs["los"] == "z"
    np.testing.assert_allclose(blind.xi_true, with_los.xi_true.sel(ell=[0]))


def test_facts_of_the_fields_count_where_the_dataset_is_silent(predicted, true, result):
    """A Dataset made of fields: xr.Dataset({"density": density})."""
    p, t = (
        xr.Dataset({name: ds[name].assign_attrs(ds.attrs) for name in ("density", "velocity")})
        for ds in (predicted, true)
    )
    assert not p.attrs
    got = evaluate(p, t)
    for key in ("multipoles_true", "xi_2d_predicted"):
        np.testing.assert_allclose(
            got[key].sel(field="velocity"), result[key].sel(field="velocity")
        )
    facts = ("redshift", "los", "box_size", "periodic")
    assert {key: got.attrs[key] for key in facts} == {key: result.attrs[key] for key in facts}
    with pytest.raises(GridMismatchError, match="line of sight 'x', the truth 'z'.*los='z'"):
        evaluate(predicted.assign_attrs(los="x"), t)
    later = p.density.assign_attrs(redshift=0.0).to_dataset()
    with pytest.raises(GridMismatchError, match="at redshift 0.0, the truth at 0.59"):
        evaluate(later, t)
    cut = t.density.assign_attrs(periodic=False).to_dataset()
    with pytest.raises(NotPeriodicError, match="taper=0.35"):
        evaluate(cut, cut)


def test_a_momentum_that_is_not_there_is_made(predicted, true):
    without = true[["density", "velocity"]]
    made = evaluate(predicted, without)
    given = evaluate(predicted, true)
    xr.testing.assert_allclose(made, given)
    assert "momentum" in evaluate(without, without).field
    assert "momentum" not in evaluate(predicted, true[["velocity"]]).field


def test_fields_without_units_have_those_of_the_registry(true, result):
    bare = true.copy()
    for name in bare.data_vars:
        bare[name] = bare[name].drop_attrs()
    assert evaluate(bare, bare).units.values.tolist() == result.units.values.tolist()


def test_a_part_of_a_box(true):
    (part,) = sub_boxes(true, [BOX / 2, BOX, BOX], stride=[BOX, BOX, BOX])
    scores = evaluate(part, part, taper=0.3)
    assert scores.field.values.tolist() == [
        "density", "velocity", "velocity_magnitude", "momentum", "momentum_magnitude"
    ]  # fmt: skip
    assert "xi_true" not in scores
    assert scores.attrs["periodic"] == 0
    assert scores.attrs["taper"] == 0.3
    expected = spectral.spectra(part.density, part.density, taper=0.3)
    np.testing.assert_allclose(scores.power_true.sel(field="density"), expected.power_true)
    # With its derivatives if the whole box is tapered.
    tapered = evaluate(true[["velocity"]], true, taper=0.3)
    assert "velocity_curl" in tapered.field
    assert "xi_true" not in tapered


def test_fields_that_do_not_fit_are_streamed(predicted, true):
    names = ["density", "velocity"]
    whole = evaluate(predicted[names], true[names])
    gathered = []

    def watch(dsk, keys, **kwargs):
        results = dask.get(dsk, keys, **kwargs)
        parts = [part for part in dask.core.flatten(results) if hasattr(part, "dtype")]
        gathered.append(sum(part.size for part in parts if part.dtype.kind == "f"))
        return results

    lazy = [ds[names].chunk({"x": 4, "component": 1}) for ds in (predicted, true)]
    with dask.config.set({"cosmofields.memory": "20 kB", "scheduler": watch}):
        streamed = evaluate(*lazy)
    xr.testing.assert_allclose(streamed, whole, rtol=1e-4, atol=1e-2)
    assert max(gathered) < 12**3 / 2


def test_a_perfect_prediction(true):
    same = evaluate(true, true)
    off = same.joint.values * ~np.eye(100, dtype=bool)
    np.testing.assert_array_equal(off, 0)
    np.testing.assert_array_equal(same.density_relation_true, same.density_relation_predicted)
    on = same.histogram_true.sel(field=same.scalar.values)
    np.testing.assert_array_equal(same.joint.sum("value_bin_true"), on)
    np.testing.assert_allclose(same.correlation, 1)
    np.testing.assert_allclose(same.transfer, 1)
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
    with pytest.raises(NotPeriodicError, match=r"Pass taper=0\.35 .* or evaluate_sub_boxes"):
        evaluate(true, true.assign_attrs(periodic=False))
    with pytest.raises(DimensionError, match="limits of speed; expected of density, velocity"):
        evaluate(true, true, limits={"speed": (0, 1)})
    with pytest.raises(DimensionError, match="with 0 < low < high"):
        evaluate(true, true, limits={"density": (0, 10)})
    with pytest.raises(DimensionError, match="two numbers with low < high"):
        evaluate(true, true, limits={"velocity": (1, -1)})
    with pytest.raises(DimensionError, match="two numbers"):
        evaluate(true, true, limits={"velocity": 100})
    with pytest.raises(DimensionError, match=r"compares two Datasets, .* DataArray .*to_dataset"):
        evaluate(true.density, true)
    for taper in ("0.2", 2.0):
        with pytest.raises(
            DimensionError, match=r"expected a fraction above 0, up to 1, e.g. 0.35"
        ):
            evaluate(true[["density"]], true, taper=taper)
    with pytest.raises(DimensionError, match="`density` has dims"):
        evaluate(true.isel(x=0), true)
    broken = true[["density"]].copy(deep=True)
    broken.density[0, 0, 0] = np.nan
    with pytest.raises(CosmofieldsError, match="`density`: NaN"):
        evaluate(broken, true)
