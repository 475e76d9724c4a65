"""Published figures: complete rows, and means that the categories bear out, which a slip of the pen would not."""

from pathlib import Path

import pandas as pd

FILE = Path(__file__).parents[1] / "results" / "published" / "student_and_mae.csv"
COLUMNS = ["method", "backbone", "dataset", "category", "metric", "value", "resolution", "selection", "source"]


def test_every_row_is_complete():
    rows = pd.read_csv(FILE)
    assert list(rows) == COLUMNS
    assert rows.notna().all(axis=None)
    assert not rows.duplicated(["method", "dataset", "category", "metric", "selection", "source"]).any()
    shares = rows[rows["metric"] != "ms_per_image"]
    assert shares["value"].between(0.3, 1).all()


def test_means_are_those_of_the_categories():
    rows = pd.read_csv(FILE)
    keys = ["method", "dataset", "metric", "selection"]
    means = rows[rows["category"] == "mean"].set_index(keys)["value"]
    categories = rows[rows["category"] != "mean"].groupby(keys)["value"].agg(["mean", "size"])
    both = categories.join(means, how="inner")
    assert len(both) == 8
    assert both["size"].isin([12, 15]).all()
    assert (both["mean"] - both["value"]).abs().max() < 6e-4  # both are rounded
