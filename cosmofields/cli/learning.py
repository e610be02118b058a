"""Verbs on models and what they learn from: simulate, train, tune, calibrate, score, models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..conventions import AXES, CosmofieldsError
from .shared import MODEL, Verbs, check_inputs, client, cosmology

if TYPE_CHECKING:
    from ..training import TrainingRun

TARGETS = ("density", "velocity", "momentum")


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    simulate = verbs.add_parser(
        "simulate",
        help="make a training box: a particle-mesh run, its halos, its true fields",
        description="Simulate a periodic box of dark matter into a Zarr store that `train`, "
        "`evaluate` and `demo --box` read. The same command goes on with a run that was stopped.",
    )
    simulate.add_argument("store", metavar="STORE", help="Zarr store to write")
    simulate.add_argument("--seed", type=int, required=True, help="of the initial conditions")
    simulate.add_argument(
        "--box-size", type=float, default=300.0, help="side, Mpc/h (default: %(default)s)"
    )
    simulate.add_argument(
        "--n-particles", type=int, default=320, help="a side (default: %(default)s)"
    )
    simulate.add_argument("--n-mesh", type=int, help="cells a side of the force (default: 1.6 x)")
    simulate.add_argument(
        "--n-grid", type=int, help="cells a side of the true fields (default: of 2.34 Mpc/h)"
    )
    simulate.add_argument("--redshift", type=float, default=0.59, help="(default: %(default)s)")
    simulate.add_argument(
        "--cosmology",
        type=cosmology,
        metavar="KEY=VALUE,...",
        help="Omega_m, Omega_b, h, n_s, sigma8; default: the paper's",
    )
    simulate.add_argument(
        "--role",
        choices=("training", "validation", "test"),
        default="training",
        help="what the box may be used for (default: %(default)s)",
    )
    simulate.add_argument("--steps", type=int, default=30, help="of time (default: %(default)s)")
    simulate.set_defaults(run=_simulate)

    train = verbs.add_parser(
        "train",
        help="train one of the networks",
        description="Train a density network, then a velocity network that sees its predictions, "
        "then perhaps a momentum network that sees both. The same command resumes a run that was "
        "stopped, or killed. Options overrule the file; those that neither gives have the values "
        "of docs/training.md.",
    )
    _training_options(train)
    train.add_argument("--out", help="directory to write (default: models)")
    train.add_argument(
        "--start",
        metavar="MODEL",
        help=f"begin with the weights of this one: {MODEL} (default: random)",
    )
    train.add_argument("--workers", type=int, help="processes that make crops")
    train.add_argument("--devices", type=int, help="GPUs, or processes, that share each batch")
    train.set_defaults(run=_train)

    tune = verbs.add_parser(
        "tune",
        help="search for the settings of a fit",
        description="Optuna's TPE over the paper's five: learning rate, dropout, number of boxes, "
        "widths, batch size. What `train` takes is where the search starts; the options in the "
        "plural say what is searched. The same command goes on with a study that was stopped, or "
        "killed.",
    )
    _training_options(tune)
    tune.add_argument("--out", required=True, metavar="DIR", help="directory of the study")
    tune.add_argument("--trials", type=int, default=20, help="settings in all (default: 20)")
    tune.add_argument(
        "--repeats", type=int, default=5, help="fits of one that is not pruned (default: 5)"
    )
    for name, kind in (("learning-rates", float), ("dropouts", float), ("box-numbers", int)):
        tune.add_argument(f"--{name}", type=kind, nargs=2, metavar=("LOW", "HIGH"))
    tune.add_argument(
        "--width-choices", nargs="+", type=_widths, metavar="N-N-N", help="e.g. 8-32-64 16-64-128"
    )
    tune.add_argument("--batch-sizes", nargs="+", type=int, metavar="N")
    tune.add_argument(
        "--scheduler",
        help="address of a Dask scheduler, or the file that it wrote; default: one after the other",
    )
    tune.add_argument(
        "--workers", type=int, default=1, help="of the scheduler's, to wait for (default: 1)"
    )
    tune.set_defaults(run=_tune, devices=None, start=None)

    calibrate = verbs.add_parser(
        "calibrate",
        help="measure a model's power and errors, and keep them in its cards",
        description="Run the models over boxes with known truth: how much power their fields lack "
        "by scale, and how wrong a cell is; `predict` restores and reports it.",
    )
    calibrate.add_argument("--model", default="default", help=f"{MODEL} (default: %(default)s)")
    calibrate.add_argument("--boxes", nargs="+", required=True, help="boxes to measure")
    calibrate.add_argument(
        "--validation", nargs="+", required=True, help="boxes to scale errors by"
    )
    calibrate.add_argument("--symmetries", nargs="+", type=int, default=[1, 8])
    calibrate.add_argument("--los", choices=AXES, default="z", help="line of sight (default: z)")
    calibrate.set_defaults(run=_calibrate)

    score = verbs.add_parser(
        "score",
        help="score a model on boxes with known truth",
        description="Run the models over boxes with known truth, linear theory beside them; print "
        "every score that docs/scores.md shows. Those of a model in a directory go into its cards, "
        "a box at a time; the cards of a model that ships are left alone.",
    )
    score.add_argument("--model", default="default", help=f"{MODEL} (default: %(default)s)")
    score.add_argument("--boxes", nargs="+", required=True, help="boxes to score on")
    score.add_argument("--symmetries", type=int, default=1, help="(default: %(default)s)")
    score.add_argument("--los", choices=AXES, default="z", help="line of sight (default: z)")
    score.add_argument(
        "--out", metavar="FILE", help="write the scores here, a box at a time, not into the cards"
    )
    score.add_argument(
        "--write",
        action="store_true",
        help="into the cards whatever the model is, and also with --out",
    )
    score.set_defaults(run=_score)

    listed = verbs.add_parser(
        "models",
        help="the models that ship: what each is for, and what it scores",
        description="The models that ship. `cosmofields info MODEL` has more of each.",
    )
    listed.set_defaults(run=_models)


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG|TARGET",
        help="TOML file (docs/examples); or density, velocity or momentum, and all as options",
    )
    parser.add_argument("--target", choices=TARGETS, help="of a file: train this one instead")
    parser.add_argument("--boxes", nargs="+", help="boxes to train on: HDF5, or stores of simulate")
    parser.add_argument("--validation", nargs="+", help="boxes to choose by")
    parser.add_argument(
        "--density-model",
        help=f"of the earlier steps: {MODEL} (default: --out)",
    )
    parser.add_argument(
        "--number-density", nargs="+", type=float, help="of the mass bins, cumulative, (h/Mpc)^3"
    )
    parser.add_argument("--weighting", choices=("mass", "bin", "number"), help="what a halo counts")
    parser.add_argument("--architecture", choices=("residual", "paper"))
    parser.add_argument("--widths", nargs="+", type=int, help="channels of each level")
    parser.add_argument("--dropout", type=float, help="of the paper's architecture")
    for name, what in (
        ("steps", "of the optimiser, in the main phase"),
        ("settle-steps", "after these, with the batch norm held fixed"),
        ("steps-per-epoch", "between two validations"),
        ("patience", "epochs without a lower validation loss that end the main phase"),
        ("batch-size", "crops a step"),
        ("crop", "cells a side"),
        ("margin", "outer cells of a crop, left out of the loss"),
        ("seed", "of weights and crops"),
    ):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--learning-rate", type=float, help="at its peak")
    parser.add_argument("--ema-decay", type=float, help="of the averaged weights")
    parser.add_argument("--precision", choices=("auto", "bf16-mixed", "32-true"))


def _widths(text: str) -> list[int]:
    """Channels of ``16-64-128``."""
    try:
        return [int(each) for each in text.split("-")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected such as 16-64-128") from None


def _simulate(args: argparse.Namespace) -> None:
    from ..simulation import simulate

    given = {} if args.cosmology is None else {"cosmology": args.cosmology}
    simulate(
        args.store,
        seed=args.seed,
        box_size=args.box_size,
        n_particles=args.n_particles,
        n_mesh=args.n_mesh,
        n_grid=args.n_grid,
        redshift=args.redshift,
        role=args.role,
        n_steps=args.steps,
        **given,
    )
    print(args.store)


def run_of(args: argparse.Namespace) -> TrainingRun:
    """What the arguments of ``cosmofields train`` ask for, with those of its file."""
    from ..training import KEYS, read_run

    options = {key: getattr(args, key) for keys in KEYS.values() for key in keys}
    if args.config in TARGETS:
        return read_run(**{**options, "target": args.config})
    return read_run(args.config, **options)


def _train(args: argparse.Namespace) -> None:
    check_inputs(*(args.boxes or []), *(args.validation or []))
    from ..training import train

    run = run_of(args)
    card = train(
        run.config,
        run.boxes,
        run.validation,
        run.out,
        # A path: what was just trained into it, even if a model that ships has its name.
        density_model=run.density_model or Path(run.out),
        start=run.start,
        workers=run.workers,
        devices=run.devices,
    )
    print(f"Saved {card}")


def _tune(args: argparse.Namespace) -> None:
    check_inputs(*(args.boxes or []), *(args.validation or []))
    from ..tuning import Space, tune

    run = run_of(args)
    if run.start is not None:
        raise CosmofieldsError(
            f"start = {run.start!r}: fits of a search differ in their widths and begin with random "
            "weights; leave it out"
        )
    given = {
        "learning_rate": args.learning_rates,
        "dropout": args.dropouts,
        "boxes": args.box_numbers,
        "widths": args.width_choices,
        "batch_size": args.batch_sizes,
    }
    with client(args.scheduler, args.workers):
        table = tune(
            run.config,
            run.boxes,
            run.validation,
            args.out,
            trials=args.trials,
            repeats=args.repeats,
            space=Space(**{key: tuple(value) for key, value in given.items() if value}),
            density_model=run.density_model or "default",
        )
    done = table.drop_vars(["reason", "seconds"]).to_dataframe().sort_values("loss")
    print(done.to_string(float_format="%.4g"))
    print(Path(args.out) / "best.toml")


def _calibrate(args: argparse.Namespace) -> None:
    check_inputs(*args.boxes, *args.validation, model=args.model)
    from ..inference import calibrate

    calibrate(
        args.model,
        args.boxes,
        args.validation,
        symmetries=args.symmetries,
        los=args.los,
        progress=True,
    )


def _score(args: argparse.Namespace) -> None:
    check_inputs(*args.boxes, model=args.model)
    from ..scoring import EQ2, FILTERED, NETWORK, ROWS, score

    found = score(
        args.model,
        args.boxes,
        los=args.los,
        symmetries=args.symmetries,
        progress=True,
        # What is not asked for is left to the model: a directory's cards get its scores.
        write=args.write or None,
        out=args.out,
    )
    columns = (NETWORK, FILTERED, EQ2)
    for box, scores in found["boxes"].items():
        print(f"\n{box:56}" + "".join(f"{column:>24}" for column in columns))
        for row in ROWS:
            values = [row.of(scores[column]) for column in columns]
            texts = [", ".join(f"{v:.4g}" for v in each) or "-" for each in values]
            print(f"{row.label:56}" + "".join(f"{text:>24}" for text in texts))


def _models(args: argparse.Namespace) -> None:
    from ..scoring import headlines, models

    for model in models():
        densities = " ".join(f"{n:g}" for n in model["number_density"])
        print(
            f"{model['name']}: for {model['purpose']}\n"
            f"  makes {', '.join(model['targets'])}; halos of {densities} (h/Mpc)^3 by "
            f"{model['weighting']}, z = {model['redshift']:g}, cells of {model['cell_size']:.4g} "
            f"Mpc/h; {model['megabytes']} MB"
        )
        for line in headlines(model["scores"]):
            print(f"  {line}")
