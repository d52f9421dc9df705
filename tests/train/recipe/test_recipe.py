from pathlib import Path

import pytest

from s2ap_defend import RecipeError
from s2ap_train.compute import ComputeSettings
from s2ap_train.pruning import S2AP, Harp, Hydra, Magnitude
from s2ap_train.purifier import ScoreTraining
from s2ap_train.recipe import (
    check_networks,
    evaluation_recipe,
    load_ensemble_recipe,
    load_pruning_recipe,
    load_recipe,
    load_score_recipe,
    packaged_recipes,
)
from s2ap_train.recipe.text import read_recipe
from s2ap_train.storage.fingerprint import fingerprint

HARDENING = {
    "digits": (16, (1, 2), 1),
    "fashion": (16, (1, 2, 2), 1),
    "cifar10-small": (32, (1, 2, 2), 1),
    "cifar10-resnet18": (64, (1, 2, 2), 1),
}
"""Recipes for harden, and width, multipliers and fold of their score models."""


def test_the_packaged_recipes_load() -> None:
    assert "digits" in packaged_recipes()
    for name in packaged_recipes():
        recipe = load_pruning_recipe(name)
        assert recipe.name == name
        assert recipe.adversarial.adversarial
        assert recipe.pruning.training.eps == recipe.adversarial.eps


def test_the_digits_recipe_hardens_and_prunes_the_same_network() -> None:
    hardening, pruning = load_recipe("digits"), load_pruning_recipe("digits")
    assert hardening.pruning == pruning.pruning == Hydra(0.5, training=pruning.pruning.training, s2ap=S2AP())
    assert not hasattr(pruning, "members")


def test_one_table_serves_every_method() -> None:
    harp = load_pruning_recipe("digits", ("pruning.method=s2ap", "pruning.base=harp", "pruning.s2ap.radius=0.1"))
    assert isinstance(harp.pruning, Harp)
    assert harp.pruning.s2ap == S2AP(radius=0.1)
    plain = load_pruning_recipe("digits", ("pruning.method=hydra",)).pruning
    assert isinstance(plain, Hydra)
    assert plain.s2ap is None
    magnitude = load_pruning_recipe("digits", ("pruning.method=magnitude", "pruning.scope=lamp")).pruning
    assert magnitude == Magnitude(0.5, scope="lamp")


