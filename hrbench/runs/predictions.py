"""What a detector says of new images, kept in a folder.

It holds ::

    predictions.csv   one row per image: score, verdict, how many components; sorted as they were predicted
    components.csv    one row per component that is called: its number in the image, box, area, highest score
    maps/             native anomaly maps, float32 TIFF
    overlays/         photographs with an outline around what is called, its box with its number, and the verdict, PNG
    predictions.json  what predicted them, and what its threshold promises: another run or view does not mix

Rows are added chunk by chunk, so that what is interrupted continues with the images that have none, and ends with the
same bits. An image whose content has changed, or that could not be read, is predicted again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from hrbench._util.disk import explaining
from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench._util.received import file_digest, read_json
from hrbench._util.spreadsheet import plain_cell
from hrbench.data.sample import Sample
from hrbench.engine.batch_size import AUTO, check_batch_size
from hrbench.engine.prefetch import ahead
from hrbench.errors import HrbenchError
from hrbench.imaging import read_image, refuse_no_file
from hrbench.metrics.words import counted, times_text
from hrbench.runs.detector import Detector, Verdict
from hrbench.runs.lease import Leases
from hrbench.runs.pictures import captioned, overlay
from hrbench.runs.shards import CHUNK
from hrbench.runs.store import file_of

__all__ = ["Predicted", "predict_files"]

IMAGE_COLUMNS = (
    "image",
    "height",
    "width",
    "score",
    "highest",
    "threshold",
    "verdict",
    "components",
    "note",
    "sha256",
)
COMPONENT_COLUMNS = ("image", "number", "left", "top", "right", "bottom", "area", "highest")
ALARM, NO_ALARM = "alarm", "no alarm"

Row = dict[str, str]


@dataclass(frozen=True)
class Predicted:
    """What became of images.

    Attributes
    ----------
    rows : list of dict
        Of ``predictions.csv``, those of the images that were asked for, as texts.
    before : int
        How many of them an earlier call has predicted.
    failures : list of str
        Why images could not be predicted, one line each.
    """

    rows: list[Row]
    before: int
    failures: list[str]


def predict_files(detector: Detector, samples: Sequence[Sample], output: Path, *, save_maps: bool = True) -> Predicted:
    """Predict images that have no row in a folder yet, and keep there what is found.

    Parameters
    ----------
    detector : Detector
    samples : sequence of Sample
        See :func:`hrbench.data.loose.find_loose`.
    output : Path
    save_maps : bool
        Also write each native anomaly map as float32 TIFF.

    Raises
    ------
    HrbenchError
        If the folder holds predictions of another run, through another view or in other batches; or if another process
        is at work on it.
    """
    with Leases().holding(output / ".lease") as mine:
        if not mine:
            raise HrbenchError(f"{output}: another process is at work on this folder; wait until it has ended")
        return _Folder(detector, output, save_maps).predict(samples)


class _Folder:
    """A folder of predictions, for who holds its lease."""

    def __init__(self, detector: Detector, path: Path, save_maps: bool) -> None:
        self._detector = detector
        self._path = path
        self._save_maps = save_maps
        self._images = path / "predictions.csv"
        self._components = path / "components.csv"
        self._note = path / "predictions.json"

    def predict(self, samples: Sequence[Sample]) -> Predicted:
        """Predict the images that have no row yet, then again those that failed before."""
        self._begin(samples)
        kept = self._kept()
        failures: list[str] = []
        left, again, told = [], [], {}
        for sample in samples:
            try:
                files = self._files(sample.id)
            except HrbenchError as error:  # a name that no row and no file can have
                failures.append(str(error))
                continue
            told[sample.id] = plain_cell(sample.id)
            row = kept.get(told[sample.id])
            if row is None or not self._is_of(row, sample):
                left.append(sample)
            elif row["score"] and all(path.is_file() for path in files):
                continue
            else:
                again.append(sample)
        first = -(-len(kept) // CHUNK)
        for sample in (*left, *again):
            kept.pop(told[sample.id], None)
        self._rewrite(kept)
        self._collect([*left, *again], first)
        rows = self._kept()
        asked = [rows[name] for name in told.values() if name in rows]
        failures += [row["note"] for row in asked if not row["score"]]
        return Predicted(asked, len(told) - len(left) - len(again), failures)

    def _begin(self, samples: Sequence[Sample]) -> None:
        """Note what predicts; an error if something else has begun the folder, whose batch size ``auto`` takes."""
        about = self._detector.about
        before = read_json(self._note, 1 << 20) if self._note.is_file() else None
        if self._detector.batch_size == AUTO:
            if isinstance(before, dict) and "batch_size" in before:
                self._detector.batch_size = check_batch_size(before["batch_size"])
            self._detector.find_batch_size(samples)
        now = {
            "run": about.run,
            "weights_sha256": said.sha256 if (said := about.files.get("weights.safetensors")) else "",
            "view": self._detector.view.text,
            "batch_size": self._detector.batch_size,
            "threshold": self._detector.threshold,
        }
        if before is not None:
            differ = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
            if differ:
                found = before.get(differ[0]) if isinstance(before, dict) else before
                raise HrbenchError(
                    f"{self._path}: holds predictions with {differ[0]} {found!r}, asked for are some with "
                    f"{now[differ[0]]!r}; choose another output folder"
                )
            return
        for path in (self._images, self._components):
            if path.exists():
                raise HrbenchError(f"{path}: exists and is not of `hrbench predict`; choose another output folder")
        with atomic(self._note) as path:
            path.write_text(json.dumps({**now, "promise": self._detector.promise}, indent=1), encoding="utf-8")

    def _files(self, name: str) -> list[Path]:
        """Return where an image's map, if it is kept, and overlay are."""
        maps = [file_of(self._path, "maps", name, ".tiff")] if self._save_maps else []
        return [*maps, file_of(self._path, "overlays", name, ".png")]

    @staticmethod
    def _is_of(row: Row, sample: Sample) -> bool:
        """Tell whether a row is of an image as it is now."""
        return row["sha256"] == _digest(sample)

    def _kept(self) -> dict[str, Row]:
        """Return the rows that are there, by the name of their image; one that was not written whole is left out."""
        return {row["image"]: row for row in _read(self._images, IMAGE_COLUMNS)}

    def _rewrite(self, rows: dict[str, Row]) -> None:
        """Let only these rows, and the components of their images, be there."""
        components = (row for row in _read(self._components, COMPONENT_COLUMNS) if row["image"] in rows)
        for path, columns, content in (
            (self._components, COMPONENT_COLUMNS, components),
            (self._images, IMAGE_COLUMNS, rows.values()),
        ):
            with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(content)

    def _collect(self, samples: Sequence[Sample], first: int) -> None:
        """Predict images, and add their rows whenever a chunk is complete; a thread writes files meanwhile."""
        places = {sample.id: (index, sample) for index, sample in enumerate(samples)}
        rows: dict[int, dict[int, tuple[Row, list[Row]]]] = {}  # of the chunks in work, by place

        def add(sample: Sample, row: Row, components: list[Row]) -> None:
            index = places[sample.id][0]
            rows.setdefault(index // CHUNK, {})[index] = row, components

        def failed(sample: Sample, error: HrbenchError) -> None:
            add(sample, _row(sample, note=str(error)), [])

        def written(verdict: Verdict) -> tuple[Sample, Row, list[Row]]:
            sample = places[verdict.image][1]
            self._write(sample, verdict)
            return sample, _image_row(sample, verdict, self._detector.without), _component_rows(verdict)

        verdicts = self._detector.verdicts(samples, first=first, failed=failed)
        label = f"{self._detector.about.method.name} {self._detector.view.text} predict"
        with closing(ahead(written, verdicts)) as done:
            for sample, row, components in track(done, label, total=len(samples), unit="img"):
                add(sample, row, components)
                self._append(rows, before=places[sample.id][0] // CHUNK)
        self._append(rows, before=None)

    def _append(self, rows: dict[int, dict[int, tuple[Row, list[Row]]]], *, before: int | None) -> None:
        """Write the rows of the chunks before one, or of all, and forget them."""
        for chunk in sorted(chunk for chunk in rows if before is None or chunk < before):
            of_chunk = [found for _, found in sorted(rows.pop(chunk).items())]
            with explaining(self._path):  # the images' rows last: they say that all is there
                _add(self._components, COMPONENT_COLUMNS, [part for _, parts in of_chunk for part in parts])
                _add(self._images, IMAGE_COLUMNS, [row for row, _ in of_chunk])

    def _write(self, sample: Sample, verdict: Verdict) -> None:
        """Write an image's map and overlay."""
        scores, threshold = verdict.anomaly_map, verdict.threshold
        called = np.zeros(scores.shape, bool) if threshold is None else scores >= np.float32(threshold)
        low, high = self._detector.scale or (float(np.median(scores)), float(scores.max()))
        *maps, picture = self._files(sample.id)
        for target in maps:
            with atomic(target) as path:
                tifffile.imwrite(path, scores, compression="zlib")
        with atomic(picture) as path:
            boxes = [(part.top, part.left, part.bottom, part.right) for part in verdict.components]
            pixels = overlay(read_image(sample.image), scores, called, low, high, boxes)
            Image.fromarray(captioned(pixels, _caption(verdict, low))).save(path, format="PNG", compress_level=1)


def _caption(verdict: Verdict, low: float) -> str:
    """Say below an overlay what the method says; `low` is the score of a normal pixel."""
    highest = float(verdict.anomaly_map.max())
    if verdict.threshold is None:
        return f"no threshold, highest score {highest:.4g}"
    parts = f"{counted(len(verdict.components), 'component')}, " if verdict.called else ""
    said = f"{ALARM if verdict.called else NO_ALARM}: {parts}highest score"
    if verdict.threshold <= low:
        return f"{said} {highest:.4g}, threshold {verdict.threshold:.4g}"
    times = (highest - low) / (verdict.threshold - low)
    return f"{said} {times_text(times, reached=bool(verdict.called))}"


def _image_row(sample: Sample, verdict: Verdict, without: str) -> Row:
    height, width = verdict.anomaly_map.shape
    if verdict.threshold is None:
        judged = {"note": without}
    else:
        judged = {
            "threshold": _figure(verdict.threshold),
            "verdict": ALARM if verdict.called else NO_ALARM,
            "components": str(len(verdict.components)),
        }
    highest = _figure(float(verdict.anomaly_map.max()))
    return _row(sample, height=str(height), width=str(width), score=_figure(verdict.score), highest=highest, **judged)


def _component_rows(verdict: Verdict) -> list[Row]:
    name = plain_cell(verdict.image)
    return [
        {
            "image": name,
            "number": str(number),
            **{side: str(getattr(part, side)) for side in ("left", "top", "right", "bottom", "area")},
            "highest": _figure(part.score),
        }
        for number, part in enumerate(verdict.components, 1)
    ]


def _row(sample: Sample, **values: str) -> Row:
    texts = {name: plain_cell(value) if name == "note" else value for name, value in values.items()}
    return {**dict.fromkeys(IMAGE_COLUMNS, ""), "image": plain_cell(sample.id), "sha256": _digest(sample), **texts}


def _digest(sample: Sample) -> str:
    """Return the SHA-256 of an image's file; empty if it cannot be read."""
    try:
        refuse_no_file(sample.image)
        return file_digest(sample.image)
    except HrbenchError:
        return ""


def _figure(value: float) -> str:
    return f"{value:.9g}"  # all that a float32 holds


def _read(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table as far as they are whole; none if it is not there."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise HrbenchError(
                f"{path}: columns {reader.fieldnames}, expected {', '.join(columns)}; choose another output folder"
            )
        yield from (row for row in reader if None not in row and None not in row.values())


def _add(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, columns, lineterminator="\n").writerows(rows)
