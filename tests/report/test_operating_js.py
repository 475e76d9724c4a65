"""What the page's script computes and says, against Python on the same cases: one process of node for all of them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hrbench.report
from hrbench.metrics.alarms import FalseAlarms, matched_limits
from hrbench.metrics.detection import fit_detection
from hrbench.metrics.logistic import fit_logistic
from hrbench.metrics.sizes import equivalent_diameter
from hrbench.protocol import Alarms, Protocol
from hrbench.report.answer import answer_sentences, answer_table, best_sentences, heading_text
from hrbench.report.configurations import Configuration
from hrbench.report.operating import SUBSETS, page_data, point_at, positions
from hrbench.report.scores import Intervals, Scores, quarters
from hrbench.report.summary import Leaderboard, Row
from hrbench.report.table import Cell

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")

SCRIPT = Path(hrbench.report.__file__).with_name("operating.js")
BUDGETS = (0.0, 0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.29, 0.5)
PROTOCOL = Protocol("native", "Native", 2, alarm=Alarms(1, (0.01, 0.02, 0.05, 0.1, 0.2), 0.05, (0.01, 0.05)))

RUNNER = """
const o = require(process.argv[1]);
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answer = {
  fixed: given.fixed.map(([value, decimals]) => o.fixed(value, decimals)),
  rates: given.rates.map(([k, n]) => [...o.rates(k, n, 0.95), o.upperRate(k, n, 0.05)]),
  limits: given.limits.map(([good, budget]) => o.limitAt(good, budget)),
  diameters: given.areas.map(o.diameter),
  fits: given.fits.map(([x, hits]) => o.fitFirth(x, hits)),
  found: given.found.map(([areas, hits]) => o.detect(areas, hits, 0.9)),
  boards: given.boards.map((data) => given.budgets.map((budget) => ({
    best: o.best(data, budget),
    heading: o.heading(data, budget),
    overall: o.table(data, null, budget).map(({ row, rank, cells }) => [row.number, rank, cells]),
    recalls: o.table(data, null, budget).map(({ recall }) => recall.text),
    each: data.categories.map((_, at) => ({
      rows: o.table(data, at, budget).map(({ row, rank, cells }) => [row.number, rank, cells]),
      sentences: o.sentences(o.table(data, at, budget), data.probability),
      points: data.categories[at].methods.map((m) =>
        o.pointAt(m, data.categories[at].layouts[m.layout], budget, data.probability)),
    })),
  }))),
};
const write = (key, v) => (typeof v === "number" && !Number.isFinite(v) ? String(v) : v);
process.stdout.write(JSON.stringify(answer, write));
"""


def number(value: float | str) -> float:
    return float(str(value).replace("Infinity", "inf"))


def curves(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return areas and hits: plausible ones, separated, falling, of one size, and tiny samples."""
    cases = []
    for place in range(120):
        count = int(rng.integers(2, 80))
        areas = np.round(np.exp(rng.uniform(np.log(4), np.log(20_000), count))).astype(int)
        slope, middle = rng.uniform(-0.5, 4), rng.uniform(3, 9)
        hits = rng.random(count) < 1 / (1 + np.exp(-slope * (np.log(areas) - middle)))
        if place % 5 == 0:
            hits = areas > np.median(areas)
        if place % 11 == 0:
            areas = rng.choice([12, 40], count)
        cases.append((areas, hits))
    cases += [(np.array([10, 10, 10]), np.array([1, 0, 1], bool)), (np.array([9, 9]), np.array([1, 1], bool))]
    cases += [(np.array([7, 1234567]), np.array([0, 0], bool)), (np.zeros(0, int), np.zeros(0, bool))]
    return [*cases, (np.array([5]), np.array([True])), (np.array([5]), np.array([False]))]


def scores_of(rng: np.random.Generator, good: int, bad: int, areas: np.ndarray, skill: float) -> Scores:
    owner = np.sort(rng.integers(0, bad, areas.size)) if areas.size else np.zeros(0, int)
    parts = np.round(rng.normal(size=good), 1), rng.normal(skill, 1, bad), rng.normal(skill * np.log(areas + 1) / 4)
    low = float(np.exp(rng.normal(6)))
    ends: dict[float, Any] = {0.05: ((low, 3.3 * low), (0.125, 0.625)), 0.1: ((low, math.inf), None)}
    ends |= {0.01: ((0.0, low), (0.3, 0.4)), 0.2: (None, (0.0, 1.0)), 0.0: ((0.0, math.inf), (0.0, 0.9))}
    intervals = {budget: Intervals(*pair) for budget, pair in ends.items()}
    return Scores(0, *parts, areas, owner, quarters(areas, PROTOCOL.size_bins), intervals=intervals)


