"""What prediction costs: time per image, from its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["timing"]


def timing(images: pd.DataFrame, pixels: Mapping[str, int]) -> dict[str, Any]:
    """Return what prediction took, from the table of images of the evidence.

    The seconds of an image are the method's: its share of the forward passes, merging and ``finish``; not decoding, not
    evidence. No image is left out as a warm-up: in every attempt of a job the held-out normal images go the same way
    before the first test image does.

    Parameters
    ----------
    images : DataFrame
        Columns id and seconds, one row per image; see :class:`hrbench.evidence.evidence.Evidence`.
    pixels : mapping of str to int
        Native pixels of the images by id: evidence of a low-resolution protocol does not know them.

    Returns
    -------
    dict
        ``timed_images``, ``predict_seconds``, ``megapixels_per_second``, ``ms_median`` and ``ms_p95``
        per image. Empty where no image has a time, as those whose maps another tool made.
    """
    timed = images[images["seconds"].notna()]
    if timed.empty:
        return {}
    seconds = timed["seconds"].to_numpy()
    native = sum(pixels[name] for name in timed["id"])
    return {
        "timed_images": len(timed),
        "predict_seconds": float(seconds.sum()),
        "megapixels_per_second": native / 1e6 / float(seconds.sum()),
        "ms_median": float(1e3 * np.median(seconds)),
        "ms_p95": float(1e3 * np.quantile(seconds, 0.95)),
    }
