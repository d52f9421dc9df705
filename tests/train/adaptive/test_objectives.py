import dataclasses
import math

import numpy as np
import pytest
import torch

from s2ap_defend.sequential import SequentialTest, StageAnswers, run_sequential_test
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.objectives import (
    EvidenceSurrogate,
    agreement_objective,
    alarm_objective,
    bypass_objective,
    delay_objective,
    difference_of_logits_ratio,
    evidence_objective,
    margin,
    targeted_agreement_objective,
    targeted_margin,
    vote_objective,
)
from s2ap_train.adaptive.plans import defended_plan, surrogates

CPU = torch.device("cpu")
TEST = SequentialTest(
    evidence="surprise",
    edges=np.array([[0.5, 1.5, 3.0]] * 3, dtype=np.float32),
    increments=np.array([[-1.0, -0.2, 0.6, 2.0]] * 3),
    lower=np.array([-math.inf, -1.8, -1.8]),
    upper=np.full(3, 2.5),
    final_threshold=math.inf,
    waves=(3,),
    vote_weights=np.ones(3),
    answer="accurate",
)


def log_probabilities(of_label, classes=3):
    """Members that give label 0 these log-probabilities [n] and share the rest [n, 1, classes]."""
    rest = [math.log((1 - math.exp(value)) / (classes - 1)) for value in of_label]
    return torch.tensor([[[value, *[other] * (classes - 1)]] for value, other in zip(of_label, rest, strict=True)])


def test_margins_are_those_worked_by_hand():
    scores = torch.tensor([[3.0, 1.0, -1.0], [0.0, 2.0, 1.5]])
    y = torch.tensor([0, 0])
    assert margin(scores, y).tolist() == [2.0, -2.0]
    assert targeted_margin(scores, torch.tensor([1, 1])).tolist() == [2.0, -0.5]


def test_the_difference_of_logits_ratio_does_not_change_with_scale_and_shift():
    scores = torch.tensor([[3.0, 1.0, -1.0, 0.5]])
    y = torch.tensor([0])
    assert float(difference_of_logits_ratio(scores, y)) == pytest.approx(2.0 / 2.5)
    torch.testing.assert_close(difference_of_logits_ratio(7 * scores - 4, y), difference_of_logits_ratio(scores, y))


def says(label, classes=3, surely=0.99):
    """Log-probabilities [N, K] of a classifier that says these labels."""
    rest = math.log((1 - surely) / (classes - 1))
    return torch.full((len(label), classes), rest).scatter(1, label[:, None], math.log(surely))


ANY = says(torch.tensor([0]))  # the evidence of members does not depend on it


def increments(surrogate, m):
    """What each member adds [n, N]."""
    ratios = surrogate.ratios(ANY, m, torch.tensor([0]))
    return torch.diff(ratios, dim=0, prepend=torch.zeros_like(ratios[:1]))


def test_at_the_middle_of_every_bin_the_surrogate_is_the_table():
    surrogate = EvidenceSurrogate(TEST, CPU)
    middles, values = [0.0, 1.0, 2.25, 3.75], TEST.increments[0]  # outer bins are as wide as their neighbours
    for middle, value in zip(middles, values, strict=True):
        ratios = increments(surrogate, log_probabilities([-max(middle, 1e-4)] * 3))
        np.testing.assert_allclose(ratios[:, 0].numpy(), value, atol=2e-3)


def test_the_surrogate_follows_the_test_on_random_answers():
    # The interpolated evidence need not equal the table's, but both must mostly agree on who is flagged.
    generator = torch.Generator().manual_seed(0)
    answers = (2.0 * torch.randn((3, 500, 3), generator=generator)).log_softmax(2)
    labels = answers.mean(0).argmax(1)
    flagged = run_sequential_test(TEST, StageAnswers(says(labels).numpy(), answers.numpy())).adversarial
    predicted = (EvidenceSurrogate(TEST, CPU).excess(says(labels), answers, labels) > 0).numpy()
    assert 0.0 < flagged.mean() < 1.0
    assert (flagged == predicted).mean() > 0.8


def test_an_early_stop_at_clean_excuses_later_members():
    # Two confident members reach L <= -1.8 after member 2; the third, which would raise an alarm, is never asked.
    surrogate = EvidenceSurrogate(dataclasses.replace(TEST, upper=np.array([2.5, 2.5, -0.5])), CPU)
    calm, loud = -0.001, -6.0
    assert float(surrogate.excess(ANY, log_probabilities([calm, calm, loud]), torch.tensor([0]))) <= 0.0
    assert float(surrogate.excess(ANY, log_probabilities([-1.0, -1.0, loud]), torch.tensor([0]))) > 0.0


