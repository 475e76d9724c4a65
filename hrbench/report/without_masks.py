"""What a report shows of datasets without masks, or without defective images, and how it says so."""

from __future__ import annotations

from collections.abc import Sequence

from hrbench.metrics.missing import left_open
from hrbench.protocol import Protocol
from hrbench.report.columns import Column, image_columns
from hrbench.report.configurations import CountedRun
from hrbench.report.promise import promise_sentences
from hrbench.report.summary import Leaderboard

__all__ = ["board_columns", "has_masks", "left_open_notes", "left_open_sentences", "terminal_heads"]


def has_masks(board: Leaderboard, category: str = "") -> bool:
    """Tell whether defects have masks in a category, or in any (``""``), so that there is AUPRO."""
    return any(key[1] == category and key[2] == "aupro" for key in board.estimates)


def board_columns(board: Leaderboard) -> list[Column] | None:
    """Return the columns of a leaderboard without any mask; None for others."""
    return None if has_masks(board) else image_columns(board.protocol)


def _ranked_by(board: Leaderboard) -> str:
    if any(key[2] == "image_auroc" for key in board.estimates):
        return "Ranked by image ROC-AUC: without masks there is no AUPRO."
    return "Not ranked: it takes defective images and good ones."


def left_open_notes(board: Leaderboard) -> list[str]:
    """Say what stays open, and how rows are ranked then; without any mask also what thresholds have promised."""
    told = [] if has_masks(board) else [_ranked_by(board), *promise_sentences(board)]
    return [*left_open_sentences(board.runs), *told]


def left_open_sentences(runs: Sequence[CountedRun]) -> list[str]:
    """Say what stays open on the images of a dataset's runs; by category where it is not the same in all."""
    counts = {run.category: (run.test - run.defective, run.defective, run.unmasked) for run in runs}
    kinds = {(not good, not bad, 0 < unmasked < bad, unmasked == bad) for good, bad, unmasked in counts.values()}
    if len(kinds) == 1:
        text = left_open(*(sum(numbers) for numbers in zip(*counts.values(), strict=True)))
        return [text] if text else []
    return [f"{name}: {text}" for name in sorted(counts) if (text := left_open(*counts[name]))]


def terminal_heads(protocol: Protocol) -> dict[str, str]:
    """Return the short headings of :func:`board_columns` by their keys."""
    heads = {"image_auroc": "I-AUC", "image_ap": "I-AP", "called": "called", "alarms": "alarms"}
    return heads | {
        column.key: f"called@{column.head}" for column in image_columns(protocol) if column.limit is not None
    }
