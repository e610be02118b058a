"""``.recon`` on a DataArray: derivatives, spectra and statistics of one field."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..conventions import AXES
from .base import Recon, described, forwards

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..exploring import Explorer


@xr.register_dataarray_accessor("recon")
class DataArrayRecon(Recon):
    """Derivatives, spectra and statistics of one field."""

    _obj: xr.DataArray

    def _is_vector(self) -> bool:
        return "component" in self._obj.dims

    def _halo_attrs(self) -> dict[str, Any]:
        return self._obj.attrs if self._obj.name == "halo_density" else {}

    def _found(self) -> list[str]:
        return [described(self._obj)] if set(AXES) <= set(self._obj.dims) else []

    def _models(self) -> list[str]:
        return [str(self._obj.attrs["model"])] if self._obj.attrs.get("model") else []

    def _next(self) -> list[str]:
        if not self._found():
            return [f"nothing: a field has the dims {', '.join(AXES)}"]
        extra = [str(dim) for dim in self._obj.dims if dim not in ("component", *AXES)]
        if extra:
            return [f".isel({extra[0]}=0) or .sum({extra[0]!r}) first: spectra are of one field"]
        if self._obj.attrs.get("periodic", True):
            derived = ".divergence(), .curl(), .helmholtz()" if self._is_vector() else ".gradient()"
            steps = [
                ".power_spectrum(), .multipoles(), .correlations(), .spectra(true)",
                f"{derived}, .sample(catalog), .explore()",
            ]
        else:
            steps = [".power_spectrum(taper=0.35), .spectra(true, taper=0.35): a box that was cut"]
        angles = ".magnitude(), .misalignment(true), " if self._is_vector() else ""
        return [*steps, f"{angles}.cell_statistics(true), .histogram(edges=...)"]

    # --- spectra ---

    @forwards("spectral")
    def power_spectrum(
        self,
        other: xr.DataArray | None = None,
        *,
        edges: ArrayLike | None = None,
        window: str | None = None,
        taper: float | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.power_spectrum`."""

    @forwards("spectral")
    def multipoles(
        self,
        other: xr.DataArray | None = None,
        *,
        ells: Sequence[int] = (0, 2, 4),
        edges: ArrayLike | None = None,
        los: str | None = None,
        window: str | None = None,
        taper: float | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.multipoles`."""

    @forwards("spectral")
    def spectra(
        self,
        true: xr.DataArray,
        *,
        edges: ArrayLike | None = None,
        ells: Sequence[int] = (),
        los: str | None = None,
        window: str | None = None,
        taper: float | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.spectra`."""

    @forwards("spectral")
    def wedges(
        self,
        other: xr.DataArray | None = None,
        *,
        mu_edges: ArrayLike = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        edges: ArrayLike | None = None,
        los: str | None = None,
        window: str | None = None,
        taper: float | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.wedges`."""

    # --- correlation functions ---

    @forwards("correlation")
    def correlations(
        self,
        other: xr.DataArray | None = None,
        *,
        ells: Sequence[int] = (0, 2, 4),
        edges: ArrayLike | None = None,
        r_perp: ArrayLike | None = None,
        r_par: ArrayLike | None = None,
        los: str | None = None,
        window: str | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.correlations`."""

    @forwards("correlation")
    def correlation_function(
        self,
        other: xr.DataArray | None = None,
        *,
        edges: ArrayLike | None = None,
        window: str | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.correlation_function`."""

    @forwards("correlation")
    def correlation_multipoles(
        self,
        other: xr.DataArray | None = None,
        *,
        ells: Sequence[int] = (0, 2, 4),
        edges: ArrayLike | None = None,
        los: str | None = None,
        window: str | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.correlation_multipoles`."""

    @forwards("correlation")
    def correlation_2d(
        self,
        other: xr.DataArray | None = None,
        *,
        r_perp: ArrayLike | None = None,
        r_par: ArrayLike | None = None,
        los: str | None = None,
        window: str | None = None,
    ) -> xr.Dataset:
        """See :func:`cosmofields.correlation_2d`."""

    # --- derivatives ---

    @forwards("derivatives")
    def gradient(self, *, method: str = "spectral") -> xr.DataArray:
        """See :func:`cosmofields.gradient`."""

    @forwards("derivatives")
    def divergence(self, *, method: str = "spectral") -> xr.DataArray:
        """See :func:`cosmofields.divergence`."""

    @forwards("derivatives")
    def curl(self, *, method: str = "spectral") -> xr.DataArray:
        """See :func:`cosmofields.curl`."""

    @forwards("derivatives")
    def helmholtz(self, *, method: str = "spectral") -> xr.Dataset:
        """See :func:`cosmofields.helmholtz`."""

    @forwards("derivatives")
    def longitudinal(self, *, method: str = "spectral") -> xr.DataArray:
        """See :func:`cosmofields.longitudinal`."""

    @forwards("derivatives")
    def transverse(self, *, method: str = "spectral") -> xr.DataArray:
        """See :func:`cosmofields.transverse`."""

    # --- cell by cell ---

    @forwards("statistics")
    def cell_statistics(self, true: xr.DataArray) -> xr.Dataset:
        """See :func:`cosmofields.cell_statistics`."""

    @forwards("statistics")
    def magnitude(self) -> xr.DataArray:
        """See :func:`cosmofields.magnitude`."""

    @forwards("statistics")
    def misalignment(self, true: xr.DataArray) -> xr.DataArray:
        """See :func:`cosmofields.misalignment`."""

    @forwards("statistics")
    def joint_distribution(
        self,
        second: xr.DataArray,
        *,
        edges: ArrayLike,
        other_edges: ArrayLike | None = None,
        dims: tuple[str, str] = ("predicted", "true"),
    ) -> xr.DataArray:
        """See :func:`cosmofields.joint_distribution`."""

    @forwards("statistics")
    def histogram(self, *, edges: ArrayLike) -> xr.DataArray:
        """See :func:`cosmofields.histogram`."""

    # --- at tracers, in a part of the box, in Jupyter ---

    @forwards("exploring")
    def explore(self, *, position: float | None = None, thickness: float = 10.0) -> Explorer:
        """See :func:`cosmofields.explore`."""

    @forwards("sampling")
    def sample(self, catalog: xr.Dataset) -> xr.DataArray:
        """See :func:`cosmofields.sample`."""

    @forwards("boxes")
    def sub_boxes(
        self, size: float | Sequence[float], *, stride: float | Sequence[float] | None = None
    ) -> list[xr.DataArray]:
        """See :func:`cosmofields.sub_boxes`."""
