import math
from dataclasses import replace

import pytest
import torch
from tests.train.toy_data import bars, same

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.weight_perturbation import relative_ascent, within
from s2ap_train.models import SmallCNN
from s2ap_train.pruning import S2AP, Harp, Hydra, ScratchTicket, prune_magnitude, search_masks
from s2ap_train.pruning.allocation import UniformKeep
from s2ap_train.pruning.s2ap import ScoreAscent, next_radius
from s2ap_train.pruning.scores import prunable_weights, scaled_magnitude
from s2ap_train.pruning.structures import Unstructured
from s2ap_train.training import Run, TrainingConfig, train_classifier

SEARCH = TrainingConfig(epochs=3, lr=0.1, batch_size=20, weight_decay=0.0, eps=0.1, attack_steps=2, validation_steps=2)
PLAIN = Hydra(0.7, training=SEARCH)


def with_s2ap(config=PLAIN, **s2ap):
    return replace(config, s2ap=S2AP(**s2ap))


@pytest.fixture(scope="module")
def base():
    model = SmallCNN(classes=4, widths=(8, 12), pool_after=(0, 1))
    config = TrainingConfig(epochs=3, batch_size=20, loss="natural", eps=0.0)
    train_classifier(model, *bars(), bars(40, seed=1), config, run=Run(0))
    return model


def prune(base, config, seed=0, **more):
    return search_masks(base, *bars(), bars(40, seed=1), config, run=Run(seed, **more))


BASES = [
    PLAIN,
    Hydra(0.5, "channel", training=SEARCH),
    Hydra(0.5, "2:4", training=SEARCH),
    Hydra(0.7, training=replace(SEARCH, loss="trades")),
    Harp(0.7, training=SEARCH),
    Harp(0.5, "channel", training=SEARCH, target="flops"),
    ScratchTicket(0.5, training=SEARCH),
]


@pytest.mark.parametrize(
    "config", BASES, ids=lambda config: f"{config.method}-{config.structure}-{config.training.loss}"
)
@pytest.mark.parametrize("s2ap", [S2AP(0.0), S2AP(0.05, warmup_epochs=SEARCH.epochs)], ids=["gamma 0", "only warm-up"])
def test_gamma_zero_and_endless_warm_up_equal_the_base_bit_for_bit(base, config, s2ap):
    plain, perturbed = prune(base, config), prune(base, replace(config, s2ap=s2ap))
    assert same(plain.masks, perturbed.masks)
    assert same(plain.scores, perturbed.scores)
    assert same(plain.model.state_dict(), perturbed.model.state_dict())
    assert plain.history == perturbed.history


@pytest.mark.parametrize(
    "config", BASES, ids=lambda config: f"{config.method}-{config.structure}-{config.training.loss}"
)
def test_s2ap_perturbs_every_base(base, config):
    plain, perturbed = prune(base, config), prune(base, with_s2ap(config, radius=0.3))
    assert max(record["flip_rate"] for record in perturbed.history) > 0
    assert not same(plain.scores, perturbed.scores)


def test_a_radius_that_flips_masks_gives_other_scores_than_hydra(base):
    hydra, s2ap = prune(base, PLAIN), prune(base, with_s2ap(radius=0.05))
    assert not same(hydra.scores, s2ap.scores)
    assert s2ap.history[0]["flip_rate"] == 0.0, "warm-up"
    assert all(record["flip_rate"] > 0 and record["radius"] == 0.05 for record in s2ap.history[1:])
    assert s2ap.history[0]["loss"] == hydra.history[0]["loss"]


def test_the_same_seed_gives_the_same_mask_and_another_seed_another(base):
    config = with_s2ap(warmup_epochs=0)
    first, again, other = prune(base, config), prune(base, config), prune(base, config, seed=1)
    assert same(first.masks, again.masks)
    assert not same(first.masks, other.masks)


def test_pruned_weights_are_zero_and_the_others_untouched(base):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    pruned = prune(base, with_s2ap())
    assert same(base.state_dict(), before), "the base is not changed"
    for name, weight in prunable_weights(pruned.model).items():
        mask = pruned.masks[name]
        assert mask.sum() == mask.numel() - int((1 - (1 - 0.7)) * mask.numel())
        assert torch.equal(weight, before[name] * mask)
    assert not pruned.model.training


