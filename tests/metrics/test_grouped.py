"""Metrics of groups of images against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics.test_bootstrap import NATIVE, THRESHOLD, case, collect, rules

from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.metrics import bootstrap, compute
from hrbench.metrics.context import Context
from hrbench.metrics.grouped import drawn_group_auroc, group_auroc
from hrbench.metrics.weighted import Draw

Image = tuple[int, int, int]  # score, label, group; 0 for none


def evidence_of(images: list[Image]) -> Evidence:
    collector = EvidenceCollector(EvidenceSpec())
    for index, (score, label, group) in enumerate(images):
        mask = np.zeros((4, 4), bool)
        mask[:label, 0] = True
        scores = np.full((4, 4), score, np.float32)
        collector.update(f"{index:02d}", scores, mask, group=f"part {group}" if group else "")
    return collector.result()


def by_definition(images: list[Image], times: dict[int, int] | None = None) -> float:
    """Compare every defective part with every good one, a part as often as `times` says of the first of its images."""
    parts: dict[object, list[int]] = {}
    for index, (_, _, group) in enumerate(images):
        parts.setdefault(group or ("alone", index), []).append(index)
    kinds: tuple[list[int], list[int]] = ([], [])
    for members in parts.values():
        label = max(images[index][1] for index in members)
        kinds[label].extend([max(images[index][0] for index in members)] * (times[members[0]] if times else 1))
    pairs = [(bad > good) + (bad == good) / 2 for bad in kinds[1] for good in kinds[0]]
    return float(np.mean(pairs)) if pairs else float("nan")


IMAGES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 4)), min_size=2, max_size=14)


@given(IMAGES, st.integers(0, 99))
def test_the_definition_for_any_weights_on_groups(images: list[Image], seed: int) -> None:
    context = Context(evidence_of(images), NATIVE, 1.0)
    if not any(group for *_, group in images):
        assert np.isnan(group_auroc(context).value)
        return
    np.testing.assert_allclose(group_auroc(context).value, by_definition(images), atol=1e-12)
    firsts = {group: index for index, (*_, group) in reversed(list(enumerate(images)))}
    first_of = [firsts[group] if group else index for index, (*_, group) in enumerate(images)]
    times = np.random.default_rng(seed).integers(0, 3, len(images))[first_of]
    with np.errstate(invalid="ignore"):
        (drawn,) = drawn_group_auroc(Draw(context, times[None].astype(np.float64)))
    np.testing.assert_allclose(drawn, by_definition(images, dict(enumerate(times.tolist()))), atol=1e-12)


def test_a_row_where_images_belong_together_and_an_interval_where_groups_are_many() -> None:
    images = case(10)
    alone = compute(collect(images), NATIVE, threshold=THRESHOLD)
    assert "group_auroc" not in set(alone["metric"])
    evidence = collect(images, groups=[f"place {i // 2}" for i in range(26)])
    row = compute(evidence, NATIVE, threshold=THRESHOLD).set_index("metric").loc["group_auroc"]
    assert row["n"] == 13
    found = bootstrap.replicates(evidence, rules(50))
    at = found.row("group_auroc")
    labels = evidence.images["label"].to_numpy().reshape(13, 2).max(axis=1)
    assert found.units[at] == min(labels.sum(), 13 - labels.sum())
    assert found.estimate[at] == pytest.approx(row["value"])
