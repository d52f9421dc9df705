"""The answer with a slope, against the labels of the numpy reference."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.runtime.sequential_cases import sequential_test

from s2ap_defend.sequential import Signal, StageAnswers, first_answers, run_sequential_test
from s2ap_train.adaptive.objectives import (
    answer_objective,
    evidence_objective,
    flag_then_flip_objective,
    jury_objective,
)
from s2ap_train.adaptive.plans import defended_plan, label_plan, surrogates
from s2ap_train.adaptive.search import AdaptiveBudget, likeliest_wrong
from s2ap_train.adaptive.systems import most_asked

COUNT = 400
NEVER = {"lower": np.full(4, -math.inf), "upper": np.full(4, math.inf)}


def answers(classes=3, members=4, seed=0):
    """Random log-probabilities of a classifier [N, K] and of members [n, N, K]."""
    generator = torch.Generator().manual_seed(seed)
    said = (2.0 * torch.randn((members + 1, COUNT, classes), generator=generator)).log_softmax(2)
    return said[0], said[1:]


def decision(answer, **changes):
    settings = {"vote_weights": np.array([1.0, 0.25, 0.5, 0.0]), "opening": 1, "jury_share": 0.7, "amplification": 2.0}
    return sequential_test(4, answer=answer, **(NEVER | settings | changes))


def label_of(test, c, m):
    return torch.from_numpy(run_sequential_test(test, StageAnswers(c.numpy(), m.numpy())).label)


@pytest.mark.parametrize("answer", ["robust", "mixed", "accurate"])
def test_of_two_classes_the_gap_is_negative_exactly_where_the_answer_is_the_label(answer):
    c, m = answers(classes=2)
    test = decision(answer)
    surrogate, _ = surrogates(test)
    label = label_of(test, c, m)
    for t in (torch.zeros(COUNT, dtype=torch.int64), torch.ones(COUNT, dtype=torch.int64)):
        assert torch.equal(surrogate.gap(c, m, t) < 0.0, label == t)
        assert torch.equal(surrogate.hinge(c, m, t, 0.0) == 0.0, label == t)


@pytest.mark.parametrize("answer", ["mixed", "accurate"])
def test_of_more_classes_mix_and_classifier_are_exact_too(answer):
    c, m = answers(classes=5)
    test = decision(answer)
    surrogate, _ = surrogates(test)
    t = torch.randint(0, 5, (COUNT,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(surrogate.gap(c, m, t) < 0.0, label_of(test, c, m) == t)


def test_a_majority_for_a_label_is_enough_and_a_plurality_may_be():
    c, m = answers(classes=5)
    test = decision("robust")
    surrogate, _ = surrogates(test)
    t = label_of(test, c, m)
    closed = torch.stack([surrogate.gap(c, m, torch.full((COUNT,), k)) < 0.0 for k in range(5)])
    assert (closed.sum(0) <= 1).all()
    assert torch.equal(closed.nonzero()[:, 0].sort().values, t[closed.any(0)].sort().values)
    assert closed.any(0).float().mean() > 0.5


def test_the_gap_of_a_vote_is_the_margin_of_the_last_voter_that_a_majority_needs():
    # Margins to class 0 are -1, 2 and 5 nats with weights 1, .5 and .25: the first is a majority of 1.75 already.
    m = torch.tensor([[[0.0, -1.0]], [[-2.0, 0.0]], [[-5.0, 0.0]]])
    c, t = torch.zeros(1, 2), torch.tensor([0])
    three = {"lower": np.full(3, -math.inf), "upper": np.full(3, math.inf)}
    first, _ = surrogates(sequential_test(3, vote_weights=np.array([1.0, 0.5, 0.25]), **three))
    even, _ = surrogates(sequential_test(3, **three))
    assert first.gap(c, m, t).tolist() == [-1.0]
    assert even.gap(c, m, t).tolist() == [2.0]
    assert even.hinge(c, m, t, 0.2).tolist() == [pytest.approx(2.2 / 2)], "the first voter has done its part"


@pytest.mark.parametrize("answer", ["robust", "mixed", "accurate"])
@pytest.mark.parametrize("opening", [1, 3])
def test_the_first_answer_is_that_of_the_reference(answer, opening):
    c, m = answers(classes=4, seed=2)
    test = decision(answer, opening=opening)
    found = surrogates(test)[0].first_answer(c, m)
    np.testing.assert_array_equal(found, first_answers(test, StageAnswers(c.numpy(), m.numpy())))


def test_without_a_target_the_best_other_label_is_aimed_at():
    c, m = answers()
    surrogate, _ = surrogates(decision("mixed"))
    y = surrogate.scores(c, m).argmax(1)
    aim = surrogate.aim(c, m, y, y)
    assert torch.equal(aim, surrogate.scores(c, m).argsort(1, descending=True)[:, 1])
    t = (y + 1) % 3
    assert torch.equal(surrogate.aim(c, m, y, t), t)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_mix_of_one_alone_is_that_one_and_has_a_gradient(share):
    c, m = (one.requires_grad_() for one in answers())
    surrogate, _ = surrogates(decision("mixed", jury_share=share))
    t = torch.zeros(COUNT, dtype=torch.int64)
    gradients = torch.autograd.grad(surrogate.gap(c, m, t).sum(), (c, m), allow_unused=True, materialize_grads=True)
    assert [bool(one.any()) for one in gradients] == [share == 0.0, share == 1.0]
    assert all(torch.isfinite(one).all() for one in gradients)


def test_sensors_have_no_say_in_the_jury():
    _, m = answers()
    surrogate, _ = surrogates(decision("robust"))
    assert torch.equal(surrogate.jurors(m), m[:3])
    loud = m.clone()
    loud[3] = loud[3].flip(1)
    t = torch.zeros(COUNT, dtype=torch.int64)
    objective = jury_objective(surrogate)
    assert torch.equal(objective.loss(m[0], m, t + 1, t), objective.loss(m[0], loud, t + 1, t))


def test_where_clean_waits_for_the_vote_the_majority_is_of_the_whole_jury():
    # Two of four jurors say class 0: a majority of those asked, and half of the jury, whose vote is open.
    m = torch.tensor([[[0.0, -1.0]]] * 2)
    c, t = torch.zeros(1, 2), torch.tensor([0])
    waiting, evidence = surrogates(sequential_test(4, await_vote=True, lower=np.full(4, -1.0), upper=np.full(4, 9.0)))
    patient, free = surrogates(sequential_test(4, lower=np.full(4, -1.0), upper=np.full(4, 9.0)))
    assert evidence.until_clean(c, m, t).tolist() == [1e4]
    assert free.until_clean(c, m, t).item() <= 0.0
    four = torch.tensor([[[0.0, -1.0]]] * 3 + [[[-1.0, 0.0]]])
    assert evidence.until_clean(c, four, t).item() <= 0.0, "after three of four the vote is settled"
    assert waiting.gap(c, four, t).tolist() == patient.gap(c, four, t).tolist() == [-1.0]


def test_signals_move_the_evidence_and_have_a_slope():
    edges, increments = np.array([0.5, 2.0], dtype=np.float32), np.array([-1.0, 0.0, 2.0])
    names = ("jury margin", "classifier surprise", "reconstruction error")
    signals = tuple(Signal(name, edges, increments) for name in names)
    test = decision("robust", opening=2, lower=np.array([-math.inf, -1, -1, -1]), signals=signals)
    plain, moved = surrogates(replace(test, signals=()))[1], surrogates(test)[1]
    c, m = (one.requires_grad_() for one in answers())
    label = torch.zeros(COUNT, dtype=torch.int64)
    added = moved.ratios(c, m, label) - plain.ratios(c, m, label)
    assert torch.allclose(added, added[:1].expand_as(added), atol=1e-5), "they are counted before the first member"
    of_classifier, of_members = torch.autograd.grad(added[0].sum(), (c, m))
    assert (of_classifier[:, 0] < 0.0).all(), "the surer the classifier is of the label, the less evidence"
    assert of_members[0].any()
    assert of_members[1].any()
    assert not of_members[2:].any(), "the jury of the opening alone"


def test_objectives_are_small_exactly_where_what_they_want_is_there():
    test = sequential_test(3, answer="accurate", lower=np.full(3, -3.0), upper=np.full(3, 3.0))
    answer, evidence = surrogates(test)
    y, t = torch.tensor([0]), torch.tensor([1])
    right, wrong = torch.tensor([[-0.001, -7.0, -7.0]]), torch.tensor([[-7.0, -0.001, -7.0]])
    cases = {
        "unflagged": (wrong, torch.stack([wrong] * 3)),
        "flagged and flipped": (right, torch.stack([wrong] * 3)),
        "fooled alone": (wrong, torch.stack([right] * 3)),
        "untouched": (right, torch.stack([right] * 3)),
    }
    wants = {
        "unflagged": {"answer", "evidence x1", "jury"},
        "flagged and flipped": {"flag then flip", "jury"},
        "fooled alone": {"answer"},
        "untouched": set(),
    }
    objectives = [
        answer_objective(answer),
        evidence_objective(answer, evidence),
        jury_objective(answer),
        flag_then_flip_objective(answer, evidence),
    ]
    for name, (c, m) in cases.items():
        assert {one.name for one in objectives if float(one.loss(c, m, y, t)) <= 0.0} == wants[name], name


@pytest.mark.parametrize("answer", ["robust", "mixed", "accurate"])
def test_plans_start_from_random_points_and_from_the_best_past_the_purifier_and_through_it(answer):
    for plan in (defended_plan, label_plan):
        descents = plan(decision(answer), AdaptiveBudget.standard())
        assert {(one.path, one.start) for one in descents} >= {
            ("none", "random"),
            ("none", "best"),
            ("exact", "random"),
            ("exact", "best"),
        }
    names = {one.objective.name for one in label_plan(decision(answer), AdaptiveBudget.quick())}
    assert ("flag then flip" in names) == (answer != "robust"), "where the jury answers anyway, a flag hands nothing on"


def test_a_rejecting_file_has_no_vote_in_its_plan_and_other_goals_have_none():
    names = {
        one.objective.name for one in label_plan(decision("mixed", correction="reject"), AdaptiveBudget.standard())
    }
    assert names == {"answer", "jury"}
    with pytest.raises(ValueError, match="no plan for the goal 'slow down'"):
        defended_plan(decision("mixed"), AdaptiveBudget.quick(), "slow down")


def test_a_flag_asks_the_jurors_that_are_left_and_no_sensor():
    assert most_asked(decision("robust")) == 4
    closing = decision("robust", upper=np.full(4, 1.0), lower=np.full(4, np.nextafter(1.0, -math.inf)))
    assert most_asked(closing) == 3
    assert most_asked(replace(closing, correction="reject")) == 1


@pytest.mark.parametrize(
    "make", [lambda a, _: answer_objective(a), lambda a, _: jury_objective(a), flag_then_flip_objective]
)
def test_the_label_aimed_at_is_the_likeliest_of_those_who_answer_whatever_sensors_say(make):
    """The true label is 0. The two jurors hold 1 for the next likeliest, classifier and sensors are sure of 2."""
    test = sequential_test(
        4, answer="robust", **(NEVER | {"vote_weights": np.array([1.0, 0.5, 0.0, 0.0]), "opening": 1})
    )
    juror, sensor = (torch.tensor([said]).log() for said in ([0.5, 0.3, 0.2], [0.04, 0.01, 0.95]))
    said = sensor, torch.stack([juror, juror, sensor, sensor])

    def aimed_at(rank, by):
        images, label = torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
        return int(likeliest_wrong(lambda *_: said, images, label, rank, by=by))

    objective = make(*surrogates(test))
    assert [aimed_at(rank, objective.aims) for rank in (0, 1)] == [1, 2]
    assert aimed_at(0, evidence_objective(*surrogates(test)).aims) == 2, "evidence is what the sensors say"
