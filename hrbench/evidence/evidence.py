"""Evidence: the small sufficient statistics that inference leaves behind, and every metric starts from.

Defect pixels are few and kept exactly, per connected component. Normal pixels are many: per image they are counted
under the upper 22 bits of an order-preserving integer key of their score or, in exact mode, kept as sorted keys of
all bits. Merging is concatenation, so shards, processes and resumed runs end with the same bits in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hrbench._util.tables import check_size
from hrbench.errors import HrbenchError
from hrbench.evidence.calibration import Calibration
from hrbench.evidence.files import (
    COMPONENTS,
    EVIDENCE_FILES,
    IMAGES,
    REGIONS,
    RIMS,
    Facts,
    arrays,
    frame_of,
    histogram,
    histogram_columns,
    lengths,
    read,
    refuse,
    sorted_keys,
    write,
)
from hrbench.evidence.histograms import DefectRanks, NormalScores, Scores, SortedKeys
from hrbench.evidence.ragged import flat, lists, starts, take_groups
from hrbench.evidence.regions import REGION_DTYPES, Regions, region_problems, without_regions
from hrbench.evidence.rims import RIM_DTYPES, Annotated, Rims, rim_problems
from hrbench.evidence.spec import EvidenceSpec

__all__ = ["COMPONENT_DTYPES", "IMAGE_DTYPES", "Evidence", "set_apart"]

IMAGE_DTYPES = {
    "id": "str",
    "label": "int64",
    "group": "str",
    "condition": "str",
    "height": "int64",
    "width": "int64",
    "score": "float64",
    "normal_pixels": "int64",
    "defect_pixels": "int64",
    "decision_tp": "Int64",
    "decision_fp": "Int64",
    "seconds": "float64",
}
COMPONENT_DTYPES = {
    "image": "str",
    "defect_type": "str",
    "area": "int64",
    "top": "int64",
    "left": "int64",
    "bottom": "int64",
    "right": "int64",
    "decision_pixels": "Int64",
}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What all metrics of one category are computed from.

    Attributes
    ----------
    images : DataFrame
        One row per image in order of its id: id, label, group (empty for an image on its own), condition (empty where
        none is known), height, width, score,
        normal_pixels, defect_pixels, decision_tp, decision_fp (null without a decision), seconds.
    components : DataFrame
        One row per defect component, images in the same order: image, defect_type, area, top, left, bottom,
        right (exclusive), decision_pixels.
    defect_scores : ndarray of float32 (float64 in exact mode if the maps were), (sum of areas,)
        Scores of all defect pixels, component after component.
    normals : sequence of NormalScores
        Each image's normal pixels; all of one `shift`, which is 0 in exact mode.
    lossless : bool
        True if no score lost a set bit (float16 maps, exact mode): then every metric is exact.
    spec : EvidenceSpec
    calibration : Calibration or None
    unmasked : mapping of str to NormalScores
        Defective images whose masks are unknown, by id, with all their pixels, which are neither among `normals` nor
        among the defects: `normal_pixels` and `defect_pixels` are 0, and `decision_fp` counts all decided pixels.
    regions : Regions or None
        Those of all masked defective images, where the annotation has some; None elsewhere.
    rims : Rims or None
        Of the components; None if there are none, the masks were shrunk, or an earlier version collected some of it.
    annotated : Annotated or None
        What the components were, in evidence under other masks, see :func:`hrbench.evidence.masks.with_masks`.
    """

    images: pd.DataFrame
    components: pd.DataFrame
    defect_scores: Scores
    normals: Sequence[NormalScores]
    lossless: bool
    spec: EvidenceSpec
    calibration: Calibration | None = None
    unmasked: Mapping[str, NormalScores] = dataclasses.field(default_factory=dict)
    regions: Regions | None = None
    rims: Rims | None = None
    annotated: Annotated | None = None

    @property
    def shift(self) -> int:
        """Bits that the keys dropped; 0 in exact mode."""
        return self.normals[0].shift

    @cached_property
    def groups(self) -> npt.NDArray[np.str_] | None:
        """Names of what is drawn as one in a bootstrap, (images,): groups, or single images; None without groups."""
        group, own = (self.images[name].to_numpy(dtype=str) for name in ("group", "id"))
        if not (group != "").any():
            return None
        return np.where(group == "", np.char.add("image ", own), np.char.add("group ", group))

    @property
    def conditions(self) -> dict[str, str]:
        """The condition of each image that has one, by its id."""
        known = self.images[self.images["condition"] != ""]
        return dict(zip(known["id"], known["condition"], strict=True))

    def grouped(self, groups: Mapping[str, str] | None, conditions: Mapping[str, str] | None = None) -> Evidence:
        """Return the same evidence with other groups, and other conditions, where they are given by the images' ids."""
        columns = {
            column: pd.Series([names.get(name, "") for name in self.images["id"]], dtype="str")
            for column, names in (("group", groups), ("condition", conditions))
            if names is not None
        }
        return dataclasses.replace(self, images=self.images.assign(**columns))

    def of_images(self, ids: Collection[str]) -> Evidence:
        """Return the evidence of some of the images, without the calibration; all of them merge into the same again."""
        _require_annotated([self])
        rows, members = (np.flatnonzero(names.isin(ids)) for names in (self.images["id"], self.components["image"]))
        return dataclasses.replace(
            self,
            images=self.images.iloc[rows].reset_index(drop=True),
            components=self.components.iloc[members].reset_index(drop=True),
            defect_scores=self.defect_scores[take_groups(self.components["area"], members)],
            normals=[self.normals[row] for row in rows.tolist()],
            calibration=None,
            unmasked={name: part for name, part in self.unmasked.items() if name in ids},
            regions=None if self.regions is None else self.regions.of_images(ids),
            rims=None if self.rims is None or not members.size else self.rims.taken(self.components["area"], members),
        )

    def renamed(self, names: Mapping[str, str]) -> Evidence:
        """Return the same evidence with other ids of the images, given by those that they have, in their order."""

        def table(frame: pd.DataFrame, column: str) -> pd.DataFrame:
            return frame.assign(**{column: frame[column].map(names).astype("str")})

        regions, rims = self.regions, self.rims
        other = dataclasses.replace(
            self,
            images=table(self.images, "id"),
            components=table(self.components, "image"),
            unmasked={names[name]: pixels for name, pixels in self.unmasked.items()},
            regions=None if regions is None else dataclasses.replace(regions, table=table(regions.table, "image")),
            rims=None if rims is None else dataclasses.replace(rims, table=table(rims.table, "image")),
        )
        return Evidence.merge([other])

    @cached_property
    def component_starts(self) -> npt.NDArray[np.int64]:
        """First row of each component in `defect_scores`."""
        return starts(self.components["area"])

    @cached_property
    def component_images(self) -> npt.NDArray[np.int64]:
        """Row in `images` of each component's image."""
        rows = pd.Series(np.arange(len(self.images)), index=self.images["id"])
        image_rows: npt.NDArray[np.int64] = rows.loc[self.components["image"]].to_numpy()
        return image_rows

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Areas of the components as they were annotated, (K,): by these they are large or small."""
        return self.components["area"].to_numpy() if self.annotated is None else self.annotated.sizes

    @cached_property
    def known(self) -> npt.NDArray[np.bool_]:
        """Whether each image is good, or has a mask, (images,)."""
        known: npt.NDArray[np.bool_] = ~self.images["id"].isin(list(self.unmasked)).to_numpy()
        return known

    @cached_property
    def pixels(self) -> Sequence[NormalScores]:
        """Each image's normal pixels; all pixels of one whose mask is unknown."""
        return [self.unmasked.get(name, part) for name, part in zip(self.images["id"], self.normals, strict=True)]

    @cached_property
    def normal(self) -> NormalScores:
        """All normal pixels of all images, pooled; in exact mode a copy of all of them."""
        return self.normals[0].pooled(self.normals[1:])

    @cached_property
    def normal_pixels(self) -> int:
        """Number of normal pixels of all images."""
        return int(self.images["normal_pixels"].sum())

    @cached_property
    def ranks(self) -> DefectRanks:
        """Where the defect pixels stand among the normal ones."""
        return DefectRanks.of(self.defect_scores, self.normals)

    @staticmethod
    def merge(parts: Sequence[Evidence]) -> Evidence:
        """Join evidence of different images; the result does not depend on the order of the parts.

        Raises
        ------
        HrbenchError
            If an image occurs twice, the parts were collected in different ways, or only some know their regions.
        """
        first = parts[0]
        _require_annotated(parts)
        for part in parts:
            if part.spec != first.spec:
                raise HrbenchError(f"evidence collected as {part.spec.name} and as {first.spec.name} cannot be merged")
        images = pd.concat([part.images for part in parts], ignore_index=True)
        if images["id"].duplicated().any():
            name = images["id"][images["id"].duplicated()].iloc[0]
            raise HrbenchError(f"{name}: the image occurs twice in the evidence to be merged")
        components = pd.concat([part.components for part in parts], ignore_index=True)
        order = np.argsort(images["id"].to_numpy(dtype=str), kind="stable")
        rank = pd.Series(np.argsort(order), index=images["id"])
        component_order = np.argsort(rank.loc[components["image"]].to_numpy(), kind="stable")
        normals = [normal for part in parts for normal in part.normals]
        scores = np.concatenate([part.defect_scores for part in parts])
        in_order = bool((np.diff(component_order) == 1).all())  # then a copy is spared
        pixels = slice(None) if in_order else take_groups(components["area"], component_order)
        rims = Rims.joined([part.rims for part in parts if len(part.components)])
        calibrated = [part for part in parts if part.calibration is not None]
        return Evidence(
            images=images.iloc[order].reset_index(drop=True),
            components=components.iloc[component_order].reset_index(drop=True),
            defect_scores=scores[pixels],
            normals=[normals[row] for row in order],
            lossless=all(part.lossless for part in parts),
            spec=first.spec,
            calibration=calibrated[0].calibration if calibrated else None,
            unmasked={name: pixels for part in parts for name, pixels in part.unmasked.items()},
            regions=_merged_regions(parts),
            rims=rims if rims is None or in_order else rims.taken(components["area"], component_order),
        )

    def save(self, folder: Path, *, smallest: bool = False) -> None:
        """Write ``images.parquet``, ``components.parquet`` and, if known, calibration, regions and rims likewise."""
        _require_annotated([self])
        folder.mkdir(parents=True, exist_ok=True)
        collection = dataclasses.asdict(self.spec)
        facts = {"shift": self.shift, "lossless": self.lossless, "collection": collection}
        known = self.images if self.conditions else self.images.drop(columns="condition")
        images = pa.Table.from_pandas(known, preserve_index=False)
        for name, column in histogram_columns(self.pixels).items():
            images = images.append_column(name, column)
        components = pa.Table.from_pandas(self.components, preserve_index=False)
        components = components.append_column("scores", lists(self.components["area"], self.defect_scores))
        write(images, facts, folder / "images.parquet", smallest=smallest)
        write(components, facts, folder / "components.parquet", smallest=smallest)
        for name in EVIDENCE_FILES[2:]:
            (folder / name).unlink(missing_ok=True)
        if self.calibration is not None:
            self.calibration.save(folder / "calibration.parquet", smallest=smallest)
        if self.regions is not None:
            regions = pa.Table.from_pandas(self.regions.table, preserve_index=False)
            regions = regions.append_column("scores", lists(self.regions.table["saturation"], self.regions.scores))
            write(regions, facts, folder / "regions.parquet", smallest=smallest)
        if self.rims is not None:
            rims = pa.Table.from_pandas(self.rims.table.drop(columns="outer"), preserve_index=False)
            rims = rims.append_column("outer_scores", lists(self.rims.table["outer"], self.rims.outer_scores))
            rims = rims.append_column("inner", lists(self.components["area"], self.rims.inner.view(np.uint8)))
            write(rims, facts, folder / "rims.parquet", smallest=smallest)

    @staticmethod
    def load(folder: Path) -> Evidence:
        """Read what :meth:`save` wrote; a missing or damaged file, or of another schema, is named."""
        paths = [folder / name for name in EVIDENCE_FILES]
        images, facts = read(paths[0], IMAGES, Facts)
        components, _ = read(paths[1], COMPONENTS, Facts)
        calibration = Calibration.load(paths[2]) if paths[2].exists() else None
        regions = read(paths[3], REGIONS, Facts)[0] if paths[3].exists() else None
        rims = read(paths[4], RIMS, Facts)[0] if paths[4].exists() else None
        if not len(images):
            raise HrbenchError(f"{paths[0]}: no image, expected some")
        keys, shift = arrays(images["normal_keys"]), facts.shift
        counts = arrays(images["normal_counts"]) if "normal_counts" in images.column_names else None
        normals: list[NormalScores]
        if counts is None:
            normals = [sorted_keys(image_keys, shift, paths[0]) for image_keys in keys]
        else:
            bins = [histogram(*pair, shift, paths[0]) for pair in zip(keys, counts, strict=True)]
            if shift:
                normals = [*bins]
            else:  # exact, as it was once written
                check_size(sum(part.total * part.keys.itemsize for part in bins), paths[0])
                normals = [SortedKeys(np.repeat(part.keys, part.counts), shift) for part in bins]
        for column in {"group", "condition"} - set(images.column_names):
            images = images.append_column(column, pa.array([""] * len(images)))
        frame = frame_of(images, IMAGE_DTYPES)
        unknown = frame["id"][frame["label"].eq(1) & frame[["normal_pixels", "defect_pixels"]].eq(0).all(axis=1)]
        known, unmasked = set_apart(frame["id"].tolist(), normals, set(unknown))
        evidence = Evidence(
            images=frame,
            components=frame_of(components, COMPONENT_DTYPES),
            defect_scores=flat(components["scores"]),
            normals=known,
            lossless=facts.lossless,
            spec=facts.collection,
            calibration=calibration,
            unmasked=unmasked,
            regions=None if regions is None else Regions(frame_of(regions, REGION_DTYPES), flat(regions["scores"])),
            rims=None if rims is None else _rims(rims),
        )
        _check_images(evidence, paths[0])
        _check_components(evidence, components["scores"], paths[1])
        if regions is not None and evidence.regions is not None:
            same = np.array_equal(lengths(regions["scores"]), evidence.regions.table["saturation"])
            refuse({"regions without the scores of as many pixels as are enough": not same}, paths[3])
            refuse({"regions of shrunk masks": evidence.spec.side is not None}, paths[3])
            refuse(region_problems(evidence.regions, frame, evidence.components, evidence.defect_scores), paths[3])
        if rims is not None and evidence.rims is not None:
            same = rims.num_rows > 0 and np.array_equal(lengths(rims["inner"]), evidence.components["area"])
            refuse({"rims of shrunk masks": evidence.spec.side is not None}, paths[4])
            refuse({"rims of other components than there are": not same}, paths[4])
            refuse(rim_problems(evidence.rims, frame, evidence.components, known, evidence.defect_scores), paths[4])
        return evidence


