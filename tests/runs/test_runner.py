"""Jobs end to end: determinism, resume, what identifies a run, what a bad file does."""

from __future__ import annotations

import dataclasses
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_same_bits, write_tree

from hrbench import HrbenchError, load_dataset, load_protocol
from hrbench.data import sample as sample_module
from hrbench.engine import inference as inference_module
from hrbench.metrics import measurement
from hrbench.registry import load_method
from hrbench.runs import scoring, shards, stages
from hrbench.runs.job import identities, make_job, split_normals
from hrbench.runs.reference import reference_of
from hrbench.runs.runner import run_job
from hrbench.runs.scoring import rescore
from hrbench.runs.store import RECORD_COLUMNS, Run, read_runs
from hrbench.runs.verification import verify_run

CPU = torch.device("cpu")
PROTOCOLS = [load_protocol("native")]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 3)


def job_for(tree, toy, **changes):
    category = load_dataset("folder", tree).categories[0]
    return make_job(category, toy, **{"preset": "native", **changes})


def run(tree, toy, output, protocols=PROTOCOLS, **changes):
    return run_job(job_for(tree, toy, **changes), output, protocols, device=CPU)


def evidence_bytes(run):
    return {path.name: path.read_bytes() for path in sorted((run.folder / "evidence").rglob("*.parquet"))}


def test_a_job_leaves_a_complete_run(tree, toy, tmp_path):
    done = run(tree, toy, tmp_path, options={"decide": True})
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "annotation.parquet", "components.parquet", "evidence", "fit.json", "images.parquet", "pictures",
        "records.parquet", "replicates.parquet", "run.json", "weights.safetensors",
    ]  # fmt: skip
    records = done.records
    assert tuple(records.columns) == RECORD_COLUMNS
    value = records[records["fpr_limit"].isna()].set_index(["metric", "subset"])["value"]
    assert value["pixel_auroc", "all"] > 0.9
    assert {"iou", "iou_decision", "iou_oracle"} <= set(records["metric"])
    assert 0 < value["iou_decision", "all"] <= value["iou_oracle", "all"] + 1e-6
    assert records["dataset"].unique().tolist() == [tree.name]
    assert done.about.dataset.held_out == 1
    assert done.about.method.options["decide"] is True
    assert done.about.cost.megapixels_per_second > 0
    assert len(done.evidence.images) == 8
    components = done.components[done.components["protocol"] == "native"]
    own = records[(records["metric"] == "aupro") & (records["subset"] == "all")].set_index("fpr_limit")["value"]
    for limit in (0.3, 0.1, 0.05, 0.01):
        assert components[f"aupro@{limit}"].mean() == pytest.approx(own[limit], abs=1e-12)
    assert np.isnan(value["recall", "all"])  # a single image is held out: no promise
    matched = records[(records["metric"] == "recall_matched") & (records["subset"] == "all")].set_index("fpr_limit")
    good = done.images[done.images["label"] == 0]  # fewer than a budget allows one of to alarm
    assert (components["critical"] > good["alarm"].max()).mean() == matched["value"][0.05]
    assert (components["overlap_decision"] >= 0.1).mean() == value["recall_decision", "all"]
    assert done.evidence.components["defect_type"].unique().tolist() == ["dent"]
    shown = done.pictures.items
    assert {"smallest found", "largest missed"} & {kind for picture in shown for kind in picture.kinds}
    assert all(picture.photo.is_file() and picture.map.is_file() for picture in shown)


