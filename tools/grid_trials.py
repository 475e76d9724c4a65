"""Try whether jobs end with the same bits when many processes share them, and when processes are killed at any moment.

    python tools/grid_trials.py share --rounds 100 --processes 2 3 --output results/grid_share.md
    python tools/grid_trials.py kill --kills 200 --engine local ray --minutes 60 --output results/grid_kill.md
    python tools/grid_trials.py kill --engine local --seed 0 --first 17 --trials 1 --keep
    python tools/grid_trials.py share --rounds 3 --sabotage lease

Jobs are small ones of a trial method: 40 steps of 3 ms, a checkpoint every 50 ms, 24 test images in 12 chunks of 12 ms,
one thread. The method, an adapter that this tool writes, appends a line to a journal for every fit and every predicted
batch, and for every stage that begins. Expected are the bits of one process alone: all files of the run folder, but for
the column ``seconds`` and, in ``run.json``, when and at what cost it was made; and nothing else in the output folder.

``share`` starts so many processes with the same jobs on one folder at the same moment. One process fits each job once,
predicts its held-out images once and each of its test images once, and again once those of its pictures. Processes that
share jobs may repeat nothing of that; but who helps with test images of a job warms up first, with one batch of
held-out images. Processes look at each other's jobs every 50 ms instead of every second, else they would mostly wait.

``kill`` begins jobs, waits for a stage, and after a random share of the stage's usual time sends SIGKILL; then the jobs
are begun anew, and may be killed again. A kill is good if the jobs of its trial ended with the expected bits.

- local, alone: the only process is killed.
- local, shared: one of two processes is killed; the other one goes on, and at times a new one joins it.
- ray, worker: actors of a cluster are killed, the driver goes on; ray, driver: the driver is killed and started anew.
  The cluster outlives both. Half of the trials share the output folder with the workers, half do not.

A trial depends on ``--seed`` and its number, but for the moments at which the system lets processes run.
``--sabotage`` breaks hrbench, to show that the trials would notice: ``lease`` gives every lease to everyone, ``seed``
lets random numbers depend on the process, ``tidy`` leaves what only unfinished jobs need.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before torch is imported, and then forked
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
from campaign.verdict import digests
from PIL import Image

from hrbench import LocalEngine, RayEngine, load_dataset, load_protocol
from hrbench.engine import training
from hrbench.engine.device import device_name, pick_device
from hrbench.grid import local
from hrbench.grid.engine import Engine, Watch
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.stages import Setting
from hrbench.runs.store import RunFolder

CATEGORIES, SEEDS = ("bolt", "nut"), (0, 1, 2, 3, 4)
TRAIN, GOOD, BAD, SIDE = 20, 10, 14, 32
TRIAL_SECONDS = 600.0  # in which the jobs of a trial have to end
STAGES = ("start", "fit", "calibrate", "predict", "score", "tidy")
WORKER_STAGES = ("fit", "calibrate", "predict", "score")
NAMES = {"tidied": "between jobs", "start": "start", "tidy": "remove what is left"}
JOURNAL, JOB = "HRBENCH_TRIAL_JOURNAL", "HRBENCH_TRIAL_JOB"
MOST_LOST = 3  # workers per job: with one more the job has failed, as it should

ADAPTER = '''"""A method for trials: slow on purpose, and it tells a journal what it does."""

import functools
import os
import time

import torch
from torch import nn

from hrbench.engine import training
from hrbench.method import Method, Prediction, Preset
from hrbench.runs import shards, stages, store

shards.CHUNK = 2
training.CHECKPOINT_SECONDS = 0.05


def note(event, detail="-"):
    line = f"{time.monotonic_ns()} {os.getpid()} {event} {os.environ.get('HRBENCH_TRIAL_JOB', '-')} {detail}\\n"
    handle = os.open(os.environ["HRBENCH_TRIAL_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, line.encode())
    os.close(handle)


def watch(cls, name, before, after, job_of):
    real = getattr(cls, name)

    @functools.wraps(real)
    def watched(self, *arguments, **options):
        os.environ["HRBENCH_TRIAL_JOB"] = job_of(self)
        note(before)
        result = real(self, *arguments, **options)
        if after:
            note(after)
        return result

    setattr(cls, name, watched)


if not hasattr(stages, "is_watched"):  # an adapter is executed whenever it is asked for
    stages.is_watched = True
    for name, event in (("_fit", "fit"), ("_calibrate", "calibrate"), ("predict", "predict"), ("score", "score")):
        watch(stages.Workbench, name, event, "", lambda bench: bench._job.name)
    watch(store.RunFolder, "tidy", "tidy", "tidied", lambda folder: folder.path.name)


class Trial(Method):
    title = "Trial"
    paper = "none"
    presets = {"native": Preset("whole:32")}

    def __init__(self, steps: int = 40, noise: float = 0.05):
        super().__init__()
        self.colour = nn.Parameter(torch.rand(3))
        self.steps, self.noise = steps, noise

    def fit(self, normals, context):
        note("fit-begin")
        optimizer = torch.optim.Adam([self.colour], lr=0.05)

        def loss(batch):
            time.sleep(0.003)
            noisy = batch + self.noise * torch.randn_like(batch)
            return (noisy - self.colour[:, None, None]).square().mean()

        for stage in ("first", "second"):
            context.train(normals, loss, optimizer, steps=self.steps // 2, batch_size=4, description=stage)
        note("fit-end")

    def predict(self, batch):
        time.sleep(0.012)
        codes = (batch[:, :2, 0, 0] * 255).round().int().tolist()
        note("batch", ",".join(f"{'test' if kind else 'train'}:{number}" for kind, number in codes))
        noisy = batch + 0.1 * self.noise * torch.randn_like(batch)
        return Prediction({"distance": (noisy - self.colour[:, None, None]).square().sum(dim=1)})
'''


class Line(NamedTuple):
    """What the journal says."""

    ns: int
    pid: int
    event: str
    job: str
    detail: str


@dataclass
class World:
    """What all trials have in common."""

    work: Path
    jobs: list[Job]
    setting: Setting
    sabotage: str
    expected: dict[str, dict[str, str]] = field(default_factory=dict)  # by job, its files
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, its usual time

    @property
    def journal(self) -> Path:
        """Where processes say what they do."""
        return self.work / "journal"

    def lines(self, since: int = 0) -> list[Line]:
        """Return what the journal says after so many bytes."""
        if not self.journal.is_file():
            return []
        with self.journal.open("rb") as file:
            file.seek(since)
            text = file.read().decode()
        whole = text[: text.rfind("\n") + 1]
        return [Line(int(p[0]), int(p[1]), p[2], p[3], p[4]) for p in (line.split() for line in whole.splitlines())]

    def mark(self) -> int:
        """Return how long the journal is."""
        return self.journal.stat().st_size if self.journal.is_file() else 0

    def files_of(self, jobs: Sequence[Job], output: Path) -> dict[str, str]:
        """Return what has to be below `output` when these jobs are done."""
        files: dict[str, str] = {}
        for job in jobs:
            folder = job.folder(output).path.relative_to(output)
            files |= {str(parent): "folder" for parent in folder.parents if parent != Path()}
            files |= {str(folder / name): digest for name, digest in self.expected[job.name].items()}
            files[str(folder)] = "folder"
        return files


# -- processes ---------------------------------------------------------------------------------------------------------


def spawn(function: Callable[..., int], *arguments: Any, log: Path) -> int:
    """Run a function in a fork of this process, and return its id: what was imported need not be imported again."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.dump_traceback_later(0.9 * TRIAL_SECONDS, exit=False)
        code = function(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def in_fork(function: Callable[..., Any], *arguments: Any, log: Path) -> Any:
    """Return what a function gives in a fork: this process itself must start no thread, or its forks would lack it."""
    reader, writer = os.pipe()

    def told() -> int:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(function(*arguments), pipe)
        return 0

    pid = spawn(told, log=log)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        raise SystemExit(f"{function.__name__} failed:\n{log.read_text(encoding='utf-8')}")
    return json.loads(text)


class Processes:
    """Forks that are alive, and how the others have ended."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.codes: dict[int, int] = {}

    def add(self, pid: int) -> int:
        """Add a process that has just been started."""
        self.alive.add(pid)
        return pid

    def look(self) -> set[int]:
        """Return those that are alive now."""
        for pid in list(self.alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.alive.discard(pid)
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return self.alive

    def kill(self, pid: int) -> bool:
        """Kill one; return whether it was alive until then."""
        if pid not in self.look():
            return False
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.alive.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            self.codes[pid] = code
        return code == -signal.SIGKILL

    def end(self) -> None:
        """Kill those that are left."""
        for pid in list(self.alive):
            self.kill(pid)

    def wait(self, until: float) -> bool:
        """Wait for all; return whether they have ended in time."""
        while self.look() and time.monotonic() < until:
            time.sleep(0.002)
        return not self.alive


def note(event: str) -> None:
    """Append a line to the journal, as the adapter does."""
    handle = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, f"{time.monotonic_ns()} {os.getpid()} {event} - -\n".encode())
    os.close(handle)


def attempt(world: World, jobs: Sequence[Job], output: Path, engine: Engine, gate: int | None = None) -> int:
    """Do the jobs in this process, which is a fork; return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    local.WAIT_SECONDS = 0.05
    sabotage(world.sabotage)
    if gate is not None:
        os.read(gate, 1)  # until it is closed
    note("start")
    failed = 0
    with engine:
        engine.precision("float32")
        engine.check(jobs)
        outcomes = list(engine.run(jobs, output, world.setting, Watch()))
    for outcome in outcomes:
        if outcome.run is None:
            failed += 1
            print(f"{outcome.job.name}: {outcome.error}\n{outcome.traceback}")
    return 1 if failed or len(outcomes) < len(jobs) else 0


def sabotage(what: str) -> None:
    """Break hrbench in this process."""
    if what == "lease":
        Leases.take = lambda self, path: True  # type: ignore[method-assign]
        Leases.give_back = lambda self, path: None  # type: ignore[method-assign]
    elif what == "seed":
        training.mix = lambda *numbers: os.getpid()
    elif what == "tidy":
        RunFolder.tidy = lambda self: None  # type: ignore[method-assign]


# -- what is expected --------------------------------------------------------------------------------------------------


def differences(world: World, jobs: Sequence[Job], output: Path) -> list[str]:
    """Return in words where a folder is another than expected."""
    found = in_fork(digests, output, log=world.work / "compare.log")
    expected = world.files_of(jobs, output)
    words = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    words += [f"{name}: left over" for name in sorted(found.keys() - expected.keys())]
    return words + [f"{k}: other bits" for k in sorted(found.keys() & expected.keys()) if found[k] != expected[k]]


def write_data(root: Path) -> None:
    """Write noise images in MVTec AD layout; their first pixel says which one it is."""
    rng = np.random.default_rng(0)

    def save(path: Path, kind: int, number: int, mask: Any = None) -> None:
        pixels = np.clip(rng.normal(150, 6, (SIDE, SIDE, 3)), 0, 255)
        if mask is not None:
            pixels[mask] -= 60
        pixels[0, 0] = (255 * kind, number, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    for category in CATEGORIES:
        place = root / category
        for number in range(TRAIN):
            save(place / "train" / "good" / f"{number:03d}.png", 0, number)
        for number in range(GOOD):
            save(place / "test" / "good" / f"{number:03d}.png", 1, number)
        for number in range(GOOD, GOOD + BAD):
            side = 2 + number % 7
            top, left = (int(n) for n in rng.integers(1, SIDE - side, 2))
            mask = np.zeros((SIDE, SIDE), bool)
            mask[top : top + side, left : left + side] = True
            save(place / "test" / "dent" / f"{number:03d}.png", 1, number, mask)
            target = place / "ground_truth" / "dent" / f"{number:03d}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)


def make_world(work: Path, broken: str) -> World:
    """Write data and method, and do every job once in a process alone."""
    os.environ[JOURNAL] = str(work / "journal")
    write_data(work / "data")
    adapter = work / "trial_adapter.py"
    adapter.write_text(ADAPTER, encoding="utf-8")
    dataset = load_dataset("folder", work / "data")
    jobs = [make_job(c, str(adapter), preset="native", seed=seed) for seed in SEEDS for c in dataset.categories]
    native = load_protocol("native")
    protocol = replace(native, bootstrap=replace(native.bootstrap, draws=20))
    world = World(work, jobs, Setting((protocol,), batch_size=2), "")
    output = work / "alone"
    seconds = solo(world, jobs, output)
    for job in jobs:
        world.expected[job.name] = in_fork(digests, job.folder(output).path, log=work / "compare.log")
    world.seconds = _stage_seconds(world.lines())
    words = differences(world, jobs, output)
    if words or Tally.of(world.lines(), jobs).complaints(helpers=False):
        raise SystemExit(f"one process alone: {words} {Tally.of(world.lines(), jobs).complaints(helpers=False)}")
    times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in world.seconds.items())
    print(f"one process alone: {len(jobs)} jobs in {seconds:.1f} s; {times}", flush=True)
    world.sabotage = broken
    return world


def solo(world: World, jobs: Sequence[Job], output: Path) -> float:
    """Let one process do the jobs alone; return how long it took."""
    began = time.monotonic()
    log = world.work / "alone.log"
    pid = spawn(attempt, world, jobs, output, LocalEngine("cpu", threads=1), log=log)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"one process alone has failed:\n{log.read_text(encoding='utf-8')}")
    return time.monotonic() - began


