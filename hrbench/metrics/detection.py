"""Probability of detection: how large a defect must be to be found reliably.

Non-destructive testing's hit/miss analysis (MIL-HDBK-1823A, ASTM E2862): each defect component is found or not at the
operating threshold, and a logistic regression on ``x = ln(area)`` gives the probability of detection

    logit POD(a) = b0 + b1 ln a,        a_p = exp((logit p - b0) / b1).

`a90` is the area found 9 times in 10, `a90/95` its upper 95 % confidence limit. In small samples constructions of that
limit differ by factors, so each is given by name; the headline is the profile likelihood, beside it stands the
bootstrap over images, because components of one image share its fate and the profile does not know it. Where the
threshold is matched to a budget of false alarms the headline is the bootstrap, which sets it anew in every draw. The
fit is always Firth's penalised likelihood (Biometrika 80, 1993) unless maximum likelihood is asked for: it exists where
hits and misses are separated by size, and with 30 to 150 simulated flaws its a90/95 held the truth in 97 to 99 % of
cases, that of maximum likelihood in 91 to 95 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit
from scipy.stats import chi2, norm

from hrbench.evidence import Evidence
from hrbench.metrics.alarms import FalseAlarms, allowed, matched_limits
from hrbench.metrics.bootstrap import MIN_IMAGES, expanded_percentiles, image_weights
from hrbench.metrics.context import Context
from hrbench.metrics.logistic import Bools, Estimator, Floats, LogisticFit, fit_logistic, penalised_loss, size_at
from hrbench.metrics.operating import false_alarms, false_pixels
from hrbench.metrics.segmentation import AUTOMATIC, component_hits
from hrbench.protocol import Detectability

__all__ = [
    "Detection",
    "DetectionLimit",
    "bootstrap_sizes",
    "component_hits",
    "detection_at",
    "detections",
    "fit_detection",
    "reliable_size",
]

Construction = Literal["profile", "bootstrap", "wald", "delta"]

MIN_COMPONENTS = 40  # below these the result carries a caution
MIN_HITS = MIN_MISSES = 10
FLAT = "not reached (larger defects are not found more often)"
FEW_IMAGES = 30  # with 15 images the simulated coverage of a90's bootstrap interval was 87 %, with 60 it was 95 %


class DetectionLimit(NamedTuple):
    """An area in pixels, or why there is none.

    Attributes
    ----------
    area : float or None
        None if not reached.
    reason : str
        Why not, as it is printed: ``not reached (largest 4,982 px)``; empty if reached.
    estimate : float
        The formula's figure even where it lies beyond the largest component; infinite or NaN where it does not exist.
    """

    area: float | None
    reason: str
    estimate: float

    def __str__(self) -> str:
        return self.reason if self.area is None else f"{self.area:,.0f} px"


@dataclass(frozen=True, eq=False)
class Detection:
    """The hit/miss analysis of one method at one threshold.

    Attributes
    ----------
    areas, hits : ndarray, (K,)
        What was analysed.
    pod : Detectability
        Its `probability` and `level` of 0.9 and 0.95 make a90 and a90/95; the attributes keep these names for others.
    a50, a90 : DetectionLimit
    upper : dict of str to DetectionLimit
        One-sided upper confidence limit of a90 by construction: ``profile`` (headline), ``bootstrap`` over images,
        ``wald`` (where the lower Wald band of the curve reaches `probability`), ``delta`` (too optimistic in small
        samples). No bootstrap without weights.
    cautions : tuple of str
        What to print beside the figures.
    interval : dict of str to (float, float)
        Two-sided interval of a90 at `level`, for ``profile`` and ``bootstrap``; infinite ends are open.
    estimator : {'firth', 'ml', 'none'}
        Likelihood that was used; 'none' where there is no fit, with the reason in `a90`.
    intercept, slope : float
    covariance : ndarray, (2, 2)
    false_per_pixel : float
        Share of normal test pixels that are predicted defective at the threshold.
    alarms : FalseAlarms
        Good test images that alarm at the threshold.
    threshold : float
    budget : float or None
        Of false alarms, where the threshold is matched to it on the good test images; None at the automatic one.
    """

    areas: Floats
    hits: Bools
    pod: Detectability
    a50: DetectionLimit
    a90: DetectionLimit
    upper: dict[Construction, DetectionLimit]
    cautions: tuple[str, ...]
    interval: dict[Construction, tuple[float, float]] = field(default_factory=dict)
    estimator: Literal["firth", "ml", "none"] = "none"
    intercept: float = math.nan
    slope: float = math.nan
    covariance: Floats = field(default_factory=lambda: np.full((2, 2), np.nan))
    false_per_pixel: float = math.nan
    alarms: FalseAlarms = field(default_factory=lambda: FalseAlarms(0, 0))
    threshold: float = math.nan
    budget: float | None = None

    @property
    def a90_95(self) -> DetectionLimit:
        """The headline: upper limit of a90 by profile likelihood; at a budget of false alarms by bootstrap.

        The likelihood does not know that a matched threshold is from a sample, too: simulated coverage of its interval
        was 71 to 79 % there, that of the bootstrap 90 to 93 % (``tools/simulate_coverage.py --alarms``).
        """
        return self.upper["profile" if self.budget is None or "bootstrap" not in self.upper else "bootstrap"]

    def curve(self, points: int = 200) -> pd.DataFrame:
        """Return the POD curve over the observed areas: ``area, pod, low, high``; empty without a fit.

        The band is Wald's for the linear predictor, each edge one-sided at `level`.
        """
        if self.estimator == "none":
            return pd.DataFrame({name: np.zeros(0) for name in ("area", "pod", "low", "high")})
        x = np.linspace(math.log(self.areas.min()), math.log(self.areas.max()), points)
        eta, half = self.intercept + self.slope * x, float(norm.ppf(self.pod.level)) * self._error(x)
        return pd.DataFrame({"area": np.exp(x), "pod": expit(eta), "low": expit(eta - half), "high": expit(eta + half)})

    def _error(self, x: Floats) -> Floats:
        design = np.stack([np.ones_like(x), x], axis=1)
        result: Floats = np.sqrt(np.einsum("ki,ij,kj->k", design, self.covariance, design))
        return result


def fit_detection(
    areas: npt.ArrayLike,
    hits: npt.ArrayLike,
    pod: Detectability = Detectability(),  # noqa: B008 - frozen
    *,
    weights: Floats | None = None,
    drawn_hits: Bools | None = None,
    units: int = 0,
    estimator: Estimator = "firth",
) -> Detection:
    """Analyse hits and misses of defects of known areas.

    Parameters
    ----------
    areas : array-like, (K,)
        Positive.
    hits : array-like of bool, (K,)
    pod : Detectability
        Its `share` has been applied already.
    weights : ndarray, (draws, K), optional
        How often bootstrap replicates draw each component.
    drawn_hits : ndarray of bool, (draws, K), optional
        What is hit in each replicate, where the threshold is set anew; by default `hits` in all.
    units : int
        Images (groups) that `weights` were drawn from.
    estimator : {'firth', 'ml'}
        See :func:`fit_logistic`.

    Examples
    --------
    >>> sizes = [4, 9, 15, 27, 49, 60, 90, 110, 164, 245, 366, 667]
    >>> print(fit_detection(sizes, [0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1]).a90)
    218 px
    """
    a, y = np.asarray(areas, dtype=np.float64), np.asarray(hits, dtype=bool)
    cautions = _cautions(y)
    problem = _problem(a, y)
    if problem:
        none = DetectionLimit(None, problem, math.nan)
        return Detection(a, y, pod, none, none, {"profile": none, "wald": none, "delta": none}, cautions)
    x, probability, level = np.log(a), pod.probability, pod.level
    fit = fit_logistic(x, y, estimator=estimator)
    firth = estimator == "firth" or bool(fit.separated[0])
    if fit.separated[0]:
        cautions = (*cautions, "hits and misses are separated by size")
    upper: dict[Construction, float] = {
        "profile": profile_limit(x, y, fit, probability, 2 * level - 1, 1, firth),
        "wald": wald_limit(fit, probability, level),
        "delta": delta_limit(fit, probability, level),
    }
    low, high = (profile_limit(x, y, fit, probability, level, end, firth) for end in (-1, 1))
    interval: dict[Construction, tuple[float, float]] = {"profile": (low, high)}
    if weights is not None:
        sizes = bootstrap_sizes(x, y if drawn_hits is None else drawn_hits, weights, probability, estimator)
        upper["bootstrap"] = expanded_percentiles(sizes, units, 2 * level - 1)[1]
        interval["bootstrap"] = expanded_percentiles(sizes, units, level)
    largest, slope = float(a.max()), float(fit.slope[0])
    return Detection(
        a,
        y,
        pod,
        a50=_limit(float(size_at(fit, 0.5)[0]), largest, slope),
        a90=_limit(float(size_at(fit, probability)[0]), largest, slope),
        upper={name: _limit(value, largest, slope) for name, value in upper.items()},
        cautions=cautions,
        interval={name: (_area(low), _area(high)) for name, (low, high) in interval.items()},
        estimator="firth" if firth else "ml",
        intercept=float(fit.intercept[0]),
        slope=slope,
        covariance=fit.covariance[0],
    )


def detections(context: Context, *, resample: bool = True) -> list[Detection]:
    """Analyse the probability of detection at the automatic threshold and at each budget, where there are any.

    `resample` is that of :func:`detection_at`. Without any defect there are none.
    """
    if not context.areas.size:
        return []
    points = (detection_at(context, budget, resample=resample) for budget in (None, *context.matched))
    return [point for point in points if point is not None]


def detection_at(context: Context, budget: float | None, *, resample: bool = True) -> Detection | None:
    """Analyse the probability of detection at a budget of false alarms.

    Parameters
    ----------
    context : Context
    budget : float or None
        Share of the good test images that may alarm, in [0, 1), whether or not it is one of the protocol's; None stands
        for the automatic threshold.
    resample : bool
        Whether to bootstrap over images, if there are enough. At a budget each replicate sets the threshold anew on the
        good images that it draws.

    Returns
    -------
    Detection or None
        None where there is no such operating point: no automatic threshold, or no good image.
    """
    evidence, pod = context.evidence, context.protocol.pod
    weights, units = context.once(_weights) if resample else (None, 0)
    if budget is None:
        hits, overlap = context.hits[AUTOMATIC], context.overlaps[AUTOMATIC]
        if context.threshold is None or hits is None or overlap is None:
            return None
        result = _analyse(evidence, hits, pod, weights, units)
        alarms = false_alarms(context, AUTOMATIC, math.nan) or FalseAlarms(0, 0)
        per_pixel = float(overlap.fpr().high)
        return replace(result, threshold=context.threshold, alarms=alarms, false_per_pixel=per_pixel)
    point = context.matched_at(budget)
    if point is None:
        return None
    good, drawn_hits = context.labels == 0, None
    if np.unique(good.nonzero()[0] if evidence.groups is None else evidence.groups[good]).size < MIN_IMAGES:
        weights = None  # too few for a draw of them to say how the threshold varies
    if weights is not None:
        limits = matched_limits(context.alarms[good], [budget], weights[:, good])
        some = limits[:, 0] < np.inf  # groups may hold all good images, and a replicate draw none of them
        weights, drawn_hits = weights[some], context.critical > limits[some]
    result = _analyse(evidence, context.critical > point.limit, pod, weights, units, drawn_hits)
    cautions, may = result.cautions, allowed(point.alarms.good, budget)
    if point.alarms.count < may:
        why = "" if evidence.lossless else " in bins of 2**-13 of a score, which exact evidence tells apart"
        cautions = (*cautions, f"{point.alarms.count} good images alarm where {may} may: the next ones are tied{why}")
    return replace(
        result,
        cautions=cautions,
        threshold=point.threshold,
        budget=budget,
        alarms=point.alarms,
        false_per_pixel=float(false_pixels(context, budget).value),
    )


def _weights(context: Context) -> tuple[Floats | None, int]:
    """Return how often each image is drawn, (draws, n), or None; and how many images (groups) have components."""
    evidence, rules = context.evidence, context.protocol.bootstrap
    owner, groups = evidence.component_images, evidence.groups
    units = np.unique(owner if groups is None else groups[owner]).size
    if not rules.draws or units < MIN_IMAGES:
        return None, units
    return image_weights(evidence.images["id"].tolist(), context.labels, rules, groups), units


def _analyse(
    evidence: Evidence,
    hits: Bools,
    pod: Detectability,
    weights: Floats | None,
    units: int,
    drawn_hits: Bools | None = None,
) -> Detection:
    of_components = None if weights is None else weights[:, evidence.component_images]
    result = fit_detection(evidence.sizes, hits, pod, weights=of_components, drawn_hits=drawn_hits, units=units)
    if weights is None or units >= FEW_IMAGES:
        return result
    what = "images" if evidence.groups is None else "groups"
    caution = f"{units} {what} with components: the bootstrap interval is too short"
    return replace(result, cautions=(*result.cautions, caution))


def reliable_size(areas: npt.ArrayLike, hits: npt.ArrayLike, probability: float) -> DetectionLimit:
    """Return the area found with a probability, as :func:`fit_detection` does, but without confidence limits: quickly.

    Examples
    --------
    >>> print(reliable_size([4, 9, 15, 27, 49, 60], [0, 0, 1, 0, 1, 1], 0.5))
    19 px
    """
    a, y = np.asarray(areas, dtype=np.float64), np.asarray(hits, dtype=bool)
    problem = _problem(a, y)
    if problem:
        return DetectionLimit(None, problem, math.nan)
    fit = fit_logistic(np.log(a), y)
    return _limit(float(size_at(fit, probability)[0]), float(a.max()), float(fit.slope[0]))


def profile_limit(
    x: Floats, hits: Bools, fit: LogisticFit, probability: float, level: float, end: Literal[-1, 1], firth: bool
) -> float:
    """Return an end of the two-sided profile-likelihood interval of ``ln a_p`` at `level`; infinite if it is open.

    It holds every size that a likelihood-ratio test does not reject: ``2 (l(fit) - max l given a_p) <= chi2_1(level)``.
    With Firth's estimate the likelihood is the penalised one, ``l + ln det(information) / 2``.
    """
    slope = float(fit.slope[0])
    if not slope > 0:
        return end * math.inf
    ceiling = -penalised_loss(x, hits, float(fit.intercept[0]), slope, firth)
    critical, target = float(chi2.ppf(level, 1)), float(logit(probability))

    def excess(size: float) -> float:
        def loss(b1: float) -> float:
            return penalised_loss(x, hits, target - b1 * size, b1, firth)

        best = minimize_scalar(loss, bracket=(0.5 * slope, slope), tol=1e-5).fun  # quadratic there: f to 1e-10
        return float(2 * (ceiling + best) - critical)

    inner = float(size_at(fit, probability)[0])
    step = 0.25
    while (outer := inner + end * step) and excess(outer) < 0:
        step *= 2
        if step > 100:  # e**100 px: as good as the flat model, which the data do not reject
            return end * math.inf
    return float(brentq(excess, min(inner, outer), max(inner, outer), xtol=1e-9))


def wald_limit(fit: LogisticFit, probability: float, level: float) -> float:
    """Return ln of the smallest size above a_p whose one-sided lower Wald bound reaches `probability`.

    The bound ``b0 + b1 x - z sqrt(v00 + 2 v01 x + v11 x^2) = logit p`` is a quadratic equation in x.
    """
    z2 = float(norm.ppf(level)) ** 2
    (v00, v01), (_, v11) = fit.covariance[0]
    offset, slope = float(fit.intercept[0]) - float(logit(probability)), float(fit.slope[0])
    roots = np.roots([slope**2 - z2 * v11, 2 * (offset * slope - z2 * v01), offset**2 - z2 * v00])
    above = roots.real[(np.abs(roots.imag) < 1e-12) & (offset + slope * roots.real > 0)]
    return float(above.min()) if slope > 0 and above.size else math.inf


def delta_limit(fit: LogisticFit, probability: float, level: float) -> float:
    """Return ln of the upper limit of a_p by the delta method: a normal interval for ``ln a_p``."""
    slope, centre = float(fit.slope[0]), float(size_at(fit, probability)[0])
    if not slope > 0:
        return math.inf
    gradient = np.array([1.0, centre]) / slope
    return centre + float(norm.ppf(level)) * math.sqrt(gradient @ fit.covariance[0] @ gradient)


def bootstrap_sizes(
    x: Floats, hits: Bools, weights: Floats, probability: float, estimator: Estimator = "firth"
) -> Floats:
    """Return ``ln a_p`` of each replicate, (draws,): infinite where not reached, -infinite where all is hit.

    Hits are those of all replicates, (K,), or of each, (draws, K).
    """
    # Components of equal size and outcome are one observation with their joint weight.
    pairs, kind = np.unique(x if hits.ndim > 1 else np.stack([x, hits]), axis=-1, return_inverse=True)
    joint = np.zeros((x.size, pairs.shape[-1]))
    joint[np.arange(x.size), kind.ravel()] = 1.0
    if hits.ndim > 1:
        sizes, outcomes = np.tile(pairs, 2), np.arange(2 * pairs.size) < pairs.size
    else:
        sizes, outcomes = pairs[0], pairs[1] > 0
    result = np.empty(len(weights))
    for start in range(0, len(weights), 100):
        part = slice(start, start + 100)
        if hits.ndim > 1:
            hit = (weights[part] * hits[part]) @ joint
            drawn = np.concatenate([hit, weights[part] @ joint - hit], axis=1)
        else:
            drawn = weights[part] @ joint
        size = size_at(fit_logistic(sizes, outcomes, drawn, estimator=estimator), probability)
        size = np.where(np.isnan(size), np.inf, size)  # one size only, or no convergence: not shown, so not reached
        size = np.where(drawn[:, outcomes].sum(axis=1) == 0, np.inf, size)
        result[part] = np.where(drawn[:, ~outcomes].sum(axis=1) == 0, -np.inf, size)
    return result


def _problem(areas: Floats, hits: Bools) -> str:
    """Return why no curve can be fitted, or nothing."""
    if not hits.size:
        return "not estimable (no components)"
    if hits.all():
        return f"not estimable (all {hits.size} components hit, smallest {areas.min():,.0f} px)"
    if not hits.any():
        return f"not reached (no component hit, largest {areas.max():,.0f} px)"
    if areas.min() == areas.max():
        return f"not estimable (all components have {areas[0]:,.0f} px)"
    return ""


def _cautions(hits: Bools) -> tuple[str, ...]:
    number, hit = hits.size, int(hits.sum())
    texts = []
    if number < MIN_COMPONENTS:
        texts.append(f"{number} components, fewer than {MIN_COMPONENTS}")
    if hit < MIN_HITS:
        texts.append(f"{hit} hits, fewer than {MIN_HITS}")
    if number - hit < MIN_MISSES:
        texts.append(f"{number - hit} misses, fewer than {MIN_MISSES}")
    return tuple(texts)


def _area(size: float) -> float:
    return math.exp(size) if size < 700 else math.inf


def _limit(size: float, largest: float, slope: float) -> DetectionLimit:
    """Turn ln(area) into a limit: beyond the largest component nothing was seen, so nothing is claimed."""
    area = _area(size)
    if not slope > 0:
        return DetectionLimit(None, FLAT, math.inf)
    if area > largest:
        return DetectionLimit(None, f"not reached (largest {largest:,.0f} px)", area)
    return DetectionLimit(area, "", area)
