"""Beginning a fit with the weights of another model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from ..conventions import ModelMismatchError
from ..stages import digest
from .models import FieldModel


def start_from(model: FieldModel, other: FieldModel) -> None:
    """Give ``model`` the weights of ``other``, which may have seen other mass bins.

    The bins of ``model`` get the mean of the weights of those of ``other``; its other inputs, and
    all later layers, those of their counterparts.

    Raises
    ------
    ModelMismatchError
        If they differ in more than their mass bins.
    """
    alike = {**model.options, "n_bins": other.n_bins} == other.options
    # A first level as wide as its inputs has no bypass convolution, which the other may have.
    alike = alike and model.state_dict().keys() == other.state_dict().keys()
    if type(model) is not type(other) or not alike:
        given, wanted = (f"{type(m).__name__} with {m.options}" for m in (other, model))
        raise ModelMismatchError(
            f"start: weights of {given} do not fit {wanted}: the same target, architecture and "
            "options are expected; the mass bins alone may differ"
        )
    state = model.state_dict()
    for name, theirs in other.state_dict().items():
        if theirs.shape != state[name].shape:
            theirs = _for_bins(theirs, model.n_bins, other.n_bins)
        state[name] = theirs.clone()
    model.load_state_dict(state)


def _for_bins(weights: Tensor, n_bins: int, n_theirs: int) -> Tensor:
    """Weights (out, in, ...) of a first convolution, for another number of mass bins."""
    halos, others = weights[:, :n_theirs], weights[:, n_theirs:]
    mean = halos.mean(dim=1, keepdim=True).expand(-1, n_bins, *halos.shape[2:])
    return torch.cat([mean, others], dim=1)


def weights_digest(model: FieldModel) -> str:
    """What tells one model from another: of its weights and running averages."""
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """The same of a state, whose numbers count in single precision, as a loaded model has them."""
    whole = ((name, value.cpu()) for name, value in state.items())
    parts = (
        (name.encode(), (value.float() if value.is_floating_point() else value).numpy().tobytes())
        for name, value in whole
    )
    return digest(*chain.from_iterable(parts))
