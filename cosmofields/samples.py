"""Simulated boxes to training samples: prepared stores, crops, and the symmetries of augmentation.

A prepared box is a Zarr store of the observed halo density and the true fields, one for each line
of sight: the three axes of one simulation give three redshift-space skies of the same matter.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from . import linear
from .catalog import NUMBER_DENSITY, select, to_redshift_space
from .conventions import AXES, StoreError, check_filled
from .inference import (
    Bias,
    Loaded,
    axes_to_los_last,
    linear_options,
    model_inputs,
    run_in_box,
    turn,
)
from .kernels.symmetry import transform
from .painting import paint
from .readers import open_box
from .store import open_store, place_of, refusals, write_store
from .unet import MODELS, vector_channels

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]
Files = tuple[Path, Path]

ABANDONED = 3600.0  # seconds after which an unfinished file is that of a run that was killed


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file or a store, by which two copies of one box are known as one.

    Of a store the metadata do not count: they say when it was written.
    """
    path = Path(path)
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for part in sorted(path.rglob("*")):
        if part.is_file() and part.name != "zarr.json":
            total.update(f"{part.relative_to(path)} {file_digest(part)}\n".encode())
    return total.hexdigest()


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
    path : path of an HDF5 box or a Zarr store, see :func:`~cosmofields.readers.open_box`
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
    facts = [halos.attrs[key] for key in ("box_size", "redshift", "cosmology")]
    made_of = [file_digest(path), los, [*number_density], weighting, seed, *facts]
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


def power_ratio_bias(stores: Sequence[str | Path]) -> float:
    """Bias of eq. 4 of the paper, b^2 = mean of P_halo / P_matter, over prepared boxes as well.

    Parameters
    ----------
    stores : paths of stores of :func:`prepare_box`

    Returns
    -------
    float
        Of the halos of all mass bins in redshift space, as they are weighted, over true matter; see
        :func:`~cosmofields.linear.linear_bias`.
    """
    boxes = (open_store(path, "/").load() for path in stores)
    return float(np.sqrt(np.mean([linear.linear_bias(ds, ds["density"]) ** 2 for ds in boxes])))


class BoxSamples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random periodic crops of boxes under the 16 symmetries that keep the line of sight.

    Sample ``(epoch, i)`` depends on these and the seed alone, so a resumed run sees what an
    undisturbed one would have seen, whatever process makes the crop.

    Parameters
    ----------
    boxes : sequence of (inputs, truth)
        Arrays (channel, x, y, z), the line of sight last, or the files of :func:`cache_box`.  Files
        are mapped when a crop is first taken: a worker process receives their names alone.
    vector_inputs : int
        How many of the last input channels are components of a vector (0 or 3).
    """

    def __init__(
        self, boxes: Sequence[Arrays | Files], *, vector_inputs: int, crop: int, seed: int
    ) -> None:
        self.boxes = boxes
        self.vector_inputs = vector_inputs
        self.crop = crop
        self.seed = seed
        self._mapped: dict[int, Arrays] = {}

    def __getitem__(self, which: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and truth (channel, x, y, z) of sample ``(epoch, i)``."""
        rng = np.random.default_rng((self.seed, *which))
        inputs, truth = self._arrays(int(rng.integers(len(self.boxes))))
        origin = rng.integers(0, inputs.shape[1:])
        element = rng.integers(16)
        crops = (
            (periodic_crop(inputs, origin, self.crop), self.vector_inputs),
            (periodic_crop(truth, origin, self.crop), len(truth) if len(truth) == 3 else 0),
        )
        x, y = (torch.from_numpy(transform(array, int(element), n)) for array, n in crops)
        return x, y

    def _arrays(self, i: int) -> Arrays:
        if i not in self._mapped:
            inputs, truth = (
                np.asarray(np.load(part, mmap_mode="r")) if isinstance(part, Path) else part
                for part in self.boxes[i]
            )
            self._mapped[i] = inputs, truth
        return self._mapped[i]

    def __getstate__(self) -> dict[str, Any]:
        # What is mapped would be copied into the message to a worker.
        return {**self.__dict__, "_mapped": {}}


