import numpy as np
import pytest
import torch
from tests.train.toy_classifier import WEIGHTS, Counted, even, moved, two_classes

from s2ap_train.attacks.one_pixel import children, distinct_triples, first_generation, one_pixel, paint, select


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


def pixels(*values):
    return np.array(values, dtype=np.float32).reshape(1, 1, 1, 6)
