"""Methods that share a process: none changes the numbers of the next, moves what the suite writes, or ends the grid."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits

import hrbench
from hrbench import HrbenchError, load_protocol
from hrbench._util import guard
from hrbench.cli import main
from hrbench.method import Method
from hrbench.protocol import Bootstrap
from hrbench.runs.runner import Runner
from hrbench.testing import check_method

FEW_DRAWS = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10))
LEAVE = """
import os, random
import numpy as np

def leave(result=None):
    if torch.get_default_dtype() != torch.float32 or torch.is_autocast_enabled("cpu"):
        raise RuntimeError("begins with what was left")
    os.environ["LEFT"] = "on"
    os.chdir("/")
    random.seed(0)
    np.random.seed(0)
    np.seterr(all="raise")
    torch.manual_seed(0)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(False)
    torch.backends.mkldnn.enabled = False
    torch.set_grad_enabled(False)
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return result
"""
CALLS = """
class Careless(Toy):
    title = "Careless"

    def __init__(self, steps: int = 2) -> None:
        super().__init__(steps)
        leave()

    def fit(self, normals, context):
        super().fit(normals, context)
        leave()

    def calibrate(self, maps):
        leave(list(maps))

    def predict(self, batch):
        return leave(super().predict(batch))

    def finish(self, maps):
        return leave(super().finish(maps))

