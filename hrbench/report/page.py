"""The leaderboard as files, first of all as one page that needs nothing beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hrbench._util.files import atomic
from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names
from hrbench.metrics.words import budget_text, odds_text
from hrbench.protocol import Protocol
from hrbench.report.anchors import SECTIONS, Anchors
from hrbench.report.annotation import NOT_KNOWN, annotation_sentences, annotation_table
from hrbench.report.answer import answer_sentences, answer_table, best_sentences, first_two_sentence, heading_text
from hrbench.report.cards import method_cards
from hrbench.report.closing import closing
from hrbench.report.columns import category_columns, image_columns, limit_text, size_columns
from hrbench.report.conditions import condition_table
from hrbench.report.cost import cost_table
from hrbench.report.critical_difference import compare_ranks, rank_sentences, rank_table
from hrbench.report.detection_limits import limit_names, limit_overview, limit_table
from hrbench.report.embedding import inline_svg
from hrbench.report.explorer import exploration, facets, json_text, page_parts, page_rows
from hrbench.report.latex import latex_tables
from hrbench.report.links import linked
from hrbench.report.operating import page_data, positions
from hrbench.report.picture_grid import picture_grid
from hrbench.report.pictures import FOLDER, LARGEST_PAGE, heat, place_pictures
from hrbench.report.plots import KINDS, MOST_ROWS, PlotData, best_rows, figures, gather
from hrbench.report.promise import promise_sentences, promises
from hrbench.report.protocol_comparison import SENTENCE, compare_protocols
from hrbench.report.published import published_tables, read_published
from hrbench.report.scores import AllScores
from hrbench.report.summary import Leaderboard, Summary, summarise
from hrbench.report.table import interval_note, metric_table, overview_table
from hrbench.report.text import csv_table, markdown_page
from hrbench.report.without_masks import has_masks, left_open_notes
from hrbench.runs.store import Run

__all__ = ["html_page", "write_leaderboard"]

log = logging.getLogger("hrbench")

_ANSWER = ("matched", "limits", "froc")
_AVERAGED = ("sizes", "diameters", "differences", "cost")
_SINGLE = (*_ANSWER, *_AVERAGED)
_OVERVIEW = (*_AVERAGED, "critical-difference", "curves")
"""Plots above the categories; with a single one the others stand in its own section."""


def write_leaderboard(
    runs: Sequence[Run],
    destination: Path,
    protocol: Protocol,
    *,
    summary: Summary | None = None,
    assets: bool = False,
) -> dict[str, Path]:
    """Write ``leaderboard.md``, ``.csv``, ``.tex`` and ``.html`` into the folder `destination`.

    Parameters
    ----------
    runs : sequence of Run
    destination : Path
        Made if it does not exist.
    protocol : Protocol
        Whose records count.
    summary : Summary, optional
        Of these runs, where it is there already.
    assets : bool
        Write the pictures into the folder ``leaderboard-pictures`` beside the page; else they stand in the page, as far
        as it stays small enough to be sent.

    Returns
    -------
    dict of str to Path
        The files by suffix: ``md``, ``csv``, ``tex``, ``html``.

    Raises
    ------
    HrbenchError
        If no run was measured under `protocol`.
    """
    summary = summary or summarise(runs, protocol)
    texts = {
        "md": markdown_page(summary),
        "csv": csv_table(summary),
        "tex": latex_tables(summary),
        "html": html_page(summary, folder=Path(destination), assets=assets),
    }
    paths = {}
    for suffix, text in texts.items():
        paths[suffix] = Path(destination) / f"leaderboard.{suffix}"
        with atomic(paths[suffix]) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return paths


def _units(summary: Summary) -> str:
    return " or ".join(dict.fromkeys(board.units for board in summary.leaderboards))


@cache
def _template() -> jinja2.Template:
    """Return the page's template: reading it takes longer than filling it."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"linked": linked, "tall": _tall}
    return environment.get_template("page.html")


