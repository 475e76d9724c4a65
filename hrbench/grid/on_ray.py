"""Jobs on the workers of a Ray cluster, or on all devices of this machine: https://docs.ray.io.

This process, the driver, decides who does what (see :mod:`hrbench.grid.board`) and is the only one to write the output
folder, unless the workers share it. A worker is a Ray actor that holds the resources of one job. When it dies, with its
node or for want of memory, what it was doing is done by another; stages that were finished are not done again.
Pictures that it was drawing for a finished run are left to the next call.

Jobs go to workers, and answers come back, in Ray's own serialisation, within a cluster that is the user's own; files
come back as bytes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from hrbench._util.disk import explaining
from hrbench.engine.rehearsal import Expected
from hrbench.errors import Halted, HrbenchError
from hrbench.grid.engine import Engine, Outcome, Watch
from hrbench.grid.foreman import Call, Foreman
from hrbench.grid.gallery import Gallery
from hrbench.grid.worker import Facts, Failed, Needs, StageWorker, needs_of
from hrbench.runs.job import Job
from hrbench.runs.more_pictures import Lacking
from hrbench.runs.parcel import packed, unpack
from hrbench.runs.stages import Setting

__all__ = ["RayEngine"]

log = logging.getLogger("hrbench")

FIRST_SECONDS = 300.0  # in which the first worker has to come up
OTHERS_SECONDS = 30.0  # in which others have to, to be there from the beginning
LOOK_SECONDS = 2.0  # between two looks at which nodes there are
STOP_SECONDS = 60.0  # in which work that is soon done may end when it is asked to stop
FALSE_STARTS = 3  # of workers that die before they can say what they are: then their node is left alone


class Hands(Protocol):
    """What gives workers something to do, as :class:`hrbench.grid.foreman.Foreman`."""

    @property
    def left(self) -> int:
        """What has not ended."""

    def next(self, worker: Hashable, workers: int, sharing: int) -> Call | None:
        """Return what a free worker does next."""

    def received(self, worker: Hashable, result: Any) -> None:
        """Take in what a worker gives."""

    def lost(self, worker: Hashable, reason: str) -> None:
        """Take back what a worker did that has died."""


@dataclass(eq=False)
class _Worker:
    """An actor, and what is known of it."""

    actor: Any
    node: str  # id
    facts: Facts | None = None
    ready: bool = False  # its node has all that the jobs need

    @property
    def name(self) -> str:
        """The host's name."""
        return self.facts.node if self.facts else self.node[:8]

    @property
    def place(self) -> tuple[str, str]:
        """Which device of which host it is on."""
        return (self.facts.node, self.facts.identity) if self.facts else (self.node, "")


