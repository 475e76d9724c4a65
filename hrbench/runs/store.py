"""Run folders: where a job's evidence, records and configuration are kept, whole or not at all.

``OUTPUT/runs/<dataset>/<category>/<run>/``, or ``OUTPUT/<dataset>/...`` where OUTPUT is called ``runs``, holds ::

    run.json            configuration, origin, cost and environment; written last: its presence means done
    records.parquet     one tidy row per metric
    components.parquet  one row per defect component and protocol: size, kind, place, critical score, AUPRO@L, overlap
    images.parquet      one row per image and protocol: label, image score, alarm score, area of the largest component
    conditions.parquet  headline metrics under each condition of the images, where any are known
    replicates.parquet  bootstrap replicates of a few metrics, see hrbench.metrics.measurement.Measured
    annotation.parquet  a few metrics per protocol under masks one pixel wider and narrower
    weights.safetensors what the method learnt
    fit.json            what the fit took, and the digests of its images and weights: they can be told without run.json
    evidence/           per way of collecting: images, components, calibration, and where known rims and regions
    maps/               native anomaly maps, if they were asked for
    pictures/           parts of photographs, their maps and masks, with pictures.json that describes them
    partial/            only while the job is unfinished

A dataset or category whose name is no plain file name has a digest of the name in its folder's; records keep the name.
"""

from __future__ import annotations

import difflib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hrbench._util.files import atomic, below, remove_leftovers, safe_name
from hrbench._util.received import file_digest, inside
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceSpec
from hrbench.evidence.files import EVIDENCE_FILES
from hrbench.protocol import Protocol
from hrbench.runs.cost import FitRecord
from hrbench.runs.picture_files import Pictures, read_pictures
from hrbench.runs.record import UNFINISHED, EvidenceRecord, FileRecord, RunRecord, read_record
from hrbench.runs.tables import RECORD_COLUMNS, TABLES, read_run_table

if TYPE_CHECKING:
    from hrbench.data.loose import Images
    from hrbench.runs.detector import Detector, Verdict

__all__ = [
    "RECORD_COLUMNS",
    "Run",
    "RunFolder",
    "Shard",
    "batch_sizes_folder",
    "checked_file",
    "file_of",
    "find_runs",
    "load_run",
    "read_runs",
    "runs_root",
    "text_of",
]

log = logging.getLogger("hrbench")

LONGEST_STEM = 250  # bytes: with its ending what file systems take
_OWN = (
    "run.json",
    "fit.json",
    "weights.safetensors",
    *(f"{name}.parquet" for name in TABLES),
    "evidence/*/*.parquet",
    "pictures/pictures.json",
    "pictures/[0-9][0-9]-*.jpg",
    "pictures/[0-9][0-9]-*.png",
    "maps/**/*.tiff",
)
"""The files that hrbench writes into a run's folder, but for ``partial/``; it removes no other."""

_MOST_LISTED = 10
_RECORD_KEY = ("protocol", "metric", "subset", "fpr_limit")  # of one row among those of its run


def runs_root(output: Path) -> Path:
    """Return the folder of the runs of an output: a folder ``runs`` in it, or itself if it is called so."""
    return output if output.absolute().name == "runs" else output / "runs"


def batch_sizes_folder(output: Path) -> Path:
    """Return where the batch sizes are kept that were found for the jobs of an output."""
    return runs_root(output) / ".batch-sizes"


