"""Planted defects of a jury and of a mix: attacks that know the decision must find them, and nothing where none is."""

import numpy as np
import pytest
from tests.train.linear_defence import FIRST, INF, REACH, agreement_test, defence, images_with, linear, run, task

from s2ap_train.adaptive.goals import reached
from s2ap_train.redteam.attacks.oblivious import FOR_A_LABEL, SEARCH
from s2ap_train.redteam.attacks.white_box_search import SKIPPED

SURE = linear(0 * FIRST, 3.0)  # class 1 whatever the image
SHARES = np.array([0.3, 0.9, 1.1])
DATA = images_with(*[(share * REACH,) for share in SHARES])
SILENT = {"lower": [-INF, -INF], "upper": [INF, INF], "opening": 2}


def wrong(name, target):
    """Images whose final label the attack of that name turns [N]."""
    outcome = target.system(run(name, target, task(DATA)).images, DATA.labels)
    return reached("wrong label", outcome, DATA.labels).tolist()


@pytest.mark.parametrize("name", ["answer", "jury", "correction"])
def test_a_natural_network_with_the_weight_of_the_jury_loses_its_labels(name):
    # A jury of two, one of which the attacker controls: alone it outweighs the one that nothing moves.
    weights = np.array([1.0, 0.25])
    owned = agreement_test(2, **SILENT, answer="robust", vote_weights=weights)
    assert wrong(name, defence(SURE, (linear(FIRST), SURE), owned)) == (SHARES < 1).tolist()
    kept = agreement_test(2, **SILENT, answer="robust", vote_weights=weights[::-1].copy())
    assert not any(wrong(name, defence(SURE, (linear(FIRST), SURE), kept)))


def test_a_tie_of_two_jurors_goes_to_the_surer_one():
    # One vote each; the natural network is surer of its wrong label as soon as its margin is beyond -0.1 nats.
    weak = linear(0 * FIRST, 0.1)
    tied = agreement_test(2, **SILENT, answer="robust")
    assert wrong("answer", defence(SURE, (linear(FIRST), weak), tied)) == [True, False, False]


@pytest.mark.parametrize("name", ["answer", "apgd-ce"])
@pytest.mark.parametrize(("share", "lost"), [(0.5, [True, False, False]), (0.9, [False] * 3)])
def test_a_mix_with_half_of_a_fooled_classifier_loses_its_labels_and_one_with_a_tenth_does_not(name, share, lost):
    # The margin of the classifier falls to -2.8, -.4 and .4 nats, its probability to .06, .40 and .60; the jury keeps
    # .65. Half and half that is .35, .52 and .62.
    mixed = agreement_test(1, lower=[-INF], upper=[INF], answer="mixed", jury_share=share)
    assert wrong(name, defence(linear(10 * FIRST), (linear(0 * FIRST, 0.6),), mixed)) == lost


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "autoattack"])
def test_a_jury_that_answers_is_what_the_library_attacks(name):
    target = defence(SURE, (linear(FIRST), linear(FIRST)), agreement_test(2, **SILENT, answer="robust"))
    assert wrong(name, target) == (SHARES < 1).tolist()


def test_an_attacker_flags_on_purpose_where_the_jury_that_is_then_asked_can_be_turned():
    # The classifier answers and cannot be moved; whoever objects raises the alarm, and the two who can are a majority.
    handing_on = agreement_test(3, lower=[-INF] * 3, upper=[1.0] * 3)
    target = defence(SURE, (linear(FIRST), linear(FIRST), SURE), handing_on)
    assert wrong("flag-then-flip", target) == (SHARES < 1).tolist()
    outcome = target.system(run("flag-then-flip", target, task(DATA)).images, DATA.labels)
    assert outcome.flagged.tolist() == (SHARES < 1).tolist()
    alone = defence(SURE, (linear(FIRST), SURE, SURE), handing_on)
    assert not any(wrong("flag-then-flip", alone))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answer": "robust"}, "the jury answers"),
        ({"correction": "reject"}, "gets no vote"),
        ({"correction": "keep"}, "gets no vote"),
        ({"upper": [INF, INF]}, "never flags"),
    ],
)
def test_where_a_flag_hands_nothing_on_there_is_nothing_to_flip(changes, why):
    test = agreement_test(2, **{"lower": [-INF, -INF], "upper": [1.0, 1.0]} | changes)
    found = run("flag-then-flip", defence(SURE, (linear(FIRST), SURE), test), task(DATA))
    assert why in found.notes[SKIPPED]


def test_the_search_turns_labels_of_what_it_cannot_get_past_the_alarm():
    # Each member that objects raises the alarm, so nothing is missed; two of three jurors can be turned.
    target = defence(SURE, (linear(FIRST), linear(FIRST), SURE), agreement_test(3, lower=[-INF] * 3, upper=[1.0] * 3))
    found = SEARCH.run(target, task(DATA))
    outcome = target.system(found.images, DATA.labels)
    assert not outcome.success.any()
    assert outcome.right(DATA.labels).tolist() == (SHARES > 1).tolist()
    assert sum(count for name, count in found.notes["broken_by"].items() if name.startswith(FOR_A_LABEL)) == 2
