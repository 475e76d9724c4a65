"""From evidence to a finished run: metrics with intervals, detection limits, pictures, and where they come from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from hrbench._util.files import atomic
from hrbench._util.tables import write_table
from hrbench.data.sample import Category, Sample
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence
from hrbench.evidence.files import write_groups
from hrbench.evidence.histograms import Scores
from hrbench.metrics import automatic_threshold
from hrbench.metrics.measurement import Measured, measure
from hrbench.protocol import Protocol, load_protocol
from hrbench.runs.environment import environment
from hrbench.runs.lease import Leases
from hrbench.runs.pictures import keep_pictures
from hrbench.runs.record import (
    UNFINISHED,
    Cost,
    ProtocolRecord,
    RunRecord,
    ThresholdRecord,
    evidence_records,
    groups_digest,
    write_record,
)
from hrbench.runs.store import Run, RunFolder
from hrbench.runs.tables import RECORD_COLUMNS

__all__ = [
    "distinct_protocols",
    "finish_run",
    "forget_files",
    "record_files",
    "rescore",
    "rescored",
    "run_columns",
    "threshold_record",
]

log = logging.getLogger("hrbench")

_TABLES = tuple(field.name for field in dataclasses.fields(Measured))


def distinct_protocols(protocols: Sequence[str | Path | Protocol]) -> list[Protocol]:
    """Load protocols that are asked for together, each once.

    Raises
    ------
    HrbenchError
        If two of different rules have the same name: records could not tell them apart.
    """
    found: dict[str, Protocol] = {}
    for asked in protocols:
        protocol = load_protocol(asked)
        other = found.setdefault(protocol.name, protocol)
        if other.digest != protocol.digest:
            raise HrbenchError(
                f"two protocols are called {protocol.name!r} (version {other.version} and {protocol.version}) and have "
                "other rules, expected one of them: a run keeps its records by the protocol's name"
            )
    return list(found.values())


def rescore(
    run: Run,
    protocols: Sequence[str | Path | Protocol],
    *,
    anew: bool = False,
    groups: Mapping[str, str] | None = None,
    conditions: Mapping[str, str] | None = None,
) -> Run:
    """Return the run with records under all `protocols`; what is missing or damaged is computed from its evidence.

    If it is killed meanwhile the run says so, and is scored anew by the same call.

    Parameters
    ----------
    run : Run
    protocols : sequence of str, Path or Protocol
    anew : bool
        Compute also what is there: a later version of hrbench may know more metrics of a protocol.
    groups : mapping of str to str, optional
        Group of each test image by its id. Where the run's are others they take their place in its evidence, and all
        its protocols must be among those asked for, because their intervals change.
    conditions : mapping of str to str, optional
        Likewise the condition of each test image.

    Raises
    ------
    HrbenchError
        If a protocol needs evidence that the run did not collect; if two protocols have one name; if groups or
        conditions change, or a table is damaged, and the run has records under other protocols too; or if another
        process is at work on the run.
    """
    with Leases().holding(run.files.lease) as mine:
        if not mine:
            raise HrbenchError(f"{run.folder}: another process is at work on this run; wait until it has ended")
        run.files.tidy()  # of a process that was killed at the very end
        return rescored(run, protocols, anew=anew, groups=groups, conditions=conditions)


def rescored(
    run: Run,
    protocols: Sequence[str | Path | Protocol],
    *,
    anew: bool = False,
    groups: Mapping[str, str] | None = None,
    conditions: Mapping[str, str] | None = None,
) -> Run:
    """Do what :func:`rescore` does, for who holds the run's lease."""
    asked, about = distinct_protocols(protocols), run.about
    before, first = about.protocols, next(iter(about.protocols), None)
    given = {"groups_sha256": groups, "conditions_sha256": conditions}
    digests = {key: groups_digest(names) for key, names in given.items() if names is not None}
    regrouped = any(getattr(about.dataset, key) != digest for key, digest in digests.items())
    damage = None
    try:
        tables = {name: run.table(name) for name in _TABLES}
    except HrbenchError as error:
        damage = error
    all_anew = anew or regrouped or damage is not None
    new = [p for p in asked if all_anew or p.name not in before or before[p.name].sha256 != p.digest]
    if not new:
        return run
    for protocol in new:
        if about.evidence_for(protocol) is None:
            run.load_evidence(protocol)  # raises, with the reason, before anything is changed
    if any(getattr(about.dataset, key) == UNFINISHED for key in given.keys() - digests.keys()):
        raise HrbenchError(
            f"{run.folder}: was interrupted while its groups or conditions were replaced; expected the dataset's "
            "descriptor again, as in `hrbench rescore --dataset`"
        )
    names = [protocol.name for protocol in new]
    if (regrouped or damage) and (others_left := before.keys() - names):
        why = damage or (
            f"{run.folder}: other images belong together, or under one condition, now than when it was measured; this "
            "changes all its intervals"
        )
        raise HrbenchError(f"{why}, so ask for its other protocols as well: {', '.join(sorted(others_left))}")
    measured = []
    if damage is None:
        measured = [Measured(**{name: table[~table["protocol"].isin(names)] for name, table in tables.items()})]
    else:
        log.warning("%s; done now", damage)
    finished = about
    for protocol in new:
        evidence = run.load_evidence(protocol)
        evidence = evidence.grouped(groups, conditions)
        measured.append(measure(evidence, protocol))
        if protocol.name == first:
            finished = dataclasses.replace(finished, threshold=threshold_record(evidence, protocol))
    # Until the last file is written the record says that files of before and after may stand side by side.
    unfinished = {name: dataclasses.replace(before[name], sha256=UNFINISHED) for name in names if name in before}
    written = [run.files.table(name) for name in _TABLES]
    if regrouped:
        written += [run.files.evidence(part.name) / "images.parquet" for part in about.evidence]
    old = {run.files.name_of(path) for path in written}
    kept = {name: said for name, said in about.files.items() if name not in old}
    begun = dataclasses.replace(about, files=kept)
    begun_digests = dict.fromkeys(digests, UNFINISHED) if regrouped else {}
    write_record(_scored(begun, before | unfinished, begun_digests), run.files.record)
    for part in about.evidence if regrouped else ():
        write_groups(run.files.evidence(part.name), groups, conditions)
    _write_tables(run.files, measured, about)
    finished = dataclasses.replace(finished, files=kept | run.files.recorded(filter(Path.exists, written)))
    write_record(_scored(finished, before | _protocol_records(new), digests), run.files.record)
    return Run(run.folder)


