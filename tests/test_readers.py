"""Readers: simulated boxes; catalogues that stay on disk until they are computed."""

import pickle
import shutil
from pathlib import Path

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

from cosmofields.catalog import from_arrays, select, to_redshift_space
from cosmofields.conventions import (
    CatalogError,
    MissingAttributeError,
    MissingVariableError,
    StoreError,
    periodic_grid,
)
from cosmofields.painting import paint, paint_matter
from cosmofields.readers import ROWS, open_box, open_catalog
from cosmofields.store import write_store

# --- catalogues larger than memory ---


@pytest.fixture(scope="module")
def table(halos):
    """Columns of `halos` in float64, some positions on the edge or just below it."""
    columns = {name: halos[name].values.astype(np.float64) for name in halos.data_vars}
    columns["position"][:4, 0] = [100.0, 100 - 1e-12, -1e-9, 0.0]
    return columns


@pytest.fixture(scope="module")
def facts(cosmology):
    return {"box_size": 100.0, "redshift": 0.59, "cosmology": cosmology}


@pytest.fixture(scope="module")
def wanted(table, facts):
    return from_arrays(*table.values(), **facts)


def write_hdf5(path, table, window=slice(None), names="halos/{}", attrs=None, **options):
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.create_dataset(names.format(name.title()), data=values[window], **options)
        file.attrs.update(attrs or {})
    return path


@pytest.fixture(scope="module")
def sources(table, facts, halos, tmp_path_factory):
    """The same catalogue in every form."""
    folder = tmp_path_factory.mktemp("sources")
    flat = {"box_size": 100.0, "redshift": np.array([0.59]), **facts["cosmology"]}
    write_hdf5(folder / "one.h5", table, attrs=flat)
    write_hdf5(folder / "packed.h5", table, attrs=flat, chunks=True, compression="gzip")
    edges = [0, 1, 1, 1200, 1207, 4999, 5000]
    for i in range(6):
        window = slice(edges[i], edges[i + 1])
        write_hdf5(folder / f"part.{i}.h5", table, window, attrs=flat)
    root = zarr.create_group(folder / "plain.zarr")
    for name, values in table.items():
        root.create_array(f"halos/{name}", data=values, chunks=(999, 3)[: values.ndim])
    root.attrs.update({**flat, "redshift": 0.59})
    xr.Dataset({name: (("halo", "component")[: v.ndim], v) for name, v in table.items()}).pipe(
        lambda ds: write_store(ds.assign_attrs(facts), folder / "ours.zarr")
    )
    return {
        "one": folder / "one.h5",
        "packed": folder / "packed.h5",
        "pattern": str(folder / "part.*.h5"),
        "list": [folder / f"part.{i}.h5" for i in range(6)],
        "zarr": folder / "plain.zarr",
        "ours": str(folder / "ours.zarr"),
    }


@pytest.mark.parametrize("rows", [ROWS, 700, 1200])
@pytest.mark.parametrize("kind", ["one", "packed", "pattern", "list", "zarr", "ours"])
def test_a_lazy_catalogue_is_the_eager_one(sources, wanted, no_computes, kind, rows):
    with no_computes():
        ds = open_catalog(sources[kind], rows=rows)
    assert all(isinstance(ds[name].data, da.Array) for name in ds)
    assert max(ds.chunks["halo"]) <= rows
    assert ds.chunks["component"] == (3,)
    assert list(ds) == list(wanted)
    for name in ds:
        assert ds[name].dtype == np.float32
        assert ds[name].dims == wanted[name].dims
        assert ds[name].attrs == wanted[name].attrs
    attrs = {k: v for k, v in ds.attrs.items() if k not in ("history", "source")}
    assert attrs == {k: v for k, v in wanted.attrs.items() if k != "history"}
    assert "open_catalog: 5000 rows of" in ds.attrs["history"]
    xr.testing.assert_equal(ds.compute(), wanted)


def test_chunks_of_a_file_stay_whole(sources, tmp_path, table, facts):
    path = write_hdf5(tmp_path / "a.h5", table, chunks=None)
    with h5py.File(path, "r+") as file:
        del file["halos/Position"]
        file.create_dataset("halos/Position", data=table["position"], chunks=(300, 3))
    assert open_catalog(path, **facts, rows=1000).chunks["halo"] == (900,) * 5 + (500,)
    assert open_catalog(path, **facts, rows=200).chunks["halo"] == (200,) * 25
    # Small files are read together.
    chunks = open_catalog(sources["list"], rows=2000).chunks["halo"]
    assert chunks == (1207, 2000, 1793)
    assert open_catalog(sources["list"]).chunks["halo"] == (5000,)


