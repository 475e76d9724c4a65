"""Code of others in this process: all that it changes for everybody is put back, and it cannot end the process."""

from __future__ import annotations

import logging
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import backends

from hrbench import HrbenchError
from hrbench._util import guard
from hrbench._util.guard import generators_kept, guarded, set_seed

kept: list[object] = []  # contexts that nobody leaves


def enter(context: object) -> None:
    kept.append(context)
    context.__enter__()  # type: ignore[attr-defined]


def deaf(*_: object) -> None:
    """Take a signal and do nothing."""


CHANGES: dict[str, Callable[[], object]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "default device of a context": lambda: enter(torch.device("meta")),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32 in matmul": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "tf32 in cudnn": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "benchmark": lambda: setattr(backends.cudnn, "benchmark", True),
    "mkldnn": lambda: setattr(backends.mkldnn, "enabled", False),
    "attention": lambda: backends.cuda.enable_math_sdp(False),
    "fast path": lambda: backends.mha.set_fastpath_enabled(False),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: enter(torch.inference_mode()),
    "autocast": lambda: enter(torch.autocast("cpu", dtype=torch.bfloat16)),
    "denormals": lambda: torch.set_flush_denormal(True),
    "folder": lambda: os.chdir("/"),
    "environment": lambda: os.environ.update(HRBENCH_WEIGHTS="elsewhere"),
    "environment, less": lambda: os.environ.pop("HF_HUB_OFFLINE"),
    "errors of numpy": lambda: np.seterr(divide="raise"),
    "Ctrl-C": lambda: signal.signal(signal.SIGINT, deaf),
}
if hasattr(backends, "fp32_precision"):
    CHANGES["precision in the new way"] = lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32")
    CHANGES["precision of all"] = lambda: setattr(backends, "fp32_precision", "tf32")


@pytest.fixture(autouse=True)
def told_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(guard, "_told", set())
    yield
    kept.clear()


def state() -> list[object]:
    return [setting.read() for setting in [*guard._NUMERIC, guard._ENVIRONMENT, *guard._SIGNALS, guard._FILTERS]]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_method_changes_is_put_back_and_told_once(change: str, caplog: pytest.LogCaptureFixture) -> None:
    before = state()
    for _ in range(2):
        with guarded("mine.py: fit") as changed:
            CHANGES[change]()
        assert changed
        assert state() == before
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"mine.py: fit changed {changed[0]}")


def test_what_a_method_changes_is_put_back_when_it_fails() -> None:
    def interrupted() -> None:
        with guarded("mine.py"):
            torch.set_default_dtype(torch.float64)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.get_default_dtype() == torch.float32


def test_casts_of_an_autocast_that_was_left_on_do_not_outlive_it() -> None:
    weight = torch.ones((1, 1), requires_grad=True)
    with guarded("mine.py", briefly=True):
        enter(torch.autocast("cpu", dtype=torch.bfloat16))
    for expected in (1.0, 2.0):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (torch.ones((1, 1)) @ weight).item() == expected
        with torch.no_grad():
            weight.add_(1)


def test_filters_of_warnings_are_put_back_without_a_word() -> None:
    before = warnings.filters[:]
    with guarded("mine.py") as changed:
        warnings.simplefilter("error", FutureWarning)
    assert warnings.filters == before
    assert not changed


def test_what_is_left_as_it_was_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with guarded("mine.py") as changed:
        os.environ["KMP_DUPLICATE_LIB_OK"] = "True"  # as some libraries do when they are imported
        with torch.no_grad():
            pass
    del os.environ["KMP_DUPLICATE_LIB_OK"]
    assert not changed
    assert not caplog.records


def test_values_of_the_environment_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with guarded("mine.py"):
        os.environ["TOKEN"] = "secret"
    assert "TOKEN" in caplog.text
    assert "secret" not in caplog.text


def test_a_method_cannot_end_the_process() -> None:
    with pytest.raises(HrbenchError, match=r"mine.py: fit called sys.exit\(0\), expected"), guarded("mine.py: fit"):
        raise SystemExit(0)


def test_a_block_that_is_never_left_puts_nothing_back_when_it_is_collected() -> None:
    block = guarded("method")
    block.__enter__()
    os.environ["HRBENCH_TEST"] = "later"
    del block
    assert os.environ.pop("HRBENCH_TEST") == "later"


def test_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.random(), random.random()  # noqa: NPY002

    set_seed(2**62 + 1)
    first = draw()
    set_seed(2**62 + 1)
    with generators_kept():
        draw()
    assert draw() == first
