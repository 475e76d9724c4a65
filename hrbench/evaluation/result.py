"""What :func:`hrbench.evaluate` returns."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evaluation.rows import row_of
from hrbench.evaluation.sheet import Text
from hrbench.evaluation.summary import summary_of
from hrbench.evidence import Evidence
from hrbench.metrics.alarms import allowed, images_needed
from hrbench.metrics.bootstrap import Replicates, drawn_replicates
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.context import Context
from hrbench.metrics.detection import Detection, detection_at
from hrbench.metrics.measurement import limit_rows, with_intervals
from hrbench.metrics.missing import left_open
from hrbench.metrics.table import component_rows, image_rows, metric_rows
from hrbench.metrics.words import alarms_text, counted, detection_limit_text
from hrbench.protocol import Alarms, Protocol, load_protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Evaluation"]

_CURVES = 4  # that one panel shows


class Evaluation:
    """All that a protocol says of one category: values at once, intervals when something first needs them.

    That takes a second or two for a hundred images; the results are kept.

    Parameters
    ----------
    evidence : Evidence
        From :func:`hrbench.evaluate`, or of a finished run (``run.evidence``).
    protocol : str, Path or Protocol
    threshold : float, optional
        Operating threshold; by default the protocol's rule applied to held-out normal images.

    Raises
    ------
    HrbenchError
        If the masks cover all images wholly, or the evidence was collected for other protocols.
    """

    def __init__(
        self, evidence: Evidence, protocol: str | Path | Protocol = "native", *, threshold: float | None = None
    ) -> None:
        self.evidence = evidence
        self.protocol = load_protocol(protocol)
        self._context = Context(evidence, self.protocol, threshold)
        self._given = threshold is not None
        self._values = metric_rows(self._context)
        self._detections: dict[float | None, Detection | None] = {}

    @property
    def values(self) -> pd.DataFrame:
        """The rows of `frame` without intervals and detection limits, at once: see :func:`hrbench.metrics.compute`."""
        return self._values

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per metric, subset and limit: ``metric, subset, fpr_limit, value, error_bound, n, ci_low, ci_high``.

        The limit is a share of normal pixels or, for metrics at equal false alarms (``..._matched``), of good images.
        Rows and intervals are those that a run records, see :class:`hrbench.metrics.measurement.Measured`.
        """
        drawn = self.replicates if self.protocol.bootstrap.draws else None
        return with_intervals(self._values, self._context, drawn, self._found())

    @cached_property
    def components(self) -> pd.DataFrame:
        """One row per defect component, see :func:`hrbench.metrics.component_table`.

        ``image`` is the image's position in what was evaluated, zero-padded.
        """
        return component_rows(self._context)

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row per image: label, image score, alarm score, see :func:`hrbench.metrics.table.image_rows`."""
        return image_rows(self._context)

    @cached_property
    def replicates(self) -> Replicates:
        """Every metric in every bootstrap replicate."""
        return drawn_replicates(self._context)

    @property
    def threshold(self) -> float | None:
        """The operating threshold, given or set on held-out normal images; None without one."""
        return self._context.threshold

    @property
    def threshold_given(self) -> bool:
        """Whether the threshold was given, so that the protocol's rule does not stand behind it."""
        return self._given

    def value(self, metric: str, subset: str = "all", fpr_limit: float | None = None) -> float:
        """Return one value, for example ``value("aupro", "tiny")`` or ``value("recall_matched", fpr_limit=0.1)``.

        Parameters
        ----------
        metric : str
            See :data:`hrbench.metrics.catalogue.CATALOGUE`; ``a50``, ``a90`` and ``a90_95``, areas in pixels.
        subset : str
        fpr_limit : float, optional
            By default the protocol's headline: its FPR limit, or its budget of false alarms for metrics at equal ones.

        Raises
        ------
        HrbenchError
            For an unknown metric, subset or limit, with those there are.
        """
        table = self._values if metric in METRICS else self._with_limits
        return float(row_of(table, self.protocol, metric, subset, fpr_limit)["value"])

    @cached_property
    def _with_limits(self) -> pd.DataFrame:
        limits = limit_rows(self._found())
        return self._values if limits.empty else pd.concat([self._values, limits], ignore_index=True)

    def _found(self) -> list[Detection]:
        """Return what is found at the operating threshold and at each budget of the protocol."""
        if not self._context.areas.size:
            return []
        points = [self._at(budget) for budget in (None, *self._context.matched)]
        return [point for point in points if point is not None]

    def interval(self, metric: str, subset: str = "all", fpr_limit: float | None = None) -> tuple[float, float]:
        """Return the confidence interval of :meth:`value`, at the protocol's level.

        NaN where none can be given: too few images with such defects, or no spread at all among the draws.
        """
        row = row_of(self.frame, self.protocol, metric, subset, fpr_limit)
        return float(row["ci_low"]), float(row["ci_high"])

    def detection(self, alarms: float | None = Alarms.headline) -> Detection:
        """Return how large a defect must be to be found reliably at a number of false alarms.

        Parameters
        ----------
        alarms : float or None
            Share of the good test images that may alarm: 0.05 for 5 per 100. Any in [0, 1). None stands for the
            operating threshold that was given or set on held-out normal images.

        Returns
        -------
        Detection
            Areas and hits, `a50`, `a90`, its limits and interval, the threshold, and the good images that do alarm.

        Raises
        ------
        HrbenchError
            Without good images, without a defect whose mask is known, or for None without a threshold.
        """
        if alarms is not None and not (isinstance(alarms, int | float) and 0 <= alarms < 1):
            raise HrbenchError(
                f"alarms is {alarms!r}, expected a share of the good images in [0, 1), such as 0.05 for 5 per 100"
            )
        if not self._context.areas.size:
            raise HrbenchError(
                f"no defect whose size is known, so no detection limit: {' '.join(self.what_is_missing())}"
            )
        found = self._at(alarms)
        if found is None:
            raise HrbenchError(self.why_no_threshold() if alarms is None else _NO_GOOD)
        return found

    def _at(self, budget: float | None) -> Detection | None:
        if budget not in self._detections:
            self._detections[budget] = detection_at(self._context, budget)
        return self._detections[budget]

    def why_no_threshold(self) -> str:
        """Say what the threshold that is set on normal images takes that is not there."""
        rule, calibration = self.protocol.threshold, self.evidence.calibration
        expected = "expected `threshold`, or `normal_maps` of normal images that are not among the test images"
        if calibration is None:
            return f"no {rule.name}: {expected}"
        promise, needed = alarms_text(rule.alarms), images_needed(rule.alarms)
        if calibration.pooled:
            return f"no {rule.name}: the held-out images were not kept apart, which a promise of {promise} takes"
        return (
            f"no {rule.name}: {counted(calibration.images, 'held-out normal image')}, "
            f"expected {needed} or more to promise {promise}"
        )

    def what_is_missing(self) -> list[str]:
        """Say in a sentence each what could not be measured, and why: without masks, defects, good images, threshold.

        Rows of metrics that take masks are then not in :attr:`values`, or stand on the images that have one.
        """
        labels, unmasked = self._context.labels, len(self.evidence.unmasked)
        texts = [left_open(int((labels == 0).sum()), int(labels.sum()), unmasked)]
        if not self._context.areas.size and labels.sum() > unmasked:
            side = self.protocol.side
            texts.append(f"No defect is left at {side} x {side} pixels: metrics that take one are left out.")
        if self.threshold is None:
            why = self.why_no_threshold()
            texts.append(f"{why[:1].upper()}{why[1:]}.")
        return [text for text in texts if text]

    def summary(self) -> Text:
        """Return the answer in words and the figures behind it, to be printed."""
        return Text(summary_of(self).text())

    def plot(self, *alarms: float | None) -> Figure:
        """Draw how likely a defect is found against its size, a curve for each number of false alarms.

        Parameters
        ----------
        *alarms : float or None
            As in :meth:`detection`. By default the protocol's budgets that its recall is averaged over, those that
            come to the same threshold once; the operating threshold where nothing can be matched.

        Returns
        -------
        Figure
            A matplotlib figure that pyplot does not know: ``figure.savefig("pod.png")``.
        """
        from hrbench.report.drawing import Series
        from hrbench.report.pod_plot import draw_detection
        from hrbench.report.styles import look_number

        found = [self.detection(budget) for budget in alarms or self._shown()]
        items = [(Series(_curve_name(point), number, look_number(number)), point) for number, point in enumerate(found)]
        defects, good = counted(found[0].areas.size, "defect"), counted(found[0].alarms.good, "good image")
        figure = draw_detection(items, self.protocol.pod, f"How small a defect is found: {defects}, {good}")
        assert figure is not None  # there is a defect
        return figure

    def _shown(self) -> list[float | None]:
        by_limit = {point.limit: budget for budget, point in reversed(self._context.matched.items())}
        rules = self.protocol.alarm
        budgets = [budget for budget in reversed(by_limit.values()) if budget in (rules.summary or rules.budgets)]
        return [*budgets[:_CURVES]] or [None if self._at(None) is not None else rules.headline]

    def __repr__(self) -> str:
        """One line: images, defects, AUPRO, and the size that is found reliably at the headline's false alarms."""
        protocol, context = self.protocol, self._context
        images, defects = counted(context.labels.size, "image"), counted(context.areas.size, "defect")
        if not context.areas.size:
            names = {"image_auroc": "image ROC-AUC", "alarms": "alarms of good images"}
            values = self._values.dropna(subset="value").drop_duplicates("metric").set_index("metric")["value"]
            there = [f"{names[name]} {values[name]:.3f}" for name in names if name in values]
            said = ", ".join(there) or "no threshold"
            return f"<Evaluation of {images}, no defect mask: {said}>"
        parts = [f"AUPRO@{protocol.headline_fpr:g} {self.value('aupro'):.3f}"]
        budget = protocol.alarm.headline if context.matched else None
        point = detection_at(context, budget, resample=False)
        if point is not None:
            size = detection_limit_text(point.a90)
            where = f"threshold {point.threshold:.4g}" if budget is None else alarms_text(budget)
            parts.append(f"a{100 * protocol.pod.probability:g} {size} at {where}")
        return f"<Evaluation of {images}, {defects}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        return summary_of(self).html()


_NO_GOOD = "no good image among the test images, so false alarms cannot be counted; `detection(None)` takes a threshold"


def _curve_name(point: Detection) -> str:
    if point.budget is None:
        return f"threshold {point.threshold:.4g}" if math.isfinite(point.threshold) else "threshold"
    if not allowed(point.alarms.good, point.budget):
        return f"no false alarm among {point.alarms.good:,}"
    return alarms_text(point.budget).removesuffix(" good images")
