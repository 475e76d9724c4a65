"""The GPU path without a GPU: every method from the fit to the map, and its evidence, on what only says it is a device.

The numbers below say how often the host waits for the device today. Whoever removes a wait lowers them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bits

from hrbench import create_method, list_methods, load_dataset, load_protocol
from hrbench._util.fake_cuda import Log, fake_cuda
from hrbench.data.sample import Sample
from hrbench.engine import anomaly_map, counting
from hrbench.engine.anomaly_map import AnomalyMap, finish, finish_looks
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import View
from hrbench.errors import Stopped
from hrbench.evidence import EvidenceCollector, EvidenceSpec, NormalTally
from hrbench.method import Method
from hrbench.methods._pseudo_anomalies import GENERATORS, corrupt
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job

GPU, CPU = torch.device("cuda"), torch.device("cpu")

WAITS_FOR_LOSSES = 1  # of a stage of no more steps than are read together
MOMENTS = {"_flow.py": 2}  # of the features of two scales
WAITS_BESIDE_LOSSES = {  # by method and the file that waits, in a fit of as many inputs and steps as below
    "fastflow": MOMENTS,
    "gaussian": {"gaussian.py": 2},
    "gaussian-paper": {"gaussian.py": 4},
    "knn": {"knn.py": 1},
    "knn-paper": {"knn.py": 1},
    "uflow": MOMENTS | {"uflow.py": 2},
    "uflow-window": MOMENTS,
}
WAITS_OF_A_BATCH = {"knn-paper": 1}  # of predictions: places of the bank, each once

RESNET = {"weights": "random", "backbone": "resnet10t", "strides": (4, 8)}
FLOW = {**RESNET, "flow_steps": 2, "steps": 3, "batch_size": 2}
TOKENS = {"weights": "random", "steps": 3, "batch_size": 2, "flow_steps": 2, "norm": "none"}
PER_POSITION = {"per_position": True, "channels": 8, "input_size": 64, "ridge": 0.01, "blur": 4.0}
AS_PUBLISHED = {"corruption": "polygon", "lr_period": 2, "clip": None, "residual": "minmax", "blur": 4.0}
LIKELIHOOD = {"norm": "layer-affine", "map": "likelihood", "input_size": 64}
TEACHERS = {"weights": "random", "teacher": "resnet10t", "second_teacher": "test_resnet", "strides": (4, 8)}
TRAINED = {"batch_size": 2, "steps": 2, "discriminator_batch_size": 2, "discriminator_steps": 2, "width": 4}
DECODER = {"decoder_width": 32, "decoder_heads": 4, "decoder_depth": 2, "mae_depth": 1}
STAGES = {"mae_batch_size": 2, "batch_size": 2, "mae_steps": 2, "steps": 2}
ISSTAD = {"weights": "random", "backbone": "test_vit", **DECODER, **STAGES}
L2BT = {"weights": "random", "teacher": "test_vit", "blocks": (0, 1), "steps": 3, "batch_size": 2}

WHOLE, TILED, FUSED = "whole:64:bilinear", "tiled:64:16", "whole:64+tiled:64:16@0.8"
# What the presets are made of, small: methods by name, a dash and the kind of the preset.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fastflow": (FUSED, FLOW),
    "fastflow-paper": (WHOLE, {**FLOW, **LIKELIHOOD, "steps": None, "epochs": 3}),
    "fastflow-deit": (WHOLE, {**TOKENS, "backbone": "test_vit", "block": 1, "map": "likelihood", "hidden_ratio": 0.2}),
    "fastflow-cait": (TILED, {**TOKENS, "backbone": "cait_xxs24_224", "block": 0}),
    "gaussian": (FUSED, {**RESNET, "reduction": "pca", "channels": 8}),
    "gaussian-paper": (WHOLE, {**RESNET, **PER_POSITION}),
    "isstad": (FUSED, {**ISSTAD, "corruption": "tiny"}),
    "isstad-paper": ("whole:64:bilinear-aliased", {**ISSTAD, **AS_PUBLISHED, "input_size": 64}),
    "knn": (FUSED, {**RESNET, "candidates": 200, "bank": 20, "projected": 8}),
    "knn-paper": (TILED, {**RESNET, "candidates": None, "bank": None, "share": 0.02, "blur": 4.0, "reweight": 3}),
    "l2bt": (FUSED, L2BT),
    "l2bt-paper": ("whole:64:square", {**L2BT, "blur_padding": "zero"}),
    "rstpm": (FUSED, {**TEACHERS, **TRAINED, "anomalies": "tiny"}),
    "rstpm-paper": (WHOLE, {**TEACHERS, **TRAINED, "anomalies": "perlin", "combine": "geomean"}),
    "uflow": (FUSED, {**FLOW, "recalibrate": "scale"}),
    "uflow-window": (TILED, {**FLOW, "test": "window"}),
    "uflow-paper-resnet18": (WHOLE, {**FLOW, **LIKELIHOOD, "test": "tree", "interpolation": "bilinear"}),
    "uflow-paper": (WHOLE, {**TOKENS, "backbone": "test_vit", "coarse_backbone": "test_vit2", "blocks": (1, 1)}),
}  # fmt: skip


class Counted(Fit):
    """Counts its stages."""

    stages = 0

    def train(self, *args: Any, **options: Any) -> list[float]:
        self.stages += 1
        return super().train(*args, **options)


@pytest.fixture
def log() -> Iterator[Log]:
    with fake_cuda() as log:
        yield log


def made(case: str, device: torch.device) -> Method:
    with seeded(0):
        return create_method(case.partition("-")[0], **CASES[case][1]).to(device)


def fitted(normals: ViewedNormals, context: Fit) -> Method:
    method = context.method.train()
    with seeded(0):
        method.fit(normals, context)
    return method.eval()


def test_every_method_is_rehearsed() -> None:
    assert {case.partition("-")[0] for case in CASES} == set(list_methods())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_from_the_fit_to_the_map(case, precision, log, tree, tmp_path):
    view, category = View.parse(CASES[case][0]), load_dataset("folder", tree).categories[0]
    normals, held_out = ViewedNormals(category.train[:2], view), ViewedNormals(category.train[2:4], view)
    options = {"held_out": held_out, "seed": 0, "device": GPU, "precision": precision}

    context = Counted(made(case, GPU), **options)
    log.clear()
    method = fitted(normals, context)
    waits = Counter(line.rpartition(" at ")[2].partition(":")[0] for line in log.waits)
    assert waits.pop("training.py", 0) == WAITS_FOR_LOSSES * context.stages
    assert waits == WAITS_BESIDE_LOSSES.get(case, {})

    if context.stages and precision == "float32":
        begun = {**options, "checkpoint": tmp_path / "fit.pt"}
        with pytest.raises(Stopped):
            fitted(normals, Fit(made(case, GPU), **begun, stop=lambda: True))
        resumed = learnt_state(fitted(normals, Fit(made(case, GPU), **begun)))
        assert all(torch.equal(value, resumed[key]) for key, value in learnt_state(method).items())

    if type(method).calibrate is not Method.calibrate:
        with torch.no_grad():
            items = predict(method, held_out.samples, view, GPU, precision=precision)
            method.calibrate(maps for item in items for maps in item.looks)
    looks = [look.text for look in view.looks]
    fusion = None
    if len(looks) > 1:
        items = predict(method, held_out.samples, view, GPU, precision=precision)
        fusion = Fusion.of(looks, (finish_looks(method, item) for item in items))

    samples = category.test[:3]
    log.clear()
    items = list(predict(method, samples, view, GPU, batch_size=4, precision=precision))
    inputs = len(ViewedNormals(samples, view))
    assert len(log.waits) == WAITS_OF_A_BATCH.get(case, 0) * math.ceil(inputs / 4), log.waits
    log.waits.clear()
    found = [finish(method, item, fusion) for item in items]
    assert not log.waits
    assert not log.doubles
    for item in items:
        assert {map_.dtype for maps in item.looks for map_ in maps.values()} == {torch.float32}

    if precision == "float32":  # in bfloat16 torch casts elsewhere on a CPU
        own = made(case, CPU)
        load_learnt_state(own, learnt_state(method))
        for item, there in zip(predict(own, samples, view, CPU, batch_size=4), found, strict=True):
            here = finish(own, item, fusion)
            np.testing.assert_allclose(there.scores(), here.scores(), rtol=1e-3, atol=1e-5)
            if here.decided is not None:
                assert np.mean(there.decision() != here.decision()) < 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_job_on_the_device_scores_as_on_the_host(precision, tree, toy, tmp_path, monkeypatch):
    category = load_dataset("folder", tree).categories[0]
    job = make_job(
        category, toy, preset="native", view=FUSED, options={"steps": 2, "decide": True}, precision=precision
    )
    here = run_job(job, tmp_path / "host", [load_protocol("native")], device=CPU)
    with fake_cuda():
        there = run_job(job, tmp_path / "device", [load_protocol("native")], device=GPU)
        monkeypatch.setattr(anomaly_map, "COUNTING", set())
        fetched = run_job(job, tmp_path / "fetched", [load_protocol("native")], device=GPU)
    assert there.about.device == "fake CUDA"
    np.testing.assert_allclose(there.evidence.defect_scores, here.evidence.defect_scores, rtol=1e-4)
    for column in ("decision_tp", "decision_fp"):
        assert there.evidence.images[column].equals(here.evidence.images[column])
    assert_same_bits(there.evidence, fetched.evidence, but=("seconds",))


def on_its_way(scores: np.ndarray, decision: np.ndarray) -> AnomalyMap:
    """Return a map that a method left on the device."""
    looks = ({"m": torch.from_numpy(scores).to(GPU, non_blocking=True)},)
    decided = torch.from_numpy(decision).to(GPU, non_blocking=True)
    sample = Sample("test/7.png", None, None, 1, "dent", "test", "bolt")
    return finish(Method(), NativeMaps(sample, looks, decided, ()), whole=False)


def counted(rule: str = "max") -> None:
    """Count a map on the device, and compare with the host."""
    scores = np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32)
    mask, decision = scores > 2, scores > 1.5
    here, there = EvidenceCollector(EvidenceSpec(rule)), EvidenceCollector(EvidenceSpec(rule))
    here.update("a", scores, mask, decision=decision)
    there.update_predicted("a", on_its_way(scores, decision), mask)
    assert_same_bits(there.result(), here.result(), but=("score", "seconds"))
    np.testing.assert_allclose(there.result().images["score"], here.result().images["score"], rtol=1e-13)


@pytest.mark.parametrize("rule", ["max", "mean", "top:0.1"])
def test_the_host_waits_once_for_the_evidence_of_an_image(rule, log):
    counted(rule)
    waits = [line.partition(" at ")[0] for line in log.waits]
    assert waits == ["Event.synchronize"] * 2, log.waits  # and then for the seconds, which are there by now
    assert {line.partition(" at ")[2].partition(":")[0] for line in log.doubles} == (
        {"counting.py"} if rule == "mean" else set()
    )


def test_held_out_normals_are_measured_on_the_device(log):
    scores = np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32)
    (found,) = NormalTally.of_predicted(on_its_way(scores, scores > 1), [None])
    assert len(log.waits) == 1, log.waits
    expected = NormalTally.of(scores)
    assert np.array_equal(found.pixels.keys, expected.pixels.keys)
    assert np.array_equal(found.pixels.cumulative, expected.pixels.cumulative)
    assert (found.mean, found.std) == pytest.approx((expected.mean, expected.std), rel=1e-13)


def left_on_the_host(places, device):
    return places


def made_on_the_wrong_device(bits, shift, keys=counting._keys):
    return keys(bits, shift) | torch.zeros(len(bits), dtype=torch.int32)


def in_float64(bits, shift, keys=counting._keys):
    return keys(bits.double().int(), shift)


def waiting_in_a_loop(flags):
    decided = sum(int(piece.sum()) for piece in torch.split(flags, 1000))
    return torch.full((), decided, dtype=torch.int32, device=flags.device)


@pytest.mark.parametrize(
    ("name", "slip", "found"),
    [
        ("to_device", left_on_the_host, {"same device": 1}),
        ("_keys", made_on_the_wrong_device, {"same device": 1}),
        ("_keys", in_float64, {"float64": 1}),
        ("_total", waiting_in_a_loop, {"wait": 4}),
        ("_total", counting._total, {}),
    ],
)
def test_slips_in_the_counting_are_noticed(name, slip, found, log, monkeypatch):
    monkeypatch.setattr(counting, name, slip)
    noticed: Counter[str] = Counter()
    try:
        counted()
    except RuntimeError as error:
        noticed["same device"] += "same device" in str(error)
    mine = " at test_rehearsal_on_fake_cuda.py:"
    noticed += Counter({"float64": sum(mine in line for line in log.doubles)})
    noticed += Counter({"wait": sum(mine in line for line in log.waits)})
    assert noticed == found


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_host_never_waits_while_defects_are_drawn(generator, log):
    images = torch.rand((8, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(GPU, non_blocking=True)
    corrupt(images, np.random.default_rng(0), generator=generator, probability=1.0)
    assert not log.waits
    assert not log.doubles
