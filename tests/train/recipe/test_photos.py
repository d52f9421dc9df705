"""The recipe that is filled from the user's data, network and effort."""

import pytest

from s2ap_defend.errors import RecipeError
from s2ap_train.data import DataFacts
from s2ap_train.models import create
from s2ap_train.models.cost import flops
from s2ap_train.recipe import check_networks, hardening_recipe
from s2ap_train.recipe.efforts import EFFORTS
from s2ap_train.recipe.photos import default_network, photos_tables


def facts(shape=(3, 32, 32), classes=5, training=1600):
    names = tuple(map(str, range(classes)))
    return DataFacts(shape, names, training, training // 4)


def filled(of, effort="quick", model=None, **more):
    model = default_network(of) if model is None else model
    cost = flops(create(model, of.image_shape, len(of.classes)), of.image_shape)
    base = {"data": {"source": "npz", "root": "own.npz"}, "eps": 8 / 255, "answer": "mixed", "seed": 3, "given": {}}
    return photos_tables(of, model=model, flops=cost, trained_flops=cost, effort=effort, **{**base, **more}), cost


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize(
    "of",
    [facts(), facts((1, 8, 8), 10, 1500), facts((3, 64, 64), 2, 150), facts((3, 32, 32), 100, 50_000)],
    ids=["photos", "small", "few", "many"],
)
def test_every_effort_fills_a_recipe_that_can_be_made(effort, of):
    recipe = hardening_recipe(filled(of, effort)[0], "photos")
    check_networks(recipe, of.image_shape, len(of.classes))
    held_out = recipe.data.validation + recipe.data.fit + recipe.data.calibration
    assert held_out + len(of.classes) <= of.training
    assert (recipe.seed, recipe.eps, recipe.classifier) == (3, 8 / 255, "plain")
    assert recipe.evaluation.budget == effort


def test_more_classes_than_images_to_train_on_are_refused_with_the_number_needed():
    with pytest.raises(RecipeError, match=r"1800 images leave 975 .* of 1000 classes .*; bring 1847 or more"):
        filled(facts((1, 8, 8), 1000, 1800))
    assert filled(facts((1, 8, 8), 1000, 1847))[0]["data"]["train_limit"] >= 1000


def test_evidence_has_as_many_bins_as_few_fitting_images_allow():
    """200 images, a fifth of them for the test: 26 fitting images, five to a bin."""
    recipe = hardening_recipe(filled(facts((3, 32, 32), 3, 160))[0], "photos")
    assert (recipe.data.fit, recipe.detection.bins) == (26, 5)
    assert hardening_recipe(filled(facts())[0], "photos").detection.bins == 6


def test_jurors_cost_a_quarter_of_the_classifier_at_most_where_that_is_enough():
    of = facts()
    tables, cost = filled(of, "standard")
    (network,) = tables["members"]["jurors"]["models"]
    juror = create(network, of.image_shape, 5)
    assert flops(juror, of.image_shape) <= cost / 4


def test_a_dearer_network_gets_fewer_steps_and_more_images_fewer_epochs():
    small, large = ({"name": "resnet18", "width": width} for width in (0.125, 0.5))
    cheap, dear = (filled(facts(), model=model)[0]["adversarial"]["epochs"] for model in (small, large))
    assert dear < cheap
    few, many = (filled(facts(training=n))[0]["adversarial"]["epochs"] for n in (800, 8000))
    assert many < few


def test_given_weights_are_where_robust_training_starts_and_others_start_fresh():
    given = {"classifier": "best.pt", "start": "plain"}
    recipe = hardening_recipe(filled(facts(), given=given)[0], "photos")
    assert recipe.given.start == "plain"
    assert recipe.from_fresh_weights.lr > recipe.adversarial.lr
    assert recipe.from_fresh_weights.eps_warmup_epochs > 0


def test_digits_are_not_mirrored_and_photos_are():
    assert "flip" not in filled(facts((1, 28, 28), 10))[0]["adversarial"]
    assert filled(facts())[0]["adversarial"]["flip"] is True


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 1), r"images are 1x1 pixels, and the network .* bring none .* needs 4 or more .* such as 8x8 "),
        (
            (3, 3, 40),
            r"images are 40x3 pixels, .* needs 4 or more a side; enlarge them with --image-size, such as 8x40 ",
        ),
    ],
)
def test_images_too_small_for_our_network_are_refused_with_the_size_that_is_needed(shape, message):
    with pytest.raises(RecipeError, match=message):
        default_network(facts(shape))
    assert default_network(facts((1, 4, 4))) == {"name": "small_cnn"}


def test_images_too_small_for_the_jurors_are_refused_with_any_network():
    own = {"name": "small_cnn", "widths": [8], "pool_after": []}
    with pytest.raises(RecipeError, match=r"images are 30x1 pixels, and each juror .* needs 2 or more a side"):
        filled(facts((1, 1, 30), 3), model=own)
    least = facts((1, 2, 30), 3)
    check_networks(hardening_recipe(filled(least, model=own)[0], "photos"), least.image_shape, 3)
