"""What identifies a run: category, method with its options, view, seed and precision."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hrbench.backbones.bundled import bundled_digest
from hrbench.data.sample import Category, Sample
from hrbench.engine.views import View
from hrbench.errors import HrbenchError, unknown_name
from hrbench.method import Method
from hrbench.precision import PRECISIONS
from hrbench.registry import all_options, check_options, find_preset, load_method, source_digest, weights_options
from hrbench.runs.identity import held_out_count, run_name
from hrbench.runs.record import public_reference
from hrbench.runs.store import RunFolder

__all__ = ["Job", "identities", "make_job", "split_normals"]


@dataclasses.dataclass(frozen=True)
class Job:
    """What identifies a run: the same job in the same output folder is the same run.

    Attributes
    ----------
    category : Category
    method : str
        Reference, see :func:`hrbench.registry.load_method`.
    preset : str
    options : Mapping
        Complete configuration of the method's constructor.
    recorded_options : Mapping
        The same with files by their name and content: what tells one job from another, wherever files lie.
    name : str
        Folder name of the run: readable, and unique by a digest of all that identifies it.
    view : View
    seed : int
    precision : str
        ``float32`` or ``bfloat16``, see :mod:`hrbench.precision`. It changes values far more than another device does,
        so that runs of different precision are different runs.
    held_out : float or None
        Share of the normal training images that is held out from the fit, see :func:`split_normals`.
    """

    category: Category
    method: str
    preset: str
    options: Mapping[str, Any]
    recorded_options: Mapping[str, Any]
    name: str
    view: View
    seed: int
    precision: str = "float32"
    held_out: float | None = None

    @property
    def method_name(self) -> str:
        """Name of the method for people and folders."""
        return method_name(self.method)

    @property
    def recorded_method(self) -> str:
        """The reference as it is recorded."""
        return public_reference(self.method)

    @property
    def label(self) -> str:
        """Short text for progress bars."""
        return f"{self.category.name} {self.method_name} {self.view.text} seed {self.seed}"

    @property
    def weights(self) -> str:
        """Where the backbone's weights come from: ``pretrained``, ``random``, a file's name, or ``none``."""
        return re.sub(r" sha256:\w+", "", str(self.recorded_options.get("weights", "none")))

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out images, on which thresholds and promises can be set."""
        return self.held_out != 0

    def split(self) -> tuple[list[Sample], list[Sample]]:
        """Return the normal training images to fit, and those held out."""
        return split_normals(self.category, self.held_out)

    def folder(self, output: Path) -> RunFolder:
        """Return where the run is kept below `output`."""
        return RunFolder.of(output, self.category.dataset, self.category.name, self.name)


def make_job(
    category: Category,
    method: str,
    *,
    preset: str,
    view: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: str = "float32",
    held_out: float | None = None,
) -> Job:
    """Check a job's names against what exists and fill in the preset.

    Raises
    ------
    HrbenchError
        For an unknown method, preset, option or precision, a malformed view, or a share that is out of range or too
        small for the view.
    """
    cls = load_method(method)
    named = find_preset(cls, method, preset)
    complete = all_options(cls, check_options(cls, method, {**named.options, **(options or {})}))
    for key, value in complete.items():
        try:
            json.dumps(value)
        except TypeError:
            raise HrbenchError(
                f"option {key} of {method} is {value!r}, expected numbers, text, or lists of them: it must be recorded"
            ) from None
    if not 0 <= seed < 2**31:
        raise HrbenchError(f"seed is {seed}, expected a number from 0 to {2**31 - 1}")
    if precision not in PRECISIONS[1:]:
        raise unknown_name("precision", precision, PRECISIONS[1:])
    looked_at = View.parse(named.view if view is None else view)
    held_out = _checked_share(held_out, looked_at)
    recorded = identities(cls, complete)
    name = run_name(
        category.names_digest,
        method_name(method),
        preset,
        source_digest(cls),
        recorded,
        looked_at.text,
        seed,
        precision=precision,
        held_out=held_out,
        train=len(category.train),
    )
    return Job(category, method, preset, complete, recorded, name, looked_at, seed, precision, held_out)


def method_name(reference: str) -> str:
    """Return the name of a method for people and folders, from a reference to it."""
    return Path(reference).stem if reference.endswith(".py") else reference.rpartition(":")[2]


def split_normals(category: Category, share: float | None = None) -> tuple[list[Sample], list[Sample]]:
    """Split the normal training images into those to fit and those held out, the same for every method and seed.

    Parameters
    ----------
    category : Category
    share : float, optional
        That is held out: none for 0, else one image or more, and never all. By default a tenth, and at least the 19
        images that a promise of 5 false alarms per 100 needs where they are at most a third of all.
    """
    train = list(category.train)
    if not train:
        raise HrbenchError(f"category {category.name!r}: no normal training image, expected some to fit on")
    if len(train) < 2 and share != 0:
        raise HrbenchError(
            f"category {category.name!r}: {len(train)} normal training image, expected at least 2 (one is held out) "
            "or --held-out 0"
        )
    held = held_out_count(len(train), share)
    held_out = set(np.random.default_rng(0).permutation(len(train))[:held].tolist())
    fitted = [sample for index, sample in enumerate(train) if index not in held_out]
    return fitted, [train[index] for index in sorted(held_out)]


def _checked_share(share: float | None, view: View) -> float | None:
    """Return the share of held-out images as it is recorded; an error if it is none, or too small for the view."""
    if share is None:
        return None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise HrbenchError(
            f"held_out is {share!r}, expected a share of the normal training images from 0 to below 1, such as 0.2"
        )
    if share == 0 and len(view.looks) > 1:
        raise HrbenchError(
            f"held_out is 0 with view {view.text!r}: its looks are brought to one scale on held-out normal images; "
            "expected a share above 0, or one look"
        )
    return float(share)


def identities(cls: type[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options as they are recorded: weights by name and content of their file, wherever it lies.

    Raises
    ------
    HrbenchError
        For a file in an option that is not declared to take one: other content at the same path would be the same run.
    """
    by_content = weights_options(cls)

    def identity(key: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [identity(key, item) for item in value]
        if not isinstance(value, str):
            return value
        if value == "bundled":
            return f"bundled sha256:{bundled_digest(options.values())}"
        path = Path(value).expanduser()
        if Path(value).is_absolute() and path.is_dir():
            return f"{path.name} at sha256:{hashlib.sha256(value.encode()).hexdigest()}"  # its path stays here
        if not path.is_file() or (key not in by_content and path.name == value and not path.suffix):
            return value  # no file, or a name that a file beside it happens to have
        if key not in by_content:
            raise HrbenchError(
                f"option {key} of {cls.__name__} is {value!r}, a file: expected the method to annotate this option as "
                "hrbench.method.Weights, for the file's content to identify the run"
            )
        return f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"

    return {key: identity(key, value) for key, value in options.items()}
