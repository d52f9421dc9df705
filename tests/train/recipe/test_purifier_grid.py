"""Which purifiers are tried: the `[choice]` table of a recipe."""

from dataclasses import replace

import pytest

from s2ap_defend import RecipeError
from s2ap_train.hardening.purifier_choice import check_grid
from s2ap_train.purifier import Purification
from s2ap_train.recipe import load_ensemble_recipe, load_pruning_recipe, load_recipe
from s2ap_train.recipe.purifier_grid import (
    ChoiceSettings,
    PurifierValues,
    canonical,
    check_banks,
    default_values,
    grid,
    settings_of,
    without_ascent,
)

OWN = Purification(sigma=0.2, radius=0.1, steps=2, rho=0.05, bank_size=2)


def test_off_the_recipes_own_and_its_twin_with_rho_0_are_always_tried():
    off, own, twin = grid(OWN, ())
    assert off.off
    assert own == OWN
    assert twin == replace(OWN, rho=0.0)
    assert grid(replace(OWN, rho=0.0), ()) == (off, twin)
    assert grid(replace(OWN, steps=0), ()) == (off,)


def test_tables_are_multiplied_out_and_nothing_is_tried_twice():
    tables = [
        PurifierValues(sigma=(0.2, 0.3), radius=(0.1, 0.2)),
        PurifierValues(mode=("j_free",)),
        PurifierValues(steps=(0,), radius=(0.1, 0.2, 0.3)),
        PurifierValues(sigma=((0.2, 0.2), (0.3, 0.1)), reuse_ascent=(True,), rho=(0.0,)),
    ]
    tried = grid(OWN, tables)
    assert tried[3:] == (
        replace(OWN, radius=0.2),
        replace(OWN, sigma=0.3),
        replace(OWN, sigma=0.3, radius=0.2),
        replace(OWN, mode="j_free"),
        replace(OWN, sigma=(0.3, 0.1), rho=0.0),
    ), "own, off under other radii, equal levels as a schedule and an ascent that is not there are no new purifiers"
    with pytest.raises(RecipeError, match=r"choice\.settings\.1: this cannot purify"):
        grid(OWN, [PurifierValues(), PurifierValues(sigma=(-1.0,))])


@pytest.mark.parametrize(
    "config",
    [
        OWN,
        replace(OWN, sigma=(0.3, 0.3), rho=0.0, reuse_ascent=True),
        replace(OWN, sigma=(0.3, 0.1)),
        Purification(sigma=(), steps=0, radius=0.7),
    ],
)
def test_the_canonical_form_is_the_same_purifier_and_stays_as_it_is(config):
    one = canonical(config)
    assert canonical(one) == one
    assert (one.sigmas, one.work, one.off) == (config.sigmas, config.work, config.off)
    assert without_ascent(one) == without_ascent(config)
    assert settings_of(one).in_words == settings_of(replace(config, reuse_ascent=one.reuse_ascent)).in_words


def test_without_a_table_a_small_grid_surrounds_the_recipes_purifier():
    tried = grid(OWN, default_values(OWN, (0.15, 0.6)))
    assert replace(OWN, sigma=0.4) in tried
    assert replace(OWN, sigma=0.1) not in tried, "the score model never saw that noise"
    assert {replace(OWN, radius=0.05), replace(OWN, radius=0.2), replace(OWN, steps=1)} <= {*tried}
    assert {replace(OWN, mode="j_free"), replace(OWN, mode="j_free", rho=0.0)} <= {*tried}
    assert len(tried) == 9
    assert any(not one.off for one in grid(replace(OWN, steps=0), default_values(replace(OWN, steps=0), (0.1, 0.6))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "choice.samples=3",
            "^recipe digits: choice: samples 3, steps 8, restarts 1, square_queries 80: samples starts at 10",
        ),
        ("choice.steps=0", "steps and restarts at 1"),
        ("choice.square_queries=-1", "square_queries at 0"),
        ("choice.setings=[]", r"key choice\.setings is not known; did you mean 'settings'"),
        ("choice.settings=[{sigm=[0.1]}]", r"key choice\.settings\.0\.sigm is not known; did you mean 'sigma'"),
        ("choice.settings=[{rho=[]}]", r"choice\.settings\.0\.rho"),
        ('choice.settings=[{mode=["fast"]}]', r"choice\.settings\.0\.mode"),
        (
            'export.precision="float8"',
            r"export\.precision is 'float8'.*choose from float32, float16_weights, float1",
        ),
        ('export.precision={members="float8"}', r"export\.precision\.members is 'float8'"),
        ('export.precision={purifier="int8"}', r"export\.precision\.purifier is 'int8'"),
    ],
)
def test_a_choice_that_cannot_work_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", (override,))


