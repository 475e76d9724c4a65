"""What the sub-commands do. Each function takes the parsed arguments and returns the exit status."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hrbench
from hrbench._util.disk import explaining
from hrbench._util.files import atomic
from hrbench._util.progress import track, tracker
from hrbench._util.signals import sigterm
from hrbench._util.words import nbytes
from hrbench.command_line import options_by_method, parse_settings, setting_texts, write_command
from hrbench.data import (
    Dataset,
    Descriptor,
    check_dataset,
    dataset_stats,
    dataset_summary,
    find_categories,
    list_datasets,
    load_dataset,
    load_descriptor,
    make_dataset,
)
from hrbench.data.loose import find_loose
from hrbench.errors import UNFINISHED_STATUS, HrbenchError
from hrbench.method_names import Listed, check_method, list_methods, read_method
from hrbench.protocol import Protocol, list_protocols, load_protocol
from hrbench.runs.store import Run, RunFolder, find_runs, load_run, read_runs
from hrbench.scaffold import write_adapter

if TYPE_CHECKING:  # they bring torch along
    from hrbench.grid.engine import Engine
    from hrbench.grid.study import Failure, Study
    from hrbench.report.columns import Column
    from hrbench.runs.detector import Detector

__all__ = [
    "annotation",
    "compare",
    "conditions",
    "data_check",
    "data_make",
    "data_stats",
    "demo",
    "evaluate",
    "export",
    "fit",
    "leaderboard",
    "list_all",
    "new_method",
    "plot",
    "predict",
    "publish",
    "rescore",
    "run",
    "show",
    "submission_check",
    "submission_make",
    "verify",
]
log = logging.getLogger("hrbench")


def demo(args: argparse.Namespace) -> int:
    """Make data, run all methods in their demo preset, print and write everything."""
    from hrbench.demo import demo as run_demo

    with sigterm() as stop:
        study = run_demo(args.output, args.device, stop)
    status = _say_failures(study)
    return _say_left(study, stopped=stop()) or status


def check_names(args: argparse.Namespace, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise the error of names and folders of a grid that can be told before torch is imported."""
    for method in args.methods:
        check_method(method, args.preset, options[method])
    for protocol in args.protocol:
        load_protocol(protocol)
    find_categories(args.dataset, args.root, args.categories)


def run(args: argparse.Namespace) -> int:
    """Run all jobs of the grid category x method x view x seed that are not done yet."""
    _check_given(args, "root", "methods")
    options = _options(args)
    check_names(args, options)
    with sigterm() as stop:
        study = hrbench.run(
            args.dataset,
            args.methods,
            root=args.root,
            output=args.output,
            categories=args.categories,
            preset=args.preset,
            views=args.view,
            seeds=args.seeds,
            options=options,
            protocols=args.protocol,
            device=args.device,
            precision=args.precision,
            held_out=args.held_out,
            batch_size=args.batch_size,
            save_maps=args.save_maps,
            compiled=args.compile,
            engine=_engine(args),
            check=args.check,
            dry_run=args.dry_run,
            stop=stop,
        )
    if args.dry_run:
        return 0
    if study.runs:
        from hrbench.report import summarise
        from hrbench.report.next_commands import next_commands
        from hrbench.report.terminal import print_tables

        summary = summarise(study.runs, protocol := load_protocol(args.protocol[0]))
        print_tables(study.runs, protocol, summary=summary)
        print(f"{_counted(len(study.runs), 'run')} in {args.output}; next:")
        jobs = {planned.job.folder(args.output).path: planned.job for planned in study.plan.jobs} if study.plan else {}
        print(f"  {shlex.join(['hrbench', 'leaderboard', str(args.output)])}")
        for board in summary.leaderboards:
            print(*(f"  {line}" for line in next_commands(board, jobs, args.protocol[0])), sep="\n")
    status = _say_failures(study)
    for failure in study.failures:
        print(f"hrbench: {failure.job}: {_one_line(failure.error)}", file=sys.stderr)
        print(f"  {_repeating(args, failure, options[failure.method])}", file=sys.stderr)
    return _say_left(study, stopped=stop()) or status


