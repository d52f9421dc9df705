"""Files whose classifier torch cannot differentiate: the graph is in them as it is, and the twin borrows gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_defend.verification.content import foreign_content
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.attacks.joint import jury_network
from s2ap_train.data import ImageSet
from s2ap_train.models import create
from s2ap_train.redteam.ablation.ablation_rows import open_row, rows_of
from s2ap_train.redteam.ablation.compute import file_flops
from s2ap_train.redteam.ablation.names import BARE
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.attacks.catalogue import ATTACKS
from s2ap_train.redteam.attacks.white_box_search import SKIPPED
from s2ap_train.redteam.target import open_targets
from s2ap_train.twin import Twin
from tests.export.defended_files import (
    ABSTAINING_DECISION,
    ABSTAINING_TABLES,
    DECISION,
    PURIFICATION,
    TABLES,
    write_untrained,
)
from tests.train.looped_classifier import CLASSES, SHAPE, answers, write_looped


@dataclass(frozen=True)
class Made:
    """A file with a loop in its classifier, and where it is."""

    path: Path
    file: ModelFile
    twin: Twin


@pytest.fixture(scope="module", params=["always", "suspicious"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("looped")
    network = create({"name": "onnx", "file": str(write_looped(folder / "looped.onnx"))}, SHAPE, CLASSES)
    stage = trace_classifier(network, SHAPE, CLASSIFIER)
    always = request.param == "always"
    tables, decision = (TABLES, DECISION) if always else (ABSTAINING_TABLES, ABSTAINING_DECISION)
    path = folder / "model.onnx"
    write_untrained(path, tables, decision, PURIFICATION, classifier=stage)
    file = open_model_file(path)
    return Made(path, file, Twin.from_file(file))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).random((24, *SHAPE), dtype=np.float32)


def test_the_classifier_of_the_file_is_the_graph(made, images):
    assert foreign_content(made.file.proto) == []
    stage = cut_stage(made.file.proto, CLASSIFIER)
    (found,) = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu", threads=1).run(
        {"image": images}, ["log_probabilities"]
    )
    wanted = torch.from_numpy(answers(images)).log_softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_file_says_the_same_whole_and_in_stages(made, images):
    whole, staged = (
        DefendedClassifier.load(made.path, device="cpu", threads=1, executor=kind)(images)
        for kind in ("whole", "staged")
    )
    np.testing.assert_array_equal(whole.label, staged.label)
    np.testing.assert_array_equal(whole.probabilities, staged.probabilities)
    assert 0 < whole.adversarial.mean() < 1


def test_the_twin_answers_as_the_graph_does_and_has_the_gradient_of_the_members(made, images):
    x, y = (torch.from_numpy(images).requires_grad_() for _ in range(2))
    found = made.twin.classify(x)
    np.testing.assert_allclose(found.detach().exp().numpy().sum(1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(found.detach().argmax(1).numpy(), answers(images).argmax(1))
    together = jury_network([lambda z, i=i: made.twin.members(z)[i] for i in range(made.twin.member_count)])
    gradients = [torch.autograd.grad(value[:, 4].sum(), z)[0] for value, z in ((found, x), (together(y), y))]
    torch.testing.assert_close(*gradients)
    assert not made.twin.has_features


def test_the_red_team_has_targets_and_costs_of_it(made, images):
    labels = answers(images).argmax(1)
    defended, bare = open_targets(made.path)
    assert bare.features == ()
    assert defended.lent
    assert len(defended.features) == 1  # of the jurors, which all see the image as it came
    assert (bare.system(images, labels).label == labels).all()
    (row,) = (one for one in rows_of(made.path, {}) if one.name == BARE)
    target = open_row(row)
    assert target.features == ()
    said, _ = target.view(torch.from_numpy(images).requires_grad_(), "none", None)
    assert said.requires_grad
    assert file_flops(made.file).classifier > 0


def test_an_attack_climbs_borrowed_gradients_and_one_without_a_hidden_layer_says_so(made, images):
    few = ImageSet(images[:3], answers(images[:3]).argmax(1))
    task = Task(few, eps=0.3, l2=1.0, pixels=3, seed=0, budget=AdaptiveBudget.named("quick"))
    target = open_targets(made.path)[0]
    moved, left = (ATTACKS[name].run(target, task) for name in ("fgsm", "ila"))
    assert (np.abs(moved.images - few.images).max(axis=(1, 2, 3)) > 0.2).all()
    assert left.notes == {SKIPPED: "no hidden layer of the classifier can be read"}
    np.testing.assert_array_equal(left.images, few.images)
