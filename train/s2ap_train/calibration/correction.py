"""The soft veto: what a member's vote for the base label of a flagged input weighs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from s2ap_defend.sequential import SequentialTest, correction_vote, run_sequential_test
from s2ap_defend.types import Float64, Int64
from s2ap_train.calibration.answers import Answers
from s2ap_train.calibration.evidence import SMOOTHING, increasing_ratio
from s2ap_train.calibration.settings import Veto

GROUPS = 5
SMALLEST_GROUP = 10


@dataclass(frozen=True)
class BaseVotes:
    """Weights of votes for the base label, chosen by the log-likelihood ratio at the alarm; as in SequentialTest.

    Attributes:
        weights: In [0, 1], not increasing [M].
        edges: Ascending, nats [M - 1].
    """

    weights: Float64
    edges: Float64


def base_votes(veto: Veto, test: SequentialTest, clean: Answers, attacked: Answers) -> BaseVotes:
    """The weights of a veto; see `soft_veto` for the soft one."""
    if veto == "soft":
        return soft_veto(test, clean, attacked)
    return BaseVotes(np.array([0.0 if veto == "hard" else 1.0]), np.empty(0))


def soft_veto(test: SequentialTest, clean: Answers, attacked: Answers) -> BaseVotes:
    """P(the base label is right | L at the alarm), not increasing in L, where half of all inputs are attacked.

    That half is a prior, not a measurement: where attacks are rarer, more of the flagged inputs are false alarms and
    the base label deserves more weight than this. Attacked inputs that the classifier still gets right count as right.
    Flagged inputs are grouped by L, 10 or more in a group. Flagged clean inputs are few (alpha of the sample), so to
    each group half a clean input that is right and half an attacked one that is wrong are added: a group without a
    false alarm does not give a weight of 0. Then neighbours are merged until weights fall with L (isotonic
    regression). Without flagged inputs there is nothing to go by: weight 1.

    Args:
        test: The final tables; their own base votes do not matter.
        clean: Clean fitting inputs, all of them.
        attacked: Attacked fitting inputs, all of them.
    """
    ratios, right, mass = [], [], []
    each = [0.5 / max(len(part), 1) for part in (clean, attacked)]
    for part, share in zip((clean, attacked), each, strict=True):
        outcome = run_sequential_test(test, part.log_probabilities, part.base_label)
        rows = outcome.adversarial
        ratios.append(outcome.log_likelihood_ratio[rows])
        right.append(part.right[rows])
        mass.append(np.full(int(rows.sum()), share))
    ratio, is_right, weight = (np.concatenate(parts) for parts in (ratios, right, mass))
    if len(ratio) == 0:
        return BaseVotes(np.ones(1), np.empty(0))
    edges = _group_edges(ratio)
    group = np.searchsorted(edges, ratio, side="right")
    rights, wrongs = (
        np.asarray(np.bincount(group, weight * chosen, len(edges) + 1) + SMOOTHING * share, dtype=np.float64)
        for chosen, share in zip((is_right, ~is_right), each, strict=True)
    )
    odds = 1.0 / increasing_ratio(wrongs, rights)  # right to wrong, falling with L
    weights = odds / (1.0 + odds)
    kept = np.flatnonzero(np.diff(weights) != 0)
    return BaseVotes(weights[np.append(kept, len(weights) - 1)], edges[kept])


def _group_edges(ratio: Float64) -> Float64:
    """Smallest L of every group but the first; equal ratios are never parted."""
    ordered = np.sort(ratio)
    groups = min(GROUPS, max(len(ordered) // SMALLEST_GROUP, 1))
    starts = ordered[[len(ordered) * i // groups for i in range(1, groups)]]
    return np.unique(starts[starts > ordered[0]])


@dataclass(frozen=True)
class CorrectionRow:
    """What one way to correct makes of a set of inputs; shares in [0, 1].

    Attributes:
        name: 'soft', 'hard', 'none': the veto; 'vote only': all members vote on every input, no test and no veto.
        clean_accuracy: Clean inputs whose final label is right.
        clean_accuracy_bare: Clean inputs whose base label is right.
        corrected: Fooling inputs whose final label is right.
        corrected_of_flagged: Share of right labels among the flagged fooling inputs; None without any.
        members_used: Members asked of a fooling input, mean.
    """

    name: str
    clean_accuracy: float
    clean_accuracy_bare: float
    corrected: float
    corrected_of_flagged: float | None
    members_used: float


def correction_table(
    test: SequentialTest, clean: Answers, attacked: Answers, vetoes: Sequence[tuple[str, BaseVotes]]
) -> tuple[CorrectionRow, ...]:
    """What each veto does to clean inputs and to attacked ones that fool the classifier, and the vote alone.

    Args:
        test: The test; its base votes are replaced.
        clean: Clean inputs.
        attacked: Attacked inputs; those that the classifier gets right are left out.
        vetoes: Names and weights, such as [("soft", base_votes("soft", ...)), ...].
    """
    fooled = attacked.keep(~attacked.right)
    rows = []
    for name, votes in vetoes:
        variant = replace(test, base_vote_weights=votes.weights, base_vote_edges=votes.edges, correct=True)
        of_clean, of_fooled = (
            run_sequential_test(variant, part.log_probabilities, part.base_label) for part in (clean, fooled)
        )
        good, flagged = of_fooled.label == fooled.label, of_fooled.adversarial
        rows.append(
            CorrectionRow(
                name,
                float((of_clean.label == clean.label).mean()),
                float(clean.right.mean()),
                float(good.mean()) if len(good) else 0.0,
                float(good[flagged].mean()) if flagged.any() else None,
                float(of_fooled.members_used.mean()) if len(good) else 0.0,
            )
        )
    labels = [majority(part) for part in (clean, fooled)]
    good = labels[1] == fooled.label
    rows.append(
        CorrectionRow(
            "vote only",
            float((labels[0] == clean.label).mean()),
            float(clean.right.mean()),
            float(good.mean()) if len(good) else 0.0,
            None,
            float(test.members),
        )
    )
    return tuple(rows)


def majority(answers: Answers) -> Int64:
    """Label with most votes of all members [N]; ties as in the test: higher summed log-probability, lower index."""
    labels = np.where(answers.disagreements, answers.log_probabilities.argmax(axis=-1), answers.base_label)  # [n, N]
    votes = np.zeros(answers.log_probabilities.shape[1:], dtype=np.int64)
    np.add.at(votes, (np.broadcast_to(np.arange(len(answers)), labels.shape), labels), 1)
    summed = answers.log_probabilities.astype(np.float64).sum(axis=0)
    return correction_vote(votes, summed, answers.base_label, np.ones(len(answers)))
