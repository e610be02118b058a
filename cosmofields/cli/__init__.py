"""The command line: each verb is one public function."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ..conventions import CosmofieldsError
from . import fields, learning
from .learning import TARGETS as TARGETS
from .learning import run_of as run_of


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cosmofields",
        description="Dark-matter density and velocity fields from a redshift-space halo catalogue.",
    )
    parser.add_argument("--version", action="version", version=version("cosmofields"))
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    fields.add_verbs(verbs)
    learning.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0, 1 for a damaged store, 2 for what cannot be used."""
    args = _parser().parse_args(argv)
    args.command = shlex.join(["cosmofields", *(sys.argv[1:] if argv is None else argv)])
    try:
        code: int | None = args.run(args)
    except CosmofieldsError as error:
        print(f"cosmofields {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cosmofields {args.verb}: interrupted", file=sys.stderr)
        return 130
    return code or 0
