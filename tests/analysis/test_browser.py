"""The recorded pages in a real browser: headless Chromium, where there is one."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "experiments" / "results").rglob("*report.html"))
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
# what only a browser knows, written where it can be read back
ASK = """<script>addEventListener("load", () => {
const pictures = [...document.images], root = document.documentElement;
root.dataset.pictures = pictures.length;
root.dataset.broken = pictures.filter(one => !one.complete || !one.naturalWidth).length;
root.dataset.loads = performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length;
root.dataset.wide = root.scrollWidth > innerWidth + 1;
})</script>"""


def test_there_are_pages():
    """A folder that was renamed, so that nothing below is tested."""
    assert len(PAGES) >= 5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 420], ids=["desktop", "telephone"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_page_opens_without_errors(page, width, tmp_path):
    """A picture that no browser decodes, an error on the console, something fetched, a page that is wider than its window."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{ASK}</body>"), encoding="utf-8")
    where = (f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr")
    words = (BROWSER, *QUIET, *where, "--virtual-time-budget=5000", "--dump-dom", copy.as_uri())
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = dict(re.findall(r'data-(\w+)="(\w+)"', done.stdout[: done.stdout.index("<head")]))
    assert int(told["pictures"]) >= 3
    assert {"broken": told["broken"], "loads": told["loads"], "wide": told["wide"]} == {
        "broken": "0",
        "loads": "0",
        "wide": "false",
    }
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert "References" in done.stdout
