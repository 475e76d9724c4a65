"""Progress without a terminal."""

import logging

from hrbench._util import progress


def test_lines_tell_how_far_a_step_is(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", -1.0)
    with caplog.at_level(logging.DEBUG, logger="hrbench"):
        assert list(progress.track("abc", "letters", total=5, initial=2, unit="char")) == ["a", "b", "c"]
    first, second, end = (record.getMessage() for record in caplog.records)
    assert first.startswith("letters: 3 of 5 char")
    assert second.startswith("letters: 4 of 5 char")
    assert end.startswith("letters: 3 char in")
