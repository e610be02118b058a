"""Networks at work: a model prepared once, one tile through it, and tiles planned by memory.

A UNet asked for n cells needs less and less of the halo towards its end.  With zero padding every
layer works on the whole halo; here each computes only the cells that later ones still need, so
that a tile of 192 cells costs 1.3 times its own work instead of 2.
"""

from __future__ import annotations

import copy
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from typing import cast

import dask
import numpy as np
import torch
import torch.nn.functional as F
from dask.utils import format_bytes
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import lazy
from .conventions import CosmofieldsError, DimensionError, listing
from .kernels import tiles
from .kernels.tiles import TilePlan as TilePlan
from .unet import DoubleConv, FieldModel, ResidualUNet

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHANNELS_LAST = torch.channels_last_3d
# A level works through its tile in slabs of about this many bytes a buffer: the allocator hands
# out such pieces again, where each larger one costs a page fault every 4 kB.
SLAB_BYTES = 24_000_000
# Numbers a cell that a network holds at once with 'same' padding (measured on PaperUNet).
BUFFERS = 100
# Work that a plan of smaller passes may cost.
WORTH = 1.05
# What a first pass leaves behind: compiled kernels, the threads' own memory.
FIXED_BYTES = 300_000_000
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
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native and all(map(_is_residual, models)) else "float32"


def _is_residual(model: FieldModel) -> bool:
    return all(isinstance(network, ResidualUNet) for network in model.networks)


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


# --- a model, prepared ---


def prepare(model: FieldModel, device: torch.device, precision: str) -> _Valid | _Padded:
    """The model in its form for inference; made once and kept with the model."""
    tensors = [t for t in model.state_dict().values() if not t.is_inference()]
    weights = tuple((t.data_ptr(), t._version) for t in tensors)
    key = (str(device), precision)
    known = model.prepared.get(key)
    if known is None or known[0] != weights:
        kind = _Valid if _is_residual(model) else _Padded
        known = model.prepared[key] = (weights, kind(model, device, PRECISIONS[precision]))
    return cast("_Valid | _Padded", known[1])


Weights = tuple[Tensor, Tensor]
Block = tuple[Weights, Weights, Weights | None]


