"""Attacks that want a wrong correction, a false alarm or delay, on defences of which it is known what can be had."""

import numpy as np
import pytest
import torch
from tests.train.linear_defence import (
    FIRST,
    INF,
    REACH,
    SECOND,
    agreement_test,
    defence,
    images_with,
    linear,
    run,
    task,
)

from s2ap_train.adaptive.goals import reached, scores
from s2ap_train.adaptive.systems import RIGHT, most_asked
from s2ap_train.redteam.attacks.white_box_search import SKIPPED
from s2ap_train.statistics.outcome import Outcome

SURE = linear(0 * FIRST, 3.0)  # class 1 whatever the image
SHARES = np.array([0.5, 0.9, 1.1])
DATA = images_with(*[(share * REACH,) for share in SHARES])


def got(name, target, goal, data=DATA):
    """(images where the attack reached its goal, what the system answers)."""
    outcome = target.system(run(name, target, task(data)).images, data.labels)
    return reached(goal, outcome, data.labels), outcome


# Whoever objects raises an alarm; of three voting members two can be moved, so the vote is lost where they can.
VOTING = agreement_test(3, lower=[-INF, -INF, -3.0], upper=[1.0, 1.0, 1.0])
JURY = defence(SURE, (linear(FIRST), linear(FIRST), SURE), VOTING)


def test_the_correction_is_wrong_exactly_where_most_voters_can_be_moved():
    wrong, outcome = got("correction", JURY, "wrong label")
    assert wrong.tolist() == (SHARES < 1).tolist()
    assert outcome.flagged[wrong].all()
    assert not outcome.success.any()  # it is flagged: no attack that wants to be missed gets here


def test_one_voter_of_three_is_not_enough():
    target = defence(SURE, (linear(FIRST), SURE, SURE), VOTING)
    assert not got("correction", target, "wrong label")[0].any()


@pytest.mark.parametrize("correction", ["reject", "keep"])
def test_a_file_that_rejects_or_keeps_its_answer_has_no_vote_to_attack(correction):
    test = agreement_test(3, lower=[-INF] * 3, upper=[1.0] * 3, correction=correction)
    found = run("correction", defence(SURE, (linear(FIRST),) * 3, test), task(DATA))
    assert "gets no vote" in found.notes[SKIPPED]


def test_right_answers_are_flagged_exactly_where_a_member_can_be_moved():
    target = defence(SURE, (linear(FIRST),), agreement_test(1, lower=[-1.0], upper=[1.0], correction="reject"))
    alarm, outcome = got("false-alarm", target, "false alarm")
    assert alarm.tolist() == (SHARES < 1).tolist()
    assert (outcome.label == 1).all()


def test_a_flag_that_the_jury_answers_wrongly_is_no_false_alarm():
    target = defence(SURE, (linear(FIRST),), agreement_test(1, lower=[-1.0], upper=[1.0]))
    assert not got("false-alarm", target, "false alarm")[0].any()


def test_who_wants_a_false_alarm_stops_before_the_classifier_is_fooled():
    # Classifier and member are one network with two thresholds; beyond the second an alarm would be a right one.
    test = agreement_test(1, lower=[-1.0], upper=[1.0], correction="reject")
    target = defence(linear(FIRST, 0.2), (linear(FIRST),), test)
    alarm, outcome = got("false-alarm", target, "false alarm", images_with((0.1,)))
    assert alarm.all()
    assert (outcome.label == 1).all()
    fooled = target.system(images_with((0.1 - REACH,)).images, np.ones(1, dtype=np.int64))
    assert (fooled.label == 0).all()


def test_a_test_that_never_flags_raises_no_alarm():
    found = run("false-alarm", defence(SURE, (SURE,), agreement_test(1, lower=[-1.0], upper=[INF])), task(DATA))
    assert "never flags" in found.notes[SKIPPED]


# Two members that agree end the test; where the second objects, the third and the fourth are asked.
SLOW = agreement_test(4, lower=[-INF, -2.0, -2.0, -2.0], upper=[2.0] * 4)


def test_all_members_are_asked_exactly_where_the_evidence_can_be_held_between_the_boundaries():
    target = defence(SURE, (SURE, linear(FIRST), SURE, linear(SECOND, 0.1)), SLOW)
    assert (target.system(DATA.images, DATA.labels).members_used == 2).all()
    delayed, outcome = got("slow-down", target, "slow down")
    assert delayed.tolist() == (SHARES < 1).tolist()
    assert outcome.members_used.tolist() == [4, 4, 2]
    assert not outcome.flagged.any()


def test_as_many_members_as_can_be_had_are_kept_where_not_all_can():
    # The third agrees, and so may the fourth: L is -1, 0, -1, -2. Only the fifth is out of reach.
    longer = agreement_test(5, lower=[-INF, -2.0, -2.0, -2.0, -2.0], upper=[2.0] * 5)
    target = defence(SURE, (SURE, linear(FIRST), SURE, SURE, SURE), longer)
    _, outcome = got("slow-down", target, "slow down")
    assert outcome.members_used.tolist() == [4, 4, 2]


def test_a_test_of_one_member_cannot_be_slowed_down():
    found = run("slow-down", defence(SURE, (SURE,), agreement_test(1, lower=[-1.0], upper=[1.0])), task(DATA))
    assert "first member decides" in found.notes[SKIPPED]


