"""Cloud-in-cell sums: mass, place, wrap, threads, and other people's painters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmofields.conventions import CatalogError
from cosmofields.kernels import mesh as mesh_module
from cosmofields.kernels.mesh import TILE_X, cic

GRIDS = [
    ((16, 16, 16), (100.0, 100.0, 100.0)),
    ((33, 20, 7), (100.0, 60.0, 250.0)),
    ((2, 2, 2), (100.0, 100.0, 100.0)),
    ((2, 9, 3), (10.0, 20.0, 30.0)),
    ((3, 40, 5), (10.0, 20.0, 30.0)),
    ((50, 3, 4), (75.0, 75.0, 75.0)),
    ((2, 3, 4000), (10.0, 10.0, 999.0)),  # where a coordinate in float32 is 1e-4 of a cell off
]


def paint(position, values=None, shape=(16, 16, 16), lengths=(100.0,) * 3, n_threads=2):
    position = np.atleast_2d(np.asarray(position, np.float32))
    values = np.ones((len(position), 1), np.float32) if values is None else values
    return cic(position, values, shape, lengths, n_threads=n_threads)


def catalogue(n=2000, lengths=(100.0,) * 3, seed=0, fields=2):
    """Clustered positions in the box in float32, and values of each sign but the first."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, lengths, (20, 3))
    position = centres[rng.integers(0, 20, n)] + rng.normal(0, 0.05, (n, 3)) * lengths
    position = (position % lengths).astype(np.float32)
    position[position >= np.float32(lengths)] = 0
    values = rng.normal(size=(n, fields)).astype(np.float32)
    values[:, 0] = 1
    return position, values


# --- mass and place ---


@pytest.mark.parametrize(("shape", "lengths"), GRIDS)
def test_against_plain_numpy(plain_cic, shape, lengths):
    position, values = catalogue(lengths=lengths)
    mesh = paint(position, values, shape, lengths)
    assert mesh.dtype == np.float32
    assert mesh.shape == (2, *shape)
    for got, weight in zip(mesh, values.T, strict=True):
        expected = plain_cic(position, weight, shape, lengths)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(("shape", "lengths"), GRIDS)
def test_mass_is_conserved(shape, lengths):
    position, values = catalogue(50_000, lengths)
    total = paint(position, values, shape, lengths).sum(axis=(1, 2, 3), dtype=np.float64)
    assert total[0] == pytest.approx(50_000, rel=1e-6)
    assert total[1] == pytest.approx(values[:, 1].sum(dtype=np.float64), abs=0.05)


@pytest.mark.parametrize("n", [20_000, 300_000])
def test_crowded_cells_keep_their_digits(n):
    """Float32 sums of many small numbers drift; those of a coarse grid are kept in float64."""
    position, values = catalogue(n, fields=1)
    mesh = paint(position, values, (4, 4, 4))
    assert mesh.dtype == np.float32
    assert mesh.sum(dtype=np.float64) == pytest.approx(n, rel=1e-7)
    heap = np.full_like(position, 10.0)
    mesh = paint(heap, values, (4, 4, 4))
    assert mesh[0, 0, 0, 0] == pytest.approx(0.6**3 * n, rel=1e-6)


def test_against_abacusutils():
    abacus = pytest.importorskip("abacusnbody.analysis.cic")
    position, _ = catalogue()
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
        (-1e-6, 0.0),
        (np.float32(-1e-6) % np.float32(100), 0.0),
        (-0.0, 0.0),
        (107.5, 7.5),
        (-2.5, 97.5),
        (1e6 + 12.5, 12.5),
    ],
)
def test_positions_at_and_beyond_the_edge(axis, value, same_as):
    position = np.full((1, 3), 30.0, np.float32)
    other = position.copy()
    position[0, axis], other[0, axis] = value, same_as
    for shape in ((16, 16, 16), (7, 7, 7), (2, 2, 2)):
        np.testing.assert_allclose(
            paint(position, shape=shape), paint(other, shape=shape), atol=2e-6
        )


