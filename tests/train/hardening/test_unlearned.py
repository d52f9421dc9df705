"""Members at chance are named, with what to change."""

from s2ap_train.hardening.unlearned import unlearned
from s2ap_train.recipe import load_recipe


def test_a_member_at_chance_is_named_with_what_to_change() -> None:
    recipe = load_recipe("digits")
    splits = recipe.load_data()
    members = 1 + sum(family.count for family in recipe.members.values())
    # 16 of the 100 validation images are of one class
    assert list(unlearned(recipe, [0.17] * members, splits)) == []
    first, last = unlearned(recipe, [0.1, *[0.9] * (members - 2), 0.16], splits)
    assert first.part == "members"
    assert first.found.startswith("pruned is right on 10.0% of ")
    assert first.cure == "remove less or take smaller steps (pruning), or train longer"
    (*_, family) = (name for name, one in recipe.members.items() if one.count)
    assert f"(members.{family})" in last.cure
