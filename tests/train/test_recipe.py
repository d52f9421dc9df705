from pathlib import Path

import pytest

from s2ap_defend import RecipeError
from s2ap_train.recipe import load_recipe, packaged_recipes
from s2ap_train.workbench import fingerprint


def test_the_packaged_recipes_load() -> None:
    assert "digits" in packaged_recipes()
    for name in packaged_recipes():
        assert load_recipe(name).name == name


def test_overrides_change_nested_keys() -> None:
    recipe = load_recipe("digits", ("members.s2ap.count=2", "classifier=plain", "s2ap.radius=0.5"))
    assert (recipe.members.s2ap.count, recipe.classifier, recipe.s2ap.radius) == (2, "plain", 0.5)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digit", (), "did you mean 'digits'"),
        ("imagenet-22k", (), "choose from digits"),
        ("missing.toml", (), "cannot be read"),
        ("digits", ("purifer.sigma=1",), r"key purifer is not known; did you mean 'purifier'"),
        ("digits", ("purifier.sgma=1",), r"key purifier.sgma is not known; did you mean 'sigma'"),
        ("digits", ("members.s2ap.cuont=1",), r"did you mean 'count'"),
        ("digits", ("s2ap.training.epoch=1",), r"did you mean 'epochs'"),
        ("digits", ("eps=2",), "eps is 2"),
        ("digits", ("seed",), "has no '='"),
        ("digits", ("purifier.sigma=-1",), "sigma"),
        ("digits", ("classifier=vgg",), "classifier is 'vgg'"),
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


def test_unknown_data_is_refused() -> None:
    with pytest.raises(RecipeError, match="data 'digit' is not known; did you mean 'digits'"):
        load_recipe("digits", ("data=digit",)).load_data()


def test_a_fingerprint_changes_with_every_setting() -> None:
    recipe = load_recipe("digits")
    same = fingerprint((recipe.s2ap, 1))
    assert fingerprint((load_recipe("digits").s2ap, 1)) == same
    assert fingerprint((recipe.s2ap, 2)) != same
    assert fingerprint((load_recipe("digits", ("s2ap.sparsity=0.6",)).s2ap, 1)) != same


def test_the_splits_are_disjoint_and_the_same_for_the_same_seed() -> None:
    splits, again = load_recipe("digits").load_data(), load_recipe("digits").load_data()
    parts = [splits.train, splits.validation, splits.fit, splits.calibration, splits.test]
    assert sum(map(len, parts)) == 1797
    assert (splits.test.images == again.test.images).all()
    other = load_recipe("digits", ("seed=1",)).load_data()
    assert (splits.test.images != other.test.images).any()
