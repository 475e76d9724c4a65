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
        page.wait_for_function(
            "before => document.querySelector('#weave table.answer').innerText !== before", arg=before
        )
        assert "alarms=50" in page.evaluate("decodeURIComponent(location.hash)")
        assert page.locator("#weave .alarms output").inner_text() == "50"


@pytest.mark.parametrize("fragment", ["weave-steel_1", "weave-methods", "bsdata-ballscrew", "bsdata-pictures"])
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
        links = page.locator("nav.contents li li a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert "#bsdata-pictures" in links  # of several categories each has its own
        assert "#weave-pictures" not in links
        page.locator("nav.contents a", has_text="weave").click()
        page.locator("nav.contents a[aria-current][href^='#weave']").wait_for()
        page.locator("nav.contents a[href='#weave-cost']").click()
        page.locator("nav.contents a[aria-current][href='#weave-cost']").wait_for()
        assert page.locator("nav.contents").bounding_box()["y"] == 0
        page.locator(".chip", has_text="bsdata").click()  # hides the other dataset
        page.locator("nav.contents a[aria-current][href^='#bsdata']").wait_for()


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


def test_hints_come_by_pointer_and_go_by_escape(visit: Visit) -> None:
    with visit() as page:
        cell = page.locator("#weave table.overview td.number[title]").first
        title = cell.get_attribute("title")
        hint = page.locator("#hint")
        assert not hint.is_visible()
        cell.hover()
        hint.wait_for(state="visible")
        assert hint.inner_text() == title
        hint.hover()  # it stays, to be read
        page.wait_for_timeout(300)
        assert hint.is_visible()
        page.keyboard.press("Escape")
        assert not hint.is_visible()
        assert cell.get_attribute("title") == title


def test_a_table_is_one_stop_of_the_tab_key_and_arrows_move_in_it(visit: Visit) -> None:
    with visit() as page:
        page.locator("#weave table.overview thead button").first.focus()
        for key in ("ArrowDown", "ArrowRight", *["ArrowRight"] * 4):
            page.keyboard.press(key)
        focused = page.locator(":focus")
        assert focused.evaluate("e => e.matches('#weave table.overview tbody tr:first-child > td')")
        hint = page.locator("#hint")
        assert hint.is_visible()
        assert focused.get_attribute("aria-describedby") == "hint"
        before = hint.inner_text()
        page.keyboard.press("ArrowDown")
        assert hint.inner_text() != before
        page.keyboard.press("Control+Home")
        page.keyboard.press("Enter")  # a head sorts as before
        assert page.locator(":focus").evaluate("e => e.closest('th').getAttribute('aria-sort')") == "descending"
        page.keyboard.press("Tab")
        assert not page.locator(":focus").evaluate("e => !!e.closest('#weave table.overview')")
        stops = (
            "[...document.querySelectorAll('table[role=grid]')].map(t => t.querySelectorAll('[tabindex=\"0\"]').length)"
        )
        assert set(page.evaluate(stops)) == {1}
        page.locator("#weave .ranking select").first.select_option(index=1)  # its rows are made anew
        assert page.locator("#weave table.ranked").get_attribute("role") == "grid"
        assert set(page.evaluate(stops)) == {1}
        page.locator("#weave-fabric > summary").click()
        page.wait_for_timeout(50)
        assert page.locator("#weave-fabric table.category").first.get_attribute("role") == "grid"


def test_a_tap_shows_a_hint_and_another_hides_it(visit: Visit) -> None:
    with visit(**PHONE) as page:
        cell = page.locator("#weave table.answer td.number[title]").first
        title = cell.get_attribute("title")
        page.locator("nav.contents button").focus()  # a tap takes the focus away
        cell.tap()
        assert page.locator("#hint").inner_text() == title
        box = page.locator("#hint").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        page.locator("#weave > h2").tap(position={"x": 1, "y": 1})
        assert not page.locator("#hint").is_visible()


def test_a_hint_follows_the_slider(visit: Visit) -> None:
    with visit() as page:
        cell = page.locator("#bsdata table.answer td.number[title]").last
        cell.hover()
        hint = page.locator("#hint")
        hint.wait_for(state="visible")
        before = hint.inner_text()
        page.locator("#bsdata .alarms input").evaluate("e => { e.value = e.max; e.dispatchEvent(new Event('input')); }")
        page.wait_for_timeout(50)
        assert hint.inner_text() != before
        assert page.locator("#bsdata table.answer [data-hinted]").get_attribute("title") is None


def readout(page: Any) -> list[str]:
    shown = page.locator("#readout")
    shown.wait_for(state="visible")
    return shown.inner_text().split("\n")


def test_a_plot_answers_to_the_pointer_and_to_keys(visit: Visit) -> None:
    with visit() as page:
        plot = page.locator("#weave svg[aria-label^='AUPRO per quarter']").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        plot.hover(position={"x": 0.25 * box["width"], "y": 0.3 * box["height"]})
        _, panel, value, place = readout(page)
        assert place.startswith("small")
        assert panel == "Quarters of the defects, by area"
        assert value.startswith("AUPRO up to FPR 0.05: 0.")
        region = plot.locator("xpath=..")
        region.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        first = readout(page)  # the keys go on from the pointer
        assert first[-1].startswith("large")
        assert page.locator("#readout").get_attribute("aria-live") == "polite"
        page.keyboard.press("ArrowDown")
        second = readout(page)
        assert second[0] != first[0]
        names = page.locator("main").evaluate("e => JSON.parse(e.dataset.rows)")
        (number,) = (number for number, name in names.items() if name == second[0])
        row = page.locator(f"#weave table.overview tr[data-of='{number}']").inner_text()
        assert second[2].rpartition(" ")[2] in row.split()
        page.keyboard.press("Escape")
        assert not page.locator("#readout").is_visible()


def test_the_drawn_curve_answers_too(visit: Visit) -> None:
    with visit() as page:
        region = page.locator("#bsdata .pod .scroll")
        region.focus()
        page.keyboard.press("ArrowRight")
        assert readout(page)[-1].startswith("area, px: ")
        page.keyboard.press("ArrowRight")
        assert page.locator("#bsdata .pod svg .reading").count() == 1


def test_an_entry_of_a_legend_picks_its_method_out_everywhere(visit: Visit) -> None:
    with visit() as page:
        keys = page.locator("#weave svg[aria-label^='AUPRO per quarter'] [data-key][role=button]")
        key, number = keys.first, keys.first.get_attribute("data-key")
        key.focus()
        page.keyboard.press("Enter")
        assert key.get_attribute("aria-pressed") == "true"
        faint = "e => getComputedStyle(e).opacity"
        for plot in ("#weave svg[aria-label^='AUPRO per quarter']", "#bsdata .pod svg"):
            others = page.locator(f"{plot} [data-row]:not([data-row='{number}'])").first
            assert float(others.evaluate(faint)) < 0.5
        row = page.locator(f"#weave table.overview tr[data-of='{number}'] > td").first
        other = page.locator(f"#weave table.overview tr:not([data-of='{number}']) > td").first
        colour = "e => getComputedStyle(e).backgroundColor"
        assert row.evaluate(colour) != other.evaluate(colour)
        page.keyboard.press("ArrowRight")  # one stop, arrows move
        assert page.locator(":focus").get_attribute("data-key") != number
        page.locator("#bsdata .alarms input").focus()
        page.keyboard.press("End")  # the legend is written anew
        page.keyboard.press("Escape")
        assert key.get_attribute("aria-pressed") == "false"
        page.locator("#bsdata .pod .legend button").first.click()
        assert page.locator("#bsdata .pod .legend button").first.get_attribute("aria-pressed") == "true"
        page.locator(".chip", has_text="FastFlow").click()  # what is hidden is not picked out
        assert not page.locator("[data-key][aria-pressed=true]").count()


def test_an_open_dialog_keeps_escape_for_itself(visit: Visit) -> None:
    with visit() as page:
        key = page.locator("#weave svg[aria-label^='AUPRO per quarter'] [data-key][role=button]").first
        key.click()
        page.evaluate("() => document.body.appendChild(document.createElement('dialog')).showModal()")
        page.keyboard.press("Escape")
        assert key.get_attribute("aria-pressed") == "true"
        page.keyboard.press("Escape")
        assert key.get_attribute("aria-pressed") == "false"
