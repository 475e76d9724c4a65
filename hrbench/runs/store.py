"""Run folders: where a job's evidence, records and configuration are kept, whole or not at all.

``OUTPUT/runs/<dataset>/<category>/<run>/`` holds ::

    run.json            configuration, origin, cost and environment; written last: its presence means done
    records.parquet     one tidy row per metric
    components.parquet  one row per defect component and protocol: size, kind, place, AUPRO@L, overlap
    replicates.parquet  bootstrap replicates of the headline metric, one row per protocol
    weights.safetensors what the method learnt
    evidence/           per way of collecting: images, components and calibration tables (see hrbench.evidence)
    pictures/           worst and best images, with pictures.json that describes them
    partial/            only while the job is unfinished
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence import Collection, Evidence
from hrbench.protocol import Protocol

__all__ = ["RECORD_COLUMNS", "SCHEMA_VERSION", "Picture", "Run", "read_runs"]

SCHEMA_VERSION = 1

RECORD_COLUMNS = (
    "run", "dataset", "category", "method", "preset", "view", "weights", "seed", "protocol",
    "metric", "subset", "fpr_limit", "value", "error_bound", "ci_low", "ci_high", "n",
)  # fmt: skip


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

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        path = self.folder / "run.json"
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise HrbenchError(f"{path}: not valid JSON: {error}; delete the folder and run the job again") from None
        if config.get("schema") != SCHEMA_VERSION:
            found = config.get("schema")
            raise HrbenchError(f"{path}: schema {found!r}, this version of hrbench reads {SCHEMA_VERSION}")
        return config

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row per metric, with the columns :data:`RECORD_COLUMNS`."""
        return pd.read_parquet(self.folder / "records.parquet")

    @cached_property
    def components(self) -> pd.DataFrame:
        """One row per protocol and defect component, see :func:`hrbench.metrics.component_table`."""
        return self._table("components")

    @cached_property
    def replicates(self) -> pd.DataFrame:
        """One row per protocol, see :meth:`hrbench.metrics.bootstrap.Replicates.of_table`."""
        return self._table("replicates")

    def _table(self, name: str) -> pd.DataFrame:
        """Read a table; an empty one where an earlier version has left none."""
        path = self.folder / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame({"protocol": [], "metric": []})

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence collected for the first protocol of the run."""
        return Evidence.load(self.folder / "evidence" / self.config["evidence"][0]["name"])

    def load_evidence(self, protocol: Protocol) -> Evidence:
        """Read the evidence that can be scored under `protocol`.

        Raises
        ------
        HrbenchError
            If the run collected none, or its files are gone or damaged.
        """
        for facts in self.config["evidence"]:
            if Collection(**facts["collection"]).serves(protocol):
                return Evidence.load(self.folder / "evidence" / facts["name"])
        names = ", ".join(facts["name"] for facts in self.config["evidence"])
        raise HrbenchError(
            f"{self.folder}: protocol {protocol.name!r} needs evidence collected as {Collection.of(protocol).name}, "
            f"this run has {names}; run the job with this protocol into another output folder"
        )

    @cached_property
    def pictures(self) -> list[Picture]:
        """Worst and best images, in the order in which a report shows them."""
        index = self.folder / "pictures" / "pictures.json"
        if not index.is_file():
            return []
        items = json.loads(index.read_text(encoding="utf-8"))
        return [Picture(index.parent / Path(i["file"]).name, i["kind"], i["image"], i["caption"]) for i in items]


def read_runs(output: Path) -> list[Run]:
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
