"""One training loop for everything that is pretrained here: one-cycle AdamW, checkpoints, a curve."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrbench._util.files import atomic

__all__ = ["one_cycle", "run"]


def one_cycle(step: int, steps: int, warm: float = 0.05) -> float:
    """Return the factor of the peak learning rate: a linear rise, then half a cosine to zero."""
    done = step / max(1, steps)
    if done < warm:
        return (step + 1) / max(1.0, warm * steps)
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def run(
    learner: nn.Module,
    loss: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    recipe: Any,
    folder: Path,
    *,
    every: int = 1000,
    probe: Callable[[], dict[str, float]] | None = None,
    stop: int | None = None,
) -> None:
    """Train, or go on from ``folder/checkpoint.pt``; append to ``folder/curve.jsonl``.

    Parameters
    ----------
    learner : Module
        Changed in place; in eval mode afterwards.
    loss : callable
        Step to scalar loss and figures for the curve. It must depend on the step and the learner only: then a
        training that was interrupted ends with the same bits as one that was not.
    recipe : dataclass
        With ``steps``, ``rate`` and ``decay``. The folder must not hold a checkpoint of another recipe.
    folder : Path
    every : int
        Steps between checkpoints, lines of the curve and probes.
    probe : callable, optional
        Measures the learner of the moment; the results go into the curve and never back into training.
    stop : int, optional
        Leave after this many steps, as an interruption would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, curve = folder / "checkpoint.pt", folder / "curve.jsonl"
    described, begin, before = json.dumps(dataclasses.asdict(recipe)), 0, 0.0
    trainable = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=recipe.rate, weight_decay=recipe.decay)
    if path.is_file():
        state = torch.load(path, map_location=trainable[0].device, weights_only=True)
        if state["recipe"] != described:
            raise SystemExit(f"{path}: belongs to another recipe ({state['recipe']}); choose another folder")
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        begin, before = state["step"], state["seconds"]
    lines = curve.read_text().splitlines() if curve.is_file() else []
    curve.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= begin))
    started, probing, figures = time.monotonic(), 0.0, []
    last = recipe.steps if stop is None else min(stop, recipe.steps)
    for step in range(begin, last):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * one_cycle(step, recipe.steps)
        learner.train()
        total, found = loss(step)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        figures.append({"loss": total.detach()} | found)
        if (step + 1) % every == 0 or step + 1 == last:
            now = time.monotonic()
            seconds = before + now - started - probing
            line: dict[str, float] = {"step": step + 1, "seconds": round(seconds, 1)}
            line |= {name: round(float(torch.stack([f[name] for f in figures]).mean()), 4) for name in figures[0]}
            learner.eval()
            line |= {name: round(value, 4) for name, value in (probe() if probe else {}).items()}
            figures.clear()
            probing += time.monotonic() - now
            state = {
                "recipe": described,
                "step": step + 1,
                "seconds": seconds,
                "learner": learner.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            with curve.open("a") as file:
                file.write(json.dumps(line) + "\n")
            with atomic(path) as temporary:
                torch.save(state, temporary)
    learner.eval()