def test_equal_jobs_give_equal_bits_and_seeds_differ(tree, toy, tmp_path):
    first = run(tree, toy, tmp_path / "a", options={"noise": 0.1})
    second = run(tree, toy, tmp_path / "b", options={"noise": 0.1})
    drop = ["seconds"]
    assert first.evidence.images.drop(columns=drop).equals(second.evidence.images.drop(columns=drop))
    assert np.array_equal(first.evidence.defect_scores, second.evidence.defect_scores)
    assert evidence_bytes(first)["components.parquet"] == evidence_bytes(second)["components.parquet"]
    other = run(tree, toy, tmp_path / "a", seed=1, options={"noise": 0.1})
    assert not np.array_equal(first.evidence.defect_scores, other.evidence.defect_scores)
    assert len(read_runs(tmp_path / "a")) == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.cuda.OutOfMemoryError()]
)
def test_too_little_memory_is_said(tree, toy, tmp_path, monkeypatch, error):
    def train(*_, **__):
        raise error

    monkeypatch.setattr("hrbench.engine.training.Fit.train", train)
    with pytest.raises(HrbenchError, match="memory of cpu is too small for toy_adapter with inputs of 32x32 pixels"):
        run(tree, toy, tmp_path)


class Killed(BaseException):
    """Stands for a process that ends anywhere."""