def _stage_seconds(lines: Sequence[Line]) -> dict[str, float]:
    """Return the median time of each stage, from one process alone."""
    marks = [line for line in lines if line.event in (*STAGES, "tidied")]
    spans = defaultdict(list)
    for line, following in itertools.pairwise(marks):
        spans[line.event].append((following.ns - line.ns) / 1e9)
    return {stage: statistics.median(spans[stage]) for stage in STAGES}


# -- share -------------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What processes have done for some jobs, together."""

    jobs: Sequence[Job]
    fits: Counter[str] = field(default_factory=Counter)
    fits_ended: Counter[str] = field(default_factory=Counter)
    scores: Counter[str] = field(default_factory=Counter)
    calibrated: Counter[tuple[str, str]] = field(default_factory=Counter)
    predicted: Counter[tuple[str, str]] = field(default_factory=Counter)
    pictures: Counter[tuple[str, str]] = field(default_factory=Counter)
    warm_ups: Counter[str] = field(default_factory=Counter)
    helps: Counter[str] = field(default_factory=Counter)  # predictions begun by who did not fit
    helped_images: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(lines: Sequence[Line], jobs: Sequence[Job]) -> Tally:
        """Count what the journal says."""
        tally, stage = Tally(jobs), dict[int, str]()
        fitted_by = {line.job: line.pid for line in reversed(lines) if line.event == "fit-begin"}
        for line in lines:
            if line.event in STAGES:
                stage[line.pid] = line.event
            tally._add(line, stage.get(line.pid, ""), own=fitted_by.get(line.job) == line.pid)
        return tally

    def _add(self, line: Line, stage: str, *, own: bool) -> None:
        images = line.detail.split(",")
        if line.event == "fit-begin":
            self.fits[line.job] += 1
        elif line.event == "fit-end":
            self.fits_ended[line.job] += 1
        elif line.event == "score":
            self.scores[line.job] += 1
        elif line.event == "batch" and stage == "calibrate":
            self.calibrated.update((line.job, image) for image in images)
        elif line.event == "batch" and stage == "score":
            self.pictures.update((line.job, image) for image in images)
        elif line.event == "batch" and images[0].startswith("train"):
            self.warm_ups[line.job] += 1
        elif line.event == "batch":
            self.predicted.update((line.job, image) for image in images)
            self.helped_images[line.job] += 0 if own else len(images)
        elif line.event == "predict" and not own:
            self.helps[line.job] += 1

    def again(self, counts: Counter[Any]) -> int:
        """Return how often something was done again."""
        return sum(count - 1 for count in counts.values())

    def complaints(self, *, helpers: bool = True) -> list[str]:
        """Return in words what is not as it should be."""
        words = []
        for name in (job.name for job in self.jobs):
            facts = {
                "fits begun": (self.fits[name], 1),
                "fits ended": (self.fits_ended[name], 1),
                "scored": (self.scores[name], 1),
                "held-out images predicted": (sum(n for (j, _), n in self.calibrated.items() if j == name), 2),
                "test images predicted": (sum(n for (j, _), n in self.predicted.items() if j == name), GOOD + BAD),
                "different test images predicted": (sum(j == name for j, _ in self.predicted), GOOD + BAD),
                "pictured images predicted": (
                    sum(n for (j, _), n in self.pictures.items() if j == name),
                    sum(j == name for j, _ in self.pictures),
                ),
            }
            words += [f"{name}: {what} {found}, expected {n}" for what, (found, n) in facts.items() if found != n]
            most = self.helps[name] if helpers else 0
            if self.warm_ups[name] > most:
                words.append(f"{name}: {self.warm_ups[name]} warm-ups by {most} helpers")
        return words


