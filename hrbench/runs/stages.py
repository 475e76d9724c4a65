"""The stages of a job: fit, predict a chunk of the test images, score.

Each is a function of the job and of files that earlier stages left in its folder; what it leaves there are files that
merge. So a stage can be done by any process, any number of times, and on equal devices always leaves the same bits:
``fit`` the weights and what held-out normal images tell about them, ``predict`` a shard of evidence per chunk,
``score`` the records, the pictures and at last ``run.json``. Of a finished run ``draw`` makes more pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hrbench._util.files import atomic
from hrbench._util.guard import call_name, guarded
from hrbench._util.progress import track
from hrbench._util.received import file_digest, read_json
from hrbench._util.types import Mismatch, conform
from hrbench.backbones import compile_frozen
from hrbench.contract import make
from hrbench.data.sample import Sample
from hrbench.engine import rehearsal
from hrbench.engine.anomaly_map import AnomalyMap, finish, finish_looks
from hrbench.engine.batch_size import AUTO, BatchSize, find_batch_size
from hrbench.engine.device import MemoryPeaks, check_memory, device_name, largest_peaks
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.prefetch import ahead
from hrbench.engine.rehearsal import Expected
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, mix, seeded
from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, EvidenceSpec, NormalTally, specs_of
from hrbench.evidence.histograms import Scores
from hrbench.method import Method
from hrbench.protocol import Protocol
from hrbench.registry import load_method, source_digest
from hrbench.runs.batch_sizes import BatchSizes
from hrbench.runs.cost import FitRecord, Spent, spent_together
from hrbench.runs.job import Job
from hrbench.runs.picture_choice import Choice, Scale
from hrbench.runs.picture_files import Picture
from hrbench.runs.pictures import draw_pictures
from hrbench.runs.record import Cost, MethodRecord, RunRecord, ViewedImages, check_record, read_record
from hrbench.runs.scoring import finish_run
from hrbench.runs.shards import CHUNK, EvidenceShards
from hrbench.runs.store import Run, RunFolder, text_of

__all__ = [
    "Setting",
    "Workbench",
    "calibrations",
    "is_fitted",
    "noted",
    "rehearse",
    "settle",
    "shards_of",
    "specs_for",
]

log = logging.getLogger("hrbench")

_REHEARSED = 8  # batch size of a rehearsal where none is given


@dataclasses.dataclass(frozen=True)
class Setting:
    """How jobs are done, beside what identifies them.

    Attributes
    ----------
    protocols : tuple of Protocol
        Those that agree on how evidence is collected share it; the first is the one that pictures and the recorded
        threshold follow.
    batch_size : int or str
        Tiles per forward pass at prediction; with ``auto`` the largest that pays, see
        :mod:`hrbench.engine.batch_size`, which is found after the fit.
    save_maps : bool
        Also write each native anomaly map as float32 TIFF.
    compiled : bool
        Compile frozen backbones, see :func:`hrbench.backbones.compile_frozen`.
    batch_size_found : bool
        Whether ``auto`` was asked for, and this batch size found.
    """

    protocols: tuple[Protocol, ...]
    batch_size: BatchSize = 8
    save_maps: bool = False
    compiled: bool = False
    batch_size_found: bool = False


def specs_for(job: Job, setting: Setting) -> list[EvidenceSpec]:
    """Return how the evidence of a job is collected, for the first protocol first."""
    return specs_of(setting.protocols, load_method(job.method).image_score)


def calibrations(job: Job, folder: RunFolder, setting: Setting) -> list[Path]:
    """Return the files with what thresholds are set on, in the order of :func:`specs_for`; none without such images."""
    return [folder.calibration(spec.name) for spec in specs_for(job, setting)] if job.holds_out else []


def is_fitted(job: Job, folder: RunFolder, setting: Setting) -> bool:
    """Tell whether the fit has left all that prediction and scoring need, and the batch size is known."""
    if setting.batch_size == AUTO or not (folder.weights.is_file() and folder.fit_cost.is_file()):
        return False
    try:  # what is damaged is made again
        Spent.read(folder.calibrated)
        for path in calibrations(job, folder, setting):
            Calibration.load(path)
    except HrbenchError:
        return False
    return len(job.view.looks) == 1 or _fusion_of(folder) is not None


def _fusion_of(folder: RunFolder) -> Fusion | None:
    """Return how the looks of an unfinished job are fused; None where that is not known, or the file is damaged."""
    try:
        return Fusion.read(read_json(folder.fusion, 1 << 20))
    except (HrbenchError, KeyError, TypeError, ValueError):
        return None


@dataclasses.dataclass(frozen=True)
class _Begun:
    """What of the setting of a job's attempts its results depend on, beside what identifies it."""

    batch_size: BatchSize
    compiled: bool
    save_maps: bool
    batch_size_found: bool = False

    def note(self, folder: RunFolder) -> None:
        """Tell others, and this process when it goes on."""
        with atomic(folder.setting) as path:
            path.write_text(json.dumps(vars(self)), encoding="utf-8")


