"""Two methods on the same images, compared image by image."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evaluation.result import Evaluation
from hrbench.evaluation.rows import row_of
from hrbench.evaluation.sheet import Grid, Sheet
from hrbench.evidence import Evidence
from hrbench.metrics import DISJOINT
from hrbench.metrics.bootstrap import MIN_IMAGES, paired_difference
from hrbench.metrics.catalogue import METRICS, Key
from hrbench.metrics.missing import left_open
from hrbench.metrics.words import budget_text, counted
from hrbench.protocol import Protocol, load_protocol

_NOTHING = "there is nothing to compare"

_FEW = (
    f"Too few: an interval takes {MIN_IMAGES} images, or groups of them, with such defects, and as many good ones at "
    "equal false alarms."
)

__all__ = ["Comparison", "Measurable", "as_evaluation", "compare"]

_IMAGE = ["id", "label", "height", "width", "normal_pixels", "defect_pixels"]
_COMPONENT = ["image", "area", "top", "left", "bottom", "right"]


class Measurable(typing.Protocol):
    """A finished run, see :class:`hrbench.Run`."""

    def load_evidence(self, protocol: Protocol) -> Evidence:
        """Read the evidence that can be scored under `protocol`."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns; printed, it says which one is better by how much.

    Attributes
    ----------
    frame : DataFrame
        One row per metric, subset and limit: ``metric, subset, fpr_limit, a, b, difference, ci_low, ci_high,
        share_better, n, units``: both values, a minus b, its interval, and the share of the bootstrap draws in which a
        is better, ties counted one half; NaN where no interval can be given. `n` counts what the value rests on,
        `units` the images, or groups of them, that draws take or leave. `fpr_limit` is that of
        :attr:`Evaluation.frame`;
        whether higher or lower is better stands in :data:`hrbench.metrics.catalogue.CATALOGUE`.
    protocol : Protocol
    images, defects : int
    left_open : str
        What could not be compared for want of masks, defects or good images, in a sentence; "" if nothing.
    """

    frame: pd.DataFrame
    protocol: Protocol
    images: int
    defects: int
    left_open: str = ""

    def difference(self, metric: str, subset: str = "all", fpr_limit: float | None = None) -> float:
        """Return a minus b; the arguments are those of :meth:`Evaluation.value`."""
        return float(row_of(self.frame, self.protocol, metric, subset, fpr_limit)["difference"])

    def interval(self, metric: str, subset: str = "all", fpr_limit: float | None = None) -> tuple[float, float]:
        """Return the confidence interval of :meth:`difference`."""
        row = row_of(self.frame, self.protocol, metric, subset, fpr_limit)
        return float(row["ci_low"]), float(row["ci_high"])

    def __str__(self) -> str:
        return self._sheet().text()

    def __repr__(self) -> str:
        if not self._shown():
            return f"<Comparison on {counted(self.images, 'image')}: {_NOTHING}>"
        metric, subset, name = self._shown()[0]
        return f"<Comparison on {counted(self.images, 'image')}: {name}, {self._line(metric, subset)}>"

    def _repr_html_(self) -> str:
        return self._sheet().html()

    def _shown(self) -> list[tuple[str, str, str]]:
        """Return metric, subset and name of the rows that are printed."""
        rules = self.protocol.alarm
        budget, mean = budget_text(rules.headline), ", ".join(map(budget_text, rules.summary))
        fpr = f"{self.protocol.headline_fpr:g}"
        rows = [
            ("recall_matched", "all", f"recall at {budget} alarms per 100 good images"),
            *(("recall_matched", size, f"the same, of {size} defects") for size in DISJOINT),
            ("mean_recall", "all", f"mean recall at {mean}"),
            ("aupro", "all", f"AUPRO up to FPR {fpr}"),
            *(("aupro", size, f"the same, of {size} defects") for size in DISJOINT),
            ("rho", "all", "its robustness to size"),
            ("spro", "all", f"sPRO up to FPR {fpr}"),
            ("image_auroc", "all", "image ROC-AUC"),
        ]
        if not self.defects:
            rows = [
                ("image_auroc", "all", "image ROC-AUC"),
                ("called_matched", "all", f"defective images that alarm at {budget} alarms per 100 good images"),
                ("alarms", "all", "good images that alarm at the thresholds"),
                ("fpr", "all", "normal pixels that are predicted defective at the thresholds"),
            ]
        there = set(self.frame["metric"])
        return [row for row in rows if row[0] in there]

    def _sheet(self) -> Sheet:
        level = 100 * self.protocol.bootstrap.level
        rows, short = [], False
        for metric, subset, name in self._shown():
            row = row_of(self.frame, self.protocol, metric, subset, None)
            share = row["share_better"]
            cells = [_number(row["a"], METRICS[metric].number), _number(row["b"], METRICS[metric].number)]
            difference = _number(row["difference"], "+.3f")
            interval = f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"
            if math.isnan(row["ci_low"]):
                few = bool(row["units"] < MIN_IMAGES)
                interval = f"too few: {row['units']:.0f}" if few else "none can be given"
                short |= few
            better = "" if math.isnan(share) else f"{100 * share:.0f} %"
            rows.append([name, f"{row['n']:.0f}", *cells, difference, interval, better])
        defects = counted(self.defects, "defect")
        answer = f"{_NOTHING[:1].upper()}{_NOTHING[1:]}"
        if rows:
            metric, subset, name = self._shown()[0]
            answer = f"{name[:1].upper()}{name[1:]}: {self._line(metric, subset)}"
        return Sheet(
            answer=f"{answer}.",
            title=f"{counted(self.images, 'image')}{f', {defects}' * bool(self.defects)}, "
            f"protocol {self.protocol.name} (version {self.protocol.version}); both on the same draws of the images",
            grids=[Grid(("", "n", "a", "b", "a - b", f"{level:g} % interval", "a better in"), rows)] * bool(rows),
            notes=[_FEW] * short + [self.left_open] * bool(self.left_open),
        )

    def _line(self, metric: str, subset: str) -> str:
        row = row_of(self.frame, self.protocol, metric, subset, None)
        number, difference = METRICS[metric].number, METRICS[metric].sign * row["difference"]
        low, high = row["ci_low"], row["ci_high"]
        values = f"a {_number(row['a'], number)}, b {_number(row['b'], number)}"
        if math.isnan(difference):
            return f"{values}, which cannot be compared"
        if math.isnan(low):
            return f"{values}, no interval can be given"
        if low <= 0 <= high:
            return f"{values}, no difference shown ({low:+.3f} to {high:+.3f})"
        return f"{values}, {'a' if difference > 0 else 'b'} is better ({low:+.3f} to {high:+.3f})"


def _number(value: float, number: str) -> str:
    return "–" if math.isnan(value) else format(value, number)


def compare(
    a: Evaluation | Measurable, b: Evaluation | Measurable, *, protocol: str | Path | Protocol | None = None
) -> Comparison:
    """Compare two methods on the same images.

    Both are measured in each of the same draws of the images: what makes a draw hard is hard for both, so the interval
    of the difference is shorter than two intervals beside each other suggest.

    Parameters
    ----------
    a, b : Evaluation or Run
        From :func:`hrbench.evaluate` with the same masks in the same order, or finished runs on one category.
    protocol : str, Path or Protocol, optional
        What runs are measured under, ``native`` by default. Evaluations bring their own.

    Raises
    ------
    HrbenchError
        If protocols, images, masks or groups differ.

    Examples
    --------
    >>> import numpy as np, hrbench
    >>> rng = np.random.default_rng(0)
    >>> masks = [rng.random((32, 32)) > 0.99 for _ in range(20)] + [None] * 20
    >>> noise = [rng.normal(size=(32, 32)) for _ in masks]
    >>> clear, faint = ([n if m is None else n + k * m for n, m in zip(noise, masks)] for k in (6, 2))
    >>> result = hrbench.compare(hrbench.evaluate(clear, masks), hrbench.evaluate(faint, masks))
    >>> result.difference("aupro") > 0, result.interval("aupro")[0] > 0
    (True, True)
    """
    first, second = (as_evaluation(item, protocol) for item in (a, b))
    rules = first.protocol
    if rules.digest != second.protocol.digest:
        versions = (f"{p.name!r} (version {p.version})" for p in (rules, second.protocol))
        raise HrbenchError("a was measured under protocol {}, b under {}: expected the same rules".format(*versions))
    _require_same_images(first.evidence, second.evidence)
    keys = list(Key._fields)
    frame = paired_difference(first.replicates, second.replicates, level=rules.bootstrap.level)
    for name, item in (("a", first), ("b", second)):
        values = item.values[[*keys, "value"]].rename(columns={"value": name})
        frame = frame.merge(values, "left", on=keys, validate="one_to_one")
    frame["difference"] = frame["a"] - frame["b"]  # exact, where the draws share bins of scores
    frame = frame.merge(first.values[[*keys, "n"]], "left", on=keys, validate="one_to_one")
    units = first.replicates.keys.assign(units=first.replicates.units)
    frame = frame.merge(units, "left", on=keys, validate="one_to_one")
    frame = frame[[*keys, "a", "b", "difference", "ci_low", "ci_high", "share_better", "n", "units"]]
    evidence = first.evidence
    good, defective = (int((evidence.images["label"] == label).sum()) for label in (0, 1))
    missing = left_open(good, defective, len(evidence.unmasked))
    return Comparison(frame, rules, len(evidence.images), len(evidence.components), missing)


def as_evaluation(item: Evaluation | Measurable, protocol: str | Path | Protocol | None) -> Evaluation:
    """Return an evaluation as it is, and one of a finished run under `protocol`.

    Raises
    ------
    HrbenchError
        If `protocol` is not the one that an evaluation was made under.
    """
    if not isinstance(item, Evaluation):
        if not hasattr(item, "load_evidence"):
            raise HrbenchError(f"cannot compare {item!r}: expected what hrbench.evaluate returns, or a finished run")
        rules = load_protocol("native" if protocol is None else protocol)
        return Evaluation(item.load_evidence(rules), rules)
    asked = item.protocol if protocol is None else load_protocol(protocol)
    if asked.digest != item.protocol.digest:
        raise HrbenchError(
            f"protocol is {asked.name!r} (version {asked.version}), but an evaluation was made under "
            f"{item.protocol.name!r} (version {item.protocol.version}); evaluate its maps under the other one"
        )
    return item


def _require_same_images(a: Evidence, b: Evidence) -> None:
    """Raise the error that says in what the images differ."""
    ids = [part.images["id"].tolist() for part in (a, b)]
    if ids[0] != ids[1]:
        alone = next((name for name in (*ids[0], *ids[1]) if (name in ids[0]) != (name in ids[1])), None)
        hint = "" if alone is None else f": {alone} is only in {'a' if alone in ids[0] else 'b'}"
        counts = " and ".join(f"{len(names):,}" for names in ids)
        raise HrbenchError(f"a and b have other images ({counts}){hint}; expected the same")
    unlike = a.images.loc[(a.images[_IMAGE] != b.images[_IMAGE]).any(axis=1), "id"].tolist()
    boxes = [part.components[_COMPONENT] for part in (a, b)]
    if not unlike and not boxes[0].equals(boxes[1]):
        unlike = pd.concat(boxes).drop_duplicates(keep=False)["image"].tolist() or ["an image"]
    if unlike:
        raise HrbenchError(f"a and b have other masks ({unlike[0]}); expected the same")
    if a.images["group"].tolist() != b.images["group"].tolist():
        raise HrbenchError("a and b have other groups of images; expected the same")
