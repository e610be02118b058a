"""Parts of a box: cut it into sub-boxes, score each, and bring the scores of many together.

The statistics of a reconstruction differ from place to place; those of sub-boxes show by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from . import statistics
from .comparison import (
    MOMENTS,
    Measure,
    Pair,
    Row,
    combined_scores,
    compare,
    in_memory,
    pair_makers,
    shared_fields,
    shared_los,
    value_edges,
)
from .conventions import (
    AXES,
    COMPONENTS,
    DimensionError,
    GridMismatchError,
    MissingVariableError,
    box_lengths,
    check_periodic,
    grid_of,
    listing,
)
from .evaluation import assemble, facts
from .kernels.cells import ratio

Box = TypeVar("Box", xr.Dataset, xr.DataArray)

# Add up over boxes; means over boxes; what follows from the means.
_COUNTS = (
    "undirected_cells",
    "histogram_predicted",
    "histogram_true",
    "outside_predicted",
    "outside_true",
    "misalignment_histogram",
    "joint",
    "density_relation_predicted",
    "density_relation_true",
    "modes",
    "pairs",
)
_MEANS = (
    "power_predicted",
    "power_true",
    "power_cross",
    "multipoles_predicted",
    "multipoles_true",
    "xi_predicted",
    "xi_true",
    "xi_2d_predicted",
    "xi_2d_true",
)
_RATIOS = ("relative_deviation", "correlation", "transfer")
_SPREAD = "scatter over boxes times sqrt(V_all / V_overlap),"


def sub_boxes(
    ds: Box, size: float | Sequence[float], *, stride: float | Sequence[float] | None = None
) -> list[Box]:
    """Cut a box into cuboids, next to each other or overlapping.

    Parameters
    ----------
    ds : Dataset or DataArray with dims x, y, z
        A box; of a Dataset all variables are cut.
    size : float or three
        Sides of the parts in Mpc/h, whole cells.
    stride : float or three, optional
        Distance from one part to the next in Mpc/h, whole cells; default ``size``, so that no cell
        is in two parts.

    Returns
    -------
    list of Dataset or DataArray
        In the order of x, then y, then z of their corners.  Views of ``ds``, lazy where it is, with
        its coordinates; ``attrs["box_size"]`` are their sides, ``attrs["periodic"]`` is False, and
        ``attrs["origin"]`` is the first node, [x, y, z] in Mpc/h.  No part reaches around the
        edge of a periodic box; what is left over at the upper end is in no part.

    Raises
    ------
    DimensionError
        If the sides are no whole cells, or beyond those of the box.
    DimensionError, MissingAttributeError, NotPeriodicError
        If ``ds`` is no box.

    Examples
    --------
    The 25 test boxes of the paper::

        len(sub_boxes(ds, 600, stride=150))  # of a box of 1200 x 1200 x 600 Mpc/h
    """
    grid = grid_of(ds, what="sub_boxes")
    rolled = [axis for axis in AXES if (np.diff(ds[axis].values) < 0).any()]
    if rolled:
        raise DimensionError(
            f"sub_boxes needs nodes in rising order; `{rolled[0]}` jumps back: "
            f"ds.sortby({rolled[0]!r})"
        )
    cells = _whole_cells(size, grid.cell_size, "size")
    steps = cells if stride is None else _whole_cells(stride, grid.cell_size, "stride")
    for axis, n, have, length in zip(AXES, cells, grid.shape, grid.lengths, strict=True):
        if n > have:
            raise DimensionError(
                f"size={size} Mpc/h is more than the box has along {axis}; expected at most "
                f"{length:g}"
            )
        if n < 2:
            raise DimensionError(
                f"size={size} Mpc/h is one cell along {axis}; expected two or more"
            )
    sides = [n * cell for n, cell in zip(cells, grid.cell_size, strict=True)]
    starts = (
        range(0, have - n + 1, step) for have, n, step in zip(grid.shape, cells, steps, strict=True)
    )
    parts = []
    for corner in product(*starts):
        window = {axis: slice(i, i + n) for axis, i, n in zip(AXES, corner, cells, strict=True)}
        part = ds.isel(window)
        origin = [float(part[axis][0]) for axis in AXES]
        marks = {"box_size": list(sides), "periodic": False, "origin": origin}
        if isinstance(part, xr.Dataset):
            marked = {
                name: field.assign_attrs(marks)
                for name, field in part.data_vars.items()
                if set(AXES) <= set(field.dims)
            }
            part = part.assign(marked)
        parts.append(part.assign_attrs(marks))
    return parts


def _whole_cells(
    value: float | Sequence[float], cell_size: tuple[float, float, float], what: str
) -> list[int]:
    """Cells of a length (one number or three) along each axis."""
    try:
        lengths = np.broadcast_to(np.asarray(value, dtype=float), 3)
    except (TypeError, ValueError):
        lengths = np.array([np.nan])
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DimensionError(f"{what}={value!r}; expected one positive length in Mpc/h, or three")
    cells = []
    for axis, length, cell in zip(AXES, lengths, cell_size, strict=True):
        n = max(round(length / cell), 1)
        if abs(length / cell - n) > 1e-4:
            raise DimensionError(
                f"{what}={value} Mpc/h is no whole number of cells along {axis}, which are "
                f"{cell:g} Mpc/h; the nearest is {n * cell:g}"
            )
        cells.append(n)
    return cells


def evaluate_sub_boxes(
    predicted: xr.Dataset,
    true: xr.Dataset,
    size: float | Sequence[float],
    *,
    stride: float | Sequence[float] | None = None,
    taper: float = 0.35,
    edges: ArrayLike | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Score each part of a box as :func:`~cosmofields.evaluation.evaluate` scores a whole one.

    Magnitudes, divergences, curls and a momentum that is not there are made of the whole periodic
    box, and then cut, so that no derivative is taken across a cut.

    Parameters
    ----------
    predicted, true : Dataset
        Two versions of one universe on the same periodic grid.
    size, stride
        Of the parts, as in :func:`sub_boxes`.
    taper : float
        Part of each side over which a Tukey window takes the field to zero, for the spectra.  A
        velocity, whose power falls steeply, needs about a third: its power is then right
        to 2 % from the eighth fundamental mode of a part.
    edges, limits
        As in :func:`~cosmofields.evaluation.evaluate`.
    progress : bool
        Show a bar.

    Returns
    -------
    Dataset, dim realization and those of :func:`~cosmofields.evaluation.evaluate`
        Every variable has ``realization`` first; the coordinate ``origin`` (realization, axis) is
        the first node of each part in Mpc/h.  :func:`combine` brings them together.

    Raises
    ------
    DimensionError
        If the parts are no whole cells, or do not fit into the box.
    CosmofieldsError
        As :func:`~cosmofields.evaluation.evaluate`.

    Notes
    -----
    There are no correlation functions: made of a part by Fourier transforms they would pair its
    cells across opposite faces, at separations that they do not have, and the taper that the
    spectra need weights pairs by where they lie.  Those of the whole box are ``evaluate``'s.

    Eager.  Where the fields do not fit in memory, each statistic of each part computes what it
    reads: store them first.
    """
    for ds in (predicted, true):
        check_periodic(ds, what="evaluate_sub_boxes")
    how = Measure(edges, None, value_edges(limits), shared_los(predicted, true), taper)
    sub_boxes(true, size, stride=stride)  # what is wrong with them is said before any work
    fields = shared_fields(predicted, true)
    density = _cut(fields["density"], size, stride) if "density" in fields else []
    pairs: Any = pair_makers(fields)
    if progress:
        from rich.progress import track

        pairs = track(pairs, description="sub-boxes")
    rows: list[dict[str, Row]] = []
    units: dict[str, str] = {}
    for make in pairs:
        cuts = _cut(make(), size, stride)
        rows = rows or [{} for _ in cuts]
        for i, cut in enumerate(cuts):
            (p, t), *others = in_memory([cut, *density[i : i + 1]], 26)
            name = str(t.name)
            rows[i][name], shared = compare(p, t, others[0] if others else None, how)
        units[name] = str(t.attrs["units"])
    result = join([assemble(row, shared, units, how) for row in rows])
    origins = [cut[1].attrs["origin"] for cut in cuts]
    result = result.assign_coords(
        origin=(
            ("realization", "axis"),
            np.array(origins),
            {"units": "Mpc/h", "long_name": "first node of the part"},
        ),
        axis=COMPONENTS,
    )
    return result.assign_attrs(facts(predicted, true, cuts[0][1], list(fields)))


