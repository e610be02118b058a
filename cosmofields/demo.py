"""The whole job on one simulated box: halos in redshift space to fields, scores and a report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console

from . import tutorial
from .catalog import select, to_redshift_space
from .conventions import MissingExtraError, StoreError, box_lengths, check_filled, listing
from .evaluation import evaluate, format_table, scores_table
from .inference import check_box, predict
from .linear import linear_bias, linear_theory
from .painting import paint
from .readers import open_box
from .reporting import PAGE, check_output, report
from .stages import timed
from .store import describe, side_text, write_store
from .unet import load_model

# Labels of the reconstructions, in the order of the table.
PAPER = "eq. 2"
FILTERED = "filtered"
BY_BIN = "filtered by bin"
NETWORK = "network"


def demo(
    out: str | Path,
    box: str | Path | None = None,
    *,
    los: str = "z",
    model: str | Path = "default",
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Reconstruct a simulated box from its halos and score every method against the truth.

    Parameters
    ----------
    out : directory
        Gets ``demo.zarr`` (groups observed, halos, halos_true, linear, reconstructed, true), the
        scores as ``scores.json`` and ``scores.txt``, and in ``report/`` everything that
        :func:`~cosmofields.reporting.report` writes.  What an earlier demo left there is replaced.
    box : path of an HDF5 box, optional
        See :func:`~cosmofields.readers.open_box`; default: the sample in the package.
    los : {"x", "y", "z"}
        Line of sight.
    model : name or path
        One that ships (``cosmofields models``), or a directory of saved models.  The tracers are
        those that it was trained for: number density, mass bins, weighting.
    command : str, optional
        What was typed, for the report.
    console : rich.console.Console, optional
        Where progress and the table go.

    Returns
    -------
    dict
        The scores, as in ``scores.json``: of linear theory (eq. 2 of the paper, one Wiener filter
        for all halos, one a mass bin) and of the network.  Halos that count 1 each in a single bin
        have no filter of their own: theirs is the one for all.

    Raises
    ------
    CosmofieldsError
        If the box cannot be read, or is not of the kind that the model was trained for.

    Notes
    -----
    Eager.  The paper's bias (eq. 4) is measured against the true density, which flatters eq. 2.
    The filters' biases are those of the training boxes, kept with the model.
    """
    out = Path(out)
    say = console or Console()
    _check_output(out)
    started = time.perf_counter()

    network, card = load_model("velocity", model)
    wanted = card["trained_for"]
    halos, true = tutorial.open_dataset() if box is None else open_box(box)
    source = halos.attrs.get("source", {})
    say.print(_introduction(halos, source, los), highlight=False, soft_wrap=True)
    say.print(_tracers(wanted, model), highlight=False, markup=False, soft_wrap=True)

    with timed(say, "halos: selected, in redshift space, painted"):
        chosen = select(halos, wanted["number_density"])
        tracers = to_redshift_space(chosen, los)
        n_grid = [true.sizes[axis] for axis in ("x", "y", "z")]
        observed = paint(tracers, n_grid, weighting=wanted["weighting"])
        by_number = paint(tracers.drop_vars("mass_bin"), n_grid, weighting="number")
        check_box(observed, card, network.coarsest)
        true = true.load()
        check_filled(true["density"], "the true fields")

    # One bin of halos that count 1 each: the filter by bin would be the filter of all.
    binned = len(wanted["number_density"]) > 1 or wanted["weighting"] != "number"
    what = "linear theory: eq. 2, Wiener filter" + ", Wiener filter by mass bin" * binned
    with timed(say, what):
        bias = card["linear_bias"]
        eq4 = linear_bias(by_number, true["density"])
        versions = {
            PAPER: linear_theory(by_number, method="paper", bias=eq4),
            FILTERED: linear_theory(by_number, bias=bias["all_by_number"]),
        }
        if binned:
            versions[BY_BIN] = linear_theory(observed, bias=bias["mass_bins"])

    with timed(say, "networks: density, then velocity"):
        versions[NETWORK] = predict(observed, model)

    out.mkdir(parents=True, exist_ok=True)
    with timed(say, "store"):
        tree = xr.DataTree.from_dict(
            {
                "observed": observed,
                "halos": tracers,
                "halos_true": chosen,
                "linear": versions[BY_BIN if binned else FILTERED],
                "reconstructed": versions[NETWORK],
                "true": true,
            }
        )
        title = f"cosmofields demo on {source.get('file', 'a box')}"
        write_store(tree, out / "demo.zarr", overwrite=True, title=title)

    # The network first: it is the one that the report is about.
    titles = {
        NETWORK: NETWORK,
        **({BY_BIN: "linear, by bin"} if binned else {}),
        FILTERED: "linear, filtered",
        PAPER: "linear, eq. 2",
    }
    try:
        measured = report(
            {titles[label]: versions[label] for label in titles},
            true,
            out / "report",
            observed=observed,
            halos=tracers,
            halos_true=chosen,
            title=title,
            command=command,
            console=say,
        )
        found = {node.attrs.get("label"): node.to_dataset() for node in measured.children.values()}
        missing = ""
    except MissingExtraError as error:
        with timed(say, "statistics"):
            found = {titles[label]: evaluate(ds, true) for label, ds in versions.items()}
        missing = str(error)
    table = scores_table({label: found[titles[label]] for label in versions})
    scores = {
        "box": {**source, "los": los, "box_size": halos.attrs["box_size"]},
        "cell_size": observed.recon.grid.cell_size[0],
        "model": str(model),
        "tracers": {key: wanted[key] for key in ("number_density", "weighting")},
        "eq4_bias": eq4,
        "scores": table,
    }
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    # For a terminal; curls, of which linear theory has none, are in the report.
    shown = {
        label: {field: scores for field, scores in row.items() if not field.endswith("_curl")}
        for label, row in table.items()
    }
    (out / "scores.txt").write_text(format_table(shown) + "\n")
    headline = {
        label: {field: row[field] for field in ("density", "velocity")}
        for label, row in table.items()
    }
    lines = [
        "",
        "Linear theory by eq. 2, with one Wiener filter"
        + (", and with one filter by mass bin; network:" if binned else "; network:"),
        "",
        format_table(headline),
        "",
        f"{time.perf_counter() - started:.0f} s. Written to {out}: demo.zarr, scores.json, "
        + ("scores.txt" if missing else "scores.txt, report/"),
        f"No report: {missing}" if missing else f"Report: {out / 'report' / PAGE}",
    ]
    say.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return scores


