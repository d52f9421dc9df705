import math
from dataclasses import replace

import numpy as np
import pytest
from tests.train.correlated_members import correlated_answers, voted

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import run_sequential_test
from s2ap_train.calibration import (
    Answers,
    Detection,
    alarm_statistic,
    calibrate,
    conformal_boundary,
    false_alarms,
    samples_needed,
)
from s2ap_train.calibration.calibration import with_conformal_boundary
from s2ap_train.calibration.jury import Jury

RATES = [0.05, 0.1, 0.15, 0.2, 0.1, 0.1]
RARE = [0.02, 0.03, 0.04, 0.05, 0.06, 0.02, 0.03, 0.04]
FOOLED = [0.7, 0.8, 0.6, 0.7, 0.7, 0.5, 0.6, 0.7]
REDRAWS, HELD_OUT = 20, 2000


def false_alarm_rates(count: int, config: Detection, seed: int, members: list[float] = RATES) -> list[float]:
    """False-alarm rate on fresh inputs after each of 20 calibrations on as many redraws, tables fitted once."""
    rng = np.random.default_rng(seed)
    fit = correlated_answers(rng, 150, members), correlated_answers(rng, 150, FOOLED[: len(members)], fooled=True)
    rates = []
    for _ in range(REDRAWS):
        result = calibrate(*fit, correlated_answers(rng, count, members), config, Jury.behind_classifier(len(members)))
        fresh = correlated_answers(rng, HELD_OUT, members).reorder(result.order)
        outcome = run_sequential_test(result.test, fresh.said)
        rates.append(float(outcome.adversarial.mean()))
    return rates


def three_standard_errors(alpha: float, count: int) -> float:
    """Of the mean of 20 rates: each is Beta(n + 1 - k, k) in the sample, and binomial in what measures it."""
    spread = alpha * (1 - alpha)
    return 3 * math.sqrt((spread / (count + 2) + spread / HELD_OUT) / REDRAWS)


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("evidence", ["gaining", "all"])
def test_the_false_alarm_rate_holds_for_correlated_members_over_redraws(alpha: float, evidence: str) -> None:
    rates = false_alarm_rates(400, Detection(alpha=alpha, evidence=evidence), seed=1)  # type: ignore[arg-type]
    assert np.mean(rates) <= alpha + three_standard_errors(alpha, 400)
    assert np.mean(rates) >= 0.4 * alpha  # it is not kept by never raising an alarm


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05])
def test_it_holds_for_votes_whose_evidence_ties(alpha: float) -> None:
    rates = false_alarm_rates(400, Detection(alpha=alpha, bins=2, evidence="all"), seed=2, members=RARE)
    assert np.mean(rates) <= alpha + three_standard_errors(alpha, 400)


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05])
def test_it_holds_with_as_few_inputs_as_alpha_needs(alpha: float) -> None:
    count = samples_needed(alpha)
    assert count == round(1 / alpha) - 1
    config = Detection(alpha=alpha, bins=12, evidence="all")
    rates = false_alarm_rates(count, config, seed=7, members=RARE)
    assert np.mean(rates) <= alpha + three_standard_errors(alpha, count)
    with pytest.raises(RecipeError, match=f"needs {count} clean calibration inputs or more, got {count - 1}"):
        false_alarm_rates(count - 1, config, seed=7, members=RARE)


def one_member(disagreements: list[bool]) -> Answers:
    return voted([disagreements, disagreements])


def test_the_boundary_flags_strictly_more_than_the_ranked_statistic() -> None:
    """n = 9 and alpha = .3: k = ceil(.7 * 10) = 7, the 7th smallest of 1..9 is 7; 8 and 9 are flagged, 7 is not."""
    boundary = conformal_boundary(np.arange(9.0, 0.0, -1.0), 0.3)
    assert boundary == np.nextafter(7.0, math.inf)
    # n = 10: k = ceil(.7 * 11) = 8
    assert conformal_boundary(np.arange(1.0, 11.0), 0.3) == np.nextafter(8.0, math.inf)
    # alpha = .05, n = 19: k = 19, of floats that multiply to 19.000000000000004 the ceiling would be 20
    assert conformal_boundary(np.arange(1.0, 20.0), 0.05) == np.nextafter(19.0, math.inf)
    assert conformal_boundary(np.full(19, 2.5), 0.05) == np.nextafter(2.5, math.inf)