def evaluate(args: argparse.Namespace) -> int:
    """Score finished maps and print the table."""
    from hrbench.report.terminal import print_tables
    from hrbench.report.text import csv_text
    from hrbench.runs.external_maps import score_maps
    from hrbench.runs.scoring import distinct_protocols

    protocols = distinct_protocols(args.protocol)
    dataset = load_dataset(args.dataset, args.root, args.categories)
    _say_left_out(dataset)
    runs = score_maps(
        dataset.categories,
        args.maps,
        args.output,
        protocols,
        name=args.name or args.maps.resolve().name,
        normal_maps=args.normal_maps,
        exact=args.exact,
    )
    print_tables(runs, protocols[0])
    for done in runs:
        print(f"{done.about.dataset.category}: every metric with its error bound in {done.folder / 'records.csv'}")
        with atomic(done.folder / "records.csv") as path:
            path.write_text(csv_text(done.records), encoding="utf-8", newline="\n")
    return 0


def fit(args: argparse.Namespace) -> int:
    """Fit a method on normal images and keep it."""
    if args.output.exists():  # before hours are spent
        raise HrbenchError(f"--output {args.output}: exists already, expected the path of a new folder")
    options = {option: value for _, option, value in parse_settings(args.set, ())}
    check_method(args.method, args.preset, options)
    load_protocol(args.protocol)
    find_loose(args.images)
    detector = hrbench.fit(
        args.method,
        args.images,
        preset=args.preset,
        view=args.view,
        options=options,
        seed=args.seed,
        protocol=args.protocol,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
    )
    detector.save(args.output)
    print(_described(detector))
    print(f"apply it: hrbench predict {args.output} --images FOLDER --output FOUND")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Predict new images, and say what alarms; status 2 if an image could not be predicted."""
    for folder in args.images:
        if args.output.resolve().is_relative_to(folder.resolve()):
            raise HrbenchError(f"--output {args.output}: lies in {folder}, expected a folder outside of the images")
    samples = find_loose(args.images)
    settings = parse_settings(args.set, ())
    _check_fitted(args.run)

    from hrbench.runs.predictions import ALARM, predict_files

    detector = hrbench.Detector.load(
        args.run,
        method=args.method,
        options={option: value for _, option, value in settings},
        view=args.view,
        device=args.device,
        batch_size=args.batch_size,
    )
    found = predict_files(detector, samples, args.output, save_maps=args.save_maps)
    done = [row for row in found.rows if row["score"]]
    alarms, failed = sum(row["verdict"] == ALARM for row in done), len(found.failures)
    said = [f"{alarms} alarm, {len(done) - alarms} do not" if detector.threshold is not None else "no verdicts"]
    said += [f"{failed} could not be predicted"] * (failed > 0)
    said += [f"{found.before} predicted by an earlier call"] * (found.before > 0)
    print(_described(detector))
    print(f"{_counted(len(samples), 'image')}: {'; '.join(said)}")
    for name in ("predictions.csv", "components.csv", "overlays", *["maps"] * args.save_maps):
        print(args.output / name)
    for failure in found.failures:
        print(f"hrbench: {failure}", file=sys.stderr)
    return 2 if failed else 0


def export(args: argparse.Namespace) -> int:
    """Write a fitted method as graphs that run without hrbench."""
    _check_fitted(args.run)
    detector = hrbench.Detector.load(
        args.run,
        method=args.method,
        options={option: value for _, option, value in parse_settings(args.set, ())},
        device="cpu",
    )
    found = detector.export(args.output, args.images)
    print(_described(detector))
    said = found.agreement
    verdicts = "no verdicts" if said.alarms is None else f"all verdicts equal, {said.alarms} alarm"
    print(f"compared on {_counted(said.images, 'image')}: {verdicts}; scores differ by at most {said.difference:.1g}")
    if found.size is not None:
        height, width = found.size
        print(f"only for images of {height} x {width} pixels (height x width): the method's finish depends on them")
    for path in found.files:
        print(path)
    print(f"run it: python {found.files[-1]} {found.files[-2]} IMAGE ...")
    if args.output.suffix == ".pt2":
        print("never load a .pt2 that you did not make: torch may run whatever is in it")
    return 0


def submission_make(args: argparse.Namespace) -> int:
    """Pack maps of private test images for the publisher's server."""
    from hrbench.runs.server_archive import LIMITS, pack_maps

    packed = pack_maps(
        args.runs,
        args.root,
        args.to,
        dataset=args.dataset,
        method=args.method,
        options={option: value for _, option, value in parse_settings(args.set, ())},
        device=args.device,
        batch_size=args.batch_size,
    )
    for item in packed:
        merged, images = item.merged, _counted(item.merged.images, "image")
        kept = f"{merged.before // merged.images:,} scores of a map became {merged.after // merged.images:,}"
        moves = " and ".join(f"{merged.moves(limit):.1g} (up to {limit:g})" for limit in LIMITS)
        print(f"{item.category}: {images}, {item.called:.2%} of the pixels called at {item.threshold:.6g}; in float16 "
              f"{kept}, which moves AU-PRO by at most {moves}")  # fmt: skip
    if missing := sorted(load_descriptor(args.dataset).categories.keys() - {item.category for item in packed}):
        print(f"hrbench: the server takes all objects at once; missing: {', '.join(missing)}", file=sys.stderr)
    print(f"{args.to} ({nbytes(args.to.stat().st_size)}), and where it comes from: {args.to}.json")
    print(f"check it: hrbench submission check {args.to} --root {args.root}")
    return 0


