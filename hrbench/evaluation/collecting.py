"""Finished anomaly maps of any origin, read once into evidence."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.evaluation.result import Evaluation
from hrbench.evidence import Calibration, EvidenceCollector, EvidenceSpec, Region
from hrbench.evidence.histograms import check_map
from hrbench.protocol import Protocol, load_protocol

__all__ = ["as_array", "as_mask", "evaluate"]

_END = object()


def evaluate(
    anomaly_maps: Iterable[npt.ArrayLike],
    masks: Iterable[npt.ArrayLike | None],
    *,
    labels: Iterable[int] | None = None,
    image_scores: Iterable[float] | None = None,
    protocol: str | Path | Protocol = "native",
    exact: bool = False,
    threshold: float | None = None,
    normal_maps: Iterable[npt.ArrayLike] | None = None,
    groups: Iterable[Hashable] | None = None,
    regions: Iterable[Sequence[tuple[npt.ArrayLike, int]] | None] | None = None,
    defect_types: Iterable[str] | None = None,
) -> Evaluation:
    """Score anomaly maps of one category against masks at their own resolution.

    The iterables are read once, image by image, so generators that load from disk keep memory small.

    Parameters
    ----------
    anomaly_maps : iterable of (H, W) arrays or tensors
        Higher is more anomalous, on any scale; sizes may differ from image to image.
    masks : iterable of (H, W) arrays or None
        Non-zero is defect; None or all zero is a normal image, but see `labels`.
    labels : iterable of int, optional
        0 for a good and 1 for a defective image. A mask that is None is then that of a good image, or one that is not
        known: such an image counts in what is measured per image, and in nothing else. Without any mask there is still
        image ROC-AUC and who alarms, and on good images alone the false alarms; see
        :meth:`Evaluation.what_is_missing`.
    image_scores : iterable of float, optional
        One score per image. By default the protocol's rule; the maximum of the map where the protocol leaves
        it to the method.
    protocol : str, Path or Protocol
    exact : bool
        Keep every normal score: no error bound; memory grows with every pixel.
    threshold : float, optional
        Operating threshold, in place of the one that the protocol's rule sets on `normal_maps`.
    normal_maps : iterable of (H, W) arrays, optional
        Maps of normal images that are not among `anomaly_maps`: the protocol's rule sets the threshold on them. To
        promise at most 5 false alarms per 100 good images takes at least 19.
    groups : iterable of str or other labels, optional
        One per image, equal for images that belong together (photographs of one part); None or an empty text for an
        image on its own. Intervals then draw groups, see :func:`hrbench.metrics.bootstrap.intervals`; values do not
        change.
    regions : iterable, optional
        For sPRO, the annotated regions of each image, which may overlap: pairs of a mask, (H, W), and of how many of
        its pixels are enough; None or nothing for a good image. Together they mark what the image's mask marks, which
        may be left to them by None.
    defect_types : iterable of str, optional
        One per image; ``logical_anomalies`` and ``structural_anomalies`` have an sPRO of their own.

    Returns
    -------
    Evaluation
        Its values are computed here, intervals when something first needs them.

    Raises
    ------
    HrbenchError
        For a map that is not of its mask's size or holds NaN, iterables of different length, a mask that
        contradicts its label or its regions, or masks that cover all images wholly.

    Examples
    --------
    >>> import numpy as np, hrbench
    >>> mask = np.zeros((64, 64), bool)
    >>> mask[10:14, 20:30] = True
    >>> result = hrbench.evaluate([mask.astype("float32"), np.zeros((64, 64))], [mask, None])
    >>> result.value("aupro")
    1.0
    >>> print(result.detection(alarms=0.05).a90)
    not estimable (all 1 components hit, smallest 40 px)
    """
    rules = load_protocol(protocol)
    collector = EvidenceCollector(EvidenceSpec.of(rules, exact=exact))
    streams: dict[str, Iterable[Any]] = {"anomaly_maps": anomaly_maps, "masks": masks}
    optional: dict[str, Iterable[Any] | None] = {"labels": labels, "image_scores": image_scores, "groups": groups}
    optional |= {"regions": regions, "defect_types": defect_types}
    streams |= {name: stream for name, stream in optional.items() if stream is not None}
    for index, items in enumerate(zip_longest(*streams.values(), fillvalue=_END)):
        row = dict(zip(streams, items, strict=True))
        short = [name for name, item in row.items() if item is _END]
        if short:
            raise HrbenchError(f"{' and '.join(short)} end after {index} images, the others go on")
        defect = None if row["masks"] is None else as_mask(row["masks"], f"mask {index}")
        own = None if row.get("regions") is None else _regions(row["regions"], index)
        if defect is None and own:
            defect = np.logical_or.reduce([region.mask for region in own])
        unmasked = "labels" in row and _unmasked(row["labels"], defect, index)
        try:
            score = _number(row["image_scores"]) if "image_scores" in row else None
        except (TypeError, ValueError):
            raise HrbenchError(f"image score {index} is {row['image_scores']!r}, expected a number") from None
        group = row.get("groups")
        collector.update(
            f"{index:06d}",
            as_array(row["anomaly_maps"], f"anomaly map {index}"),
            defect,
            unmasked=unmasked,
            score=score,
            group="" if group is None else str(group),
            defect_type=str(row.get("defect_types", "")),
            regions=own,
        )
    evidence = collector.result()
    if normal_maps is not None:
        arrays = ((as_array(item, f"normal map {i}"), f"normal map {i}") for i, item in enumerate(normal_maps))
        checked = (check_map(array, None, name) for array, name in arrays)
        (calibration,) = Calibration.of(checked, [rules.side])
        evidence = replace(evidence, calibration=calibration)
    return Evaluation(evidence, rules, threshold=threshold)


def as_array(item: Any, name: str) -> npt.NDArray[Any]:
    """Return an array of what a user gave: an array, nested lists, or a tensor on any device."""
    if hasattr(item, "detach"):
        item = item.detach().cpu()
        item = item.float() if str(item.dtype) == "torch.bfloat16" else item
    try:
        return np.asarray(item)
    except (TypeError, ValueError) as error:
        raise HrbenchError(f"{name}: not an array of numbers: {error}") from None


def _number(value: Any) -> float:
    if np.iscomplexobj(value):
        raise TypeError  # numpy would drop the imaginary part
    return float(value)


def _unmasked(label: Any, defect: npt.NDArray[np.bool_] | None, index: int) -> bool:
    """Tell whether an image is defective and its mask not known."""
    if isinstance(label, str) or np.ndim(label) or label not in (0, 1):
        raise HrbenchError(f"label {index} is {label!r}, expected 0 for a good or 1 for a defective image")
    marked = defect is not None and bool(defect.any())
    if marked and not label:
        raise HrbenchError(f"mask {index}: has defect pixels, but label {index} is 0: expected 1, or None as the mask")
    if label and defect is not None and not marked:
        raise HrbenchError(f"mask {index}: has no defect pixel, but label {index} is 1: expected None if not known")
    return bool(label) and defect is None


def _regions(regions: Any, index: int) -> list[Region]:
    """Return the regions of an image, all of one shape."""
    found: list[Region] = []
    try:
        pairs = [(mask, operator.index(saturation)) for mask, saturation in regions]
    except (TypeError, ValueError):
        raise HrbenchError(f"regions {index}: expected pairs of a mask and of a whole number of pixels") from None
    for number, (mask, saturation) in enumerate(pairs):
        array = as_mask(mask, f"region {number} of image {index}")
        if found and array.shape != found[0].mask.shape:
            raise HrbenchError(f"region {number} of image {index}: shape {array.shape}, expected {found[0].mask.shape}")
        found.append(Region(array, saturation))
    return found


def as_mask(mask: npt.ArrayLike, name: str) -> npt.NDArray[np.bool_]:
    """Return where a mask that a user gave is not zero, (H, W); an error names what is none."""
    array = as_array(mask, name)
    if array.dtype.kind not in "biuf":
        raise HrbenchError(f"{name}: of type {array.dtype}, expected numbers, non-zero for defect")
    if array.ndim != 2:
        raise HrbenchError(f"{name}: shape {array.shape}, expected (H, W)")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise HrbenchError(f"{name}: holds NaN, expected zero for normal and non-zero for defect")
    defect: npt.NDArray[np.bool_] = array != 0
    return defect
