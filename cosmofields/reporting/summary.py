"""What a reader sees first: a verdict in words, the headline numbers, and what to be wary of."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..conventions import listing
from ..store import side_text, summarize_facts
from .numbers import Results
from .tables import Table
from .text import (
    DEVIATIONS,
    HEADLINE,
    HEADLINE_NOTE,
    NO_ROLE,
    PAPER_NOTE,
    ROLES,
    SYMBOLS,
)

_FEW_MODES = 10
_UNLIKE = 0.3  # C_r of a velocity, which linear theory passes by far
_MADE_BY = ("model", "precision", "method", "bias", "weighting")
_PACKAGES = (
    "cosmofields",
    "numpy",
    "scipy",
    "xarray",
    "dask",
    "zarr",
    "numba",
    "torch",
    "matplotlib",
)


def box_name(true: xr.Dataset) -> str:
    """The file that the truth came from, as far as it says so."""
    source = true.attrs.get("source")
    return str(source.get("file", "the box")) if isinstance(source, Mapping) else "the box"


def role(true: xr.Dataset) -> str | None:
    """Role of the box in training: "test", "validation", "training", or None if not on record."""
    source = true.attrs.get("source")
    return source.get("role") if isinstance(source, Mapping) else None


def subtitle(true: xr.Dataset, result: xr.Dataset) -> str:
    """One line: the box, its grid, its redshift, the line of sight, its role."""
    sides = side_text(tuple(np.broadcast_to(np.asarray(result.attrs["box_size"], float), 3)))
    n_grid = [int(n) for n in result.attrs["n_grid"]]
    cells = " x ".join(map(str, n_grid)) if len(set(n_grid)) > 1 else f"{n_grid[0]}³"
    size = side_text(tuple(result.attrs["cell_size"]))
    parts = [f"{box_name(true)}: {sides} Mpc/h, {cells} cells of {size} Mpc/h"]
    if "redshift" in result.attrs:
        parts.append(f"z = {result.attrs['redshift']:g}")
    if "los" in result.attrs:
        parts.append(f"line of sight {result.attrs['los']}")
    parts.append(ROLES.get(str(role(true)), NO_ROLE))
    return "; ".join(parts) + "."


def verdict(true: xr.Dataset, results: Results) -> list[str]:
    """Sentences on each reconstruction, the judged one first, with the box's role beside."""
    on = {"test": "test box", "validation": "validation box", "training": "training box"}
    beside = on.get(str(role(true)), "box of unknown role")
    sentences = []
    for label, result in results.items():
        parts = []
        for name in ("velocity", "momentum", "density"):
            if name not in result["field"].values:
                continue
            row = result.sel(field=name)
            text = f"{name} C_r = {float(row['correlation_coefficient']):.3f}"
            if name == "velocity":
                spread = result.sel(vector=name)
                text += (
                    f", rms error {float(row['rms_error']):#.4g} km/s a component, "
                    f"1 − cos φ = {float(spread['misalignment_mean']):.3f} "
                    f"± {float(spread['misalignment_std']):.3f}"
                )
            parts.append(text)
        sentences.append(f"{_capital(label)} ({beside}): {'; '.join(parts)}.")
        if "velocity" in result["field"].values:
            found = float(result.sel(field="velocity")["correlation_coefficient"])
            if found < _UNLIKE:
                sentences.append(
                    f"C_r = {found:.3f} of the velocity is that of two universes: is the truth of "
                    "the same box, along the same axes?"
                )
    return sentences


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def headline(results: Results) -> Table:
    """The numbers that the paper prints, for each reconstruction, and the paper's beside them."""
    rows = []
    for text, name, kind, paper in HEADLINE:
        values = [_headline(result, name, kind) for result in results.values()]
        if any(value is not None for value in values):
            rows.append([text, *(value or "-" for value in values), paper or "-"])
    for name, low, high, paper in DEVIATIONS:
        values = [_deviation(result, name, low, high) for result in results.values()]
        if any(value is not None for value in values):
            span = f"{low:g} to {high:g}" if low else f"below {high:g}"
            text = f"largest |R(k)| of {SYMBOLS[name].replace('1 + ', '')}, k {span} h/Mpc"
            rows.append([text, *(value or "-" for value in values), paper or "-"])
    label, *others = results
    # The paper beside the one that is judged, where a narrow screen shows both.
    names = ["quantity", label, "the paper, another simulation", *others]
    rows = [[text, first, paper, *more] for text, first, *more, paper in rows]
    return Table(
        "headline",
        "Headline numbers",
        {name: [row[i] for row in rows] for i, name in enumerate(names)},
        f"{HEADLINE_NOTE} {PAPER_NOTE}",
    )


