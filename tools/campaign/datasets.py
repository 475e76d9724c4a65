"""Inputs that are files: data that is wrong, names that are hostile or merge, and what dead processes have left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from .verdict import Finding, Outcome, judge_end, judge_refusal, judge_success, judge_words, last_line
from .world import Case, Stage, descriptor_text, leaderboard_values, save_image, write_tree

LONG = "n" * 240


# -- item 3: names that merge

PAIRS = (("数据集一", "数据集二"), ("a b", "a_b"), ("äö", "åø"), ("data#1", "data?1"), ("e\u0301", "é"), ("。", "、"))


def merging(kind: str, names: tuple[str, str], *, plots: bool = False) -> Case:
    """Return a case of two datasets, or categories, whose names could become one."""

    def play(stage: Stage) -> Iterable[Finding]:
        given = stage.path / "given"
        if kind == "categories":
            roots = [write_tree(given / "data", categories=names)]
            asked = [["--categories", *names]]
        else:
            roots = [write_tree(given / (name if kind == "roots" else str(i)), categories=("bolt",), seed=i)
                     for i, name in enumerate(names)]  # fmt: skip
            asked = [[], []]
            if kind == "descriptors":
                files = [stage.file(f"{i}.toml", descriptor_text(name)) for i, name in enumerate(names)]
                asked = [["--dataset", file] for file in files]
        stage.set()
        for root, more in zip(roots, asked, strict=True):
            yield from judge_success(stage.hrbench(*stage.world.run_toy(*more, root=root), "--output", str(stage.out)))
        for command in ("leaderboard", "plot") if plots else ("leaderboard",):
            argv = [command, str(stage.out), "--output", str(stage.report), "--protocol", stage.world.quick]
            yield from judge_success(stage.hrbench(*argv))
        abouts = [json.loads(path.read_text(encoding="utf-8")) for path in stage.out.rglob("run.json")]
        key = "category" if kind == "categories" else "name"
        recorded = {about["dataset"][key] for about in abouts}
        if len(abouts) != 2 or len(recorded) != 2:
            yield Finding("wrong number", f"{len(abouts)} runs, of {sorted(recorded)}, expected one of each of {names}")
        column = "category" if kind == "categories" else "dataset"
        shown = set(leaderboard_values(stage.report)[column]) - {""}
        if len(shown) != 2:
            yield Finding("wrong number", f"the leaderboard has {sorted(shown)}, expected {names}")
        drawn = len(list(stage.report.rglob("*.png")))
        if plots and drawn != (plain := _plain_plots(stage, kind)):
            yield Finding("lost", f"{drawn} plots, {plain} with plain names: one overwrites the other")

    return Case("inputs", "3", f"{kind} {names[0]} and {names[1]}", play)


def _plain_plots(stage: Stage, kind: str) -> int:
    """Return how many plots two datasets, or categories, of plain names give."""
    world = stage.world

    def make() -> int:
        if kind == "categories":
            finished = world.finished("two categories", world.run_toy("--categories", "bolt", "nut"))
        else:
            other = write_tree(world.root / "other", categories=("bolt",), seed=1)
            finished = world.finished("two datasets", world.run_toy(), world.run_toy(root=other))
        report = world.root / f"plots of {kind}"
        argv = ["plot", str(finished), "--output", str(report), "--protocol", world.quick]
        world.server.ask(argv=argv, cwd=str(world.root))
        return len(list(report.rglob("*.png")))

    found: int = world.once(f"plots {kind}", make)
    return found


# -- item 12: data that is wrong

Damage = Callable[[Path], None]


def _cut(name: str, share: float = 0.6) -> Damage:
    def damage(root: Path) -> None:
        path = root / "bolt" / name
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def _as(name: str, suffix: str, *, cut: bool = False, save: Callable[[Path, np.ndarray], None] | None = None) -> Damage:
    """Store an image or mask in another format, and cut it if asked to."""

    def damage(root: Path) -> None:
        path = root / "bolt" / name
        pixels = np.asarray(Image.open(path))
        path.unlink()
        target = path.with_suffix(suffix)
        if save:
            save(target, pixels)
        elif suffix == ".tif":
            tifffile.imwrite(target, pixels)
        else:
            Image.fromarray(pixels).save(target, quality=60)
        if cut:
            content = target.read_bytes()
            target.write_bytes(content[: int(0.6 * len(content))])

    return damage


def _pixels(name: str, pixels: np.ndarray) -> Damage:
    def damage(root: Path) -> None:
        save_image(root / "bolt" / name, pixels)

    return damage


def _remove(*names: str) -> Damage:
    def damage(root: Path) -> None:
        for name in names:
            for path in sorted((root / "bolt").glob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _copy(source: str, target: str) -> Damage:
    def damage(root: Path) -> None:
        path = root / "bolt" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "bolt" / source, path)

    return damage


def _write(name: str, content: bytes) -> Damage:
    def damage(root: Path) -> None:
        path = root / "bolt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return damage


IMAGE, TRAINING, MASK = "test/dent/004.png", "train/good/003.png", "ground_truth/dent/004_mask.png"
NOISE = np.random.default_rng(5)
# what is wrong, how it is made, what `data check` says of it, and whether a run must refuse it before its first fit
BAD_DATA: Sequence[tuple[str, Damage, str, bool]] = (
    ("a mask of another size", _pixels(MASK, np.full((20, 20), 255)), "004_mask", True),
    ("an image of another size than its mask", _pixels(IMAGE, NOISE.normal(150, 6, (30, 30, 3))), "004", True),
    ("a truncated PNG", _cut(IMAGE), "004", True),
    ("a truncated training PNG", _cut(TRAINING), "003", True),
    ("a truncated mask", _cut(MASK, 0.7), "004_mask", True),
    ("a truncated JPEG", _as(IMAGE, ".jpg", cut=True), "004", True),
    ("a truncated TIFF", _as(IMAGE, ".tif", cut=True), "004", True),
    ("an empty file", _write(IMAGE, b""), "004", True),
    ("text called .png", _write(IMAGE, b"hello" * 100), "004", True),
    ("a mask that is all zero", _pixels(MASK, np.zeros((48, 64))), "004_mask", True),
    ("a mask in JPEG", _as(MASK, ".jpg"), "004_mask", True),
    ("a float TIFF", _as(IMAGE, ".tif", save=lambda p, x: tifffile.imwrite(p, x.astype(np.float32))), "004", True),
    ("a float mask", _as(MASK, ".tif", save=lambda p, x: tifffile.imwrite(p, x.astype(np.float32))), "004_mask", True),
    ("a multi-page TIFF",
     _as(IMAGE, ".tif", save=lambda p, x: tifffile.imwrite(p, np.stack([x, x, x]), photometric="rgb")), "004", True),
    ("one training image", _remove("train/good/00[1-9].png"), "train", True),
    ("no training image", _remove("train/good/*.png"), "train", True),
    ("no defective image", _remove("test/dent", "ground_truth"), "defect", True),
    ("a training image copied into test", _copy(TRAINING, "test/good/900.png"), "900|003", False),
    ("images in a sub-folder that is not read", _copy(TRAINING, "train/good/more/900.png"), "more", False),
    ("images beside train/good", _copy(TRAINING, "train/bad/900.png"), "bad|900", False),
    ("an image without a mask", _remove(MASK), "004", True),
    ("a mask without an image", _remove(IMAGE), "004", True),
    ("two files of one stem", _copy(IMAGE, "test/dent/004.bmp"), "004", True),
    ("a folder called .png", lambda root: (root / "bolt/test/good/900.png").mkdir(), "900", True),
    ("a dangling link", lambda root: (root / "bolt/test/good/900.png").symlink_to("/nowhere"), "900", True),
    ("a link to itself", lambda root: (root / "bolt/test/good/900.png").symlink_to("900.png"), "900", True),
    ("a device called .png", lambda root: (root / "bolt/test/good/900.png").symlink_to("/dev/zero"), "900", True),
    ("an image of one pixel", _pixels(IMAGE, np.full((1, 1, 3), 99)), "004", True),
    ("a bomb", lambda root: _bomb(root / "bolt/test/good/900.png"), "900", True),
)  # fmt: skip


def _bomb(path: Path) -> None:
    """Write a PNG whose header says 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def checked(name: str, damage: Damage, words: str) -> Case:
    """Return a case of data in which `data check` must find something."""

    def play(stage: Stage) -> Iterable[Finding]:
        damage(root := stage.tree())
        stage.set()
        outcome = stage.hrbench("data", "check", "--root", str(root), timeout=20)
        yield from judge_refusal(outcome, words)

    return Case("inputs", "12", f"data check: {name}", play)


