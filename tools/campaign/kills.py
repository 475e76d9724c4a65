"""Kills: SIGKILL at a seeded moment, or before a seeded change of a file; then the command is run again to its end.

A trial kills its command one to three times. Evidence, records, weights, pictures and the names of all files must then
be those of the command that nobody has disturbed, and nothing else may lie there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from .verdict import Finding, Outcome, digests, judge_bits, judge_end, last_line
from .world import QUICK, Case, Stage, World

SMALL = {  # a configuration of each method that fits in a second
    "fastflow": "whole:64 weights=random backbone=resnet10t strides=[4,8] flow_steps=2 steps=4",
    "isstad": "whole:64 weights=random backbone=test_vit decoder_width=32 decoder_heads=4 decoder_depth=2 mae_depth=1 "
    "mae_batch_size=2 batch_size=2 mae_steps=3 steps=3",
    "l2bt": "whole:64 weights=random teacher=vit_tiny_patch16_224 steps=4 batch_size=2",
    "uflow": "whole:64 weights=random steps=3 batch_size=2",
    "rstpm": "whole:64 weights=random teacher=test_efficientnet second_teacher=test_byobnet strides=[4,8] width=4 "
    "batch_size=2 steps=3 discriminator_batch_size=2 discriminator_steps=3",
}


@dataclass(frozen=True)
class Target:
    """What is killed: a command, given the world and without its output; and its share of the kills."""

    share: int
    command: Callable[[World], list[str]]
    fresh: bool = True  # the output folder is empty at first; else it holds finished runs


def _method(name: str, world: World) -> list[str]:
    view, *options = SMALL[name].split()
    return ["run", "--root", str(world.tree), "--categories", "bolt", "--methods", name, "--preset", "demo",
            "--view", view, "--set", *options, "--device", "cpu", "--protocol", world.quick]  # fmt: skip


def _toy(world: World) -> list[str]:
    return world.run_toy("--set", "steps=40", "noise=0.05", "pause=0.002", "--save-maps")


def _evaluate(world: World) -> list[str]:
    normal = [] if not world.maps else ["--normal-maps", str(world.maps / "bolt/test/good")]
    return ["evaluate", "--root", str(world.tree), "--categories", "bolt", "--maps", str(world.maps), "--name",
            "theirs", *normal, "--protocol", world.quick]  # fmt: skip


def _leaderboard(world: World) -> list[str]:
    return ["leaderboard", str(world.finished("alone", world.run_toy())), "--protocol", world.quick]


def _data_make(world: World) -> list[str]:
    return ["data", "make", "--size", "96", "--train", "6", "--test-good", "3", "--test-defective", "6",
            "--categories", "weave", "bolts"]  # fmt: skip


TARGETS = {
    "toy": Target(70, _toy),
    **{name: Target(28, partial(_method, name)) for name in SMALL},
    "evaluate": Target(40, _evaluate),
    "leaderboard": Target(20, _leaderboard),
    "data make": Target(30, _data_make),
}


CHECKPOINTS = (0.02, 0.1, 5.0)  # seconds between them: with few, much is done again
STRUCK: Counter[str] = Counter()  # kills that have found their command alive, by target


@dataclass(frozen=True)
class Undisturbed:
    """A command that nobody has killed: how long it takes, how many changes of files, and what it leaves."""

    seconds: float
    writes: int
    files: dict[str, str]


def with_output(command: list[str], stage: Stage) -> list[str]:
    """Return the command with its output folder."""
    return (
        [*command[:2], str(stage.out), *command[2:]] if command[0] == "data" else [*command, "--output", str(stage.out)]
    )


def undisturbed(name: str, stage: Stage) -> Undisturbed:
    """Run a command twice from the beginning; what it leaves must be the same."""
    done = []
    for number in range(2):
        place = replace(stage, path=stage.path / f"undisturbed-{number}", outcomes=[], _before={})
        command = with_output(TARGETS[name].command(stage.world), place)
        outcome = place.hrbench(*command, tune=QUICK, writes_below=str(place.out))
        if outcome.code:
            raise RuntimeError(f"undisturbed {name} ended with {outcome.code}: {outcome.text[-500:]}")
        done.append(Undisturbed(outcome.seconds, outcome.writes, digests(place.out)))
    if done[0].files != done[1].files:
        raise RuntimeError(f"undisturbed {name} differs: {judge_bits(done[0].files, done[1].files)[:3]}")
    return replace(done[1], seconds=min(done[0].seconds, done[1].seconds))


def trial(name: str, seed: str, kills: int, stage: Stage) -> Iterable[Finding]:
    """Kill a command so many times, run it to its end, and compare."""
    rng = random.Random(seed)
    expected: Undisturbed = stage.world.once(f"undisturbed {name}", lambda: undisturbed(name, stage))
    command, struck, moments = with_output(TARGETS[name].command(stage.world), stage), 0, []
    stage.set()
    tune = {**QUICK, "hrbench.engine.training:CHECKPOINT_SECONDS": rng.choice(CHECKPOINTS)}
    while struck < kills:  # some end before their moment has come, and are begun anew
        if rng.random() < 0.5:
            moment = rng.uniform(0.01, 0.95) * expected.seconds
            how = {"signals": [[moment, signal.SIGKILL]]}
            text = f"after {moment:.3f} s"
        else:
            write = rng.randint(1, max(1, expected.writes))
            how = {"kill_at_write": write}
            text = f"before change {write} of {expected.writes}"
        outcome = stage.hrbench(*command, tune=tune, writes_below=str(stage.out), timeout=120, **how)
        killed = outcome.code == -signal.SIGKILL and not outcome.ended_by
        stage.outcomes.remove(outcome)
        if killed:
            struck += 1
            moments.append(text)
            STRUCK[name] += 1
        else:
            yield from _ended(outcome, stage, expected, moments)
            shutil.rmtree(stage.out, ignore_errors=True)
    last = stage.hrbench(*command, tune=tune, timeout=120)
    yield from _ended(last, stage, expected, moments)


def _ended(outcome: Outcome, stage: Stage, expected: Undisturbed, moments: list[str]) -> Iterable[Finding]:
    findings = [*judge_end(outcome), *judge_bits(digests(stage.out), expected.files)]
    if outcome.code:
        findings.append(Finding("lost", f"cannot go on, exit {outcome.code}: {last_line(outcome.text)}"))
    for finding in findings:
        yield replace(finding, why=f"{finding.why}; killed {', '.join(moments) or 'never'}")


def cases(args: argparse.Namespace) -> Iterable[Case]:
    """Yield trials with so many kills in all, over all targets."""
    names = args.targets or list(TARGETS)
    shares = sum(TARGETS[name].share for name in names)
    for name in names:
        left, number = max(1, round(args.kills * TARGETS[name].share / shares)), 0
        rng = random.Random(f"{args.seed} {name}")
        while left:
            kills = min(left, rng.choice((1, 1, 2, 3)))
            seed = f"{args.seed} {name} {number}"
            yield Case("kills", "1", f"{name} {number}, {kills} kills", partial(trial, name, seed, kills))
            left, number = left - kills, number + 1
