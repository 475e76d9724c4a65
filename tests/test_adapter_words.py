"""What the author of an adapter reads that breaks the contract, or raises: one error, with the adapter's own line."""

from __future__ import annotations

import functools
import logging
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hrbench
from hrbench import HrbenchError, Method, Prediction, Preset
from hrbench.cli import main
from hrbench.contract import check_class, check_prediction, make
from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import finish
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.training import Fit
from hrbench.engine.views import View
from hrbench.registry import all_options, check_options, load_method
from hrbench.testing import StackedNormals

CPU = torch.device("cpu")
HERE = Path(__file__).name
MAPS = torch.rand(2, 4, 4)


class Plain(Method):
    """An adapter that keeps the contract."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.zeros(3))
        self.steps = steps

    def fit(self, normals, context):
        pass

    def predict(self, batch):
        return Prediction({"mean": batch.mean(dim=1)})


def breach(source: str, words: str) -> str:
    """Return the pattern of an error for what a function or class of this file gave."""
    return rf"^\S*{re.escape(HERE)}:\d+: \S*{re.escape(source)} {words}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fit": 3}, r"has 3 as fit, expected fit\(self, normals, context\)"),
        ({"fit": lambda self: None}, r"cannot be called \(too many .*\), expected fit\(self, normals, context\)"),
        ({"predict": lambda self: None}, r"cannot be called .*, expected predict\(self, batch\)"),
        ({"finish": lambda self, a, b: None}, r"cannot be called .*, expected finish\(self, maps\)"),
        ({"calibrate": None}, r"has None as calibrate, expected calibrate\(self, maps\)"),
    ],
)
def test_what_the_suite_cannot_call(change, words):
    with pytest.raises(HrbenchError, match=words):
        make(type("Odd", (Plain,), change), {})


@pytest.mark.parametrize("rule", [None, 3, ("max",)])
def test_an_image_score_is_a_rule_in_words(rule):
    with pytest.raises(HrbenchError, match='as image_score, expected "max", "mean" or "top:SHARE"'):
        check_class(type("Odd", (Plain,), {"image_score": rule}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, r"gave None, expected hrbench\.Prediction"),
        (MAPS, r"gave a float32 Tensor of shape \(2, 4, 4\), expected hrbench\.Prediction"),
        ({"m": MAPS}, r"gave a dict of 1, expected hrbench\.Prediction"),
        (Prediction([MAPS]), "gave a list of 1 as maps, expected at least one by name"),
        (Prediction({}), "gave an empty dict as maps, expected at least one by name"),
        (Prediction({0: MAPS}), "gave a dict of 1 as maps, expected at least one by name"),
        (
            Prediction({"m": MAPS.numpy()}),
            r"gave a float32 ndarray of shape \(2, 4, 4\) as map 'm', expected a float32 T",
        ),
        (Prediction({"m": MAPS + 1j}), r"gave a complex64 Tensor .* as map 'm', expected a float32 Tensor"),
        (
            Prediction({"m": MAPS[0]}),
            r"shape \(4, 4\) as map 'm', expected a float32 Tensor of shape \(2, h, w\) on cpu",
        ),
        (Prediction({"m": MAPS[:, :0, :0]}), r"shape \(2, 0, 0\) as map 'm', expected"),
        (Prediction({"m": MAPS.to("meta")}), r"on meta as map 'm', expected a float32 Tensor of shape .* on cpu"),
        (Prediction({"m": MAPS}, MAPS), r"gave a float32 Tensor .* as decision, expected None or a bool Tensor"),
        (Prediction({"a": MAPS, "b": MAPS}), r"gave 2 maps, a, b, expected one, or a finish\(self, maps\)"),
    ],
)
def test_what_is_no_prediction(given, words):
    with pytest.raises(HrbenchError, match=breach("Plain.predict", ".*" + words.removeprefix("gave "))):
        check_prediction(Plain(), given, 2, CPU)


def test_a_prediction_of_other_parts_than_before(tree):
    class Fickle(Plain):
        def predict(self, batch):
            self.asked = getattr(self, "asked", 0) + 1
            return Prediction({f"map{self.asked}": batch.mean(dim=1)})

    samples = [Sample(path.name, path, None, 0, "good", "test", "bolt") for path in tree.rglob("bolt/test/good/*.png")]
    with pytest.raises(
        HrbenchError, match=breach("Fickle.predict", "gave map 'map2', expected map 'map1' as for the in")
    ):
        list(predict(Fickle(), samples, View.parse("whole:16"), CPU, batch_size=1))


@pytest.mark.parametrize("given", [None, np.zeros((4, 4)), torch.zeros(2, 4), torch.zeros(4, 4, dtype=torch.complex64)])
def test_what_is_no_anomaly_map(given):
    class Bad(Plain):
        def finish(self, maps):
            return given

    item = NativeMaps(Sample("test/7.png", None, None, 0, "good", "test", "bolt"), ({"m": MAPS[0]},), None, ())
    with pytest.raises(HrbenchError, match=breach("Bad.finish", r"gave .* of test/7\.png, expected .* shape \(4, 4\)")):
        finish(Bad(), item)


def fit(method):
    normals = StackedNormals(torch.rand(4, 3, 4, 4))
    return normals, Fit(method, held_out=normals, seed=0, device=CPU)


def a_float(method, batch):
    return 0.5


def a_vector(method, batch):
    return (batch - method.colour[:, None, None]).mean(dim=(1, 2, 3))


def a_constant(method, batch):
    return batch.mean()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (a_float, "gave 0.5, expected one number as a Tensor"),
        (a_vector, r"gave a float32 Tensor of shape \(2,\), expected one number as a Tensor"),
        (a_constant, "gave a loss that depends on nothing that learns, expected one computed from parameters"),
    ],
)
def test_what_is_no_loss(loss, words):
    method = Plain()
    normals, context = fit(method)
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    with pytest.raises(HrbenchError, match=breach(loss.__name__, words)):
        context.train(normals, functools.partial(loss, method), optimizer, steps=2, batch_size=2)


@pytest.mark.parametrize("given", [torch.rand(2, 3), [torch.rand(3, 2)], [np.zeros((2, 3))]])
def test_what_are_no_features(given):
    def extract(batch):
        return given

    normals, context = fit(Plain())
    with pytest.raises(
        HrbenchError, match=breach("extract", r"gave .*, expected a list of Tensors of shape \(2, \.\.\.\)")
    ):
        next(context.features(normals, extract).batches(2, steps=1, seed=0))


class NoSuper(Plain):
    """Forgets what torch needs."""

    def __init__(self):
        self.steps = 1


class NoSuperModules(Plain):
    """Forgets it, and torch says so."""

    def __init__(self):
        self.part = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("cls", "source", "words"),
    [
        (NoSuper, "NoSuper.__init__", r"begins without super\(\)\.__init__\(\), expected that before all else"),
        (NoSuperModules, "NoSuperModules.__init__", r"begins without super\(\)\.__init__\(\)"),
        (type("Bad", (Plain,), {"multiple": 0}), "Bad", "has multiple 0, expected a whole number of at least 1"),
        (type("Bad", (Plain,), {"multiple": 2.0}), "Bad", "has multiple 2.0, expected a whole number of at least 1"),
        (
            type("Bad", (Plain,), {"multiple": 2, "input_size": 7}),
            "Bad",
            "has input_size 7, expected None or a multiple",
        ),
        (type("Bad", (Plain,), {"finish_padded": "yes"}), "Bad", "has finish_padded 'yes', expected True or False"),
        (type("Bad", (Plain,), {"fit": Method.fit}), "Bad", r"has no fit, expected fit\(self, normals, context\)"),
        (type("Bad", (Plain,), {"predict": Method.predict}), "Bad", r"has no predict, expected predict\(self, batch\)"),
    ],
)
def test_what_makes_no_method(cls, source, words):
    with pytest.raises(HrbenchError, match=rf"{re.escape(source)} {words}"):
        make(cls, {})


@pytest.mark.parametrize(
    ("presets", "words"),
    [
        (["native"], "has a list of 1 as presets, expected a dict of presets by name"),
        ({"native": "tiled:32:8"}, "has 'tiled:32:8' as preset 'native', expected a dict of presets by name"),
        ({"native": Preset(32)}, "has preset 'native' of 32 and an empty dict, expected a view in words and a dict"),
    ],
)
def test_what_are_no_presets(presets, words):
    with pytest.raises(HrbenchError, match=words):
        check_class(type("Bad", (Plain,), {"presets": presets}))


def test_options_of_the_constructor():
    class Bare(Plain):
        def __init__(self, steps: int, *rest, **others):
            super().__init__(steps)

    with pytest.raises(
        HrbenchError,
        match=breach("Bare.__init__", "has no default of option steps, and no value is given, expected a default"),
    ):
        all_options(Bare, {})
    assert all_options(Bare, {"steps": 2}) == {"steps": 2}
    with pytest.raises(HrbenchError, match="unknown option of bare 'rest'"):
        check_options(Bare, "bare", {"rest": 1})

    class Unreadable(Plain):
        def __init__(self, steps: "NotImported" = 1):  # noqa: F821, UP037
            super().__init__()

    with pytest.raises(
        HrbenchError, match=breach("Unreadable.__init__", "has annotations that cannot be read .*NotImported")
    ):
        check_options(Unreadable, "unreadable", {})


@pytest.mark.parametrize(
    ("method", "option", "value", "expected"),
    [
        ("fastflow", "batch_size", 0, "at least 1"),
        ("fastflow", "lr", -1, "a number above 0"),
        ("fastflow", "lr", float("nan"), "a number above 0"),
        ("fastflow", "flow_steps", 0, "at least 1"),
        ("uflow", "kernels", [], "at least one number, each 1 or 3"),
        ("uflow", "kernels", [2], "at least one number, each 1 or 3"),
        ("rstpm", "discriminator_batch_size", 0, "at least 1"),
        ("rstpm", "weight_decay", -0.1, "a number of at least 0"),
        ("isstad", "mae_lr", 0, "a number above 0"),
        ("l2bt", "steps", -2, "at least 0"),
    ],
)
def test_an_option_out_of_its_range(method, option, value, expected):
    message = f"option {option} of {method} is {value!r}, expected {expected}"
    with pytest.raises(HrbenchError, match=f"^{re.escape(message)}$"):
        check_options(load_method(method), method, {option: value})


ADAPTER = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from toy_adapter import Toy

class Own(Toy):
    def __init__(self, steps: int = 2, where: str = "fit"):
        super().__init__(steps)
        self.where = where
        self.broken("init")

    def fit(self, normals, context):
        self.broken("fit")
        super().fit(normals, context)

    def predict(self, batch):
        self.broken("predict")
        return super().predict(batch)

    def finish(self, maps):
        self.broken("finish")
        return super().finish(maps)

    def broken(self, here):
        if here == self.where:
            raise KeyError(here)
"""