def settle(job: Job, folder: RunFolder, asked: Setting) -> Setting:
    """Return how the rest of a job is done, and note it: as it was begun where results that are there depend on it.

    For who holds the job's lease. The batch size and compiled backbones change the last bits, and maps are worth
    nothing if only some are saved. A batch size that was found once is not looked for again.
    """
    begun, predicted = noted(folder, asked), _has_predicted(job, folder)
    learnt = predicted or folder.fit_cost.is_file() or any(folder.scratch.glob("fit*.pt"))
    found = asked.batch_size == AUTO and begun.batch_size_found
    sized = begun if predicted or found else asked
    now = _Begun(
        batch_size=sized.batch_size,
        compiled=begun.compiled if learnt else asked.compiled,
        save_maps=asked.save_maps or (begun.save_maps and predicted),
        batch_size_found=sized.batch_size_found,
    )
    wanted = vars(asked) | {"batch_size_found": now.batch_size_found}
    if found:
        wanted["batch_size"] = now.batch_size
    if kept := [f"{name} = {value}" for name, value in vars(now).items() if value != wanted[name]]:
        _say(f"{job.label}: goes on with {', '.join(kept)}, as it was begun; another output folder takes what is asked")
    now.note(folder)
    return dataclasses.replace(asked, **vars(now))


def noted(folder: RunFolder, asked: Setting) -> Setting:
    """Return how a job is done that another process has begun; as it is asked for where that was not noted.

    Raises
    ------
    HrbenchError
        If the note is damaged.
    """
    if (text := text_of(folder.setting)) is None:
        return asked
    try:
        return dataclasses.replace(asked, **vars(conform(json.loads(text), _Begun)))
    except (ValueError, Mismatch):
        raise HrbenchError(
            f"{folder.setting}: damaged, expected how the job was begun; remove {folder.scratch} to begin it anew"
        ) from None


@cache
def _say(text: str) -> None:
    """Warn once, however often a job is taken up."""
    log.warning("%s", text)


def _has_predicted(job: Job, folder: RunFolder) -> bool:
    """Tell whether something is there that was predicted, or learnt from predictions."""
    files = [folder.fusion, folder.calibrated]
    if load_method(job.method).calibrate is not Method.calibrate:
        files.append(folder.fit_cost)
    return any(path.is_file() for path in files) or any(folder.scratch.glob("evidence-*"))


def shards_of(job: Job, folder: RunFolder, setting: Setting) -> EvidenceShards:
    """Return the shards of a fitted job, those that are there and those that are not."""
    learnt = hashlib.sha256(folder.weights.read_bytes())
    if (fusion := text_of(folder.fusion)) is not None:
        learnt.update(fusion.encode())
    return EvidenceShards(
        folder,
        job.category.test,
        specs_for(job, setting),
        seed=job.seed,
        fitted=learnt.hexdigest(),
        save_maps=setting.save_maps,
    )


