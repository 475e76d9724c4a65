"""What the images and masks of a category on disk show, and whether a run's evidence shows the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hrbench._util.progress import track
from hrbench.data.sample import Category, sample_mask, sample_regions
from hrbench.evidence import Evidence
from hrbench.evidence.regions import REGION_DTYPES
from hrbench.imaging import image_size
from hrbench.imaging.components import find_components
from hrbench.imaging.rims import find_rims
from hrbench.runs.identity import run_name
from hrbench.runs.record import RunRecord, groups_digest

__all__ = ["Reference", "index_problems", "reference_of", "reference_problems"]

_BOX = ("area", "top", "left", "bottom", "right")
_RIMS = ("outer", "inner")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a category on disk shows, to compare a run's evidence with.

    Attributes
    ----------
    dataset, category : str
    index, names, groups, conditions : str
        Digests, see :class:`hrbench.data.sample.Category` and :func:`hrbench.runs.record.groups_digest`.
    train : int
        Normal training images.
    images : DataFrame
        One row per test image in order of its id: id, label, height, width.
    components : dict of int to DataFrame
        By connectivity, one row per defect component: image, defect_type, area, top, left, bottom, right; outer and
        inner, pixels of its rims.
    regions : DataFrame
        One row per annotated region, none where they are not known: image, defect_type, defect, area, saturation.
    """

    dataset: str
    category: str
    index: str
    names: str
    groups: str
    conditions: str
    train: int
    images: pd.DataFrame
    components: Mapping[int, pd.DataFrame]
    regions: pd.DataFrame


def reference_of(category: Category) -> Reference:
    """Read all images' digests and all masks of a category."""
    samples = sorted(category.test, key=lambda sample: sample.id)
    images: list[tuple[str, int, int, int]] = []
    components: dict[int, list[tuple[Any, ...]]] = {4: [], 8: []}
    regions: list[tuple[Any, ...]] = []
    for sample in track(samples, f"{category.name} masks", total=len(samples), unit="img"):
        size = image_size(sample.image)
        mask = sample_mask(sample, size)
        images.append((sample.id, sample.label, *size))
        for region in sample_regions(sample, size) or ():
            area = int(region.mask.sum())
            regions.append((sample.id, sample.defect_type, region.defect, area, region.saturation))
        for connectivity, rows in components.items():
            if mask is not None:
                found = find_components(mask, connectivity)
                rims = find_rims(mask, found)
                sizes = zip(found.areas.tolist(), found.boxes.tolist(), strict=True)
                rims_of = zip(rims.counts.tolist(), np.split(rims.inner, np.cumsum(found.areas)[:-1]), strict=True)
                rows += [
                    (sample.id, sample.defect_type, area, *box, outer, inner.tobytes())
                    for (area, box), (outer, inner) in zip(sizes, rims_of, strict=True)
                ]
    columns = ["image", "defect_type", *_BOX, *_RIMS]
    return Reference(
        dataset=category.dataset,
        category=category.name,
        index=category.digest,
        names=category.names_digest,
        groups=groups_digest(category.groups),
        conditions=groups_digest(category.conditions),
        train=len(category.train),
        images=pd.DataFrame(images, columns=["id", "label", "height", "width"]),
        components={key: pd.DataFrame(rows, columns=columns) for key, rows in components.items()},
        regions=pd.DataFrame(regions, columns=list(REGION_DTYPES)),
    )


def index_problems(about: RunRecord, reference: Reference) -> list[str]:
    """Return where a run is of other images than those on disk, or its name not that of what it recorded."""
    problems, method = [], about.method
    if about.dataset.index_sha256 != reference.index:
        problems.append(
            f"dataset: other images, masks or labels than on disk (index {about.dataset.index_sha256[:12] or 'none'}, "
            f"on disk {reference.index[:12]})"
        )
    if about.dataset.groups_sha256 != reference.groups:
        problems.append("dataset: other images belong together than the descriptor says: pass the run's by --dataset")
    if about.dataset.conditions_sha256 != reference.conditions:
        problems.append("dataset: other conditions of images than the descriptor says: pass the run's by --dataset")
    if about.dataset.train != reference.train:
        problems.append(f"run.json: dataset.train is {about.dataset.train}, on disk {reference.train}")
    if method.reference != "maps":
        name = run_name(
            reference.names,
            method.name,
            method.preset,
            method.source_sha256,
            method.options,
            about.view,
            about.seed,
            precision=about.precision,
            held_out=about.dataset.held_out_share,
            train=reference.train,
        )
        if name != about.run:
            problems.append(f"run.json: run is {about.run!r}, its images, method, options, view and seed give {name!r}")
    return problems


def reference_problems(reference: Reference, evidence: Evidence) -> list[str]:
    """Return where evidence shows other images and defects than those on disk."""
    native = evidence.spec.side is None
    columns = ["id", "label", *(["height", "width"] if native else [])]
    images = evidence.images[columns]
    regions = reference.regions.head(0) if evidence.regions is None else evidence.regions.table
    return [
        f"evidence {evidence.spec.name}: {what}, other than on disk"
        for what, found, expected in (
            ("images, labels or sizes", images, reference.images[columns]),
            (
                "defects (areas, places or types)",
                evidence.components[["image", "defect_type", *_BOX]] if native else None,
                reference.components[evidence.spec.connectivity][["image", "defect_type", *_BOX]],
            ),
            ("rims of defects", _rims(evidence), reference.components[evidence.spec.connectivity][[*_RIMS]]),
            ("regions (areas, saturations or names)", regions if native else None, reference.regions),
        )
        if found is not None and not _same_rows(found, expected)
    ]


def _rims(evidence: Evidence) -> pd.DataFrame | None:
    if evidence.rims is None:
        return None
    inner = np.split(evidence.rims.inner, evidence.component_starts[1:])
    return evidence.rims.table[["outer"]].assign(inner=[part.tobytes() for part in inner])


def _same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    return len(found) == len(expected) and all(
        found[name].tolist() == expected[name].tolist() for name in expected.columns
    )
