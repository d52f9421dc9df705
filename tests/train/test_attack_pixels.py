import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2ap_train.attacks.jsma import best_pairs, jsma
from s2ap_train.attacks.local_search import around, cyclic, extreme, least, local_search, probe, sample
from s2ap_train.attacks.one_pixel import children, distinct_triples, first_generation, one_pixel, paint, select

WEIGHTS = torch.tensor([0.1, -0.3, 0.2, -0.9, 0.4, -0.5, 0.7, -0.2, 0.6, -0.8, 0.3, -0.1, 0.5, -0.6, 0.8, -0.4])


def two_classes(bias):
    """Images [N, 1, 4, 4] -> logits (0, bias + w x); w is least in pixel 3, then 9, 13, 5."""

    def logits(images):
        score = bias + images.flatten(1) @ WEIGHTS
        return torch.stack([torch.zeros_like(score), score], dim=1)

    return logits


class Counted:
    def __init__(self, classifier):
        self.classifier, self.asked = classifier, 0

    def __call__(self, images):
        self.asked += len(images)
        return self.classifier(images)


def even(value, count=1):
    return np.full((count, 1, 4, 4), value, dtype=np.float32), np.ones(count, dtype=np.int64)


def moved(attacked, images):
    return [sorted(np.flatnonzero(row).tolist()) for row in (attacked != images).reshape(len(images), -1)]


# --- local search


def test_cyclic_turns_what_leaves_the_range_round_once():
    u = torch.tensor([-1.0, -0.7, -0.5, 0.0, 0.5, 0.8, 1.0])
    expected = torch.tensor([0.5, 0.95, -0.75, 0.0, 0.75, -0.8, -0.5])  # 1.5 u, plus or minus 2 outside [-1, 1]
    torch.testing.assert_close(cyclic((u + 1) / 2, 1.5), (expected + 1) / 2)


