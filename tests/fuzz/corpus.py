"""Small whole inputs, of which cases are made: each format, each kind of store, each model."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

import cosmofields as cf
from tests.format_files import COSMOLOGY, SIDE, WRITERS, Z, make_table

from .cases import Case, tree_of

ROWS = 12


def corpus(target: str) -> list[Case]:
    """Whole cases of a target: ``"readers"``, ``"stores"`` or ``"models"``."""
    makers = {"readers": _readers, "stores": _stores, "models": _models}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(makers[target]())


def _made(target: str, kind: str, make: Callable[[Path], tuple[Any, dict[str, Any]]]) -> Case:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, options = make(folder)
        relative = str(source).removeprefix(name).lstrip("/")
        return Case(target, kind, tree_of(folder), relative, options)


# --- catalogues and boxes ---


def _readers() -> Iterator[Case]:
    for kind, (_, write) in WRITERS.items():
        yield _made("readers", kind, lambda folder, write=write: write(folder, make_table(ROWS)))
    for name, make in {
        "zarr": _catalog_store, "zarr-2": _catalog_store_2, "box": _box, "box-store": _box_store,
    }.items():  # fmt: skip
        yield _made("readers", name, make)


def _halos(n: int = ROWS) -> xr.Dataset:
    table = make_table(n)
    return cf.from_arrays(*table.values(), box_size=SIDE, redshift=Z, cosmology=COSMOLOGY)


def _catalog_store(folder: Path) -> tuple[Any, dict[str, Any]]:
    cf.write_store(_halos(), folder / "halos.zarr")
    return folder / "halos.zarr", {}


def _catalog_store_2(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Of somebody who wrote Zarr's earlier format with xarray."""
    halos = _halos()
    halos.drop_vars("component").to_zarr(folder / "a.zarr", zarr_format=2, consolidated=True)
    return folder / "a.zarr", {}


def _box(folder: Path) -> tuple[Any, dict[str, Any]]:
    table = make_table(ROWS)
    with h5py.File(folder / "box.h5", "w") as file:
        for name, values in table.items():
            file[f"halos/{name.title()}"] = values
        file["fields/density"] = np.ones((4, 4, 4), "f4")
        file["fields/momentum"] = np.ones((3, 4, 4, 4), "f4")
        file.attrs.update(box_size=SIDE, redshift=Z, **COSMOLOGY)
    return folder / "box.h5", {"box": True}


def _box_store(folder: Path) -> tuple[Any, dict[str, Any]]:
    cf.write_store(_tree(), folder / "box.zarr")
    return folder / "box.zarr", {"box": True}


# --- stores ---


def _field(name: str, n: int = 4) -> xr.DataArray:
    shape = (n, n, n) if name == "density" else (3, n, n, n)
    values = np.random.default_rng(2).uniform(0.5, 2, shape).astype(np.float32)
    return cf.from_grid(values, name=name, box_size=SIDE, redshift=Z, cosmology=COSMOLOGY, los="z")


def _tree() -> xr.DataTree:
    true = xr.Dataset({name: _field(name) for name in ("density", "velocity", "momentum")})
    true.attrs = dict(true["density"].attrs)
    return xr.DataTree.from_dict({"/halos": _halos(), "/true": true})


def _results() -> xr.Dataset:
    """Coordinates, text and times, which are read when a store is opened."""
    return xr.Dataset(
        {"power": ("k", np.arange(5.0)), "name": ("k", ["a", "bb", "", "d", "e"])},
        {"k": np.arange(5.0), "time": ("k", np.arange(5) * np.timedelta64(1, "s"))},
        {"title": "spectra"},
    )


def _stores() -> Iterator[Case]:
    density = xr.Dataset({"density": _field("density")})
    density.attrs = dict(density["density"].attrs)
    sharded = {"density": {"shards": (4, 4, 4), "chunks": (2, 2, 2)}}

    def ours(data: Any) -> Callable[[Path], tuple[Any, dict[str, Any]]]:
        def make(folder: Path) -> tuple[Any, dict[str, Any]]:
            cf.write_store(data, folder / "a.zarr", title="A", authors=["B"], license="C")
            return folder / "a.zarr", {}

        return make

    def theirs(data: xr.Dataset, **how: Any) -> Callable[[Path], tuple[Any, dict[str, Any]]]:
        def make(folder: Path) -> tuple[Any, dict[str, Any]]:
            data.to_zarr(folder / "a.zarr", **how)
            return folder / "a.zarr", {}

        return make

    def packed(data: Any) -> Callable[[Path], tuple[Any, dict[str, Any]]]:
        def make(folder: Path) -> tuple[Any, dict[str, Any]]:
            cf.write_store(data, folder / "a.zarr.zip")
            return folder / "a.zarr.zip", {}

        return make

    def repository(folder: Path) -> tuple[Any, dict[str, Any]]:
        cf.write_store(_results(), folder / "a.icechunk")
        return folder / "a.icechunk", {}

    kinds: dict[str, Any] = {
        "field": ours(density),
        "tree": ours(_tree()),
        "results": ours(_results()),
        "walked": theirs(density, zarr_format=3, consolidated=False),
        "sharded": theirs(density, zarr_format=3, consolidated=True, encoding=sharded),
        "format-2": theirs(_results(), zarr_format=2, consolidated=True),
        "zip": packed(density),
        "zip-results": packed(_results()),
        "icechunk": repository,
    }
    for kind, make in kinds.items():
        yield _made("stores", kind, make)
    # As the zip of a folder that another tool packed: compressed, and with entries for folders.
    tree = _made("stores", "tree", ours(_tree()))

    def other(folder: Path) -> tuple[Any, dict[str, Any]]:
        with zipfile.ZipFile(folder / "a.zarr.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in tree.files.items():
                assert isinstance(content, bytes)
                file.writestr(name.removeprefix("a.zarr/"), content)
        return folder / "a.zarr.zip", {}

    yield _made("stores", "zip-deflated", other)


# --- models ---


def _models() -> Iterator[Case]:
    import torch

    from cosmofields.unet import MODELS, build, load_cards, save_model

    shipped = load_cards("default")
    for architecture, target in MODELS:
        torch.manual_seed(0)
        widths = [2, 2, 2] if architecture == "paper" else [2, 2]
        model = build(architecture, target, n_bins=1, widths=widths)
        # A card as those that ship have it, of which a score and a calibration are enough.
        card = {k: v for k, v in shipped[target].items() if k not in ("scores", "training", "name")}
        card = json.loads(json.dumps(card))
        card["calibration"] = {
            key: card.get("calibration", {})[key]
            for key in ("symmetries", "units", "line_of_sight", "factors")
            if key in card.get("calibration", {})
        }
        card |= {
            "inputs": list(model.inputs),
            "architecture": {"name": architecture, "options": model.options},
        }

        def make(folder: Path, model: Any = model, card: Any = card) -> tuple[Any, dict[str, Any]]:
            save_model(model, card, folder / "model")
            return folder / "model", {"model": model.target}

        yield _made("models", f"{architecture}-{target}", make)
