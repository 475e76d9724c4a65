"""One job from images to records: fit, predict, evidence, metrics, pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import tifffile
import torch
from safetensors.torch import load_file, save_file

from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench.backbones import compile_frozen
from hrbench.data.sample import Sample, content_digest, sample_mask
from hrbench.engine.anomaly_map import AnomalyMap, finish, finish_views
from hrbench.engine.device import MemoryPeaks, device_name, largest_peaks
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import Fit, ViewedNormals, learnt_state, load_learnt_state, mix, seeded
from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, Collection, Evidence, EvidenceCollector
from hrbench.evidence.evidence import collections_of
from hrbench.evidence.histograms import Scores
from hrbench.imaging import image_size
from hrbench.method import Method
from hrbench.protocol import Protocol
from hrbench.registry import load_method, source_digest
from hrbench.runs.cost import timing
from hrbench.runs.job import Job, identities, split_normals
from hrbench.runs.scoring import finish_run, rescore
from hrbench.runs.store import Run

__all__ = ["run_job"]

log = logging.getLogger("hrbench")

Maps = Callable[..., Iterator[NativeMaps]]  # of samples; with seeds, see `predict`

CHUNK = 16  # test images per evidence shard: an interrupted prediction loses at most these


def run_job(
    job: Job,
    output: Path,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    batch_size: int = 8,
    save_maps: bool = False,
    compiled: bool = False,
) -> Run:
    """Do a job, or what is left of it, and return the run; one that is done already is returned as it is.

    Weights, evidence shards and at last ``run.json`` are written as they are finished, so a killed run continues
    where it was and ends with the same evidence.

    Parameters
    ----------
    job : Job
    output : Path
    protocols : sequence of Protocol
        Those that agree on how evidence is collected share it; the first is the one that pictures and the recorded
        threshold follow.
    device : torch.device
    batch_size : int
        Tiles per forward pass at prediction.
    save_maps : bool
        Also write each native anomaly map as float32 TIFF.
    compiled : bool
        Compile frozen backbones, see :func:`hrbench.backbones.extractors.compile_frozen`.

    Raises
    ------
    HrbenchError
        For a bad file or option; what was finished before stays.
    """
    folder = job.folder(output)
    if not any(sample.label for sample in job.category.test):
        raise HrbenchError(f"category {job.category.name!r}: no defective test image, there is nothing to measure")
    if (folder / "run.json").is_file():
        if save_maps and not all(_map_path(folder, sample).is_file() for sample in job.category.test):
            raise HrbenchError(f"{folder}: done before without its maps; choose another output folder to save them")
        done = Run(folder)
        if done.config["dataset"]["index_sha256"] != job.category.digest:
            raise HrbenchError(f"{folder}: done before on other images of the same names; choose another output folder")
        log.info("%s: done before, %s", job.label, folder)
        return rescore(done, protocols)
    fit_samples, held_out = split_normals(job.category)
    _start_over_if_changed(folder, content_digest(job.category.train))

    with seeded(job.seed), ExitStack() as left_open:
        method = load_method(job.method)(**job.options).to(device)
        job.view.check_multiple(method.multiple, job.method_name)
        compiled = compiled and compile_frozen(method, device)

        def maps(samples: Sequence[Sample], seeds: Mapping[int, int] | None = None) -> Iterator[NativeMaps]:
            # What a method draws must not depend on what came before.
            seeds = seeds or {0: mix(job.seed, 1, 0)}
            found = predict(
                method, samples, job.view, device, batch_size=batch_size, precision=job.precision, seeds=seeds
            )
            return left_open.enter_context(closing(found))  # its threads end with the job, whatever happens

        fit_cost = _fit(job, method, fit_samples, held_out, maps, folder, device)
        ways = collections_of(protocols, method.image_score)
        fusion = _fusion(job, method, maps, held_out, folder)

        def finished(samples: Sequence[Sample], seeds: Mapping[int, int] | None = None) -> Iterator[AnomalyMap]:
            return (finish(method, item, fusion) for item in maps(samples, seeds))

        with closing(ahead(AnomalyMap.scores, finished(held_out))) as scores:
            held = track(scores, f"{job.label} held-out", total=len(held_out), unit="img")
            calibrations = Calibration.of(held, [way.side for way in ways])
        evidence, cost = _collect(job, finished, folder, ways, device, save_maps=save_maps)
        evidence = [
            dataclasses.replace(part, calibration=calibration)
            for part, calibration in zip(evidence, calibrations, strict=True)
        ]
        config = {
            **_describe(job, method),
            "batch_size": batch_size,
            "device": device_name(device),
            "precision": job.precision,
            "compiled": compiled,
            "cost": {**{f"fit_{name}": value for name, value in fit_cost.items()}, **cost},
        }
        if fusion is not None:
            config["fusion"] = fusion.record()

        def anomaly_map(sample: Sample) -> Scores:
            (found,) = finished([sample])
            return found.scores()

        run = finish_run(folder, job.category, evidence, protocols, config, anomaly_map)
    shutil.rmtree(folder / "partial")
    return run


def _start_over_if_changed(folder: Path, digest: str) -> None:
    """Forget what an earlier attempt learnt if its training images were others."""
    seen = folder / "partial" / "train.sha256"
    if not (seen.is_file() and seen.read_text(encoding="utf-8") == digest):
        shutil.rmtree(folder, ignore_errors=True)
        seen.parent.mkdir(parents=True)
        with atomic(seen) as path:
            path.write_text(digest, encoding="utf-8")


def _fit(
    job: Job,
    method: Method,
    fit_samples: list[Sample],
    held_out: list[Sample],
    maps: Maps,
    folder: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Fit and calibrate the method, or load what an earlier attempt learnt; return the seconds and memory it took."""
    partial = folder / "partial"
    weights, spent = folder / "weights.safetensors", partial / "fit.json"
    if weights.is_file() and spent.is_file():
        load_learnt_state(method, load_file(weights))
        known: dict[str, Any] = json.loads(spent.read_text(encoding="utf-8"))
        return known
    memory = MemoryPeaks(device)
    fit = Fit(
        method,
        held_out=ViewedNormals(held_out, job.view),
        seed=job.seed,
        device=device,
        checkpoint=partial / "fit.pt",
        label=job.label,
        scratch=partial,
        precision=job.precision,
    )
    method.train()
    method.fit(ViewedNormals(fit_samples, job.view), fit)
    method.eval()
    if type(method).calibrate is not Method.calibrate:
        with torch.no_grad():
            method.calibrate(part for item in maps(held_out) for part in item.parts)
    cost = {"seconds": fit.seconds, **memory.record()}
    with atomic(spent) as path:
        path.write_text(json.dumps(cost), encoding="utf-8")
    with atomic(weights) as path:
        save_file(learnt_state(method), path)
    (partial / "fit.pt").unlink(missing_ok=True)
    return cost


