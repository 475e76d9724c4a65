"""Inputs: options, protocols, weights, numbers and disks that are wrong. What is asked must be refused in a line."""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from . import datasets, kills
from .verdict import (
    REFUSALS,
    Finding,
    Outcome,
    digests,
    judge_bits,
    judge_end,
    judge_refusal,
    judge_success,
    judge_words,
    last_line,
)
from .world import QUICK, Case, Stage, leaderboard_values, protocol_text

Argv = Callable[[Stage], Sequence[str]]


def refused(item: str, name: str, argv: Argv, words: str, *, silent: str = "silent", **how: Any) -> Case:
    """Return a case in which a command must be refused with a line that matches `words`."""

    def play(stage: Stage) -> Iterable[Finding]:
        yield from judge_refusal(stage.hrbench(*argv(stage), **how), words, silent=silent)

    return Case("inputs", item, name, play)


def done(item: str, name: str, *argvs: Argv) -> Case:
    """Return a case in which commands must do their work."""

    def play(stage: Stage) -> Iterable[Finding]:
        for argv in argvs:
            yield from judge_success(stage.hrbench(*argv(stage)))

    return Case("inputs", item, name, play)


def run(*more: str, methods: Sequence[str] = ()) -> Argv:
    """Return a command that runs the toy, or other methods, with more options."""
    return lambda stage: [*stage.world.run_toy(*more, methods=methods), "--output", str(stage.out)]


def evaluate(*more: str) -> Argv:
    """Return a command that scores the maps, with more options."""
    return lambda stage: [*kills.TARGETS["evaluate"].command(stage.world), "--output", str(stage.out), *more]


# -- item 2: protocols of one name


def _other(stage: Stage, **rules: Any) -> str:
    """Return a protocol that is called like the quick one and has other rules."""
    return stage.file("other/quick.toml", protocol_text(**{"limits": "[0.30, 0.10]", "headline": "0.30", **rules}))


def _no_doubles(stage: Stage) -> Iterable[Finding]:
    for path in sorted(stage.out.rglob("records.parquet")):
        records = pd.read_parquet(path)
        twice = int(records.duplicated(["protocol", "metric", "subset", "fpr_limit"]).sum())
        if twice:
            yield Finding("wrong number", f"{twice} of {len(records)} records of {path.parent.name} twice")


def one_name(command: str, order: str, **rules: Any) -> Case:
    """Return a case of two protocols of one name."""

    def play(stage: Stage) -> Iterable[Finding]:
        both = [stage.world.quick, _other(stage, **rules)]
        both = both[::-1] if order == "other first" else both
        made = {"run": run(), "evaluate": evaluate(), "rescore": lambda stage: ["rescore", str(stage.out)]}[command]
        if command == "rescore":
            stage.copy(stage.world.finished("alone", stage.world.run_toy()))
        argv = list(made(stage))
        at = argv.index("--protocol") if "--protocol" in argv else len(argv)
        argv[at : at + 2] = ["--protocol", *both]
        outcome = stage.hrbench(*argv)
        yield from _no_doubles(stage)
        yield from judge_refusal(outcome, "quick", silent="wrong number")

    what = "other rules" if not rules else f"other {' and '.join(rules)}"
    return Case("inputs", "2", f"{command} under two protocols called quick, {order}, {what}", play)


def mixed_rules(kind: str) -> Case:
    """Return a case of runs measured under different rules of one name, which are averaged or compared."""

    def play(stage: Stage) -> Iterable[Finding]:
        other = _other(stage)
        first = stage.world.run_toy()
        second = (
            stage.world.run_toy("--categories", "nut") if kind == "categories" else stage.world.run_toy("--seeds", "1")
        )
        second[second.index("--protocol") + 1] = other
        for argv in (first, second):
            yield from judge_success(stage.hrbench(*argv, "--output", str(stage.out)))
        outcome = stage.hrbench(
            "leaderboard", str(stage.out), "--output", str(stage.report), "--protocol", stage.world.quick
        )
        yield from judge_end(outcome)
        if outcome.code == 0 and "other rules" not in outcome.err + outcome.out:
            yield Finding("wrong number", f"{kind} measured under different rules of one name are averaged, no warning")

    return Case("inputs", "2", f"leaderboard of {kind} under different rules of one name", play)


