"""The networks, what goes into and comes out of them, and the saved model: weights and a card.

Two architectures: ``"paper"`` follows Xiao et al. 2024 (arXiv:2411.11280); ``"residual"``, the
default, learns what filtered linear theory misses.  Each has a density model (4 channels of halo
density -> density) and a velocity model (halos, density and linear velocity, 8 channels ->
velocity).  Models map physical fields to physical fields; every scaling is inside, so training and
inference cannot disagree about it.  The last spatial axis is the line of sight.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from .conventions import ModelMismatchError, StoreError, listing

CARD_VERSION = 1
# Scales of the linear velocity as an input, and of what the network adds to it, in km/s: its rms
# at z = 0.6, and the rms error of filtered linear theory.  Fixed numbers, never a sample's own.
VELOCITY_SCALE = 300.0
RESIDUAL_SCALE = 100.0
# Matter at 1000 times the mean is past any 1 Mpc/h cell; the bound keeps exp() finite in training.
MAX_LOG_DENSITY = 8.0


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


class FieldModel(nn.Module):
    """A network with the scalings before and after it: physical fields in and out.

    Attributes
    ----------
    target : {"density", "velocity"}
    inputs : tuple of str
        Fields that make the input channels, in order.
    options : dict
        What :func:`build` needs to make the same model again.
    coarsest, receptive_radius : int
        What tiles must be multiples of, and the halo that they need, in cells.
    prepared : dict
        Forms for inference that :mod:`~cosmofields.engine` keeps with the model.
    """

    target: str
    inputs: tuple[str, ...]
    networks: nn.ModuleList

    def __init__(self, n_bins: int, widths: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.n_bins = n_bins
        self.options = {"n_bins": n_bins, "widths": list(widths), **options}
        self.prepared: dict[Any, Any] = {}

    @property
    def n_in(self) -> int:
        """Number of input channels."""
        return self.n_bins + (4 if self.target == "velocity" else 0)

    @property
    def n_out(self) -> int:
        """Number of output channels."""
        return 3 if self.target == "velocity" else 1

    @property
    def coarsest(self) -> int:
        """Cells of the coarsest level."""
        return max(net.coarsest for net in self._networks())

    @property
    def receptive_radius(self) -> int:
        """Halo in cells within which the output depends on the input."""
        return max(net.receptive_radius for net in self._networks())

    def _networks(self) -> list[ResidualUNet | PaperUNet]:
        return cast("list[ResidualUNet | PaperUNet]", list(self.networks))

    def features(self, x: Tensor) -> Tensor:
        """Network inputs from physical fields (batch, channel, x, y, z)."""
        halos = torch.log1p(x[:, : self.n_bins])
        if self.target == "density":
            return halos
        density = torch.log(x[:, self.n_bins : self.n_bins + 1].clamp_min(1e-3))
        return torch.cat([halos, density, x[:, self.n_bins + 1 :] / VELOCITY_SCALE], dim=1)

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Physical fields from what the networks made of the same cells of ``x``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Physical fields (batch, n_in, x, y, z) to physical fields (batch, n_out, x, y, z)."""
        features = self.features(x)
        return self.finish(x, [network(features) for network in self.networks])

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Training loss over the cells at least ``margin`` from the crop's faces."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a worker that receives the model, prepares it for itself.
        return {**self.__dict__, "prepared": {}}


def _inner(x: Tensor, margin: int) -> Tensor:
    return x[
        ...,
        margin : x.shape[-3] - margin,
        margin : x.shape[-2] - margin,
        margin : x.shape[-1] - margin,
    ]


