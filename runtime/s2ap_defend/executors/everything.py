"""All stages of a file asked about all images: the verdicts of those that stop early, in a time that tells nothing."""

from collections.abc import Sequence

import numpy as np

from s2ap_defend.decision_record import Purify
from s2ap_defend.executors.groups import Group
from s2ap_defend.executors.rows import sanitise
from s2ap_defend.executors.stages import Stages
from s2ap_defend.sequential import SequentialTest, StageAnswers, accepted_raw, run_sequential_test
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope
from s2ap_defend.types import Float32, Verdicts

__all__ = ["ask_everything"]


def ask_everything(
    stages: Stages, groups: Sequence[Group], test: SequentialTest, purify: Purify, images: Float32
) -> Verdicts:
    """Purify all images, ask all members about all of them, and decide with all answers at hand.

    `members_used` and what else tells how far the test went are those of the test that stops; only the work is that
    of one that never does.

    Args:
        stages: The engines.
        groups: All groups of stages.
        test: The tables.
        purify: Which images the file purifies.
        images: float32 [N, C, H, W], of the model's shape.

    Raises:
        EngineError: If an engine fails.
    """
    sane, count = sanitise(images), len(images)
    said = stages.ask([(group.scopes[0], sane.image) for group in groups if group.sees == "raw"])
    purified = sane.image if purify == "off" else said[f"{PURIFIER}/purified"]
    said |= stages.ask([(group.scopes[0], purified) for group in groups if group.sees == "purified"])
    error = np.zeros(count, dtype=np.float32) if purify == "off" else said[f"{PURIFIER}/reconstruction_error"]
    last = CLASSIFIER_AGAIN if purify == "suspicious" else CLASSIFIER
    logs = {scope: said[f"{scope}/log_probabilities"] for scope in (CLASSIFIER, last)}
    answers = StageAnswers(
        classifier=logs[last],
        members=np.stack([said[f"{member_scope(i)}/log_probabilities"] for i in range(test.members)]),
        on_raw=logs[CLASSIFIER] if purify == "suspicious" else None,
        reconstruction_error=error if purify == "always" else np.zeros(count, dtype=np.float32),
        valid=sane.valid,
        finite=sane.finite,
    )
    found, raw = run_sequential_test(test, answers, constant_time=True), accepted_raw(test, answers)
    probabilities = [said[f"{scope}/probabilities"] for scope in (CLASSIFIER, last)]
    return Verdicts(
        label=found.label,
        adversarial=found.adversarial,
        base_label=found.base_label,
        probabilities=np.where(raw[:, None], *probabilities),
        label_change_rate=found.label_change_rate,
        log_likelihood_ratio=found.log_likelihood_ratio,
        members_used=found.members_used,
        votes=np.ascontiguousarray(found.votes),
        purified=np.where(raw[:, None, None, None], sane.image, purified),
        reconstruction_error=np.where(raw, np.float32(0), error),
        abstained=found.abstained,
    )
