"""Whether an archive, whoever made it, is what the publisher's server of MVTec AD 2 takes."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench._util.progress import track
from hrbench.data import load_descriptor
from hrbench.data.descriptor import Descriptor
from hrbench.errors import HrbenchError
from hrbench.imaging import image_size, read_pixels, read_tiff
from hrbench.runs.server_archive import MAPS, THRESHOLDED, expected_names, private_folders

__all__ = ["Part", "check_archive"]

_PLACE = re.compile(
    rf"(?:\./)?(?:[^/]+/)?(?P<kind>{MAPS}|{THRESHOLDED})/(?P<category>[^/]+)/(?P<folder>[^/]+)/(?P<stem>[^/]+)\.(?P<end>\w+)"
)
_ENDS = {MAPS: "tiff", THRESHOLDED: "png"}
_LARGEST = 1 << 29  # bytes of a file that is read
_SMALLEST = 6e-8  # of float16's numbers above zero
_NAMED = 3

Size = tuple[int, int]


@dataclass
class Part:
    """What an archive holds of a folder of private images.

    Attributes
    ----------
    category, folder : str
    maps, decisions : dict of str to (int, int)
        Their height and width, by the stem of their image; of those that are as they should be.
    lowest, highest : float
        Score.
    distinct : list of int
        Scores of each map.
    called : int
        Pixels of all decisions.
    alarms : int
        Decisions with any such pixel.
    """

    category: str
    folder: str
    maps: dict[str, Size] = field(default_factory=dict)
    decisions: dict[str, Size] = field(default_factory=dict)
    lowest: float = float("inf")
    highest: float = float("-inf")
    distinct: list[int] = field(default_factory=list)
    called: int = 0
    alarms: int = 0

    @property
    def pixels(self) -> int:
        """Of all decisions."""
        return sum(height * width for height, width in self.decisions.values())


def check_archive(
    path: Path,
    root: Path | None = None,
    *,
    dataset: str | Path = "mvtec_ad_2",
) -> tuple[list[Part], list[str]]:
    """Read an archive file by file, and compare it with what the server takes.

    Parameters
    ----------
    path : Path
        A ``.tar.gz`` whose folders lie in one folder, as the publisher's tool packs them, or in none.
    root : Path, optional
        The dataset's folder: sizes are compared with those of the images.
    dataset : str or Path
        Descriptor.

    Returns
    -------
    list of Part
        In the descriptor's order.
    list of str
        What is wrong, one line each: files that are missing, of another name, there twice, damaged, of another type,
        shape or size; scores that are not finite or all equal; decisions of other values than 0 and 255.

    Raises
    ------
    HrbenchError
        If the file is no such archive at all.
    """
    descriptor = load_descriptor(dataset)
    folders = private_folders(descriptor)
    parts = {(category, folder): Part(category, folder) for category in descriptor.categories for folder in folders}
    if not path.is_file():
        raise HrbenchError(f"{path}: no such file, expected a .tar.gz")
    findings: list[str] = []
    seen: set[str] = set()
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "member"
        total = 4 * sum(descriptor.expected(category).private or 0 for category in descriptor.categories)
        for name in track(_files(path, copy, findings), "checking", total=total, unit="file"):
            try:
                _read(name, copy, parts, seen)
            except HrbenchError as error:
                findings.append(f"{name}: {str(error).removeprefix(f'{copy}: ')}")
    for part in parts.values():
        findings += _incomplete(part, descriptor, root)
    return list(parts.values()), findings


def _files(path: Path, copy: Path, findings: list[str]) -> Iterator[str]:
    """Yield the names of an archive's files, each with its content in `copy`; one that ends early is a finding."""
    started = False
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                started = True
                if member.isdir():
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.size > _LARGEST:
                    what = "is larger than any map" if content else "is no file"
                    findings.append(f"{member.name}: {what}, expected maps and decisions alone")
                    continue
                with copy.open("wb") as file:
                    while block := content.read(1 << 20):
                        file.write(block)
                yield member.name
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if not started:
            raise HrbenchError(f"{path}: not a .tar.gz: {error}") from None
        findings.append(f"{path}: ends early, or is damaged: {error}")


