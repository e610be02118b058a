"""Verbs that make fields and measure them: demo, predict, evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..conventions import AXES, CosmofieldsError
from .catalogs import catalog_of, catalog_options, doubts_refused
from .shared import (
    LOS,
    Verbs,
    add_verb,
    check_inputs,
    client,
    completed,
    dask_options,
    json_option,
    model_option,
    one_or_three,
    print_json,
    storage_options,
)


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    _add_demo(verbs)
    _add_predict(verbs)
    _add_evaluate(verbs)


def _add_demo(verbs: Verbs) -> None:
    demo = add_verb(
        verbs,
        "demo",
        _demo,
        summary="reconstruct a simulated box and score it: a first look",
        about="""
Take the halos of a simulated box to redshift space, reconstruct density,
velocity (km/s) and momentum (km/s) by linear theory and by the networks, and
report on them against the truth. Without --box: the sample in the package,
about a minute.

in:   nothing, or an HDF5 box or a store of `simulate`
out:  a directory: report/report.html, scores.json, scores.txt, demo.zarr
""",
        examples=("demo", "demo --box box_105.h5 --los x --out demo-x"),
        python="from cosmofields.demo import demo; demo('demo-output')",
    )
    completed(
        demo.add_argument(
            "--out",
            metavar="DIR",
            default="demo-output",
            help="directory to write (default: %(default)s)",
        ),
        "directory",
    )
    completed(
        demo.add_argument(
            "--box",
            metavar="BOX",
            help="HDF5 box, or store of `simulate`; default: the sample in the package",
        ),
        "box",
    )
    demo.add_argument("--los", choices=AXES, default="z", help=f"{LOS} (default: z)")
    model_option(demo)


def _add_predict(verbs: Verbs) -> None:
    predict = add_verb(
        verbs,
        "predict",
        _predict,
        summary="reconstruct a catalogue into a store: density, velocity, momentum",
        about="""
Real-space density, velocity and momentum of the matter, from the halos of a
catalogue in redshift space. It prints its plan and works in stages (paint,
linear theory, density network, velocity network), each on disk as it is made:
the same command goes on with a run that was stopped.

in:   halos in a periodic box: positions (comoving Mpc/h), masses (Msun/h), and
      peculiar velocities (km/s), by which positions are shifted along --los; or
      --redshift-space for positions that are shifted already
out:  a Zarr store of the groups halos, observed, linear, reconstructed:
      density = 1 + delta, velocity and momentum in km/s
""",
        examples=(
            "predict halos.h5 --out fields.zarr",
            "predict halos.csv --box-size 300 --redshift 0.59 --out fields.zarr \\\n"
            "    --cosmology Omega_m=0.268,Omega_b=0.0445,h=0.71,n_s=0.968,sigma8=0.83",
            "predict shifted.csv --redshift-space --los z --model no-mass \\\n"
            "    --number-density 3e-3 --out fields.zarr",
        ),
        python="cosmofields.open_catalog('halos.h5').recon.to_redshift_space('z')"
        ".recon.reconstruct('fields.zarr')",
        keeps=lambda args: args.out,
    )
    catalog_options(predict)
    completed(
        predict.add_argument("--out", required=True, metavar="STORE", help="Zarr store to write"),
        "store",
    )
    seen = predict.add_argument_group("how it is observed")
    seen.add_argument("--los", choices=AXES, help=f"{LOS} (default: the catalogue's own, or z)")
    seen.add_argument(
        "--redshift-space",
        action="store_true",
        help="positions are in redshift space, though the catalogue does not say so; default: "
        "shift them by their velocity",
    )
    seen.add_argument(
        "--n-grid",
        metavar="N",
        type=int,
        nargs="+",
        help="cells, one side or three; default: what gives the cells of the model, 2.34 Mpc/h",
    )
    seen.add_argument(
        "--number-density",
        type=float,
        nargs="+",
        metavar="N",
        help="of the mass bins, cumulative, (h/Mpc)^3; default: by the model",
    )
    networks = predict.add_argument_group("the networks")
    model_option(networks, also="; it says which halos are taken and how they weigh")
    networks.add_argument(
        "--symmetries",
        metavar="N",
        type=int,
        default=1,
        help="of the line of sight to average over: 1, 2, 4, 8 or 16; 8 take 2 %% off the error "
        "(default: %(default)s)",
    )
    networks.add_argument(
        "--restore-power",
        action="store_true",
        help="also write fields with the power of the true ones, for spectra",
    )
    networks.add_argument(
        "--uncertainty", action="store_true", help="also write the standard deviation of each cell"
    )
    networks.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="use the model on a box that it was not trained for: see `cosmofields info MODEL`",
    )
    machine = predict.add_argument_group("the machine")
    machine.add_argument(
        "--memory", metavar="BYTES", help="of one process, e.g. '6 GB'; default: half of the free"
    )
    machine.add_argument(
        "--device", metavar="{auto,cpu,cuda}", default="auto", help="(default: auto)"
    )
    machine.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the networks (default: %(default)s)",
    )
    dask_options(machine)
    storage_options(predict)


def _add_evaluate(verbs: Verbs) -> None:
    evaluate = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        summary="report on a reconstruction: scores, spectra, figures, one page",
        about="""
