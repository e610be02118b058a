"""Device and precision, and one tile through a model."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import dask
import numpy as np
import torch
from numpy.typing import NDArray

from .. import lazy
from ..conventions import CosmofieldsError
from ..kernels import symmetry
from ..unet import FieldModel, vector_channels
from .networks import PRECISIONS, inner_of, is_residual, prepare

# One pass at a time: torch takes all cores for it, and a second doubles the memory.
ONE_PASS = threading.RLock()


def resolve_device(device: str | torch.device) -> torch.device:
    """Torch device of ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CosmofieldsError(f"device={device!r}; expected 'auto', 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise CosmofieldsError(f"device={device!r}, but torch finds no CUDA GPU: use 'cpu'")
    return chosen


def resolve_precision(precision: str, device: str | torch.device, *models: FieldModel) -> str:
    """``"float32"`` or ``"bfloat16"`` of ``"auto"``.

    Auto takes bfloat16 where the processor multiplies in it, for the architecture on which its
    effect was measured (``docs/models.md``).
    """
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise CosmofieldsError(f"precision={precision!r}; expected 'auto', 'float32' or 'bfloat16'")
    on_gpu = resolve_device(device).type == "cuda"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if on_gpu
        else torch.cpu._is_avx512_bf16_supported()
    )
    return "bfloat16" if native and all(map(is_residual, models)) else "float32"


@contextmanager
def resources(device: str | torch.device) -> Iterator[None]:
    """Tasks made inside take a GPU each, if the device is one and the workers declare them.

    An array's own optimisation forgets annotations: compute such a result with dask's
    ``optimization.fuse.active`` set to False.
    """
    distributed = sys.modules.get("distributed")
    wanted = {}
    if resolve_device(device).type == "cuda" and distributed is not None:
        with suppress(ValueError):  # no client
            info = distributed.default_client().scheduler_info(n_workers=-1)
            if any("GPU" in worker["resources"] for worker in info["workers"].values()):
                wanted = {"resources": {"GPU": 1}}
    with dask.annotate(**wanted):
        yield


def run_tile(
    model: FieldModel,
    inputs: NDArray[np.float32],
    halo: int,
    device: str | torch.device = "auto",
    precision: str = "auto",
    symmetries: int = 1,
) -> NDArray[np.float32]:
    """One tile through the model.

    Parameters
    ----------
    model : FieldModel
    inputs : array, (channel, x, y, z) or (batch, channel, x, y, z)
        The tile with ``halo`` cells around it (:func:`~cosmofields.kernels.tiles.gather`), in the
        model's axes: the line of sight last.
    halo : int
        At least :attr:`TilePlan.halo`.
    device : {"auto", "cpu", "cuda"} or torch.device
    precision : {"auto", "float32", "bfloat16"}
    symmetries : {1, 2, 4, 8, 16}
        Passes under as many symmetries that keep the line of sight, turned back and averaged.

    Returns
    -------
    numpy.ndarray, float32, (channel, x, y, z), with the batch in front if there was one
        The tile's own cells.

    Raises
    ------
    CosmofieldsError
        If the inputs are not finite.

    Notes
    -----
    One pass runs at a time in a process, with the threads of :func:`~cosmofields.lazy.n_threads`.
    """
    # The sum is finite exactly if every number is: no field comes near the end of float64.
    if not np.isfinite(inputs.sum(dtype=np.float64)):
        raise CosmofieldsError(
            "The fields that the network is to see hold NaN or infinite values (were fields of "
            "different grids assigned to one Dataset?)"
        )
    where = resolve_device(device)
    with ONE_PASS, torch.inference_mode():
        threads = lazy.n_threads()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        prepared = prepare(model, where, resolve_precision(precision, where, model))
        # torch warns of an array that it must not write to.
        own = np.require(inputs if inputs.ndim == 5 else inputs[None], np.float32, "W")
        given, made = (vector_channels(names) for names in (model.inputs, [model.target]))
        crop = (halo - prepared.halo,) * 3

        def one(array: NDArray[np.float32]) -> NDArray[np.float32]:
            x = torch.from_numpy(array).to(where)
            return cast("NDArray[np.float32]", prepared(inner_of(x, crop)).cpu().numpy())

        total = one(own)
        for element in symmetry.ORDER[1:symmetries]:
            y = one(symmetry.transform(own, element, given))
            total += symmetry.transform(y, symmetry.inverse(element), made)
        if symmetries > 1:
            total /= symmetries
    return cast("NDArray[np.float32]", total if inputs.ndim == 5 else total[0])


def seconds_per_cell(
    model: FieldModel, device: str | torch.device = "auto", precision: str = "auto"
) -> float:
    """Time of a cell, from a probe of a second or two; times ``cost``, of a plan."""
    where = resolve_device(device)
    precision = resolve_precision(precision, where, model)
    prepared, shape = prepare(model, where, precision), (64, 64, 64)
    padded = [n + 2 * prepared.halo for n in shape]
    inputs = np.random.default_rng(0).random((model.n_in, *padded), np.float32)
    for _ in range(2):  # the first compiles kernels
        start = time.perf_counter()
        run_tile(model, inputs, prepared.halo, where, precision)
        taken = time.perf_counter() - start
    return taken / prepared.work(shape, (1, 1, 1)) * prepared.work(shape, (0, 0, 0)) / 64**3
