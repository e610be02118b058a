"""Dark-matter density, velocity and momentum fields from a redshift-space halo catalogue.

Importing registers the ``.recon`` accessor on xarray objects; everything else loads on first use.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor  # noqa: F401  registers `.recon`

_EXPORTS = {
    "CosmofieldsError": "cosmofields.conventions",
    "Cosmology": "cosmofields.cosmology",
    "cell_statistics": "cosmofields.statistics",
    "correlation_2d": "cosmofields.correlation",
    "correlation_function": "cosmofields.correlation",
    "correlation_multipoles": "cosmofields.correlation",
    "correlations": "cosmofields.correlation",
    "curl": "cosmofields.derivatives",
    "divergence": "cosmofields.derivatives",
    "evaluate": "cosmofields.evaluation",
    "format_table": "cosmofields.evaluation",
    "from_arrays": "cosmofields.catalog",
    "gradient": "cosmofields.derivatives",
    "joint_distribution": "cosmofields.statistics",
    "linear_theory": "cosmofields.linear",
    "linear_velocity": "cosmofields.linear",
    "magnitude": "cosmofields.statistics",
    "misalignment": "cosmofields.statistics",
    "multipoles": "cosmofields.spectral",
    "open_box": "cosmofields.readers",
    "open_catalog": "cosmofields.readers",
    "open_store": "cosmofields.store",
    "paint": "cosmofields.painting",
    "paint_matter": "cosmofields.painting",
    "plotting": "cosmofields.plotting",
    "power_spectrum": "cosmofields.spectral",
    "predict": "cosmofields.inference",
    "predict_density": "cosmofields.inference",
    "predict_velocity": "cosmofields.inference",
    "reconstruct": "cosmofields.reconstruction",
    "sample": "cosmofields.sampling",
    "scores_table": "cosmofields.evaluation",
    "select": "cosmofields.catalog",
    "spectra": "cosmofields.spectral",
    "to_real_space": "cosmofields.sampling",
    "to_redshift_space": "cosmofields.catalog",
    "tutorial": "cosmofields.tutorial",
    "write_store": "cosmofields.store",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from . import plotting, tutorial
    from .catalog import from_arrays, select, to_redshift_space
    from .conventions import CosmofieldsError
    from .correlation import (
        correlation_2d,
        correlation_function,
        correlation_multipoles,
        correlations,
    )
    from .cosmology import Cosmology
    from .derivatives import curl, divergence, gradient
    from .evaluation import evaluate, format_table, scores_table
    from .inference import predict, predict_density, predict_velocity
    from .linear import linear_theory, linear_velocity
    from .painting import paint, paint_matter
    from .readers import open_box, open_catalog
    from .reconstruction import reconstruct
    from .sampling import sample, to_real_space
    from .spectral import multipoles, power_spectrum, spectra
    from .statistics import cell_statistics, joint_distribution, magnitude, misalignment
    from .store import open_store, write_store


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


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the room `report` binds the module to its name; the function of that name stays.
        if name in _EXPORTS and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
