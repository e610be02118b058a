"""Central differences of a periodic field, and the longitudinal part of the modes of a vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .modes import Modes, Waves, divergence, flow


def central_difference(field: NDArray[np.generic], axis: int, cell: float) -> NDArray[np.float32]:
    """(f(x + H) - f(x - H)) / 2 H along an axis of a periodic field, H = ``cell``."""
    f, out = _along(_real(field), np.empty(field.shape, np.float32), axis)
    np.subtract(f[2:], f[:-2], out=out[1:-1])
    np.subtract(f[1], f[-1], out=out[0])
    np.subtract(f[0], f[-2], out=out[-1])
    out *= np.float32(1 / (2 * cell))
    return np.moveaxis(out, 0, axis)


def inner_difference(block: NDArray[np.generic], axis: int, cell: float) -> NDArray[np.float32]:
    """The same of a block with one more plane at either end of the axis, which the result lacks."""
    shape = [n - 2 if i == axis else n for i, n in enumerate(block.shape)]
    f, out = _along(_real(block), np.empty(shape, np.float32), axis)
    np.subtract(f[2:], f[:-2], out=out)
    out *= np.float32(1 / (2 * cell))
    return np.moveaxis(out, 0, axis)


def source(modes: Sequence[Modes], w: Waves, *, cells: Sequence[float] | None) -> None:
    """Write i q.v over v_x, with the q of :func:`_wavenumbers`."""
    divergence(modes, _wavenumbers(w, cells))


def longitudinal(
    modes: Sequence[Modes], out: Modes, w: Waves, *, axis: int, cells: Sequence[float] | None
) -> None:
    """Write component ``axis`` of q (q.v) / q^2 into ``out``, of the i q.v of :func:`source`."""
    flow(modes, out, _wavenumbers(w, cells), axis=axis, rate=-1.0)


def _wavenumbers(w: Waves, cells: Sequence[float] | None) -> Waves:
    """The q by which a derivative multiplies modes: k, or of a central difference sin(k H) / H."""
    if cells is None:
        return Waves(w.odd, w.odd)
    x, y, z = (np.sin(k * cell) / cell for k, cell in zip(w.odd, cells, strict=True))
    return Waves((x, y, z), (x, y, z))


def _real(field: NDArray[np.generic]) -> NDArray[np.floating]:
    """Field in a precision that a difference may be taken in: not that of small integers."""
    exact = field.dtype in (np.float32, np.float64)
    return field if exact else field.astype(np.float32)  # type: ignore[return-value]


def _along(
    field: NDArray[np.floating], out: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.floating], NDArray[np.float32]]:
    return np.moveaxis(field, axis, 0), np.moveaxis(out, axis, 0)