@pytest.mark.parametrize("stop_at", ["first step", "second stage", "fit done", "second shard", "records"])
def test_a_killed_job_continues_and_ends_the_same(tree, toy, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", -1.0)
    options = {"noise": 0.1}
    whole = run(tree, toy, tmp_path / "whole", options=options)
    job = job_for(tree, toy, options=options)
    output = tmp_path / "killed"

    calls = {"step": 0, "shard": 0}
    with monkeypatch.context() as patch:
        real_step = torch.optim.Adam.step
        real_collector = shards.EvidenceCollector
        stop_step = {"first step": 1, "second stage": 14}.get(stop_at)

        def step(self, *args, **kwargs):
            calls["step"] += 1
            if calls["step"] == stop_step:
                raise Killed
            return real_step(self, *args, **kwargs)

        def collector(*args, **kwargs):
            calls["shard"] += 1
            if (stop_at, calls["shard"]) in {("fit done", 1), ("second shard", 2)}:
                raise Killed
            return real_collector(*args, **kwargs)

        def compute(*args, **kwargs):
            raise Killed

        patch.setattr(torch.optim.Adam, "step", step)
        patch.setattr(shards, "EvidenceCollector", collector)
        if stop_at == "records":
            patch.setattr(measurement, "metric_rows", compute)
        with pytest.raises(Killed):
            run_job(job, output, PROTOCOLS, device=CPU)
        assert not (job.folder(output).path / "run.json").exists()
        assert not list(output.glob("**/records.parquet"))

    steps_before = calls["step"]
    count = {"step": 0}
    real = torch.optim.Adam.step

    def counted(self, *args, **kwargs):
        count["step"] += 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    resumed = run_job(job, output, PROTOCOLS, device=CPU)
    if stop_at == "second stage":
        assert count["step"] == 20 - (steps_before - 1)
    if stop_at in ("fit done", "second shard", "records"):
        assert count["step"] == 0
    assert_same_bits(resumed.evidence, whole.evidence, but=("seconds",))
    pd.testing.assert_frame_equal(resumed.records, whole.records)
    assert not (resumed.folder / "partial").exists()


def test_a_done_job_is_not_done_again(tree, toy, tmp_path, monkeypatch):
    before = run(tree, toy, tmp_path)
    stamp = (before.folder / "run.json").stat().st_mtime_ns
    monkeypatch.setattr(stages, "Fit", None)
    assert (run(tree, toy, tmp_path).folder / "run.json").stat().st_mtime_ns == stamp


def test_another_protocol_is_computed_from_the_evidence(tree, toy, tmp_path, monkeypatch):
    run(tree, toy, tmp_path)
    monkeypatch.setattr(stages, "Fit", None)
    strict = dataclasses.replace(PROTOCOLS[0], name="strict", fpr_limits=(0.02,), headline_fpr=0.02)
    again = run_job(job_for(tree, toy), tmp_path, [*PROTOCOLS, strict], device=CPU)
    assert set(again.records["protocol"]) == {"native", "strict"}
    assert set(again.about.protocols) == {"native", "strict"}
    own = again.records[(again.records["protocol"] == "strict") & (again.records["metric"] == "aupro")]
    assert own["fpr_limit"].unique().tolist() == [0.02]
    assert again.components.groupby("protocol").size().tolist() == [len(again.evidence.components)] * 2
    kept = again.replicates[again.replicates["metric"] == "aupro"]
    assert kept.set_index("protocol")["fpr_limit"].to_dict() == {"native": 0.05, "strict": 0.02}


def test_groups_reach_the_evidence_and_a_done_job_takes_new_ones(tree, toy, tmp_path, monkeypatch):
    job, plain = job_for(tree, toy), run(tree, toy, tmp_path)
    records, replicates = plain.records, plain.replicates
    test = tuple(dataclasses.replace(s, group=f"part {i // 2}") for i, s in enumerate(job.category.test))
    grouped = dataclasses.replace(job, category=dataclasses.replace(job.category, test=test))
    other = run_job(grouped, tmp_path / "other", PROTOCOLS, device=CPU)
    assert other.folder.name == plain.folder.name
    assert other.evidence.images["group"].tolist() == [sample.group for sample in test]
    monkeypatch.setattr(stages, "Fit", None)
    again = run_job(grouped, tmp_path, PROTOCOLS, device=CPU)
    assert_same_bits(again.evidence, other.evidence, but=["seconds"])
    pd.testing.assert_frame_equal(again.records, other.records)
    pd.testing.assert_frame_equal(again.replicates, other.replicates)
    assert not np.array_equal(again.replicates["values"][0], replicates["values"][0])
    back = run_job(job, tmp_path, PROTOCOLS, device=CPU)
    pd.testing.assert_frame_equal(back.records, records)
    pd.testing.assert_frame_equal(back.replicates, replicates)


def test_what_identifies_a_run(tree, toy, tmp_path):
    names = {
        job_for(tree, toy, **changes).name
        for changes in ({}, {"seed": 1}, {"view": "whole:32"}, {"options": {"steps": 7}}, {"preset": "demo"})
    }
    assert len(names) == 5
    assert job_for(tree, toy, options={"steps": 20}).name == job_for(tree, toy).name
    weights = [tmp_path / "a" / "w.pth", tmp_path / "b" / "w.pth"]
    for path in weights:
        path.parent.mkdir()
        path.write_bytes(b"same")
    first, second = (job_for(tree, toy, options={"weights": str(path)}).name for path in weights)
    assert first == second
    weights[1].write_bytes(b"other")
    assert job_for(tree, toy, options={"weights": str(weights[1])}).name != first
    path = str(weights[1])
    recorded = identities(load_method("uflow"), {"coarse_weights": path, "checkpoint": path, "backbone": "w"})
    assert recorded["coarse_weights"] == recorded["checkpoint"]
    assert recorded["checkpoint"].startswith("w.pth sha256:")
    assert recorded["backbone"] == "w"
    with pytest.raises(HrbenchError, match=r"option backbone of UFlow .*, a file: expected .*Weights"):
        identities(load_method("uflow"), {"backbone": path})


def test_a_job_with_fused_views(tree, toy, tmp_path, monkeypatch):
    options = {"decide": True}
    views = ["whole:32", "tiled:32:8"]
    alone = [run(tree, toy, tmp_path / "alone", view=view, options=options) for view in views]
    whole = run(tree, toy, tmp_path / "whole", view="+".join(views), options=options)
    assert whole.about.view == "whole:32+tiled:32:8"
    assert [part["view"] for part in whole.about.fusion] == views
    assert alone[0].about.fusion is None
    assert set(whole.records["view"]) == {"whole:32+tiled:32:8"}
    assert len({done.folder.name for done in (*alone, whole)}) == 3
    rows = [done.records.query("metric == 'pixel_auroc' and subset == 'all'") for done in (*alone, whole)]
    auroc = [row["value"].item() for row in rows]
    assert auroc[2] > min(auroc[:2])
    assert auroc[2] > 0.9

    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", -1.0)
    job, output = job_for(tree, toy, view="+".join(views), options=options), tmp_path / "killed"
    for victim, step in ((stages.Calibration, "joined"), (shards.EvidenceShards, "collect")):
        with monkeypatch.context() as patch:
            patch.setattr(victim, step, lambda *_, **__: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                run_job(job, output, PROTOCOLS, device=CPU)
    monkeypatch.setattr(stages.Fusion, "of", None)  # it was measured before
    resumed = run_job(job, output, PROTOCOLS, device=CPU)
    assert resumed.about.fusion == whole.about.fusion
    assert_same_bits(resumed.evidence, whole.evidence, but=("seconds",))


def test_a_method_is_calibrated_and_finished_view_by_view(tree, toy, tmp_path, monkeypatch):
    from hrbench.registry import load_method

    cls = load_method(toy)
    seen, finished = [], []
    monkeypatch.setattr(cls, "calibrate", lambda self, maps: seen.extend(maps))
    monkeypatch.setattr(cls, "finish", lambda self, maps: finished.append(maps) or -maps["distance"].sqrt() - 5)
    monkeypatch.setattr(stages, "load_method", lambda _: cls)
    done = run(tree, toy, tmp_path, view="whole:32+tiled:32:8")
    assert [list(maps) for maps in seen] == [["distance"]] * 2 * done.about.dataset.held_out
    assert not torch.equal(seen[0]["distance"], seen[1]["distance"])
    assert len(finished) % 2 == 0
    assert done.evidence.images["score"].ge(0).all()  # the maps are negative, what is fused of them is not
    monkeypatch.setattr(cls, "finish", lambda self, maps: maps["distance"] - float("inf"))
    with pytest.raises(HrbenchError, match="NaN or infinite"):
        run(tree, toy, tmp_path / "infinite", view="whole:32+tiled:32:8")


def test_held_out_images_are_never_fitted(tree, toy):
    category = load_dataset("folder", tree).categories[0]
    fit, held = split_normals(category)
    assert not {sample.id for sample in fit} & {sample.id for sample in held}
    assert len(fit) + len(held) == len(category.train)
    assert all(sample.split == "train" for sample in (*fit, *held))


def test_fit_reads_no_mask_and_no_test_image(tree, toy, tmp_path, monkeypatch):
    read = []
    import hrbench.engine.inference
    import hrbench.engine.normals

    for module in (hrbench.engine.normals, hrbench.engine.inference):
        real = module.read_image
        monkeypatch.setattr(module, "read_image", lambda path, real=real: read.append(path) or real(path))

    class StopHere(BaseException):
        pass

    def no_mask(*args):
        raise StopHere

    monkeypatch.setattr(sample_module, "read_mask", no_mask)
    with pytest.raises(StopHere):
        run(tree, toy, tmp_path)
    before_test = [path for path in read if "test" not in path.parts]
    assert {path.parts[-3] for path in before_test} == {"train"}
    first_test = next(index for index, path in enumerate(read) if "test" in path.parts)
    assert all("test" in path.parts for path in read[first_test:])  # training is over when the test begins


def broken_copy(tree, folder):
    return shutil.copytree(tree, folder)


def test_a_truncated_test_image_is_named_and_the_fit_is_kept(tree, toy, tmp_path):
    root = broken_copy(tree, tmp_path / "data")
    victim = root / "bolt" / "test" / "good" / "002.png"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(HrbenchError, match=r"test.good.002\.png"):
        run(root, toy, tmp_path / "out")
    victim.write_bytes(content)
    assert (job_for(root, toy).folder(tmp_path / "out").path / "weights.safetensors").is_file()
    assert list(job_for(root, toy).folder(tmp_path / "out").path.glob("partial/evidence-*"))
    assert run(root, toy, tmp_path / "out").records["value"].notna().any()


def test_empty_and_wrongly_sized_masks_are_named(tree, toy, tmp_path):
    from PIL import Image

    root = broken_copy(tree, tmp_path / "data")
    mask = root / "bolt" / "ground_truth" / "dent" / "001_mask.png"
    Image.new("L", (70, 48)).save(mask)
    with pytest.raises(HrbenchError, match=r"001_mask\.png: no defect pixel"):
        run(root, toy, tmp_path / "out")
    Image.new("L", (10, 10), 255).save(mask)
    with pytest.raises(HrbenchError, match=r"001_mask\.png.*48"):
        run(root, toy, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "papr"}, "unknown preset.*did you mean 'paper'|Known: demo, native"),
        ({"view": "tiled:33"}, "expected whole:SIZE"),
        ({"options": {"stepz": 3}}, "unknown option.*did you mean 'steps'"),
    ],
)
def test_wrong_names_are_found_before_anything_runs(tree, toy, changes, message):
    with pytest.raises(HrbenchError, match=message):
        job_for(tree, toy, **changes)


