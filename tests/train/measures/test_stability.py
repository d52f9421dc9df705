import math

import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.measures.predictions import predictions
from s2ap_train.measures.stability import (
    agreement,
    consecutive,
    mask_distance,
    pairwise,
)
from s2ap_train.pruning.masks import flip_rate, hamming, top_k_mask


def mask(*rows):
    return {f"layer{number}": torch.tensor(row).bool() for number, row in enumerate(rows)}


FIRST = mask([1, 1, 0, 0, 0, 0], [1, 1, 0, 0])
SECOND = mask([1, 0, 1, 0, 0, 0], [1, 1, 0, 0])


def test_distances_of_two_masks_are_those_counted_by_hand():
    distance = mask_distance(FIRST, SECOND)
    assert distance.hamming == 0.2  # 2 of 10 positions
    assert distance.flip_rate == 0.25  # 1 of 4 kept weights is another one
    assert distance.jaccard == pytest.approx(3 / 5)  # 3 kept by both, 5 by either
    assert distance.chance == pytest.approx(1 - (2 * 2 / 6 + 2 * 2 / 4) / 4)  # independent: 5/3 of 4 kept in common


def test_the_flip_rate_is_the_hamming_distance_on_the_scale_of_what_is_kept():
    """h p / (2 kept), at 99 % as at 50 %; the same number as the mask search logs."""
    generator = torch.Generator().manual_seed(0)
    for keep_ratio in (0.5, 0.1, 0.01):
        before, after = ({"w": top_k_mask(torch.randn(50, 40, generator=generator), keep_ratio)} for _ in range(2))
        distance = mask_distance(before, after)
        kept = int(before["w"].sum())
        assert distance.flip_rate == flip_rate(before, after) == distance.hamming * 2000 / (2 * kept)
        assert distance.hamming == hamming(before, after)
        assert distance.jaccard == pytest.approx((1 - distance.flip_rate) / (1 + distance.flip_rate))


def test_independent_masks_are_as_far_apart_as_chance_says():
    generator = torch.Generator().manual_seed(0)
    size, keep_ratio = 100_000, 0.1
    first, second = ({"w": top_k_mask(torch.rand(size, generator=generator), keep_ratio)} for _ in range(2))
    distance = mask_distance(first, second)
    assert distance.chance == pytest.approx(1 - keep_ratio)
    # kept in common is hypergeometric with mean n k^2 and a variance below n k^2; the flip rate is 1 - common / (n k)
    standard_error = math.sqrt(size * keep_ratio**2) / (size * keep_ratio)
    assert abs(distance.flip_rate - distance.chance) < 3 * standard_error


def test_masks_that_keep_unequal_numbers_still_lie_between_the_same_and_nothing_in_common():
    assert mask_distance(mask([1, 1, 1, 0]), mask([0, 0, 0, 1])).flip_rate == 1.0
    assert mask_distance(mask([1, 1, 1, 0]), mask([1, 0, 0, 0])).flip_rate == 0.5
    assert mask_distance(mask([0, 0]), mask([0, 0])).jaccard == 1.0


def test_epochs_are_compared_with_their_predecessor_and_seeds_with_each_other():
    masks = [mask([1, 1, 0, 0]), mask([1, 0, 1, 0]), mask([1, 1, 0, 0])]
    epochs, seeds = consecutive(masks), pairwise(masks)
    assert [d.hamming for d in epochs.distances] == [0.5, 0.5]
    assert [d.hamming for d in seeds.distances] == [0.5, 0.0, 0.5]
    assert seeds.mean.hamming == pytest.approx(1 / 3)
    assert seeds.std is not None
    assert seeds.std.hamming == pytest.approx(math.sqrt(1 / 12))  # sample deviation of 0.5, 0, 0.5
    assert pairwise(masks[:2]).std is None
    assert seeds.to_json()["mean"]["hamming"] == seeds.mean.hamming


@pytest.mark.parametrize(
    "other", [mask([1, 1, 0, 0, 0, 0]), mask([1, 0], [1, 0]), {"other": torch.ones(6, dtype=torch.bool)}]
)
def test_masks_of_different_networks_are_refused(other):
    with pytest.raises(RecipeError, match="compare masks of one architecture"):
        mask_distance(FIRST, other)


def test_one_mask_has_no_stability():
    with pytest.raises(RecipeError, match="found 1; give at least two"):
        pairwise([FIRST])


def test_agreement_of_predictions_counted_by_hand():
    images = torch.eye(4)[:, None, None, :]  # image i is 1 at pixel i

    def shifted(places):
        return lambda x: x.flatten(1).roll(places, dims=1)

    def half(x):
        return torch.cat([x.flatten(1)[:2], x.flatten(1)[2:].roll(1, dims=1)])

    found = agreement([predictions(model, images) for model in (shifted(0), shifted(1), half)])
    expected = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 1.0]], dtype=torch.float64)
    assert torch.equal(found, expected)
