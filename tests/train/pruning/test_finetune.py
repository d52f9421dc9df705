import pytest
import torch
from tests.train.toy_data import blobs

from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.pruning import S2AP, Harp, Hydra, finetune, prune_magnitude, search_masks
from s2ap_train.pruning.masks import sparsity
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.training import Run, TrainingConfig


def tune(pruned, structure="unstructured", **extra):
    config = TrainingConfig(epochs=2, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1, **extra)
    return finetune(pruned, *blobs(), blobs(20, seed=1), config, structure=structure, run=Run(0))


@pytest.mark.parametrize("extra", [{}, {"average_decay": 0.9}, {"weight_radius": 0.05}])
def test_finetuning_keeps_zeros_exactly_and_moves_the_rest(extra):
    pruned = prune_magnitude(SmallCNN(classes=2, widths=(6, 8), seed=1), sparsity=0.8)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(pruned.model).items()}
    tuned = tune(pruned, **extra)
    for name, weight in prunable_weights(tuned.model).items():
        assert torch.equal(weight != 0, pruned.masks[name])
        assert not torch.equal(weight, before[name])
    assert sparsity(pruned.masks) == pytest.approx(0.8, abs=0.005)


TRAINING = TrainingConfig(epochs=1, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)


@pytest.mark.parametrize(
    ("method", "structure"),
    [(Hydra, "unstructured"), (Hydra, "2:4"), (Hydra, "channel"), (Harp, "unstructured"), (Harp, "channel")],
)
def test_weights_that_a_mask_search_froze_are_trained_again(method, structure):
    config = method(0.5, structure, training=TRAINING, s2ap=S2AP(0.05, warmup_epochs=0))
    pruned = search_masks(SmallCNN(classes=2, widths=(8, 8), seed=1), *blobs(), blobs(20, seed=1), config, run=Run(0))
    before = finetune(pruned, *blobs(), blobs(20, seed=1), None, structure=structure, run=Run(0)).model
    after = tune(pruned, structure, weight_radius=0.01).model
    for name, weight in prunable_weights(after).items():
        moved = weight != prunable_weights(before)[name]
        assert moved[weight != 0].float().mean() > 0.9, name
        if structure != "channel" and name in pruned.masks:
            assert torch.equal(weight != 0, pruned.masks[name])


def test_a_network_without_batch_normalisation_is_pruned_and_fine_tuned():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    pruned = search_masks(model, *blobs(), blobs(20, seed=1), Hydra(0.5, training=TRAINING), run=Run(0))
    tuned = tune(pruned).model
    assert not torch.equal(tuned[1].weight, pruned.model[1].weight)
    assert torch.equal(tuned[1].weight != 0, pruned.masks["1.weight"])


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


def test_a_two_four_pattern_survives_fine_tuning():
    config = Hydra(0.5, "2:4", training=TrainingConfig(epochs=1, batch_size=20, eps=0.1, attack_steps=1))
    model = SmallCNN(classes=2, widths=(8, 8), seed=1)
    pruned = search_masks(model, *blobs(), blobs(20, seed=1), config, run=Run(0))
    weights = prunable_weights(tune(pruned, "2:4", weight_radius=0.01).model)
    assert set(pruned.masks) == set(weights) - {"blocks.0.convolution.weight"}, "one grey channel is no group of four"
    for name in pruned.masks:
        groups = weights[name].movedim(1, -1).unflatten(-1, (-1, 4)).count_nonzero(-1)
        assert (groups == 2).all(), "exactly two of every four inputs"


def test_channels_are_gone_before_fine_tuning_and_the_logits_are_those_of_the_gated_network():
    config = Hydra(0.5, "channel", training=TrainingConfig(epochs=1, batch_size=20, eps=0.1, attack_steps=1))
    model = SmallCNN(classes=2, widths=(8, 8), seed=1)
    pruned = search_masks(model, *blobs(), blobs(20, seed=1), config, run=Run(0))
    images, _ = blobs()
    shipped = finetune(pruned, *blobs(), blobs(20, seed=1), None, structure="channel", run=Run(0)).model
    assert shipped.widths == (4, 4)
    torch.testing.assert_close(shipped(images), pruned.model(images), atol=1e-5, rtol=0)
    tuned = tune(pruned, "channel").model
    assert sum(p.numel() for p in tuned.parameters()) == sum(p.numel() for p in shipped.parameters())
    assert (tuned(images) - shipped(images)).abs().max() > 1e-3


class Tied(torch.nn.Module):
    """A network with a weight that two layers share, and a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.last, self.unused = torch.nn.Linear(64, 2), torch.nn.Linear(64, 2)

    def forward(self, images):
        return self.last(torch.relu(self.second(torch.relu(self.first(images.flatten(1))))))


def test_shared_weights_are_pruned_once_and_unused_ones_do_not_matter():
    pruned = search_masks(Tied(), *blobs(), blobs(20, seed=1), Hydra(0.5, training=TRAINING), run=Run(0))
    assert set(pruned.masks) == {"first.weight", "last.weight", "unused.weight"}
    tuned = tune(pruned, weight_radius=0.01).model
    assert tuned.second.weight is tuned.first.weight
    assert torch.equal(tuned.first.weight != 0, pruned.masks["first.weight"])
