"""Many jobs: the grid category x method x view x seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hrbench._util.disk import explaining
from hrbench._util.progress import tracker
from hrbench.data import Dataset, Descriptor, check_files, load_dataset, load_descriptor
from hrbench.engine.batch_size import BatchSize, check_batch_size
from hrbench.errors import Halted, HrbenchError, unknown_name
from hrbench.grid.engine import Engine, Outcome, Watch
from hrbench.grid.gallery import Gallery
from hrbench.grid.local import LocalEngine
from hrbench.grid.plan import Plan, make_plan, samples_of, state_of
from hrbench.grid.progress import GridProgress
from hrbench.protocol import Protocol
from hrbench.runs.job import Job, make_job
from hrbench.runs.scoring import distinct_protocols
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

__all__ = ["Failure", "Study", "run"]

log = logging.getLogger("hrbench")
MOST_FINDINGS = 20  # that are told one by one


@dataclass(frozen=True)
class Failure:
    """A job that ended with an error.

    Attributes
    ----------
    job : str
        Its category, method, view and seed, in words.
    error : Exception
    category, method, view : str
        What tells it from the other jobs of the grid, as :func:`run` takes it.
    seed : int
    """

    job: str
    error: Exception
    category: str
    method: str
    view: str
    seed: int

    @staticmethod
    def of(job: Job, error: Exception) -> Failure:
        """Return the failure of a job."""
        return Failure(job.label, error, job.category.name, job.method, job.view.text, job.seed)


@dataclass(frozen=True)
class Study:
    """What became of a grid of jobs.

    Attributes
    ----------
    runs : tuple of Run
        Finished now or before, in the order of the grid.
    failures : tuple of Failure
    left : tuple of str
        Jobs, in words, that have not ended: after a stop, where others do them, or because nothing was to be run.
    plan : Plan, optional
        What there was to do.
    halted : Halted, optional
        What has ended the grid early, as a full disk: the same call goes on later.
    """

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    left: tuple[str, ...] = ()
    plan: Plan | None = None
    halted: Halted | None = None

    def __repr__(self) -> str:
        """Name the runs, a line each, and count what is missing; the plan alone would fill pages."""
        numbers = {"finished": len(self.runs), "failed": len(self.failures), "left": len(self.left)}
        counts = ", ".join(f"{number} {word}" for word, number in numbers.items() if number)
        return "\n  ".join([f"<Study: {counts or 'no job'}", *map(repr, self.runs)]) + ">"


def run(
    dataset: Dataset | str | Path,
    methods: Sequence[str],
    *,
    root: Path | str | None = None,
    output: Path | str = "runs",
    categories: Sequence[str] | None = None,
    preset: str = "native",
    views: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    protocols: Sequence[str | Path | Protocol] = ("native",),
    device: str = "auto",
    precision: str = "auto",
    held_out: float | None = None,
    batch_size: BatchSize = 8,
    save_maps: bool = False,
    compiled: bool = False,
    engine: Engine | None = None,
    check: bool = True,
    dry_run: bool = False,
    rehearse: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Study:
    """Fit and score methods on a dataset: what ``hrbench run`` does.

    All jobs are checked before the first one begins. A job that is done already is not done again, an unfinished one
    continues, and one that fails does not stop the others; a disk that is full or read-only does, see
    :attr:`Study.halted`. Any number of processes may do the same grid in the same folder, at the same time or one after
    another: they share the work.

    Parameters
    ----------
    dataset : Dataset, str or Path
        A loaded dataset; or the name or ``.toml`` descriptor of one that lies in `root`, see
        :func:`hrbench.load_dataset`.
    methods : sequence of str
        Names, paths of adapters, or ``package.module:Class``.
    root : Path, optional
        The dataset's folder, where `dataset` is a name.
    output : Path
        Where runs are kept.
    categories : sequence of str, optional
        All by default.
    preset : str
        Of the methods.
    views : sequence of str, optional
        See :mod:`hrbench.engine.views`; by default the preset's.
    seeds : sequence of int
    options : mapping of str to mapping, optional
        By method, options of its constructor that win over the preset's.
    protocols : sequence of str, Path or Protocol
        The first is the one that pictures and the recorded threshold follow.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ... of this process; an `engine` has its own.
    precision : str
        ``float32``, ``bfloat16`` or ``auto``, see :mod:`hrbench.precision`.
    held_out : float, optional
        Share of the normal training images that no fit sees, for thresholds and promises to be set on; with 0 all are
        fitted, and there are neither. By default a tenth, or 19 images where that is at most a third.
    batch_size : int or "auto"
        Tiles per forward pass at prediction. With ``auto`` the largest that pays is found by timing after the first fit
        of a method, once per view, precision and device, and recorded; on other devices it may be another, which
        changes the last bits.
    save_maps : bool
        Also keep every native anomaly map as TIFF.
    compiled : bool
        Compile frozen backbones.
    engine : Engine, optional
        Where jobs run: by default in this process, see :class:`hrbench.LocalEngine`; or on a
        :class:`hrbench.RayEngine`.
    check : bool
        Look at all images and masks of the categories with unfinished jobs before the first fit, see
        :func:`hrbench.data.check_files`: what is wrong ends it there, what is odd is a warning.
    dry_run : bool
        Only find out what there is to do and what it is expected to take: :attr:`Study.plan`.
    rehearse : bool
        Measure a few steps of each method first where there are several jobs, to tell what all of them will take.
    stop : callable
        Asked often: once it says True no stage is begun any more, and what is done is kept.

    Raises
    ------
    HrbenchError
        For a wrong name, option, value or file, before anything runs.

    Examples
    --------
    >>> import hrbench
    >>> study = hrbench.run("mvtec_ad", ["fastflow"], root="/data/mvtec_ad")  # doctest: +SKIP
    >>> study.runs[0].records  # doctest: +SKIP
    """
    check_batch_size(batch_size)
    lists = {"methods": methods, "categories": categories, "views": views, "seeds": seeds, "protocols": protocols}
    for name, values in lists.items():
        if values is not None and (isinstance(values, str) or not isinstance(values, Sequence) or not values):
            raise HrbenchError(f"{name} is {values!r}, expected a list of at least one")
    for method in options or {}:
        if method not in methods:
            raise unknown_name("method with options", method, methods)
    descriptor = None
    if not isinstance(dataset, Dataset):
        if root is None:
            raise HrbenchError(f"dataset {str(dataset)!r}: root is missing, expected the folder that it lies in")
        descriptor = load_descriptor(dataset)
        problems: list[str] = []
        dataset = load_dataset(dataset, Path(root), categories, problems.append if check else None)
        if problems:
            raise _unread(dataset, problems, held_out=held_out != 0)
    setting = Setting(tuple(distinct_protocols(protocols)), batch_size, save_maps, compiled)
    asked: Sequence[str | None] = views or [None]
    with engine or LocalEngine(device) as workers:
        found = workers.precision(precision)
        jobs = [
            make_job(
                category,
                method,
                preset=preset,
                view=view,
                options=(options or {}).get(method),
                seed=seed,
                precision=found,
                held_out=held_out,
            )
            for method in dict.fromkeys(methods)
            for view in dict.fromkeys(asked)
            for seed in dict.fromkeys(seeds)
            for category in dataset.select(categories)
        ]
        workers.check(jobs)
        unfinished = {job.category.name for job in jobs if state_of(job, Path(output)) != "done"}
        if check and unfinished:
            chosen = replace(dataset, categories=dataset.select(sorted(unfinished)))
            _check_files(chosen, descriptor, held_out=held_out != 0)
        measured = (dry_run or (rehearse and len(jobs) > 1)) and not stop()
        plan = _plan(workers, jobs, Path(output), setting, measured=measured)
        for line in plan.lines():
            log.info("%s", line)
        outcomes: dict[str, Outcome] = {}
        halted = None
        if not dry_run:
            try:
                with explaining(Path(output)):
                    _do(workers, plan, Path(output), setting, stop, outcomes)
                    _draw(workers, jobs, Path(output), setting, stop, outcomes)
            except Halted as error:
                halted = error
                log.error("%s", error)
    ended = [outcomes[job.name] for job in jobs if job.name in outcomes]
    return Study(
        runs=tuple(outcome.run for outcome in ended if outcome.run is not None),
        failures=tuple(Failure.of(outcome.job, outcome.error) for outcome in ended if outcome.error is not None),
        left=tuple(job.label for job in jobs if job.name not in outcomes),
        plan=plan,
        halted=halted,
    )


def _check_files(dataset: Dataset, descriptor: Descriptor | None, *, held_out: bool) -> None:
    """Tell what is odd about the files, and end with what is wrong."""
    found = check_files(dataset, descriptor, tracker("checking files"), held_out=held_out)
    errors = [finding.text for finding in found if finding.severity == "error"]
    warnings = [str(finding) for finding in found if finding.severity == "warning"]
    if warnings:
        log.warning("%s", "\n".join(_first(warnings)))
    if errors:
        raise _wrong(dataset, errors, "leave its category out, or go without this check (--no-check)")


def _unread(dataset: Dataset, problems: Sequence[str], *, held_out: bool) -> HrbenchError:
    """Return what keeps a dataset from being read, and what is wrong with the files that were found all the same."""
    found = replace(dataset, categories=tuple(replace(each, unread=("*",)) for each in dataset.categories))
    others = check_files(found, None, tracker("checking files"), held_out=held_out)
    errors = [*problems, *(finding.text for finding in others if finding.severity == "error")]
    return _wrong(dataset, list(dict.fromkeys(errors)), "or leave its category out")


def _wrong(dataset: Dataset, errors: Sequence[str], otherwise: str) -> HrbenchError:
    count = f"{len(errors)} error{'s' * (len(errors) > 1)}"
    first = f"{dataset.root}: {count}, nothing was run: mend or remove what is named, {otherwise}"
    return HrbenchError("\n  ".join([first, *_first(errors)]))


def _first(lines: Sequence[str]) -> list[str]:
    left = len(lines) - MOST_FINDINGS
    more = [f"and {left} more, which `hrbench data check` lists"] if left > 0 else []
    return [*lines[:MOST_FINDINGS], *more]


def _plan(engine: Engine, jobs: Sequence[Job], output: Path, setting: Setting, *, measured: bool) -> Plan:
    plan = make_plan(jobs, output, {}, workers=engine.workers, where=engine.describe())
    left = samples_of([planned.job for planned in plan.left])
    if not measured or not left:
        return plan
    expected = {job.name: found for job, found in engine.rehearse(left, setting)}
    return make_plan(jobs, output, expected, workers=engine.workers, where=engine.describe())


def _do(
    engine: Engine,
    plan: Plan,
    output: Path,
    setting: Setting,
    stop: Callable[[], bool],
    outcomes: dict[str, Outcome],
) -> None:
    """Do the jobs; note how each has ended, by its name."""
    done = {planned.job.name for planned in plan.jobs if planned.state == "done"}
    jobs = [planned.job for planned in plan.jobs]
    if engine.workers > 1:  # the longest first, so that no worker is left with it at the end
        jobs = [planned.job for planned in sorted(plan.jobs, key=lambda planned: -(planned.seconds or 0.0))]
    with GridProgress(plan, setting.protocols[0]) as progress:
        for outcome in engine.run(jobs, output, setting, Watch(stop, progress.told)):
            outcomes[outcome.job.name] = outcome
            progress.ended(outcome, before=outcome.job.name in done and outcome.run is not None)


def _draw(
    engine: Engine,
    jobs: Sequence[Job],
    output: Path,
    setting: Setting,
    stop: Callable[[], bool],
    outcomes: dict[str, Outcome],
) -> None:
    """Draw for all methods what the best have chosen to be seen; let the outcomes have the runs as they are then."""
    ended = [outcomes[job.name] for job in jobs if job.name in outcomes]
    done = [(outcome.job, outcome.run) for outcome in ended if outcome.run is not None]
    with Gallery(done, setting) as gallery:
        if gallery.left:
            engine.draw(gallery, output, Watch(stop))
    for job, run in done:
        outcomes[job.name] = Outcome(job, Run(run.folder))
