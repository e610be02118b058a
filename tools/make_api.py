"""Write the tables of docs/api.md from docstrings, and docs/reference.md, which shows them whole.

    python tools/make_api.py

A row is a public function: its arguments, where `.recon` has it as a method, and the first line of
its docstring.  tests/test_api.py says when the pages are out of date.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import cosmofields as cf
from cosmofields.accessor import DataArrayRecon, DatasetRecon

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
REFERENCE = PAGE.with_name("reference.md")
BEGIN = "<!-- written by `python tools/make_api.py`; do not edit -->"
END = "<!-- end of what is written -->"

# Every public name has its place; `module.` stands for the public functions of that module.
TOPICS = {
    "Catalogues": (
        "from_arrays open_catalog open_box tutorial. select to_redshift_space to_real_space"
    ),
    "Simulated boxes": "simulate",
    "Fields": "from_grid paint paint_matter sample",
    "Reconstruction": (
        "linear_theory linear_velocity predict predict_density predict_velocity predict_momentum "
        "reconstruct calibrate score models"
    ),
    "Stores": "open_store verify write_store",
    "Derivatives": "gradient divergence curl helmholtz longitudinal transverse magnitude",
    "Spectra": "power_spectrum multipoles wedges spectra",
    "Correlation functions": (
        "correlations correlation_function correlation_multipoles correlation_2d clustering"
    ),
    "Cell by cell": "cell_statistics misalignment histogram joint_distribution pool",
    "Applications": "kinetic_sz t_web v_web velocities_at compare_velocities",
    "Evaluation": (
        "evaluate sub_boxes evaluate_sub_boxes combine scores_table format_table report"
    ),
    "Figures": "plotting. explore",
    "Errors, cosmology, versions": "CosmofieldsError Cosmology show_versions",
}
KINDS = {"Dataset": DatasetRecon, "DataArray": DataArrayRecon}
HEADER = "| function | `.recon` of | |\n|---|---|---|"


def render() -> str:
    """All the tables."""
    parts = []
    for title, names in TOPICS.items():
        rows = [row for name in names.split() for row in _rows(name)]
        parts.append("\n".join([f"## {title}", "", HEADER, *rows, ""]))
    facts = [
        f"| `{name}` | {kinds} | {summary(getattr(owner, name))} |"
        for name, (owner, kinds) in _properties().items()
    ]
    parts.append("\n".join(["## Facts that `.recon` knows", "", HEADER, *facts, ""]))
    return "\n".join(parts)


def _rows(name: str) -> list[str]:
    if name.endswith("."):
        module = getattr(cf, name[:-1])
        return [_row(name + of, getattr(module, of)) for of in functions(module)]
    return [_row(name, getattr(cf, name))]


def functions(module: Any) -> list[str]:
    """Names of the public functions that a module, or a room of several files, defines."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and value.__module__.startswith(module.__name__)
    ]


def _row(name: str, obj: Any) -> str:
    kinds = ", ".join(kind for kind, owner in KINDS.items() if hasattr(owner, name))
    call = f"{name}({arguments(obj)})" if inspect.isfunction(obj) else name
    return f"| `{call}` | {kinds} | {summary(obj)} |"


def arguments(function: Any) -> str:
    """Names of the arguments, without their defaults."""
    bare = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty, default=p.empty) for p in bare.parameters.values()]
    return str(bare.replace(parameters=parameters, return_annotation=bare.empty))[1:-1]


def _properties() -> dict[str, tuple[type, str]]:
    found: dict[str, list[str]] = {}
    for kind, owner in KINDS.items():
        for name, _ in inspect.getmembers(owner, lambda value: isinstance(value, property)):
            found.setdefault(name, []).append(kind)
    return {name: (KINDS[kinds[0]], ", ".join(kinds)) for name, kinds in found.items()}


def summary(obj: Any) -> str:
    """First line of a docstring, without its roles, safe in a cell of a table."""
    line = (inspect.getdoc(obj) or "").partition("\n")[0]
    line = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", line)
    return re.sub(r"([|<*])", r"\\\1", line)


def replaced(page: str) -> str:
    """The page with the tables between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"no '{BEGIN}' and '{END}' in {PAGE}")
    return f"{head}{BEGIN}\n\n{render()}\n{END}{tail}"


def reference() -> str:
    """The page of docstrings: Sphinx makes one of each name, and of each method of ``.recon``."""
    parts = ["# Reference\n", BEGIN]
    for title, names in TOPICS.items():
        listed = [full for name in names.split() for full in _full_names(name)]
        parts.append(_listing(title, "cosmofields", listed, ""))
    for kind, owner in KINDS.items():
        methods = [name for name, _ in inspect.getmembers(owner, inspect.isfunction)]
        listed = [f"{kind}.recon.{name}" for name in methods if not name.startswith("_")]
        title = f"Methods of {kind}.recon"
        parts.append(
            _listing(title, "xarray", listed, "   :template: autosummary/accessor_method.rst\n")
        )
    return "\n".join(parts)


def _full_names(name: str) -> list[str]:
    if not name.endswith("."):
        return [name]
    return [name + of for of in functions(getattr(cf, name[:-1]))]


def _listing(title: str, module: str, names: list[str], options: str) -> str:
    lines = "\n".join(f"   {name}" for name in names)
    return (
        f"\n## {title}\n\n```{{eval-rst}}\n.. currentmodule:: {module}\n\n.. autosummary::\n"
        f"   :toctree: generated\n{options}\n{lines}\n```"
    )


if __name__ == "__main__":
    REFERENCE.write_text(reference() + "\n")
    PAGE.write_text(replaced(PAGE.read_text()))
