import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.pruning.magnitude import (
    SCOPES,
    Magnitude,
    global_masks,
    lamp_scores,
    magnitude_masks,
    magnitude_pruned,
    prune_magnitude,
)
from s2ap_train.pruning.masks import kept_count, sparsity
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.two_four import two_four_mask

LAYERS = {
    "thin": torch.tensor([0.01, -0.02, 0.03]),
    "thick": torch.tensor([[1.0, -2.0, 3.0], [4.0, -5.0, 6.0], [0.5, 7.0, 8.0]]),
}


@pytest.fixture
def network():
    return SmallCNN(classes=4, widths=(6, 8), seed=1)


def kept(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_lamp_scores_worked_by_hand():
    """Squares 9, 1, 4, 1: 9/9, 4/(4+9), then the two of equal size by position, 1/(1+4+9) and 1/(1+1+4+9)."""
    scores = lamp_scores(torch.tensor([[3.0, -1.0], [2.0, 1.0]]))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 1 / 15], [4 / 13, 1 / 14]], dtype=torch.float64))


def test_lamp_scores_do_not_change_when_a_layer_is_rescaled_and_rank_it_as_its_sizes_do():
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lamp_scores(weight * 8), lamp_scores(weight))
    assert torch.equal(lamp_scores(weight).flatten().argsort(), weight.abs().flatten().argsort())
    assert lamp_scores(weight).max() == 1.0
    assert torch.count_nonzero(lamp_scores(torch.zeros(2, 3))) == 0


def test_global_magnitude_empties_a_thin_layer_and_a_minimum_saves_it():
    """5 of 12 are kept: without a minimum the five largest, all in one layer."""
    pure = magnitude_masks(LAYERS, sparsity=7 / 12, scope="global", minimum_kept=0)
    assert kept(pure) == {"thin": 0, "thick": 5}
    assert pure["thick"].tolist() == [[False, False, False], [True, True, True], [False, True, True]]
    guarded = magnitude_masks(LAYERS, sparsity=7 / 12, scope="global", minimum_kept=2)
    assert kept(guarded) == {"thin": 2, "thick": 3}
    assert guarded["thin"].tolist() == [False, True, True]
    assert guarded["thick"].tolist() == [[False, False, False], [False, False, True], [False, True, True]]


def test_lamp_empties_no_layer_even_without_a_minimum():
    masks = magnitude_masks(LAYERS, sparsity=10 / 12, scope="lamp", minimum_kept=0)
    assert kept(masks) == {"thin": 1, "thick": 1}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    target=st.floats(0, 0.99),
    minimum=st.integers(0, 3),
    levels=st.integers(1, 4),
    scope=st.sampled_from(SCOPES),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_under_ties_and_zeros(sizes, target, minimum, levels, scope, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {str(n): torch.randint(0, levels, (s,), generator=generator).float() for n, s in enumerate(sizes)}
    total = kept_count(sum(sizes), 1 - target)
    if scope != "layer" and sum(min(minimum, s) for s in sizes) > total:
        with pytest.raises(RecipeError, match="lower minimum_kept or the sparsity"):
            magnitude_masks(weights, sparsity=target, scope=scope, minimum_kept=minimum)
        return
    masks = magnitude_masks(weights, sparsity=target, scope=scope, minimum_kept=minimum)
    for mask in masks.values():
        least = min(minimum, mask.numel())
        assert mask.sum() >= least
        if scope == "layer":
            assert mask.sum() == max(least, kept_count(mask.numel(), 1 - target))
    assert scope == "layer" or sum(kept(masks).values()) == total
    again = magnitude_masks(weights, sparsity=target, scope=scope, minimum_kept=minimum)
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items())


def test_global_masks_hold_the_largest_scores_of_all_layers():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(size, generator=generator) for name, size in (("a", 50), ("b", 200), ("c", 9))}
    masks = global_masks(scores, 60, minimum_kept=0)
    kept_scores = torch.cat([s[masks[name]] for name, s in scores.items()])
    pruned_scores = torch.cat([s[~masks[name]] for name, s in scores.items()])
    assert len(kept_scores) == 60
    assert kept_scores.min() > pruned_scores.max()


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_pruned_stays_pruned_even_where_survivors_are_zero(scope):
    weights = {"a": torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.0]), "b": torch.tensor([1.0, 0.0, 3.0, 9.0])}
    within = {"a": torch.tensor([1, 1, 1, 0, 1, 0]).bool(), "b": torch.tensor([1, 1, 1, 0]).bool()}
    masks = magnitude_masks(weights, sparsity=0.5, scope=scope, within=within)
    assert all(not (mask & ~within[name]).any() for name, mask in masks.items())
    assert sum(kept(masks).values()) == 5