def run_on(name: str, damage: Damage, words: str) -> Case:
    """Return a case of data that a run must refuse before the first fit."""

    def play(stage: Stage) -> Iterable[Finding]:
        damage(root := stage.tree())
        stage.set()
        outcome = stage.hrbench(*stage.world.run_toy(root=root), "--output", str(stage.out), timeout=30)
        yield from judge_refusal(outcome, words)
        if stage.fits():
            yield Finding("other", f"found after the fit: exit {outcome.code}: {last_line(outcome.err)}")

    return Case("inputs", "12", f"run: {name}", play)


def half_made(command: str) -> Case:
    """Return a case of a procedural dataset of which files are missing, because it was made only in part."""

    def play(stage: Stage) -> Iterable[Finding]:
        root = stage.path / "given/data"
        argv = ["data", "make", str(root), "--size", "64", "--categories", "weave", "--train", "3", "--test-good", "2",
                "--test-defective", "3"]  # fmt: skip
        stage.world.server.ask(argv=argv, cwd=str(stage.path))
        (root / "weave/test/good/001.png").unlink()
        stage.set()
        run = [*stage.world.run_toy(root=root), "--output", str(stage.out)]
        check = ["data", "check", "--root", str(root)]
        yield from judge_refusal(stage.hrbench(*(run if command == "run" else check)), "001")
        if stage.fits():
            yield Finding("other", "found after the fit")

    return Case("inputs", "12", f"{command}: a half-made set", play)


