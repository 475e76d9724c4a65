"""What the inference loop tells a method, and how decisions of tiles become one of the image."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from hrbench import HrbenchError
from hrbench._util.fake_cuda import fake_cuda
from hrbench.data.sample import ArraySample, Sample
from hrbench.engine import inference as inference_module
from hrbench.engine.anomaly_map import finish, finish_looks
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import predict
from hrbench.engine.views import DecisionCanvas, Look, MapCanvas, View, to_unit
from hrbench.imaging import read_image
from hrbench.method import Method, OnHost, Prediction

SIZES = [(20, 16), (16, 16), (40, 30), (16, 40)]  # tiles of 16 that overlap by 4: 2, 1, 9 and 3


class Probe(Method):
    """Decides for a tile if it is white in its centre, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int]] = []

    def predict_inputs(self, batch: torch.Tensor, inputs_per_image: Sequence[int]) -> Prediction:
        assert len(inputs_per_image) == len(batch)
        self.told.append(list(inputs_per_image))
        return super().predict_inputs(batch, inputs_per_image)

    def predict(self, batch: torch.Tensor) -> Prediction:
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
    whole = Probe()
    list(predict(whole, samples, View.parse("whole:16"), torch.device("cpu"), batch_size=5))
    assert whole.told == [[1, 1, 1, 1]]


def test_fused_views_are_predicted_as_each_by_itself(samples):
    texts = ["whole:16", "tiled:16:4", "tiled:16:4@0.5"]
    method, cpu = Probe(), torch.device("cpu")
    fused = list(predict(method, samples, View.parse("+".join(texts)), cpu, batch_size=5))
    alone = [list(predict(Probe(), samples, View.parse(text), cpu)) for text in texts]
    assert [item.sample for item in fused] == samples
    for item, *views in zip(fused, *alone, strict=True):
        assert len(item.looks) == 3
        for maps, view in zip(item.looks, views, strict=True):
            assert torch.equal(maps["anomaly"], view.maps["anomaly"])
        np.testing.assert_array_equal(item.decision, np.logical_or.reduce([view.decision.numpy() for view in views]))
    assert [n for batch in method.told for n in batch] == [4] * 4 + [3] * 3 + [12] * 12 + [6] * 6
    assert {len(batch) for batch in method.told} == {5}  # filled across views and images


class Deciding(Probe):
    """Decides as `Probe` does, on the host: of each batch only when the next one is predicted, if there is one."""

    def __init__(self, batches: int = 0) -> None:
        super().__init__()
        self.batches, self.threads = batches, set[str]()
        self.begun: list[threading.Event] = []

    def predict(self, batch: torch.Tensor) -> Prediction:
        known = super().predict(batch)
        number = len(self.begun)
        self.begun.append(threading.Event())
        for event in self.begun[:-1]:
            event.set()

        def compute(given: list[torch.Tensor]) -> list[torch.Tensor]:
            assert all(tensor.device.type == "cpu" for tensor in given)
            if number < self.batches - 1:
                assert self.begun[number].wait(10)
            self.threads.add(threading.current_thread().name)
            return [given[0] > 0.5]

        return Prediction(known.maps, OnHost((batch[:, 0],), compute, lambda found: found[0]))


def test_the_host_decides_while_the_next_batch_is_predicted(samples):
    view, alive = View.parse("tiled:16:4"), threading.active_count()
    expected = list(predict(Probe(), samples, view, torch.device("cpu"), batch_size=2))
    here = Deciding()
    with fake_cuda() as log:
        there = Deciding(batches=8)
        found = list(predict(there, samples, view, torch.device("cuda"), batch_size=2))
        assert not log.waits
    assert threading.active_count() == alive
    assert len(there.threads) >= 1
    assert threading.main_thread().name not in there.threads
    on_cpu = list(predict(here, samples, view, torch.device("cpu"), batch_size=2))
    assert here.threads == {threading.main_thread().name}
    for items in (found, on_cpu):
        for item, other in zip(items, expected, strict=True):
            assert item.sample == other.sample
            assert torch.equal(item.maps["anomaly"].cpu(), other.maps["anomaly"])
            assert torch.equal(item.decision.cpu(), other.decision)
            assert item.seconds > 0


