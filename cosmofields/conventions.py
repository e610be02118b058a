"""What every module agrees on: dims, the field registry, attribute keys, checks, exceptions.

A field is an :class:`xarray.DataArray` on the dims ``x, y, z`` (C order); node ``i`` of an axis
sits at ``i L / N``.  A vector has a leading ``component`` dim.  Box facts travel in ``attrs`` of
both Datasets and DataArrays, because users pass either.  Units are fixed and written for people:
others are refused, never converted.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

AXES = ("x", "y", "z")
COMPONENTS = np.array(AXES, dtype=object)
CONVENTIONS = "CF-1.11, cosmofields-0.1"
FORMAT_VERSION = 1
# The facts that a DataArray needs to stand alone, without the Dataset it came from.
BOX_KEYS = ("box_size", "redshift", "cosmology", "los", "space", "periodic")

XObject = xr.Dataset | xr.DataArray


class CosmofieldsError(Exception):
    """Root of every error that cosmofields raises on purpose."""


class MissingAttributeError(CosmofieldsError, ValueError):
    """A box fact (box size, redshift, cosmology, line of sight) is not on the object."""


class MissingVariableError(CosmofieldsError, ValueError):
    """A Dataset lacks a field that the operation needs."""


class DimensionError(CosmofieldsError, ValueError):
    """A field has other dims, another shape or another unit than the operation needs."""


class GridMismatchError(CosmofieldsError, ValueError):
    """Two fields do not live on the same grid."""


class NotPeriodicError(CosmofieldsError, ValueError):
    """A periodic operation was asked of a field that is not the whole periodic box."""


class CatalogError(CosmofieldsError, ValueError):
    """A catalogue holds something that no simulation box can hold, or too little."""


class ModelMismatchError(CosmofieldsError, ValueError):
    """A model is asked to work on data unlike the data that it was trained on."""


class StoreError(CosmofieldsError, OSError):
    """A path is no store, or a store or file is not whole."""


class MissingExtraError(CosmofieldsError, ImportError):
    """A feature needs packages that a plain install does not bring."""


@dataclass(frozen=True)
class Field:
    """One entry of the registry: what a variable of that name is, everywhere in the package."""

    dims: tuple[str, ...]
    units: str
    long_name: str

    @property
    def is_vector(self) -> bool:
        """Whether the field has a ``component`` dim."""
        return "component" in self.dims


FIELDS: Mapping[str, Field] = {
    "halo_density": Field(
        ("mass_bin", *AXES), "1", "halo density of each mass bin over the mean of all bins"
    ),
    "density": Field(AXES, "1", "matter density over its mean, 1 + delta"),
    "velocity": Field(("component", *AXES), "km/s", "peculiar velocity"),
    "momentum": Field(("component", *AXES), "km/s", "momentum (1 + delta) v"),
    "density_error": Field(AXES, "1", "standard deviation of the density, which is lognormal"),
    "velocity_error": Field(("component", *AXES), "km/s", "standard deviation of the velocity"),
}
CATALOG_FIELDS: Mapping[str, Field] = {
    "position": Field(("halo", "component"), "Mpc/h", "comoving position"),
    "velocity": Field(("halo", "component"), "km/s", "peculiar velocity"),
    "mass": Field(("halo",), "Msun/h", "halo mass"),
}

_HOW_TO_SET = {
    "box_size": "the side of the periodic box in Mpc/h: obj.attrs['box_size'] = 300.0",
    "redshift": "obj.attrs['redshift'] = 0.59",
    "cosmology": "obj.attrs['cosmology'] = "
    "{'Omega_m': 0.268, 'Omega_b': 0.0445, 'h': 0.71, 'n_s': 0.968, 'sigma8': 0.83}",
    "los": "the axis of the redshift-space shift: obj.attrs['los'] = 'z', or make the catalogue "
    "with to_redshift_space(los='z')",
    "space": "whether positions are shifted: obj.attrs['space'] = 'real', or 'redshift'",
}


def attribute(obj: XObject, key: str) -> Any:
    """Return ``obj.attrs[key]``, or say how to set it.

    Raises
    ------
    MissingAttributeError
        If the attribute is absent or None.
    """
    value = obj.attrs.get(key)
    if value is None:
        how = _HOW_TO_SET.get(key, f"attrs[{key!r}]")
        raise MissingAttributeError(f"No `{key}` on this {type(obj).__name__}. Set {how}")
    return value


def box_lengths(obj: XObject) -> tuple[float, float, float]:
    """Side lengths (x, y, z) of the periodic box in Mpc/h, from ``attrs['box_size']``."""
    return parse_box_size(attribute(obj, "box_size"))


def parse_box_size(value: float | Sequence[float] | None) -> tuple[float, float, float]:
    """Side lengths (x, y, z) from one number or three, in Mpc/h."""
    try:
        sides = np.broadcast_to(np.asarray(value, dtype=float), 3)
    except (TypeError, ValueError):
        sides = np.array([np.nan])
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise MissingAttributeError(
            f"box_size={value!r} is not a length: give one positive number in Mpc/h, or three"
        )
    return float(sides[0]), float(sides[1]), float(sides[2])


def check_los(los: object) -> str:
    """Return ``los`` if it names an axis."""
    if not (isinstance(los, str) and los in AXES):
        raise DimensionError(f"los={los!r}; expected one of 'x', 'y', 'z'")
    return los


@dataclass(frozen=True)
class Grid:
    """A regular periodic grid: cells per axis and side lengths in Mpc/h."""

    shape: tuple[int, int, int]
    lengths: tuple[float, float, float]
    # Coordinates of an object that is rolled or shifted: what is derived from it must keep them,
    # to the last bit, or xarray would align the two by what labels they happen to share.
    nodes: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def cell_size(self) -> tuple[float, float, float]:
        """Cell sides in Mpc/h."""
        return (
            self.lengths[0] / self.shape[0],
            self.lengths[1] / self.shape[1],
            self.lengths[2] / self.shape[2],
        )

    @property
    def volume(self) -> float:
        """Box volume in (Mpc/h)^3."""
        return float(np.prod(self.lengths))

    def coords(self) -> dict[Hashable, xr.Variable]:
        """Coordinates of the nodes: node ``i`` of an axis sits at ``i L / N``, unless rolled."""
        nodes = self.nodes or [
            np.arange(n) * (length / n) for n, length in zip(self.shape, self.lengths, strict=True)
        ]
        return {
            axis: xr.Variable(
                axis,
                values,
                {"units": "Mpc/h", "long_name": f"comoving {axis}", "axis": axis.upper()},
            )
            for axis, values in zip(AXES, nodes, strict=True)
        }


def make_grid(n_grid: int | Sequence[int], lengths: Sequence[float]) -> Grid:
    """Grid of ``n_grid`` cells per axis (one number or three) over sides ``lengths`` in Mpc/h."""
    cells = np.asarray(n_grid)
    whole = np.issubdtype(cells.dtype, np.integer) and cells.shape in ((), (3,))
    if not (whole and (cells > 1).all()):
        raise DimensionError(
            f"n_grid={n_grid!r}; expected a whole number of cells, at least 2, or three of them"
        )
    nx, ny, nz = (int(n) for n in np.broadcast_to(cells, 3))
    return Grid((nx, ny, nz), parse_box_size(lengths))


def canonical(da: xr.DataArray, *leading: str, name: str | None = None) -> xr.DataArray:
    """Field with dims ``(*leading, x, y, z)``, transposed if need be.

    Raises
    ------
    DimensionError
        If a dim is missing or one too many is there, or the components are not x, y and z.
    """
    wanted = (*leading, *AXES)
    what = name or da.name or "field"
    if set(da.dims) != set(wanted):
        hint = ""
        if set(da.dims) - set(wanted) == {"component"}:
            hint = ": a component of it, .sel(component='x'), or its magnitude()"
        elif set(wanted) - set(da.dims) == {"component"}:
            hint = ": a vector, such as ds['velocity']"
        raise DimensionError(f"`{what}` has dims {da.dims}; expected {wanted}{hint}")
    if "component" in wanted:
        named = "component" in da.coords
        names = [str(c) for c in da["component"].values] if named else [*AXES]
        if da.sizes["component"] != 3 or names != [*AXES]:
            have = names if named else da.sizes["component"]
            raise DimensionError(f"`{what}` has the components {have}; expected x, y, z in order")
    return da if da.dims == wanted else da.transpose(*wanted)


def variable(ds: xr.Dataset, name: str, *, hint: str = "") -> xr.DataArray:
    """Registered field ``name`` of ``ds`` in canonical dim order, carrying the box facts.

    Those of ``ds`` count; what it does not say, the field's own attributes may.
    """
    if not isinstance(ds, xr.Dataset):
        how = (
            f".to_dataset(name={name!r})" if isinstance(ds, xr.DataArray) else "cosmofields.paint()"
        )
        raise MissingVariableError(
            f"A {type(ds).__name__} was given; expected a Dataset with `{name}`: {how} makes one"
        )
    if name not in ds:
        there = listing(ds.data_vars) or "no variable at all"
        message = f"No `{name}` in this Dataset (it holds {there}). {hint}"
        raise MissingVariableError(message.strip())
    dims = FIELDS[name].dims
    da = canonical(ds[name], *dims[:-3], name=name)
    return da.assign_attrs(
        {key: value for key, value in box_facts(ds).items() if value is not None}
    )


def check_field(field: object, what: str) -> None:
    """Raise :class:`DimensionError` unless ``field`` is a DataArray, and say how to make it one."""
    if isinstance(field, xr.DataArray):
        return
    if isinstance(field, xr.Dataset):
        names = [str(name) for name in field.data_vars]
        how = f"take one of its variables, ds[{names[0]!r}]" if names else "it holds no variable"
    else:
        how = "label it, cosmofields.from_grid(array, name='delta', box_size=300.0)"
    raise DimensionError(f"{what} takes a DataArray, and a {type(field).__name__} was given: {how}")


# Other spellings of the registered units, and what some other units are of them.
_SPELLINGS = {"km/s": ("km/s", "kms-1", "kms^-1", "kms**-1"), "1": ("1", "", "dimensionless")}
_FACTORS = {"m/s": "1e-3", "ms-1": "1e-3", "cm/s": "1e-5", "cms-1": "1e-5", "100km/s": "100"}


def check_units(field: xr.DataArray, name: str) -> None:
    """Raise :class:`DimensionError` if ``field`` states other units than those of ``name``."""
    stated, expected = field.attrs.get("units"), FIELDS[name].units
    plain = re.sub(r"[\s.]", "", str(stated))
    if stated is None or plain in _SPELLINGS.get(expected, (expected,)):
        return
    by = _FACTORS.get(plain) if expected == "km/s" else None
    how = f"multiply by {by}" if by else "convert it"
    raise DimensionError(
        f"`{name}` has units {str(stated)!r}; expected {expected}: {how} and set "
        f"attrs['units'] = {expected!r}"
    )


def periodic_grid(obj: XObject, *, what: str = "This operation") -> Grid:
    """Grid of an object that spans the whole periodic box.

    xarray keeps ``attrs`` through slicing, so the coordinates are asked, not the attributes alone.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError
        If dims, box size or coordinates do not describe a whole periodic box.
    """
    check_periodic(obj, what=what)
    return grid_of(obj, what=what)


def grid_of(obj: XObject, *, what: str = "This operation") -> Grid:
    """Grid of an object whose nodes span its box, be it periodic or cut out of one that is.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError
        If dims, box size or coordinates do not describe a whole box.
    """
    missing = [axis for axis in AXES if axis not in obj.dims]
    if missing:
        raise DimensionError(f"{what} needs the dims {AXES}; {missing} not in {tuple(obj.dims)}")
    lengths = box_lengths(obj)
    shape = (obj.sizes["x"], obj.sizes["y"], obj.sizes["z"])
    for axis, n, length in zip(AXES, shape, lengths, strict=True):
        if axis not in obj.coords:
            raise NotPeriodicError(
                f"{what} needs the coordinate `{axis}` (node i at i L / N, in Mpc/h) to know that "
                "the field is the whole box: "
                f"obj.assign_coords({axis}=np.arange({n}) * {length / n:g})"
            )
        nodes = obj.coords[axis].values
        steps = np.diff(nodes)
        # A rolled field keeps its steps but for one jump back by L, which is still the whole box.
        steps = np.where(steps < 0, steps + length, steps)
        if n < 2 or not np.allclose(steps, length / n, rtol=1e-4, atol=0):
            span = (nodes.max() - nodes.min()) * n / max(n - 1, 1)
            raise NotPeriodicError(
                f"{what} needs the whole periodic box, in rising order: `{axis}` has {n} nodes "
                f"spanning {span:g} of box_size={length:g} Mpc/h. Use the uncut field, or set the "
                "right box_size."
            )
    return Grid(shape, lengths, (obj["x"].values, obj["y"].values, obj["z"].values))


def check_filled(density: xr.DataArray, what: str) -> None:
    """Raise :class:`CatalogError` if a cell of ``what`` holds no matter, and so no velocity."""
    empty = int((density <= 0).sum())
    if empty:
        raise CatalogError(
            f"{what}: {empty} cells hold no matter, so their velocity is undefined; paint the "
            "particles to a coarser grid"
        )


def check_periodic(obj: XObject, *, what: str) -> None:
    """Raise :class:`NotPeriodicError` if the attributes say that the box is not periodic."""
    if not obj.attrs.get("periodic", True):
        raise NotPeriodicError(
            f"{what} needs a periodic box; attrs['periodic'] is False here: do it on the whole "
            "box, and cut the result"
        )


def check_same_grid(first: XObject, *others: XObject) -> None:
    """Raise :class:`GridMismatchError` unless all objects share shape, coordinates and box size."""
    for other in others:
        for axis in AXES:
            n, m = first.sizes.get(axis), other.sizes.get(axis)
            if n != m:
                raise GridMismatchError(
                    f"The fields live on different grids: {n} against {m} cells along {axis}. "
                    "Paint both with the same n_grid."
                )
            if axis in first.coords and axis in other.coords:
                a, b = first.coords[axis].values, other.coords[axis].values
                if not np.allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.ptp(a)))):
                    raise GridMismatchError(
                        f"The fields live on different grids: `{axis}` runs from {a[0]:g} to "
                        f"{a[-1]:g} against {b[0]:g} to {b[-1]:g} Mpc/h"
                    )
        if (
            "box_size" in first.attrs
            and "box_size" in other.attrs
            and not np.allclose(box_lengths(first), box_lengths(other), rtol=1e-6)
        ):
            raise GridMismatchError(
                f"The fields live in different boxes: box_size {first.attrs['box_size']} against "
                f"{other.attrs['box_size']} Mpc/h"
            )


def box_facts(obj: XObject) -> dict[str, Any]:
    """The attributes that a derived object inherits."""
    return {key: obj.attrs[key] for key in BOX_KEYS if key in obj.attrs}


def result_facts(*fields: XObject) -> dict[str, Any]:
    """The box facts of a result, in numbers, strings and lists: what NetCDF can hold.

    Without the cosmology, which is a dict, and with ``periodic`` as 0 or 1.

    Parameters
    ----------
    *fields : DataArray or Dataset
        What was measured.  Of two that both state a fact, the first counts.
    """
    kept = {}
    for key in BOX_KEYS:
        values = [obj.attrs[key] for obj in fields if obj.attrs.get(key) is not None]
        if not values or key == "cosmology":
            continue
        value = np.asarray(values[0]).tolist()
        kept[key] = int(value) if key == "periodic" else value
    return kept


def numbers(values: Any) -> NDArray[np.float64]:
    """``values`` as an array, empty where they are no numbers: for a check to refuse."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


