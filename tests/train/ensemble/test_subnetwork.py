"""Subnetwork extraction, the 'SE' family: edge-popup (Ramanujan et al. 2020) as members use it."""

import pytest
import torch
from tests.train.toy_data import bars
from torch import nn

from s2ap_train.ensemble import Base, PrunedFamily
from s2ap_train.models import fold_batch_norm
from s2ap_train.pruning.masks import kept_count
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.scratch_ticket import random_network
from s2ap_train.training import Run, TrainingData, accuracy

MODEL = {"name": "small_cnn", "widths": [8, 12]}
DATA = TrainingData(*bars(), bars(40, seed=1), 4)
TRAINING = {"loss": "natural", "eps": 0, "epochs": 8, "lr": 0.5, "batch_size": 20, "weight_decay": 1e-4}


def never() -> nn.Module:
    raise AssertionError("a subnetwork needs no plain network")


@pytest.fixture(scope="module")
def member():
    table = {"family": "pruned", "count": 1, "models": [MODEL]}
    family = PrunedFamily(**table, pruning={"method": "scratch-ticket", "sparsity": 0.5, "training": TRAINING})
    return family.train(0, DATA, Base(MODEL, 0, never), run=Run(5))


def test_its_weights_are_the_signed_constants_of_the_seed_or_zero(member):
    drawn = prunable_weights(random_network(DATA.create(MODEL, 5), seed=5))
    for name, weight in prunable_weights(member.model).items():
        size = (2 / weight[0].numel()) ** 0.5
        mask = member.beside[f"mask.{name}"]
        assert torch.equal(drawn[name].abs(), torch.full_like(weight, size))
        assert 0.3 < (drawn[name] > 0).float().mean() < 0.7, "signs are random"
        assert torch.equal(weight, torch.where(mask, drawn[name], 0.0)), "the mask is folded, the weights never trained"


def test_the_mask_is_the_top_half_of_every_layer_by_the_size_of_its_scores(member):
    for name in prunable_weights(member.model):
        mask, sizes = member.beside[f"mask.{name}"], member.beside[f"score.{name}"].abs()
        assert int(mask.sum()) == kept_count(mask.numel(), 0.5)
        assert sizes[mask].min() >= sizes[~mask].max()


def test_batch_normalisation_only_normalises(member):
    norms = [module for module in member.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
        assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)), "statistics are measured"
    assert torch.equal(member.model.classifier.bias, torch.zeros(4))


def test_it_is_a_standard_classifier_that_learned_from_clean_images(member):
    assert member.method == "subnetwork"
    assert not member.adversarially_trained
    assert accuracy(member.model, *bars(60, seed=2)) > 0.9
    images = bars(10, seed=3)[0]
    assert torch.allclose(fold_batch_norm(member.model)(images), member.model(images), atol=1e-5)
