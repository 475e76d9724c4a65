"""Many jobs: the grid category x method x view x seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrbench.data import Dataset, load_dataset
from hrbench.engine.device import pick_device
from hrbench.errors import HrbenchError, unknown_name
from hrbench.precision import pick_precision
from hrbench.protocol import Protocol
from hrbench.runs.job import Job, make_job
from hrbench.runs.runner import run_job
from hrbench.runs.scoring import distinct_protocols
from hrbench.runs.store import Run

__all__ = ["Failure", "Study", "run"]

log = logging.getLogger("hrbench")


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
    """

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]


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
    batch_size: int = 8,
    save_maps: bool = False,
    compiled: bool = False,
) -> Study:
    """Fit and score methods on a dataset: what ``hrbench run`` does.

    All jobs are checked before the first one begins; then they are done one by one. A job that is done already is not
    done again, an unfinished one continues, and one that fails does not stop the others.

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
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
    precision : str
        ``float32``, ``bfloat16`` or ``auto``, see :mod:`hrbench.precision`.
    batch_size : int
        Tiles per forward pass at prediction.
    save_maps : bool
        Also keep every native anomaly map as TIFF.
    compiled : bool
        Compile frozen backbones.

    Raises
    ------
    HrbenchError
        For a wrong name, option or value, before anything runs.

    Examples
    --------
    >>> import hrbench
    >>> study = hrbench.run("mvtec_ad", ["fastflow"], root="/data/mvtec_ad")  # doctest: +SKIP
    >>> study.runs[0].records  # doctest: +SKIP
    """
    if batch_size < 1:
        raise HrbenchError(f"batch size is {batch_size}, expected at least 1")
    lists = {"methods": methods, "categories": categories, "views": views, "seeds": seeds, "protocols": protocols}
    for name, values in lists.items():
        if values is not None and (isinstance(values, str) or not isinstance(values, Sequence) or not values):
            raise HrbenchError(f"{name} is {values!r}, expected a list of at least one")
    for method in options or {}:
        if method not in methods:
            raise unknown_name("method with options", method, methods)
    if not isinstance(dataset, Dataset):
        if root is None:
            raise HrbenchError(f"dataset {str(dataset)!r}: root is missing, expected the folder that it lies in")
        dataset = load_dataset(dataset, Path(root), categories)
    rules = distinct_protocols(protocols)
    target = pick_device(device)
    asked: Sequence[str | None] = views or [None]
    jobs = [
        make_job(
            category,
            method,
            preset=preset,
            view=view,
            options=(options or {}).get(method),
            seed=seed,
            precision=pick_precision(precision, target),
        )
        for method in dict.fromkeys(methods)
        for view in dict.fromkeys(asked)
        for seed in dict.fromkeys(seeds)
        for category in dataset.select(categories)
    ]
    runs, failures = [], []
    for number, job in enumerate(jobs, start=1):
        log.info("[%d/%d] %s", number, len(jobs), job.label)
        try:
            runs.append(
                run_job(
                    job,
                    Path(output),
                    rules,
                    device=target,
                    batch_size=batch_size,
                    save_maps=save_maps,
                    compiled=compiled,
                )
            )
        except HrbenchError as error:
            failures.append(Failure.of(job, error))
            log.error("%s: %s", job.label, error)
        except Exception as error:  # a fault of the method or of the suite: the other jobs must not be lost with it
            failures.append(Failure.of(job, error))
            log.exception("%s failed", job.label)
    return Study(tuple(runs), tuple(failures))
