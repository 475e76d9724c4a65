"""The contract every method keeps, as one check that an adapter's own tests can call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hrbench._util.guard import call_name, guarded
from hrbench.contract import check_final, check_prediction
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.errors import HrbenchError
from hrbench.method import Method
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


def check_method(reference: str, *, size: int = 64, **options: Any) -> Method:
    """Check that a method keeps its contract; return it, fitted on noise.

    Checked on the CPU: class attributes; fit on a few small images; finite float32 maps of shape (B, h, w) at
    several sizes, square or not; equal results for equal seeds; batches do not mix; frozen parts stay as they were, and
    so does what methods share, as the default dtype; the learnt state, saved and loaded, predicts the same bits.

    Parameters
    ----------
    reference : str
        See :func:`hrbench.registry.load_method`.
    size : int
        Least side of the inputs in pixels; rounded up to the method's multiple.
    **options
        Of the method: choose a small configuration with ``weights="random"``.

    Raises
    ------
    AssertionError
        With what is wrong.
    HrbenchError
        For what the suite refuses anywhere, as presets that are none.
    """
    method, inputs = _fitted(reference, size, options)
    cls = type(method)
    for name in ("title", "paper", "presets"):
        assert getattr(cls, name), f"{cls.__name__}.{name} is empty"

    step = method.multiple
    expected = None
    for height, width in ((inputs.shape[2], inputs.shape[3]), (inputs.shape[2], inputs.shape[3] + step)):
        if height != width and method.input_size is not None:
            continue
        batch = torch.rand((3, 3, height, width), generator=torch.Generator().manual_seed(1))
        maps = _predict(method, batch)
        for name, found in maps.items():
            assert found.dtype == torch.float32, f"map {name!r} is {found.dtype}, expected float32"
            assert found.isfinite().all(), f"map {name!r} holds NaN or infinity"
            alone = _predict(method, batch[1:2])[name]
            assert torch.allclose(alone, found[1:2], rtol=1e-3, atol=1e-5), "images of a batch influence each other"
        expected = expected or maps
        merged = {name: found[0] for name, found in maps.items()}
        with _asserted():
            check_final(method, method.finish(merged), next(iter(merged.values())).shape, "a test image")

    assert expected is not None
    for name in method.restored():
        learning = [key for key, item in method.get_submodule(name).named_parameters() if item.requires_grad]
        assert not learning, f"{name} is restored, not saved, but its {learning[0]} learns"
    again, _ = _fitted(reference, size, options)
    batch = torch.rand((3, 3, *inputs.shape[2:]), generator=torch.Generator().manual_seed(1))
    for name, found in _predict(again, batch).items():
        assert torch.equal(found, expected[name]), "equal seeds give different results"

    with seeded(0):
        loaded = create_method(reference, **options)
    load_learnt_state(loaded, learnt_state(method))
    for name, found in _predict(loaded.eval(), batch).items():
        assert torch.equal(found, expected[name]), (
            "saving and loading changes the result: is all of it in the state dict?"
        )
    return method


def _fitted(reference: str, size: int, options: dict[str, Any]) -> tuple[Method, Tensor]:
    with seeded(0):
        method = create_method(reference, **options)
        side = -(-size // method.multiple) * method.multiple
        inputs = torch.rand((4, 3, side, side), generator=torch.Generator().manual_seed(0))
        frozen = {name: p.clone() for name, p in method.named_parameters() if not p.requires_grad}
        method.train()
        normals = StackedNormals(inputs)
        with guarded(call_name(method, "fit")) as changed:
            method.fit(normals, Fit(method, held_out=normals, seed=0, device=torch.device("cpu")))
        assert not changed, f"fit changed {', '.join(changed)}, which other methods share"
        for name, parameter in method.named_parameters():
            if name in frozen:
                assert torch.equal(parameter, frozen[name]), f"fit changed the frozen {name}"
    return method.eval(), inputs


@torch.no_grad()
def _predict(method: Method, batch: Tensor) -> dict[str, Tensor]:
    with _asserted(), guarded(call_name(method, "predict")) as changed:
        maps = check_prediction(method, method.predict(batch), len(batch), batch.device).maps
    assert not changed, f"predict changed {', '.join(changed)}, which other methods share"
    return maps


@contextmanager
def _asserted() -> Iterator[None]:
    """Let a breach of the contract be what this check raises."""
    try:
        yield
    except HrbenchError as error:
        raise AssertionError(str(error)) from None
