"""Cloud-in-cell sums: mass, place, wrap, threads, and other people's painters."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.conventions import CatalogError
from cosmofields.kernels import mesh as mesh_module
from cosmofields.kernels.mesh import TILE_X, add, cic, sort, tiling

GRIDS = [
    ((16, 16, 16), (100.0, 100.0, 100.0)),
    ((33, 20, 7), (100.0, 60.0, 250.0)),
    ((2, 2, 2), (100.0, 100.0, 100.0)),
    ((2, 9, 3), (10.0, 20.0, 30.0)),
    ((3, 40, 5), (10.0, 20.0, 30.0)),
    ((50, 3, 4), (75.0, 75.0, 75.0)),
    ((2, 3, 4000), (10.0, 10.0, 999.0)),  # where a coordinate in float32 is 1e-4 of a cell off
]


@pytest.fixture(autouse=True)
def threads_for_few_particles(monkeypatch):
    monkeypatch.setattr(mesh_module, "FEW", 0)


def paint(position, shape=(16, 16, 16), lengths=(100.0,) * 3, n_threads=2, **columns):
    """Fields (field, x, y, z) of all particles as one bin."""
    position = np.atleast_2d(np.asarray(position, np.float32))
    return cic(position, shape, lengths, n_threads=n_threads, **columns)[0]


def catalogue(n=2000, lengths=(100.0,) * 3, seed=0):
    """Clustered positions in the box in float32, weights, and a vector of two components."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, lengths, (20, 3))
    position = centres[rng.integers(0, 20, n)] + rng.normal(0, 0.05, (n, 3)) * lengths
    position = (position % lengths).astype(np.float32)
    position[position >= np.float32(lengths)] = 0
    return position, rng.random(n, np.float32), rng.normal(size=(n, 2)).astype(np.float32)


# --- mass and place ---


@pytest.mark.parametrize("scratch", [20_000, 2**28])
@pytest.mark.parametrize("columns", ["", "weight", "vector", "weight vector"])
@pytest.mark.parametrize(("shape", "lengths"), GRIDS)
def test_against_plain_numpy(plain_cic, monkeypatch, shape, lengths, columns, scratch):
    monkeypatch.setattr(mesh_module, "SCRATCH", scratch)  # several batches, or one
    position, weight, vector = catalogue(lengths=lengths)
    bins = np.arange(2000) % 3
    given = {"weight": weight, "vector": vector}
    given = {name: given[name] for name in columns.split()}
    mesh = cic(position, shape, lengths, bins=bins, n_bins=3, n_threads=2, **given)
    assert mesh.dtype == np.float32
    assert mesh.shape == (3, 1 + 2 * ("vector" in given), *shape)
    counts = np.ones((2000, 1)) * given.get("weight", np.ones(2000))[:, None]
    values = np.hstack([counts, counts * given.get("vector", np.empty((2000, 0)))])
    for b, fields in enumerate(mesh):
        rows = bins == b
        for got, value in zip(fields, values.T, strict=True):
            expected = plain_cic(position[rows], value[rows], shape, lengths)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(("shape", "lengths"), GRIDS)