def submission_check(args: argparse.Namespace) -> int:
    """Print what an archive holds, and what is wrong with it; status 1 if anything is."""
    from hrbench.report.archive_text import archive_text
    from hrbench.report.terminal import Terminal
    from hrbench.runs.server_archive_check import check_archive

    parts, findings = check_archive(args.archive, args.root, dataset=args.dataset)
    print(archive_text(str(args.archive), parts, Terminal.here()))
    for finding in findings:
        print(finding)
    print(f"{args.archive}: {_counted(len(findings), 'finding') if findings else 'as the server takes it'}")
    return 1 if findings else 0


def compare(args: argparse.Namespace) -> int:
    """Print which of two runs is better by how much, and how sure that is."""
    from hrbench.report.text import csv_text

    runs = {"a": load_run(args.run_a), "b": load_run(args.run_b)}
    found = hrbench.compare(*runs.values(), protocol=args.protocol)
    for name, run in runs.items():
        method, about = run.about.method, run.about
        weights = f"weights {method.weights_source}, " * (method.weights_source != "none")
        print(f"{name}: {method.title or method.name}, {about.view}, {weights}seed {about.seed} ({run.folder})")
    print(f"\n{found}")
    if args.csv is not None:
        with atomic(args.csv) as path:
            path.write_text(csv_text(found.frame), encoding="utf-8", newline="\n")
        print(f"\nevery metric: {args.csv}")
    return 0


def annotation(args: argparse.Namespace) -> int:
    """Print what becomes of the scores of runs where all masks are a pixel wider, or narrower."""
    from hrbench.report import summarise
    from hrbench.report.annotation import NOT_KNOWN, annotation_rows
    from hrbench.report.labels import parse_labels
    from hrbench.report.terminal import print_annotation
    from hrbench.report.text import csv_text

    summary = summarise(read_runs(*args.runs), load_protocol(args.protocol), parse_labels(args.label))
    table = annotation_rows(summary)
    if table.empty:
        raise HrbenchError(f"{args.runs[0]}: {NOT_KNOWN[:1].lower()}{NOT_KNOWN[1:]}")
    print_annotation(summary)
    if args.csv is not None:
        with atomic(args.csv) as path:
            path.write_text(csv_text(table), encoding="utf-8", newline="\n")
        print(f"every metric: {args.csv}")
    return 0


