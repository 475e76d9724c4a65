"""From image files to native anomaly maps: decode, tile, predict in batches across images, merge.

Threads decode images and copy tiles into batches ahead; the caller's thread alone asks the method, merges, and draws
random numbers, so that results do not depend on threads. On a GPU it only queues work: nothing here waits for the
device, whoever needs a map or its seconds does.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hrbench.data.sample import Sample
from hrbench.engine.device_timer import Span, mark, seconds_of
from hrbench.engine.prefetch import ahead
from hrbench.engine.views import AnyView, Canvas, Placement, stack_tiles, to_unit
from hrbench.errors import HrbenchError
from hrbench.imaging import image_size, read_image
from hrbench.method import Method
from hrbench.precision import autocast

__all__ = ["NativeMaps", "predict"]

log = logging.getLogger("hrbench")

WORKERS_CPU = 2  # that decode; the forward pass needs the cores
WORKERS_GPU = min(8, os.cpu_count() or 1)
AHEAD_PIXELS = 1 << 25  # of decoded images that wait, the last one not counted
BATCHES = 2  # that wait


@dataclass(frozen=True)
class NativeMaps:
    """A method's merged maps of one image.

    Attributes
    ----------
    sample : Sample
    parts : tuple of dict of str to Tensor
        Per view: (H, W) float32 on the device, as the method named them. One view, unless several are fused.
    decision : Tensor or None
        (H, W) bool on the device, of all views: a pixel is called if any view calls it.
    spans : tuple of Span
        When the device worked on this image: batches that it shared, and its merging.
    """

    sample: Sample
    parts: tuple[dict[str, Tensor], ...]
    decision: Tensor | None
    spans: tuple[Span, ...]

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps of the only view."""
        (only,) = self.parts
        return only

    @property
    def seconds(self) -> float:
        """The image's share of the device's time for forward passes and merging; the transfer to it is part of both."""
        return seconds_of(self.spans)


@dataclass
class _Part:
    """An image through one view."""

    placement: Placement
    canvases: dict[str, Canvas] = field(default_factory=dict)
    decision: Canvas | None = None

    def blend(self, index: int, maps: Mapping[str, Tensor], decision: Tensor | None, device: torch.device) -> None:
        """Add what was predicted of one input."""
        for name, map_ in maps.items():
            if name not in self.canvases:
                self.canvases[name] = Canvas(self.placement, device)
            self.canvases[name].add(index, map_)
        if decision is not None:
            self.decision = self.decision or Canvas(self.placement, device)
            self.decision.add_decision(index, decision)


@dataclass
class _Pending:
    """An image whose inputs are partly predicted."""

    sample: Sample
    parts: list[_Part]
    done: int = 0
    spans: list[Span] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of inputs, those of all views."""
        return sum(len(part.placement) for part in self.parts)

    def finish(self, device: torch.device) -> NativeMaps:
        """Hand out the maps, and keep none: the last batch still knows this image."""
        started = mark(device)
        maps = tuple({name: canvas.result() for name, canvas in part.canvases.items()} for part in self.parts)
        decision: Tensor | None = None
        for part in self.parts:
            if part.decision is not None:
                called = part.decision.result(nearest=True).bool()
                decision = called if decision is None else decision | called
        self.parts.clear()
        return NativeMaps(self.sample, maps, decision, (*self.spans, (started, mark(device), 1.0)))


@dataclass(frozen=True)
class _Input:
    """A tile's image, view and place there."""

    image: _Pending
    part: _Part
    index: int


@dataclass(frozen=True)
class _Batch:
    """Inputs that are predicted together."""

    inputs: list[_Input]
    pixels: Tensor
    seed: int | None


