"""What reports say of the same maps under masks one pixel wider and narrower."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hrbench.protocol import Protocol
from hrbench.report import page
from hrbench.report.annotation import (
    NOT_KNOWN,
    annotation_rows,
    annotation_sentences,
    annotation_table,
    annotation_values,
)
from hrbench.report.summary import summarise
from hrbench.report.terminal import annotation_text
from hrbench.report.text import markdown_page
from hrbench.runs.store import Run

from .conftest import CONFIGS, board_of

Factory = Callable[..., Run]
SIZES = ("all", "tiny", "small", "medium", "large")
COUNTS = {"all": 92, "tiny": 30, "small": 30, "medium": 30, "large": 2}


def under_masks(run: Run, narrower: float, annotated: float, wider: float, vanished: int = 0) -> Run:
    """Give a run these values of all metrics and sizes, in memory, with an interval of every change."""
    rows = [
        {
            "protocol": "native", "masks": masks, "metric": metric, "subset": size, "fpr_limit": math.nan,
            "value": value, "change": value - annotated, "change_low": value - annotated - 0.01,
            "change_high": value - annotated + 0.01, "components": COUNTS[size],
            "vanished": vanished if masks == "eroded" and size in ("all", "tiny") else 0,
        }
        for masks, value in (("eroded", narrower), ("annotated", annotated), ("dilated", wider))
        for metric in ("aupro", "recall", "miou")
        for size in SIZES
    ]  # fmt: skip
    run.__dict__["annotation"] = pd.DataFrame(rows)
    return run


def test_the_table_has_values_as_annotated_and_their_span(make_run: Factory, protocol: Protocol) -> None:
    run = under_masks(make_run(CONFIGS[0]), 0.31, 0.35, 0.43, vanished=3)
    table = annotation_table(board_of([run], protocol))
    assert table is not None
    assert [name for name, _ in table.groups] == ["AUPRO@0.05", "recall at the threshold set on normal images",
                                                  "mean IoU at the threshold set on normal images"]  # fmt: skip
    every, tiny, *_, large = table.cells[0][:5]
    assert (every.text, every.small) == ("0.350", ("0.310–0.430",))
    assert tiny.title == (
        "0.3500 as annotated; one pixel narrower: 0.3100, -0.0400 (interval -0.0500 to -0.0300), without 3 of 30 "
        "defects; one pixel wider: 0.4300, +0.0800 (interval +0.0700 to +0.0900)"
    )
    assert large.text == "n = 2"
    assert table.notes[1].startswith("3 of 92 defects (3 tiny) have no pixel left where masks are one pixel narrower")


def test_what_has_no_threshold_is_left_out_or_a_dash_and_notes_say_why(make_run: Factory, protocol: Protocol) -> None:
    both = [under_masks(make_run(config), 0.31, 0.35, 0.43) for config in CONFIGS[:2]]
    without = both[0].annotation
    without.loc[without["metric"] == "miou", ["value", "change", "change_low", "change_high"]] = math.nan
    alone, beside = (annotation_table(board_of(runs, protocol)) for runs in (both[:1], both))
    assert alone is not None
    assert beside is not None
    assert [name.partition(" at")[0] for name, _ in alone.groups] == ["AUPRO@0.05", "recall"]
    assert alone.notes[-1].startswith("Left out: mean IoU at the threshold set on normal images, for no row has that")
    assert len(beside.groups) == 3
    assert "–" in {cell.text for line in beside.cells for cell in line}
    assert beside.notes[-1].startswith("–: the row has no such threshold")


def test_sentences_say_what_a_pixel_moves_and_whose_order_hangs_on_it(make_run: Factory, protocol: Protocol) -> None:
    first = under_masks(make_run(CONFIGS[0]), 0.31, 0.35, 0.43)
    second = under_masks(make_run(CONFIGS[1]), 0.32, 0.34, 0.36)
    names = [row.configuration.short for row in board_of([first, second], protocol).rows]
    said = annotation_sentences(board_of([first, second], protocol))
    assert said[0] == (
        "A mask one pixel wider or narrower moves AUPRO@0.05 of tiny defects by up to 0.080 "
        f"({names[0]}: 0.310 to 0.430)."
    )
    assert said[1] == (
        f"By AUPRO@0.05 of all defects the order hangs on the annotation: {names[0]} is before {names[1]} as annotated "
        "(0.350 against 0.340), and behind it where masks are one pixel narrower (0.310 against 0.320)."
    )
    assert len(said) == 5  # three pairs are named, of four sizes by both metrics
    assert said[-1] == "The same holds of 5 more pairs of rows, at some size."
    under_masks(second, 0.30, 0.34, 0.36)
    said = annotation_sentences(board_of([first, second], protocol))
    assert said[1:] == [
        "No two rows change places by it, by AUPRO@0.05 or recall at the threshold set on normal images, at any size."
    ]


def test_means_are_over_seeds_and_then_over_categories(make_run: Factory, protocol: Protocol) -> None:
    runs = [
        under_masks(make_run(CONFIGS[0], "weave", "fabric", 0), 0.1, 0.2, 0.3, vanished=1),
        under_masks(make_run(CONFIGS[0], "weave", "fabric", 1), 0.3, 0.4, 0.5, vanished=1),
        under_masks(make_run(CONFIGS[0], "weave", "wood", 0), 0.4, 0.5, math.nan),
    ]
    board = board_of(runs, protocol, "weave")
    number = board.rows[0].configuration.number
    whole, fabric = (annotation_values(board, name)[number, "aupro", "tiny"] for name in ("", "fabric"))
    assert fabric.values == pytest.approx({"eroded": 0.2, "annotated": 0.3, "dilated": 0.4})
    assert whole.values == pytest.approx(fabric.values)  # wood has no value under one of the masks
    assert (whole.components, whole.vanished, fabric.vanished) == (60, 1, 1)
    assert fabric.ends["dilated"] == pytest.approx([0.09, 0.11])
    assert all(map(math.isnan, whole.ends["dilated"]))
    assert annotation_values(board)[number, "aupro", "large"].components == 4


def test_rows_of_earlier_versions_are_left_out_with_a_word(make_run: Factory, protocol: Protocol) -> None:
    known, old = under_masks(make_run(CONFIGS[0]), 0.31, 0.35, 0.43), make_run(CONFIGS[1])
    board = board_of([known, old], protocol)
    table = annotation_table(board)
    assert table is not None
    assert len(table.rows) == 1
    lacking = next(row for row in board.rows if row not in table.rows)
    assert table.notes[-1] == (
        f"Left out, measured by an earlier version or not in all categories: {lacking.configuration.short}."
    )
    assert annotation_table(board_of([old], protocol)) is None
    assert annotation_sentences(board_of([old], protocol)) == []


def test_the_page_markdown_terminal_and_csv_say_it(make_run: Factory, protocol: Protocol, tmp_path: Path) -> None:
    run, old = under_masks(make_run(CONFIGS[0]), 0.31, 0.35, 0.43), make_run(CONFIGS[1], "other")
    summary = summarise([run], protocol)
    html, markdown = page.html_page(summary), markdown_page(summary)
    text = annotation_text(summary.leaderboards[0], "ballscrew")
    for said in (html, markdown, text):
        assert said is not None
        assert "A mask one pixel wider or narrower moves" in said
        assert "0.310–0.430" in said
    assert 'id="bsdata-annotation">How far the annotation carries' in html
    assert "### How far the annotation carries" in markdown
    rows = annotation_rows(summary)
    assert len(rows) == 3 * 3 * 5
    assert set(rows["method"]) == {"fastflow"}
    unknown = page.html_page(summarise([old], protocol))
    assert NOT_KNOWN in unknown
    assert "annotation carries</h3>" not in unknown
