from dataclasses import replace

import pytest
import torch
from tests.train.toy_data import bars, same
from torch import nn
from torch.nn.utils import parametrize

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN, evaluation_view
from s2ap_train.models.channel_groups import channel_groups, gate_channels, remove_channels
from s2ap_train.pruning.masks import kept_count
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.twin_rep import TwinRep, factorised, merged, prune_twin_rep
from s2ap_train.pruning.two_four import is_two_four
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig

TRAINING = TrainingConfig(epochs=4, lr=0.3, batch_size=20, eps=0.03, attack_steps=1, validation_steps=2)
SHAPE = (1, 8, 8)


def network(seed=1):
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=seed)


def twin(config, seed=0, **more):
    return prune_twin_rep(network(), *bars(), bars(40, seed=1), config, run=Run(seed, **more))


def layer_of(model, name):
    return model.get_submodule(name.rpartition(".")[0])


@pytest.mark.parametrize("product", ["elementwise", "channel"])
def test_the_balanced_start_computes_what_the_given_network_does(product):
    model = network()
    twins = factorised(model, product, "balanced", seed=0)
    images, _ = bars()
    torch.testing.assert_close(twins(images), model(images))
    for name, weight in prunable_weights(model).items():
        torch.testing.assert_close(layer_of(twins, name).weight, weight)
    assert not any(parametrize.is_parametrized(m) for m in model.modules()), "the given network is not changed"


def test_the_products_worked_by_hand():
    layer = nn.Sequential(nn.Linear(2, 2, bias=False))
    for product, expected in (
        ("elementwise", [[10.0, 40.0], [90.0, 160.0]]),
        ("channel", [[70.0, 100.0], [150.0, 220.0]]),
    ):
        twins = factorised(layer, product, "balanced", seed=0)
        factors = twins[0].parametrizations["weight"]
        factors.original0.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        factors.original1.data = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
        assert twins[0].weight.tolist() == expected
        factors[0].mask[0, 1] = False
        assert twins[0].weight[0, 1] == 0


def test_layers_that_share_a_weight_are_refused():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(RecipeError, match=r"1\.weight and 0\.weight are one weight"):
        factorised(tied, "elementwise", "balanced", seed=0)


def test_the_random_start_draws_the_second_factor_alone_from_the_seed():
    model = network()
    first, again, other = (factorised(model, "elementwise", "random", seed=s) for s in (0, 0, 1))
    assert same(first.state_dict(), again.state_dict())
    for name, weight in prunable_weights(model).items():
        factors = layer_of(first, name).parametrizations["weight"]
        assert torch.equal(factors.original0, weight)
        assert factors.original1.abs().max() <= weight[0].numel() ** -0.5
        assert not torch.equal(factors.original1, layer_of(other, name).parametrizations["weight"].original1)


def test_half_the_squared_norms_of_balanced_factors_are_the_l1_norm_of_the_weights():
    """a^2 + b^2 >= 2 |a b|, with equality where the factors are balanced."""
    twins = factorised(network(), "elementwise", "balanced", seed=0)
    for name, weight in prunable_weights(network()).items():
        factors = layer_of(twins, name).parametrizations["weight"]
        torch.testing.assert_close((factors.original0**2 + factors.original1**2) / 2, weight.abs())


