"""Everything about a reconstruction in one directory: results, tables, figures, and one page.

:func:`report` measures every statistic of the paper, for any predicted and true version of a box,
and writes it: ``report.html`` needs neither a network nor another file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console

from .. import boxes
from ..conventions import (
    AXES,
    CatalogError,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    StoreError,
    attribute,
    box_lengths,
    check_same_grid,
    listing,
    require_extra,
    variable,
)
from ..correlation import correlations
from ..evaluation import evaluate
from ..linear import halo_overdensity
from ..sampling import to_real_space
from ..spectral import multipoles, power_spectrum
from ..stages import timed
from ..store import write_store
from ..two_point import clustering
from . import summary, tables
from .figures import REAL, SECTIONS, Contents, plan
from .page import Picture, Section, render
from .text import DEFINITIONS

PAGE, STORE = "report.html", "results.zarr"
LINEAR = "linear theory"
# Of a box that is not periodic, as in sub-boxes.
_TAPER = 0.35
_FINEST = 512  # cells a side of the mesh for halos: 0.5 GB
# Groups of the results that are no label's.
_OWN = ("combined", "halos", "observed", "sub_boxes")


def report(
    predicted: xr.Dataset | Mapping[str, xr.Dataset],
    true: xr.Dataset,
    out: str | Path,
    *,
    linear: xr.Dataset | None = None,
    observed: xr.Dataset | None = None,
    halos: xr.Dataset | None = None,
    halos_true: xr.Dataset | None = None,
    sub_boxes: float | Sequence[float] | None = None,
    stride: float | Sequence[float] | None = None,
    training: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    title: str | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> xr.DataTree:
    """Measure a reconstruction against the truth and write results, tables, figures and a page.

    Parameters
    ----------
    predicted : Dataset or mapping of label to Dataset
        The reconstruction that is judged; of a mapping the first, and the others beside it.
    true : Dataset
        The truth on the same grid.
    out : directory
        Made, or replaced as a whole if it holds a report.
    linear : Dataset, optional
        Another reconstruction, under the label "linear theory".
    observed : Dataset, optional
        With ``halo_density``: what went in, for the slices and as the curve of the halos.
    halos, halos_true : Dataset, optional
        The tracers in redshift space and the same in real space: clustering before and after they
        are moved back by the predicted velocity.
    sub_boxes, stride : float or three floats, optional
        Side and spacing in Mpc/h of boxes to cut, for the scatter from box to box; see
        :func:`~cosmofields.boxes.sub_boxes`.
    training : Dataset or mapping of title to Dataset, optional
        Learning curves from :func:`~cosmofields.plotting.open_curves`.
    title : str, optional
    command : str, optional
        What was typed, for the provenance.
    console : rich.console.Console, optional
        Where progress goes; by default nowhere.

    Returns
    -------
    DataTree
        What was measured, as in ``results.zarr``: a group for each label with what
        :func:`~cosmofields.evaluation.evaluate` returned (``attrs["label"]`` says which), with
        sub-boxes ``sub_boxes/LABEL`` (each box) and ``combined/LABEL``; ``observed`` (spectra and
        correlations of the halo field) and ``halos`` (what
        :func:`~cosmofields.two_point.clustering` returned).

    Raises
    ------
    MissingExtraError
        If matplotlib or jinja2 is not installed.
    StoreError
        If ``out`` is a file, or a directory that holds something else than a report.
    MissingVariableError, GridMismatchError, DimensionError
        As :func:`~cosmofields.evaluation.evaluate` and :func:`~cosmofields.boxes.sub_boxes`; or if
        grids, boxes or lines of sight differ.
    CatalogError
        If ``halos`` are not in redshift space, or ``halos_true`` not in real space.

    See Also
    --------
    cosmofields.evaluation.evaluate : the same numbers, without the files

    Notes
    -----
    Eager.  The directory holds ``report.html``, ``results.zarr`` (and ``results.nc`` where h5netcdf
    is installed), ``tables/NAME.csv`` and ``.tex``, ``figures/NAME.png``, ``.pdf``, ``.csv`` and
    ``.txt`` (the caption).  It appears when it is whole: a run that dies leaves none.
    """
    require_extra("matplotlib", "plot", "A report")
    require_extra("jinja2", "plot", "A report")
    out = Path(out).resolve()
    check_output(out)
    # A Dataset is a mapping too.
    versions: dict[str, xr.Dataset] = (
        {"prediction": predicted} if isinstance(predicted, xr.Dataset) else dict(predicted)
    )
    if linear is not None:
        versions[LINEAR] = linear
    if not versions:
        raise MissingVariableError("No prediction; expected a Dataset or {'label': Dataset, ...}")
    true = _with_line_of_sight(true, [*versions.values(), observed, halos])
    _check_given(true, observed, halos, halos_true)
    if sub_boxes is not None:
        boxes.sub_boxes(true, sub_boxes, stride=stride)  # views, or what is wrong with the sides
    say = console or Console(quiet=True)
    taper = None if true.attrs.get("periodic", True) else _TAPER
    missing: list[str] = []

    with timed(say, f"statistics of {len(versions)} version{'s' if len(versions) > 1 else ''}"):
        results = {label: evaluate(ds, true, taper=taper) for label, ds in versions.items()}
    contents = Contents(true, versions, results, observed=observed, training=training)
    if observed is not None and taper is None:
        with timed(say, "the observed halo field"):
            contents.measured = _observed(observed)
    realizations: dict[str, xr.Dataset] = {}
    if sub_boxes is not None:
        with timed(say, f"sub-boxes of {sub_boxes} Mpc/h"):
            realizations = {
                label: boxes.evaluate_sub_boxes(ds, true, sub_boxes, stride=stride)
                for label, ds in versions.items()
            }
            contents.bands = {label: boxes.combine(r) for label, r in realizations.items()}
    if halos is not None:
        with timed(say, "halos: moved back, and their clustering"):
            contents.halos = _clustering(halos, halos_true, true, versions, missing)
    missing += _not_given(contents, sub_boxes, halos)
    tree = _tree(contents, realizations)

    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        sections = {anchor: Section(anchor, text) for anchor, text in SECTIONS.items()}
        with timed(say, "figures"):
            for anchor, picture in _draw(contents, beside / "figures", missing):
                sections[anchor].figures.append(picture)
        scores = Section("scores", "Scores", tables=_tables(contents, realizations))
        for table in scores.tables:
            _write_text(beside / "tables" / f"{table.name}.csv", table.csv())
            _write_text(beside / "tables" / f"{table.name}.tex", table.latex())
        first = results[contents.judged]
        title = title or f"{contents.judged} against the truth: {summary.box_name(true)}"
        page = render(
            [scores, *sections.values()],
            title=title,
            subtitle=summary.subtitle(true, first),
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=summary.installed("cosmofields"),
            verdict=summary.verdict(true, results),
            warnings=list(summary.warnings(true, results, realizations)),
            headline=summary.headline(results),
            missing=missing,
            definitions=DEFINITIONS,
            facts=list(summary.facts(true, versions, command or "report(), from Python")),
            histories=list(summary.histories({**versions, "the truth": true})),
        )
        with timed(say, "results and page"):
            write_store(tree, beside / STORE, title=title)
            _write_netcdf(tree, beside / "results.nc")
            _write_text(beside / PAGE, page)
        _replace(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return tree


def check_output(out: Path) -> None:
    """Refuse at the door what could not be written at the end, or is not ours to replace."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{str(out)!r} is a file; expected a directory for the report")
    if out.exists() and any(out.iterdir()) and not (out / PAGE).exists():
        raise StoreError(
            f"{str(out)!r} holds something else than a report, so it is left alone. Name a "
            "directory that is new, empty, or holds an earlier report"
        )
    above = next(path for path in out.absolute().parents if path.exists())
    if not os.access(above, os.W_OK):
        raise StoreError(f"{str(above)!r} is not writable; give another directory")


