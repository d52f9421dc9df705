import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER, cut_stage, member_scope
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_purifier
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.purifier import Purification, UNet, hadamard_bank
from s2ap_train.redteam.ablation.names import BARE, CONFIDENCE, FULL, JURY, PRUNED
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.attacks.catalogue import chosen_attacks
from s2ap_train.redteam.attacks.oblivious import FOR_A_LABEL
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.redteam.forecast import what_is_left
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.preparation import prepare
from s2ap_train.redteam.report.console import print_evaluation, to_json

BUDGET = AdaptiveBudget(steps=4, cheap_steps=4, restarts=1, targets=1, square_queries=10, decision_queries=30)
NAMES = "fgsm,pgd,square,apgd-ce,agreement,unrolled-pgd"


def plan(names=NAMES, *, eps=0.02, depth="attacks", **changes):
    return Plan(names, chosen_attacks(names)[1], BUDGET, eps, 0.1, 3, 0, depth, **changes)


def evaluated(path, data, asked, *, folder=None, workers=1, told=None, **options):
    reporter = Reporter(Console(file=told or io.StringIO(), width=200))
    return evaluate_file(path, data, asked, folder=folder, reporter=reporter, workers=workers, **options)


@pytest.fixture(scope="module")
def data(tiny_model_path, random_images):
    """Images with the labels that the bare classifier gives them, so that its clean accuracy is 1."""
    images = random_images[:24]
    stage = cut_stage(open_model_file(tiny_model_path).proto, CLASSIFIER)
    return ImageSet(images, StageEngines(None, stage, ()).ask(images).classifier.argmax(axis=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def evaluation(tiny_model_path, data, folder):
    return evaluated(tiny_model_path, data, plan(), folder=folder)


@pytest.fixture(scope="module")
def undefended_path(tiny_model_path, tmp_path_factory):
    """The tiny file with a purifier of radius 0 and a test that never flags, where the classifier answers."""
    tiny = open_model_file(tiny_model_path)
    config = Purification(radius=0.0, rho=0.0, steps=1, bank_size=2)
    purifier = trace_purifier(UNet(1, 8, (1, 2), seed=0), hadamard_bank(2, (1, 8, 8), 0), config, (1, 8, 8))
    members = tiny.manifest.members
    tables = tiny.manifest.test.model_copy(update={"upper": (None,) * len(members), "truncation": "clean"})
    decision = tiny.manifest.decision.model_copy(update={"answer": "accurate", "purify": "always"})
    manifest = tiny.manifest.model_copy(update={"test": tables, "decision": decision})
    model = compose(
        purifier,
        cut_stage(tiny.proto, CLASSIFIER),
        [cut_stage(tiny.proto, member_scope(i)) for i in range(len(members))],
        manifest.to_test(),
        sees=[member.sees for member in members],
        purify="always",
    )
    path = tmp_path_factory.mktemp("undefended") / "undefended.onnx"
    write_model_file(model, manifest, path)
    return path


def without_time(rows):
    """Rows without the seconds that they took."""
    timeless = [dataclasses.replace(row, defended=dataclasses.replace(row.defended, seconds=0.0)) for row in rows]
    return [
        row if row.bare is None else dataclasses.replace(row, bare=dataclasses.replace(row.bare, seconds=0.0))
        for row in timeless
    ]


def test_a_file_that_does_nothing_has_the_figures_of_the_bare_classifier(undefended_path, data):
    found = evaluated(undefended_path, data, plan("fgsm,pgd"), ablation=False)
    for row in found.attacks:
        assert row.defended.attack_success == row.bare.attack_success
        assert row.defended.label_accuracy == row.bare.label_accuracy
        assert row.defended.flagged == row.defended.corrected == 0.0
    assert found.worst_case == found.bare_worst_case


def test_the_search_is_no_weaker_than_what_it_starts_from(evaluation):
    success = {row.name: row.defended.attack_success for row in evaluation.attacks}
    assert list(success) == NAMES.split(",")
    assert success["unrolled-pgd"] >= max(success.values())
    assert success["unrolled-pgd"] >= evaluation.clean.attack_success
    assert evaluation.worst_case.robust_accuracy <= 1.0 - max(success.values()) + 1e-9


def test_parts_of_the_search_sum_to_what_it_broke_and_what_it_turned(evaluation):
    """Where what is flagged is corrected every image that was broken, or else turned, has a wrong label."""
    figures = evaluation.attacks[-1].defended
    broken = figures.configuration["broken_by"]
    assert figures.abstained == 0.0
    assert sum(broken.values()) == round((1.0 - figures.label_accuracy) * 24)
    won = sum(count for name, count in broken.items() if not name.startswith(FOR_A_LABEL))
    assert 0 < won == round(figures.attack_success * 24) < sum(broken.values())


def test_every_row_of_the_table_faces_what_was_found_for_the_others(evaluation):
    left = {row.name: row.worst_case for row in evaluation.ablation}
    for name, worst in ((FULL["correct"], evaluation.worst_case), (BARE, evaluation.bare_worst_case)):
        for figure in ("label_accuracy", "label_accuracy_interval", "robust_accuracy", "robust_accuracy_interval"):
            assert getattr(left[name], figure) == getattr(worst, figure)
    assert (
        left[FULL["correct"]].robust_accuracy == left[FULL["reject"]].robust_accuracy
    )  # flags do not depend on correction
    assert left[FULL["reject"]].label_accuracy == evaluation.rejecting_label_accuracy
    assert all(row.milliseconds > 0.0 for row in evaluation.ablation)
    assert all(row.descents >= evaluation.row(FULL["correct"]).descents for row in evaluation.ablation), "equal effort"


def test_the_robust_classifier_is_cut_from_the_file_and_flagged_as_often(evaluation, tiny_model_path, data):
    alone, confident = evaluation.row(PRUNED), evaluation.row(CONFIDENCE)
    flagged = evaluation.clean.flagged + evaluation.clean.abstained
    assert confident.clean_flagged == pytest.approx(flagged)
    assert (alone.clean_accuracy, alone.clean_flagged) == (confident.clean_accuracy, 0.0)
    file = open_model_file(tiny_model_path)
    stage = cut_stage(file.proto, member_scope([member.role for member in file.manifest.members].index("juror")))
    said = StageEngines(None, stage, ()).ask(data.images).classifier
    assert alone.clean_accuracy == (said.argmax(1) == data.labels).mean()


def test_the_file_is_compared_with_every_baseline_there_is_and_what_must_hold_is_said(evaluation):
    assert {one.baseline for one in evaluation.comparisons} == {PRUNED, CONFIDENCE, BARE, JURY}
    effect = evaluation.against(PRUNED, "label right")
    assert effect.after == evaluation.worst_case.label_accuracy
    assert effect.before == evaluation.row(PRUNED).worst_case.label_accuracy
    assert [one.line.partition(":")[0] for one in evaluation.must_hold[:3]][-1] == "right or flagged"
    asked = evaluation.must_hold[-2]
    assert asked.found == {"members_used": evaluation.clean.members_used}
    assert evaluation.must_hold[-1].found["largest"] == 1.0, "all networks of this file are alike"
    assert evaluation.must_hold[-1].holds is False


def test_results_do_not_depend_on_the_number_of_processes(tiny_model_path, data, evaluation):
    again = evaluated(tiny_model_path, data, plan("fgsm,pgd,apgd-ce"), workers=2, ablation=False)
    first = [row for row in evaluation.attacks if row.name in {"fgsm", "pgd", "apgd-ce"}]
    assert without_time(again.attacks) == without_time(first)


def test_started_again_nothing_is_done_twice(tiny_model_path, data, evaluation, folder):
    told = io.StringIO()
    again = evaluated(tiny_model_path, data, plan(), folder=folder, told=told)
    assert "attacks: 9 of 9 reused" in told.getvalue()  # three of the six are made on the classifier, too
    assert again.attacks == evaluation.attacks
    assert again.seconds == evaluation.seconds


def test_what_is_stored_is_left_out_of_the_time_that_is_forecast(tiny_model_path, data, evaluation, folder, tmp_path):
    def left(where, names=NAMES):
        made = prepare(tiny_model_path, data, plan(names), folder=where, networks=Networks(), data_name="random images")
        return what_is_left(made)

    nothing, all_of_it, attack = left(tmp_path), left(folder), left(tmp_path, "fgsm")
    assert (nothing.stored_share, all_of_it.stored_share, all_of_it.weight) == (0.0, 1.0, 0.0)
    assert nothing.whole == all_of_it.whole > attack.whole
    assert nothing.seconds > attack.seconds > all_of_it.seconds > 0  # rows are judged and timed again


def test_another_budget_finds_everything_again(tiny_model_path, data, evaluation, folder):
    told = io.StringIO()
    evaluated(tiny_model_path, data, plan("fgsm", eps=0.03), folder=folder, told=told, ablation=False)
    assert "reused" not in told.getvalue()


def test_without_eps_nothing_is_broken_that_was_right(tiny_model_path, data):
    found = evaluated(tiny_model_path, data, plan("fgsm", eps=0.0), ablation=False)
    assert found.attacks[0].defended.attack_success == found.clean.attack_success


def test_without_attacks_the_clean_images_are_the_worst_case(tiny_model_path, data):
    found = evaluated(tiny_model_path, data, plan("clean"), ablation=False)
    assert found.attacks == ()
    assert found.worst_case.robust_accuracy == pytest.approx(1.0 - found.clean.attack_success)


def test_what_the_time_limit_left_out_is_said_and_the_search_runs(tiny_model_path, data):
    found = evaluated(tiny_model_path, data, plan("pgd,unrolled-pgd", time_limit=1e-9), ablation=False)
    assert [row.name for row in found.attacks] == ["unrolled-pgd"]
    assert found.not_run == {"pgd": "the time limit was over before it began"}


def test_attacks_that_lack_what_they_need_are_named(tiny_model_path, data):
    found = evaluated(tiny_model_path, data, plan("fgsm,transfer-base,square-http"), ablation=False)
    assert found.not_run.keys() == {"transfer-base", "square-http"}
    assert "--server" in found.not_run["square-http"]
    assert "--ablation all" in found.not_run["transfer-base"]


def test_the_json_has_the_keys_that_others_read(evaluation):
    found = to_json(evaluation)
    assert list(found["attacks"]) == NAMES.split(",")
    for part in (found, found["bare"]):
        for figures in part["attacks"].values():
            assert figures.keys() >= {"attack_success", "flagged", "corrected", "members_used", "label_accuracy"}
        assert part["clean"].keys() >= {"accuracy", "flagged", "members_used"}
    for part in (found, found["bare"], found["pruned"], found["pruned_confidence"]):
        assert 0.0 <= part["worst_case"]["label_accuracy"] <= part["worst_case"]["robust_accuracy"] <= 1.0


def test_the_report_names_the_worst_case(evaluation):
    console = Console(file=io.StringIO(), width=100)
    print_evaluation(evaluation, console)
    text = console.file.getvalue()
    worst = evaluation.worst_case
    for words in ("unrolled-pgd", JURY, CONFIDENCE, f"{worst.robust_accuracy:.1%}", f"{worst.label_accuracy:.1%}"):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 8}, r"eps is 8; it is an l_inf budget in \[0, 1\] pixels"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"pixels": 65}, "pixels is 65; .* from 0 to the 64 there are"),
    ],
)
def test_budgets_that_are_none_are_refused(tiny_model_path, data, changes, message):
    with pytest.raises(RecipeError, match=message):
        evaluated(tiny_model_path, data, dataclasses.replace(plan("fgsm"), **changes))


def test_images_and_labels_that_do_not_fit_are_refused(tiny_model_path, data):
    for images, labels, message in (
        (data.images[:, :, :4], data.labels, "images have shape"),
        (data.images, data.labels[:3], "labels have shape"),
        (data.images, np.full_like(data.labels, 10), r"one of 0\.\.9 for each of 24 images"),
    ):
        with pytest.raises(InputError, match=message):
            evaluated(tiny_model_path, ImageSet(images, labels), plan("fgsm"))
