"""Power spectra of a field in memory against Pylians, abacusutils and the bare transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cosmofields.lazy import n_threads
from cosmofields.linear import halo_overdensity
from cosmofields.painting import paint
from cosmofields.spectral import multipoles, power_spectrum

from .data import density, mock_halos
from .harness import Row, call, compare, peer

SIDE = 1000.0
ELLS = (0, 2, 4)
PYLIANS, ABACUS = "Pylians Pk", "abacusutils calc_pk_from_deltak"


def _transform(field: NDArray[np.float32]) -> NDArray[np.complex64]:
    return scipy.fft.rfftn(field, workers=n_threads())


def _pylians(module: Any, field: NDArray[np.float32], window: str = "None") -> NDArray[np.float64]:
    found = module.Pk(field, SIDE, axis=2, MAS=window, threads=n_threads(), verbose=False)
    return found.Pk[: field.shape[0] // 2 - 1].T


def _abacus(
    module: Any, field: NDArray[np.float32], edges: NDArray[np.float64], ells: tuple[int, ...]
) -> NDArray[np.float64]:
    modes = _transform(field)
    modes *= np.float32(1 / field.size)
    found = module.calc_pk_from_deltak(
        modes, SIDE, edges, np.array([0.0, 1.0]), poles=np.array(ells), nthread=n_threads()
    )
    return found["binned_poles"] if ells else found["power"][None]


def _worst(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    return float(np.nanmax(abs(ours - theirs) / ours[0]))


def _edges(n: int) -> NDArray[np.float64]:
    """Pylians' own bins, up to Nyquist, so that all count the same modes.

    A little lower, or those on an edge would fall either way by the rounding of each.
    """
    return 2 * np.pi / SIDE * (np.arange(1, n // 2 + 1) - 1e-4)


def spectra(quick: bool) -> list[Row]:
    """Multipoles 0, 2, 4, and the power alone, of 512^3 cells; those of painted halos, 256^3."""
    n = 32 if quick else 512
    delta = density(n, SIDE) - np.float32(1)
    delta = delta.assign_attrs(density(2).attrs, box_size=SIDE, units="1")
    edges = _edges(n)
    pylians, abacus = peer("Pk_library"), peer("abacusnbody.analysis.power_spectrum")
    rows = compare(
        f"multipoles {n}^3",
        lambda: multipoles(delta, ells=ELLS, edges=edges)["power"].values,
        {
            PYLIANS: call(pylians, lambda m: _pylians(m, delta.values)),
            ABACUS: call(abacus, lambda m: _abacus(m, delta.values, edges, ELLS)),
        },
        target={PYLIANS: ">= 6.0", ABACUS: ">= 3.0"},
        differ=_worst,
        notes={
            PYLIANS: "also P(k) in 1-D and 2-D, phases, and modes past Nyquist",
            ABACUS: "after the FFT by scipy",
        },
    )
    rows += compare(
        f"multipoles {n}^3",
        lambda: multipoles(delta, ells=ELLS, edges=edges),
        {"the FFT alone, by scipy": lambda: _transform(delta.values)},
        target="<= 1.5",
        notes={"the FFT alone, by scipy": "up to 1.5, the binning takes under half of its time"},
    )
    without = f"{ABACUS}, no poles"
    rows += compare(
        f"power spectrum {n}^3",
        lambda: power_spectrum(delta, edges=edges)["power"].values[None],
        {without: call(abacus, lambda m: _abacus(m, delta.values, edges, ()))},
        differ=_worst,
        notes={without: "after the FFT by scipy"},
    )
    n, count = (32, 10_000) if quick else (256, 1_000_000)
    halos = halo_overdensity(paint(mock_halos(count, SIDE), n, weighting="number"))
    values, edges = np.ascontiguousarray(halos.values), _edges(n)
    rows += compare(
        f"multipoles of painted halos, window taken out, {n}^3",
        lambda: multipoles(halos, ells=ELLS, edges=edges, los="z", window="cic")["power"].values,
        {PYLIANS: call(pylians, lambda m: _pylians(m, values, "CIC"))},
        differ=_worst,
    )
    return rows
