"""What the sub-commands do. Each function takes the parsed arguments and returns the exit status."""

from __future__ import annotations

import argparse
import ast
import keyword
import logging
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hrbench._util.progress import track
from hrbench.data import (
    Dataset,
    check_dataset,
    dataset_stats,
    dataset_summary,
    list_datasets,
    load_dataset,
    load_descriptor,
    make_dataset,
)
from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol, list_protocols, load_protocol
from hrbench.runs.store import Run, read_runs

__all__ = [
    "data_check",
    "data_make",
    "data_stats",
    "demo",
    "evaluate",
    "leaderboard",
    "list_all",
    "new_method",
    "plot",
    "run",
]

log = logging.getLogger("hrbench")

DEMO_CATEGORIES = ("weave", "circuit_board")
DEMO_METHODS = ("fastflow", "uflow", "rstpm", "isstad", "l2bt")


def demo(args: argparse.Namespace) -> int:
    """Make data, run the methods in their demo preset, write and print everything."""
    root = make_dataset(
        args.output / "procedural",
        categories=DEMO_CATEGORIES,
        size=(448, 448),  # four tiles of 256 px; 512 px would take nine
        train=12,
        test_good=6,
        test_defective=18,
        progress=_progress("making images"),
    )
    dataset = load_dataset("folder", root)
    runs, failed = _run_jobs(dataset, None, DEMO_METHODS, args.output, preset="demo", device=args.device)
    _report(runs, args.output / "report", load_protocol("native"))
    return 2 if failed else 0


def run(args: argparse.Namespace) -> int:
    """Run all jobs of the grid category x method x view x seed that are not done yet."""
    dataset = load_dataset(args.dataset, args.root, args.categories)
    runs, failed = _run_jobs(
        dataset,
        args.categories,
        args.methods,
        args.output,
        preset=args.preset,
        views=args.view,
        options=_options(args.set, args.weights, args.methods),
        seeds=args.seeds,
        device=args.device,
        protocols=[load_protocol(name) for name in args.protocol],
        batch_size=args.batch_size,
        save_maps=args.save_maps,
        precision=args.precision,
        compiled=args.compile,
    )
    if runs:
        from hrbench.report import terminal_table

        print(terminal_table(runs, load_protocol(args.protocol[0])))
        print(f"{len(runs)} runs in {args.output}; for the page and the plots: hrbench leaderboard {args.output}")
    return 2 if failed else 0


def evaluate(args: argparse.Namespace) -> int:
    """Score finished maps and print the table."""
    from hrbench.report import terminal_table
    from hrbench.runs.external_maps import score_maps

    protocols = [load_protocol(name) for name in args.protocol]
    dataset = load_dataset(args.dataset, args.root, args.categories)
    name = args.name or args.maps.resolve().name
    runs = [
        score_maps(
            category,
            args.maps,
            args.output,
            protocols,
            name=name,
            normal_maps=_normal_maps(args.normal_maps, category.name, len(dataset.categories)),
            exact=args.exact,
        )
        for category in dataset.categories
    ]
    print(terminal_table(runs, protocols[0]))
    for done in runs:
        print(
            f"{done.config['dataset']['category']}: every metric with its error bound in {done.folder / 'records.csv'}"
        )
        done.records.to_csv(done.folder / "records.csv", index=False)
    return 0


def _normal_maps(folder: Path | None, category: str, categories: int) -> Path | None:
    """Return the folder of a category's normal maps: thresholds of different categories must not mix."""
    if folder is None or categories == 1:
        return folder
    if not (folder / category).is_dir():
        raise HrbenchError(f"{folder / category}: no such folder, expected normal maps of each category in its own")
    return folder / category


def leaderboard(args: argparse.Namespace) -> int:
    """Write the leaderboard files and print the table."""
    from hrbench.report import terminal_table, write_leaderboard

    protocol, runs = load_protocol(args.protocol), read_runs(args.runs)
    written = write_leaderboard(runs, args.output or args.runs / "report", protocol)
    print(terminal_table(runs, protocol))
    for path in written.values():
        print(path)
    return 0


def plot(args: argparse.Namespace) -> int:
    """Write the plots."""
    from hrbench.report import write_plots

    for path in write_plots(read_runs(args.runs), args.output or args.runs / "report", load_protocol(args.protocol)):
        print(path)
    return 0


