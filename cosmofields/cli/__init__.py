"""The command line: each verb is one public function."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..conventions import CosmofieldsError, listing
from . import fields, learning, models, shell, stores
from .learning import TARGETS as TARGETS
from .learning import run_of as run_of
from .shared import EXIT_CODES

_ABOUT = """
Real-space dark-matter density, velocity and momentum fields from a redshift-space
halo catalogue. Positions and lengths are in comoving Mpc/h, velocities in peculiar
km/s, masses in Msun/h, number densities in (h/Mpc)^3; density is 1 + delta.
"""
_EXAMPLES = """
examples:
  cosmofields demo
  cosmofields predict halos.h5 --out fields.zarr
  cosmofields info fields.zarr
  cosmofields VERB --help

"""


class _Parser(argparse.ArgumentParser):
    """What it does not know it says in a line, with what is near to that."""

    def error(self, message: str) -> NoReturn:
        """Leave without the usage, which hides the line: of `predict` it has 20."""
        example = self.get_default("example")
        shown = f"Example: cosmofields {example}\n" if example else ""
        self.exit(2, f"{self.prog}: {message}\n{shown}All options: {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As of argparse since Python 3.14."""
        if action.choices is None or value in action.choices:
            return
        near = get_close_matches(str(value), map(str, action.choices), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise argparse.ArgumentError(
            action, f"invalid choice: {value!r}{hint}; expected one of {listing(action.choices)}"
        )

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


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on which everything leaves as it does on Ctrl-C."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cosmofields",
        description=_ABOUT.strip(),
        epilog=_EXAMPLES.lstrip() + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=version("cosmofields"), help="print it and exit"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    fields.add_verbs(verbs)
    stores.add_verbs(verbs)
    models.add_verbs(verbs)
    learning.add_verbs(verbs)
    shell.add_verbs(verbs, _parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code, as ``cosmofields --help`` lists them."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    args.command = shlex.join(["cosmofields", *(sys.argv[1:] if argv is None else argv)])
    try:
        with _leaves_on_sigterm(), _hears_interrupts(), _plain_warnings(args.verb):
            code: int = args.run(args) or 0
            sys.stdout.flush()
            return code
    except CosmofieldsError as error:
        return _say(args, str(error), 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            # Python would say so once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        # What the system refuses: no permission, a full disk, a connection that was lost.
        return _say(args, str(error), 2)
    except KeyboardInterrupt as interrupt:
        stopped = isinstance(interrupt, _Terminated)
        how, code = ("terminated", 128 + signal.SIGTERM) if stopped else ("interrupted", 130)
        _say(args, f"{how}; {_advice(args)}", code)
        if argv is None:
            # Threads would first finish what they have begun, and it would not be kept.
            sys.stdout.flush()
            os._exit(code)
        return code


def _reader_left() -> bool:
    """Whether nobody reads standard output any more, such as `head` when it has its lines."""
    try:
        output = sys.stdout.fileno()
    except ValueError:  # no file, where tests or notebooks keep it
        return False
    poll = select.poll()
    poll.register(output, 0)  # errors alone, which it always says
    return bool(poll.poll(0))


def _advice(args: argparse.Namespace) -> str:
    """What is left of a run that was stopped, and the command that goes on with it."""
    if args.keeps is None:
        return "nothing of it is kept"
    place = args.keeps(args)
    if "://" not in place and not Path(place).exists():
        return f"nothing was done yet. To begin again:\n  {args.command}"
    return f"what was done is kept in {place}. To go on:\n  {args.command}"


def _say(args: argparse.Namespace, what: str, code: int) -> int:
    print(f"cosmofields {args.verb}: {what}", file=sys.stderr, flush=True)
    return code


@contextmanager
def _leaves_on_sigterm() -> Iterator[None]:
    """Batch systems send it before they kill, and a job should leave as on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _hears_interrupts() -> Iterator[None]:
    """Interrupt again where Python drops an interrupt: in a finalizer, or a callback of a weakref.

    It comes as a signal, a moment later, since here it would be dropped too.
    """
    before = sys.unraisablehook

    def again(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        terminated = issubclass(lost.exc_type, _Terminated)
        number = signal.SIGTERM if terminated else signal.SIGINT
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _plain_warnings(verb: str) -> Iterator[None]:
    """Warnings in the words of an error, without the line of the source that warned."""

    def plain(message: Warning | str, *_: Any) -> str:
        return f"cosmofields {verb}: warning: {message}\n"

    before = warnings.formatwarning
    warnings.formatwarning = plain  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = before
