"""A worker of an engine that has several: it does stages of jobs, and sends what they leave as bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch

from hrbench._util.disk import explaining
from hrbench._util.guard import guarded
from hrbench.contract import explained, fails_one_job, make
from hrbench.data.sample import Category
from hrbench.engine.device import device_identity, device_name, pick_device
from hrbench.engine.rehearsal import Expected
from hrbench.engine.training import seeded
from hrbench.errors import Halted, HrbenchError
from hrbench.precision import pick_precision
from hrbench.registry import load_method, source_digest
from hrbench.runs.batch_sizes import BatchSizes
from hrbench.runs.environment import environment
from hrbench.runs.job import Job, identities
from hrbench.runs.more_pictures import Lacking
from hrbench.runs.parcel import Parcel, packed, unpack
from hrbench.runs.picture_files import Picture
from hrbench.runs.stages import Setting, Workbench, calibrations, rehearse, shards_of
from hrbench.runs.store import RunFolder, batch_sizes_folder

__all__ = ["Facts", "Failed", "Needs", "StageWorker", "fit_files", "listing", "needs_of"]

T = TypeVar("T")

VERSIONS = ("hrbench", "torch", "timm", "numpy")  # on which the bits of a result depend


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself.

    Attributes
    ----------
    node : str
        Its host's name.
    device, identity : str
        The device's name for people, and what tells it from others of the host.
    precisions : mapping of str to str
        What is meant by each that may be asked for.
    versions : mapping of str to str
    """

    node: str
    device: str
    identity: str
    precisions: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """A stage that ended with an error, as text: not every exception can be sent.

    Attributes
    ----------
    node : str
    error : str
    traceback : str
        Empty for a user's mistake, which needs none.
    halts : bool
        Whether no job can go on, see :class:`hrbench.errors.Halted`.
    """

    node: str
    error: str
    traceback: str
    halts: bool = False


@dataclass(frozen=True)
class Needs:
    """What a job needs wherever it runs, as the one who asks has it."""

    job: Job
    source: str
    listing: str


def needs_of(jobs: Sequence[Job]) -> list[Needs]:
    """Return what jobs need, each method with its options and each category once."""
    chosen: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        options = repr(sorted(job.recorded_options.items()))
        chosen.setdefault(("method", job.method, options), job)
        chosen.setdefault(("category", job.category.name), job)
    unique = {job.name: job for job in chosen.values()}
    return [Needs(job, source_digest(load_method(job.method)), listing(job.category)) for job in unique.values()]


def listing(category: Category) -> str:
    """Return the SHA-256 over names and sizes of all files of a category: what can be told without reading them.

    That their content is the same is seen later, from the digests that every stage leaves.
    """
    state = hashlib.sha256(category.names_digest.encode())
    for sample in (*category.train, *category.test):
        for path in (sample.image, *sample.masks):
            state.update(f"{path.stat().st_size}\n".encode())
    return state.hexdigest()