@pytest.mark.parametrize("name", HARDENING)
def test_recipes_that_harden_hold_everything_for_it(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert any(family.count for family in recipe.members.values())
    assert recipe.purifier.radius >= recipe.eps, "the ball about an attacked image holds the clean one"
    low, high = recipe.score_model.sigma_min, recipe.score_model.sigma_max
    assert all(low <= sigma <= high for sigma in recipe.purifier.sigmas), "the score model knows the purifier's noise"
    image_shape = {"digits": (1, 8, 8), "fashion": (1, 28, 28)}.get(name, (3, 32, 32))
    assert recipe.score_model.architecture(image_shape) == HARDENING[name]
    check_networks(recipe, image_shape, 10)
    assert load_score_recipe(name).score_model == recipe.score_model
    assert load_pruning_recipe(name).pruning == recipe.pruning


def test_other_recipes_do_not_harden() -> None:
    for name in set(packaged_recipes()) - HARDENING.keys():
        with pytest.raises(RecipeError, match="use it with s2ap-defend prune"):
            load_recipe(name)


def test_the_cifar_recipes_purify_by_the_specification() -> None:
    full, fast = (load_recipe(name).purifier for name in ("cifar10-resnet18", "cifar10-small"))
    eps = 8 / 255
    for purifier in (full, fast):
        assert purifier.sigmas[0] == 0.125
        assert purifier.radius == pytest.approx(2 * eps)
        assert purifier.rho == pytest.approx(0.17 * eps * (3 * 32 * 32) ** 0.5, abs=5e-5)
    assert (full.steps, full.step_size, full.bank_size) == (3, 0.7, 4)
    assert (fast.steps, fast.step_size, fast.bank_size) == (1, 1.0, 2)


def test_harden_trains_on_the_cpu_unless_its_recipe_says_where() -> None:
    assert load_recipe("digits").compute == ComputeSettings("cpu", channels_last=False)
    assert load_recipe("digits", ("compute.precision=bf16",)).compute == ComputeSettings(precision="bf16")
    assert load_recipe("cifar10-resnet18").compute.precision == "bf16"
    assert load_pruning_recipe("digits", ("compute.precision=bf16",)).compute.precision == "bf16"


def test_pruning_and_ensembles_leave_out_what_is_for_harden() -> None:
    together = ("jury_training.epochs=1", "jury_training.eps=0.1")
    assert load_recipe("digits", together).jury_training is not None
    assert load_ensemble_recipe("digits", together) == load_ensemble_recipe("digits")
    assert load_pruning_recipe("digits", together) == load_pruning_recipe("digits")


def test_a_score_model_is_read_from_recipes_that_harden_and_from_those_for_it_alone(tmp_path: Path) -> None:
    alone = tmp_path / "score.toml"
    alone.write_text('name = "score"\ndata = "digits"\nseed = 1\n[score_model]\nsize = "fast"\n')
    assert load_score_recipe(str(alone)).score_model == ScoreTraining(size="fast")
    whole = load_score_recipe("digits", ("score_model.flip=true",))
    assert (whole.score_model.flip, whole.seed) == (True, 0)
    assert not hasattr(whole, "purifier")
    with pytest.raises(RecipeError, match="svhn-wrn28-4 has no score_model; use one that hardens"):
        load_score_recipe("svhn-wrn28-4")
    with pytest.raises(RecipeError, match="did you mean 'purifier'"):
        load_score_recipe("digits", ("purifer.sigma=1",))


def test_a_recipe_for_less_cannot_harden(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is for pruning, it has no classifier, .* use it with s2ap-defend prune"):
        load_recipe("svhn-wrn28-4")
    ensemble = tmp_path / "ensemble.toml"
    ensemble.write_text('name = "ensemble"\nmembers = {}\n')
    with pytest.raises(RecipeError, match=r"is for ensembles and pruning, .* use it with s2ap-defend prune"):
        load_recipe(str(ensemble))


def test_an_ensemble_is_read_from_recipes_that_harden_and_from_those_that_do_not() -> None:
    hardening = load_recipe("digits")
    ensemble = load_ensemble_recipe("digits")
    assert (ensemble.plain, ensemble.members, ensemble.detection) == (
        hardening.plain,
        hardening.members,
        hardening.detection,
    )
    assert not hasattr(ensemble, "purifier")
    assert load_ensemble_recipe("cifar10-resnet18").compute.precision == "bf16"
    with pytest.raises(RecipeError, match=r"svhn-wrn28-4 is for pruning, it has no plain, members or detection"):
        load_ensemble_recipe("svhn-wrn28-4")


def test_a_key_for_somebody_else_is_checked_all_the_same() -> None:
    for load in (load_recipe, load_ensemble_recipe, load_pruning_recipe):
        with pytest.raises(RecipeError, match="did you mean 'sigma'"):
            load("digits", ("purifier.sgma=1",))
    for load in (load_ensemble_recipe, load_pruning_recipe):
        with pytest.raises(RecipeError, match="did you mean 'members'"):
            load("cifar10-small", ("membrs.robust.count=1",))
        with pytest.raises(RecipeError, match="did you mean 'count'"):
            load("cifar10-small", ("members.robust.cuont=1",))


def test_overrides_change_nested_keys() -> None:
    recipe = load_recipe("digits", ("members.robust.count=2", "classifier=plain", "pruning.s2ap.radius=0.5"))
    assert (recipe.members["robust"].count, recipe.classifier, recipe.pruning.s2ap.radius) == (2, "plain", 0.5)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digit", (), "did you mean 'digits'"),
        ("imagenet-22k", (), "choose from .*digits"),
        ("digits", ("pruning.method=hidra",), r"pruning.method is 'hidra'; did you mean 'hydra'"),
        ("digits", ("pruning.base=magnitude",), "trains no scores that S2AP could perturb; choose from hydra, harp"),
        ("digits", ("pruning.sparcity=0.5",), r"key pruning.sparcity is not known; did you mean 'sparsity'"),
        ("digits", ("pruning.s2ap.radius=-1",), "must not be negative"),
        ("digits", ("pruning.structure=2:4", "pruning.sparsity=0.9"), "2:4 removes exactly half"),
        ("digits", ("data.source=digit",), "data"),
        ("missing.toml", (), "cannot be read"),
        ("digits", ("purifer.sigma=1",), r"key purifer is not known; did you mean 'purifier'"),
        ("digits", ("purifier.sgma=1",), r"key purifier.sgma is not known; did you mean 'sigma'"),
        ("digits", ("members.robust.cuont=1",), r"did you mean 'count'"),
        ("digits", ("pruning.training.epoch=1",), r"key pruning.training.epoch is not known; did you mean 'epochs'"),
        ("digits", ("eps=2",), "eps is 2"),
        ("digits", ("seed",), "has no '='"),
        ("digits", ("purifier.sigma=-1",), "sigma"),
        ("digits", ("classifier=vgg",), "classifier is 'vgg'"),
        ("digits", ("model=nonet",), "^recipe digits: model: unknown architecture 'nonet'; choose one of"),
        ("digits", ("model.wdth=2",), "^recipe digits: model: architecture 'small_cnn' has no wdth; it has pool_after"),
        ("digits", ("model.classes=3",), "^recipe digits: model: the table of the network sets classes"),
        ("digits", ("detection.alpha=2",), "^recipe digits: detection: alpha 2 is no false-alarm rate"),
        ("digits", ("data.root=x",), "^recipe digits: data.root is given for the digits"),
        ("digits", ("pruning.s2ap.radius=-1",), "^recipe digits: pruning.s2ap: radius -1"),
        ("digits", ("pruning.training.epochs=0",), "^recipe digits: pruning.training: this cannot be trained"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(name: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)


def test_a_recipe_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("a = = 1")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(str(tmp_path / "r.toml"))


def test_a_recipe_as_an_editor_saves_it_with_a_byte_order_mark_is_read_and_one_in_utf_16_is_refused(
    tmp_path: Path,
) -> None:
    text = '{"name": "mine", "data": "digits", "seed": 1}'
    for name in ("r.json", "r.toml"):
        text = text if name.endswith("json") else 'name = "mine"\ndata = "digits"\nseed = 1\n'
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_recipe(str(tmp_path / name), ())["name"] == "mine"
    (tmp_path / "r.toml").write_text(text, encoding="utf-16")
    with pytest.raises(RecipeError, match=r"cannot be read: .*; give a text file in UTF-8"):
        read_recipe(str(tmp_path / "r.toml"), ())


def test_a_fingerprint_changes_with_every_setting() -> None:
    recipe = load_recipe("digits")
    same = fingerprint((recipe.pruning, 1))
    assert fingerprint((load_recipe("digits").pruning, 1)) == same
    assert fingerprint((recipe.pruning, 2)) != same
    assert fingerprint((load_recipe("digits", ("pruning.sparsity=0.6",)).pruning, 1)) != same


def test_the_splits_are_disjoint_and_the_same_for_the_same_seed() -> None:
    splits, again = load_recipe("digits").load_data(), load_recipe("digits").load_data()
    parts = [splits.train, splits.validation, splits.fit, splits.calibration, splits.test]
    assert sum(map(len, parts)) == 1797
    assert (splits.test.images == again.test.images).all()
    other = load_recipe("digits", ("seed=1",)).load_data()
    assert (splits.test.images != other.test.images).any()


def test_what_a_manifest_says_of_its_data_is_refused_like_a_recipe() -> None:
    tables = {"name": "digits", "data": {"source": "digits", "root": "photos"}, "seed": 0, "eps": 0.1}
    with pytest.raises(
        RecipeError, match=r"^recipe digits: data\.root is given for the digits, which come with scikit-learn"
    ):
        evaluation_recipe({**tables, "evaluation": {"samples": 10, "budget": "quick"}})
