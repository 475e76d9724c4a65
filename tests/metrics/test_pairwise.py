"""Each against each, against the difference of two."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from hrbench.errors import HrbenchError
from hrbench.metrics.bootstrap import Replicates, paired_difference
from hrbench.metrics.pairwise import pairwise

KEYS = pd.DataFrame(
    [("aupro", "all", 0.05), ("fpr", "all", np.nan), ("mean_recall", "tiny", np.nan)],
    columns=["metric", "subset", "fpr_limit"],
)


@pytest.fixture
def parts() -> list[Replicates]:
    rng = np.random.default_rng(0)
    made = []
    for units in (30, 12, 40):
        values = rng.normal(0.5, 0.1, (300, 3)).round(2)  # with ties
        values[rng.random(values.shape) < 0.02] = np.nan
        made.append(Replicates(KEYS, rng.random(3), values, np.array([units, 25, 9]), np.full(3, 50), "same"))
    return made


def test_is_the_paired_difference_of_each_two(parts: list[Replicates]) -> None:
    found = pairwise(parts, level=0.9)
    for i, a in enumerate(parts):
        for j, b in enumerate(parts):
            if i == j:
                assert np.isnan(found.difference[i, j]).all()
                continue
            table = paired_difference(a, b, level=0.9)
            ours = (found.difference, found.low, found.high, found.share_better)
            for array, name in zip(ours, ("difference", "ci_low", "ci_high", "share_better"), strict=True):
                np.testing.assert_allclose(array[i, j], table[name], rtol=0, atol=1e-12)
    assert np.isnan(found.low[1, 0, 2])  # nine images are too few
    assert not np.isnan(found.low[1, 0, :2]).any()


@pytest.mark.parametrize("changes", [{"sample": "other"}, {"values": np.zeros((10, 3))}, {"keys": KEYS[::-1]}])
def test_others_are_refused(parts: list[Replicates], changes: dict[str, object]) -> None:
    with pytest.raises(HrbenchError, match="same images"):
        pairwise([parts[0], dataclasses.replace(parts[1], **changes)])  # type: ignore[arg-type]