def data_make(args: argparse.Namespace) -> int:
    """Write the procedural dataset."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", args.size)
    if not match:
        raise HrbenchError(f"--size is {args.size!r}, expected HEIGHTxWIDTH or one number, in pixels")
    root = make_dataset(
        args.root,
        categories=args.categories,
        size=(int(match[1]), int(match[2] or match[1])),
        train=args.train,
        test_good=args.test_good,
        test_defective=args.test_defective,
        seed=args.seed,
        progress=_progress("making images"),
    )
    print(f"{root}: run methods on it with `hrbench run --dataset folder --root {root} ...`")
    return 0


def data_check(args: argparse.Namespace) -> int:
    """Print what differs from the descriptor; status 1 if anything does."""
    findings = check_dataset(args.dataset, args.root, progress=_progress("checking"))
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings in {args.root}")
        return 1
    print("\n".join(dataset_summary(args.dataset, args.root)))
    print(f"{args.root}: as expected")
    return 0


def data_stats(args: argparse.Namespace) -> int:
    """Print sizes of images and components per category."""
    stats = dataset_stats(load_dataset(args.dataset, args.root, args.categories), progress=_progress("measuring"))
    print(stats.set_index("category").T.to_string(float_format=lambda x: f"{x:.6g}"))
    return 0


def new_method(args: argparse.Namespace) -> int:
    """Write an adapter and its test."""
    name = args.name
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise HrbenchError(f"name {name!r}: expected a Python identifier such as my_method")
    cls = "".join(part.capitalize() for part in name.split("_"))
    fields = {"name": name, "file": f"{name}.py", "cls": cls, "title": name.replace("_", " ").title()}
    targets = {"adapter.txt": args.folder / f"{name}.py", "test_adapter.txt": args.folder / f"test_{name}.py"}
    for path in targets.values():
        if path.exists():
            raise HrbenchError(f"{path}: exists already, it was not overwritten")
    args.folder.mkdir(parents=True, exist_ok=True)
    for template, path in targets.items():
        text = (files("hrbench") / "templates" / template).read_text(encoding="utf-8")
        path.write_text(text.format(**fields), encoding="utf-8")
        print(path)
    print(f"try it: hrbench run --methods {targets['adapter.txt']} --preset demo --root DATASET")
    return 0


def list_all(args: argparse.Namespace) -> int:
    """List what there is."""
    from hrbench.registry import list_methods, load_method

    print("methods (hrbench run --methods NAME --preset PRESET)")
    for name in list_methods():
        cls = load_method(name)
        print(f"  {name:<12} {cls.title}, {cls.paper}")
        for preset, chosen in cls.presets.items():
            print(f"      {preset:<12} {chosen.view}")
    print("datasets (--dataset NAME --root FOLDER)")
    for name in list_datasets():
        descriptor = load_descriptor(name)
        print(f"  {name:<14} {descriptor.title}; {descriptor.licence}")
    print("protocols (--protocol NAME)")
    for name in list_protocols():
        print(f"  {name:<14} {load_protocol(name).title}")
    return 0


def _run_jobs(
    dataset: Dataset,
    categories: Sequence[str] | None,
    methods: Sequence[str],
    output: Path,
    *,
    preset: str,
    device: str,
    views: Sequence[str] | None = None,
    options: dict[str, dict[str, Any]] | None = None,
    seeds: Sequence[int] = (0,),
    protocols: Sequence[Protocol] | None = None,
    batch_size: int = 8,
    save_maps: bool = False,
    precision: str = "auto",
    compiled: bool = False,
) -> tuple[list[Run], int]:
    """Check all jobs, then do them one by one; a job that fails does not stop the others."""
    from hrbench.engine.device import pick_device
    from hrbench.precision import pick_precision
    from hrbench.runs.job import make_job
    from hrbench.runs.runner import run_job

    if batch_size < 1:
        raise HrbenchError(f"--batch-size is {batch_size}, expected at least 1")
    rules = protocols or [load_protocol("native")]
    target = pick_device(device)
    chosen_views: Sequence[str | None] = views or [None]
    common = {"preset": preset, "precision": pick_precision(precision, target)}
    jobs = [
        make_job(category, method, view=view, options=(options or {}).get(method), seed=seed, **common)
        for method in dict.fromkeys(methods)
        for view in dict.fromkeys(chosen_views)
        for seed in dict.fromkeys(seeds)
        for category in dataset.select(categories)
    ]
    runs, failed = [], 0
    for number, job in enumerate(jobs, start=1):
        log.info("[%d/%d] %s", number, len(jobs), job.label)
        try:
            done = run_job(
                job, output, rules, device=target, batch_size=batch_size, save_maps=save_maps, compiled=compiled
            )
            runs.append(done)
        except HrbenchError as error:
            failed += 1
            print(f"hrbench: {job.label}: {error}", file=sys.stderr)
        except Exception:  # a fault of the method or of the suite: the other jobs must not be lost with it
            failed += 1
            log.exception("hrbench: %s failed", job.label)
    if failed:
        print(f"hrbench: {failed} of {len(jobs)} jobs failed; what was finished is kept", file=sys.stderr)
    return runs, failed


def _report(runs: list[Run], folder: Path, protocol: Protocol) -> None:
    from hrbench.report import terminal_table, write_leaderboard, write_plots

    if not runs:
        return
    written = write_leaderboard(runs, folder, protocol)
    plots = write_plots(runs, folder, protocol)
    print(terminal_table(runs, protocol))
    print(f"page:  {written['html']}")
    print(f"plots: {plots[0]} and {len(plots) - 1} more beside it")


def _options(assignments: Sequence[str], weights: str | None, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse ``[METHOD.]OPTION=VALUE`` into options per method; values are Python literals, else text."""
    result: dict[str, dict[str, Any]] = {method: {} for method in methods}
    if weights is not None:
        assignments = [f"weights={weights}", *assignments]
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        method, dot, option = target.rpartition(".")
        if not equals or not option.isidentifier() or (dot and method not in methods):
            named = ", ".join(methods)
            raise HrbenchError(f"--set {assignment!r}: expected [METHOD.]OPTION=VALUE with a method of {named}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        for name in [method] if dot else methods:
            result[name][option] = value
    return result


def _progress(description: str) -> Any:
    def wrap(items: Any) -> Any:
        items = list(items)
        return track(items, description, total=len(items), unit="img")

    return wrap