@pytest.mark.parametrize("n", range(2, 70))
def test_the_last_float_below_the_edge_stays_inside(n):
    sides = np.array([100.0, 75.0, 1 / 3])
    last = np.nextafter(sides.astype(np.float32), np.float32(0))
    mesh = paint(last, shape=(n,) * 3, lengths=sides)[0]
    assert mesh.sum() == pytest.approx(1, rel=1e-6)
    assert mesh[0, 0, 0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_position_in_no_cell(bad):
    position, values = catalogue(10)
    position[3, 1] = bad
    position[7, 2] = bad
    with pytest.raises(CatalogError, match="2 of 10 positions are NaN or infinite"):
        paint(position, values)


def test_no_particle():
    mesh = paint(np.empty((0, 3)), np.empty((0, 2), np.float32))
    assert mesh.shape == (2, 16, 16, 16)
    assert not mesh.any()


# --- threads and order ---


@pytest.mark.parametrize("nx", [2, 3, TILE_X, 2 * TILE_X, 2 * TILE_X + 1, 5 * TILE_X + 3, 64])
@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_the_same_on_any_number_of_threads(nx, n_threads):
    position, values = catalogue(5000)
    alone = paint(position, values, (nx, 37, 5), n_threads=1)
    np.testing.assert_array_equal(paint(position, values, (nx, 37, 5), n_threads=n_threads), alone)


@pytest.mark.parametrize("nx", range(2, 80))
def test_no_two_threads_share_a_plane(nx, monkeypatch):
    """What runs at the same time touches other planes of x: the race that no run may show."""
    together = []

    class Pool:
        def __init__(self, n_threads):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, task, items):
            together.append([])
            return map(task, items)

    def note_planes(position, values, order, scale, out):
        alone = np.zeros_like(out)
        paint_stripe(position, values, order, scale, alone)
        together[-1].append(set(np.nonzero(alone.any(axis=(0, 2, 3)))[0]))

    paint_stripe = mesh_module._cic
    monkeypatch.setattr(mesh_module, "_cic", note_planes)
    monkeypatch.setattr(mesh_module, "ThreadPoolExecutor", Pool)
    between_nodes = (np.arange(nx) + 0.5)[:, None] * [1, 0, 0]
    paint(between_nodes, shape=(nx, 4, 4), lengths=(nx, 4, 4))
    assert set().union(*sum(together, [])) == set(range(nx))
    for stripes in together:
        assert sum(map(len, stripes)) == len(set().union(*stripes))


@pytest.mark.parametrize("shape", [(16, 16, 16), (50, 40, 5), (2, 2, 2)])
def test_the_order_of_particles_matters_to_rounding_only(shape):
    position, values = catalogue(5000)
    mesh = paint(position, values, shape)
    shuffled = np.random.default_rng(1).permutation(5000)
    other = paint(position[shuffled], values[shuffled], shape)
    np.testing.assert_allclose(mesh, other, atol=2e-6 * mesh[0].max())


def test_inputs_stay_as_they_are():
    position, values = catalogue()
    position[0] = 100.0
    before = position.copy(), values.copy()
    position.flags.writeable = values.flags.writeable = False
    paint(position, values)
    np.testing.assert_array_equal(position, before[0])
    np.testing.assert_array_equal(values, before[1])


@pytest.mark.parametrize("layout", ["float64", "fortran", "strided"])
def test_any_layout_of_the_arrays(layout):
    position, values = catalogue()
    wide = np.repeat(position, 2, axis=0)
    other = {
        "float64": position.astype(np.float64),
        "fortran": np.asfortranarray(position),
        "strided": wide[::2],
    }[layout]
    mesh = cic(other, values, (16, 16, 16), (100.0,) * 3, n_threads=2)
    np.testing.assert_array_equal(mesh, paint(position, values))


# --- symmetries ---


@given(shift=st.tuples(*[st.integers(-40, 40)] * 3))
def test_a_shift_by_whole_cells_rolls_the_mesh(shift):
    shape, lengths = (8, 16, 4), (64.0, 64.0, 64.0)
    position, values = catalogue(300, lengths)
    # Multiples of 1/8 Mpc/h, which no shift rounds.
    position = np.floor(position * 8) / 8
    cells = np.array(lengths) / shape
    moved = position + np.array(shift) * cells
    np.testing.assert_allclose(
        paint(moved, values, shape, lengths),
        np.roll(paint(position, values, shape, lengths), shift, axis=(1, 2, 3)),
        atol=1e-5,
    )


@given(order=st.permutations(range(3)))
def test_axes_are_alike(order):
    shape, lengths = (20, 7, 34), (100.0, 40.0, 250.0)
    position, values = catalogue(500, lengths)
    turned = paint(
        position[:, order], values, [shape[i] for i in order], [lengths[i] for i in order]
    )
    expected = paint(position, values, shape, lengths).transpose(0, *(1 + i for i in order))
    np.testing.assert_allclose(turned, expected, atol=1e-5 * expected.max())


@given(
    place=st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 3),
    n=st.integers(2, 40),
    side=st.floats(1e-2, 5e3),
)
def test_one_particle_adds_one_wherever_it_is(place, n, side):
    mesh = paint(place, shape=(n,) * 3, lengths=(side,) * 3)[0]
    assert mesh.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert mesh.min() >= 0
