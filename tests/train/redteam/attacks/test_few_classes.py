"""Every attack of the red team on files of two classes and of a thousand."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.export.defended_files import DECISION, PURIFICATION, TABLES, write_untrained

from s2ap_defend import DefendedClassifier
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.attacks.catalogue import ATTACKS, chosen_attacks
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.report.console import print_evaluation
from s2ap_train.redteam.target import Target, open_targets

ALONE = [name for name, attack in ATTACKS.items() if attack.needs is None]
BUDGET = AdaptiveBudget(
    steps=2, cheap_steps=2, restarts=1, targets=9, thorough=True, square_queries=5, decision_queries=20
)


@pytest.fixture(scope="module", params=[2, pytest.param(1000, marks=pytest.mark.slow)])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, Target, Task]:
    """(The file, the classifier inside it, images with the labels that the file gives them)."""
    path: Path = tmp_path_factory.mktemp("classes") / f"{request.param}.onnx"
    write_untrained(path, TABLES, DECISION, PURIFICATION, classes=request.param)
    images = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    labels = DefendedClassifier.load(path, device="cpu")(images).label
    labels[-1] = (labels[-1] + 1) % request.param  # one that is wrong from the start
    budget = BUDGET.for_classes(request.param)
    task = Task(ImageSet(images, labels), eps=0.1, l2=0.5, pixels=2, seed=0, budget=budget)
    return *open_targets(path), task


@pytest.mark.parametrize("name", ALONE)
def test_every_attack_runs_on_two_and_on_a_thousand_classes(name: str, attacked: tuple[Target, Target, Task]) -> None:
    defended, bare, task = attacked
    attack = ATTACKS[name]
    for target in (defended,) if attack.needs_test else (defended, bare):
        found = attack.run(target, task).images
        assert found.shape == task.data.images.shape
        assert np.isfinite(found).all()
        assert found.min() >= 0.0
        assert found.max() <= 1.0
        if attack.norm == "linf":
            assert np.abs(found - task.data.images).max() <= task.eps + 1e-6


def test_an_evaluation_of_one_image_that_is_wrong_from_the_start_divides_by_nothing(tmp_path: Path) -> None:
    path, told = tmp_path / "two.onnx", io.StringIO()
    write_untrained(path, TABLES, DECISION, PURIFICATION, classes=2)
    images = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    wrong = 1 - DefendedClassifier.load(path, device="cpu")(images).label
    plan = Plan("few", chosen_attacks("fgsm,pgd,apgd-dlr,jury")[1], BUDGET, 0.1, 0.5, 3, 0, "attacks")
    console = Console(file=told, width=200)
    found = evaluate_file(path, ImageSet(images, wrong), plan, folder=None, reporter=Reporter(console), workers=1)
    print_evaluation(found, console)
    assert found.worst_case.label_accuracy == 0.0
    assert found.configuration.budget["targets"] == 1
    assert not re.search(r"\bnan\b", told.getvalue())
