"""Asking every stage about every image: the bits of the executor that stops early, and work that tells nothing."""

from pathlib import Path

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


def test_its_runs_are_told_stage_by_stage_until_nobody_asks(file: ModelFile, unsure_images: np.ndarray) -> None:
    constant, told = ConstantExecutor(StagedExecutor.with_starter(file, CpuStages(1))), []
    constant.observe(lambda *run: told.append(run))
    constant.run(unsure_images[:1])
    assert sorted(name for name, _, _ in told) == sorted(constant.times())
    assert all(began < ended for _, began, ended in told)
    constant.observe(None)
    constant.run(unsure_images[:1])
    assert len(told) == len(constant.times())


def test_constant_time_is_of_executors_that_can_take_it(tiny_model_path: Path) -> None:
    found = {
        name: DefendedClassifier.load(tiny_model_path, device="cpu", threads=1, executor=name, constant_time=True)
        for name in (None, "staged", "at_once")
    }
    assert [type(one.executor).__name__ for one in found.values()] == [*["ConstantExecutor"] * 2, "AtOnceExecutor"]
    with pytest.raises(EngineError, match=r"'whole' cannot take constant time: .*; take 'staged' or 'at_once'"):
        DefendedClassifier.load(tiny_model_path, device="cpu", executor="whole", constant_time=True)
