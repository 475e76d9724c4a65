"""Hostile adapters: what they leave behind in the process (item 4), and how they break the contract (item 18).

Each runs before another method in one command: that one's files must be the bits that it gives alone.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from .verdict import REFUSALS, Finding, digests, judge_bits, judge_end, judge_words, last_line
from .world import QUICK, Case, Stage, World

VICTIM = '''"""A small network that feels all settings of torch: convolutions, products, new tensors, random numbers."""

import torch
from torch import nn

from hrbench.method import Method, Prediction, Preset


class Victim(Method):
    title = "Victim"
    paper = "none"
    presets = {"native": Preset("whole:32")}

    def __init__(self, steps: int = 4):
        super().__init__()
        self.conv, self.steps = nn.Conv2d(3, 16, 5, padding=2), steps
        self.weight = nn.Parameter(torch.rand(16, 16))

    def embed(self, batch):
        codes = torch.tanh(self.conv(batch)).flatten(2).transpose(1, 2) @ self.weight
        return codes / torch.full((), 3.0).to(codes)

    def fit(self, normals, context):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)

        def loss(batch):
            return (self.embed(batch) - torch.rand(16)).square().mean()

        context.train(normals, loss, optimizer, steps=self.steps, batch_size=4)

    def predict(self, batch):
        codes = self.embed(batch)
        return Prediction({"distance": codes.square().sum(dim=2).reshape(len(batch), 32, 32).float()})
'''

HOSTILE = """
import os
import random
import sys

import numpy as np
import torch
from torch import nn

from hrbench.method import Method, Prediction, Preset

{at_import}


