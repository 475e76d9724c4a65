"""Run folders: where a job's evidence, records and configuration are kept, whole or not at all.

``OUTPUT/runs/<dataset>/<category>/<run>/`` holds ::

    run.json            configuration, origin, cost and environment; written last: its presence means done
    records.parquet     one tidy row per metric
    components.parquet  one row per defect component and protocol: size, kind, place, critical score, AUPRO@L, overlap
    images.parquet      one row per image and protocol: label, image score, alarm score, area of the largest component
    replicates.parquet  bootstrap replicates of a few metrics, see hrbench.metrics.measurement.Measured
    weights.safetensors what the method learnt
    evidence/           per way of collecting: images, components and calibration tables (see hrbench.evidence)
    maps/               native anomaly maps, if they were asked for
    pictures/           worst and best images, with pictures.json that describes them
    partial/            only while the job is unfinished

A dataset or category whose name is no plain file name has a digest of the name in its folder's; records keep the name.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from hrbench._util.files import atomic, below, remove_leftovers, safe_name
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceSpec
from hrbench.protocol import Protocol
from hrbench.runs.record import UNFINISHED, RunRecord, read_record

__all__ = ["RECORD_COLUMNS", "Picture", "Run", "RunFolder", "Shard", "find_runs", "read_runs", "text_of"]

log = logging.getLogger("hrbench")

RECORD_COLUMNS = (
    "run", "dataset", "category", "method", "preset", "view", "weights", "seed", "protocol",
    "metric", "subset", "fpr_limit", "value", "error_bound", "ci_low", "ci_high", "n",
)  # fmt: skip
MAP_STEM = 250  # bytes: with its ending what file systems take
_RECORD_KEY = ("protocol", "metric", "subset", "fpr_limit")  # of one row among those of its run


class RunFolder:
    """The names of everything in the folder of a job, finished or not.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.weights = path / "weights.safetensors"
        self.pictures = path / "pictures"
        self.scratch = path / "partial"
        self.checkpoint = self.scratch / "fit.pt"  # of an unfinished fit
        self.fit_cost = self.scratch / "fit.json"
        self.fusion = self.scratch / "fusion.json"
        self.calibrated = self.scratch / "calibrated.json"  # written when all that held-out images tell is there
        self.alone = self.scratch / "alone"  # who has the lease hands out the chunks: nobody else takes one
        self.setting = self.scratch / "setting.json"  # how the job was begun, as far as its results depend on it
        self._seen = self.scratch / "train.sha256"
        self.failed = path.with_name(f"{path.name}.failed.json")
        self.lease = path.with_name(f"{path.name}.lease")  # beside it: the folder itself may be started over

    @staticmethod
    def of(output: Path, dataset: str, category: str, run: str) -> RunFolder:
        """Return the folder of a run below `output`, and never elsewhere."""
        return RunFolder(below(output / "runs", safe_name(dataset), safe_name(category), run))

    def table(self, name: str) -> Path:
        """Return the file of a table: records, components, images or replicates."""
        return self.path / f"{name}.parquet"

    def evidence(self, spec: str) -> Path:
        """Return the folder of the evidence of one spec, by its name."""
        return below(self.path, "evidence", spec)

    def map_of(self, sample_id: str) -> Path:
        """Return where a sample's map is kept: its path in the dataset, shortened where it grows too long."""
        path = below(self.path, "maps", sample_id)
        stem = path.stem if len(path.stem.encode()) <= MAP_STEM else safe_name(path.stem)
        return path.with_name(f"{stem}.tiff")

    def calibration(self, spec: str) -> Path:
        """Return the file of the held-out normals of an unfinished job, collected as one spec wants it."""
        return below(self.scratch, f"calibration-{spec}.parquet")

    def shard(self, number: int) -> Shard:
        """Return the folder of a part of the test images' evidence."""
        return Shard(self.scratch / f"evidence-{number:05d}")

    def chunk_lease(self, number: int) -> Path:
        """Return the file by which a process claims a part of the test images."""
        return self.path.with_name(f"{self.path.name}.{number:05d}.lease")

    def began(self, train_digest: str) -> bool:
        """Tell whether an unfinished attempt is there, of the same training images."""
        return text_of(self._seen) == train_digest

    def begin(self, train_digest: str) -> None:
        """Keep what an earlier attempt left, unless its training images were others: then forget it."""
        if not self.began(train_digest):
            shutil.rmtree(self.path, ignore_errors=True)
            with atomic(self._seen) as path:
                path.write_text(train_digest, encoding="utf-8")

    def tidy(self) -> None:
        """Remove what only an unfinished job needs, and what processes that were killed have left half written."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for folder, *_ in os.walk(self.path):
            remove_leftovers(Path(folder), alone=True)
        remove_leftovers(self.path.parent)
        for path in self.path.glob(".tmp??????"):  # of safetensors
            path.unlink(missing_ok=True)
        for path in self.path.parent.glob(f"{self.path.name}.*.lease"):  # of chunks, whose holders were killed
            path.unlink(missing_ok=True)


def text_of(path: Path) -> str | None:
    """Return what a file says; None where it is not there, or was taken away by who has ended the job meanwhile."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


