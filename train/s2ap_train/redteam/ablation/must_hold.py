"""What must hold of a file for its decision to be worth having, line by line, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from s2ap_defend.sequential import Answer
from s2ap_train.calibration.flops import StageFlops
from s2ap_train.redteam.ablation.names import CONFIDENCE, PRUNED
from s2ap_train.redteam.rows import Comparison, Measure, Requirement, effect_of
from s2ap_train.statistics.paired import NOISE, PairedDifference, images_needed, two_digits

__all__ = ["ENOUGH", "GAIN", "MEMBERS", "MEMBER_COST", "must_hold", "must_hold_against_baselines"]

ENOUGH = 1000
"""Images from which a gain that is not beyond noise counts as missing; with fewer it is undecided."""
GAIN = 0.01
"""Clean accuracy that a mix must gain over the robust classifier alone."""
MEMBERS = 4.0
"""Members that may be asked of a clean image, on average."""
MEMBER_COST = 0.25
"""Of the classifier's floating-point operations, what one member may cost."""

_Aim = Literal["above", "not below", "a point above"]


def must_hold(
    answer: Answer, comparisons: Sequence[Comparison], members_used: float, flops: StageFlops
) -> tuple[Requirement, ...]:
    """Every line that applies to a file, whether it holds, and the figures.

    Args:
        answer: Who gives the label of an input that is not flagged.
        comparisons: The file against its baselines.
        members_used: Members asked of a clean image, mean.
        flops: Of the stages of the file.
    """
    costs = flops.members / flops.classifier
    asked = Requirement(
        f"at most {MEMBERS:g} members are asked of a clean image",
        bool(members_used <= MEMBERS),
        {"members_used": members_used},
        f"{members_used:.2f} on average",
    )
    cheap = Requirement(
        f"a member costs at most {MEMBER_COST:.0%} of the classifier's floating-point operations",
        bool((costs <= MEMBER_COST).all()),
        {"largest": float(costs.max()), "members": len(costs), "above": int((costs > MEMBER_COST).sum())},
        f"the largest costs {costs.max():.0%}; {int((costs > MEMBER_COST).sum())} of {len(costs)} cost more",
    )
    return (*must_hold_against_baselines(answer, comparisons), asked, cheap)


def must_hold_against_baselines(answer: Answer, comparisons: Sequence[Comparison]) -> tuple[Requirement, ...]:
    """The lines that compare a file with its baselines.

    'Above' asks for a gain beyond noise (exact McNemar, p < .05). 'Not below' holds where the figure is no smaller and
    fails where it is smaller beyond noise. A gain of a point must be found and be beyond noise.

    Args:
        answer: Who gives the label of an input that is not flagged.
        comparisons: The file against its baselines.
    """
    lines: dict[Answer, tuple[tuple[str, Measure, _Aim], ...]] = {
        "robust": ((PRUNED, "label right", "above"), (PRUNED, "clean accuracy", "not below")),
        "mixed": ((PRUNED, "label right", "not below"), (PRUNED, "clean accuracy", "a point above")),
        "accurate": (),
    }
    flagged: tuple[str, Measure, _Aim] = (CONFIDENCE, "right or flagged", "above")
    wanted = (*lines[answer], flagged)
    return tuple(_compared(effect_of(comparisons, name, what), name, what, aim) for name, what, aim in wanted)


def _compared(effect: PairedDifference | None, baseline: str, measure: Measure, aim: _Aim) -> Requirement:
    line = f"{measure}: {aim.replace('a point', f'{100 * GAIN:g} point or more')} '{baseline}'"
    if effect is None:
        return Requirement(line, None, {}, "that one was not measured")
    found = {
        "baseline": effect.before,
        "file": effect.after,
        "difference": effect.difference,
        "low": effect.interval[0],
        "high": effect.interval[1],
        "p_value": effect.p_value,
        "samples": effect.samples,
    }
    low, high = (100 * end for end in effect.interval)
    said = (
        f"{100 * effect.before:.1f} and {100 * effect.after:.1f} %, {100 * effect.difference:+.1f} points "
        f"({low:+.1f} to {high:+.1f}, p = {effect.p_value:.2g}, {effect.samples} images)"
    )
    holds = _holds(effect, aim)
    needed = images_needed(effect)
    if holds is None and aim != "not below" and needed is not None and needed > effect.samples:
        said += f"; a gain of this size needs about {two_digits(needed)} images to stand out of noise"
    return Requirement(line, holds, found, said)


def _holds(effect: PairedDifference, aim: _Aim) -> bool | None:
    beyond, enough = effect.p_value < NOISE, effect.samples >= ENOUGH
    if aim == "not below":
        return True if effect.difference >= 0.0 else False if beyond else None
    least = GAIN if aim == "a point above" else 0.0
    if effect.difference > 0.0 and effect.difference >= least and beyond:
        return True
    return False if enough or effect.difference <= 0.0 or effect.interval[1] < least else None
