"""What the inference loop tells a method, and how decisions of tiles become one of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hrbench import HrbenchError
from hrbench.data.sample import Sample
from hrbench.inference import predict
from hrbench.method import Method, Prediction
from hrbench.views import View, parse_view

SIZES = [(20, 16), (16, 16), (40, 30), (16, 40)]  # tiles of 16 that overlap by 4: 2, 1, 9 and 3


class Probe(Method):
    """Decides for a tile if it is white in its centre, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int]] = []

    def predict(self, batch: torch.Tensor) -> Prediction:
        assert self.inputs_per_image is not None
        assert len(self.inputs_per_image) == len(batch)
        self.told.append(list(self.inputs_per_image))
        return Prediction({"anomaly": batch.mean(dim=1)}, decision=batch[:, 0] > 0.5)


@pytest.fixture
def samples(tmp_path):
    found = []
    for number, (height, width) in enumerate(SIZES):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[height // 2 - 2 : height // 2 + 2, width // 2 - 3 : width // 2 + 3] = 255
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        found.append(Sample(path.name, path, None, 0, "good", "test", "bolt"))
    return found


def test_a_method_is_told_how_many_inputs_an_image_has(samples):
    method = Probe()
    list(predict(method, samples, View.parse("tiled:16:4"), torch.device("cpu"), batch_size=5))
    assert method.told == [[2, 2, 1, 9, 9], [9, 9, 9, 9, 9], [9, 9, 3, 3, 3]]  # batches are filled across images
    assert method.inputs_per_image is None
    whole = Probe()
    list(predict(whole, samples, View.parse("whole:16"), torch.device("cpu"), batch_size=5))
    assert whole.told == [[1, 1, 1, 1]]


def test_fused_views_are_predicted_as_each_by_itself(samples):
    texts = ["whole:16", "tiled:16:4", "tiled:16:4@0.5"]
    method, cpu = Probe(), torch.device("cpu")
    fused = list(predict(method, samples, parse_view("+".join(texts)), cpu, batch_size=5))
    alone = [list(predict(Probe(), samples, View.parse(text), cpu)) for text in texts]
    assert [item.sample for item in fused] == samples
    for item, *views in zip(fused, *alone, strict=True):
        assert len(item.parts) == 3
        for part, view in zip(item.parts, views, strict=True):
            assert torch.equal(part["anomaly"], view.maps["anomaly"])
        np.testing.assert_array_equal(item.decision, np.logical_or.reduce([view.decision for view in views]))
    assert [n for batch in method.told for n in batch] == [4] * 4 + [3] * 3 + [12] * 12 + [6] * 6
    assert {len(batch) for batch in method.told} == {5}  # filled across views and images


class Small(Probe):
    """Has room for so many inputs at a time."""

    room = 3

    def predict(self, batch: torch.Tensor) -> Prediction:
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().predict(batch)


def test_a_batch_that_does_not_fit_is_halved(samples, caplog):
    method, view, cpu = Small(), View.parse("tiled:16:4"), torch.device("cpu")
    found = list(predict(method, samples, view, cpu, batch_size=13))
    assert [len(batch) for batch in method.told] == [3, 3, 3, 3, 3]
    assert [n for batch in method.told for n in batch] == [2, 2, 1, *[9] * 9, 3, 3, 3]
    assert [record.getMessage().partition("with ")[2] for record in caplog.records] == [
        "13 inputs at a time, going on with 6",
        "6 inputs at a time, going on with 3",
    ]
    for own, other in zip(found, predict(Probe(), samples, view, cpu, batch_size=13), strict=True):
        assert own.sample == other.sample
        assert torch.equal(own.maps["anomaly"], other.maps["anomaly"])
        np.testing.assert_array_equal(own.decision, other.decision)


def test_an_input_that_does_not_fit_is_named(samples):
    method = Small()
    method.room = 0
    with pytest.raises(HrbenchError, match=r"0\.png: the memory of cpu is too small for one input of 16x16 pixels"):
        list(predict(method, samples, View.parse("tiled:16:4"), torch.device("cpu")))
    assert method.inputs_per_image is None


def test_what_an_image_has_is_forgotten_when_predict_fails(samples):
    method = Probe()
    method.predict = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(predict(method, samples, View.parse("whole:16"), torch.device("cpu")))
    assert method.inputs_per_image is None


def test_a_pixel_is_called_if_any_tile_over_it_calls_it(samples):
    for item, (height, width) in zip(
        predict(Probe(), samples, View.parse("tiled:16:4"), torch.device("cpu")), SIZES, strict=True
    ):
        expected = np.zeros((height, width), bool)
        expected[height // 2 - 2 : height // 2 + 2, width // 2 - 3 : width // 2 + 3] = True
        assert item.decision is not None
        np.testing.assert_array_equal(item.decision, expected)
