"""From evidence to a finished run: metrics with intervals, detection limits, pictures, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from hrbench._util.files import atomic
from hrbench.data.sample import Category, Sample
from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Scores
from hrbench.metrics import METRIC_COLUMNS, automatic_threshold
from hrbench.metrics.measurement import Measured, measure
from hrbench.protocol import Protocol
from hrbench.runs.environment import environment
from hrbench.runs.pictures import draw_pictures
from hrbench.runs.record import ProtocolRecord, RunRecord, ThresholdRecord, evidence_records, write_record
from hrbench.runs.store import RECORD_COLUMNS, Run, RunFolder

__all__ = ["finish_run", "rescore"]

_TABLES = tuple(field.name for field in dataclasses.fields(Measured))


def rescore(run: Run, protocols: Sequence[Protocol]) -> Run:
    """Return the run with records under all `protocols`; what is missing is computed from its evidence.

    Raises
    ------
    HrbenchError
        If a protocol needs evidence that the run did not collect.
    """
    before = run.about.protocols
    new = [p for p in protocols if p.name not in before or before[p.name].sha256 != p.digest]
    if not new:
        return run
    names = [protocol.name for protocol in new]
    tables = (getattr(run, name) for name in _TABLES)
    others = Measured(*(table[~table["protocol"].isin(names)] for table in tables))
    measured = [others, *(measure(run.load_evidence(protocol), protocol) for protocol in new)]
    same = run.records.drop(columns=["protocol", *METRIC_COLUMNS, "ci_low", "ci_high"]).iloc[0].to_dict()
    _write_tables(run.files, measured, same)
    write_record(dataclasses.replace(run.about, protocols=before | _protocol_records(new)), run.files.record)
    return Run(run.folder)


def finish_run(
    folder: RunFolder,
    about: RunRecord,
    category: Category,
    evidence: Sequence[Evidence],
    protocols: Sequence[Protocol],
    anomaly_map: Callable[[Sample], Scores],
) -> Run:
    """Write evidence, records, pictures and at last ``run.json`` of a run.

    Parameters
    ----------
    folder : RunFolder
        Its name is the run's.
    about : RunRecord
        Method, view, seed, device and cost; what follows from the other arguments is added to it.
    category : Category
    evidence : sequence of Evidence
        One per way of collecting; the first serves the first protocol.
    protocols : sequence of Protocol
    anomaly_map : callable
        Gives the native map of a test sample, for the pictures.
    """
    folder.record.unlink(missing_ok=True)  # of a run that this one replaces: it is not done any more
    measured = [
        measure(next(part for part in evidence if part.spec.serves(protocol)), protocol) for protocol in protocols
    ]
    for part in evidence:
        part.save(folder.evidence(part.spec.name))
    same = {
        "run": folder.path.name,
        "dataset": category.dataset,
        "category": category.name,
        "method": about.method.name,
        "preset": about.method.preset,
        "view": about.view,
        "weights": about.method.weights_source,
        "seed": about.seed,
    }
    _write_tables(folder, measured, same)
    first, rule, pixels = evidence[0], protocols[0].threshold, protocols[0].alarm.pixels
    draw_pictures(folder.pictures, first, category, protocols[0], anomaly_map)
    held_out = first.calibration.images if first.calibration else 0
    threshold = automatic_threshold(first, rule, pixels)
    complete = dataclasses.replace(
        about,
        run=folder.path.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dataclasses.replace(about.dataset, held_out=held_out),
        protocols=_protocol_records(protocols),
        evidence=evidence_records(evidence),
        threshold=ThresholdRecord(rule=rule.rule, value=threshold, normal_images=held_out),
        environment=environment(),
    )
    write_record(complete, folder.record)
    return Run(folder.path)


def _protocol_records(protocols: Sequence[Protocol]) -> dict[str, ProtocolRecord]:
    return {protocol.name: ProtocolRecord.of(protocol) for protocol in protocols}


def _write_tables(folder: RunFolder, measured: Sequence[Measured], same: Mapping[str, Any]) -> None:
    """Write the tables of all protocols together; `same` are the columns in which all records are alike."""
    for name in _TABLES:
        parts = [table for part in measured if len(table := getattr(part, name))]
        whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"protocol": []})
        if name == "records":
            whole = whole.assign(**same)[list(RECORD_COLUMNS)]
        with atomic(folder.table(name)) as path:
            whole.to_parquet(path, index=False)
