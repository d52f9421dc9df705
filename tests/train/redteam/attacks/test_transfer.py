import numpy as np
import pytest
import torch
from tests.train.linear_target import classifier, target_of, task_of, with_margin
from tests.train.toy_classifier import WEIGHTS
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.attacks.budget import distortion
from s2ap_train.hardening.train import silent_reporter
from s2ap_train.models import SmallCNN
from s2ap_train.recipe import load_recipe
from s2ap_train.redteam.ablation.surrogates import BASE_WIDTH, train_surrogates, widened
from s2ap_train.redteam.attacks.transfer import ATTACKS
from s2ap_train.redteam.target import open_targets

BASE, ENSEMBLE = ATTACKS
EPS = 0.1
REACH = EPS * float(WEIGHTS.abs().sum())
STEPS = AdaptiveBudget(cheap_steps=25)  # of a tenth of eps: across the ball and back


class Linear(nn.Module):
    """Logits (0, bias + w x) as a module, as surrogates are."""

    def __init__(self, weights, bias):
        super().__init__()
        self.answer = classifier(weights, bias)

    def forward(self, images):
        return self.answer(images)


def bias_of(margin):
    return margin - 0.5 * float(WEIGHTS.sum())


@pytest.mark.parametrize(("factor", "wins"), [(0.99, True), (1.01, False)])
def test_transfer_between_identical_networks_is_a_white_box_attack(factor, wins):
    target, data = with_margin(WEIGHTS, factor * REACH, 4)
    twin = Linear(WEIGHTS, bias_of(factor * REACH))
    for attack, networks in ((BASE, (twin,)), (ENSEMBLE, (twin, twin, twin))):
        found = attack.run(target, task_of(data, eps=EPS, budget=STEPS, surrogates=networks))
        assert target.system(found.images, data.labels).success.all() == wins
        corner = data.images - EPS * np.sign(WEIGHTS.numpy()).reshape(1, 1, 4, 4)
        np.testing.assert_allclose(found.images, np.repeat(corner[:1], 4, axis=0), atol=1e-6)


def test_a_network_that_looks_elsewhere_transfers_nothing():
    other = torch.zeros(16)
    other[3], other[9] = float(WEIGHTS[9]), -float(WEIGHTS[3])  # at right angles to the target's weights
    target, data = with_margin(WEIGHTS, 0.5 * REACH, 4)
    stranger = Linear(other, 0.3 - 0.5 * float(other.sum()))
    found = BASE.run(target, task_of(data, eps=EPS, budget=STEPS, surrogates=(stranger,)))
    assert not target.system(found.images, data.labels).success.any()
    moved = (found.images - data.images).reshape(4, -1)
    assert (np.abs(moved[:, [3, 9]]) > 0.99 * EPS).all()  # and yet the stranger was attacked in earnest


def test_the_ensemble_moves_where_its_members_agree():
    half = WEIGHTS.clone()
    half[8:] = 0
    rest = WEIGHTS - half
    target, data = with_margin(WEIGHTS, 0.9 * REACH, 2)
    networks = tuple(Linear(part, 0.0) for part in (half, half, rest))  # the base and a member see one half only
    task = task_of(data, eps=EPS, budget=STEPS, surrogates=networks)
    assert target.system(ENSEMBLE.run(target, task).images, data.labels).success.all()
    assert not target.system(BASE.run(target, task).images, data.labels).success.any()


def test_without_networks_of_its_own_there_is_nothing_to_transfer():
    target, data = with_margin(WEIGHTS, 0.1)
    for attack in ATTACKS:
        with pytest.raises(RecipeError, match=r"need networks that the attacker trained.*evaluate with --recipe"):
            attack.run(target, task_of(data))
    with pytest.raises(RecipeError, match="needs networks besides the attacker's base"):
        ENSEMBLE.run(target, task_of(data, surrogates=(Linear(WEIGHTS, 0.0),)))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_defence_is_attacked_inside_the_ball_by_a_seed(attack, tiny_model_path, random_images):
    networks = tuple(SmallCNN(1, 10, (4, 6, 6, 8), 8, seed=100 + n).train() for n in range(3))
    defended, _ = open_targets(tiny_model_path)
    _, data = with_margin(torch.ones(64), 0.0, 6)
    data = type(data)(random_images[:6], np.arange(6, dtype=np.int64))
    task = task_of(data, eps=EPS, budget=STEPS, surrogates=networks)
    first, second = (attack.run(defended, task) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    assert distortion(data.images, first.images)[0].max() <= EPS + 1e-6
    assert 0.0 <= first.images.min() <= first.images.max() <= 1.0
    if attack is BASE:
        assert "base, intermediate level" in first.notes["broken_by"]
    evaluated = task_of(data, eps=EPS, budget=STEPS, surrogates=tuple(network.eval() for network in networks))
    np.testing.assert_array_equal(attack.run(defended, evaluated).images, first.images)
    for network in networks:
        network.train()
    attack.run(defended, task)
    for network in networks:  # lent, and given back as they were
        assert network.training
        assert all(parameter.grad is None for parameter in network.parameters())
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_wider_networks_have_more_channels_and_users_networks_stay():
    recipe = load_recipe("digits")
    assert widened(recipe.model, 1.5) == {**recipe.model, "width": 1.5}
    assert widened({"name": "resnet18", "width": 0.5}, 1.5) == {"name": "resnet18", "width": 0.75}
    assert widened("vgg16_bn", 2.0) == {"name": "vgg16_bn", "width": 2.0}
    assert widened("package.module:factory", 1.5) == "package.module:factory"
    cut = {"name": "resnet18", "channels": {"a": 3}}
    assert widened(cut, 1.5) == cut


SHORT = ("plain.epochs=1", "adversarial.epochs=1", "adversarial.attack_steps=1", "adversarial.validation_steps=1")


def test_surrogates_are_trained_once_with_seeds_of_their_own(tmp_path, capsys):
    from rich.console import Console

    recipe = load_recipe("digits", SHORT)
    splits = recipe.load_data()
    base, *robust = train_surrogates(recipe, splits, tmp_path, silent_reporter(), members=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["surrogate-base", "surrogate-robust-0"]
    assert (base.adversarially_trained, robust[0].adversarially_trained) == (False, True)
    assert base.model.widths == tuple(int(BASE_WIDTH * width) for width in recipe.model["widths"])
    assert robust[0].model.widths == tuple(recipe.model["widths"])
    own = {recipe.member_seed(name, n) for name, family in recipe.members.items() for n in range(family.count)}
    seeds = [network.seeds.initialisation for network in (base, *robust)]
    assert len({*seeds, *own, recipe.seed}) == len(seeds) + len(own) + 1
    again = train_surrogates(recipe, splits, tmp_path, Reporter(Console(width=120)), members=1)
    assert capsys.readouterr().out.count("reused") == 2
    for first, second in zip((base, *robust), again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    attack = task_of(splits.test.subset(slice(0, 8)), surrogates=tuple(network.model for network in again))
    images = ENSEMBLE.run(target_of(base.model), attack).images
    assert (images != attack.data.images).any()
