"""The pictures of a grid: what the best methods have chosen by their scores is drawn for all that stand beside them.

That is known when all jobs have ended: then a few images are predicted again. Any number of processes may do it in the
same folder, each run by one of them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.runs.job import Job
from hrbench.runs.lease import Leases
from hrbench.runs.more_pictures import Lacking, add_pictures, find_lacking, lacks
from hrbench.runs.picture_choice import SIDE_BY_SIDE, WITH_EXTREMES
from hrbench.runs.picture_files import Picture
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

__all__ = ["Gallery", "side_by_side"]

log = logging.getLogger("hrbench")

Done = tuple[Job, Run]


class Gallery:
    """Runs that lack pictures; a context, within which the leases are held of those that are being drawn.

    Parameters
    ----------
    done : sequence of (Job, Run)
        Finished runs.
    setting : Setting
    """

    def __init__(self, done: Sequence[Done], setting: Setting) -> None:
        self._setting = setting
        self._leases = Leases()
        self._waiting: list[tuple[Job, Path, list[Path]]] = []
        self._at_work: dict[str, Run] = {}
        now = [(job, Run(run.folder)) for job, run in done]  # another process may have drawn since they were read
        for beside in side_by_side(now, setting.protocols[0]):
            others = [run for _, run in beside[:WITH_EXTREMES]]
            folders = [run.folder for run in others]
            self._waiting += [(job, run.folder, folders) for job, run in beside if self._is_open(run, others)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in list(self._at_work):
            self._leave(name)

    @property
    def left(self) -> int:
        """Number of runs that lack pictures."""
        return len(self._waiting) + len(self._at_work)

    def next(self) -> Lacking | None:
        """Return what to draw next, of a run whose lease is taken; None if others have those of all that are left."""
        for _ in range(len(self._waiting)):
            job, folder, others = self._waiting.pop(0)
            run = Run(folder)  # as it is now
            if not self._leases.take(run.files.lease):
                self._waiting.append((job, folder, others))
                continue
            self._at_work[job.name] = run
            try:
                if (task := find_lacking(job, run, list(map(Run, others)), self._setting)) is not None:
                    return task
            except Exception as error:  # such as no memory for its evidence: the others must not go without
                log.warning("%s: no more pictures: %s", job.label, str(error) or type(error).__name__)
            self._leave(job.name)
        return None

    def drawn(self, task: Lacking, items: Sequence[Picture]) -> None:
        """Take in what was drawn; its files are in the run's folder."""
        run = self._at_work[task.job.name]
        if not self._leases.lost(run.files.lease):
            add_pictures(run, items)
        self._leave(task.job.name)

    def failed(self, task: Lacking, why: str) -> None:
        """Leave a run as it is."""
        self._leave(task.job.name)
        log.warning("%s: no more pictures: %s", task.job.label, why)

    def _leave(self, name: str) -> None:
        self._leases.give_back(self._at_work.pop(name).files.lease)

    @staticmethod
    def _is_open(run: Run, others: Sequence[Run]) -> bool:
        try:
            return bool(lacks(run, others))
        except HrbenchError:  # told where they are shown
            return False


def side_by_side(done: Sequence[Done], protocol: Protocol) -> list[list[Done]]:
    """Return for each category the runs that a report will show side by side, best first, as it ranks them.

    Of each method with its options and view it is that of the lowest seed. The rank is that over all categories, by
    AUPRO or, where there is none, image ROC-AUC; who lacks a category stands last.
    """
    methods: dict[str, list[Done]] = {}
    for job, run in done:
        text = job.method, job.preset, job.view.text, job.precision, job.held_out, job.recorded_options
        methods.setdefault(json.dumps(text, default=str, sort_keys=True), []).append((job, run))
    metric = "aupro" if any((run.records["metric"] == "aupro").any() for _, run in done) else "image_auroc"
    beside: dict[str, list[Done]] = {}
    every = {job.category.name for job, _ in done}
    for runs in sorted(methods.values(), key=lambda runs: _standing(runs, every, protocol, metric), reverse=True):
        first: dict[str, Done] = {}
        for job, run in sorted(runs, key=lambda one: one[0].seed):
            first.setdefault(job.category.name, (job, run))
        for category, one in first.items():
            beside.setdefault(category, []).append(one)
    return [some[:SIDE_BY_SIDE] for some in beside.values() if len(some) > 1]


def _standing(runs: Sequence[Done], every: set[str], protocol: Protocol, metric: str) -> tuple[bool, float]:
    """Return whether a method has all categories, and its mean over them of a metric; nothing is below no value."""
    values: dict[str, list[float]] = {}
    for job, run in runs:
        table = run.records
        limits = table["fpr_limit"].fillna(protocol.headline_fpr) - protocol.headline_fpr
        rows = (table["protocol"] == protocol.name) & (table["metric"] == metric) & (table["subset"] == "all")
        found = table["value"][rows & (limits.abs() < 1e-9)].dropna().tolist()
        values.setdefault(job.category.name, []).extend(found)
    means = [sum(found) / len(found) for found in values.values() if found]
    return values.keys() == every, sum(means) / len(means) if means else -math.inf