def _fusion(job: Job, method: Method, maps: Maps, held_out: list[Sample], folder: Path) -> Fusion | None:
    """Return how maps of several views become one, measured on held-out normals; None where there is one view."""
    if len(job.view.parts) == 1:
        return None
    known = folder / "partial" / "fusion.json"
    if known.is_file():
        return Fusion.read(json.loads(known.read_text(encoding="utf-8")))
    seen = track(maps(held_out), f"{job.label} fusion", total=len(held_out), unit="img")
    fusion = Fusion.of([part.text for part in job.view.parts], (finish_views(method, item) for item in seen))
    with atomic(known) as path:
        path.write_text(json.dumps(fusion.record()), encoding="utf-8")
    return fusion


def _collect(
    job: Job,
    finished: Callable[[Sequence[Sample], Mapping[int, int]], Iterator[AnomalyMap]],
    folder: Path,
    ways: Sequence[Collection],
    device: torch.device,
    *,
    save_maps: bool,
) -> tuple[list[Evidence], dict[str, Any]]:
    """Predict the test images chunk by chunk into evidence shards, join them, and return them with what they cost.

    A thread counts the evidence of an image while the next one is predicted. A batch never crosses a chunk, so that a
    continued run forms the same batches and ends with the same bits.
    """
    test = job.category.test
    chunks = [test[start : start + CHUNK] for start in range(0, len(test), CHUNK)]
    shards = [folder / "partial" / f"evidence-{number:05d}" for number in range(len(chunks))]

    def complete(number: int) -> bool:
        kept = all(_map_path(folder, sample).is_file() for sample in chunks[number]) if save_maps else True
        seen = shards[number] / "images.sha256"
        same = seen.is_file() and seen.read_text(encoding="utf-8") == content_digest(chunks[number])
        return kept and same and all((shards[number] / way.name).is_dir() for way in ways)

    memory = MemoryPeaks(device)
    left = [number for number in range(len(chunks)) if not complete(number)]
    samples: list[Sample] = []
    seeds: dict[int, int] = {}
    for number in left:
        seeds[len(samples)] = mix(job.seed, 1, number + 1)
        samples += chunks[number]
    chunk_of = {sample.id: number for number in left for sample in chunks[number]}
    collectors: list[EvidenceCollector] = []

    def count(item: AnomalyMap) -> None:
        sample, scores = item.sample, item.scores()
        if not collectors:
            collectors.extend(EvidenceCollector(way) for way in ways)
        mask = sample_mask(sample, scores.shape)
        for collector in collectors:
            collector.update(
                sample.id,
                scores,
                mask,
                defect_type=sample.defect_type,
                decision=item.decision(),
                seconds=item.seconds,
            )
        if save_maps:
            with atomic(_map_path(folder, sample)) as path:
                tifffile.imwrite(path, scores, compression="zlib")
        number = chunk_of[sample.id]
        if sample is chunks[number][-1]:
            save(number)
            collectors.clear()

    def save(number: int) -> None:
        if shards[number].is_dir():  # of an attempt with other protocols, or on other images
            shutil.rmtree(shards[number])
        with atomic(shards[number]) as path:
            path.mkdir()
            (path / "images.sha256").write_text(content_digest(chunks[number]), encoding="utf-8")
            (path / "memory.json").write_text(json.dumps(memory.record()), encoding="utf-8")
            for collector in collectors:
                collector.result().save(path / collector.collection.name)

    with closing(ahead(count, finished(samples, seeds))) as counted:
        done = len(test) - len(samples)
        for _ in track(counted, f"{job.label} predict", total=len(test), initial=done, unit="img"):
            pass
    evidence = [Evidence.merge([Evidence.load(shard / way.name) for shard in shards]) for way in ways]
    peaks = [shard / "memory.json" for shard in shards]
    known = (json.loads(path.read_text(encoding="utf-8")) for path in peaks if path.is_file())
    pixels = {sample.id: math.prod(image_size(sample.image)) for sample in test}
    return evidence, {**timing(evidence[0].images, pixels), **largest_peaks(known)}


def _map_path(folder: Path, sample: Sample) -> Path:
    """Return where a sample's map is kept: its path in the dataset, which no reader lets leave the root."""
    return folder / "maps" / Path(sample.id).with_suffix(".tiff")


def _describe(job: Job, method: Method) -> dict[str, Any]:
    parameters = list(method.parameters())
    return {
        "method": {
            "name": job.method_name,
            "title": method.title or job.method_name,
            "paper": method.paper,
            "reference": job.method,
            "preset": job.preset,
            "source_sha256": source_digest(type(method)),
            "options": identities(type(method), job.options),
            "weights": method.weights_record(),
            "weights_source": job.weights,
            "weights_licence": method.weights_licence,
            "parameters": sum(item.numel() for item in parameters),
            "trainable": sum(item.numel() for item in parameters if item.requires_grad),
        },
        "view": job.view.text,
        "seed": job.seed,
    }
