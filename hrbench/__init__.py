"""The benchmark that tells how well a method finds defects of every size, at original resolution."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it: importing typing would take longer than all else here
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# Scoring finished maps must not wait for torch: names are imported when they are first used.
_HOMES = {
    "Comparison": "hrbench.evaluation",
    "Detector": "hrbench.runs.detector",
    "Evaluation": "hrbench.evaluation",
    "Failure": "hrbench.grid.study",
    "HrbenchError": "hrbench.errors",
    "LocalEngine": "hrbench.grid.local",
    "Method": "hrbench.method",
    "Prediction": "hrbench.method",
    "Preset": "hrbench.method",
    "RayEngine": "hrbench.grid.on_ray",
    "Run": "hrbench.runs.store",
    "Study": "hrbench.grid.study",
    "Verdict": "hrbench.runs.detector",
    "annotation_agreement": "hrbench.evaluation",
    "annotation_tolerance": "hrbench.evaluation",
    "by_condition": "hrbench.evaluation",
    "compare": "hrbench.evaluation",
    "create_method": "hrbench.registry",
    "evaluate": "hrbench.evaluation",
    "fit": "hrbench.runs.detector",
    "list_methods": "hrbench.method_names",
    "load_dataset": "hrbench.data",
    "load_protocol": "hrbench.protocol",
    "load_run": "hrbench.runs.store",
    "read_runs": "hrbench.runs.store",
    "rescore": "hrbench.runs.scoring",
    "run": "hrbench.grid.study",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from hrbench.data import load_dataset as load_dataset
    from hrbench.errors import HrbenchError as HrbenchError
    from hrbench.evaluation import Comparison as Comparison
    from hrbench.evaluation import Evaluation as Evaluation
    from hrbench.evaluation import annotation_agreement as annotation_agreement
    from hrbench.evaluation import annotation_tolerance as annotation_tolerance
    from hrbench.evaluation import by_condition as by_condition
    from hrbench.evaluation import compare as compare
    from hrbench.evaluation import evaluate as evaluate
    from hrbench.grid.local import LocalEngine as LocalEngine
    from hrbench.grid.on_ray import RayEngine as RayEngine
    from hrbench.grid.study import Failure as Failure
    from hrbench.grid.study import Study as Study
    from hrbench.grid.study import run as run
    from hrbench.method import Method as Method
    from hrbench.method import Prediction as Prediction
    from hrbench.method import Preset as Preset
    from hrbench.method_names import list_methods as list_methods
    from hrbench.protocol import load_protocol as load_protocol
    from hrbench.registry import create_method as create_method
    from hrbench.runs.detector import Detector as Detector
    from hrbench.runs.detector import Verdict as Verdict
    from hrbench.runs.detector import fit as fit
    from hrbench.runs.scoring import rescore as rescore
    from hrbench.runs.store import Run as Run
    from hrbench.runs.store import load_run as load_run
    from hrbench.runs.store import read_runs as read_runs


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hrbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