class RunFolder:
    """The names of everything in the folder of a job, finished or not.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.detector = path / "detector.json"  # the record of a detector that was saved, and has no run
        self.weights = path / "weights.safetensors"
        self.pictures = path / "pictures"
        self.scratch = path / "partial"
        self.checkpoint = self.scratch / "fit.pt"  # of an unfinished fit
        self.fit_cost = path / "fit.json"
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
        names = safe_name(dataset), safe_name(category), run
        place = below(runs_root(output), *names)
        older = below(output / "runs", *names)  # where earlier versions put it in any output
        return RunFolder(older if older.is_dir() else place)

    def table(self, name: str) -> Path:
        """Return the file of a table, one of :data:`hrbench.runs.tables.TABLES`."""
        return self.path / f"{name}.parquet"

    def evidence(self, spec: str) -> Path:
        """Return the folder of the evidence of one spec, by its name."""
        return below(self.path, "evidence", spec)

    def map_of(self, sample_id: str) -> Path:
        """Return where a sample's map is kept, see :func:`file_of`."""
        return file_of(self.path, "maps", sample_id, ".tiff")

    def calibration(self, spec: str) -> Path:
        """Return the file of the held-out normals of an unfinished job, collected as one spec wants it."""
        return below(self.scratch, f"calibration-{spec}.parquet")

    def shard(self, number: int) -> Shard:
        """Return the folder of a part of the test images' evidence."""
        return Shard(self.scratch / f"evidence-{number:05d}")

    def chunk_lease(self, number: int) -> Path:
        """Return the file by which a process claims a part of the test images."""
        return self.path.with_name(f"{self.path.name}.{number:05d}.lease")

    def own(self) -> Iterator[Path]:
        """Yield the files of hrbench that are there, but for those of an unfinished job."""
        root = self.path.resolve()
        for pattern in _OWN:
            yield from (path for path in sorted(self.path.glob(pattern)) if path.parent.resolve().is_relative_to(root))

    def name_of(self, path: Path) -> str:
        """Return by what name a run's record knows a file: its path in the folder."""
        return path.relative_to(self.path).as_posix()

    def recorded(self, paths: Iterable[Path]) -> dict[str, FileRecord]:
        """Return what a run's record says of files."""
        return {self.name_of(path): FileRecord(bytes=path.stat().st_size, sha256=file_digest(path)) for path in paths}

    def fit_record(self, train_digest: str) -> FitRecord | None:
        """Return what the fit of the weights took; None unless they are whole and learnt from these images."""
        try:
            found = FitRecord.read(self.fit_cost)
            expected = (self.path.name, train_digest, file_digest(self.weights))
        except HrbenchError:
            return None
        return found if (found.run, found.train_sha256, found.weights_sha256) == expected else None

    def began(self, train_digest: str) -> bool:
        """Tell whether an unfinished attempt is there, of the same training images."""
        return text_of(self._seen) == train_digest

    def begin(self, train_digest: str) -> None:
        """Keep what an earlier attempt left, unless it is damaged or its training images were others.

        Of a folder in which nothing says that it is unfinished, as where ``run.json`` was lost, the weights are kept if
        they can be told to be of these images; files that are not of hrbench always are.
        """
        fit = (self.weights, self.fit_cost)
        kept = fit if self.fit_record(train_digest) is not None else ()
        if not self.began(train_digest):
            self._remove(path for path in self.own() if path not in kept)
            shutil.rmtree(self.scratch, ignore_errors=True)
            with atomic(self._seen) as path:
                path.write_text(train_digest, encoding="utf-8")
        elif not kept:
            self._remove(fit)

    def reopen(self, train_digest: str) -> None:
        """Let a finished job be unfinished, with all its files."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with atomic(self._seen) as path:
            path.write_text(train_digest, encoding="utf-8")

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

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
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def file_of(folder: Path, part: str, sample_id: str, suffix: str) -> Path:
    """Return where `part` of a folder keeps a file of a sample: its path in the dataset, shortened where too long."""
    path = below(folder, part, sample_id)
    stem = path.stem if len(path.stem.encode()) <= LONGEST_STEM else safe_name(path.stem)
    return path.with_name(f"{stem}{suffix}")


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
class Run:
    """A finished job on disk.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    def __repr__(self) -> str:
        """Name dataset, category and run."""
        return f"<Run {'/'.join(self.folder.parts[-3:])}>"

    @property
    def files(self) -> RunFolder:
        """The names of its files."""
        return RunFolder(self.folder)

    def detector(self, **settings: Any) -> Detector:
        """Return the method as it was fitted, ready for new images; see :meth:`hrbench.Detector.load`."""
        from hrbench.runs.detector import Detector  # brings torch along

        return Detector.load(self.folder, **settings)

    def predict(self, images: Images, **settings: Any) -> Iterator[Verdict]:
        """Apply the method to new images; see :meth:`hrbench.Detector.predict`, and for `settings` :meth:`detector`."""
        return self.detector(**settings).predict(images)

    @cached_property
    def about(self) -> RunRecord:
        """What the run says of itself: method, dataset, view, cost, environment (``run.json``)."""
        return read_record(inside(self.folder, self.files.record))

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
    def conditions(self) -> pd.DataFrame:
        """One row per protocol, condition and metric, see :func:`hrbench.metrics.conditions.condition_rows`."""
        return self._whole("conditions")

    @cached_property
    def replicates(self) -> pd.DataFrame:
        """Some rows per protocol, see :meth:`hrbench.metrics.bootstrap.Replicates.of_table`."""
        return self._whole("replicates")

    @cached_property
    def annotation(self) -> pd.DataFrame:
        """Some metrics per protocol and masks, see :func:`hrbench.metrics.annotation.annotation_rows`."""
        return self._whole("annotation")

    def check(self) -> None:
        """Read record and tables.

        Raises
        ------
        HrbenchError
            Names the first that is damaged, missing, or not what it should be, and what to do.
        """
        for name in TABLES:
            getattr(self, name)

    def _whole(self, name: str) -> pd.DataFrame:
        """Read a table, unless tables of before and after may stand side by side."""
        rules, images = self.about.protocols.values(), self.about.dataset
        if UNFINISHED in (images.groups_sha256, images.conditions_sha256, *(item.sha256 for item in rules)):
            raise HrbenchError(
                f"{self.folder}: was interrupted while it was scored anew; `hrbench rescore` with the same options, or "
                "the `hrbench run` that it came of, ends it"
            )
        return self.table(name)

    def table(self, name: str) -> pd.DataFrame:
        """Read a table as it is; an empty one where an earlier version has left none.

        Raises
        ------
        HrbenchError
            If it is damaged, or not what such a table is.
        """
        path = self.files.table(name)
        try:
            if name != "records" and not self._checked(path).exists():
                return pd.DataFrame({"protocol": [], "metric": []})
            return read_run_table(self._checked(path), name)
        except HrbenchError as error:
            raise HrbenchError(f"{error}; `hrbench rescore` makes it again from the run's evidence") from None

    def damaged(self, *, maps: bool = False) -> list[Path]:
        """Return the files, but for the tables, that are not as they were written; maps, if asked for, by their size.

        Of a run of an earlier version, which keeps no digests, it is the evidence that is there and cannot be read.
        """
        found = []
        tables = [self.files.table(name) for name in TABLES]  # are made from what is here
        for name, said in self.about.files.items():
            path, of_maps = inside(self.folder, self.folder / name), name.startswith("maps/")
            if path in tables or (of_maps and not maps):
                continue
            if not _is_as_said(path, said, sized=of_maps):
                found.append(path)
        for part in self.about.evidence if not self.about.files else ():
            try:
                if inside(self.folder, self.files.evidence(part.name)).is_dir():
                    self.evidence_of(part)
            except HrbenchError:
                found.append(self.files.evidence(part.name))
        return found

    def _checked(self, path: Path) -> Path:
        """Return the path of a file of the run; an error if it leads out of it, or is not as ``run.json`` says."""
        return checked_file(self.files, self.about, path)

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence collected for the first protocol of the run."""
        if not self.about.evidence:
            raise HrbenchError(f"{self.files.record}: names no evidence")
        return self.evidence_of(self.about.evidence[0])

    def load_evidence(self, protocol: Protocol) -> Evidence:
        """Read the evidence that can be scored under `protocol`.

        Raises
        ------
        HrbenchError
            If the run collected none, or its files are gone or damaged.
        """
        part = self.about.evidence_for(protocol)
        if part is not None:
            return self.evidence_of(part)
        names = ", ".join(part.name for part in self.about.evidence)
        raise HrbenchError(
            f"{self.folder}: protocol {protocol.name!r} needs evidence collected as {EvidenceSpec.of(protocol).name}, "
            f"this run has {names}; run the job with this protocol into another output folder"
        )

    def evidence_of(self, part: EvidenceRecord) -> Evidence:
        """Read one part of the evidence; an error if its files are gone or damaged."""
        folder = self.files.evidence(part.name)
        try:
            for name in EVIDENCE_FILES:
                self._checked(folder / name)
            evidence = Evidence.load(folder)
            if evidence.spec != part.collection:
                raise HrbenchError(f"{folder}: collected as {evidence.spec.name}, expected as {self.files.record} says")
            if self.about.threshold.normal_images and evidence.calibration is None:
                raise HrbenchError(f"{folder / 'calibration.parquet'}: is missing, and with it the operating threshold")
        except HrbenchError as error:
            raise HrbenchError(f"{error}; the `hrbench run` that it came of makes it again") from None
        return evidence

    @cached_property
    def pictures(self) -> Pictures:
        """Photographs, maps and masks of a few defects and good images.

        Raises
        ------
        HrbenchError
            If their description, or one of them, is damaged or leads out of the run.
        """
        index = self.files.pictures / "pictures.json"
        if not index.parent.is_dir() or not self._checked(index).exists():  # a copy may have left all out on purpose
            return Pictures()
        return read_pictures(index, self._checked)


def checked_file(folder: RunFolder, about: RunRecord, path: Path) -> Path:
    """Return the path of a file in a folder; an error if it leads out of it, or is not as the folder's record says."""
    said = about.files.get(folder.name_of(path))
    if said is not None and not _is_as_said(inside(folder.path, path), said):
        what = "is not as it was written" if path.exists() else "is missing"
        raise HrbenchError(f"{path}: {what} (its SHA-256 stands in {folder.record.name})")
    return inside(folder.path, path)


