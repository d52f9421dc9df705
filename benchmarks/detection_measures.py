"""What the detection benchmark measures, as JSON values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from detection_groups import CalibratedGroup, Judged, redrawn_false_alarms
from detection_runs import MIX, Benchmark
from detection_sets import AttackedSet

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float64
from s2ap_train.attacks.budget import effect
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.hardening.network import Network
from s2ap_train.statistics.detection import Z_95, Share, detection_differences, threshold_at

KINDS = ("wald", "ville", "weighted", "graded", "conformal")
CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "the jurors vote": {},
    "all members vote": {"all_vote": True},
    "reject": {"correction": "reject"},
}
LARGER_ALPHAS = (0.1, 0.2, 0.5)
FALSE_ALARM_RATE = 0.05
"""At which the mix is compared with its families."""


def measure(bench: Benchmark) -> tuple[dict[str, Any], dict[str, dict[str, Judged]]]:
    """All figures as JSON values, and what our test of every group made of every set."""
    document: dict[str, Any] = {
        "bare_accuracy": Share.of(bench.ask((bench.base,), bench.data).right).to_json(),
        "attacks": {name: reached(bench, name, made) for name, made in bench.attacks.items()},
        "groups": {},
        "paper": {},
        "kinds": {},
        "corrections": {},
        "refused": {},
    }
    judged: dict[str, dict[str, Judged]] = {}
    by_paper: dict[str, dict[str, Judged]] = {}
    with bench.reporter.step("groups", len(bench.groups)) as step:
        for group, members in bench.groups.items():
            with refusals(document, group):
                test = possible(bench, group, members)
                found, judged[group] = bench.figures(group, members, test)
                document["groups"][group] = described(bench, members) | {"alpha": test.config.alpha} | found
            if group in bench.preset.paper_families:
                with refusals(document, f"the paper's test with {group}"):
                    document["paper"][group], by_paper[group] = paper_figures(bench, group)
            step.advance(group)
    document["mix_against_families"] = compared(bench, judged)
    document["mix_against_paper"] = {group: matched(judged[MIX], found) for group, found in by_paper.items()}
    mix = bench.groups[MIX]
    for part, variants in (("kinds", {kind: {"kind": kind} for kind in KINDS}), ("corrections", CORRECTIONS)):
        for name, settings in variants.items():
            with refusals(document, name):
                document[part][name] = bench.figures(MIX, mix, bench.calibrated(MIX, mix, **settings))[0]
    held_out = bench.ask(mix, bench.splits.calibration)
    calibrating = bench.calibrated(MIX, mix).judge(held_out, held_out.right)
    document["redraws"] = redrawn_false_alarms(
        calibrating.statistic[calibrating.chosen], negatives(judged[MIX]), seed=bench.recipe.seed
    )
    return document, judged


@contextmanager
def refusals(document: dict[str, Any], name: str) -> Iterator[None]:
    """Put down why a test cannot be calibrated, and go on; the mix itself must be."""
    try:
        yield
    except RecipeError as error:
        if name == MIX:
            raise
        document["refused"][name] = str(error)


def possible(bench: Benchmark, group: str, members: tuple[Network, ...]) -> CalibratedGroup:
    """Our test of a group; a family too weak for the recipe's alpha gets the least of larger ones that it can keep.

    The alarm statistic, and with it the ROC curve and detection at a stated rate, do not depend on alpha.
    """
    wanted = bench.recipe.detection.alpha
    for alpha in (wanted, *(larger for larger in LARGER_ALPHAS if larger > wanted)):
        try:
            return bench.calibrated(group, members, alpha=alpha)
        except RecipeError as error:
            if group == MIX:
                raise
            refused = error
    raise refused


def reached(bench: Benchmark, name: str, made: AttackedSet) -> dict[str, Any]:
    """What a named attack did to the bare base, at the benchmark's budget and, where it is another, at its paper's."""
    clean, base = bench.data, bench.base.model
    found = asdict(effect(base, clean.images, clean.labels, made.images)) | {"seconds": made.seconds}
    if ATTACKS[name].norm == "linf":
        at_paper = bench.sets.named(name, base, **bench.preset.cut.get(name, {}))
        found["success_at_paper_budget"] = effect(base, clean.images, clean.labels, at_paper.images).success
        found["eps"] = bench.preset.eps
    return found | {"cut": bench.preset.cut.get(name, {}), "source": ATTACKS[name].source}


def described(bench: Benchmark, members: tuple[Network, ...]) -> dict[str, Any]:
    """What the members are, their accuracy on the test images that are attacked."""
    said = bench.ask(members, bench.data)
    accuracy = (said.said.members.argmax(axis=2) == said.label).mean(axis=1)
    return {
        "members": len(members),
        "adversarially_trained": sum(member.adversarially_trained for member in members),
        "clean_accuracy": float(accuracy.mean()),
        "robust_accuracy_validation": float(np.mean([member.robust_accuracy for member in members])),
        "sparsity": float(np.mean([member.sparsity for member in members])),
        "flops_of_base": float(np.mean([member.flops / bench.base.flops for member in members])),
    }


def paper_figures(bench: Benchmark, group: str) -> tuple[dict[str, Any], dict[str, Judged]]:
    """The paper's test with as many members of a family as there are, in the order of their training."""
    members = bench.families[group]
    figures, judged = bench.figures(group, members, bench.calibrated(group, members, kind="paper"))
    return {"members": len(members)} | figures, judged


