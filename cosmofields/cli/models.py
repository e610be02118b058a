"""Verbs on models: models, score, calibrate."""

from __future__ import annotations

import argparse

from ..conventions import AXES
from ..zoo import ships
from .shared import (
    LOS,
    Verbs,
    add_verb,
    check_inputs,
    completed,
    json_option,
    model_option,
    print_json,
)


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    listed = add_verb(
        verbs,
        "models",
        _models,
        summary="the models that ship: what each is for, and what it scores",
        about="""
The models that ship: the catalogues that each is for (number densities in
(h/Mpc)^3, cells in Mpc/h), its size and its scores on test boxes (errors in
km/s). `cosmofields info MODEL` has more of each.
""",
        examples=("models", "models --json", "info sparse"),
        python="cosmofields.models()",
    )
    json_option(listed, "a list with all of it")

    score = add_verb(
        verbs,
        "score",
        _score,
        summary="score a model on boxes with known truth",
        about="""
Run the models over boxes with known truth, linear theory beside them; print every
score that docs/scores.md shows. Those of a model in a directory go into its
cards, a box at a time; the cards of a model that ships are left alone.

in:   boxes: HDF5, or stores of `simulate`
out:  correlation, rms error (km/s for velocities), slope and spectra of the
      network, of filtered linear theory and of eq. 2, on standard output
""",
        examples=(
            "score --boxes box_105.h5",
            "score --model ./mine --boxes box_105.h5 --json > scores.json",
        ),
        python="cosmofields.score('default', ['box_105.h5'])",
    )
    model_option(score)
    completed(
        score.add_argument(
            "--boxes", metavar="BOX", nargs="+", required=True, help="boxes to score on"
        ),
        "box",
    )
    score.add_argument(
        "--symmetries", metavar="N", type=int, default=1, help="as of predict (default: 1)"
    )
    score.add_argument("--los", choices=AXES, default="z", help=f"{LOS} (default: z)")
    completed(
        score.add_argument(
            "--out",
            metavar="FILE",
            help="write the scores here, a box at a time, not into the cards",
        ),
        "file",
    )
    score.add_argument(
        "--write",
        action="store_true",
        help="into the cards whatever the model is, and also with --out",
    )
    json_option(score, "every score of every box")

    calibrate = add_verb(
        verbs,
        "calibrate",
        _calibrate,
        summary="measure a model's power and errors, and keep them in its cards",
        about="""
Run the models over boxes with known truth: how much power their fields lack by
scale, and how wrong a cell is. `predict --restore-power` and `--uncertainty` use
what it measures.

in:   boxes: HDF5, or stores of `simulate`; for --boxes those of the training
out:  the cards of the model, DIR/TARGET.json, with a calibration
""",
        examples=("calibrate --model ./mine --boxes a.h5 b.h5 --validation c.h5",),
        python="cosmofields.calibrate('./mine', ['a.h5', 'b.h5'], ['c.h5'])",
    )
    completed(
        calibrate.add_argument(
            "--model",
            metavar="DIR",
            required=True,
            help="directory of the model; those that ship stay as they are",
        ),
        "directory",
    )
    for name, what in (("boxes", "boxes to measure"), ("validation", "boxes to scale errors by")):
        completed(
            calibrate.add_argument(f"--{name}", metavar="BOX", nargs="+", required=True, help=what),
            "box",
        )
    calibrate.add_argument(
        "--symmetries",
        metavar="N",
        nargs="+",
        type=int,
        default=[1, 8],
        help="of predict, that are measured (default: 1 8)",
    )
    calibrate.add_argument("--los", choices=AXES, default="z", help=f"{LOS} (default: z)")


def _calibrate(args: argparse.Namespace) -> None:
    # A model that ships is refused below, whatever the boxes.
    check_inputs(*(() if ships(args.model) else args.boxes + args.validation), model=args.model)
    from ..inference import calibrate

    calibrate(
        args.model,
        args.boxes,
        args.validation,
        symmetries=args.symmetries,
        los=args.los,
        progress=True,
    )


def _score(args: argparse.Namespace) -> None:
    check_inputs(*args.boxes, model=args.model)
    from ..scoring import EQ2, FILTERED, NETWORK, ROWS, score

    found = score(
        args.model,
        args.boxes,
        los=args.los,
        symmetries=args.symmetries,
        progress=True,
        # What is not asked for is left to the model: a directory's cards get its scores.
        write=args.write or None,
        out=args.out,
    )
    if args.json:
        print_json(found)
        return
    columns = (NETWORK, FILTERED, EQ2)
    for box, scores in found["boxes"].items():
        print(f"\n{box:56}" + "".join(f"{column:>24}" for column in columns))
        for row in ROWS:
            values = [row.of(scores[column]) for column in columns]
            texts = [", ".join(f"{v:.4g}" for v in each) or "-" for each in values]
            print(f"{row.label:56}" + "".join(f"{text:>24}" for text in texts))


def _models(args: argparse.Namespace) -> None:
    from ..scoring import headlines, models

    if args.json:
        print_json(models())
        return
    for model in models():
        densities = " ".join(f"{n:g}" for n in model["number_density"])
        print(
            f"{model['name']}: for {model['purpose']}\n"
            f"  makes {', '.join(model['targets'])}; halos of {densities} (h/Mpc)^3 by "
            f"{model['weighting']}, z = {model['redshift']:g}, cells of {model['cell_size']:.4g} "
            f"Mpc/h; {model['megabytes']} MB"
        )
        for line in headlines(model["scores"]):
            print(f"  {line}")