def protocol_cases() -> Iterable[Case]:
    """Yield the cases of item 2, and broken protocol files."""
    for command in ("run", "evaluate", "rescore"):
        for order in ("other last", "other first"):
            yield one_name(command, order)
        yield one_name(command, "other last", version=2)
    yield mixed_rules("categories")
    yield mixed_rules("seeds")
    yield done("2", "the same protocol twice is one", lambda s: [*run()(s), "--protocol", s.world.quick, s.world.quick])
    broken = {
        "not TOML": ("name = ", "bad.toml"),
        "no key": ("", "bad.toml"),
        "unknown key": (protocol_text() + "\n[other]\nx = 1\n", "other"),
        "limits are text": (protocol_text(limits='["a"]'), "fpr_limits"),
        "limit 0": (protocol_text(limits="[0.0, 0.05]"), "fpr_limits"),
        "limit nan": (protocol_text(limits="[nan, 0.05]"), "fpr_limits"),
        "headline no limit": (protocol_text(headline="0.2"), "headline_fpr"),
        "level 2": (protocol_text(bootstrap="level = 2.0"), "level"),
        "draws 10^12": (protocol_text(bootstrap="draws = 1000000000000"), "draws"),
        "draws -1": (protocol_text(bootstrap="draws = -1"), "draws"),
        "seed -1": (protocol_text(bootstrap="draws = 20\nseed = -1"), "seed"),
        "seed 10^30": (protocol_text(bootstrap=f"draws = 20\nseed = {10**18}"), ""),
        "a name with a path": (protocol_text(name="../../x"), ""),
        "an empty name": (protocol_text(name=""), ""),
    }
    for name, (text, words) in broken.items():
        item = "16" if "seed" in name or "draws" in name else "17"

        def play(stage: Stage, text: str = text, words: str = words) -> Iterable[Finding]:
            argv = [*evaluate()(stage), "--protocol", stage.file("bad.toml", text)]
            outcome = stage.hrbench(*argv, timeout=30)
            if words:
                yield from judge_refusal(outcome, words)
            else:
                yield from judge_end(outcome)

        yield Case("inputs", item, f"protocol: {name}", play)


def no_draws(command: str) -> Case:
    """Return a case of a protocol without bootstrap draws."""

    def play(stage: Stage) -> Iterable[Finding]:
        none = stage.file("none.toml", protocol_text(name="none", bootstrap="draws = 0"))
        argv = {"run": run()(stage), "evaluate": evaluate()(stage)}.get(command) or evaluate()(stage)
        argv = [*argv, "--protocol", none]
        yield from judge_success(stage.hrbench(*argv))
        more = {"leaderboard": ["--output", str(stage.report)], "plot": ["--output", str(stage.report)], "rescore": []}
        if command in more:
            yield from judge_success(stage.hrbench(command, str(stage.out), "--protocol", none, *more[command]))

    return Case("inputs", "16", f"{command} with draws = 0", play)


# -- item 5: numbers that cannot be represented

NUMBERS = """
import json
import numpy as np, hrbench
kind, exact, truth = ARGUMENTS
rng = np.random.default_rng(0)
masks = [np.zeros((32, 32), bool) for _ in range(4)]
for number, mask in enumerate(masks[:2]):
    mask[4 : 10 + number, 6:12] = True
steps = [rng.permutation(1024).reshape(32, 32) % 500 + np.where(mask, 1000, 0) for mask in masks]  # perfect
extra = {}
if kind == "longdouble":
    maps = [np.longdouble(1) + step * np.longdouble(2) ** -40 for step in steps]
elif kind == "longdouble below float64":
    maps = [np.longdouble(1) + step * np.longdouble(2) ** -62 for step in steps]
elif kind == "int64":
    maps = [np.int64(2) ** 60 + step.astype(np.int64) for step in steps]
elif kind == "uint64":
    maps = [np.uint64(2) ** np.uint64(63) + step.astype(np.uint64) for step in steps]
elif kind == "complex":
    maps = [1j * step for step in steps]
elif kind == "objects":
    maps = [step.astype(object) for step in steps]
elif kind == "huge objects":
    maps = [np.array([[10 ** 40 + int(v) for v in row] for row in step], dtype=object) for step in steps]
elif kind == "datetimes":
    maps = [step.astype("datetime64[s]") for step in steps]
elif kind == "float64 near 1":
    maps = [1 + step * 2.0**-50 for step in steps]
elif kind == "float64 beyond float32":
    maps = [step * 1e300 for step in steps]
elif kind == "float64 below float32":
    maps = [step * 1e-300 for step in steps]
elif kind == "float16":
    maps = [step.astype(np.float16) for step in steps]
elif kind == "int32":
    maps = [step.astype(np.int32) + 2**30 for step in steps]
elif kind == "text threshold":
    maps, extra = [step.astype(np.float32) for step in steps], {"threshold": "x"}
elif kind == "nan threshold":
    maps, extra = [step.astype(np.float32) for step in steps], {"threshold": float("nan")}
elif kind == "complex scores":
    maps, extra = [step.astype(np.float32) for step in steps], {"image_scores": [1j, 2j, 0j, 0j]}
elif kind == "longdouble normal maps":
    maps = [step.astype(np.float32) for step in steps]
    extra = {"normal_maps": [np.longdouble(1) + step * np.longdouble(2) ** -62 for step in steps[2:]]}
elif kind == "complex masks":
    maps, masks = [step.astype(np.float32) for step in steps], [mask * 1j for mask in masks]
try:
    result = hrbench.evaluate(maps, masks, exact=exact, protocol="native@1", **extra)
    row = result.frame.query("metric == 'aupro' and subset == 'all'").iloc[0]
    print(json.dumps({"value": float(row["value"]), "bound": float(row["error_bound"])}))
except hrbench.HrbenchError as error:
    print(json.dumps({"refused": str(error)}))
"""


