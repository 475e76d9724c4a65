"""From evidence to a finished run: metrics with intervals, detection limits, pictures, and where they come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench._files import atomic
from hrbench.data.sample import Category, Sample
from hrbench.errors import HrbenchError
from hrbench.evidence import Collection, Evidence
from hrbench.imaging import read_mask
from hrbench.metrics import METRIC_COLUMNS, automatic_threshold, component_table, compute
from hrbench.metrics.bootstrap import replicates
from hrbench.metrics.detection import Detection, detection
from hrbench.origin import environment
from hrbench.pictures import draw_pictures
from hrbench.protocol import Protocol
from hrbench.scores import Scores
from hrbench.store import RECORD_COLUMNS, SCHEMA_VERSION, Run

__all__ = ["Measured", "collections_of", "detection_of", "finish_run", "measure", "rescore", "sample_mask"]


def sample_mask(sample: Sample, size: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """Return the (H, W) bool mask of a defective sample, None for a normal one.

    Raises
    ------
    HrbenchError
        If the mask is of another size, or has no defect pixel.
    """
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask, (size[0], size[1]))
    if not mask.any():
        raise HrbenchError(f"{sample.mask}: no defect pixel, but {sample.id} is labelled defective")
    return mask


def collections_of(protocols: Sequence[Protocol], method_rule: str, *, exact: bool = False) -> list[Collection]:
    """Return the different ways in which evidence must be collected for `protocols`, that of the first one first."""
    return list(dict.fromkeys(Collection.of(protocol, method_rule, exact=exact) for protocol in protocols))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run keeps of one protocol, as tables with a column `protocol`.

    Attributes
    ----------
    records : DataFrame
        The columns of :func:`hrbench.metrics.compute`, and ci_low, ci_high. Added are the metrics ``a50``, ``a90`` and
        ``a90_95``: component areas in pixels, NaN where not reached.
    components : DataFrame
        See :func:`hrbench.metrics.component_table`.
    replicates : DataFrame
        Bootstrap replicates of AUPRO at the headline limit, from which ranks get their intervals.
    """

    records: pd.DataFrame
    components: pd.DataFrame
    replicates: pd.DataFrame


_TABLES = tuple(field.name for field in dataclasses.fields(Measured))


def measure(evidence: Evidence, protocol: Protocol) -> Measured:
    """Return all metrics under a protocol with their intervals, and the sizes that are found reliably."""
    records = compute(evidence, protocol).assign(ci_low=np.nan, ci_high=np.nan)
    rules, drawn = protocol.bootstrap, pd.DataFrame()
    if rules.draws:
        result = replicates(evidence, protocol, draws=rules.draws, seed=rules.seed)
        ends = result.intervals(rules.level)
        records = records.assign(ci_low=ends["ci_low"], ci_high=ends["ci_high"])
        drawn = result.table("aupro", fpr_limit=protocol.headline_fpr)
    found = detection_of(evidence, protocol)
    if found is not None:
        rows = pd.DataFrame({"metric": ["a50", "a90", "a90_95"], "subset": "all", "fpr_limit": np.nan})
        limits = (found.a50, found.a90, found.a90_95)
        rows["value"] = [np.nan if limit.area is None else limit.area for limit in limits]
        rows = rows.assign(error_bound=0.0, n=len(evidence.components), ci_low=np.nan, ci_high=np.nan)
        records = pd.concat([records, rows], ignore_index=True)
    tables = (records, component_table(evidence, protocol), drawn)
    return Measured(*(table.assign(protocol=protocol.name) for table in tables))


def detection_of(evidence: Evidence, protocol: Protocol) -> Detection | None:
    """Return the probability of detection at the automatic threshold; None where there is no threshold."""
    threshold = automatic_threshold(evidence, protocol.threshold)
    if threshold is None:
        return None
    pod, rules = protocol.pod, protocol.bootstrap
    return detection(
        evidence,
        threshold,
        share=pod.share,
        probability=pod.probability,
        level=pod.level,
        draws=rules.draws,
        seed=rules.seed,
    )


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
