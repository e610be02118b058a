"""Which benchmarks there are."""

from __future__ import annotations

from importlib import import_module

from .harness import Row

# Name -> module and function: those of a plain run, and those that take long or much of the disk.
DEFAULT = {
    "import": "startup.imports",
    "cic": "painting.cic_speed",
    "cic-scale": "painting.cic_scale",
    "pk": "spectra.spectra",
    "velocity": "fourier.linear_velocity",
    "fft": "fourier.out_of_core",
    "inference": "network.inference",
    "tilings": "network.tilings",
}
LONG = {
    "scaling-painting": "scaling.painting",
    "scaling-velocity": "scaling.velocity",
    "scaling-network": "scaling.network",
    "particles-1e9": "particles.thousand_million",
    "fft-1024": "fourier.large",
    "chain": "chain.chain",
}
BENCHMARKS = DEFAULT | LONG


def run(name: str, quick: bool) -> list[Row]:
    """Rows of one benchmark."""
    module, function = BENCHMARKS[name].split(".")
    rows: list[Row] = getattr(import_module(f"{__package__}.{module}"), function)(quick)
    return rows
