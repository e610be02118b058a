"""Dark-matter density, velocity and momentum fields from a redshift-space halo catalogue.

Importing registers the ``.recon`` accessor on xarray objects; everything else loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor  # noqa: F401  registers `.recon`

_EXPORTS = {
    "CosmofieldsError": "cosmofields.conventions",
    "Cosmology": "cosmofields.cosmology",
    "calibrate": "cosmofields.inference",
    "cell_statistics": "cosmofields.statistics",
    "clustering": "cosmofields.two_point",
    "combine": "cosmofields.boxes",
    "compare_velocities": "cosmofields.consistency",
    "correlation_2d": "cosmofields.correlation",
    "correlation_function": "cosmofields.correlation",
    "correlation_multipoles": "cosmofields.correlation",
    "correlations": "cosmofields.correlation",
    "curl": "cosmofields.derivatives",
    "divergence": "cosmofields.derivatives",
    "evaluate": "cosmofields.evaluation",
    "evaluate_sub_boxes": "cosmofields.boxes",
    "explore": "cosmofields.exploring",
    "format_table": "cosmofields.evaluation",
    "from_arrays": "cosmofields.catalog",
    "from_grid": "cosmofields.catalog",
    "gradient": "cosmofields.derivatives",
    "helmholtz": "cosmofields.derivatives",
    "histogram": "cosmofields.statistics",
    "joint_distribution": "cosmofields.statistics",
    "kinetic_sz": "cosmofields.applications",
    "linear_theory": "cosmofields.linear",
    "linear_velocity": "cosmofields.linear",
    "longitudinal": "cosmofields.derivatives",
    "magnitude": "cosmofields.statistics",
    "misalignment": "cosmofields.statistics",
    "models": "cosmofields.scoring",
    "multipoles": "cosmofields.spectral",
    "open_box": "cosmofields.readers",
    "open_catalog": "cosmofields.readers",
    "open_store": "cosmofields.store",
    "paint": "cosmofields.painting",
    "paint_matter": "cosmofields.painting",
    "plotting": "cosmofields.plotting",
    "pool": "cosmofields.statistics",
    "power_spectrum": "cosmofields.spectral",
    "predict": "cosmofields.inference",
    "predict_density": "cosmofields.inference",
    "predict_momentum": "cosmofields.inference",
    "predict_velocity": "cosmofields.inference",
    "reconstruct": "cosmofields.reconstruction",
    "report": "cosmofields.reporting",
    "sample": "cosmofields.sampling",
    "score": "cosmofields.scoring",
    "scores_table": "cosmofields.evaluation",
    "select": "cosmofields.catalog",
    "show_versions": "cosmofields.versions",
    "simulate": "cosmofields.simulation",
    "spectra": "cosmofields.spectral",
    "sub_boxes": "cosmofields.boxes",
    "t_web": "cosmofields.applications",
    "to_real_space": "cosmofields.sampling",
    "to_redshift_space": "cosmofields.catalog",
    "transverse": "cosmofields.derivatives",
    "tutorial": "cosmofields.tutorial",
    "v_web": "cosmofields.applications",
    "velocities_at": "cosmofields.applications",
    "verify": "cosmofields.store",
    "wedges": "cosmofields.spectral",
    "write_store": "cosmofields.store",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from . import plotting, tutorial
    from .applications import kinetic_sz, t_web, v_web, velocities_at
    from .boxes import combine, evaluate_sub_boxes, sub_boxes
    from .catalog import from_arrays, from_grid, select, to_redshift_space
    from .consistency import compare_velocities
    from .conventions import CosmofieldsError
    from .correlation import (
        correlation_2d,
        correlation_function,
        correlation_multipoles,
        correlations,
    )
    from .cosmology import Cosmology
    from .derivatives import curl, divergence, gradient, helmholtz, longitudinal, transverse
    from .evaluation import evaluate, format_table, scores_table
    from .exploring import explore
    from .inference import calibrate, predict, predict_density, predict_momentum, predict_velocity
    from .linear import linear_theory, linear_velocity
    from .painting import paint, paint_matter
    from .readers import open_box, open_catalog
    from .reconstruction import reconstruct
    from .reporting import report
    from .sampling import sample, to_real_space
    from .scoring import models, score
    from .simulation import simulate
    from .spectral import multipoles, power_spectrum, spectra, wedges
    from .statistics import (
        cell_statistics,
        histogram,
        joint_distribution,
        magnitude,
        misalignment,
        pool,
    )
    from .store import open_store, verify, write_store
    from .two_point import clustering
    from .versions import show_versions


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cosmofields")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cosmofields' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
