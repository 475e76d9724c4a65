"""Measure what sharing a grid of jobs among workers costs: scaling on two cores, scheduling, and what its parts take.

    python tools/bench_grid.py --output results/bench_grid.md
    python tools/bench_grid.py --skip scheduling parts --repeats 5
    python tools/bench_grid.py --skip scaling --workers 8 64
    python tools/bench_grid.py --jobs 2 --repeats 1 --workers 8 --simulated 200

Scaling: equal jobs (one category of procedural images, one method in its demo preset with bundled weights, one seed
each), each with one thread, on cores 0 and 1 only:

- one process, on core 0: the baseline;
- two processes apart, each on its core with half of the jobs and a folder of its own: what these jobs can do at all
  on two cores at once;
- two processes that share one folder by leases, each on its core, with all jobs;
- Ray with two workers; driver and daemons are on the same two cores.

They take turns. Work is from when all processes are ready to when the last one has its last outcome; start-up is all
before: imports, Ray, the actors' imports, the check of the jobs. A process that shares a folder looks once a second
whether the others have finished, so its work may end later than the last run.json. Efficiency is the baseline's time
over that of two cores twice. Own CPU is what the processes and their children used during the work, steal what the
hypervisor took from the two cores; work far above own CPU per core means that others used them. The machine's own limit
is how much slower a loop of torch runs on one core while it also runs on the other.

Scheduling: simulated jobs that sleep, on light actors without torch, many to a core, as one stage each and as three.
`drive` is hrbench.grid.on_ray.RayEngine.drive with hrbench.grid.board.Board; `wait loop` the least loop around
ray.wait that does the same calls; `queued` has all calls sent in advance, which no scheduler could do: what Ray alone
takes on this machine. Overhead is wall time less jobs x duration / workers; gap is a worker's mean idle time between
two stages.

Parts: what the board, the foreman (whose results are those of one real job, delivered again and again) and a lease take
without Ray, in the one process.

All processes of the scaling get MALLOC_* settings (see CALM): page faults are costly on virtual machines, and make
times unsteady.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hrbench.data import load_dataset, make_dataset
from hrbench.engine.device import device_name
from hrbench.grid.board import Board, Task
from hrbench.grid.engine import Watch
from hrbench.grid.foreman import Call, Foreman
from hrbench.grid.local import LocalEngine
from hrbench.grid.on_ray import RayEngine, _Worker
from hrbench.grid.worker import Facts, Failed, StageWorker
from hrbench.runs.environment import environment
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.scoring import distinct_protocols
from hrbench.runs.stages import Setting

Rows = list[dict[str, str]]
CALM = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
SETTING = Setting(tuple(distinct_protocols(["native"])))
CORES = (0, 1)
QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
PARTS = ("scaling", "scheduling", "parts")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="of the scaling")
    parser.add_argument("--method", default="l2bt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 16, 32, 64], help="simulated ones")
    parser.add_argument("--simulated", type=int, default=1000, metavar="JOBS", help="simulated ones")
    parser.add_argument("--milliseconds", type=float, default=50.0, help="of a simulated job")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--output", type=Path, help="also write the tables to this Markdown file")
    args = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    known, began = environment(), time.monotonic()
    text = (
        f"# What sharing a grid costs\n\n`python {' '.join(['tools/bench_grid.py', *sys.argv[1:]])}`, commit "
        f"{known['commit']}: {device_name(torch.device('cpu'))}, {os.cpu_count()} cores, torch {known['torch']}; load "
        f"{os.getloadavg()[0]:.1f} before it began. Processes of the scaling have "
        f"{' '.join(f'{key}={value}' for key, value in CALM.items())}\n"
    )
    print(text)

    def show(title: str, rows: Rows) -> None:
        nonlocal text
        section = f"\n{title}\n\n{table(rows)}\n"
        print(section, flush=True)
        text += section
        if args.output:
            args.output.write_text(text, encoding="utf-8")

    turns = f"medians of {args.repeats} turns"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = make_dataset(
            folder / "data", categories=["weave"], size=(256, 256), train=10, test_good=8, test_defective=24
        )
        if "scaling" not in args.skip:
            show(f"The machine: one loop on core 0, the same on both cores at once; {turns}", limits(args.repeats))
            title = f"{args.jobs} jobs of {args.method} (demo), 32 test images of 256 x 256, one thread each"
            work, starts = scaling(folder, root, args.method, args.jobs, args.repeats)
            show(f"{title}; {turns}", work)
            show(f"Start-up, in seconds from the process's start; {turns}", starts)
        if "scheduling" not in args.skip:
            title = f"{args.simulated} simulated jobs of {args.milliseconds:g} ms"
            show(f"{title}; {turns}", scheduling(args.workers, args.simulated, args.milliseconds / 1e3, args.repeats))
        if "parts" not in args.skip:
            show("Without Ray, milliseconds", parts(folder, root, args.method))
    took = f"\nAll took {(time.monotonic() - began) / 60:.1f} min.\n"
    print(took)
    if args.output:
        args.output.write_text(text + took, encoding="utf-8")


# Processes that are made ready and then started together. ----------------------------------------------------------


def child(spec: dict[str, Any]) -> None:
    """Be such a process: say when something is reached, wait for a line when ready, work, say so."""

    def say(what: str, **more: float) -> None:
        print(json.dumps({"what": what, "at": time.monotonic(), **more}), flush=True)

    say("imports")
    torch.set_num_threads(1)
    if spec["kind"] == "loop":
        work = loop(spec["name"])
        work(1)
        say("ready")
        input()
        work(spec["count"])
        say("done")
        return
    engine: LocalEngine | RayEngine = LocalEngine("cpu", threads=1)
    if spec["kind"] == "ray":
        import ray

        ray.init("local", num_cpus=len(CORES), **QUIET)
        say("ray")
        engine = RayEngine(device="cpu", cpus_per_job=1)
    with engine:
        say("workers")
        jobs = jobs_of(Path(spec["root"]), spec["method"], spec["seeds"], engine.precision("auto"))
        engine.check(jobs)
        say("ready")
        input()
        for outcome in engine.run(jobs, Path(spec["output"]), SETTING, Watch()):
            if outcome.error is not None:
                raise outcome.error
        say("done")
        input()  # its processes are still looked at


def jobs_of(root: Path, method: str, seeds: Sequence[int], precision: str = "float32", **options: Any) -> list[Job]:
    (category,) = load_dataset("folder", root).select(None)
    return [
        make_job(category, method, preset="demo", seed=seed, precision=precision, options=options) for seed in seeds
    ]


class Child:
    """A child process on some cores, from the parent's side."""

    def __init__(self, spec: dict[str, Any], cores: Sequence[int]) -> None:
        self.began = time.monotonic()
        self.reached: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | CALM,
            preexec_fn=partial(os.sched_setaffinity, 0, cores),
        )

    def until(self, what: str) -> None:
        """Wait until it says that it has reached something."""
        assert self._process.stdout is not None
        while what not in self.reached:
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit(f"a child process has ended with {self._process.wait()} before it was {what}")
            if line.startswith("{"):
                said = json.loads(line)
                self.reached[said["what"]] = said["at"]

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait for its end."""
        with contextlib.suppress(BrokenPipeError):
            self.go()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the processor time of the process and of all that it has started and that is alive."""
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                parents[int(path.parent.name)] = int(fields[1])
                ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
        own, more = {self._process.pid}, True
        while more:
            found = {process for process, parent in parents.items() if parent in own} - own
            own, more = own | found, bool(found)
        return sum(ticks.get(process, 0) for process in own) / os.sysconf("SC_CLK_TCK")


