"""What each decision keeps on clean and attacked images, and what it costs: pure functions of what the stages said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.decision_record import FrontierRow
from s2ap_defend.sequential import SequentialTest, StageAnswers, run_sequential_test
from s2ap_defend.types import Bool, Int64
from s2ap_train.calibration.flops import StageCosts, image_costs
from s2ap_train.recipe.tables import DecisionRecipe

__all__ = ["Measured", "frontier_row", "measure"]


@dataclass(frozen=True)
class Measured:
    """One decision, image by image.

    Attributes:
        decision: Its settings.
        test: Its calibrated test.
        clean_right: Answered and right, without attack [N].
        clean_flagged: Flagged without attack [N].
        label_right: Final label right under every attack, and clean [N].
        robust_right: The same, or flagged, or not answered [N].
        members_used: Members asked of each clean image [N].
        cost: Of a clean image, in operations or time, as a multiple of the classifier's alone.
    """

    decision: DecisionRecipe
    test: SequentialTest
    clean_right: Bool
    clean_flagged: Bool
    label_right: Bool
    robust_right: Bool
    members_used: Int64
    cost: float


def measure(
    decision: DecisionRecipe,
    test: SequentialTest,
    clean: StageAnswers,
    attacked: Sequence[StageAnswers],
    labels: Int64,
    stages: StageCosts,
) -> Measured:
    """What a decision makes of the same images, clean and under every attack.

    Args:
        decision: Its settings.
        test: Its test, members in the order in which they are asked.
        clean: What the stages say of the clean images, members in that order.
        attacked: What they say of the images of each attack.
        labels: True labels [N].
        stages: What they cost, members in that order; the purifier 0 where nothing is purified.
    """
    outcomes = [run_sequential_test(test, said) for said in (clean, *attacked)]
    right = [~one.abstained & (one.label == labels) for one in outcomes]
    safe = [ok | one.adversarial | one.abstained for ok, one in zip(right, outcomes, strict=True)]
    return Measured(
        decision=decision,
        test=test,
        clean_right=right[0],
        clean_flagged=outcomes[0].adversarial,
        label_right=np.all(right, axis=0),
        robust_right=np.all(safe, axis=0),
        members_used=outcomes[0].members_used,
        cost=float(image_costs(stages, test, clean).mean()) / stages.classifier,
    )


def frontier_row(measured: Measured) -> FrontierRow:
    """The row of the manifest."""
    decision = measured.decision
    accepting = np.flatnonzero(np.isfinite(measured.test.lower))
    return FrontierRow(
        answer=decision.answer,
        jury_share=decision.jury_share,
        amplification=decision.amplification,
        purify=decision.purify,
        juror_weight=decision.juror_weight,
        opening=measured.test.opening,
        jurors_see=decision.jurors_see,
        sensors_see=decision.sensors_see,
        signals=decision.signals,
        correction=measured.test.correction,
        min_accept=int(accepting[0]) + 1 if len(accepting) else measured.test.members,
        clean_accuracy=float(measured.clean_right.mean()),
        clean_flagged=float(measured.clean_flagged.mean()),
        label_accuracy=float(measured.label_right.mean()),
        robust_accuracy=float(measured.robust_right.mean()),
        members_used=float(measured.members_used.mean()),
        cost=measured.cost,
    )
