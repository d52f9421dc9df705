import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage, member_scope
from s2ap_export.compose import compose
from s2ap_export.trace import trace_purifier
from s2ap_train.data import ImageSet
from s2ap_train.evaluate import ATTACKS, AdaptiveBudget, evaluate_file, print_report
from s2ap_train.purifier import Purification, UNet, hadamard_bank

BUDGET = AdaptiveBudget(steps=4, cheap_steps=4, restarts=1, targets=1, square_queries=10)
EPS = 0.02


@pytest.fixture(scope="module")
def data(tiny_model_path, random_images):
    """Images with the labels that the bare classifier gives them, so that its clean accuracy is 1."""
    images = random_images[:24]
    labels = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(images).base_label
    return ImageSet(images, labels)


@pytest.fixture(scope="module")
def evaluation(tiny_model_path, data):
    return evaluate_file(tiny_model_path, data, eps=EPS, seed=0, budget=BUDGET, threads=1)


@pytest.fixture(scope="module")
def undefended_path(tiny_model_path, tmp_path_factory):
    """The tiny file with a purifier of radius 0 and a test that never flags."""
    tiny = open_model_file(tiny_model_path)
    config = Purification(radius=0.0, rho=0.0, steps=1, bank_size=2)
    purifier = trace_purifier(UNet(1, 8, (1, 2), seed=0), hadamard_bank(2, (1, 8, 8), 0), config, (1, 8, 8))
    count = len(tiny.manifest.members)
    tables = tiny.manifest.test.model_copy(update={"upper": (None,) * count, "truncation": "clean"})
    model = compose(
        purifier,
        cut_stage(tiny.proto, CLASSIFIER),
        [cut_stage(tiny.proto, member_scope(i)) for i in range(count)],
        tables.to_test(),
    )
    path = tmp_path_factory.mktemp("undefended") / "undefended.onnx"
    write_model_file(model, tiny.manifest.model_copy(update={"test": tables}), path)
    return path


def test_a_file_that_does_nothing_has_the_figures_of_the_bare_classifier(undefended_path, data):
    found = evaluate_file(undefended_path, data, attacks=["fgsm", "pgd"], eps=EPS, seed=0, budget=BUDGET, threads=1)
    for name in ("fgsm", "pgd"):
        defended, bare = found.defended.attacks[name], found.bare.attacks[name]
        assert defended.attack_success == bare.attack_success
        assert defended.label_accuracy == bare.label_accuracy
        assert defended.flagged == defended.corrected == 0.0
    assert found.defended.worst_case == found.bare.worst_case


def test_the_json_has_the_keys_that_others_read(evaluation):
    found = json.loads(json.dumps(evaluation.to_json()))
    assert list(found["attacks"]) == ["fgsm", "pgd", "unrolled-pgd", "square"]
    for part in (found, found["bare"]):
        for figures in part["attacks"].values():
            assert figures.keys() >= {"attack_success", "flagged", "corrected", "members_used", "label_accuracy"}
        assert part["clean"].keys() >= {"accuracy", "flagged", "members_used"}
        assert 0.0 <= part["worst_case"]["robust_accuracy"] <= 1.0
    assert (found["samples"], found["eps"], found["seed"], found["norm"]) == (24, EPS, 0, "linf")
    assert len(found["weights_sha256"]) == 64
    assert {"torch", "foolbox", "python"} <= found["versions"].keys()
    assert found["attacks"]["square"]["configuration"] == {"queries": 10}


def test_the_bare_classifier_never_flags_and_asks_nobody(evaluation):
    for figures in evaluation.bare.attacks.values():
        assert (figures.flagged, figures.corrected, figures.members_used) == (0.0, 0.0, 0.0)


def test_the_attack_that_knows_everything_is_no_weaker_than_the_oblivious_ones(evaluation):
    for system in (evaluation.defended, evaluation.bare):
        success = {name: figures.attack_success for name, figures in system.attacks.items()}
        assert success["unrolled-pgd"] >= max(success["fgsm"], success["pgd"], system.clean.attack_success)
        assert system.worst_case.robust_accuracy <= 1.0 - max(success.values()) + 1e-9


