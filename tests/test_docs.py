"""The pages of the site: their code runs, and they build without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cosmofields as cf
from cosmofields.cli import _parser

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are in the repository only")


@pytest.fixture
def small(box_file, tmp_path, monkeypatch):
    """A small box in the place of the sample, and tables of its halos in the working directory."""
    halos, true = cf.open_box(box_file)
    true = true.load()
    monkeypatch.setattr(cf.tutorial, "open_dataset", lambda: (halos, true))
    monkeypatch.chdir(tmp_path)
    position, velocity, mass = (halos[name].values for name in ("position", "velocity", "mass"))
    for name, columns, header in (
        ("halos.csv", [position, velocity, mass[:, None]], "x,y,z,vx,vy,vz,mass"),
        ("theirs.csv", [1e3 * position, velocity, np.log10(mass)[:, None]], "X,Y,Z,VX,VY,VZ,logM"),
    ):
        np.savetxt(name, np.hstack(columns), delimiter=",", header=header, comments="")


@pytest.mark.parametrize(
    "page", ["start", "howto", "coming-from", "applications", "index"], ids=lambda page: page
)
# A box made up.
@pytest.mark.filterwarnings("ignore::cosmofields.catalog.plausible.UnitsWarning")
@pytest.mark.filterwarnings("ignore::cosmofields.consistency.VelocityWarning")
def test_the_code_of_a_page_runs(page, small):
    text = (DOCS / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    # The pages' box has 300 Mpc/h and 128^3 cells, this one 75 and 32^3.
    smaller = {"box_size=300": "box_size=75", "n_grid=128": "n_grid=32", "z=64": "z=16"}
    names = {"np": np}
    for block in blocks:
        for old, new in smaller.items():
            block = block.replace(old, new)
        exec(compile(block, f"{page}.md", "exec"), names)


def commands(page: str) -> list[str]:
    """What a page says to type, but for what stands for something else: ``...`` or CATALOG."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`(cosmofields\s[^`]+)`", prose)]
    # In prose, a verb alone is its name.
    found = [line for line in lines if line.startswith("cosmofields ")]
    found += [code for code in inline if code.count(" ") > 1]
    return [line for line in found if not re.search(r"\.\.\.| [A-Z]{3,}\b", line)]


def test_commands_of_a_page_are_found() -> None:
    page = (
        "`cosmofields predict` `cosmofields info a`\n```sh\ncd b\ncosmofields c \\\n  d # e\n```\n"
    )
    assert commands(page) == ["cosmofields c    d # e", "cosmofields info a"]
    assert commands("`cosmofields info STORE`, `cosmofields score --boxes ...`") == []


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem
)
def test_commands_of_a_page_parse(page):
    for command in commands(page.read_text()):
        words = shlex.split(re.split(r" (?:[>#]|\|\|) ?", command)[0])
        _parser().parse_args(words[1:])


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    # Notebooks have a test of their own, and take minutes.
    command += ["-D", "nb_execution_mode=off"]
    done = subprocess.run([*command, DOCS, tmp_path / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "generated" / "cosmofields.predict.html").is_file()
    assert (tmp_path / "html" / "notebooks" / "02-how-good.html").is_file()
    assert "predict_velocity" in (tmp_path / "html" / "searchindex.js").read_text()
