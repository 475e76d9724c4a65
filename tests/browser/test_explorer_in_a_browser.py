"""Filtering, ranking and comparing on the page, by mouse and keyboard, and what the address keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Visit = Callable[..., AbstractContextManager[Any]]
OVERVIEW = "#weave table.overview tbody tr:visible"


def hash_of(page: Any) -> str:
    return str(page.evaluate("decodeURIComponent(location.hash)"))


def test_chips_and_search_filter_every_table(visit: Visit) -> None:
    with visit() as page:
        rows, shown = page.locator(OVERVIEW), page.locator(".explore .shown")
        everywhere = page.locator("[data-of]:visible")
        assert rows.count() == 3
        before = everywhere.count()
        page.locator(".chip", has_text="tiled:256:64").click()
        assert shown.inner_text() == "1 of 3 rows"
        assert rows.count() == 1
        assert everywhere.count() < before / 2
        assert hash_of(page) == "#view=tiled-256-64"
        assert page.locator(".filtered").is_visible()
        page.locator("#search").fill("fastflow")
        assert "nothing matches" in shown.inner_text()
        assert not page.locator("#weave").is_visible()
        page.locator(".filtered .all").click()
        assert rows.count() == 3
        assert hash_of(page) == ""
        page.locator(".chip", has_text="FastFlow").click()
        assert page.locator("#weave").is_visible()
        assert not page.locator("#bsdata").is_visible()
        page.locator(".chip[data-value=bsdata]").click()
        assert "nothing matches" in shown.inner_text()
        page.locator(".filtered .all").click()
        page.locator("#search").fill("ballscrew")
        assert page.locator("#bsdata-ballscrew").is_visible()
        assert not page.locator("#weave-fabric").is_visible()


def test_a_choice_is_a_step_back(visit: Visit) -> None:
    with visit() as page:
        rows = page.locator(OVERVIEW)
        page.locator(".chip", has_text="tiled:256:64").click()
        page.locator("#weave .ranking select").first.select_option("image_auroc")
        assert hash_of(page) == "#view=tiled-256-64&rank=image_auroc"
        page.go_back()
        assert hash_of(page) == "#view=tiled-256-64"
        assert page.locator("#weave .ranking select").first.input_value() == "aupro"
        page.go_back()
        page.wait_for_function("location.hash === ''")
        assert rows.count() == 3
        page.go_forward()
        page.wait_for_function("location.hash !== ''")
        assert rows.count() == 1
        page.evaluate("location.hash = 'weave-categories'")
        page.wait_for_function("location.hash.includes('view')")
        assert hash_of(page) == "#weave-categories&view=tiled-256-64"
        assert rows.count() == 1


def test_rank_by_any_metric_drives_table_and_heat(visit: Visit) -> None:
    with visit() as page:
        ranking, heat = page.locator("#weave .ranking"), page.locator("#weave table.heat")
        assert heat.locator("caption").inner_text().startswith("AUPRO@0.05")
        cell = heat.locator("tbody td").first
        before = cell.inner_text()
        ranking.locator("select").first.select_option("pixel_ap")
        assert heat.locator("caption").inner_text().startswith("pixel AP")
        assert cell.inner_text() != before
        values = [float(text) for text in ranking.locator("table.ranked td.number span").all_inner_texts()]
        assert values == sorted(values, reverse=True)
        assert ranking.locator("td.strip svg circle").count() == 3 * 2
        heat.locator("thead a").first.click()
        page.locator("#weave-fabric[open]").wait_for()  # opened by an event that comes after the click


def test_two_ticked_rows_are_compared(visit: Visit) -> None:
    with visit() as page:
        ranking = page.locator("#weave .ranking")
        ticks = ranking.locator("tbody input")
        ticks.nth(0).focus()
        page.keyboard.press("Space")
        assert "Tick another row" in ranking.locator("div.two").inner_text()
        ticks.nth(2).check()
        assert "minus" in ranking.locator("div.two h4").inner_text()
        assert ranking.locator("table.two tbody tr").count() == 5  # all and by size; no draws are kept
        assert "which is better cannot be told (no draws)" in ranking.locator("div.two").inner_text()
        assert "0.05, all defects: " in ranking.locator("div.two > p").first.inner_text()
        ranking.locator("select").nth(2).select_option("_tiny")  # what is ranked by comes first
        assert "0.05, tiny defects: " in ranking.locator("div.two > p").first.inner_text()
        ticks.nth(1).check()
        assert not ticks.nth(0).is_checked()
        kept = hash_of(page)
    with visit(kept[1:]) as page:
        assert page.locator("#weave .ranking .two h4").is_visible()


def test_an_address_brings_everything_back(visit: Visit) -> None:
    with visit("weave-fabric&alarms=10&view=tiled-256-64&q=l2bt&rank=aupro@0.3_tiny") as page:
        assert page.locator("#weave .alarms output").inner_text() == "10"
        assert page.locator("#search").input_value() == "l2bt"
        assert page.locator(OVERVIEW).count() == 1
        chosen = [page.locator("#weave .ranking select").nth(k).input_value() for k in range(3)]
        assert chosen == ["aupro", "@0.3", "_tiny"]
        assert page.locator("#weave-fabric").get_attribute("open") is not None
        assert page.locator("#weave-fabric").bounding_box()["y"] < 900


def test_without_a_script_the_tables_stand(visit: Visit) -> None:
    with visit(java_script_enabled=False) as page:
        assert not page.locator(".explore").is_visible()
        assert not page.locator(".ranking").first.is_visible()
        assert page.locator("table.heat").is_visible()
        assert page.locator("[data-of]:visible").count() > 10


def test_plots_out_of_sight_take_the_height_that_they_will_have(visit: Visit) -> None:
    """Else a link lands elsewhere, as what it passes grows or shrinks."""
    with visit() as page:
        plots = page.locator(".plot > .scroll:visible")
        assert plots.count() > 2
        for number in range(plots.count()):
            plot = plots.nth(number)
            kept = plot.evaluate("e => parseFloat(getComputedStyle(e).containIntrinsicHeight.replace('auto', ''))")
            plot.scroll_into_view_if_needed()
            page.wait_for_timeout(100)
            assert abs(plot.locator("svg").bounding_box()["height"] - kept) < 25
