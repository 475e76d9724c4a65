"""Which rows of a leaderboard are told apart by their ranks in its categories, and which are not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from hrbench.metrics.rank_tests import RankTest, cliques, rank_test
from hrbench.report.columns import limit_text, text_column
from hrbench.report.summary import NO_ESTIMATE, Leaderboard, Row
from hrbench.report.table import Cell, Table

__all__ = [
    "FEWEST_CATEGORIES",
    "FEWEST_ROWS",
    "RankComparison",
    "compare_ranks",
    "p_text",
    "rank_sentences",
    "rank_table",
]

FEWEST_CATEGORIES = 5
"""With fewer the approximations behind the tests do not hold, and nothing could differ."""
FEWEST_ROWS = 3
"""Two rows have a paired difference with an interval, which says more."""


@dataclasses.dataclass(frozen=True)
class RankComparison:
    """The comparison of a leaderboard's rows by their ranks in each category.

    Attributes
    ----------
    rows : tuple of Row
        By mean rank, best first.
    ranks, values : tuple of float
        Mean rank and mean value of each.
    groups : list of (int, int)
        First and last place of each largest group of rows that are not told apart.
    test : RankTest
    metric : str
        What is ranked, in words.
    left_out : int
        Categories in which not every row has a value.
    """

    rows: tuple[Row, ...]
    ranks: tuple[float, ...]
    values: tuple[float, ...]
    groups: list[tuple[int, int]]
    test: RankTest
    metric: str
    left_out: int


def compare_ranks(board: Leaderboard) -> RankComparison | str:
    """Compare the ranked rows by AUPRO at the headline limit in each category; say why where they cannot be."""
    limit = round(board.protocol.headline_fpr, 9)
    rows = [row for row in board.rows if not math.isnan(row.rank)]
    keys = [[(row.configuration.number, name, "aupro", "all", limit) for row in rows] for name in board.categories]
    values = [[board.estimates.get(key, NO_ESTIMATE).shown for key in line] for line in keys]
    table = np.array([line for line in values if not np.isnan(line).any()], dtype=np.float64)
    if len(table) < FEWEST_CATEGORIES or len(rows) < FEWEST_ROWS:
        return (
            f"No critical difference: it needs at least {FEWEST_CATEGORIES} categories and {FEWEST_ROWS} ranked rows "
            f"with values in each; here are {len(table)} and {len(rows)}."
        )
    test = rank_test(table, board.protocol.bootstrap.level)
    order = sorted(range(len(rows)), key=lambda place: (test.ranks[place], place))
    ranks = tuple(float(test.ranks[place]) for place in order)
    return RankComparison(
        rows=tuple(rows[place] for place in order),
        ranks=ranks,
        values=tuple(float(table[:, place].mean()) for place in order),
        groups=cliques(ranks, test.critical if test.differ else math.inf),
        test=test,
        metric=f"AUPRO@{limit_text(limit)}",
        left_out=len(values) - len(table),
    )


def p_text(p: float) -> str:
    """Return ``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def rank_sentences(found: RankComparison) -> list[str]:
    """Return what the tests say, and what they take for granted."""
    test, names = found.test, [row.configuration.short for row in found.rows]
    said = f"Friedman's test over {test.data_sets} categories, {p_text(test.p)}"
    if not test.differ:
        sentences = [f"By their ranks in {found.metric} no rows are told apart ({said})."]
    elif not found.groups:
        sentences = [f"By their ranks in {found.metric} all rows are told apart ({said})."]
    else:
        best = next((last for first, last in found.groups if first == 0), 0)
        others = f"not told from {'; '.join(names[1 : best + 1])}" if best else "told from all others"
        sentences = [
            f"Rows differ in their ranks in {found.metric} ({said}), two of them where their mean ranks lie at least "
            f"{test.critical:.2f} apart (Nemenyi, {100 * test.level:g} %). The best one, {names[0]}, is {others}."
        ]
    if found.left_out:
        sentences.append(f"Categories without a value of every row do not count: {found.left_out}.")
    sentences.append("Each category counts as a data set of its own; of values only their order counts.")
    return sentences


def rank_table(found: RankComparison) -> Table:
    """Return mean ranks and values, and from which other rows each is not told."""
    names = [row.configuration.short for row in found.rows]
    cells = []
    for place, (rank, value) in enumerate(zip(found.ranks, found.values, strict=True)):
        same = {other for first, last in found.groups if first <= place <= last for other in range(first, last + 1)}
        others = "; ".join(names[other] for other in sorted(same - {place})) or "–"
        cells.append(tuple(Cell(text) for text in (names[place], f"{rank:.2f}", f"{value:.3f}", others)))
    heads = ("row", "mean rank", f"mean {found.metric}", "not told from")
    return Table(
        columns=tuple(text_column(head, head, "") for head in heads),
        rows=(None,) * len(cells),
        cells=tuple(cells),
        kind="plain",
        caption="Mean ranks over the categories",
    )
