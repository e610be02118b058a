"""Catalogues: what is refused and how, selection, redshift space, laziness."""

import re

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.catalog import (
    NUMBER_DENSITY,
    from_arrays,
    row_dim,
    select,
    to_redshift_space,
    wrap,
)
from cosmofields.conventions import (
    CATALOG_FIELDS,
    CatalogError,
    DimensionError,
    MissingAttributeError,
    MissingVariableError,
)
from cosmofields.painting import paint, paint_matter


@pytest.fixture
def make(cosmology):
    """Catalogue of 20 rows, with whatever argument a test replaces."""
    rng = np.random.default_rng(0)
    arguments = {
        "position": rng.uniform(0, 100, (20, 3)),
        "velocity": rng.normal(0, 300, (20, 3)),
        "mass": rng.uniform(1e12, 1e14, 20),
        "box_size": 100.0,
        "redshift": 0.59,
        "cosmology": cosmology,
    }
    return lambda **changed: from_arrays(**{**arguments, **changed})


def at(*rows):
    """20 positions in the middle of the box, the first ones as given."""
    position = np.full((20, 3), 50.0)
    position[: len(rows)] = np.reshape(rows, (-1, 3))
    return position


# --- from arrays ---


def test_catalogue(make, cosmology):
    ds = make()
    for name, spec in CATALOG_FIELDS.items():
        assert ds[name].dims == spec.dims
        assert ds[name].dtype == np.float32
        assert ds[name].attrs["units"] == spec.units
    assert list(ds["component"].values) == ["x", "y", "z"]
    assert ds.attrs["box_size"] == 100.0
    assert ds.attrs["redshift"] == 0.59
    assert ds.attrs["cosmology"] == cosmology
    assert ds.attrs["space"] == "real"
    assert ds.attrs["periodic"] is True
    assert ds.attrs["history"].endswith("from_arrays: 20 rows")
    assert row_dim(ds) == "halo"


def test_catalogue_of_particles(make):
    ds = make(mass=None, dim="particle", box_size=[100, 200, 100])
    assert row_dim(ds) == "particle"
    assert "mass" not in ds
    assert ds.attrs["box_size"] == [100.0, 200.0, 100.0]


def test_lists_and_integers_will_do(make):
    ds = make(position=at().astype(int).tolist(), velocity=at().astype(int), mass=[10**12] * 20)
    assert ds["position"].dtype == ds["mass"].dtype == np.float32


@pytest.mark.parametrize("name", ["position", "velocity", "mass"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(make, name, bad):
    values = np.ones(20) if name == "mass" else at()
    values[5] = bad
    count = 1 if name == "mass" else 3
    with pytest.raises(
        CatalogError, match=rf"`{name}` holds {count} NaN or infinite values \(the first in row 5\)"
    ):
        make(**{name: values})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"position": np.zeros((3, 20))}, r"`position` has shape \(3, 20\); expected \(n, 3\)"),
        ({"position": np.zeros(20)}, r"`position` has shape \(20,\); expected \(n, 3\)"),
        ({"position": None}, r"`position` has shape \(\); expected \(n, 3\)"),
        ({"velocity": np.zeros((19, 3))}, r"`velocity` has shape \(19, 3\); expected \(20, 3\)"),
        ({"velocity": np.zeros(20)}, r"`velocity` has shape \(20,\); expected \(20, 3\)"),
        (
            {"mass": np.full(20, 13.0)},
            r"median of `mass` is 13, .*log10 Msun/h",
        ),
        ({"mass": np.full(20, 1e3)}, r"median of `mass` is 1000, .*; expected Msun/h"),
        ({"mass": np.ones((20, 1))}, r"`mass` has shape \(20, 1\); expected \(20,\)"),
        ({"mass": np.full(20, "heavy")}, "`mass` has dtype <U5; expected real numbers"),
        ({"position": at().astype(complex)}, "`position` has dtype complex128; expected real"),
        ({"mass": np.arange(20)}, r"1 values at or below zero; expected Msun/h \(not its log"),
        ({"mass": np.full(20, -1.0)}, "20 values at or below zero"),
        (
            {"position": np.empty((0, 3)), "velocity": np.empty((0, 3)), "mass": np.empty(0)},
            "catalogue is empty",
        ),
    ],
)
def test_wrong_shapes_types_and_masses(make, changed, message):
    with pytest.raises(CatalogError, match=message):
        make(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"box_size": None}, "box_size=None is not a length"),
        ({"box_size": -100}, "box_size=-100 is not a length"),
        ({"box_size": "large"}, "box_size='large' is not a length"),
        ({"redshift": None}, "redshift=None; expected a number"),
        ({"redshift": "z"}, "redshift='z'; expected a number"),
        ({"cosmology": None}, "cosmology=None; expected a dict"),
        ({"cosmology": {"h": 0.7}}, r"lacks Omega_m \(it has h\)"),
    ],
)
def test_missing_facts(make, changed, message):
    with pytest.raises(MissingAttributeError, match=message):
        make(**changed)


