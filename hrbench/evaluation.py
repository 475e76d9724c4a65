"""Scoring of finished anomaly maps: the whole protocol layer as one function."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, Evidence, EvidenceCollector, EvidenceSpec
from hrbench.evidence.histograms import check_map
from hrbench.metrics import component_table, compute
from hrbench.protocol import Protocol, load_protocol

__all__ = ["Evaluation", "evaluate"]

_END = object()


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Attributes
    ----------
    frame : DataFrame
        One row per metric, subset and FPR limit, with the columns ``metric, subset, fpr_limit, value,
        error_bound, n``: see :func:`hrbench.metrics.compute`.
    components : DataFrame
        One row per defect component: image (its position, zero-padded), area, bounding box, ``aupro@L``.
    evidence : Evidence
        What both were computed from.
    protocol : Protocol
    """

    frame: pd.DataFrame
    components: pd.DataFrame
    evidence: Evidence
    protocol: Protocol

    def value(self, metric: str, subset: str = "all", fpr_limit: float | None = None) -> float:
        """Return one value of `frame`, for example ``value("aupro", "tiny", 0.05)``."""
        frame = self.frame
        limit = frame["fpr_limit"].isna() if fpr_limit is None else frame["fpr_limit"] == fpr_limit
        rows = frame.loc[(frame["metric"] == metric) & (frame["subset"] == subset) & limit, "value"]
        if len(rows) != 1:
            asked = f"metric {metric!r}, subset {subset!r}, fpr_limit {fpr_limit}"
            raise HrbenchError(f"{asked}: no such row; known metrics: {', '.join(frame['metric'].unique())}")
        return float(rows.iloc[0])


def evaluate(
    anomaly_maps: Iterable[npt.ArrayLike],
    masks: Iterable[npt.ArrayLike | None],
    *,
    image_scores: Iterable[float] | None = None,
    protocol: str | Path | Protocol = "native",
    exact: bool = False,
    threshold: float | None = None,
    normal_maps: Iterable[npt.ArrayLike] | None = None,
    groups: Iterable[Hashable] | None = None,
) -> Evaluation:
    """Score anomaly maps of one category against masks at their own resolution.

    The iterables are read once, image by image, so generators that load from disk keep memory small.

    Parameters
    ----------
    anomaly_maps : iterable of (H, W) arrays or tensors
        Higher is more anomalous, on any scale; sizes may differ from image to image.
    masks : iterable of (H, W) arrays or None
        Non-zero is defect; None or all zero is a normal image.
    image_scores : iterable of float, optional
        One score per image. By default the protocol's rule; the maximum of the map where the protocol leaves
        it to the method.
    protocol : str, Path or Protocol
    exact : bool
        Keep every normal score: no error bound; memory grows with every pixel.
    threshold : float, optional
        Operating threshold for `iou`, `miou`, `f1` and `fpr`.
    normal_maps : iterable of (H, W) arrays, optional
        Maps of normal images that are not among `anomaly_maps`: the protocol's rule sets the threshold on them.
    groups : iterable of str or other labels, optional
        One per image, equal for images that belong together (photographs of one part); None or an empty text for an
        image on its own. Intervals computed from the evidence then draw groups, see
        :func:`hrbench.metrics.bootstrap.intervals`; values do not change.

    Returns
    -------
    Evaluation

    Raises
    ------
    HrbenchError
        For a map that is not of its mask's size or holds NaN, iterables of different length, or no defects.

    Examples
    --------
    >>> import numpy as np, hrbench
    >>> mask = np.zeros((64, 64), bool)
    >>> mask[10:14, 20:30] = True
    >>> result = hrbench.evaluate([mask.astype("float32"), np.zeros((64, 64))], [mask, None])
    >>> result.value("aupro", fpr_limit=0.05)
    1.0
    """
    rules = load_protocol(protocol)
    collector = EvidenceCollector(EvidenceSpec.of(rules, exact=exact))
    streams: dict[str, Iterable[Any]] = {"anomaly_maps": anomaly_maps, "masks": masks}
    optional = {"image_scores": image_scores, "groups": groups}
    streams |= {name: stream for name, stream in optional.items() if stream is not None}
    for index, items in enumerate(zip_longest(*streams.values(), fillvalue=_END)):
        row = dict(zip(streams, items, strict=True))
        short = [name for name, item in row.items() if item is _END]
        if short:
            raise HrbenchError(f"{' and '.join(short)} end after {index} images, the others go on")
        defect = None if row["masks"] is None else _mask(row["masks"], index)
        try:
            score = float(row["image_scores"]) if "image_scores" in row else None
        except (TypeError, ValueError):
            raise HrbenchError(f"image score {index} is {row['image_scores']!r}, expected a number") from None
        group = row.get("groups")
        collector.update(
            f"{index:06d}",
            as_array(row["anomaly_maps"], f"anomaly map {index}"),
            defect,
            score=score,
            group="" if group is None else str(group),
        )
    evidence = collector.result()
    if normal_maps is not None:
        arrays = ((as_array(item, f"normal map {i}"), f"normal map {i}") for i, item in enumerate(normal_maps))
        checked = (check_map(array, None, name) for array, name in arrays)
        (calibration,) = Calibration.of(checked, [rules.side])
        evidence = replace(evidence, calibration=calibration)
    frame = compute(evidence, rules, threshold=threshold)
    return Evaluation(frame, component_table(evidence, rules, threshold=threshold), evidence, rules)


def as_array(item: Any, name: str) -> npt.NDArray[Any]:
    """Return an array of what a user gave: an array, nested lists, or a tensor on any device."""
    if hasattr(item, "detach"):
        item = item.detach().cpu()
        item = item.float() if str(item.dtype) == "torch.bfloat16" else item
    try:
        return np.asarray(item)
    except (TypeError, ValueError) as error:
        raise HrbenchError(f"{name}: not an array of numbers: {error}") from None


def _mask(mask: npt.ArrayLike, index: int) -> npt.NDArray[np.bool_]:
    array = as_array(mask, f"mask {index}")
    if array.dtype.kind not in "biuf":
        raise HrbenchError(f"mask {index}: of type {array.dtype}, expected numbers, non-zero for defect")
    if array.ndim != 2:
        raise HrbenchError(f"mask {index}: shape {array.shape}, expected (H, W)")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise HrbenchError(f"mask {index}: holds NaN, expected zero for normal and non-zero for defect")
    defect: npt.NDArray[np.bool_] = array != 0
    return defect