class Workbench:
    """A job's method on a device: a context in which the stages of the job can be done.

    Threads that work ahead end with the context.

    Parameters
    ----------
    job : Job
    folder : RunFolder
        Where earlier stages have left their files, and these leave theirs.
    setting : Setting
    device : torch.device
    workers : callable, optional
        Tells how many processes compute on the device now.
    stop : callable, optional
        Tells whether the fit shall end early, see :class:`hrbench.engine.training.Fit`.
    batch_sizes : BatchSizes, optional
        Those that were found before.
    """

    method: Method

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        setting: Setting,
        device: torch.device,
        *,
        workers: Callable[[], int] = lambda: 1,
        stop: Callable[[], bool] | None = None,
        batch_sizes: BatchSizes | None = None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._setting = setting
        self._device = device
        self._device_name = device_name(device)  # asked in the thread that computes
        self._workers = workers
        self._stop = stop
        self._batch_sizes = batch_sizes or BatchSizes()
        self._compiled = False
        self._fit_samples, self._held_out = job.split()
        self._fusion: Fusion | None = None
        self._learnt = False  # the method has learnt, here or before
        self._warm = False
        self._open = ExitStack()

    def __enter__(self) -> Workbench:
        with ExitStack() as opening:  # closes what is open if the method cannot be made
            check_memory(self._job.view, self._device)
            opening.enter_context(guarded(self._job.method_name))
            opening.enter_context(seeded(self._job.seed))
            self.method = _make(self._job, self._device)
            self._job.view.check_multiple(self.method.multiple, self._job.method_name)
            self._compiled = self._setting.compiled and compile_frozen(self.method, self._device)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def fit(self) -> None:
        """Fit the method, and learn from held-out normals how to fuse and calibrate; what is there is kept."""
        folder = self._folder
        if not (folder.weights.is_file() and folder.fit_cost.is_file()):
            check_record(self.about())  # before hours are spent
            self._fit()
        if self._setting.batch_size == AUTO:
            self._load()
            self._find_batch_size()
        if not is_fitted(self._job, folder, self._setting):
            self._calibrate()

    def predict(self, shards: EvidenceShards, chunks: Iterable[int]) -> Iterator[int]:
        """Predict chunks of the test images; yield each whose shard is written."""
        chunks = iter(chunks)
        if (first := next(chunks, None)) is None:
            return  # the method need not be loaded
        self._load()
        self._warm_up()
        memory, began = MemoryPeaks(self._device), time.time()

        def spent() -> Spent:
            nonlocal began
            took, began = self._spent(began, memory), time.time()
            return took

        maps = partial(self._anomaly_maps, whole=shards.takes_maps)
        yield from shards.collect(chain([first], chunks), maps, spent, f"{self._job.label} predict")

    def score(self, shards: EvidenceShards) -> Run:
        """Merge the evidence of all test images and measure it; write records, pictures and ``run.json``."""
        began = time.time()
        self._load()
        evidence = shards.merged()
        if self._job.holds_out:
            evidence = [
                dataclasses.replace(part, calibration=Calibration.load(self._folder.calibration(part.spec.name)))
                for part in evidence
            ]
        fit = FitRecord.read(self._folder.fit_cost)
        fitted, parts = fit.spent, shards.spent()
        before = [fitted, Spent.read(self._folder.calibrated), *parts]

        def cost() -> Cost:
            scored = dataclasses.replace(self._spent(began), device=fitted.device)  # where that is does not matter
            return Cost(
                fit_seconds=fit.seconds,
                **{f"fit_{name}": value for name, value in fitted.peaks.items()},
                **shards.timing(evidence[0]),
                **largest_peaks(part.peaks for part in parts),
                **spent_together([*before, scored]),
            )

        about = dataclasses.replace(self.about(), device=" and ".join(dict.fromkeys(part.device for part in before)))
        protocols = self._setting.protocols
        return finish_run(self._folder, about, self._job.category, evidence, protocols, self._anomaly_map, cost)

    def draw(self, numbered: Sequence[tuple[int, Choice]], scale: Scale) -> tuple[Picture, ...]:
        """Draw pictures of a finished run into its folder, see :func:`hrbench.runs.pictures.draw_pictures`."""
        if (looks := read_record(self._folder.record).fusion) is not None:
            self._fusion = Fusion.read(looks)
        self._load()
        folder, category = self._folder.pictures, self._job.category
        return draw_pictures(folder, numbered, category, scale, self._anomaly_map, self._job.label)

    def _fit(self) -> None:
        job, folder = self._job, self._folder
        for path in (folder.fit_cost, folder.fusion, folder.calibrated):  # of other weights
            path.unlink(missing_ok=True)
        memory, began = MemoryPeaks(self._device), time.time()
        fit = Fit(
            self.method,
            held_out=ViewedNormals(self._held_out, job.view) if job.holds_out else None,
            seed=job.seed,
            device=self._device,
            checkpoint=folder.checkpoint,
            label=job.label,
            scratch=folder.scratch,
            precision=job.precision,
            stop=self._stop,
        )
        earlier = fit.seconds
        self.method.train()
        with self._guarded("fit"):
            self.method.fit(ViewedNormals(self._fit_samples, job.view), fit)
        self.method.eval()
        peaks, aside = [], 0.0
        if self._setting.batch_size == AUTO:  # what that takes is not the fit's
            peaks, found = [memory.record()], time.time()
            self._find_batch_size()
            memory, aside = MemoryPeaks(self._device), time.time() - found
        if job.holds_out and type(self.method).calibrate is not Method.calibrate:
            with torch.no_grad(), self._guarded("calibrate"):
                self.method.calibrate(maps for item in self._native_maps(self._held_out) for maps in item.looks)
        spent = self._spent(began, memory)
        spent = dataclasses.replace(spent, earlier=earlier, peaks=largest_peaks([*peaks, spent.peaks]))
        with atomic(folder.weights) as path:
            save_file(learnt_state(self.method), path)
            images = job.category.train_digest
            FitRecord(folder.path.name, images, file_digest(path), fit.seconds - aside, spent).write(folder.fit_cost)
        fit.forget()
        self._learnt = True

    def _find_batch_size(self) -> None:
        """Find the largest batch that pays, once for all jobs that are alike, and note it for who helps or goes on."""
        job, device, compiled = self._job, self._device, self._setting.compiled
        size = self._batch_sizes.of(job, device, compiled=compiled)
        if size is None:
            sample = (self._held_out or self._fit_samples)[0]
            size = find_batch_size(
                self.method, sample, job.view, device, images=CHUNK, precision=job.precision, seed=job.seed
            )
            self._batch_sizes.keep(job, device, size, compiled=compiled)
        self._setting = dataclasses.replace(self._setting, batch_size=size, batch_size_found=True)
        _Begun(size, compiled, self._setting.save_maps, batch_size_found=True).note(self._folder)

    @property
    def _batch_size(self) -> int:
        """The batch size; 0 until it is found."""
        return 0 if self._setting.batch_size == AUTO else self._setting.batch_size

    def _calibrate(self) -> None:
        """Predict the held-out normals: for the scales of several looks, and for what thresholds are set on."""
        self._load()
        began = time.time()
        if self._job.holds_out:
            self._predict_held_out()
        self._spent(began).write(self._folder.calibrated)

    def _predict_held_out(self) -> None:
        folder, looks = self._folder, self._job.view.looks
        if len(looks) > 1 and self._fusion is None:
            maps = self._held_out_maps("fusion")
            self._fusion = Fusion.of([look.text for look in looks], (finish_looks(self.method, item) for item in maps))
            with atomic(folder.fusion) as path:
                path.write_text(json.dumps(self._fusion.record()), encoding="utf-8")
        sides = [spec.side for spec in specs_for(self._job, self._setting)]
        maps, whole = self._held_out_maps("held-out"), any(side is not None for side in sides)
        finished = (finish(self.method, item, self._fusion, whole=whole) for item in maps)
        with closing(ahead(partial(NormalTally.of_predicted, sides=sides), finished)) as tallies:
            found = Calibration.joined(list(tallies))
        for target, calibration in zip(calibrations(self._job, folder, self._setting), found, strict=True):
            with atomic(target) as path:
                calibration.save(path)
        self._warm = True

    def _guarded(self, call: str) -> AbstractContextManager[object]:
        return guarded(call_name(self.method, call))

    def _load(self) -> None:
        """Let the method be as the fit has left it, and know how looks are fused."""
        if not self._learnt:
            load_learnt_state(self.method, load_file(self._folder.weights))
            self.method.eval()
            self._learnt = True
        if self._fusion is None:
            self._fusion = _fusion_of(self._folder)

    def _warm_up(self) -> None:
        """Predict one batch of normals where this process has predicted nothing yet: the first is slow."""
        if not self._warm:
            with closing(self._native_maps(self._held_out or self._fit_samples)) as maps:
                next(maps, None)
            self._warm = True

    def _spent(self, began: float, memory: MemoryPeaks | None = None) -> Spent:
        peaks = memory.record() if memory else {}
        return Spent(began, time.time(), self._device_name, self._workers(), peaks)

    def _native_maps(self, samples: Iterable[Sample], seeds: Mapping[int, int] | None = None) -> Any:
        """Predict samples; `seeds` as in :func:`hrbench.engine.inference.predict`, by default one of their own."""
        maps = predict(
            self.method,
            samples,
            self._job.view,
            self._device,
            batch_size=self._batch_size,
            precision=self._job.precision,
            # What a method draws must not depend on what came before.
            seeds={0: mix(self._job.seed, 1, 0)} if seeds is None else seeds,
        )
        return self._open.enter_context(closing(maps))  # its threads end with the context, whatever happens

    def _anomaly_maps(
        self, samples: Iterable[Sample], seeds: Mapping[int, int] | None = None, *, whole: bool = True
    ) -> Iterator[AnomalyMap]:
        """Predict samples, finish their maps, and fuse those of several views; with `whole` send them to the host."""
        return (finish(self.method, item, self._fusion, whole=whole) for item in self._native_maps(samples, seeds))

    def _anomaly_map(self, sample: Sample) -> Scores:
        """Return the anomaly map of one sample, (H, W) float32."""
        (only,) = self._anomaly_maps([sample])
        return only.scores()

    def _held_out_maps(self, what: str) -> Iterator[NativeMaps]:
        label = f"{self._job.label} {what}"
        return track(self._native_maps(self._held_out), label, total=len(self._held_out), unit="img")

    def about(self) -> RunRecord:
        """Return what the run says of its images, its method and how it was asked."""
        job, method = self._job, self.method
        parameters = list(method.parameters())
        return RunRecord(
            dataset=dataclasses.replace(ViewedImages.of(job.category), held_out_share=job.held_out),
            method=MethodRecord(
                name=job.method_name,
                title=method.title or job.method_name,
                paper=method.paper,
                reference=job.recorded_method,
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
            batch_size_found=self._setting.batch_size_found,
            device=self._device_name,
            precision=job.precision,
            compiled=self._compiled,
            fusion=tuple(self._fusion.record()) if self._fusion else None,
        )


def rehearse(job: Job, setting: Setting, device: torch.device) -> Expected:
    """Measure a few steps of a job, see :func:`hrbench.engine.rehearsal.rehearse`."""
    with guarded(job.method_name), seeded(job.seed):
        method = _make(job, device)
        fit_samples, held_out = job.split()
        return rehearsal.rehearse(
            method,
            fit_samples,
            held_out,
            job.view,
            seed=job.seed,
            device=device,
            precision=job.precision,
            batch_size=_REHEARSED if setting.batch_size == AUTO else setting.batch_size,
        )


def _make(job: Job, device: torch.device) -> Method:
    cls = load_method(job.method)
    with guarded(f"{job.method_name}: {cls.__name__}()"):
        return make(cls, job.options).to(device)
