"""Pictures of a run as files: a part of a photograph as JPEG, its anomaly map in grey, its mask in one bit (PNG).

``pictures.json`` says what they show and which scores the greys stand for. Files may come from others: they are read
with bounds, and decoded before anything of them is shown.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from hrbench._util.files import atomic
from hrbench._util.received import read_json
from hrbench._util.types import Mismatch, conform
from hrbench.errors import HrbenchError

__all__ = ["UNIT", "Box", "Picture", "Pictures", "read_pictures", "write_pictures"]

UNIT = 128
"""The first grey of scores at or above the threshold; 0 is the median of the normal pixels, 255 all from twice that."""

Box = tuple[int, int, int, int]
_SCHEMA = 2
_MOST, _LARGEST, _PIXELS = 100, 1 << 24, 4_000_000  # pictures of a run; bytes and pixels of one that is read


@dataclass(frozen=True)
class Picture:
    """A part of an image at native pixels, with its anomaly map and its mask.

    Attributes
    ----------
    image : str
        Id of the sample.
    kinds : tuple of str
        Why it was chosen, see :mod:`hrbench.runs.picture_choice`; empty where another run has chosen it.
    label : int
        1 for a defective image.
    height, width : int
        Of the whole image.
    window : tuple of int
        What is shown, (top, left, bottom, right) in native pixels.
    defect : tuple of int or None
        Box of the defect that it was chosen for; None where a whole image was.
    area : int
        Of the defect, in pixels.
    score : float
        Critical score of the defect, alarm score of an image.
    reached : float or None
        Share of the defect's pixels at or above the threshold; None without either, and in runs of earlier versions.
    peak : tuple of int
        Row and column of the highest score in the window, in native pixels.
    photo, map : Path
    mask : Path or None
        None for a good image, and where the mask is not known.
    """

    image: str
    kinds: tuple[str, ...]
    label: int
    height: int
    width: int
    window: Box
    defect: Box | None
    area: int
    score: float
    peak: tuple[int, int]
    photo: Path
    map: Path
    mask: Path | None
    reached: float | None = None

    @property
    def key(self) -> tuple[str, Box, Box | None]:
        """Equal for pictures of the same defect or place, by whatever method; small images have windows in common."""
        return self.image, self.window, self.defect

    @property
    def files(self) -> list[Path]:
        """Those that are there."""
        return [path for path in (self.photo, self.map, self.mask) if path is not None]

    def read_photo(self) -> npt.NDArray[np.uint8]:
        """Return the photograph, (h, w, 3)."""
        return _read(self.photo, "JPEG", "RGB")

    def read_map(self) -> npt.NDArray[np.uint8]:
        """Return the anomaly map in grey, (h, w); see :data:`UNIT`."""
        return _read(self.map, "PNG", "L")

    def read_mask(self) -> npt.NDArray[np.bool_] | None:
        """Return the mask, (h, w); None where there is none."""
        return None if self.mask is None else _read(self.mask, "PNG", "L") > 0


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run.

    Attributes
    ----------
    items : tuple of Picture
    low, unit : float
        Scores of grey 0 and of grey :data:`UNIT`.
    threshold : float or None
        The matched one: a defect is found, and an image alarms, at this score or above. None without good images.
    budget : float
        Share of the good images that may alarm at it.
    protocol : str
        Whose threshold it is.
    share : float or None
        Of a defect's pixels, how many must reach it for a hit; None in runs of earlier versions.
    former : bool
        Whether the run has pictures that an earlier version drew, which no report shows any more.
    """

    items: tuple[Picture, ...] = ()
    low: float = 0.0
    unit: float = 1.0
    threshold: float | None = None
    budget: float = 0.0
    protocol: str = ""
    share: float | None = None
    former: bool = False

    def found(self, picture: Picture) -> bool | None:
        """Tell whether the defect is found, or the image alarms; None without a threshold."""
        return None if self.threshold is None else picture.score >= self.threshold

    def relative(self, score: float) -> float:
        """Return a score on the scale on which the median normal pixel is 0 and the threshold 1."""
        return (score - self.low) / (self.unit - self.low)


