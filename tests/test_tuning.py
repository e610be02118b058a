"""A search for settings: what it proposes and keeps, killed and resumed, here and on Dask."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
import xarray as xr

from cosmofields import tuning
from cosmofields.conventions import CosmofieldsError, StoreError
from cosmofields.stages import alone
from cosmofields.training import TrainingConfig, read_run
from cosmofields.tuning import Space, fits, open_trials, search, tune
from cosmofields.tuning.settings import Job
from cosmofields.tuning.study import Outcome, Study

# Lightning's own: of few workers, of torch's pytree, of an advertisement, of a run that resumes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*litlogger.*",
    "ignore:Checkpoint directory .* exists and is not empty",
)

SPACE = Space(widths=[(4, 4, 4), (4, 8, 8)], batch_size=(1, 2))


def config(**changes: Any) -> TrainingConfig:
    settings = {
        "target": "density",
        "options": {"widths": [4, 4, 4]},
        "steps": 8,
        "settle_steps": 4,
        "steps_per_epoch": 4,
        "crop": 16,
        "margin": 2,
        "ema_decay": 0.9,
        "precision": "32-true",
        **changes,
    }
    return TrainingConfig(**settings)


@pytest.fixture(scope="module")
def boxes(
    make_box: Callable[..., Path], box_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], list[Path]]:
    """Two boxes to train on, and one to choose by."""
    folder = tmp_path_factory.mktemp("tuning")
    second = make_box(folder / "second.h5", seed=3)
    third = make_box(folder / "third.h5", seed=4, role="validation")
    first = make_box(folder / "first.h5", seed=2)
    return [first, second], [third]


class Landscape:
    """Stands for a fit: the loss is a function of the settings, with a minimum at 2e-3."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.dies_at: int | None = None

    def __call__(self, job: Job, number: int, attempt: str) -> Outcome:
        settings = fits.trial_of(fits.load(job.out, job), number).params
        self.seen.append(settings)
        if self.dies_at == len(self.seen):
            raise KeyboardInterrupt
        off = np.log(settings["learning_rate"] / 2e-3)
        return Outcome(float(off**2 + settings["boxes"] ** -0.5))


@pytest.fixture
def landscape(monkeypatch: pytest.MonkeyPatch) -> Landscape:
    made = Landscape()
    monkeypatch.setattr(fits, "run", made)
    monkeypatch.setattr(search, "prepare_box", lambda *args, **kwargs: None)
    monkeypatch.setattr(search, "draw", lambda *args: None)
    return made


def search_in(out: Path, boxes: Any, trials: int, **changes: Any) -> xr.Dataset:
    given = {"space": SPACE, "repeats": 1, "progress": False, **changes}
    return tune(given.pop("config", config()), *boxes, out, trials=trials, **given)


# --- what is searched ---


def test_every_setting_sees_as_many_crops() -> None:
    base = config(batch_size=2, steps=9, ema_decay=0.9)
    job = Job(base, (), (), Path(), 1, "default")
    settings = {"learning_rate": 1e-3, "widths": "8-16-32", "dropout": 0.2}
    for batch in (1, 2, 4):
        made = job.fit_config({**settings, "batch_size": batch}, repeat=3)
        assert made.epochs == base.epochs == (3, 1)
        assert made.steps_per_epoch * batch == 4 * 2
        assert made.steps * batch == 3 * 4 * 2
        assert made.seed == base.seed + 3
        assert made.options == {"widths": [8, 16, 32], "dropout": 0.2}
        # The weight of what was averaged in 8 crops ago.
        assert made.ema_decay ** (8 / batch) == pytest.approx(0.9**4)