def test_tasks_hold_paths_and_no_data(sources, wanted):
    ds = open_catalog(sources["list"], rows=1000)
    graph = ds.__dask_graph__()
    assert len(pickle.dumps(dict(graph))) < 50_000
    with dask.config.set(scheduler="processes", num_workers=1):
        xr.testing.assert_equal(
            ds.isel(halo=slice(0, 1500)).compute(), wanted.isel(halo=slice(1500))
        )


def test_opening_reads_metadata_alone(sources, monkeypatch):
    def read(*_):
        raise AssertionError("read values")

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", read)
        patch.setattr(zarr.Array, "__getitem__", read)
        open_catalog(sources["list"])
        ds = open_catalog(sources["zarr"])
    assert ds["mass"].values.shape == (5000,)


def test_a_file_that_changed_is_read_again(tmp_path, table, facts):
    path = write_hdf5(tmp_path / "a.h5", table)
    before = open_catalog(path, **facts)["mass"].data.name
    assert open_catalog(path, **facts)["mass"].data.name == before
    write_hdf5(path, {**table, "mass": 2 * table["mass"]})
    assert open_catalog(path, **facts)["mass"].data.name != before


def test_a_lazy_catalogue_becomes_fields(sources, wanted, no_computes):
    """Masses are ranked, and so computed; positions wait until the fields are computed."""
    lazy = open_catalog(sources["pattern"], rows=1300)
    eager = paint(to_redshift_space(select(wanted)), 16)
    computed = []
    watched = lazy["position"].data.map_blocks(
        lambda block: computed.append(len(block)) or block, dtype=np.float32, meta=np.empty((0, 0))
    )
    lazy["position"] = lazy["position"].copy(data=watched)
    observed = paint(to_redshift_space(select(lazy)), 16)
    assert not computed
    assert isinstance(observed["halo_density"].data, da.Array)
    field = observed["halo_density"].compute()
    assert computed
    np.testing.assert_allclose(field, eager["halo_density"], rtol=1e-5, atol=1e-5)
    matter = paint_matter(open_catalog(sources["zarr"], dim="particle", rows=1300), 8)
    np.testing.assert_allclose(matter["density"], paint_matter(wanted, 8)["density"], rtol=1e-5)


# --- which columns ---


def test_columns_by_their_usual_names(tmp_path, table, facts):
    path = write_hdf5(tmp_path / "a.h5", table)
    for names in ("PartType1/{}", "{}", "a/b/{}"):
        write_hdf5(path, table, names=names)
        with h5py.File(path, "r+") as file:
            folder = file[names.format("")] if names != "{}" else file
            folder.move("Position", "Coordinates")
            folder.move("Velocity", "Velocities")
            folder["ParticleIDs"] = np.arange(5000)
            file["other/Masses"] = np.ones(3)
        assert set(open_catalog(path, **facts)) == {"position", "velocity", "mass"}


def test_more_than_one_set_of_columns(tmp_path, table, facts, wanted):
    path = write_hdf5(tmp_path / "a.h5", table, names="PartType1/{}")
    with h5py.File(path, "r+") as file:
        file["PartType4/Position"] = table["position"][:100]
        file["PartType4/Velocity"] = table["velocity"][:100]
    message = (
        r"2 datasets could be `position` in '.*a\.h5'; it holds PartType1/Mass \(5000,\), .*"
        r"PartType4/Velocity \(100, 3\)\. Name it: open_catalog\(\.\.\., position='\.\.\.'\)"
    )
    with pytest.raises(MissingVariableError, match=message):
        open_catalog(path, **facts)
    for options in (
        {"group": "PartType1"},
        {"group": "/PartType1/", "position": "Position"},
        {"position": "PartType1/Position"},
        {"position": "/PartType1/Position", "velocity": "PartType1/Velocity"},
    ):
        xr.testing.assert_equal(open_catalog(path, **facts, **options), wanted)
    stars = open_catalog(path, **facts, group="PartType4", dim="particle")
    assert dict(stars.sizes) == {"particle": 100, "component": 3}
    assert "mass" not in stars


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "X"}, r"No dataset that is `position` \(X\) in .*it holds halos/Mass"),
        ({"mass": "M200"}, r"No dataset that is `mass` \(M200\)"),
        ({"group": "nowhere"}, r"No dataset that is `position` in .*it holds .*Position"),
    ],
)
def test_columns_that_are_not_there(sources, options, message):
    with pytest.raises(MissingVariableError, match=message):
        open_catalog(sources["one"], **options)