def test_few_batches_wait_for_the_host(samples):
    method, largest = Deciding(), 0
    waiting = threading.Semaphore(0)

    def predict_one(batch: torch.Tensor) -> Prediction:
        nonlocal largest
        known = Deciding.predict(method, batch)
        largest = max(largest, len(method.begun) - done)

        def compute(given: list[torch.Tensor]) -> list[torch.Tensor]:
            nonlocal done
            if len(method.begun) < 8:
                waiting.acquire(timeout=0.05)  # the host is slow
            done += 1
            return known.decision.compute(given)

        return Prediction(known.maps, OnHost(known.decision.given, compute, known.decision.complete))

    done = 0
    method.predict = predict_one
    with fake_cuda():
        found = list(predict(method, samples, View.parse("tiled:16:4"), torch.device("cuda"), batch_size=2))
    assert len(found) == len(samples)
    assert largest <= inference_module.DECIDING + 1


def test_what_fails_on_the_host_fails_in_the_caller_and_leaves_no_thread(samples):
    def compute(given: list[torch.Tensor]) -> list[torch.Tensor]:
        raise HrbenchError("no such law")

    method, view, alive = Deciding(), View.parse("tiled:16:4"), threading.active_count()
    method.predict = lambda x: Prediction({"anomaly": x.mean(1)}, OnHost((x,), compute, lambda found: found[0]))
    with fake_cuda(), pytest.raises(HrbenchError, match="no such law"):
        list(predict(method, samples, view, torch.device("cuda"), batch_size=2))
    method.predict = lambda x: Prediction(
        {"anomaly": x.mean(1)}, OnHost((x,), lambda given: given, lambda found: found[0])
    )
    with (
        fake_cuda(),
        pytest.raises(HrbenchError, match=r"gave a float32 .* as decision, expected None or a bool Tensor"),
    ):
        list(predict(method, samples, view, torch.device("cuda"), batch_size=2))
    with fake_cuda():
        items = predict(Deciding(), samples, view, torch.device("cuda"), batch_size=2)
        next(items)
        items.close()
    assert threading.active_count() == alive


class Small(Probe):
    """Has room for so many inputs at a time."""

    room = 3

    def predict_inputs(self, batch: torch.Tensor, inputs_per_image: Sequence[int]) -> Prediction:
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().predict_inputs(batch, inputs_per_image)


def test_a_batch_that_does_not_fit_is_halved(samples, caplog):
    method, view, cpu = Small(), View.parse("tiled:16:4"), torch.device("cpu")
    found = list(predict(method, samples, view, cpu, batch_size=13))
    assert [len(batch) for batch in method.told] == [3, 3, 3, 3, 1, 2]  # what was stacked ahead is cut
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


