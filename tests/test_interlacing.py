"""Interlaced meshes: the mode of each particle at its own place, without the odd aliases."""

import dask
import numpy as np
import pytest
import xarray as xr

from cosmofields.catalog import from_arrays
from cosmofields.conventions import CatalogError
from cosmofields.linear import halo_overdensity
from cosmofields.painting import paint
from cosmofields.spectral import power_spectrum
from cosmofields.store import open_store, write_store

GRIDS = [(8, 8, 8), (7, 9, 6), (10, 5, 9)]
LENGTHS = (90.0, 60.0, 75.0)
COSMOLOGY = {"Omega_m": 0.3, "h": 0.7}


def points(position, box=LENGTHS, mass=None):
    position = np.asarray(position)
    facts = {"box_size": list(box), "redshift": 0.0, "cosmology": COSMOLOGY}
    return from_arrays(position, np.zeros_like(position), mass, **facts)


def some(n=200, seed=0, dtype=np.float64):
    return (np.random.default_rng(seed).uniform(0, 1, (n, 3)) * LENGTHS).astype(dtype)


def painted(catalog, shape, **options):
    return paint(catalog, shape, weighting="number", **options)["halo_density"]


def phase(shape):
    """exp(i k.H / 2) of every mode, and where a component is at its Nyquist frequency."""
    index = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in shape], indexing="ij")
    angle = sum(np.pi * i / n for i, n in zip(index, shape, strict=True))
    edge = np.any([abs(i) * 2 == n for i, n in zip(index, shape, strict=True)], axis=0)
    return np.exp(1j * angle), edge


@pytest.mark.parametrize("shape", GRIDS)
def test_modes_are_those_of_two_meshes(shape, plain_cic):
    position = some()
    first = plain_cic(position, np.ones(200), shape, LENGTHS)
    half = np.array(LENGTHS) / shape / 2
    second = plain_cic((position + half) % LENGTHS, np.ones(200), shape, LENGTHS)
    turn, edge = phase(shape)
    d1, d2 = (np.fft.fftn(mesh) / first.mean() for mesh in (first, second))
    expected = np.where(edge, d1, (d1 + d2 * turn) / 2)
    # Of a real field, whatever the parity of the grid.
    assert abs(np.fft.ifftn(expected).imag).max() < 1e-12
    got = painted(points(position), shape, interlaced=True)[0]
    modes = np.fft.fftn(got.values.astype(np.float64))
    assert abs(modes - expected).max() < 1e-6 * abs(expected).max()


@pytest.mark.parametrize("shape", GRIDS)
def test_modes_of_one_particle_hold_no_odd_alias(shape):
    """By the sum over aliases k + 2 k_N m of W(k) exp(-i k.x), of which m odd in sum cancel."""
    x = np.array([50.3, 59.9, 3.1])
    got = painted(points(x[None]), shape, interlaced=True)[0]
    modes = np.fft.fftn(got.values.astype(np.float64)) / got.size
    plain = np.fft.fftn(painted(points(x[None]), shape)[0].values.astype(np.float64)) / got.size
    m = np.arange(-400, 401)
    even = odd = 1.0
    index = (1, 2, 1)
    for axis, i in enumerate(index):
        alias = i + m * shape[axis]
        term = np.sinc(alias / shape[axis]) ** 2 * np.exp(
            -2j * np.pi * alias * x[axis] / LENGTHS[axis]
        )
        whole, signed = term.sum(), (term * (-1.0) ** m).sum()
        even, odd = (even * whole, odd * signed)
    # Even sums of m are half of (all + all with the sign of m).
    assert plain[index[0], index[1], index[2]] == pytest.approx(even, abs=1e-4)
    assert modes[index[0], index[1], index[2]] == pytest.approx((even + odd) / 2, abs=1e-4)