def test_history_records_what_a_run_must_show(base):
    calls = []
    pruned = prune(base, with_s2ap(), on_epoch=lambda epoch, _: calls.append(epoch))
    assert calls == [0, 1, 2]
    assert set(pruned.history[0]) == {
        "loss",
        "hamming",
        "flip_to_previous",
        "flip_rate",
        "radius",
        "largest_class_share",
        "validation_accuracy",
        "validation_robust_accuracy",
    }
    assert pruned.history[0]["hamming"] > 0


class BatchLoss:
    """The loss of one batch of bars under masks, as the mask search hands it to a perturbation."""

    def __init__(self, model, scores):
        self.model, self.scores = model, scores
        self.allocation = UniformKeep(Unstructured(), 0.3)
        self.parameters = {name: w.detach() for name, w in prunable_weights(model).items()}

    def __call__(self, masks):
        x, y = bars(20)
        effective = Unstructured().effective(self.parameters, self.allocation.values(self.scores, masks))
        return torch.nn.functional.cross_entropy(torch.func.functional_call(self.model, effective, (x,)), y)

    def gradients(self, masks, tensors):
        return list(torch.autograd.grad(self(masks), tensors))


def ascent_setting(base, **s2ap):
    scores = {name: scaled_magnitude(w).requires_grad_() for name, w in prunable_weights(base).items()}
    loss = BatchLoss(base, scores)
    ascent = ScoreAscent(S2AP(warmup_epochs=0, **s2ap), loss.allocation)
    return ascent, scores, loss.allocation.masks(scores), loss


def test_the_ascent_is_gamma_times_the_score_norm_in_every_layer_and_raises_the_loss(base):
    ascent, scores, masks, loss = ascent_setting(base, radius=0.1)
    start = {name: s.detach().clone() for name, s in scores.items()}
    before = float(loss(masks).detach())
    moved = ascent(0, base, scores, masks, loss)
    for name, s in scores.items():
        length = float((s.detach() - start[name]).norm())
        assert length == pytest.approx(0.1 * float(start[name].norm()), rel=1e-4)
    assert same(moved.masks, loss.allocation.masks(scores))
    assert moved.flip_rate > 0
    assert float(loss(moved.masks).detach()) > before


@pytest.mark.parametrize("norm", ["l2", "linf", "adaptive"])
@pytest.mark.parametrize("steps", [1, 4])
def test_no_norm_and_no_number_of_steps_leaves_the_ball(base, norm, steps):
    ascent, scores, masks, loss = ascent_setting(base, radius=0.1, norm=norm, ascent_steps=steps)
    start = {name: s.detach().clone() for name, s in scores.items()}
    ascent(0, base, scores, masks, loss)
    for name, s in scores.items():
        offset, origin = s.detach() - start[name], start[name]
        largest = {
            "l2": offset.norm() / origin.norm(),
            "linf": offset.abs().max() / origin.abs().max(),
            "adaptive": (offset / origin.abs().clamp_min(1e-12)).norm() / origin.numel() ** 0.5,
        }[norm]
        assert float(largest) <= 0.1 * (1 + 1e-4)
        assert float(largest) >= 0.05, "it goes to the edge, or nearly"


class WatchedLoss(BatchLoss):
    """That loss, which notes where the scores are whenever its gradient is asked for."""

    def __init__(self, model, scores):
        super().__init__(model, scores)
        self.visited = []

    def gradients(self, masks, tensors):
        self.visited.append({name: s.detach().clone() for name, s in self.scores.items()})
        return super().gradients(masks, tensors)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_each_of_k_steps_goes_a_kth_of_the_radius(base, norm):
    """Steps of full length, projected, would stand at the edge of the ball after the first of them."""
    scores = {name: scaled_magnitude(w).requires_grad_() for name, w in prunable_weights(base).items()}
    start = {name: s.detach().clone() for name, s in scores.items()}
    loss = WatchedLoss(base, scores)
    config = S2AP(0.1, norm=norm, ascent_steps=4, warmup_epochs=0)
    ScoreAscent(config, loss.allocation)(0, base, scores, loss.allocation.masks(scores), loss)
    visited = [*loss.visited, {name: s.detach() for name, s in scores.items()}]
    assert len(visited) == 5
    assert same(visited[0], start)
    order = 2 if norm == "l2" else math.inf
    for name, origin in start.items():
        whole = 0.1 * float(origin.flatten().norm(order))
        reached = [float((place[name] - origin).flatten().norm(order)) for place in visited]
        assert reached[1] == pytest.approx(whole / 4, rel=1e-3)
        assert all(length <= step * whole / 4 * (1 + 1e-3) for step, length in enumerate(reached))


