"""What a run says of itself, and the configuration it belongs to: the one place where a report reads ``run.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hrbench._util.words import held_out_text
from hrbench.protocol import Protocol
from hrbench.report.origins import known_origin, origin_notes
from hrbench.report.styles import PLAIN, Look, looks
from hrbench.runs.record import Cost
from hrbench.runs.store import Run
from hrbench.runs.verified import Origin

__all__ = [
    "COSTS",
    "THROUGHPUT",
    "TIMES",
    "Configuration",
    "CountedRun",
    "card_facts",
    "costs_of",
    "describe",
    "identify",
    "printable",
    "protocol_digests",
    "remarks",
    "run_details",
    "untimed_rows",
    "why_untimed",
    "without_duplicates",
]

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

TIMES = (THROUGHPUT, "ms_median", "ms_p95")
"""Those of :data:`COSTS` that say nothing where a device was shared, or where parts ran on different ones.

Memory is each process's own, and stays.
"""

_LONGEST = 60
"""Characters of the options that tell rows apart; with more, a digest does."""

_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a leaderboard row stands for: a method and how it was run, under one set of rules.

    Attributes
    ----------
    method, preset, view, precision : str
    weights_id, options : str
        JSON text that tells weights and options apart.
    rules : str
        Digest of the protocol as it was measured; "" if unknown.
    title, weights : str
        Method and weights as a reader sees them.
    random : bool
        Whether any weights are random.
    number : int
        Its place among all configurations of a report.
    differs : str
        Only where the other readable parts do not tell it from another one: the options that do, ``steps = 20``, or
        else a digest, ``#1f2e3d``.
    label, short : str
        Its whole name, and only what tells it from the others.
    held_out : float or None
        Share of the normal training images that was asked to be held out; None for the default.
    look : Look
        Its colour, marker and line wherever it is drawn.
    preset_text, view_text : str
        As a reader sees them.
    """

    method: str
    preset: str
    view: str
    weights_id: str
    precision: str
    options: str
    rules: str
    title: str
    weights: str
    random: bool
    number: int = -1
    differs: str = ""
    label: str = ""
    short: str = ""
    held_out: float | None = None
    look: Look = PLAIN
    preset_text: str = ""
    view_text: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What runs must share to belong to one row."""
        shared = self.method, self.preset, self.view, self.weights_id, self.precision, self.options, self.rules
        return shared if self.held_out is None else (*shared, str(self.held_out))

    @property
    def held_out_text(self) -> str:
        """The held-out share in words, where it is not the default."""
        return held_out_text(self.held_out)

    @property
    def weights_text(self) -> str:
        """The weights, with a held-out share of its own, and the options that differ where rows would look alike."""
        weights = ", ".join(part for part in (self.weights, self.held_out_text) if part)
        return " ".join(part for part in (weights, self.differs) if part)


@dataclasses.dataclass(frozen=True)
class CountedRun:
    """A run with what a report needs of its ``run.json`` for every table.

    `images` is the digest of the dataset index; `held_out`, `test`, `defective` and `unmasked` count normal training
    images that were held out, test images, those with a defect, and of these the ones without a mask; `own_peak` tells
    whether the peak of host memory is that of the prediction alone, `grouped` whether intervals draw images in groups;
    `untimed` is why its times cannot be compared; `origin` says who published it.
    """

    run: Run
    name: str
    created: str
    dataset: str
    category: str
    images: str
    held_out: int
    test: int
    defective: int
    unmasked: int
    configuration: Configuration
    seed: int
    device: str
    batch_size: int
    compiled: bool
    own_peak: bool
    grouped: bool
    untimed: str
    origin: Origin


def printable(text: str) -> str:
    """Drop control characters and line breaks: names come from files and go to terminals and into SVG."""
    return "".join(c for c in re.sub(r"\s+", " ", text) if c.isprintable())


def describe(run: Run, protocol: Protocol) -> CountedRun:
    """Return what identifies a run and where it comes from."""
    about = run.about
    method, dataset = about.method, about.dataset
    precision = printable(about.precision)
    readable = [", ".join(dict.fromkeys(map(_short_weights, method.weights.values()))) or "none"]
    readable += [precision] * (precision != "float32")
    preset, view = printable(method.preset) or "–", printable(about.view) or "–"
    configuration = Configuration(
        method=method.name,
        preset=preset,
        view=view,
        weights_id=json.dumps({k: _weights_identity(v) for k, v in method.weights.items()}, sort_keys=True),
        precision=precision,
        options=json.dumps(method.options, sort_keys=True),
        rules=protocol_digests(run).get(protocol.name, ""),
        title=printable(method.title or method.name),
        weights=printable(" in ".join(readable)),
        random=any(re.search(r"\brandom\b", text, re.IGNORECASE) for text in method.weights.values()),
        held_out=dataset.held_out_share,
        preset_text=preset,
        view_text=view,
    )
    return CountedRun(
        run=run,
        name=about.run or run.folder.name,
        created=about.created,
        dataset=dataset.name,
        category=dataset.category,
        images=dataset.index_sha256,
        held_out=dataset.held_out,
        test=dataset.test,
        defective=dataset.test_defective,
        unmasked=dataset.test_unmasked,
        configuration=configuration,
        seed=about.seed,
        device=printable(about.device),
        batch_size=about.batch_size,
        compiled=about.compiled,
        own_peak=about.cost.peak_host_since == "phase",
        grouped=bool(dataset.groups_sha256),
        untimed=about.cost.why_not_comparable,
        origin=known_origin(run.folder),
    )


def protocol_digests(run: Run) -> dict[str, str]:
    """Return the protocols that a run was measured under, with the digest of their rules."""
    return {name: rules.sha256 for name, rules in run.about.protocols.items()}


def costs_of(run: Run) -> dict[str, float]:
    """Return what a run recorded of :data:`COSTS`; NaN for what it did not."""
    figures = ((name, getattr(run.about.cost, name)) for name in COSTS)
    return {name: math.nan if figure is None else figure for name, figure in figures}


def why_untimed(runs: Sequence[CountedRun]) -> str:
    """Say why what is made of `runs` has no times, which one of them is enough for; "" where all can be compared."""
    reasons = Counter(run.untimed for run in runs if run.untimed)
    return " and ".join(
        why if number == len(runs) else f"{why} in {number} of {len(runs)} runs" for why, number in reasons.items()
    )


def untimed_rows(runs: Sequence[CountedRun]) -> list[str]:
    """Say in one sentence which rows have no times, and why; nothing where all have."""
    rows: dict[Configuration, list[CountedRun]] = {}
    for run in runs:
        rows.setdefault(run.configuration, []).append(run)
    names: dict[str, list[str]] = {}
    for configuration in sorted(rows, key=lambda configuration: configuration.number):
        if why := why_untimed(rows[configuration]):
            names.setdefault(why, []).append(configuration.short)
    reasons = "; ".join(f"because {why}: {', '.join(same)}" for why, same in names.items())
    return [f"Times left out {reasons}."] if reasons else []


def card_facts(runs: Sequence[Run], protocol: Protocol) -> list[tuple[str, str]]:
    """Return what the runs of a configuration share, by name; what differs is joined."""
    records = [run.about for run in runs]
    method = records[0].method
    rules = [about.protocols.get(protocol.name) for about in records]
    versions = (f"version {r.version}, sha256 {r.sha256}" if r else "version ?, sha256 ?" for r in rules)
    source = f" sha256:{method.source_sha256[:16]}" if method.reference.endswith(".py") else ""
    facts = [
        ("Paper", printable(method.paper)),
        ("Reference", printable(method.reference) + source),
        ("Weights", _joined(f"{name}: {_without_folders(text)}" for name, text in method.weights.items()) or "none"),
        ("Licence of the weights", method.weights_licence),
        ("Parameters", f"{method.parameters:,}, of which trained {method.trainable:,}" if method.parameters else ""),
        ("Options", _pairs(method.options)),
        ("Threshold rule", _joined(about.threshold.rule or "none" for about in records)),
        ("Device", _joined(about.device for about in records)),
        ("Precision", _joined(about.precision for about in records)),
        ("Environment", _joined(_pairs(about.environment, leave="commit") for about in records)),
        ("Code", _joined(about.environment.get("commit", "") for about in records)),
        ("Protocol", _joined(f"{protocol.name} {text}" for text in versions)),
    ]
    return [(name, text) for name, text in facts if text]


def run_details(run: Run) -> dict[str, str]:
    """Return what differs between the runs of a configuration, by name; a dash for what there is not."""
    about, dataset, cost = run.about, run.about.dataset, run.about.cost

    def number(value: float | None, form: str) -> str:
        return "–" if value is None or math.isnan(value) else format(value, form)

    def time(value: float | None, form: str) -> str:
        return number(value if cost.comparable else None, form)

    return {
        "category": dataset.category,
        "seed": str(about.seed),
        "training images": f"{dataset.train} ({dataset.held_out} held out)",
        "threshold": number(about.threshold.value, ".5g"),
        "fit, s": time(cost.fit_seconds, ",.1f"),
        "median, ms": time(cost.ms_median, ",.0f"),
        "95 %, ms": time(cost.ms_p95, ",.0f"),
        "wall, s": number(cost.wall_seconds, ",.1f"),
        "stages, s": number(cost.stage_seconds, ",.1f"),
        "not alone": _not_alone(cost),
        "host, MiB": number(cost.peak_host_mib, ",.0f"),
        "device, MiB": number(cost.peak_device_mib, ",.0f"),
        "dataset index": dataset.index_sha256[:12] or "–",
        "finished": about.created[:16].replace("T", " ") or "–",
        "run": about.run or run.folder.name,
    }


def _not_alone(cost: Cost) -> str:
    shared = [f"shared by {cost.workers_on_device} workers"] * (cost.workers_on_device > 1)
    return ", ".join([*shared, *[f"on {cost.devices} devices"] * (cost.devices > 1)]) or "–"


def _joined(texts: Iterable[str]) -> str:
    """Join what differs between runs, once each."""
    return "; ".join(dict.fromkeys(printable(text) for text in texts if text))


def _pairs(mapping: Mapping[str, Any], leave: str = "") -> str:
    """Write a mapping as ``a = 1, b = [2, 3]``."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in mapping.items()}
    return printable(", ".join(f"{key} = {text}" for key, text in texts.items() if key != leave))


