"""Finished runs of which files are damaged or missing: they become unfinished jobs that have all that is intact."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from hrbench._util.files import atomic
from hrbench._util.received import file_digest
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence
from hrbench.runs.cost import FitRecord, Spent
from hrbench.runs.job import Job
from hrbench.runs.record import RunRecord
from hrbench.runs.stages import Setting, shards_of, specs_for
from hrbench.runs.store import Run

__all__ = ["reopen"]

log = logging.getLogger("hrbench")


def reopen(run: Run, job: Job, setting: Setting, damaged: Sequence[Path]) -> None:
    """Let a finished job be unfinished, so that what is damaged is done again.

    Weights that are intact need no fit, and evidence that is intact no prediction.

    Parameters
    ----------
    run : Run
        Of these images.
    job : Job
    setting : Setting
    damaged : sequence of Path
        See :meth:`hrbench.runs.store.Run.damaged`.

    Raises
    ------
    HrbenchError
        If the run has records under protocols that are not asked for: they would be lost.
    """
    about, folder = run.about, run.files
    names = ", ".join(path.relative_to(run.folder).as_posix() for path in damaged)
    if others := about.protocols.keys() - {protocol.name for protocol in setting.protocols}:
        raise HrbenchError(
            f"{run.folder}: damaged or missing: {names}; to do that again, ask for the run's other protocols as well: "
            f"{', '.join(sorted(others))}"
        )
    log.warning("%s: damaged or missing: %s; done again", run.folder, names)
    images = job.category.train_digest
    folder.reopen(images)
    if folder.weights.is_file() and folder.weights not in damaged:
        if folder.fit_record(images) is None:
            seconds = about.cost.fit_seconds or 0.0
            digest, spent = file_digest(folder.weights), _spent(about, seconds, "fit_")
            FitRecord(folder.path.name, images, digest, seconds, spent).write(folder.fit_cost)
        if about.fusion is not None:
            with atomic(folder.fusion) as path:
                path.write_text(json.dumps(about.fusion), encoding="utf-8")
        if (evidence := _intact(run, job, setting)) is not None:
            _keep(evidence, run, job, setting)
    folder.record.unlink()


def _intact(run: Run, job: Job, setting: Setting) -> list[Evidence] | None:
    """Return the evidence that the job wants, its images named as it does; None if any of it is damaged."""
    named = job.category.groups, job.category.conditions
    parts = {part.name: part for part in run.about.evidence}
    try:
        return [run.evidence_of(parts[spec.name]).grouped(*named) for spec in specs_for(job, setting)]
    except (HrbenchError, KeyError):
        return None


def _keep(evidence: Sequence[Evidence], run: Run, job: Job, setting: Setting) -> None:
    """Leave evidence as prediction would have left it."""
    folder, cost = run.files, run.about.cost
    for part in evidence:
        if part.calibration is not None:
            with atomic(folder.calibration(part.spec.name)) as path:
                part.calibration.save(path)
    rest = max(0.0, (cost.stage_seconds or 0.0) - (cost.fit_seconds or 0.0))
    _spent(run.about, 0.0).write(folder.calibrated)
    shards_of(job, folder, setting).refill(evidence, _spent(run.about, rest))


def _spent(about: RunRecord, seconds: float, stage: str = "") -> Spent:
    """Return what a stage of the run once took, with the peaks of prediction or, if it is ``fit_``, of the fit."""
    names = ("peak_host_mib", "peak_host_since", "peak_device_mib")
    peaks = {name: getattr(about.cost, f"{stage}{name}") for name in names}
    now, known = time.time(), peaks["peak_host_mib"] is not None
    return Spent(now, now, about.device, about.cost.workers_on_device, peaks if known else {}, seconds)
