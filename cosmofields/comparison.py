"""What there is to compare of two Datasets: their pairs of fields, value bins, and one pair's row.

:func:`cosmofields.evaluation.evaluate` and :mod:`cosmofields.boxes` put the rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import ArrayLike, NDArray

from . import statistics
from .conventions import (
    FIELDS,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    box_facts,
    canonical,
    check_los,
    check_same_grid,
    check_units,
    grid_of,
    is_lazy,
    label,
    listing,
    variable,
)
from .correlation import correlation_function, correlations
from .derivatives import curl, divergence
from .kernels.cells import ratio
from .lazy import fits
from .spectral import spectra

COMPARED = ("density", "velocity", "momentum")
ELLS = (0, 2, 4)

# Of cell_statistics, as they stand in a row.
MOMENTS = (
    "mean_predicted",
    "std_predicted",
    "mean_true",
    "std_true",
    "correlation_coefficient",
    "rms_error",
    "slope",
)

# Of these, a vector's are those of its magnitude.
SIZES = MOMENTS[:4]

# Edges of the bins of 1 - cos phi.
ANGLES = np.linspace(0, 2, 201)
_N_VALUES = 100
# Limits of the bins of values and their spacing.  They do not come from the data, so that counts of
# several boxes add up; below 0.1 % of the cells of 2.3 Mpc/h at z = 0.6 are outside.
_VALUES: Mapping[str, tuple[float, float, str]] = {
    "density": (1e-2, 1e3, "logarithmic"),
    "velocity": (-1500, 1500, "linear"),
    "velocity_magnitude": (0, 2000, "linear"),
    "velocity_divergence": (-600, 200, "linear"),
    "velocity_curl": (-200, 200, "linear"),
    "momentum": (-2e4, 2e4, "asinh"),
    "momentum_magnitude": (0, 5e4, "asinh"),
    "momentum_divergence": (-2e4, 2e4, "asinh"),
    "momentum_curl": (-2e4, 2e4, "asinh"),
}
# Where the asinh bins turn from equal to ever wider ones: half of all cells have |m| < 190 km/s,
# one in a thousand has 12,000 and more, and no bins of one width show both.
_TURN = 200.0

Pair = tuple[xr.DataArray, xr.DataArray]
Row = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Measure:
    """How a pair is measured: bins, line of sight (None: no multipoles), taper (None: periodic)."""

    edges: ArrayLike | None
    separations: ArrayLike | None
    values: Mapping[str, NDArray[np.float64]]
    los: str | None
    taper: float | None


def spacing(field: str) -> str:
    """Spacing of the bins of a field's values: "logarithmic", "linear" or "asinh"."""
    return _VALUES[field][2]