def test_a_probe_is_p_times_the_sign():
    torch.testing.assert_close(extreme(torch.tensor([0.2, 0.5, 0.9]), 1.0), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(extreme(torch.tensor([0.2, 0.5, 0.9]), 0.4), torch.tensor([0.3, 0.5, 0.7]))


def test_a_probe_changes_all_channels_of_one_position_and_is_scored_by_the_label():
    images = torch.tensor([[[[0.2, 0.3]], [[0.4, 0.6]]]])  # two channels, one row, two columns
    logits = lambda x: torch.stack([x[:, 0, 0, 0], x[:, 1, 0, 0], x.flatten(1)[:, 1]], dim=1)  # noqa: E731
    scores = probe(logits, images, torch.ones_like(images), torch.tensor([1]), torch.tensor([[[True, False]]]))
    expected = math.exp(1) / (math.exp(1) + math.exp(1) + math.exp(0.3))  # both channels of the first column are 1
    assert scores[0, 0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert scores[0, 0, 1] == math.inf


def test_the_first_of_the_least_scores_are_chosen_and_only_where_there_was_a_probe():
    scores = torch.tensor([[[0.3, 0.1], [0.1, math.inf]], [[math.inf, math.inf], [0.2, math.inf]]])
    assert least(scores, 2).tolist() == [[[False, True], [True, False]], [[False, False], [True, False]]]
    assert least(scores, 1)[0].tolist() == [[False, True], [False, False]]


def test_the_next_round_probes_the_squares_around_the_changes():
    changed = torch.zeros(1, 6, 7, dtype=torch.bool)
    changed[0, 0, 1] = changed[0, 4, 5] = True
    rows, columns = np.indices((6, 7))
    for d in (0, 1, 2):
        expected = np.zeros((6, 7), dtype=bool)
        for row, column in ((0, 1), (4, 5)):
            expected |= (abs(rows - row) <= d) & (abs(columns - column) <= d)
        assert (around(changed, d)[0].numpy() == expected).all()


def test_positions_are_drawn_from_those_there_are():
    generator, positions = torch.Generator().manual_seed(0), torch.zeros(50, 4, 4, dtype=torch.bool)
    positions[:, 1], positions[0, 1, 1:] = True, False  # four positions, but one in the first image
    drawn = sample(positions, 2, generator)
    assert not (drawn & ~positions).any()
    assert drawn.sum((1, 2)).tolist() == [1, *[2] * 49]
    assert drawn[:, 1].any(0).all()
    assert torch.equal(sample(positions, 16, generator), positions)


EVERYWHERE = {"d": 9, "probes": None}


def test_local_search_changes_the_pixel_of_the_largest_drop_on_a_linear_network():
    """The second round sees all pixels: of those at .6 it raises the one of the least weight to .65."""
    images, labels = even(0.6, 20)
    attacked = local_search(two_classes(9.0), images, labels, seed=0, t=1, rounds=2, **EVERYWHERE)
    assert all(3 in pixels for pixels in moved(attacked, images))
    once = attacked.reshape(20, -1)[:, 3][[len(pixels) == 2 for pixels in moved(attacked, images)]]
    np.testing.assert_allclose(once, 0.65, rtol=1e-6)
    assert len(once) > 5


def test_a_probe_follows_a_change_that_is_turned_round_unless_as_published():
    """.95 is u = .9, which becomes -.65 or x = .175: lower, so the largest weights lose most."""
    images, labels = even(0.95, 20)
    attacked = local_search(two_classes(9.0), images, labels, seed=0, t=1, rounds=2, **EVERYWHERE)
    assert all(14 in pixels for pixels in moved(attacked, images))
    assert np.isclose(attacked.reshape(20, -1)[:, 14], 0.175).any()
    published = local_search(two_classes(9.0), images, labels, seed=0, t=1, rounds=2, follow_change=False, **EVERYWHERE)
    first = [pixels[0] for pixels in moved(published, images) if len(pixels) == 1]  # at .175 it is probed downwards
    assert all(WEIGHTS[pixel] > 0 for pixel in first)
    assert all(3 in pixels for pixels in moved(published, images) if len(pixels) == 2)
    assert len(first) < 10


@pytest.mark.parametrize(("t", "d", "rounds"), [(1, 0, 3), (2, 0, 3), (2, 1, 1), (3, 9, 2)])
def test_local_search_changes_t_pixels_a_round_and_asks_once_for_each_probe(t, d, rounds):
    images, labels = even(0.75)
    classifier = Counted(two_classes(9.0))
    attacked = local_search(classifier, images, labels, seed=1, t=t, d=d, rounds=rounds)
    (pixels,) = moved(attacked, images)
    assert 1 <= len(pixels) <= t * rounds
    first = math.ceil(0.1 * 16)
    probes = [first] + [16 if d else min(t, first)] * (rounds - 1)
    assert classifier.asked == 1 + sum(probes) + rounds
    if d == 0:  # the same positions in every round
        assert len(pixels) == min(t, first)


def test_no_more_positions_are_probed_than_asked_for():
    images, labels = even(0.75)
    classifier = Counted(two_classes(9.0))
    local_search(classifier, images, labels, seed=1, rounds=3, probes=4)
    assert classifier.asked == 1 + (2 + 4 + 4) + 3


def test_local_search_ends_when_the_label_leaves_the_k_largest_logits():
    images, labels = even(0.75)
    bias = -0.75 * WEIGHTS.sum().item() + 0.1  # pixel 3 alone, raised by .125, takes .11 away
    (pixels,) = moved(local_search(two_classes(bias), images, labels, seed=0, t=1, **EVERYWHERE), images)
    assert 3 in pixels
    assert len(pixels) <= 2
    three = lambda x: torch.cat([two_classes(bias)(x), torch.full((len(x), 1), -9.0)], dim=1)  # noqa: E731
    classifier = Counted(three)
    local_search(classifier, images, labels, seed=0, t=1, k=2, rounds=4, **EVERYWHERE)
    assert classifier.asked == 1 + (2 + 3 * 16) + 4  # the label stays among two of three: all rounds


# --- one pixel


def test_children_are_one_parent_plus_half_the_difference_of_two():
    candidates = torch.tensor([[[[1.0, 2.0, 0.1]], [[3.0, 0.0, 0.5]], [[2.0, 4.0, 0.7]], [[0.0, 1.0, 0.2]]]])
    parents = torch.tensor([[[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 0, 1]]])
    expected = torch.tensor([[[[4.0, 1.5, 0.75]], [[2.0, 3.5, 0.35]], [[1.0, 0.0, 0.4]], [[1.0, 5.0, 0.5]]]])
    torch.testing.assert_close(children(candidates, parents, 0.5), expected)


def test_a_child_replaces_its_own_candidate_only_if_it_is_fitter():
    candidates, born = torch.zeros(1, 3, 1, 3), torch.ones(1, 3, 1, 3)
    survivors, fitness = select(candidates, torch.tensor([[0.5, 0.2, 0.4]]), born, torch.tensor([[0.3, 0.3, 0.4]]))
    assert survivors[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(fitness, torch.tensor([[0.3, 0.2, 0.4]]))


def test_parents_are_three_others_drawn_uniformly():
    drawn = distinct_triples(4000, 4, torch.Generator().manual_seed(0))
    everyone = torch.cat([torch.arange(4).expand(4000, 4)[..., None], drawn], dim=-1)
    assert (everyone.sort(dim=-1).values == torch.arange(4)).all()
    larger = distinct_triples(2000, 7, torch.Generator().manual_seed(0))
    for n in range(3):  # each of six others with probability 1/6, also in second and third place
        for child in range(7):
            shares = torch.bincount(larger[:, child, n], minlength=7) / 2000
            assert shares[child] == 0
            others = shares[torch.arange(7) != child]
            assert (others - 1 / 6).abs().max() < 4 * (5 / 36 / 2000) ** 0.5


def test_the_first_generation_is_uniform_in_place_and_normal_in_value():
    first = first_generation(torch.zeros(1, 2, 4, 8), 2, 4000, torch.Generator().manual_seed(0))
    assert first.shape == (1, 4000, 2, 4)
    rows, columns, values = first[..., 0], first[..., 1], first[..., 2:]
    error = 3 / (8000 * 12) ** 0.5
    assert rows.mean() == pytest.approx(2, abs=4 * error)
    assert columns.mean() == pytest.approx(4, abs=8 * error)
    for wall in (0.0, 1.0):  # one deviation away from the mean
        assert (values == wall).double().mean() == pytest.approx(0.1587, abs=3 * (0.1587 * 0.8413 / 16000) ** 0.5)


def test_painting_sets_all_channels_of_the_positions_and_the_last_wins():
    candidates = torch.tensor(
        [
            [
                [[0.0, 2.9, 0.1, 0.2], [1.7, 0.0, 0.3, 0.4], [0.4, 2.0, 0.5, 0.6]],
                [[9.0, 9.0, 0.7, 0.8], [-1.0, 0.5, 0.9, 1.0], [1.0, 2.0, 0.0, 0.0]],
            ]
        ]
    )
    first, second = paint(torch.full((1, 2, 2, 3), -1.0), candidates)[0]
    torch.testing.assert_close(first, torch.tensor([[[-1, -1, 0.5], [0.3, -1, -1]], [[-1, -1, 0.6], [0.4, -1, -1]]]))
    assert second[:, 1, 2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(second[:, 0, 0], torch.tensor([0.9, 1.0]))
    assert (second == -1).sum() == 8


def planted(images):
    """Label 0 unless the pixel in row 2 and column 5 is above .9."""
    score = 20 * (images[:, 0, 2, 5] - 0.9)
    return torch.stack([torch.zeros_like(score), score], dim=1)


def test_one_pixel_finds_the_pixel_that_flips_the_label_and_stops_there():
    images, labels = np.full((6, 1, 8, 8), 0.1, dtype=np.float32), np.zeros(6, dtype=np.int64)
    classifier = Counted(planted)
    attacked = one_pixel(classifier, images, labels, seed=0, pixels=1, population=40)
    assert moved(attacked, images) == [[2 * 8 + 5]] * 6
    assert (attacked[:, 0, 2, 5] > 0.9).all()
    assert classifier.asked < 6 * 40 * 101 / 2


def test_one_pixel_changes_at_most_three_positions_where_it_finds_nothing():
    generator = np.random.default_rng(0)
    images, labels = generator.random((5, 3, 6, 6), dtype=np.float32), np.zeros(5, dtype=np.int64)
    stubborn = lambda x: torch.stack([9 + x.flatten(1).sum(1), 0 * x[:, 0, 0, 0]], dim=1)  # noqa: E731
    classifier = Counted(stubborn)
    attacked = one_pixel(classifier, images, labels, seed=0, population=10, generations=7)
    assert ((attacked != images).any(1).sum((1, 2)) == 3).all()
    assert classifier.asked == 5 * (1 + 10 * 8)


def test_further_generations_never_lose_what_was_found():
    images, labels = even(0.5, 4)
    left = []
    for generations in (1, 5, 25):
        attacked = one_pixel(two_classes(9.0), images, labels, seed=3, population=40, generations=generations)
        left.append(two_classes(9.0)(torch.from_numpy(attacked))[:, 1])
    assert (left[0] >= left[1]).all()
    assert (left[1] >= left[2]).all()
    assert (left[0] > left[2]).all()
    three_walls = 9 + 0.5 * WEIGHTS.sum() - 0.5 * WEIGHTS.abs().sort().values[-3:].sum()
    assert (left[2] >= three_walls - 1e-5).all()


def test_an_image_that_is_not_fooled_comes_back_as_the_best_that_was_asked():
    asked = []

    def remembering(images):
        logits = two_classes(9.0)(images)
        asked.append(logits[:, 1])
        return logits

    images, labels = even(0.5)
    attacked = one_pixel(remembering, images, labels, seed=3, population=12, generations=4)
    found = two_classes(9.0)(torch.from_numpy(attacked))[0, 1]
    torch.testing.assert_close(found, torch.cat(asked).min())


# --- saliency map


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


@pytest.mark.parametrize(
    ("attack", "wrong"),
    [
        (local_search, {"p": 0.0}),
        (local_search, {"r": 2.5}),
        (local_search, {"d": -1}),
        (local_search, {"t": 0}),
        (local_search, {"k": 0}),
        (local_search, {"probes": 0}),
        (one_pixel, {"population": 3}),
        (one_pixel, {"pixels": 0}),
        (jsma, {"theta": 0.0}),
        (jsma, {"fraction": 1.1}),
        (jsma, {"tries": 0}),
        (jsma, {"targets": np.array([1])}),
        (jsma, {"targets": np.array([0, 0])}),
    ],
)
def test_impossible_numbers_are_refused(attack, wrong):
    images, labels = even(0.75)
    with pytest.raises(ValueError, match="needs"):
        attack(two_classes(9.0), images, labels, seed=0, **wrong)
