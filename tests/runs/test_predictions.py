"""What `hrbench predict` leaves in a folder, and how it goes on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import write_tree
from PIL import Image

import hrbench
from hrbench.cli import main
from hrbench.runs import predictions
from hrbench.runs.detector import Component, Verdict
from hrbench.runs.lease import Leases
from hrbench.runs.predictions import COMPONENT_COLUMNS, IMAGE_COLUMNS, _caption
from hrbench.runs.store import Run

DRAWING = str(Path(__file__).parents[1] / "drawing_adapter.py")  # whose predictions are random


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "parts", train=6, good=12, bad=8, size=(40, 44))


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = tmp_path_factory.mktemp("runs")
    study = hrbench.run("folder", [DRAWING], root=root, output=output, protocols=["native@1"], device="cpu",
                        save_maps=True)  # fmt: skip
    return study.runs[0]


@pytest.fixture
def images(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / "bolt/test", tmp_path / "new"))


def predict(run: Run, images: Path, output: Path, *more: str) -> int:
    command = ["predict", str(run.folder), "--images", str(images), "--output", str(output), "--method", DRAWING]
    return main([*command, "--device", "cpu", *more])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_maps_and_overlays(run: Run, images: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert predict(run, images, out) == 0
    printed = capsys.readouterr().out
    found, components = rows(out / "predictions.csv"), rows(out / "components.csv")
    assert (tuple(found[0]), tuple(components[0])) == (IMAGE_COLUMNS, COMPONENT_COLUMNS)
    assert len(found) == 20
    alarms = sum(row["verdict"] == "alarm" for row in found)
    assert 0 < alarms < 20
    assert f"20 images: {alarms} alarm, {20 - alarms} do not\n" in printed
    assert "(normal-quantile), set on 1 held-out normal image" in printed
    scored = run.images.set_index("image")["score"]
    threshold = np.float32(run.about.threshold.value)
    for row in found:
        stem = Path(row["image"]).with_suffix("")
        scores = tifffile.imread(out / "maps" / f"{stem}.tiff")
        assert np.array_equal(scores, tifffile.imread(run.folder / "maps/bolt/test" / f"{stem}.tiff"))
        assert np.float32(row["score"]) == np.float32(scored[f"bolt/test/{row['image']}"])
        assert (row["verdict"] == "alarm") == (scores.max() >= threshold)
        own = [part for part in components if part["image"] == row["image"]]
        assert [part["number"] for part in own] == [str(number + 1) for number in range(int(row["components"]))]
        for part in own:
            left, top, right, bottom = (int(part[side]) for side in ("left", "top", "right", "bottom"))
            assert np.float32(part["highest"]) <= scores[top:bottom, left:right].max()
        with Image.open(out / "overlays" / f"{stem}.png") as overlay:
            assert overlay.width == 11 * 44
            assert 11 * 40 < overlay.height < 11 * 44  # the verdict stands below
            assert np.asarray(overlay)[11 * 40 :].max() == 255


def test_a_caption_has_the_verdict_in_units_of_the_threshold() -> None:
    scores = np.full((4, 5), 3, np.float32)
    alarms = Verdict("a.png", scores, 3.0, 2.0, True, (Component(0, 0, 5, 4, 20, 3.0),))
    assert _caption(alarms, 1.0) == "alarm: 1 component, highest score 2.00 × threshold"
    silent = Verdict("a.png", scores, 3.0, 5.0, False, ())
    assert _caption(silent, 1.0) == "no alarm: highest score 0.50 × threshold"
    barely = Verdict("a.png", scores, 3.0, 3.004, False, ())
    assert _caption(barely, 1.0) == "no alarm: highest score 0.99 × threshold"
    assert _caption(alarms, 1.9999) == "alarm: 1 component, highest score over 100 × threshold"
    assert _caption(alarms, 2.5) == "alarm: 1 component, highest score 3, threshold 2"
    assert _caption(Verdict("a.png", scores, 3.0, None, None, ()), 1.0) == "no threshold, highest score 3"


def test_a_second_call_goes_on_with_what_is_new_or_has_changed(run, images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    later = images / "dent/000.png"
    later.rename(tmp_path / "later.png")
    assert predict(run, images, out) == 0
    before = content(out)
    assert predict(run, images, out) == 0
    assert "19 predicted by an earlier call" in capsys.readouterr().out
    assert content(out) == before
    (tmp_path / "later.png").rename(later)
    shutil.copy(images / "good/001.png", images / "good/002.png")
    (out / "overlays/good/003.png").unlink()
    assert predict(run, images, out) == 0
    assert "do not; 17 predicted by an earlier call" in capsys.readouterr().out
    assert (out / "overlays/good/003.png").is_file()
    found = {row["image"]: row for row in rows(out / "predictions.csv")}
    assert len(found) == len(rows(out / "predictions.csv")) == 20
    assert found["good/002.png"]["sha256"] == found["good/001.png"]["sha256"]
    components = rows(out / "components.csv")
    assert all(sum(part["image"] == name for part in components) == int(row["components"])
               for name, row in found.items())  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_killed_call_goes_on_and_ends_the_same(run, images, tmp_path, monkeypatch, chunk) -> None:
    for module in ("detector", "predictions"):
        monkeypatch.setattr(f"hrbench.runs.{module}.CHUNK", 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert predict(run, images, whole) == 0
    real, calls = predictions._add, []

    class Killed(BaseException):
        pass

    def add(path: Path, columns, rows) -> None:
        calls.append(path)
        if len(calls) == 2 * chunk:  # after the components of a chunk, in the midst of the rows of its images
            text = (whole / "predictions.csv").read_text().splitlines(keepends=True)[len(calls) * 2]
            with path.open("a") as file:
                file.write(text[: len(text) // 2])
            raise Killed
        real(path, columns, rows)

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "_add", add)
        with pytest.raises(Killed):
            predict(run, images, killed)
    assert predict(run, images, killed) == 0
    assert content(killed) == content(whole)


def test_bad_images_are_a_line_each_and_the_others_go_on(run, images, tmp_path, capsys) -> None:
    out, mended = tmp_path / "out", (images / "good/004.png").read_bytes()
    (images / "good/004.png").write_bytes(b"no image")
    (images / "good/005.png").write_bytes(b"")
    assert predict(run, images, out) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "good/004.png: not a readable image" in errors[0]
    assert "good/005.png: the file is empty" in errors[1]
    assert len(errors) == 2
    bad = {row["image"]: row["note"] for row in rows(out / "predictions.csv") if not row["score"]}
    assert bad.keys() == {"good/004.png", "good/005.png"}
    (images / "good/004.png").write_bytes(mended)
    assert predict(run, images, out) == 2
    printed = capsys.readouterr()
    assert "1 could not be predicted; 18 predicted by an earlier call" in printed.out
    assert "good/005.png" in printed.err
    assert predict(run, tmp_path / "gone.png", tmp_path / "other") == 2
    assert "gone.png: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_without_a_threshold_a_word_says_why(run, images, tmp_path, capsys) -> None:
    assert predict(run, images / "good", tmp_path / "out", "--view", "whole:32", "--no-save-maps") == 0
    printed = capsys.readouterr().out
    assert "no threshold: it was set through tiled:16:4, not through whole:32" in printed
    assert "12 images: no verdicts\n" in printed
    for row in rows(tmp_path / "out/predictions.csv"):
        assert (row["verdict"], row["threshold"], row["components"]) == ("", "", "")
        assert row["note"].startswith("no threshold: it was set through")
    assert not (tmp_path / "out/maps").exists()


def test_predictions_of_others_do_not_mix(run, images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert predict(run, images / "good", out) == 0
    assert predict(run, images / "good", out, "--view", "whole:32") == 2
    assert "holds predictions with view 'tiled:16:4', asked for are some with 'whole:32'" in capsys.readouterr().err
    with Leases().holding(out / ".lease"):
        assert predict(run, images / "good", out) == 2
    assert "another process is at work on this folder" in capsys.readouterr().err
    assert json.loads((out / "predictions.json").read_text())["promise"] == (
        "at most 0.001 of the pixels of the 1 held-out normal image reach it"
    )
    (out / "predictions.json").unlink()
    assert predict(run, images / "good", out) == 2
    assert "predictions.csv: exists and is not of `hrbench predict`" in capsys.readouterr().err
    assert predict(run, images, images / "out") == 2
    assert "expected a folder outside of the images" in capsys.readouterr().err


def test_a_method_that_is_fitted_on_normal_images_alone(root: Path, toy: str, images: Path, tmp_path, capsys) -> None:
    saved, out = tmp_path / "saved", tmp_path / "out"
    command = ["fit", toy, "--images", str(root / "bolt/train/good"), "--output", str(saved), "--set", "steps=4",
               "--protocol", "native@1", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Toy, tiled:32:8, fitted on good: threshold ")
    assert f"hrbench predict {saved} --images" in printed
    apply = ["predict", str(saved), "--images", str(images), "--output", str(out), "--method", toy, "--device", "cpu"]
    assert main(apply) == 0
    assert len(rows(out / "predictions.csv")) == 20
    assert main(command) == 2
    assert "saved: exists already, expected the path of a new folder" in capsys.readouterr().err
    assert main([*apply, "--set", "toy.weights=mine.pth"]) == 2
    assert "--set 'toy.weights=mine.pth': expected OPTION=VALUE\n" in capsys.readouterr().err


def test_odd_names_stay_below_their_folder_and_are_no_formulas(run, images, tmp_path, capsys) -> None:
    source = images / "good/000.png"
    for name in ("=1+1.png", "back\\slash.png", f"{'ä' * 123}.png"):
        shutil.copy(source, tmp_path / "new/dent" / name)
    assert predict(run, images / "dent", tmp_path / "out") == 2
    assert "a path that leaves its folder" in capsys.readouterr().err
    names = {row["image"] for row in rows(tmp_path / "out/predictions.csv")}
    assert "'=1+1.png" in names
    assert len(names) == 10
    assert predict(run, images / "dent", tmp_path / "out") == 2
    assert "10 predicted by an earlier call" in capsys.readouterr().out
