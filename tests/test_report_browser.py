"""The page of a report in a real browser: it loads, is quiet, asks nothing of a network, fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.reporting import report
from cosmofields.reporting.figures import Contents, Plan, plan
from tests.browser import DESKTOP, PHONE, Browser, needed

pytestmark = needed


@pytest.fixture(scope="module")
def page(make_box: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of a small box, alone in a directory, under a long and hostile title.

    With one figure of each section: tests/test_report.py has them all.
    """
    folder = tmp_path_factory.mktemp("page")
    halos, true = cf.open_box(make_box(folder / "box.h5", n_grid=16, box_size=37.5))
    chosen = halos.recon.select([1e-3, 3e-3])
    tracers = chosen.recon.to_redshift_space("z")
    observed = tracers.recon.paint(16)
    predicted = xr.Dataset(
        {"density": true["density"], "velocity": 0.9 * true["velocity"]}, attrs=true.attrs
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(report.__globals__, "plan", _one_of_each)
        report(
            {"network": predicted, "linear theory": observed.recon.linear_theory(bias=[2.0, 1.5])},
            true,
            folder / "report",
            observed=observed,
            halos=tracers,
            halos_true=chosen,
            title="<script>document.title = 'taken'</script> " + "An-unbroken-title" * 8,
        )
    # What it needs beside it would be missing here.
    alone = folder / "alone" / "report.html"
    alone.parent.mkdir()
    shutil.copy(folder / "report" / "report.html", alone)
    return alone


def _one_of_each(contents: Contents) -> Iterator[Plan]:
    seen: set[str] = set()
    for item in plan(contents):
        if item.section not in seen:
            seen.add(item.section)
            yield item


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    browser.open(page.as_uri(), size)
    images = browser.value(
        "Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() =>"
        " [...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0,"
        " i.parentElement.clientWidth]))"
    )
    assert len(images) == 6
    for alt, loaded, width in images:
        assert alt
        assert loaded, alt
        assert 100 < width <= size[0], alt
    # The page does not scroll sideways; a wide table does, in its own box, and so when opened.
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    wider = browser.value(
        "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth)"
        ".length"
    )
    assert wider > 0
    assert browser.value("document.title").startswith("<script>")
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(("data:", "file:"))] == []
    assert [url for url in browser.requests() if url.startswith("file:")] == [page.as_uri()]


def test_links_lead_somewhere(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), DESKTOP)
    links = browser.value("[...document.links].map(a => a.getAttribute('href'))")
    inner = [link[1:] for link in links if link.startswith("#")]
    assert len(inner) > 15
    lost = browser.value(f"{json.dumps(inner)}.filter(id => !document.getElementById(id))")
    assert lost == []
    assert all(link.startswith(("#", "data:")) for link in links)
    ids = browser.value("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_headings_do_not_skip_a_level(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), DESKTOP)
    levels = browser.value("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_print_shows_tables_whole(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.open(page.as_uri(), (760, 1000))
    cut = browser.value(
        "[...document.querySelectorAll('.scroll')].filter(s => s.offsetParent)"
        ".filter(s => s.scrollHeight > s.clientHeight + 1).map(s => s.ariaLabel)"
    )
    stuck = browser.value(
        "[...document.querySelectorAll('th')].filter(h => getComputedStyle(h).position == 'sticky')"
        ".length"
    )
    browser.call("Emulation.setEmulatedMedia", media="")
    assert cut == []
    assert stuck == 0


def test_text_stands_out_in_light_and_dark(browser: Browser, page: Path) -> None:
    # WCAG AA: a contrast of 4.5 between text and what lies behind it.
    contrast = """
    (() => {
      const channels = c => c.match(/[\\d.]+/g).map(Number);
      const light = c => {
        const [r, g, b] = channels(c).map(v => v / 255)
          .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const behind = e => {
        for (; e; e = e.parentElement) {
          const c = channels(getComputedStyle(e).backgroundColor);
          if (c.length < 4 || c[3] > 0) return getComputedStyle(e).backgroundColor;
        }
        return 'rgb(255, 255, 255)';
      };
      return [...document.querySelectorAll('h1,h2,p,li,a,td,th,dt,dd,summary,pre,.soft')].map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
      }).sort((a, b) => a[0] - b[0])[0];
    })()
    """
    paper = set()
    for scheme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        browser.open(page.as_uri(), DESKTOP)
        paper.add(browser.value("getComputedStyle(document.body).backgroundColor"))
        lowest, where = browser.value(contrast)
        assert lowest >= 4.5, (scheme, where)
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert len(paper) == 2
