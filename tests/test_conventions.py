"""Checks and labels: the whole periodic box, the same grid, box facts, messages."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from cosmofields.conventions import (
    AXES,
    FIELDS,
    CosmofieldsError,
    DimensionError,
    Grid,
    GridMismatchError,
    MissingAttributeError,
    MissingExtraError,
    MissingVariableError,
    NotPeriodicError,
    attribute,
    box_lengths,
    canonical,
    check_los,
    check_same_grid,
    is_lazy,
    label,
    make_grid,
    parse_box_size,
    periodic_grid,
    require_extra,
    step,
    variable,
)
from cosmofields.derivatives import divergence, gradient
from cosmofields.linear import linear_density, potential_flow
from cosmofields.spectral import power_spectrum

FACTS = {
    "box_size": 100.0,
    "redshift": 0.59,
    "cosmology": {"Omega_m": 0.268, "h": 0.71},
    "space": "real",
    "periodic": True,
}


def field(name="density", n=8, box_size=100.0, **facts):
    spec = FIELDS[name]
    grid = make_grid(n, parse_box_size(box_size))
    shape = [3 if dim == "component" else 2 for dim in spec.dims[:-3]]
    data = np.random.default_rng(0).normal(size=(*shape, *grid.shape)).astype(np.float32)
    return label(name, data, grid, {**FACTS, "box_size": box_size, **facts})


# --- attributes ---


@pytest.mark.parametrize("key", ["box_size", "redshift", "cosmology", "los", "space"])
@pytest.mark.parametrize("obj", [xr.Dataset(), xr.DataArray(0)], ids=lambda o: type(o).__name__)
def test_missing_attribute_says_how_to_set_it(obj, key):
    message = rf"No `{key}` on this {type(obj).__name__}.*obj\.attrs\['{key}'\] = "
    with pytest.raises(MissingAttributeError, match=message):
        attribute(obj, key)
    with pytest.raises(MissingAttributeError, match=message):
        attribute(obj.assign_attrs({key: None}), key)


def test_unknown_attribute():
    with pytest.raises(MissingAttributeError, match=r"Set attrs\['seed'\]"):
        attribute(xr.Dataset(), "seed")


@pytest.mark.parametrize(
    ("value", "sides"),
    [
        (300, (300, 300, 300)),
        ([100, 200, 300], (100, 200, 300)),
        (np.float32(50), (50, 50, 50)),
        (np.array([100.0, 200.0, 300.0]), (100, 200, 300)),
    ],
)
def test_box_size(value, sides):
    assert parse_box_size(value) == sides
    assert box_lengths(xr.Dataset(attrs={"box_size": value})) == sides
    assert all(type(side) is float for side in parse_box_size(value))


@pytest.mark.parametrize(
    "value", [None, 0, -5, np.nan, np.inf, "big", [1, 2], [1, 2, 3, 4], [[1, 2, 3]], {}, [1, 2, -3]]
)
def test_box_size_that_is_none(value):
    with pytest.raises(MissingAttributeError, match="is not a length: give one positive number"):
        parse_box_size(value)


@pytest.mark.parametrize("los", ["w", "X", "", None, 2, ["z"], b"z"])
def test_los_that_is_none(los):
    with pytest.raises(DimensionError, match="expected one of 'x', 'y', 'z'"):
        check_los(los)


def test_every_error_has_one_root():
    for error in (MissingAttributeError, DimensionError, GridMismatchError, NotPeriodicError):
        assert issubclass(error, CosmofieldsError)
        assert issubclass(error, ValueError)
    assert issubclass(MissingExtraError, ImportError)


def test_step_appends_to_the_history():
    ds = xr.Dataset(attrs={"box_size": 1.0})
    once = ds.assign_attrs(step(ds, "one"))
    twice = once.assign_attrs(step(once, "two"))
    assert "history" not in ds.attrs
    assert [line.split(" ", 1)[1] for line in twice.attrs["history"].split("\n")] == ["one", "two"]
    assert twice.attrs["box_size"] == 1.0


def test_missing_extra_says_what_to_install():
    assert require_extra("math", "io", "Reading").pi == np.pi
    with pytest.raises(MissingExtraError, match=r"Reading needs .*pip install 'cosmofields\[io\]'"):
        require_extra("no_such_module_at_all", "io", "Reading")


# --- grids ---


def test_grid():
    grid = make_grid([4, 5, 6], [100.0, 50.0, 30.0])
    assert grid.shape == (4, 5, 6)
    assert grid.cell_size == (25, 10, 5)
    assert grid.volume == 150_000
    coords = grid.coords()
    np.testing.assert_array_equal(coords["x"], [0, 25, 50, 75])
    assert coords["y"].attrs == {"units": "Mpc/h", "long_name": "comoving y", "axis": "Y"}
    assert all(coord.dtype == np.float64 for coord in coords.values())


@pytest.mark.parametrize(
    "n_grid", [1, 0, -4, 16.0, "16", None, True, [16, 16], [16] * 4, [8, 8, 1]]
)
def test_n_grid_that_is_none(n_grid):
    with pytest.raises(DimensionError, match="expected a whole number of cells, at least 2"):
        make_grid(n_grid, [100.0] * 3)


def test_label():
    da_ = field("velocity")
    assert da_.dims == ("component", "x", "y", "z")
    assert list(da_["component"].values) == ["x", "y", "z"]
    assert da_.attrs["units"] == "km/s"
    assert da_.attrs["box_size"] == 100.0


def test_canonical_transposes_and_refuses():
    velocity = field("velocity")
    shuffled = velocity.transpose("z", "component", "y", "x")
    xr.testing.assert_identical(canonical(shuffled, "component"), velocity)
    assert canonical(velocity, "component") is velocity
    with pytest.raises(DimensionError, match=r"`velocity` has dims .*expected \('x', 'y', 'z'\)"):
        canonical(velocity)
    with pytest.raises(DimensionError, match=r"`slab` has dims \('x', 'y'\)"):
        canonical(xr.DataArray(np.zeros((2, 2)), dims=("x", "y"), name="slab"))
    with pytest.raises(DimensionError, match="`field` has dims"):
        canonical(xr.DataArray(np.zeros(2), dims="x"))


def test_components_in_another_order_are_refused():
    velocity = field("velocity")
    with pytest.raises(DimensionError, match=r"components \['z', 'y', 'x'\]; expected x, y, z"):
        canonical(velocity.isel(component=[2, 1, 0]), "component")
    with pytest.raises(DimensionError, match="components"):
        divergence(velocity.isel(component=[0, 1]))
    with pytest.raises(DimensionError, match="components 2"):
        canonical(velocity.isel(component=[0, 1]).drop_vars("component"), "component")
    bare = velocity.drop_vars("component")
    assert canonical(bare, "component") is bare


def test_variable():
    ds = field("density").to_dataset().assign_attrs(FACTS)
    del ds["density"].attrs["redshift"]
    got = variable(ds, "density")
    assert got.attrs["redshift"] == 0.59
    assert "redshift" not in ds["density"].attrs
    message = r"No `velocity` in this Dataset \(it holds density\)\. Try this\."
    with pytest.raises(MissingVariableError, match=message):
        variable(ds, "velocity", hint="Try this.")
    with pytest.raises(MissingVariableError, match=r"holds no variable at all\)\.$"):
        variable(xr.Dataset(), "velocity")
    with pytest.raises(DimensionError, match="`density` has dims"):
        variable(ds.isel(x=0), "density")


def test_facts_set_on_the_dataset_count():
    """The errors tell users to set attributes on the object that they hold."""
    ds = field("density").to_dataset().assign_attrs(FACTS)
    assert variable(ds.assign_attrs(redshift=1.0), "density").attrs["redshift"] == 1.0
    assert variable(ds.assign_attrs(redshift=None), "density").attrs["redshift"] == 0.59


def test_is_lazy():
    lazy = field().chunk(x=4)
    uneven = xr.Dataset({"a": lazy, "b": field().chunk(x=3)})
    assert is_lazy(lazy)
    assert is_lazy(field(), lazy)
    assert is_lazy(uneven)
    assert is_lazy(lazy.mean())
    assert not is_lazy(field())
    assert not is_lazy(field().to_dataset())


# --- the whole periodic box ---


def test_periodic_grid():
    assert periodic_grid(field()) == Grid((8, 8, 8), (100.0, 100.0, 100.0))
    slab = field(n=[4, 5, 6], box_size=[40.0, 50.0, 90.0])
    assert periodic_grid(slab) == Grid((4, 5, 6), (40.0, 50.0, 90.0))
    assert periodic_grid(slab.to_dataset().assign_attrs(slab.attrs)).shape == (4, 5, 6)
    assert periodic_grid(field(n=2)).shape == (2, 2, 2)


@pytest.mark.parametrize(
    "cut",
    [
        {"x": slice(0, 4)},
        {"y": slice(1, None)},
        {"x": [0]},
        {"x": slice(None, None, -1)},
        {"z": [0, 1, 2, 3, 3, 4, 5, 6]},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "operation", [periodic_grid, gradient, potential_flow, power_spectrum], ids=lambda f: f.__name__
)
def test_cut_field_is_not_the_periodic_box(cut, operation):
    part = field().isel(cut)
    assert part.attrs["box_size"] == 100.0  # xarray keeps it, which is the trap
    axis = next(iter(cut))
    with pytest.raises(NotPeriodicError, match=rf"whole periodic box.*`{axis}` has .*box_size=100"):
        operation(part)


def test_message_of_a_cut_field_names_the_numbers():
    with pytest.raises(
        NotPeriodicError, match=r"gradient .*`x` has 4 nodes spanning 50 of box_size=100"
    ):
        gradient(field().isel(x=slice(2, 6)))


def test_every_second_node_is_a_coarser_whole_box():
    assert periodic_grid(field().isel(z=slice(None, None, 2))).shape == (8, 8, 4)


def test_wrong_box_size():
    with pytest.raises(NotPeriodicError, match="or set the right box_size"):
        periodic_grid(field().assign_attrs(box_size=200.0))


@pytest.mark.parametrize("operation", [periodic_grid, gradient, potential_flow, power_spectrum])
def test_periodic_false(operation):
    with pytest.raises(NotPeriodicError, match=r"attrs\['periodic'\] is False"):
        operation(field(periodic=False))


def test_periodic_operations_need_coordinates_and_dims():
    with pytest.raises(NotPeriodicError, match=r"assign_coords\(y=np.arange\(8\) \* 12.5\)"):
        periodic_grid(field().drop_vars("y"))
    with pytest.raises(DimensionError, match=r"needs the dims .*\['z'\] not in"):
        periodic_grid(field().isel(z=0))
    without = field()
    del without.attrs["box_size"]
    with pytest.raises(MissingAttributeError, match="No `box_size`"):
        periodic_grid(without)


def test_coordinates_may_be_rounded_or_shifted():
    for nodes in (
        (np.arange(8) * 12.5).astype(np.float32),
        np.arange(8) * 12.5 + 6.25,
        np.arange(8) * 12.5 - 50,
        np.linspace(0, 100, 8, endpoint=False),
    ):
        moved = field().assign_coords(x=nodes)
        assert periodic_grid(moved) == Grid((8, 8, 8), (100.0, 100.0, 100.0))
        np.testing.assert_array_equal(gradient(moved)["x"], nodes)


def rolled(da_):
    return da_.roll(x=3, y=-2, z=5, roll_coords=True)


def unrolled(da_):
    return da_.sortby(list(AXES))


@pytest.mark.parametrize("operation", [gradient, potential_flow])
def test_rolled_field_is_the_whole_box_and_stays_rolled(operation):
    result = operation(rolled(field()))
    np.testing.assert_array_equal(result["x"], np.roll(np.arange(8) * 12.5, 3))
    np.testing.assert_allclose(unrolled(result), operation(field()), rtol=1e-4, atol=1e-2)


def test_rolled_vector_and_halos_stay_rolled():
    velocity = field("velocity")
    np.testing.assert_allclose(
        unrolled(divergence(rolled(velocity))), divergence(velocity), rtol=1e-4, atol=1e-4
    )
    ds = field("halo_density").to_dataset().assign_attrs(FACTS)
    density = linear_density(rolled(ds), method="paper", bias=2.0)
    xr.testing.assert_allclose(unrolled(density), linear_density(ds, method="paper", bias=2.0))


# --- the same grid ---


def test_same_grid():
    check_same_grid(field(), field("velocity"), field().to_dataset())
    check_same_grid(field(), field().assign_coords(x=(np.arange(8) * 12.5).astype(np.float32)))
    check_same_grid(field(), field().drop_attrs())


def test_mismatched_grids():
    with pytest.raises(GridMismatchError, match="8 against 16 cells along x.*same n_grid"):
        check_same_grid(field(), field(n=16))
    with pytest.raises(GridMismatchError, match="8 against 4 cells along z"):
        check_same_grid(field(), field().isel(z=slice(4)))
    with pytest.raises(GridMismatchError, match="`x` runs from 0 to 87.5 against 0 to 175 Mpc/h"):
        check_same_grid(field(), field(box_size=200.0))
    with pytest.raises(GridMismatchError, match="different boxes: box_size 100.0 against 101.0"):
        check_same_grid(field(), field().assign_attrs(box_size=101.0))
    with pytest.raises(GridMismatchError, match="`y` runs from"):
        check_same_grid(field(), field().roll(y=1, roll_coords=True))
    with pytest.raises(GridMismatchError, match="16 cells"):
        check_same_grid(field(), field(), field(n=16))


def test_pairs_of_fields_are_checked():
    with pytest.raises(GridMismatchError):
        power_spectrum(field(), field(n=16))


def test_checks_compute_nothing(no_computes):
    data = da.random.random((8, 8, 8), chunks=4)
    lazy = label("density", data, make_grid(8, [100.0] * 3), FACTS)
    ds = lazy.to_dataset().assign_attrs(FACTS)
    with no_computes():
        periodic_grid(lazy)
        check_same_grid(lazy, ds)
        assert variable(ds, "density").chunks
        assert is_lazy(ds)