def label(name: str, data: Any, grid: Grid, facts: Mapping[str, Any], **attrs: Any) -> xr.DataArray:
    """Wrap a bare array as the registered field ``name`` on ``grid``."""
    spec = FIELDS[name]
    coords: dict[Hashable, Any] = {**grid.coords()}
    if spec.is_vector:
        coords["component"] = ("component", COMPONENTS)
    return xr.DataArray(
        data,
        dims=spec.dims,
        coords=coords,
        name=name,
        attrs={"units": spec.units, "long_name": spec.long_name, **attrs, **facts},
    )


def step(obj: XObject, what: str) -> dict[str, Any]:
    """Attributes of ``obj`` with one dated line appended to ``history``."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = f"{stamp} {what}"
    history = obj.attrs.get("history")
    return {**obj.attrs, "history": f"{history}\n{line}" if history else line}


def derived(
    fields: Mapping[str, xr.DataArray], source: xr.Dataset, what: str, **facts: Any
) -> xr.Dataset:
    """Dataset of ``fields`` made from ``source``, of which it keeps facts and provenance alone.

    Parameters
    ----------
    fields : mapping of name to DataArray
    source : Dataset
        Whose box facts, selection and history count; a title or a time of writing is its own.
    what : str
        The step, for the history.
    **facts
        Box facts that overrule those of ``source``.
    """
    kept = ("number_density", "selection_seed", "source", "history")
    attrs = {
        "Conventions": CONVENTIONS,
        **box_facts(source),
        **facts,
        **{key: source.attrs[key] for key in kept if key in source.attrs},
        "cosmofields": {"format_version": FORMAT_VERSION},
    }
    ds = xr.Dataset(fields, attrs=attrs)
    return ds.assign_attrs(step(ds, what))


def is_lazy(*objects: XObject) -> bool:
    """Whether any of the objects is backed by dask."""
    return any(obj.__dask_graph__() is not None for obj in objects)


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module`` or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module!r}: pip install 'cosmofields[{extra}]'"
        ) from error


def too_nested(value: Any, most: int) -> bool:
    """Whether lists and dicts lie deeper within one another than ``most``."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > most:
            return True
        if isinstance(item, dict | list):
            parts = item.values() if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in parts]
    return False


def listing(items: Iterable[object]) -> str:
    """Comma-separated text of ``items``, for messages."""
    return ", ".join(str(item) for item in items)
