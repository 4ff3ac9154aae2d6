"""Pages in a browser: whatever they ask of others, and whatever they complain of, is an error."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@contextlib.contextmanager
def opened(address: str, **options) -> Iterator:
    """The page at an address."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(**options)
        asked, problems = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text))
        tab.goto(address)
        yield tab
        browser.close()
    assert problems == []
    assert [url for url in asked if not url.startswith((address, "blob:"))] == []


def draw_one(tab) -> None:
    """Draw the digit 1 with the mouse."""
    box = tab.locator("#canvas").bounding_box()
    x, y, step = box["x"] + box["width"] / 2, box["y"], box["height"] / 10
    tab.mouse.move(x, y + 2 * step)
    tab.mouse.down()
    for n in range(2, 9):
        tab.mouse.move(x, y + n * step)
    tab.mouse.up()


def shoot(tab, name: str, folder: Path) -> None:
    """The page fits its window; its picture lies in a folder, or in that of VISION_ZOO_SHOTS."""
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.screenshot(path=Path(os.environ.get("VISION_ZOO_SHOTS", folder)) / name, full_page=True)