@pytest.mark.parametrize("at", [[50.3, 59.9, 3.1], [0.0, 59.999, 74.9], [10.0, 10.0, 10.0]])
def test_no_shift_remains(at):
    """The phase of the first modes is that of the particle, nearer than without."""
    shape, errors = (16, 12, 15), {}
    for interlaced in (False, True):
        field = painted(points([at]), shape, interlaced=interlaced)[0]
        modes = np.fft.fftn(field.values)
        fundamental = modes[[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        turned = fundamental * np.exp(2j * np.pi * np.array(at) / LENGTHS)
        errors[interlaced] = abs(np.angle(turned)) * LENGTHS / (2 * np.pi)  # Mpc/h
    assert errors[True].max() < 0.005
    assert errors[True].max() <= max(0.5 * errors[False].max(), 1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_of_each_bin_is_kept(tracers, dtype):
    tracers = tracers.assign(position=tracers["position"].astype(dtype))
    plain, got = (paint(tracers, 12, interlaced=both) for both in (False, True))
    means = got["halo_density"].mean(["x", "y", "z"], dtype=np.float64)
    np.testing.assert_allclose(means, plain["halo_density"]["share"], rtol=1e-6)
    assert float(means.sum()) == pytest.approx(1, abs=1e-6)
    for name in ("share", "shot_noise"):
        xr.testing.assert_identical(got[name], plain[name])
    assert got["halo_density"].attrs == {**plain["halo_density"].attrs, "interlaced": True}
    assert "interlaced" in got.attrs["history"]


@pytest.mark.parametrize("clustered", [False, True])
def test_aliases_fall(halos, clustered):
    """P(k) on a coarse mesh against that on one four times as fine, up to coarse Nyquist."""
    n, box = 24, 100.0
    edges = 2 * np.pi / box * (np.arange(1, 13) - 0.5)
    rng = np.random.default_rng(0)
    catalog = halos if clustered else points(rng.uniform(0, box, (20_000, 3)), [box] * 3)

    def power(cells, interlaced):
        delta = halo_overdensity(paint(catalog, cells, weighting="number", interlaced=interlaced))
        return power_spectrum(delta, edges=edges, window="cic").power

    fine = power(4 * n, interlaced=True)
    plain, interlaced = (abs(power(n, both) / fine - 1) for both in (False, True))
    assert plain[-2:].min() > 0.1
    assert interlaced.max() < 0.01


@pytest.mark.parametrize("memory", ["1 GB", "20 kB"])
def test_lazy_is_the_same(tracers, memory, no_computes):
    expected = paint(tracers, (10, 12, 9), interlaced=True)
    (dim,) = tracers["mass"].dims
    with dask.config.set({"cosmofields.memory": memory}):
        with no_computes():
            got = paint(
                tracers.assign(position=tracers["position"].chunk({dim: 700})),
                (10, 12, 9),
                interlaced=True,
            )
        assert got["halo_density"].chunks
        largest = float(abs(expected["halo_density"]).max())
        xr.testing.assert_allclose(got.compute(), expected, rtol=0, atol=1e-6 * largest)


def test_inputs_are_kept_and_checked(tracers):
    before = tracers.copy(deep=True)
    paint(tracers, 8, interlaced=True)
    xr.testing.assert_identical(tracers, before)
    wrong = points(some()).copy(deep=True)
    wrong["position"][3, 1] = 61.0
    with pytest.raises(CatalogError) as plain:
        painted(wrong, 8)
    with pytest.raises(CatalogError) as interlaced:
        painted(wrong, 8, interlaced=True)
    assert str(interlaced.value) == str(plain.value)


def test_positions_on_the_faces():
    corner = [[0.0, 60.0, 75.0], [90.0, 0.0, 75.0]]
    got = painted(points(corner), (8, 6, 10), interlaced=True)
    expected = painted(points(np.zeros((2, 3))), (8, 6, 10), interlaced=True)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_store_keeps_the_attribute(observed, tracers, tmp_path):
    fields = paint(tracers, 8, interlaced=True)
    write_store(fields, tmp_path / "box.zarr")
    assert open_store(tmp_path / "box.zarr")["halo_density"].attrs["interlaced"] is True
