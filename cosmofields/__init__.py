"""Dark-matter density, velocity and momentum fields from a redshift-space halo catalogue.

Importing registers the ``.recon`` accessor on xarray objects; everything else loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor  # noqa: F401  registers `.recon`

_EXPORTS = {
    "CosmofieldsError": "cosmofields.conventions",
    "Cosmology": "cosmofields.cosmology",
    "evaluate": "cosmofields.evaluation",
    "format_table": "cosmofields.evaluation",
    "from_arrays": "cosmofields.catalog",
    "linear_theory": "cosmofields.linear",
    "linear_velocity": "cosmofields.linear",
    "multipoles": "cosmofields.spectral",
    "open_box": "cosmofields.readers",
    "open_catalog": "cosmofields.readers",
    "open_store": "cosmofields.store",
    "paint": "cosmofields.painting",
    "paint_matter": "cosmofields.painting",
    "power_spectrum": "cosmofields.spectral",
    "predict": "cosmofields.inference",
    "predict_density": "cosmofields.inference",
    "predict_velocity": "cosmofields.inference",
    "reconstruct": "cosmofields.reconstruction",
    "scores_table": "cosmofields.evaluation",
    "select": "cosmofields.catalog",
    "spectra": "cosmofields.spectral",
    "to_redshift_space": "cosmofields.catalog",
    "tutorial": "cosmofields.tutorial",
    "write_store": "cosmofields.store",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from . import tutorial
    from .catalog import from_arrays, select, to_redshift_space
    from .conventions import CosmofieldsError
    from .cosmology import Cosmology
    from .evaluation import evaluate, format_table, scores_table
    from .inference import predict, predict_density, predict_velocity
    from .linear import linear_theory, linear_velocity
    from .painting import paint, paint_matter
    from .readers import open_box, open_catalog
    from .reconstruction import reconstruct
    from .spectral import multipoles, power_spectrum, spectra
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
