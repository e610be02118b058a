"""The sample that comes with the package: one simulated box, offline, in one line."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import xarray as xr

from .conventions import box_facts, label, periodic_grid
from .store import open_store


def sample_path() -> Path:
    """Path of the sample's Zarr store, which plain xarray opens too.

    Returns
    -------
    Path
        Of the groups ``halos`` and ``true``, as :func:`open_dataset` opens them.
    """
    return Path(str(files(__package__))) / "data" / "sample.zarr"


def open_dataset() -> tuple[xr.Dataset, xr.Dataset]:
    """Open the sample: the halos and the true matter fields of one simulated box.

    A box of 300 Mpc/h at z = 0.59 with 320^3 particles, which no shipped model was trained on.

    Returns
    -------
    halos : Dataset
        Catalogue in real space, in memory: ``position`` (halo, component) in Mpc/h, ``velocity``
        (halo, component) in km/s, ``mass`` (halo) in Msun/h.
    true : Dataset
        ``density`` (x, y, z) = 1 + delta, ``velocity`` and ``momentum`` (component, x, y, z) in
        km/s on 128^3 cells; dask-backed.  The velocity is rounded to 0.5 km/s.

    Raises
    ------
    StoreError
        If the installed sample is damaged.

    See Also
    --------
    cosmofields.readers.open_box : the same for a file of yours

    Examples
    --------
    >>> halos, true = open_dataset()
    >>> halos.sizes["halo"], dict(true.sizes)
    (130625, {'x': 128, 'y': 128, 'z': 128, 'component': 3})
    """
    halos = open_store(sample_path(), "halos").load()
    true = open_store(sample_path(), "true")
    momentum = true["velocity"] * true["density"]
    true["momentum"] = label("momentum", momentum.data, periodic_grid(true), box_facts(true))
    del true.attrs["comment"]  # says that the momentum is left out
    return halos, true