def test_the_steps_of_the_norms_by_hand():
    scores, gradient = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 2.0])
    l2, linf, adaptive = (relative_ascent([scores], [gradient], 0.1, norm)[0] for norm in ("l2", "linf", "adaptive"))
    assert torch.allclose(l2, torch.tensor([0.0, 0.5]))  # 0.1 * 5 along the gradient
    assert torch.allclose(linf, torch.tensor([0.0, 0.4]))  # 0.1 * 4, with the sign
    assert torch.allclose(adaptive, torch.tensor([0.0, 0.1 * 2**0.5 * 16 * 2 / 8]))
    assert torch.allclose(within(torch.tensor([3.0, 4.0]), scores, 0.1), torch.tensor([0.3, 0.4]))
    assert torch.allclose(within(torch.tensor([3.0, 0.1]), scores, 0.1, "linf"), torch.tensor([0.4, 0.1]))


def test_more_steps_find_a_loss_at_least_as_high(base):
    reached = []
    for steps in (1, 8):
        ascent, scores, masks, loss = ascent_setting(base, radius=0.3, ascent_steps=steps)
        moved = ascent(0, base, scores, masks, loss)
        reached.append(float(loss(moved.masks).detach()))
    assert reached[1] >= reached[0] - 1e-3


def test_the_ascent_leaves_batch_norm_statistics_alone(base):
    base.train()
    ascent, scores, masks, loss = ascent_setting(base, radius=0.1, ascent_steps=3)
    before = {name: buffer.clone() for name, buffer in base.named_buffers()}
    ascent(0, base, scores, masks, loss)
    assert same(dict(base.named_buffers()), before)
    base.eval()


def test_scores_are_restored_bit_for_bit_after_the_step(base):
    """With a learning rate of zero nothing but the ascent moves the scores."""
    still = TrainingConfig(epochs=2, lr=0.0, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)
    pruned = prune(base, with_s2ap(replace(PLAIN, training=still), radius=0.05, warmup_epochs=0))
    assert pruned.history[-1]["flip_rate"] > 0
    assert same(pruned.scores, {name: scaled_magnitude(w) for name, w in prunable_weights(base).items()})
    assert same(pruned.masks, prune_magnitude(base, sparsity=0.7).masks)


def test_the_automatic_radius_finds_its_band(base):
    long = TrainingConfig(epochs=8, lr=0.05, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)
    pruned = prune(base, Hydra(0.5, training=long, s2ap=S2AP(warmup_epochs=0)))
    band = low, high = S2AP().flip_band
    assert low / 2 <= pruned.history[-1]["flip_rate"] <= 2 * high
    assert [next_radius(0.1, changed, band) for changed in (0.001, 0.01, 0.5)] == pytest.approx([0.125, 0.1, 0.08])


def test_a_radius_that_changes_no_mask_is_the_base_in_disguise_and_known_as_such(base):
    pruned = prune(base, with_s2ap(radius=1e-9))
    assert not any(epoch["flip_rate"] for epoch in pruned.history)
    assert same(pruned.masks, prune(base, PLAIN).masks)
    assert any(epoch["flip_rate"] for epoch in prune(base, with_s2ap(radius=0.05)).history)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S2AP(radius="large"), "give a number from 0 or"),
        (lambda: S2AP(radius=-0.1), "must not be negative"),
        (lambda: S2AP(radius=math.nan), "radius nan and warmup_epochs 1 must be finite and must not be negative"),
        (lambda: S2AP(radius=math.inf), "radius inf and warmup_epochs 1 must be finite and must not be negative"),
        (lambda: S2AP(warmup_epochs=-1), "must not be negative"),
        (lambda: S2AP(norm="l1"), "choose from l2, linf, adaptive"),
        (lambda: S2AP(ascent_steps=0), "ascent_steps is 0"),
        (lambda: S2AP(flip_band=(0.1, 0.05)), "two rising shares"),
        (lambda: Hydra(1.0), r"sparsity is 1\.0"),
        (lambda: Hydra(0.9, "2:4"), "2:4 removes exactly half"),
        (lambda: Hydra(0.5, training=TrainingConfig(weight_radius=0.01)), "a mask search does not use weight_radius"),
        (lambda: Harp(0.5, "2:4"), "HARP learns how much"),
        (lambda: Harp(0.0), "HARP needs a sparsity above 0"),
    ],
)
def test_a_config_that_means_nothing_is_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
