"""What `evaluate` returns: values, intervals, detection limits, words and pictures; and two of them compared."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
from helpers import assert_same_bits

import hrbench
from hrbench import HrbenchError
from hrbench.metrics.alarms import alarm_scores
from hrbench.metrics.bootstrap import intervals
from hrbench.metrics.detection import fit_detection
from hrbench.metrics.measurement import measure
from hrbench.metrics.words import sentence
from hrbench.protocol import Alarms, Bootstrap, load_protocol

NATIVE = load_protocol("native")
QUICK = dataclasses.replace(NATIVE, bootstrap=Bootstrap(draws=100))
NO_DRAWS = dataclasses.replace(NATIVE, bootstrap=Bootstrap(draws=0))


def case(good=24, bad=24, seed=0, strength=1.0):
    """Squares of 1 to 81 px: the larger, the higher their scores."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(good + bad):
        scores, mask = rng.normal(size=(32, 32)), np.zeros((32, 32), bool)
        for corner in ((2, 2), (18, 18)) if index >= good else ():
            side = int(rng.integers(1, 10))
            place = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
            mask[place] = True
            scores[place] += strength * side
        maps.append(scores.astype(np.float32))
        masks.append(mask)
    return maps, masks


def normal_maps(number=19, seed=9, shift=0.0):
    rng = np.random.default_rng(seed)
    return [rng.normal(shift, 1, (32, 32)).astype(np.float32) for _ in range(number)]


@pytest.fixture(scope="module")
def result():
    maps, masks = case()
    return hrbench.evaluate(maps, masks, protocol=QUICK, normal_maps=normal_maps())


def test_frame_is_what_a_run_records(result):
    measured = measure(result.evidence, QUICK)
    pd.testing.assert_frame_equal(result.frame, measured.records.drop(columns="protocol"))
    pd.testing.assert_frame_equal(result.components, measured.components.drop(columns="protocol"))
    pd.testing.assert_frame_equal(result.images, measured.images.drop(columns="protocol"))
    values = result.frame.iloc[: len(result.values)]
    pd.testing.assert_frame_equal(values[list(result.values.columns)], result.values)
    assert set(result.frame["metric"]) - set(result.values["metric"]) == {
        "a50", "a90", "a90_95", "a50_matched", "a90_matched", "a90_95_matched",
    }  # fmt: skip


def test_every_value_and_interval_is_found_by_its_key(result):
    for row in result.frame.itertuples():
        limit = None if np.isnan(row.fpr_limit) else row.fpr_limit
        key = (row.metric, row.subset, limit)
        assert result.value(*key) == pytest.approx(row.value, nan_ok=True, abs=0)
        assert result.interval(*key) == pytest.approx((row.ci_low, row.ci_high), nan_ok=True, abs=0)


def test_without_a_limit_the_headline_is_meant(result):
    assert result.value("aupro") == result.value("aupro", fpr_limit=0.05) != result.value("aupro", fpr_limit=0.3)
    assert result.interval("rho") == result.interval("rho", fpr_limit=0.05)
    assert result.value("recall_matched", "tiny") == result.value("recall_matched", "tiny", 0.05)
    assert result.value("a90_matched") == result.value("a90_matched", fpr_limit=0.05)
    assert result.value("recall_matched", fpr_limit=0.3 - 0.2) == result.value("recall_matched", fpr_limit=0.1)
    changed = dataclasses.replace(NO_DRAWS, headline_fpr=0.3, alarm=Alarms(1, (0.05, 0.2), 0.2))
    other = hrbench.Evaluation(result.evidence, changed)
    assert other.value("aupro") == result.value("aupro", fpr_limit=0.3)
    assert other.value("recall_matched") == result.value("recall_matched", fpr_limit=0.2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("aupr",), "unknown metric 'aupr'; did you mean 'aupro'?"),
        (("aupro", "tinny"), "unknown subset of 'aupro' 'tinny'; did you mean 'tiny'?"),
        (("aupro", "all", 0.07), "fpr_limit is 0.07 for metric 'aupro', expected one of: 0.3, 0.1, 0.05, 0.01"),
        (("recall_matched", "all", 0.3), "expected one of: 0.01, 0.02, 0.05, 0.1, 0.2"),
        (("image_auroc", "all", 0.05), "expected none: it has no limit"),
        (("iou_decision",), "not measured here under protocol 'native'"),
        (("image_ap", "tiny"), "Known: all"),
    ],
)
def test_what_is_not_there_is_named(result, asked, message):
    for method in (result.value, result.interval):
        with pytest.raises(HrbenchError) as error:
            method(*asked)
        assert message in str(error.value)


