"""What is said of how many kinds of tampering are found is as many as the tests have."""

from __future__ import annotations

import re
from pathlib import Path

from runs import test_regions, test_verification
from test_conditions_of_runs import CAREFUL as OF_CONDITIONS

ROOT = Path(__file__).parents[2]


def test_what_is_said_is_what_is_tested() -> None:
    page = (ROOT / "results/verify.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \|$", page.partition("## On real runs")[0], re.MULTILINE)
    assert all(kinds == found for _, kinds, found in rows)

    def of(beginning: str) -> int:
        return sum(int(kinds) for what, kinds, _ in rows if what.startswith(beginning))

    assert of("with care: sPRO") == len(test_regions.CAREFUL)
    assert of("with care: conditions") == len(OF_CONDITIONS)
    assert of("with care") == len(test_verification.CAREFUL) + len(test_regions.CAREFUL) + len(OF_CONDITIONS)
    assert of("without") == len(test_verification.CARELESS) + 1  # of conditions
    assert of("beside the images") == len(test_verification.BESIDE_IMAGES)
    (total,) = re.findall(r"(\d+) in all", page)
    (news,) = re.findall(r"(\d+) kinds of tampering", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert int(total) == int(news) == of("")