def number(kind: str, *, exact: bool, refuse: str = "") -> Case:
    """Return a case of maps whose values are perfect, in a type that may not hold them; with `refuse` none may be."""

    def play(stage: Stage) -> Iterable[Finding]:
        outcome = stage.python(NUMBERS, [kind, exact, 1.0])
        if outcome.code or not outcome.out.strip():
            yield from judge_end(outcome)
            return
        said = json.loads(outcome.out.strip().splitlines()[-1])
        if "refused" in said:
            if refuse and not re.search(refuse, said["refused"]):
                yield Finding("other", f"refused without {refuse!r}: {said['refused']}")
        elif refuse:
            yield Finding("wrong number", f"accepted: {said}")
        elif not abs(said["value"] - 1) <= said["bound"] + 1e-6:
            yield Finding("wrong number", f"AUPRO {said['value']:.4g} with error bound {said['bound']:.4g}, truth 1")

    return Case("inputs", "5" if "threshold" not in kind else "17", f"{kind}{', exact' if exact else ''}", play)


def number_cases() -> Iterable[Case]:
    """Yield the cases of item 5."""
    for exact in (False, True):
        for kind in ("longdouble", "longdouble below float64", "int64", "uint64", "huge objects", "float64 near 1",
                     "float64 beyond float32", "float64 below float32", "float16", "int32",
                     "longdouble normal maps"):  # fmt: skip
            yield number(kind, exact=exact)
        for kind in ("complex", "datetimes", "objects"):
            yield number(kind, exact=exact, refuse="map")
    yield number("complex scores", exact=False, refuse="score")
    yield number("complex masks", exact=False, refuse="mask")
    yield number("text threshold", exact=False, refuse="threshold")
    yield number("nan threshold", exact=False, refuse="threshold")


# -- item 6: weights that do not fit

WEIGHTS = """
import torch, timm, safetensors.torch
from pathlib import Path
kind, target = ARGUMENTS
torch.manual_seed(0)
state = timm.create_model("resnet34" if kind == "deeper" else "resnet10t", pretrained=False).state_dict()
first = next(key for key in state if key.endswith("weight"))
if kind == "complex":
    state = {key: value + 0j if value.is_floating_point() else value for key, value in state.items()}
elif kind == "nan":
    state[first] = state[first] * float("nan")
elif kind == "inf":
    state[first] = state[first] / 0
elif kind == "stranger":
    state["what.nobody.knows"] = torch.zeros(3)
elif kind == "missing":
    del state[first]
elif kind == "transposed":
    state[first] = state[first].transpose(0, 1).contiguous()
elif kind == "integers":
    state = {key: (100 * value).to(torch.int32) for key, value in state.items()}
elif kind == "bool":
    state = {key: value > 0 for key, value in state.items()}
elif kind == "empty":
    state = {}
if target.endswith(".safetensors"):
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, target)
else:
    torch.save({"state_dict": state, "f": print} if kind == "pickle" else state, target)
"""


def weights(kind: str, words: str, suffix: str = ".safetensors", *, also_not: str = "") -> Case:
    """Return a case of a file of weights; without `words` it fits."""

    def play(stage: Stage) -> Iterable[Finding]:
        target = stage.file(f"weights{suffix}", b"")
        yield from judge_success(stage.python(WEIGHTS, [kind, target]))
        stage.set()
        backbone = "resnet18" if kind == "deeper" else "resnet10t"
        options = (f"backbone={backbone}", "strides=[4,8]", "flow_steps=1", "steps=1")
        more = ("--preset", "demo", "--view", "whole:64", "--set", *options, "--weights", target)
        outcome = stage.hrbench(*run(*more, methods=["fastflow"])(stage))
        yield from judge_refusal(outcome, words, silent="wrong number") if words else judge_success(outcome)
        if also_not and re.search(also_not, outcome.text):
            yield Finding("other", f"says {also_not}: {last_line(outcome.text)}")

    return Case("inputs", "15" if also_not else "6", f"weights: {kind}{suffix}", play)


