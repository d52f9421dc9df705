import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.models import (
    SmallCNN,
    batch_norm_statistics_frozen,
    build,
    evaluation_mode,
    evaluation_view,
    fold_batch_norm,
)


def trained_looking(model: SmallCNN) -> SmallCNN:
    """Give batch normalisation statistics and an affine part that are far from their start."""
    generator = torch.Generator().manual_seed(5)
    for block in model.each_block():
        for tensor in (block.norm.weight, block.norm.bias, block.norm.running_mean, block.norm.running_var):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def test_logits_have_one_row_per_image_and_one_column_per_class():
    model = SmallCNN(in_channels=3, classes=7, widths=(4, 5, 6), image_size=12, pool_after=(1,))
    assert model.eval()(torch.rand(2, 3, 12, 12)).shape == (2, 7)


def test_the_seed_decides_the_weights_and_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    first, same, other = SmallCNN(seed=1), SmallCNN(seed=1), SmallCNN(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_architecture_rebuilds_the_same_network():
    model = trained_looking(SmallCNN(widths=(3, 9, 4), pool_after=(0, 2), seed=3))
    rebuilt = build(model.architecture())
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(rebuilt.eval()(images), model(images))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "big_cnn"}, "unknown architecture 'big_cnn'; choose one of small_cnn"),
        ({}, "unknown architecture None"),
        ({"name": "small_cnn", "depth": 3}, "'small_cnn' cannot be built from .*depth"),
        ({"name": "small_cnn", "widths": [4, 0]}, "every size must be at least 1"),
        ({"name": "small_cnn", "widths": [4, 4], "pool_after": [2]}, "must name blocks from 0 to 1"),
        ({"name": "small_cnn", "widths": [4] * 4, "pool_after": [0, 1, 2, 3]}, "leave nothing of an image of 8 pixels"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(architecture, message):
    with pytest.raises(RecipeError, match=message):
        build(architecture)


def test_folding_batch_norm_keeps_the_logits():
    model = trained_looking(SmallCNN(widths=(16, 16, 32), pool_after=(0, 2)))
    folded = fold_batch_norm(model)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (folded(images) - model(images)).abs().max() < 1e-5
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_folding_keeps_zero_weights_zero_and_shares_nothing():
    model = trained_looking(SmallCNN(widths=(4, 4), pool_after=(0, 1)))
    model.each_block()[1].convolution.weight.data[0] = 0.0
    before = model.classifier.weight.clone()
    folded = fold_batch_norm(model)
    convolutions = [module for module in folded if isinstance(module, torch.nn.Conv2d)]
    assert torch.count_nonzero(convolutions[1].weight[0]) == 0
    for parameter in folded.parameters():
        parameter.zero_()
    assert torch.equal(model.classifier.weight, before)


def test_frozen_statistics_do_not_move_although_the_batch_normalises():
    model = SmallCNN(widths=(4, 4)).train()
    images = torch.rand(8, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with batch_norm_statistics_frozen(model):
        frozen = model(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(frozen, model(images)), "the batch's own statistics normalise in both"
    assert not torch.equal(model.state_dict()["blocks.0.norm.running_mean"], before["blocks.0.norm.running_mean"])


def test_evaluation_mode_is_undone_also_after_an_error():
    model = SmallCNN(widths=(4,), pool_after=())
    model.blocks.eval()
    with evaluation_mode(model):
        assert not model.training
        assert not model.each_block()[0].training
    with pytest.raises(RuntimeError), evaluation_mode(model):
        model(torch.zeros(1, 5, 8, 8))
    assert model.training
    assert not model.blocks.training, "what was in evaluation mode stays there"


@pytest.mark.parametrize(
    ("blocks", "pools"), [(1, (0,)), (2, (0, 1)), (3, (0, 1)), (4, (1, 2)), (5, (1, 3)), (6, (2, 4)), (9, (3, 6))]
)
def test_by_default_two_pools_stand_in_the_middle(blocks, pools):
    assert SmallCNN(widths=(2,) * blocks).pool_after == pools


def test_the_view_for_attacks_has_the_logits_of_evaluation_mode():
    model, images = trained_looking(SmallCNN(widths=(4, 4, 4))), torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(evaluation_view(model.train())(images), model.eval()(images))
    other = torch.nn.Linear(2, 2)
    assert evaluation_view(other) is other