def compared(bench: Benchmark, judged: Mapping[str, Mapping[str, Judged]]) -> dict[str, Any]:
    """Detection of the mix minus that of each family at one false-alarm rate, with the bootstrap's 95 % interval."""
    found: dict[str, Any] = {}
    for group, of_family in judged.items():
        if group == MIX:
            continue
        found[group] = {}
        for name, theirs in of_family.items():
            ours = judged[MIX][name]
            if name == "clean" or not theirs.chosen.any() or not ours.chosen.any():
                continue
            difference, low, high = detection_differences(
                (negatives(judged[MIX]), ours.statistic[ours.chosen]),
                (negatives(of_family), theirs.statistic[theirs.chosen]),
                FALSE_ALARM_RATE,
                paired=not name.startswith("joint"),
                seed=bench.recipe.seed,
            )
            found[group][name] = {"difference": difference, "low": low, "high": high}
    return found


def negatives(judged: Mapping[str, Judged]) -> Float64:
    """Statistics of the clean images that the base gets right."""
    return judged["clean"].statistic[judged["clean"].chosen]


def matched(mix: Mapping[str, Judged], paper: Mapping[str, Judged]) -> dict[str, Any]:
    """Detection by the mix at the very false-alarm rate that the paper's test has on the same clean images.

    The difference is paired by image, its interval normal, 95 %; the threshold's uncertainty is not in it.
    """
    rate = float(paper["clean"].flagged[paper["clean"].chosen].mean())
    found: dict[str, Any] = {"false_alarm_rate": rate}
    for name, theirs in paper.items():
        if name == "clean" or name.startswith("joint") or not theirs.chosen.any():
            continue
        ours = mix[name].statistic[theirs.chosen] > threshold_at(negatives(mix), min(rate, 1 - 1e-9))
        gained = ours.astype(np.float64) - theirs.flagged[theirs.chosen]
        spread = Z_95 * float(gained.std(ddof=1)) / len(gained) ** 0.5 if len(gained) > 1 else 1.0
        found[name] = {
            "mix": Share.of(ours).to_json(),
            "paper": Share.of(theirs.flagged[theirs.chosen]).to_json(),
            "difference": float(gained.mean()),
            "low": float(gained.mean()) - spread,
            "high": float(gained.mean()) + spread,
        }
    return found
