"""A catalogue without masses, or with few halos: to fields, or to the model that fits it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.catalog import select
from cosmofields.cli import main
from cosmofields.conventions import CatalogError, MissingVariableError, ModelMismatchError
from cosmofields.store import open_store

# Halos and weights are made up: the ones do not move as the others say.
pytestmark = pytest.mark.filterwarnings("ignore::cosmofields.consistency.VelocityWarning")

SIDE, DENSITY = 75.0, 3e-3


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    """Positions and velocities of 1500 halos, 3.6e-3 (h/Mpc)^3."""
    rng = np.random.default_rng(3)
    return {"position": rng.uniform(0, SIDE, (1500, 3)), "velocity": rng.normal(0, 300, (1500, 3))}


@pytest.fixture(scope="module")
def halos(columns: dict[str, Any], cosmology: dict[str, float]) -> xr.Dataset:
    return cf.from_arrays(**columns, box_size=SIDE, redshift=0.59, cosmology=cosmology)


@pytest.fixture(scope="module")
def observed(halos: xr.Dataset) -> xr.Dataset:
    tracers = cf.to_redshift_space(cf.select(halos, [DENSITY]), "z")
    return cf.paint(tracers, 32, weighting="number")


@pytest.fixture(scope="module")
def models(
    observed: xr.Dataset, make_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An untrained model of one channel, that of `observed`."""
    return make_models(tmp_path_factory.mktemp("no-mass"), observed)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path) -> None:
    """As if three models shipped: `default`, `no-mass` of one bin, and `sparse`."""
    card = json.loads((models / "density.json").read_text())
    card["trained_for"] |= {"number_density": [1e-4, 3e-4, 1e-3], "weighting": "mass"}
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "density.json").write_text(json.dumps(card))
    folders = {"default": cf.zoo.zoo()["default"], "no-mass": models, "sparse": tmp_path / "sparse"}
    for user in ("zoo", "inference.inputs"):
        monkeypatch.setattr(f"cosmofields.{user}.zoo", lambda: folders)


# --- the way ---


def test_from_arrays_to_fields(observed: xr.Dataset, models: Path, halos: xr.Dataset) -> None:
    n = round(DENSITY * SIDE**3)
    assert observed["halo_density"].attrs["number_density"] == [DENSITY]
    assert float(observed["halo_density"].mean()) == pytest.approx(1, abs=1e-5)
    assert float(observed["shot_noise"].item()) == pytest.approx(SIDE**3 / n)
    fields = cf.predict(observed, models)
    assert set(fields) == {"density", "velocity", "momentum"}
    assert all(np.isfinite(field).all() for field in fields.values())


def test_one_bin_without_masses_is_a_sample_at_random(halos: xr.Dataset) -> None:
    chosen, again, other = (select(halos, [DENSITY], seed=seed) for seed in (1, 1, 2))
    assert chosen.identical(again)
    assert not np.array_equal(chosen["position"], other["position"])
    assert len(np.unique(chosen["position"], axis=0)) == chosen.sizes["halo"] == 1266
    assert (chosen["mass_bin"] == 0).all()
    assert "1266 of 1500 halos, at random" in chosen.attrs["history"]
    # All of them are all of them.
    whole = select(halos, [1500 / SIDE**3])
    assert np.array_equal(
        np.sort(whole["position"], axis=0), np.sort(halos["position"].values, axis=0)
    )


@pytest.fixture
def file_of(
    columns: dict[str, Any], cosmology: dict[str, float], tmp_path: Path
) -> Callable[..., Path]:
    """Write these columns to an HDF5 file."""

    def write(*names: str) -> Path:
        path = tmp_path / "halos.h5"
        with h5py.File(path, "w") as file:
            for name in names:
                file[name] = columns[name].astype(np.float32)
            file.attrs.update(cosmology, box_size=SIDE, redshift=0.59)
        return path

    return write


@pytest.mark.parametrize(
    ("names", "options"),
    [(["position", "velocity"], []), (["position"], ["--redshift-space", "--los", "x"])],
    ids=["real space", "redshift space"],
)
def test_command(
    file_of: Callable[..., Path],
    tmp_path: Path,
    shipped: None,
    names: list[str],
    options: list[str],
) -> None:
    store = tmp_path / "fields.zarr"
    line = ["predict", str(file_of(*names)), "--model", "no-mass", "--out", str(store), *options]
    assert main(line) == 0
    made = open_store(store)
    field = made["observed"]["halo_density"]
    assert dict(field.sizes) == {"mass_bin": 1, "x": 32, "y": 32, "z": 32}
    assert field.attrs["weighting"] == "number"
    assert field.attrs["los"] == (options or "z")[-1]
    assert np.isfinite(made["reconstructed"]["velocity"]).all()
    assert main(line) == 0  # whole: opened, not refused as another catalogue


