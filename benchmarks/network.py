"""The density network over a box, against one whole pass and against the usual tilings."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cosmofields.inference import apply_model
from cosmofields.lazy import n_threads
from cosmofields.unet import FieldModel, load_model

from .data import halo_density
from .harness import Row, call, compare, peer, say

HALO = 24


def _whole(model: FieldModel, fields: NDArray[np.float32], dtype: torch.dtype) -> Callable[[], Any]:
    """One forward pass over the box: each cell once, no halo (and so wrong at the faces)."""

    def run() -> NDArray[np.float32]:
        x = torch.from_numpy(fields)[None].contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(x)[0].float().numpy()

    return run


def _padded_tiles(model: FieldModel, fields: NDArray[np.float32], tile: int) -> Callable[[], Any]:
    """The loop that one writes first: float32, tile by tile, the halo cut off the result."""

    def run() -> NDArray[np.float32]:
        shape = fields.shape[1:]
        pad = [(0, 0), *[(HALO, HALO)] * 3]
        wrapped = np.pad(fields, pad, mode="wrap")
        out = np.empty((1, *shape), np.float32)
        for corner in product(*(range(0, n, tile) for n in shape)):
            part = wrapped[(slice(None), *(slice(i, i + tile + 2 * HALO) for i in corner))]
            with torch.inference_mode():
                y = model(torch.from_numpy(np.ascontiguousarray(part))[None])[0].numpy()
            inner = (slice(None), *(slice(HALO, -HALO),) * 3)
            out[(slice(None), *(slice(i, i + tile) for i in corner))] = y[inner]
        return out

    return run


def _monai(module: Any, model: FieldModel, fields: NDArray[np.float32], tile: int) -> Any:
    """MONAI's sliding window over the wrapped box; it averages overlaps, where we drop halos."""
    wrapped = np.pad(fields, [(0, 0), *[(HALO, HALO)] * 3], mode="wrap")
    side = tile + 2 * HALO
    with torch.inference_mode():
        y = module.sliding_window_inference(
            torch.from_numpy(wrapped)[None], (side,) * 3, 1, model, overlap=2 * HALO / side
        )
    return y[0].numpy()[(slice(None), *(slice(HALO, -HALO),) * 3)]


def _differ(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Of cells that no face of the box has touched, in units of their scatter."""
    margin = HALO if min(ours.shape[1:]) > 2 * HALO else 0
    inner = (slice(None), *(slice(margin, n - margin) for n in ours.shape[1:]))
    return float(np.sqrt(np.mean((ours[inner] - theirs[inner]) ** 2)) / ours[inner].std())


def _start() -> tuple[FieldModel, torch.dtype, str]:
    """The density model that ships, and what our engine computes in on this processor."""
    torch.set_num_threads(n_threads())
    model, _ = load_model("density")
    native = torch.cpu._is_avx512_bf16_supported()
    dtype = torch.bfloat16 if native else torch.float32
    name = str(dtype).removeprefix("torch.")
    say(f"  {torch.get_num_threads()} threads, {name}")
    return model, dtype, name


def inference(quick: bool) -> list[Row]:
    """Our engine on 192^3 cells, as ``predict_density`` runs it, against one pass over the box."""
    model, dtype, name = _start()
    side = 64 if quick else 192
    fields = halo_density((side,) * 3)
    limit = f"one pass over the box, {name}"
    rows = compare(
        f"density network {side}^3, {name}",
        lambda: apply_model(model, fields),
        {limit: _whole(model, fields, dtype)},
        target="<= 1.6",
        differ=_differ,
        notes={limit: "the limit: no halo, each cell once"},
    )
    rows[0].more["ns_per_cell"] = 1e9 * (rows[0].ours_s or 0) / side**3
    return rows


def tilings(quick: bool) -> list[Row]:
    """Our engine on one tile of 128^3 cells against the usual ways to take a halo along."""
    model, _, name = _start()
    tile = 32 if quick else 128
    fields = halo_density((tile,) * 3)
    usual = f"{tile}^3 tiles and {HALO} cells of halo, float32"
    loop, window = f"padded loop: {usual}", f"MONAI sliding_window_inference: {usual}"
    module = peer("monai.inferers")
    return compare(
        f"density network {tile}^3, {name}",
        lambda: apply_model(model, fields),
        {
            loop: _padded_tiles(model, fields, tile),
            window: call(module, lambda m: _monai(m, model, fields, tile)),
        },
        differ=_differ,
        notes={window: "where windows overlap it takes the mean, padding and all"},
    )
