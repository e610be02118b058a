"""The command line: each verb is one public function."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from ..conventions import CosmofieldsError
from . import fields, learning
from .learning import TARGETS as TARGETS
from .learning import run_of as run_of


class _Verb(argparse.ArgumentParser):
    """The parser of a verb: what it does not know it says itself, with its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As of argparse, which leaves it to the parser of all verbs to find the rest unknown."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = [
                name
                for word in unknown
                for name in get_close_matches(word.partition("=")[0], self._option_string_actions)
            ]
            hint = f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""
            self.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")
        return found, unknown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cosmofields",
        description="Dark-matter density and velocity fields from a redshift-space halo catalogue.",
    )
    parser.add_argument("--version", action="version", version=version("cosmofields"))
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Verb)
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
