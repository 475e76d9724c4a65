"""What a run is: the configuration it belongs to, and what a reader must be told before comparing it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hrbench.protocol import Protocol
from hrbench.runs.store import Run

__all__ = ["COSTS", "THROUGHPUT", "costs_of", "describe", "identify", "printable", "remarks", "without_duplicates"]

THROUGHPUT = "megapixels_per_second"
"""Name under which the measured speed stands beside the metrics."""

COSTS = {
    THROUGHPUT: "megapixels per second",
    "ms_median": "ms",
    "ms_p95": "ms",
    "peak_device_mib": "MiB",
    "peak_host_mib": "MiB",
}
"""What prediction costs: names as in ``run.json`` and beside the metrics, and their units."""

_IDENTITY = ["method", "preset", "view", "weights_id", "precision", "options", "rules"]
_LABEL = ["title", "preset", "view", "weights"]


def printable(text: str) -> str:
    """Drop control characters and line breaks: names come from files and go to terminals and into SVG."""
    return "".join(c for c in re.sub(r"\s+", " ", text) if c.isprintable())


def describe(position: int, run: Run, protocol: Protocol) -> dict[str, Any]:
    """Return what identifies a run and where it comes from, tolerant of absent optional entries."""
    config = run.config
    method, dataset = config["method"], config["dataset"]
    weights = {str(k): str(v) for k, v in (method.get("weights") or {}).items()}
    rules = config.get("protocols", {}).get(protocol.name, {})
    precision = printable(str(config.get("precision") or "float32"))
    shown = [", ".join(_short_weights(text) for text in weights.values()) or "none"]
    shown += [precision] * (precision != "float32")
    return {
        "position": position,
        "run": config.get("run", run.folder.name),
        "created": config.get("created", ""),
        "dataset": dataset["name"],
        "category": dataset["category"],
        "images": dataset.get("index_sha256", ""),
        "method": method["name"],
        "title": printable(str(method.get("title") or method["name"])),
        "preset": printable(str(method.get("preset") or "–")),
        "view": printable(str(config.get("view") or "–")),
        "weights": printable(" in ".join(shown)),
        "precision": precision,
        "weights_id": json.dumps({k: _weights_identity(v) for k, v in weights.items()}, sort_keys=True),
        "random": any(re.search(r"\brandom\b", text, re.IGNORECASE) for text in weights.values()),
        "options": json.dumps(method.get("options") or {}, sort_keys=True, default=str),
        "rules": rules.get("sha256", ""),
        "seed": config.get("seed", 0),
        "device": str(config.get("device", "–")),
        "batch_size": config.get("batch_size", 0),
        "compiled": bool(config.get("compiled")),
        "own_peak": (config.get("cost") or {}).get("peak_host_since") == "phase",
    }


def costs_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run recorded of :data:`COSTS`; NaN for what it did not."""
    cost = dict(config.get("cost") or {})
    if "peak_memory_mib" in cost:  # the one figure of earlier runs: the device's, or on a CPU the process's
        name = "peak_host_mib" if str(config.get("device", "")).startswith("cpu") else "peak_device_mib"
        cost.setdefault(name, cost["peak_memory_mib"])
    return {name: math.nan if cost.get(name) is None else float(cost[name]) for name in COSTS}


def _short_weights(text: str) -> str:
    """Reduce ``mobilenetv2_100 file:/a/b.pth sha256:1f2e...`` to ``mobilenetv2_100 file``."""
    words = [word.partition(":")[0] for word in text.split() if not word.startswith("sha256:")]
    return " ".join("RANDOM" if word.lower() == "random" else word for word in words) or text


def _weights_identity(text: str) -> str:
    """Drop where a file lay once its digest says what was in it: another machine has another path."""
    if "sha256:" not in text:
        return text
    return " ".join(word for word in text.split() if not re.match(r"(file|bundled|timm|pretrained):", word))


def without_duplicates(runs: pd.DataFrame, notes: dict[str, list[str]]) -> pd.DataFrame:
    """Keep runs on the images of each category's newest run, and of equal configuration and seed the newest."""
    same = [*_IDENTITY, "dataset", "category", "seed"]
    newest = runs.sort_values(["created", "position"], kind="stable")
    current = newest.groupby(["dataset", "category"])["images"].transform("last")
    other = newest["images"] != current
    for (dataset, category), number in newest[other].groupby(["dataset", "category"]).size().items():
        notes[str(dataset)].append(
            f"{category}: {number} run{'s' * (number > 1)} on other images than the newest run's left out "
            "(the dataset index digests differ)."
        )
    newest = newest[~other]
    extra = newest.duplicated(same, keep="last")
    for dataset, number in newest[extra].groupby("dataset").size().items():
        notes[str(dataset)].append(
            f"{number} older run{'s' * (number > 1)} of the same configuration, category and seed "
            "left out; the newest counts."
        )
    return newest[~extra].sort_values("position").reset_index(drop=True)


def identify(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give every configuration a number, and a label that no other one has."""
    runs = runs.sort_values([*_IDENTITY, "position"], kind="stable")
    runs = runs.assign(configuration=runs.groupby(_IDENTITY, sort=False).ngroup())
    table = runs.groupby("configuration")[[*_IDENTITY, "title", "weights", "random"]].first()
    identity = table[_IDENTITY].agg("\n".join, axis=1)
    digest = [hashlib.sha256(text.encode()).hexdigest()[:6] for text in identity]
    alike = table.duplicated(_LABEL, keep=False)
    table["digest"] = ["#" + text if twin else "" for text, twin in zip(digest, alike, strict=True)]
    table["label"] = [_join(row, [*_LABEL, "digest"]) for row in table.to_dict("records")]
    # A legend repeats nothing that is the same in all rows, but always names the method.
    differing = [name for name in _LABEL[1:] if table[name].nunique() > 1]
    table["short"] = [_join(row, ["title", *differing, "digest"]) for row in table.to_dict("records")]
    hidden = table["random"] & ~table["short"].str.contains("RANDOM")
    table.loc[hidden, "short"] += " · RANDOM weights"
    return runs.sort_values("position").reset_index(drop=True), table


def _join(row: Mapping[Any, Any], names: Sequence[str]) -> str:
    return " · ".join(row[name] for name in names if row[name])


def remarks(
    runs: pd.DataFrame,
    described: pd.DataFrame,
    configurations: pd.DataFrame,
    protocol: Protocol,
    notes: dict[str, list[str]],
) -> None:
    """Collect, per dataset, what stands between its rows and a fair comparison."""
    for dataset, group in described.groupby("dataset"):
        lacking = group[~group["measured"]]
        if len(lacking):
            names = ", ".join(sorted(set(lacking["category"] + "/" + lacking["run"])))
            notes[str(dataset)].append(f"Without records of protocol {protocol.name!r}, left out: {names}.")
    for dataset, group in runs.groupby("dataset"):
        foreign = group[(group["rules"] != "") & (group["rules"] != protocol.digest)]
        for number in sorted(foreign["configuration"].unique()):
            notes[str(dataset)].append(
                f"{configurations.at[number, 'label']}: measured under other rules than this version "
                f"of protocol {protocol.name!r}, hence not ranked."
            )
        if group["device"].nunique() > 1:
            devices = "; ".join(sorted(group["device"].unique()))
            notes[str(dataset)].append(f"Speeds come from different devices: {devices}.")
