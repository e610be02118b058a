"""The particle-mesh run: growth, forces and motion against analytic cases; halos; resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from cosmofields import simulation
from cosmofields.conventions import CosmofieldsError, StoreError, make_grid
from cosmofields.cosmology import Cosmology
from cosmofields.kernels import modes, particles
from cosmofields.simulation import PAPER, Growth, _Run, simulate
from cosmofields.spectral import power_spectrum

QUIET = Console(quiet=True)


# --- growth ---


def test_growth_of_a_universe_of_matter_alone() -> None:
    growth = Growth(Cosmology(Omega_m=1.0, h=0.7))
    for a in (0.05, 0.3, 1.0):
        # D = a, E = a^-3/2, and so a^3 E dD/da = a^3/2.
        expected = [a, a**1.5, -3 / 7 * a**2, -6 / 7 * a**2.5]
        np.testing.assert_allclose(growth.at(a), expected, rtol=1e-6)


def test_growth_agrees_with_the_integral_and_the_fit() -> None:
    a = 1 / 1.59
    first, rate, second, _ = Growth(PAPER).at(a)
    assert first == pytest.approx(PAPER.D(0.59), rel=1e-5)
    f = rate / first / (a**2 * float(PAPER.E(0.59)))
    assert f == pytest.approx(float(PAPER.f(0.59)), rel=5e-3)  # Linder's fit
    # Bouchet et al. 1995, in a flat universe.
    omega = PAPER.Omega_m * 1.59**3 / float(PAPER.E(0.59)) ** 2
    assert second / first**2 == pytest.approx(-3 / 7 * omega ** (-1 / 143), rel=1e-3)


# --- kernels ---


def test_shear_has_the_field_as_its_trace_and_is_the_second_derivative() -> None:
    grid = make_grid((8, 6, 10), (80.0, 60.0, 100.0))
    x, y, z = np.meshgrid(*[grid.coords()[c].values for c in "xyz"], indexing="ij")
    # A product of two waves: phi_xy does not vanish.
    kx, ky = 2 * np.pi / 80, 4 * np.pi / 60
    field = np.sin(kx * x + ky * y).astype(np.float32)
    (f,), _ = modes.forward([field], grid, lambda strips, waves: None, 1)
    work = np.empty_like(f)

    def second(i: int, j: int) -> NDArray[np.float32]:
        def output(strips: Any, out: Any, waves: Any) -> None:
            particles.shear(strips, out, waves, i=i, j=j)

        return particles.field_of(f, grid, output, work, 2).copy()

    k2 = kx**2 + ky**2
    for (i, j), factor in {(0, 0): kx * kx, (1, 1): ky * ky, (0, 1): kx * ky}.items():
        np.testing.assert_allclose(second(i, j), field * factor / k2, atol=2e-6)
    trace = second(0, 0) + second(1, 1) + second(2, 2)
    np.testing.assert_allclose(trace, field, atol=2e-6)


def test_noise_is_that_of_its_seed_alone() -> None:
    noise = particles.white_noise(3, (16, 16, 16))
    np.testing.assert_array_equal(noise, particles.white_noise(3, (16, 16, 16)))
    assert (
        abs(np.corrcoef(noise.ravel(), particles.white_noise(4, (16, 16, 16)).ravel())[0, 1]) < 0.1
    )
    assert noise.std() == pytest.approx(1, abs=5 / np.sqrt(2 * noise.size))


def test_motion_wraps_into_the_box() -> None:
    position = np.array([[99.5, 0.5, 50.0], [np.nextafter(np.float32(0), -1), 0.0, 99.999]], "f4")
    momentum = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    particles.move(position, momentum, (100.0,) * 3, factor=1.0, n_threads=1)
    assert ((position >= 0) & (position < 100)).all()
    np.testing.assert_allclose(position[0], [0.5, 99.5, 50], atol=1e-5)


def test_pull_reads_a_linear_force_exactly() -> None:
    n, side = 8, 80.0
    x = np.arange(n) * side / n
    force = np.broadcast_to(x[:, None, None], (n, n, n)).astype(np.float32).copy()
    rng = np.random.default_rng(1)
    position = rng.uniform(0, 69, (100, 3)).astype(np.float32)  # between nodes 0 and 7
    momentum = np.zeros((100, 3), np.float32)
    particles.pull(force, position, momentum, (side,) * 3, axis=1, factor=2.0, n_threads=2)
    np.testing.assert_allclose(momentum[:, 1], 2 * position[:, 0], rtol=1e-5, atol=1e-4)
    assert (momentum[:, [0, 2]] == 0).all()


# --- the run ---


def small(**changes: Any) -> _Run:
    run = _Run(PAPER, 200.0, 32, 64, 0.0, 19.0, 10, 1)
    return replace(run, **changes)


def density_of(run: _Run, position: NDArray[np.float32]) -> xr.DataArray:
    from cosmofields.catalog import from_arrays
    from cosmofields.painting import paint

    facts = {"box_size": run.box_size, "redshift": run.redshift, "cosmology": run.cosmology}
    table = from_arrays(position, position, **facts)
    return paint(table, run.n_particles, weighting="number")["halo_density"].sum(
        "mass_bin", keep_attrs=True
    )


def test_the_start_has_the_linear_spectrum_and_its_velocities() -> None:
    run = small(n_particles=64, seed=5)
    growth = Growth(PAPER)
    position, momentum = run._initial(growth)
    first, rate, _, _ = growth.at(0.05)
    spectrum = power_spectrum(density_of(run, position), edges=[0.02, 0.1, 0.2])
    linear = PAPER.linear_power(spectrum["k_mean"].values, 0.0) * first**2
    scatter = np.sqrt(2 / spectrum["modes"].values)
    assert (abs(spectrum["power"].values / linear - 1) < 4 * scatter).all()
    # To first order, displacement and momentum are one field.
    shift = position - particles.lattice(64, run.lengths)
    shift -= run.box_size * np.round(shift / run.box_size)
    fit = (shift * momentum).sum() / (shift**2).sum()
    assert fit == pytest.approx(rate / first, rel=0.02)


def test_small_waves_grow_linearly(tmp_path: Path) -> None:
    # Waves of 1e-3 of their usual size stay linear: P grows by D^2, of which steps must not matter.
    quiet = replace(PAPER, sigma8=PAPER.sigma8 * 0.02)
    run = small(cosmology=quiet, n_steps=6, n_particles=64)
    begun, _ = run._initial(Growth(quiet))
    ended, _ = run.finish(tmp_path / "run", QUIET)
    edges = [0.02, 0.05]
    before, after = (power_spectrum(density_of(run, p), edges=edges) for p in (begun, ended))
    grown = np.sqrt(after["power"] / before["power"])
    expected = 1 / Growth(quiet).at(0.05)[0]
    np.testing.assert_allclose(grown, expected, rtol=0.01)


def plane_wave(n: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """Displacement and velocity at z = 1 of a wave along x, and what Zel'dovich has for both."""
    # As many cells as particles: a finer mesh would see rows of them, where sheets are meant.
    run = small(redshift=1.0, n_steps=20, n_particles=n, n_mesh=n)
    k = 2 * np.pi / run.box_size
    q = particles.lattice(n, run.lengths)
    growth = Growth(PAPER)
    end, rate = growth.at(0.5)[:2]
    psi = (0.5 / k / end * np.sin(k * q[:, 0])).astype(np.float32)  # |d psi / d q| = 0.5 / D

    def begin(self: _Run, growth: Growth) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        first, rate, _, _ = growth.at(0.05)
        position, momentum = q.copy(), np.zeros_like(q)
        position[:, 0] = (position[:, 0] + first * psi) % run.box_size
        momentum[:, 0] = rate * psi
        return position, momentum

    monkeypatch.setattr(_Run, "_initial", begin)
    position, velocity = run.finish(folder, QUIET)
    moved = position - q
    moved -= run.box_size * np.round(moved / run.box_size)
    assert abs(moved[:, 1:]).max() < 1e-4 * end * psi.max()
    assert abs(velocity[:, 1:]).max() < 1e-3 * velocity[:, 0].max()
    # v = a f H psi D, and a^3 E dD/da = a^2 E f D.
    return moved[:, 0], velocity[:, 0], (end * psi, 100 / 0.5 * rate * psi)