def _with_line_of_sight(true: xr.Dataset, others: Sequence[xr.Dataset | None]) -> xr.Dataset:
    """The truth, with the line of sight that the others agree on: real space has none itself."""
    named = {ds.attrs["los"] for ds in others if ds is not None and ds.attrs.get("los")}
    if len(named) > 1:
        raise DimensionError(
            f"The lines of sight differ: {listing(sorted(named))}; expected one, attrs['los'] of "
            "the predictions, the observed fields and the halos"
        )
    return true.assign_attrs(los=named.pop()) if named else true


def _check_given(
    true: xr.Dataset,
    observed: xr.Dataset | None,
    halos: xr.Dataset | None,
    halos_true: xr.Dataset | None,
) -> None:
    """Refuse at the door what does not belong to the box of the truth."""
    if observed is not None:
        check_same_grid(true, observed)
    for catalog, space in ((halos, "redshift"), (halos_true, "real")):
        if catalog is None:
            continue
        if attribute(catalog, "space") != space:
            raise CatalogError(
                f"The halos are in {catalog.attrs['space']} space; expected halos in redshift "
                "space, and halos_true in real space"
            )
        if not np.allclose(box_lengths(catalog), box_lengths(true), rtol=1e-6):
            raise GridMismatchError(
                f"The halos live in a box of {catalog.attrs['box_size']} Mpc/h, the fields in one "
                f"of {true.attrs['box_size']}"
            )


def _observed(observed: xr.Dataset) -> dict[str, xr.Dataset]:
    """Spectrum, multipoles and correlations of the halo field that went in."""
    delta = halo_overdensity(observed)
    # Through the window of the mesh shot noise falls below its own line.  With its aliases, since
    # the mesh is plain; one that interlacing has freed of them takes the window alone.
    window = "cic" if delta.attrs.get("interlaced") else "cic-aliased"
    return {
        "power": power_spectrum(delta, window=window),
        "multipoles": multipoles(delta, window=window),
        "correlations": correlations(delta),
    }


