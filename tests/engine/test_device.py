"""Which devices are taken, and which inputs fit into their memory."""

from __future__ import annotations

import pytest
import torch

from hrbench import HrbenchError
from hrbench.engine import device as module
from hrbench.engine.device import check_memory, pick_device
from hrbench.engine.views import View

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "vulkan", "hpu", "xla", "privateuseone", "cpu:-1", "", "nonsense"])
def test_what_cannot_compute_is_one_line(name: str) -> None:
    with pytest.raises(HrbenchError) as caught:
        pick_device(name)
    said = str(caught.value)
    assert said.startswith(f"device {name!r} cannot be used: ")
    assert said.endswith("; try auto or cpu")
    assert "\n" not in said
    assert len(said) < 300


def test_the_device_of_choice() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda")


def test_an_input_that_fills_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View.parse("whole:1000x2000")
    monkeypatch.setattr(module, "_memory", lambda device: 15 * 2_000_000)
    check_memory(view, CPU)
    monkeypatch.setattr(module, "_memory", lambda device: None)
    check_memory(view, CPU)
    monkeypatch.setattr(module, "_memory", lambda device: 15 * 2_000_000 - 1)
    with pytest.raises(HrbenchError, match=r"one input of 1000x2000 pixels takes 0.0 GiB before .* cpu has 0.0 GiB"):
        check_memory(view, CPU)
    monkeypatch.undo()
    assert (module._memory(CPU) or 2**30) >= 2**28
