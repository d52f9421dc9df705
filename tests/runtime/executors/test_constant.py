"""Asking every stage about every image: the bits of the executor that stops early, and work that tells nothing."""

import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, EngineError, Verdicts
from s2ap_defend.executors.constant import ConstantExecutor
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.starters import BoundStages, CpuStages, StageStarter
from s2ap_defend.model_file import ModelFile


@pytest.mark.parametrize(
    "starter", [CpuStages(1), CpuStages(2), BoundStages("cpu", sizes=(32,))], ids=["one thread", "two", "buffers"]
)
def test_every_stage_is_asked_about_every_image_and_every_output_has_the_same_bits(
    file: ModelFile, unsure_images: np.ndarray, starter: StageStarter
) -> None:
    staged = StagedExecutor.with_starter(file, starter)
    expected = staged.run(unsure_images[:32])
    assert len(np.unique(expected.members_used)) > 1
    constant = ConstantExecutor(StagedExecutor.with_starter(file, starter))
    found = constant.run(unsure_images[:32])
    for name in Verdicts.FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert {time.rows for time in constant.times().values()} == {32}


def test_its_runs_are_reported_stage_by_stage_until_nobody_asks(file: ModelFile, unsure_images: np.ndarray) -> None:
    constant, reported = ConstantExecutor(StagedExecutor.with_starter(file, CpuStages(1))), []
    constant.observe(lambda *run: reported.append(run))
    constant.run(unsure_images[:1])
    assert sorted(name for name, _, _ in reported) == sorted(constant.times())
    assert all(began < ended for _, began, ended in reported)
    constant.observe(None)
    constant.run(unsure_images[:1])
    assert len(reported) == len(constant.times())


def test_constant_time_is_of_executors_that_can_take_it(tiny_model_path: Path) -> None:
    found = {
        name: DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, executor=name, constant_time=True)
        for name in (None, "staged", "at_once")
    }
    assert [type(one.executor).__name__ for one in found.values()] == [*["ConstantExecutor"] * 2, "AtOnceExecutor"]
    with pytest.raises(EngineError, match=r"'whole' cannot take constant time: .*; take 'staged' or 'at_once'"):
        DefendedClassifier.load(tiny_model_path, device="cpu", executor="whole", constant_time=True)


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
