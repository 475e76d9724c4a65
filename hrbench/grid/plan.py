"""What a grid will do, before it does anything: which jobs are left, and what they are expected to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hrbench._util.words import duration, held_out_text
from hrbench.engine.rehearsal import Expected, JobInputs, job_seconds
from hrbench.errors import HrbenchError
from hrbench.runs.job import Job

__all__ = ["Plan", "PlannedJob", "make_plan", "samples_of"]


LONG = 600.0  # seconds that are worth a word on what would take less
State = Literal["done", "begun", "to do"]


@dataclass(frozen=True)
class PlannedJob:
    """A job of a grid, before it runs.

    Attributes
    ----------
    job : Job
    state : {"done", "begun", "to do"}
    fit_seconds, predict_seconds : float or None
        Of all of it, whatever of it is done; None if they are not known. Prediction is that of the test images.
    host_mib, device_mib : float or None
        Memory.
    unknown : str
        Why something of this is not known, where there is a reason.
    """

    job: Job
    state: State
    fit_seconds: float | None = None
    predict_seconds: float | None = None
    host_mib: float | None = None
    device_mib: float | None = None
    unknown: str = ""

    @property
    def seconds(self) -> float | None:
        """What it is expected to take; None if that is not known."""
        if self.fit_seconds is None or self.predict_seconds is None:
            return None
        return self.fit_seconds + self.predict_seconds


@dataclass(frozen=True)
class Plan:
    """What a grid will do.

    Attributes
    ----------
    jobs : tuple of PlannedJob
        In the order of the grid.
    workers : int
        That do them at the same time.
    where : str
        In words.
    """

    jobs: tuple[PlannedJob, ...]
    workers: int
    where: str

    @property
    def left(self) -> list[PlannedJob]:
        """The jobs that are not done."""
        return [planned for planned in self.jobs if planned.state != "done"]

    @property
    def seconds(self) -> float | None:
        """What is left is expected to take on all workers, at least; None if that is not known of every job."""
        each = [planned.seconds for planned in self.left]
        if any(seconds is None for seconds in each):
            return None
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) / min(self.workers, max(1, len(known)))

    def lines(self) -> Iterator[str]:
        """Yield the plan in words: a summary, and a table with a line for each method and view."""
        states = [planned.state for planned in self.jobs]
        counts = {state: states.count(state) for state in ("done", "begun", "to do")}
        parts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        plural = "s" * (len(self.jobs) != 1)
        asked = dict.fromkeys(held_out_text(planned.job.held_out) for planned in self.jobs)
        held_out = "".join(f"; normal training images: {text}" for text in asked if text)
        yield f"{len(self.jobs)} job{plural}: {parts}; {self.where}{held_out}"
        if not self.left:
            return
        rows = [("method", "view", "jobs", "left", "each", "together", "memory", "on device")]
        groups: dict[tuple[str, str], list[PlannedJob]] = {}
        for planned in self.jobs:
            groups.setdefault((planned.job.method_name, planned.job.view.text), []).append(planned)
        for (method, view), group in groups.items():
            left = [planned for planned in group if planned.state != "done"]
            seconds = [planned.seconds for planned in left]
            known = [value for value in seconds if value is not None]
            told = bool(known) and len(known) == len(seconds)
            rows.append(
                (
                    method,
                    view,
                    str(len(group)),
                    str(len(left)),
                    duration(sum(known) / len(known)) if told else "–",
                    duration(sum(known)) if told else "–",
                    _memory(planned.host_mib for planned in left),
                    _memory(planned.device_mib for planned in left),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  " + "  ".join(cells).rstrip()
        for (method, view), group in groups.items():
            for reason in dict.fromkeys(planned.unknown for planned in group if planned.unknown):
                yield f"  {method} {view}: not known, {reason}"
        if self.seconds is not None:
            workers = f" on {self.workers} workers" if self.workers > 1 else ""
            yield f"expected: about {duration(self.seconds)}{workers}, metrics and pictures not counted"
            if self.seconds > LONG and (ways := self._quicker()):
                yield f"quicker: {'; '.join(ways)}"

    def _quicker(self) -> list[str]:
        """Return what would take less time than all that is left."""
        ways = []
        names = dict.fromkeys(planned.job.method for planned in self.left)
        if len(names) > 1:
            alone = {name: replace(self, jobs=tuple(p for p in self.left if p.job.method == name)) for name in names}
            least, seconds = min(((name, plan.seconds or 0.0) for name, plan in alone.items()), key=lambda of: of[1])
            ways.append(f"{least} alone, about {duration(seconds)}")
        tiles = [look.tile for planned in self.left for look in planned.job.view.looks if look.overlap is not None]
        if tiles:
            ways.append(f"whole images made smaller, --view whole:{max(tiles[0])}, which may lose the smallest defects")
        return ways


def samples_of(jobs: Sequence[Job]) -> list[Job]:
    """Return one job for each method, configuration and view: what is measured of it tells of the others."""
    chosen: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        chosen.setdefault(_kind(job), job)
    return list(chosen.values())


def make_plan(
    jobs: Sequence[Job], output: Path, expected: Mapping[str, Expected | str], *, workers: int, where: str
) -> Plan:
    """Return what will be done of `jobs`.

    Parameters
    ----------
    jobs : sequence of Job
    output : Path
    expected : mapping of str to Expected or str
        By the name of a job, what was measured of it, or why that failed: of those that :func:`samples_of` gives.
    workers : int
    where : str
    """
    by_kind = {_kind(job): expected[job.name] for job in jobs if job.name in expected}
    sizes: dict[tuple[str, str], JobInputs | None] = {}
    planned = []
    for job in jobs:
        state, found = state_of(job, output), by_kind.get(_kind(job))
        if found is None or isinstance(found, str) or state == "done":
            planned.append(PlannedJob(job, state, unknown=found if isinstance(found, str) else ""))
            continue
        key = (job.category.name, job.view.text)
        if key not in sizes:
            sizes[key] = _sizes(job)
        planned.append(_planned(job, state, found, sizes[key]))
    return Plan(tuple(planned), workers, where)


def state_of(job: Job, output: Path) -> State:
    """Return how far a job is in an output folder."""
    folder = job.folder(output)
    if folder.record.is_file():
        return "done"
    return "begun" if folder.scratch.is_dir() else "to do"


def _sizes(job: Job) -> JobInputs | None:
    """Return how many model inputs a job has; None where an image cannot be read: the job will say so."""
    fitted, held_out = job.split()
    try:
        return JobInputs.of(fitted, held_out, job.category.test, job.view)
    except HrbenchError:
        return None


def _planned(job: Job, state: State, expected: Expected, inputs: JobInputs | None) -> PlannedJob:
    if inputs is None:
        return PlannedJob(job, state, device_mib=expected.peak_device_mib)
    whole, predicted = job_seconds(expected, inputs), expected.predict_seconds(inputs.test)
    return PlannedJob(
        job,
        state,
        fit_seconds=None if whole is None or predicted is None else whole - predicted,
        predict_seconds=predicted,
        host_mib=expected.peak_host_mib(inputs.fit),
        device_mib=expected.peak_device_mib,
        unknown=expected.reason,
    )


def _kind(job: Job) -> tuple[str, ...]:
    return job.method, repr(sorted(job.recorded_options.items())), job.view.text, job.precision


def _memory(sizes: Iterator[float | None]) -> str:
    known = [size for size in sizes if size is not None]
    return f"{max(known) / 1024:.1f} GiB" if known else "–"
