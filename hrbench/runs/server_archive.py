"""Maps of private test images in one archive, as the publisher's server of MVTec AD 2 takes it.

It holds, as the publisher's own tool packs it, ::

    submission/anomaly_images/<object>/test_private/NNN_regular.tiff               float16, of the image's size
    submission/anomaly_images/<object>/test_private_mixed/NNN_mixed.tiff
    submission/anomaly_images_thresholded/<object>/test_private/NNN_regular.png    0 or 255
    submission/anomaly_images_thresholded/<object>/test_private_mixed/NNN_mixed.png

Beside it a JSON file says which runs it is of, and what float16 has cost. Images are predicted, written and forgotten
one by one, so that memory does not grow; an archive is there whole or not at all; equal maps give equal bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench.data import load_dataset, load_descriptor
from hrbench.data.descriptor import Descriptor
from hrbench.data.layouts import LAYOUTS, Tree
from hrbench.data.sample import Sample
from hrbench.engine.batch_size import BatchSize
from hrbench.engine.prefetch import ahead
from hrbench.errors import HrbenchError, unknown_name
from hrbench.imaging import check_image
from hrbench.runs.detector import Detector, Verdict
from hrbench.runs.environment import environment
from hrbench.runs.half_scale import HalfScale, Merged
from hrbench.runs.record import RunRecord
from hrbench.runs.store import load_run

__all__ = ["LIMITS", "MAPS", "THRESHOLDED", "TOP", "Packed", "expected_names", "pack_maps", "private_folders"]

TOP, MAPS, THRESHOLDED = "submission", "anomaly_images", "anomaly_images_thresholded"
LIMITS = (0.05, 0.30)  # of false positives, up to which the server measures AU-PRO
_LIGHTS = {"test_private": "regular", "test_private_mixed": "mixed"}  # the end of an image's stem, by its folder
_MOST_NAMED = 20
_GZIP_LEVEL = 1  # maps are noise in their last bits: more effort saves little


@dataclass(frozen=True)
class Packed:
    """What the archive holds of an object.

    Attributes
    ----------
    category : str
    about : RunRecord
        Of the run whose method has predicted it.
    threshold : float
        At or above which a pixel of the unrounded map is called.
    scale : HalfScale
    merged : Merged
        What float16 has made equal.
    called : float
        Share of the pixels.
    """

    category: str
    about: RunRecord
    threshold: float
    scale: HalfScale
    merged: Merged
    called: float


def private_folders(descriptor: Descriptor) -> Mapping[str, str]:
    """Return the folders of private test images of a category, and how the stems of their images end.

    Raises
    ------
    HrbenchError
        If the dataset has none.
    """
    layout = LAYOUTS[descriptor.layout]
    if not isinstance(layout, Tree) or set(layout.private) != set(_LIGHTS):
        raise HrbenchError(f"dataset {descriptor.name!r}: has no private test images, expected mvtec_ad_2")
    return _LIGHTS


def expected_names(folder: str, number: int) -> list[str]:
    """Return the stems of so many images of a folder of private ones."""
    return [f"{image:03d}_{_LIGHTS[folder]}" for image in range(number)]


def pack_maps(
    runs: Sequence[Path | str],
    root: Path | str,
    target: Path,
    *,
    dataset: str | Path = "mvtec_ad_2",
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    batch_size: BatchSize | None = None,
) -> list[Packed]:
    """Let finished runs, one for each object, predict its private test images, and pack the maps into `target`.

    The scale of float16 and the threshold of each object follow from the run's held-out normal images alone. Beside
    the archive a JSON file of its name and ``.json`` says where it comes from.

    Parameters
    ----------
    runs : sequence of Path or str
    root : Path or str
        The dataset's folder.
    target : Path
        New file, ``.tar.gz``.
    dataset : str or Path
        Descriptor, a built-in name or a ``.toml`` file.
    method, options, device, batch_size
        As of :meth:`hrbench.Detector.load`, for each of the runs.

    Raises
    ------
    HrbenchError
        Before anything is predicted: for runs without threshold, of another dataset or two of one object; and if images
        are missing, too many or unreadable, naming all. Then if images cannot be predicted, naming all as well; nothing
        is written in any of these cases.
    """
    if not target.name.endswith(".tar.gz"):
        raise HrbenchError(f"{target}: expected a name that ends in .tar.gz")
    if target.exists():
        raise HrbenchError(f"{target}: exists already, expected a new name")
    descriptor = load_descriptor(dataset)
    folders = private_folders(descriptor)
    chosen = _by_category(runs, descriptor)
    found = load_dataset(dataset, root, list(chosen)).categories
    images = {category.name: category.private for category in found}
    if problems := [problem for name in images for problem in _problems(images[name], folders, descriptor, name, root)]:
        raise _refusal("cannot be submitted, nothing is written", problems)
    packed: list[Packed] = []
    failures: list[str] = []
    with atomic(target) as path:
        with _archive(path) as archive:
            for category, run in chosen.items():
                detector = Detector.load(run, method=method, options=options, device=device, batch_size=batch_size)
                packed.append(_pack(detector, category, images[category], archive, failures))
        if failures:
            raise _refusal(f"{len(failures)} images could not be predicted, nothing is written", failures)
        with atomic(target.with_name(f"{target.name}.json")) as beside:
            beside.write_text(json.dumps(_said(packed), indent=1) + "\n", encoding="utf-8")
    return packed


def _by_category(runs: Sequence[Path | str], descriptor: Descriptor) -> dict[str, Path | str]:
    """Return the runs by their object, in the descriptor's order."""
    found: dict[str, Path | str] = {}
    for run in runs:
        about = load_run(run).about
        said = about.dataset
        if said.name != descriptor.name:
            raise HrbenchError(f"{run}: a run of dataset {said.name!r}, expected one of {descriptor.name!r}")
        if said.category not in descriptor.categories:
            raise unknown_name(f"category of {descriptor.name}", said.category, descriptor.categories)
        if said.category in found:
            raise HrbenchError(f"{run}: a run of {said.category}, as is {found[said.category]}; expected one of them")
        if about.threshold.value is None:
            raise HrbenchError(
                f"{run}: has no threshold (normal images held out: {about.threshold.normal_images}), and a submission "
                "needs one that comes of normal images: expected a run with more of them, see `hrbench run --held-out`"
            )
        found[said.category] = run
    return {category: found[category] for category in descriptor.categories if category in found}


