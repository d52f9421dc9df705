from dataclasses import replace

import numpy as np
import pytest
from tests.train.correlated_members import answers_of, voted

from s2ap_defend.model_file import open_model_file
from s2ap_defend.sequential import SequentialTest, binary_tables, run_sequential_test
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.redteam.detection import detection_figures, measure_detection
from s2ap_train.redteam.target import open_targets

MEMBERS = 3
STEP = np.log(3.0)  # nats of one vote: levels 1/4 and 3/4


def counting(lower=-np.inf):
    """The evidence is (disagreements - agreements) ln 3; all members are asked unless the lower boundary is reached."""
    edges, increments = binary_tables(0.25, 0.75, members=MEMBERS)
    return SequentialTest(
        evidence="margin",
        edges=edges,
        increments=increments,
        lower=np.full(MEMBERS, lower),
        upper=np.full(MEMBERS, 2.5 * STEP),
        final_threshold=np.inf,
        waves=(MEMBERS,),
        vote_weights=np.zeros(MEMBERS),
        answer="accurate",
        correction="reject",
    )


def votes(*disagreeing, right=True, late=False):
    """Answers of three members; so many of them disagree with each image, the first or the last that are asked.

    If they are the first, the most evidence on the way is one step for each; -1 step if there is none.
    """
    order = reversed(range(MEMBERS)) if late else range(MEMBERS)
    return voted([[place < count for count in disagreeing] for place in order], right=right)


def joined(*parts):
    """All of them; where some have answers on raw images the others have those that they give on purified ones."""
    whole = answers_of(
        np.concatenate([part.said.members for part in parts], axis=1),
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.label for part in parts]),
    )
    if all(part.said.on_raw is None for part in parts):
        return whole
    raw = [part.said.classifier if part.said.on_raw is None else part.said.on_raw for part in parts]
    return replace(whole, said=replace(whole.said, on_raw=np.concatenate(raw)))


def test_a_detector_is_measured_on_the_images_that_the_attack_turned():
    """200 clean images, two with two votes and eight with one: 1 % lie above one vote, 5 % above none.

    The last image was wrong before the attack, and of the others it turned three.
    """
    clean = joined(votes(*[2] * 2, *[1] * 8, *[0] * 187), votes(0, 0, 0, right=False))
    attacked = joined(votes(3, 1, 2, right=False), votes(*[0] * 194), votes(3, 3, 3, right=False))
    none = np.zeros(200, dtype=bool)
    (row,) = detection_figures(counting(), none, clean, {"pgd": attacked}).rows
    assert row.attack == "pgd"
    assert (row.at_1_percent.value, row.at_1_percent.count) == (pytest.approx(2 / 3), 3)
    assert row.at_5_percent.value == 1.0
    # three votes are above all clean images, one is above 190 and ties with 8, two are above 198 and tie with 2
    beaten = (200 + (190 + 8 / 2) + (198 + 2 / 2)) / 3 / 200
    assert row.area.value == pytest.approx(beaten)
    assert row.roc["detection_rate"][-1] == 1.0


@pytest.mark.parametrize(("turned", "has"), [(9, False), (10, True)])
def test_an_area_of_a_few_images_has_no_interval(turned, has):
    """Nine images above all clean ones would have DeLong's interval of length 0."""
    clean = votes(*[0] * 100)
    attacked = joined(votes(*[3] * turned, right=False), votes(*[0] * (100 - turned)))
    (row,) = detection_figures(counting(), np.zeros(100, dtype=bool), clean, {"pgd": attacked}).rows
    assert row.area.value == 1.0
    assert np.isfinite([row.area.low, row.area.high]).tolist() == [has, has]


def test_false_alarms_are_split_by_whether_the_classifier_was_right():
    clean = joined(votes(*[0] * 6), votes(*[0] * 4, right=False))
    flagged = np.array([True, False, False, False, False, False, True, True, True, False])
    figures = detection_figures(counting(), flagged, clean, {})
    assert figures.rows == ()
    assert figures.false_alarms.value == 0.4
    assert (figures.false_alarms_right.value, figures.false_alarms_right.count) == (pytest.approx(1 / 6), 6)
    assert (figures.false_alarms_wrong.value, figures.false_alarms_wrong.count) == (0.75, 4)
    assert figures.false_alarms_wrong.low < 0.75 < figures.false_alarms_wrong.high


def test_an_attack_that_turned_nothing_has_no_row():
    clean = votes(*[0] * 5)
    assert detection_figures(counting(), np.zeros(5, dtype=bool), clean, {"noise": votes(3, 3, 3, 3, 3)}).rows == ()


def test_what_members_say_after_the_test_has_accepted_is_not_evidence():
    """Accepted after the first agreeing member, two later ones object: no boundary would have flagged it."""
    clean = votes(*[0] * 100)
    turned = joined(votes(2, right=False, late=True), votes(*[0] * 99))
    none = np.zeros(100, dtype=bool)
    (open_ended,) = detection_figures(counting(), none, clean, {"bypass": turned}).rows
    (accepting,) = detection_figures(counting(lower=-0.5), none, clean, {"bypass": turned}).rows
    assert open_ended.at_1_percent.value == 1.0
    assert accepting.at_1_percent.value == 0.0


def test_a_wrong_answer_that_is_accepted_before_anything_is_purified_counts_as_missed():
    """On the raw image classifier and members say 1; behind the purifier the classifier says 0, which nobody asks."""
    clean, turned = votes(*[0] * 100), votes(3)
    on_raw = replace(turned.said, on_raw=np.log(np.array([[0.1, 0.9]], dtype=np.float32)))
    attacked = joined(replace(turned, said=on_raw), votes(*[0] * 99))
    assert attacked.said.classifier[0].argmax() == attacked.label[0] == 0
    (row,) = detection_figures(counting(lower=-0.5), np.zeros(100, dtype=bool), clean, {"bypass": attacked}).rows
    assert (row.at_5_percent.value, row.at_5_percent.count) == (0.0, 1)
    assert row.area.value == 0.0


def test_a_file_is_asked_on_its_own_engine(tiny_model_path):
    """Flags of the served file equal those of the figures' own statistic at the file's boundary."""
    file = open_model_file(tiny_model_path)
    defended, _ = open_targets(tiny_model_path)
    images = np.random.default_rng(0).random((24, 1, 8, 8), dtype=np.float32)
    outcome = defended.system(images, np.zeros(24, dtype=np.int64))
    data = ImageSet(images, outcome.label)
    attacked = np.random.default_rng(1).random((24, 1, 8, 8), dtype=np.float32)
    test = file.manifest.to_test()
    answers = StageEngines.from_file(file).answers(images, outcome.label).measured_by(test)
    np.testing.assert_array_equal(run_sequential_test(test, answers.said).adversarial, outcome.flagged)
    figures = measure_detection(file, data, outcome.flagged, {"redrawn": attacked, "left alone": images})
    assert figures.false_alarms.value == outcome.flagged.mean() > 0
    assert figures.false_alarms_right.count == answers.right.sum()
    (row,) = figures.rows
    assert row.attack == "redrawn"
    assert 0 < row.at_5_percent.count <= figures.false_alarms_right.count
