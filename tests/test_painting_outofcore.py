"""Painting of lazy catalogues: the plans, any chunks, schedulers, and what may go wrong on the way.

The bound of an equality is that of float32 sums in another order: a cell's sum of n terms is right
to sqrt(n) 2^-24 of the sum of their sizes, and here n is at most a few hundred.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from cosmofields import painting
from cosmofields.catalog import from_arrays
from cosmofields.conventions import CatalogError
from cosmofields.kernels import slabs
from cosmofields.kernels.mesh import sort, tiling
from cosmofields.lazy import Machine
from cosmofields.painting import paint, paint_matter

ROUNDING = 20 * 2.0**-24
SIDES = np.array([100.0, 60.0, 80.0])
SHAPE = (75, 20, 24)


@pytest.fixture(autouse=True)
def chunks_as_given(monkeypatch):
    """Few particles count as many, so that their chunks are not joined."""
    monkeypatch.setattr(painting, "ROWS", 1)


@pytest.fixture(scope="module")
def particles(cosmology):
    """20 000 clustered particles of unequal masses, some cells empty."""
    rng = np.random.default_rng(3)
    centres = rng.uniform(0, SIDES, (60, 3))
    spread = rng.normal(0, 6, (20_000, 3))
    position = (centres[rng.integers(0, 60, 20_000)] + spread) % SIDES
    return from_arrays(
        position,
        rng.normal([100, -50, 0], 300, position.shape),
        10 ** rng.uniform(10, 11, len(position)),
        box_size=SIDES,
        redshift=0.59,
        cosmology=dict(cosmology),
        dim="particle",
    )


def same(got, expected):
    """Equal to the rounding of sums; a velocity also by what its own cell rounds."""
    got = got.compute()
    for name in ("halo_density", "density"):
        if name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=ROUNDING)
    if "momentum" in expected:
        # |momentum| of the particles of a cell, five sigma of them at most, sets its rounding.
        size = 1500 * expected["density"].values
        assert (abs(got["momentum"] - expected["momentum"]).values <= ROUNDING * size).all()
        assert abs(got["velocity"] - expected["velocity"]).max() <= 2 * ROUNDING * 1500


@pytest.fixture
def as_if(monkeypatch):
    """``as_if(workers=2)``: the plan for another machine than this one."""

    def pretend(workers=1, threads=2, memory=2**30):
        found = Machine(workers, threads, memory)
        monkeypatch.setattr(painting, "machine", lambda: found)
        monkeypatch.setattr(painting, "fits", lambda nbytes, what: nbytes <= memory)

    return pretend


CHUNKS = {"one": 20_000, "seven": 3000, "many": 400, "unequal": (1, 9999, 0, 5000, 4999, 1)}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(
    "plan", [{"workers": 1}, {"workers": 3}, {"workers": 3, "memory": 2**19}], ids=str
)
def test_plans_and_chunks_agree_with_memory(particles, as_if, no_computes, chunks, plan):
    as_if(**plan)
    with no_computes():
        ds = paint_matter(particles.chunk({"particle": CHUNKS[chunks]}), SHAPE)
        assert all(isinstance(ds[name].data, da.Array) for name in ds)
    assert ds["momentum"].data.chunksize == (1, 64, 20, 24)
    assert ds["density"].data.chunks[0] == (64, 11)
    same(ds, paint_matter(particles, SHAPE))


def test_without_masses(particles, as_if):
    as_if()
    unweighed = particles.drop_vars("mass")
    same(paint_matter(unweighed.chunk({"particle": 3000}), SHAPE), paint_matter(unweighed, SHAPE))


@pytest.mark.parametrize("weighting", ["mass", "number"])
@pytest.mark.parametrize("workers", [1, 2])
def test_halos(tracers, as_if, weighting, workers):
    as_if(workers)
    expected = paint(tracers, SHAPE, weighting=weighting)
    for lazy in (tracers.chunk({"halo": 700}), tracers.assign(position=tracers.position.chunk())):
        ds = paint(lazy, SHAPE, weighting=weighting)
        assert ds["halo_density"].data.chunksize == (1, 64, 20, 24)
        same(ds, expected)
        xr.testing.assert_equal(ds["shot_noise"], expected["shot_noise"])


def test_the_plan_is_said(particles, as_if, caplog):
    lazy = particles.chunk({"particle": 3000})
    with caplog.at_level(logging.INFO, "cosmofields"):
        as_if(workers=2)
        paint_matter(lazy, SHAPE)
        assert "paint_matter: replicated, 2 meshes of 562.50 kiB" in caplog.text
        as_if(workers=2, memory=2**20)
        paint_matter(lazy, SHAPE)
        assert "paint_matter: particles exchanged, 8 slabs of a mesh of 562.50 kiB" in caplog.text


def test_particles_are_read_once(particles, as_if):
    as_if()
    reads = []

    def read(block, block_info=None):
        reads.append(block_info[0]["chunk-location"][0])
        return block

    lazy = particles.chunk({"particle": 3000})
    for name in lazy:
        data = lazy[name].data
        lazy[name] = lazy[name].copy(data=data.map_blocks(read, meta=data._meta))
    paint_matter(lazy, SHAPE).compute(scheduler="threads")
    assert sorted(reads) == sorted(3 * list(range(7)))


def test_what_chunks_share_is_computed_once(particles, as_if):
    """Chunks cut from one array: it is no chunk's own, and waits for none."""
    as_if()
    calls = []

    def whole():
        calls.append(1)
        return particles["position"].values

    data = da.from_delayed(dask.delayed(whole)(), (20_000, 3), np.float32)
    lazy = particles.assign(position=particles["position"].copy(data=data.rechunk((1000, 3))))
    same(paint_matter(lazy, SHAPE), paint_matter(particles, SHAPE))
    assert len(calls) == 1


