"""What several verbs share: how they are told, what they read, how they answer a script."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..conventions import CosmofieldsError, require_extra
from ..zoo import model_folder

# Of argparse's own type, which it does not export.
Verbs = Any
# Help of every option that takes a model.
MODEL = "name of a model that ships (`cosmofields models`), or path"
LOS = "line of sight, along which redshift shifts positions"

EXIT_CODES = """\
exit codes:
  0    done
  1    `verify` found damage; or a fault of cosmofields, with a traceback: please report it
  2    not usable: an option, a file, a model that does not fit; the message says what to type
  130  interrupted by Ctrl-C (143: by SIGTERM, as batch systems send it); the message says
       which command goes on where this one stopped
  141  whoever read standard output, such as `head`, has left; no message"""


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    summary: str,
    about: str,
    examples: Sequence[str],
    python: str | None = None,
    keeps: Callable[[argparse.Namespace], str] | None = None,
) -> argparse.ArgumentParser:
    """Add the parser of a verb, whose help teaches.

    Parameters
    ----------
    verbs : of the parser
    name : str
    run : function of the arguments, to the exit code
    summary : str
        A line for the list of verbs.
    about : str
        What it is for, what goes in and what comes out, with units.
    examples : sequence of str
        Commands, without ``cosmofields``.
    python : str, optional
        The function of the same in Python.
    keeps : function, optional
        Says where a run that was interrupted lies, if the same command goes on with it.
    """
    lines = [f"  cosmofields {example}" for example in examples]
    text = ["example:" if len(lines) == 1 else "examples:", *lines, ""]
    if python:
        text += [f"in Python:\n  {python}", ""]
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=about.strip(),
        epilog="\n".join([*text, EXIT_CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, keeps=keeps, example=examples[0])
    return parser


def completed(action: argparse.Action, kind: str) -> None:
    """Say what a shell completes the values of an option with; see :mod:`.shell`."""
    action.complete = kind  # type: ignore[attr-defined]


def model_option(parser: Any, *, also: str = "") -> None:
    """Add ``--model``."""
    completed(
        parser.add_argument(
            "--model", default="default", help=f"{MODEL}{also} (default: %(default)s)"
        ),
        "model",
    )


def json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--json``: one document on standard output instead of text, and nothing else there."""
    parser.add_argument("--json", action="store_true", help=f"for scripts: {what}, as JSON")


def print_json(document: Any) -> None:
    """Print one JSON document; what is no finite number is null, as JSON has none."""
    json.dump(_plain(document), sys.stdout, indent=2, allow_nan=False)
    print()


def _plain(value: Any) -> Any:
    """Of dicts, lists, numbers and text; numpy's and tuples as these."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | None) else str(value)


def cosmology(text: str) -> dict[str, float]:
    """Parameters of ``Omega_m=0.3,h=0.7``."""
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected numbers for Omega_m=...,h=...,Omega_b=...,n_s=...,sigma8=..."
        ) from None


def storage_options(parser: argparse.ArgumentParser) -> None:
    """Add the option of a verb that reads a store, wherever it lies."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="of an object store, e.g. anon=true, endpoint_url=https://...; may be repeated",
    )


def _option(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}; expected KEY=VALUE, such as anon=true")
    return key, {"true": True, "false": False}.get(value.lower(), value)


def check_inputs(*boxes: str, model: str | None = None) -> None:
    """Say what is wrong with a box or a model before torch is imported, which takes seconds."""
    from ..readers import open_box

    if model is not None:
        model_folder(model)
    for box in boxes:
        open_box(box)


def one_or_three(values: list[Any] | None) -> Any:
    """A single number as such; what is no list of three is refused where it is used."""
    return values[0] if values and len(values) == 1 else values


def dask_options(parser: Any) -> None:
    """Add ``--scheduler`` and ``--workers``, which :func:`client` takes."""
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="address of a Dask scheduler (tcp://host:8786), or the file that `dask scheduler "
        "--scheduler-file` wrote; default: threads of this machine",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="of the scheduler's, to wait for (default: 1)"
    )


@contextmanager
def client(scheduler: str | None, workers: int) -> Iterator[None]:
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
        connected = distributed.Client(**how, timeout="60s")
    except (OSError, TimeoutError, ValueError) as error:
        raise CosmofieldsError(f"No Dask scheduler answers at {scheduler!r}: {error}") from error
    with connected:
        # The plan counts those that are there.
        connected.wait_for_workers(workers)
        yield