def _headline(result: xr.Dataset, name: str, kind: str) -> str | None:
    if name not in result["field"].values:
        return None
    if kind == "misalignment":
        row = result.sel(vector=name)
        return _pair(row["misalignment_mean"], row["misalignment_std"])
    row = result.sel(field=name)
    if kind in ("predicted", "true"):
        return _pair(row[f"mean_{kind}"], row[f"std_{kind}"])
    value = float(row[kind])
    return f"{value:.3f}" if kind == "correlation_coefficient" else f"{value:#.4g}"


def _pair(mean: Any, std: Any) -> str:
    decimals = 3 if float(std) < 1 else 2
    # No minus sign before zero.
    return f"{round(float(mean), decimals) + 0.0:.{decimals}f} ± {float(std):.{decimals}f}"


def _deviation(result: xr.Dataset, name: str, low: float, high: float) -> str | None:
    if name not in result["field"].values:
        return None
    ratio = result["relative_deviation"].sel(field=name)
    inside = ratio.values[(result["k_mean"].values >= low) & (result["k_mean"].values < high)]
    inside = inside[np.isfinite(inside)]
    return f"{np.abs(inside).max():.3f}" if inside.size else None


def warnings(
    true: xr.Dataset, results: Results, realizations: Mapping[str, xr.Dataset]
) -> Iterator[str]:
    """What to be wary of, a line each."""
    given = role(true)
    if given in ("training", "validation"):
        yield f"{box_name(true)} is {ROLES[given]}."
    elif given != "test":
        yield f"{_capital(NO_ROLE)}: the attribute `source` of the truth says no role."
    first = next(iter(results.values()))
    modes = first["modes"].values
    few = int(((modes > 0) & (modes < _FEW_MODES)).sum())
    if few:
        edge = float(first["k_bounds"].values[(modes > 0) & (modes < _FEW_MODES)].max())
        yield (
            f"{few} k bin{'s' if few > 1 else ''} below {edge:.3g} h/Mpc hold fewer than "
            f"{_FEW_MODES} modes: what stands there is the chance of one box."
        )
    empty = int((modes == 0).sum())
    if empty:
        yield f"{empty} of {modes.size} k bins hold no mode; they are left blank."
    for label, result in results.items():
        bad = [
            str(name)
            for name in result["field"].values
            if np.isnan(result["relative_deviation"].sel(field=name).values[modes > 0]).any()
        ]
        if bad:
            yield f"{label}: R(k) is undefined in some bins, for lack of power: {listing(bad)}."
        if "undirected_cells" in result and int(result["undirected_cells"].sum()):
            counts = listing(
                f"{name} {int(result['undirected_cells'].sel(vector=name))}"
                for name in result["vector"].values
            )
            yield f"{label}: cells where a vector is zero, left out of 1 − cos φ: {counts}."
        perfect = result["rms_error"].values == 0
        if perfect.any():
            names = listing(result["field"].values[perfect])
            yield f"{label}: equal to the truth in every cell of {names}. Is it the truth itself?"
    sides = np.broadcast_to(np.asarray(first.attrs["box_size"], dtype=float), 3)
    if sides.max() < 600:
        yield (
            f"The box lacks waves longer than {sides.max():g} Mpc/h, which carry part of the "
            "velocity: scores in a larger box are others."
        )
    if not first.attrs.get("periodic", True):
        yield (
            "The box is not periodic: spectra are tapered at its edges, and correlation functions "
            "are left out."
        )
    for boxes in list(realizations.values())[:1]:
        if boxes.sizes["realization"] < 5:
            yield f"Spreads come from {boxes.sizes['realization']} sub-boxes alone."


def facts(
    true: xr.Dataset, versions: Mapping[str, xr.Dataset], command: str
) -> Iterator[tuple[str, str]]:
    """Where everything came from, as (name, text)."""
    yield from ((f"truth: {name}", text) for name, text in summarize_facts(true))
    source = true.attrs.get("source")
    if isinstance(source, Mapping):
        yield "truth: source", listing(f"{key} {_short(value)}" for key, value in source.items())
    for label, ds in versions.items():
        made = []
        for name, da in ds.data_vars.items():
            told = [f"{key} {_short(da.attrs[key])}" for key in _MADE_BY if key in da.attrs]
            if told:
                made.append(f"{name}: {listing(told)}")
        if made:
            yield label, "; ".join(made)
    yield "command", command
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "packages", listing(f"{name} {found}" for name in _PACKAGES if (found := installed(name)))
    commit = _commit()
    if commit:
        yield "git", commit


def _short(value: Any) -> str:
    """Text of an attribute, numbers to four digits."""
    if isinstance(value, (list, tuple)):
        return f"[{listing(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def histories(versions: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, str]]:
    """The steps that made each version, as (name, text)."""
    for label, ds in versions.items():
        if ds.attrs.get("history"):
            yield label, str(ds.attrs["history"])


def installed(package: str) -> str:
    """Version of a package, empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Commit of the checkout that the package runs from, empty for an installed one."""
    root = Path(__file__).parents[2]
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
