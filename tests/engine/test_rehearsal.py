"""What a rehearsal does, by methods that count; and what it tells, by times that are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import BUILT_IN, SMALL_METHODS
from torch import nn

from hrbench import HrbenchError, create_method, load_dataset
from hrbench.engine import device, rehearsal
from hrbench.engine.expected import Expected, JobInputs, Work, job_seconds
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.rehearsal import ENOUGH_STEPS, rehearse
from hrbench.engine.training import seeded
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
    for module in (rehearsal, device):
        monkeypatch.setattr(module, "perf_counter", lambda: found.now)
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
    assert method.done["step"] == 2 * (1 + ENOUGH_STEPS)
    assert found.fit_seconds(36) == found.fit_seconds(360) == pytest.approx(5.0)
    assert found.reason == ""


@pytest.mark.parametrize(("step", "taken"), [(0.3, 5), (5.0, 2), (1000.0, 1)])
def test_the_slower_a_step_the_fewer_are_taken(bolt, clock, step, taken):
    method = Worker(clock, step=step)
    found = rehearsed(method, bolt)
    assert method.done["step"] == 2 * taken
    assert found.fit_seconds(36) == pytest.approx(5000 * step)


def test_nothing_is_held_out(bolt, clock):
    class Calibrating(Worker):
        def calibrate(self, maps):
            raise AssertionError("a job does not ask for it")

    found = rehearsed(Calibrating(clock, step=0.5, predicted=0.25), bolt, held_out=0)
    assert found.fit_seconds(36) == pytest.approx(5000 * 0.5)
    assert found.predict_seconds(8) == pytest.approx(8 * 0.25)
    assert found.reason == ""


def test_no_more_steps_than_the_method_wants(bolt, clock):
    method = Worker(clock, step=0.001, steps=3)
    assert rehearsed(method, bolt).fit_seconds(36) == pytest.approx(0.003)
    assert method.done["step"] == 2 * 3


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
    assert method.done["extract"] <= 8 * 2 * (1 + ENOUGH_STEPS)
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
    assert method.done["item"] == 2 * 2 * (1 + 3)
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
    assert found.seconds_per_predicted_input == pytest.approx(0.01 + 0.06 / 6, rel=0.2)  # images are finished later
    assert found.predict_seconds(1000) == pytest.approx(1000 * found.seconds_per_predicted_input)
    assert method.done["predicted"] <= (1 + ENOUGH_STEPS) * 6


@pytest.mark.parametrize(("predicted", "batches"), [(0.06, 6), (0.5, 2), (4.0, 2), (50.0, 1)])
def test_slow_prediction_ends_early(bolt, clock, predicted, batches):
    method = Worker(clock, predicted=predicted)
    found = rehearsed(method, bolt)
    assert method.done["predicted"] == 4 * batches
    assert found.seconds_per_predicted_input == pytest.approx(predicted)
    assert "predict_inputs" not in vars(method)


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
    assert found.works is found.fit_seconds(36) is None
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


@pytest.mark.parametrize("name", BUILT_IN)
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


def expected(*works, each=0.1, passes=1):
    return Expected(list(works), each, "", calibrates=passes > 1, passes=passes, host_mib=100.0, peak_device_mib=None)


def test_what_is_kept_is_done_once_per_input():
    steps = Work(10, per_input=2, seconds=0.1)
    decoding = Work(40, per_input=8, seconds=0.5, once=True)
    assert expected(steps, decoding).fit_seconds(100) == pytest.approx(210 * 0.1 + 100 * 0.5)
    assert expected(replace(decoding, per_input=0)).fit_seconds(100) == pytest.approx(40 * 0.5)


def test_memory_grows_by_what_a_fit_keeps():
    found = expected(Work(1000, seconds=0.1), Work(1000, once=True, nbytes=2 * 2**20))
    assert found.peak_host_mib(100) == pytest.approx(100 + 200)
    assert found.peak_host_mib(900) == pytest.approx(100 + 1024)  # no more than there is room for


def test_a_job_is_its_fit_and_what_it_predicts(bolt):
    inputs = JobInputs.of(bolt.train[2:], bolt.train[:2], bolt.test, TILES)
    assert inputs == JobInputs(36, 12, 48)
    assert job_seconds(expected(Work(30, seconds=0.2), passes=2), inputs) == pytest.approx(
        30 * 0.2 + (2 * 12 + 48) * 0.1
    )


def test_decoding_is_measured_apart_from_steps(bolt, clock, monkeypatch):
    read = ViewedNormals._prepared

    def slow(self, index):
        if index not in self._cache:
            clock.work(0.6)
        return read(self, index)

    monkeypatch.setattr(ViewedNormals, "_prepared", slow)
    found = rehearsed(Worker(clock, step=0.1), bolt)
    assert found.fit_seconds(36) == pytest.approx(5000 * 0.1 + 6 * 0.6)
    assert found.peak_host_mib(36000) - found.host_mib == pytest.approx(20000 * 3 * 48 * 70 / 6 / 2**20)


def test_a_rehearsal_shows_no_progress(bolt, clock, caplog):
    with caplog.at_level("DEBUG", "hrbench"):
        rehearsed(Worker(clock, step=0.1), bolt)
    assert not caplog.records