def conditions(args: argparse.Namespace) -> int:
    """Print a run's headline metrics under each condition, and what is lost against one of them."""
    from hrbench.report.conditions import conditions_text
    from hrbench.report.terminal import Terminal
    from hrbench.report.text import csv_text

    run = load_run(args.run)
    print(conditions_text(run, load_protocol(args.protocol), args.reference, Terminal.here()))
    if args.csv is not None:
        table = hrbench.by_condition(run, reference=args.reference, protocol=args.protocol)
        with atomic(args.csv) as path:
            path.write_text(csv_text(table), encoding="utf-8", newline="\n")
        print(f"every metric: {args.csv}")
    return 0


def rescore(args: argparse.Namespace) -> int:
    """Score finished runs anew from their evidence; status 2 if any could not be."""
    from hrbench.report.terminal import print_tables
    from hrbench.runs.scoring import distinct_protocols

    protocols, runs = distinct_protocols(args.protocol), find_runs(args.runs)
    descriptor = load_descriptor(args.dataset) if args.dataset else None
    if descriptor and not any(_is_of(run, descriptor) for run in runs):
        raise HrbenchError(f"{args.runs}: no run of dataset {descriptor.name!r}, whose groups were asked for")
    done, failures = [], []
    for run in track(runs, "rescoring", total=len(runs), unit="run"):
        try:
            with explaining(run.folder):
                if args.output is None:
                    done.append(_rescored(run, protocols, descriptor))
                else:
                    target = args.output / run.folder.relative_to(args.runs)
                    done.append(_rescored_copy(run, target, protocols, descriptor))
        except HrbenchError as error:
            failures.append(error)
    if done:
        print_tables(done, protocols[0])
        scored = f"scored under {', '.join(p.name for p in protocols)}"
        print(f"{_counted(len(done), 'run')} in {args.output or args.runs}, {scored}")
    for failure in failures:
        print(f"hrbench: {failure}", file=sys.stderr)
    if failures:
        print(f"hrbench: {len(failures)} of {len(runs)} runs are left as they were", file=sys.stderr)
    return 2 if failures else 0


def verify(args: argparse.Namespace) -> int:
    """Verify finished runs; status 1 if any is not as its evidence says."""
    from hrbench.runs.verification import verification_text, verify_runs
    from hrbench.runs.verified import record_verified

    if args.dataset is not None and args.root is None:
        raise HrbenchError(f"--dataset {args.dataset}: nothing is compared with it without --root, expected its folder")
    dataset = load_dataset(args.dataset or "folder", args.root) if args.root is not None else None
    protocols = [load_protocol(path) for path in args.protocol]
    found = verify_runs(args.runs, protocols, dataset.categories if dataset else (), jobs=args.jobs)
    if args.record is not None:
        record_verified(found, args.record)
    print(verification_text(found))
    return 0 if all(result.verified for result in found) else 1


