"""Fields made ready, and the sums over their modes in the bins of k."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..conventions import (
    AXES,
    CosmofieldsError,
    DimensionError,
    Grid,
    GridMismatchError,
    NotPeriodicError,
    attribute,
    canonical,
    check_field,
    check_los,
    check_same_grid,
    grid_of,
    periodic_grid,
)
from ..fourier import sum_modes
from ..lazy import fits

if TYPE_CHECKING:
    from ..kernels.modes import Waves
    from ..kernels.spectra import Sums

WINDOWS = ("cic", "cic-aliased")
ELLS = (0, 2, 4)


def _field(field: xr.DataArray) -> xr.DataArray:
    check_field(field, "A spectrum or correlation function")
    extra = [str(dim) for dim in field.dims if dim not in ("component", *AXES)]
    if extra and not set(AXES) <= set(field.dims):
        raise DimensionError(
            f"`{field.name or 'field'}` has dims {field.dims}; expected (x, y, z) or (component, "
            "x, y, z): cosmofields.from_grid(field.data, name='delta', box_size=...) names them"
        )
    if extra:
        raise DimensionError(
            f"`{field.name or 'field'}` has dims {field.dims}; expected (x, y, z) or "
            f"(component, x, y, z): take .isel({extra[0]}=...) or .sum({extra[0]!r}) first"
        )
    if field.dtype.kind not in "biuf":
        raise DimensionError(
            f"`{field.name or 'field'}` holds {field.dtype}; expected real numbers: take its .real "
            "or .imag, or .astype('float32')"
        )
    return canonical(field, *(["component"] if "component" in field.dims else []))


def pair(first: xr.DataArray, second: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Two scalar or two vector fields on one grid, in canonical order.

    Raises
    ------
    DimensionError, GridMismatchError
        If they are not.
    """
    first, second = _field(first), _field(second)
    check_same_grid(first, second)
    if first.shape != second.shape:
        raise DimensionError(
            f"The fields have dims {dict(first.sizes)} and {dict(second.sizes)}; expected two "
            "scalars or two vectors. Take magnitude(...) or .sel(component=...) of the vector."
        )
    return first, second


def check_ells(ells: Sequence[int]) -> list[int]:
    """Return ``ells`` as a list if they are some of 0, 2 and 4, each once."""
    given = list(ells) if isinstance(ells, Sequence | np.ndarray) else []
    wanted = [int(ell) for ell in given if ell in ELLS]
    if not wanted or len(set(wanted)) < len(given):
        raise DimensionError(
            f"ells={ells!r}; expected some of 0, 2 and 4, each once, e.g. ells=(0, 2)"
        )
    return wanted


def los_axis(fields: Sequence[xr.DataArray], los: str | None) -> int:
    """Axis of the line of sight: ``los``, or what the fields' attributes say.

    Raises
    ------
    MissingAttributeError
        If nothing says it.
    DimensionError
        If it is no axis.
    GridMismatchError
        If the fields have different ones, and ``los`` does not choose.
    """
    if los is None:
        stated = [field for field in fields if field.attrs.get("los") is not None]
        named = [check_los(attribute(field, "los")) for field in stated or fields]
        if len(set(named)) > 1:
            raise GridMismatchError(
                f"The fields have different lines of sight, {' and '.join(named)}; to measure "
                f"both about one: los={named[0]!r}"
            )
        los = named[0]
    return AXES.index(check_los(los))


def check_window(window: str | None) -> str | None:
    """Return ``window`` if it is one of :data:`WINDOWS`, or None."""
    if window is not None and window not in WINDOWS:
        raise CosmofieldsError(f"window={window!r}; expected None, 'cic' or 'cic-aliased'")
    return window


def grid_for(field: xr.DataArray, taper: float | None, what: str) -> Grid:
    """Grid of a whole box: a periodic one, or any that a taper is given for."""
    if taper is None:
        if not field.attrs.get("periodic", True):
            raise NotPeriodicError(
                f"{what} needs a periodic box, and attrs['periodic'] is False here: give "
                "taper=0.35, and the field fades towards the faces of the box"
            )
        return periodic_grid(field, what=what)
    number = not isinstance(taper, bool) and isinstance(taper, int | float | np.number)
    if not (number and 0 < taper <= 1):
        raise DimensionError(f"taper={taper!r}; expected a fraction above 0, up to 1, e.g. 0.35")
    return grid_of(field, what=what)


