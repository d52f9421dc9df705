"""Names of what `harden` trains, which are those of its folders too."""

from s2ap_train.recipe import EnsembleRecipe

__all__ = ["ADVERSARIAL", "JURY", "PLAIN", "PRUNED", "jurors_of", "member_name"]

PLAIN, ADVERSARIAL, PRUNED, JURY = "plain", "adversarial", "pruned", "jury"


def member_name(family: str, number: int) -> str:
    """Name of a member's part and folder; `number` from 0."""
    return f"member-{family}-{number}"


def jurors_of(recipe: EnsembleRecipe) -> list[tuple[str, int]]:
    """(family, number) of every member that is a juror, in the order of the recipe."""
    families = recipe.members.items()
    return [(name, i) for name, family in families if family.role == "juror" for i in range(family.count)]