@pytest.mark.parametrize("budget", [0, 0.04, 0.05, 0.13, 0.999])
def test_detection_at_any_budget_is_that_of_its_threshold(result, budget):
    found = result.detection(budget)
    good = result.evidence.images["label"].to_numpy() == 0
    alarms = np.sort(alarm_scores(result.evidence)[good])[::-1]
    assert found.alarms.count == int(24 * budget + 1e-9)
    assert alarms[found.alarms.count] < found.threshold
    assert (alarms >= found.threshold).sum() == found.alarms.count
    there = hrbench.Evaluation(result.evidence, QUICK, threshold=found.threshold).detection(None)
    assert np.array_equal(found.hits, there.hits)
    assert found.a90 == there.a90
    assert found.false_per_pixel == pytest.approx(there.false_per_pixel, abs=1e-12)
    again = fit_detection(found.areas, found.hits)
    assert (found.a50, found.upper["profile"]) == (again.a50, again.a90_95)


def test_detection_at_budgets_and_threshold_agrees_with_the_frame(result):
    for budget in QUICK.alarm.budgets:
        found = result.detection(alarms=budget)
        assert result.value("recall_matched", fpr_limit=budget) == found.hits.mean()
        assert result.interval("a90_matched", fpr_limit=budget) == pytest.approx(
            found.interval["bootstrap"], nan_ok=True
        )
        assert result.interval("alarms_matched", fpr_limit=budget) == found.alarms.interval()
    assert result.detection() is result.detection(0.05)
    automatic = result.detection(None)
    assert automatic.threshold == result.threshold
    assert automatic.budget is None
    assert result.value("recall") == automatic.hits.mean()
    assert result.value("alarms") == automatic.alarms.rate


def test_a_given_threshold_takes_the_place_of_the_rule():
    maps, masks = case(12, 12)
    found = hrbench.evaluate(maps, masks, protocol=NO_DRAWS, threshold=4.0, normal_maps=normal_maps())
    assert found.detection(None).threshold == 4.0
    assert 0 < found.detection(None).hits.mean() < 1
    assert "Threshold 4, as given: 0 of 12 good images alarm, 0 per 100" in found.summary()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected `threshold`, or `normal_maps`"),
        ({"normal_maps": normal_maps(5)}, "5 held-out normal images, expected 19 or more to promise 5 false alarms"),
    ],
)
def test_no_threshold_says_what_is_lacking(settings, message):
    maps, masks = case(4, 4)
    found = hrbench.evaluate(maps, masks, protocol=NO_DRAWS, **settings)
    assert found.threshold is None
    with pytest.raises(HrbenchError, match=message):
        found.detection(alarms=None)
    assert not set(found.frame["metric"]) & {"a90", "a50"}
    with pytest.raises(HrbenchError, match="'a90' is not measured here"):
        found.value("a90")


@pytest.mark.parametrize("alarms", [5, 1, -0.1, float("nan")])
def test_budgets_are_shares(result, alarms):
    with pytest.raises(HrbenchError, match=r"share of the good images in \[0, 1\), such as 0.05 for 5 per 100"):
        result.detection(alarms)


def test_without_good_images_there_are_no_false_alarms():
    maps, masks = case(0, 12)
    found = hrbench.evaluate(maps, masks, protocol=QUICK, threshold=3.0)
    with pytest.raises(HrbenchError, match="no good image among the test images"):
        found.detection()
    assert found.summary().startswith("At the threshold 3 it finds ")
    assert "at threshold 3>" in repr(found)
    assert found.plot().axes
    bare = hrbench.evaluate(maps, masks, protocol=QUICK)
    assert "neither a good image nor a threshold" in bare.summary()
    assert repr(bare).startswith("<Evaluation of 12 images, 24 defects: AUPRO@0.05 0.")
    with pytest.raises(HrbenchError, match="no good image among the test images"):
        bare.plot()


def test_one_image_has_values_and_no_intervals():
    maps, masks = case(0, 1)
    found = hrbench.evaluate(maps, masks, protocol=QUICK)
    assert found.frame["ci_low"].isna().all()
    assert found.interval("aupro") == pytest.approx((np.nan, np.nan), nan_ok=True)
    assert "1 image, 0 good, 2 defects" in found.summary()
    assert "halve" not in found.summary()


def test_one_good_image_resolves_no_budget():
    maps, masks = case(1, 12)
    found = hrbench.evaluate(maps, masks, protocol=QUICK)
    start = "With zero alarms among 1 good image (the true rate may be up to 95 %) it "
    assert found.summary().replace("\n", " ").startswith(start)
    (axes,) = found.plot().axes
    assert len([line for line in axes.lines if len(line.get_xdata()) == 200]) == 1  # all budgets are the same


