"""The frontier of a file: every decision that was compared, calibrated as it would be served and put to what was found.

The stages are asked once on the engine that serves; a decision is only numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from s2ap_defend.decision_record import Frontier
from s2ap_defend.sequential import StageAnswers
from s2ap_defend.types import Float64
from s2ap_train.calibration import Calibration, Jury
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.hardening.decision_choice.choice import ChosenDecision
from s2ap_train.hardening.decision_choice.frontier import clean_cost, frontier_row, measure

__all__ = ["compared"]


def compared(
    chosen: ChosenDecision,
    calibrated: Callable[[Jury], Calibration],
    juries: Sequence[Jury],
    engines: StageEngines,
    data: ImageSet,
    flops: Sequence[float],
    *,
    eps: float,
    seed: int,
    classifier: float,
    purifier: float,
) -> Frontier:
    """What each decision that was compared keeps and costs, as it would be served.

    Args:
        chosen: The decisions, and the images that were found for each.
        calibrated: Calibrates the test behind a jury.
        juries: Of the decisions, in their order.
        engines: The stages, members as they were trained.
        data: The clean images and labels that were attacked.
        flops: Operations of one image in each member.
        eps: Of the attack.
        seed: Of the attack.
        classifier: Operations of the classifier.
        purifier: Those of the purifier.
    """
    clean, *attacked = (engines.ask(images) for images in (data.images, *chosen.attacked))
    rows = []
    for decision, jury in zip(chosen.compared, juries, strict=True):
        made = calibrated(jury)
        asked = [said.reorder(made.order) for said in (clean, *attacked)]
        found = measure(decision, made.test, asked[0], asked[1:], data.labels)
        cost = clean_cost(made.test, found.members_used, _in_order(flops, made), classifier=classifier, before=purifier)
        rows.append(frontier_row(found, cost=cost))
    return Frontier(
        split="fit",
        samples=len(data),
        eps=eps,
        seed=seed,
        attack=chosen.attack,
        label_cost=chosen.decision.label_cost,
        robust_classifier=_first_juror(clean, attacked, data),
        chosen=chosen.compared.index(chosen.decision),
        reason=chosen.reason,
        rows=tuple(rows),
    )


def _in_order(flops: Sequence[float], made: Calibration) -> Float64:
    return np.array(flops, dtype=np.float64)[made.order]


def _first_juror(clean: StageAnswers, attacked: Sequence[StageAnswers], data: ImageSet) -> tuple[float, float]:
    """Clean accuracy of the first juror, and its label accuracy under all that was found, its own attack included."""
    right = [said.members[0].argmax(axis=1) == data.labels for said in (clean, *attacked)]
    return float(right[0].mean()), float(np.all(right, axis=0).mean())
