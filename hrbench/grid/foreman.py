"""Hands the stages of jobs to workers that may be anywhere, and takes in what they send back.

It runs in the one process that holds the jobs' leases and, unless workers share the output folder, is the only one to
write there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from hrbench._util.disk import explaining
from hrbench.errors import Halted, HrbenchError
from hrbench.grid.board import RETRIES, Board, Task
from hrbench.grid.engine import Outcome, Watch
from hrbench.grid.worker import Failed, fit_files
from hrbench.runs.failures import FailureNotes
from hrbench.runs.job import Job
from hrbench.runs.lease import Leases
from hrbench.runs.parcel import packed, unpack
from hrbench.runs.runner import check_job, finished_run
from hrbench.runs.scoring import record_files
from hrbench.runs.shards import EvidenceShards
from hrbench.runs.stages import Setting, is_fitted, noted, settle, shards_of
from hrbench.runs.store import Run, RunFolder

__all__ = ["Call", "Foreman"]

log = logging.getLogger("hrbench")

LOOK_SECONDS = 2.0  # between two looks at jobs that other processes have
SETTLE_SECONDS = 20.0  # in which a file that a worker has written has to be seen here


class Call(NamedTuple):
    """What a worker is asked: a method of it, and the arguments."""

    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Begun:
    """A job in work."""

    job: Job
    folder: RunFolder
    sent: Any  # the job where workers can get it
    setting: Setting  # how the rest of it is done
    sent_setting: Any = None
    fitted: Any = None  # what its fit has left, where workers can get it
    shards: EvidenceShards | None = None


class Foreman:
    """Jobs, and who does which stage of them; a context, within which the leases are held.

    Parameters
    ----------
    jobs : sequence of Job
        In the order in which they are begun.
    output : Path
    setting : Setting
    watch : Watch
    put : callable
        Puts a value where workers can get it, and returns what to send them in its place.
    shared : bool
        Workers write into `output` themselves.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        output: Path,
        setting: Setting,
        watch: Watch,
        *,
        put: Callable[[Any], Any],
        shared: bool = False,
    ) -> None:
        self._waiting = list(jobs)
        self._elsewhere: list[Job] = []  # other processes have their leases
        self._output = output
        self._setting = setting
        self._watch = watch
        self._put = put
        self._shared = shared
        self._leases = Leases()
        self._notes = FailureNotes(job.folder(output) for job in jobs)
        self._board = Board()
        self._begun: dict[str, _Begun] = {}
        self._tasks: dict[Hashable, Task] = {}
        self._ended: list[Outcome] = []
        self._looked = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for begun in self._begun.values():
            self._leases.give_back(begun.folder.lease)

    @property
    def left(self) -> int:
        """Number of jobs that have not ended."""
        return len(self._waiting) + len(self._elsewhere) + len(self._begun)

    def ended(self) -> Iterator[Outcome]:
        """Yield the jobs that have ended since it was asked last."""
        while self._ended:
            yield self._ended.pop(0)

    def next(self, worker: Hashable, workers: int, sharing: int) -> Call | None:
        """Return what a free worker does next; None if there is nothing for it now.

        Parameters
        ----------
        worker : hashable
        workers : int
            That there are.
        sharing : int
            Workers that share this one's device.
        """
        if not self._waiting and self._elsewhere and time.monotonic() - self._looked > LOOK_SECONDS:
            self._waiting, self._elsewhere, self._looked = self._elsewhere, [], time.monotonic()
        while self._waiting and not self._board.has_free(worker):
            self._begin(self._waiting.pop(0))
        if (task := self._board.next(worker, workers)) is None:
            return None
        self._tasks[worker] = task
        begun = self._begun[task.job]
        common = (begun.sent, begun.sent_setting, sharing)
        if task.stage == "fit":
            return Call("fit", common)
        if begun.fitted is None:
            files = [] if self._shared else fit_files(begun.job, begun.folder, begun.setting)
            begun.fitted = self._put(packed(begun.folder.path, files))
        if task.stage == "predict":
            return Call("predict", (*common, [begun.fitted], task.chunks))
        assert begun.shards is not None
        shards = [] if self._shared else [begun.folder.shard(number).path for number in range(len(begun.shards))]
        return Call("score", (*common, [begun.fitted], [self._put(packed(begun.folder.path, shards))]))

    def received(self, worker: Hashable, result: Any) -> None:
        """Take in what a worker sends back at the end of its stage."""
        task = self._tasks.pop(worker)
        begun = self._begun.get(task.job)
        if begun is None:  # it has failed meanwhile
            return
        if self._leases.lost(begun.folder.lease):  # this process was stopped for so long that another one has the job
            self._drop(begun)
            self._elsewhere.append(begun.job)
            return
        if isinstance(result, Failed):
            words = f"{result.error} (on node {result.node})"
            if result.halts:
                raise Halted(words)
            self._end(begun, Outcome(begun.job, error=HrbenchError(words), traceback=result.traceback))
            return
        try:
            with explaining(begun.folder.path):
                getattr(self, f"_take_{task.stage}")(worker, task, begun, result)
        except HrbenchError as error:
            self._end(begun, Outcome(begun.job, error=error))

    def lost(self, worker: Hashable, reason: str) -> None:
        """Free what a worker did that has died; a job that has cost too many of them has failed."""
        task = self._tasks.pop(worker, None)
        too_many = self._board.lost(worker)
        if task is not None and task.job in self._begun:
            begun = self._begun[task.job]
            log.warning("%s: a worker died during %s: %s", begun.job.label, task.stage, reason)
            if too_many:
                error = HrbenchError(f"{RETRIES + 1} workers died while they did it, the last one: {reason}")
                self._end(begun, Outcome(begun.job, error=error))

    def _begin(self, job: Job) -> None:
        """Take the lease of a job and see what is left of it."""
        folder = job.folder(self._output)
        try:
            with explaining(folder.path):
                check_job(job)
                if (failed := self._notes.elsewhere(folder)) is not None:
                    raise failed
                if not self._leases.take(folder.lease):
                    self._elsewhere.append(job)
                    return
                begun = _Begun(job, folder, self._put(job), self._setting)
                self._begun[job.name] = begun
                if folder.record.is_file() and (run := finished_run(job, folder, self._setting)) is not None:
                    self._end(begun, Outcome(job, run))
                    return
                folder.begin(job.category.train_digest)
                folder.alone.touch()
                begun.setting = settle(job, folder, self._setting)
                begun.sent_setting = self._put(begun.setting)
                if is_fitted(job, folder, begun.setting):
                    begun.shards = shards_of(job, folder, begun.setting)
                    self._board.add(job.name, fitted=True, chunks=begun.shards.left())
                else:
                    self._board.add(job.name)
        except HrbenchError as error:
            self._leases.give_back(folder.lease)
            self._begun.pop(job.name, None)
            self._ended.append(Outcome(job, error=error))

    def _end(self, begun: _Begun, outcome: Outcome) -> None:
        if outcome.error is None:
            self._notes.clear(begun.folder)
        else:
            self._notes.write(begun.folder, begun.job.label, outcome.error)
        self._drop(begun)
        self._ended.append(outcome)

    def _drop(self, begun: _Begun) -> None:
        self._board.remove(begun.job.name)
        self._leases.give_back(begun.folder.lease)
        del self._begun[begun.job.name]

    def _take_fit(self, worker: Hashable, task: Task, begun: _Begun, result: Any) -> None:
        digest, parcel = result
        if digest != begun.job.category.train_digest:
            raise HrbenchError(f"category {begun.job.category.name!r}: other training images on a node than here")
        unpack(parcel, begun.folder.path)
        if not self._settled(lambda: is_fitted(begun.job, begun.folder, noted(begun.folder, begun.setting))):
            raise HrbenchError(f"{begun.folder.path}: what a worker's fit has left cannot be seen here")
        begun.setting = noted(begun.folder, begun.setting)  # with the batch size that the worker may have found
        begun.sent_setting = self._put(begun.setting)
        begun.shards = shards_of(begun.job, begun.folder, begun.setting)
        self._board.fitted(worker, begun.shards.left())
        self._watch.told(begun.job, 0)

    def _take_predict(self, worker: Hashable, task: Task, begun: _Begun, result: Any) -> None:
        shards = begun.shards
        assert shards is not None
        for number, (shard, maps) in result.items():
            unpack(maps, begun.folder.path)
            if shard:
                shards.deliver(number, shard)
        for number in task.chunks:
            if not self._settled(partial(shards.complete, number)):
                raise HrbenchError(
                    f"category {begun.job.category.name!r}: other test images on a node than here, or their evidence "
                    f"cannot be seen in {begun.folder.scratch}"
                )
            self._watch.told(begun.job, len(shards.chunk(number)))
        self._board.predicted(worker)

    def _take_score(self, worker: Hashable, task: Task, begun: _Begun, result: Any) -> None:
        unpack(result, begun.folder.path)
        if not self._settled(begun.folder.record.is_file):
            raise HrbenchError(f"{begun.folder.record}: what a worker has written cannot be seen here")
        begun.folder.tidy()
        if self._setting.save_maps and not self._shared:  # the worker that scored them had no maps
            record_files(Run(begun.folder.path))
        self._end(begun, Outcome(begun.job, Run(begun.folder.path)))

    def _settled(self, there: Callable[[], bool]) -> bool:
        """Tell whether something is there; what another host has written may take its time to be seen here."""
        until = time.monotonic() + SETTLE_SECONDS * self._shared
        while not there():
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)
        return True
