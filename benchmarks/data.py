"""Mock catalogues and fields: clustered as a universe is, made in seconds, always the same."""

from __future__ import annotations

import numpy as np
import scipy.fft
import xarray as xr
from numpy.typing import NDArray

from cosmofields.catalog import from_arrays
from cosmofields.conventions import label, make_grid

FACTS = {
    "redshift": 0.59,
    "cosmology": {"Omega_m": 0.268, "Omega_b": 0.0445, "h": 0.71, "n_s": 0.968, "sigma8": 0.83},
    "space": "real",
    "los": "z",
    "periodic": True,
}


def zeldovich(n: int, side: float, *, rms: float = 8.0, seed: int = 1) -> NDArray[np.float32]:
    """Positions (n^3, 3) of a lattice displaced by ``rms`` Mpc/h an axis, in its order."""
    rng = np.random.default_rng(seed)
    modes = scipy.fft.rfftn(rng.standard_normal((n, n, n), np.float32), workers=-1)
    kx = 2 * np.pi * scipy.fft.fftfreq(n, side / n).astype(np.float32)
    kz = 2 * np.pi * scipy.fft.rfftfreq(n, side / n).astype(np.float32)
    components = kx[:, None, None], kx[:, None], kz
    k2 = sum(k**2 for k in components)
    k2[0, 0, 0] = 1
    # Like cold dark matter's: rising as k, falling as k^-2 and beyond past 0.02 h/Mpc.
    modes *= k2**0.25 / (1 + k2 / 0.02**2) ** 0.75 * np.exp(-k2 / 2)
    modes[0, 0, 0] = 0
    position = np.empty((n**3, 3), np.float32)
    node = (np.arange(n) * (side / n)).astype(np.float32)
    for axis, k in enumerate(components):
        psi = scipy.fft.irfftn(1j * k / k2 * modes, s=(n, n, n), workers=-1)
        psi *= np.float32(rms / psi.std())
        psi += node.reshape([-1 if i == axis else 1 for i in range(3)])
        column = np.mod(psi, np.float32(side), out=psi).ravel()
        column[column >= side] = 0  # mod of a tiny negative float32
        position[:, axis] = column
    return position


def shuffled(position: NDArray[np.float32], seed: int = 2) -> NDArray[np.float32]:
    """The same particles in no order."""
    return position[np.random.default_rng(seed).permutation(len(position))]


def density(n: int, side: float = 1000.0) -> xr.DataArray:
    """White noise on ``n``^3 cells, of mean 1: for what costs the same whatever the values."""
    noise = np.random.default_rng(3).standard_normal((n, n, n), np.float32)
    noise *= np.float32(0.3)
    noise += np.float32(1)
    return label("density", noise, make_grid(n, [side] * 3), {**FACTS, "box_size": side})


def mock_halos(n_halos: int, side: float, seed: int = 4) -> xr.Dataset:
    """Clustered halos: a lattice's Zel'dovich positions thinned, its flow, masses in steps."""
    rng = np.random.default_rng(seed)
    n = int(np.ceil(n_halos ** (1 / 3)))
    position = zeldovich(n, side, seed=seed)
    row = np.sort(rng.permutation(n**3)[:n_halos])
    nodes = np.stack(np.unravel_index(row, (n, n, n)), axis=1) * (side / n)
    moved = position[row] - nodes
    moved -= side * np.rint(moved / side)
    mass = 1e11 * np.rint(10 * (1 + rng.pareto(1.2, n_halos)).clip(max=1e4))
    keep = {key: FACTS[key] for key in ("redshift", "cosmology")}
    return from_arrays(position[row], 63.6 * moved, mass, box_size=side, **keep)


def halo_density(shape: tuple[int, int, int], n_bins: int = 4) -> NDArray[np.float32]:
    """Sparse counts (bin, x, y, z) with unit sum over bins, as a network sees them."""
    rng = np.random.default_rng(5)
    counts = rng.poisson(0.02, (n_bins, *shape)).astype(np.float32)
    return counts / (n_bins * counts.mean())
