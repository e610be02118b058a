"""The command line: each verb is one public function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from .conventions import AXES, CosmofieldsError

if TYPE_CHECKING:
    from .training import TrainingConfig


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
        "velocity by linear theory and by the networks, and score them against the truth.",
    )
    demo.add_argument(
        "--out", default="demo-output", help="directory to write (default: %(default)s)"
    )
    demo.add_argument("--box", help="HDF5 box; default: the sample in the package")
    demo.add_argument("--los", choices=AXES, default="z", help="line of sight (default: z)")
    demo.add_argument("--model", default="default", help="directory of saved models")

    info = verbs.add_parser(
        "info",
        help="say what a store holds",
        description="Groups, fields, box, units, provenance of a Zarr store; whether it is whole.",
    )
    info.add_argument("store", metavar="STORE", help="path of a Zarr store")

    train = verbs.add_parser(
        "train",
        help="train one of the two networks",
        description="Train a density network, then a velocity network that sees its predictions. "
        "The same command resumes a run that was stopped.",
    )
    train.add_argument("target", choices=("density", "velocity"))
    train.add_argument("--boxes", nargs="+", required=True, help="HDF5 boxes to train on")
    train.add_argument("--validation", nargs="+", required=True, help="HDF5 boxes to choose by")
    train.add_argument("--out", default="models", help="directory to write (default: %(default)s)")
    train.add_argument(
        "--density-model",
        help="directory of the density model that a velocity model sees (default: --out)",
    )
    train.add_argument("--architecture", choices=("residual", "paper"), default="residual")
    train.add_argument("--widths", nargs="+", type=int, help="channels of each level")
    train.add_argument("--steps", type=int, default=3000, help="(default: %(default)s)")
    train.add_argument(
        "--settle-steps",
        type=int,
        default=600,
        help="steps after these with the batch norm held fixed (default: %(default)s)",
    )
    train.add_argument("--batch-size", type=int, default=1, help="crops a step")
    train.add_argument("--crop", type=int, default=64, help="cells a side (default: %(default)s)")
    train.add_argument("--margin", type=int, default=6, help="its outer cells left out of the loss")
    train.add_argument("--ema-decay", type=float, default=0.998, help="of the averaged weights")
    train.add_argument("--learning-rate", type=float, default=2e-3, help="(default: %(default)s)")
    train.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    train.add_argument("--seed", type=int, default=0)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo

    demo(args.out, args.box, los=args.los, model=args.model)


def _info(args: argparse.Namespace) -> None:
    from .store import describe

    print(describe(args.store), end="")


def config_of(args: argparse.Namespace) -> TrainingConfig:
    """Training configuration of the arguments of ``cosmofields train``."""
    from .training import TrainingConfig

    return TrainingConfig(
        target=args.target,
        architecture=args.architecture,
        options={"widths": args.widths} if args.widths else {},
        steps=args.steps,
        settle_steps=args.settle_steps,
        batch_size=args.batch_size,
        crop=args.crop,
        margin=args.margin,
        learning_rate=args.learning_rate,
        ema_decay=args.ema_decay,
        precision=args.precision,
        seed=args.seed,
    )


def _train(args: argparse.Namespace) -> None:
    from .training import train

    source = args.density_model or args.out
    card = train(config_of(args), args.boxes, args.validation, args.out, density_model=source)
    print(f"Saved {card}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0, or 2 for input that cannot be used."""
    args = _parser().parse_args(argv)
    verb = {"demo": _demo, "info": _info, "train": _train}[args.verb]
    try:
        verb(args)
    except CosmofieldsError as error:
        print(f"cosmofields {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cosmofields {args.verb}: interrupted", file=sys.stderr)
        return 130
    return 0