@pytest.mark.parametrize("gone", ["box_size", "redshift", "cosmology"])
def test_facts_are_required(gone, cosmology):
    facts = {"box_size": 100, "redshift": 0.59, "cosmology": cosmology}
    del facts[gone]
    with pytest.raises(MissingAttributeError, match=f"{gone}=None.*(give|expected) (one|a) "):
        from_arrays(at(), at(), **facts)


class Quantity(np.ndarray):
    """An array with a unit, as astropy has it."""

    unit = "Mpc"


@pytest.mark.parametrize(
    ("name", "units"),
    [("position", "Mpc/h"), ("velocity", "km/s"), ("mass", "Msun/h"), ("box_size", "Mpc/h")],
)
def test_units_are_refused(make, name, units):
    values = {"mass": np.full(20, 1e13), "box_size": np.array(100.0)}.get(name, at())
    message = rf"`{name}` carries the unit 'Mpc'; .*convert to {units} and pass `\.value`"
    with pytest.raises(CatalogError, match=message):
        make(**{name: values.view(Quantity)})


def test_redshift_space_needs_no_velocity(make):
    ds = make(velocity=None, los="x")
    assert "velocity" not in ds
    assert row_dim(ds) == "halo"
    assert paint(select(ds, [1e-5]), 4)["halo_density"].attrs["los"] == "x"
    with pytest.raises(MissingVariableError, match=r"No `velocity`: pass it in km/s.*or los='x'"):
        make(velocity=None)
    with pytest.raises(MissingVariableError, match=r"No `velocity`.*paint_matter needs it"):
        paint_matter(ds, 4)


@pytest.mark.parametrize("los", [0, "", False, "r", 2])
def test_what_is_no_line_of_sight(make, los):
    with pytest.raises(DimensionError, match=f"los={los!r}; expected one of 'x', 'y', 'z'"):
        make(los=los)


# --- positions and the box ---


def test_a_position_at_the_edge_wraps_to_zero(make):
    below = np.nextafter(np.float32(100), np.float32(0))
    ds = make(position=at([100.0, below, -1e-6], [100.00005, -0.0, 0.0]))
    np.testing.assert_array_equal(ds["position"][0], [0, below, 0])
    np.testing.assert_allclose(ds["position"][1], [5e-5, 0, 0], atol=1e-6)
    assert (ds["position"] < 100).all()
    assert (ds["position"] >= 0).all()


@pytest.mark.parametrize("outside", [100.001, 101.0, -0.001, -50.0])
def test_a_position_outside_the_box_is_no_edge(make, outside):
    with pytest.raises(
        CatalogError, match=r"1 of 20 positions lie outside the box.*expected 0 to 100 Mpc/h"
    ):
        make(position=at([50, outside, 50]))


def test_hint_kpc(make):
    with pytest.raises(CatalogError, match="20 of 20 positions.*in kpc/h, or is box_size wrong"):
        make(position=1000 * at([99, 3, 10]))


def test_hint_centred(make):
    rng = np.random.default_rng(0)
    with pytest.raises(
        CatalogError,
        match=r"centred on 0: add box_size / 2, as open_catalog does with origin=-50 \(",
    ):
        make(position=rng.uniform(-50, 50, (20, 3)))


def test_hint_otherwise(make):
    with pytest.raises(CatalogError, match=r"Are they in comoving Mpc/h.*position % box_size"):
        make(position=at([130, 50, 50]))


