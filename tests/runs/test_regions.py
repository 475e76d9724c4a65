"""sPRO from a counterfeit MVTec LOCO AD on disk to records, and what can be found out about its evidence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from metrics import oracle
from PIL import Image
from runs.test_verification import Tamper, at, edit, rows, sealed

from hrbench import Run, load_dataset, load_protocol, rescore
from hrbench.cli import main
from hrbench.data import Category
from hrbench.report import page
from hrbench.runs.external_maps import score_maps
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.store import find_runs
from hrbench.runs.verification import verify_run, verify_runs

RULES = """name = "quick"
title = "Few draws"
version = 1
[bootstrap]
draws = 8
"""
REGIONS = "evidence/native-max-8/regions.parquet"
SIZE = (40, 52)
KINDS = {"logical_anomalies": (236, 0.25), "structural_anomalies": (255, 30)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset whose defects are dark squares, two regions each that overlap; do not write into it."""
    root = tmp_path_factory.mktemp("data") / "loco"
    rng = np.random.default_rng(0)

    def save(place: str, pixels: np.ndarray) -> None:
        path = root / "pushpins" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)

    for place, number in (("train/good", 6), ("validation/good", 2), ("test/good", 11)):
        for index in range(number):
            save(f"{place}/{index:03d}.png", rng.normal(150, 6, (*SIZE, 3)))
    for kind, (value, _) in KINDS.items():
        for index in range(11):
            pixels = rng.normal(150, 20, (*SIZE, 3))
            for number in range(2):
                top, left = 5 + 6 * number, index + 4 * number
                mask = np.zeros(SIZE, np.uint8)
                mask[top : top + 8, left : left + 9] = value
                pixels[mask > 0] -= 5 * index
                save(f"ground_truth/{kind}/{index:03d}/{number:03d}.png", mask)
            save(f"test/{kind}/{index:03d}.png", pixels)
    rules = [
        {"defect_name": f"a {kind}", "pixel_value": value, "saturation_threshold": threshold,
         "relative_saturation": threshold < 1}
        for kind, (value, threshold) in KINDS.items()
    ]  # fmt: skip
    (root / "pushpins/defects_config.json").write_text(json.dumps(rules))
    return root


@pytest.fixture(scope="module")
def category(root: Path) -> Category:
    return load_dataset("mvtec_loco_ad", root).categories[0]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "quick.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(scope="module")
