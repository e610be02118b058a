"""The jobs: each the one call that a user would make again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

import cosmofields as cf
from cosmofields import simulation
from cosmofields.conventions import StoreError
from cosmofields.cosmology import as_cosmology
from cosmofields.training import TrainingConfig, train
from cosmofields.tuning import Space, open_trials, tune
from cosmofields.unet import build, load_model, save_model, weights_digest

COSMOLOGY = {"Omega_m": 0.268, "Omega_b": 0.0445, "h": 0.71, "n_s": 0.968, "sigma8": 0.83}
REDSHIFT = 0.59
# Mpc/h; cells a side of the box to predict, and of those to train on.
CELL, N_GRID, N_TRAINING = 2.34375, 80, 48
BINS = (1e-3, 3e-3)
TRIALS = 2
# For tiles of 64 cells a side, of which such a box has eight.
MEMORY = "450 MB"
FIT = TrainingConfig(
    "density",
    options={"widths": [4, 4]},
    number_density=BINS,
    steps=12,
    settle_steps=4,
    steps_per_epoch=2,
    crop=16,
    margin=2,
    precision="32-true",
)


def load_all() -> None:
    """Import here, once, what every job would import again, and make its power spectrum."""
    import camb  # noqa: F401
    import distributed  # noqa: F401

    from cosmofields.kernels import halos, mesh, modes, particles  # noqa: F401

    for redshift in (0.0, REDSHIFT):
        as_cosmology(COSMOLOGY).linear_power(np.array([0.1]), redshift)


def make_inputs(folder: Path) -> None:
    """A catalogue, boxes to train on and to validate by, and a model of random weights."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("training", 1), ("validation", 2)):
        halos, true = _universe(seed, N_TRAINING)
        tree = xr.DataTree.from_dict({"halos": halos, "true": true})
        tree.attrs.update(halos.attrs, source={"role": name, "code": "made up", "seed": seed})
        cf.write_store(tree, folder / f"{name}.zarr")
    halos, _ = _universe(3, N_GRID)
    cf.write_store(halos, folder / "halos.zarr")
    observed = _observed(halos).compute()
    for target in ("density", "velocity"):
        torch.manual_seed(1)
        model = build("residual", target, n_bins=len(BINS), widths=[4, 4])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        card = {
            "name": f"random-{target}",
            "target": target,
            "architecture": {"name": "residual", "options": model.options},
            "trained_for": {
                "cell_size": CELL,
                "number_density": list(BINS),
                "weighting": "mass",
                "space": "redshift",
                "redshift": REDSHIFT,
                "cosmology": observed.attrs["cosmology"],
            },
            "linear_bias": {"mass_bins": [2.0, 1.2], "all_by_number": [1.3]},
        }
        save_model(model, card, folder / "model")