def together(specs: Sequence[tuple[dict[str, Any], Sequence[int]]]) -> tuple[dict[str, float], dict[str, float]]:
    """Start processes, let them work together; return what that took, and when what was reached in the start."""
    children = [Child(*spec) for spec in specs]
    try:
        for one in children:
            one.until("ready")
        before, stolen = sum(one.cpu_seconds() for one in children), steal()
        began, clock = time.monotonic(), time.time()
        for one in children:
            one.go()
        for one in children:
            one.until("done")
        work = {
            "work": max(one.reached["done"] for one in children) - began,
            "cpu": sum(one.cpu_seconds() for one in children) - before,
            "steal": steal() - stolen,
        }
        records = [path for spec, _ in specs if "output" in spec for path in Path(spec["output"]).rglob("run.json")]
        work["record"] = max((path.stat().st_mtime for path in records), default=clock) - clock
    finally:
        for one in children:
            one.end()
    names = [name for name in children[0].reached if name != "done"]
    return work, {name: max(one.reached[name] - one.began for one in children) for name in names}


def steal() -> float:
    """Return the seconds that the hypervisor has taken from the cores."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return sum(int(line[8]) for line in lines if line[0] in {f"cpu{core}" for core in CORES}) / os.sysconf("SC_CLK_TCK")


# Scaling. -----------------------------------------------------------------------------------------------------------


def loop(name: str) -> Callable[[int], None]:
    """Return a loop of torch: within the caches, or through the memory."""
    if name == "convolution":
        images, kernels = torch.rand(4, 64, 56, 56), torch.rand(64, 64, 3, 3)
        step: Callable[[], Any] = partial(torch.nn.functional.conv2d, images, kernels)
    else:
        source = torch.rand(2**26)
        step = partial(torch.empty_like(source).copy_, source)

    def work(count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                step()

    return work


def limits(repeats: int) -> Rows:
    """Return how loops of torch are slowed down by the same on the other core."""
    rows = []
    for name, what in (("convolution", "convolution, in the caches"), ("copy", "copy of 256 MiB")):
        spec = {"kind": "loop", "name": name, "count": 20}
        for _ in range(2):  # about 4 s
            spec["count"] = max(1, round(spec["count"] * 4 / together([(spec, CORES[:1])])[0]["work"]))
        alone, both = [], []
        for _ in range(repeats):
            alone.append(together([(spec, CORES[:1])])[0]["work"])
            both.append(together([(spec, [core]) for core in CORES])[0]["work"])
        ratio = statistics.median(a / b for a, b in zip(alone, both, strict=True))
        rows.append(
            {
                "loop": what,
                "one core s": f"{statistics.median(alone):.2f}",
                "both s": f"{statistics.median(both):.2f}",
                "efficiency": f"{ratio:.3f}",
            }
        )
    return rows


def scaling(folder: Path, root: Path, method: str, count: int, repeats: int) -> tuple[Rows, Rows]:
    """Return what jobs take on one core and on two, and what comes before."""
    turn = 0

    def spec(kind: str, seeds: Sequence[int], output: str) -> dict[str, Any]:
        there = str(folder / f"{output}-{turn}")
        return {"kind": kind, "root": str(root), "method": method, "seeds": list(seeds), "output": there}

    every = range(count)
    ways: dict[str, Callable[[], list[tuple[dict[str, Any], Sequence[int]]]]] = {
        "one process": lambda: [(spec("local", every, "one"), CORES[:1])],
        "two apart": lambda: [(spec("local", every[core::2], f"apart{core}"), [core]) for core in CORES],
        "two, leases": lambda: [(spec("local", every, "leases"), [core]) for core in CORES],
        "Ray, two workers": lambda: [(spec("ray", every, "ray"), CORES)],
    }
    worked: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    started: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(repeats):  # noqa: B007 (spec reads it)
        for name, way in ways.items():
            work, start = together(way())
            worked[name].append(work)
            started[name].append(start)

    def median(values: list[dict[str, float]], key: str) -> float:
        return statistics.median(value[key] for value in values)

    work_rows, start_rows = [], []
    for name, values in worked.items():
        cores = 1 if name == "one process" else 2
        whole = [w["work"] + s["ready"] for w, s in zip(values, started[name], strict=True)]
        first = worked["one process"]
        first_whole = [w["work"] + s["ready"] for w, s in zip(first, started["one process"], strict=True)]
        ratios = [one["work"] / (cores * two["work"]) for one, two in zip(first, values, strict=True)]
        work_rows.append(
            {
                "how": name,
                "work s": f"{median(values, 'work'):.2f}",
                "last run.json s": f"{median(values, 'record'):.2f}",
                "efficiency": f"{statistics.median(ratios):.3f}",
                "of turns": " ".join(f"{ratio:.2f}" for ratio in ratios),
                "own CPU s": f"{median(values, 'cpu'):.1f}",
                "steal s": f"{median(values, 'steal'):.1f}",
                "with start-up s": f"{statistics.median(whole):.2f}",
                "efficiency with it": (
                    f"{statistics.median(a / (cores * b) for a, b in zip(first_whole, whole, strict=True)):.3f}"
                ),
            }
        )
        row = {"how": name}
        for key, title in (
            ("imports", "imports"),
            ("ray", "Ray is there"),
            ("workers", "workers are there"),
            ("ready", "jobs are checked"),
        ):
            row[title] = f"{median(started[name], key):.2f}" if key in started[name][0] else ""
        start_rows.append(row)
    return work_rows, start_rows


# Scheduling. --------------------------------------------------------------------------------------------------------


class Sleeper:
    """A worker that sleeps; its process loads neither torch nor hrbench."""

    def ready(self) -> None:
        """Do nothing: it is there."""

    def stage(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class Simulated(RayEngine):
    """The engine with sleepers for workers, as many as Ray was told that there are CPUs."""

    @property
    def actors(self) -> list[Any]:
        """All of them."""
        return [worker.actor for worker in self._workers]

    def _start(self, node: str) -> None:
        actor = self._ray.remote(Sleeper).options(num_cpus=1).remote()
        self._workers.append(_Worker(actor, node, Facts(node, "none", "none", {}, {}), ready=True))


class SleepingHands:
    """Jobs of one or three stages that sleep, given out by a board."""

    def __init__(self, jobs: int, seconds: Sequence[float]) -> None:
        self._waiting = jobs
        self._seconds = seconds
        self._board = Board()
        self._tasks: dict[Hashable, Task] = {}

    @property
    def left(self) -> int:
        """Jobs that have not ended."""
        return self._waiting + len(self._board)

    def next(self, worker: Hashable, workers: int, sharing: int) -> Call | None:
        """Return what a worker does next, as the foreman does."""
        while self._waiting and not self._board.has_free(worker):
            self._board.add(str(self._waiting))
            self._waiting -= 1
        if (task := self._board.next(worker, workers)) is None:
            return None
        self._tasks[worker] = task
        return Call("stage", (self._seconds[("fit", "predict", "score").index(task.stage)],))

    def received(self, worker: Hashable, result: Any) -> None:
        """Take in that a stage has ended."""
        task = self._tasks.pop(worker)
        if task.stage == "score" or len(self._seconds) == 1:
            self._board.remove(task.job)
        elif task.stage == "fit":
            self._board.fitted(worker, [0])
        else:
            self._board.predicted(worker)

    def lost(self, worker: Hashable, reason: str) -> None:
        """Do not happen."""
        raise RuntimeError(reason)


def scheduling(workers: Sequence[int], jobs: int, seconds: float, repeats: int) -> Rows:
    """Return what it takes to deal jobs that sleep to so many workers."""
    import ray

    rows: Rows = []
    for count in workers:
        ray.init("local", num_cpus=count, object_store_memory=2**28, **QUIET)
        with Simulated(device="cpu", cpus_per_job=1) as engine:
            actors = engine.actors
            ray.get([actor.ready.remote() for actor in actors])
            for stages in (3, 1):
                each = [seconds / stages] * stages

                def drive(each: list[float] = each, engine: Simulated = engine) -> None:
                    for _ in engine.drive(SleepingHands(jobs, each), Watch()):
                        pass

                ways: dict[str, Callable[[], None]] = {
                    "queued": partial(queued, actors, jobs * stages, each[0]),
                    "wait loop": partial(wait_loop, actors, jobs * stages, each[0]),
                    "drive": drive,
                }
                taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
                for _ in range(repeats):
                    for name, way in ways.items():
                        began = time.perf_counter(), time.process_time()
                        way()
                        taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
                for name, values in taken.items():
                    wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
                    ideal = jobs * seconds / count
                    rows.append(
                        {
                            "workers": str(count),
                            "stages": str(stages),
                            "how": name,
                            "ideal s": f"{ideal:.2f}",
                            "wall s": f"{wall:.2f}",
                            "overhead ms/job": f"{1e3 * (wall - ideal) / jobs:.3f}",
                            "ms/stage": f"{1e3 * (wall - ideal) / jobs / stages:.3f}",
                            "gap ms": f"{1e3 * (wall - ideal) * count / jobs / stages:.2f}",
                            "driver CPU ms/stage": f"{1e3 * cpu / jobs / stages:.3f}",
                        }
                    )
        ray.shutdown()
    return rows


def queued(actors: Sequence[Any], calls: int, seconds: float) -> None:
    """Send all calls at once."""
    import ray

    ray.get([actors[number % len(actors)].stage.remote(seconds) for number in range(calls)])


def wait_loop(actors: Sequence[Any], calls: int, seconds: float) -> None:
    """Give each actor that is free the next call."""
    import ray

    working = {actor.stage.remote(seconds): actor for actor in actors[:calls]}
    left = calls - len(working)
    while working:
        done, _ = ray.wait(list(working))
        for reference in done:
            actor = working.pop(reference)
            ray.get(reference)
            if left:
                working[actor.stage.remote(seconds)] = actor
                left -= 1


# Parts. -------------------------------------------------------------------------------------------------------------


def parts(folder: Path, root: Path, method: str, jobs: int = 50, board_jobs: int = 1000) -> Rows:
    """Return what board, foreman and lease take without Ray."""
    rows: Rows = []

    def add(what: str, seconds: Sequence[float], note: str = "") -> None:
        ordered = sorted(seconds)
        rows.append(
            {
                "what": what,
                "median": f"{1e3 * statistics.median(ordered):.3f}",
                "mean": f"{1e3 * statistics.fmean(ordered):.3f}",
                "95 %": f"{1e3 * ordered[int(0.95 * len(ordered))]:.3f}",
                "times": str(len(ordered)),
                "note": note,
            }
        )

    for workers in (8, 64):
        taken = []
        hands, names = SleepingHands(board_jobs, [0.0] * 3), range(workers)
        busy = [name for name in names if hands.next(name, workers, 1) is not None]
        while busy:
            began = time.perf_counter()
            hands.received(busy[0], None)
            more = hands.next(busy[0], workers, 1) is not None
            taken.append(time.perf_counter() - began)
            busy = [*busy[1:], *busy[:1]] if more else busy[1:]
        add(f"board, a stage, {workers} workers", taken)

    leases, taken, released = Leases(), [], []
    for number in range(200):
        path = folder / "leases" / str(number)
        began = time.perf_counter()
        leases.take(path)
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
        leases.give_back(path)
        released.append(time.perf_counter() - began)
    add("lease, take", taken)
    add("lease, give back", released)

    made = jobs_of(root, method, range(jobs), steps=2)
    asked: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}
    answers: dict[str, Any] = {}
    with real(made[0]) as worker, Foreman(made, folder / "foreman", SETTING, Watch(), put=lambda x: x) as foreman:
        while foreman.left:
            began = time.perf_counter()
            call = foreman.next("worker", 64, 1)
            between = time.perf_counter()
            assert call is not None
            if call.method not in answers:
                answers[call.method] = answer(worker, call)
                sizes[call.method] = size(answers[call.method]) / 2**20
            result = answers[call.method]
            if call.method == "predict":  # the board asks for one chunk at a time, of which there are two
                number = call.arguments[-1][0]
                if number not in result:
                    result.update(answer(worker, call))
                result = {number: result[number]}
            asked.setdefault(call.method, []).append(between - began)
            began = time.perf_counter()
            foreman.received("worker", result)
            took.setdefault(call.method, []).append(time.perf_counter() - began)
            for outcome in foreman.ended():
                if outcome.error is not None:
                    raise outcome.error
    for stage in asked:
        add(f"foreman, gives {stage}", asked[stage])
        add(f"foreman, takes in {stage}", took[stage], f"{sizes[stage]:.2f} MiB")
    return rows


@contextlib.contextmanager
def real(job: Job) -> Iterator[StageWorker]:
    """Give a worker in this process."""
    threads = torch.get_num_threads()
    worker = StageWorker("cpu", 1)
    try:
        yield worker
    finally:
        worker.close()
        torch.set_num_threads(threads)


def answer(worker: StageWorker, call: Call) -> Any:
    """Return what a worker answers."""
    more = [(lambda box=item: box[0]) if isinstance(item, list) else item for item in call.arguments[3:]]
    result = getattr(worker, call.method)(*call.arguments[:3], *more)
    if isinstance(result, Failed):
        raise SystemExit(result.traceback or result.error)
    return result


def size(answer: Any) -> float:
    """Return the bytes in what a worker answers."""
    if isinstance(answer, bytes):
        return len(answer)
    if isinstance(answer, dict):
        return sum(size(value) for value in answer.values())
    return sum(size(value) for value in answer) if isinstance(answer, tuple) else 0


def table(rows: Rows) -> str:
    """Return a Markdown table."""
    heads = list(rows[0])
    widths = [max(len(head), *(len(row[head]) for row in rows)) for head in heads]
    lines = [heads, ["-" * width for width in widths], *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |" for line in lines)


if __name__ == "__main__":
    main()
