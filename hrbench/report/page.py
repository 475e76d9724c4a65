"""The leaderboard as files, first of all as one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hrbench._files import atomic
from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names
from hrbench.protocol import Protocol
from hrbench.report.cards import method_cards
from hrbench.report.columns import category_columns, limit_text, overview_columns, size_columns
from hrbench.report.configurations import printable
from hrbench.report.cost import cost_notes, cost_table
from hrbench.report.detection_limits import limit_names, limit_overview, limit_table
from hrbench.report.embedding import inline_jpeg, inline_svg
from hrbench.report.grid import grid
from hrbench.report.latex import latex_tables
from hrbench.report.plots import KINDS, PlotData, figures, gather
from hrbench.report.protocol_comparison import compare_protocols
from hrbench.report.published import published_tables, read_published
from hrbench.report.rows import interval_note, leaderboard_rows, rank_text
from hrbench.report.summary import Summary, lookup, summarise
from hrbench.report.tables import csv_table, markdown_page
from hrbench.store import Run

__all__ = ["html_page", "write_leaderboard"]

_PICTURES = 3
"""Pictures of one kind per configuration and category: the page stays light enough to be sent by mail."""

_SINGLE = ("sizes", "diameters", "cost")
_OVERVIEW = (*_SINGLE, "curves")
"""Plots above the categories; with a single one the others stand in its own section."""


def write_leaderboard(runs: Sequence[Run], destination: Path, protocol: Protocol) -> dict[str, Path]:
    """Write ``leaderboard.md``, ``.csv``, ``.tex`` and ``.html`` into the folder `destination`.

    Parameters
    ----------
    runs : sequence of Run
    destination : Path
        Made if it does not exist.
    protocol : Protocol
        Whose records count.

    Returns
    -------
    dict of str to Path
        The files by suffix: ``md``, ``csv``, ``tex``, ``html``.

    Raises
    ------
    HrbenchError
        If no run was measured under `protocol`.
    """
    summary = summarise(runs, protocol)
    texts = {
        "md": markdown_page(summary, runs),
        "csv": csv_table(summary),
        "tex": latex_tables(summary),
        "html": html_page(runs, summary),
    }
    paths = {}
    for suffix, text in texts.items():
        paths[suffix] = Path(destination) / f"leaderboard.{suffix}"
        with atomic(paths[suffix]) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return paths


def html_page(runs: Sequence[Run], summary: Summary) -> str:
    """Return the page: tables, plots, pictures, style and script in one text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"rank": rank_text, "spans": _spans}
    material = gather(runs, summary)
    datasets = [_dataset(runs, summary, material, name, f"d{number}") for number, name in enumerate(summary.notes)]
    template = environment.get_template("page.html")
    text = template.render(
        datasets=[dataset for dataset in datasets if dataset["overview"].rows],
        protocol=summary.protocol,
        headline=limit_text(summary.protocol.headline_fpr),
        intervals=interval_note(summary.protocol),
        reliable=limit_names(summary.protocol.pod)[1:],
        published=published_tables(read_published(), summary.notes),
        updated=max((str(run.config.get("created", "")) for run in runs), default=""),
    )
    return text.lstrip()


def _spans(heads: Sequence[tuple[str, ...]]) -> list[tuple[str, int]]:
    """Return the groups of neighbouring columns, and how many each spans."""
    return [(name, len(list(group))) for name, group in groupby(heads, key=lambda head: head[0])]