def predict(
    method: Method,
    samples: Sequence[Sample],
    view: AnyView,
    device: torch.device,
    *,
    batch_size: int = 8,
    precision: str = "float32",
    seeds: Mapping[int, int] | None = None,
) -> Generator[NativeMaps, None, None]:
    """Yield the native maps of every sample, in order.

    Images are decoded once for all views; batches are filled across views and images. Memory holds a bounded number of
    images, and one map per view of each image in the batch. A batch that does not fit into the device's memory is
    halved, and so are those that follow.

    Parameters
    ----------
    method : Method
        On `device`; put into eval mode.
    samples : sequence of Sample
    view : View or FusedView
    device : torch.device
    batch_size : int
        Tiles per forward pass.
    precision : str
        ``float32`` or ``bfloat16``, see :mod:`hrbench.precision`.
    seeds : mapping of int to int, optional
        Position in `samples` to a seed of torch's generator: a batch begins there, and what follows does not depend on
        what came before.

    Raises
    ------
    HrbenchError
        For a bad image file, after the maps of the images before it were yielded as far as their batches were full;
        for maps of another shape than the batch's, or a device too small for a single input.
    """
    method.eval()
    on_gpu = device.type == "cuda"
    pending: deque[_Pending] = deque()

    def loose() -> Iterator[tuple[list[_Input], list[Tensor], int | None]]:
        inputs: list[_Input] = []
        tiles: list[Tensor] = []
        seed: int | None = None
        for position, (sample, looks) in enumerate(_decoded(samples, view, WORKERS_GPU if on_gpu else WORKERS_CPU)):
            if seeds and position in seeds:
                if inputs:
                    yield inputs, tiles, seed
                inputs, tiles, seed = [], [], seeds[position]
            image = _Pending(sample, [_Part(placement) for _, placement in looks])
            pending.append(image)
            for part, (prepared, placement) in zip(image.parts, looks, strict=True):
                for index in range(len(placement)):
                    inputs.append(_Input(image, part, index))
                    tiles.append(placement.cut(prepared, index))
                    if len(inputs) >= batch_size:
                        yield inputs, tiles, seed
                        inputs, tiles, seed = [], [], None
            del looks, prepared  # before the next image is waited for
        if inputs:
            yield inputs, tiles, seed

    def stacked(batch: tuple[list[_Input], list[Tensor], int | None]) -> _Batch:
        inputs, tiles, seed = batch
        return _Batch(inputs, stack_tiles(tiles, pinned=on_gpu), seed)

    with closing(ahead(stacked, loose(), depth=BATCHES)) as batches:
        for batch in batches:
            if batch.seed is not None:
                torch.manual_seed(batch.seed)
            done = 0
            while done < len(batch.inputs):
                inputs = batch.inputs[done : done + batch_size]
                if _forward(method, inputs, batch.pixels[done : done + batch_size], device, precision):
                    done += len(inputs)
                else:
                    batch_size = _halved(inputs, batch.pixels.shape[2:], device)
            while pending and pending[0].done == len(pending[0]):
                yield pending.popleft().finish(device)


def _decoded(
    samples: Sequence[Sample], view: AnyView, workers: int
) -> Iterator[tuple[Sample, list[tuple[Tensor, Placement]]]]:
    def look(sample: Sample) -> tuple[Sample, list[tuple[Tensor, Placement]]]:
        pixels = read_image(sample.image)
        return sample, [part.prepare(pixels) for part in view.parts]

    def pixels_of(sample: Sample) -> int:
        try:
            return math.prod(image_size(sample.image))
        except HrbenchError:
            return 0  # `look` says what is wrong, when it is its turn

    return ahead(look, samples, workers=workers, depth=2 * workers, weight=pixels_of, room=AHEAD_PIXELS)


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
def _forward(method: Method, inputs: list[_Input], pixels: Tensor, device: torch.device, precision: str) -> bool:
    """Predict the inputs and blend them into their images' maps; return False if they were too many for the device."""
    started = mark(device)
    try:
        with autocast(device, precision):
            prediction = method.predict_inputs(to_unit(pixels, device), [len(item.image) for item in inputs])
    except torch.cuda.OutOfMemoryError:  # the name that torch 2.4 has; nothing was blended yet
        return False
    for name, maps in prediction.maps.items():
        if maps.ndim != 3 or maps.shape[0] != len(inputs):
            raise HrbenchError(
                f"{type(method).__name__}.predict: map {name!r} has shape {tuple(maps.shape)}, "
                f"expected ({len(inputs)}, h, w)"
            )
    for row, item in enumerate(inputs):
        own = {name: maps[row] for name, maps in prediction.maps.items()}
        item.part.blend(item.index, own, None if prediction.decision is None else prediction.decision[row], device)
        item.image.done += 1
    span = (started, mark(device), 1 / len(inputs))
    for item in inputs:
        item.image.spans.append(span)
    return True
