"""Plots over false alarms: what is in them, and what they do where there is little or nothing to draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hrbench.metrics import size_subsets
from hrbench.metrics.alarms import FalseAlarms
from hrbench.metrics.detection import Detection
from hrbench.protocol import Protocol, ThresholdRule
from hrbench.report import plots
from hrbench.report.alarm_axis import Threshold
from hrbench.report.drawing import Series
from hrbench.report.operating_plot import draw_froc, draw_limits
from hrbench.report.plots import OPERATING
from hrbench.report.pod_plot import draw_detection, draw_matched
from hrbench.report.scores import Scores, accepted, analyse, limit_curve, recalls, steps
from hrbench.report.scores_plot import draw_alarms, draw_ranks
from hrbench.report.styles import look_number
from hrbench.report.summary import Leaderboard
from hrbench.runs.store import Run

from .conftest import CONFIGS, board_of, give_scores, scores_with

Factory = Callable[..., Run]
Items = list[tuple[Series, list[Scores]]]


def example(seed: int = 0, good: int = 30, defects: int = 60, found: str = "") -> Scores:
    rng = np.random.default_rng(seed)
    areas = np.exp(rng.uniform(np.log(10), np.log(3000), defects)).astype(int)
    critical = rng.normal(np.log(areas) - 2, 1.0)
    if found:
        critical = np.full(defects, {"all": 99.0, "none": -99.0}[found])
    made = scores_with(rng.gumbel(size=good), critical, areas, seed)
    return dataclasses.replace(made, defective=critical[: defects // 2])


def items(*scores: Scores) -> Items:
    return [(Series(f"method {number}", number, look_number(number)), [one]) for number, one in enumerate(scores)]


def matched(some: Items, protocol: Protocol) -> list[tuple[Series, dict[float, Detection]]]:
    def at(scores: Scores, budget: float) -> Detection:
        return analyse(scores, scores.allowed(budget), protocol.pod)

    return [(series, {b: at(scores, b) for b in protocol.alarm.budgets}) for series, (scores, *_) in some]


def half(some: Items) -> Callable[[Series], Threshold]:
    def at(series: Series) -> Threshold:
        good = some[series.index][1][0].good
        return Threshold(float(np.median(good)), FalseAlarms(good.size // 2, good.size), 0.5, 0.05, True)

    return at


def every(some: Items, protocol: Protocol) -> dict[str, Figure | None]:
    return {
        "limits": draw_limits(some, protocol, "title"),
        "froc": draw_froc(some, protocol, "title", half(some)),
        "matched": draw_matched(matched(some, protocol), 0.05, protocol.pod, "title"),
        "ranks": draw_ranks(some, protocol, "title"),
        "alarms": draw_alarms(some, protocol, "title", half(some)),
    }


def of_colour(axes: Axes, index: int, **wanted: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the lines of a method, by the properties asked for."""
    return [
        (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.lines
        if line.get_color() == look_number(index).colour
        and all(getattr(line, f"get_{k}")() == v for k, v in wanted.items())
    ]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize(
    "scores",
    [
        [example(good=1)],
        [example(good=2), example(1, good=2)],
        [example(found="none")],
        [example(found="all"), example(1, found="all")],
        [example(found="all"), example(1, found="none"), example(2)],
        [example(good=400, defects=200)],
        [example(number, good=40, defects=25) for number in range(7)],
        [example(defects=2)],
        [example(1, defects=1)],
    ],
    ids=[
        "one good",
        "two good",
        "none found",
        "all found",
        "mixed",
        "many",
        "seven methods",
        "two defects",
        "one defect",
    ],
)
def test_every_plot_can_be_drawn(scores: Sequence[Scores], alarming: Protocol) -> None:
    some = items(*scores)
    for figure in every(some, alarming).values():
        assert figure is not None
        figure.draw_without_rendering()


def test_nothing_gives_nothing(alarming: Protocol) -> None:
    assert list(every([], alarming).values()) == [None] * 5


def test_limits_are_drawn_at_every_number_of_alarms(alarming: Protocol) -> None:
    scores = dataclasses.replace(example(), critical=example().critical + 1.5)
    figure = draw_limits(items(scores), alarming, "")
    assert figure is not None
    (axes,) = figure.axes
    numbers = steps(30, alarming.alarm.budgets)
    areas = limit_curve(scores, numbers, alarming.pod)
    assert np.isfinite(areas).all()
    ((x, y),) = of_colour(axes, 0, linestyle="-", linewidth=1.5)
    assert np.allclose(y, areas)
    assert np.allclose(x[1:], 100 * numbers[1:] / 30)
    assert axes.get_xlim()[0] < x[0] < 100 / 30  # none lies in its own zone
    assert axes.get_xticklabels()[0].get_text() == "0"
    assert axes.get_xscale() == axes.get_yscale() == "log"
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 0].max() == pytest.approx(20)
    texts = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert texts == ["method 0", "95 %, profile likelihood", "no good image alarms"]
    numbered = [text.get_text() for text in axes.texts]
    assert numbered == ["5", "10", "20"]  # smaller budgets allow none of 30


