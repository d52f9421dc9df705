import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.forked_process import ended, forked
from tests.train.toy_data import bars, same

from s2ap_defend.errors import RecipeError
from s2ap_train.compute import LOCAL
from s2ap_train.models import SmallCNN
from s2ap_train.pruning.flying_bird import AdaptiveSparsity, FlyingBird
from s2ap_train.pruning.masks import kept_count, sparsity
from s2ap_train.pruning.moving_topology import MovingTopology, prune_flying_bird, rising
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.topology import drop_and_regrow, erdos_renyi_counts, layer_counts, random_masks
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig

TRAINING = TrainingConfig(epochs=4, lr=0.1, batch_size=20, eps=0.03, attack_steps=1, validation_steps=2)


def network(seed=1):
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=seed)


def fly(config, seed=0, **more):
    return prune_flying_bird(network(), *bars(), bars(40, seed=1), config, run=Run(seed, **more))


def test_erdos_renyi_counts_worked_by_hand():
    """Dimensions add up to 4+1+3+3 = 11 and 6+12 = 18: of 29 weights they get 11 and 18; of 58, the first is full."""
    shapes = {"convolution": (4, 1, 3, 3), "linear": (6, 12)}
    assert erdos_renyi_counts(shapes, 29) == {"convolution": 11, "linear": 18}
    assert erdos_renyi_counts(shapes, 101) == {"convolution": 36, "linear": 65}


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=5),
    target=st.floats(0.0, 0.99),
    ratios=st.sampled_from(["erk", "uniform"]),
)
def test_the_counts_of_layers_add_up_exactly(shapes, target, ratios):
    named = {str(n): tuple(shape) for n, shape in enumerate(shapes)}
    sizes = {name: torch.Size(shape).numel() for name, shape in named.items()}
    counts = layer_counts(named, target, ratios)
    assert all(1 <= counts[name] <= sizes[name] for name in named)
    if ratios == "erk":
        assert sum(counts.values()) == max(len(sizes), kept_count(sum(sizes.values()), 1 - target))
    else:
        assert counts == {name: kept_count(size, 1 - target) for name, size in sizes.items()}


def test_the_first_masks_are_random_with_the_counts_asked_for():
    shapes, counts = {"a": (4, 5), "b": (3, 3)}, {"a": 7, "b": 9}
    first = random_masks(shapes, counts, torch.Generator().manual_seed(0))
    again = random_masks(shapes, counts, torch.Generator().manual_seed(0))
    other = random_masks(shapes, counts, torch.Generator().manual_seed(1))
    assert {name: int(mask.sum()) for name, mask in first.items()} == counts
    assert same(first, again)
    assert not same(first, other)


