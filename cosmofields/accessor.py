"""``.recon`` on Datasets and DataArrays: thin methods over the public functions of the same names.

The accessor holds nothing but the object, and imports what a method needs when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .conventions import AXES, CATALOG_FIELDS, FIELDS, Grid, listing, periodic_grid

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .cosmology import Cosmology


class _Recon:
    """What Dataset and DataArray share: the box facts and the repr."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    @property
    def grid(self) -> Grid:
        """Cells and side lengths of the whole periodic box; see :class:`conventions.Grid`."""
        return periodic_grid(self._obj)

    @property
    def cosmology(self) -> Cosmology:
        """Cosmology of the attributes."""
        from .cosmology import cosmology_of

        return cosmology_of(self._obj)

    @property
    def redshift(self) -> float:
        """Redshift of the attributes."""
        from .cosmology import redshift_of

        return redshift_of(self._obj)

    def _facts(self) -> list[tuple[str, str]]:
        from .store import summarize_facts

        return summarize_facts(self._obj)

    def _halo_attrs(self) -> dict[str, Any]:
        """Attributes that may say how halos were cut into bins and weighted; none without halos."""
        raise NotImplementedError

    def _bins(self) -> list[tuple[str, str]]:
        attrs = self._halo_attrs()
        rows = []
        # NetCDF returns a list of numbers as an array, and a list of one as a number.
        edges = np.atleast_1d(attrs.get("number_density", ()))
        if edges.size:
            text = listing(f"{edge:g}" for edge in edges)
            rows.append(("mass bins", f"number_density {text} (h/Mpc)^3"))
        if attrs.get("weighting"):
            rows.append(("weighting", attrs["weighting"]))
        return rows

    def _found(self) -> list[str]:
        raise NotImplementedError

    def _next(self) -> list[str]:
        raise NotImplementedError

    def __repr__(self) -> str:
        rows = [
            *self._facts(),
            *self._bins(),
            ("holds", ", ".join(self._found()) or "no field that is known here"),
        ]
        rows += [("next" if i == 0 else "", line) for i, line in enumerate(self._next())]
        body = "\n".join(f"  {key:<10} {text}" for key, text in rows)
        return f"<cosmofields .recon on a {type(self._obj).__name__}>\n{body}"


def _known(obj: xr.DataArray) -> str:
    units = obj.attrs.get("units", "1")
    return f"{obj.name} ({', '.join(map(str, obj.dims))}){'' if units == '1' else f' {units}'}"


