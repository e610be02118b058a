"""Links between the pages: each leads to a file that is there, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("notebooks/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the pages are in the repository only"
)


def prose(page: Path) -> str:
    """A page without its code, and with what it includes of others."""
    text = re.sub(r"```\{include\} (\S+)\n.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and MyST make them."""
    text = page.read_text()
    for included in re.findall(r"```\{include\} (\S+)", text):
        text += (page.parent / included).read_text()
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = sum(1 for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
        found.add(f"{slug}-{number}" if number else slug)
    return found


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One: `two` (3)\n## Again\n```\n# no heading\n```\n## Again\n")
    assert anchors(page) == {"one-two-3", "again", "again-1"}
    page.write_text("see [it](b.md#c), `[no](x.md)`, ![a figure](f.png)\n```\n[no](y.md)\n```\n")
    assert [one or other for one, other in LINK.findall(prose(page))] == ["b.md#c", "f.png"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for link, figure in LINK.findall(prose(page)):
        target, _, anchor = (link or figure).partition("#")
        if re.match(r"\w+:", target):
            continue  # the web's: `make docs DOCS=linkcheck`
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}#{anchor}"
