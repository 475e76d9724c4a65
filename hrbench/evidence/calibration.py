"""Pixels of normal images that were held out, from which thresholds are set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from hrbench._util.tables import Columns
from hrbench.errors import HrbenchError
from hrbench.evidence.files import NORMALS, arrays, histogram, histogram_columns, read, write
from hrbench.evidence.histograms import KEY_SHIFT, Histogram, Scores
from hrbench.evidence.predicted import PredictedMap
from hrbench.imaging.resample import bilinear

__all__ = ["Calibration", "NormalTally"]

# An earlier version wrote no row for each image, but one for each bin of all of them.
_COLUMNS: Columns = {name: dataclasses.replace(column, lists=None) for name, column in NORMALS.items()}


@dataclasses.dataclass(frozen=True)
class NormalTally:
    """What is left of the map of one held-out normal image.

    Attributes
    ----------
    pixels : Histogram
    mean, std : float
        Over all pixels.
    """

    pixels: Histogram
    mean: float
    std: float

    @staticmethod
    def of(scores: Scores, side: int | None = None) -> NormalTally:
        """Measure a map in the host's memory, (H, W), natively or shrunk to a square."""
        values = scores.astype(np.float32, copy=False)
        values = values if side is None else bilinear(values, (side, side))
        mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        return NormalTally(Histogram.of(values, KEY_SHIFT), mean, std)

    @staticmethod
    def of_predicted(predicted: PredictedMap, sides: Sequence[int | None]) -> list[NormalTally]:
        """Measure a map for each side, natively where it lies."""

        def measured(side: int | None) -> NormalTally:
            if side is not None or not predicted.elsewhere:
                return NormalTally.of(predicted.scores(), side)
            count = predicted.counted(np.zeros(0, np.int64), shift=KEY_SHIFT, moments=True)
            assert count.moments is not None
            return NormalTally(Histogram.counted(count.keys, count.counts, KEY_SHIFT), *count.moments)

        return [measured(side) for side in sides]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Pixels of held-out normal training images, from which the automatic threshold is set.

    Attributes
    ----------
    normals : tuple of Histogram
        Each image's pixels; of calibrations that earlier versions wrote, those of all images in one.
    images : int
    mean, std : float
        Over all pixels.
    """

    normals: tuple[Histogram, ...]
    images: int
    mean: float
    std: float

    @cached_property
    def scores(self) -> Histogram:
        """The pixels of all images."""
        return self.normals[0].pooled(self.normals[1:])

    @property
    def pooled(self) -> bool:
        """Whether an earlier version wrote it, so that no image can be told from another."""
        return len(self.normals) < self.images

    @staticmethod
    def of(maps: Iterable[Scores], sides: Sequence[int | None] = (None,)) -> list[Calibration]:
        """Measure normal maps in one pass, natively or shrunk to squares, one result per side; none is an error."""
        return Calibration.joined([[NormalTally.of(scores, side) for side in sides] for scores in maps])

    @staticmethod
    def joined(images: Sequence[Sequence[NormalTally]]) -> list[Calibration]:
        """Return one calibration for each of the tallies that all images have; no image is an error."""
        if not images:
            raise HrbenchError("no held-out normal maps: a threshold cannot be set")
        return [Calibration._join(parts) for parts in zip(*images, strict=True)]

    @staticmethod
    def _join(parts: Sequence[NormalTally]) -> Calibration:
        normals = tuple(part.pixels for part in parts)
        weights = np.array([normal.total for normal in normals], dtype=np.float64)
        weights /= weights.sum()
        means, stds = np.array([(part.mean, part.std) for part in parts]).T
        mean = float(weights @ means)
        variance = float(weights @ (stds**2 + (means - mean) ** 2))  # within and between images
        return Calibration(normals, len(parts), mean, math.sqrt(variance))

    def save(self, path: Path, *, smallest: bool = False) -> None:
        """Write ``calibration.parquet``: a row for each of `normals`."""
        table = pa.table(histogram_columns(self.normals))
        facts = {"shift": self.normals[0].shift, "images": self.images, "mean": self.mean, "std": self.std}
        write(table, facts, path, smallest=smallest)

    @staticmethod
    def load(path: Path) -> Calibration:
        """Read what :meth:`save` wrote, or the one row that it once was."""
        table, facts = read(path, _COLUMNS, _Facts)
        if not len(table) or "normal_counts" not in table.column_names:
            raise HrbenchError(f"{path}: no counts of pixels, expected some")
        columns = [table[name] for name in _COLUMNS]
        once = not pa.types.is_large_list(columns[0].type)
        keys, counts = ([column.to_numpy()] if once else arrays(column) for column in columns)
        if len(keys) != len(counts):
            raise HrbenchError(f"{path}: not readable as hrbench evidence: keys without their counts")
        normals = tuple(histogram(*pair, facts.shift, path) for pair in zip(keys, counts, strict=True))
        return Calibration(normals, facts.images, facts.mean, facts.std)


@dataclasses.dataclass(frozen=True)
class _Facts:
    shift: int
    images: int
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.shift != KEY_SHIFT or self.images < 1 or not math.isfinite(self.mean) or not self.std >= 0:
            raise HrbenchError(f"{self}")
