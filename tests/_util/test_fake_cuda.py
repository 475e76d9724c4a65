"""The device that only says it is a GPU: what a GPU would refuse is refused, and what it costs is counted."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._device import _device_constructors

from hrbench._util.fake_cuda import DEVICE, Log, fake_cuda

# Without a driver torch says so, in words that depend on the version.
REAL = torch.cuda.is_available()


@pytest.fixture
def log() -> Iterator[Log]:
    with fake_cuda() as log:
        yield log


def there(*size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(DEVICE, non_blocking=True)


def test_tensors_say_where_they_are_and_hold_their_values(log: Log) -> None:
    x = torch.tensor([1.0, 2.0]).to("cuda")
    assert (x.device, x.is_cuda, x.is_meta) == (DEVICE, True, False)
    for made in (x + 1, x[0], x.new_zeros(2), x.new_tensor([1.0]), torch.zeros(3, device="cuda"), torch.zeros_like(x)):
        assert made.device == DEVICE
    assert x.cuda().to("cuda").tolist() == [1, 2]
    assert x.cpu().device.type == "cpu"
    assert torch.arange(2).to(x).dtype == x.dtype


def test_views_and_changes_in_place_share_the_values(log: Log) -> None:
    x = torch.zeros(2, 3, device="cuda")
    x[1].add_(2)
    x.view(6)[0] = 5
    x[x > 4] = 7
    assert x.tolist() == [[7, 0, 0], [2, 2, 2]]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("fused", [False, True])
def test_training_gives_the_weights_of_the_host(
    log: Log, optimizer: Callable[..., torch.optim.Optimizer], fused: bool
) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to(device)
        stepping = optimizer(network.parameters(), lr=0.1, fused=fused)
        for _ in range(2):
            stepping.zero_grad()
            network(torch.rand(2, 3, 8, 8).to(device)).square().mean().backward()
            stepping.step()
        weights.append([value.cpu() for value in network.state_dict().values()])
    for here, own in zip(*weights, strict=True):
        torch.testing.assert_close(here, own)


@pytest.mark.parametrize(
    "meet",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) * x,
        lambda x: x.add_(torch.ones(3)),
        lambda x: torch.ones(()).add_(x[0]),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: torch.stack([x[0], torch.ones(())]),
        lambda x: x @ torch.ones(3),
        lambda x: functional.linear(x, torch.ones(2, 3)),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
    ],
)
def test_a_tensor_of_the_host_that_meets_one_of_the_device_is_refused(log: Log, meet: Callable[..., object]) -> None:
    with pytest.raises(RuntimeError, match=r"same device.* at test_fake_cuda\.py:\d+"):
        meet(there(3))


def test_numbers_of_the_host_are_not_refused(log: Log) -> None:
    x = there(3)
    assert (x * torch.tensor(2.0) + 1).device == DEVICE
    assert not log.waits


def test_a_generator_of_the_host_draws_nothing_on_the_device(log: Log) -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: float(x[0]),
        lambda x: x[0].item(),
        lambda x: bool((x > 2).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.argmax().cpu(),
        lambda x: x[x > 0],
        lambda x: x[x.argmax()],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x[[0, 1]],
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.ones(3).to(x),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.empty(3).copy_(x, non_blocking=True),  # which memory that is not pinned cannot
        lambda x: torch.save(x, io.BytesIO()),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: torch.cuda.Event().synchronize(),
    ],
)
def test_a_wait_is_counted_with_its_line(log: Log, ask: Callable[..., object]) -> None:
    x = there(3)
    assert not log.waits
    ask(x)
    assert len(log.waits) == 1
    assert " at test_fake_cuda.py:" in log.waits[0]


@pytest.mark.parametrize(
    "go_on",
    [
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True),
        lambda x: torch.full((3,), 2.0, device=x.device),
        lambda x: x[x.argsort()],
        lambda x: x[0],
        lambda x: x.take(x.argmax()),
        lambda x: x.masked_fill(x > 0, 1.0),
        lambda x: torch.cuda.Event(enable_timing=True).record(torch.cuda.current_stream()),
    ],
)
def test_what_only_queues_work_is_no_wait(log: Log, go_on: Callable[..., object]) -> None:
    go_on(there(3))
    assert not log.waits


def test_float64_on_the_device_is_noted(log: Log) -> None:
    torch.ones(3).double()
    assert not log.doubles
    there(3).double()
    assert len(log.doubles) == 1
    assert " at test_fake_cuda.py:" in log.doubles[0]


def test_autocast_gives_the_types_of_cuda(log: Log) -> None:
    x, weight, bias = there(2, 3, 4, 4), there(5, 3, 1, 1), there(5)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = functional.conv2d(x, weight, bias)
        assert found.dtype == torch.bfloat16
        assert (x[0, 0] @ x[0, 1]).dtype == torch.bfloat16
        assert (found + found).dtype == torch.bfloat16
        assert {found.softmax(1).dtype, found.sum().dtype, functional.layer_norm(found, (4,)).dtype} == {torch.float32}
        with torch.autocast("cuda", enabled=False):
            assert functional.conv2d(x, weight, bias).dtype == torch.float32
    assert functional.conv2d(x, weight, bias).dtype == torch.float32


def test_threads_that_start_in_the_block_are_on_the_device_too(log: Log) -> None:
    x, found = there(3), []

    def work() -> None:
        pinned = torch.empty(3, pin_memory=True)
        found.extend([x + pinned.to("cuda", non_blocking=True), pinned.copy_(x, non_blocking=True)])
        found.append(float(x[0]))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found.append((x @ x).dtype)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].device == DEVICE
    assert found[1].tolist() == x.tolist()
    assert found[3] == torch.bfloat16
    assert (x @ x).dtype == torch.float32
    assert [wait.partition(" at ")[0] for wait in log.beside] == ["_local_scalar_dense"]
    assert [wait.partition(" at ")[0] for wait in log.waits] == ["copy to the host"]


def test_a_device_without_values_stays_what_it_is(log: Log) -> None:
    with torch.device("meta"):
        assert torch.empty(2).is_meta
    assert torch.empty(2, device="meta").is_meta


def test_what_torch_remembers_of_its_functions_is_not_spoilt() -> None:
    _device_constructors.cache_clear()
    with fake_cuda(), torch.device("meta"):
        torch.empty(0)
    with torch.device("meta"):
        assert torch.empty(0).device.type == torch.ones(0).device.type == "meta"


@pytest.mark.skipif(REAL, reason="there is a real one")
def test_it_is_gone_after_the_block() -> None:
    before = (threading.Thread.run, torch.cuda.Event, torch.set_autocast_enabled, functional.conv2d)
    with pytest.raises(ZeroDivisionError), fake_cuda():
        1 / (torch.cuda.is_available() - 1)
    assert (threading.Thread.run, torch.cuda.Event, torch.set_autocast_enabled, functional.conv2d) == before
    assert "to" not in vars(torch.Tensor)
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")
