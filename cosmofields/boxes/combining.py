"""The scores of many boxes brought together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .. import statistics
from ..comparison import MOMENTS, combined_scores
from ..conventions import GridMismatchError, MissingVariableError, box_lengths, listing
from ..kernels.cells import ratio

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


def combine(results: xr.Dataset | Sequence[xr.Dataset]) -> xr.Dataset:
    """Bring the scores of many boxes together: one result, and how much the boxes differ.

    Parameters
    ----------
    results : Dataset or sequence of Datasets
        What :func:`evaluate_sub_boxes` returned, or a sequence of such and of what
        :func:`~cosmofields.evaluation.evaluate` returned for separate boxes.  All boxes have one
        size, grid, redshift, line of sight and taper, set of fields and set of bins.  Parts of one
        box have to come in one Dataset, which says where they lie; different entries of a sequence
        are independent boxes.

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
        If boxes, redshifts, lines of sight, tapers, fields or bins differ; or if a result is a
        combined one already, of which there is no telling what each box had.

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
    for group in groups:
        _check_not_combined(group)
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


def _check_not_combined(result: xr.Dataset) -> None:
    if "realizations" in result.attrs or any(str(key).endswith("_spread") for key in result):
        n = result.attrs.get("realizations", "several")
        raise GridMismatchError(
            f"A result is a combined one already, of {n} boxes; expected what evaluate or "
            "evaluate_sub_boxes returned, all of them in one call: combine([first, second, ...])"
        )


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    """Raise :class:`GridMismatchError` unless the boxes are of one kind, measured in one way."""
    a, b = first.attrs, other.attrs
    differ = [] if np.allclose(box_lengths(first), box_lengths(other), rtol=1e-6) else ["box_size"]
    differ += [
        key
        for key in ("n_grid", "periodic")
        if not np.array_equal(np.array(a.get(key)), np.array(b.get(key)))
    ]
    z, z_other = a.get("redshift"), b.get("redshift")
    if z is not None and z_other is not None and abs(z - z_other) > 1e-4:
        differ.append(f"redshift ({z} against {z_other})")
    los, los_other = a.get("los"), b.get("los")
    if los is not None and los_other is not None and los != los_other:
        differ.append(f"los ({los} against {los_other})")
    if a.get("taper") != b.get("taper"):
        differ.append(f"taper ({a.get('taper')} against {b.get('taper')})")
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
            f"The results differ in {listing(differ)}; expected boxes of one size, grid, redshift "
            "and line of sight, scored on the same fields in the same bins and with one taper: "
            "evaluate(..., edges=..., limits=..., taper=...)"
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