def test_a_pixel_is_decided_by_any_tile_over_it(samples):
    for item, (height, width) in zip(
        predict(Probe(), samples, View.parse("tiled:16:4"), torch.device("cpu")), SIZES, strict=True
    ):
        expected = np.zeros((height, width), bool)
        expected[height // 2 - 2 : height // 2 + 2, width // 2 - 3 : width // 2 + 3] = True
        assert item.decision is not None
        np.testing.assert_array_equal(item.decision, expected)


CPU = torch.device("cpu")


@pytest.mark.parametrize("text", ["tiled:16:4", "whole:16", "whole:24:square", "tiled:16:4@0.5", "tiled:16:0"])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_maps_are_those_of_image_after_image(samples, monkeypatch, text, batch_size):
    look = Look.parse(text)
    for workers in (1, 4):
        monkeypatch.setattr(inference_module, "WORKERS_CPU", workers)
        found = list(predict(Probe(), samples * 3, View.parse(text), CPU, batch_size=batch_size))
        assert [item.sample for item in found] == samples * 3
        for item in found:
            tiles, placement = look.split(read_image(item.sample.image))
            expected = look.merge(to_unit(tiles, CPU).mean(dim=1), placement)
            assert torch.equal(item.maps["anomaly"], expected)


class Drawing(Method):
    """Says what torch's generator says."""

    def predict(self, batch: torch.Tensor) -> Prediction:
        return Prediction({"anomaly": torch.rand(len(batch), *batch.shape[2:])})


def test_a_batch_begins_at_a_seed_and_depends_on_nothing_before_it(samples):
    view = View.parse("tiled:16:4")  # 2, 1, 9 and 3 inputs
    method = Probe()
    list(predict(method, samples, view, CPU, batch_size=5, seeds={0: 1, 2: 2}))
    assert method.told == [[2, 2, 1], [9] * 5, [9, 9, 9, 9, 3], [3, 3]]
    whole = list(predict(Drawing(), samples, view, CPU, batch_size=5, seeds={0: 1, 2: 2}))
    later = list(predict(Drawing(), samples[2:], view, CPU, batch_size=5, seeds={0: 2}))
    for own, other in zip(whole[2:], later, strict=True):
        assert torch.equal(own.maps["anomaly"], other.maps["anomaly"])
    other_seed = list(predict(Drawing(), samples[2:], view, CPU, batch_size=5, seeds={0: 3}))
    assert not torch.equal(other_seed[0].maps["anomaly"], later[0].maps["anomaly"])


def test_a_bad_file_is_named_after_the_images_before_it(samples):
    samples[3].image.write_bytes(samples[3].image.read_bytes()[:60])
    found = []
    maps = predict(Probe(), samples, View.parse("tiled:16:4"), CPU, batch_size=3)
    with pytest.raises(HrbenchError, match=r"3\.png: damaged or truncated"):
        found.extend(item.sample for item in maps)
    assert found == samples[:3]
    samples[3].image.unlink()
    with pytest.raises(HrbenchError, match=r"3\.png: no such file"):
        list(predict(Probe(), samples, View.parse("tiled:16:4"), CPU))


def test_a_bad_file_is_told_and_the_others_keep_their_batches(samples, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    mixed = [dataclasses.replace(samples[0], id="bad", image=bad), *samples[:2], samples[2]]
    method, told = Probe(), []
    found = predict(method, mixed, View.parse("tiled:16:4"), CPU, batch_size=5, seeds={0: 1, 3: 2},
                    failed=lambda sample, error: told.append((sample.id, str(error))))  # fmt: skip
    assert [item.sample.id for item in found] == ["0.png", "1.png", "2.png"]
    assert method.told == [[2, 2, 1], [9, 9, 9, 9, 9], [9, 9, 9, 9]]  # the batch of the second seed begins anew
    ((name, words),) = told
    assert name == "bad"
    assert "bad.png: not a readable image" in words
    alone = list(predict(Probe(), [mixed[0]], View.parse("tiled:16:4"), CPU, seeds={0: 1}, failed=lambda *_: None))
    assert alone == []


def test_an_array_is_predicted_as_its_file(samples):
    arrays = [ArraySample(**vars(sample), pixels=read_image(sample.image)) for sample in samples]
    pairs = (list(predict(Probe(), part, View.parse("tiled:16:4"), CPU, batch_size=5)) for part in (samples, arrays))
    for own, other in zip(*pairs, strict=True):
        assert torch.equal(own.maps["anomaly"], other.maps["anomaly"])


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_no_thread_is_left_when_predict_fails(samples, error):
    class Failing(Probe):
        def predict(self, batch):
            if len(self.told) == 2:
                raise error
            return super().predict(batch)

    before = threading.active_count()
    with pytest.raises(error) as held:  # its traceback keeps the frames alive
        list(predict(Failing(), samples * 5, View.parse("tiled:16:4"), CPU, batch_size=4))
    assert threading.active_count() == before
    assert held.type is error


def test_no_thread_is_left_when_nobody_wants_more(samples):
    before = threading.active_count()
    maps = predict(Probe(), samples * 5, View.parse("tiled:16:4"), CPU, batch_size=2)
    next(maps)
    assert threading.active_count() > before
    maps.close()
    assert threading.active_count() == before


def test_memory_holds_a_bounded_number_of_images(samples, monkeypatch):
    """Decoded images: one in use, those ahead, those that are being stacked; maps: those of one batch."""
    alive: dict[str, int] = {"image": 0, "canvas": 0}
    most = dict(alive)

    def watch(kind, thing):
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        weakref.finalize(thing, lambda: alive.__setitem__(kind, alive[kind] - 1))

    def watched(path):
        pixels = read_image(path)
        watch("image", pixels)
        return pixels

    def watched_canvas(kind):
        def canvas(*args):
            made = kind(*args)
            watch("canvas", made)
            return made

        return canvas

    monkeypatch.setattr(inference_module, "read_image", watched)
    for kind in (MapCanvas, DecisionCanvas):
        monkeypatch.setattr(inference_module, kind.__name__, watched_canvas(kind))
    for count in (20, 80):
        most.update(image=0, canvas=0)
        for item in predict(Probe(), [samples[2]] * count, View.parse("tiled:16:4"), CPU, batch_size=4):
            assert item.maps["anomaly"].shape == SIZES[2]
            del item
        gc.collect()
        assert alive == {"image": 0, "canvas": 0}
        assert most["image"] <= 2 * inference_module.WORKERS_CPU + 3, count
        assert most["canvas"] <= 2 * 2, count  # map and decision of the image that ends in a batch, and of the next one


def test_large_images_are_not_decoded_far_ahead(samples, monkeypatch):
    read = []
    monkeypatch.setattr(inference_module, "read_image", lambda path: read.append(path) or read_image(path))
    view = View.parse("whole:16")

    def decoded_at_first(pixels, seconds):
        """Return how many images are read when the first map is there, give or take the time for more than three."""
        read.clear()
        monkeypatch.setattr(inference_module, "AHEAD_PIXELS", pixels)
        monkeypatch.setattr(inference_module, "BATCHES", 1)
        maps = predict(Probe(), samples * 5, view, CPU, batch_size=1)
        next(maps)
        end = time.monotonic() + seconds
        while len(read) <= 3 and time.monotonic() < end:
            time.sleep(0.005)
        maps.close()
        return len(read)

    assert decoded_at_first(1, seconds=0.1) <= 3  # the one in use, that of the batch ahead, one ahead of both
    assert decoded_at_first(10**9, seconds=10) > 3


def test_a_native_map_is_handed_out_without_a_copy(samples):
    placement = Look.parse("tiled:16:4").place(SIZES[2])
    canvas = MapCanvas(placement, CPU)
    canvas.add(0, torch.ones(4, 4))
    assert canvas.result().data_ptr() == canvas.result().data_ptr()
    prepared, _ = Look.parse("tiled:16:4").prepare(pixels := read_image(samples[2].image))
    assert prepared.data_ptr() == pixels.ctypes.data


def test_seconds_are_shares_of_batches_and_ones_own_merging(samples, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("hrbench.engine.device_timer.time.perf_counter", lambda: float(next(ticks)))
    method = Probe()
    found = list(predict(method, samples, View.parse("tiled:16:4"), CPU, batch_size=5))
    # 2 + 1 + 2 of 9 | 5 of 9 | 2 of 9 + 3; a batch and a merging take one tick each
    assert [item.seconds for item in found] == pytest.approx([2 / 5 + 1, 1 / 5 + 1, 9 / 5 + 1, 3 / 5 + 1])


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (7, 90), (90, 7), (12, 12)])
def test_padding_is_cut_away_axis_by_axis_and_the_map_is_the_same(size):
    placement = Look.parse("whole:16:square").place(size)
    tile = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    canvas = MapCanvas(placement, CPU)
    canvas.add(0, tile)
    side, (left, _, top, _) = max(size), placement.pad
    square = torch.nn.functional.interpolate(tile[None, None], (side, side), mode="bilinear")[0, 0]
    expected = square[top : top + size[0], left : left + size[1]]
    torch.testing.assert_close(canvas.result(), expected, rtol=0, atol=1e-6)
    assert torch.equal(canvas.result(padded=True), square)


def test_a_method_may_finish_the_padded_square(samples):
    view = "whole:16+whole:16:square+tiled:16:4"

    class Finishing(Probe):
        seen: ClassVar[list[torch.Size]] = []

        def finish(self, maps):
            self.seen.append(maps["anomaly"].shape)
            return maps["anomaly"].cumsum(dim=0)  # what lies above an image counts in it

    class Padded(Finishing):
        finish_padded = True
        seen: ClassVar[list[torch.Size]] = []

    padded, plain = ([*predict(cls(), samples, View.parse(view), CPU)] for cls in (Padded, Finishing))
    for size, own, other in zip(SIZES, padded, plain, strict=True):
        finals = finish_looks(Padded(), own)
        assert [tuple(final.shape) for final in finals] == [size] * 3
        assert Padded.seen[-3:] == [size, (max(size), max(size)), size]
        others = finish_looks(Finishing(), other)
        assert Finishing.seen[-3:] == [size] * 3
        above = max(0, size[1] - size[0]) // 2
        square = own.looks[1]["anomaly"]
        assert torch.equal(finals[0], others[0])
        assert torch.equal(finals[2], others[2])
        assert torch.equal(
            finals[1], square.cumsum(dim=0)[above : above + size[0], (max(size) - size[1]) // 2 :][:, : size[1]]
        )
        fused = finish(Padded(), own, Fusion(("",) * 3, (0.0,) * 3, (1.0,) * 3))
        assert fused.scores().shape == own.decision.shape == size
