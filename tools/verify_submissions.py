"""Verify the folders below results/community/ that a change adds or edits; status 1 if any is not as it should be.

    python tools/verify_submissions.py REPOSITORY BASE HEAD [--jobs N]

A pull request adds folders of its own. It does not write which runs are verified: whoever merges it does, by
``hrbench verify results/community --record results/community/verified.json``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from hrbench.cli import main as hrbench

FOLDER = "results/community"
OURS = ("README.md", "verified.json")  # whoever merges writes these


def changed_files(repository: Path, base: str, head: str) -> list[str]:
    """Return the files that differ between where the change began and what it leaves, of renamed ones both names."""
    command = ["git", "-C", str(repository), "diff", "--name-only", "--no-renames", "-z", f"{base}...{head}"]
    return [
        name for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0") if name
    ]


def submissions(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the folders that files lie in, and what is wrong with other files."""
    folders, wrong = set(), []
    for name in names:
        folder, _, rest = name.removeprefix(f"{FOLDER}/").partition("/")
        if not name.startswith(f"{FOLDER}/"):
            wrong.append(f"{name}: outside of {FOLDER}, expected results alone, or another pull request for it")
        elif not rest:
            kind = "is written by who merges" if folder in OURS else "expected in a folder of its own"
            wrong.append(f"{name}: {kind}")
        else:
            folders.add(folder)
    return sorted(folders), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="with HEAD checked out")
    parser.add_argument("base", help="commit that the change goes to")
    parser.add_argument("head", help="commit of the change")
    parser.add_argument("--jobs", default="1")
    args = parser.parse_args()
    folders, wrong = submissions(changed_files(args.repository, args.base, args.head))
    for text in wrong:
        print(text, file=sys.stderr)
    status = 1 if wrong else 0
    for name in folders:
        folder = args.repository / FOLDER / name
        if not folder.is_dir():
            print(f"{FOLDER}/{name}: removed")
            continue
        if not (folder / "submission.json").is_file():
            print(f"{FOLDER}/{name}: no submission.json, expected what `hrbench publish` writes", file=sys.stderr)
            status = 1
            continue
        print(f"{FOLDER}/{name}", flush=True)
        status = max(status, hrbench(["verify", str(folder), "--jobs", args.jobs]))
    return status


if __name__ == "__main__":
    sys.exit(main())