def weights_cases() -> Iterable[Case]:
    """Yield the cases of item 6, and the refusal of a pickle."""
    yield weights("fitting", "")
    yield weights("fitting", "", ".pth")
    for kind in ("deeper", "complex", "inf", "stranger", "missing", "transposed", "integers", "bool", "empty"):
        yield weights(kind, r"weights\.safetensors")
    yield weights("nan", "(?i)nan|finite")
    yield weights("pickle", r"weights\.pth", ".pth", also_not="weights_only")


# -- item 7: another batch size on resume


def other_batch_size(number: int, seed: int) -> Case:
    """Return a case of a run that is killed at a seeded change of a file and goes on with another batch size."""

    def play(stage: Stage) -> Iterable[Finding]:
        argv = lambda size: run("--set", "by_batch=0.05", "--batch-size", str(size))(stage)  # noqa: E731
        expected = {
            size: stage.world.once(f"batch size {size}", partial(_batch_size_alone, stage, list(argv(size)), size))
            for size in (1, 2)
        }
        first, second = random.Random(f"{seed} {number}").sample((1, 2), 2)
        write = random.Random(f"{seed} {number} at").randint(8, max(9, expected[first][1]))
        killed = stage.hrbench(*argv(first), tune=QUICK, writes_below=str(stage.out), kill_at_write=write)
        stage.outcomes.remove(killed)
        outcome = stage.hrbench(*argv(second), tune=QUICK)
        yield from judge_end(outcome)
        if outcome.code == 0:
            found = digests(stage.out)
            if not any(found == files for files, _ in expected.values()):
                yield Finding("wrong number", f"begun with {first}, went on with {second}: bits of neither, exit 0")
        elif outcome.code in REFUSALS:
            yield from judge_words(outcome, "batch")

    return Case("inputs", "7", f"another batch size on resume {number}", play)


def _batch_size_alone(stage: Stage, argv: list[str], size: int) -> tuple[dict[str, str], int]:
    output = stage.world.root / f"batch-{size}"
    argv[argv.index("--output") + 1] = str(output)
    outcome = stage.world.server.ask(argv=argv, cwd=str(stage.path), tune=QUICK, writes_below=str(output))
    return digests(output), outcome.writes


# -- item 10: disks


def small_files(command: str, size: int) -> Case:
    """Return a case in which no file may grow beyond `size` bytes; without that limit the command must go on."""

    def play(stage: Stage) -> Iterable[Finding]:
        argv, expected = _disk_command(command, stage)
        outcome = stage.hrbench(*argv, file_bytes=size)
        yield from judge_end(outcome)
        if outcome.code == 0:
            if expected is not None:
                yield from judge_bits(digests(stage.out), expected)
            return
        yield from judge_words(outcome, r"too large|space|full|EFBIG|No space|cannot write")
        again = stage.hrbench(*argv)
        yield from judge_success(again)
        if expected is not None:
            yield from judge_bits(digests(stage.out), expected)

    return Case("inputs", "10", f"{command}, files up to {size} bytes", play)


def full_disk(command: str, size: int) -> Case:
    """Return a case in which the output lies on a file system of `size` KiB."""

    def play(stage: Stage) -> Iterable[Finding]:
        argv, expected = _disk_command(command, stage)
        stage.out.mkdir(parents=True, exist_ok=True)
        yield from judge_success(stage.hrbench(*argv, "--dry-run")) if command == "run" else ()
        tried = stage.fits()  # a few steps, to say what it will take; that the run does once more
        outcome = stage.hrbench(*argv, mount=[str(stage.out), size])
        if "cannot mount" in outcome.err:
            return
        yield from judge_end(outcome)
        if outcome.code:
            yield from judge_words(outcome, r"space|full")
        elif expected is not None:
            yield Finding("silent", "exit 0 on a full disk")
        if (fits := stage.fits() - 2 * tried) > 1:
            yield Finding("other", f"{fits} fits begun on a full disk")

    return Case("inputs", "10", f"{command} on a disk of {size} KiB", play)


