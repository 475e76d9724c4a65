"""What lies in folders of runs: what is done, begun or failed, the headline numbers, and how the runs differ."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hrbench._util.received import read_json
from hrbench.errors import HrbenchError
from hrbench.metrics.words import alarms_text, counted
from hrbench.protocol import Protocol
from hrbench.report.columns import limit_text
from hrbench.report.configurations import Configuration, CountedRun, describe, identify, printable
from hrbench.report.labels import relabel
from hrbench.report.terminal import PLAIN, Terminal, TerminalColumn, terminal_lines
from hrbench.report.without_masks import left_open_sentences
from hrbench.runs.store import Run, RunFolder

__all__ = ["Entry", "Inventory", "inventory_json", "inventory_text", "take_inventory"]

State = Literal["done", "begun", "failed", "damaged"]
STATES: tuple[State, ...] = ("done", "begun", "failed", "damaged")
MOST_LISTED = 10
_LONGEST = 48  # characters of a setting in a table
_LARGEST = 1 << 20  # bytes of a note of a failure


@dataclasses.dataclass(frozen=True)
class Entry:
    """A job that has left something.

    Attributes
    ----------
    folder : Path
    state : {'done', 'begun', 'failed', 'damaged'}
    dataset, category, run : str
        Of a run that is done as it says, else the names of its folders.
    run_of : CountedRun or None
        Only of one that is done.
    settings : dict of str to str
        How it was run, in words.
    numbers : dict of str to float
        The headline numbers; NaN where there is none.
    error : str
        Why it has failed, or what is damaged.
    """

    folder: Path
    state: State
    dataset: str
    category: str
    run: str
    run_of: CountedRun | None = None
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def name(self) -> str:
        """Which one it is, in words."""
        return printable(f"{self.dataset}/{self.category}/{self.run}")


@dataclasses.dataclass(frozen=True)
class Inventory:
    """All that was found, and under which protocol its numbers are."""

    entries: tuple[Entry, ...]
    protocol: Protocol

    def of(self, state: State) -> list[Entry]:
        """Return those of a state."""
        return [entry for entry in self.entries if entry.state == state]

    @property
    def common(self) -> dict[str, str]:
        """The settings that all finished runs share."""
        each = [entry.settings for entry in self.of("done")]
        first = each[0] if each else {}
        return {key: text for key, text in first.items() if all(other.get(key) == text for other in each)}


def take_inventory(folders: Sequence[Path], protocol: Protocol, labels: Mapping[str, str] | None = None) -> Inventory:
    """Look at all jobs below folders; of finished runs only the record and the table of metrics are read.

    Raises
    ------
    HrbenchError
        If there is not a single one, or a label is of nothing.
    """
    found: dict[Path, Entry] = {}
    for folder in folders:
        for entry in _entries(folder, protocol):
            found.setdefault(entry.folder.resolve(), entry)
    if not found:
        raise HrbenchError(f"{', '.join(map(str, folders))}: no run in this folder; `hrbench run` makes them")
    runs = identify([entry.run_of for entry in found.values() if entry.run_of is not None])
    if labels:
        runs = relabel(runs, labels)
    named = {run.run.folder: run for run in runs}
    entries = [
        dataclasses.replace(entry, run_of=run, settings=_settings(run)) if (run := named.get(entry.folder)) else entry
        for entry in found.values()
    ]
    return Inventory(tuple(entries), protocol)


def _entries(root: Path, protocol: Protocol) -> Iterator[Entry]:
    """Yield what a folder holds, in order of the paths."""
    for place, folders, files in os.walk(root):
        path = Path(place)
        names = path.parent.parent.name, path.parent.name, path.name
        folders.sort()
        if "run.json" in files:
            yield _finished(Run(path), names, protocol)
        elif "partial" in folders and not RunFolder(path).failed.exists():
            yield Entry(path, "begun", *names)
        for note in sorted(name for name in files if name.endswith(".failed.json")):
            failed = RunFolder(path / note.removesuffix(".failed.json"))
            if not failed.record.exists():
                yield Entry(failed.path, "failed", path.parent.name, path.name, failed.path.name, error=_note(failed))
        if "run.json" in files or "partial" in folders:
            folders.clear()  # a run holds no other one


def _note(folder: RunFolder) -> str:
    """Return why a job has failed."""
    try:
        note = read_json(folder.failed, _LARGEST)
        return printable(f"{note['error']} (on {note['host']})")
    except HrbenchError as error:
        return printable(str(error))
    except (KeyError, TypeError):
        return printable(f"{folder.failed}: does not say why")


def _finished(run: Run, names: tuple[str, str, str], protocol: Protocol) -> Entry:
    try:
        about, counted_run = run.about, describe(run, protocol)
        numbers = _numbers(run, protocol)
    except HrbenchError as error:
        return Entry(run.folder, "damaged", *names, error=printable(str(error)))
    dataset = about.dataset
    return Entry(
        run.folder,
        "done",
        dataset.name,
        dataset.category,
        about.run or run.folder.name,
        counted_run,
        numbers=numbers,
    )


def _numbers(run: Run, protocol: Protocol) -> dict[str, float]:
    records = run.records
    records = records[(records["protocol"] == protocol.name) & (records["subset"] == "all")]
    rows = zip(*(records[name].tolist() for name in ("metric", "fpr_limit", "value")), strict=True)
    known = {(metric, None if math.isnan(limit) else round(limit, 9)): value for metric, limit, value in rows}
    budget, limit = protocol.alarm.headline, protocol.headline_fpr
    wanted: dict[str, tuple[str, float | None]] = {}
    if protocol.alarm.budgets:
        wanted[f"recall@{limit_text(budget)}"] = ("recall_matched", round(budget, 9))
    wanted |= {f"AUPRO@{limit_text(limit)}": ("aupro", round(limit, 9)), "I-AUC": ("image_auroc", None)}
    if ("aupro", round(limit, 9)) not in known:  # without masks
        if protocol.alarm.budgets:
            wanted[f"called@{limit_text(budget)}"] = ("called_matched", round(budget, 9))
        wanted["alarms"] = ("alarms", None)
    return {name: known.get(key, math.nan) for name, key in wanted.items()}


def _settings(run: CountedRun) -> dict[str, str]:
    """Return how a run was done, by name; what its method has no option for has no entry."""
    about, of = run.run.about, run.configuration
    given = {name: value for name, value in about.method.options.items() if name != "weights"}  # they are told above
    options = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    versions = ", ".join(f"{name}@{rules.version}" for name, rules in about.protocols.items())
    settings = {
        "preset": of.preset_text,
        "view": of.view_text,
        "weights": of.weights,
        "held out": of.held_out_text or "by default",
        "seed": str(run.seed),
        "protocols": versions,
        "device": run.device,
        "batch size": str(run.batch_size),
        "compiled": "yes" if run.compiled else "no",
        "hrbench": about.environment.get("hrbench", ""),
        "commit": about.environment.get("commit", "")[:12],
        "torch": about.environment.get("torch", ""),
        **options,
    }
    return {name: printable(text) for name, text in settings.items() if text}


def inventory_text(found: Inventory, terminal: Terminal = PLAIN) -> str:
    """Return what there is as text: a table for each dataset, a line for each configuration."""
    done = found.of("done")
    counts = Counter(entry.state for entry in found.entries)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    parts = [counted(len({entry.dataset for entry in found.entries}), "dataset")]
    categories = len({(entry.dataset, entry.category) for entry in found.entries})
    parts += ["1 category" if categories == 1 else f"{categories} categories"]
    parts += [counted(len({run.configuration.method for entry in done if (run := entry.run_of)}), "method")] * bool(
        done
    )
    lines = [terminal.wrap(f"{counted(len(found.entries), 'run')} of {', '.join(parts)}: {states}", "  ")]
    if done:
        common = ", ".join(f"{name} {text}" for name, text in found.common.items())
        lines += [terminal.wrap(f"All: {common}", "  ")] if common else []
    for dataset in dict.fromkeys(entry.dataset for entry in done):
        lines += ["", *_table(found, dataset, terminal)]
    for state in STATES[1:]:
        for entry in found.of(state)[:MOST_LISTED]:
            lines.append(terminal.wrap(f"{state}: {entry.name}" + f": {entry.error}" * bool(entry.error), "  "))
        if (more := counts[state] - MOST_LISTED) > 0:
            lines.append(f"{state}: {more} more")
    return "\n".join(lines)


def _table(found: Inventory, dataset: str, terminal: Terminal) -> Iterator[str]:
    """Yield the table of a dataset, best first: means over seeds, then over categories; then where its runs lie."""
    rows: dict[int, list[Entry]] = {}
    for entry in found.of("done"):
        if entry.dataset == dataset and entry.run_of is not None:
            rows.setdefault(entry.run_of.configuration.number, []).append(entry)
    every = [entry for same in rows.values() for entry in same]
    runs = [entry.run_of for entry in every if entry.run_of is not None]
    heads = list(dict.fromkeys(name for entry in every for name in entry.numbers))
    each = [(same, _means(same, heads)) for same in rows.values()]
    if any(run.unmasked or not run.defective for run in runs):
        heads = [name for name in heads if not all(math.isnan(means[name]) for _, means in each)]
    signs = [1 if head == "alarms" else -1 for head in heads]  # few of these are good
    each.sort(
        key=lambda row: tuple(
            math.inf if math.isnan(row[1][head]) else sign * row[1][head]
            for head, sign in zip(heads, signs, strict=True)
        )
    )
    first = [_configuration(same) for same, _ in each]
    columns = [TerminalColumn("method", tuple(of.title for of in first), left=True)]
    for name in _differing([same for same, _ in each], found.common):
        texts = tuple(_cut(_joined(entry.settings.get(name, "") for entry in same)) for same, _ in each)
        keep = {"view": 90, "weights": 80, "preset": 70, "seed": 60, "commit": 5}.get(name, 10)
        columns.append(TerminalColumn(name, texts, keep, left=True))
    categories = len({entry.category for same, _ in each for entry in same})
    counts = tuple(f"{len({entry.category for entry in same})}/{categories}" for same, _ in each)
    columns += [TerminalColumn("cat.", counts, 50)] if categories > 1 else []
    columns += [TerminalColumn("runs", tuple(str(len(same)) for same, _ in each), 20)]
    for head in heads:
        numbers = tuple("–" if math.isnan(means[head]) else f"{means[head]:.3f}" for _, means in each)
        columns.append(TerminalColumn(head, numbers, 95 if head == heads[0] else 85))
    notes = left_open_sentences(runs)
    if heads and heads[0].startswith("recall"):
        alarms = alarms_text(found.protocol.alarm.headline)
        notes = [f"{heads[0]}: share of the defects that are hit, at {alarms}; best first.", *notes]
    names = sorted({entry.category for same, _ in each for entry in same})
    where = f"{len(names)} categories" if len(names) > 3 else ", ".join(map(printable, names))
    title = f"{printable(dataset)} ({where}), protocol {found.protocol.name}"
    yield terminal_lines(title, columns, notes, terminal)
    for same, of in list(zip((same for same, _ in each), first, strict=True))[:MOST_LISTED]:
        more = f" and {len(same) - 1} more" if same[1:] else ""
        yield f"{of.short}: {shlex.quote(printable(str(same[0].folder)))}{more}"


def _configuration(same: Sequence[Entry]) -> Configuration:
    run = same[0].run_of
    assert run is not None
    return run.configuration


def _differing(rows: Sequence[Sequence[Entry]], common: Mapping[str, str]) -> list[str]:
    """Return the settings that differ between rows, or, of options, between rows of one method."""
    names = dict.fromkeys(name for same in rows for entry in same for name in entry.settings if name not in common)

    def told(name: str) -> bool:
        groups: dict[str, set[str]] = {}
        for same in rows:
            of = _configuration(same)
            group = of.method if name in json.loads(of.options) else ""
            groups.setdefault(group, set()).add(_joined(entry.settings.get(name, "") for entry in same))
        return any(len(texts) > 1 for texts in groups.values())

    return [name for name in names if told(name)]


def _joined(texts: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text)) or "–"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}~"


def _means(same: Sequence[Entry], names: Sequence[str]) -> dict[str, float]:
    """Return means over the seeds of each category, and then over categories, of what all of them have."""
    by_category: dict[str, list[Entry]] = {}
    for entry in same:
        by_category.setdefault(entry.category, []).append(entry)
    return {
        name: _mean([_mean([entry.numbers.get(name, math.nan) for entry in seeds]) for seeds in by_category.values()])
        for name in names
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def inventory_json(found: Inventory) -> str:
    """Return what there is as JSON, each run with its state, settings and numbers."""
    runs = []
    for entry in found.entries:
        of = entry.run_of.configuration if entry.run_of else None
        run: dict[str, Any] = {"dataset": entry.dataset, "category": entry.category, "run": entry.run}
        run |= {"folder": str(entry.folder), "state": entry.state}
        run |= {"method": of.method, "title": of.title, "name": of.short} if of else {}
        run |= {"settings": dict(entry.settings)} if entry.settings else {}
        numbers = {name: None if math.isnan(value) else value for name, value in entry.numbers.items()}
        run |= {"numbers": numbers} if numbers else {}
        run |= {"error": entry.error} if entry.error else {}
        runs.append(run)
    counts = {state: len(found.of(state)) for state in STATES}
    table = {"protocol": found.protocol.name, "states": counts, "common": found.common, "runs": runs}
    return json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False)
