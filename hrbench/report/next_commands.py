"""What a grid of runs ends with: commands for what comes next, ready to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from hrbench.report.answer import answer_table
from hrbench.report.configurations import CountedRun
from hrbench.report.scores import read_scores
from hrbench.report.summary import Leaderboard, Row
from hrbench.runs.job import Job

__all__ = ["next_commands"]


def next_commands(board: Leaderboard, jobs: Mapping[Path, Job], protocol: str = "native") -> list[str]:
    """Return how to predict new images by the run that leads the first table, and how to compare it with the next.

    Parameters
    ----------
    board : Leaderboard
    jobs : mapping of Path to Job
        By folder, what has made the runs: where adapters and files of weights lie is known only to them.
    protocol : str
        As it was given: a name or a file.
    """
    answer = answer_table(read_scores(board), board)
    rows = [row for row in (answer.rows if answer else board.rows) if isinstance(row, Row) and not row.foreign]
    if not rows:
        return []
    best = rows[0].runs[0]
    given = _given(jobs[best.run.folder]) if best.run.folder in jobs else []
    words = ["hrbench", "predict", str(best.run.folder), *given, "--images", "FOLDER", "--output", "found"]
    commands = [shlex.join(words)]
    if other := next((run for row in rows[1:] for run in row.runs if _alike(run, best)), None):
        rules = ["--protocol", protocol] * (protocol != "native")
        commands.append(shlex.join(["hrbench", "compare", str(best.run.folder), str(other.run.folder), *rules]))
    return commands


def _alike(run: CountedRun, other: CountedRun) -> bool:
    return (run.category, run.seed, run.images) == (other.category, other.seed, other.images)


def _given(job: Job) -> list[str]:
    """Return what must be said again, for runs keep names only: where the adapter lies, and files that options name."""
    files = [
        f"{name}={value}"
        for name, value in job.options.items()
        if isinstance(value, str) and value != "bundled" and value != job.recorded_options.get(name)
    ]
    return ["--method", job.method] * job.method.endswith(".py") + ["--set", *files] * bool(files)