def board_of(scores: dict[tuple[str, int], list[Scores]], foreign: int = -1) -> Leaderboard:
    categories = sorted({name for name, _ in scores})
    rows = []
    for n in sorted({n for _, n in scores}):
        of = Configuration(
            "m", "p", "v", "{}", "float32", "{}", "", f"Method {n}", "none", False, n, short=f"Method {n}"
        )
        rows.append(Row(of, (), 0.5, tuple(c for c in categories if (c, n) not in scores), n == foreign))
    return _Board("parts", PROTOCOL, (), tuple(rows), {}, [], tuple(categories))


@dataclasses.dataclass(frozen=True)
class _Board(Leaderboard):
    names: tuple[str, ...] = ()

    @property
    def categories(self) -> list[str]:
        return list(self.names)


@pytest.fixture(scope="module")
def boards() -> list[tuple[dict[tuple[str, int], list[Scores]], Leaderboard]]:
    rng = np.random.default_rng(14)
    made = []
    for good, bad, count in ((103, 40, 60), (12, 9, 7), (1, 1, 1), (0, 5, 9), (60, 30, 0), (20, 6, 90), (30, 9, 4)):
        areas = np.round(np.exp(rng.uniform(2, 8, count))).astype(int)
        scores = {("bolt", n): [scores_of(rng, good, bad, areas, skill)] for n, skill in enumerate((0.5, 2, 4, 9))}
        if count < 5:  # the masks of most, or of all, are unknown
            of = {key: (dataclasses.replace(first, unmasked=bad - count),) for key, (first,) in scores.items()}
            scores |= {key: list(parts) for key, parts in of.items()}
        made.append((scores, board_of(scores, foreign=1)))
    scores = {}
    for category, good, count in (("bolt", 60, 50), ("nut & <b>", 30, 7), ("pin", 7, 12)):
        areas = np.round(np.exp(rng.uniform(2, 8, count))).astype(int)
        for n, skill in enumerate((3, 2, 1, 0.2, 2)):
            if (category, n) not in (("nut & <b>", 1), ("pin", 3)):
                scores[category, n] = [scores_of(rng, good, 20, areas, skill)]
    made.append((scores, board_of(scores, foreign=4)))
    more = {key: of for key, of in scores.items() if key[0] != "pin"}
    more |= {(f"{name} {k}", n): of for k in (1, 2) for (name, n), of in scores.items()}
    for name in {name for name, _ in more}:  # and one that hits all
        (first,) = more[name, 0]
        more[name, 5] = [dataclasses.replace(first, critical=first.critical + 100)]
    return [*made, (more, board_of(more))]


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found = curves(rng)
    fits = [(np.log(areas), hits) for areas, hits in found if len(np.unique(areas)) > 1]
    limits = [(rng.integers(0, 30, n).tolist(), b) for n in (0, 1, 3, 10, 12, 60, 100) for b in (*BUDGETS, 0.57, 1.0)]
    return {
        "fixed": [(v, d) for v in (0, 0.0625, 0.1875, 0.5, 1.5, 2.5, 8.25, 9.949, 9.95, 12, 1234.5, 1e6 + 0.5)
                  for d in (0, 1, 2, 3)] + [(float(v), 3) for v in rng.random(50)],
        "rates": [(k, n) for n in (1, 2, 12, 60, 172, 2000) for k in {0, 1, n // 3, n - 1, n}],
        "limits": limits,
        "areas": [1, 7.5, 4982],
        "fits": fits,
        "found": found,
    }  # fmt: skip


@pytest.fixture(scope="module")
def answers(
    cases: dict[str, Any], boards: list[tuple[dict[tuple[str, int], list[Scores]], Leaderboard]]
) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return value.astype(float if value.dtype == float else int).tolist()

    given = {**cases, "budgets": BUDGETS, "boards": [json.loads(page_data(*board)) for board in boards]}
    text = json.dumps(given, default=plain, allow_nan=False)
    command = [str(NODE), "-e", RUNNER, "--", str(SCRIPT)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_numbers_are_written_as_python_writes_them(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    assert answers["fixed"] == [f"{value:,.{decimals}f}" for value, decimals in cases["fixed"]]
    np.testing.assert_allclose(answers["diameters"], equivalent_diameter(cases["areas"]), rtol=1e-12)


def test_intervals_of_false_alarms_agree(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    expected = [(*FalseAlarms(*case).interval(0.95), FalseAlarms(*case).upper(0.95)) for case in cases["rates"]]
    np.testing.assert_allclose(answers["rates"], expected, atol=1e-9)


def test_limits_agree(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    expected = [matched_limits(np.array(good, float), [budget])[0, 0] for good, budget in cases["limits"]]
    found = [number(limit) for limit in answers["limits"]]
    assert [-1 if limit == -np.inf else limit for limit in expected] == found


def test_fits_agree(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    assert len(cases["fits"]) > 100
    for (x, hits), found in zip(cases["fits"], answers["fits"], strict=True):
        fit = fit_logistic(x, hits)
        expected = [fit.intercept[0], fit.slope[0]]
        np.testing.assert_allclose([number(found["intercept"]), number(found["slope"])], expected, rtol=1e-6, atol=1e-6)
    assert any(fit_logistic(x, hits).separated[0] for x, hits in cases["fits"])


def test_reliable_sizes_agree_in_number_and_reason(cases: dict[str, Any], answers: dict[str, Any]) -> None:
    reasons = set()
    for (areas, hits), found in zip(cases["found"], answers["found"], strict=True):
        expected = fit_detection(areas, hits).a90
        assert found["reason"] == expected.reason
        reasons.add(expected.reason.split(" ")[0] + expected.reason[-9:-8])
        if expected.area is None:
            assert found["area"] is None
        else:
            assert number(found["area"]) == pytest.approx(expected.area, rel=1e-6)
        if math.isfinite(expected.estimate):
            assert number(found["estimate"]) == pytest.approx(expected.estimate, rel=1e-6)
    assert len(reasons) > 4


def written(cell: Cell) -> tuple[Any, ...]:
    bar = None if cell.bar is None else round(cell.bar, 9)
    return cell.text, cell.title, list(cell.small), cell.mark, cell.place, bar, cell.sort != ""


def test_tables_points_and_sentences_agree(
    boards: list[tuple[dict[tuple[str, int], list[Scores]], Leaderboard]], answers: dict[str, Any]
) -> None:
    texts = set()
    for (scores, board), tables in zip(boards, answers["boards"], strict=True):
        for budget, found in zip(BUDGETS, tables, strict=True):
            assert found["best"] == best_sentences(scores, board, budget)
            assert found["heading"] == heading_text(scores, budget)
            overall = answer_table(scores, board, "", budget)
            assert overall is not None
            recall = [column.line for column in overall.columns].index("recall")
            assert found["recalls"] == [cells[recall].text for cells in overall.cells]
            pairs = [("", found["overall"])]
            pairs += [(name, part["rows"]) for name, part in zip(board.categories, found["each"], strict=True)]
            for category, rows in pairs:
                table = answer_table(scores, board, category, budget)
                assert table is not None
                assert [number for number, _, _ in rows] == [row.configuration.number for row in table.rows]
                assert [rank or "–" for _, rank, _ in rows] == [
                    int(row.rank) if row.rank == row.rank else "–" for row in table.rows
                ]
                for (_, _, cells), expected in zip(rows, table.cells, strict=True):
                    assert len(cells) == len(table.columns)
                    mine = [
                        (c["text"], c["title"], c["small"], c["mark"], c["place"],
                         None if c["bar"] is None else round(c["bar"], 9), c["value"] is not None)
                        for c in cells
                    ]  # fmt: skip
                    assert mine == [written(cell) for cell in expected]
            for name, part in zip(board.categories, found["each"], strict=True):
                assert part["sentences"] == answer_sentences(scores, board, name, budget)
                texts |= {one.partition("Method")[2][3:14] for one in part["sentences"]}
                numbers = [n for category, n in sorted(scores) if category == name]
                for n, point in zip(numbers, part["points"], strict=True):
                    expected_point = point_at(scores[name, n][0], budget, board.protocol.pod)
                    assert point["called"] == expected_point.called
                    assert point["right"] == expected_point.right
                    sizes = {key: (value["hit"], value["n"]) for key, value in point["sizes"].items()}
                    assert sizes == expected_point.sizes
                    assert list(sizes) == list(SUBSETS)
    assert len(texts) > 5  # kinds of sentences


def test_the_slider_stops_where_something_changes(
    boards: list[tuple[dict[tuple[str, int], list[Scores]], Leaderboard]],
) -> None:
    assert positions(*_of(boards[0])) == [0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5]
    assert positions(*_of(boards[1])) == [0.05, 0.1, 0.2, 0.3, 0.5]  # 12 good images
    assert len(positions(*_of(boards[3]))) == 1


def _of(
    board: tuple[dict[tuple[str, int], list[Scores]], Leaderboard],
) -> tuple[dict[tuple[str, int], list[Scores]], Protocol]:
    return board[0], board[1].protocol