def publish(args: argparse.Namespace) -> int:
    """Publish verified runs; status 1, and nothing written, if any is not."""
    from hrbench.runs.publication import publish as publish_runs
    from hrbench.runs.submission import Submission
    from hrbench.runs.verification import verification_text

    submission = Submission(author=args.author, orcid=args.orcid, url=args.url)
    written, found = publish_runs(args.runs, args.to, submission, protocols=args.protocol, jobs=args.jobs)
    print(verification_text(found))
    if written is None:
        print(f"hrbench: nothing written to {args.to}", file=sys.stderr)
        return 1
    print(f"{args.to}: {_counted(written.runs, 'run')} by {written.author}, {nbytes(written.bytes)}, "
          f"{nbytes(written.evidence_bytes)} of it evidence")  # fmt: skip
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Write the leaderboard files and print the table."""
    from hrbench.report import summarise, write_leaderboard
    from hrbench.report.labels import parse_labels
    from hrbench.report.terminal import print_links, print_tables

    shown = _paper_columns(args, protocol := load_protocol(args.protocol))
    runs = read_runs(*args.runs)
    summary = summarise(runs, protocol, parse_labels(args.label))
    if shown is not None:
        from hrbench.report.paper_table import paper_tables

        print(paper_tables(summary, shown, args.format or "markdown"), end="")
        return 0
    folder = args.output or args.runs[0] / "report"
    log.info("writing tables and the page of %s to %s", _counted(len(runs), "run"), folder)
    written = write_leaderboard(runs, folder, protocol, summary=summary, assets=args.assets)
    print_tables(runs, protocol, summary=summary)
    print_links(written.values())
    return 0


def show(args: argparse.Namespace) -> int:
    """Print what there is, and how it differs."""
    from hrbench.report.inventory import inventory_json, inventory_text, take_inventory
    from hrbench.report.labels import parse_labels
    from hrbench.report.terminal import Terminal

    found = take_inventory(args.runs, load_protocol(args.protocol), parse_labels(args.label))
    print(inventory_json(found) if args.json else inventory_text(found, Terminal.here()))
    return 0


def _paper_columns(args: argparse.Namespace, protocol: Protocol) -> Column | list[Column] | None:
    """Return what a table for a paper shows; None where none is asked for."""
    from hrbench.report.paper_table import by_category, on_average

    belong = {"metric": "category", "subset": "category", "columns": "average"}
    for option in (*belong, "format"):
        if getattr(args, option) is not None and args.table != belong.get(option, args.table or ""):
            raise HrbenchError(f"--{option} needs --table" + (f" {belong[option]}" if option in belong else ""))
    if args.table and args.assets:
        raise HrbenchError("--assets does not go with --table, which writes no page")
    if args.table and args.output:
        raise HrbenchError("--output does not go with --table, which prints the table: write it by > FILE")
    if args.table == "category":
        return by_category(protocol, args.metric or "", args.subset or "all")
    return on_average(protocol, args.columns or ()) if args.table else None


def plot(args: argparse.Namespace) -> int:
    """Write the plots."""
    from hrbench.report import summarise, write_plots
    from hrbench.report.labels import parse_labels
    from hrbench.report.terminal import print_links

    runs, protocol = read_runs(*args.runs), load_protocol(args.protocol)
    summary = summarise(runs, protocol, parse_labels(args.label))
    destination = args.output or args.runs[0] / "report"
    print_links(write_plots(runs, destination, protocol, summary=summary, formats=args.format))
    return 0


def data_make(args: argparse.Namespace) -> int:
    """Write the procedural dataset."""
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", args.size)
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
        progress=tracker("making images"),
    )
    print(f"{root}: run methods on it with `hrbench run --dataset folder --root {root} ...`")
    return 0


def data_check(args: argparse.Namespace) -> int:
    """Print what differs from the descriptor, and what is wrong with files; status 1 if anything is."""
    findings = check_dataset(args.dataset, args.root, args.categories, progress=tracker("checking"))
    for finding in findings:
        print(finding)
    if findings:
        errors = sum(finding.severity == "error" for finding in findings)
        print(f"{_counted(len(findings), 'finding')} in {args.root}, {_counted(errors, 'error')} among them")
        return 1
    print("\n".join(dataset_summary(args.dataset, args.root, args.categories)))
    print(f"{args.root}: as expected")
    return 0


def data_stats(args: argparse.Namespace) -> int:
    """Print sizes of images and components per category."""
    dataset = load_dataset(args.dataset, args.root, args.categories)
    _say_left_out(dataset)
    stats = dataset_stats(dataset, progress=tracker("measuring"))
    print(stats.set_index("category").T.to_string(float_format=lambda x: f"{x:.6g}", na_rep="–"))
    return 0


def new_method(args: argparse.Namespace) -> int:
    """Write an adapter and its test."""
    adapter, test = write_adapter(args.name, args.folder, args.kind)
    print(adapter)
    print(test)
    print(f"try it: hrbench run --methods {adapter} --preset demo --root DATASET")
    return 0


def list_all(args: argparse.Namespace) -> int:
    """List what there is, or describe methods; status 2 if a method that is installed cannot be used."""
    if args.methods:
        for name in args.methods:
            check_method(name)

        from hrbench.method_card import method_card

        print("\n\n".join(map(method_card, args.methods)))
        return 0
    failures = []
    print("methods (hrbench run --methods NAME --preset PRESET)")
    for name in list_methods():
        try:
            said = read_method(name) or _imported(name)
        except HrbenchError as error:
            failures.append(error)
            continue
        print(f"  {name:<12} {said.title}, {said.paper}")
        for preset, view in said.presets.items():
            print(f"      {preset:<14} {view}")
    print("datasets (--dataset NAME --root FOLDER)")
    for name in list_datasets():
        descriptor = load_descriptor(name)
        print(f"  {name:<20} {descriptor.title}; {descriptor.licence}")
    print("protocols (--protocol NAME)")
    for name in list_protocols():
        print(f"  {name:<14} {load_protocol(name).title}")
    for failure in failures:
        print(f"hrbench: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _imported(name: str) -> Listed:
    """Return what a method says of itself when it is imported."""
    from hrbench.registry import load_method, option_types

    cls = load_method(name)
    views = {preset: chosen.view for preset, chosen in cls.presets.items()}
    return Listed(cls.title, cls.paper, views, tuple(option_types(cls)))


def _check_fitted(path: Path) -> None:
    """Raise an error where nothing that was fitted lies, before torch is imported."""
    if not RunFolder(path).detector.is_file():
        load_run(path)


def _described(detector: Detector) -> str:
    """Return in words what a detector is, and where its threshold lies or why there is none."""
    about, threshold = detector.about, detector.without
    if detector.threshold is not None:
        held_out = _counted(about.threshold.normal_images, "held-out normal image")
        promised = about.threshold.rule == "conformal"
        name, rule = ("promised threshold", "") if promised else ("threshold", f" ({about.threshold.rule})")
        threshold = f"{name} {detector.threshold:.6g}{rule}, set on {held_out}"
    name = about.method.title or about.method.name
    return f"{name}, {detector.view.text}, fitted on {about.dataset.category}: {threshold}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _rescored(run: Run, protocols: Sequence[Protocol], descriptor: Descriptor | None) -> Run:
    about = run.about.dataset
    if not descriptor or descriptor.name != about.name:
        return hrbench.rescore(run, protocols, anew=True)
    ids = run.evidence.images["id"]
    return hrbench.rescore(
        run,
        protocols,
        anew=True,
        groups={name: descriptor.group_of(about.category, name) for name in ids},
        conditions={name: descriptor.condition_of(name) for name in ids},
    )


def _is_of(run: Run, descriptor: Descriptor) -> bool:
    """Tell whether a run is of a dataset; one whose record is damaged says so when it is its turn."""
    try:
        return run.about.dataset.name == descriptor.name
    except HrbenchError:
        return False


def _rescored_copy(run: Run, target: Path, protocols: Sequence[Protocol], descriptor: Descriptor | None) -> Run:
    from hrbench.runs.scoring import forget_files

    if target.exists():
        raise HrbenchError(f"{target}: exists already, expected an output folder without this run")
    with atomic(target) as path:
        left = ("maps", "partial", "weights.safetensors", "fit.json")
        shutil.copytree(run.folder, path, symlinks=True, ignore=shutil.ignore_patterns(*left))
        try:
            forget_files(Run(path), left)
            _rescored(Run(path), protocols, descriptor)
        except HrbenchError as error:  # of the run, not of its unfinished copy
            raise HrbenchError(str(error).replace(str(path), str(run.folder))) from None
    return Run(target)


def _say_left_out(dataset: Dataset) -> None:
    for category in dataset.categories:
        for text in category.left_out:
            print(f"hrbench: {text}", file=sys.stderr)


def _say_failures(study: Study) -> int:
    """Say how many jobs failed; return the exit status."""
    if failed := len(study.failures):
        total = len(study.runs) + failed
        print(f"hrbench: {failed} of {total} jobs failed; what was finished is kept", file=sys.stderr)
    return 2 if failed else 0


def _say_left(study: Study, *, stopped: bool) -> int:
    """Say how many jobs are left, and why; return the exit status."""
    if not study.left:
        return 0
    if not (stopped or study.halted):
        print(f"hrbench: {_jobs(study.left)} in the hands of other processes", file=sys.stderr)
        return 0
    why = "" if study.halted else " by SIGTERM"
    print(f"hrbench: stopped{why}, {_jobs(study.left)} left; the same command goes on", file=sys.stderr)
    return UNFINISHED_STATUS


def _jobs(labels: Sequence[str]) -> str:
    return _counted(len(labels), "job")


def _engine(args: argparse.Namespace) -> Engine:
    """Return where the jobs of a grid run."""
    name, _, address = args.engine.partition(":")
    only = _only(args.only)
    if name == "local" and not address:
        for option in ("gpus_per_job", "shared_output"):
            if getattr(args, option):
                raise HrbenchError(f"--{option.replace('_', '-')}: needs --engine ray")
        return hrbench.LocalEngine(args.device, threads=args.cpus_per_job, only=only)
    if name != "ray":
        raise HrbenchError(f"--engine is {args.engine!r}, expected local, ray or ray:ADDRESS")
    if only is not None:
        raise HrbenchError("--only: is for processes that share a folder, with --engine local")
    return hrbench.RayEngine(
        address or None,
        device=args.device,
        gpus_per_job=args.gpus_per_job,
        cpus_per_job=args.cpus_per_job,
        shared_output=args.shared_output,
    )


def _only(text: str | None) -> tuple[int, int] | None:
    """Parse ``I/N``."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise HrbenchError(f"--only is {text!r}, expected I/N with 0 <= I < N")
    return int(match[1]), int(match[2])