def test_dropout_is_searched_where_there_is_some() -> None:
    assert "dropout" in Space().distributions("paper", 3)
    found = Space().distributions("residual", 3)
    assert set(found) == {"learning_rate", "boxes", "widths", "batch_size"}
    assert (found["boxes"].low, found["boxes"].high) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": Space(learning_rate=(0, 1e-2))}, "learning_rate"),
        ({"space": Space(dropout=(0, 1))}, "below 1"),
        ({"space": Space(boxes=(1, 3))}, "from 1 to the 2"),
        ({"space": Space(batch_size=())}, "batch_size"),
        ({"space": Space(batch_size=(1, 3))}, "as many crops"),
        ({"space": Space(widths=[(4, 4, 4, 4)]), "config": config(crop=20)}, "multiple of 8"),
        ({"config": config(architecture="paper"), "space": Space(widths=[(4, 4)])}, "do not fit"),
        ({"config": config(target="speed")}, "No model"),
        ({"config": config(crop=18)}, "multiple of 4"),
        ({"trials": 0}, "trials=0"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_what_cannot_be_tuned_is_refused_at_the_door(
    changes: dict[str, Any], message: str, boxes: Any, tmp_path: Path
) -> None:
    with pytest.raises(CosmofieldsError, match=message):
        search_in(tmp_path / "out", boxes, **{"trials": 2, **changes})
    assert not [*tmp_path.iterdir()]


def test_a_test_box_is_refused_wherever_it_stands(
    make_box: Callable[..., Path], boxes: Any, tmp_path: Path
) -> None:
    held_out = make_box(tmp_path / "held_out.h5", seed=9, role="test")
    train, validation = boxes
    for given in ((train + [held_out], validation), (train, validation + [held_out])):
        with pytest.raises(CosmofieldsError, match="calls itself a test box"):
            search_in(tmp_path / "out", given, 2)
    assert not (tmp_path / "out").exists()


def test_optuna_is_an_extra() -> None:
    code = "import sys; sys.modules['optuna'] = None; import cosmofields.tuning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'cosmofields[tune]'" in done.stderr


# --- what is proposed ---


def test_the_search_closes_in(landscape: Landscape, boxes: Any, tmp_path: Path) -> None:
    table = search_in(tmp_path, boxes, 40)
    first = landscape.seen[0]
    # The settings as they were given come first.
    assert first == {"learning_rate": 2e-3, "boxes": 2, "widths": "4-4-4", "batch_size": 1}
    off = np.abs(np.log(table["learning_rate"].values / 2e-3))
    at_random = np.median(np.abs(np.log(np.geomspace(3e-4, 1e-2) / 2e-3)))
    assert np.median(off[20:]) < 0.5 * at_random
    assert (table["state"] == "complete").all()


def test_a_study_that_was_killed_proposes_what_it_would_have(
    landscape: Landscape, boxes: Any, tmp_path: Path
) -> None:
    whole = search_in(tmp_path / "a", boxes, 9)
    seen, landscape.seen = landscape.seen, []
    landscape.dies_at = 7
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "b", boxes, 9)
    left = open_trials(tmp_path / "b")
    assert left["state"].values.tolist() == ["complete"] * 6 + ["running"]
    landscape.dies_at = None
    resumed = search_in(tmp_path / "b", boxes, 9)
    # The one that was killed once more, and no other.
    assert landscape.seen == seen[:7] + seen[6:]
    xr.testing.assert_equal(resumed, whole)


def test_more_trials_go_on_from_those_that_are_there(
    landscape: Landscape, boxes: Any, tmp_path: Path
) -> None:
    few = search_in(tmp_path, boxes, 3)
    more = search_in(tmp_path, boxes, 5)
    assert len(landscape.seen) == 5
    xr.testing.assert_equal(more.isel(trial=slice(3)), few)
    xr.testing.assert_equal(search_in(tmp_path, boxes, 2), more)
    assert len(landscape.seen) == 5


def test_killed_before_it_had_its_settings(
    landscape: Landscape, boxes: Any, tmp_path: Path
) -> None:
    search_in(tmp_path, boxes, 1)
    fits.load(tmp_path).ask()
    table = search_in(tmp_path, boxes, 2)
    assert table["trial"].values.tolist() == [0, 2]
    assert np.isfinite(table["loss"]).all()


def test_a_torn_line_is_cut_off(landscape: Landscape, boxes: Any, tmp_path: Path) -> None:
    search_in(tmp_path, boxes, 2)
    with (tmp_path / "study.log").open("a") as journal:
        journal.write('{"op_code": 4, "wor')
    assert search_in(tmp_path, boxes, 3).sizes["trial"] == 3
    assert open_trials(tmp_path).sizes["trial"] == 3


def test_another_study_is_refused(landscape: Landscape, boxes: Any, tmp_path: Path) -> None:
    search_in(tmp_path, boxes, 1)
    train, validation = boxes
    for changes, what in (
        ({"config": config(steps=12)}, "config"),
        ({"repeats": 2}, "repeats"),
        ({"space": replace(SPACE, learning_rate=(1e-4, 1e-2))}, "space"),
        ({"boxes": (train[::-1], validation)}, "boxes"),
    ):
        given = {"boxes": boxes, "trials": 2, **changes}
        with pytest.raises(CosmofieldsError, match=f"a study of other {what}:"):
            search_in(tmp_path, **given)
    assert len(landscape.seen) == 1


