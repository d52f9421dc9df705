import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.toy_classifier import moved

from s2ap_train.attacks.jsma import best_pairs, jsma


def test_the_best_pair_is_that_of_the_largest_product_not_of_the_largest_derivatives():
    a = torch.tensor([[5.0, 4.0, 1.0, 3.0, -1.0]])
    b = torch.tensor([[1.0, 2.0, -6.0, -2.0, -9.0]])
    # (0,2): 6 * 5 = 30; (0,3): 8 * 1 = 8; (0,4): 4 * 8 = 32; (1,4): 3 * 7 = 21; (2,3): 4 * 8 = 32; (3,4): 2 * 11 = 22
    b[0, 4] = -9.5  # (0,4): 4 * 8.5 = 34
    pair, there = best_pairs(a, b, torch.ones_like(a, dtype=torch.bool))
    assert sorted(pair[0].tolist()) == [0, 4]
    assert there.all()
    searched = torch.tensor([[False, True, True, True, True]])
    assert sorted(best_pairs(a, b, searched)[0][0].tolist()) == [2, 3]


def test_without_a_pair_that_helps_there_is_none():
    ones = torch.ones(1, 4)
    everything = torch.ones(1, 4, dtype=torch.bool)
    for a, b in ((-ones, -ones), (ones, ones), (0 * ones, -ones)):
        assert not best_pairs(a, b, everything)[1].any()
    assert best_pairs(ones, -ones, everything)[1].all()
    assert not best_pairs(ones, -ones, torch.tensor([[True, False, False, False]]))[1].any()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 14), st.booleans())
def test_the_search_along_the_front_loses_no_pair(seed, size, coarse):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, size, generator=generator, dtype=torch.float64) for _ in range(2))
    if coarse:  # many equal values
        a, b = a.round(), b.round()
    searched = torch.rand(3, size, generator=generator) < 0.8
    pairs, there = best_pairs(a, b, searched)
    for n in range(3):
        best = -math.inf
        for p in range(size):
            for q in range(p):
                up, down = a[n, p] + a[n, q], b[n, p] + b[n, q]
                if searched[n, p] and searched[n, q] and up > 0 > down:
                    best = max(best, float(-up * down))
        assert bool(there[n]) == (best > -math.inf)
        if there[n]:
            p, q = pairs[n].tolist()
            assert p != q
            assert searched[n, p]
            assert searched[n, q]
            assert float(-(a[n, p] + a[n, q]) * (b[n, p] + b[n, q])) == best


ROWS = torch.tensor(
    [[0.0, 0.0, -6.0, -2.0, -6.0, 0.0], [1.0, 2.0, 0.0, 0.0, -3.5, 0.0], [5.0, 4.0, 1.0, 3.0, -1.0, 0.1]]
)


def three_classes(bias):
    return lambda images: images.flatten(1) @ ROWS.T + torch.tensor(bias)


def pixels(*values):
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, 6)


def test_jsma_sets_the_best_pair_to_the_wall():
    """Towards class 2: a is row 2, b the sum of the others (1, 2, -6, -2, -9.5, 0); the pair (0, 4) has most, 34."""
    clean = pixels(*[0.25] * 6)
    attacked = jsma(three_classes([9.0, 0.0, 0.0]), clean, np.zeros(1, dtype=np.int64), seed=0, fraction=0.34)
    assert attacked.reshape(-1).tolist() == [1.0, 0.25, 0.25, 0.25, 1.0, 0.25]


def test_jsma_leaves_out_what_is_at_the_wall_and_takes_steps_of_theta():
    clean = pixels(1.0, 0.25, 0.25, 0.25, 0.25, 0.25)
    attacked = jsma(
        three_classes([99.0, 0.0, 0.0]), clean, np.zeros(1, dtype=np.int64), seed=0, fraction=0.34, theta=0.5
    )
    assert attacked.reshape(-1).tolist() == [1.0, 0.25, 0.75, 0.75, 0.25, 0.25]  # (2, 3): 4 * 8


