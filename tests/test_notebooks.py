"""The notebooks: questions, without outputs in git, and they run with warnings as errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cosmofields as cf
from cosmofields.accessor import DataArrayRecon, DatasetRecon

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
# All together are five minutes of one core: `make notebooks`.
FAST = ("03-redshift-space",)
ALL = os.environ.get("COSMOFIELDS_NOTEBOOKS") == "all"
# Of ipykernel, about IPython's own kernel, as it ends.
WARNINGS = "error,ignore:For consistency across implementations:PendingDeprecationWarning"

pytestmark = pytest.mark.skipif(not PATHS, reason="the notebooks are in the repository only")


def stem(path: Path) -> str:
    return path.stem


def source(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def test_there_are_six_at_most_and_each_is_listed() -> None:
    assert 0 < len(PATHS) <= 6
    for page in (NOTEBOOKS / "README.md", NOTEBOOKS.parent / "docs" / "notebooks.md"):
        named = re.findall(r"(0\d-[a-z-]+)(?:\.ipynb)?", page.read_text())
        assert sorted(set(named)) == [path.stem for path in PATHS]


@pytest.mark.parametrize("path", PATHS, ids=stem)
def test_it_asks_a_question_and_holds_no_output(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    title = notebook.cells[0].source.splitlines()[0]
    assert re.fullmatch(r"# .+\?", title)
    assert title.removeprefix("# ") in (NOTEBOOKS / "README.md").read_text()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, "strip it: nbstripout notebooks/*.ipynb"
            assert cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", PATHS, ids=stem)
def test_its_names_and_links_exist(path: Path) -> None:
    owners = (DatasetRecon, DataArrayRecon)
    text = "\n".join([*source(path, "code"), *source(path, "markdown")])
    for name in set(re.findall(r"\bcf\.(\w+)", text)):
        assert hasattr(cf, name), f"cf.{name}"
    for name in set(re.findall(r"\bplotting\.(\w+)", text)):
        assert hasattr(cf.plotting, name), f"plotting.{name}"
    for name in set(re.findall(r"\.recon\.(\w+)", text)):
        assert any(hasattr(owner, name) for owner in owners), f".recon.{name}"
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", "\n".join(source(path, "markdown"))):
        assert (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PATHS if ALL or p.stem in FAST], ids=stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbmake")
    done = run(path, tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What nbmake says of two notebooks of one cell, and the second of them as it ran."""
    pytest.importorskip("nbmake")
    folder = tmp_path_factory.mktemp("small")
    cells = {
        "warns": "import warnings\nwarnings.warn('of a notebook')",
        "bars": """
import sys
sys.modules["ipywidgets"] = None
from rich.console import Console
from cosmofields.inference import track
from cosmofields.stages import timed
assert list(track([1, 2], True, "of a network")) == [1, 2]
with timed(Console(stderr=True), "of a stage"):
    pass
""",
    }
    for name, code in cells.items():
        page = nbformat.v4.new_notebook(metadata=nbformat.read(PATHS[0], 4).metadata)
        page.cells = [nbformat.v4.new_code_cell(code)]
        nbformat.write(page, folder / f"{name}.ipynb")
    done = run(folder, folder, "--overwrite")
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout), folder / "bars.ipynb"


def test_a_warning_is_an_error(small: tuple[str, Path]) -> None:
    said, _ = small
    assert "1 failed, 1 passed" in said
    assert "UserWarning: of a notebook" in said


def test_bars_show_without_widgets(small: tuple[str, Path]) -> None:
    shown = "".join(str(output) for output in nbformat.read(small[1], 4).cells[0].outputs)
    assert "of a network" in shown
    assert "100%" in shown
    assert "of a stage" in shown


def run(path: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Execute a notebook with nbmake in a process of its own."""
    # Not the package's pytest configuration: what it asks for is not about notebooks.
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=900", "-q"]
    command += ["-p", "no:cacheprovider", "-c", str(folder / "pytest.ini"), *options, str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": WARNINGS}
    )
