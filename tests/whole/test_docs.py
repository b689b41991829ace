"""The documentation is built as `make docs` builds it; links lead somewhere, nothing comes from elsewhere, messages exist."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import picture
import picture_cost
import pytest
from browser import opened
from pages import ROOT, blocks
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from toastc.cli import COMMANDS
from toastc.passes import RECIPES
from toastc.passes.registry import BUILT_IN

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data", "embed": "src"}
LOADING_LINKS = {"stylesheet", "preconnect", "preload", "prefetch", "modulepreload", "icon", "dns-prefetch", "manifest"}
VARIES = "…"


class Page(HTMLParser):
    """Where one can go in a page, where one can go from it, and what a browser fetches for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and set(given.get("rel", "").split()) & LOADING_LINKS:
            self.fetched.append(given["href"])
        if LOADED.get(tag) in given:
            self.fetched.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def test_every_link_leads_to_a_page_and_a_place_in_it(site: dict[Path, Page]) -> None:
    inner = 0
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                inner += 1
                assert unquote(parts.fragment) in site[target].anchors | {"__skip"}, f"{path.name}: {link}"
    assert inner > 100


def test_no_page_loads_anything_from_another_host(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert page.fetched or path.name == "404.html"
        assert not [url for url in page.fetched if urlsplit(url).netloc], path.name
        assert "mermaid" not in path.read_text(encoding="utf-8"), "the theme would fetch it"
    folder = next(p for p in site if p.name == "404.html").parent
    for style in folder.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_the_reference_is_complete(site: dict[Path, Page]) -> None:
    places = {path.name: page.anchors for path, page in site.items() if path.parent.name == "reference"}
    assert {"toastc" if name == "prune" else f"toastc-{name}" for name in COMMANDS} <= places["command.html"]
    assert {cls.name for cls in BUILT_IN} | set(RECIPES) <= places["passes.html"]  # type: ignore[attr-defined]
    assert {"toastcprune", "toastcplan", "toastcresult", "toastcreportdatareport"} <= places["python.html"]


def test_the_site_works_from_a_folder(site: dict[Path, Page]) -> None:
    """Without a server and a network: the search finds, light becomes dark, and the console has nothing to say."""
    page = next(path for path in site if path.name == "tokens.html")
    with opened() as browser:
        browser.get(page.as_uri())
        wait, found = WebDriverWait(browser, 60), (By.CSS_SELECTOR, ".md-search-result__link")
        wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]")).click()
        browser.switch_to.active_element.send_keys("temperature")
        wait.until(lambda b: any("errors.html" in link.get_attribute("href") for link in b.find_elements(*found)))
        browser.execute_script("document.querySelectorAll('[data-md-color-scheme=slate]')[0].click()")
        wait.until(lambda b: b.find_element(By.TAG_NAME, "body").get_attribute("data-md-color-scheme") == "slate")
        assert not browser.get_log("browser")


def test_every_benchmark_is_on_its_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    files = [p.name for p in (ROOT / "benchmarks").glob("*.json") if not p.name.startswith("gpu-")]
    assert not [name for name in files if name not in page]


def messages() -> list[str]:
    """Every text in the source, what is filled in left open."""
    found = []
    for path in (*(ROOT / "toastc").rglob("*.py"), *(ROOT / "passes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else VARIES for p in node.values]
                found.append(re.sub(f"{VARIES}+", VARIES, "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_that_is_explained_exists() -> None:
    known = messages()
    quoted = [line for b in blocks("docs/errors.md") if b.language == "text" for line in b.text.splitlines() if line]
    assert len(quoted) > 50
    for line in quoted:
        parts = [re.escape(part) for part in line.split(VARIES)]
        fits = re.compile(".*".join(parts), re.S)
        assert any(fits.search(text) for text in known), line


@pytest.mark.parametrize("what", [picture, picture_cost], ids=["accuracy", "cost"])
def test_a_picture_shows_the_figures_as_they_are(what: Any) -> None:
    figures = json.loads(what.FIGURES.read_text())
    assert what.drawn(figures) == what.PICTURE.read_text(encoding="utf-8"), f"python {what.__name__}.py in tools/ draws it anew"
