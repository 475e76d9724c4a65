"""What a run ends with: the smallest reliable defect, the false alarms, and how many images a useful interval needs."""

from __future__ import annotations

import math
from typing import NamedTuple

from hrbench.metrics.planning import SHARE, TIMES, good_images_for, number_for_share, number_for_size
from hrbench.metrics.words import counted, percent_text, range_text, rate_text, seen
from hrbench.protocol import Protocol
from hrbench.report.answer import answer_table, sentence, splinter_sentence
from hrbench.report.operating import Point, point_at
from hrbench.report.promise import Promise, promises
from hrbench.report.scores import AllScores, Scores
from hrbench.report.summary import Leaderboard, Row

__all__ = ["Closing", "closing", "needed_sentence"]


class Closing(NamedTuple):
    """Three sentences about the row of a category that finds the smallest defects, or else the most of them."""

    found: str
    alarms: str
    needed: str


def closing(scores: AllScores, board: Leaderboard, category: str) -> Closing | None:
    """Return the three sentences of a category; None where no row can be compared."""
    table = answer_table(scores, board, category)
    places = [at for at, row in enumerate(table.rows) if isinstance(row, Row) and row.rank == row.rank] if table else []
    if not table or not places:
        return None
    row = table.rows[min(places, key=lambda at: float(table.cells[at][0].sort or math.inf))]
    assert isinstance(row, Row)
    protocol, name = board.protocol, row.configuration.short
    of = scores[category, row.configuration.number][0]
    point = point_at(of, protocol.alarm.headline, protocol.pod)
    interval = seen(of.intervals_at(point.budget).size, of.areas.tolist())
    found = sentence(name, point, of.areas.tolist(), protocol.pod.probability, interval)
    return Closing(
        " ".join(filter(None, (found, splinter_sentence([of], point.budget)))),
        _alarms_sentence(point, dict(promises(board, category)).get(name), protocol),
        needed_sentence(of, point, protocol),
    )


def _alarms_sentence(point: Point, promise: Promise | None, protocol: Protocol) -> str:
    """Say what alarms at the threshold that was set beforehand; without one, at the matched threshold."""
    if promise is not None:
        text = promise.text
        return f"Its threshold {text}" if text.startswith("promised") else text[:1].upper() + text[1:]
    if not point.alarms.good:
        return "There is no good test image, so nothing is known of false alarms."
    return f"At that threshold {rate_text(point.alarms, protocol.bootstrap.level)}."


def needed_sentence(scores: Scores, point: Point, protocol: Protocol) -> str:
    """Say how many more defects, and good images, an interval needs that is of use.

    That is, an interval of the reliable size whose upper end is twice its lower one; of recall, where that size is not
    reached or could be any, one of five points to either side; of the rate of false alarms, one that ends at twice it.
    """
    hit, number = point.sizes["all"]
    if not number:
        return "Without a defect nothing can be planned."
    size, recall = scores.intervals_at(point.budget)
    size = seen(size, scores.areas.tolist())
    area = point.reliable.area
    if area is not None and size is not None and size[0] > 0:
        low, high = size if math.isfinite(size[1]) else (size[0], area**2 / size[0])  # as far up as down
        what, total = f"that size within a factor of {TIMES:g}", number_for_size(number, low, high)
        have = range_text(*size)
    elif recall is not None:
        what, total = f"recall to ± {percent_text(SHARE)}", number_for_share(number, *recall)
        have = f"{hit / number:.2f}, {recall[0]:.2f} to {recall[1]:.2f}"
    else:
        return f"How many more defects are needed cannot be told: {counted(number, 'defect')} gave no interval."
    text = f"{counted(number, 'defect')} tell {what} already (now {have})"
    if total > number:
        text = f"To know {what} (now {have}) takes about {counted(_rounded(total - number), 'more defect')}"
    good, budget = point.alarms.good, point.budget
    if 0 < budget < 1 / TIMES and (enough := good_images_for(budget, level=protocol.bootstrap.level)) > good:
        more = counted(_rounded(enough - good), "more good image")
        text += f", and to know the false alarms within a factor of {TIMES:g} about {more}"
    return f"{text}."


def _rounded(number: int) -> int:
    """Round up to two digits: it is a plan, not a measurement."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