def test_chunks_are_not_read_ahead(particles, as_if):
    """Threads hold few chunks at a time, however fast the reader is."""
    as_if(threads=2)
    read, painted, ahead = [], [], []

    def note(block):
        read.append(len(block))
        ahead.append(len(read) - len(painted))
        return block

    lazy = particles.chunk({"particle": 200})
    lazy["position"] = lazy["position"].copy(
        data=lazy["position"].data.map_blocks(note, meta=np.empty((0, 3), np.float32))
    )
    accumulate = painting._accumulate

    def slowly(*args, step, stripes, **kwargs):
        if stripes[0] == 0:
            time.sleep(0.005)
            painted.append(step)
        return accumulate(*args, step=step, stripes=stripes, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painting, "_accumulate", slowly)
        ds = paint_matter(lazy, SHAPE)
    ds.compute(scheduler="threads", num_workers=2)
    assert len(read) == 100
    assert max(ahead) <= 3


# --- schedulers ---


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="2GB"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("plan", [{"workers": 1}, {"workers": 2}], ids=["exchanged", "replicated"])
def test_schedulers_agree_to_the_bit(particles, as_if, cluster, plan):
    as_if(**plan)
    ds = paint_matter(particles.chunk({"particle": 3000}), SHAPE)
    alone = ds.compute(scheduler="sync")
    xr.testing.assert_identical(ds.compute(scheduler="threads", num_workers=4), alone)
    xr.testing.assert_identical(ds.compute(scheduler=cluster.get), alone)


def test_particles_in_the_memory_of_the_cluster(particles, as_if, cluster):
    as_if()
    with cluster.as_current(), dask.config.set(scheduler="dask.distributed"):
        kept = particles.chunk({"particle": 1000}).persist()
        ds = paint_matter(kept, SHAPE).compute()
    same(ds, paint_matter(particles, SHAPE))


def _late(block, wait):
    time.sleep(wait)
    return block