def test_an_update_worked_by_hand():
    """The two smallest kept weights go; the two free places of highest priority come, one of them just dropped."""
    weight = torch.tensor([[5.0, -0.1, 3.0], [0.2, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    priority = torch.tensor([[9.0, 8.0, 9.0], [1.0, 2.0, 1.5]])
    new, survivors = drop_and_regrow(weight, mask, priority, drop=2, grow=2)
    assert survivors.tolist() == [[True, False, True], [False, False, False]]
    assert new.tolist() == [[True, True, True], [False, True, False]]


@pytest.mark.parametrize(("drop", "grow", "kept"), [(0, 0, 10), (4, 4, 10), (99, 0, 1), (0, 99, 24), (10, 12, 13)])
def test_an_update_keeps_count_even_among_ties(drop, grow, kept):
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask.flatten()[:10] = True
    new, survivors = drop_and_regrow(torch.zeros(4, 6), mask, torch.zeros(4, 6), drop=drop, grow=grow)
    assert new.sum() == kept
    assert not (survivors & ~mask).any()
    assert not (survivors & ~new).any()


def topology(config):
    return MovingTopology(network(), bars(), bars(40, seed=1), config, Run(0, LOCAL))


def test_an_update_starts_new_weights_at_zero_without_momentum():
    model = network()
    weights = dict(prunable_weights(model))
    counts = {name: w.numel() // 4 for name, w in weights.items()}
    masks = random_masks({n: w.shape for n, w in weights.items()}, counts, torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(weights.values(), lr=0.0, momentum=0.9)
    for name, w in weights.items():
        w.data.masked_fill_(~masks[name], 0.0)
        w.grad = torch.ones_like(w)
    optimiser.step()
    before = {name: mask.clone() for name, mask in masks.items()}
    values = {name: w.detach().clone() for name, w in weights.items()}
    moving = topology(FlyingBird(update_every=1, death_rate=0.5, training=TRAINING))
    assert moving(0, dict(model.named_parameters()), masks, optimiser)
    for name, w in weights.items():
        assert masks[name].sum() == counts[name]
        dropped = int(0.5 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi / 16)).item()) * counts[name])
        kept = before[name] & (w != 0)
        assert kept.sum() == counts[name] - dropped
        assert torch.equal(w[kept], values[name][kept])
        assert values[name][kept].abs().min() >= values[name][before[name] & ~kept].abs().max()
        assert torch.count_nonzero(optimiser.state[w]["momentum_buffer"][~kept]) == 0
        assert torch.count_nonzero(w[masks[name] & ~kept]) == 0


@pytest.mark.parametrize("regrow", ["random", "gradient"])
def test_the_sparsity_holds_exactly_while_the_masks_move(regrow):
    config = FlyingBird(sparsity=0.8, update_every=2, regrow=regrow, training=TRAINING)
    seen = []
    result = fly(config, on_epoch=lambda epoch, record: seen.append((epoch, record)))
    total = sum(m.numel() for m in result.masks.values())
    assert sum(int(m.sum()) for m in result.masks.values()) == kept_count(total, 1 - 0.8)
    assert all(record["sparsity"] == sparsity(result.masks) for record in result.history)
    assert all(record["hamming"] > 0 for record in result.history[:3])
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert tuple(record for _, record in seen) == result.history
    for name, weight in prunable_weights(result.model).items():
        assert torch.count_nonzero(weight[~result.masks[name]]) == 0
        assert torch.equal(result.scores[name], weight)
    assert not result.model.training


def test_the_masks_are_those_of_the_kept_epoch():
    """Most kept weights were trained since they grew, so a mask of another epoch would leave many at 0."""
    result = fly(FlyingBird(sparsity=0.5, update_every=3, death_rate=0.3, training=TRAINING))
    for name, weight in prunable_weights(result.model).items():
        assert (weight[result.masks[name]] != 0).float().mean() > 0.6


def test_the_given_network_is_not_changed():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune_flying_bird(model, *bars(), bars(40, seed=1), FlyingBird(training=TRAINING), run=Run(0))
    assert same(model.state_dict(), before)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another():
    config = FlyingBird(sparsity=0.7, update_every=3, training=TRAINING)
    first, again, other = fly(config), fly(config), fly(config, seed=1)
    assert same(first.masks, again.masks)
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not same(first.masks, other.masks)


def test_gradient_regrowth_ranks_all_positions_by_the_gradient_of_one_batch():
    natural = replace(TRAINING, loss="natural", eps=0.0)
    moving = topology(FlyingBird(update_every=1, regrow="gradient", training=natural))
    model = moving._model.train()
    weights = dict(prunable_weights(model))
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    priorities = moving._priorities(weights, torch.Generator().manual_seed(5))
    assert same(dict(model.named_buffers()), buffers), "batch-norm statistics are left alone"
    images, labels = bars()
    rows = torch.randperm(80, generator=torch.Generator().manual_seed(5))[:20]
    loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
    expected = torch.autograd.grad(loss, list(weights.values()))
    for found, gradient in zip(priorities.values(), expected, strict=True):
        torch.testing.assert_close(found, gradient.abs())


def test_rising_worked_by_hand():
    assert rising([1.0, 2.0, 1.5, 1.6], 4) == pytest.approx(2 / 3)
    assert rising([1.0, 2.0, 1.5, 1.6], 2) == 0.5
    assert rising([9.0, 0.0, 1.0, 2.0, 3.0, 4.0], 4) == 1.0
    assert rising([1.0], 4) == 0.0
    assert rising([], 4) == 0.0


@pytest.mark.parametrize(
    ("gaps", "losses", "factors"),
    [
        ([0.1, 0.2, 0.3], [1.0, 0.9, 0.8], (1.4, 1.0)),
        ([0.3, 0.2, 0.1], [1.0, 1.1, 1.2], (1.0, 1.05)),
        ([0.3, 0.2, 0.1], [1.0, 0.9, 0.8], (1.0, 1.0)),
    ],
)
def test_flying_bird_plus_drops_more_when_it_overfits_and_regrows_more_when_its_loss_rises(gaps, losses, factors):
    moving = topology(FlyingBird(plus=True, training=TRAINING))
    moving.records = [{"robust_gap": g, "validation_robust_loss": loss} for g, loss in zip(gaps, losses, strict=True)]
    assert moving._factors(done=8) == pytest.approx(factors)
    assert moving._factors(done=7) == (1.0, 1.0), "it begins after half of the 16 steps"


def test_flying_bird_plus_moves_the_sparsity_and_records_what_it_measured():
    always = AdaptiveSparsity(start=0.0, threshold=0.0)
    config = FlyingBird(sparsity=0.6, update_every=2, plus=True, adaptation=always, training=TRAINING)
    result = fly(config)
    assert result.history[-1]["sparsity"] > result.history[0]["sparsity"] > 0.6
    assert all(0 <= abs(r["robust_gap"]) <= 1 and r["validation_robust_loss"] > 0 for r in result.history)
    for name, weight in prunable_weights(result.model).items():
        assert torch.count_nonzero(weight[~result.masks[name]]) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlyingBird(sparsity=0.0), "expected 0 < sparsity < 1"),
        (lambda: FlyingBird(death_rate=1.0), "0 <= death_rate < 1"),
        (lambda: FlyingBird(update_every=0), "update_every from 1"),
        (lambda: FlyingBird(layer_ratios="lamp"), "choose erk or uniform"),
        (lambda: FlyingBird(training=TrainingConfig(average_decay=0.9)), "set average_decay to 0"),
        (lambda: fly(FlyingBird(update_every=900, training=TRAINING)), "training has only 16 steps"),
    ],
)
def test_what_cannot_fly_is_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_the_interval_is_the_published_one_or_makes_twenty_updates():
    assert FlyingBird().update_interval(78_200) == 900
    assert FlyingBird().update_interval(84) == 4
    assert FlyingBird().update_interval(3) == 1
    assert FlyingBird(update_every=7).update_interval(84) == 7


CONFIG_PLUS = FlyingBird(
    sparsity=0.6,
    update_every=3,
    plus=True,
    adaptation=AdaptiveSparsity(start=0.0, threshold=0.4),
    training=TRAINING,
)


def fly_and_die(folder):
    def die(epoch, record):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    fly(CONFIG_PLUS, snapshots=Snapshots(folder, "s"), on_epoch=die)


def test_a_killed_run_ends_with_the_weights_and_masks_of_an_unbroken_one(tmp_path):
    assert ended(forked(fly_and_die, tmp_path)) == -signal.SIGKILL
    epochs = []
    resumed = fly(CONFIG_PLUS, snapshots=Snapshots(tmp_path, "s"), on_epoch=lambda epoch, _: epochs.append(epoch))
    unbroken = fly(CONFIG_PLUS)
    assert same(resumed.model.state_dict(), unbroken.model.state_dict())
    assert same(resumed.masks, unbroken.masks)
    assert resumed.history == unbroken.history
    again = fly(CONFIG_PLUS, snapshots=Snapshots(tmp_path, "s"))
    assert same(again.masks, unbroken.masks), "a finished run is taken as it is"
    assert again.history == unbroken.history
