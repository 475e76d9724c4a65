"""What readers do with the page: sort, slide, follow links, read it on a phone, in the dark and without scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Visit = Callable[..., Any]
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


def methods(page: Any, table: str) -> list[str]:
    return page.locator(f"{table} >> nth=0").locator("tbody th.method a").all_inner_texts()


def test_a_click_sorts_and_another_turns_the_order(visit: Visit) -> None:
    with visit() as page:
        head = page.locator("#weave table.overview th.number").first
        before = methods(page, "#weave table.overview")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        down = methods(page, "#weave table.overview")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert methods(page, "#weave table.overview") == down[::-1]
        assert sorted(down) == sorted(before)


def test_the_slider_moves_tables_and_address(visit: Visit) -> None:
    with visit() as page:
        slider = page.locator("#weave .alarms input")
        page.locator("#weave table.answer td.number").first.wait_for()
        before = page.locator("#weave table.answer").first.inner_text()
        slider.focus()
        page.keyboard.press("End")
        assert page.locator("#weave table.answer").first.inner_text() != before
        assert "alarms=50" in page.evaluate("decodeURIComponent(location.hash)")
        assert page.locator("#weave .alarms output").inner_text() == "50"


@pytest.mark.parametrize("fragment", ["weave-steel_1", "weave-methods", "bsdata-ballscrew"])
def test_a_readable_address_leads_there(visit: Visit, fragment: str) -> None:
    with visit(fragment) as page:
        place = page.locator(f"[id='{fragment}']")
        box, bar = place.bounding_box(), page.locator("nav.contents").bounding_box()
        assert bar["y"] + bar["height"] <= box["y"] + 1 < 900
        if fragment == "weave-steel_1":
            assert place.get_attribute("open") is not None
        sign = place.locator("a.sign").first
        assert sign.get_attribute("href") == f"#{fragment}"
        assert sign.is_visible()


def test_the_contents_mark_where_the_reader_is(visit: Visit) -> None:
    with visit() as page:
        here = page.locator("nav.contents a[aria-current]")
        assert here.inner_text() == "bsdata"
        page.locator("nav.contents a", has_text="weave").click()
        page.wait_for_function("document.querySelector('nav.contents a[aria-current]').hash.startsWith('#weave')")
        page.locator("nav.contents a[href='#weave-cost']").click()
        page.wait_for_function("document.querySelector('nav.contents a[aria-current]').hash === '#weave-cost'")
        assert page.locator("nav.contents").bounding_box()["y"] == 0


def test_on_a_phone_the_contents_fold_and_nothing_is_cut_off(visit: Visit) -> None:
    with visit(**PHONE) as page:
        button = page.locator("nav.contents button")
        assert not page.locator("nav.contents ol").first.is_visible()
        button.tap()
        assert button.get_attribute("aria-expanded") == "true"
        page.locator("nav.contents a", has_text="weave").first.tap()
        assert button.get_attribute("aria-expanded") == "false"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_links_lead_to_files_that_are_there(visit: Visit, board: Path) -> None:
    with visit() as page:
        links = page.locator("a[href$='.json'], a[href$='.csv']").evaluate_all("all => all.map(a => a.href)")
        assert len(links) == 8 + 1
        assert all(Path(link.removeprefix("file://")).is_file() for link in links)
        assert page.locator("a[href='https://arxiv.org/abs/2111.07677']").count()


def test_without_scripts_all_is_there(visit: Visit) -> None:
    with visit(java_script_enabled=False, color_scheme="dark") as page:
        assert page.locator("table.overview").count() == 2
        assert page.locator("nav.contents a[href='#weave-cost']").is_visible()
        assert not page.locator("nav.contents button").is_visible()
        assert page.locator("#weave .fixed svg").count()
