"""Finished runs as `hrbench run` leaves them, with made-up but plausible numbers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hrbench.errors import HrbenchError
from hrbench.metrics.alarms import FalseAlarms
from hrbench.metrics.detection import Detection, fit_detection
from hrbench.protocol import Alarms, Protocol, ThresholdRule
from hrbench.report import plots
from hrbench.report.scores import Scores, quarters
from hrbench.report.summary import Leaderboard, summarise
from hrbench.runs.picture_files import Picture, Pictures, write_pictures
from hrbench.runs.store import RECORD_COLUMNS, Run

NASTY = "<b>x&y_z%</b> | $a$ #1 \\ \x1b[31m\"'"
DATASETS = {"bsdata": ("ballscrew",), "weave & grain": ("fabric", "steel_1", "wood")}
RANDOM = "mobilenetv2_100 random"


@dataclasses.dataclass(frozen=True)
class Config:
    """One row of the leaderboard to be."""

    name: str
    title: str
    view: str
    weights: str
    skill: float
    slope: float
    decision: bool = False


CONFIGS = (
    Config(
        "fastflow",
        "FastFlow",
        "tiled:256:64",
        "mobilenetv2_100 file:/data/m.pth sha256:0123456789ab",
        0.9,
        0.05,
    ),
    Config("fastflow", "FastFlow", "whole:512", "mobilenetv2_100 file:/data/m.pth sha256:0123456789ab", 0.9, 0.45),
    Config("l2bt", "L2BT", "tiled:256:64", RANDOM, 0.5, 0.2, decision=True),
    Config("nasty", NASTY, "whole:512", "resnet18 timm:resnet18.a1_in1k sha256:ffff", 0.7, 0.3),
)

Factory = Callable[..., Run]
EVIDENCE: dict[Path, SimpleNamespace] = {}
PROTOCOL = Protocol("native", "Native resolution, all thresholds", 1)


def _areas(category: str) -> np.ndarray:
    rng = np.random.default_rng(int(hashlib.sha256(category.encode()).hexdigest()[:8], 16))
    count = 7 if category == "wood" else 120
    return np.sort(np.round(np.exp(rng.uniform(np.log(12), np.log(5000), count)))).astype(int)


def _records(config: Config, dataset: str, category: str, seed: int, run: str, intervals: bool) -> pd.DataFrame:
    areas = _areas(category)
    diameter = 2 * np.sqrt(areas / np.pi)
    rng = np.random.default_rng(seed)
    edges = np.quantile(areas, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, areas)
    chosen = {"all": np.ones(len(areas), bool)}
    chosen |= {name: quarter == i for i, name in enumerate(("tiny", "small", "medium", "large"))}
    chosen |= {f"q{i + 1}": quarter <= i for i in range(4)}
    bins = np.searchsorted([8, 16, 32, 64, 128], diameter, side="right")
    names = ("d<8", "d8-16", "d16-32", "d32-64", "d64-128", "d>=128")
    chosen |= {name: bins == i for i, name in enumerate(names)}
    found = np.clip(config.skill - config.slope * (1 - np.log(areas) / np.log(5000)), 0, 1)

    rows: list[tuple[str, str, float, float, float, int]] = []
    for limit in (0.3, 0.1, 0.05, 0.01):
        for subset, mask in chosen.items():
            value = float(found[mask].mean() * limit**0.08) if mask.any() else math.nan
            rows.append(("aupro", subset, limit, value + rng.normal() * 0.004, 3.2e-7, int(mask.sum())))
        rows.append(("rho", "all", limit, config.skill - config.slope, 1e-6, len(areas)))
        rows.append(("rho_disjoint", "all", limit, config.skill - 1.2 * config.slope, 1e-6, len(areas)))
    threshold = config.name != "nasty"
    for name, value, n in (
        ("image_auroc", 0.95 * config.skill, 339),
        ("image_ap", 0.96 * config.skill, 339),
        ("pixel_auroc", 0.99 * config.skill, 10**8),
        ("pixel_ap", 0.4 * config.skill, 10**8),
        ("iou", 0.31 * config.skill if threshold else math.nan, 167),
        ("miou", 0.3 * config.skill if threshold else math.nan, 167),
        ("f1", 0.47 * config.skill if threshold else math.nan, 167),
        ("iou_oracle", 0.42 * config.skill, 167),
        ("miou_oracle", 0.4 * config.skill, 167),
        ("f1_oracle", 0.59 * config.skill, 167),
    ):
        rows.append((name, "all", math.nan, value + rng.normal() * 0.002, 0.0, n))
    if threshold:
        names = {"a50": 60.0, "a90": 400.0, "a90_95": math.nan}
        rows += [(name, "all", math.nan, value, 0.0, len(areas)) for name, value in names.items()]
    if config.decision:
        rows += [(name, "all", math.nan, 0.12, 0.0, 167) for name in ("iou_decision", "miou_decision")]

    table = pd.DataFrame(rows, columns=["metric", "subset", "fpr_limit", "value", "error_bound", "n"])
    table = table.assign(run=run, dataset=dataset, category=category, method=config.name, preset="native")
    table = table.assign(view=config.view, weights=config.weights, seed=seed, protocol="native")
    table = table.assign(ci_low=math.nan, ci_high=math.nan)
    if intervals:
        table = table.assign(ci_low=table["value"] - 0.02, ci_high=table["value"] + 0.01)
    return table[list(RECORD_COLUMNS)]


def write_run(
    root: Path,
    config: Config = CONFIGS[0],
    dataset: str = "bsdata",
    category: str = "ballscrew",
    seed: int = 0,
    intervals: bool = False,
    **changes: object,
) -> Run:
    """Write one finished run below `root` and read it back."""
    view = config.view.replace(":", "-")
    name = f"{config.name}-native-{view}-s{seed}"
    folder = root / "runs" / dataset / category / name
    (folder / "pictures").mkdir(parents=True)
    records = _records(config, dataset, category, seed, name, intervals)
    records.to_parquet(folder / "records.parquet")
    settings = {
        "schema": 1,
        "run": name,
        "created": f"2026-11-20T12:{seed:02d}:00+00:00",
        "dataset": {
            "name": dataset,
            "category": category,
            "index_sha256": hashlib.sha256(category.encode()).hexdigest(),
            "train": 448,
            "held_out": 50,
            "test": 339,
            "test_defective": 167,
        },
        "method": {
            "name": config.name,
            "title": config.title,
            "paper": "Somebody et al., https://arxiv.org/abs/2111.07677",
            "reference": "https://example.org/code",
            "preset": "native",
            "options": {"steps": 20, "layers": [1, 2], "note": config.title},
            "weights": {"backbone": config.weights},
            "weights_licence": "Apache-2.0",
            "parameters": 12_345_678,
            "trainable": 1_234_567,
        },
        "view": config.view,
        "seed": seed,
        "protocols": {"native": {"version": PROTOCOL.version, "sha256": PROTOCOL.digest}},
        "threshold": {"rule": "normal-quantile", "value": 1.23, "normal_images": 50},
        "cost": {
            "fit_seconds": 61.5,
            "predict_seconds": 100.0,
            "megapixels_per_second": 1.2345 + seed,
            "ms_median": 300.0,
            "ms_p95": 400.0,
            "peak_memory_mib": 900.0,
        },
        "device": "cpu (2 threads)",
        "environment": {"hrbench": "0.1.0", "commit": "9db7919", "python": "3.11.7", "torch": "2.9"},
    }
    (folder / "run.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    _give_pictures(folder / "pictures", config)
    run = Run(folder)
    components = pd.DataFrame({"image": 0, "area": _areas(category), "defect_type": "pit"})
    EVIDENCE[folder] = SimpleNamespace(components=components, skill=config.skill, threshold=config.name != "nasty")
    return run


def _give_pictures(folder: Path, config: Config) -> None:
    """Write pictures of two shared defects, of one that only some methods keep, and of a good image."""
    shown = [(("tiny",), "bad/000", 12), (("large", "largest missed"), "bad/001", 400), (("good",), "good/000", 0)]
    if config.slope < 0.25:
        shown.append((("smallest found",), "bad/002", 9))
    items = []
    for number, (kinds, image, area) in enumerate(shown):
        photo, grey, mask = (folder / f"{number:02d}-{part}" for part in ("photo.jpg", "map.png", "mask.png"))
        marked = np.zeros((60, 80), bool)
        marked[20 : 20 + 4 * bool(area), 30:33] = True
        Image.fromarray(np.full((60, 80, 3), 90 + 20 * number, np.uint8)).save(photo)
        Image.fromarray((20 + 200 * config.skill * marked).astype(np.uint8)).save(grey)
        if area:
            Image.fromarray(marked).save(mask)
        items.append(
            Picture(
                f"test/{image}.png", kinds, int(area > 0), 400, 500, (100, 200, 160, 280),
                (120, 230, 124, 233) if area else None, area, config.skill * 3, (121, 231),
                photo, grey, mask if area else None,
            )
        )  # fmt: skip
    write_pictures(folder, Pictures(tuple(items), 0.0, 2.0, 2.0, 0.05, "native"))


def alter(run: Run, key: str, value: object) -> None:
    """Set one entry of a run's ``run.json`` by its dotted key; ... drops it."""
    path = run.folder / "run.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    *sections, last = key.split(".")
    section = functools.reduce(lambda part, name: part[name], sections, table)
    if value is ...:
        section.pop(last, None)
    else:
        section[last] = value
    path.write_text(json.dumps(table), encoding="utf-8")
    run.__dict__.pop("about", None)


