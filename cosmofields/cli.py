"""The command line: each verb is one public function."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .conventions import AXES, CosmofieldsError, require_extra

if TYPE_CHECKING:
    from .training import TrainingRun

TARGETS = ("density", "velocity", "momentum")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cosmofields",
        description="Dark-matter density and velocity fields from a redshift-space halo catalogue.",
    )
    parser.add_argument("--version", action="version", version=version("cosmofields"))
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = verbs.add_parser(
        "demo",
        help="reconstruct a simulated box and score it",
        description="Take the halos of a simulated box to redshift space, reconstruct density and "
        "velocity by linear theory and by the networks, and report on them against the truth.",
    )
    demo.add_argument(
        "--out", default="demo-output", help="directory to write (default: %(default)s)"
    )
    demo.add_argument("--box", help="HDF5 box; default: the sample in the package")
    demo.add_argument("--los", choices=AXES, default="z", help="line of sight (default: z)")
    demo.add_argument("--model", default="default", help="directory of saved models")

    evaluate = verbs.add_parser(
        "evaluate",
        help="report on a reconstruction: scores, spectra, figures, one page",
        description="Measure predicted fields against the true ones, and write every statistic and "
        "figure of the paper into a directory: report.html, tables (CSV, LaTeX), figures (PNG, "
        "PDF), results.zarr. Groups `linear`, `observed`, `halos` (in redshift space) and "
        "`halos_true` beside PREDICTED or TRUE are used where they are.",
    )
    evaluate.add_argument(
        "predicted",
        metavar="PREDICTED",
        help="Zarr store, or STORE/GROUP; of a store with groups `reconstructed`",
    )
    evaluate.add_argument(
        "true",
        metavar="TRUE",
        help="Zarr store, STORE/GROUP, or an HDF5 box; of a store with groups `true`",
    )
    evaluate.add_argument("--out", required=True, metavar="DIR", help="directory of the report")
    evaluate.add_argument("--label", help="name of the prediction (default: that of its group)")
    for name, what in (
        ("linear", "another reconstruction to compare with"),
        ("observed", "the halo field that went in"),
        ("halos", "tracers in redshift space"),
        ("halos-true", "the same tracers in real space"),
    ):
        evaluate.add_argument(f"--{name}", metavar="STORE", help=what)
    evaluate.add_argument(
        "--sub-boxes",
        type=float,
        nargs="+",
        metavar="SIDE",
        help="cut boxes of this side (one or three, Mpc/h) for the scatter from box to box",
    )
    evaluate.add_argument(
        "--stride", type=float, nargs="+", help="from one sub-box to the next (default: SIDE)"
    )
    evaluate.add_argument(
        "--training", metavar="DIR", help="folder that training logged to, for its curves"
    )
    evaluate.add_argument("--title", help="of the page")

    info = verbs.add_parser(
        "info",
        help="say what a store holds",
        description="Groups, fields, box, units, provenance of a Zarr store; whether it is whole.",
    )
    info.add_argument("store", metavar="STORE", help="path of a Zarr store")

    predict = verbs.add_parser(
        "predict",
        help="reconstruct a catalogue into a store",
        description="Density, velocity and momentum from the halos of a catalogue, in stages, into "
        "a Zarr store. The same command goes on with a run that was stopped.",
    )
    predict.add_argument("catalog", nargs="+", help="HDF5 files or a Zarr store of the halos")
    predict.add_argument("--out", required=True, metavar="STORE", help="Zarr store to write")
    predict.add_argument(
        "--los", choices=AXES, help="line of sight (default: the catalogue's own, or z)"
    )
    predict.add_argument(
        "--redshift-space",
        action="store_true",
        help="positions are in redshift space, though the catalogue does not say so; default: "
        "shift them by their velocity",
    )
    predict.add_argument(
        "--box-size", type=float, nargs="+", help="one side or three, Mpc/h; default: the file's"
    )
    predict.add_argument("--redshift", type=float, help="default: the file's own")
    predict.add_argument(
        "--cosmology",
        type=_cosmology,
        metavar="KEY=VALUE,...",
        help="Omega_m, Omega_b, h, n_s, sigma8; default: the file's own",
    )
    for name in ("position", "velocity", "mass"):
        predict.add_argument(f"--{name}", help="dataset in the file; default: by its usual name")
    predict.add_argument("--group", help="group of the file that holds the halos")
    predict.add_argument(
        "--n-grid", type=int, nargs="+", help="cells, one side or three; default: by the model"
    )
    predict.add_argument("--model", default="default", help="directory of saved models")
    predict.add_argument("--memory", help="of one process, e.g. '6 GB'; default: half of the free")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    predict.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the networks (default: %(default)s)",
    )
    predict.add_argument("--allow-mismatch", action="store_true", help="overrule the model's card")
    predict.add_argument(
        "--scheduler",
        help="address of a Dask scheduler, or the file that it wrote; default: local threads",
    )
    predict.add_argument(
        "--workers", type=int, default=1, help="of the scheduler's, to wait for (default: 1)"
    )

    train = verbs.add_parser(
        "train",
        help="train one of the networks",
        description="Train a density network, then a velocity network that sees its predictions, "
        "then perhaps a momentum network that sees both. The same command resumes a run that was "
        "stopped, or killed. Options overrule the file; those that neither gives have the values "
        "of docs/training.md.",
    )
    train.add_argument(
        "run",
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
    return parser


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo

    demo(args.out, args.box, los=args.los, model=args.model, command=args.command)


def _evaluate(args: argparse.Namespace) -> None:
    from rich.console import Console

    from .reporting import PAGE, check_output, report
    from .reporting.inputs import gather

    out = Path(args.out)
    check_output(out)
    if args.stride and not args.sub_boxes:
        raise CosmofieldsError("--stride needs --sub-boxes: of which side?")
    given = gather(
        args.predicted,
        args.true,
        label=args.label,
        linear=args.linear,
        observed=args.observed,
        halos=args.halos,
        halos_true=args.halos_true,
    )
    if args.training:
        from .plotting import open_curves

        given["training"] = open_curves(args.training)
    report(
        **given,
        out=out,
        sub_boxes=_one_or_three(args.sub_boxes),
        stride=_one_or_three(args.stride),
        title=args.title,
        command=args.command,
        console=Console(stderr=True),
    )
    print(out / PAGE)


def _info(args: argparse.Namespace) -> None:
    from .store import describe

    print(describe(args.store), end="")


def _cosmology(text: str) -> dict[str, float]:
    """Parameters of ``Omega_m=0.3,h=0.7``."""
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected Omega_m=0.268,h=0.71,Omega_b=0.0445,n_s=0.968,sigma8=0.83"
        ) from None


def _one_or_three(values: list[Any] | None) -> Any:
    """A single number as such; what is no list of three is refused where it is used."""
    return values[0] if values and len(values) == 1 else values


@contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator[None]:
    """Let dask work on the scheduler of this address or file; on threads for None."""
    if scheduler is None:
        yield
        return
    distributed = require_extra("distributed", "hpc", "--scheduler")
    how = {"address": scheduler} if "://" in scheduler else {"scheduler_file": scheduler}
    if "scheduler_file" in how and not Path(scheduler).is_file():
        raise CosmofieldsError(
            f"--scheduler {scheduler!r} is no address such as tcp://host:8786, and no file that "
            "`dask scheduler --scheduler-file` has written"
        )
    try:
        client = distributed.Client(**how, timeout="60s")
    except (OSError, TimeoutError, ValueError) as error:
        raise CosmofieldsError(f"No Dask scheduler answers at {scheduler!r}: {error}") from error
    with client:
        # The plan counts those that are there.
        client.wait_for_workers(workers)
        yield


def _predict(args: argparse.Namespace) -> None:
    from .catalog import to_redshift_space
    from .readers import open_catalog
    from .reconstruction import reconstruct

    halos = open_catalog(
        args.catalog if len(args.catalog) > 1 else args.catalog[0],
        box_size=_one_or_three(args.box_size),
        redshift=args.redshift,
        cosmology=args.cosmology,
        los=args.los if args.redshift_space else None,
        position=args.position,
        velocity=args.velocity,
        mass=args.mass,
        group=args.group,
    )
    if halos.attrs.get("space") != "redshift":
        if args.redshift_space:
            raise CosmofieldsError("--redshift-space needs --los: along which axis?")
        halos = to_redshift_space(halos, args.los or "z")
    elif args.los not in (None, halos.attrs["los"]):
        raise CosmofieldsError(
            f"--los {args.los}, but the catalogue is in redshift space along {halos.attrs['los']}"
        )
    with _client(args.scheduler, args.workers):
        reconstruct(
            halos,
            args.out,
            n_grid=_one_or_three(args.n_grid),
            model=args.model,
            memory=args.memory,
            device=args.device,
            precision=args.precision,
            allow_mismatch=args.allow_mismatch,
        )
    print(args.out)


def run_of(args: argparse.Namespace) -> TrainingRun:
    """What the arguments of ``cosmofields train`` ask for, with those of its file."""
    from .training import KEYS, read_run

    options = {key: getattr(args, key) for keys in KEYS.values() for key in keys}
    if args.run in TARGETS:
        return read_run(**{**options, "target": args.run})
    return read_run(args.run, **options)


def _train(args: argparse.Namespace) -> None:
    from .training import train

    run = run_of(args)
    card = train(
        run.config,
        run.boxes,
        run.validation,
        run.out,
        density_model=run.density_model or run.out,
        workers=run.workers,
    )
    print(f"Saved {card}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0, or 2 for input that cannot be used."""
    args = _parser().parse_args(argv)
    args.command = shlex.join(["cosmofields", *(sys.argv[1:] if argv is None else argv)])
    verb = {
        "demo": _demo,
        "evaluate": _evaluate,
        "info": _info,
        "predict": _predict,
        "train": _train,
    }[args.verb]
    try:
        verb(args)
    except CosmofieldsError as error:
        print(f"cosmofields {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cosmofields {args.verb}: interrupted", file=sys.stderr)
        return 130
    return 0
