"""Networks in bfloat16: when it is chosen, what runs in it and what does not, and that it is recorded."""

from __future__ import annotations

import pytest
import torch
from helpers import SMALL_METHODS
from torch import nn

from hrbench import HrbenchError, create_method, load_dataset, load_protocol
from hrbench.cli import main
from hrbench.engine.inference import predict
from hrbench.engine.training import Fit, seeded
from hrbench.engine.views import View
from hrbench.method import Method, Prediction
from hrbench.precision import autocast, full_precision, pick_precision
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.store import read_runs
from hrbench.testing import StackedNormals

CPU = torch.device("cpu")
GPU = torch.device("cuda")
SMALL = {**SMALL_METHODS, "uflow": {**SMALL_METHODS["uflow"], "recalibrate": "scale"}}


def test_auto_takes_bfloat16_only_where_the_device_computes_with_it(monkeypatch):
    assert pick_precision("auto", CPU) == "float32"
    assert pick_precision("bfloat16", CPU) == "bfloat16"
    for capability, expected in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert pick_precision("auto", GPU) == expected
        assert pick_precision("float32", GPU) == "float32"
    with pytest.raises(HrbenchError, match=r"unknown precision 'bfloat'; did you mean 'bfloat16'"):
        pick_precision("bfloat", CPU)


def test_full_precision_holds_inside_autocast_and_on_devices_without_it():
    x = torch.ones(2, 2)
    with autocast(CPU, "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (x @ x).dtype == torch.float32
    with full_precision(torch.device("meta")):
        assert torch.empty(2, 2, device="meta").dtype == torch.float32


def test_the_discriminator_says_its_logit_in_float32():
    method = create_method("rstpm", **SMALL["rstpm"]).eval()
    with torch.no_grad(), autocast(CPU, "bfloat16"):
        logit = method.predict(torch.rand(1, 3, 64, 64)).maps["logit"]
    assert logit.dtype == torch.float32
    assert not torch.equal(logit, logit.bfloat16().float())


class Convolution(Method):
    """Remembers in which type its network worked."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 1, 3, padding=1)
        self.seen: list[torch.dtype] = []

    def fit(self, normals, context):
        features = context.features(normals, lambda batch: [self.network(batch).detach()])
        self.kept = next(features.batches(2, steps=1, seed=0))[0].dtype
        optimizer = torch.optim.Adam(self.parameters())
        context.train(normals, self.loss, optimizer, steps=2, batch_size=2)
        self.state = {value.dtype for entry in optimizer.state.values() for value in entry.values()}

    def loss(self, batch):
        found = self.network(batch)
        self.seen.append(found.dtype)
        return found.float().square().mean()

    def predict(self, batch):
        found = self.network(batch)[:, 0]
        self.seen.append(found.dtype)
        return Prediction({"anomaly": found})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_reaches_predict_losses_and_features_but_no_parameter(precision, tree):
    expected, method = getattr(torch, precision), Convolution()
    normals = StackedNormals(torch.rand(4, 3, 8, 8))
    method.fit(normals, Fit(method, held_out=normals, seed=0, device=CPU, precision=precision))
    assert method.kept == expected
    samples = load_dataset("folder", tree).categories[0].test[:2]
    (first, _) = predict(method, samples, View.parse("tiled:32:8"), CPU, precision=precision)
    assert set(method.seen) == {expected}
    assert first.maps["anomaly"].dtype == torch.float32
    assert {parameter.dtype for parameter in method.parameters()} == method.state == {torch.float32}
    assert {parameter.grad.dtype for parameter in method.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_method_in_bfloat16_is_close_to_float32(name):
    maps: dict[str, list[torch.Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        with seeded(0):
            method = create_method(name, **SMALL[name])
            side = -(-64 // method.multiple) * method.multiple
            inputs = torch.rand((4, 3, side, side), generator=torch.Generator().manual_seed(0))
            normals = StackedNormals(inputs)
            method.train()
            method.fit(normals, Fit(method, held_out=normals, seed=0, device=CPU, precision=precision))
            method.eval()
        with torch.no_grad(), autocast(CPU, precision):
            for key, map_ in method.predict(inputs).maps.items():
                maps.setdefault(key, []).append(map_.float())
        assert all(parameter.dtype == torch.float32 for parameter in method.parameters())
    for exact, rough in maps.values():
        assert rough.isfinite().all()
        assert not torch.equal(exact, rough)
        assert torch.corrcoef(torch.stack([exact.flatten(), rough.flatten()]))[0, 1] > 0.98


def test_flows_and_their_likelihood_stay_in_float32():
    with seeded(0):
        method = create_method("fastflow", **SMALL["fastflow"])
    features = [x.float() for x in method.features(torch.rand(2, 3, 64, 64))]
    expected = method.latents(features), method.loss(features)
    with autocast(CPU, "bfloat16"):
        found = method.latents(features), method.loss(features)
    assert torch.equal(found[1], expected[1])
    for own, other in zip(found[0][0] + found[0][1], expected[0][0] + expected[0][1], strict=True):
        assert torch.equal(own, other)


def test_heads_of_isstad_stay_in_float32():
    with seeded(0):
        method = create_method("isstad", **SMALL["isstad"]).eval()
    with autocast(CPU, "bfloat16"):
        repaired, logits = method.look(method.network.normalised(torch.rand(2, 3, 64, 64)))
    for found in (repaired, logits):
        assert found.dtype == torch.float32
        assert not torch.equal(found, found.bfloat16().float())


def test_a_run_is_identified_by_its_precision_and_records_it(tree, toy, tmp_path):
    category = load_dataset("folder", tree).categories[0]
    plain, rough = (make_job(category, toy, preset="native", precision=p) for p in ("float32", "bfloat16"))
    assert make_job(category, toy, preset="native").name == plain.name != rough.name
    done = run_job(rough, tmp_path, [load_protocol("native")], device=CPU)
    assert done.about.precision == "bfloat16"
    assert done.about.compiled is False
    with pytest.raises(HrbenchError, match="unknown precision 'auto'"):
        make_job(category, toy, preset="native", precision="auto")  # which one depends on the device


def test_the_command_takes_a_precision(tree, toy, tmp_path, capsys):
    command = ["run", "--root", str(tree), "--methods", toy, "--categories", "bolt", "--set", "steps=2"]
    for precision in ("auto", "bfloat16"):
        assert main([*command, "--output", str(tmp_path), "--precision", precision, "--device", "cpu"]) == 0
    assert sorted(run.about.precision for run in read_runs(tmp_path)) == ["bfloat16", "float32"]
    assert main([*command, "--output", str(tmp_path), "--precision", "half"]) == 2
    assert "unknown precision 'half'" in capsys.readouterr().err


def test_without_a_compiler_nothing_changes_but_a_warning(monkeypatch, caplog):
    from hrbench.backbones import compile_frozen

    method = create_method("fastflow", **SMALL["fastflow"])

    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    assert compile_frozen(method, CPU) is False
    (record,) = caplog.records
    assert record.getMessage() == (
        "frozen backbones are not compiled, torch.compile does not work on cpu: no C++ compiler"
    )


def test_only_frozen_backbones_are_compiled(monkeypatch):
    from hrbench.backbones import compile_frozen

    method, compiled = create_method("fastflow", **SMALL["fastflow"]), []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    assert compile_frozen(method, CPU) is True
    assert compiled == [method.backbone]
    assert compile_frozen(Convolution(), CPU) is False
