"""Method cards: what a row of the leaderboard is, and where its numbers come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hrbench.report.configurations import costs_of, printable
from hrbench.report.summary import Summary
from hrbench.runs.store import Run

__all__ = ["Card", "method_cards"]


@dataclasses.dataclass(frozen=True)
class Card:
    """One configuration on one dataset.

    Attributes
    ----------
    row : dict
        Its row of the leaderboard.
    anchor : str
    facts : list of (str, str)
        What all its runs share.
    runs : list of dict of str to str
        One row per run: what differs.
    """

    row: dict[str, Any]
    anchor: str
    facts: list[tuple[str, str]]
    runs: list[dict[str, str]]


def method_cards(
    runs: Sequence[Run], summary: Summary, dataset: str, rows: Sequence[dict[str, Any]], anchor: str
) -> list[Card]:
    """Return a card per row of the dataset's leaderboard."""
    cards = []
    for row in rows:
        table = summary.runs
        same = (table["dataset"] == dataset) & (table["configuration"] == row["configuration"])
        chosen = table[same].sort_values(["category", "seed"])["position"]
        configs = [runs[position].config for position in chosen]
        facts = [(name, text) for name, text in _facts(configs, summary) if text]
        details = [_run(config) for config in configs]
        cards.append(Card(row, f"{anchor}-card-{row['configuration']}", facts, details))
    return cards


def _facts(configs: Sequence[Mapping[str, Any]], summary: Summary) -> list[tuple[str, str]]:
    method = configs[0]["method"]
    weights = method.get("weights") or {}
    size = ""
    if method.get("parameters"):
        size = f"{method['parameters']:,}, of which trained {method.get('trainable') or 0:,}"
    protocol = summary.protocol
    rules = [c.get("protocols", {}).get(protocol.name, {}) for c in configs]
    return [
        ("Paper", printable(str(method.get("paper") or ""))),
        ("Reference", printable(str(method.get("reference") or ""))),
        ("Weights", "; ".join(f"{name}: {value}" for name, value in weights.items()) or "none"),
        ("Licence of the weights", str(method.get("weights_licence") or "")),
        ("Parameters", size),
        ("Options", _pairs(method.get("options") or {})),
        ("Threshold rule", _shared(str((c.get("threshold") or {}).get("rule") or "none") for c in configs)),
        ("Device", _shared(str(c.get("device") or "") for c in configs)),
        ("Precision", _shared(str(c.get("precision") or "") for c in configs)),
        ("Environment", _shared(_pairs(c.get("environment") or {}, leave="commit") for c in configs)),
        ("Code", _shared(str((c.get("environment") or {}).get("commit") or "") for c in configs)),
        (
            "Protocol",
            _shared(f"{protocol.name} version {r.get('version', '?')}, sha256 {r.get('sha256', '?')}" for r in rules),
        ),
    ]


def _shared(texts: Any) -> str:
    """Join what differs between runs, once each."""
    return "; ".join(dict.fromkeys(printable(text) for text in texts if text))


def _pairs(mapping: Mapping[str, Any], leave: str = "") -> str:
    """Write a mapping as ``a = 1, b = [2, 3]``."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in mapping.items()}
    return printable(", ".join(f"{key} = {text}" for key, text in texts.items() if key != leave))


def _run(config: Mapping[str, Any]) -> dict[str, str]:
    dataset, cost = config["dataset"], {**(config.get("cost") or {}), **costs_of(config)}
    threshold = config.get("threshold") or {}

    def written(value: Any, form: str) -> str:
        return "–" if value is None or value != value else format(value, form)

    return {
        "category": str(dataset["category"]),
        "seed": str(config.get("seed", "–")),
        "training images": f"{dataset.get('train', '–')} ({dataset.get('held_out', 0)} held out)",
        "threshold": written(threshold.get("value"), ".5g"),
        "fit, s": written(cost.get("fit_seconds"), ",.1f"),
        "median, ms": written(cost["ms_median"], ",.0f"),
        "95 %, ms": written(cost["ms_p95"], ",.0f"),
        "host, MiB": written(cost["peak_host_mib"], ",.0f"),
        "device, MiB": written(cost["peak_device_mib"], ",.0f"),
        "dataset index": str(dataset.get("index_sha256", "–"))[:12],
        "finished": str(config.get("created", "–"))[:16].replace("T", " "),
        "run": str(config.get("run", "–")),
    }
