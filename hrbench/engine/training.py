"""The one fit loop."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hrbench._util.files import atomic
from hrbench._util.guard import generators_kept, set_seed
from hrbench._util.progress import track
from hrbench.contract import check_features, check_loss
from hrbench.engine.feature_cache import Features
from hrbench.engine.normals import ViewedNormals, loaded
from hrbench.engine.views import to_unit
from hrbench.errors import HrbenchError, Stopped
from hrbench.method import Batch, Batches, Method, Normals
from hrbench.precision import autocast

__all__ = ["Fit", "learnt_state", "load_learnt_state", "mix", "secluded", "seeded"]

T = TypeVar("T")

CHECKPOINT_SECONDS = 30.0
LATE_STEPS = 32  # whose losses are read together where that waits for the device


def mix(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all numbers."""
    words = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(words[0]) >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with all generators set to `seed`, deterministic kernels, and restore both after."""
    with torch.random.fork_rng(), generators_kept():
        set_seed(seed)
        before = torch.are_deterministic_algorithms_enabled()
        memory: Any = torch.utils.deterministic
        filled = memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every new tensor is written twice; it would only hide that something reads what nobody wrote.
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = filled


def secluded(items: Iterator[T], seed: int) -> Iterator[T]:
    """Draw from an iterator as in one block that is :func:`seeded`; between two items its user is outside of it."""
    on_gpu, states = torch.cuda.is_available(), None
    while True:
        with seeded(seed):
            if states is not None:
                torch.set_rng_state(states[0])
                np.random.set_state(states[1])  # noqa: NPY002
                random.setstate(states[2])
                if on_gpu:
                    torch.cuda.set_rng_state_all(states[3])
            try:
                item = next(items)
            except StopIteration:
                return
            gpus = torch.cuda.get_rng_state_all() if on_gpu else []
            states = torch.get_rng_state(), np.random.get_state(), random.getstate(), gpus  # noqa: NPY002
        yield item
        del item  # it may be large


class Fit:
    """One fit of one method: the :class:`hrbench.method.FitContext` that ``fit`` receives.

    Parameters
    ----------
    method : Method
    held_out : Normals or None
        Normal training images that the fit does not see; None where it sees all.
    seed : int
    device : torch.device
    checkpoint : Path, optional
        Where the state of an unfinished fit is kept, and beside it that of every stage's end; an interrupted fit
        continues from them and ends with the same weights, for batches and random numbers depend only on seed and step,
        and what the method does between stages finds method and optimizer as they were.
    label : str
        Prefix of progress bars.
    scratch : Path, optional
        Folder for kept features that do not fit into memory; without it they are not kept.
    precision : str
        ``float32`` or ``bfloat16`` (see :mod:`hrbench.precision`), of losses and kept features. Backward passes follow
        the forward ones; parameters and optimisers are float32.
    stop : callable, optional
        Asked after every step: if it says True the state is saved and :class:`hrbench.errors.Stopped` raised.
    """

    def __init__(
        self,
        method: Method,
        *,
        held_out: Normals | None,
        seed: int,
        device: torch.device,
        checkpoint: Path | None = None,
        label: str = "",
        scratch: Path | None = None,
        precision: str = "float32",
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.method = method
        self._held_out = held_out
        self.late = 1 if device.type == "cpu" else LATE_STEPS
        self.seed = seed
        self.device = device
        self.checkpoint = checkpoint
        self.label = label
        self.scratch = scratch
        self.precision = precision
        self._stop = stop
        self._stage = -1
        self._saved = _load_checkpoint(checkpoint)
        ended = self._ends()
        newest = self._saved or _load_checkpoint(ended[-1] if ended else None)
        self._earlier: float = newest.get("seconds", 0.0)
        self._started = time.monotonic()

    @property
    def held_out(self) -> Normals:
        """Normal training images that the fit does not see; an error where none are held out."""
        if self._held_out is None:
            raise HrbenchError(
                f"{self.label or type(self.method).__name__}: its fit looks at held-out normal images, and held_out is "
                "0; expected a share above 0, or options that need none"
            )
        return self._held_out

    def features(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> Batches[list[Tensor]]:
        """Return the features of `normals`, computed once; see :meth:`hrbench.method.FitContext.features`."""

        def precise(batch: Tensor) -> Sequence[Tensor]:
            with autocast(self.device, self.precision):
                return check_features(extract, extract(batch), len(batch))

        return Features(normals, precise, self.device, scratch=self.scratch)

    def train(
        self,
        normals: Batches[Batch],
        loss: Callable[[Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        batch_size: int,
        description: str = "fit",
    ) -> list[float]:
        """Run the fit loop; see :meth:`hrbench.method.FitContext.train`."""
        for option, given in (("steps", steps), ("batch_size", batch_size)):
            if given < 1:
                raise HrbenchError(f"{self.label} {description}: {option} is {given}, expected at least 1".strip())
        self._stage += 1
        name = f"{self.label} {description}".strip()
        seed = self.seed * 16 + self._stage
        losses: list[float] = []
        if ended := _load_checkpoint(self._end(self._stage)):
            losses = self._restore(ended, optimizer)
            if len(losses) != steps:
                raise HrbenchError(
                    f"{name}: {steps} steps are asked for where the interrupted fit took {len(losses)}, expected a fit "
                    f"that does the same when it is continued; delete {self.checkpoint} and the files beside it that "
                    "begin alike, to start it again"
                )
            return self._left(seed, losses)
        if self._saved.get("stage") == self._stage:
            losses = self._restore(self._saved, optimizer)
        self._saved = {}
        unread: list[Tensor] = []  # losses that are still on the device

        def gradients(step: int, batch: Batch) -> Tensor:
            """Compute the gradients of a step, and return its loss."""
            set_seed(mix(seed, step))  # a step's randomness does not depend on its past
            optimizer.zero_grad(set_to_none=True)
            inputs = to_unit(batch, self.device) if isinstance(batch, Tensor) else batch
            with autocast(self.device, self.precision):
                value = check_loss(loss, loss(inputs))
            value.backward()  # type: ignore[no-untyped-call]
            return value.detach().reshape(())

        def read() -> None:
            """Read the losses of the last steps; on a GPU this waits for them."""
            for number in torch.stack(unread).tolist() if unread else []:
                if not math.isfinite(number):
                    step = f"step {len(losses) + 1} of {steps}"
                    raise HrbenchError(f"{name}: the loss is {number} at {step}; a lower lr may help")
                losses.append(number)
            unread.clear()

        batches = self._stream(normals, batch_size, steps=steps, seed=seed, start=len(losses))
        saved_at = time.monotonic()
        for step, batch in enumerate(
            self._shown(batches, name, total=steps, unit="step", initial=len(losses)), len(losses)
        ):
            try:
                value = gradients(step, batch)
            except torch.cuda.OutOfMemoryError:
                if not (isinstance(normals, Features) and normals.leave_device()):
                    raise
                value = None
            unread.append(gradients(step, batch) if value is None else value)
            if len(unread) >= self.late:
                read()
            optimizer.step()
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS and step + 1 < steps:
                read()
                self._save(self.checkpoint, losses, optimizer)
                saved_at = time.monotonic()
            if self._stop is not None and self._stop():
                read()
                self._save(self.checkpoint, losses, optimizer)
                raise Stopped(name)
        read()
        self._save(self._end(self._stage), losses, optimizer)
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
        return self._left(seed, losses)

    def track(self, inputs: Iterable[Batch], *, total: int, description: str = "fit") -> Iterable[Batch]:
        """Iterate under a progress bar."""
        unit = "step"
        if isinstance(inputs, ViewedNormals):
            unit = "img" if all(look.overlap is None for look in inputs.view.looks) else "tile"
        return self._shown(inputs, f"{self.label} {description}".strip(), total=total, unit=unit)

    @property
    def seconds(self) -> float:
        """Time spent so far, that of interrupted attempts included up to their last checkpoint."""
        return self._earlier + time.monotonic() - self._started

    def _shown(self, items: Iterable[Batch], name: str, *, total: int, unit: str, initial: int = 0) -> Iterator[Batch]:
        """Yield what a stage draws, under a progress bar."""
        return track(items, name, total=total, unit=unit, initial=initial)

    def forget(self) -> None:
        """Remove what was kept to continue the fit."""
        if self.checkpoint is not None:
            for path in (self.checkpoint, *self._ends()):
                path.unlink(missing_ok=True)

    def _stream(
        self, normals: Batches[Batch], batch_size: int, *, steps: int, seed: int, start: int
    ) -> Iterator[Batch]:
        """Draw batches; images of the suite travel to a GPU as they were decoded, several threads ahead."""
        order = {"steps": steps, "seed": seed, "start": start}
        if isinstance(normals, ViewedNormals) and self.device.type != "cpu":
            return loaded(normals, normals.order(batch_size, **order), self.device)
        return normals.batches(batch_size, **order)

    def _left(self, seed: int, losses: list[float]) -> list[float]:
        """Return the losses of a stage; what is drawn after it does not depend on whether it was done here."""
        set_seed(mix(seed, len(losses)))
        return losses

    def _end(self, stage: int) -> Path | None:
        """Return the file of what a stage has left."""
        path = self.checkpoint
        return path and path.with_name(f"{path.stem}-{stage}{path.suffix}")

    def _ends(self) -> list[Path]:
        """Return the files of the stages that are over."""
        ends: list[Path] = []
        while (path := self._end(len(ends))) is not None and path.is_file():
            ends.append(path)
        return ends

    def _restore(self, saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> list[float]:
        """Let method and optimizer be as they were saved; return the losses until then."""
        load_learnt_state(self.method, saved["method"])
        optimizer.load_state_dict(saved["optimizer"])
        return list(saved["losses"])

    def _save(self, target: Path | None, losses: list[float], optimizer: torch.optim.Optimizer) -> None:
        if target is None:
            return
        state = {
            "stage": self._stage,
            "losses": losses,
            "seconds": self.seconds,
            "method": learnt_state(self.method),
            "optimizer": optimizer.state_dict(),
        }
        with atomic(target) as path:
            torch.save(state, path)


def learnt_state(method: Method) -> dict[str, Tensor]:
    """Return the state dict without the submodules that making the method restores."""
    restored = tuple(f"{name}." for name in method.restored())
    return {
        key: value.detach().to("cpu").clone().contiguous()  # a copy: tied tensors cannot be written
        for key, value in method.state_dict().items()
        if not key.startswith(restored)
    }


def load_learnt_state(method: Method, state: dict[str, Tensor]) -> None:
    """Load what :func:`learnt_state` gave into a method of the same options.

    Raises
    ------
    HrbenchError
        If keys or shapes differ.
    """
    for name, module in method.named_modules():  # the size of a buffer may be learnt, as that of a memory bank
        for key, buffer in module.named_buffers(recurse=False):
            saved = state.get(f"{name}.{key}" if name else key)
            if saved is not None and saved.shape != buffer.shape:
                setattr(module, key, torch.empty(saved.shape, dtype=buffer.dtype, device=buffer.device))
    fitting = {key: value for key, value in method.state_dict().items() if key in state}
    shapes = [key for key, value in fitting.items() if value.shape != state[key].shape]
    missing = set(learnt_state(method)) ^ set(state)
    if missing or shapes:
        odd = ", ".join(sorted({*missing, *shapes})[:5])
        raise HrbenchError(f"saved weights do not fit {type(method).__name__} with these options: {odd}")
    method.load_state_dict(state, strict=False)


def _load_checkpoint(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state.keys() != {"stage", "losses", "seconds", "method", "optimizer"}:
            raise HrbenchError("of another version of hrbench")
    except Exception as error:
        raise HrbenchError(f"{path}: not a readable checkpoint ({error}); delete it to start the fit again") from None
    return state