def test_what_an_adapter_raises_is_told_by_its_own_lines(tree, tmp_path, monkeypatch, caplog):
    adapter = tmp_path / "own.py"
    adapter.write_text(ADAPTER.format(tests=str(Path(__file__).parent)))
    monkeypatch.chdir(tmp_path)
    for where, line in {"init": 12, "fit": 15, "predict": 19, "finish": 23}.items():
        options = {"own.py": {"where": where}}
        with caplog.at_level(logging.INFO, "hrbench"):
            study = hrbench.run("folder", ["own.py"], root=tree, output="runs", categories=["bolt"], preset="demo",
                                options=options, device="cpu")  # fmt: skip
        (failure,) = study.failures
        caller = "__init__" if where == "init" else where
        assert str(failure.error).splitlines() == [
            f"KeyError: '{where}'",
            f'  own.py:{line} in {caller}: self.broken("{where}")',
            "  own.py:28 in broken: raise KeyError(here)",
        ]
        assert isinstance(failure.error, HrbenchError)
        assert isinstance(failure.error.__cause__, KeyError)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("end", ["1 / 0", "raise SystemExit(0)"])
def test_an_adapter_that_cannot_be_imported(tmp_path, monkeypatch, end):
    adapter = tmp_path / "own.py"
    adapter.write_text(f"x = 1\n{end}\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = "ZeroDivisionError: division by zero" if "/" in end else "SystemExit: 0"
    for reference in (str(adapter), "own:Own"):
        message = f"method {reference!r} cannot be imported: {kind}\n  {adapter}:2 in <module>: {end}"
        with pytest.raises(HrbenchError, match=f"^{re.escape(message)}$"):
            load_method(reference)


@pytest.mark.parametrize("reference", [":X", "package:", ":", ".sibling:X"])
def test_half_a_reference(reference):
    with pytest.raises(HrbenchError, match=r"expected a name, a path of an adapter\.py, or package\.module:Class"):
        load_method(reference)


def test_list_names_installed_methods_that_are_none_and_goes_on(monkeypatch, capsys):
    points = [
        EntryPoint("broken", "no_such_module:Thing", "hrbench.methods"),
        EntryPoint("number", "math:pi", "hrbench.methods"),
        EntryPoint("theirs", "hrbench.methods.fastflow:FastFlow", "hrbench.methods"),
        EntryPoint("view", "hrbench.engine.views:View", "hrbench.methods"),
    ]
    monkeypatch.setattr(
        "hrbench.method_names.entry_points",
        lambda *, group, name=None: [point for point in points if name in (None, point.name)],
    )
    assert main(["list"]) == 2
    shown = capsys.readouterr()
    for name in ("fastflow", "theirs", "uflow", "mvtec_ad"):
        assert f"  {name} " in shown.out
    assert shown.err.splitlines() == [
        "hrbench: method 'broken' (entry point no_such_module:Thing) cannot be imported: No module named "
        "'no_such_module'",
        "hrbench: method 'number' (entry point math:pi): not a subclass of hrbench.Method",
        "hrbench: method 'view' (entry point hrbench.engine.views:View): not a subclass of hrbench.Method",
    ]