def test_wrong_tile_sizes_and_devices_are_named(tree, toy, tmp_path):
    with pytest.raises(HrbenchError, match="multiples of 2, 31 is not; use 30 or 32"):
        run(tree, toy, tmp_path, view="tiled:31:8")
    from hrbench.engine.device import pick_device

    with pytest.raises(HrbenchError, match="device 'gpu9'"):
        pick_device("gpu9")


def test_a_method_that_gives_nan_is_stopped(tree, toy, tmp_path, monkeypatch):
    from hrbench.method import Method

    monkeypatch.setattr(Method, "finish", lambda self, maps: next(iter(maps.values())) * float("nan"))
    with pytest.raises(HrbenchError, match="NaN or infinite"):
        run(tree, toy, tmp_path)


def test_one_training_image_is_too_few(tmp_path, toy):
    root = write_tree(tmp_path / "one", train=1)
    with pytest.raises(HrbenchError, match="1 normal training image, expected at least 2"):
        run(root, toy, tmp_path / "out")


def test_changed_images_are_noticed(tree, toy, tmp_path):
    from PIL import Image

    root = broken_copy(tree, tmp_path / "data")
    done = run(root, toy, tmp_path / "out")
    assert run(root, toy, tmp_path / "out").folder == done.folder
    Image.new("RGB", (70, 48), "white").save(root / "bolt" / "test" / "good" / "000.png")
    with pytest.raises(HrbenchError, match="done before on other images of the same names"):
        run(root, toy, tmp_path / "out")


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_unfinished_run_repeats_only_what_saw_other_images(tree, toy, tmp_path, monkeypatch, part):
    from PIL import Image

    root = broken_copy(tree, tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "metric_rows", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(root, toy, tmp_path / "out")
    changed = {"train": root / "bolt" / "train" / "good", "test": root / "bolt" / "test" / "good"}[part]
    Image.new("RGB", (70, 48), (90, 80, 70)).save(changed / "001.png")
    steps, written = [], []
    real_step, real_collector = torch.optim.Adam.step, shards.EvidenceCollector
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a: steps.append(1) or real_step(self, *a))
    monkeypatch.setattr(shards, "EvidenceCollector", lambda way: written.append(1) or real_collector(way))
    resumed = run(root, toy, tmp_path / "out")
    assert len(steps) == (20 if part == "train" else 0)
    assert len(written) == (3 if part == "train" else 1)
    fresh = run(root, toy, tmp_path / "fresh")
    assert np.array_equal(resumed.evidence.defect_scores, fresh.evidence.defect_scores)
    assert resumed.evidence.images.drop(columns="seconds").equals(fresh.evidence.images.drop(columns="seconds"))


