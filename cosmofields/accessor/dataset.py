"""``.recon`` on a Dataset: a catalogue, the fields of a box, or their scores."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..conventions import CATALOG_FIELDS, FIELDS
from .base import Recon, described, forwards

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from rich.console import Console

    from ..exploring import Explorer
    from ..store import StorePath


@xr.register_dataset_accessor("recon")
class DatasetRecon(Recon):
    """Reconstruction verbs of a catalogue or of the fields of a box."""

    _obj: xr.Dataset

    def _is_catalog(self) -> bool:
        return "position" in self._obj

    def _is_scored(self) -> bool:
        return "correlation_coefficient" in self._obj and "field" in self._obj.dims

    def _halo_attrs(self) -> dict[str, Any]:
        ds = self._obj
        if "halo_density" in ds:
            return {**ds.attrs, **ds["halo_density"].attrs}
        return ds.attrs if "mass_bin" in ds else {}

    def _found(self) -> list[str]:
        if self._is_scored():
            boxes = self._obj.sizes.get("realization")
            over = f" over {boxes} boxes" if boxes else ""
            return [f"scores{over} of {', '.join(map(str, self._obj['field'].values))}"]
        names = [*FIELDS, *((*CATALOG_FIELDS, "mass_bin") if self._is_catalog() else ())]
        return [described(self._obj[name]) for name in dict.fromkeys(names) if name in self._obj]

    def _models(self) -> list[str]:
        made = (self._obj[name].attrs.get("model") for name in FIELDS if name in self._obj)
        return [str(name) for name in made if name]

    def _next(self) -> list[str]:
        ds = self._obj
        if self._is_catalog():
            return self._next_of_catalog()
        if "halo_density" in ds:
            return self._next_of_halo_fields()
        if self._is_scored():
            if "realization" in ds.dims:
                return ["cosmofields.combine(scores): one result of all boxes, and its spread"]
            return ["cosmofields.scores_table({label: scores}); cosmofields.plotting draws them"]
        if any(name in ds for name in FIELDS):
            return [
                ".evaluate(true): scores, spectra and distributions against another Dataset",
                ".evaluate_sub_boxes(true, 150): the same in parts of the box, for their spread",
                ".report(true, 'report'): every table and figure, in a directory",
                ".explore(): slices of the box, in Jupyter",
                ".kinetic_sz(), .t_web(), .v_web(): what the fields are for",
            ]
        return ["nothing: no catalogue and no field; see cosmofields.from_arrays"]

    def _next_of_catalog(self) -> list[str]:
        ds = self._obj
        space = ds.attrs.get("space")
        steps = []
        if "mass" in ds and "mass_bin" not in ds:
            steps.append(".select(): the heaviest halos, in four mass bins")
        if "mass" not in ds and "mass_bin" not in ds and "halo" in ds.dims:
            steps.append(".select([3e-3]): as many halos as a model is for, in one bin")
        if space == "real" and "velocity" in ds:
            steps.append(".to_redshift_space(los='z'): shift by the peculiar velocity")
        if "mass" in ds:
            verb = ".paint(n_grid=128)"
        elif "mass_bin" in ds or "velocity" not in ds:
            verb = ".paint(n_grid=128, weighting='number')"
        else:
            verb = ".paint_matter(n_grid=128)"
        steps.append(f"{verb}: cloud-in-cell fields")
        if space == "redshift":
            model = "" if "mass" in ds else ", model='no-mass'"
            if "halo" in ds.dims:
                steps.append(f".reconstruct('fields.zarr'{model}): all of it, out of core")
            if "velocity" in ds:
                steps.append(".compare_velocities(fields): do they move as the fields say?")
            steps.append(".to_real_space(velocity): back, by a velocity field")
            steps.append(".velocities_at(fields): of the matter where each is, with its error")
        return steps

    def _next_of_halo_fields(self) -> list[str]:
        ds = self._obj
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
            ".predict_density(), .predict_velocity(), .predict_momentum(): one of them",
            ".reconstruct('fields.zarr'): all of it, out of core, in a store",
            *verbs,
        ]

    # --- a catalogue ---

    def select(self, number_density: Sequence[float] | None = None, *, seed: int = 0) -> xr.Dataset:
        """The most massive halos to a number density, in mass bins.

        ``halos`` of :func:`cosmofields.select`, which says more, is this object.

        Parameters
        ----------
        number_density : sequence of float, optional
            Cumulative, rising, in (h/Mpc)^3: one for each mass bin; default: the paper's four.
        seed : int
            Of the order in which halos of one mass are taken.

        Returns
        -------
        Dataset
            The chosen rows, with ``mass_bin`` (halo): 0 for the heaviest.

        Raises
        ------
        CatalogError
            If the densities do not rise, or the catalogue has too few halos.
        MissingVariableError
            If there are no masses to rank by, and more than one bin.
        """
        from ..catalog import NUMBER_DENSITY, select

        edges = NUMBER_DENSITY if number_density is None else number_density
        return select(self._obj, edges, seed=seed)

    @forwards("catalog")
    def to_redshift_space(self, los: str = "z") -> xr.Dataset:
        """See :func:`cosmofields.to_redshift_space`."""

    @forwards("sampling")
    def to_real_space(
        self, velocity: xr.DataArray | xr.Dataset, *, dispersion: float = 90.0
    ) -> xr.Dataset:
        """See :func:`cosmofields.to_real_space`."""

    @forwards("consistency")
    def compare_velocities(self, fields: xr.Dataset | xr.DataArray) -> xr.Dataset:
        """See :func:`cosmofields.compare_velocities`."""

    @forwards("applications")
    def velocities_at(self, fields: xr.Dataset) -> xr.Dataset:
        """See :func:`cosmofields.velocities_at`."""

    @forwards("painting")
    def paint(
        self,
        n_grid: int | Sequence[int] = 128,
        *,
        weighting: str = "mass",
        interlaced: bool = False,
    ) -> xr.Dataset:
        """See :func:`cosmofields.paint`."""

    @forwards("painting")
    def paint_matter(self, n_grid: int | Sequence[int] = 128) -> xr.Dataset:
        """See :func:`cosmofields.paint_matter`."""

    # --- halo fields ---

    @forwards("linear")
    def linear_theory(
        self, *, method: str = "wiener", bias: float | Sequence[float] | None = None
    ) -> xr.Dataset:
        """See :func:`cosmofields.linear_theory`."""

    @forwards("linear")
    def linear_velocity(
        self, *, method: str = "wiener", bias: float | Sequence[float] | None = None
    ) -> xr.DataArray:
        """See :func:`cosmofields.linear_velocity`."""

    @forwards("inference")
    def predict(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        symmetries: int = 1,
        restore_power: bool = False,
        uncertainty: bool = False,
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.Dataset:
        """See :func:`cosmofields.predict`."""

    @forwards("inference")
    def predict_density(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        symmetries: int = 1,
        restore_power: bool = False,
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.DataArray:
        """See :func:`cosmofields.predict_density`."""

    @forwards("inference")
    def predict_velocity(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        symmetries: int = 1,
        restore_power: bool = False,
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.DataArray:
        """See :func:`cosmofields.predict_velocity`."""

    @forwards("inference")
    def predict_momentum(
        self,
        model: str | Path = "default",
        *,
        tile: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        symmetries: int = 1,
        restore_power: bool = False,
        allow_mismatch: bool = False,
        progress: bool = False,
    ) -> xr.DataArray:
        """See :func:`cosmofields.predict_momentum`."""

    @forwards("reconstruction")
    def reconstruct(
        self,
        store: StorePath,
        *,
        n_grid: int | Sequence[int] | None = None,
        model: str | Path = "default",
        memory: str | int | None = None,
        device: str = "auto",
        precision: str = "auto",
        symmetries: int = 1,
        restore_power: bool = False,
        uncertainty: bool = False,
        allow_mismatch: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        progress: bool = True,
        console: Console | None = None,
    ) -> xr.DataTree:
        """See :func:`cosmofields.reconstruct`."""

    # --- the fields of a box ---

    @forwards("evaluation")
    def evaluate(
        self,
        true: xr.Dataset,
        *,
        edges: ArrayLike | None = None,
        separations: ArrayLike | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        taper: float | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.evaluate`."""

    @forwards("boxes")
    def sub_boxes(
        self, size: float | Sequence[float], *, stride: float | Sequence[float] | None = None
    ) -> list[xr.Dataset]:
        """See :func:`cosmofields.sub_boxes`."""

    @forwards("boxes")
    def evaluate_sub_boxes(
        self,
        true: xr.Dataset,
        size: float | Sequence[float],
        *,
        stride: float | Sequence[float] | None = None,
        taper: float = 0.35,
        edges: ArrayLike | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        progress: bool = False,
    ) -> xr.Dataset:
        """See :func:`cosmofields.evaluate_sub_boxes`."""

    @forwards("exploring")
    def explore(self, *, position: float | None = None, thickness: float = 10.0) -> Explorer:
        """See :func:`cosmofields.explore`."""

    @forwards("applications")
    def kinetic_sz(
        self, *, los: str | None = None, weight: Callable[[Any], Any] | None = None
    ) -> xr.DataArray:
        """See :func:`cosmofields.kinetic_sz`."""

    @forwards("applications")
    def t_web(self, *, smoothing: float = 2.0, threshold: float = 0.2) -> xr.Dataset:
        """See :func:`cosmofields.t_web`."""

    @forwards("applications")
    def v_web(self, *, smoothing: float = 2.0, threshold: float = 0.44) -> xr.Dataset:
        """See :func:`cosmofields.v_web`."""

    @forwards("reporting")
    def report(
        self,
        true: xr.Dataset,
        out: str | Path,
        *,
        linear: xr.Dataset | None = None,
        observed: xr.Dataset | None = None,
        halos: xr.Dataset | None = None,
        halos_true: xr.Dataset | None = None,
        sub_boxes: float | Sequence[float] | None = None,
        stride: float | Sequence[float] | None = None,
        training: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
        title: str | None = None,
        command: str | None = None,
        console: Console | None = None,
    ) -> xr.DataTree:
        """See :func:`cosmofields.report`."""
