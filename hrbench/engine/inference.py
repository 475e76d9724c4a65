"""From image files to native anomaly maps: decode, tile, predict in batches across images, merge.

Threads decode images and copy tiles into batches ahead; the caller's thread alone asks the method, merges, and draws
random numbers, so that results do not depend on threads. On a GPU it only queues work: nothing here waits for the
device, whoever needs a map or its seconds does. What the host has to decide of a batch, threads do while the device
goes on with the next ones.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from hrbench._util.guard import call_name, guarded, set_seed
from hrbench.contract import check_decision, check_prediction, parts_of
from hrbench.data.sample import ArraySample, Sample
from hrbench.engine.device_timer import Mark, Span, mark, seconds_of, wait_for
from hrbench.engine.prefetch import ahead
from hrbench.engine.transfers import to_device, to_host
from hrbench.engine.views import DecisionCanvas, MapCanvas, Placement, View, stack_tiles, to_unit
from hrbench.errors import HrbenchError
from hrbench.imaging import image_size, read_image
from hrbench.method import Method, OnHost, Prediction
from hrbench.precision import autocast

__all__ = ["NativeMaps", "predict"]

log = logging.getLogger("hrbench")

WORKERS_CPU = 2  # that decode; the forward pass needs the cores
WORKERS_GPU = min(8, os.cpu_count() or 1)
AHEAD_PIXELS = 1 << 25  # of decoded images that wait, the last one not counted
BATCHES = 2  # that wait
DECIDING = 4  # threads that decide on the host of a GPU, and batches that wait for them

_Decoded = tuple[Sample, list[tuple[Tensor, Placement]] | HrbenchError]  # or why its image cannot be read


@dataclass(frozen=True)
class NativeMaps:
    """A method's merged maps of one image.

    Attributes
    ----------
    sample : Sample
    looks : tuple of dict of str to Tensor
        Per look of the view: (H, W) float32 on the device, as the method named them; of the padded image where the
        method asks for it (``Method.finish_padded``).
    decision : Tensor or None
        (H, W) bool on the device, of all looks: a pixel is predicted as a defect if any look predicts so.
    spans : tuple of Span
        When the device worked on this image: batches that it shared, and its merging.
    pads : tuple of (int, int, int, int)
        Per look what its maps have beyond the image at the left, right, top and bottom; empty where none has anything.
    """

    sample: Sample
    looks: tuple[dict[str, Tensor], ...]
    decision: Tensor | None
    spans: tuple[Span, ...]
    pads: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps of the only look."""
        (only,) = self.looks
        return only

    @property
    def seconds(self) -> float:
        """The image's share of the device's time for forward passes and merging; the transfer to it is part of both."""
        return seconds_of(self.spans)


@dataclass
class _Canvases:
    """An image through one look."""

    placement: Placement
    maps: dict[str, MapCanvas] = field(default_factory=dict)
    decision: DecisionCanvas | None = None

    def blend(self, index: int, maps: Mapping[str, Tensor], device: torch.device) -> None:
        """Add what was predicted of one input."""
        for name, map_ in maps.items():
            if name not in self.maps:
                self.maps[name] = MapCanvas(self.placement, device)
            self.maps[name].add(index, map_)

    def decide(self, index: int, decision: Tensor, device: torch.device) -> None:
        """Add what was decided of one input."""
        self.decision = self.decision or DecisionCanvas(self.placement, device)
        self.decision.add(index, decision)


@dataclass
class _Pending:
    """An image whose inputs are partly predicted."""

    sample: Sample
    looks: list[_Canvases]
    done: int = 0
    spans: list[Span] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of inputs, those of all looks."""
        return sum(len(look.placement) for look in self.looks)

    def finish(self, device: torch.device, *, padded: bool) -> NativeMaps:
        """Hand out the maps, and keep none: the last batch still knows this image."""
        started = mark(device)
        maps = tuple({name: canvas.result(padded=padded) for name, canvas in look.maps.items()} for look in self.looks)
        pads = tuple(look.placement.pad for look in self.looks) if padded else ()
        decision: Tensor | None = None
        for look in self.looks:
            if look.decision is not None:
                decided = look.decision.result()
                decision = decided if decision is None else decision | decided
        self.looks.clear()
        return NativeMaps(self.sample, maps, decision, (*self.spans, (started, mark(device), 1.0)), pads)


@dataclass(frozen=True)
class _Input:
    """A tile's image, look and place there."""

    image: _Pending
    look: _Canvases
    index: int


@dataclass(frozen=True)
class _Batch:
    """Inputs that are predicted together."""

    inputs: list[_Input]
    pixels: Tensor
    seed: int | None