def _short_weights(text: str) -> str:
    """Reduce ``mobilenetv2_100 file:/a/b.pth sha256:1f2e...`` to ``mobilenetv2_100 file``."""
    words = [word.partition(":")[0] for word in text.split() if not word.startswith("sha256:")]
    return " ".join("RANDOM" if word.lower() == "random" else word for word in words) or text


def _without_folders(text: str) -> str:
    """Reduce ``file:/home/a/b.pth``, as earlier versions wrote it, to ``file:b.pth``."""
    return re.sub(r"file:.*[/\\]", "file:", text)


def _weights_identity(text: str) -> str:
    """Drop where a file lay once its digest says what was in it: another machine has another path."""
    if "sha256:" not in text:
        return text
    return " ".join(word for word in text.split() if not re.match(r"(file|bundled|timm|pretrained):", word))


def without_duplicates(runs: Sequence[CountedRun], notes: Mapping[str, list[str]]) -> list[CountedRun]:
    """Keep runs on the images of each category's newest run, and of equal configuration and seed the newest."""
    by_age = sorted(runs, key=lambda run: run.created)
    newest_images = {(run.dataset, run.category): run.images for run in by_age}
    current = [run for run in by_age if run.images == newest_images[run.dataset, run.category]]
    elsewhere = Counter((run.dataset, run.category) for run in by_age)
    elsewhere -= Counter((run.dataset, run.category) for run in current)
    for (dataset, category), number in sorted(elsewhere.items()):
        notes[dataset].append(
            f"{category}: {number} run{'s' * (number > 1)} on other images than the newest run's left out "
            "(the dataset index digests differ)."
        )
    newest = {(run.configuration.identity, run.dataset, run.category, run.seed): run for run in current}
    superseded = Counter(run.dataset for run in current) - Counter(run.dataset for run in newest.values())
    for dataset, number in superseded.items():
        notes[dataset].append(
            f"{number} older run{'s' * (number > 1)} of the same configuration, category and seed "
            "left out; the newest counts."
        )
    counting = {id(run) for run in newest.values()}
    return [run for run in runs if id(run) in counting]


