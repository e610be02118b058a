"""The jobs: each the one call that a user would make again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

import cosmofields as cf
from cosmofields.conventions import StoreError
from cosmofields.training import TrainingConfig, train
from cosmofields.unet import build, load_model, save_model, weights_digest

COSMOLOGY = {"Omega_m": 0.268, "Omega_b": 0.0445, "h": 0.71, "n_s": 0.968, "sigma8": 0.83}
SIDE, N_GRID = 225.0, 96
BINS = (1e-3, 3e-3)
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


def make_inputs(folder: Path) -> None:
    """A catalogue, boxes to train on and to validate by, and a model of random weights."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("training", 1), ("validation", 2)):
        halos, true = _universe(seed)
        tree = xr.DataTree.from_dict({"halos": halos, "true": true})
        tree.attrs.update(halos.attrs, source={"role": name, "code": "made up", "seed": seed})
        cf.write_store(tree, folder / f"{name}.zarr")
    halos, _ = _universe(3)
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
                "cell_size": SIDE / N_GRID,
                "number_density": list(BINS),
                "weighting": "mass",
                "space": "redshift",
                "redshift": 0.59,
                "cosmology": observed.attrs["cosmology"],
            },
            "linear_bias": {"mass_bins": [2.0, 1.2], "all_by_number": [1.3]},
        }
        save_model(model, card, folder / "model")


def _universe(seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Halos that follow a smooth random field, and that field."""
    rng = np.random.default_rng(seed)
    k = np.stack(np.meshgrid(*[2 * np.pi * np.fft.fftfreq(N_GRID, SIDE / N_GRID)] * 3))
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = 1
    modes = np.fft.fftn(rng.normal(size=(N_GRID,) * 3)) * np.exp(-8 * k2) / k2**0.5
    delta = np.fft.ifftn(modes).real
    scale = 0.4 / delta.std()
    density = np.exp(scale * delta)
    density /= density.mean()
    velocity = [np.fft.ifftn(1j * axis / k2 * modes).real * scale * 63.6 for axis in k]
    n = int(4e-3 * SIDE**3)
    cells = rng.choice(N_GRID**3, n, p=density.ravel() / N_GRID**3)
    where = np.stack(np.unravel_index(cells, (N_GRID,) * 3), axis=-1)
    position = (where + rng.random((n, 3))) * (SIDE / N_GRID) % SIDE
    moving = np.stack([part[tuple(where.T)] for part in velocity], axis=-1)
    facts = {"box_size": SIDE, "redshift": 0.59, "cosmology": dict(COSMOLOGY)}
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


JOBS: dict[str, Callable[[Path, Path], None]] = {"paint": paint, "predict": predict, "train": fit}


def result(job: str, out: Path) -> str | None:
    """Digest of what poses as the whole result of a job; None if nothing does."""
    if job == "train":
        if not (out / "fit" / "density.json").exists():
            return None
        model, card = load_model("density", out / "fit")
        return f"{weights_digest(model)} {card['training']['validation_loss']!r}"
    try:
        opened = cf.open_store(out / ("painted.zarr" if job == "paint" else "fields.zarr"))
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