@dataclass
class Round:
    """Processes that have shared the same jobs."""

    processes: int
    jobs: int
    seconds: float
    codes: list[int]
    words: list[str]  # of differences
    tally: Tally

    @property
    def good(self) -> bool:
        """Whether all is as it should be."""
        return not (any(self.codes) or self.words or self.tally.complaints())


def share_round(world: World, processes: int, jobs: Sequence[Job], output: Path) -> Round:
    """Start processes with the same jobs at the same moment, and wait for them."""
    since, group = world.mark(), Processes()
    gate, handle = os.pipe()

    def begin() -> int:
        os.close(handle)
        return attempt(world, jobs, output, LocalEngine("cpu", threads=1), gate)

    for _ in range(processes):
        group.add(spawn(begin, log=output.with_suffix(".log")))
    time.sleep(0.05)  # all are waiting by then
    began = time.monotonic()
    os.close(handle)
    in_time = group.wait(began + TRIAL_SECONDS)
    seconds = time.monotonic() - began
    os.close(gate)
    group.end()
    codes = list(group.codes.values()) + ([] if in_time else [-1])
    words = differences(world, jobs, output)
    return Round(processes, len(jobs), seconds, codes, words, Tally.of(world.lines(since), jobs))


def share(args: argparse.Namespace, world: World) -> tuple[list[str], bool]:
    """Run the rounds of ``share``; return lines of Markdown, and whether all is well."""
    until = time.monotonic() + 60 * args.minutes
    rounds: list[Round] = []
    alone: dict[int, list[float]] = defaultdict(list)
    complaints: list[str] = []
    for number in range(args.rounds):
        for processes in args.processes:
            if time.monotonic() > until:
                break
            jobs = world.jobs[: 1 + number % 3]
            output = world.work / f"share-{number}-{processes}"
            rounds.append(done := share_round(world, processes, jobs, output))
            if not done.good:
                complaints.append(_complain(number, done, output))
                print(complaints[-1], flush=True)
            elif not args.keep:
                _remove(output)
        if number % 10 < 3 and time.monotonic() < until and not world.sabotage:
            jobs = world.jobs[: 1 + number % 3]
            alone[len(jobs)].append(solo(world, jobs, world.work / "solo"))
            complaints += differences(world, jobs, world.work / "solo")
            shutil.rmtree(world.work / "solo")
        if number % 10 == 9:
            print(f"{number + 1} rounds, {sum(not r.good for r in rounds)} not good", flush=True)
    header = (
        "processes | jobs | rounds | good | equal bits, nothing left | fits again | test images again | scored again "
        "| pictures again | held-out again | warm-ups | rounds with help | images by helpers | median s | alone s"
    )
    rows = [
        _share_row(part, alone[jobs])
        for processes in args.processes
        for jobs in (1, 2, 3)
        if (part := [r for r in rounds if (r.processes, r.jobs) == (processes, jobs)])
    ]
    unit = f"One process, per job: 1 fit, 2 held-out images, {GOOD + BAD} test images, pictures. Alone: medians of "
    counts = ", ".join(f"{len(times)} times {jobs} jobs" for jobs, times in sorted(alone.items()))
    return [*_table(header, rows), "", unit + (counts or "no run") + ".", *_listed(complaints)], not complaints