@pytest.mark.parametrize("scope", SCOPES)
def test_the_network_is_pruned_to_its_target_and_the_given_one_is_not_changed(network, scope):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pruned = prune_magnitude(network, sparsity=0.7, scope=scope)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    for name, weight in prunable_weights(pruned.model).items():
        assert torch.equal(weight, before[name] * pruned.masks[name])
        assert pruned.scores[name].shape == weight.shape
    count = sum(m.numel() for m in pruned.masks.values())
    if scope != "layer":
        assert sum(kept(pruned.masks).values()) == kept_count(count, 1 - 0.7)
    assert sparsity(pruned.masks) == pytest.approx(0.7, abs=3 / count)


def test_rescaling_a_layer_changes_only_the_global_mask(network):
    scaled = SmallCNN(classes=4, widths=(6, 8), seed=1)
    with torch.no_grad():
        scaled.classifier.weight.mul_(16)
    same = {}
    for scope in SCOPES:
        first, second = (prune_magnitude(m, sparsity=0.7, scope=scope).masks for m in (network, scaled))
        same[scope] = all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert same == {"layer": True, "global": False, "lamp": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1\.0"),
        ({"sparsity": -0.1}, r"sparsity is -0\.1"),
        ({"sparsity": 0.5, "scope": "local"}, "choose one of layer, global, lamp"),
        ({"sparsity": 0.99, "scope": "global", "minimum_kept": 100}, "lower minimum_kept or the sparsity"),
    ],
)
def test_what_cannot_be_pruned_is_refused(network, options, message):
    with pytest.raises(RecipeError, match=message):
        prune_magnitude(network, **options)


def test_weights_that_are_not_finite_are_refused_by_name(network):
    with torch.no_grad():
        network.classifier.weight[0, 0] = torch.nan
    with pytest.raises(RecipeError, match=r"classifier\.weight holds values that are not finite"):
        prune_magnitude(network, sparsity=0.5)


def test_channels_of_largest_l1_norm_are_kept_in_every_group(network):
    pruned = magnitude_pruned(network, (1, 8, 8), Magnitude(0.5, structure="channel"))
    convolutions = [block.convolution.weight for block in network.each_block()]
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [3, 4]
    for mask, weight in zip(pruned.masks.values(), convolutions, strict=True):
        norms = weight.detach().abs().sum((1, 2, 3))
        assert norms[mask].min() > norms[~mask].max()
    smaller = remove_channels(pruned.model, channel_groups(network, (1, 8, 8)), pruned.masks)
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (smaller(images) - pruned.model(images)).abs().max() < 1e-5


def test_a_group_keeps_its_minimum_of_channels(network):
    pruned = magnitude_pruned(network, (1, 8, 8), Magnitude(0.9, structure="channel", minimum_kept=5))
    assert [int(mask.sum()) for mask in pruned.masks.values()] == [5, 5]


def test_two_of_four_weights_are_kept_where_the_inputs_allow_it():
    network = SmallCNN(classes=4, widths=(8, 8), seed=1)
    pruned = magnitude_pruned(network, (1, 8, 8), Magnitude(0.5, structure="2:4"))
    assert set(pruned.masks) == {"blocks.1.convolution.weight", "classifier.weight"}
    weights = prunable_weights(network)
    for name, weight in prunable_weights(pruned.model).items():
        mask = two_four_mask(weights[name])
        assert torch.equal(weight, weights[name] * mask)
        assert mask.all() == (name == "blocks.0.convolution.weight")


def test_single_weights_are_pruned_as_by_prune_magnitude(network):
    by_config = magnitude_pruned(network, (1, 8, 8), Magnitude(0.7, scope="lamp", minimum_kept=3))
    directly = prune_magnitude(network, sparsity=0.7, scope="lamp", minimum_kept=3)
    assert all(torch.equal(mask, directly.masks[name]) for name, mask in by_config.masks.items())
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in by_config.searched.state_dict().items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1\.0"),
        ({"structure": "2:4", "sparsity": 0.8}, "set it to 0.5"),
        ({"structure": "channel", "scope": "global"}, "set scope to layer"),
        ({"minimum_kept": -1}, "at least 0"),
    ],
)
def test_a_config_that_means_nothing_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        Magnitude(**values)