def value_edges(
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Edges of the bins of the values of every field.

    Parameters
    ----------
    limits : mapping of field to (low, high), optional
        In place of the fixed ones.

    Returns
    -------
    dict of field to array, 101
        Logarithmic for the density, equal for the velocity and what is made of it; equal steps of
        asinh(m / 200), which are equal up to 200 and logarithmic beyond, for the momentum.

    Raises
    ------
    DimensionError
        If there is no such field, or the limits are no range.
    """
    limits = limits or {}
    unknown = [name for name in limits if name not in _VALUES]
    if unknown:
        raise DimensionError(f"limits of {listing(unknown)}; expected of {listing(_VALUES)}")
    edges = {}
    for name, (low, high, how) in _VALUES.items():
        if name in limits:
            try:
                low, high = (float(limit) for limit in limits[name])
            except (TypeError, ValueError):
                low = high = np.nan
            floor = 0.0 if how == "logarithmic" else -np.inf
            if not (np.isfinite([low, high]).all() and floor < low < high):
                raise DimensionError(
                    f"limits[{name!r}]={limits[name]!r}; expected (low, high), two numbers with "
                    f"{'0 < ' if how == 'logarithmic' else ''}low < high"
                )
        if how == "logarithmic":
            steps = np.geomspace(low, high, _N_VALUES + 1)
        elif how == "linear":
            steps = np.linspace(low, high, _N_VALUES + 1)
        else:
            turned = np.linspace(np.arcsinh(low / _TURN), np.arcsinh(high / _TURN), _N_VALUES + 1)
            steps = _TURN * np.sinh(turned)
        edges[name] = steps
    return edges


def check_datasets(predicted: object, true: object) -> None:
    """Raise unless both are Datasets, and of one universe as far as both say whose they are.

    Raises
    ------
    DimensionError
        If one is no Dataset, or the second was predicted and the first was not.
    GridMismatchError
        If they come from simulations of different seeds, or from different files.
    """
    for given in (predicted, true):
        if isinstance(given, xr.Dataset):
            continue
        how = "xr.Dataset({'density': ..., 'velocity': ...})"
        if isinstance(given, xr.DataArray):
            name = given.name or ("velocity" if "component" in given.dims else "density")
            how = f"field.to_dataset(name={str(name)!r})"
        elif isinstance(given, tuple):
            how = (
                "open_box and tutorial.open_dataset return (halos, true), and this takes the second"
            )
        elif isinstance(given, str | Path):
            how = f"cf.open_store({str(given)!r}), or of an HDF5 box cf.open_box({str(given)!r})[1]"
        raise DimensionError(
            f"evaluate compares two Datasets, and a {type(given).__name__} was given: {how}"
        )
    assert isinstance(predicted, xr.Dataset)
    assert isinstance(true, xr.Dataset)
    made = [
        any(
            ds[name].attrs.get(key)
            for name in COMPARED
            if name in ds
            for key in ("model", "method")
        )
        for ds in (predicted, true)
    ]
    if made == [False, True]:
        raise DimensionError(
            "The second Dataset, the truth, holds what a model or linear theory made, and the "
            "first does not: swap them (in the shell: cosmofields evaluate PREDICTED TRUE)"
        )
    _check_source(predicted, true)


def _check_source(predicted: xr.Dataset, true: xr.Dataset) -> None:
    sources = [fact(ds, "source") for ds in (predicted, true)]
    if not all(isinstance(source, Mapping) for source in sources):
        return
    # A seed says more than the name of a file, which may be a copy's.
    key = "seed" if all(source.get("seed") is not None for source in sources) else "file"
    values = [source.get(key) for source in sources]
    if None in values or values[0] == values[1]:
        return
    # Halos and particles of one simulation, opened as catalogues, are in files of their own.
    if key == "file" and any(
        "open_catalog" in str(fact(ds, "history")) for ds in (predicted, true)
    ):
        return
    named = [
        listing(f"{key} {source[key]}" for key in ("file", "seed") if source.get(key) is not None)
        for source in sources
    ]
    raise GridMismatchError(
        f"The prediction is of another universe ({named[0]}) than the truth ({named[1]}), by "
        "attrs['source']; if they are to be compared, take that from one of them: "
        "del predicted.attrs['source']"
    )


def fact(ds: xr.Dataset, key: str) -> Any:
    """Box fact of a Dataset; what it does not say, the attributes of a field of it may."""
    sources = [ds, *(ds[name] for name in COMPARED if name in ds)]
    return next((obj.attrs[key] for obj in sources if obj.attrs.get(key) is not None), None)


def shared_los(predicted: xr.Dataset, true: xr.Dataset) -> str | None:
    """Line of sight of either Dataset, None if neither says.

    Raises
    ------
    DimensionError
        If it is no axis.
    GridMismatchError
        If they have different ones.
    """
    named = [fact(ds, "los") for ds in (true, predicted)]
    stated = [check_los(los) for los in named if los is not None]
    if len(set(stated)) > 1:
        raise GridMismatchError(
            f"The prediction has the line of sight {named[1]!r}, the truth {named[0]!r}; expected "
            f"one: predicted.assign_attrs(los={named[0]!r}), if it is so"
        )
    return stated[0] if stated else None


def shared_fields(predicted: xr.Dataset, true: xr.Dataset) -> dict[str, Pair]:
    """Pairs of the fields that both Datasets hold or can make, in memory where they fit.

    Parameters
    ----------
    predicted, true : Dataset
        With some of ``density``, ``velocity`` and ``momentum``; a momentum that is not there is
        density times velocity.

    Returns
    -------
    dict of name to (predicted, true)
        Computed together, so that work which they share is done once.

    Raises
    ------
    MissingVariableError
        If there is no field that both hold.
    GridMismatchError, NotPeriodicError, DimensionError
        If grids or redshifts differ, a field does not span its box, or has other units than it
        should.
    """
    held = [set(_held(ds)) for ds in (predicted, true)]
    names = [name for name in COMPARED if name in held[0] & held[1]]
    if not names:
        raise MissingVariableError(
            f"No field to compare: the prediction holds {listing(predicted.data_vars) or 'nothing'}"
            f", the truth {listing(true.data_vars) or 'nothing'}; expected one of "
            f"{listing(COMPARED)} in both"
        )
    z_predicted, z_true = fact(predicted, "redshift"), fact(true, "redshift")
    if z_predicted is not None and z_true is not None and abs(z_predicted - z_true) > 1e-4:
        raise GridMismatchError(
            f"The prediction is at redshift {z_predicted}, the truth at {z_true}; "
            "expected two versions of one universe at one time"
        )
    pairs = {}
    for name in names:
        p, t = _take(predicted, name), _take(true, name)
        check_same_grid(p, t)
        grid_of(t, what="evaluate")
        pairs[name] = p, t
    n_base = sum(2 * (3 if FIELDS[name].is_vector else 1) for name in names)
    # Besides: a pair of derived vectors, and modes of two vectors or of one and its curl.
    return dict(zip(pairs, in_memory(list(pairs.values()), n_base + 12), strict=True))


def _held(ds: xr.Dataset) -> Iterator[str]:
    yield from (name for name in COMPARED if name in ds)
    if "density" in ds and "velocity" in ds:
        yield "momentum"


def _take(ds: xr.Dataset, name: str) -> xr.DataArray:
    for part in (name,) if name in ds else ("density", "velocity"):
        check_units(ds[part], part)
    if name in ds:
        field = variable(ds, name)
        return field.assign_attrs({"units": FIELDS[name].units, **field.attrs})
    density, velocity = variable(ds, "density"), variable(ds, "velocity")
    product = canonical(density * velocity, "component")
    facts = {**box_facts(density), **box_facts(velocity)}
    return label("momentum", product.data, grid_of(velocity, what="evaluate"), facts)


def in_memory(pairs: Sequence[Pair], n_fields: int) -> list[Pair]:
    """The pairs computed at once if ``n_fields`` of their fields fit; else as they are.

    A pair that stays lazy is computed anew by each statistic, which streams it.
    """
    flat = [field for pair in pairs for field in pair]
    n_cells = flat[0].sizes["x"] * flat[0].sizes["y"] * flat[0].sizes["z"]
    if not is_lazy(*flat) or not fits(4 * n_fields * n_cells, "evaluate"):
        return list(pairs)
    flat = list(compute(*flat))
    return list(zip(flat[::2], flat[1::2], strict=True))


def pair_makers(fields: Mapping[str, Pair]) -> list[Callable[[], Pair]]:
    """Functions that make the pairs to compare: the fields, and of vectors what follows from them.

    Of a box that is not periodic there are no derivatives.
    """
    makers: list[Callable[[], Pair]] = []
    for name, pair in fields.items():
        makers.append(partial(_each, None, pair, name))
        if not FIELDS[name].is_vector:
            continue
        makers.append(partial(_each, statistics.magnitude, pair, f"{name}_magnitude"))
        if pair[1].attrs.get("periodic", True):
            makers.append(partial(_each, divergence, pair, f"{name}_divergence"))
            makers.append(partial(_each, curl, pair, f"{name}_curl"))
    return makers


def _each(make: Callable[[xr.DataArray], xr.DataArray] | None, pair: Pair, name: str) -> Pair:
    p, t = ((make(field) if make else field).rename(name) for field in pair)
    return p, t


def compare(
    predicted: xr.DataArray, true: xr.DataArray, density: Pair | None, how: Measure
) -> tuple[Row, dict[Hashable, xr.Variable]]:
    """Everything that is measured of one pair, and the bins that all pairs share.

    Parameters
    ----------
    predicted, true : DataArray, dims (x, y, z) or (component, x, y, z)
    density : pair of DataArrays or None
        Of the same cells, for the joint counts of a scalar with the density.
    how : Measure

    Returns
    -------
    row : dict of array
        Under the names of ``evaluate``'s variables, without the dim of the fields.  What a vector
        takes from its magnitude, which is a field of its own, is not in it.
    shared : dict of Variable
        Bins in k and r, and the modes and pairs in them.
    """
    name = str(true.name)
    edges = how.values[name]
    cells = statistics.cell_statistics(predicted, true)
    row: Row = {key: cells[key].values for key in ("cells", *MOMENTS)}
    if "component" in true.dims:
        row |= _vector_scores(predicted, true, cells)
        if name in FIELDS:
            row |= misalignment_scores(predicted, true)
    else:
        row |= _joint_counts(predicted, true, density, how)
    for side, field in (("predicted", predicted), ("true", true)):
        counts = statistics.histogram(field, edges=edges)
        row[f"histogram_{side}"] = counts.values
        row[f"outside_{side}"] = np.asarray(counts.attrs["outside"])
    found, shared = _spectra(predicted, true, how)
    row |= found
    if how.taper is None:
        found, bins = _correlations(predicted, true, how)
        row |= found
        shared |= bins
    return row, shared


def _vector_scores(predicted: xr.DataArray, true: xr.DataArray, cells: xr.Dataset) -> Row:
    """Scores of a vector as one field and of its components; of a curl, also of its magnitude."""
    parts = {key: cells[key].values for key in MOMENTS}
    row = combined_scores(parts)
    row["component_moments"] = np.stack([parts[key] for key in MOMENTS], axis=-1)
    if str(true.name) in FIELDS:
        row["component_correlation"] = parts["correlation_coefficient"]
        row["component_rms_error"] = parts["rms_error"]
        row["component_slope"] = parts["slope"]
    else:
        lengths = [statistics.magnitude(field) for field in (predicted, true)]
        size = statistics.cell_statistics(*lengths)
        row |= {key: size[key].values for key in SIZES}
    return row


def combined_scores(parts: Mapping[str, NDArray[Any]]) -> Row:
    """Scores of a vector from those of its components, which are the last axis."""
    variance = parts["std_predicted"] ** 2
    return {
        "correlation_coefficient": parts["correlation_coefficient"].mean(-1),
        "rms_error": np.sqrt((parts["rms_error"] ** 2).mean(-1)),
        "slope": ratio(np.nansum(parts["slope"] * variance, axis=-1), variance.sum(-1)),
    }


def misalignment_scores(predicted: xr.DataArray, true: xr.DataArray) -> Row:
    """Mean and scatter of 1 - cos phi, its histogram, and the cells that have no direction."""
    angle = statistics.misalignment(predicted, true)
    # Opposite vectors may be a rounding error beyond 2, and belong into the last bin.
    below = np.nextafter(np.float32(2), np.float32(0))
    counts = statistics.histogram(angle.clip(max=below), edges=ANGLES)
    sums = compute(
        angle.count(), angle.sum(dtype=np.float64), (angle.astype(np.float64) ** 2).sum()
    )
    n, total, square = (float(value) for value in sums)
    mean = total / n if n else np.nan
    return {
        "misalignment_mean": np.asarray(mean),
        "misalignment_std": np.sqrt(max(square / n - mean**2, 0.0)) if n else np.asarray(np.nan),
        "undirected_cells": np.asarray(angle.size - int(n)),
        "misalignment_histogram": counts.values,
    }


def _joint_counts(
    predicted: xr.DataArray, true: xr.DataArray, density: Pair | None, how: Measure
) -> Row:
    edges = how.values[str(true.name)]
    row: Row = {"joint": statistics.joint_distribution(predicted, true, edges=edges).values}
    for i, side in enumerate(("predicted", "true")):
        if density is not None:
            row[f"density_relation_{side}"] = statistics.joint_distribution(
                (predicted, true)[i],
                density[i],
                edges=edges,
                other_edges=how.values["density"],
                dims=("value", "density"),
            ).values
    return row


def _spectra(
    predicted: xr.DataArray, true: xr.DataArray, how: Measure
) -> tuple[Row, dict[Hashable, xr.Variable]]:
    ells = () if how.los is None else ELLS
    found = spectra(predicted, true, edges=how.edges, ells=ells, los=how.los, taper=how.taper)
    row: Row = {
        key: found[key].values
        for key in (
            "power_predicted",
            "power_true",
            "power_cross",
            "relative_deviation",
            "correlation",
            "transfer",
        )
    }
    if how.los is not None:
        row |= {key: found[key].values for key in ("multipoles_predicted", "multipoles_true")}
    return row, {key: found[key].variable for key in ("k", "k_bounds", "modes", "k_mean")}


def _correlations(
    predicted: xr.DataArray, true: xr.DataArray, how: Measure
) -> tuple[Row, dict[Hashable, xr.Variable]]:
    row: Row = {}
    keys = ["r", "r_bounds", "pairs", "r_mean"]
    for side, field in (("predicted", predicted), ("true", true)):
        if how.los is None:
            found = correlation_function(field, edges=how.separations)
            row[f"xi_{side}"] = found["xi"].values[None]
            continue
        found = correlations(field, ells=ELLS, edges=how.separations, los=how.los)
        row[f"xi_{side}"] = found["xi"].transpose("ell", "r").values
        row[f"xi_2d_{side}"] = found["xi_2d"].transpose("r_perp", "r_par").values
        keys += ["r_perp", "r_perp_bounds", "r_par", "r_par_bounds"]
    return row, {key: found[key].variable for key in keys}