def _problems(
    samples: Sequence[Sample], folders: Mapping[str, str], descriptor: Descriptor, category: str, root: Path | str
) -> Iterator[str]:
    """Yield what keeps the images of an object from being submitted."""
    stems: dict[str, set[str]] = {folder: set() for folder in folders}
    for sample in samples:
        stems[sample.image.parent.name].add(sample.image.stem)
        try:
            check_image(sample.image)
        except HrbenchError as error:
            yield str(error)
    number = descriptor.expected(category).private or max(map(len, stems.values()))
    for folder, there in stems.items():
        place, names = Path(root) / category / folder, expected_names(folder, max(number, 1))
        if missing := [name for name in names if name not in there]:
            others = f" and {len(missing) - 1} more" if missing[1:] else ""
            yield f"{place}: no image {missing[0]}.png{others}, expected {number}"
        if extra := sorted(there - set(names)):
            others = f" and {len(extra) - 1} more" if extra[1:] else ""
            yield f"{place / extra[0]}{others}: no image of the {number} that the server knows"


def _pack(
    detector: Detector, category: str, samples: Sequence[Sample], archive: tarfile.TarFile, failures: list[str]
) -> Packed:
    """Predict the images of an object into the archive; a thread packs one while the next is predicted."""
    if detector.threshold is None or detector.calibration is None:
        raise HrbenchError(f"{category}: {detector.without}; a submission needs a threshold")
    scale, merged = HalfScale.of(detector.calibration), Merged()
    threshold, called = np.float32(detector.threshold), 0
    files = {sample.id: sample.image for sample in samples}

    def pack(verdict: Verdict) -> int:
        image, scores = files[verdict.image], verdict.anomaly_map
        if failures:  # no archive comes of it: only what else is wrong is still to be found
            return 0
        half, decided = scale(scores), scores >= threshold
        merged.add(scores, half)
        place = f"{category}/{image.parent.name}/{image.stem}"
        tiff, png = io.BytesIO(), io.BytesIO()
        tifffile.imwrite(tiff, half)
        Image.fromarray(decided.astype(np.uint8) * np.uint8(255)).save(png, format="PNG", compress_level=1)
        _add(archive, f"{TOP}/{MAPS}/{place}.tiff", tiff)
        _add(archive, f"{TOP}/{THRESHOLDED}/{place}.png", png)
        return int(np.count_nonzero(decided))

    verdicts = detector.verdicts(samples, failed=lambda _, error: failures.append(str(error)))
    with closing(ahead(pack, verdicts)) as done:
        for pixels in track(done, f"{detector.about.method.name} {category}", total=len(samples), unit="img"):
            called += pixels
    share = called / max(merged.pixels, 1)
    return Packed(category, detector.about, detector.threshold, scale, merged, share)


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a new archive that keeps no time and no user: equal files give equal bytes."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        yield archive


def _add(archive: tarfile.TarFile, name: str, content: io.BytesIO) -> None:
    info = tarfile.TarInfo(name)
    info.size = content.tell()
    content.seek(0)
    archive.addfile(info, content)


def _said(packed: Sequence[Packed]) -> dict[str, Any]:
    """Return what the file beside the archive says."""
    return {
        "objects": {
            item.category: {
                "run": item.about.run,
                "method": item.about.method.name,
                "view": item.about.view,
                "seed": item.about.seed,
                "weights_sha256": said.sha256 if (said := item.about.files.get("weights.safetensors")) else "",
                "images": item.merged.images,
                "threshold": item.threshold,
                "threshold_rule": item.about.threshold.rule,
                "held_out": item.about.threshold.normal_images,
                "called": item.called,
                "float16": {
                    "centre": item.scale.centre,
                    "exponent": item.scale.exponent,
                    "scores": item.merged.before,
                    "scores_left": item.merged.after,
                    "pixels": item.merged.pixels,
                    "pixels_tied": item.merged.tied,
                    "aupro_moves_at_most": {f"{limit:g}": item.merged.moves(limit) for limit in LIMITS},
                },
            }
            for item in packed
        },
        "environment": environment(),
    }


def _refusal(what: str, problems: Sequence[str]) -> HrbenchError:
    more = [f"and {len(problems) - _MOST_NAMED} more"] if len(problems) > _MOST_NAMED else []
    return HrbenchError("\n  ".join([f"{what}:", *problems[:_MOST_NAMED], *more]))
