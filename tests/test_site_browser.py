"""The documentation site in a real browser: each page reachable and quiet, search, figures.

Of the site that ``make docs`` built: ``COSMOFIELDS_SITE=docs/_build/html``.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag

import pytest

from tests.browser import DESKTOP, PHONE, Browser, needed

SITE = os.environ.get("COSMOFIELDS_SITE")
pytestmark = [
    needed,
    pytest.mark.slow,
    pytest.mark.skipif(SITE is None, reason="COSMOFIELDS_SITE names no built site"),
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    handler = partial(_Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_page_is_reachable_and_quiet(browser: Browser, site: str) -> None:
    waiting, seen, wrong = [f"{site}index.html"], {f"{site}index.html"}, {}
    anchors: dict[str, set[str]] = {}
    ids: dict[str, set[str]] = {}
    while waiting:
        url = waiting.pop()
        browser.open(url, DESKTOP)
        ids[url] = set(browser.value("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        lost = browser.value(
            "Promise.all([...document.images].map(i => {i.loading = 'eager'; return i.decode()"
            ".then(() => '', () => i.src)})).then(lost => lost.filter(src => src))"
        )
        if found := [*browser.complaints(), *browser.failures(), *lost]:
            wrong[url] = found
        for link in browser.value("[...document.links].map(a => a.href)"):
            target, anchor = urldefrag(link)
            if not target.startswith(site) or not target.endswith(".html"):
                continue
            if anchor:
                anchors.setdefault(target, set()).add(anchor)
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    assert wrong == {}
    built = {f"{site}{path.relative_to(str(SITE))}" for path in Path(str(SITE)).rglob("*.html")}
    assert {url for url in built if "/_static/" not in url} <= seen | {f"{site}search.html"}
    dead = {url: found - ids[url] for url, found in anchors.items() if found - ids[url]}
    assert dead == {}


@pytest.mark.parametrize("query", ["predict_velocity", "kinetic", "Rockstar"])
def test_search_finds(browser: Browser, site: str, query: str) -> None:
    browser.open(f"{site}search.html?q={query}", DESKTOP)
    found = browser.value(
        "new Promise(done => {const look = n => {"
        "const links = [...document.querySelectorAll('#search-results li a')].map(a => a.href);"
        "links.length || !n ? done(links) : setTimeout(look, 100, n - 1)}; look(100)})"
    )
    assert any(link.startswith(site) for link in found)
    assert browser.complaints() == []


def test_notebooks_show_their_figures(browser: Browser, site: str) -> None:
    pages = sorted(Path(str(SITE)).glob("notebooks/*.html"))
    assert pages
    for page in pages:
        browser.open(f"{site}notebooks/{page.name}", DESKTOP)
        figures = browser.value(
            "[...document.querySelectorAll('.cell_output img')].map(i => i.naturalWidth)"
        )
        assert figures, page.name
        assert all(figures), page.name


def test_a_page_fits_a_phone(browser: Browser, site: str) -> None:
    for name in ("index", "start", "scores"):
        browser.open(f"{site}{name}.html", PHONE)
        width = browser.value("document.documentElement.scrollWidth")
        assert width <= PHONE[0], json.dumps({name: width})