def test_a_limit_that_is_not_reached_is_a_bar_above_the_largest_defect(alarming: Protocol) -> None:
    some = items(example(found="none"), example(1), example(2, found="all"))
    figure = draw_limits(some, alarming, "")
    assert figure is not None
    (axes,) = figure.axes
    largest = max(scores[0].areas.max() for _, scores in some)
    smallest = min(scores[0].areas.min() for _, scores in some)
    for index, marker, beyond in ((0, "^", lambda y: y > largest), (2, "v", lambda y: y < smallest)):
        ((x, y),) = of_colour(axes, index, linewidth=2)
        assert beyond(y).all()
        assert x.tolist() == list(axes.get_xlim())
        arrows = [
            line
            for line in axes.lines
            if line.get_marker() == marker and line.get_markeredgecolor() == look_number(index).colour
        ]
        assert [line.get_ydata()[0] for line in arrows if beyond(np.asarray(line.get_ydata())).all()] == [y[0]]
    low, high = axes.get_ylim()
    assert low < smallest
    assert high > largest
    assert [tick.get_text() for tick in axes.get_yticklabels(minor=True)] == ["not reached", "all found"]


def test_more_methods_get_a_panel_each_with_the_others_behind(alarming: Protocol) -> None:
    figure = draw_limits(items(*(example(number) for number in range(5))), alarming, "")
    assert figure is not None
    assert titles(figure) == [f"method {number}" for number in range(5)]
    for axes in figure.axes:
        (others,) = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_alpha() == 0.6]
        assert others.size == 4 * 8  # seven numbers of alarms, and a gap


def test_recall_by_size_against_alarms(alarming: Protocol) -> None:
    scores = [example(), dataclasses.replace(example(), critical=example().critical[::-1])]
    some = [(Series("two seeds", 3, look_number(3)), scores)]
    figure = draw_froc(some, alarming, "", lambda _: Threshold(1.0, FalseAlarms(3, 30), 0.4, 0.05))
    assert figure is not None
    numbers = steps(30, alarming.alarm.budgets)
    subsets = size_subsets(scores[0].areas, alarming.size_bins)
    for axes, name in zip(figure.axes, ("all", "tiny", "small", "medium", "large"), strict=True):
        lines = [pair for pair in of_colour(axes, 3, linewidth=1.5) if pair[0].size == numbers.size + 1]
        ((x, y),) = lines
        expected = np.mean([recalls(part, numbers, subsets[name]) for part in scores], axis=0)
        assert np.allclose(y, [*expected, expected[-1]])
        assert x[0] == axes.get_xlim()[0]  # none at the left edge
        assert np.allclose(x[1:-1], 100 * numbers[1:] / 30)
        assert titles(figure)[figure.axes.index(axes)].startswith("all defects: 60" if name == "all" else name)
    (mark,) = [line for line in figure.axes[0].lines if line.get_marker() == look_number(3).marker]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (10, 0.4)
    assert any("promised threshold" in text.get_text() for text in figure.legends[0].get_texts())


