"""Networks between physical fields: inputs, scalings, outputs and losses of each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conventions import FIELDS, ModelMismatchError, listing
from .networks import PaperUNet, ResidualUNet

# Scales of the linear velocity as an input, and of what the network adds to it, in km/s: its rms
# at z = 0.6, and the rms error of filtered linear theory.  Fixed numbers, never a sample's own.
VELOCITY_SCALE = 300.0
RESIDUAL_SCALE = 100.0
# Of the squared differences of the velocity's error between neighbouring cells.
GRADIENT_WEIGHT = 0.5
# The rms of the momentum in cells of 2.34 Mpc/h.
MOMENTUM_SCALE = 1000.0
# Matter at 1000 times the mean is past any 1 Mpc/h cell; the bound keeps exp() finite in training.
MAX_LOG_DENSITY = 8.0
LEVELS = 12  # of a network: the coarsest cells are 2^11 of those of the grid


def vector_channels(names: Sequence[str]) -> int:
    """How many of the last channels of these fields are components, which turn with the axes."""
    # A "linear_velocity" or "unfiltered_momentum" is a velocity or a momentum.
    return 3 if FIELDS[names[-1].rpartition("_")[2]].is_vector else 0


class FieldModel(nn.Module):
    """A network with the scalings before and after it: physical fields in and out.

    Attributes
    ----------
    target : {"density", "velocity", "momentum"}
    inputs : tuple of str
        Fields that make the input channels, in order: the halos, perhaps the density, perhaps a
        vector.
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
        whole = [n_bins, *widths]
        if not widths or len(widths) > LEVELS or not all(type(n) is int and n > 0 for n in whole):
            raise ValueError(
                f"n_bins={n_bins!r}, widths={widths!r}; expected a whole number, and one a level, "
                f"at most {LEVELS}"
            )
        self.n_bins = n_bins
        self.options = {"n_bins": n_bins, "widths": list(widths), **options}
        self.prepared: dict[Any, Any] = {}

    @property
    def n_in(self) -> int:
        """Number of input channels."""
        return self.n_bins + ("density" in self.inputs) + vector_channels(self.inputs)

    @property
    def n_out(self) -> int:
        """Number of output channels."""
        return vector_channels([self.target]) or 1

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
        channels = [torch.log1p(x[:, : self.n_bins])]
        if "density" in self.inputs:
            channels.append(torch.log(x[:, self.n_bins : self.n_bins + 1].clamp_min(1e-3)))
        if vector_channels(self.inputs):
            channels.append(x[:, -3:] / VELOCITY_SCALE)
        return torch.cat(channels, dim=1)

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

    The linear velocity of the whole box tells it how far the longest waves, which a crop does not
    hold, have moved its halos along the line of sight.

    The loss is the Poisson deviance 2 [rho log(rho / rho_hat) - rho + rho_hat].  Like the squared
    error it is least at the conditional mean (both are Bregman divergences), but weighs a cell by
    one over its mean, so that a few clusters do not drown the rest.
    """

    target = "density"
    inputs = ("halo_density", "linear_velocity")

    def __init__(self, n_bins: int = 4, widths: Sequence[int] = (16, 64, 128)) -> None:
        super().__init__(n_bins, widths)
        self.networks = nn.ModuleList([ResidualUNet(self.n_in, 1, tuple(widths))])

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
    """Velocity as linear velocity plus network.

    The loss is the squared error with its modes weighed by 1 + ``GRADIENT_WEIGHT`` (k H)^2, H the
    cell: the velocity's power is in long waves, that of its divergence in short ones.  As a
    quadratic form of the error it is least at the conditional mean, like the squared error.
    """

    target = "velocity"
    inputs = ("halo_density", "density", "linear_velocity")

    def __init__(self, n_bins: int = 4, widths: Sequence[int] = (16, 64, 128)) -> None:
        super().__init__(n_bins, widths)
        self.networks = nn.ModuleList([ResidualUNet(self.n_in, 3, tuple(widths))])

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Velocity in km/s, from what linear theory misses of it."""
        return x[:, self.n_bins + 1 :] + RESIDUAL_SCALE * outputs[0].float()

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Mean squared error in units of ``RESIDUAL_SCALE``, and of its differences over a cell."""
        error = (_inner(self(x), margin) - _inner(truth, margin)) / RESIDUAL_SCALE
        differences = [torch.square(error.diff(dim=axis)).mean() for axis in (-3, -2, -1)]
        return torch.square(error).mean() + GRADIENT_WEIGHT * torch.stack(differences).sum()


class ResidualMomentum(FieldModel):
    """Momentum as predicted density times predicted velocity, plus network.

    That product has no covariance of the two errors, which the network can learn.  The product's
    error grows with the density (rms of a component on the validation box: 67 km/s below half the
    mean density, 6000 above 16 times), about as 1 + density: so does what one unit of the output
    adds.  The loss is a mean squared error weighed by 1 / (1 + density): between that of equal
    weights, of which 72 % would be in cells of more than four times the mean, and the likelihood's
    inverse variance.  Its weights come from the inputs, so that it is least at the conditional
    mean, as the squared error is.
    """

    target = "momentum"
    inputs = ("halo_density", "density", "velocity")

    def __init__(self, n_bins: int = 4, widths: Sequence[int] = (16, 64, 128)) -> None:
        super().__init__(n_bins, widths)
        self.networks = nn.ModuleList([ResidualUNet(self.n_in, 3, tuple(widths))])

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Momentum in km/s, from what the product of density and velocity misses of it."""
        density, velocity = x[:, self.n_bins : self.n_bins + 1], x[:, self.n_bins + 1 :]
        return density * velocity + RESIDUAL_SCALE * (1 + density) * outputs[0].float()

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Mean squared error in units of ``RESIDUAL_SCALE``, over 1 + predicted density."""
        error = _inner(self(x), margin) - _inner(truth, margin)
        density = _inner(x[:, self.n_bins : self.n_bins + 1], margin)
        return (torch.square(error / RESIDUAL_SCALE) / (1 + density)).mean()


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


class PaperVector(FieldModel):
    """The paper's pair of networks: magnitude, and direction, multiplied at the end.

    Its eq. 6: mean of 1/4 (|v| - |v_true|)^2 + 3/4 (1 - cos phi).  The magnitude enters in units
    of ``scale``: in km/s it would drown the direction.
    """

    scale: float

    def __init__(
        self, n_bins: int = 4, widths: Sequence[int] = (16, 32, 64), dropout: float = 0.1
    ) -> None:
        super().__init__(n_bins, widths, dropout=dropout)
        n1, n2, n3 = widths
        self.networks = nn.ModuleList(
            [PaperUNet(self.n_in, n_out, (n1, n2, n3), dropout) for n_out in (1, 3)]
        )

    def magnitude_and_direction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude in units of ``scale`` (batch, 1, ...), and unit vector (batch, 3, ...)."""
        features = self.features(x)
        size, direction = (network(features).float() for network in self.networks)
        return F.relu(size), F.normalize(direction, dim=1)

    def finish(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Vector in km/s, from its magnitude and direction."""
        size, direction = (output.float() for output in outputs)
        return self.scale * F.relu(size) * F.normalize(direction, dim=1)

    def loss(self, x: Tensor, truth: Tensor, margin: int) -> Tensor:
        """Eq. 6 of the paper."""
        size, direction = (_inner(part, margin) for part in self.magnitude_and_direction(x))
        true = _inner(truth, margin) / self.scale
        size_error = torch.square(size[:, 0] - torch.linalg.vector_norm(true, dim=1))
        cosine = (direction * F.normalize(true, dim=1)).sum(dim=1)
        return (0.25 * size_error + 0.75 * (1 - cosine)).mean()


class PaperVelocity(PaperVector):
    """Velocity by its magnitude and direction; the linear one among the inputs is eq. 2."""

    target = "velocity"
    inputs = ("halo_density", "density", "unfiltered_velocity")
    scale = VELOCITY_SCALE


class PaperMomentum(PaperVector):
    """Momentum by its magnitude and direction; the linear one among the inputs is eq. 3."""

    target = "momentum"
    inputs = ("halo_density", "density", "unfiltered_momentum")
    scale = MOMENTUM_SCALE

    def features(self, x: Tensor) -> Tensor:
        """Network inputs; the linear momentum is shortened to log(1 + its length in 300 km/s).

        As it is, a cell of a massive halo has up to 2e4 times the rms that all others have.
        """
        linear = x[:, self.n_bins + 1 :]
        size = torch.linalg.vector_norm(linear, dim=1, keepdim=True).clamp_min(1) / VELOCITY_SCALE
        shorter = linear * (torch.log1p(size) / size)
        return super().features(torch.cat([x[:, : self.n_bins + 1], shorter], dim=1))


MODELS: dict[tuple[str, str], type[FieldModel]] = {
    ("residual", "density"): ResidualDensity,
    ("residual", "velocity"): ResidualVelocity,
    ("residual", "momentum"): ResidualMomentum,
    ("paper", "density"): PaperDensity,
    ("paper", "velocity"): PaperVelocity,
    ("paper", "momentum"): PaperMomentum,
}


def build(architecture: str, target: str, /, **options: Any) -> FieldModel:
    """New, untrained model.

    Parameters
    ----------
    architecture : {"residual", "paper"}
    target : {"density", "velocity", "momentum"}
    **options
        ``n_bins``, ``widths`` and, for the paper's, ``dropout``.
    """
    try:
        kind = MODELS[architecture, target]
    except (KeyError, TypeError):
        raise ModelMismatchError(
            f"No model ({architecture!r}, {target!r}); there are {listing(MODELS)}"
        ) from None
    try:
        return kind(**options)
    # torch refuses sizes beyond what can be counted with a RuntimeError.
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ModelMismatchError(
            f"Options {options} do not fit {kind.__name__}: {error}"
        ) from error