def test_a_plane_wave_follows_zeldovich(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In one dimension x = q + D psi(q) is exact until sheets cross.
    errors = []
    for n in (32, 64):
        moved, velocity, (expected, speed) = plane_wave(n, tmp_path / str(n), monkeypatch)
        errors.append(abs(moved - expected).max() / expected.max())
    for found, true in ((moved, expected), (velocity, speed)):
        assert (found * true).sum() / (true**2).sum() == pytest.approx(1, abs=0.01)
    # The force is softened over a cell.
    assert errors[1] < 0.55 * errors[0] < 0.05


def test_total_momentum_stays_zero(tmp_path: Path) -> None:
    _, velocity = small().finish(tmp_path / "run", QUIET)
    assert np.abs(velocity.mean(axis=0, dtype=float)).max() < 1e-3 * velocity.std()


# --- halos ---


def brute_groups(position: NDArray[Any], side: float, length: float) -> list[set[int]]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    pairs = cKDTree(position, boxsize=side).query_pairs(length, output_type="ndarray")
    n = len(position)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
    _, labels = connected_components(graph, directed=False)
    return [set(np.flatnonzero(labels == label)) for label in np.unique(labels)]


@pytest.mark.parametrize("n_slabs", [1, 3])
def test_groups_are_those_of_brute_force(n_slabs: int) -> None:
    pytest.importorskip("kdcount")
    from cosmofields.kernels.halos import friends_of_friends

    rng = np.random.default_rng(2)
    side, length = 100.0, 1.0
    # Some lie across the boundaries of the box, and of slabs.
    centres = np.concatenate([rng.uniform(0, side, (30, 3)), [[0, 0, 0], [33.3, 50, 99.9]]])
    clumps = centres[:, None] + rng.normal(0, 0.5, (len(centres), 20, 3))
    position = np.concatenate([clumps.reshape(-1, 3), rng.uniform(0, side, (200, 3))]) % side
    position = position.astype(np.float32) % np.float32(side)
    vector = rng.normal(0, 1, position.shape).astype(np.float32)
    found = list(
        friends_of_friends(
            position, vector, (side,) * 3, linking_length=length, min_members=5, n_slabs=n_slabs
        )
    )
    assert len(found) == n_slabs
    members = np.concatenate([groups.members for groups in found])
    mean = np.concatenate([groups.vector for groups in found])
    centre = np.concatenate([groups.position for groups in found])
    expected = [g for g in brute_groups(position.astype(float), side, length) if len(g) >= 5]
    assert sorted(members) == sorted(map(len, expected))
    for group in expected:
        rows = sorted(group)
        nearest = np.argmin(np.abs(mean - vector[rows].mean(axis=0)).sum(axis=1))
        np.testing.assert_allclose(mean[nearest], vector[rows].mean(axis=0), atol=1e-6)
        angle = position[rows].astype(float) * (2 * np.pi / side)
        circular = np.angle(np.exp(1j * angle).mean(axis=0)) / (2 * np.pi) * side % side
        apart = centre[nearest] - circular
        assert np.abs(apart - side * np.round(apart / side)).max() < 0.05
        assert members[nearest] == len(group)


def test_a_group_longer_than_the_overlap_is_an_error() -> None:
    pytest.importorskip("kdcount")
    from cosmofields.kernels.halos import friends_of_friends

    row = np.stack([np.linspace(20, 80, 200), np.full(200, 5.0), np.full(200, 5.0)], 1)
    with pytest.raises(CosmofieldsError, match="reach further than 12 Mpc/h"):
        list(
            friends_of_friends(
                row.astype(np.float32),
                np.zeros((200, 3), np.float32),
                (100.0,) * 3,
                linking_length=1.0,
                min_members=5,
                n_slabs=4,
            )
        )


# --- the store ---


@pytest.fixture
def arguments() -> dict[str, Any]:
    return {
        "seed": 3,
        "box_size": 75.0,
        "n_particles": 48,
        "n_mesh": 96,
        "n_grid": 16,
        "n_steps": 6,
        "min_particles": 8,
        "progress": False,
    }


def test_a_box_is_what_it_says(tmp_path: Path, arguments: dict[str, Any]) -> None:
    pytest.importorskip("kdcount")
    tree = simulate(tmp_path / "box.zarr", **arguments)
    halos, true = tree["halos"].to_dataset().load(), tree["true"].to_dataset().load()
    mass = halos.attrs["source"]["particle_mass"]
    assert mass == pytest.approx(2.775e11 * PAPER.Omega_m * (75 / 48) ** 3, rel=1e-3)
    members = halos["mass"].values / mass
    np.testing.assert_allclose(members, np.rint(members), rtol=1e-5)
    assert members.min() >= 7.99
    assert (np.diff(halos["mass"]) <= 0).all()
    assert float(true["density"].mean(dtype="f8")) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        true["momentum"], true["velocity"] * true["density"], rtol=1e-4, atol=0.1
    )
    assert halos.attrs["redshift"] == true.attrs["redshift"] == 0.59
    assert halos.attrs["source"]["role"] == "training"
    # Halos lie where matter is dense.
    cell = (halos["position"].values * 16 / 75).round().astype(int) % 16
    assert true["density"].values[tuple(cell.T)].mean() > 2


