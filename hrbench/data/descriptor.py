"""Dataset descriptors: what a dataset is, how it lies on disk and how many images it should have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

__all__ = ["Counts", "Descriptor", "MaskCoding"]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Expected numbers of images; None where no certain figure is published.

    Attributes
    ----------
    train, test_good, test_defective : int or None
    private : int or None
        In each folder of test images whose labels the publisher keeps.
    """

    train: int | None = None
    test_good: int | None = None
    test_defective: int | None = None
    private: int | None = None


@dataclasses.dataclass(frozen=True)
class MaskCoding:
    """How masks are named and coded.

    Attributes
    ----------
    suffix : str
        What a mask's stem has more than its image's, e.g. ``_mask``.
    values : str
        The coding in words. Readers take every non-zero value as defect.
    unusable : {"error", "leave_out"}
        What becomes of a defective image whose mask has no defect pixel or another size: a mistake that ends a run
        before it begins, or the image is left out of the test, and every check and run says so. Only the latter makes
        readers open masks.
    missing : {"error", "unknown"}
        What a defective image without a mask is: a mistake, or one whose defects lie nobody knows where, which counts
        in what is measured per image and in nothing else.
    """

    suffix: str = ""
    values: str = "0 = normal, anything else = defect"
    unusable: Literal["error", "leave_out"] = "error"
    missing: Literal["error", "unknown"] = "error"


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """A dataset as its publisher describes it.

    Attributes
    ----------
    name, title : str
    layout : str
        One of :data:`hrbench.data.layouts.LAYOUTS`.
    licence, citation, url : str
        Terms, whom to cite, and where to get it. Nothing is ever downloaded.
    notes : str
        Quirks, and what the reader does about them.
    mask : MaskCoding
    total : Counts
        Over all categories.
    categories : mapping of str to Counts
        Empty if any folder may be a category.
    group : str
        Which images belong together, because they show one part or one place: a regular expression, searched in a
        sample's id. What its first group matches (all of the match if it has none) names the group, inside the
        category. An image in which it finds nothing stands on its own. Without it all images do.
    condition : str
        Under which light, or from which side, an image was taken: a regular expression as that of `group`. What it
        finds names the condition, which all categories share.
    images, splits : str
        Folders below the root, for layouts that have several to choose from: of the images, and of the files that say
        which of them are for training. By default both lie in the root itself.
    """

    name: str
    title: str
    layout: str
    licence: str
    citation: str
    url: str
    notes: str = ""
    mask: MaskCoding = MaskCoding()
    total: Counts = Counts()
    categories: dict[str, Counts] = dataclasses.field(default_factory=dict)
    group: str = ""
    condition: str = ""
    images: str = ""
    splits: str = ""

    def expected(self, category: str) -> Counts:
        """Return the expected counts of a category, all None if there are none."""
        counts: Mapping[str, Counts] = self.categories
        return counts.get(category, Counts())

    def group_of(self, category: str, sample_id: str) -> str:
        """Return the name of a sample's group, empty if it stands on its own."""
        name = _found(self.group, sample_id)
        return f"{category}/{name}" if name else ""

    def condition_of(self, sample_id: str) -> str:
        """Return the name of a sample's condition, empty if none is known."""
        return _found(self.condition, sample_id)


def _found(pattern: str, sample_id: str) -> str:
    found = re.search(pattern, sample_id) if pattern else None
    return (found[1 if found.re.groups else 0] or "") if found else ""
