"""Defended files of images that are not square, and of four channels: every attack, the report, and the server."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.catalogue import ATTACKS, chosen_attacks
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.report.page import write_page
from tests.export.defended_files import DECISION, PURIFICATION, TABLES, write_untrained
from tests.runtime.serving_client import assert_error, infer, serving, tensors

BUDGET = AdaptiveBudget(steps=2, cheap_steps=2, restarts=1, targets=1, square_queries=5, decision_queries=10)
SLOW = {"cw-l2", "art-pgd", "secml-pgd", "autoattack"}  # by other libraries; cw-l2 takes hundreds of steps


@pytest.fixture(scope="module", params=[(3, 20, 12), (4, 9, 14)], ids=str)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of untrained networks."""
    path = tmp_path_factory.mktemp("rectangle") / "model.onnx"
    write_untrained(path, TABLES, DECISION, PURIFICATION, shape=request.param, fold=2)
    return path


def some(path: Path, count: int) -> ImageSet:
    """Images with the labels that the file gives them."""
    classifier = DefendedClassifier.load(path, device="cpu", threads=1)
    images = np.random.default_rng(0).random((count, *classifier.input_shape), dtype=np.float32)
    return ImageSet(images, classifier(images).label)


@pytest.mark.slow  # some forty attacks each
def test_every_attack_runs_and_the_report_shows_images(path: Path, tmp_path: Path) -> None:
    names = ",".join(name for name, attack in ATTACKS.items() if attack.needs != "server" and name not in SLOW)
    plan = Plan("all", chosen_attacks(names)[1], BUDGET, 0.1, 0.5, 3, 0, "attacks")
    reporter = Reporter(Console(file=io.StringIO()))
    found = evaluate_file(path, some(path, 4), plan, folder=None, reporter=reporter, workers=1, ablation=False)
    assert len(found.attacks) > 30
    report = tmp_path / "report.html"
    write_page(found, report)
    assert "data:image/png" in report.read_text()


def test_rows_are_the_same_bits_alone_and_together(path: Path) -> None:
    classifier = DefendedClassifier.load(path, device="cpu", threads=1)
    images = some(path, 9).images
    together = classifier(images)
    assert together.purified.shape == images.shape
    for row in range(len(images)):
        alone = classifier(images[row : row + 1])
        np.testing.assert_array_equal(alone.purified[0], together.purified[row])
        assert alone.label[0] == together.label[row]
        assert alone.log_likelihood_ratio[0] == together.log_likelihood_ratio[row]


def test_the_server_takes_arrays_and_where_there_are_three_channels_files(path: Path) -> None:
    classifier = DefendedClassifier.load(path, device="cpu", threads=1)
    channels, height, width = classifier.input_shape
    images = some(path, 2).images
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    with serving(classifier, expose_evidence=True) as client:
        np.testing.assert_array_equal(tensors(infer(client, images))["label"], classifier(images).label)
        assert client.get("/page.json").json()["input"] == {"channels": channels, "height": height, "width": width}
        answer = client.post("/classify", content=file.getvalue(), headers={"content-type": "image/png"})
    if channels == 3:
        assert answer.status_code == 200, answer.text
    else:
        assert_error(answer, 400, "the model takes 4 channels, which no image file has; send an array instead")