def test_sizes_with_too_few_defects_have_no_curve(alarming: Protocol) -> None:
    figure = draw_froc(items(example(defects=6)), alarming, "")
    assert figure is not None
    assert titles(figure)[1:] == [f"{name}: too few" for name in ("tiny", "small", "medium", "large")]
    curves = [
        np.asarray(line.get_ydata()) for axes in figure.axes[1:] for line in axes.lines if line.get_linewidth() == 1.5
    ]
    assert all(np.isnan(curve).all() for curve in curves)


def test_what_each_defect_costs(alarming: Protocol) -> None:
    scores = example()
    figure = draw_ranks(items(scores), alarming, "")
    assert figure is not None
    (axes,) = figure.axes
    (points,) = [line for line in axes.lines if line.get_alpha() == 0.75]
    y, costs = np.asarray(points.get_ydata()), accepted(scores)
    assert np.allclose(y[costs > 0], 100 * costs[costs > 0] / 30)
    assert (y[costs == 0] < 100 / 30).all()
    assert np.allclose(points.get_xdata(), 2 * np.sqrt(scores.areas / np.pi))
    three = draw_ranks(items(*(example(number) for number in range(3))), alarming, "")
    assert three is not None
    found = [int((accepted(example(number)) <= 1).sum()) for number in range(3)]
    assert titles(three) == [f"method {k}\n{number} of 60 found at 5 per 100" for k, number in enumerate(found)]


def test_alarm_scores_and_thresholds(alarming: Protocol) -> None:
    some = items(example(good=40), example(1, good=40))
    figure = draw_alarms(some, alarming, "", half(some))
    assert figure is not None
    for axes, (_, (scores, *_)) in zip(figure.axes, some, strict=True):
        up, down = (np.asarray(patch.get_data().values) for patch in axes.patches)
        assert up.max() == pytest.approx(0.92)
        assert down.min() == pytest.approx(-0.92)
        verticals = [line.get_xdata()[0] for line in axes.lines if line.get_color() == "#111213"]
        assert verticals == [np.sort(scores.good)[-3], np.median(scores.good)]
        assert "promised 5 → achieved 50 per 100 (20 of 40): drift!" in axes.get_title(loc="left")


def test_a_wide_range_of_scores_is_drawn_on_a_logarithmic_axis(alarming: Protocol) -> None:
    scores = example()
    wide = dataclasses.replace(scores, good=np.exp(scores.good), defective=np.exp(2 * scores.defective))
    figure = draw_alarms(items(wide), alarming, "")
    assert figure is not None
    assert figure.axes[0].get_xscale() == "log"
    assert not any("$" in text.get_text() for text in figure.axes[0].get_xticklabels())


def test_curves_at_equal_false_alarms(alarming: Protocol) -> None:
    figure = draw_matched(matched(items(example(), example(1)), alarming), 0.05, alarming.pod, "")
    assert figure is not None
    assert titles(figure) == [
        "at 5 false alarms per 100 good images: 1 of 30 alarmed",
        "at 1 or 2 per 100: 0 of 30 alarmed",
        "at 10 per 100: 3 of 30 alarmed",
        "at 20 per 100: 6 of 30 alarmed",
    ]
    (text, *_) = [text.get_text() for text in figure.legends[0].get_texts()]
    assert text == f" method 0, a90 {analyse(example(), 1, alarming.pod).a90}"
    few = draw_matched(matched(items(example(good=4)), alarming), 0.05, alarming.pod, "")
    assert few is not None
    assert titles(few) == ["at 1, 2, 5, 10 or 20 false alarms per 100 good images: 0 of 4 alarmed"]
    many = draw_matched(matched(items(*(example(n) for n in range(6))), alarming), 0.05, alarming.pod, "")
    assert many is not None
    assert not many.axes[0].collections  # no bands