# --- what is said ---


def test_a_choice_at_random_is_said(halos: xr.Dataset, caplog: pytest.LogCaptureFixture) -> None:
    select(halos, [DENSITY])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        "select: 1266 of 1500 halos, at random, for there are no masses to rank them by: the "
        "catalogue has 0.00356 (h/Mpc)^3, and 0.003 were asked for"
    )
    # Not where hardly any are left out, nor where masses rank them.
    caplog.clear()
    select(halos.isel(halo=slice(1280)), [DENSITY])
    select(halos.assign(mass=("halo", np.geomspace(1e14, 1e12, 1500))), [DENSITY])
    assert not caplog.records


def test_a_box_in_other_units(halos: xr.Dataset, models: Path) -> None:
    small = halos.assign(position=halos["position"] / 1e3).assign_attrs(box_size=SIDE / 1e3)
    with pytest.raises(CatalogError, match="of Gpc/h, multiply positions and box_size by 1000"):
        select(small, [DENSITY])
    with pytest.raises(CatalogError, match="A larger box is needed, or fewer bins"):
        select(halos, [1e-6])
    wide = halos.assign(position=halos["position"] * 1e3).assign_attrs(box_size=SIDE * 1e3)
    painted = cf.paint(wide.assign_attrs(space="redshift", los="z"), 32, weighting="number")
    with pytest.raises(ModelMismatchError, match="if these are not, divide positions and box_size"):
        cf.predict(painted, models)


def test_masses_are_missing(halos: xr.Dataset, shipped: None) -> None:
    said = (
        r"No `mass` in this catalogue; halos are ranked by it into 4 bins \(one bin needs none\). "
        r"A model that ships for such a catalogue: model='no-mass', with "
        r"select\(number_density=\[0.003\]\) and paint\(weighting='number'\) "
        r"\(in the shell: --model no-mass\)"
    )
    with pytest.raises(MissingVariableError, match=said):
        select(halos)


def test_command_without_masses_names_the_model(
    file_of: Callable[..., Path],
    tmp_path: Path,
    shipped: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = file_of("position", "velocity")
    assert main(["predict", str(path), "--out", str(tmp_path / "fields.zarr")]) == 2
    assert "model='no-mass', with select" in capsys.readouterr().err
    assert not (tmp_path / "fields.zarr").exists()


def test_too_few_halos_for_the_default(halos: xr.Dataset, shipped: None) -> None:
    few = halos.isel(halo=slice(500)).assign(mass=("halo", np.geomspace(1e14, 1e12, 500)))
    few_of = r"has 500, that is 0.00119 \(h/Mpc\)\^3 if box_size is in Mpc/h. "
    with pytest.raises(CatalogError, match=few_of + "A model that ships .*model='sparse', with"):
        select(few)
    none = r"None of the models that ship \(default, no-mass, sparse\) is for such"
    with pytest.raises(CatalogError, match=few_of + none):
        select(few.drop_vars("mass"), [DENSITY])
    with pytest.raises(CatalogError, match=none):
        select(few.isel(halo=slice(100)), [1e-3])


def test_nearly_enough_halos(halos: xr.Dataset, models: Path) -> None:
    some = halos.isel(halo=slice(1250))  # 2.963e-3
    said = r"select\(number_density=\[0.002962\]\) is within the 2%.*--number-density 0.002962\)"
    with pytest.raises(CatalogError, match=said):
        select(some, [DENSITY])
    tracers = cf.to_redshift_space(select(some, [0.002962]), "z")
    assert cf.predict_density(cf.paint(tracers, 32, weighting="number"), models).min() > 0


def test_all_halos_unselected(halos: xr.Dataset, models: Path, shipped: None) -> None:
    painted = cf.paint(cf.to_redshift_space(halos, "z"), 32, weighting="number")
    said = r"halos that were not selected \(before paint\(\): select\(number_density=\[0.003\]\)\)"
    with pytest.raises(ModelMismatchError, match=said):
        cf.predict(painted, "no-mass")


def test_the_default_on_one_bin_names_the_other(observed: xr.Dataset, shipped: None) -> None:
    with pytest.raises(ModelMismatchError, match="One that ships fits it: model='no-mass'"):
        cf.predict(observed)
