"""The record of a run: everything in its ``run.json``, as types. Written and read here only.

Keys that a later version may have written are kept in `unknown` and written again, but for those of an evidence's spec,
which say how it must be read; what an earlier version did not write has a default that says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from hrbench._util.files import atomic
from hrbench._util.received import read_json
from hrbench._util.types import Mismatch, conform
from hrbench.data.sample import Category
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceSpec
from hrbench.protocol import Protocol

__all__ = [
    "UNFINISHED",
    "Cost",
    "EvidenceRecord",
    "FileRecord",
    "MethodRecord",
    "ProtocolRecord",
    "RunRecord",
    "ThresholdRecord",
    "ViewedImages",
    "check_record",
    "evidence_records",
    "groups_digest",
    "is_sealed",
    "json_digest",
    "public_reference",
    "read_record",
    "write_record",
]

SCHEMA = 1
_LARGEST = 1 << 26  # bytes of a run.json
_SEAL = "sha256"  # key of the digest over all other keys
UNFINISHED = "unfinished"  # in the place of a digest: of tables, or groups, that are being replaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Section:
    unknown: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewedImages(_Section):
    """Which images a run saw.

    Attributes
    ----------
    name, category : str
        Of the dataset.
    index_sha256 : str
        Over paths, labels and content of all images and masks, see :attr:`hrbench.data.sample.Category.digest`.
    train, held_out, test, test_defective, test_unmasked : int
        Images; those held out are among the normal training images, those whose masks are unknown among the defective
        ones. Where all masks are known `run.json` does not say so.
    held_out_share : float or None
        That was asked for; None for what is held out by default.
    groups_sha256 : str
        Over which test images belong together, see :func:`groups_digest`; empty if each stands on its own.
    conditions_sha256 : str
        Likewise over their conditions; empty, and not said by `run.json`, where none is known.
    """

    name: str
    category: str
    index_sha256: str = ""
    train: int = 0
    held_out: int = 0
    test: int = 0
    test_defective: int = 0
    held_out_share: float | None = None
    groups_sha256: str = ""
    test_unmasked: int = dataclasses.field(default=0, metadata={"sparse": True})
    conditions_sha256: str = dataclasses.field(default="", metadata={"sparse": True})

    @staticmethod
    def of(category: Category) -> ViewedImages:
        """Return what a run says of its images."""
        defective = sum(sample.label for sample in category.test)
        train, test = len(category.train), len(category.test)
        return ViewedImages(
            name=category.dataset,
            category=category.name,
            index_sha256=category.digest,
            train=train,
            test=test,
            test_defective=defective,
            groups_sha256=groups_digest(category.groups),
            conditions_sha256=groups_digest(category.conditions),
            test_unmasked=sum(sample.unmasked for sample in category.test),
        )


def groups_digest(groups: Mapping[str, str]) -> str:
    """Return the SHA-256 over the groups, or conditions, of images by id; empty if none has any."""
    if not any(groups.values()):
        return ""
    return hashlib.sha256("\n".join(f"{name}\t{groups[name]}" for name in sorted(groups)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodRecord(_Section):
    """Which method, of which code, options and weights; figures are numbers of parameters."""

    name: str
    title: str = ""
    paper: str = ""
    reference: str = ""
    preset: str = ""
    source_sha256: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    weights_source: str = "unknown"
    weights_licence: str = "unknown"
    parameters: int = 0
    trainable: int = 0


def public_reference(reference: str) -> str:
    """Return a reference to a method as others may read it: an adapter by the name of its file alone."""
    return PureWindowsPath(reference).name if reference.endswith(".py") else reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolRecord(_Section):
    """Under which rules a run was measured."""

    version: int
    sha256: str

    @staticmethod
    def of(protocol: Protocol) -> ProtocolRecord:
        """Return what a run says of a protocol."""
        return ProtocolRecord(version=protocol.version, sha256=protocol.digest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceRecord(_Section):
    """How one part of the evidence was collected, and the folder that it is in."""

    name: str
    collection: EvidenceSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord(_Section):
    """What a file of the run held when it was written."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdRecord(_Section):
    """The operating threshold under the first protocol; None where no normal images were held out."""

    rule: str = ""
    value: float | None = None
    normal_images: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost(_Section):
    """What fit and prediction took; None for what was not measured.

    Attributes
    ----------
    fit_seconds, predict_seconds : float
    timed_images : int
    megapixels_per_second : float
        Native, at prediction.
    ms_median, ms_p95 : float
        Milliseconds per image.
    peak_host_mib, peak_device_mib : float
        Most memory during prediction; `fit_...` during the fit. Nothing is measured for a device that is the CPU.
    peak_host_since : str
        ``phase``, or ``process`` where the system cannot count anew.
    wall_seconds : float
        From when the job began until it was scored, without the pauses between attempts.
    stage_seconds : float
        All its stages, over all workers: more than the wall's where several worked on it at once.
    workers_on_device : int
        The most workers that shared a device while stages of the job ran there; 1 is alone.
    devices : int
        How many devices of different names took part.
    """

    fit_seconds: float | None = None
    fit_peak_host_mib: float | None = None
    fit_peak_host_since: str | None = None
    fit_peak_device_mib: float | None = None
    timed_images: int = 0
    predict_seconds: float | None = None
    megapixels_per_second: float | None = None
    ms_median: float | None = None
    ms_p95: float | None = None
    peak_host_mib: float | None = None
    peak_host_since: str | None = None
    peak_device_mib: float | None = None
    wall_seconds: float | None = None
    stage_seconds: float | None = None
    workers_on_device: int = 1
    devices: int = 1

    @property
    def comparable(self) -> bool:
        """Whether the times say what the method takes: one device took part, and no other worker shared it.

        Memory stays comparable: what is counted is each process's own.
        """
        return not self.why_not_comparable

    @property
    def why_not_comparable(self) -> str:
        """Why the times cannot be compared, in words; "" where they can."""
        reasons = []
        if self.workers_on_device > 1:
            reasons.append(f"the device was shared by {self.workers_on_device} workers")
        if self.devices > 1:
            reasons.append(f"parts ran on {self.devices} different devices")
        return " and ".join(reasons)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord(_Section):
    """Everything that a run says of itself beside its tables.

    Attributes
    ----------
    run : str
        Its folder's name.
    created : str
        When it was finished, ISO 8601 in UTC.
    dataset : ViewedImages
    protocols : dict of str to ProtocolRecord
    evidence : tuple of EvidenceRecord
        The first one serves the first protocol.
    threshold : ThresholdRecord
    environment : dict of str to str
        Versions, commit and platform.
    method : MethodRecord
    view : str
    seed, batch_size : int
    batch_size_found : bool
        Whether the batch size was found by timing (``auto``); written only where it was.
    device : str
        Its name for people.
    precision : str
    compiled : bool
        Whether frozen backbones were compiled.
    cost : Cost
    fusion : tuple of dict, or None
        Per view its scale, see :meth:`hrbench.engine.fusion.Fusion.record`.
    files : dict of str to FileRecord
        By their path in the run's folder, with forward slashes; what is not named, as of earlier versions, is read
        unchecked.
    """

    run: str = ""
    created: str = ""
    dataset: ViewedImages
    protocols: dict[str, ProtocolRecord] = dataclasses.field(default_factory=dict)
    evidence: tuple[EvidenceRecord, ...] = ()
    threshold: ThresholdRecord = ThresholdRecord()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    method: MethodRecord
    view: str = ""
    seed: int = 0
    batch_size: int = 0
    batch_size_found: bool = dataclasses.field(default=False, metadata={"sparse": True})
    device: str = "unknown"
    precision: str = "float32"
    compiled: bool = False
    cost: Cost = Cost()
    fusion: tuple[dict[str, Any], ...] | None = None
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)

    def evidence_for(self, protocol: Protocol) -> EvidenceRecord | None:
        """Return the part of the evidence that can be scored under `protocol`; None if there is none."""
        return next((part for part in self.evidence if part.collection.serves(protocol)), None)


