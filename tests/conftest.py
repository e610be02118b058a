"""Fixtures for every test file: a catalogue on its way to fields, a box file, dask computes.

The data are session-scoped, and an error at the end of the session says if a test changed one.
"""

from __future__ import annotations

import copy
import json
import logging
import runpy
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import settings
from numpy.typing import NDArray

from cosmofields.catalog import from_arrays, select, to_redshift_space
from cosmofields.painting import paint

settings.register_profile("light", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("light")

PARTICLE_MASS = 6.13e10  # Msun/h


# --- a catalogue ---


@pytest.fixture(scope="session")
def cosmology() -> Iterator[dict[str, float]]:
    """Parameters of the paper's cosmology."""
    parameters = {"Omega_m": 0.268, "Omega_b": 0.0445, "h": 0.71, "n_s": 0.968, "sigma8": 0.83}
    yield from _guarded(parameters, "cosmology")


@pytest.fixture(scope="session")
def halos(cosmology: dict[str, float]) -> Iterator[xr.Dataset]:
    """5000 halos in clusters, in real space: 100 Mpc/h, z = 0.59, masses in steps."""
    rng = np.random.default_rng(1)
    n, side = 5000, 100.0
    centres = rng.uniform(0, side, (500, 3))
    member_of = rng.integers(0, len(centres), n)
    position = (centres[member_of] + rng.normal(0, 3, (n, 3))) % side
    bulk = rng.normal(0, 250, centres.shape)
    velocity = bulk[member_of] + rng.normal(0, 100, (n, 3))
    mass = PARTICLE_MASS * np.rint(10 * (1 + rng.pareto(1.2, n)).clip(max=300))
    ds = from_arrays(
        position, velocity, mass, box_size=side, redshift=0.59, cosmology=dict(cosmology)
    )
    yield from _guarded(ds, "halos")


@pytest.fixture(scope="session")
def tracers(halos: xr.Dataset) -> Iterator[xr.Dataset]:
    """The 3000 heaviest of `halos` in four mass bins, in redshift space along z."""
    yield from _guarded(to_redshift_space(select(halos), los="z"), "tracers")


@pytest.fixture(scope="session")
def observed(tracers: xr.Dataset) -> Iterator[xr.Dataset]:
    """`tracers` painted on 16^3 cells, weighted by mass."""
    yield from _guarded(paint(tracers, n_grid=16), "observed")


def _guarded(data: Any, name: str) -> Iterator[Any]:
    before = copy.deepcopy(data)
    yield data
    if isinstance(data, xr.Dataset):
        same = data.identical(before)
    else:
        same = data == before
    assert same, f"a test changed the fixture `{name}`, which the whole session shares"


# --- a box file ---


@pytest.fixture(scope="session")
def plain_cic() -> Callable[..., NDArray[np.float64]]:
    """Cloud-in-cell sums in plain numpy, float64, written apart from the package's."""
    return _plain_cic


def _plain_cic(
    position: NDArray[Any], weight: NDArray[Any], shape: Any, lengths: Any
) -> NDArray[np.float64]:
    cells = np.asarray(position, np.float64) * (np.asarray(shape) / np.asarray(lengths))
    low = np.floor(cells).astype(int)
    offset = cells - low
    mesh = np.zeros(tuple(shape))
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, offset, 1 - offset), axis=1)
        np.add.at(mesh, tuple(((low + corner) % shape).T), share * weight)
    return mesh


@pytest.fixture(scope="session")
def make_box(cosmology: dict[str, float]) -> Callable[..., Path]:
    """Write a simulated box: ``make_box(path, seed=1, n_grid=32, box_size=75.0)``, and its role.

    Zel'dovich-displaced particles, two a cell side; their density and momentum by `plain_cic`;
    halos are particles drawn from the dense cells, 3.8e-3 (h/Mpc)^3.  The default cell size is
    the 2.34 Mpc/h that models are trained for.
    """

    def make(
        path: Path,
        *,
        seed: int = 1,
        n_grid: int = 32,
        box_size: float = 75.0,
        role: str = "training",
    ) -> Path:
        rng = np.random.default_rng(seed)
        n = 2 * n_grid
        displacement = _displacement(rng, n, box_size, rms=2.5)
        lattice = np.stack(np.meshgrid(*[np.arange(n) * box_size / n] * 3, indexing="ij"), -1)
        position = ((lattice + displacement) % box_size).reshape(-1, 3)
        # Of linear growth at z = 0.59: a H f = 63.6 km/s/(Mpc/h).
        velocity = 63.6 * displacement.reshape(-1, 3)
        shape = (n_grid,) * 3
        density, *momentum = (
            _plain_cic(position, weight / 8, shape, (box_size,) * 3)
            for weight in (np.ones(n**3), *velocity.T)
        )
        assert density.min() > 0, "an empty cell: the file's velocity would be undefined"

        here = density[tuple((position * n_grid / box_size).astype(int).T)]
        n_halos = int(np.ceil(3.8e-3 * box_size**3))
        chosen = rng.choice(n**3, n_halos, replace=False, p=here / here.sum())
        size = 8 + np.rint(here[chosen] * (1 + 9 * rng.pareto(1.5, n_halos)).clip(max=100))
        particle_mass = 2.775e11 * cosmology["Omega_m"] * (box_size / n) ** 3
        order = np.argsort(-size, kind="stable")
        with h5py.File(path, "w") as file:
            tables = {
                "halos/Position": position[chosen][order],
                "halos/Velocity": velocity[chosen][order],
                "halos/Mass": (particle_mass * size)[order],
                "fields/density": density,
                "fields/momentum": np.stack(momentum),
            }
            for name, values in tables.items():
                file.create_dataset(name, data=values.astype(np.float32), compression="gzip")
            file["halos/NumberOfParticles"] = size[order].astype(np.int32)
            file.attrs.update(
                cosmology,
                box_size=box_size,
                redshift=0.59,
                particle_mass=particle_mass,
                seed=seed,
                linking_length=0.2,
                role=role,
                code="Zel'dovich",
            )
        return path

    return make