def _is_as_said(path: Path, said: FileRecord, *, sized: bool = False) -> bool:
    """Tell whether a file holds what it held when it was written; `sized` only compares its size."""
    if not path.is_file() or path.stat().st_size != said.bytes:
        return False
    return sized or file_digest(path) == said.sha256


def load_run(path: Path | str) -> Run:
    """Return one finished run: that of its folder, or the only one below a folder.

    Raises
    ------
    HrbenchError
        If there is none, or several; or if its record is damaged.

    Examples
    --------
    >>> import hrbench
    >>> run = hrbench.load_run("runs/my_parts/bolt/fastflow-native-s0-0123abcd")  # doctest: +SKIP
    >>> for verdict in run.predict("new_images"):  # doctest: +SKIP
    ...     print(verdict.image, verdict.score, verdict.called)
    """
    path = Path(path)
    runs = [Run(path)] if RunFolder(path).record.is_file() else find_runs(path)
    if len(runs) > 1:
        listed = "\n  ".join(str(run.folder) for run in runs[:_MOST_LISTED])
        more = f"\n  and {len(runs) - _MOST_LISTED} more" if len(runs) > _MOST_LISTED else ""
        raise HrbenchError(f"{path}: {len(runs)} runs in this folder, expected that of one:\n  {listed}{more}")
    runs[0].about  # noqa: B018 - reads the record
    return runs[0]


