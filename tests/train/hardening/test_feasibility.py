import numpy as np
import pytest
from tests.train.correlated_members import voted
from tests.train.few_images import cut_splits

from s2ap_defend import RecipeError
from s2ap_train.calibration import Detection
from s2ap_train.calibration.boundaries import conformal_rank
from s2ap_train.calibration.evidence import fit_tables
from s2ap_train.data import Splits
from s2ap_train.hardening.answered import Answered, check_answered
from s2ap_train.hardening.designs import largest_evidence, undecidable
from s2ap_train.hardening.feasibility import batch_sizes, check_feasible, problems, weaknesses
from s2ap_train.recipe import Recipe, load_recipe

ENOUGH = {"validation": 10, "fit": 40, "calibration": 40, "test": 20}


def digits(*changes: str) -> Recipe:
    return load_recipe("digits", changes)


def splits(*counts: int, **sizes: int) -> Splits:
    return cut_splits(counts or (100, 100), **{**ENOUGH, **sizes})


@pytest.mark.parametrize("counts", [(100, 100), (100, 97, 3), (5,) * 1000])
def test_two_three_and_a_thousand_classes_can_work_with_parts_that_are_large_enough(counts):
    check_feasible(digits(), splits(*counts))


def test_the_packaged_recipe_can_work_with_its_own_data():
    recipe = digits()
    assert problems(recipe, recipe.load_data()) == []


@pytest.mark.parametrize(
    ("sizes", "change", "told"),
    [
        (
            {"calibration": 18},
            "",
            "data.calibration is 18 images and detection.alpha 0.05 needs 19 that are answered right; set "
            "data.calibration to 19 or more, or detection.alpha to 0.0527 or more",
        ),
        (
            {"calibration": 40},
            "detection.alpha=0.02",
            "detection.alpha 0.02 needs 49 that are answered right; set data.calibration to 49 or more, or "
            "detection.alpha to 0.0244 or more",
        ),
        (
            {"fit": 8},
            "",
            "data.fit is 8 images and evidence needs 20 that are answered right; set data.fit to 20 and as many more",
        ),
        (
            {"fit": 22},
            "",
            "data.fit is 22 images, which leaves fewer than 5 to each of 6 bins of evidence; set data.fit to 30 or "
            "more, or detection.bins to 4",
        ),
        ({"validation": 8}, "", "data.validation is 8 images and purifiers are attacked on 10 or more"),
        ({"test": 4}, "", "the test part has 4 images and the file is measured on 10 or more"),
        (
            {},
            "detection.min_accept=20",
            "detection.min_accept is 20 and there are 13 members: nothing could be decided as clean before all were "
            "asked; set detection.min_accept to 13 or less",
        ),
        (
            {},
            "detection.n_max=3",
            "detection.min_accept is 4 and detection.n_max keeps 3 of 13 members",
        ),
        (
            {},
            'decision={purify="suspicious", jurors_see="purified"}',
            "decision.purify 'suspicious' asks the opening before anything is purified; set decision.jurors_see to",
        ),
        (
            {},
            'decision={purify="suspicious", signals=["reconstruction error"]}',
            "leaves images without the signal 'reconstruction error'",
        ),
        (
            {},
            "adversarial.batch_size=1",
            "adversarial.batch_size 1 cuts 90 training images into batches of 1, which cannot be normalised",
        ),
        (
            {},
            "members.robust.finetune.batch_size=1",
            "members.robust.finetune.batch_size 1 cuts 90 training images into batches of 1",
        ),
    ],
)
def test_what_cannot_work_is_told_with_the_key_and_the_number_that_is_needed(sizes, change, told):
    with pytest.raises(RecipeError) as refused:
        check_feasible(digits(*([change] if change else [])), splits(**sizes))
    assert told in str(refused.value)


def test_all_problems_are_told_at_once_on_one_line():
    with pytest.raises(RecipeError) as refused:
        check_feasible(digits("detection.min_accept=20"), splits(validation=8, fit=8, calibration=8))
    text = str(refused.value)
    assert text.startswith("recipe digits cannot work with 200 images of 2 classes, for 4 reasons: (1) data.fit is 8")
    assert all(f"({number})" in text for number in range(1, 5))
    assert "\n" not in text


