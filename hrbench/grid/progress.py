"""How far a grid is, over all its workers: one bar on a terminal, one line for each job that ends."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import TracebackType
from typing import Self

import pandas as pd
from tqdm import tqdm

from hrbench._util.words import duration
from hrbench.grid.engine import Outcome
from hrbench.grid.plan import Plan, PlannedJob
from hrbench.protocol import Protocol
from hrbench.runs.job import Job
from hrbench.runs.store import Run

__all__ = ["GridProgress", "headline"]

log = logging.getLogger("hrbench")

FIT_SHARE = 0.5  # of a job's work, where it is not known


class GridProgress:
    """Counts what jobs have done, weighed by what they are expected to take.

    Parameters
    ----------
    plan : Plan
    protocol : Protocol
        For the headline of a finished job.
    """

    def __init__(self, plan: Plan, protocol: Protocol) -> None:
        self._protocol = protocol
        known = [planned.seconds for planned in plan.left if planned.seconds]
        usual = sum(known) / len(known) if known else 1.0
        self._weights = {p.job.name: _weights(p, usual) for p in plan.left}
        self._left = {name: sum(weights) for name, weights in self._weights.items()}
        self._total = sum(self._left.values())
        self._jobs, self._ended = len(plan.left), 0
        self._began = time.monotonic()
        self._here = 0.0  # weight that was done since
        self._bar: tqdm[None] = tqdm(
            total=100.0,
            disable=not sys.stderr.isatty() or self._jobs < 2,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
            leave=False,
        )

    def __enter__(self) -> Self:
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def told(self, job: Job, images: int) -> None:
        """Count a stage: a fit, or the prediction of so many test images."""
        fit, predict = self._weights.get(job.name, (0.0, 0.0))
        done = predict * images / len(job.category.test) if images else fit
        self._count(job.name, min(done, self._left.get(job.name, 0.0)))

    def ended(self, outcome: Outcome, *, before: bool) -> None:
        """Count the rest of a job that has ended, and say so; one that was done before is not spoken of."""
        if before:
            return
        self._ended += 1
        self._count(outcome.job.name, self._left.get(outcome.job.name, 0.0))
        number = f"[{self._ended}/{self._jobs}] {outcome.job.label}: "
        left = f"; about {duration(self.seconds_left)} left" if self.seconds_left and self._ended < self._jobs else ""
        if outcome.run is None:
            self._say(f"{number}failed: {outcome.error}{left}", logging.ERROR)
            if outcome.traceback:
                self._say(outcome.traceback.rstrip(), logging.ERROR)
        else:
            seconds = outcome.run.about.cost.wall_seconds
            took = f"; {duration(seconds)}" if seconds else ""
            self._say(f"{number}{headline(outcome.run, self._protocol)}{took}{left}", logging.INFO)

    @property
    def seconds_left(self) -> float:
        """What is left will take, at the pace so far; 0 before anything is done."""
        left = sum(self._left.values())
        return left / self._here * (time.monotonic() - self._began) if self._here else 0.0

    def _count(self, name: str, weight: float) -> None:
        if name in self._left:
            self._left[name] = max(0.0, self._left[name] - weight)
            self._here += weight
            self._show()

    def _show(self) -> None:
        left = sum(self._left.values())
        self._bar.n = 100.0 * (1 - left / self._total) if self._total else 100.0
        self._bar.set_description_str(f"{self._ended} of {self._jobs} jobs", refresh=False)
        about = f"about {duration(self.seconds_left)} left" if self.seconds_left else ""
        self._bar.set_postfix_str(about)

    def _say(self, line: str, level: int) -> None:
        self._bar.clear()
        log.log(level, "%s", line)
        self._bar.refresh()


def _same(limits: pd.Series[float], limit: float) -> pd.Series[bool]:
    return limits.isna() if math.isnan(limit) else (limits - limit).abs() < 1e-9


def headline(run: Run, protocol: Protocol) -> str:
    """Return what a run has found in a few words: recall at the protocol's headline budget, and AUPRO.

    Without masks it is what alarms, and image ROC-AUC; without defective images the false alarms at the threshold.
    """
    records = run.records[(run.records["protocol"] == protocol.name) & (run.records["subset"] == "all")]

    def value(metric: str, limit: float) -> float:
        rows = records[(records["metric"] == metric) & _same(records["fpr_limit"], limit)]
        return float(rows["value"].iloc[0]) if len(rows) else math.nan

    budget, limit = protocol.alarm.headline, protocol.headline_fpr
    recall, aupro = value("recall_matched", budget), value("aupro", limit)
    at = f"at {100 * budget:g} false alarms per 100"
    parts = [] if math.isnan(recall) else [f"recall {recall:.3f} {at}"]
    if (records["metric"] == "aupro").any():
        return ", ".join([*parts, f"AUPRO@{limit:g} {aupro:.3f}"])
    found = {
        "called {:.3f} " + at: value("called_matched", budget),
        "image ROC-AUC {:.3f}": value("image_auroc", math.nan),
        "alarms {:.3f} at the threshold": value("alarms", math.nan),
    }
    said = [text.format(number) for text, number in found.items() if not math.isnan(number)]
    return ", ".join(said[:2]) or "no threshold, so nothing is measured"


def _weights(planned: PlannedJob, usual: float) -> tuple[float, float]:
    """Return what the fit and the prediction of a job weigh; `usual` is that of a job, where its own is not known."""
    if planned.fit_seconds is None or planned.predict_seconds is None:
        return FIT_SHARE * usual, (1 - FIT_SHARE) * usual
    return max(planned.fit_seconds, 1e-9), max(planned.predict_seconds, 1e-9)
