"""Runs are verified from their evidence; whatever is changed in them, or in the images, is found and named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import write_tree
from PIL import Image

from hrbench import HrbenchError, Run, load_dataset, load_protocol
from hrbench.cli import main
from hrbench.runs.external_maps import score_maps
from hrbench.runs.job import make_job
from hrbench.runs.record import write_record
from hrbench.runs.runner import run_job
from hrbench.runs.store import find_runs
from hrbench.runs.verification import MEANING, verification_text, verify_run, verify_runs

RULES = """name = "quick"
title = "Few draws"
version = 1
[threshold]
rule = "normal-quantile"
fpr = 0.01
[alarm]
budgets = [0.05, 0.4]
headline = 0.05
summary = [0.05, 0.4]
[bootstrap]
draws = 8
"""
EVIDENCE = "evidence/native-max-8"
Tamper = Callable[[Run], None]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "quick.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(scope="module")
def made(tree: Path, toy: str, rules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder of two seeds of a category, and of another category; do not write into it."""
    output = tmp_path_factory.mktemp("verified") / "out"
    bolt, nut = load_dataset("folder", tree).categories
    for category, seed in ((bolt, 0), (bolt, 1), (nut, 0)):
        job = make_job(category, toy, preset="native", options={"steps": 2, "decide": True}, seed=seed)
        run_job(job, output, [load_protocol(rules)], device=torch.device("cpu"))
    return output


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def run(out: Path) -> Run:
    """Return the run of seed 0 of the first category."""
    return next(run for run in find_runs(out) if (run.about.dataset.category, run.about.seed) == ("bolt", 0))


def sealed(run: Run) -> None:
    """Let ``run.json`` name its files as they are and be as it was written, as who tampers with care does."""
    about = Run(run.folder).about
    files = run.files.recorded(path for path in run.files.own() if path != run.files.record)
    write_record(dataclasses.replace(about, files=files), run.files.record)


def edit(name: str, column: str, change: Callable[[list[Any]], list[Any]]) -> Tamper:
    """Return what changes a column of a table."""

    def tamper(run: Run) -> None:
        path = run.folder / name
        table = pq.read_table(path)
        values = pa.array(change(table[column].to_pylist()), table.schema.field(column).type)
        pq.write_table(table.set_column(table.column_names.index(column), column, values), path)

    return tamper


def rows(name: str, change: Callable[[pa.Table], pa.Table]) -> Tamper:
    """Return what changes the rows of a table."""

    def tamper(run: Run) -> None:
        pq.write_table(change(pq.read_table(run.folder / name)), run.folder / name)

    return tamper


