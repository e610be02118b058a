"""Tables of numbers, and what a result holds as such: text for CSV, LaTeX and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..evaluation import scores_table
from .numbers import Results, by_label, spectra_of, with_edges

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\n": " ",
    }
)


@dataclass(frozen=True)
class Table:
    """Columns of one length, under a name that is a file's too."""

    name: str
    title: str
    columns: Mapping[str, Sequence[Any]]
    note: str = ""

    @cached_property
    def text(self) -> list[int]:
        """Numbers of the columns that hold words, which are set to the left."""
        return [i for i, column in enumerate(self.columns.values()) if not _is_numeric(column)]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Rows of plain numbers and text."""
        yield from zip(*(map(_plain, column) for column in self.columns.values()), strict=True)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def csv(self) -> str:
        """Comma-separated text with a line of headings; NaN stays "nan"."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(
            [f"{item:.7g}" if isinstance(item, float) else item for item in row]
            for row in self.rows()
        )
        return text.getvalue()

    def latex(self) -> str:
        """A ``table`` environment that needs no package."""
        words = self.text
        align = "".join("l" if i in words else "r" for i in range(len(self.columns)))
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(f'{self.title}. {self.note}'.strip())}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\hline",
            " & ".join(map(_latex, self.columns)) + r" \\",
            r"\hline",
            *(" & ".join(_latex(shown(item)) for item in row) + r" \\" for row in self.rows()),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def shown(self, limit: int) -> list[list[str]]:
        """Text of the first ``limit`` rows."""
        return [
            [shown(item) for item in row] for row, _ in zip(self.rows(), range(limit), strict=False)
        ]


def shown(item: Any) -> str:
    """A number or text for people: four digits; a dash for what is undefined."""
    if isinstance(item, float):
        return f"{item:.4g}" if np.isfinite(item) else "-"
    return str(item)


def _plain(item: Any) -> Any:
    if isinstance(item, np.generic):
        item = item.item()
    return float("nan") if item is None else item


def _is_numeric(column: Sequence[Any]) -> bool:
    return all(isinstance(_plain(item), (int, float)) for item in column)


def _latex(text: str) -> str:
    return text.translate(_LATEX).replace("+-", r"$\pm$")


# --- what a result holds ---

_SCORES = {
    "correlation_coefficient": "C_r",
    "component_correlation": "C_r of component",
    "magnitude_correlation": "C_r of magnitude",
    "rms_error": "rms error",
    "component_rms_error": "rms error of component",
    "slope": "slope",
    "component_slope": "slope of component",
    "misalignment_mean": "1 - cos phi, mean",
    "misalignment_std": "1 - cos phi, scatter",
    "mean_predicted": "mean, predicted",
    "std_predicted": "scatter, predicted",
    "mean_true": "mean, true",
    "std_true": "scatter, true",
    "undirected_cells": "cells without direction",
}
_IN_UNITS = ("rms_error", "component_rms_error", "mean_", "std_")


def scores(results: Results) -> Table:
    """Every score of every field: a row each, a column for each reconstruction."""
    table = scores_table(results)
    fields = dict.fromkeys(name for per_label in table.values() for name in per_label)
    rows: list[dict[str, Any]] = []
    for name in fields:
        units = next(column[name]["units"] for column in table.values() if name in column)
        for key, text in _SCORES.items():
            found = {label: column.get(name, {}).get(key) for label, column in table.items()}
            first = next((value for value in found.values() if value is not None), None)
            if first is None:
                continue
            for part in first if isinstance(first, dict) else (None,):
                rows.append(
                    {
                        "field": name.replace("_", " "),
                        "score": f"{text} {part}" if part else text,
                        "units": units if key.startswith(_IN_UNITS) else "1",
                        **{
                            label: value[part] if part and value else value
                            for label, value in found.items()
                        },
                    }
                )
    names = ("field", "score", "units", *table)
    return Table(
        "scores",
        "Scores over cells",
        {name: [row[name] for row in rows] for name in names},
        "They depend on the cell size. Of a vector, mean and scatter are of its magnitude.",
    )


def spectra(results: Results) -> Table:
    """P(k), R(k), r(k) and T(k) of every field in every bin."""
    fields = list(next(iter(results.values()))["field"].values)
    return Table(
        "spectra",
        "Power spectra",
        by_label(results, lambda result: spectra_of(result, fields)),
        "k in h/Mpc; power in the square of the field's units times (Mpc/h)^3.",
    )


def deviations(label: str, result: xr.Dataset) -> Table:
    """R(k) and r(k) of density, velocity and momentum: a row for each bin, to print."""
    names = ("density", "velocity", "momentum", "velocity_divergence", "momentum_divergence")
    fields = [name for name in names if name in result["field"].values]
    edges = with_edges(result, "k")[["modes"]]
    table: dict[str, Any] = {"k low": edges["k_low"].values, "k high": edges["k_high"].values}
    table["modes"] = result["modes"].values.astype(np.int64)
    for name in fields:
        row = result.sel(field=name)
        table[f"R, {name.replace('_', ' ')}"] = row["relative_deviation"].values
        if "relative_deviation_spread" in row:
            table[f"+- ({name.replace('_', ' ')})"] = row["relative_deviation_spread"].values
        table[f"r, {name.replace('_', ' ')}"] = row["correlation"].values
    return Table(
        "deviations",
        f"Relative deviation R(k) and correlation r(k): {label}",
        table,
        "k in h/Mpc."
        + (" Means over the sub-boxes." if "relative_deviation_spread" in result else ""),
    )


def halos(clustering: xr.Dataset) -> Table:
    """Monopole and quadrupole of each catalogue's power: a row for each bin, to print."""
    edges = with_edges(clustering, "k")
    table: dict[str, Any] = {"k low": edges["k_low"].values, "k high": edges["k_high"].values}
    for ell in (0, 2):
        for label in clustering["sample"].values:
            table[f"P_{ell}, {label}"] = clustering["power"].sel(sample=label, ell=ell).values
    return Table(
        "halos",
        "Halos: monopole and quadrupole of the power spectrum",
        table,
        "k in h/Mpc, power in (Mpc/h)^3; shot noise is not subtracted.",
    )


def sub_boxes(realizations: Results, combined: Results) -> Table:
    """Scores of the sub-boxes: their mean, their scatter, their range, and all cells together."""
    keys = ("correlation_coefficient", "rms_error", "slope", "mean_predicted", "mean_true")
    rows: list[tuple[Any, ...]] = []
    for label, boxes in realizations.items():
        for name in boxes["field"].values:
            units = str(boxes["units"].sel(field=name).values)
            for key in keys:
                values = boxes[key].sel(field=name).values.astype(np.float64)
                rows.append(
                    (
                        label,
                        str(name).replace("_", " "),
                        _SCORES[key],
                        units if key.startswith(_IN_UNITS) else "1",
                        values.mean(),
                        values.std(ddof=1) if values.size > 1 else np.nan,
                        values.min(),
                        values.max(),
                        float(combined[label][key].sel(field=name)),
                    )
                )
    names = ("label", "field", "score", "units", "mean", "scatter", "lowest", "highest", "pooled")
    n = next(iter(realizations.values())).sizes["realization"]
    return Table(
        "sub_boxes",
        f"Scores of {n} sub-boxes",
        dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
        "Scatter: standard deviation from box to box, not divided by the root of their number; "
        "pooled: over the cells of all boxes together.",
    )
