"""Jurors trained on together as a part of a recipe."""

import io
import shutil

import pytest
import torch
from rich.console import Console
from tests.export.small_recipe import OVERRIDES

from s2ap_defend import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.hardening.forecast import forecast
from s2ap_train.hardening.parts import JURY, PartList
from s2ap_train.hardening.train import stored_components, train_components
from s2ap_train.recipe import load_recipe

TOGETHER = ["jury_training.epochs=1", "jury_training.eps=0.18", "jury_training.attack_steps=1"]


def test_a_part_behind_the_jurors_takes_their_place_and_nobody_elses(small_parts, tmp_path):
    folder, text = tmp_path / "work", io.StringIO()
    shutil.copytree(small_parts, folder)
    plain, recipe = load_recipe("digits", OVERRIDES[1::2]), load_recipe("digits", [*OVERRIDES[1::2], *TOGETHER])
    splits = recipe.load_data()
    before = stored_components(plain, splits, folder)
    assert stored_components(recipe, splits, folder) is None
    found = train_components(recipe, splits, folder, Reporter(Console(file=text, width=200)), workers=1)
    assert [line.split(":")[0] for line in text.getvalue().splitlines() if "reused" not in line and "%" in line] == [
        JURY
    ]
    changed = [
        not all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
        for one, two in zip(before.members, found.members, strict=True)
    ]
    assert found.roles == before.roles
    assert changed == [number > 0 and role == "juror" for number, role in enumerate(found.roles)]
    assert sum(changed) == 2
    for one, two in zip(before.members, found.members, strict=True):
        assert (one.method, one.seeds, one.flops, one.sparsity) == (two.method, two.seeds, two.flops, two.sparsity)
    again = stored_components(recipe, splits, folder)
    assert [one.robust_accuracy for one in again.members] == [one.robust_accuracy for one in found.members]


def test_its_settings_and_its_jurors_decide_it():
    def key(*overrides):
        recipe = load_recipe("digits", [*OVERRIDES[1::2], *TOGETHER, *overrides])
        (part,) = PartList(recipe, recipe.load_data()).juries()
        return part.key

    own = key()
    assert key("jury_training.lr=0.01").differs_in(vars(own)) == "settings"
    assert "starting networks" in key("members.robust.finetune.epochs=2").differs_in(vars(own))
    assert key("members.random_channel.count=1") == own


def test_a_recipe_without_jurors_cannot_train_them_together():
    recipe = load_recipe("digits", [*OVERRIDES[1::2], *TOGETHER, "members.robust.count=0"])
    with pytest.raises(RecipeError, match="jury_training has no jurors"):
        PartList(recipe, recipe.load_data()).all()


def test_the_forecast_counts_it():
    times = [
        forecast(recipe, recipe.load_data()).by_name
        for recipe in (load_recipe("digits", [*OVERRIDES[1::2], *more]) for more in ([], TOGETHER))
    ]
    assert JURY not in times[0]
    assert times[1][JURY] > 0
