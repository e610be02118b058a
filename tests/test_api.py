"""The pages about the public names: complete, up to date, and their code runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.accessor import DataArrayRecon, DatasetRecon

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWNERS = (DatasetRecon, DataArrayRecon)

pytestmark = pytest.mark.skipif(
    not (ROOT / "tools").is_dir(), reason="the pages and their tools are in the repository only"
)


@pytest.fixture(scope="module")
def make_api() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "make_api.py")))


def test_api_page_is_up_to_date(make_api: SimpleNamespace) -> None:
    page = make_api.PAGE.read_text()
    assert page == make_api.replaced(page), "run `python tools/make_api.py`"
    assert make_api.REFERENCE.read_text() == make_api.reference() + "\n", "run it"


def test_every_public_name_has_one_row(make_api: SimpleNamespace) -> None:
    names = [name.rstrip(".") for topic in make_api.TOPICS.values() for name in topic.split()]
    assert sorted(names) == cf.__all__


def test_every_method_is_in_a_row_of_its_kind(make_api: SimpleNamespace) -> None:
    """And every row that names a kind of object is a method of it."""
    rows = re.findall(r"^\| `([\w.]+).*?` \| (.*?) \| (.+) \|$", make_api.render(), re.MULTILINE)
    shown = {(name, kind) for name, kinds, _ in rows for kind in kinds.split(", ") if kind}
    methods = {
        (name, owner.__name__.removesuffix("Recon"))
        for owner in OWNERS
        for name in dir(owner)
        if not name.startswith("_")
    }
    assert shown == methods
    assert len(rows) == len({name for name, *_ in rows})


def test_summaries(make_api: SimpleNamespace) -> None:
    def length() -> None:
        """Length |v| of v*, as in :func:`~cosmofields.statistics.magnitude` or :class:`Grid`.

        More.
        """

    assert make_api.summary(length) == r"Length \|v\| of v\*, as in `magnitude` or `Grid`."
    with pytest.raises(ValueError, match="do not edit"):
        make_api.replaced("a page without marks")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for name in set(re.findall(r"\bcf\.(\w+)", text)) - {"NAME"}:
        assert hasattr(cf, name), f"cf.{name}"
    for name in set(re.findall(r"\bplotting\.(\w+)", text)) - {"py"}:
        assert hasattr(cf.plotting, name), f"plotting.{name}"
    for name in set(re.findall(r"\.recon\.(\w+)", text)) - {"NAME"}:
        assert any(hasattr(owner, name) for owner in OWNERS), f".recon.{name}"


def test_code_of_the_statistics_page_runs(observed: xr.Dataset) -> None:
    true = observed.recon.linear_theory(bias=1.5)
    predicted = observed.recon.linear_theory(bias=2.0)
    page = (ROOT / "docs" / "statistics.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {"cf": cf, "predicted": predicted, "true": true, "pairs": [(predicted, true)] * 2}
    for block in blocks:
        # The page cuts a box of 300 Mpc/h or more, these fields fill one of 100.
        exec(compile(block.replace("150", "50"), "statistics.md", "exec"), names)
    assert names["parts"].sizes["realization"] == 8
    assert names["result"].attrs["realizations"] == 2


def test_variables_of_evaluate_are_listed(observed: xr.Dataset) -> None:
    true = observed.recon.linear_theory(bias=1.5)
    result = true.recon.evaluate(true)
    page = (ROOT / "docs" / "statistics.md").read_text()
    table = page.partition("## What evaluate returns")[2].partition("\n## ")[0]
    listed = {}
    for dims, text in re.findall(r"^\| ([a-z_, ]+) \| (`.*) \|$", table, re.MULTILINE):
        for name in re.findall(r"`([\w*]+)`", text):
            for side in ("predicted", "true"):
                listed[name.replace("*", side)] = tuple(dims.split(", "))
    for name in ("value_bounds", "value_spacing"):
        assert name in result.coords
        del listed[name]
    assert listed == {name: value.dims for name, value in result.data_vars.items()}


def test_picture_of_the_house_shows_every_room() -> None:
    package = ROOT / "cosmofields"
    rooms = {path.name for path in package.glob("[a-z]*.py")}
    rooms |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")} - {"kernels/"}
    rooms |= {f"kernels/{path.name}" for path in package.glob("kernels/[a-z]*.py")}
    text = (ROOT / "docs" / "architecture.md").read_text()
    shown = set(re.findall(r"^ {4}((?:kernels/)?[a-z_]+(?:\.py|/)) ", text, re.MULTILINE))
    assert shown == rooms


def test_no_room_has_the_name_of_a_function() -> None:
    # Importing such a room would put the module in the function's place.
    rooms = {name for name, room in cf._EXPORTS.items() if room == f"cosmofields.{name}"}
    assert rooms == {"plotting", "tutorial"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