@pytest.mark.parametrize("protocol", ["native@1", "lowres256"])
def test_protocols_without_budgets(protocol):
    maps, masks = case(10, 10)
    rules = dataclasses.replace(load_protocol(protocol), bootstrap=Bootstrap(draws=50))
    silent = hrbench.evaluate(maps, masks, protocol=rules)
    assert "`detection(alarms=0.05)` tells it at any budget" in silent.summary().replace("\n", " ")
    assert silent.detection(0.1).alarms.count == 1
    assert "false alarms" not in repr(silent)
    assert silent.plot().axes  # at the usual budget
    with pytest.raises(HrbenchError, match="'recall_matched' is not measured here under protocol"):
        silent.value("recall_matched")
    found = hrbench.evaluate(maps, masks, protocol=rules, normal_maps=normal_maps(3))
    text = found.summary().replace("\n", " ")
    assert text.startswith("At the threshold ")
    assert "promised at most 0.1 % of the normal pixels, achieved " in text
    assert "recall at the threshold" in text


def test_no_draws_no_intervals():
    maps, masks = case(12, 12)
    found = hrbench.evaluate(maps, masks, protocol=NO_DRAWS)
    with_ends = found.frame[found.frame["ci_low"].notna()]
    assert set(with_ends["metric"]) == {"alarms_matched"}  # counts have theirs all the same
    compared = hrbench.compare(found, found)
    assert (compared.frame["difference"].dropna() == 0).all()
    assert compared.frame["ci_low"].isna().all()
    assert "no interval can be given" in str(compared)
    assert "too few: " in str(compared)