def test_mass_is_conserved(shape, lengths):
    position, weight, vector = catalogue(50_000, lengths)
    total = paint(position, shape, lengths, vector=vector).sum(axis=(1, 2, 3), dtype=np.float64)
    assert total[0] == pytest.approx(50_000, rel=1e-6)
    assert total[1] == pytest.approx(vector[:, 0].sum(dtype=np.float64), abs=0.05)
    total = paint(position, shape, lengths, weight=weight).sum(dtype=np.float64)
    assert total == pytest.approx(weight.sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("n", [20_000, 300_000])
def test_crowded_cells_keep_their_digits(n):
    """Float32 sums of many small numbers drift; those of a coarse grid are kept in float64."""
    position, *_ = catalogue(n)
    mesh = paint(position, (4, 4, 4))
    assert mesh.dtype == np.float32
    assert mesh.sum(dtype=np.float64) == pytest.approx(n, rel=1e-7)
    heap = np.full_like(position, 10.0)
    mesh = paint(heap, (4, 4, 4))
    assert mesh[0, 0, 0, 0] == pytest.approx(0.6**3 * n, rel=1e-6)


def test_as_many_as_stay_in_float32_keep_their_digits(plain_cic):
    """At the bound of CROWDED; a heavy cell sums some 2000 terms, each rounded by 2^-24 at most."""
    position, *_ = catalogue(64 * 12**3)
    mesh = paint(position, (12, 12, 12))[0]
    expected = plain_cic(position, np.ones(len(position)), (12,) * 3, (100.0,) * 3)
    np.testing.assert_allclose(mesh, expected, rtol=2000**0.5 * 2.0**-24, atol=1e-5)
    # The errors of some hundred heavy cells average out.
    assert mesh.sum(dtype=np.float64) == pytest.approx(len(position), rel=1e-7)


def test_against_abacusutils():
    abacus = pytest.importorskip("abacusnbody.analysis.cic")
    position, *_ = catalogue()
    # Its first node sits at 0 too, but its box is a cube.
    expected = np.zeros((16, 16, 16), np.float32)
    abacus.cic_serial(position, expected, 100.0)
    np.testing.assert_allclose(paint(position)[0], expected, atol=1e-5 * expected.max())


def mean_position(mesh, lengths):
    """Centre of what is painted, on the circle of each axis, for a particle in two cells or one."""
    out = []
    for axis, side in enumerate(lengths):
        profile = mesh.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64)
        first = int(np.argmax(profile))
        n = len(profile)
        # Offsets from the fullest cell, of which the neighbours alone hold the rest.
        offset = (np.arange(n) - first + n // 2) % n - n // 2
        out.append((first + (offset * profile).sum() / profile.sum()) * side / n % side)
    return out


@pytest.mark.parametrize(
    "where",
    [
        (50.0, 50.0, 50.0),
        (0.0, 0.0, 0.0),
        (3.7, 96.9, 51.234),
        (99.9, 0.1, 98.3),  # in the last cell: half of it goes to the first
        (6.25, 12.5, 93.75),  # on nodes
    ],
)
def test_mean_position_of_one_particle_is_its_own(where):
    for shape, lengths in (((16, 16, 16), (100.0,) * 3), ((9, 16, 25), (100.0, 100.0, 100.0))):
        mesh = paint(where, shape=shape, lengths=lengths)[0]
        got = np.array(mean_position(mesh, lengths))
        distance = (got - where + 50) % 100 - 50
        np.testing.assert_allclose(distance, 0, atol=1e-4)
        assert mesh.sum() == pytest.approx(1, rel=1e-6)
        assert np.count_nonzero(mesh) <= 8


def test_particle_on_a_node_fills_one_cell():
    mesh = paint((6.25, 93.75, 0.0))[0]
    assert mesh[1, 15, 0] == 1
    assert np.count_nonzero(mesh) == 1


def test_particle_between_the_last_node_and_the_first():
    mesh = paint((98.4375, 0.0, 0.0))[0]  # a quarter of a cell before L
    assert mesh[15, 0, 0] == pytest.approx(0.25)
    assert mesh[0, 0, 0] == pytest.approx(0.75)


# --- the edge ---


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    ("value", "same_as"),
    [
        (100.0, 0.0),
        (np.nextafter(np.float32(100), np.float32(0)), 100.0),
        (np.nextafter(np.float32(100), np.float32(200)), 0.0),
        (-1e-6, 0.0),
        (-1e-30, 0.0),
        (np.float32(-1e-6) % np.float32(100), 0.0),
        (-0.0, 0.0),
    ],
)
def test_positions_at_the_edge(axis, value, same_as):
    position = np.full((1, 3), 30.0, np.float32)
    other = position.copy()
    position[0, axis], other[0, axis] = value, same_as
    for shape in ((16, 16, 16), (7, 7, 7), (2, 2, 2)):
        np.testing.assert_allclose(paint(position, shape), paint(other, shape), atol=2e-5)


