"""Pages in the system's Chromium, which ask nobody else."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NO_BROWSER = "no Chromium: apt-get install chromium, or your system's browser"
needed = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
FITS = "document.documentElement.scrollWidth <= window.innerWidth"


@contextmanager
def opened(address="", *, ours="", errors=True, width: int = 390, wait: int = 30_000) -> Iterator:
    """A page, as wide as a telephone. At its end it must fit, must have asked nobody but `ours`
    and, with `errors`, have none on its console. width: pixels; wait: milliseconds."""
    from playwright.sync_api import sync_playwright

    bad: list[str] = []
    allowed = ("blob:", "data:", *filter(None, [ours or address]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(wait)
        page.on("request", lambda r: r.url.startswith(allowed) or bad.append(f"asked {r.url}"))
        if errors:
            page.on("console", lambda m: m.type == "error" and bad.append(f"{m.text} {m.location}"))
            page.on("pageerror", lambda e: bad.append(str(e)))
        if address:
            page.goto(address)
        yield page
        assert page.evaluate(FITS)
        browser.close()
    assert not bad