def set_apart(
    ids: Sequence[str], pixels: Sequence[NormalScores], unknown: Collection[str]
) -> tuple[list[NormalScores], dict[str, NormalScores]]:
    """Return the normal pixels of each image, none of those whose masks are `unknown`, and all pixels of these."""
    unmasked = {name: part for name, part in zip(ids, pixels, strict=True) if name in unknown}
    return [part.none() if name in unmasked else part for name, part in zip(ids, pixels, strict=True)], unmasked


def _merged_regions(parts: Sequence[Evidence]) -> Regions | None:
    known = [part.regions for part in parts if part.regions is not None]
    if not known:
        return None
    for part in parts:
        if part.regions is None and len(part.components):
            raise without_regions(part.components["image"].iloc[0])
    return Regions.merge(known)


def _require_annotated(parts: Sequence[Evidence]) -> None:
    if any(part.annotated is not None for part in parts):
        raise HrbenchError("evidence under other masks than those annotated can only be measured")


def _rims(table: pa.Table) -> Rims:
    scores, inner = table["outer_scores"], table["inner"]
    frame = table.drop_columns(["outer_scores", "inner"]).append_column("outer", pa.array(lengths(scores)))
    return Rims(frame_of(frame, RIM_DTYPES), flat(scores), flat(inner).astype(bool))