def _cut(
    pair: Pair, size: float | Sequence[float], stride: float | Sequence[float] | None
) -> list[Pair]:
    p, t = (sub_boxes(field, size, stride=stride) for field in pair)
    return list(zip(p, t, strict=True))


def combine(results: xr.Dataset | Sequence[xr.Dataset]) -> xr.Dataset:
    """Bring the scores of many boxes together: one result, and how much the boxes differ.

    Parameters
    ----------
    results : Dataset or sequence of Datasets
        What :func:`evaluate_sub_boxes` returned, or a sequence of such and of what
        :func:`~cosmofields.evaluation.evaluate` returned for separate boxes.  All boxes have one
        size, grid, set of fields and set of bins.  Parts of one box have to come in one Dataset,
        which says where they lie; different entries of a sequence are independent boxes.

    Returns
    -------
    Dataset
        As of :func:`~cosmofields.evaluation.evaluate`:

        - counts (``cells``, histograms, joint counts, ``modes``, ``pairs``) are summed;
        - scores are those of all cells of all boxes together, exactly; a cell that lies in several
          boxes counts as often;
        - spectra and correlation functions are the means over boxes, and ``relative_deviation``,
          ``correlation`` and ``transfer`` follow from the mean spectra;
        - ``NAME_spread`` beside each of these is the standard deviation over the boxes (ddof 1;
          of a ratio, that of the boxes' own ratios) times sqrt(V_all / V_overlap), eq. 11 of Xiao
          et al. 2024; NaN for one box.

        ``attrs["realizations"]`` is the number of boxes and ``attrs["volume_factor"]`` the factor
        of eq. 11.

    Raises
    ------
    MissingVariableError
        If there is no result.
    GridMismatchError
        If boxes, fields or bins differ.

    Notes
    -----
    V_all is the volume that the boxes cover together, V_overlap the sum of their volumes: for the
    paper's 25 boxes of 600 Mpc/h in 1200 x 1200 x 600 the factor is sqrt(4 / 25) = 0.4, for boxes
    that do not overlap 1.

    What it means: the standard deviation over boxes is the scatter of *one* box, and without
    overlap ``NAME_spread`` is that; the standard error of the mean of n independent boxes is
    smaller by sqrt(n).  With overlap, eq. 11 stands for neither.  The mean over boxes of V each
    that cover V_all has, of the scatter of one box, about sqrt(V / V_all): 0.5 in the paper's
    geometry, and 0.59 measured there (Gaussian noise, ``taper=0.2``), because boxes that overlap
    are alike and scatter less.  So the 0.4 of eq. 11 is two thirds of the error of the mean.  For
    that error take ``NAME_spread / volume_factor * sqrt(V / V_all)``, with V_all =
    volume_factor^2 n V, as a lower bound; boxes cut from one also share its longest waves.

    References
    ----------
    Xiao et al. 2024 (arXiv:2411.11280), eq. 11.
    """
    groups = [results] if isinstance(results, xr.Dataset) else list(results)
    if not groups:
        raise MissingVariableError("No result to combine; expected [evaluate(...), ...]")
    covered, summed = np.sum([_volumes(group) for group in groups], axis=0)
    groups = [_as_realizations(group) for group in groups]
    for group in groups[1:]:
        _check_alike(groups[0], group)
    boxes = join(groups) if len(groups) > 1 else groups[0]
    factor = float(np.sqrt(covered / summed))

    totals: dict[str, NDArray[Any]] = _pooled_scores(boxes)
    totals |= {key: boxes[key].sum("realization").values for key in _COUNTS if key in boxes}
    totals |= {key: boxes[key].mean("realization").values for key in _MEANS if key in boxes}
    p, t, cross = (totals[f"power_{side}"] for side in ("predicted", "true", "cross"))
    totals |= {
        "relative_deviation": ratio(p, t) - 1,
        "correlation": ratio(cross, np.sqrt(p * t)),
        "transfer": ratio(cross, t),
    }
    first = boxes.isel(realization=0, drop=True)
    combined = first.assign({key: first[key].copy(data=data) for key, data in totals.items()})
    spreads = {
        f"{key}_spread": combined[key].copy(data=_scatter(boxes[key]) * factor)
        for key in (*_MEANS, *_RATIOS)
        if key in boxes
    }
    for spread in spreads.values():
        spread.attrs["long_name"] = f"{_SPREAD} of: {spread.attrs['long_name']}"
    return combined.assign(spreads).assign_attrs(
        realizations=int(boxes.sizes["realization"]), volume_factor=factor
    )


