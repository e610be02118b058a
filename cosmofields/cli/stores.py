"""Verbs that look at what is there: info, verify."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..conventions import CosmofieldsError
from ..zoo import is_model
from .shared import MODEL, Verbs, add_verb, completed, json_option, print_json, storage_options


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    info = add_verb(
        verbs,
        "info",
        _info,
        summary="say what a store holds, or what a model is",
        about="""
Groups, fields, box (Mpc/h), units and provenance of a Zarr store, and whether it
is whole. Of a model: which catalogues it is for, what it was trained on and how,
what it scores. Reads metadata only.
""",
        examples=(
            "info fields.zarr",
            "info s3://bucket/fields.zarr --option anon=true",
            "info default",
            "info fields.zarr --json",
        ),
        python="cosmofields.open_store('fields.zarr', group='linear').recon; cosmofields.models()",
    )
    completed(
        info.add_argument(
            "store",
            metavar="STORE|MODEL",
            help=f"path or URL of a Zarr store; or a model, {MODEL}",
        ),
        "store or model",
    )
    storage_options(info)
    json_option(info, "the same facts")

    verify = add_verb(
        verbs,
        "verify",
        _verify,
        summary="read every chunk of a store, and name what is damaged",
        about="""
Read a Zarr store from end to end: each chunk has to be there, to have the bits
that its checksum says, and to be of its size. Exit code 1 if something is wrong.
""",
        examples=("verify fields.zarr", "verify share.zarr.zip --json"),
        python="cosmofields.verify('fields.zarr')",
    )
    completed(
        verify.add_argument("store", metavar="STORE", help="path or URL of a Zarr store"), "store"
    )
    storage_options(verify)
    json_option(verify, "`sound`, and the array, chunk and fault of each damage")


def _info(args: argparse.Namespace) -> None:
    if is_model(args.store):
        from ..scoring import describe_model, model_facts

        if args.json:
            print_json(model_facts(args.store))
        else:
            print(describe_model(args.store), end="")
        return
    from ..store import contents, describe

    _refuse_catalog(args.store)
    options = {"storage_options": dict(args.option)}
    if args.json:
        print_json(contents(args.store, **options))
    else:
        print(describe(args.store, **options), end="")


def _refuse_catalog(path: str) -> None:
    """Say how a catalogue, which is no store yet, is looked at and used."""
    from ..readers.formats import recognise

    if not Path(path).is_file():
        return
    kind = recognise(path)
    # A zip file may be a store.
    if kind not in (None, "zarr", "npz"):
        raise CosmofieldsError(
            f"{path!r} is no store, and is read as {kind}. Its halos: "
            f"cosmofields.open_catalog({path!r}).recon in Python; the fields made of them: "
            f"cosmofields predict {shlex.quote(path)} --out fields.zarr"
        )


def _verify(args: argparse.Namespace) -> int:
    from ..store import verify

    damages = verify(args.store, storage_options=dict(args.option), progress=sys.stderr.isatty())
    if args.json:
        print_json(
            {
                "store": args.store,
                "sound": not damages,
                "damages": [damage._asdict() for damage in damages],
            }
        )
        return 1 if damages else 0
    for damage in damages:
        print(damage)
    print(f"{args.store}: {len(damages)} damaged" if damages else f"{args.store}: sound")
    return 1 if damages else 0
