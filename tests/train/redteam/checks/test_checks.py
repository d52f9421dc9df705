"""The judgement alone, on made-up outcomes; what real defences are called is in test_redteam_masked."""

from dataclasses import replace

import numpy as np
import pytest
from tests.train.planted_defences import ATTACKS

from s2ap_train.redteam.checks.checks import Successes, sanity_checks
from s2ap_train.redteam.checks.plausibility import plausibility_check
from s2ap_train.redteam.probes import Probe, Probed, at_radius, gradients
from s2ap_train.redteam.results import Check
from s2ap_train.statistics.paired import fewest_discordant, not_weaker

COUNT = 40


def first(broken):
    """The first so many images are broken."""
    return np.arange(COUNT) < broken


def last(broken):
    return np.arange(COUNT) >= COUNT - broken


def probe(kind, at, broken, **notes):
    return Probed(Probe(kind, at, at_radius), broken, ~broken, notes)


def judge(*probed, attacks=None, clean=0, **broken):
    successes = Successes(attacks or {name: ATTACKS[name] for name in broken}, broken, first(clean))
    plausibility = plausibility_check(~first(clean), data="made up", eps=0.1)
    return {check.name: check for check in sanity_checks(successes, probed, plausibility=plausibility)}


def test_nothing_is_judged_of_what_did_not_run_and_nothing_is_called_masked():
    checks = judge()
    assert {check.passed for check in checks.values()} == {None}
    assert all(check.meaning.startswith("could not be judged") for check in checks.values())
    assert [check.name for check in checks.values() if not check.masking] == ["converged", "plausibility at half eps"]


@pytest.mark.parametrize(("weaker", "name"), [("noise", "noise"), ("square", "black box"), ("pgd", "adaptive")])
def test_whoever_knows_less_must_not_win(weaker, name):
    """7 discordant images all on one side: p = 2^-7 < .01; 6: p = 2^-6 > .01."""
    assert judge(**{weaker: first(17), "agreement": first(10)})[name].passed is False
    assert judge(**{weaker: first(16), "agreement": first(10)})[name].passed is True
    failed = judge(**{weaker: first(17), "agreement": first(10)})[name]
    assert failed.masking
    assert failed.found["p_value"] == pytest.approx(2**-7)
    assert failed.found["broken_by_the_first_only"] == 7


def test_attacks_are_compared_image_by_image_not_by_their_shares():
    """Both break 20 images, not the same: neither is shown to be weaker."""
    check = judge(square=first(20), agreement=last(20))["black box"]
    assert check.passed
    assert (check.found["broken_by_the_first_only"], check.found["broken_by_the_second_only"]) == (20, 20)


@pytest.mark.parametrize(
    ("weak", "strong", "words"),
    [
        (0, 0, "without power: of 40 images 'square' alone broke 0, '1 that know everything' alone 0; fewer"),
        (16, 10, "alone broke 6, '1 that know everything' alone 0; 'square' is ahead; fewer than 7 together"),
        (10, 16, "without power"),
        (10, 17, "'1 that know everything' breaks no fewer images than 'square', as it must"),
        (17, 10, "an attacker that only asks finds more than one that knows every weight"),
    ],
)
def test_a_comparison_that_could_not_fail_says_so(weak, strong, words):
    assert words in judge(square=first(weak), agreement=first(strong))["black box"].meaning


def test_a_difference_that_may_be_chance_is_said():
    """7 against 2 of 9 discordant images: p = (1 + 9 + 36) / 512 = .09."""
    check = judge(square=first(7), agreement=last(2))["black box"]
    assert check.passed
    assert check.found["p_value"] == pytest.approx(46 / 512)
    assert check.meaning.startswith("'square' is ahead, which may be chance: of 40 images")


@pytest.mark.parametrize("significance", [0.01, 0.5, 0.01 / 3, 2**-7])
def test_the_fewest_discordant_images_are_the_fewest_that_can_fail(significance):
    needed = fewest_discordant(significance)
    none = first(0)
    for broken, passed in ((needed, False), (needed - 1, True)):
        found, _ = not_weaker({"a": ~first(broken), "b": ~none}, significance=significance)
        assert found is passed


def test_all_that_know_everything_count_together():
    attacks = {"square": ATTACKS["square"], "a": ATTACKS["agreement"], "b": ATTACKS["agreement"]}
    check = judge(attacks=attacks, square=first(20), a=first(10), b=last(30))["black box"]
    assert check.passed
    assert check.found["accuracy_after_2 that know everything"] == 0.0


def test_an_attack_that_starts_from_others_proves_nothing_and_is_left_out():
    seeded = replace(ATTACKS["agreement"], name="seeded", after=("square",))
    attacks = {"square": ATTACKS["square"], "agreement": ATTACKS["agreement"], "seeded": seeded}
    check = judge(attacks=attacks, square=first(20), agreement=first(5), seeded=first(40))["black box"]
    assert check.passed is False