def _share_row(part: Sequence[Round], alone: Sequence[float]) -> list[str]:
    def total(count: Callable[[Tally], int]) -> str:
        return str(sum(count(r.tally) for r in part))

    same = sum(not r.words for r in part)
    helped = sum(any(r.tally.helped_images.values()) for r in part)
    return [
        str(part[0].processes),
        str(part[0].jobs),
        str(len(part)),
        str(sum(r.good for r in part)),
        str(same),
        total(lambda t: t.again(t.fits)),
        total(lambda t: t.again(t.predicted)),
        total(lambda t: t.again(t.scores)),
        total(lambda t: t.again(t.pictures)),
        total(lambda t: t.again(t.calibrated)),
        total(lambda t: t.warm_ups.total()),
        str(helped),
        total(lambda t: t.helped_images.total()),
        f"{statistics.median(r.seconds for r in part):.2f}",
        f"{statistics.median(alone):.2f}" if alone else "–",
    ]


def _complain(number: int, done: Round, output: Path) -> str:
    words = [*done.words, *done.tally.complaints()]
    tail = _tail(output.with_suffix(".log")) if any(done.codes) else ""
    return f"round {number} of {done.processes} processes: exit codes {done.codes}; " + "; ".join(words[:8]) + tail


# -- kill --------------------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """A kill, and where it struck."""

    engine: str
    stage: str
    delay: float
    pid: int
    job: str
    checkpoint: bool


