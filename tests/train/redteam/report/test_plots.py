import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.train.made_evaluation import attack, made_evaluation, point, worst_case

from s2ap_train.redteam.report.plots import (
    baselines_plot,
    composition_plot,
    effort_plot,
    eps_plot,
    members_plot,
    pictures,
    roc_plot,
)


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has(content: bytes, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(content) == wanted).all(-1).any())


def test_everything_that_was_measured_is_drawn_and_the_same_twice():
    first, second = pictures(made_evaluation()), pictures(made_evaluation())
    assert list(first) == ["baselines", "composition", "eps", "effort", "roc", "members"]
    assert {name: one.content for name, one in first.items()} == {name: one.content for name, one in second.items()}
    for picture in first.values():
        assert pixels(picture.content).std() > 0
        assert len(picture.content) < 150_000


def test_what_was_not_measured_is_not_drawn():
    empty = made_evaluation(attacks=(), curves=None, detection=None, members_used={}, comparisons=())
    assert pictures(empty) == {}
    curves = replace(made_evaluation().curves, eps=(), restarts=())
    assert list(pictures(replace(empty, curves=curves))) == ["effort"]


def test_the_file_and_its_baselines_have_a_bar_of_both_figures_each():
    picture = baselines_plot(made_evaluation())
    for colour in ("#D55E00", "#0072B2"):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        column = (pixels(picture.content) == wanted).all(-1)[:, 260:700].sum(1) > 200  # long bars: four of five
        assert np.diff(column.astype(int)).tolist().count(1) == 4
    alone = made_evaluation(ablation=())
    assert len(baselines_plot(alone).content) < len(picture.content)


def test_a_higher_curve_is_drawn_higher():
    def height_of_line(held: int) -> float:
        curves = replace(made_evaluation().curves, eps=(point(0.0, held), point(1.0, held)))
        image = pixels(eps_plot(curves, 0.5).content)
        blue = (image == [0x00, 0x72, 0xB2]).all(-1)[:, 150:600]  # away from axis, legend and markers' ends
        return float(np.flatnonzero(blue.any(1)).mean())

    assert height_of_line(50) < height_of_line(20)  # rows count from the top


def test_one_of_two_effort_curves_may_be_missing():
    curves = replace(made_evaluation().curves, restarts=())
    picture = effort_plot(curves)
    assert "on 60 images" in picture.caption
    assert has(picture.content, "#0072B2")


def test_roc_curves_are_those_that_are_detected_worst():
    detection = made_evaluation().detection
    (row,) = detection.rows
    many = tuple(
        replace(row, attack=f"attack-{number}", area=replace(row.area, value=0.9 - number / 100)) for number in range(8)
    )
    picture = roc_plot(replace(detection, rows=many))
    assert "the 6 attacks that it detects worst" in picture.caption
    assert picture.content == roc_plot(replace(detection, rows=many[2:])).content
    assert "detects worst" not in roc_plot(detection).caption


def test_members_are_drawn_for_clean_images_and_the_attacks_under_which_most_are_asked():
    used = {"clean": (4, 6), "a": (7, 7), "b": (12, 12), "c": (5, 6), "d": (8, 8)}
    without_c = {name: counts for name, counts in used.items() if name != "c"}
    assert members_plot(used).content == members_plot(without_c).content
    assert members_plot(used).content != members_plot({**used, "a": (7, 6)}).content


def test_the_worst_case_is_told_by_what_broke_it_at_all_and_alone():
    evaluation = made_evaluation(
        attacks=(attack("apgd-ce", 4), attack("square", 6), attack("l2-pgd", 9, norm="l2")),
        worst_case=worst_case(8, {"apgd-ce": 0, "square": 0}),
    )
    none_alone = composition_plot(evaluation)
    assert "8 of 120 images" in none_alone.caption
    alone = composition_plot(replace(evaluation, worst_case=worst_case(8, {"square": 3})))
    dark = (pixels(alone.content) == [0x00, 0x72, 0xB2]).all(-1).sum()
    assert dark > 2 * (pixels(none_alone.content) == [0x00, 0x72, 0xB2]).all(-1).sum()  # the legend has one patch


@pytest.mark.parametrize("name", ["composition", "members"])
def test_attacks_without_any_success_are_drawn_too(name):
    evaluation = made_evaluation(
        attacks=(attack("pgd", 0),), worst_case=worst_case(0, {}), members_used={"clean": (1,), "pgd": (1,)}
    )
    assert pixels(pictures(evaluation)[name].content).std() > 0
