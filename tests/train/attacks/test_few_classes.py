"""Every attack where there are two classes, three, or a thousand."""

import numpy as np
import pytest
import torch

from s2ap_defend import RecipeError
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.margins import difference_of_logits_ratio, margin
from s2ap_train.adaptive.search import likeliest_wrong
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.attacks.jsma import jsma
from s2ap_train.attacks.local_search import local_search
from s2ap_train.measures.autoattack import apgd, autoattack
from s2ap_train.models import SmallCNN

QUICK = {
    "cw-l2": {"steps": 20, "searches": 2},
    "one-pixel": {"population": 10, "generations": 3},
    "square": {"queries": 30},
    "jsma": {"tries": 2},
    "local-search": {"rounds": 5},
}


def classified(classes, count=6):
    """(A network, images, the labels that it gives them)."""
    images = np.random.default_rng(1).random((count, 1, 8, 8), dtype=np.float32)
    network = SmallCNN(1, classes, [4, 4], 8, seed=1).eval()
    with torch.no_grad():
        return network, images, network(torch.from_numpy(images)).argmax(1).numpy()


@pytest.mark.parametrize("classes", [2, 3, 1000])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_of_the_catalogue_attacks_two_three_and_a_thousand_classes(name, classes):
    network, images, labels = classified(classes)
    attacked = ATTACKS[name](network, images, labels, seed=0, **QUICK.get(name, {}))
    assert attacked.shape == images.shape
    assert np.isfinite(attacked).all()
    assert (attacked >= 0).all()
    assert (attacked <= 1).all()
    assert not np.array_equal(attacked, images)


@pytest.mark.parametrize(
    ("classes", "attacks"),
    [
        (2, ("apgd-ce", "fab-t", "square")),
        (3, ("apgd-ce", "fab-t", "square")),
        (4, ("apgd-ce", "apgd-t", "fab-t", "square")),
        (1000, ("apgd-ce", "apgd-t", "fab-t", "square")),
    ],
)
def test_autoattack_runs_what_exists_for_so_many_classes_and_says_what_that_was(classes, attacks):
    network, images, labels = classified(classes, count=3)
    found = autoattack(network, images, labels, eps=0.05, seed=0, iterations=3, queries=10)
    assert found.attacks == attacks
    assert found.clean_accuracy == 1.0


def test_the_difference_of_logits_ratio_is_refused_below_three_classes_with_what_to_take_instead():
    settings = {"eps": 0.05, "seed": 0, "iterations": 3, "restarts": 1, "batch_size": 8}
    for classes in (3, 1000):
        assert apgd(*classified(classes), loss="dlr", **settings).shape == (6, 1, 8, 8)
    with pytest.raises(RecipeError, match=r"needs 3 classes and this network has 2; take the loss 'ce'"):
        apgd(*classified(2), loss="dlr", **settings)


def test_our_own_ratio_is_the_margin_where_there_is_no_third_logit():
    logits, labels = torch.tensor([[1.0, 3.0], [2.0, -1.0]]), torch.tensor([0, 0])
    assert torch.equal(difference_of_logits_ratio(logits, labels), margin(logits, labels))


def test_a_budget_aims_at_no_more_labels_than_are_wrong():
    assert [AdaptiveBudget.full().for_classes(k).targets for k in (2, 3, 10, 1000)] == [1, 2, 9, 9]


def test_a_label_that_does_not_exist_is_never_aimed_at():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    for rank in (0, 1, 8):
        aimed = likeliest_wrong(lambda *_: (logits, None), torch.zeros(2, 1, 2, 2), torch.tensor([1, 0]), rank)
        assert aimed.tolist() == [0, 1]


def test_targets_beyond_the_classes_and_ranks_that_all_classes_reach_are_refused():
    network, images, labels = classified(3)
    with pytest.raises(ValueError, match="jsma was given class 3 as a target, the classifier has 0 to 2"):
        jsma(network, images, labels, seed=0, targets=np.full_like(labels, 3))
    with pytest.raises(ValueError, match="cannot drive a label below rank 3 of 3 classes"):
        local_search(network, images, labels, seed=0, k=3)
