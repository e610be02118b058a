"""The seam between whole-box kernels and dask: numpy in, numpy out; dask in, one task out."""

import dask
import dask.array as da
import numpy as np
import pytest

from cosmofields import lazy as ground
from cosmofields.conventions import CosmofieldsError
from cosmofields.lazy import CHUNK, chunk_shape, fits, machine, n_threads, whole_box


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((128, 128, 128), (64, 64, 64)),
        ((3, 128, 32, 100), (1, 64, 32, 64)),
        ((4, 3, 8, 8, 8), (1, 1, 8, 8, 8)),
        ((64, 65, 63), (64, 64, 63)),
    ],
)
def test_chunk_shape(shape, chunks):
    assert chunk_shape(shape) == chunks
    assert CHUNK == 64


def double(*arrays):
    assert all(type(array) is np.ndarray for array in arrays)
    return np.float32(2) * sum(arrays)


def test_numpy_at_once():
    a = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    result = whole_box(double, a, a, shape=a.shape)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, 4 * a)


def test_array_on_disk_at_once(tmp_path):
    a = np.memmap(tmp_path / "a", np.float32, "w+", shape=(2, 2, 2))
    assert type(whole_box(double, a, shape=a.shape)) is np.ndarray


@pytest.mark.parametrize("mixed", [False, True])
def test_dask_later(mixed, count_computes, no_computes):
    a = np.random.default_rng(0).normal(size=(2, 70, 6, 5)).astype(np.float32)
    lazy = da.from_array(a, chunks=(1, 32, 3, 5))
    with no_computes():
        result = whole_box(double, lazy, a if mixed else lazy, shape=a.shape)
    assert isinstance(result, da.Array)
    assert result.shape == a.shape
    assert result.dtype == np.float32
    assert result.chunks == ((1, 1), (64, 6), (6,), (5,))
    with count_computes() as computes:
        np.testing.assert_array_equal(result.compute(), 4 * a)
    assert computes.total == 1


def test_the_kernel_runs_once_for_all_chunks():
    calls = []

    def kernel(array):
        calls.append(array.shape)
        return array

    lazy = da.ones((3, 130, 8, 8), chunks=16, dtype=np.float32)
    dask.compute(whole_box(kernel, lazy, shape=lazy.shape), scheduler="synchronous")
    assert calls == [(3, 130, 8, 8)]


def test_the_same_task_has_one_name():
    lazy = da.ones((8, 8, 8), chunks=4, dtype=np.float32)
    first, again = (whole_box(double, lazy, shape=lazy.shape) for _ in range(2))
    other = whole_box(double, lazy + 1, shape=lazy.shape)
    assert first.name == again.name != other.name


def test_shape_and_type_may_change():
    lazy = da.ones((8, 8, 8), chunks=4)
    result = whole_box(lambda a: a.sum(axis=0, keepdims=True), lazy, shape=(1, 8, 8), dtype=float)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, 8)


def test_this_process_is_the_machine_without_a_client():
    found = machine()
    assert found.workers == 1
    assert found.threads == n_threads() >= 1
    assert found.memory > 0


def test_threads_without_affinity(monkeypatch):
    monkeypatch.delattr(ground.os, "sched_getaffinity", raising=False)
    assert n_threads() >= 1


@pytest.mark.parametrize("budget", ["6 GB", "6000MB", 6_000_000_000])
def test_the_budget_decides_and_the_log_says_so(budget, caplog):
    with dask.config.set({"cosmofields.memory": budget}), caplog.at_level("INFO", "cosmofields"):
        assert machine().memory == 6_000_000_000
        assert fits(6e9, "painting")
        assert not fits(6.1e9, "linear velocity")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("painting: in memory")
    assert second.startswith("linear velocity: out of core")


@pytest.mark.parametrize("budget", ["lots", -1, "0 GB", [3]])
def test_a_budget_that_is_none(budget):
    with (
        dask.config.set({"cosmofields.memory": budget}),
        pytest.raises(CosmofieldsError, match="expected an amount such as '6 GB'"),
    ):
        machine()
