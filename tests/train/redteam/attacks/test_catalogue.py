import re
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend.errors import RecipeError
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Found
from s2ap_train.recipe import load_recipe
from s2ap_train.redteam.attacks.catalogue import ATTACKS, PRESETS, chosen_attacks
from s2ap_train.redteam.campaign import SHARD, SKIPPED_SHARDS, Setup, attack_jobs, gathered
from s2ap_train.redteam.plan import plan_of


def setup_of(images: int) -> Setup:
    data = ImageSet(np.zeros((images, 1, 2, 2), dtype=np.float32), np.zeros(images, dtype=np.int64))
    return Setup(Path("model.onnx"), data, 0.1, 0.2, 1, 0, AdaptiveBudget.quick())


def test_every_attack_says_what_it_assumes_and_where_it_comes_from() -> None:
    for name, attack in ATTACKS.items():
        assert name == attack.name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert len(attack.assumes) > 30, name
        assert re.search(r"\d{4}", attack.source) or attack.knows == "nothing", name
        assert not attack.assumes.endswith("."), name


def test_presets_grow_and_end_with_the_search_over_everything_in_the_ball() -> None:
    quick, standard, full = (set(PRESETS[name]) for name in ("quick", "standard", "full"))
    assert quick < standard < full < set(ATTACKS)
    assert {ATTACKS[name].knows for name in quick} >= {"nothing", "classifier", "answers", "everything"}
    assert list(ATTACKS)[-1] == "unrolled-pgd"
    others = {name for name, attack in ATTACKS.items() if attack.norm == "linf"} - {"unrolled-pgd"}
    assert set(ATTACKS["unrolled-pgd"].after) == others


def test_names_are_taken_in_the_order_of_the_catalogue() -> None:
    preset, attacks = chosen_attacks("unrolled-pgd, fgsm,clean")
    assert preset is None
    assert [attack.name for attack in attacks] == ["fgsm", "unrolled-pgd"]
    assert chosen_attacks("quick")[0] == "quick"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("unroled-pgd", r"'unroled-pgd' is not known; did you mean unrolled-pgd\? there are noise, "),
        ("fgsm,quick", "a preset stands alone; name 'quick' without"),
        ("quick,clean", "a preset stands alone"),
        (" , ", "no attack is named"),
        ("", "no attack is named"),
        ("fgsm,", None),
    ],
)
def test_an_unknown_attack_names_its_nearest(text: str, hint: str | None) -> None:
    if hint is None:
        assert [attack.name for attack in chosen_attacks(text)[1]] == ["fgsm"]
        return
    with pytest.raises(RecipeError, match=hint):
        chosen_attacks(text)


def test_a_server_adds_its_attacks_to_a_preset_and_leaves_names_alone() -> None:
    for preset in PRESETS:
        without, beside = ({attack.name for attack in chosen_attacks(preset, server=has)[1]} for has in (False, True))
        assert beside - without == {name for name, attack in ATTACKS.items() if attack.needs == "server"} != set()
        assert without <= beside
    assert chosen_attacks("fgsm", server=True) == chosen_attacks("fgsm")
    assert chosen_attacks(" quick,", server=True) == chosen_attacks("quick", server=True)
    served = plan_of(load_recipe("digits"), 64, server=True).attacks
    assert [attack.name for attack in served if attack.needs == "server"] == ["square-http", "hopskipjump-http"]


def test_shards_are_equal_cover_all_images_and_do_not_depend_on_workers() -> None:
    for images in (1, 59, 60, 61, 120, 200, 1000):
        shards = setup_of(images).shards()
        sizes = [shard.stop - shard.start for shard in shards]
        assert sum(sizes) == images
        assert max(sizes) <= SHARD
        assert max(sizes) - min(sizes) <= 1
        assert shards[0].start == 0


def test_shards_and_seeds_give_different_random_numbers() -> None:
    setup = setup_of(200)
    assert len({setup.task(shard).seed for shard in setup.shards()}) == len(setup.shards())


def test_the_search_waits_for_every_attack_on_its_shard_and_for_the_search_on_the_bare_classifier() -> None:
    jobs = {job.name: job for job in attack_jobs(setup_of(120), chosen_attacks("pgd,agreement,unrolled-pgd")[1])}
    waits = set(jobs["unrolled-pgd on the defended, part 2"].after)
    assert waits == {f"{name}, part 2" for name in ("pgd on the defended", "agreement on the defended")} | {
        "unrolled-pgd on the bare, part 2"
    }
    assert set(jobs["unrolled-pgd on the bare, part 1"].after) == {"pgd on the defended, part 1"}
    assert "pgd on the bare, part 1" not in jobs  # it is made on the classifier either way
    assert "agreement on the bare, part 1" not in jobs


def test_the_plan_of_a_recipe_takes_its_budgets_and_what_is_asked_for_instead() -> None:
    recipe = load_recipe("digits")
    own, other = plan_of(recipe, 64), plan_of(recipe, 64, attacks="fgsm", eps=0.3, seed=5)
    assert (own.name, own.depth, own.eps, own.budget) == ("quick", "quick", recipe.eps, AdaptiveBudget.quick())
    assert own.l2 == pytest.approx(recipe.eps * 8 / 3)  # a third of the length of eps in 64 pixels
    assert (other.depth, other.eps, other.seed, other.budget) == ("attacks", 0.3, 5, AdaptiveBudget.quick())
    assert plan_of(recipe, 64, attacks="fgsm", budget="full").budget == AdaptiveBudget.full()
    with pytest.raises(RecipeError, match="no attack is named"):
        plan_of(recipe, 64, attacks="")
    with pytest.raises(RecipeError, match="eps is 0, which leaves quick nothing to attack with"):
        plan_of(recipe, 64, eps=0.0)
    assert plan_of(recipe, 64, attacks="fgsm", eps=0.0).eps == 0.0


def found(setup: Setup, value: float, **notes: object) -> Found:
    rows = setup.shards()[0]
    return Found(np.full(setup.data.images[rows].shape, value, dtype=np.float32), {"seconds": 1.0, **notes})


def test_a_part_without_anything_to_attack_does_not_hide_what_others_found() -> None:
    setup, (attack,) = setup_of(120), chosen_attacks("feature-matching")[1]
    done = {
        "feature-matching on the defended, part 1": found(setup, 0.0, skipped="no guide"),
        "feature-matching on the defended, part 2": found(setup, 0.1, broken_by={"a": 2}),
    }
    (one,) = gathered(setup, [attack], done)[0].values()
    assert one.ran.sum() == 60
    assert one.notes == {"broken_by": {"a": 2}, SKIPPED_SHARDS: "no guide"}
    assert one.images[60:].max() > 0.0 == one.images[:60].max()


def test_attacks_draw_different_random_numbers() -> None:
    jobs = attack_jobs(setup_of(60), chosen_attacks("apgd-ce,agreement,evidence")[1])
    assert len({job.arguments({})[3].seed for job in jobs if "defended" in job.name}) == 3