def test_a_purifier_that_is_not_compared_needs_no_validation_images_to_attack():
    check_feasible(digits(), splits(validation=8), by_validation=False)


def test_a_class_without_training_images_is_named():
    data = splits(100, 97, 3)
    kept = data.train.labels != 2
    bare = Splits(**{**vars(data), "train": data.train.subset(np.flatnonzero(kept))})
    assert problems(digits(), bare) == [
        "no training image of class 2; give one of each class at least, or leave the class out"
    ]


def test_classes_without_images_in_a_held_out_part_are_told_and_work():
    data = splits(*(5,) * 1000)
    (*told,) = weaknesses(data)
    assert len(told) == 4
    assert "classes have no image among the 40 of the fit part: nothing is fitted on them; data.fit makes it" in told[1]
    assert weaknesses(splits()) == []


def test_the_smallest_alpha_that_is_named_is_one_that_so_many_images_allow():
    for samples in (8, 18, 40, 98):
        (told,) = (one for one in problems(digits("detection.alpha=0.001"), splits(calibration=samples)))
        alpha = float(told.split("detection.alpha to ")[1].split()[0])
        assert conformal_rank(samples, alpha) <= samples
        with pytest.raises(RecipeError):
            conformal_rank(samples, alpha - 0.0001)


def test_a_thousand_classes_that_do_not_fit_into_memory_are_told_before_anything_is_trained():
    data = splits(*(5,) * 1000)
    # classifier, first juror and 12 members; 40 fitting images, each attacked in 12 ways, and 40 calibration images
    expected = 3 * 2 * 4 * 14 * (13 * 40 + 40) * 1000
    assert problems(digits(), data, memory_bytes=expected) == []
    (told,) = problems(digits(), data, memory_bytes=expected / 2)
    assert "14 networks say of 560 images in 1000 classes takes 0.2 GB" in told
    assert "set data.fit (now 40) to 20 or less" in told


@pytest.mark.parametrize("kind", ["graded", "weighted", "wald", "ville"])
def test_a_design_that_could_never_decide_is_told_and_one_more_member_or_a_larger_alpha_mends_it(kind):
    detection = Detection(kind=kind, alpha=1e-6, beta=0.05, min_accept=1)
    (told,) = undecidable(detection, 3, 40)
    needed = int(told.split("it takes ")[1].split()[0])
    assert "detection.alpha 1e-06 puts the boundary of 'adversarial'" in told
    assert needed > 3
    assert list(undecidable(detection, needed, 40)) == []
    assert list(undecidable(Detection(kind=kind, alpha=0.05, beta=0.05, min_accept=1), 3, 40)) == []
    (told,) = undecidable(Detection(kind=kind, alpha=0.05, beta=1e-9, min_accept=1), 3, 40)
    assert "detection.beta 1e-09 puts the boundary of 'clean'" in told


def test_no_answers_give_a_member_more_evidence_than_the_bound_of_the_design():
    clean, fooled = voted([[False] * 40], right=True), voted([[True] * 480], right=False)
    for bins in (2, 6):
        increments = fit_tables(clean, fooled, bins).increments
        assert increments.max() <= largest_evidence(480, 40, bins) + 1e-9
        assert -increments.min() <= largest_evidence(40, 480, bins) + 1e-9


def test_too_few_right_answers_are_told_with_the_images_that_are_needed():
    recipe, data = digits(), splits()
    check_answered(recipe, data, Answered(fit=20, calibration=19))
    with pytest.raises(RecipeError) as refused:
        check_answered(recipe, data, Answered(fit=10, calibration=10))
    text = str(refused.value)
    assert (
        "no network gets more than 10 of the 40 images of data.fit right, and evidence is fitted with 20; set" in text
    )
    assert "set data.fit to 80 or more" in text
    assert "detection.alpha 0.05 is kept with 19; set data.calibration to 76 or more" in text
    check_answered(digits('detection.calibrate_on="all"'), data, Answered(fit=20, calibration=0))


def test_every_training_of_a_recipe_is_known_by_its_key_and_families_without_members_are_not():
    keys = dict(batch_sizes(digits()))
    assert {"plain", "adversarial", "pruning.training", "finetune", "members.robust.pretraining"} <= keys.keys()
    assert keys["members.robust.pruning.training"] == 50
    assert not any(key.startswith("members.l1_norm") for key in keys)