def fifo(place: str, command: str) -> Case:
    """Return a case of a FIFO called like an image."""

    def play(stage: Stage) -> Iterable[Finding]:
        root = stage.tree()
        path = root / "bolt" / place
        path.unlink()
        os.mkfifo(path)
        stage.set()
        argv = {
            "run": [*stage.world.run_toy(root=root), "--output", str(stage.out)],
            "data check": ["data", "check", "--root", str(root)],
            "data stats": ["data", "stats", "--root", str(root)],
        }[command]
        yield from judge_refusal(stage.hrbench(*argv, timeout=15), path.name)

    return Case("inputs", "16", f"{command}: {place} is a FIFO", play)


def fifo_map(stage: Stage) -> Iterable[Finding]:
    """Let a FIFO be called like a map."""
    maps = stage.path / "given/maps"
    shutil.copytree(stage.world.maps, maps)
    path = next(path for path in sorted(maps.rglob("*.npy")) if "bolt" in path.parts)
    path.unlink()
    os.mkfifo(path)
    stage.set()
    argv = ["evaluate", "--root", str(stage.world.tree), "--categories", "bolt", "--maps", str(maps), "--output",
            str(stage.out), "--protocol", stage.world.quick]  # fmt: skip
    yield from judge_refusal(stage.hrbench(*argv, timeout=15), path.name)


def deep_root(levels: int) -> Case:
    """Return a case of a root that lies too deep or too shallow: the error says which was meant."""

    def play(stage: Stage) -> Iterable[Finding]:
        tree = stage.tree()
        root, meant = {1: (tree / "bolt/train", tree / "bolt"), 2: (tree / "bolt/train/good", tree / "bolt"),
                       -1: (tree.parent, tree)}[levels]  # fmt: skip
        stage.set()
        outcome = stage.hrbench(*stage.world.run_toy(root=root), "--output", str(stage.out))
        yield from judge_refusal(outcome, rf"did you mean.*{re.escape(meant.name)}")

    return Case("inputs", "17", f"a root {abs(levels)} too {'deep' if levels > 0 else 'shallow'}", play)


# -- item 13: names that lead outside

HOSTILE = ("../" * 7 + "victim", "../" * 4 + "victim", "../victim", "..", ".", "a/../../victim",
           "ABSOLUTE/victim", "./..//..//victim", "~", "~root", "-rf", "$(touch victim)", "a\nb", "a\tb", "con",
           "a\\..\\..\\victim", "．．/victim", "%2e%2e/victim",
           ".hidden", " ", "runs/..", "a:b", "\u202etxt", LONG, "x" * 255)  # fmt: skip