def _clustering(
    halos: xr.Dataset,
    real: xr.Dataset | None,
    true: xr.Dataset,
    versions: Mapping[str, xr.Dataset],
    missing: list[str],
) -> xr.Dataset:
    """Clustering of the tracers as observed, moved back by each velocity, and in real space."""
    samples = {"redshift space": halos}
    # More than two would hide one another.
    for label, ds in list(versions.items())[:2]:
        if "velocity" in ds:
            samples[f"moved back, {label}"] = to_real_space(halos, variable(ds, "velocity"))
        else:
            missing.append(f"Halos moved back by {label}: it has no velocity.")
    if real is None:
        missing.append("Halos in real space: not given (halos_true), so there is no truth to meet.")
    else:
        samples[REAL] = real
    # Halos are points: a mesh finer than that of the fields shows more of them, up to what fits.
    n_grid = [min(2 * true.sizes[axis], _FINEST) for axis in AXES]
    return clustering(samples, n_grid=n_grid, los=halos.attrs["los"])


def _not_given(contents: Contents, sub_boxes: Any, halos: Any) -> Iterator[str]:
    if contents.observed is None:
        yield "Slices: the observed halo field was not given (observed)."
    if sub_boxes is None:
        yield (
            "Bands around the spectra: one box has no scatter from box to box. Cut it with "
            "--sub-boxes SIDE, or sub_boxes= in Python."
        )
    if halos is None:
        yield (
            "Clustering of halos moved back to real space: the tracers in redshift space were not "
            "given (halos)."
        )
    if contents.training is None:
        yield "Training curves (Fig. 3 of the paper): none were given (training)."


def _draw(contents: Contents, folder: Path, missing: list[str]) -> Iterator[tuple[str, Picture]]:
    """Draw and write each figure; what cannot be drawn of these data is said, not shown."""
    folder.mkdir()
    for item in plan(contents):
        try:
            figure = item.draw()
        except (DimensionError, MissingVariableError) as error:
            missing.append(f"{item.title}: {error}")
            continue
        # The layout settles in two passes; what follows is one plain drawing for each file.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        table = item.table(figure)
        png = BytesIO()
        figure.savefig(png, format="png")
        (folder / f"{item.name}.png").write_bytes(png.getvalue())
        figure.savefig(folder / f"{item.name}.pdf")
        caption = item.caption + (f" ({item.paper})" if item.paper else "")
        _write_text(folder / f"{item.name}.txt", f"{item.title}. {caption}\n")
        _write_text(folder / f"{item.name}.csv", table.csv())
        yield (
            item.section,
            Picture(
                item.name, item.title, item.caption, item.paper, item.alt, png.getvalue(), table
            ),
        )


def _tables(contents: Contents, realizations: Mapping[str, xr.Dataset]) -> list[tables.Table]:
    label = contents.judged
    found = [
        tables.scores(contents.results),
        tables.deviations(label, (contents.bands or contents.results)[label]),
        tables.spectra(contents.bands or contents.results),
    ]
    if realizations:
        found.insert(1, tables.sub_boxes(realizations, contents.bands))
    if contents.halos is not None:
        found.append(tables.halos(contents.halos))
    return found


def _tree(contents: Contents, realizations: Mapping[str, xr.Dataset]) -> xr.DataTree:
    """What was measured, by group."""
    groups: dict[str, xr.Dataset] = {}
    for prefix, results in (
        ("", contents.results),
        ("combined/", contents.bands),
        ("sub_boxes/", realizations),
    ):
        for label, result in results.items():
            groups[prefix + group_name(label, groups, prefix)] = result.assign_attrs(label=label)
    groups.update({f"observed/{name}": ds for name, ds in contents.measured.items()})
    if contents.halos is not None:
        groups["halos"] = contents.halos
    return xr.DataTree.from_dict(groups)


def group_name(label: str, taken: Mapping[str, Any], prefix: str = "") -> str:
    """Name of a group for a label that may hold anything."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in label).strip("_")
    plain = plain or "prediction"
    name, n = plain, 2
    while prefix + name in taken or name in _OWN:
        name, n = f"{plain}_{n}", n + 1
    return name


def _write_netcdf(tree: xr.DataTree, path: Path) -> None:
    """The same tree as NetCDF, where the library for it is there."""
    if not summary.installed("h5netcdf"):
        return
    plain = tree.copy()
    for node in plain.subtree:
        node.attrs = {key: _netcdf(value) for key, value in node.attrs.items()}
    # Joint distributions are mostly zeros.
    squeeze = {"zlib": True, "complevel": 4}
    encoding = {
        node.path: {name: squeeze for name, var in node.data_vars.items() if var.ndim}
        for node in plain.subtree
    }
    plain.to_netcdf(path, engine="h5netcdf", encoding=encoding)


def _netcdf(value: Any) -> Any:
    """An attribute as NetCDF holds it: structures as JSON."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
        return np.asarray(value)
    return json.dumps(value)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _replace(new: Path, out: Path) -> None:
    aside = out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        out.rename(aside)
    new.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