def _disk_command(command: str, stage: Stage) -> tuple[list[str], dict[str, str] | None]:
    world, out = stage.world, str(stage.out)
    if command == "run":
        return [*world.run_toy("--seeds", "0", "1", "2"), "--output", out], None
    if command == "one run":
        return [*world.run_toy(), "--output", out], world.alone()
    if command == "save-maps":
        return [*world.run_toy("--save-maps"), "--output", out], None
    if command == "evaluate":
        return list(evaluate()(stage)), None
    if command == "data make":
        return ["data", "make", out, "--size", "96", "--train", "3", "--test-good", "2", "--test-defective", "3",
                "--categories", "weave"], None  # fmt: skip
    finished = world.finished("alone", world.run_toy())
    if command == "rescore":
        stage.copy(finished)
        return ["rescore", out, "--protocol", "native@1"], None
    return [command, str(finished), "--output", out, "--protocol", world.quick], None


def wrong_output(kind: str) -> Case:
    """Return a case of an output folder that cannot be one."""

    def play(stage: Stage) -> Iterable[Finding]:
        output = {
            "a file": stage.file("a-file", "mine"),
            "below a file": stage.file("a-file", "mine") + "/out",
            "a device": "/dev/full",
            "below a device": "/dev/full/out",
            "proc": "/proc/out",
            "a dangling link": str(stage.path / "given/link/out"),
            "too long": str(stage.out / ("x" * 300)),
            "not UTF-8": str(stage.out / "\udcff"),
        }[kind]
        if kind == "a dangling link":
            (stage.path / "given").mkdir(exist_ok=True)
            (stage.path / "given/link").symlink_to("/nowhere/at/all")
        argv = [*stage.world.run_toy(), "--output", output]
        if kind == "not UTF-8":
            stage.set()
            outcome = stage.hrbench(*argv)
            yield from judge_end(outcome)
        else:
            yield from judge_refusal(stage.hrbench(*argv), r"out|a-file|/dev/full|nowhere|link|file name")

    return Case("inputs", "10" if kind not in ("not UTF-8", "too long") else "17", f"output is {kind}", play)


def disk_cases() -> Iterable[Case]:
    """Yield the cases of item 10."""
    for command, sizes in (
        ("run", (2000, 20000, 50000)), ("one run", (100, 1000, 5000, 10000, 30000)), ("save-maps", (5000, 10000)),
        ("evaluate", (1000, 10000, 20000)), ("data make", (200, 5000, 12000)), ("rescore", (1000, 10000)),
        ("leaderboard", (1000, 50000)), ("plot", (1000, 30000)),
    ):  # fmt: skip
        for size in sizes:
            yield small_files(command, size)
    for command, sizes in (("run", (16, 64, 160)), ("evaluate", (64,)), ("data make", (64,)), ("leaderboard", (64,))):
        for size in sizes:
            yield full_disk(command, size)
    for kind in ("a file", "below a file", "a device", "below a device", "proc", "a dangling link", "too long",
                 "not UTF-8"):  # fmt: skip
        yield wrong_output(kind)


# -- item 15: what is recorded and shown


def no_path_recorded(stage: Stage) -> Iterable[Finding]:
    """Look for the adapter's absolute path in what is handed on."""
    output = stage.copy(stage.world.finished("alone", stage.world.run_toy()))
    yield from judge_success(
        stage.hrbench("leaderboard", str(output), "--output", str(stage.report), "--protocol", stage.world.quick)
    )
    for path in [*output.rglob("run.json"), *stage.report.rglob("leaderboard.*")]:
        if str(stage.world.root) in path.read_text(encoding="utf-8"):
            yield Finding("other", f"{path.name} holds the absolute path of the adapter")


def cell(text: str) -> Case:
    """Return a case of a name that a spreadsheet would compute, or Markdown read as markup."""

    def play(stage: Stage) -> Iterable[Finding]:
        yield from judge_success(stage.hrbench(*evaluate(f"--name={text}")(stage)))
        outcome = stage.hrbench(
            "leaderboard", str(stage.out), "--output", str(stage.report), "--protocol", stage.world.quick
        )
        yield from judge_success(outcome)
        for column, values in leaderboard_values(stage.report).items():
            for value in values:
                if re.match(r"[=+\-@\t\r]", value) and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|-?inf|nan", value):
                    yield Finding("silent", f"CSV cell {column} is {value!r}")
        for records in stage.out.rglob("records.csv"):
            names = pd.read_csv(records, dtype=str, keep_default_na=False)["method"]
            if names.str.match(r"[=+\-@]").any():
                yield Finding("silent", f"CSV cell method of {records.name} is {names.iloc[0]!r}")
        for suffix in ("md", "html"):
            if "<img src=x" in (stage.report / f"leaderboard.{suffix}").read_text(encoding="utf-8"):
                yield Finding("silent", f"markup of a name is in leaderboard.{suffix}")

    return Case("inputs", "15", f"a method called {text}", play)