def identify(runs: Sequence[CountedRun]) -> list[CountedRun]:
    """Give every configuration a number, and a label that no other one has."""
    first: dict[tuple[str, ...], Configuration] = {}
    for run in runs:
        first.setdefault(run.configuration.identity, run.configuration)

    def readable(configuration: Configuration) -> list[str]:
        of = configuration
        return [of.title, of.preset_text, of.view_text, of.weights, of.held_out_text]

    alike: dict[tuple[str, ...], list[Configuration]] = {}
    for configuration in first.values():
        alike.setdefault(tuple(readable(configuration)), []).append(configuration)
    told = {identity: text for same in alike.values() for identity, text in _differences(same).items()}
    # A legend names the method, the view where views differ, and the rest where the method is there several times.
    views = len({configuration.view for configuration in first.values()})
    ordered = sorted(first.items())
    drawn = looks([(of.title, of.view, _variant(of)) for _, of in ordered])
    final = {}
    for number, ((identity, configuration), look) in enumerate(zip(ordered, drawn, strict=True)):
        same = [readable(other) for other in first.values() if other.title == configuration.title]
        differing = [True, *(len(set(texts)) > 1 for texts in list(zip(*same, strict=True))[1:]), True]
        differing[2] = views > 1
        names = [*readable(configuration), told[identity]]
        short = _name(name for name, differs in zip(names, differing, strict=True) if differs)
        if configuration.random and "RANDOM" not in short:
            short += " · RANDOM weights"
        final[identity] = dataclasses.replace(
            configuration, number=number, differs=told[identity], label=_name(names), short=short, look=look
        )
    return [dataclasses.replace(run, configuration=final[run.configuration.identity]) for run in runs]