@xr.register_dataset_accessor("recon")
class DatasetRecon(_Recon):
    """Reconstruction verbs of a catalogue or of the fields of a box."""

    _obj: xr.Dataset

    def _is_catalog(self) -> bool:
        return "position" in self._obj

    def _halo_attrs(self) -> dict[str, Any]:
        ds = self._obj
        if "halo_density" in ds:
            return {**ds.attrs, **ds["halo_density"].attrs}
        return ds.attrs if "mass_bin" in ds else {}

    def _found(self) -> list[str]:
        names = [*FIELDS, *((*CATALOG_FIELDS, "mass_bin") if self._is_catalog() else ())]
        return [_known(self._obj[name]) for name in dict.fromkeys(names) if name in self._obj]

    def _next(self) -> list[str]:
        ds = self._obj
        if self._is_catalog():
            steps = []
            if "mass" in ds and "mass_bin" not in ds:
                steps.append(".select(): the heaviest halos, in four mass bins")
            if ds.attrs.get("space") == "real" and "velocity" in ds:
                steps.append(".to_redshift_space(los='z'): shift by the peculiar velocity")
            if "mass" in ds:
                verb = ".paint(n_grid=128)"
            elif "mass_bin" in ds or "velocity" not in ds:
                verb = ".paint(n_grid=128, weighting='number')"
            else:
                verb = ".paint_matter(n_grid=128)"
            steps.append(f"{verb}: cloud-in-cell fields")
            if ds.attrs.get("space") == "redshift" and "mass" in ds:
                steps.append(".reconstruct('fields.zarr'): all of it, out of core, in a store")
            return steps
        if "halo_density" in ds:
            verbs = [
                ".linear_theory(): density, velocity, momentum without a network",
                ".linear_velocity(): its velocity",
            ]
            missing = [key for key in ("redshift", "cosmology", "los") if not ds.attrs.get(key)]
            if missing or ds.attrs.get("space") != "redshift":
                wants = missing or ["space='redshift' (paint after to_redshift_space)"]
                return [*verbs, f".predict() still needs: {', '.join(wants)}"]
            return [
                ".predict(): density, velocity, momentum by the networks",
                ".predict_velocity(), .predict_density(): one of them",
                ".reconstruct('fields.zarr'): all of it, out of core, in a store",
                *verbs,
            ]
        if any(name in ds for name in FIELDS):
            return [".evaluate(true, edges=None): scores and spectra against another Dataset"]
        return ["nothing: no catalogue and no field; see cosmofields.from_arrays"]

    def select(self, number_density: Sequence[float] | None = None, *, seed: int = 0) -> xr.Dataset:
        """See :func:`cosmofields.select`; default: the paper's four bins."""
        from .catalog import NUMBER_DENSITY, select

        edges = NUMBER_DENSITY if number_density is None else number_density
        return select(self._obj, edges, seed=seed)

    def to_redshift_space(self, los: str = "z") -> xr.Dataset:
        """See :func:`cosmofields.to_redshift_space`."""
        from .catalog import to_redshift_space

        return to_redshift_space(self._obj, los)

    def paint(self, n_grid: int | Sequence[int] = 128, *, weighting: str = "mass") -> xr.Dataset:
        """See :func:`cosmofields.paint`."""
        from .painting import paint

        return paint(self._obj, n_grid, weighting=weighting)

    def paint_matter(self, n_grid: int | Sequence[int] = 128) -> xr.Dataset:
        """See :func:`cosmofields.paint_matter`."""
        from .painting import paint_matter

        return paint_matter(self._obj, n_grid)

    def linear_theory(
        self, *, method: str = "wiener", bias: float | Sequence[float] | None = None
    ) -> xr.Dataset:
        """See :func:`cosmofields.linear_theory`."""
        from .linear import linear_theory

        return linear_theory(self._obj, method=method, bias=bias)

    def linear_velocity(
        self, *, method: str = "wiener", bias: float | Sequence[float] | None = None
    ) -> xr.DataArray:
        """See :func:`cosmofields.linear_velocity`."""
        from .linear import linear_velocity

        return linear_velocity(self._obj, method=method, bias=bias)

    def predict(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.Dataset:
        """See :func:`cosmofields.predict`."""
        from .inference import predict

        return predict(
            self._obj,
            model,
            tile=tile,
            device=device,
            precision=precision,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )

    def predict_density(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.DataArray:
        """See :func:`cosmofields.predict_density`."""
        from .inference import predict_density

        return predict_density(
            self._obj,
            model,
            tile=tile,
            device=device,
            precision=precision,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )

    def predict_velocity(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.DataArray:
        """See :func:`cosmofields.predict_velocity`."""
        from .inference import predict_velocity

        return predict_velocity(
            self._obj,
            model,
            tile=tile,
            device=device,
            precision=precision,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )

    def reconstruct(
        self,
        store: str | os.PathLike[str],
        *,
        n_grid: int | Sequence[int] | None = None,
        model: str | Path = "default",
        memory: str | int | None = None,
        device: str = "auto",
        precision: str = "auto",
        allow_mismatch: bool = False,
        progress: bool = True,
    ) -> xr.DataTree:
        """See :func:`cosmofields.reconstruct`."""
        from .reconstruction import reconstruct

        return reconstruct(
            self._obj,
            store,
            n_grid=n_grid,
            model=model,
            memory=memory,
            device=device,
            precision=precision,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )

    def evaluate(self, true: xr.Dataset, *, edges: ArrayLike | None = None) -> xr.Dataset:
        """See :func:`cosmofields.evaluate`."""
        from .evaluation import evaluate

        return evaluate(self._obj, true, edges=edges)


@xr.register_dataarray_accessor("recon")
class DataArrayRecon(_Recon):
    """Derivatives and spectra of one field."""

    _obj: xr.DataArray

    def _is_vector(self) -> bool:
        return "component" in self._obj.dims

    def _halo_attrs(self) -> dict[str, Any]:
        return self._obj.attrs if self._obj.name == "halo_density" else {}

    def _found(self) -> list[str]:
        return [_known(self._obj)] if set(AXES) <= set(self._obj.dims) else []

    def _next(self) -> list[str]:
        if not self._found():
            return [f"nothing: a field has the dims {', '.join(AXES)}"]
        extra = [str(dim) for dim in self._obj.dims if dim not in ("component", *AXES)]
        if extra:
            return [f".isel({extra[0]}=0) or .sum({extra[0]!r}) first: spectra are of one field"]
        derived = ".divergence(), .curl()" if self._is_vector() else ".gradient()"
        return [".power_spectrum(), .multipoles(), .spectra(true)", derived]

    def power_spectrum(
        self, other: xr.DataArray | None = None, *, edges: ArrayLike | None = None
    ) -> xr.Dataset:
        """See :func:`cosmofields.power_spectrum`."""
        from .spectral import power_spectrum

        return power_spectrum(self._obj, other, edges=edges)

    def spectra(self, true: xr.DataArray, *, edges: ArrayLike | None = None) -> xr.Dataset:
        """See :func:`cosmofields.spectra`."""
        from .spectral import spectra

        return spectra(self._obj, true, edges=edges)

    def multipoles(
        self,
        other: xr.DataArray | None = None,
        *,
        ells: Sequence[int] = (0, 2, 4),
        edges: ArrayLike | None = None,
        los: str | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.multipoles`."""
        from .spectral import multipoles

        return multipoles(self._obj, other, ells=ells, edges=edges, los=los)

    def gradient(self) -> xr.DataArray:
        """See :func:`cosmofields.derivatives.gradient`."""
        from .derivatives import gradient

        return gradient(self._obj)

    def divergence(self) -> xr.DataArray:
        """See :func:`cosmofields.derivatives.divergence`."""
        from .derivatives import divergence

        return divergence(self._obj)

    def curl(self) -> xr.DataArray:
        """See :func:`cosmofields.derivatives.curl`."""
        from .derivatives import curl

        return curl(self._obj)
