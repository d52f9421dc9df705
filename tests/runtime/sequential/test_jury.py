import numpy as np
import pytest

from s2ap_defend.sequential import mixed_label, settled, voted_label
from s2ap_defend.sequential.jury import exponential, power


def test_ties_of_the_vote_go_to_the_higher_sum_then_to_the_lower_class() -> None:
    votes = np.array([[3.0, 2.0, 0.0], [0.0, 2.0, 2.0], [0.0, 2.0, 2.0]])
    summed = np.array([[-9.0, -1.0, -9.0], [-9.0, -2.0, -1.0], [-9.0, -1.0, -1.0]])
    assert voted_label(votes.T, summed.T).tolist() == [0, 2, 1]


def test_a_leader_is_settled_when_the_votes_that_are_left_cannot_tie() -> None:
    votes = np.array([[3.0, 0.0, 0.0], [3.0, 1.0, 0.0]])
    assert settled(votes.T, 2.5).tolist() == [True, False]
    assert settled(votes.T, 3.0).tolist() == [False, False]


def test_a_mix_weighs_the_classifier_against_the_amplified_jury() -> None:
    # q = (.6, .4)^2 / (.36 + .16) = (.692, .308). Half of it and half of (.25, .75) is (.471, .529): the classifier
    # wins; with three quarters of it, (.582, .418), the jury does.
    classifier = np.array([[0.25], [0.75]])
    jury, weight = np.array([[1.2], [0.8]]), np.array([2.0])
    assert mixed_label(classifier, jury, weight, jury_share=0.5, amplification=2.0).tolist() == [1]
    assert mixed_label(classifier, jury, weight, jury_share=0.75, amplification=2.0).tolist() == [0]


def test_probabilities_are_those_of_exp_down_to_where_they_no_longer_count() -> None:
    logs = np.linspace(-40.0, 0.0, 4001)
    np.testing.assert_allclose(exponential(logs), np.exp(logs), rtol=1e-10)
    assert exponential(np.zeros(1)).tolist() == [1.0]
    assert exponential(np.array([-1e30, -np.inf])).tolist() == exponential(np.full(2, -40.0)).tolist()
    assert (np.diff(exponential(logs)) > 0).all()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0, 3.0, 15.5, 16.0])
def test_powers_by_products_and_square_roots_are_powers_and_never_subnormal(exponent: float) -> None:
    base = exponential(np.linspace(-40.0, 0.0, 401))
    np.testing.assert_allclose(power(base, exponent), base**exponent, rtol=1e-14)
    assert power(base, exponent).min() > np.finfo(np.float64).tiny


def test_amplification_makes_a_sure_jury_outweigh_the_classifier() -> None:
    # At power 1 half of (.8, .2) and half of (.1, .9) is (.45, .55); at power 3 q is (.985, .015): (.542, .458).
    classifier = np.array([[0.1], [0.9]])
    jury, weight = np.array([[0.8], [0.2]]), np.array([1.0])
    assert mixed_label(classifier, jury, weight, jury_share=0.5, amplification=1.0).tolist() == [1]
    assert mixed_label(classifier, jury, weight, jury_share=0.5, amplification=3.0).tolist() == [0]
