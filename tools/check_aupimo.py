"""Compare AUPIMO with the implementation of its authors in anomalib, image by image.

    pip install anomalib
    python tools/check_aupimo.py
    python tools/check_aupimo.py --decimals 2
    python tools/check_aupimo.py --side 512 --thresholds 300000 --raw

anomalib evaluates thresholds at equal distances of the score, the limits of the false-positive rate at the nearest of
them, and the area by trapezoids over its logarithm. By default the scores are first replaced by what leaves every exact
AUPIMO as it is: those below the tail of good pixels by one score, the others by the number of the good score that they
reach, ties and defect pixels between two good scores included. Then every threshold that matters is among anomalib's,
and what is left are the two limits and the trapezoids; the last column of the table compares between anomalib's limits.
``--raw`` compares on the scores as they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hrbench.evidence import EvidenceCollector, EvidenceSpec
from hrbench.metrics import aupimo_images, aupimo_problem
from hrbench.metrics.aupimo import FPR_RANGE

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Limits = tuple[float, float]


def generate(images: int, side: int, seed: int) -> tuple[Floats, Bools]:
    """Return scores and masks, (N, side, side): every second image is good, the others have discs that stand out."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    scores, masks = np.empty((images, side, side), np.float32), np.zeros((images, side, side), dtype=bool)
    for index in range(images):
        field = ndimage.gaussian_filter(rng.standard_normal((side, side)), 2)
        field = field / field.std() + 0.05 * rng.standard_normal((side, side))
        if index % 2:
            for _ in range(rng.integers(1, 4)):
                y, x = rng.integers(0, side, 2)
                radius = np.exp(rng.uniform(np.log(2), np.log(side / 10)))
                disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
                masks[index] |= disc
                field[disc] += rng.uniform(1.5, 5.5)
        scores[index] = np.exp(0.5 * field)
    return scores, masks


def ranked(scores: Floats, masks: Bools) -> tuple[Floats, int]:
    """Return scores that have the same exact AUPIMO and lie at equal distances in the tail, and how many there are."""
    good = scores[~masks.any(axis=(1, 2))]
    levels = np.unique(good)
    levels = levels[levels > np.quantile(good, 1 - 3 * FPR_RANGE[1])]
    # A defect pixel between two good scores is above the lower one: even numbers are good scores, odd ones between.
    number = 2 * np.searchsorted(levels, scores, side="right") - np.isin(scores, levels)
    return number.astype(np.float32), 2 * levels.size


def of_hrbench(scores: Floats, masks: Bools, limits: Limits = FPR_RANGE) -> npt.NDArray[np.float64]:
    """Return AUPIMO of each image, NaN of good ones: the area between `limits`, divided by the width of the range."""
    collector = EvidenceCollector(EvidenceSpec(exact=True))
    for index, (image, mask) in enumerate(zip(scores, masks, strict=True)):
        collector.update(f"{index:04d}", image, mask)
    evidence = collector.result()
    if problem := aupimo_problem(evidence, limits):
        raise SystemExit(f"check_aupimo: {problem}")
    values: npt.NDArray[np.float64] = aupimo_images(evidence, limits).value
    return values * np.log(limits[1] / limits[0]) / np.log(FPR_RANGE[1] / FPR_RANGE[0])


def of_anomalib(scores: Floats, masks: Bools, thresholds: int) -> tuple[npt.NDArray[np.float64], Limits]:
    """Return the same by anomalib at so many thresholds, and the limits that it finds among them."""
    import torch
    from anomalib.metrics.pimo.functional import aupimo_scores

    _, rates, *_, found, points = aupimo_scores(
        torch.from_numpy(scores), torch.from_numpy(masks), thresholds, fpr_bounds=FPR_RANGE, force=True
    )
    rates = rates.numpy()
    low, high = (float(rates[np.argmin(np.abs(rates - limit))]) for limit in FPR_RANGE)
    print(f"anomalib: {thresholds:,} thresholds, {points:,} of them from {low:.4g} to {high:.4g}")
    values: npt.NDArray[np.float64] = found.numpy().astype(np.float64)
    return values, (low, high)


def main() -> None:
    """Print the table of both; exit status 1 without anomalib, or if they differ by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decimals", type=int, help="round the scores, for good and defect pixels to be tied")
    parser.add_argument("--raw", action="store_true", help="leave the scores as they are")
    parser.add_argument("--thresholds", type=int, default=100_000, help="with --raw (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="between equal limits (default: %(default)s)")
    args = parser.parse_args()
    if importlib.util.find_spec("anomalib") is None:
        raise SystemExit("check_aupimo: anomalib is not installed: pip install anomalib")
    scores, masks = generate(args.images, args.side, args.seed)
    if args.decimals is not None:
        scores = scores.round(args.decimals)
    ours, thresholds = of_hrbench(scores, masks), args.thresholds
    if not args.raw:
        scores, steps = ranked(scores, masks)
        assert np.allclose(of_hrbench(scores, masks), ours, atol=1e-12, equal_nan=True)
        thresholds = steps + 1
    theirs, limits = of_anomalib(scores, masks, thresholds)
    between = of_hrbench(scores, masks, limits)
    print(f"{'image':>5}  {'defect px':>9}  {'ours':>9}  {'anomalib':>9}  {'difference':>10}  {'equal limits':>12}")
    for index in np.flatnonzero(~np.isnan(ours)):
        difference, equal = ours[index] - theirs[index], between[index] - theirs[index]
        row = f"{index:5}  {masks[index].sum():9,}  {ours[index]:9.6f}  {theirs[index]:9.6f}"
        print(f"{row}  {difference:10.6f}  {equal:12.7f}")
    defective = ~np.isnan(ours)
    means = f"{ours[defective].mean():.6f} and {theirs[defective].mean():.6f}"
    largest, equal = (float(np.abs(found - theirs)[defective].max()) for found in (ours, between))
    print(f"means {means}, largest difference {largest:.6f}, between equal limits {equal:.2g} (<= {args.tolerance:g})")
    sys.exit(int(not equal <= args.tolerance))


if __name__ == "__main__":
    main()
