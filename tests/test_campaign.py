"""What the hostile campaign says of how a command ends, and of what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from campaign import __main__ as command
from campaign.verdict import (
    Finding,
    Outcome,
    changes,
    digests,
    judge_bits,
    judge_end,
    judge_refusal,
    judge_success,
    listing,
    worst,
)
from campaign.world import Case

TRACE = 'Traceback (most recent call last):\n  File "{}", line 3, in fit\nValueError: no\n'


def verdicts(findings: list[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome(2, err="hrbench: --lr is -1, expected more than 0\n"), "ok"),
        (Outcome(2, err="hrbench: something is wrong\n"), "other"),
        (Outcome(2, err="hrbench: --lr is -1\n" * 50), "other"),
        (Outcome(0, out="1 runs in out\n"), "silent"),
        (Outcome(1, err=TRACE.format("/x/hrbench/cli.py") + "lr\n"), "traceback"),
        (Outcome(-11, err="lr\n"), "traceback"),
        (Outcome(-9, ended_by="time"), "hang"),
        (Outcome(-9, ended_by="memory"), "hang"),
    ],
)
def test_a_refusal_is_a_line_that_names_what_is_wrong(outcome: Outcome, verdict: str) -> None:
    assert worst(judge_refusal(outcome, "lr")).verdict == verdict


def test_an_author_may_see_his_own_frames_only() -> None:
    assert not judge_end(Outcome(2, err=TRACE.format("/my/hostile.py")), own_frames="hostile.py")
    assert verdicts(judge_end(Outcome(2, err=TRACE.format("/x/torch/nn.py")), own_frames="hostile.py")) == ["traceback"]


def test_the_gravest_finding_counts() -> None:
    assert worst([Finding("silent"), Finding("wrong number"), Finding("other")]).verdict == "wrong number"
    assert worst([]).verdict == "ok"
    assert verdicts(judge_success(Outcome(2, err="hrbench: no\n"))) == ["other"]


def test_what_lies_outside_is_seen(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("a")
    (tmp_path / "gone").write_text("a")
    before = listing(tmp_path, [tmp_path / "out"])
    (tmp_path / "out/inside").write_text("b")
    (tmp_path / "mine").write_text("ab")
    (tmp_path / "new").symlink_to("/nowhere")
    (tmp_path / "gone").unlink()
    found = changes(before, listing(tmp_path, [tmp_path / "out"]))
    assert found == ["'gone' is gone", "'new' is new", "'mine' is another"]


def test_bits_are_compared_without_times(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"seed": 0, "cost": {"fit_seconds": 1.0}, "created": "now"}))
    expected = digests(tmp_path)
    path.write_text(json.dumps({"seed": 0, "cost": {"fit_seconds": 2.0}, "created": "then"}))
    assert not judge_bits(digests(tmp_path), expected)
    path.write_text(json.dumps({"seed": 1, "cost": {}, "created": "then"}))
    assert verdicts(judge_bits(digests(tmp_path), expected)) == ["wrong number"]
    path.rename(tmp_path / ".run.json.tmp")
    assert verdicts(judge_bits(digests(tmp_path), expected)) == ["lost", "other"]


def test_the_table_counts_each_case_once() -> None:
    case = Case("inputs", "17", "a|b", lambda stage: [])
    lines = command.table([(case, Finding("ok"), 1.0), (case, Finding("traceback", "why <b>"), 1.0)])
    assert [cell.strip() for cell in lines[2].split("|")[1:6]] == ["inputs", "17", "2", "1", "0"]
    assert lines[-1] == "- inputs 17: a|b: **traceback**: why \\<b>"


def test_every_case_has_a_name_of_its_own() -> None:
    args = command.parse(["--kills", "300"])
    cases = [case for cases in command.FAMILIES.values() for case in cases(args)]
    names = [(case.family, case.item, case.name) for case in cases]
    assert len(set(names)) == len(names)
    kills = [int(case.name.split(", ")[1].split()[0]) for case in cases if case.family == "kills"]
    assert sum(kills) == 300