class Hostile(Method):
    title = "Hostile"
    paper = "none"
    presets = {{"native": Preset("whole:32")}}
{body}
"""
PARTS = {
    "init": """
        def __init__(self, steps: int = 2):
            super().__init__()
            self.colour, self.steps = nn.Parameter(torch.rand(3)), steps
            {init}
    """,
    "fit": """
        def fit(self, normals, context):
            optimizer = torch.optim.Adam([self.colour], lr=0.05)
            context.train(normals, lambda batch: (batch - self.colour[:, None, None]).square().mean(), optimizer,
                          steps=self.steps, batch_size=4)
            {fit}
    """,
    "predict": """
        def predict(self, batch):
            maps = (batch - self.colour[:, None, None]).square().sum(dim=1)
            {predict}
            return Prediction({{"distance": maps}})
    """,
}


def adapter(*, at_import: str = "", more: str = "", **said: str) -> str:
    """Return an adapter: `init`, `fit` and `predict` are statements in these methods, or whole ones (``def ...``)."""
    body = []
    for name, part in PARTS.items():
        statement = said.get(name, "pass")
        whole = statement.startswith("def ") or statement == ""
        text = statement if whole else textwrap.dedent(part).strip().format(**{name: statement})
        body.append(textwrap.indent(text, "    "))
    body.append(textwrap.indent(more, "    "))
    return HOSTILE.format(at_import=at_import, body="\n\n".join(body))


def _victim(world: World) -> str:
    return world.file("victim.py", VICTIM)


def _expected(world: World) -> dict[str, str]:
    output = world.finished("victim", world.run_toy(methods=[_victim(world)]))
    found: dict[str, str] = world.once("victim digests", lambda: digests(output))
    return found


def _other_job(stage: Stage) -> Iterable[Finding]:
    """Compare what the other method of the command has left."""
    expected = _expected(stage.world)
    found = digests(stage.out) if stage.out.is_dir() else {}
    mine = {name: digest for name, digest in found.items() if "hostile" not in name}
    if not any("victim" in name for name in mine):
        yield Finding("lost", "the next method has not run")
    else:
        yield from judge_bits(mine, expected)


def _play(stage: Stage, text: str) -> list[str]:
    return [*stage.world.run_toy(methods=[stage.file("hostile.py", text), _victim(stage.world)]), "--output", "out"]


# -- item 4: what they leave behind

DTYPE = "torch.set_default_dtype(torch.float64)"
LEAKS: Sequence[tuple[str, dict[str, str], bool]] = (  # what, where, and whether it must be said who did it
    ("default dtype in fit", {"fit": DTYPE}, True),
    ("default dtype in predict", {"predict": DTYPE}, True),
    ("default dtype in __init__", {"init": DTYPE}, True),
    ("default dtype at import", {"at_import": DTYPE}, True),
    ("default device", {"fit": "torch.set_default_device('meta')"}, True),
    ("matmul precision", {"fit": "torch.set_float32_matmul_precision('medium')"}, True),
    ("mkldnn off", {"fit": "torch._C._set_mkldnn_enabled(False)"}, True),
    ("mkldnn off by flags", {"fit": "torch.backends.mkldnn.set_flags(False)"}, True),
    ("autocast left on", {"fit": "torch.autocast('cpu', torch.bfloat16).__enter__()"}, True),
    ("autocast left on in predict", {"predict": "torch.autocast('cpu', torch.bfloat16).__enter__()"}, True),
    ("threads", {"fit": "torch.set_num_threads(2)"}, True),
    ("deterministic off", {"fit": "torch.use_deterministic_algorithms(False)"}, False),
    ("deterministic on, and fill", {"fit": "torch.use_deterministic_algorithms(True)"}, False),
    ("cudnn benchmark", {"fit": "torch.backends.cudnn.benchmark = True"}, False),
    ("gradients off", {"fit": "torch.set_grad_enabled(False)"}, True),
    ("inference mode left on", {"fit": "torch.inference_mode().__enter__()"}, True),
    ("anomaly detection", {"fit": "torch.autograd.set_detect_anomaly(True)"}, False),
    ("denormals", {"fit": "torch.set_flush_denormal(True)"}, False),
    ("torch's generator", {"fit": "torch.manual_seed(7)"}, False),
    ("numpy's generator", {"fit": "np.random.seed(7)"}, False),
    ("Python's generator", {"fit": "random.seed(7)"}, False),
    ("numpy's errors", {"fit": "np.seterr(all='raise')"}, False),
    ("os.chdir in fit", {"fit": "os.chdir(os.environ['HOME'])"}, True),
    ("os.chdir in predict", {"predict": "os.chdir(os.environ['HOME'])"}, True),
    ("os.chdir at import", {"at_import": "os.chdir(os.environ['HOME'])"}, True),
    ("environment", {"fit": "os.environ.update(TMPDIR='/nowhere', HOME='/nowhere', OMP_NUM_THREADS='7')"}, False),
    ("environment emptied", {"fit": "os.environ.clear()"}, False),
    ("warnings are errors", {"fit": "import warnings; warnings.simplefilter('error')"}, False),
    ("logging disabled", {"fit": "import logging; logging.disable()"}, False),
    ("signals ignored", {"fit": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"}, False),
    ("standard error closed", {"fit": "sys.stderr = open(os.devnull, 'w')"}, False),
    ("a thread that never ends", {"fit": "import threading; threading.Thread(target=threading.Event().wait, "
                                        "daemon=True).start()"}, False),
    ("garbage collection off", {"fit": "import gc; gc.disable()"}, False),
)  # fmt: skip
EXITS = {
    "sys.exit(0) in fit": {"fit": "sys.exit(0)"},
    "sys.exit(0) in predict": {"predict": "sys.exit(0)"},
    "sys.exit(0) in __init__": {"init": "sys.exit(0)"},
    "sys.exit(0) at import": {"at_import": "sys.exit(0)"},
    "sys.exit('words') in fit": {"fit": "sys.exit('words')"},
    "StopIteration in fit": {"fit": "raise StopIteration"},
    "a BaseException of its own in fit": {"fit": "raise type('Own', (BaseException,), {})('why')"},
}


def leak(name: str, said: dict[str, str], loud: bool) -> Case:
    """Return a case of a setting that an adapter leaves behind; with `loud` it must be named."""

    def play(stage: Stage) -> Iterable[Finding]:
        outcome = stage.hrbench(*_play(stage, adapter(**said)), tune=QUICK)
        yield from judge_end(outcome)
        yield from _other_job(stage)
        if outcome.code not in (0, *REFUSALS):
            yield Finding("other", f"exit {outcome.code}: {last_line(outcome.text)}")
        if loud and "hostile" not in outcome.err:
            yield Finding("silent", "it is not said which adapter did it")
        if (stage.path / "here/runs").exists():
            yield Finding("outside", "another output folder")

    return Case("adapters", "4", name, play)


def leaves(name: str, said: dict[str, str]) -> Case:
    """Return a case of an adapter that ends the process: the grid goes on, and its status is not 0."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.own_frames = "hostile.py"
        outcome = stage.hrbench(*_play(stage, adapter(**said)), tune=QUICK)
        if outcome.code == 0:
            yield Finding("silent", f"exit 0: {last_line(outcome.text)}")
        else:
            yield from judge_words(outcome, "hostile")
        if "import" in name:
            if outcome.code not in REFUSALS:
                yield Finding("other", f"exit {outcome.code}")
        else:
            yield from _other_job(stage)

    return Case("adapters", "4", name, play)


