"""Simulated boxes to training samples: prepared stores, crops, and the symmetries of augmentation.

A training box is a Zarr store of the observed halo density and the true fields, one for each line
of sight: the three axes of one simulation give three redshift-space skies of the same matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from . import linear
from .catalog import NUMBER_DENSITY, select, to_redshift_space
from .conventions import AXES, StoreError, check_filled
from .inference import axes_to_los_last, model_inputs, run_in_box, turn, vector_channels
from .painting import paint
from .readers import open_box
from .store import open_store, write_store
from .unet import FieldModel

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, by which two copies of one box are known as one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_box(
    path: str | Path,
    folder: str | Path,
    *,
    los: str = "z",
    number_density: Sequence[float] = NUMBER_DENSITY,
    weighting: str = "mass",
    seed: int = 0,
) -> Path:
    """Observe a simulated box along one axis and keep it as a Zarr store.

    Parameters
    ----------
    path : path of an HDF5 box, see :func:`~cosmofields.readers.open_box`
    folder : directory
        Where the store is written, unless it is there already.  Its name holds a digest of the
        file's content and of the observation, so that no other store is taken for it.
    los, number_density, weighting, seed
        Of the observation.

    Returns
    -------
    Path
        The store: ``halo_density``, and the true ``density`` and ``velocity``.

    Raises
    ------
    StoreError, CatalogError
        If the file is no simulated box, or a cell of it holds no matter.
    """
    halos, true = open_box(path)
    made_of = [file_digest(path), los, [*number_density], weighting, seed]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]
    out = Path(folder) / f"{Path(path).stem}-{los}-{digest}.zarr"
    if out.exists():
        try:
            open_store(out)
        except StoreError:
            pass  # not whole: write_store starts it over
        else:
            return out
    true = true.load()
    check_filled(true["density"], repr(str(path)))
    n_grid = [true.sizes[axis] for axis in AXES]
    chosen = select(halos, number_density, seed=seed)
    observed = paint(to_redshift_space(chosen, los), n_grid, weighting=weighting)
    # The bias of the linear filter comes from the same halos where they really are.
    bins = linear.large_scale_bias(paint(chosen, n_grid, weighting=weighting), true["density"])
    count = paint(chosen.drop_vars("mass_bin"), n_grid, weighting="number")
    all_halos = linear.large_scale_bias(count, true["density"])
    bias = {"mass_bins": bins.tolist(), "all_by_number": all_halos.tolist()}
    fields = {
        "halo_density": observed["halo_density"],
        "density": true["density"],
        "velocity": true["velocity"],
    }
    fields["halo_density"] = fields["halo_density"].assign_attrs(linear_bias=bias)
    write_store(xr.Dataset(fields, attrs=observed.attrs), out)
    return out


class BoxSamples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random periodic crops of boxes under the 16 symmetries that keep the line of sight.

    Sample ``i`` of epoch ``e`` depends on (seed, e, i) alone, so a resumed run sees what an
    undisturbed one would have seen.

    Parameters
    ----------
    boxes : sequence of (inputs, truth)
        Arrays (channel, x, y, z), the line of sight last.
    vector_inputs : int
        How many of the last input channels are components of a vector (0 or 3).
    """

    def __init__(
        self,
        boxes: Sequence[Arrays],
        *,
        vector_inputs: int,
        crop: int,
        length: int,
        seed: int,
        epoch: int,
    ) -> None:
        self.boxes = boxes
        self.vector_inputs = vector_inputs
        self.crop = crop
        self.length = length
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and truth (channel, x, y, z) of sample ``i``."""
        rng = np.random.default_rng((self.seed, self.epoch, i))
        inputs, truth = self.boxes[int(rng.integers(len(self.boxes)))]
        origin = rng.integers(0, inputs.shape[1:])
        element = rng.integers(16)
        crops = (
            (periodic_crop(inputs, origin, self.crop), self.vector_inputs),
            (periodic_crop(truth, origin, self.crop), len(truth) if len(truth) == 3 else 0),
        )
        x, y = (torch.from_numpy(transform(array, int(element), n)) for array, n in crops)
        return x, y


def periodic_crop(
    array: NDArray[np.float32], origin: Sequence[int] | NDArray[np.integer], size: int
) -> NDArray[np.float32]:
    """Cube of ``size`` cells from a periodic array (channel, x, y, z)."""
    index = [(int(o) + np.arange(size)) % n for o, n in zip(origin, array.shape[1:], strict=True)]
    return array[:, index[0][:, None, None], index[1][:, None], index[2]]


def transform(
    array: NDArray[np.float32], element: int, vector_channels: int
) -> NDArray[np.float32]:
    """One of the 16 symmetries of the cube that keep the z axis, up to its sign.

    Parameters
    ----------
    array : array, (channel, x, y, z)
    element : int
        0 to 15; its bits say: flip x, flip y, flip z, then swap x and y.
    vector_channels : int
        0, or 3: the last three channels are components, which turn with the axes.

    Returns
    -------
    array
        A new, contiguous array.
    """
    flips = [axis for axis in range(3) if element >> axis & 1]
    swap = bool(element >> 3 & 1)
    out = np.flip(array, tuple(1 + axis for axis in flips))
    if swap:
        out = out.swapaxes(1, 2)
    out = np.array(out, order="C")
    if vector_channels:
        first = len(out) - 3
        for axis in flips:
            out[first + axis] *= -1
        if swap:
            out[[first, first + 1]] = out[[first + 1, first]]
    return out


def load_box(
    path: str | Path,
    target: str,
    *,
    density_model: FieldModel | None = None,
    bias: Sequence[float] | None = None,
) -> Arrays:
    """Inputs and truth (channel, x, y, z) of a training box, the line of sight last.

    For the velocity, the density among the inputs is what ``density_model`` predicts, as it will
    be in use, and the linear velocity is filtered with ``bias``.
    """
    ds = open_store(path, "/").load()
    observed = ds[["halo_density"]]
    density = None
    if density_model is not None:
        halos = observed["halo_density"].values
        predicted = run_in_box(density_model, halos, ds.attrs["los"])
        density = ds["density"].copy(data=predicted[0])
    inputs = model_inputs(observed, target, density=density, bias=bias)
    vector = vector_channels(target)
    truth = ds[target].values if vector else ds[target].values[None]
    order = axes_to_los_last(ds.attrs["los"])
    return (
        np.ascontiguousarray(turn(inputs, order, vector), np.float32),
        np.ascontiguousarray(turn(truth, order, vector), np.float32),
    )