def test_adapters_of_one_name_but_other_code_are_different_runs(tree, toy, tmp_path):
    from pathlib import Path

    other = tmp_path / "toy_adapter.py"
    other.write_text(Path(toy).read_text().replace("# ", "#  ").replace("return Prediction", "return  Prediction"))
    assert job_for(tree, str(other)).name != job_for(tree, toy).name
    assert job_for(tree, str(other)).method_name == job_for(tree, toy).method_name


def test_eight_and_sixteen_bit_images_share_a_batch(tree, toy, tmp_path):
    import tifffile
    from PIL import Image

    plain = run(tree, toy, tmp_path / "a")
    root = broken_copy(tree, tmp_path / "data")
    for path in sorted((root / "bolt").glob("t*/*/00[02].png")):
        pixels = np.asarray(Image.open(path)).astype(np.uint16) * 257
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tiff"), pixels)
    mixed = run(root, toy, tmp_path / "b")
    scores = [
        r.evidence.images.assign(id=lambda f: f["id"].str.split(".").str[0]).set_index("id")["score"]
        for r in (plain, mixed)
    ]
    pd.testing.assert_series_equal(*scores, rtol=1e-4)


def test_a_method_that_draws_while_it_predicts_resumes_alike(tree, tmp_path, monkeypatch, toy):
    from hrbench.registry import load_method

    cls = load_method(toy)
    plain = cls.predict

    def noisy(self, batch):
        return plain(self, batch + 0.01 * torch.randn_like(batch))

    monkeypatch.setattr(cls, "predict", noisy)
    job = job_for(tree, toy)
    monkeypatch.setattr(stages, "load_method", lambda _: cls)
    whole = run_job(job, tmp_path / "a", PROTOCOLS, device=CPU)
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "metric_rows", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_job(job, tmp_path / "b", PROTOCOLS, device=CPU)
    shutil.rmtree(job.folder(tmp_path / "b").path / "partial" / "evidence-00001")
    resumed = run_job(job, tmp_path / "b", PROTOCOLS, device=CPU)
    assert np.array_equal(resumed.evidence.defect_scores, whole.evidence.defect_scores)


