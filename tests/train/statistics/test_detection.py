import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from s2ap_train.statistics.detection import (
    Share,
    detected_at,
    detection_differences,
    roc_area,
    roc_points,
    threshold_at,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_the_area_is_that_of_scikit_learn_with_any_ties(negative, positive):
    truth = np.r_[np.zeros(len(negative)), np.ones(len(positive))]
    expected = roc_auc_score(truth, np.r_[negative, positive])
    found = roc_area(np.array(negative, dtype=float), np.array(positive, dtype=float))
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high


def test_delongs_interval_worked_by_hand():
    # negatives 1 and 3, positives 2 and 4: shares beaten (1/2, 1), shares of positives that beat (1, 1/2).
    found = roc_area(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    assert found.value == 0.75
    assert found.low == pytest.approx(0.75 - 1.959964 * math.sqrt(0.125 / 2 + 0.125 / 2))
    assert found.high == 1.0


def test_the_interval_covers_the_true_area_in_95_of_100_draws_within_three_standard_errors():
    generator = np.random.default_rng(0)
    truth = 0.7602499  # of normal distributions one standard deviation apart: Phi(1 / sqrt 2)
    draws = [roc_area(generator.normal(size=100), generator.normal(size=80) + 1) for _ in range(400)]
    covered = np.mean([found.low <= truth <= found.high for found in draws])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 400)


def test_no_more_than_the_stated_share_of_negatives_lies_above_the_threshold():
    negative = np.arange(100.0)
    assert threshold_at(negative, 0.05) == 94.0
    assert (negative > threshold_at(negative, 0.05)).sum() == 5
    assert (negative > threshold_at(negative, 0.049)).sum() == 4
    assert threshold_at(negative, 0.0) == 99.0
    tied = np.array([0.0] * 90 + [1.0] * 10)
    assert threshold_at(tied, 0.05) == 1.0  # all ten or none


def test_detection_at_a_rate_counts_positives_strictly_above_the_threshold():
    found = detected_at(np.arange(20.0), np.array([18.0, 18.5, 19.0, 30.0]), 0.05)
    assert (found.value, found.count) == (0.75, 4)
    assert found.low < 0.75 < found.high


def test_a_share_of_nothing_is_no_number_and_null_in_json():
    assert Share.of(np.array([], dtype=bool)).to_json() == {"value": None, "low": 0.0, "high": 1.0, "count": 0}
    assert math.isnan(roc_area(np.array([]), np.array([1.0])).value)


def test_the_roc_curve_is_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    negative, positive = generator.integers(0, 5, 40).astype(float), generator.integers(2, 8, 30).astype(float)
    found = roc_points(negative, positive)
    truth = np.r_[np.zeros(40), np.ones(30)]
    fpr, tpr, _ = roc_curve(truth, np.r_[negative, positive], drop_intermediate=False)
    assert found["false_alarm_rate"] == pytest.approx(fpr)
    assert found["detection_rate"] == pytest.approx(tpr)


def test_a_better_detector_differs_beyond_noise_and_equal_ones_do_not():
    generator = np.random.default_rng(2)
    clean, attacked = generator.normal(size=300), generator.normal(size=300) + 2
    better = (clean, attacked + 2)
    difference, low, high = detection_differences(better, (clean, attacked), 0.05, paired=True, seed=0)
    assert low > 0
    assert low < difference < high
    same = detection_differences((clean, attacked), (clean, attacked), 0.05, paired=True, seed=0)
    assert same == (0.0, 0.0, 0.0)
    other = (clean, generator.normal(size=200) + 2)
    _, low, high = detection_differences((clean, attacked), other, 0.05, paired=False, seed=0)
    assert low < 0 < high


def test_a_threshold_without_negatives_is_refused():
    with pytest.raises(ValueError, match="need negatives"):
        threshold_at(np.array([]), 0.05)