def _universe(seed: int, n_grid: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Halos that follow a smooth random field, and that field."""
    rng = np.random.default_rng(seed)
    shape, side = (n_grid,) * 3, n_grid * CELL
    k = np.stack(np.meshgrid(*[2 * np.pi * np.fft.fftfreq(n_grid, CELL)] * 3))
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = 1
    modes = np.fft.fftn(rng.normal(size=shape)) * np.exp(-8 * k2) / k2**0.5
    delta = np.fft.ifftn(modes).real
    scale = 0.4 / delta.std()
    density = np.exp(scale * delta)
    density /= density.mean()
    velocity = [np.fft.ifftn(1j * axis / k2 * modes).real * scale * 63.6 for axis in k]
    n = int(4e-3 * side**3)
    cells = rng.choice(n_grid**3, n, p=density.ravel() / n_grid**3)
    where = np.stack(np.unravel_index(cells, shape), axis=-1)
    position = (where + rng.random((n, 3))) * CELL % side
    moving = np.stack([part[tuple(where.T)] for part in velocity], axis=-1)
    facts = {"box_size": side, "redshift": REDSHIFT, "cosmology": dict(COSMOLOGY)}
    halos = cf.from_arrays(position, moving, 1e12 * (1 + rng.pareto(1.5, n)), **facts)
    momentum = density * np.stack(velocity)
    fields = {"density": density, "velocity": np.stack(velocity), "momentum": momentum}
    true = {name: cf.from_grid(array, name=name, **facts) for name, array in fields.items()}
    return halos, xr.Dataset(true, attrs={**halos.attrs})


def _observed(halos: xr.Dataset) -> xr.Dataset:
    tracers = cf.to_redshift_space(cf.select(halos, BINS), "z")
    return cf.paint(tracers.chunk(), N_GRID)


def paint(inputs: Path, out: Path) -> None:
    """Catalogue to a store of halo fields."""
    cf.write_store(_observed(cf.open_store(inputs / "halos.zarr").load()), out / "painted.zarr")


def predict(inputs: Path, out: Path) -> None:
    """Catalogue to a store of everything, in stages."""
    halos = cf.to_redshift_space(cf.open_store(inputs / "halos.zarr"), "z")
    cf.reconstruct(
        halos,
        out / "fields.zarr",
        n_grid=N_GRID,
        model=inputs / "model",
        memory=MEMORY,
        precision="float32",
        progress=False,
    )


def fit(inputs: Path, out: Path) -> None:
    """Boxes to a model."""
    boxes, validation = [inputs / "training.zarr"], [inputs / "validation.zarr"]
    train(FIT, boxes, validation, out / "fit", progress=False)


def simulate(inputs: Path, out: Path) -> None:
    """A particle-mesh run that keeps its particles after each step."""
    simulation.CHECKPOINT = 0.0
    cf.simulate(
        out / "box.zarr",
        seed=3,
        box_size=150.0,
        n_particles=64,
        n_grid=64,
        n_steps=8,
        progress=False,
    )


def search(inputs: Path, out: Path) -> None:
    """Boxes to the settings of least loss."""
    tune(
        replace(FIT, steps=4, settle_steps=2),
        [inputs / "training.zarr"],
        [inputs / "validation.zarr"],
        out / "study",
        trials=TRIALS,
        repeats=2,
        space=Space(widths=[(4, 4), (4, 8)], batch_size=(1, 2)),
        progress=False,
    )


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "paint": paint,
    "predict": predict,
    "train": fit,
    "simulate": simulate,
    "tune": search,
}
STORES = {"paint": "painted.zarr", "predict": "fields.zarr", "simulate": "box.zarr"}


def result(job: str, out: Path) -> str | None:
    """Digest of what poses as the whole result of a job; None if nothing does."""
    if job == "train":
        if not (out / "fit" / "density.json").exists():
            return None
        model, card = load_model("density", out / "fit")
        return f"{weights_digest(model)} {card['training']['validation_loss']!r}"
    if job == "tune":
        return _found(out / "study")
    try:
        opened = cf.open_store(out / STORES[job])
    except StoreError:
        return None
    tree = opened if isinstance(opened, xr.DataTree) else xr.DataTree(opened)
    total = hashlib.sha256()
    for path in sorted(tree.groups):
        for name, variable in sorted(tree[path].to_dataset().variables.items()):
            values = np.ascontiguousarray(variable.values)
            total.update(json.dumps([path, str(name), variable.dims, str(values.dtype)]).encode())
            total.update(values.tobytes())
    return total.hexdigest()


def _found(study: Path) -> str | None:
    """What a search has found, but for the time that it took; None if trials are not ended."""
    try:
        table = open_trials(study)
    except StoreError:
        return None
    if table.sizes.get("trial", 0) < TRIALS or "running" in table["state"].values:
        return None
    best = study / "best.toml"
    settings = best.read_text() if best.exists() else ""
    # Of the trial before, where the call had no time to write that of the last.
    if not settings.startswith(f"# Trial {int(np.argmin(table['loss'].values))}:"):
        return None
    return json.dumps([table.drop_vars("seconds").to_dict(), settings], default=str)
