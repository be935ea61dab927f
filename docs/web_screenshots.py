#!/usr/bin/env python
"""Take the screenshots of docs/web.md from a running page with the toy model.

Needs Playwright and Chromium; `make test-web` creates .web with the former.

Example:
    odise-mm serve --config odise_toy_label --port 8000 &
    .web/bin/python docs/web_screenshots.py http://127.0.0.1:8000
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
SIZE = dict(width=1280, height=1000)


def choose(page: Page, region: str) -> None:
    """Choose a region in the list and wait until the page shows it."""
    page.locator("#regions label", has_text=region).click()
    page.locator("#details", has_text=f"{region}: ").wait_for()
    page.wait_for_timeout(1000)  # until the drawing is loaded


def main(address: str) -> None:
    """Take the screenshots."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.get_by_role("button", name="Example: toy scene").click()
        page.locator("#understood", has_text="4 things").wait_for()
        page.get_by_role("button", name="Segment").click()
        page.locator("#drawing img").wait_for()
        choose(page, "white box")
        shot = dict(type="jpeg", quality=82, full_page=True)
        page.screenshot(path=IMAGES / "web_page.jpg", **shot)
        page.locator("#name textarea, #name input").fill("wug")
        page.locator("#teach").click()
        page.locator("#taught", has_text="wug (1)").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=IMAGES / "web_taught.jpg", **shot)
        page.locator("#undo").click()
        page.locator("#taught", has_text="nothing yet").wait_for()
        page.get_by_role("tab", name="Who says what").click()
        page.wait_for_timeout(1000)  # until the view has changed
        page.get_by_label("MaskCLIPClassifier").check()
        page.locator("#regions label", has_text="white box 1.00").wait_for()
        choose(page, "black triangle")
        page.screenshot(path=IMAGES / "web_classifiers.jpg", **shot)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
