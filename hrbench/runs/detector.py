"""A fitted method in use: what it finds in images of which nothing is known, at the threshold that was promised.

A detector is what a run's folder, or that of :meth:`Detector.save`, holds: the record that says how the method is made,
its weights, and the scores of held-out normal images. On equal devices an image's map has the bits that the run itself
gave it, if the images are the same in the same order: they are predicted in the same chunks.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from hrbench._util.files import atomic
from hrbench._util.guard import guarded
from hrbench.backbones import compile_frozen
from hrbench.contract import make
from hrbench.data.loose import Images, find_loose, loose_samples
from hrbench.data.sample import Category, Sample
from hrbench.engine.anomaly_map import AnomalyMap, finish
from hrbench.engine.batch_size import AUTO, BatchSize, check_batch_size, find_batch_size
from hrbench.engine.device import check_memory, pick_device
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import predict
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import learnt_state, load_learnt_state, mix, secluded, seeded
from hrbench.engine.views import View
from hrbench.errors import HrbenchError, unknown_name
from hrbench.evidence import Calibration
from hrbench.evidence.histograms import image_score, key_scores
from hrbench.imaging import find_components, refuse_no_file
from hrbench.method import Method
from hrbench.metrics import calibrated_threshold
from hrbench.precision import pick_precision
from hrbench.protocol import ImageScoreRule, Protocol, load_protocol
from hrbench.registry import all_options, check_options, load_method, source_digest
from hrbench.runs.environment import environment
from hrbench.runs.job import identities, make_job
from hrbench.runs.record import (
    EvidenceRecord,
    ProtocolRecord,
    RunRecord,
    ThresholdRecord,
    read_record,
    write_record,
)
from hrbench.runs.shards import CHUNK
from hrbench.runs.stages import Setting, Workbench, specs_for
from hrbench.runs.store import RunFolder, checked_file, load_run

if TYPE_CHECKING:
    from hrbench.runs.export import Exported

__all__ = ["Component", "Detector", "Verdict", "fit"]

_REACH = 0.9995  # share of normal pixels that a colour scale spans where there is no threshold

_DIGEST = re.compile(r"( at)? sha256:[0-9a-f]{64}$")

log = logging.getLogger("hrbench")

Failed = Callable[[Sample, HrbenchError], None]


@dataclasses.dataclass(frozen=True)
class Component:
    """A connected part of an image whose scores reach the threshold.

    Attributes
    ----------
    left, top, right, bottom : int
        Its box in pixels; right and bottom are exclusive.
    area : int
        In pixels.
    score : float
        The highest.
    """

    left: int
    top: int
    right: int
    bottom: int
    area: int
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """What a method says of an image.

    Attributes
    ----------
    image : str
        Path of the image in its folder, path as it was given, or number of an array.
    anomaly_map : ndarray of float32, (H, W)
        At the image's own size; higher is more anomalous.
    score : float
        Image score, by the rule that the run was measured under.
    threshold : float or None
        The operating threshold, set on held-out normal images; None where there is none.
    called : bool or None
        Whether any pixel reaches the threshold; None without one.
    components : tuple of Component
        What reaches it, in order of their first pixels row by row.
    """

    image: str
    anomaly_map: npt.NDArray[np.float32] = dataclasses.field(repr=False)
    score: float
    threshold: float | None
    called: bool | None
    components: tuple[Component, ...]


class Detector:
    """A fitted method, ready for new images: made by :func:`hrbench.fit`, or of a run by :meth:`load`.

    Parameters
    ----------
    about : RunRecord
        How the method was made and fitted, and the threshold that was set.
    method : Method
        As the fit has left it, on `device`.
    calibration : Calibration or None
        The scores of the held-out normal images.
    device : torch.device
    view : View, optional
        By default the one that it was fitted through.
    batch_size : int or "auto", optional
        Tiles per forward pass; by default that of the run, for it changes the last bits. With ``auto`` the largest that
        pays, found by timing on the first image.

    Attributes
    ----------
    threshold : float or None
        At or above which a pixel is called a defect; None where no promise can be made.
    without : str
        Why there is no threshold, in words; empty where there is one.
    calibration : Calibration or None
    scale : tuple of float or None
        Median score of held-out normal pixels, and the threshold or, without one, the score that nearly all of those
        pixels lie below; None where the run keeps no scores of such pixels.
    """

    def __init__(
        self,
        about: RunRecord,
        method: Method,
        calibration: Calibration | None,
        device: torch.device,
        *,
        view: View | None = None,
        batch_size: BatchSize | None = None,
    ) -> None:
        self.about = about
        self.method = method
        self.device = device
        self.view = View.parse(about.view) if view is None else view
        self.batch_size = check_batch_size(about.batch_size if batch_size is None else batch_size)
        self.view.check_multiple(method.multiple, about.method.name)
        check_memory(self.view, device)
        self.calibration = calibration
        self._spec = _first_evidence(about).collection
        self._fusion = self._fused()
        self.without = self._without_threshold()
        self.threshold = None if self.without else about.threshold.value
        self.scale = None if calibration is None else self._scale(calibration)

    def __repr__(self) -> str:
        return f"Detector({self.about.method.name}, {self.view.text}, threshold={self.threshold})"

    @property
    def promise(self) -> str:
        """What the threshold promises, in words; why there is none where there is none."""
        return self.without or _promise(self.about)

    @staticmethod
    def load(
        path: Path | str,
        *,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        view: str | None = None,
        device: str = "auto",
        batch_size: BatchSize | None = None,
    ) -> Detector:
        """Read what a run has fitted, or what :meth:`save` wrote.

        Parameters
        ----------
        path : Path or str
            Its folder, or one with a single run below.
        method : str, optional
            Where the adapter lies, if the method is one: runs keep its name only.
        options : mapping, optional
            Where files lie that options of the method name: runs keep their names and digests only.
        view : str, optional
            Another view than that of the fit; without a threshold, for it was set through that one.
        device : str
        batch_size : int or "auto", optional
            By default that of the run.

        Raises
        ------
        HrbenchError
            If it has no weights, is damaged, or the method cannot be made as it was.
        """
        folder = RunFolder(Path(path))
        if folder.detector.is_file():
            about = read_record(folder.detector)
        else:
            run = load_run(path)
            folder, about = run.files, run.about
        if not folder.weights.is_file():
            raise HrbenchError(
                f"{folder.weights}: no such file, expected what the method has learnt; runs of finished maps "
                "(`hrbench evaluate`) have none, nor have copies by `hrbench rescore --output`"
            )
        on = pick_device(device)
        fitted = _restored(about, folder, method, dict(options or {}), on)
        scores = folder.evidence(_first_evidence(about).name) / "calibration.parquet"
        calibration = Calibration.load(checked_file(folder, about, scores)) if scores.is_file() else None
        asked = None if view is None else View.parse(view)
        return Detector(about, fitted, calibration, on, view=asked, batch_size=batch_size)

    def save(self, folder: Path | str) -> Path:
        """Write the detector, with the view that it was fitted through, into a new folder; :meth:`load` reads it.

        Raises
        ------
        HrbenchError
            If there is something at that path.
        """
        target = Path(folder)
        if target.exists():
            raise HrbenchError(f"{target}: exists already, expected the path of a new folder")
        evidence = _first_evidence(self.about)
        with atomic(target) as path:
            path.mkdir()
            written = RunFolder(path)
            save_file(learnt_state(self.method), written.weights)
            files = [written.weights]
            if self.calibration is not None:
                files.append(written.evidence(evidence.name) / "calibration.parquet")
                files[-1].parent.mkdir(parents=True)
                self.calibration.save(files[-1])
            about = dataclasses.replace(self.about, evidence=(evidence,), files=written.recorded(files))
            write_record(about, written.detector)
        return target

    def export(self, output: Path | str, images: Images) -> Exported:
        """Write the detector as files that run without hrbench, and compare them with it on images.

        Beside the graph, an ``.onnx`` or a ``.pt2`` of :mod:`torch.export`, are written: one of ``finish`` where the
        method has its own, a ``.json`` with all that surrounds them (view, threshold and what it promises, image score,
        SHA-256), and ``run_exported.py``, which needs only numpy, pillow, and onnxruntime or torch. Graphs are in
        float32 and take one input at a time. Never load a ``.pt2`` that you did not make: torch may run what is in it.

        Parameters
        ----------
        output : Path or str
            New file, ``.onnx`` (which needs ``hrbench[export]``) or ``.pt2``.
        images : folder, path, array, or an iterable of these
            The original and what was written must agree on all of them; they are held in memory with their maps.

        Raises
        ------
        HrbenchError
            For a method or view that cannot be exported, with why; for a verdict that differs: nothing is written then.
        """
        from hrbench.runs.export import export

        return export(self, Path(output), images)

    def predict(self, images: Images, *, failed: Failed | None = None) -> Iterator[Verdict]:
        """Yield a verdict for each image, in order; a few images at a time are in memory.

        Parameters
        ----------
        images : folder, path, array, or an iterable of these
            Arrays are (H, W) or (H, W, 3), of uint8 or uint16. A generator is drawn from as images are needed.
        failed : callable, optional
            Is told of an image that cannot be read, or whose map is not finite, and why; the others go on. By default
            it is an error, after the verdicts of the images before it.

        Raises
        ------
        HrbenchError
            For what is no image, or a folder without any.
        """
        return self.verdicts(loose_samples(images), failed=failed)

    def verdicts(self, samples: Iterable[Sample], *, first: int = 0, failed: Failed | None = None) -> Iterator[Verdict]:
        """Do what :meth:`predict` does for samples, the first of which begins chunk `first`."""

        def judged(item: AnomalyMap) -> Verdict | tuple[Sample, HrbenchError]:
            try:
                return self._verdict(item.sample.id, item.scores())
            except HrbenchError as error:
                return item.sample, error

        with closing(ahead(judged, self._maps(samples, first, failed))) as verdicts:
            for verdict in secluded(verdicts, self.about.seed):
                if isinstance(verdict, Verdict):
                    yield verdict
                elif failed is None:
                    raise verdict[1]
                else:
                    failed(*verdict)
                del verdict  # a map is large

    def find_batch_size(self, samples: Iterable[Sample]) -> Iterable[Sample]:
        """Find the batch size, where it is ``auto``, on the first image that can be read; return the samples."""
        if self.batch_size != AUTO:
            return samples
        drawn, seen = iter(samples), []
        for sample in drawn:
            seen.append(sample)
            with suppress(HrbenchError):
                self.batch_size = find_batch_size(
                    self.method,
                    sample,
                    self.view,
                    self.device,
                    images=CHUNK,
                    precision=self.about.precision,
                    seed=self.about.seed,
                )
                break
        return chain(seen, drawn)

    def _maps(self, samples: Iterable[Sample], first: int, failed: Failed | None) -> Generator[AnomalyMap, None, None]:
        """Predict samples chunk by chunk, with the seeds that a run gives its chunks."""
        seeds: dict[int, int] = {}
        samples = self.find_batch_size(samples)

        def drawn() -> Iterator[Sample]:
            for position, sample in enumerate(samples):
                if position % CHUNK == 0:
                    seeds[position] = mix(self.about.seed, 1, first + position // CHUNK + 1)
                yield sample

        maps = predict(
            self.method,
            drawn(),
            self.view,
            self.device,
            batch_size=1 if self.batch_size == AUTO else self.batch_size,  # where no image can be read
            precision=self.about.precision,
            seeds=seeds,
            failed=failed,
        )
        with closing(maps):
            for item in maps:
                yield finish(self.method, item, self._fusion)

    def _verdict(self, image: str, scores: npt.NDArray[np.float32]) -> Verdict:
        score = image_score(scores, ImageScoreRule(self._spec.rule))
        if self.threshold is None:
            return Verdict(image, scores, score, None, None, ())
        found = find_components(scores >= np.float32(self.threshold), self._spec.connectivity)
        starts = np.cumsum(found.areas) - found.areas
        highest = np.maximum.reduceat(scores.ravel()[found.pixels], starts).tolist() if found.areas.size else []
        components = tuple(
            Component(left, top, right, bottom, area, high)
            for (top, left, bottom, right), area, high in zip(
                found.boxes.tolist(), found.areas.tolist(), highest, strict=True
            )
        )
        return Verdict(image, scores, score, self.threshold, bool(components), components)

    def _fused(self) -> Fusion | None:
        if len(self.view.looks) == 1:
            return None
        if self.about.fusion is None or self.view.text != self.about.view:
            raise HrbenchError(
                f"view {self.view.text!r}: how these views are fused was not measured by the fit, which was through "
                f"{self.about.view!r}; expected that one, or a view that is not fused"
            )
        return Fusion.read(self.about.fusion)

    def _without_threshold(self) -> str:
        """Return why there is no threshold for these maps, if there is none."""
        held_out = self.about.threshold.normal_images
        if self.about.threshold.value is None:
            return f"no threshold: {held_out} normal image{'s' * (held_out != 1)} held out, too few for a promise"
        if self.view.text != self.about.view:
            return f"no threshold: it was set through {self.about.view}, not through {self.view.text}"
        if self._spec.side is not None:
            return f"no threshold: it was set on maps shrunk to {self._spec.side} x {self._spec.side}"
        return ""

    def _scale(self, calibration: Calibration) -> tuple[float, float]:
        normal = calibration.scores
        ranks = [normal.ranked(int(share * (normal.total - 1))) for share in (0.5, _REACH)]
        low, high = key_scores(np.array(ranks, dtype=np.uint32), normal.shift).tolist()
        return low, high if self.threshold is None else self.threshold


def fit(
    method: str,
    images: Path | str | Iterable[Path | str],
    *,
    preset: str = "native",
    view: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    protocol: str | Path | Protocol = "native",
    device: str = "auto",
    precision: str = "auto",
    batch_size: BatchSize = 8,
) -> Detector:
    """Fit a method on normal images, and set its threshold on some that are held out: a third, or a tenth of many.

    Nothing is measured, because there is nothing to measure it on; :func:`hrbench.run` does that.

    Parameters
    ----------
    method : str
        Name, path of an adapter, or ``package.module:Class``.
    images : folder, path, or an iterable of these
        Of normal images; at least 57 for a promise of 5 false alarms per 100 good images.
    preset, view, options, seed, precision, batch_size
        As of :func:`hrbench.run`.
    protocol : str, Path or Protocol
        Whose rule sets the threshold.
    device : str

    Raises
    ------
    HrbenchError
        For a wrong name, option or file, and for fewer than two images.

    Examples
    --------
    >>> import hrbench
    >>> detector = hrbench.fit("gaussian", "normal_images", preset="demo")  # doctest: +SKIP
    >>> for verdict in detector.predict("new_images"):  # doctest: +SKIP
    ...     print(verdict.image, verdict.score, verdict.called, verdict.components)
    >>> detector.save("my_detector")  # doctest: +SKIP
    """
    paths = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
    name = paths[0].resolve().name if len(paths) == 1 else "images"
    found = sorted(find_loose(paths), key=lambda sample: sample.id)
    for sample in found:
        refuse_no_file(sample.image)
    train = (dataclasses.replace(sample, defect_type="good", split="train", category=name) for sample in found)
    category = Category(name, name, tuple(train), ())
    rules, on = load_protocol(protocol), pick_device(device)
    job = make_job(
        category,
        method,
        preset=preset,
        view=view,
        options=options,
        seed=seed,
        precision=pick_precision(precision, on),
    )
    setting = Setting((rules,), check_batch_size(batch_size))
    (spec,) = specs_for(job, setting)
    with TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        with Workbench(job, folder, setting, on) as bench:
            bench.fit()
            about = bench.about()
        calibration = Calibration.load(folder.calibration(spec.name))
    threshold = calibrated_threshold(calibration, rules.threshold)
    about = dataclasses.replace(
        about,
        run=job.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dataclasses.replace(about.dataset, held_out=calibration.images),
        protocols={rules.name: ProtocolRecord.of(rules)},
        evidence=(EvidenceRecord(name=spec.name, collection=spec),),
        threshold=ThresholdRecord(rule=rules.threshold.rule, value=threshold, normal_images=calibration.images),
        environment=environment(),
    )
    return Detector(about, bench.method, calibration, on)


def _restored(
    about: RunRecord, folder: RunFolder, reference: str | None, given: dict[str, Any], device: torch.device
) -> Method:
    """Make the method as it was fitted, from its record and weights; a difference that can be told is an error."""
    said = about.method
    if reference is None and said.reference.endswith(".py"):
        raise HrbenchError(
            f"{folder.path}: the method is the adapter {said.reference}, expected where it lies: --method, in Python "
            "method=..."
        )
    name = reference or said.reference
    cls = load_method(name)
    if source_digest(cls) != said.source_sha256:
        log.warning("%s: the source of %s has changed since the fit, and so may its maps", folder.path, said.name)
    for key in given:
        if key not in said.options:
            raise unknown_name(f"option of {said.name}", key, said.options)
    options = {key: given.get(key, _plain_option(value)) for key, value in said.options.items()}
    recorded = identities(cls, options)
    for key, value in said.options.items():
        if recorded[key] == value:
            continue
        if key not in given and _names_file(value):
            raise HrbenchError(
                f"{folder.path}: option {key} of {said.name} was {value!r}, expected where that lies: "
                f"--set {key}=PATH, in Python options={{{key!r}: ...}}"
            )
        raise HrbenchError(
            f"{folder.path}: option {key} of {said.name} is {recorded[key]!r}, expected {value!r} as it was fitted"
        )
    complete = all_options(cls, check_options(cls, name, options))
    with guarded(f"{said.name}: {cls.__name__}()"), seeded(about.seed):
        method = make(cls, complete).to(device)
        if about.compiled:
            compile_frozen(method, device)
    if (weights := method.weights_record()) != said.weights:
        raise HrbenchError(
            f"{folder.path}: weights are {_listed(weights)} here; expected {_listed(said.weights)}, as it was fitted"
        )
    load_learnt_state(method, load_file(checked_file(folder, about, folder.weights)))
    method.eval()
    return method


def _plain_option(value: Any) -> Any:
    """Return an option as it was given, from how it is recorded; of a file only its name is left."""
    if isinstance(value, list | tuple):
        return tuple(_plain_option(item) for item in value)
    return _DIGEST.sub("", value) if isinstance(value, str) else value


def _names_file(value: Any) -> bool:
    """Tell whether an option, as it is recorded, was the path of a file or folder, or holds one."""
    if isinstance(value, list | tuple):
        return any(map(_names_file, value))
    return isinstance(value, str) and _DIGEST.sub("", value) not in (value, "bundled")


def _listed(weights: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {origin}" for name, origin in weights.items()) or "none"


def _promise(about: RunRecord) -> str:
    """Return in words what the threshold promises."""
    name, said = next(iter(about.protocols.items()))
    count = about.threshold.normal_images
    held_out = f"{count} held-out normal image{'s' * (count != 1)}"
    for shipped in (name, f"{name}@{said.version}"):
        with suppress(HrbenchError):  # a file elsewhere
            if (protocol := load_protocol(shipped)).digest == said.sha256:
                break
    else:
        return f"as protocol {name} version {said.version} sets it on {held_out}"
    rule = protocol.threshold
    if rule.rule == "conformal":
        return f"an unseen good image, like the {held_out}, alarms with a probability of at most {rule.alarms:g}"
    if rule.rule == "normal-quantile":
        return f"at most {rule.fpr:g} of the pixels of the {held_out} reach it"
    return f"mean plus {rule.k:g} standard deviations of the pixels of the {held_out}"


def _first_evidence(about: RunRecord) -> EvidenceRecord:
    """Return how the scores were collected that the threshold was set on."""
    if about.evidence:
        return about.evidence[0]
    raise HrbenchError(f"run {about.run!r}: its record names no evidence, expected how its threshold was set")
