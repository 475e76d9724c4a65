"""Scoring of finished anomaly maps: the whole protocol layer as one function."""

from hrbench.evaluation.annotation import annotation_agreement, annotation_tolerance
from hrbench.evaluation.collecting import evaluate
from hrbench.evaluation.comparison import Comparison, compare
from hrbench.evaluation.conditions import by_condition
from hrbench.evaluation.result import Evaluation

__all__ = [
    "Comparison",
    "Evaluation",
    "annotation_agreement",
    "annotation_tolerance",
    "by_condition",
    "compare",
    "evaluate",
]
