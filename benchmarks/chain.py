"""The whole reconstruction, from a catalogue in a store to fields in a store, within a budget."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from cosmofields.catalog import to_redshift_space
from cosmofields.store import open_store, write_store

from .data import mock_halos
from .harness import COST, Row, peak_of, say

CELL = 1200 / 512  # Mpc/h, of the models that ship
DENSITY = 3e-3  # (h/Mpc)^3, likewise
BUDGET = 6.0  # GB


class _Stages(logging.Handler):
    """Stages and their seconds, as ``reconstruct`` logs them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what says `what: seconds s`."""
        if record.msg == "%s: %.1f s" and isinstance(record.args, tuple):
            self.seconds[str(record.args[0])] = float(record.args[1])  # type: ignore[arg-type]


def _reconstruct(source: str, store: str, n_grid: int) -> dict[str, float]:
    stages = _Stages()
    log = logging.getLogger("cosmofields")
    log.setLevel(logging.INFO)
    log.addHandler(stages)
    halos = open_store(source)
    halos.recon.reconstruct(store, n_grid=n_grid, memory=f"{BUDGET:g} GB")
    return stages.seconds


def chain(quick: bool) -> list[Row]:
    """5.2 million mock halos in 1200 Mpc/h to 512^3 cells of density, velocity and momentum."""
    n_grid = 32 if quick else 512
    side = n_grid * CELL
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder, "halos.zarr"), Path(folder, "fields.zarr")
        n_halos = int(1.003 * DENSITY * side**3)
        halos = to_redshift_space(mock_halos(n_halos, side), los="z")
        write_store(halos, source)
        say(f"  {n_halos} halos, {n_grid}^3 cells")
        del halos
        seconds, total, peak = peak_of(_reconstruct, str(source), str(store), n_grid)
    name = f"chain {n_grid}^3"
    whole = Row(
        name,
        total,
        "10 minutes",
        600.0,
        ratio_is=COST,
        target="<= 1.0",
        rounds=1,
        peak_gb=peak,
        peak_target_gb=BUDGET,
        more={"halos": n_halos, "budget_gb": BUDGET},
    )
    return [whole, *(Row(f"{name}: {what}", s, "", rounds=1) for what, s in seconds.items())]
