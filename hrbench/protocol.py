"""Evaluation protocols: what is measured, and how, as data in ``protocols/*.toml``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from hrbench._util.resources import protocols_root
from hrbench._util.toml import build, read_toml
from hrbench.errors import HrbenchError, unknown_name

__all__ = [
    "Alarms",
    "Bootstrap",
    "Curve",
    "Detectability",
    "ImageScoreRule",
    "Protocol",
    "SizeBins",
    "ThresholdRule",
    "list_protocols",
    "load_protocol",
]


MAX_DRAWS = 100_000  # of a bootstrap: each keeps a weight for every image


@dataclasses.dataclass(frozen=True)
class ImageScoreRule:
    """How the native anomaly map becomes one score: ``max``, ``mean`` or ``top:SHARE``.

    Attributes
    ----------
    text : str
        ``max`` (highest pixel), ``mean``, or ``top:0.001`` (mean of the highest thousandth of the pixels,
        at least one).
    """

    text: str

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise HrbenchError(
                f"image score rule is {self.text!r}, expected max, mean or top:SHARE with a share in (0, 1]"
            )

    @cached_property
    def share(self) -> float | None:
        """Share of the pixels that is averaged; None for the maximum."""
        if self.text == "max":
            return None
        if self.text == "mean":
            return 1.0
        match = re.fullmatch(r"top:([0-9.eE+-]+)", self.text)
        try:
            return float(match[1]) if match else float("nan")
        except ValueError:
            return float("nan")


@dataclasses.dataclass(frozen=True)
class SizeBins:
    """How defect components are grouped by area.

    Attributes
    ----------
    quantiles : tuple of float
        The three inner quantiles of the component areas of a category (linear interpolation) that bound
        ``tiny | small | medium | large`` and, cumulatively, ``q1 .. q4``. Upper edges are inclusive.
    diameters : tuple of float
        Inner edges, in pixels of equivalent diameter ``2 sqrt(area / pi)``, of fixed bins that can be
        compared between datasets. Lower edges are inclusive.
    """

    quantiles: tuple[float, ...] = (0.25, 0.5, 0.75)
    diameters: tuple[float, ...] = (8.0, 16.0, 32.0, 64.0, 128.0)


@dataclasses.dataclass(frozen=True)
class ThresholdRule:
    """The operating threshold, set on held-out normal training images only.

    Attributes
    ----------
    rule : str
        ``normal-quantile``: the lowest threshold that at most `fpr` of the held-out normal pixels reach;
        ``mean+k*sigma``: their mean plus `k` standard deviations; ``conformal``: the lowest one at which an unseen good
        image alarms with a probability of at most `alarms`, see :func:`hrbench.metrics.alarms.conformal_rank`.
    fpr : float
        Share of normal pixels, for ``normal-quantile``.
    k : float
        Number of standard deviations, for ``mean+k*sigma``.
    alarms : float
        Share of good images, for ``conformal``.
    """

    rule: Literal["normal-quantile", "mean+k*sigma", "conformal"] = "normal-quantile"
    fpr: float = 0.001
    k: float = 3.0
    alarms: float = 0.05

    @property
    def name(self) -> str:
        """What people read for this threshold: only one of the rules promises a number of false alarms."""
        return "promised threshold" if self.rule == "conformal" else "threshold set on normal images"


@dataclasses.dataclass(frozen=True)
class Alarms:
    """Operating points at equal false alarms, counted in images as people who inspect things count them.

    Attributes
    ----------
    pixels : int
        An image alarms if at least so many of its pixels reach the threshold.
    budgets : tuple of float
        Shares of the good test images that may alarm: what is found is measured at each. Empty: at none.
    headline : float
        The budget that reports open with; one of `budgets`.
    summary : tuple of float
        The budgets over which recall is averaged; all of them in `budgets`.
    """

    pixels: int = 1
    budgets: tuple[float, ...] = ()
    headline: float = 0.05
    summary: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Curve:
    """Which thresholds the PRO curve is made of.

    Attributes
    ----------
    sampling : str
        ``all`` scores, exact; ``equal-rank`` and ``uniform`` sample them as published codes do, see
        :mod:`hrbench.metrics.sampled`.
    thresholds : int
        How many are sampled.
    """

    sampling: Literal["all", "equal-rank", "uniform"] = "all"
    thresholds: int = 0


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Intervals by resampling images, stratified by label.

    Attributes
    ----------
    draws : int
        Replicates; 0 for none.
    level : float
        Of the two-sided intervals.
    seed : int
    """

    draws: int = 1000
    level: float = 0.95
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Detectability:
    """Probability of detection against component area, hit or miss.

    Attributes
    ----------
    share : float
        A component is a hit if at least this share of its pixels reaches the operating threshold.
    probability, level : float
        0.9 and 0.95 make a90 and a90/95.
    """

    share: float = 0.1
    probability: float = 0.9
    level: float = 0.95


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A versioned set of rules by which anomaly maps are measured.

    Attributes
    ----------
    name, title : str
        Name (that of the file) and one line for people.
    version : int
        Raised with every change once results exist.
    resolution : {'native', '256', '512'}
        ``native``: masks are never resized. A number shrinks maps (bilinear) and masks (nearest) to that square, as
        conventional protocols do: for comparison only.
    image_score : str
        ``method`` for the method's own rule (``max`` where maps come without one), else an
        :class:`ImageScoreRule`.
    connectivity : {4, 8}
        Of defect components.
    fpr_limits : tuple of float
        Integration limits of AUPRO and of the size robustness.
    headline_fpr : float
        The limit that leaderboards sort by and size plots show; one of `fpr_limits`.
    curve : Curve
    size_bins : SizeBins
    threshold : ThresholdRule
    alarm : Alarms
    bootstrap : Bootstrap
    pod : Detectability
    """

    name: str
    title: str
    version: int
    resolution: Literal["native", "256", "512"] = "native"
    image_score: str = "method"
    connectivity: Literal[4, 8] = 8
    fpr_limits: tuple[float, ...] = (0.30, 0.10, 0.05, 0.01)
    headline_fpr: float = 0.05
    curve: Curve = Curve()
    size_bins: SizeBins = SizeBins()
    threshold: ThresholdRule = ThresholdRule()
    alarm: Alarms = Alarms()
    bootstrap: Bootstrap = Bootstrap()
    pod: Detectability = Detectability()

    def __post_init__(self) -> None:
        def require(ok: bool, key: str, found: object, expected: str) -> None:
            if not ok:
                raise HrbenchError(f"protocol {self.name!r}: {key} is {found!r}, expected {expected}")

        if self.image_score != "method":
            ImageScoreRule(self.image_score)
        limits, bins, rule = self.fpr_limits, self.size_bins, self.threshold
        require(bool(limits) and all(0 < x <= 1 for x in limits), "fpr_limits", limits, "numbers in (0, 1]")
        require(self.headline_fpr in limits, "headline_fpr", self.headline_fpr, f"one of {limits}")
        ordered = sorted(set(bins.quantiles)) == list(bins.quantiles)
        inside = len(bins.quantiles) == 3 and all(0 < x < 1 for x in bins.quantiles)
        require(ordered and inside, "size_bins.quantiles", bins.quantiles, "three rising numbers in (0, 1)")
        ordered = sorted(set(bins.diameters)) == list(bins.diameters) and all(x > 0 for x in bins.diameters)
        require(ordered, "size_bins.diameters", bins.diameters, "rising positive numbers")
        for key in ("fpr", "alarms"):
            require(0 < getattr(rule, key) < 1, f"threshold.{key}", getattr(rule, key), "a number in (0, 1)")
        alarm = self.alarm
        require(alarm.pixels >= 1, "alarm.pixels", alarm.pixels, "1 or more")
        ordered = sorted(set(alarm.budgets)) == list(alarm.budgets) and all(0 <= x < 1 for x in alarm.budgets)
        require(ordered, "alarm.budgets", alarm.budgets, "rising numbers in [0, 1)")
        if alarm.budgets:
            require(alarm.headline in alarm.budgets, "alarm.headline", alarm.headline, f"one of {alarm.budgets}")
        among = set(alarm.summary) <= set(alarm.budgets) and len(set(alarm.summary)) == len(alarm.summary)
        require(among, "alarm.summary", alarm.summary, f"different ones of {alarm.budgets}")
        draws = self.bootstrap.draws
        require(0 <= draws <= MAX_DRAWS, "bootstrap.draws", draws, f"0 to {MAX_DRAWS:,}")
        require(self.bootstrap.seed >= 0, "bootstrap.seed", self.bootstrap.seed, "0 or more")
        require(0 < self.bootstrap.level < 1, "bootstrap.level", self.bootstrap.level, "a number in (0, 1)")
        for key in ("share", "probability", "level"):
            given = getattr(self.pod, key)
            require(0 < given <= 1 if key == "share" else 0 < given < 1, f"pod.{key}", given, "a number in (0, 1)")
        sampled = self.curve.sampling != "all"
        require(not sampled or self.curve.thresholds > 1, "curve.thresholds", self.curve.thresholds, "at least 2")

    @property
    def side(self) -> int | None:
        """Side of the square that maps and masks are shrunk to; None at native resolution."""
        return None if self.resolution == "native" else int(self.resolution)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the rules: equal digests mean equal measurement.

        Rules at their default do not count, so that a later version of hrbench that knows more rules gives an
        old file its old digest; that is why a default never changes.
        """
        rules = _without_defaults(self)
        rules.pop("title")
        text = json.dumps(rules, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _without_defaults(rules: Any) -> dict[str, Any]:
    rules_set = {}
    for field in dataclasses.fields(rules):
        value = getattr(rules, field.name)
        if value != field.default:
            rules_set[field.name] = _without_defaults(value) if dataclasses.is_dataclass(value) else value
    return rules_set


def list_protocols(*, former: bool = False) -> list[str]:
    """Return the names of the protocols that ship with hrbench; `former` versions (``native@1``) only if asked for."""
    return [name for name in _shipped() if former or "@" not in name]


def _shipped() -> list[str]:
    return sorted(item.name.removesuffix(".toml") for item in protocols_root().iterdir() if item.name.endswith(".toml"))


def load_protocol(name: str | Path | Protocol) -> Protocol:
    """Load a protocol by name, or from a path that ends in ``.toml``.

    A former version that results were measured under is ``NAME@VERSION``; it keeps its name and its digest.

    Raises
    ------
    HrbenchError
        For an unknown name, or a file with an unknown, missing or mistyped key (its dotted path is named).
    """
    if isinstance(name, Protocol):
        return name
    path: Traversable
    if str(name).endswith(".toml"):
        path = Path(name)
    elif str(name) in _shipped():
        path = protocols_root() / f"{name}.toml"
    else:
        raise unknown_name("protocol", str(name), _shipped())
    return build(Protocol, read_toml(path), str(path))
