"""Ctrl-C, SIGTERM and an output that nobody takes: a word, an exit status, no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hrbench.cli
from hrbench.__main__ import main

WORDS = {signal.SIGINT: "hrbench: interrupted", signal.SIGTERM: "hrbench: stopped by SIGTERM"}
LIST = """
import sys, types
sys.modules["hrbench.commands"] = types.SimpleNamespace(list_all=lambda _: print("x" * {length}) or {status})
from hrbench.__main__ import main
sys.argv[1:] = ["list"]
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in WORDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def once(number: int) -> int:
    signal.raise_signal(number)
    raise AssertionError


def twice(number: int) -> int:
    try:
        return once(number)
    finally:
        signal.raise_signal(number)


def as_another_error(number: int) -> int:
    try:
        return once(number)
    except KeyboardInterrupt:  # as Python 3.11 does while it makes a class
        raise RuntimeError from None


def as_a_user_s_mistake(number: int) -> int:
    try:
        return as_another_error(number)
    except RuntimeError:
        return 2


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("command", [once, twice, as_another_error, as_a_user_s_mistake])
def test_whatever_becomes_of_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, command
) -> None:
    monkeypatch.setattr(hrbench.cli, "main", lambda: command(number))
    assert main() == 128 + number
    assert capsys.readouterr().err == f"{WORDS[number]}; the same command continues where it was\n"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_who_ignores_signals_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does

    def command() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(hrbench.cli, "main", command)
    assert main() == 0


def test_other_errors_are_none_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(hrbench.cli, "main", command)
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("length", [1, 100_000])
def test_an_output_that_nobody_reads_or_that_is_full(length: int) -> None:
    command = [sys.executable, "-c", LIST.format(length=length, status=0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (2, 75)
    assert done.stderr.startswith("hrbench: ")
    assert len(done.stderr.splitlines()) == 1
