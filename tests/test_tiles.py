"""Tile plans of a periodic box, and windows gathered across its boundary."""

from itertools import product

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.kernels.tiles import fewest, gather, partitions, split, windows


@given(
    cells=st.integers(1, 40),
    parts=st.integers(1, 50),
    multiple=st.sampled_from([1, 2, 4, 8]),
    rest=st.integers(0, 7),
)
def test_tiles_cover_an_axis_once_on_multiples(cells, parts, multiple, rest):
    n = cells * multiple + rest % multiple
    bounds = split(n, parts, multiple)
    edges = [low for low, _ in bounds] + [bounds[-1][1]]
    assert edges == [0, *(high for _, high in bounds)]
    assert edges[-1] == n
    assert all(low % multiple == 0 for low, _ in bounds)
    sizes = [high - low for low, high in bounds]
    assert min(sizes) > 0
    assert len(sizes) == min(parts, -(-n // multiple))
    assert max(sizes) - min(sizes) < 2 * multiple


@given(n=st.integers(1, 60), side=st.integers(4, 70))
def test_fewest_tiles_below_a_size(n, side):
    parts = fewest(n, side, 4)

    def largest(parts):
        return max(high - low for low, high in split(n, parts, 4))

    assert largest(parts) <= side
    assert parts == 1 or largest(parts - 1) > side


def test_split():
    assert split(100, 2, 4) == ((0, 48), (48, 100))
    assert split(512, 3, 64) == ((0, 128), (128, 320), (320, 512))
    assert split(160, 2, 64) == ((0, 64), (64, 160))
    assert split(8, 5, 4) == ((0, 4), (4, 8))
    assert partitions(512, 64) == [1, 2, 3, 4, 8]
    assert partitions(40, 64) == [1]


def test_windows_run_fastest_along_the_last_axis():
    got = list(windows(plan((4, 4, 8), 4, 4)))
    assert got == [
        (slice(0, 4), slice(0, 4), slice(0, 4)),
        (slice(0, 4), slice(0, 4), slice(4, 8)),
    ]


def plan(shape, side, multiple):
    return [split(n, fewest(n, side, multiple), multiple) for n in shape]


def naive(array, window, halo):
    """Modulo indexing, cell by cell."""
    indices = [
        np.arange(part.start - halo, part.stop + halo) % n
        for part, n in zip(window, array.shape[-3:], strict=True)
    ]
    return array[(..., *np.ix_(*indices))]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("halo", [0, 1, 3, 8, 25])
def test_gather_is_periodic(lead, halo):
    array = np.random.default_rng(0).normal(size=(*lead, 8, 6, 10))
    for window in windows(plan((8, 6, 10), 4, 2)):
        np.testing.assert_array_equal(gather(array, window, halo), naive(array, window, halo))


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    halo=st.integers(0, 20),
    corner=st.tuples(*[st.floats(0, 0.999)] * 3),
)
def test_gather_of_any_window(shape, halo, corner):
    array = np.arange(np.prod(shape)).reshape(shape)
    starts = [int(at * n) for at, n in zip(corner, shape, strict=True)]
    window = tuple(slice(start, n) for start, n in zip(starts, shape, strict=True))
    np.testing.assert_array_equal(gather(array, window, halo), naive(array, window, halo))


def test_tiles_put_together_are_the_box():
    array = np.random.default_rng(0).normal(size=(2, 8, 8, 12))
    whole = np.empty_like(array)
    for window in windows(plan((8, 8, 12), 4, 4)):
        part = gather(array, window, 3)
        whole[(slice(None), *window)] = part[:, 3:-3, 3:-3, 3:-3]
    np.testing.assert_array_equal(whole, array)


def test_gather_stays_lazy_and_reads_what_it_needs(no_computes):
    array = np.random.default_rng(0).normal(size=(2, 16, 16, 16))
    read = []

    def note(block):
        read.append(block.shape)
        return block

    lazy = da.from_array(array, chunks=(1, 4, 4, 4)).map_blocks(note, meta=array[:0, :0, :0, :0])
    window = (slice(0, 4), slice(4, 8), slice(12, 16))
    with no_computes():
        part = gather(lazy, window, 2)
    assert isinstance(part, da.Array)
    np.testing.assert_array_equal(part.compute(scheduler="synchronous"), gather(array, window, 2))
    assert read == [(1, 4, 4, 4)] * (2 * 3**3)  # of 2 * 4^3


def test_gather_changes_nothing():
    array = np.arange(512.0).reshape(8, 8, 8)
    before = array.copy()
    for start, halo in product((0, 4), (0, 2)):
        gather(array, (slice(start, start + 4),) * 3, halo)
    np.testing.assert_array_equal(array, before)


def test_of_a_store_no_more_is_read_than_is_returned():
    read = []

    class Stored:
        shape, dtype, ndim = (2, 12, 10, 8), np.dtype(np.float32), 4

        def __getitem__(self, of):
            part = values[of]
            read.append(part.size)
            return part

    values = np.random.default_rng(0).random(Stored.shape, np.float32)
    window = (slice(0, 4), slice(4, 8), slice(4, 8))
    found = gather(Stored(), window, 3)
    np.testing.assert_array_equal(found, gather(values, window, 3))
    assert sum(read) == found.size
