"""What a job is expected to take: arithmetic on what a rehearsal measured (see :mod:`hrbench.engine.rehearsal`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hrbench.data.sample import Sample
from hrbench.engine.normals import CACHE_BYTES, ViewedNormals
from hrbench.engine.views import View

__all__ = ["Expected", "JobInputs", "Work", "job_seconds"]


@dataclass
class Work:
    """What a fit does many times: a step, or decoding an input, or computing its features.

    Attributes
    ----------
    fixed, per_input : float
        How often: ``fixed + per_input * inputs`` times. A method that counts epochs does more steps on more inputs.
    seconds : float
        Each time.
    once : bool
        No more often than once for each input, for it is kept: what is decoded or computed.
    nbytes : float
        Of memory that are kept each time.
    """

    fixed: float
    per_input: float = 0.0
    seconds: float = 0.0
    once: bool = False
    nbytes: float = 0.0

    def times(self, inputs: int) -> float:
        """Return how often a fit on so many inputs does it."""
        times = max(0.0, self.fixed + self.per_input * inputs)
        return min(times, inputs) if self.once else times

    def growing(self, other: Work, inputs: int) -> Work:
        """Return what this is on any number of inputs, if it is this on `inputs` and `other` on twice as many."""
        slope = (other.fixed - self.fixed) / inputs
        seconds = (self.seconds + other.seconds) / 2
        return replace(self, fixed=self.fixed - slope * inputs, per_input=slope, seconds=seconds)


@dataclass(frozen=True)
class Expected:
    """What a rehearsal tells of a method on a device, and of jobs on other categories of such images.

    Attributes
    ----------
    works : list of Work or None
        Of the fit; None where the method could not be fitted on so few inputs.
    seconds_per_predicted_input : float or None
        Decoding, forward pass, merging and ``finish``; None where the method could not predict after so short a fit.
    reason : str
        Why the time of the fit or of prediction is not known; empty if both are.
    calibrates : bool
        Whether the method has a ``calibrate``, which looks at the held-out images: a run counts it to the fit.
    passes : int
        How often a job predicts the held-out images: for thresholds, for ``calibrate``, for the fusion of looks.
    host_mib, peak_device_mib : float
        Peak memory of this process, with few images decoded, and of the device: None on a CPU.
    """

    works: list[Work] | None
    seconds_per_predicted_input: float | None
    reason: str
    calibrates: bool
    passes: int
    host_mib: float
    peak_device_mib: float | None

    def fit_seconds(self, inputs: int) -> float | None:
        """Return the seconds of a fit on so many inputs, ``calibrate`` not counted; None if they are not known.

        Not in it: what a method does beside drawing inputs, as a clustering, and decoding anew what the cache dropped.
        """
        return None if self.works is None else sum(work.times(inputs) * work.seconds for work in self.works)

    def predict_seconds(self, inputs: int) -> float | None:
        """Return the seconds to predict so many inputs, from files to anomaly maps on the host; None if not known."""
        each = self.seconds_per_predicted_input
        return None if each is None else inputs * each

    def peak_host_mib(self, inputs: int) -> float:
        """Return the expected peak of this process's memory: what was measured, and what a fit on `inputs` keeps."""
        kept = sum(min(work.times(inputs) * work.nbytes, CACHE_BYTES) for work in self.works or () if work.nbytes)
        return self.host_mib + kept / 2**20


@dataclass(frozen=True)
class JobInputs:
    """The sizes of a job, in model inputs."""

    fit: int
    held_out: int
    test: int

    @staticmethod
    def of(fit: Sequence[Sample], held_out: Sequence[Sample], test: Sequence[Sample], view: View) -> JobInputs:
        """Count the inputs of a job's images, from the headers of their files; a bad one is a HrbenchError."""
        return JobInputs(*(len(ViewedNormals(samples, view)) for samples in (fit, held_out, test)))


def job_seconds(expected: Expected, inputs: JobInputs) -> float | None:
    """Return what a job takes from the first training image to the last anomaly map; None if that is not known.

    Metrics, intervals and pictures come on top.
    """
    fit = expected.fit_seconds(inputs.fit)
    predicted = expected.predict_seconds(inputs.held_out * expected.passes + inputs.test)
    return None if fit is None or predicted is None else fit + predicted
