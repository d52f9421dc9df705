import json
from typing import Any

import pytest

from s2ap_defend.errors import ModelFileError
from s2ap_defend.manifest import Manifest, read_manifest


def manifest_data() -> dict[str, Any]:
    member = {
        "method": "s2ap",
        "sparsity": 0.5,
        "adversarially_trained": True,
        "seed": 1,
        "clean_disagreement_rate": 0.05,
        "adversarial_disagreement_rate": 0.6,
        "clean_accuracy": 0.97,
        "robust_accuracy": 0.6,
    }
    return {
        "format_version": 1,
        "input": {"channels": 1, "height": 8, "width": 8},
        "classes": ["0", "1"],
        "members": [member],
        "test": {
            "kind": "wald",
            "evidence": "margin",
            "edges": [[1e-4]],
            "increments": [[-0.8, 2.4]],
            "lower": [None],
            "upper": [2.9],
            "truncation": "clean",
            "vote_members": 1,
            "base_vote_weight": 1.0,
            "waves": [1],
            "alpha": 0.05,
            "beta": 0.05,
            "calibration_samples": 0,
        },
        "purifier": {
            "mode": "full",
            "norm": "linf",
            "sigma": 0.3,
            "radius": 0.1,
            "steps": 1,
            "step_size": 0.7,
            "rho": 0.2,
            "reuse_ascent": False,
            "bank_size": 2,
            "bank_seed": 0,
            "bank_sha256": "0" * 64,
        },
        "measured": [],
        "provenance": {
            "recipe": "digits",
            "seed": 0,
            "data": "digits",
            "classifier": "s2ap",
            "versions": {"torch": "2"},
            "git_commit": None,
        },
        "weights_sha256": "0" * 64,
        "graph_sha256": "0" * 64,
    }


def test_a_manifest_survives_writing_and_reading_bit_for_bit() -> None:
    manifest = Manifest.model_validate_json(json.dumps(manifest_data()))
    again = read_manifest(manifest.to_json(), source="model.onnx")
    assert again == manifest
    assert again.to_json() == manifest.to_json()


def test_another_version_is_refused_with_both_versions() -> None:
    data = manifest_data() | {"format_version": 2}
    with pytest.raises(ModelFileError, match=r"model\.onnx carries manifest version 2, this runtime reads 1; install"):
        read_manifest(json.dumps(data), source="model.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null"])
def test_text_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="manifest"):
        read_manifest(text, source="model.onnx")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("surprise",), 1, "surprise"),
        (("purifier", "password"), 1, r"purifier\.password"),
        (("test", "waves"), [2], "waves"),
        (("test", "upper"), [-9.0, 1.0], "upper"),
        (("test", "increments"), [[0.0, 1.0]] * 2, "test"),
        (("weights_sha256",), "abc", "weights_sha256"),
        (("members",), [], "members"),
        (("classes",), ["a", "a"], "class names repeat"),
        (("input", "channels"), 0, r"input\.channels"),
    ],
)
def test_unknown_or_contradictory_keys_are_named(path: tuple[str, ...], value: object, message: str) -> None:
    data = manifest_data()
    table = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(ModelFileError, match=message) as caught:
        read_manifest(json.dumps(data), source="model.onnx")
    assert "\n" not in str(caught.value)