Toy.__module__ = "elsewhere"
leave()
"""


@pytest.fixture
def sensitive(toy: str, tmp_path: Path) -> str:
    """Return an adapter whose numbers depend on all generators, on the default dtype and on autocast."""
    text = Path(toy).read_text(encoding="utf-8").replace(
        "torch.rand(3)", "torch.rand(3) + float(np.random.rand()) + random.random()"
    ).replace(
        "distance = (batch - self.colour[:, None, None]).square().sum(dim=1)",
        "distance = ((batch - self.colour[:, None, None]).movedim(1, -1) @ torch.full((3,), 1 / 3)).square()",
    )  # fmt: skip
    path = tmp_path / "sensitive.py"
    path.write_text("import random\n\nimport numpy as np\n" + text, encoding="utf-8")
    return str(path)


@pytest.fixture
def careless(toy: str, tmp_path: Path) -> str:
    """Return an adapter that leaves everything on, and fails where a call of it does not begin anew."""
    path = tmp_path / "careless.py"
    path.write_text(Path(toy).read_text(encoding="utf-8") + LEAVE + CALLS, encoding="utf-8")
    return str(path)


def adapter(toy: str, path: Path, *, fit: str = "", last: str = "") -> str:
    """Write the toy with another first line of its fit, and a last one."""
    text = Path(toy).read_text(encoding="utf-8").replace("        optimizer =", f"        {fit}\n        optimizer =")
    path.write_text(f"{text}\n{last}\n", encoding="utf-8")
    return str(path)


def test_the_next_method_gives_the_same_bits(
    tree: Path,
    sensitive: str,
    careless: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = hrbench.load_dataset("folder", tree, ["nut"])
    options = {"preset": "demo", "protocols": [FEW_DRAWS], "device": "cpu"}
    (alone,) = hrbench.run(dataset, [sensitive], output=tmp_path / "alone", **options).runs
    monkeypatch.setattr(guard, "_told", set())
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hrbench"):
        study = hrbench.run(dataset, [careless, sensitive], output="both", **options)
    assert not study.failures
    assert [run.about.method.name for run in study.runs] == ["careless", "sensitive"]
    assert_same_bits(study.runs[1].evidence, alone.evidence, but=["seconds"])
    assert (tmp_path / "both" / "runs").is_dir()
    assert Path.cwd() == tmp_path
    assert "LEFT" not in os.environ
    told = "\n".join(record.message for record in caplog.records)
    for call in ("fit", "calibrate", "predict", "finish"):
        assert told.count(f"Careless.{call} (careless.py) changed the default dtype") == 1
    assert "careless.py' changed" in told
    assert "careless: Careless() changed" in told
    assert "sensitive" not in told


def test_a_folder_and_a_dataset_stay_where_they_are_while_a_method_is_elsewhere(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    away = adapter(toy, tmp_path / "away.py", fit=f"import os; os.chdir({str(tmp_path / 'elsewhere')!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", -1.0)
    root = os.path.relpath(tree, tmp_path)
    study = hrbench.run("folder", [away], root=root, categories=["nut"], output="out", preset="demo",
                        protocols=[FEW_DRAWS], device="cpu")  # fmt: skip
    assert not study.failures
    assert list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_method_that_exits_in_its_fit_has_failed_and_stops_no_other(tree: Path, toy: str, tmp_path: Path) -> None:
    quitter = adapter(toy, tmp_path / "quitter.py", fit="raise SystemExit(0)")
    study = hrbench.run("folder", [quitter, toy], root=tree, categories=["nut"], output=tmp_path / "out", preset="demo",
                        protocols=[FEW_DRAWS], device="cpu")  # fmt: skip
    assert [run.about.method.name for run in study.runs] == ["toy_adapter"]
    (failure,) = study.failures
    assert isinstance(failure.error, HrbenchError)  # which the command line tells without a traceback, with status 2
    assert "Toy.fit (quitter.py) called sys.exit(0), expected it to return" in str(failure.error)


def test_an_exception_of_a_methods_own_kind_fails_its_job_only(tree: Path, toy: str, tmp_path: Path) -> None:
    odd = adapter(toy, tmp_path / "odd.py", fit="raise type('Odd', (BaseException,), {'__module__': __name__})('no')")
    study = hrbench.run("folder", [odd, toy], root=tree, output=tmp_path / "out", categories=["nut"], preset="demo")
    assert [run.about.method.name for run in study.runs] == ["toy_adapter"]
    (failure,) = study.failures
    assert "Odd: no" in str(failure.error)
    assert "odd.py:" in str(failure.error)


def test_a_method_that_exits_when_it_is_imported_is_refused_before_anything_runs(
    tree: Path, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quitter = adapter(toy, tmp_path / "quitter.py", last="raise SystemExit(0)")
    words = ["run", "--root", str(tree), "--preset", "demo", "--output", str(tmp_path / "out")]
    assert main([*words, "--methods", toy, quitter]) == 2
    assert "quitter.py' cannot be imported: SystemExit: 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_in_a_method_still_stops_the_grid(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = adapter(toy, tmp_path / "interrupted.py", fit="raise KeyboardInterrupt")
    begun: list[str] = []
    advance = Runner.advance
    monkeypatch.setattr(Runner, "advance", lambda self, job: begun.append(job.method) or advance(self, job))
    monkeypatch.setattr("hrbench.grid.local.LocalEngine.rehearse", lambda *_: iter(()))
    with pytest.raises(KeyboardInterrupt):
        hrbench.run("folder", [interrupted, toy], root=tree, categories=["nut"], preset="demo", output=tmp_path / "out")
    assert begun == [interrupted]


def test_the_contract_says_what_a_method_must_leave_alone(toy: str, tmp_path: Path) -> None:
    loud = adapter(toy, tmp_path / "loud.py", fit="torch.set_default_dtype(torch.float64)")
    with pytest.raises(AssertionError, match=r"fit changed the default dtype \(torch.float32 to torch.float64\)"):
        check_method(loud, size=16)
    assert torch.get_default_dtype() == torch.float32


def test_a_method_of_python_is_guarded_while_it_is_made(toy: str, tmp_path: Path) -> None:
    last = "class Quitter(Toy):\n    def __init__(self):\n        exit(3)\n\nToy.__module__ = 'elsewhere'"
    quitter = adapter(toy, tmp_path / "quitter.py", last=last)
    with pytest.raises(HrbenchError, match=r"Quitter\(\) called sys.exit\(3\)"):
        hrbench.create_method(quitter)
    assert isinstance(hrbench.create_method(toy), Method)
