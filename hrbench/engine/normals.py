"""Normal training images as model inputs: decoded once where memory allows, shuffled, loaded ahead."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from hrbench.data.sample import Sample
from hrbench.engine.prefetch import ahead
from hrbench.engine.views import Placement, View, stack_tiles, to_unit
from hrbench.imaging import image_size, read_image
from hrbench.method import Normals

__all__ = ["ViewedNormals", "loaded"]

CACHE_BYTES = 1 << 30  # of decoded images, kept between epochs
WINDOW = 16  # images whose tiles are shuffled together: a decoded image serves many tiles before it is dropped
WORKERS = 4  # threads that load batches for a device that is not the CPU; for it one, for the fit needs the cores


class ViewedNormals:
    """Normal images through a view: the :class:`hrbench.method.Normals` that methods fit on.

    An image's inputs are those of all looks, one look after another.

    Parameters
    ----------
    samples : sequence of Sample
    view : View
    """

    def __init__(self, samples: Sequence[Sample], view: View) -> None:
        self.samples = samples
        self.view = view
        self._cache: OrderedDict[int, list[tuple[Tensor, Placement]]] = OrderedDict()
        self._cached_bytes = 0
        self._lock = Lock()
        self._decoding: dict[int, Lock] = {}  # per image

    @cached_property
    def _tiles(self) -> list[int]:
        sizes = [image_size(sample.image) for sample in self.samples]
        return [sum(len(look.place(size)) for look in self.view.looks) for size in sizes]

    @cached_property
    def _ends(self) -> list[int]:
        """Number of inputs up to the end of each image."""
        return list(accumulate(self._tiles))

    def __len__(self) -> int:
        """Return the number of model inputs."""
        return sum(self._tiles)

    @property
    def cached_bytes(self) -> int:
        """Memory of the decoded images that are kept now."""
        return self._cached_bytes

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every input once, image after image: (3, h, w) float32 in [0, 1]; the next image loads meanwhile."""
        with contextlib.closing(ahead(self._prepared, range(len(self.samples)))) as images:
            for looks in images:
                for prepared, placement in looks:
                    for tile in range(len(placement)):
                        yield to_unit(stack_tiles([placement.cut(prepared, tile)]), torch.device("cpu"))[0]

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield batches `start` .. `steps` - 1 of the endless shuffled stream; the next one loads meanwhile."""
        order = self.order(batch_size, steps=steps, seed=seed, start=start)
        with contextlib.closing(self.loaded(order)) as batches:
            for batch in batches:
                yield to_unit(batch, torch.device("cpu"))

    def loaded(
        self, order: Iterable[Sequence[int]], *, workers: int = 1, pinned: bool = False
    ) -> Generator[Tensor, None, None]:
        """Yield batches of chosen inputs as they were decoded, most often uint8.

        Parameters
        ----------
        order : iterable of sequence of int
            The inputs of each batch.
        workers : int
            Threads that load ahead, each a batch.
        pinned : bool
            In memory from which a GPU fetches while the host goes on.
        """
        return ahead(partial(self._stack, pinned=pinned), order, workers=workers, depth=workers)

    def order(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the inputs of batches `start` .. `steps` - 1."""
        stream = (self._ends[image] - self._tiles[image] + tile for image, tile in self._stream(seed))
        for _ in range(start * batch_size):
            next(stream)
        for _ in range(start, steps):
            yield [next(stream) for _ in range(batch_size)]

    def take(self, chosen: Sequence[int]) -> Tensor:
        """Return chosen inputs, (N, 3, h, w) float32 in [0, 1]."""
        return to_unit(self._stack(chosen), torch.device("cpu"))

    def _stack(self, chosen: Sequence[int], *, pinned: bool = False) -> Tensor:
        ends = self._ends
        images = [bisect_right(ends, number) for number in chosen]
        starts = [ends[image] - self._tiles[image] for image in images]
        tiles = [self._cut(i, n - start) for i, n, start in zip(images, chosen, starts, strict=True)]
        return stack_tiles(tiles, pinned=pinned)

    def _stream(self, seed: int) -> Iterator[tuple[int, int]]:
        """Yield (image, tile) for ever: images shuffled each epoch, tiles shuffled within windows of images."""
        epoch = 0
        while True:
            rng = np.random.default_rng([seed, epoch])
            images = rng.permutation(len(self.samples))
            for first in range(0, len(images), WINDOW):
                window = [(int(i), t) for i in images[first : first + WINDOW] for t in range(self._tiles[i])]
                yield from (window[k] for k in rng.permutation(len(window)))
            epoch += 1

    def _cut(self, index: int, tile: int) -> Tensor:
        for prepared, placement in self._prepared(index):
            if tile < len(placement):
                return placement.cut(prepared, tile)
            tile -= len(placement)
        raise IndexError(tile)

    def _prepared(self, index: int) -> list[tuple[Tensor, Placement]]:
        with self._lock:
            decoding = self._decoding.setdefault(index, Lock())
        with decoding:  # another thread may be at it
            with self._lock:
                if index in self._cache:
                    self._cache.move_to_end(index)
                    return self._cache[index]
            entry = self.view.prepare(read_image(self.samples[index].image))
            with self._lock:
                self._cache[index] = entry
                self._cached_bytes += _nbytes(entry)
                while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                    _, dropped = self._cache.popitem(last=False)
                    self._cached_bytes -= _nbytes(dropped)
        return entry


def loaded(normals: Normals, order: Iterable[Sequence[int]], device: torch.device) -> Generator[Tensor, None, None]:
    """Yield batches of chosen inputs for a device; images of the suite as they were decoded, some ahead.

    To a GPU those travel as uint8 from pinned memory.
    """
    if isinstance(normals, ViewedNormals):
        return normals.loaded(order, workers=1 if device.type == "cpu" else WORKERS, pinned=device.type == "cuda")
    return (normals.take(chosen) for chosen in order)


def _nbytes(entry: list[tuple[Tensor, Placement]]) -> int:
    return sum(prepared.nbytes for prepared, _ in entry)
