"""Numbers of a result, and those behind a drawn figure, as tidy columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, xr.Dataset]


def columns(ds: xr.Dataset, order: Sequence[str] | None = None) -> dict[str, Any]:
    """Tidy columns of variables that share their dims: the coordinates, then the values."""
    frame = ds.to_dataframe(dim_order=list(order or ds.dims)).reset_index()
    return {str(name): frame[name].to_numpy() for name in frame}


def by_label(results: Results, pick: Callable[[xr.Dataset], xr.Dataset]) -> dict[str, Any]:
    """Tidy columns of a part of each result, one below the other, with the label in front."""
    parts = {label: columns(pick(result)) for label, result in results.items()}
    names = dict.fromkeys(name for part in parts.values() for name in part)
    size = {label: len(next(iter(part.values()))) for label, part in parts.items()}
    missing = {label: np.full(n, np.nan) for label, n in size.items()}
    return {
        "label": np.concatenate([np.repeat(label, n).astype(object) for label, n in size.items()]),
        **{
            name: np.concatenate([part.get(name, missing[label]) for label, part in parts.items()])
            for name in names
        },
    }


def with_edges(ds: xr.Dataset, *dims: str) -> xr.Dataset:
    """Result with the bounds of each dim as two coordinates, ``DIM_low`` and ``DIM_high``."""
    for dim in dims:
        if f"{dim}_bounds" in ds.coords:
            bounds = ds[f"{dim}_bounds"].values
            ds = ds.drop_vars(f"{dim}_bounds").assign_coords(
                {f"{dim}_low": (dim, bounds[:, 0]), f"{dim}_high": (dim, bounds[:, 1])}
            )
    return ds


_RATIOS = ("relative_deviation", "correlation", "transfer")
_POWERS = ("power_true", "power_predicted", "power_cross")


def spectra_of(result: xr.Dataset, fields: Sequence[str]) -> xr.Dataset:
    """Spectra and ratios of some fields, with the modes and the edges of each bin."""
    names = [
        name for base in (*_POWERS, *_RATIOS) for name in (base, f"{base}_spread") if name in result
    ]
    part = with_edges(result, "k")[[*names, *(n for n in ("modes", "k_mean") if n in result)]]
    part = part.sel(field=[name for name in fields if name in result["field"].values])
    keep = {"field", "k", "k_low", "k_high"}
    return part.drop_vars([name for name in part.coords if name not in keep])


# --- behind the figures ---


def pixels(figure: Figure) -> dict[str, NDArray[Any]]:
    """Values of the images of a figure whose panels share their axes, a row for each pixel."""
    table: dict[str, NDArray[Any]] = {}
    for ax in figure.axes:
        if not ax.images or not ax.get_title():
            continue
        image = ax.images[0]
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=np.float64), np.nan)
        if not table:
            left, right, low, high = image.get_extent()
            across, up = (
                start + (np.arange(n) + 0.5) * (stop - start) / n
                for start, stop, n in zip(
                    (left, low), (right, high), values.shape[::-1], strict=True
                )
            )
            table["across"] = np.tile(across, up.size)
            table["up"] = np.repeat(up, across.size)
        table[ax.get_title().split("\n")[0]] = values.ravel()
    return table


def lines(figure: Figure) -> dict[str, NDArray[Any]]:
    """Points of the labelled lines of a figure."""
    parts = [
        (str(line.get_label()), np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for ax in figure.axes
        for line in ax.lines
        if not str(line.get_label()).startswith("_")
    ]
    return {
        "label": np.concatenate([np.repeat(name, x.size).astype(object) for name, x, _ in parts]),
        "x": np.concatenate([x.astype(np.float64) for _, x, _ in parts]),
        "y": np.concatenate([y.astype(np.float64) for _, _, y in parts]),
    }


def _bins(bounds: xr.DataArray, name: str) -> dict[str, xr.DataArray]:
    return {
        f"{name}_{end}": bounds.isel(bound=i, drop=True) for i, end in enumerate(("low", "high"))
    }


def histograms(results: Results, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Cells by the value of some fields."""

    def pick(result: xr.Dataset) -> xr.Dataset:
        part = result[["histogram_true", "histogram_predicted"]].sel(field=list(fields))
        bounds = result["value_bounds"].sel(field=list(fields))
        low, high = (bounds.isel(bound=i, drop=True) for i in (0, 1))
        names = np.array(fields, dtype=object)
        bare = part.drop_vars(part.coords)
        return bare.assign_coords({"field": names, "value_low": low, "value_high": high})

    table = by_label(results, pick)
    order = ("label", "field", "value_low", "value_high", "histogram_true", "histogram_predicted")
    return {name: table[name] for name in order}


