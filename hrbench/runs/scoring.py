"""From evidence to a finished run: metrics with intervals, detection limits, pictures, and where they come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
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
from hrbench.runs.store import RECORD_COLUMNS, SCHEMA_VERSION, Run

__all__ = ["finish_run", "rescore"]

_TABLES = tuple(field.name for field in dataclasses.fields(Measured))


def rescore(run: Run, protocols: Sequence[Protocol]) -> Run:
    """Return the run with records under all `protocols`; what is missing is computed from its evidence.

    Raises
    ------
    HrbenchError
        If a protocol needs evidence that the run did not collect.
    """
    known = run.config["protocols"]
    new = [p for p in protocols if known.get(p.name, {}).get("sha256") != p.digest]
    if not new:
        return run
    names = [protocol.name for protocol in new]
    own = run.records.drop(columns=["protocol", *METRIC_COLUMNS, "ci_low", "ci_high"]).iloc[0].to_dict()
    earlier = (getattr(run, name) for name in _TABLES)
    kept = Measured(*(table[~table["protocol"].isin(names)] for table in earlier))
    _write_tables(run.folder, [kept, *(measure(run.load_evidence(protocol), protocol) for protocol in new)], own)
    config = {**run.config, "protocols": known | _protocol_digests(new)}
    _write_config(run.folder, config)
    return Run(run.folder)


def finish_run(
    folder: Path,
    category: Category,
    evidence: Sequence[Evidence],
    protocols: Sequence[Protocol],
    config: Mapping[str, Any],
    anomaly_map: Callable[[Sample], Scores],
) -> Run:
    """Write evidence, records, pictures and at last ``run.json`` of a run.

    Parameters
    ----------
    folder : Path
        Its name is the run's.
    category : Category
    evidence : sequence of Evidence
        One per way of collecting; the first serves the first protocol.
    protocols : sequence of Protocol
    config : Mapping
        What ``run.json`` says beyond dataset, protocols, threshold and environment: at least method, view, seed,
        device and cost.
    anomaly_map : callable
        Gives the native map of a test sample, for the pictures.
    """
    (folder / "run.json").unlink(missing_ok=True)  # of a run that this one replaces: it is not done any more
    method = config["method"]
    own = {
        "run": folder.name,
        "dataset": category.dataset,
        "category": category.name,
        "method": method["name"],
        "preset": method["preset"],
        "view": config["view"],
        "weights": method["weights_source"],
        "seed": config["seed"],
    }
    measured = []
    for protocol in protocols:
        fitting = next(part for part in evidence if part.collection.serves(protocol))
        measured.append(measure(fitting, protocol))
    for part in evidence:
        part.save(folder / "evidence" / part.collection.name)
    _write_tables(folder, measured, own)
    first = evidence[0]
    draw_pictures(folder / "pictures", first, category, protocols[0], anomaly_map)
    calibration, rule = first.calibration, protocols[0].threshold
    complete = {
        "schema": SCHEMA_VERSION,
        "run": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": {
            "name": category.dataset,
            "category": category.name,
            "index_sha256": category.digest,
            "train": len(category.train),
            "held_out": calibration.images if calibration else 0,
            "test": len(category.test),
            "test_defective": sum(sample.label for sample in category.test),
        },
        "protocols": _protocol_digests(protocols),
        "evidence": [
            {"name": part.collection.name, "collection": dataclasses.asdict(part.collection)} for part in evidence
        ],
        "threshold": {
            "rule": rule.rule,
            "value": automatic_threshold(first, rule),
            "normal_images": calibration.images if calibration else 0,
        },
        "environment": environment(),
        **config,
    }
    _write_config(folder, complete)
    return Run(folder)


def _protocol_digests(protocols: Sequence[Protocol]) -> dict[str, dict[str, Any]]:
    return {p.name: {"version": p.version, "sha256": p.digest} for p in protocols}


def _write_tables(folder: Path, measured: Sequence[Measured], own: Mapping[str, Any]) -> None:
    for name in _TABLES:
        parts = [table for part in measured if len(table := getattr(part, name))]
        whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"protocol": []})
        if name == "records":
            whole = whole.assign(**own)[list(RECORD_COLUMNS)]
        with atomic(folder / f"{name}.parquet") as path:
            whole.to_parquet(path, index=False)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    with atomic(folder / "run.json") as path:
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
