"""What each choice of the decision keeps on clean and attacked images, and which of them is taken.

Pure functions of what the stages said; who attacks is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_defend.decision_record import FrontierRow
from s2ap_defend.sequential import SequentialTest, StageAnswers, run_sequential_test
from s2ap_defend.types import Bool, Float64, Int64
from s2ap_train.recipe.tables import DecisionRecipe

__all__ = ["Measured", "chosen_mix", "clean_cost", "frontier_row", "measure"]


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
    """

    decision: DecisionRecipe
    test: SequentialTest
    clean_right: Bool
    clean_flagged: Bool
    label_right: Bool
    robust_right: Bool
    members_used: Int64


def measure(
    decision: DecisionRecipe,
    test: SequentialTest,
    clean: StageAnswers,
    attacked: Sequence[StageAnswers],
    labels: Int64,
) -> Measured:
    """What a decision makes of the same images, clean and under every attack.

    Args:
        decision: Its settings.
        test: Its test, members in the order in which they are asked.
        clean: What the stages say of the clean images, members in that order.
        attacked: What they say of the images of each attack.
        labels: True labels [N].
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
    )


def chosen_mix(jury: Measured, mixes: Sequence[Measured], *, label_cost: float) -> tuple[int | None, str]:
    """(the mix that is taken, None where none is; why).

    The largest clean accuracy among the mixes whose label accuracy under attack is within `label_cost` of the jury's;
    ties go to the larger label accuracy, then to the larger share of the jury.

    Args:
        jury: The jury alone, attacked on the same images.
        mixes: Mixes of classifier and jury.
        label_cost: Label accuracy that a mix may lose.
    """
    least, alone = float(jury.label_right.mean()) - label_cost, float(jury.clean_right.mean())
    able = [i for i, one in enumerate(mixes) if float(one.label_right.mean()) >= least - 1e-12]
    if not able:
        return None, (
            f"No mix keeps its labels within {100 * label_cost:g} points of the jury's "
            f"{jury.label_right.mean():.1%} under attack, so the jury answers."
        )
    best = max(
        able, key=lambda i: (mixes[i].clean_right.mean(), mixes[i].label_right.mean(), mixes[i].decision.jury_share)
    )
    taken = mixes[best]
    return best, (
        f"Of {len(mixes)} mixes, {len(able)} keep their labels under attack within {100 * label_cost:g} points of the "
        f"jury's {jury.label_right.mean():.1%}; this one has the largest clean accuracy of them, "
        f"{taken.clean_right.mean():.1%} with the jury's {alone:.1%}, and keeps {taken.label_right.mean():.1%}."
    )


def clean_cost(test: SequentialTest, members_used: Int64, flops: Float64, *, classifier: float, before: float) -> float:
    """Floating-point operations of a clean image, as a multiple of the classifier's alone; members in whole waves.

    Args:
        test: Its waves.
        members_used: Members asked of each image [N].
        flops: Of each member, in the order in which they are asked [n].
        classifier: Of the classifier.
        before: Of the purifier.
    """
    ends = np.cumsum(test.waves)
    asked = ends[np.searchsorted(ends, members_used)]
    spent = np.concatenate([[0.0], np.cumsum(flops)])[asked].mean()
    return float((before + classifier + spent) / classifier)


def frontier_row(measured: Measured, *, cost: float) -> FrontierRow:
    """The row of the manifest; `cost` as of `clean_cost`."""
    decision = measured.decision
    accepting = np.flatnonzero(np.isfinite(measured.test.lower))
    return FrontierRow(
        answer=decision.answer,
        jury_share=decision.jury_share,
        amplification=decision.amplification,
        purify=decision.purify,
        juror_weight=decision.juror_weight,
        min_accept=int(accepting[0]) + 1 if len(accepting) else measured.test.members,
        clean_accuracy=float(measured.clean_right.mean()),
        clean_flagged=float(measured.clean_flagged.mean()),
        label_accuracy=float(measured.label_right.mean()),
        robust_accuracy=float(measured.robust_right.mean()),
        members_used=float(measured.members_used.mean()),
        cost=cost,
    )
