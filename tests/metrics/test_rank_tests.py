"""Friedman's test and Nemenyi's difference against the worked example of Demšar (JMLR 7, 2006, section 3.2.2)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare

from hrbench.errors import HrbenchError
from hrbench.metrics.rank_tests import cliques, critical_difference, rank_test

# His table 6: ranks of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets.
RANKS = [
    (4, 3, 2, 1), (1, 2, 3, 4), (4, 1, 2, 3), (4, 1, 3, 2), (4, 2, 3, 1), (1, 2.5, 4, 2.5), (3, 2, 4, 1),
    (2.5, 2.5, 4, 1), (4, 3, 2, 1), (2.5, 2.5, 2.5, 2.5), (4, 2.5, 1, 2.5), (3, 2, 4, 1), (4, 1, 2, 3), (3, 1, 4, 2),
]  # fmt: skip


def test_the_worked_example() -> None:
    found = rank_test(-np.array(RANKS))
    assert found.ranks == pytest.approx([3.143, 2.0, 2.893, 1.964], abs=5e-4)
    assert found.chi2 == pytest.approx(9.28, abs=5e-3)
    assert found.f == pytest.approx(3.69, abs=5e-3)
    assert found.differ  # beyond 2.85, the critical value of F(3, 39)
    assert found.critical == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.9) == pytest.approx(1.12, abs=5e-3)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_quantiles_are_those_of_his_table(methods: int, q: float) -> None:
    assert critical_difference(methods, 1) / np.sqrt(methods * (methods + 1) / 6) == pytest.approx(q, abs=1e-3)


def test_without_ties_it_is_scipys_statistic() -> None:
    values = np.random.default_rng(0).random((9, 5))
    assert rank_test(values).chi2 == pytest.approx(friedmanchisquare(*values.T).statistic)


def test_extremes() -> None:
    same = rank_test(np.ones((6, 3)))
    assert (same.chi2, same.f, same.p) == (0, 0, 1)
    assert not same.differ
    ordered = rank_test(np.tile([3.0, 2.0, 1.0], (6, 1)))
    assert ordered.ranks.tolist() == [1, 2, 3]
    assert (ordered.f, ordered.p) == (np.inf, 0)


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, float("nan")], [1.0, 2.0]], [1.0, 2.0]])
def test_what_cannot_be_ranked_is_an_error(values: list) -> None:
    with pytest.raises(HrbenchError, match="expected finite ones"):
        rank_test(values)


def test_groups_that_do_not_differ() -> None:
    assert cliques([1.964, 2.0, 2.893, 3.143], 1.25) == [(0, 3)]
    assert cliques([1.964, 2.0, 2.893, 3.143], 1.0) == [(0, 2), (2, 3)]
    assert cliques([1, 2, 3], 1) == []
    assert cliques([1, 1, 3], 0.5) == [(0, 1)]


@given(st.lists(st.floats(1, 9), min_size=1, max_size=9), st.floats(0.1, 9))
def test_every_pair_shares_a_group_exactly_if_it_does_not_differ(ranks: list[float], critical: float) -> None:
    ranks = sorted(ranks)
    groups = cliques(ranks, critical)
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            together = any(first <= i and j <= last for first, last in groups)
            assert together == (ranks[i] == ranks[j] or ranks[j] - ranks[i] < critical)
