from collections.abc import Sequence

from tests.train.hardening.decision_choice.test_rules import measured

from s2ap_train.adaptive.goals import Goal
from s2ap_train.hardening.decision_choice.choice import attacked_hopeful
from s2ap_train.hardening.decision_choice.frontier import Measured
from s2ap_train.recipe.tables import DecisionRecipe

WANTED = DecisionRecipe(answer="mixed", label_cost=0.1)


class Attacked:
    """Decisions whose figures fall as soon as a certain one of them is attacked.

    Args:
        before: Until it is.
        after: From then on.
        falls_with: Which of them.
    """

    def __init__(self, before: Sequence[Measured], after: Sequence[Measured], falls_with: int) -> None:
        self._before, self._after = list(before), list(after)
        self._falls_with = before[falls_with].decision
        self.attacked: list[DecisionRecipe] = []

    @property
    def compared(self) -> list[DecisionRecipe]:
        return [one.decision for one in self._before]

    def attack(self, wanted: Sequence[tuple[DecisionRecipe, Goal]]) -> None:
        assert {goal for _, goal in wanted} == {"mislead"}
        self.attacked += [one for one, _ in wanted]

    def measured(self, decision: DecisionRecipe) -> Measured:
        now = self._after if self._falls_with in self.attacked else self._before
        return now[self.compared.index(decision)]


def test_mixes_are_hopeful_again_where_the_attack_on_the_jury_lowers_it() -> None:
    before = [measured(7, 8, answer="robust"), measured(8, 7, jury_share=0.7), measured(9, 5, jury_share=0.8)]
    after = [measured(7, 5, answer="robust"), measured(8, 6, jury_share=0.7), measured(9, 5, jury_share=0.8)]
    search = Attacked(before, after, falls_with=0)
    assert attacked_hopeful(search, WANTED, search.compared) == search.compared
    assert search.attacked == search.compared, "each once: the jury and the mix behind it first, then the other"


def test_what_an_attack_makes_hopeless_is_dropped() -> None:
    before = [measured(7, 8, answer="robust"), measured(8, 8, jury_share=0.7)]
    after = [measured(7, 8, answer="robust"), measured(8, 5, jury_share=0.7)]
    search = Attacked(before, after, falls_with=1)
    assert attacked_hopeful(search, WANTED, search.compared) == search.compared[:1]
