"""Sampling uncertainty of every metric: a stratified bootstrap over images, as matrix products.

The images are the sample: pixels and components of one image share its fate. A replicate draws as many good and
as many defective images as there are, with replacement; where images belong together it draws their groups. That is
the same as giving each image a weight, how often it was drawn; and every metric is a function of weighted sums over
images. So no data are resampled: with weights W (draws, images) and one matrix of per-image counts over common bins, a
product gives all replicates at once.

Only the bins are an approximation. They follow the pooled normal scores, a thousand of them inside the top 1 %, so a
replicate of AUPRO@0.01 is off by 1e-4 at most in practice; with few distinct normal scores there is no error.
Size-bin edges and the automatic threshold are those of the full sample in every replicate. Thresholds at equal false
alarms are set anew in every replicate, on the good images drawn, and oracle thresholds among the edges of the bins.
Where a protocol samples the thresholds of the PRO curve (a compatibility protocol), AUPRO and the robustness are left
without replicates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit, ndtr, stdtrit
from scipy.stats import rankdata

from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence
from hrbench.metrics.catalogue import METRICS, Key, Metric, rows
from hrbench.metrics.context import Context
from hrbench.metrics.segmentation import MATCHED
from hrbench.metrics.spro import carrying_regions
from hrbench.metrics.weighted import Draw
from hrbench.protocol import Bootstrap, Protocol

__all__ = [
    "MIN_COMPONENTS",
    "MIN_IMAGES",
    "REPLICATE_COLUMNS",
    "Replicates",
    "average",
    "drawn_replicates",
    "expanded_percentiles",
    "image_weights",
    "intervals",
    "logit_interval",
    "paired_difference",
    "rank_intervals",
    "replicates",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MIN_IMAGES = 10  # images (or groups) with components in a bin, and good ones at equal false alarms, for an interval
MIN_COMPONENTS = 3

_CHUNK = 64  # replicates at a time: their arrays over all bins stay in the cache
_KEY_COLUMNS = list(Key._fields)
REPLICATE_COLUMNS = (*Key._fields, "estimate", "units", "components", "sample", "values")
"""Columns of :meth:`Replicates.table`."""


def image_weights(
    ids: Sequence[str], labels: npt.ArrayLike, rules: Bootstrap, groups: npt.ArrayLike | None = None
) -> Floats:
    """Return how often each replicate draws each image, (draws, images).

    Parameters
    ----------
    ids : sequence of str, (n,)
        With the labels and the seed they determine the weights: two methods on the same images get the same.
    labels : array-like of int, (n,)
        0 good, 1 defective: each is drawn from separately and keeps its number.
    rules : Bootstrap
    groups : array-like, (n,), optional
        Images of one group (photographs of one part) are drawn together. A group with any defective image is
        drawn among the defective ones.
    """
    kinds = np.asarray(labels, dtype=np.int64)
    unit_of, unit_kinds = _units(kinds, groups)
    text = "\n".join(f"{label} {name}" for name, label in zip(ids, kinds, strict=True))
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    rng = np.random.default_rng([rules.seed, digest])
    weights = np.zeros((rules.draws, unit_kinds.size))
    for kind in np.unique(unit_kinds):
        members = np.flatnonzero(unit_kinds == kind)
        weights[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), rules.draws)
    return weights[:, unit_of]


def _units(labels: Ints, groups: npt.ArrayLike | None) -> tuple[Ints, Ints]:
    """Return the resampling unit of each image, and whether each unit is defective."""
    if groups is None:
        return np.arange(labels.size), labels
    names, unit_of = np.unique(np.asarray(groups), return_inverse=True)
    kinds = np.zeros(names.size, np.int64)
    np.maximum.at(kinds, unit_of, labels)
    return unit_of, kinds


@dataclass(frozen=True)
class Replicates:
    """Replicates of every metric of one method on one set of images.

    Attributes
    ----------
    keys : DataFrame, (R rows)
        Columns ``metric, subset, fpr_limit``, rows in the order of :func:`hrbench.metrics.compute`.
    estimate : ndarray, (R,)
        Value of the full sample, from the same bins as the replicates.
    values : ndarray, (draws, R)
    units : ndarray of int, (R,)
        Images (groups) that carry the row, see :attr:`hrbench.metrics.catalogue.Metric.carriers`.
    components : ndarray of int, (R,)
        Defect components that carry the row.
    sample : str
        Digest of images, labels, groups and seed: where it is equal, replicates are paired.
    """

    keys: pd.DataFrame
    estimate: Floats
    values: Floats
    units: Ints
    components: Ints
    sample: str

    @cached_property
    def reliable(self) -> Bools:
        """Whether the row rests on enough images and components for an interval."""
        enough: Bools = (self.units >= MIN_IMAGES) & (self.components >= MIN_COMPONENTS)
        return enough

    def intervals(self, level: float = Bootstrap.level) -> pd.DataFrame:
        """Return ``metric, subset, fpr_limit, ci_low, ci_high``, see :func:`intervals`."""
        ends = np.full((len(self.keys), 2), np.nan)
        for row in np.flatnonzero(self.reliable):
            ends[row] = logit_interval(self.values[:, row], self.estimate[row], int(self.units[row]), level)
        return self.keys.assign(ci_low=ends[:, 0], ci_high=ends[:, 1])

    def only(self, rows: npt.ArrayLike) -> Replicates:
        """Return some of the rows: their numbers, or a truth value for each."""
        chosen = np.arange(len(self.keys))[np.asarray(rows)]
        return Replicates(
            self.keys.iloc[chosen].reset_index(drop=True),
            self.estimate[chosen],
            self.values[:, chosen],
            self.units[chosen],
            self.components[chosen],
            self.sample,
        )

    def table(self) -> pd.DataFrame:
        """Return a table, one line per row, that :meth:`of_table` reads back."""
        facts = {"estimate": self.estimate, "units": self.units, "components": self.components}
        return self.keys.assign(**facts, sample=self.sample, values=list(self.values.T))

    @staticmethod
    def of_table(table: pd.DataFrame) -> Replicates:
        """Read what :meth:`table` gave."""
        columns = {name: table[name].to_numpy() for name in ("estimate", "units", "components")}
        values = np.stack([np.asarray(part, dtype=np.float64) for part in table["values"]], axis=1)
        return Replicates(
            table[_KEY_COLUMNS].reset_index(drop=True), **columns, values=values, sample=table["sample"].iloc[0]
        )

    def row(self, metric: str, subset: str = "all", fpr_limit: float | None = None) -> int:
        """Return the number of one row; an unknown one is an error."""
        limit = self.keys["fpr_limit"].isna() if fpr_limit is None else self.keys["fpr_limit"] == fpr_limit
        places = np.flatnonzero((self.keys["metric"] == metric) & (self.keys["subset"] == subset) & limit)
        if places.size != 1:
            raise HrbenchError(
                f"metric {metric!r}, subset {subset!r}, fpr_limit {fpr_limit}: no such row of replicates"
            )
        return int(places[0])


def logit_interval(values: Floats, estimate: float, units: int, level: float = Bootstrap.level) -> tuple[float, float]:
    """Return a confidence interval for a metric between 0 and 1 from its replicates (draws,).

    ``logit v -+ t s / (v (1 - v))``: the bootstrap's standard error s, carried to the logit scale by the delta method,
    so that the interval stays inside (0, 1) and is longer on the inner side; t is Student's with n - 1 degrees of
    freedom, n the resampled units, and s is multiplied by ``sqrt(n / (n - 1))``, which a bootstrap variance lacks. Of
    the constructions tried (percentile, expanded percentile, BCa, normal on either scale) this one's simulated coverage
    with 30 and 100 images was nearest to the level, under the model of ``tools/simulate_coverage.py``.

    Where all replicates agree the sample shows no spread (a perfect score, say). The bootstrap then knows nothing, and
    an interval of no width would be a false claim: both ends are NaN.
    """
    spread = _spread(values)
    if not spread > 0 or units < 2:
        return math.nan, math.nan
    if not 0 < estimate < 1:
        return expanded_percentiles(values, units, level)
    half = float(-stdtrit(units - 1, (1 - level) / 2)) * spread * math.sqrt(units / (units - 1))
    low, high = expit(logit(estimate) + np.array([-half, half]) / (estimate * (1 - estimate)))
    return float(low), float(high)


def expanded_percentiles(values: Floats, units: int, level: float = Bootstrap.level) -> tuple[float, float]:
    """Return a confidence interval for a quantity of any range, even infinite, from its replicates (draws,).

    The percentile interval makes no use of n - 1 and of Student's t. Reading the percentiles at
    ``Phi(-t sqrt(n / (n - 1)))`` makes up for both (Hesterberg, The American Statistician 69, 2015).
    """
    ordered = np.sort(values[~np.isnan(values)])
    if ordered.size < 2 or ordered[0] == ordered[-1] or units < 2:
        return math.nan, math.nan
    tail = float(ndtr(stdtrit(units - 1, (1 - level) / 2) * math.sqrt(units / (units - 1))))
    low, part = divmod(tail * (ordered.size - 1), 1)
    place = int(low)

    def between(outer: float, inner: float) -> float:
        return float(outer + part * (inner - outer) if math.isfinite(outer) and math.isfinite(inner) else outer)

    return between(ordered[place], ordered[place + 1]), between(ordered[-1 - place], ordered[-2 - place])


def _spread(values: Floats) -> float:
    """Return the standard deviation of the replicates in which the metric exists."""
    defined = values[~np.isnan(values)]
    return float(defined.std()) if defined.size > 1 and np.ptp(defined) > 1e-12 else 0.0


def replicates(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> Replicates:
    """Compute every metric of :func:`hrbench.metrics.compute` in every bootstrap replicate of the protocol.

    Parameters
    ----------
    evidence : Evidence
        Of one category. Its images are drawn in groups if it has any, see :attr:`hrbench.evidence.Evidence.groups`.
    protocol : Protocol
    threshold : float, optional
        Operating threshold, as in :func:`hrbench.metrics.compute`. It is held fixed.

    Raises
    ------
    HrbenchError
        As :class:`hrbench.metrics.context.Context`.
    """
    return drawn_replicates(Context(evidence, protocol, threshold))


def drawn_replicates(context: Context, only: Collection[str | Key] | None = None) -> Replicates:
    """Return what :func:`replicates` does, of some metrics or rows or of all."""
    evidence, protocol = context.evidence, context.protocol
    ids, rules = evidence.images["id"].tolist(), protocol.bootstrap
    drawn = image_weights(ids, context.labels, rules, evidence.groups)
    weights = np.concatenate([np.ones((1, context.labels.size)), drawn])
    table = [row for row in rows(context) if only is None or row[0].key in only or row[1] in only]
    values = np.concatenate([_values(context, table, weights[i : i + _CHUNK]) for i in range(0, len(weights), _CHUNK)])
    unit_of, unit_kinds = _units(context.labels, evidence.groups)
    carriers = {
        name: np.unique(unit_of[evidence.component_images[members]]).size for name, members in context.subsets.items()
    }
    components = {name: int(members.sum()) for name, members in context.subsets.items()}
    defective = {name: np.unique(unit_of[members]).size for name, members in context.image_subsets.items()}
    masked = defective | {"all": carriers["all"]}  # shrinking may lose a defect
    known, unmasked = evidence.known, len(evidence.unmasked)
    good, with_mask = (
        np.unique(unit_of[members]).size for members in (context.labels == 0, (context.labels == 1) & known)
    )

    def fewest(metric: Metric, key: Key, of: Mapping[str, int]) -> int:
        return min(of[name] for name in (metric.across.names(protocol.size_bins) if metric.across else [key.subset]))

    def units(metric: Metric, key: Key) -> int:
        if metric.at == MATCHED and good < MIN_IMAGES:
            return good  # too few for a draw of them to say how the threshold varies
        if metric.carriers == "components":
            return fewest(metric, key, carriers)
        if metric.carriers == "regions":
            return min(np.unique(unit_of[owners]).size for owners in carrying_regions(context, key.subset))
        if metric.carriers == "images":
            return np.unique(unit_of[known]).size
        if metric.carriers == "groups":
            return int(np.bincount(unit_kinds, minlength=2).min())
        if metric.carriers == "masked images":
            return masked[key.subset]
        if not context.areas.size and 0 in (good, defective["all"]):
            return max(good, defective["all"])
        return min(good, with_mask if metric.masks and key.subset == "all" else defective[key.subset])

    def defects(metric: Metric, key: Key) -> int:
        """Count the defects that carry a row: one at least where the mask is unknown, and good images need none."""
        if metric.carriers == "regions":
            return min(owners.size for owners in carrying_regions(context, key.subset))
        if metric.masks or key.subset != "all":
            return fewest(metric, key, components)
        return components["all"] + unmasked or MIN_COMPONENTS

    sample = repr((rules.seed, rules.draws, ids, context.labels.tolist(), unit_of.tolist()))
    return Replicates(
        keys=pd.DataFrame([key for _, key in table], columns=_KEY_COLUMNS),
        estimate=values[0],
        values=values[1:],
        units=np.array([units(*row) for row in table]),
        components=np.array([defects(*row) for row in table]),
        sample=hashlib.sha256(sample.encode()).hexdigest(),
    )


def _values(context: Context, table: Sequence[tuple[Metric, Key]], weights: Floats) -> Floats:
    """Return the values (B, rows) of weights (B, images)."""
    draw = Draw(context, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([metric.weighted(draw, key.subset, key.fpr_limit) for metric, key in table], axis=1)


def intervals(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> pd.DataFrame:
    """Return a confidence interval for every row of :func:`hrbench.metrics.compute`, at the protocol's level.

    Columns ``metric, subset, fpr_limit, ci_low, ci_high``. NaN where fewer than ten images (groups) have components
    in the size bin, or it holds fewer than three components, or all replicates agree. The construction is that of
    :func:`logit_interval`; the parameters are those of :func:`replicates`.
    """
    return replicates(evidence, protocol, threshold=threshold).intervals(protocol.bootstrap.level)


def average(parts: Sequence[Replicates]) -> Replicates:
    """Average inside each replicate: over the categories of a dataset, or over the training seeds of one category.

    A category without the row (no such defects) does not take part in it. `units` and `components` become their mean
    over the parts that do: the rule for few images asks whether they have enough on average.

    Raises
    ------
    HrbenchError
        If the parts have different rows or numbers of draws.
    """
    first = parts[0]
    for part in parts:
        if not part.keys.equals(first.keys) or part.values.shape != first.values.shape:
            raise HrbenchError("replicates of different protocols or numbers of draws cannot be averaged")
    estimates = np.stack([part.estimate for part in parts])
    present = ~np.isnan(estimates)
    number = present.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = sum(np.where(has_row, part.values, 0.0) for has_row, part in zip(present, parts, strict=True)) / number
        estimate = np.where(present, estimates, 0.0).sum(axis=0) / number

    def mean(counts: Sequence[Ints]) -> Ints:
        result: Ints = np.where(present, np.stack(counts), 0).sum(axis=0) // np.maximum(number, 1)
        return result

    # The seeds of one category share their images: how many seeds there are does not matter to pairing.
    sample = hashlib.sha256("".join(dict.fromkeys(part.sample for part in parts)).encode()).hexdigest()
    units, components = mean([part.units for part in parts]), mean([part.components for part in parts])
    return Replicates(first.keys, estimate, values, units, components, sample)


def paired_difference(a: Replicates, b: Replicates, *, level: float = Bootstrap.level) -> pd.DataFrame:
    """Compare two methods on the same images, with the same weights in each replicate.

    Returns
    -------
    DataFrame
        Columns ``metric, subset, fpr_limit, difference, ci_low, ci_high, share_better``: a minus b, its interval, and
        the share of replicates in which a is better, ties counted one half. Better is what the catalogue says. Both
        are NaN by the rules of :func:`intervals`. Rows that only one of them has are left out.

    Raises
    ------
    HrbenchError
        If images, labels, groups, seed or draws differ.
    """
    _require_paired([a, b])
    both = a.keys.assign(i=np.arange(len(a.keys))).merge(b.keys.assign(j=np.arange(len(b.keys))), on=_KEY_COLUMNS)
    i, j = both.pop("i").to_numpy(), both.pop("j").to_numpy()
    difference = Replicates(
        keys=both,
        estimate=a.estimate[i] - b.estimate[j],
        values=a.values[:, i] - b.values[:, j],
        units=np.minimum(a.units[i], b.units[j]),
        components=np.minimum(a.components[i], b.components[j]),
        sample=a.sample,
    )
    sign = np.array([METRICS[metric].sign for metric in both["metric"]])
    wins = pd.DataFrame((1 + np.sign(sign * difference.values)) / 2).mean().to_numpy()  # leaves NaN out
    ends = np.full((len(both), 2), np.nan)
    for row in np.flatnonzero(difference.reliable):
        ends[row] = expanded_percentiles(difference.values[:, row], int(difference.units[row]), level)
    return both.assign(
        difference=difference.estimate,
        ci_low=ends[:, 0],
        ci_high=ends[:, 1],
        share_better=np.where(difference.reliable, wins, np.nan),
    )


def rank_intervals(
    methods: Mapping[str, Replicates],
    metric: str,
    subset: str = "all",
    fpr_limit: float | None = None,
    *,
    level: float = Bootstrap.level,
) -> pd.DataFrame:
    """Rank methods on the same images by one metric in every replicate.

    Parameters
    ----------
    methods : Mapping of str to Replicates
        For a leaderboard over several categories, first :func:`average` each method's replicates over them.
    metric, subset, fpr_limit
        The row to rank by.
    level : float

    Returns
    -------
    DataFrame
        One row per method, best first: ``method, value, ci_low, ci_high, rank, rank_low, rank_high, share_first``.
        Equal values share the better rank. `rank_low` and `rank_high` enclose the method's rank in `level` of the
        replicates; they are NaN where the metric has no reliable interval.
    """
    names, parts = list(methods), list(methods.values())
    _require_paired(parts)
    rows = [part.row(metric, subset, fpr_limit) for part in parts]
    sign = METRICS[metric].sign
    value = np.array([part.estimate[row] for part, row in zip(parts, rows, strict=True)])
    draws = np.stack([part.values[:, row] for part, row in zip(parts, rows, strict=True)], axis=1)
    ends = np.array([part.intervals(level).iloc[row, -2:] for part, row in zip(parts, rows, strict=True)], dtype=float)
    ranks = rankdata(-sign * draws[~np.isnan(draws).any(axis=1)], method="min", axis=1)
    low, high, first = np.full((3, len(names)), np.nan)
    if len(ranks) and all(part.reliable[row] for part, row in zip(parts, rows, strict=True)):
        low = np.quantile(ranks, (1 - level) / 2, axis=0, method="lower")
        high = np.quantile(ranks, (1 + level) / 2, axis=0, method="higher")
        first = (ranks == 1).mean(axis=0)
    table = pd.DataFrame(
        {
            "method": names,
            "value": value,
            "ci_low": ends[:, 0],
            "ci_high": ends[:, 1],
            "rank": rankdata(-sign * value, method="min", nan_policy="omit"),
            "rank_low": low,
            "rank_high": high,
            "share_first": first,
        }
    )
    return table.sort_values("rank", kind="stable", ignore_index=True)


def _require_paired(parts: Sequence[Replicates]) -> None:
    if len({(part.sample, len(part.values)) for part in parts}) != 1:
        raise HrbenchError(
            "methods can be compared on the same images only, with the same labels, groups, seed and draws"
        )
