"""The same calls on the workers of a cluster: a local one, and Slurm's (tests/slurm/run.sh)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import cosmofields as cf

# Halos and weights are made up: the ones do not move as the others say.
pytestmark = pytest.mark.filterwarnings("ignore::cosmofields.consistency.VelocityWarning")

distributed = pytest.importorskip("distributed")

N_GRID = 32
BIAS = (3.0, 1.5, 1.2, 1.1)
ON_SLURM = os.environ.get("COSMOFIELDS_SLURM") == "1"
slurm_only = pytest.mark.skipif(
    not ON_SLURM, reason="no Slurm cluster (COSMOFIELDS_SLURM=1): tests/slurm/run.sh starts one"
)
SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "reconstruct.sbatch"


@pytest.fixture(scope="module", params=["local", pytest.param("slurm", marks=slurm_only)])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Two workers of one thread, on which dask computes by default."""
    scratch = tmp_path_factory.mktemp("workers")
    if request.param == "local":
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit="2GB",
            dashboard_address=":0",
            local_directory=scratch,
        )
    else:
        cluster = slurm_cluster(scratch)
    with cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=120)
        yield client


def slurm_cluster(scratch: Path) -> Any:
    """Two jobs of one core."""
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(
        queue="short",
        cores=1,
        processes=1,
        memory="2GB",
        walltime="00:20:00",
        interface="lo",
        local_directory=str(scratch),
        log_directory=str(scratch),
        scheduler_options={"dashboard_address": ":0"},
    )
    cluster.scale(jobs=2)
    return cluster


