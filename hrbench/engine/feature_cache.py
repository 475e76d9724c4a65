"""Features of the training inputs that never change during a fit: computed once, kept in memory or in a file.

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hrbench.engine.views import to_unit
from hrbench.errors import HrbenchError
from hrbench.method import Normals

__all__ = ["Features"]

log = logging.getLogger("hrbench")

MEMORY_BYTES = 1 << 30  # of features that are kept in memory
DISK_BYTES = 32 << 30  # of features that are kept in a file; beyond, nothing is kept
FREE_BYTES = 2 << 30  # of the disk that stay free
GROUP = 8  # inputs whose features are computed together


class Features:
    """The features of normals, in the order of the normals' own batches: :class:`hrbench.method.Batches`.

    Kept in memory up to ``MEMORY_BYTES``, else in a file in `scratch` up to ``DISK_BYTES`` that goes with this object
    (on Linux and macOS also if the process is killed), else not at all. Nothing is kept for a stream of at most one
    epoch, which uses nothing twice.

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
        if steps * batch_size > len(self) and self._opened():
            for chosen in self.normals.order(batch_size, steps=steps, seed=seed, start=start):
                yield self._kept(chosen)
        else:
            for batch in self.normals.batches(batch_size, steps=steps, seed=seed, start=start):
                yield self._computed(batch)

    def _opened(self) -> bool:
        """Make room for all features when the first group tells how large they are; tell if there is."""
        if self._keep and self._stores is None:
            first = self._computed(self.normals.take(range(min(GROUP, len(self)))))
            self._stores = self._room(first)
            self._keep = self._stores is not None
            if self._keep:
                self._put(0, first)
        return self._keep

    def _room(self, first: list[Tensor]) -> list[Tensor] | None:
        shapes = [(len(self), *feature.shape[1:]) for feature in first]
        needed = sum(len(self) * feature[0].nbytes for feature in first)
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
        assert self._stores is not None
        for group in sorted({number // GROUP for number in chosen} - self._known):
            numbers = range(group * GROUP, min((group + 1) * GROUP, len(self)))
            self._put(group, self._computed(self.normals.take(numbers)))
        rows = torch.tensor(chosen)
        return [store[rows].to(self._device, non_blocking=True) for store in self._stores]

    def _put(self, group: int, features: list[Tensor]) -> None:
        assert self._stores is not None
        start = group * GROUP
        for store, feature in zip(self._stores, features, strict=True):
            if feature.shape[1:] != store.shape[1:]:
                raise HrbenchError(
                    f"features of input {start} have the shape {tuple(feature.shape[1:])}, "
                    f"expected {tuple(store.shape[1:])} as those before"
                )
            store[start : start + GROUP] = feature.cpu()
        self._known.add(group)

    def _computed(self, batch: Tensor) -> list[Tensor]:
        features = list(self._extract(to_unit(batch, self._device)))
        if any(feature.requires_grad for feature in features):
            raise HrbenchError(
                "features of parts that learn cannot be kept; expected frozen ones (requires_grad=False)"
            )
        return features


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
