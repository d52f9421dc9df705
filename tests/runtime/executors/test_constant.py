"""The executor of constant time: the same work for every image."""

import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from tests.runtime.executors.test_staged import assert_same

from s2ap_defend import DefendedClassifier, EngineError
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.model_file import ModelFile


def test_it_is_asked_for_by_name_and_the_whole_file_cannot_do_it(tiny_model_path: Path) -> None:
    constant = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, constant_time=True)
    images = np.random.default_rng(0).random((20, *constant.input_shape), dtype=np.float32)
    assert_same(constant(images), DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(images))
    with pytest.raises(EngineError, match="'whole' cannot take constant time"):
        DefendedClassifier.load(tiny_model_path, executor="whole", constant_time=True)


def test_the_same_is_called_for_every_image(file: ModelFile, unsure_images: np.ndarray) -> None:
    executor = StagedExecutor.of(file, device="cpu", threads=1)
    images = [image[None] for image in unsure_images if image.min() >= 0 and image.max() <= 1]  # others are no requests
    images = images[:24]
    verdicts = executor.run_all(np.concatenate(images))
    assert {time.rows for time in executor.times().values()} == {24}
    assert len(np.unique(verdicts.members_used)) >= 3
    assert 0 < verdicts.adversarial.mean() < 1
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event in {"call", "c_call"}:
            calls.append(getattr(argument, "__name__", frame.f_code.co_name))

    found = set()
    for image in images:
        calls.clear()
        sys.setprofile(note)
        try:
            executor.run_all(image)
        finally:
            sys.setprofile(None)
        found.add(tuple(calls))
    assert len(found) == 1
    assert len(calls) > 50
