"""A model in its form for inference: valid convolutions, in slabs, their work and memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..unet import DoubleConv, FieldModel, ResidualUNet

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHANNELS_LAST = torch.channels_last_3d
# A level works through its tile in slabs of about this many bytes a buffer: the allocator hands
# out such pieces again, where each larger one costs a page fault every 4 kB.
SLAB_BYTES = 24_000_000
# Numbers a cell that a network holds at once with 'same' padding (measured on PaperUNet).
BUFFERS = 100


def is_residual(model: FieldModel) -> bool:
    """Whether the valid convolutions know the model's networks."""
    return all(isinstance(network, ResidualUNet) for network in model.networks)


def prepare(model: FieldModel, device: torch.device, precision: str) -> Valid | Padded:
    """The model in its form for inference; made once and kept with the model."""
    tensors = [t for t in model.state_dict().values() if not t.is_inference()]
    weights = tuple((t.data_ptr(), t._version) for t in tensors)
    key = (str(device), precision)
    known = model.prepared.get(key)
    if known is None or known[0] != weights:
        kind = Valid if is_residual(model) else Padded
        known = model.prepared[key] = (weights, kind(model, device, PRECISIONS[precision]))
    return cast("Valid | Padded", known[1])


Weights = tuple[Tensor, Tensor]
Block = tuple[Weights, Weights, Weights | None]


class Valid:
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
        own = inner_of(x, (self.halo,) * 3)
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
                total += self.down[level][0].numel() * cells(shape, level + 1, reach // 2, parts)
                up = self.needed[level + 1]
                total += self.up[level][0].numel() * cells(shape, level + 1, up, parts)
            for (first, second, bypass), margin in blocks:
                total += first[0].numel() * cells(shape, level, margin + 1, parts)
                straight = 0 if bypass is None else bypass[0].numel()
                total += (second[0].numel() + straight) * cells(shape, level, margin, parts)
        return total + self.final[0].numel() * cells(shape, 0, 0, parts)

    def nbytes(self, inner: Sequence[int]) -> int:
        """Bytes that a pass fills beyond its input, for a tile of ``inner`` cells."""

        def size(level: int, margin: int, width: int) -> float:
            return cells(inner, level, margin, (1, 1, 1)) * width * self.dtype.itemsize

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
                skip[:, :, first - crop : last - crop] = inner_of(mine, (0, crop, crop))
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
            up = inner_of(up[:, :, start : start + last - first], (0, crop, crop))
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


class Padded:
    """Any other model: its networks on the whole halo, cropped."""

    def __init__(self, model: FieldModel, device: torch.device, dtype: torch.dtype) -> None:
        self.features, self.finish, self.halo = model.features, model.finish, model.receptive_radius
        self.dtype = dtype
        self.networks = [copy.deepcopy(network).eval() for network in model.networks]
        for network in self.networks:
            network.to(device, dtype, memory_format=CHANNELS_LAST)  # type: ignore[call-overload]

    def __call__(self, x: Tensor) -> Tensor:
        """As of :class:`Valid`."""
        features = self.features(x).to(self.dtype).contiguous(memory_format=CHANNELS_LAST)
        crop = (self.halo,) * 3
        outputs = [inner_of(network(features), crop).float() for network in self.networks]
        return self.finish(inner_of(x, crop), outputs)

    def work(self, shape: Sequence[int], parts: Sequence[int]) -> float:
        """As of :class:`Valid`, with each weight used once a cell."""
        weights = sum(p.numel() for network in self.networks for p in network.parameters())
        return weights * cells(shape, 0, self.halo, parts)

    def nbytes(self, inner: Sequence[int]) -> int:
        """As of :class:`Valid`."""
        return int(BUFFERS * self.dtype.itemsize * cells(inner, 0, self.halo, (1, 1, 1)))


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
    x = inner_of(x[:, :, start : start + y.shape[2]], (0, 2, 2))
    y = y.add_(x if bypass is None else F.conv3d(x, *bypass)).relu_()
    return y, middle[:, :, -2:].clone()


def inner_of(x: Tensor, crop: Sequence[int]) -> Tensor:
    """What is left of the last three axes without ``crop`` cells at either end."""
    i, j, k = crop
    return x[..., i : x.shape[-3] - i, j : x.shape[-2] - j, k : x.shape[-1] - k]


def cells(shape: Sequence[int], level: int, margin: int, parts: Sequence[int]) -> float:
    """Cells of a level that the tiles of a box hold, with ``margin`` around each of them."""
    scale = 2**level
    return float(np.prod([n / scale + 2 * margin * k for n, k in zip(shape, parts, strict=True)]))