class StageWorker:
    """Does one stage after another; the method of the last job stays loaded.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda`` ...
    threads : int
        Of torch on a CPU.
    folder : str
        What relative paths start from, if it is there.
    variables : mapping of str to str
        Of the environment.
    """

    def __init__(
        self, device: str, threads: int, folder: str = ".", variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        os.environ.update(variables)
        torch.set_num_threads(threads)
        self._device = pick_device(device)
        self._output: Path | None = None
        self._open = ExitStack()
        self._at: tuple[str, Workbench, RunFolder] | None = None  # the job, by its name
        self._scratch = _scratch()
        self._batch_sizes = BatchSizes()

    def share(self, output: Path | None) -> None:
        """Write into the folder of all runs, which can be reached from here; for None files come and go as bytes."""
        self.close()
        self._output = output and output.absolute()  # a method may change the current folder
        self._batch_sizes = BatchSizes(self._output and batch_sizes_folder(self._output))

    def facts(self) -> Facts:
        """Say what this worker is."""
        return Facts(
            socket.gethostname(),
            device_name(self._device),
            device_identity(self._device),
            {name: pick_precision(name, self._device) for name in ("auto", "float32", "bfloat16")},
            {name: version for name, version in environment().items() if name in VERSIONS},
        )

    def lacks(self, needs: Sequence[Needs]) -> list[str]:
        """Return in words what is missing here, or is another than where the jobs come from."""
        found: list[str] = []
        for need in needs:
            job = need.job
            try:
                if listing(job.category) != need.listing:
                    found.append(f"category {job.category.name!r}: the files there are others")
                cls = load_method(job.method)
                if source_digest(cls) != need.source:
                    found.append(f"method {job.method!r}: its code there is another")
                if identities(cls, job.options) != job.recorded_options:
                    found.append(f"method {job.method!r}: the weights of its options there are others")
                else:
                    with seeded(job.seed), guarded(f"{job.method_name}: {cls.__name__}()"):
                        make(cls, job.options)
            except OSError as error:
                found.append(f"{error.filename or job.category.name}: {error.strerror or error}")
            except Exception as error:  # whatever a method says when its weights are not there
                found.append(str(error) or type(error).__name__)
        return list(dict.fromkeys(found))

    def rehearse(self, job: Job, setting: Setting) -> Expected | Failed:
        """Measure a batch of a job."""
        self.close()
        return self._tried(lambda: rehearse(job, setting, self._device))

    def fit(self, job: Job, setting: Setting, workers: int) -> tuple[str, Parcel] | Failed:
        """Fit a job; return the digest of the training images, and what the fit leaves."""

        def stage() -> tuple[str, Parcel]:
            self.close()
            bench, folder = self._placed(job, setting, workers)
            if self._output is None:
                folder.begin(job.category.train_digest)
            elif not folder.began(job.category.train_digest):
                raise HrbenchError(f"category {job.category.name!r}: other training images on this node")
            bench.fit()
            files = [] if self._output else fit_files(job, folder, setting)
            return job.category.train_digest, packed(folder.path, files)

        return self._tried(stage)

    def predict(
        self, job: Job, setting: Setting, workers: int, fitted: Callable[[], Parcel], chunks: Sequence[int]
    ) -> dict[int, tuple[Parcel, Parcel]] | Failed:
        """Predict chunks of the test images; return for each its shard and its maps.

        Parameters
        ----------
        job : Job
        setting : Setting
        workers : int
            That share the device.
        fitted : callable
            Gives what the fit has left, if it is not here.
        chunks : sequence of int
        """

        def stage() -> dict[int, tuple[Parcel, Parcel]]:
            bench, folder = self._placed(job, setting, workers, fitted)
            shards = shards_of(job, folder, setting)
            sent: dict[int, tuple[Parcel, Parcel]] = {}
            for _ in bench.predict(shards, [number for number in chunks if not shards.complete(number)]):
                pass
            if self._output is None:
                for number in chunks:
                    shard = folder.shard(number).path
                    maps = [folder.map_of(s.id) for s in shards.chunk(number)] if setting.save_maps else []
                    sent[number] = packed(shard, [shard]), packed(folder.path, maps)
            return sent

        return self._tried(stage)

    def score(
        self, job: Job, setting: Setting, workers: int, fitted: Callable[[], Parcel], shards: Callable[[], Parcel]
    ) -> Parcel | Failed:
        """Score a job whose evidence is there, or in what `shards` gives; return the finished run."""

        def stage() -> Parcel:
            bench, folder = self._placed(job, setting, workers, fitted)
            if self._output is None:
                unpack(shards(), folder.path)
            bench.score(shards_of(job, folder, setting))
            if self._output is not None:
                return {}
            return packed(folder.path, run_files(folder))

        parcel = self._tried(stage)
        self.close()
        return parcel

    def draw(
        self, task: Lacking, workers: int, fitted: Callable[[], Parcel]
    ) -> tuple[tuple[Picture, ...], Parcel] | Failed:
        """Draw the pictures that a finished run lacks; return them, and their files."""

        def stage() -> tuple[tuple[Picture, ...], Parcel]:
            self.close()
            bench, folder = self._placed(task.job, task.setting, workers, fitted)
            items = bench.draw(task.numbered, task.scale)
            return items, packed(folder.path, [path for item in items for path in item.files])

        found = self._tried(stage)
        self.close()
        return found

    def close(self) -> None:
        """Forget the job, its method and its files."""
        self._open.close()
        self._at = None
        for folder in self._scratch.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def _placed(
        self, job: Job, setting: Setting, workers: int, fitted: Callable[[], Parcel] | None = None
    ) -> tuple[Workbench, RunFolder]:
        """Return the bench with the job's method on it, and the folder with what was learnt in it."""
        if self._at is None or self._at[0] != job.name:
            self.close()
            folder = job.folder(self._output or self._scratch)
            if fitted is not None and self._output is None:
                unpack(fitted(), folder.path)
            bench = Workbench(
                job, folder, setting, self._device, workers=lambda: workers, batch_sizes=self._batch_sizes
            )
            self._at = job.name, self._open.enter_context(bench), folder
        return self._at[1:]

    def _tried(self, stage: Callable[[], T]) -> T | Failed:
        try:
            with explaining(self._output or self._scratch):
                return stage()
        except BaseException as fault:
            if not fails_one_job(fault):
                raise
            error = explained(fault)
            text = traceback.format_exc() if not isinstance(error, HrbenchError | Halted) else ""
            self.close()
            words = str(error) or type(error).__name__
            return Failed(socket.gethostname(), words, text, halts=isinstance(error, Halted))


def fit_files(job: Job, folder: RunFolder, setting: Setting) -> list[Path]:
    """Return the files that a fit leaves; the last one says that all are there."""
    some = [path for path in (folder.fusion, folder.setting) if path.is_file()]
    return [folder.weights, folder.fit_cost, *some, *calibrations(job, folder, setting), folder.calibrated]


def run_files(folder: RunFolder) -> list[Path]:
    """Return the files of a finished run but for weights and maps; the last one says that all are there."""
    tables = [path for path in folder.path.glob("*.parquet") if not path.name.startswith(".")]
    return [folder.path / "evidence", *tables, folder.pictures, folder.record]


def _scratch() -> Path:
    """Return a folder for the files of this process; those of processes that were killed are removed."""
    root = Path(tempfile.gettempdir())
    for left in root.glob("hrbench-work-*"):
        process = left.name.split("-")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"hrbench-work-{os.getpid()}-"))
