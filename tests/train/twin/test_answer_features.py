"""What a planted readout of a file's answer reads: the networks that answer, each on the image that it sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import cut_stage, member_scope
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.onnx_graphs.hidden import hidden_stage
from s2ap_train.twin import Twin
from s2ap_train.twin.answer_features import answer_features


@pytest.fixture(scope="module")
def file(tiny_model_path):
    return open_model_file(tiny_model_path)


@pytest.fixture(scope="module")
def twin(file):
    return Twin.from_file(file)


def answering(file, answer):
    """The file with another answer; its graph stays as it is."""
    decision = file.manifest.decision.model_copy(update={"answer": answer})
    return replace(file, manifest=file.manifest.model_copy(update={"decision": decision}))


@pytest.mark.parametrize(("answer", "classifier", "jury"), [("robust", 0, 1), ("mixed", 1, 1), ("accurate", 1, 0)])
def test_the_networks_that_answer_are_read_each_on_what_it_sees(file, twin, random_images, answer, classifier, jury):
    """Those behind the purifier first, those past it by themselves."""
    x = torch.from_numpy(random_images[:8])
    with torch.no_grad():
        purified = twin.purify(x)
        expected = {"purified": [twin.features(purified)] * classifier, "raw": []}
        for i, member in enumerate(file.manifest.members):
            if jury and member.vote_weight:
                stage = torch_stage(hidden_stage(cut_stage(file.proto, member_scope(i))))
                expected[member.sees].append(stage(purified if member.sees == "purified" else x)[0].flatten(1))
        found = [way(x, "exact") for way in answer_features(answering(file, answer), twin)]
    ways = [torch.cat(networks, dim=1) for networks in expected.values() if networks]
    assert len(found) == len(ways) == classifier + jury
    for one, way in zip(found, ways, strict=True):
        np.testing.assert_array_equal(one, way)


def test_jurors_that_see_the_purified_image_are_read_beside_the_classifier(file, twin, random_images):
    members = tuple(member.model_copy(update={"sees": "purified"}) for member in file.manifest.members)
    behind = replace(file, manifest=file.manifest.model_copy(update={"members": members}))
    (way,) = answer_features(behind, twin)
    x = torch.from_numpy(random_images[:4])
    with torch.no_grad():
        found, classifier = way(x, "exact"), twin.features(twin.purify(x))
    assert found.shape == (4, 4 * classifier.shape[1])
    np.testing.assert_array_equal(found[:, : classifier.shape[1]], classifier)


def test_without_a_purifier_there_is_one_way(file, twin):
    off = file.manifest.purifier.model_copy(update={"steps": 0, "sigmas": ()})
    assert off.off
    unpurified = replace(file, manifest=file.manifest.model_copy(update={"purifier": off}))
    assert len(answer_features(unpurified, twin)) == 1


def test_gradients_reach_the_image_past_every_network(file, twin, random_images):
    x = torch.from_numpy(random_images[:4]).requires_grad_()
    (past,) = answer_features(answering(file, "robust"), twin)
    (gradient,) = torch.autograd.grad(past(x, "exact").square().sum(), x)
    assert (gradient != 0).flatten(1).any(1).all()