@dataclass
class Trial:
    """Jobs that were killed until they ended."""

    number: int
    engine: str
    kills: list[Kill] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    attempts: int = 0


class Watcher:
    """Waits for stages in the journal, and says where a process is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since = world.mark()
        self.events: list[Line] = []  # that say where a process is

    def look(self) -> list[Line]:
        """Return the stages that have begun since it was asked last."""
        new = self._world.lines(self._since)
        if new:
            raw = self._world.journal.open("rb")
            with raw:
                raw.seek(self._since)
                text = raw.read()
            self._since += text.rfind(b"\n") + 1
            new = [line for line in new if line.event in (*STAGES, "tidied")]
            self.events += new
        return new

    def last(self, pid: int | None = None) -> Line | None:
        """Return the last stage that a process, or any, has begun."""
        self.look()
        return next((line for line in reversed(self.events) if pid is None or line.pid == pid), None)


def strike(
    world: World,
    rng: random.Random,
    watcher: Watcher,
    group: Processes,
    stage: str,
    until: float,
    *,
    allowed: Callable[[Line], bool] = lambda line: True,
) -> tuple[Line, float] | None:
    """Wait for a stage and then a random share of its time; return who is to be killed; None if all have ended."""
    while group.look() and time.monotonic() < until:
        for line in watcher.look():
            if line.event == stage and allowed(line):
                delay = rng.uniform(0, 1.1 * world.seconds[stage])
                if rng.random() < 0.3:  # shortly after it has begun
                    delay = math.exp(rng.uniform(math.log(1e-4), math.log(max(2e-4, delay))))
                time.sleep(max(0.0, line.ns / 1e9 + delay - time.monotonic()))
                return line, delay
        time.sleep(0.0005)
    return None


def kill_local(world: World, number: int, rng: random.Random, most: int) -> Trial:
    """Kill processes that do one or two jobs, alone or two together."""
    processes = rng.choice((1, 2))
    trial = Trial(number, f"local, {'shared' if processes == 2 else 'alone'}")
    jobs = rng.sample(world.jobs, rng.choice((1, 1, 2)))
    output = world.work / f"kill-{number}"
    log, group, watcher = output.with_suffix(".log"), Processes(), Watcher(world)
    until = time.monotonic() + TRIAL_SECONDS

    def begin() -> None:
        trial.attempts += 1
        group.add(spawn(attempt, world, jobs, output, LocalEngine("cpu", threads=1), log=log))

    budget, struck_at = min(most, rng.randint(1, 6)), -math.inf
    for _ in range(processes):
        begin()
    while True:
        struck = None
        if len(trial.kills) < budget:
            struck = strike(world, rng, watcher, group, rng.choice(STAGES), until)
        if struck is None:
            break
        line, delay = struck
        if group.kill(line.pid):
            struck_at = time.monotonic()
            trial.kills.append(_kill(trial.engine, watcher, line.pid, delay, jobs, output))
        if not group.look() or (len(group.alive) < processes and rng.random() < 0.6):
            begin()
    in_time = group.wait(until)
    if time.monotonic() - struck_at < 0.5:  # the others were leaving when the last one was killed
        begin()
        in_time = group.wait(until)
    if not in_time:
        trial.words.append(f"not done after {TRIAL_SECONDS:g} s")
    _conclude(world, trial, group, jobs, output, log)
    return trial


def _kill(engine: str, watcher: Watcher, pid: int, delay: float, jobs: Sequence[Job], output: Path) -> Kill:
    """Note where a process was when it was killed."""
    at = watcher.last(pid)
    name = at.job if at else "-"
    checkpoint = any(job.folder(output).checkpoint.is_file() for job in jobs if job.name == name)
    stage = NAMES.get(at.event, at.event) if at else "?"
    if stage == "fit" and checkpoint:
        stage = "fit, with a checkpoint"
    return Kill(engine, stage, delay, pid, name, checkpoint)


def _conclude(world: World, trial: Trial, group: Processes, jobs: Sequence[Job], output: Path, log: Path) -> None:
    group.end()
    if any(group.codes.values()):
        trial.words.append(f"exit codes {group.codes}{_tail(log)}")
    trial.words += differences(world, jobs, output)


def kill_ray(world: World, number: int, rng: random.Random, most: int, address: str) -> Trial:
    """Kill workers or drivers on a cluster that outlives them."""
    workers, shared = rng.random() < 0.5, rng.random() < 0.5
    trial = Trial(number, f"ray, {'worker' if workers else 'driver'}, {'shared folder' if shared else 'by Ray'}")
    jobs = world.jobs if workers else rng.sample(world.jobs, 2)
    output = world.work / f"kill-{number}"
    log, group, watcher = output.with_suffix(".log"), Processes(), Watcher(world)
    until = time.monotonic() + TRIAL_SECONDS

    def begin() -> int:
        trial.attempts += 1
        engine = RayEngine(address, device="cpu", cpus_per_job=1, shared_output=shared)
        return group.add(spawn(attempt, world, jobs, output, engine, log=log))

    driver = begin()
    lost: Counter[str] = Counter()
    budget = min(most, 12 if workers else rng.randint(1, 4))
    stages = WORKER_STAGES if workers else STAGES

    def allowed(line: Line) -> bool:
        return not workers or (line.pid != driver and lost[line.job] < MOST_LOST)

    while len(trial.kills) < budget:
        struck = strike(world, rng, watcher, group, rng.choice(stages), until, allowed=allowed)
        if struck is None:
            break
        line, delay = struck
        victim = line.pid if workers else driver
        if workers:
            at = watcher.last(victim)
            if at is None or lost[at.job] >= MOST_LOST or not _kill_worker(victim):
                continue
            lost[at.job] += 1
            trial.kills.append(_kill(trial.engine, watcher, victim, delay, jobs, output))
        elif group.kill(driver):
            at = watcher.last()
            trial.kills.append(_kill(trial.engine, watcher, at.pid if at else 0, delay, jobs, output))
            driver = begin()
    if not group.wait(until):
        trial.words.append(f"not done after {TRIAL_SECONDS:g} s")
    _conclude(world, trial, group, jobs, output, log)
    return trial


def _kill_worker(pid: int) -> bool:
    """Kill a Ray actor of this tool's cluster; return whether it was alive."""
    try:
        if b"ray::" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, signal.SIGKILL)
    except (OSError, ProcessLookupError):
        return False
    return True


