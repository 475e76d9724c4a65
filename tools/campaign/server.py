"""Runs hrbench in forks of a process that has imported it: what takes seconds to import is then there at once.

Started by :class:`campaign.world.Server` with the interpreter that is to be tried; a line of JSON asks, one answers.
Nothing of hrbench is called in the process itself, and it starts no thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
LATE = (  # what is imported only when it is used
    "torch._dynamo", "torch.utils.serialization.config", "timm", "tifffile", "scipy.stats", "scipy.optimize",
    "matplotlib.font_manager", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "pyarrow.dataset",
    "pyarrow.pandas_compat", "pandas.core.arrays.arrow.extension_types", "pandas.io.formats.csvs",
    "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
)  # fmt: skip
LOOK_SECONDS = 0.002
PIPE_BYTES = 1 << 20
SOON = 120.0  # seconds until a child is killed of which nothing else is said


def import_all() -> None:
    """Import every module of hrbench, its methods, and what they import only when they are used."""
    import hrbench

    names = [info.name for info in pkgutil.walk_packages(hrbench.__path__, "hrbench.")]
    with contextlib.suppress(Exception):
        from hrbench._util.resources import methods_package

        names += [f"hrbench.methods.{info.name}" for info in pkgutil.iter_modules(methods_package().__path__)]
    for name in (*names, *LATE):
        if not name.endswith("__main__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def count_writes(root: str, at: int | None, told: int) -> None:
    """Kill this process before its `at`-th change of a file below `root`; with None tell how many there were."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event in WRITES or (event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax")
        if not writes or not isinstance(arguments[0], str | os.PathLike) or root not in os.fspath(arguments[0]):
            return
        seen += 1
        if at is not None and seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if at is None:
            os.pwrite(told, str(seen).encode(), 0)

    sys.addaudithook(hook)


def small_disk(place: str, kib: int) -> None:
    """Mount a file system of so many KiB over a folder, for this process alone."""
    import ctypes
    import subprocess

    apart = ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
    commands = (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "campaign", place])
    if not apart or any(subprocess.run(command, capture_output=True).returncode for command in commands):
        sys.stderr.write("cannot mount\n")
        raise SystemExit(0)


def child(ask: dict[str, Any], told: int, pipes: list[int]) -> int:
    """Do what is asked, in the fork; return the exit status."""
    os.setsid()
    os.chdir(ask["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, said in zip((1, 2), pipes, strict=True):
        os.dup2(said, number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="surrogateescape")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    os.environ.update(ask.get("env", {}))
    tempfile.tempdir = None
    for place, value in ask.get("tune", {}).items():  # such as a checkpoint every few steps
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    if mount := ask.get("mount"):
        small_disk(*mount)
    if size := ask.get("file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if root := ask.get("writes_below"):
        count_writes(root, ask.get("kill_at_write"), told)
    if "code" in ask:
        exec(compile(ask["code"], "<campaign>", "exec"), {"__name__": "__main__", "ARGUMENTS": ask.get("arguments")})
        return 0
    sys.argv = ["hrbench", *ask["argv"]]
    runpy.run_module("hrbench", run_name="__main__", alter_sys=True)
    return 0


def forked(ask: dict[str, Any], told: int, pipes: list[int]) -> None:
    """End the fork as an interpreter ends: an error that nobody catches is a traceback."""
    code = 1
    try:
        code = child(ask, told, pipes)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code & 255)


def read_all(texts: dict[int, bytearray]) -> None:
    """Read what was printed; not from files, for a limit on their size would cut it."""
    for reader, text in texts.items():
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reader, PIPE_BYTES):
                text += piece


def attend(pid: int, ask: dict[str, Any], began: float, texts: dict[int, bytearray]) -> dict[str, Any]:
    """Wait for a fork; signal it when its moment has come, kill it when its time or memory is used up."""
    signals = sorted(map(tuple, ask.get("signals", [])))  # (seconds, number)
    until, most, ended_by, looked = began + ask.get("timeout", SOON), ask.get("memory_mib", 4096), "", began
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        now = time.monotonic()
        read_all(texts)
        if done:
            break
        if signals and now >= began + signals[0][0]:
            os.kill(pid, signals.pop(0)[1])
            continue
        if now > until:
            ended_by = "time"
        elif now - looked > 0.05:
            looked = now
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                ended_by = "memory" if pages * resource.getpagesize() > most * 2**20 else ""
        if ended_by:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            now = time.monotonic()
            break
        time.sleep(LOOK_SECONDS)
    read_all(texts)
    with contextlib.suppress(ProcessLookupError):  # what it may have started and left behind
        os.killpg(pid, signal.SIGKILL)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": now - began,
        "peak_mib": usage.ru_maxrss / 1024,
        "ended_by": ended_by,
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_all()
    gc.collect()
    gc.freeze()  # what forks collect need not look at all that was imported
    answers.write("ready\n")
    for line in sys.stdin:
        ask = json.loads(line)
        with tempfile.TemporaryFile() as told:
            began, said = time.monotonic(), [os.pipe() for _ in range(2)]
            for reader, writer in said:
                os.set_blocking(reader, False)
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            if (pid := os.fork()) == 0:
                forked(ask, told.fileno(), [writer for _, writer in said])
            texts = {reader: bytearray() for reader, _ in said}
            answer = attend(pid, ask, began, texts)
            answer["writes"] = int(os.pread(told.fileno(), 20, 0) or b"0")
            answer["out"], answer["err"] = (text.decode(errors="replace") for text in texts.values())
            for pipe in said:
                os.close(pipe[0])
                os.close(pipe[1])
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