@pytest.mark.parametrize("plan", [{"workers": 1}, {"workers": 2}], ids=["exchanged", "replicated"])
def test_a_worker_killed_in_the_middle(particles, as_if, cluster, plan):
    as_if(**plan)
    lazy = particles.chunk({"particle": 1000})
    slow = lazy["position"].data.map_blocks(_late, 0.1, meta=np.empty((0, 3), np.float32))
    slow = lazy.assign(position=lazy["position"].copy(data=slow))
    undisturbed = paint_matter(lazy, SHAPE).compute(scheduler="sync")

    future = cluster.compute(paint_matter(slow, SHAPE))
    while not any("sum-paint" in str(key) for keys in cluster.has_what().values() for key in keys):
        assert future.status == "pending", "too late"
        time.sleep(0.02)
    os.kill(list(cluster.run(os.getpid).values())[0], 9)
    result = future.result(timeout=60)
    cluster.wait_for_workers(2, timeout=60)
    for name in undisturbed:
        np.testing.assert_array_equal(result[name], undisturbed[name])


# --- sums in place ---


@pytest.fixture
def chain(particles):
    """Three chunks of a slab, and the task that adds one."""
    tiles = tiling((16, 16, 16), SIDES)
    position = particles["position"].values
    parts = [sort(tiles, position[i::3]) for i in range(3)]

    def task(sums, step):
        return slabs.accumulate(
            sums,
            parts[step],
            step=step,
            tiles=tiles,
            stripes=(0, tiles.n_stripes),
            leading=(1, 1),
            dtype=np.dtype(np.float32),
            n_threads=1,
        )

    def all_three():
        return task(task(task(None, 0), 1), 2).sums

    return task, all_three()


def test_a_task_that_is_run_again_adds_nothing(chain):
    task, expected = chain
    sums = task(None, 0)
    for step in (1, 1, 2, 2):
        sums = task(sums, step)
    np.testing.assert_array_equal(sums.sums, expected)


def test_sums_of_other_chunks_are_refused(chain):
    task, _ = chain
    sums = task(task(None, 0), 1)
    with pytest.raises(RuntimeError, match="holds 2 chunks where 0 were expected"):
        task(sums, 0)
    with pytest.raises(RuntimeError, match="holds 1 chunks where 2 were expected"):
        task(task(None, 0), 2)


def test_an_interrupted_task_leaves_no_number(chain, monkeypatch):
    task, _ = chain
    sums = task(None, 0)

    def interrupted(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(slabs, "add", interrupted)
        with pytest.raises(MemoryError):
            task(sums, 1)
    for step in (0, 1, 2):
        with pytest.raises(RuntimeError, match="compute again"):
            task(sums, step)


def test_what_is_sent_does_not_change_under_way(chain):
    task, expected = chain
    sums = task(None, 0)
    buffers = []
    frame = pickle.dumps(sums, protocol=5, buffer_callback=buffers.append)
    task(task(sums, 1), 2)
    arrived = pickle.loads(frame, buffers=[bytes(b) for b in buffers])
    assert arrived.count == 1
    assert not arrived.sums.flags.writeable
    np.testing.assert_array_equal(task(task(arrived, 1), 2).sums, expected)
    np.testing.assert_array_equal(sums.sums, expected)


def test_two_threads_add_a_chunk_once(chain):
    task, expected = chain
    sums = task(task(None, 0), 1)
    threads = [threading.Thread(target=task, args=(sums, 2)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(sums.sums, expected)


# --- errors ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("position", np.nan, "`position` holds 1 NaN"),
        ("position", 130.0, "1 of 3000 positions lie outside the box.*expected 0 to 100"),
        ("velocity", np.inf, "`velocity` holds 1 NaN or infinite values"),
        ("mass", -1.0, "`mass` holds 1 values at or below zero"),
    ],
)
def test_errors_come_when_computed(particles, as_if, name, value, message):
    as_if()
    broken = particles.copy(deep=True)
    broken[name][(4000, 0)[: broken[name].ndim]] = value
    ds = paint_matter(broken.chunk({"particle": 3000}), SHAPE)
    with pytest.raises(CatalogError, match=message):
        ds.compute()


def test_two_computes_of_one_graph(particles, as_if):
    """The second does not add to the sums of the first."""
    as_if()
    ds = paint_matter(particles.chunk({"particle": 3000}), SHAPE)
    xr.testing.assert_identical(ds.compute(), ds.compute())
    density, velocity = dask.compute(ds["density"], ds["velocity"])
    xr.testing.assert_identical(ds["density"].compute(), density)
    xr.testing.assert_identical(ds["velocity"].compute(), velocity)
