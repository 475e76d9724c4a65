"""Anomaly maps that another tool made, scored into a run like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hrbench._util.files import safe_name
from hrbench._util.progress import track
from hrbench.data.sample import Category, Sample, sample_mask
from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, EvidenceCollector
from hrbench.evidence.evidence import collections_of
from hrbench.evidence.histograms import Scores
from hrbench.imaging import image_size
from hrbench.protocol import Protocol
from hrbench.runs.map_files import MAP_SUFFIXES, find_decisions, find_maps, read_decision, read_map
from hrbench.runs.scoring import finish_run
from hrbench.runs.store import Run

__all__ = ["score_maps"]


def score_maps(
    category: Category,
    folder: Path,
    output: Path,
    protocols: Sequence[Protocol],
    *,
    name: str,
    normal_maps: Path | None = None,
    exact: bool = False,
) -> Run:
    """Score a folder of finished maps and keep the result as a run named `name`.

    Parameters
    ----------
    category : Category
    folder : Path
        One map per test image, see :func:`hrbench.runs.map_files.find_maps`; optional decisions beside them.
    output : Path
        Where runs are kept. An earlier run of the same name is replaced.
    protocols : sequence of Protocol
    name : str
        Of the method, for the leaderboard.
    normal_maps : Path, optional
        Maps of normal images that are not in the test set, any names: they set the automatic threshold.
    exact : bool
        Keep every normal score.

    Raises
    ------
    HrbenchError
        For missing, unreadable or wrongly sized maps; the files are named.
    """
    samples = category.test
    paths = find_maps(folder, samples)
    decisions = find_decisions(folder, samples)
    collectors = [EvidenceCollector(way) for way in collections_of(protocols, "max", exact=exact)]

    def read(sample: Sample) -> Scores:
        return read_map(paths[sample.id], image_size(sample.image))

    for sample in track(samples, f"{category.name} {name} score", total=len(samples), unit="img"):
        scores = read(sample)
        decision = read_decision(decisions[sample.id], (scores.shape[0], scores.shape[1])) if decisions else None
        mask = sample_mask(sample, scores.shape)
        for collector in collectors:
            collector.update(sample.id, scores, mask, defect_type=sample.defect_type, decision=decision)
    evidence = [collector.result() for collector in collectors]
    if normal_maps is not None:
        found = Calibration.of(_normal_maps(normal_maps), [part.collection.side for part in evidence])
        evidence = [replace(part, calibration=known) for part, known in zip(evidence, found, strict=True)]
    config = {
        "method": {
            "name": name,
            "title": name,
            "paper": "",
            "reference": "maps",
            "preset": "maps",
            "options": {"exact": exact},
            "weights": {},
            "weights_source": "unknown",
            "weights_licence": "unknown",
            "parameters": 0,
            "trainable": 0,
        },
        "view": "maps",
        "seed": 0,
        "device": "unknown",
        "cost": {},
    }
    identity = hashlib.sha256(json.dumps([category.digest, name, exact]).encode()).hexdigest()
    run = safe_name(f"{name}-maps-s0-{identity[:8]}")
    target = output / "runs" / safe_name(category.dataset) / safe_name(category.name) / run
    return finish_run(target, category, evidence, protocols, config, read)


def _normal_maps(folder: Path) -> Iterator[Scores]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MAP_SUFFIXES)
    if not paths:
        raise HrbenchError(f"{folder}: no anomaly map of a normal image, expected {', '.join(MAP_SUFFIXES)}")
    for path in paths:
        yield read_map(path, None)
