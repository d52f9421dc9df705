"""Figures of one group of members: a family, or the chosen mix, under one kind of sequential test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detection_sets import AttackedSet

from s2ap_defend.sequential import SequentialTest, StageAnswers, run_sequential_test
from s2ap_defend.types import Bool, Float32, Float64, Int64
from s2ap_train.calibration import (
    Answers,
    Calibration,
    Detection,
    Jury,
    alarm_statistic,
    calibrate,
    conformal_boundary,
    jury_label,
    samples_needed,
)
from s2ap_train.data import ImageSet
from s2ap_train.hardening.network import Network
from s2ap_train.measures.predictions import logits
from s2ap_train.statistics.detection import Share, detected_at, roc_area

RATES = (0.01, 0.05)
"""False-alarm rates at which detection is reported."""
REDRAWS = 20
ALPHAS = (0.01, 0.02, 0.05)


class Asker:
    """Answers of a base and a group of members to images, each network asked once for each set."""

    def __init__(self, base: Network) -> None:
        self._base = base
        self._said: dict[tuple[int, int], Float32] = {}

    def __call__(self, members: Sequence[Network], data: ImageSet | AttackedSet) -> Answers:
        """Answers of these members; the data must stay alive and unchanged."""
        said = [self._ask(network, data.images) for network in (self._base, *members)]
        return Answers(StageAnswers(said[0], np.stack(said[1:])), said[0].argmax(axis=1), data.labels)

    def _ask(self, network: Network, images: Float32) -> Float32:
        key = (id(network), id(images))
        if key not in self._said:
            self._said[key] = np.asarray(logits(network.model, images).log_softmax(1).numpy(), dtype=np.float32)
        return self._said[key]


@dataclass(frozen=True)
class Judged:
    """What a calibrated test makes of one set of inputs.

    Attributes:
        chosen: Which inputs count [N]: clean ones that the base gets right, or of these the ones that then fool it.
        statistic: What the alarm boundary is compared with [N], or the label change rate of all members.
        flagged: Called adversarial [N].
        right: Final label right [N].
        decided_after: Members asked until the test decided [N].
        members_used: Those asked for the vote on what is flagged included [N].
    """

    chosen: Bool
    statistic: Float64
    flagged: Bool
    right: Bool
    decided_after: Int64
    members_used: Int64


class CalibratedGroup:
    """Members with a test that was calibrated for them.

    Args:
        fit: Clean and attacked inputs that fit the tables.
        held_out: Clean inputs for the boundary.
        config: Kind and settings of the test.
        jury: Who votes on what is flagged.
    """

    def __init__(self, fit: tuple[Answers, Answers], held_out: Answers, config: Detection, jury: Jury) -> None:
        self.config = config
        self.calibration: Calibration = calibrate(*fit, held_out, config, jury)
        self.test: SequentialTest = self.calibration.test
        self._decision_only = replace(self.test, correction="reject")

    def judge(self, answers: Answers, chosen: Bool) -> Judged:
        """What the test decides, as the file would; `chosen` says which inputs count."""
        ordered = answers.reorder(self.calibration.order)
        outcome = run_sequential_test(self.test, ordered.said)
        decision = run_sequential_test(self._decision_only, ordered.said)
        paper = self.config.kind == "paper"
        return Judged(
            chosen=chosen,
            statistic=answers.disagreements.mean(axis=0) if paper else alarm_statistic(self.test, ordered),
            flagged=outcome.adversarial,
            right=np.asarray(~outcome.abstained & (outcome.label == answers.label)),
            decided_after=decision.members_used,
            members_used=outcome.members_used,
        )


def majority(answers: Answers) -> Int64:
    """Label that most members say, each with one vote [N]."""
    return jury_label(answers, np.ones(answers.members))


def clean_figures(judged: Judged, answers: Answers) -> dict[str, Any]:
    """Figures on clean images."""
    right = judged.chosen
    return {
        "bare_accuracy": Share.of(right).to_json(),
        "accuracy": Share.of(judged.right).to_json(),
        "vote_only_accuracy": Share.of(majority(answers) == answers.label).to_json(),
        "false_alarms": Share.of(judged.flagged[right]).to_json(),
        "mistakes_flagged": Share.of(judged.flagged[~right]).to_json(),
        "accuracy_lost": float(right.mean() - judged.right.mean()),
        "decided_after": float(judged.decided_after.mean()),
        "members_used": float(judged.members_used.mean()),
    }


def attack_figures(judged: Judged, clean: Judged, answers: Answers) -> dict[str, Any]:
    """Figures on attacked images that fool the base; `clean` gives the negatives."""
    fooled, negative = judged.chosen, clean.statistic[clean.chosen]
    statistic = judged.statistic[fooled]
    if not fooled.any():
        return {"fooled": 0}
    detected = judged.flagged[fooled]
    voted = majority(answers)[fooled]
    return {
        "fooled": int(fooled.sum()),
        "auroc": roc_area(negative, statistic).to_json(),
        **{f"detected_at_{rate:g}": detected_at(negative, statistic, rate).to_json() for rate in RATES},
        "detected": Share.of(detected).to_json(),
        "corrected": Share.of(judged.right[fooled]).to_json(),
        "corrected_of_detected": Share.of(judged.right[fooled][detected]).to_json(),
        "vote_only_corrected": Share.of(voted == answers.label[fooled]).to_json(),
        "group_disagrees": Share.of(voted != answers.first[fooled]).to_json(),
        "decided_after": float(judged.decided_after[fooled].mean()),
        "members_used": float(judged.members_used[fooled].mean()),
    }


def redrawn_false_alarms(calibrating: Float64, measuring: Float64, *, seed: int) -> dict[str, dict[str, Any]]:
    """False-alarm rate on test inputs of conformal boundaries from random halves of the calibration inputs.

    No test input ever calibrates, so inputs that trained or fitted something among the calibration inputs would show:
    in the rates, and in the two-sample Kolmogorov-Smirnov p-value ('alike').

    Args:
        calibrating: Alarm statistics of the calibration inputs that count [n].
        measuring: Those of the test inputs that count [m].
        seed: Of the redraws.

    Returns:
        By alpha: the mean rate, its standard error (both samples: sqrt(alpha (1 - alpha) (1 / n + 1 / m))), inputs
        drawn for a boundary, whether mean <= alpha + 3 errors; without what too few inputs allow.
    """
    from scipy import stats

    generator, found = np.random.default_rng(seed), {}
    half = len(calibrating) // 2
    for alpha in ALPHAS:
        if half < samples_needed(alpha):
            continue
        rates = []
        for _ in range(REDRAWS):
            drawn = generator.permutation(calibrating)[:half]
            rates.append(float((measuring >= conformal_boundary(drawn, alpha)).mean()))
        error = float(np.sqrt(alpha * (1 - alpha) * (1 / len(calibrating) + 1 / len(measuring))))
        mean = float(np.mean(rates))
        found[f"{alpha:g}"] = {
            "mean": mean,
            "standard_error": error,
            "calibration_inputs": half,
            "holds": mean <= alpha + 3 * error,
            "alike": float(stats.ks_2samp(calibrating, measuring).pvalue),
        }
    return found