def test_redshift_space_needs_no_velocity(tmp_path, table, facts):
    path = write_hdf5(tmp_path / "a.h5", {"position": table["position"]})
    with pytest.raises(MissingVariableError, match="No `velocity` beside 'halos/Position' in"):
        open_catalog(path, **facts)
    ds = open_catalog(path, **facts, los="x")
    assert ds.attrs["los"] == "x"
    assert ds.attrs["space"] == "redshift"
    assert list(ds) == ["position"]


def test_a_store_of_ours_remembers_its_space(tmp_path, tracers):
    write_store(tracers, tmp_path / "a.zarr")
    ds = open_catalog(tmp_path / "a.zarr")
    assert ds.attrs["space"] == "redshift"
    assert ds.attrs["los"] == "z"
    np.testing.assert_array_equal(ds["position"], tracers["position"])


# --- box facts ---


def test_facts_that_are_missing(tmp_path, table, facts, cosmology):
    path = write_hdf5(tmp_path / "a.h5", table, attrs={"redshift": 0.59})
    message = (
        r"No `box_size`, `cosmology` in the attributes of '.*a\.h5'\. "
        r"Pass those of your simulation: open_catalog\(\.\.\., box_size=\.\.\. \(.*Mpc/h\), "
        r"cosmology=\{'Omega_m'"
    )
    with pytest.raises(MissingAttributeError, match=message):
        open_catalog(path)
    ds = open_catalog(path, box_size=100, cosmology=cosmology)
    assert ds.attrs["redshift"] == 0.59
    assert open_catalog(path, **{**facts, "redshift": 0.5}).attrs["redshift"] == 0.5
    with pytest.raises(MissingAttributeError, match="box_size=-1"):
        open_catalog(path, **{**facts, "box_size": -1})


def test_parts_of_different_boxes(tmp_path, table, facts):
    paths = [
        write_hdf5(tmp_path / f"{i}.h5", table, attrs={"box_size": 100.0 + i}) for i in range(2)
    ]
    given = {key: facts[key] for key in ("redshift", "cosmology")}
    with pytest.raises(StoreError, match=r"no parts of one catalogue.*'box_size': 101"):
        open_catalog(paths, **given)
    assert open_catalog(paths, box_size=100, **given).sizes["halo"] == 10_000
    write_hdf5(paths[1], {"position": table["position"], "velocity": table["velocity"]})
    with pytest.raises(StoreError, match="no parts of one catalogue.*'mass'"):
        open_catalog(paths, **facts)


# --- what is refused ---


@pytest.mark.parametrize("rows", [0, -5, 1.5, "auto", True])
def test_what_is_no_number_of_rows(sources, rows):
    with pytest.raises(CatalogError, match=f"rows={rows!r}; expected a whole number"):
        open_catalog(sources["one"], rows=rows)


def test_no_such_files(tmp_path, sources):
    for source in (tmp_path / "no.h5", str(tmp_path / "*.hdf5"), [], [sources["one"], "no.h5"]):
        with pytest.raises(StoreError, match="No file .*; expected HDF5 files or Zarr stores"):
            open_catalog(source)
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(StoreError, match="cannot be read as HDF5"):
        open_catalog(tmp_path / "text.h5")
    with pytest.raises(StoreError, match="is no Zarr store"):
        open_catalog(tmp_path)


def test_a_store_that_is_not_whole(tmp_path, tracers):
    write_store(tracers, tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "a.zarr").attrs["complete"] = False
    with pytest.raises(StoreError, match="not whole"):
        open_catalog(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("position", np.nan, r"rows 2000 to 2999: `position` holds 3 NaN .*first in row 500\)"),
        ("position", 101.0, "1 of 1000 positions lie outside the box"),
        ("velocity", np.inf, "`velocity` holds 3 NaN or infinite"),
        ("mass", np.nan, "`mass` holds 1 NaN"),
        ("mass", 0.0, "1 values at or below zero"),
    ],
)
def test_values_are_checked_when_computed(tmp_path, table, facts, name, value, message):
    bad = {**table, name: table[name].copy()}
    bad[name][2500] = value
    ds = open_catalog(write_hdf5(tmp_path / "a.h5", bad), **facts, rows=1000)
    ds[name][:2000].compute()
    with pytest.raises(CatalogError, match=message):
        ds[name].compute()


