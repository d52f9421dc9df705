"""The classifier that a user brings: known ones go on, strange ones are told apart before anything is trained."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.data import DataFacts, ImageSet, Splits
from s2ap_train.hardening.given import check_given
from s2ap_train.hardening.parts import PartList
from s2ap_train.recipe import hardening_recipe
from s2ap_train.recipe.photos import photos_tables
from s2ap_train.storage.parts import PartStore, silent_reporter

CLASSES = ("ape", "bee", "cat", "dog")
NETWORK = """
from torch import nn

def build(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, classes))
"""


@pytest.fixture
def splits() -> Splits:
    """Images whose colour says the class: red ape, green bee, blue cat, dark dog."""
    generator = np.random.default_rng(0)

    def part(n: int) -> ImageSet:
        labels = np.arange(n, dtype=np.int64) % 4
        images = 0.2 * generator.random((n, 3, 4, 4), dtype=np.float32)
        for channel in range(3):
            images[labels == channel, channel] += 0.7
        return ImageSet(images, labels)

    return Splits(part(80), part(60), part(24), part(24), part(24), CLASSES, "colours")


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_colours.py").write_text(NETWORK)

    def recipe_of(weights: torch.Tensor, bias: torch.Tensor, **more: object):
        state = {"1.weight": weights.repeat_interleave(16, dim=1), "1.bias": bias}
        torch.save(state, tmp_path / "best.pt")
        facts = DataFacts((3, 4, 4), CLASSES, 188, 24)
        tables = photos_tables(
            facts, data={"source": "npz", "root": "x.npz"},
            model={"name": "user", "factory": "my_colours:build", **more},
            flops=1000,
            trained_flops=1000, effort="quick", eps=0.1, answer="mixed", seed=0,
            given={"classifier": str(tmp_path / "best.pt"), "start": "plain"},
        )  # fmt: skip
        return hardening_recipe(tables, "photos")

    yield recipe_of
    sys.modules.pop("my_colours", None)


@pytest.fixture
def check(made, splits):
    return lambda *weights, **more: check_given(made(*weights, **more), splits)


KNOWS = torch.cat([torch.eye(3), torch.zeros(1, 3)]), torch.tensor([0.0, 0.0, 0.0, 8.0])


def test_a_classifier_that_knows_the_images_goes_on(check):
    given = check(*KNOWS)
    assert given.accuracy == 1.0
    assert given.notes == ()


def test_classes_in_another_order_are_named(check):
    weights, bias = KNOWS
    with pytest.raises(
        RecipeError, match=r"another order it gets 100.0%: .*--classes, it seems to be dog, ape, bee, cat"
    ):
        check(weights[[3, 0, 1, 2]], bias[[3, 0, 1, 2]])


def test_an_order_is_seen_on_few_images_of_a_weak_network_and_no_feed_is_named_that_is_at_chance(made, splits):
    weights, bias = KNOWS
    weak = made(torch.cat([weights[[3]], torch.zeros(1, 3), weights[[1, 2]]]), bias[[3, 0, 1, 2]] * 0.5)
    few = dataclasses.replace(splits, validation=splits.validation.subset(slice(0, 32)))
    with pytest.raises(RecipeError, match=r"\(25.0%\); with its classes in another order") as told:
        check_given(weak, few)
    assert "channels" not in str(told.value)


def test_a_normalisation_that_the_network_was_trained_with_is_named(check):
    weights, bias = KNOWS
    # of pixels in 0..255: bias as for those, so that unscaled pixels always look dark
    with pytest.raises(RecipeError, match=r"--mean 0 --std .00392157 \(pixels in 0..255\) \(100.0%\)"):
        check(weights, 255 * bias)


def test_channels_in_another_order_are_named(check):
    weights, bias = KNOWS
    given = check(weights[:, [2, 1, 0]], bias)
    assert given.accuracy == pytest.approx(0.5)
    assert "channels in the order blue, green, red (100.0%)" in given.notes[0]


def test_a_network_that_knows_nothing_is_refused(check):
    with pytest.raises(RecipeError, match=r"no more than guessing \(25.0%\); no other normalisation"):
        check(torch.zeros(4, 3), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_a_fair_network_goes_on_with_few_images_and_that_it_may_be_luck_is_said(made, splits):
    recipe = made(torch.cat([torch.eye(3)[:1], torch.zeros(3, 3)]), torch.tensor([0.0, 0.0, 0.0, 8.0]))
    few = dataclasses.replace(splits, validation=splits.validation.subset(slice(0, 20)))
    given = check_given(recipe, few)  # apes are seen, all else are dogs: 10 of 20, which 1 of 72 guesses reaches
    assert given.accuracy == 0.5
    assert given.notes == ("10 of 20 images right may be luck, as guessing gives (25.0%)",)
    with pytest.raises(RecipeError, match=r"gets 50.0% of 8 .* on so few no more than guessing may \(25.0%\)"):
        check_given(recipe, dataclasses.replace(splits, validation=splits.validation.subset(slice(0, 8))))


def test_the_right_normalisation_is_used_where_it_is_given(check):
    weights, bias = KNOWS
    assert check(weights, 255 * bias, mean=[0.0], std=[1 / 255]).accuracy == 1.0


def test_robust_training_starts_from_the_given_network_with_its_reading_of_the_logits(made, splits, tmp_path):
    weights, bias = KNOWS
    recipe = made(1e4 * weights, 1e4 * bias)
    short = dataclasses.replace(recipe.adversarial, epochs=1, lr=1e-9, weight_decay=0.0, average_decay=0.0)
    parts = PartList(recipe.model_copy(update={"adversarial": short}), splits)
    ready = PartStore(tmp_path / "work", silent_reporter()).prepare([parts.plain(), parts.adversarial()])
    plain, adversarial = (ready[name].model for name in ("plain", "adversarial"))
    assert plain.reading.divide > 1000
    assert adversarial.reading == plain.reading
    images = torch.from_numpy(splits.test.images)
    torch.testing.assert_close(adversarial(images), plain(images))