def test_the_threshold_says_what_was_promised_and_achieved(alarming: Protocol) -> None:
    found = dataclasses.replace(analyse(example(), 1, alarming.pod), alarms=FalseAlarms(17, 30))
    said = "promised 5 → achieved 56.7 per 100 (17 of 30): drift!"
    point = Threshold.of(found, alarming, 50)
    figure = draw_detection(
        [(Series("one", 0, look_number(0)), found)], alarming.pod, "", alarming.threshold, lambda _: point
    )
    assert figure is not None
    assert titles(figure) == ["at the promised threshold: at most 5 false alarms per 100 good images"]
    assert figure.legends[0].get_texts()[0].get_text().endswith(said)
    items = [(Series(f"{n}", n, look_number(n)), found) for n in range(5)]
    several = draw_detection(items, alarming.pod, "", alarming.threshold, lambda _: point)
    assert several is not None
    assert all(title.replace("\n", " ").endswith(said) for title in titles(several))
    old = draw_detection([(Series("one", 0, look_number(0)), found)], alarming.pod, "", ThresholdRule())
    assert old is not None
    assert "normal-quantile" in titles(old)[0]
    assert old.legends[0].get_texts()[0].get_text().endswith("56.7 per 100 (17 of 30) alarm")


@pytest.fixture
def board(make_run: Factory, alarming: Protocol) -> Leaderboard:
    runs = [give_scores(make_run(config, category=c), seed=n) for n, config in enumerate(CONFIGS[:2]) for c in "ab"]
    return board_of(runs, alarming)


def test_kinds_of_a_report(board: Leaderboard, make_run: Factory, alarming: Protocol) -> None:
    data = plots.gather(board)
    assert not set(plots.figures(board, data)) & set(OPERATING)  # each category has thresholds of its own
    for category in "ab":
        drawn = plots.figures(board, data, category)
        assert [kind for kind in drawn if kind in OPERATING] == list(OPERATING)
    one = board_of([give_scores(make_run(category="c"))], alarming)
    assert set(OPERATING) <= set(plots.figures(one, plots.gather(one)))


def test_matched_curves_need_no_evidence(
    board: Leaderboard, lose_evidence: Callable[[Run], None], alarming: Protocol
) -> None:
    for counted in board.runs:
        lose_evidence(counted.run)
    drawn = plots.figures(board, plots.gather(board), "a")
    assert set(OPERATING) <= set(drawn)
    assert "detection" not in drawn


def test_runs_without_scores_or_alarms_are_no_error(make_run: Factory, protocol: Protocol, alarming: Protocol) -> None:
    old, new = make_run(CONFIGS[0]), give_scores(make_run(CONFIGS[1]))
    mixed = board_of([old, new], alarming)
    drawn = plots.figures(mixed, plots.gather(mixed))
    (name,) = [row.configuration.short for row in mixed.rows if row.runs[0].run.folder == new.folder]
    legend = [text.get_text().strip() for text in drawn["froc"].legends[0].get_texts()]
    assert legend == [name, "no good image alarms", "at the promised threshold (arrow: beyond)"]
    for rules, runs in ((alarming, [old]), (protocol, [new]), (alarming, [give_scores(make_run(seed=5), good=0)])):
        board = board_of(runs, rules)
        assert {"sizes", "detection"} <= set(kinds := plots.figures(board, plots.gather(board)))
        assert not set(kinds) & set(OPERATING)


def test_several_seeds_are_averaged_only_where_they_may_be(make_run: Factory, alarming: Protocol) -> None:
    board = board_of([give_scores(make_run(seed=s), seed=s) for s in (1, 0)], alarming)
    ((_, number),) = plots.gather(board).scores
    assert [part.seed for part in plots.gather(board).scores["ballscrew", number]] == [0, 1]
    assert math.isfinite(board.rows[0].headline)


def test_every_defect_is_seen_in_a_panel(alarming: Protocol) -> None:
    one = dataclasses.replace(example(defects=1), critical=np.array([0.5]), areas=np.array([60]))
    figure = draw_ranks(items(one, one, one), alarming, "")
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    for index in range(3):
        colour = np.array([int(look_number(index).colour[k : k + 2], 16) for k in (1, 3, 5)])
        blended = 0.6 * colour + 0.4 * 255
        assert (np.abs(pixels - blended).max(axis=2) < 6).sum() >= 4
