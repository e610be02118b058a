"""Catalogue to fields in one store: equal to the parts, resumable, and bit-equal after deaths."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import pytest
import xarray as xr
import zarr
from rich.console import Console

import cosmofields as cf
from cosmofields import engine, stages
from cosmofields.cli import main
from cosmofields.conventions import (
    CatalogError,
    MissingAttributeError,
    MissingVariableError,
    ModelMismatchError,
    StoreError,
)
from cosmofields.reconstruction import jobs, reconstruct, whole
from cosmofields.store import describe
from cosmofields.unet import cited, load_cards, load_model, write_card

# Halos and weights are made up: the ones do not move as the others say.
pytestmark = pytest.mark.filterwarnings("ignore::cosmofields.consistency.VelocityWarning")

N_GRID = 96  # more than one chunk, and so more than one tile, a side
FIELDS = ("density", "velocity", "momentum")
OPTIONS: dict[str, Any] = {"n_grid": N_GRID, "precision": "float32", "progress": False}
EVERYTHING = {"restore_power": True, "uncertainty": True}


@pytest.fixture(scope="module")
def models(make_models: Callable[..., Path], tracers: xr.Dataset, tmp_path_factory: Any) -> Path:
    return make_models(tmp_path_factory.mktemp("models"), cf.paint(tracers, N_GRID))


@pytest.fixture(scope="module")
def complete(models: Path, add_network: Callable[..., None], tmp_path_factory: Any) -> Path:
    """The same, with a network for the momentum, and with tables."""
    folder = shutil.copytree(models, tmp_path_factory.mktemp("complete") / "models")
    add_network(folder, "residual", "momentum")

    def power(*kinds: str) -> dict[str, Any]:
        ratio = {kind: [[0.9, 0.8 - 0.1 * i]] for i, kind in enumerate(kinds)}
        return {
            "k": [0.1, 0.5],
            "power_ratio": ratio,
            "correlation": {kind: [[1.0, 0.9]] for kind in kinds},
        }

    error: dict[str, Any] = {
        "density": {"density": [0.5, 2.0], "log_error": [[0.5, 0.6]]},
        "velocity": {
            "smoothing": 4.7,
            "density": [0.5, 2.0],
            "error": {"across": [[30.0, 40.0]], "along": [[35.0, 50.0]]},
        },
    }
    for target, card in load_cards(folder).items():
        kinds = ["all"] if target == "density" else ["across", "along"]
        table = {"symmetries": [1], "restoration": {target: power(*kinds)}}
        if target in error:
            table["error"] = error[target]
        if target == "density":
            table["mean"] = {"density": [0.5, 2.0], "ratio": [[0.9, 1.2]]}
        write_card({**card, "calibration": table}, folder)
    return folder


@pytest.fixture(scope="module")
def everything(complete: Path, small: int, tracers: xr.Dataset, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("everything") / "a.zarr"
    reconstruct(tracers, path, model=complete, memory=small, **OPTIONS, **EVERYTHING)
    return path


@pytest.fixture(scope="module")
def small(models: Path) -> int:
    """Bytes that make both networks work in tiles."""
    networks = [load_model(target, models)[0] for target in ("density", "velocity")]
    shape = (N_GRID,) * 3
    least = max(engine.plan(net, shape, 0, "float32", tile=64).nbytes for net in networks)
    for network in networks:
        assert len(engine.plan(network, shape, least, "float32").windows) > 1
    return least


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "plan" not in request.node.name:
        monkeypatch.setattr(engine, "seconds_per_cell", lambda *args: 1e-6)


@pytest.fixture(scope="module")
def undisturbed(models: Path, small: int, tracers: xr.Dataset, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    reconstruct(tracers, path, model=models, memory=small, **OPTIONS)
    return path


def assert_same_bits(path: Path, other: Path) -> None:
    one, two = cf.open_store(path), cf.open_store(other)
    assert one.groups == two.groups
    for node in one.subtree:
        for name, var in node.to_dataset().variables.items():
            np.testing.assert_array_equal(
                var, two[node.path].variables[name], f"{node.path} {name}"
            )


def test_equals_the_calls_that_it_stands_for(
    undisturbed: Path, models: Path, tracers: xr.Dataset
) -> None:
    tree = cf.open_store(undisturbed)
    assert set(tree.children) == {"halos", "observed", "linear", "reconstructed"}
    observed = cf.paint(tracers, N_GRID)
    fields = observed.recon.predict(models, precision="float32")
    linear = observed.recon.linear_theory(bias=[3.0, 1.5, 1.2, 1.1])
    pairs = [
        (tree["observed/halo_density"], observed.halo_density),
        *((tree[f"reconstructed/{name}"], fields[name]) for name in FIELDS),
        *((tree[f"linear/{name}"], linear[name]) for name in ("density", "velocity")),
    ]
    for got, expected in pairs:
        scale = float(expected.std())
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * scale, err_msg=got.name)
        assert got.dims == expected.dims
        assert got.attrs["units"] == expected.attrs["units"]
        xr.testing.assert_equal(got.coords["x"], expected.coords["x"])


def test_the_store_says_what_made_it_and_anyone_opens_it(undisturbed: Path, models: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(undisturbed, group="reconstructed")
    assert ds.density.attrs["precision"] == "float32"
    assert ds.attrs["space"] == "real"
    velocity = ds.velocity.attrs
    said = f"{models.name} velocity (weights {velocity['weights_digest']})"
    assert said == cited(load_model("velocity", models)[1])
    assert said in ds.attrs["history"]
    assert velocity["model"] == f"{models.name} velocity"
    assert describe(undisturbed).count(f"reconstruction by {models.name} density, ") == 1
    assert ds.density.chunks == ((64, 32),) * 3
    assert "state         whole" in describe(undisturbed)


def test_a_whole_one_is_opened_and_nothing_is_written(
    undisturbed: Path, models: Path, tracers: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "run", None)
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    # Whatever the memory is now: what is there was made by its own plan.
    tree = tracers.recon.reconstruct(undisturbed, model=models, **OPTIONS)
    assert tree["reconstructed"].density.shape == (N_GRID,) * 3
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}


@pytest.mark.parametrize("stage", ["observed", "linear", "density", "velocity"])
def test_a_run_that_dies_goes_on(
    stage: str,
    small: int,
    undisturbed: Path,
    models: Path,
    tracers: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = {"observed": "observed/halo_density", "linear": "linear/velocity"}.get(
        stage, f"reconstructed/{stage}"
    )
    path = tmp_path / "a.zarr"
    options = {"model": models, "memory": small, **OPTIONS}
    left, done = dies_and_goes_on(name, tracers, path, monkeypatch, **options)
    assert_same_bits(path, undisturbed)
    assert done == left
    # The first tile of two or more was whole when the second died.
    assert stage not in left or left[stage] > 0
    assert stage != "velocity" or left["density"] == 0


@pytest.mark.parametrize("stage", ["momentum", "errors", "restored"])
def test_a_run_that_dies_in_what_is_asked_for_goes_on(
    stage: str,
    small: int,
    everything: Path,
    complete: Path,
    tracers: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = {"errors": "reconstructed/velocity_error", "restored": "restored/velocity"}.get(
        stage, f"reconstructed/{stage}"
    )
    path = tmp_path / "a.zarr"
    options = {"model": complete, "memory": small, **OPTIONS, **EVERYTHING}
    left, done = dies_and_goes_on(name, tracers, path, monkeypatch, **options)
    assert_same_bits(path, everything)
    assert done == left
    assert left["density"] == left["velocity"] == 0
    assert (left["momentum"] > 0) == (stage == "momentum")


def dies_and_goes_on(
    name: str, source: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """Tiles that were left when the second write to an array died, and that were done again."""
    write = stages.Target.__setitem__
    written = []

    def dies(self: stages.Target, window: Any, values: Any) -> None:
        if self.name == name:
            written.append(window)
            if len(written) == 2:
                raise KeyboardInterrupt
        write(self, window, values)

    with monkeypatch.context() as patch:
        patch.setattr(stages.Target, "__setitem__", dies)
        # One task at a time: it is known which are done.
        with dask.config.set(scheduler="synchronous"), pytest.raises(KeyboardInterrupt):
            reconstruct(source, path, **options)
    with pytest.raises(StoreError, match="not whole"):
        cf.open_store(path)

    tiles = []
    run_tile = engine.run_tile

    def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
        tiles.append(model.target)
        return run_tile(model, *args, **kwargs)

    monkeypatch.setattr(engine, "run_tile", counted)
    targets = [target for target in FIELDS if target in zarr.open_group(path)["ledger"]]
    left = {target: len(stages.pending(path, target)) for target in targets}
    # On a machine with more memory the run goes on with the tiles with which it began.
    del options["memory"]
    reconstruct(source, path, **options)
    return left, {target: tiles.count(target) for target in targets}


def test_a_network_for_the_momentum_has_a_stage(
    everything: Path, complete: Path, tracers: xr.Dataset
) -> None:
    tree = cf.open_store(everything)
    observed = cf.paint(tracers, N_GRID)
    options: dict[str, Any] = {"precision": "float32"}
    mean = observed.recon.predict(complete, uncertainty=True, **options)
    restored = observed.recon.predict(complete, restore_power=True, **options)
    for group, expected in (("reconstructed", mean), ("restored", restored)):
        assert set(tree[group].data_vars) == set(expected)
        for name, field in expected.items():
            scale = float(field.std())
            got = tree[group][name]
            np.testing.assert_allclose(got, field, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
            kept = ["recalibrated", "estimator", "precision", "symmetries"]
            kept += ["model", "weights_digest"]
            assert [got.attrs.get(key) for key in kept] == [field.attrs.get(key) for key in kept]
    assert tree["reconstructed"].momentum.attrs["model"] == "models momentum"
    product = tree["reconstructed"].density * tree["reconstructed"].velocity
    assert float(abs(tree["reconstructed"].momentum - product).max()) > 10


def test_linear_fields_that_the_paper_sees(
    models: Path, add_network: Callable[..., None], tracers: xr.Dataset, tmp_path: Path
) -> None:
    # Its velocity and momentum networks see eqs. 2 and 3, each by the bias of its own card.
    folder = shutil.copytree(models, tmp_path / "models")
    for target, bias in (("density", 1.5), ("velocity", 1.5), ("momentum", 1.4)):
        add_network(folder, "paper", target, linear_bias={"power_ratio": bias})
    options = {"precision": "float32", "allow_mismatch": True}
    path = tmp_path / "a.zarr"
    tree = reconstruct(tracers, path, model=folder, n_grid=32, progress=False, **options)
    observed = cf.paint(tracers, 32)
    expected = observed.recon.predict(folder, **options)
    for name in FIELDS:
        scale = float(expected[name].std())
        got = tree["reconstructed"][name]
        np.testing.assert_allclose(got, expected[name], atol=1e-4 * scale, err_msg=name)
    for name, bias in (("velocity", 1.5), ("momentum", 1.4)):
        seen = cf.linear_theory(observed, method="paper", bias=bias)[name]
        got = tree["linear"][name]
        np.testing.assert_allclose(got, seen, atol=1e-5 * float(seen.std()), err_msg=name)


def test_other_tables_are_another_reconstruction(
    everything: Path, complete: Path, tracers: xr.Dataset, tmp_path: Path
) -> None:
    other = shutil.copytree(complete, tmp_path / "models")
    card = load_cards(other)["density"]
    card["calibration"]["mean"]["ratio"] = [[1.0, 1.3]]
    write_card(card, other)
    with pytest.raises(StoreError, match="recalibration"):
        reconstruct(tracers, everything, model=other, **OPTIONS, **EVERYTHING)


def test_the_plan_comes_first(
    small: int, models: Path, tracers: xr.Dataset, tmp_path: Path
) -> None:
    said = StringIO()
    console = Console(file=said, width=120)
    reconstruct(
        tracers, tmp_path / "a.zarr", model=models, memory=small, console=console,
        **{**OPTIONS, "n_grid": 32, "allow_mismatch": True},
    )  # fmt: skip
    text = said.getvalue()
    plan, _, rest = text.partition("template")
    plan = " ".join(plan.split())  # its title takes lines as the table is wide
    for word in (
        "32 x 32 x 32 cells",
        "observed",
        "linear",
        "density",
        "velocity",
        f"{small / 1e9:.3g} GB",
    ):
        assert word in plan
    for stage in ("observed", "linear", "density", "velocity"):
        assert f"s  {stage}" in rest


@pytest.mark.parametrize("least", [32**3, 32**3 + 1])
def test_the_plan_of_a_small_box_is_made_without_probes(
    least: int,
    models: Path,
    tracers: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = []
    monkeypatch.setattr(jobs, "WORTH_PROBING", least)
    monkeypatch.setattr(jobs, "_probe", lambda: probed.append("disk") or (1e-3, 1e-3))
    monkeypatch.setattr(engine, "seconds_per_cell", lambda *args: probed.append("tile") or 1.0)
    said = StringIO()
    monkeypatch.setattr(whole, "do", lambda *args: None)
    monkeypatch.setattr(stages, "close", lambda *args: 1 / 0)
    options = {**OPTIONS, "n_grid": 32, "allow_mismatch": True, "progress": True}
    with pytest.raises(ZeroDivisionError):
        reconstruct(
            tracers,
            tmp_path / "a.zarr",
            model=models,
            console=Console(file=said, width=120),
            **options,
        )
    plan, _, _ = said.getvalue().partition("template")
    assert "velocity" in plan
    assert probed == (["disk", "tile", "tile"] if least == 32**3 else [])
    assert ("time, about" in plan) == (least == 32**3)
    assert (" min" in plan) == (least == 32**3)


def test_velocities_do_not_decide(
    undisturbed: Path, models: Path, small: int, tracers: xr.Dataset
) -> None:
    """A column that was corrected makes no other fields, once the positions are shifted."""
    other = tracers.assign(velocity=tracers["velocity"] * 1.1)
    tree = reconstruct(other, undisturbed, model=models, memory=small, **OPTIONS)
    np.testing.assert_array_equal(tree["halos/velocity"], tracers["velocity"])


def test_painted_fields_will_do(
    small: int, undisturbed: Path, models: Path, tracers: xr.Dataset, tmp_path: Path
) -> None:
    observed = cf.open_store(undisturbed)["observed"].to_dataset()
    path = tmp_path / "a.zarr"
    observed.recon.reconstruct(
        path, model=models, memory=small, precision="float32", progress=False
    )
    for name in FIELDS:
        np.testing.assert_array_equal(
            cf.open_store(path)[f"reconstructed/{name}"],
            cf.open_store(undisturbed)[f"reconstructed/{name}"],
        )


def test_default_grid_and_bins_are_those_of_the_model(
    small: int, models: Path, halos: xr.Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    catalog = halos.recon.to_redshift_space(los="z")
    assert "mass_bin" not in catalog
    reconstruct(catalog, path, model=models, memory=small, **{**OPTIONS, "n_grid": None})
    assert_same_bits(path, undisturbed)


def test_what_cannot_be_reconstructed_leaves_nothing(
    models: Path, halos: xr.Dataset, tracers: xr.Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (halos, {}, CatalogError, r"to_redshift_space\(los='z'\) first"),
        (tracers, {"n_grid": 32}, ModelMismatchError, "cell size"),
        (tracers, {"memory": "lots"}, cf.CosmofieldsError, "'6 GB'"),
        (tracers, {"precision": "half"}, cf.CosmofieldsError, "precision='half'"),
        (tracers, {"model": tmp_path}, StoreError, "No density model"),
        (
            tracers.assign_attrs(cosmology={"Omega_m": 0.268, "h": 0.71}),
            {"allow_mismatch": True},
            MissingAttributeError,
            "sigma8",
        ),
    ]
    for source, options, error, match in cases:
        with pytest.raises(error, match=match):
            reconstruct(source, path, **{**OPTIONS, "model": models, **options})
    assert not path.exists()


def test_another_reconstruction_is_not_overwritten(
    models: Path, undisturbed: Path, halos: xr.Dataset, tracers: xr.Dataset
) -> None:
    # The same masses elsewhere: another box.
    moved = tracers.assign(position=tracers.position[:, ::-1].assign_coords(tracers.coords))
    with pytest.raises(StoreError, match="tracers"):
        reconstruct(moved, undisturbed, model=models, **OPTIONS)
    along_x = halos.recon.select().recon.to_redshift_space(los="x")
    with pytest.raises(StoreError, match="los is 'z' there, 'x' in this call"):
        reconstruct(along_x, undisturbed, model=models, **OPTIONS)


def test_dims_of_painted_fields_may_come_in_any_order(
    undisturbed: Path, models: Path, small: int, tmp_path: Path
) -> None:
    observed = cf.open_store(undisturbed)["observed"].to_dataset().load()
    turned = observed.transpose("z", "mass_bin", "y", "x")
    options = {"model": models, "memory": small, "precision": "float32", "progress": False}
    reconstruct(turned, tmp_path / "a.zarr", **options)
    np.testing.assert_array_equal(
        cf.open_store(tmp_path / "a.zarr")["reconstructed/velocity"],
        cf.open_store(undisturbed)["reconstructed/velocity"],
    )
    with pytest.raises(MissingVariableError, match="`share`"):
        reconstruct(observed.drop_vars("share"), tmp_path / "b.zarr", **options)


def test_what_was_begun_says_how_much_memory_it_needs(
    models: Path, small: int, tracers: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "run", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reconstruct(tracers, path, model=models, memory="4 GB", **OPTIONS)
    with pytest.raises(StoreError, match="was begun with tiles of 96 x 96 x 96 cells"):
        reconstruct(tracers, path, model=models, memory=small, **OPTIONS)


# --- the command ---


def test_command(
    small: int,
    models: Path,
    undisturbed: Path,
    halos: xr.Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    catalog, out = tmp_path / "halos.zarr", tmp_path / "a.zarr"
    cf.write_store(halos, catalog)
    arguments = ["predict", str(catalog), "--out", str(out), "--model", str(models)]
    arguments += ["--memory", str(small), "--precision", "float32"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "velocity" in said.err
    assert_same_bits(out, undisturbed)
    assert main([*arguments, "--los", "x"]) == 2
    assert "los is 'z' there, 'x' in this call" in capsys.readouterr().err
    along_x = tmp_path / "x.zarr"
    cf.write_store(halos.recon.to_redshift_space(los="x"), along_x)
    again = ["predict", str(along_x), *arguments[2:], "--redshift-space"]
    assert main(again) == 2
    assert "los is 'z' there, 'x' in this call" in capsys.readouterr().err
    assert main([*again, "--los", "z"]) == 2
    assert "in redshift space along x" in capsys.readouterr().err
    assert main([*arguments, "--scheduler", str(tmp_path / "none.json")]) == 2
    assert "dask scheduler --scheduler-file" in capsys.readouterr().err


# --- on a cluster ---


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="2GB", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


class DiesOnce(distributed.WorkerPlugin):
    """Worker plugin: the first write of all to each array kills its process."""

    name = "dies-once"

    def __init__(self, flags: dict[str, str]) -> None:
        self.flags = flags

    def setup(self, worker: Any) -> None:
        write = stages.Target.__setitem__

        def killed(target: stages.Target, window: Any, values: Any) -> None:
            try:
                os.close(os.open(self.flags[target.name], os.O_CREAT | os.O_EXCL))
            except (KeyError, FileExistsError):
                write(target, window, values)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

        stages.Target.__setitem__ = killed  # type: ignore[method-assign]


def test_workers_that_are_killed_in_every_stage(
    client: Any, undisturbed: Path, models: Path, small: int, tracers: xr.Dataset, tmp_path: Path
) -> None:
    options = {**OPTIONS, "model": models, "memory": small}
    reconstruct(tracers, tmp_path / "whole.zarr", **options)
    names = ["observed/halo_density", "linear/velocity"]
    names += ["reconstructed/density", "reconstructed/velocity"]
    flags = {name: str(tmp_path / name.replace("/", "-")) for name in names}
    client.register_plugin(DiesOnce(flags))
    path = tmp_path / "a.zarr"
    reconstruct(tracers, path, **options)
    assert all(Path(flag).exists() for flag in flags.values())
    assert_same_bits(path, tmp_path / "whole.zarr")
    # Threads of a network may add up in another order than one.
    for name in FIELDS:
        here, there = (cf.open_store(p)[f"reconstructed/{name}"] for p in (undisturbed, path))
        scale = float(here.std())
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5 * scale)
