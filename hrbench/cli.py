"""The ``hrbench`` command: thin, every sub-command calls one function of the library."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hrbench import __version__
from hrbench._util.disk import explaining
from hrbench._util.files import check_utf8
from hrbench._util.installation import broken_installation
from hrbench.errors import UNFINISHED_STATUS, Halted, HrbenchError, unknown_name
from hrbench.grid_file import OPTIONS, read_grid

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit status: 0; 1 for what was checked and is not as it should be; 2 for a user's mistake or a job that
        failed; 75 when the same command goes on later: a run was asked to stop (SIGTERM) and jobs are left, or the disk
        is full or read-only.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("hrbench").setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in any language, or none
        sys.stdout.reconfigure(errors="backslashreplace")
    status = _status(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"hrbench: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more when it ends
        return status or 2
    return status


def _status(arguments: Sequence[str] | None) -> int:
    """Do what was asked for; return the exit status."""
    try:
        parsed = _parse(arguments)
        from hrbench import commands

        with explaining(getattr(parsed, "output", None)):
            status: int = getattr(commands, parsed.function)(parsed)
    except Halted as error:
        print(f"hrbench: {error}; the same command goes on", file=sys.stderr)
        return UNFINISHED_STATUS
    except HrbenchError as error:
        print(f"hrbench: {broken_installation(error) or error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as `hrbench list | head`
        return 141  # as a shell says of SIGPIPE
    except Exception as error:
        if broken := broken_installation(error):
            print(f"hrbench: {broken}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"hrbench: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        else:
            raise
        return 2
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; what a grid file says becomes the defaults, so that options beside it win."""
    for argument in sys.argv[1:] if arguments is None else arguments:
        check_utf8(argument)
    if not (sys.argv[1:] if arguments is None else arguments):
        arguments = ["--help"]
    parsed = _parser().parse_args(arguments)
    _check_lists(parsed)
    if getattr(parsed, "grid", None) is None:
        return parsed
    return _parser(read_grid(parsed.grid, parsed.methods or ())).parse_args(arguments)


def _batch_size(text: str) -> int | str:
    """Return a number where it is one; whoever takes it says what else is no word for it."""
    try:
        return int(text)
    except ValueError:
        return text


_BATCH_SIZE = "tiles per forward pass; auto: the largest that pays, found by timing (default: %(default)s)"
_BATCH_SIZE_AGAIN = "tiles per forward pass, or auto (default: that of the run)"