def record_files(run: Run, changed: Sequence[Path] = ()) -> None:
    """Add to a run's record the files that have come since it was written, and those that were written anew."""
    folder, known = run.files, {*run.about.files, run.files.record.name}
    new = folder.recorded(path for path in folder.own() if folder.name_of(path) not in known or path in changed)
    write_record(dataclasses.replace(run.about, files=run.about.files | new), run.files.record)


def forget_files(run: Run, names: Sequence[str]) -> None:
    """Drop files, or all in folders of these names, from a run's record: a copy lacks them on purpose."""
    files = {name: said for name, said in run.about.files.items() if name.partition("/")[0] not in names}
    write_record(dataclasses.replace(run.about, files=files), run.files.record)


def _scored(about: RunRecord, protocols: dict[str, ProtocolRecord], digests: Mapping[str, Any]) -> RunRecord:
    """Return the record with other protocols and other digests of its groups and conditions."""
    images = dataclasses.replace(about.dataset, **digests)
    return dataclasses.replace(about, protocols=protocols, dataset=images)


def finish_run(
    folder: RunFolder,
    about: RunRecord,
    category: Category,
    evidence: Sequence[Evidence],
    protocols: Sequence[Protocol],
    anomaly_map: Callable[[Sample], Scores],
    cost: Callable[[], Cost] = Cost,
) -> Run:
    """Write evidence, records, pictures and at last ``run.json`` of a run.

    Parameters
    ----------
    folder : RunFolder
        Its name is the run's.
    about : RunRecord
        Method, view, seed and device; what follows from the other arguments is added to it.
    category : Category
    evidence : sequence of Evidence
        One per way of collecting; the first serves the first protocol.
    protocols : sequence of Protocol
    anomaly_map : callable
        Gives the native map of a test sample, for the pictures.
    cost : callable
        Asked at the very end: what the job took.
    """
    folder.record.unlink(missing_ok=True)  # of a run that this one replaces: it is not done any more
    measured = [
        measure(next(part for part in evidence if part.spec.serves(protocol)), protocol) for protocol in protocols
    ]
    for part in evidence:
        part.save(folder.evidence(part.spec.name))
    about = dataclasses.replace(about, run=folder.path.name)
    _write_tables(folder, measured, about)
    first = evidence[0]
    label = f"{about.dataset.category} {about.method.name}"
    keep_pictures(folder.pictures, first, category, protocols[0], anomaly_map, label)
    threshold = threshold_record(first, protocols[0])
    complete = dataclasses.replace(
        about,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dataclasses.replace(about.dataset, held_out=threshold.normal_images),
        protocols=_protocol_records(protocols),
        evidence=evidence_records(evidence),
        threshold=threshold,
        environment=environment(),
        cost=cost(),
        files=folder.recorded(folder.own()),
    )
    write_record(complete, folder.record)
    return Run(folder.path)


def threshold_record(evidence: Evidence, protocol: Protocol) -> ThresholdRecord:
    """Return what a run says of the operating threshold under its first protocol."""
    rule, held_out = protocol.threshold, evidence.calibration.images if evidence.calibration else 0
    return ThresholdRecord(rule=rule.rule, value=automatic_threshold(evidence, rule), normal_images=held_out)


def _protocol_records(protocols: Sequence[Protocol]) -> dict[str, ProtocolRecord]:
    return {protocol.name: ProtocolRecord.of(protocol) for protocol in protocols}


def run_columns(about: RunRecord) -> dict[str, Any]:
    """Return the columns that say in each row of ``records`` which run it is of."""
    return {
        "run": about.run,
        "dataset": about.dataset.name,
        "category": about.dataset.category,
        "method": about.method.name,
        "preset": about.method.preset,
        "view": about.view,
        "weights": about.method.weights_source,
        "seed": about.seed,
    }


def _write_tables(folder: RunFolder, measured: Sequence[Measured], about: RunRecord) -> None:
    """Write the tables of all protocols together."""
    for name in _TABLES:
        tables = [getattr(part, name) for part in measured]
        filled = [table for table in tables if len(table)]
        whole = pd.concat(filled, ignore_index=True) if filled else tables[-1]
        if name == "conditions" and not filled:
            folder.table(name).unlink(missing_ok=True)
            continue
        if name == "records":
            whole = whole.assign(**run_columns(about))[list(RECORD_COLUMNS)]
        with atomic(folder.table(name)) as path:
            write_table(whole, path)
