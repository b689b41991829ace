"""A real Chromium without a window."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-device-scale-factor=1",
)  # fmt: skip


@contextlib.contextmanager
def opened(width: int = 1100, height: int = 900) -> Iterator[Any]:
    program, driver = next(filter(None, map(shutil.which, NAMES)), None), shutil.which("chromedriver")
    assert program and driver, "the pages are tested in Chromium; on Debian: apt install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    with tempfile.TemporaryDirectory(prefix="toastc-browser-", ignore_cleanup_errors=True) as profile:
        for word in (*QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        made = webdriver.Chrome(options, Service(driver))
        try:
            yield made
        finally:
            made.quit()


def visit(browser: Any, page: Path) -> list[str]:
    """Open a page, wait until everything is drawn; returns what the console said."""
    browser.get(page.resolve().as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.body.dataset.drawn") is not None)
    return [entry["message"] for entry in browser.get_log("browser")]