def staged(run: Run, workers: int = 1, devices: int = 1) -> Run:
    """Make a run one whose job was done in stages, by so many workers on a device and on so many devices."""
    figures = {"wall_seconds": 60.5, "stage_seconds": 111.0, "workers_on_device": workers, "devices": devices}
    for name, value in figures.items():
        alter(run, f"cost.{name}", value)
    return run


@functools.lru_cache
def found(skill: float, areas: tuple[int, ...]) -> Detection:
    """Return an analysis in which a method of more skill finds smaller defects."""
    rng = np.random.default_rng(0)
    hits = rng.random(len(areas)) < 1 / (1 + np.exp(-2 * (np.log(areas) - 9 + 5 * skill)))
    return dataclasses.replace(fit_detection(areas, hits), alarms=FalseAlarms(1, 8), false_per_pixel=0.00123)


def board_of(runs: Sequence[Run], protocol: Protocol, dataset: str = "bsdata") -> Leaderboard:
    """Return the leaderboard of one dataset."""
    (board,) = (board for board in summarise(runs, protocol).leaderboards if board.dataset == dataset)
    return board


@pytest.fixture
def make_run(tmp_path: Path) -> Factory:
    """Return a function that writes one finished run and reads it back."""
    return functools.partial(write_run, tmp_path)


