import math
from operator import itemgetter

import pytest
import torch
from tests.train.toy_data import blobs

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.pruning import Harp, search_masks
from s2ap_train.pruning.allocation import LearnedQuotas, QuotaSettings
from s2ap_train.pruning.masks import sparsity
from s2ap_train.pruning.structures import Cost, Unstructured, structure_of
from s2ap_train.training import Run, TrainingConfig

SIZES = {"a": 100, "b": 300}
COST = Cost(((100.0, itemgetter("a")), (300.0, itemgetter("b"))))


def quotas(target=0.25, **settings):
    return LearnedQuotas(Unstructured(), COST, target, list(SIZES), QuotaSettings(**settings))


def test_a_cost_multiplies_what_its_layers_keep():
    cost = Cost(((10.0, lambda kept: kept["a"] * kept["b"]), (30.0, itemgetter("b")), (60.0, lambda _: 1.0)))
    assert float(cost.rate({"a": torch.tensor(0.5), "b": torch.tensor(0.2)})) == pytest.approx(0.01 + 0.06 + 0.6)


def test_shares_start_at_the_target_or_where_they_are_told():
    assert quotas(0.25).rate() == pytest.approx(0.25, abs=1e-5)
    assert all(float(share.detach()) == pytest.approx(0.6, abs=1e-5) for share in quotas(start=0.6).shares().values())


def test_a_start_below_the_least_share_is_clipped_and_not_nan():
    shares = [float(share.detach()) for share in quotas(0.9, start=0.05, least=0.5).shares().values()]  # k_min = .45
    assert all(math.isfinite(share) and 0.45 < share < 0.47 for share in shares)


def test_the_gradient_of_a_share_is_the_sum_of_the_gradients_of_its_mask():
    allocation = quotas(0.25)
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(size, generator=generator).requires_grad_() for name, size in SIZES.items()}
    masks = allocation.masks(scores)
    coefficients = {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}
    values = allocation.values(scores, masks)
    assert all(torch.equal(values[name], masks[name].float()) for name in SIZES)
    loss = sum((coefficients[name] * values[name]).sum() for name in SIZES)
    thetas = allocation.parameters()
    found = torch.autograd.grad(loss, [thetas["quota.a"], thetas["quota.b"]])
    for name, gradient in zip(SIZES, found, strict=True):
        share = float(allocation.shares()[name].detach())
        least = 0.1 * 0.25
        slope = (share - least) * (1 - share) / (1 - least)  # of the shifted sigmoid
        assert float(gradient) == pytest.approx(float(coefficients[name].sum()) * slope, rel=1e-4)


def test_final_masks_cost_the_target_whatever_was_learned():
    allocation = quotas(0.25)
    with torch.no_grad():
        allocation.parameters()["quota.a"].add_(3.0)
    scores = {name: torch.randn(size) for name, size in SIZES.items()}
    assert sparsity(allocation.masks(scores)) < 0.7
    masks = allocation.final_masks(scores)
    assert 1 - sparsity(masks) == pytest.approx(0.25, abs=0.005)
    assert masks["a"].float().mean() > masks["b"].float().mean(), "the order of the layers is kept"


def test_the_hardware_term_alone_brings_the_rate_to_the_target_and_its_weight_freezes():
    allocation = quotas(0.25, start=0.9, penalty=1.0)
    optimiser = torch.optim.SGD(allocation.parameters().values(), lr=0.5, momentum=0.9)
    weights = []
    for epoch in range(8):
        for _ in range(20):
            optimiser.zero_grad()
            allocation.penalty(epoch).backward()
            optimiser.step()
        weights.append(allocation.end_epoch(epoch)["penalty_weight"])
    assert allocation.rate() <= 0.25 * 1.005
    first = next(epoch for epoch in range(8) if weights[epoch] != epoch + 1)
    assert weights[: first - 1] == [epoch + 1.0 for epoch in range(first - 1)], "it grows with the epoch"
    assert len(set(weights[first - 1 :])) == 1, "and stays from the first epoch that meets the target"
    again = quotas(0.25)
    again.restore(allocation.state())
    assert again.penalty(99) is not None
    assert again.end_epoch(99)["penalty_weight"] == weights[-1]


@pytest.mark.parametrize(
    ("structure", "target"), [("unstructured", "parameters"), ("unstructured", "flops"), ("channel", "flops")]
)
def test_harp_keeps_the_asked_cost_within_half_a_percent(structure, target):
    model = SmallCNN(classes=2, widths=(16, 24), seed=1)
    training = TrainingConfig(epochs=2, lr=0.5, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)
    config = Harp(0.6, structure, training=training, target=target, quotas=QuotaSettings(start=0.8, penalty=0.5))
    pruned = search_masks(model, *blobs(), blobs(20, seed=1), config, run=Run(0))
    cost = structure_of(structure, model, (1, 8, 8)).cost(model, (1, 8, 8), target)
    rate = float(cost.rate({name: mask.float().mean() for name, mask in pruned.masks.items()}))
    whole_weights = 0.005 if structure == "unstructured" else 0.06  # one channel of 16 is 6 %
    assert rate == pytest.approx(0.4, abs=whole_weights)
    assert rate <= 0.4 + 0.005
    kept = [float(mask.float().mean()) for mask in pruned.masks.values()]
    assert max(kept) - min(kept) > 0.005, "layers learned shares of their own"
    assert {"rate", "penalty_weight"} <= set(pruned.history[0])


@pytest.mark.parametrize(
    "settings", [{"least": 0.0}, {"least": 1.0}, {"start": 0.0}, {"start": 1.5}, {"penalty": -1.0}]
)
def test_quotas_that_mean_nothing_are_refused(settings):
    with pytest.raises(RecipeError, match="quotas need 0 < least < 1"):
        QuotaSettings(**settings)
