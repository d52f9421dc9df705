"""Less and less defence on the same images, each attacked by who knows it, and what each part adds or costs."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.train.redteam.ablation.toy_target import LEAST, task_of, toy
from tests.train.toy_purifiers import EPS, STRONG, two_halves

from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.systems import never_flagged
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Store
from s2ap_train.redteam.ablation.ablation import (
    Effort,
    ablation_jobs,
    attack_row,
    joined_rows,
    judge_row,
    measure_ablation,
)
from s2ap_train.redteam.ablation.ablation_rows import Row, open_row, rows_of, served_row
from s2ap_train.redteam.ablation.names import (
    ADVERSARIAL,
    BARE,
    CONFIDENCE,
    FULL,
    JURY,
    PRUNED,
    UNFLAGGED,
    UNPURIFIED,
    WIDER,
)


def measured(target, data, *others, eps=EPS):
    task = task_of(data, eps, **{str(i): images for i, images in enumerate(others)})
    own = attack_row(target, task, LEAST).images
    return own, judge_row(target, [task], own, others, LEAST)


def test_the_row_with_the_purifier_is_attacked_through_it():
    # what the denoiser reads no attack on the classifier alone touches, see hardening/purifier_choice
    data = two_halves((0.05, 0.2), lower=0.08)
    _, bare = measured(toy(), data)
    _, purified = measured(toy(replace(STRONG, radius=0.5)), data)
    assert (bare.row.worst_case.robust_accuracy, purified.row.oblivious_accuracy) == (0.5, 1.0)
    assert (purified.row.clean_accuracy, purified.row.worst_case.robust_accuracy) == (1.0, 0.0)
    np.testing.assert_array_equal(bare.kept, np.resize([False, False, True, True], 12))


def test_what_breaks_one_row_is_tried_on_the_other():
    # the purifier moves by too little to matter, so an image that breaks one row breaks the other
    data, weak = two_halves(0.05), toy(replace(STRONG, radius=0.001))
    found, _ = measured(weak, data)
    nothing, alone = measured(toy(), data, eps=0.0)
    assert alone.kept.all()
    assert np.array_equal(nothing, data.images)
    both = judge_row(toy(), [task_of(data, 0.0)], nothing, [found], LEAST)
    assert not both.kept.any()
    assert both.row.worst_case.robust_accuracy == both.row.worst_case.label_accuracy == 0.0
    started = attack_row(weak, task_of(data, 0.0, other=found), LEAST).images
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
    row = judge_row(flat, [task], own, [other], Effort(7, 50), note="a note")
    assert row.kept.tolist() == [True, True, False, True]
    assert row.label_right.tolist() == [True, False, False, True]
    assert row.clean_right.tolist() == [True] * 4
    found = row.row
    assert (found.name, found.note, found.milliseconds) == ("flat", "a note", None)
    assert (found.clean_accuracy, found.oblivious_accuracy, found.worst_case.robust_accuracy) == (1.0, 1.0, 0.75)
    assert (found.worst_case.label_accuracy, found.clean_flagged, found.flagged, found.members_used) == (
        0.5,
        0.0,
        0.25,
        3.0,
    )
    assert (found.descents, found.steps) == (7, 50)
    # Clopper-Pearson of 3 and of 2 of 4
    assert found.worst_case.robust_accuracy_interval == pytest.approx((0.1941, 0.9937), abs=1e-4)
    assert found.worst_case.label_accuracy_interval == pytest.approx((0.0676, 0.9324), abs=1e-4)
    other[3] = 0.7
    assert judge_row(flat, [task], own, [other], LEAST).kept.tolist() == [True, True, False, False]


def test_the_rows_are_the_baselines_in_the_file_its_chains_and_the_networks_that_are_there(
    tiny_model_path, tiny_stages
):
    network = tiny_stages[2][0]
    rows = rows_of(tiny_model_path, {WIDER: network}, threshold=0.6)
    first, last = [BARE, PRUNED, CONFIDENCE], [FULL["reject"], FULL["correct"], WIDER]
    assert names(rows) == [*first, JURY, UNFLAGGED, UNPURIFIED, *last]
    assert names(rows_of(tiny_model_path, {ADVERSARIAL: network}))[:3] == [BARE, ADVERSARIAL, PRUNED]
    assert {row.name: row.same_as for row in rows if row.same_as} == {FULL["reject"]: FULL["correct"]}
    assert {row.name for row in rows if len(row.goals) > 1} == {UNPURIFIED, FULL["correct"]}, (
        "flags make labels another goal"
    )
    with_flags = {row.name: row for row in rows}
    assert with_flags[PRUNED].stage == with_flags[CONFIDENCE].stage
    assert with_flags[CONFIDENCE].decides != with_flags[PRUNED].decides


def test_the_first_juror_is_the_first_member_that_is_one(tiny_model_path, random_images):
    file = open_model_file(tiny_model_path)
    place = [member.role for member in file.manifest.members].index("juror")
    (row,) = (row for row in rows_of(tiny_model_path, {}) if row.name == PRUNED)
    labels = np.zeros(len(random_images), dtype=np.int64)
    with torch.no_grad():
        member = open_row(Row(UNPURIFIED, tiny_model_path)).view(torch.from_numpy(random_images), "none", None)[1][
            place
        ]
    np.testing.assert_array_equal(open_row(row).system(random_images, labels).label, member.argmax(1).numpy())


def test_rows_of_several_files_have_names_of_their_own_and_are_told_apart_by_their_files(
    tiny_model_path, abstaining_model_path, random_images
):
    labels = np.zeros(len(random_images), dtype=np.int64)
    for path in (tiny_model_path, abstaining_model_path):
        chain = served_row(open_model_file(path))
        own, plain = open_row(Row("mine", path, chain=chain)), open_row(Row(chain, path))
        assert own.name == "mine"
        np.testing.assert_array_equal(
            own.system(random_images, labels).score, plain.system(random_images, labels).score
        )
    assert open_row(Row("mine", tiny_model_path, chain=UNFLAGGED)).name == "mine"
    first, second = (Row("mine", path, chain=UNFLAGGED).decides for path in (tiny_model_path, abstaining_model_path))
    assert first != second
    assert first != Row("mine", tiny_model_path, chain=UNPURIFIED).decides


def test_of_a_file_that_rejects_the_correcting_chain_is_the_one_that_is_not_served(abstaining_model_path):
    assert served_row(open_model_file(abstaining_model_path)) == FULL["reject"]
    rows = {row.name: row for row in rows_of(abstaining_model_path, {})}
    assert rows[FULL["reject"]].same_as is None
    if FULL["correct"] in rows:
        assert rows[FULL["correct"]].same_as == FULL["reject"]


@pytest.fixture(scope="module")
def small(random_images):
    """Two parts of six and four images."""
    labels = np.random.default_rng(0).integers(0, 10, 10)
    budget = AdaptiveBudget(steps=1, cheap_steps=1, restarts=2, targets=1, thorough=False)
    parts = (slice(0, 6), slice(6, 10))
    return [replace(task_of(ImageSet(random_images[p], labels[p])), budget=budget, seed=p.start) for p in parts]


def test_an_ablation_is_measured_kept_and_not_made_again(tiny_model_path, tiny_stages, small, tmp_path):
    rows = rows_of(tiny_model_path, {WIDER: tiny_stages[2][0]}, threshold=0.13)
    images = np.concatenate([task.data.images for task in small])
    results, told = [], []
    for _ in range(2):
        text = io.StringIO()
        results.append(
            measure_ablation(
                rows,
                small,
                attacked={FULL["correct"]: [images]},
                effort=Effort(descents=9, steps=1),
                store=Store(tmp_path, "key"),
                reporter=Reporter(Console(file=text, width=200)),
                workers=1,
            )
        )
        told.append(text.getvalue())
    first, second = results
    # seven rows in two parts, one of them and the served file for a wrong label as well; the latter was misled already
    assert "ablation: 18 of 18 reused" in told[1]
    assert list(first) == names(rows)
    for name, row in first.items():
        np.testing.assert_array_equal(row.kept, second[name].kept)
        assert row.kept.shape == row.label_right.shape == row.clean_right.shape == (10,)
        assert row.row.worst_case.label_accuracy <= row.row.worst_case.robust_accuracy <= row.row.oblivious_accuracy
        assert row.row.descents >= 9, "equal effort"
        assert row.row.steps == 1
        assert row.row.milliseconds > 0
    reject, correct = first[FULL["reject"]], first[FULL["correct"]]
    np.testing.assert_array_equal(reject.kept, correct.kept)
    np.testing.assert_array_equal(first[CONFIDENCE].label_right, first[PRUNED].label_right)
    assert (first[CONFIDENCE].kept >= first[PRUNED].kept).all(), "a flag loses nothing"
    costs = {name: row.row.cost for name, row in first.items()}
    assert costs[BARE] == costs[PRUNED] == costs[CONFIDENCE] == 1.0, "all networks of this file are alike"
    assert costs[JURY] == sum(bool(member.vote_weight) for member in open_model_file(tiny_model_path).manifest.members)
    assert costs[FULL["correct"]] > costs[UNPURIFIED] > 1.0
    assert max(first[name].row.milliseconds for name in (BARE, PRUNED)) < first[FULL["correct"]].row.milliseconds


@pytest.mark.parametrize(
    ("descents", "steps", "restarts", "expected"),
    [(12, 50, 1, (12, 50)), (13, 50, 1, (16, 50)), (3, 20, 1, (4, 30)), (4, 20, 5, (4, 30))],
)
def test_no_row_is_attacked_with_fewer_descents_or_steps_than_the_file(descents, steps, restarts, expected):
    # the plan of a bare classifier with one target has four descents, each of the cheap steps
    budget = AdaptiveBudget(steps=20, cheap_steps=30, restarts=restarts, targets=1)
    found = Effort(descents, steps).budget(toy(), budget)
    assert (4 * found.restarts, found.cheap_steps) == expected
    assert Effort.of(toy(), found) == Effort(*expected)


def test_the_effort_of_a_plan_counts_the_longest_descent():
    budget = AdaptiveBudget(steps=20, cheap_steps=30, restarts=3, targets=1)
    assert Effort.of(toy(STRONG), budget) == Effort(12, 20)
    assert Effort.of(toy(), budget) == Effort(12, 30)


def test_what_decides_a_job_is_its_network_its_images_its_effort_and_what_was_known(
    tiny_model_path, tiny_stages, small
):
    def decides(network, known, effort=LEAST):
        rows = rows_of(tiny_model_path, {WIDER: network})
        jobs = ablation_jobs(rows, small, attacked={FULL["correct"]: [known]}, effort=effort)
        return [job.decides for job in jobs if WIDER in job.name]

    images = np.concatenate([task.data.images for task in small])
    whole = decides(tiny_stages[2][0], images)
    assert len(whole) == 2
    assert whole[0] != whole[1]
    assert whole == decides(tiny_stages[2][0], images.copy())
    assert not set(whole) & set(decides(tiny_stages[2][1], images))
    assert not set(whole) & set(decides(tiny_stages[2][0], 1 - images))
    assert not set(whole) & set(decides(tiny_stages[2][0], images, Effort(2, 6)))


def test_every_job_starts_from_its_own_part_of_what_is_known(tiny_model_path, small):
    images = np.concatenate([task.data.images for task in small]) * 0.5
    jobs = ablation_jobs(rows_of(tiny_model_path, {})[:1], small, attacked={FULL["correct"]: [images]}, effort=LEAST)
    for job, part in zip(jobs, (slice(0, 6), slice(6, 10)), strict=True):
        _, task, _, _ = job.arguments({})
        np.testing.assert_array_equal(task.known["0"], images[part])


def test_a_row_that_was_misled_already_is_attacked_for_its_other_goals_alone(small):
    rows = [Row("a", "x", goals=("mislead", "wrong label")), Row("b", "x"), Row("c", "x", same_as="a")]
    images = np.concatenate([task.data.images for task in small])
    jobs = {job.name: job for job in ablation_jobs(rows, small, attacked={"a": [images]}, effort=LEAST)}
    assert list(jobs) == [f"{what}, part {part}" for what in ("a for a wrong label", "b") for part in (1, 2)]
    done = {name: Answered(np.full((2, 1, 4, 4), i, np.float32)) for i, name in enumerate(jobs)}
    found = joined_rows(rows, 2, done, attacked={"a"})
    assert {name: [x[:, 0, 0, 0].tolist() for x in images] for name, images in found.items()} == {
        "a": [[0, 0, 1, 1]],
        "b": [[2, 2, 3, 3]],
    }
    del done["b, part 2"]
    assert list(joined_rows(rows, 2, done, attacked={"a"})) == ["a"]
    network = Row("bare", "x", stage=b"")
    again = ablation_jobs([network], small, attacked={"bare": [images]}, effort=LEAST)
    assert [job.name for job in again] == ["bare, part 1", "bare, part 2"], "no network gets less work than the file"


class Answered:
    def __init__(self, images):
        self.images = images


def names(rows):
    return [row.name for row in rows]
