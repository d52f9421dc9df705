import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.train.made_evaluation import MASKED, PASSED, WEAK, gallery_item, made_evaluation
from tests.train.redteam.report.read_page import read

from s2ap_train.redteam.report.page import evaluation_page, write_page

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
