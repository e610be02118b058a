"""Verbs that make what models learn from, and models: simulate, train, tune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..conventions import CosmofieldsError
from ..zoo import TARGETS as TARGETS
from .shared import MODEL, Verbs, add_verb, check_inputs, client, completed, cosmology, dask_options

if TYPE_CHECKING:
    from ..training import TrainingRun


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    _add_simulate(verbs)
    _add_train(verbs)
    _add_tune(verbs)


def _add_simulate(verbs: Verbs) -> None:
    simulate = add_verb(
        verbs,
        "simulate",
        _simulate,
        summary="make a training box: a particle-mesh run, its halos, its true fields",
        about="""
Simulate a periodic box of dark matter: 2LPT initial conditions from a linear
spectrum of CAMB, a particle-mesh run, friends-of-friends halos, and the true
fields on the grid. The same command goes on with a run that was stopped.

in:   a seed
out:  a Zarr store of the groups halos (Mpc/h, km/s, Msun/h) and true (density =
      1 + delta, velocity and momentum in km/s), which `train`, `evaluate` and
      `demo --box` read
""",
        examples=(
            "simulate box_7.zarr --seed 7",
            "simulate small.zarr --seed 1 --box-size 75 --n-particles 80 --role validation",
        ),
        python="cosmofields.simulate('box_7.zarr', seed=7)",
        keeps=lambda args: args.store,
    )
    completed(simulate.add_argument("store", metavar="STORE", help="Zarr store to write"), "store")
    simulate.add_argument(
        "--seed", metavar="N", type=int, required=True, help="of the initial conditions"
    )
    simulate.add_argument(
        "--box-size",
        metavar="L",
        type=float,
        default=300.0,
        help="side, Mpc/h (default: %(default)s)",
    )
    simulate.add_argument(
        "--n-particles", metavar="N", type=int, default=320, help="a side (default: %(default)s)"
    )
    simulate.add_argument(
        "--n-mesh", metavar="N", type=int, help="cells a side of the force (default: 1.6 x)"
    )
    simulate.add_argument(
        "--n-grid",
        metavar="N",
        type=int,
        help="cells a side of the true fields (default: of 2.34 Mpc/h)",
    )
    simulate.add_argument(
        "--redshift", metavar="Z", type=float, default=0.59, help="(default: %(default)s)"
    )
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
    simulate.add_argument(
        "--n-steps", metavar="N", type=int, default=30, help="of time (default: %(default)s)"
    )


def _add_train(verbs: Verbs) -> None:
    train = add_verb(
        verbs,
        "train",
        _train,
        summary="train one of the networks",
        about="""
Train a density network, then a velocity network that sees its predictions, then
perhaps a momentum network that sees both. The same command goes on with a run
that was stopped, or killed, from its last epoch. Options overrule the file;
those that neither gives have the values of docs/training.md.

in:   boxes with halos and true fields: HDF5, or stores of `simulate`
out:  a directory: TARGET.safetensors and TARGET.json (the model; `predict
      --model DIR` uses it), the checkpoint, the learning curve
""",
        examples=(
            "train docs/examples/density.toml",
            "train density --boxes a.h5 b.h5 --validation c.h5 --out mine",
            "train velocity --boxes a.h5 b.h5 --validation c.h5 --out mine \\\n"
            "    --start default --steps 800",
        ),
        python="from cosmofields.training import TrainingConfig, train\n"
        "  train(TrainingConfig('density'), ['a.h5', 'b.h5'], ['c.h5'], 'mine')",
        keeps=lambda args: args.out or "models",
    )
    _training_options(train)
    completed(
        train.add_argument("--out", metavar="DIR", help="to write (default: models)"), "directory"
    )
    completed(
        train.add_argument(
            "--start",
            metavar="MODEL",
            help=f"begin with the weights of this one: {MODEL} (default: random)",
        ),
        "model",
    )
    train.add_argument("--workers", metavar="N", type=int, help="processes that make crops")
    train.add_argument(
        "--devices", metavar="N", type=int, help="GPUs, or processes, that share each batch"
    )


def _add_tune(verbs: Verbs) -> None:
    tune = add_verb(
        verbs,
        "tune",
        _tune,
        summary="search for the settings of a fit",
        about="""
