"""Sanity checks: whether the attack can be believed, judged from what it did.

Carlini et al. 2019, 'On Evaluating Adversarial Robustness' (arXiv 1902.06705), section 5, and the symptoms of Athalye
et al. 2018 (arXiv 1802.00420, section 3.1). A defence that fails one is not shown to be broken: its robust accuracy is
shown to be no measure. One that passes all may still be masked: these are symptoms, not a proof.

Attacks are compared on the same images by McNemar's exact one-sided test, so that an attack that is as good fails
about once in a hundred comparisons at the most. What is compared was found independently: an attack that started from
the other's images would pass without having found anything.

Masking. A check marked `masking` fails only where following the gradient is worse than something that knows less, or
where there is no gradient to follow: one step beats many, fewer steps beat more, a small ball beats a large one,
queries, random noise or another network's images beat the gradient, an attacker without bounds does not win, or an
image that is known to be there is not found. Each contradicts what an exact gradient could do. Two checks are not so
marked: an attack that has not converged needs more steps, and a figure that is implausible at half the radius needs a
better attack, but neither says that the gradient is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from s2ap_defend.types import Bool
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.measures.sanity import ZERO_GRADIENT_IMAGES
from s2ap_train.redteam.attacks.attack import Knowledge, RedTeamAttack
from s2ap_train.redteam.checks.binarisation import binarisation_check, binarisation_probe
from s2ap_train.redteam.checks.curves import curve_probes
from s2ap_train.redteam.probes import Kind, Probe, Probed, gradients
from s2ap_train.redteam.results import Check
from s2ap_train.statistics.paired import SIGNIFICANCE, fewest_discordant, not_weaker

__all__ = ["BLACK_BOX", "LEFT_UNBOUNDED", "Successes", "probes_of", "sanity_checks"]

BLACK_BOX = "black box"
"""Name of the check of attackers that only ask against those that know everything."""
LEFT_UNBOUNDED = 0.05
"""Share of images that one descent without bounds may leave; significantly more is a failure (exact binomial test)."""

_DIFFERENTIATED = 32
_NAMED = 3


@dataclass(frozen=True)
class Successes:
    """What the attacks of the catalogue broke, on the same N images.

    Attributes:
        attacks: Those that ran on all of them, by name.
        broken: By name, images with which the attacker won: answered, not flagged and wrong [N].
        clean: The same without attack [N].
    """

    attacks: Mapping[str, RedTeamAttack]
    broken: Mapping[str, Bool]
    clean: Bool

    def independent(self, *knows: Knowledge) -> tuple[Bool, tuple[str, ...]]:
        """(kept by all of them [N], their names): independent l_inf attacks that mislead and know that.

        Independent attacks start from no other's images. What is lost without attack is lost under each of them.
        """
        names = tuple(
            name
            for name, attack in self.attacks.items()
            if attack.knows in knows and attack.norm == "linf" and attack.goal == "mislead" and not attack.after
        )
        return ~np.any([self.clean, *(self.broken[name] for name in names)], axis=0), names


def probes_of(eps: float, budget: AdaptiveBudget, *, quick: bool = False) -> tuple[Probe, ...]:
    """All further runs that curves and checks need; the first 60 images or so are enough.

    Raises:
        RecipeError: Unless 0 < eps <= 1.
    """
    measured = (Probe("gradients", _DIFFERENTIATED, gradients, weight=1.0), binarisation_probe(quick=quick))
    return (*curve_probes(eps, budget, quick=quick), *measured)


def sanity_checks(successes: Successes, probed: Sequence[Probed], *, plausibility: Check) -> tuple[Check, ...]:
    """Every check, judged from what ran; what did not is 'could not be judged'.

    Args:
        successes: Of the attacks of the catalogue.
        probed: What the probes found, all of them on the same images.
        plausibility: As `plausibility_check` judges it.
    """
    notes = next((one.notes for one in probed if one.probe.kind == "binarisation"), None)
    steps, radii = _along("steps", probed), _along("eps", probed)
    return (
        _gradients_exist(probed),
        _iterative(steps),
        _more_steps(steps),
        _converged(steps),
        _larger_eps(radii),
        _unbounded(probed),
        _unbounded_by_gradients(radii),
        _against_the_white_box(
            successes,
            "noise",
            ("nothing",),
            "points drawn at random are worse for the defence than those that its gradients lead to",
        ),
        _against_the_white_box(
            successes,
            BLACK_BOX,
            ("answers",),
            "an attacker that only asks finds more than one that knows every weight: the gradients mislead it",
        ),
        _against_the_white_box(
            successes,
            "adaptive",
            ("classifier", "other networks"),
            "images made on other networks beat those made on the defence itself: its gradients mislead, or the "
            "adaptive attacks are badly made",
        ),
        binarisation_check(notes),
        plausibility,
    )


def _along(kind: Kind, probed: Sequence[Probed]) -> dict[float, Bool]:
    """Images kept [N] by the probes of a curve, ascending."""
    return {one.probe.at: ~one.broken for one in sorted(probed, key=lambda one: one.probe.at) if one.probe.kind == kind}


def _not_run(name: str, needed: str, *, masking: bool = True) -> Check:
    return Check(name, None, {}, f"could not be judged: {needed}", masking=masking)


def _gradients_exist(probed: Sequence[Probed]) -> Check:
    name = "gradients exist"
    notes = next((one.notes for one in probed if one.probe.kind == "gradients"), None)
    if notes is None or not notes["images"]:
        return _not_run(name, "gradients were not looked at")
    shares = [int(count) / int(notes["images"]) for count in (notes["without"], *notes["members_without"])]
    passed = max(shares) <= ZERO_GRADIENT_IMAGES
    found = {"classifier_without_gradient": shares[0]}
    if len(shares) > 1:
        found |= {
            "worst_member_without_gradient": max(shares[1:]),
            "members_without_gradient": sum(share > ZERO_GRADIENT_IMAGES for share in shares[1:]),
        }
    who = "members have" if notes.get("lent") else "classifier and members have"
    lent = "; the classifier is attacked by theirs, as it has none of its own here" if notes.get("lent") else ""
    return Check(
        name,
        passed,
        found,
        f"{who} gradients with respect to nearly every image{lent}"
        if passed
        else "images have a gradient of exactly 0 through the purifier, and no gradient attack can move them: "
        "rounding, a step that is cut off from the gradient, or saturation",
        masking=True,
    )


def _compared(name: str, kept: Mapping[str, Bool], failure: str, *, significance: float = SIGNIFICANCE) -> Check:
    """Whether the second attack breaks no fewer images than the first."""
    weak, strong = kept
    passed, found = not_weaker(kept, significance=significance)
    success = f"'{strong}' breaks no fewer images than '{weak}', as it must"
    meaning = _passing(kept, found, success, significance) if passed else failure
    return Check(name, passed, found, meaning, masking=True)


def _passing(
    kept: Mapping[str, Bool], found: Mapping[str, float], success: str, significance: float = SIGNIFICANCE
) -> str:
    """What passing says: `success`, or that the test could not fail, or that the first attack is ahead by chance."""
    (weak, rows), (strong, _) = kept.items()
    first, second = int(found["broken_by_the_first_only"]), int(found["broken_by_the_second_only"])
    counts = f"of {len(rows)} images '{weak}' alone broke {first}, '{strong}' alone {second}"
    needed = fewest_discordant(significance)
    if first + second < needed:
        ahead = f"; '{weak}' is ahead" if first > second else ""
        return f"without power: {counts}{ahead}; fewer than {needed} together cannot show a difference"
    return f"'{weak}' is ahead, which may be chance: {counts}" if first > second else success


def _iterative(steps: Mapping[float, Bool]) -> Check:
    name = "iterative"
    many = max(steps, default=1.0)
    if 1.0 not in steps or many == 1.0:
        return _not_run(name, "it needs a run of one step and one of many")
    return _compared(
        name,
        {"one step": steps[1.0], f"{many:g} steps": steps[many]},
        "one step beats many through the whole defence: the gradient points somewhere else after a step",
    )


def _more_steps(steps: Mapping[float, Bool]) -> Check:
    name, many = "more steps", max(steps, default=1.0)
    fewer = max((count for count in steps if 1.0 < count <= many / 2), default=None)
    if fewer is None:
        return _not_run(name, "it needs two runs of several steps")
    return _compared(
        name,
        {f"{fewer:g} steps": steps[fewer], f"{many:g} steps": steps[many]},
        "fewer steps break more: the attack's gradients lead nowhere",
    )


def _converged(steps: Mapping[float, Bool]) -> Check:
    """Whether the last doubling of the steps breaks no more, beyond chance."""
    name, many = "converged", max(steps, default=1.0)
    half = max((count for count in steps if 1.0 < count <= many / 2), default=None)
    if half is None or half < many / 2 or many < 50:
        return _not_run(name, "it needs 50 steps or more, and half as many", masking=False)
    kept = {f"{many:g} steps": steps[many], f"{half:g} steps": steps[half]}
    passed, found = not_weaker(kept)
    return Check(
        name,
        passed,
        found,
        _passing(kept, found, f"{many:g} steps break no more images than {half:g}")
        if passed
        else f"{many:g} steps still break more images than {half:g}: figures of fewer steps are too good, raise them",
    )


def _larger_eps(radii: Mapping[float, Bool]) -> Check:
    """The worst of all neighbouring radii; the significance is shared between them (Bonferroni)."""
    name = "larger eps"
    if len(radii) < 2:
        return _not_run(name, "it needs runs at two radii")
    pairs = [{f"eps {a:g}": radii[a], f"eps {b:g}": radii[b]} for a, b in pairwise(radii)]
    checks = [
        _compared(
            name,
            pair,
            "a ball that holds another breaks fewer images than that one: the attack gets lost in it",
            significance=SIGNIFICANCE / len(pairs),
        )
        for pair in pairs
    ]
    return min(checks, key=lambda check: check.found["p_value"])


def _unbounded(probed: Sequence[Probed]) -> Check:
    """An attacker that may hand in any image wins: it hands in one of another class."""
    name = "unbounded"
    free = [one for one in probed if one.probe.at == 1.0 and one.probe.kind in {"eps", "other classes"}]
    if {one.probe.kind for one in free} != {"eps", "other classes"}:
        return _not_run(name, "it needs runs that may change everything")
    left = ~np.any([one.broken for one in free], axis=0)
    passed = not left.any()
    return Check(
        name,
        passed,
        {"robust_accuracy": float(left.mean()), "images_left": int(left.sum())},
        "an attacker that may draw any image always wins"
        if passed
        else "even an attacker that hands in clean images of other classes fails: the defence flags or refuses what it "
        "should answer, or the attack is broken; either way its robust accuracy is no measure",
        masking=True,
    )


def _unbounded_by_gradients(radii: Mapping[float, Bool]) -> Check:
    """With eps 1 a random image is wrong as often as guessing is; a descent has to do better than that."""
    from scipy import stats  # type: ignore[import-untyped]

    name = "unbounded, by gradients"
    if 1.0 not in radii:
        return _not_run(name, "it needs a descent that may change everything")
    left, count = int(radii[1.0].sum()), len(radii[1.0])
    p_value = float(stats.binomtest(left, count, LEFT_UNBOUNDED, alternative="greater").pvalue)
    passed = p_value >= SIGNIFICANCE
    return Check(
        name,
        passed,
        {"robust_accuracy": left / count, "images_left": left, "p_value": p_value},
        "a descent that may change everything wins"
        if passed
        else "a descent that may change everything does not reach images that are wrong and accepted: the gradient is "
        "lost on the way",
        masking=True,
    )


def _against_the_white_box(successes: Successes, name: str, knows: tuple[Knowledge, ...], failure: str) -> Check:
    """All attacks of some knowledge together against all that know everything."""
    weak, weaker = successes.independent(*knows)
    strong, stronger = successes.independent("everything")
    if not weaker or not stronger:
        return _not_run(name, f"it needs an attack that knows {' or '.join(knows)}, and one that knows everything")
    title = ", ".join(weaker) if len(weaker) <= _NAMED else f"{len(weaker)} attacks"
    return _compared(name, {title: weak, f"{len(stronger)} that know everything": strong}, failure)
