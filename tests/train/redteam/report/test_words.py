from dataclasses import replace

import numpy as np
import pytest
from tests.train.made_evaluation import MASKED, PASSED, SAMPLES, UNJUDGED, WEAK, attack, made_evaluation, worst_case

from s2ap_train.redteam.ablation.costs import LABELS, PAIRS, ROBUST
from s2ap_train.redteam.checks.checks import BLACK_BOX
from s2ap_train.redteam.report.words import (
    caveats,
    cost_in_words,
    headline,
    informed,
    robust_against_pruned,
    verdict,
)
from s2ap_train.redteam.results import Check, PartCost
from s2ap_train.statistics.paired import paired_difference

RIGHT = np.arange(SAMPLES)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "measured"),
        ({"checks": (PASSED, MASKED, WEAK)}, "masked"),
        ({"checks": (PASSED, WEAK)}, "doubtful"),
        ({"checks": (UNJUDGED,)}, "incomplete"),
        ({"checks": ()}, "incomplete"),
        ({"attacks": (attack("pgd", 4, knows="classifier"),)}, "incomplete"),
        ({"attacks": (attack("agreement", 4, samples=60),)}, "incomplete"),
        ({"attacks": (attack("correction", 4, goal="wrong label"), attack("l2-pgd", 1, norm="l2"))}, "incomplete"),
        ({"against_pruned": paired_difference(RIGHT < 110, RIGHT < 90)}, "worse"),
        ({"against_pruned": paired_difference(RIGHT < 110, RIGHT < 108)}, "measured"),
        ({"bare_worst_case": worst_case(10, {})}, "doubtful"),
    ],
)
def test_the_verdict_is_the_first_thing_that_limits_the_figures(changes, level):
    evaluation = made_evaluation(**changes)
    assert verdict(evaluation).level == level
    if level == "incomplete" and "attacks" in changes:
        assert "robust accuracy" not in headline(evaluation)
        assert not informed(evaluation)


def test_no_sentence_promises_immunity_or_calls_a_model_robust():
    for checks in ((PASSED,), (MASKED,), (WEAK,), ()):
        evaluation = made_evaluation(checks=checks)
        text = f"{verdict(evaluation).title} {verdict(evaluation).text}".lower()
        assert "immun" not in text
        assert "is robust" not in text
    assert (
        "raises the cost of transfer and off-the-shelf attacks, with calibrated false alarms"
        in verdict(made_evaluation()).text
    )


def test_few_images_and_one_restart_are_said():
    found = made_evaluation()
    (one,) = caveats(found)
    assert one == "120 images and one restart of the adaptive attacks: more restarts or steps may lower the worst case."
    enough = replace(found.configuration, samples=300, budget={"restarts": 3})
    rows = tuple(replace(row, samples=300) for row in found.attacks)
    assert caveats(replace(found, configuration=enough, attacks=rows)) == ()


def test_an_attack_that_needs_answers_only_and_alone_breaks_images_is_a_warning():
    alone = worst_case(10, {"square": 2, "apgd-ce": 5})
    first = caveats(made_evaluation(worst_case=alone))[0]
    assert first.startswith("square alone broke 2 images that no gradient attack did")


@pytest.mark.parametrize(("count", "start"), [(3, "3 images"), (0, "square alone broke 2 images")])
def test_images_that_only_attackers_who_ask_broke_count_as_a_group(count, start):
    """Two such attacks that broke the same images hide each other in what each alone broke."""
    check = Check(BLACK_BOX, passed=True, found={"broken_by_the_first_only": count}, meaning="", masking=True)
    first = caveats(made_evaluation(checks=(check,), worst_case=worst_case(10, {"square": 2 if not count else 0})))[0]
    assert first.startswith(start)
    assert "larger budget" in first


def test_where_no_adaptive_attack_ran_none_is_spoken_of():
    evaluation = made_evaluation(
        attacks=(attack("fgsm", 4, knows="classifier"), attack("square", 6, knows="answers")),
        worst_case=worst_case(10, {"square": 2}),
        checks=(),
    )
    text = " ".join((headline(evaluation), *caveats(evaluation)))
    assert "2 images that no gradient attack did." in text
    assert "120 images: an attacker that knows the defence may lower the worst case." in text
    assert "adaptive" not in text
    assert "restart" not in text


def test_every_l_inf_row_is_counted_as_one_of_the_worst_case():
    control = made_evaluation(attacks=(attack("noise", 2, knows="nothing"), attack("blur", 7, norm=None)))
    assert "worst case of 1 attack," in headline(control)


@pytest.mark.parametrize(
    ("after", "measure", "served", "level"),
    [
        (100, LABELS, 100, "worse"),  # 6 images lost: p = 2 / 2^6 = .03
        (101, LABELS, 101, "measured"),  # 5 images: .06
        (112, LABELS, 112, "measured"),
        (100, ROBUST, 100, "measured"),
        (100, LABELS, 60, "measured"),  # the file is the row that rejects
    ],
)
def test_labels_below_the_pruned_classifier_are_said_where_the_file_corrects(after, measure, served, level):
    part = next(part for part, _, before, _ in PAIRS if before == "S2AP-pruned")
    effect = paired_difference(RIGHT < 106, np.less(RIGHT, after))
    worst = replace(worst_case(10, {}), label_accuracy=served / SAMPLES)
    said = verdict(made_evaluation(costs=(PartCost(part, measure, effect),), worst_case=worst))
    assert said.level == level
    if level == "worse":
        assert "Label accuracy of the full defence, which corrects what it flags, is BELOW, beyond noise" in said.text
        assert "Robust accuracy of the full defence is above, within noise" in said.text


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (60, "LOWERS robust accuracy beyond noise, from 75.0% to 50.0% (-25.0 points"),
        (118, "raises robust accuracy beyond noise, from 75.0% to 98.3% (+23.3 points"),
        (88, "changes robust accuracy by no more than noise, from 75.0% to 73.3% (-1.7 points"),
    ],
)
def test_a_part_that_lowers_a_figure_beyond_noise_is_said_to(after, words):
    effect = paired_difference(RIGHT < 90, np.less(RIGHT, after))
    text = cost_in_words(PartCost("purifier", "robust accuracy", effect))
    assert text.startswith(f"purifier: {words}")
    low, high = effect.interval
    assert f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}" in text
    assert f"exact McNemar p = {effect.p_value:.2g}" in text


def test_the_full_defence_stands_beside_its_own_pruned_classifier():
    for after, words in ((90, "BELOW, beyond noise,"), (108, "BELOW, within noise,"), (110, "level with")):
        effect = paired_difference(RIGHT < 110, np.less(RIGHT, after))
        assert f"is {words} that of" in robust_against_pruned(made_evaluation(against_pruned=effect))
    assert robust_against_pruned(made_evaluation(against_pruned=None)) == ""
    text = robust_against_pruned(made_evaluation())
    assert text.endswith("An image that is flagged, or not answered, counts as held.")
    assert "is above, within noise, that of" in text
    # 6 gained, 2 lost of 120: exact McNemar 2 * (1 + 8 + 28) / 256 = .289
    assert "from 88.3% to 91.7% (+3.3 points" in text
    assert "of 120 images 6 gained, 2 lost; exact McNemar p = 0.29" in text