def angles(results: Results, vectors: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Cells by the misalignment of some vectors."""

    def pick(result: xr.Dataset) -> xr.Dataset:
        part = with_edges(result, "angle")[["misalignment_histogram"]].sel(vector=list(vectors))
        return _bare(part, "vector", "angle")

    return by_label(results, pick)


def joint(results: Results, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Cells by predicted and true value: the bins that hold any."""
    rows: list[dict[str, NDArray[Any]]] = []
    for result in results.values():
        for name in fields:
            bounds = result["value_bounds"].sel(field=name).values
            counts = result["joint"].sel(scalar=name).transpose("value_bin", "value_bin_true")
            p, t = np.nonzero(counts.values)
            rows.append(
                {
                    "field": np.repeat(np.array([name], dtype=object), p.size),
                    "predicted_low": bounds[p, 0],
                    "predicted_high": bounds[p, 1],
                    "true_low": bounds[t, 0],
                    "true_high": bounds[t, 1],
                    "cells": counts.values[p, t],
                }
            )
    return _stack(rows)


def density_relation(results: Results, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Cells by the value of a field and by density, predicted and true: the bins that hold any."""
    rows: list[dict[str, NDArray[Any]]] = []
    for result in results.values():
        density = result["value_bounds"].sel(field="density").values
        for name in fields:
            bounds = result["value_bounds"].sel(field=name).values
            predicted, true = (
                result[f"density_relation_{of}"]
                .sel(scalar=name)
                .transpose(..., "density_bin")
                .values
                for of in ("predicted", "true")
            )
            i, j = np.nonzero(predicted + true)
            rows.append(
                {
                    "field": np.repeat(np.array([name], dtype=object), i.size),
                    "value_low": bounds[i, 0],
                    "value_high": bounds[i, 1],
                    "density_low": density[j, 0],
                    "density_high": density[j, 1],
                    "cells_predicted": predicted[i, j],
                    "cells_true": true[i, j],
                }
            )
    return _stack(rows)


def _stack(rows: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def as_results(others: Results, name: str, stem: str, field: str) -> dict[str, xr.Dataset]:
    """Statistics of one field alone, in the layout of the predictions of ``field``."""
    return {
        label: ds[[name]].rename({name: f"{stem}_predicted"}).expand_dims(field=[field])
        for label, ds in others.items()
    }


def poles(results: Results, name: str, stem: str, dim: str) -> dict[str, NDArray[Any]]:
    """Multipoles of one field, predicted and true, over k or r."""

    def pick(result: xr.Dataset) -> xr.Dataset:
        names = [f"{stem}_{of}{end}" for of in ("true", "predicted") for end in ("", "_spread")]
        part = with_edges(result, dim)[[key for key in names if key in result]]
        return _bare(part.sel(field=name, drop=True), "ell", dim)

    return by_label(results, pick)


def planes(results: Results, name: str) -> dict[str, NDArray[Any]]:
    """Correlation of one field, predicted and true, over r_perp and r_par."""

    def pick(result: xr.Dataset) -> xr.Dataset:
        names = ("xi_2d_true", "xi_2d_predicted")
        part = with_edges(result, "r_perp", "r_par")[[key for key in names if key in result]]
        return _bare(part.sel(field=name, drop=True), "r_perp", "r_par")

    return by_label(results, pick)


def samples(clustering: xr.Dataset, name: str, *dims: str) -> dict[str, NDArray[Any]]:
    """One statistic of every catalogue, a column each."""
    part = with_edges(clustering, *dims)[[name]]
    wide = xr.Dataset(
        {str(label): part[name].sel(sample=label, drop=True) for label in part["sample"].values},
        part.drop_dims("sample").coords,
    )
    return columns(_bare(wide, *dims), dims)


def _bare(ds: xr.Dataset, *dims: str) -> xr.Dataset:
    """Without the coordinates that are neither a dim nor the edges of one."""
    kept = {*dims, *(f"{dim}_{end}" for dim in dims for end in ("low", "high"))}
    return ds.drop_vars([name for name in ds.coords if name not in kept])
