"""The contract every method keeps, as one check that an adapter's own tests can call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hrbench._util.fake_cuda import Log, fake_cuda
from hrbench._util.guard import call_name, guarded
from hrbench.contract import check_decision, check_final, check_prediction
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.errors import HrbenchError
from hrbench.method import Method
from hrbench.precision import autocast
from hrbench.registry import create_method

__all__ = ["StackedNormals", "check_method"]


class StackedNormals:
    """Normals that are held in one (N, 3, h, w) tensor, for tests and small experiments."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        """Return N."""
        return len(self.inputs)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each input."""
        return iter(self.inputs)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield random batches that depend on seed and step only."""
        for chosen in self.order(batch_size, steps=steps, seed=seed, start=start):
            yield self.take(chosen)

    def order(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the inputs of each batch."""
        for step in range(start, steps):
            generator = torch.Generator().manual_seed(seed * 100_003 + step)
            yield torch.randint(len(self.inputs), (batch_size,), generator=generator).tolist()

    def take(self, chosen: Sequence[int]) -> Tensor:
        """Return chosen inputs."""
        return self.inputs[list(chosen)]


def check_method(
    reference: str, *, size: int = 64, device: Literal["cpu", "fake-cuda"] = "cpu", waits: int = 0, **options: Any
) -> Method:
    """Check that a method keeps its contract; return it, fitted on noise.

    Checked are: class attributes; fit on a few small images; finite float32 maps of shape (B, h, w) at
    several sizes, square or not; equal results for equal seeds; batches do not mix; frozen parts stay as they were, and
    so does what methods share, as the default dtype; the learnt state, saved and loaded, predicts the same bits.

    On ``fake-cuda`` the same, on a device that says it is a GPU and needs none (see :mod:`hrbench._util.fake_cuda`):
    what is made on the host and meets what is on the device fails. Checked besides: ``predict`` and ``finish`` leave
    the host free to go on, do without float64, and in bfloat16 give maps of more than its eight bits; it can be fitted
    in bfloat16.

    Parameters
    ----------
    reference : str
        See :func:`hrbench.registry.load_method`.
    size : int
        Least side of the inputs in pixels; rounded up to the method's multiple.
    device : str
        ``cpu`` or ``fake-cuda``.
    waits : int
        How often a call of ``predict`` may wait for the GPU, as to decide on the host; ``finish`` must not.
    **options
        Of the method: choose a small configuration with ``weights="random"``.

    Raises
    ------
    AssertionError
        With what is wrong.
    RuntimeError
        For what a GPU would refuse, with the line.
    HrbenchError
        For what the suite refuses anywhere, as presets that are none.
    """
    if device == "cpu":
        return _Check(reference, size, options, torch.device("cpu"), Log(), waits).checked()
    if device == "fake-cuda":
        with fake_cuda() as log:
            return _Check(reference, size, options, torch.device("cuda"), log, waits).checked()
    raise HrbenchError(f"device of check_method is {device!r}, expected 'cpu' or 'fake-cuda'")


