"""Datasets: descriptors, readers of their layouts, checks, and a procedural dataset."""

from hrbench.data.check import Finding, check_dataset, check_files, dataset_stats, dataset_summary
from hrbench.data.datasets import find_categories, list_datasets, load_dataset, load_descriptor
from hrbench.data.descriptor import Descriptor
from hrbench.data.procedural import make_dataset
from hrbench.data.sample import Category, Dataset, Sample

__all__ = [
    "Category",
    "Dataset",
    "Descriptor",
    "Finding",
    "Sample",
    "check_dataset",
    "check_files",
    "dataset_stats",
    "dataset_summary",
    "find_categories",
    "list_datasets",
    "load_dataset",
    "load_descriptor",
    "make_dataset",
]