Optuna's TPE over the paper's five: learning rate, dropout, number of boxes,
widths, batch size. What `train` takes is where the search starts; the options in
the plural say what is searched. The same command goes on with a study that was
stopped, or killed.

in:   as `train`
out:  a directory: best.toml, which `train` reads, the table of the trials, figures
""",
        examples=(
            "tune docs/examples/density.toml --out tuning --trials 20",
            "tune density --boxes a.h5 b.h5 --validation c.h5 --out tuning \\\n"
            "    --learning-rates 1e-4 1e-2 --width-choices 8-32-64 16-64-128",
        ),
        python="from cosmofields.training import TrainingConfig\n"
        "  from cosmofields.tuning import tune\n"
        "  tune(TrainingConfig('density'), ['a.h5', 'b.h5'], ['c.h5'], 'tuning')",
        keeps=lambda args: args.out,
    )
    tune.set_defaults(devices=None, start=None)
    _training_options(tune)
    completed(
        tune.add_argument("--out", required=True, metavar="DIR", help="directory of the study"),
        "directory",
    )
    tune.add_argument(
        "--trials", metavar="N", type=int, default=20, help="settings in all (default: 20)"
    )
    tune.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=5,
        help="fits of one that is not pruned (default: 5)",
    )
    for name, kind, what in (
        ("learning-rates", float, "from which to which"),
        ("dropouts", float, "from which to which, of the paper's architecture"),
        ("box-numbers", int, "of training boxes, from how many to how many"),
    ):
        tune.add_argument(f"--{name}", type=kind, nargs=2, metavar=("LOW", "HIGH"), help=what)
    tune.add_argument(
        "--width-choices", nargs="+", type=_widths, metavar="N-N-N", help="e.g. 8-32-64 16-64-128"
    )
    tune.add_argument(
        "--batch-sizes", nargs="+", type=int, metavar="N", help="crops a step to choose from"
    )
    dask_options(tune)


def _training_options(parser: argparse.ArgumentParser) -> None:
    completed(
        parser.add_argument(
            "config",
            metavar="CONFIG|TARGET",
            help="TOML file (docs/examples); or density, velocity or momentum, and all as options",
        ),
        "configuration",
    )
    parser.add_argument("--target", choices=TARGETS, help="of a file: train this one instead")
    for name, what in (
        ("boxes", "boxes to train on: HDF5, or stores of `simulate`"),
        ("validation", "boxes to choose by"),
    ):
        completed(parser.add_argument(f"--{name}", metavar="BOX", nargs="+", help=what), "box")
    completed(
        parser.add_argument(
            "--density-model",
            metavar="MODEL",
            help=f"of the earlier steps: {MODEL} (default: --out)",
        ),
        "model",
    )
    fit = parser.add_argument_group("the fit")
    fit.add_argument(
        "--number-density",
        metavar="N",
        nargs="+",
        type=float,
        help="of the mass bins, cumulative, (h/Mpc)^3",
    )
    fit.add_argument("--weighting", choices=("mass", "bin", "number"), help="what a halo counts")
    fit.add_argument(
        "--architecture", choices=("residual", "paper"), help="of the network (docs/models.md)"
    )
    fit.add_argument("--widths", metavar="N", nargs="+", type=int, help="channels of each level")
    fit.add_argument("--dropout", metavar="P", type=float, help="of the paper's architecture")
    for name, what in (
        ("steps", "of the optimiser, in the main phase"),
        ("settle-steps", "after these, with the batch norm held fixed"),
        ("steps-per-epoch", "between two validations, each with a checkpoint"),
        ("patience", "epochs without a lower validation loss that end the main phase"),
        ("batch-size", "crops a step"),
        ("crop", "cells a side"),
        ("margin", "outer cells of a crop, left out of the loss"),
        ("seed", "of weights and crops"),
    ):
        fit.add_argument(f"--{name}", metavar="N", type=int, help=what)
    fit.add_argument("--learning-rate", metavar="X", type=float, help="at its peak")
    fit.add_argument("--ema-decay", metavar="X", type=float, help="of the averaged weights")
    fit.add_argument(
        "--precision", choices=("auto", "bf16-mixed", "32-true"), help="of the arithmetic"
    )


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
        n_steps=args.n_steps,
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
    args.out = run.out  # of the file, for who interrupts it
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