def test_masses_in_other_units(tmp_path, table, facts):
    path = write_hdf5(tmp_path / "a.h5", {**table, "mass": table["mass"] / 1e10})
    with pytest.raises(CatalogError, match="units of 1e10 Msun/h"):
        select(open_catalog(path, **facts))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("Position", (3, 5000), r"a.h5': `position` has shape \(3, 5000\)"),
        ("Mass", (4000,), r"`mass` has shape \(4000,\); expected \(5000,\)"),
    ],
)
def test_shapes_of_columns(tmp_path, table, facts, name, shape, message):
    path = write_hdf5(tmp_path / "a.h5", table)
    with h5py.File(path, "r+") as file:
        del file[f"halos/{name}"]
        file[f"halos/{name}"] = np.ones(shape)
    with pytest.raises(CatalogError, match=message):
        open_catalog(path, **facts)
    write_hdf5(path, table, slice(0))
    with pytest.raises(CatalogError, match="The catalogue is empty"):
        open_catalog(path, **facts)


def test_a_file_that_goes_away(tmp_path, table, facts):
    path = write_hdf5(tmp_path / "a.h5", table)
    ds = open_catalog(path, **facts)
    Path(path).unlink()
    with pytest.raises(StoreError, match=r"a\.h5': cannot read halos/Mass, rows 0 to 4999"):
        ds["mass"].compute()


# --- box files ---


@pytest.fixture
def copy_of(box_file, tmp_path):
    """A copy of the box file, to be broken."""

    def make(**attrs):
        path = tmp_path / "copy.h5"
        shutil.copy(box_file, path)
        with h5py.File(path, "r+") as file:
            file.attrs.update(attrs)
        return path

    return make


def test_open_box(box_file, plain_cic):
    halos, true = open_box(box_file)
    with h5py.File(box_file) as file:
        np.testing.assert_array_equal(halos["mass"], file["halos/Mass"][:])
        np.testing.assert_array_equal(true["density"], file["fields/density"][:])
        np.testing.assert_array_equal(true["momentum"], file["fields/momentum"][:])
    np.testing.assert_allclose(true["velocity"] * true["density"], true["momentum"], rtol=1e-6)
    assert all(true[name].dtype == np.float32 for name in true)
    assert true["velocity"].dims == ("component", "x", "y", "z")
    assert true["velocity"].attrs["units"] == "km/s"
    assert periodic_grid(true).cell_size == pytest.approx((2.34375,) * 3)
    assert halos.attrs["source"]["file"] == "box_1.h5"
    assert halos.attrs["source"]["seed"] == 1
    assert halos.attrs["source"]["role"] == "training"
    assert halos.attrs["history"].endswith("open_box: box_1.h5")
    for obj in (halos, true, true["density"]):
        assert obj.attrs["box_size"] == 75.0
        assert obj.attrs["redshift"] == 0.59
        assert obj.attrs["cosmology"]["sigma8"] == 0.83
        assert obj.attrs["space"] == "real"
    select(halos)


def test_true_fields_are_lazy(box_file, count_computes, no_computes):
    with no_computes():
        halos, true = open_box(box_file)
        assert not halos.chunks
        slab = true["velocity"].isel(x=3)
    assert all(isinstance(true[name].data, da.Array) for name in true)
    with count_computes() as computes:
        slab.compute()
        true.compute()
    assert computes.total == 2


def test_true_fields_are_read_in_chunks(make_box, tmp_path, monkeypatch):
    monkeypatch.setattr("cosmofields.readers.boxes.CHUNK", 5)
    path = make_box(tmp_path / "small.h5", n_grid=12, box_size=48.0)
    _, true = open_box(path)
    assert true["density"].chunks == ((5, 5, 2),) * 3
    assert true["momentum"].chunks == ((1, 1, 1), *((5, 5, 2),) * 3)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(true["momentum"], file["fields/momentum"][:])


def test_velocity_of_an_empty_cell_is_nan(copy_of):
    path = copy_of()
    with h5py.File(path, "r+") as file:
        file["fields/density"][1, 2, 3] = 0
        file["fields/momentum"][:, 1, 2, 3] = 0
    velocity = open_box(path)[1]["velocity"].compute()
    assert np.isnan(velocity[:, 1, 2, 3]).all()
    assert int(np.isnan(velocity).sum()) == 3


