"""Models over boxes: tiles, symmetries, lines of sight, laziness, and what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from dask.base import collections_to_expr

from cosmofields import engine
from cosmofields.catalog import select, to_redshift_space
from cosmofields.conventions import (
    CosmofieldsError,
    DimensionError,
    MissingAttributeError,
    MissingVariableError,
    ModelMismatchError,
    NotPeriodicError,
    StoreError,
)
from cosmofields.inference import (
    apply_model,
    axes_to_los_last,
    predict,
    predict_density,
    predict_velocity,
    turn,
)
from cosmofields.painting import paint
from cosmofields.unet import FieldModel, build, load_model


def random_model(architecture: str, target: str) -> FieldModel:
    torch.manual_seed(1)
    model = build(architecture, target, n_bins=4, widths=[4, 4, 4])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.05 if "final" in name else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def models(make_models: Callable[..., Path], observed: xr.Dataset, tmp_path_factory: Any) -> Path:
    """Directory of random models whose card fits the box of `observed`."""
    return make_models(tmp_path_factory.mktemp("models"), observed)


def inputs(model: FieldModel, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = rng.gamma(0.3, 2.0, (model.n_in, *shape)).astype(np.float32)
    if model.target == "velocity":
        x[-3:] = 300 * rng.standard_normal((3, *shape))
    return x


@pytest.mark.parametrize("key", [("residual", "velocity"), ("paper", "density")])
def test_tiled_equals_whole_box(key: tuple[str, str]) -> None:
    model = random_model(*key)
    x = inputs(model, (24, 28, 16))  # also a halo wider than the box
    whole = apply_model(model, x, tile=40, precision="float32")
    for tile in (16, 12):
        tiled = apply_model(model, x, tile=tile, precision="float32")
        assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lazy_tiles_equal_eager_ones_and_wait(count_computes: Any, precision: str) -> None:
    model = random_model("residual", "velocity")
    x = inputs(model, (32, 16, 20))
    lazy = da.from_array(x, chunks=(1, 16, 16, 16))
    with count_computes() as counter:
        out = apply_model(model, lazy, tile=16, precision=precision)
        assert counter.total == 0
    assert isinstance(out, da.Array)
    assert out.shape == (3, 32, 16, 20)
    eager = apply_model(model, x, tile=16, precision=precision)
    np.testing.assert_array_equal(out.compute(scheduler="threads"), eager)


def test_lazy_result_comes_in_whole_chunks_and_one_model() -> None:
    model = random_model("residual", "density")
    lazy = da.zeros((model.n_in, 192, 64, 64), chunks=(1, 64, 64, 64), dtype=np.float32)
    out = apply_model(model, lazy, tile=128)
    assert out.chunks == ((1,), (64, 64, 64), (64,), (64,))
    keys = [str(key) for key in dict(out.dask)]
    assert sum("ResidualDensity" in key for key in keys) == 1
    assert sum("density-network" in key for key in keys) == 2


def test_memory_of_the_configuration_decides_the_tiles(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("residual", "density")
    lazy = da.zeros((model.n_in, 512, 64, 64), chunks=(1, 64, 64, 64), dtype=np.float32)
    with caplog.at_level("INFO", "cosmofields"):
        for memory in ("2 GB", "500 MB"):
            with dask.config.set({"cosmofields.memory": memory}):
                apply_model(model, lazy)
    large, small = (r.getMessage() for r in caplog.records if "network" in r.getMessage())
    tiles = [int(message.split(": ")[1].split(" tiles")[0]) for message in (large, small)]
    assert tiles[0] < tiles[1]
    with (
        dask.config.set({"cosmofields.memory": "1 MB"}),
        pytest.raises(CosmofieldsError, match=r"64 x 64 x 64 cells.*cosmofields\.memory"),
    ):
        apply_model(model, lazy)


def test_tiles_on_gpus_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "resources", lambda device: dask.annotate(resources={"GPU": 1}))
    model = random_model("residual", "density")
    out = apply_model(
        model, da.zeros((model.n_in, 64, 64, 64), chunks=(1, 64, 64, 64), dtype=np.float32)
    )
    # What the scheduler is told of the graph that it gets.
    with dask.config.set({"optimization.fuse.active": False}):
        told = collections_to_expr([out]).optimize().__dask_annotations__()["resources"]
    assert {value["GPU"] for value in told.values()} == {1}
    assert {str(key[0]).rsplit("-", 1)[0] for key in told} == {"density-network"}


# --- on two processes ---


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="2GB"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _threads_of_a_pass(model: FieldModel, x: np.ndarray) -> int:
    engine.run_tile(model, x, 22, "cpu", "float32")
    return torch.get_num_threads()


def _dies_once(mark: str) -> None:
    """On a worker: the first tile of all kills its process."""
    run = engine.run_tile

    def killed(*args: Any) -> Any:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return run(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    engine.run_tile = killed


def test_workers_give_the_same_and_survive_a_kill(client: Any, tmp_path: Path) -> None:
    model = random_model("residual", "velocity")
    x = inputs(model, (32, 16, 48))
    # Two workers of one thread on two cores do not run four.
    padded = np.ones((model.n_in, 48, 48, 48), np.float32)
    assert client.submit(_threads_of_a_pass, model, padded).result() == 1
    lazy = da.from_array(x, chunks=(4, 16, 16, 16))
    options = {"tile": 16, "precision": "float32"}
    here = apply_model(model, x, **options)
    there = apply_model(model, lazy, **options).compute()
    assert np.abs(there - here).max() < 1e-6 * np.abs(here).max()
    mark = tmp_path / "killed"
    client.run(_dies_once, str(mark))
    after = apply_model(model, lazy, **options).compute()
    assert mark.exists()
    np.testing.assert_array_equal(after, there)


def test_shift_by_the_coarsest_cell_shifts_the_output() -> None:
    model = random_model("residual", "velocity")
    x = inputs(model, (16, 16, 16))
    shift = (model.coarsest, -2 * model.coarsest, 3 * model.coarsest)
    moved = apply_model(model, np.roll(x, shift, (1, 2, 3)))
    np.testing.assert_array_equal(moved, np.roll(apply_model(model, x), shift, (1, 2, 3)))


@pytest.mark.parametrize("los", ["x", "y", "z"])
def test_turning_to_the_line_of_sight_is_a_rotation(los: str) -> None:
    order = axes_to_los_last(los)
    assert "xyz"[order[2]] == los
    matrix = np.eye(3)[list(order)]
    assert np.linalg.det(matrix) == 1
    # A vector field (here: the position itself) keeps pointing where it pointed.
    nodes = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"))
    turned = turn(nodes, order, 3)
    np.testing.assert_array_equal(turned, nodes)
    back = turn(turn(np.arange(5 * 24.0).reshape(5, 2, 3, 4), order, 3), np.argsort(order), 3)
    np.testing.assert_array_equal(back, np.arange(5 * 24.0).reshape(5, 2, 3, 4))


def test_any_line_of_sight_gives_the_same_fields(halos: xr.Dataset, models: Path) -> None:
    # The same universe with its axes renamed cyclically, observed along the renamed axis.
    reference = predict(paint(to_redshift_space(select(halos), "z"), 16), models)
    for los in ("x", "y"):
        order = axes_to_los_last(los)
        named = halos.copy()
        for name in ("position", "velocity"):
            values = np.empty_like(halos[name].values)
            values[:, list(order)] = halos[name].values
            named[name] = halos[name].copy(data=values)
        other = predict(paint(to_redshift_space(select(named), los), 16), models)
        velocity = turn(other["velocity"].values, order, 3)
        density = turn(other["density"].values[None], order, 0)[0]
        np.testing.assert_allclose(velocity, reference["velocity"].values, rtol=2e-3, atol=0.5)
        np.testing.assert_allclose(density, reference["density"].values, rtol=2e-3, atol=1e-3)


def test_what_is_missing_is_said_before_any_network_runs(
    observed: xr.Dataset, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any) -> None:
        raise AssertionError("a network ran first")

    monkeypatch.setattr(engine, "run_tile", run)
    for name in ("density.json", "density.safetensors"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    for call in (predict, predict_velocity):
        with pytest.raises(StoreError, match="No velocity model"):
            call(observed, tmp_path)
    bare = {key: observed.attrs["cosmology"][key] for key in ("Omega_m", "h")}
    unknown = observed.assign_attrs(cosmology=bare)
    unknown["halo_density"] = observed["halo_density"].assign_attrs(cosmology=bare)
    for call in (predict, predict_velocity):
        with pytest.raises(MissingAttributeError, match="Omega_b, n_s, sigma8"):
            call(unknown, models)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_result_says_its_precision(observed: xr.Dataset, models: Path, precision: str) -> None:
    fields = predict(observed, models, precision=precision)
    for name in ("density", "velocity"):
        assert fields[name].attrs["precision"] == precision
    with pytest.raises(CosmofieldsError, match="precision='half'"):
        predict(observed, models, precision="half")


def test_predict_makes_what_is_missing(observed: xr.Dataset, models: Path) -> None:
    before = observed.copy(deep=True)
    fields = predict(observed, models)
    assert list(fields) == ["density", "velocity", "momentum"]
    xr.testing.assert_identical(observed, before)
    density = predict_density(observed, models)
    velocity = predict_velocity(observed, models)
    np.testing.assert_array_equal(fields["density"], density)
    np.testing.assert_allclose(fields["velocity"], velocity, rtol=1e-6)
    momentum = (density * velocity).transpose(*velocity.dims)
    np.testing.assert_allclose(fields["momentum"], momentum, rtol=1e-6)
    for name, units in (("density", "1"), ("velocity", "km/s"), ("momentum", "km/s")):
        assert fields[name].dtype == np.float32
        assert fields[name].attrs["units"] == units
        assert fields[name].attrs["space"] == "real"
        assert fields[name].attrs["box_size"] == 100
    for name in ("density", "velocity"):
        card = load_model(name, models)[1]
        made = fields[name].attrs
        assert (made["model"], made["weights_digest"]) == (card["name"], card["weights_digest"])
        assert card["name"] == f"{models.name} {name}"
        assert f"{card['name']} (weights {card['weights_digest']})" in fields.attrs["history"]
    factors = [fields[name].attrs["weights_digest"] for name in ("density", "velocity")]
    assert fields["momentum"].attrs["weights_digest"] == " x ".join(factors)
    # What is there already is used.
    given = observed.assign(density=density + 1, linear_velocity=0 * velocity)
    assert not np.allclose(predict_velocity(given, models), velocity)


def test_predict_is_lazy_for_lazy_input(
    observed: xr.Dataset, models: Path, count_computes: Any
) -> None:
    chunked = observed.chunk(x=8, y=16, z=16, mass_bin=1)
    with count_computes() as counter:
        fields = predict(chunked, models)
        assert counter.total == 0
    assert all(fields[name].chunks for name in fields)
    xr.testing.assert_allclose(fields.compute(), predict(observed, models), rtol=1e-4, atol=1e-2)


# --- what is refused ---


def test_another_cell_size_density_and_redshift(tracers: xr.Dataset, models: Path) -> None:
    with pytest.raises(ModelMismatchError, match=r"cell size 12.5.*trained for 6.25.*n_grid = 16"):
        predict(paint(tracers, 8), models)
    other = select(tracers.drop_vars("mass_bin"), (1e-4, 1e-3, 1.5e-3, 2e-3))
    with pytest.raises(ModelMismatchError, match=r"number densities.*0.002\].*allow_mismatch"):
        predict(paint(other, 16), models)
    late = paint(tracers.assign_attrs(redshift=0.0), 16)
    with pytest.raises(
        ModelMismatchError, match=r"redshift 0, trained for 0.59 \(within 0.05\).*linear_theory\(\)"
    ):
        predict(late, models)
    heavy = {**tracers.attrs["cosmology"], "Omega_m": 0.4}
    with pytest.raises(ModelMismatchError, match="f = .* in the model's universe"):
        predict(paint(tracers.assign_attrs(cosmology=heavy), 16), models)
    number = paint(tracers, 16, weighting="number")
    with pytest.raises(ModelMismatchError, match="weighting 'number', trained for 'mass'"):
        predict_density(number, models)
    assert predict_density(number, models, allow_mismatch=True).shape == (16, 16, 16)


def test_every_difference_is_named_at_once(tracers: xr.Dataset, models: Path) -> None:
    wrong = paint(tracers.assign_attrs(redshift=0.0), 8, weighting="number")
    with pytest.raises(ModelMismatchError) as caught:
        predict(wrong, models)
    for part in ("cell size", "redshift", "weighting"):
        assert part in str(caught.value)


def test_real_space_halos(halos: xr.Dataset, models: Path) -> None:
    with pytest.raises(ModelMismatchError, match="space 'real', trained for 'redshift'"):
        predict(paint(select(halos), 16), models)


def test_a_cut_box(observed: xr.Dataset, models: Path) -> None:
    with pytest.raises(NotPeriodicError, match="8 nodes spanning"):
        predict(observed.isel(x=slice(8)), models)


@pytest.mark.parametrize("key", ["box_size", "redshift", "cosmology", "los"])
def test_missing_facts(observed: xr.Dataset, models: Path, key: str) -> None:
    bare = observed.copy()
    bare["halo_density"] = observed["halo_density"].copy()
    for obj in (bare, bare["halo_density"]):
        obj.attrs = {name: value for name, value in observed.attrs.items() if name != key}
    bare["halo_density"].attrs.update(
        {
            name: value
            for name, value in observed["halo_density"].attrs.items()
            if name not in (key, *observed.attrs)
        }
    )
    with pytest.raises(MissingAttributeError, match=f"No `{key}`"):
        predict(bare, models)


def test_no_halo_density(observed: xr.Dataset, models: Path) -> None:
    with pytest.raises(MissingVariableError, match="No `halo_density`.*paint"):
        predict(observed.drop_vars("halo_density"), models)


def test_wrong_dims(observed: xr.Dataset, models: Path) -> None:
    with pytest.raises(DimensionError, match=r"expected \('mass_bin', 'x', 'y', 'z'\)"):
        predict(observed.isel(mass_bin=0), models)


def test_density_on_another_grid(observed: xr.Dataset, tracers: xr.Dataset, models: Path) -> None:
    # xarray fills what the coarse grid lacks with NaN; that must not become a velocity.
    coarse = predict_density(paint(tracers, 8), models, allow_mismatch=True)
    with pytest.raises(CosmofieldsError, match="NaN or infinite"):
        predict_velocity(observed.assign(density=coarse), models)


def test_grid_that_the_levels_do_not_divide() -> None:
    model = random_model("residual", "density")
    with pytest.raises(DimensionError, match="multiples of 4.*n_grid = 20, 16, 16"):
        apply_model(model, inputs(model, (19, 16, 16)))
    with pytest.raises(DimensionError, match="tile=0"):
        apply_model(model, inputs(model, (16, 16, 16)), tile=0)
    with pytest.raises(DimensionError, match="3 input channels; the density model takes 7"):
        apply_model(model, inputs(model, (16, 16, 16))[:3])


def test_double_precision_input_is_no_error() -> None:
    model = random_model("residual", "density")
    x = inputs(model, (16, 16, 16))
    np.testing.assert_array_equal(apply_model(model, x.astype(np.float64)), apply_model(model, x))


def test_device() -> None:
    model = random_model("residual", "density")
    with pytest.raises(CosmofieldsError, match="device='tpuu'"):
        apply_model(model, inputs(model, (8, 8, 8)), device="tpuu")
    if not torch.cuda.is_available():
        with pytest.raises(CosmofieldsError, match="no CUDA GPU"):
            apply_model(model, inputs(model, (8, 8, 8)), device="cuda")
