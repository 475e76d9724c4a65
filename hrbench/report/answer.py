"""The answer to the question of the title: how small a defect is found reliably, at a number of false alarms.

The page's script says the same of every number of false alarms, word for word: see ``operating.js``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from hrbench._util.neighbours import TIMES
from hrbench.metrics import DISJOINT, equivalent_diameter
from hrbench.metrics.sizes import size_title
from hrbench.metrics.words import (
    alarms_text,
    counted,
    figure_text,
    finding,
    odds_text,
    opening,
    percent_text,
    pixels_text,
    range_text,
    seen,
)
from hrbench.protocol import Protocol
from hrbench.report.columns import Column
from hrbench.report.configurations import CountedRun
from hrbench.report.detection_limits import limit_names, missing_cell
from hrbench.report.differences import pair_sentence
from hrbench.report.operating import SUBSETS, Point, point_at
from hrbench.report.scores import AllScores, Interval, Scores
from hrbench.report.summary import MIN_COMPONENTS, Leaderboard, Row
from hrbench.report.table import Cell, Table

__all__ = [
    "MOST_SIZES",
    "answer_sentences",
    "answer_table",
    "best_sentences",
    "first_two_sentence",
    "heading_text",
    "hit_sentence",
    "sentence",
    "splinter_sentence",
]

MOST_SIZES = 3
"""Categories whose sizes have a column each; of more it is said in how many a size is found reliably."""
_MOST_NOTED = 2
_NO_GOOD = Cell("–", "no good test image")


def answer_table(
    scores: AllScores, board: Leaderboard, category: str = "", budget: float | None = None
) -> Table | None:
    """Return what is found in a category, or in all together (``""``), ranked by recall; None without any scores.

    Parameters
    ----------
    scores : dict
        See :func:`hrbench.report.scores.read_scores`; those of the lowest seed count.
    board : Leaderboard
    category : str
    budget : float, optional
        Share of the good images that may alarm; the protocol's headline by default.
    """
    protocol = board.protocol
    budget = protocol.alarm.headline if budget is None else budget
    chosen = [category] if category else board.categories
    many = len(chosen) > MOST_SIZES
    rows, lines, comparable, covered = [], [], [], []
    for row in board.rows:
        keys = [(name, row.configuration.number) for name in chosen]
        firsts = {name: scores[name, n][0] for name, n in keys if (name, n) in scores}
        if not firsts:
            continue
        points = {name: point_at(first, budget, protocol.pod) for name, first in firsts.items()}
        cells = {name: _category_cells(points[name], first, protocol) for name, first in firsts.items()}
        sizes = [cells[name][0] if name in cells else Cell("–", "no run, or no alarm scores") for name in chosen]
        if many:
            sizes = [_reached_cell(points, len(chosen), protocol.pod.probability)]
        one = len(chosen) == 1
        rest = next(iter(cells.values()))[1:] if one else _mean_cells(cells, [*points.values()])
        rows.append(row)
        lines.append([*sizes, *rest])
        comparable.append(not row.foreign and len(points) == len(chosen))
        covered.append([{name for name in cells if cells[name][k].sort} for k in range(1, len(rest) + 1)])
    if not rows:
        return None
    first = 1 if many else len(chosen)
    for column in range(len(lines[0]) - 1):
        if column < first:
            competes = comparable
        else:
            defined = [names[column - first] for names in covered]
            every = set().union(*(names for names, fair in zip(defined, comparable, strict=True) if fair))
            competes = [fair and names == every for names, fair in zip(defined, comparable, strict=True)]
        places = _places([line[column] for line in lines], competes, least=column < first and not many)
        for line, place in zip(lines, places, strict=True):
            line[column] = dataclasses.replace(line[column], place=place)
    order, ranks = _ranking([line[first] for line in lines], comparable, rows)
    return Table(
        columns=_columns(protocol, chosen),
        rows=tuple(
            dataclasses.replace(rows[at], rank=ranks[at], rank_low=math.nan, rank_high=math.nan) for at in order
        ),
        cells=tuple(tuple(lines[at]) for at in order),
        kind="answer",
        caption="Found at equal false alarms; area in px, ⌀ diameter of an equal circle",
        notes=tuple(_notes(scores, board)),
        ranked_by="Rank by recall at this number of false alarms",
    )


def _columns(protocol: Protocol, categories: Sequence[str]) -> tuple[Column, ...]:
    of, single = odds_text(protocol.pod.probability), len(categories) == 1
    reliable = limit_names(protocol.pod)[1]
    share = f"{100 * protocol.pod.share:g} %"
    sizes = [
        Column(reliable, f"finds {of}", "from" if single else name, least=True,
               line=reliable if single else f"{reliable} {name}",
               title=f"{reliable}: of defects of this area or more {of} are found" + f" in {name}" * (not single))
        for name in categories
    ]  # fmt: skip
    if len(categories) > MOST_SIZES:
        reached = f"Categories with an area from which on {of} defects are found, or that miss none; see their tables"
        sizes = [Column(f"{reliable}_reached", f"finds {of}", "categories", line=f"{reliable} in", title=reached)]
    recall = [
        Column(f"recall_{subset}", "defects hit", subset, line="recall" if subset == "all" else subset,
               title=f"{size_title(subset, protocol.size_bins)}: share hit, that is at least {share} of their pixels")
        for subset in SUBSETS
    ]  # fmt: skip
    rest = [
        Column("called", "defective images", "called", line="called", title="Share that alarms, wherever it does"),
        Column("called_right", "defective images", "rightly", line="rightly",
               title="Share that alarms with at least one of its defects hit"),
        Column("alarms", "good images", "alarm", line="alarms", title="Good test images that alarm, of all",
               contest=False, least=True),
    ]  # fmt: skip
    return (*sizes, *recall, *rest)


def _category_cells(point: Point, scores: Scores, protocol: Protocol) -> list[Cell]:
    """Return a90, recall by size, defective images called, and rightly, and good images that alarm."""
    alarms, level = point.alarms, protocol.bootstrap.level
    if not alarms.good:
        return [_NO_GOOD] * (len(SUBSETS) + 4)
    size, recall = scores.intervals_at(point.budget)
    size = seen(size, scores.areas.tolist())
    cells = [_size_cell(point, protocol.pod.probability, size, level)]
    for subset in SUBSETS:
        few = 1 if subset == "all" else MIN_COMPONENTS
        cell = _share_cell(*point.sizes[subset], "defects hit", few, "no defect of this size")
        if cell.sort and subset != "all":
            cell = dataclasses.replace(cell, bar=float(cell.sort))
        elif cell.sort and recall is not None:
            low, high = (f"{end:.2f}" for end in recall)
            title = f"{cell.title}; {100 * level:g} % interval {low} to {high}"
            cell = dataclasses.replace(cell, title=title, small=(f"{low}–{high}",))
        cells.append(cell)
    cells.append(_share_cell(point.called, point.images, "defective images alarm", 1, "no defective image"))
    right, missing = "defective images alarm with a defect hit", "no mask" if point.images else "no defective image"
    cells.append(_share_cell(point.right, point.masked, right, 1, missing))
    low, high = map(percent_text, alarms.interval(level))
    title = (
        f"{alarms.count:,} of {counted(alarms.good, 'good image')} alarm, {percent_text(alarms.rate)}; "
        f"{100 * level:g} % interval {low} to {high}"
    )
    cells.append(Cell(f"{alarms.count:,} / {alarms.good:,}", title, sort=repr(alarms.rate)))
    return cells


def _size_cell(point: Point, probability: float, interval: Interval | None, level: float) -> Cell:
    limit = point.reliable
    if limit.area is None:
        return missing_cell(limit)
    across = f"{float(equivalent_diameter(limit.area)):,.1f} px"
    small = [f"⌀ {across}"]
    title = (
        f"{odds_text(probability)} defects of {pixels_text(limit.area)} are found, the area of a circle {across} across"
    )
    if interval is not None:
        title += f"; {100 * level:g} % interval {range_text(*interval)}"
        small.append(_short(interval))
    return Cell(pixels_text(limit.area), title, sort=repr(limit.area), small=tuple(small))


def _reached_cell(points: Mapping[str, Point], categories: int, probability: float) -> Cell:
    """Return in how many of many categories a size is found reliably, or all that there is."""
    if not any(point.alarms.good for point in points.values()):
        return _NO_GOOD
    reached = []
    for name, point in points.items():
        hit, number = point.sizes["all"]
        if point.reliable.area is not None:
            reached.append(f"{name} {pixels_text(point.reliable.area)}")
        elif 0 < number == hit:
            reached.append(f"{name} the smallest seen")
    title = f"{odds_text(probability)} defects are found from: {'; '.join(reached)}"
    text = f"{len(reached)} / {categories}"
    return Cell(text, title if reached else "not reached in any category", sort=repr(float(len(reached))))


def _share_cell(hit: int, number: int, what: str, few: int, missing: str) -> Cell:
    if not number:
        return Cell("–", missing)
    if number < few:
        return Cell(f"n = {number}", f"only {counted(number, 'defect')}, no number below {few}")
    return Cell(f"{hit / number:.3f}", f"{hit:,} of {number:,} {what}", sort=repr(hit / number))


def _mean_cells(cells: dict[str, list[Cell]], points: Sequence[Point]) -> list[Cell]:
    """Return the means over categories of all cells but the first and the last, and the sum of the last."""
    means = []
    for column in range(1, len(SUBSETS) + 3):
        values = [float(line[column].sort) for line in cells.values() if line[column].sort]
        if not values:
            means.append(Cell("–", "no category has this number"))
            continue
        value, lacking = sum(values) / len(values), len(cells) - len(values)
        title = f"{min(values):.3f} to {max(values):.3f} over {len(values)} "
        title += "category" if len(values) == 1 else "categories"
        if lacking:
            title += f"; {lacking} of {len(cells)} without a value"
        bar = value if 1 < column <= len(DISJOINT) + 1 else None
        means.append(Cell(f"{value:.3f}", title, sort=repr(value), mark="°" if lacking else "", bar=bar))
    count, good = (sum(getattr(point.alarms, name) for point in points) for name in ("count", "good"))
    title = f"{count:,} of {counted(good, 'good image')} alarm, all categories together"
    return [*means, Cell(f"{count:,} / {good:,}", title, sort=repr(count / good)) if good else _NO_GOOD]


def _places(cells: Sequence[Cell], competes: Sequence[bool], least: bool) -> list[int]:
    """Return the places in a column: equal prints share theirs, and where all are equal there are none."""
    texts = [cell.text if fair and cell.sort else "" for cell, fair in zip(cells, competes, strict=True)]
    values = {text: float(cell.sort) for text, cell in zip(texts, cells, strict=True) if text}
    if len(values) < 2:
        return [0] * len(texts)
    order = sorted(values, key=lambda text: values[text] if least else -values[text])
    return [order.index(text) + 1 if text in order[:2] else 0 for text in texts]


def _ranking(recall: Sequence[Cell], comparable: Sequence[bool], rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """Return the rows' order, and their ranks by recall, NaN where not comparable; equal prints share their rank."""
    ranked = [fair and bool(cell.sort) for cell, fair in zip(recall, comparable, strict=True)]
    values = [float(cell.sort or -1) for cell in recall]
    order = sorted(range(len(rows)), key=lambda at: (not ranked[at], -values[at], rows[at].configuration.number))
    prints = [recall[at].text for at in order if ranked[at]]
    ranks = [1.0 + prints.index(cell.text) if fair else math.nan for cell, fair in zip(recall, ranked, strict=True)]
    return order, ranks