class ResidualDensity(FieldModel):
    """Density as exp(network): positive by construction.

    The loss is the Poisson deviance 2 [rho log(rho / rho_hat) - rho + rho_hat].  Like the squared
    error it is least at the conditional mean (both are Bregman divergences), but weighs a cell by
    one over its mean, so that a few clusters do not drown the rest.
    """

    target = "density"
    inputs = ("halo_density",)

    def __init__(self, n_bins: int = 4, widths: Sequence[int] = (16, 64, 128)) -> None:
        super().__init__(n_bins, widths)
        self.networks = nn.ModuleList([ResidualUNet(n_bins, 1, tuple(widths))])

    def log_density(self, x: Tensor) -> Tensor:
        """Natural logarithm of the density."""
        return self.networks[0](self.features(x)).float().clamp_max(MAX_LOG_DENSITY)

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Density, from its logarithm."""
        return torch.exp(outputs[0].float().clamp_max(MAX_LOG_DENSITY))

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Poisson deviance."""
        log_rho, rho = _inner(self.log_density(x), margin), _inner(truth, margin)
        return 2 * (torch.xlogy(rho, rho) - rho * log_rho - rho + torch.exp(log_rho)).mean()


class ResidualVelocity(FieldModel):
    """Velocity as linear velocity plus network; the loss is the mean squared error."""

    target = "velocity"
    inputs = ("halo_density", "density", "linear_velocity")

    def __init__(self, n_bins: int = 4, widths: Sequence[int] = (16, 64, 128)) -> None:
        super().__init__(n_bins, widths)
        self.networks = nn.ModuleList([ResidualUNet(self.n_in, 3, tuple(widths))])

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Velocity in km/s, from what linear theory misses of it."""
        return x[:, self.n_bins + 1 :] + RESIDUAL_SCALE * outputs[0].float()

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Mean squared error in units of ``RESIDUAL_SCALE``."""
        error = _inner(self(x), margin) - _inner(truth, margin)
        return torch.square(error / RESIDUAL_SCALE).mean()


class PaperDensity(FieldModel):
    """The paper's density network: linear output, mean squared error (its eq. 5)."""

    target = "density"
    inputs = ("halo_density",)

    def __init__(
        self, n_bins: int = 4, widths: Sequence[int] = (16, 32, 64), dropout: float = 0.1
    ) -> None:
        super().__init__(n_bins, widths, dropout=dropout)
        n1, n2, n3 = widths
        self.networks = nn.ModuleList([PaperUNet(n_bins, 1, (n1, n2, n3), dropout)])

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Density, as the network has it."""
        return outputs[0].float()

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Mean squared error of the density."""
        return F.mse_loss(_inner(self(x), margin), _inner(truth, margin))


