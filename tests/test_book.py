"""The site of the notebooks: every page and link in it is there, and it can be searched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from data_prep.paths import PROJECT

pytestmark = pytest.mark.skipif(
    not Path(sys.executable).with_name("uv").exists(),
    reason="uv is missing: pip install -e '.[test]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, BeautifulSoup]:
    """Each page of the site by its file, built as `make book` does, of notebooks not executed."""
    book = tmp_path_factory.mktemp("book")
    (book / "notebooks").mkdir()
    for notebook in PROJECT.glob("notebooks/[0-9]*.ipynb"):
        shutil.copy(notebook, book / "notebooks")
    words = ["make", "pages", f"BOOK={book}", f"PY={sys.executable}"]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # a warning is an error, too
    html = book / "_build" / "html"
    pages = [p for p in html.rglob("*.html") if "_static" not in p.parts]  # there: the theme's own
    return {page: BeautifulSoup(page.read_text(), "html.parser") for page in pages}


def test_no_link_of_the_book_is_broken(site):
    broken, followed = [], 0
    names = {page: {e.get("id") for e in text.find_all(id=True)} for page, text in site.items()}
    for page, text in site.items():
        for element in text.find_all(["a", "img", "script", "link"]):
            to = urlsplit(element.get("href") or element.get("src") or "")
            target = (page.parent / unquote(to.path)).resolve() if to.path else page
            if to.scheme or to.netloc:
                continue
            followed += 1
            anchor = unquote(to.fragment) if target in names else ""
            if not target.exists() or (anchor and anchor not in names[target]):
                broken.append(f"{page.name}: {to.geturl()}")
    assert followed > 1000 and not broken


def test_the_book_has_every_notebook_in_its_navigation_and_a_search(site):
    start = next(text for page, text in site.items() if page.name == "README.html")
    linked = {Path(a["href"]).stem for a in start.select("nav a[href]")}
    assert {n.stem for n in PROJECT.glob("notebooks/[0-9]*.ipynb")} <= linked
    assert any(page.with_name("searchindex.js").exists() for page in site)