def hostile_category(name: str) -> Case:
    """Return a case of a descriptor whose category has a hostile name, where a tree lies."""

    def play(stage: Stage) -> Iterable[Finding]:
        root, called = stage.path / "given/1/2/3/4/5/6/7/8/data", name.replace("ABSOLUTE", str(stage.path / "given/a"))
        root.mkdir(parents=True)
        for category in (called, "bolt"):
            place = (root / category).resolve()
            if place.is_relative_to(stage.path) and not (place / "train").is_dir():
                write_tree(place.parent, categories=(place.name,))
        more = f"[categories.{json.dumps(called)}]\n[categories.bolt]\n"
        dataset = stage.file("hostile.toml", descriptor_text("parts", layout="mvtec", more=more))
        stage.set()
        argv = stage.world.run_toy("--dataset", dataset, "--save-maps", root=root)
        yield from judge_end(stage.hrbench(*argv, "--output", str(stage.out)))

    return Case("inputs", "13" if len(name) < 100 else "17", f"category {name[:40]!r} with --save-maps", play)


def hostile_dataset(name: str) -> Case:
    """Return a case of a dataset with a hostile name, whose report is written too."""

    def play(stage: Stage) -> Iterable[Finding]:
        dataset = stage.file("hostile.toml", descriptor_text(name).replace("\x7f", ""))
        stage.set()
        argv = stage.world.run_toy("--dataset", dataset, "--save-maps", "--categories", "bolt", root=stage.world.tree)
        outcome = stage.hrbench(*argv, "--output", str(stage.out))
        yield from judge_end(outcome)
        if outcome.code == 0:
            argv = ["leaderboard", str(stage.out), "--output", str(stage.report), "--protocol", stage.world.quick]
            yield from judge_success(stage.hrbench(*argv))

    return Case("inputs", "13" if len(name) < 100 else "17", f"dataset {name[:40]!r}", play)


def hostile_method(name: str) -> Case:
    """Return a case of maps of a method with a hostile name."""

    def play(stage: Stage) -> Iterable[Finding]:
        argv = ["evaluate", "--root", str(stage.world.tree), "--categories", "bolt", "--maps", str(stage.world.maps),
                f"--name={name}", "--protocol", stage.world.quick, "--output", str(stage.out)]  # fmt: skip
        yield from judge_end(stage.hrbench(*argv))

    return Case("inputs", "13" if len(name) < 100 else "17", f"--name {name[:40]!r}", play)


def hostile_split(path: str) -> Case:
    """Return a case of a split file that names an image elsewhere."""

    def play(stage: Stage) -> Iterable[Finding]:
        tree = stage.tree("visa/candle", categories=("x",))
        root = tree.parent
        (root / "split_csv").mkdir()
        rows = ["object,split,label,image,mask", f"candle,train,normal,{path},"]
        (root / "split_csv/1cls.csv").write_text("\n".join(rows), encoding="utf-8")
        (root / "candle/Data/Images").mkdir(parents=True)
        stage.set()
        argv = [*stage.world.run_toy("--dataset", "visa", root=root), "--output", str(stage.out)]
        yield from judge_refusal(stage.hrbench(*argv), "1cls|candle")

    return Case("inputs", "13", f"a split file with {path!r}", play)


def long_image_name(stage: Stage) -> Iterable[Finding]:
    """Give an image a name of 240 letters, and ask for --save-maps."""
    root = stage.tree()
    (root / "bolt/test/good/000.png").rename(root / f"bolt/test/good/{LONG}.png")
    stage.set()
    outcome = stage.hrbench(*stage.world.run_toy("--save-maps", root=root), "--output", str(stage.out))
    yield from judge_end(outcome)
    if outcome.code:
        yield from judge_words(outcome, "nnnn|long")


def bytes_in_name(stage: Stage) -> Iterable[Finding]:
    """Give an image a name that is not UTF-8."""
    root = stage.tree()
    os.rename(root / "bolt/test/good/000.png", os.fsencode(root) + b"/bolt/test/good/\xff\xfe.png")  # noqa: PTH104
    stage.set()
    for argv in ([*stage.world.run_toy("--save-maps", root=root), "--output", str(stage.out)],
                 ["data", "check", "--root", str(root)], ["data", "stats", "--root", str(root)]):  # fmt: skip
        outcome = stage.hrbench(*argv)
        yield from judge_end(outcome)
        if outcome.code:
            yield from judge_words(outcome, "UTF-8|xff|name")


