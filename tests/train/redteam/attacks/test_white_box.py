"""White-box attacks on defences of which it is known what can be broken."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.linear_defence import (
    BUDGET,
    EPS,
    FIRST,
    INF,
    REACH,
    SECOND,
    agreement_test,
    defence,
    images_with,
    linear,
    run,
    task,
    won,
)

from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.systems import RIGHT
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.attacks.white_box import ATTACKS
from s2ap_train.redteam.attacks.white_box_search import SKIPPED, alone, sequential_test, surrogates_of
from s2ap_train.redteam.target import open_targets

MIXED = np.array([0.8, -0.5, 0.3, 1.0] * 4)
ALONE = defence(linear(MIXED), (), None)
L1, L2 = np.abs(MIXED).sum(), np.sqrt((MIXED**2).sum())
HAIR = 1e-3


def around(reach):
    """Images whose margin is a hair below and a hair above what an attack can move it by."""
    return images_with((reach * (1 - HAIR),), (reach * (1 + HAIR),), weights=(MIXED,))


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "autoattack"])
def test_a_linear_classifier_falls_exactly_where_eps_times_the_1_norm_exceeds_its_margin(name):
    assert won(name, ALONE, task(around(EPS * L1))).tolist() == [True, False]


def test_a_linear_classifier_falls_in_the_l2_ball_exactly_where_eps_times_the_2_norm_exceeds_its_margin():
    assert won("l2-pgd", ALONE, task(around(0.1 * L2))).tolist() == [True, False]


def test_with_two_classes_the_ratio_of_logits_does_not_exist_and_the_notes_say_what_took_its_place():
    data = around(EPS * L1)
    assert run("apgd-dlr", ALONE, task(data)).notes["loss"] == "ce"
    assert run("apgd-ce", ALONE, task(data)).notes["loss"] == "ce"
    third = defence(lambda x: torch.cat([linear(MIXED)(x), torch.full((len(x), 1), -5.0)], 1).log_softmax(1), (), None)
    assert run("apgd-dlr", third, task(data)).notes["loss"] == "dlr"
    assert won("apgd-dlr", third, task(data)).tolist() == [True, False]


def test_apgd_keeps_what_fools_the_classifier_although_it_is_flagged():
    objecting = agreement_test(1, lower=[-INF], upper=[0.5])
    target = defence(linear(FIRST), (linear(0 * FIRST, 3.0),), objecting)
    data = images_with((0.5 * REACH,))
    outcome = target.system(run("apgd-ce", target, task(data)).images, data.labels)
    assert outcome.flagged.all()
    assert (outcome.score < RIGHT).all(), "the answer is across"


# Classifier and first member move with FIRST; the others move four times as far the other way, so that whoever wants
# all of them on one label walks away from what the first member would accept. Where it is fooled, they say class 1.
CONTRARY = (linear(FIRST), linear(-4 * FIRST, 0.3), linear(-4 * FIRST, 0.3))
HASTY = agreement_test(3, lower=[-1.0, -1.0, -1.0], upper=[1.0, 1.0, 1.0])
PATIENT = agreement_test(3, lower=[-INF, -INF, -3.0], upper=[1.0, 1.0, 1.0], undecided_abstains=True)
NEAR = images_with(*[(share * REACH,) for share in (0.6, 0.8, 0.95)])


def test_the_bypass_breaks_a_detector_that_accepts_after_its_first_member():
    assert won("bypass", defence(linear(FIRST), CONTRARY, HASTY), task(NEAR)).all()


def test_the_bypass_differentiates_no_member_that_is_not_asked():
    asked, target = set(), defence(linear(FIRST), CONTRARY, HASTY)

    def view(images, path, count):
        if images.requires_grad:
            asked.add(count)
        return target.view(images, path, count)

    assert won("bypass", type(target)(**{**vars(target), "view": view}), task(NEAR)).all()
    assert asked == {1}


def test_agreement_with_all_members_does_not_see_that_the_first_one_is_enough():
    assert not won("agreement", defence(linear(FIRST), CONTRARY, HASTY), task(NEAR)).any()


def test_the_bypass_does_not_break_a_detector_that_asks_all_members():
    assert not won("bypass", defence(linear(FIRST), CONTRARY, PATIENT), task(NEAR)).any()


def test_without_an_early_accept_there_is_nothing_to_bypass():
    late = agreement_test(3, lower=[-INF] * 3, upper=[1.0] * 3)
    found = run("bypass", defence(linear(FIRST), CONTRARY, late), task(NEAR))
    assert "clean before all members" in found.notes[SKIPPED]
    assert np.array_equal(found.images, NEAR.images)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_agreement_with_k_members_breaks_a_test_that_looks_at_k_and_not_one_that_looks_at_all(k):
    pixels = np.eye(4).repeat(4, axis=1)  # every member listens to four pixels of its own, the classifier to all
    members = tuple(linear(row) for row in pixels)
    data = images_with((0.1,) * 4, (0.15,) * 4, weights=pixels)  # each of them can be moved by 4 eps = .2
    looks_at_k = agreement_test(4, lower=[-INF] * (k - 1) + [-k] * (5 - k), upper=[1.0] * 4, undecided_abstains=True)
    looks_at_all = agreement_test(4, lower=[-INF] * 3 + [-4.0], upper=[1.0] * 4, undecided_abstains=True)
    base = linear(pixels[:k].sum(0))
    assert won(f"agreement-{k}", defence(base, members, looks_at_k), task(data)).all()
    assert not won(f"agreement-{k}", defence(base, members, looks_at_all), task(data)).any()
    assert won("agreement", defence(base, members, looks_at_all), task(data)).all()


def test_a_prefix_of_all_members_or_more_is_left_to_the_attack_on_all():
    target = defence(linear(FIRST), CONTRARY, HASTY)
    for k in (3, 4, 6, 8):
        assert "3 members" in run(f"agreement-{k}", target, task(NEAR)).notes[SKIPPED]


# The classifier moves with the first half of the pixels, the only member with the second and, half as far, against the
# classifier: it is on the wrong side at the classifier's boundary iff its margin + half the classifier's < REACH.
AGREED = agreement_test(1, lower=[-1.0], upper=[1.0], undecided_abstains=True)
CONFLICT = defence(linear(FIRST), (linear(SECOND - 0.5 * FIRST),), AGREED)
MARGINS = np.array([(0.5, 0.2), (0.9, 0.5), (0.2, 0.85), (0.9, 0.65), (0.2, 0.95), (1.05, 0.1)]) * REACH
JOINT = images_with(*[(m0, m1 + 0.5 * m0) for m0, m1 in MARGINS])
WITHIN = (MARGINS[:, 0] < REACH) & (MARGINS[:, 1] + 0.5 * MARGINS[:, 0] < REACH)


def test_the_margins_of_the_conflicting_defence_are_those_that_the_tests_assume():
    c, m = CONFLICT.view(torch.from_numpy(JOINT.images), "none", None)
    np.testing.assert_allclose((c[:, 1] - c[:, 0]).numpy(), MARGINS[:, 0], atol=1e-5)
    np.testing.assert_allclose((m[0, :, 1] - m[0, :, 0]).numpy(), MARGINS[:, 1], atol=1e-5)
    assert WITHIN.tolist() == [True, True, True, False, False, False]


def test_the_evidence_attack_breaks_what_can_be_broken_and_nothing_else():
    assert won("evidence", CONFLICT, task(JOINT, budget=replace(BUDGET, steps=50))).tolist() == WITHIN.tolist()


def test_an_attack_alone_gets_part_of_the_budget_and_a_small_one_whole():
    assert alone(AdaptiveBudget.quick()).steps == AdaptiveBudget.quick().steps
    standard = alone(AdaptiveBudget.standard())
    assert (standard.steps, standard.restarts, standard.targets) == (30, 1, 2)
    smallest = alone(AdaptiveBudget(steps=1, cheap_steps=1, restarts=1, targets=1))
    assert (smallest.steps, smallest.restarts, smallest.targets) == (1, 1, 1)


def test_a_target_without_test_has_no_members_to_attack():
    for ask in (sequential_test, surrogates_of):
        with pytest.raises(ValueError, match="no sequential test"):
            ask(ALONE)


def test_bpda_has_nothing_to_replace_without_purifier():
    assert "no purifier" in run("bpda", CONFLICT, task(JOINT)).notes[SKIPPED]


def test_bpda_passes_a_purifier_whose_gradient_is_nothing():
    # The purifier rounds to 8 bits: its gradient is zero, its effect next to none.
    def view(images, path, count):
        rounded = (images * 255).round() / 255
        return linear(FIRST)(images if path == "identity" else rounded), linear(FIRST)(rounded)[None]

    test = agreement_test(1, lower=[-1.0], upper=[1.0])
    target = defence(linear(FIRST), (linear(FIRST),), test, purifies=True)
    masked = type(target)(**{**vars(target), "view": view})
    data = images_with((0.9 * REACH,))
    assert won("bpda", masked, task(data)).all()
    assert not won("apgd-ce", masked, task(data)).any()


def test_names_are_those_of_the_report_and_unique():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
    assert {"agreement-1", "agreement-2", "agreement-3", "agreement-4", "agreement-6", "agreement-8", "agreement"} <= {
        *names
    }
    assert all(attack.knows == "everything" and not attack.after for attack in ATTACKS)


def test_attacks_can_be_sent_to_other_processes():
    assert [attack.name for attack in pickle.loads(pickle.dumps(ATTACKS))] == [attack.name for attack in ATTACKS]  # noqa: S301


@pytest.fixture(scope="module")
def targets(tiny_model_path):
    return open_targets(tiny_model_path)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_every_attack_runs_on_a_file_keeps_to_its_ball_and_repeats_itself(attack, targets, random_images):
    defended, bare = targets
    labels = bare.system(random_images[:4], np.zeros(4, dtype=np.int64)).label
    budget = AdaptiveBudget(steps=2, cheap_steps=2, restarts=2, targets=2)
    given = Task(ImageSet(random_images[:4], labels), eps=0.1, l2=0.3, pixels=1, seed=3, budget=budget)
    for target in (defended,) if attack.needs_test else (defended, bare):
        found, again = (run(attack.name, target, given) for _ in range(2))
        assert np.array_equal(found.images, again.images)
        assert found.notes == again.notes


def test_other_seeds_start_elsewhere():
    far, one_step = images_with((3 * REACH,)), replace(BUDGET, steps=1, cheap_steps=1)
    first, other = (run("l2-pgd", ALONE, task(far, seed=seed, budget=one_step)).images for seed in (0, 1))
    assert not np.array_equal(first, other)