def power_sums(
    fields: tuple[xr.DataArray, ...],
    grid: Grid,
    kernel: Callable[..., NDArray[np.float64]],
    edges: ArrayLike | None,
    window: str | None,
    taper: float | None,
    counts: int = 2,
) -> tuple[Sums, dict[Hashable, Any], float]:
    """Sums over the modes of each bin, over components, as powers; and coordinates of the bins.

    ``counts`` of the kernel's rows are those that each component counts anew.  Also the mean of the
    first field (of a vector, the sum of its components'), which a taper takes out: 0.
    """
    from ..kernels.spectra import Bins, check_edges, default_edges, sums_of

    k_edges = default_edges(grid.shape, grid.lengths) if edges is None else check_edges(edges)
    bins = Bins(k_edges, grid.shape[2], grid.cell_size, check_window(window))
    parts = [list(field.data.reshape(-1, *grid.shape)) for field in fields]
    scale = grid.volume / float(np.prod(grid.shape)) ** 2
    if taper is not None:
        parts, mean_square = _tapered(parts, grid, taper)
        scale /= mean_square
    what = "power spectrum"
    with_mean = partial(_and_mean, kernel=partial(kernel, bins=bins))
    *rows, mean = sum_modes(list(zip(*parts, strict=True)), grid, with_mean, what=what)
    total = np.stack(rows)
    total[:counts] /= len(parts[0])
    total[counts:] *= scale
    if not total[0].any():
        nyquist = max(np.pi / cell for cell in grid.cell_size)
        raise DimensionError(
            f"edges from {k_edges[0]:g} to {k_edges[-1]:g} h/Mpc hold no mode of this box; its "
            f"modes run from {2 * np.pi / max(grid.lengths):g} to about {nyquist:g} h/Mpc"
        )
    if not np.isfinite(total).all():
        raise not_finite(*fields)
    attrs = {"units": "h/Mpc", "long_name": "wavenumber, centre of the bin"}
    mean = float(mean.flat[0]) / float(np.prod(grid.shape))
    return sums_of(total), bin_coords("k", k_edges, attrs), mean


def _and_mean(
    modes: Sequence[NDArray[np.complex64]], w: Waves, *, kernel: Callable[..., NDArray[np.float64]]
) -> NDArray[np.float64]:
    """What the kernel returns of a strip, and a row of the mode k = 0, of the strip that has it."""
    sums = kernel(modes, w)
    zero = float(modes[0][0, 0, 0].real) if w.k[1][0] == 0 else 0.0
    return np.concatenate([sums, np.full((1, *sums.shape[1:]), zero)])


def _tapered(parts: list[list[Any]], grid: Grid, fraction: float) -> tuple[list[list[Any]], float]:
    """Fields of zero mean under the taper, times the taper; and the mean square of that."""
    from ..kernels.tapers import Faded, fade, tukey, weigh

    w = tukey(grid.shape, fraction)
    flat = [part for of_field in parts for part in of_field]
    if not any(isinstance(part, da.Array) for part in flat):
        return [[Faded(part, w) for part in of_field] for of_field in parts], w.mean_square

    def blocks(kernel: Callable[..., Any], part: da.Array, *mean: Any, **options: Any) -> da.Array:
        pairs: list[Any] = [part, "xyz"]
        for value in mean:
            pairs += [da.asarray(value), ""]
        for axis, weights, sizes in zip("xyz", w, part.chunks, strict=True):
            pairs += [da.from_array(weights, chunks=(sizes,)), axis]
        return da.blockwise(kernel, "xyz", *pairs, **options)

    flat = [da.asarray(part) for part in flat]
    single = dict.fromkeys("xyz", 1)
    sums = [blocks(weigh, part, adjust_chunks=single, dtype=np.float64) for part in flat]
    means: Sequence[Any] = [part.sum() / w.total for part in sums]
    # Chunks that cannot all wait for the mean, beside what becomes of them, are made again.
    if not fits(2 * sum(part.nbytes for part in flat), "mean under the taper"):
        means = dask.compute(*means)
    faded = [blocks(fade, *both, dtype=np.float32) for both in zip(flat, means, strict=True)]
    n = len(parts[0])
    return [faded[i : i + n] for i in range(0, len(faded), n)], w.mean_square


def bin_coords(name: str, edges: NDArray[np.float64], attrs: dict[str, str]) -> dict[Hashable, Any]:
    """Coordinates of the centres and edges of bins."""
    bounds = np.stack([edges[:-1], edges[1:]], axis=1)
    # Without units: says CF, they are those of what they bound, and NetCDF drops them.
    edge_attrs = {"long_name": "edges of the bin: lower <= value < upper"}
    return {
        name: (name, bounds.mean(axis=1), {**attrs, "bounds": f"{name}_bounds"}),
        f"{name}_bounds": ((name, "bound"), bounds, edge_attrs),
    }


def not_finite(*fields: xr.DataArray) -> CosmofieldsError:
    """Error that says which fields hold NaN or infinity, and what to do."""
    names = " and ".join(dict.fromkeys(f"`{field.name or 'field'}`" for field in fields))
    return CosmofieldsError(
        f"{names}: NaN or infinity in at least one cell; expected finite numbers everywhere. "
        "Unwritten tiles of a store read as NaN (is it complete?); a velocity is undefined in an "
        "empty cell: fill it, e.g. field.fillna(0)."
    )