def test_jsma_darkens_with_a_negative_theta():
    """Towards class 0, most probable after 1: a = (0, 0, 6, 2, 6, 0), b = (-6, -6, -1, -3, 4.5, -.1) downwards."""
    clean = pixels(*[0.5] * 6)
    attacked = jsma(
        three_classes([98.0, 99.0, 0.0]), clean, np.ones(1, dtype=np.int64), seed=0, fraction=0.34, theta=-1.0
    )
    # (0,2): 6 * 7 = 42; (1,2): 6 * 7 = 42, the first counts; (2,3): 8 * 4 = 32; (0,4): 6 * 1.5; (1,3): 2 * 9
    assert attacked.reshape(-1).tolist() in ([0.0, 0.5, 0.0, 0.5, 0.5, 0.5], [0.5, 0.0, 0.0, 0.5, 0.5, 0.5])


def test_jsma_stops_at_success():
    clean, labels = pixels(*[0.25] * 6), np.zeros(1, dtype=np.int64)
    easy = jsma(three_classes([9.0, 0.0, 0.0]), clean, labels, seed=0, fraction=1.0)
    assert (easy != clean).sum() == 2  # the first pair is enough: it takes 4.5 from class 0 and gives 3 to class 2


def test_jsma_tries_the_other_classes_in_turn():
    """Class 1 is the more probable on the clean image but nothing leads there; the second try, class 2, works."""
    rows = torch.tensor([[-3.0, -3.0, 0, 0, 0, 0], [0.0] * 6, [3.0, 3.0, 0, 0, 0, 0]])
    classifier = lambda x: x.flatten(1) @ rows.T + torch.tensor([5.0, 3.0, 0.0])  # noqa: E731
    clean, labels = pixels(*[0.25] * 6), np.zeros(1, dtype=np.int64)
    assert np.array_equal(jsma(classifier, clean, labels, seed=0, fraction=0.34, tries=1), clean)
    for tries in (2, None):
        attacked = jsma(classifier, clean, labels, seed=0, fraction=0.34, tries=tries)
        assert moved(attacked, clean) == [[0, 1]]


def slopes(*slopes_and_values):
    """Logits of images of 6 pixels at .25: given slopes in the first four, the same, and given values there."""

    def logits(images):
        light = images.flatten(1)[:, :4].sum(1) - 1
        return torch.stack([value + slope * light for slope, value in slopes_and_values], dim=1)

    return logits


def test_jsma_stops_at_any_error_but_with_targets_only_at_theirs():
    """The first pair adds 1.5 light, the second as much."""
    clean, labels = pixels(*[0.25] * 6), np.zeros(1, dtype=np.int64)
    towards_one_but_two_is_faster = slopes((-3, 4.0), (1, 1.0), (2, 0.5))  # then (-.5, 2.5, 3.5)
    attacked = jsma(towards_one_but_two_is_faster, clean, labels, seed=0, fraction=0.67, tries=1)
    assert (attacked != clean).sum() == 2
    two_first_then_one = slopes((-3, 4.0), (2, -1.0), (1, 1.5))  # then (-.5, 2, 3), then (-5, 5, 4.5)
    attacked = jsma(two_first_then_one, clean, labels, seed=0, fraction=0.67, targets=np.array([1]))
    assert (attacked != clean).sum() == 4
    assert two_first_then_one(torch.from_numpy(attacked)).argmax() == 1


def test_jsma_goes_to_the_target_it_is_given():
    clean, labels = np.repeat(pixels(*[0.25] * 6), 2, axis=0), np.zeros(2, dtype=np.int64)
    classifier = three_classes([9.0, 0.0, 0.0])
    attacked = jsma(classifier, clean, labels, seed=0, fraction=1.0, targets=np.array([2, 1]))
    assert classifier(torch.from_numpy(attacked)).argmax(1)[0] == 2
    assert not np.array_equal(attacked[0], attacked[1])