def evidence_records(evidence: Sequence[Evidence]) -> tuple[EvidenceRecord, ...]:
    """Return what a run says of its evidence."""
    return tuple(EvidenceRecord(name=part.spec.name, collection=part.spec) for part in evidence)


def read_record(path: Path) -> RunRecord:
    """Read a ``run.json``.

    Raises
    ------
    HrbenchError
        If it is damaged, of another schema, or a key is missing or of another type.
    """
    try:
        table = read_json(path, _LARGEST)
    except HrbenchError as error:
        raise HrbenchError(
            f"{error}; delete this file, then `hrbench run` does the job again with its weights"
        ) from None
    schema = table.pop("schema", None) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(_SEAL, None)  # whoever verifies a run asks for it, see is_sealed
    if schema != SCHEMA:
        raise HrbenchError(f"{path}: schema {schema!r}, this version of hrbench reads {SCHEMA}")
    _bring_up_to_date(table)
    try:
        record: RunRecord = conform(table, RunRecord)
    except Mismatch as wrong:
        raise HrbenchError(f"{path}: key {wrong.path!r} {wrong.problem}") from None
    return record


def check_record(record: RunRecord) -> None:
    """Raise an error if a value is not of its type: what a method says of itself comes from outside."""
    try:
        conform(_plain(record), RunRecord)
    except Mismatch as wrong:
        raise HrbenchError(f"run.json cannot be written: {wrong.path} {wrong.problem}") from None


def write_record(record: RunRecord, path: Path) -> None:
    """Write a ``run.json``, whole or not at all."""
    check_record(record)
    table = {"schema": SCHEMA, **_plain(record)}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({**table, _SEAL: json_digest(table)}, indent=1), encoding="utf-8")


def json_digest(table: Mapping[str, Any]) -> str:
    """Return the SHA-256 over a JSON table, whatever the order of its keys and its white space."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_sealed(path: Path) -> bool | None:
    """Tell whether a JSON file is as it was written, by the digest in it; None where it has none, as of before."""
    table = read_json(path, _LARGEST)
    seal = table.pop(_SEAL, None) if isinstance(table, dict) else None
    return None if seal is None else seal == json_digest(table)


def _bring_up_to_date(table: dict[str, Any]) -> None:
    """Turn what earlier runs wrote into today's: a path of an adapter, and the one figure of memory.

    That was the device's, or on a CPU the process's.
    """
    method = table.get("method")
    if isinstance(method, dict) and isinstance(method.get("reference"), str):
        method["reference"] = public_reference(method["reference"])
    cost = table.get("cost")
    if isinstance(cost, dict) and "peak_memory_mib" in cost:
        on_cpu = str(table.get("device", "")).startswith("cpu")
        cost.setdefault("peak_host_mib" if on_cpu else "peak_device_mib", cost.pop("peak_memory_mib"))


def _plain(value: Any) -> Any:
    if isinstance(value, _Section):
        fields = [
            field
            for field in dataclasses.fields(value)
            if not (field.metadata.get("sparse") and getattr(value, field.name) == field.default)
        ]
        known = {field.name: _plain(getattr(value, field.name)) for field in fields}
        return known | known.pop("unknown")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
