"""Pictures of the same places for all methods of a grid: drawn once all have ended, and never twice."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_tree
from PIL import Image

import hrbench
from hrbench import HrbenchError, LocalEngine, load_protocol
from hrbench.errors import Halted
from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Scores
from hrbench.grid import gallery, local
from hrbench.grid.engine import Watch
from hrbench.grid.gallery import Gallery, side_by_side
from hrbench.grid.on_ray import _Drawings
from hrbench.grid.worker import Failed, StageWorker
from hrbench.protocol import Bootstrap, Protocol
from hrbench.runs import more_pictures
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.more_pictures import Lacking
from hrbench.runs.parcel import packed
from hrbench.runs.picture_choice import EXTREMES
from hrbench.runs.picture_files import UNIT, Picture, write_pictures
from hrbench.runs.scoring import record_files
from hrbench.runs.stages import Setting, Workbench
from hrbench.runs.store import Run, RunFolder

PROTOCOL = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10))
SETTING = Setting((PROTOCOL,))
VIEWS = ("tiled:32:8", "whole:32", "whole:32+tiled:32:8")  # the last one is fused


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More images and defects than those of which pictures are kept anyway."""
    root = write_tree(tmp_path_factory.mktemp("data"), categories=("nut",), train=8, good=9, bad=14, size=(60, 70))
    rng = np.random.default_rng(1)
    for path in (root / "nut" / "test").rglob("*.png"):
        noise = rng.normal(0, 25, (60, 70, 1))  # so that what one view finds another one misses
        Image.fromarray(np.clip(np.asarray(Image.open(path)) + noise, 0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def made(tree: Path, toy: str, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    output = tmp_path_factory.mktemp("made")
    return [run for view in VIEWS for run in grid(tree, toy, output, [view]).runs]


@pytest.fixture
def separate(made: list[Run], tmp_path: Path) -> list[Run]:
    """Runs of the same images, each made without the others."""
    root = made[0].folder.parents[2]
    shutil.copytree(root, tmp_path / root.name)
    return [Run(tmp_path / run.folder.relative_to(root.parent)) for run in made]


def grid(tree: Path, toy: str, output: Path, views: Sequence[str] = VIEWS, **options: Any) -> hrbench.Study:
    return hrbench.run(
        "folder", [toy], root=tree, output=output, categories=["nut"], views=views, options={toy: {"steps": 2}},
        protocols=[PROTOCOL], device="cpu", save_maps=True, **options,
    )  # fmt: skip


def jobs_of(tree: Path, toy: str) -> list[Job]:
    category = hrbench.load_dataset("folder", tree).select(["nut"])[0]
    return [make_job(category, toy, preset="native", view=view, options={"steps": 2}) for view in VIEWS]


def keys(run: Run, *, own: bool = False) -> set[object]:
    return {p.key for p in run.pictures.items if not own or {*EXTREMES} & {*p.kinds}}


def complete(runs: Sequence[Run]) -> list[bool]:
    """Tell of each run whether it has all extremes, and is whole."""
    now = [Run(run.folder) for run in runs]
    wanted = set[object]().union(*(keys(run, own=True) for run in now))
    return [keys(run) >= wanted and run.damaged() == [] for run in now]


def state(runs: list[Run]) -> dict[Path, tuple[int, bytes]]:
    files = [path for run in runs for path in run.folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_all_methods_have_the_extremes_of_all(tree: Path, toy: str, tmp_path: Path, separate: list[Run]) -> None:
    before = [run.pictures.items for run in separate]
    assert not all(complete(separate))
    study = grid(tree, toy, tmp_path)
    assert all(complete(study.runs))
    for run, old in zip(study.runs, before, strict=True):
        pictures = Run(run.folder).pictures
        assert pictures.items[: len(old)] == old
        assert {p.kinds for p in pictures.items[len(old) :]} <= {()}
        names = [path.name for p in pictures.items for path in (p.photo, p.map)]
        assert len(set(names)) == len(names)
        assert {f"pictures/{name}" for name in names} <= run.about.files.keys()
    again = state(list(study.runs))
    assert grid(tree, toy, tmp_path).runs == study.runs
    assert state(list(study.runs)) == again


def test_what_is_added_is_what_the_run_itself_has_seen(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run]
) -> None:
    old = [len(run.pictures.items) for run in separate]
    elsewhere = {p.key: p for run in separate for p in run.pictures.items}
    added = 0
    for run, first in zip(grid(tree, toy, tmp_path).runs, old, strict=True):
        pictures, components, images = run.pictures, run.components, run.images.set_index("image")
        for picture in pictures.items[first:]:
            added += 1
            other = elsewhere[picture.key]
            assert (picture.read_photo() == other.read_photo()).all()
            mask = picture.read_mask()
            assert (mask is None) == (picture.label == 0)
            scores = _map(run, picture)
            assert pictures.threshold is not None
            assert ((picture.read_map() >= UNIT) == (scores >= pictures.threshold)).all()
            if picture.defect is None:
                assert picture.score == images.loc[picture.image, "alarm"]
                continue
            box = components[["top", "left", "bottom", "right"]].apply(tuple, axis=1) == picture.defect
            (critical,) = components["critical"][box & (components["image"] == picture.image)]
            assert picture.score == critical
            assert picture.reached is not None
            assert (picture.reached >= PROTOCOL.pod.share) == pictures.found(picture)
    assert added >= 2


def _map(run: Run, picture: Picture) -> Scores:
    import tifffile

    top, left, bottom, right = picture.window
    found: Scores = tifffile.imread(run.files.map_of(picture.image))[top:bottom, left:right]
    return found


def test_only_the_extremes_of_the_best_are_drawn(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "WITH_EXTREMES", 1)
    (beside,) = side_by_side(list(zip(jobs_of(tree, toy), separate, strict=True)), PROTOCOL)
    before = {run.folder: keys(run) for run in separate}
    study = grid(tree, toy, tmp_path)
    best = next(run for run in study.runs if run.folder == beside[0][1].folder)
    assert keys(best) == before[best.folder]
    for run in study.runs:
        assert keys(run) == before[run.folder] | keys(best, own=True)


def test_methods_stand_as_they_are_ranked_and_by_their_lowest_seed(
    tree: Path, toy: str, separate: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    later = [(dataclasses.replace(job, seed=7), run) for job, run in done]
    (beside,) = side_by_side([*later, *done], PROTOCOL)
    assert {job.seed for job, _ in beside} == {0}
    values = [_aupro(run) for _, run in beside]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(VIEWS)
    monkeypatch.setattr(gallery, "SIDE_BY_SIDE", 2)
    assert side_by_side(done, PROTOCOL) == [beside[:2]]
    assert side_by_side(done[:1], PROTOCOL) == side_by_side([], PROTOCOL) == []


def _aupro(run: Run) -> float:
    table = run.records.query("metric == 'aupro' and subset == 'all'")
    (value,) = table["value"][(table["fpr_limit"] - PROTOCOL.headline_fpr).abs() < 1e-9]
    return float(value)


def test_a_run_that_cannot_be_drawn_is_a_warning_and_the_others_are(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    draw, fails = Workbench.draw, complete(separate).index(False)
    failing, before = separate[fails].folder, state([separate[fails]])

    def sometimes(bench: Workbench, *arguments: Any) -> tuple[Picture, ...]:
        if bench._folder.path == failing:
            raise ValueError("not today")
        return draw(bench, *arguments)

    monkeypatch.setattr(Workbench, "draw", sometimes)
    study = grid(tree, toy, tmp_path)
    assert "no more pictures: not today" in caplog.text
    assert state([separate[fails]]) == before
    assert not study.failures
    assert [number for number, whole in enumerate(complete(separate)) if not whole] == [fails]
    assert not list(tmp_path.rglob("*.lease"))


def test_a_full_disk_halts_and_the_same_call_goes_on(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Halted("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "draw", full)
        study = grid(tree, toy, tmp_path)
    assert isinstance(study.halted, Halted)
    assert len(study.runs) == len(separate)
    assert not list(tmp_path.rglob("*.lease"))
    assert not all(complete(separate))
    assert grid(tree, toy, tmp_path).halted is None
    assert all(complete(separate))


def test_who_is_killed_before_the_record_is_written_loses_nothing(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(more_pictures, "record_files", killed)
        with pytest.raises(KeyboardInterrupt):
            grid(tree, toy, tmp_path)
    with pytest.raises(HrbenchError, match=r"pictures\.json: is not as it was written"):
        complete(separate)
    assert not grid(tree, toy, tmp_path).failures
    assert all(complete(separate))


def test_what_another_process_draws_is_waited_for(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = separate[complete(separate).index(False)]
    leases, waited = Leases(), []
    leases.take(lacking.files.lease)
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    with LocalEngine("cpu", only=(0, 2)) as engine, Gallery(done, SETTING) as left:
        engine.draw(left, tmp_path, Watch())
        assert left.left == 1

    def ends(seconds: float) -> None:
        waited.append(seconds)
        leases.give_back(lacking.files.lease)

    monkeypatch.setattr(local.time, "sleep", ends)
    with LocalEngine("cpu") as engine, Gallery(done, SETTING) as left:
        assert left.left == 1
        engine.draw(left, tmp_path, Watch())
    assert waited == [local.WAIT_SECONDS]
    assert all(complete(separate))


def test_runs_that_were_read_before_another_process_changed_them_are_read_anew(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run]
) -> None:
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    assert not all(complete(separate))
    for run in separate:
        assert run.about
        pictures = Run(run.folder).pictures
        turned = dataclasses.replace(pictures, items=pictures.items[::-1])
        record_files(Run(run.folder), [write_pictures(run.files.pictures, turned)])
    draw(done, tmp_path)
    assert all(complete(separate))


def draw(done: Sequence[tuple[Job, Run]], output: Path) -> None:
    with LocalEngine("cpu") as engine, Gallery(done, SETTING) as left:
        engine.draw(left, output, Watch())
        assert left.left == 0


def test_a_run_that_is_made_again_gets_its_pictures_again(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run]
) -> None:
    grid(tree, toy, tmp_path)
    now = [Run(run.folder) for run in separate]
    again = next(run for run in now if any(not picture.kinds for picture in run.pictures.items))
    again.pictures.items[0].map.unlink()
    again.pictures.items[-1].photo.write_bytes(b"of another choice")
    assert not grid(tree, toy, tmp_path, [again.about.view]).failures
    assert not grid(tree, toy, tmp_path).failures
    assert all(complete(separate))


def test_evidence_that_does_not_fit_costs_the_others_nothing(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    fails = separate[complete(separate).index(False)].folder
    whole = Run.load_evidence

    def load(run: Run, protocol: Protocol) -> Evidence:
        if run.folder == fails:
            raise MemoryError
        return whole(run, protocol)

    monkeypatch.setattr(Run, "load_evidence", load)
    draw(list(zip(jobs_of(tree, toy), separate, strict=True)), tmp_path)
    assert "no more pictures: MemoryError" in caplog.text
    assert [run.folder for run, whole in zip(separate, complete(separate), strict=True) if not whole] == [fails]
    assert not list(tmp_path.rglob("*.lease"))


def test_who_lacks_a_category_stands_last(tree: Path, toy: str, separate: list[Run]) -> None:
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    ((best, *_),) = side_by_side(done, PROTOCOL)
    other = dataclasses.replace(best[0].category, name="washer")
    more = [(dataclasses.replace(job, category=other), run) for job, run in done if run is not best[1]]
    nut, washer = side_by_side([*done, *more], PROTOCOL)
    assert nut[-1] == best
    assert len(nut) == 3
    assert len(washer) == 2


def test_a_stop_draws_nothing(tree: Path, toy: str, tmp_path: Path, separate: list[Run]) -> None:
    before = state(separate)
    with LocalEngine("cpu") as engine:
        done = list(zip(jobs_of(tree, toy), separate, strict=True))
        with Gallery(done, SETTING) as left:
            engine.draw(left, tmp_path, Watch(stop=lambda: True))
            assert left.left == complete(separate).count(False) > 0
    assert state(separate) == before


def test_pictures_by_another_protocol_stay_as_they_are(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run]
) -> None:
    before = [keys(run) for run in separate]
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    renamed = Setting((dataclasses.replace(PROTOCOL, name="other"),))
    with LocalEngine("cpu") as engine, Gallery(done, renamed) as left:
        engine.draw(left, tmp_path, Watch())
        assert left.left == 0
    assert [keys(Run(run.folder)) for run in separate] == before


@pytest.mark.parametrize("shared", [False, True])
def test_a_worker_elsewhere_draws_the_same(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = StageWorker("cpu", torch.get_num_threads())
    worker.share(tmp_path if shared else None)
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    with Gallery(done, SETTING) as left:
        hands = _Drawings(left, tmp_path, lambda parcel: parcel, shared=shared)
        while (call := hands.next("worker", 1, 1)) is not None:
            assert call.method == "draw"
            task, sharing, (parcel,) = call.arguments
            here = draw_here(task, task.job.folder(tmp_path))
            assert bool(parcel) != shared
            found = worker.draw(task, sharing, lambda parcel=parcel: parcel)
            assert not isinstance(found, Failed)
            assert found[1] == here
            hands.received("worker", found)
        assert hands.left == 0
    assert all(complete(separate))


def test_a_worker_that_fails_or_dies_costs_the_others_nothing(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    before = state(separate)
    done = list(zip(jobs_of(tree, toy), separate, strict=True))
    with Gallery(done, SETTING) as left:
        hands = _Drawings(left, tmp_path, lambda parcel: parcel, shared=False)
        for worker in "ab":
            assert hands.next(worker, 2, 1) is not None
        assert hands.next("c", 3, 1) is None
        hands.received("a", Failed("far", "no memory", ""))
        hands.lost("b", "node is gone")
        assert hands.left == 0
    assert "no more pictures: no memory (on node far)" in caplog.text
    assert "no more pictures: node is gone" in caplog.text
    assert state(separate) == before
    with Gallery(done, SETTING) as left:
        hands = _Drawings(left, tmp_path, lambda parcel: parcel, shared=False)
        hands.next("a", 1, 1)
        with pytest.raises(Halted, match="disk is full"):
            hands.received("a", Failed("far", "disk is full", "", halts=True))
    assert not list(tmp_path.rglob("*.lease"))


def test_what_cannot_be_written_is_a_warning(
    tree: Path, toy: str, tmp_path: Path, separate: list[Run], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refused(run: Run, items: Sequence[Picture]) -> None:
        raise PermissionError(errno.EACCES, "permission denied", str(run.folder))

    lacking = complete(separate).count(False)
    monkeypatch.setattr(gallery, "add_pictures", refused)
    study = grid(tree, toy, tmp_path)
    assert len(study.runs) == len(separate)
    assert caplog.text.count("no more pictures: ") == caplog.text.count("permission denied") == lacking


def draw_here(task: Lacking, folder: RunFolder) -> Mapping[str, bytes]:
    """Return the files that this process draws."""
    before = set(folder.pictures.iterdir())
    with Workbench(task.job, folder, task.setting, torch.device("cpu")) as bench:
        bench.draw(task.numbered, task.scale)
    new = set(folder.pictures.iterdir()) - before
    files = packed(folder.path, sorted(new))
    for path in new:
        path.unlink()
    return files