def _check_output(out: Path) -> None:
    """Refuse at the door what could not be written at the end."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{str(out)!r} is a file; expected a directory for the demo's output")
    store = out / "demo.zarr"
    if store.exists():
        describe(store)  # an error for what is no store, and so not to be replaced
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(above, os.W_OK):
        raise StoreError(f"{str(above)!r} is not writable; give another --out")
    if out.exists():
        check_output(out / "report")


def _tracers(wanted: dict[str, Any], model: str | Path) -> str:
    """Which halos the demo takes, in words."""
    cuts = wanted["number_density"]
    bins = f"in {len(cuts)} mass bins ({listing(f'{cut:g}' for cut in cuts)})"
    weighting = {
        "mass": "by its mass",
        "bin": "by the mean mass of its bin",
        "number": "as 1",
    }[wanted["weighting"]]
    return (
        f"model {model}: the heaviest {cuts[-1]:g} (h/Mpc)^3 of them, "
        f"{bins if len(cuts) > 1 else 'in one bin'}, each weighted {weighting}"
    )


def _introduction(halos: xr.Dataset, source: dict[str, Any], los: str) -> str:
    role = source.get("role")
    note = {
        "test": " (a test box: nothing was trained or chosen on it)",
        "validation": " (the validation box: the weights were chosen by it)",
        "training": " (a training box: its scores flatter the networks)",
    }.get(str(role), "")
    return (
        f"{source.get('file', 'box')}{note}: {halos.sizes['halo']:,} halos, "
        f"{side_text(box_lengths(halos))} Mpc/h, z = {halos.attrs['redshift']:g}, "
        f"line of sight {los}"
    )
