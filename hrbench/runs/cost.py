"""What a job costs: time per image from its evidence, and what each of its stages took."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from hrbench._util.files import atomic
from hrbench._util.received import read_json
from hrbench._util.types import Mismatch, conform
from hrbench.errors import HrbenchError

__all__ = ["FitRecord", "Spent", "spent_together", "timing"]

_LARGEST = 1 << 20  # bytes of a file of these


@dataclasses.dataclass(frozen=True)
class _Written:
    """What is kept as JSON."""

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what :meth:`write` wrote; an error if it is missing or damaged."""
        try:
            read: Self = conform(read_json(path, _LARGEST), cls)
        except Mismatch as wrong:
            raise HrbenchError(f"{path}: {wrong.path or 'all of it'} {wrong.problem}") from None
        return read


@dataclasses.dataclass(frozen=True)
class Spent(_Written):
    """What one stage of a job took, wherever it was done.

    Attributes
    ----------
    began, ended : float
        By the clock of the host, seconds since 1970.
    device : str
        Its name for people.
    workers : int
        The most workers that shared the device meanwhile, this one included.
    peaks : mapping
        See :meth:`hrbench.engine.device.MemoryPeaks.record`.
    earlier : float
        Seconds of interrupted attempts that this one has gone on from.
    """

    began: float
    ended: float
    device: str
    workers: int
    peaks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    earlier: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it took, attempts before included."""
        return self.earlier + max(0.0, self.ended - self.began)


@dataclasses.dataclass(frozen=True)
class FitRecord(_Written):
    """What a fit took, and what it has left of what: where ``run.json`` is lost, its weights can be used again.

    Attributes
    ----------
    run : str
        Name of the folder, which stands for all that a fit depends on but for the images.
    train_sha256, weights_sha256 : str
        Of the training images, and of the file.
    seconds : float
    spent : Spent
    """

    run: str
    train_sha256: str
    weights_sha256: str
    seconds: float
    spent: Spent


def spent_together(stages: Sequence[Spent]) -> dict[str, Any]:
    """Return what the stages of a job took together.

    Returns
    -------
    dict
        ``wall_seconds``, in which at least one stage was worked on; ``stage_seconds``, the sum of all stages;
        ``workers_on_device``, the most that shared one; ``devices``, how many differ in their names.
    """
    wall, until = sum(stage.earlier for stage in stages), float("-inf")
    for began, ended in sorted((stage.began, stage.ended) for stage in stages):
        wall += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return {
        "wall_seconds": wall,
        "stage_seconds": sum(stage.seconds for stage in stages),
        "workers_on_device": max((stage.workers for stage in stages), default=1),
        "devices": max(1, len({stage.device for stage in stages})),
    }


def timing(images: pd.DataFrame, pixels: Mapping[str, int]) -> dict[str, Any]:
    """Return what prediction took, from the table of images of the evidence.

    The seconds of an image are the method's: its share of the forward passes, merging and ``finish``; not decoding, not
    evidence. No image is left out as a warm-up: held-out normal images go the same way before the first test image
    does, in every process.

    Parameters
    ----------
    images : DataFrame
        Columns id and seconds, one row per image; see :class:`hrbench.evidence.evidence.Evidence`.
    pixels : mapping of str to int
        Native pixels of the images by id: evidence of a low-resolution protocol does not know them.

    Returns
    -------
    dict
        ``timed_images``, ``predict_seconds``, ``megapixels_per_second``, ``ms_median`` and ``ms_p95``
        per image. Empty where no image has a time, as those whose maps another tool made.
    """
    timed = images[images["seconds"].notna()]
    if timed.empty:
        return {}
    seconds = timed["seconds"].to_numpy()
    native = sum(pixels[name] for name in timed["id"])
    return {
        "timed_images": len(timed),
        "predict_seconds": float(seconds.sum()),
        "megapixels_per_second": native / 1e6 / float(seconds.sum()),
        "ms_median": float(1e3 * np.median(seconds)),
        "ms_p95": float(1e3 * np.quantile(seconds, 0.95)),
    }