@pytest.mark.parametrize("n", range(2, 70))
def test_the_last_float_below_the_edge_stays_inside(n):
    sides = np.array([100.0, 75.0, 1 / 3])
    last = np.nextafter(sides.astype(np.float32), np.float32(0))
    mesh = paint(last, (n,) * 3, sides)[0]
    assert mesh.sum() == pytest.approx(1, rel=1e-6)
    assert mesh[0, 0, 0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 100.01, -107.5, 1e6, 3e38])
def test_position_in_no_cell(bad):
    position, *_ = catalogue(10)
    position[3, 1] = bad
    position[7, 2] = bad
    with pytest.raises(CatalogError, match="2 of 10 positions are NaN, infinite or outside"):
        paint(position)


def test_no_particle():
    mesh = paint(np.empty((0, 3)), vector=np.empty((0, 2), np.float32))
    assert mesh.shape == (3, 16, 16, 16)
    assert not mesh.any()


# --- threads and order ---


@pytest.mark.parametrize("nx", [2, 3, TILE_X, 2 * TILE_X, 2 * TILE_X + 1, 5 * TILE_X + 3, 64])
@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_the_same_on_any_number_of_threads(nx, n_threads):
    position, weight, vector = catalogue(5000)
    columns = {"weight": weight, "vector": vector}
    alone = paint(position, (nx, 37, 5), n_threads=1, **columns)
    np.testing.assert_array_equal(
        paint(position, (nx, 37, 5), n_threads=n_threads, **columns), alone
    )


def test_few_particles_do_without_threads(monkeypatch):
    position, *_ = catalogue()
    threaded = paint(position)
    monkeypatch.undo()
    monkeypatch.setattr(mesh_module, "ThreadPoolExecutor", None)
    np.testing.assert_array_equal(paint(position), threaded)


@pytest.mark.parametrize("nx", range(2, 80))
def test_no_two_threads_share_a_plane(nx):
    """What runs at the same time touches other planes of x: the race that no run may show."""
    together = []

    def note_planes(task, stripes):
        planes = []
        for stripe in stripes:
            mesh[:] = 0
            task(stripe)
            planes.append(set(np.nonzero(mesh.any(axis=(0, 1, 3, 4)))[0]))
        together.append(planes)
        return ()

    tiles = tiling((nx, 4, 4), (nx, 4, 4))
    mesh = np.zeros((1, 1, nx, 4, 4), np.float32)
    between_nodes = (np.arange(nx) + 0.5)[:, None] * [1, 0, 0]
    add(tiles, sort(tiles, between_nodes), mesh, run=note_planes)
    assert set().union(*sum(together, [])) == set(range(nx))
    for stripes in together:
        assert sum(map(len, stripes)) == len(set().union(*stripes))


@pytest.mark.parametrize("shape", [(16, 16, 16), (50, 40, 5), (2, 2, 2)])
def test_the_order_of_particles_matters_to_rounding_only(shape):
    position, _, vector = catalogue(5000)
    mesh = paint(position, shape, vector=vector)
    shuffled = np.random.default_rng(1).permutation(5000)
    other = paint(position[shuffled], shape, vector=vector[shuffled])
    np.testing.assert_allclose(mesh, other, atol=2e-6 * mesh[0].max())