def test_message_names_the_span_and_the_box(make):
    message = re.escape(
        "they span [-2. 50. 50.] to [50. 50. 99.] Mpc/h, expected 0 to 100 Mpc/h along each axis. "
    )
    with pytest.raises(CatalogError, match=message):
        make(position=at([-2, 50, 99]))
    message = "expected 0 to 100 Mpc/h along x, 0 to 200 Mpc/h along y, 0 to 75 Mpc/h along z. "
    with pytest.raises(CatalogError, match=message):
        make(position=at([-2, 50, 70]), box_size=[100, 200, 75])


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e4))
def test_wrap(value, side):
    wrapped = wrap(np.array([[value] * 3]), [side] * 3)
    assert wrapped.dtype == np.float32
    assert (wrapped >= 0).all()
    assert (wrapped < np.float32(side)).all()
    distance = (wrapped[0, 0] - value + side / 2) % side - side / 2
    assert abs(distance) < 1e-6 * (side + abs(value))


def test_inputs_stay_as_they_are(cosmology):
    arrays = [at([100.0, 0, 0]), at(), 1e12 * np.arange(1.0, 21)]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    parameters = dict(cosmology)
    ds = from_arrays(*arrays, box_size=100, redshift=0.59, cosmology=parameters)
    ds.attrs["cosmology"]["h"] = 0.5
    assert parameters == cosmology
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- selection ---


def test_the_heaviest_in_four_bins(halos):
    chosen = select(halos)
    np.testing.assert_array_equal(np.bincount(chosen["mass_bin"]), [100, 900, 1000, 1000])
    np.testing.assert_array_equal(chosen["mass"], np.sort(halos["mass"].values)[::-1][:3000])
    assert (np.diff(chosen["mass_bin"]) >= 0).all()
    assert chosen.attrs["number_density"] == list(NUMBER_DENSITY)
    assert chosen.attrs["selection_seed"] == 0
    assert chosen.attrs["history"].endswith("select: 3000 of 5000 halos")
    # Rows stay together.
    rows = {tuple(p): (m, *v) for p, m, v in zip(*columns(halos), strict=True)}
    assert all(rows[tuple(p)] == (m, *v) for p, m, v in zip(*columns(chosen), strict=True))


def columns(ds):
    return (ds[name].values.tolist() for name in ("position", "mass", "velocity"))


def test_all_of_them_and_one_bin(halos):
    assert select(halos, [5e-3]).sizes["halo"] == 5000
    assert set(select(halos, [1e-3])["mass_bin"].values) == {0}


def test_too_few_halos(halos):
    message = (
        r"number_density=0.006 \(h/Mpc\)\^3 needs 6000 halos in 1e\+06 .*has 5000, that is 0.005 "
    )
    with pytest.raises(CatalogError, match=message):
        select(halos, [1e-3, 6e-3])


def test_an_empty_mass_bin(halos):
    with pytest.raises(CatalogError, match="Mass bin 0 is empty: number_density=1e-07, 0.001 "):
        select(halos, [1e-7, 1e-3])
    with pytest.raises(CatalogError, match=r"Mass bin 1 is empty.*gives 1000, 0, 1000 halos a bin"):
        select(halos, [1e-3, 1.0000001e-3, 2e-3])


@pytest.mark.parametrize(
    "edges", [[], [2e-3, 1e-3], [0, 1e-3], [1e-3, 1e-3], [np.nan], [1e-3, np.inf], 1e-3, [[1e-3]]]
)
def test_number_densities_that_do_not_rise(halos, edges):
    with pytest.raises(CatalogError, match="expected rising cumulative densities in"):
        select(halos, edges)


def test_selection_needs_masses(halos, observed):
    with pytest.raises(MissingVariableError, match="No `mass` in this catalogue"):
        select(halos.drop_vars("mass"))
    with pytest.raises(MissingVariableError, match="No `position` in this Dataset"):
        select(observed)
    with pytest.raises(MissingAttributeError, match="No `box_size`"):
        select(halos.drop_attrs())
    mass = halos["mass"].where(halos["mass"] != halos["mass"].max())
    with pytest.raises(CatalogError, match="`mass` holds [0-9]+ NaN or infinite values"):
        select(halos.assign(mass=mass))


@pytest.mark.parametrize("seed", [None, 1.5, -1, "one"])
def test_what_is_no_seed(halos, seed):
    with pytest.raises(CatalogError, match=f"seed={seed!r}; expected a whole number"):
        select(halos, seed=seed)