def markup_protocol(stage: Stage) -> Iterable[Finding]:
    """Names and titles of protocols are escaped too."""
    evil = "a|b<img src=x>*c*"
    protocol = stage.file("evil.toml", protocol_text(name=evil, title=evil))
    yield from judge_success(stage.hrbench(*evaluate()(stage), "--protocol", protocol))
    yield from judge_success(
        stage.hrbench("leaderboard", str(stage.out), "--output", str(stage.report), "--protocol", protocol)
    )
    for suffix in ("md", "html"):
        text = (stage.report / f"leaderboard.{suffix}").read_text(encoding="utf-8")
        if "<img src=x>" in text:
            yield Finding("silent", f"markup of a protocol is in leaderboard.{suffix}")


# -- item 16: signals


def signalled(command: str, number: int, share: float) -> Case:
    """Return a case in which a command is interrupted or terminated after a share of its time: it says a word."""

    def play(stage: Stage) -> Iterable[Finding]:
        argv, _ = _disk_command(command, stage)
        seconds = stage.world.once(f"seconds {command}", lambda: _seconds(stage, argv))
        outcome = stage.hrbench(*argv, signals=[[share * seconds, number]])
        name = signal.Signals(number).name
        if outcome.code == -number or (outcome.code and not outcome.err.strip()):
            stage.outcomes.remove(outcome)
            yield Finding("other", f"{name} after {share:.0%}: exit {outcome.code} without a word")
        elif outcome.code:
            yield from judge_end(outcome)
            yield from judge_words(outcome, "interrupt|stopped|terminated|asked to stop|continue|goes on")
        yield from judge_success(stage.hrbench(*argv))

    return Case("inputs", "16", f"{command}, {signal.Signals(number).name} after {share:.0%}", play)


def _seconds(stage: Stage, argv: Sequence[str]) -> float:
    changed = [str(stage.path / "tmp/timing") if word == str(stage.out) else word for word in argv]
    seconds = stage.world.server.ask(argv=changed, cwd=str(stage.path / "here")).seconds
    shutil.rmtree(stage.path / "tmp/timing", ignore_errors=True)
    return seconds


def interrupted_import(seconds: float, number: int) -> Case:
    """Return a case in which Ctrl-C or SIGTERM comes while hrbench is being imported."""

    def play(stage: Stage) -> Iterable[Finding]:
        outcome = stage.process(*run()(stage), signal_after=(seconds, number))
        if "init_import_site" in outcome.err:  # the interpreter itself was starting
            stage.outcomes.remove(outcome)
            return
        if outcome.code == -signal.SIGTERM:
            stage.outcomes.remove(outcome)
            yield Finding("other", "SIGTERM: no word")
        if outcome.code == -signal.SIGINT:
            stage.outcomes.remove(outcome)
            yield from judge_end(Outcome(130, outcome.out, outcome.err))
            if seconds > 0.3 and not outcome.text:  # else the interpreter itself was starting, or ending
                yield Finding("other", "SIGINT: no word")

    return Case("inputs", "16", f"{signal.Signals(number).name} {seconds:g} s after the start", play)


def signal_cases() -> Iterable[Case]:
    """Yield the cases of signals."""
    for command in ("run", "evaluate", "leaderboard", "data make"):
        for number in (signal.SIGINT, signal.SIGTERM):
            for share in (0.4, 0.7):
                yield signalled(command, number, share)
    for seconds in (0.1, 0.5, 1.0, 2.0, 3.5):
        yield interrupted_import(seconds, signal.SIGINT)
    yield interrupted_import(1.5, signal.SIGTERM)


# -- item 17: options

