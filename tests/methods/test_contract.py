"""The contract suite over every registered method: a new method is tested as soon as its file is there."""

import sys
import types

import pytest
import torch
from helpers import BUILT_IN, SMALL_METHODS

import hrbench
from hrbench.engine.training import learnt_state
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.method import Method
from hrbench.registry import load_method, source_digest
from hrbench.testing import check_method


def reference_of(cls):
    """Return the reference under which a class that a test has made is found."""
    module = sys.modules.setdefault("made_by_a_test", types.ModuleType("made_by_a_test"))
    cls.__module__ = module.__name__
    module.Made = cls
    return "made_by_a_test:Made"


@pytest.mark.parametrize("name", BUILT_IN)
def test_contract(name):
    check_method(name, **SMALL_METHODS.get(name, {"preset": "demo"}))


@pytest.mark.parametrize("name", BUILT_IN)
def test_presets_are_complete_and_their_views_parse(name):
    cls = load_method(name)
    assert {"paper", "native", "demo"} <= set(cls.presets)
    for preset in cls.presets.values():
        View.parse(preset.view)
        hrbench.registry.check_options(cls, name, preset.options)
    assert all(look.overlap is not None for look in View.parse(cls.presets["native"].view).looks)
    assert cls.presets["demo"].options["weights"] in ("random", "bundled")


def test_methods_come_by_name_path_and_module(toy, tmp_path):
    assert issubclass(load_method("fastflow"), Method)
    assert load_method(toy).__name__ == "Toy"
    assert load_method("hrbench.methods.l2bt:L2BT") is load_method("l2bt")
    with pytest.raises(HrbenchError, match="did you mean 'fastflow'"):
        load_method("fastfow")
    with pytest.raises(HrbenchError, match="no such file"):
        load_method("nowhere/adapter.py")
    with pytest.raises(HrbenchError, match="not a subclass"):
        load_method("hrbench.engine.views:View")
    with pytest.raises(HrbenchError, match="No module named"):
        load_method("no_such_module:Thing")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(HrbenchError, match="0 Method classes"):
        load_method(str(empty))
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    with pytest.raises(HrbenchError, match=r"broken\.py.*line 1"):
        load_method(str(broken))


def test_methods_come_by_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("theirs", "hrbench.methods.fastflow:FastFlow", "hrbench.methods")
    monkeypatch.setattr(
        hrbench.method_names, "entry_points", lambda *, group, name=None: [p for p in [point] if name in (None, p.name)]
    )
    assert "theirs" in hrbench.list_methods()
    assert load_method("theirs") is load_method("fastflow")


def test_the_contract_notices_what_is_wrong(toy):
    cls = load_method(toy)

    def broken(name, function):
        return reference_of(type("Broken", (cls,), {name: function}))

    plain = cls.predict
    cases = {
        "influence each other": lambda self, batch: plain(self, batch - batch.mean(dim=0, keepdim=True)),
        "float64": lambda self, batch: hrbench.Prediction({"m": plain(self, batch).maps["distance"].double()}),
        "expected .* shape \\(3, h, w\\)": lambda self, batch: hrbench.Prediction({"m": batch}),
        "different results|saving and loading": lambda self, batch: hrbench.Prediction(
            {"m": torch.full((len(batch), 2, 2), float(id(self) % 1000))}
        ),
    }
    for message, predict in cases.items():
        with pytest.raises(AssertionError, match=message):
            check_method(broken("predict", predict), steps=2)
    check_method(toy, steps=2)


def test_the_contract_notices_that_what_is_not_saved_learns(toy):
    cls = load_method(toy)

    class Forgetful(cls):
        def __init__(self, steps: int = 2) -> None:
            super().__init__(steps)
            self.part = torch.nn.Linear(1, 1)
            self.part.provenance = "a file"

    assert Forgetful().restored() == {"part": "a file"}
    assert not any(key.startswith("part") for key in learnt_state(Forgetful()))
    with pytest.raises(AssertionError, match=r"part is restored, not saved, but its weight learns"):
        check_method(reference_of(Forgetful))