def test_learnt_buffers_may_change_their_size(tree, tmp_path, monkeypatch):
    adapter = tmp_path / "bank.py"
    adapter.write_text(
        "import torch\n"
        "from hrbench.method import Method, Prediction, Preset\n"
        "class Bank(Method):\n"
        "    title = paper = 'bank'\n"
        "    presets = {'native': Preset('tiled:32:8')}\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('bank', torch.zeros(0, 3))\n"
        "    def fit(self, normals, context):\n"
        "        self.bank = torch.stack([x.mean(dim=(1, 2)) for x in normals])\n"
        "    def predict(self, batch):\n"
        "        distance = (batch[:, None] - self.bank[:, :, None, None]).square().sum(dim=2)\n"
        "        return Prediction({'m': distance.min(dim=1).values})\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "metric_rows", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tree, str(adapter), tmp_path / "out")
    assert run(tree, str(adapter), tmp_path / "out").records["value"].notna().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "abc"}, "option steps of .* is 'abc', expected int"),
        ({"steps": True}, "expected int"),
        ({"noise": "low"}, "expected float"),
        ({"weights": {1, 2}}, "expected str"),
    ],
)
def test_options_of_another_type_are_named(tree, toy, options, message):
    with pytest.raises(HrbenchError, match=message):
        job_for(tree, toy, options=options)


def test_options_and_seeds_that_make_no_sense(tree, toy, tmp_path):
    with pytest.raises(HrbenchError, match="steps is -2, expected at least 1"):
        run(tree, toy, tmp_path, options={"steps": -4})
    with pytest.raises(HrbenchError, match="seed is -1"):
        job_for(tree, toy, seed=-1)