def test_the_table_of_a_recipe_is_read_and_left_to_harden_alone():
    overrides = ("choice.samples=20", "choice.settings=[{sigma=[0.1, [0.2, 0.1, 0.1]], rho=[0.0, 0.1]}]")
    recipe = load_recipe("digits", overrides)
    assert recipe.choice == ChoiceSettings(
        samples=20,
        steps=recipe.choice.steps,
        square_queries=recipe.choice.square_queries,
        settings=(PurifierValues(sigma=(0.1, (0.2, 0.1, 0.1)), rho=(0.0, 0.1)),),
    )
    assert {one.rho for one in check_grid(recipe)} >= {0.0, 0.1}
    load_pruning_recipe("digits", overrides)
    load_ensemble_recipe("digits", overrides)
    assert len(check_grid(load_recipe("digits").model_copy(update={"choice": None}))) > 3


def test_off_is_one_purifier_whatever_its_bank_and_one_step_has_no_ascent_to_reuse():
    banks = PurifierValues(steps=(0, 1), bank_size=(2, 4), bank_seed=(0, 1))
    assert [one.off for one in grid(OWN, [banks])].count(True) == 1
    assert [one.off for one in grid(replace(OWN, steps=0, bank_size=8, bank_seed=3), [banks])].count(True) == 1
    reused = PurifierValues(steps=(1, 2), reuse_ascent=(False, True))
    assert grid(OWN, [reused])[3:] == (replace(OWN, steps=1), replace(OWN, reuse_ascent=True))
    assert replace(OWN, steps=1).work == replace(OWN, steps=1, reuse_ascent=True).work, "they are one purifier"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("purifier.sigma=0.7",), r"sigma 0\.7, which is trained from sigma_min 0\.05 to sigma_max 0\.6 alone"),
        (("purifier.sigma=0.01",), r"^recipe digits: .* sigma 0\.01,"),
        (("choice.settings=[{steps=[2], sigma=[[0.1, 0.04]]}]",), r"sigma 0\.04,"),
        (("purifier.steps=0", "choice.settings=[{steps=[1], sigma=[0.5, 0.61]}]"), r"sigma 0\.61,"),
        (("score_model.sigma_max=0.09", "choice.settings=[]"), r"sigma 0\.1, .* sigma_max 0\.09 alone"),
        (("purifier.bank_seed=-1",), "bank_seed must be at least 0, found -1"),
        (("choice.settings=[{bank_seed=[0, -2]}]",), "bank_seed must be at least 0, found -2"),
    ],
)
def test_what_the_score_model_never_saw_or_no_seed_draws_is_refused_before_training(overrides, message):
    with pytest.raises(RecipeError, match=message):
        check_grid(load_recipe("digits", overrides))


def test_the_ends_of_the_trained_range_are_tried_and_an_off_purifier_asks_at_no_level():
    check_grid(load_recipe("digits", ("choice.settings=[{sigma=[0.05, 0.6]}]",)))
    off = load_recipe("digits", ("purifier.steps=0", "purifier.sigma=0.9")).model_copy(update={"choice": None})
    assert {level for one in check_grid(off) for level in one.sigmas} == {0.6, 0.3}


def test_a_bank_has_at_most_two_directions_for_each_column_of_the_next_power_of_two():
    check_banks([replace(OWN, bank_size=128)], (1, 8, 8))
    check_banks([replace(OWN, bank_size=8192)], (3, 32, 32))  # 3072 pixels: of 4096
    check_banks([canonical(replace(OWN, steps=0))], (1, 1, 1))
    with pytest.raises(RecipeError, match=r"bank_size 130, but images of 1x8x8 allow at most 128 directions"):
        check_banks([OWN, replace(OWN, bank_size=130)], (1, 8, 8))
