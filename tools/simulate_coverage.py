"""Measure how often the intervals hold the truth, and how long the bootstrap takes.

Test sets are drawn from a known model: normal pixels N(m, 1) with a small random level m per image, defect pixels
N(mu(area) + m + e, 1) where mu rises with ln(area) and e is a random effect of the image, which ties the components of
one image together. The true value is that of a very large sample, with false-positive rates in closed form.

    python tools/simulate_coverage.py --draws 200
    python tools/simulate_coverage.py --draws 200 --good 60 --defective 40 --alarms

The second form is about operating points. Defects are stronger there, for at few false alarms weak ones are not found
at all; the truth is what a very large sample finds at the threshold at which the budgeted share of all good images
alarms. It also keeps the promise of the conformal rule to account: held-out and good test images of one distribution,
and how often the test images' interval contradicts it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the stated time is that of one core

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtr
from scipy.stats import norm

from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.metrics import alarms, bootstrap, detection
from hrbench.metrics.context import Context
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
    lift: float = 0.5  # mean of the pixels of a defect of 1 px

    def components(self, rng: np.random.Generator) -> list[int]:
        """Return the sides of one image's defects."""
        number = min(1 + rng.poisson(2), (SIDE // CELL) ** 2)
        return [int(side) for side in np.exp(rng.uniform(math.log(2), math.log(21), number))]

    def mean(self, side: int) -> float:
        """Return mu(area)."""
        return self.lift + 0.5 * math.log(side)

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


def alarm_quantiles(model: Model, budgets: Sequence[float], images: int = 200_000) -> Floats:
    """Return the thresholds at which the budgeted shares of all good images alarm, from the maximum's closed form."""
    rng = np.random.default_rng(2**42)
    levels = model.level * rng.normal(size=images)
    highest = levels + norm.ppf(rng.random(images) ** (1 / SIDE**2))
    return np.quantile(highest, 1 - np.array(budgets))


def alarms_truth(model: Model, budgets: Sequence[float], images: int = 20_000) -> dict[tuple[str, float], float]:
    """Return recall and a90 of a very large sample at each budget."""
    rng = np.random.default_rng(2**43)
    areas, critical = [], []
    for _ in range(images):
        shift = model.level * rng.normal() + model.effect * rng.normal()
        for side in model.components(rng):
            area = side * side
            number = max(1, math.ceil(SHARE * area - 1e-9))
            pixels = rng.normal(model.mean(side) + shift, 1, area)
            areas.append(area)
            critical.append(np.partition(pixels, area - number)[area - number])
    x, scores, result = np.log(areas), np.array(critical), {}
    for budget, threshold in zip(budgets, alarm_quantiles(model, budgets), strict=True):
        hits = scores >= threshold
        result["recall", budget] = float(hits.mean())
        result["a90", budget] = math.exp(float(detection.size_at(detection.fit_logistic(x, hits), 0.9)[0]))
    return result


def alarm_coverage(model: Model, protocol: Protocol, draws: int, replicates: int) -> Iterator[tuple[str, str, bool]]:
    """Yield (quantity, construction, whether the interval holds the truth) at budgets of false alarms."""
    budgets = protocol.alarm.budgets
    true = alarms_truth(model, budgets)
    print({key: round(value, 3) for key, value in true.items()}, "\n")
    for draw in range(draws):
        evidence = model.evidence(np.random.default_rng(draw))
        rules = dataclasses.replace(protocol, bootstrap=Bootstrap(replicates, seed=draw))
        context = Context(evidence, rules)
        frame = bootstrap.drawn_replicates(context).intervals()
        rows = frame.set_index(["metric", "subset", "fpr_limit"]).sort_index()
        for result in detection.detections(context):
            if result.budget is None:
                continue
            low, high = rows.loc[("recall_matched", "all", result.budget)]
            name = f"at {100 * result.budget:g} alarms per 100"
            if low == low:
                yield f"recall {name}", "logit, Student", low <= true["recall", result.budget] <= high
            for construction, (least, most) in result.interval.items():
                yield f"a90 {name}", f"{construction}, two-sided", least <= true["a90", result.budget] <= most


def promises(model: Model, budget: float, sets: int = 20_000) -> None:
    """Print the alarm rate behind promises, and how often good test images of the same kind contradict one."""
    rng = np.random.default_rng(2**44)

    def highest(*shape: int) -> Floats:
        levels = model.level * rng.normal(size=shape)
        return levels + norm.ppf(rng.random(shape) ** (1 / SIDE**2))

    print(f"The promise of at most {budget:g}: alarms among {model.good} good test images, {sets:,} sets\n")
    print("| held out | mean rate | 95 % of sets below | called drift |\n|---|---|---|---|")
    for held_out in (19, 30, 50, 100):
        rank = alarms.conformal_rank(held_out, budget)
        assert rank is not None
        limit = np.sort(highest(sets, held_out), axis=1)[:, rank - 1]
        counts = (highest(sets, model.good) > limit[:, None]).sum(axis=1)
        drift = np.array([alarms.drifted(alarms.FalseAlarms(k, model.good), held_out, budget)
                          for k in range(model.good + 1)])  # fmt: skip
        rates = counts / model.good
        quantile = np.quantile(rates, 0.95)
        print(f"| {held_out} | {rates.mean():.4f} | {quantile:.3f} | {drift[counts].mean():.1%} |")
    print()


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
        fixed = dataclasses.replace(protocol, bootstrap=rules, pod=Detectability(SHARE))
        found = detection.detection_at(Context(evidence, fixed, THRESHOLD), None)
        assert found is not None
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


def print_table(results: Iterable[tuple[str, str, bool]], model: Model, draws: int) -> None:
    """Print how often each construction held the truth."""
    held: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for quantity, construction, holds in results:
        held[quantity, construction].append(bool(holds))
    print(f"Coverage of 95 % intervals over {draws} test sets of {model.good} + {model.defective} images\n")
    print("| quantity | construction | sets | coverage | standard error |\n|---|---|---|---|---|")
    for (quantity, construction), flags in held.items():
        share = float(np.mean(flags))
        error = math.sqrt(max(share * (1 - share), 0.95 * 0.05) / len(flags))
        print(f"| {quantity} | {construction} | {len(flags)} | {share:.1%} | {error:.1%} |")


def main() -> None:
    """Print the coverage table and the time of the bootstrap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, help="test sets (default: 200)")
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap replicates of each (default: 1000)")
    parser.add_argument("--good", type=int, default=40, help="good images of a test set (default: 40)")
    parser.add_argument("--defective", type=int, default=60, help="defective images (default: 60)")
    parser.add_argument("--alarms", action="store_true", help="at budgets of false alarms, and for promises")
    options = parser.parse_args()
    protocol = load_protocol("native")
    if options.alarms:
        model = Model(options.good, options.defective, lift=2.6)
        promises(model, protocol.threshold.alarms)
        print_table(alarm_coverage(model, protocol, options.draws, options.replicates), model, options.draws)
        return
    model = Model(options.good, options.defective)

    timed = Model(50, 50).evidence(np.random.default_rng(0))
    timings = []
    for _ in range(3):
        start = time.perf_counter()
        frame = bootstrap.intervals(timed, protocol, threshold=THRESHOLD)
        timings.append(time.perf_counter() - start)
    print(f"1000 replicates over 100 images, {len(frame)} metrics, one core: {min(timings):.2f} s (best of 3)\n")

    print_table(coverage(model, protocol, options.draws, options.replicates), model, options.draws)


if __name__ == "__main__":
    main()
