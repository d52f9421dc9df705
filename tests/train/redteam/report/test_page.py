import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.train.made_evaluation import MASKED, PASSED, WEAK, attack, gallery_item, made_evaluation

from s2ap_defend import DefendedClassifier
from s2ap_defend.types import Verdicts
from s2ap_train.redteam.gallery import gallery_of, verdict_in_words
from s2ap_train.redteam.report.page import evaluation_page, write_page

VOID = {"meta", "img", "br"}
SECTIONS = (
    "baselines",
    "must-hold",
    "attacks",
    "checks",
    "effort",
    "detector",
    "parts",
    "images",
    "threat",
    "configuration",
)
CLASSES = tuple("0123456789")


class Reader(HTMLParser):
    """Reads a page as a browser would, and holds that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def said(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def page() -> str:
    return evaluation_page(made_evaluation())


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    reader = read(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object"}
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:image/", "#")), tag
    assert "url(" not in page
    assert "@import" not in page


def test_every_section_is_there_and_linked(page):
    reader = read(page)
    anchors = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    sections = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert sections == list(SECTIONS)
    assert anchors == [f"#{name}" for name in SECTIONS]


def test_what_a_hurried_reader_needs_stands_before_the_first_section(page):
    top = said(read(page.partition("<section")[0] + "</body></html>").text)
    for text in (
        "Measured, and above its baselines",
        "raises the cost of transfer and off-the-shelf attacks",
        "88.3% get the right label under every attack (95 % interval 81.2% to 93.5%)",
        "91.7% are right or flagged under every attack (95 % interval 85.2% to 95.9%)",
        "2.5% get the right label from the bare classifier, under its own attacks",
        "2.5% of clean images raise an alarm",
        "Attacked on 120 test images of digits with 12 attacks",
        "the strongest know every weight and threshold",
        "one restart",
    ):
        assert text in top


def test_the_page_holds_figures_checks_parts_threats_and_configuration(page):
    text = read(page).text
    for expected in (
        "agreement-4",
        "passed",
        "single step 0.05, iterative 0.083",
        "LOWERS label right beyond noise",
        "least confident flagged",
        "does not hold: at most 4 members are asked",
        "0.1 classifier + 0.9 jury^3 answer",
        "Patches",
        "Physical",
        "Poisoned",
        "Extraction",
        "descends through the exact purifier",
        "ab" * 32,
        "s2ap-defend evaluate build/model.onnx --recipe digits --attacks quick",
        "steps 20, restarts 1",
        "torch 2.15",
        "2 x86-64 cores",
        "adversarial-robustness-toolbox is not installed",
    ):
        assert expected in text


def test_a_masked_defence_is_called_masked_before_its_figures():
    page = evaluation_page(made_evaluation(checks=(PASSED, MASKED, WEAK)))
    reader = read(page)
    assert ("div", {"class": "verdict masked"}) in reader.tags
    assert reader.text.index("Masked gradients: the figures are no measure") < reader.text.index("91.7%")
    assert "are right or flagged under every attack" not in reader.text
    assert "1 passed, 2 FAILED, 0 not judged" in reader.text
    assert ("li", {"class": "failed"}) in reader.tags


def test_what_limits_a_figure_stands_once_beside_it():
    found = made_evaluation()
    page = read(evaluation_page(found)).text
    assert page.count("falls by construction") == 1
    assert page.index("not corrected for the number of pairs") < page.index("LOWERS label right")
    assert "not attacked for" not in page
    others = tuple(row for row in found.attacks if row.goal != "wrong label")
    tile = "(95 % interval 81.2% to 93.5%) (not attacked for)"
    assert tile in said(read(evaluation_page(replace(found, attacks=others))).text)


def test_what_was_not_measured_has_no_section():
    bare = made_evaluation(
        curves=None, detection=None, members_used={}, gallery=(), ablation=(), checks=(), must_hold=()
    )
    text = read(evaluation_page(bare))
    sections = [attributes["id"] for tag, attributes in text.tags if tag == "section"]
    assert sections == ["baselines", "attacks", "checks", "parts", "threat", "configuration"]
    assert "No sanity check was run" in text.text


def test_pictures_say_in_words_what_they_show(page):
    images = [attributes for tag, attributes in read(page).tags if tag == "img"]
    assert len(images) == 6 + 4 * 4  # plots, and four pictures of each of four examples
    assert all(image["alt"] for image in images)


def test_small_images_are_kept_exactly_and_the_difference_is_stretched_around_grey():
    item = gallery_item(0)
    page = evaluation_page(made_evaluation(gallery=(item,)))
    shown = {}
    for content, text in re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="(\w[\w .]*), true label 3"', page):
        shown[text] = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(shown["original"], np.rint(255 * item.original[0]))
    np.testing.assert_array_equal(shown["attacked"], np.rint(255 * item.attacked[0]))
    (difference,) = (image for name, image in shown.items() if name.startswith("difference x "))
    change = item.attacked[0] - item.original[0]
    assert difference.flat[np.abs(change).argmax()] in {0, 255}
    assert ((difference > 127.5) == (change > 0))[np.abs(change) > 0.01].all()


def test_the_page_of_twelve_large_images_stays_below_three_megabytes(tmp_path):
    items = tuple(gallery_item(number, (3, 224, 224)) for number in range(12))  # noise: the worst to compress
    write_page(made_evaluation(gallery=items), tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").stat().st_size < 3_000_000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_images_of_other_channel_counts_are_shown_as_their_mean():
    page = evaluation_page(made_evaluation(gallery=(gallery_item(0, (2, 8, 8)),)))
    content = re.search(r'base64,([^"]+)" alt="original', page).group(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(shown, np.rint(255 * gallery_item(0, (2, 8, 8)).original.mean(0)))


def test_names_from_files_are_text_and_never_markup():
    evil = '"><script>alert(1)</script>'
    check = replace(PASSED, name=evil, meaning=evil)
    row = replace(made_evaluation().ablation[0], name=evil, note=evil)
    item = replace(gallery_item(0), label=evil, verdict=evil + "\u202e")
    evaluation = made_evaluation(gallery=(item,), checks=(check,), ablation=(row,))
    options = replace(evaluation.configuration, model=evil, data=evil, recipe=evil, command=evil)
    reader = read(evaluation_page(replace(evaluation, configuration=options, not_run={"art-pgd": evil})))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "\u202e" not in reader.text
    assert reader.text.count("<script>alert(1)</script>") >= 10


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
