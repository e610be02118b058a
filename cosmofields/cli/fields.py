"""Verbs on fields: demo, evaluate, info, predict, verify."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..conventions import AXES, CosmofieldsError
from ..zoo import is_model
from .catalogs import catalog_of, catalog_options
from .shared import MODEL, Verbs, check_inputs, client, one_or_three, storage_options


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    demo = verbs.add_parser(
        "demo",
        help="reconstruct a simulated box and score it",
        description="Take the halos of a simulated box that the model is for to redshift space, "
        "reconstruct density and velocity by linear theory and by the networks, and report on them "
        "against the truth.",
    )
    demo.add_argument(
        "--out", default="demo-output", help="directory to write (default: %(default)s)"
    )
    demo.add_argument("--box", help="HDF5 box; default: the sample in the package")
    demo.add_argument("--los", choices=AXES, default="z", help="line of sight (default: z)")
    demo.add_argument("--model", default="default", help=f"{MODEL} (default: %(default)s)")
    demo.set_defaults(run=_demo)

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
    evaluate.set_defaults(run=_evaluate)

    info = verbs.add_parser(
        "info",
        help="say what a store holds, or what a model is",
        description="Groups, fields, box, units, provenance of a Zarr store; whether it is whole. "
        "Of a model: what it is for, what it was trained on and how, what it scores.",
    )
    info.add_argument(
        "store", metavar="STORE|MODEL", help=f"path or URL of a Zarr store; or a model, {MODEL}"
    )
    storage_options(info)
    info.set_defaults(run=_info)

    predict = verbs.add_parser(
        "predict",
        help="reconstruct a catalogue into a store",
        description="Density, velocity and momentum from the halos of a catalogue, in stages, into "
        "a Zarr store. The same command goes on with a run that was stopped.",
    )
    catalog_options(predict)
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
        "--n-grid", type=int, nargs="+", help="cells, one side or three; default: by the model"
    )
    predict.add_argument(
        "--model",
        default="default",
        help=f"{MODEL} (default: %(default)s); it says which halos are taken and how they weigh",
    )
    predict.add_argument(
        "--number-density",
        type=float,
        nargs="+",
        metavar="N",
        help="of the mass bins, cumulative, (h/Mpc)^3; default: by the model",
    )
    predict.add_argument("--memory", help="of one process, e.g. '6 GB'; default: half of the free")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    predict.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the networks (default: %(default)s)",
    )
    predict.add_argument(
        "--symmetries",
        type=int,
        default=1,
        help="of the line of sight to average over: 1, 2, 4, 8 or 16 (default: %(default)s)",
    )
    predict.add_argument(
        "--restore-power",
        action="store_true",
        help="also write fields with the power of the true ones, for spectra",
    )
    predict.add_argument(
        "--uncertainty", action="store_true", help="also write the standard deviation of each cell"
    )
    predict.add_argument("--allow-mismatch", action="store_true", help="overrule the model's card")
    predict.add_argument(
        "--scheduler",
        help="address of a Dask scheduler, or the file that it wrote; default: local threads",
    )
    predict.add_argument(
        "--workers", type=int, default=1, help="of the scheduler's, to wait for (default: 1)"
    )
    predict.set_defaults(run=_predict)

    verify = verbs.add_parser(
        "verify",
        help="read every chunk of a store, and name what is damaged",
        description="Read a Zarr store from end to end: each chunk has to be there, to have the "
        "bits that its checksum says, and to be of its size. Exit code 1 if something is wrong.",
    )
    verify.add_argument("store", metavar="STORE", help="path or URL of a Zarr store")
    storage_options(verify)
    verify.set_defaults(run=_verify)


def _demo(args: argparse.Namespace) -> None:
    check_inputs(*([args.box] if args.box else []), model=args.model)
    from ..demo import demo

    demo(args.out, args.box, los=args.los, model=args.model, command=args.command)


def _evaluate(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..reporting import PAGE, check_output, report
    from ..reporting.inputs import gather

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
        from ..plotting import open_curves

        given["training"] = open_curves(args.training)
    report(
        **given,
        out=out,
        sub_boxes=one_or_three(args.sub_boxes),
        stride=one_or_three(args.stride),
        title=args.title,
        command=args.command,
        console=Console(stderr=True),
    )
    print(out / PAGE)


def _info(args: argparse.Namespace) -> None:
    if is_model(args.store):
        from ..scoring import describe_model

        print(describe_model(args.store), end="")
        return
    from ..store import describe

    print(describe(args.store, storage_options=dict(args.option)), end="")


def _verify(args: argparse.Namespace) -> int:
    from ..store import verify

    damages = verify(args.store, storage_options=dict(args.option), progress=sys.stderr.isatty())
    for damage in damages:
        print(damage)
    print(f"{args.store}: {len(damages)} damaged" if damages else f"{args.store}: sound")
    return 1 if damages else 0


def _predict(args: argparse.Namespace) -> None:
    from ..catalog import select, to_redshift_space

    check_inputs(model=args.model)
    halos = catalog_of(args, args.los if args.redshift_space else None)
    if args.number_density:
        halos = select(halos, args.number_density)
    if halos.attrs.get("space") != "redshift":
        if args.redshift_space:
            raise CosmofieldsError("--redshift-space needs --los: along which axis?")
        halos = to_redshift_space(halos, args.los or "z")
    elif args.los not in (None, halos.attrs["los"]):
        raise CosmofieldsError(
            f"--los {args.los}, but the catalogue is in redshift space along {halos.attrs['los']}"
        )
    from ..reconstruction import reconstruct

    with client(args.scheduler, args.workers):
        reconstruct(
            halos,
            args.out,
            n_grid=one_or_three(args.n_grid),
            model=args.model,
            memory=args.memory,
            device=args.device,
            precision=args.precision,
            symmetries=args.symmetries,
            restore_power=args.restore_power,
            uncertainty=args.uncertainty,
            allow_mismatch=args.allow_mismatch,
        )
    print(args.out)