BAD_OPTIONS: Sequence[tuple[str, Argv, str]] = (
    ("--methods :X", run(methods=[":X"]), ":X"),
    ("--methods X:", run(methods=["X:"]), "X:"),
    ("--methods os:path", run(methods=["os:path"]), "os:path"),
    ("--methods with an unknown name", run(methods=["nobody"]), "nobody"),
    ("--methods with an empty name", run(methods=[""]), "method"),
    ("--methods with a dot", run(methods=["."]), "method"),
    ("--methods ..:X", run(methods=["..:X"]), r"\.\.:X"),
    ("--methods json:load", run(methods=["json:load"]), "json:load"),
    *(
        (f"{option} of {name}", lambda s, name=name, option=option: _small(s, name, option), option.split("=")[0])
        for name, options in (
            ("fastflow", ("batch_size=0", "lr=-1", "flow_steps=0", "steps=-1", "steps=0", "lr=nan", "strides=[]",
                          "kernels=[]")),
            ("uflow", ("batch_size=0", "lr=-1", "flow_steps=0", "steps=-1", "lr=nan")),
            ("l2bt", ("batch_size=0", "lr=-1", "steps=-1", "kernels=[]")),
            ("rstpm", ("batch_size=0", "lr=-1", "steps=-1", "width=0", "strides=[]")),
            ("isstad", ("batch_size=0", "lr=-1", "steps=-1", "decoder_depth=0", "decoder_heads=0", "decoder_width=0")),
        )
        for option in options
    ),
    ("--set without =", run("--set", "steps"), "steps"),
    ("--set an unknown option", run("--set", "stepz=3"), "stepz"),
    ("--set another type", run("--set", "steps=many"), "steps"),
    ("--set of another method", run("--set", "l2bt.steps=3"), "l2bt"),
    ("--batch-size 0", run("--batch-size", "0"), "batch"),
    ("--batch-size -3", run("--batch-size=-3"), "batch"),
    ("--device meta", run("--device", "meta"), "meta"),
    ("--device nonsense", run("--device", "nonsense"), "nonsense"),
    ("--device mkldnn", run("--device", "mkldnn"), "mkldnn"),
    ("--device cuda:-1", run("--device", "cuda:-1"), "cuda"),
    ("--device cuda:99999999999999999999", run("--device", "cuda:99999999999999999999"), "cuda"),
    ("--view whole:100000", run("--view", "whole:100000"), "whole:100000"),
    ("--view whole:99999999999", run("--view", "whole:99999999999"), "whole:99999999999"),
    ("--view tiled:100000:0", run("--view", "tiled:100000:0"), "tiled:100000"),
    ("--view of nothing", run("--view", ""), "view"),
    ("--view whole:0", run("--view", "whole:0"), "whole:0"),
    ("--view tiled:32:32", run("--view", "tiled:32:32"), "tiled"),
    ("--view tiled:32:8@1e-9", run("--view", "tiled:32:8@0.0000000001"), ""),
    ("--view +", run("--view", "+"), "view"),
    ("--view in other digits", run("--view", "whole:٣٢"), ""),
    ("--seeds -1", run("--seeds", "-1"), "seed"),
    ("--seeds 10^20", run("--seeds", str(10**20)), "seed"),
    ("--only 3/2", run("--only", "3/2"), "only"),
    ("--only 1/0", run("--only", "1/0"), "only"),
    ("--cpus-per-job 0", run("--cpus-per-job", "0"), "threads|cpus"),
    ("--cpus-per-job 10^9", run("--cpus-per-job", str(10**9)), ""),
    ("--precision float8", run("--precision", "float8"), "float8"),
    ("--engine nonsense", run("--engine", "nonsense"), "nonsense"),
    ("--preset nonsense", run("--preset", "nonsense"), "nonsense"),
    ("--categories unknown", lambda s: [*run("--categories", "unknown")(s)], "unknown"),
    ("--categories absolute", lambda s: [*run("--categories", "/etc")(s)], "/etc"),
    ("--categories ..", lambda s: [*run("--categories", "..")(s)], r"\.\."),
    ("--categories not UTF-8", lambda s: [*run("--categories", "a\udcff")(s)], "UTF-8"),
    ("--root missing", lambda s: [*run()(s), "--root", "/nowhere"], "/nowhere"),
    ("--root a file", lambda s: [*run()(s), "--root", s.world.toy], "toy.py"),
    ("--root not UTF-8", lambda s: [*run()(s), "--root", "/x\udcff"], "/x"),
    ("--protocol a folder", lambda s: [*run()(s), "--protocol", _folder(s, "p.toml")], r"p\.toml"),
    ("--dataset a folder", lambda s: [*run()(s), "--dataset", _folder(s, "d.toml")], r"d\.toml"),
    ("grid a folder", lambda s: ["run", _folder(s, "g.toml"), *list(run()(s))[1:]], r"g\.toml"),
    ("a NUL in a grid file", lambda s: ["run", s.file("grid.toml", 'root = "a\\u0000b"'), "--methods", s.world.toy],
     "root"),
    ("methods a folder", lambda s: [*run(methods=[_folder(s, "m.py")])(s)], r"m\.py"),
    ("maps missing", lambda s: [*evaluate()(s), "--maps", "/nowhere"], "/nowhere"),
    ("--name of nothing", lambda s: [*evaluate()(s), "--name", ""], ""),
    ("--name not UTF-8", lambda s: [*evaluate()(s), "--name", "a\udcff"], ""),
    ("--name of 300 letters", lambda s: [*evaluate()(s), "--name", "n" * 300], ""),
    ("data make --size 99999999", lambda s: _make(s, "--size", "99999999"), "size"),
    ("data make --size 9x9", lambda s: _make(s, "--size", "9x9"), "size"),
    ("data make --size in other digits", lambda s: _make(s, "--size", "٩٦"), ""),
    ("data make --size of 5000 digits", lambda s: _make(s, "--size", "9" * 5000), "size"),
    ("data make --train -1", lambda s: _make(s, "--train=-1"), "train"),
    ("data make --train 10^12", lambda s: _make(s, "--train", str(10**12)), "train"),
    ("data make --seed -1", lambda s: _make(s, "--seed=-1"), "seed"),
    ("data make --seed 10^30", lambda s: _make(s, "--seed", str(10**30)), ""),
    ("leaderboard of nothing", lambda s: ["leaderboard", "/nowhere", "--output", str(s.report)], "/nowhere"),
    ("plot of a file", lambda s: ["plot", s.world.toy, "--output", str(s.report)], "toy.py"),
    ("rescore of nothing", lambda s: ["rescore", "/nowhere"], "/nowhere"),
    ("new-method with a path", lambda s: ["new-method", "../x", "--folder", str(s.out)], "x"),
    ("new-method class", lambda s: ["new-method", "class", "--folder", str(s.out)], "class"),
)  # fmt: skip