@dataclass
class _Predicted:
    """Inputs whose maps are blended, and what the host is still deciding of them beside."""

    inputs: list[_Input]
    spans: list[Span]
    complete: Callable[[list[Tensor]], Tensor] | None = None
    computing: Future[tuple[Sequence[Tensor], Span]] | None = None

    @torch.no_grad()
    def finish(self, method: Method, device: torch.device) -> None:
        """Blend the decision in, if it is not yet, and count the inputs as done."""
        share = 1 / len(self.inputs)
        if self.computing is not None and self.complete is not None:
            found, span = self.computing.result()
            started = mark(device)
            with guarded(call_name(method, "predict"), briefly=True):
                given = self.complete([to_device(tensor, device) for tensor in found])
            decision = check_decision(method, given, len(self.inputs), device)
            _blend_decision(self.inputs, decision, device)
            self.spans += [span, (started, mark(device), share)]
        for item in self.inputs:
            item.image.spans.extend(self.spans)
            item.image.done += 1


@dataclass
class _OpenBatch:
    """Inputs that are being gathered, and their tiles: views of images, not copied yet."""

    seed: int | None = None
    inputs: list[_Input] = field(default_factory=list)
    tiles: list[Tensor] = field(default_factory=list)

    def stack(self, *, pinned: bool) -> _Batch:
        """Copy the tiles into one tensor."""
        return _Batch(self.inputs, stack_tiles(self.tiles, pinned=pinned), self.seed)


@dataclass
class _Queue:
    """Images whose maps are not finished, in order, and the size of the batches that they are cut into."""

    batch_size: int
    seeds: Mapping[int, int]
    padded: bool  # the maps of square views are handed out with their padding
    failed: Callable[[Sample, HrbenchError], None] | None
    images: deque[_Pending] = field(default_factory=deque)
    parts: Sequence[str] = ()  # of the predictions so far

    def batches(self, samples: Iterable[Sample], view: View, workers: int) -> Iterator[_OpenBatch]:
        """Let the images in and fill batches across looks and images; at a position with a seed a batch begins.

        An image that cannot be read is left out where `failed` is told, and else an error.
        """
        batch = _OpenBatch()
        with closing(_decoded(samples, view, workers)) as decoded:
            for position, (sample, looks) in enumerate(decoded):
                if position in self.seeds:
                    if batch.inputs:
                        yield batch
                    batch = _OpenBatch(self.seeds[position])
                if isinstance(looks, HrbenchError):
                    if self.failed is None:
                        raise looks
                    self.failed(sample, looks)
                    continue
                image = _Pending(sample, [_Canvases(placement) for _, placement in looks])
                self.images.append(image)
                for look, (prepared, placement) in zip(image.looks, looks, strict=True):
                    for index in range(len(placement)):
                        batch.inputs.append(_Input(image, look, index))
                        batch.tiles.append(placement.cut(prepared, index))
                        if len(batch.inputs) >= self.batch_size:
                            yield batch
                            batch = _OpenBatch()
                del looks, prepared  # before the next image is waited for
        if batch.inputs:
            yield batch

    def finished(self, device: torch.device) -> Iterator[NativeMaps]:
        """Let out the images all of whose inputs are predicted."""
        while self.images and self.images[0].done == len(self.images[0]):
            yield self.images.popleft().finish(device, padded=self.padded)


