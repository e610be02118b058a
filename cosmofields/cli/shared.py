"""What several verbs read from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..conventions import CosmofieldsError, require_extra
from ..zoo import model_folder

# Of argparse's own type, which it does not export.
Verbs = Any
# Help of every option that takes a model.
MODEL = "name of a model that ships (`cosmofields models`), or path"


def cosmology(text: str) -> dict[str, float]:
    """Parameters of ``Omega_m=0.3,h=0.7``."""
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected Omega_m=0.268,h=0.71,Omega_b=0.0445,n_s=0.968,sigma8=0.83"
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
