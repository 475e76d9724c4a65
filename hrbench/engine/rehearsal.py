"""A method's first steps, measured: what a job will take, before it begins.

A fit is the method's own, with a context that ends each stage after a few steps. Images come from a small pool that is
decoded before, so that a step's time is that of steps later in a real fit, when what is decoded and computed once is
there; both are measured apart. Prediction is the real one, from files to anomaly maps.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import AnomalyMap, finish
from hrbench.engine.device import MemoryPeaks
from hrbench.engine.expected import Expected, JobInputs, Source, Stage, job_seconds
from hrbench.engine.feature_cache import GROUP, Features
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import CACHE_BYTES, Fit, ViewedNormals, mix, seeded
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.method import Batch, Batches, Method, Normals, Prediction
from hrbench.precision import autocast

__all__ = ["Expected", "JobInputs", "job_seconds", "rehearse"]

log = logging.getLogger("hrbench")
T = TypeVar("T")

ENOUGH_SECONDS = 1.0  # of measured steps, per stage
ENOUGH_STEPS = 30  # measured, of a stage of training
ENOUGH_GROUPS = 4  # of inputs, for the time that their features take
ENOUGH_BATCHES = 8  # measured, of prediction
LONG_SECONDS = 60.0  # a first step beyond this tells enough: no library takes as long to warm up
UNFINISHED_SECONDS = 10.0  # after which an image is given up: huge ones have thousands of tiles
POOL_IMAGES = 4


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

    It takes a few seconds, or where a step takes longer, two steps of each stage and two batches of prediction. Random
    numbers and settings of torch are afterwards as before; the method is spoilt.

    Parameters
    ----------
    method : Method
        Fresh, on `device`; to be thrown away.
    fit_samples, held_out : sequence of Sample
        As of the job.
    view : View
    seed : int
    device : torch.device
    precision : str
        ``float32`` or ``bfloat16``.
    batch_size : int
        Tiles per forward pass at prediction.

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
            name = type(method).__name__
            raise HrbenchError(
                f"the memory of {device} is too small to fit {name} with inputs of "
                f"{view.tile[0]}x{view.tile[1]} pixels; expected smaller batches, a view with smaller inputs, or "
                "another device"
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
        """Fit, predict, and fit again for the number of steps."""
        inputs, held_out = (len(ViewedNormals(samples, self.view)) for samples in (self.fit_samples, self.held_out))
        clock = _Clock(self.device)
        pools = (
            _Pool("fit", self.fit_samples, self.view, clock, share=1.0),
            _Pool("held-out", self.held_out, self.view, clock, share=held_out / inputs),
        )
        memory = MemoryPeaks(self.device)
        first = self._fit(pools, inputs, _Meter(clock))
        fit_memory = memory.record()
        memory = MemoryPeaks(self.device)
        each = self._tried(lambda: self._predict(clock))
        predict_memory = memory.record()
        stages = None
        if first is not None:
            stages = tuple(self._stages(pools, inputs, first))
        on_device = [record["peak_device_mib"] for record in (fit_memory, predict_memory)]
        return Expected(
            stages=stages,
            reason=self.reason,
            inputs=inputs,
            seconds_per_predicted_input=each,
            calibrates=self._calibrates,
            looks=len(self.view.looks),
            loads_beside=self.device.type != "cpu",
            fit_host_mib=fit_memory["peak_host_mib"],
            predict_host_mib=predict_memory["peak_host_mib"],
            peak_device_mib=None if None in on_device else max(on_device),
        )

    def _fit(self, pools: tuple[_Pool, _Pool], inputs: int, meter: _Meter) -> _Meter | None:
        """Fit and calibrate; None if the method could not."""

        def attempt() -> _Meter:
            self._fit_method(pools, inputs, meter)
            if self._calibrates:
                self._calibrate(meter.clock)
            return meter

        return self._tried(attempt)

    def _fit_method(self, pools: tuple[_Pool, _Pool], inputs: int, meter: _Meter) -> None:
        normals, held_out = (_Few(pool, max(1, round(pool.share * inputs)), meter) for pool in pools)
        context = _Context(
            self.method,
            meter,
            held_out=held_out,
            seed=self.seed,
            device=self.device,
            label=f"{type(self.method).__name__} rehearsal",
            precision=self.precision,
        )
        self.method.train()
        self.method.fit(normals, context)
        self.method.eval()

    @property
    def _calibrates(self) -> bool:
        return type(self.method).calibrate is not Method.calibrate

    @torch.no_grad()
    def _calibrate(self, clock: _Clock) -> None:
        with closing(self._native_maps(self.held_out[:1], _Pace(clock))) as items, contextlib.suppress(_EnoughError):
            self.method.calibrate(maps for item in items for maps in item.looks)

    def _predict(self, clock: _Clock) -> float:
        """Return the seconds per predicted input."""
        pace = _Pace(clock)

        def finished(items: Iterable[NativeMaps]) -> Iterator[AnomalyMap]:
            for item in items:
                yield finish(self.method, item)
                pace.images += 1

        with (
            closing(self._native_maps(self._some_held_out(), pace)) as items,
            closing(ahead(AnomalyMap.scores, finished(items))) as scores,
            contextlib.suppress(_EnoughError),
        ):
            for _ in scores:
                pass
        return pace.seconds_per_input()

    def _some_held_out(self) -> list[Sample]:
        """Return held-out images, again and again, that fill a batch to warm up and those to measure."""
        chosen: list[Sample] = []
        inputs = 0
        for sample in itertools.cycle(self.held_out):
            if inputs >= (1 + ENOUGH_BATCHES) * self.batch_size:
                break
            chosen.append(sample)
            inputs += len(ViewedNormals([sample], self.view))
        return chosen

    def _native_maps(self, samples: Sequence[Sample], pace: _Pace) -> Generator[NativeMaps, None, None]:
        """Predict, as a job does, at a pace."""
        ask = self.method.predict_inputs

        def paced(batch: Tensor, inputs_per_image: Sequence[int]) -> Prediction:
            pace.begin(len(batch))
            return ask(batch, inputs_per_image)

        # Not a method around the method: errors name its class.
        self.method.predict_inputs = paced  # type: ignore[method-assign]
        maps = predict(
            self.method,
            samples,
            self.view,
            self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            seeds={0: mix(self.seed, 1, 0)},
        )
        try:
            with closing(maps):
                yield from maps
        finally:
            del self.method.predict_inputs
            pace.end()

    def _stages(self, pools: tuple[_Pool, _Pool], inputs: int, first: _Meter) -> Iterator[Stage]:
        """Yield what was measured, with the steps per input: those of a fit on twice as many are counted, not done."""
        running = [stage for stage in first.stages if stage.taken]
        again = _Meter(first.clock, losses=first.losses)
        try:
            self._fit_method(pools, 2 * inputs, again)
        except Exception:  # the first fit went well, so that there is nothing wrong
            log.debug("second fit of %s", type(self.method).__name__, exc_info=True)
        counted = [stage for stage in again.stages if stage.taken]
        same = [stage.name for stage in running] == [stage.name for stage in counted]
        for stage, other in zip(running, counted if same else running, strict=True):
            further = other.steps - stage.steps if stage.whole else 0
            yield replace(stage.measured(), steps_per_input=further / inputs)

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


class _EnoughError(Exception):
    """Prediction was watched for long enough."""


@dataclass(frozen=True)
class _Clock:
    """Seconds at which the device has done all that was asked so far."""

    device: torch.device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        return perf_counter()


@dataclass
class _Pace:
    """When prediction began its batches; it ends it when it was watched for long enough.

    From the beginning of the second batch on, everything counts that is done until the next ones: decoding that is
    waited for, merging and finishing.
    """

    clock: _Clock
    images: int = 0  # finished
    _inputs: list[int] = field(default_factory=list)  # of the batches begun
    _started: float = 0.0
    _stopped: float | None = None
    _uncounted: int = 0  # batches

    def begin(self, inputs: int) -> None:
        """Note that a batch begins."""
        begun = len(self._inputs)
        if begun == 0:
            self._started = self.clock()
        elif begun == 1:
            now = self.clock()
            if now - self._started > LONG_SECONDS:
                self._stop(now)
            self._started, self._uncounted = now, 1
        elif perf_counter() - self._started > (ENOUGH_SECONDS if self.images else UNFINISHED_SECONDS):
            self._stop(self.clock())
        self._inputs.append(inputs)

    def end(self) -> None:
        """Note that prediction has ended."""
        if self._stopped is None:
            self._stopped = self.clock()

    def seconds_per_input(self) -> float:
        """Return the mean over all batches but the first, if there are others."""
        assert self._stopped is not None
        return (self._stopped - self._started) / sum(self._inputs[self._uncounted :])

    def _stop(self, now: float) -> None:
        self._stopped = now
        raise _EnoughError


@dataclass
class _Running:
    """A stage that is being measured.

    Attributes
    ----------
    name : str
    steps : int
        That the method asked for.
    source : Source, optional
        What the stage draws from, told by the stream that it draws.
    batch_size : int
        Of that stream.
    taken : int
        Steps that were done.
    first, others : float
        Seconds of the first step, and of all others.
    whole : bool
        Whether the method would have gone on for all steps.
    """

    name: str
    steps: int
    source: Source | None = None
    batch_size: int = 1
    taken: int = 0
    first: float = 0.0
    others: float = 0.0
    whole: bool = True

    def draws(self, source: Source | None, batch_size: int) -> None:
        """Note what is drawn; what is drawn in turn to make it does not count."""
        if self.source is None and source is not None:
            self.source, self.batch_size = source, batch_size

    def add(self, seconds: float) -> None:
        """Count a step."""
        if self.taken:
            self.others += seconds
        else:
            self.first = seconds
        self.taken += 1

    def end(self) -> None:
        """Note that there are no more steps than those that were done."""
        self.steps, self.whole = self.taken, False

    def enough(self, most: float) -> bool:
        """Tell whether the next step is not needed any more."""
        if self.taken < 2:
            return self.taken == 1 and self.first > LONG_SECONDS
        return self.others > ENOUGH_SECONDS or self.taken > most

    def measured(self) -> Stage:
        """Return the stage; its first step, which warms up, counts only where it was the only one."""
        seconds = self.first if self.taken == 1 else self.others / (self.taken - 1)
        return Stage(self.name, self.steps, 0.0, seconds, self.batch_size, self.source)


class _Meter:
    """What measures streams while they are drawn from, and ends them early.

    Parameters
    ----------
    clock : _Clock
    losses : list of list of float, optional
        Of the stages of training of a fit before: then nothing is trained, and of each stage only the steps count.
    """

    def __init__(self, clock: _Clock, losses: list[list[float]] | None = None) -> None:
        self.clock = clock
        self.stages: list[_Running] = []
        self.losses: list[list[float]] = []
        self._before = None if losses is None else iter(losses)
        self._feeding: _Running | None = None  # the stage whose next inputs are being made

    @property
    def only_counts(self) -> bool:
        """Whether nothing is trained."""
        return self._before is not None

    def count(self, name: str, steps: int) -> list[float]:
        """Note a stage of training that is not done; return the losses that it had before."""
        assert self._before is not None
        self.stages.append(_Running(name, steps, taken=1))
        return next(self._before)

    def measure(
        self,
        items: Iterable[T],
        *,
        steps: int,
        name: str,
        most: float = math.inf,
        source: Source | None = None,
        batch_size: int = 1,
    ) -> Iterator[T]:
        """Yield the first of so many items; the time until the next one is asked for is that of a step."""
        if self._feeding is not None:  # what is measured is the stage that is fed
            self._feeding.draws(source, batch_size)
            yield from items
            return
        stage = _Running(name, steps, source, batch_size)
        self.stages.append(stage)
        stream = iter(items)
        began = self.clock()
        while not self._enough(stage, most):
            self._feeding = stage
            try:
                item = next(stream)
            except StopIteration:
                stage.end()
                break
            finally:
                self._feeding = None
            try:
                yield item
            except GeneratorExit:  # the method needs no more
                stage.add(self.clock() - began)
                stage.end()
                raise
            now = self.clock()
            stage.add(now - began)
            began = now

    def _enough(self, stage: _Running, most: float) -> bool:
        return stage.taken == stage.steps or (stage.taken > 0 if self.only_counts else stage.enough(most))


class _Metered(Generic[Batch]):
    """Batches for the fit loop, of which there are only a few."""

    def __init__(self, batches: Batches[Batch], meter: _Meter, name: str) -> None:
        self._batches: Batches[Batch] = batches
        self._meter = meter
        self._name = name

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self._batches)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield the first batches."""
        batches = self._batches.batches(batch_size, steps=steps, seed=seed, start=start)
        return self._meter.measure(batches, steps=steps, name=self._name, most=ENOUGH_STEPS)


