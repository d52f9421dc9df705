"""The verdict: what limits the figures first, then the first baseline that the file does not beat."""

import pytest
from tests.train.made_evaluation import (
    MASKED,
    PASSED,
    RIGHT,
    UNJUDGED,
    WEAK,
    against,
    attack,
    made_evaluation,
    worst_case,
)

from s2ap_train.redteam.ablation.names import BARE, CONFIDENCE, JURY, PRUNED, WIDER
from s2ap_train.redteam.report.verdict import verdict
from s2ap_train.redteam.report.words import headline, informed
from s2ap_train.redteam.rows import Comparison
from s2ap_train.statistics.paired import paired_difference

BEATEN = made_evaluation().comparisons


def compared(*changed: Comparison) -> tuple[Comparison, ...]:
    """All baselines are beaten but for these pairs."""
    new = {(one.baseline, one.measure): one for one in changed}
    kept = tuple(one for one in BEATEN if (one.baseline, one.measure) not in new)
    return (*kept, *changed)


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
        ({"comparisons": compared(against(PRUNED, "label right", 110, 90))}, "below"),
        ({"comparisons": compared(against(PRUNED, "label right", 110, 108))}, "not-above"),
        ({"comparisons": compared(against(PRUNED, "label right", 106, 106))}, "not-above"),
        ({"comparisons": compared(against(PRUNED, "label right", 101, 106))}, "not-above"),  # p = 2 / 2^5 = .06
        ({"comparisons": compared(against(PRUNED, "label right", 100, 106))}, "measured"),  # .03
        ({"comparisons": compared(against(PRUNED, "right or flagged", 110, 90))}, "measured"),
        ({"comparisons": compared(against(CONFIDENCE, "label right", 110, 90))}, "measured"),
        ({"bare_worst_case": worst_case(10, {})}, "doubtful"),
    ],
)
def test_the_verdict_is_the_first_thing_that_limits_the_figures(changes, level):
    evaluation = made_evaluation(**changes)
    assert verdict(evaluation).level == level
    if level == "incomplete" and "attacks" in changes:
        assert "NO ATTACKER KNEW" in headline(evaluation)
        assert not informed(evaluation)


def test_no_sentence_promises_immunity_or_calls_a_model_robust():
    for changes in (
        *({"checks": checks} for checks in ((PASSED,), (MASKED,), (WEAK,), ())),
        {"comparisons": compared(against(PRUNED, "label right", 110, 90))},
        {"comparisons": ()},
    ):
        said = verdict(made_evaluation(**changes))
        text = f"{said.title} {said.text}".lower()
        assert "immun" not in text
        assert "is robust" not in text
    assert (
        "raises the cost of transfer and off-the-shelf attacks, with calibrated false alarms"
        in verdict(made_evaluation()).text
    )


def test_a_file_that_loses_to_its_own_first_juror_says_so_first_and_names_the_rest():
    lost = compared(
        against(PRUNED, "label right", 106, 90),  # 16 lost, none gained: p = 2 / 2^16
        against(CONFIDENCE, "right or flagged", 108, 110),  # 2 gained: p = .5
        against(WIDER, "label right", 106, 90),
    )
    said = verdict(made_evaluation(comparisons=lost))
    assert said.level == "below"
    assert said.title == "Below its own robust classifier alone, by label"
    assert said.text.startswith(
        "By label the file is below, beyond noise. From its own robust classifier alone to the file: from 88.3% to "
        "75.0% (-13.3 points, 95 % interval"
    )
    assert "0 gained, 16 lost; exact McNemar p = 3.1e-05" in said.text
    assert "gets at least as much from that." in said.text
    assert (
        "Besides, the file is not above its own robust classifier with the least confident inputs flagged as often by "
        "right-or-flagged (+1.7 points, p = 0.5); below a wider robust classifier of the same compute by label"
    ) in said.text


@pytest.mark.parametrize(
    ("baseline", "measure", "words"),
    [
        (CONFIDENCE, "right or flagged", "with the least confident inputs flagged as often, by right-or-flagged"),
        (WIDER, "label right", "a wider robust classifier of the same compute, by label"),
        (BARE, "label right", "the bare classifier, by label"),
    ],
)
def test_baselines_have_an_order_and_the_first_that_is_not_beaten_is_named(baseline, measure, words):
    said = verdict(made_evaluation(comparisons=compared(against(baseline, measure, 106, 106))))
    assert said.title.startswith("Not above ")
    assert said.title.endswith(words)
    assert "Besides" not in said.text


def test_where_no_difference_is_beyond_noise_it_is_said_how_many_images_would_tell():
    # 10 gained, 5 lost of 120: shares .125 discordant, .0417 gained net; Connor:
    # (1.96 sqrt(.125) + .8416 sqrt(.125 - .0417^2))^2 / .0417^2 = 562
    before = (RIGHT < 100) | (RIGHT >= 115)
    after = RIGHT < 110
    effect = paired_difference(before, after)
    assert (effect.gained, effect.lost) == (10, 5)
    said = verdict(made_evaluation(comparisons=compared(Comparison(PRUNED, "label right", effect))))
    assert said.level == "not-above"
    assert "about 560 images are needed to tell it from noise" in said.text
    worse = Comparison(PRUNED, "label right", paired_difference(after, before))
    assert "No gain was found" in verdict(made_evaluation(comparisons=compared(worse))).text


def test_a_file_that_was_compared_with_nothing_says_so():
    said = verdict(made_evaluation(comparisons=(), ablation=()))
    assert said.title == "Measured, not compared with its own robust classifier"
    assert "It was not compared with its own robust classifier alone, its own robust classifier with" in said.text


def test_what_is_beaten_is_named_with_its_figures():
    said = verdict(made_evaluation())
    assert said.title == "Measured, and above its baselines"
    assert "above its own robust classifier alone by label (+6.7 points, p = 0.0078)" in said.text


def test_a_file_whose_classifier_answers_says_what_that_loses_against_its_jury():
    found = made_evaluation()
    options = type(found.configuration)(**{**vars(found.configuration), "answer": "accurate"})
    loss = against(JURY, "label right", 106, 84)
    said = verdict(made_evaluation(configuration=options, comparisons=compared(loss)))
    assert (
        "The classifier alone answers what is not flagged, so the file is for off-the-shelf attacks only" in said.text
    )
    assert "From the vote of its own jury to the file, by label: from 88.3% to 70.0% (-18.3 points" in said.text
    unmeasured = verdict(made_evaluation(configuration=options))
    assert "against the vote of its own jury was not measured" in unmeasured.text
    assert "vote of its own jury" not in verdict(made_evaluation(comparisons=compared(loss))).text