def test_inputs_stay_as_they_are():
    position, weight, vector = catalogue()
    position[0] = 100.0
    before = position.copy(), weight.copy(), vector.copy()
    for array in (position, weight, vector):
        array.flags.writeable = False
    paint(position, weight=weight, vector=vector)
    for array, copy in zip((position, weight, vector), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("layout", ["float64", "fortran", "strided", "big endian"])
def test_any_layout_of_the_arrays(layout):
    position, weight, vector = catalogue()

    def turned(array):
        return {
            "float64": array.astype(np.float64),
            "fortran": np.asfortranarray(array),
            "strided": np.repeat(array, 2, axis=0)[::2],
            "big endian": array.astype(">f4"),
        }[layout]

    mesh = cic(
        turned(position),
        (16, 16, 16),
        (100.0,) * 3,
        weight=turned(weight),
        vector=turned(vector),
        n_threads=2,
    )
    np.testing.assert_array_equal(mesh[0], paint(position, weight=weight, vector=vector))


def test_the_memory_of_one_call_serves_the_next():
    position, weight, vector = catalogue()
    expected = paint(position, weight=weight, vector=vector)
    before = mesh_module._spare[0]
    paint(position[:100] * np.float32(0.5))
    assert mesh_module._spare[0] is before
    np.testing.assert_array_equal(paint(position, weight=weight, vector=vector), expected)


def test_calls_at_once_do_not_share_memory():
    position, weight, vector = catalogue(20_000)
    expected = paint(position, weight=weight, vector=vector)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(paint, position, weight=weight, vector=vector) for _ in range(12)]
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected)


# --- slabs ---


@pytest.mark.parametrize("nx", [2, 3, 50, 65])
def test_slabs_are_the_mesh(nx):
    """Stripes apart, each slab with one plane more, which belongs to the next one."""
    shape, lengths = (nx, 20, 6), (100.0, 60.0, 80.0)
    position, weight, vector = catalogue(3000, lengths)
    tiles = tiling(shape, lengths, n_fields=3)
    particles = sort(tiles, position, weight=weight, vector=vector)
    whole = np.zeros((1, 3, *shape), np.float32)
    for first in range(0, tiles.n_stripes, 3):
        last = min(first + 3, tiles.n_stripes)
        low, high = tiles.planes(first, last)
        slab = np.zeros((1, 3, high - low + 1, *shape[1:]), np.float32)
        add(tiles, particles.stripes(first, last), slab, first=first)
        whole[:, :, low:high] += slab[:, :, :-1]
        whole[:, :, high % nx] += slab[:, :, -1]
    expected = cic(position, shape, lengths, weight=weight, vector=vector, n_threads=1)
    np.testing.assert_allclose(whole, expected, rtol=1e-6, atol=1e-6 * expected.max())


# --- symmetries ---


@given(shift=st.tuples(*[st.integers(-40, 40)] * 3))
def test_a_shift_by_whole_cells_rolls_the_mesh(shift):
    shape, lengths = (8, 16, 4), (64.0, 64.0, 64.0)
    position, weight, _ = catalogue(300, lengths)
    # Multiples of 1/8 Mpc/h, which no shift rounds.
    position = np.floor(position * 8) / 8
    cells = np.array(lengths) / shape
    moved = (position + np.array(shift) * cells) % lengths
    np.testing.assert_allclose(
        paint(moved, shape, lengths, weight=weight),
        np.roll(paint(position, shape, lengths, weight=weight), shift, axis=(1, 2, 3)),
        atol=1e-5,
    )


@given(order=st.permutations(range(3)))
def test_axes_are_alike(order):
    shape, lengths = (20, 7, 34), (100.0, 40.0, 250.0)
    position, weight, _ = catalogue(500, lengths)
    turned = paint(
        position[:, order], [shape[i] for i in order], [lengths[i] for i in order], weight=weight
    )
    expected = paint(position, shape, lengths, weight=weight)
    expected = expected.transpose(0, *(1 + i for i in order))
    np.testing.assert_allclose(turned, expected, atol=1e-5 * expected.max())


@given(
    place=st.tuples(*[st.floats(0, 1)] * 3),
    n=st.integers(2, 40),
    side=st.floats(1e-2, 5e3),
)
def test_one_particle_adds_one_wherever_it_is(place, n, side):
    mesh = paint(np.array(place) * side, (n,) * 3, (side,) * 3)[0]
    assert mesh.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert mesh.min() >= 0
