import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2ap_train.pruning.two_four import is_two_four, supports_two_four, two_four_mask, two_four_masks


def test_a_layer_worked_by_hand():
    scores = torch.tensor([[0.1, -4.0, 3.0, 0.2, 1.0, 2.0, -3.0, 0.5]])
    assert two_four_mask(scores).tolist() == [[False, True, True, False, False, True, True, False]]


def test_the_groups_lie_along_the_input_channels_at_each_position_of_the_kernel():
    scores = torch.zeros(2, 4, 1, 3)
    scores[0, :, 0, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    scores[0, :, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    scores[0, :, 0, 2] = torch.tensor([4.0, 1.0, 1.5, -3.0])
    mask = two_four_mask(scores)
    assert mask[0, :, 0, 0].tolist() == [True, True, False, False]
    assert mask[0, :, 0, 1].tolist() == [False, False, True, True]
    assert mask[0, :, 0, 2].tolist() == [True, False, False, True]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 12]), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_every_group_of_a_convolution_keeps_its_two_largest(shape, seed):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mask = two_four_mask(scores)
    for output in range(shape[0]):
        for first in range(0, shape[1], 4):
            group, kept = scores[output, first : first + 4].abs(), mask[output, first : first + 4]
            assert (kept.sum(0) == 2).all()
            smallest_kept = group.masked_fill(~kept, torch.inf).amin(0)
            assert (smallest_kept >= group.masked_fill(kept, -torch.inf).amax(0)).all()
    assert mask.sum() * 2 == mask.numel()


def test_ties_and_exact_zeros_keep_two_of_each_group_too():
    assert is_two_four(two_four_mask(torch.zeros(3, 8, 2, 2)))
    assert is_two_four(two_four_mask(torch.ones(3, 8).mul(-1)))
    assert torch.equal(two_four_mask(torch.zeros(3, 8)), two_four_mask(torch.zeros(3, 8)))


def test_the_memory_layout_does_not_change_the_mask():
    scores = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(two_four_mask(scores.to(memory_format=torch.channels_last)), two_four_mask(scores))


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (16, 1, 3, 3), (10, 6), (4,)])
def test_layers_whose_inputs_are_not_whole_groups_stay_dense(shape):
    scores = torch.randn(shape)
    assert not supports_two_four(scores)
    assert two_four_mask(scores).all()


def test_masks_by_name_and_what_breaks_the_pattern():
    masks = two_four_masks({"first": torch.randn(4, 3, 3, 3), "second": torch.randn(4, 8, 3, 3)})
    assert masks["first"].all()
    assert is_two_four(masks["second"])
    broken = masks["second"].clone()
    broken[0, :4, 0, 0] = True
    assert not is_two_four(broken)
    assert not is_two_four(masks["first"])


def test_nan_cannot_be_ranked():
    with pytest.raises(ValueError, match="hold NaN"):
        two_four_mask(torch.tensor([[1.0, float("nan"), 0.0, 2.0]]))
