"""By pencils, in memory, on threads and on two processes: the same numbers from any chunks."""

import os
import signal
import tempfile
import time

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from cosmofields.conventions import AXES, label, make_grid
from cosmofields.derivatives import (
    curl,
    divergence,
    gradient,
    helmholtz,
    longitudinal,
    transverse,
)
from cosmofields.fourier import inverse, transform
from cosmofields.linear import linear_density, linear_theory, linear_velocity, potential_flow
from cosmofields.spectral import multipoles, power_spectrum, spectra

distributed = pytest.importorskip("distributed")

SHAPES = [(16, 16, 16), (9, 20, 14), (15, 8, 11)]
LENGTHS = (90.0, 120.0, 75.0)
# Pencils of a few planes for these grids; a whole field needs ten times as much.
SMALL = {"cosmofields.memory": 20_000}
LARGE = {"cosmofields.memory": "1 GB"}
CHUNKS = [{"x": 5, "y": -1, "z": 7}, {"x": -1, "y": 4, "z": -1}, {axis: -1 for axis in AXES}]
FACTS = {
    "box_size": list(LENGTHS),
    "redshift": 0.59,
    "cosmology": {"Omega_m": 0.268, "Omega_b": 0.0445, "h": 0.71, "n_s": 0.968, "sigma8": 0.83},
    "space": "redshift",
    "los": "y",
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scalar(shape, seed=0):
    return label("density", 1 + noise(*shape, seed=seed), make_grid(shape, LENGTHS), FACTS)


def vector(shape, seed=0):
    return label("velocity", noise(3, *shape, seed=seed), make_grid(shape, LENGTHS), FACTS)


def halos(shape):
    share = np.array([0.5, 0.2, 0.3])
    data = share[:, None, None, None] * (1 + noise(3, *shape))
    field = label("halo_density", data.astype(np.float32), make_grid(shape, LENGTHS), FACTS)
    return field.assign_coords(
        share=("mass_bin", share), shot_noise=("mass_bin", np.array([3000.0, 800.0, 500.0]))
    ).to_dataset()


BIAS = [2.1, 1.4, 1.2]
FIELDS = {
    "transform": lambda s: (transform, scalar(s)),
    "inverse": lambda s: (inverse, transform(scalar(s))),
    "gradient": lambda s: (gradient, scalar(s)),
    "divergence": lambda s: (divergence, vector(s)),
    "curl": lambda s: (curl, vector(s)),
    "longitudinal": lambda s: (longitudinal, vector(s)),
    "transverse": lambda s: (transverse, vector(s)),
    "finite longitudinal": lambda s: (lambda v: longitudinal(v, method="finite"), vector(s)),
    "flow": lambda s: (potential_flow, scalar(s)),
    "density": lambda s: (lambda o: linear_density(o, bias=BIAS), halos(s)),
    "velocity": lambda s: (lambda o: linear_velocity(o, bias=BIAS), halos(s)),
    "one bias": lambda s: (lambda o: linear_velocity(o, bias=1.5), halos(s)),
    "paper": lambda s: (lambda o: linear_velocity(o, method="paper", bias=1.5), halos(s)),
    "real space": lambda s: (
        lambda o: linear_velocity(o.assign_attrs(space="real"), bias=BIAS),
        halos(s),
    ),
}
SPECTRA = {
    "power": lambda f, v: power_spectrum(f),
    "vector": lambda f, v: power_spectrum(v),
    "cross": lambda f, v: power_spectrum(f, v.isel(component=0, drop=True)),
    "spectra": lambda f, v: spectra(v, v + 0.5 * v.roll(x=1)),
    "multipoles": lambda f, v: multipoles(f, ells=[0, 2, 4], los="x"),
}


def chunked(obj, chunks):
    """Chunks named for x, y, z; of modes, for kx, ky, kz."""
    return obj.chunk({dim: chunks.get(dim.removeprefix("k"), 1) for dim in obj.dims})


def assert_equal(got, expected):
    """To a part in a million of the rms: float32 and a few additions."""
    assert got.dtype == expected.dtype
    assert got.dims == expected.dims
    assert got.attrs == expected.attrs
    rms = float(np.sqrt((abs(expected) ** 2).mean()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * rms)


# --- on threads ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FIELDS)
def test_pencils_equal_in_memory(name, shape, no_computes):
    operation, source = FIELDS[name](shape)
    expected = operation(source)
    for chunks in CHUNKS:
        for budget in (SMALL, LARGE):
            with dask.config.set(budget):
                with no_computes():
                    lazy = operation(chunked(source, chunks))
                assert isinstance(lazy.data, da.Array)
                assert_equal(lazy.compute(), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_by_strips_equal_in_memory(name, shape):
    fields = scalar(shape), vector(shape, 1)
    expected = SPECTRA[name](*fields)
    for chunks in CHUNKS:
        for budget in (SMALL, LARGE):
            with dask.config.set(budget):
                got = SPECTRA[name](*(chunked(field, chunks) for field in fields))
            xr.testing.assert_allclose(got, expected, rtol=1e-6)
            assert got.modes.equals(expected.modes)


def test_the_three_fields_of_linear_theory():
    source = halos(SHAPES[1])
    expected = linear_theory(source, bias=BIAS)
    with dask.config.set(SMALL):
        got = linear_theory(chunked(source, CHUNKS[0]), bias=BIAS).compute()
    for name in ("density", "velocity"):
        assert_equal(got[name], expected[name])
    np.testing.assert_array_equal(got["momentum"], got["velocity"] * got["density"])


def test_the_two_parts_of_a_vector(count_computes):
    """In one compute, and by pencils they still add up to the last bit."""
    source = vector(SHAPES[1])
    with dask.config.set(SMALL):
        lazy = helmholtz(chunked(source, CHUNKS[0]))
        with count_computes() as computes:
            got = lazy.compute()
    assert computes.total == 1
    first, rest = got["longitudinal"].values, got["transverse"].values
    np.testing.assert_array_equal(rest, source.values - first)
    assert_equal(got["longitudinal"], longitudinal(source))


def test_the_budget_decides_and_the_log_says_so(caplog):
    field = scalar(SHAPES[0]).chunk()
    for budget, way in ((SMALL, "out of core"), (LARGE, "in memory")):
        caplog.clear()
        with caplog.at_level("INFO", "cosmofields"), dask.config.set(budget):
            gradient(field)
            power_spectrum(field)
        assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
            f"gradient: {way}",
            f"power spectrum: {way}",
        ]


def test_one_compute_and_chunks_of_a_store(count_computes):
    with dask.config.set({"cosmofields.memory": 100_000 * os.cpu_count()}):
        lazy = curl(vector((80, 8, 70)).chunk())
        spectrum = vector((80, 16, 16)).chunk()
        assert lazy.chunks == ((1, 1, 1), (64, 16), (8,), (64, 6))
        with count_computes() as computes:
            lazy.compute()
            power_spectrum(spectrum)
    assert computes.total == 2


def test_no_task_holds_the_box():
    """Every chunk on the way is a slab or a strip."""
    shape = (128, 80, 80)  # whose chunks in the end are a fifth of it
    data = da.random.default_rng(0).normal(size=shape, chunks=16).astype(np.float32)
    field = label("density", data, make_grid(shape, LENGTHS), FACTS)
    with dask.config.set({"cosmofields.memory": 1_000_000 * os.cpu_count()}):
        lazy = gradient(field).data
    largest = []

    class Watch(dask.callbacks.Callback):
        def _posttask(self, key, result, dsk, state, worker_id):
            largest.append(getattr(result, "nbytes", 0))

    with Watch():
        dask.compute(*lazy.to_delayed().ravel(), scheduler="synchronous")
    assert 0 < max(largest) <= data.nbytes / 3


# --- on two processes ---


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="2GB", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("name", ["transform", "inverse", "curl", "transverse", "velocity"])
def test_two_processes_equal_threads(client, name):
    operation, source = FIELDS[name](SHAPES[1])
    lazy = chunked(source, CHUNKS[0])
    with dask.config.set(SMALL):
        got = operation(lazy).compute()
        with dask.config.set(scheduler="threads"):
            expected = operation(lazy).compute()
    xr.testing.assert_identical(got, expected)


def test_spectra_on_two_processes(client):
    field = chunked(scalar(SHAPES[1]), CHUNKS[0])
    with dask.config.set(SMALL):
        got = multipoles(field)
        with dask.config.set(scheduler="threads"):
            expected = multipoles(field)
    # Another machine, other strips, and so another order of the sums.
    xr.testing.assert_allclose(got, expected, rtol=1e-12)


def slowly(block, folder):
    time.sleep(0.1)
    descriptor, _ = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    return block


def test_a_worker_killed_on_the_way(client, tmp_path):
    """The other one does its part again; nothing that a task was given has been written to."""
    source = scalar((24, 20, 14)).chunk({"x": 1})
    folder = tmp_path / "done"
    folder.mkdir()
    data = source.data.map_blocks(slowly, folder, meta=np.empty((0, 0, 0), np.float32))
    with dask.config.set(SMALL):
        flow = potential_flow(source.copy(data=data)).data
    expected = flow.compute()
    before = len(list(folder.iterdir()))
    assert before == 24
    future = client.compute(flow)
    while len(list(folder.iterdir())) < before + 16:
        time.sleep(0.01)
    victim = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)
    assert not future.done()
    np.testing.assert_array_equal(future.result(timeout=60), expected)
    assert len(list(folder.iterdir())) > before + 24  # some were lost, and made again
