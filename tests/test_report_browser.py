"""The page of a report in a real browser: it loads, is quiet, asks nothing of a network, fits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.reporting import report
from cosmofields.reporting.figures import Contents, Plan, plan

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

PHONE, DESKTOP = (360, 800), (1280, 900)


class Browser:
    """Headless Chromium, spoken to by the DevTools protocol over a pair of pipes."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        # It reads from descriptor 3 and writes to 4.
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, CHROMIUM, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, event: str) -> None:
        while not any(seen.get("method") == event for seen in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._in, 2**16)
            assert block, "the browser closed its pipe"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, url: str, size: tuple[int, int]) -> None:
        """Load a page in a window of this size, a phone's if it is narrow."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 500,
        )
        self.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What an expression gives on the page, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(30)

    def requests(self) -> list[str]:
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [str(event["params"]["request"]["url"]) for event in sent]

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, and exceptions."""
        found = []
        for event in self.events:
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(str(event["params"]))
                case "Runtime.consoleAPICalled" if event["params"]["type"] in ("error", "warning"):
                    found.append(str(event["params"]["args"]))
                case "Log.entryAdded":
                    found.append(str(event["params"]["entry"]["text"]))
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


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
