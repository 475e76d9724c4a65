"""Maps and folders without masks, without defective images, without good ones: what is measured, and what is said."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_tree

import hrbench
from hrbench.data import load_dataset
from hrbench.errors import HrbenchError
from hrbench.evaluation import Evaluation
from hrbench.metrics.catalogue import METRICS
from hrbench.protocol import load_protocol
from hrbench.report import terminal_table, write_leaderboard
from hrbench.report.inventory import inventory_text, take_inventory
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.store import Run, read_runs

GOOD, BAD = 24, 16
LABELS = [0] * GOOD + [1] * BAD
KEY = ["metric", "subset", "fpr_limit"]
PER_IMAGE = {"image_auroc", "image_ap", "called", "called_matched", "alarms", "alarms_matched"}


def _maps() -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(0)
    maps, masks = [rng.normal(size=(20, 24)).astype(np.float32) for _ in LABELS], [None] * GOOD
    for number, scores in enumerate(maps[GOOD:]):
        mask = np.zeros(scores.shape, bool)
        mask[3 : 5 + number % 5, 4 : 6 + number % 7] = True
        scores[mask] += 1.5
        masks.append(mask)
    return maps, masks


MAPS, MASKS = _maps()
NORMAL = [np.random.default_rng(number).normal(size=(20, 24)) for number in range(100, 125)]


def evaluated(masks: list[Any], *, images: slice = slice(None), **options: Any) -> Evaluation:
    return hrbench.evaluate(MAPS[images], masks[images], labels=LABELS[images], normal_maps=NORMAL, **options)


@pytest.mark.parametrize(("protocol", "exact"), [("native", False), ("native", True), ("lowres256", False)])
def test_what_takes_no_masks_is_the_same_without_any(protocol: str, exact: bool) -> None:
    whole = evaluated(MASKS, protocol=protocol, exact=exact)
    bare = evaluated([None] * len(MAPS), protocol=protocol, exact=exact)
    assert set(bare.values["metric"]) == {name for name, metric in METRICS.items() if not metric.masks} & set(
        whole.values["metric"]
    )
    both = bare.frame.merge(whole.frame, on=KEY, suffixes=("", "_masked"), validate="one_to_one")
    assert len(both) == len(bare.frame)
    both = both[both["metric"].isin(PER_IMAGE)]
    for name in ("value", "error_bound", "n", "ci_low", "ci_high"):
        assert np.array_equal(both[name], both[f"{name}_masked"], equal_nan=True), name
    assert both["ci_low"].notna().any()
    assert not whole.what_is_missing()
    assert "None of 16 defective test images has a mask" in bare.what_is_missing()[0]


def test_some_masks_measure_on_their_images_alone() -> None:
    half = [mask if number % 2 else None for number, mask in enumerate(MASKS)]
    mixed = evaluated(half)
    kept = [number for number in range(len(MAPS)) if number < GOOD or number % 2]
    alone = hrbench.evaluate([MAPS[i] for i in kept], [MASKS[i] for i in kept], normal_maps=NORMAL)
    whole = evaluated(MASKS)
    per_image = mixed.values["metric"].isin(PER_IMAGE) & (mixed.values["subset"] == "all")
    both = mixed.values.merge(alone.values, on=KEY, suffixes=("", "_other"), validate="one_to_one")
    both = both[~both["metric"].isin({"image_auroc", "image_ap", "called", "called_matched"})]
    assert np.allclose(both["value"], both["value_other"], rtol=1e-12, equal_nan=True)
    assert both["n"].tolist() == both["n_other"].tolist()
    same = mixed.values[per_image].merge(whole.values, on=KEY, suffixes=("", "_other"))
    assert np.array_equal(same["value"], same["value_other"], equal_nan=True)
    assert mixed.interval("image_auroc") == whole.interval("image_auroc")
    # Draws of the whole sample stand on the same bins: one for all images is the exact value there, too.
    drawn = pd.Series(mixed.replicates.estimate, index=pd.MultiIndex.from_frame(mixed.replicates.keys[KEY[:2]]))
    for metric in ("miou", "miou_all", "miou_oracle", "called_right", "fpr"):
        assert drawn[metric, "all"] == pytest.approx(mixed.value(metric), abs=2e-3)
    assert "The masks of 8 of 16 defective test images are unknown" in str(mixed.summary())


def test_good_images_alone_show_false_alarms() -> None:
    good = evaluated(MASKS, images=slice(GOOD))
    assert set(good.values["metric"]) == {"alarms", "fpr", "alarms_matched", "fpr_matched"}
    assert good.values["value"].notna().all()
    assert good.value("alarms") == evaluated(MASKS).value("alarms")
    assert good.interval("alarms") == evaluated(MASKS).interval("alarms")
    assert good.what_is_missing() == ["No defective test image: false alarms are measured, what is found is not."]
    assert "24 good images alarm" in str(good.summary())


@pytest.mark.parametrize(
    ("images", "threshold", "said"),
    [
        (slice(GOOD, None), 3.0, "At the threshold"),
        (slice(GOOD, None), None, "there is no threshold and no good image."),
        (slice(GOOD), None, "there is no threshold."),
    ],
)
def test_little_is_measured_and_said_without_a_warning(images: slice, threshold: float | None, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = [None] * len(MAPS)
        result = hrbench.evaluate(MAPS[images], bare[images], labels=LABELS[images], threshold=threshold)
        assert said in str(result.summary())
        assert "nan" not in f"{result!r}{result.summary()}"
        assert len(result.frame)
        assert result.components.empty
        assert len(result.images) == len(MAPS[images])
    with pytest.raises(HrbenchError, match="no defect whose size is known"):
        result.detection(None)


def test_two_methods_are_compared_without_masks() -> None:
    bare = [None] * len(MAPS)
    clearer = [scores if mask is None else scores + 2 * mask for scores, mask in zip(MAPS, MASKS, strict=True)]
    a, b = evaluated(bare), hrbench.evaluate(clearer, bare, labels=LABELS, normal_maps=NORMAL)
    found = hrbench.compare(a, b)
    assert found.difference("image_auroc") < 0
    assert "b is better" in str(found)
    assert "None of 16 defective test images" in str(found)
    good = slice(GOOD)
    assert "good images that alarm" in str(hrbench.compare(*[evaluated(MASKS, images=good)] * 2))


@pytest.mark.parametrize(
    ("mask", "label", "message"),
    [
        (np.eye(20, 24), 0, "mask 0: has defect pixels, but label 0 is 0"),
        (np.zeros((20, 24)), 1, "mask 0: has no defect pixel, but label 0 is 1"),
        (None, 2, "label 0 is 2, expected 0 for a good or 1"),
        (None, "1", "label 0 is '1', expected 0"),
        (None, np.eye(2)[0], r"label 0 is array\(\[1., 0.\]\), expected 0"),
    ],
)
def test_a_label_that_is_none_or_contradicts_its_mask(mask: Any, label: Any, message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        hrbench.evaluate([MAPS[0]], [mask], labels=[label])


def tree_of(root: Path, kind: str) -> Path:
    """Write a tree with 25 training images: without masks, without defective images, or with all of it."""
    write_tree(root, train=25, good=12, bad=5)
    if kind != "masked":
        shutil.rmtree(root / "bolt" / "ground_truth")
    if kind == "good":
        shutil.rmtree(root / "bolt" / "test" / "dent")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Finished runs of the toy method, named by what their data lack."""
    folder, toy = tmp_path_factory.mktemp("runs"), str(Path(__file__).with_name("toy_adapter.py"))
    done = {}
    for kind in ("masked", "unmasked", "good"):
        (category,) = load_dataset("folder", tree_of(folder / kind, kind)).categories
        job = make_job(category, toy, preset="native", held_out=0.8)
        done[kind] = run_job(job, folder / "out", [load_protocol("native")], device=torch.device("cpu"))
    return done


