"""Clustering of several catalogues: pairs counted by scipy beside it, labels, round trips."""

import io

import numpy as np
import pytest
import xarray as xr
from scipy.spatial import cKDTree
from scipy.special import eval_legendre

from cosmofields.catalog import to_redshift_space
from cosmofields.clustering import clustering
from cosmofields.conventions import (
    CatalogError,
    DimensionError,
    GridMismatchError,
    MissingAttributeError,
    NotPeriodicError,
)
from cosmofields.correlation import correlations
from cosmofields.painting import paint
from cosmofields.spectral import multipoles

OPTIONS = {"n_grid": 32, "edges": np.arange(10.0, 41.0, 10)}


@pytest.fixture(scope="module")
def observed(halos):
    return to_redshift_space(halos, "y")


@pytest.fixture(scope="module")
def result(halos, observed):
    return clustering({"redshift space": observed, "real space": halos}, **OPTIONS)


def counted(catalog, edges, los):
    """xi_l(r) of all pairs, against the number that a uniform box would have."""
    side = catalog.attrs["box_size"]
    position = catalog["position"].values.astype(float) % side
    n = len(position)
    tree = cKDTree(position, boxsize=side)
    pairs = tree.query_pairs(edges[-1], output_type="ndarray")
    apart = (position[pairs[:, 0]] - position[pairs[:, 1]] + side / 2) % side - side / 2
    r = np.linalg.norm(apart, axis=1)
    mu = apart[:, los] / r
    uniform = n**2 / 2 * np.diff(4 / 3 * np.pi * edges**3) / side**3
    poles = [
        (2 * ell + 1) * np.histogram(r, edges, weights=eval_legendre(ell, mu))[0] / uniform
        - (ell == 0)
        for ell in (0, 2, 4)
    ]
    return np.stack(poles)


def test_correlation_is_that_of_all_pairs(halos):
    # Clusters stretched along y, by velocities of their members of 300 km/s.
    stretched = to_redshift_space(halos.assign(velocity=3 * halos["velocity"]), "y")
    edges = np.array([6.0, 12.0, 20.0, 30.0])
    result = clustering({"s": stretched, "r": halos}, n_grid=100, edges=edges)
    found = result["xi"].values
    expected = np.stack([counted(catalog, edges, los=1) for catalog in (stretched, halos)])
    assert expected[0, 1, 0] - expected[1, 1, 0] > 0.1
    np.testing.assert_allclose(found[:, :2], expected[:, :2], rtol=0, atol=2e-3)
    # A narrow shell of cells, not quite round, has some hexadecapole of its own.
    np.testing.assert_allclose(found[:, 2, 1:], expected[:, 2, 1:], rtol=0, atol=2e-3)


def test_is_what_its_parts_say(halos, observed, result):
    for label, catalog in (("redshift space", observed), ("real space", halos)):
        painted = paint(catalog, 32, weighting="number", interlaced=True)
        field = painted["halo_density"].isel(mass_bin=0)
        part = result.sel(sample=label)
        poles = multipoles(field, los="y", window="cic")
        xi = correlations(field, los="y", window="cic", edges=OPTIONS["edges"])
        for name in ("power", "modes", "k_mean"):
            np.testing.assert_array_equal(part[name], poles[name])
        for name in ("xi", "pairs", "r_mean", "xi_2d", "pairs_2d"):
            np.testing.assert_array_equal(part[name], xi[name])


def test_labels(halos, result):
    assert list(result["sample"].values) == ["redshift space", "real space"]
    assert result["sample"].dtype == object
    assert result["power"].dims == ("sample", "ell", "k")
    assert result["xi"].dims == ("sample", "ell", "r")
    assert result["xi_2d"].dims == ("sample", "r_perp", "r_par")
    assert result["power"].attrs["units"] == "(Mpc/h)^3"
    assert list(result["ell"].values) == [0, 2, 4]
    assert set(result.data_vars) == {
        *("power", "modes", "k_mean", "shot_noise"),
        *("xi", "pairs", "r_mean", "xi_2d", "pairs_2d"),
    }
    for name in ("k", "r", "r_perp", "r_par"):
        assert f"{name}_bounds" in result.coords
    assert result.attrs["los"] == "y"
    assert result.attrs["n_grid"] == [32, 32, 32]
    assert result.attrs["box_size"] == 100.0
    assert result.attrs["redshift"] == 0.59
    np.testing.assert_allclose(result["shot_noise"], 100.0**3 / 5000)


def test_each_tracer_counts_one(halos, tracers):
    bare = tracers.drop_vars(["mass", "mass_bin"])
    first, second = (clustering({"a": cat}, **OPTIONS) for cat in (tracers, bare))
    xr.testing.assert_identical(first, second)
    assert first["shot_noise"].values == pytest.approx([100.0**3 / 3000])


def test_bins_as_given(halos):
    bins = {
        "k_edges": np.array([0.1, 0.3, 0.5]),
        "r_perp": np.array([0.0, 10, 20, 30]),
        "r_par": np.array([0.0, 5, 25]),
    }
    result = clustering({"a": halos}, los="x", **bins, **OPTIONS)
    assert dict(result.sizes) == {
        **{"sample": 1, "ell": 3, "k": 2, "r": 3, "r_perp": 3, "r_par": 2, "bound": 2}
    }
    np.testing.assert_array_equal(result["k_bounds"], [[0.1, 0.3], [0.3, 0.5]])
    np.testing.assert_array_equal(result["r_par_bounds"], [[0, 5], [5, 25]])


def test_line_of_sight_that_is_said_counts(halos, observed):
    turned = clustering({"s": observed}, los="z", **OPTIONS)
    assert turned.attrs["los"] == "z"
    both = clustering({"s": observed, "t": to_redshift_space(halos, "z")}, los="z", **OPTIONS)
    xr.testing.assert_equal(both.sel(sample=["s"]), turned)


def test_lazy_catalogues(halos, observed, result):
    lazy = {"redshift space": observed.chunk(halo=2000), "real space": halos.chunk(halo=1500)}
    xr.testing.assert_allclose(clustering(lazy, **OPTIONS), result, rtol=1e-5, atol=1e-5)


def test_round_trip_through_zarr_and_netcdf(result):
    store = {}
    result.to_zarr(store, consolidated=False)
    xr.testing.assert_identical(xr.open_zarr(store, consolidated=False).load(), result)
    with xr.open_dataset(io.BytesIO(bytes(result.to_netcdf()))) as back:
        xr.testing.assert_equal(back.load(), result)


def test_refuses(halos, observed):
    with pytest.raises(CatalogError, match="labels and their catalogues"):
        clustering(observed)
    with pytest.raises(CatalogError, match="labels and their catalogues"):
        clustering({})
    with pytest.raises(GridMismatchError, match=r"a: 100.0, b: 50.0 Mpc/h"):
        clustering({"a": observed, "b": halos.assign_attrs(box_size=50.0)})
    with pytest.raises(MissingAttributeError, match="los='z'"):
        clustering({"a": halos})
    with pytest.raises(CatalogError, match=r"different lines of sight \(a: y, b: x\)"):
        clustering({"a": observed, "b": to_redshift_space(halos, "x")})
    with pytest.raises(DimensionError, match="los='w'"):
        clustering({"a": observed}, los="w")
    with pytest.raises(NotPeriodicError):
        clustering({"a": observed.assign_attrs(periodic=False)})