@pytest.mark.parametrize(
    "form", ["from ._used import x", "from . import _used", "from pack._used import x", "import pack._used"]
)
def test_a_method_is_made_of_its_module_and_what_that_imports(tmp_path, monkeypatch, form):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "own.py").write_text(f"{form}\nimport hrbench\n\n\nclass Own(hrbench.Method):\n    pass\n")
    (folder / "_used.py").write_text("from ._deeper import x\n")
    for name in ("_deeper", "_unused"):
        (folder / f"{name}.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pack"]:
        monkeypatch.delitem(sys.modules, name)
    cls = load_method("pack.own:Own")
    digests = [source_digest(cls)]
    for name in ("_unused", "_deeper", "_used", "own"):
        with (folder / f"{name}.py").open("a") as file:
            file.write("# changed\n")
        digests.append(source_digest(cls))
    assert digests[0] == digests[1]  # nobody imports it
    assert len(set(digests[1:])) == 4


SMALL_BASELINE = {"weights": "random", "backbone": "resnet10t", "strides": (4, 8)}
SMALL = {**SMALL_METHODS, "gaussian": SMALL_BASELINE, "knn": {**SMALL_BASELINE, "candidates": 100, "bank": 20}}


@pytest.mark.parametrize("name", hrbench.list_methods())
def test_contract_on_a_gpu(name):
    waits = {"uflow": 2}  # for the energies of two scales, which are tested on the host
    check_method(name, size=32, device="fake-cuda", waits=waits.get(name, 0), **SMALL.get(name, {"preset": "demo"}))


def left_on_the_host(self, batch):
    return hrbench.Prediction({"m": (batch * self.gain).sum(dim=1)})


def made_on_the_wrong_device(self, batch):
    return hrbench.Prediction({"m": batch.sum(dim=1) + torch.linspace(0, 1, batch.shape[-1])})


def in_float64(self, batch):
    return hrbench.Prediction({"m": batch.double().mean(dim=1).float()})


def in_bfloat16(self, batch):
    return hrbench.Prediction({"m": torch.einsum("bchw,c->bhw", batch, self.colour).float()})


def given_in_bfloat16(self, batch):
    return hrbench.Prediction({"m": torch.einsum("bchw,c->bhw", batch, self.colour)})


def waiting(self, batch):
    return hrbench.Prediction({"m": batch.sum(dim=1) * float(self.colour.mean())})


def waiting_for_a_shape(self, batch):
    return hrbench.Prediction({"m": torch.stack([x.sum(dim=0) - x[x > 0].mean() for x in batch])})


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (left_on_the_host, r"same device.*\(3, 1, 1\) of the host in mul at test_contract\.py:\d+"),
        (made_on_the_wrong_device, r"same device.*\(32,\) of the host in add at test_contract\.py:\d+"),
        (in_float64, r"predict computes in float64 on the device: _to_copy at test_contract\.py:\d+"),
        (in_bfloat16, r"map 'm' has the eight bits of bfloat16"),
        (given_in_bfloat16, r"map 'm' is torch.bfloat16 in bfloat16, expected float32"),
        (waiting, r"waits for the device: _local_scalar_dense at test_contract\.py:\d+; 1 in all, expected at most 0"),
        (
            waiting_for_a_shape,
            r"waits for the device: index at test_contract\.py:\d+, .*; 3 in all, expected at most 0",
        ),
    ],
)
def test_the_contract_on_a_gpu_notices_what_a_cpu_forgives(toy, predict, message):
    class Offender(load_method(toy)):
        def __init__(self, steps: int = 2) -> None:
            super().__init__(steps)
            self.gain = torch.ones(3, 1, 1)  # no buffer: it stays where it is

    Offender.predict = predict
    check_method(reference_of(Offender), size=32)
    with pytest.raises((AssertionError, RuntimeError), match=message):
        check_method(reference_of(Offender), size=32, device="fake-cuda")


def test_finish_must_not_wait_for_a_gpu(toy):
    def finish(self, maps):
        return maps["distance"] / max(1.0, maps["distance"].max().item())

    offender = type("Offender", (load_method(toy),), {"finish": finish})
    check_method(reference_of(offender), steps=2)
    with pytest.raises(AssertionError, match=r"finish waits for the device: .*; 1 in all, expected at most 0"):
        check_method(reference_of(offender), device="fake-cuda", waits=9, steps=2)


def test_the_device_of_the_contract_is_one_of_two(toy):
    check_method(toy, device="fake-cuda", steps=2)
    with pytest.raises(HrbenchError, match="device of check_method is 'cuda', expected 'cpu' or 'fake-cuda'"):
        check_method(toy, device="cuda", steps=2)
