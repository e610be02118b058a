"""Tables of numbers, and what a result holds as such: text for CSV, LaTeX and a page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..evaluation import scores_table, without_rounding
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


# What stands in math.
_SYMBOLS = {
    "power_predicted": r"P_\mathrm{pred}",
    "power_true": r"P_\mathrm{true}",
    "power_cross": r"P_\times",
    "power_predicted_spread": r"\Delta P_\mathrm{pred}",
    "power_true_spread": r"\Delta P_\mathrm{true}",
    "power_cross_spread": r"\Delta P_\times",
    "relative_deviation": "R(k)",
    "relative_deviation_spread": r"\Delta R(k)",
    "correlation_spread": r"\Delta r(k)",
    "transfer": "T(k)",
    "transfer_spread": r"\Delta T(k)",
    "1 - cos phi": r"1-\cos\phi",
    "velocity divergence": r"\nabla\cdot v",
    "velocity_divergence": r"\nabla\cdot v",
    "velocity curl": r"\nabla\times v",
    "velocity_curl": r"\nabla\times v",
    "velocity magnitude": "|v|",
    "velocity_magnitude": "|v|",
    "momentum divergence": r"\nabla\cdot m",
    "momentum_divergence": r"\nabla\cdot m",
    "momentum curl": r"\nabla\times m",
    "momentum_curl": r"\nabla\times m",
    "momentum magnitude": "|m|",
    "momentum_magnitude": "|m|",
    "k_mean": r"\langle k\rangle",
    "k_low": r"k_\mathrm{low}",
    "k_high": r"k_\mathrm{high}",
    "k low": r"k_\mathrm{low}",
    "k high": r"k_\mathrm{high}",
    "km/s/(Mpc/h)": r"\mathrm{km\,s^{-1}}/(h^{-1}\,\mathrm{Mpc})",
    "km/s": r"\mathrm{km\,s^{-1}}",
    "(Mpc/h)^3": r"(h^{-1}\,\mathrm{Mpc})^3",
    "h/Mpc": r"h\,\mathrm{Mpc}^{-1}",
    "P(k)": "P(k)",
    "R(k)": "R(k)",
    "r(k)": "r(k)",
    "C_r": "C_r",
    "P_0": "P_0",
    "P_2": "P_2",
    "+-": r"\pm",
    "R,": "R,",
    "r,": "r,",
}
_LONGEST_FIRST = sorted(_SYMBOLS, key=len, reverse=True)
_MATH = re.compile(
    r"(?<![\w.])(?P<digits>-?\d(?:\.\d+)?)e(?P<exponent>[+-]\d+)(?!\w)"
    r"|^(?P<minus>-\d[\d.]*)$"
    rf"|(?<!\w)(?P<symbol>{'|'.join(map(re.escape, _LONGEST_FIRST))})(?!\w)"
)
_PAGE = 40  # rows that a page holds


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
        """A ``table``, or a ``longtable`` where one page is too short; both need booktabs."""
        words = self.text
        align = "".join("l" if i in words else "r" for i in range(len(self.columns)))
        caption = rf"\caption{{{_latex(f'{self.title}. {self.note}'.strip())}}}"
        head = [r"\toprule", " & ".join(map(_latex, self.columns)) + r" \\", r"\midrule"]
        body = [" & ".join(_latex(shown(item)) for item in row) + r" \\" for row in self.rows()]
        if len(body) > _PAGE:
            lines = [
                r"% needs \usepackage{booktabs,longtable}",
                rf"\begin{{longtable}}{{{align}}}",
                caption + r" \\",
                *head,
                r"\endfirsthead",
                *head,
                r"\endhead",
                r"\bottomrule",
                r"\endfoot",
                *body,
                r"\end{longtable}",
            ]
        else:
            lines = [
                r"% needs \usepackage{booktabs}",
                r"\begin{table}",
                r"\centering",
                caption,
                rf"\begin{{tabular}}{{{align}}}",
                *head,
                *body,
                r"\bottomrule",
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
    """Text with its symbols and powers of ten in math and everything else escaped."""
    parts, end = [], 0
    for found in _MATH.finditer(text):
        parts += [text[end : found.start()].translate(_LATEX), f"${_math(found)}$"]
        end = found.end()
    return "".join([*parts, text[end:].translate(_LATEX)])


def _math(found: re.Match[str]) -> str:
    if found["digits"]:
        return rf"{found['digits']}\times10^{{{int(found['exponent'])}}}"
    if found["minus"]:
        return found["minus"]
    return _SYMBOLS[found["symbol"]]


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
    for label, one_by_one in realizations.items():
        boxes, pooled = without_rounding(one_by_one), without_rounding(combined[label])
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
                        float(pooled[key].sel(field=name)),
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