@dataclass
class RayEngine(Engine):
    """The workers of a Ray cluster.

    Parameters
    ----------
    address : str, optional
        Of a cluster, as ``auto`` or ``host:6379``; by default Ray is started on this machine, for as long as the
        context lasts.
    device : str
        ``auto`` is the GPU that a worker was given, else the CPU.
    gpus_per_job : float, optional
        By default 1 where there are GPUs. Times on a shared GPU are marked, and left out of reports.
    cpus_per_job : int, optional
        Also the threads of torch; by default up to 4 with a GPU, else 1.
    shared_output : bool
        The output folder is the same for all nodes: workers write there themselves, and a fit that was cut short goes
        on from its last checkpoint. By default results come back through Ray, and need no shared folder.

    Raises
    ------
    HrbenchError
        If Ray is not installed or there is no such cluster, or for numbers that make no sense.
    """

    address: str | None = None
    _: KW_ONLY
    device: str = "auto"
    gpus_per_job: float | None = None
    cpus_per_job: int | None = None
    shared_output: bool = False

    def __post_init__(self) -> None:
        if self.gpus_per_job is not None and self.gpus_per_job < 0:
            raise HrbenchError(f"gpus per job is {self.gpus_per_job:g}, expected at least 0")
        if self.cpus_per_job is not None and self.cpus_per_job < 1:
            raise HrbenchError(f"cpus per job is {self.cpus_per_job}, expected at least 1")
        self._ray: Any = None
        self._own = False  # Ray was started, or connected to, here
        self._workers: list[_Worker] = []
        self._pending: dict[Any, _Worker] = {}
        self._needs: Sequence[Needs] = ()
        self._approved: set[str] = set()  # nodes
        self._precision: tuple[str, str] | None = None  # asked for, and found
        self._output: Path | None = None
        self._looked = self._alive = 0.0
        self._gpus_each, self._cpus_each = 0.0, 1
        self._false_starts: Counter[str] = Counter()  # by node
        self._last_error = ""

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # who asks for no GPU sees none
        try:
            import ray
        except ImportError:
            raise HrbenchError("engine 'ray': Ray is not installed; pip install 'hrbench[ray]'") from None
        self._ray = ray
        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            try:
                if self.address is None:
                    ray.init("local", include_dashboard=False, **quiet)
                else:
                    ray.init(self.address, **quiet)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise HrbenchError(f"engine 'ray': no cluster at {self.address or 'this machine'}: {reason}") from None
            self._own = True
        try:
            self._settle_resources()
            self._look()
            self._await_workers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            with contextlib.suppress(Exception):
                self._ray.kill(worker.actor)
        self._workers, self._pending = [], {}
        if self._own:
            self._ray.shutdown()
            self._own = False

    @property
    def workers(self) -> int:
        """Actors that have come up."""
        return sum(worker.facts is not None for worker in self._workers)

    def describe(self) -> str:
        """Return the cluster's address, and how many workers there are on which devices of which nodes."""
        devices = Counter(f"{w.facts.device} of {w.facts.node}" for w in self._workers if w.facts)
        address = self._ray.get_runtime_context().gcs_address
        return f"Ray at {address}: " + ", ".join(f"{count} x {name}" for name, count in devices.items())

    def precision(self, asked: str) -> str:
        """Return what is meant on all workers."""
        known = [worker.facts for worker in self._workers if worker.facts]
        for facts in known[1:]:
            if dict(facts.versions) != dict(known[0].versions):
                first, other = (_versions(item) for item in (known[0], facts))
                raise HrbenchError(f"nodes differ: {first}; {other}; expected the same versions on all")
        found: dict[str, list[str]] = {}
        for facts in known:
            if asked not in facts.precisions:
                return asked  # who makes the jobs says what is wrong with it
            found.setdefault(facts.precisions[asked], []).append(facts.node)
        if len(found) > 1:
            where = "; ".join(f"{name} on {', '.join(dict.fromkeys(nodes))}" for name, nodes in sorted(found.items()))
            raise HrbenchError(
                f"precision {asked!r} would be {where}: runs that cannot be compared; choose one of them"
            )
        (only,) = found
        self._precision = (asked, only)
        return only

    def check(self, jobs: Sequence[Job]) -> None:
        """Let one worker of every node look whether all is there that the jobs need."""
        self._needs = needs_of(jobs)
        sent = self._ray.put(self._needs)
        by_node = {worker.node: worker for worker in self._workers if worker.facts}
        asked = {worker.actor.lacks.remote(sent): worker for worker in by_node.values()}
        complaints = []
        for reference, worker in asked.items():
            try:
                lacks = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                lacks = [f"died while it was asked: {str(error).splitlines()[0]}"]
            if lacks:
                complaints.append(f"node {worker.name}: {'; '.join(lacks)}")
            self._approved.add(worker.node)
        if complaints:
            raise HrbenchError("\n".join(complaints))
        for worker in self._workers:
            worker.ready = worker.facts is not None

    def rehearse(self, jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Expected | str]]:
        """Measure a batch of each job on one of the workers."""
        foreman = _Rehearsals(jobs, setting)
        for _ in self.drive(foreman, Watch()):
            yield from foreman.found()

    def run(self, jobs: Sequence[Job], output: Path, setting: Setting, watch: Watch) -> Iterator[Outcome]:
        """Do the jobs on all workers, those that are there now and those that come."""
        output = output.resolve()
        self._output = output if self.shared_output else None
        for worker in self._workers:
            worker.actor.share.remote(self._output)
        with Foreman(jobs, output, setting, watch, put=self._ray.put, shared=self.shared_output) as foreman:
            for _ in self.drive(foreman, watch):
                yield from foreman.ended()

    def draw(self, gallery: Gallery, output: Path, watch: Watch) -> None:
        """Draw the pictures on all workers."""
        for _ in self.drive(_Drawings(gallery, output.resolve(), self._ray.put, shared=self.shared_output), watch):
            pass

    def drive(self, hands: Hands, watch: Watch) -> Iterator[None]:
        """Give every worker something to do until nothing is left; yield now and then."""
        calls: dict[Any, tuple[_Worker, str]] = {}
        while hands.left and not watch.stop():
            self._look()
            busy = {worker for worker, _ in calls.values()}
            ready = [worker for worker in self._workers if worker.ready]
            sharing = Counter(worker.place for worker in self._workers)
            for worker in ready:
                if worker not in busy and (call := hands.next(worker, len(ready), sharing[worker.place])) is not None:
                    calls[getattr(worker.actor, call.method).remote(*call.arguments)] = worker, call.method
            yield
            self._take_in(calls, hands, 0.5)
            yield
        # Asked to stop: chunks in work are soon done, fits are not.
        until = time.monotonic() + STOP_SECONDS
        calls = {reference: call for reference, call in calls.items() if call[1] != "fit"}
        while calls and hands.left and time.monotonic() < until:
            self._take_in(calls, hands, 0.5)
            yield

    def _take_in(self, calls: dict[Any, tuple[_Worker, str]], hands: Hands, seconds: float) -> None:
        """Wait for some of the calls to end, and take in what they give."""
        if not calls:
            time.sleep(seconds / 5)
            return
        done, _ = self._ray.wait(list(calls), timeout=seconds)
        for reference in done:
            worker, _ = calls.pop(reference)
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:  # outside of a stage, as when its result cannot be sent
                result = Failed(worker.name, str(error).splitlines()[-1], str(error))
            except self._ray.exceptions.RayError as error:
                self._forget(worker)
                hands.lost(worker, f"{worker.name}: {_reason(error)}")
                continue
            hands.received(worker, result)

    def _look(self) -> None:
        """Start workers where there is room for them, and hear those that have come up."""
        if self._pending:
            done, _ = self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            for reference in done:
                self._hear(reference)
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        counts = Counter(worker.node for worker in self._workers)
        rooms = self._rooms()
        for node, room in rooms.items():
            for _ in range(room - counts[node]):
                if self._false_starts[node] < FALSE_STARTS:
                    self._start(node)
        if self._workers:
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > FIRST_SECONDS:
            raise HrbenchError(
                f"engine 'ray': no worker is left since {FIRST_SECONDS:g} s, and no node has room for one"
            )

    def _rooms(self) -> dict[str, int]:
        """Return by node how many workers it has room for."""
        rooms = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                there = node["Resources"]
                room = int(there.get("CPU", 0) // self._cpus_each)
                if self._gpus_each:
                    room = min(room, int(there.get("GPU", 0) / self._gpus_each + 1e-9))
                rooms[node["NodeID"]] = room
        return rooms

    def _start(self, node: str) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        made = self._ray.remote(_actor_class()).options(
            num_cpus=self._cpus_each,
            num_gpus=self._gpus_each,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        device = "cpu" if self.device == "auto" and not self._gpus_each else self.device
        ours = {name: value for name, value in os.environ.items() if name.startswith("HRBENCH_")}
        worker = _Worker(made.remote(device, self._cpus_each, str(Path.cwd()), ours), node)
        worker.actor.share.remote(self._output)
        self._workers.append(worker)
        self._pending[worker.actor.facts.remote()] = worker

    def _hear(self, reference: Any) -> None:
        """Learn what a worker that has come up says: first what it is, then what its node lacks."""
        worker = self._pending.pop(reference)
        try:
            said = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._false_starts[worker.node] += 1
            self._last_error = _reason(error)
            self._forget(worker)
            return
        if isinstance(said, Facts):
            worker.facts = said
            if self._precision is None:  # in the beginning all are asked together
                return
            asked, found = self._precision
            first = next((w.facts for w in self._workers if w.facts and w.ready), said)
            lacks = [] if said.precisions[asked] == found else [f"{asked} would be {said.precisions[asked]} there"]
            lacks += [] if said.versions == first.versions else [f"it has {_versions(said)}"]
            if not lacks and worker.node not in self._approved:
                self._pending[worker.actor.lacks.remote(self._needs)] = worker
                return
        else:
            lacks = said
        if lacks:
            log.warning("node %s is left out: %s", worker.name, "; ".join(lacks))
            self._false_starts[worker.node] = FALSE_STARTS
            self._forget(worker)
        else:
            self._approved.add(worker.node)
            worker.ready = True

    def _forget(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        with contextlib.suppress(Exception):
            self._ray.kill(worker.actor)

    def _settle_resources(self) -> None:
        """Decide what each worker gets."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        beside = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0)]  # CPUs for each GPU
        gpus = 1.0 if beside and self.device != "cpu" else 0.0
        self._gpus_each = gpus if self.gpus_per_job is None else self.gpus_per_job
        default = max(1, min([4, *(int(self._gpus_each * cpus) for cpus in beside)])) if self._gpus_each else 1
        self._cpus_each = default if self.cpus_per_job is None else self.cpus_per_job
        if not any(self._rooms().values()):
            needed = f"{self._cpus_each} CPUs" + f" and {self._gpus_each:g} GPUs" * bool(self._gpus_each)
            there = ", ".join(
                f"{node['NodeManagerHostname']} ({node['Resources'].get('CPU', 0):g} CPUs, "
                f"{node['Resources'].get('GPU', 0):g} GPUs)"
                for node in self._ray.nodes()
                if node["Alive"]
            )
            raise HrbenchError(f"engine 'ray': no node has room for a job of {needed}; there are {there}")

    def _await_workers(self) -> None:
        """Wait for the workers: long for the first one, a little for the others."""
        first = time.monotonic() + FIRST_SECONDS
        others = None
        while self._pending and time.monotonic() < (first if others is None else others):
            self._look()
            if self.workers and others is None:
                others = time.monotonic() + OTHERS_SECONDS
            time.sleep(0.05)
        if not self.workers:
            raise HrbenchError(f"engine 'ray': no worker came up: {self._last_error or 'no node has room for one now'}")


class _Rehearsals:
    """Measures a batch of each job."""

    def __init__(self, jobs: Sequence[Job], setting: Setting) -> None:
        self._waiting = list(jobs)
        self._setting = setting
        self._at_work: dict[Hashable, Job] = {}
        self._found: list[tuple[Job, Expected | str]] = []

    @property
    def left(self) -> int:
        return len(self._waiting) + len(self._at_work)

    def next(self, worker: Hashable, workers: int, sharing: int) -> Call | None:
        if not self._waiting:
            return None
        job = self._at_work[worker] = self._waiting.pop(0)
        return Call("rehearse", (job, self._setting))

    def received(self, worker: Hashable, result: Any) -> None:
        self._found.append((self._at_work.pop(worker), result.error if isinstance(result, Failed) else result))

    def lost(self, worker: Hashable, reason: str) -> None:
        self._found.append((self._at_work.pop(worker), reason))

    def found(self) -> Iterator[tuple[Job, Expected | str]]:
        while self._found:
            yield self._found.pop(0)


class _Drawings:
    """Has the pictures drawn that runs lack."""

    def __init__(self, gallery: Gallery, output: Path, put: Callable[[Any], Any], *, shared: bool) -> None:
        self._gallery = gallery
        self._output = output
        self._put = put
        self._shared = shared
        self._at_work: dict[Hashable, Lacking] = {}

    @property
    def left(self) -> int:
        return self._gallery.left

    def next(self, worker: Hashable, workers: int, sharing: int) -> Call | None:
        if (task := self._gallery.next()) is None:
            return None
        self._at_work[worker] = task
        folder = task.job.folder(self._output)
        try:
            parcel = packed(folder.path, [] if self._shared else [folder.weights, folder.record])
        except OSError as error:
            del self._at_work[worker]
            self._gallery.failed(task, str(error))
            return None
        return Call("draw", (task, sharing, [self._put(parcel)]))

    def received(self, worker: Hashable, result: Any) -> None:
        task = self._at_work.pop(worker)
        if isinstance(result, Failed):
            words = f"{result.error} (on node {result.node})"
            if result.halts:
                raise Halted(words)
            self._gallery.failed(task, words)
            return
        items, parcel = result
        folder = task.job.folder(self._output).path
        try:
            with explaining(folder):
                unpack(parcel, folder)
                self._gallery.drawn(task, items)
        except HrbenchError as error:
            self._gallery.failed(task, str(error))

    def lost(self, worker: Hashable, reason: str) -> None:
        self._gallery.failed(self._at_work.pop(worker), reason)


@functools.cache
def _actor_class() -> type[StageWorker]:
    """Return the worker that fetches parcels from Ray's store when it needs them."""
    import ray

    class Worker(StageWorker):
        def predict(self, job: Job, setting: Setting, workers: int, fitted: Any, chunks: Any) -> Any:
            return super().predict(job, setting, workers, lambda: ray.get(fitted[0]), chunks)

        def score(self, job: Job, setting: Setting, workers: int, fitted: Any, shards: Any) -> Any:
            return super().score(job, setting, workers, lambda: ray.get(fitted[0]), lambda: ray.get(shards[0]))

        def draw(self, task: Lacking, workers: int, fitted: Any) -> Any:
            return super().draw(task, workers, lambda: ray.get(fitted[0]))

    return Worker


def _versions(facts: Facts) -> str:
    return f"{facts.node} has " + ", ".join(f"{name} {version}" for name, version in facts.versions.items())


def _reason(error: Exception) -> str:
    """Return why a worker has died: of what Ray says the first line, or the last one of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback") or line.startswith("File ") for line in lines) else lines[0]
