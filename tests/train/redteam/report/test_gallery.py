"""The images that a page shows, and their verdicts in words."""

from pathlib import Path

import numpy as np
import pytest
from tests.train.made_evaluation import attack, made_evaluation
from tests.train.redteam.report.read_page import read

from s2ap_defend import DefendedClassifier
from s2ap_defend.types import Verdicts
from s2ap_train.redteam.gallery import gallery_of, verdict_in_words
from s2ap_train.redteam.report.page import evaluation_page

CLASSES = tuple("0123456789")


def verdicts(label: list[int], base: list[int], flagged: list[int], abstained: list[int] | None = None) -> Verdicts:
    count = len(label)
    return Verdicts(
        label=np.array(label),
        adversarial=np.array(flagged, dtype=bool),
        base_label=np.array(base),
        probabilities=np.zeros((count, 10), np.float32),
        label_change_rate=np.zeros(count, np.float32),
        log_likelihood_ratio=np.zeros(count),
        members_used=np.arange(1, count + 1),
        votes=np.zeros((count, 10), np.int64),
        purified=np.full((count, 1, 2, 2), 0.5, np.float32),
        reconstruction_error=np.zeros(count, np.float32),
        abstained=np.array(abstained or [0] * count, dtype=bool),
    )


def test_the_gallery_shows_wins_and_losses_of_the_strongest_attacks_each_image_once():
    images = np.zeros((6, 1, 2, 2), np.float32)
    labels = np.zeros(6, np.int64)
    said = {
        # nothing won; 'strong' wins on 0, 1, 2; corrects 5, catches 4, is not fooled on 3; 'medium' wins on 0, 3
        "weak": verdicts([0] * 6, [0] * 6, [0] * 6),
        "strong": verdicts([1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1]),
        "medium": verdicts([1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0], [0] * 6),
    }
    attacked = {name: images + 0.1 * number for number, name in enumerate(said, start=1)}

    def chosen(limit: int, right: np.ndarray | None = None) -> list[tuple[str, bool, str]]:
        items = gallery_of(images, labels, attacked, said, CLASSES, limit=limit, right=right)
        for item in items:
            assert item.attacked.max() == attacked[item.attack].max()
        return [(item.attack, item.won, item.verdict.rpartition(", ")[2]) for item in items]

    # members asked are row + 1: of 'strong' wins 0 and 1, then the corrected 5 and the caught 4
    strong = [
        ("strong", True, "1 member asked"),
        ("strong", True, "2 members asked"),
        ("strong", False, "6 members asked"),
        ("strong", False, "5 members asked"),
    ]
    assert chosen(4) == strong
    # of 'medium' win 3, which was not shown, before 0, then losses that were not shown: 2, and 1 again
    assert chosen(8) == [
        *strong,
        ("medium", True, "4 members asked"),
        ("medium", True, "1 member asked"),
        ("medium", False, "3 members asked"),
        ("medium", False, "2 members asked"),
    ]
    # images that are wrong without attack are not shown
    right = np.array([False, False, True, True, True, True])
    assert chosen(4, right) == [
        ("strong", True, "3 members asked"),
        ("strong", False, "6 members asked"),
        ("strong", False, "5 members asked"),
        ("strong", False, "4 members asked"),
    ]
    # an image that the attack left as it was is no loss of the attacker
    attacked["strong"][5] = images[5]
    assert [words for _, won, words in chosen(4) if not won] == ["5 members asked", "4 members asked"]
    assert len(gallery_of(images, labels, {}, {}, CLASSES)) == 0


def test_kinds_of_lost_images_take_turns():
    images, labels = np.zeros((4, 1, 2, 2), np.float32), np.zeros(4, np.int64)
    # rows 0 and 1 are corrected, 2 is caught with a wrong label, 3 is not fooled
    said = verdicts([0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0])
    items = gallery_of(images, labels, {"pgd": images + 0.1}, {"pgd": said}, CLASSES, limit=3)
    assert [item.verdict.rpartition(", ")[2][0] for item in items] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (verdicts([1], [1], [0]), "not flagged, answers '1' (right), 1 member asked"),
        (verdicts([2], [2], [0]), "not flagged, answers '2' (wrong), 1 member asked"),
        (verdicts([1], [2], [0]), "not flagged, answers '1' (right), the classifier alone '2', 1 member asked"),
        (verdicts([1], [2], [1]), "flagged, the jury answers '1' (right), the classifier alone '2', 1 member asked"),
        (verdicts([2], [3], [1]), "flagged, the jury answers '2' (wrong), the classifier alone '3', 1 member asked"),
        (verdicts([2], [2], [1]), "flagged, the jury answers '2' (wrong), 1 member asked"),
        (verdicts([2], [2], [1], [1]), "flagged and rejected, 1 member asked"),
        (verdicts([2], [2], [0], [1]), "undecided, no answer, 1 member asked"),
    ],
)
def test_a_verdict_in_words(one, words):
    assert verdict_in_words(one, 0, 1, CLASSES) == words


def test_the_gallery_shows_what_a_file_answers(tiny_model_path: Path, random_images: np.ndarray):
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)
    images, attacked = random_images[:32], random_images[32:64]
    said = classifier(attacked)
    items = gallery_of(images, (said.label + 1) % 10, {"noise": attacked}, {"noise": said}, CLASSES, limit=6)
    assert {item.won for item in items} == {True, False}
    for item in items:
        row = int(np.flatnonzero((attacked == item.attacked).all((1, 2, 3)))[0])
        np.testing.assert_array_equal(item.original, images[row])
        np.testing.assert_array_equal(item.purified, said.purified[row])
        assert item.won == (not said.adversarial[row])  # the label made up is never the final one
    read(evaluation_page(made_evaluation(gallery=items, attacks=(attack("noise", 3),))))
