"""Features of the training inputs that never change during a fit: computed once, kept on a GPU, in memory or a file.

An input's features are computed when they are first needed, in groups of neighbouring inputs that do not depend on
what the fit drew before. So an interrupted fit, whose features are gone, computes the same bits again. Where features
are not kept they are computed batch by batch; as a network may round differently in batches of other sizes, the two
agree to float accuracy, not to the last bit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hrbench.engine.device import free_on_gpu
from hrbench.engine.normals import loaded
from hrbench.engine.views import to_unit
from hrbench.errors import HrbenchError
from hrbench.method import Normals

__all__ = ["Features"]

log = logging.getLogger("hrbench")

GPU_SHARE = 0.5  # of a GPU's free memory that kept features may take; the fit needs the rest
MEMORY_BYTES = 1 << 30  # of features that are kept in the host's memory
DISK_BYTES = 32 << 30  # of features that are kept in a file; beyond, nothing is kept
FREE_BYTES = 2 << 30  # of the disk that stay free
GROUP = 8  # inputs whose features are computed together


class Features:
    """The features of normals, in the order of the normals' own batches: :class:`hrbench.method.Batches`.

    Kept on a GPU up to ``GPU_SHARE`` of its free memory, else in the host's up to ``MEMORY_BYTES``, else in a file in
    `scratch` up to ``DISK_BYTES`` that goes with this object (on Linux and macOS also if the process is killed), else
    not at all. Nothing is kept for a stream of at most one epoch, which uses nothing twice.

    Parameters
    ----------
    normals : Normals
    extract : callable
        See :meth:`hrbench.method.FitContext.features`.
    device : torch.device
    scratch : Path, optional
    """

    def __init__(
        self,
        normals: Normals,
        extract: Callable[[Tensor], Sequence[Tensor]],
        device: torch.device,
        *,
        scratch: Path | None = None,
    ) -> None:
        self.normals = normals
        self._extract = extract
        self._device = device
        self._scratch = scratch
        self._stores: list[Tensor] | None = None  # per feature (inputs, ...)
        self._known: set[int] = set()  # groups
        self._keep = True

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.normals)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[Tensor]]:
        """Yield the features of batches `start` .. `steps` - 1 of the normals, on the device."""
        order = partial(self.normals.order, batch_size, steps=steps, seed=seed, start=start)
        if steps * batch_size > len(self) and self._opened():
            known = set(self._known)  # here and, as a copy, where inputs load ahead: both walk the same way
            with closing(loaded(self.normals, self._missing(order(), set(known)), self._device)) as inputs:
                for chosen in order():
                    for group in _groups(chosen, known):
                        if self._stores is not None:
                            self._put(group, self._computed(next(inputs)))
                    yield self._kept(chosen)
        else:
            with closing(loaded(self.normals, order(), self._device)) as inputs:
                for batch in inputs:
                    yield self._computed(batch)

    def leave_device(self) -> bool:
        """Keep elsewhere what is kept on a GPU, for the fit needs its memory; return whether anything was."""
        if self._stores is None or self._stores[0].device.type == "cpu":
            return False
        room = self._room([store[:1].cpu() for store in self._stores], on_gpu=False)
        for index, target in enumerate(room or ()):
            target.copy_(self._stores[index])
        self._stores, self._keep = room, room is not None
        torch.cuda.empty_cache()
        log.info("kept features have left %s: the fit needs its memory", self._device)
        return True

    def _missing(self, order: Iterable[list[int]], known: set[int]) -> Iterator[range]:
        """Yield the inputs of the groups that are not known, as they are needed first."""
        groups = -(-len(self) // GROUP)
        for chosen in order:
            for group in _groups(chosen, known):
                yield range(group * GROUP, min((group + 1) * GROUP, len(self)))
            if len(known) == groups:
                return

    def _opened(self) -> bool:
        """Make room for all features when the first group tells how large they are; tell if there is."""
        if self._keep and self._stores is None:
            first = self._computed(self.normals.take(range(min(GROUP, len(self)))))
            self._stores = self._room(first)
            self._keep = self._stores is not None
            if self._keep:
                self._put(0, first)
        return self._keep

    def _room(self, first: list[Tensor], *, on_gpu: bool = True) -> list[Tensor] | None:
        shapes = [(len(self), *feature.shape[1:]) for feature in first]
        needed = sum(len(self) * feature[0].nbytes for feature in first)
        if on_gpu and self._device.type == "cuda" and needed <= GPU_SHARE * free_on_gpu(self._device):
            with contextlib.suppress(torch.cuda.OutOfMemoryError):  # another process was quicker
                return [
                    torch.empty(shape, dtype=x.dtype, device=self._device)
                    for shape, x in zip(shapes, first, strict=True)
                ]
        if needed <= MEMORY_BYTES:
            return [torch.empty(shape, dtype=x.dtype) for shape, x in zip(shapes, first, strict=True)]
        size = f"{needed / (1 << 30):.1f} GiB of features"
        if self._scratch is None or needed > min(DISK_BYTES, shutil.disk_usage(self._scratch).free - FREE_BYTES):
            log.info("%s are computed anew each epoch: neither memory nor disk has room for them", size)
            return None
        try:
            stores = [_mapped(self._scratch, shape, x.dtype) for shape, x in zip(shapes, first, strict=True)]
            log.info("%s are kept on disk below %s while the fit runs", size, self._scratch)
            return stores
        except OSError as error:
            log.info("%s are computed anew each epoch: %s: %s", size, self._scratch, error)
            return None

    def _kept(self, chosen: list[int]) -> list[Tensor]:
        if self._stores is None:  # they have left the device, and there was no room elsewhere
            return self._computed(self.normals.take(chosen))
        rows = torch.tensor(chosen)
        if self._device.type != "cuda":
            return [store[rows].to(self._device, non_blocking=True) for store in self._stores]
        if self._stores[0].device.type == "cuda":
            rows = rows.pin_memory().to(self._device, non_blocking=True)
            return [store[rows] for store in self._stores]
        pinned = [
            torch.empty((len(rows), *store.shape[1:]), dtype=store.dtype, pin_memory=True) for store in self._stores
        ]
        for store, found in zip(self._stores, pinned, strict=True):
            torch.index_select(store, 0, rows, out=found)
        return [found.to(self._device, non_blocking=True) for found in pinned]

    def _put(self, group: int, features: list[Tensor]) -> None:
        assert self._stores is not None
        self._known.add(group)
        start = group * GROUP
        for store, feature in zip(self._stores, features, strict=True):
            if feature.shape[1:] != store.shape[1:]:
                raise HrbenchError(
                    f"features of input {start} have the shape {tuple(feature.shape[1:])}, "
                    f"expected {tuple(store.shape[1:])} as those before"
                )
            store[start : start + GROUP] = feature.to(store.device)

    def _computed(self, batch: Tensor) -> list[Tensor]:
        features = list(self._extract(to_unit(batch, self._device)))
        if any(feature.requires_grad for feature in features):
            raise HrbenchError(
                "features of parts that learn cannot be kept; expected frozen ones (requires_grad=False)"
            )
        return features


def _groups(chosen: Iterable[int], known: set[int]) -> list[int]:
    """Return the groups of inputs that are not known, and know them from now on."""
    found = sorted({number // GROUP for number in chosen} - known)
    known.update(found)
    return found


def _mapped(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor in a file that has no name any more, so that it cannot be left behind."""
    count = torch.Size(shape).numel()
    handle, name = tempfile.mkstemp(prefix="features-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            nbytes = count * dtype.itemsize
            if hasattr(os, "posix_fallocate"):  # a hole that cannot be filled later would end the process
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
        return torch.from_file(name, shared=True, size=count, dtype=dtype).view(shape)
    finally:
        with contextlib.suppress(PermissionError):  # Windows keeps it until the run's folder is cleared
            Path(name).unlink()
