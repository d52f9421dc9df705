import math
from dataclasses import replace
from io import StringIO

import numpy as np
from rich.console import Console
from rich.text import Text
from tests.train.made_evaluation import (
    MASKED,
    PASSED,
    WEAK,
    ablation,
    attack,
    made_evaluation,
)

from s2ap_train.redteam.report.baselines import requirements
from s2ap_train.redteam.report.console import print_evaluation, print_summary
from s2ap_train.redteam.report.words import caveats, headline, unanswered
from s2ap_train.redteam.results import Evaluation
from s2ap_train.statistics.detection import RocArea, Share


def printed(evaluation: Evaluation, **console: object) -> str:
    stream = StringIO()
    print_evaluation(evaluation, Console(file=stream, **console))
    return stream.getvalue()


def summary(evaluation: Evaluation) -> str:
    stream = StringIO()
    print_summary(evaluation, Console(file=stream))
    return stream.getvalue()


def said(text: str) -> str:
    """Without the line breaks that the width has put in."""
    return " ".join(text.split())


def row_of(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_both_figures_of_the_worst_case_stand_first_with_their_intervals_and_what_clean_images_get():
    text = said(printed(made_evaluation()))
    # 110 of 120 held; Clopper-Pearson 95 %: .852 to .959
    # 106 of 120 right: .812 to .935
    first = (
        "worst case of 12 attacks, 120 images, l_inf eps 0.15: label right 88.3% (95 % interval 81.2% to 93.5%), right "
        "or flagged 91.7% (95 % interval 85.2% to 95.9%); without attack 98.3% right, 2.5% flagged"
    )
    assert first in text
    assert text.index(first) < text.index("Left under every attack") < text.index("Attacks that win")


def test_every_figure_of_an_attack_stands_in_its_row():
    text = printed(made_evaluation())
    text = text[text.index("Attacks that win") :]
    # 4 of 120 wins on the file, 111 on the bare classifier; 40 % flagged, half of it corrected
    assert row_of(text, "pgd")[:9] == ["pgd", "classifier", "92.5", "3.3", "1-8", "40.0", "20.0", "86.7", "5.5"]
    assert row_of(text, "agreement-4")[2] == "-"
    assert row_of(text, "transfer-ensemble")[1] == "networks"
    assert row_of(text, "clean") == ["clean", "nothing", "0.8", "0.8", "2.5", "98.3", "4.3"]


def test_the_last_row_of_a_table_sums_it_up_per_image():
    text = printed(made_evaluation())
    sums = [line.split()[2:] for line in text.splitlines() if line.split()[:3] == ["worst", "case", "all"]]
    # 10 of 120 broken, Clopper-Pearson .041 to .148, bare 117; l2: 8, .029 to .127; l0: 1, .000 to .046
    assert sums == [
        ["all", "97.5", "8.3", "4-15", "88.3"],
        ["all", "6.7", "3-13", "90.0"],
        ["all", "0.8", "0-5", "95.8"],
    ]


def test_label_figures_that_no_attack_aimed_at_on_all_images_are_marked():
    others = tuple(row for row in made_evaluation().attacks if row.goal != "wrong label")
    for attacks in (others, (*others, attack("correction", 4, goal="wrong label", samples=60))):
        evaluation = made_evaluation(attacks=attacks)
        assert "label right 88.3% (95 % interval 81.2% to 93.5%, not attacked for)" in headline(evaluation)
    assert "not attacked for" not in printed(made_evaluation())


def test_the_curve_over_eps_says_why_it_falls_and_that_other_radii_were_attacked_less():
    text = said(printed(made_evaluation()))
    limits = "falls by construction, since a point counts everything that was found inside its radius; radii other"
    assert text.count(limits) == 1
    assert text.index("Curves") < text.index("eps 0.3 28.3 33.3 22-47") < text.index(limits)


def test_p_values_of_parts_and_rows_that_were_attacked_less_are_explained_beside_them():
    text = said(printed(made_evaluation()))
    assert text.index("are not corrected for the number of pairs") < text.index("LOWERS label right")
    assert "at least as many descents and steps as the search on the full defence" in text
    assert "That and the bare classifier also face every other attack of this evaluation" in text
    assert "not corrected" not in printed(made_evaluation(costs=(), comparisons=()))


def test_an_area_without_interval_is_printed_without_one():
    found = made_evaluation().detection
    few = replace(found.rows[0], area=RocArea(0.875, math.nan, math.nan), at_1_percent=Share.of(np.arange(4) < 3))
    text = printed(made_evaluation(detection=replace(found, rows=(few,))))
    table = text[text.index("The detector alone") :]
    assert row_of(table, "pgd")[:4] == ["pgd", "4", "0.875", "-"]
    assert "fewer than 10 images" in said(table)


def test_what_no_image_could_show_is_left_out_of_the_words():
    nothing = replace(made_evaluation().detection, false_alarms_wrong=Share.of(np.zeros(0, dtype=bool)))
    text = printed(made_evaluation(detection=nothing))
    assert "119 whose first answer is right" in said(text)
    assert "whose first answer is wrong" not in text


def test_norms_controls_and_other_goals_do_not_stand_among_the_attacks_of_the_headline():
    text = printed(made_evaluation())
    text = text[text.index("Attacks that win") :]
    order = ["pgd", "worst", "l2-pgd", "one-pixel", "blur", "correction"]
    lines = [line.split()[:1] for line in text.splitlines()]
    places = [lines.index([name]) for name in order]
    assert places == sorted(places)
    assert row_of(text, "correction")[:6] == ["correction", "wrong", "label", "l_inf", "11.7", "7-19"]
    assert "(not in the worst case)" in text


def test_the_report_fits_100_columns():
    names = ("orthogonal-classifier", "orthogonal-detector", "hopskipjump-http", "feature-matching")
    evaluation = made_evaluation(
        attacks=tuple(attack(name, 60, samples=60, bare=60) for name in names),
        ablation=(ablation("least confident flagged", 120),),
    )
    for text in (printed(evaluation), printed(made_evaluation(), width=100, force_terminal=True)):
        assert max(map(len, Text.from_ansi(text).plain.splitlines())) <= 100


def test_masked_gradients_stand_before_any_figure_and_no_headline_calls_it_robust():
    evaluation = made_evaluation(checks=(PASSED, MASKED))
    text = said(printed(evaluation))
    first_figure = text.index("91.7%")
    assert text.index("MASKED GRADIENTS: THE FIGURES ARE NO MEASURE") < first_figure
    assert text.index("FAILED gradients exist: images without gradient 1") < first_figure
    assert text.index("NO MEASURE OF ROBUSTNESS") < first_figure
    assert "NO MEASURE" in next(line for line in printed(evaluation).splitlines() if "Attacks that win, l_inf" in line)


def test_a_failed_check_that_is_no_masking_stands_before_any_figure_as_well():
    text = said(printed(made_evaluation(checks=(WEAK,))))
    assert text.index("DOUBTFUL") < text.index("FAILED iterative >= single step") < text.index("91.7%")
    assert "NO MEASURE" not in text


def test_every_check_is_printed_with_its_result_its_figures_and_its_meaning():
    text = said(printed(made_evaluation()))
    assert "passed iterative >= single step: single step 0.05, iterative 0.083 many steps break at least" in text
    assert "not judged half eps no published figure for this data" in text


def test_what_the_search_added_to_all_other_attacks_is_said():
    text = said(printed(made_evaluation()))
    expected = (
        "unrolled-pgd starts from all others: 1 image wrong without an attack, 7 images broken by others, 2 images "
    )
    assert expected + "that nothing else broke; agreement, exact: 2." in text
    assert "starts from all others" not in printed(made_evaluation(attacks=(attack("apgd-ce", 3),)))


def test_labels_that_the_search_turned_are_no_images_that_it_alone_broke():
    found = {"clean image": 1, "other attack": 7, "agreement, exact": 2}
    found |= {"label: clean image": 3, "label: other attack": 4, "label: jury, none": 1, "label: answer, none": 0}
    row = attack("unrolled-pgd", 10)
    row = replace(row, defended=replace(row.defended, configuration={"broken_by": found}))
    assert (
        "2 images that nothing else broke; agreement, exact: 2. For a label of what is left, then: 3 images wrong "
        "without an attack, 4 images turned by others, 1 image that nothing else turned; jury, none: 1."
    ) in said(printed(made_evaluation(attacks=(row,))))


def test_an_attack_that_was_not_run_on_all_images_is_marked_and_counted():
    evaluation = made_evaluation(attacks=(attack("apgd-ce", 3), attack("apgd-dlr", 3, samples=60)))
    text = printed(evaluation)
    assert "  apgd-dlr (60)  everything" in text
    assert "not in the worst case: apgd-dlr (60)" in " ".join(caveats(evaluation))
    assert "art-pgd: adversarial-robustness-toolbox is not installed" in text


def test_what_is_not_answered_is_said_only_where_something_is():
    assert unanswered(made_evaluation()) == ""
    clean = replace(made_evaluation().clean, abstained=0.05)
    assert unanswered(made_evaluation(clean=clean)).startswith(
        "not answered (the defence abstains): clean 5.0%, noise 0"
    )


def test_the_summary_has_the_ablation_with_its_legend_and_notes():
    stream = StringIO()
    rows = (replace(ablation("bare", 3), milliseconds=None), ablation("full, reject", 108, note="timed by its stages"))
    print_summary(made_evaluation(ablation=rows), Console(file=stream))
    text = stream.getvalue()
    bare = next(line for line in text[text.index("Ablation") :].splitlines() if line.startswith("  bare"))
    assert bare.split() == ["bare", "98.3", "90.0", "1.7", "2.5", "1-7", "2.5", "/", "40.8", "4.3", "2.5", "-", "12x50"]
    assert "full, reject: timed by its stages" in text
    assert "thresholds included" in said(text)
    assert "Attacks that win" not in text


def test_the_file_stands_beside_its_baselines_in_both_figures_and_image_by_image():
    for show in (printed(made_evaluation()), summary(made_evaluation())):
        table = show[show.index("Left under every attack, % of 120 images") :]
        rows = {line[:26].strip(): line[26:].split() for line in table.splitlines()[2:7]}
        # 106 and 110 of 120; 98; 98 and 101
        assert rows["this file"] == ["98.3", "2.5", "88.3", "81-93", "91.7", "85-96"]
        assert rows["robust classifier alone"] == ["98.3", "0.0", "81.7", "74-88", "81.7", "74-88"]
        assert rows["least confident flagged"] == ["98.3", "2.5", "81.7", "74-88", "84.2", "76-90"]
        assert list(rows)[3:] == ["wider, same compute", "bare classifier"]
        pair = next(line for line in show.splitlines() if "  label right  " in line and "least" in line)
        # 8 gained of 120, by Agresti and Min 8 / 122 +- 1.96 sqrt(9 - 64 / 122) / 122
        assert pair.split()[-8:] == ["above", "+6.7", "+1.9", "to", "+11.2", "8", "0", "0.0078"]


def test_every_line_of_what_must_hold_is_printed_with_its_figures():
    for show in (printed(made_evaluation()), summary(made_evaluation())):
        text = said(show)
        assert "What must hold of the decision: 1 holds, 1 does not hold, 1 undecided." in text
        assert "- does not hold: at most 4 members are asked 4.30 on average" in text
        assert "- undecided: label right: not below that one was not measured" in text


def test_what_holds_is_counted_in_the_plural_where_there_is_more_than_one():
    lines = made_evaluation().must_hold
    (text, _) = requirements([*lines, *lines])
    assert text == "What must hold of the decision: 2 hold, 2 do not hold, 2 undecided."


def test_text_from_a_file_neither_steers_the_terminal_nor_is_markup():
    evil = replace(made_evaluation().configuration, model="\x1b[2J[bold]a\u202eb", data="[/red]digits")
    text = printed(made_evaluation(configuration=evil, ablation=(ablation("\x1b[2Jrow", 60, note="[red]note"),)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]note" in text
