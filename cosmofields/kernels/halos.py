"""Friends-of-friends groups of particles (Davis et al. 1985), by kdcount, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..conventions import CosmofieldsError, require_extra

# Mpc/h around a slab, into which its groups may reach; the largest at z = 0 reach about 5.
OVERLAP = 12.0
# Particles in a slab: a tree of them takes some 2 GB.
MOST = 2**24
# Rows that are looked at together.
BLOCK = 2**22


class Groups(NamedTuple):
    """Centre of mass (group, 3), mean of the vector (group, 3), members; the largest first."""

    position: NDArray[np.float64]
    vector: NDArray[np.float64]
    members: NDArray[np.int64]


def friends_of_friends(
    position: NDArray[np.float32],
    vector: NDArray[np.float32],
    lengths: Sequence[float],
    *,
    linking_length: float,
    min_members: int,
    n_slabs: int | None = None,
) -> Iterator[Groups]:
    """Groups of particles of which each has a friend within ``linking_length``, slab by slab.

    Parameters
    ----------
    position, vector : array, (n, 3)
        Mpc/h, in [0, L); and what to average, e.g. the velocity.
    lengths : sides (x, y, z)
    linking_length : float
        Mpc/h.
    min_members : int
    n_slabs : int, optional
        Along x.  A slab and :data:`OVERLAP` around it are held at a time; a group belongs to the
        slab of its centre.  Default: of at most :data:`MOST` particles.

    Yields
    ------
    Groups
        Of each slab.

    Raises
    ------
    CosmofieldsError
        If a group reaches out of what is held.
    """
    cluster = require_extra("kdcount.cluster", "sim", "Finding halos")
    models = require_extra("kdcount.models", "sim", "Finding halos")
    sides = np.asarray(lengths, float)
    n_slabs = -(-len(position) // MOST) if n_slabs is None else n_slabs
    if sides[0] / n_slabs + 2 * OVERLAP >= sides[0]:
        n_slabs = 1
    width = sides[0] / n_slabs
    for slab in range(n_slabs):
        if n_slabs == 1:
            start, box = 0.0, sides
            part, carried = position.astype(np.float64), vector
        else:
            # Twice as long as it is: what wraps around it along x is not near.
            start, box = slab * width - OVERLAP, sides * [2, 1, 1]
            rows = _between(position[:, 0], start, width + 2 * OVERLAP, sides[0])
            part, carried = position[rows].astype(np.float64), vector[rows]
            part[:, 0] = (part[:, 0] - start) % sides[0]
        labels = cluster.fof(models.dataset(part, boxsize=box), linking_length).labels
        groups, low, high = _measure(part, carried, labels, box, min_members)
        if n_slabs > 1:
            centre = groups.position[:, 0]
            own = (centre >= OVERLAP) & (centre < OVERLAP + width)
            out = own & ((low < linking_length) | (high > width + 2 * OVERLAP - linking_length))
            if out.any():
                raise CosmofieldsError(
                    f"{out.sum()} groups reach further than {OVERLAP:g} Mpc/h: the linking length "
                    f"{linking_length:g} Mpc/h joins what is no halo"
                )
            groups = Groups(*(column[own] for column in groups))
        centre = (groups.position + [start, 0, 0]) % sides
        yield groups._replace(position=np.where(centre < sides, centre, 0.0))


def _between(x: NDArray[np.float32], start: float, length: float, side: float) -> NDArray[np.int64]:
    """Rows from ``start`` to ``start + length``, periodic; block by block, for x may be long."""
    found = []
    for begin in range(0, len(x), BLOCK):
        block = x[begin : begin + BLOCK].astype(np.float64)
        found.append(begin + np.flatnonzero((block - start) % side < length))
    return np.concatenate(found)


def _measure(
    position: NDArray[np.float64],
    vector: NDArray[np.float32],
    labels: NDArray[np.integer],
    box: NDArray[np.float64],
    min_members: int,
) -> tuple[Groups, NDArray[np.float64], NDArray[np.float64]]:
    """Groups of enough members, which kdcount labels from 0, the largest; their ends along x."""
    members = np.bincount(labels)
    members = members[: np.searchsorted(-members, -min_members, side="right")]
    rows = np.flatnonzero(labels < len(members))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    first = np.concatenate([[0], np.cumsum(members)[:-1]]).astype(np.int64)
    if not len(members):
        none = np.empty((0, 3))
        return Groups(none, none, members), np.empty(0), np.empty(0)
    # From the first member, across the boundary.
    origin = position[rows[first]]
    offset = position[rows] - np.repeat(origin, members, axis=0)
    offset -= box * np.round(offset / box)
    centre = origin + np.add.reduceat(offset, first) / members[:, None]
    mean = np.add.reduceat(vector[rows].astype(np.float64), first) / members[:, None]
    x = origin[:, 0]
    low = x + np.minimum.reduceat(offset[:, 0], first)
    high = x + np.maximum.reduceat(offset[:, 0], first)
    return Groups(centre, mean, members), low, high