def _variant(configuration: Configuration) -> str:
    """Return what tells runs of a method apart beside the view."""
    return "\n".join(dataclasses.replace(configuration, view="").identity)


def _differences(alike: Sequence[Configuration]) -> dict[tuple[str, ...], str]:
    """Return, by identity, what tells configurations apart that read alike: options, a digest where they do not."""
    if len(alike) == 1:
        return {alike[0].identity: ""}
    options = [json.loads(configuration.options) for configuration in alike]
    names = sorted({name for one in options for name in one if any(one[name] != o.get(name, _ABSENT) for o in options)})
    texts = [_pairs({name: one[name] for name in names if name in one}) for one in options]
    counts = Counter(texts)
    return {
        configuration.identity: text
        if counts[text] == 1 and 0 < len(text) <= _LONGEST
        else "#" + hashlib.sha256("\n".join(configuration.identity).encode()).hexdigest()[:6]
        for configuration, text in zip(alike, texts, strict=True)
    }


def _name(parts: Iterable[str]) -> str:
    return " · ".join(part for part in parts if part)


def remarks(
    counted: Sequence[CountedRun],
    unmeasured: Sequence[CountedRun],
    protocol: Protocol,
    notes: Mapping[str, list[str]],
) -> None:
    """Collect, per dataset, what stands between its rows and a fair comparison."""
    for dataset, texts in notes.items():
        if lacking := {f"{run.category}/{run.name}" for run in unmeasured if run.dataset == dataset}:
            texts.append(f"Without records of protocol {protocol.name!r}, left out: {', '.join(sorted(lacking))}.")
        runs = [run for run in counted if run.dataset == dataset]
        foreign = {run.configuration for run in runs if run.configuration.rules not in ("", protocol.digest)}
        for configuration in sorted(foreign, key=lambda configuration: configuration.number):
            texts.append(
                f"{configuration.label}: measured under other rules than this version "
                f"of protocol {protocol.name!r}, hence not ranked."
            )
        devices = sorted({run.device for run in runs})
        if len(devices) > 1:
            texts.append(f"Speeds come from different devices: {'; '.join(devices)}.")
        texts += untimed_rows(runs)
        texts += origin_notes(runs)
