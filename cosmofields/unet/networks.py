"""The networks: convolutions between features and outputs; they know no physical field."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3^3 convolutions with batch norm, and a bypass round them."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(n_in, n_out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(n_out)
        self.second = nn.Conv3d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(n_out)
        self.bypass = nn.Conv3d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, n_in, x, y, z) to (batch, n_out, x, y, z)."""
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + self.bypass(x))


class ResidualUNet(nn.Module):
    """UNet of residual double convolutions.

    Most of its width sits at half resolution, where a channel costs an eighth and where most of
    the velocity field lives.
    """

    def __init__(self, n_in: int, n_out: int, widths: tuple[int, ...] = (16, 64, 128)) -> None:
        super().__init__()
        self.coarsest = 2 ** (len(widths) - 1)
        self.encoder = nn.ModuleList([DoubleConv(n_in, widths[0])])
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for fine, coarse in zip(widths, widths[1:], strict=False):
            self.down.append(nn.Conv3d(fine, coarse, 2, stride=2))
            self.encoder.append(DoubleConv(coarse, coarse))
            self.up.insert(0, nn.ConvTranspose3d(coarse, fine, 2, stride=2))
            self.decoder.insert(0, DoubleConv(2 * fine, fine))
        self.final = nn.Conv3d(widths[0], n_out, 1)
        # Start from linear theory, or the mean density: the network adds nothing yet.
        for parameter in self.final.parameters():
            nn.init.zeros_(parameter)

    @property
    def receptive_radius(self) -> int:
        """Cells beyond which an input cannot change an output, rounded up to coarsest cells."""
        levels = len(self.encoder)
        radius = 2 * 2 ** (levels - 1) + sum(4 * 2**level for level in range(levels - 1))
        # Where a cell sits in its coarse cell moves its view by up to one coarse cell less one.
        return -(-(radius + self.coarsest - 1) // self.coarsest) * self.coarsest

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, n_in, x, y, z) to (batch, n_out, x, y, z), multiples of ``coarsest``."""
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(self.down[level - 1](x) if level else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([up(x), skips.pop()], dim=1))
        return self.final(x)


class PaperUNet(nn.Module):
    """The paper's UNet: init convolution, stride-2 down and up blocks with skips, final block.

    The paper leaves open, and this takes: init kernel 7^3, the others 3^3; widths N1, N2, N3 =
    16, 32, 64; dropout 0.1; zero padding; two stride-2 steps.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        n1, n2, n3 = widths
        self.coarsest = 4

        def conv(i: int, o: int, *, kernel: int = 3, stride: int = 1, drop: float = 0) -> nn.Module:
            parts: list[nn.Module] = [nn.Conv3d(i, o, kernel, stride=stride, padding=kernel // 2)]
            if drop:
                parts.append(nn.Dropout3d(drop))
            return nn.Sequential(*parts, nn.BatchNorm3d(o), nn.ReLU())

        def trans(i: int, o: int) -> nn.Module:
            up = nn.ConvTranspose3d(i, o, 2, stride=2)
            return nn.Sequential(up, nn.BatchNorm3d(o), nn.ReLU())

        self.init = conv(n_in, n1, kernel=7)
        self.down1 = nn.Sequential(conv(n1, n2, stride=2), conv(n2, n2))
        self.down2 = nn.Sequential(conv(n2, n3, stride=2), conv(n3, n3))
        self.up2 = trans(n3, n2)
        self.merge2 = conv(2 * n2, n2)
        self.up1 = trans(n2, n1)
        self.merge1 = conv(2 * n1, n1)
        self.final = nn.Sequential(conv(n1, n1, drop=dropout), nn.Conv3d(n1, n_out, 1))

    @property
    def receptive_radius(self) -> int:
        """Cells beyond which an input cannot change an output, rounded up to coarsest cells."""
        # init 3, stride-2 convs 1 and 2, the 3^3 convs 2, 4, 2, 1, 1; alignment 3.
        return 20

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, n_in, x, y, z) to (batch, n_out, x, y, z); sides multiples of 4."""
        fine = self.init(x)
        middle = self.down1(fine)
        y = self.up2(self.down2(middle))
        y = self.up1(self.merge2(torch.cat([y, middle], dim=1)))
        return self.final(self.merge1(torch.cat([y, fine], dim=1)))