def find_runs(output: Path) -> list[Run]:
    """Return all finished runs below `output`, in order of their path.

    Raises
    ------
    HrbenchError
        If there is none.
    """
    if not Path(output).is_dir():
        raise _no_folder(Path(output))
    runs = [Run(path.parent) for path in sorted(Path(output).glob("**/run.json"))]
    if not runs:
        raise HrbenchError(f"{output}: no finished run in this folder; `hrbench run` makes them")
    return runs


def _no_folder(path: Path) -> HrbenchError:
    """Return the error for a folder that is not there, with the nearest that is."""
    beside = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    near = [name for name in sorted(beside) if name.startswith(path.name)]
    near = near or difflib.get_close_matches(path.name, beside, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ", expected one with runs; `hrbench run` makes them"
    return HrbenchError(f"{path}: {'is a file' if path.exists() else 'no such folder'}{hint}")


def read_runs(output: Path | str, *more: Path | str) -> list[Run]:
    """Return the finished runs below one or several folders, in order of the folders and of their paths.

    A run that is there more than once, by dataset, category and name, is taken from where it is found first; if other
    values are recorded elsewhere, a warning names both places. One that is damaged is left out, and a warning names the
    file and what to do.

    Parameters
    ----------
    output, *more : Path or str
        Folders that ``hrbench run`` wrote, or that hold such folders; one may lie in another.

    Raises
    ------
    HrbenchError
        If a folder holds none, or all are damaged.

    Examples
    --------
    >>> import hrbench
    >>> runs = hrbench.read_runs("runs_of_machine_a", "runs_of_machine_b")  # doctest: +SKIP
    """
    found: dict[tuple[str, ...], Run] = {}
    seen: set[Path] = set()
    for run in _sound([run for folder in (output, *more) for run in find_runs(Path(folder))]):
        place = run.folder.resolve()
        first = found.setdefault(place.parts[-3:], run)
        if first is not run and place not in seen and _other_values(first, run):
            log.warning("%s has other values than the same run in %s, which is used", run.folder, first.folder)
        seen.add(place)
    return list(found.values())


def _sound(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that can be read; of the others, each once, a warning says why."""
    sound: list[Run] = []
    errors: dict[Path, HrbenchError] = {}
    for run in runs:
        try:
            run.check()
            sound.append(run)
        except HrbenchError as error:
            errors[run.folder.resolve()] = error
    if not sound:
        raise next(iter(errors.values()))
    for reason in errors.values():
        log.warning("left out: %s", reason)
    return sound


def _other_values(run: Run, other: Run) -> bool:
    """Whether any value that both runs record differs between them."""
    both = run.records.merge(other.records, on=list(_RECORD_KEY), suffixes=("", "_other"))
    return not both["value"].equals(both["value_other"])
