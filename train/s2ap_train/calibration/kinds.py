"""The kinds of test: what their members' answers weigh and where their boundaries lie before any is calibrated."""

import math
from dataclasses import dataclass

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import FINAL_THRESHOLDS, SequentialTest
from s2ap_defend.sequential.wald import binary_tables, paper_levels, ville_boundary, wald_boundaries
from s2ap_defend.types import Float64
from s2ap_train.calibration.answers import Answers
from s2ap_train.calibration.boundaries import lower_boundaries
from s2ap_train.calibration.evidence import MemberTables, binary_rates, fit_tables
from s2ap_train.calibration.jury import Jury
from s2ap_train.calibration.settings import Detection

PAPER_RATE = 0.05  # alpha and beta
PAPER_MEMBERS = 100

NAMES = {
    "conformal": "conformal: {evidence}, conformal alarm boundary, Wald clean boundary while evidence can follow",
    "graded": "graded: {evidence}, Wald boundaries",
    "weighted": "weighted: {evidence}, Wald boundaries",
    "wald": "wald: votes with shared rates, Wald boundaries",
    "ville": "ville: votes with shared rates, Ville alarm boundary, Wald clean boundary",
    "paper": "paper: votes with the levels of Wang et al. 2021, Wald boundaries, sign truncation",
}
NO_EVIDENCE = "none: no evidence could be fitted, nothing is flagged"
"""What the manifest calls a test without evidence."""


@dataclass(frozen=True)
class Rules:
    """Everything of a test but its members' answers: the settings as the kind takes them.

    Attributes:
        alpha: Design or conformal false-alarm rate.
        beta: Design miss rate.
        min_accept: Members before 'clean'.
        members: Members of the test.
        upper: Alarm boundary, +inf where it is still to be calibrated.
        lower: Clean boundary.
    """

    alpha: float
    beta: float
    min_accept: int
    members: int
    upper: float
    lower: float


def rules(config: Detection, members: int) -> Rules:
    """The rules of a kind for an ensemble of so many members."""
    kept = min(members, config.n_max or (PAPER_MEMBERS if config.kind == "paper" else members))
    alpha, beta = (PAPER_RATE, PAPER_RATE) if config.kind == "paper" else (config.alpha, config.beta)
    lower, upper = wald_boundaries(alpha, beta)
    if config.kind == "conformal":
        upper = math.inf
    elif config.kind == "ville":
        upper = ville_boundary(alpha)
    return Rules(
        alpha=alpha,
        beta=beta,
        min_accept=1 if config.kind == "paper" else config.min_accept,
        members=kept,
        upper=upper,
        lower=lower,
    )


def evidence_bins(config: Detection) -> int:
    """Evidence bins of a member under this kind."""
    return config.bins if config.kind in {"conformal", "graded"} else 2


def shared_rates(config: Detection, clean: Answers, fooled: Answers) -> tuple[float, float] | None:
    """Disagreement rates (q0, q1) that all members share under this kind; None: each has its own.

    Raises:
        RecipeError: If the members' answers give none.
    """
    if config.kind == "paper":
        return paper_levels(clean.disagreements.mean(axis=0))
    if config.kind not in {"wald", "ville"}:
        return None
    q0, q1 = (float(rates.mean()) for rates in binary_rates(clean, fooled))
    if q0 >= q1:
        raise RecipeError(
            f"members disagree with {q0:.3f} of the clean and {q1:.3f} of the fooled inputs; a test with shared "
            "rates needs them to disagree more with fooled ones; choose other members or kind 'conformal'"
        )
    return q0, q1


def member_tables(config: Detection, clean: Answers, fooled: Answers) -> MemberTables:
    """Edges and increments of the chosen members under this kind.

    Raises:
        RecipeError: If the kind takes shared rates and there are none.
    """
    shared = shared_rates(config, clean, fooled)
    if shared is None:
        return fit_tables(clean, fooled, evidence_bins(config))
    return MemberTables("margin", *binary_tables(*shared, members=clean.members))


def silent_tables(config: Detection, members: int) -> MemberTables:
    """Tables of members that say nothing."""
    bins = evidence_bins(config)
    return MemberTables("surprise", np.zeros((members, bins - 1), dtype=np.float32), np.zeros((members, bins)))


def sequential_test(
    config: Detection, fixed: Rules, answers: MemberTables, jury: Jury, weights: Float64
) -> SequentialTest:
    """The test of a kind; its alarm boundary is +inf where it is still to be calibrated.

    Args:
        config: Settings.
        fixed: As the kind takes them.
        answers: Tables of the members in the order in which they are asked.
        jury: Who answers.
        weights: Vote weights in that order [n].
    """
    n, opening = fixed.members, max(1, len(jury.opening))
    first, decides = max(config.wave, opening), np.arange(1, n + 1) >= opening
    return SequentialTest(
        evidence=answers.evidence,
        edges=answers.edges,
        increments=answers.increments,
        lower=lower_boundaries(fixed.lower, n, max(fixed.min_accept, opening)),
        upper=np.where(decides, fixed.upper, math.inf),
        final_threshold=FINAL_THRESHOLDS[config.final_rule],
        waves=(min(first, n), *(min(config.wave, n - start) for start in range(first, n, config.wave))),
        vote_weights=weights,
        answer=jury.answer,
        jury_share=jury.jury_share,
        amplification=jury.amplification,
        opening=opening,
        await_vote=jury.await_vote,
        correction=jury.corrects(config.correction),
        undecided_abstains=config.final_rule == "abstain",
    )


def kind_name(config: Detection) -> str:
    """What the manifest calls the test."""
    bins = evidence_bins(config)
    return NAMES[config.kind].format(evidence="weighted votes" if bins == 2 else f"graded evidence in {bins} bins")
