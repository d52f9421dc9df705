import pytest
import torch

from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.pruning import Finetune, finetune, prune_magnitude
from s2ap_train.pruning.masks import sparsity
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.training import TrainingConfig


def blobs(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return 0.4 * torch.rand(count, 1, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None], labels


@pytest.mark.parametrize("extra", [{}, {"average_decay": 0.9}, {"weight_radius": 0.05}])
def test_finetuning_keeps_zeros_exactly_and_moves_the_rest(extra):
    pruned = prune_magnitude(SmallCNN(classes=2, widths=(6, 8), seed=1), sparsity=0.8)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(pruned.model).items()}
    config = Finetune(TrainingConfig(epochs=2, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1, **extra))
    finetune(pruned.model, *blobs(), blobs(20, seed=1), config, masks=pruned.masks, seed=0)
    for name, weight in prunable_weights(pruned.model).items():
        assert torch.equal(weight != 0, pruned.masks[name])
        assert not torch.equal(weight, before[name])
    assert sparsity(pruned.masks) == pytest.approx(0.8, abs=0.005)


def test_the_dense_network_equals_the_masked_one():
    """Zeros are in the weights themselves: folding for export needs no mask and keeps them."""
    pruned = prune_magnitude(SmallCNN(classes=2, widths=(6, 8), seed=1), sparsity=0.5)
    images, _ = blobs()
    masked = {name: weight * pruned.masks[name] for name, weight in prunable_weights(pruned.model).items()}
    expected = torch.func.functional_call(pruned.model, masked, (images,))
    torch.testing.assert_close(pruned.model(images), expected)
    folded = fold_batch_norm(pruned.model)
    assert (folded(images) - expected).abs().max() < 1e-5
    zeros = [int((p == 0).sum()) for p in folded.parameters() if p.dim() > 1]
    assert zeros == [int((~mask).sum()) for mask in pruned.masks.values()]