def periodic_crop(
    array: NDArray[np.float32], origin: Sequence[int] | NDArray[np.integer], size: int
) -> NDArray[np.float32]:
    """Cube of ``size`` cells from a periodic array (channel, x, y, z)."""
    out = np.empty((len(array), size, size, size), array.dtype)
    axes = [_runs(int(o) % n, size, n) for o, n in zip(origin, array.shape[1:], strict=True)]
    # Copied in blocks: a third of the time that an index array takes.
    for places in product(*axes):
        to, of = zip(*places, strict=True)
        out[:, *to] = array[:, *of]
    return out


def _runs(start: int, size: int, n: int) -> list[tuple[slice, slice]]:
    """Where the runs of ``size`` cells from ``start`` on go, and where they come from, modulo n."""
    runs, done = [], 0
    while done < size:
        length = min(size - done, n - start)
        runs.append((slice(done, done + length), slice(start, start + length)))
        done, start = done + length, 0
    return runs


def load_box(
    path: str | Path,
    target: str,
    *,
    inputs: Sequence[str] | None = None,
    earlier: Mapping[str, Loaded] | None = None,
    bias: Mapping[str, Bias] | None = None,
) -> Arrays:
    """Inputs and truth (channel, x, y, z) of a training box, the line of sight last.

    Parameters
    ----------
    path : path of a store of :func:`prepare_box`
    target : {"density", "velocity", "momentum"}
    inputs : sequence of str, optional
        Of the model, see :class:`~cosmofields.unet.FieldModel`; default: those of ``residual``.
    earlier : mapping of target to (model, card)
        The models of the steps before: a density or a velocity among the inputs is what they
        predict, as it will be in use.
    bias : mapping
        For a linear field among the inputs, as :func:`~cosmofields.inference.model_inputs` takes.
    """
    ds = open_store(path, "/").load()
    observed, los = ds[["halo_density"]], ds.attrs["los"]
    names = MODELS["residual", target].inputs if inputs is None else tuple(inputs)
    fields: dict[str, xr.DataArray] = {}
    for earlier_target in ("density", "velocity"):
        if earlier_target in names:
            network, card = (earlier or {})[earlier_target]
            x = model_inputs(observed, network.inputs, fields=fields, bias=card["linear_bias"])
            made = run_in_box(network, x, los).reshape(ds[earlier_target].shape)
            fields[earlier_target] = ds[earlier_target].copy(data=made)
    x = model_inputs(observed, names, fields=fields, bias=bias)
    if target == "momentum":
        truth = ds["velocity"].values * ds["density"].values
    else:
        truth = ds[target].values
    order, vector = axes_to_los_last(los), vector_channels([target])
    return (
        np.ascontiguousarray(turn(x, order, vector_channels(names)), np.float32),
        np.ascontiguousarray(turn(truth if vector else truth[None], order, vector), np.float32),
    )


def cache_box(
    path: str | Path,
    target: str,
    *,
    inputs: Sequence[str],
    earlier: Mapping[str, Loaded],
    bias: Mapping[str, Bias],
) -> Files:
    """Files of what :func:`load_box` gives, beside the store; made unless they are there.

    Crops are then read from mapped files: boxes need not fit into memory together, a resumed run
    need not run the earlier networks again, and worker processes share their pages.
    """
    of = linear_options(inputs, bias).get("bias")
    total = hashlib.sha256(json.dumps([target, [*inputs], of]).encode())
    for model, card in earlier.values():
        total.update(json.dumps(card["linear_bias"]).encode())
        for value in model.state_dict().values():
            total.update(value.numpy().tobytes())
    path = Path(path)
    stem = f"{path.stem}-{target}-{total.hexdigest()[:8]}"
    files = path.with_name(f"{stem}.inputs.npy"), path.with_name(f"{stem}.truth.npy")
    if not all(file.exists() for file in files):
        arrays = load_box(path, target, inputs=inputs, earlier=earlier, bias=bias)
        # Runs may share the folder, so what is younger may be another's.
        for left in path.parent.glob("*.part"):
            with suppress(FileNotFoundError):  # it was another's, who is done with it
                if left.name.startswith(stem) and time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
        for file, array in zip(files, arrays, strict=True):
            part = file.with_suffix(f".{uuid.uuid4().hex}.part")
            with refusals(place_of(file)):
                try:
                    with part.open("wb") as handle:
                        np.save(handle, array)
                    part.replace(file)
                finally:
                    part.unlink(missing_ok=True)
    return files
