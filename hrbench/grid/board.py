"""Which stage of which job a free worker does next. Knows names and numbers only: no file, no engine."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["MOST_CHUNKS", "RETRIES", "Board", "Task"]

MOST_CHUNKS = 4  # at a time: while a chunk is counted the next one is predicted, and at most these are lost
WORTH_HELPING = 2  # chunks that nobody works at: with fewer the method would be loaded for nothing
RETRIES = 3  # of a job whose worker has died


@dataclass(frozen=True)
class Task:
    """A stage of a job, for one worker.

    Attributes
    ----------
    job : str
    stage : {"fit", "predict", "score"}
    chunks : tuple of int
        To predict.
    """

    job: str
    stage: Literal["fit", "predict", "score"]
    chunks: tuple[int, ...] = ()


@dataclass
class _Job:
    name: str
    fitted: bool
    left: list[int]  # chunks that nobody works at; unknown until the fit is done
    running: dict[Hashable, Task] = field(default_factory=dict)  # by worker
    lost: int = 0

    @property
    def waits(self) -> bool:
        """Whether there is something to do for a worker more."""
        return bool(self.left) or not self.running


class Board:
    """Jobs and what is left of them.

    A worker goes on with the job that it has begun, for the method is loaded there. Then it begins the first job that
    nobody works at; and when there is none, it helps with the test images of the one that has the most left.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._last: dict[Hashable, str] = {}  # by worker, the job that it has worked at

    def __len__(self) -> int:
        """Return the number of jobs that have not ended."""
        return len(self._jobs)

    def add(self, job: str, *, fitted: bool = False, chunks: Iterable[int] = ()) -> None:
        """Add a job; of a fitted one the chunks that are left."""
        self._jobs[job] = _Job(job, fitted, list(chunks))

    def has_free(self, worker: Hashable) -> bool:
        """Tell whether there is a job that a worker can do without helping another one."""
        own = self._jobs.get(self._last.get(worker, ""))
        return (own is not None and own.waits) or any(not job.running for job in self._jobs.values())

    def next(self, worker: Hashable, workers: int) -> Task | None:
        """Return what a free worker does next, one of so many; None if there is nothing for it."""
        job = self._choice(worker)
        if job is None:
            return None
        if not job.fitted:
            task = Task(job.name, "fit")
        elif job.left:
            idle = 1 if any(not other.running for other in self._jobs.values() if other is not job) else workers
            count = min(MOST_CHUNKS, math.ceil(len(job.left) / (2 * idle)))
            task = Task(job.name, "predict", tuple(job.left[:count]))
            del job.left[:count]
        else:
            task = Task(job.name, "score")
        job.running[worker] = task
        self._last[worker] = job.name
        return task

    def fitted(self, worker: Hashable, chunks: Iterable[int]) -> None:
        """Note that a worker has fitted its job, of which these chunks are left."""
        job = self._ended(worker)
        if job is not None:
            job.fitted, job.left = True, list(chunks)

    def predicted(self, worker: Hashable) -> None:
        """Note that a worker has predicted its chunks."""
        self._ended(worker)

    def remove(self, job: str) -> None:
        """Forget a job that is scored, or has failed; what others still do for it does not matter any more."""
        self._jobs.pop(job, None)

    def lost(self, worker: Hashable) -> str | None:
        """Note that a worker is gone, and free its task; return the job if it has cost too many workers by now."""
        job_name = self._last.get(worker)
        job = self._jobs.get(job_name) if job_name is not None else None
        task = job.running.pop(worker, None) if job else None
        self._last.pop(worker, None)
        if job is None or task is None:
            return None
        job.left[:0] = task.chunks
        job.lost += 1
        return job.name if job.lost > RETRIES else None

    def _ended(self, worker: Hashable) -> _Job | None:
        job = self._jobs.get(self._last[worker])
        if job is not None:
            job.running.pop(worker, None)
        return job

    def _choice(self, worker: Hashable) -> _Job | None:
        own = self._jobs.get(self._last.get(worker, ""))
        if own is not None and own.waits:
            return own
        free = next((job for job in self._jobs.values() if not job.running), None)
        if free is not None:
            return free
        helped = max(self._jobs.values(), key=lambda job: len(job.left), default=None)
        return helped if helped is not None and len(helped.left) >= WORTH_HELPING else None