def at(number: int, by: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [by(value) if row == number else value for row, value in enumerate(values)]


def said(**keys: Any) -> Tamper:
    """Return what changes ``run.json``; ``dataset__test`` stands for its part `test` of `dataset`."""

    def tamper(run: Run) -> None:
        table = json.loads(run.files.record.read_text())
        for key, value in keys.items():
            *parts, last = key.split("__")
            part = table
            for name in parts:
                part = part[name]
            part[last] = value(part[last]) if callable(value) else value
        run.files.record.write_text(json.dumps(table))

    return tamper


def other_evidence(run: Run) -> None:
    """Put the evidence of the other seed, of the same images, in the place of the run's."""
    other = next(o for o in find_runs(run.folder.parents[3]) if o.about.seed == 1)
    shutil.copytree(other.folder / EVIDENCE, run.folder / EVIDENCE, dirs_exist_ok=True)


def other_tables(run: Run) -> None:
    """Put the tables of another category in the place of the run's."""
    other = next(o for o in find_runs(run.folder.parents[3]) if o.about.dataset.category == "nut")
    for name in ("records", "components", "images", "replicates"):
        shutil.copyfile(other.files.table(name), run.files.table(name))


def recounted(values: list[list[int]]) -> list[list[int]]:
    """Turn the counts of each image's bins round."""
    return [counts[::-1] for counts in values]


def one_more(table: pa.Table) -> pa.Table:
    """Add a row of another metric."""
    column = table.column_names.index("metric")
    new = pa.array(["best"], table.schema.field(column).type)
    return pa.concat_tables([table, table.slice(0, 1).set_column(column, "metric", new)])


def removed(name: str) -> Tamper:
    """Return what leaves a table out."""
    return lambda run: (run.folder / name).unlink()


def appended(name: str) -> Tamper:
    """Return what adds a byte to a file."""

    def tamper(run: Run) -> None:
        path = run.folder / name
        path.write_bytes(path.read_bytes() + b"x")

    return tamper


def swap_labels(run: Run) -> None:
    """Call the last good image defective, which leaves no defect anywhere else."""
    path = run.folder / EVIDENCE / "images.parquet"
    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[labels.index(0)] = 1
    column = pa.array(labels, table.schema.field("label").type)
    pq.write_table(table.set_column(table.column_names.index("label"), "label", column), path)


# What is changed and, where all digests were brought up to date so that only the evidence tells, what is said of it.
CAREFUL: dict[str, tuple[Tamper, str]] = {
    "value": (edit("records.parquet", "value", at(3, lambda x: x + 1e-6)), r"quick: value of .*: recorded"),
    "interval": (edit("records.parquet", "ci_low", at(0, lambda _: 0.123)), r"ci_low of image_auroc all: recorded"),
    "undefined made defined": (
        edit("records.parquet", "value", lambda v: [1.0 if x is None or x != x else x for x in v]),
        r"value of .*recorded 1.0, recomputed nan",
    ),
    "count": (edit("records.parquet", "n", at(0, lambda x: x + 100)), r"records under quick: n of image_auroc"),
    "error bound": (edit("records.parquet", "error_bound", at(2, lambda _: 0.5)), r"error_bound of "),
    "row removed": (rows("records.parquet", lambda t: t.slice(1)), r"records under quick: no row of image_auroc all"),
    "row added": (rows("records.parquet", one_more), r"a row of best all, expected none"),
    "rows of an unnamed protocol": (
        edit("records.parquet", "protocol", at(0, lambda _: "native")),
        r"records: rows of protocol 'native', which run.json does not name",
    ),
    "image score": (edit("images.parquet", "score", at(1, lambda x: x * 1.1)), r"images under quick: score of"),
    "alarm score": (edit("images.parquet", "alarm", at(1, lambda x: x * 1.1)), r"images under quick: alarm of"),
    "label of a table": (edit("images.parquet", "label", at(0, lambda x: 1 - x)), r"images under quick: label of"),
    "image dropped": (rows("images.parquet", lambda t: t.slice(1)), r"images under quick: no row of bolt/test"),
    "critical score": (
        edit("components.parquet", "critical", at(0, lambda x: x * 2)),
        r"components under quick: critical of bolt/test/dent/\d+.png defect 1",
    ),
    "defect dropped": (rows("components.parquet", lambda t: t.slice(1)), r"components under quick: (no row|area)"),
    "defect type": (edit("components.parquet", "defect_type", at(0, lambda _: "hole")), r"defect_type of"),
    "replicates": (
        edit("replicates.parquet", "values", at(0, lambda v: [x + 0.1 for x in v])),
        r"replicates under quick: values of aupro@0.05 all: recorded replicates",
    ),
    "images left out": (removed("images.parquet"), r"images under quick: no rows, expected 8"),
    "defects left out": (removed("components.parquet"), r"components under quick: no rows, expected \d+"),
    "replicates left out": (removed("replicates.parquet"), r"replicates under quick: no rows, expected \d+"),
    "column added": (
        rows("components.parquet", lambda t: t.append_column("extra", pa.array(np.ones(len(t))))),
        r"values of 'extra', which is no column",
    ),
    "scores of defects": (
        edit(f"{EVIDENCE}/components.parquet", "scores", at(0, lambda v: [9.0] * len(v))),
        r"critical of bolt/test/dent/000.png defect 1: recorded",
    ),
    "counts of normal pixels": (
        edit(f"{EVIDENCE}/images.parquet", "normal_counts", recounted),
        r"records under quick: value of pixel_auroc all",
    ),
    "held-out scores": (
        edit(f"{EVIDENCE}/calibration.parquet", "normal_keys", lambda v: [[k + 9 for k in keys] for keys in v]),
        r"threshold.value: recorded .*, recomputed",
    ),
    "under other masks": (
        edit("annotation.parquet", "value", at(0, lambda x: x + 1e-6)),
        r"annotation under quick: value of eroded aupro@0.05 all",
    ),
    "change under other masks": (
        edit("annotation.parquet", "change", at(0, lambda _: 0.0)),
        r"annotation under quick: change of eroded aupro@0.05 all",
    ),
    "interval under other masks": (
        edit("annotation.parquet", "change_high", at(0, lambda _: 0.9)),
        r"annotation under quick: change_high of eroded aupro@0.05 all",
    ),
    "vanished defects": (
        edit("annotation.parquet", "vanished", at(0, lambda x: x + 1)),
        r"annotation under quick: vanished of eroded aupro@0.05 all",
    ),
    "row under other masks removed": (
        rows("annotation.parquet", lambda t: t.slice(1)),
        r"annotation under quick: no row of eroded aupro@0.05 all",
    ),
    "row under other masks added": (
        rows("annotation.parquet", one_more), r"annotation under quick: a row of eroded best@0.05 all, expected none"
    ),
    "nothing under other masks": (removed("annotation.parquet"), r"annotation under quick: no rows, expected \d+"),
    "no rims": (removed(f"{EVIDENCE}/rims.parquet"), r"annotation under quick: a row of eroded .*, expected none"),
    "decisions in rims": (
        edit(f"{EVIDENCE}/rims.parquet", "outer_decided", at(0, lambda _: 900)),
        r"rims.parquet: a decision on more pixels than there are",
    ),
    "rims": (
        edit(f"{EVIDENCE}/rims.parquet", "inner", at(0, lambda v: [0] * len(v))),
        r"annotation under quick: components of eroded aupro@0.05 all: recorded",
    ),
    "rims of other scores": (
        edit(f"{EVIDENCE}/rims.parquet", "outer_scores", at(0, lambda v: [9.0] * len(v))),
        r"rims.parquet: scores of rims that are not among the normal pixels; not the evidence of a run",
    ),
    "rims of other defects": (
        rows(f"{EVIDENCE}/rims.parquet", lambda t: t.slice(1)), r"rims.parquet: rims of other components than there are"
    ),
    "image scores": (edit(f"{EVIDENCE}/images.parquet", "score", lambda v: v[::-1]), r"images under quick: score of"),
    "image labels": (swap_labels, r"dataset.test_defective is 5, the evidence has 6"),
    "evidence of another run": (other_evidence, r"records under quick: value of"),
    "tables of another category": (other_tables, r"records: category is 'nut', run.json has 'bolt'"),
    "method": (said(method__name="better"), r"run is 'toy_adapter-.*, expected better-native-s0-\.\.\."),
    "preset": (said(method__preset="paper"), r"records: preset is 'native'"),
    "view": (said(view="whole:64"), r"records: view is 'tiled:32:8', run.json has 'whole:64'"),
    "seed": (said(seed=7), r"records: seed is '0', run.json has 7"),
    "weights": (said(method__weights_source="pretrained"), r"records: weights is 'random'"),
    "category": (said(dataset__category="screw"), r"records: category is 'bolt', run.json has 'screw'"),
    "name": (said(run="toy_adapter-native-s0-00000000"), r"expected the name of its folder"),
    "threshold": (said(threshold__value=0.5), r"threshold.value: recorded 0.5, recomputed"),
    "held out": (said(dataset__held_out=19), r"dataset.held_out is 19, the evidence has"),
    "test images": (said(dataset__test=800), r"dataset.test is 800, the evidence has 8"),
    "groups": (said(dataset__groups_sha256="ab" * 32), r"dataset.groups_sha256 is abababababab, the evidence has none"),
    "conditions": (said(dataset__conditions_sha256="ab" * 32), r"dataset.conditions_sha256 is abababababab, the evid"),
    "lights": (
        rows(f"{EVIDENCE}/images.parquet", lambda t: t.append_column("condition", pa.array(["dark"] * len(t)))),
        r"dataset.conditions_sha256 is none, the evidence has",
    ),
    "speed": (said(cost__ms_median=1e-3), r"cost.ms_median: recorded 0.001, recomputed"),
    "version of the rules": (said(protocols__quick__version=2), r"recorded as version 2, its rules are 1"),
    "other rules": (
        said(protocols__quick__sha256=load_protocol("native").digest),
        r"protocol 'quick': the rules given by this name have sha256",
    ),
    "rules renamed": (
        said(protocols=lambda p: {"native": p["quick"]}),
        r"protocol 'native': measured under other rules .* than any version that hrbench ships",
    ),
    "no rules": (said(protocols={}), r"names no protocol, there is nothing to verify"),
}  # fmt: skip


@pytest.mark.parametrize("what", CAREFUL)
def test_what_is_changed_with_care_is_found(run: Run, rules: Path, what: str) -> None:
    tamper, expected = CAREFUL[what]
    tamper(run)
    sealed(run)
    found = verify_run(Run(run.folder), [load_protocol(rules)])
    assert not found.verified
    assert any(re.search(expected, problem) for problem in found.problems), found.problems


# What is changed while ``run.json`` keeps the digests of before.
CARELESS: list[tuple[Tamper, str]] = [
    (said(dataset__index_sha256="0" * 64), "run.json: was edited after it was written"),
    (said(method__options={"steps": 9}), "run.json: was edited"),
    (said(created="2020-01-01T00:00:00+00:00"), "run.json: was edited"),
    (said(device="H100"), "run.json: was edited"),
    (edit("records.parquet", "value", at(3, lambda x: x * (1 + 1e-15))), "records.parquet: is not as it was"),
    (edit(f"{EVIDENCE}/images.parquet", "seconds", at(0, lambda _: 1e-9)), "images.parquet: is not as it was"),
    (edit("annotation.parquet", "value", at(0, lambda x: x * (1 + 1e-15))), "annotation.parquet: is not as it was"),
    (removed("annotation.parquet"), "annotation.parquet: is missing"),
    (appended(f"{EVIDENCE}/rims.parquet"), "rims.parquet: is not as it was"),
    (removed(f"{EVIDENCE}/rims.parquet"), "rims.parquet: is missing"),
    (lambda run: (run.folder / "weights.safetensors").write_bytes(b"x"), "weights.safetensors: is not as run.json"),
    (lambda run: (run.folder / "pictures" / "77-worst.jpg").write_bytes(b"x"), "77-worst.jpg: run.json does not"),
    (lambda run: shutil.rmtree(run.folder / EVIDENCE), "its evidence is not kept here: nothing can be"),
    (lambda run: run.files.record.write_text("{"), "not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "expected"), CARELESS)
def test_what_is_changed_without_care_is_found(out: Path, run: Run, rules: Path, tamper: Tamper, expected: str) -> None:
    tamper(run)
    found = verify_runs(out, [load_protocol(rules)])
    assert [result.verified for result in found].count(False) == 1
    (wrong,) = [result for result in found if not result.verified]
    assert wrong.folder == run.folder
    assert any(expected in problem for problem in wrong.problems), wrong.problems


def test_whole_runs_are_verified_to_the_last_bit(made: Path, rules: Path, tree: Path) -> None:
    categories = load_dataset("folder", tree).categories
    found = verify_runs(made, [load_protocol(rules)], categories)
    assert [result.problems for result in found] == [()] * 3
    assert all(result.numbers == result.equal > 1000 and result.images for result in found)
    text = verification_text(found)
    assert text.endswith(f"3 of 3 runs verified. {MEANING}")
    assert "with its images and masks" in text


def test_maps_that_came_later_are_no_problem(run: Run, rules: Path) -> None:
    for name in ("000.tiff", "test/bad/000.tiff"):
        path = run.files.path / "maps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"II*")
    assert verify_run(run, [load_protocol(rules)]).verified


@pytest.mark.slow
def test_several_processes_find_the_same(out: Path, run: Run, rules: Path) -> None:
    CAREFUL["value"][0](run)
    protocols = [load_protocol(rules)]
    assert verify_runs(out, protocols, jobs=2) == verify_runs(out, protocols)


def test_rounding_of_other_libraries_passes_and_is_said(run: Run, rules: Path) -> None:
    edit("records.parquet", "value", lambda values: [x and x * (1 + 1e-12) for x in values])(run)
    sealed(run)
    found = verify_run(Run(run.folder), [load_protocol(rules)])
    assert found.verified
    assert found.equal < found.numbers
    assert "of them only within 1e-09" in verification_text([found])


def test_rows_of_another_version_are_told_from_tampering(run: Run, rules: Path) -> None:
    CAREFUL["row removed"][0](run)
    said(environment__commit="0123456789ab")(run)
    sealed(run)
    found = verify_run(Run(run.folder), [load_protocol(rules)])
    assert re.match(r"recorded by hrbench \S+ \(commit 0123456789ab\), this is .*rescore", found.problems[0])


def test_rules_edited_under_the_same_name_are_found(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "quick.toml"
    path.write_text(RULES.replace("draws = 8", "draws = 9"))
    (problem,) = verify_run(run, [load_protocol(path)]).problems
    assert "the rules given by this name have sha256" in problem
    path.write_text(RULES.replace("Few", "A few"))  # the title is no rule
    assert verify_run(run, [load_protocol(path)]).verified
    (problem,) = verify_run(run).problems
    assert "expected the file of its rules (--protocol FILE)" in problem


def test_rules_of_ones_own_do_not_take_a_name_that_ships(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RULES.replace("quick", "native"))
    digest = load_protocol(path).digest
    said(protocols=lambda _: {"native": {"version": 1, "sha256": digest}})(run)
    sealed(run)
    assert any(
        "than any version that hrbench ships" in p for p in verify_run(Run(run.folder), [load_protocol(path)]).problems
    )


BESIDE_IMAGES = ["mask", "photograph", "moved", "index", "view", "options", "rims", "evidence"]


@pytest.mark.parametrize("what", BESIDE_IMAGES)
def test_other_images_and_what_only_they_tell_are_found(
    run: Run, rules: Path, toy: str, tmp_path: Path, what: str
) -> None:
    root = write_tree(tmp_path / "parts", categories=("bolt",))
    path = root / "bolt" / "ground_truth" / "dent" / "002_mask.png"
    expected = "dataset: other images, masks or labels than on disk"
    if what == "mask":
        Image.fromarray(np.roll(np.asarray(Image.open(path)), 1, axis=1)).save(path)
    elif what == "photograph":
        path = root / "bolt" / "train" / "good" / "000.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    elif what == "moved":
        good = root / "bolt" / "test" / "good"
        (good / "000.png").rename(good / "009.png")
        expected = "evidence native-max-8: images, labels or sizes, other than on disk"
    elif what == "index":
        said(dataset__index_sha256="0" * 64)(run)
    elif what == "view":  # everywhere it stands
        said(view="whole:64")(run)
        edit("records.parquet", "view", lambda values: ["whole:64"] * len(values))(run)
        expected = "its images, method, options, view and seed give 'toy_adapter-native-s0-"
    elif what == "options":
        said(method__options={"steps": 900})(run)
        expected = "its images, method, options, view and seed give"
    elif what == "rims":
        edit(f"{EVIDENCE}/rims.parquet", "inner", at(0, lambda v: [1 - v[0], *v[1:]]))(run)
        expected = "evidence native-max-8: rims of defects, other than on disk"
    else:  # measured with other masks, and the digest of the true ones
        mask = np.roll(np.asarray(Image.open(path)), 1, axis=1)
        true = load_dataset("folder", root).categories[0].digest
        Image.fromarray(mask).save(path)
        job = make_job(load_dataset("folder", root).categories[0], toy, preset="native", options={"steps": 2})
        run = run_job(job, tmp_path / "other", [load_protocol(rules)], device=torch.device("cpu"))
        said(dataset__index_sha256=true)(run)
        Image.fromarray(np.roll(mask, -1, axis=1)).save(path)
        expected = "evidence native-max-8: defects (areas, places or types), other than on disk"
    sealed(run)
    categories = load_dataset("folder", root).categories
    (found,) = verify_runs(run.folder, [load_protocol(rules)], categories)
    assert any(expected in problem for problem in found.problems), found.problems


def test_maps_of_other_tools_are_verified(tree: Path, rules: Path, tmp_path: Path) -> None:
    category = load_dataset("folder", tree).categories[0]
    for sample in category.test:
        path = (tmp_path / "maps" / sample.id).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(0).random((48, 70), dtype=np.float32))
    (run,) = score_maps([category], tmp_path / "maps", tmp_path / "out", [load_protocol(rules)], name="mine")
    (found,) = verify_runs(tmp_path / "out", [load_protocol(rules)], [category])
    assert found.problems == ()
    said(dataset__index_sha256="0" * 64)(run)
    sealed(run)
    assert any("of maps of these images" in problem for problem in verify_run(Run(run.folder)).problems)


def test_the_command_says_what_is_wrong(
    out: Path, run: Run, rules: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(out), "--protocol", str(rules)]
    assert main([*command, "--root", str(tree)]) == 0
    assert "3 of 3 runs verified. Verified: the records follow" in capsys.readouterr().out
    CAREFUL["value"][0](run)
    sealed(run)
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert f"NOT VERIFIED  parts/bolt/{run.folder.name}\n    records under quick: value of " in printed
    assert "2 of 3 runs verified" in printed
    assert main(["verify", str(out / "nothing")]) == 2
    assert main(["verify", str(out), "--dataset", "mvtec_ad"]) == 2


def test_images_of_a_dataset_without_runs_are_an_error(made: Path, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "others")
    with pytest.raises(HrbenchError, match=r"no run of dataset 'others'.*found runs of 'parts'"):
        verify_runs(made, [], load_dataset("folder", other).categories)