def test_where_the_undecided_abstain_only_a_clean_stop_is_below_the_alarm():
    never = np.array([-math.inf, -math.inf, -1.8])
    passing = dataclasses.replace(TEST, lower=never)
    abstaining = dataclasses.replace(passing, undecided_abstains=True)
    unsure, calm = log_probabilities([-1.0, -1.0, -1.0]), log_probabilities([-0.001, -0.001, -0.001])
    label = torch.tensor([0])
    assert float(EvidenceSurrogate(passing, CPU).excess(ANY, unsure, label)) < 0.0
    assert float(EvidenceSurrogate(abstaining, CPU).excess(ANY, unsure, label)) > 0.0
    assert float(EvidenceSurrogate(abstaining, CPU).excess(ANY, calm, label)) < 0.0


def test_a_detector_that_never_flags_leaves_the_classifier_as_the_only_aim():
    never = dataclasses.replace(TEST, upper=np.full(3, math.inf), final_threshold=math.inf)
    objective = evidence_objective(*surrogates(never))
    m = log_probabilities([-6.0, -6.0, -6.0])
    c = torch.tensor([[5.0, 0.0, 0.0]]).log_softmax(1)
    t = torch.tensor([0])
    assert float(objective.loss(c, m, torch.tensor([1]), t)) < 0.5  # only the small pull towards agreement is left