def splinter_sentence(scores: Sequence[Scores], budget: float, name: str = "") -> str:
    """Say how many of the tiny defects that are hit a far larger one beside them may have lit up; "" if none."""
    hit = sum(int((of.members("tiny") & (of.critical > of.limit(budget))).sum()) for of in scores)
    beside = sum(int((of.members("tiny") & of.splinters(budget)).sum()) for of in scores)
    if not beside:
        return ""
    whose = f"that {name} hits" if name else "hit"
    if beside == hit:
        start = f"The one tiny defect {whose} lies" if hit == 1 else f"All {hit:,} tiny defects {whose} lie"
    else:
        start = f"Of the {hit:,} tiny defects {whose} {beside:,} lie{'s' * (beside == 1)}"
    return f"{start} beside one at least {TIMES} times as large that is hit too, and may be lit up by it."


def _splinter_note(scores: AllScores, board: Leaderboard) -> str:
    """Say it of all rows at the headline's budget, those of the lowest seeds."""
    budget = board.protocol.alarm.headline
    texts = []
    for row in board.rows:
        of_row = [of[0] for (_, number), of in scores.items() if number == row.configuration.number]
        texts.append(splinter_sentence(of_row, budget, row.configuration.short))
    said = list(filter(None, texts))
    if more := said[_MOST_NOTED:]:
        said[_MOST_NOTED:] = [f"So it is in {len(more)} more row{'s' * (len(more) > 1)}."]
    return f"At {alarms_text(budget)}: {' '.join(said)}" if said else ""


