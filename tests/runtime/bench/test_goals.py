from dataclasses import replace

import numpy as np
import pytest

from s2ap_defend.bench.ceilings import Ceilings
from s2ap_defend.bench.goals import elsewhere, goals, not_judged
from s2ap_defend.bench.measured import BARE, BatchTimes, Measured, OutsideParts
from s2ap_defend.bench.report import where_time_goes
from s2ap_defend.bench.rounds import Latency
from s2ap_defend.bench.steady import Steady
from s2ap_defend.bench.traffic import Traffic
from s2ap_defend.bench.work import Work
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER

CLEAN = Traffic(np.zeros((1, 1, 8, 8), np.float32), "clean", "a test")


def times(batch, cost, *, outside=(0.1, 0.01), beyond=(0.1, 0.01), executor="whole"):
    found = Latency(1.0, 1.0, None, 1.0, cost, 2.0)
    overheads = [{executor: value} for value in (*outside, *beyond)]  # ms and share of each
    parts = {executor: OutsideParts(0.02, 0.05, 0.03, 4.0)}
    return BatchTimes(batch, 20, 3.0, 0.0, 1.0, found, {executor: found}, (), 0.5, 2.0, *overheads, parts)


def measured(*batches, flops=25_000_000, slope=1.0, **changes):
    found = Measured(
        provider="CPUExecutionProvider",
        clock="wall",
        rounds=20,
        waited=None,
        batches=batches,
        work={CLASSIFIER: Work(flops, 0, 0)},
        ceilings=Ceilings(1.0, 1.0),
        exponents={BARE: 2.0, "whole": slope, "staged": slope},
        memory={},
    )
    return replace(found, **changes)


def judged(found, traffic=CLEAN, purify="always"):
    return {goal.what: (goal.most, goal.holds) for goal in goals(found, traffic, purify)}


@pytest.mark.parametrize(("purify", "most"), [("always", 6.0), ("suspicious", 3.0), ("off", 3.0)])
def test_cost_is_judged_by_when_images_are_purified_and_may_be_more_for_one_image(purify, most):
    found = judged(measured(times(1, 1.3 * most), times(64, 1.01 * most)), purify=purify)
    assert found[f"batch 1: cost with purification '{purify}'"] == (pytest.approx(1.3 * most), True)
    assert found[f"batch 64: cost with purification '{purify}'"] == (most, False)


def test_a_small_classifier_may_cost_more_at_64_and_is_not_judged_alone():
    found = judged(measured(times(1, 80.0), times(64, 15.0), flops=1_000_000))
    assert [name for name in found if "cost" in name] == ["batch 64: cost with purification 'always'"]
    assert found["batch 64: cost with purification 'always'"] == (15.0, True)


def test_time_outside_the_engines_is_judged_in_milliseconds_for_one_image_and_in_shares_for_64():
    late = {"executor": "staged", "beyond": (9.0, 0.9)}
    found = judged(measured(times(1, 1.0, outside=(0.151, 0.9), **late), times(64, 1.0, outside=(9.0, 0.05), **late)))
    assert found["batch 1: outside the engines"] == (0.150, False)
    assert found["batch 64: outside the engines"] == (0.05, True)
    assert not any("beyond" in name for name in found)


def test_of_the_whole_file_whose_engine_decides_time_beyond_the_stages_is_judged_as_well():
    found = judged(measured(times(1, 1.0, beyond=(0.151, 0.9)), times(64, 1.0, beyond=(9.0, 0.05))))
    assert found["batch 1: outside the engines"] == (0.150, True)
    assert found["batch 1: beyond the stages"] == (0.150, False)
    assert found["batch 64: beyond the stages"] == (0.05, True)


def test_where_the_time_goes_is_said_of_what_is_missed(golden):
    manifest = open_model_file(golden / "version-4.onnx").manifest
    found = measured(times(64, 1.0, outside=(0.1, 0.06), beyond=(0.1, 0.06)))
    said = {goal.what: where_time_goes(found, goal, manifest) for goal in goals(found, CLEAN, "off") if not goal.holds}
    assert said == {
        "batch 64: outside the engines": (
            "20 us before the first run of an engine, 50 us between 4 runs, 30 us behind the last"
        ),
        "batch 64: beyond the stages": "the test, and what leads images from stage to stage, in its engine",
    }


def test_growth_with_the_batch_is_judged_of_the_defended_file_alone():
    found = judged(measured(times(1, 1.0), slope=1.06))
    assert found["exponent of time in batch"] == (1.05, False)
    assert {goal.executor for goal in goals(measured(times(1, 1.0)), CLEAN, "off")} == {"whole"}


@pytest.mark.parametrize(
    ("changes", "traffic", "reason"),
    [
        ({}, replace(CLEAN, kind="attacked"), "this was attacked traffic"),
        ({}, replace(CLEAN, typical=False), "this was uniform noise"),
        ({"provider": "CUDAExecutionProvider"}, CLEAN, "this was clean traffic on CUDAExecutionProvider"),
        ({"rounds": 5}, CLEAN, "medians are of 5 rounds; they count from 20 on"),
        ({"batches": (times(1, 1.0),)}, CLEAN, "a batch of 64 was not measured"),
    ],
)
def test_what_cannot_be_judged_is_said_with_the_reason(changes, traffic, reason):
    found = measured(times(1, 1.0), times(64, 1.0), **changes)
    assert any(reason in one for one in not_judged(found, traffic))
    costs = [name for name in judged(found, traffic) if "cost" in name]
    assert bool(costs) == (traffic is CLEAN and "provider" not in changes)


def test_all_is_judged_where_all_was_measured():
    assert not_judged(measured(times(1, 1.0), times(64, 1.0)), CLEAN) == []


def test_memory_and_verdicts_over_many_batches_are_judged_where_they_were_measured():
    at_most_a_megabyte = Steady(10_000, 0, 8, 400, 1, 50_000_000, 51_000_000)
    found = judged(measured(times(1, 1.0), steady={"whole": at_most_a_megabyte}))
    assert found["memory grown over 10,000 batches in a row, after the first tenth"] == (1.0, True)
    assert found["other verdicts among 10,000 batches in a row"] == (0, True)
    assert found["other verdicts among 400 batches of 8 threads at once"] == (0, False)
    more = measured(times(1, 1.0), steady={"whole": replace(at_most_a_megabyte, late_bytes=51_000_001)})
    assert not judged(more)["memory grown over 10,000 batches in a row, after the first tenth"][1]


@pytest.mark.parametrize("changes", [{"batches": 9_999}, {"late_bytes": None}])
def test_memory_over_few_batches_is_not_judged_but_verdicts_are(changes):
    few = replace(Steady(10_000, 0, 8, 400, 0, 1, 1), **changes)
    found = measured(times(1, 1.0), times(64, 1.0), steady={"whole": few})
    assert len([name for name in judged(found) if "verdicts" in name]) == 2
    assert not any("memory" in name for name in judged(found))
    assert "it counts from 10,000 on" in not_judged(found, CLEAN)[0]


def test_what_another_command_measures_is_said_with_the_command():
    said = elsewhere(measured(times(1, 1.0)))
    assert [one.rpartition(": ")[2] for one in said] == [
        "--soak 10000",
        "benchmarks/latency.py of the source",
        "benchmarks/peers.py of the source",
    ]
    assert len(elsewhere(measured(times(1, 1.0), steady={"whole": Steady(1, 0, 8, 400, 0, 1, 1)}))) == 2