def _read(name: str, copy: Path, parts: Mapping[tuple[str, str], Part], seen: set[str]) -> None:
    """Read a map or a decision."""
    place = _PLACE.fullmatch(name)
    part = parts.get((place["category"], place["folder"])) if place else None
    if place is None or part is None or place["end"] != _ENDS[place["kind"]]:
        raise HrbenchError("is none of the files that the server knows")
    key = f"{place['kind']}/{part.category}/{part.folder}/{place['stem']}"
    if key in seen:
        raise HrbenchError("is there twice")
    seen.add(key)
    if place["kind"] == MAPS:
        _read_map(read_tiff(copy), part, place["stem"])
    else:
        _read_decision(read_pixels(copy), part, place["stem"])


def _read_map(array: npt.NDArray[Any], part: Part, stem: str) -> None:
    if array.ndim != 2 or array.dtype != np.float16:
        raise HrbenchError(f"is {array.dtype} of shape {array.shape}, expected float16 of (H, W)")
    part.maps[stem] = (array.shape[0], array.shape[1])
    if bad := int(array.size - np.isfinite(array).sum()):
        raise HrbenchError(f"{bad} NaN or infinite pixels, expected finite scores")
    scores = np.sort(array, axis=None)
    low, high = float(scores[0]), float(scores[-1])
    part.lowest, part.highest = min(part.lowest, low), max(part.highest, high)
    part.distinct.append(1 + int(np.count_nonzero(scores[1:] != scores[:-1])))
    if low == high:
        what = f"below {_SMALLEST:g}, where float16 ends" if abs(high) < _SMALLEST else f"{high:g}"
        raise HrbenchError(f"all scores are {what}: nothing is told apart")


def _read_decision(array: npt.NDArray[Any], part: Part, stem: str) -> None:
    if array.ndim != 2 or array.dtype != np.uint8:
        raise HrbenchError(f"is {array.dtype} of shape {array.shape}, expected uint8 of (H, W)")
    part.decisions[stem] = (array.shape[0], array.shape[1])
    if others := np.setdiff1d(array, [0, 255]).tolist():
        raise HrbenchError(f"values {', '.join(map(str, others[:_NAMED]))}, expected 0 and 255 alone")
    called = int(np.count_nonzero(array))
    part.called += called
    part.alarms += called > 0


def _incomplete(part: Part, descriptor: Descriptor, root: Path | None) -> Iterator[str]:
    """Yield which files are missing, too many, or of another size than their image."""
    number = descriptor.expected(part.category).private
    if number is None:
        number = max(1, len(part.maps), len(part.decisions))
    names = expected_names(part.folder, number)
    for kind, found in ((MAPS, part.maps), (THRESHOLDED, part.decisions)):
        place = f"{kind}/{part.category}/{part.folder}"
        if missing := [name for name in names if name not in found]:
            yield f"{place}: {_listed(missing)} missing, expected {number} .{_ENDS[kind]}"
        if extra := sorted(found.keys() - set(names)):
            yield f"{place}: {_listed(extra)} too many, expected {number} .{_ENDS[kind]}"
        for stem in sorted(found.keys() & set(names)):
            expected, whose = part.maps.get(stem), "map"
            image = root / part.category / part.folder / f"{stem}.png" if root is not None else None
            if image is not None:
                try:
                    expected, whose = image_size(image), "image"
                except HrbenchError as error:
                    yield str(error)
                    continue
            if expected is not None and found[stem] != expected:
                size, other = (f"{height} x {width}" for height, width in (found[stem], expected))
                yield f"{place}/{stem}.{_ENDS[kind]}: is {size} (height x width), expected {other} as its {whose}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
