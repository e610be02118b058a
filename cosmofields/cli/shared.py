"""What several verbs read from the command line."""

from __future__ import annotations

import argparse
from typing import Any

# Of argparse's own type, which it does not export.
Verbs = Any


def cosmology(text: str) -> dict[str, float]:
    """Parameters of ``Omega_m=0.3,h=0.7``."""
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected Omega_m=0.268,h=0.71,Omega_b=0.0445,n_s=0.968,sigma8=0.83"
        ) from None


def one_or_three(values: list[Any] | None) -> Any:
    """A single number as such; what is no list of three is refused where it is used."""
    return values[0] if values and len(values) == 1 else values
