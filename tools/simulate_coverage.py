"""Measure how often the intervals hold the truth, and how long the bootstrap takes.

Test sets are drawn from a known model: normal pixels N(m, 1) with a small random level m per image, defect pixels
N(mu(area) + m + e, 1) where mu rises with ln(area) and e is a random effect of the image, which ties the components of
one image together. The true value is that of a very large sample, with false-positive rates in closed form.

    python tools/simulate_coverage.py --draws 200
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the stated time is that of one core

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtr

from hrbench.evidence import Evidence, EvidenceCollector
from hrbench.metrics import bootstrap
from hrbench.metrics.curves import partial_area
from hrbench.metrics.sizes import size_subsets
from hrbench.protocol import ImageScoreRule, Protocol, load_protocol

Floats = npt.NDArray[np.float64]

SIDE, CELL = 96, 24  # an image of 96 x 96 px has 16 cells, each with at most one square defect
LIMITS = (0.30, 0.05, 0.01)
REPORTED = [("aupro", "all", limit) for limit in LIMITS]
REPORTED += [("aupro", "tiny", 0.05), ("aupro", "d<8", 0.05), ("pixel_auroc", "all", 1.0)]


@dataclasses.dataclass(frozen=True)
class Model:
    """What test sets are drawn from; areas are squares of sides 2 to 20 px, uniform in ln(side)."""

    good: int = 40
    defective: int = 60
    level: float = 0.15  # standard deviation of an image's level
    effect: float = 0.5  # standard deviation of an image's effect on its defects

    def components(self, rng: np.random.Generator) -> list[int]:
        """Return the sides of one image's defects."""
        number = min(1 + rng.poisson(2), (SIDE // CELL) ** 2)
        return [int(side) for side in np.exp(rng.uniform(math.log(2), math.log(21), number))]

    @staticmethod
    def mean(side: int) -> float:
        """Return mu(area)."""
        return 0.5 + 0.5 * math.log(side)

    def image(self, rng: np.random.Generator, defective: bool) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Draw one map and its mask."""
        scores = rng.normal(self.level * rng.normal(), 1, (SIDE, SIDE))
        mask = np.zeros(scores.shape, bool)
        if defective:
            effect = self.effect * rng.normal()
            sides = self.components(rng)
            for cell, side in zip(rng.permutation((SIDE // CELL) ** 2), sides, strict=False):
                y, x = divmod(int(cell), SIDE // CELL)
                place = np.s_[y * CELL + 1 : y * CELL + 1 + side, x * CELL + 1 : x * CELL + 1 + side]
                mask[place] = True
                scores[place] += self.mean(side) + effect
        return scores, mask

    def evidence(self, rng: np.random.Generator) -> Evidence:
        """Draw one test set."""
        collector = EvidenceCollector(ImageScoreRule("top:0.001"))
        for index in range(self.good + self.defective):
            scores, mask = self.image(rng, index >= self.good)
            collector.update(f"{index:04d}", scores.astype(np.float32), mask)
        return collector.result()


def truth(model: Model, protocol: Protocol, images: int = 40_000) -> dict[tuple[str, str, float], float]:
    """Return the true values of `REPORTED`."""
    rng = np.random.default_rng(2**40)
    sides, scores = [], []
    for _ in range(images):
        shift = model.level * rng.normal() + model.effect * rng.normal()
        for side in model.components(rng):
            sides.append(side)
            scores.append(rng.normal(model.mean(side) + shift, 1, side * side))
    areas = np.array(sides) ** 2
    fpr = ndtr(-np.concatenate(scores) / math.hypot(1, model.level))
    starts = np.cumsum(areas) - areas
    subsets = size_subsets(areas, protocol.size_bins)
    result = {("pixel_auroc", "all", 1.0): float(1 - fpr.mean())}
    for limit in LIMITS:
        own = np.add.reduceat(np.maximum(limit - fpr, 0) / limit, starts) / areas
        result |= {("aupro", name, limit): float(own[kept].mean()) for name, kept in subsets.items() if kept.any()}
    return {key: result[key] for key in REPORTED}
