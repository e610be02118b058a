"""Every public name says what goes in and out: dims, units, errors, equation or source."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cosmofields as cf
from cosmofields.accessor import DataArrayRecon, DatasetRecon
from cosmofields.conventions import CosmofieldsError

pytest.importorskip("numpydoc")

# What numpydoc's validation is asked for; the rest is taste, such as a period at the end of See
# Also, or the order of parameters, of which one entry may describe several.
ERRORS = {
    "GL01": "begins beside the quotes",
    "GL07": "sections in the wrong order",
    "GL08": "no docstring",
    "SS03": "summary without a period",
    "SS06": "summary of more than a line",
    "PR01": "parameters not documented",
    "PR02": "unknown parameters",
    "PR10": "no space before the colon",
    "RT01": "no Returns",
}
# Words that name the unit of a quantity, or say that there is none.
UNITS = re.compile(
    r"Mpc/h|km/s|Msun/h|h/Mpc|microkelvin|dimensionless|1 \+ delta|units|no unit|cos phi|from 0 to|"
    r"counts?\b|\bshare|in the same",
    re.IGNORECASE,
)
# What a measurement or a formula stands on: an equation, or who wrote it down.
SOURCE = re.compile(
    r"\(?\d{4}\)|[a-z]\((k|r)\b|\beq\. |=|\^2|sum_|arXiv|MNRAS|by trilinear", re.IGNORECASE
)
FORMULAS = """
    kinetic_sz t_web v_web correlation_2d correlation_function correlation_multipoles correlations
    curl divergence gradient helmholtz longitudinal transverse linear_theory linear_velocity
    magnitude misalignment multipoles paint paint_matter power_spectrum sample spectra wedges
    to_real_space to_redshift_space cell_statistics simulate
""".split()
# Only arguments that are no quantity go in, and none comes out.
NO_FIELD = {"models", "show_versions", "verify", "format_table", "calibrate", "CosmofieldsError"}


def functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for name in cf.__all__:
        value = getattr(cf, name)
        if inspect.ismodule(value):
            for inner, function in vars(value).items():
                mine = inspect.isfunction(function) and not inner.startswith("_")
                if mine and function.__module__.startswith(value.__name__):
                    found[f"{name}.{inner}"] = function
        elif inspect.isfunction(value):
            found[name] = value
    return found


def methods() -> dict[str, Callable[..., Any]]:
    return {
        f"{owner.__name__}.{name}": value
        for owner in (DatasetRecon, DataArrayRecon)
        for name, value in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_")
    }


FUNCTIONS, METHODS = functions(), methods()
ALL = {**FUNCTIONS, **METHODS}


def wrong(obj: Any) -> list[str]:
    """What numpydoc finds in a docstring, of what is asked for."""
    from numpydoc.validate import validate

    found = validate(f"{obj.__module__}.{obj.__qualname__}")["errors"]
    return [f"{code} {said}" for code, said in found if code in ERRORS]


def test_there_is_something_to_look_at() -> None:
    assert len(FUNCTIONS) > 60
    assert len(METHODS) > 40
    assert {"predict", "plotting.plot_spectra", "tutorial.open_dataset"} <= FUNCTIONS.keys()


@pytest.mark.parametrize("name", ALL)
def test_form(name: str) -> None:
    assert not wrong(ALL[name])


@pytest.mark.parametrize("name", ["Cosmology", *FUNCTIONS])
def test_each_parameter_says_what_it_is(name: str) -> None:
    from numpydoc.docscrape import ClassDoc, FunctionDoc

    obj = getattr(cf, name) if name in cf.__all__ else ALL[name]
    doc = (ClassDoc if inspect.isclass(obj) else FunctionDoc)(obj)
    for entry in doc["Parameters"]:
        # An entry without a type has a description that leads to one: "as in predict_density".
        assert entry.type or entry.desc, entry.name
        assert entry.type or "As " in " ".join(entry.desc), entry.name


def raised(function: Callable[..., Any]) -> set[str]:
    """Errors of ours that the body raises itself."""
    source = inspect.getsource(inspect.unwrap(function))
    return set(re.findall(r"raise (\w+Error)\(", source))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_named(name: str) -> None:
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    section = doc.partition("\nRaises\n")[2]
    named = set(re.findall(r"\w+Error", section))
    by_name = {error.__name__: error for error in _errors(CosmofieldsError)}
    for error in raised(FUNCTIONS[name]):
        parents = {parent.__name__ for parent in by_name[error].__mro__}
        assert named & parents, f"{name} raises {error}, and its Raises has {named or 'nothing'}"


def _errors(root: type) -> list[type]:
    return [root, *(each for child in root.__subclasses__() for each in _errors(child))]


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - NO_FIELD))
def test_dims_and_units(name: str) -> None:
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    if re.search(r"^\w[\w, ]* : DataArray", doc, re.MULTILINE):
        for entry in re.findall(r"^\w[\w, ]* : (DataArray.*)$", doc, re.MULTILINE):
            assert re.search(r"\(|dims|of ``field``|as |scalar|vector", entry), f"{name}: {entry}"
    returns = doc.partition("\nReturns\n")[2].partition("\nRaises\n")[0]
    numbers = re.search(r"^(DataArray|Dataset)", returns, re.MULTILINE)
    if numbers and not name.startswith(("plotting.", "tutorial.")):
        assert UNITS.search(doc), f"{name}: no unit"


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_have_an_equation_or_a_source(name: str) -> None:
    function = FUNCTIONS[name]
    module = sys.modules[function.__module__].__doc__ or ""
    assert SOURCE.search(f"{inspect.getdoc(function)}\n{module}")


@pytest.mark.parametrize("error", _errors(CosmofieldsError))
def test_errors_say_what_they_are_of(error: type) -> None:
    assert error.__doc__
    assert error.__doc__.strip().endswith(".")


def test_examples_run_in_make_test() -> None:
    """`make test` names no path, so that pytest takes those of pyproject.toml, and examples."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        + ["cosmofields/statistics", "cosmofields/scoring", "cosmofields/conventions.py"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert "cosmofields.scoring.cards.models" in done.stdout
