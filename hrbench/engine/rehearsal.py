"""A method's first steps, measured: what a job will take, before it begins.

The method's own fit runs on a few images, decoded before, and every stream that it draws from ends after a few steps.
It runs again on what it believes to be twice as many inputs: what it then does more often grows with the inputs.
Prediction is the real one, from files to anomaly maps, ended after a few batches.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from hrbench._util.guard import call_name, guarded
from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import AnomalyMap, finish
from hrbench.engine.device import MemoryPeaks, device_seconds
from hrbench.engine.expected import Expected, JobInputs, Work, job_seconds
from hrbench.engine.feature_cache import GROUP
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import Fit, seeded
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.method import Batch, Batches, Method, Normals, Prediction

__all__ = ["Expected", "JobInputs", "job_seconds", "rehearse"]

log = logging.getLogger("hrbench")
T = TypeVar("T")

ENOUGH_SECONDS = 1.0  # of measured steps
ENOUGH_STEPS = 30
LONG_SECONDS = 30.0  # a first step beyond this tells enough: no library takes as long to warm up
FEW_IMAGES = 4


def rehearse(
    method: Method,
    fit_samples: Sequence[Sample],
    held_out: Sequence[Sample],
    view: View,
    *,
    seed: int,
    device: torch.device,
    precision: str = "float32",
    batch_size: int = 8,
) -> Expected:
    """Measure a few steps of a method's fit and a few batches of its prediction.

    It takes seconds, or where a step takes longer, four of each stage. The arguments are those of the job, with a fresh
    method that is to be thrown away. Random numbers and settings of torch are afterwards as before.

    Raises
    ------
    HrbenchError
        For what would fail in the job as well: a bad image file, an option out of range, a device too small. Whatever
        else a method raises may come of so short a fit, and is the reason why a time is not known.
    """
    with seeded(seed):
        try:
            return _Rehearsal(method, fit_samples, held_out, view, seed, device, precision, batch_size).expected()
        except torch.cuda.OutOfMemoryError:
            raise HrbenchError(
                f"the memory of {device} is too small to fit {type(method).__name__} with inputs of {view.tile[0]}x"
                f"{view.tile[1]} pixels; expected smaller batches, a view with smaller inputs, or another device"
            ) from None


@dataclass
class _Rehearsal:
    """One rehearsal, by the arguments of :func:`rehearse`."""

    method: Method
    fit_samples: Sequence[Sample]
    held_out: Sequence[Sample]
    view: View
    seed: int
    device: torch.device
    precision: str
    batch_size: int
    reason: str = ""

    def expected(self) -> Expected:
        """Fit, predict, and fit again."""
        memory = MemoryPeaks(self.device)
        works = self._tried(self._first_fit)
        each = self._tried(self._predict)
        peaks = memory.record()
        if works is not None:
            works = self._growing(works)
        passes = 1 + self._calibrates + (len(self.view.looks) > 1)
        host, on_device = peaks["peak_host_mib"], peaks["peak_device_mib"]
        return Expected(works, each, self.reason, self._calibrates, passes, host, on_device)

    def _tried(self, act: Callable[[], T]) -> T | None:
        """Return the result, or None where the method raised what may come of so few inputs."""
        try:
            return act()
        except (HrbenchError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            log.debug("rehearsal of %s", type(self.method).__name__, exc_info=True)
            self.reason = self.reason or f"{type(error).__name__}: {error}".splitlines()[0]
            return None

    def _guarded(self, call: str) -> AbstractContextManager[object]:
        return guarded(call_name(self.method, call))

    @property
    def _calibrates(self) -> bool:
        return type(self.method).calibrate is not Method.calibrate

    def _first_fit(self) -> list[Work]:
        works = self._fit(1)
        if self._calibrates and self.held_out:
            maps = self._native_maps(self.held_out[:1], Work(math.inf))
            with torch.no_grad(), closing(maps), suppress(_EnoughError), self._guarded("calibrate"):
                self.method.calibrate(looks for item in maps for looks in item.looks)
        return works

    def _fit(self, factor: int) -> list[Work]:
        """Fit on so many times the inputs, as far as the method can tell, and return what it did."""
        meter = _Meter(self.device)
        held_out = _Few(self.held_out, self.view, factor, meter) if self.held_out else None
        options = {"held_out": held_out, "seed": self.seed, "device": self.device, "precision": self.precision}
        context = _Context(self.method, meter, label=type(self.method).__name__, **options)
        self.method.train()
        with self._guarded("fit"):
            self.method.fit(_Few(self.fit_samples, self.view, factor, meter), context)
        self.method.eval()
        return meter.works

    def _growing(self, works: list[Work]) -> list[Work]:
        """Fit on twice the inputs, and return what was done with how it grows."""
        inputs = len(ViewedNormals(self.fit_samples, self.view))
        try:
            again = self._fit(2)
        except Exception:  # the first fit went well, so that there is nothing wrong
            log.debug("second fit of %s", type(self.method).__name__, exc_info=True)
            again = []
        if len(again) != len(works):
            return works
        return [work.growing(other, inputs) for work, other in zip(works, again, strict=True)]

    def _predict(self) -> float:
        """Return the seconds per predicted input."""
        batch = Work(math.inf)
        with (
            closing(self._native_maps(itertools.cycle(self.held_out or self.fit_samples), batch)) as items,
            closing(ahead(AnomalyMap.scores, (finish(self.method, item) for item in items))) as scores,
            suppress(_EnoughError),
        ):
            for _ in scores:
                pass
        return batch.seconds / self.batch_size

    def _native_maps(self, samples: Iterable[Sample], work: Work) -> Generator[NativeMaps, None, None]:
        """Predict, as a job does, until enough batches are measured."""
        ask = self.method.predict_inputs
        meter = _Meter(torch.device("cpu"))  # a job does not wait for the device between batches either
        begun = meter.measure(itertools.repeat(True), work)

        def measured(batch: Tensor, inputs_per_image: Sequence[int]) -> Prediction:
            if not next(begun, False):
                raise _EnoughError
            return ask(batch, inputs_per_image)

        # Not a method around the method: errors name its class.
        self.method.predict_inputs = measured  # type: ignore[method-assign]
        predicted = partial(predict, batch_size=self.batch_size, precision=self.precision)
        try:
            with closing(predicted(self.method, samples, self.view, self.device, seeds={0: self.seed})) as maps:
                yield from maps
        finally:
            del self.method.predict_inputs


class _EnoughError(Exception):
    """Prediction was watched for long enough."""


class _Meter:
    """Measures the steps of every stream that is drawn from, and ends the stream when it knows enough of them."""

    def __init__(self, device: torch.device) -> None:
        self.works: list[Work] = []
        self._device = device
        self._making = False  # the next item of a stream that is measured

    def measure(self, items: Iterable[T], work: Work) -> Iterator[T]:
        """Yield the first of the items; the time until the next one is asked for is that of a step."""
        if self._making:  # a stream that feeds another one is part of that one's steps
            yield from items
            return
        self.works.append(work)
        times: list[float] = []
        began = self._now()
        self._making = True
        try:
            for item in items:
                self._making = False
                yield item
                times.append(self._now() - began)
                began += times[-1]
                long = sum(times[1:]) > ENOUGH_SECONDS or times[0] > LONG_SECONDS
                if long or len(times) >= min(work.fixed, 1 + ENOUGH_STEPS):
                    break
                self._making = True
            else:
                work.fixed = len(times)
        except GeneratorExit:  # the method needs no more
            times.append(self._now() - began)
            work.fixed = len(times)
            raise
        finally:
            self._making = False
            work.seconds = fmean(times[1:] or times or [0.0])  # the first one warms up

    def _now(self) -> float:
        return device_seconds(self._device)


class _Context(Fit):
    """A fit of which each stage ends after a few steps, without a progress bar."""

    def __init__(self, method: Method, meter: _Meter, **options: Any) -> None:
        super().__init__(method, **options)
        self._meter = meter

    def features(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> Batches[list[Tensor]]:
        """Return features of a few inputs, computed before they are asked for."""
        return _FewFeatures(normals, super().features(normals, extract), self.device, self._meter)

    def _shown(self, items: Iterable[Batch], name: str, *, total: int, unit: str, initial: int = 0) -> Iterator[Batch]:
        return self._meter.measure(items, Work(total))


class _Few:
    """The first few of some images as model inputs, decoded before, which say that they are all, so many times."""

    def __init__(self, samples: Sequence[Sample], view: View, factor: int, meter: _Meter) -> None:
        self._samples = samples
        self._view = view
        self._inputs = factor * len(ViewedNormals(samples, view))
        self._meter = meter
        self._decoding = Work(0, once=True)
        meter.works.append(self._decoding)

    def __len__(self) -> int:
        return self._inputs

    def __iter__(self) -> Iterator[Tensor]:
        inputs = itertools.chain.from_iterable(itertools.repeat(self._few))
        return self._measured(itertools.islice(inputs, len(self)), len(self), 1)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
        batches = self._few.batches(batch_size, steps=steps, seed=seed, start=start)
        return self._measured(batches, steps - start, batch_size)

    def order(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        order = self._few.order(batch_size, steps=steps, seed=seed, start=start)
        return self._measured(order, steps - start, batch_size)

    def take(self, chosen: Sequence[int]) -> Tensor:
        return self._few.take([number % len(self._few) for number in chosen])

    def _measured(self, items: Iterable[T], steps: int, batch_size: int) -> Iterator[T]:
        self._decoding.fixed += steps * batch_size
        return self._meter.measure(items, Work(steps))

    @cached_property
    def _few(self) -> ViewedNormals:
        for images in (1, FEW_IMAGES):  # the first one warms up
            few = ViewedNormals(self._samples[:images], self._view)
            began = perf_counter()
            few.take(range(0, len(few), len(few) // len(few.samples)))
            seconds = perf_counter() - began
            if seconds > ENOUGH_SECONDS:
                break
        self._decoding.seconds, self._decoding.nbytes = seconds / len(few), few.cached_bytes / len(few)
        return few


class _FewFeatures:
    """Features of a group of inputs, again and again."""

    def __init__(self, normals: Normals, features: Batches[list[Tensor]], device: torch.device, meter: _Meter) -> None:
        self._normals = normals
        self._device = device
        self._meter = meter
        group = min(GROUP, len(normals))
        steps = len(normals) // group  # no more than once each: none are kept
        batch = Work(steps)
        for computed in meter.measure(features.batches(group, steps=steps, seed=0), batch):
            self._few = [feature.cpu() for feature in computed]
        nbytes = sum(feature.nbytes for feature in self._few) / group
        self._computing = Work(0, seconds=batch.seconds / group, once=True, nbytes=nbytes)
        meter.works[-1] = self._computing

    def __len__(self) -> int:
        return len(self._normals)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[Tensor]]:
        self._computing.fixed += (steps - start) * batch_size
        order = self._normals.order(batch_size, steps=steps, seed=seed, start=start)
        rows = (torch.tensor(chosen) % len(self._few[0]) for chosen in order)
        batches = ([feature[chosen].to(self._device) for feature in self._few] for chosen in rows)
        return self._meter.measure(batches, Work(steps - start))
