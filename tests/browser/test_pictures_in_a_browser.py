"""The pictures of the page, large: by mouse and by keyboard; and the same pictures without a script."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from PIL import Image

Visit = Callable[..., AbstractContextManager[Any]]
PANELS = "#bsdata button.panel:visible"


def view_of(page: Any) -> list[float]:
    return [float(part) for part in page.locator(".lightbox .stage svg").get_attribute("viewBox").split()]


def test_a_panel_opens_moves_on_and_gives_the_focus_back(visit: Visit) -> None:
    with visit() as page:
        panels = page.locator(PANELS)
        panels.nth(1).focus()
        page.keyboard.press("Enter")
        title = page.locator(".lightbox .title")
        assert title.inner_text() == panels.nth(1).get_attribute("aria-label")
        page.keyboard.press("ArrowRight")
        assert title.inner_text() == panels.nth(2).get_attribute("aria-label")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert title.inner_text() == panels.nth(0).get_attribute("aria-label")
        assert not page.locator(".lightbox .mixing").is_visible()  # a photograph has no map
        page.keyboard.press("Escape")
        assert not page.locator(".lightbox").is_visible()
        assert panels.nth(0).evaluate("element => element === document.activeElement")


def test_opacity_outlines_zoom_and_pixel_grid(visit: Visit) -> None:
    with visit() as page:
        panel = page.locator(PANELS).nth(1)
        panel.click()
        box = page.locator(".lightbox")
        image = box.locator("image.map")
        assert image.evaluate("element => getComputedStyle(element).opacity") == "1"
        box.locator(".mix").fill("20")
        assert image.evaluate("element => getComputedStyle(element).opacity") == "0.2"
        box.locator(".lines").uncheck()
        assert not box.locator("g.edge").first.is_visible()
        box.locator(".pixels").check()
        assert box.locator(".grid").get_attribute("d")
        near = view_of(page)
        box.locator(".far").click()
        assert view_of(page) == [float(part) for part in panel.get_attribute("data-window").split()]
        assert box.locator(".far").get_attribute("aria-pressed") == "true"
        box.locator(".near").click()
        assert view_of(page) == near
        for _ in range(12):
            box.locator(".in").click()
        assert min(view_of(page)[2:]) == 8
        for _ in range(20):
            box.locator(".out").click()
        width, height = view_of(page)[2:]
        most = [float(part) for part in panel.get_attribute("data-window").split()]
        assert max(width / most[2], height / most[3]) <= 1.001


def test_pictures_are_drawn_without_a_script(visit: Visit) -> None:
    with visit(java_script_enabled=False) as page:
        panel = page.locator(PANELS).nth(1)
        panel.scroll_into_view_if_needed()
        assert panel.bounding_box()["width"] > 100
        pixels = np.array(Image.open(io.BytesIO(panel.screenshot())).convert("RGB")).reshape(-1, 3)
        colours = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
        assert (64, 255, 120) in colours  # the outline of the mask
        assert any(red > blue + 40 for red, _, blue in colours)  # the map, in colour
