"""What a threshold set beforehand promised, what came of it on the test images, and whether they had drifted."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

from hrbench.metrics.alarms import FalseAlarms, drifted, images_needed
from hrbench.metrics.words import counted, rate_text
from hrbench.protocol import Protocol
from hrbench.report.configurations import CountedRun
from hrbench.report.summary import Leaderboard

__all__ = ["Promise", "promise_of", "promise_sentences", "promises"]


@dataclasses.dataclass(frozen=True)
class Promise:
    """A promise of a method in a category, in one sentence.

    Attributes
    ----------
    text : str
        What was promised and what came of it, or why nothing was.
    kept : bool or None
        None where nothing was promised.
    """

    text: str
    kept: bool | None = None


def promise_of(run: CountedRun, protocol: Protocol) -> Promise | None:
    """Return what a run promised; None where the protocol's rule promises nothing, or no good image can tell."""
    rule = protocol.threshold
    if rule.rule == "mean+k*sigma":
        return None
    records, metric = run.run.records, "fpr" if rule.rule == "normal-quantile" else "alarms"
    rows = records[records["metric"] == metric]
    rows = rows[(rows["protocol"] == protocol.name) & (rows["subset"] == "all")]
    held_out = run.held_out
    if rule.rule == "normal-quantile":
        return _of_pixels(rows, rule.fpr)
    if rows.empty or not rows["n"].iloc[0]:
        return None
    value, good = float(rows["value"].iloc[0]), int(rows["n"].iloc[0])
    if math.isnan(value):
        needed = images_needed(rule.alarms)
        why = f"{counted(held_out, 'normal image')} held out, {needed} are needed"
        if held_out >= needed:
            why = "measured before held-out images were kept apart; run it again"
        return Promise(f"no promise of at most {100 * rule.alarms:g} alarms per 100 good images: {why}.")
    alarms = FalseAlarms(round(value * good), good)
    drift = drifted(alarms, held_out, rule.alarms, protocol.bootstrap.level)
    text = (
        f"promised at most {100 * rule.alarms:g} alarms per 100 good images ({counted(held_out, 'image')} held out); "
        f"{rate_text(alarms, protocol.bootstrap.level)}"
    )
    if drift:
        return Promise(text + _DRIFT, False)
    more = alarms.interval(protocol.bootstrap.level)[0] > rule.alarms
    return Promise(text + f", more than promised but within what {held_out} held-out images allow" * more + ".", True)


_DRIFT = ". DRIFT: the good test images are unlike the training images, so no threshold set on these can be trusted."


def _of_pixels(rows: pd.DataFrame, share: float) -> Promise | None:
    if rows.empty or math.isnan(value := float(rows["value"].iloc[0])):
        return None
    low, high = float(rows["ci_low"].iloc[0]), float(rows["ci_high"].iloc[0])
    between = "" if math.isnan(low) else f" (interval {100 * low:.2g} to {100 * high:.2g} %)"
    text = f"promised to call {100 * share:g} % of the normal pixels, calls {100 * value:.2g} %{between}"
    drift = low > share
    return Promise(f"{text}{_DRIFT if drift else '.'}", not drift)


def promises(board: Leaderboard, category: str) -> list[tuple[str, Promise]]:
    """Return the promise of each row in a category, by the row's short name, that of its lowest seed."""
    found = []
    for row in board.rows:
        runs = sorted((run for run in row.runs if run.category == category), key=lambda run: run.seed)
        promise = promise_of(runs[0], board.protocol) if runs and not row.foreign else None
        if promise is not None:
            found.append((row.configuration.short, promise))
    return found


def promise_sentences(board: Leaderboard) -> list[str]:
    """Return in a sentence for each category which promises were not kept, or why there are none."""
    texts = []
    for category in board.categories:
        found = promises(board, category)
        broken = [name for name, promise in found if promise.kept is False]
        none = [name for name, promise in found if promise.kept is None]
        if broken:
            texts.append(
                f"DRIFT in {category}: more false alarms than the {board.protocol.threshold.name} allows, "
                f"with {', '.join(broken)}."
            )
        if none and len(none) == len(found):
            texts.append(f"{category}: {found[0][1].text}")
    return texts
