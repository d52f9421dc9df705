"""An ONNX file without gradients is learnt by its surrogate, attacked through it and by queries, and that is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto
from tests.train.looped_classifier import write_looped

from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.data import Splits
from s2ap_train.hardening import fitting_attacks
from s2ap_train.hardening.fitting_attacks import BY_QUERIES, NEAR_AND_SPARSE, attacked_alone
from s2ap_train.hardening.parts import PLAIN, PartList
from s2ap_train.hardening.surrogate import blind_attacks
from s2ap_train.models import onnx_network
from s2ap_train.models.onnx_file import read_graph
from s2ap_train.models.onnx_network import OnnxNetwork
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.storage.parts import PartStore, silent_reporter


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    file = write_looped(tmp_path_factory.mktemp("looped") / "looped.onnx")
    based = [name for name, family in load_recipe("digits").members.items() if family.starts_from_base]
    network = f'{{name = "onnx", file = "{file}"}}'
    robust = '{name = "small_cnn", widths = [4, 4]}'
    changes = [f"model={network}", f"given.robust_model={robust}", "plain.epochs=6", 'classifier="plain"']
    return load_recipe("digits", [*changes, *(f"members.{name}.count=0" for name in based)])


@pytest.fixture(scope="module")
def splits(recipe: Recipe) -> Splits:
    return recipe.load_data()


@pytest.fixture(scope="module")
def trained(recipe: Recipe, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> OnnxNetwork:
    part = PartList(recipe, splits).plain()
    assert part.epochs == 6
    store = PartStore(tmp_path_factory.mktemp("work"), silent_reporter())
    stored = store.prepare([part])[PLAIN]
    assert len(stored.record["history"]) == 6
    assert store.read(part) is not None
    network: OnnxNetwork = stored.model.eval()
    return network


def test_the_surrogate_learns_the_labels_that_the_file_gives_and_attacks_by_it_reach_the_file(
    trained: OnnxNetwork, splits: Splits
) -> None:
    images = splits.validation.images
    with torch.no_grad():
        labels = trained(torch.from_numpy(images)).argmax(1).numpy()
    commonest = np.bincount(labels).max() / len(labels)
    assert trained.surrogate is not None
    assert accuracy(trained.surrogate, images, labels) > commonest + 0.2
    noise = np.random.default_rng(0).choice([-0.2, 0.2], images.shape).astype(np.float32)
    under_noise = accuracy(trained, (images + noise).clip(0, 1), labels)
    assert robust_accuracy(trained, images, labels, eps=0.2) < under_noise - 0.2


def test_it_is_said_with_the_operator(recipe: Recipe, splits: Splits) -> None:
    weakness = blind_attacks(recipe, splits)
    assert weakness is not None
    assert weakness.part == "classifier"
    assert weakness.in_words == (
        "gradients of the classifier could not be had: operator ai.onnx.Loop (node 'around/loop'), so attacks on it "
        "went by transfer and queries, which find less; give its torch network with --model and --weights for attacks "
        "that know it"
    )
    assert blind_attacks(recipe.model_copy(update={"classifier": "pruned"}), splits) is None
    assert blind_attacks(load_recipe("digits"), splits) is None


def test_the_file_is_read_once_for_what_its_gradients_lack_until_it_changes(
    recipe: Recipe, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> ModelProto:
        read.append(path)
        return read_graph(path)

    monkeypatch.setattr(onnx_network, "read_graph", counted)
    file = write_looped(tmp_path / "looped.onnx")
    own = recipe.model_copy(update={"model": {"name": "onnx", "file": str(file)}})
    parts = PartList(own, splits)
    assert parts.plain().epochs == 6
    assert blind_attacks(own, splits) is not None
    assert len(PartList(own, splits).classifiers()) == 3
    assert read == [file]
    os.utime(file, ns=(0, 0))
    assert blind_attacks(own, splits) is not None
    assert read == [file, file]


def test_evidence_is_fitted_on_attacks_that_only_ask_it(
    trained: OnnxNetwork, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ran(name: str, *_: object, **__: object) -> list[np.ndarray]:
        asked.append(name)
        return []

    monkeypatch.setattr(fitting_attacks, "_near_or_sparse", ran)
    few = splits.fit.subset(slice(0, 2))
    assert len(attacked_alone(trained, few, eps=0.1, seed=0)) == len(fitting_attacks.EPS_FACTORS)
    assert asked == list(BY_QUERIES)
    assert all(fitting_attacks.ATTACKS[name].asks_only for name in BY_QUERIES)
    assert len(BY_QUERIES) == len(NEAR_AND_SPARSE)  # every image has as many attacked versions as elsewhere