def join(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Results along ``realization``, which every variable has then."""
    return xr.concat(
        results,
        "realization",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )


def _as_realizations(result: xr.Dataset) -> xr.Dataset:
    """A result with ``realization`` first in every variable, without the places of the boxes."""
    result = result.drop_vars(["origin", "axis", "realization"], errors="ignore")
    n = result.sizes.get("realization", 1)
    missing = [key for key, value in result.data_vars.items() if "realization" not in value.dims]
    return result.assign({key: result[key].expand_dims(realization=n) for key in missing})


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Raise :class:`GridMismatchError` unless the boxes have one size, grid, fields and bins."""
    differ = [
        key
        for key in ("box_size", "n_grid", "periodic")
        if not np.array_equal(np.array(first.attrs.get(key)), np.array(other.attrs.get(key)))
    ]
    differ += [
        str(key)
        for key in dict.fromkeys([*first.coords, *other.coords])
        if key not in first.coords
        or key not in other.coords
        or not first.coords[key].variable.equals(other.coords[key].variable)
    ]
    differ += [str(key) for key in first.keys() ^ other.keys()]
    if differ:
        raise GridMismatchError(
            f"The results differ in {listing(differ)}; expected boxes of one size and grid, scored "
            "on the same fields in the same bins: evaluate(..., edges=..., limits=...)"
        )


def _volumes(result: xr.Dataset) -> tuple[float, float]:
    """Volume that the boxes of a result cover, and the sum of their volumes, in (Mpc/h)^3."""
    sides = np.array(box_lengths(result))
    n = result.sizes.get("realization", 1)
    summed = n * float(np.prod(sides))
    if "origin" not in result.coords or "realization" not in result.dims:
        return summed, summed
    low = np.round(result["origin"].transpose("realization", "axis").values, 6)
    high = np.round(low + sides, 6)
    # Planes through all faces cut space into blocks, each of which is in a box or not.
    planes = [np.unique([low[:, i], high[:, i]]) for i in range(3)]
    inside = np.zeros([len(p) - 1 for p in planes], dtype=bool)
    for a, b in zip(low, high, strict=True):
        window = (slice(*np.searchsorted(p, [a[i], b[i]])) for i, p in enumerate(planes))
        inside[tuple(window)] = True
    steps = [np.diff(p) for p in planes]
    covered = np.einsum("ijk,i,j,k", inside.astype(float), *steps)
    return float(covered), summed


def _scatter(values: xr.DataArray) -> NDArray[np.float64]:
    """Standard deviation over boxes, NaN for one."""
    if values.sizes["realization"] == 1:
        return np.full(values.shape[1:], np.nan)
    return values.std("realization", ddof=1, skipna=False).values


def _pooled_scores(boxes: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Scores of the cells of all boxes together."""
    plain = boxes.drop_vars(list(boxes.coords))
    pooled = statistics.pool(plain[["cells", *MOMENTS]])
    totals = {key: pooled[key].values.copy() for key in ("cells", *MOMENTS)}
    if "component_moments" not in boxes:
        return totals
    fields = boxes["field"].values.tolist()

    def cells_of(group: str) -> xr.DataArray:
        at = xr.DataArray([fields.index(name) for name in boxes[group].values], dims=group)
        return plain["cells"].isel(field=at)

    # Of a vector it is the components that are pooled; its own scores follow from theirs.
    by_moment = {key: plain["component_moments"].isel(moment=i) for i, key in enumerate(MOMENTS)}
    pooled = statistics.pool(xr.Dataset(by_moment).assign(cells=cells_of("vector_field")))
    order = ("vector_field", "component")
    parts = {key: pooled[key].transpose(*order).values for key in MOMENTS}
    totals["component_moments"] = np.stack([parts[key] for key in MOMENTS], axis=-1)
    at = [fields.index(name) for name in boxes["vector_field"].values]
    for key, values in combined_scores(parts).items():
        totals[key][at] = values

    names = boxes["vector"].values.tolist()
    own = [boxes["vector_field"].values.tolist().index(name) for name in names]
    totals["component_correlation"] = parts["correlation_coefficient"][own]
    totals["component_rms_error"] = parts["rms_error"][own]
    totals["component_slope"] = parts["slope"][own]
    lengths = [fields.index(f"{name}_magnitude") for name in names]
    totals["magnitude_correlation"] = totals["correlation_coefficient"][lengths]
    directed = cells_of("vector") - plain["undirected_cells"]
    mean, std = statistics.pool_moments(
        directed, plain["misalignment_mean"], plain["misalignment_std"]
    )
    return totals | {"misalignment_mean": mean.values, "misalignment_std": std.values}