def test_records_have_intervals_and_detection_limits(tree, toy, tmp_path):
    records = run(
        tree, toy, tmp_path, [load_protocol("native@1"), dataclasses.replace(PROTOCOLS[0], name="two")]
    ).records
    for protocol, suffix in (("native", ""), ("two", "_matched")):
        names = {f"{name}{suffix}" for name in ("a50", "a90", "a90_95")}
        assert names <= set(records.loc[records["protocol"] == protocol, "metric"])
    known = records.dropna(subset=["ci_low", "value"])
    assert (known["ci_low"] <= known["value"] + 1e-9).all()
    assert (known["value"] <= known["ci_high"] + 1e-9).all()


def test_one_pass_serves_protocols_that_collect_differently(tree, toy, tmp_path):
    low = load_protocol("lowres256")
    done = run_job(job_for(tree, toy), tmp_path, [*PROTOCOLS, low], device=CPU)
    assert set(done.records["protocol"]) == {"native", "lowres256"}
    assert done.load_evidence(low).spec.side == 256
    assert done.load_evidence(PROTOCOLS[0]).spec.side is None
    with pytest.raises(HrbenchError, match="needs evidence collected as 512-max-8"):
        run_job(job_for(tree, toy), tmp_path, [load_protocol("lowres512")], device=CPU)


@pytest.mark.parametrize("view", [None, "whole:32+tiled:32:8@0.5"])
def test_evidence_does_not_depend_on_what_is_done_ahead(tree, toy, tmp_path, monkeypatch, view):
    options = {"decide": True}
    overlapped = run(tree, toy, tmp_path / "a", view=view, options=options)

    def one_after_another(function, items, **_):
        yield from (function(item) for item in items)

    with monkeypatch.context() as patch:
        for module in (stages, shards, inference_module):
            patch.setattr(module, "ahead", one_after_another)
        alone = run(tree, toy, tmp_path / "b", view=view, options=options)
    monkeypatch.setattr(inference_module, "WORKERS_CPU", 5)
    many = run(tree, toy, tmp_path / "c", view=view, options=options)
    for other in (alone, many):
        assert_same_bits(other.evidence, overlapped.evidence, but=("seconds",))
        pd.testing.assert_frame_equal(other.records, overlapped.records)


def test_no_thread_is_left_by_a_job_that_fails_or_is_interrupted(tree, toy, tmp_path, monkeypatch):
    before = threading.active_count()
    for number, error in enumerate((HrbenchError("no"), KeyboardInterrupt())):
        calls = []

        def mask(*_, error=error, calls=calls):
            calls.append(threading.current_thread())
            if len(calls) == 3:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(shards, "sample_mask", mask)
            with pytest.raises(type(error)) as held:  # its traceback keeps the frames alive
                run(tree, toy, tmp_path / str(number))
        assert threading.main_thread() not in calls  # evidence is counted beside the forward pass
        assert held.value is error
        assert threading.active_count() == before
        run(tree, toy, tmp_path / str(number))
    runs = [read_runs(tmp_path / str(number))[0] for number in range(2)]
    assert_same_bits(runs[0].evidence, runs[1].evidence, but=("seconds",))
    assert threading.active_count() == before


def test_what_was_predicted_before_a_bad_file_is_kept(tree, toy, tmp_path):
    root = broken_copy(tree, tmp_path / "data")
    victim = root / "bolt" / "test" / "good" / "000.png"  # the last one of the second chunk
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(HrbenchError, match=r"test.good.000\.png"):
        run(root, toy, tmp_path / "out")
    kept = job_for(root, toy).folder(tmp_path / "out").path / "partial"
    assert [path.name for path in kept.glob("evidence-*")] == ["evidence-00000"]


def test_a_chunk_of_which_an_image_failed_leaves_no_shard(tree, toy, tmp_path, monkeypatch):
    job, real = job_for(tree, toy), shards.sample_mask
    failing = job.category.test[4]  # the second of three: when it fails the third may be in a thread's hands

    def sample_mask(sample, size):
        if sample is failing:
            raise HrbenchError("fails once")
        return real(sample, size)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "sample_mask", sample_mask)
        with pytest.raises(HrbenchError, match="fails once"):
            run_job(job, tmp_path, PROTOCOLS, device=CPU)
    assert [path.name for path in job.folder(tmp_path).scratch.glob("evidence-*")] == ["evidence-00000"]
    assert len(run_job(job, tmp_path, PROTOCOLS, device=CPU).evidence.images) == 8