Measure predicted fields against the true ones on the same grid, and write every
statistic and figure of the paper. Groups `linear`, `observed`, `halos` (in
redshift space) and `halos_true` beside PREDICTED or TRUE are used where they
are.

in:   density (1 + delta), velocity, momentum (km/s) of both, as `predict` writes
out:  a directory: report.html, tables (CSV, LaTeX), figures (PNG, PDF),
      results.zarr
""",
        examples=(
            "evaluate fields.zarr box_105.h5 --out report",
            "evaluate fields.zarr box_105.h5 --out report --sub-boxes 150 --json > scores.json",
        ),
        python="cosmofields.report(predicted, true, 'report')",
    )
    for name, what in (
        ("predicted", "Zarr store, or STORE/GROUP; of a store with groups `reconstructed`"),
        ("true", "Zarr store, STORE/GROUP, or an HDF5 box; of a store with groups `true`"),
    ):
        completed(evaluate.add_argument(name, metavar=name.upper(), help=what), "box")
    completed(
        evaluate.add_argument("--out", required=True, metavar="DIR", help="directory to write"),
        "directory",
    )
    evaluate.add_argument("--label", help="name of the prediction (default: that of its group)")
    for name, what in (
        ("linear", "another reconstruction to compare with"),
        ("observed", "the halo field that went in"),
        ("halos", "tracers in redshift space"),
        ("halos-true", "the same tracers in real space"),
    ):
        completed(evaluate.add_argument(f"--{name}", metavar="STORE", help=what), "store")
    evaluate.add_argument(
        "--sub-boxes",
        type=float,
        nargs="+",
        metavar="SIDE",
        help="cut boxes of this side (one or three, Mpc/h) for the scatter from box to box",
    )
    evaluate.add_argument(
        "--stride",
        metavar="D",
        type=float,
        nargs="+",
        help="from one sub-box to the next, Mpc/h (default: SIDE)",
    )
    completed(
        evaluate.add_argument(
            "--training", metavar="DIR", help="folder that training logged to, for its curves"
        ),
        "directory",
    )
    evaluate.add_argument("--title", help="of the page")
    storage_options(evaluate)
    json_option(evaluate, "the path of the page and the scores")


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
        storage_options=dict(args.option),
    )
    if args.training:
        from ..plotting import open_curves

        given["training"] = open_curves(args.training)
    tree = report(
        **given,
        out=out,
        sub_boxes=one_or_three(args.sub_boxes),
        stride=one_or_three(args.stride),
        title=args.title,
        command=args.command,
        console=Console(stderr=True),
    )
    if not args.json:
        print(out / PAGE)
        return
    from ..evaluation import scores_table

    results = {
        node.attrs["label"]: node.to_dataset()
        for node in tree.children.values()
        if "field" in node.dims and "label" in node.attrs
    }
    print_json({"report": out / PAGE, "scores": scores_table(results)})


def _predict(args: argparse.Namespace) -> None:
    check_inputs(model=args.model)
    with doubts_refused(overruled=args.trust_units):
        _reconstruct(args)
    print(args.out)


def _reconstruct(args: argparse.Namespace) -> None:
    from ..catalog import select, to_redshift_space

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
    from ..store import options_for

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
            storage_options=options_for(args.out, dict(args.option)),
        )