@dataclass(frozen=True)
class _Entry:
    image: str
    kinds: list[str]
    label: int
    height: int
    width: int
    window: list[int]
    defect: list[int] | None
    area: int
    score: float
    peak: list[int]
    photo: str
    map: str
    mask: str | None
    reached: float | None = None
    unknown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Index:
    schema: Literal[2]
    low: float
    unit: float
    threshold: float | None
    budget: float
    protocol: str
    items: list[_Entry]
    share: float | None = None
    unknown: dict[str, Any] = field(default_factory=dict)


def write_pictures(folder: Path, pictures: Pictures) -> Path:
    """Write ``pictures.json``; return its path."""
    table = asdict(pictures) | {"schema": _SCHEMA}
    del table["former"]
    index = folder / "pictures.json"
    with atomic(index) as path:
        path.write_text(json.dumps(table, indent=1, default=lambda file: file.name), encoding="utf-8")
    return index


def read_pictures(index: Path, checked: Callable[[Path], Path]) -> Pictures:
    """Read ``pictures.json``.

    Parameters
    ----------
    index : Path
    checked : callable
        Returns the path of a file as it is, or raises if it must not be read.

    Raises
    ------
    HrbenchError
        If it is damaged, or names a file that must not be read.
    """
    table = read_json(index, 1 << 20)
    if isinstance(table, list):  # of a version that drew coloured panels
        return Pictures(former=bool(table))
    try:
        found: _Index = conform(table, _Index)
        if len(found.items) > _MOST:
            raise Mismatch("items", f"holds {len(found.items)} pictures, expected at most {_MOST}")
        if not found.low < found.unit or not all(map(math.isfinite, (found.low, found.unit))):
            raise Mismatch("unit", f"is {found.unit}, expected a number above low, {found.low}")
        items = [_picture(entry, index.parent, checked, f"items[{n}]") for n, entry in enumerate(found.items)]
    except Mismatch as wrong:
        raise HrbenchError(f"{index}: {wrong.path or 'all of it'} {wrong.problem}") from None
    facts = found.low, found.unit, found.threshold, found.budget, found.protocol, found.share
    return Pictures(tuple(items), *facts)


def _picture(entry: _Entry, folder: Path, checked: Callable[[Path], Path], where: str) -> Picture:
    window, size = _box(entry.window, f"{where}.window"), (entry.height, entry.width)
    defect = None if entry.defect is None else _box(entry.defect, f"{where}.defect")
    if window[2] > size[0] or window[3] > size[1]:
        raise Mismatch(f"{where}.window", f"is {list(window)}, expected a part of {size[0]} x {size[1]} pixels")
    if len(entry.peak) != 2:
        raise Mismatch(f"{where}.peak", f"is {list(entry.peak)}, expected row and column")
    photo, grey, mask = (
        None if name is None else checked(folder / Path(name).name) for name in (entry.photo, entry.map, entry.mask)
    )
    assert photo is not None
    assert grey is not None
    facts = entry.image, tuple(entry.kinds), entry.label, *size, window, defect, entry.area, entry.score
    return Picture(*facts, (entry.peak[0], entry.peak[1]), photo, grey, mask, entry.reached)


def _box(values: list[int], where: str) -> Box:
    if len(values) != 4 or not (0 <= values[0] < values[2] and 0 <= values[1] < values[3]):
        raise Mismatch(where, f"is {list(values)}, expected top, left, bottom and right")
    top, left, bottom, right = values
    return top, left, bottom, right


def _read(path: Path, kind: Literal["JPEG", "PNG"], mode: Literal["RGB", "L"]) -> npt.NDArray[np.uint8]:
    """Decode a picture.

    Raises
    ------
    HrbenchError
        If it is none of its kind, or larger than any that hrbench draws.
    """
    if not path.is_file():
        raise HrbenchError(f"{path}: no such file, expected a {kind}")
    if path.stat().st_size > _LARGEST:
        raise HrbenchError(f"{path}: {path.stat().st_size} bytes, expected at most {_LARGEST} of a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=(kind,)) as image:
                if image.width * image.height > _PIXELS:
                    raise HrbenchError(f"{path}: {image.width} x {image.height} pixels, expected at most {_PIXELS}")
                return np.array(image.convert(mode))
    except HrbenchError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HrbenchError(f"{path}: not readable as a {kind}: {' '.join(str(error).split())}") from None
