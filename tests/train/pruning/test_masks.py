import pytest
import torch

from s2ap_train.pruning.masks import flip_rate, hamming, kept_count, sparsity, top_k_mask
from s2ap_train.pruning.scores import scaled_magnitude, straight_through
from s2ap_train.pruning.structures import Unstructured


@pytest.mark.parametrize("keep_ratio", [0.01, 0.1, 0.2, 1 / 3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (16, 3, 3, 3), (10, 257)])
def test_every_layer_keeps_exactly_its_count(shape, keep_ratio):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = top_k_mask(scores, keep_ratio)
    expected = max(1, scores.numel() - int((1 - keep_ratio) * scores.numel()))
    assert mask.shape == scores.shape
    assert mask.sum() == expected == kept_count(scores.numel(), keep_ratio)
    assert expected == scores.numel() or scores.abs()[mask].min() >= scores.abs()[~mask].max()


def test_ties_do_not_change_the_count():
    assert top_k_mask(torch.zeros(100), 0.25).sum() == 25
    assert top_k_mask(torch.tensor([1.0, -1.0, 1.0, 1.0]), 0.5).sum() == 2


def test_the_sign_of_a_score_does_not_matter_and_rescaling_a_layer_neither():
    scores = torch.tensor([-5.0, 1.0, 3.0, -0.5])
    assert top_k_mask(scores, 0.5).tolist() == [True, False, True, False]
    assert torch.equal(top_k_mask(scores * 0.001, 0.5), top_k_mask(scores, 0.5))


@pytest.mark.parametrize("keep_ratio", [0.0, -0.5, 1.5])
def test_a_ratio_outside_its_range_is_refused(keep_ratio):
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        top_k_mask(torch.ones(4), keep_ratio)


def test_distances_of_masks_by_hand():
    before = {"a": torch.tensor([1, 1, 0, 0, 0, 0]).bool(), "b": torch.tensor([1, 1, 0, 0]).bool()}
    after = {"a": torch.tensor([1, 0, 1, 0, 0, 0]).bool(), "b": torch.tensor([1, 1, 0, 0]).bool()}
    assert hamming(before, after) == 0.2  # 2 of 10 positions
    assert flip_rate(before, after) == 0.25  # 1 of 4 kept weights
    assert sparsity(before) == pytest.approx(0.6)


def test_initial_scores_are_the_scaled_weights():
    weight = torch.tensor([[1.0, -4.0, 2.0], [0.5, 3.0, -1.0]])  # fan_in 3, largest 4
    torch.testing.assert_close(scaled_magnitude(weight), 2**0.5 * weight / 4)
    convolution = torch.randn(5, 4, 3, 3)
    assert scaled_magnitude(convolution).abs().max() == pytest.approx((6 / 36) ** 0.5)
    assert torch.equal(top_k_mask(scaled_magnitude(convolution), 0.3), top_k_mask(convolution, 0.3))
    assert torch.count_nonzero(scaled_magnitude(torch.zeros(2, 2))) == 0


def test_the_score_gradient_is_the_formula_at_kept_and_pruned_positions():
    """dL/ds = dL/d(w m) * w * sign(s)."""
    generator = torch.Generator().manual_seed(0)
    weight, scores = torch.randn(6, generator=generator), torch.randn(6, generator=generator).requires_grad_()
    target = torch.randn(6, generator=generator)
    masks = {"w": top_k_mask(scores.detach(), 0.5)}
    effective = Unstructured().effective({"w": weight}, {"w": straight_through(scores, masks["w"])})["w"]
    assert torch.equal(effective, weight * masks["w"])
    (gradient,) = torch.autograd.grad(((effective - target) ** 2).sum(), scores)
    torch.testing.assert_close(gradient, 2 * (weight * masks["w"] - target) * weight * scores.detach().sign())
    assert torch.count_nonzero(gradient[~masks["w"]]) == 3


def test_the_straight_through_mask_is_exactly_zero_or_one():
    scores = torch.tensor([1e-8, 1e8], requires_grad=True)
    assert straight_through(scores, torch.tensor([True, False])).tolist() == [1.0, 0.0]
