import numpy as np
import pytest

from s2ap_train.redteam.checks.plausibility import BEST_KNOWN, best_known, plausibility_check


def kept(share, count=1000):
    return np.arange(count) < round(share * count)


def test_what_a_detector_claims_at_sixteen_is_held_against_what_a_classifier_reaches_at_eight():
    """.7528 is the best known at 8/255; P(801 or more of 1000) is 1e-4, P(770 or more) .1."""
    assert plausibility_check(kept(0.80), data="cifar10", eps=16 / 255).passed is False
    passed = plausibility_check(kept(0.77), data="CIFAR-10", eps=16 / 255)
    assert passed.passed is True
    assert passed.found["best_known"] == 0.7528
    assert "2406.05927" in passed.meaning


def test_a_failure_names_a_weak_attack_and_not_masking():
    check = plausibility_check(kept(1.0), data="imagenet", eps=8 / 255)
    assert check.passed is False
    assert not check.masking
    assert "stronger attack" in check.meaning


def test_a_bound_at_a_smaller_radius_holds_at_a_larger_and_not_the_other_way():
    assert best_known("cifar10", 8 / 255).robust_accuracy == 0.7528
    assert best_known("cifar10", 0.1).robust_accuracy == 0.7528
    assert best_known("cifar10", 4 / 255) is None
    assert best_known("cifar100", 8 / 255).robust_accuracy == 0.4478
    assert best_known("digits", 1.0) is None


def test_the_lowest_bound_counts(monkeypatch):
    from s2ap_train.redteam.checks import plausibility

    tighter = plausibility.BestKnown("cifar10", 12 / 255, 0.5, "made up")
    monkeypatch.setattr(plausibility, "BEST_KNOWN", (*BEST_KNOWN, tighter))
    assert best_known("cifar10", 12 / 255) is tighter
    assert best_known("cifar10", 10 / 255).eps == 8 / 255


def test_other_data_is_held_against_the_best_classifier_measured_on_the_same_images():
    """27 images more, none less: p = 2^-27; 6 more: p = 2^-6 > .01."""
    weak, strong = kept(0.2, 40), kept(0.3, 40)
    far = plausibility_check(kept(0.975, 40), data="digits", eps=0.15, measured={"weak": weak, "strong": strong})
    assert far.passed is False
    assert far.found["broken_by_the_first_only"] == 27
    assert "'strong'" in far.meaning
    near = plausibility_check(kept(0.45, 40), data="digits", eps=0.15, measured={"weak": weak, "strong": strong})
    assert near.passed is True


@pytest.mark.parametrize("measured", [None, {}])
def test_without_anything_to_compare_with_it_is_not_judged(measured):
    check = plausibility_check(kept(1.0), data="digits", eps=0.15, measured=measured)
    assert check.passed is None
    assert "0.075" in check.meaning


def test_published_figures_are_shares_at_radii_of_pixels():
    for known in BEST_KNOWN:
        assert 0.0 < known.robust_accuracy < 1.0
        assert 0.0 < known.eps < 0.1
        assert known.data.isalnum()
        assert known.data == known.data.lower()
