"""Less and less defence on the same images, each attacked by who knows it, and what each part adds or costs."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.train.toy_purifiers import EPS, STRONG, Denoiser, two_halves, upper_half

from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.purified import UnflaggingSystem, variant_view
from s2ap_train.adaptive.systems import never_flagged
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Store
from s2ap_train.purifier import hadamard_bank
from s2ap_train.purifier.variants import off, purification
from s2ap_train.redteam.ablation.ablation import ablation_jobs, attack_row, judge_row, measure_ablation, row_budget
from s2ap_train.redteam.ablation.ablation_rows import (
    ADVERSARIAL,
    BARE,
    DETECTOR,
    FULL,
    PRUNED,
    PURIFIER,
    VOTE,
    WIDER,
    open_row,
    rows_of,
    served_row,
)
from s2ap_train.redteam.ablation.chains import purified_plan
from s2ap_train.redteam.ablation.costs import LABELS, ROBUST, against_pruned, part_costs
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.target import Target

BUDGET = AdaptiveBudget(steps=4, cheap_steps=6, restarts=1, targets=1)


def task_of(data, eps=EPS, **known):
    return Task(data=data, eps=eps, l2=1.0, pixels=1, seed=0, budget=BUDGET, known=known)


def toy(config=None, honest=True):
    """A classifier of the upper half, alone or behind a purifier whose denoiser reads the lower half."""
    variant = off() if config is None else purification("toy", Denoiser(honest), hadamard_bank(2, (1, 4, 4), 0), config)
    view = variant_view(variant, upper_half)
    return Target(
        name="toy",
        system=UnflaggingSystem(lambda images: view(images, "exact", 0)[0]),
        view=view,
        classify=lambda images: upper_half(images).log_softmax(1),
        purifies=config is not None,
        **({} if config is None else {"plan": purified_plan}),
    )


def measured(target, data, *others, eps=EPS):
    task = task_of(data, eps, **{str(i): images for i, images in enumerate(others)})
    own = attack_row(target, task).images
    return own, judge_row(target, [task], own, others)


def test_the_row_with_the_purifier_is_attacked_through_it():
    # what the denoiser reads no attack on the classifier alone touches, see hardening/purifier_choice
    data = two_halves((0.05, 0.2), lower=0.08)
    _, bare = measured(toy(), data)
    _, purified = measured(toy(replace(STRONG, radius=0.5)), data)
    assert (bare.row.robust_accuracy, purified.row.oblivious_accuracy) == (0.5, 1.0)
    assert (purified.row.clean_accuracy, purified.row.robust_accuracy) == (1.0, 0.0)
    np.testing.assert_array_equal(bare.right, np.resize([False, False, True, True], 12))


def test_what_breaks_one_row_is_tried_on_the_other():
    # the purifier moves by too little to matter, so an image that breaks one row breaks the other
    data, weak = two_halves(0.05), toy(replace(STRONG, radius=0.001))
    found, _ = measured(weak, data)
    nothing, alone = measured(toy(), data, eps=0.0)
    assert alone.right.all()
    assert np.array_equal(nothing, data.images)
    both = judge_row(toy(), [task_of(data, 0.0)], nothing, [found])
    assert not both.right.any()
    assert both.row.robust_accuracy == both.row.label_accuracy == 0.0
    started = attack_row(weak, task_of(data, 0.0, other=found)).images
    assert weak.system(started, data.labels).success.all(), "what is known is a start"


class Answers:
    """Answers by a table from the mean of an image to an outcome, for two classes."""

    def __init__(self, label, flagged):
        self.label, self.flagged = label, flagged

    def __call__(self, images, labels):
        row = np.rint(images.mean(axis=(1, 2, 3)) * 10).astype(int)
        label, flagged = np.array(self.label)[row], np.array(self.flagged)[row]
        log_probabilities = np.where(np.eye(2)[label] == 1, -0.1, -2.0).astype(np.float32)
        outcome = never_flagged(log_probabilities, labels)
        return replace(
            outcome, flagged=flagged, score=np.where(flagged, 1.0, outcome.score), members_used=np.full(len(row), 3)
        )


def test_a_row_counts_by_image_the_worst_of_everything():
    # Four images of class 0. Image k is k/10 grey; a system answers 0 for 0-3 and 1 from 4, and flags 5 and 6.
    label, flagged = [0, 0, 0, 0, 1, 1, 1, 1], [False] * 5 + [True, True, False]
    grey = np.repeat(np.arange(4, dtype=np.float32) / 10, 16).reshape(4, 1, 4, 4)
    flat = replace(toy(), name="flat", system=Answers(label, flagged))
    task = task_of(ImageSet(grey, np.zeros(4, dtype=np.int64)), 0.0)  # PGD without a budget changes nothing
    own, other = grey.copy(), grey.copy()
    own[1], own[2] = 0.5, 0.4  # flagged with a wrong label; won
    other[3] = 0.3  # nothing
    row = judge_row(flat, [task], own, [other], note="a note")
    assert row.right.tolist() == [True, True, False, True]
    assert row.label_right.tolist() == [True, False, False, True]
    found = row.row
    assert (found.name, found.note, found.milliseconds) == ("flat", "a note", None)
    assert (found.clean_accuracy, found.oblivious_accuracy, found.robust_accuracy) == (1.0, 1.0, 0.75)
    assert (found.label_accuracy, found.clean_flagged, found.flagged, found.members_used) == (0.5, 0.0, 0.25, 3.0)
    assert found.interval == pytest.approx((0.1941, 0.9937), abs=1e-4)  # Clopper-Pearson of 3 of 4
    other[3] = 0.7
    assert judge_row(flat, [task], own, [other]).right.tolist() == [True, True, False, False]


def names(rows):
    return [row.name for row in rows]


def test_the_rows_are_the_chains_of_the_file_and_the_networks_that_are_there(tiny_model_path, tiny_stages):
    network = tiny_stages[2][0]
    rows = rows_of(tiny_model_path, {WIDER: network, PRUNED: network})
    assert names(rows) == [BARE, PRUNED, PURIFIER, DETECTOR, VOTE, "full, reject", "full, correct", WIDER]
    assert ADVERSARIAL not in names(rows)
    assert {row.name: row.same_as for row in rows if row.same_as} == {"full, reject": "full, correct"}
    assert names(rows_of(tiny_model_path, {})) == [BARE, PURIFIER, DETECTOR, VOTE, *FULL.values()]


def test_of_a_file_that_rejects_the_correcting_chain_is_the_one_that_is_not_served(abstaining_model_path):
    assert served_row(open_model_file(abstaining_model_path)) == "full, reject"
    rows = {row.name: row for row in rows_of(abstaining_model_path, {})}
    assert rows["full, correct"].same_as == "full, reject"
    assert rows["full, reject"].same_as is None


def test_a_row_that_is_a_network_answers_as_its_stage(tiny_model_path, tiny_stages, random_images):
    rows = {row.name: row for row in rows_of(tiny_model_path, {PRUNED: tiny_stages[2][3]})}
    labels = np.zeros(len(random_images), dtype=np.int64)
    pruned, bare = (open_row(rows[name]).system(random_images, labels).label for name in (PRUNED, BARE))
    with torch.no_grad():
        member = open_row(rows[DETECTOR]).view(torch.from_numpy(random_images), "none", None)[1][3]
    np.testing.assert_array_equal(pruned, member.argmax(1).numpy())
    assert (pruned != bare).any()


@pytest.fixture(scope="module")
def small(random_images):
    """Two parts of six and four images."""
    labels = np.random.default_rng(0).integers(0, 10, 10)
    budget = AdaptiveBudget(steps=1, cheap_steps=1, restarts=2, targets=1, thorough=False)
    parts = (slice(0, 6), slice(6, 10))
    return [replace(task_of(ImageSet(random_images[p], labels[p])), budget=budget, seed=p.start) for p in parts]


def test_an_ablation_is_measured_kept_and_not_made_again(tiny_model_path, tiny_stages, small, tmp_path):
    rows = rows_of(tiny_model_path, {PRUNED: tiny_stages[2][0]})
    images = np.concatenate([task.data.images for task in small])
    results, told = [], []
    for _ in range(2):
        text = io.StringIO()
        results.append(
            measure_ablation(
                rows,
                small,
                attacked={FULL[True]: [images]},
                store=Store(tmp_path, "key"),
                reporter=Reporter(Console(file=text, width=200)),
                workers=1,
            )
        )
        told.append(text.getvalue())
    first, second = results
    assert "12 of" not in told[0]
    assert "ablation: 10 of 10 reused" in told[1], "five rows in two parts; the whole chain was attacked already"
    assert list(first.rows) == names(rows)
    assert set(first.found) == {BARE, PRUNED, PURIFIER, DETECTOR, VOTE}
    for name, row in first.rows.items():
        np.testing.assert_array_equal(row.right, second.rows[name].right)
        assert row.right.shape == row.label_right.shape == (10,)
        assert row.row.robust_accuracy <= row.row.oblivious_accuracy
        assert row.row.milliseconds > 0
    reject, correct = (first.rows[name] for name in FULL.values())
    np.testing.assert_array_equal(reject.right, correct.right)
    milliseconds = {name: row.row.milliseconds for name, row in first.rows.items()}
    assert milliseconds[BARE] < min(milliseconds[name] for name in (PURIFIER, DETECTOR, VOTE, *FULL.values()))
    assert max(milliseconds[BARE], milliseconds[PRUNED]) < milliseconds[VOTE], "seven networks against one"
    assert first.rows[VOTE].row.members_used == 6
    assert first.rows[VOTE].row.note.endswith("; attacked with 1 of 2 restarts")
    assert not any("restarts" in first.rows[name].row.note for name in (BARE, PRUNED, *FULL.values()))


def test_chains_get_a_third_of_the_restarts_and_a_purifier_alone_as_many_steps_as_its_classifier():
    budget = AdaptiveBudget(steps=5, cheap_steps=7, restarts=4)
    network, purified = toy(), toy(STRONG)
    assert row_budget(network, budget) == budget
    assert row_budget(purified, budget) == replace(budget, restarts=2, steps=7)
    assert row_budget(replace(network, members=3), budget) == replace(budget, restarts=2)
    quick = replace(budget, thorough=False, restarts=1)
    assert row_budget(purified, quick) == quick


def test_what_decides_a_job_is_its_network_its_images_and_what_was_known(tiny_model_path, tiny_stages, small):
    def decides(network, known):
        rows = rows_of(tiny_model_path, {PRUNED: network})
        return [job.decides for job in ablation_jobs(rows, small, attacked={FULL[True]: [known]}) if PRUNED in job.name]

    images = np.concatenate([task.data.images for task in small])
    whole = decides(tiny_stages[2][0], images)
    assert len(whole) == 2
    assert whole[0] != whole[1]
    assert whole == decides(tiny_stages[2][0], images.copy())
    assert not set(whole) & set(decides(tiny_stages[2][1], images))
    assert not set(whole) & set(decides(tiny_stages[2][0], 1 - images))


def test_every_job_starts_from_its_own_part_of_what_is_known(tiny_model_path, small):
    images = np.concatenate([task.data.images for task in small]) * 0.5
    jobs = ablation_jobs(rows_of(tiny_model_path, {})[:1], small, attacked={FULL[True]: [images]})
    for job, part in zip(jobs, (slice(0, 6), slice(6, 10)), strict=True):
        _, task = job.arguments({})
        np.testing.assert_array_equal(task.known["0"], images[part])


def test_costs_compare_rows_image_by_image():
    row = judge_row(toy(), [task_of(two_halves(0.2), 0.0)], two_halves(0.2).images, [])

    def with_right(robust, labels):
        return replace(row, right=np.arange(20) < robust, label_right=np.arange(20) < labels)

    rows = {BARE: with_right(2, 2), PURIFIER: with_right(8, 8), PRUNED: with_right(14, 14)}
    rows |= {FULL[False]: with_right(18, 6), FULL[True]: with_right(18, 12)}
    found = {(cost.part, cost.measure): cost.effect for cost in part_costs(rows)}
    assert set(found) == {
        ("purifier in front of the classifier", ROBUST),
        ("full defence instead of its S2AP-pruned classifier", ROBUST),
        ("full defence instead of its S2AP-pruned classifier", LABELS),
        ("correction instead of rejection", LABELS),
    }
    effect = found["purifier in front of the classifier", ROBUST]
    assert (effect.before, effect.after, effect.gained, effect.lost) == (0.1, 0.4, 6, 0)
    assert found["full defence instead of its S2AP-pruned classifier", LABELS].difference == pytest.approx(-0.1)
    assert found["correction instead of rejection", LABELS].difference == pytest.approx(0.3)
    pair = against_pruned(rows, FULL[True])
    assert (pair.before, pair.after) == (0.7, 0.9)
    assert against_pruned({BARE: rows[BARE]}, FULL[True]) is None