# -- item 18: how they break the contract

NO_FIT = "def fit(self, normals, context):\n    {}"
TRAIN = ("def fit(self, normals, context):\n    optimizer = torch.optim.Adam([self.colour], lr=0.05)\n"
         "    context.train(normals, lambda batch: {}, optimizer, steps=2, batch_size=4)")  # fmt: skip
LOSS = "(batch - self.colour[:, None, None]).square().mean()"
BREAKS: Sequence[tuple[str, dict[str, str], str]] = (  # what, how, and what must be said
    ("predict gives a tensor", {"predict": "return maps"}, "predict & (Tensor|tensor) & Prediction"),
    ("predict gives a dict", {"predict": "return {'distance': maps}"}, "predict & dict & Prediction"),
    ("predict gives None", {"predict": "return None"}, "predict & None & Prediction"),
    ("numpy maps", {"predict": "return Prediction({'distance': maps.numpy()})"}, "distance & (ndarray|numpy)"),
    ("list maps", {"predict": "return Prediction({'distance': maps.tolist()})"}, "distance & list"),
    ("maps are a tensor", {"predict": "return Prediction(maps)"}, "maps & Tensor"),
    ("no maps", {"predict": "return Prediction({})"}, "predict & map"),
    ("maps of 0 x 0", {"predict": "maps = maps[:, :0, :0]"}, "distance & 0"),
    ("maps of another batch", {"predict": "maps = maps[:1].repeat(7, 1, 1)"}, "distance & 7"),
    ("maps with channels", {"predict": "maps = maps[:, None]"}, "distance & 1"),
    ("maps of integers", {"predict": "maps = (1000 * maps).long()"}, "distance & int64"),
    ("maps that are complex", {"predict": "maps = maps * 1j"}, "distance & complex"),
    ("maps that are nan", {"predict": "maps = maps * float('nan')"}, "(?i)nan"),
    ("other names per batch", {"predict": "return Prediction({f'map{random.random()}': maps})"}, "map0"),
    ("two maps without finish", {"predict": "return Prediction({'a': maps, 'b': maps})"}, "finish"),
    ("a decision of floats", {"predict": "return Prediction({'distance': maps}, maps)"}, "decision"),
    ("a decision of another size", {"predict": "return Prediction({'distance': maps}, (maps > 0)[:, :0])"}, "decision"),
    ("finish gives None", {"more": "def finish(self, maps):\n    return None"}, "finish & None"),
    ("finish gives numpy", {"more": "def finish(self, maps):\n    return maps['distance'].numpy()"},
     "finish & (ndarray|numpy)"),
    ("finish gives another size", {"more": "def finish(self, maps):\n    return maps['distance'][:3]"}, "finish & 3"),
    ("finish gives a number", {"more": "def finish(self, maps):\n    return maps['distance'].max()"}, "finish"),
    ("a loss that is a float", {"fit": TRAIN.format(f"float({LOSS})")}, "loss & (float|Tensor)"),
    ("a loss that is a vector", {"fit": TRAIN.format("(batch - self.colour[:, None, None]).square().mean((1, 2, 3))")},
     "loss & (4,|shape|scalar)"),
    ("a loss that is None", {"fit": TRAIN.format("None")}, "loss & None"),
    ("a loss that is nan", {"fit": TRAIN.format(f"{LOSS} * float('nan')")}, "loss & nan"),
    ("a loss without a gradient", {"fit": TRAIN.format("batch.mean()")}, "loss & (grad|param)"),
    ("no optimizer", {"fit": TRAIN.replace("optimizer, steps", "None, steps").format(LOSS)}, "optimizer|zero_grad"),
    ("steps -1", {"fit": TRAIN.replace("steps=2", "steps=-1").format(LOSS)}, "steps & -1"),
    ("batch_size 0", {"fit": TRAIN.replace("batch_size=4", "batch_size=0").format(LOSS)}, "batch_size & 0"),
    ("multiple = 0", {"more": "multiple = 0"}, "multiple & 0"),
    ("multiple is text", {"more": "multiple = 'x'"}, "multiple & x"),
    ("input_size = 0", {"more": "input_size = 0"}, "input_size & 0"),
    ("image_score nonsense", {"more": "image_score = 'nonsense'"}, "nonsense"),
    ("image_score None", {"more": "image_score = None"}, "image_score & None"),
    ("presets are a list", {"more": "presets = ['native']"}, "presets & list"),
    ("a preset is text", {"more": "presets = {'native': 'whole:32'}"}, "preset & (str|whole:32)"),
    ("a preset with a bad view", {"more": "presets = {'native': Preset('x')}"}, "view & x"),
    ("no presets", {"more": "presets = {}"}, "preset"),
    ("no super().__init__()", {"init": "def __init__(self):\n    self.colour = 1"}, r"super\(\).__init__"),
    ("no super().__init__(), and no module", {"init": "def __init__(self, steps: int = 2):\n    self.steps = steps"},
     r"super\(\).__init__"),
    ("options without defaults", {"init": "def __init__(self, steps):\n    super().__init__()"}, "steps"),
    ("options that are any", {"init": "def __init__(self, **options):\n    super().__init__()"}, "options|colour"),
    ("annotations that do not exist", {"init": "def __init__(self, steps: 'Nothing' = 2):\n    super().__init__()"},
     "Nothing"),
    ("no fit", {"fit": ""}, "fit"),
    ("no predict", {"predict": ""}, "predict"),
    ("fit is no function", {"fit": "", "more": "fit = 3"}, "fit"),
    ("fit with other arguments", {"fit": "def fit(self):\n    pass"}, "fit"),
    ("an error at import", {"at_import": "raise RuntimeError('my own words')"}, "my own words"),
    ("bad syntax", {"at_import": "def ("}, "hostile & (syntax|parsed|Python|invalid)"),
    ("a missing import", {"at_import": "import nowhere_to_be_found"}, "nowhere_to_be_found"),
    ("two methods", {"at_import": "class Another(Method):\n    pass"}, "2"),
    *(
        (f"an error of its own in {place}", said, "my own words")
        for place, said in {
            "__init__": {"init": "raise RuntimeError('my own words')"},
            "fit": {"fit": "raise RuntimeError('my own words')"},
            "the loss": {"fit": TRAIN.format("self.nothing(RuntimeError('my own words'))"),
                         "more": "def nothing(self, error):\n    raise error"},
            "predict": {"predict": "raise RuntimeError('my own words')"},
            "finish": {"more": "def finish(self, maps):\n    raise RuntimeError('my own words')"},
            "calibrate": {"more": "def calibrate(self, maps):\n    raise RuntimeError('my own words')"},
        }.items()
    ),
    ("an error of torch in predict", {"predict": "maps = maps @ torch.zeros(7, 7)"}, "shape|size"),
    ("an error with many lines in fit", {"fit": "raise ValueError('my own words' + chr(10) * 3 + 'x' * 5000)"},
     "my own words"),
    ("recursion in fit", {"fit": "f = lambda: f(); f()"}, "recursion"),
)  # fmt: skip


def breaks(name: str, said: dict[str, str], words: str) -> Case:
    """Return a case of a broken contract: a line says what came and is expected; only the adapter's frames show."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.own_frames = "hostile.py"
        outcome = stage.hrbench(*_play(stage, adapter(**said)), tune=QUICK)
        if outcome.code == 0:
            yield Finding("silent", f"accepted, exit 0: {last_line(outcome.text)}")
        elif outcome.code in REFUSALS:
            yield from judge_words(outcome, words)
        else:
            yield Finding("other", f"exit {outcome.code}: {last_line(outcome.text)}")
        if any("victim" in path.name for path in Path(stage.out).glob("runs/*/*/*")):
            yield from _other_job(stage)
        elif stage.out.joinpath("runs").is_dir():
            yield Finding("lost", "the next method has not run")

    return Case("adapters", "18", name, play)


def cases(args: argparse.Namespace) -> Iterable[Case]:
    """Yield all cases of the family."""
    del args
    for name, said, loud in LEAKS:
        yield leak(name, said, loud)
    for name, said in EXITS.items():
        yield leaves(name, said)
    for name, said, words in BREAKS:
        yield breaks(name, said, words)
