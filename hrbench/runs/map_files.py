"""Anomaly maps and decisions of any tool: find each image's file, read it, refuse what cannot be scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrbench._util.files import relative_path
from hrbench.data.sample import Sample
from hrbench.errors import HrbenchError
from hrbench.evidence.histograms import check_map
from hrbench.imaging import png_depth, read_mask, read_pixels, read_tiff

__all__ = ["MAP_SUFFIXES", "find_decisions", "find_maps", "read_decision", "read_map"]

MAP_SUFFIXES = (".npy", ".tif", ".tiff", ".png")
"""File name endings (lower case) that count as maps."""

_EXPECTED = "expected .npy, .tiff (float16 or float32) or 16-bit .png"
_MAPS = "anomaly_images"
_DECISIONS = "anomaly_images_thresholded"


def read_map(path: Path | str, size: tuple[int, int] | None) -> NDArray[np.floating[Any]]:
    """Read one anomaly map.

    Parameters
    ----------
    path : Path or str
        ``.npy`` or ``.tif(f)`` of floats or of integers with at least 16 bits, or a 16-bit grey ``.png``.
    size : tuple of int or None
        Height and width of the image, None if any will do. A map of another size is refused, never resized.

    Returns
    -------
    ndarray of float32, shape (H, W)
        Higher means more anomalous; float64 where the file holds more than float32 can.

    Raises
    ------
    HrbenchError
        If the file is damaged, has another size, several channels, 8 bits, or a value that is not finite.
    """
    path = Path(path)
    array = _load(path)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise HrbenchError(f"{path}: array of shape {array.shape}, expected one channel of shape {size or '(H, W)'}")
    if array.dtype.kind not in "fui":
        raise HrbenchError(f"{path}: values are {array.dtype}, expected float16, float32 or 16-bit integers")
    if array.dtype.itemsize < 2:
        raise _eight_bits(path)
    if size is not None and array.shape != tuple(size):
        raise HrbenchError(
            f"{path}: map is {array.shape[0]} x {array.shape[1]} (height x width), "
            f"expected {size[0]} x {size[1]} as its image; maps are not resized here"
        )
    return check_map(array, None, str(path))


def find_maps(folder: Path | str, samples: Sequence[Sample]) -> dict[str, Path]:
    """Find the map of every sample below `folder`.

    Accepted are, per image: its path in the dataset with another suffix;
    ``<category>/test/<defect>/<stem>``; ``anomaly_images/<category>/<split>/<stem>`` (the submission of
    MVTec AD 2; `folder` may be ``anomaly_images`` itself); ``<category>/<stem>`` or ``<stem>`` where stems are
    unique.

    Parameters
    ----------
    folder : Path or str
    samples : sequence of Sample

    Returns
    -------
    dict
        Sample id to map file, in the order of `samples`.

    Raises
    ------
    HrbenchError
        If a map is missing, or an image has two candidates, or two images share one.
    """
    folder = _existing(folder)
    return _find("map", folder, samples, MAP_SUFFIXES, [folder, folder / _MAPS], _EXPECTED)


def find_decisions(folder: Path | str, samples: Sequence[Sample]) -> dict[str, Path]:
    """Find thresholded maps, ``anomaly_images_thresholded/<category>/<split>/<stem>.png``.

    Parameters
    ----------
    folder : Path or str
        As for :func:`find_maps`.
    samples : sequence of Sample

    Returns
    -------
    dict
        Sample id to file; empty if there is no such folder: decisions are optional.

    Raises
    ------
    HrbenchError
        If the folder is there and some, but not all, decisions are.
    """
    folder = _existing(folder)
    base = folder.parent / _DECISIONS if folder.name == _MAPS else folder / _DECISIONS
    if not base.is_dir():
        return {}
    return _find("decision", base, samples, (".png",), [base], "expected .png with values 0 and 255")


def read_decision(path: Path | str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a thresholded map: single-channel PNG, 255 where the tool calls a defect and 0 elsewhere.

    Parameters
    ----------
    path : Path or str
    size : tuple of int
        Height and width of the image.

    Returns
    -------
    ndarray of bool, shape (H, W)

    Raises
    ------
    HrbenchError
        If it has another size, several channels, or other values.
    """
    path = Path(path)
    array = read_pixels(path)
    if array.ndim != 2:
        raise HrbenchError(f"{path}: {array.shape[2]} channels, expected one with values 0 and 255")
    others = np.setdiff1d(np.unique(array), [0, 255])
    if others.size:
        wrong = ", ".join(str(value) for value in others[:5])
        raise HrbenchError(f"{path}: values {wrong} found, expected only 0 and 255")
    return read_mask(path, size)


