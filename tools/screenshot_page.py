"""Photograph a leaderboard page for the README: ``python tools/screenshot_page.py PAGE.html [FOLDER]``.

Writes ``page.png`` (its top) and ``page_pictures.png`` (its pictures) by the Chromium or Chrome on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results"))
    arguments = parser.parse_args()
    browser = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if browser is None:
        parser.error(f"none of {', '.join(BROWSERS)} is on the PATH")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 1200})
        page.goto(arguments.page.resolve().as_uri())
        for name, section in (("page", ""), ("page_pictures", "Pictures")):
            if section:
                page.get_by_role("link", name=section, exact=True).first.click()
            page.wait_for_timeout(1500)  # what is drawn when it is seen
            file = arguments.folder / f"{name}.png"
            page.screenshot(path=file)
            Image.open(file).quantize(128).save(file, optimize=True)
            print(file)
        chromium.close()


if __name__ == "__main__":
    main()