def test_ties_are_broken_by_the_seed(halos):
    first, again, other = (select(halos, seed=seed) for seed in (1, 1, 2))
    xr.testing.assert_identical(first.drop_attrs(), again.drop_attrs())
    np.testing.assert_array_equal(first["mass"], other["mass"])
    kept, kept_other = ({tuple(p) for p in ds["position"].values} for ds in (first, other))
    lightest = float(first["mass"][-1])
    tied = int((halos["mass"] == lightest).sum())
    taken = int((first["mass"] == lightest).sum())
    assert 0 < taken < tied
    assert kept != kept_other
    # They differ in halos of the last mass alone.
    differing = kept ^ kept_other
    mass_of = {
        tuple(p): m for p, m in zip(halos["position"].values, halos["mass"].values, strict=True)
    }
    assert {mass_of[p] for p in differing} == {lightest}
    # Ties at the edges between bins as well.
    edge = (first["mass_bin"] != other["mass_bin"]).values | (
        first["position"] != other["position"]
    ).any("component").values
    assert edge[:2000].any()


def test_no_tilt_where_the_file_is_ordered_in_space(cosmology):
    """Halos of equal mass sorted by x: a plain cut would take the left half of the box."""
    rng = np.random.default_rng(5)
    n = 8000
    position = rng.uniform(0, 100, (n, 3))
    position = position[np.argsort(position[:, 0])]
    mass = np.where(np.arange(n) % 8 == 0, 2e12, 1e12)
    ds = from_arrays(
        position, np.zeros((n, 3)), mass, box_size=100, redshift=0.59, cosmology=cosmology
    )
    chosen = select(ds, [5e-4, 2e-3, 4e-3])
    for i in range(3):
        x = chosen["position"].values[(chosen["mass_bin"] == i).values, 0]
        # A uniform x has the mean 50 and the standard deviation 100 / sqrt(12).
        assert abs(x.mean() - 50) < 4 * 100 / np.sqrt(12 * len(x))
        counts, _ = np.histogram(x, bins=4, range=(0, 100))
        assert (abs(counts / counts.mean() - 1) < 4 * np.sqrt(3 / len(x))).all()


def test_selection_leaves_the_catalogue(halos):
    before = halos.copy(deep=True)
    select(halos)
    to_redshift_space(halos)
    xr.testing.assert_identical(halos, before)


# --- redshift space ---


@pytest.mark.parametrize("los", ["x", "y", "z"])
def test_shift_by_hand(make, los):
    # a H = 100 E / (1 + z), E^2 = 0.268 1.59^3 + 0.732: 84.5747 km/s/(Mpc/h).
    rate = 100 * np.sqrt(0.268 * 1.59**3 + 0.732) / 1.59
    assert rate == pytest.approx(84.6, abs=0.05)
    position = at([10, 20, 30], [99, 99, 99], [1, 1, 1])
    velocity = np.zeros((20, 3))
    velocity[:3] = [[846, 423, -423], [500, 500, 500], [-500, -500, -500]]
    ds = make(position=position, velocity=velocity)
    moved = to_redshift_space(ds, los)
    axis = "xyz".index(los)
    expected = position.copy()
    expected[:, axis] += velocity[:, axis] / rate
    expected %= 100
    np.testing.assert_allclose(moved["position"], expected, atol=1e-5)
    assert float(moved["position"][1, axis]) == pytest.approx(99 + 500 / 84.57 - 100, abs=1e-2)
    assert float(moved["position"][2, axis]) == pytest.approx(1 - 500 / 84.57 + 100, abs=1e-2)
    others = [i for i in range(3) if i != axis]
    np.testing.assert_array_equal(moved["position"][:, others], ds["position"][:, others])
    assert moved.attrs["space"] == "redshift"
    assert moved.attrs["los"] == los
    assert moved.attrs["history"].endswith(f"to_redshift_space: los={los}")
    xr.testing.assert_identical(moved["velocity"], ds["velocity"])


def test_shift_keeps_the_labels_and_wraps(halos):
    moved = to_redshift_space(halos)
    assert moved["position"].attrs == halos["position"].attrs
    assert moved["position"].dtype == np.float32
    assert (moved["position"] >= 0).all()
    assert (moved["position"] < 100).all()
    assert (moved["position"] != halos["position"]).any()


