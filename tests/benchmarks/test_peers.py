import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from s2ap_defend import DefendedClassifier
from s2ap_defend.bench.asked import Stages, cut_stages
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.sequential import SequentialTest, StageAnswers, binary_tables, run_sequential_test
from s2ap_defend.sequential.wald import paper_levels, wald_boundaries
from s2ap_train.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("benchmarks")
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((60, 1, 2, 2), dtype=np.float32)


def network(weights: np.ndarray):
    """A linear network of three classes."""
    return lambda images: images.flatten(1) @ torch.from_numpy(weights.astype(np.float32))


def logs(weights: np.ndarray, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(weights)(torch.from_numpy(images)).log_softmax(dim=1).numpy()


@pytest.mark.parametrize("members", [5, 40])
def test_the_serial_protocol_decides_as_walds_test_with_the_papers_levels(members: int) -> None:
    from peers_systems import PAPER_RATE, SerialTest

    base = RANDOM.normal(size=(4, 3))
    weights = [base + 0.4 * RANDOM.normal(size=(4, 3)) for _ in range(members)]
    found = SerialTest(network(base), [network(one) for one in weights], IMAGES)
    answers = StageAnswers(logs(base, IMAGES), np.stack([logs(one, IMAGES) for one in weights]))
    rates = (answers.members.argmax(axis=2) != answers.classifier.argmax(axis=1)).mean(axis=0)
    edges, increments = binary_tables(*paper_levels(rates), members=members)
    lower, upper = wald_boundaries(PAPER_RATE, PAPER_RATE)
    test = SequentialTest(
        evidence="margin",
        edges=edges,
        increments=increments,
        lower=np.full(members, lower),
        upper=np.full(members, upper),
        final_threshold=0.0,
        waves=(members,),
        vote_weights=np.zeros(members),
        answer="accurate",
        correction="reject",
    )
    expected = run_sequential_test(test, answers)
    said = found(IMAGES)
    assert said.flagged.tolist() == expected.adversarial.tolist()
    assert said.evaluations == pytest.approx(1 + expected.members_used.mean())
    assert 0 < said.flagged.sum() < len(IMAGES)
    clean = ~said.flagged
    assert said.label[clean].tolist() == expected.base_label[clean].tolist()


def test_diffusion_ends_at_the_image_where_all_images_are_the_same_one() -> None:
    from peers_systems import Diffusion

    only = torch.tensor([[0.2, 0.4], [0.6, 0.8]])
    calls: list[float] = []

    def net(z: torch.Tensor, sigma: float) -> torch.Tensor:
        calls.append(sigma)
        return (z - only) / sigma

    found = Diffusion(net, start=0.3, end=0.01, steps=20)(torch.from_numpy(IMAGES))
    torch.testing.assert_close(found, only.expand(len(IMAGES), 1, 2, 2), atol=1e-5, rtol=0)
    assert len(calls) == 20
    assert (calls[0], calls[-1]) == (pytest.approx(0.3), pytest.approx(0.01))


def test_smoothing_abstains_where_two_classes_win_about_as_often() -> None:
    from peers_systems import Smoothed

    def bright(images: torch.Tensor) -> torch.Tensor:
        level = images.flatten(1).mean(dim=1)
        return torch.stack([0.5 - level, level - 0.5], dim=1)

    levels = np.array([0.0, 0.5, 1.0], dtype=np.float32)[:, None, None, None] + np.zeros((3, 1, 2, 2), np.float32)
    said = Smoothed(bright, sigma=0.2)(levels)
    assert said.flagged.tolist() == [False, True, False]
    assert said.label[[0, 2]].tolist() == [0, 1]


def test_all_members_without_a_test_flag_no_more_clean_images_than_they_may(golden, random_images) -> None:
    from peers_systems import PAPER_RATE, WholeEnsemble

    file = open_model_file(golden / "version-4.onnx")
    found = WholeEnsemble(Stages.start(file, cut_stages(file), "cpu", 1), random_images)
    said = found(random_images)
    assert said.flagged.mean() <= PAPER_RATE
    assert said.evaluations == 2 + len(file.manifest.members)


def test_a_file_says_the_same_of_images_one_by_one_and_at_once(golden, random_images) -> None:
    from peers_systems import Defended

    classifier = DefendedClassifier.load(golden / "version-4-abstaining.onnx", device="cpu", threads=1)
    alone, together = Defended(classifier, 1)(random_images[:20]), Defended(classifier)(random_images[:20])
    assert alone.label.tolist() == together.label.tolist()
    assert alone.flagged.tolist() == together.flagged.tolist()
    assert alone.evaluations == together.evaluations


@pytest.mark.slow
def test_networks_of_the_recipe_that_peers_need_are_trained_once(tmp_path: Path) -> None:
    from peers import FAMILIES, _parts

    counts = [f"members.{family}.count=1" for family in FAMILIES.values()]
    recipe = load_recipe("digits", ["plain.epochs=1", "score_model.epochs=1", *counts])
    splits, printed = recipe.load_data(), io.StringIO()
    found, again = (_parts(recipe, splits, tmp_path, Reporter(Console(file=printed))) for _ in range(2))
    assert set(found) == {"plain", "score-model", "member-random_channel-0", "member-mutation-0"}
    assert printed.getvalue().count("reused") == len(again) == len(found)