def test_groups_reach_every_interval():
    maps, masks = case(24, 24)
    alone = hrbench.evaluate(maps, masks, protocol=QUICK)
    pairs = hrbench.evaluate(maps, masks, protocol=QUICK, groups=[i // 2 for i in range(48)])
    of_groups = pairs.values["metric"] == "group_auroc"
    assert of_groups.sum() == 1
    assert pairs.values[~of_groups].equals(alone.values)
    assert pairs.interval("aupro") != alone.interval("aupro")
    assert pairs.detection(0.1).interval["bootstrap"] != alone.detection(0.1).interval["bootstrap"]
    assert "in 24 groups" in pairs.summary()
    expected = intervals(pairs.evidence, QUICK).set_index(["metric", "subset"])
    assert pairs.interval("image_auroc") == tuple(expected.loc[("image_auroc", "all"), ["ci_low", "ci_high"]])
    with pytest.raises(HrbenchError, match="other groups of images"):
        hrbench.compare(pairs, alone)
    fewer = hrbench.evaluate(maps, masks, protocol=QUICK, groups=[i // 6 for i in range(48)])
    assert np.isnan(fewer.interval("aupro")).all()  # four groups with defects


def test_summary_says_the_answer_first(result):
    text = result.summary()
    assert repr(text) == text
    lines = text.split("\n")
    assert text.replace("\n", " ").startswith(sentence(result.detection(0.05)))
    assert max(map(len, lines)) <= 120
    low, high = result.interval("aupro")
    (aupro,) = (line for line in lines if line.startswith("AUPRO"))
    assert f"{result.value('aupro'):.3f}  {low:.3f} to {high:.3f}" in aupro
    assert aupro.split()[-1] == f"{result.value('rho'):.3f}"
    (recall,) = (line for line in lines if line.startswith("recall at 5"))
    sizes = [f"{result.value('recall_matched', name):.3f}" for name in ("tiny", "small", "medium", "large")]
    assert recall.split()[-4:] == sizes
    achieved = result.detection(None).alarms
    promised = f"promised at most 5 false alarms per 100 good images; {achieved.count} of 24 good images alarm"
    assert promised in text.replace("\n", " ")
    assert "set on 19 held-out normal images" in text


def test_a_broken_promise_is_said_loudly():
    maps, masks = case(24, 12)
    found = hrbench.evaluate(maps, masks, protocol=NO_DRAWS, normal_maps=normal_maps(shift=-1.0))
    assert "DRIFT: more than promised, beyond chance" in found.summary().replace("\n", " ")


def test_short_forms(result):
    text = repr(result)
    assert "\n" not in text
    assert text.startswith(f"<Evaluation of 48 images, 48 defects: AUPRO@0.05 {result.value('aupro'):.3f}, a90 ")
    assert text.endswith(" at 5 false alarms per 100 good images>")
    html = result._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2
    named = hrbench.Evaluation(result.evidence, dataclasses.replace(QUICK, name="<b>&"))
    assert "protocol &lt;b&gt;&amp; (" in named._repr_html_()
    assert "<b>&" not in named._repr_html_()


def test_plots_know_no_pyplot(result, tmp_path):
    import sys

    before = sys.modules.get("matplotlib.pyplot")
    figure = result.plot()
    figure.savefig(tmp_path / "pod.png")
    assert sys.modules.get("matplotlib.pyplot") is before
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("no false alarm among 24" in text for text in texts)
    assert any("5 false alarms per 100" in text for text in texts)
    (one,) = result.plot(0.1).axes
    assert one.get_xlabel().startswith("area of the defect")
    assert result.plot(0.1, None).axes
    with pytest.raises(HrbenchError, match="share of the good images"):
        result.plot(10)


def test_it_can_be_sent_to_another_process(result):
    twin = pickle.loads(pickle.dumps(result))  # what multiprocessing does; nothing in the product unpickles a file
    assert twin.frame.equals(result.frame)
    assert_same_bits(twin.evidence, result.evidence)


def test_compare_pairs_the_draws():
    maps, masks = case()
    blurred = [m + np.random.default_rng(i).normal(0, 2, m.shape).astype(np.float32) for i, m in enumerate(maps)]
    a, b = (hrbench.evaluate(items, masks, protocol=QUICK) for items in (maps, blurred))
    found = hrbench.compare(a, b)
    for metric, subset in (("aupro", "all"), ("recall_matched", "tiny"), ("image_auroc", "all")):
        difference = a.value(metric, subset) - b.value(metric, subset)
        assert found.difference(metric, subset) == difference
        low, high = found.interval(metric, subset)
        assert np.isnan(low) or low <= difference <= high
    row = found.frame[(found.frame["metric"] == "aupro") & (found.frame["fpr_limit"] == 0.05)].iloc[0]
    assert (row["a"], row["b"], row["subset"]) == (a.value("aupro"), b.value("aupro"), "all")
    assert row["share_better"] > 0.99
    back = hrbench.compare(b, a)
    assert back.difference("aupro") == -found.difference("aupro")
    assert back.interval("aupro") == pytest.approx(tuple(-end for end in reversed(found.interval("aupro"))))
    assert "a is better" in str(found)
    assert "b is better" in str(back)
    tiny = found.frame.query("metric == 'aupro' and subset == 'tiny' and fpr_limit == 0.05").iloc[0]
    assert tiny["n"] == a.frame.query("metric == 'aupro' and subset == 'tiny' and fpr_limit == 0.05")["n"].iloc[0]
    assert ("too few" in str(found)) == (found.frame["units"] < 10).any()
    assert repr(found).startswith("<Comparison on 48 images: recall at 5 alarms per 100 good images, a 0.")
    assert "<table>" in found._repr_html_()
    with pytest.raises(HrbenchError, match="unknown metric"):
        found.difference("aupr")
    assert "no difference shown" in str(hrbench.compare(a, a)) or "no interval" in str(hrbench.compare(a, a))


def test_compare_takes_runs(result):
    class Finished:
        def __init__(self, evidence):
            self.evidence = evidence

        def load_evidence(self, protocol):
            assert protocol.name == "native"
            return self.evidence

    found = hrbench.compare(Finished(result.evidence), result, protocol=QUICK)
    assert (found.frame["difference"].dropna() == 0).all()
    default = hrbench.compare(Finished(result.evidence), hrbench.Evaluation(result.evidence))
    assert default.protocol is not QUICK
    assert default.protocol.digest == NATIVE.digest


def test_compare_refuses_what_is_not_the_same():
    with pytest.raises(HrbenchError, match="cannot compare 3"):
        hrbench.compare(3, 3)
    maps, masks = case(6, 6)
    a = hrbench.evaluate(maps, masks, protocol=NO_DRAWS)
    others = {
        "a was measured under protocol 'native' .version 2., b under 'native' .version 1.": hrbench.evaluate(
            maps, masks, protocol="native@1"
        ),
        r"other images \(12 and 11\): 000011 is only in a": hrbench.evaluate(maps[:-1], masks[:-1], protocol=NO_DRAWS),
        r"other masks \(000011\)": hrbench.evaluate(maps, [*masks[:-1], masks[-2]], protocol=NO_DRAWS),
        r"other masks \(000010\)": hrbench.evaluate(maps, [*masks[:-2], masks[-2][::-1], masks[-1]], protocol=NO_DRAWS),
    }
    for message, b in others.items():
        with pytest.raises(HrbenchError, match=message):
            hrbench.compare(a, b)
    with pytest.raises(HrbenchError, match="protocol is 'mvtec'"):
        hrbench.compare(a, a, protocol="mvtec")


def test_summary_says_why_no_threshold_is_set():
    maps, masks = case(12, 12)
    text = hrbench.evaluate(maps, masks, protocol=NO_DRAWS, normal_maps=normal_maps(5)).summary().replace("\n", " ")
    assert "No promised threshold: 5 held-out normal images, expected 19 or more to promise 5 false alarms" in text
