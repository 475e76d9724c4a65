"""What the protocol is worth: the same maps under several protocols, side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hrbench.metrics import DISJOINT
from hrbench.report.columns import Column, limit_text, number_text
from hrbench.report.rows import leaderboard_rows
from hrbench.report.summary import MIN_COMPONENTS, Cell, Summary, averages, values_of
from hrbench.store import Run

__all__ = ["Block", "ComparedCell", "ProtocolComparison", "compare_protocols"]

_FIELDS = [field.name for field in dataclasses.fields(Cell)]
_Key = tuple[int, str, str, float | None]


@dataclasses.dataclass(frozen=True)
class ComparedCell:
    """A value under one protocol: text, signed difference to the reference in points, tooltip, and if it is best."""

    text: str
    difference: str = ""
    title: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
    """One metric: its name, what it counts under each protocol, and cells by row of the leaderboard and protocol."""

    name: str
    counts: list[str]
    rows: list[tuple[dict[str, Any], list[ComparedCell]]]


@dataclasses.dataclass(frozen=True)
class ProtocolComparison:
    """The same maps under several protocols.

    Attributes
    ----------
    protocols : list of str
        The columns; the first one is the reference.
    blocks : list of Block
    sentence, notes : str
        What to read before and after.
    """

    protocols: list[str]
    blocks: list[Block]
    sentence: str
    notes: str


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Averages under one protocol, the categories in each, and which configurations lack a run."""

    cells: Mapping[_Key, Cell]
    parts: Mapping[_Key, frozenset[str]]
    lacking: Mapping[int, str]


def compare_protocols(runs: Sequence[Run], summary: Summary, dataset: str) -> ProtocolComparison | None:
    """Compare the protocols under which the runs of a dataset were measured; None if there is only one.

    A value needs records of every run that counts for its row: an average over other runs would be of other maps.

    Parameters
    ----------
    runs : sequence of Run
        Those that were summarised.
    summary : Summary
    dataset : str
    """
    table = summary.runs[summary.runs["dataset"] == dataset]
    found = {str(name) for i in table["position"] for name in runs[i].records["protocol"].unique()}
    if len(found) < 2:
        return None
    reference = "native" if "native" in found else summary.protocol.name
    names = [reference, *sorted(found - {reference})]
    measured = {name: _measure(runs, table, name) for name in names}
    own = summary.protocol.headline_fpr
    rows = leaderboard_rows(summary, dataset)
    blocks = [_block(column, names, measured, rows) for column in _columns(measured, own)]
    sentence = "Same images and same maps; only the evaluation differs."
    notes = (
        f"Small: difference to {reference}, in points (hundredths), where both average the same categories. "
        "n: defects that are counted; a shrunken mask loses small ones and may tear thin ones apart. "
        "tiny: the smallest quarter of those that are counted. ° Mean over fewer values than it should have."
    )
    return ProtocolComparison(names, [block for block in blocks if block is not None], sentence, notes)


def _measure(runs: Sequence[Run], table: pd.DataFrame, name: str) -> _Measured:
    """Average the records of one protocol over seeds and categories, for the configurations that have all of them."""
    digests = {i: runs[i].config.get("protocols", {}).get(name, {}).get("sha256", "") for i in table["position"]}
    values = {i: values_of(runs[i], name) for i in table["position"]}
    newest = table.sort_values("created", kind="stable")["position"]
    known = [digests[i] for i in newest if not values[i].empty and digests[i]]
    lacking: dict[int, str] = {}
    for configuration, positions in table.groupby("configuration")["position"]:
        without = sum(values[i].empty for i in positions)
        foreign = sum(digests[i] not in ("", known[-1]) for i in positions) if known else 0
        if without:
            lacking[configuration] = f"{without} of {len(positions)} runs not measured under {name}"
        elif foreign:
            lacking[configuration] = f"{foreign} of {len(positions)} runs measured under other rules named {name}"
    kept = table[~table["configuration"].isin(lacking)]
    cells: dict[_Key, Cell] = {}
    parts: dict[_Key, set[str]] = {}
    if len(kept):
        categories, datasets = averages(values, kept)
        for row in datasets.to_dict("records"):
            cells[_key(row)] = Cell(**{field: row[field] for field in _FIELDS})
        for row in categories[categories["value"].notna() & ~categories["few"]].to_dict("records"):
            parts.setdefault(_key(row), set()).add(row["category"])
    return _Measured(cells, {key: frozenset(names) for key, names in parts.items()}, lacking)