def test_the_most_that_is_asked_ends_where_nothing_is_undecided_or_the_vote_ends():
    closed = np.nextafter(1.0, -INF)
    test = {"lower": [-INF, closed, closed, closed], "upper": [1.0] * 4}
    assert most_asked(agreement_test(4, **test, vote_weights=np.array([1.0, 0, 0, 0]))) == 2
    assert most_asked(agreement_test(4, **test, vote_weights=np.array([1.0, 0, 0, 0.5]))) == 3, "sensors have no vote"
    assert most_asked(agreement_test(4, **test, correction="reject")) == 2
    assert most_asked(SLOW) == 4


def planted(**changes):
    """Answers to four images of class 0: missed, flagged and corrected, flagged and wrong, right."""
    parts = {
        "label": np.array([1, 0, 1, 0]),
        "flagged": np.array([False, True, True, False]),
        "abstained": np.zeros(4, dtype=bool),
        "members_used": np.array([1, 4, 4, 2]),
        "score": np.array([-1.0, 3.0, 2.0, 1000.0]),
        "evidence": np.array([-2.0, 5.0, 4.0, 0.5]),
        "margin": np.array([0.0, 0.25, 0.0, 2.0]),
        "not_asked": np.array([3, 0, 0, 2]),
    }
    return Outcome(**(parts | changes))


LABELS = np.zeros(4, dtype=np.int64)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("mislead", [True, False, False, False]),
        ("wrong label", [True, False, True, False]),
        ("false alarm", [False, True, False, False]),
        ("slow down", [False, True, True, False]),
    ],
)
def test_goals_are_reached_where_they_were_planted(goal, expected):
    assert reached(goal, planted(), LABELS).tolist() == expected


def test_no_answer_is_no_wrong_label():
    silent = planted(abstained=np.ones(4, dtype=bool), score=np.ones(4))
    assert not reached("wrong label", silent, LABELS).any()


def test_an_alarm_on_an_image_that_was_wrong_before_is_not_counted():
    assert not reached("false alarm", planted(), LABELS, np.array([True, False, True, True])).any()
    assert reached("wrong label", planted(), LABELS, np.zeros(4, dtype=bool)).sum() == 2


def test_scores_lead_to_the_alarm_by_the_evidence_and_last_of_all_past_the_label():
    assert scores("false alarm", planted(), LABELS).tolist() == [2 * RIGHT, -1.0, 2 * RIGHT, RIGHT - 0.5]


def test_scores_of_a_wrong_label_are_the_margins_of_who_gave_it():
    assert scores("wrong label", planted(), LABELS).tolist() == [-1.0, 0.25, -1.0, 2.0]
    assert scores("wrong label", planted(margin=None), LABELS).tolist() == [-1.0, 3.0, -1.0, 1000.0]


def test_scores_of_delay_are_the_members_left():
    assert scores("slow down", planted(), LABELS).tolist() == [2.5, -0.5, -0.5, 1.5]


@pytest.mark.parametrize(("goal", "part"), [("false alarm", "evidence"), ("slow down", "not_asked")])
def test_an_outcome_that_does_not_tell_is_refused(goal, part):
    with pytest.raises(ValueError, match="does not tell"):
        scores(goal, planted(**{part: None}), LABELS)


def test_rows_of_an_outcome_keep_what_is_not_told_untold():
    chosen = planted(evidence=None).rows(np.array([1, 3]))
    assert chosen.evidence is None
    assert chosen.margin.tolist() == [0.25, 2.0]


# Feature matching: what is matched are the pixels themselves, so a guide within eps is copied.


def twins(distance):
    """Two images of either class whose pixels are so far apart, on both sides of the classifier's boundary."""
    data = images_with((distance * 8 / 2,), (-distance * 8 / 2,))
    return type(data)(data.images, np.array([1, 0]))


def matching(**changes):
    free = agreement_test(1, lower=[-1.0], upper=[1.0])
    settings = {"features": (lambda images, _: images.flatten(1),)} | changes
    return defence(linear(FIRST), (linear(FIRST),), settings.pop("test", free), **settings)


@pytest.mark.parametrize("changes", [{}, {"features": ()}])
def test_feature_matching_copies_a_guide_that_is_near_enough(changes):
    for distance, near in ((0.045, True), (0.12, False)):  # half of it is enough to cross the boundary
        data = twins(distance)
        target = matching(**changes)
        outcome = target.system(run("feature-matching", target, task(data)).images, data.labels)
        assert outcome.success.tolist() == [near, near]


def test_guides_that_the_defence_flags_are_none():
    flags_all = agreement_test(1, lower=[-INF], upper=[-5.0])
    found = run("feature-matching", matching(test=flags_all), task(twins(0.045)))
    assert "that the defence accepts" in found.notes[SKIPPED]


def test_images_of_one_class_have_no_guides():
    assert "another class" in run("feature-matching", matching(), task(DATA)).notes[SKIPPED]


def test_a_thorough_match_asks_the_members_too():
    asked = []
    target = matching()

    def view(images, path, count):
        asked.append(count)
        return target.view(images, path, count)

    thorough = type(task(DATA).budget)(steps=2, cheap_steps=2, restarts=1, targets=1)
    watched = type(target)(**{**vars(target), "view": view})
    notes = run("feature-matching", watched, task(twins(0.5), budget=thorough)).notes
    assert "features and members, guide 1" in notes["broken_by"]
    assert asked
    assert torch.is_tensor(target.view(torch.from_numpy(DATA.images), "exact", None)[1])
