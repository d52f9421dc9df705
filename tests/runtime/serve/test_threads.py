"""The number of CPU threads where nobody said: what is faster, measured."""

import logging

import numpy as np
import pytest

from s2ap_defend.executors.constant import ConstantExecutor
from s2ap_defend.serve import ServerConfig
from s2ap_defend.serve.threads import fastest, load_models

BATCHES = [np.zeros((rows, 1, 8, 8), np.float32) for rows in (1, 32)]


class Machine:
    """A clock, and models that take their time by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = 0

    def model(self, start_s: float, row_s: float):
        def run(images) -> None:
            self.runs += 1
            first = self.runs <= 4
            self.now += start_s + row_s * len(images) + 10.0 * first

        return run


@pytest.mark.parametrize(
    ("one", "two", "chosen"),
    [
        ((0.001, 0.001), (0.003, 0.0008), 1),  # a small network: handing over costs more than it saves
        ((0.001, 0.1), (0.002, 0.055), 2),
        ((0.001, 0.01), (0.001, 0.0098), 1),  # not worth a core
    ],
)
def test_the_faster_number_of_threads_is_taken_and_more_must_be_worth_it(one, two, chosen):
    machine = Machine()
    candidates = {1: machine.model(*one), 2: machine.model(*two)}
    assert fastest(candidates, BATCHES, clock=lambda: machine.now) == chosen


def test_a_server_measures_where_nobody_said_and_only_there(tiny_model_path, monkeypatch, caplog, random_images):
    monkeypatch.setattr("s2ap_defend.serve.threads.usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with caplog.at_level(logging.INFO):
        measured = load_models(ServerConfig(model=tiny_model_path, device="cpu"))[tiny_model_path.stem]
        assert f"tiny.onnx: {measured.threads} of 2 threads, which was measured to be faster" in caplog.text
        caplog.clear()
        said = load_models(ServerConfig(model=tiny_model_path, device="cpu", threads=1, constant_time=True))[
            tiny_model_path.stem
        ]
        assert isinstance(said.executor, ConstantExecutor)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        load_models(ServerConfig(model=tiny_model_path, device="cpu"))
        assert caplog.text == ""
    images = random_images[:8]
    np.testing.assert_array_equal(measured(images).label, said(images).label)