def _displacement(rng: np.random.Generator, n: int, side: float, rms: float) -> NDArray[Any]:
    """Gaussian displacement (x, y, z, component) of a CDM-like spectrum cut off at 2 Mpc/h."""
    k = np.stack(np.meshgrid(*[2 * np.pi * np.fft.fftfreq(n, side / n)] * 3, indexing="ij"))
    k2 = (k**2).sum(axis=0)
    k2[0, 0, 0] = 1
    amplitude = k2**0.25 / (1 + k2 / 0.03**2) ** 0.85 * np.exp(-2 * k2)
    modes = np.fft.fftn(rng.normal(size=(n, n, n))) * amplitude
    psi = np.stack([np.fft.ifftn(1j * ki / k2 * modes).real for ki in k], axis=-1)
    return psi * (rms / psi.std())


@pytest.fixture(scope="session")
def box_file(make_box: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HDF5 box as ``open_box`` reads it: 32^3 cells of 2.34 Mpc/h, 1604 halos."""
    return make_box(tmp_path_factory.mktemp("box") / "box_1.h5")


# --- laziness ---


class Computes:
    """A dask scheduler that counts how often it is asked."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        self.total += 1
        return dask.get(dsk, keys, **kwargs)


@pytest.fixture(scope="session")
def count_computes() -> Callable[[], AbstractContextManager[Computes]]:
    """``with count_computes() as computes: ...``; then ``computes.total`` is their number."""

    @contextmanager
    def counting() -> Iterator[Computes]:
        computes = Computes()
        with dask.config.set(scheduler=computes):
            yield computes

    return counting


@pytest.fixture(scope="session")
def no_computes() -> Callable[[], AbstractContextManager[None]]:
    """``with no_computes(): ...`` fails if dask computes anything inside."""

    def refuse(dsk: Any, keys: Any, **kwargs: Any) -> Any:
        raise AssertionError("dask computed something that was to stay lazy")

    @contextmanager
    def forbidding() -> Iterator[None]:
        with dask.config.set(scheduler=refuse):
            yield

    return forbidding


# --- models ---


@pytest.fixture(scope="session")
def make_models() -> Callable[..., Path]:
    """Save untrained density and velocity models: ``make_models(folder, observed)``.

    Their weights are random, and their card fits ``observed``: box, mass bins, weighting.  They are
    called like the folder.
    """

    def make(folder: Path, observed: xr.Dataset) -> Path:
        import torch

        from cosmofields.unet import build, save_model

        halos = observed["halo_density"]
        n_bins = halos.sizes["mass_bin"]
        for target in ("density", "velocity"):
            torch.manual_seed(1)
            model = build("residual", target, n_bins=n_bins, widths=[4, 4, 4])
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    scale = 0.05 if "final" in name else 0.1
                    parameter.add_(scale * torch.randn_like(parameter))
            card = {
                "target": target,
                "architecture": {"name": "residual", "options": model.options},
                "trained_for": {
                    "cell_size": observed.recon.grid.cell_size[0],
                    "number_density": list(halos.attrs["number_density"]),
                    "weighting": halos.attrs["weighting"],
                    "space": "redshift",
                    "redshift": observed.attrs["redshift"],
                    "cosmology": observed.attrs["cosmology"],
                },
                "linear_bias": {
                    "mass_bins": [3.0, 1.5, 1.2, 1.1][:n_bins],
                    "all_by_number": [1.3],
                },
            }
            save_model(model, card, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def add_network() -> Callable[..., None]:
    """Save one more untrained network beside others: ``add_network(folder, "paper", "momentum")``.

    Its weights are random, and its card is that of the velocity's, but for what is given and the
    calibration.
    """

    def add(folder: Path, architecture: str, target: str, **changes: Any) -> None:
        import torch

        from cosmofields.unet import build, load_cards, save_model

        torch.manual_seed(2)
        network = build(architecture, target, n_bins=4, widths=[4, 4, 4])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        shape = {"name": architecture, "options": network.options}
        card = {**load_cards(folder)["velocity"], "target": target, "architecture": shape}
        card.pop("calibration", None)
        save_model(network, {**card, **changes}, folder)

    return add


@pytest.fixture(scope="session")
def make_scores() -> SimpleNamespace:
    """What `tools/make_scores.py` defines; skips where there is no repository."""
    path = Path(__file__).parents[1] / "tools" / "make_scores.py"
    if not path.is_file():
        pytest.skip("the page and its tool are in the repository only")
    return SimpleNamespace(**runpy.run_path(str(path)))


# --- pages ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, a :class:`tests.browser.Browser`."""
    from tests.browser import Browser

    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


# --- servers ---


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """Storage options of a server of S3 with a bucket `bucket`, of which `public/` is public."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": "arn:aws:s3:::bucket/public/*",
            }
        ],
    }
    for query, body in (("", b""), ("?policy", json.dumps(policy).encode())):
        request = urllib.request.Request(f"{url}/bucket{query}", data=body, method="PUT")
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request).close()
    yield {"endpoint_url": url, "key": "me", "secret": "mine", "region": "us-east-1"}
    server.stop()