def test_conditions_reach_run_and_tables_and_a_done_job_takes_new_ones(tree, toy, tmp_path, monkeypatch):
    job, plain = job_for(tree, toy), run(tree, toy, tmp_path)
    records, said = plain.records, plain.about.dataset
    assert not plain.files.table("conditions").exists()
    assert "conditions_sha256" not in plain.files.record.read_text()
    test = tuple(dataclasses.replace(s, condition=("dark", "bright")[i % 2]) for i, s in enumerate(job.category.test))
    lit = dataclasses.replace(job, category=dataclasses.replace(job.category, test=test))
    other = run_job(lit, tmp_path / "other", PROTOCOLS, device=CPU)
    assert other.folder.name == plain.folder.name
    assert other.evidence.images["condition"].tolist() == [sample.condition for sample in test]
    assert other.conditions["condition"].unique().tolist() == ["bright", "dark"]
    assert "conditions.parquet" in other.about.files
    assert verify_run(other, reference=reference_of(lit.category)).problems == ()
    (problem,) = verify_run(other, reference=reference_of(job.category)).problems
    assert problem.startswith("dataset: other conditions of images than the descriptor says")
    monkeypatch.setattr(stages, "Fit", None)
    again = run_job(lit, tmp_path, PROTOCOLS, device=CPU)
    assert_same_bits(again.evidence, other.evidence, but=["seconds"])
    pd.testing.assert_frame_equal(again.conditions, other.conditions)
    assert again.about.dataset == other.about.dataset
    back = run_job(job, tmp_path, PROTOCOLS, device=CPU)
    assert back.about.dataset == said
    assert not back.files.table("conditions").exists()
    assert "conditions.parquet" not in back.about.files
    pd.testing.assert_frame_equal(back.records, records)


@pytest.mark.parametrize("victim", ["write_groups", "_write_tables", "write_record"])
def test_a_run_whose_rescoring_was_killed_says_so_and_is_scored_by_the_next(tree, toy, tmp_path, monkeypatch, victim):
    done = run(tree, toy, tmp_path)
    groups = {name: name[-5] for name in done.evidence.images["id"]}
    expected = rescore(run(tree, toy, tmp_path / "whole"), PROTOCOLS, groups=groups)
    real, calls = getattr(scoring, victim), []

    def killed(*arguments):
        calls.append(arguments)
        if victim != "write_record" or len(calls) == 2:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, victim, killed)
        with pytest.raises(Killed):
            rescore(done, PROTOCOLS, groups=groups)
    for read in (lambda: Run(done.folder).records, lambda: rescore(Run(done.folder), PROTOCOLS)):
        with pytest.raises(HrbenchError, match="was interrupted while"):
            read()
    again = rescore(Run(done.folder), PROTOCOLS, groups=groups)
    pd.testing.assert_frame_equal(again.records, expected.records)
    assert_same_bits(again.evidence, expected.evidence, but=("seconds",))
    assert again.about.dataset.groups_sha256 == expected.about.dataset.groups_sha256


def test_a_rescoring_that_fails_changes_nothing(tree, toy, tmp_path, monkeypatch):
    done = run(tree, toy, tmp_path)
    before = (done.folder / "run.json").read_bytes()
    monkeypatch.setattr(scoring, "measure", lambda *_: (_ for _ in ()).throw(HrbenchError("no")))
    with pytest.raises(HrbenchError, match="no"):
        rescore(done, PROTOCOLS, anew=True, groups=dict.fromkeys(done.evidence.images["id"], "one"))
    assert (done.folder / "run.json").read_bytes() == before
    assert set(Run(done.folder).evidence.images["group"]) == {""}
