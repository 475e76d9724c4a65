"""Anomaly maps that another tool made, scored into a run like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hrbench._util.files import relative_path
from hrbench._util.progress import track
from hrbench.data.sample import Category, Sample, sample_mask, sample_regions
from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, EvidenceCollector
from hrbench.evidence.histograms import Scores
from hrbench.evidence.spec import specs_of
from hrbench.imaging import image_size
from hrbench.protocol import Protocol
from hrbench.runs.identity import maps_name
from hrbench.runs.lease import Leases
from hrbench.runs.map_files import MAP_SUFFIXES, find_decisions, find_maps, read_decision, read_map
from hrbench.runs.record import MethodRecord, RunRecord, ViewedImages
from hrbench.runs.scoring import finish_run
from hrbench.runs.store import Run, RunFolder

__all__ = ["score_maps"]


def score_maps(
    categories: Sequence[Category],
    folder: Path,
    output: Path,
    protocols: Sequence[Protocol],
    *,
    name: str,
    normal_maps: Path | None = None,
    exact: bool = False,
) -> list[Run]:
    """Score a folder of finished maps and keep the result as a run per category, named `name`.

    Parameters
    ----------
    categories : sequence of Category
    folder : Path
        One map per test image, see :func:`hrbench.runs.map_files.find_maps`; optional decisions beside them.
    output : Path
        Where runs are kept. An earlier run of the same name is replaced.
    protocols : sequence of Protocol
    name : str
        Of the method, for the leaderboard.
    normal_maps : Path, optional
        Maps of normal images that are not in the test set, any names: they set the automatic threshold. Where there are
        several categories, a folder for each, for their thresholds must not mix.
    exact : bool
        Keep every normal score.

    Raises
    ------
    HrbenchError
        For missing, unreadable or wrongly sized maps; the files are named.
    """
    several, runs = len(categories) > 1, []
    for category in categories:
        normal = normal_maps / relative_path(category.name) if normal_maps is not None and several else normal_maps
        if normal is not None and not normal.is_dir():
            which = " of each category in its own" if several else ""
            raise HrbenchError(f"{normal}: no such folder, expected normal maps{which}")
        runs.append(_score_category(category, folder, output, protocols, name, normal, exact))
    return runs


def _score_category(
    category: Category,
    folder: Path,
    output: Path,
    protocols: Sequence[Protocol],
    name: str,
    normal_maps: Path | None,
    exact: bool,
) -> Run:
    samples = category.test
    paths = find_maps(folder, samples)
    decisions = find_decisions(folder, samples)
    collectors = [EvidenceCollector(spec) for spec in specs_of(protocols, "max", exact=exact)]

    def read(sample: Sample) -> Scores:
        return read_map(paths[sample.id], image_size(sample.image))

    for sample in track(samples, f"{category.name} {name} score", total=len(samples), unit="img"):
        scores = read(sample)
        decision = read_decision(decisions[sample.id], (scores.shape[0], scores.shape[1])) if decisions else None
        mask, regions = sample_mask(sample, scores.shape), sample_regions(sample, scores.shape)
        for collector in collectors:
            collector.update(
                sample.id,
                scores,
                mask,
                unmasked=sample.unmasked,
                defect_type=sample.defect_type,
                decision=decision,
                group=sample.group,
                condition=sample.condition,
                regions=regions,
            )
    evidence = [collector.result() for collector in collectors]
    if normal_maps is not None:
        calibrations = Calibration.of(_normal_maps(normal_maps), [part.spec.side for part in evidence])
        evidence = [
            replace(part, calibration=calibration) for part, calibration in zip(evidence, calibrations, strict=True)
        ]
    method = MethodRecord(name=name, title=name, reference="maps", preset="maps", options={"exact": exact})
    about = RunRecord(dataset=ViewedImages.of(category), method=method, view="maps")
    run = maps_name(category.digest, name, exact=exact)
    target = RunFolder.of(output, category.dataset, category.name, run)
    with Leases().holding(target.lease) as mine:
        if not mine:
            raise HrbenchError(f"{target.path}: another process is at work on this run; wait until it has ended")
        return finish_run(target, about, category, evidence, protocols, read)


def _normal_maps(folder: Path) -> Iterator[Scores]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MAP_SUFFIXES)
    if not paths:
        raise HrbenchError(f"{folder}: no anomaly map of a normal image, expected {', '.join(MAP_SUFFIXES)}")
    for path in paths:
        yield read_map(path, None)