def test_shift_does_not_depend_on_the_order_of_dims(halos):
    turned = halos.transpose("component", "halo")
    xr.testing.assert_equal(
        to_redshift_space(turned, "x")["position"], to_redshift_space(halos, "x")["position"]
    )


def test_shift_in_a_box_of_unequal_sides(make):
    ds = make(position=at([50, 199, 9]), box_size=[100, 200, 300])
    ds["velocity"][:] = 500
    moved = to_redshift_space(ds, "y")
    assert float(moved["position"][0, 1]) == pytest.approx(199 + 500 / 84.57 - 200, abs=1e-2)


def test_shift_only_once(tracers):
    with pytest.raises(CatalogError, match=r"in redshift space already \(los='z'\)"):
        to_redshift_space(tracers, "x")


def test_shift_needs(halos):
    with pytest.raises(DimensionError, match="los='r'; expected one of 'x', 'y', 'z'"):
        to_redshift_space(halos, "r")
    for key in ("box_size", "redshift", "cosmology"):
        with pytest.raises(MissingAttributeError, match=f"No `{key}`"):
            to_redshift_space(halos.assign_attrs({key: None}))
    with pytest.raises(MissingVariableError, match="No `velocity`"):
        to_redshift_space(halos.drop_vars("velocity"))
    with pytest.raises(CatalogError, match="positions lie outside the box"):
        to_redshift_space(halos.assign_attrs(box_size=50.0))


def test_selection_and_shift_commute(halos):
    one = select(to_redshift_space(halos, "y"))
    other = to_redshift_space(select(halos), "y")
    xr.testing.assert_equal(one, other)


def test_positions_in_redshift_space_already(cosmology: dict[str, float]) -> None:
    rows = np.full((3, 3), 5.0)
    facts = {"box_size": 10.0, "redshift": 0.59, "cosmology": cosmology}
    ds = from_arrays(rows, 100 * rows, **facts, los="y")
    assert ds.attrs["space"] == "redshift"
    assert ds.attrs["los"] == "y"
    with pytest.raises(CatalogError, match="in redshift space already"):
        to_redshift_space(ds)
    with pytest.raises(DimensionError, match="los='w'"):
        from_arrays(rows, rows, **facts, los="w")


# --- laziness ---


def test_shift_of_a_lazy_catalogue_waits(halos, no_computes):
    eager = to_redshift_space(halos, "y")
    for chunks in (700, 5000):
        for lazy in (halos.chunk(halo=chunks, component=2), halos.chunk(halo=chunks)):
            with no_computes():
                moved = to_redshift_space(lazy, "y")
            assert isinstance(moved["position"].data, da.Array)
            assert moved["position"].attrs == eager["position"].attrs
            np.testing.assert_array_equal(moved["position"], eager["position"])
    # Where one of the two is lazy only, or the rows are cut at other places.
    mixed = halos.assign(velocity=halos["velocity"].chunk(halo=300))
    np.testing.assert_array_equal(to_redshift_space(mixed, "y")["position"], eager["position"])
    mixed["position"] = halos["position"].chunk(halo=512)
    np.testing.assert_array_equal(to_redshift_space(mixed, "y")["position"], eager["position"])


def test_shift_of_a_lazy_catalogue_is_checked_when_computed(halos):
    lazy = halos.chunk(halo=700).assign_attrs(box_size=50.0)
    moved = to_redshift_space(lazy)
    with pytest.raises(CatalogError, match="positions lie outside the box"):
        moved["position"].compute()


def test_selection_of_a_lazy_catalogue_reads_the_masses_alone(halos, no_computes):
    untouched = da.map_blocks(
        lambda: pytest.fail("computed"),
        chunks=((2500, 2500), 3),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )
    lazy = halos.assign(position=halos["position"].copy(data=untouched))
    lazy["velocity"] = halos["velocity"].chunk(halo=700)
    lazy["mass"] = halos["mass"].chunk(halo=700)
    chosen = to_redshift_space(select(lazy), "z")
    assert isinstance(chosen["position"].data, da.Array)
    with no_computes():
        to_redshift_space(select(lazy.assign(mass=halos["mass"])), "z")
    chosen = select(halos.chunk(halo=700))
    xr.testing.assert_equal(chosen, select(halos))