@pytest.mark.parametrize("product", ["elementwise", "channel"])
def test_attacks_see_the_logits_of_the_factorised_network(product):
    """A view that folds batch normalisation must fold the product, or every attack would be on another network."""
    twins = factorised(network(), product, "random", seed=0)
    twins.train()
    for _ in range(3):
        twins(bars()[0])
    twins.eval()
    torch.testing.assert_close(evaluation_view(twins)(bars()[0]), twins(bars()[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("product", ["elementwise", "channel"])
def test_merging_gives_a_plain_network_with_the_same_logits(product):
    model = network()
    twins = factorised(model, product, "random", seed=3)
    twins.train()
    twins(bars()[0])
    plain = merged(twins, model)
    torch.testing.assert_close(plain(bars()[0]), twins.eval()(bars()[0]))
    assert type(plain) is SmallCNN
    assert list(plain.state_dict()) == list(model.state_dict())
    assert not any(parametrize.is_parametrized(m) for m in plain.modules())


@pytest.mark.parametrize("product", ["elementwise", "channel"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_result_is_plain_and_exactly_as_sparse_as_asked(product, scope):
    seen = []
    config = TwinRep(sparsity=0.7, product=product, scope=scope, training=TRAINING)
    result = twin(config, on_epoch=lambda epoch, record: seen.append((epoch, record)))
    assert result.collapse is None
    assert not any(parametrize.is_parametrized(m) for m in result.model.modules())
    if scope == "layer":
        assert all(m.sum() == kept_count(m.numel(), 1 - 0.7) for m in result.masks.values())
    total = sum(m.numel() for m in result.masks.values())
    assert scope == "layer" or sum(int(m.sum()) for m in result.masks.values()) == kept_count(total, 1 - 0.7)
    for name, weight in prunable_weights(result.model).items():
        assert torch.equal(weight != 0, result.masks[name])
    assert [record["pruned"] for record in result.history] == [0, 1, 1, 1]
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert tuple(record for _, record in seen) == result.history
    assert 1 <= result.best_epoch <= 3, "an epoch before pruning is never chosen"
    assert not result.model.training


def test_the_products_of_largest_size_are_kept():
    result = twin(TwinRep(sparsity=0.7, training=TRAINING))
    kept = torch.cat([s.abs()[result.masks[name]] for name, s in result.scores.items()])
    pruned = torch.cat([s.abs()[~result.masks[name]] for name, s in result.scores.items()])
    assert kept.min() >= pruned.max()


@pytest.mark.parametrize("product", ["elementwise", "channel"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_channels_can_be_removed(product, scope):
    config = TwinRep(sparsity=0.5, product=product, structure="channel", scope=scope, training=TRAINING)
    result = twin(config)
    groups = channel_groups(network(), SHAPE)
    assert set(result.masks) == {group.name for group in groups}
    assert sum(int(m.sum()) for m in result.masks.values()) == 7
    assert all(m.any() for m in result.masks.values())
    images, _ = bars()
    logits = result.model(images)
    torch.testing.assert_close(gate_channels(result.model, groups, result.masks)(images), logits)
    smaller = remove_channels(result.model, groups, result.masks)
    assert (smaller(images) - logits).abs().max() < 1e-5


def test_two_of_four_products_are_kept():
    result = twin(TwinRep(sparsity=0.5, structure="2:4", training=TRAINING))
    assert set(result.masks) == {"classifier.weight"}, "1 and 6 inputs are no groups of four"
    assert is_two_four(result.masks["classifier.weight"])
    assert torch.equal(result.model.classifier.weight != 0, result.masks["classifier.weight"])


def test_the_same_seed_gives_the_same_mask_and_another_seed_another():
    config = TwinRep(sparsity=0.7, training=TRAINING)
    first, again, other = twin(config), twin(config), twin(config, seed=1)
    assert same(first.masks, again.masks)
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not same(first.masks, other.masks)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("last", [0, 2, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, last):
    config = TwinRep(sparsity=0.7, training=TRAINING)

    def stop(epoch, record):
        if epoch == last:
            raise StoppedError

    with pytest.raises(StoppedError):
        twin(config, snapshots=Snapshots(tmp_path, "s"), on_epoch=stop)
    resumed, unbroken = twin(config, snapshots=Snapshots(tmp_path, "s")), twin(config)
    assert same(resumed.model.state_dict(), unbroken.model.state_dict())
    assert same(resumed.masks, unbroken.masks)
    assert resumed.history == unbroken.history


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1\.0"),
        ({"product": "outer"}, "choose elementwise or channel"),
        ({"start": "zero"}, "random or balanced"),
        ({"structure": "2:4"}, "set it to 0.5"),
        ({"structure": "channel", "scope": "lamp"}, "set scope to global or layer"),
        ({"pruning_epoch": 20}, "pruning comes after 20 of 20 epochs"),
        ({"training": replace(TRAINING, epochs=1)}, "at least one before and one after"),
    ],
)
def test_a_config_that_means_nothing_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        TwinRep(**values)


def test_ten_epochs_or_a_third_of_a_short_run_come_before_pruning():
    assert TwinRep(training=TrainingConfig(epochs=100)).dense_epochs == 10
    assert TwinRep(training=TrainingConfig(epochs=6)).dense_epochs == 2
    assert TwinRep(training=TrainingConfig(epochs=2)).dense_epochs == 1
    assert TwinRep(pruning_epoch=4).dense_epochs == 4


@pytest.mark.parametrize("product", ["elementwise", "channel"])
def test_what_is_pruned_at_the_cut_is_exactly_zero_at_every_later_step(product):
    model, steps = network(), []

    def note(module, _):
        if module.training:
            weights = {name: layer_of(module, name).weight.detach() for name in prunable_weights(model)}
            steps.append({name: weight.clone() for name, weight in weights.items()})

    model.register_forward_pre_hook(note)
    config = TwinRep(sparsity=0.7, product=product, training=TRAINING)
    result = prune_twin_rep(model, *bars(), bars(40, seed=1), config, run=Run(0))
    assert len(steps) == 4 * TRAINING.epochs
    dense, sparse = steps[: 4 * config.dense_epochs], steps[4 * config.dense_epochs :]
    for name, mask in result.masks.items():
        assert all(torch.count_nonzero(step[name][~mask]) == (~mask).sum() for step in dense)
        assert all(torch.count_nonzero(step[name][~mask]) == 0 for step in sparse)
        assert mask.all() or not torch.equal(sparse[0][name], sparse[-1][name]), "and what is left is trained"