def test_attributes_as_arrays_and_bytes(copy_of):
    path = copy_of(box_size=np.full(3, 75.0), redshift=np.array([0.59]), role=np.bytes_(b"test"))
    halos, _ = open_box(path)
    assert halos.attrs["box_size"] == 75.0
    assert halos.attrs["redshift"] == 0.59
    assert halos.attrs["source"]["role"] == "test"


def test_no_file(tmp_path):
    with pytest.raises(StoreError, match=r"No file '.*nowhere\.h5'; expected an HDF5 box"):
        open_box(tmp_path / "nowhere.h5")
    with pytest.raises(StoreError, match="No file"):
        open_box(tmp_path)


def test_no_hdf5(tmp_path):
    path = tmp_path / "text.h5"
    for content in (b"", b"some text", bytes(10_000)):
        path.write_bytes(content)
        with pytest.raises(
            StoreError, match="cannot be read as HDF5.*truncated, or another format"
        ):
            open_box(path)


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1, 0.01])
def test_truncated_file(copy_of, kept):
    path = copy_of()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(StoreError, match="cannot be read as HDF5.*truncated"):
        open_box(path)


def damage(path, name):
    """Overwrite the middle of the first chunk of a dataset."""
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(bytes(64))


def test_damaged_table(copy_of):
    path = copy_of()
    damage(path, "halos/Velocity")
    with pytest.raises(StoreError, match="cannot read halos/Velocity"):
        open_box(path)


def test_damaged_field(copy_of):
    path = copy_of()
    damage(path, "fields/momentum")
    _, true = open_box(path)
    with pytest.raises(StoreError, match=r"copy.h5.*cannot read fields/momentum"):
        true["velocity"].compute()


@pytest.mark.parametrize("place", [0, 8, 24, 100, 700])
def test_damaged_head(copy_of, place):
    path = copy_of()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 32)
    with pytest.raises(StoreError, match=r"cannot be read as HDF5|is no simulated box"):
        open_box(path)


def test_file_that_breaks_after_it_was_opened(copy_of):
    path = copy_of()
    _, true = open_box(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"cannot read fields/density"):
        true["density"].compute()


@pytest.mark.parametrize(
    "name",
    ["halos/Position", "halos/Velocity", "halos/Mass", "fields/density", "fields/momentum"],
)
def test_missing_dataset(copy_of, name):
    path = copy_of()
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(StoreError, match=f"is no simulated box: it lacks {name}$"):
        open_box(path)


def test_everything_missing_is_listed(tmp_path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w"):
        pass
    message = "lacks halos/Position, .*fields/momentum, attribute box_size, attribute redshift"
    with pytest.raises(StoreError, match=message):
        open_box(path)


def test_group_where_a_dataset_should_be(copy_of):
    path = copy_of()
    with h5py.File(path, "r+") as file:
        del file["halos/Mass"]
        file.create_group("halos/Mass")
    with pytest.raises(StoreError, match="lacks halos/Mass"):
        open_box(path)


@pytest.mark.parametrize(
    ("name", "shape", "error", "message"),
    [
        ("fields/density", (32, 32), StoreError, r"density has shape \(32, 32\)"),
        ("fields/density", (16, 16, 16), StoreError, r"expected \(x, y, z\) and \(3, x, y, z\)"),
        ("fields/momentum", (32, 32, 32, 3), StoreError, r"momentum \(32, 32, 32, 3\)"),
        ("halos/Position", (3, 1604), CatalogError, r"`position` has shape \(3, 1604\)"),
        ("halos/Mass", (1600,), CatalogError, r"`mass` has shape \(1600,\); expected \(1604,\)"),
    ],
)
def test_wrong_shapes(copy_of, name, shape, error, message):
    path = copy_of()
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = np.ones(shape, np.float32)
    with pytest.raises(error, match=message):
        open_box(path)


def test_wrong_contents(copy_of):
    with pytest.raises(CatalogError, match="expected 0 to 50 Mpc/h along each axis"):
        open_box(copy_of(box_size=50.0))
    with pytest.raises(MissingAttributeError, match="Omega_m=-1.0"):
        open_box(copy_of(box_size=75.0, Omega_m=-1.0))


def test_another_line_of_sight_than_the_files(tmp_path, tracers):
    write_store(tracers, tmp_path / "z.zarr")
    assert open_catalog(tmp_path / "z.zarr", los="z").attrs["los"] == "z"
    with pytest.raises(CatalogError, match="los='x', but .* is in redshift space along z"):
        open_catalog(tmp_path / "z.zarr", los="x")