def _tall(svg: str) -> str:
    """Return how tall a figure is for its width."""
    found = re.match(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return f"{float(found[2]) / float(found[1]):.4f}" if found else ""


def html_page(summary: Summary, *, folder: Path | None = None, assets: bool = False) -> str:
    """Return the page: tables, plots, pictures, style and script in one text.

    Parameters
    ----------
    summary : Summary
    folder : Path, optional
        Where the page will lie, with the leaderboard's other files: what lies there too is linked.
    assets : bool
        Write pictures into a folder in `folder`.
    """
    anchors, cards = Anchors(), {}
    for name in ("published", "hint"):
        anchors.of(name)
    datasets = []
    for board in summary.leaderboards:
        datasets.append(dataset := _dataset(board, anchors, folder))
        for of in sorted((row.configuration for row in board.rows), key=lambda of: of.identity):
            cards[dataset["anchor"], of.number] = anchors.of(
                board.dataset, of.method, of.preset, of.view, tell="/".join(of.identity)
            )
    places = [(dataset["anchor"], [part["anchor"] for part in dataset["categories"]]) for dataset in datasets]
    rows = page_rows(summary)
    render = partial(
        _template().render,
        datasets=datasets,
        facets=facets(summary),
        explorer={"rows": len(rows), "data": json_text({"rows": rows, "parts": page_parts(summary, places)})},
        card_anchors=cards,
        row_names={row.configuration.number: row.configuration.short for b in summary.leaderboards for row in b.rows},
        beside=["csv", "md", "tex"] if folder is not None else [],
        protocol=summary.protocol,
        headline=limit_text(summary.protocol.headline_fpr),
        intervals=interval_note(summary.protocol, _units(summary)),
        reliable=limit_names(summary.protocol.pod)[1:],
        odds=odds_text(summary.protocol.pod.probability),
        sentence=SENTENCE,
        published=published_tables(read_published(), [board.dataset for board in summary.leaderboards]),
        updated=max(run.created for board in summary.leaderboards for run in board.runs),
    )
    grids = [
        (category, picture_grid(board, category["name"]))
        for board, dataset in zip(summary.leaderboards, datasets, strict=True)
        for category in dataset["categories"]
    ]
    beside = folder / FOLDER if assets and folder is not None else None
    pictured = {"heat": heat() if any(grid.lines for _, grid in grids) else None, "assets": beside is not None}
    place_pictures(grids, LARGEST_PAGE - len(render(**pictured).encode()), beside)
    return render(**pictured).lstrip()


def _dataset(board: Leaderboard, anchors: Anchors, folder: Path | None) -> dict[str, Any]:
    """Return what the page shows of one dataset."""
    data, categories = gather(board), board.categories
    anchor = anchors.of(board.dataset)
    at = {name: anchors.of(board.dataset, name) for name in SECTIONS}
    counts = {run.category: run for run in board.runs}.values()
    answer, limits = _answer(board, data.scores), limit_overview(data.limits, best_rows(board))
    cost, comparison = cost_table(board), compare_protocols(board)
    explore = exploration(board)
    conditions = condition_table(board)
    there = {"found": answer, "overall": answer, "limits": limits, "cost": cost, "protocols": comparison}
    there["conditions"] = conditions
    there["pairs"] = explore and explore["matrices"]
    there["ranks"] = ranking = _ranking(board)
    there["annotation"] = annotation = _annotation(board)
    return {
        "name": board.dataset,
        "anchor": anchor,
        "at": at,
        "sections": [(at[name], label) for name, label in SECTIONS.items() if there.get(name, True)],
        "notes": [
            *left_open_notes(board),
            *board.notes,
            *_shown(board),
            *[NOT_KNOWN] * (has_masks(board) and not annotation),
        ],
        "masked": has_masks(board),
        "facts": {
            "categories": len(categories),
            "test": sum(run.test for run in counts),
            "defective": sum(run.defective for run in counts),
            "defects": sum(area.size for area in data.areas.values()) if len(data.areas) == len(categories) else 0,
        },
        "answer": answer,
        "overview": overview_table(board),
        "plots": _svg(board, data, "", anchors.short(), _OVERVIEW if len(categories) > 1 else _SINGLE),
        "categories": [_category(board, data, category, anchors) for category in categories],
        "limits": limits,
        "conditions": conditions,
        "cost": cost,
        "comparison": comparison,
        "cards": method_cards(board, folder),
        "explore": explore,
        "ranking": ranking,
        "annotation": annotation,
    }


def _ranking(board: Leaderboard) -> dict[str, Any] | None:
    """Return what the page says of ranks over several categories."""
    if len(board.categories) < 2:
        return None
    found = compare_ranks(best_rows(board))
    if isinstance(found, str):
        return {"table": None, "sentences": [found]}
    return {"table": rank_table(found), "sentences": rank_sentences(found)}


def _annotation(board: Leaderboard, category: str = "") -> dict[str, Any] | None:
    """Return what the page says of the same maps under other masks; None where that is not known."""
    table = annotation_table(board, category)
    return None if table is None else {"table": table, "sentences": annotation_sentences(board, category)}


def _shown(board: Leaderboard) -> list[str]:
    """Say what plots leave out."""
    rows = len(board.rows)
    return [f"Plots and detection limits show the best {MOST_ROWS} of {rows} rows."] * (rows > MOST_ROWS)


def _answer(board: Leaderboard, scores: AllScores) -> dict[str, Any] | None:
    """Return what the first table of a dataset needs, and the page's script; None without any alarm scores."""
    table = answer_table(scores, board)
    if table is None or not has_masks(board):
        return None
    categories, headline = board.categories, board.protocol.alarm.headline
    if len(categories) == 1:
        sentences = answer_sentences(scores, board, categories[0])
    else:
        sentences = best_sentences(scores, board)
    stops = positions(scores, board.protocol)
    return {
        "data": Markup(page_data(scores, board)),
        "stops": [budget_text(stop) for stop in stops],
        "start": stops.index(headline),
        "headline": budget_text(headline),
        "budget": heading_text(scores, headline),
        "overall": {
            "number": "",
            "table": table,
            "pair": first_two_sentence(table, board),
            "sentences": sentences,
        },
        "closing": closing(scores, board, categories[0]) if len(categories) == 1 else None,
        "drift": promise_sentences(board),
        "notes": table.notes,
    }


def _category(board: Leaderboard, data: PlotData, category: str, anchors: Anchors) -> dict[str, Any]:
    """Return what the page shows of one category."""
    protocol = board.protocol
    counted = f"AUPRO@{limit_text(protocol.headline_fpr)}"
    groups = (
        (f"{counted}, quarters", DISJOINT),
        (f"{counted}, cumulative", CUMULATIVE),
        (f"{counted} by equivalent diameter, px", diameter_names(protocol.size_bins)),
    )
    masked = has_masks(board, category)
    columns = category_columns(protocol) if masked else image_columns(protocol)
    sizes = [column for group, subsets in groups for column in size_columns(protocol, subsets, group)]
    several = len(board.categories) > 1
    answered: dict[str, Any] | None = None
    if any(name == category and of[0].areas.size for (name, _), of in data.scores.items()):
        answered = {
            "number": board.categories.index(category),
            "table": None,
            "pair": "",
            "sentences": [],
            "closing": None,
        }
        if several:  # the only category's stands above
            answered["table"] = table = answer_table(data.scores, board, category)
            answered["pair"] = first_two_sentence(table, board, category) if table else ""
            answered["sentences"] = answer_sentences(data.scores, board, category)
            answered["closing"] = closing(data.scores, board, category)
    return {
        "name": category,
        "anchor": anchors.of(board.dataset, category),
        "answer": answered,
        "metrics": metric_table(board, columns, category, drop_empty=True, caption="All metrics, mean over seeds"),
        "sizes": metric_table(board, sizes, category, counts=True, caption="By size of the defects, mean over seeds")
        if masked
        else None,
        "conditions": condition_table(board, category) if several else None,
        "promises": promises(board, category),
        "limits": limit_table(data.limits, best_rows(board), category) if masked else None,
        "annotation": _annotation(board, category) if several else None,  # the only category's stands above
        "plots": _svg(board, data, category, anchors.short(), [k for k in KINDS if several or k not in _SINGLE]),
        "pictures": None,  # placed when it is known how much room there is
    }


def _svg(board: Leaderboard, data: PlotData, category: str, prefix: str, kinds: Sequence[str]) -> dict[str, Markup]:
    """Return the plots as markup: matplotlib has escaped the names in them."""
    what = {
        "sizes": "AUPRO per quarter of the defects by area, for every row of the table",
        "diameters": "AUPRO per equivalent diameter of the defects, for every row of the table",
        "matched": "Probability of detection over the area of the defect, at equal false alarms",
        "limits": "The smallest area that is found reliably over the false alarms per 100 good images",
        "froc": "Share of the defects that are found over the false alarms per 100 good images, by their size",
        "ranks": "The false alarms that finding each defect costs, over its diameter",
        "alarms": "Alarm scores of good and of defective images, with the thresholds",
        "differences": "Differences to the first row on the same images, with their intervals",
        "critical-difference": "Mean ranks over the categories, with bars that join rows that are not told apart",
        "curves": "PRO and ROC curves over a logarithmic false-positive rate",
        "detection": "Probability of detection over the area of the defect, with the areas of hits and misses",
        "cost": "AUPRO over the time per megapixel, for every row of the table above, with the Pareto front",
    }
    drawn = figures(board, data, category, titled=False, kinds=kinds)
    return {
        kind: Markup(inline_svg(figure, f"{prefix}-{kind}", f"{what[kind]}: {category or board.dataset}"))
        for kind, figure in drawn.items()
    }