@contextlib.contextmanager
def cluster(work: Path) -> Iterator[str]:
    """Run a cluster of one node with two CPUs in a process of its own; give its address."""
    code = (
        "import sys\n"
        "from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})\n"
        "print('address', cluster.address, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.shutdown()\n"
    )
    command = [sys.executable, "-c", code]
    with (work / "cluster.log").open("w") as log:
        head = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        address = next((line.split()[1] for line in head.stdout if line.startswith("address ")), None)
        if address is None:
            raise SystemExit(f"no Ray cluster:\n{(work / 'cluster.log').read_text(encoding='utf-8')}")
        yield address
    finally:
        head.stdin.close()
        head.wait()


def kill(args: argparse.Namespace, world: World) -> tuple[list[str], bool]:
    """Run the trials of ``kill``; return lines of Markdown, and whether all is well."""
    trials: list[Trial] = []
    for engine in args.engine:
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(cluster(world.work)) if engine == "ray" else ""
            if address:
                import ray  # noqa: F401  drivers are forks, and need not import it
            until = time.monotonic() + 60 * args.minutes / len(args.engine)
            trials += _kill_trials(args, world, engine, address, until)
    kills = [(kill, not trial.words) for trial in trials for kill in trial.kills]
    counts = Counter((kill.engine, kill.stage) for kill, _ in kills)
    good = Counter((kill.engine, kill.stage) for kill, well in kills if well)
    rows = [[*key, str(counts[key]), str(good[key])] for key in sorted(counts)]
    rows.append(["all", "", str(len(kills)), str(good.total())])
    bad = [_trial_words(args, trial) for trial in trials if trial.words]
    ended = sum(not trial.words for trial in trials)
    text = f"{len(trials)} trials of {sum(t.attempts for t in trials)} processes or drivers; {ended} ended well."
    return [*_table("engine | killed in | kills | bit-equal ends", rows), "", text, *_listed(bad)], not bad


