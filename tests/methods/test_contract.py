"""The contract suite over every registered method: a new method is tested as soon as its file is there."""

import pytest
from helpers import SMALL_METHODS

import hrbench
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.method import Method
from hrbench.registry import load_method
from hrbench.testing import check_method


@pytest.mark.parametrize("name", hrbench.list_methods())
def test_contract(name):
    check_method(name, **SMALL_METHODS.get(name, {"preset": "demo"}))


@pytest.mark.parametrize("name", hrbench.list_methods())
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
        hrbench.registry, "entry_points", lambda *, group, name=None: [p for p in [point] if name in (None, p.name)]
    )
    assert "theirs" in hrbench.list_methods()
    assert load_method("theirs") is load_method("fastflow")


def test_the_contract_notices_what_is_wrong(toy):
    import torch

    cls = load_method(toy)

    def broken(name, function):
        class Broken(cls):
            pass

        setattr(Broken, name, function)
        Broken.__module__ = "broken_methods"
        import sys
        import types

        module = sys.modules.setdefault("broken_methods", types.ModuleType("broken_methods"))
        module.Broken = Broken
        return "broken_methods:Broken"

    plain = cls.predict
    cases = {
        "influence each other": lambda self, batch: plain(self, batch - batch.mean(dim=0, keepdim=True)),
        "float64": lambda self, batch: hrbench.Prediction({"m": plain(self, batch).maps["distance"].double()}),
        "expected \\(B, h, w\\)": lambda self, batch: hrbench.Prediction({"m": batch}),
        "different results|saving and loading": lambda self, batch: hrbench.Prediction(
            {"m": torch.full((len(batch), 2, 2), float(id(self) % 1000))}
        ),
    }
    for message, predict in cases.items():
        with pytest.raises(AssertionError, match=message):
            check_method(broken("predict", predict), steps=2)
    check_method(toy, steps=2)