def _repeating(args: argparse.Namespace, failure: Failure, options: Mapping[str, Any]) -> str:
    """Return the command that runs only the job that failed; what the grid file and ``--weights`` said stands in it."""
    only = {
        "categories": [failure.category],
        "methods": [failure.method],
        "view": [failure.view],
        "seeds": [failure.seed],
        "set": setting_texts(options),
        "weights": None,
        "only": None,
        "dry_run": None,
    }
    return write_command({**vars(args), **only}, args.defaults)


def _one_line(error: Exception) -> str:
    """Return the message of an error; of other kinds than ours, of which some say nothing, its type as well."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text if isinstance(error, HrbenchError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _check_given(args: argparse.Namespace, *names: str) -> None:
    """Check that the command line or the grid file says what there is no default for."""
    if missing := [name for name in names if getattr(args, name) is None]:
        options, keys = " and ".join(f"--{name}" for name in missing), " and ".join(missing)
        file = args.grid or "a grid file (hrbench run GRID.toml)"
        raise HrbenchError(f"missing {keys}: expected {options}, or {keys} in {file}")


def _options(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the options of each method: those of the grid file, over them ``--weights``, over them ``--set``."""
    texts = [] if args.weights is None else [f"weights={args.weights}"]
    return options_by_method([*args.settings, *parse_settings([*texts, *args.set], args.methods)], args.methods)
