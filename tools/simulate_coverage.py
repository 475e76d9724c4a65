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

from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.metrics import bootstrap, detection
from hrbench.metrics.sizes import size_subsets
from hrbench.protocol import Bootstrap, Detectability, Protocol, load_protocol

Floats = npt.NDArray[np.float64]

SIDE, CELL = 96, 24  # an image of 96 x 96 px has 16 cells, each with at most one square defect
SHARE, THRESHOLD = 0.1, 2.3
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
        collector = EvidenceCollector(EvidenceSpec("top:0.001"))
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


def detection_truth(model: Model, threshold: float, images: int = 40_000) -> float:
    """Return a90 fitted to a very large sample: what estimates from small ones converge to."""
    rng = np.random.default_rng(2**41)
    areas, hits = [], []
    for _ in range(images):
        shift = model.level * rng.normal() + model.effect * rng.normal()
        for side in model.components(rng):
            area = side * side
            predicted = int(rng.binomial(area, ndtr(model.mean(side) + shift - threshold)))
            areas.append(area)
            hits.append(predicted >= max(1, SHARE * area))
    fit = detection.fit_logistic(np.log(areas), np.array(hits))
    return math.exp(float(detection.size_at(fit, 0.9)[0]))


def flaws(rng: np.random.Generator, number: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Draw independent flaws of known POD: logit POD = -5.3 + 1.5 ln a, so that a90 is 148 px."""
    areas = np.exp(rng.uniform(math.log(4), math.log(1500), number))
    return areas, rng.random(number) < expit(-5.3 + 1.5 * np.log(areas))


def coverage(model: Model, protocol: Protocol, draws: int, replicates: int) -> Iterator[tuple[str, str, bool]]:
    """Yield (quantity, construction, whether the interval holds the truth) over all draws."""
    true = truth(model, protocol)
    a90 = detection_truth(model, THRESHOLD)
    known_a90 = math.exp((float(logit(0.9)) + 5.3) / 1.5)
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        evidence, rules = model.evidence(rng), Bootstrap(replicates, seed=draw)
        frame = bootstrap.intervals(evidence, dataclasses.replace(protocol, bootstrap=rules), threshold=THRESHOLD)
        rows = frame.set_index(["metric", "subset", frame["fpr_limit"].fillna(1.0)])
        for key, value in true.items():
            low, high = rows.loc[key, ["ci_low", "ci_high"]]
            name = f"{key[0]} {key[1]}" + (f" @{key[2]:g}" if key[2] < 1 else "")
            if low == low:  # withheld where a bin has too few images
                yield name, "logit, Student", low <= value <= high
        found = detection.detection(evidence, THRESHOLD, Detectability(SHARE), rules)
        areas, hits = flaws(rng, 60)
        for name, value, result in (
            (f"a90, {model.good + model.defective} images", a90, found),
            ("a90, 60 independent flaws", known_a90, detection.fit_detection(areas, hits)),
            ("the same, maximum likelihood", known_a90, detection.fit_detection(areas, hits, estimator="ml")),
        ):
            for construction, (low, high) in result.interval.items():
                yield name, f"{construction}, two-sided", low <= value <= high
            for construction, limit in result.upper.items():
                yield name, f"{construction}, a90/95", value <= limit.estimate


def main() -> None:
    """Print the coverage table and the time of the bootstrap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, help="test sets (default: 200)")
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap replicates of each (default: 1000)")
    parser.add_argument("--good", type=int, default=40, help="good images of a test set (default: 40)")
    parser.add_argument("--defective", type=int, default=60, help="defective images (default: 60)")
    options = parser.parse_args()
    model, protocol = Model(options.good, options.defective), load_protocol("native")

    timed = Model(50, 50).evidence(np.random.default_rng(0))
    timings = []
    for _ in range(3):
        start = time.perf_counter()
        frame = bootstrap.intervals(timed, protocol, threshold=THRESHOLD)
        timings.append(time.perf_counter() - start)
    print(f"1000 replicates over 100 images, {len(frame)} metrics, one core: {min(timings):.2f} s (best of 3)\n")

    held: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for quantity, construction, holds in coverage(model, protocol, options.draws, options.replicates):
        held[quantity, construction].append(bool(holds))
    print(f"Coverage of 95 % intervals over {options.draws} test sets of {model.good} + {model.defective} images\n")
    print("| quantity | construction | sets | coverage | standard error |\n|---|---|---|---|---|")
    for (quantity, construction), flags in held.items():
        share = float(np.mean(flags))
        error = math.sqrt(max(share * (1 - share), 0.95 * 0.05) / len(flags))
        print(f"| {quantity} | {construction} | {len(flags)} | {share:.1%} | {error:.1%} |")


if __name__ == "__main__":
    main()
