"""A user's own attack in an evaluation: the one of the documentation, and what is refused."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.docs.documents import blocks, text_of

from s2ap_defend import DefendedClassifier
from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.data import ImageSet
from s2ap_train.jobs import ResumableJob
from s2ap_train.redteam.attacks.catalogue import ATTACKS, chosen_attacks
from s2ap_train.redteam.campaign import Setup, attack_jobs
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.results import Evaluation

SOURCE = next(block for block in blocks(text_of("evaluation.md")) if "def descend" in block)
BUDGET = AdaptiveBudget(steps=6, cheap_steps=2, restarts=1, targets=1, square_queries=5, decision_queries=5)
WRONG = """
import numpy as np
from dataclasses import replace
from s2ap_train.redteam.attacks.catalogue import ATTACKS

far = replace(ATTACKS["l2-pgd"], run=lambda target, task: 1 - task.data.images)
number = 3

def fails(target, task):
    raise ZeroDivisionError("no members left")

def returns_nothing(target, task):
    pass

def returns_some(target, task):
    return task.data.images[:1]
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "wrong.py").write_text(WRONG)
    yield
    for name in ("mine", "wrong"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tiny_model_path: Path, random_images: np.ndarray) -> ImageSet:
    """Images with the labels that the file gives them."""
    images = random_images[:12]
    return ImageSet(images, DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(images).label)


def evaluated(path: Path, data: ImageSet, names: str, folder: Path | None = None) -> tuple[Evaluation, str]:
    said = io.StringIO()
    plan = Plan(names, chosen_attacks(names)[1], BUDGET, 0.2, 0.1, 3, 0, "attacks")
    reporter = Reporter(Console(file=said, width=200))
    found = evaluate_file(path, data, plan, folder=folder, reporter=reporter, workers=1, ablation=False)
    return found, said.getvalue()


def job_of(path: Path, data: ImageSet) -> ResumableJob:
    setup = Setup(path, data, 0.2, 0.1, 3, 0, BUDGET)
    (job,) = attack_jobs(setup, chosen_attacks("mine:descend")[1])
    return job


def test_the_attack_of_the_documentation_is_judged_counted_and_run_again_when_its_file_changes(
    tiny_model_path: Path, data: ImageSet, tmp_path: Path
) -> None:
    evaluation, _ = evaluated(tiny_model_path, data, "noise,mine:descend", tmp_path / "found")
    row = next(row for row in evaluation.attacks if row.name == "mine:descend")
    assert (row.knows, row.norm, row.samples) == ("everything", "linf", 12)
    assert row.assumes.startswith("Signed steps that lower the mean log-probability")
    assert row.reached > 0.0
    assert evaluation.worst_case.robust_accuracy <= 1.0 - row.reached + 1e-9
    assert "attacks: 2 of 2 reused" in evaluated(tiny_model_path, data, "noise,mine:descend", tmp_path / "found")[1]
    decides = job_of(tiny_model_path, data).decides
    assert job_of(tiny_model_path, data).decides == decides
    (tmp_path / "mine.py").write_text(SOURCE + "\n# another version\n")
    assert job_of(tiny_model_path, data).decides != decides


def test_an_own_attack_joins_a_preset_before_the_search_which_starts_from_its_images() -> None:
    preset, attacks = chosen_attacks("quick, mine:descend")
    assert preset == "quick"
    assert [attack.name for attack in attacks[-2:]] == ["mine:descend", "unrolled-pgd"]
    assert attacks[-1].after == (*ATTACKS["unrolled-pgd"].after, "mine:descend")
    assert attacks[:-2] == chosen_attacks("quick")[1][:-1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:descend", "attack nowhere:descend: there is no module nowhere; run from the folder that holds it"),
        ("mine:climb", r"mine holds nothing called climb, expected a function of \(target, task\)"),
        ("mine.py:descend", "the attack 'mine.py:descend' names a file, expected the module: mine:descend"),
        ("wrong:number", "attack wrong:number is a int, expected a function"),
        ("wrong:fails", r"failed with ZeroDivisionError: no members left \(.*wrong\.py, line 10\); correct it"),
        ("wrong:returns_nothing", r"returned a NoneType, expected an array or tensor \[12, 1, 8, 8\]"),
        ("wrong:returns_some", r"returned an array \[1, 1, 8, 8\], expected an array or tensor \[12, 1, 8, 8\]"),
        ("wrong:far", r"wrong:far left the l2 ball"),
    ],
)
def test_what_is_no_attack_is_refused_in_one_sentence(
    name: str, message: str, tiny_model_path: Path, data: ImageSet
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        evaluated(tiny_model_path, data, name)
    assert "\n" not in str(caught.value)
