"""A real browser for tests of pages: the system's Chromium or Chrome, which may neither complain nor reach out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


def installed() -> str | None:
    """Return the path of the system's browser; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=installed(), args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextmanager
def opened(chromium: Any, path: Path, fragment: str = "", **settings: Any) -> Iterator[Any]:
    """Yield the page of a file, in a window of its own; what it complains of or asks the network for is an error.

    Parameters
    ----------
    chromium : Browser
    path : Path
    fragment : str
        What follows ``#`` in the address.
    **settings
        Of ``Browser.new_context``: size, colour scheme, touch, scripts.
    """
    wrong: list[str] = []
    settings = {"viewport": {"width": 1400, "height": 900}, "reduced_motion": "reduce", **settings}
    context = chromium.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url),
    )
    page.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
    try:
        yield page
    finally:
        context.close()
    assert not wrong
