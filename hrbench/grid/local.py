"""Jobs one after another in this process, which may share them with others that use the same folder."""

from __future__ import annotations

import logging
import time
import traceback as tracebacks
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from hrbench._util.disk import explaining
from hrbench.contract import explained, fails_one_job
from hrbench.engine.device import check_memory, device_identity, device_name, pick_device
from hrbench.engine.rehearsal import Expected
from hrbench.errors import Halted, HrbenchError, Stopped
from hrbench.grid.engine import Engine, Outcome, Watch
from hrbench.grid.gallery import Gallery
from hrbench.precision import pick_precision
from hrbench.runs.failures import FailureNotes
from hrbench.runs.job import Job
from hrbench.runs.lease import Presence
from hrbench.runs.more_pictures import Lacking
from hrbench.runs.runner import WAIT_SECONDS, Runner
from hrbench.runs.stages import Setting, Workbench, rehearse
from hrbench.runs.store import RunFolder

__all__ = ["LocalEngine"]

log = logging.getLogger("hrbench")


@dataclass
class LocalEngine(Engine):
    """The process itself, on one device.

    Any number of processes, on any hosts, may do the same jobs in the same folder: each claims what nobody works at,
    whole jobs first, then chunks of the test images of jobs that others have begun.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
    threads : int, optional
        Of torch on a CPU; by default as many as there are cores, or as ``OMP_NUM_THREADS`` says.
    only : tuple of int, optional
        ``(i, n)`` with 0 <= i < n: begin with jobs i, i + n ..., go on with what others have not begun, and do not
        wait for what they have.

    Raises
    ------
    HrbenchError
        For numbers that make no sense.
    """

    device: str = "auto"
    threads: int | None = None
    only: tuple[int, int] | None = None
    _device: torch.device = field(init=False, repr=False, compare=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise HrbenchError(f"threads is {self.threads}, expected at least 1")
        if self.only is not None and not 0 <= self.only[0] < self.only[1]:
            raise HrbenchError(f"only is {self.only[0]}/{self.only[1]}, expected I/N with 0 <= I < N")

    def __enter__(self) -> Self:
        if self.threads is not None:
            self._open.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(self.threads)
        self._device = pick_device(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def workers(self) -> int:
        """One: this process."""
        return 1

    def describe(self) -> str:
        """Return the device's name."""
        return device_name(self._device)

    def precision(self, asked: str) -> str:
        """Return what was asked for, on this device."""
        return pick_precision(asked, self._device)

    def check(self, jobs: Sequence[Job]) -> None:
        """Check that inputs fit into the device's memory; that all else is there has shown when the jobs were made."""
        for view in dict.fromkeys(job.view for job in jobs):
            check_memory(view, self._device)

    def rehearse(self, jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Expected | str]]:
        """Measure a batch of each job on this device."""
        for job in jobs:
            found: Expected | str
            try:
                found = rehearse(job, setting, self._device)
            except BaseException as error:  # whatever it is, the job fails of it only when it is its turn
                if not fails_one_job(error):
                    raise
                found = f"{type(error).__name__}: {error}".removeprefix("HrbenchError: ")
            yield job, found

    def run(self, jobs: Sequence[Job], output: Path, setting: Setting, watch: Watch) -> Iterator[Outcome]:
        """Do the jobs in their order, those of :attr:`only` first."""
        index, count = self.only or (0, 1)
        left = [*jobs[index::count], *(job for at, job in enumerate(jobs) if at % count != index)]
        notes, spoilt = FailureNotes(job.folder(output) for job in jobs), set[str]()
        with Runner(output, setting, self._device, stop=watch.stop, told=watch.told) as runner:
            while left and not watch.stop():
                busy = []
                for job in left:
                    outcome = self._outcome(runner, job, output, notes)
                    if outcome is None:
                        busy.append(job)
                    else:
                        yield outcome
                    if watch.stop():
                        return
                moved, left = len(busy) < len(left), busy
                if moved or any(self._helps(runner, job, spoilt) for job in left):
                    continue
                if self.only:
                    return
                time.sleep(WAIT_SECONDS)

    def draw(self, gallery: Gallery, output: Path, watch: Watch) -> None:
        """Draw the pictures of one run after another, those that no other process has begun."""
        output = output.absolute()  # a method may change the current folder
        with Presence(output, device_identity(self._device)):
            while gallery.left and not watch.stop():
                if (task := gallery.next()) is not None:
                    self._draw(gallery, task, task.job.folder(output))
                elif self.only:
                    return
                elif gallery.left:
                    time.sleep(WAIT_SECONDS)

    def _draw(self, gallery: Gallery, task: Lacking, folder: RunFolder) -> None:
        try:
            with explaining(folder.path), Workbench(task.job, folder, task.setting, self._device) as bench:
                gallery.drawn(task, bench.draw(task.numbered, task.scale))
        except Halted:
            raise
        except BaseException as fault:  # the other runs must not go without
            if not fails_one_job(fault):
                raise
            gallery.failed(task, str(explained(fault)) or type(fault).__name__)

    def _helps(self, runner: Runner, job: Job, spoilt: set[str]) -> bool:
        """Help with a job; one at which that fails is left to who has begun it, or taken over if that one dies."""
        if job.name in spoilt:
            return False
        try:
            with explaining():
                return runner.help(job)
        except Halted:
            raise
        except BaseException as error:  # the other jobs must not be lost with it
            if not fails_one_job(error):
                raise
            log.warning("%s: left to who has begun it: %s", job.label, str(error) or type(error).__name__)
            spoilt.add(job.name)
            return False

    def _outcome(self, runner: Runner, job: Job, output: Path, notes: FailureNotes) -> Outcome | None:
        """Do a job; return None if others work at all that is left of it, or it was left because of a stop."""
        folder = job.folder(output)
        if (failed := notes.elsewhere(folder)) is not None:
            return Outcome(job, error=failed)
        try:
            with explaining(folder.path):
                if (run := runner.advance(job)) is None:
                    return None
                notes.clear(folder)
            return Outcome(job, run)
        except Stopped:
            return None
        except Halted:  # the others would fail of it as well, and this one goes on later
            raise
        except BaseException as fault:  # whatever it is, the other jobs must not be lost with it
            if not fails_one_job(fault):
                raise
            error = explained(fault)
            notes.write(folder, job.label, error)
            traceback = "" if isinstance(error, HrbenchError) else tracebacks.format_exc()  # a fault of the suite
            return Outcome(job, error=error, traceback=traceback)
