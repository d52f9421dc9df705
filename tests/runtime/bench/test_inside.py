import numpy as np
import pytest

from s2ap_defend import DefendedClassifier
from s2ap_defend.bench.inside import Inside, covered_ns
from s2ap_defend.bench.rounds import alternate


@pytest.mark.parametrize(
    ("spans", "covered"),
    [([], 0), ([(5, 9)], 4), ([(7, 9), (1, 4)], 5), ([(0, 10), (2, 5)], 10), ([(0, 4), (2, 7), (7, 8)], 8)],
)
def test_engines_that_run_at_the_same_time_count_once(spans, covered):
    assert covered_ns(spans) == covered


@pytest.mark.parametrize("executor", ["whole", "staged", "at_once"])
def test_time_inside_engines_is_a_part_of_the_very_calls_that_were_timed(executor, golden, random_images):
    classifier = DefendedClassifier.load(golden / "version-4.onnx", device="cpu", threads=1, executor=executor)
    observed = Inside(classifier, "processor")
    before = observed(random_images[:4])
    calls = [lambda part=part: observed(part) for part in (random_images[:1], random_images[:16])]
    seconds = alternate({"file": calls}, 3, clock="processor")["file"]
    spent = observed.take(*seconds.shape)
    assert spent.inside.shape == (3, 2)
    assert (np.stack([spent.inside, spent.before, spent.behind]) > 0).all()
    assert (spent.inside + spent.before + spent.behind < seconds).all()
    assert (spent.runs == 1).all() == (executor != "staged")
    classifier.executor.observe(None)
    np.testing.assert_array_equal(classifier(random_images[:4]).label, before.label)
    assert observed.take(0, 1).inside.size == 0
