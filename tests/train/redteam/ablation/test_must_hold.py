"""What must hold of a file, decided by figures that are known."""

import numpy as np
import pytest

from s2ap_train.calibration.flops import StageFlops
from s2ap_train.redteam.ablation.must_hold import must_hold
from s2ap_train.redteam.ablation.names import CONFIDENCE, PRUNED
from s2ap_train.redteam.rows import Comparison, Requirement
from s2ap_train.statistics.paired import paired_difference

CHEAP = StageFlops(purifier=0, classifier=1000, members=np.array([250, 200, 100]))


def pair(baseline, measure, *, gained=0, lost=0, samples=1000):
    """The file against a baseline: so many images gained and lost, half of the others right in both."""
    row = np.arange(samples)
    both = row < (samples - gained - lost) // 2
    return Comparison(
        baseline, measure, paired_difference(both | (row >= samples - lost), both | ((row - both.sum()) < gained))
    )


def pairs(label, confidence=(20, 0), clean=(0, 0), samples=1000):
    """(gained, lost) in label, in right-or-flagged against the least confident, and without attack."""
    found = [(PRUNED, "label right", label), (CONFIDENCE, "right or flagged", confidence)]
    found.append((PRUNED, "clean accuracy", clean))
    return [pair(name, what, gained=g, lost=lost, samples=samples) for name, what, (g, lost) in found]


def line(lines: tuple[Requirement, ...], start: str) -> Requirement:
    return next(one for one in lines if one.line.startswith(start))


def test_the_pairs_of_this_file_are_what_they_say():
    effect = pair(PRUNED, "label right", gained=20, lost=5).effect
    assert (effect.gained, effect.lost, effect.samples) == (20, 5, 1000)


@pytest.mark.parametrize(
    ("label", "samples", "holds"),
    [
        ((6, 0), 1000, True),  # p = 2 / 2^6 = .03
        ((5, 0), 1000, False),  # .06, and images enough
        ((5, 0), 150, None),  # .06, and too few to tell
        ((3, 3), 150, False),  # nothing gained
        ((0, 6), 150, False),
    ],
)
def test_a_jury_that_answers_must_be_above_its_first_juror_beyond_noise(label, samples, holds):
    found = line(must_hold("robust", pairs(label, samples=samples), 3.0, CHEAP), "label right: above")
    assert found.holds is holds
    assert found.found["difference"] == pytest.approx((label[0] - label[1]) / samples)
    assert f"{samples} images" in found.said
    # Connor for 5 gained of 150: (1.96 + .8416 sqrt(1 - 1/30))^2 * 30 = 233
    assert ("about 230 images" in found.said) == (holds is None)


@pytest.mark.parametrize(
    ("clean", "samples", "holds"),
    [
        ((16, 6), 1000, False),  # 1.0 points, p = .052
        ((17, 6), 1000, True),  # 1.1, .035
        ((6, 0), 1000, False),  # .6, beyond noise but no point
        ((6, 0), 600, True),  # 1.0
        ((5, 0), 400, None),  # 1.25, p = .06
        ((0, 2), 400, False),
        ((0, 0), 100, False),
    ],
)
def test_a_mix_must_gain_a_point_of_clean_accuracy(clean, samples, holds):
    found = line(must_hold("mixed", pairs((0, 0), clean=clean, samples=samples), 3.0, CHEAP), "clean accuracy: 1 point")
    assert found.holds is holds


@pytest.mark.parametrize(("label", "holds"), [((0, 0), True), ((3, 2), True), ((2, 7), None), ((0, 6), False)])
def test_a_mix_must_not_be_below_in_labels(label, holds):
    assert line(must_hold("mixed", pairs(label), 3.0, CHEAP), "label right: not below").holds is holds


def test_the_flag_must_beat_the_least_confident_whoever_answers():
    for answer in ("robust", "mixed", "accurate"):
        for confidence, holds in (((6, 0), True), ((4, 0), False)):
            lines = must_hold(answer, pairs((0, 0), confidence), 3.0, CHEAP)
            assert line(lines, f"right or flagged: above '{CONFIDENCE}'").holds is holds
    assert not [one for one in must_hold("accurate", pairs((9, 0)), 3.0, CHEAP) if PRUNED in one.line]


def test_what_was_not_measured_cannot_be_told():
    lines = must_hold("robust", (), 3.0, CHEAP)
    assert [one.holds for one in lines] == [None, None, None, True, True]
    assert lines[0].said == "that one was not measured"


@pytest.mark.parametrize(
    ("asked", "members", "holds"),
    [(4.0, [250, 100], (True, True)), (4.01, [250, 251], (False, False))],
)
def test_members_must_be_few_and_cheap(asked, members, holds):
    *_, few, cheap = must_hold("robust", (), asked, StageFlops(0, 1000, np.array(members)))
    assert (few.holds, cheap.holds) == holds
    assert few.said == f"{asked:.2f} on average"
    assert cheap.said == f"the largest costs 25%; {int(not holds[1])} of 2 cost more"
