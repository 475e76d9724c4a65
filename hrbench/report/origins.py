"""Who measured what a leaderboard shows, when, and whether it was verified: of runs that were published."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hrbench.errors import HrbenchError
from hrbench.runs.verification import MEANING
from hrbench.runs.verified import Origin, origin_of

if TYPE_CHECKING:
    from hrbench.report.configurations import CountedRun

__all__ = ["known_origin", "origin_notes", "origin_parts", "origin_text"]

log = logging.getLogger("hrbench")


def known_origin(run: Path) -> Origin:
    """Return where a run comes from; nothing is known where a file that says so is damaged, and a warning names it."""
    try:
        return origin_of(run)
    except HrbenchError as error:
        log.warning("%s", error)
        return Origin()


def origin_text(runs: Iterable[CountedRun]) -> str:
    """Return who measured runs of one row, and whether all of them were verified; "" where nothing is known of any."""
    origins = [run.origin for run in runs]
    texts = list(dict.fromkeys(origin.text or "not published" for origin in origins))
    return "; ".join(texts) if any(origin.text for origin in origins) else ""


def origin_parts(runs: Iterable[CountedRun]) -> tuple[str, tuple[str, ...]]:
    """Return who measured the runs of one row, and in small print when, and whether all of them were verified."""
    origins = [run.origin for run in runs]
    said = [origin.submission for origin in origins if origin.submission is not None]
    authors, dates = dict.fromkeys(one.author for one in said), sorted({one.published[:10] for one in said})
    states = {origin.verified for origin in origins}
    state = "verified" if states == {True} else "NOT verified" if False in states else "not verified"
    return ", ".join(authors) or "–", (*dates[-1:], state)


def origin_notes(runs: Iterable[CountedRun]) -> list[str]:
    """Say of each publication what rows come from it, and what verified means."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        if (submission := run.origin.submission) is not None:
            beside = ", ".join(filter(None, (submission.orcid and f"ORCID {submission.orcid}", submission.url)))
            said = run.origin.text + (f" ({beside})" if beside else "")
            rows.setdefault(said, []).append(run.configuration.label)
        elif run.origin.text:
            rows.setdefault(run.origin.text, []).append(run.configuration.label)
    notes = [f"{', '.join(dict.fromkeys(labels))}: {said}." for said, labels in rows.items()]
    return [*notes, MEANING] if notes else []
