"""A box cut into parts, and each part scored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import dask
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..comparison import (
    Measure,
    Pair,
    Row,
    check_datasets,
    compare,
    fact,
    in_memory,
    pair_makers,
    shared_fields,
    shared_los,
    value_edges,
)
from ..conventions import (
    AXES,
    BOX_KEYS,
    COMPONENTS,
    FIELDS,
    DimensionError,
    check_periodic,
    grid_of,
    is_lazy,
)
from ..evaluation import assemble, facts
from ..stages import bars
from ..store import open_store, write_store
from .combining import join

log = logging.getLogger("cosmofields")
Box = TypeVar("Box", xr.Dataset, xr.DataArray)


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
    lengths = _three_lengths(size, "size")
    for axis, wanted, length in zip(AXES, lengths, grid.lengths, strict=True):
        if wanted > length * (1 + 1e-6):
            raise DimensionError(
                f"size={size} Mpc/h is more than the box has along {axis}; expected at most "
                f"{length:g}"
            )
    cells = _whole_cells(size, grid.cell_size, "size")
    steps = cells if stride is None else _whole_cells(stride, grid.cell_size, "stride")
    for axis, n in zip(AXES, cells, strict=True):
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


def _three_lengths(value: float | Sequence[float], what: str) -> NDArray[np.float64]:
    """A length along each axis, of one number or three."""
    try:
        lengths = np.broadcast_to(np.asarray(value, dtype=float), 3)
    except (TypeError, ValueError):
        lengths = np.array([np.nan])
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DimensionError(f"{what}={value!r}; expected one positive length in Mpc/h, or three")
    return lengths


def _whole_cells(
    value: float | Sequence[float], cell_size: tuple[float, float, float], what: str
) -> list[int]:
    """Cells of a length (one number or three) along each axis."""
    cells = []
    for axis, length, cell in zip(AXES, _three_lengths(value, what), cell_size, strict=True):
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
        As in :func:`sub_boxes`.
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

    Eager.  Where the fields do not fit in memory, each part computes what it reads of them: store
    them first.  What is made of the whole box is then computed once, into a temporary store in
    dask's ``temporary_directory`` (or the system's), which is removed afterwards: six components
    at a time at most, four bytes a cell each.  Workers on other machines have to see it.
    """
    check_datasets(predicted, true)
    predicted, true = (_with_facts(ds) for ds in (predicted, true))
    for ds in (predicted, true):
        check_periodic(ds, what="evaluate_sub_boxes")
    how = Measure(edges, None, value_edges(limits), shared_los(predicted, true), taper)
    sub_boxes(true, size, stride=stride)  # what is wrong with them is said before any work
    fields = shared_fields(predicted, true)
    density = _cut(fields["density"], size, stride) if "density" in fields else []
    pairs: Any = pair_makers(fields)
    if progress:
        from rich.progress import track

        pairs = track(pairs, description="sub-boxes", console=bars())
    rows: list[dict[str, Row]] = []
    units: dict[str, str] = {}
    for make in pairs:
        with _computed_once(make()) as pair:
            cuts = _cut(pair, size, stride)
            rows = rows or [{} for _ in cuts]
            for i, cut in enumerate(cuts):
                # Of a vector there are no joint counts with the density.
                beside = [] if "component" in cut[1].dims else density[i : i + 1]
                (p, t), *others = in_memory([cut, *beside], 26)
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
    return result.assign_attrs(facts(predicted, true, cuts[0][1], list(fields), taper))


def _with_facts(ds: xr.Dataset) -> xr.Dataset:
    """The Dataset, with the box facts of its fields where it has none of its own."""
    return ds.assign_attrs({key: fact(ds, key) for key in BOX_KEYS if fact(ds, key) is not None})


@contextmanager
def _computed_once(pair: Pair) -> Iterator[Pair]:
    """The pair; of a derived one that is lazy, which each part would compute anew, a stored copy.

    Derivatives need the whole box, whatever part of them is asked for.
    """
    lazy = {
        side: field
        for side, field in zip(("predicted", "true"), pair, strict=True)
        if is_lazy(field) and field.name not in FIELDS
    }
    if not lazy:
        yield pair
        return
    where = dask.config.get("temporary-directory", None)
    with TemporaryDirectory(prefix="cosmofields-", dir=where) as folder:
        log.info(
            "evaluate_sub_boxes: %s of the whole box into a temporary store, %s",
            pair[1].name,
            folder,
        )
        write_store(xr.Dataset(lazy), folder, level=1)
        stored = open_store(folder)
        copies = {side: field.copy(data=stored[side].data) for side, field in lazy.items()}
        yield copies.get("predicted", pair[0]), copies.get("true", pair[1])


def _cut(
    pair: Pair, size: float | Sequence[float], stride: float | Sequence[float] | None
) -> list[Pair]:
    p, t = (sub_boxes(field, size, stride=stride) for field in pair)
    return list(zip(p, t, strict=True))
