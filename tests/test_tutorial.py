import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from cosmofields import tutorial
from cosmofields.catalog import select
from cosmofields.conventions import CATALOG_FIELDS, FIELDS, periodic_grid
from cosmofields.readers import open_box
from cosmofields.store import describe, open_store

BOX = Path(os.environ.get("COSMOFIELDS_BOXES", "")) / "box_105.h5"


@pytest.fixture(scope="module")
def sample():
    return tutorial.open_dataset()


def test_size_on_disk():
    path = tutorial.sample_path()
    size = sum(p.lstat().st_size for p in [path, *path.rglob("*")])  # as du -b
    assert 10e6 < size < 16e6


def test_facts(sample):
    for ds in sample:
        assert ds.attrs["box_size"] == 300
        assert ds.attrs["redshift"] == 0.59
        assert ds.attrs["space"] == "real"
        assert ds.attrs["periodic"] is True
        assert "los" not in ds.attrs
        assert ds.attrs["cosmology"] == {
            "Omega_m": 0.268,
            "Omega_b": 0.0445,
            "h": 0.71,
            "n_s": 0.968,
            "sigma8": 0.83,
        }
        source = ds.attrs["source"]
        assert source["role"] == "test"
        assert source["seed"] == 105
        assert source["particle_mass"] == pytest.approx(6.13e10, rel=1e-3)
        assert len(source["sha256"]) == 64


def test_layout(sample):
    halos, true = sample
    assert not halos.chunks
    for name, spec in CATALOG_FIELDS.items():
        assert halos[name].dims == spec.dims
        assert halos[name].attrs["units"] == spec.units
    for name in ("density", "velocity", "momentum"):
        assert true[name].dims == FIELDS[name].dims
        assert true[name].attrs["units"] == FIELDS[name].units
        assert true[name].dtype == np.float32
        assert true[name].chunks[-3:] == ((64, 64),) * 3
        assert true[name].attrs["box_size"] == 300
    assert periodic_grid(true).cell_size == (300 / 128,) * 3


def test_physics(sample):
    halos, true = sample
    assert float(halos.position.min()) >= 0
    assert float(halos.position.max()) < 300
    assert float(true.density.min()) > 0
    assert float(true.density.mean(dtype=float)) == pytest.approx(1, abs=1e-4)
    assert 200 < float(true.velocity.std()) < 300
    momentum = true.momentum.mean(("x", "y", "z"), dtype=float).values
    np.testing.assert_allclose(momentum, 0, atol=0.5)


def test_ties_of_the_lightest_halo_are_all_there(sample):
    halos, _ = sample
    mass = halos.mass.values
    n = 81_000  # 3e-3 (h/Mpc)^3
    cut = np.sort(mass)[::-1][n - 1]
    assert mass.min() < cut  # so none of that mass was left out
    picks = [select(halos, [3e-3], seed=seed).position.values for seed in (0, 1)]
    assert len(picks[0]) == n
    assert not np.array_equal(*picks)


def test_plain_xarray_opens_it_without_a_warning():
    code = (
        "import sys, xarray as xr\n"
        "true = xr.open_zarr(sys.argv[1], group='true')\n"
        "assert true.velocity.sel(component='x').dtype == 'float32'\n"
        "xr.open_datatree(sys.argv[1], engine='zarr').load()\n"
        "assert 'cosmofields' not in sys.modules"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tutorial.sample_path())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def test_describe():
    text = describe(tutorial.sample_path())
    assert "whole" in text
    assert "130,625, 0.00484 (h/Mpc)^3" in text
    assert "128 x 128 x 128 cells of 2.344 Mpc/h" in text
    assert "momentum" not in open_store(tutorial.sample_path(), "true")


@pytest.mark.skipif(not BOX.is_file(), reason="COSMOFIELDS_BOXES names no folder with box_105.h5")
def test_against_the_box_it_was_made_from(sample):
    halos, true = sample
    want_halos, want = open_box(BOX)
    xr.testing.assert_equal(halos, want_halos)
    assert {*want_halos.attrs} <= {*halos.attrs}
    assert {*want.attrs} <= {*true.attrs}
    assert list(true.data_vars) == list(want.data_vars)
    xr.testing.assert_equal(true.density.compute(), want.density.compute())
    for name, bound, rms in (("velocity", 0.251, 0.15), ("momentum", None, 0.4)):
        error = (true[name] - want[name]).compute()
        if bound:
            assert float(abs(error).max()) < bound
        assert float(np.sqrt((error.astype(float) ** 2).mean())) < rms
        assert true[name].attrs.items() >= want[name].attrs.items()