@pytest.fixture
def lose_evidence() -> Callable[[Run], None]:
    """Return a function that deletes a run's evidence."""
    return lambda run: EVIDENCE.pop(run.folder) and None


@pytest.fixture
def protocol() -> Protocol:
    return PROTOCOL


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """All configurations on all categories with two seeds; L2BT lacks `wood`, `nasty` a seed."""
    make_run = functools.partial(write_run, tmp_path_factory.mktemp("all"))
    return [
        make_run(config, dataset, category, seed)
        for dataset, categories in DATASETS.items()
        for category in categories
        for config in CONFIGS
        for seed in (0, 1)
        if not (config.name == "l2bt" and category == "wood")
        if not (config.name == "nasty" and category == "fabric" and seed == 1)
    ]


@pytest.fixture(autouse=True, scope="module")
def _curves() -> Iterator[None]:
    """Replace curves and detection, which have tests of their own, by power laws and made-up hits."""
    fpr = np.concatenate([[0.0], np.geomspace(1e-7, 1, 500)])

    def power(evidence: SimpleNamespace, *_: object, **__: object) -> tuple[np.ndarray, np.ndarray]:
        return fpr, fpr ** (0.35 * (1 - evidence.skill) + 0.02)

    def detect(evidence: SimpleNamespace, *_: object) -> Detection | None:
        return found(evidence.skill, tuple(evidence.components["area"])) if evidence.threshold else None

    def load(run: Run, protocol: Protocol) -> SimpleNamespace:
        if run.folder not in EVIDENCE:
            raise HrbenchError("evidence is gone")
        return EVIDENCE[run.folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "load_evidence", load)
        patch.setattr(plots, "roc_curve", power)
        patch.setattr(plots, "pro_curve", power)
        patch.setattr(plots, "Context", lambda evidence, _: evidence)
        patch.setattr(plots, "detection_at", detect)
        yield


def scores_with(good: np.ndarray, critical: np.ndarray, areas: np.ndarray, seed: int = 0) -> Scores:
    """Return scores of images with a defect each, that alarm as soon as it is hit."""
    numbers = np.arange(areas.size)
    return Scores(seed, good, critical, critical, areas, numbers, quarters(areas, PROTOCOL.size_bins))


def give_scores(run: Run, good: int = 30, skill: float = 1.0, seed: int = 0) -> Run:
    """Write alarm and critical scores of made-up images, one defect each, and an interval of a90 at one budget."""
    rng = np.random.default_rng(seed)
    areas = _areas(run.about.dataset.category)
    critical = rng.normal(skill * (np.log(areas) - 3), 1.0)
    alarms = np.concatenate([rng.gumbel(size=good), critical + rng.exponential(0.2, areas.size)])
    labels = np.repeat([0, 1], [good, areas.size])
    names = [f"{label}/{number:03d}.png" for number, label in enumerate(labels)]
    images = {"protocol": "native", "image": names, "label": labels, "group": "", "score": alarms, "alarm": alarms}
    pd.DataFrame(images).assign(largest=[0] * good + areas.tolist()).to_parquet(run.files.table("images"))
    components = {"protocol": "native", "image": names[good:], "area": areas, "critical": critical}
    pd.DataFrame(components).to_parquet(run.files.table("components"))
    row = run.records.iloc[[0]].assign(metric="a90_matched", subset="all", fpr_limit=0.05, value=200.0)
    records = pd.concat([run.records, row.assign(ci_low=100.0, ci_high=math.inf)], ignore_index=True)
    records.to_parquet(run.files.table("records"))
    return Run(run.folder)


@pytest.fixture
def alarming(protocol: Protocol) -> Protocol:
    """Return a protocol that counts alarms and promises few of them."""
    rules = Alarms(budgets=(0.01, 0.02, 0.05, 0.1, 0.2), summary=(0.01, 0.02, 0.05, 0.1))
    return dataclasses.replace(protocol, alarm=rules, threshold=ThresholdRule("conformal"))