def test_parts_of_the_adaptive_attack_sum_to_what_it_broke(evaluation):
    figures = evaluation.defended.attacks["unrolled-pgd"]
    assert sum(figures.configuration["broken_by"].values()) == round(figures.attack_success * evaluation.samples)


def test_the_same_seed_gives_the_same_figures(tiny_model_path, data, evaluation):
    again = evaluate_file(tiny_model_path, data, eps=EPS, seed=0, budget=BUDGET, threads=1)
    for system in ("defended", "bare"):
        for name, figures in getattr(evaluation, system).attacks.items():
            other = getattr(again, system).attacks[name]
            assert dataclasses.replace(figures, seconds=0.0) == dataclasses.replace(other, seconds=0.0)


def test_without_eps_nothing_is_broken_that_was_right(tiny_model_path, data):
    found = evaluate_file(tiny_model_path, data, attacks=["fgsm"], eps=0.0, seed=0, budget=BUDGET, threads=1)
    assert found.defended.attacks["fgsm"].attack_success == found.defended.clean.attack_success
    assert found.bare.clean.accuracy == pytest.approx(1.0, abs=0.2)  # the labels are those of purified images


def test_only_the_attacks_that_were_asked_for_are_reported(tiny_model_path, data):
    found = evaluate_file(tiny_model_path, data, attacks=["clean"], eps=EPS, seed=0, threads=1)
    assert found.defended.attacks == found.bare.attacks == {}
    assert found.defended.worst_case.robust_accuracy == pytest.approx(1.0 - found.defended.clean.attack_success)


def test_progress_is_told_for_every_attack(tiny_model_path, data):
    told = []
    evaluate_file(
        tiny_model_path,
        data.subset(slice(0, 2)),
        eps=EPS,
        seed=0,
        budget=BUDGET,
        threads=1,
        on_progress=lambda *step: told.append(step),
    )
    assert {name.split(",")[0] for name, _, _ in told} == set(ATTACKS) - {"clean"}
    assert all(0 <= done <= total for _, done, total in told)


def test_an_unknown_attack_names_its_nearest(tiny_model_path, data):
    with pytest.raises(RecipeError, match=r"attack 'unroled-pgd' is not known.*did you mean unrolled-pgd\?"):
        evaluate_file(tiny_model_path, data, attacks=["unroled-pgd"], eps=EPS, seed=0)


def test_eps_in_255_levels_is_refused(tiny_model_path, data):
    with pytest.raises(RecipeError, match=r"eps is 8; it is an l_inf budget in \[0, 1\] pixels"):
        evaluate_file(tiny_model_path, data, attacks=["fgsm"], eps=8, seed=0)


def test_images_and_labels_that_do_not_fit_are_refused(tiny_model_path, data):
    with pytest.raises(InputError, match="images have shape"):
        evaluate_file(tiny_model_path, ImageSet(data.images[:, :, :4], data.labels), eps=EPS, seed=0)
    with pytest.raises(InputError, match="labels have shape"):
        evaluate_file(tiny_model_path, ImageSet(data.images, data.labels[:3]), eps=EPS, seed=0)
    with pytest.raises(InputError, match=r"one of 0\.\.9 for each of 24 images"):
        evaluate_file(tiny_model_path, ImageSet(data.images, np.full_like(data.labels, 10)), eps=EPS, seed=0)


def test_the_report_shows_bare_beside_defended_and_the_worst_case(evaluation):
    console = Console(file=io.StringIO(), width=160)
    print_report(evaluation, console)
    text = console.file.getvalue()
    for words in ("Attacks that win", "bare", "defended", "knows all", "worst case", "robust accuracy"):
        assert words in text
    worst = 100 * (1 - evaluation.defended.worst_case.robust_accuracy)
    assert f"{worst:.1f}%" in text