def _dataset(runs: Sequence[Run], summary: Summary, material: PlotData, name: str, anchor: str) -> dict[str, Any]:
    """Return what the page shows of one dataset."""
    protocol, cells = summary.protocol, lookup(summary, name)
    rows = leaderboard_rows(summary, name)
    names = summary.category_names(name)
    areas = {c: material.areas[name, c] for c in names if (name, c) in material.areas}
    counts = {}
    for row in summary.runs[summary.runs["dataset"] == name].to_dict("records"):
        counts[row["category"]] = runs[row["position"]].config["dataset"]
    return {
        "name": name,
        "anchor": anchor,
        "notes": summary.notes[name],
        "facts": {
            "categories": len(names),
            "test": sum(count.get("test", 0) for count in counts.values()),
            "defective": sum(count.get("test_defective", 0) for count in counts.values()),
            "defects": sum(areas[c].size for c in names) if len(areas) == len(names) else 0,
        },
        "overview": grid(overview_columns(protocol), rows, cells),
        "plots": _svg(summary, material, name, "", anchor, _OVERVIEW if len(names) > 1 else _SINGLE),
        "categories": [
            _category(runs, summary, material, name, category, f"{anchor}c{number}")
            for number, category in enumerate(names)
        ],
        "limits": limit_overview(material.limits, summary, name),
        "cost": cost_table(summary, name),
        "cost_notes": cost_notes(summary, name),
        "worth": compare_protocols(runs, summary, name),
        "cards": method_cards(runs, summary, name, rows, anchor),
    }


def _category(
    runs: Sequence[Run], summary: Summary, material: PlotData, dataset: str, category: str, anchor: str
) -> dict[str, Any]:
    """Return what the page shows of one category."""
    protocol, cells = summary.protocol, lookup(summary, dataset)
    rows = [row for row in leaderboard_rows(summary, dataset) if category not in row["missing"]]
    counted = Markup("AUPRO@{}").format(limit_text(protocol.headline_fpr))
    groups = (
        (f"{counted}, quarters", DISJOINT),
        (f"{counted}, cumulative", CUMULATIVE),
        (f"{counted} by equivalent diameter, px", diameter_names(protocol.size_bins)),
    )
    sizes = [column for group, subsets in groups for column in size_columns(protocol, subsets, group)]
    several = len(summary.category_names(dataset)) > 1
    return {
        "name": category,
        "anchor": anchor,
        "metrics": grid(category_columns(protocol), rows, cells, category, drop_empty=True),
        "sizes": grid(sizes, rows, cells, category, counts=True),
        "limits": limit_table(material.limits, summary, dataset, category),
        "plots": _svg(summary, material, dataset, category, anchor, [k for k in KINDS if several or k not in _SINGLE]),
        "pictures": [entry for row in rows if (entry := _pictures(runs, summary, dataset, category, row))],
    }


def _svg(
    summary: Summary, material: PlotData, dataset: str, category: str, prefix: str, kinds: Sequence[str]
) -> dict[str, Markup]:
    """Return the plots as markup: matplotlib has escaped the names in them."""
    what = {
        "sizes": "AUPRO per quarter of the defects by area, for every row of the table",
        "diameters": "AUPRO per equivalent diameter of the defects, for every row of the table",
        "curves": "PRO and ROC curves over a logarithmic false-positive rate",
        "detection": "Probability of detection over the area of the defect, with the areas of hits and misses",
        "cost": "AUPRO over the time per megapixel, for every row of the table above, with the Pareto front",
    }
    drawn = figures(summary, material, dataset, category, titled=False, kinds=kinds)
    return {
        kind: Markup(inline_svg(figure, f"{prefix}-{kind}", f"{what[kind]}: {category or dataset}"))
        for kind, figure in drawn.items()
    }


def _pictures(
    runs: Sequence[Run], summary: Summary, dataset: str, category: str, row: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the pictures of a configuration, from its run with the lowest seed that has any."""
    table = summary.runs
    same = (table["dataset"] == dataset) & (table["category"] == category)
    same &= table["configuration"] == row["configuration"]
    for position, seed in table[same].sort_values("seed")[["position", "seed"]].itertuples(index=False):
        shown: dict[str, list[dict[str, str]]] = {}
        for picture in runs[position].pictures:
            entries = shown.setdefault(picture.kind, [])
            if len(entries) < _PICTURES and picture.path.is_file():
                words = {"image": printable(picture.image), "caption": printable(picture.caption)}
                entries.append({"source": inline_jpeg(picture.path), **words})
        kinds = {kind: entries for kind, entries in shown.items() if entries}
        if kinds:
            return {"label": row["short"], "random": row["random"], "seed": seed, "kinds": kinds}
    return None
