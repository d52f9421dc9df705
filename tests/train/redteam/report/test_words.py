from dataclasses import replace

import numpy as np
import pytest
from tests.train.made_evaluation import RIGHT, attack, made_evaluation, worst_case

from s2ap_train.redteam.checks.checks import BLACK_BOX
from s2ap_train.redteam.report.pairs import cost_in_words, needed, standing
from s2ap_train.redteam.report.words import caveats, headline
from s2ap_train.redteam.results import Check
from s2ap_train.redteam.rows import PartCost
from s2ap_train.statistics.paired import paired_difference


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
    ("after", "words"),
    [
        (60, "LOWERS label right beyond noise, from 75.0% to 50.0% (-25.0 points"),
        (118, "raises label right beyond noise, from 75.0% to 98.3% (+23.3 points"),
        (88, "changes label right by no more than noise, from 75.0% to 73.3% (-1.7 points"),
    ],
)
def test_a_part_that_lowers_a_figure_beyond_noise_is_said_to(after, words):
    effect = paired_difference(RIGHT < 90, np.less(RIGHT, after))
    text = cost_in_words(PartCost("purifier", "label right", effect))
    assert text.startswith(f"purifier: {words}")
    low, high = effect.interval
    assert f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}" in text
    assert f"exact McNemar p = {effect.p_value:.2g}" in text


@pytest.mark.parametrize(
    ("before", "after", "words", "more"),
    [
        (90, 118, "above", "No gain"),  # a gain that is told already needs no more images than there are
        (118, 90, "below", "No gain was found that more images could confirm."),
        (90, 92, "not above", "If the gain is as large as it was found, about 470 images are needed"),
        (92, 90, "not above", "No gain was found that more images could confirm."),
        (90, 90, "not above", "No gain was found that more images could confirm."),
    ],
)
def test_a_difference_stands_above_or_below_beyond_noise_only(before, after, words, more):
    effect = paired_difference(np.less(RIGHT, before), np.less(RIGHT, after))
    assert standing(effect) == words
    if words != "above":
        assert needed(effect).startswith(more)
