"""Jobs done in this process, which shares its output folder with any number of others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from hrbench.engine.batch_size import BatchSize, check_batch_size
from hrbench.engine.device import device_identity, memory_failed
from hrbench.errors import HrbenchError, Stopped
from hrbench.protocol import Protocol
from hrbench.runs.batch_sizes import BatchSizes
from hrbench.runs.job import Job
from hrbench.runs.lease import Leases, Presence
from hrbench.runs.repair import reopen
from hrbench.runs.scoring import rescored
from hrbench.runs.shards import EvidenceShards
from hrbench.runs.stages import Setting, Workbench, is_fitted, noted, settle, shards_of
from hrbench.runs.store import Run, RunFolder, batch_sizes_folder

__all__ = ["WAIT_SECONDS", "Runner", "check_job", "finished_run", "run_job"]

WAIT_SECONDS = 1.0  # between two looks at what other processes do
WORTH_HELPING = 3  # chunks that are left: with fewer the method would be loaded for nothing


def run_job(
    job: Job,
    output: Path,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    batch_size: BatchSize = 8,
    save_maps: bool = False,
    compiled: bool = False,
) -> Run:
    """Do a job, or what is left of it, and return the run; one that is done already is returned as it is.

    Weights, evidence shards and at last ``run.json`` are written as they are finished, so a killed run continues
    where it was and ends with the same evidence. Where another process is at work on the same job in the same folder,
    this one helps to predict, or waits.

    Parameters
    ----------
    job : Job
    output : Path
    protocols : sequence of Protocol
    device : torch.device
    batch_size : int or "auto"
    save_maps, compiled : bool
        See :class:`hrbench.runs.stages.Setting`.

    Raises
    ------
    HrbenchError
        For a bad file or option; what was finished before stays.
    """
    setting = Setting(tuple(protocols), check_batch_size(batch_size), save_maps, compiled)
    with Runner(output, setting, device) as runner:
        while True:
            run = runner.advance(job)
            if run is not None:
                return run
            if not runner.help(job):
                time.sleep(WAIT_SECONDS)


class Runner:
    """Does jobs in this process and on its device, a context.

    Work is claimed by leases, whole jobs and chunks of their test images, so that any number of processes may be given
    the same jobs and the same folder.

    Parameters
    ----------
    output : Path
    setting : Setting
    device : torch.device
    stop : callable, optional
        Tells whether to end early: no new chunk is begun then, and a fit ends after its step.
    told : callable, optional
        Is told of every stage that ends here: its job, and how many test images it has predicted (0 for a fit).
    """

    def __init__(
        self,
        output: Path,
        setting: Setting,
        device: torch.device,
        *,
        stop: Callable[[], bool] = lambda: False,
        told: Callable[[Job, int], None] = lambda job, images: None,
    ) -> None:
        self._output = output = output.absolute()  # a method may change the current folder
        self._setting = setting
        self._device = device
        self._stop = stop
        self._told = told
        self._leases = Leases()
        self._batch_sizes = BatchSizes(batch_sizes_folder(output))
        self._presence = Presence(output, device_identity(device))
        self._known: dict[tuple[Path, int, bool], EvidenceShards] = {}

    def __enter__(self) -> Runner:
        self._presence.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._presence.__exit__(*failure)

    def advance(self, job: Job) -> Run | None:
        """Do a job, or what is left of it; None if all that is left is in the hands of other processes.

        Raises
        ------
        HrbenchError
            For a bad file or option; what was finished before stays.
        Stopped
            If it was asked to stop.
        """
        check_job(job)
        folder = job.folder(self._output)
        with self._leases.holding(folder.lease) as mine:
            if not mine:
                return None
            if folder.record.is_file() and (run := finished_run(job, folder, self._setting)) is not None:
                return run
            folder.begin(job.category.train_digest)
            folder.alone.unlink(missing_ok=True)
            try:
                return self._rest(job, folder)
            except Stopped:
                if self._stop():
                    raise
                return None  # another process has taken over while this one was stopped for long
            except (MemoryError, RuntimeError) as error:
                if not memory_failed(error):
                    raise
                size = "x".join(map(str, job.view.tile))
                raise HrbenchError(
                    f"the memory of {self._device} is too small for {job.method_name} with inputs of {size} pixels; "
                    "expected a view with smaller inputs, a smaller batch size, or another device"
                ) from None

    def help(self, job: Job) -> bool:
        """Predict chunks of a job that another process has begun; return whether there was something to do."""
        folder = job.folder(self._output)
        if folder.record.is_file() or folder.alone.is_file() or not folder.began(job.category.train_digest):
            return False
        setting = noted(folder, self._setting)
        if not is_fitted(job, folder, setting):
            return False
        shards = self._shards(job, folder, setting)
        left = shards.left()
        if len(left) < WORTH_HELPING:
            return False
        with self._claims(folder, shards, left[::-1]) as claims:  # who began goes the other way
            if (first := next(claims, None)) is None:
                return False
            with self._bench(job, folder, setting) as bench:
                self._predict(job, bench, shards, chain([first], claims))
        return True

    def _rest(self, job: Job, folder: RunFolder) -> Run | None:
        """Do what is left of a job whose lease is held."""
        setting = settle(job, folder, self._setting)
        fitted = is_fitted(job, folder, setting)
        if fitted:
            shards = self._shards(job, folder, setting)
            with self._claims(folder, shards, shards.left()) as claims:
                if next(claims, None) is None and shards.left():
                    return None  # before the method is loaded
        with self._bench(job, folder, setting) as bench:
            if not fitted:
                bench.fit()
                self._told(job, 0)
                shards = self._shards(job, folder, setting)
            with self._claims(folder, shards, shards.left()) as claims:
                self._predict(job, bench, shards, claims)
            if self._stop() or self._leases.lost(folder.lease):
                raise Stopped(job.label)
            if shards.left():
                return None
            run = bench.score(shards)
        folder.tidy()
        return run

    def _predict(self, job: Job, bench: Workbench, shards: EvidenceShards, claims: Iterable[int]) -> None:
        folder = job.folder(self._output)
        for number in bench.predict(shards, claims):
            self._leases.give_back(folder.chunk_lease(number))
            self._told(job, len(shards.chunk(number)))

    @contextmanager
    def _claims(self, folder: RunFolder, shards: EvidenceShards, numbers: Sequence[int]) -> Iterator[Iterator[int]]:
        """Give chunks that nobody else works at, each claimed when it is drawn, and left to others at the end."""

        def claims() -> Iterator[int]:
            for number in numbers:
                if self._stop() or self._leases.lost(folder.lease):
                    return
                if shards.complete(number) or not self._leases.take(folder.chunk_lease(number)):
                    continue
                # Who held the lease before may have finished the chunk, or with it the job.
                if folder.record.is_file() or shards.complete(number):
                    self._leases.give_back(folder.chunk_lease(number))
                else:
                    yield number

        try:
            yield claims()
        finally:
            for number in numbers:
                self._leases.give_back(folder.chunk_lease(number))

    def _shards(self, job: Job, folder: RunFolder, setting: Setting) -> EvidenceShards:
        """Return the shards of a fitted job; those of the last jobs are kept, for they know what they have read."""
        key = (folder.path, folder.weights.stat().st_mtime_ns, setting.save_maps)
        if key not in self._known:
            self._known[key] = shards_of(job, folder, setting)
        return self._known[key]

    def _bench(self, job: Job, folder: RunFolder, setting: Setting) -> Workbench:
        def stop() -> bool:
            return self._stop() or self._leases.lost(folder.lease)

        return Workbench(
            job,
            folder,
            setting,
            self._device,
            workers=self._presence.workers,
            stop=stop,
            batch_sizes=self._batch_sizes,
        )


def check_job(job: Job) -> None:
    """Raise an error for a job without test images."""
    if not job.category.test:
        raise HrbenchError(
            f"category {job.category.name!r}: no test image, there is nothing to measure; `hrbench fit` takes normal "
            "images alone"
        )


def finished_run(job: Job, folder: RunFolder, setting: Setting) -> Run | None:
    """Return the finished run of a job, with records under all protocols; an error if it is not what is asked for.

    None if files of it are damaged or missing: then the job is not finished any more, and goes on from what is intact.
    """
    run = Run(folder.path)
    if run.about.dataset.index_sha256 != job.category.digest:
        raise HrbenchError(
            f"{folder.path}: done before on other images of the same names; choose another output folder"
        )
    if damaged := run.damaged(maps=setting.save_maps):
        reopen(run, job, setting, damaged)
        return None
    maps = (folder.map_of(sample.id) for sample in job.category.test)
    if setting.save_maps and not all(path.is_file() for path in maps):
        raise HrbenchError(f"{folder.path}: done before without its maps; choose another output folder to save them")
    folder.tidy()  # of a process that was killed at the very end
    return rescored(run, setting.protocols, groups=job.category.groups, conditions=job.category.conditions)