def _kill_trials(args: argparse.Namespace, world: World, engine: str, address: str, until: float) -> Iterator[Trial]:
    done, number = 0, args.first
    while done < args.kills and time.monotonic() < until:
        if args.trials is not None and number >= args.first + args.trials:
            return
        rng = random.Random(f"{args.seed} {engine} {number}")
        most = args.kills - done
        trial = kill_ray(world, number, rng, most, address) if address else kill_local(world, number, rng, most)
        done += len(trial.kills)
        if trial.words:
            print(_trial_words(args, trial), flush=True)
        elif not args.keep:
            _remove(world.work / f"kill-{number}")
        if number % 10 == 9:
            print(f"{engine}: {done} kills in {number + 1 - args.first} trials", flush=True)
        number += 1
        yield trial


def _trial_words(args: argparse.Namespace, trial: Trial) -> str:
    kills = "; ".join(f"pid {k.pid} in {k.stage} of {k.job} after {1e3 * k.delay:.2f} ms" for k in trial.kills)
    name = trial.engine.split(",")[0]
    again = f"--engine {name} --seed {args.seed} --first {trial.number} --trials 1 --keep"
    return f"trial {trial.number} ({trial.engine}; {again}): killed {kills}: " + "; ".join(trial.words[:8])


# -- report ------------------------------------------------------------------------------------------------------------


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")[-3000:] if log.is_file() else ""
    return f"\n{text}\n"


