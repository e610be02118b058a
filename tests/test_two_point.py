"""Clustering of several catalogues: pairs counted by scipy beside it, labels, round trips."""

import io

import numpy as np
import pytest
import xarray as xr
from scipy.spatial import cKDTree
from scipy.special import eval_legendre

from cosmofields.catalog import from_arrays, to_redshift_space
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
from cosmofields.two_point import clustering

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
    # Midway between multiples of the cell, 0.8 Mpc/h, so that shells of nodes are not shifted.
    edges = np.array([7.5, 15.5, 25.5, 37.5]) * 0.8
    result = clustering({"s": stretched, "r": halos}, n_grid=125, edges=edges)
    found = result["xi"].values
    expected = np.stack([counted(catalog, edges, los=1) for catalog in (stretched, halos)])
    assert expected[0, 1, 0] - expected[1, 1, 0] > 0.1
    # A pair within a cell of an edge, of 90,000 in the first bin one in four, is in the bin or not
    # by where the nodes are: a scatter of sqrt((2 l + 1) 24,000 / 3) / 90,000, here times three.
    n = halos.sizes["halo"]
    volumes = np.diff(4 / 3 * np.pi * edges**3)
    faces = 4 * np.pi * (edges[:-1] ** 2 + edges[1:] ** 2) * 0.8
    pairs = n**2 / 2 / 100.0**3
    for i, ell in enumerate((0, 2, 4)):
        scatter = np.sqrt((2 * ell + 1) * pairs * faces / 3) / (pairs * volumes)
        off = abs(found[:, i] - expected[:, i])
        assert (off < 3 * scatter).all(), (ell, off, scatter)


def test_shot_noise_stays_at_zero_separation(cosmology):
    """Points at random, few to a cell: against all their pairs, from half a cell on."""
    n, side, n_grid = 3000, 100.0, 48
    edges = np.array([0.5, 2.5, 4.5, 6.5, 8.5]) * side / n_grid
    off = []
    for seed in range(6):
        position = np.random.default_rng(seed).uniform(0, side, (n, 3))
        points = from_arrays(
            position,
            np.zeros((n, 3)),
            np.full(n, 1e12),
            box_size=side,
            redshift=0.59,
            cosmology=cosmology,
        )
        found = clustering({"points": points}, n_grid=n_grid, los="z", edges=edges)
        off.append(found["xi"].values[0] - counted(points, edges, los=2))
    # An interlaced mesh with the window "cic" has -0.079 and 0.020 in xi_0, -0.40 in xi_4.
    xi_0, _, xi_4 = abs(np.mean(off, axis=0))
    assert (xi_0 < [0.010, 0.005, 0.003, 0.003]).all()
    assert (xi_4 < [0.050, 0.020, 0.010, 0.010]).all()


def test_is_what_its_parts_say(halos, observed, result):
    for label, catalog in (("redshift space", observed), ("real space", halos)):
        plain, interlaced = (
            paint(catalog, 32, weighting="number", interlaced=how).halo_density.isel(mass_bin=0)
            for how in (False, True)
        )
        part = result.sel(sample=label)
        poles = multipoles(interlaced, los="y", window="cic")
        xi = correlations(plain, los="y", window="cic-aliased", edges=OPTIONS["edges"])
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
    made = {name: result[name].attrs["window"] for name in ("power", "xi", "xi_2d")}
    assert made == {"power": "cic", "xi": "cic-aliased", "xi_2d": "cic-aliased"}
    assert [result[name].attrs["interlaced"] for name in made] == [1, 0, 0]
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


def test_labels_are_text(halos):
    result = clustering({0.59: halos, 2: halos}, los="z", **OPTIONS)
    assert result["sample"].values.tolist() == ["0.59", "2"]


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
    with pytest.raises(CatalogError, match="catalogs is a list; expected labels"):
        clustering([observed])
    with pytest.raises(CatalogError, match="labels and their catalogues"):
        clustering({"a": observed.position})
    with pytest.raises(GridMismatchError, match=r"different redshifts \(a: 0.59, b: 0\)"):
        clustering({"a": observed, "b": halos.assign_attrs(redshift=0.0)})
    other = {**halos.attrs["cosmology"], "Omega_m": 0.31}
    with pytest.raises(CatalogError, match=r"cosmologies \(Omega_m of a: 0.268, b: 0.31\)"):
        clustering({"a": observed, "b": halos.assign_attrs(cosmology=other)})
    # What one does not say is no difference.
    bare = halos.assign_attrs(cosmology={"Omega_m": 0.268, "h": 0.71})
    assert clustering({"a": observed, "b": bare}, **OPTIONS).sizes["sample"] == 2
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
