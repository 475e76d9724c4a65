"""The command: plays the cases, prints what is not ok, and writes the table."""

from __future__ import annotations

import argparse
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import adapters, damage, inputs, kills, load
from .verdict import VERDICTS, Finding, worst
from .world import Case, Server, Stage, World

FAMILIES: dict[str, Callable[[argparse.Namespace], Iterable[Case]]] = {
    "kills": kills.cases,
    "inputs": inputs.cases,
    "adapters": adapters.cases,
    "damage": damage.cases,
    "load": load.cases,
}
Result = tuple[Case, Finding, float]


def play(case: Case, world: World, place: Path, *, keep: bool) -> Result:
    """Play a case in a folder of its own, and judge it."""
    began = time.monotonic()
    stage, findings = Stage(world, place), []
    try:
        for found in case.play(stage):
            findings.append(found)  # one by one: what was found before an error counts
    except Exception as error:  # the campaign's own fault, or what it reads is not there: the other cases go on
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        findings.append(Finding("other", f"campaign: {type(error).__name__}: {error} ({where})"))
    finding = worst([*findings, *stage.judge()])
    shown = finding.why.replace(f"{place}/", "").replace(f"{world.root}/", "")
    finding = Finding(finding.verdict, " ".join(shown.split()).encode("utf-8", "backslashreplace").decode())
    if finding.verdict != "ok" and keep:
        for number, outcome in enumerate(stage.outcomes):
            (place / f"said-{number}.txt").write_text(
                f"{outcome}\n\n{outcome.text}", encoding="utf-8", errors="replace"
            )
    else:
        shutil.rmtree(place, ignore_errors=True)
    return case, finding, time.monotonic() - began


def play_all(cases: Sequence[Case], args: argparse.Namespace, work: Path) -> list[Result]:
    """Play the cases, on so many servers at the same time."""
    todo: queue.SimpleQueue[tuple[int, Case]] = queue.SimpleQueue()
    for numbered in enumerate(cases):
        todo.put(numbered)
    results: dict[int, Result] = {}
    said, stop = threading.Lock(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the cases that are begun are ended, and the table is written
        signal.signal(number, lambda *_: stop.set())

    def serve(number: int) -> None:
        server = Server(args.python, work / f"server-{number}")
        world = World(work / f"world-{number}", server, args.seed)
        world.root.mkdir()
        while not stop.is_set():
            try:
                at, case = todo.get_nowait()
            except queue.Empty:
                break
            results[at] = play(case, world, work / f"case-{at:04d}", keep=args.keep)
            with said:
                show(results[at], len(results), len(cases), at)
        server.close()

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[at] for at in sorted(results)]


def show(result: Result, done: int, total: int, number: int) -> None:
    """Say how far it is, and what is not ok."""
    case, finding, seconds = result
    if finding.verdict != "ok":
        print(f"{done}/{total} case-{number:04d} {case.family} {case.item}: {case.name}: {finding.verdict}: "
              f"{finding.why} ({seconds:.1f} s)", flush=True)  # fmt: skip
    elif done % 25 == 0:
        print(f"{done}/{total}", flush=True)


def table(results: Sequence[Result]) -> list[str]:
    """Return the table: a line for each family and item, and below it each case that is not ok."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for case, finding, _ in results:
        counts.setdefault((case.family, case.item), Counter())[finding.verdict] += 1
    rows = [[*key, str(count.total()), *(str(count[name]) for name in VERDICTS)] for key, count in counts.items()]
    total = Counter(finding.verdict for _, finding, _ in results)
    rows.append(["all", "", str(total.total()), *(str(total[name]) for name in VERDICTS)])
    cells = [["family", "item", "cases", *VERDICTS], *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    bad = [
        f"- {case.family} {case.item}: {case.name}: **{finding.verdict}**: {_escaped(finding.why)}"
        for case, finding, _ in results
        if finding.verdict != "ok"
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:], "", *bad]


def _escaped(text: str) -> str:
    return text.translate({ord(character): f"\\{character}" for character in "<*_`|"})


def commit_of(python: str) -> str:
    """Return the commit of the hrbench that an interpreter imports."""
    code = "import hrbench; print(hrbench.__file__)"
    found = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, cwd="/", check=True)
    place = Path(found.stdout.strip()).parent
    command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.campaign", description="A hostile campaign against hrbench.")
    parser.add_argument("--python", default=sys.executable, help="interpreter whose hrbench is tried")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=[name for name in FAMILIES if name != "load"])
    parser.add_argument("--only", nargs="+", metavar="ITEM", help="only these items of the issue")
    parser.add_argument("--match", help="only cases whose name contains this")
    parser.add_argument("--limit", type=int, help="at most so many cases of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--targets", type=lambda text: text.split(","), help=f"of kills: {','.join(kills.TARGETS)}")
    parser.add_argument("--jobs", type=int, default=1, help="servers at the same time")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the cases that are not ok")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--heading", default="", help="of the table")
    parser.add_argument("--append", action="store_true", help="after what the file holds")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the campaign."""
    args = parse()
    began = time.monotonic()
    cases: list[Case] = []
    for family in args.family:
        chosen = [
            case
            for case in FAMILIES[family](args)
            if (not args.only or case.item in args.only) and (not args.match or args.match in case.name)
        ]
        cases += chosen[: args.limit]
    if args.work:
        Path(args.work).mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="campaign-", dir=args.work))
    results = play_all(cases, args, work)
    minutes = (time.monotonic() - began) / 60
    heading = [f"## {args.heading}", ""] if args.heading else []
    about = (
        f"Commit {commit_of(args.python)}, families {' '.join(args.family)}, seed {args.seed}, {minutes:.1f} minutes."
    )
    struck = [
        f"{kills.STRUCK.total()} kills: " + ", ".join(f"{n} {name}" for name, n in kills.STRUCK.items()) + ".",
        "",
    ]
    text = "\n".join([*heading, about, "", *(struck if kills.STRUCK else ()), *table(results), ""])
    print(text)
    if args.output:
        before = args.output.read_text(encoding="utf-8") + "\n" if args.append and args.output.is_file() else ""
        args.output.write_text(before + text, encoding="utf-8")
    if args.keep:
        print(f"kept: {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if any(finding.verdict != "ok" for _, finding, _ in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