def test_another_density_model_is_another_study(
    landscape: Landscape,
    boxes: Any,
    make_models: Callable[..., Path],
    observed: xr.Dataset,
    tmp_path: Path,
) -> None:
    given = {"boxes": boxes, "trials": 1, "config": config(target="velocity")}
    search_in(tmp_path / "out", **given)
    models = make_models(tmp_path / "models", observed)
    with pytest.raises(CosmofieldsError, match="a study of other density_model:"):
        search_in(tmp_path / "out", **given, density_model=models)
    assert read_run(tmp_path / "out/best.toml").density_model == "default"


def test_a_study_has_one_precision(
    landscape: Landscape, boxes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = config(precision="auto")
    for faster in ("bf16-mixed", "32-true"):  # on another machine, the second time
        monkeypatch.setattr(
            "cosmofields.tuning.study.faster_precision", lambda faster=faster: faster
        )
        search_in(tmp_path, boxes, len(landscape.seen) + 1, config=auto)
        assert read_run(tmp_path / "best.toml").config.precision == "bf16-mixed"
    assert len(landscape.seen) == 2


def test_one_call_holds_a_study(landscape: Landscape, boxes: Any, tmp_path: Path) -> None:
    with alone(tmp_path / "out"), pytest.raises(StoreError, match="Another call"):
        search_in(tmp_path / "out", boxes, 1)


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No study in"):
        open_trials(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_best_is_a_configuration_to_train(
    landscape: Landscape, boxes: Any, tmp_path: Path
) -> None:
    table = search_in(tmp_path, boxes, 6)
    best = table.isel(trial=int(np.argmin(table["loss"].values)))
    run = read_run(tmp_path / "best.toml")
    assert run.config.learning_rate == best["learning_rate"]
    assert run.config.options == {"widths": [int(n) for n in best["widths"].item().split("-")]}
    assert run.config.batch_size == best["batch_size"]
    assert [*map(Path, run.boxes)] == boxes[0][: int(best["boxes"])]
    assert [*map(Path, run.validation)] == boxes[1]
    with (tmp_path / "trials.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["loss"]) for row in rows] == table["loss"].values.tolist()


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_the_table_survives_files(
    suffix: str, landscape: Landscape, boxes: Any, tmp_path: Path
) -> None:
    table = search_in(tmp_path, boxes, 3)
    path = tmp_path / f"table.{suffix}"
    if suffix == "nc":
        table.to_netcdf(path, engine="h5netcdf")
        back = xr.open_dataset(path, engine="h5netcdf")
    else:
        table.to_zarr(path, consolidated=False)
        back = xr.open_zarr(path, consolidated=False)
    with back:
        xr.testing.assert_identical(back.load(), table)


# --- fits ---


def test_fits_are_repeated_averaged_and_shared(boxes: Any, tmp_path: Path) -> None:
    table = search_in(tmp_path, boxes, 2, repeats=2)
    assert table["fits"].values.tolist() == [2, 2]
    assert (table["epochs"] == 3).all()
    assert (table["seconds"] > 0).all()
    for number in table["trial"].values:
        losses = [
            json.loads(card.read_text())["training"]["validation_loss"]
            for card in sorted((tmp_path / "fits" / f"{number:04d}").glob("seed-*/density.json"))
        ]
        row = table.sel(trial=number)
        assert len(set(losses)) == 2
        assert row["loss"] == np.mean(losses)
        np.testing.assert_allclose(row["loss_spread"], np.std(losses, ddof=1))
    assert not [*tmp_path.glob("fits/*/*/boxes")]
    assert not [*tmp_path.rglob("*.ckpt")]
    for name in ("curves", "history", "slice", "importance"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes()[:4] == b"%PDF"


def test_figures_leave_the_style_alone(boxes: Any, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    search_in(tmp_path, boxes, 1, config=config(steps=4, settle_steps=0))
    assert dict(plt.rcParams) == before
    assert not plt.get_fignums()


def test_a_killed_fit_goes_on(boxes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmofields.training import Fit

    whole = search_in(tmp_path / "a", boxes, 1, repeats=2)
    real, calls = Fit.training_step, []

    def dies(self: Any, batch: Any, index: int) -> torch.Tensor:
        calls.append(index)
        if len(calls) == 12 + 6:  # in the second epoch of the second fit
            raise MemoryError("killed")
        return real(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "training_step", dies)
        with pytest.raises(MemoryError):
            search_in(tmp_path / "b", boxes, 1, repeats=2)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "training_step", lambda *args: calls.append(0) or real(*args))
        resumed = search_in(tmp_path / "b", boxes, 1, repeats=2)
    assert len(calls) == 8  # the first fit is not repeated, nor the epoch that was whole
    xr.testing.assert_equal(resumed.drop_vars("seconds"), whole.drop_vars("seconds"))


def test_settings_of_no_promise_are_pruned(
    boxes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.study, "STARTUP", 1)
    given = config(steps=16, settle_steps=0, learning_rate=1e-2)
    space = Space(learning_rate=(1e-7, 1e-2), boxes=(2, 2), widths=[(4, 4, 4)], batch_size=(1,))
    search_in(tmp_path, boxes, 1, config=given, space=space, repeats=2)
    # The next learns too slowly to move: it is behind as soon as it may be pruned.
    fits.load(tmp_path).enqueue_trial({"learning_rate": 1e-7})
    table = search_in(tmp_path, boxes, 2, config=given, space=space, repeats=2)
    assert table["state"].values.tolist() == ["complete", "pruned"]
    assert table["epochs"].values.tolist() == [4, 2]
    assert table["fits"].values.tolist() == [2, 0]
    assert np.isnan(table["loss"][1])
    assert "median" in table["reason"].values[1]


def test_a_fit_that_diverges_is_a_result(
    boxes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmofields.training import Fit

    monkeypatch.setattr(Fit, "validation_step", lambda self, *_: self.log("val_loss", np.nan))
    table = search_in(tmp_path, boxes, 1, repeats=2)
    assert table["state"].values.tolist() == ["pruned"]
    assert table["reason"].values.tolist() == ["diverged"]
    assert not (tmp_path / "best.toml").exists()


def test_whoever_is_superseded_stops(boxes: Any, tmp_path: Path) -> None:
    search_in(tmp_path, boxes, 1, config=config(steps=4, settle_steps=0))
    job = Job(
        config(steps=4, settle_steps=0),
        *(tuple(map(str, each)) for each in boxes),
        tmp_path,
        1,
        "default",
    )
    with tuning.study.quiet():
        study = Study(job, job.check(SPACE))
        number = next(study.wanted(2))
        attempt = study.begin(number)
        study.begin(number)
        with pytest.raises(fits.Superseded):
            fits.run(job, number, attempt)


# --- on Dask ---


def dies_once(job: Job, number: int, attempt: str) -> Outcome:
    """Takes its worker with it, the first time that trial 1 runs."""
    import os
    import signal
    import time

    mark = job.out / "died"
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (job.out / f"{number}-{os.getpid()}.ran").touch()
    return Outcome(1.0 + number)


def always_dies(job: Job, number: int, attempt: str) -> Outcome:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture
def client() -> Any:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_trials_run_on_workers(client: Any, boxes: Any, tmp_path: Path) -> None:
    table = search_in(tmp_path / "out", boxes, 4)
    assert table["state"].values.tolist() == ["complete"] * 4
    # The first trial is the same fit wherever it runs.
    with dask.config.set(scheduler="threads"):
        here = search_in(tmp_path / "here", boxes, 1)
    np.testing.assert_allclose(table["loss"][0], here["loss"][0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_that_dies(
    client: Any, boxes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "prepare_box", lambda *args, **kwargs: None)
    monkeypatch.setattr(fits, "_on_worker", dies_once)
    table = search_in(tmp_path / "a", boxes, 5)
    assert table["loss"].values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    ran = [path.stem.split("-") for path in (tmp_path / "a").glob("*.ran")]
    assert sorted(int(number) for number, _ in ran) == [0, 1, 2, 3, 4]
    assert len({process for _, process in ran}) >= 2
    monkeypatch.setattr(fits, "_on_worker", always_dies)
    with pytest.raises(CosmofieldsError, match="lost with its worker 3 times"):
        search_in(tmp_path / "b", boxes, 1)
