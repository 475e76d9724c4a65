"""What a rehearsal does, by methods that count; and what it tells, by times that are made up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import SMALL_METHODS
from torch import nn

from hrbench import HrbenchError, create_method, list_methods, load_dataset
from hrbench.engine import expected as arithmetic
from hrbench.engine import rehearsal
from hrbench.engine.expected import Expected, JobInputs, Source, Stage, job_seconds
from hrbench.engine.rehearsal import ENOUGH_STEPS, rehearse
from hrbench.engine.training import ViewedNormals, seeded
from hrbench.engine.views import View
from hrbench.method import Method, Prediction

CPU = torch.device("cpu")
TILES = View.parse("tiled:32:8")  # six of each image


@pytest.fixture
def bolt(tree):
    return load_dataset("folder", tree).categories[0]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but when a method works: ``clock.work(seconds)``."""

    class Clock:
        now = 100.0

        def work(self, seconds):
            self.now += seconds

    found = Clock()
    monkeypatch.setattr(rehearsal, "perf_counter", lambda: found.now)
    return found


class Worker(Method):
    """Takes the seconds that it is told for each step, item, extracted and predicted input; counts them."""

    def __init__(self, clock, *, step=0.0, item=0.0, extract=0.0, predicted=0.0, finished=0.0, steps=5000, epochs=0):
        super().__init__()
        self.clock, self.steps, self.epochs = clock, steps, epochs
        self.costs = {
            "step": step, "item": item, "extract": extract, "predicted": predicted, "finished": finished,
        }  # fmt: skip
        self.done = dict.fromkeys(self.costs, 0)
        self.weight = nn.Parameter(torch.zeros(()))

    def work(self, what, times=1):
        self.done[what] += times
        self.clock.work(self.costs[what] * times)

    def extract(self, batch):
        self.work("extract", len(batch))
        return [batch.mean(dim=(2, 3))]

    def loss(self, inputs):
        self.work("step")
        return self.weight.square()

    def train_on(self, inputs, context, steps):
        optimizer = torch.optim.SGD([self.weight], 0.1)
        return context.train(inputs, self.loss, optimizer, steps=steps, batch_size=4)

    def fit(self, normals, context):
        assert self.training
        steps = self.steps + self.epochs * (len(normals) // 4)
        assert self.train_on(normals, context, steps)

    def predict(self, batch):
        assert not self.training
        self.work("predicted", len(batch))
        return Prediction({"map": batch.mean(dim=1)})

    def finish(self, maps):
        self.work("finished")
        return maps["map"]


def rehearsed(method, category, *, held_out=2, batch_size=4, view=TILES):
    train = category.train
    return rehearse(method, train[held_out:], train[:held_out], view, seed=3, device=CPU, batch_size=batch_size)


def test_a_stage_takes_few_steps_and_the_first_does_not_count(bolt, clock):
    class SlowToStart(Worker):
        def loss(self, inputs):
            self.clock.work(9.0 if not self.done["step"] else 0.0)
            return super().loss(inputs)

    method = SlowToStart(clock, step=0.001)
    found = rehearsed(method, bolt)
    assert method.done["step"] == 1 + ENOUGH_STEPS
    assert found.inputs == 6 * 6
    assert found.step_seconds == pytest.approx(5000 * 0.001)
    assert found.fit_seconds(36) == found.fit_seconds(360) == pytest.approx(5.0)
    assert found.reason == ""


@pytest.mark.parametrize(("step", "taken"), [(0.3, 1 + 4), (5.0, 2), (1000.0, 1)])
def test_the_slower_a_step_the_fewer_are_taken(bolt, clock, step, taken):
    method = Worker(clock, step=step)
    found = rehearsed(method, bolt)
    assert method.done["step"] == taken
    assert found.fit_seconds(36) == pytest.approx(5000 * step)


def test_no_more_steps_than_the_method_wants(bolt, clock):
    method = Worker(clock, step=0.001, steps=3)
    assert rehearsed(method, bolt).fit_seconds(36) == pytest.approx(0.003)
    assert method.done["step"] == 3


def test_epochs_grow_with_the_inputs(bolt, clock):
    found = rehearsed(Worker(clock, step=0.5, steps=0, epochs=10), bolt)
    assert found.fit_seconds(36) == pytest.approx(0.5 * 10 * 9)
    assert found.fit_seconds(3600) == pytest.approx(0.5 * 10 * 900)


def test_kept_features_are_computed_once_per_input(bolt, clock):
    class Extracting(Worker):
        def fit(self, normals, context):
            features = context.features(normals, self.extract)
            assert len(features) == len(normals) >= 36
            self.train_on(features, context, self.steps)

    method = Extracting(clock, step=0.01, extract=0.02, steps=40)  # 160 inputs
    found = rehearsed(method, bolt)
    assert method.done["extract"] <= 8 * 7
    assert found.fit_seconds(36) == pytest.approx(40 * 0.01 + 36 * 0.02)
    assert found.fit_seconds(100) == pytest.approx(40 * 0.01 + 100 * 0.02)
    assert found.fit_seconds(160) == pytest.approx(40 * 0.01 + 160 * 0.02)
    assert found.fit_seconds(1000) == pytest.approx(40 * 0.01 + 160 * 0.02)  # less than an epoch: those that are drawn


def test_what_is_tracked_grows_with_the_inputs_and_ends_early(bolt, clock):
    class Tracking(Worker):
        def fit(self, normals, context):
            for x in context.track(normals, total=len(normals)):
                assert x.shape == (3, 32, 32)
                self.work("item")
            for _ in normals:  # without a word to the context
                self.work("item")

    method = Tracking(clock, item=0.4)
    found = rehearsed(method, bolt)
    counting = 2
    assert method.done["item"] == 2 * (1 + 3) + counting
    assert found.fit_seconds(36) == pytest.approx(2 * 36 * 0.4)
    assert found.fit_seconds(72) == pytest.approx(2 * 72 * 0.4)


def test_a_method_may_look_at_one_input_only(bolt, clock):
    class Peeking(Worker):
        def fit(self, normals, context):
            next(iter(normals))
            self.work("item")
            super().fit(normals, context)

    found = rehearsed(Peeking(clock, item=7.0, step=0.1), bolt)
    assert found.fit_seconds(36) == found.fit_seconds(72) == pytest.approx(5000 * 0.1)


def test_held_out_inputs_grow_in_proportion(bolt, clock):
    class HeldOut(Worker):
        def fit(self, normals, context):
            assert len(context.held_out) * 3 == len(normals)
            for _ in context.track(context.held_out, total=len(context.held_out)):
                self.work("item")

    found = rehearsed(HeldOut(clock, item=0.5), bolt)
    assert found.fit_seconds(36) == pytest.approx(12 * 0.5)
    assert found.fit_seconds(360) == pytest.approx(120 * 0.5)


def test_prediction_counts_all_but_the_first_batch(bolt, clock):
    class SlowToPredict(Worker):
        def predict(self, batch):
            self.clock.work(9.0 if not self.done["predicted"] else 0.0)
            return super().predict(batch)

    method = SlowToPredict(clock, predicted=0.01, finished=0.06)
    found = rehearsed(method, bolt, batch_size=6)
    assert found.seconds_per_predicted_input == pytest.approx(0.01 + 0.06 / 6, rel=0.2)  # one image more is finished
    assert found.predict_seconds(1000) == pytest.approx(1000 * found.seconds_per_predicted_input)
    assert method.done["predicted"] == 9 * 6


@pytest.mark.parametrize(("predicted", "batches"), [(0.06, 6), (0.5, 2), (4.0, 2), (50.0, 1)])
def test_slow_prediction_ends_early(bolt, clock, predicted, batches):
    method = Worker(clock, predicted=predicted)
    found = rehearsed(method, bolt)
    assert method.done["predicted"] == 4 * batches
    assert found.seconds_per_predicted_input == pytest.approx(predicted)
    assert "predict_inputs" not in vars(method)


@pytest.mark.parametrize(("predicted", "batches", "images"), [(0.2, 4, 1), (1.5, 3, 0)])
def test_an_image_of_many_tiles_is_finished_unless_it_takes_too_long(bolt, clock, predicted, batches, images):
    method = Worker(clock, predicted=predicted)
    found = rehearsed(method, bolt, view=View.parse("tiled:16:0"))  # 15 of each image
    assert method.done["predicted"] == 4 * batches
    assert method.done["finished"] == images
    assert found.seconds_per_predicted_input == pytest.approx(predicted)


def test_calibrate_sees_merged_maps_and_counts_as_a_pass(bolt, clock):
    class Calibrated(Worker):
        shapes = ()

        def calibrate(self, maps):
            self.shapes = [item["map"].shape for item in maps]

    method = Calibrated(clock)
    found = rehearsed(method, bolt)
    assert method.shapes == [(48, 70)]
    assert found.passes == 2
    assert rehearsed(Worker(clock), bolt).passes == 1
    fused = rehearsed(Calibrated(clock), bolt, view=View.parse("tiled:32:8+whole:32"))
    assert fused.passes == 3


def test_an_exception_of_the_method_is_the_reason(bolt, clock):
    class Clustering(Worker):
        def fit(self, normals, context):
            raise ValueError("7 samples for 30 clusters\nand more")

    found = rehearsed(Clustering(clock, predicted=0.01), bolt)
    assert found.stages is found.step_seconds is found.fit_seconds(36) is None
    assert found.reason == "ValueError: 7 samples for 30 clusters"
    assert found.predict_seconds(100) == pytest.approx(1.0)
    assert job_seconds(found, JobInputs(36, 12, 30)) is None


def test_a_method_that_cannot_predict_yet_has_no_time_for_it(bolt, clock):
    class Empty(Worker):
        def predict(self, batch):
            raise RuntimeError("the memory is empty")

    found = rehearsed(Empty(clock, step=0.1), bolt)
    assert found.predict_seconds(10) is None
    assert found.fit_seconds(36) == pytest.approx(500.0)
    assert found.reason == "RuntimeError: the memory is empty"


def test_an_error_of_the_user_is_raised(bolt, clock):
    with pytest.raises(HrbenchError, match="steps is 0, expected at least 1"):
        rehearsed(Worker(clock, steps=0), bolt)

    class TooLarge(Worker):
        def fit(self, normals, context):
            raise torch.cuda.OutOfMemoryError

    with pytest.raises(HrbenchError, match="memory of cpu is too small to fit TooLarge with inputs of 32x32"):
        rehearsed(TooLarge(clock), bolt)


def test_a_second_fit_that_fails_changes_nothing(bolt, clock):
    class Once(Worker):
        fitted = False

        def fit(self, normals, context):
            if self.fitted:
                raise HrbenchError("fitted before")
            self.fitted = True
            super().fit(normals, context)

    found = rehearsed(Once(clock, step=0.1), bolt)
    assert found.fit_seconds(36) == found.fit_seconds(72) == pytest.approx(500.0)
    assert found.reason == ""


@pytest.mark.parametrize("name", list_methods())
def test_methods_can_be_rehearsed_and_leave_no_trace(bolt, name):
    with seeded(0):
        method = create_method(name, **SMALL_METHODS.get(name, {"preset": "demo"}))
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - the global state is what must not change
    before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    found = rehearsed(method, bolt, view=View.parse("whole:64"), batch_size=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == str(numpy_before)  # noqa: NPY002
    assert not torch.are_deterministic_algorithms_enabled()
    assert found.reason == ""
    assert found.fit_seconds(6) > 0
    assert found.fit_seconds(600) >= found.fit_seconds(6)
    assert found.predict_seconds(10) > 0
    assert found.peak_host_mib(6) > 50
    assert found.peak_device_mib is None
    assert job_seconds(found, JobInputs(6, 2, 8)) > found.fit_seconds(6)


def expected(*stages, inputs=100, beside=False, **others):
    values = {
        "reason": "", "seconds_per_predicted_input": 0.1, "calibrates": False, "looks": 1,
        "fit_host_mib": 100.0, "predict_host_mib": 150.0, "peak_device_mib": None,
    }  # fmt: skip
    return Expected(stages=stages, inputs=inputs, loads_beside=beside, **{**values, **others})


def test_images_are_decoded_once_where_they_fit_into_the_cache(monkeypatch):
    monkeypatch.setattr(arithmetic, "CACHE_BYTES", 1000)
    source = Source("fit", load_seconds=0.5, load_bytes=10)
    stage = Stage("fit", 50, 0.0, 0.1, 4, source)
    found = expected(stage, stage)
    assert found.fit_seconds(100) == pytest.approx(2 * 5 + 100 * 0.5)
    assert found.fit_seconds(101) == pytest.approx(2 * (5 + 200 * 0.5))
    short = expected(Stage("fit", 5, 0.0, 0.1, 4, source), stage)
    assert short.fit_seconds(100) == pytest.approx(0.5 + 5 + 100 * 0.5)


def test_images_are_decoded_while_a_gpu_works(monkeypatch):
    monkeypatch.setattr(arithmetic, "CACHE_BYTES", 0)
    stage = Stage("fit", 50, 0.0, 0.1, 4, Source("fit", load_seconds=0.5, load_bytes=10))
    slow = Stage("fit", 50, 0.0, 9.0, 4, stage.source)
    assert expected(stage, slow, beside=True).fit_seconds(100) == pytest.approx(200 * 0.5 + 50 * 9)


def test_features_without_room_are_computed_for_each_batch(monkeypatch):
    monkeypatch.setattr(arithmetic, "DISK_BYTES", 1000)
    stage = Stage("fit", 50, 0.0, 0.0, 4, Source("fit", features=1, extract_seconds=0.5, feature_bytes=10))
    assert expected(stage, stage).fit_seconds(100) == pytest.approx(100 * 0.5)
    assert expected(stage, stage).fit_seconds(101) == pytest.approx(2 * 200 * 0.5)
    half = Stage("fit", 50, 0.0, 0.0, 4, Source("held-out", 0.5, features=1, extract_seconds=0.5, feature_bytes=10))
    assert expected(half).fit_seconds(150) == pytest.approx(75 * 0.5)


def test_memory_grows_by_what_a_fit_keeps(monkeypatch):
    mib = 2**20
    monkeypatch.setattr(arithmetic, "CACHE_BYTES", 500 * mib)
    monkeypatch.setattr(arithmetic, "MEMORY_BYTES", 300 * mib)
    source = Source("fit", load_bytes=2 * mib, features=1, feature_bytes=3 * mib)
    found = expected(Stage("fit", 1000, 0.0, 0.1, 4, source))
    assert found.peak_host_mib(5) == 150.0
    assert found.peak_host_mib(100) == pytest.approx(100 + 200 + 300)
    assert found.peak_host_mib(200) == pytest.approx(100 + 400)  # the features are in a file
    assert found.peak_host_mib(1000) == pytest.approx(100 + 500)


def test_a_job_is_its_fit_and_what_it_predicts(bolt):
    found = expected(Stage("fit", 30, 0.0, 0.2), calibrates=True)
    inputs = JobInputs.of(bolt.train[2:], bolt.train[:2], bolt.test, TILES)
    assert inputs == JobInputs(36, 12, 48)
    assert job_seconds(found, inputs) == pytest.approx(30 * 0.2 + (2 * 12 + 48) * 0.1)


def test_decoding_is_measured_apart_from_steps(bolt, clock, monkeypatch):
    read = rehearsal.ViewedNormals._prepared
    reads = itertools.count()

    def slow(self, index):
        if index not in self._cache:
            next(reads)
            clock.work(0.6)
        return read(self, index)

    monkeypatch.setattr(ViewedNormals, "_prepared", slow)
    found = rehearsed(Worker(clock, step=0.1), bolt)
    (stage,) = found.stages
    assert next(reads) == 1 + 4
    assert stage.seconds == pytest.approx(0.1)
    assert stage.source.load_seconds == pytest.approx(0.6 / 6)
    assert stage.source.load_bytes == 3 * 48 * 70 / 6
    assert found.fit_seconds(36) == pytest.approx(5000 * 0.1 + 6 * 0.6)