@dataclass(frozen=True)
class _Check:
    """One call of :func:`check_method`."""

    reference: str
    size: int
    options: dict[str, Any]
    device: torch.device
    log: Log
    waits: int

    def checked(self) -> Method:
        method, inputs = self.fitted()
        cls = type(method)
        for name in ("title", "paper", "presets"):
            assert getattr(cls, name), f"{cls.__name__}.{name} is empty"

        step = method.multiple
        expected = None
        for height, width in ((inputs.shape[2], inputs.shape[3]), (inputs.shape[2], inputs.shape[3] + step)):
            if height != width and method.input_size is not None:
                continue
            batch = self.batch(height, width)
            maps = self.predicted(method, batch)
            for name, found in maps.items():
                assert found.dtype == torch.float32, f"map {name!r} is {found.dtype}, expected float32"
                assert found.isfinite().all(), f"map {name!r} holds NaN or infinity"
                alone = self.predicted(method, batch[1:2])[name]
                assert torch.allclose(alone, found[1:2], rtol=1e-3, atol=1e-5), "images of a batch influence each other"
            expected = expected or maps
            merged = {name: found[0] for name, found in maps.items()}
            with _asserted(), self.watched("finish"), torch.no_grad():
                final = method.finish(merged)
                check_final(method, final, next(iter(merged.values())).shape, "a test image")

        assert expected is not None
        for name in method.restored():
            learning = [key for key, item in method.get_submodule(name).named_parameters() if item.requires_grad]
            assert not learning, f"{name} is restored, not saved, but its {learning[0]} learns"
        again, _ = self.fitted()
        batch = self.batch(*inputs.shape[2:])
        for name, found in self.predicted(again, batch).items():
            assert torch.equal(found, expected[name]), "equal seeds give different results"

        with seeded(0):
            loaded = create_method(self.reference, **self.options).to(self.device)
        load_learnt_state(loaded, learnt_state(method))
        for name, found in self.predicted(loaded.eval(), batch).items():
            assert torch.equal(found, expected[name]), (
                "saving and loading changes the result: is all of it in the state dict?"
            )
        if self.device.type != "cpu":
            self.fitted("bfloat16")
            self.check_bits(method, batch, expected)
        return method

    def fitted(self, precision: str = "float32") -> tuple[Method, Tensor]:
        with seeded(0):
            method = create_method(self.reference, **self.options)
            side = -(-self.size // method.multiple) * method.multiple
            inputs = torch.rand((4, 3, side, side), generator=torch.Generator().manual_seed(0))
            method.to(self.device)
            frozen = {name: p.clone() for name, p in method.named_parameters() if not p.requires_grad}
            method.train()
            normals = StackedNormals(inputs)
            with guarded(call_name(method, "fit")) as changed:
                context = Fit(method, held_out=normals, seed=0, device=self.device, precision=precision)
                method.fit(normals, context)
            assert not changed, f"fit changed {', '.join(changed)}, which other methods share"
            for name, parameter in method.named_parameters():
                if name in frozen:
                    assert torch.equal(parameter, frozen[name]), f"fit changed the frozen {name}"
        return method.eval(), inputs

    def batch(self, height: int, width: int) -> Tensor:
        return torch.rand((3, 3, height, width), generator=torch.Generator().manual_seed(1)).to(self.device)

    @torch.no_grad()
    def predicted(self, method: Method, batch: Tensor, precision: str = "float32") -> dict[str, Tensor]:
        with (
            _asserted(),
            self.watched("predict", self.waits),
            guarded(call_name(method, "predict")) as changed,
            autocast(self.device, precision),
        ):
            found = check_prediction(method, method.predict(batch), len(batch), self.device)
        check_decision(method, found.decided(), len(batch), self.device)
        maps = found.maps
        assert not changed, f"predict changed {', '.join(changed)}, which other methods share"
        return maps

    @contextmanager
    def watched(self, call: str, waits: int = 0) -> Iterator[None]:
        """Assert of a call that it does not wait for a GPU more often than it may, nor makes it compute in float64."""
        self.log.clear()
        yield
        found = self.log.waits
        assert len(found) <= waits, (
            f"{call} waits for the device: {', '.join(found)}; {len(found)} in all, expected at most {waits}"
        )
        assert not self.log.doubles, f"{call} computes in float64 on the device: {', '.join(self.log.doubles)}"

    def check_bits(self, method: Method, batch: Tensor, exact: dict[str, Tensor]) -> None:
        """Assert that maps of a run in bfloat16 have more bits than that."""
        for name, found in self.predicted(method, batch, "bfloat16").items():
            assert found.dtype == torch.float32, f"map {name!r} is {found.dtype} in bfloat16, expected float32"
            assert not _is_rough(found) or _is_rough(exact[name]), (
                f"map {name!r} has the eight bits of bfloat16, which tie scores: compute its last layer within "
                "hrbench.precision.full_precision"
            )


def _is_rough(map_: Tensor) -> bool:
    """Tell whether bfloat16 has all values of a map."""
    return torch.equal(map_.bfloat16().to(map_), map_)


@contextmanager
def _asserted() -> Iterator[None]:
    """Let a breach of the contract be what this check raises."""
    try:
        yield
    except HrbenchError as error:
        raise AssertionError(str(error)) from None
