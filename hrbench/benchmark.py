"""One job from images to records: fit, predict, evidence, metrics, pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from safetensors.torch import load_file, save_file

from hrbench._ahead import ahead
from hrbench._bundled import bundled_digest
from hrbench._files import atomic, safe_name
from hrbench.backbones import compile_frozen
from hrbench.cost import MemoryPeaks, largest_peaks, timing
from hrbench.data.sample import Category, Sample, content_digest
from hrbench.errors import HrbenchError, unknown_name
from hrbench.evidence import Calibration, Collection, Evidence, EvidenceCollector
from hrbench.finish import AnomalyMap, finish, finish_views
from hrbench.fusion import Fusion
from hrbench.imaging import image_size
from hrbench.inference import NativeMaps, predict
from hrbench.method import Method, all_options, check_options, find_preset, load_method, source_digest
from hrbench.origin import device_name
from hrbench.precision import PRECISIONS
from hrbench.progress import track
from hrbench.protocol import Protocol
from hrbench.scores import Scores
from hrbench.scoring import collections_of, finish_run, rescore, sample_mask
from hrbench.store import Run
from hrbench.training import Fit, ViewedNormals, learnt_state, load_learnt_state, mix, seeded
from hrbench.views import AnyView, parse_view

__all__ = ["Job", "make_job", "run_job", "split_normals"]

log = logging.getLogger("hrbench")

Maps = Callable[..., Iterator[NativeMaps]]  # of samples; with seeds, see `predict`

HELD_OUT = 0.1  # share of the normal training images that set thresholds and are never fitted on
CHUNK = 16  # test images per evidence shard: an interrupted prediction loses at most these


@dataclasses.dataclass(frozen=True)
class Job:
    """What identifies a run: the same job in the same output folder is the same run.

    Attributes
    ----------
    category : Category
    method : str
        Reference, see :func:`hrbench.method.load_method`.
    preset : str
    options : Mapping
        Complete configuration of the method's constructor.
    view : View or FusedView
    seed : int
    precision : str
        ``float32`` or ``bfloat16``, see :mod:`hrbench.precision`. It changes values far more than another device does,
        so that runs of different precision are different runs.
    """

    category: Category
    method: str
    preset: str
    options: Mapping[str, Any]
    view: AnyView
    seed: int
    precision: str = "float32"

    @property
    def method_name(self) -> str:
        """Name of the method for people and folders."""
        return Path(self.method).stem if self.method.endswith(".py") else self.method.rpartition(":")[2]

    @property
    def label(self) -> str:
        """Short text for progress bars."""
        return f"{self.category.name} {self.method_name} {self.view.text} seed {self.seed}"

    @property
    def weights(self) -> str:
        """Where the backbone's weights come from: ``pretrained``, ``random``, a file's name, or ``none``."""
        weights = str(self.options.get("weights", "none"))
        path = Path(weights).expanduser()
        return path.name if path.is_file() else weights

    @property
    def name(self) -> str:
        """Folder name of the run: readable, and unique by a digest of all that identifies it."""
        options = _identities(self.options)
        code = source_digest(load_method(self.method))
        identity = [self.category.names_digest, self.method_name, code, options, self.view.text, self.seed]
        if self.precision != "float32":
            identity.append(self.precision)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return safe_name(f"{self.method_name}-{self.preset}-s{self.seed}-{digest[:8]}")

    def folder(self, output: Path) -> Path:
        """Return where the run is kept below `output`."""
        return output / "runs" / safe_name(self.category.dataset) / safe_name(self.category.name) / self.name


def make_job(
    category: Category,
    method: str,
    *,
    preset: str,
    view: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: str = "float32",
) -> Job:
    """Check a job's names against what exists and fill in the preset.

    Raises
    ------
    HrbenchError
        For an unknown method, preset, option or precision, or a malformed view.
    """
    cls = load_method(method)
    chosen = find_preset(cls, method, preset)
    complete = all_options(cls, check_options(cls, method, {**chosen.options, **(options or {})}))
    for key, value in complete.items():
        try:
            json.dumps(value)
        except TypeError:
            raise HrbenchError(
                f"option {key} of {method} is {value!r}, expected numbers, text, or lists of them: it must be recorded"
            ) from None
    if not 0 <= seed < 2**31:
        raise HrbenchError(f"seed is {seed}, expected a number from 0 to {2**31 - 1}")
    if precision not in PRECISIONS[1:]:
        raise unknown_name("precision", precision, PRECISIONS[1:])
    return Job(category, method, preset, complete, parse_view(view or chosen.view), seed, precision)


def split_normals(category: Category) -> tuple[list[Sample], list[Sample]]:
    """Split the normal training images into those to fit and those held out, the same for every method and seed."""
    train = list(category.train)
    if len(train) < 2:
        raise HrbenchError(
            f"category {category.name!r}: {len(train)} normal training images, expected at least 2 (one is held out)"
        )
    held = max(1, round(HELD_OUT * len(train)))
    chosen = set(np.random.default_rng(0).permutation(len(train))[:held].tolist())
    kept = [sample for index, sample in enumerate(train) if index not in chosen]
    return kept, [train[index] for index in sorted(chosen)]


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
        Compile frozen backbones, see :func:`hrbench.backbones.compile_frozen`.

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
            "options": _identities(job.options),
            "weights": method.weights_record(),
            "weights_source": job.weights,
            "weights_licence": method.weights_licence,
            "parameters": sum(item.numel() for item in parameters),
            "trainable": sum(item.numel() for item in parameters if item.requires_grad),
        },
        "view": job.view.text,
        "seed": job.seed,
    }


def _identities(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they are recorded: files by their name and content, so that paths may differ."""

    def identity(key: str, value: Any) -> Any:
        if not isinstance(value, str) or not key.endswith(("weights", "checkpoint")):
            return value
        if value == "bundled":
            return f"bundled sha256:{bundled_digest(options.values())}"
        path = Path(value).expanduser()
        return f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else value

    return {key: identity(key, value) for key, value in options.items()}
