"""One job from images to records: fit, predict, evidence, metrics, pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench.backbones import compile_frozen
from hrbench.data.sample import Sample, content_digest
from hrbench.engine.anomaly_map import AnomalyMap, finish, finish_looks
from hrbench.engine.device import MemoryPeaks, device_name
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import Fit, ViewedNormals, learnt_state, load_learnt_state, mix, seeded
from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, EvidenceSpec, specs_of
from hrbench.evidence.histograms import Scores
from hrbench.method import Method
from hrbench.protocol import Protocol
from hrbench.registry import load_method, source_digest
from hrbench.runs.job import Job, split_normals
from hrbench.runs.record import MethodRecord, RunRecord, ViewedImages, check_record
from hrbench.runs.scoring import finish_run, rescore
from hrbench.runs.shards import EvidenceShards
from hrbench.runs.store import Run, RunFolder

__all__ = ["run_job"]

log = logging.getLogger("hrbench")


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
    if folder.record.is_file():
        groups = {sample.id: sample.group for sample in job.category.test}
        return rescore(_done_before(job, folder, save_maps), protocols, groups=groups)
    attempt = Attempt(job, folder, device, batch_size=batch_size, compiled=compiled)
    folder.begin(content_digest(job.category.train))
    with attempt:
        check_record(attempt.about())  # before hours are spent
        fit_cost = attempt.fit()
        attempt.measure_fusion()
        specs = specs_of(protocols, attempt.method.image_score)
        calibrations = attempt.calibrations(specs)
        shards = EvidenceShards(folder, job.category.test, specs, save_maps=save_maps)
        memory = MemoryPeaks(device)
        shards.collect(attempt.anomaly_maps(shards.left, shards.seeds(job.seed)), memory, f"{job.label} predict")
        evidence = [
            dataclasses.replace(part, calibration=calibration)
            for part, calibration in zip(shards.merged(), calibrations, strict=True)
        ]
        cost = dataclasses.replace(shards.cost(evidence[0]), **{f"fit_{name}": x for name, x in fit_cost.items()})
        about = dataclasses.replace(attempt.about(), cost=cost)
        run = finish_run(folder, about, job.category, evidence, protocols, attempt.anomaly_map)
    shutil.rmtree(folder.scratch)
    return run


def _done_before(job: Job, folder: RunFolder, save_maps: bool) -> Run:
    """Return the finished run of the job; an error if it is not what is asked for."""
    if save_maps and not all(folder.map_of(sample.id).is_file() for sample in job.category.test):
        raise HrbenchError(f"{folder.path}: done before without its maps; choose another output folder to save them")
    run = Run(folder.path)
    if run.about.dataset.index_sha256 != job.category.digest:
        raise HrbenchError(
            f"{folder.path}: done before on other images of the same names; choose another output folder"
        )
    log.info("%s: done before, %s", job.label, folder.path)
    return run


class Attempt:
    """One attempt at a job, a context: its method on the device, and all that needs it.

    What an earlier attempt has left in the folder is not done again. Threads that work ahead end with the context.

    Parameters
    ----------
    job : Job
    folder : RunFolder
    device : torch.device
    batch_size : int
        Tiles per forward pass at prediction.
    compiled : bool
        Compile frozen backbones.
    """

    method: Method

    def __init__(self, job: Job, folder: RunFolder, device: torch.device, *, batch_size: int, compiled: bool) -> None:
        self._job = job
        self._folder = folder
        self._device = device
        self._batch_size = batch_size
        self._compiled = compiled
        self._fit_samples, self._held_out = split_normals(job.category)
        self._fusion: Fusion | None = None
        self._open = ExitStack()

    def __enter__(self) -> Attempt:
        with ExitStack() as opening:  # closes what is open if the method cannot be made
            opening.enter_context(seeded(self._job.seed))
            self.method = load_method(self._job.method)(**self._job.options).to(self._device)
            self._job.view.check_multiple(self.method.multiple, self._job.method_name)
            self._compiled = self._compiled and compile_frozen(self.method, self._device)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def fit(self) -> dict[str, Any]:
        """Fit and calibrate the method, or load what was learnt before; return the seconds and memory that it took."""
        job, folder = self._job, self._folder
        if folder.weights.is_file() and folder.fit_cost.is_file():
            load_learnt_state(self.method, load_file(folder.weights))
            earlier: dict[str, Any] = json.loads(folder.fit_cost.read_text(encoding="utf-8"))
            return earlier
        memory = MemoryPeaks(self._device)
        fit = Fit(
            self.method,
            held_out=ViewedNormals(self._held_out, job.view),
            seed=job.seed,
            device=self._device,
            checkpoint=folder.checkpoint,
            label=job.label,
            scratch=folder.scratch,
            precision=job.precision,
        )
        self.method.train()
        self.method.fit(ViewedNormals(self._fit_samples, job.view), fit)
        self.method.eval()
        if type(self.method).calibrate is not Method.calibrate:
            with torch.no_grad():
                self.method.calibrate(maps for item in self.native_maps(self._held_out) for maps in item.looks)
        cost = {"seconds": fit.seconds, **memory.record()}
        with atomic(folder.fit_cost) as path:
            path.write_text(json.dumps(cost), encoding="utf-8")
        with atomic(folder.weights) as path:
            save_file(learnt_state(self.method), path)
        folder.checkpoint.unlink(missing_ok=True)
        return cost

    def measure_fusion(self) -> None:
        """Learn on held-out normals how the maps of several looks become one; nothing to do where there is one look."""
        looks, known = self._job.view.looks, self._folder.fusion
        if len(looks) == 1:
            return
        if known.is_file():
            self._fusion = Fusion.read(json.loads(known.read_text(encoding="utf-8")))
            return
        maps = self._held_out_maps("fusion")
        self._fusion = Fusion.of([look.text for look in looks], (finish_looks(self.method, item) for item in maps))
        with atomic(known) as path:
            path.write_text(json.dumps(self._fusion.record()), encoding="utf-8")

    def calibrations(self, specs: Sequence[EvidenceSpec]) -> list[Calibration]:
        """Return what thresholds are set on: the held-out normals, as each spec wants them collected."""
        finished = (finish(self.method, item, self._fusion) for item in self._held_out_maps("held-out"))
        with closing(ahead(AnomalyMap.scores, finished)) as scores:
            return Calibration.of(scores, [spec.side for spec in specs])

    def native_maps(self, samples: Sequence[Sample], seeds: Mapping[int, int] | None = None) -> Iterator[NativeMaps]:
        """Predict samples; `seeds` as in :func:`hrbench.engine.inference.predict`, by default one of their own."""
        maps = predict(
            self.method,
            samples,
            self._job.view,
            self._device,
            batch_size=self._batch_size,
            precision=self._job.precision,
            seeds=seeds or {0: mix(self._job.seed, 1, 0)},  # what a method draws must not depend on what came before
        )
        return self._open.enter_context(closing(maps))  # its threads end with the attempt, whatever happens

    def anomaly_maps(self, samples: Sequence[Sample], seeds: Mapping[int, int] | None = None) -> Iterator[AnomalyMap]:
        """Predict samples, finish their maps, and fuse those of several views."""
        return (finish(self.method, item, self._fusion) for item in self.native_maps(samples, seeds))

    def anomaly_map(self, sample: Sample) -> Scores:
        """Return the anomaly map of one sample, (H, W) float32."""
        (only,) = self.anomaly_maps([sample])
        return only.scores()

    def about(self) -> RunRecord:
        """Return what the run says of its images, its method and how it was asked."""
        job, method = self._job, self.method
        parameters = list(method.parameters())
        return RunRecord(
            dataset=ViewedImages.of(job.category),
            method=MethodRecord(
                name=job.method_name,
                title=method.title or job.method_name,
                paper=method.paper,
                reference=job.method,
                preset=job.preset,
                source_sha256=source_digest(type(method)),
                options=dict(job.recorded_options),
                weights=method.weights_record(),
                weights_source=job.weights,
                weights_licence=method.weights_licence,
                parameters=sum(item.numel() for item in parameters),
                trainable=sum(item.numel() for item in parameters if item.requires_grad),
            ),
            view=job.view.text,
            seed=job.seed,
            batch_size=self._batch_size,
            device=device_name(self._device),
            precision=job.precision,
            compiled=self._compiled,
            fusion=tuple(self._fusion.record()) if self._fusion else None,
        )

    def _held_out_maps(self, what: str) -> Iterator[NativeMaps]:
        label = f"{self._job.label} {what}"
        return track(self.native_maps(self._held_out), label, total=len(self._held_out), unit="img")