class Shard:
    """The names of everything in the folder of one chunk of test images.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs = path / "inputs.sha256"  # of all that it depends on
        self.spent = path / "spent.json"

    def evidence(self, spec: str) -> Path:
        """Return the folder of the evidence of one spec, by its name."""
        return below(self.path, spec)


@dataclass(frozen=True)
class Picture:
    """One image of the report: photograph, heat map and mask outline side by side.

    Attributes
    ----------
    path : Path
        JPEG file.
    kind : str
        ``worst`` or ``best`` (defective images, by mean component AUPRO) or ``false alarm`` (normal images, by score).
    image : str
        Id of the sample.
    caption : str
        What to know about it, in words.
    """

    path: Path
    kind: str
    image: str
    caption: str


@dataclass(frozen=True)
class Run:
    """A finished job on disk.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    @property
    def files(self) -> RunFolder:
        """The names of its files."""
        return RunFolder(self.folder)

    @cached_property
    def about(self) -> RunRecord:
        """What the run says of itself: method, dataset, view, cost, environment (``run.json``)."""
        return read_record(self.files.record)

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row per metric, with the columns :data:`RECORD_COLUMNS`; see :func:`hrbench.metrics.compute`."""
        return self._whole("records")

    @cached_property
    def components(self) -> pd.DataFrame:
        """One row per protocol and defect component, see :func:`hrbench.metrics.component_table`."""
        return self._whole("components")

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row per protocol and image, see :func:`hrbench.metrics.table.image_rows`."""
        return self._whole("images")

    @cached_property
    def replicates(self) -> pd.DataFrame:
        """Some rows per protocol, see :meth:`hrbench.metrics.bootstrap.Replicates.of_table`."""
        return self._whole("replicates")

    def _whole(self, name: str) -> pd.DataFrame:
        """Read a table, unless tables of before and after may stand side by side."""
        rules = self.about.protocols.values()
        if UNFINISHED in (self.about.dataset.groups_sha256, *(item.sha256 for item in rules)):
            raise HrbenchError(
                f"{self.folder}: was interrupted while it was scored anew; `hrbench rescore` with the same options, or "
                "the `hrbench run` that it came of, ends it"
            )
        return self.table(name)

    def table(self, name: str) -> pd.DataFrame:
        """Read a table as it is; an empty one where an earlier version has left none."""
        path = self.files.table(name)
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame({"protocol": [], "metric": []})

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence collected for the first protocol of the run."""
        if not self.about.evidence:
            raise HrbenchError(f"{self.files.record}: names no evidence")
        return Evidence.load(self.files.evidence(self.about.evidence[0].name))

    def load_evidence(self, protocol: Protocol) -> Evidence:
        """Read the evidence that can be scored under `protocol`.

        Raises
        ------
        HrbenchError
            If the run collected none, or its files are gone or damaged.
        """
        part = self.about.evidence_for(protocol)
        if part is not None:
            return Evidence.load(self.files.evidence(part.name))
        names = ", ".join(part.name for part in self.about.evidence)
        raise HrbenchError(
            f"{self.folder}: protocol {protocol.name!r} needs evidence collected as {EvidenceSpec.of(protocol).name}, "
            f"this run has {names}; run the job with this protocol into another output folder"
        )

    @cached_property
    def pictures(self) -> list[Picture]:
        """Worst and best images, in the order in which a report shows them."""
        index = self.files.pictures / "pictures.json"
        if not index.is_file():
            return []
        items = json.loads(index.read_text(encoding="utf-8"))
        return [Picture(index.parent / Path(i["file"]).name, i["kind"], i["image"], i["caption"]) for i in items]


def find_runs(output: Path) -> list[Run]:
    """Return all finished runs below `output`, in order of their path.

    Raises
    ------
    HrbenchError
        If there is none.
    """
    runs = [Run(path.parent) for path in sorted(Path(output).glob("**/run.json"))]
    if not runs:
        raise HrbenchError(f"{output}: no finished run in this folder; `hrbench run` makes them")
    return runs


def read_runs(output: Path | str, *more: Path | str) -> list[Run]:
    """Return the finished runs below one or several folders, in order of the folders and of their paths.

    A run that is there more than once, by dataset, category and name, is taken from where it is found first; if other
    values are recorded elsewhere, a warning names both places.

    Parameters
    ----------
    output, *more : Path or str
        Folders that ``hrbench run`` wrote, or that hold such folders; one may lie in another.

    Raises
    ------
    HrbenchError
        If a folder holds none.

    Examples
    --------
    >>> import hrbench
    >>> runs = hrbench.read_runs("runs_of_machine_a", "runs_of_machine_b")  # doctest: +SKIP
    """
    found: dict[tuple[str, ...], Run] = {}
    seen: set[Path] = set()
    for run in (run for folder in (output, *more) for run in find_runs(Path(folder))):
        place = run.folder.resolve()
        first = found.setdefault(place.parts[-3:], run)
        if first is not run and place not in seen and _other_values(first, run):
            log.warning("%s has other values than the same run in %s, which is used", run.folder, first.folder)
        seen.add(place)
    return list(found.values())


def _other_values(run: Run, other: Run) -> bool:
    """Whether any value that both runs record differs between them."""
    both = run.records.merge(other.records, on=list(_RECORD_KEY), suffixes=("", "_other"))
    return not both["value"].equals(both["value_other"])
