"""Jurors at chance are named, with what to change."""

from s2ap_train.hardening.unlearned import unlearned
from s2ap_train.recipe import load_recipe


def test_a_juror_at_chance_is_named_with_what_to_change_and_a_sensor_is_not() -> None:
    recipe = load_recipe("digits")
    splits = recipe.load_data()
    families = [name for name, one in recipe.members.items() for _ in range(one.count)]
    robust = 1 + families.index("robust")  # the pruned classifier is before them
    # 16 of the 100 validation images are of one class
    assert list(unlearned(recipe, [0.17] * (1 + len(families)), splits)) == []
    accuracies = [0.1, *[0.9] * (len(families) - 1), 0.1]
    assert recipe.members[families[-1]].role == "sensor"
    accuracies[robust] = 0.16
    first, second = unlearned(recipe, accuracies, splits)
    assert first.part == "members"
    assert first.found.startswith("pruned is right on 10.0% of ")
    assert first.cure == "remove less or take smaller steps (pruning), or train longer"
    assert second.found.startswith("member-robust-0 is right on 16.0% of ")
    assert "(members.robust)" in second.cure