def _remove(output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.with_suffix(".log").unlink(missing_ok=True)


def _table(header: str, rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [header.split(" | "), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _listed(complaints: Sequence[str]) -> list[str]:
    return ["", *(f"- {complaint}" for complaint in complaints)] if complaints else []


def report(lines: Sequence[str], args: argparse.Namespace, seconds: float) -> str:
    """Return the page: what was run, where, and the table."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    versions = in_fork(_versions, log=Path(os.devnull))
    title = {"share": "Processes that share jobs", "kill": "Processes that are killed"}[args.trial]
    command = f"`python tools/grid_trials.py {' '.join(sys.argv[1:])}`"
    where = f"{versions}, {os.cpu_count()} cores, {seconds / 60:.1f} minutes"
    return "\n".join([f"# {title}", "", f"{command}, commit {commit.stdout.strip()}: {where}", "", *lines, ""])


def _versions() -> str:
    from importlib.metadata import version

    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "filelock", "ray"))
    return f"{device_name(pick_device('cpu'))}, {names}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="trial", required=True)
    sharing = commands.add_parser("share", help="processes with the same jobs on one folder")
    sharing.add_argument("--rounds", type=int, default=100, help="for each number of processes")
    sharing.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    killing = commands.add_parser("kill", help="SIGKILL at random moments, then go on")
    killing.add_argument("--kills", type=int, default=200, help="for each engine")
    killing.add_argument("--engine", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    killing.add_argument("--seed", type=int, default=0)
    killing.add_argument("--first", type=int, default=0, help="number of the first trial")
    killing.add_argument("--trials", type=int, help="at most so many, for each engine")
    for command in (sharing, killing):
        command.add_argument("--minutes", type=float, default=60, help="stop after so long")
        command.add_argument("--output", type=Path, help="also write the table to this Markdown file")
        command.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
        command.add_argument("--keep", action="store_true", help="keep what was done; what went wrong is always kept")
        command.add_argument("--sabotage", choices=("lease", "seed", "tidy"), default="")
    return parser.parse_args(arguments)


def main() -> int:
    args = parse()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="grid_trials_", dir=args.work))
    world = make_world(work, args.sabotage)
    run: Mapping[str, Callable[[argparse.Namespace, World], tuple[list[str], bool]]] = {"share": share, "kill": kill}
    lines, well = run[args.trial](args, world)
    text = report(lines, args, time.monotonic() - began)
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    if well and not args.keep:
        shutil.rmtree(work)
    else:
        print(f"kept: {work}")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
