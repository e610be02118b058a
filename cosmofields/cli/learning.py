"""Verbs on models and what they learn from: simulate, train."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .shared import Verbs, cosmology

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
    train.add_argument(
        "config",
        metavar="CONFIG|TARGET",
        help="TOML file (docs/examples); or density, velocity or momentum, and all as options",
    )
    train.add_argument("--target", choices=TARGETS, help="of a file: train this one instead")
    train.add_argument("--boxes", nargs="+", help="boxes to train on: HDF5, or stores of simulate")
    train.add_argument("--validation", nargs="+", help="boxes to choose by")
    train.add_argument("--out", help="directory to write (default: models)")
    train.add_argument(
        "--density-model", help="directory of the models of the earlier steps (default: --out)"
    )
    train.add_argument("--workers", type=int, help="processes that make crops")
    train.add_argument("--devices", type=int, help="GPUs, or processes, that share each batch")
    train.add_argument(
        "--number-density", nargs="+", type=float, help="of the mass bins, cumulative, (h/Mpc)^3"
    )
    train.add_argument("--weighting", choices=("mass", "number"), help="what a halo counts")
    train.add_argument("--architecture", choices=("residual", "paper"))
    train.add_argument("--widths", nargs="+", type=int, help="channels of each level")
    train.add_argument("--dropout", type=float, help="of the paper's architecture")
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
        train.add_argument(f"--{name}", type=int, help=what)
    train.add_argument("--learning-rate", type=float, help="at its peak")
    train.add_argument("--ema-decay", type=float, help="of the averaged weights")
    train.add_argument("--precision", choices=("bf16-mixed", "32-true"))
    train.set_defaults(run=_train)


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
    from ..training import train

    run = run_of(args)
    card = train(
        run.config,
        run.boxes,
        run.validation,
        run.out,
        density_model=run.density_model or run.out,
        workers=run.workers,
        devices=run.devices,
    )
    print(f"Saved {card}")
