"""Protocol files: defaults, digest, and errors with the dotted path of the wrong key."""

import pytest

from hrbench import HrbenchError, load_protocol
from hrbench.protocol import ImageScoreRule, list_protocols

NATIVE = """
name = "mine"
title = "Mine"
version = 1
"""


def write(tmp_path, extra=""):
    path = tmp_path / "mine.toml"
    path.write_text(NATIVE + extra)
    return path


def test_native_is_the_headline():
    native = load_protocol("native")
    assert native.fpr_limits == (0.30, 0.10, 0.05, 0.01)
    assert native.connectivity == 8
    assert load_protocol(native) is native
    assert "native" in list_protocols()


def test_the_digest_of_a_published_protocol_never_changes():
    # results refer to it: a change needs a new version, or a new name
    digests = {"native": "96503270b35b9541", "native@1": "fcb7ef8984e95544"}
    assert {name: load_protocol(name).digest[:16] for name in digests} == digests


def test_a_former_version_keeps_its_name():
    former = load_protocol("native@1")
    assert (former.name, former.version, former.alarm.budgets) == ("native", 1, ())
    assert "native@1" not in list_protocols()


def test_a_file_of_ones_own(tmp_path):
    mine = load_protocol(write(tmp_path, "[threshold]\nfpr = 0.01\n"))
    assert mine.threshold.fpr == 0.01
    assert mine.digest != load_protocol(write(tmp_path)).digest


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("fpr_limit = [0.1]\n", "fpr_limit is an unknown key; known: name, title"),
        ("[threshold]\nfpr = 'low'\n", "threshold.fpr is 'low', expected float"),
        ("[threshold]\nrule = 'best'\n", "threshold.rule is 'best', expected one of 'normal-quantile'"),
        ("[threshold]\nfprs = 1\n", "threshold.fprs is an unknown key; known: rule, fpr, k"),
        ("threshold = 3\n", "threshold is 3, expected a table"),
        ("fpr_limits = [0.3, 'x']\n", r"fpr_limits\[1\] is 'x', expected float"),
        ("fpr_limits = 0.3\n", "fpr_limits is 0.3, expected a list"),
        ("fpr_limits = [0.0]\n", r"fpr_limits is \(0.0,\), expected numbers in"),
        ("headline_fpr = 0.2\n", "headline_fpr is 0.2"),
        ("[bootstrap]\ndraws = 1000000000000\n", "bootstrap.draws is 1000000000000, expected 0 to 100,000"),
        ("[bootstrap]\nseed = -1\n", "bootstrap.seed is -1, expected 0 or more"),
        ("connectivity = 6\n", "connectivity is 6, expected one of 4, 8"),
        ("image_score = 'median'\n", "'median', expected max, mean or top:SHARE"),
        ("image_score = 'top:2'\n", "top:2"),
        ("[size_bins]\nquantiles = [0.5, 0.25, 0.75]\n", "size_bins.quantiles"),
        ("[size_bins]\ndiameters = [8, -1]\n", "size_bins.diameters"),
        ("[threshold]\nalarms = 0.0\n", "threshold.alarms is 0.0"),
        ("[alarm]\npixels = 0\n", "alarm.pixels is 0, expected 1 or more"),
        ("[alarm]\nbudgets = [0.1, 0.05]\n", r"alarm.budgets is \(0.1, 0.05\), expected rising numbers"),
        ("[alarm]\nbudgets = [0.1]\n", "alarm.headline is 0.05, expected one of"),
        ("[alarm]\nbudgets = [0.05]\nsummary = [0.1]\n", "alarm.summary is"),
        ("version = 'one'\n", "not a valid TOML"),
        ("= 3", "not a valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, extra, message):
    with pytest.raises(HrbenchError, match=message):
        load_protocol(write(tmp_path, extra))


def test_missing_keys_and_files(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('name = "p"\n')
    with pytest.raises(HrbenchError, match=r"p\.toml: title is missing"):
        load_protocol(path)
    with pytest.raises(HrbenchError, match="no such file"):
        load_protocol(tmp_path / "none.toml")
    with pytest.raises(HrbenchError, match=r"unknown protocol 'nativ'; did you mean 'native'.*, native@1"):
        load_protocol("nativ")


def test_image_score_rules():
    import numpy as np

    from hrbench.evidence.histograms import image_score

    scores = np.arange(4000, dtype=np.float32).reshape(40, 100)
    assert image_score(scores, ImageScoreRule("max")) == 3999
    assert image_score(scores, ImageScoreRule("mean")) == 1999.5
    assert image_score(scores, ImageScoreRule("top:0.001")) == np.mean([3996, 3997, 3998, 3999])
    assert image_score(scores[:5, :5], ImageScoreRule("top:0.001")) == 404  # at least one pixel
    ones = np.zeros((100, 150))
    ones[0, :15] = 1
    assert image_score(ones, ImageScoreRule("top:0.001")) == 1


def test_defaults_never_change():
    # a protocol's digest leaves out what is at its default, so a default must mean the same for ever
    from dataclasses import asdict

    from hrbench.protocol import Protocol

    assert asdict(Protocol("x", "X", 1)) == {
        "name": "x",
        "title": "X",
        "version": 1,
        "resolution": "native",
        "image_score": "method",
        "connectivity": 8,
        "fpr_limits": (0.30, 0.10, 0.05, 0.01),
        "headline_fpr": 0.05,
        "curve": {"sampling": "all", "thresholds": 0},
        "size_bins": {"quantiles": (0.25, 0.5, 0.75), "diameters": (8.0, 16.0, 32.0, 64.0, 128.0)},
        "threshold": {"rule": "normal-quantile", "fpr": 0.001, "k": 3.0, "alarms": 0.05},
        "alarm": {"pixels": 1, "budgets": (), "headline": 0.05, "summary": ()},
        "bootstrap": {"draws": 1000, "level": 0.95, "seed": 0},
        "pod": {"share": 0.1, "probability": 0.9, "level": 0.95},
    }
