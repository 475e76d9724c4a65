"""Time that `hrbench verify` takes for many runs, and what `hrbench publish` makes of evidence.

    python tools/bench_verify.py RUNS [--runs 100] [--jobs 1 2] [--output results/verify.md]

The finished runs below RUNS are copied as often as it takes, by hard links, and verified in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from hrbench.runs.publication import publish
from hrbench.runs.store import find_runs
from hrbench.runs.submission import Submission


def copied(runs: list[Path], number: int, target: Path) -> None:
    """Link the files of runs into so many folders."""
    for index, run in enumerate(islice(cycle(runs), number)):
        shutil.copytree(run, target / f"{index:04d}" / run.name, copy_function=os.link)


def verified(folder: Path, jobs: int) -> tuple[float, float]:
    """Return the seconds that verifying takes: by the clock, and of all processes."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hrbench", "verify", str(folder), "--jobs", str(jobs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def evidence_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("evidence/*/*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUNS")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="append the tables to this file")
    args = parser.parse_args()
    runs = find_runs(args.folder)
    images = sorted({run.about.dataset.test for run in runs})
    protocols = sorted({name for run in runs for name in run.about.protocols})
    what = f"{' or '.join(map(str, images))} test images, {', '.join(protocols)}"
    lines = [
        f"{args.runs} runs, copies of {len(runs)} of {what}:",
        "",
        "| processes | seconds | a run | seconds of processors |",
        "| --: | --: | --: | --: |",
    ]
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as scratch:
        copied([run.folder for run in runs], args.runs, Path(scratch) / "copies")
        for jobs in args.jobs:
            wall, spent = verified(Path(scratch) / "copies", jobs)
            lines.append(f"| {jobs} | {wall:.0f} | {wall / args.runs:.2f} | {spent:.0f} |")
        written, _ = publish(args.folder, Path(scratch) / "published", Submission(author="Nobody"))
        assert written is not None, "not verified"
    before = evidence_bytes(args.folder)
    each = len(runs) * 1e6
    lines += [
        "",
        f"Evidence of a run: {before / each:.2f} MB as it is kept, {written.evidence_bytes / each:.2f} MB published.",
    ]
    text = "\n".join(lines)
    print(text)
    if args.output is not None:
        with args.output.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")


if __name__ == "__main__":
    main()