def predict(
    method: Method,
    samples: Iterable[Sample],
    view: View,
    device: torch.device,
    *,
    batch_size: int = 8,
    precision: str = "float32",
    seeds: Mapping[int, int] | None = None,
    failed: Callable[[Sample, HrbenchError], None] | None = None,
) -> Generator[NativeMaps, None, None]:
    """Yield the native maps of every sample, in order.

    Images are decoded once for all looks; batches are filled across looks and images. Memory holds a bounded number of
    images, and one map per look of each image in the batch. A batch that does not fit into the device's memory is
    halved, and so are those that follow.

    Parameters
    ----------
    method : Method
        On `device`; put into eval mode.
    samples : iterable of Sample
        Drawn from in the caller's thread, some images ahead.
    view : View
    device : torch.device
    batch_size : int
        Tiles per forward pass.
    precision : str
        ``float32`` or ``bfloat16``, see :mod:`hrbench.precision`.
    seeds : mapping of int to int, optional
        Position in `samples` to a seed of the generators: a batch begins there, and what follows does not depend on
        what came before. Looked up when the sample was drawn: what yields samples may add to it.
    failed : callable, optional
        Is told of a sample whose image cannot be read, and why: it has no maps then, and the others go on.

    Raises
    ------
    HrbenchError
        For a bad image file unless `failed` is told, after the maps of the images before it were yielded as far as
        their batches were full; for what is no prediction (see :mod:`hrbench.contract`), or a device too small for a
        single input.
    """
    method.eval()
    on_gpu = device.type == "cuda"
    queue = _Queue(batch_size, {} if seeds is None else seeds, method.finish_padded, failed)
    gathered = queue.batches(samples, view, WORKERS_GPU if on_gpu else WORKERS_CPU)
    predicted: deque[_Predicted] = deque()
    with (
        closing(ahead(partial(_OpenBatch.stack, pinned=on_gpu), gathered, depth=BATCHES)) as batches,
        _threads() as threads,
    ):
        for batch in batches:
            if batch.seed is not None:
                set_seed(batch.seed)
            done = 0
            while done < len(batch.inputs):
                chunk = slice(done, done + queue.batch_size)
                inputs = batch.inputs[chunk]
                found = _forward(method, queue, inputs, batch.pixels[chunk], device, precision, threads)
                if found is None:
                    queue.batch_size = _halved(inputs, batch.pixels.shape[2:], device)
                    continue
                done += len(inputs)
                predicted.append(found)
                while predicted and (predicted[0].computing is None or len(predicted) > DECIDING):
                    predicted.popleft().finish(method, device)
            yield from queue.finished(device)
        while predicted:
            predicted.popleft().finish(method, device)
            yield from queue.finished(device)


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Yield threads that begin when they are needed; what they have not begun in the end is dropped."""
    threads = ThreadPoolExecutor(DECIDING)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _decoded(samples: Iterable[Sample], view: View, workers: int) -> Generator[_Decoded, None, None]:
    def prepared(sample: Sample) -> _Decoded:
        try:
            pixels = sample.pixels if isinstance(sample, ArraySample) else read_image(sample.image)
        except HrbenchError as error:
            return sample, error
        return sample, view.prepare(pixels)

    def pixels_of(sample: Sample) -> int:
        if isinstance(sample, ArraySample):
            return math.prod(sample.pixels.shape[:2])
        try:
            return math.prod(image_size(sample.image))
        except HrbenchError:
            return 0  # `prepared` says what is wrong, when it is its turn

    return ahead(prepared, samples, workers=workers, depth=2 * workers, weight=pixels_of, room=AHEAD_PIXELS)


def _halved(inputs: list[_Input], size: Sequence[int], device: torch.device) -> int:
    """Return the size of the batches to try where `inputs` were too many for the device."""
    if len(inputs) == 1:
        raise HrbenchError(
            f"{inputs[0].image.sample.id}: the memory of {device} is too small for one input of {size[0]}x{size[1]} "
            "pixels; expected a view with smaller inputs, or another device"
        )
    half = len(inputs) // 2
    log.warning("%s is out of memory with %d inputs at a time, going on with %d", device, len(inputs), half)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return half


@torch.no_grad()
def _forward(
    method: Method,
    queue: _Queue,
    inputs: list[_Input],
    pixels: Tensor,
    device: torch.device,
    precision: str,
    threads: ThreadPoolExecutor,
) -> _Predicted | None:
    """Predict the inputs and blend their maps into their images'; return None if they were too many for the device."""
    started = mark(device)
    try:
        with autocast(device, precision), guarded(call_name(method, "predict"), briefly=True):
            given = method.predict_inputs(to_unit(pixels, device), [len(item.image) for item in inputs])
            if device.type != "cuda" and isinstance(given, Prediction):  # there the host is the device
                given = replace(given, decision=given.decided())
    except torch.cuda.OutOfMemoryError:  # nothing was blended yet
        return None
    prediction = check_prediction(method, given, len(inputs), device, queue.parts)
    queue.parts = parts_of(prediction)
    for row, item in enumerate(inputs):
        item.look.blend(item.index, {name: maps[row] for name, maps in prediction.maps.items()}, device)
    predicted = _Predicted(inputs, [])
    if isinstance(prediction.decision, OnHost):
        how, sent = prediction.decision, [to_host(tensor) for tensor in prediction.decision.given]
        predicted.complete = how.complete
        predicted.computing = threads.submit(_computed, how.compute, sent, mark(device), 1 / len(inputs))
    elif prediction.decision is not None:
        _blend_decision(inputs, prediction.decision, device)
    predicted.spans.append((started, mark(device), 1 / len(inputs)))
    return predicted


@torch.no_grad()
def _computed(
    compute: Callable[[list[Tensor]], Sequence[Tensor]], given: list[Tensor], sent: Mark, share: float
) -> tuple[Sequence[Tensor], Span]:
    """Return what the host's part of a decision gave, and its span."""
    wait_for(sent)
    started = time.perf_counter()
    found = compute(given)
    return found, (started, time.perf_counter(), share)


def _blend_decision(inputs: list[_Input], decision: Tensor | None, device: torch.device) -> None:
    for decided, item in zip(() if decision is None else decision, inputs, strict=True):
        item.look.decide(item.index, decided, device)
