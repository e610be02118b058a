"""What a store holds, for a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..conventions import BOX_KEYS
from .places import StorePath, place_of
from .reading import LEDGER, Found, look, open_tree, state_of, stored


def contents(
    path: StorePath, *, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Facts of a store, whole or not, that :func:`~cosmofields.store.describe` says in words.

    Parameters
    ----------
    path : path or URL
    storage_options : dict, optional
        Of an object store; see :func:`open_store`.

    Returns
    -------
    dict
        ``store``; ``zarr_format``; ``state``; ``stages``, of a store that is being filled the
        tasks that are done and their number, by stage; ``stored_bytes``, None where it cannot be
        listed; ``attributes`` of the root; ``groups`` by path: the box facts (Mpc/h) and the
        ``variables``: ``dims`` (name to size), ``dtype``, ``units``, ``chunks``, ``shards``.

    Raises
    ------
    StoreError
        As :func:`open_store`, but for a store that is not whole.
    """
    found = look(place_of(path, storage_options))
    tree = open_tree(found, None)
    there = stored(found)
    groups = {
        node.path: {
            **{key: node.attrs.get(key) for key in BOX_KEYS if key in node.attrs},
            "variables": {
                str(name): {
                    "dims": {str(dim): size for dim, size in value.sizes.items()},
                    "dtype": str(array.dtype),
                    "units": value.attrs.get("units"),
                    "chunks": array.chunks,
                    "shards": array.shards,
                }
                for name, value in node.to_dataset().data_vars.items()
                for array in [found.arrays[f"{node.path}/{name}".strip("/")]]
            },
        }
        for node in tree.subtree
        if node.to_dataset().variables and node.path.split("/")[1] != LEDGER
    }
    return {
        "store": str(path),
        "zarr_format": found.zarr_format,
        "state": state_of(found),
        "stages": tasks(found),
        "stored_bytes": None if there is None else sum(item.nbytes for item in there.values()),
        "attributes": dict(tree.attrs),
        "groups": groups,
    }


def tasks(found: Found) -> dict[str, tuple[int, int]]:
    """Tasks that are done and their number, of each stage of a store that is being filled."""
    stages = {
        name.rpartition("/")[2]: np.asarray(array[...])
        for name, array in found.arrays.items()
        if name.partition("/")[0] == LEDGER and array.size < 1e6
    }
    return {name: (int(np.count_nonzero(done)), done.size) for name, done in stages.items()}
