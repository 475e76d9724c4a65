"""The command line as a user meets it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from helpers import write_tree
from PIL import Image

import hrbench
from hrbench.cli import main
from hrbench.runs.scoring import forget_files
from hrbench.runs.store import read_runs
from hrbench.scaffold import KINDS


def test_run_leaderboard_and_plot(tree, toy, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["run", "--root", str(tree), "--categories", "nut", "--methods", toy, "--output", str(out)]
    assert main([*command, "--view", "whole:32", "tiled:32:8", "--seeds", "0", "1", "--set", "steps=4"]) == 0
    table = capsys.readouterr().out
    assert "Toy" in table
    assert "4 runs" in table
    assert len(read_runs(out)) == 4
    following = [shlex.split(line)[1:] for line in table.splitlines() if line.startswith("  hrbench ")]
    assert following[0] == ["leaderboard", str(out)]
    new = {"FOLDER": str(tree / "nut/test/good"), "found": str(tmp_path / "found")}
    assert main([new.get(word, word) for word in following[1]]) == 0
    assert (tmp_path / "found" / "predictions.csv").is_file()
    assert main(following[2]) == 0
    assert main(["leaderboard", str(out)]) == 0
    assert {path.suffix for path in (out / "report").glob("leaderboard.*")} == {".md", ".csv", ".tex", ".html"}
    assert main(["plot", str(out), "--output", str(tmp_path / "plots"), "--format", "svg"]) == 0
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".svg"}


def test_maps_of_a_run_score_the_same_when_evaluated(tree, toy, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--root", str(tree), "--categories", "nut", "--output", str(out)]
    assert main(["run", *command, "--methods", toy, "--set", "steps=4", "--save-maps"]) == 0
    (done,) = read_runs(out)
    maps = done.folder / "maps"
    assert len(list(maps.rglob("*.tiff"))) == 8
    assert main(["evaluate", *command, "--maps", str(maps), "--name", "theirs"]) == 0
    (theirs,) = [run for run in read_runs(out) if run.about.method.name == "theirs"]
    keys = ["metric", "subset", "fpr_limit"]
    both = done.records.merge(theirs.records, on=keys, suffixes=("", "_theirs"))
    threshold_free = ~both["metric"].isin(["iou", "miou", "miou_all", "f1", "fpr", "recall"])
    pd.testing.assert_series_equal(
        both["value"][threshold_free], both["value_theirs"][threshold_free], check_names=False
    )
    assert (theirs.folder / "records.csv").is_file()
    assert "theirs" in capsys.readouterr().out


def test_compare_two_runs(tree, toy, tmp_path, capsys):
    out, table = tmp_path / "out", tmp_path / "differences.csv"
    command = ["run", "--root", str(tree), "--methods", toy, "--categories", "nut", "--output", str(out)]
    assert main([*command, "--view", "tiled:32:8", "whole:32", "--set", "steps=4"]) == 0
    tiled, whole = sorted(read_runs(out), key=lambda run: run.about.view)
    capsys.readouterr()
    assert main(["compare", str(tiled.folder), str(whole.folder), "--csv", str(table)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"a: Toy, tiled:32:8, weights random, seed 0 ({tiled.folder})\nb: Toy, whole:32, ")
    assert printed.count("the same, of medium defects") == 2
    frame = pd.read_csv(table)
    aupro = frame[(frame["metric"] == "aupro") & (frame["subset"] == "all") & (frame["fpr_limit"] == 0.05)].iloc[0]
    assert aupro["difference"] == hrbench.compare(tiled, whole).difference("aupro")
    assert main(["compare", str(out), str(whole.folder)]) == 2
    assert "2 runs in this folder, expected that of one" in capsys.readouterr().err

    assert main(["annotation", str(out), "--csv", str(table)]) == 0
    assert "all masks are eroded, or dilated, by one pixel" in capsys.readouterr().out
    frame = pd.read_csv(table)
    assert frame.groupby("view")["masks"].unique().map(list).tolist() == [["eroded", "annotated", "dilated"]] * 2
    expected = hrbench.annotation_tolerance(whole)["value"]
    assert np.array_equal(frame.loc[frame["view"] == "whole:32", "value"], expected, equal_nan=True)
    for run in (tiled, whole):
        run.files.table("annotation").unlink()
        forget_files(run, ["annotation.parquet"])
    assert main(["annotation", str(out)]) == 2  # as of an earlier version
    assert "how far the annotation carries is not known" in capsys.readouterr().err


def test_rescore(tree, toy, tmp_path, capsys):
    out, command = tmp_path / "out", ["--root", str(tree), "--methods", toy, "--set", "steps=2"]
    assert main(["run", *command, "--output", str(out), "--protocol", "native@1"]) == 0
    before = {run.folder: run.records for run in read_runs(out)}
    capsys.readouterr()
    copies = tmp_path / "copies"
    assert main(["rescore", str(out), "--output", str(copies)]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert [run.records.equals(before[run.folder]) for run in read_runs(out)] == [True, True]
    native = hrbench.load_protocol("native")
    for run in read_runs(copies):
        assert run.about.protocols["native"].sha256 == native.digest
        assert run.about.threshold.rule == native.threshold.rule
    assert main(["rescore", str(out), "--output", str(copies)]) == 2
    assert "exists already" in capsys.readouterr().err

    records = read_runs(out)[0].folder / "records.parquet"
    records.write_bytes(read_runs(copies)[0].files.table("records").read_bytes())  # whatever stands there is made anew
    assert main(["rescore", str(out), "--protocol", "native@1"]) == 0
    for run in read_runs(out):
        pd.testing.assert_frame_equal(run.records, before[run.folder])


def test_rescore_leaves_runs_without_the_evidence_as_they_are(tree, toy, tmp_path, capsys):
    out, command = tmp_path / "out", ["--root", str(tree), "--methods", toy, "--set", "steps=2"]
    assert main(["run", *command, "--categories", "bolt", "--output", str(out)]) == 0
    assert (
        main(["run", *command, "--categories", "nut", "--output", str(out), "--protocol", "native", "lowres256"]) == 0
    )
    capsys.readouterr()
    assert main(["rescore", str(out), "--protocol", "lowres256"]) == 2
    printed = capsys.readouterr()
    assert "1 run in" in printed.out
    assert "bolt" in printed.err
    assert "needs evidence collected as" in printed.err
    assert "1 of 2 runs are left as they were" in printed.err


def test_rescore_with_the_groups_of_a_descriptor(tree, toy, tmp_path, capsys):
    out, mine = tmp_path / "out", tmp_path / "mine.toml"
    mine.write_text('name = "parts"\ntitle = "Parts"\nlicence = "own"\ncitation = "none"\nurl = "here"\n'
                    "layout = 'folder'\ngroup = '[0-9]+'\n")  # fmt: skip
    command = ["run", "--root", str(tree), "--methods", toy, "--categories", "nut", "--output", str(out)]
    assert main([*command, "--protocol", "native", "mvtec"]) == 0
    (run,) = read_runs(out)
    before, sample = run.records, run.replicates["sample"].iloc[0]
    assert run.evidence.groups is None
    assert main(["rescore", str(out), "--dataset", str(mine)]) == 2
    assert "ask for its other protocols as well: mvtec" in capsys.readouterr().err
    assert main(["rescore", str(out), "--dataset", str(mine), "--protocol", "native", "mvtec"]) == 0
    (grouped,) = read_runs(out)
    assert set(grouped.evidence.images["group"]) == {f"nut/{number:03d}" for number in range(5)}
    keys = ["protocol", "metric", "subset", "fpr_limit", "value"]
    same = grouped.records[grouped.records["metric"] != "group_auroc"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same[keys], before[keys])
    assert grouped.replicates["sample"].iloc[0] != sample
    assert main([*command, "--protocol", "native", "mvtec", "--dataset", str(mine)]) == 0  # the same run, nothing to do
    assert [again.folder for again in read_runs(out)] == [run.folder]
    assert main(["rescore", str(out), "--dataset", "visa"]) == 2
    assert "no run of dataset 'visa'" in capsys.readouterr().err


def test_submission_layout_with_decisions_and_normal_maps(tmp_path):
    root = tmp_path / "data" / "can"
    tree = write_tree(tmp_path / "mvtec", size=(32, 40)) / "bolt"
    for old, new in (
        ("train/good", "train/good"),
        ("test/good", "test_public/good"),
        ("test/dent", "test_public/bad"),
        ("ground_truth/dent", "test_public/ground_truth/bad"),
    ):
        shutil.copytree(tree / old, root / new)
    shutil.copytree(root / "train" / "good", root / "validation" / "good")
    for path in (root / "test_public" / "good").iterdir():  # stems are unique in a split
        path.rename(path.with_name(f"1{path.name}"))
    rng = np.random.default_rng(0)
    maps, decisions = (
        tmp_path / "submission" / f"anomaly_images{s}" / "can" / "test_public" for s in ("", "_thresholded")
    )
    maps.mkdir(parents=True)
    decisions.mkdir(parents=True)
    for path in sorted((root / "test_public").glob("[gb]*d/*.png")):
        tifffile.imwrite(maps / f"{path.stem}.tiff", rng.random((32, 40)).astype(np.float16))
        mask = root / "test_public" / "ground_truth" / "bad" / f"{path.stem}_mask.png"
        decided = np.asarray(Image.open(mask)) if path.parent.name == "bad" else np.zeros((32, 40), np.uint8)
        Image.fromarray(decided).save(decisions / f"{path.stem}.png")
    normal = tmp_path / "normal"
    normal.mkdir()
    np.save(normal / "one.npy", rng.random((32, 40)))
    command = ["evaluate", "--dataset", "mvtec_ad_2", "--root", str(root.parent), "--categories", "can", "--exact"]
    command += ["--maps", str(maps.parents[2]), "--normal-maps", str(normal), "--output", str(tmp_path / "out")]
    command += ["--protocol", "native@1"]
    assert main(command) == 0
    (run,) = read_runs(tmp_path / "out")
    values = run.records[run.records["subset"] == "all"].set_index("metric")["value"]
    assert 0 <= values["iou"] < 0.5
    assert values["iou_decision"] == values["miou_decision"] == 1  # the masks themselves were handed in
    assert values["fpr_decision"] == 0
    assert run.about.threshold.normal_images == 1


@pytest.mark.parametrize("kind", KINDS)
def test_new_method_passes_its_own_test_and_runs(kind, tree, tmp_path, capsys):
    assert main(["new-method", "my_method", "--kind", kind, "--folder", str(tmp_path)]) == 0
    adapter = tmp_path / "my_method.py"
    assert len(adapter.read_text().splitlines()) < 80
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_my_method.py")],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"3 passed", result.stdout)
    assert main(["run", "--root", str(tree), "--categories", "bolt", "--methods", str(adapter), "--preset", "demo",
                 "--output", str(tmp_path / "out")]) == 0  # fmt: skip
    assert main(["new-method", "my_method", "--folder", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_data_commands(tmp_path, capsys):
    root = tmp_path / "made"
    assert main(["data", "make", str(root), "--categories", "weave", "--size", "96x128", "--train", "2",
                 "--test-good", "1", "--test-defective", "3"]) == 0  # fmt: skip
    with Image.open(next((root / "weave" / "train" / "good").iterdir())) as image:
        assert image.size == (128, 96)
    assert main(["data", "stats", "--root", str(root)]) == 0
    assert "area_median" in capsys.readouterr().out
    assert main(["data", "check", "--root", str(root)]) == 0
    assert main(["data", "check", "--dataset", "mvtec_ad", "--root", str(root)]) in (1, 2)


def test_stats_and_evaluate_name_the_images_that_are_left_out(tmp_path, capsys):
    root, maps = tmp_path / "BTAD", tmp_path / "maps"
    mask = np.zeros((16, 16), np.uint8)
    mask[:4, :4] = 255
    maps.mkdir()
    for place, numbers in (("train/ok", (0, 1)), ("test/ok", (2,)), ("test/ko", (3, 4))):
        (root / "01" / place).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(np.full((16, 16), number, np.uint8)).save(root / "01" / place / f"{number}.bmp")
            np.save(maps / f"{number}.npy", mask.astype(np.float32))
    (root / "01/ground_truth/ko").mkdir(parents=True)
    Image.fromarray(mask).save(root / "01/ground_truth/ko/3.png")
    Image.fromarray(mask * 0).save(root / "01/ground_truth/ko/4.png")
    data = ["--dataset", "btad", "--root", str(root)]
    for command in (
        ["data", "stats", *data],
        ["evaluate", *data, "--maps", str(maps), "--output", str(tmp_path / "out")],
    ):
        assert main(command) == 0
        assert "4.png: mask with no defect pixel: 01/test/ko/4.bmp is left out" in capsys.readouterr().err


def test_list_names_what_there_is(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("fastflow", "l2bt", "native", "mvtec_ad", "visa", "kolektorsdd2"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--root", "{tree}", "--methods", "fastfow"], "did you mean 'fastflow'"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--preset", "tiny"], "unknown preset"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--view", "tiles"], "view 'tiles'"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--categories", "bol"], "bolt"),
        (["run", "--root", "{tree}/nowhere", "--methods", "{toy}"], "nowhere"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--dataset", "mvtek"], "unknown dataset"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--set", "steps"], "OPTION=VALUE"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--set", "l2bt.steps=3"], "OPTION=VALUE"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--device", "gpu9"], "device 'gpu9'"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--protocol", "nativ"], "did you mean 'native'"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--batch-size", "0"], "at least 1"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--batch-size", "most"], "batch size is 'most', expected"),
        (["comapre", "{tree}"], "unknown command 'comapre'; did you mean 'compare'?"),
        (["data", "chekc", "{tree}"], "did you mean 'check'?"),
        (["show", "{tree}", "--jsno"], "unknown option --jsno; did you mean --json?"),
        (["leaderboard", "{tree}/nut/tset"], "tset: no such folder; did you mean {tree}/nut/test?"),
        (
            ["predict", "{tree}/nut/te", "--images", "{tree}/nut/test/good", "--output", "{out}"],
            "mean {tree}/nut/test?",
        ),
        (["evaluate", "--root", "{tree}", "--maps", "{tree}/nowhere"], "nowhere"),
        (["leaderboard", "{tree}"], "no finished run"),
        (["rescore", "{tree}"], "no finished run"),
        (["rescore", "{tree}", "--protocol", "native", "native@1"], "two protocols are called 'native'"),
        (["run", "--root", "{tree}", "--methods", "{toy}", "--protocol", "native", "native@1"], "two protocols are"),
        (["data", "make", "{out}", "--size", "big"], "--size is 'big'"),
        (["new-method", "not-a-name", "--folder", "{out}"], "Python identifier"),
    ],
)
def test_mistakes_get_one_line_and_status_two(arguments, message, tree, toy, tmp_path, capsys):
    filled = [a.format(tree=tree, toy=toy, out=tmp_path / "out") for a in arguments]
    if filled[0] == "run":
        filled += ["--output", str(tmp_path / "out")]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert message.format(tree=tree) in error
    assert "Traceback" not in error


def test_one_failing_job_does_not_lose_the_others(tmp_path, toy, capsys):
    root = write_tree(tmp_path / "data", categories=("bolt", "nut", "pin"))
    (root / "nut" / "test" / "dent" / "002.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert (
        main(["run", "--root", str(root), "--methods", toy, "--set", "steps=2", "--output", str(out), "--no-check"])
        == 2
    )
    error = capsys.readouterr().err
    assert "002.png" in error
    assert "1 of 3 jobs failed" in error
    assert [run.about.dataset.category for run in read_runs(out)] == ["bolt", "pin"]


def test_the_readme_example_of_the_api_runs():
    maps = [np.random.default_rng(i).random((50, 60 + i)) for i in range(4)]
    masks = [m > 0.99 for m in maps]
    result = hrbench.evaluate(maps, masks)
    assert list(result.frame.columns) == [
        "metric", "subset", "fpr_limit", "value", "error_bound", "n", "ci_low", "ci_high",
    ]  # fmt: skip
