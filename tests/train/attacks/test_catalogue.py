import inspect

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from s2ap_defend.errors import InputError
from s2ap_train.attacks.budget import distortion, effect
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.attacks.joint import joint_network
from s2ap_train.attacks.pgd import pgd as descend
from s2ap_train.models import SmallCNN

WEIGHT = torch.tensor([[0.8, -0.5, 0.3, 1.0]]).repeat(1, 4).reshape(16)
LENGTH = float(WEIGHT.norm())  # 2.814
MARGINS = np.linspace(0.05, 0.8, 12)

PAPERS = {
    "fgsm": {"eps": 0.03},
    "jsma": {"fraction": 0.12, "theta": 1.0},
    "cw-l2": {"c": 0.6, "steps": 1000},
    "deepfool": {"steps": 50, "overshoot": 0.02},
    "one-pixel": {"pixels": 3, "population": 400, "generations": 100, "factor": 0.5},
    "ila": {"eps": 0.03, "steps": 10, "reference_steps": 10},
    "local-search": {"p": 1.0, "r": 1.5, "d": 5, "t": 5, "k": 1, "rounds": 150},
    "fia": {"eps": 0.03, "steps": 10, "momentum": 1.0, "masks": 30, "keep": 0.7},
    "pgd": {"eps": 0.03},
    "square": {"eps": 0.03},
}
QUICK = {
    "cw-l2": {"steps": 20},
    "one-pixel": {"population": 8, "generations": 2},
    "local-search": {"rounds": 2},
    "fia": {"masks": 2},
    "square": {"queries": 20},
}


class Linear(nn.Module):
    """Two classes; the margin of class 1 is w . (x - 1/2)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Identity())

    def forward(self, images):
        score = (self.layers(images) - 0.5) @ WEIGHT
        return torch.stack([-score, score], dim=1) / 2


def with_margins(margins=MARGINS):
    """Images labelled by their side, with the given margins of their own label; a negative one is misclassified."""
    labels = np.arange(len(margins)) % 2
    signed = torch.tensor(np.where(labels == 1, margins, -np.asarray(margins)))
    images = 0.5 + signed[:, None] * WEIGHT / WEIGHT.square().sum()
    return images.reshape(-1, 1, 4, 4).numpy().astype(np.float32), labels.astype(np.int64)


def lengths(attacked, images):
    return distortion(images, attacked)[1]


def right(classifier, images, labels):
    with torch.no_grad():
        return classifier(torch.from_numpy(images)).argmax(1).numpy() == labels


@pytest.mark.parametrize("name", PAPERS)
def test_the_defaults_are_the_papers(name):
    parameters = inspect.signature(ATTACKS[name].run).parameters
    assert {key: parameters[key].default for key in PAPERS[name]} == PAPERS[name]
    assert list(parameters)[:4] == ["classifier", "images", "labels", "seed"]
    budget = ATTACKS[name].budget
    assert budget is None or budget in parameters


def test_every_attack_is_listed():
    assert list(ATTACKS) == list(PAPERS)
    assert {name: attack.norm for name, attack in ATTACKS.items() if attack.asks_only} == {
        "one-pixel": "l0",
        "local-search": "l0",
        "square": "linf",
    }


def test_deepfool_goes_just_beyond_the_border_of_a_linear_model():
    images, labels = with_margins()
    attacked = ATTACKS["deepfool"](Linear(), images, labels, seed=0)
    expected = (MARGINS / LENGTH + 1e-4) * 1.02  # foolbox goes 1e-4 further before the overshoot
    np.testing.assert_allclose(lengths(attacked, images), expected, rtol=1e-4)
    assert not right(Linear(), attacked, labels).any()


def test_carlini_and_wagner_come_near_the_border_of_a_linear_model():
    images, labels = with_margins()
    attacked = ATTACKS["cw-l2"](Linear(), images, labels, seed=0, steps=300)
    assert not right(Linear(), attacked, labels).any()
    distance = MARGINS / LENGTH  # in reach while 2 distance < c ||w||: c pulls stronger than the length
    assert (lengths(attacked, images) >= distance * 0.999).all()
    assert (lengths(attacked, images) <= distance * 1.05 + 1e-3).all()


def test_carlini_and_wagner_leave_what_they_cannot_reach_instead_of_blackening_it():
    images, labels = with_margins(np.linspace(0.5, 0.8, 6))
    attacked = ATTACKS["cw-l2"](Linear(), images, labels, seed=0, c=1e-6, steps=60)
    assert np.array_equal(attacked, images)
    longer = ATTACKS["cw-l2"](Linear(), images, labels, seed=0, c=1e-6, steps=60, searches=8)  # c grows to 10
    assert not right(Linear(), longer, labels).any()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "ila", "fia", "square"])
def test_l_inf_attacks_reach_what_a_linear_model_lets_them_reach(name):
    images, labels = with_margins()
    reach = 0.03 * float(WEIGHT.abs().sum())  # .312
    attacked = ATTACKS[name](Linear(), images, labels, seed=0, **({"queries": 400} if name == "square" else {}))
    broken = ~right(Linear(), attacked, labels)
    assert not broken[reach * 1.001 < MARGINS].any()
    assert broken[reach * (0.5 if name == "square" else 0.999) > MARGINS].all()


class Net(nn.Module):
    """Three classes of 3x6x6 images, anything but linear."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Tanh(), nn.Dropout(0.9), nn.Linear(8, 3))
        for parameter in self.layers.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3

    def forward(self, images):
        return self.layers(images)


LIMITS = {"jsma": 12, "one-pixel": 3, "local-search": 10}  # positions, under the settings of QUICK


