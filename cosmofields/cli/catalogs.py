"""How a catalogue is named on the command line: the files, and what they do not say."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import xarray as xr

from ..conventions import CosmofieldsError
from .shared import completed, cosmology, one_or_three


def catalog_options(parser: argparse.ArgumentParser) -> None:
    """Add the files of a catalogue, and the options that :func:`open_catalog` takes of them."""
    group = parser.add_argument_group("the catalogue, where its files do not say it themselves")
    completed(
        parser.add_argument(
            "catalog",
            metavar="CATALOG",
            nargs="+",
            help="files of the halos, a folder of them, or a store: HDF5, Zarr, Gadget, SUBFIND, "
            "Rockstar, AbacusSummit, Quijote, bigfile, FITS, Parquet, CSV, NPZ",
        ),
        "catalog",
    )
    completed(
        group.add_argument("--format", help="of the files (docs/formats.md); default: by contents"),
        "format",
    )
    group.add_argument(
        "--box-size",
        metavar="L",
        type=float,
        nargs="+",
        help="one side or three, comoving Mpc/h; default: the file's",
    )
    group.add_argument("--redshift", metavar="Z", type=float, help="default: the file's own")
    group.add_argument(
        "--cosmology",
        type=cosmology,
        metavar="KEY=VALUE,...",
        help="Omega_m, Omega_b, h, n_s, sigma8; default: the file's own",
    )
    for name in ("position", "velocity"):
        group.add_argument(
            f"--{name}",
            nargs="+",
            metavar="NAME",
            help="column of the file, or the three of x, y and z, with blanks or commas between; "
            "default: by its usual name",
        )
    group.add_argument(
        "--mass", metavar="NAME", help="column of the file; default: by its usual name"
    )
    group.add_argument("--group", metavar="NAME", help="group of the file that holds the halos")
    group.add_argument(
        "--units",
        nargs="+",
        type=_unit,
        metavar="COLUMN=UNIT",
        help="what the columns hold, e.g. position=kpc/h 'mass=1e10 Msun/h'; default: by the "
        "format, or Mpc/h, km/s and Msun/h",
    )
    group.add_argument(
        "--origin",
        metavar="X",
        type=float,
        nargs="+",
        help="corner of the box, Mpc/h, one or three (default: 0)",
    )
    group.add_argument(
        "--trust-units",
        action="store_true",
        help="go on with numbers that are unlikely in their units, and with boxes that are empty "
        "in part; default: say so and end",
    )


@contextmanager
def doubts_refused(*, overruled: bool) -> Iterator[None]:
    """Let numbers that are unlikely in their units end a run, which nobody may be looking at."""
    from ..catalog import UnitsWarning

    with warnings.catch_warnings():
        if not overruled:
            warnings.simplefilter("error", UnitsWarning)
        try:
            yield
        except UnitsWarning as doubt:
            raise CosmofieldsError(f"{doubt} If the numbers are right: --trust-units") from doubt


def catalog_of(args: argparse.Namespace, los: str | None) -> xr.Dataset:
    """The catalogue that the command line names, in redshift space already if ``los`` says so."""
    from ..readers import open_catalog

    return open_catalog(
        args.catalog if len(args.catalog) > 1 else args.catalog[0],
        format=args.format,
        box_size=one_or_three(args.box_size),
        redshift=args.redshift,
        cosmology=args.cosmology,
        los=los,
        position=_names(args.position),
        velocity=_names(args.velocity),
        mass=args.mass,
        group=args.group,
        units=dict(args.units) if args.units else None,
        origin=one_or_three(args.origin),
        storage_options=dict(args.option),
    )


def _names(given: list[str] | None) -> Any:
    """One column or three, of which commas may stand between the names, as in a list of NAMES."""
    if given and len(given) == 1 and given[0].count(",") == 2:
        given = given[0].split(",")
    return one_or_three(given)


def _unit(text: str) -> tuple[str, Any]:
    column, equals, unit = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}; expected COLUMN=UNIT, such as position=kpc/h")
    return column, unit