class _Valid:
    """A residual model, its one network with valid convolutions, in slabs.

    Norms are folded into convolutions.  Margins, in cells of a level, count how far a region
    reaches beyond the tile's own cells; the tile comes with ``halo`` cells around it.
    """

    def __init__(self, model: FieldModel, device: torch.device, dtype: torch.dtype) -> None:
        network = cast(ResidualUNet, copy.deepcopy(model.networks[0]).eval())
        self.features, self.finish, self.n_out = model.features, model.finish, model.n_out
        self.dtype, self.device = dtype, device

        def of(layer: nn.Module, as_type: torch.dtype = dtype) -> Weights:
            conv = cast(nn.Conv3d, layer)
            weight, bias = conv.weight.detach(), cast(Tensor, conv.bias).detach()
            weight = weight.to(device, as_type).contiguous(memory_format=CHANNELS_LAST)
            return weight, bias.to(device, as_type)

        def block(module: nn.Module) -> Block:
            double = cast(DoubleConv, module)
            first = fuse_conv_bn_eval(double.first, double.norm1)
            second = fuse_conv_bn_eval(double.second, double.norm2)
            straight = isinstance(double.bypass, nn.Identity)
            return of(first), of(second), None if straight else of(double.bypass)

        self.encoder = [block(module) for module in network.encoder]
        self.down = [of(module) for module in network.down]
        # Finest first, as the encoder.
        self.up = [of(module) for module in reversed(network.up)]
        self.decoder = [block(module) for module in reversed(network.decoder)]
        self.final = of(network.final, torch.float32)

        self.levels = len(self.encoder)
        # What a decoder returns, and what an encoder does.
        self.needed = [0]
        for _ in self.down:
            self.needed.append((self.needed[-1] + 3) // 2)
        self.reach = self.needed[-1:]
        for _ in self.down:
            self.reach.insert(0, 2 * (self.reach[0] + 2))
        self.halo = self.reach[0] + 2

    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, n_in, x, y, z) to (batch, n_out, x - 2 halo, y - 2 halo, z - 2 halo)."""
        inner = [n - 2 * self.halo for n in x.shape[2:]]
        skips = []
        y = x
        for level in range(self.levels - 1):
            y, skip = self._encode(level, y, inner)
            skips.append(skip)
        y, _ = _double(y if skips else self._channels(x), self.encoder[-1])
        for level in reversed(range(1, self.levels - 1)):
            size = [n // 2**level + 2 * self.needed[level] for n in inner]
            out = self._empty(x.shape[0], self.decoder[level][1][0].shape[0], size)
            for lo, hi, part in self._decode(level, y, skips.pop(), inner):
                out[:, :, lo:hi] = part
            y = out
        fields = x.new_empty((x.shape[0], self.n_out, *inner))
        own = _inner(x, (self.halo,) * 3)
        parts = self._decode(0, y, skips.pop(), inner) if skips else [(0, inner[0], y)]
        for lo, hi, part in parts:
            output = F.conv3d(part.float(), *self.final)
            fields[:, :, lo:hi] = self.finish(own[:, :, lo:hi], [output])
        return fields

    def work(self, shape: Sequence[int], parts: Sequence[int]) -> float:
        """Multiplications for a box cut into ``parts`` along each axis; 0 of them: no halos."""
        total = 0.0
        for level in range(self.levels):
            reach, needed = self.reach[level], self.needed[level]
            blocks = [(self.encoder[level], reach)]
            if level + 1 < self.levels:
                blocks.append((self.decoder[level], needed))
                total += self.down[level][0].numel() * _cells(shape, level + 1, reach // 2, parts)
                up = self.needed[level + 1]
                total += self.up[level][0].numel() * _cells(shape, level + 1, up, parts)
            for (first, second, bypass), margin in blocks:
                total += first[0].numel() * _cells(shape, level, margin + 1, parts)
                straight = 0 if bypass is None else bypass[0].numel()
                total += (second[0].numel() + straight) * _cells(shape, level, margin, parts)
        return total + self.final[0].numel() * _cells(shape, 0, 0, parts)

    def nbytes(self, inner: Sequence[int]) -> int:
        """Bytes that a pass fills beyond its input, for a tile of ``inner`` cells."""

        def size(level: int, margin: int, width: int) -> float:
            return _cells(inner, level, margin, (1, 1, 1)) * width * self.dtype.itemsize

        widths = [block[1][0].shape[0] for block in self.encoder]
        kept, peaks = 0.0, []
        for level in range(self.levels - 1):
            reach, width = self.reach[level], widths[level]
            source = size(level, reach + 2, width) if level else 0
            kept += size(level, self.needed[level] + 2, width)
            coarse = size(level + 1, reach // 2, widths[level + 1])
            # A decoder works beside what the encoder left, its input and its output.
            below = size(level + 1, self.needed[level + 1], widths[level + 1])
            out = size(level, self.needed[level], width) if level else 0
            peaks.append(kept + max(source + coarse, below + out) + self._scratch(level, inner))
        bottom = size(self.levels - 1, self.reach[-1] + 2, widths[-1])
        fields = 4 * self.n_out * float(np.prod(inner))
        return int(max([*peaks, kept + 3 * bottom]) + fields)

    def _scratch(self, level: int, inner: Sequence[int]) -> float:
        """Bytes of what lives while one slab is worked on."""
        size = [n // 2**level + 2 * self.reach[level] + 4 for n in inner]
        width = 2 * self.encoder[level][1][0].shape[0]
        planes = next(self._slabs(size, width))[1] + 4
        return 5.0 * width * self.dtype.itemsize * min(planes, size[0]) * size[1] * size[2]

    def _encode(self, level: int, source: Tensor, inner: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The next level's input, and what this level's decoder needs of the encoder."""
        batch, width = source.shape[0], self.encoder[level][1][0].shape[0]
        size = [n // 2**level + 2 * self.reach[level] for n in inner]
        crop = self.reach[level] - self.needed[level] - 2
        skip = self._empty(batch, width, [n - 2 * crop for n in size])
        coarse = self._empty(batch, self.down[level][0].shape[0], [n // 2 for n in size])
        above = None
        for lo, hi in self._slabs(size, width):
            first = lo if above is None else lo + 2
            piece = source[:, :, first : hi + 4]
            piece = piece if level else self._channels(piece)
            part, above = _double(piece, self.encoder[level], above)
            coarse[:, :, lo // 2 : hi // 2] = F.conv3d(part, *self.down[level], stride=2)
            first, last = max(lo, crop), min(hi, size[0] - crop)
            if first < last:
                mine = part[:, :, first - lo : last - lo]
                skip[:, :, first - crop : last - crop] = _inner(mine, (0, crop, crop))
        return coarse, skip

    def _decode(
        self, level: int, y: Tensor, skip: Tensor, inner: Sequence[int]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """What a level returns, slab by slab: first and last plane, and the slab."""
        size = [n // 2**level + 2 * self.needed[level] for n in inner]
        crop = 2 * self.needed[level + 1] - self.needed[level] - 2
        above = None
        for lo, hi in self._slabs(size, 2 * skip.shape[1]):
            first, last = lo if above is None else lo + 2, hi + 4
            low, high = (first + crop) // 2, (last + crop + 1) // 2
            up = F.conv_transpose3d(y[:, :, low:high], *self.up[level], stride=2)
            start = first + crop - 2 * low
            up = _inner(up[:, :, start : start + last - first], (0, crop, crop))
            both = torch.cat([up, skip[:, :, first:last]], dim=1)
            part, above = _double(both, self.decoder[level], above)
            yield lo, hi, part

    def _channels(self, x: Tensor) -> Tensor:
        """Input channels of the network, computed in float32."""
        return self.features(x).to(self.dtype).contiguous(memory_format=CHANNELS_LAST)

    def _empty(self, batch: int, width: int, size: Sequence[int]) -> Tensor:
        shape = (batch, width, *size)
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=CHANNELS_LAST)

    def _slabs(self, size: Sequence[int], width: int) -> Iterator[tuple[int, int]]:
        """Planes (first, last), an even number of them, that make one piece of work."""
        n = size[0]
        if self.device.type == "cpu":
            plane = width * size[1] * size[2] * self.dtype.itemsize
            n = max(4, SLAB_BYTES // plane // 2 * 2)
        return ((lo, min(lo + n, size[0])) for lo in range(0, size[0], n))


class _Padded:
    """Any other model: its networks on the whole halo, cropped."""

    def __init__(self, model: FieldModel, device: torch.device, dtype: torch.dtype) -> None:
        self.features, self.finish, self.halo = model.features, model.finish, model.receptive_radius
        self.dtype = dtype
        self.networks = [copy.deepcopy(network).eval() for network in model.networks]
        for network in self.networks:
            network.to(device, dtype, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]

    def __call__(self, x: Tensor) -> Tensor:
        """As of :class:`_Valid`."""
        features = self.features(x).to(self.dtype).contiguous(memory_format=CHANNELS_LAST)
        crop = (self.halo,) * 3
        outputs = [_inner(network(features), crop).float() for network in self.networks]
        return self.finish(_inner(x, crop), outputs)

    def work(self, shape: Sequence[int], parts: Sequence[int]) -> float:
        """As of :class:`_Valid`, with each weight used once a cell."""
        weights = sum(p.numel() for network in self.networks for p in network.parameters())
        return weights * _cells(shape, 0, self.halo, parts)

    def nbytes(self, inner: Sequence[int]) -> int:
        """As of :class:`_Valid`."""
        return int(BUFFERS * self.dtype.itemsize * _cells(inner, 0, self.halo, (1, 1, 1)))


def _double(x: Tensor, block: Block, above: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A DoubleConv without padding, and the last planes between its convolutions.

    They are what the slab below starts from: ``above`` saves it two planes of input.
    """
    first, second, bypass = block
    middle = F.conv3d(x, *first).relu_()
    if above is not None:
        middle = torch.cat([above, middle], dim=2)
    y = F.conv3d(middle, *second)
    start = 2 if above is None else 0
    x = _inner(x[:, :, start : start + y.shape[2]], (0, 2, 2))
    y = y.add_(x if bypass is None else F.conv3d(x, *bypass)).relu_()
    return y, middle[:, :, -2:].clone()


def _inner(x: Tensor, crop: Sequence[int]) -> Tensor:
    i, j, k = crop
    return x[..., i : x.shape[-3] - i, j : x.shape[-2] - j, k : x.shape[-1] - k]


def _cells(shape: Sequence[int], level: int, margin: int, parts: Sequence[int]) -> float:
    """Cells of a level that the tiles of a box hold, with ``margin`` around each of them."""
    scale = 2**level
    return float(np.prod([n / scale + 2 * margin * k for n, k in zip(shape, parts, strict=True)]))


# --- tiles ---


def plan(
    model: FieldModel,
    shape: Sequence[int],
    memory: float,
    precision: str = "auto",
    *,
    device: str = "auto",
    align: int = lazy.CHUNK,
    waiting: int = 0,
    tile: int | Sequence[int] | None = None,
) -> TilePlan:
    """Tiles with the least work, to 5 %, whose passes fit into memory.

    Parameters
    ----------
    model : FieldModel
    shape : cells (x, y, z) of the periodic box, multiples of ``model.coarsest``
    memory : bytes that one process may fill
    precision : {"auto", "float32", "bfloat16"}
    device : {"auto", "cpu", "cuda"}
    align : int
        What tile bounds are multiples of: of a store's chunk, each chunk is of one tile.
    waiting : int
        Tiles whose chunks are in memory besides the input of the pass.
    tile : int or three, optional
        Most cells a side, in place of a choice by memory.  With :attr:`TilePlan.tile` of a plan
        it is the same plan again.

    Returns
    -------
    TilePlan

    Raises
    ------
    CosmofieldsError
        If not even the smallest tiles fit, with what they need.
    DimensionError
        If the network's levels do not divide the grid, or ``tile`` is below the coarsest cell.
    """
    where = resolve_device(device)
    precision = resolve_precision(precision, where, model)
    prepared = prepare(model, where, precision)
    shape = (shape[0], shape[1], shape[2])
    coarsest = model.coarsest
    if any(n % coarsest for n in shape):
        near = listing(coarsest * max(1, round(n / coarsest)) for n in shape)
        raise DimensionError(
            f"A grid of {listing(shape)} cells; expected multiples of {coarsest}, the network's "
            f"coarsest cell: paint with n_grid = {near}"
        )
    sides = (tile,) * 3 if isinstance(tile, int) else tile
    if sides is not None and min(sides) < coarsest:
        raise DimensionError(f"tile={tile}; expected at least {coarsest} cells, e.g. 128")
    unit = math.lcm(align, coarsest)
    if sides is None:
        units = [min(unit, n) for n in shape]
        choices = [tiles.partitions(n, unit) for n, unit in zip(shape, units, strict=True)]
    else:
        units = [coarsest if side < unit else unit for side in sides]
        choices = [[tiles.fewest(*axis)] for axis in zip(shape, sides, units, strict=True)]

    def made(parts: Sequence[int]) -> TilePlan:
        bounds = tuple(tiles.split(*axis) for axis in zip(shape, parts, units, strict=True))
        largest = [max(hi - lo for lo, hi in axis) for axis in bounds]
        # Whole chunks are read for a halo, up to the whole axis.
        rim = 2 * align * -(-prepared.halo // align)
        chunks = np.prod([min(side + rim, n) for side, n in zip(largest, shape, strict=True)])
        given = _cells(largest, 0, prepared.halo, (1, 1, 1)) + waiting * float(chunks)
        nbytes = int(FIXED_BYTES + 4 * model.n_in * given + prepared.nbytes(largest))
        cost = prepared.work(shape, parts) / prepared.work(shape, (0, 0, 0))
        return TilePlan(shape, bounds, prepared.halo, precision, nbytes, cost)

    plans = [made(parts) for parts in product(*choices)]
    allowed = plans if sides else [p for p in plans if p.nbytes <= memory]
    if not allowed:
        small = min(plans, key=lambda p: p.nbytes)
        raise CosmofieldsError(
            f"The {model.target} network needs {format_bytes(small.nbytes)} for its smallest tiles "
            f"({' x '.join(map(str, small.tile))} cells), and {format_bytes(int(memory))} are "
            "allowed: give it more (memory=, or cosmofields.memory in dask's configuration)"
        )
    # Smaller passes leave room, and less to do again, for hardly more work.
    least = WORTH * min(p.cost for p in allowed)
    return min((p for p in allowed if p.cost <= least), key=lambda p: p.nbytes)


def memory_of(device: torch.device) -> int:
    """Bytes that passes on a device may fill."""
    allowed = lazy.machine().memory
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    return int(min(allowed, 0.8 * free))


def run_tile(
    model: FieldModel,
    inputs: NDArray[np.float32],
    halo: int,
    device: str | torch.device = "auto",
    precision: str = "auto",
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
        own = np.require(inputs, np.float32, "W")
        x = torch.from_numpy(own if own.ndim == 5 else own[None]).to(where)
        y = prepared(_inner(x, (halo - prepared.halo,) * 3)).cpu().numpy()
    return cast("NDArray[np.float32]", y if inputs.ndim == 5 else y[0])


def seconds_per_cell(
    model: FieldModel, device: str | torch.device = "auto", precision: str = "auto"
) -> float:
    """Time of a cell without halos, from a probe of a second or two; times ``cost``, of a plan."""
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
