import logging

import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.pruning import S2AP, Hydra, prune_hydra, prune_magnitude, prune_s2ap
from s2ap_train.pruning.masks import layer_masks
from s2ap_train.pruning.s2ap import FLIP_BAND, ScoreAscent, next_radius
from s2ap_train.pruning.scores import masked_weights, prunable_weights, scaled_magnitude
from s2ap_train.training import TrainingConfig, train_classifier

SEARCH = TrainingConfig(epochs=3, lr=0.1, batch_size=20, weight_decay=0.0, eps=0.1, attack_steps=2, validation_steps=2)


def bars(count=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for n, label in enumerate(labels.tolist()):
        images[n, :, 2 * label : 2 * label + 2] += 0.6
    return images, labels


@pytest.fixture(scope="module")
def base():
    model = SmallCNN(classes=4, widths=(8, 12), pool_after=(0, 1))
    config = TrainingConfig(epochs=3, batch_size=20)
    train_classifier(model, *bars(), bars(40, seed=1), config, seed=0)
    return model


def prune(base, config, seed=0, **more):
    function = prune_hydra if isinstance(config, Hydra) else prune_s2ap
    return function(base, *bars(), bars(40, seed=1), config, seed=seed, **more)


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("config", [S2AP(0.7, 0.0, 1, SEARCH), S2AP(0.7, 0.05, SEARCH.epochs, SEARCH)])
def test_gamma_zero_and_endless_warm_up_equal_hydra_bit_for_bit(base, config):
    hydra, s2ap = prune(base, Hydra(0.7, SEARCH)), prune(base, config)
    assert same(hydra.masks, s2ap.masks)
    assert same(hydra.scores, s2ap.scores)
    assert same(hydra.model.state_dict(), s2ap.model.state_dict())
    assert hydra.history == s2ap.history


def test_a_radius_that_flips_masks_gives_other_scores_than_hydra(base):
    hydra, s2ap = prune(base, Hydra(0.7, SEARCH)), prune(base, S2AP(0.7, 0.05, 1, SEARCH))
    assert not same(hydra.scores, s2ap.scores)
    assert s2ap.history[0]["flip_rate"] == 0.0, "warm-up"
    assert all(record["flip_rate"] > 0 and record["radius"] == 0.05 for record in s2ap.history[1:])
    assert s2ap.history[0]["loss"] == hydra.history[0]["loss"]


def test_the_same_seed_gives_the_same_mask_and_another_seed_another(base):
    config = S2AP(0.7, "auto", 0, SEARCH)
    first, again, other = prune(base, config), prune(base, config), prune(base, config, seed=1)
    assert same(first.masks, again.masks)
    assert not same(first.masks, other.masks)


def test_pruned_weights_are_zero_and_the_others_untouched(base):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    pruned = prune(base, S2AP(0.7, "auto", 1, SEARCH))
    assert same(base.state_dict(), before), "the base is not changed"
    for name, weight in prunable_weights(pruned.model).items():
        mask = pruned.masks[name]
        assert mask.sum() == mask.numel() - int((1 - (1 - 0.7)) * mask.numel())
        assert torch.equal(weight, before[name] * mask)
    assert not pruned.model.training


def test_history_records_what_a_run_must_show(base):
    calls = []
    pruned = prune(base, S2AP(0.7, "auto", 1, SEARCH), on_epoch=lambda epoch, _: calls.append(epoch))
    assert calls == [0, 1, 2]
    assert set(pruned.history[0]) == {
        "loss",
        "hamming",
        "flip_to_previous",
        "flip_rate",
        "radius",
        "validation_accuracy",
        "validation_robust_accuracy",
    }
    assert pruned.history[0]["hamming"] > 0


def ascent_setting(base, radius):
    config = S2AP(0.7, radius, 0, SEARCH)
    weights = prunable_weights(base)
    scores = {name: scaled_magnitude(weight).requires_grad_() for name, weight in weights.items()}
    masks = layer_masks(scores, 1 - config.sparsity)
    x, y = bars(20)

    def loss(masks):
        effective = masked_weights(weights, scores, masks)
        return torch.nn.functional.cross_entropy(torch.func.functional_call(base, effective, (x,)), y)

    return ScoreAscent(config), scores, masks, loss


def test_the_ascent_is_gamma_times_the_score_norm_in_every_layer_and_raises_the_loss(base):
    ascent, scores, masks, loss = ascent_setting(base, 0.1)
    start = {name: s.detach().clone() for name, s in scores.items()}
    before = float(loss(masks).detach())
    moved = ascent(0, base, scores, masks, loss)
    for name, s in scores.items():
        length = float((s.detach() - start[name]).norm())
        assert length == pytest.approx(0.1 * float(start[name].norm()), rel=1e-4)
    assert same(moved.masks, layer_masks(scores, 1 - 0.7))
    assert moved.flip_rate > 0
    assert float(loss(moved.masks).detach()) > before


def test_the_ascent_leaves_batch_norm_statistics_alone(base):
    base.train()
    ascent, scores, masks, loss = ascent_setting(base, 0.1)
    before = {name: buffer.clone() for name, buffer in base.named_buffers()}
    ascent(0, base, scores, masks, loss)
    assert same(dict(base.named_buffers()), before)
    base.eval()


def test_scores_are_restored_bit_for_bit_after_the_step(base):
    """With a learning rate of zero nothing but the ascent moves the scores."""
    still = TrainingConfig(epochs=2, lr=0.0, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)
    pruned = prune(base, S2AP(0.7, 0.05, 0, still))
    assert pruned.history[-1]["flip_rate"] > 0
    assert same(pruned.scores, {name: scaled_magnitude(w) for name, w in prunable_weights(base).items()})
    assert same(pruned.masks, prune_magnitude(base, sparsity=0.7).masks)


def test_the_automatic_radius_finds_its_band(base):
    long = TrainingConfig(epochs=8, lr=0.05, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)
    pruned = prune(base, S2AP(0.5, "auto", 0, long))
    low, high = FLIP_BAND
    assert low / 2 <= pruned.history[-1]["flip_rate"] <= 2 * high
    assert [next_radius(0.1, changed) for changed in (0.001, 0.01, 0.5)] == pytest.approx([0.125, 0.1, 0.08])


def test_a_radius_that_changes_no_mask_is_reported(base, caplog):
    with caplog.at_level(logging.WARNING):
        pruned = prune(base, S2AP(0.7, 1e-9, 1, SEARCH))
    assert "S2AP changed no mask in 3 epochs" in caplog.text
    assert same(pruned.masks, prune(base, Hydra(0.7, SEARCH)).masks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S2AP(radius="large"), "give a number from 0 or"),
        (lambda: S2AP(radius=-0.1), "must not be negative"),
        (lambda: S2AP(warmup_epochs=-1), "must not be negative"),
    ],
)
def test_a_config_that_means_nothing_is_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_search_that_cannot_work_is_refused(base):
    with pytest.raises(RecipeError, match=r"sparsity is 1\.0"):
        prune(base, Hydra(1.0, SEARCH))
    with pytest.raises(RecipeError, match="a mask search does not use weight_radius"):
        prune(base, Hydra(0.5, TrainingConfig(weight_radius=0.01)))