@pytest.fixture(scope="module")
def catalog(halos: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`halos` in an HDF5 file."""
    path = tmp_path_factory.mktemp("catalog") / "halos.h5"
    with h5py.File(path, "w") as file:
        for name in ("position", "velocity", "mass"):
            file[f"halos/{name.title()}"] = halos[name].values
        facts = {key: halos.attrs[key] for key in ("box_size", "redshift")}
        file.attrs.update({**facts, **halos.attrs["cosmology"]})
    return path


@pytest.fixture(scope="module")
def models(make_models: Callable[..., Path], tracers: xr.Dataset, tmp_path_factory: Any) -> Path:
    with dask.config.set(scheduler="threads"):
        return make_models(tmp_path_factory.mktemp("models"), cf.paint(tracers, N_GRID))


@pytest.fixture(scope="module")
def on_threads(catalog: Path, models: Path) -> Callable[[Any], xr.Dataset]:
    """What the threads of this process find, once for each stage."""

    def compute(stage: Any) -> xr.Dataset:
        with dask.config.set(scheduler="threads"):
            lazy = stage(catalog, models)
            assert all(lazy[name].chunks for name in lazy)
            return lazy.compute()

    return lru_cache(compute)


@pytest.fixture(scope="module")
def undisturbed(client: Any, catalog: Path, models: Path) -> Callable[[Any], xr.Dataset]:
    """What the workers find, once for each stage."""
    return lru_cache(lambda stage: stage(catalog, models, lambda block: block).compute())


def lazy_catalog(path: Path) -> xr.Dataset:
    """Tracers in redshift space, in five chunks."""
    return cf.to_redshift_space(cf.select(cf.open_catalog(path, rows=1000)))


def lazy_fields(observed: xr.Dataset) -> xr.Dataset:
    """Painted fields in two chunks a bin."""
    return observed.chunk(mass_bin=1, x=16)


def painted(catalog: Path, _: Path, disturb: Any = None) -> xr.Dataset:
    tracers = lazy_catalog(catalog)
    if disturb:
        tracers["position"] = disturbed(tracers["position"], disturb)
    return cf.paint(tracers, N_GRID)


def flowing(catalog: Path, _: Path, disturb: Any = None) -> xr.Dataset:
    return cf.linear_velocity(inputs(catalog, disturb), bias=BIAS).to_dataset(name="velocity")


def predicted(catalog: Path, models: Path, disturb: Any = None) -> xr.Dataset:
    return cf.predict(inputs(catalog, disturb), models, precision="float32")


def inputs(catalog: Path, disturb: Any) -> xr.Dataset:
    with dask.config.set(scheduler="threads"):
        observed = lazy_fields(painted(catalog, catalog).compute())
    if disturb:
        field = observed["halo_density"]
        observed["halo_density"] = disturbed(field, disturb)
    return observed


def disturbed(da: xr.DataArray, disturb: Any) -> xr.DataArray:
    return da.copy(data=da.data.map_blocks(disturb, dtype=da.dtype, meta=da.data._meta))


def assert_close(one: xr.Dataset, other: xr.Dataset) -> None:
    """To 1e-5 of the size of the field: sums in another order, in float32."""
    assert set(one) == set(other)
    for name in one:
        scale = float(np.sqrt((other[name].astype(float) ** 2).mean()))
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5 * scale)
        assert one[name].attrs["units"] == other[name].attrs["units"]


# The first in this file: afterwards the workers of `client` hold the cores.
@slurm_only
def test_slurm_runs_the_batch_script_of_the_guide(
    on_threads: Any, catalog: Path, models: Path, tmp_path: Path
) -> None:
    """Submitted twice: the second job finds the store whole."""
    store = tmp_path / "batch.zarr"
    options = ["--model", str(models), "--n-grid", str(N_GRID), "--precision", "float32"]
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DASK_INTERFACE": "lo",
    }
    for _ in range(2):
        command = ["sbatch", "--wait", "--output=job.log", "--mem-per-cpu=2G", str(SCRIPT)]
        command += [str(catalog), str(store), *options]
        done = subprocess.run(command, env=env, cwd=tmp_path, timeout=240)
        log = (tmp_path / "job.log").read_text()
        assert done.returncode == 0, log
    assert "whole already" in " ".join(log.split())
    tree = cf.open_store(store)
    assert_close(tree["reconstructed"].to_dataset(), on_threads(predicted))
    assert not list(tmp_path.glob("dask-*"))


@pytest.mark.parametrize("stage", [painted, flowing, predicted], ids=lambda f: f.__name__)
def test_workers_find_what_threads_find(undisturbed: Any, on_threads: Any, stage: Any) -> None:
    assert_close(undisturbed(stage), on_threads(stage))


def once(folder: Path, action: Callable[[], None]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Pass blocks through; the second one that any worker sees meets ``action``, once."""

    def met(block: NDArray[Any]) -> NDArray[Any]:
        for name in ("first", "second"):
            try:
                (folder / name).touch(exist_ok=False)
            except FileExistsError:
                continue
            if name == "second":
                action()
            break
        return block

    return met


# The linear velocity is on the way to what is predicted.
@pytest.mark.parametrize("stage", [painted, predicted], ids=lambda f: f.__name__)
def test_a_worker_that_dies_changes_no_bit(
    client: Any, undisturbed: Any, catalog: Path, models: Path, tmp_path: Path, stage: Any
) -> None:
    before = pids(client)
    dies = once(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
    after = stage(catalog, models, dies).compute()
    xr.testing.assert_equal(after, undisturbed(stage))
    client.wait_for_workers(2, timeout=60)
    assert len(set(pids(client)) - set(before)) == 1, "no worker died"


def pids(client: Any) -> list[int]:
    return list(client.run(os.getpid).values())


@slurm_only
@pytest.mark.parametrize("client", ["slurm"], indirect=True)
def test_a_job_that_is_cancelled_changes_no_bit(
    client: Any, undisturbed: Any, catalog: Path, models: Path, tmp_path: Path
) -> None:
    def cancelled() -> None:
        subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=True)
        time.sleep(60)

    after = predicted(catalog, models, once(tmp_path, cancelled)).compute()
    xr.testing.assert_equal(after, undisturbed(predicted))
    assert len(pids(client)) == 1
    # Unlike scale(), which must come after Dask has given the job up, adapt() replaces it.
    client.cluster.adapt(minimum_jobs=2, maximum_jobs=2)
    client.wait_for_workers(2, timeout=120)


def test_the_whole_chain(
    client: Any, on_threads: Any, catalog: Path, models: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"n_grid": N_GRID, "precision": "float32", "progress": False}
    tree = cf.reconstruct(lazy_catalog(catalog), tmp_path / "a.zarr", model=models, **options)
    assert_close(tree["observed"].to_dataset(), on_threads(painted))
    assert_close(tree["linear"].to_dataset()[["velocity"]], on_threads(flowing))
    assert_close(tree["reconstructed"].to_dataset(), on_threads(predicted))