@pytest.mark.parametrize("name", PAPERS)
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000))
def test_attacked_images_stay_in_the_box_and_the_budget_and_are_reproduced(name, seed):
    generator = np.random.default_rng(seed)
    images = generator.random((6, 3, 6, 6), dtype=np.float32)
    images[0], images[1] = 0.0, 1.0
    images[2] = images[2].round()
    labels = generator.integers(0, 3, 6)
    model = Net().train()
    before = images.copy()
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    attacked, again = (ATTACKS[name](model, images, labels, seed=seed, **QUICK.get(name, {})) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.layers.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert np.array_equal(images, before)
    assert np.array_equal(attacked, again)
    assert attacked.dtype == np.float32
    assert attacked.shape == images.shape
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    wrong = ~right(model.eval(), images, labels)
    assert np.array_equal(attacked[wrong], images[wrong])
    linf, _, l0 = distortion(images, attacked)
    assert ATTACKS[name].norm != "linf" or (linf <= 0.03 + 1e-7).all()
    assert (l0 <= LIMITS.get(name, 36)).all()


@pytest.mark.parametrize("name", PAPERS)
def test_every_attack_fools_a_network_that_can_be_fooled(name):
    generator = np.random.default_rng(1)
    images = generator.random((24, 1, 8, 8), dtype=np.float32) * 0.6 + 0.2
    model = SmallCNN(widths=[4, 4], seed=1).eval()
    labels = model(torch.from_numpy(images)).argmax(1).numpy()
    quick = {
        "cw-l2": {"steps": 100},
        "one-pixel": {"population": 40, "generations": 10},
        "square": {"queries": 200},
    }
    attacked = ATTACKS[name](model, images, labels, seed=0, **quick.get(name, {}))
    assert effect(model, images, labels, attacked).success >= 0.5


@pytest.mark.parametrize("name", PAPERS)
def test_no_images_are_no_reason_to_fail(name):
    images, labels = np.zeros((0, 1, 4, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    assert ATTACKS[name](Linear(), images, labels, seed=0).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), np.zeros(2, np.int64), r"are float32 of shape \[2, 4, 4\]"),
        (np.zeros((2, 1, 4, 4)), np.zeros(2, np.int64), "are float64 of shape"),
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(3, np.int64), r"labels are int64 of shape \[3\], expected one"),
        (np.full((2, 1, 4, 4), 2, np.float32), np.zeros(2, np.int64), r"hold values from 2.0 to 2.0, expected pixels"),
        (np.full((2, 1, 4, 4), np.nan, np.float32), np.zeros(2, np.int64), "hold values from nan to nan"),
    ],
)
def test_what_are_no_images_is_refused(name, images, labels, message):
    with pytest.raises(InputError, match=message):
        ATTACKS[name](Linear(), images, labels, seed=0)


def test_batches_do_not_change_what_is_not_random():
    images, labels = with_margins()
    for name in ("fgsm", "jsma", "deepfool", "ila"):
        whole, parts = (ATTACKS[name](Linear(), images, labels, seed=0, batch_size=size) for size in (256, 5))
        np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_the_effect_of_an_attack_worked_by_hand():
    images = np.zeros((4, 2, 1, 2), dtype=np.float32)
    labels = np.array([0, 0, 0, 1])  # the last is wrong from the start
    attacked = images.copy()
    attacked[0, 0, 0, 1] = 0.75  # right still
    attacked[1, :, 0, 0] = [0.5, 0.25]  # both channels of one position
    attacked[2, 0, 0] = [1.0, 0.5]
    classifier = lambda x: torch.stack([torch.full((len(x),), 0.4), x[:, 0, 0, 0]], dim=1)  # noqa: E731
    found = effect(classifier, images, labels, attacked)
    assert (found.right, found.success) == (3, pytest.approx(2 / 3))
    assert found.linf == pytest.approx((0.5 + 1.0) / 2)
    assert found.l2 == pytest.approx((0.3125**0.5 + 1.25**0.5) / 2)
    assert found.l0 == pytest.approx((1 + 2) / 2)


def test_no_success_has_no_distortion():
    images, labels = with_margins()
    nothing = effect(Linear(), images, labels, images)
    assert (nothing.success, nothing.linf, nothing.l2, nothing.l0) == (0.0, None, None, None)


def test_the_joint_network_is_half_classifier_half_members():
    generator = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(5, 3, generator=generator) for _ in range(3))
    joint = joint_network(lambda _: first, [lambda _: second, lambda _: third])(torch.zeros(5, 1))
    expected = first.log_softmax(1) / 2 + second.log_softmax(1) / 4 + third.log_softmax(1) / 4
    torch.testing.assert_close(joint, expected)
    torch.testing.assert_close(joint_network(lambda _: first, [])(torch.zeros(5, 1)), first.log_softmax(1))


def test_the_joint_attack_fools_members_that_an_attack_on_the_classifier_misses():
    """The classifier looks at the left half, the member at the right one."""

    def half(columns):
        def logits(images):
            score = 4 * (images[..., columns] - 0.5).flatten(1).mean(1)
            return torch.stack([torch.zeros_like(score), score], dim=1)

        return logits

    classifier, member = half([0, 1]), half([2, 3])
    x, y = torch.full((3, 1, 4, 4), 0.52), torch.ones(3, dtype=torch.long)
    settings = {"eps": 0.05, "steps": 5, "step_size": 0.02, "random_start": False}
    alone = descend(classifier, x, y, **settings)
    together = descend(joint_network(classifier, [member]), x, y, **settings)
    assert (classifier(alone).argmax(1) == 0).all()
    assert (member(alone).argmax(1) == 1).all()
    assert (classifier(together).argmax(1) == 0).all()
    assert (member(together).argmax(1) == 0).all()
