"""The house stands as docs/architecture.md draws it: layers, import cost, names, file sizes."""

from __future__ import annotations

import ast
import importlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cosmofields as cf

PACKAGE = Path(cf.__file__).parent

# A room imports from the rooms before it and from itself (a package such as kernels is one room).
LAYERS = [
    "conventions",
    "versions",
    "zoo",
    "lazy",
    "cosmology",
    "encoding",
    "store",
    "stages",
    "kernels",
    "catalog",
    "readers",
    "fourier",
    "derivatives",
    "painting",
    "spectral",
    "correlation",
    "statistics",
    "linear",
    "sampling",
    "consistency",
    "applications",
    "unet",
    "calibration",
    "engine",
    "inference",
    "reconstruction",
    "simulation",
    "samples",
    "training",
    "tuning",
    "comparison",
    "evaluation",
    "scoring",
    "boxes",
    "two_point",
    "plotting",
    "exploring",
    "reporting",
    "accessor",
    "tutorial",
    "demo",
    "cli",
]
RANK = {room: rank for rank, room in enumerate(LAYERS)}

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [p for p in FILES if p not in {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}]


def name(path: Path) -> str:
    """Dotted name of a module of the package, without `cosmofields.`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted target of every import in a file, at whatever depth."""
    here = ["cosmofields", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = here[: len(here) - node.level + 1] if node.level else []
                target = ".".join([*base, *([node.module] if node.module else [])])
                # In `from cosmofields import x`, x decides which room is meant.
                names = [f".{alias.name}" for alias in node.names]
                suffixes = names if target == "cosmofields" else [""]
                yield from ((node.lineno, target + suffix) for suffix in suffixes)
            case ast.Call(ast.Attribute(attr="import_module"), [ast.Constant(str(to)), *_]):
                yield node.lineno, to


def violations(path: Path) -> Iterator[str]:
    """What a file imports from the package that does not lie before it."""
    room = name(path).split(".")[0]
    for line, target in imports(path):
        root, _, rest = target.partition(".")
        if root != "cosmofields":
            continue
        other = rest.split(".")[0]
        if other not in RANK:
            yield f"line {line}: `{target}` is no room: import from where it is defined"
        elif RANK[other] > RANK[room]:
            yield f"line {line}: `{room}` imports `{target}`, which comes after it"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_layers(path: Path) -> None:
    room = name(path).split(".")[0]
    assert room in RANK, f"give `{room}` a place in LAYERS and in docs/architecture.md"
    wrong = list(violations(path))
    assert not wrong


def test_layers_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "kernels").mkdir()
    path = tmp_path / "kernels" / "mesh.py"
    path.write_text(
        "import numpy\n"
        "from ..conventions import units\n"
        "from . import tiles\n"
        "from .. import cosmology, paint\n"
        "import cosmofields\n"
        "def later():\n"
        "    import cosmofields.cli as cli\n"
        "    from cosmofields.unet import UNet\n"
        "    importlib.import_module('cosmofields.demo')\n"
    )
    wrong = [message.split(":")[0] for message in violations(path)]
    assert sorted(wrong) == ["line 4", "line 5", "line 7", "line 8", "line 9"]


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "kernels"], ids=name)
def test_kernels_know_plain_arrays_only(path: Path) -> None:
    labelled = {"xarray", "dask", "zarr", "pandas"}
    assert not labelled & {target.split(".")[0] for _, target in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_is_one_room(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines < 500


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    heavy = "torch numba optuna matplotlib camb pytorch_lightning"
    code = f"""
import sys, cosmofields, xarray
assert hasattr(xarray.Dataset, "recon") and hasattr(xarray.DataArray, "recon")
print(*[name for name in {heavy.split()} if name in sys.modules])
"""
    assert run(code) == ""


def test_import_time() -> None:
    # CPU time, for a loaded machine; alternating, for a clock that changes pace.
    def seconds(module: str) -> float:
        return float(
            run(
                "import time; start = time.process_time(); "
                f"import {module}; print(time.process_time() - start)"
            )
        )

    seconds("cosmofields")  # writes the bytecode
    pairs = [(seconds("xarray"), seconds("cosmofields")) for _ in range(7)]
    xarray, ours = map(statistics.median, zip(*pairs, strict=True))
    assert ours <= 1.5 * xarray, f"cosmofields takes {ours:.2f} s, xarray {xarray:.2f} s"


def test_public_names_agree() -> None:
    public = {name for name in cf.__all__ if not name.startswith("_")}
    assert list(cf.__all__) == sorted(cf.__all__)
    assert public == set(cf._EXPORTS)
    assert public == {name for name in dir(cf) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(cf._EXPORTS))
def test_public_name_is_found(name: str) -> None:
    module = importlib.import_module(cf._EXPORTS[name], "cosmofields")
    value = getattr(cf, name)
    # A name may stand for the module itself, such as `cf.tutorial`.
    assert value is getattr(module, name, module)
    assert value.__doc__


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        cf.no_such_name  # noqa: B018
