"""Frozen feature extractors on timm backbones, and where their weights come from."""

from hrbench.backbones.bundled import bundled_models
from hrbench.backbones.extractors import (
    FeaturePyramid,
    PatchTokens,
    compile_frozen,
    level_indices,
    load_pyramid,
    load_tokens,
    load_transformer,
    token_depth,
)
from hrbench.backbones.weights import weights_folder

__all__ = [
    "FeaturePyramid",
    "PatchTokens",
    "bundled_models",
    "compile_frozen",
    "level_indices",
    "load_pyramid",
    "load_tokens",
    "load_transformer",
    "token_depth",
    "weights_folder",
]
