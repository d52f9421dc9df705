import math

import numpy as np
import pytest

from s2ap_defend.sequential import run_sequential_test
from s2ap_train.calibrate import (
    Answers,
    Detection,
    calibrate,
    conformal_boundary,
    evidence_tables,
    greedy_order,
    running_maximum,
)

CLASSES = 4


def answers(rng: np.random.Generator, count: int, disagreement: list[float], *, fooled: bool = False) -> Answers:
    """Members that hold the base label unlikely with the given rates; correlated through a difficulty per input."""
    difficulty = rng.normal(size=count)
    logits = rng.normal(scale=0.5, size=(len(disagreement), count, CLASSES))
    base = rng.integers(0, CLASSES, count)
    other = (base + 1) % CLASSES
    for i, rate in enumerate(disagreement):
        threshold = np.quantile(difficulty + rng.normal(size=count), 1.0 - rate)
        differs = difficulty + rng.normal(size=count) > threshold
        logits[i, np.arange(count), np.where(differs, other, base)] += 4.0
    logp = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)
    return Answers(logp, base, other if fooled else base)


def test_increments_are_monotone_in_the_surprise_and_of_both_signs() -> None:
    rng = np.random.default_rng(0)
    edges, increments = evidence_tables(answers(rng, 300, [0.05, 0.1]), answers(rng, 300, [0.8, 0.6], fooled=True), 6)
    assert edges.dtype == np.float32
    assert edges.shape == (2, 5)
    assert (np.diff(increments, axis=1) >= 0).all()
    assert (increments[:, 0] < 0).all()
    assert (increments[:, -1] > 0).all()


def test_greedy_order_asks_the_best_separating_member_first() -> None:
    clean = np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    fooled = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert greedy_order(clean, fooled).tolist() == [1, 0]


def test_the_conformal_boundary_is_the_next_float_after_the_ranked_maximum() -> None:
    maxima = np.arange(1.0, 20.0)  # n = 19: the ceil(.95 * 20) = 19th smallest
    assert conformal_boundary(maxima, 0.05) == np.nextafter(19.0, math.inf)
    assert conformal_boundary(maxima, 0.5) == np.nextafter(10.0, math.inf)


def test_too_few_calibration_inputs_for_alpha_are_refused() -> None:
    with pytest.raises(ValueError, match=r"false-alarm rate of 0\.01 needs at least 99 calibration inputs"):
        conformal_boundary(np.arange(98.0), 0.01)


def test_the_running_maximum_is_the_largest_ratio_up_to_the_stop() -> None:
    rng = np.random.default_rng(1)
    result = calibrate(
        answers(rng, 100, [0.1] * 5),
        answers(rng, 100, [0.7] * 5, fooled=True),
        answers(rng, 60, [0.1] * 5),
        Detection(),
    )
    inputs = answers(rng, 50, [0.3] * 5)
    maxima = running_maximum(result.tables.to_test(), inputs)
    for j in range(50):
        one = inputs.keep(np.arange(50) == j)
        total, largest = 0.0, -math.inf
        test = result.tables.to_test()
        for i in range(test.members):
            surprise = np.float32(-one.log_probabilities[i, 0, one.base_label[0]])
            total += test.increments[i, int((surprise >= test.edges[i]).sum())]
            largest = max(largest, total)
            if total <= test.lower[i]:
                break
        assert maxima[j] == pytest.approx(largest, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_false_alarm_rate_holds_for_correlated_members(alpha: float) -> None:
    rng = np.random.default_rng(2)
    rates, redraws, held_out = [], 20, 400
    rate = [0.05, 0.1, 0.15, 0.2, 0.1, 0.1]
    for _ in range(redraws):
        result = calibrate(
            answers(rng, 150, rate),
            answers(rng, 150, [0.7] * 6, fooled=True),
            answers(rng, 247, rate),
            Detection(alpha=alpha),
        )
        fresh = answers(rng, held_out, rate).reorder(result.order)
        test = result.tables.to_test()
        rates.append(run_sequential_test(test, fresh.log_probabilities, fresh.base_label).adversarial.mean())
    # variance of one redraw: a Beta-distributed rate of the boundary (n = 247) and binomial sampling on top
    error = math.sqrt(alpha * (1 - alpha) * (1 / 249 + 1 / held_out) / redraws)
    assert np.mean(rates) <= alpha + 3 * error


def test_clean_may_not_be_decided_before_min_accept_members() -> None:
    rng = np.random.default_rng(3)
    result = calibrate(
        answers(rng, 100, [0.05] * 6),
        answers(rng, 100, [0.8] * 6, fooled=True),
        answers(rng, 60, [0.05] * 6),
        Detection(min_accept=4),
    )
    assert result.tables.lower[:3] == (None, None, None)
    assert result.tables.lower[3] is not None
    fresh = answers(rng, 200, [0.05] * 6).reorder(result.order)
    outcome = run_sequential_test(result.tables.to_test(), fresh.log_probabilities, fresh.base_label)
    assert (outcome.members_used[~outcome.adversarial] >= 4).all()


def test_calibration_without_fooled_inputs_is_refused() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match="20 attacked ones that are classified wrong, got 50 and 0"):
        calibrate(answers(rng, 50, [0.1]), answers(rng, 50, [0.1]), answers(rng, 50, [0.1]), Detection())
