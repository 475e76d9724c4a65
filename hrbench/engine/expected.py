"""What a job is expected to take: arithmetic on what a rehearsal measured (see :mod:`hrbench.engine.rehearsal`).

A fit is replayed for any number of inputs, by the rules that the real one follows: how often its images are decoded
and its features computed depends on what fits into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hrbench.data.sample import Sample
from hrbench.engine.feature_cache import DISK_BYTES, MEMORY_BYTES
from hrbench.engine.training import CACHE_BYTES, ViewedNormals
from hrbench.engine.views import View

__all__ = ["Expected", "JobInputs", "Source", "Stage", "job_seconds"]


@dataclass(frozen=True)
class Source:
    """What a stage of a fit draws: normal images as model inputs, or features of them.

    Attributes
    ----------
    images : str
        Which normal images, for all that draw from them share what is decoded.
    share : float
        Its inputs per input that is fitted on: 1, or less for those held out.
    load_seconds, load_bytes : float
        To decode the images: per input, time and the memory that a decoded one takes.
    features : int, optional
        Which features are computed of the inputs; None where the inputs themselves are drawn.
    extract_seconds, feature_bytes : float
        The same of the features.
    """

    images: str
    share: float = 1.0
    load_seconds: float = 0.0
    load_bytes: float = 0.0
    features: int | None = None
    extract_seconds: float = 0.0
    feature_bytes: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A part of a fit that does the same again and again.

    Attributes
    ----------
    name : str
    steps : int
        For as many inputs as the rehearsal was given.
    steps_per_input : float
        How many more there are for each further input: 0 where a method counts steps, not epochs.
    seconds : float
        Per step, with the images decoded and the features computed before.
    batch_size : int
        Inputs of the source per step.
    source : Source, optional
        None where a method made its inputs itself.
    """

    name: str
    steps: int
    steps_per_input: float
    seconds: float
    batch_size: int = 1
    source: Source | None = None


@dataclass(frozen=True)
class Expected:
    """What a rehearsal tells of a method on a device, and of jobs on other categories of such images.

    Attributes
    ----------
    stages : tuple of Stage or None
        Of the fit; None where the method could not be fitted on so few inputs.
    reason : str
        Why the time of the fit or of prediction is not known; empty if both are.
    inputs : int
        Model inputs of the images to fit.
    seconds_per_predicted_input : float or None
        Decoding, forward pass, merging and ``finish``; None where the method could not predict after so short a fit.
    calibrates : bool
        Whether the method has a ``calibrate``, which looks at the held-out images: a run counts it to the fit.
    looks : int
        Of the view.
    loads_beside : bool
        Whether images are decoded while the device computes: on a CPU both want the same cores.
    fit_host_mib, predict_host_mib : float
        Peak memory of this process in both phases, with few images decoded.
    peak_device_mib : float or None
        None on a CPU.
    """

    stages: tuple[Stage, ...] | None
    reason: str
    inputs: int
    seconds_per_predicted_input: float | None
    calibrates: bool
    looks: int
    loads_beside: bool
    fit_host_mib: float
    predict_host_mib: float
    peak_device_mib: float | None

    @property
    def passes(self) -> int:
        """How often a job predicts the held-out images: for thresholds, for ``calibrate``, for the fusion of looks."""
        return 1 + self.calibrates + (self.looks > 1)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of all steps of all stages for as many inputs as were rehearsed, without decoding and extraction."""
        return None if self.stages is None else sum(stage.steps * stage.seconds for stage in self.stages)

    def fit_seconds(self, inputs: int) -> float | None:
        """Return the seconds of a fit on so many inputs, ``calibrate`` not counted; None if they are not known.

        What a method does beyond its stages (a clustering at the end, say) is not in it.
        """
        if self.stages is None:
            return None
        fit = _Replay(inputs, self.loads_beside)
        return sum(fit.seconds(stage, self._steps(stage, inputs)) for stage in self.stages)

    def predict_seconds(self, inputs: int) -> float | None:
        """Return the seconds to predict so many inputs, from files to anomaly maps on the host; None if not known."""
        each = self.seconds_per_predicted_input
        return None if each is None else inputs * each

    def peak_host_mib(self, inputs: int) -> float:
        """Return the expected peak of this process's memory: what was measured, and what a fit on `inputs` keeps."""
        fit = _Replay(inputs, self.loads_beside)
        for stage in self.stages or ():
            fit.seconds(stage, self._steps(stage, inputs))
        return max(self.fit_host_mib + fit.kept_bytes() / 2**20, self.predict_host_mib)

    def _steps(self, stage: Stage, inputs: int) -> int:
        return max(1, round(stage.steps + stage.steps_per_input * (inputs - self.inputs)))


@dataclass
class _Replay:
    """A fit on so many inputs, stage after stage: what it has decoded and computed so far."""

    inputs: int
    loads_beside: bool
    decoded: dict[str, float] = field(default_factory=dict)  # bytes
    extracted: set[Source] = field(default_factory=set)  # completely, and kept

    def seconds(self, stage: Stage, steps: int) -> float:
        """Return the seconds of a stage of so many steps."""
        work = steps * stage.seconds
        source = stage.source
        if source is None:
            return work
        drawn, size = steps * stage.batch_size, max(1, round(source.share * self.inputs))
        # As in `Features.batches`: what nothing uses twice is not kept, nor what has no room.
        kept = source.features is not None and drawn > size and size * source.feature_bytes <= DISK_BYTES
        if kept:
            drawn = 0 if source in self.extracted else size
            self.extracted.add(source)
        work += drawn * source.extract_seconds
        loading = self._loads(source, drawn, size) * source.load_seconds
        # Kept features are computed group by group, their images loaded in between.
        return max(work, loading) if self.loads_beside and not kept else work + loading

    def _loads(self, source: Source, drawn: int, size: int) -> float:
        """Return how many inputs have to be decoded to draw so many: each once, where all fit into the cache."""
        if size * source.load_bytes > CACHE_BYTES:
            self.decoded[source.images] = CACHE_BYTES
            return drawn
        before = self.decoded.get(source.images, 0.0)
        after = max(before, min(drawn, size) * source.load_bytes)
        self.decoded[source.images] = after
        return (after - before) / source.load_bytes if source.load_bytes else 0.0

    def kept_bytes(self) -> float:
        """Return the memory of decoded images and kept features; those in a file are the system's to drop."""
        features = (source.share * self.inputs * source.feature_bytes for source in self.extracted)
        return sum(self.decoded.values()) + sum(size for size in features if size <= MEMORY_BYTES)


@dataclass(frozen=True)
class JobInputs:
    """The sizes of a job, in model inputs.

    Attributes
    ----------
    fit, held_out, test : int
    """

    fit: int
    held_out: int
    test: int

    @staticmethod
    def of(fit: Sequence[Sample], held_out: Sequence[Sample], test: Sequence[Sample], view: View) -> JobInputs:
        """Count the inputs of a job's images, from the headers of their files.

        Raises
        ------
        HrbenchError
            For a file that is missing or no image.
        """
        return JobInputs(*(len(ViewedNormals(samples, view)) for samples in (fit, held_out, test)))


def job_seconds(expected: Expected, inputs: JobInputs) -> float | None:
    """Return what a job takes from the first training image to the last anomaly map; None if that is not known.

    Metrics, intervals and pictures come on top.
    """
    fit = expected.fit_seconds(inputs.fit)
    predicted = expected.predict_seconds(inputs.held_out * expected.passes + inputs.test)
    return None if fit is None or predicted is None else fit + predicted