def _notes(scores: AllScores, board: Leaderboard) -> list[str]:
    protocol = board.protocol
    pixels = protocol.alarm.pixels
    reach = "its highest score reaches" if pixels == 1 else f"at least {pixels:,} of its pixels reach"
    notes = [
        f"{hit_sentence(protocol)} An image alarms if {reach} the threshold. Called: defective images that alarm; "
        "rightly: those of them with a defect hit.",
        "In each category the threshold is set on the good test images, so that at most so many of them alarm: a fair "
        f"comparison, for it is equal for all methods, but not what the {protocol.threshold.name} would get.",
    ]
    if text := _splinter_note(scores, board):
        notes.append(text)
    if any(first.intervals for first, *_ in scores.values()):
        rules = protocol.bootstrap
        notes.append(
            f"Intervals: {100 * rules.level:g} %, bootstrap over {board.units}, {rules.draws} draws with the "
            f"threshold set anew; four times as many {board.units} would halve them."
        )
    several = {key for key in scores if len({run.seed for run in board.runs if _key_of(run) == key}) > 1}
    if several:
        seeds = sorted({scores[key][0].seed for key in several})
        notes.append(f"Of several seeds the lowest one stands here (seed {', '.join(map(str, seeds))}).")
    lost = [
        row.configuration.short
        for row in board.rows
        if any(_key_of(run) not in scores for run in row.runs)
    ]  # fmt: skip
    if lost:
        notes.append(f"Measured before alarm scores were recorded, `hrbench rescore` adds them: {', '.join(lost)}.")
    return notes