def test_the_surrogate_has_a_gradient_where_the_table_is_flat():
    surrogate = EvidenceSurrogate(TEST, CPU)
    m = log_probabilities([-9.0, -9.0, -9.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate.excess(ANY, m, torch.tensor([0])).sum(), m)
    assert (gradient[:, 0, 0] < 0.0).all()


def test_agreement_of_few_members_asks_only_for_those():
    assert (agreement_objective().members, agreement_objective(2).members) == (None, 2)
    assert (targeted_agreement_objective().members, targeted_agreement_objective(2).members) == (None, 2)
    assert bypass_objective(*surrogates(TEST), 2).members == 2


def test_margin_evidence_with_one_edge_is_read_from_the_margin():
    test = dataclasses.replace(
        TEST,
        evidence="margin",
        edges=np.full((3, 1), 1e-4, dtype=np.float32),
        increments=np.array([[-1.0, 2.0]] * 3),
    )
    surrogate = EvidenceSurrogate(test, CPU)
    label = torch.tensor([0])
    agreeing, objecting = log_probabilities([-0.05] * 3), log_probabilities([-3.0] * 3)
    assert float(surrogate.excess(ANY, objecting, label)) > 0.0
    # agreement is the table's first bin: L = -1, -2, -3 comes no nearer to the alarm at 2.5 than 3.5
    assert float(surrogate.excess(ANY, agreeing, label)) == pytest.approx(-3.5)


def answers(count=500):
    """Random answers of three members [3, N, 3] and a base label each; that of most of them, or another [N]."""
    generator = torch.Generator().manual_seed(1)
    m = (2.0 * torch.randn((3, count, 3), generator=generator)).log_softmax(2)
    return m, torch.randint(0, 3, (count,), generator=generator)


def test_the_alarm_is_near_where_the_test_flags():
    m, label = answers()
    flagged = run_sequential_test(TEST, StageAnswers(says(label).numpy(), m.numpy())).adversarial
    predicted = (EvidenceSurrogate(TEST, CPU).until_alarm(says(label), m, label) <= 0).numpy()
    assert 0.1 < flagged.mean() < 0.9
    assert (flagged == predicted).mean() > 0.8


def test_no_alarm_counts_after_the_test_has_ended_at_clean():
    surrogate, label = EvidenceSurrogate(TEST, CPU), torch.tensor([0])
    calm, loud = -0.001, -9.0
    assert float(surrogate.until_alarm(ANY, log_probabilities([loud, loud, loud]), label)) < 0.0
    late = dataclasses.replace(TEST, upper=np.array([math.inf, math.inf, -0.5]))  # L is -1, -2, and then 0 or more
    patient = dataclasses.replace(late, lower=np.full(3, -math.inf))
    assert float(EvidenceSurrogate(late, CPU).until_alarm(ANY, log_probabilities([calm, calm, loud]), label)) > 0.0
    assert float(EvidenceSurrogate(patient, CPU).until_alarm(ANY, log_probabilities([calm, calm, loud]), label)) < 0.0


def test_a_final_threshold_is_an_alarm_where_nothing_was_decided():
    signed = dataclasses.replace(TEST, lower=np.full(3, -math.inf), upper=np.full(3, math.inf), final_threshold=0.0)
    surrogate, label = EvidenceSurrogate(signed, CPU), torch.tensor([0])
    assert float(surrogate.until_alarm(ANY, log_probabilities([-9.0] * 3), label)) < 0.0
    assert float(surrogate.until_alarm(ANY, log_probabilities([-0.001] * 3), label)) > 0.0


def test_to_be_clean_for_the_first_members_no_other_is_asked():
    surrogate, label = EvidenceSurrogate(TEST, CPU), torch.tensor([0])
    calm = log_probabilities([-0.001, -0.001])
    assert float(surrogate.until_clean(ANY, calm, label)) <= 0.0
    assert float(surrogate.until_clean(ANY, calm[:1], label)) == 1e4  # one member may not accept
    assert float(surrogate.until_clean(ANY, log_probabilities([-9.0, -0.001]), label)) > 0.0


def test_beyond_the_nearer_boundary_is_worked_by_hand():
    surrogate = EvidenceSurrogate(TEST, CPU)
    middles = log_probabilities([-2.25, -2.25, -2.25])  # 0.6 each: L is 0.6, 1.2, 1.8 between -1.8 and 2.5
    np.testing.assert_allclose(surrogate.beyond(ANY, middles, torch.tensor([0]))[:, 0], [-1.9, -1.3, -0.7], atol=1e-4)


def test_members_that_agree_have_a_slope_for_who_wants_their_evidence():
    test = dataclasses.replace(
        TEST, evidence="margin", edges=np.full((3, 1), 1e-4, dtype=np.float32), increments=np.array([[-1.0, 2.0]] * 3)
    )
    surrogate = EvidenceSurrogate(test, CPU)
    m = log_probabilities([-0.05] * 3).requires_grad_()
    (none,) = torch.autograd.grad(surrogate.ratios(ANY, m, torch.tensor([0]))[-1].sum(), m)
    (some,) = torch.autograd.grad(surrogate.ratios(ANY, m, torch.tensor([0]), leaking=True)[-1].sum(), m)
    assert not none.any()
    assert (some[:, 0, 0] < 0.0).all()
    shift = surrogate.ratios(ANY, m, torch.tensor([0]), leaking=True) - surrogate.ratios(ANY, m, torch.tensor([0]))
    assert (shift <= 0.0).all()
    assert (shift > -0.02 * 3.0 * torch.arange(1, 4)[:, None]).all()  # 2 % of what each can say


def test_the_vote_is_lost_when_most_members_say_the_label_and_the_vote_counts():
    objective, y, t = vote_objective(*surrogates(TEST)), torch.tensor([1]), torch.tensor([0])
    right, wrong = torch.tensor([[-9.0, -0.01, -9.0]]), torch.tensor([[-0.01, -9.0, -9.0]])
    two_of_three, one_of_three = torch.stack([wrong, wrong, right]), torch.stack([wrong, right, right])
    small = 1.0  # only the pull on all of them is left
    assert float(objective.loss(right, two_of_three, y, t)) < small
    assert float(objective.loss(right, one_of_three, y, t)) > small
    silent = dataclasses.replace(TEST, upper=np.full(3, math.inf))
    unheard = vote_objective(*surrogates(silent))
    assert float(unheard.loss(right, two_of_three, y, t)) > small  # nobody is flagged, and the classifier is right
    assert float(unheard.loss(wrong, two_of_three, y, t)) < small  # the classifier says the same


def satisfied(objective, of_label):
    """Gradient at the members' scores where classifier and members give label 0 so much, class 1 being the other."""
    scores = log_probabilities(of_label).requires_grad_()
    members = scores.log_softmax(2)
    y, t = (
        (torch.tensor([0]), torch.tensor([1])) if objective.name == "alarm" else (torch.tensor([1]), torch.tensor([0]))
    )
    (gradient,) = torch.autograd.grad(objective.loss(torch.tensor([[-0.01, -5.0, -5.0]]), members, y, t).sum(), scores)
    return gradient[:, 0, 0]


def test_where_the_surrogate_is_satisfied_members_still_have_a_direction():
    # The file has the last word: what the surrogate takes for won may not be, and the descent has to go on.
    surrogate, calm, loud = EvidenceSurrogate(TEST, CPU), [-0.001] * 3, [-9.0] * 3
    assert float(surrogate.until_clean(ANY, log_probabilities(calm), torch.tensor([0]))) < -0.2
    assert (satisfied(bypass_objective(*surrogates(TEST), 3), calm) < 0.0).all(), (
        "more of the label that is to be accepted"
    )
    assert float(surrogate.until_alarm(ANY, log_probabilities(loud), torch.tensor([0]))) < -0.2
    rejecting = surrogates(
        dataclasses.replace(TEST, correction="reject")
    )  # no vote asks the members for the true label
    assert (satisfied(alarm_objective(*rejecting), loud) > 0.0).all(), "less of the label that is to be objected to"


def test_inside_the_boundaries_delay_still_pulls_away_from_the_nearer_one():
    surrogate = EvidenceSurrogate(TEST, CPU)
    objective = delay_objective(*surrogates(TEST), 4)
    assert float(surrogate.beyond(ANY, log_probabilities([-2.25] * 3), torch.tensor([0])).max()) < -0.5
    assert (satisfied(objective, [-2.25] * 3) < 0.0).all(), "less evidence: the alarm at 2.5 is the nearer one"


@pytest.mark.parametrize("budget", [AdaptiveBudget.quick(), AdaptiveBudget.standard()])
def test_the_search_lowers_the_evidence_from_a_random_start_too(budget):
    starts = {one.start for one in defended_plan(TEST, budget) if one.name == "evidence x1, exact, target 1"}
    assert starts == {"best", "random"}
