"""Running many jobs from Python: what is refused before anything runs, and what becomes of failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hrbench
from hrbench import HrbenchError
from hrbench.grid import local
from hrbench.registry import load_method, source_digest
from hrbench.runs.job import Job
from hrbench.runs.runner import Runner
from hrbench.runs.store import Run


def test_a_grid_from_python(tree: Path, toy: str, tmp_path: Path) -> None:
    dataset = hrbench.load_dataset("folder", tree)
    study = hrbench.run(dataset, [toy], output=tmp_path, categories=["nut"], options={toy: {"steps": 2}}, seeds=[0, 1])
    assert [run.about.seed for run in study.runs] == [0, 1]
    assert not study.failures
    assert [run.about.method.options["steps"] for run in hrbench.read_runs(tmp_path)] == [2, 2]
    again = hrbench.run("folder", [toy], root=tree, output=tmp_path, categories=["nut"], options={toy: {"steps": 2}})
    assert again.runs == study.runs[:1]


def test_a_method_that_fails_is_a_failure_and_stops_no_other(tree: Path, toy: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = Path(toy).read_text(encoding="utf-8")
    broken.write_text(
        text.replace("    def predict(", "    def fit(self, *_):\n        raise KeyError('no')\n\n    def predict(")
    )
    study = hrbench.run("folder", [str(broken), toy], root=tree, output=tmp_path / "out", categories=["nut"])
    assert [type(failure.error) for failure in study.failures] == [KeyError]
    (failure,) = study.failures
    assert "broken" in failure.job
    assert (failure.category, failure.method, failure.view, failure.seed) == ("nut", str(broken), "tiled:32:8", 0)
    assert [run.about.method.name for run in study.runs] == ["toy_adapter"]


def test_who_cannot_help_with_a_job_loses_no_other(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, helped = Runner.advance, [], []

    def advance(runner: Runner, job: Job) -> Run | None:
        asked.append(job.category.name)
        return None if asked == ["nut"] else real(runner, job)  # at first another process has it

    def fails(runner: Runner, job: Job) -> bool:
        helped.append(job.category.name)
        raise HrbenchError("a bad file")

    monkeypatch.setattr(Runner, "advance", advance)
    monkeypatch.setattr(Runner, "help", fails)
    monkeypatch.setattr(local, "WAIT_SECONDS", 0.0)
    arguments: dict[str, Any] = {"root": tree, "output": tmp_path, "options": {toy: {"steps": 2}}}
    study = hrbench.run("folder", [toy], categories=["nut"], **arguments)
    assert (asked, helped) == (["nut"] * 2, ["nut"])
    assert [run.about.dataset.category for run in study.runs] == ["nut"]
    assert not study.failures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "l2bt"}, "methods is 'l2bt', expected a list"),
        ({"protocols": []}, r"protocols is \[\], expected a list of at least one"),
        ({"seeds": 0}, "seeds is 0, expected a list"),
        ({"options": {"steps": 2}}, "unknown method with options 'steps'"),
        ({"root": None}, "root is missing"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    tree: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"methods": ["l2bt"], "root": tree, "output": tmp_path / "out", **changes}
    with pytest.raises(HrbenchError, match=message):
        hrbench.run("folder", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_digest_of_a_method_s_source_knows_what_it_imports(toy: str, tmp_path: Path) -> None:
    adapter = tmp_path / "mine.py"
    adapter.write_text(
        "import _helper\nfrom torch import nn\n" + Path(toy).read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "_helper.py").write_text("A = 1\n", encoding="utf-8")
    (tmp_path / "nn.py").write_text("not Python, and not imported from here", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        cls = load_method(str(adapter))
    first = source_digest(cls)
    (tmp_path / "_other.py").write_text("B = 1\n", encoding="utf-8")
    assert source_digest(cls) == first
    (tmp_path / "_helper.py").write_text("A = 2\n", encoding="utf-8")
    assert source_digest(cls) != first
    (tmp_path / "_helper.py").write_text("A = (\n", encoding="utf-8")
    with pytest.raises(HrbenchError, match=r"_helper\.py: not valid Python"):
        source_digest(cls)
