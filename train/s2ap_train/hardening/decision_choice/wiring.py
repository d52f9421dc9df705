"""From the settings of a decision to what each member sees and to the jury."""

from __future__ import annotations

from collections.abc import Sequence

from s2ap_defend.decision_record import Role, Sees
from s2ap_train.calibration import Jury
from s2ap_train.recipe.tables import DecisionRecipe

__all__ = ["wiring"]


def wiring(decision: DecisionRecipe, roles: Sequence[Role]) -> tuple[tuple[Sees, ...], Jury]:
    """What each member sees, and the jury; members as they were trained, the pruned classifier first.

    Sensors that are left out count as seeing the raw image.

    Args:
        decision: The recipe's.
        roles: Of the members.
    """
    jurors = [i for i, role in enumerate(roles) if role == "juror"]
    weights = tuple(0.0 if role == "sensor" else decision.juror_weight if i else 1.0 for i, role in enumerate(roles))
    jury = Jury(
        weights,
        tuple(jurors[: decision.opening]),
        decision.answer,
        jury_share=decision.jury_share,
        amplification=decision.amplification,
        await_vote=decision.await_vote and decision.answer == "robust",
        signals=decision.signals,
        correction="keep" if decision.answer == "mixed" and decision.flagged_label == "answer" else "correct",
        left_out=tuple(i for i, role in enumerate(roles) if role == "sensor" and decision.sensors_see == "nothing"),
    )
    sensors: Sees = "raw" if decision.sensors_see == "nothing" else decision.sensors_see
    return tuple(decision.jurors_see if role == "juror" else sensors for role in roles), jury
