"""What a run's name says: the digest of all that identifies a run, from a job or from what the run recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hrbench._util.files import plain_name

__all__ = ["ENOUGH_HELD_OUT", "HELD_OUT", "held_out_count", "maps_name", "run_name", "run_prefix"]

HELD_OUT = 0.1  # share of the normal training images that set thresholds and are never fitted on
ENOUGH_HELD_OUT = 19  # to promise at most 5 false alarms per 100 good images


def run_name(
    names_digest: str,
    method: str,
    preset: str,
    source: str,
    options: Mapping[str, Any],
    view: str,
    seed: int,
    *,
    precision: str,
    held_out: float | None,
    train: int,
) -> str:
    """Return the folder name of a run: readable, and unique by a digest of all that identifies it.

    Parameters
    ----------
    names_digest : str
        See :attr:`hrbench.data.sample.Category.names_digest`.
    method, preset, source : str
        Name, preset and digest of the method's code.
    options : mapping
        As they are recorded.
    view : str
    seed : int
    precision : str
    held_out : float or None
        Share of the normal training images that was asked for.
    train : int
        How many normal training images there are.
    """
    identity = [names_digest, method, source, dict(options), view, seed]
    if precision != "float32":
        identity.append(precision)
    if held_out is not None:
        identity.append(f"share {held_out} held out")
    elif (held := held_out_count(train, None)) != _tenth(train):
        identity.append(f"{held} held out")  # before there were promises a tenth was all
    return f"{run_prefix(method, preset, seed)}-{_digest(identity, sort_keys=True)}"


def maps_name(index_digest: str, name: str, *, exact: bool) -> str:
    """Return the folder name of a run of finished maps."""
    return f"{run_prefix(name, 'maps', 0)}-{_digest([index_digest, name, exact])}"


def run_prefix(method: str, preset: str, seed: int) -> str:
    """Return what a run's name says in words."""
    return plain_name(f"{method}-{preset}-s{seed}")


def held_out_count(train: int, share: float | None) -> int:
    """Return how many of so many normal training images are held out."""
    if share is None:
        return max(_tenth(train), ENOUGH_HELD_OUT if train >= 3 * ENOUGH_HELD_OUT else 0)
    return min(train - 1, max(1, round(share * train))) if share else 0


def _tenth(train: int) -> int:
    return max(1, round(HELD_OUT * train))


def _digest(identity: list[Any], *, sort_keys: bool = False) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=sort_keys).encode()).hexdigest()[:8]
