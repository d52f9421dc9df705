import math

import numpy as np
import pytest
import torch
from tests.train.toy_classifier import WEIGHTS, Counted, even, moved, two_classes

from s2ap_train.attacks.jsma import jsma
from s2ap_train.attacks.local_search import around, cyclic, extreme, least, local_search, probe, sample
from s2ap_train.attacks.one_pixel import one_pixel


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


def pixels(*values):
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, 6)


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
