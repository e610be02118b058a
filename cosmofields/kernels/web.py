"""The tidal tensor and the velocity shear in modes, and the eigenvalues of such tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from .modes import Modes, Waves

# Independent entries of a symmetric tensor, in the order in which they are made.
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def tidal(
    modes: Sequence[Modes], out: Modes, w: Waves, *, pair: tuple[int, int], radius: float
) -> None:
    """Write k_i k_j / k^2 exp(-k^2 R^2 / 2) f into ``out``, 0 at k = 0."""
    i, j = pair
    x, y, z = np.ix_(*w.squares())
    square = x + y + z
    # Of an axis at its Nyquist frequency the mixed derivatives of a real field vanish.
    one, other = (np.ix_(*(w.k if i == j else w.odd))[axis] for axis in pair)
    factor = one * other * np.exp(-0.5 * radius**2 * square) / np.where(square > 0, square, 1)
    out[...] = factor.astype(np.float32) * modes[0]


def shear(
    modes: Sequence[Modes], out: Modes, w: Waves, *, pair: tuple[int, int], radius: float
) -> None:
    """Write i (k_j v_i + k_i v_j) / 2 exp(-k^2 R^2 / 2) into ``out``."""
    i, j = pair
    x, y, z = np.ix_(*w.squares())
    smooth = 0.5j * np.exp(-0.5 * radius**2 * (x + y + z))
    k = np.ix_(*w.odd)
    both = (k[j] * smooth).astype(np.complex64) * modes[i]
    both += (k[i] * smooth).astype(np.complex64) * modes[j]
    out[...] = both


@njit(parallel=True, cache=True)
def eigenvalues(tensor: NDArray[np.float32]) -> NDArray[np.float32]:  # pragma: no cover
    """Eigenvalues of symmetric 3 x 3 tensors, descending, by their trigonometric formula.

    Parameters
    ----------
    tensor : array, (6, x, y, z)
        In the order of ``PAIRS``.

    Returns
    -------
    array, (3, x, y, z), float32
    """
    shape = tensor.shape[1:]
    t = tensor.reshape(6, -1)
    out = np.empty((3, t.shape[1]), np.float32)
    for n in prange(t.shape[1]):
        xx, yy, zz = float(t[0, n]), float(t[1, n]), float(t[2, n])
        xy, xz, yz = float(t[3, n]), float(t[4, n]), float(t[5, n])
        mean = (xx + yy + zz) / 3
        xx, yy, zz = xx - mean, yy - mean, zz - mean
        # Smith 1961, Comm. ACM 4, 168: p^2 = tr(A^2) / 6, cos(3 phi) = det(A) / (2 p^3).
        p2 = (xx**2 + yy**2 + zz**2 + 2 * (xy**2 + xz**2 + yz**2)) / 6
        p = np.sqrt(p2)
        phi = 0.0
        if p > 0:
            determinant = (
                xx * (yy * zz - yz**2) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
            )
            phi = np.arccos(min(1.0, max(-1.0, determinant / (2 * p2 * p)))) / 3
        out[0, n] = mean + 2 * p * np.cos(phi)
        out[2, n] = mean + 2 * p * np.cos(phi + 2 * np.pi / 3)
        out[1, n] = 3 * mean - out[0, n] - out[2, n]
    return out.reshape((3, *shape))