def test_a_killed_run_goes_on_with_the_same_bits(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kdcount")
    whole = simulate(tmp_path / "whole.zarr", **arguments)
    monkeypatch.setattr(simulation, "CHECKPOINT", 0.0)
    drift, calls = _Run._drift, []

    def dies(self: _Run, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        drift(self, *args)

    monkeypatch.setattr(_Run, "_drift", dies)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "box.zarr", **arguments)
    assert (tmp_path / "box.zarr.run" / "step-3").is_dir()
    with pytest.raises(StoreError, match="another run"):
        simulate(tmp_path / "box.zarr", **{**arguments, "seed": 4})
    again = simulate(tmp_path / "box.zarr", **arguments)
    assert len(calls) == 4 + 3
    for group in ("halos", "true"):
        ours, theirs = again[group].to_dataset().load(), whole[group].to_dataset().load()
        xr.testing.assert_equal(ours, theirs)
    assert not (tmp_path / "box.zarr.run").exists()


def test_what_is_there_is_opened_or_left_alone(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kdcount")
    simulate(tmp_path / "box.zarr", **arguments)

    def never(*args: Any) -> Callable[..., Any]:
        raise AssertionError("simulated again")

    monkeypatch.setattr(_Run, "finish", never)
    (tmp_path / "box.zarr.run" / "step-6").mkdir(parents=True)  # of a call killed at its very end
    simulate(tmp_path / "box.zarr", **arguments)
    assert not (tmp_path / "box.zarr.run").exists()
    with pytest.raises(StoreError, match=r"seed is 3 there, 9 in this call"):
        simulate(tmp_path / "box.zarr", **{**arguments, "seed": 9})
    (tmp_path / "notes").mkdir()
    with pytest.raises(StoreError, match="no store"):
        simulate(tmp_path / "notes", **arguments)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"role": "toy"}, "expected one of training, validation, test"),
        ({"redshift": 30.0}, "expected start > redshift"),
        ({"n_steps": 0}, "n_steps=0; expected at least 1"),
        ({"cosmology": {"Omega_m": 0.3, "h": 0.7}}, "needs Omega_b, n_s, sigma8"),
        ({"box_size": -1.0}, "not a length"),
    ],
)
def test_errors_at_the_door(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(CosmofieldsError, match=says):
        simulate(tmp_path / "box.zarr", **{"seed": 1, **change})
    assert not list(tmp_path.iterdir())


def test_every_axis_is_like_the_others() -> None:
    # 2LPT by pairs: a field with its axes turned gives displacements turned.
    run = small(n_particles=16)
    field = particles.white_noise(1, (16, 16, 16))
    grid = make_grid(16, run.lengths)

    def curved(f: NDArray[np.float32]) -> NDArray[np.float32]:
        (delta,), _ = modes.forward([f], grid, lambda strips, waves: None, 1)
        return run._second_order(delta, np.empty_like(delta), grid, 1)

    expected = curved(field)
    for turn in list(product([(1, 2, 0), (2, 1, 0)])):
        np.testing.assert_allclose(
            curved(field.transpose(turn[0]).copy()), expected.transpose(turn[0]), atol=1e-4
        )