def _load(path: Path) -> NDArray[Any]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if not path.is_file():
            raise HrbenchError(f"{path}: no such file, {_EXPECTED}")
        try:
            loaded = np.load(path, allow_pickle=False)
        except (ValueError, OSError, LookupError, TypeError, EOFError, SyntaxError, TokenError, MemoryError) as error:
            raise HrbenchError(f"{path}: not a readable array: {error}; {_EXPECTED}") from None
        if not isinstance(loaded, np.ndarray):
            raise HrbenchError(f"{path}: an archive of several arrays, {_EXPECTED}")
        return loaded
    if suffix in (".tif", ".tiff"):
        return read_tiff(path)
    if suffix == ".png":
        array = read_pixels(path)
        depth = png_depth(path)
        if depth is not None and depth[1] == 1 and depth[0] < 16:
            raise _eight_bits(path)
        return array
    raise HrbenchError(f"{path}: unknown type of map {path.suffix!r}, {_EXPECTED}")


def _eight_bits(path: Path) -> HrbenchError:
    return HrbenchError(
        f"{path}: 8-bit map, expected at least 16 bits: 256 levels destroy metrics that rank pixels; "
        "write .npy, float16 or float32 .tiff, or 16-bit .png"
    )


def _existing(folder: Path | str) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise HrbenchError(f"{folder}: no such folder, expected one with an anomaly map per image")
    return folder


class _Listing:
    """Files by folder and stem; each folder is read once."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes
        self.folders: dict[Path, dict[str, list[Path]]] = {}

    def candidates(self, base: Path, place: PurePosixPath) -> list[Path]:
        folder = base / place.parent
        if folder not in self.folders:
            stems: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix.lower() in self.suffixes:
                    stems.setdefault(path.stem, []).append(path)
            self.folders[folder] = stems
        return self.folders[folder].get(place.name, [])


def _find(
    kind: str,
    folder: Path,
    samples: Sequence[Sample],
    suffixes: tuple[str, ...],
    bases: list[Path],
    expected: str,
) -> dict[str, Path]:
    listing = _Listing(suffixes)
    places = _places(samples)
    paths_by_id: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    missing: list[str] = []
    for sample in samples:
        candidates = {
            path: None
            for base in bases
            for place in places[sample.id]
            for path in listing.candidates(base, place)
            if path != sample.image and path not in sample.masks
        }
        paths = list(candidates)
        if len(paths) > 1:
            raise HrbenchError(f"{sample.id}: two candidates for its {kind}, {paths[0]} and {paths[1]}; expected one")
        if not paths:
            missing.append(sample.id)
            continue
        path = paths[0]
        if path in owner:
            raise HrbenchError(
                f"{path}: matches two images, {owner[path]} and {sample.id}; "
                f"expected the images' folders below {folder}"
            )
        owner[path] = sample.id
        paths_by_id[sample.id] = path
    if missing:
        stem = PurePosixPath(missing[0]).stem
        shared = any(listing.candidates(base, PurePosixPath(stem)) for base in bases)
        hint = f" ({stem} alone does not say which image: several have that stem)" if shared else ""
        raise HrbenchError(
            f"{folder}: no {kind} for {len(missing)} of {len(samples)} images: {_first(missing)}; {expected}, "
            f"named as the image or laid out as {_MAPS}/<category>/<split>/<stem>{hint}"
        )
    return paths_by_id


def _places(samples: Sequence[Sample]) -> dict[str, list[PurePosixPath]]:
    """Return, per sample id, where below a folder its map may lie, without suffix."""
    shared: dict[PurePosixPath, int] = {}
    fixed: dict[str, list[PurePosixPath]] = {}
    flat: dict[str, list[PurePosixPath]] = {}
    for sample in samples:
        mirror = relative_path(sample.id)
        mirror = mirror.with_name(mirror.stem)
        category = relative_path(sample.category)
        inner = mirror.relative_to(category) if mirror.is_relative_to(category) else mirror
        split = inner.parts[0] if len(inner.parts) > 1 else sample.split
        fixed[sample.id] = [
            mirror,
            category / inner,
            category / relative_path(sample.split, sample.defect_type) / mirror.name,
        ]
        flat[sample.id] = [category / split / mirror.name, category / mirror.name, PurePosixPath(mirror.name)]
        for place in set(flat[sample.id]):
            shared[place] = shared.get(place, 0) + 1
    # A name without the defect's folder is only an answer where no other image would have the same one.
    return {
        id_: list(dict.fromkeys([*fixed[id_], *(place for place in flat[id_] if shared[place] == 1)])) for id_ in fixed
    }


def _first(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
