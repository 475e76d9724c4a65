"""The largest batch that pays: the search by made-up times, and what it does to methods and their memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrbench import HrbenchError
from hrbench._util.fake_cuda import fake_cuda
from hrbench._util.memory import free_memory
from hrbench.data.loose import loose_samples
from hrbench.engine import batch_size as module
from hrbench.engine.batch_size import AUTO, check_batch_size, find_batch_size, largest_useful
from hrbench.engine.views import View
from hrbench.method import Method, Prediction

CPU = torch.device("cpu")


@given(st.floats(0, 1), st.floats(1e-3, 1), st.integers(0, 9))
def test_doubling_ends_where_it_no_longer_pays(fixed: float, each: float, most: int) -> None:
    found = largest_useful(lambda size: fixed + size * each, most=2**most)

    def rate(size: int) -> float:
        return size / (fixed + size * each)

    pays = [2**n for n in range(1, most + 1) if rate(2**n) > 1.05 * rate(2 ** (n - 1))]
    assert found >= max(pays, default=1)  # gains fall with the size: whatever pays, pays before
    assert rate(min(4 * found, 2**most)) <= 1.05 * rate(found)  # two more that do not pay


@pytest.mark.parametrize(
    ("seconds", "expected", "asked"),
    [
        ([1.0, 0.5, 9.0, 9.0], 2, [1, 2, 4, 8]),
        ([1.0, 1.99, 2.0, 9.0, 9.0], 4, [1, 2, 4, 8, 16]),  # one size that does not pay is looked past
        ([1.0, 2.0, 4.0, 0.1], 1, [1, 2, 4]),  # two are not
        ([1.0, 1.0, None], 2, [1, 2, 4]),  # memory
        ([None], 1, [1]),
        ([1.0] * 4, 8, [1, 2, 4, 8]),  # the most
    ],
)
def test_the_search(seconds: list[float | None], expected: int, asked: list[int]) -> None:
    sizes: list[int] = []

    def timed(size: int) -> float | None:
        sizes.append(size)
        return seconds[len(sizes) - 1]

    assert largest_useful(timed, most=8 if seconds == [1.0] * 4 else 256) == expected
    assert sizes == asked


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", "most", None])
def test_other_words_are_one_error(value: object) -> None:
    with pytest.raises(HrbenchError, match=f"batch size is {value!r}, expected at least 1, or 'auto'"):
        check_batch_size(value)


class Slow(Method):
    """Takes `fixed` + `each` made-up seconds per input, and memory for `most` inputs."""

    clock = 0.0

    def __init__(self, fixed: float, each: float, most: int = 1000) -> None:
        super().__init__()
        self.fixed, self.each, self.most = fixed, each, most
        self.seen: list[tuple[int, ...]] = []

    def predict(self, batch: Tensor) -> Prediction:
        assert not torch.is_grad_enabled()
        assert not self.training
        torch.rand(3)
        self.seen.append(tuple(batch.shape))
        if len(batch) > self.most:
            raise torch.cuda.OutOfMemoryError
        self.clock += self.fixed + self.each * len(batch)
        return Prediction({"anomaly": batch.mean(dim=1)})


(SAMPLE,) = loose_samples(np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8))


def found_for(
    method: Slow,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device = CPU,
    view: str = "whole:32+tiled:32:8",  # 7 inputs
    images: int = 40,
) -> int:
    monkeypatch.setattr(module, "device_seconds", lambda device: method.clock)
    return find_batch_size(method, SAMPLE, View.parse(view), device, images=images)


@pytest.mark.parametrize(("fixed", "each", "expected"), [(0.0, 1.0, 1), (1.0, 1e-9, 256), (0.1, 0.05, 32)])
def test_a_method_is_timed_on_its_inputs(fixed, each, expected, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: None)
    method = Slow(fixed, each)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert found_for(method, monkeypatch) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert {shape[1:] for shape in method.seen} == {(3, 32, 32)}


@pytest.mark.parametrize(
    ("view", "images", "expected"), [("whole:32", 16, 16), ("tiled:32:8", 1, 4), ("whole:32", 1, 1)]
)
def test_no_batch_is_tried_that_a_chunk_of_images_never_fills(view, images, expected, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: None)
    method = Slow(1.0, 1e-9)
    assert found_for(method, monkeypatch, view=view, images=images) == expected
    assert max(shape[0] for shape in method.seen) == expected


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (5, 4), (8, 8)])
def test_what_a_gpu_has_no_memory_for_is_too_large(most, expected, monkeypatch):
    with fake_cuda():
        assert found_for(Slow(1.0, 1e-9, most), monkeypatch, torch.device("cuda")) == expected


def test_another_error_of_the_method_is_no_lack_of_memory(monkeypatch):
    method = Slow(1.0, 1e-9)
    monkeypatch.setattr(method, "predict", lambda batch: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        found_for(method, monkeypatch)


@pytest.mark.parametrize(("free_mib", "expected"), [(160, 8), (159, 4), (1, 1)])
def test_on_a_cpu_half_of_the_free_memory_is_left(free_mib, expected, monkeypatch):
    method = Slow(1.0, 1e-9)
    monkeypatch.setattr(module, "free_memory", lambda: free_mib << 20)
    monkeypatch.setattr(module, "reset_peak_memory", lambda device: True)
    peaks = iter(range(10**6))
    monkeypatch.setattr(module, "peak_memory", lambda device: _peak(method, next(peaks)))
    assert found_for(method, monkeypatch) == expected


def _peak(method: Slow, call: int) -> float:
    """Ten MiB an input, asked before and after the first pass of a size."""
    return 10.0 * method.seen[-1][0] if call % 2 else 0.0


def test_free_memory_is_less_than_all() -> None:
    free = free_memory()
    assert free is None or 0 < free < 1 << 50


def test_the_word_is_one() -> None:
    assert check_batch_size("auto") == AUTO
    assert check_batch_size(3) == 3