def _small(stage: Stage, method: str, option: str) -> list[str]:
    command = kills.TARGETS[method].command(stage.world)
    at = command.index("--device")
    return [*command[:at], option, *command[at:], "--output", str(stage.out)]


def _folder(stage: Stage, name: str) -> str:
    place = stage.path / "given" / name
    place.mkdir(parents=True, exist_ok=True)
    return str(place)


def _make(stage: Stage, *more: str) -> list[str]:
    return ["data", "make", str(stage.out), "--categories", "weave", "--train", "2", "--test-good", "1",
            "--test-defective", "1", *more]  # fmt: skip


def option_cases() -> Iterable[Case]:
    """Yield the cases of item 17 that are options; where no words are given the command may do its work."""
    for name, argv, words in BAD_OPTIONS:

        def play(stage: Stage, argv: Argv = argv, words: str = words) -> Iterable[Finding]:
            outcome = stage.hrbench(*argv(stage), timeout=20)
            yield from judge_refusal(outcome, words) if words else judge_end(outcome)

        yield Case("inputs", "17", name, play)

    def bad_entry_point(kind: str) -> Case:
        def play(stage: Stage) -> Iterable[Finding]:
            info = stage.path / "given" / "bad-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[hrbench.methods]\nbad = {kind}\n")
            (info.parent / "failing_plugin.py").write_text("raise RuntimeError('no')\n")
            code = "import sys; sys.path.insert(0, ARGUMENTS); from hrbench.cli import main; sys.exit(main(['list']))"
            outcome = stage.python(code, str(info.parent))
            yield from judge_end(outcome)
            if outcome.code == 0 and "bad" not in outcome.text:
                yield Finding("silent", "an entry point that cannot be loaded is not named")

        return Case("inputs", "17", f"list with the entry point {kind}", play)

    for kind in ("json:loads", "json:JSONDecoder", "nowhere:X", "json:nothing", "failing_plugin:X", "json"):
        yield bad_entry_point(kind)


def cases(args: argparse.Namespace) -> Iterable[Case]:
    """Yield all cases of the family."""
    yield from protocol_cases()
    yield from number_cases()
    yield from weights_cases()
    for number in range(10):
        yield other_batch_size(number, args.seed)
    yield from disk_cases()
    yield Case("inputs", "15", "an adapter's path", no_path_recorded)
    for text in ("=1+1", "+1", "-1+1", "@SUM(1)", "=cmd|' /C calc'!A0", "<img src=x>", "a|b"):
        yield cell(text)
    yield Case("inputs", "15", "markup in a protocol", markup_protocol)
    for command in ("run", "evaluate", "leaderboard", "plot", "rescore"):
        yield no_draws(command)
    yield from signal_cases()
    yield from option_cases()
    yield from datasets.cases()