def _key_of(run: CountedRun) -> tuple[str, int]:
    return run.category, run.configuration.number


def answer_sentences(scores: AllScores, board: Leaderboard, category: str, budget: float | None = None) -> list[str]:
    """Return one sentence for each row of a category's table, in its order."""
    protocol = board.protocol
    table = answer_table(scores, board, category, budget)
    texts = []
    for row in table.rows if table else ():
        assert isinstance(row, Row)
        first = scores[category, row.configuration.number][0]
        point = point_at(first, protocol.alarm.headline if budget is None else budget, protocol.pod)
        interval = seen(first.intervals_at(point.budget).size, first.areas.tolist())
        texts.append(sentence(row.configuration.short, point, first.areas.tolist(), protocol.pod.probability, interval))
    return texts


def first_two_sentence(table: Table, board: Leaderboard, category: str = "") -> str:
    """Say whether the first two rows of a category's table, or of all together, can be told apart; "" if unknown."""
    ranked = [row for row in table.rows if isinstance(row, Row) and row.rank == row.rank]
    return pair_sentence(board, ranked[0], ranked[1], category) if len(ranked) > 1 else ""


def best_sentences(scores: AllScores, board: Leaderboard, budget: float | None = None) -> list[str]:
    """Return, of each category, the sentence of the row that finds the smallest defects, or else the most of them."""
    texts = []
    for category in board.categories:
        table = answer_table(scores, board, category, budget)
        places = (
            [at for at, row in enumerate(table.rows) if isinstance(row, Row) and row.rank == row.rank] if table else []
        )
        if table and places:
            best = min(places, key=lambda at: float(table.cells[at][0].sort or math.inf))
            texts.append(f"{category}: {answer_sentences(scores, board, category, budget)[best]}")
    return texts


def sentence(
    name: str, point: Point, areas: Sequence[int], probability: float, interval: Interval | None = None
) -> str:
    """Say in one sentence what a method finds.

    Parameters
    ----------
    name : str
    point : Point
    areas : sequence of int
        Of all defects.
    probability : float
        What counts as reliable: 0.9 is "9 of 10".
    interval : (float, float), optional
        Of the smallest size that is found reliably.
    """
    if not point.alarms.good:
        return f"{name}: without good test images there is no number of false alarms."
    start = f"{opening(point.budget, point.alarms.good)} {name}"
    return finding(start, areas, point.sizes["all"][0], point.reliable, probability, interval)


def hit_sentence(protocol: Protocol) -> str:
    """Say what a hit is, which every number of this table rests on."""
    return f"A defect is hit if at least {100 * protocol.pod.share:g} % of its pixels reach the threshold."


def heading_text(scores: AllScores, budget: float) -> str:
    """Write a number of false alarms for all categories, and whether it comes down to none."""
    none = budget > 0 and not any(first.allowed(budget) for first, *_ in scores.values())
    return alarms_text(budget) + ", which is none of so few good images" * none


def _short(interval: Interval) -> str:
    low, high = interval
    if not math.isfinite(high):
        return f"≥ {pixels_text(low)}" if low > 0 else "any size"
    return f"{figure_text(low)}–{pixels_text(high)}" if low > 0 else f"≤ {pixels_text(high)}"