def made(category: Category, toy: str, rules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder of one run, with its maps; do not write into it."""
    output = tmp_path_factory.mktemp("regions") / "out"
    job = make_job(category, toy, preset="native", options={"steps": 2})
    run_job(job, output, [load_protocol(rules)], device=torch.device("cpu"), save_maps=True)
    return output


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    return find_runs(shutil.copytree(made, tmp_path / "out"))[0]


def values(run: Run) -> dict[tuple[str, float], float]:
    found = run.records[run.records["metric"] == "spro"]
    return dict(zip(zip(found["subset"], found["fpr_limit"], strict=True), found["value"], strict=True))


def test_records_are_those_of_the_definition(made: Path, root: Path, category: Category) -> None:
    (run,) = find_runs(made)
    maps, regions, kinds = [], [], []
    for sample in category.test:
        maps.append(tifffile.imread(run.files.map_of(sample.id)))
        masks = [np.asarray(Image.open(path)) > 0 for path in sample.masks]
        enough = {"logical_anomalies": 72 // 4, "structural_anomalies": 30}
        regions.append([(mask, enough[sample.defect_type]) for mask in masks])
        kinds.append("" if sample.defect_type == "good" else sample.defect_type)
    limits = (0.3, 0.1, 0.05, 0.01, 1.0)
    found = run.records[run.records["metric"] == "spro"].set_index(["subset", "fpr_limit"])
    assert len(found) == 3 * len(limits)
    for limit, expected in oracle.spro(maps, regions, kinds, limits).items():
        row = found.loc["all", limit]
        assert abs(row["value"] - expected) <= row["error_bound"] + 1e-12
        parts = [found.loc[subset, limit]["value"] for subset in ("logical", "structural")]
        assert row["value"] == pytest.approx(np.mean(parts), abs=1e-12)
    assert found.loc["all", 0.05]["n"] == 44
    assert found.loc["all", 0.05][["ci_low", "ci_high"]].notna().all()
    assert (run.replicates["metric"] == "spro").sum() == 1


def test_maps_of_another_tool_and_scores_anew_give_the_same(
    run: Run, category: Category, rules: Path, tmp_path: Path
) -> None:
    (scored,) = score_maps([category], run.folder / "maps", tmp_path / "maps", [load_protocol(rules)], name="same")
    assert values(scored) == pytest.approx(values(run), abs=1e-12)
    again = rescore(run, [load_protocol(rules)], anew=True)
    assert values(again) == values(run)
    native = rescore(again, [load_protocol(rules), "native"])
    assert set(native.records.loc[native.records["metric"] == "spro", "protocol"]) == {"quick", "native"}


def test_evidence_without_regions_is_read_as_before(run: Run, rules: Path) -> None:
    (run.folder / REGIONS).unlink()
    about = json.loads(run.files.record.read_text())
    about.pop("files")
    run.files.record.write_text(json.dumps(about))
    again = rescore(Run(run.folder), [load_protocol(rules)], anew=True)
    assert values(again) == {}
    assert len(again.records) > 100
    assert again.evidence.regions is None


def test_runs_are_verified_with_their_regions(made: Path, category: Category, rules: Path) -> None:
    (found,) = verify_runs(made, [load_protocol(rules)], [category])
    assert found.problems == ()
    assert found.numbers == found.equal


def better(run: Run) -> None:
    """Let the records say more of the regions than is true."""
    table = pq.read_table(run.files.table("records")).to_pandas()
    row = table.index[table["metric"] == "spro"][-1]
    edit("records.parquet", "value", at(int(row), lambda value: value + 1e-6))(run)


def without_regions(run: Run) -> None:
    (run.folder / REGIONS).unlink()


def recorded_without(run: Run) -> None:
    """Leave out everything that says there are regions."""
    without_regions(run)
    for name in ("records.parquet", "replicates.parquet"):
        rows(name, lambda table: table.filter(pa.compute.not_equal(table["metric"], "spro")))(run)


CAREFUL: dict[str, tuple[Tamper, str]] = {
    "value": (
        better,
        r"records under quick: value of spro@\S+ structural: recorded",
    ),
    "scores": (
        edit(REGIONS, "scores", at(0, lambda v: [9.0] * len(v))),
        r"regions.parquet: scores of regions that are not the highest of their pixels",
    ),
    "scores in another order": (
        edit(REGIONS, "scores", at(0, lambda v: v[::-1])),
        r"regions.parquet: scores of regions that are not the highest of their pixels",
    ),
    "scores of another region of the image": (
        edit(REGIONS, "scores", lambda v: [v[1], *v[1:]]),
        r"records under quick: value of spro@\S+ all: recorded",
    ),
    "saturation": (
        edit(REGIONS, "saturation", at(0, lambda _: 1)),
        r"regions.parquet: regions without the scores of as many pixels as are enough",
    ),
    "more than all is enough": (
        edit(REGIONS, "area", at(0, lambda _: 2)),
        r"regions.parquet: regions of which more than all is enough",
    ),
    "area": (
        edit(REGIONS, "area", at(0, lambda _: 2000)),
        r"regions.parquet: regions that are not the defects of their images",
    ),
    "kind": (
        edit(REGIONS, "defect_type", at(0, lambda _: "structural_anomalies")),
        r"regions.parquet: regions of other kinds than their images' defects",
    ),
    "image": (
        edit(REGIONS, "image", at(0, lambda _: "pushpins/test/good/000.png")),
        r"regions.parquet: regions of other images than those with defects",
    ),
    "order": (
        rows(REGIONS, lambda table: table.take(list(range(len(table)))[::-1])),
        r"regions.parquet: regions that are not in the order of their images",
    ),
    "region dropped": (
        rows(REGIONS, lambda table: table.slice(1)),
        r"regions.parquet: regions that are not the defects of their images",
    ),
    "region added": (
        rows(REGIONS, lambda table: pa.concat_tables([table.slice(0, 1), table])),
        r"records under quick: value of spro@\S+ all: recorded",
    ),
    "regions dropped": (without_regions, r"records under quick: a row of spro@\S+ all, expected none"),
    "another shape": (rows(REGIONS, lambda table: table.drop_columns(["area"])), r"regions.parquet: no column 'area'"),
}  # fmt: skip


@pytest.mark.parametrize("what", CAREFUL)
def test_what_is_changed_with_care_is_found(run: Run, rules: Path, what: str) -> None:
    tamper, expected = CAREFUL[what]
    tamper(run)
    sealed(run)
    found = verify_run(Run(run.folder), [load_protocol(rules)])
    assert any(re.search(expected, problem) for problem in found.problems), found.problems


@pytest.mark.parametrize(
    "tamper",
    [recorded_without, edit(REGIONS, "defect", at(0, lambda _: "another"))],
    ids=["no regions at all", "name"],
)
def test_what_only_the_masks_can_tell_is_found_beside_them(
    run: Run, category: Category, rules: Path, tamper: Tamper
) -> None:
    tamper(run)
    sealed(run)
    assert verify_run(Run(run.folder), [load_protocol(rules)]).verified
    (found,) = verify_runs(run.folder, [load_protocol(rules)], [category])
    assert found.problems == ("evidence native-max-8: regions (areas, saturations or names), other than on disk",)


def test_without_care_the_digest_tells(run: Run, rules: Path) -> None:
    (run.folder / REGIONS).write_bytes((run.folder / REGIONS).read_bytes() + b"x")
    found = verify_run(Run(run.folder), [load_protocol(rules)])
    assert any("regions.parquet: is not as it was written" in problem for problem in found.problems)


def test_runs_are_published_with_their_regions(made: Path, rules: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    command = ["publish", str(made), "--to", str(target), "--author", "A", "--protocol", str(rules)]
    assert main(command) == 0
    (published,), (run,) = find_runs(target), find_runs(made)
    assert values(published) == values(run)
    assert np.array_equal(published.evidence.regions.scores, run.evidence.regions.scores)
    assert verify_runs(target)[0].problems == ()


def test_reports_show_what_was_measured(
    made: Path, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "figures", lambda *_, **__: {})
    (run,) = find_runs(made)
    found = {key: f"{value:.3f}" for key, value in values(run).items()}
    common = ["leaderboard", str(made), "--protocol", str(rules)]
    assert main([*common, "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "sPRO@0.05" in shown
    assert found["all", 0.05] in shown
    html, markdown = (next(tmp_path.glob(f"*.{ending}")).read_text("utf-8") for ending in ("html", "md"))
    assert "sPRO up to FPR" in html
    heading = next(line for line in markdown.splitlines() if "sPRO" in line)
    for name in ("sPRO@0.05", "sPRO@0.05 logical", "sPRO@0.05 structural"):
        assert name in heading
    table = pd.read_csv(next(tmp_path.glob("*.csv")))
    for (subset, limit), value in values(run).items():
        key = f"spro@{limit:g}" + ("" if subset == "all" else f"_{subset}")
        if limit == 0.05 or subset == "all":
            assert table[key].iloc[0] == pytest.approx(value, abs=1e-12)
    assert main([*common, "--table", "category", "--metric", "spro@0.05", "--subset", "logical"]) == 0
    shown = capsys.readouterr().out
    assert found["logical", 0.05] in shown
    assert "regions of logical anomalies, and false positives in their images and in good ones" in shown
    assert main([*common, "--table", "category", "--metric", "spro"]) == 0
    assert found["all", 0.05] in capsys.readouterr().out
    assert main([*common, "--table", "average", "--columns", "spro@1", "spro@0.05_structural"]) == 0
    assert found["all", 1.0] in capsys.readouterr().out
