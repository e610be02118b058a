"""Training boxes: a particle-mesh run from a linear spectrum, its halos and its true fields.

The run is FastPM (Feng et al. 2016): second-order Lagrangian start, leapfrog in the scale factor
with kick and drift factors that are exact for linear growth, forces from the mesh.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from . import stages
from .catalog import as_catalog, catalog_facts, from_arrays
from .conventions import (
    CosmofieldsError,
    StoreError,
    make_grid,
    parse_box_size,
    require_extra,
    step,
)
from .cosmology import Cosmology, as_cosmology, parse_redshift
from .lazy import n_threads
from .painting import paint_matter
from .store import open_store, root_attrs, write_store

PAPER = Cosmology(Omega_m=0.268, h=0.71, Omega_b=0.0445, n_s=0.968, sigma8=0.83)
ROLES = ("training", "validation", "test")
# Critical density today, Msun/h per (Mpc/h)^3.
CRITICAL = 2.7753662e11
# Seconds of a run that may be lost.
CHECKPOINT = 300.0


def simulate(
    store: str | os.PathLike[str],
    *,
    seed: int,
    box_size: float = 300.0,
    n_particles: int = 320,
    n_mesh: int | None = None,
    n_grid: int | None = None,
    redshift: float = 0.59,
    cosmology: Any = PAPER,
    role: str = "training",
    start: float = 19.0,
    n_steps: int = 30,
    linking_length: float = 0.2,
    min_particles: int = 8,
    progress: bool = True,
    console: Console | None = None,
) -> xr.DataTree:
    """Simulate a periodic box of dark matter: halos and true fields, in a store.

    Parameters
    ----------
    store : path
        Zarr store to write, with the groups ``halos`` (a catalogue in real space) and ``true``
        (density, velocity, momentum).  Beside it, while the run lasts, ``STORE.run`` holds its
        particles: the same call goes on with a run that was stopped.
    seed : int
        Of the initial conditions.
    box_size : float
        Mpc/h.
    n_particles, n_mesh, n_grid : int
        A side: particles; cells of the force (default 1.6 times as many); cells of the true fields
        (default: those of 2.34 Mpc/h).
    redshift : float
        At which the run ends.
    cosmology
        As of :func:`~cosmofields.catalog.from_arrays`; with Omega_b, n_s and sigma8.
    role : {"training", "validation", "test"}
        What the box may be used for; training refuses one for tests.
    start : float
        Redshift at which the run begins.
    n_steps : int
        Equal steps of the scale factor.
    linking_length : float
        Of the halos, over the mean distance of particles.
    min_particles : int
        Of a halo.
    progress : bool
        Say what is being done.
    console : rich.console.Console, optional
        Where to.

    Returns
    -------
    DataTree
        The store, opened lazily.

    Raises
    ------
    CosmofieldsError
        If a number makes no run, or the cosmology lacks one.
    StoreError
        If ``store`` holds something else, or another box.

    Notes
    -----
    Particle-mesh forces are soft below two cells of the mesh: halos of few particles are fewer
    than in a simulation that resolves them, and their masses are to be ranked, not trusted.

    References
    ----------
    Feng, Chu, Seljak & McDonald 2016, MNRAS 463, 2273 (FastPM); Bouchet et al. 1995, A&A 296, 575
    (second order); Davis et al. 1985, ApJ 292, 371 (halos).
    """
    run = _Run(
        as_cosmology(cosmology),
        parse_box_size(box_size)[0],
        int(n_particles),
        int(round(1.6 * n_particles / 2)) * 2 if n_mesh is None else int(n_mesh),
        parse_redshift(redshift),
        float(start),
        int(n_steps),
        int(seed),
    )
    cells = max(8, round(run.box_size / 2.34375)) if n_grid is None else int(n_grid)
    run.check()
    if role not in ROLES:
        raise CosmofieldsError(f"role={role!r}; expected one of {', '.join(ROLES)}")
    halos_of = {"linking_length": float(linking_length), "min_particles": int(min_particles)}
    plan = {**run.plan(), **halos_of, "n_grid": cells, "role": role}
    if "://" in os.fspath(store):
        raise StoreError(
            f"'{os.fspath(store)}': a box is simulated into a folder, beside which its particles "
            "wait. Then copy it: write_store(open_store('box.zarr'), url)"
        )
    target = Path(store)
    say = console or Console(stderr=True, quiet=not progress)
    kept = target.with_name(f"{target.name}.run")
    if _is_there(target, plan):
        _forget(kept)  # where the last call was killed before it did
        return _opened(target)
    require_extra("kdcount.cluster", "sim", "Finding halos")  # at the end of a long run
    with stages.alone(target):
        position, velocity = run.finish(kept, say)
        tree = _products(run, position, velocity, cells, halos_of, plan, say)
        write_store(tree, target, overwrite=target.exists(), title=f"simulated box, seed {seed}")
        _forget(kept)
    return _opened(target)


@dataclass(frozen=True)
class Growth:
    """First- and second-order growth of a flat LCDM universe, from their differential equations.

    D'' + (2 + H'/H) D' = 3/2 Omega_m(a) D in ln a; of second order D2 - D^2 stands on the right
    (Bouchet et al. 1995), so that D2 = -3/7 D^2 early on.
    """

    cosmology: Cosmology
    first: float = 1e-3

    @cached_property
    def _solution(self) -> tuple[Any, float]:
        from scipy.integrate import solve_ivp

        def slope(ln_a: float, y: NDArray[np.float64]) -> list[float]:
            a = np.exp(ln_a)
            pull = 1.5 * self.cosmology.Omega_m / a**3 / self._e(a) ** 2
            d, v, d2, v2 = y
            drag = 2 - pull
            return [v, pull * d - drag * v, v2, pull * (d2 - d * d) - drag * v2]

        a = self.first
        found = solve_ivp(
            slope,
            (np.log(a), 0.0),
            [a, a, -3 / 7 * a**2, -6 / 7 * a**2],
            method="DOP853",
            rtol=1e-10,
            atol=1e-14,
            dense_output=True,
        )
        return found.sol, float(found.y[0, -1])

    def _e(self, a: float) -> float:
        return float(self.cosmology.E(1 / a - 1))

    def at(self, a: float) -> tuple[float, float, float, float]:
        """D (1 today) and a^3 E dD/da, and the same of second order."""
        solution, today = self._solution
        d, v, d2, v2 = (float(value) for value in solution(np.log(a)))
        rate = a**2 * self._e(a)
        return d / today, rate * v / today, d2 / today**2, rate * v2 / today**2


@dataclass(frozen=True)
class _Run:
    """A particle-mesh run, but for what is made of its particles."""

    cosmology: Cosmology
    box_size: float
    n_particles: int
    n_mesh: int
    redshift: float
    start: float
    n_steps: int
    seed: int

    def check(self) -> None:
        self.cosmology.require_power()
        if not self.start > self.redshift >= 0:
            raise CosmofieldsError(
                f"start={self.start:g}, redshift={self.redshift:g}; expected start > redshift >= 0"
            )
        for name, least in (("n_particles", 8), ("n_mesh", 8), ("n_steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise CosmofieldsError(f"{name}={getattr(self, name)}; expected at least {least}")

    def plan(self) -> dict[str, Any]:
        return {**asdict(self), "cosmology": self.cosmology.to_dict()}

    @property
    def lengths(self) -> tuple[float, float, float]:
        return (self.box_size,) * 3

    @property
    def particle_mass(self) -> float:
        density = CRITICAL * self.cosmology.Omega_m
        return density * (self.box_size / self.n_particles) ** 3

    def scale_factors(self) -> NDArray[np.float64]:
        return np.linspace(1 / (1 + self.start), 1 / (1 + self.redshift), self.n_steps + 1)

    def finish(self, folder: Path, say: Console) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Positions in Mpc/h and peculiar velocities in km/s at the end of the run."""
        a, growth = self.scale_factors(), Growth(self.cosmology)
        saved = _load(folder, self.plan())
        if saved is None:
            with stages.timed(say, f"initial conditions: {self.n_particles}^3 particles"):
                step_, position, momentum = 0, *self._initial(growth)
        else:
            step_, position, momentum = saved
            say.print(f"  goes on after step {step_} of {self.n_steps}", highlight=False)
        last = time.monotonic()
        for i in range(step_, self.n_steps):
            with stages.timed(say, f"step {i + 1} of {self.n_steps}, z = {1 / a[i + 1] - 1:.2f}"):
                # The kick to the middle of this step, from that of the last one.
                before = (a[i - 1] + a[i]) / 2 if i else a[0]
                self._kick(growth, position, momentum, a[i], before, (a[i] + a[i + 1]) / 2)
                self._drift(growth, position, momentum, a[i], a[i + 1])
            if time.monotonic() - last > CHECKPOINT:
                _save(folder, self.plan(), i + 1, position, momentum)
                last = time.monotonic()
        with stages.timed(say, "last half step"):
            if self.n_steps:
                end = (a[-2] + a[-1]) / 2
                self._kick(growth, position, momentum, a[-1], end, a[-1])
        # dx/dt = p H_0 / a^2, and v = a dx/dt.
        momentum *= np.float32(100 / a[-1])
        return position, momentum

    def _initial(self, growth: Growth) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Second-order displacement: x = q + D psi1 + D2 psi2, at the first scale factor."""
        from .kernels import modes, particles

        n, threads = self.n_particles, n_threads()
        grid = make_grid(n, self.lengths)
        noise = particles.white_noise(self.seed, grid.shape)
        table = modes.power_table(lambda k: self.cosmology.linear_power(k, 0.0))
        # Noise has <|n_k|^2> = N, the overdensity N^2 P / V.
        unit = n**3 / grid.volume

        def shape(strips: Any, waves: Any) -> None:
            particles.colour(strips, waves, table=table, unit=unit)

        (delta,), _ = modes.forward([noise], grid, shape, threads)
        del noise
        work = np.empty_like(delta)
        position = particles.lattice(n, self.lengths)
        momentum = np.zeros_like(position)
        first, rate, second, second_rate = growth.at(self.scale_factors()[0])

        def displace(source: Any, grow: float, speed: float) -> None:
            for axis in range(3):
                flow = partial(modes.flow, axis=axis, rate=1.0)
                psi = particles.field_of(source, grid, flow, work, threads).reshape(-1)
                shifted = position[:, axis] + np.float32(grow) * psi
                position[:, axis] = shifted % np.float32(self.box_size)
                momentum[:, axis] += np.float32(speed) * psi

        curved = self._second_order(delta, work, grid, threads)
        displace(delta, first, rate)
        (delta,), _ = modes.forward([curved], grid, lambda strips, waves: None, threads)
        del curved
        displace(delta, -second, -second_rate)
        position[position >= self.box_size] = 0
        return position, momentum

    def _second_order(self, delta: Any, work: Any, grid: Any, threads: int) -> NDArray[np.float32]:
        """Sum over i < j of phi_ii phi_jj - phi_ij^2, for the potential of ``delta``."""
        from .kernels import particles

        def second(i: int, j: int) -> NDArray[np.float32]:
            return particles.field_of(
                delta, grid, partial(particles.shear, i=i, j=j), work, threads
            )

        total = second(0, 0).copy()
        other = second(1, 1).copy()
        source = total * other
        total += other
        del other
        source += total * second(2, 2)
        del total
        for i, j in ((0, 1), (0, 2), (1, 2)):
            mixed = second(i, j)
            source -= mixed * mixed
        return source

    def _kick(
        self,
        growth: Growth,
        position: NDArray[np.float32],
        momentum: NDArray[np.float32],
        at: float,
        begin: float,
        end: float,
    ) -> None:
        """Add the pull of the particles where they are at ``at``, from ``begin`` to ``end``."""
        from .kernels import mesh, modes, particles

        threads = n_threads()
        grid = make_grid(self.n_mesh, self.lengths)
        density = mesh.cic(position, grid.shape, grid.lengths, n_threads=threads)[0, 0]
        # Over the mean; the modes of a linear force are those of the displacement, over D.
        mean = self.n_particles**3 / self.n_mesh**3
        grown = growth.at(end)[1] - growth.at(begin)[1]
        factor = grown / growth.at(at)[0] / mean
        (delta,), _ = modes.forward([density], grid, lambda strips, waves: None, threads)
        del density
        work = np.empty_like(delta)
        for axis in range(3):
            force = particles.field_of(
                delta, grid, partial(particles.force, axis=axis, grid=grid), work, threads
            )
            particles.pull(
                force,
                position,
                momentum,
                grid.lengths,
                axis=axis,
                factor=factor,
                n_threads=threads,
            )

    def _drift(
        self,
        growth: Growth,
        position: NDArray[np.float32],
        momentum: NDArray[np.float32],
        begin: float,
        end: float,
    ) -> None:
        from .kernels import particles

        grown = growth.at(end)[0] - growth.at(begin)[0]
        factor = grown / growth.at((begin + end) / 2)[1]
        particles.move(position, momentum, self.lengths, factor=factor, n_threads=n_threads())


def _products(
    run: _Run,
    position: NDArray[np.float32],
    velocity: NDArray[np.float32],
    n_grid: int,
    halos_of: Mapping[str, Any],
    plan: Mapping[str, Any],
    say: Console,
) -> xr.DataTree:
    """Halos and true fields of the particles."""
    from .kernels.halos import Groups, friends_of_friends

    facts: dict[str, Any] = {
        "box_size": run.box_size,
        "redshift": run.redshift,
        "cosmology": run.cosmology,
    }
    source = {
        "code": "cosmofields particle-mesh",
        "particle_mass": run.particle_mass,
        **{key: value for key, value in plan.items() if key not in facts},
    }
    with stages.timed(say, f"true fields: {n_grid}^3 cells"):
        # Not from_arrays, which copies: of 640^3 particles that is 6 GB.
        columns = {"position": position, "velocity": velocity}
        checked = catalog_facts(run.box_size, run.redshift, run.cosmology, None)
        particles = as_catalog(columns, "halo", checked, "particles")
        true = paint_matter(particles, n_grid).assign_attrs(source=source)
    with stages.timed(say, "halos: friends of friends"):
        length = halos_of["linking_length"] * run.box_size / run.n_particles
        found = friends_of_friends(
            position,
            velocity,
            run.lengths,
            linking_length=length,
            min_members=halos_of["min_particles"],
        )
        groups = Groups(*(np.concatenate(part) for part in zip(*found, strict=True)))
        # The heaviest first, and those of equal mass at random: no order in space remains.
        mixed = np.random.default_rng([run.seed, 1]).permutation(len(groups.members))
        order = mixed[np.argsort(-groups.members[mixed], kind="stable")]
        members = groups.members[order]
        mass = run.particle_mass * members
        halos = from_arrays(groups.position[order], groups.vector[order], mass, **facts)
        halos = halos.assign_attrs(source=source, **step(halos, f"simulate: seed={run.seed}"))
    return xr.DataTree.from_dict({"halos": halos, "true": true})


# --- what lasts ---


def _opened(store: Path) -> xr.DataTree:
    return cast("xr.DataTree", open_store(store))  # it has two groups


def _is_there(store: Path, plan: Mapping[str, Any]) -> bool:
    """Whether ``store`` is this box, and whole."""
    attrs = root_attrs(store)
    if attrs is None:
        if store.exists():
            raise StoreError(f"'{store}' is taken by something that is no store: choose another")
        return False
    if not attrs.get("complete"):
        return False
    there = open_store(store, "true").attrs.get("source", {})
    wrong = [
        f"{key} is {there.get(key)!r} there, {value!r} in this call"
        for key, value in plan.items()
        if key in there and there[key] != value
    ]
    if wrong or "seed" not in there:
        raise StoreError(
            f"'{store}' holds another box ({'; '.join(wrong) or 'not simulated'}): choose another "
            "path, or remove it yourself"
        )
    return True


def _save(
    folder: Path,
    plan: Mapping[str, Any],
    step_: int,
    position: NDArray[np.float32],
    momentum: NDArray[np.float32],
) -> None:
    """Keep the particles after a step; the old ones go when the new ones are whole."""
    new = folder / f"step-{step_}"
    fresh = new.with_suffix(".new")
    fresh.mkdir(parents=True, exist_ok=True)
    np.save(fresh / "position.npy", position)
    np.save(fresh / "momentum.npy", momentum)
    (fresh / "plan.json").write_text(json.dumps(plan))
    fresh.rename(new)
    for old in folder.glob("step-*"):
        if old != new:
            shutil.rmtree(old)


def _load(
    folder: Path, plan: Mapping[str, Any]
) -> tuple[int, NDArray[np.float32], NDArray[np.float32]] | None:
    kept = [path for path in folder.glob("step-*") if not path.suffix]
    if not kept:
        return None
    newest = max(kept, key=lambda path: int(path.name.split("-")[1]))
    if json.loads((newest / "plan.json").read_text()) != json.loads(json.dumps(plan)):
        raise StoreError(f"'{folder}' holds another run: finish it first, or remove it yourself")
    position, momentum = (np.load(newest / f"{name}.npy") for name in ("position", "momentum"))
    return int(newest.name.split("-")[1]), position, momentum


def _forget(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