def _check_lists(parsed: argparse.Namespace) -> None:
    """Refuse a grid file that a list before it has taken for one of its own words."""
    for option in ("categories", "methods", "view", "set"):
        for word in getattr(parsed, option, None) or ():
            if word.endswith(".toml") and "=" not in word:
                raise HrbenchError(
                    f"--{option}: {word!r} is a grid file, expected before the options: hrbench run {word} ..."
                )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Let a misspelt choice be the error that any misspelt name is."""
        if found := re.match(r"argument (\S+): invalid choice: '(.*?)'.* \(choose from (.*)\)$", message):
            kind, word, known = found.groups()
            raise unknown_name(kind.lower(), word, known.replace("'", "").split(", "))
        if found := re.match(r"unrecognized arguments: .*?(-{1,2}[a-z][\w-]*)", message):
            near = difflib.get_close_matches(found[1], sorted(self.known_options()), n=1)
            hint = f"; did you mean {near[0]}?" if near else ","
            raise HrbenchError(f"unknown option {found[1]}{hint} --help after a command lists its options")
        super().error(message)

    def known_options(self) -> set[str]:
        """Return the options of all commands."""
        below = (action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        options = (parser.known_options() for choices in below for parser in choices.values())
        return set(self._option_string_actions).union(*options)


def _parser(grid: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hrbench",
        description="How well does a method find defects of every size, on images at their original resolution?",
    )
    parser.add_argument("--version", action="version", version=f"hrbench {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        return added

    demo = command("demo", "demo", "Make a small dataset, run all methods on it, print the leaderboard.")
    demo.add_argument("--output", type=Path, default=Path("hrbench-demo"), help="folder (default: %(default)s)")
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")

    run = command("run", "run", "Fit and score methods on a dataset; run it again to continue or extend it.")
    run.usage = "%(prog)s [GRID.toml] --root ROOT --methods METHOD ... [OPTIONS]"  # lists take what follows them
    run.add_argument(
        "grid",
        type=Path,
        nargs="?",
        metavar="GRID.toml",
        help="file with these options, such as methods = ['l2bt'] or batch_size = 4; options beside it win",
    )
    _dataset_arguments(run, required=False)
    run.add_argument("--methods", nargs="+", metavar="METHOD", help="names, adapter.py or package:Class")
    run.add_argument("--preset", default="native", help="of the methods (default: %(default)s)")
    run.add_argument(
        "--view",
        nargs="+",
        help="whole:SIZE[:square][:FILTER] or tiled:TILE:OVERLAP[@SCALE[:FILTER]], where FILTER is bilinear or "
        "bilinear-aliased (default: bicubic); VIEW+VIEW to fuse; default: the preset's",
    )
    run.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="default: 0")
    run.add_argument("--set", nargs="+", action="extend", default=[], metavar="[METHOD.]OPTION=VALUE",
                     help="options of the methods, such as backbone=wide_resnet50_2 fastflow.steps=2000")  # fmt: skip
    run.add_argument(
        "--weights", help="pretrained, bundled, random, or a .safetensors or .pth file; short for --set weights=..."
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    run.add_argument("--batch-size", type=_batch_size, default=8, metavar="N", help=_BATCH_SIZE)
    run.add_argument(
        "--precision",
        default="auto",
        help="of the networks: float32, bfloat16, or auto, bfloat16 on GPUs that have it (default: %(default)s)",
    )
    run.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="of the normal training images, for thresholds and promises to be set on; 0: fit all, and set none "
        "(default: a tenth, or 19 where that is at most a third)",
    )
    run.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compile frozen backbones (torch.compile)",
    )
    _protocols_argument(run)
    run.add_argument("--output", type=Path, default=Path("runs"), help="folder (default: %(default)s)")
    run.add_argument(
        "--engine",
        default="local",
        metavar="local|ray[:ADDRESS]",
        help="this process, or the workers of a Ray cluster; ray alone: all devices of this machine (default: local)",
    )
    run.add_argument("--gpus-per-job", type=float, metavar="N", help="with ray (default: 1 where there are GPUs)")
    run.add_argument(
        "--cpus-per-job",
        type=int,
        metavar="N",
        help="threads of a job (default: all cores; with ray 4 beside a GPU, else 1)",
    )
    run.add_argument(
        "--shared-output",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with ray: workers write the output folder themselves, it is the same on all nodes",
    )
    run.add_argument(
        "--only",
        metavar="I/N",
        help="begin with every N-th job from the I-th on (0 <= I < N), then with any that nobody has; wait for nobody",
    )
    run.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look at all images and masks before the first fit (default: --check)",
    )
    run.add_argument(
        "--dry-run",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="only say what would run, how long it would take, and in how much memory",
    )
    run.add_argument(
        "--save-maps",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also keep every native anomaly map as TIFF",
    )
    run.set_defaults(settings=[], defaults={name: run.get_default(name) for name in OPTIONS})
    run.set_defaults(**grid or {})

    evaluate = command("evaluate", "evaluate", "Score anomaly maps that any tool has made.")
    _dataset_arguments(evaluate)
    evaluate.add_argument("--maps", type=Path, required=True, help="folder of .npy, .tiff or 16-bit .png maps")
    evaluate.add_argument(
        "--normal-maps",
        type=Path,
        help="maps of normal images outside the test set, that set the threshold (several categories: a folder each)",
    )
    evaluate.add_argument("--name", help="name on the leaderboard (default: the maps' folder)")
    _protocols_argument(evaluate)
    evaluate.add_argument("--exact", action="store_true", help="no error bound; memory grows with every pixel")
    evaluate.add_argument("--output", type=Path, default=Path("runs"), help="folder (default: %(default)s)")

    fit = command("fit", "fit", "Fit a method on normal images where there is no test set: nothing is measured.")
    fit.add_argument("method", metavar="METHOD", help="name, adapter.py or package:Class")
    fit.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="normal: folders or files")
    fit.add_argument("--output", type=Path, required=True, help="new folder, which predict takes for a RUN")
    fit.add_argument("--preset", default="native", help="of the method (default: %(default)s)")
    fit.add_argument("--view", help="as of run; default: the preset's")
    fit.add_argument("--seed", type=int, default=0, help="default: 0")
    fit.add_argument("--set", nargs="+", action="extend", default=[], metavar="OPTION=VALUE",
                     help="options of the method, such as weights=bundled steps=2000")  # fmt: skip
    fit.add_argument("--protocol", default="native", help="whose rule sets the threshold (default: %(default)s)")
    fit.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    fit.add_argument("--precision", default="auto", help="float32, bfloat16 or auto (default: %(default)s)")
    fit.add_argument("--batch-size", type=_batch_size, default=8, metavar="N", help=_BATCH_SIZE)

    predict = command("predict", "predict", "Apply a fitted method to new images, which need no masks.")
    predict.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, or what fit wrote")
    predict.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders or files")
    predict.add_argument("--output", type=Path, required=True, help="folder for tables, maps and overlays")
    predict.add_argument("--view", help="another than that of the fit; without verdicts (default: that of the fit)")
    predict.add_argument("--method", metavar="ADAPTER.py", help="where the adapter lies, if the method is one")
    predict.add_argument("--set", nargs="+", action="extend", default=[], metavar="OPTION=PATH",
                         help="where files lie that options of the method name, as weights=my.safetensors")  # fmt: skip
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    predict.add_argument("--batch-size", type=_batch_size, metavar="N", help=_BATCH_SIZE_AGAIN)
    predict.add_argument(
        "--save-maps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep every native anomaly map as TIFF (default: --save-maps)",
    )

    export = command("export", "export", "Write a fitted method as a graph that runs without hrbench, ONNX or torch's.")
    export.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, or what fit wrote")
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help="new .onnx or .pt2 file")
    export.add_argument("--images", type=Path, nargs="+", required=True, metavar="FOLDER",
                        help="folders or files, on which the graph must say what the method says")  # fmt: skip
    export.add_argument("--method", metavar="ADAPTER.py", help="where the adapter lies, if the method is one")
    export.add_argument("--set", nargs="+", action="extend", default=[], metavar="OPTION=PATH",
                        help="where files lie that options of the method name, as weights=my.safetensors")  # fmt: skip

    _submission_arguments(
        command("submission", "submission_make", "Pack maps of private test images for the publisher's server.")
    )

    compare = command("compare", "compare", "Compare two runs on the same images: paired differences, all and by size.")
    for name in ("a", "b"):
        compare.add_argument(f"run_{name}", type=Path, metavar=f"RUN_{name.upper()}", help="folder of a run")
    compare.add_argument("--protocol", default="native", help="name or .toml file (default: %(default)s)")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="also write every metric's difference there")

    annotation = command(
        "annotation",
        "annotation",
        "Say how far the annotation carries: scores with masks one pixel wider and narrower.",
    )
    _report_arguments(annotation)
    annotation.add_argument("--csv", type=Path, metavar="FILE", help="also write every metric and change there")

    conditions = command(
        "conditions", "conditions", "Measure a run under each condition, as lights or views, and what is lost there."
    )
    conditions.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    conditions.add_argument(
        "--reference", metavar="CONDITION", help="that others are held against (default: regular, else the first)"
    )
    conditions.add_argument("--protocol", default="native", help="name or .toml file (default: %(default)s)")
    conditions.add_argument("--csv", type=Path, metavar="FILE", help="also write every metric there")

    rescore = command("rescore", "rescore", "Score finished runs anew from their evidence; no image is read.")
    rescore.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="folder (default: %(default)s)")
    _protocols_argument(rescore)
    rescore.add_argument(
        "--dataset",
        metavar="NAME",
        help="name or .toml descriptor; its groups and conditions replace those of its runs (default: keep)",
    )
    rescore.add_argument(
        "--output", type=Path, help="write copies here, without weights and maps (default: replace the records in RUNS)"
    )

    for name, function, text in (
        ("leaderboard", "leaderboard", "Write the leaderboard: HTML page, Markdown, CSV and LaTeX."),
        (
            "plot",
            "plot",
            "Write the plots: quality by size, recall at equal alarms, limits, pictures; PNG, SVG, PDF.",
        ),
        ("show", "show", "Say what there is: runs done, begun or failed, headline numbers, settings that differ."),
    ):
        report = command(name, function, text)
        _report_arguments(report)
        if name == "show":
            report.add_argument("--json", action="store_true", help="print all of it as JSON")
            continue
        report.add_argument("--output", type=Path, help="folder (default: report in the first of RUNS)")
        if name == "leaderboard":
            report.add_argument(
                "--assets",
                action="store_true",
                help="write the pictures into a folder beside the page (default: into the page, up to 25 MB)",
            )
            _table_arguments(report)
        else:
            formats = ("png", "svg", "pdf")
            report.add_argument("--format", nargs="+", choices=formats, default=formats, help="(default: all three)")

    _verification_arguments(command)

    data = command("data", "data", "Make, check or describe a dataset.").add_subparsers(metavar="ACTION", required=True)
    make = data.add_parser(
        "make", help="write the procedural dataset", description="Write a procedural dataset in MVTec AD layout."
    )
    make.set_defaults(function="data_make")
    make.add_argument("root", type=Path, help="folder to write")
    make.add_argument("--categories", nargs="+", metavar="NAME", help="default: all")
    make.add_argument("--size", default="1024", help="HEIGHTxWIDTH or one number (default: %(default)s)")
    make.add_argument("--train", type=int, default=20, help="normal training images (default: %(default)s)")
    make.add_argument("--test-good", type=int, default=10, help="normal test images (default: %(default)s)")
    make.add_argument("--test-defective", type=int, default=30, help="defective test images (default: %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    for name, text in (
        ("check", "compare a dataset with its expected counts, and read all its files"),
        ("stats", "sizes of images and defects"),
    ):
        action = data.add_parser(name, help=text, description=text.capitalize() + ".")
        action.set_defaults(function=f"data_{name}")
        _dataset_arguments(action)

    new = command("new-method", "new_method", "Write an adapter and its test that passes as written.")
    new.add_argument("name", help="a Python identifier, for example my_method")
    new.add_argument("--folder", type=Path, default=Path(), help="where to (default: here)")
    new.add_argument(
        "--kind", choices=("trained", "features"), default="trained",
        help="it learns by gradients, or it sums up features of a frozen network (default: trained)",
    )  # fmt: skip
    listed = command(
        "list", "list_all", "List methods with their presets, datasets and protocols; or describe methods."
    )
    listed.add_argument("methods", nargs="*", metavar="METHOD", help="describe it: its presets, its options")
    return parser


def _verification_arguments(command: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    verify = command(
        "verify",
        "verify",
        "Compute every record of finished runs anew from their evidence and compare; exit status 1 if any differs.",
    )
    verify.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="folder (default: %(default)s)")
    verify.add_argument("--root", type=Path, help="the dataset's folder: compare its images and masks, too")
    verify.add_argument("--dataset", help="name or .toml descriptor of --root (default: folder)")
    verify.add_argument("--record", type=Path, metavar="FILE", help="verified.json above the runs, for the leaderboard")
    publish = command("publish", "publish", "Verify runs, then copy what others need to check them; no image, no path.")
    publish.add_argument("runs", type=Path, help="folder that run wrote")
    publish.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="new: results/community/NAME")
    publish.add_argument("--author", required=True, metavar="NAME", help="who publishes them, for the leaderboard")
    publish.add_argument("--orcid", default="", metavar="ID", help="such as 0000-0002-1825-0097")
    publish.add_argument("--url", default="", help="of a page about it, https://...")
    for parser in (verify, publish):
        parser.add_argument("--protocol", type=Path, nargs="+", default=[], metavar="FILE",
                            help="rules that do not ship with hrbench")  # fmt: skip
        parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: %(default)s)")


def _submission_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    make = actions.add_parser(
        "make",
        help="let finished runs predict private test images, and pack the maps",
        description="Let finished runs, one for each object, predict the private test images of MVTec AD 2 without "
        "masks, and pack maps (float16) and decisions at the promised threshold as the publisher's server takes them.",
    )
    make.set_defaults(function="submission_make")
    make.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, one for each object")
    make.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    make.add_argument("--to", type=Path, required=True, metavar="FILE", help="new .tar.gz file")
    make.add_argument("--method", metavar="ADAPTER.py", help="where the adapter lies, if the method is one")
    make.add_argument("--set", nargs="+", action="extend", default=[], metavar="OPTION=PATH",
                      help="where files lie that options of the method name, as weights=my.safetensors")  # fmt: skip
    make.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    make.add_argument("--batch-size", type=_batch_size, metavar="N", help=_BATCH_SIZE_AGAIN)
    check = actions.add_parser(
        "check",
        help="compare an archive, whoever made it, with what the server takes; exit status 1 if anything differs",
        description="Compare an archive, whoever made it, with what the server takes: files, shapes, types and values.",
    )
    check.set_defaults(function="submission_check")
    check.add_argument("archive", type=Path, metavar="FILE", help=".tar.gz file")
    check.add_argument("--root", type=Path, help="the dataset's folder: compare sizes with those of its images, too")
    for action in (make, check):
        action.add_argument("--dataset", default="mvtec_ad_2", help="name or .toml descriptor (default: %(default)s)")


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a table for a paper, printed; no page is written")
    group.add_argument(
        "--table", choices=("category", "average"), help="a column for each category, or numbers averaged over them"
    )
    group.add_argument(
        "--metric", metavar="KEY", help="with category: as image_auroc or aupro@0.05 (default: the headline)"
    )
    group.add_argument(
        "--subset",
        metavar="SIZE",
        help="with category: all, tiny, small, medium or large; of spro logical or structural (default: all)",
    )
    group.add_argument(
        "--columns",
        nargs="+",
        metavar="KEY",
        help="with average: names as in leaderboard.csv (default: the leaderboard's)",
    )
    group.add_argument("--format", choices=("markdown", "latex", "csv"), help="default: markdown")


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=Path,
        nargs="*",
        default=[Path("runs")],
        metavar="RUNS",
        help="folders that run wrote, the first wins where they hold the same run (default: runs)",
    )
    parser.add_argument("--protocol", default="native", help="name or .toml file (default: %(default)s)")
    parser.add_argument(
        "--label", action="append", default=[], metavar="OLD=NEW",
        help="another name for a method, preset, view, weights, or the whole name of a row; may be repeated",
    )  # fmt: skip


def _protocols_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=["native"],
        metavar="NAME",
        help="names or .toml files; the first is printed (default: native)",
    )


def _dataset_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--dataset", default="folder", help="name (see `hrbench list`) or .toml descriptor (default: %(default)s)"
    )
    parser.add_argument("--root", type=Path, required=required, help="the dataset's folder")
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="default: all")