class PaperVelocity(FieldModel):
    """The paper's pair of networks: magnitude, and direction, multiplied at the end.

    Its eq. 6: mean of 1/4 (|v| - |v_true|)^2 + 3/4 (1 - cos phi).  The speed enters in units of
    ``VELOCITY_SCALE``: in km/s it would drown the direction.
    """

    target = "velocity"
    inputs = ("halo_density", "density", "linear_velocity")

    def __init__(
        self, n_bins: int = 4, widths: Sequence[int] = (16, 32, 64), dropout: float = 0.1
    ) -> None:
        super().__init__(n_bins, widths, dropout=dropout)
        n1, n2, n3 = widths
        self.networks = nn.ModuleList(
            [PaperUNet(self.n_in, n_out, (n1, n2, n3), dropout) for n_out in (1, 3)]
        )

    def magnitude_and_direction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Speed in ``VELOCITY_SCALE`` (batch, 1, ...), and unit vector (batch, 3, ...)."""
        features = self.features(x)
        speed, direction = (network(features).float() for network in self.networks)
        return F.relu(speed), F.normalize(direction, dim=1)

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Velocity in km/s, from its magnitude and direction."""
        speed, direction = (output.float() for output in outputs)
        return VELOCITY_SCALE * F.relu(speed) * F.normalize(direction, dim=1)

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Eq. 6 of the paper."""
        speed, direction = (_inner(part, margin) for part in self.magnitude_and_direction(x))
        true = _inner(truth, margin) / VELOCITY_SCALE
        speed_error = torch.square(speed[:, 0] - torch.linalg.vector_norm(true, dim=1))
        cosine = (direction * F.normalize(true, dim=1)).sum(dim=1)
        return (0.25 * speed_error + 0.75 * (1 - cosine)).mean()


MODELS: dict[tuple[str, str], type[FieldModel]] = {
    ("residual", "density"): ResidualDensity,
    ("residual", "velocity"): ResidualVelocity,
    ("paper", "density"): PaperDensity,
    ("paper", "velocity"): PaperVelocity,
}


def build(architecture: str, target: str, **options: Any) -> FieldModel:
    """New, untrained model.

    Parameters
    ----------
    architecture : {"residual", "paper"}
    target : {"density", "velocity"}
    **options
        ``n_bins``, ``widths`` and, for the paper's, ``dropout``.
    """
    try:
        kind = MODELS[architecture, target]
    except KeyError:
        raise ModelMismatchError(
            f"No model ({architecture!r}, {target!r}); there are {listing(MODELS)}"
        ) from None
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ModelMismatchError(
            f"Options {options} do not fit {kind.__name__}: {error}"
        ) from error


def save_model(model: FieldModel, card: dict[str, Any], directory: str | Path) -> Path:
    """Write ``TARGET.safetensors`` and ``TARGET.json`` into ``directory``; return the card's path.

    Weights are kept in half precision (their rounding, 5e-4, is far below their own uncertainty),
    running averages of the batch norm in single.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (value.half() if name in parameters else value).contiguous()
        for name, value in model.state_dict().items()
    }
    text = json.dumps({"card_version": CARD_VERSION, **card}, indent=2) + "\n"
    files = {"safetensors": save_safetensors(tensors), "json": text.encode()}
    for suffix, content in files.items():
        # Beside, then renamed: a model that is there is never half of one.
        part = directory / f"{model.target}.{suffix}.part"
        part.write_bytes(content)
        part.replace(directory / f"{model.target}.{suffix}")
    return directory / f"{model.target}.json"


def load_model(target: str, source: str | Path = "default") -> tuple[FieldModel, dict[str, Any]]:
    """Load a saved model.  Reads numbers and JSON only: no code of its sender runs.

    Parameters
    ----------
    target : {"density", "velocity"}
    source : path of a directory, or ``"default"``
        Where ``TARGET.safetensors`` and ``TARGET.json`` lie; the default ones ship in the package.

    Returns
    -------
    model : FieldModel
        In evaluation mode, float32, on the CPU.
    card : dict

    Raises
    ------
    StoreError
        If a file is missing, truncated, or of another format.
    ModelMismatchError
        If the weights do not fit the architecture that the card names.
    """
    folder: Traversable | Path
    if source == "default":
        folder = resources.files("cosmofields") / "data" / "models"
    else:
        folder = Path(source)
    try:
        card = json.loads((folder / f"{target}.json").read_text())
        tensors = load_safetensors((folder / f"{target}.safetensors").read_bytes())
        version = card["card_version"]
        name, options = card["architecture"]["name"], dict(card["architecture"]["options"])
        lacking = {"name", "trained_for", "linear_bias"} - set(card)
    except FileNotFoundError as error:
        raise StoreError(
            f"No {target} model in {str(source)!r}: expected {target}.safetensors and {target}.json"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(
            f"The {target} model in {str(source)!r} cannot be read: {error!r}"
        ) from error
    if version != CARD_VERSION:
        raise StoreError(
            f"The {target} model in {str(source)!r} has card version {version}; "
            f"this cosmofields reads {CARD_VERSION}"
        )
    if lacking:
        raise StoreError(
            f"The card of the {target} model in {str(source)!r} lacks {sorted(lacking)}"
        )
    model = build(name, target, **options)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelMismatchError(
            f"The weights in {str(source)!r} do not fit {name!r} with {options}: {error}"
        ) from error
    return model.float().eval(), card