def _check_images(evidence: Evidence, path: Path) -> None:
    """Check what images must have in common with their normal pixels, and with each other."""
    images, ids = evidence.images, evidence.images["id"].to_numpy(dtype=str)
    pixels = images["normal_pixels"] + images["defect_pixels"]
    area, known = images["height"] * images["width"], pd.Series(evidence.known)
    wrong = {
        "images that are not in order, or there twice": bool((ids[:-1] >= ids[1:]).any()),
        "pixels that are not those of their image": not pixels.equals(area.where(known, 0)),
        "normal pixels without their scores": [part.total for part in evidence.pixels]
        != images["normal_pixels"].where(known, area).tolist(),
        "defects of good images": bool((images["defect_pixels"] > 0).gt(images["label"] > 0).any()),
        "a decision on more pixels than there are": bool(
            (images["decision_tp"] > images["defect_pixels"]).any()
            or (images["decision_fp"] > images["normal_pixels"].where(known, area)).any()
        ),
        "half a decision": not images["decision_tp"].isna().equals(images["decision_fp"].isna()),
        "scores of two kinds": evidence.defect_scores.itemsize != evidence.normals[0].keys.itemsize,
    }
    refuse(wrong, path)


def _check_components(evidence: Evidence, scores: pa.ChunkedArray, path: Path) -> None:
    """Check what components must have in common with their scores and with the images."""
    images, components = evidence.images, evidence.components
    owner = pd.Series(np.arange(len(images)), index=images["id"]).reindex(components["image"])
    refuse({"components of images that are not there": bool(owner.isna().any())}, path)
    rows, area = owner.to_numpy(dtype=np.int64), components["area"].to_numpy()
    top, left, bottom, right = (components[name].to_numpy() for name in ("top", "left", "bottom", "right"))
    height, width = (images[name].to_numpy()[rows] for name in ("height", "width"))
    defects = np.bincount(rows, weights=area, minlength=len(images))
    wrong = {
        "components that are not in the order of their images": bool((np.diff(rows) < 0).any()),
        "components without the scores of their pixels": not np.array_equal(lengths(scores), area),
        "components that are not the defects of their images": not np.array_equal(defects, images["defect_pixels"]),
        "components outside their image": bool(
            ((bottom > height) | (right > width) | (area > (bottom - top) * (right - left))).any()
        ),
        "decisions on other components than those of decided images": not np.array_equal(
            components["decision_pixels"].isna(), images["decision_tp"].isna().to_numpy()[rows]
        ),
        "a decision on more pixels than there are": bool((components["decision_pixels"] > components["area"]).any()),
    }
    refuse(wrong, path)