@pytest.mark.parametrize(("alpha", "count"), [(0.07, 99), (0.29, 99), (0.14, 49), (0.57, 99)])
def test_the_rank_is_exact_where_floats_are_not(alpha: float, count: int) -> None:
    flagged = round(alpha * 100) * (count + 1) // 100  # exactly alpha (n + 1) values above the boundary, less one
    statistics = np.arange(1.0, count + 1)
    assert (statistics >= conformal_boundary(statistics, alpha)).sum() == flagged - 1


def test_a_whole_procedure_by_hand() -> None:
    """Nine clean inputs, two members that vote alike: one step each way, so statistics have two values.

    L after one member is v < 0 on agreement and u > 0 on disagreement; the largest of the path is v or 2u. With 2
    disagreeing inputs of 9 and alpha = .3, k = 7: the boundary is just above v, and both are flagged. With 3 of them,
    the 7th smallest is 2u: nothing can be flagged, and that is refused.
    """
    fit = voted([[j < 2 for j in range(40)]] * 2), voted([[j < 30 for j in range(40)]] * 2, right=False)
    config = Detection(alpha=0.3, bins=2, min_accept=1, n_max=2)
    result = calibrate(*fit, one_member([True] * 2 + [False] * 7), config, Jury.behind_classifier(2))
    agrees, disagrees = result.tables.increments[0]
    assert (agrees, disagrees) == pytest.approx((math.log((10.5 / 41) / (38.5 / 41)), math.log(30.5 / 2.5)))
    lower = math.log(0.05 / 0.7)
    assert result.tables.upper[0] == np.nextafter(max(agrees, lower), math.inf)
    held_out = one_member([True] * 2 + [False] * 7)
    outcome = run_sequential_test(result.test, held_out.said)
    assert outcome.adversarial.tolist() == [True] * 2 + [False] * 7
    with pytest.raises(RecipeError, match="flags anything"):
        calibrate(*fit, one_member([True] * 3 + [False] * 6), config, Jury.behind_classifier(2))


def test_a_boundary_below_the_clean_boundary_is_raised_to_it_and_keeps_alpha() -> None:
    rng = np.random.default_rng(3)
    fit = correlated_answers(rng, 300, RATES), correlated_answers(rng, 300, FOOLED[:6], fooled=True)
    test = calibrate(*fit, correlated_answers(rng, 400, RATES), Detection(), Jury.behind_classifier(6)).test
    moved = replace(test, lower=np.array([0.1, 0.5, 0.2, 0.2, 0.2, 0.2]))
    raised = with_conformal_boundary(moved, alarm_statistic(moved, correlated_answers(rng, 400, RATES)), 0.9)
    assert (raised.upper == 0.5 + 2 * (np.nextafter(0.5, math.inf) - 0.5)).all()  # the float between marks a closed one


def test_the_promise_is_the_beta_law_of_vovk() -> None:
    """n = 99, alpha = .05: k = 95, so the rate given the sample is Beta(5, 95), of mean .05.

    P(Beta(5, 95) <= x) = P(Binomial(99, x) >= 5), which is .95 at the bound.
    """
    promise = false_alarms(99, 0.05)
    assert promise.expected == pytest.approx(0.05)
    below = sum(math.comb(99, j) * promise.bound**j * (1 - promise.bound) ** (99 - j) for j in range(5))
    assert 1 - below == pytest.approx(0.95, abs=1e-9)


def test_the_bound_holds_for_19_of_20_calibration_samples() -> None:
    """Statistics uniform on [0, 1]: the rate given the sample is one minus the boundary."""
    rng = np.random.default_rng(0)
    bound = false_alarms(200, 0.05).bound
    rates = np.array([1 - conformal_boundary(rng.random(200), 0.05) for _ in range(4000)])
    assert abs((rates <= bound).mean() - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 4000)
    assert abs(rates.mean() - false_alarms(200, 0.05).expected) <= 3 * rates.std() / math.sqrt(4000)