@pytest.mark.parametrize("change", [{"norm": "l2"}, {"goal": "false alarm"}])
def test_other_balls_and_other_goals_are_not_compared(change):
    other = replace(ATTACKS["square"], **change)
    assert (
        judge(attacks={"square": other, "agreement": ATTACKS["agreement"]}, square=first(20), agreement=first(5))[
            "black box"
        ].passed
        is None
    )


def test_images_that_are_lost_without_attack_are_lost_to_every_attack():
    """Square's ten are wrong anyway; the descent, which broke ten others, did not have to find them."""
    check = judge(square=first(10), agreement=last(10), clean=10)["black box"]
    assert check.found["broken_by_the_first_only"] == 0
    assert check.found["accuracy_after_square"] == 0.75


def test_one_step_must_not_beat_many():
    better, worse = first(20), first(10)
    assert judge(probe("steps", 1, better), probe("steps", 20, worse))["iterative"].passed is False
    assert judge(probe("steps", 1, worse), probe("steps", 20, better))["iterative"].passed is True
    assert judge(probe("steps", 1, worse))["iterative"].passed is None


def test_more_steps_must_not_break_less_and_the_last_doubling_not_more():
    some, more = first(10), first(20)
    falling = judge(probe("steps", 1, some), probe("steps", 50, more), probe("steps", 100, some))
    assert falling["more steps"].passed is False
    assert falling["converged"].passed is True
    rising = judge(probe("steps", 1, some), probe("steps", 50, some), probe("steps", 100, more))
    assert rising["more steps"].passed is True
    assert rising["converged"].passed is False
    assert not rising["converged"].masking
    assert judge(probe("steps", 10, some), probe("steps", 100, more))["converged"].passed is None


def test_a_larger_ball_must_not_break_less_anywhere_on_the_way():
    """Three neighbours share the significance: 7 discordant images, p = 2^-7, are no longer enough, 9 are."""
    rising = [probe("eps", at, first(n)) for at, n in ((0.1, 10), (0.2, 20), (0.3, 30), (1.0, 40))]
    assert judge(*rising)["larger eps"].passed is True
    dip = [rising[0], rising[1], probe("eps", 0.3, first(20 - 7)), rising[3]]
    assert judge(*dip)["larger eps"].passed is True
    assert judge(*dip)["larger eps"].found["p_value"] == pytest.approx(2**-7)
    dip[2] = probe("eps", 0.3, first(20 - 9))
    failed = judge(*dip)["larger eps"]
    assert failed.passed is False
    assert {"accuracy_after_eps 0.2", "accuracy_after_eps 0.3"} < set(failed.found)


def test_an_attacker_without_bounds_must_win_every_image():
    most, rest = first(39), last(1)
    assert judge(probe("eps", 1.0, most), probe("other classes", 1.0, rest))["unbounded"].passed is True
    failed = judge(probe("eps", 1.0, most), probe("other classes", 1.0, most))["unbounded"]
    assert failed.passed is False
    assert failed.found["images_left"] == 1
    assert judge(probe("eps", 1.0, most))["unbounded"].passed is None


def test_a_descent_without_bounds_may_leave_one_image_in_twenty_beyond_chance():
    """P(7 or more of 40 at .05) = .0034, P(6 or more) = .014."""
    assert judge(probe("eps", 1.0, first(34)))["unbounded, by gradients"].passed is True
    assert judge(probe("eps", 1.0, first(33)))["unbounded, by gradients"].passed is False


def test_one_member_without_gradients_is_enough_to_fail():
    def judged(without, members, **more):
        seen = Probed(
            Probe("gradients", 32, gradients),
            first(0),
            first(40),
            {"images": 40, "without": without, "members_without": members, **more},
        )
        return judge(seen)["gradients exist"]

    assert judged(2, [0, 2]).passed is True
    assert judged(3, [0, 0]).passed is False
    failed = judged(0, [0, 40, 0])
    assert failed.passed is False
    assert failed.found == {
        "classifier_without_gradient": 0.0,
        "worst_member_without_gradient": 1.0,
        "members_without_gradient": 1,
    }
    assert judged(0, []).found == {"classifier_without_gradient": 0.0}
    assert judged(0, [0]).meaning.startswith("classifier and members have gradients")
    assert judged(0, [0], lent=True).meaning == (
        "members have gradients with respect to nearly every image; the classifier is attacked by theirs, as it has "
        "none of its own here"
    )


def test_every_check_has_one_name():
    names = [
        check.name for check in sanity_checks(Successes({}, {}, first(0)), (), plausibility=Check("p", None, {}, ""))
    ]
    assert len(set(names)) == len(names)