def _key(row: Mapping[Any, Any]) -> _Key:
    limit = None if math.isnan(row["fpr_limit"]) else float(row["fpr_limit"])
    return row["configuration"], row["metric"], row["subset"], limit


def _columns(measured: Mapping[str, _Measured], own: float) -> list[Column]:
    """Return AUPRO at the largest limit that all share and at the headline's, of all and of tiny ones, and AUROC."""
    limits = []
    for each in measured.values():
        held = {key[3] for key in each.cells if key[1] == "aupro" and key[2] == "all"}
        if held:
            limits.append({limit for limit in held if limit is not None})
    shared = set.intersection(*limits) if limits else set()
    wanted = ([max(shared)] if shared else []) + [round(own, 9)] * any(round(own, 9) in held for held in limits)
    columns = []
    for limit in dict.fromkeys(wanted):
        for subset in ("all", DISJOINT[0]):
            what = "all defects" if subset == "all" else "tiny defects"
            columns.append(Column("", "", f"AUPRO@{limit_text(limit)}, {what}", "aupro", subset, limit))
    return [*columns, Column("", "", "image ROC-AUC", "image_auroc")]


def _block(
    column: Column, names: Sequence[str], measured: Mapping[str, _Measured], rows: Sequence[dict[str, Any]]
) -> Block | None:
    """Arrange one metric; None if no row has it."""

    def cell(name: str, row: dict[str, Any]) -> Cell:
        return measured[name].cells.get((row["configuration"], column.metric, column.subset, column.limit), Cell())

    fair = [row for row in rows if not row["missing"] and not row["foreign"]]
    best = {}
    for name in names:
        shown = [value for row in fair if not math.isnan(value := cell(name, row).shown)]
        best[name] = number_text(column, max(shown)) if len(shown) > 1 else ""
    lines = []
    for row in rows:
        base, origin = cell(names[0], row), (row["configuration"], column.metric, column.subset, column.limit)
        line = []
        for name in names:
            here = cell(name, row)
            text = number_text(column, here.shown)
            same = measured[name].parts.get(origin) == measured[names[0]].parts.get(origin)
            points = 100 * (here.shown - base.shown) if name != names[0] and same else math.nan
            line.append(
                ComparedCell(
                    (f"n = {here.n}" if here.few else text) + "°" * (0 < here.defined < here.total),
                    "" if math.isnan(points) else _signed(points),
                    _explain(name, here, column, measured[name].lacking.get(row["configuration"], "")),
                    row in fair and text == best[name],
                )
            )
        lines.append((row, line))
    if all(math.isnan(cell(name, row).value) for name in names for row in rows):
        return None
    counts = [""] * len(names)
    if column.metric == "aupro":
        numbers = [max((cell(name, row).n for row in rows), default=0) for name in names]
        counts = [f"n = {n:,}" if n else "–" for n in numbers]
    return Block(column.head, counts, lines)


def _signed(points: float) -> str:
    return "±0.0" if abs(points) < 0.05 else f"{points:+.1f}".replace("-", "−")


def _explain(name: str, cell: Cell, column: Column, lacking: str) -> str:
    if lacking:
        return lacking
    if cell.total == 0:
        return f"{name} does not measure this"
    if cell.few:
        return f"only {cell.n} defects, no number below {MIN_COMPONENTS}"
    if math.isnan(cell.shown):
        return "no defect of this size is left" if column.metric == "aupro" and not cell.n else "undefined here"
    parts = [f"{cell.shown:.6f}", f"n = {cell.n:,}"]
    if cell.low == cell.low:
        parts.insert(1, f"interval {cell.low:.4f} to {cell.high:.4f}")
    return "; ".join(parts)