# -- item 16: what dead processes have left


def left_behind(place: str) -> Case:
    """Return a case of temporary files of a process that is dead: the next command removes them, and nothing else."""

    def play(stage: Stage) -> Iterable[Finding]:
        world = stage.world
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        long_ago = time.time() - 2 * 86400  # where the name does not say of which host the process was
        if place == "data":
            argv = ["data", "make", str(stage.out), "--size", "64", "--categories", "weave", "--train", "2",
                    "--test-good", "1", "--test-defective", "2"]  # fmt: skip
            yield from judge_success(stage.hrbench(*argv))
            folder = stage.out / "weave/train/good"
        else:
            stage.copy(world.finished("with maps", world.run_toy("--save-maps")))
            argv = [*world.run_toy("--save-maps"), "--output", str(stage.out)]
            folder = next(stage.out.rglob("run.json")).parent / place
            if place == "killed":
                folder = folder.parent / "pictures"
                (folder.parent / "run.json").unlink()
        folder.mkdir(parents=True, exist_ok=True)
        names = (f".000.png.{dead.pid}.tmp", f".000.png.{dead.pid}-0badf00d.tmp")
        for name in names:
            (folder / name).write_bytes(b"half")
            os.utime(folder / name, (long_ago, long_ago))
        (folder / ".notes.tmp").write_text("mine")
        yield from judge_success(stage.hrbench(*argv))
        for name in names[1:]:
            if (folder / name).exists():
                yield Finding("other", f"{place}/{name} of a dead process is left over")
        if not (folder / ".notes.tmp").exists():
            yield Finding("lost", f"{place}/.notes.tmp, which hrbench has not written, is gone")

    return Case("inputs", "16", f"temporary files of a dead process in {place}", play)


def partial_left(stage: Stage) -> Iterable[Finding]:
    """Leave partial/ beside a finished run, as a process that is killed at the very end does."""
    world = stage.world
    stage.copy(world.finished("alone", world.run_toy()))
    folder = next(stage.out.rglob("run.json")).parent / "partial"
    folder.mkdir()
    (folder / "fit.pt").write_bytes(b"old")
    outcome: Outcome = stage.hrbench(*world.run_toy(), "--output", str(stage.out))
    yield from judge_success(outcome)
    if folder.exists():
        yield Finding("other", "partial/ is left over")


def cases() -> Iterable[Case]:
    """Yield the cases of items 3, 12, 13, and of 16 and 17 those that are files."""
    for number, names in enumerate(PAIRS):
        for kind in ("roots", "categories"):
            yield merging(kind, names, plots=number == 1)
    for names in PAIRS[:3]:
        yield merging("descriptors", names)
    for name, damage, words, before_fit in BAD_DATA:
        yield checked(name, damage, words)
        if before_fit:
            yield run_on(name, damage, words)
    for command in ("data check", "run"):
        yield half_made(command)
    for name in HOSTILE:
        yield hostile_category(name)
    for name in HOSTILE[:8] + HOSTILE[12:16] + HOSTILE[-2:]:
        yield hostile_dataset(name)
        yield hostile_method(name)
    for path in ("../../../etc/passwd", "/etc/passwd", "candle/../../x.png", "C:/x.png", "a\\..\\b.png"):
        yield hostile_split(path)
    yield Case("inputs", "17", "an image with a name of 240 letters, with --save-maps", long_image_name)
    yield Case("inputs", "17", "an image whose name is not UTF-8", bytes_in_name)
    for levels in (1, 2, -1):
        yield deep_root(levels)
    for place in (TRAINING, IMAGE, MASK):
        for command in ("run", "data check", "data stats"):
            yield fifo(place, command)
    yield Case("inputs", "16", "a map is a FIFO", fifo_map)
    for place in ("pictures", "maps/bolt/test/good", "data", "killed"):
        yield left_behind(place)
    yield Case("inputs", "16", "partial/ beside a finished run", partial_left)
