"""Settings of the sequential test that is calibrated."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import Truncation

Kind = Literal["conformal", "graded", "weighted", "wald", "ville", "paper"]
CalibrateOn = Literal["correct", "all"]


@dataclass(frozen=True)
class Detection:
    """Settings of the sequential test.

    The kinds, each compiled to the same tables:

        conformal   graded evidence, conformal alarm boundary, Wald's clean boundary: alpha holds for any correlation
        graded      the same evidence between Wald's boundaries
        weighted    members agree or disagree, each with its own rates, between Wald's boundaries
        wald        members agree or disagree with shared rates, between Wald's boundaries
        ville       as wald, with the alarm boundary ln(1 / alpha)
        paper       the baseline of Wang et al. 2021: its levels, alpha = beta = .05, up to 100 members in the order
                    in which they were trained, sign truncation; it reads of these
                    settings only `n_max`, `correction`, `calibrate_on` and `wave`

    Only 'conformal' promises its false-alarm rate: the votes of members trained on one data set are not independent,
    and for the other kinds alpha and beta are design values.

    Attributes:
        kind: Which test.
        alpha: False-alarm rate on the clean inputs of `calibrate_on`.
        beta: Miss rate of Wald's clean boundary, a design value.
        bins: Evidence bins of a member under 'graded' and 'conformal'; 2 are the votes 'agree' and 'disagree'.
        min_accept: Members that must be asked before 'clean' may be decided; 'adversarial' may be decided earlier. An
            attacker that knows the order fools the first members: 4 is the default, 6 a strict choice.
        n_max: Members of the test at most, the first of the order; None keeps all.
        truncation: What becomes of inputs undecided after all members; None is 'clean' for 'conformal', which cannot
            keep alpha under 'sign' or 'adversarial', and 'sign' for the others. 'abstain' needs evidence 'all' where
            evidence could be 'gaining': after the members that count nothing could decide any more.
        calibrate_on: Whether alpha counts clean inputs that the classifier gets right, or all of them. Under 'correct'
            the rate over all inputs is higher: the test also detects the classifier's own mistakes.
        correction: 'correct' gives a flagged input the label that the whole jury gives it, 'reject' gives it none.
        order: 'greedy' asks first who adds most, 'as trained' keeps the order of the recipe.
        evidence: Whose answers count under 'conformal' with greedy order. 'gaining': members are added as long as one
            raises the area under the ROC curve, `min_accept` of them at least; the rest only vote. Members that are
            fooled together with the classifier would otherwise outweigh the few that are not. 'all' counts everyone.
        cost: What 'greedy' divides the gain by: 'members' counts every member as one, 'flops' and 'milliseconds'
            take what a member costs.
        wave: Members evaluated together.

    Raises:
        RecipeError: If a value cannot work.
    """

    kind: Kind = "conformal"
    alpha: float = 0.05
    beta: float = 0.05
    bins: int = 6
    min_accept: int = 4
    n_max: int | None = None
    truncation: Truncation | None = None
    calibrate_on: CalibrateOn = "correct"
    correction: Literal["correct", "reject"] = "correct"
    order: Literal["greedy", "as trained"] = "greedy"
    evidence: Literal["gaining", "all"] = "gaining"
    cost: Literal["members", "flops", "milliseconds"] = "members"
    wave: int = 4

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("calibrate_on", CalibrateOn)):
            if getattr(self, name) not in get_args(known):
                raise RecipeError(
                    f"detection.{name} {getattr(self, name)!r} is not known; choose from {', '.join(get_args(known))}"
                )
        check_rates(self.alpha, self.beta)
        lowest = {"bins": 2, "min_accept": 1, "wave": 1, "n_max": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise RecipeError(f"detection.{name} is {value}, expected {low} or more")
        if self.kind == "conformal" and self.truncation not in {None, "clean", "abstain"}:
            raise RecipeError(
                f"detection.truncation {self.truncation!r} flags inputs that no boundary flagged, so a conformal alpha "
                "would not hold; use 'clean' or 'abstain'"
            )
        if self.truncation == "abstain" and self.chooses_witnesses:
            raise RecipeError(
                "detection.truncation 'abstain' with evidence 'gaining': after the few members that count nothing "
                'more could decide, and most clean inputs would get no answer; set detection.evidence = "all"'
            )

    @property
    def chooses_witnesses(self) -> bool:
        """Whether only the answers of members that raise the area under the ROC curve count."""
        return self.kind == "conformal" and self.order == "greedy" and self.evidence == "gaining"

    @property
    def final_rule(self) -> Truncation:
        """The truncation, the kind's own where none is set."""
        if self.kind == "paper":
            return "sign"
        return self.truncation or ("clean" if self.kind == "conformal" else "sign")


def check_alpha(alpha: float) -> None:
    """Check a false-alarm rate.

    Raises:
        RecipeError: Unless it lies between 0 and 1.
    """
    if not (math.isfinite(alpha) and 0.0 < alpha < 1.0):
        raise RecipeError(f"alpha {alpha:g} is no false-alarm rate; give a number above 0 and below 1, such as 0.02")


def check_rates(alpha: float, beta: float) -> None:
    """Check the error rates of a test.

    Raises:
        RecipeError: Unless both are above 0 and sum to less than 1.
    """
    check_alpha(alpha)
    if not (math.isfinite(beta) and 0.0 < beta < 1.0 - alpha):
        raise RecipeError(
            f"beta {beta:g} is no miss rate with alpha {alpha:g}; give a number above 0 and below {1 - alpha:g}"
        )
