"""Our attack against those of other libraries; skipped aloud where they are not installed."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.linear_target import task_of, with_margin
from tests.train.toy_classifier import WEIGHTS

from s2ap_defend.errors import RecipeError
from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.attacks.budget import distortion
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.cross_checks import ATTACKS, library
from s2ap_train.redteam.target import open_targets

EPS = 0.1
REACH = EPS * float(WEIGHTS.abs().sum())
BUDGET = AdaptiveBudget(steps=15, restarts=2)
MODULES = {"art-pgd": "art", "secml-pgd": "secmlt"}


def installed(attack):
    there = importlib.util.find_spec(MODULES[attack.name]) is not None
    reason = f"{MODULES[attack.name]} is not installed: pip install -e '.[crosscheck]'"
    return pytest.param(attack, id=attack.name, marks=pytest.mark.skipif(not there, reason=reason))


def test_a_library_that_is_not_there_is_named_with_the_command_that_installs_it():
    with pytest.raises(RecipeError, match=r"needs no-such-package, which is not installed .*pip install '\.\["):
        library("no_such_package", "no-such-package")
    assert all(attack.needs == "library" for attack in ATTACKS)


@pytest.mark.parametrize("attack", [installed(attack) for attack in ATTACKS])
@pytest.mark.parametrize(("factor", "wins"), [(0.99, True), (1.01, False)])
def test_the_library_wins_within_reach_of_the_sign_and_not_beyond(attack, factor, wins):
    target, data = with_margin(WEIGHTS, factor * REACH, 3)
    found = attack.run(target, task_of(data, eps=EPS, budget=BUDGET))
    assert target.system(found.images, data.labels).success.all() == wins
    assert distortion(data.images, found.images)[0].max() <= EPS + 1e-6


@pytest.mark.parametrize("attack", [installed(attack) for attack in ATTACKS])
def test_a_purifier_that_turns_the_image_round_turns_the_attack_round(attack):
    plain, data = with_margin(WEIGHTS, 0.9 * REACH, 3)  # grey, so that its negative has the same margin

    def view(images, path, members):
        return plain.view(1 - images if path == "exact" else images, path, members)

    target = replace(plain, system=lambda images, labels: plain.system(1 - images, labels), view=view, purifies=True)
    found = attack.run(target, task_of(data, eps=EPS, budget=BUDGET))
    assert target.system(found.images, data.labels).success.all()


@pytest.mark.parametrize("attack", [installed(attack) for attack in ATTACKS])
def test_it_goes_through_the_purifier_and_is_decided_by_its_seed(attack, tiny_model_path, random_images):
    defended, _ = open_targets(tiny_model_path)
    images = random_images[:6]
    with torch.no_grad():
        labels = defended.view(torch.from_numpy(images), "exact", 0)[0].argmax(1).numpy()
    task = task_of(ImageSet(images, labels), eps=EPS, budget=BUDGET)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = attack.run(defended, task).images
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(1)
    np.random.seed(1)
    np.testing.assert_array_equal(attack.run(defended, task).images, first)
    with torch.no_grad():
        after = defended.view(torch.from_numpy(first), "exact", 0)[0]
    clean = defended.view(torch.from_numpy(images), "exact", 0)[0]
    rows = np.arange(len(labels))
    assert (after[rows, labels] < clean[rows, labels]).all()  # the label lost probability behind the purifier


@pytest.mark.parametrize("attack", [installed(attack) for attack in ATTACKS])
def test_no_budget_leaves_the_images_alone(attack):
    target, data = with_margin(WEIGHTS, 0.1)
    np.testing.assert_array_equal(attack.run(target, task_of(data, eps=0.0)).images, data.images)