def test_a_run_measures_what_it_can(runs: dict[str, Run]) -> None:
    masked, bare = (runs[kind].records.set_index(KEY)["value"] for kind in ("masked", "unmasked"))
    for metric in ("image_auroc", "called", "alarms"):
        assert bare[metric, "all", np.nan] == masked[metric, "all", np.nan]
    assert not {"aupro", "recall", "iou"} & set(runs["unmasked"].records["metric"])
    assert set(runs["good"].records["metric"]) == {"alarms", "fpr", "alarms_matched", "fpr_matched"}
    assert [runs[kind].about.dataset.test_unmasked for kind in runs] == [0, 5, 0]
    texts = {kind: (run.folder / "run.json").read_text(encoding="utf-8") for kind, run in runs.items()}
    assert ["test_unmasked" in texts[kind] for kind in runs] == [False, True, False]
    kinds = {kind for picture in runs["unmasked"].pictures.items for kind in picture.kinds}
    assert kinds == {"lowest score", "highest score", "worst false alarm", "good"}
    for run in runs.values():
        assert hrbench.rescore(run, ["native"], anew=True).records.equals(run.records)


def test_reports_show_what_there_is_and_say_what_is_left_open(runs: dict[str, Run], tmp_path: Path) -> None:
    native = load_protocol("native")
    texts = {
        kind: terminal_table([runs[kind]], native)
        + "".join(
            path.read_text(encoding="utf-8")
            for path in write_leaderboard([runs[kind]], tmp_path / kind, native).values()
        )
        for kind in ("unmasked", "good")
    }
    for text in texts.values():
        shown = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
        assert not re.search(r"\bnan\b", shown)
        assert "How small a defect is found" not in shown
        assert "no components" not in shown
        assert "By size of the defects" not in shown
        assert not set(re.findall(r'aria-label="(AUPRO per|PRO and ROC|Probability)', shown))
        assert "Alarm scores of good" in shown
    assert "called@5" in texts["unmasked"]
    assert "None of 5 defective test images has a mask" in texts["unmasked"]
    assert "Ranked by image ROC-AUC: without masks there is no AUPRO" in texts["unmasked"]
    assert "called@5" not in texts["good"].partition("dataset,category")[0].partition("<")[0]
    assert "No defective test image: false alarms are measured" in texts["good"]
    assert "promised at most" in texts["good"]
    shown = {kind: inventory_text(take_inventory([run.folder], native)) for kind, run in runs.items()}
    heads = {kind: text.splitlines()[5].split()[2:] for kind, text in shown.items()}
    assert heads == {
        "masked": ["recall@0.05", "AUPRO@0.05", "I-AUC"],
        "unmasked": ["I-AUC", "called@0.05", "alarms"],
        "good": ["alarms"],
    }
    assert "None of 5 defective test images has a mask" in shown["unmasked"]


def test_categories_with_and_without_masks_stand_side_by_side(runs: dict[str, Run], tmp_path: Path) -> None:
    for kind, name in (("masked", "bolt"), ("unmasked", "nut")):
        shutil.copytree(runs[kind].folder, tmp_path / "out" / "d" / name / "run")
        record = tmp_path / "out" / "d" / name / "run" / "run.json"
        about = json.loads(record.read_text(encoding="utf-8"))
        about["dataset"] |= {"name": "d", "category": name}
        record.write_text(json.dumps(about), encoding="utf-8")
    both, native = read_runs(tmp_path / "out"), load_protocol("native")
    text = terminal_table(both, native)
    assert "nut: None of 5 defective test images has a mask" in text
    assert "bolt: None" not in text
    page = write_leaderboard(both, tmp_path, native)["html"].read_text(encoding="utf-8")
    assert "no mask" in page  # of what is called rightly
    assert page.count("By size of the defects") == 2  # the region and its caption, of one category