class _Context(Fit):
    """A fit of which each stage ends after a few steps."""

    def __init__(self, method: Method, meter: _Meter, **options: Any) -> None:
        super().__init__(method, **options)
        self._meter = meter
        self._extractors = 0

    def features(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> Features:
        """Return features of a few inputs, computed before they are asked for."""
        self._extractors += 1

        def precise(batch: Tensor) -> Sequence[Tensor]:
            with autocast(self.device, self.precision):
                return extract(batch)

        return _FewFeatures(normals, precise, self.device, self._extractors, self._meter)

    def train(
        self,
        normals: Batches[Batch],
        loss: Callable[[Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        batch_size: int,
        description: str = "fit",
    ) -> list[float]:
        """Run the first steps of the fit loop."""
        if self._meter.only_counts:
            return self._meter.count(description, steps)
        few = _Metered(normals, self._meter, description)
        losses = super().train(few, loss, optimizer, steps=steps, batch_size=batch_size, description=description)
        self._meter.losses.append(losses)
        return losses

    def track(self, inputs: Iterable[Batch], *, total: int, description: str = "fit") -> Iterable[Batch]:
        """Yield the first inputs."""
        few = self._meter.measure(inputs, steps=total, name=description)
        return super().track(few, total=total, description=description)


class _Pool:
    """The few images that a rehearsal fits on, decoded when they are first needed.

    Parameters
    ----------
    name : str
    samples : sequence of Sample
    view : View
    clock : _Clock
    share : float
        Of its inputs, all of them, to those of the images to fit.
    """

    def __init__(self, name: str, samples: Sequence[Sample], view: View, clock: _Clock, *, share: float) -> None:
        self.name = name
        self.share = share
        self._samples = samples
        self._view = view
        self._clock = clock

    @property
    def normals(self) -> ViewedNormals:
        """The images as model inputs."""
        return self._decoded[0]

    @property
    def source(self) -> Source:
        """What a stage draws that draws from here."""
        return self._decoded[1]

    @cached_property
    def _decoded(self) -> tuple[ViewedNormals, Source]:
        normals, seconds = self._timed(1)
        if seconds < ENOUGH_SECONDS:  # nor was it slow for being the first
            room = max(1, CACHE_BYTES // max(1, normals.cached_bytes))
            normals, seconds = self._timed(min(POOL_IMAGES, room))
        inputs = len(normals)
        return normals, Source(self.name, self.share, seconds / inputs, normals.cached_bytes / inputs)

    def _timed(self, images: int) -> tuple[ViewedNormals, float]:
        """Decode the first images, and return how long it took."""
        samples = self._samples[:images]
        normals = ViewedNormals(samples, self._view)
        ends = itertools.accumulate(len(ViewedNormals([sample], self._view)) for sample in samples)
        last = [end - 1 for end in ends]
        began = self._clock()
        for number in last:
            normals.take([number])
        return normals, self._clock() - began


class _Few:
    """Normals that say they are all, and are those of a pool, again and again."""

    def __init__(self, pool: _Pool, inputs: int, meter: _Meter) -> None:
        self.pool = pool
        self._inputs = inputs
        self._meter = meter

    def __len__(self) -> int:
        """Return the number of inputs that there are in a real fit."""
        return self._inputs

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the first inputs."""
        inputs = itertools.islice(itertools.chain.from_iterable(itertools.repeat(self.pool.normals)), len(self))
        return self._measured(inputs, len(self), 1)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the first batches."""
        batches = self.pool.normals.batches(batch_size, steps=steps, seed=seed, start=start)
        return self._measured(batches, steps - start, batch_size)

    def order(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the inputs of the first batches."""
        order = self.pool.normals.order(batch_size, steps=steps, seed=seed, start=start)
        return self._measured(order, steps - start, batch_size)

    def take(self, chosen: Sequence[int]) -> Tensor:
        """Return inputs of the pool."""
        return self.pool.normals.take([number % len(self.pool.normals) for number in chosen])

    def _measured(self, items: Iterable[T], steps: int, batch_size: int) -> Iterator[T]:
        source = self.pool.source
        return self._meter.measure(items, steps=steps, name=self.pool.name, source=source, batch_size=batch_size)


class _FewFeatures(Features):
    """Features of a few inputs, again and again."""

    def __init__(
        self,
        normals: Normals,
        extract: Callable[[Tensor], Sequence[Tensor]],
        device: torch.device,
        number: int,
        meter: _Meter,
    ) -> None:
        super().__init__(normals, extract, device)
        self._meter = meter
        source = normals.pool.source if isinstance(normals, _Few) else Source("others")
        self._few, seconds = self._timed()
        if not meter.only_counts and seconds < LONG_SECONDS:  # nor was it slow for being the first
            times = [self._timed()[1]]
            while sum(times) < ENOUGH_SECONDS and len(times) < ENOUGH_GROUPS:
                times.append(self._timed()[1])
            seconds = sum(times) / len(times)
        count = len(self._few[0])
        self._source = replace(
            source,
            features=number,
            extract_seconds=seconds / count,
            feature_bytes=sum(feature.nbytes for feature in self._few) / count,
        )

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[Tensor]]:
        """Yield features, in the order of the normals."""
        order = self.normals.order(batch_size, steps=steps, seed=seed, start=start)
        taken = (self._taken(chosen) for chosen in order)
        return self._meter.measure(
            taken, steps=steps - start, name="features", source=self._source, batch_size=batch_size
        )

    def _taken(self, chosen: Sequence[int]) -> list[Tensor]:
        rows = torch.tensor(chosen) % len(self._few[0])
        return [feature[rows].to(self._device) for feature in self._few]

    def _timed(self) -> tuple[list[Tensor], float]:
        """Compute the features of a group, and return how long it took."""
        began = self._meter.clock()
        batch = self.normals.take(range(min(GROUP, len(self))))
        features = [feature.cpu() for feature in self._computed(batch)]
        return features, self._meter.clock() - began
